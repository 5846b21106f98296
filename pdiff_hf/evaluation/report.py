"""The report of an evaluation: `metrics.json`, tables, a summary and the figures, also in the pipeline's card."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..folders import replace_folder, write_json, write_text
from ..hub.cards import PICTURES
from ..pipelines.card import report_parts
from ..pipelines.numbers import number
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..pipelines.saving import keep_files, write_metrics
from ..targets.processing_parameters import ParameterProcessor
from .evaluator import Evaluation
from .plots import draw_figures
from .uncertainty_report import draw_uncertainty, uncertainty_report
from .verdict import MEANINGS


def write_report(
    folder: str | os.PathLike,
    evaluation: Evaluation,
    fitted: dict[str, Any],
    processor: ParameterProcessor,
    uncertainty: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `metrics.json`, `report.md` and the figures into a folder, and returns the content of `metrics.json`.

    `fitted` is its beginning: how the generator was made (version, generator, data, costs, environment);
    `uncertainty` is what `compare_uncertainty` returned, if it was asked for.

    Raises:
        UnwritableFolderError: If the folder cannot be written.
    """
    answer = evaluation.answer
    metrics = without_nan(
        {
            **fitted,
            "data": {**fitted["data"], **evaluation.data},
            "sets": evaluation.sets,
            "baselines": [asdict(row) for row in answer.curve],
            "verdict": {
                "word": answer.verdict,
                "meaning": MEANINGS[answer.verdict],
                "reason": answer.reason,
                "axes": asdict(answer.evidence),
                "criteria": {name: asdict(criterion) for name, criterion in answer.criteria.items()},
            },
            "costs": {**fitted["costs"], **evaluation.costs},
        }
        | ({} if uncertainty is None else {"uncertainty": uncertainty})
    )
    figures = "\n\n".join(f"![{title}]({file})" for file, title in PICTURES.items())
    found = report_parts(metrics)
    parts = [found["criteria"], found["summary"], found["table"], figures, baselines_table(metrics)]
    if uncertainty is not None:
        parts.append(uncertainty_report(metrics["uncertainty"]))
    with replace_folder(folder) as temporary:
        write_json(temporary / "metrics.json", metrics)
        write_text(temporary / "report.md", "\n\n".join(parts) + "\n")
        draw_figures(temporary, evaluation, processor)
        if uncertainty is not None:
            draw_uncertainty(temporary, metrics["uncertainty"])
    return metrics


def add_report(
    folder: str | os.PathLike, pipe: PDiffPipeline, report: str | os.PathLike, metrics: dict[str, Any]
) -> None:
    """Puts a report, of either kind of generator, into the pipeline's folder: figures, `metrics.json` and card.

    The folder is replaced atomically.
    """
    pipe.metrics = metrics
    with replace_folder(folder) as temporary:
        for picture in Path(report).glob("*.png"):
            shutil.copy(picture, temporary / picture.name)
        keep_files(Path(folder), temporary)
        write_metrics(temporary, pipe, Path(folder))


def without_nan(value: Any) -> Any:
    """Returns a value of JSON types in which null stands for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def baselines_table(metrics: dict[str, Any]) -> str:
    """Returns every baseline at every setting as a Markdown table, scores in per cent."""
    lines = [
        f"| baseline | {metrics['data']['score_name']} | max-similarity | F | on the curve |",
        "|---|---|---|---|---|",
    ]
    for row in metrics["baselines"]:
        test = row["test"]
        lines.append(
            f"| {row['name']} | {number(test['accuracy'], 2, 100)} | {number(test['max_similarity'], 3)} | "
            f"{number(test['F'], 2)} | "
            f"{'yes' if row['on_curve'] else ''} |"
        )
    return "\n".join(lines)
