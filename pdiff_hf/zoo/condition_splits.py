"""The conditions of a zoo's splits: whether each row has one, and whether whole conditions are held out."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch

from ..targets.conditions import ConditionError, Conditions
from .parquet import CheckpointsError

SAME = 1e-6  # distance up to which two conditions are one


def conditions_of_splits(splits: Mapping[str, Any], conditions: Conditions | None) -> dict[str, torch.Tensor]:
    """Returns the conditions `(n, c)` float32 of each split that has rows; nothing for a zoo without conditions.

    Args:
        splits: The `CheckpointSplit`s of a zoo.
        conditions: What the numbers of its conditions mean.

    Raises:
        CheckpointsError: If rows have conditions, but what they mean is not known; if it is, but a row has none; or
            if a row has numbers that are no condition of this kind.
    """
    found = {}
    for split, rows in splits.items():
        given = rows.columns.get("condition")
        if not len(rows) or (given is None and conditions is None):
            continue
        if conditions is None:
            raise CheckpointsError(
                f"The {split} split has a column 'condition', but what its numbers mean is not stated; set "
                'collection["conditions"] = Conditions(kind, names).to_dict(), or rename the column.'
            )
        if given is None or None in given:
            raise CheckpointsError(
                f"The zoo has conditions ({conditions.kind}), but {'no row' if given is None else 'not every row'} of "
                f"its {split} split has one; add the missing ones, or remove all and collection['conditions']."
            )
        try:
            found[split] = conditions.check(given)
        except ConditionError as error:
            raise CheckpointsError(f"The {split} split has a wrong condition. {error}") from error
    return found


def require_held_out(splits: Mapping[str, Any], conditions: Conditions | None) -> None:
    """Raises `CheckpointsError` if two splits have a condition in common, and what `conditions_of_splits` raises."""
    if conditions is None:
        conditions_of_splits(splits, None)
    else:
        require_apart(conditions_of_splits(splits, conditions), conditions)


def require_apart(given: Mapping[str, torch.Tensor], conditions: Conditions) -> None:
    """Raises `CheckpointsError` if two splits of conditions `(n, c)` have one in common.

    Networks of a held-out task are then among those that a generator learns from, or, if the complement of a task is
    the same task, one exchange of outputs away from them.
    """
    distinct = {split: rows.unique(dim=0) for split, rows in given.items()}
    for (split, values), (other, others) in combinations(distinct.items(), 2):
        same = (conditions.pairwise_distances(values, others) <= SAME).nonzero()
        if len(same):
            first, second = values[same[0, 0]], others[same[0, 1]]
            is_complement = bool((first != second).any()) and conditions.complement
            relation = ", whose complement is the same task with exchanged outputs," if is_complement else ""
            raise CheckpointsError(
                f"Whole conditions must be held out, but the {split} split has {conditions.describe(first)}{relation} "
                f"and the {other} split {conditions.describe(second)} (such pairs: {len(same)}); move all rows of "
                "a task to one split."
            )


def describe_conditions(splits: Mapping[str, Any], conditions: Conditions | None) -> dict[str, Any] | None:
    """Returns what a card states of a zoo's conditions, None without: how many there are, and how far held out."""
    if conditions is None:
        return None
    distinct = {split: rows.unique(dim=0) for split, rows in conditions_of_splits(splits, conditions).items()}
    rows = []
    for split, values in distinct.items():
        row = {"split": split, "count": len(values), "least": "", "mean": ""}
        if split != "train":
            distances = conditions.distances(values, distinct["train"])
            row |= {"least": f"{distances.min():.3g}", "mean": f"{distances.mean():.3g}"}
        rows.append(row)
    return {**conditions.to_dict(), "dim": conditions.dim, "rows": rows}
