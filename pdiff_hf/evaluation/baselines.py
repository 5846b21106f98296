"""Baselines without diffusion. Each takes a zoo, a count and a generator, and returns parameter vectors.

None of them writes to the zoo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..models.conv_autoencoder import ParameterAutoencoder
from ..models.linear_autoencoder import LinearParameterAutoencoder

Autoencoder = ParameterAutoencoder | LinearParameterAutoencoder


def average(zoo: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """Returns the average of all checkpoints (the paper's "ensemble"), `(1, D)`, whatever `n` is."""
    return zoo.mean(0, keepdim=True)


def averages(zoo: torch.Tensor, n: int, generator: torch.Generator, k: int = 16) -> torch.Tensor:
    """Returns averages of `k` random distinct checkpoints, `(n, D)` (arXiv 2506.07998)."""
    chosen = torch.stack([torch.randperm(len(zoo), generator=generator)[:k] for _ in range(n)])  # (n, k)
    return torch.stack([zoo[rows].mean(0) for rows in chosen])


def retrieval(zoo: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """Returns zoo members, `(n, D)`, drawn with replacement."""
    return zoo[torch.randint(len(zoo), (n,), generator=generator)]


def shrink(zoo: torch.Tensor, n: int, generator: torch.Generator, scale: float = 0.5) -> torch.Tensor:
    """Returns `mean + scale (zoo_i - mean)` for random members, `(n, D)`."""
    mean = zoo.mean(0)
    return mean + scale * (retrieval(zoo, n, generator) - mean)


def interpolation(zoo: torch.Tensor, n: int, generator: torch.Generator, weight: float = 0.5) -> torch.Tensor:
    """Returns `(1 - weight) zoo_i + weight zoo_j` for random pairs, `(n, D)`."""
    return (1 - weight) * retrieval(zoo, n, generator) + weight * retrieval(zoo, n, generator)


def gaussian_diagonal(zoo: torch.Tensor, n: int, generator: torch.Generator, scale: float = 1.0) -> torch.Tensor:
    """Returns samples of a Gaussian with the zoo's mean and `scale` times its deviation per coordinate, `(n, D)`."""
    noise = torch.randn(n, zoo.shape[1], generator=generator)
    return zoo.mean(0) + scale * zoo.std(0) * noise


def gaussian_full(zoo: torch.Tensor, n: int, generator: torch.Generator, scale: float = 1.0) -> torch.Tensor:
    """Returns samples of a Gaussian with the zoo's mean and `scale**2` times its full covariance, `(n, D)`.

    `mean + scale / sqrt(N - 1) * sum_i e_i (zoo_i - mean)` has that covariance exactly, without a D x D matrix.
    """
    noise = torch.randn(n, len(zoo), generator=generator)
    mean = zoo.mean(0)
    return mean + scale / (len(zoo) - 1) ** 0.5 * (noise @ (zoo - mean))


def smoothed_bootstrap(zoo: torch.Tensor, n: int, generator: torch.Generator, scale: float = 0.3) -> torch.Tensor:
    """Returns random members plus `scale` times a sample of the zoo's own covariance, `(n, D)`."""
    members = retrieval(zoo, n, generator)
    return members + gaussian_full(zoo, n, generator, scale) - zoo.mean(0)


def noise(
    zoo: torch.Tensor, n: int, generator: torch.Generator, sizes: Sequence[int], scale: float = 0.05
) -> torch.Tensor:
    """Returns random members plus white noise of `scale` times each tensor's own deviation, `(n, D)`.

    The noise-added baseline of arXiv 2402.13144v3; `sizes` are the lengths of the tensors.
    """
    members = retrieval(zoo, n, generator)
    spread = torch.cat(
        [t.std(1, correction=0, keepdim=True).expand(-1, t.shape[1]) for t in members.split(list(sizes), 1)], 1
    )
    return members + scale * spread * torch.randn(members.shape, generator=generator)


@torch.no_grad()
def gaussian_codes(
    zoo: torch.Tensor, n: int, generator: torch.Generator, autoencoder: Autoencoder, scale: float = 1.0
) -> torch.Tensor:
    """Returns decoded samples of a full Gaussian in a generator's own codes, `(n, D)`.

    The null of every latent generator: what its autoencoder does without its denoiser.
    """
    return autoencoder.decode(gaussian_full(autoencoder.encode(zoo).latents, n, generator, scale)).sample


@torch.no_grad()
def kde_codes(
    zoo: torch.Tensor, n: int, generator: torch.Generator, autoencoder: Autoencoder, scale: float = 0.5
) -> torch.Tensor:
    """Returns decoded samples of a kernel density in a generator's codes, `(n, D)`; `scale` is the bandwidth.

    Samples keep the codes' variance: `mean + (z_i - mean + scale e) / sqrt(1 + scale^2)`.
    """
    codes = autoencoder.encode(zoo).latents
    return autoencoder.decode(smoothed_bootstrap(codes, n, generator, scale) / (1 + scale**2) ** 0.5).sample


@torch.no_grad()
def reconstructions(zoo: torch.Tensor, n: int, generator: torch.Generator, autoencoder: Autoencoder) -> torch.Tensor:
    """Returns what the autoencoder makes of random zoo members, `(n, D)`."""
    return autoencoder.decode(autoencoder.encode(retrieval(zoo, n, generator)).latents).sample


@dataclass(frozen=True)
class Baseline:
    """A baseline, named by its family, at one setting (None if it has none); `sample(zoo, n, generator)` draws."""

    family: str
    setting: float | None
    sample: Callable[[torch.Tensor, int, torch.Generator], torch.Tensor]

    @property
    def name(self) -> str:
        """Unique name, for example `gaussian_full@0.7`."""
        return self.family if self.setting is None else f"{self.family}@{self.setting:g}"


def family_of(name: str) -> str:
    """Returns the family of a baseline's name."""
    return name.partition("@")[0]


def swept_baselines(zoo: torch.Tensor, sizes: Sequence[int], autoencoder: Autoencoder) -> list[Baseline]:
    """Returns every baseline at every setting, for a zoo `(N, D)`."""
    shrinking = (0.3, 0.5, 0.7, 0.85, 1.0, 1.15)
    sweeps: list[tuple[str, Callable[..., torch.Tensor], str, tuple[float, ...]]] = [
        ("averages", averages, "k", tuple(k for k in (2, 4, 16, 64) if k < len(zoo))),
        ("shrink", shrink, "scale", (0.3, 0.5, 0.7, 0.85)),
        ("interpolation", interpolation, "weight", (0.1, 0.25, 0.5)),
        ("gaussian_diagonal", gaussian_diagonal, "scale", shrinking),
        ("gaussian_full", gaussian_full, "scale", shrinking),
        ("gaussian_codes", partial(gaussian_codes, autoencoder=autoencoder), "scale", shrinking),
        ("smoothed_bootstrap", smoothed_bootstrap, "scale", (0.1, 0.3, 0.5)),
        ("noise", partial(noise, sizes=sizes), "scale", (0.02, 0.05, 0.15)),
        ("kde_codes", partial(kde_codes, autoencoder=autoencoder), "scale", (0.25, 0.5, 1.0)),
    ]
    plain = [
        Baseline("average", None, average),
        Baseline("retrieval", None, retrieval),
        Baseline("reconstructions", None, partial(reconstructions, autoencoder=autoencoder)),
    ]
    return plain + [
        Baseline(family, value, partial(function, **{name: value}))
        for family, function, name, values in sweeps
        for value in values
    ]
