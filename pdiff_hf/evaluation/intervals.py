"""Intervals by resampling runs, or blocks of steps, and generator seeds; never rows of one trajectory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

RESAMPLES = 400
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its percentile-bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def resampling_units(run: torch.Tensor, step: torch.Tensor, length: int | None) -> torch.Tensor:
    """Returns the number of each checkpoint's unit, `(n,)` int64: its run, or in a single run a block of `length`."""
    if len(run.unique()) > 1 or length is None:
        return run.unique(return_inverse=True)[1]
    return ((step - step.min()) // max(1, length)).unique(return_inverse=True)[1]


def resampled_weights(units: torch.Tensor, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yields how often each row counts, `(n,)` float64, first once each, then for `RESAMPLES` draws of the units."""
    yield torch.ones(len(units), dtype=torch.float64)
    count = int(units.max()) + 1
    for _ in range(RESAMPLES):
        drawn = torch.randint(count, (count,), generator=generator)
        yield torch.bincount(drawn, minlength=count)[units].double()


def bootstrap(statistic: Callable[..., float], *units: torch.Tensor, seed: int = 0) -> Interval:
    """Returns the interval of `statistic(weights, …)`, which takes one weight vector for each vector of units."""
    draws = [resampled_weights(unit, torch.Generator().manual_seed(seed + i)) for i, unit in enumerate(units)]
    values = torch.tensor([statistic(*weights) for weights in zip(*draws, strict=True)], dtype=torch.float64)
    resampled = values[1:][values[1:].isfinite()]
    tail = (1 - LEVEL) / 2
    low, high = (resampled.quantile(q).item() for q in (tail, 1 - tail))
    return Interval(values[0].item(), low, high)


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> float:
    """Returns the mean of `(n,)` with weights `(n,)`."""
    return ((values.double() * weights).sum() / weights.sum()).item()


def weighted_median(values: torch.Tensor, weights: torch.Tensor) -> float:
    """Returns the median of `(n,)` with weights `(n,)`."""
    ordered, order = values.double().sort()
    share = weights[order].cumsum(0) / weights.sum()
    return ordered[int((share < 0.5).sum())].item()


def weighted_pair_mean(matrix: torch.Tensor, weights: torch.Tensor) -> float:
    """Returns the mean over pairs of distinct rows of a symmetric `(n, n)` with weights `(n,)`."""
    products = weights[:, None] * weights[None, :]
    products.fill_diagonal_(0)
    return ((matrix.double() * products).sum() / products.sum()).item()


def weighted_spread(parameters: torch.Tensor, weights: torch.Tensor) -> float:
    """Returns sqrt(tr Cov) of vectors `(n, D)` with weights `(n,)`."""
    values = parameters.double()
    mean = (weights @ values) / weights.sum()
    squares = ((values - mean) ** 2).sum(1)
    return ((weights @ squares) / (weights.sum() - 1)).sqrt().item()
