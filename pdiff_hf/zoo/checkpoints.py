"""Checkpoint zoos: recorded from any training loop, stored as parquet, read back as one matrix."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..folders import replace_folder, write_json
from ..hub.cards import has_own_card, write_checkpoints_card
from ..hub.files import RepositoryFiles
from ..hub.safety import broken_files, read_json
from ..hub.sharing import share
from ..targets.adapters import as_target
from ..targets.building import build_network
from ..targets.loading import load_network
from ..targets.processing_parameters import ParameterProcessor
from ..targets.subsets import make_processor
from .parquet import CheckpointsError, checkpoint_features, read_shards, write_shards

SPLITS = ("train", "validation", "test")
COLUMNS = ("run", "step", "seed", "validation_accuracy", "validation_loss")
DATASET_FILES = (
    "data/*.parquet",
    "processor_config.json",
    "preprocessor_config.json",
    "collection.json",
    "target_model/*.json",
    "target_model/*.safetensors",
)


@dataclass
class CheckpointSplit:
    """One split: vectors `(n, D)` float32 and, for each, its run, step, seed and validation figures.

    A validation figure that was not measured is NaN.
    """

    parameters: torch.Tensor
    run: list[str]
    step: list[int]
    seed: list[int]
    validation_accuracy: list[float]
    validation_loss: list[float]

    def __len__(self) -> int:
        return len(self.run)

    @property
    def columns(self) -> dict[str, list]:
        """What is known of each checkpoint, by the names of the dataset's columns."""
        return {name: getattr(self, name) for name in COLUMNS}

    def take(self, chosen: Sequence[bool]) -> CheckpointSplit:
        """Returns the checkpoints for which `chosen`, one for each, is true."""
        return self.rows([i for i, keep in enumerate(chosen) if keep])

    def rows(self, indices: Sequence[int]) -> CheckpointSplit:
        """Returns the checkpoints at `indices`, in that order."""
        return CheckpointSplit(
            self.parameters[list(indices)],
            **{name: [values[i] for i in indices] for name, values in self.columns.items()},
        )


@dataclass
class Checkpoints:
    """A whole checkpoints dataset: its splits, the layout, the target with its trunk, and where it came from.

    Args:
        splits: `train` is the zoo that a generator learns from; `validation` chooses; `test` is held out for
            evaluation.
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

    @property
    def zoo(self) -> CheckpointSplit:
        """The split that generators learn from."""
        return self.splits["train"]

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the dataset: parquet shards that `datasets.load_dataset` reads, layout, target and provenance.

        The folder appears whole or not at all. The saved target holds the zoo's average in the generated positions,
        so that it works as it stands and leaks no single training network.

        Raises:
            CheckpointsError: If the zoo is empty.
            NonFiniteParametersError, LayoutError: If a vector is not finite or does not fit the layout.
            UnwritableFolderError: If the folder cannot be written.
        """
        if not len(self.splits.get("train", ())):
            raise CheckpointsError("There are no checkpoints to save: the train split is empty.")
        for zoo in self.splits.values():
            self.processor.check(zoo.parameters)
        average = build_network(self.target_model, self.processor, self.zoo.parameters.mean(0))
        with replace_folder(folder) as temporary:
            (temporary / "data").mkdir()
            for split, zoo in self.splits.items():
                if len(zoo):
                    write_shards(temporary / "data", split, zoo.parameters, zoo.columns)
            self.processor.save_pretrained(temporary)
            average.save_pretrained(temporary / "target_model")
            if self.preprocessing:
                write_json(temporary / "preprocessor_config.json", self.preprocessing)
            write_json(temporary / "collection.json", self.collection)
            if not has_own_card(folder):
                features = checkpoint_features(self.processor.parameter_dim)._to_yaml_list()
                target_class = type(self.target_model).__name__
                write_checkpoints_card(temporary, self.processor, target_class, self.splits, features, self.collection)

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
            self.save(f"{temporary}/checkpoints")
            return share(
                f"{temporary}/checkpoints", repo_id, private=private, token=token, commit_message=commit_message
            )


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
        CheckpointsError: If files are missing or damaged, or the zoo is empty.
        HubError: If it cannot be fetched; the subclasses of `pdiff_hf.hub.client` say why.
        UnknownTargetError: If the target's class is not to be found.
    """
    folder, name = Path(dataset_name), str(dataset_name)
    if not folder.is_dir():
        how: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
        repository = RepositoryFiles(name, repo_type="dataset", **how)
        folder = repository.download(DATASET_FILES)
    if not (folder / "processor_config.json").is_file():
        raise CheckpointsError(
            f"{str(dataset_name)!r} is no checkpoints dataset: it has no processor_config.json. "
            "training/collect_checkpoints.py or CheckpointRecorder.save makes one."
        )
    with broken_files(f"The layout in {str(folder)!r}"):
        processor = ParameterProcessor.from_config(read_json(folder / "processor_config.json"))
    splits = {}
    for split in SPLITS:
        parameters, columns = read_shards(folder, split, processor)
        splits[split] = CheckpointSplit(parameters, **columns)
    if not len(splits["train"]):
        raise CheckpointsError(f"The train split of {str(dataset_name)!r} holds no checkpoints.")
    if target_model is None:
        target_model = load_network(folder / "target_model")
    return Checkpoints(
        splits=splits,
        processor=processor,
        target_model=target_model.eval(),
        preprocessing=_read_mapping(folder / "preprocessor_config.json"),
        collection=_read_mapping(folder / "collection.json"),
    )


def _read_mapping(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


class CheckpointRecorder:
    """Records a model's parameter subset from any training loop, in two lines:

    ```python
    recorder = CheckpointRecorder(model, "last_norms")
    for step, batch in enumerate(batches):
        ...
        recorder.record(step)
    recorder.checkpoints().save("checkpoints")
    ```

    Args:
        model: The network in training, or what PEFT made of it; it is read, never changed.
        subset: A preset (`last_norms`, `head`, `adapter`, `full`) or fnmatch patterns on `state_dict()` names.
    """

    def __init__(self, model: nn.Module, subset: str | Sequence[str]) -> None:
        self.model = as_target(model)
        self.processor = make_processor(self.model, subset)
        self.rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}

    def record(self, step: int, split: str = "train", run: str = "run-0", seed: int = 0) -> None:
        """Keeps a copy of the subset as it stands.

        Args:
            step: The checkpoint's place in its run.
            split: `train`, `validation` or `test`.
            run: Name of the independent training it belongs to.
            seed: Seed of that training.

        Raises:
            NonFiniteParametersError: If the training has diverged.
        """
        if split not in SPLITS:
            raise CheckpointsError(f"There is no split {split!r}; a checkpoint belongs to one of {list(SPLITS)}.")
        vector = self.processor.flatten(self.model.state_dict()).cpu()
        self.rows[split].append({"parameters": vector, "run": run, "step": step, "seed": seed})

    def follow(self, model: nn.Module) -> None:
        """Records another network of the same layout from now on, such as that of a further run.

        Raises:
            LayoutError: If it is of another layout.
        """
        self.processor.check_model(as_target(model))
        self.model = as_target(model)

    def state_dict(self) -> dict[str, Any]:
        """Returns the rows, for `Accelerator.register_for_checkpointing`."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes the rows back."""
        self.rows = state_dict["rows"]

    def checkpoints(
        self, preprocessing: dict[str, Any] | None = None, collection: dict[str, Any] | None = None
    ) -> Checkpoints:
        """Returns what was recorded; see `Checkpoints` for the arguments."""
        splits = {split: self._zoo(rows) for split, rows in self.rows.items()}
        return Checkpoints(splits, self.processor, self.model, preprocessing or {}, collection or {})

    def _zoo(self, rows: list[dict[str, Any]]) -> CheckpointSplit:
        vectors = [row["parameters"] for row in rows]
        parameters = torch.stack(vectors) if rows else torch.zeros(0, self.processor.parameter_dim)
        columns = {name: [row[name] for row in rows] for name in ("run", "step", "seed")}
        unknown = [math.nan] * len(rows)
        return CheckpointSplit(parameters, **columns, validation_accuracy=unknown, validation_loss=list(unknown))


def interleaved_splits(
    num_train: int, num_validation: int, num_test: int, num_blocks: int, gap: int
) -> list[str | None]:
    """Assigns the steps of a trajectory to splits in alternating blocks, so that no split is merely later.

    Each of the `num_blocks` rounds is a block of train, validation and test steps, with `gap` unrecorded steps
    (`None`) after each, so that no split holds near-copies of another's checkpoints.

    Raises:
        ValueError: If a count is not divisible by `num_blocks`, or there is nothing to learn from.
    """
    if num_train < 1 or num_blocks < 1:
        raise ValueError(
            f"A zoo needs at least one checkpoint to learn from and one block, but {num_train} in {num_blocks} blocks "
            "were asked for."
        )
    counts = {"train": num_train, "validation": num_validation, "test": num_test}
    uneven = {split: count for split, count in counts.items() if count % num_blocks}
    if uneven:
        raise ValueError(f"{uneven} cannot be divided into {num_blocks} equal blocks; choose multiples of it.")
    one_round: list[str | None] = []
    for split, count in counts.items():
        if count:
            one_round += [split] * (count // num_blocks) + [None] * gap
    steps = one_round * num_blocks
    return steps[: len(steps) - gap]
