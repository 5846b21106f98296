"""Folders to the Hub: one commit that names its parent, or none."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from diffusers.utils import logging
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from . import client as hub_client
from .client import HubAccessError, HubConflictError, deadlines, hub_errors, persistently
from .files import Content, git_oid_of, sha256_of
from .safety import matches, shareable_files

logger = logging.get_logger(__name__)

PUSH_ATTEMPTS = 5


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
        gone = [n for n in remote if n not in contents and matches(n, replaces)]
        if not changed and not gone:
            return head
        found = {name: remote[name].blob_id if name in remote else None for name in (*contents, *gone)}
        moved = seen is not None and any(found[name] != seen.get(name) for name in (*changed, *gone))
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
            # The branch is looked at again: the commit may have been made although its answer was lost. A pull
            # request shows on no branch; it is not risked to open a second one.
            hopeless = create_pr or not (hub_client.is_transient(error) or _is_overtaken(error))
            if attempt == PUSH_ATTEMPTS - 1 or hopeless:
                with hub_errors(what):
                    raise
            logger.warning(f"The push to the {what} was interrupted ({type(error).__name__}); going on.")
            wait = hub_client.BACK_OFF[min(attempt, len(hub_client.BACK_OFF) - 1)]
            time.sleep(max(wait, hub_client.retry_after(error)))
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
        here, there = sha256_of(content), remote.lfs.sha256
    else:
        here, there = git_oid_of(content if isinstance(content, bytes) else content.read_bytes()), remote.blob_id
    return here if here == there else None


def _is_overtaken(error: Exception) -> bool:
    return isinstance(error, HfHubHTTPError) and error.response.status_code in (409, 412)
