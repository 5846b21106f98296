"""Files from the Hub, compared with their checksums."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers.utils import logging
from huggingface_hub import HfApi, get_cached_repo_tree, hf_hub_download, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, DryRunError, LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from .client import CorruptFileError, HubNotFoundError, HubUnreachableError, persistently
from .safety import CHECKSUM, LARGEST_JSON, BrokenFileError, matches, require_inside

logger = logging.get_logger(__name__)

OUTSIDE = ["/*", "../*", "*/../*", "?:*", "*/?:*"]  # patterns of names that lead out of a repository


@dataclass(frozen=True)
class RepositoryFiles:
    """Where and how files of a repository are read.

    Raises:
        HubNotFoundError: If `repo_id` is no id.
    """

    repo_id: str  # "org/name"
    repo_type: str = "model"  # or "dataset"
    revision: str | None = None  # branch, tag or commit; the main branch by default
    # A token, True for the stored one, False for none, None for the stored one if there is one.
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False  # use the cache only
    force_download: bool = False  # fetch again what is cached

    def __post_init__(self) -> None:
        if self.repo_id.count("/") != 1 or self.repo_id.startswith((".", "/", "~")):
            raise HubNotFoundError(f"There is no folder {self.repo_id!r}, and it is no id on the Hub like 'org/name'.")

    def __str__(self) -> str:
        at = f" at {self.revision}" if self.revision else ""
        return f"{self.repo_type} {self.repo_id!r}{at}"

    @property
    def _how(self) -> dict[str, Any]:
        return {"repo_type": self.repo_type, "token": self.token, "cache_dir": self.cache_dir}

    def download(self, patterns: Sequence[str]) -> Path:
        """Brings the files that match into the cache, and checks each against its checksum, the cached ones too.

        Returns:
            The folder of the snapshot; its name is the commit.

        Raises:
            HubError: One of its subclasses; `CorruptFileError` if a file is still damaged after fetching it again.
            UnsafeFileError: If a name leads out of the repository.
            BrokenFileError: If the Hub lists a JSON file of more than `LARGEST_JSON` bytes; nothing is fetched then.
        """

        def fetch(cached_only: bool = self.local_files_only) -> str:
            how = {**self._how, "local_files_only": cached_only, "force_download": self.force_download}
            how |= {"allow_patterns": list(patterns), "ignore_patterns": OUTSIDE}  # refused below
            if cached_only:
                return snapshot_download(self.repo_id, revision=self.revision, **how)
            try:
                listed = snapshot_download(self.repo_id, revision=self.revision, dry_run=True, **how)
            except DryRunError:  # the Hub is not to be reached
                listed = []
            for file in listed:
                if file.filename.endswith(".json") and file.file_size > LARGEST_JSON:
                    raise BrokenFileError(
                        f"{file.filename!r} of the {self} has {file.file_size} bytes, but no such file needs more "
                        f"than {LARGEST_JSON}; it was not fetched."
                    )
            revision = listed[0].commit_hash if listed else self.revision
            return snapshot_download(self.repo_id, revision=revision, **how)

        try:
            folder = Path(persistently(fetch, str(self)))
        except HubUnreachableError as unreachable:
            try:
                folder = Path(fetch(cached_only=True))
            except LocalEntryNotFoundError:
                raise unreachable from None
            logger.warning(f"{unreachable} The cached copy is used.")
        except HubNotFoundError as missing:
            if Path(self.repo_id).exists():
                raise
            raise HubNotFoundError(f"There is no folder {self.repo_id!r}. {missing}") from missing
        wanted = [name for name in self.names(folder) if matches(name, patterns)]
        for name in wanted:
            require_inside(name)
        checksums = self._checksums(folder, wanted)
        for name in wanted:
            if not _is_intact(folder / name, checksums.get(name)):
                self._fetch_again(folder, name)
        return folder

    def names(self, folder: Path) -> list[str]:
        """Returns the names of all files of the snapshot, fetched or not."""
        where: dict[str, Any] = {"repo_type": self.repo_type, "revision": folder.name, "cache_dir": self.cache_dir}
        try:
            return [file.path for file in get_cached_repo_tree(self.repo_id, **where)]
        except CachedRepoTreeNotFoundError:  # offline, and cached by a client that kept no list
            return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    def _checksums(self, folder: Path, names: Sequence[str]) -> dict[str, str]:
        """Returns the checksum of each file: the name that the cache keeps it under, else what the Hub says."""
        # A link leads to a name that is the checksum; that may be a link itself, to a file that repositories share.
        kept = {name: Path(os.readlink(folder / name)).name for name in names if (folder / name).is_symlink()}
        known = {name: checksum for name, checksum in kept.items() if CHECKSUM.fullmatch(checksum)}
        unknown = [name for name in names if name not in known]
        if unknown and not self.local_files_only:
            api = HfApi(token=self.token)
            where: dict[str, Any] = {"repo_type": self.repo_type, "revision": folder.name}
            try:
                files = persistently(lambda: api.get_paths_info(self.repo_id, unknown, **where), str(self))
            except HubUnreachableError:
                return known
            listed = {file.path: file for file in files if isinstance(file, RepoFile)}
            known |= {name: file.lfs.sha256 if file.lfs else file.blob_id for name, file in listed.items()}
        return known

    def _fetch_again(self, folder: Path, name: str) -> None:
        logger.warning(f"{name!r} of the {self} is damaged; fetching it again.")

        def fetch() -> str:
            # The client leaves a link that is there already, even where it leads to a file under a wrong name.
            (folder / name).unlink(missing_ok=True)
            return hf_hub_download(self.repo_id, name, revision=folder.name, force_download=True, **self._how)

        damaged = (folder / name).resolve()
        try:
            if self.local_files_only:
                raise HubUnreachableError("The Hub was not to be asked.")
            persistently(fetch, str(self))
        except HubUnreachableError as error:
            raise CorruptFileError(
                f"{name!r} of the {self} is damaged in the cache ({damaged}), and could not be fetched again: {error}"
            ) from error
        if not _is_intact(folder / name, self._checksums(folder, [name]).get(name)):
            raise CorruptFileError(
                f"{name!r} of the {self} does not match its checksum, although it was fetched again; its owner should "
                "push it again."
            )


def _is_intact(path: Path, checksum: str | None) -> bool:
    """Compares a file with its checksum, if that is known."""
    if checksum is None or not path.is_file():
        return checksum is None
    with path.open("rb") as file:
        return checksum == (sha_fileobj(file).hex() if len(checksum) == 64 else git_hash(file.read()))
