"""The parquet files of a checkpoints dataset, one row a checkpoint, and the columns that they have."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..targets.processing_parameters import ParameterProcessor
from .parquet_pages import PageError, unpacked_size

SHARD_BYTES = 500 * 2**20
ROW_GROUP_BYTES = 64 * 2**20
BATCH_BYTES = 4 * 2**20  # of vectors that are decoded at a time, which takes five times as much; one at least
# Limits of what is made of a file: of numbers that were trained, zstd halves the bytes, and no more.
LEAST_LIMIT = 64 * 2**20  # bytes that any file may be unpacked to
LARGEST_RATIO = 50  # unpacked bytes for each byte of the file beyond that
LEAST_ROWS = 10_000  # that any file may have; further ones take 8 bytes each at least
# The columns beside `parameters`. A dataset may have any further ones, which are kept and otherwise ignored.
REQUIRED_COLUMNS = {"run": datasets.Value("string"), "step": datasets.Value("int32"), "seed": datasets.Value("int64")}
OPTIONAL_COLUMNS = {
    "validation_score": datasets.Value("float32"),
    "validation_loss": datasets.Value("float32"),
}
COLUMNS = REQUIRED_COLUMNS | OPTIONAL_COLUMNS
FORMER_NAMES = {"validation_accuracy": "validation_score"}  # of columns in datasets of format version 1


class CheckpointsError(ValueError):
    """A checkpoints dataset is missing, incomplete or empty, or its columns do not fit together."""


def missing_value(column: str) -> float | None:
    """Returns what a row has in a column that was not recorded for it: NaN among numbers, None otherwise."""
    return math.nan if COLUMNS.get(column) == datasets.Value("float32") else None


def join_columns(parts: Iterable[tuple[int, Mapping[str, list]]]) -> dict[str, list]:
    """Concatenates the columns of parts (number of rows, columns) that may lack some, known ones first."""
    filled = [(count, columns) for count, columns in parts if count]
    found = dict.fromkeys(name for _, columns in filled for name in columns)
    names = [*REQUIRED_COLUMNS, *(name for name in OPTIONAL_COLUMNS if name in found)]
    names += [name for name in found if name not in COLUMNS]
    return {
        name: [value for count, columns in filled for value in columns.get(name, [missing_value(name)] * count)]
        for name in names
    }


def checkpoint_features(
    parameter_dim: int, columns: Mapping[str, list], condition_dim: int | None = None
) -> datasets.Features:
    """Returns the columns of a checkpoints dataset with their types, of unknown ones by their values.

    `condition_dim` is the length of the vectors in column `condition`, None of a zoo without conditions.
    """
    known = dict(COLUMNS)
    if condition_dim is not None:
        known["condition"] = datasets.List(datasets.Value("float32"), length=condition_dim)
    unknown = {name: _to_arrow(name, values).type for name, values in columns.items() if name not in known}
    features = {"parameters": datasets.List(datasets.Value("float32"), length=parameter_dim)}
    features |= {name: known[name] for name in columns if name in known}
    return datasets.Features(features | datasets.Features.from_arrow_schema(pa.schema(unknown)))


def _to_arrow(name: str, values: Sequence[Any], type: pa.DataType | None = None) -> pa.Array:
    try:
        return pa.array(values, type)
    except (pa.ArrowException, OverflowError) as error:
        wanted = "one type" if type is None else f"type {type}"
        raise CheckpointsError(f"The values of column {name!r} must be of {wanted}, but are not: {error}.") from error


def write_shards(
    folder: Path, split: str, parameters: torch.Tensor, columns: Mapping[str, list], features: datasets.Features
) -> None:
    """Writes vectors `(n, D)` and columns of n values as parquet files of at most `SHARD_BYTES`.

    What `columns` lacks of the `features` of the whole dataset is written as missing.
    """
    count, width = parameters.shape
    shards = max(1, math.ceil(parameters.nbytes / SHARD_BYTES))
    schema = features.arrow_schema
    for i, rows in enumerate(np.array_split(np.arange(count), shards)):
        chosen = slice(rows[0], rows[-1] + 1)
        values = parameters[chosen].to(torch.float32).contiguous().numpy()
        arrays = [pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)]
        for column in list(schema)[1:]:
            own = columns.get(column.name, [missing_value(column.name)] * count)
            arrays.append(_to_arrow(column.name, own[chosen], column.type))
        # Without dictionary encoding and with the bytes of the floats split into streams, zstd finds something.
        pq.write_table(
            pa.table(arrays, names=schema.names).cast(schema),
            folder / f"{split}-{i:05d}-of-{shards:05d}.parquet",
            compression="zstd",
            use_dictionary=["run"],
            column_encoding={"parameters.list.element": "BYTE_STREAM_SPLIT"},
            row_group_size=max(1, ROW_GROUP_BYTES // (4 * width)),
            write_page_index=True,
            write_page_checksum=True,
        )


def read_shards(
    folder: Path, split: str, processor: ParameterProcessor, condition_dim: int | None = None
) -> tuple[torch.Tensor, dict[str, list]]:
    """Reads one split: its finite vectors `(n, D)` float32 and the other columns; `CheckpointsError` if damaged.

    With `condition_dim` each row must have a condition of so many numbers.
    """
    shards = sorted((folder / "data").glob(f"{split}-*.parquet"))
    numbered = re.fullmatch(r".*-of-(\d+)", shards[0].stem) if shards else None
    expected = int(numbered[1]) if numbered else 0
    if len(shards) != expected:
        raise CheckpointsError(f"{str(folder)!r} has {len(shards)} of the {expected} shards of its {split} split.")
    if processor.parameter_dim >= 2**31:
        raise CheckpointsError(f"No row holds the {processor.parameter_dim} numbers of the layout in {str(folder)!r}.")
    names = [*REQUIRED_COLUMNS, *(() if condition_dim is None else ("condition",))]
    required = checkpoint_features(processor.parameter_dim, {name: [] for name in names}, condition_dim).arrow_schema
    counts = [_count_rows(shard, required, 4 * processor.parameter_dim) for shard in shards]
    parameters = torch.empty(sum(counts), processor.parameter_dim)
    tables = [_read_into(rows, shard) for rows, shard in zip(parameters.split(counts), shards, strict=True)]
    try:
        table = pa.concat_tables(
            tables or [required.empty_table().drop_columns("parameters")], promote_options="default"
        )
    except pa.ArrowException as error:
        raise CheckpointsError(f"The shards of the {split} split of {str(folder)!r} do not fit: {error}.") from error
    if any(table[name].null_count for name in required.names[1:]):
        raise CheckpointsError(f"The {split} split of {str(folder)!r} has rows with empty fields; it is damaged.")
    processor.check(parameters)
    columns = {}
    for name in table.column_names:
        missing = missing_value(name)
        try:
            columns[name] = [missing if value is None else value for value in table[name].to_pylist()]
        except (ValueError, OverflowError) as error:  # such as a date after the year 9999
            raise CheckpointsError(f"Column {name!r} of {str(folder)!r} cannot be read: {error}.") from error
    return parameters, columns


@contextmanager
def _opened(shard: Path) -> Iterator[pq.ParquetFile]:
    """Opens a file that is read as a stream; `CheckpointsError` if it is damaged where the block reads it."""
    try:
        with pq.ParquetFile(shard, page_checksum_verification=True, buffer_size=2**20, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, PageError, OSError, RuntimeError, UnicodeDecodeError) as error:
        raise CheckpointsError(f"{str(shard)!r} is not a valid parquet file: {error}") from error


def _names(file: pq.ParquetFile) -> list[str]:
    return [FORMER_NAMES.get(name, name) for name in file.schema_arrow.names]


def _count_rows(shard: Path, required: pa.Schema, row_bytes: int) -> int:
    """Returns the number of rows of a file with the required columns, which it has bytes for."""
    with _opened(shard) as file:
        names, metadata = _names(file), file.metadata
        if len(set(names)) < len(names):
            raise CheckpointsError(f"{shard.name} has two columns of one name among {names}; rename one.")
        types = dict(zip(names, file.schema_arrow.types, strict=True))
        optional = [column for column in datasets.Features(OPTIONAL_COLUMNS).arrow_schema if column.name in types]
        for column in [*required, *optional]:
            if types.get(column.name) != column.type:
                raise CheckpointsError(
                    f"{shard.name} has the columns {names}, with {column.name!r} of type "
                    f"{types.get(column.name, 'none')}, but {column.type} is needed for the layout and format; it "
                    "is of another layout, or damaged."
                )
        held, values = unpacked_size(shard, metadata)
        if metadata.num_rows * row_bytes > held:
            raise CheckpointsError(
                f"{shard.name} claims {metadata.num_rows} rows of {row_bytes} bytes, but holds {held} "
                "bytes; it is damaged."
            )
        _require_bounded(file, shard, held, values)
        return metadata.num_rows


def _read_into(rows: torch.Tensor, shard: Path) -> pa.Table:
    """Fills `rows`, `(n, D)` float32, with the vectors of a file, batch by batch, and returns the other columns."""
    place, filled, rest = rows.numpy(), 0, []
    with _opened(shard) as file:
        names = _names(file)
        others = [i for i, name in enumerate(names) if name != "parameters"]
        size = max(1, BATCH_BYTES // max(1, 4 * rows.shape[1]))
        for group in range(file.num_row_groups):  # each with a reader of its own, which keeps buffers to its end
            for batch in file.iter_batches(size, row_groups=[group]):
                batch.validate(full=True)
                values = batch.column(names.index("parameters")).flatten().to_numpy(zero_copy_only=False)
                part = place[filled : filled + len(batch)]
                if values.size != part.size:
                    raise CheckpointsError(f"{shard.name} has rows with empty fields; it is damaged.")
                part[:] = values.reshape(part.shape)
                filled += len(batch)
                rest.append(batch.select(others))
                del batch, values  # before the next one is decoded
        if filled != len(rows):
            raise CheckpointsError(f"{shard.name} claims {len(rows)} rows, but has {filled}; it is damaged.")
        schema = pa.schema([file.schema_arrow.field(i) for i in others])
        table = pa.Table.from_batches(rest, schema)
        return table.rename_columns([names[i] for i in others])


def _require_bounded(file: pq.ParquetFile, shard: Path, held: int, values: int) -> None:
    """Raises `CheckpointsError` if a file would take far more memory than it has bytes.

    Its pages are unpacked to `held` bytes and that many values, each of 4 bytes or more; repeated ones take none.
    """
    size, found = shard.stat().st_size, file.schema_arrow.names
    limit, others = LEAST_LIMIT + LARGEST_RATIO * size, [name for name in found if name != "parameters"]
    unpacked = max(held, 4 * values)
    if unpacked <= limit:  # each row may repeat one large value of a dictionary
        unpacked = 0
        for batch in file.iter_batches(max(1, limit // max(held, 1)), columns=others):
            unpacked += batch.nbytes
            if unpacked > limit:
                break
    if unpacked > limit or file.metadata.num_rows > LEAST_ROWS + size // 8:
        raise CheckpointsError(
            f"{shard.name} has {size} bytes, but its {file.metadata.num_rows} rows would take {unpacked} and more in "
            "memory, as no trained networks do; it is not read."
        )
