"""The key `uncertainty` of a `metrics.json` in words, as tables and as a figure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ..hub.cards import UNCERTAINTY_PICTURES
from ..pipelines.numbers import number
from .plots import STYLE
from .predictive import COMPARED
from .sets import PREDICTORS
from .shifts import SEVERITIES


def uncertainty_report(uncertainty: Mapping[str, Any]) -> str:
    """Returns the section of a report: what was found in words, then the tables; as Markdown."""
    ((file, title),) = UNCERTAINTY_PICTURES.items()
    parts = [
        "## Predictive uncertainty",
        summarize_uncertainty(uncertainty),
        uncertainty_table(uncertainty),
        detection_table(uncertainty),
        f"![{title}]({file})",
    ]
    return "\n\n".join(parts)


def summarize_uncertainty(uncertainty: Mapping[str, Any]) -> str:
    """Returns in words how ensembles of drawn networks compare with what is simpler."""
    predictors, size = uncertainty["predictors"], uncertainty["members"]
    found = [f"An ensemble of {size} drawn networks {_comparison(uncertainty, 'average')}."]
    if uncertainty["nll_of_drawn_minus"]["average"]["low"] > 0:
        found.append(f"The average is the better predictor, and costs one network instead of {size} at prediction.")
    found.append(f"It {_comparison(uncertainty, 'gaussian_codes')}.")
    equivalent = uncertainty["deep_ensemble_equivalent"]
    if equivalent is not None:
        at_least = "at least " if equivalent["value"] >= equivalent["largest"] else ""
        found.append(
            f"It {_comparison(uncertainty, 'heldout')}; {at_least}{number(equivalent['value'], 1)} held-out networks "
            "have the same NLL (its deep-ensemble equivalent, arXiv 2002.06470)."
        )
        if uncertainty["heldout_runs"] == 1:
            found.append(
                "Held-out networks are checkpoints of the zoo's own trajectory, so theirs is not a deep ensemble."
            )
    drawn = predictors["generated_large"]
    cost = drawn["training_seconds"]
    found.append(
        "At the generator's training cost"
        + (f" ({number(cost, 0)} s, zoo included)" if cost is not None else "")
        + f" one also has the zoo itself: an ensemble of {drawn['networks']} drawn networks "
        f"{_comparison(uncertainty, 'zoo_large')}."
    )
    return " ".join(found)


def _comparison(uncertainty: Mapping[str, Any], name: str) -> str:
    """Returns how the NLL of drawn ensembles compares with that of another predictor, with its interval."""
    difference, predictors = uncertainty["nll_of_drawn_minus"][name], uncertainty["predictors"]
    other, drawn = predictors[name], predictors[COMPARED[name]]
    titles = {
        "average": "the plain average of the zoo (one network)",
        "heldout": "one of held-out networks",
        "gaussian_codes": "one from a Gaussian in the generator's codes",
        "zoo_large": f"one of {other['networks']} zoo networks",
    }
    word = "has an NLL that cannot be told apart from that of"
    if difference["low"] > 0 or difference["high"] < 0:
        word = "has a higher NLL than" if difference["low"] > 0 else "has a lower NLL than"
    low, high = (number(difference[end], 4) for end in ("low", "high"))
    return (
        f"{word} {titles[name]}: {number(drawn['test']['nll'], 4)} against {number(other['test']['nll'], 4)}, "
        f"a difference of {number(difference['value'], 4)} [{low}, {high}]"
    )


def uncertainty_table(uncertainty: Mapping[str, Any]) -> str:
    """Returns test figures of each predictor after temperature scaling as a Markdown table; shares in per cent."""
    lines = [
        "| predictor | networks | training s | accuracy | NLL | Brier | ECE | ECE unscaled | temperature "
        "| mutual information |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for figures in uncertainty["predictors"].values():
        test, std = figures["test"], figures["std"]["nll"]
        cells = [
            figures["title"],
            str(figures["networks"]),
            number(figures["training_seconds"], 1),
            number(test["accuracy"], 2, 100),
            number(test["nll"], 4) + ("" if std is None else f" ± {number(std, 4)}"),
            number(test["brier"], 4),
            number(test["ece"], 2, 100),
            number(figures["unscaled"]["ece"], 2, 100),
            number(figures["temperature"], 2),
            number(figures["mutual_information"], 4),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def detection_table(uncertainty: Mapping[str, Any]) -> str:
    """Returns how well each predictor tells out-of-distribution images from test images as a Markdown table."""
    predictors = uncertainty["predictors"]
    kinds = list(predictors["generated"]["ood"])
    lines = [
        "| AUROC (FPR95) in per cent | "
        + " | ".join(f"{kind}, by {score}" for kind in kinds for score in ("entropy", "mutual information"))
        + " |",
        "|---|" + "---|---|" * len(kinds),
    ]
    for figures in predictors.values():
        cells = [figures["title"]]
        for kind in kinds:
            for score in ("entropy", "mutual_information"):
                found = figures["ood"][kind].get(score)
                shown = [number(found and found[name], 1, 100) for name in ("auroc", "fpr95")]
                cells.append(f"{shown[0]} ({shown[1]})" if found else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_uncertainty(folder: str | os.PathLike, uncertainty: Mapping[str, Any]) -> None:
    """Writes the file that `UNCERTAINTY_PICTURES` names."""
    (file,) = UNCERTAINTY_PICTURES
    with matplotlib.rc_context(STYLE):
        corruption_curves(uncertainty).savefig(os.path.join(folder, file), bbox_inches="tight")


def corruption_curves(uncertainty: Mapping[str, Any]) -> Figure:
    """Draws accuracy and NLL against the severity of each corruption, a line for each predictor; 0 is clean.

    Single networks are dashed; large ensembles, whose lines would cover others, are left out.
    """
    predictors = {key: row for key, row in uncertainty["predictors"].items() if not key.endswith("_large")}
    kinds = list(predictors["generated"]["corrupted"])
    figure = Figure(figsize=(3 * len(kinds), 6))
    grid = figure.subplots(2, len(kinds), sharex=True, squeeze=False)
    for column, kind in zip(grid.T, kinds, strict=True):
        for axes, name, factor in zip(column, ("accuracy", "nll"), (100, 1), strict=True):
            for key, figures in predictors.items():
                values = [factor * value for value in (figures["test"][name], *figures["corrupted"][kind][name])]
                row = PREDICTORS[key]
                style: dict[str, Any] = {"color": row.color, "marker": row.marker, "markersize": 4, "linewidth": 1.2}
                style["linestyle"] = "--" if figures["networks"] == 1 else "-"
                axes.plot(range(len(values)), values, label=row.label, **style)
        column[0].set_title(kind)
        column[1].set(xlabel="severity (0: clean)", xticks=range(len(SEVERITIES) + 1))
    grid[0, 0].set_ylabel("test accuracy (%)")
    grid[1, 0].set_ylabel("NLL (nats)")
    size = uncertainty["members"]
    figure.suptitle(f"Corrupted test images: single networks (dashed) and ensembles of {size}", fontsize=11)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=4, fontsize=10)
    figure.tight_layout(rect=(0, 0.02, 1, 0.99))
    return figure
