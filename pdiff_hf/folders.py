"""Folders and files that are written atomically."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EEXIST, ENOTEMPTY
from fnmatch import fnmatchcase
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]

STAGED = ".pdiff_hf-"  # beginning of the names of what is not finished
READY = f"{STAGED}ready"  # the complete new content of a folder, while its entries replace the old ones


class UnwritableFolderError(OSError):
    """A folder cannot be written to."""


def require_writable_folder(folder: str | os.PathLike) -> None:
    """Raises `UnwritableFolderError` if `folder` cannot be made or written to, or is a file."""
    target = Path(os.path.realpath(folder))
    if target.exists() and not target.is_dir():
        raise UnwritableFolderError(f"Cannot write the folder {str(folder)!r}: there is a file of that name.")
    with _staging(target):
        pass


@contextmanager
def replace_folder(folder: str | os.PathLike, stale: str | None = None) -> Iterator[Path]:
    """Yields an empty temporary folder whose content replaces that of `folder` when the block ends without an error.

    A new folder appears with one rename. Into an existing one, through a link or not, each entry is renamed from a
    complete copy; `finish_replacing` finishes what a killed process has begun. Entries that the new content does not
    have stay, except those that match `stale`. Modes and groups are those of the umask and the parent folder.
    Raises what `require_writable_folder` raises.
    """
    require_writable_folder(folder)
    target = Path(os.path.realpath(folder))
    with _staging(target) as staging:
        yield staging
        mode = staging.stat().st_mode & 0o666
        for file in (path for path in staging.rglob("*") if path.is_file()):
            file.chmod(mode)  # safetensors writes files that their owner alone can read
        if not target.exists():
            staging.rename(target)
            return
        for old in target.iterdir() if stale else ():
            if fnmatchcase(old.name, stale or "") and not (staging / old.name).exists():
                (staging / old.name).mkdir()
        while True:
            finish_replacing(target)
            try:
                staging.rename(target / READY)
                break
            except OSError as error:
                if error.errno not in (EEXIST, ENOTEMPTY):  # another process writes the same folder
                    raise
        _move_entries(target)


def finish_replacing(folder: str | os.PathLike) -> None:
    """Waits for a process that replaces the content of `folder`, and finishes what a killed one has begun.

    Raises:
        UnwritableFolderError: If there is something to finish, but the folder cannot be written to.
    """
    ready = Path(folder, READY)
    if ready.is_dir() and not ready.is_symlink():
        with suppress(FileNotFoundError), _lock(ready):
            _move_entries(Path(folder))


def _move_entries(folder: Path) -> None:
    """Moves the entries of the ready content to their places; an empty folder only removes the old one."""
    with _staging(folder) as old:
        for entry in sorted((folder / READY).iterdir()):
            place = folder / entry.name
            with suppress(FileNotFoundError):  # another process has moved it
                if entry.is_dir() or place.is_dir():
                    with suppress(FileNotFoundError):
                        place.rename(old / entry.name)
                if entry.is_dir() and not any(entry.iterdir()):
                    entry.rmdir()
                else:
                    entry.replace(place)
        with suppress(OSError):  # another process has removed it, or put its own there
            (folder / READY).rmdir()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file under a temporary name, then renames it."""
    path = Path(path)
    with _staging(path) as staging:
        (staging / path.name).write_text(text, encoding="utf-8")
        (staging / path.name).replace(path)


def write_json(path: str | os.PathLike, content: dict) -> None:
    """Writes a JSON file under a temporary name, then renames it; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """Yields a new hidden folder, inside `path` if that is a folder, else beside it, and locked while it exists.

    Those that killed processes have left there are removed.
    """
    parent = path if path.is_dir() else path.parent
    staging = parent / f"{STAGED}{secrets.token_hex(4)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f"{STAGED}*"):
            if left.name != READY and left.is_dir() and not left.is_symlink():
                with suppress(FileNotFoundError), _lock(left, wait=False) as locked:
                    if locked:
                        shutil.rmtree(left, ignore_errors=True)
        staging.mkdir()
    except OSError as error:
        raise UnwritableFolderError(
            f"Cannot write {str(path)!r}: the folder {str(parent)!r} cannot be written to ({error.strerror}); choose "
            "another output folder, or fix its permissions."
        ) from error
    try:
        with _lock(staging):
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _lock(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Locks a folder until the block or the process ends; yields False if others hold it or there are no locks."""
    if fcntl is None:
        yield False
        return
    descriptor, locked = os.open(folder, os.O_RDONLY), True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)


def shipped_folder(name: str) -> Path:
    """Returns `model_cards` or `recipes`: inside an installed package, or at its place in a checkout."""
    package = Path(__file__).parent
    places = (package / name, package.parent / name, package.parent / "training" / name)
    return next(place for place in places if place.is_dir())
