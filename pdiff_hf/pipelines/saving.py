"""What lies beside the components of a pipeline, and goes with it: card, metrics, figures and license."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers.utils import logging

from ..folders import replace_folder, write_json
from ..hub.cards import has_own_card
from ..hub.client import HubError, HubNotFoundError
from ..hub.safety import matches, own_files
from .card import write_pipeline_card
from .loading import Source, is_of_variant

logger = logging.get_logger(__name__)

ATTACHMENTS = ("README.md", "metrics.json", "*.png", "LICENSE*")


@contextmanager
def replace_pipeline(
    folder: Path, pipe: Any, variant: str | None, token: str | bool | None, push: bool
) -> Iterator[Path]:
    """Yields a folder for a pipeline's components, and puts it in the place of another with what goes with them.

    `variant` is that of the weights, `token` and `push` are for `read_attachments`.
    """
    attached = read_attachments(pipe._source, token, push)
    with replace_folder(folder) as temporary:
        yield temporary
        keep_files(folder, temporary, variant)
        write_attachments(temporary, pipe, attached)


def read_attachments(source: Source | None, token: str | bool | None, push: bool) -> dict[str, bytes]:
    """Returns what lies beside the components where a pipeline was loaded from; nothing if that folder is gone.

    With `push`, the Hub is asked even if the pipeline was loaded without, and must answer: a push deletes there what
    the folder has not got.

    Raises:
        HubError: With `push`, if they cannot be fetched.
        UnsafeFileError: If one is no regular file of that folder.
    """
    if source is None:
        return {}
    folder, repository = source.folder, source.repository
    if repository is not None:
        repository = replace(
            repository,
            revision=folder.name,
            token=token if repository.token is None else repository.token,
            local_files_only=repository.local_files_only and not push,
            force_download=False,
        )
        try:
            folder = repository.download(ATTACHMENTS)
        except HubError as error:
            if push and not isinstance(error, HubNotFoundError):
                raise
            logger.warning(f"Card, metrics and figures are not saved with the pipeline: {error}")
    return {name: (folder / name).read_bytes() for name in own_files(folder, ATTACHMENTS) if "/" not in name}


def write_attachments(folder: Path, pipe: Any, attached: dict[str, bytes]) -> None:
    """Writes attachments beside a saved pipeline, and a new card if there is none or the metrics have changed.

    Figures that are there already stay, and a card that somebody wrote by hand, there or among the attachments.
    """
    preprocessing = pipe.config.image_processor_config
    if preprocessing:  # in the order in which model_index.json keeps it, so that the file is the same after loading
        write_json(folder / "preprocessor_config.json", dict(sorted(preprocessing.items())))
    for name, content in attached.items():
        replaced = name == "metrics.json" or (name == "README.md" and not has_own_card(folder))
        if replaced or not (folder / name).exists():
            (folder / name).write_bytes(content)
    stored = json.loads(attached.get("metrics.json", b"null"))
    if "README.md" not in attached or pipe.metrics not in (None, stored):
        write_metrics(folder, pipe)


def keep_files(old: Path, new: Path, variant: str | None = None) -> None:
    """Copies what a save into an old folder leaves there: attachments, and weights of other variants than its own.

    Links are not followed.
    """
    kept = [path for path in old.glob("*") if matches(path.name, ATTACHMENTS)]
    kept += [path for path in old.glob("*/*.safetensors*") if not is_of_variant(path.name, variant)]
    for path in kept:
        place = new / path.relative_to(old)
        is_own = path.is_file() and not path.is_symlink() and (path.parent == old or not path.parent.is_symlink())
        if is_own and place.parent.is_dir() and not place.exists():
            shutil.copyfile(path, place)


def write_metrics(folder: Path, pipe: Any, beside: Path | None = None) -> None:
    """Writes `metrics.json` and the card that shows it, unless somebody wrote the card by hand.

    `beside` is a folder whose other files will lie there, too.
    """
    if pipe.metrics is not None:
        write_json(folder / "metrics.json", pipe.metrics)
    if not has_own_card(folder):
        write_pipeline_card(folder, pipe, pipe.metrics, beside)
