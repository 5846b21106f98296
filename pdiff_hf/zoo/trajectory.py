"""Collecting a checkpoint zoo: train a target network, then record the trajectory of a parameter subset."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel

from ..data.images import ImageData, ImageSplit, Preprocessing, augment, load_images
from ..data.inputs import LabeledData
from ..data.named_datasets import DATASETS
from ..hub.cards import describe_hardware
from ..loops import (
    RunSettings,
    Stopwatch,
    log_loss,
    make_accelerator,
    make_optimizer,
    seeded,
    step_generator,
    training_steps,
)
from ..settings import OptimizationSettings, setting
from ..targets.architectures import ARCHITECTURES, architecture_config
from ..targets.inference import network_predictions
from ..targets.processing_parameters import ParameterProcessor
from .checkpoints import CheckpointRecorder, Checkpoints, interleaved_splits

BATCHES, TRAJECTORY = "batches", "trajectory"  # streams of step-seeded randomness


@dataclass
class CollectionSettings:
    """Which network is trained on which images, and what is recorded of it."""

    dataset_name: str = setting(
        "digits", f"`digits` (embedded), {', '.join(DATASETS)}, a folder of images or parquet files, or a Hub id."
    )
    image_size: int = setting(32, "Height and width of the network's input in pixels.")
    image_column: str | None = setting(None, "Column of the images; found by its type.")
    label_column: str | None = setting(None, "Column of the labels; found by its type.")
    validation_fraction: float = setting(0.1, "Share of the train images, if the data set has no validation split.")
    split_seed: int = setting(0, "Decides which images are train, validation and test.")
    max_train_images: int | None = setting(None, "Use at most so many train images.")
    max_eval_images: int | None = setting(None, "Use at most so many validation and so many test images.")

    model_name_or_path: str | None = setting(None, "A trained classifier: Hub id or folder; otherwise --model_type.")
    architecture: str | None = setting(
        None, f"A network of the paper to train from scratch: {', '.join(ARCHITECTURES)}; otherwise --model_type."
    )
    model_type: str = setting("resnet", "Architecture to train from scratch: any image classifier of transformers.")
    model_config: str = setting("{}", "Its configuration, as JSON or the path of a JSON file.")
    subset: list[str] = field(
        default_factory=lambda: ["last_norms"],
        metadata={"help": "What is generated: last_norms, head, full, or patterns on state_dict() names."},
    )

    target_train_steps: int = setting(300, "Steps of training the target, or each of many runs; 0 takes it as it is.")
    target_learning_rate: float = setting(
        5e-3, "Peak learning rate of training the target or a run, warm-up and cosine."
    )
    learning_rate: float = setting(3e-2, "Constant learning rate of the recorded trajectory.")
    adam_weight_decay: float = setting(5e-4, "Weight decay of AdamW in both.")
    train_batch_size: int = setting(64, "Images of one step in both.")
    augmentation_shift: int = setting(0, "Shift each train image by up to so many pixels.")
    augmentation_flip: bool = setting(False, "Mirror train images at random.")
    augmentation_noise: float = setting(0.0, "Standard deviation of noise on normalized train images.")

    burn_in_steps: int = setting(100, "Steps of the trajectory before anything is recorded.")
    num_checkpoints: int = setting(300, "Checkpoints of the zoo, which generators learn from.")
    num_validation_checkpoints: int = setting(50, "Checkpoints that choose settings.")
    num_test_checkpoints: int = setting(100, "Held-out checkpoints, read by the evaluation alone.")
    num_blocks: int = setting(5, "Blocks into which each split of the trajectory is cut; the blocks alternate.")
    gap: int = setting(20, "Unrecorded steps between two blocks.")
    num_branches: int = setting(1, "Further trajectories from the same start with other batches, all held out.")
    seed: int = setting(0, "Decides initial weights, batches and augmentation.")


def load_images_of(settings: CollectionSettings) -> ImageData:
    """Loads the images that the settings name, split as they say."""
    return load_images(
        settings.dataset_name,
        image_size=settings.image_size,
        split_seed=settings.split_seed,
        validation_fraction=settings.validation_fraction,
        image_column=settings.image_column,
        label_column=settings.label_column,
        max_train_images=settings.max_train_images,
        max_eval_images=settings.max_eval_images,
    )


def collection_of(checkpoints: Checkpoints, dataset_name: str | None = None) -> CollectionSettings:
    """Returns the settings with which a zoo was collected, so that the same images can be loaded again.

    Args:
        checkpoints: The zoo.
        dataset_name: Where the images are now, if elsewhere; needed for a zoo that was recorded from another loop.

    Raises:
        ValueError: If the zoo does not say, and `dataset_name` does not either.
    """
    collected = checkpoints.collection.get("settings")
    if collected is not None:
        settings = CollectionSettings(**collected)
        return settings if dataset_name is None else replace(settings, dataset_name=dataset_name)
    if dataset_name is None or not checkpoints.preprocessing:
        raise ValueError(
            "This zoo does not say on which images it was collected; name them with --dataset_name, and record it "
            "with the images' preprocessing."
        )
    return CollectionSettings(
        dataset_name=dataset_name, image_size=Preprocessing.from_dict(checkpoints.preprocessing).image_size
    )


def load_target(settings: CollectionSettings, images: ImageData) -> PreTrainedModel:
    """Loads the target network, or builds it from a configuration with seeded initial weights.

    Raises:
        ValueError: If the configuration is not JSON, or the architecture or model type is unknown.
    """
    labels = {
        "id2label": dict(enumerate(images.label_names)),
        "label2id": {name: i for i, name in enumerate(images.label_names)},
    }
    if settings.model_name_or_path is not None:
        return AutoModelForImageClassification.from_pretrained(
            settings.model_name_or_path, ignore_mismatched_sizes=True, **labels
        )
    given = settings.model_config
    text = Path(given).read_text(encoding="utf-8") if given.endswith(".json") else given
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"--model_config is neither JSON nor the path of a JSON file: {given!r} ({error})."
        ) from error
    if settings.architecture is not None:
        values = architecture_config(settings.architecture) | values
    values = {"model_type": settings.model_type, "num_channels": images.num_channels} | values
    config = AutoConfig.for_model(**values, **labels)
    if hasattr(config, "image_size"):
        config.image_size = settings.image_size
    with seeded(settings.seed):
        return AutoModelForImageClassification.from_config(config)


def target_optimization(settings: CollectionSettings, max_train_steps: int) -> OptimizationSettings:
    """Returns how a target is trained: AdamW, a tenth of the steps for warm-up, then a cosine."""
    return OptimizationSettings(
        max_train_steps=max_train_steps,
        train_batch_size=settings.train_batch_size,
        learning_rate=settings.target_learning_rate,
        lr_scheduler="cosine",
        lr_warmup_steps=max_train_steps // 10,
        adam_weight_decay=settings.adam_weight_decay,
        seed=settings.seed,
    )


def collect(
    images: ImageData, model: PreTrainedModel, settings: CollectionSettings, state: RunSettings | None = None
) -> Checkpoints:
    """Trains the target and records its zoo, in this process alone.

    First the whole network is trained. Then everything but the subset is frozen and the network put in evaluation mode
    (the running statistics of its BatchNorms belong to the trunk and no longer move), and the subset alone is trained
    on at a constant learning rate, one checkpoint a step, as p-diff does (arXiv 2402.13144v3, section 3.1). Splits are
    alternating blocks of that trajectory; further branches from the same start are held out entirely.

    Args:
        images: Train images fit, validation images fill the columns `validation_accuracy` and `validation_loss`.
        model: The target; it is trained in place.
        settings: What to do.
        state: Where to save the state of training, if anywhere.

    Raises:
        LayoutError: If the subset matches nothing, before anything is trained.
        ValueError: If counts are not divisible into blocks, before anything is trained.
    """
    recorder = CheckpointRecorder(model, settings.subset)
    schedule = _schedule(settings)
    target = target_optimization(settings, settings.target_train_steps)
    trajectory = OptimizationSettings(
        max_train_steps=len(schedule),
        train_batch_size=settings.train_batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler="constant",
        adam_weight_decay=settings.adam_weight_decay,
        max_grad_norm=0,
        seed=settings.seed,
    )
    costs: dict[str, float] = {}
    costs["target_seconds"] = 0.0
    if target.max_train_steps:
        costs["target_seconds"] = train_network(
            model.train(), images, settings, target, "training the target", _beside(state, "target")
        )

    costs["trajectory_seconds"] = 0.0
    model.eval()
    start = recorder.processor.flatten(model.state_dict())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in recorder.processor.names:
        model.get_parameter(name).requires_grad_(True)
    for branch in range(settings.num_branches + 1):
        recorder.processor.load_into(model, start)
        run = f"branch-{branch}" if branch else "trajectory"
        trajectory.seed = settings.seed + branch
        costs["trajectory_seconds"] += train_network(
            model, images, settings, trajectory, f"recording {run}", _beside(state, run), (recorder, schedule, run)
        )

    checkpoints = recorder.checkpoints(
        preprocessing=images.preprocessing.to_dict(),
        collection={"settings": asdict(settings), "costs": costs, "hardware": describe_hardware()},
    )
    started = time.perf_counter()
    measure_checkpoints(checkpoints, images)
    costs["validation_seconds"] = time.perf_counter() - started
    return checkpoints


def _beside(state: RunSettings | None, name: str) -> RunSettings | None:
    return None if state is None else state.beside(name, main_process_only=True)


def _schedule(settings: CollectionSettings) -> list[str | None]:
    recorded = interleaved_splits(
        settings.num_checkpoints,
        settings.num_validation_checkpoints,
        settings.num_test_checkpoints,
        settings.num_blocks,
        settings.gap,
    )
    return [None] * settings.burn_in_steps + recorded


def train_network(
    model: PreTrainedModel,
    images: ImageData,
    settings: CollectionSettings,
    optimization: OptimizationSettings,
    description: str,
    state: RunSettings | None,
    recording: tuple[CheckpointRecorder, list[str | None], str] | None = None,
) -> float:
    """Trains what requires grad; with `recording`, keeps the steps that the schedule names, of branches the test ones.

    An accelerator of its own holds what this stage saves. Returns the seconds it took.
    """
    watch = Stopwatch()
    accelerator = make_accelerator(state, optimization)
    model.to(accelerator.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, lr_scheduler = make_optimizer(trained, optimization)
    accelerator.register_for_checkpointing(model, optimizer, lr_scheduler, watch)
    if recording is not None:
        accelerator.register_for_checkpointing(recording[0])
    for step in training_steps(accelerator, optimization.max_train_steps, state, description):
        generator = step_generator(optimization.seed, step, BATCHES if recording is None else TRAJECTORY)
        pixel_values, labels = _batch(images, settings, optimization.train_batch_size, generator)
        with accelerator.autocast():
            logits = model(pixel_values.to(accelerator.device)).logits
        loss = nn.functional.cross_entropy(logits.float(), labels.to(accelerator.device))
        optimizer.zero_grad()
        accelerator.backward(loss)
        if optimization.max_grad_norm:
            nn.utils.clip_grad_norm_(trained, optimization.max_grad_norm)
        optimizer.step()
        lr_scheduler.step()
        log_loss(accelerator, state, step, loss)
        if recording is not None:
            recorder, schedule, run = recording
            split = schedule[step]
            if split == "test" or (split is not None and run == "trajectory"):
                recorder.record(step, split, run=run, seed=optimization.seed)
    return watch.seconds


def _batch(
    images: ImageData, settings: CollectionSettings, batch_size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = torch.randint(len(images.train), (batch_size,), generator=generator)
    batch: ImageSplit = images.train.take(chosen)
    pixel_values = augment(
        images.preprocessing(batch.pixels),
        generator,
        shift=settings.augmentation_shift,
        flip=settings.augmentation_flip,
        noise=settings.augmentation_noise,
    )
    return pixel_values, batch.labels


def measure_checkpoints(checkpoints: Checkpoints, data: LabeledData) -> None:
    """Fills the columns `validation_accuracy` and `validation_loss` of every split, in place.

    Args:
        checkpoints: What was recorded; the target in evaluation mode.
        data: The examples the target was trained on; only the validation ones are read.
    """
    for zoo in checkpoints.splits.values():
        if len(zoo):
            zoo.validation_accuracy, zoo.validation_loss = validation_figures(
                checkpoints.target_model, checkpoints.processor, zoo.parameters, data, progress=True
            )


def validation_figures(
    model: PreTrainedModel,
    processor: ParameterProcessor,
    parameters: torch.Tensor,
    data: LabeledData,
    progress: bool = False,
) -> tuple[list[float], list[float]]:
    """Returns accuracy and mean cross-entropy of each vector of `(n, D)` on the validation examples."""
    labels = data.validation.labels
    inputs = data.inputs(data.validation)
    predicted, loss = network_predictions(model, processor, parameters, inputs, labels, progress=progress)
    return (predicted == labels).float().mean(1).tolist(), loss.tolist()
