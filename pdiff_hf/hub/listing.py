"""Which files a folder or repository has, and how large they are, before any is fetched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from huggingface_hub import HfApi, HfFileSystem

from . import client as hub_client
from .client import HubNotFoundError, persistently
from .files import RepositoryFiles
from .safety import own_files, require_own


@dataclass(frozen=True)
class Listing:
    """The files of a folder, or of a repository at a commit."""

    name: str
    sizes: dict[str, int]  # bytes of each file
    folder: Path | None = None
    repository: RepositoryFiles | None = None

    @property
    def commit(self) -> str | None:
        """The commit of a repository, None of a folder."""
        return self.repository.revision if self.repository else None

    def fetch(self, patterns: Sequence[str]) -> Path:
        """Returns a folder with the files that match, each a regular file of it; see `RepositoryFiles.download`."""
        folder = self.folder if self.repository is None else self.repository.download(patterns)
        assert folder is not None
        own_files(folder, patterns)
        return folder

    def open(self, name: str) -> IO[bytes]:
        """Opens a file to be read in parts; of a repository, no more than what is read is fetched."""
        if self.repository is None:
            assert self.folder is not None
            require_own(self.folder / name, self.folder)
            return (self.folder / name).open("rb")
        where = self.repository
        path = f"{where.repo_type}s/{where.repo_id}@{where.revision}/{name}".removeprefix("models/")
        return persistently(lambda: HfFileSystem(token=where.token).open(path, cache_type="none"), str(where))


def list_files(name: str | os.PathLike, revision: str | None = None, token: str | bool | None = None) -> Listing:
    """Lists a folder, or a model or dataset repository.

    Raises:
        HubError: If it is not there, or cannot be read.
    """
    folder = Path(name)
    if folder.is_dir():
        sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
        return Listing(str(name), sizes, folder)
    repository = RepositoryFiles(str(name), revision=revision, token=token)
    try:
        return _list_repository(repository)
    except HubNotFoundError as missing:
        try:
            return _list_repository(replace(repository, repo_type="dataset"))
        except HubNotFoundError:
            raise missing from None


def _list_repository(repository: RepositoryFiles) -> Listing:
    how: dict[str, Any] = {"files_metadata": True, "timeout": hub_client.ANSWER_TIMEOUT}
    where: dict[str, Any] = {"repo_type": repository.repo_type, "revision": repository.revision}
    api = HfApi(token=repository.token)
    info: Any = persistently(lambda: api.repo_info(repository.repo_id, **where, **how), str(repository))
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return Listing(repository.repo_id, sizes, repository=replace(repository, revision=info.sha))
