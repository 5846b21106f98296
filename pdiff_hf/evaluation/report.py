"""The report of an evaluation: `metrics.json`, a table, a few sentences and the pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..folders import write_json, write_text
from ..hub.cards import PICTURES
from ..pipelines.card import metrics_table, summarize
from ..targets.processing_parameters import ParameterProcessor
from .evaluator import Evaluation
from .plots import draw_pictures


def write_report(
    folder: str | os.PathLike, evaluation: Evaluation, fitted: dict[str, Any], processor: ParameterProcessor
) -> dict[str, Any]:
    """Writes `metrics.json`, `report.md` and the pictures, and returns the content of `metrics.json`.

    Args:
        folder: Where to write; made if need be.
        evaluation: What was measured.
        fitted: Beginning of the `metrics.json`: how the generator was made (version, generator, data, costs,
            environment).
        processor: The layout, for the pictures.

    Raises:
        UnwritableFolderError: If the folder cannot be written.
    """
    metrics = {
        **fitted,
        "data": {**fitted["data"], **evaluation.data},
        "sets": evaluation.sets,
        "baselines": evaluation.answer.curve,
        "verdict": {
            "word": evaluation.answer.verdict,
            "reason": evaluation.answer.reason,
            "axes": evaluation.answer.axes,
        },
        "costs": {**fitted["costs"], **evaluation.costs},
    }
    write_json(Path(folder) / "metrics.json", metrics)
    pictures = "\n\n".join(f"![{title}]({file})" for file, title in PICTURES.items())
    text = f"{summarize(metrics)}\n\n{metrics_table(metrics)}\n\n{pictures}\n\n{baselines_table(metrics)}\n"
    write_text(Path(folder) / "report.md", text)
    draw_pictures(folder, evaluation, processor)
    return metrics


def baselines_table(metrics: dict[str, Any]) -> str:
    """Returns every baseline at every setting of its knob as a markdown table."""
    lines = ["| baseline | accuracy | max-similarity | F | on the curve |", "|---|---|---|---|---|"]
    for row in metrics["baselines"]:
        test = row["test"]
        lines.append(
            f"| {row['name']} | {100 * test['accuracy']:.2f} | {test['max_similarity']:.3f} | {test['F']:.2f} | "
            f"{'yes' if row['on_curve'] else ''} |"
        )
    return "\n".join(lines)
