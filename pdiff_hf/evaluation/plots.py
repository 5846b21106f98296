"""Figures of an evaluation, legible at the width of a card and without telling red from green."""

from __future__ import annotations

import os
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ..folders import replace_folder
from ..targets.processing_parameters import ParameterProcessor
from .evaluator import Evaluation
from .sets import SETS, ShownSet, family_of

MAX_LAYERS = 6
MAX_POINTS = 100
EMBEDDED = 200
STYLE: Any = {"font.size": 11, "axes.titlesize": 11, "savefig.dpi": 140, "legend.frameon": False}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}
FURTHEST = 4.0  # natural distances that the figure of novelty reaches to at most


def draw_figures(folder: str | os.PathLike, evaluation: Evaluation, processor: ParameterProcessor) -> None:
    """Writes the files that `PICTURES` names."""
    with matplotlib.rc_context(STYLE), replace_folder(folder) as temporary:
        drawn = {
            "accuracy_novelty.png": accuracy_against_novelty(evaluation),
            "accuracy_similarity.png": accuracy_against_similarity(evaluation),
            "similarity_matrix.png": similarity_matrix(evaluation),
            "parameter_distribution.png": parameter_distribution(evaluation, processor),
            "reverse_process.png": reverse_process(evaluation),
            "embedding.png": embedding(evaluation),
        }
        for file, figure in drawn.items():
            figure.savefig(temporary / file, bbox_inches="tight")


def accuracy_against_novelty(evaluation: Evaluation) -> Figure:
    """Draws how well networks work against how far they are from the zoo; good ones lie where held-out ones do.

    What lies outside of the frame is drawn as an arrow at its border.
    """
    figure = Figure(figsize=(8, 6))
    axes = figure.subplots()
    axes.set_xlabel("r: distance to the nearest zoo network, in distances between zoo networks")
    axes.set_ylabel(f"test {evaluation.data['score_name']} (%)")
    places = {name: place.numpy() * (1, 100) for name, place in evaluation.places.items()}
    if not places:
        axes.set(title="Novelty is not assessable: no distance between zoo networks is known", xticks=[], yticks=[])
        return figure
    goal = "in the gray cloud of held-out networks" if "heldout" in places else "around the zoo's own place"
    axes.set_title(
        f"Faithful samples lie {goal}:\ncopies and averages are left of it, networks that work less well are below"
    )
    # 1. A frame that no single bad baseline or sample can stretch.
    low, high = _frame(places, 100 * evaluation.chance)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    # 2. Real networks: the cloud reaches two standard deviations to each side.
    row = SETS["zoo"]
    _scatter(axes, places["zoo"], row, s=110, label="zoo, each left out: median")
    real = places.get("heldout", places["zoo"])
    if len(real) > 1:
        middle, sizes = real.mean(0), 4 * real.std(0, ddof=1)
        style: dict[str, Any] = {"facecolor": "black", "edgecolor": "black", "alpha": 0.25}
        axes.add_patch(Ellipse(middle, *sizes, label="held-out: 2 standard deviations", **style))
    for key in (key for key in ("heldout", "heldout_branch") if key in places):
        row, place = SETS[key], places[key]
        alpha = 1.0 if key == "heldout" else 0.4
        _scatter(axes, place[:MAX_POINTS], row, s=14, alpha=alpha, linewidths=0.8, label=row.label)
    # 3. Baselines, by family a line through the means of all settings.
    for row in SETS.values():
        names = [name for name in places if row.baseline and family_of(name) == family_of(row.baseline)]
        if names:
            means = np.stack([places[name].mean(0) for name in names])
            style = {"color": row.color, "marker": row.marker, "label": row.family or row.label}
            axes.plot(means[:, 0], means[:, 1], linewidth=1.3, markersize=7, zorder=5 - (len(names) > 1), **style)
            _draw_arrows(axes, means, row)
    # 4. Samples.
    row, generated = SETS["generated"], places["generated"]
    _scatter(axes, generated[:MAX_POINTS], row, s=20, alpha=0.4, linewidths=0, zorder=3)
    _draw_arrows(axes, generated, row)
    middle = np.median(generated, 0, keepdims=True).clip(low, high)
    _scatter(axes, middle, row, s=190, edgecolors="black", label="generated: median", zorder=6, clip_on=False)
    axes.scatter([], [], c="white", marker="v", edgecolors="black", label="outside the frame")
    # 5. What places on the axis mean.
    words = {0.0: "copies", real[:, 0].mean(): "real networks"}
    axes.secondary_xaxis("top").set_xticks(list(words), list(words.values()), style="italic")
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=3, fontsize=10)
    return figure


def _frame(places: dict[str, np.ndarray], chance: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lower and the upper corner `(2,)`: around real networks and samples, and baselines that are near."""
    # 1. Real networks, and nearly all samples, unless they are far below chance or far off the zoo.
    real = np.concatenate([places[key] for key in ("heldout", "heldout_branch", "zoo") if key in places])
    samples = np.quantile(places["generated"], [0.05, 0.95], axis=0).clip((0, chance - 5), (FURTHEST, 100))
    shown = np.concatenate([real, samples])
    low, high = shown.min(0), shown.max(0)
    # 2. Baselines, as far as they stretch the frame by its own size at most.
    means = np.stack([place.mean(0) for name, place in places.items() if name not in SETS or name == "average"])
    slack = high - low
    low, high = means.min(0).clip(low - slack, low), means.max(0).clip(high, high + slack)
    # 3. The place of copies.
    low[0] = 0.0
    margin = 0.06 * (high - low) + 1e-3
    return low - margin, high + margin


def _scatter(axes: Axes, points: np.ndarray, row: ShownSet, **style: Any) -> None:
    """Draws points `(k, 2)` in the color and with the marker of their set."""
    axes.scatter(points[:, 0], points[:, 1], **{"c": row.color, "marker": row.marker, **style})


def _draw_arrows(axes: Axes, points: np.ndarray, row: ShownSet) -> None:
    """Draws those of the points `(k, 2)` that lie outside of the frame as arrows at its border."""
    low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
    x, y = points.T
    style: dict[str, Any] = {"s": 40, "edgecolors": "black", "linewidths": 0.8, "clip_on": False, "zorder": 5}
    for marker, outside in (("v", y < low[1]), ("^", y > high[1]), (">", x > high[0])):
        _scatter(axes, points[outside].clip(low, high), row, marker=marker, **style)


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
        family = family_of(row.baseline or "")
        points = [found.test for found in evaluation.answer.curve if family_of(found.name) == family]
        places, heights = [point.max_similarity for point in points], [100 * point.accuracy for point in points]
        axes.plot(places, heights, color=row.color, linewidth=1, marker=".", zorder=4)
    axes.set_xlabel("largest overlap of wrong predictions with a zoo network (right: more alike)")
    axes.set_ylabel(f"test {evaluation.data['score_name']} (%)")
    axes.set_title("Faithful samples make their own errors, as held-out networks do (x)")
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=3, fontsize=10, title="large: mean of a set")
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
    axes.set(xlabel="difference from the average", ylabel="density", yticks=[])


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
    figure.colorbar(image, shrink=0.8, label="wrong in both networks / wrong in either, mean over pairs")
    return figure


def reverse_process(evaluation: Evaluation) -> Figure:
    """Draws the score of what the latents decode to, along the sampler's steps."""
    figure = Figure(figsize=(8, 4.8))
    axes = figure.subplots()
    scores, color = 100 * evaluation.reverse_process, SETS["generated"].color
    steps = range(1, len(scores) + 1)
    for i, one in enumerate(scores.T):
        axes.plot(steps, one, color=color, alpha=0.4, linewidth=1, label=None if i else "one sample")
    axes.plot(steps, scores.nanmean(1), color=color, linewidth=2.5, label="mean of the samples")
    # What the score is to be compared with: real networks, their average, and no knowledge at all.
    zoo, average = (100 * evaluation.networks[key].scores["test"] for key in ("zoo", "average"))
    style: dict[str, Any] = {"color": SETS["zoo"].color, "alpha": 0.35, "label": "zoo, from worst to best"}
    axes.axhspan(zoo.min().item(), zoo.max().item(), **style)
    axes.axhline(average.item(), color="#0072B2", linestyle="--", label="average of all")
    axes.axhline(100 * evaluation.chance, color="black", linestyle=":", label="chance")
    lowest = 100 * evaluation.chance - 10  # of a regression, no score bounds what noise decodes to
    axes.set_ylim(max(axes.get_ylim()[0], lowest), None)
    axes.set_xlabel(f"steps of the sampler ({len(scores)} of them, equally spaced)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(f"test {evaluation.data['score_name']} (%)")
    axes.set_title(f"From noise to networks: what the latents of {scores.shape[1]} samples decode to along the way")
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.01), ncols=3, fontsize=10)
    return figure


def embedding(evaluation: Evaluation) -> Figure:
    """Draws zoo, held-out checkpoints and samples by their first principal components and by t-SNE."""
    names = [name for name in ("zoo", "heldout", "heldout_branch", "generated") if name in evaluation.networks]
    sets = [evaluation.networks[name].parameters[:EMBEDDED] for name in names]
    everything = torch.cat(sets).numpy()
    tsne = TSNE(perplexity=min(30, (len(everything) - 1) // 3), random_state=0)
    views = {
        "principal component": PCA(2).fit(sets[0].numpy()).transform(everything),
        "t-SNE coordinate": tsne.fit_transform(everything),
    }
    figure = Figure(figsize=(8, 4.4))
    for axes, (title, points) in zip(figure.subplots(1, 2), views.items(), strict=True):
        for name, part in zip(names, np.split(points, np.cumsum([len(vectors) for vectors in sets])), strict=False):
            row = SETS[name]
            style: dict[str, Any] = {"c": row.color, "marker": row.marker, "label": row.label}
            axes.scatter(part[:, 0], part[:, 1], s=14, alpha=0.6, linewidths=0.8, **style)
        axes.set(xticks=[], yticks=[], xlabel=f"first {title}", ylabel=f"second {title}")
    _finish(figure, "Samples belong where held-out checkpoints are, not on top of zoo members")
    return figure


def _finish(figure: Figure, title: str) -> None:
    """Adds a title and one legend for all axes."""
    figure.suptitle(title, fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels))
    figure.tight_layout(rect=(0, 0.07, 1, 0.99))
