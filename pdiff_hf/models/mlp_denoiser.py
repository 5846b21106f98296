"""The fast denoiser: a small residual MLP that sees the whole latent."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_1d import UNet1DOutput
from torch import nn

from .condition_embedding import ConditionEmbedding


class ResidualBlock(nn.Module):
    """`h + W2 SiLU(W1 (norm(h) (1 + scale) + shift))`, with scale and shift from the time (as in DiT's adaLN)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """`hidden` and `time` are `(n, width)`."""
        scale, shift = self.modulation(time).chunk(2, dim=-1)
        inner = nn.functional.silu(self.inner(self.norm(hidden) * (1 + scale) + shift))
        return hidden + self.outer(inner)


class MLPParameterDenoiser(ModelMixin, ConfigMixin):
    """A residual MLP on latents `(n, latent_dim)`, with a per-coordinate linear skip that depends on the time.

    The output layers are initialized to zero. In v-prediction (Salimans & Ho 2022, arXiv 2202.00512) a zero output is
    the exact denoiser of a standard Gaussian: training starts from a Gaussian fitted to the whitened latents and
    learns the deviations from it.
    """

    def __init__(
        self,
        latent_dim: int,  # length of a latent
        width: int = 128,  # units of the hidden layers
        num_blocks: int = 2,  # residual blocks
        time_embedding_dim: int = 128,  # length of the sinusoidal time embedding
        condition_dim: int = 0,  # length of a condition; 0 for none
    ) -> None:
        super().__init__()
        config = {"width": width, "num_blocks": num_blocks, "time_embedding_dim": time_embedding_dim}
        if condition_dim:  # by hand: the files of a denoiser without conditions stay as they always were
            config["condition_dim"] = condition_dim
        self.register_to_config(latent_dim=latent_dim, **config)
        self.condition_embedding = ConditionEmbedding(condition_dim, width) if condition_dim else None
        self.time_embedding = nn.Sequential(nn.Linear(time_embedding_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.input = nn.Linear(latent_dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, latent_dim)
        self.skip = nn.Linear(width, latent_dim)
        for layer in (self.output, self.skip):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        condition: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet1DOutput | tuple[torch.Tensor]:
        """Predicts the noise or the velocity, as the scheduler's `prediction_type` states, of noisy latents.

        `sample` is `(n, latent_dim)`, `timestep` one for all latents or `(n,)`. `condition` is `(n, condition_dim)`;
        without one, and for rows of NaN, the prediction is unconditional.
        """
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        embedding = get_timestep_embedding(timesteps, self.config.time_embedding_dim).to(sample.dtype)
        time = self.time_embedding(embedding)  # (n, width)
        if self.condition_embedding is not None:
            time = time + self.condition_embedding(condition, sample)
        time = nn.functional.silu(time)

        hidden = self.input(sample)  # (n, width)
        for block in self.blocks:
            hidden = block(hidden, time)
        predicted = self.output(self.norm(hidden)) + self.skip(time) * sample  # (n, latent_dim)
        return UNet1DOutput(sample=predicted) if return_dict else (predicted,)
