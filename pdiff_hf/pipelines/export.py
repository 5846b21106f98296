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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi

from ..folders import replace_folder, write_json, write_text
from ..hub.cards import readdress, write_remote_code_card
from ..hub.client import persistently
from ..hub.files import RepositoryFiles
from ..hub.push import push_folder
from ..hub.safety import shareable_files
from .files import check_pipeline_folder, read_index, wanted_files

BRANCH = "remote-code"
LIBRARY = "pdiff_hf"
# Modules whose names the revision takes from `remote`.
REPLACED = dict.fromkeys(
    (
        "hub.cards",
        "pipelines.card",
        "models.conv_autoencoder",
        "models.linear_autoencoder",
        "models.conv_denoiser",
        "models.mlp_denoiser",
        "pipelines.shared",
        "targets.processing_parameters",
        "hub.sharing",
    ),
    "pipelines.remote",
)


class ExportError(ValueError):
    """The package's source cannot be put into one file."""


def export_remote_code(pipeline: str | os.PathLike, output_dir: str | os.PathLike) -> None:
    """Writes a pipeline's folder with the code of the pipeline and of its components beside the weights.

    `DiffusionPipeline.from_pretrained(output_dir, trust_remote_code=True)` then needs diffusers and transformers. The
    code is this package's own source, as much of it as is needed; its files are named after their content, since
    diffusers keeps the code of all repositories in one namespace.

    Args:
        pipeline: A folder that `PDiffPipeline.save_pretrained` wrote.
        output_dir: Where.

    Raises:
        BrokenFileError, UnsafeFileError: If the pipeline's files are damaged or not safe to share.
        UnwritableFolderError: If the folder cannot be written.
    """
    pipeline = Path(pipeline)
    check_pipeline_folder(pipeline)
    index = read_index(pipeline)
    with replace_folder(output_dir) as folder:
        for name in shareable_files(pipeline):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pipeline / name, folder / name)
        for component, entry in index.items():
            if isinstance(entry, list) and entry[0] == LIBRARY:
                module = inspect.getmodule(getattr(importlib.import_module(LIBRARY), entry[1]))
                assert module is not None
                source = bundle(module.__name__.removeprefix(f"{LIBRARY}."), [entry[1]])
                index[component] = [_write_code(folder / component, component, source), entry[1]]
        source = bundle("pipelines.pipeline_pdiff", ["PDiffPipeline"], REPLACED)
        index["_class_name"] = [_write_code(folder, "pipeline", source), "PDiffPipeline"]
        write_json(folder / "model_index.json", index)
        write_remote_code_card(folder)


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
    repository = RepositoryFiles(repo_id, token=token)
    folder = repository.download(["model_index.json"])
    wanted = wanted_files(folder, repository.names(folder), None, ())
    folder = replace(repository, revision=folder.name).download(wanted)
    what = str(replace(repository, revision=BRANCH))
    with tempfile.TemporaryDirectory() as temporary:
        plain, exported = Path(temporary) / "pipeline", Path(temporary) / "exported"
        for name in wanted:  # the cache holds links to what it keeps elsewhere
            (plain / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, plain / name)
        export_remote_code(plain, exported)
        persistently(lambda: api.create_branch(repo_id, branch=BRANCH, exist_ok=True), what)
        card = readdress((exported / "README.md").read_text(encoding="utf-8"), repo_id)
        return push_folder(
            exported,
            repo_id,
            revision=BRANCH,
            commit_message="The pipeline with its code",
            token=token,
            rewritten={"README.md": card.encode()},
            replaces=("*.py", "*.json", "*.safetensors", "*.png"),
            further_suffixes=(".py",),
        )


def _write_code(folder: Path, name: str, source: str) -> str:
    stem = f"pdiff_{name}_{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    write_text(folder / f"{stem}.py", source)
    return stem


def bundle(module: str, names: Sequence[str], replaced: Mapping[str, str] | None = None) -> str:
    """Returns one self-contained source file with the given names of a module of this package, and what they need.

    Args:
        module: The module, without the package's name.
        names: Its classes or functions.
        replaced: Modules whose names are taken from another module instead.

    Raises:
        ExportError: If two modules use one name for different things, or import a whole module of the package.
    """
    bundled = _Bundle(replaced or {})
    for name in names:
        bundled.take(module, name)
    header = f'"""Made from the source of {LIBRARY} by its export; do not edit."""'
    imports = sorted(set(bundled.imports))
    return "\n".join([header, "", "from __future__ import annotations", "", *imports, "", "", *bundled.pieces]) + "\n"


class _Bundle:
    """Collects definitions, each after those it needs."""

    def __init__(self, replaced: Mapping[str, str]) -> None:
        self.replaced = replaced
        self.imports: list[str] = []
        self.pieces: list[str] = []
        self.taken: dict[str, tuple[str, str]] = {}  # name -> module and source
        self.modules: dict[str, dict[str, tuple[ast.stmt, str]]] = {}

    def take(self, module: str, name: str) -> None:
        module = self.replaced.get(module, module)
        definitions = self._definitions(module)
        if name not in definitions:
            return  # a builtin, or a local name
        statement, source = definitions[name]
        if isinstance(statement, ast.ImportFrom) and statement.level:
            if not statement.module:
                raise ExportError(f"{module} imports the module {name} as a whole; import its names instead.")
            package = f"{LIBRARY}.{module}".rpartition(".")[0]
            source_module = importlib.util.resolve_name("." * statement.level + statement.module, package)
            return self.take(source_module.removeprefix(f"{LIBRARY}."), name)
        if name in self.taken:
            if self.taken[name][1] != source:
                raise ExportError(f"{module} and {self.taken[name][0]} both define {name}; rename one.")
            return None
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self.taken[name] = (module, source)
            self.imports.append(source)
            return None
        for target in _defined(statement):
            self.taken[target] = (module, source)
        for needed in sorted({node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}):
            if needed != name:
                self.take(module, needed)
        self.pieces.append(source + "\n\n")
        return None

    def _definitions(self, module: str) -> dict[str, tuple[ast.stmt, str]]:
        if module not in self.modules:
            text = inspect.getsource(importlib.import_module(f"{LIBRARY}.{module}"))
            self.modules[module] = found = {}
            for statement in ast.parse(text).body:
                for name in _defined(statement):
                    found[name] = (statement, _source(text, statement, name))
        return self.modules[module]


def _defined(statement: ast.stmt) -> list[str]:
    """Returns the names that a statement at the top of a module defines."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in statement.names]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _source(text: str, statement: ast.stmt, name: str) -> str:
    """Returns the source of a statement with its decorators; of an import, the part that brings `name`."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        kept = [alias for alias in statement.names if (alias.asname or alias.name).partition(".")[0] == name]
        one = ast.Import(kept) if isinstance(statement, ast.Import) else ast.ImportFrom(statement.module, kept, 0)
        return ast.unparse(one)
    first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
    return "\n".join(text.splitlines()[first - 1 : statement.end_lineno])
