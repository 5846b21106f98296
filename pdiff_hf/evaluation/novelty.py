"""Novelty: how far samples are from the zoo, against how far its own members and held-out checkpoints are.

Everything here takes distances `(n, zoo)`: of parameters modulo the network's symmetries, or of functions (the share
of images on which predictions differ).
"""

from __future__ import annotations

import torch


class TimeExclusionError(ValueError):
    """A leave-one-out over one trajectory does not leave out neighbors in time."""


def correlation_length(similarity: torch.Tensor, step: torch.Tensor) -> int:
    """Returns the first lag of a trajectory at which the similarity of its checkpoints has reached its plateau.

    The mean similarity at each lag is compared with the plateau, the median over the longer half of the lags; it is
    reached when nine tenths of the way down from the similarity at the shortest lag are done.

    Args:
        similarity: `(n, n)` IoU of wrong predictions, in [0, 1].
        step: `(n,)` int64 steps of the checkpoints.
    """
    lag = (step[:, None] - step[None, :]).abs()
    lags = lag.unique()[1:]
    mean = torch.stack([similarity[lag == value].mean() for value in lags])
    plateau = mean[len(mean) // 2 :].median()
    reached = mean <= plateau + 0.1 * (mean[0] - plateau).clamp(min=0)
    return int(lags[reached.nonzero()[0, 0]])


def neighbors_in_time(run: torch.Tensor, step: torch.Tensor, length: int | None = None) -> torch.Tensor:
    """Returns which pairs of checkpoints are of one run and within `length` steps (None: any), `(n, n)` bool.

    `run` and `step` are `(n,)` int64.
    """
    same_run = run[:, None] == run[None, :]
    return same_run if length is None else same_run & ((step[:, None] - step[None, :]).abs() <= length)


def related_pairs(run: torch.Tensor, step: torch.Tensor, length: int | None) -> torch.Tensor:
    """Returns which pairs of zoo members are too closely related to be compared with each other, `(n, n)` bool.

    In a zoo of several runs, those of one run; in a zoo of one run, those within `length` steps.

    Raises:
        TimeExclusionError: If there is one run and no length.
    """
    if len(run.unique()) > 1:
        return neighbors_in_time(run, step)
    if length is None:
        raise TimeExclusionError(
            "All checkpoints are of one run, whose neighbors in time are near-copies: a leave-one-out needs the "
            "length of their correlation (correlation_length), and must leave them out."
        )
    return neighbors_in_time(run, step, length)


def leave_one_out(distances: torch.Tensor, related: torch.Tensor) -> torch.Tensor:
    """Returns each zoo member's distance to the nearest unrelated one, `(n,)`; members without any are dropped.

    `distances` `(n, n)` are among zoo members; `related` `(n, n)` bool, see `related_pairs`.
    """
    nearest = distances.masked_fill(related, torch.inf).min(1).values
    return nearest[nearest.isfinite()]


def nearest_ratio(distances: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Returns r `(n,)`: distance to the nearest zoo member over the median leave-one-out distance. 0 is a copy.

    `distances` are `(n, zoo)`, from samples to zoo members; `reference` is what `leave_one_out` returned.
    """
    return distances.min(1).values / reference.median().clamp(min=1e-12)


def copying_auc(
    samples: torch.Tensor,
    heldout: torch.Tensor,
    weights: torch.Tensor | None = None,
    heldout_weights: torch.Tensor | None = None,
) -> float:
    """Returns the chance that a sample is further from the zoo than a held-out checkpoint is, in [0, 1].

    The data-copying statistic of Meehan et al. (arXiv 2004.05675) as U / mn, ties counted half: 1/2 is as far as real
    checkpoints, near 0 copying (or averaging), near 1 off the manifold.

    Args:
        samples: `(n,)` distances to the nearest zoo member.
        heldout: `(m,)` the same of held-out checkpoints.
        weights: `(n,)` float64, how often each sample counts; by default once.
        heldout_weights: `(m,)` float64.
    """
    w = torch.ones(len(samples), dtype=torch.float64) if weights is None else weights
    v = torch.ones(len(heldout), dtype=torch.float64) if heldout_weights is None else heldout_weights
    ours, real = samples[:, None], heldout[None, :]
    further = (ours > real).double() + 0.5 * (ours == real).double()  # (n, m)
    return ((w @ further @ v) / (w.sum() * v.sum())).item()
