"""What may be shared and what may be read: safetensors, JSON, parquet, Markdown and PNG, inside their folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

SHARED_SUFFIXES = (".safetensors", ".json", ".parquet", ".md", ".png")
SHARED_NAMES = ("LICENSE", "LICENSE.txt", ".gitattributes")
TEXT_SUFFIXES = (".json", ".md")
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")


class UnsafeFileError(ValueError):
    """A file may not be shared or read: its kind, its place or its content."""


class BrokenFileError(ValueError):
    """A file is damaged, or does not fit the files beside it."""


def shareable_files(folder: str | os.PathLike, further_suffixes: Iterable[str] = ()) -> list[str]:
    """Returns the files of a folder that go to the Hub, as sorted relative paths; hidden ones stay.

    Raises:
        UnsafeFileError: If there is a file of another kind (a pickle or a training state, say), a link that leads
            out of the folder, or a text with a Hub token in it.
    """
    root = Path(folder).resolve()
    allowed = (*SHARED_SUFFIXES, *further_suffixes)
    names = []
    for path in sorted(p for p in root.rglob("*") if p.is_file() or p.is_symlink()):
        name = path.relative_to(root).as_posix()
        if any(part.startswith(".") for part in name.split("/")) and path.name not in SHARED_NAMES:
            continue
        where = f"{name!r} in {str(folder)!r}"
        if not path.is_file() or not path.resolve().is_relative_to(root):
            raise UnsafeFileError(f"{where} is a link to {path.resolve()}, which is no file of this folder.")
        if path.suffix.lower() not in allowed and path.name not in SHARED_NAMES:
            raise UnsafeFileError(
                f"{where} is not shared: only {', '.join(allowed)} files are. Move it out of the folder (the state of "
                "a training belongs beside it)."
            )
        if path.suffix.lower() in TEXT_SUFFIXES and TOKEN.search(path.read_bytes()):
            raise UnsafeFileError(f"{where} holds what looks like a Hub token; remove it.")
        names.append(name)
    return names


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Tells whether a file's name matches one of the fnmatch patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def require_inside(name: str) -> None:
    """Checks that a file's name in a repository stays inside the folder it is put into.

    Raises:
        UnsafeFileError: If it is absolute, or climbs out.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise UnsafeFileError(f"The file name {name!r} leads out of its repository; nothing of it was read.")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds a mapping.

    Raises:
        BrokenFileError: If it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenFileError(f"{str(path.parent)!r} has no {path.name}, which is needed.") from None
    except (ValueError, RecursionError) as error:
        raise BrokenFileError(f"{str(path)!r} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise BrokenFileError(f"{str(path)!r} must hold a mapping, but holds a {type(content).__name__}.")
    return content


@contextmanager
def broken_files(where: str) -> Iterator[None]:
    """Turns whatever damaged files raise when an object is made from them, which is any error, into one.

    Raises:
        BrokenFileError: If the block fails.
    """
    try:
        yield
    except (BrokenFileError, UnsafeFileError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise BrokenFileError(f"{where} cannot be built from its files ({reason:.500}).") from error
