"""The digits case from several seeds of the zoo: the audit's word for each, and the parameters' distribution by layer.

python benchmarks/zoo_seeds.py --output_dir runs/zoo_seeds
"""

from __future__ import annotations

import argparse

import matplotlib
from matplotlib.figure import Figure

from pdiff_hf import TrajectorySettings, collect, fit
from pdiff_hf.evaluation import evaluate
from pdiff_hf.evaluation.evidence import NotAssessable
from pdiff_hf.evaluation.plots import draw_distribution
from pdiff_hf.folders import replace_folder
from pdiff_hf.hub.cards import describe_hardware
from pdiff_hf.zoo.settings import load_images_of, load_target


def main() -> None:
    """Prints a line for each seed and draws a column for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--output_dir", default="runs/zoo_seeds")
    arguments = parser.parse_args()

    columns = []
    print(f"on {describe_hardware()}")
    print("| zoo seed | answer | zoo | generated | R | F | r | AUC |\n|---|---|---|---|---|---|---|---|")
    for seed in arguments.seeds:
        settings = TrajectorySettings(
            image_size=16,
            model_config='{"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [1, 1], "layer_type": "basic"}',
            learning_rate=0.1,
            augmentation_shift=2,
            augmentation_noise=1.4,
            seed=seed,
            split_seed=seed,
        )
        images = load_images_of(settings)
        checkpoints = collect(images, load_target(settings, images), settings)
        pipe = fit(checkpoints, arguments.recipe)
        pipe.set_progress_bar_config(disable=True)
        evaluation = evaluate(pipe, checkpoints, images, num_baseline_models=50)
        found = evaluation.answer.evidence
        cells = [
            str(seed),
            evaluation.answer.verdict,
            f"{100 * found.performs.zoo_accuracy:.2f}",
            f"{100 * found.performs.accuracy:.2f}",
            *map(str, (found.disperses.R, found.disperses.F)),
            *(
                []
                if isinstance(found.novel, NotAssessable)
                else map(str, (found.novel.weights.r, found.novel.weights.auc))
            ),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
        columns.append((f"zoo seed {seed}", evaluation, checkpoints.processor))

    layers = columns[0][2].names
    figure = Figure(figsize=(3.2 * len(columns), 2.1 * len(layers) + 0.8))
    grid = figure.subplots(len(layers), len(columns), squeeze=False)
    for j, (title, evaluation, processor) in enumerate(columns):
        for i, layer in enumerate(layers):
            draw_distribution(grid[i, j], evaluation, processor, layer)
            grid[i, j].set_title(f"{title}\n…{layer[-28:]}", fontsize=8)
    figure.suptitle("Distance of parameters from the zoo's average: generated should cover the gray zoo", fontsize=11)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 0.98))
    with matplotlib.rc_context({"savefig.dpi": 140}), replace_folder(arguments.output_dir) as folder:
        figure.savefig(folder / "zoo_seeds.png")


if __name__ == "__main__":
    main()
