"""What the card of a conditional generator states of its evaluation on tasks that nobody trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .numbers import interval, number, score_name

NAMED = ("heldout", "nearest_relabeled", "ridge", "hypernetwork")  # sets that a sentence names


def conditional_report(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Returns `headline`, `summary`, `table` and `legend` of the `metrics.json` of a conditional generator."""
    return {
        "headline": _headline(metrics),
        "summary": _summary(metrics),
        "table": _table(metrics),
        "legend": _legend(metrics),
    }


def _headline(metrics: Mapping[str, Any]) -> str:
    verdict, sets = metrics["verdict"], metrics["sets"]
    beside = ", ".join(f"{sets[name]['title']}: {_percent(sets[name])} %" for name in NAMED)
    return (
        f"The audit calls it **{verdict['word']}**: {verdict['meaning']}. On {len(metrics['tasks'])} tasks that "
        f"nobody trained, its networks reach {score_name(metrics)} {_percent(sets['generated'])} % on average "
        f"({beside})."
    )


def _summary(metrics: Mapping[str, Any]) -> str:
    verdict, sets, tasks = metrics["verdict"], metrics["sets"], metrics["tasks"]
    far = [task["distance"] for task in tasks]
    dispersion = sets["generated"]["dispersion"]
    parts = [
        f"The verdict: **{verdict['word']}** ({verdict['meaning']}; {verdict['reason']}). The {len(tasks)} held-out "
        f"conditions are at a distance of {number(min(far))} to {number(max(far))} from the nearest condition of the "
        f"zoo. The {sets['generated']['test']['n']} networks drawn for them reach {_percent(sets['generated'])} % on "
        f"average, networks trained for them {_percent(sets['heldout'])} %. Within a condition their diversity is "
        f"R = {number(dispersion['R'])} and F = {number(dispersion['F'])} times that of trained ones, and they lie "
        f"r = {number(metrics['distances']['weights']['r'])} times the natural distance from the zoo (trained ones: "
        f"{number(metrics['distances']['weights']['heldout_r'])})."
    ]
    if metrics["slope"] is not None:
        parts.append(
            f"What they do follows what is asked with a slope of {interval(metrics['slope']['generated'])}; networks "
            f"trained for it {interval(metrics['slope']['heldout'])}."
        )
    return " ".join(parts)


def _table(metrics: Mapping[str, Any]) -> str:
    """Returns the score of each set on unseen tasks as a Markdown table, in per cent."""
    lines = [f"| on unseen tasks | {score_name(metrics)} [95 % interval] | worst task |", "|---|---|---|"]
    for figures in metrics["sets"].values():
        worst = number(figures["test"]["worst_task"], 2, 100)
        lines.append(f"| {figures['title']} | {interval(figures['test']['interval'], 100)} | {worst} |")
    return "\n".join(lines)


def _legend(metrics: Mapping[str, Any]) -> str:
    return (
        f"*{score_name(metrics)}*: in per cent on the test images of each held-out task, over unselected networks, "
        "mean over tasks; intervals resample tasks. A criterion is *passed* if the intervals of all its quantities "
        "lie in the required range, *failed* if one lies outside of it, and *undecided* otherwise. *R* and *F*: "
        "spread of the parameters, and disagreement of predictions, within a condition, relative to networks trained "
        "on its task."
    )


def _percent(figures: Mapping[str, Any]) -> str:
    return number(figures["test"]["accuracy"]["mean"], 2, 100)
