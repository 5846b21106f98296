"""Importing a zoo that others have trained: checkpoint files of one architecture become rows of a dataset."""

from __future__ import annotations

import copy
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.images import ImageData
from ..data.inputs import Inputs, LabeledData, take_inputs
from ..hub.cards import require_license
from ..hub.safety import BrokenFileError, UnsafeFileError
from ..settings import setting
from ..targets.adapters import as_target
from ..targets.processing_parameters import LayoutError, NonFiniteParametersError, ParameterProcessor
from ..targets.state_dicts import COUNTER, match_state_dict
from ..targets.symmetries import Symmetries
from ..targets.task import task_of
from .checkpoint_files import SUFFIXES, checkpoint_files
from .checkpoints import SPLITS, Checkpoints
from .fits import task_on
from .parquet import CheckpointsError
from .recorder import CheckpointRecorder
from .runs import ALIGNMENT_ROUNDS, REFERENCE_RUNS, SYMMETRY_IMAGES
from .trajectory import measure_checkpoints

STEP = re.compile(r"checkpoint-(\d+)")
# A file may hold optimizer states beside the weights, in another precision.
LEAST_LIMIT, LARGEST_RATIO = 64 * 2**20, 8
MOST_BROKEN = 20  # that are looked for before the import stops
CERTAIN = 3  # standard deviations of an accuracy above chance

BROKEN = (BrokenFileError, UnsafeFileError, LayoutError, NonFiniteParametersError)


@dataclass
class ImportOptions:
    """How files become rows: which run and step each is, which runs are held out, and what is left out."""

    pattern: str | None = setting(
        None,
        r"Regular expression that reads run and step from a path: 'run_(?P<run>\d+)/checkpoint-(?P<step>\d+)'. By "
        "default `checkpoint-N` is step N of the run that the path above it names; every other file is its own run.",
    )
    num_validation_runs: int | None = setting(None, "Runs that choose settings; by default a tenth of all.")
    num_test_runs: int | None = setting(None, "Held-out runs, for the evaluation alone; by default a tenth of all.")
    seed: int = setting(0, "Random seed for dividing the runs into splits.")
    skip_broken: bool = setting(False, "Leave out files that cannot be read or do not fit, instead of stopping.")
    canonicalize: bool = setting(False, "Save hidden units permuted and rescaled into one canonical form.")
    license: str | None = setting(None, "License of the networks as the Hub names it (`mit`, `cc-by-4.0`), for cards.")

    def __post_init__(self) -> None:
        require_license(self.license)


def import_checkpoints(
    paths: Sequence[str | os.PathLike],
    model: nn.Module,
    subset: str | Sequence[str],
    options: ImportOptions,
    images: LabeledData | None = None,
    collection: Mapping[str, Any] | None = None,
) -> Checkpoints:
    """Makes a dataset of networks that were trained and saved elsewhere; see `Checkpoints.from_files`.

    Args:
        paths, model, subset, images, collection: See there.
        options: The other arguments.
    """
    target = copy.deepcopy(as_target(model)).cpu().eval()
    few = None
    if images is not None:
        task_on(target, images)
        few = take_inputs(images.inputs(images.train), slice(SYMMETRY_IMAGES))
    elif options.canonicalize:
        raise CheckpointsError(
            "A canonical form is found by trying on a few images, but there are none; pass images=… "
            "(--dataset_name), or leave out --canonicalize."
        )
    recorder = CheckpointRecorder(target, subset, allow_moving_trunk=True, example_inputs=few)
    size = sum(tensor.numel() * tensor.element_size() for tensor in target.state_dict().values())
    largest = LEAST_LIMIT + LARGEST_RATIO * size
    places = _places([file.name for file in checkpoint_files(paths, largest)], options.pattern)
    divide_runs({run for run, _ in places.values()}, options)

    common = os.path.commonpath([PurePosixPath(name).parent for name in places])
    broken: dict[str, str] = {}
    trunk = _Trunk(target, recorder.processor)
    for file in tqdm(checkpoint_files(paths, largest), total=len(places), desc="importing checkpoints"):
        if file.name not in places:
            continue
        run, step = places[file.name]
        try:
            tensors = match_state_dict(target, file.read())
        except BROKEN as error:
            broken[os.path.relpath(file.name, common)] = str(error)
            if not options.skip_broken and len(broken) == MOST_BROKEN:
                break
            continue
        trunk.take(file.name, tensors)
        recorder.record(step, run=run)
        del tensors  # before those of the next file are read
    if len(broken) == len(places) or (broken and not options.skip_broken):
        raise CheckpointsError(_describe_broken(broken, len(places), options.skip_broken))

    recorder.processor = trunk.processor
    rows = sorted(recorder.rows["train"], key=lambda row: (row["run"], row["step"]))
    splits = divide_runs({row["run"] for row in rows}, options)
    recorder.rows = {split: [row for row in rows if splits[row["run"]] == split] for split in SPLITS}
    del rows
    chosen = {known.name: getattr(options, known.name) for known in fields(ImportOptions)}
    about = {"files": len(places), "left_out": broken, **chosen}
    preprocessing = images.preprocessing.to_dict() if isinstance(images, ImageData) else {}
    checkpoints = recorder.checkpoints(preprocessing, {**(collection or {}), "imported": about})
    if options.canonicalize and few is not None:
        _canonicalize(checkpoints, few)
    if images is not None:
        measure_checkpoints(checkpoints, images)
        about["at_chance"] = _is_at_chance(checkpoints, len(images.validation))
    return checkpoints


def divide_runs(runs: set[str], options: ImportOptions) -> dict[str, str]:
    """Returns the split of each run: whole runs, by a seeded permutation.

    Raises:
        CheckpointsError: If no run is left to learn from.
    """
    asked = {"test": options.num_test_runs, "validation": options.num_validation_runs}
    held_out = {split: len(runs) // 10 if count is None else count for split, count in asked.items()}
    if min(held_out.values()) < 0 or sum(held_out.values()) >= len(runs):
        raise CheckpointsError(
            f"Of {len(runs)} runs {held_out['validation']} are to be validation and {held_out['test']} held-out runs, "
            "which leaves none to learn from; choose other --num_validation_runs and --num_test_runs (the steps of a "
            "run belong to one split), or check how runs are read from the names (--pattern)."
        )
    order = torch.randperm(len(runs), generator=torch.Generator().manual_seed(options.seed)).tolist()
    names, splits = sorted(runs), [split for split, count in held_out.items() for _ in range(count)]
    splits += ["train"] * (len(runs) - len(splits))
    return {names[place]: split for place, split in zip(order, splits, strict=True)}


def _places(names: Sequence[str], pattern: str | None) -> dict[str, tuple[str, int]]:
    """Returns run and step of each file: what the pattern's groups match, or as its path has them.

    Weights beside folders `checkpoint-…` are left out: they are those of one of the steps.

    Raises:
        CheckpointsError: If there are no files, the pattern has no group `run` or does not match, a step is no
            number, or two files are the same step of a run.
    """
    steps = [path for path in map(PurePosixPath, names) if STEP.fullmatch(path.name)]
    of_steps = {str(path.parent) for path in steps}
    names = [name for name in names if name not in of_steps]
    if not names:
        raise CheckpointsError(f"The archives hold no checkpoints: no {', '.join(SUFFIXES)} files.")
    read = [_read_path(name) if pattern is None else _read_pattern(name, pattern) for name in names]
    if pattern is None:
        common = os.path.commonpath([PurePosixPath(run).parent for run, _ in read])
        read = [(os.path.relpath(run, common), step) for run, step in read]
    known: dict[tuple[str, int], str] = {}
    for name, (run, step) in zip(names, read, strict=True):
        if (run, step) in known:
            raise CheckpointsError(
                f"{known[run, step]!r} and {name!r} are both step {step} of run {run!r}; give each file once, and "
                "state with --pattern where the names have run and step."
            )
        known[run, step] = name
    return dict(zip(names, read, strict=True))


def _read_path(name: str) -> tuple[str, int]:
    """Returns run and step of `…/run/checkpoint-100`, a folder or a file; else the whole path as a run of its own."""
    path = PurePosixPath(name)
    path = path.with_suffix("") if path.suffix in SUFFIXES else path
    for place in (path, path.parent):
        if found := STEP.fullmatch(place.name):
            return str(place.parent), int(found[1])
    return str(path), 0


def _read_pattern(name: str, pattern: str) -> tuple[str, int]:
    """Returns run and step of the pattern's last match in a path."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise CheckpointsError(f"--pattern {pattern!r} is no regular expression: {error}.") from error
    if "run" not in compiled.groupindex:
        raise CheckpointsError(
            f"--pattern {pattern!r} does not state what the run is; name groups, as in "
            r"'run_(?P<run>\d+)/checkpoint-(?P<step>\d+)'."
        )
    groups = [match.groupdict() for match in compiled.finditer(name)]
    run, step = (groups[-1].get("run"), groups[-1].get("step") or "0") if groups else (None, "0")
    if run is None or not re.fullmatch(r"[0-9]{1,9}", step):
        raise CheckpointsError(
            f"--pattern {pattern!r} does not give run and step of {name!r}: "
            f"{'it does not match' if run is None else f'the step {step!r} is no number'}; correct the pattern, or "
            "name only files that it is for."
        )
    return run, int(step)


class _Trunk:
    """The tensors outside the subset, which the first file gives the target and all others must have too.

    BatchNorms whose statistics are each network's own are the exception; `processor` names those whose statistics
    differ indeed.
    """

    def __init__(self, target: PreTrainedModel, processor: ParameterProcessor) -> None:
        self.target, self.layout, self.first = target, processor, ""
        self.state = target.state_dict()  # the target's own storage
        generated = {self.state[name].data_ptr() for name in processor.names}  # under all names, if tied
        self.names = [
            name
            for name, tensor in self.state.items()
            if tensor.data_ptr() not in generated and not name.endswith(COUNTER)
        ]
        self.varying: set[str] = set()

    def take(self, file: str, tensors: dict[str, torch.Tensor]) -> None:
        """Fills the target with a file's tensors; `CheckpointsError` if its trunk is another than the first file's."""
        if not self.first:
            self.first = file
            self.target.load_state_dict(tensors, strict=False)
        for name in self.names:
            if name in tensors and not torch.equal(tensors[name], self.state[name]):
                if name not in self.layout.own_buffers:
                    raise CheckpointsError(self._describe(file, name))
                self.varying.add(name.rpartition(".")[0])
        with torch.no_grad():
            for name in self.layout.names:
                if name in tensors:
                    self.state[name].copy_(tensors[name])

    @property
    def processor(self) -> ParameterProcessor:
        """The layout of what was taken."""
        own = [name for name in self.layout.statistics if name in self.varying]
        if own == self.layout.statistics:
            return self.layout
        return ParameterProcessor.from_config(self.layout.config, statistics=own)

    def _describe(self, file: str, name: str) -> str:
        advice = "import with --subset full (subset='full')"
        if name.endswith(("running_mean", "running_var")):
            advice = (
                "where the subset feeds a BatchNorm, networks may have statistics of their own, which is found by "
                "trying on images: pass --dataset_name (images=…)"
            )
        elif name in dict(self.target.named_parameters()):
            advice += f", or with a larger one, such as --subset {' '.join(self.layout.names[:2])} … {name}"
        return (
            f"{file!r} and {self.first!r} differ in {name!r}, which is outside the subset, but all rows are saved "
            f"with one trunk; {advice}."
        )


def _describe_broken(broken: Mapping[str, str], count: int, skipped: bool) -> str:
    named = "\n".join(f"  {name}: {reason}" for name, reason in list(broken.items())[:MOST_BROKEN])
    if skipped:
        return f"None of the {count} checkpoints can be imported:\n{named}"
    at_least = "At least " if len(broken) == MOST_BROKEN else ""
    return (
        f"{at_least}{len(broken)} of {count} checkpoints cannot be imported, so nothing was; pass --skip_broken "
        f"(skip_broken=True) to leave them out:\n{named}"
    )


def _canonicalize(checkpoints: Checkpoints, inputs: Inputs) -> None:
    """Balances and permutes hidden units of all splits, in place, toward the average of some runs of the zoo."""
    zoo = checkpoints.zoo
    last = list({run: row for row, run in enumerate(zoo.run)}.values())[:REFERENCE_RUNS]  # the last step of each
    symmetries = Symmetries(checkpoints.target_model, checkpoints.processor, zoo.parameters[last[0]], inputs)
    canonical = symmetries.canonicalize(zoo.parameters[last])
    _, reference = symmetries.align_to_mean(canonical, ALIGNMENT_ROUNDS, restart=True)
    for split in checkpoints.splits.values():
        if len(split):
            split.parameters = symmetries.align(symmetries.canonicalize(split.parameters), reference)


def _is_at_chance(checkpoints: Checkpoints, examples: int) -> bool:
    """Tells whether the median network of the zoo does no better than one that knows nothing, up to luck."""
    config = checkpoints.target_model.config
    chance = task_of(config).chance(config.num_labels)
    luck = CERTAIN * math.sqrt(chance * (1 - chance) / examples)
    return statistics.median(checkpoints.zoo.validation_score or [math.nan]) <= chance + luck
