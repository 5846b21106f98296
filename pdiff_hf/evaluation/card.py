"""The card of a pipeline with its evaluation in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from ..folders import replace_folder
from ..hub.cards import PICTURES
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..pipelines.saving import write_metrics


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
    pipe.metrics = metrics
    write_metrics(Path(folder), pipe)
