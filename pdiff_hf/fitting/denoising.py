"""What a denoiser is trained on, and its loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from diffusers import DDPMScheduler

from ..loops import fingerprint
from ..targets.conditions import Conditions
from .function_matching import FunctionMatching
from .settings import NUM_TRAIN_TIMESTEPS, DenoiserSettings


@dataclass(frozen=True)
class ZooConditions:
    """The conditions of a zoo: what they mean, and those of each split, `(n, c)` float32, in the order of its rows."""

    meaning: Conditions
    splits: Mapping[str, torch.Tensor]

    def fingerprint(self) -> str:
        """Returns 16 hexadecimal digits that differ if any condition does."""
        return fingerprint(self.splits.values())

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what conditions are standardized with, mean and standard deviation, `(c,)`: bits become -1 and 1."""
        values = self.splits["train"]
        if self.meaning.kind == "bits":
            half = torch.full_like(values[0], 0.5)
            return half, half
        std = values.std(0, correction=0)
        return values.mean(0), torch.where(std > 0, std, 1.0)


@dataclass(frozen=True)
class Batch:
    """Latents to be noised and denoised."""

    clean: torch.Tensor  # (n, latent_dim)
    noise: torch.Tensor  # what is mixed in, (n, latent_dim)
    timesteps: torch.Tensor  # (n,) int64
    condition: torch.Tensor | None = None  # (n, c), NaN where it is dropped
    networks: torch.Tensor | None = None  # the real networks of the first k latents, (k, D), if functions are matched

    def each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Returns a batch of what a function makes of each tensor."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: function(tensor) for name, tensor in tensors.items() if tensor is not None})


def draw_batch(
    latents: torch.Tensor,
    settings: DenoiserSettings,
    rows: torch.Tensor,
    generator: torch.Generator,
    condition: torch.Tensor | None = None,
) -> Batch:
    """Returns the latents at `rows`, smoothed at unit variance, with noise, times, and conditions some of which drop.

    `latents` are `(n, latent_dim)`, `condition` the whole zoo's, `(n, c)`.
    """
    shape = (len(rows), latents.shape[1])
    clean = latents[rows] + settings.latent_smoothing * torch.randn(shape, generator=generator)
    clean = clean / (1 + settings.latent_smoothing**2) ** 0.5
    noise = torch.randn(shape, generator=generator)
    timesteps = torch.randint(NUM_TRAIN_TIMESTEPS, shape[:1], generator=generator)
    if condition is not None:
        dropped = torch.rand(len(rows), 1, generator=generator) < settings.condition_dropout
        condition = condition[rows].masked_fill(dropped, torch.nan)
    return Batch(clean, noise, timesteps, condition)


@dataclass(frozen=True)
class DenoisingLoss:
    """The loss of noisy latents: the squared error of the prediction, and of what the predicted networks compute."""

    noise_scheduler: DDPMScheduler
    settings: DenoiserSettings
    weights: torch.Tensor  # of the numbers of a latent, `(latent_dim,)`
    matching: FunctionMatching | None = None
    is_bf16: bool = False  # whether the denoiser computes in bfloat16; functions are compared in float32

    def __call__(
        self, model: torch.nn.Module, batch: Batch, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the whole loss of a denoiser and its first part; `generator` draws the images of the second."""
        clean, noise, timesteps = batch.clean, batch.noise, batch.timesteps
        noisy = self.noise_scheduler.add_noise(clean, noise, timesteps)
        velocity = self.noise_scheduler.get_velocity(clean, noise, timesteps)
        # 1. Predict the noise, or the velocity.
        condition = () if batch.condition is None else (batch.condition,)
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=self.is_bf16):
            predicted = model(noisy, timesteps, *condition).sample.float()
        target = noise if self.settings.prediction_type == "epsilon" else velocity
        error = (self.weights * (predicted - target).square()).mean()
        if self.matching is None or batch.networks is None:
            return error, error
        # 2. Compare the networks that the velocity predicts with the real ones, the more the less noise there is.
        count = len(batch.networks)
        signal = self.noise_scheduler.alphas_cumprod.to(clean.device)[timesteps[:count], None]  # (k, 1)
        networks = signal.sqrt() * noisy[:count] - (1 - signal).sqrt() * predicted[:count]  # (k, latent_dim)
        gate = signal[:, 0] ** self.settings.function_gate
        mismatch = self.matching.loss(networks, batch.networks, gate, self.settings.function_images, generator)
        return error + self.settings.function_weight * mismatch, error
