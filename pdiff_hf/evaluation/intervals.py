"""Intervals by resampling runs, or blocks of steps, and generator seeds; never rows of one trajectory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import beta

RESAMPLES = 400
LEVEL = 0.95
LEAST_UNITS = 3  # with two of them, half of all resamples are one unit twice, the others all the same
FEWEST_UNITS = 5  # runs or blocks for which an interval that resamples them is trusted


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; both ends are NaN where there is none."""

    value: float
    low: float
    high: float
    note: str | None = None  # why there is no interval, or why it is not trusted

    def __str__(self) -> str:
        value = "-" if math.isnan(self.value) else f"{self.value:.2f}"
        interval = "" if math.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{value}{interval}" + (f" ({self.note})" if self.note else "")


def without_ends(value: float, why: str) -> Interval:
    """Returns an estimate alone, with the reason why it has no interval."""
    return Interval(value, math.nan, math.nan, f"no interval: {why}")


def resampling_units(run: torch.Tensor, step: torch.Tensor, length: int | None) -> torch.Tensor:
    """Returns the number of each checkpoint's unit, `(n,)` int64: its run, or in a single run a block of `length`."""
    if len(run.unique()) > 1 or length is None:
        return run.unique(return_inverse=True)[1]
    return ((step - step.min()) // max(1, length)).unique(return_inverse=True)[1]


def resampled_weights(units: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns how often each row counts, `(RESAMPLES + 1, n)` float64: once, then for draws of the units `(n,)`."""
    count = int(units.max()) + 1
    drawn = torch.randint(count, (RESAMPLES, count), generator=generator)
    times = torch.zeros(RESAMPLES, count, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(times))
    return torch.cat([torch.ones(1, len(units), dtype=torch.float64), times[:, units]])


def bootstrap(statistic: Callable[..., torch.Tensor], *units: torch.Tensor, seed: int = 0) -> Interval:
    """Returns the percentile interval of `statistic(weights, …)`.

    The statistic takes weights `(resamples, n)` for each of `units` `(n,)`, and returns its values `(resamples,)`. The
    interval has no ends with fewer than `LEAST_UNITS` units, and where the statistic is undefined for all rows, or for
    more than half of the resamples.
    """
    draws = (resampled_weights(unit, torch.Generator().manual_seed(seed + i)) for i, unit in enumerate(units))
    values = statistic(*draws).double()
    resampled = values[1:][values[1:].isfinite()]
    fewest = min(len(unit.unique()) for unit in units)
    if fewest < LEAST_UNITS:
        return without_ends(values[0].item(), f"too few independent runs, blocks or samples: {fewest}")
    if not values[0].isfinite() or len(resampled) < RESAMPLES / 2:
        return without_ends(values[0].item(), "undefined for these networks")
    tail = (1 - LEVEL) / 2
    low, high = (resampled.quantile(q).item() for q in (tail, 1 - tail))
    return Interval(values[0].item(), low, high)


def share_interval(count: int, total: int) -> Interval:
    """Returns the share `count / total` of independent rows with its exact interval (Clopper & Pearson 1934)."""
    tail = (1 - LEVEL) / 2
    low = beta.ppf(tail, count, total - count + 1) if count else 0.0
    high = beta.ppf(1 - tail, count + 1, total - count) if count < total else 1.0
    return Interval(count / total, float(low), float(high))


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the means `(...)` of values `(n,)` with weights `(..., n)`."""
    return weights @ values.double() / weights.sum(-1)


def weighted_quantile(values: torch.Tensor, weights: torch.Tensor, q: float) -> torch.Tensor:
    """Returns the `q`-quantiles `(...)` of values `(n,)` with weights `(..., n)`."""
    ordered, order = values.double().sort()
    share = weights[..., order].cumsum(-1) / weights.sum(-1, keepdim=True)
    return ordered[(share < q).sum(-1)]


def weighted_median(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the medians `(...)` of values `(n,)` with weights `(..., n)`."""
    return weighted_quantile(values, weights, 0.5)


def between_mean(matrix: torch.Tensor, weights: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Returns the means `(...)` over pairs of two sets, of `(n, m)` with weights `(..., n)` and `(..., m)`."""
    return ((weights @ matrix.double()) * others).sum(-1) / (weights.sum(-1) * others.sum(-1))


def weighted_pair_mean(matrix: torch.Tensor, weights: torch.Tensor, units: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the means `(...)` over pairs of rows of distinct units, of a symmetric `(n, n)` with weights `(..., n)`.

    Pairs within a unit (by default a row) do not count: neither those of one run, nor those of a row that was drawn
    twice, whose distance of 0 would bias a bootstrap. NaN without any pair.
    """
    units = torch.arange(len(matrix)) if units is None else units
    apart = (units[:, None] != units[None, :]).double()  # (n, n)
    distances = torch.where(apart > 0, matrix.double(), 0.0)
    return ((weights @ distances) * weights).sum(-1) / ((weights @ apart) * weights).sum(-1)


def weighted_spread(parameters: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns sqrt(tr Cov) of vectors `(n, D)` with weights `(n,)`."""
    values = parameters.double()
    mean = (weights @ values) / weights.sum()
    squares = ((values - mean) ** 2).sum(1)
    return ((weights @ squares) / (weights.sum() - 1)).sqrt()
