"""Pictures of an evaluation, legible at the width of a card and without telling red from green."""

from __future__ import annotations

import os

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ..folders import replace_folder
from ..targets.processing_parameters import ParameterProcessor
from .evaluator import Evaluation

# Okabe and Ito's palette; markers differ too.
STYLE = {
    "zoo": ("zoo", "#999999", "o"),
    "heldout": ("held-out", "#000000", "x"),
    "heldout_branch": ("held-out, another run", "#000000", "+"),
    "averages_16": ("averages of 16", "#E69F00", "^"),
    "gaussian_diagonal": ("Gaussian, diagonal", "#56B4E9", "s"),
    "gaussian_full": ("Gaussian, full", "#0072B2", "D"),
    "gaussian_codes": ("Gaussian in codes", "#009E73", "v"),
    "noise": ("zoo with noise", "#CC79A7", "<"),
    "generated": ("generated", "#D55E00", "P"),
    "average": ("average of all", "#F0E442", "*"),
}
# The knob of each of these baselines is swept; the line joins its settings.
CURVES = {
    "shrink": "#999999",
    "averages": "#E69F00",
    "gaussian_diagonal": "#56B4E9",
    "gaussian_full": "#0072B2",
    "gaussian_codes": "#009E73",
}
MAX_LAYERS = 6
MAX_POINTS = 100
EMBEDDED = 200


def draw_pictures(folder: str | os.PathLike, evaluation: Evaluation, processor: ParameterProcessor) -> None:
    """Writes the files that `PICTURES` names."""
    drawn = {
        "accuracy_similarity.png": accuracy_against_similarity(evaluation),
        "similarity_matrix.png": similarity_matrix(evaluation),
        "parameter_distribution.png": parameter_distribution(evaluation, processor),
        "reverse_process.png": reverse_process(evaluation),
        "embedding.png": embedding(evaluation),
    }
    with matplotlib.rc_context({"font.size": 11, "savefig.dpi": 140}), replace_folder(folder) as temporary:
        for file, figure in drawn.items():
            figure.savefig(temporary / file, bbox_inches="tight")


def accuracy_against_similarity(evaluation: Evaluation) -> Figure:
    """Draws a faint point for each network and a large one for the mean of its set; novel ones are on the left."""
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for name, (label, color, marker) in STYLE.items():
        if name not in evaluation.judged:
            continue
        x, y = evaluation.max_similarity[name], 100 * evaluation.judged[name].accuracy["test"]
        axes.scatter(x[:MAX_POINTS], y[:MAX_POINTS], s=10, c=color, marker=marker, alpha=0.25, linewidths=0.8)
        edge = None if marker in "x+" else "black"
        axes.scatter(
            x.mean(), y.mean(), 150, color, marker=marker, linewidths=1.5, edgecolors=edge, label=label, zorder=5
        )
    for family, color in CURVES.items():
        points = [row["test"] for row in evaluation.answer.curve if row["name"].split("@")[0] == family]
        places = [point["max_similarity"] for point in points]
        heights = [100 * point["accuracy"] for point in points]
        axes.plot(places, heights, color=color, linewidth=1, marker=".", zorder=4)
    axes.set_xlabel("largest overlap of wrong predictions with a zoo network (right: more alike)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(
        "Faithful: on the held-out networks (x). Averager: drawn to the star, along the baselines' lines.", fontsize=11
    )
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
    for axes, layer in zip(grid.flat, names, strict=False):
        draw_distribution(axes, evaluation, processor, layer)
        axes.set_title(_shorten(layer), fontsize=9)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    figure.suptitle("Distance of parameters from the zoo's average: an averager is too narrow", fontsize=11)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 0.98))
    return figure


def draw_distribution(axes: Axes, evaluation: Evaluation, processor: ParameterProcessor, layer: str) -> None:
    """Draws how far the parameters of one tensor are from the zoo's average, for four sets."""
    average = evaluation.judged["zoo"].parameters.mean(0)
    limit = 4 * processor.unflatten(evaluation.judged["zoo"].parameters - average)[layer].std().item() or 1.0
    bins = torch.linspace(-limit, limit, 61)
    for name in ("zoo", "heldout", "averages_16", "generated"):
        if name not in evaluation.judged:
            continue
        label, color, _ = STYLE[name]
        values = processor.unflatten(evaluation.judged[name].parameters - average)[layer]
        density, _ = torch.histogram(values.flatten().float(), bins, density=True)
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
    axes.set_yticks([])
    _tidy(axes)


def similarity_matrix(evaluation: Evaluation) -> Figure:
    """Draws how alike the errors of any two sets are; on the diagonal, of distinct networks of one set."""
    labels = [STYLE[name][0] for name in evaluation.judged]
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
    axes.set_title(
        "Overlap of wrong predictions: a generator's own square should equal the held-out one's", fontsize=11
    )
    figure.colorbar(image, shrink=0.8)
    return figure


def reverse_process(evaluation: Evaluation) -> Figure:
    """Draws the accuracy of what the latents decode to, along the sampler's steps."""
    figure = Figure(figsize=(8, 4.4))
    axes = figure.subplots()
    accuracy = 100 * evaluation.reverse_process
    for seed in range(accuracy.shape[1]):
        axes.plot(range(1, len(accuracy) + 1), accuracy[:, seed], color="#D55E00", alpha=0.8, linewidth=1.5)
    zoo = 100 * evaluation.judged["zoo"].accuracy["test"]
    low, high = zoo.min().item(), zoo.max().item()
    axes.axhspan(low, high, color="#999999", alpha=0.35, label="zoo, from worst to best")
    axes.set_xlabel("steps of the sampler (equally spaced)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(
        f"From noise to networks: what the latents decode to along the way, {accuracy.shape[1]} seeds", fontsize=11
    )
    axes.legend(loc="lower right", frameon=False)
    _tidy(axes)
    return figure


def embedding(evaluation: Evaluation) -> Figure:
    """Draws zoo, held-out checkpoints and samples by their first principal components and by t-SNE."""
    names = [name for name in ("zoo", "heldout", "heldout_branch", "generated") if name in evaluation.judged]
    sets = [evaluation.judged[name].parameters[:EMBEDDED] for name in names]
    everything = torch.cat(sets).numpy()
    perplexity = min(30, (len(everything) - 1) // 3)
    views = {
        "principal components": PCA(2).fit(sets[0].numpy()).transform(everything),
        "t-SNE": TSNE(perplexity=perplexity, random_state=0).fit_transform(everything),
    }
    figure = Figure(figsize=(8, 4.4))
    for axes, (title, points) in zip(figure.subplots(1, 2), views.items(), strict=True):
        start = 0
        for name, vectors in zip(names, sets, strict=True):
            label, color, marker = STYLE[name]
            part = points[start : start + len(vectors)]
            axes.scatter(part[:, 0], part[:, 1], s=14, c=color, marker=marker, alpha=0.6, linewidths=0.8, label=label)
            start += len(vectors)
        axes.set_title(title, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle("Samples belong where held-out checkpoints are, not on top of zoo members", fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _shorten(name: str) -> str:
    return name if len(name) <= 46 else "…" + name[-45:]
