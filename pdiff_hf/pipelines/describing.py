"""What a repository or folder holds, without fetching a weight."""

from __future__ import annotations

import os
from typing import Any

from ..hub.listing import Listing, list_files
from ..hub.safety import BrokenFileError, broken_files, printable, read_json
from ..targets.processing_parameters import ParameterProcessor
from .describing_networks import NETWORK, describe_networks, describe_zoo, network_rows, subset_rows, zoo_rows
from .guidance import KnownConditions
from .loading import COMPONENTS, read_index
from .numbers import number

DESCRIBING = (
    "model_index.json",
    "metrics.json",
    "processor/processor_config.json",
    "autoencoder/config.json",
    "target_model/config.json",
)


def describe(name: str | os.PathLike, revision: str | None = None, token: str | bool | None = None) -> dict[str, Any]:
    """Describes a generator, a checkpoints dataset or drawn networks, in a folder or on the Hub.

    Returns:
        JSON types: `kind` (`"generator"`, `"zoo"` or `"networks"`), and what `describe_pipeline`, `describe_zoo` or
        `describe_networks` returns.

    Raises:
        HubError: If it cannot be read.
        BrokenFileError: If it is none of the three, or a file is damaged.
        UnsafeFileError: If a configuration is no regular file of the folder.
    """
    listing = list_files(name, revision, token)
    if "model_index.json" in listing.sizes:
        return describe_pipeline(listing)
    if "processor_config.json" in listing.sizes:
        return describe_zoo(listing)
    if any(NETWORK.fullmatch(file) for file in listing.sizes):
        return describe_networks(listing)
    held = ", ".join(map(repr, sorted(listing.sizes)[:4])) or "nothing"
    raise BrokenFileError(
        f"{listing.name!r} is neither a generator (it has no model_index.json), nor a checkpoints dataset (no "
        f"processor_config.json), nor drawn networks (no provenance.json); it holds {held}."
    )


def describe_pipeline(listing: Listing) -> dict[str, Any]:
    """Describes a generator: what it generates, with what, its size, and its audit.

    Returns:
        JSON types: `kind, name, commit, size` (bytes), `largest_file, generated` (`names`, `parameter_dim`), `target`
        (`class`, `labels`), `autoencoder, denoiser, scheduler` (classes), `latent_dim, num_inference_steps,
        autoguidance_scale, guidance_scale, conditions` (`kind`, `names`, `complement`, `trained_count`; or None) and,
        where they are known, `data, verdict, accuracy, dispersion, costs`.

    Raises what `describe` raises.
    """
    folder, sizes = listing.fetch(DESCRIBING), listing.sizes
    index, where = read_index(folder), f"The description of {listing.name!r}"
    target = read_json(folder / "target_model" / "config.json")
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    with broken_files(where):
        processor = ParameterProcessor.from_config(read_json(folder / "processor" / "processor_config.json"))
        described: dict[str, Any] = {
            "kind": "generator",
            "name": listing.name,
            "commit": listing.commit,
            "size": sum(sizes.values()),
            "largest_file": max(sizes, key=lambda file: sizes[file]),
            "generated": {"names": processor.names, "parameter_dim": processor.parameter_dim},
            "target": {"class": index["target_model"][1], "labels": list(target.get("id2label", {}).values())},
            **{component: index[component][1] for component in COMPONENTS[:3]},
            "latent_dim": int(read_json(folder / "autoencoder" / "config.json")["latent_dim"]),
            "num_inference_steps": index.get("default_num_inference_steps"),
            "autoguidance_scale": index.get("default_autoguidance_scale", 0.0),
            "conditions": None,
            "guidance_scale": index.get("default_guidance_scale", 1.0),
        }
        if index.get("conditions") is not None:
            known = KnownConditions.from_dict(index["conditions"])
            described["conditions"] = known.meaning.to_dict() | {"trained_count": len(known.trained)}
        if "sets" in metrics:
            described["verdict"] = {key: metrics["verdict"][key] for key in ("word", "reason")}
            sets = metrics["sets"]
            described["accuracy"] = {name: _floats(figures["test"]["accuracy"]) for name, figures in sets.items()}
            described["dispersion"] = _floats(sets["generated"]["dispersion"])
        data = metrics.get("data", {})
        described["data"] = {key: data.get(key) for key in ("dataset_name", "checkpoints", "zoo_count")}
        described["costs"] = metrics.get("costs", {})
        return described


def _floats(figures: dict[str, Any]) -> dict[str, float | None]:
    return {key: None if value is None else float(value) for key, value in figures.items()}


def description_table(described: dict[str, Any]) -> str:
    """Returns what `describe` found as lines of text."""
    kinds = {"generator": pipeline_rows, "zoo": zoo_rows, "networks": network_rows}
    rows = kinds[described["kind"]](described)
    if described["commit"]:
        rows[next(iter(rows))] += f" at {described['commit'][:8]}"
    width = max(map(len, rows))
    return "\n".join(f"{key:{width}}  {printable(value)}" for key, value in rows.items())


def pipeline_rows(described: dict[str, Any]) -> dict[str, str]:
    """Returns the lines of a table about what `describe_pipeline` found."""
    rows = {
        "generator": described["name"],
        **subset_rows(described),
        "autoencoder": f"{described['autoencoder']}, {described['latent_dim']} latents",
        "denoiser": described["denoiser"],
        "sampler": f"{described['scheduler']}, {described['num_inference_steps']} steps"
        + (f", guidance {described['guidance_scale']}" if described["guidance_scale"] != 1 else "")
        + (f", autoguidance {described['autoguidance_scale']}" if described["autoguidance_scale"] else ""),
        "size": f"{described['size']:,} bytes, most of it {described['largest_file']}",
    }
    if conditions := described["conditions"]:
        meant = ", ".join(conditions["names"][:10]) + (", …" if len(conditions["names"]) > 10 else "")
        rows["conditions"] = f"{conditions['kind']} for {meant}; {conditions['trained_count']} in the zoo"
    data = {key: value for key, value in described["data"].items() if value is not None}
    if data:
        rows["fitted to"] = ", ".join(f"{key} {value}" for key, value in data.items())
    if "verdict" in described:
        accuracy = {name: f"{number(figures['mean'], 2, 100)} %" for name, figures in described["accuracy"].items()}
        real = ["zoo" if "zoo" in accuracy else "heldout"]  # of a conditional generator, tasks are held out
        rows["audit"] = f"{described['verdict']['word']} ({described['verdict']['reason']})"
        rows["accuracy"] = ", ".join(f"{name} {accuracy[name]}" for name in ("generated", *real, "average"))
        known = {key: value for key, value in described["dispersion"].items() if value is not None}  # F may be None
        rows["dispersion"] = ", ".join(f"{key} = {value:.2f}" for key, value in known.items())
    else:
        rows["audit"] = "not evaluated; `pdiff-hf audit` does"
    return rows
