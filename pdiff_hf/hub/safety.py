"""What may be shared and what may be read: safetensors, JSON, parquet, Markdown and PNG, inside their folder."""

from __future__ import annotations

import html
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
BINARY_SUFFIXES = (".safetensors", ".parquet", ".png")
BINARY_HEAD = 2**20  # bytes at the beginning of a binary file, where its metadata are, that are searched for tokens
LARGEST_JSON = 10 * 2**20  # bytes
LONGEST_INTEGER = 40  # digits
CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's SHA-1 of a small file, SHA-256 of a large one
# Of users and organizations, and those that a login (OAuth) or a job (JWT, three parts with dots) receives.
TOKEN = re.compile(r"(?:hf|api_org)_[A-Za-z0-9]{30,}|hf_[a-z]+_[A-Za-z0-9]{20,}")
ESCAPED = re.compile(r"(?:\\u00|\\U000000|\\x|%)([0-7][0-9A-Fa-f])")


class UnsafeFileError(ValueError):
    """A file may not be shared or read: its kind, its place or its content."""


class BrokenFileError(ValueError):
    """A file is damaged, or does not fit the files beside it."""


def require_own(path: Path, folder: Path) -> None:
    """Checks that a path is a regular file inside a folder; a file of the Hub's cache is inside a snapshot.

    Raises:
        UnsafeFileError: If it is a link that leads out of the folder, a device or a pipe.
        BrokenFileError: If it is a JSON file of more than `LARGEST_JSON` bytes.
    """
    root, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    if not real.is_relative_to(root) and not _is_cached(root, real):
        raise UnsafeFileError(f"{str(path)!r} is a link to {str(real)!r}, which is no file of this folder.")
    if not real.is_file():
        raise UnsafeFileError(f"{str(path)!r} is no regular file, but a pipe, a device or a link that leads nowhere.")
    if path.suffix == ".json" and real.stat().st_size > LARGEST_JSON:
        raise BrokenFileError(f"{str(path)!r} has more than {LARGEST_JSON} bytes, which no such file needs.")


def _is_cached(root: Path, real: Path) -> bool:
    """Tells whether `real` is a blob of the repository, or shared by all, whose snapshot holds `root`."""
    repository = next((place.parents[1] for place in (root, *root.parents) if place.parent.name == "snapshots"), None)
    blobs = () if repository is None else (repository / "blobs", repository.parent / "blobs")
    return any(real.is_relative_to(place) for place in blobs)


def own_files(folder: Path, patterns: Iterable[str]) -> list[str]:
    """Returns the sorted names of the files in a folder and its subfolders that match fnmatch patterns.

    Raises:
        UnsafeFileError, BrokenFileError: If one of them should not be read, see `require_own`.
    """
    patterns, names = list(patterns), []
    for path in sorted((*folder.glob("*"), *folder.glob("*/*"))):
        name = path.relative_to(folder).as_posix()
        if matches(name, patterns) and not path.is_dir():
            require_own(path, folder)
            names.append(name)
    return names


def printable(text: object) -> str:
    """Returns a text on one line without control characters, which could command a terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in str(text))


def shareable_files(folder: str | os.PathLike, further_suffixes: Iterable[str] = ()) -> list[str]:
    """Returns the files of a folder that go to the Hub, as sorted relative paths; hidden ones stay.

    Raises:
        UnsafeFileError: If there is a file of another kind (a pickle or a training state, say), a link that leads
            out of the folder, or a file with a Hub token in it.
        BrokenFileError: If a JSON file is too large.
    """
    root = Path(folder).resolve()
    allowed = (*SHARED_SUFFIXES, *further_suffixes)
    names = []
    for path in sorted(p for p in root.rglob("*") if p.is_symlink() or not p.is_dir()):
        name = path.relative_to(root).as_posix()
        if any(part.startswith(".") for part in name.split("/")) and path.name not in SHARED_NAMES:
            continue
        where = f"{name!r} in {str(folder)!r}"
        require_own(path, root)
        if path.suffix.lower() not in allowed and path.name not in SHARED_NAMES:
            raise UnsafeFileError(
                f"{where} is not shared: only {', '.join(allowed)} files are. Move it out of the folder (the state of "
                "a training belongs beside it)."
            )
        if holds_token(path):
            raise UnsafeFileError(f"{where} holds what looks like a Hub token; remove it.")
        names.append(name)
    return names


def holds_token(path: Path) -> bool:
    """Tells whether a file has a Hub token in it, be it in UTF-16 or escaped; of a binary one its head is searched."""
    with path.open("rb") as file:
        content = file.read(BINARY_HEAD if path.suffix.lower() in BINARY_SUFFIXES else -1)
    text = content.replace(b"\0", b"").decode("latin-1")
    if TOKEN.search(text):
        return True
    plain = html.unescape(ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)).replace("\\", "")
    return TOKEN.search(plain) is not None


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
        BrokenFileError: If it is missing, damaged or too large.
        UnsafeFileError: If it is no regular file of its folder.
    """
    if not os.path.lexists(path):
        raise BrokenFileError(f"{str(path.parent)!r} has no {path.name}, which is needed.")
    require_own(path, path.parent)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_int=_parse_integer)
    except (ValueError, RecursionError) as error:
        raise BrokenFileError(f"{str(path)!r} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise BrokenFileError(f"{str(path)!r} must hold a mapping, but holds a {type(content).__name__}.")
    return content


def _parse_integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:  # such integers multiply in no time to what cannot be printed
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


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
