"""Collecting a multi-run zoo: many small independent trainings, in groups that processes and jobs share out."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.images import ImageData, augment
from ..hub.cards import describe_hardware
from ..loops import TrainingState, finish_trackers
from ..settings import OptimizationSettings, setting
from ..targets.processing_parameters import NonFiniteParametersError, ParameterProcessor
from ..targets.subsets import make_processor
from ..targets.symmetries import Symmetries
from .checkpoints import SPLITS, Checkpoints, CheckpointSplit
from .merging import read_shard
from .run_groups import RunGroup, SavedGroups, initial_parameters, run_seed, train_group
from .trajectory import CollectionSettings, target_optimization, train_network, validation_figures

RUNS, REFERENCE = 2, 3  # streams from which seeds are drawn; 0 and 1 belong to `collecting`
SYMMETRY_IMAGES = 16
# Units are aligned to the average of a few runs, which leaves less spread than one run does; more runs gain little.
REFERENCE_RUNS, ALIGNMENT_ROUNDS = 16, 4


@dataclass
class MultiRunSettings:
    """How many runs a multi-run zoo has, what they share, and which part of them is computed here."""

    num_runs: int = setting(0, "Independent runs to learn from; 0 records one trajectory instead.")
    num_validation_runs: int = setting(50, "Runs that choose settings.")
    num_test_runs: int = setting(50, "Held-out runs, read by the evaluation alone.")
    checkpoints_per_run: int = setting(1, "Checkpoints of each run, the last of them after its last step.")
    checkpoint_interval: int = setting(10, "Steps between the checkpoints of a run.")
    shared_initialization: bool = setting(False, "All runs start from the target's own weights.")
    trunk_steps: int = setting(0, "All runs branch from one network that was trained for so many steps.")
    canonicalize: bool = setting(False, "Save hidden units permuted and rescaled into one canonical form.")
    runs_per_group: int = setting(50, "Runs trained side by side; it decides the last bits, whoever computes a group.")
    run_shard: str | None = setting(None, "`i/n`: compute only the i-th of n parts; training/merge_checkpoints.py.")


def collect_runs(
    images: ImageData,
    model: PreTrainedModel,
    settings: CollectionSettings,
    runs: MultiRunSettings,
    state: TrainingState | None = None,
) -> Checkpoints:
    """Trains many networks of one architecture and returns their last checkpoints, the same in every process.

    Each run has initial weights and an order of the images of its own, which depend on its seed alone. Runs are
    computed in fixed groups; the processes of Accelerate, and the shards of independent jobs, share out whole groups,
    so that the zoo does not depend on who computed what. Whole runs are held out: the first ones are the zoo, the next
    validation, the last test. `target_train_steps`, `target_learning_rate`, `adam_weight_decay` and
    `train_batch_size` say how each run is trained (and the trunk, for `trunk_steps`), in float32.

    A canonical form is taken modulo the symmetries that `Symmetries` finds: rescaled units balanced, then permuted
    toward the average of some further runs that are no part of the zoo; each process makes the same.

    Args:
        images: Train images fit, validation images fill the columns `validation_accuracy` and `validation_loss`.
        model: The target. It is trained in place for `trunk_steps`; fresh runs are built from its class and config.
        settings: Images, subset and how a run is trained.
        runs: How many runs, and what they share.
        state: Where finished groups are saved, if anywhere.

    Raises:
        LayoutError: If the subset matches nothing.
        ValueError: If counts make no zoo, no groups or no shard, runs would need statistics of a BatchNorm of their
            own, or mixed precision was asked for.
        FileExistsError: If finished groups are saved and nothing was said of resuming, or under other settings.
        NonFiniteParametersError: If a run diverges.
        RuntimeError: If several processes were started that Accelerate does not connect.
    """
    model.eval().requires_grad_(False)
    processor = make_processor(model, settings.subset)
    groups, recorded = _groups(runs), _recorded_steps(settings, runs)
    _require_shared_statistics(model, processor, runs)
    optimization = target_optimization(settings, settings.target_train_steps)
    accelerator = Accelerator() if state is None else state.make_accelerator(optimization)
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
    identity = json.dumps([asdict(settings), asdict(replace(runs, run_shard=None))], sort_keys=True)
    saved = None if state is None else SavedGroups(state.beside("runs"), identity)
    accelerator.wait_for_everyone()  # no process saves a group before all have looked whether there are any

    started = time.perf_counter()
    _train_trunk(accelerator, images, model, settings, runs, state)
    trainer = _Trainer(accelerator.device, images, model, processor, settings, runs, optimization, recorded)
    costs = {"preparation_seconds": time.perf_counter() - started}

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
            accelerator.log({"validation_accuracy": group.validation_accuracy.mean().item()}, step=members[0])
            bar.update(len(members))
    finish_trackers(accelerator)
    gathered = sorted(gather_object(finished), key=lambda group: group.runs)
    for name in gathered[0].seconds:
        costs[name] = sum(group.seconds[name] for group in gathered)
    return Checkpoints(
        splits=_splits(gathered, settings, runs, recorded, processor.parameter_dim),
        processor=processor,
        target_model=model,
        preprocessing=images.preprocessing.to_dict(),
        collection={
            "settings": asdict(settings),
            "runs": asdict(runs),
            "costs": costs,
            "hardware": describe_hardware(),
        },
    )


def _groups(runs: MultiRunSettings) -> list[list[int]]:
    """The numbers of the runs of each group that is computed here."""
    counts = {
        name: getattr(runs, name)
        for name in ("num_runs", "runs_per_group", "checkpoints_per_run", "checkpoint_interval")
    }
    wrong = {name: count for name, count in counts.items() if count < 1}
    if wrong or runs.num_validation_runs < 0 or runs.num_test_runs < 0:
        raise ValueError(f"A multi-run zoo needs at least one of each of {list(counts)}, but has {wrong or runs}.")
    numbers = list(range(runs.num_runs + runs.num_validation_runs + runs.num_test_runs))
    groups = [numbers[i : i + runs.runs_per_group] for i in range(0, len(numbers), runs.runs_per_group)]
    if runs.run_shard is None:
        return groups
    shard, count = read_shard(runs.run_shard)
    most = math.ceil(runs.num_runs / runs.runs_per_group)
    if count > most:
        raise ValueError(
            f"--run_shard {runs.run_shard} asks for {count} parts, but the {runs.num_runs} runs to learn from make "
            f"only {most} groups of --runs_per_group {runs.runs_per_group}, and each part needs one; take at most "
            f"{most} parts, or smaller groups."
        )
    return groups[shard - 1 :: count]


def _recorded_steps(settings: CollectionSettings, runs: MultiRunSettings) -> list[int]:
    last = settings.target_train_steps - 1
    steps = [last - i * runs.checkpoint_interval for i in reversed(range(runs.checkpoints_per_run))]
    if steps[0] < 0:
        raise ValueError(
            f"--checkpoints_per_run {runs.checkpoints_per_run} with --checkpoint_interval {runs.checkpoint_interval} "
            f"need more than the {settings.target_train_steps} steps of --target_train_steps."
        )
    return steps


def _require_shared_statistics(model: PreTrainedModel, processor: ParameterProcessor, runs: MultiRunSettings) -> None:
    if runs.shared_initialization or runs.trunk_steps:
        return
    owners = {name.rpartition(".")[0] for name in processor.names}
    fed, reached = [], False
    for name, module in model.named_modules():  # in the order of the forward pass, as far as modules have one
        if reached and isinstance(module, nn.modules.batchnorm._BatchNorm):
            fed.append(name)
        reached = reached or name in owners
    if fed:
        raise ValueError(
            f"Generated tensors feed BatchNorms of {type(model).__name__} ({', '.join(fed)}): runs from initial "
            "weights of their own would need running statistics of their own, which are no part of a vector. Let all "
            "runs branch from one trained network and share its statistics (--trunk_steps 300, or "
            "--shared_initialization with --model_name_or_path), or choose a network without BatchNorm (a "
            'pdiff_convnet with --model_config \'{"normalization": "layer"}\').'
        )


def _train_trunk(
    accelerator: Accelerator,
    images: ImageData,
    model: PreTrainedModel,
    settings: CollectionSettings,
    runs: MultiRunSettings,
    state: TrainingState | None,
) -> None:
    """Trains the network from which all runs branch, in the main process, and hands it to the others."""
    if runs.trunk_steps and accelerator.is_main_process:
        beside = None if state is None else replace(state.beside("trunk"), all_processes=False)
        optimization = target_optimization(settings, runs.trunk_steps)
        model.train().requires_grad_(True)
        train_network(model, images, settings, optimization, "training the trunk", beside)
    model.eval().requires_grad_(False).to(accelerator.device)
    if runs.trunk_steps:
        model.load_state_dict(broadcast(dict(model.state_dict())))


class _Trainer:
    """Trains groups: whatever does not differ between them."""

    def __init__(
        self,
        device: torch.device,
        images: ImageData,
        model: PreTrainedModel,
        processor: ParameterProcessor,
        settings: CollectionSettings,
        runs: MultiRunSettings,
        optimization: OptimizationSettings,
        recorded: list[int],
    ) -> None:
        self.images, self.model, self.processor, self.seed = images, model, processor, settings.seed
        self.pixel_values = images.preprocessing(images.train.pixels.to(device))
        self.labels = images.train.labels.to(device)
        self.optimization, self.recorded = optimization, recorded
        shared = runs.shared_initialization or runs.trunk_steps > 0
        self.start = processor.flatten(model.state_dict()).cpu() if shared else None
        self.augmentation = None
        if settings.augmentation_shift or settings.augmentation_flip or settings.augmentation_noise:
            self.augmentation = partial(
                augment,
                shift=settings.augmentation_shift,
                flip=settings.augmentation_flip,
                noise=settings.augmentation_noise,
            )
        self.symmetries = None
        if runs.canonicalize:
            others = self._checkpoints([run_seed(self.seed, i, REFERENCE) for i in range(REFERENCE_RUNS)])[:, -1]
            some = images.preprocessing(images.train.pixels[:SYMMETRY_IMAGES])
            self.symmetries = Symmetries(copy.deepcopy(model).cpu(), processor, others[0], some)
            others = self.symmetries.canonicalize(others)
            _, self.reference = self.symmetries.align_to_mean(others, ALIGNMENT_ROUNDS, restart=True)

    def train(self, members: list[int]) -> RunGroup:
        """Trains the runs of these numbers and measures their checkpoints on the validation images."""
        started = time.perf_counter()
        parameters = self._checkpoints([run_seed(self.seed, run, RUNS) for run in members])  # (n, k, D)
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
        accuracy, loss = validation_figures(self.model, self.processor, rows, self.images)
        return RunGroup(
            members,
            rows.view_as(parameters),
            torch.tensor(accuracy).view(len(members), -1),
            torch.tensor(loss).view(len(members), -1),
            {"runs_seconds": trained - started, "validation_seconds": time.perf_counter() - trained},
        )

    def _checkpoints(self, seeds: list[int]) -> torch.Tensor:
        """Returns the checkpoints `(n, k, D)` of the runs with these seeds."""
        start = (
            initial_parameters(self.model, self.processor, seeds)
            if self.start is None
            else self.start.expand(len(seeds), -1)
        )
        return train_group(
            self.model,
            self.processor,
            start,
            seeds,
            self.pixel_values,
            self.labels,
            self.optimization,
            self.recorded,
            self.augmentation,
        )


def _splits(
    groups: Sequence[RunGroup], settings: CollectionSettings, runs: MultiRunSettings, recorded: list[int], dim: int
) -> dict[str, CheckpointSplit]:
    """Whole runs into splits: the first ones are the zoo, the next validation, the last test."""
    ends = (runs.num_runs, runs.num_runs + runs.num_validation_runs)
    splits = {split: CheckpointSplit(torch.zeros(0, dim), [], [], [], [], []) for split in SPLITS}
    vectors: dict[str, list[torch.Tensor]] = {split: [torch.zeros(0, dim)] for split in SPLITS}
    for group in groups:
        for place, run in enumerate(group.runs):
            split = SPLITS[sum(run >= end for end in ends)]
            zoo = splits[split]
            vectors[split].append(group.parameters[place])
            zoo.run += [f"run-{run:06d}"] * len(recorded)
            zoo.step += recorded
            zoo.seed += [run_seed(settings.seed, run, RUNS)] * len(recorded)
            zoo.validation_accuracy += group.validation_accuracy[place].tolist()
            zoo.validation_loss += group.validation_loss[place].tolist()
    for split, zoo in splits.items():
        zoo.parameters = torch.cat(vectors[split])
    return splits
