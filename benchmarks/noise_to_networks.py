"""The figure at the top of the README: what the noise of `make demo` becomes along the sampler's steps.

python benchmarks/noise_to_networks.py --output_dir runs/noise_to_networks
"""

from __future__ import annotations

import argparse
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pdiff_hf import PDiffPipeline, load_checkpoints
from pdiff_hf.evaluation.plots import STYLE
from pdiff_hf.evaluation.sets import SETS
from pdiff_hf.folders import replace_folder
from pdiff_hf.targets.inference import network_logits
from pdiff_hf.zoo.settings import load_images_of_zoo

COLUMNS = 6  # steps at which one network is shown
CHANCE = 10  # per cent, of ten digits
DRAWN, REAL = SETS["generated"].color, SETS["heldout"].color


def main() -> None:
    """Draws networks, follows them from the noise on and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", default="runs/demo/pipeline")
    parser.add_argument("--checkpoints", default="runs/demo/checkpoints")
    parser.add_argument("--num_models", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="runs/noise_to_networks")
    arguments = parser.parse_args()

    # 1. The latents at each step, from the noise on, and the networks that they decode to.
    pipe = PDiffPipeline.from_pretrained(arguments.pipeline)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(arguments.seed)
    latents = [torch.randn(arguments.num_models, pipe.denoiser.config.latent_dim, generator=generator)]

    def keep(pipe: PDiffPipeline, step: int, timestep: object, kwargs: dict[str, torch.Tensor]) -> dict:
        latents.append(kwargs["latents"])
        return kwargs

    pipe(arguments.num_models, latents=latents[0], output_type="latent", callback_on_step_end=keep)
    networks = [pipe.decode(state) for state in latents]

    # 2. The digits that they read in the test images, beside networks that were trained and held out.
    checkpoints = load_checkpoints(arguments.checkpoints)
    images = load_images_of_zoo(checkpoints)
    inputs, labels = images.inputs(images.test), images.test.labels
    read = torch.stack([out.logits(inputs).argmax(-1) for out in networks])  # (steps + 1, num_models, images)
    accuracy = 100 * (read == labels).double().mean(-1)  # (steps + 1, num_models)
    heldout = checkpoints.splits["test"].parameters
    logits = network_logits(checkpoints.target_model, checkpoints.processor, heldout, inputs)
    heldout_accuracy = 100 * (logits.argmax(-1) == labels).double().mean(-1)
    for name, values in {"noise": accuracy[0], "drawn": accuracy[-1], "held-out": heldout_accuracy}.items():
        print(f"{name}: {len(values)} networks, test accuracy {values.mean():.2f} ± {values.std():.2f} %")

    # 3. The figure.
    one = torch.cat([torch.as_tensor(out.parameters)[:1] for out in networks])  # the same network at each step
    weights = pipe.processor.unflatten(one)["layers.0.weight"].view(len(one), -1, 8, 8)
    with matplotlib.rc_context(STYLE), replace_folder(arguments.output_dir) as folder:
        figure = draw(weights, [confusion(digits[0], labels) for digits in read], accuracy, heldout_accuracy)
        figure.savefig(folder / "noise_to_networks.png", bbox_inches="tight")


def confusion(read: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns how often an image of each digit (rows) is read as each digit (columns), `(10, 10)`, in [0, 1]."""
    shown = torch.nn.functional.one_hot(labels, 10).double()
    return (shown.T @ torch.nn.functional.one_hot(read, 10).double()) / shown.sum(0)[:, None]


def draw(
    weights: torch.Tensor, confusions: list[torch.Tensor], accuracy: torch.Tensor, heldout: torch.Tensor
) -> Figure:
    """Draws one network, with weights `(steps + 1, units, 8, 8)`, at some steps, and below the accuracies of all."""
    last = len(weights) - 1
    figure = Figure(figsize=(9, 6.7), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.2, 1), hspace=0.04)
    upper, lower = halves
    chosen = np.linspace(0, last, COLUMNS).round().astype(int).tolist()
    limit = weights[-1].abs().quantile(0.995).item()
    grid = upper.subplots(2, COLUMNS)
    for (top, bottom), step in zip(grid.T, chosen, strict=True):
        top.imshow(mosaic(weights[step]), cmap="PuOr_r", vmin=-limit, vmax=limit)
        bottom.imshow(confusions[step], cmap="Oranges", vmin=0, vmax=1)
        top.set_title({0: "step 0: noise", last: f"step {last}: drawn"}.get(step, f"step {step}"))
        bottom.set_xlabel(f"{accuracy[step, 0]:.0f} % right")
        for axes in (top, bottom):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    grid[0, 0].set_ylabel("weights of its\n16 hidden units", fontsize=10)
    grid[1, 0].set_ylabel("digit in the image\n(across: digit read)", fontsize=10)
    grid[1, 0].set_yticks(range(10), range(10), fontsize=7)
    grid[1, 0].tick_params(length=0, pad=2)
    upper.suptitle("One network on its way from noise: its weights, and the digits that it reads", fontsize=12)
    left, right = lower.subplots(1, 2, width_ratios=(1.9, 1))
    draw_accuracies(left, accuracy, chosen)
    draw_last(right, accuracy[-1], heldout)
    return figure


def mosaic(units: torch.Tensor) -> torch.Tensor:
    """Puts images `(n, 8, 8)` into a square with blank lines between them."""
    side = int(np.ceil(np.sqrt(len(units))))
    image = torch.full((9 * side - 1, 9 * side - 1), torch.nan)
    for i, unit in enumerate(units):
        row, column = divmod(i, side)
        image[9 * row : 9 * row + 8, 9 * column : 9 * column + 8] = unit
    return image


def draw_accuracies(axes: Axes, accuracy: torch.Tensor, chosen: list[int]) -> None:
    """Draws the accuracies `(steps + 1, n)` in per cent."""
    steps = range(len(accuracy))
    low, middle, high = accuracy.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=accuracy.dtype), dim=1)
    axes.fill_between(steps, low, high, color=DRAWN, alpha=0.2, linewidth=0, label="90 % of them")
    axes.plot(steps, middle, color=DRAWN, linewidth=2.5, label="median")
    style: dict[str, Any] = {"marker": "o", "markevery": chosen, "markersize": 4}
    axes.plot(steps, accuracy[:, 0], color="black", linewidth=1, label="the one above", **style)
    axes.axhline(CHANCE, color="black", linestyle=":", linewidth=1)
    axes.text(0, CHANCE + 1, "guessing", va="bottom", fontsize=10)
    axes.set(xlabel="steps of the sampler", ylabel="test accuracy (%)", ylim=(0, 100), xticks=chosen)
    axes.set_title(f"{accuracy.shape[1]} networks on their way from noise", fontsize=12)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.1), fontsize=10)


def draw_last(axes: Axes, drawn: torch.Tensor, heldout: torch.Tensor) -> None:
    """Draws a point for each drawn and each held-out network, and a line at the mean of each."""
    random = np.random.default_rng(0)
    for place, (values, color) in enumerate(((drawn, DRAWN), (heldout, REAL))):
        axes.scatter(place + random.uniform(-0.25, 0.25, len(values)), values, s=12, c=color, alpha=0.5, linewidths=0)
        mean = values.mean().item()
        axes.hlines(mean, place - 0.35, place + 0.35, color=color, linewidth=2.5)
        axes.text(place + 0.38, mean, f"{mean:.1f}", color=color, va="center", fontsize=10)
    axes.set_xticks([0, 1], [f"{len(drawn)} drawn", f"{len(heldout)} trained"])
    axes.set(xlim=(-0.5, 1.7), ylabel="test accuracy (%)")
    axes.set_title("Drawn beside trained ones", fontsize=12)


if __name__ == "__main__":
    main()
