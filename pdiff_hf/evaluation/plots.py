"""Figures of an evaluation, legible at the width of a card and without telling red from green."""

from __future__ import annotations

import os
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ..folders import replace_folder
from ..targets.processing_parameters import ParameterProcessor
from .evaluator import Evaluation
from .sets import SETS

MAX_LAYERS = 6
MAX_POINTS = 100
EMBEDDED = 200


def draw_figures(folder: str | os.PathLike, evaluation: Evaluation, processor: ParameterProcessor) -> None:
    """Writes the files that `PICTURES` names."""
    style: Any = {"font.size": 11, "axes.titlesize": 11, "savefig.dpi": 140, "legend.frameon": False}
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style), replace_folder(folder) as temporary:
        drawn = {
            "accuracy_similarity.png": accuracy_against_similarity(evaluation),
            "similarity_matrix.png": similarity_matrix(evaluation),
            "parameter_distribution.png": parameter_distribution(evaluation, processor),
            "reverse_process.png": reverse_process(evaluation),
            "embedding.png": embedding(evaluation),
        }
        for file, figure in drawn.items():
            figure.savefig(temporary / file, bbox_inches="tight")


def accuracy_against_similarity(evaluation: Evaluation) -> Figure:
    """Draws a faint point for each network and a large one for the mean of its set; novel ones are on the left."""
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for key, networks in evaluation.networks.items():
        row, x, y = SETS[key], evaluation.max_similarity[key], 100 * networks.scores["test"]
        style: dict[str, Any] = {"c": row.color, "marker": row.marker}
        axes.scatter(x[:MAX_POINTS], y[:MAX_POINTS], s=10, alpha=0.25, linewidths=0.8, **style)
        edge = None if row.marker in "x+" else "black"
        axes.scatter(x.nanmean(), y.mean(), 150, linewidths=1.5, edgecolors=edge, label=row.label, zorder=5, **style)
    for row in SETS.values():
        family = (row.baseline or "").partition("@")[0]
        points = [found.test for found in evaluation.answer.curve if found.name.partition("@")[0] == family]
        places, heights = [point.max_similarity for point in points], [100 * point.accuracy for point in points]
        axes.plot(places, heights, color=row.color, linewidth=1, marker=".", zorder=4)
    axes.set_xlabel("largest overlap of wrong predictions with a zoo network (right: more alike)")
    axes.set_ylabel(f"test {evaluation.data['score_name']} (%)")
    axes.set_title("Faithful: on the held-out networks (x). Averager: drawn to the star, along the baselines' lines.")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="large: mean of a set")
    return figure


def parameter_distribution(evaluation: Evaluation, processor: ParameterProcessor) -> Figure:
    """Draws, for the last generated tensors, how far parameters are from the zoo's average."""
    names = processor.names[-MAX_LAYERS:]
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(8, 2.4 * rows + 0.8))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes, layer in zip(grid.flat, names, strict=False):
        draw_distribution(axes, evaluation, processor, layer)
        axes.set_title(layer if len(layer) <= 46 else "…" + layer[-45:], fontsize=9)
    _finish(figure, "Distance of parameters from the zoo's average: an averager is too narrow")
    return figure


def draw_distribution(axes: Axes, evaluation: Evaluation, processor: ParameterProcessor, layer: str) -> None:
    """Draws how far the parameters of one tensor are from the zoo's average, for four sets."""
    zoo = evaluation.networks["zoo"].parameters
    average = zoo.mean(0)
    limit = 4 * processor.unflatten(zoo - average)[layer].std().item() or 1.0
    bins = torch.linspace(-limit, limit, 61)
    styles: dict[str, dict[str, Any]] = {"zoo": {"fill": True, "alpha": 0.5}, "heldout": {"linestyle": "--"}}
    for key in ("zoo", "heldout", "averages_16", "generated"):
        if key in evaluation.networks:
            values = processor.unflatten(evaluation.networks[key].parameters - average)[layer]
            density, _ = torch.histogram(values.flatten().float(), bins, density=True)
            style = {"label": SETS[key].label, "color": SETS[key].color, "linewidth": 1.6, **styles.get(key, {})}
            axes.stairs(density.numpy(), bins.numpy(), **style)
    axes.set_yticks([])


def similarity_matrix(evaluation: Evaluation) -> Figure:
    """Draws how alike the errors of any two sets are; on the diagonal, of distinct networks of one set."""
    labels = [SETS[name].label for name in evaluation.networks]
    figure = Figure(figsize=(8, 6.6))
    axes = figure.subplots()
    middle = (evaluation.similarity.min().item() + evaluation.similarity.max().item()) / 2
    image = axes.imshow(evaluation.similarity, cmap="cividis")
    for i, row in enumerate(evaluation.similarity.tolist()):
        for j, value in enumerate(row):
            color = "white" if value < middle else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_title("Overlap of wrong predictions: a generator's own square should equal the held-out one's")
    figure.colorbar(image, shrink=0.8)
    return figure


def reverse_process(evaluation: Evaluation) -> Figure:
    """Draws the score of what the latents decode to, along the sampler's steps."""
    figure = Figure(figsize=(8, 4.4))
    axes = figure.subplots()
    scores, color = 100 * evaluation.reverse_process, SETS["generated"].color
    axes.plot(range(1, len(scores) + 1), scores, color=color, alpha=0.8, linewidth=1.5)
    zoo = 100 * evaluation.networks["zoo"].scores["test"]
    style: dict[str, Any] = {"color": SETS["zoo"].color, "alpha": 0.35, "label": "zoo, from worst to best"}
    axes.axhspan(zoo.min().item(), zoo.max().item(), **style)
    axes.set_xlabel("steps of the sampler (equally spaced)")
    axes.set_ylabel(f"test {evaluation.data['score_name']} (%)")
    axes.set_title(f"From noise to networks: what the latents decode to along the way, {scores.shape[1]} seeds")
    axes.legend(loc="lower right")
    return figure


def embedding(evaluation: Evaluation) -> Figure:
    """Draws zoo, held-out checkpoints and samples by their first principal components and by t-SNE."""
    names = [name for name in ("zoo", "heldout", "heldout_branch", "generated") if name in evaluation.networks]
    sets = [evaluation.networks[name].parameters[:EMBEDDED] for name in names]
    everything = torch.cat(sets).numpy()
    tsne = TSNE(perplexity=min(30, (len(everything) - 1) // 3), random_state=0)
    views = {
        "principal components": PCA(2).fit(sets[0].numpy()).transform(everything),
        "t-SNE": tsne.fit_transform(everything),
    }
    figure = Figure(figsize=(8, 4.4))
    for axes, (title, points) in zip(figure.subplots(1, 2), views.items(), strict=True):
        for name, part in zip(names, np.split(points, np.cumsum([len(vectors) for vectors in sets])), strict=False):
            row = SETS[name]
            style: dict[str, Any] = {"c": row.color, "marker": row.marker, "label": row.label}
            axes.scatter(part[:, 0], part[:, 1], s=14, alpha=0.6, linewidths=0.8, **style)
        axes.set_title(title, fontsize=10)
        axes.set(xticks=[], yticks=[])
    _finish(figure, "Samples belong where held-out checkpoints are, not on top of zoo members")
    return figure


def _finish(figure: Figure, title: str) -> None:
    """Adds a title and one legend for all axes."""
    figure.suptitle(title, fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels))
    figure.tight_layout(rect=(0, 0.07, 1, 0.99))
