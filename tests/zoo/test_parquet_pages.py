"""Parquet files whose footer or page headers lie are refused before memory is taken for their pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pdiff_hf import Checkpoints, CheckpointsError, load_checkpoints
from pdiff_hf.zoo.parquet_pages import PageError, _page_headers, unpacked_size

TRAIN = "data/train-00000-of-00001.parquet"
LARGE = 100 * 2**20  # bytes that a row claims, or takes


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Asserts that nothing large is allocated for tables in the block."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        yield
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < LARGE / 10


def varint(number: int, length: int | None = None) -> bytes:
    """Returns the bytes of a signed integer, as many as asked for."""
    number, content = 2 * number, []
    while number or not content:
        content.append(number & 127)
        number >>= 7
    content += [0] * ((length or 0) - len(content))
    return bytes([*(byte | 128 for byte in content[:-1]), content[-1]])


def replace(path: Path, number: int, other: int, footer: bool) -> None:
    """Replaces an integer everywhere in the footer of a parquet file, or everywhere before it."""
    content = path.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    old = varint(number)
    assert old in (content[start:] if footer else content[:start])
    parts = [content[:start], content[start:]]
    parts[footer] = parts[footer].replace(old, varint(other, len(old)))
    path.write_bytes(b"".join(parts))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_sizes_and_values_of_an_honest_file_are_those_of_its_footer(tmp_path: Path, version: str):
    table = pa.table({"a": [0.5] * 50_000, "s": ["x" * (i % 7) for i in range(50_000)], "l": [[1, 2]] * 50_000})
    pq.write_table(
        table,
        tmp_path / "file",
        compression="zstd",
        use_dictionary=["s"],
        data_page_version=version,
        data_page_size=10_000,
        row_group_size=20_000,
    )
    metadata = pq.read_metadata(tmp_path / "file")
    columns = [metadata.row_group(i).column(c) for i in range(metadata.num_row_groups) for c in range(3)]

    size, values = unpacked_size(tmp_path / "file", metadata)

    stated = sum(column.total_uncompressed_size for column in columns)  # with the page headers
    assert 0.9 * stated < size < stated
    assert values == sum(column.num_values for column in columns) + 3 * 7  # entries of the dictionaries


@pytest.fixture
def swollen(tiny_checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A zoo with one large value, which is packed into a few bytes."""
    tiny_checkpoints.save(tmp_path)
    table = pq.read_table(tmp_path / TRAIN).append_column("note", pa.array(["x" * LARGE] + [""] * 23))
    pq.write_table(table, tmp_path / TRAIN, compression="zstd", use_dictionary=False, write_statistics=False)
    assert (tmp_path / TRAIN).stat().st_size < LARGE / 1000
    return tmp_path


def last_column(zoo: Path) -> pq.ColumnChunkMetaData:
    metadata = pq.read_metadata(zoo / TRAIN)
    return metadata.row_group(0).column(metadata.num_columns - 1)


def test_footer_that_lies_about_unpacked_sizes_costs_no_page(swollen: Path):
    replace(swollen / TRAIN, last_column(swollen).total_uncompressed_size, 200, footer=True)
    assert last_column(swollen).total_uncompressed_size == 200

    with (
        bounded_memory(),
        pytest.raises(CheckpointsError, match=r"its 24 rows would take 1048\d{5} and more"),
    ):
        load_checkpoints(swollen)


def test_page_that_lies_about_its_size_is_not_unpacked_further(swollen: Path):
    replace(swollen / TRAIN, last_column(swollen).total_uncompressed_size, 200, footer=True)
    start = last_column(swollen).data_page_offset
    (header,) = _page_headers((swollen / TRAIN).read_bytes(), start, start + 1)
    replace(swollen / TRAIN, header[2], 300, footer=False)

    with bounded_memory(), pytest.raises(CheckpointsError, match="is not a valid parquet file"):
        load_checkpoints(swollen)


def test_damaged_page_header_is_named(swollen: Path):
    content = bytearray((swollen / TRAIN).read_bytes())
    content[last_column(swollen).data_page_offset] = 0x1D
    (swollen / TRAIN).write_bytes(content)

    with pytest.raises(CheckpointsError, match="is not a valid parquet file: a page header has a field of type 13"):
        load_checkpoints(swollen)
    with pytest.raises(PageError, match="a page header"):
        unpacked_size(swollen / TRAIN, pq.read_metadata(swollen / TRAIN))
