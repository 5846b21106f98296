"""A folder of this package's on the Hub: a pipeline, a checkpoints dataset, or drawn networks."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from ..folders import write_json
from .cards import PICTURES, published_value, readdress
from .push import prepare_repository, push_folder
from .safety import UnsafeFileError, read_json, shareable_files

PUBLISHED_JSON = ("collection.json", "metrics.json")


@dataclass(frozen=True)
class Kind:
    """A kind of folder.

    Args:
        name: What it is called.
        repo_type: `"model"` or `"dataset"`.
        replaces: Patterns of its files: those that a folder no longer has are deleted on the Hub.
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
