"""What the collecting scripts are asked for: images, a target network, and a trajectory or many runs of it."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedModel,
)

from ..data.augmentation import augment
from ..data.images import ImageData, load_images
from ..data.named_datasets import DATASETS
from ..data.preprocessing import IMAGE_SIZE, Preprocessing
from ..loops import fingerprint, seeded
from ..settings import LARGEST_SEED, OptimizationSettings, require_within, setting
from ..targets.architectures import ARCHITECTURES, architecture_config
from .checkpoints import SPLITS, Checkpoints
from .fits import require_channels
from .tasks import make_tasks
from .trained import class_names, in_order_of, load_trained, preprocessing_of, require_classes

IMAGES = f"`digits` (embedded), {', '.join(DATASETS)}, a folder of images or parquet files, or a Hub id."


@dataclass
class TargetSettings:
    """Which network, for which images, and which of its parameters are recorded."""

    image_size: int | None = setting(
        None,
        f"Height and width of the input in pixels; by default those of a trained network, else {IMAGE_SIZE}.",
    )
    image_column: str | None = setting(None, "Column of the images; found by its type.")
    label_column: str | None = setting(
        None, "Column of the labels, classes or floating-point values to predict; found by its type."
    )
    validation_fraction: float = setting(0.1, "Share of the train images, if the data set has no validation split.")
    split_seed: int = setting(0, "Random seed for splitting the images into train, validation and test.")
    max_train_images: int | None = setting(None, "Use at most N train images.")
    max_eval_images: int | None = setting(None, "Use at most N validation and N test images.")

    model_name_or_path: str | None = setting(
        None, "A trained network: Hub id or folder; its classes and its preprocessing hold. Otherwise --model_type."
    )
    new_head: bool = setting(False, "Initialize the head of a trained network anew, for the classes of the images.")
    architecture: str | None = setting(
        None, f"A network of the paper to train from scratch: {', '.join(ARCHITECTURES)}; otherwise --model_type."
    )
    model_type: str = setting("resnet", "Architecture to train from scratch: any image classifier of transformers.")
    model_config: str = setting("{}", "Its configuration, as JSON or the path of a JSON file.")
    subset: list[str] = field(
        default_factory=lambda: ["last_norms"],
        metadata={"help": "What is generated: last_norms, head, full, or patterns on state_dict() names."},
    )
    seed: int = setting(0, "Random seed for initial weights, batches and augmentation.")

    def __post_init__(self) -> None:
        require_within(self, 1, "image_size", "max_train_images", "max_eval_images")
        require_within(self, 0, "split_seed")
        require_within(self, 0, "seed", highest=LARGEST_SEED)


@dataclass
class CollectionSettings(TargetSettings):
    """How the network is trained, on which images."""

    dataset_name: str = setting("digits", IMAGES)
    target_train_steps: int = setting(300, "Steps of training the target, or each run; 0 takes the target as it is.")
    target_learning_rate: float = setting(5e-3, "Peak learning rate of that training, warm-up and cosine.")
    adam_weight_decay: float = setting(5e-4, "Weight decay of AdamW.")
    train_batch_size: int = setting(64, "Images of one step.")
    augmentation_shift: int = setting(0, "Shift each train image by up to N pixels.")
    augmentation_flip: bool = setting(False, "Mirror train images at random.")
    augmentation_noise: float = setting(0.0, "Standard deviation of noise on normalized train images.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within(self, 1, "train_batch_size")
        require_within(self, 0, "target_train_steps", "target_learning_rate", "adam_weight_decay")
        require_within(self, 0, "augmentation_shift", "augmentation_noise")


@dataclass
class TrajectorySettings(CollectionSettings):
    """How the trajectory of one network is recorded."""

    learning_rate: float = setting(3e-2, "Constant learning rate of the recorded trajectory.")
    burn_in_steps: int = setting(100, "Steps of the trajectory before anything is recorded.")
    num_checkpoints: int = setting(300, "Checkpoints of the zoo, which generators learn from.")
    num_validation_checkpoints: int = setting(50, "Checkpoints that choose settings.")
    num_test_checkpoints: int = setting(100, "Held-out checkpoints, read by the evaluation alone.")
    num_blocks: int = setting(5, "Blocks into which each split of the trajectory is cut; the blocks alternate.")
    gap: int = setting(20, "Unrecorded steps between two blocks.")
    num_branches: int = setting(1, "Further trajectories from the same start with other batches, all held out.")


@dataclass
class MultiRunSettings(CollectionSettings):
    """How many runs a multi-run zoo has, what they share, and which part of them is computed here."""

    num_runs: int = setting(200, "Independent runs to learn from.")
    num_validation_runs: int = setting(50, "Runs that choose settings.")
    num_test_runs: int = setting(50, "Held-out runs, read by the evaluation alone.")
    checkpoints_per_run: int = setting(1, "Checkpoints of each run, the last of them after its last step.")
    checkpoint_interval: int = setting(10, "Steps between the checkpoints of a run.")
    shared_initialization: bool = setting(False, "All runs start from the target's own weights.")
    trunk_steps: int = setting(0, "All runs branch from one network that was trained for N steps.")
    canonicalize: bool = setting(False, "Save hidden units permuted and rescaled into one canonical form.")
    runs_per_group: int = setting(50, "Runs trained side by side; changes the last bits of the weights.")
    run_shard: str | None = setting(
        None, "`i/n`: compute only the i-th of n parts; training/merge_checkpoints.py merges them."
    )

    tasks: str | None = setting(
        None, "Make a conditional zoo: `subsets` of the classes, class `priors`, or `angles` of rotated images."
    )
    num_tasks: int | None = setting(None, "Tasks to learn from; instead of --num_runs, N x --runs_per_task.")
    num_validation_tasks: int = setting(16, "With tasks: those that choose settings.")
    num_test_tasks: int = setting(24, "With tasks: held-out ones, read by the evaluation alone.")
    runs_per_task: int = setting(16, "With tasks: independent runs for each.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within(self, 1, "num_tasks", "runs_per_task")
        require_within(self, 0, "num_validation_tasks", "num_test_tasks")
        if self.num_tasks is not None:
            counts = self.task_counts()
            self.num_runs, self.num_validation_runs, self.num_test_runs = (
                count * self.runs_per_task for count in counts.values()
            )

    def task_counts(self) -> dict[str, int]:
        """Returns how many tasks each split has."""
        counts = (self.num_tasks or 0, self.num_validation_tasks, self.num_test_tasks)
        return dict(zip(SPLITS, counts, strict=True))


def collection_identity(settings: CollectionSettings, images: ImageData, model: PreTrainedModel) -> dict[str, Any]:
    """Returns what a resumed collection must have in common with the interrupted one; JSON types.

    These are all settings but the shard, and fingerprints of what they name: the images, and the weights of a trained
    network. Initial weights depend on the seed alone, but for last bits that differ between kinds of processors.
    """
    identity = {name: value for name, value in settings_of(settings).items() if name != "run_shard"}
    identity |= {f"{split}_images": getattr(images, split).fingerprint() for split in ("train", "validation")}
    if settings.model_name_or_path is not None:
        identity["weights"] = fingerprint(model.state_dict().values())
    return identity


TASK_SETTINGS = ("tasks", "num_tasks", "num_validation_tasks", "num_test_tasks", "runs_per_task")


def settings_of(settings: CollectionSettings) -> dict[str, Any]:
    """Returns the settings as JSON types; those of tasks are left out where there are none."""
    values = asdict(settings)
    without = () if values.get("num_tasks") is not None else TASK_SETTINGS
    return {name: value for name, value in values.items() if name not in without}


def shared_names() -> list[str]:
    """Returns the names of the settings that both kinds of zoos have."""
    return [known.name for known in fields(CollectionSettings)]


def load_images_of(settings: TargetSettings) -> ImageData:
    """Loads the images that the settings name, split as they ask.

    For a trained network they are preprocessed as its own images were, and numbered as its outputs are if it has all
    their classes.
    """
    chosen, path = image_arguments(settings), settings.model_name_or_path
    if path is None:
        return load_images(**chosen)
    preprocessing, size = preprocessing_of(path, settings.image_size)
    images = load_images(**chosen | {"preprocessing": preprocessing, "image_size": size})
    return images if settings.new_head else in_order_of(images, class_names(AutoConfig.from_pretrained(path)))


def load_images_of_zoo(checkpoints: Checkpoints, dataset_name: str | None = None) -> ImageData:
    """Loads the images on which a zoo was collected, preprocessed and numbered as its networks take them.

    Args:
        dataset_name: Where they are now, if elsewhere; see `collection_of`.

    Raises:
        ImageDataError: If they have classes that the networks do not know.
    """
    stored, runs = checkpoints.preprocessing, checkpoints.collection.get("runs") or {}
    # The outputs of networks for tasks need not be the classes of the images.
    names = runs.get("class_names") or class_names(checkpoints.target_model.config)
    chosen = image_arguments(collection_of(checkpoints, dataset_name))
    images = load_images(**chosen, preprocessing=Preprocessing.from_dict(stored) if stored else None)
    require_classes(images, names, "name the images of this zoo with --dataset_name")
    return in_order_of(images, names)


def image_arguments(settings: TargetSettings) -> dict[str, Any]:
    """Returns those of the settings that name images: arguments of `load_images`."""
    names = inspect.signature(load_images).parameters
    return {name: value for name, value in vars(settings).items() if name in names}


def augmentation_of(settings: CollectionSettings) -> partial | None:
    """Returns the function of a batch and a generator that augments train images, if they are augmented."""
    shift, flip, noise = settings.augmentation_shift, settings.augmentation_flip, settings.augmentation_noise
    return partial(augment, shift=shift, flip=flip, noise=noise) if shift or flip or noise else None


def collection_of(checkpoints: Checkpoints, dataset_name: str | None = None) -> CollectionSettings:
    """Returns the settings with which a zoo was collected, so that the same images can be loaded again.

    `dataset_name` is where they are now, if elsewhere; a zoo that was recorded from another loop needs it.
    """
    collected = checkpoints.collection.get("settings")
    if collected is not None:
        settings = CollectionSettings(**{name: collected[name] for name in shared_names() if name in collected})
        return settings if dataset_name is None else replace(settings, dataset_name=dataset_name)
    if dataset_name is None or not checkpoints.preprocessing:
        raise ValueError(
            "This zoo does not state on which images it was collected; name them with --dataset_name, and record it "
            "with the images' preprocessing."
        )
    image_size = Preprocessing.from_dict(checkpoints.preprocessing).image_size
    return CollectionSettings(dataset_name=dataset_name, image_size=image_size)


def load_target(settings: TargetSettings, images: ImageData | None) -> PreTrainedModel:
    """Loads the target network, or builds it from a configuration with seeded initial weights.

    Without images its outputs and channels are those that it has, or that its configuration states.

    The outputs of a new network are the classes of the images, or one value if their labels are floating-point
    numbers; with tasks they are those of the tasks. A trained one keeps its head and its classes, unless there are
    another number of them; see `load_trained`.
    """
    if images is not None and isinstance(settings, MultiRunSettings) and settings.tasks is not None:
        images = replace(images, label_names=make_tasks(settings.tasks, images.label_names).label_names)
    if settings.model_name_or_path is not None:
        if images is None:
            return AutoModelForImageClassification.from_pretrained(settings.model_name_or_path)
        model = load_trained(settings.model_name_or_path, images, settings.new_head, settings.seed)
        require_channels(model.config, images)
        return model
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
    values = {"model_type": settings.model_type} | values
    size = settings.image_size
    if images is not None:
        values = {"num_channels": images.num_channels} | values | _outputs_for(images)
        size = images.preprocessing.image_size
    config = AutoConfig.for_model(**values)
    if images is not None:
        require_channels(config, images)
    if hasattr(config, "image_size") and size is not None:
        config.image_size = size
    with seeded(settings.seed):
        return AutoModelForImageClassification.from_config(config)


def _outputs_for(images: ImageData) -> dict[str, Any]:
    """Returns the fields of a new network's configuration that the labels of its images decide."""
    names = dict(enumerate(images.label_names))
    outputs: dict[str, Any] = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    if images.train.labels.is_floating_point():
        outputs |= {"num_labels": 1, "problem_type": "regression"}
    return outputs


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
