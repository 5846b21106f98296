"""Collecting a multi-run zoo: many small independent trainings, in groups that processes and jobs share out."""

from __future__ import annotations

import copy
import math
import os
import time
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from itertools import islice, pairwise
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.images import ImageData
from ..hub.cards import describe_hardware
from ..loops import fingerprint, finish_trackers, make_accelerator
from ..settings import RunSettings
from ..targets.processing_parameters import NonFiniteParametersError, ParameterProcessor
from ..targets.subsets import make_processor
from ..targets.symmetries import Symmetries
from .checkpoints import SPLITS, Checkpoints, CheckpointSplit
from .fits import require_shared_statistics
from .merging import read_shard
from .run_groups import Examples, RunGroup, SavedGroups, initial_parameters, run_seed, train_group
from .run_tasks import RunTasks
from .settings import (
    MultiRunSettings,
    augmentation_of,
    collection_identity,
    settings_of,
    shared_names,
    target_optimization,
)
from .tasks import Tasks
from .trajectory import train_network, validation_figures

SYMMETRY_IMAGES = 16
# Units are aligned to the average of a few runs, which leaves less spread than one run does; more runs gain little.
REFERENCE_RUNS, ALIGNMENT_ROUNDS = 16, 4


def collect_runs(
    images: ImageData,
    model: PreTrainedModel,
    settings: MultiRunSettings,
    state: RunSettings | None = None,
    tasks: Tasks | None = None,
) -> Checkpoints:
    """Trains many networks of one architecture and returns their last checkpoints, the same in every process.

    Each run has initial weights and an order of the images of its own, which depend on its seed alone. Runs are
    computed in fixed groups; the processes of Accelerate, and the shards of independent jobs, share out whole groups,
    so that the zoo does not depend on who computed what. Whole runs are held out: the first ones are the zoo, the next
    validation, the last test. All is trained in float32, the trunk in the same way as each run.

    With tasks, every `runs_per_task` runs are for one of them, trained and measured on its own images and labels;
    whole tasks are held out.

    A canonical form is taken modulo the symmetries that `Symmetries` finds: rescaled units balanced, then permuted
    toward the average of some further runs that are no part of the zoo; each process makes the same.

    Args:
        images: Train images fit, validation images fill the columns `validation_score` and `validation_loss`.
        model: The target. It is trained in place for `trunk_steps`; fresh runs are built from its class and config.
        state: Where finished groups are saved, if anywhere.
        tasks: Other tasks than a family of `TASKS`, which the settings name; `num_tasks` states how many.

    Raises:
        ConditionError: If tasks, settings and network do not fit; see `RunTasks`.
        LayoutError: If the subset matches nothing.
        ValueError: If counts make no zoo, no groups or no shard, runs would need statistics of a BatchNorm of their
            own, a network that classifies gets labels that are values, or mixed precision was asked for.
        FileExistsError: If finished groups are saved, but resuming was not asked for.
        IdentityError: If they were saved with other settings, images or weights to start from.
        NonFiniteParametersError: If a run diverges.
        RuntimeError: If several processes were started that Accelerate does not connect.
    """
    model.eval().requires_grad_(False)
    processor = make_processor(model, settings.subset)
    groups, recorded = _groups(settings), _recorded_steps(settings)
    run_tasks = RunTasks(images, settings, tasks, model)
    if not (settings.shared_initialization or settings.trunk_steps):
        require_shared_statistics(model, processor)
    accelerator = make_accelerator(state, target_optimization(settings, settings.target_train_steps))
    _require_connected_float32(accelerator)
    own = settings_of(settings) | {"image_size": images.preprocessing.image_size}
    shared = {name: own.pop(name) for name in shared_names()}
    identity = {} if state is None else collection_identity(settings, images, model)
    about_tasks = {}
    if run_tasks.tasks is not None:
        own["class_names"] = list(images.label_names)
        about_tasks = {"conditions": run_tasks.tasks.conditions.to_dict()}
        identity["conditions"] = fingerprint([run_tasks.conditions])
    saved = None if state is None else SavedGroups(state.beside("runs"), identity)
    accelerator.wait_for_everyone()  # no process saves a group before all have looked whether there are any

    started = time.perf_counter()
    _train_trunk(accelerator, images, model, settings, state, identity)
    trainer = _Trainer(images, run_tasks, model, processor, settings, recorded)
    costs = {"preparation_seconds": time.perf_counter() - started}

    gathered = _train_groups(accelerator, trainer, groups, saved)
    for name in gathered[0].seconds:
        costs[name] = sum(group.seconds[name] for group in gathered)
    return Checkpoints(
        splits=_splits(gathered, settings, recorded, run_tasks),
        processor=processor,
        target_model=model,
        preprocessing=images.preprocessing.to_dict(),
        collection={"settings": shared, "runs": own, "costs": costs, "hardware": describe_hardware()} | about_tasks,
    )


def _require_connected_float32(accelerator: Accelerator) -> None:
    if accelerator.mixed_precision != "no":
        raise ValueError(
            f"Runs are trained in float32, but mixed precision {accelerator.mixed_precision!r} was asked for; "
            "leave out --mixed_precision."
        )
    started_processes = int(os.environ.get("WORLD_SIZE", 1))
    if started_processes != accelerator.num_processes:
        raise RuntimeError(
            f"{started_processes} processes were started, but they do not know of each other and each would collect "
            "everything; on processors set ACCELERATE_USE_CPU=true."
        )


def _train_groups(
    accelerator: Accelerator, trainer: _Trainer, groups: list[list[int]], saved: SavedGroups | None
) -> list[RunGroup]:
    """Trains this process's share of the groups, but for those that are saved, and returns those of all processes."""
    own = groups[accelerator.process_index :: accelerator.num_processes]
    finished = []
    with tqdm(total=sum(map(len, own)), desc="training runs", disable=not accelerator.is_main_process) as bar:
        for members in own:
            group = None if saved is None else saved.load(members)
            if group is None:
                group = trainer.train(members)
                if saved is not None:
                    saved.save(group)
            finished.append(group)
            accelerator.log({"validation_score": group.validation_score.mean().item()}, step=members[0])
            bar.update(len(members))
    finish_trackers(accelerator)
    return sorted(gather_object(finished), key=lambda group: group.runs)


def _groups(settings: MultiRunSettings) -> list[list[int]]:
    """The numbers of the runs of each group that is computed here."""
    positive = ("num_runs", "runs_per_group", "checkpoints_per_run", "checkpoint_interval")
    wrong = {name: count for name in positive if (count := getattr(settings, name)) < 1}
    if wrong or settings.num_validation_runs < 0 or settings.num_test_runs < 0:
        raise ValueError(f"A multi-run zoo needs at least one of each of {positive}, but has {wrong or settings}.")
    numbers = list(range(settings.num_runs + settings.num_validation_runs + settings.num_test_runs))
    groups = [numbers[i : i + settings.runs_per_group] for i in range(0, len(numbers), settings.runs_per_group)]
    if settings.run_shard is None:
        return groups
    shard, count = read_shard(settings.run_shard)
    most = math.ceil(settings.num_runs / settings.runs_per_group)
    if count > most:
        raise ValueError(
            f"--run_shard {settings.run_shard} asks for {count} parts, but the {settings.num_runs} runs to learn from "
            f"make only {most} groups of --runs_per_group {settings.runs_per_group}, and each part needs one; take at "
            f"most {most} parts, or smaller groups."
        )
    return groups[shard - 1 :: count]


def _recorded_steps(settings: MultiRunSettings) -> list[int]:
    last = settings.target_train_steps - 1
    steps = [last - i * settings.checkpoint_interval for i in reversed(range(settings.checkpoints_per_run))]
    if steps[0] < 0:
        raise ValueError(
            f"--checkpoints_per_run {settings.checkpoints_per_run} with --checkpoint_interval "
            f"{settings.checkpoint_interval} need more than the {settings.target_train_steps} steps of "
            "--target_train_steps."
        )
    return steps


def _train_trunk(
    accelerator: Accelerator,
    images: ImageData,
    model: PreTrainedModel,
    settings: MultiRunSettings,
    state: RunSettings | None,
    identity: dict[str, Any],
) -> None:
    """Trains the network from which all runs branch, in the main process, and hands it to the others."""
    if settings.trunk_steps and accelerator.is_main_process:
        optimization = target_optimization(settings, settings.trunk_steps)
        train_network(model.train().requires_grad_(True), images, settings, optimization, state, identity, "trunk")
    model.eval().requires_grad_(False).to(accelerator.device)
    if settings.trunk_steps:
        model.load_state_dict(broadcast(dict(model.state_dict())))


class _Trainer:
    """Trains groups: whatever does not differ between them."""

    def __init__(
        self,
        images: ImageData,
        tasks: RunTasks,
        model: PreTrainedModel,
        processor: ParameterProcessor,
        settings: MultiRunSettings,
        recorded: list[int],
    ) -> None:
        self.tasks, self.model, self.processor, self.seed = tasks, model, processor, settings.seed
        self.train_group = partial(
            train_group,
            model,
            processor,
            optimization=target_optimization(settings, settings.target_train_steps),
            recorded=recorded,
            augmentation=augmentation_of(settings),
        )
        shared = settings.shared_initialization or settings.trunk_steps > 0
        self.start = processor.flatten(model.state_dict()).cpu() if shared else None
        self.symmetries = None
        if settings.canonicalize:
            seeds = [run_seed(self.seed, i, "references") for i in range(REFERENCE_RUNS)]
            others = self._checkpoints(seeds, tasks.reference_examples(REFERENCE_RUNS))[:, -1]
            some = images.preprocessing(images.train.pixels[:SYMMETRY_IMAGES])
            self.symmetries = Symmetries(copy.deepcopy(model).cpu(), processor, others[0], some)
            others = self.symmetries.canonicalize(others)
            _, self.reference = self.symmetries.align_to_mean(others, ALIGNMENT_ROUNDS, restart=True)

    def train(self, members: list[int]) -> RunGroup:
        """Trains the runs of these numbers and measures their checkpoints on the validation images."""
        started = time.perf_counter()
        seeds = [run_seed(self.seed, run) for run in members]
        parameters = self._checkpoints(seeds, self.tasks.training_examples(members))  # (n, k, D)
        diverged = [run for run, own in zip(members, parameters, strict=True) if not torch.isfinite(own).all()]
        if diverged:
            raise NonFiniteParametersError(
                f"{len(diverged)} of the runs {members[0]} to {members[-1]} diverged, the first of them run "
                f"{diverged[0]}: their parameters are NaN or infinite. Lower --target_learning_rate."
            )
        rows = parameters.flatten(0, 1)  # (n * k, D)
        if self.symmetries is not None:
            rows = self.symmetries.align(self.symmetries.canonicalize(rows), self.reference)
        trained = time.perf_counter()
        figures: tuple[list[float], list[float]] = ([], [])
        of_runs = iter(rows.view_as(parameters))
        for count, examples in self.tasks.validation_examples(members):
            own = torch.cat(list(islice(of_runs, count)))  # (count * k, D)
            more = validation_figures(self.model, self.processor, own, *examples)
            for values, added in zip(figures, more, strict=True):
                values += added
        score, loss = (torch.tensor(values).view(len(members), -1) for values in figures)
        seconds = {"runs_seconds": trained - started, "validation_seconds": time.perf_counter() - trained}
        return RunGroup(members, rows.view_as(parameters), score, loss, seconds)

    def _checkpoints(self, seeds: list[int], examples: list[Examples]) -> torch.Tensor:
        """Returns the checkpoints `(n, k, D)` of the runs with these seeds and examples."""
        if self.start is not None:
            return self.train_group(self.start.expand(len(seeds), -1), seeds, examples)
        return self.train_group(initial_parameters(self.model, self.processor, seeds), seeds, examples)


def _splits(
    groups: Sequence[RunGroup], settings: MultiRunSettings, recorded: list[int], tasks: RunTasks
) -> dict[str, CheckpointSplit]:
    """Whole runs into splits: the first ones are the zoo, the next validation, the last test."""
    numbers = [run for group in groups for run in group.runs for _ in recorded]  # ascending, one for each row
    everything = CheckpointSplit(
        torch.cat([group.parameters.flatten(0, 1) for group in groups]),  # (n, k, D) to (n * k, D)
        run=[f"run-{run:06d}" for run in numbers],
        step=recorded * (len(numbers) // len(recorded)),
        seed=[run_seed(settings.seed, run) for run in numbers],
        validation_score=torch.cat([group.validation_score.flatten() for group in groups]).tolist(),
        validation_loss=torch.cat([group.validation_loss.flatten() for group in groups]).tolist(),
        condition=None if tasks.tasks is None else [tasks.condition(run) for run in numbers],
    )
    ends = (settings.num_runs, settings.num_runs + settings.num_validation_runs)
    bounds = [0, *(bisect_left(numbers, end) for end in ends), len(numbers)]
    return {split: everything.rows(slice(*rows)) for split, rows in zip(SPLITS, pairwise(bounds), strict=True)}
