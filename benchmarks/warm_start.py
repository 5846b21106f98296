"""Training from drawn networks, on the zoo's own task and on others: steps until a network is nearly as good as one
that was trained from random initial weights to the end.

    make demo
    python benchmarks/warm_start.py --pipeline runs/demo/pipeline --checkpoints runs/demo/checkpoints
    (the same) --tasks rotated --starts drawn random --num_runs 50

Every cell trains `--num_runs` networks from one kind of start on one task at each learning rate, as the zoo was, but
at a constant rate, and records their accuracy along the way. Each cell is a file in `--output_dir`, so that an
interrupted run goes on. Prints a table and draws a figure from whatever is there.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from pdiff_hf import Checkpoints, ImageData, PDiffPipeline, load_checkpoints, network_predictions
from pdiff_hf.data.images import ImageSplit
from pdiff_hf.evaluation.baselines import noise
from pdiff_hf.evaluation.intervals import bootstrap, weighted_median
from pdiff_hf.evaluation.sets import SETS, ShownSet
from pdiff_hf.evaluation.shifts import corrupt
from pdiff_hf.folders import write_json
from pdiff_hf.settings import OptimizationSettings
from pdiff_hf.targets.statistics import OwnStatistics
from pdiff_hf.zoo.run_groups import initial_parameters, run_seed, train_group
from pdiff_hf.zoo.settings import collection_of, load_images_of_zoo

STARTS = {
    "drawn": SETS["generated"],
    "heldout": SETS["heldout"],
    "zoo": SETS["zoo"],
    "best_of_zoo": ShownSet("zoo members that are best on the task", "best of zoo", "#0072B2", "D"),
    "noise": SETS["noise"],
    "average": SETS["average"],
    "random": ShownSet("random initialization", "random", "#56B4E9", "s"),
}
TASKS = {
    "same": "the zoo's own task",
    "permuted": "labels permuted",
    "rotated": "images rotated by 30 degrees",
    "rotated_few": "rotated, 100 training images",
}
FEW = 100
NOISE = 0.05  # of each tensor's spread
REACHED = 0.95  # of the final accuracy from random initial weights


def main() -> None:
    """Runs what is missing, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="runs/demo/pipeline", help="A generator without conditions.")
    parser.add_argument("--checkpoints", default="runs/demo/checkpoints", help="Its zoo.")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="What is trained for.")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS), help="Where training starts.")
    parser.add_argument("--num_runs", type=int, default=20, help="Trainings from each start.")
    parser.add_argument("--max_train_steps", type=int, default=300, help="Steps of each training.")
    parser.add_argument(
        "--learning_rates", nargs="+", type=float, default=[0.003, 0.01, 0.03, 0.1], help="The best one is taken."
    )
    parser.add_argument("--seed", type=int, default=0, help="Random seed for starts and batches.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/warm_start"), help="Folder of the results.")
    arguments = parser.parse_args()
    missing = [
        (task, start, path)
        for task in arguments.tasks
        for start in arguments.starts
        if not (path := arguments.output_dir / task / f"{start}.json").is_file()
    ]
    if missing:
        checkpoints = load_checkpoints(arguments.checkpoints)
        pipe = PDiffPipeline.from_pretrained(arguments.pipeline)
        images = load_images_of_zoo(checkpoints)
        for task, start, path in tqdm(missing, desc="cells"):
            write_json(path, run_cell(pipe, checkpoints, images_of(task, images), start, arguments))
    results = read_results(arguments.output_dir)
    print("\n".join(table(results)))
    draw(results).savefig(arguments.output_dir / "warm_start.png", dpi=140, bbox_inches="tight")


def images_of(task: str, images: ImageData) -> ImageData:
    """Returns the images and labels of a task."""
    if task == "permuted":
        count = len(images.label_names)
        return images.relabeled([(label + 1) % count for label in range(count)], images.label_names)
    if task.startswith("rotated"):
        train, validation, test = (
            ImageSplit(corrupt(split.pixels, "rotation", 3), split.labels)
            for split in (images.train, images.validation, images.test)
        )
        images = replace(images, train=train, validation=validation, test=test)
    return replace(images, train=images.train.take(slice(FEW))) if task == "rotated_few" else images


def starting_points(
    start: str, pipe: PDiffPipeline, checkpoints: Checkpoints, images: ImageData, count: int, seed: int
) -> torch.Tensor:
    """Returns the vectors that the runs start from, `(count, D)`; those that are best on the task by validation."""
    zoo, generator = checkpoints.zoo.parameters, torch.Generator().manual_seed(seed)
    if start == "drawn":
        pipe.set_progress_bar_config(disable=True)
        return pipe(count, generator=generator, output_type="pt", return_dict=False)[0].cpu()
    if start == "random":
        return initial_parameters(checkpoints.target_model, checkpoints.processor, range(seed, seed + count))
    if start == "average":
        return zoo.mean(0).expand(count, -1)
    if start == "noise":
        return noise(zoo, count, generator, checkpoints.processor.sizes, NOISE)
    if start == "best_of_zoo":
        return zoo[accuracies(zoo, checkpoints, images)["validation"].topk(count).indices]
    rows = zoo if start == "zoo" else checkpoints.splits["test"].parameters
    return rows[torch.randperm(len(rows), generator=generator)[:count]]


def recorded_steps(last: int) -> list[int]:
    """Returns the numbers of steps after which accuracies are measured: all to 20, then ever fewer."""
    return [step for step in range(1, last + 1) if step <= 20 or (step <= 100 and step % 5 == 0) or step % 20 == 0]


def run_cell(
    pipe: PDiffPipeline, checkpoints: Checkpoints, images: ImageData, start: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Trains from one kind of start on one task; returns accuracies `(runs, measured steps)` by learning rate."""
    started = time.perf_counter()
    vectors = starting_points(start, pipe, checkpoints, images, arguments.num_runs, arguments.seed)
    collected, steps = collection_of(checkpoints), recorded_steps(arguments.max_train_steps)
    seeds = [run_seed(arguments.seed, run) for run in range(len(vectors))]
    examples = [(images.inputs(images.train), images.train.labels)] * len(vectors)
    accuracy = {}
    for rate in arguments.learning_rates:
        optimization = OptimizationSettings(
            max_train_steps=arguments.max_train_steps,
            train_batch_size=min(collected.train_batch_size, len(images.train)),
            learning_rate=rate,
            lr_scheduler="constant",
            lr_warmup_steps=0,
            adam_weight_decay=collected.adam_weight_decay,
        )
        trained = train_group(
            checkpoints.target_model.eval().requires_grad_(False),
            checkpoints.processor,
            vectors,
            seeds,
            examples,
            optimization,
            [step - 1 for step in steps],
        )
        along = torch.cat([vectors[:, None], trained], 1)  # (runs, 1 + measured, D)
        found = accuracies(along.flatten(0, 1), checkpoints, images)
        accuracy[str(rate)] = {split: values.view(along.shape[:2]).tolist() for split, values in found.items()}
    return {"steps": [0, *steps], "accuracy": accuracy, "seconds": time.perf_counter() - started}


def accuracies(parameters: torch.Tensor, checkpoints: Checkpoints, images: ImageData) -> dict[str, torch.Tensor]:
    """Returns the accuracy of networks `(n, D)` on validation and test images, `(n,)`."""
    model, processor = checkpoints.target_model.eval(), checkpoints.processor
    statistics = OwnStatistics(model, processor, images)(parameters)
    found = {}
    for name, split in (("validation", images.validation), ("test", images.test)):
        inputs = images.inputs(split)
        predicted, _ = network_predictions(model, processor, parameters, inputs, split.labels, statistics=statistics)
        found[name] = (predicted == split.labels).double().mean(1)
    return found


Results = dict[str, dict[str, dict[str, Any]]]  # cells by task and start


def read_results(folder: Path) -> Results:
    """Returns the cells that are there, in the order of `TASKS` and `STARTS`."""
    return {
        task: {
            start: json.loads(path.read_text())
            for start in STARTS
            if (path := folder / task / f"{start}.json").is_file()
        }
        for task in TASKS
        if (folder / task / "random.json").is_file()  # what the others are compared with
    }


def best_rate(cell: dict[str, Any], goal: float | None = None) -> str:
    """Returns the learning rate with the best median on validation images: of the first step to the goal, if any.

    Without a goal, and among equals, it is the one of the best final accuracy.
    """

    def merit(rate: str) -> tuple[float, float]:
        final = torch.tensor(cell["accuracy"][rate]["validation"])[:, -1].median().item()
        reached = 0.0 if goal is None else first_steps(cell, rate, "validation", goal).median().item()
        return -reached, final

    return max(cell["accuracy"], key=merit)


def first_steps(cell: dict[str, Any], rate: str, split: str, goal: float) -> torch.Tensor:
    """Returns after how many steps each run first reaches an accuracy `(runs,)`; one more than the last if never."""
    reached = torch.tensor(cell["accuracy"][rate][split]) >= goal  # (runs, measured)
    steps = torch.tensor([*cell["steps"], cell["steps"][-1] + 1])
    return steps[torch.where(reached.any(1), reached.int().argmax(1), len(steps) - 1)]


def goals(cells: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Returns the accuracy to be reached on each split: `REACHED` times the final median from random weights."""
    accuracy = cells["random"]["accuracy"][best_rate(cells["random"])]
    return {split: REACHED * torch.tensor(curves)[:, -1].median().item() for split, curves in accuracy.items()}


def table(results: Results) -> list[str]:
    """Returns one row for each task and start: steps to the goal, and accuracies on test images in per cent."""
    lines = [
        "| task | start | learning rate | steps to the goal, median [95 %] | never reach it | accuracy at the start "
        "| after 10 steps | at the end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, cells in results.items():
        goal = goals(cells)
        for start, cell in cells.items():
            rate, last = best_rate(cell, goal["validation"]), cell["steps"][-1]
            steps = first_steps(cell, rate, "test", goal["test"])
            found = bootstrap(lambda weights, steps=steps: weighted_median(steps, weights), torch.arange(len(steps)))
            median, low, high = (
                f"{x:.0f}" if x <= last else f"> {last}" for x in (found.value, found.low, found.high)
            )
            medians = torch.tensor(cell["accuracy"][rate]["test"]).median(0).values.tolist()
            row = [
                f"{TASKS[task]} (goal: {100 * goal['test']:.1f} %)",
                STARTS[start].title,
                rate,
                f"{median} [{low}, {high}]",
                f"{int((steps > last).sum())} of {len(steps)}",
                *(f"{100 * medians[place]:.1f}" for place in (0, cell["steps"].index(min(10, last)), -1)),
            ]
            lines.append(f"| {' | '.join(row)} |")
    return lines


def draw(results: Results) -> Figure:
    """Draws the median test accuracy against the number of steps, a column for each task."""
    figure = Figure(figsize=(1 + 3.6 * len(results), 4))
    grid = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for axes, (task, cells) in zip(grid, results.items(), strict=True):
        goal = goals(cells)
        for start, cell in cells.items():
            row, accuracy = STARTS[start], cell["accuracy"][best_rate(cell, goal["validation"])]["test"]
            medians = 100 * torch.tensor(accuracy).median(0).values
            axes.plot(cell["steps"], medians, color=row.color, marker=row.marker, markersize=3, label=row.label)
        axes.axhline(100 * goal["test"], color="black", linestyle=":", label="goal")
        axes.set(title=TASKS[task], xscale="symlog", xlabel="training steps", xlim=(0, None))
    grid[0].set_ylabel("test accuracy, median over runs (%)")
    figure.suptitle("Training from drawn networks and from other starts", y=1.02)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    return figure


if __name__ == "__main__":
    main()
