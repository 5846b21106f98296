"""Folders and files that are written atomically."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path


class UnwritableFolderError(OSError):
    """A folder cannot be written to."""


def require_writable_folder(folder: str | os.PathLike) -> None:
    """Raises `UnwritableFolderError` if the parent folder cannot be made or written to, or `folder` is a file."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UnwritableFolderError(f"Cannot write the folder {str(folder)!r}: there is a file of that name.")
    _temporary_beside(folder).rmdir()


@contextmanager
def replace_folder(folder: str | os.PathLike, stale: str | None = None) -> Iterator[Path]:
    """Yields an empty temporary folder that takes the place of `folder` when the block ends without an error.

    Files and folders of the old one that the new one does not have are carried over, except those that match `stale`.
    Raises what `require_writable_folder` raises.
    """
    folder = Path(folder)
    require_writable_folder(folder)
    temporary = _temporary_beside(folder)
    try:
        yield temporary
        temporary.chmod(0o755)
        if folder.exists():
            for kept in folder.iterdir():
                if not (temporary / kept.name).exists() and not (stale and fnmatchcase(kept.name, stale)):
                    copy = shutil.copytree if kept.is_dir() else shutil.copy2
                    copy(kept, temporary / kept.name)
            old = _temporary_beside(folder)
            folder.rename(old / folder.name)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file under a temporary name, then renames it."""
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        (temporary / path.name).write_text(text, encoding="utf-8")
        (temporary / path.name).replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | os.PathLike, content: dict) -> None:
    """Writes a JSON file under a temporary name, then renames it; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _temporary_beside(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise UnwritableFolderError(
            f"Cannot write {str(path)!r}: its folder {str(path.parent)!r} cannot be written to ({error.strerror}). "
            "Choose another output folder or fix its permissions."
        ) from error


def shipped_folder(name: str) -> Path:
    """Returns `model_cards` or `recipes`: inside an installed package, or at its place in a checkout."""
    package = Path(__file__).parent
    places = (package / name, package.parent / name, package.parent / "training" / name)
    return next(place for place in places if place.is_dir())
