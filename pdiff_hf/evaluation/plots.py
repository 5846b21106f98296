"""Pictures of an evaluation, legible at the width of a card and without telling red from green."""

from __future__ import annotations

import os

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..folders import replace_folder
from ..processing_parameters import ParameterProcessor
from .evaluator import Evaluation

PICTURES = {
    "accuracy_similarity.png": "Accuracy against similarity to the zoo",
    "parameter_distribution.png": "Distribution of the parameters by layer",
}
# Okabe and Ito's palette; markers differ too.
STYLE = {
    "zoo": ("zoo", "#999999", "o"),
    "heldout": ("held-out", "#000000", "x"),
    "heldout_branch": ("held-out, another run", "#000000", "+"),
    "averages_16": ("averages of 16", "#E69F00", "^"),
    "gaussian_diagonal": ("Gaussian, diagonal", "#56B4E9", "s"),
    "gaussian_full": ("Gaussian, full", "#0072B2", "D"),
    "gaussian_codes": ("Gaussian in codes", "#009E73", "v"),
    "generated": ("generated", "#D55E00", "P"),
    "average": ("average of all", "#F0E442", "*"),
}
MAX_LAYERS = 6
MAX_POINTS = 100


def draw_pictures(folder: str | os.PathLike, evaluation: Evaluation, processor: ParameterProcessor) -> None:
    """Writes the files that `PICTURES` names."""
    figures = {
        "accuracy_similarity.png": accuracy_against_similarity(evaluation),
        "parameter_distribution.png": parameter_distribution(evaluation, processor),
    }
    with matplotlib.rc_context({"font.size": 11, "savefig.dpi": 140}), replace_folder(folder) as temporary:
        for file, figure in figures.items():
            figure.savefig(temporary / file, bbox_inches="tight")


def accuracy_against_similarity(evaluation: Evaluation) -> Figure:
    """Draws a faint point for each network and a large one for the mean of its set; novel ones are on the left."""
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for name, (label, color, marker) in STYLE.items():
        if name not in evaluation.accuracy:
            continue
        x, y = evaluation.max_similarity[name], 100 * evaluation.accuracy[name]
        axes.scatter(x[:MAX_POINTS], y[:MAX_POINTS], s=10, c=color, marker=marker, alpha=0.25, linewidths=0.8)
        edge = None if marker in "x+" else "black"
        axes.scatter(
            x.mean(), y.mean(), 150, color, marker=marker, linewidths=1.5, edgecolors=edge, label=label, zorder=5
        )
    axes.set_xlabel("largest overlap of wrong predictions with a zoo network (right: more alike)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title("Faithful: on the held-out networks (x). Averager: drawn towards the star.", fontsize=11)
    _tidy(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title="large: mean of a set")
    return figure


def parameter_distribution(evaluation: Evaluation, processor: ParameterProcessor) -> Figure:
    """Draws, for the last generated tensors, how far parameters are from the zoo's average."""
    names = processor.names[-MAX_LAYERS:]
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(8, 2.4 * rows + 0.8))
    grid = figure.subplots(rows, columns, squeeze=False)
    zoo_mean = evaluation.parameters["zoo"].mean(0)
    tensors = {
        name: processor.unflatten(evaluation.parameters[name] - zoo_mean)
        for name in ("zoo", "heldout", "averages_16", "generated")
        if name in evaluation.parameters
    }
    for axes, layer in zip(grid.flat, names, strict=False):
        limit = 4 * tensors["zoo"][layer].std().item() or 1.0
        bins = torch.linspace(-limit, limit, 61)
        for name, values in tensors.items():
            label, color, _ = STYLE[name]
            density, _ = torch.histogram(values[layer].flatten().float(), bins, density=True)
            axes.stairs(
                density.numpy(),
                bins.numpy(),
                label=label,
                color=color,
                fill=name == "zoo",
                alpha=0.5 if name == "zoo" else 1.0,
                linewidth=1.6,
                linestyle="--" if name == "heldout" else "-",
            )
        axes.set_title(_shorten(layer), fontsize=9)
        axes.set_yticks([])
        _tidy(axes)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    figure.suptitle("Distance of parameters from the zoo's average: an averager is too narrow", fontsize=11)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 0.98))
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _shorten(name: str) -> str:
    return name if len(name) <= 46 else "…" + name[-45:]
