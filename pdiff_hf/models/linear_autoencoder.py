"""The linear parameter autoencoder: whitened principal codes of a zoo, fitted in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook


class LinearParameterAutoencoder(ModelMixin, ConfigMixin):
    """Maps parameter vectors `(n, parameter_dim)` to whitened principal codes `(n, latent_dim)` and back.

    With the zoo's mean m, its first principal directions V (orthonormal rows) and the standard deviations s of the
    codes along them, `encode(x) = V (x - m) / s` and `decode(z) = m + V^T (s z)`. Over the zoo the latents have mean 0
    and unit variance, and `decode(0)` is the average network. Statistics stay float32 under any dtype conversion.
    """

    _keep_in_fp32_modules = ["mean", "components", "latent_std"]
    needs_training = False  # `from_zoo` fits all of it

    @register_to_config
    def __init__(
        self,
        parameter_dim: int,  # length D of a parameter vector
        latent_dim: int,  # number k of principal directions, in 1 .. size of the zoo - 1
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(parameter_dim))
        self.register_buffer("components", torch.zeros(latent_dim, parameter_dim))
        self.register_buffer("latent_std", torch.ones(latent_dim))

    @classmethod
    def from_zoo(
        cls,
        parameters: torch.Tensor,
        sizes: Sequence[int] | None = None,
        latent_dim: int | None = None,
        explained_variance: float = 0.95,
    ) -> LinearParameterAutoencoder:
        """Fits the codes of a zoo by a singular value decomposition.

        Args:
            parameters: The zoo's parameter vectors, `(n, D)`.
            sizes: Lengths of the tensors of a vector; principal directions do not depend on them.
            latent_dim: Number of codes; by default the fewest that explain `explained_variance` of the zoo's variance.
            explained_variance: Share of the variance, in (0, 1].

        Raises:
            ValueError: If the zoo has fewer than two distinct vectors, or `latent_dim` exceeds its rank.
        """
        mean = parameters.double().mean(0)
        _, singular, directions = torch.linalg.svd(parameters.double() - mean, full_matrices=False)
        variance = singular**2
        rank = int((singular > 1e-6 * singular[0].clamp(min=1e-12)).sum())
        count = len(parameters)
        if rank == 0:
            raise ValueError(f"All {count} parameter vectors are equal; a generator needs checkpoints that differ.")
        if latent_dim is None:
            share = variance.cumsum(0) / variance.sum()
            latent_dim = min(rank, int((share < explained_variance).sum()) + 1)
        if latent_dim > rank:
            raise ValueError(
                f"latent_dim={latent_dim} is more than the {rank} directions in which {count} checkpoints differ; "
                "ask for fewer codes or collect more checkpoints."
            )
        autoencoder = cls(parameter_dim=parameters.shape[1], latent_dim=latent_dim)
        autoencoder.mean.copy_(mean)
        autoencoder.components.copy_(directions[:latent_dim])
        autoencoder.latent_std.copy_(singular[:latent_dim] / (count - 1) ** 0.5)
        return autoencoder.eval()

    def to(self, *args: Any, **kwargs: Any) -> LinearParameterAutoencoder:
        """Moves to a device; a dtype is ignored, since generated weights must not be rounded."""
        device, _, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        return self if device is None else super().to(device=device, non_blocking=non_blocking)

    def half(self) -> LinearParameterAutoencoder:
        """Does nothing, as `to` does with a dtype."""
        return self

    bfloat16 = half

    @apply_forward_hook
    def encode(self, sample: torch.Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[torch.Tensor]:
        """Encodes vectors `(n, D)` as standardized latents `(n, latent_dim)`."""
        latents = (sample.float() - self.mean) @ self.components.T / self.latent_std
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Decodes standardized latents `(n, latent_dim)` as float32 vectors `(n, D)`."""
        sample = self.mean + (latents.float() * self.latent_std) @ self.components
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Reconstructs vectors `(n, D)`."""
        return self.decode(self.encode(sample).latents, return_dict=return_dict)
