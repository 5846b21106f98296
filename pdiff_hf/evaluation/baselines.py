"""Baselines without diffusion: functions of a zoo `(N, D)`, a count n and a generator; none writes to the zoo."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..models.conv_autoencoder import ParameterAutoencoder
from ..models.linear_autoencoder import LinearParameterAutoencoder

Autoencoder = ParameterAutoencoder | LinearParameterAutoencoder
Baseline = Callable[..., torch.Tensor]


def average(zoo: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """Returns the average of all checkpoints (the paper's "ensemble"), `(1, D)`, whatever `n` is."""
    return zoo.mean(0, keepdim=True)


def averages(zoo: torch.Tensor, n: int, generator: torch.Generator, k: int) -> torch.Tensor:
    """Returns averages of `k` random distinct checkpoints, `(n, D)` (arXiv 2506.07998)."""
    chosen = torch.stack([torch.randperm(len(zoo), generator=generator)[:k] for _ in range(n)])  # (n, k)
    return torch.stack([zoo[rows].mean(0) for rows in chosen])


def retrieval(zoo: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """Returns zoo members, `(n, D)`, drawn with replacement."""
    return zoo[torch.randint(len(zoo), (n,), generator=generator)]


def shrink(zoo: torch.Tensor, n: int, generator: torch.Generator, scale: float) -> torch.Tensor:
    """Returns `mean + scale (zoo_i - mean)` for random members, `(n, D)`."""
    mean = zoo.mean(0)
    return mean + scale * (retrieval(zoo, n, generator) - mean)


def interpolation(zoo: torch.Tensor, n: int, generator: torch.Generator, weight: float) -> torch.Tensor:
    """Returns `(1 - weight) zoo_i + weight zoo_j` for random pairs, `(n, D)`."""
    return (1 - weight) * retrieval(zoo, n, generator) + weight * retrieval(zoo, n, generator)


def gaussian_diagonal(zoo: torch.Tensor, n: int, generator: torch.Generator, scale: float) -> torch.Tensor:
    """Returns samples of a Gaussian with the zoo's mean and `scale` times its deviation per coordinate, `(n, D)`."""
    return zoo.mean(0) + scale * zoo.std(0) * torch.randn(n, zoo.shape[1], generator=generator)


def gaussian_full(zoo: torch.Tensor, n: int, generator: torch.Generator, scale: float = 1.0) -> torch.Tensor:
    """Returns samples of a Gaussian with the zoo's mean and `scale**2` times its full covariance, `(n, D)`.

    `mean + scale / sqrt(N - 1) * sum_i e_i (zoo_i - mean)` has that covariance exactly, without a D x D matrix.
    """
    mean, noise = zoo.mean(0), torch.randn(n, len(zoo), generator=generator)
    return mean + scale / (len(zoo) - 1) ** 0.5 * (noise @ (zoo - mean))


def smoothed_bootstrap(zoo: torch.Tensor, n: int, generator: torch.Generator, scale: float) -> torch.Tensor:
    """Returns random members plus `scale` times a sample of the zoo's own covariance, `(n, D)`."""
    return retrieval(zoo, n, generator) + gaussian_full(zoo, n, generator, scale) - zoo.mean(0)


def noise(zoo: torch.Tensor, n: int, generator: torch.Generator, sizes: list[int], scale: float) -> torch.Tensor:
    """Returns random members plus white noise of `scale` times each tensor's own deviation, `(n, D)`.

    The noise-added baseline of arXiv 2402.13144v3; `sizes` are the lengths of the tensors.
    """
    members = retrieval(zoo, n, generator)
    tensors = members.split(sizes, 1)
    spread = torch.cat([t.std(1, correction=0, keepdim=True).expand_as(t) for t in tensors], 1)
    return members + scale * spread * torch.randn(members.shape, generator=generator)


def kernel_density(zoo: torch.Tensor, n: int, generator: torch.Generator, scale: float) -> torch.Tensor:
    """Returns samples of a kernel density, `(n, D)`, for a zoo of mean 0; `scale` is the bandwidth.

    Samples keep the zoo's variance: `(zoo_i + scale e) / sqrt(1 + scale^2)`.
    """
    return smoothed_bootstrap(zoo, n, generator, scale) / (1 + scale**2) ** 0.5


@torch.no_grad()
def in_codes(
    zoo: torch.Tensor, n: int, generator: torch.Generator, autoencoder: Autoencoder, draw: Baseline, scale: float
) -> torch.Tensor:
    """Returns what `draw` makes of the codes of a zoo, decoded, `(n, D)`.

    A full Gaussian is the null of every latent generator: what its autoencoder does without its denoiser.
    """
    return autoencoder.decode(draw(autoencoder.encode(zoo).latents, n, generator, scale)).sample


@torch.no_grad()
def reconstructions(zoo: torch.Tensor, n: int, generator: torch.Generator, autoencoder: Autoencoder) -> torch.Tensor:
    """Returns what the autoencoder makes of random zoo members, `(n, D)`."""
    return autoencoder.decode(autoencoder.encode(retrieval(zoo, n, generator)).latents).sample


def swept_baselines(zoo: torch.Tensor, sizes: list[int], autoencoder: Autoencoder) -> dict[str, Baseline]:
    """Returns every baseline at every setting, for a zoo `(N, D)`, by name, for example `gaussian_full@0.7`."""
    shrinking = (0.3, 0.5, 0.7, 0.85, 1.0, 1.15)
    sweeps: list[tuple[str, Baseline, str, tuple[float, ...]]] = [
        ("averages", averages, "k", tuple(k for k in (2, 4, 16, 64) if k < len(zoo))),
        ("shrink", shrink, "scale", (0.3, 0.5, 0.7, 0.85)),
        ("interpolation", interpolation, "weight", (0.1, 0.25, 0.5)),
        ("gaussian_diagonal", gaussian_diagonal, "scale", shrinking),
        ("gaussian_full", gaussian_full, "scale", shrinking),
        ("gaussian_codes", partial(in_codes, autoencoder=autoencoder, draw=gaussian_full), "scale", shrinking),
        ("smoothed_bootstrap", smoothed_bootstrap, "scale", (0.1, 0.3, 0.5)),
        ("noise", partial(noise, sizes=sizes), "scale", (0.02, 0.05, 0.15)),
        ("kde_codes", partial(in_codes, autoencoder=autoencoder, draw=kernel_density), "scale", (0.25, 0.5, 1.0)),
    ]
    baselines: dict[str, Baseline] = {
        "average": average,
        "retrieval": retrieval,
        "reconstructions": partial(reconstructions, autoencoder=autoencoder),
    }
    for family, function, name, values in sweeps:
        baselines |= {f"{family}@{value:g}": partial(function, **{name: value}) for value in values}
    return baselines
