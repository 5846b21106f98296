"""The card of a pipeline with its evaluation in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from ..folders import replace_folder, write_json
from ..hub import cards
from ..hub.cards import PICTURES
from ..hub.files import RepositoryFiles
from ..hub.safety import read_json
from ..pipelines.pipeline_pdiff import PDiffPipeline
from .report import headline, metrics_table, summarize


def add_report(
    folder: str | os.PathLike, pipe: PDiffPipeline, report: str | os.PathLike, metrics: dict[str, Any]
) -> None:
    """Puts an evaluation into a pipeline's own folder: pictures, `metrics.json` and a card that shows them.

    Args:
        folder: The pipeline's folder.
        pipe: The pipeline.
        report: The folder that `write_report` wrote.
        metrics: What it returned.
    """
    with replace_folder(folder) as temporary:
        for picture in PICTURES:
            shutil.copy(Path(report) / picture, temporary / picture)
        write_json(temporary / "metrics.json", metrics)
    if not cards.has_own_card(folder):
        write_pipeline_card(folder, pipe, metrics)  # now that all files are there, whose sizes it tells


def read_metrics(
    pipeline: str | os.PathLike, revision: str | None = None, token: str | bool | None = None
) -> dict[str, Any] | None:
    """Returns the `metrics.json` of a pipeline's folder or Hub repository, or None if it has none.

    Raises:
        HubError: If the repository cannot be read.
        BrokenFileError: If the file is damaged.
    """
    folder = Path(pipeline)
    if not folder.is_dir():
        folder = RepositoryFiles.named(str(pipeline), revision=revision, token=token).download(["metrics.json"])
    return read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else None


def write_pipeline_card(folder: str | os.PathLike, pipe: PDiffPipeline, metrics: dict[str, Any]) -> None:
    """Writes the README.md of a pipeline repository from its `metrics.json`, evaluated or not."""
    report = None
    if "sets" in metrics:
        report = {"headline": headline(metrics), "summary": summarize(metrics), "table": metrics_table(metrics)}
    cards.write_pipeline_card(folder, pipe.components, pipe.config.default_num_inference_steps, metrics, report)
