"""The report of a conditional generator: `metrics.json`, tables and a figure of its scores on unseen tasks."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..folders import replace_folder, write_json, write_text
from ..hub.cards import CONDITIONAL_PICTURES
from ..pipelines.card import report_parts
from ..pipelines.numbers import number
from .conditional import ConditionalAudit
from .conditional_verdict import MEANINGS
from .metrics import score_statistics
from .reference import SPACES
from .report import without_nan
from .sets import CONDITIONAL_SETS

SHOWN = ("heldout", "generated", "hypernetwork", "ridge", "nearest_relabeled", "shuffled")  # by task
LONGEST_NAME = 40


def write_conditional_report(
    folder: str | os.PathLike, answer: ConditionalAudit, fitted: dict[str, Any], measured: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Writes `metrics.json`, `report.md` and the figure into a folder, and returns the content of `metrics.json`.

    Args:
        folder: Which is replaced.
        answer: What was found.
        fitted: How the generator was made: the beginning of its `metrics.json`.
        measured: What is added to the `data` and the `costs` of that.

    Raises:
        UnwritableFolderError: If the folder cannot be written.
    """
    figures = answer.figures
    sets: dict[str, dict[str, Any]] = {}
    for name, scores in figures.scores.items():
        drawn = figures.drawn.flatten() if name == "generated" else scores
        interval = asdict(answer.scores[name])
        test = {"accuracy": score_statistics(drawn), "interval": interval, "worst_task": scores.min().item()}
        sets[name] = {"title": CONDITIONAL_SETS[name].title, "test": test}
    spreads = answer.criteria["spreads"].measures
    sets["generated"]["test"]["n"] = figures.drawn.numel()
    sets["generated"]["dispersion"] = {name: spreads[name].value.value for name in ("R", "F")}
    metrics = without_nan(
        {
            **fitted,
            "data": {**fitted["data"], **measured["data"]},
            "sets": sets,
            "tasks": _tasks(answer),
            "baseline_settings": answer.chosen,
            "distances": {
                space: {"r": figures.ratios[space].median().item(), "heldout_r": figures.real_r[space]}
                for space in SPACES
            },
            "slope": _slopes(answer),
            "verdict": {
                "word": answer.verdict,
                "meaning": MEANINGS[answer.verdict],
                "reason": answer.reason,
                "criteria": {name: asdict(criterion) for name, criterion in answer.criteria.items()},
            },
            "costs": {**fitted["costs"], **measured["costs"]},
        }
    )
    found, ((file, title),) = report_parts(metrics), CONDITIONAL_PICTURES.items()
    parts = (found["criteria"], found["summary"], found["table"], f"![{title}]({file})", tasks_table(metrics))
    with replace_folder(folder) as temporary:
        write_json(temporary / "metrics.json", metrics)
        write_text(temporary / "report.md", "\n\n".join(parts) + "\n")
        draw_conditions(temporary / file, answer, metrics["data"]["score_name"])
    return metrics


def tasks_table(metrics: dict[str, Any]) -> str:
    """Returns the mean scores on each held-out task as a Markdown table, in per cent."""
    titles = " | ".join(CONDITIONAL_SETS[name].label for name in SHOWN)
    lines = [f"| held-out condition | distance | {titles} |", "|---|---|" + "---|" * len(SHOWN)]
    for task in metrics["tasks"]:
        scores = " | ".join(number(task["scores"][name], 2, 100) for name in SHOWN)
        lines.append(f"| {task['name']} | {number(task['distance'])} | {scores} |")
    return "\n".join(lines)


def draw_conditions(path: Path, answer: ConditionalAudit, score_name: str) -> None:
    """Draws the scores on each held-out task, the best of trained networks first; and measured behavior, if any."""
    measured, real = answer.figures.measured, answer.figures.real_measured
    style: Any = {"font.size": 10, "savefig.dpi": 140, "legend.frameon": False}
    with matplotlib.rc_context(style | {"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8 if measured is None else 12, 5.5))
        axes = figure.subplots(1, 1 if measured is None else 2, squeeze=False)[0]
        _draw_scores(axes[0], answer)
        axes[0].set_ylabel(f"test {score_name} on the task (%)")
        if measured is not None and real is not None:
            requested = answer.figures.requested.flatten()
            for name, values in (("heldout", real), ("generated", measured)):
                row = CONDITIONAL_SETS[name]
                axes[1].scatter(requested, values.flatten(), s=14, alpha=0.6, color=row.color, marker=row.marker)
            axes[1].set(xlabel="requested", ylabel="measured", title="What networks do, against what was asked for")
        figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)
        figure.tight_layout()
        figure.savefig(path, bbox_inches="tight")


def _draw_scores(axes: Axes, answer: ConditionalAudit) -> None:
    """Draws a column for each held-out task; a line reaches from the worst to the best drawn network."""
    figures = answer.figures
    order = figures.scores["heldout"].argsort(descending=True)
    places, drawn = range(len(order)), 100 * figures.drawn[order]
    axes.vlines(places, drawn.amin(1), drawn.amax(1), colors=CONDITIONAL_SETS["generated"].color, alpha=0.5)
    for name in SHOWN:
        row = CONDITIONAL_SETS[name]
        style: Any = {"color": row.color, "marker": row.marker, "label": row.label, "linestyle": ""}
        axes.plot(places, 100 * figures.scores[name][order], **style)
    names = [answer.names[i] for i in order.tolist()]
    short = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in names]
    axes.set_xticks(places, short, rotation=90, fontsize=7)
    axes.set_title("Tasks that nobody trained: drawn networks should lie at the crosses")


def _tasks(answer: ConditionalAudit) -> list[dict[str, Any]]:
    """Returns what was measured of each held-out condition, as JSON types."""
    figures = answer.figures
    spread = figures.disagreement / figures.real_disagreement.clamp(min=1e-12)
    return [
        {
            "name": name,
            "condition": figures.requested[i].tolist(),
            "distance": answer.distances[i],
            "scores": {key: scores[i].item() for key, scores in figures.scores.items()},
            "worst": figures.drawn[i].min().item(),
            "F": spread[i].item(),
            "measured": None if figures.measured is None else figures.measured[i].tolist(),
        }
        for i, name in enumerate(answer.names)
    ]


def _slopes(answer: ConditionalAudit) -> dict[str, Any] | None:
    figures = answer.figures
    both: dict[str, torch.Tensor | None] = {"generated": figures.measured, "heldout": figures.real_measured}
    slopes = {name: asdict(figures.slope(measured)) for name, measured in both.items() if measured is not None}
    return slopes or None
