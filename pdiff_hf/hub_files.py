"""Folders to and from the Hub: checked by their checksums on the way in, in one commit on the way out."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from diffusers.utils import logging
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_cached_repo_tree,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import CachedRepoTreeNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoFile

from . import hub_client
from .hub_client import (
    CorruptFileError,
    HubAccessError,
    HubConflictError,
    HubNotFoundError,
    HubUnreachableError,
    deadlines,
    hub_errors,
    persistently,
)
from .safe_files import require_inside, shareable_files

logger = logging.get_logger(__name__)

PUSH_ATTEMPTS = 5
Content = Path | bytes


@dataclass(frozen=True)
class RepositoryFiles:
    """Where and how files of a repository are read.

    Args:
        repo_id: For example `"org/name"`.
        repo_type: `"model"` or `"dataset"`.
        revision: Branch, tag or commit; the main branch by default.
        token: A token, `True` for the stored one, `False` for none, `None` for the stored one if there is one.
        cache_dir: The cache's folder.
        local_files_only: Take what is cached and ask nobody.
        force_download: Fetch again what is cached.
    """

    repo_id: str
    repo_type: str = "model"
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False

    def __str__(self) -> str:
        at = f" at {self.revision}" if self.revision else ""
        return f"{self.repo_type} {self.repo_id!r}{at}"

    @classmethod
    def named(cls, name: str, **how: Any) -> RepositoryFiles:
        """Returns the repository of that id, for a name that is no folder.

        Raises:
            HubNotFoundError: If it is no id.
        """
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise HubNotFoundError(f"There is no folder {name!r}, and it is no id on the Hub like 'org/name'.")
        return cls(name, **how)

    def download(self, patterns: Sequence[str]) -> Path:
        """Brings the files that match into the cache, and checks each against its checksum, the cached ones too.

        Returns:
            The folder of the snapshot; its name is the commit.

        Raises:
            HubError: One of its subclasses; `CorruptFileError` if a file is still damaged after fetching it again.
            UnsafeFileError: If a name leads out of the repository.
        """

        def fetch(cached_only: bool = self.local_files_only) -> str:
            return snapshot_download(
                self.repo_id,
                repo_type=self.repo_type,
                revision=self.revision,
                allow_patterns=list(patterns),
                token=self.token,
                cache_dir=self.cache_dir,
                local_files_only=cached_only,
                force_download=self.force_download,
            )

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
        for name in self.names(folder):
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                require_inside(name)
                self._verify(folder, name)
        return folder

    def names(self, folder: Path) -> list[str]:
        """Returns the names of all files of the snapshot, fetched or not."""
        try:
            tree = get_cached_repo_tree(
                self.repo_id, repo_type=self.repo_type, revision=folder.name, cache_dir=self.cache_dir
            )
        except CachedRepoTreeNotFoundError:  # offline, and cached by a client that kept no list
            return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return [file.path for file in tree]

    def _verify(self, folder: Path, name: str) -> None:
        if _is_intact(folder / name):
            return
        logger.warning(f"{name!r} of the {self} is damaged; fetching it again.")

        def fetch_again() -> str:
            return hf_hub_download(
                self.repo_id,
                name,
                repo_type=self.repo_type,
                revision=folder.name,
                token=self.token,
                cache_dir=self.cache_dir,
                force_download=True,
            )

        try:
            if self.local_files_only:
                raise HubUnreachableError("The Hub was not to be asked.")
            persistently(fetch_again, str(self))
        except HubUnreachableError as error:
            raise CorruptFileError(
                f"{name!r} of the {self} is damaged in the cache ({(folder / name).resolve()}), and it could not be "
                f"fetched again: {error}"
            ) from error
        if not _is_intact(folder / name):
            raise CorruptFileError(
                f"{name!r} of the {self} is not what its checksum says, although it was fetched again; whoever pushed "
                "it should push it anew."
            )


def _is_intact(path: Path) -> bool:
    """Compares a cached file with the checksum that is its name: git's SHA-1 of small files, SHA-256 of large ones."""
    # The link leads to a name that is the checksum; that may be a link itself, to a file that repositories share.
    expected = Path(os.readlink(path)).name if path.is_symlink() else ""
    if re.fullmatch(r"[0-9a-f]{64}", expected):
        return _sha256(path) == expected
    return not re.fullmatch(r"[0-9a-f]{40}", expected) or _git_oid(path.read_bytes()) == expected


def _sha256(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    with content.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def prepare_repository(
    repo_id: str,
    repo_type: str = "model",
    private: bool | None = None,
    token: str | bool | None = None,
    write: bool = True,
) -> str:
    """Makes sure that a repository exists and, with `write`, can be written to; returns its full id.

    Raises:
        HubError: If it cannot, or if it is public and `private` was asked for.
    """
    api, what = HfApi(token=token), f"{repo_type} {repo_id!r}"

    def create() -> str:
        return api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id

    repo_id = persistently(create, what)
    persistently(lambda: api.auth_check(repo_id, repo_type=repo_type, write=write), what)
    info = persistently(lambda: api.repo_info(repo_id, repo_type=repo_type, timeout=hub_client.ANSWER_TIMEOUT), what)
    if private and not info.private:
        raise HubAccessError(
            f"The {what} exists and is public, but a private one was asked for; make it private in its settings, or "
            "choose another name."
        )
    return repo_id


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    repo_type: str = "model",
    commit_message: str = "Upload with pdiff_hf",
    revision: str = "main",
    token: str | bool | None = None,
    create_pr: bool = False,
    rewritten: Mapping[str, bytes] | None = None,
    replaces: Sequence[str] = (),
    further_suffixes: Iterable[str] = (),
    parent_commit: str | None = None,
) -> str:
    """Makes a repository hold a folder's files, in one commit, or in none if it does already.

    The commit names its parent, so that nobody's changes to the same files are lost, and whatever goes wrong, running
    it again completes it. Large files that arrived are not sent again.

    Args:
        folder: What to push; see `safe_files.shareable_files` for what is in it.
        repo_id: An existing repository; see `prepare_repository`.
        repo_type: `"model"` or `"dataset"`.
        commit_message: Title of the commit.
        revision: The branch.
        token: See `RepositoryFiles`.
        create_pr: Open a pull request with the commit.
        rewritten: Contents that take the place of files of the folder.
        replaces: Patterns of files that are deleted on the Hub if the folder does not have them.
        further_suffixes: Kinds of files that may be pushed beside the usual ones.
        parent_commit: Fail unless the branch is still there.

    Returns:
        The id of the commit that holds the files.

    Raises:
        HubError: One of its subclasses; `HubConflictError` if someone else changed the same files meanwhile.
        UnsafeFileError: If the folder holds what may not be shared.
    """
    names = shareable_files(folder, further_suffixes)
    contents: dict[str, Content] = {name: Path(folder) / name for name in names} | dict(rewritten or {})
    api, what = HfApi(token=token), f"{repo_type} {repo_id!r}"
    seen: dict[str, str | None] | None = None
    for attempt in range(PUSH_ATTEMPTS):
        head, remote = persistently(lambda: _branch(api, repo_id, repo_type, revision), what)
        changed = {name: content for name, content in contents.items() if _oid(content, remote.get(name)) is None}
        gone = [n for n in remote if n not in contents and any(fnmatchcase(n, pattern) for pattern in replaces)]
        if not changed and not gone:
            return head
        found = {name: remote[name].blob_id if name in remote else None for name in (*changed, *gone)}
        moved = seen is not None and any(found[name] != seen.get(name) for name in found)
        if moved or parent_commit not in (None, head):
            raise HubConflictError(
                f"Someone else has changed the {what} meanwhile (its {revision} is now {head[:8]}); look at its "
                "history, then push again."
            )
        seen = found
        operations = [CommitOperationAdd(name, content) for name, content in changed.items()]
        deletions = [CommitOperationDelete(name) for name in gone]
        try:
            with deadlines():
                info = api.create_commit(
                    repo_id,
                    [*operations, *deletions],
                    commit_message=commit_message,
                    repo_type=repo_type,
                    revision=revision,
                    parent_commit=head,
                    create_pr=create_pr,
                )
            return info.oid
        except Exception as error:
            # The branch is looked at again: the commit may have been made although its answer was lost.
            if attempt == PUSH_ATTEMPTS - 1 or not (hub_client.is_transient(error) or _is_overtaken(error)):
                with hub_errors(what):
                    raise
            logger.warning(f"The push to the {what} was interrupted ({type(error).__name__}); going on.")
            time.sleep(hub_client.BACK_OFF[min(attempt, len(hub_client.BACK_OFF) - 1)])
    raise AssertionError("unreachable")


def _branch(api: HfApi, repo_id: str, repo_type: str, revision: str) -> tuple[str, dict[str, RepoFile]]:
    head = api.repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=hub_client.ANSWER_TIMEOUT).sha
    tree = api.list_repo_tree(repo_id, repo_type=repo_type, revision=head, recursive=True)
    assert head is not None  # the Hub names the commit of every branch
    return head, {file.path: file for file in tree if isinstance(file, RepoFile)}


def _oid(content: Content, remote: RepoFile | None) -> str | None:
    """Returns the id of a content that the Hub already has under that name, else None."""
    if remote is None:
        return None
    if remote.lfs is not None:
        here, there = _sha256(content), remote.lfs.sha256
    else:
        here, there = _git_oid(content if isinstance(content, bytes) else content.read_bytes()), remote.blob_id
    return here if here == there else None


def _is_overtaken(error: Exception) -> bool:
    return isinstance(error, HfHubHTTPError) and error.response.status_code in (409, 412)
