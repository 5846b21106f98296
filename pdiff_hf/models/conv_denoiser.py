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
    each of them. With kernel 7 an output depends on 49 neighboring positions, so latents more than 24 apart are
    sampled independently given the time. This limit of the published method is kept.

    Difference from the published code: outside training the BatchNorms use running statistics, so that a sample does
    not depend on its batch.
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int,  # length of a latent
        channels: Sequence[int] = (64, 128, 256, 512, 256, 128, 64),  # of all convolutions but the last; a palindrome
        kernel_size: int = 7,  # odd width of every convolution
        time_embedding_dim: int = 256,  # length of the sinusoidal time embedding
    ) -> None:
        super().__init__()
        widths = [1, *channels, 1]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(c_in, c_out, kernel_size, padding=kernel_size // 2) for c_in, c_out in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in channels)
        self.time_embedding = nn.Sequential(
            nn.Linear(time_embedding_dim, latent_dim), nn.SiLU(), nn.Linear(latent_dim, latent_dim)
        )

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, return_dict: bool = True
    ) -> UNet1DOutput | tuple[torch.Tensor]:
        """Predicts the noise or the velocity, as the scheduler's `prediction_type` states, of noisy latents.

        `sample` is `(n, latent_dim)`, `timestep` one for all latents or `(n,)`.
        """
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        embedding = get_timestep_embedding(timesteps, self.config.time_embedding_dim).to(sample.dtype)
        time = self.time_embedding(embedding)[:, None]  # (n, 1, latent_dim)

        hidden = sample[:, None]  # (n, 1, latent_dim)
        middle = len(self.norms) // 2
        skips: list[torch.Tensor] = []
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=False)):
            hidden = nn.functional.elu(norm(convolution(hidden + time)))  # (n, channels[i], latent_dim)
            if i < middle:
                skips.append(hidden)
            elif i > middle:
                hidden = hidden + skips.pop()
        predicted = self.convolutions[-1](hidden + time)[:, 0]  # (n, latent_dim)
        return UNet1DOutput(sample=predicted) if return_dict else (predicted,)
