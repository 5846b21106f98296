"""The parquet files of a checkpoints dataset, one row a checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..targets.processing_parameters import ParameterProcessor

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


def write_shards(folder: Path, split: str, parameters: torch.Tensor, columns: Mapping[str, list]) -> None:
    """Writes the rows of one split as parquet files of at most `SHARD_BYTES`.

    Args:
        folder: Where; `datasets.load_dataset` finds them by their names.
        split: Its name.
        parameters: `(n, D)` float32.
        columns: The other columns, n values each.
    """
    count, width = parameters.shape
    shards = max(1, math.ceil(parameters.nbytes / SHARD_BYTES))
    schema = checkpoint_features(width).arrow_schema
    for i, rows in enumerate(np.array_split(np.arange(count), shards)):
        values = parameters[rows[0] : rows[-1] + 1].to(torch.float32).contiguous().numpy()
        table = {"parameters": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)}
        for name in schema.names[1:]:
            table[name] = pa.array(columns[name][rows[0] : rows[-1] + 1])
        # Without dictionary encoding and with the bytes of the floats split into streams, zstd finds something.
        pq.write_table(
            pa.table(table).cast(schema),
            folder / f"{split}-{i:05d}-of-{shards:05d}.parquet",
            compression="zstd",
            use_dictionary=["run"],
            column_encoding={"parameters.list.element": "BYTE_STREAM_SPLIT"},
            row_group_size=max(1, ROW_GROUP_BYTES // (4 * width)),
            write_page_index=True,
            write_page_checksum=True,
        )


def read_shards(folder: Path, split: str, processor: ParameterProcessor) -> tuple[torch.Tensor, dict[str, list]]:
    """Reads one split: its vectors `(n, D)` float32 and the other columns.

    Raises:
        CheckpointsError: If files are missing, damaged, or do not have the columns of the layout.
        NonFiniteParametersError: If a vector is not finite.
    """
    shards = sorted((folder / "data").glob(f"{split}-*.parquet"))
    numbered = re.fullmatch(r".*-of-(\d+)", shards[0].stem) if shards else None
    expected = int(numbered[1]) if numbered else 0
    if len(shards) != expected:
        raise CheckpointsError(f"{str(folder)!r} has {len(shards)} of the {expected} shards of its {split} split.")
    if processor.parameter_dim >= 2**31:
        raise CheckpointsError(f"No row holds the {processor.parameter_dim} numbers of the layout in {str(folder)!r}.")
    schema = checkpoint_features(processor.parameter_dim).arrow_schema
    tables = [_read_shard(shard, schema, 4 * processor.parameter_dim) for shard in shards]
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    values = table["parameters"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if values.size != len(table) * processor.parameter_dim or any(table[name].null_count for name in schema.names):
        raise CheckpointsError(f"The {split} split of {str(folder)!r} has rows with empty fields; it is damaged.")
    parameters = torch.from_numpy(values.reshape(-1, processor.parameter_dim).copy())
    processor.check(parameters)
    return parameters, {name: table[name].to_pylist() for name in schema.names[1:]}


def _read_shard(shard: Path, schema: pa.Schema, row_bytes: int) -> pa.Table:
    try:
        with pq.ParquetFile(shard, page_checksum_verification=True) as file:
            found, metadata = file.schema_arrow, file.metadata
            if not found.equals(schema):
                raise CheckpointsError(
                    f"{shard.name} has the columns {found.names} with vectors of type "
                    f"{found.field('parameters').type if 'parameters' in found.names else 'none'}, but the layout "
                    f"asks for {schema.names} with {schema.field('parameters').type}."
                )
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            held = sum(g.column(c).total_uncompressed_size for g in groups for c in range(metadata.num_columns))
            if metadata.num_rows * row_bytes > held:
                raise CheckpointsError(
                    f"{shard.name} says that it has {metadata.num_rows} rows of {row_bytes} bytes, but holds {held} "
                    "bytes; it is damaged."
                )
            table = file.read()
            table.validate(full=True)
            return table
    except (pa.ArrowException, OSError, RuntimeError, UnicodeDecodeError) as error:
        raise CheckpointsError(f"{str(shard)!r} is no whole parquet file: {error}") from error
