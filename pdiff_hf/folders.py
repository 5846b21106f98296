"""Folders and files that are written atomically."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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
    have stay, except those that match `stale`. A link among them is never followed: a new entry of its name replaces
    it, and where it leads nothing changes. Modes and groups are those of the umask and the parent folder.
    Raises what `require_writable_folder` raises.
    """
    require_writable_folder(folder)
    target = Path(os.path.realpath(folder))
    finish_replacing(target)  # the block may read what is there
    with _staging(target) as staging:
        yield staging
        mode = staging.stat().st_mode & 0o666
        for file in (path for path in staging.rglob("*") if path.is_file() and not path.is_symlink()):
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


@contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path, whose file takes the place of `path` when the block ends without an error."""
    path = Path(path)
    with _staging(path) as staging:
        yield staging / path.name
        (staging / path.name).replace(path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file atomically."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: dict) -> None:
    """Writes a JSON file atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """Yields a new hidden folder, inside `path` if that is a folder, else beside it, and locked while it exists.

    Those that killed processes have left there are removed.
    """
    parent = path if path.is_dir() else path.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f"{STAGED}*"):
            if left.name != READY and left.is_dir() and not left.is_symlink():
                with suppress(FileNotFoundError), _lock(left, wait=False) as locked:
                    if locked:
                        shutil.rmtree(left, ignore_errors=True)
        staging, lock = _locked_folder(parent)
    except OSError as error:
        raise UnwritableFolderError(
            f"Cannot write {str(path)!r}: the folder {str(parent)!r} cannot be written to ({error.strerror}); choose "
            "another output folder, or fix its permissions."
        ) from error
    with lock:
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _locked_folder(parent: Path) -> tuple[Path, ExitStack]:
    """Makes a hidden folder and locks it; another one if a process that cleans up has removed it before."""
    while True:
        staging, lock = parent / f"{STAGED}{secrets.token_hex(4)}", ExitStack()
        staging.mkdir()
        with suppress(FileNotFoundError):
            lock.enter_context(_lock(staging))
            if staging.exists():
                return staging, lock
        lock.close()


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


def remove_folder(folder: str | os.PathLike) -> None:
    """Removes a folder atomically: it is renamed first, so that a killed process leaves no part of it."""
    folder = Path(folder)
    with suppress(FileNotFoundError), _staging(folder.parent) as removed:
        folder.rename(removed / folder.name)


def shipped_folder(name: str) -> Path:
    """Returns `model_cards` or `recipes`: inside an installed package, or at its place in a checkout."""
    package = Path(__file__).parent
    places = (package / name, package.parent / name, package.parent / "training" / name)
    return next(place for place in places if place.is_dir())
