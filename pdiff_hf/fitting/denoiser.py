"""The second stage: training a denoiser on the standardized latents of a zoo."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, ModelMixin, SchedulerMixin
from diffusers.training_utils import EMAModel
from torch import nn

from .. import loops
from .._registration import component_class
from ..settings import RunSettings
from .settings import NUM_TRAIN_TIMESTEPS, DenoiserSettings
from .steps import check_finite, optimizer_step, share_of_process


def fit_denoiser(
    latents: torch.Tensor,
    settings: DenoiserSettings,
    run: RunSettings | None = None,
    stopwatch: loops.Stopwatch | None = None,
    data: dict[str, str] | None = None,
) -> tuple[ModelMixin, SchedulerMixin]:
    """Trains the denoiser on standardized latents and returns it with the sampler to be shipped.

    Batches are split among the processes; noise and times are drawn for the whole batch from a generator seeded by the
    step, so that one process and several, interrupted and uninterrupted runs see the same numbers.

    Args:
        latents: Latents of the zoo, `(n, latent_dim)` float32 of mean 0 and variance 1.
        settings: Which denoiser, how it is trained, and the sampler.
        run: Where the state of training is saved, if anywhere.
        stopwatch: Receives the seconds that a resumed training took before.
        data: Fingerprints of what the latents were made from, which a resumed training must share.

    Raises:
        ValueError: If the batch cannot be divided among the processes, or the state to resume from is of another
            training.
        NonFiniteParametersError: If the training diverged.
    """
    accelerator = loops.make_accelerator(run, settings)
    denoiser_class: Any = component_class("denoiser", settings.type)
    with loops.seeded(settings.seed):
        denoiser = denoiser_class(latent_dim=latents.shape[1], **settings.config)
    noise_scheduler = DDPMScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        beta_schedule=settings.beta_schedule,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        prediction_type=settings.prediction_type,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    optimizer, lr_scheduler = loops.make_optimizer(denoiser.parameters(), settings)
    model, optimizer = accelerator.prepare(denoiser.train(), optimizer)
    ema = EMAModel(model.parameters(), decay=settings.ema_decay, use_ema_warmup=False)
    accelerator.register_for_checkpointing(lr_scheduler, ema, stopwatch or loops.Stopwatch())
    ema.to(accelerator.device)
    shape = (settings.train_batch_size, latents.shape[1])
    identity = asdict(settings) | (data or {}) | {"mixed_precision": accelerator.mixed_precision}
    for step in loops.training_steps(accelerator, settings.max_train_steps, run, "training the denoiser", identity):
        # 1. Draw latents with replacement, mix in smoothing noise at unit variance, and take this process's share.
        generator = loops.step_generator(settings.seed, step, "batches")
        clean = latents[torch.randint(len(latents), shape[:1], generator=generator)]
        generator = loops.step_generator(settings.seed, step, "noise")
        clean = clean + settings.latent_smoothing * torch.randn(shape, generator=generator)
        clean = share_of_process(clean / (1 + settings.latent_smoothing**2) ** 0.5, accelerator)  # (share, latent_dim)
        # 2. Noise each latent to a time of its own.
        noise = share_of_process(torch.randn(shape, generator=generator), accelerator)
        timesteps = torch.randint(NUM_TRAIN_TIMESTEPS, shape[:1], generator=generator)
        timesteps = share_of_process(timesteps, accelerator)  # (share,)
        noisy = noise_scheduler.add_noise(clean, noise, timesteps)
        # 3. Predict the noise, or the velocity.
        with accelerator.autocast():
            predicted = model(noisy, timesteps).sample
        velocity = noise_scheduler.get_velocity(clean, noise, timesteps)
        target = noise if settings.prediction_type == "epsilon" else velocity
        loss = nn.functional.mse_loss(predicted.float(), target)
        # 4. Step down the gradient and average the weights.
        optimizer_step(accelerator, model, optimizer, lr_scheduler, loss, settings)
        ema.step(model.parameters())
        loops.log_loss(accelerator, run, step, loss)
    if settings.ema_decay:
        ema.copy_to(model.parameters())
    loops.finish_trackers(accelerator)
    denoiser = accelerator.unwrap_model(model).cpu().eval()
    check_finite(denoiser, run)
    return denoiser, getattr(diffusers, settings.scheduler).from_config(noise_scheduler.config)
