"""Families of tasks for conditional zoos: which conditions there are, and the images and labels of each task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from ..data.images import ImageData, ImageDataError, shorten
from ..data.inputs import LabeledData
from ..loops import fingerprint, step_generator
from ..targets.conditions import ConditionError, Conditions
from ..targets.processing_parameters import ParameterProcessor
from ..targets.statistics import Statistics, estimate_statistics, some_examples
from .checkpoints import Checkpoints

ATTEMPTS = 50  # sets of held-out conditions that are tried until enough others are left
SHARE_APART = 0.05  # total variation between held-out and other priors at least
DEGREES_APART = 1.0  # between held-out and other angles at least
LARGEST_ANGLE = 90.0  # in degrees, to both sides
TRIED_ANGLES = torch.arange(-120.0, 121.0, 10.0)  # beyond the largest, so that a peak there has both of its sides
TRIED_IMAGES = 400  # of those that networks are tried on, rotated by each of them
PEAK = 0.02  # of the score, below the best, that belongs to the peak

Counts = Mapping[str, int]  # numbers of conditions of the splits train, validation and test
Predict = Callable[[torch.Tensor], torch.Tensor]  # from inputs to what n networks predict of them, (n, examples)


class Tasks(Protocol):
    """A function from a condition to the images and labels of a task; any object with these members will do.

    Attributes:
        conditions: What the numbers of a condition mean.
        label_names: The outputs that the networks of all tasks have.
    """

    conditions: Conditions
    label_names: list[str]

    def draw(self, counts: Counts, seed: int) -> dict[str, torch.Tensor]:
        """Returns different conditions `(k, c)` float32 for each split, k as `counts` states."""

    def examples(
        self, inputs: torch.Tensor, labels: torch.Tensor, condition: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the inputs and labels of one task, the same for the same arguments.

        Args:
            inputs: Images of one split as networks take them, `(n, channels, height, width)` float.
            labels: Their classes in the data set, `(n,)` int64.
            condition: `(c,)`.
        """


@runtime_checkable
class MeasuredTasks(Tasks, Protocol):
    """Tasks whose condition can be read off what a network does."""

    def behavior(self, predict: Predict, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns what would be the condition of each of n networks, judging by what they do, `(n, c)` float64.

        Args:
            predict: The networks.
            inputs: Images of one split as networks take them, as of `examples`.
            labels: Their classes in the data set, `(examples,)` int64.
        """


class Subsets(Tasks):
    """Is the class of an image in a subset? A condition has a bit for each class; networks have two outputs.

    Subsets have 2 to k - 2 of the k classes. The complement of one is the same task with its outputs exchanged, so
    that both are on one side of the split; test subsets differ from all others, and their complements, by 2 classes.

    Raises:
        ConditionError: If there are fewer than 4 classes.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        if len(class_names) < 4:
            raise ConditionError(f"Subsets need at least 4 classes, but there are {shorten(class_names)} only.")
        self.conditions = Conditions("bits", tuple(class_names), complement=True)
        self.label_names = ["outside", "inside"]

    def draw(self, counts: Counts, seed: int) -> dict[str, torch.Tensor]:
        """Returns subsets `(k, c)` for each split; `ConditionError` if there are too few."""
        num_classes = self.conditions.dim

        def candidates(generator: torch.Generator) -> torch.Tensor:
            # One subset of each complementary pair, that with the first class, which is then complemented or not.
            bits = torch.randint(2, (16 * sum(counts.values()), num_classes - 1), generator=generator).unique(dim=0)
            bits = bits[torch.randperm(len(bits), generator=generator)]
            bits = torch.cat([torch.ones(len(bits), 1, dtype=torch.long), bits], dim=1)
            bits = bits[(bits.sum(1) >= 2) & (bits.sum(1) <= num_classes - 2)]
            return (bits ^ torch.randint(2, (len(bits), 1), generator=generator)).float()

        return _hold_out(candidates, counts, seed, self.conditions.pairwise_distances, 2)

    def examples(
        self, inputs: torch.Tensor, labels: torch.Tensor, condition: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the images as they are, labeled 1 inside the subset and 0 outside."""
        return inputs, condition.to(labels.device).long()[labels]


class Priors(MeasuredTasks):
    """All classes, each as frequent as its number in a condition says, a uniform draw from the simplex.

    What a network has learned of it is the share of each class among its predictions on balanced images.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.conditions = Conditions("simplex", tuple(class_names))
        self.label_names = list(class_names)

    def draw(self, counts: Counts, seed: int) -> dict[str, torch.Tensor]:
        """Returns priors `(k, c)` for each split."""

        def candidates(generator: torch.Generator) -> torch.Tensor:
            # Exponential numbers, divided by their sum, are uniform on the simplex (a Dirichlet distribution of ones).
            uniform = torch.rand(2 * sum(counts.values()), self.conditions.dim, generator=generator)
            shares = -uniform.clamp(min=1e-7).log()
            return shares / shares.sum(1, keepdim=True)

        return _hold_out(candidates, counts, seed, self.conditions.pairwise_distances, SHARE_APART)

    def examples(
        self, inputs: torch.Tensor, labels: torch.Tensor, condition: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns as many images, drawn with replacement so that the classes have the frequencies of the condition.

        Raises:
            ConditionError: If there is no image of any class that occurs.
        """
        frequencies = torch.bincount(labels.cpu(), minlength=self.conditions.dim).clamp(min=1)
        weights = (condition.cpu().double() / frequencies)[labels.cpu()]
        if not weights.sum() > 0:
            raise ConditionError(
                f"There are no images of the classes that occur in the prior ({self.conditions.describe(condition)})."
            )
        generator = torch.Generator().manual_seed(int(fingerprint([condition.float()]), 16))
        rows = torch.multinomial(weights, len(labels), replacement=True, generator=generator).to(labels.device)
        return inputs[rows], labels[rows]

    def behavior(self, predict: Predict, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the share of each class among the predictions on images of which each class has as many."""
        rows = [(labels == label).nonzero()[:, 0] for label in range(self.conditions.dim)]
        least = min(len(found) for found in rows)
        predicted = predict(inputs[torch.cat([found[:least] for found in rows])])
        return torch.stack([(predicted == label).double().mean(1) for label in range(self.conditions.dim)], dim=1)


class Angles(MeasuredTasks):
    """All classes, on images that are rotated counterclockwise by the angle of a condition, from -90 to 90 degrees."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.conditions = Conditions("numbers", ("angle",))
        self.label_names = list(class_names)

    def draw(self, counts: Counts, seed: int) -> dict[str, torch.Tensor]:
        """Returns angles `(k, 1)` in degrees for each split."""

        def candidates(generator: torch.Generator) -> torch.Tensor:
            return LARGEST_ANGLE * (2 * torch.rand(4 * sum(counts.values()), 1, generator=generator) - 1)

        return _hold_out(candidates, counts, seed, torch.cdist, DEGREES_APART)

    def examples(
        self, inputs: torch.Tensor, labels: torch.Tensor, condition: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns rotated images; what comes in at the corners has the smallest value of its image and channel."""
        angle = math.radians(float(condition))
        rotation = [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]
        matrices = torch.tensor([rotation], device=inputs.device).expand(len(inputs), -1, -1)
        background = inputs.amin((2, 3), keepdim=True)  # (n, channels, 1, 1)
        grid = functional.affine_grid(matrices, list(inputs.shape), align_corners=False)
        rotated = functional.grid_sample(inputs - background, grid.to(inputs.dtype), align_corners=False)
        return rotated + background, labels

    def behavior(self, predict: Predict, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the angle in degrees, `(n, 1)`, around which a network is most accurate: the middle of the peak."""
        inputs, labels = inputs[:TRIED_IMAGES], labels[:TRIED_IMAGES]
        scores = []
        for angle in TRIED_ANGLES:
            rotated, own = self.examples(inputs, labels, angle[None])
            scores.append((predict(rotated) == own.to(labels.device)).double().mean(1))
        score = torch.stack(scores, dim=1)  # (n, angles)
        peak = (score >= score.amax(1, keepdim=True) - PEAK).double()
        return (peak @ TRIED_ANGLES.double() / peak.sum(1))[:, None]


TASKS: dict[str, Callable[[Sequence[str]], Tasks]] = {"subsets": Subsets, "priors": Priors, "angles": Angles}


def make_tasks(name: str, class_names: Sequence[str]) -> Tasks:
    """Returns a family of tasks over the classes of a data set; `ConditionError` if there is none of this name."""
    if name not in TASKS:
        raise ConditionError(f"There are the tasks {', '.join(TASKS)}, but {name!r} was given.")
    return TASKS[name](class_names)


def tasks_of(checkpoints: Checkpoints, images: ImageData) -> Tasks | None:
    """Returns the family of tasks that a zoo was collected for, None if it is not one of `TASKS`.

    Raises:
        ImageDataError: If the images have other classes than the conditions of the zoo, or in another order.
    """
    name = (checkpoints.collection.get("runs") or {}).get("tasks")
    if name is None:
        return None
    tasks = make_tasks(name, images.label_names)
    if checkpoints.conditions is not None and tasks.conditions != checkpoints.conditions:
        raise ImageDataError(
            f"The conditions of the zoo are for {shorten(checkpoints.conditions.names)}, but the images have the "
            f"classes {shorten(images.label_names)}; load the images that the zoo was collected on."
        )
    return tasks


def _hold_out(
    candidates: Callable[[torch.Generator], torch.Tensor],
    counts: Counts,
    seed: int,
    distances: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    apart: float,
) -> dict[str, torch.Tensor]:
    """Splits conditions so that those of the test split are at a distance from all others.

    Args:
        candidates: A function from a generator to different conditions `(m, c)` in random order.
        counts: Numbers of conditions of the splits.
        seed: Of the generator.
        distances: A function from conditions `(n, c)` and `(m, c)` to their distances `(n, m)`.
        apart: The least distance of a test condition to one of another split.

    Raises:
        ConditionError: If there are not enough of them.
    """
    generator, most = step_generator(seed, 0, "conditions"), 0
    for _ in range(ATTEMPTS):
        drawn = candidates(generator)
        test, others = drawn[: counts["test"]], drawn[counts["test"] :]
        if len(test):
            others = others[(distances(others, test) >= apart).all(1)]
        most = max(most, len(others))
        if len(test) == counts["test"] and len(others) >= counts["train"] + counts["validation"]:
            train, validation = others[: counts["train"] + counts["validation"]].split(
                [counts["train"], counts["validation"]]
            )
            return {"train": train, "validation": validation, "test": test}
    raise ConditionError(
        f"{counts['train']} tasks to train on and {counts['validation']} for validation were asked for, but beside "
        f"{counts['test']} held-out ones there are only {most} that are different enough; ask for fewer."
    )


def statistics_for_task(
    model: PreTrainedModel,
    processor: ParameterProcessor,
    parameters: torch.Tensor,
    images: LabeledData,
    tasks: Tasks,
    condition: torch.Tensor,
) -> Statistics:
    """Returns the BatchNorm statistics of networks `(n, D)` on a task's training images, if they have their own."""
    if not processor.statistics:
        return {}
    own, _ = tasks.examples(cast(torch.Tensor, images.inputs(images.train)), images.train.labels, condition)
    return estimate_statistics(model, processor, parameters, some_examples(own))
