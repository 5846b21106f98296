"""What drawn networks predict of an image, as a figure."""

from __future__ import annotations

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from predictions import Prediction
from torch import Tensor

MOST_CLASSES = 10  # that are shown, the most probable ones
BLUE = "#1f5fa8"


def plot_prediction(prediction: Prediction) -> Figure:
    """Plots the image as the networks see it, the ensemble's probabilities, and below those of each network."""
    count, mean = len(prediction.probabilities), prediction.ensemble.probabilities[0]
    shown = mean.topk(min(MOST_CLASSES, len(mean))).indices.sort().values  # in the order of the classes
    names = [textwrap.shorten(name, 14, placeholder="…") for name in prediction.classes]

    figure = Figure(figsize=(9, 3 + 0.27 * count), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[1, 4], height_ratios=[2, 0.4 + 0.27 * count])
    plot_pixels(figure.add_subplot(grid[0, 0]), prediction.pixels)
    each = figure.add_subplot(grid[1, 1])
    plot_networks(each, prediction.probabilities[:, shown], [names[i] for i in prediction.answers])
    each.set_xticks(range(len(shown)), [names[i] for i in shown.tolist()], parse_math=False)
    if len(shown) * max(map(len, names)) > 70:  # characters, which side by side would overlap
        each.tick_params("x", rotation=40)

    ensemble = figure.add_subplot(grid[0, 1], sharex=each)
    bars = ensemble.bar(range(len(shown)), mean[shown].tolist(), color=BLUE)
    ensemble.bar_label(bars, fmt="{:.2f}", fontsize=9)
    ensemble.tick_params("x", labelbottom=False)
    ensemble.set_ylim(0, 1.15)
    ensemble.set_ylabel("probability")
    ensemble.set_title(f"ensemble: mean of {count} network{'s' * (count != 1)}", fontsize=11)
    ensemble.spines[["top", "right"]].set_visible(False)
    return figure


def plot_pixels(axes: Axes, pixels: Tensor) -> None:
    """Plots an image `(channels, size, size)` uint8 as the networks see it."""
    image = pixels.permute(1, 2, 0)  # (size, size, channels)
    axes.imshow(image.squeeze(2) if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255)
    axes.set_title(f"what the networks\nsee: {image.shape[0]} x {image.shape[1]} pixels", fontsize=10)
    axes.set_axis_off()


def plot_networks(axes: Axes, probabilities: Tensor, answers: list[str]) -> None:
    """Plots the probabilities `(n, classes)` of each network, and the names of their answers on the right."""
    count = len(answers)
    axes.imshow(probabilities, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in (probabilities >= 0.005).nonzero().tolist():  # what rounds to more than nothing
        value = probabilities[row, column].item()
        color = "white" if value > 0.5 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_yticks(range(count), [f"network {i + 1}" for i in range(count)], fontsize=9)
    axes.set_title("each network: the darker, the more probable; its answer on the right", fontsize=11)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(count), answers, parse_math=False)
    right.tick_params(length=0)
