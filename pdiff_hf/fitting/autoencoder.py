"""The first stage: fitting an autoencoder to a zoo, and reading what a script wrote of it."""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin

from .. import loops
from .._registration import component_class, component_classes
from ..data.inputs import LabeledData
from ..folders import finish_replacing
from ..settings import RunSettings
from ..zoo.checkpoints import Checkpoints
from ..zoo.tasks import Tasks
from .conditional_zoo import prepare_zoo
from .settings import AutoencoderSettings
from .steps import block_length, check_finite, optimizer_step, share_of_process
from .units import unit_arguments


def fit_autoencoder(
    checkpoints: Checkpoints,
    settings: AutoencoderSettings,
    run: RunSettings | None = None,
    stopwatch: loops.Stopwatch | None = None,
    images: LabeledData | None = None,
    tasks: Tasks | None = None,
) -> ModelMixin:
    """Fits the autoencoder to the train split: in closed form if its class can, by gradient descent otherwise.

    Batches are split among the processes, and every process draws noise of its own.

    Args:
        checkpoints: The zoo.
        settings: Which autoencoder, and how it is trained.
        run: Where the state of training is saved, if anywhere.
        stopwatch: Receives the seconds that a resumed training took before.
        images: What the networks were trained on; codes of units are then those that change their logits most.
        tasks: What makes the images of conditions, if the zoo does not name it; see `prepare_zoo`.

    Raises:
        ValueError: If the zoo cannot be fitted, see `from_zoo` of the class, or the batch cannot be divided among the
            processes, or the state to resume from is of another training.
        NonFiniteParametersError: If the training diverged.
    """
    prepared = prepare_zoo(checkpoints, images, tasks)
    checkpoints, parameters = prepared.checkpoints, prepared.checkpoints.zoo.parameters
    autoencoder_class: Any = component_class("autoencoder", settings.type)
    arguments = {"parameters": parameters, "sizes": checkpoints.processor.sizes}
    if "groups" in inspect.signature(autoencoder_class.from_zoo).parameters:
        arguments |= unit_arguments(checkpoints, prepared.images)
    with loops.seeded(settings.seed):
        autoencoder = autoencoder_class.from_zoo(**arguments, **settings.config)
    if not autoencoder.needs_training:
        return autoencoder

    accelerator = loops.make_accelerator(run, settings)
    optimizer, lr_scheduler = loops.make_optimizer(autoencoder.parameters(), settings)
    model, optimizer = accelerator.prepare(autoencoder.train(), optimizer)
    accelerator.register_for_checkpointing(lr_scheduler, stopwatch or loops.Stopwatch())
    data = {"zoo": loops.fingerprint([parameters]), "mixed_precision": accelerator.mixed_precision} if run else {}
    identity, description = asdict(settings) | data, "training the autoencoder"
    for step in loops.training_steps(accelerator, settings.max_train_steps, run, description, identity):
        # 1. Draw a batch with replacement, the same in every process, and take this process's share.
        generator = loops.step_generator(settings.seed, step, "batches")
        rows = torch.randint(len(parameters), (settings.train_batch_size,), generator=generator)
        batch = share_of_process(parameters[rows], accelerator)  # (share, D)
        # 2. Reconstruct it from noised vectors and noised latents.
        noise = loops.step_generator(settings.seed, step, "noise", accelerator.process_index)
        with accelerator.autocast():
            loss = model(batch, generator=noise)
        # 3. Step down the gradient.
        optimizer_step(accelerator, model, optimizer, lr_scheduler, loss, settings)
        loops.log_loss(accelerator, run, step, loss)
    loops.finish_trackers(accelerator)

    autoencoder = accelerator.unwrap_model(model).cpu().eval()
    check_finite(autoencoder, run)
    autoencoder.fit_latent_statistics(parameters)
    return autoencoder


@torch.no_grad()
def encode_zoo(autoencoder: ModelMixin, parameters: torch.Tensor) -> torch.Tensor:
    """Encodes vectors `(n, D)`, some at a time, as standardized latents `(n, latent_dim)`."""
    size = block_length(parameters)
    latents = torch.empty(len(parameters), autoencoder.config.latent_dim)
    for rows, place in zip(parameters.split(size), latents.split(size), strict=True):
        place.copy_(autoencoder.encode(rows).latents)
    return latents


@torch.no_grad()
def explained_variance(autoencoder: ModelMixin, parameters: torch.Tensor) -> float:
    """Returns the share of the variance of vectors `(n, D)` that is left after encoding and decoding; 1 is all."""
    mean, lost, total = parameters.mean(0), torch.zeros(()), torch.zeros(())
    for rows in parameters.split(block_length(parameters)):
        decoded = autoencoder.decode(autoencoder.encode(rows).latents).sample
        lost += (decoded - rows).square().sum()
        total += (rows - mean).square().sum()
    return 1 - (lost / total).item()


def load_autoencoder(folder: str | os.PathLike) -> tuple[ModelMixin, dict[str, Any]]:
    """Reads the autoencoder, of whichever class, and the `training.json` that `train_autoencoder.py` wrote."""
    finish_replacing(folder)
    config, notes = Path(folder) / "config.json", Path(folder) / "training.json"
    classes: dict[str, Any] = {cls.__name__: cls for cls in component_classes("autoencoder").values()}
    name = json.loads(config.read_text(encoding="utf-8")).get("_class_name") if config.is_file() else None
    if name not in classes or not notes.is_file():
        raise FileNotFoundError(
            f"There is no autoencoder at {str(folder)!r}; training/train_autoencoder.py makes one."
        )
    autoencoder = classes[name].from_pretrained(folder)
    autoencoder.register_to_config(_name_or_path="")  # a shared pipeline does not leak the local path
    return autoencoder, json.loads(notes.read_text(encoding="utf-8"))


def recipe_for(folder: str | os.PathLike) -> tuple[str, str]:
    """Returns the recipe whose denoiser suits the autoencoder in a folder, and the reason in words."""
    config, notes = Path(folder) / "config.json", Path(folder) / "training.json"
    if not config.is_file() or not notes.is_file():
        return "fast", "there is no autoencoder yet"
    found = json.loads(config.read_text(encoding="utf-8"))
    reason = f"the autoencoder is a {found.get('_class_name')}"
    if "token_groups" not in found:
        return "fast", reason
    if json.loads(notes.read_text(encoding="utf-8")).get("is_conditional"):
        return "conditional", f"{reason} of a zoo with conditions"
    return "units", reason
