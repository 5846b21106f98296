"""The denoiser of p-diff: a stack of one-dimensional convolutions along the latent."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_1d import UNet1DOutput
from torch import nn


class ParameterDenoiser(ModelMixin, ConfigMixin):
    """The 1-D convolutional denoiser of Neural Network Diffusion (arXiv 2402.13144v3, section 3.2 and appendix).

    The latent `(n, latent_dim)` is treated as a signal of one channel; eight convolutions of stride 1 widen and narrow
    it, with additive skips between layers of equal width, and the time embedding is added along the latent before
    each of them. With kernel 7 an output sees 49 neighboring positions: latents further apart than 24 are drawn
    independently given the time. That limit belongs to the published method and is kept here, as its reference.

    What is mended: outside training the BatchNorms use running statistics, so that a sample does not depend on its
    batch.

    Args:
        latent_dim: Length of a latent.
        channels: Output channels of all convolutions but the last, an odd number that reads the same backwards.
        kernel_size: Odd width of every convolution.
        time_embedding_dim: Length of the sinusoidal time embedding.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int,
        channels: Sequence[int] = (64, 128, 256, 512, 256, 128, 64),
        kernel_size: int = 7,
        time_embedding_dim: int = 256,
    ) -> None:
        super().__init__()
        widths = [1, *channels, 1]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(a, b, kernel_size, padding=kernel_size // 2) for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in channels)
        self.time_embedding = nn.Sequential(
            nn.Linear(time_embedding_dim, latent_dim), nn.SiLU(), nn.Linear(latent_dim, latent_dim)
        )

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, return_dict: bool = True
    ) -> UNet1DOutput | tuple[torch.Tensor]:
        """Predicts what the scheduler's `prediction_type` names.

        Args:
            sample: Noisy standardized latents `(n, latent_dim)`.
            timestep: One time for all, or `(n,)`.
            return_dict: `False` for a plain tuple.
        """
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        embedding = get_timestep_embedding(timesteps, self.config.time_embedding_dim).to(sample.dtype)
        time = self.time_embedding(embedding)[:, None]  # (n, 1, latent_dim)

        hidden = sample[:, None]  # (n, 1, latent_dim)
        narrowing = len(self.norms) // 2
        skips: list[torch.Tensor] = []
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=False)):
            hidden = nn.functional.elu(norm(convolution(hidden + time)))  # (n, channels[i], latent_dim)
            if i < narrowing:
                skips.append(hidden)
            elif i > narrowing:
                hidden = hidden + skips.pop()
        predicted = self.convolutions[-1](hidden + time)[:, 0]  # (n, latent_dim)
        return UNet1DOutput(sample=predicted) if return_dict else (predicted,)
