"""Which task each run of a collection is for, and the examples that it is trained and measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from transformers import PreTrainedModel

from ..data.images import ImageData
from ..data.inputs import TensorData, TensorSplit
from ..targets.conditions import ConditionError
from .checkpoints import SPLITS
from .condition_splits import require_apart
from .fits import task_on
from .run_groups import Examples
from .settings import MultiRunSettings
from .tasks import Tasks, make_tasks


class RunTasks:
    """The same images for all runs, or a task for every `runs_per_task` runs, one after the other.

    Args:
        images: The data set.
        settings: Those of the collection, whose seed decides the conditions.
        tasks: Other tasks than the family that the settings name.
        model: The target.

    Raises:
        ConditionError: If settings, tasks and network do not fit, or other conditions are drawn than were asked for.
        CheckpointsError: If two splits have a condition in common.
        ValueError: If the network does not fit the labels.
    """

    def __init__(
        self, images: ImageData, settings: MultiRunSettings, tasks: Tasks | None, model: PreTrainedModel
    ) -> None:
        self.settings, self.tasks = settings, _chosen(images, settings, tasks)
        self.train: Examples = (images.inputs(images.train), images.train.labels)
        self.validation: Examples = (images.inputs(images.validation), images.validation.labels)
        if self.tasks is None:
            task_on(model, images)
            return
        self.conditions = self._draw(self.tasks)  # (tasks, c)
        names = list(self.tasks.label_names)
        if model.config.num_labels != len(names):
            raise ConditionError(
                f"Networks for these tasks have {len(names)} outputs, but the target has {model.config.num_labels}; "
                "set num_labels in its configuration, or build it with load_target(settings, images)."
            )
        train, validation = (TensorSplit(*self._of_task(0, split)) for split in (self.train, self.validation))
        task_on(model, TensorData(train, validation, validation, names))

    def training_examples(self, runs: Sequence[int]) -> list[Examples]:
        """Returns the train examples of each run; those of one task are the same objects."""
        of_task = {task: self._of_task(task, self.train) for task in dict.fromkeys(map(self._task, runs))}
        return [of_task[self._task(run)] for run in runs]

    def reference_examples(self, count: int) -> list[Examples]:
        """Returns the train examples of runs that others are aligned to, each of another training task if possible."""
        tasks = [i % (self.settings.num_tasks or 1) for i in range(count)]
        return self.training_examples([task * self.settings.runs_per_task for task in tasks])

    def validation_examples(self, runs: Sequence[int]) -> Iterator[tuple[int, Examples]]:
        """Yields how many of consecutive runs are for one task, and its validation examples."""
        for task, members in groupby(runs, self._task):
            yield len(list(members)), self._of_task(task, self.validation)

    def condition(self, run: int) -> list[float]:
        """Returns the condition of a run, c numbers."""
        return self.conditions[self._task(run)].tolist()

    def _task(self, run: int) -> int:
        return 0 if self.tasks is None else run // self.settings.runs_per_task

    def _of_task(self, task: int, examples: Examples) -> Examples:
        return examples if self.tasks is None else self.tasks.examples(*examples, self.conditions[task])

    def _draw(self, tasks: Tasks) -> torch.Tensor:
        """Returns the conditions of the splits, one after the other as their runs are."""
        counts = self.settings.task_counts()
        drawn = {split: values for split, values in tasks.draw(counts, self.settings.seed).items() if len(values)}
        found = {split: len(values) for split, values in drawn.items()}
        if found != {split: count for split, count in counts.items() if count}:
            raise ConditionError(f"{counts} conditions were asked for, but {type(tasks).__name__} has drawn {found}.")
        drawn = {split: tasks.conditions.check(values) for split, values in drawn.items()}
        require_apart(drawn, tasks.conditions)
        return torch.cat([drawn[split] for split in SPLITS if split in drawn])


def _chosen(images: ImageData, settings: MultiRunSettings, tasks: Tasks | None) -> Tasks | None:
    if tasks is not None and settings.tasks is not None:
        raise ConditionError(f"The settings name the tasks {settings.tasks!r}, but others were given; leave one out.")
    if settings.tasks is not None:
        tasks = make_tasks(settings.tasks, images.label_names)
    if (tasks is None) != (settings.num_tasks is None):
        raise ConditionError(
            "--num_tasks asks for tasks; state which with --tasks."
            if tasks is None
            else "How many tasks there are to learn from is not stated; state it with --num_tasks."
        )
    if tasks is not None and settings.trunk_steps:
        raise ConditionError(
            "A trunk would be trained for one task alone: leave out --trunk_steps, or let all runs start from a "
            "trained network with --model_name_or_path and --shared_initialization."
        )
    return tasks
