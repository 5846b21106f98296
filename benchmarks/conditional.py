"""Networks for tasks that nobody trained, against the number of training tasks: drawn ones and every baseline.

    python benchmarks/conditional.py --tasks subsets --seeds 0 1 2
    python benchmarks/conditional.py --tasks subsets priors angles --num_tasks 16 64 256
    python benchmarks/conditional.py --dataset_name mnist --image_size 14 --tasks subsets

Every family and seed collects one zoo of the largest number of tasks; every cell fits the recipe `conditional` to the
first of them, draws 20 networks for each of 24 held-out tasks, none selected, and is audited. Each cell is a file in
`--output_dir`, so that an interrupted run goes on. Prints a table and draws a figure from whatever is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from paper_table import with_settings
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from pdiff_hf import (
    Checkpoints,
    ConditionalAuditor,
    ImageData,
    MultiRunSettings,
    build_network,
    collect_runs,
    fit,
    load_checkpoints,
    load_recipe,
)
from pdiff_hf.evaluation.sets import CONDITIONAL_SETS
from pdiff_hf.folders import write_json
from pdiff_hf.settings import RunSettings
from pdiff_hf.zoo.settings import load_images_of, load_target
from pdiff_hf.zoo.tasks import TASKS, make_tasks

DRAWN = 20  # networks for each held-out task
SHOWN = [name for name in CONDITIONAL_SETS if name not in ("generated", "shuffled", "majority", "nearest")]


def main() -> None:
    """Runs what is missing, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="Families of tasks.")
    parser.add_argument("--num_tasks", nargs="+", type=int, default=[16, 32, 64, 128, 256], help="To learn from.")
    parser.add_argument("--num_test_tasks", type=int, default=24, help="Held-out tasks.")
    parser.add_argument("--runs_per_task", type=int, default=16, help="Networks for each task.")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="Seeds, each with a zoo and a generator of its own."
    )
    parser.add_argument("--dataset_name", default="digits", help="`digits`, `mnist`, or the path of a data set.")
    parser.add_argument("--image_size", type=int, default=8, help="Height and width of the images.")
    parser.add_argument("--max_train_steps", type=int, help="Steps of the denoiser, if not those of the recipe.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/conditional"), help="Folder of the results.")
    arguments = parser.parse_args()
    for family in tqdm(arguments.tasks, desc="families"):
        for seed in arguments.seeds:
            run_seed(family, seed, arguments)
    results = read_results(arguments.output_dir)
    print("\n".join(table(results)))
    draw(results).savefig(arguments.output_dir / "conditional.png", dpi=140, bbox_inches="tight")


def run_seed(family: str, seed: int, arguments: argparse.Namespace) -> None:
    """Collects a zoo, and fits and audits what is missing of its cells."""
    folder = arguments.output_dir / f"{Path(arguments.dataset_name).name}-{family}"
    paths = {count: folder / f"{count}-{seed}.json" for count in arguments.num_tasks}
    missing = {count: path for count, path in paths.items() if not path.is_file()}
    if not missing:
        return
    settings = settings_of(family, seed, arguments)
    images, place = load_images_of(settings), folder / f"zoo-{max(arguments.num_tasks)}-{seed}"
    if not place.is_dir():
        state = RunSettings(str(place), resume_from_checkpoint="latest")
        collect_runs(images, load_target(settings, images), settings, state).save(place)
    checkpoints, parent = load_checkpoints(place), None
    if family == "subsets":
        parent = train_parent(settings, images)
    for count, path in missing.items():
        write_json(path, run_cell(first_tasks(checkpoints, count), images, family, seed, arguments, parent))


def settings_of(family: str, seed: int, arguments: argparse.Namespace) -> MultiRunSettings:
    """Returns how the zoo of a family and seed is collected; on digits, as in `docs/conditional.md`."""
    is_digits = arguments.dataset_name == "digits"
    return MultiRunSettings(
        dataset_name=arguments.dataset_name,
        image_size=arguments.image_size,
        model_type="pdiff_mlp",
        model_config='{"hidden_sizes": [16]}',
        subset=["full"],
        target_train_steps=500,
        target_learning_rate=0.01,
        adam_weight_decay=1.0 if is_digits else 0.1,
        train_batch_size=64 if is_digits else 128,
        tasks=family,
        num_tasks=max(arguments.num_tasks),
        num_test_tasks=arguments.num_test_tasks,
        runs_per_task=arguments.runs_per_task,
        seed=seed,
    )


def train_parent(settings: MultiRunSettings, images: ImageData) -> PreTrainedModel:
    """Returns a network of the same kind that was trained on all classes."""
    one = dataclasses.replace(settings, tasks=None, num_tasks=None, num_runs=1, num_validation_runs=0, num_test_runs=0)
    found = collect_runs(images, load_target(one, images), one)
    return build_network(found.target_model, found.processor, found.zoo.parameters[0]).eval()


def first_tasks(checkpoints: Checkpoints, count: int) -> Checkpoints:
    """Returns the zoo with the first `count` tasks that it has networks to learn from."""
    kept = list(dict.fromkeys(map(tuple, checkpoints.zoo.condition)))[:count]
    zoo = checkpoints.zoo.take([tuple(condition) in set(kept) for condition in checkpoints.zoo.condition])
    return dataclasses.replace(checkpoints, splits={**checkpoints.splits, "train": zoo})


def run_cell(
    checkpoints: Checkpoints,
    images: ImageData,
    family: str,
    seed: int,
    arguments: argparse.Namespace,
    parent: PreTrainedModel | None,
) -> dict[str, Any]:
    """Fits a generator, draws from it and audits it; returns the figures of the cell."""
    started = time.perf_counter()
    changes = {"denoiser": {"max_train_steps": arguments.max_train_steps}} if arguments.max_train_steps else {}
    pipe = fit(checkpoints, with_settings(load_recipe("conditional"), changes, seed), images)
    fitted = time.perf_counter()
    pipe.set_progress_bar_config(disable=True)
    tasks = make_tasks(family, images.label_names)
    auditor = ConditionalAuditor(checkpoints, images, tasks, parent=parent, seed=seed)
    audited = time.perf_counter()
    samples = auditor.draw(pipe, DRAWN, 1000 + seed)
    drawn = time.perf_counter()
    answer = auditor.audit(samples)
    figures = answer.figures
    slopes = {"generated": figures.measured, "heldout": figures.real_measured}
    return {
        "verdict": answer.verdict,
        "reason": answer.reason,
        "criteria": {name: dataclasses.asdict(found) for name, found in answer.criteria.items()},
        "scores": {name: dataclasses.asdict(score) for name, score in answer.scores.items()},
        "worst_task": figures.scores["generated"].min().item(),
        "worst": figures.drawn.min().item(),
        "r": figures.ratios["weights"].median().item(),
        "heldout_r": figures.real_r["weights"],
        "slopes": {
            name: dataclasses.asdict(figures.slope(found)) for name, found in slopes.items() if found is not None
        },
        "settings": answer.chosen,
        "generator": (pipe.metrics or {})["generator"],
        "collecting_seconds": sum(checkpoints.collection["costs"].values()),
        "fitting_seconds": fitted - started,
        "baselines_seconds": audited - fitted,
        "sampling_seconds": drawn - audited,
    }


def read_results(folder: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Returns the cells of each family and number of tasks, one for each seed."""
    results: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for path in folder.glob("*/*-*.json"):
        key = path.parent.name, int(path.stem.partition("-")[0])
        results.setdefault(key, []).append(json.loads(path.read_text()))
    return dict(sorted(results.items()))


def over_seeds(cells: list[dict[str, Any]], *keys: str) -> float:
    """Returns the mean over seeds of a figure, by its place in the cells; NaN if they lack it."""
    values = []
    for cell in cells:
        found: Any = cell
        for key in keys:
            found = found.get(key, {})
        values.append(found if isinstance(found, float) else float("nan"))
    return statistics.fmean(values)


def table(results: dict[tuple[str, int], list[dict[str, Any]]]) -> list[str]:
    """Returns one row for each family and number of tasks, over its seeds; scores on unseen tasks in per cent."""
    titles = " | ".join(CONDITIONAL_SETS[name].label for name in SHOWN)
    lines = [
        f"| tasks | number | drawn (worst task) | {titles} | F | R | r (real) | slope (real) | audit | fit s |",
        "|---|---|---|" + "---|" * len(SHOWN) + "---|---|---|---|---|---|",
    ]
    for (family, count), cells in results.items():
        spreads = [over_seeds(cells, "criteria", "spreads", "measures", name, "value", "value") for name in "FR"]
        row = [
            family,
            f"{count}",
            f"{100 * over_seeds(cells, 'scores', 'generated', 'value'):.2f} "
            f"({100 * min(cell['worst_task'] for cell in cells):.1f})",
            *(f"{100 * over_seeds(cells, 'scores', name, 'value'):.2f}" for name in SHOWN),
            *(f"{value:.2f}" for value in spreads),
            f"{over_seeds(cells, 'r'):.3f} ({over_seeds(cells, 'heldout_r'):.3f})",
            f"{over_seeds(cells, 'slopes', 'generated', 'value'):.2f} "
            f"({over_seeds(cells, 'slopes', 'heldout', 'value'):.2f})",
            ", ".join(sorted({cell["verdict"] for cell in cells})),
            f"{over_seeds(cells, 'fitting_seconds'):.0f}",
        ]
        lines.append(f"| {' | '.join(row).replace('nan', '-')} |")
    return lines


def draw(results: dict[tuple[str, int], list[dict[str, Any]]]) -> Figure:
    """Draws scores on unseen tasks against the number of training tasks, a column for each family."""
    families = list(dict.fromkeys(family for family, _ in results))
    figure = Figure(figsize=(1 + 5 * len(families), 4.5))
    grid = figure.subplots(1, len(families), squeeze=False)[0]
    for axes, family in zip(grid, families, strict=True):
        counts = [count for found, count in results if found == family]
        for name in [*SHOWN, "generated"]:
            scores = [100 * over_seeds(results[family, count], "scores", name, "value") for count in counts]
            row = CONDITIONAL_SETS[name]
            axes.plot(counts, scores, color=row.color, marker=row.marker, label=row.label)
        axes.set(title=family, xscale="log", xlabel="training tasks", ylabel="test accuracy on unseen tasks (%)")
        axes.set_xticks(counts, map(str, counts))
        axes.minorticks_off()
    figure.legend(*grid[0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    return figure


if __name__ == "__main__":
    main()
