"""Names of classes: which of two lists are the same classes, whatever their order and spelling."""

from __future__ import annotations

import re
from collections.abc import Sequence

SAME_ORDER = 0.99  # of ImageNet's 1,000 names two are spelled in several ways, since they occur twice


def match_names(names: Sequence[str], others: Sequence[str]) -> list[int] | None:
    """Returns the place of each name in another list, or None if one is not there.

    Case, and whether words are joined by spaces, underscores or hyphens, matter only where names differ in nothing
    else. Two lists of which 99 % are the same, place by place, are in the same order.
    """
    for spell in (str, _plain):
        ours, theirs = [spell(name) for name in names], [spell(name) for name in others]
        same = sum(our == their for our, their in zip(ours, theirs, strict=False))
        if len(ours) == len(theirs) and same >= SAME_ORDER * len(ours):
            return list(range(len(ours)))
        places = {name: place for place, name in enumerate(theirs)}
        if len(places) == len(theirs) and len(set(ours)) == len(ours) and places.keys() >= set(ours):
            return [places[name] for name in ours]
    return None


def are_numbers(names: Sequence[str]) -> bool:
    """Tells whether classes are only numbered: `0`, `1`, … or, as transformers does, `LABEL_0`, `LABEL_1`, …"""
    return all(name in (str(place), f"LABEL_{place}") for place, name in enumerate(names))


def missing_names(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Returns the names that are not in the other list, whatever their spelling."""
    known = {_plain(name) for name in others}
    return [name for name in names if _plain(name) not in known]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
