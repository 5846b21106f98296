"""The parameter autoencoder of p-diff: one-dimensional convolutions between parameter vectors and latents."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

BLOCK_NUMBERS = 2**21  # of a zoo that are encoded at a time; the first convolutions make 32 times as many


class ParameterAutoencoder(ModelMixin, ConfigMixin):
    """The 1-D convolutional autoencoder of Neural Network Diffusion (arXiv 2402.13144v3, section 3.2 and appendix).

    A vector `(n, D)` is standardized by one mean and one standard deviation per tensor, padded with zeros to a
    multiple of `2 ** len(channels)`, halved in length by each of the strided convolutions, and mapped to
    `(n, latent_dim)`; the decoder mirrors this. During training Gaussian noise is added to the
    input and to the latent (section 3.3).

    Differences from the published code:
    - Outside training the BatchNorms use running statistics. The published code leaves them in training mode, so that
      a decoded network depends on the rest of its batch.
    - Latents are standardized per dimension before diffusion, which assumes unit variance; the published ones are not.
    - A tensor without variance is scaled by 1; the published code divides by zero.
    - The reconstruction target is the clean vector, not the noisy one.
    """

    _keep_in_fp32_modules = ["encoder", "decoder", "to_latent", "from_latent"]
    _keep_in_fp32_modules += ["mean", "std", "latent_mean", "latent_std"]
    needs_training = True  # `from_zoo` fits the normalization alone

    @register_to_config
    def __init__(
        self,
        parameter_dim: int,  # length D of a parameter vector
        latent_dim: int = 128,  # length of a latent
        channels: Sequence[int] = (64, 128, 256, 256, 32),  # output channels of the encoder, each of stride 2
        kernel_size: int = 7,  # odd width of every convolution
        input_noise: float = 1e-3,  # std of the noise on the standardized input in training, >= 0
        latent_noise: float = 0.1,  # std of the noise on the latent in training, >= 0
    ) -> None:
        super().__init__()
        stride = 2 ** len(channels)
        self.padded_dim = -(-parameter_dim // stride) * stride
        self.short_dim = self.padded_dim // stride
        flat_dim = channels[-1] * self.short_dim
        padding = kernel_size // 2

        encoder: list[nn.Module] = []
        for c_in, c_out in itertools.pairwise([1, *channels]):
            convolution = nn.Conv1d(c_in, c_out, kernel_size, stride=2, padding=padding)
            encoder += [convolution, nn.BatchNorm1d(c_out), nn.LeakyReLU()]
        self.encoder = nn.Sequential(*encoder)
        self.to_latent = nn.Sequential(nn.Linear(flat_dim, latent_dim), nn.Linear(latent_dim, latent_dim))

        self.from_latent = nn.Linear(latent_dim, flat_dim)
        decoder: list[nn.Module] = []
        for c_in, c_out in itertools.pairwise([*reversed(channels), channels[0]]):
            upsampling = nn.ConvTranspose1d(c_in, c_out, kernel_size, stride=2, padding=padding, output_padding=1)
            decoder += [upsampling, nn.BatchNorm1d(c_out), nn.ELU()]
        self.decoder = nn.Sequential(*decoder, nn.Conv1d(channels[0], 1, kernel_size, padding=padding))

        self.register_buffer("mean", torch.zeros(parameter_dim))
        self.register_buffer("std", torch.ones(parameter_dim))
        self.register_buffer("latent_mean", torch.zeros(latent_dim))
        self.register_buffer("latent_std", torch.ones(latent_dim))

    @classmethod
    @torch.no_grad()
    def from_zoo(cls, parameters: torch.Tensor, sizes: Sequence[int], **config: Any) -> ParameterAutoencoder:
        """Returns an untrained autoencoder with the normalization of a zoo `(n, D)`.

        As published, a tensor's deviation is the one across its elements, averaged over the checkpoints.

        Args:
            parameters: The zoo's parameter vectors, `(n, D)`.
            sizes: Lengths of the tensors of a vector.
            **config: Arguments of the constructor but for `parameter_dim`.
        """
        autoencoder, lengths = cls(parameter_dim=parameters.shape[1], **config), list(sizes)
        means, stds = autoencoder.mean.split(lengths), autoencoder.std.split(lengths)
        for tensor, mean, std in zip(parameters.split(lengths, dim=1), means, stds, strict=True):
            mean.fill_(tensor.mean())
            spread = tensor.std(dim=1, correction=0).mean()
            std.fill_(spread if spread > 0 else 1.0)
        return autoencoder

    @torch.no_grad()
    def fit_latent_statistics(self, parameters: torch.Tensor) -> None:
        """Standardizes the latents: afterward a zoo `(n, D)` has latents of mean 0 and variance 1 per dimension."""
        size = max(1, BLOCK_NUMBERS // self.padded_dim)
        raw = torch.cat([self._encode(self._standardize(rows)) for rows in parameters.split(size)])  # (n, latent_dim)
        std = raw.std(0)
        self.latent_mean.copy_(raw.mean(0))
        self.latent_std.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    def to(self, *args: Any, **kwargs: Any) -> ParameterAutoencoder:
        """Moves to a device; a dtype is ignored, since generated weights must not be rounded."""
        device, _, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        return self if device is None else super().to(device=device, non_blocking=non_blocking)

    def half(self) -> ParameterAutoencoder:
        """Does nothing, as `to` does with a dtype."""
        return self

    bfloat16 = half

    def _standardize(self, parameters: torch.Tensor) -> torch.Tensor:
        return (parameters.float() - self.mean) / self.std

    def _encode(self, standardized: torch.Tensor) -> torch.Tensor:
        """Encodes standardized vectors `(n, D)` as latents `(n, latent_dim)` that are not standardized."""
        missing = self.padded_dim - standardized.shape[1]
        hidden = nn.functional.pad(standardized, (0, missing))[:, None]  # (n, 1, padded_dim)
        hidden = self.encoder(hidden)  # (n, channels[-1], short_dim)
        return self.to_latent(hidden.flatten(1))  # (n, latent_dim)

    def _decode(self, raw_latents: torch.Tensor) -> torch.Tensor:
        """Decodes latents `(n, latent_dim)` that are not standardized as standardized vectors `(n, D)`."""
        hidden = self.from_latent(raw_latents).unflatten(1, (-1, self.short_dim))  # (n, channels[-1], short_dim)
        return self.decoder(hidden)[:, 0, : self.config.parameter_dim]  # (n, D)

    @apply_forward_hook
    def encode(self, sample: torch.Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[torch.Tensor]:
        """Encodes vectors `(n, D)` as standardized latents `(n, latent_dim)`."""
        latents = (self._encode(self._standardize(sample)) - self.latent_mean) / self.latent_std
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Decodes standardized latents `(n, latent_dim)` as float32 vectors `(n, D)`."""
        raw = latents.float() * self.latent_std + self.latent_mean
        sample = self._decode(raw) * self.std + self.mean
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Returns the training loss of vectors `(n, D)`: the mean squared error of standardized reconstructions.

        With a CPU `generator`, both noises are added.
        """

        def noised(tensor: torch.Tensor, std: float) -> torch.Tensor:
            if generator is None:
                return tensor
            return tensor + std * torch.randn(tensor.shape, generator=generator).to(tensor.device)

        clean = self._standardize(sample)
        latents = self._encode(noised(clean, self.config.input_noise))
        return nn.functional.mse_loss(self._decode(noised(latents, self.config.latent_noise)), clean)
