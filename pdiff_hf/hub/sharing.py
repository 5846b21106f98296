"""A pipeline, a checkpoints dataset or drawn networks to the Hub: one commit that names its parent, or none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from ..folders import write_json
from . import client as hub_client
from .cards import PICTURES, published_value, readdress
from .client import HubAccessError, HubConflictError, persistently
from .safety import UnsafeFileError, matches, read_json, shareable_files

PUBLISHED_JSON = ("collection.json", "metrics.json")
PUSH_ATTEMPTS = 5


class Kind(NamedTuple):
    """A kind of folder: what it is called, where it goes, and patterns of its files.

    Files of these patterns that the folder no longer has are deleted on the Hub.
    """

    name: str
    repo_type: str
    replaces: tuple[str, ...]


PIPELINE = Kind(
    "pipeline",
    "model",
    ("autoencoder/*", "denoiser/*", "scheduler/*", "processor/*", "target_model/*", "metrics.json", *PICTURES),
)
CHECKPOINTS = Kind("checkpoints dataset", "dataset", ("data/*", "target_model/*"))
NETWORKS = Kind("drawn networks", "model", ("[0-9][0-9][0-9][0-9][0-9]/*",))


def kind_of(folder: str | os.PathLike) -> Kind:
    """Tells what a folder holds.

    Raises:
        UnsafeFileError: If it holds none of what this package shares.
    """
    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        return PIPELINE
    if (folder / "processor_config.json").is_file() and (folder / "data").is_dir():
        return CHECKPOINTS
    if (folder / "provenance.json").is_file() or (folder / "00000" / "provenance.json").is_file():
        return NETWORKS
    raise UnsafeFileError(
        f"{str(folder)!r} is not shared: it is no pipeline (model_index.json), no checkpoints dataset "
        "(processor_config.json and data/) and no drawn networks (provenance.json)."
    )


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

    The card speaks of the repository by its name from then on, and paths of this machine are cut down to their last
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
    folder, kind = Path(folder), kind_of(folder)
    shareable_files(folder)  # raises before a repository is made
    repo_id = prepare_repository(repo_id, kind.repo_type, private, token, write=not create_pr)
    commit = push_folder(
        folder,
        repo_id,
        repo_type=kind.repo_type,
        commit_message=commit_message or f"Upload {kind.name}",
        token=token,
        create_pr=create_pr,
        rewritten=_rewritten(folder, kind, repo_id),
        replaces=kind.replaces,
        parent_commit=parent_commit,
    )
    if kind is CHECKPOINTS:
        # A generator fitted to the local folder then links to the zoo on the Hub.
        path = folder / "collection.json"
        write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"repo_id": repo_id})
    return commit_address(repo_id, kind.repo_type, commit)


def commit_address(repo_id: str, repo_type: str, commit: str) -> str:
    """Returns where a commit is shown."""
    return f"{HfApi().endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}/commit/{commit}"


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
        folder: What to push; see `shareable_files` for what is in it.
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
    contents: dict[str, Path | bytes] = {
        name: Path(folder) / name for name in shareable_files(folder, further_suffixes)
    }
    contents |= rewritten or {}
    api, what = HfApi(token=token), f"{repo_type} {repo_id!r}"
    seen: dict[str, str | None] | None = None

    def push() -> str:
        nonlocal seen
        head, remote = persistently(lambda: _branch(api, repo_id, repo_type, revision), what)
        additions = [CommitOperationAdd(name, content) for name, content in contents.items()]
        changed = [addition for addition in additions if not _holds(remote.get(addition.path_in_repo), addition)]
        gone = [name for name in remote if name not in contents and matches(name, replaces)]
        if not changed and not gone:
            return head
        touched = [*(addition.path_in_repo for addition in changed), *gone]
        found = {name: remote[name].blob_id if name in remote else None for name in (*contents, *gone)}
        moved = seen is not None and any(found[name] != seen.get(name) for name in touched)
        if moved or parent_commit not in (None, head):
            raise HubConflictError(
                f"Someone else has changed the {what} meanwhile (its {revision} is now {head[:8]}); look at its "
                "history, then push again."
            )
        seen = found
        return api.create_commit(
            repo_id,
            [*changed, *(CommitOperationDelete(name) for name in gone)],
            commit_message=commit_message,
            repo_type=repo_type,
            revision=revision,
            parent_commit=head,
            create_pr=create_pr,
        ).oid

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
    for name in PUBLISHED_JSON:
        if (folder / name).is_file():
            content = published_value(read_json(folder / name))
            if kind is CHECKPOINTS:
                content |= {"repo_id": repo_id}
            contents[name] = (json.dumps(content, indent=2) + "\n").encode()
    for path in (folder / "model_index.json", *folder.glob("*/config.json")):
        config = read_json(path) if path.is_file() else {}
        if config.pop("_name_or_path", None) is not None:  # where diffusers had loaded it from
            contents[path.relative_to(folder).as_posix()] = (json.dumps(config, indent=2) + "\n").encode()
    readme = folder / "README.md"
    if readme.is_file():
        contents["README.md"] = readdress(readme.read_text(encoding="utf-8"), repo_id).encode()
    return contents
