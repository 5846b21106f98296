"""Measured quantities against what held-out networks allow: passed, failed or undecided."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .intervals import Interval, share_interval

Status = Literal["passed", "failed", "undecided", "not assessable"]
RARE = 0.11  # upper end of the interval of a share that is allowed: at n = 50, one sample
CHANCE = 0.005  # by which the lower end may exceed the share of real networks


@dataclass(frozen=True)
class Measure:
    """A quantity of the samples with its interval, that of held-out networks, and the range that passes."""

    name: str
    value: Interval
    heldout: float | None
    least: float | None
    most: float | None
    status: Status

    @property
    def too_low(self) -> bool:
        """Whether it is shown to lie below the range."""
        return self.least is not None and self.value.high < self.least

    @property
    def too_high(self) -> bool:
        """Whether it is shown to lie above the range."""
        return self.status == "failed" and not self.too_low


@dataclass(frozen=True)
class Criterion:
    """A claim about the samples: passed if all its measures are, failed if one of them is."""

    claim: str
    measures: dict[str, Measure]
    status: Status

    def __str__(self) -> str:
        shown = [m for m in self.measures.values() if m.status == self.status] or list(self.measures.values())
        return ", ".join(f"{measure.name} {measure.value}" for measure in shown)


def within(
    name: str, value: Interval, heldout: float | None = None, least: float | None = None, most: float | None = None
) -> Measure:
    """Returns a measure that passes if its interval lies in the range, and fails if that lies outside."""
    low, high = value.low, value.high
    status: Status = "undecided"
    if not math.isnan(low):
        if (least is None or low >= least) and (most is None or high <= most):
            status = "passed"
        elif (least is not None and high < least) or (most is not None and low > most):
            status = "failed"
    return Measure(name, value, heldout, least, most, status)


def rare(name: str, count: int, total: int, heldout: float) -> Measure:
    """Returns the share of samples of which there should be hardly any: fails if above that of held-out networks.

    It passes if its exact interval ends below `RARE`, which takes at least 33 samples without a single one.
    """
    value = share_interval(count, total)
    status: Status = "undecided"
    if value.low > heldout + CHANCE:
        status = "failed"
    elif value.high <= RARE + heldout:
        status = "passed"
    return Measure(name, value, heldout, None, RARE + heldout, status)


def criterion(claim: str, **measures: Measure) -> Criterion:
    """Returns a claim with the measures it rests on."""
    found = {measure.status for measure in measures.values()}
    status: Status = "undecided"
    if "failed" in found:
        status = "failed"
    elif found == {"passed"}:
        status = "passed"
    return Criterion(claim, measures, status)


def not_assessable(claim: str) -> Criterion:
    """Returns a claim that nothing can be measured of."""
    return Criterion(claim, {}, "not assessable")
