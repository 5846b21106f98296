"""Fitting a generator to a zoo: autoencoder, latents, denoiser, pipeline."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import Accelerator
from diffusers import DDPMScheduler, SchedulerMixin
from diffusers.training_utils import EMAModel
from torch import nn

from ..hub.cards import describe_hardware, published_name
from ..loops import (
    Stopwatch,
    TrainingState,
    finish_trackers,
    log_loss,
    make_optimizer,
    seeded,
    step_generator,
    training_steps,
)
from ..models.conv_autoencoder import ParameterAutoencoder
from ..models.conv_denoiser import ParameterDenoiser
from ..models.linear_autoencoder import LinearParameterAutoencoder
from ..models.mlp_denoiser import MLPParameterDenoiser
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..settings import AutoencoderSettings, DenoiserSettings, OptimizationSettings, Recipe, load_recipe
from ..targets.building import build_network
from ..targets.processing_parameters import NonFiniteParametersError
from ..zoo.checkpoints import Checkpoints

NUM_TRAIN_TIMESTEPS = 1000

Autoencoder = ParameterAutoencoder | LinearParameterAutoencoder
Denoiser = ParameterDenoiser | MLPParameterDenoiser


def fit(checkpoints: Checkpoints, recipe: str | Recipe = "fast") -> PDiffPipeline:
    """Fits a generator to a zoo.

    Args:
        checkpoints: The zoo, as `load_checkpoints` or `CheckpointRecorder.checkpoints` return it. Only its train split
            is read.
        recipe: `fast`, `paper`, the path of a YAML file, or a `Recipe`.

    Returns:
        A pipeline, ready to draw and to be saved.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    watch = Stopwatch()
    autoencoder = fit_autoencoder(checkpoints, recipe.autoencoder)
    first_stage = {"settings": asdict(recipe.autoencoder), "seconds": watch.seconds}
    watch = Stopwatch()
    denoiser, scheduler = fit_denoiser(encode_zoo(autoencoder, checkpoints), recipe.denoiser)
    pipe = assemble_pipeline(checkpoints, autoencoder, denoiser, scheduler, recipe.denoiser)
    pipe.metrics = describe_fit(checkpoints, first_stage, recipe.denoiser, watch.seconds)
    return pipe


def fit_autoencoder(
    checkpoints: Checkpoints,
    settings: AutoencoderSettings,
    state: TrainingState | None = None,
    stopwatch: Stopwatch | None = None,
) -> Autoencoder:
    """Fits the autoencoder to the train split: in closed form if it is linear, by gradient descent otherwise.

    Args:
        checkpoints: The zoo.
        settings: Which autoencoder, and how it is trained.
        state: Where to save the state of training, if anywhere.
        stopwatch: Is told the seconds that a resumed training took before.

    Raises:
        ValueError: If the zoo cannot be fitted, see `LinearParameterAutoencoder.from_zoo`; or if a convolutional
            autoencoder was asked for without `latent_dim`.
    """
    parameters = checkpoints.zoo.parameters
    if settings.autoencoder_type == "linear":
        return LinearParameterAutoencoder.from_zoo(parameters, settings.latent_dim, settings.explained_variance)
    if settings.latent_dim is None:
        raise ValueError("A convolutional autoencoder needs a latent_dim; the paper takes 128.")

    accelerator = _accelerator(state, settings)
    with seeded(settings.seed):
        autoencoder = ParameterAutoencoder(
            parameter_dim=parameters.shape[1],
            latent_dim=settings.latent_dim,
            input_noise=settings.input_noise,
            latent_noise=settings.latent_noise,
        )
    autoencoder.fit_normalization(parameters, checkpoints.processor.sizes)
    optimizer, lr_scheduler = make_optimizer(autoencoder.parameters(), settings)
    model, optimizer = accelerator.prepare(autoencoder.train(), optimizer)
    accelerator.register_for_checkpointing(lr_scheduler, stopwatch or Stopwatch())
    for step in training_steps(accelerator, settings.max_train_steps, state, "training the autoencoder"):
        rows = _rows_of_step(len(parameters), settings, step_generator(settings.seed, step, "batches"))
        noise = step_generator(settings.seed, step, "noise", accelerator.process_index)
        with accelerator.autocast():
            loss = model(_share(parameters[rows], accelerator), generator=noise)
        _update(accelerator, model, optimizer, lr_scheduler, loss, settings)
        log_loss(accelerator, state, step, loss)
    finish_trackers(accelerator)

    autoencoder = accelerator.unwrap_model(model).cpu().eval()
    _check_finite(autoencoder)
    autoencoder.fit_latent_statistics(parameters)
    return autoencoder


@torch.no_grad()
def encode_zoo(autoencoder: Autoencoder, checkpoints: Checkpoints) -> torch.Tensor:
    """Returns the standardized latents of the train split, `(n, latent_dim)`."""
    return autoencoder.encode(checkpoints.zoo.parameters).latents


def fit_denoiser(
    latents: torch.Tensor,
    settings: DenoiserSettings,
    state: TrainingState | None = None,
    stopwatch: Stopwatch | None = None,
) -> tuple[Denoiser, SchedulerMixin]:
    """Trains the denoiser on standardized latents `(n, latent_dim)` and returns it with the sampler to be shipped.

    Batches are split among the processes; noise and times are drawn for the whole batch from a generator seeded by the
    step, so that one process and several, interrupted and uninterrupted runs see the same numbers.

    Args:
        latents: What `encode_zoo` returns.
        settings: Which denoiser, how it is trained, and the sampler.
        state: Where to save the state of training, if anywhere.
        stopwatch: Is told the seconds that a resumed training took before.

    Raises:
        ValueError: If diffusers has no such scheduler, or the batch cannot be divided among the processes.
        NonFiniteParametersError: If the training diverged.
    """
    scheduler_class = getattr(diffusers, settings.scheduler, None)
    if scheduler_class is None:
        raise ValueError(f"diffusers has no {settings.scheduler!r}; name one like DPMSolverMultistepScheduler.")
    accelerator = _accelerator(state, settings)
    latent_dim = latents.shape[1]
    with seeded(settings.seed):
        if settings.denoiser_type == "mlp":
            denoiser = MLPParameterDenoiser(
                latent_dim=latent_dim, width=settings.width, num_blocks=settings.num_blocks
            )
        else:
            denoiser = ParameterDenoiser(latent_dim=latent_dim)
    noise_scheduler = DDPMScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        beta_schedule=settings.beta_schedule,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        prediction_type=settings.prediction_type,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    optimizer, lr_scheduler = make_optimizer(denoiser.parameters(), settings)
    model, optimizer = accelerator.prepare(denoiser.train(), optimizer)
    ema = EMAModel(model.parameters(), decay=settings.ema_decay, use_ema_warmup=False)
    accelerator.register_for_checkpointing(lr_scheduler, ema, stopwatch or Stopwatch())
    ema.to(accelerator.device)
    for step in training_steps(accelerator, settings.max_train_steps, state, "training the denoiser"):
        generator = step_generator(settings.seed, step, "noise")
        clean = latents[_rows_of_step(len(latents), settings, step_generator(settings.seed, step, "batches"))]
        smoothing = settings.latent_smoothing * torch.randn(clean.shape, generator=generator)
        clean = (clean + smoothing) / (1 + settings.latent_smoothing**2) ** 0.5  # still of unit variance
        clean = _share(clean, accelerator)
        noise = _share(torch.randn(smoothing.shape, generator=generator), accelerator)
        timesteps = _share(torch.randint(NUM_TRAIN_TIMESTEPS, smoothing.shape[:1], generator=generator), accelerator)
        noisy = noise_scheduler.add_noise(clean, noise, timesteps)
        if settings.prediction_type == "epsilon":
            target = noise
        else:
            target = noise_scheduler.get_velocity(clean, noise, timesteps)
        with accelerator.autocast():
            predicted = model(noisy, timesteps).sample
        loss = nn.functional.mse_loss(predicted.float(), target)
        _update(accelerator, model, optimizer, lr_scheduler, loss, settings)
        ema.step(model.parameters())
        log_loss(accelerator, state, step, loss)
    if settings.ema_decay:
        ema.copy_to(model.parameters())
    finish_trackers(accelerator)
    denoiser = accelerator.unwrap_model(model).cpu().eval()
    _check_finite(denoiser)
    return denoiser, scheduler_class.from_config(noise_scheduler.config)


def assemble_pipeline(
    checkpoints: Checkpoints,
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    scheduler: SchedulerMixin,
    settings: DenoiserSettings,
) -> PDiffPipeline:
    """Puts the components together; the target holds the zoo's average in the generated positions."""
    average = build_network(
        checkpoints.target_model, checkpoints.processor, checkpoints.zoo.parameters.mean(0), share_trunk=False
    )
    return PDiffPipeline(
        autoencoder=autoencoder,
        denoiser=denoiser,
        scheduler=scheduler,
        processor=checkpoints.processor,
        target_model=average,
        default_num_inference_steps=settings.num_inference_steps,
        image_processor_config=checkpoints.preprocessing or None,
    )


def load_autoencoder(folder: str | os.PathLike) -> tuple[Autoencoder, dict[str, Any]]:
    """Reads what `train_autoencoder.py` wrote: the autoencoder, of whichever class, and its `training.json`.

    Raises:
        FileNotFoundError: If there is no autoencoder in the folder.
    """
    config, notes = Path(folder) / "config.json", Path(folder) / "training.json"
    if not config.is_file() or not notes.is_file():
        raise FileNotFoundError(
            f"There is no autoencoder at {str(folder)!r}; training/train_autoencoder.py makes one."
        )
    class_name = json.loads(config.read_text(encoding="utf-8"))["_class_name"]
    classes = {cls.__name__: cls for cls in (ParameterAutoencoder, LinearParameterAutoencoder)}
    autoencoder = classes[class_name].from_pretrained(folder)
    autoencoder.register_to_config(_name_or_path="")  # the folder is nobody's business who gets the pipeline
    return autoencoder, json.loads(notes.read_text(encoding="utf-8"))


def describe_fit(
    checkpoints: Checkpoints,
    first_stage: dict[str, Any] | None = None,
    settings: DenoiserSettings | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Returns the beginning of a `metrics.json`: how the generator was made, on which zoo, at what cost.

    Args:
        checkpoints: The zoo.
        first_stage: Settings and seconds of the autoencoder, as in its `training.json`, if known.
        settings: Settings of the denoiser, if known.
        seconds: What the denoiser took.
    """
    collected = checkpoints.collection.get("settings", {})
    costs = dict(checkpoints.collection.get("costs", {}))
    generator = {}
    if first_stage is not None and settings is not None and seconds is not None:
        generator = {"autoencoder": first_stage["settings"], "denoiser": asdict(settings)}
        costs |= {"autoencoder_seconds": first_stage["seconds"], "denoiser_seconds": seconds}
    return {
        "version": 1,
        "generator": generator,
        "data": {
            "dataset_name": published_name(collected["dataset_name"]) if collected else None,
            "checkpoints": checkpoints.collection.get("repo_id"),
            "zoo_count": len(checkpoints.zoo),
            "collection": collected,
        },
        "costs": costs,
        "environment": {
            "hardware": describe_hardware(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }


def _accelerator(state: TrainingState | None, settings: OptimizationSettings) -> Accelerator:
    return Accelerator() if state is None else state.make_accelerator(settings)


def _check_finite(model: nn.Module) -> None:
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise NonFiniteParametersError(
            f"The training diverged: weights of the {type(model).__name__} are NaN or infinite; "
            "lower the learning rate, or clip the gradient with --max_grad_norm."
        )


def _rows_of_step(count: int, settings: OptimizationSettings, generator: torch.Generator) -> torch.Tensor:
    """Returns the rows of a step's whole batch `(train_batch_size,)`, drawn with replacement."""
    return torch.randint(count, (settings.train_batch_size,), generator=generator)


def _share(whole: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Returns this process's equal share of a whole batch, on its device.

    Raises:
        ValueError: If the batch cannot be divided equally.
    """
    if len(whole) % accelerator.num_processes:
        raise ValueError(
            f"train_batch_size={len(whole)} cannot be divided among {accelerator.num_processes} processes; "
            "choose a multiple."
        )
    return whole.chunk(accelerator.num_processes)[accelerator.process_index].to(accelerator.device)


def _update(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR,
    loss: torch.Tensor,
    settings: OptimizationSettings,
) -> None:
    optimizer.zero_grad()
    accelerator.backward(loss)
    if settings.max_grad_norm:
        accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    lr_scheduler.step()
