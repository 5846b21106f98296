"""Baselines: what needs no diffusion. Each takes a zoo, a count and a generator, and returns parameter vectors.

None of them writes to the zoo.
"""

from __future__ import annotations

import torch

from ..modeling_autoencoder import ParameterAutoencoder
from ..modeling_linear_autoencoder import LinearParameterAutoencoder


def average(zoo: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """Returns the average of all checkpoints (the paper's "ensemble"), `(1, D)`, whatever `n` is."""
    return zoo.mean(0, keepdim=True)


def averages(zoo: torch.Tensor, n: int, generator: torch.Generator, k: int = 16) -> torch.Tensor:
    """Returns averages of `k` random distinct checkpoints, `(n, D)` (arXiv 2506.07998)."""
    chosen = torch.stack([torch.randperm(len(zoo), generator=generator)[:k] for _ in range(n)])  # (n, k)
    return torch.stack([zoo[rows].mean(0) for rows in chosen])


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


@torch.no_grad()
def gaussian_codes(
    zoo: torch.Tensor,
    n: int,
    generator: torch.Generator,
    autoencoder: ParameterAutoencoder | LinearParameterAutoencoder,
    scale: float = 1.0,
) -> torch.Tensor:
    """Returns decoded samples of a full Gaussian in a generator's own codes, `(n, D)`.

    The null of every latent generator: what its autoencoder does without its denoiser.
    """
    codes = autoencoder.encode(zoo.to(autoencoder.device)).latents.cpu()
    return autoencoder.decode(gaussian_full(codes, n, generator, scale).to(autoencoder.device)).sample.cpu()
