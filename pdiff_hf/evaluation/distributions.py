"""Two-sample statistics of parameter vectors: are these samples of one distribution?"""

from __future__ import annotations

import torch


def energy_distance(samples: torch.Tensor, others: torch.Tensor) -> float:
    """Returns 2 E|X - Y| - E|X - X'| - E|Y - Y'|, which is 0 for equal distributions only (Szekely & Rizzo 2013).

    The unbiased estimate (pairs of distinct members) of `(n, D)` and `(m, D)`, which can be slightly negative.
    """
    n, m = len(samples), len(others)
    x, y = samples.double(), others.double()
    within_x = torch.cdist(x, x).sum() / (n * (n - 1))
    within_y = torch.cdist(y, y).sum() / (m * (m - 1))
    return (2 * torch.cdist(x, y).mean() - within_x - within_y).item()


def nearest_neighbor_accuracy(samples: torch.Tensor, others: torch.Tensor) -> float:
    """Returns how often a vector's nearest neighbor is of its own set, in [0, 1]; 1/2 for equal distributions.

    The leave-one-out 1-NN two-sample test (Lopez-Paz & Oquab, arXiv 1610.06545) of `(n, D)` and `(m, D)`; the longer
    set is cut to the length of the shorter.
    """
    n = min(len(samples), len(others))
    pooled = torch.cat([samples[:n], others[:n]]).double()
    distances = torch.cdist(pooled, pooled)
    distances.fill_diagonal_(torch.inf)
    label = torch.arange(2 * n) < n
    return (label[distances.argmin(1)] == label).double().mean().item()


def energy_test(
    samples: torch.Tensor, others: torch.Tensor, generator: torch.Generator, permutations: int = 999
) -> float:
    """Returns the p-value of the permutation test with the energy distance, in [1 / (permutations + 1), 1].

    `samples` are `(n, D)`, `others` `(m, D)`.
    """
    n, m = len(samples), len(others)
    pooled = torch.cat([samples, others]).double()
    distances = torch.cdist(pooled, pooled)
    sign = torch.cat([torch.full((n,), 1 / n), torch.full((m,), -1 / m)]).double()
    permuted = [torch.randperm(n + m, generator=generator) for _ in range(permutations)]
    signs = sign[torch.stack([torch.arange(n + m), *permuted])]  # (permutations + 1, n + m)
    statistics = -((signs @ distances) * signs).sum(1)  # 2 E|X-Y| - E|X-X'| - E|Y-Y'| with its diagonal
    return (statistics >= statistics[0] - 1e-12).double().mean().item()
