"""Merging checkpoints datasets that were collected apart: shards of one collection, or additions to a zoo."""

from __future__ import annotations

import dataclasses
import operator
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from ..hub.cards import published_value
from ..hub.client import HubConflictError
from ..hub.files import RepositoryFiles
from ..hub.sharing import commit_address, prepare_repository, share
from ..targets.building import build_network
from ..targets.processing_parameters import LayoutError
from .checkpoints import SPLITS, Checkpoints, CheckpointSplit, load_checkpoints
from .parquet import CheckpointsError
from .settings import TrajectorySettings, shared_names

OF_ONE_PART = ("costs", "hardware", "repo_id")  # what parts of one collection need not have in common
TRAJECTORY_NAMES = {known.name for known in dataclasses.fields(TrajectorySettings)} - set(shared_names())
APPEND_ATTEMPTS = 20


def read_shard(shard: str) -> tuple[int, int]:
    """Reads `i/n`, the i-th of n parts of a collection, counted from 1."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"A shard is written i/n with i from 1 to n, for example 2/4, but {shard!r} was given.")
    return int(match[1]), int(match[2])


def merge_checkpoints(parts: Sequence[Checkpoints], *, skip_equal: bool = False, partial: bool = False) -> Checkpoints:
    """Puts checkpoints of one layout, trunk and collection together, sorted by run and step.

    Shards of one collection, in any order, give the dataset that is collected at once, bit for bit; only the costs
    differ, which are added up. The target holds the merged zoo's average in the generated positions. Where only some
    of the parts have a column, the rows of the others have NaN (scores and losses) or None in it.

    Args:
        parts: At least one dataset.
        skip_equal: Take rows once that occur several times with the same run, step, split and vector, bit for bit,
            instead of refusing them.
        partial: Do not ask for all shards; more may come.

    Raises:
        LayoutError: If the layouts differ.
        CheckpointsError: If shards are missing or doubled, a row occurs twice, or preprocessing, settings or trunks
            differ.
    """
    if not parts:
        raise CheckpointsError("There is nothing to merge: pass at least one checkpoints dataset.")
    first = parts[0]
    for place, part in enumerate(parts[1:], 2):
        _require_same(_in_common(first), _in_common(part), place)
    if not partial:
        _require_all_shards(parts, skip_equal)
    splits = _merge_rows(parts, skip_equal)
    collection = _without_shard(first.collection)
    if "costs" in first.collection:
        costs = [part.collection.get("costs", {}) for part in parts]
        collection["costs"] = {name: sum(cost.get(name, 0) for cost in costs) for name in costs[0]}
    if "hardware" in first.collection:
        collection["hardware"] = ", ".join(sorted({str(part.collection.get("hardware")) for part in parts}))
    target_model = first.target_model
    if len(splits["train"]):
        target_model = build_network(target_model, first.processor, splits["train"].parameters.mean(0))
    return Checkpoints(splits, first.processor, target_model, dict(first.preprocessing), collection)


def append_checkpoints(
    checkpoints: Checkpoints, repo_id: str, *, private: bool | None = None, token: str | bool | None = None
) -> str:
    """Adds checkpoints to a dataset on the Hub, which is made if need be, while others may add theirs.

    What is there is read, merged and pushed on top of the commit that was read, again if someone else was faster.
    Rows that are there already are not added twice, so that it may be repeated after any failure.

    Args:
        checkpoints: The rows to add.
        repo_id: See `pdiff_hf.share`.
        private: See `pdiff_hf.share`.
        token: See `pdiff_hf.share`.

    Returns:
        The address of the commit that holds the rows.

    Raises:
        LayoutError, CheckpointsError: If they do not fit what is there; see `merge_checkpoints`.
        HubConflictError: If others were faster again and again.
        HubError: If it cannot be read or pushed.
    """
    repo_id = prepare_repository(repo_id, "dataset", private, token)
    for attempt in range(APPEND_ATTEMPTS):
        there = RepositoryFiles(repo_id, "dataset", token=token)
        head = there.download(["processor_config.json"])
        merged = checkpoints
        if (head / "processor_config.json").is_file():
            remote = load_checkpoints(repo_id, revision=head.name, token=token)
            published = dataclasses.replace(checkpoints, collection=published_value(checkpoints.collection))
            merged = merge_checkpoints([remote, published], skip_equal=True, partial=True)
            if all(len(merged.splits[split]) == len(remote.splits[split]) for split in SPLITS):
                return commit_address(repo_id, "dataset", head.name)
        try:
            with tempfile.TemporaryDirectory() as temporary:
                folder = f"{temporary}/checkpoints"
                merged.save(folder)
                return share(folder, repo_id, private=private, token=token, parent_commit=head.name)
        except HubConflictError:
            if attempt == APPEND_ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0, 1))  # those that met once shall not meet again
    raise AssertionError("unreachable")


def _without_shard(collection: dict[str, Any]) -> dict[str, Any]:
    """Returns what all shards of a collection have in common, which is what the whole states; costs apart."""
    common = {name: value for name, value in collection.items() if name not in OF_ONE_PART}
    if "runs" in common:
        common["runs"] = {**common["runs"], "run_shard": None}
        if "settings" in common:  # those of format version 1 named the settings of a trajectory too
            own = common["settings"].items()
            common["settings"] = {name: value for name, value in own if name not in TRAJECTORY_NAMES}
    return common


def _in_common(part: Checkpoints) -> dict[str, dict[str, Any]]:
    """What the parts of one zoo have in common: each tensor of the layout, settings, tensors of the trunk, by name."""
    layout, trunk = part.processor, part.target_model.state_dict()
    places = zip(range(len(layout.names)), layout.shapes, layout.config.dtypes, strict=True)
    return {
        "layout": dict(zip(layout.names, places, strict=True)) | dict.fromkeys(layout.statistics, "own statistics"),
        "preprocessing": _flat(part.preprocessing),
        "collection": _flat(_without_shard(part.collection)),
        "trunk": {name: trunk[name] for name in sorted(trunk.keys() - {*layout.names, *layout.own_buffers})},
    }


def _require_same(ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]], place: int) -> None:
    for what, mine in ours.items():
        equal = torch.equal if what == "trunk" else operator.eq
        other = theirs[what]
        names = [n for n in {**mine, **other} if n not in mine or n not in other or not equal(mine[n], other[n])]
        if names and what == "trunk":
            raise CheckpointsError(
                f"The trunk of dataset {place} differs from that of the first one at {names[0]!r}; only checkpoints "
                "of one trunk can be merged. Collect all parts from the same target, with the same number of threads."
            )
        if names:
            values = ", ".join(f"{name} {other.get(name)!r} instead of {mine.get(name)!r}" for name in names)
            raise (LayoutError if what == "layout" else CheckpointsError)(
                f"The {what} of dataset {place} differs from that of the first one: {values}; only zoos that were "
                "collected in the same way can be merged."
            )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _require_all_shards(parts: Sequence[Checkpoints], skip_equal: bool) -> None:
    given = [part.collection.get("runs", {}).get("run_shard") for part in parts]
    shards = [read_shard(shard) for shard in given if shard is not None]
    if not shards:
        return
    count = shards[0][1]
    if len(shards) < len(parts) or any(of != count for _, of in shards):
        raise CheckpointsError(
            f"The shards {given} are not parts of one division; collect all with the same n in --run_shard i/n."
        )
    found, whole = Counter(i for i, _ in shards), Counter(range(1, count + 1))
    wrong = {"missing": whole - found, "doubled": Counter() if skip_equal else found - whole}
    named = [", ".join(f"{i}/{count}" for i in sorted(which)) + f" {what}" for what, which in wrong.items() if which]
    if named:
        raise CheckpointsError(
            f"The shards given do not make one whole: {' and '.join(named)}; pass each shard of the {count} once."
        )


def _merge_rows(parts: Sequence[Checkpoints], skip_equal: bool) -> dict[str, CheckpointSplit]:
    seen: dict[tuple[str, int], tuple[str, torch.Tensor]] = {}
    kept: dict[str, list[CheckpointSplit]] = {split: [] for split in SPLITS}
    for place, part in enumerate(parts, 1):
        for split, zoo in part.splits.items():
            new = []
            for run, step, vector in zip(zoo.run, zoo.step, zoo.parameters, strict=True):
                known = seen.get((run, step))
                new.append(known is None)
                if known is None:
                    seen[run, step] = (split, vector)
                elif known[0] != split or not torch.equal(known[1], vector):
                    raise CheckpointsError(
                        f"Two different checkpoints are called step {step} of run {run!r}, the second in the {split} "
                        f"split of dataset {place}; a run and a step name one checkpoint. Rename one of the runs."
                    )
                elif not skip_equal:
                    raise CheckpointsError(
                        f"Step {step} of run {run!r} occurs twice, the second time in dataset {place}; leave one of "
                        "them out, or pass skip_equal=True to take equal rows once."
                    )
            kept[split].append(zoo.take(new))
    splits = {}
    for split, zoos in kept.items():
        if zoos:
            zoo = CheckpointSplit.concatenate(zoos)
            places = list(zip(zoo.run, zoo.step, strict=True))
            splits[split] = zoo.rows(sorted(range(len(zoo)), key=places.__getitem__))
    return splits
