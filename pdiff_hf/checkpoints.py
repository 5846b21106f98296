"""Checkpoint zoos: recorded from any training loop, stored as parquet, read back as one matrix."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import nn
from transformers import PreTrainedModel

from .adapters import as_target
from .folders import replace_folder, write_json
from .processing_parameters import ParameterProcessor
from .targets import draw_network, load_target_model, make_processor

SPLITS = ("train", "validation", "test")
SHARD_BYTES = 500 * 2**20
ROW_GROUP_BYTES = 64 * 2**20


class CheckpointsError(ValueError):
    """A checkpoints dataset is missing, incomplete or empty."""


def checkpoint_features(parameter_dim: int) -> datasets.Features:
    """Returns the columns of a checkpoints dataset; one row is one checkpoint."""
    return datasets.Features(
        {
            "parameters": datasets.List(datasets.Value("float32"), length=parameter_dim),
            "run": datasets.Value("string"),
            "step": datasets.Value("int32"),
            "seed": datasets.Value("int64"),
            "validation_accuracy": datasets.Value("float32"),
            "validation_loss": datasets.Value("float32"),
        }
    )


@dataclass
class CheckpointZoo:
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

    def take(self, chosen: Sequence[bool]) -> CheckpointZoo:
        """Returns the checkpoints for which `chosen`, one for each, is true."""
        rows = [i for i, keep in enumerate(chosen) if keep]
        columns = ("run", "step", "seed", "validation_accuracy", "validation_loss")
        return CheckpointZoo(
            self.parameters[rows], **{name: [getattr(self, name)[i] for i in rows] for name in columns}
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

    splits: dict[str, CheckpointZoo]
    processor: ParameterProcessor
    target_model: PreTrainedModel
    preprocessing: dict[str, Any] = field(default_factory=dict)
    collection: dict[str, Any] = field(default_factory=dict)

    @property
    def zoo(self) -> CheckpointZoo:
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
        average = draw_network(self.target_model, self.processor, self.zoo.parameters.mean(0))
        with replace_folder(folder) as temporary:
            (temporary / "data").mkdir()
            for split, zoo in self.splits.items():
                if len(zoo):
                    _write_shards(temporary / "data", split, zoo)
            self.processor.save_pretrained(temporary)
            average.save_pretrained(temporary / "target_model")
            if self.preprocessing:
                write_json(temporary / "preprocessor_config.json", self.preprocessing)
            write_json(temporary / "collection.json", self.collection)


def _write_shards(folder: Path, split: str, zoo: CheckpointZoo) -> None:
    count, width = zoo.parameters.shape
    shards = max(1, math.ceil(zoo.parameters.nbytes / SHARD_BYTES))
    schema = checkpoint_features(width).arrow_schema
    for i, rows in enumerate(np.array_split(np.arange(count), shards)):
        values = zoo.parameters[rows[0] : rows[-1] + 1].to(torch.float32).contiguous().numpy()
        columns = {"parameters": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)}
        for name in schema.names[1:]:
            columns[name] = pa.array(getattr(zoo, name)[rows[0] : rows[-1] + 1])
        # Without dictionary encoding and with the bytes of the floats split into streams, zstd finds something.
        pq.write_table(
            pa.table(columns).cast(schema),
            folder / f"{split}-{i:05d}-of-{shards:05d}.parquet",
            compression="zstd",
            use_dictionary=["run"],
            column_encoding={"parameters.list.element": "BYTE_STREAM_SPLIT"},
            row_group_size=max(1, ROW_GROUP_BYTES // (4 * width)),
            write_page_index=True,
        )


def load_checkpoints(
    dataset_name: str | os.PathLike, target_model: PreTrainedModel | None = None, revision: str | None = None
) -> Checkpoints:
    """Reads a checkpoints dataset from a folder, or from the Hub.

    Args:
        dataset_name: A folder that `Checkpoints.save` wrote, or the id of a dataset repository.
        target_model: The target, if its class is neither in transformers nor defined in this process.
        revision: Branch, tag or commit on the Hub.

    Raises:
        CheckpointsError: If files are missing or the zoo is empty.
        UnknownTargetError: If the target's class is not to be found.
    """
    folder = Path(dataset_name)
    if not folder.is_dir():
        if str(dataset_name).count("/") != 1 or str(dataset_name).startswith((".", "/")):
            raise CheckpointsError(f"There is no checkpoints dataset at {str(dataset_name)!r}: no such folder.")
        try:
            folder = Path(snapshot_download(str(dataset_name), repo_type="dataset", revision=revision))
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise CheckpointsError(
                f"There is no checkpoints dataset at {str(dataset_name)!r}: no such folder, and none that can be "
                "read on the Hub."
            ) from error
    if not (folder / "processor_config.json").is_file():
        raise CheckpointsError(
            f"{str(dataset_name)!r} is no checkpoints dataset: it has no processor_config.json. "
            "training/collect_checkpoints.py or CheckpointRecorder.save makes one."
        )
    processor = ParameterProcessor.from_pretrained(folder)
    splits = {split: _read_shards(folder, split, processor) for split in SPLITS}
    if not len(splits["train"]):
        raise CheckpointsError(f"The train split of {str(dataset_name)!r} holds no checkpoints.")
    if target_model is None:
        target_model = load_target_model(folder / "target_model")
    return Checkpoints(
        splits=splits,
        processor=processor,
        target_model=target_model.eval(),
        preprocessing=_read_json(folder / "preprocessor_config.json"),
        collection=_read_json(folder / "collection.json"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _read_shards(folder: Path, split: str, processor: ParameterProcessor) -> CheckpointZoo:
    shards = sorted((folder / "data").glob(f"{split}-*.parquet"))
    expected = int(shards[0].stem.rpartition("-")[2]) if shards else 0
    if len(shards) != expected:
        raise CheckpointsError(f"{str(folder)!r} has {len(shards)} of the {expected} shards of its {split} split.")
    schema = checkpoint_features(processor.parameter_dim).arrow_schema
    tables = [pq.read_table(shard) for shard in shards]
    for shard, table in zip(shards, tables, strict=True):
        if not table.schema.equals(schema):
            raise CheckpointsError(
                f"{shard.name} has the columns {table.schema.names} with vectors of type "
                f"{table.schema.field('parameters').type if 'parameters' in table.schema.names else 'none'}, but the "
                f"layout asks for {schema.names} with {schema.field('parameters').type}."
            )
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    values = table["parameters"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    parameters = torch.from_numpy(values.reshape(-1, processor.parameter_dim).copy())
    processor.check(parameters)
    return CheckpointZoo(parameters, **{name: table[name].to_pylist() for name in schema.names[1:]})


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

    def _zoo(self, rows: list[dict[str, Any]]) -> CheckpointZoo:
        vectors = [row["parameters"] for row in rows]
        parameters = torch.stack(vectors) if rows else torch.zeros(0, self.processor.parameter_dim)
        columns = {name: [row[name] for row in rows] for name in ("run", "step", "seed")}
        unknown = [math.nan] * len(rows)
        return CheckpointZoo(parameters, **columns, validation_accuracy=unknown, validation_loss=list(unknown))


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
