"""What the pages of a parquet file will be unpacked to, as their own headers state it; its footer may lie."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

LEAST_PAGES = 10_000  # that any file may have
BYTES_OF_PAGE = 1_000  # of the file, for each page beyond that
DEEPEST = 8  # structs inside of one another in a page header, of which the format has two
# Types of Thrift's compact protocol, in which page headers are written.
BOOLEANS, BYTE, INTEGERS, DOUBLE, BINARY, STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, 12

Content = bytes | mmap.mmap


class PageError(ValueError):
    """A page header is damaged, or there are too many."""


def unpacked_size(path: Path, metadata: pq.FileMetaData) -> tuple[int, int]:
    """Returns the bytes and the number of values that all pages of a file are unpacked to.

    Raises:
        PageError: If a page header cannot be read, or there are more pages than such a file can have.
    """
    size = values = count = 0
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for column in (group.column(i) for group in groups for i in range(metadata.num_columns)):
            starts = (column.dictionary_page_offset, column.data_page_offset)
            start = min(offset for offset in starts if offset is not None and offset > 0)
            for header in _page_headers(content, start, start + column.total_compressed_size):
                size, count = size + header[2], count + 1
                # Of the header of a data page, a dictionary page, or a data page of the second version.
                values += sum(header[kind].get(1, 0) for kind in (5, 7, 8) if isinstance(header.get(kind), dict))
                if count > LEAST_PAGES + len(content) // BYTES_OF_PAGE:
                    raise PageError(f"it has more than {count - 1} pages")
    return size, values


def _page_headers(content: Content, position: int, end: int) -> Iterator[dict[int, Any]]:
    """Yields the fields of each page header by their numbers: 2 is the unpacked, 3 the packed size of its page."""
    while position < end:
        try:
            header, position = _struct(content, position)
        except IndexError as error:
            raise PageError("a page header is cut off") from error
        if not all(isinstance(header.get(field), int) and header[field] >= 0 for field in (2, 3)):
            raise PageError("a page header states no sizes")
        yield header
        position += header[3]


def _struct(content: Content, position: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Returns the integers and structs among the fields of a struct, by their numbers, and the position after it."""
    if depth > DEEPEST:
        raise PageError("a page header is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while kind := content[position]:
        position += 1
        if kind >> 4:
            number += kind >> 4
        else:
            number, position = _integer(content, position)
        fields[number], position = _value(content, position, kind & 15, depth)
    return fields, position + 1


def _value(content: Content, position: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in BOOLEANS:
        return None, position
    if kind in INTEGERS:
        return _integer(content, position)
    if kind == STRUCT:
        return _struct(content, position, depth + 1)
    if kind in (BYTE, DOUBLE):
        return None, position + (1 if kind == BYTE else 8)
    if kind == BINARY:
        length, position = _varint(content, position)
        return None, position + length
    raise PageError(f"a page header has a field of type {kind}")


def _integer(content: Content, position: int) -> tuple[int, int]:
    """Returns a signed integer, whose lowest bit is its sign."""
    number, position = _varint(content, position)
    return (number >> 1) ^ -(number & 1), position


def _varint(content: Content, position: int) -> tuple[int, int]:
    """Returns an unsigned integer, seven bits in each byte, the lowest first."""
    number = shift = 0
    while shift < 70:
        byte = content[position]
        number, position, shift = number | (byte & 127) << shift, position + 1, shift + 7
        if byte < 128:
            return number, position
    raise PageError("a page header has an integer that is too long")
