"""Files of trained networks that were saved elsewhere: found in folders and archives, and read one at a time."""

from __future__ import annotations

import glob
import gzip
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase, BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import load

from ..hub.safety import BrokenFileError, UnsafeFileError, broken_files, matches, printable, read_json, require_inside
from .parquet import CheckpointsError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
ARCHIVES = (".tar", ".tar.gz", ".tgz")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# What trainings save beside the weights; names that begin with a dot are hidden, or macOS's notes in an archive.
STATES = ("optimizer*", "scheduler*", "scaler*", "rng_state*", "random_states*", "training_args*", ".*")
KEYS = ("state_dict", "model_state_dict", "model")  # under which a file holds its state dict
MOST_FILES = 300_000  # of an archive, which tarfile remembers
LONGEST_NAME = 1_000
BLOCK, LONGEST_END = 512, 2**20  # bytes of an archive, which ends with blocks of zeros

Tensors = dict[str, torch.Tensor]


@dataclass
class CheckpointFile:
    """One checkpoint: its absolute path, without the name of a weights file, and how its tensors are read.

    A member of an archive is read while it is the last that was yielded. `read` raises `BrokenFileError` or
    `UnsafeFileError` if it is damaged, too large, or would have code run.
    """

    name: str
    read: Callable[[], Tensors]


def checkpoint_files(paths: Iterable[str | os.PathLike], largest: int) -> Iterator[CheckpointFile]:
    """Yields the checkpoints in files, folders, archives and what globs match; nothing is read or extracted.

    A folder with `model.safetensors` or `pytorch_model.bin`, or the index of its shards, is one checkpoint.

    Args:
        paths: Where to look.
        largest: Bytes that a checkpoint may have.

    Raises:
        CheckpointsError: If there are no checkpoints at a path, or an archive is damaged.
    """
    for path in paths:
        files = list(_files(str(path)))
        if not files:
            raise CheckpointsError(
                f"There are no checkpoints at {str(path)!r}: {', '.join(SUFFIXES + ARCHIVES)} files are read, folders "
                "of them, and globs."
            )
        for file in files:
            if file.name.endswith(ARCHIVES):
                yield from _in_archive(file, largest)
            else:
                name = file.parent if file.name in WEIGHTS else file
                yield CheckpointFile(name.as_posix(), partial(_read, file, largest))


def _files(path: str) -> Iterator[Path]:
    """Yields the checkpoints and archives at a path, or at all that it matches as a glob."""
    for found in [path] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True)):
        place = Path(os.path.abspath(found))
        if place.is_dir():
            yield from _in_folder(place)
        elif _is_checkpoint(place.name, SUFFIXES + ARCHIVES) or place.name in WEIGHTS:
            yield place


def _is_checkpoint(name: str, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    return name.endswith(suffixes) and not matches(name, STATES)


def _in_folder(folder: Path) -> Iterator[Path]:
    """Yields the checkpoints and archives in a folder and those inside of it, without following links to folders."""
    entries = sorted(folder.iterdir())
    folders = [entry for entry in entries if entry.is_dir() and not entry.is_symlink() and entry.name[0] != "."]
    weights = [folder / name for name in WEIGHTS if (folder / name).exists()]
    if not weights:
        for entry in entries:
            if not entry.is_dir() and _is_checkpoint(entry.name, SUFFIXES + ARCHIVES):
                yield entry
    yield from weights[:1]
    for inner in folders:
        yield from _in_folder(inner)


def _in_archive(path: Path, largest: int) -> Iterator[CheckpointFile]:
    """Yields the members of a tar archive, in its order; whatever is no regular file inside of it cannot be read."""
    if not path.is_file():
        raise CheckpointsError(f"{str(path)!r} is no regular file, so it is not read as an archive.")
    count, opened = 0, gzip.open if path.name.endswith("gz") else open
    try:
        with opened(path, "rb") as file, tarfile.open(fileobj=_Bounded(file, largest), mode="r:") as archive:
            while (member := archive.next()) is not None:
                count += 1
                if count > MOST_FILES or len(member.name) > LONGEST_NAME:
                    raise tarfile.ReadError(f"more than {MOST_FILES} members, or a name of {len(member.name)} letters")
                name, problem = PurePosixPath(member.name), _problem(member, largest)
                if member.isdir() or not (problem or _is_checkpoint(name.name)):
                    continue
                inner = name.parent if name.name in WEIGHTS and not problem else name
                place = f"{path.as_posix()}/{printable(inner)}"
                yield CheckpointFile(place, partial(_read_member, archive, member, problem))
            file.seek(archive.offset)
            end = file.read(LONGEST_END)
            if len(end) < BLOCK or end.strip(b"\0") or file.read(1):
                raise tarfile.ReadError("it does not end as archives do")
    except Exception as error:  # tarfile and zlib raise all kinds on damaged data
        reason = printable(f"{type(error).__name__}: {error}")
        raise CheckpointsError(
            f"The archive {str(path)!r} is damaged after {count} members ({reason:.300}); download it again."
        ) from error


def _problem(member: tarfile.TarInfo, largest: int) -> str | None:
    """Returns why a member is not read, if it should not be."""
    try:
        require_inside(member.name)
    except UnsafeFileError:
        return "its name leads out of the archive"
    if not member.isdir() and (not member.isreg() or member.issparse()):
        return "it is no regular file, but a link, a device, a pipe or sparse"
    if _is_checkpoint(PurePosixPath(member.name).name) and member.size > largest:
        return f"it has {member.size} bytes, but checkpoints of this network have at most {largest}"
    return None


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, problem: str | None) -> Tensors:
    file = None if problem else archive.extractfile(member)
    if file is None:
        raise UnsafeFileError(f"The member is not read: {problem}.")
    return _parse(file.read(member.size), member.name)


class _Bounded(BufferedIOBase):
    """A file that refuses to read more bytes at once than a checkpoint has: headers of an archive claim any length."""

    def __init__(self, file: BufferedIOBase, largest: int) -> None:
        self.file, self.largest = file, largest

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= self.largest:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def _read(path: Path, largest: int) -> Tensors:
    """Reads a file, or the shards that an index names."""
    if not path.name.endswith(".index.json"):
        return _read_file(path, largest)
    with broken_files("The index"):
        shards = sorted(set(read_json(path)["weight_map"].values()))
    tensors: Tensors = {}
    for shard in shards:
        require_inside(shard)
        if "/" in shard or not shard.endswith(SUFFIXES):
            raise UnsafeFileError(f"The index names the shard {printable(shard)!r}, which is no file beside it.")
        tensors |= _read_file(path.parent / shard, largest)
    return tensors


def _read_file(path: Path, largest: int) -> Tensors:
    if not path.is_file():
        raise BrokenFileError(f"{path.name!r} is missing, or no regular file.")
    if path.stat().st_size > largest:
        raise BrokenFileError(
            f"{path.name!r} has {path.stat().st_size} bytes, but checkpoints of this network have at most {largest}."
        )
    return _parse(path.read_bytes(), path.name)


def _parse(content: bytes, name: str) -> Tensors:
    """Returns the tensors in the bytes of a safetensors file, or of what `torch.save` wrote."""
    kind = "safetensors" if name.endswith(".safetensors") else "PyTorch"
    try:
        if kind == "safetensors":
            return load(content)
        file = BytesIO(content)
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as unpacked:
                if sum(part.file_size for part in unpacked.infolist()) > len(content):
                    raise BrokenFileError("The file is compressed, as torch.save leaves none; it is not unpacked.")
        file.seek(0)
        return _state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except BrokenFileError:
        raise
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(
            "The file is no pickle of tensors alone, and loading other objects could run code, so nothing was loaded; "
            "save the network's state_dict()."
        ) from error
    except Exception as error:  # whatever damaged bytes lead to
        reason = printable(f"{type(error).__name__}: {error}")
        raise BrokenFileError(f"This is not a valid {kind} file ({reason:.200}).") from error


def _state_dict(content: Any) -> Tensors:
    """Returns the state dict that a file holds: all of it, or under one of the usual keys."""
    mapping = content if isinstance(content, Mapping) else {}
    for inner in (mapping, *(mapping.get(key) for key in KEYS)):
        if isinstance(inner, Mapping) and inner and all(isinstance(value, torch.Tensor) for value in inner.values()):
            return {str(name): tensor for name, tensor in inner.items()}
    found = sorted(map(str, mapping))[:5] or type(content).__name__
    raise BrokenFileError(f"The file holds no state dict, neither itself nor under one of {KEYS}, but {found!s:.200}.")
