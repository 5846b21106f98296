"""What a fit makes of a conditional zoo: its conditions, relabeled networks, and images of its tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from ..data.images import ImageData
from ..data.inputs import LabeledData, TensorSplit, take_inputs
from ..targets.relabeling import complements, exchanged_outputs
from ..zoo.checkpoints import Checkpoints, CheckpointSplit
from ..zoo.condition_splits import conditions_of_splits, require_held_out
from ..zoo.tasks import Tasks, tasks_of
from .denoising import ZooConditions
from .units import example_inputs

POOLED_TASKS = 64  # of training, whose images are pooled
POOLED_IMAGES = 20_000  # of all of them together, at most


@dataclass(frozen=True)
class PreparedZoo:
    """What both stages of a fit learn from; a zoo without conditions, and its images, are taken as they are."""

    checkpoints: Checkpoints  # with the relabeled networks in the train split
    images: LabeledData | None  # those of the tasks
    conditions: ZooConditions | None = None
    tasks: Tasks | None = None


def prepare_zoo(checkpoints: Checkpoints, images: LabeledData | None, tasks: Tasks | None) -> PreparedZoo:
    """Returns what both stages of a fit learn from.

    The train split of a zoo whose conditions have complements is doubled: the network for the complement of a
    condition is the same one with its outputs exchanged.

    Args:
        checkpoints: The zoo.
        images: Those that its networks were trained on, or that its tasks make images of.
        tasks: What makes images of them, if the zoo does not name one of `TASKS`.

    Raises:
        CheckpointsError: If the conditions are damaged, or two splits share one.
        ConditionError: If outputs should be exchanged, but cannot be.
        ImageDataError: If the images do not belong to the conditions.
    """
    meaning = checkpoints.conditions
    require_held_out(checkpoints.splits, meaning)
    if meaning is None:
        return PreparedZoo(checkpoints, images)
    conditions = conditions_of_splits(checkpoints.splits, meaning)
    if images is not None:
        tasks = tasks or tasks_of(checkpoints, cast(ImageData, images))
        images = images if tasks is None else pool_images(images, tasks, conditions["train"].unique(dim=0))
    zoo = checkpoints.zoo
    if meaning.complement:
        inputs = example_inputs(checkpoints, images)
        order = exchanged_outputs(checkpoints.target_model, checkpoints.processor, zoo.parameters[0], inputs)
        exchanged, others = complements(zoo.parameters, conditions["train"], meaning, order)
        conditions["train"] = torch.cat([conditions["train"], others])
        zoo = CheckpointSplit.concatenate(
            [zoo, CheckpointSplit(exchanged, **zoo.columns | {"condition": others.tolist()})]
        )
        checkpoints = replace(checkpoints, splits={**checkpoints.splits, "train": zoo})
    return PreparedZoo(checkpoints, images, ZooConditions(meaning, conditions), tasks)


@dataclass(frozen=True)
class PooledImages:
    """`LabeledData` whose train split has images of many tasks; the other splits are those of `images`."""

    images: LabeledData
    train: TensorSplit

    @property
    def validation(self) -> Any:
        return self.images.validation

    @property
    def test(self) -> Any:
        return self.images.test

    @property
    def label_names(self) -> list[str]:
        return self.images.label_names

    def inputs(self, split: Any) -> Any:
        """Returns what the network is fed with for the examples of a split."""
        return self.train.features if split is self.train else self.images.inputs(split)


def pool_images(images: LabeledData, tasks: Tasks, conditions: torch.Tensor) -> LabeledData:
    """Returns images of the tasks of conditions `(m, c)` as the train split, or `images` if tasks share all of them.

    Each of at most `POOLED_TASKS` tasks makes as many of images drawn with a fixed seed.
    """
    inputs, labels = cast(torch.Tensor, images.inputs(images.train)), images.train.labels
    if tasks.examples(inputs, labels, conditions[0])[0] is inputs:
        return images
    chosen = conditions[torch.linspace(0, len(conditions) - 1, min(len(conditions), POOLED_TASKS)).long()]
    count, generator = min(len(labels), POOLED_IMAGES // len(chosen)), torch.Generator().manual_seed(0)
    made = []
    for condition in chosen:
        rows = torch.randperm(len(labels), generator=generator)[:count]
        made.append(tasks.examples(cast(torch.Tensor, take_inputs(inputs, rows)), labels[rows], condition))
    pooled, targets = (torch.cat(parts) for parts in zip(*made, strict=True))
    return PooledImages(images, TensorSplit(pooled, targets))
