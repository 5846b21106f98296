"""Novelty: how far samples are from the zoo, against how far its own members and held-out checkpoints are."""

from __future__ import annotations

import torch

from .intervals import between_mean

COLUMNS = 2**16  # as many of a large vector are taken at a time
CENTERED = 50  # vectors whose median is subtracted


def correlation_length(similarity: torch.Tensor, step: torch.Tensor) -> int:
    """Returns the first lag of a trajectory at which the similarity of its checkpoints has reached its plateau.

    The mean similarity at each lag is compared with the plateau, the median over the longer half of the lags; it is
    reached when nine tenths of the way down from the similarity at the shortest lag are done. `similarity` `(n, n)`
    is the IoU of wrong predictions, `step` `(n,)` int64.
    """
    lag = (step[:, None] - step[None, :]).abs()
    lags = lag.unique()[1:]
    mean = torch.stack([similarity[lag == value].mean() for value in lags])
    plateau = mean[len(mean) // 2 :].median()
    reached = mean <= plateau + 0.1 * (mean[0] - plateau).clamp(min=0)
    return int(lags[reached.nonzero()[0, 0]])


def neighbors_in_time(run: torch.Tensor, step: torch.Tensor, length: int | None) -> torch.Tensor:
    """Returns which pairs are of one run and within `length` steps (None: any), `(n, n)` bool, of `(n,)` int64."""
    same_run = run[:, None] == run[None, :]
    return same_run if length is None else same_run & ((step[:, None] - step[None, :]).abs() <= length)


def leave_one_out(distances: torch.Tensor, related: torch.Tensor) -> torch.Tensor:
    """Returns each zoo member's distance to the nearest unrelated one, `(n,)`; members without any are dropped.

    `distances` `(n, n)` are among zoo members; `related` `(n, n)` bool are pairs too closely related to be compared.
    """
    nearest = distances.masked_fill(related, torch.inf).min(1).values
    return nearest[nearest.isfinite()]


def pairwise_distances(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Returns the Euclidean distances of vectors `(n, D)` and `(k, D)`, `(n, k)` float64, in blocks of columns."""
    squares = torch.zeros(len(ours), len(theirs), dtype=torch.float64)
    for start in range(0, ours.shape[1], COLUMNS):
        columns = slice(start, start + COLUMNS)
        x, y = ours[:, columns].double(), theirs[:, columns].double()
        center = y[:CENTERED].median(0).values  # so that differences of close vectors keep their digits
        x, y = x - center, y - center
        squares += (x**2).sum(1)[:, None] + (y**2).sum(1)[None, :] - 2 * x @ y.T
    return squares.clamp(min=0).sqrt()


def copying_auc(
    samples: torch.Tensor, heldout: torch.Tensor, weights: torch.Tensor, heldout_weights: torch.Tensor
) -> torch.Tensor:
    """Returns the chance that a sample is further from the zoo than a held-out checkpoint is, `(...)` in [0, 1].

    The data-copying statistic of Meehan et al. (arXiv 2004.05675) as U / mn, ties counted half: 1/2 is as far as real
    checkpoints, near 0 copying (or averaging), near 1 off the manifold. `samples` `(n,)` and `heldout` `(m,)` are
    distances to the nearest zoo member; the weights, float64 `(..., n)` and `(..., m)`, are how often each counts.
    """
    ours, real = samples[:, None], heldout[None, :]
    further = (ours > real).double() + 0.5 * (ours == real).double()  # (n, m)
    return between_mean(further, weights, heldout_weights)
