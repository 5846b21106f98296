"""Metrics: pure functions of parameter vectors, scores and masks of wrong predictions."""

from __future__ import annotations

import torch
from scipy.optimize import nnls


def score_statistics(scores: torch.Tensor) -> dict[str, float]:
    """Returns mean, standard deviation, least and greatest of scores `(n,)`. With n = 1 the deviation is 0."""
    return {
        "mean": scores.mean().item(),
        "std": scores.std().item() if len(scores) > 1 else 0.0,
        "min": scores.min().item(),
        "max": scores.max().item(),
    }


def iou(wrong: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Returns the overlap of the wrong-prediction sets of each pair, `(n, k)` in [0, 1].

    `|A and B| / |A or B|` (arXiv 2402.13144v3, equation 7), by one matrix product; two networks without any error
    have similarity 1. `wrong` is `(n, images)` bool, `other` `(k, images)` bool, on the same images.
    """
    a, b = wrong.float(), other.float()
    both = a @ b.T  # (n, k)
    either = a.sum(1)[:, None] + b.sum(1)[None, :] - both
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def mean_pairwise_iou(wrong: torch.Tensor) -> float | None:
    """Returns the mean similarity of the pairs within a set `(n, images)`, or None for a single network."""
    n = len(wrong)
    if n < 2:
        return None
    similarity = iou(wrong, wrong)
    return ((similarity.sum() - similarity.diagonal().sum()) / (n * (n - 1))).item()


def max_similarity(wrong: torch.Tensor, zoo_wrong: torch.Tensor, excluded: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the largest similarity of each network `(n, images)` with any zoo member `(zoo, images)`, `(n,)`.

    `excluded` `(n, zoo)` bool are pairs that do not count, such as a zoo member and its near-copies in time; of a
    network with nothing left to compare with it is NaN.
    """
    similarity = iou(wrong, zoo_wrong)
    if excluded is not None:
        similarity = similarity.masked_fill(excluded, 0.0).masked_fill(excluded.all(1, keepdim=True), torch.nan)
    return similarity.max(1).values


def chance_corrected_iou(wrong: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Returns kappa = (IoU - IoU_0) / (1 - IoU_0) of each pair, `(n, k)`: 0 for independent errors, 1 for the same.

    IoU_0 = p q / (p + q - p q) is the similarity of independent errors at rates p and q, so that networks of different
    accuracy can be compared. `wrong` is `(n, images)` bool, `other` `(k, images)` bool.
    """
    p, q = wrong.double().mean(1)[:, None], other.double().mean(1)[None, :]
    chance = p * q / (p + q - p * q).clamp(min=1e-12)
    return (iou(wrong, other).double() - chance) / (1 - chance).clamp(min=1e-12)


def hull_residuals(samples: torch.Tensor, zoo: torch.Tensor, convex: bool = False) -> torch.Tensor:
    """Returns how much of each sample the zoo's affine (or convex) hull does not reach, `(n,)` in [0, 1].

    `min_a |g - sum a_i zoo_i| / |g - mean|` with `sum a_i = 1`, and `a_i >= 0` for the convex hull (non-negative
    least squares, slower). 0 is a recombination of training checkpoints, as every sample of a linear autoencoder is.
    `samples` are `(n, D)`, `zoo` `(N, D)`.
    """
    mean = zoo.double().mean(0)
    centered, targets = zoo.double() - mean, samples.double() - mean
    norms = targets.norm(dim=1).clamp(min=1e-12)
    if not convex:
        _, singular, directions = torch.linalg.svd(centered, full_matrices=False)
        directions = directions[singular > 1e-9 * singular[0]]
        return (targets - targets @ directions.T @ directions).norm(dim=1) / norms
    # One heavily weighted row makes the weights sum to 1.
    weight = 100 * centered.norm(dim=1).max().item()
    system = torch.cat([centered.T, torch.full((1, len(zoo)), weight, dtype=torch.float64)]).numpy()
    residuals = []
    for target in targets:
        solution, _ = nnls(system, torch.cat([target, torch.tensor([weight], dtype=torch.float64)]).numpy())
        residuals.append((target - torch.from_numpy(solution) @ centered).norm())
    return torch.stack(residuals) / norms


def dispersion(samples: torch.Tensor, zoo: torch.Tensor) -> float:
    """Returns R = sqrt(tr Cov(samples) / tr Cov(zoo)): 0 for copies of one network, 1 for the zoo's own spread.

    `samples` are `(n, D)`; a single vector has dispersion 0. `zoo` `(zoo, D)` has at least two distinct vectors.
    """
    if len(samples) < 2:
        return 0.0
    return (samples.double().var(0).sum() / zoo.double().var(0).sum()).sqrt().item()
