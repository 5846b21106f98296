"""The card of a pipeline with its evaluation in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from ..folders import replace_folder, write_json
from ..hub import cards
from ..hub.cards import PICTURES
from ..pipelines.card import write_pipeline_card
from ..pipelines.pipeline_pdiff import PDiffPipeline


def add_report(
    folder: str | os.PathLike, pipe: PDiffPipeline, report: str | os.PathLike, metrics: dict[str, Any]
) -> None:
    """Puts an evaluation into a pipeline's own folder: figures, `metrics.json` and a card that shows them.

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
        write_pipeline_card(folder, pipe, metrics)  # now that all files are there, whose sizes it states
