"""How a pipeline is loaded, saved and pushed: checked on the way in, with card and pictures on the way out."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from diffusers import DiffusionPipeline
from diffusers.utils import logging

from ..folders import write_json
from ..hub.client import HubError, HubNotFoundError
from ..hub.files import RepositoryFiles
from ..hub.safety import BrokenFileError, UnsafeFileError, matches
from ..hub.sharing import share
from .card import write_pipeline_card
from .files import ATTACHMENTS, ROOT_FILES, check_pipeline_folder, wanted_files

logger = logging.get_logger(__name__)
Pipeline = TypeVar("Pipeline", bound="SharedPipeline")


@dataclass(frozen=True)
class Source:
    """Where a pipeline was loaded from: a folder, and the repository if it is a snapshot of one."""

    folder: Path
    repository: RepositoryFiles | None = None

    @property
    def repo_id(self) -> str | None:
        """Id on the Hub."""
        return self.repository.repo_id if self.repository else None

    @property
    def commit(self) -> str | None:
        """The commit that was loaded."""
        return self.folder.name if self.repository else None


class SharedPipeline(DiffusionPipeline):
    """diffusers' verbs for `PDiffPipeline`, made safe and whole.

    Attributes:
        metrics: How it was made and what was measured, the content of `metrics.json`; None if not known.
    """

    metrics: dict[str, Any] | None = None
    _source: Source | None = None

    @classmethod
    def from_pretrained(
        cls: type[Pipeline], pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Pipeline:
        """Loads a pipeline from a folder or from the Hub; takes the arguments of `DiffusionPipeline.from_pretrained`.

        Only the configurations and safetensors weights of the components are fetched; each file is compared with its
        checksum, a cached one too, and a damaged one is fetched once more. Before any weight is read, the files are
        checked against one another.

        Args:
            pretrained_model_name_or_path: A folder, or an id such as `"org/name"`.
            **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `variant`, `dtype`,
                `device_map`, or a component to be used in place of the stored one.

        Raises:
            HubError: If it cannot be fetched; the subclasses of `pdiff_hf.hub.client` say why.
            BrokenFileError: If a file is missing, damaged or does not fit the others.
            UnsafeFileError: If weights are pickled, or a class is none that this package reads.
        """
        if kwargs.pop("use_safetensors", True) is False:
            raise UnsafeFileError("use_safetensors=False asks for pickled weights, which are never read.")
        name = str(pretrained_model_name_or_path)
        source = cls._locate(name, kwargs)
        given = [component for component in kwargs if kwargs[component] is not None]
        check_pipeline_folder(source.folder, given, kwargs.get("variant"))
        try:
            pipe = super().from_pretrained(str(source.folder), use_safetensors=True, **kwargs)
        except Exception as error:
            if kwargs:  # they may be what is wrong
                raise
            raise BrokenFileError(
                f"The pipeline in {str(source.folder)!r} cannot be built ({type(error).__name__}: {error})."
            ) from error
        pipe.register_to_config(_name_or_path=name)
        pipe._source = source
        return pipe

    @classmethod
    def download(cls, pretrained_model_name: str | os.PathLike, **kwargs: Any) -> str:
        """Brings a pipeline's files into the cache, checked, and returns their folder; see `from_pretrained`."""
        return str(cls._locate(str(pretrained_model_name), kwargs).folder)

    @classmethod
    def _locate(cls, name: str, kwargs: dict[str, Any]) -> Source:
        """Finds the folder, or fetches it; takes the arguments that concern fetching out of `kwargs`."""
        keys = ("revision", "token", "cache_dir", "local_files_only", "force_download")
        fetching = {key: kwargs.pop(key) for key in keys if key in kwargs}
        if Path(name).is_dir():
            return Source(Path(name))
        repository = RepositoryFiles.named(name, **{k: value for k, value in fetching.items() if value is not None})
        folder = repository.download(ROOT_FILES[:1])
        at_commit = replace(repository, revision=folder.name)
        given = [component for component in kwargs if kwargs[component] is not None]
        wanted = wanted_files(folder, repository.names(folder), kwargs.get("variant"), given)
        return Source(at_commit.download(wanted), repository)

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Saves the pipeline, with `preprocessor_config.json` at the root, its card, its metrics and its pictures.

        Args:
            save_directory: Where; a card or picture that is there already stays.
            *args: See `DiffusionPipeline.save_pretrained`.
            push_to_hub: Push the folder too; then `repo_id`, `private`, `token`, `commit_message` and `create_pr` are
                taken, see `push_to_hub`.
            **kwargs: See `DiffusionPipeline.save_pretrained`.
        """
        folder = Path(save_directory)
        pushing = {
            key: kwargs.pop(key) for key in ("private", "token", "commit_message", "create_pr") if key in kwargs
        }
        repo_id = kwargs.pop("repo_id", folder.name)
        if kwargs.pop("safe_serialization", True) is False:
            raise UnsafeFileError("safe_serialization=False asks for pickled weights, which are never written.")
        self._save(folder, args, kwargs, pushing.get("token"), push_to_hub)
        if push_to_hub:
            share(folder, repo_id, **pushing)

    def _save(self, folder: Path, args: tuple, kwargs: dict[str, Any], token: str | bool | None, push: bool) -> None:
        if self.config.image_processor_config:
            # In the order in which model_index.json keeps it, so that the file is the same after loading.
            write_json(folder / "preprocessor_config.json", dict(sorted(self.config.image_processor_config.items())))
        super().save_pretrained(folder, *args, **kwargs)
        self._save_attachments(folder, token, push)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Pushes the pipeline with its card, metrics and pictures, in one commit, or in none if nothing has changed.

        Takes and returns what `pdiff_hf.share` does.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), (), {}, token, push=True)
            return share(
                folder, repo_id, private=private, token=token, commit_message=commit_message, create_pr=create_pr
            )

    def _save_attachments(self, folder: Path, token: str | bool | None, push: bool) -> None:
        if self._source is not None:
            origin = self._source.folder
            repository = self._source.repository
            if repository is not None:
                here = replace(
                    repository,
                    revision=self._source.commit,
                    token=token if repository.token is None else repository.token,
                    local_files_only=repository.local_files_only and not push,
                    force_download=False,
                )
                try:
                    origin = here.download(ATTACHMENTS)
                except HubError as error:
                    if push and not isinstance(error, HubNotFoundError):
                        raise  # a push deletes on the Hub what the folder has not got
                    logger.warning(f"Card, metrics and pictures are not saved with the pipeline: {error}")
            for path in sorted(origin.glob("*")):  # none if the folder is gone
                if matches(path.name, ATTACHMENTS) and path.is_file() and not (folder / path.name).exists():
                    shutil.copyfile(path, folder / path.name)
        if self.metrics is not None and not (folder / "metrics.json").exists():
            write_json(folder / "metrics.json", self.metrics)
        if not (folder / "README.md").exists():
            write_pipeline_card(folder, self, self.metrics)
