"""The no-install revision: a pipeline repository that carries the code it needs, for `trust_remote_code=True`."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi

from .._registration import component_classes
from ..folders import replace_folder, write_json, write_text
from ..hub.cards import readdress, write_remote_code_card
from ..hub.client import persistently
from ..hub.safety import shareable_files
from ..hub.sharing import push_files
from .loading import component_files, locate, read_index, stored_components
from .pipeline_pdiff import PDiffPipeline

BRANCH = "remote-code"
# What the revision does without: modules that fetch, check, describe and push.
LEFT_OUT = ("hub.cards", "hub.client", "hub.files", "hub.sharing", "pipelines.loading", "pipelines.saving")
SKIPPED = ("write_network_card",)
HEADER = '''"""The source of {modules} in one file, since diffusers fetches one; do not edit."""

from __future__ import annotations


def _refuse(*args, **kwargs):
    """Takes the place of what loading, saving and pushing a pipeline need."""
    raise NotImplementedError(
        "Code that came with a pipeline draws networks and saves them, no more. To save or push a pipeline, or to "
        "push networks, `pip install pdiff-hf` and load the main revision with pdiff_hf.PDiffPipeline."
    )


def _skip(*args, **kwargs):
    """Takes the place of what writes a card of drawn networks: the templates are not here."""


'''


def export_remote_code(pipeline: str | os.PathLike, output_dir: str | os.PathLike) -> None:
    """Writes a pipeline's folder with the code of the pipeline and of its components beside the weights.

    `DiffusionPipeline.from_pretrained(output_dir, trust_remote_code=True)` then needs diffusers and transformers.

    Args:
        pipeline: A folder that `PDiffPipeline.save_pretrained` wrote.
        output_dir: Where.

    Raises:
        BrokenFileError, UnsafeFileError: If the pipeline's files are damaged or not safe to share.
        UnwritableFolderError: If the folder cannot be written.
    """
    _export(Path(pipeline), shareable_files(pipeline), output_dir)


def push_remote_code(repo_id: str, token: str | bool | None = None) -> str:
    """Puts the code of a pipeline on the Hub onto its branch `remote-code`; the main branch stays free of code.

    Returns:
        The id of the commit.

    Raises:
        HubError: If the repository cannot be read or written to.
    """
    api = HfApi(token=token)
    if "/" not in repo_id:  # as `share` takes it: a repository of one's own
        repo_id = f"{persistently(api.whoami, 'owner of the token')['name']}/{repo_id}"
    source = locate(repo_id, {"token": token})
    assert source.repository is not None
    with tempfile.TemporaryDirectory() as temporary:
        exported = Path(temporary) / "exported"
        _export(source.folder, [name for own in component_files(source.folder).values() for name in own], exported)
        what = str(replace(source.repository, revision=BRANCH))
        persistently(lambda: api.create_branch(repo_id, branch=BRANCH, exist_ok=True), what)
        card = readdress((exported / "README.md").read_text(encoding="utf-8"), repo_id)
        contents: dict[str, Path | bytes] = {name: exported / name for name in shareable_files(exported, (".py",))}
        return push_files(
            contents | {"README.md": card.encode()},
            repo_id,
            revision=BRANCH,
            commit_message="The pipeline with its code",
            token=token,
            replaces=("*",),  # what is there is taken for this code, and run
        )


def _export(pipeline: Path, names: Iterable[str], output_dir: str | os.PathLike) -> None:
    PDiffPipeline.from_pretrained(pipeline)  # raises if the files are damaged, or a class is none of ours
    index = read_index(pipeline)
    with replace_folder(output_dir) as folder:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pipeline / name, folder / name)
        for role in stored_components(index):
            if index[role][0] == "pdiff_hf":
                class_name = index[role][1]
                modules = {cls.__name__: cls.__module__ for cls in component_classes(role).values()}
                index[role] = [_write_code(folder / role, role, modules[class_name]), class_name]
        index["_class_name"] = [_write_code(folder, "pipeline", PDiffPipeline.__module__), PDiffPipeline.__name__]
        write_json(folder / "model_index.json", index)
        write_remote_code_card(folder)


def _write_code(folder: Path, name: str, module: str) -> str:
    """Writes a module's code under a name with its checksum: diffusers keeps all repositories' in one namespace."""
    source = self_contained(module)
    stem = f"pdiff_{name}_{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    write_text(folder / f"{stem}.py", source)
    return stem


def self_contained(module: str) -> str:
    """Returns the source of a module of this package as one file that imports nothing of the package.

    A module that needs no other one is taken as it is. Otherwise those it needs stand before it, without their imports
    of each other, and names from modules that are left out refuse to be called.
    """
    sources: dict[str, str] = {}
    missing: set[str] = set()
    _collect(module, sources, missing)
    if len(sources) == 1 and not missing:
        return inspect.getsource(importlib.import_module(module))
    stand_ins = "".join(f"{name} = {'_skip' if name in SKIPPED else '_refuse'}\n" for name in sorted(missing))
    return HEADER.format(modules=", ".join(sources)) + stand_ins + "\n\n" + "\n\n".join(sources.values())


def _collect(module: str, sources: dict[str, str], missing: set[str]) -> None:
    """Adds the source of a module, after those it needs, without its imports from the package."""
    text = inspect.getsource(importlib.import_module(module))
    lines = text.splitlines(keepends=True)
    for statement in ast.parse(text).body:
        if not isinstance(statement, ast.ImportFrom) or not (statement.level or statement.module == "__future__"):
            continue
        for line in range(statement.lineno - 1, statement.end_lineno or statement.lineno):
            lines[line] = ""
        if statement.level:
            name = "." * statement.level + (statement.module or "")
            needed = importlib.util.resolve_name(name, module.rpartition(".")[0])
            if needed.removeprefix("pdiff_hf.") in LEFT_OUT:
                missing |= {alias.name for alias in statement.names}
            elif needed not in sources:
                _collect(needed, sources, missing)
    sources[module] = "".join(lines)
