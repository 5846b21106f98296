"""The linear parameter autoencoder: whitened principal codes of a zoo, fitted in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook

BLOCK_NUMBERS = 2**20  # of a zoo that are in float64 at a time


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
        """Fits the codes of a zoo by the eigenvectors of its Gram matrix.

        Memory: the zoo and the result, a few blocks, and 4 min(n, D)² numbers in float64.

        Args:
            parameters: The zoo's parameter vectors, `(n, D)`.
            sizes: Lengths of the tensors of a vector; principal directions do not depend on them.
            latent_dim: Number of codes; by default the fewest that explain `explained_variance` of the zoo's variance.
            explained_variance: Share of the variance, in (0, 1].

        Raises:
            ValueError: If the zoo has fewer than two distinct vectors, or `latent_dim` exceeds its rank.
        """
        # 1. Inner products of the centered vectors, or of their coordinates if those are fewer. In float64 their
        # squares still show deviations of a millionth of the largest.
        count, parameter_dim = parameters.shape
        wide, shorter = parameter_dim > count, min(parameters.shape)
        gram = torch.zeros(shorter, shorter, dtype=torch.float64)
        for _, centered in _centered_blocks(parameters):
            gram.addmm_(*((centered, centered.T) if wide else (centered.T, centered)))
        variance, vectors = torch.linalg.eigh(gram)  # ascending
        variance, vectors = variance.flip(0).clamp(min=0), vectors.flip(1)
        # 2. The number of directions.
        rank = int((variance > 1e-12 * variance[0].clamp(min=1e-24)).sum())
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
        # 3. The directions: the eigenvectors, or combinations of the centered vectors.
        autoencoder = cls(parameter_dim=parameter_dim, latent_dim=latent_dim)
        vectors, singular = vectors[:, :latent_dim], variance[:latent_dim].sqrt()
        if wide:
            first = 0
            for mean, centered in _centered_blocks(parameters):
                block = slice(first, first := first + len(mean))
                autoencoder.mean[block] = mean
                autoencoder.components[:, block] = (vectors / singular).T @ centered  # (latent_dim, block)
        else:
            autoencoder.mean.copy_(next(_centered_blocks(parameters))[0])
            autoencoder.components.copy_(vectors.T)
        autoencoder.latent_std.copy_(singular / (count - 1) ** 0.5)
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


def _centered_blocks(parameters: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields means and centered vectors of a zoo `(n, D)` in float64, block by block.

    If D > n, a block is of columns: `(b,)` and `(n, b)`. Otherwise it is of rows: `(D,)`, always one, and `(b, D)`.
    """
    size = max(1, BLOCK_NUMBERS // min(parameters.shape))
    if parameters.shape[1] > len(parameters):
        for columns in parameters.split(size, dim=1):
            mean = columns.double().mean(0)
            yield mean, columns.double() - mean
    else:
        mean = torch.stack([rows.double().sum(0) for rows in parameters.split(size)]).sum(0) / len(parameters)
        for rows in parameters.split(size):
            yield mean, rows.double() - mean
