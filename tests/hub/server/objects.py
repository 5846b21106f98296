"""The bytes of large files, kept on disk by their SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .model import Repo


class ObjectStore:
    """A folder of large files, and which repositories they were pushed to: a repository has no others."""

    def __init__(self, folder: Path):
        self.folder, self.incoming = folder, folder / "incoming"
        self.incoming.mkdir(parents=True)
        self._links: set[tuple[str, str, str]] = set()
        self._key = secrets.token_bytes(16)

    def path(self, sha256: str) -> Path:
        """Returns where an object is, or would be."""
        return self.folder / sha256

    @property
    def size(self) -> int:
        """The bytes of all objects together."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    def link(self, repo: Repo, sha256: str) -> None:
        """Notes that an object was pushed to a repository."""
        self._links.add((repo.type, repo.id, sha256))

    def is_linked(self, repo: Repo, sha256: str) -> bool:
        """Says whether an object was pushed to this repository."""
        return (repo.type, repo.id, sha256) in self._links

    def signature(self, purpose: str, sha256: str) -> str:
        """Returns what an address must carry to "get" or "upload" an object without a token."""
        return hmac.new(self._key, f"{purpose}{sha256}".encode(), "sha256").hexdigest()[:32]

    @contextmanager
    def replacing(self, sha256: str) -> Iterator[Path]:
        """Yields where to write an object, which is unseen until it is complete."""
        path = self.incoming / secrets.token_hex(8)
        yield path
        os.replace(path, self.path(sha256))

    def store(self, sha256: str, data: bytes) -> None:
        """Stores an object."""
        with self.replacing(sha256) as path:
            path.write_bytes(data)

    def store_sparse(self, sha256: str, size: int) -> None:
        """Stores an object of zeros that takes no space."""
        with self.replacing(sha256) as path:
            path.touch()
            os.truncate(path, size)

    def store_part(self, sha256: str, number: int, data: bytes) -> None:
        """Stores one part of an object that arrives in several."""
        self._part(sha256, number).write_bytes(data)

    def part_md5(self, sha256: str, number: int) -> str | None:
        """Returns the digest of a part that has arrived, None before it has."""
        part = self._part(sha256, number)
        return hashlib.md5(part.read_bytes()).hexdigest() if part.exists() else None

    def join_parts(self, sha256: str, numbers: Iterable[int]) -> None:
        """Makes an object of its parts."""
        self.store(sha256, b"".join(self._part(sha256, number).read_bytes() for number in numbers))
        for part in self.incoming.glob(f"{sha256}.*"):
            part.unlink()

    def _part(self, sha256: str, number: int) -> Path:
        return self.incoming / f"{sha256}.{number}"
