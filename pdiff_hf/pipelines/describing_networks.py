"""What a checkpoints dataset, or a folder of drawn networks, holds, without fetching a weight."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq

from ..hub.listing import Listing
from ..hub.safety import broken_files, read_json
from ..targets.processing_parameters import ParameterProcessor
from ..targets.task import task_of

ZOO_FILES = ("processor_config.json", "collection.json", "target_model/config.json")
SCORES = ("validation_score", "validation_accuracy")  # the latter in earlier files
NETWORK = re.compile(r"(?:\d{5}/)?provenance\.json")


def describe_zoo(listing: Listing) -> dict[str, Any]:
    """Describes a checkpoints dataset: `splits` (`count` and range of the `score` of each), `generated`, `target`.

    Of its parquet files the footers alone are read.

    Raises:
        BrokenFileError: If a file is missing or damaged.
    """
    folder = listing.fetch(ZOO_FILES)
    target = read_json(folder / "target_model" / "config.json")
    collection = read_json(folder / "collection.json") if "collection.json" in listing.sizes else {}
    settings = collection.get("settings") or {}
    with broken_files(f"The description of {listing.name!r}"):
        processor = ParameterProcessor.from_config(read_json(folder / "processor_config.json"))
        splits: dict[str, dict[str, Any]] = {}
        for name in sorted(listing.sizes):
            if shard := re.fullmatch(r"data/(train|validation|test)-.*\.parquet", name):
                with listing.open(name) as file:
                    count, scores = _read_footer(file)
                own = splits.setdefault(shard[1], {"count": 0, "score": []})
                own["count"] += count
                own["score"] = [min(own["score"] + scores), max(own["score"] + scores)] if scores else own["score"]
        labels = list(target.get("id2label", {}).values())
        config = SimpleNamespace(problem_type=target.get("problem_type"), num_labels=len(labels) or None)
        return {
            "kind": "zoo",
            "name": listing.name,
            "commit": listing.commit,
            "size": sum(listing.sizes.values()),
            "splits": {name: splits[name] for name in ("train", "validation", "test") if name in splits},
            "score_name": task_of(config).score_name,
            "generated": {"names": processor.names, "parameter_dim": processor.parameter_dim},
            "target": {"class": (target.get("architectures") or ["a network"])[0], "labels": labels},
            "dataset_name": settings.get("dataset_name"),
            "num_runs": settings.get("num_runs"),
            "costs": collection.get("costs", {}),
        }


def _read_footer(file: Any) -> tuple[int, list[float]]:
    """Returns the number of rows of a parquet file, and the bounds of the scores in it where they were measured."""
    metadata, scores = pq.ParquetFile(file).metadata, []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            bounds = column.statistics
            if column.path_in_schema in SCORES and bounds is not None and bounds.has_min_max:
                scores += [bounds.min, bounds.max]
    return metadata.num_rows, scores


def describe_networks(listing: Listing) -> dict[str, Any]:
    """Describes drawn networks: how many (`count`), their class, and how the first and last of them were drawn.

    Raises:
        BrokenFileError: If a file is missing or damaged.
    """
    found = sorted(name.removesuffix("provenance.json") for name in listing.sizes if NETWORK.fullmatch(name))
    numbered = [place for place in found if place] or found  # subfolders, else the root
    first, last = numbered[0], numbered[-1]
    names = ("config.json", "adapter_config.json", "provenance.json")
    folder = listing.fetch(tuple(sorted({f"{place}{name}" for place in (first, last) for name in names})))
    drawn = [read_json(folder / f"{place}provenance.json") for place in (first, last)]
    if f"{first}config.json" in listing.sizes:
        target = read_json(folder / f"{first}config.json")
    else:
        target = {"architectures": ["PEFT adapter"]} | read_json(folder / f"{first}adapter_config.json")
    with broken_files(f"The description of {listing.name!r}"):
        return {
            "kind": "networks",
            "name": listing.name,
            "commit": listing.commit,
            "size": sum(listing.sizes.values()),
            "count": len(numbered),
            "target": {
                "class": (target.get("architectures") or ["a network"])[0],
                "labels": list(target.get("id2label", {}).values()),
            },
            "first": drawn[0],
            "last": drawn[1],
        }


def subset_rows(described: dict[str, Any]) -> dict[str, str]:
    """Returns the lines of a table about the tensors that are generated, and their network's classes."""
    generated, target = described["generated"], described["target"]
    names = generated["names"]
    return {
        "generates": f"{generated['parameter_dim']:,} parameters in {len(names)} tensors of {target['class']}",
        "tensors": ", ".join(names[:3]) + (f", … ({len(names) - 3} more)" if len(names) > 3 else ""),
        "labels": f"{len(target['labels'])}: {', '.join(map(str, target['labels'][:5]))}, …",
    }


def zoo_rows(described: dict[str, Any]) -> dict[str, str]:
    """Returns the lines of a table about what `describe_zoo` found."""
    counts = ", ".join(f"{own['count']:,} {name}" for name, own in described["splits"].items())
    percent = described["score_name"] == "accuracy"
    shown = {
        name: " to ".join(f"{100 * score:.2f} %" if percent else f"{score:.4f}" for score in own["score"])
        for name, own in described["splits"].items()
        if own["score"]
    }
    runs = f"; {described['num_runs']} runs in train" if described["num_runs"] else ""
    rows = {"zoo": described["name"], "checkpoints": counts + runs, **subset_rows(described)}
    rows["size"] = f"{described['size']:,} bytes"
    scores = ", ".join(f"{name} {score}" for name, score in shown.items())
    rows[described["score_name"]] = f"on validation examples: {scores}" if scores else "not measured"
    return rows | ({"trained on": str(described["dataset_name"])} if described["dataset_name"] else {})


def network_rows(described: dict[str, Any]) -> dict[str, str]:
    """Returns the lines of a table about what `describe_networks` found."""
    first, last = described["first"], described["last"]
    origin = str(first.get("generator") or "a generator that was not on the Hub")
    revision, seeds = first.get("revision"), [one.get("seed") for one in (first, last)]
    seed = "none" if seeds[0] is None else " to ".join(str(seed) for seed in dict.fromkeys(seeds))
    return {
        "networks": described["name"],
        "holds": f"{described['count']:,} drawn networks {described['target']['class']}",
        "from": origin + (f" at {revision[:8]}" if revision else ""),
        "drawn with": f"{first.get('scheduler')}, {first.get('num_inference_steps')} steps, temperature "
        f"{first.get('temperature')}, seed {seed}",
        "size": f"{described['size']:,} bytes",
        "accuracy": "not measured here; the generator's card has figures of such networks",
    }
