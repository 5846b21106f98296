"""Checkpoint zoos: splits of rows with their layout and target, stored as parquet, read back as one matrix."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..data.inputs import LabeledData
from ..folders import finish_replacing, replace_folder, write_json
from ..hub.cards import has_own_card, write_checkpoints_card
from ..hub.files import RepositoryFiles
from ..hub.safety import broken_files, own_files, read_json
from ..hub.sharing import share
from ..targets.building import build_network
from ..targets.conditions import ConditionError, Conditions
from ..targets.loading import load_network
from ..targets.processing_parameters import ParameterProcessor
from ..targets.task import task_of
from .condition_splits import conditions_of_splits, describe_conditions, require_held_out
from .parquet import CheckpointsError, checkpoint_features, join_columns, read_shards, write_shards

SPLITS = ("train", "validation", "test")
FORMAT_VERSION = 2  # of the files; 1, which states none, calls `validation_score` `validation_accuracy`
DATASET_FILES = (
    "data/*.parquet",
    "processor_config.json",
    "preprocessor_config.json",
    "collection.json",
    "target_model/*.json",
    "target_model/*.safetensors",
)


def _column(name: str, doc: str) -> Any:
    """Returns a property of a split that reads and sets one of its columns."""
    return property(
        lambda split: split.columns.get(name), lambda split, new: split.columns.update({name: new}), doc=doc
    )


@dataclass(init=False, eq=False, repr=False)
class CheckpointSplit:
    """One split: vectors `(n, D)` float32, and columns of n values each.

    Args:
        parameters: The vectors.
        run: Name of the independent training that each belongs to.
        step: Its place in the run.
        seed: Seed of the run.
        further: Optional columns (`validation_score`, `validation_loss`, `condition`) and any others. One that is
            None is left out; a number that was not measured is NaN, another value that is not known None.
    """

    parameters: torch.Tensor
    columns: dict[str, list]

    def __init__(
        self, parameters: torch.Tensor, *, run: list[str], step: list[int], seed: list[int], **further: list | None
    ) -> None:
        given = {name: values for name, values in further.items() if values is not None}
        self.parameters, self.columns = parameters, {"run": run, "step": step, "seed": seed, **given}
        lengths = {name: len(values) for name, values in self.columns.items() if len(values) != len(parameters)}
        if lengths:
            raise CheckpointsError(f"There are {len(parameters)} vectors, but columns of other lengths: {lengths}.")

    run = _column("run", "Name of the independent training that each checkpoint belongs to.")
    step = _column("step", "Each checkpoint's place in its run.")
    seed = _column("seed", "Seed of each checkpoint's run.")
    validation_score = _column("validation_score", "Score on the validation examples; None if not measured.")
    validation_loss = _column("validation_loss", "Mean loss on the validation examples; None if not measured.")
    condition = _column("condition", "The vector of numbers that each run was made for; None without conditions.")

    def __len__(self) -> int:
        return len(self.parameters)

    def __repr__(self) -> str:
        shape = tuple(self.parameters.shape)
        return f"{len(self)} checkpoints of {len(set(self.run))} runs, parameters {shape}"

    def take(self, chosen: Sequence[bool]) -> CheckpointSplit:
        """Returns the checkpoints for which `chosen`, one for each, is true."""
        return self.rows([i for i, keep in enumerate(chosen) if keep])

    def rows(self, chosen: Sequence[int] | slice) -> CheckpointSplit:
        """Returns the checkpoints at some indices, in that order, or a slice of them, which is not copied."""
        indices = range(len(self))[chosen] if isinstance(chosen, slice) else chosen
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        return CheckpointSplit(self.parameters[chosen if isinstance(chosen, slice) else list(chosen)], **columns)

    @classmethod
    def concatenate(cls, parts: Sequence[CheckpointSplit]) -> CheckpointSplit:
        """Returns the checkpoints of several splits; in a column that a part lacks, its rows have NaN or None."""
        columns = join_columns((len(part), part.columns) for part in parts)
        return cls(torch.cat([part.parameters for part in parts]), **columns)


@dataclass(repr=False)
class Checkpoints:
    """A whole checkpoints dataset: its splits, the layout, the target with its trunk, and where it came from.

    Args:
        splits: `train` is the zoo a generator learns from; `validation` chooses; `test` is held out for evaluation.
        processor: The layout of the vectors.
        target_model: The target network.
        preprocessing: Content of a `preprocessor_config.json`, or empty.
        collection: How the zoo was made: data set, settings, costs.
    """

    splits: dict[str, CheckpointSplit]
    processor: ParameterProcessor
    target_model: PreTrainedModel
    preprocessing: dict[str, Any] = field(default_factory=dict)
    collection: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        dataset_name = (self.collection.get("settings") or {}).get("dataset_name")
        what = type(self.target_model).__name__ + (f" on {dataset_name!r}" if dataset_name else "")
        counts = ", ".join(f"{len(rows)} {name}" for name, rows in self.splits.items())
        runs, names = len({run for rows in self.splits.values() for run in rows.run}), self.processor.names
        shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        return (
            f"checkpoints of {what}: {counts} of {runs} runs\n{self.processor.parameter_dim} parameters each: {shown}"
        )

    @property
    def zoo(self) -> CheckpointSplit:
        """The split that generators learn from."""
        return self.splits["train"]

    @property
    def conditions(self) -> Conditions | None:
        """What the numbers of column `condition` mean; None of a zoo without, `CheckpointsError` if damaged."""
        return _read_conditions(self.collection)

    @classmethod
    def from_files(
        cls,
        paths: Sequence[str | os.PathLike],
        model: nn.Module,
        subset: str | Sequence[str] = "full",
        *,
        images: LabeledData | None = None,
        collection: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Checkpoints:
        """Makes a dataset of networks that were trained and saved elsewhere, reading one of them at a time.

        Args:
            paths: Files (`.safetensors`; `.pth`, `.pt`, `.bin` with a state dict), folders of them or of transformers
                and its `Trainer`, tar archives of files, or globs.
            model: A network of their architecture, which is not changed.
            subset: See `CheckpointRecorder`; all other tensors must be equal in all files.
            images: Labeled data on which the networks are measured, and BatchNorm statistics of their own and
                canonical forms found.
            collection: How the zoo was made, if known.
            options: Fields of `ImportOptions`: `pattern`, `num_validation_runs`, `num_test_runs`, `seed`,
                `skip_broken`, `canonicalize`, `license`.

        Raises:
            CheckpointsError: If there are no checkpoints, files are broken or do not fit the network, trunks differ,
                or names do not give runs and steps that can be divided into splits.
            ValueError: If the license is no identifier.
            LayoutError: If the subset does not fit the network.
        """
        from .importing import ImportOptions, import_checkpoints  # they make checkpoints themselves

        return import_checkpoints(paths, model, subset, ImportOptions(**options), images, collection)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the dataset atomically: parquet shards for `datasets.load_dataset`, layout, target and provenance.

        The saved target holds the zoo's average in the generated positions, so that it works as it stands and leaks
        no single training network.

        Raises:
            CheckpointsError: If the zoo is empty, a column holds values of several types, or two splits have a
                condition in common; see `require_held_out`.
            NonFiniteParametersError, LayoutError: If a vector is not finite or does not fit the layout.
            UnwritableFolderError: If the folder cannot be written.
        """
        if not len(self.splits.get("train", ())):
            raise CheckpointsError("There are no checkpoints to save: the train split is empty.")
        for zoo in self.splits.values():
            self.processor.check(zoo.parameters)
        conditions = self.conditions
        require_held_out(self.splits, conditions)
        filled = {split: zoo for split, zoo in self.splits.items() if len(zoo)}
        columns = join_columns((len(zoo), zoo.columns) for zoo in filled.values())
        condition_dim = None if conditions is None else conditions.dim
        features = checkpoint_features(self.processor.parameter_dim, columns, condition_dim)
        average = build_network(self.target_model, self.processor, self.zoo.parameters.mean(0))
        with replace_folder(folder) as temporary:
            (temporary / "data").mkdir()
            for split, zoo in filled.items():
                write_shards(temporary / "data", split, zoo.parameters, zoo.columns, features)
            self.processor.save_pretrained(temporary)
            average.save_pretrained(temporary / "target_model")
            if self.preprocessing:
                write_json(temporary / "preprocessor_config.json", self.preprocessing)
            write_json(temporary / "collection.json", {"format_version": FORMAT_VERSION, **self.collection})
            if not has_own_card(folder):
                score_name = task_of(self.target_model.config).score_name
                about = describe_conditions(filled, conditions)
                write_checkpoints_card(temporary, self, score_name, features._to_yaml_list(), about)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Pushes the dataset with its card, in one commit; takes and returns what `pdiff_hf.share` does."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = f"{temporary}/checkpoints"
            self.save(folder)
            return share(folder, repo_id, private=private, token=token, commit_message=commit_message)


def load_checkpoints(
    dataset_name: str | os.PathLike,
    target_model: PreTrainedModel | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Checkpoints:
    """Reads a checkpoints dataset from a folder, or from the Hub.

    Args:
        dataset_name: A folder that `Checkpoints.save` wrote, or the id of a dataset repository.
        target_model: The target, if its class is neither in transformers nor defined in this process.
        revision: Branch, tag or commit on the Hub.
        token: A token that may read it; by default the stored one.
        cache_dir: The cache's folder.

    Raises:
        CheckpointsError: If files are missing, damaged or of a newer format, or the zoo is empty.
        HubError: If it cannot be fetched; the subclasses of `pdiff_hf.hub.client` say why.
        UnsafeFileError: If a file is no regular file of the folder, or the target would have something else read.
        UnknownTargetError: If the target's class is not to be found.
    """
    folder, name = Path(dataset_name), str(dataset_name)
    if not folder.is_dir():
        repository = RepositoryFiles(name, "dataset", revision=revision, token=token, cache_dir=cache_dir)
        folder = repository.download(DATASET_FILES)
    finish_replacing(folder)
    if not (folder / "processor_config.json").is_file():
        raise CheckpointsError(
            f"{name!r} is no checkpoints dataset: it has no processor_config.json. training/collect_runs.py, "
            "training/collect_trajectory.py or CheckpointRecorder makes one."
        )
    own_files(folder, DATASET_FILES)
    collection = _read_mapping(folder / "collection.json")
    version = collection.pop("format_version", 1)
    if version not in range(1, FORMAT_VERSION + 1):
        raise CheckpointsError(
            f"{str(folder)!r} is of format version {version!r}, but this version of pdiff_hf reads up to "
            f"{FORMAT_VERSION}; upgrade pdiff_hf."
        )
    with broken_files(f"The layout in {str(folder)!r}"):
        processor = ParameterProcessor.from_config(read_json(folder / "processor_config.json"))
    splits, conditions = {}, _read_conditions(collection)
    for split in SPLITS:
        parameters, columns = read_shards(folder, split, processor, None if conditions is None else conditions.dim)
        splits[split] = CheckpointSplit(parameters, **columns)
    conditions_of_splits(splits, conditions)
    if not len(splits["train"]):
        raise CheckpointsError(f"The train split of {name!r} holds no checkpoints.")
    if target_model is None:
        target_model = load_network(folder / "target_model")
    preprocessing = _read_mapping(folder / "preprocessor_config.json")
    return Checkpoints(splits, processor, target_model.eval(), preprocessing, collection)


def _read_conditions(collection: dict[str, Any]) -> Conditions | None:
    content = collection.get("conditions")
    try:
        return None if content is None else Conditions.from_dict(content)
    except ConditionError as error:
        raise CheckpointsError(f"What the conditions of the zoo mean is damaged in its collection. {error}") from error


def _read_mapping(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
