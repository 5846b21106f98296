"""The report of an evaluation: `metrics.json`, tables, a summary and the figures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..folders import write_json, write_text
from ..hub.cards import PICTURES
from ..pipelines.card import metrics_table, summarize
from ..targets.processing_parameters import ParameterProcessor
from .evaluator import Evaluation
from .plots import draw_figures
from .verdict import MEANINGS


def write_report(
    folder: str | os.PathLike, evaluation: Evaluation, fitted: dict[str, Any], processor: ParameterProcessor
) -> dict[str, Any]:
    """Writes `metrics.json`, `report.md` and the figures, and returns the content of `metrics.json`.

    Args:
        folder: Where to write; created if it does not exist.
        evaluation: What was measured.
        fitted: Beginning of the `metrics.json`: how the generator was made (version, generator, data, costs,
            environment).
        processor: The layout, for the figures.

    Raises:
        UnwritableFolderError: If the folder cannot be written.
    """
    metrics = {
        **fitted,
        "data": {**fitted["data"], **evaluation.data},
        "sets": evaluation.sets,
        "baselines": [row.to_dict() for row in evaluation.answer.curve],
        "verdict": {
            "word": evaluation.answer.verdict,
            "meaning": MEANINGS[evaluation.answer.verdict],
            "reason": evaluation.answer.reason,
            "axes": evaluation.answer.criteria.to_dict(),
        },
        "costs": {**fitted["costs"], **evaluation.costs},
    }
    write_json(Path(folder) / "metrics.json", metrics)
    figures = "\n\n".join(f"![{title}]({file})" for file, title in PICTURES.items())
    text = f"{summarize(metrics)}\n\n{metrics_table(metrics)}\n\n{figures}\n\n{baselines_table(metrics)}\n"
    write_text(Path(folder) / "report.md", text)
    draw_figures(folder, evaluation, processor)
    return metrics


def baselines_table(metrics: dict[str, Any]) -> str:
    """Returns every baseline at every setting as a Markdown table, scores in per cent."""
    score_name = metrics["data"]["score_name"]
    lines = [f"| baseline | {score_name} | max-similarity | F | on the curve |", "|---|---|---|---|---|"]
    for row in metrics["baselines"]:
        test = row["test"]
        lines.append(
            f"| {row['name']} | {100 * test['accuracy']:.2f} | {test['max_similarity']:.3f} | {test['F']:.2f} | "
            f"{'yes' if row['on_curve'] else ''} |"
        )
    return "\n".join(lines)
