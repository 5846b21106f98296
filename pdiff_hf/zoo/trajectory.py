"""Collecting a checkpoint zoo: train a target network, then record the trajectory of a parameter subset."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..data.images import ImageData
from ..data.inputs import Inputs, LabeledData
from ..hub.cards import describe_hardware
from ..loops import Stopwatch, log_loss, make_accelerator, make_optimizer, step_generator, training_steps
from ..settings import OptimizationSettings, RunSettings
from ..targets.inference import network_predictions
from ..targets.processing_parameters import ParameterProcessor
from ..targets.task import logits_of, task_of
from .checkpoints import Checkpoints
from .fits import task_on
from .recorder import CheckpointRecorder, interleaved_splits
from .settings import (
    CollectionSettings,
    TrajectorySettings,
    augmentation_of,
    collection_identity,
    target_optimization,
)


def collect(
    images: ImageData, model: PreTrainedModel, settings: TrajectorySettings, state: RunSettings | None = None
) -> Checkpoints:
    """Trains the target and records its zoo, in this process alone.

    First the whole network is trained. Then everything but the subset is frozen and the network put in evaluation mode
    (the running statistics of its BatchNorms belong to the trunk and no longer move), and the subset alone is trained
    on at a constant learning rate, one checkpoint a step, as p-diff does (arXiv 2402.13144v3, section 3.1). Splits are
    alternating blocks of that trajectory; further branches from the same start are held out entirely.

    Args:
        images: Train images fit, validation images fill the columns `validation_score` and `validation_loss`.
        model: The target; it is trained in place.
        state: Where to save the state of training, if anywhere.

    Raises, before anything is trained:
        LayoutError: If the subset matches nothing.
        ValueError: If counts are not divisible into blocks, or a network that classifies gets labels that are values.
        IdentityError: If the state is of a collection with other settings, images or weights to start from.
    """
    recorder = CheckpointRecorder(model, settings.subset)
    schedule = [None] * settings.burn_in_steps + interleaved_splits(
        settings.num_checkpoints,
        settings.num_validation_checkpoints,
        settings.num_test_checkpoints,
        settings.num_blocks,
        settings.gap,
    )
    identity = {} if state is None else collection_identity(settings, images, model)
    costs = {"target_seconds": 0.0, "trajectory_seconds": 0.0}
    if settings.target_train_steps:
        optimization = target_optimization(settings, settings.target_train_steps)
        model.train()
        costs["target_seconds"] = train_network(model, images, settings, optimization, state, identity, "target")

    model.eval()
    start = recorder.processor.flatten(model.state_dict())
    model.requires_grad_(False)
    for name in recorder.processor.names:
        model.get_parameter(name).requires_grad_(True)
    for branch in range(settings.num_branches + 1):
        recorder.processor.load_into(model, start)
        run = f"branch-{branch}" if branch else "trajectory"
        recorded = [split if split == "test" or not branch else None for split in schedule]
        optimization = replace(
            target_optimization(settings, len(schedule)),
            learning_rate=settings.learning_rate,
            lr_scheduler="constant",
            max_grad_norm=0,
            seed=settings.seed + branch,
        )
        seconds = train_network(model, images, settings, optimization, state, identity, run, recorder, recorded)
        costs["trajectory_seconds"] += seconds

    checkpoints = recorder.checkpoints(
        preprocessing=images.preprocessing.to_dict(),
        collection={
            "settings": asdict(settings) | {"image_size": images.preprocessing.image_size},
            "costs": costs,
            "hardware": describe_hardware(),
        },
    )
    started = time.perf_counter()
    measure_checkpoints(checkpoints, images)
    costs["validation_seconds"] = time.perf_counter() - started
    return checkpoints


def train_network(
    model: PreTrainedModel,
    images: ImageData,
    settings: CollectionSettings,
    optimization: OptimizationSettings,
    state: RunSettings | None,
    identity: dict[str, Any],
    stage: str,
    recorder: CheckpointRecorder | None = None,
    schedule: Sequence[str | None] = (),
) -> float:
    """Trains what requires grad in the main process and returns the seconds it took.

    A recorder keeps each step that the schedule assigns to a split, as a step of the run `stage`. States are saved
    with the `identity` of the collection, see `training_steps`.
    """
    task, augmentation = task_on(model, images), augmentation_of(settings)
    watch = Stopwatch()
    state = None if state is None else state.beside(stage, main_process_only=True)
    accelerator = make_accelerator(state, optimization)  # one for each stage, which holds what the stage saves
    model.to(accelerator.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, lr_scheduler = make_optimizer(trained, optimization)
    accelerator.register_for_checkpointing(model, optimizer, lr_scheduler, watch)
    if recorder is not None:
        accelerator.register_for_checkpointing(recorder)
    stream, doing = ("batches", "training the") if recorder is None else ("trajectory", "recording")
    identity = identity | {"mixed_precision": accelerator.mixed_precision}
    for step in training_steps(accelerator, optimization.max_train_steps, state, f"{doing} {stage}", identity):
        generator = step_generator(optimization.seed, step, stream)
        chosen = torch.randint(len(images.train), (optimization.train_batch_size,), generator=generator)
        batch = images.train.take(chosen)
        pixel_values = images.preprocessing(batch.pixels)
        if augmentation is not None:
            pixel_values = augmentation(pixel_values, generator)
        with accelerator.autocast():
            logits = logits_of(model, model(pixel_values.to(accelerator.device)))
        loss = task.loss(logits.float(), batch.labels.to(accelerator.device))
        optimizer.zero_grad()
        accelerator.backward(loss)
        if optimization.max_grad_norm:
            nn.utils.clip_grad_norm_(trained, optimization.max_grad_norm)
        optimizer.step()
        lr_scheduler.step()
        log_loss(accelerator, state, step, loss)
        if recorder is not None and (split := schedule[step]) is not None:
            recorder.record(step, split, run=stage, seed=optimization.seed)
    return watch.seconds


def measure_checkpoints(checkpoints: Checkpoints, data: LabeledData) -> None:
    """Fills the columns `validation_score` and `validation_loss` of every split from the validation examples.

    The target is in evaluation mode.
    """
    inputs, labels = data.inputs(data.validation), data.validation.labels
    for zoo in checkpoints.splits.values():
        if len(zoo):
            zoo.validation_score, zoo.validation_loss = validation_figures(
                checkpoints.target_model, checkpoints.processor, zoo.parameters, inputs, labels, progress=True
            )


def validation_figures(
    model: PreTrainedModel,
    processor: ParameterProcessor,
    parameters: torch.Tensor,
    inputs: Inputs,
    labels: torch.Tensor,
    progress: bool = False,
) -> tuple[list[float], list[float]]:
    """Returns the task's score and mean loss of each vector of `(n, D)` on validation examples."""
    predicted, loss = network_predictions(model, processor, parameters, inputs, labels, progress=progress)
    return task_of(model.config).score(predicted, labels).float().tolist(), loss.tolist()
