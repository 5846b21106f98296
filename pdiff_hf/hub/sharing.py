"""A pipeline, a checkpoints dataset or drawn networks to the Hub: one commit that names its parent, or none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from ..folders import finish_replacing, write_json
from . import client as hub_client
from .cards import ALL_PICTURES, published_value, readdress
from .client import HubAccessError, HubConflictError, persistently
from .safety import SHARED_NAMES, UnsafeFileError, matches, read_json, shareable_files

PUSH_ATTEMPTS = 5


class Kind(NamedTuple):
    """A kind of folder: its name, its type on the Hub, and patterns of files that are deleted there if it has none."""

    name: str
    repo_type: str
    replaces: tuple[str, ...]


COMPONENTS = ("autoencoder/*", "denoiser/*", "guide/*", "scheduler/*", "processor/*", "target_model/*")
PIPELINE = Kind("pipeline", "model", (*COMPONENTS, "metrics.json", *ALL_PICTURES))
CHECKPOINTS = Kind("checkpoints dataset", "dataset", ("data/*", "target_model/*"))
NETWORKS = Kind("drawn networks", "model", ("[0-9][0-9][0-9][0-9][0-9]/*",))
MARKS = {  # files that tell what a folder holds
    ("model_index.json",): PIPELINE,
    ("processor_config.json", "data"): CHECKPOINTS,
    ("provenance.json",): NETWORKS,
    ("00000/provenance.json",): NETWORKS,
}


def share(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    parent_commit: str | None = None,
) -> str:
    """Pushes a pipeline, a checkpoints dataset or drawn networks: one commit, or none if nothing has changed.

    The card names the repository from then on, and paths of this machine are cut down to their last
    part. Run again, a push that was cut off is completed.

    Args:
        folder: What a `save_pretrained`, `Checkpoints.save` or a script wrote.
        repo_id: For example `"org/name"`; made if need be.
        private: Make it private. An existing public repository is then refused.
        token: A token with write access; by default the stored one.
        commit_message: Title of the commit.
        create_pr: Open a pull request instead of committing to the main branch.
        parent_commit: Fail unless the main branch is still at this commit.

    Returns:
        The address of the commit that holds the content.

    Raises:
        UnsafeFileError: If the folder holds what may not be shared.
        HubError: One of its subclasses; see `pdiff_hf.hub.client`.
    """
    folder = Path(folder)
    finish_replacing(folder)
    kind = next((kind for names, kind in MARKS.items() if all((folder / name).exists() for name in names)), None)
    if kind is None:
        raise UnsafeFileError(
            f"{str(folder)!r} is not shared: it is no pipeline (model_index.json), no checkpoints dataset "
            "(processor_config.json and data/) and no drawn networks (provenance.json)."
        )
    contents: dict[str, Path | bytes] = {name: folder / name for name in shareable_files(folder)}
    repo_id = prepare_repository(repo_id, kind.repo_type, private, token, write=not create_pr)
    commit = push_files(
        contents | _rewritten(folder, kind, repo_id),
        repo_id,
        repo_type=kind.repo_type,
        commit_message=commit_message or f"Upload {kind.name}",
        token=token,
        create_pr=create_pr,
        replaces=kind.replaces,
        parent_commit=parent_commit,
    )
    if kind is CHECKPOINTS:
        # A generator fitted to the local folder then links to the zoo on the Hub.
        write_json(folder / "collection.json", read_json(folder / "collection.json") | {"repo_id": repo_id})
    return commit_address(repo_id, kind.repo_type, commit)


def commit_address(repo_id: str, repo_type: str, commit: str) -> str:
    """Returns where a commit is shown."""
    return f"{HfApi().endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}/commit/{commit}"


def prepare_repository(
    repo_id: str, repo_type: str, private: bool | None = None, token: str | bool | None = None, write: bool = True
) -> str:
    """Makes sure that a repository exists and, with `write`, can be written to; returns its full id.

    Raises:
        HubError: If it cannot, or if it is public and `private` was asked for.
    """
    api, what = HfApi(token=token), f"{repo_type} {repo_id!r}"
    create = partial(api.create_repo, repo_id, repo_type=repo_type, private=private, exist_ok=True)
    repo_id = persistently(create, what).repo_id
    persistently(lambda: api.auth_check(repo_id, repo_type=repo_type, write=write), what)
    info = persistently(lambda: api.repo_info(repo_id, repo_type=repo_type, timeout=hub_client.ANSWER_TIMEOUT), what)
    if private and not info.private:
        raise HubAccessError(
            f"The {what} exists and is public, but a private one was asked for; make it private in its settings, or "
            "choose another name."
        )
    return repo_id


def push_files(
    contents: Mapping[str, Path | bytes],
    repo_id: str,
    *,
    commit_message: str,
    repo_type: str = "model",
    revision: str = "main",
    token: str | bool | None = None,
    create_pr: bool = False,
    replaces: Sequence[str] = (),
    parent_commit: str | None = None,
) -> str:
    """Makes a branch of an existing repository hold files, in one commit, or in none if it does already.

    The commit names its parent, so that no concurrent changes to the same files are lost. Whatever goes wrong, running
    it again completes it, and large files that arrived are not sent again. Files that match `replaces` and are not
    among the contents are deleted, but for a license and .gitattributes; `share` describes the other arguments.

    Returns:
        The id of the commit that holds the files.

    Raises:
        HubError: One of its subclasses; `HubConflictError` if someone else changed the same files meanwhile.
    """
    api, what = HfApi(token=token), f"{repo_type} {repo_id!r}"
    seen: dict[str, str] | None = None  # the ids of all files when the branch was looked at before

    def push() -> str:
        nonlocal seen
        head, remote = persistently(lambda: _branch(api, repo_id, repo_type, revision), what)
        ids = {name: file.blob_id for name, file in remote.items()}
        operations: dict[str, CommitOperationAdd | CommitOperationDelete] = {}
        for name, content in contents.items():
            addition = CommitOperationAdd(name, content)
            if not _holds(remote.get(name), addition):
                operations[name] = addition
        for name in remote:
            if name not in contents and name not in SHARED_NAMES and matches(name, replaces):
                operations[name] = CommitOperationDelete(name)
        if not operations:
            return head
        moved = seen is not None and any(ids.get(name) != seen.get(name) for name in operations)
        if moved or parent_commit not in (None, head):
            raise HubConflictError(
                f"Someone else has changed the {what} meanwhile (its {revision} is now {head[:8]}); look at its "
                "history, then push again."
            )
        seen = ids
        how: dict[str, Any] = {
            "repo_type": repo_type,
            "revision": revision,
            "parent_commit": head,
            "create_pr": create_pr,
        }
        return api.create_commit(repo_id, operations.values(), commit_message=commit_message, **how).oid

    def is_worth_repeating(error: Exception) -> bool:
        # The branch is looked at again: the commit may have been made although its answer was lost. A pull request
        # shows on no branch; it is not risked to open a second one.
        overtaken = isinstance(error, HfHubHTTPError) and error.response.status_code in (409, 412)
        return not create_pr and (overtaken or hub_client.is_transient(error))

    return persistently(push, what, PUSH_ATTEMPTS, is_worth_repeating)


def _branch(api: HfApi, repo_id: str, repo_type: str, revision: str) -> tuple[str, dict[str, RepoFile]]:
    head = api.repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=hub_client.ANSWER_TIMEOUT).sha
    tree = api.list_repo_tree(repo_id, repo_type=repo_type, revision=head, recursive=True)
    assert head is not None  # the Hub names the commit of every branch
    return head, {file.path: file for file in tree if isinstance(file, RepoFile)}


def _holds(remote: RepoFile | None, addition: CommitOperationAdd) -> bool:
    """Tells whether the Hub has a file of that name and content."""
    if remote is None:
        return False
    if remote.lfs is not None:
        return addition.upload_info.sha256.hex() == remote.lfs.sha256
    with addition.as_file() as file:
        return git_hash(file.read()) == remote.blob_id


def _rewritten(folder: Path, kind: Kind, repo_id: str) -> dict[str, bytes]:
    """Returns the files that read otherwise on the Hub than on this machine."""
    contents: dict[str, bytes] = {}
    for name in ("collection.json", "metrics.json"):
        if (folder / name).is_file():
            content = published_value(read_json(folder / name))
            contents[name] = _encoded(content | ({"repo_id": repo_id} if kind is CHECKPOINTS else {}))
    for path in (folder / "model_index.json", *folder.glob("*/config.json")):
        config = read_json(path) if path.is_file() else {}
        if config.pop("_name_or_path", None) is not None:  # where diffusers had loaded it from
            contents[path.relative_to(folder).as_posix()] = _encoded(config)
    if (folder / "README.md").is_file():
        contents["README.md"] = readdress((folder / "README.md").read_text(encoding="utf-8"), repo_id).encode()
    return contents


def _encoded(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
