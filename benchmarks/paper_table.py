"""Fills the paper's table for chosen cells: original, average (the paper's "ensemble"), `paper` and `fast`.

    python benchmarks/paper_table.py benchmarks/sweeps/small.yaml --data_dir path/to/data --output_dir runs/table
    python benchmarks/paper_table.py benchmarks/sweeps/ablations.yaml --cells latent_8 latent_32 --output_dir runs/more

A cell is a network on a data set, or a variation of another cell; a sweep file lists them. Every cell collects one zoo
and fits and audits each recipe with several generator seeds. What is finished is kept: an interrupted run goes on with
what is missing, and the table is printed from whatever is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm

from pdiff_hf import Checkpoints, Recipe, TrajectorySettings, collect, fit, load_checkpoints, load_recipe
from pdiff_hf.evaluation import evaluate
from pdiff_hf.fitting.settings import AutoencoderSettings, DenoiserSettings
from pdiff_hf.folders import write_json
from pdiff_hf.hub.cards import describe_hardware
from pdiff_hf.zoo.settings import load_images_of, load_target


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="a YAML file of cells")
    parser.add_argument("--cells", nargs="+", help="some of its cells; by default all")
    parser.add_argument("--data_dir", type=Path, help="folders of images, named as the cells' data sets")
    parser.add_argument("--output_dir", type=Path, required=True, help="results are kept here")
    parser.add_argument("--table_only", action="store_true", help="print what is there and run nothing")
    arguments = parser.parse_args()
    sweep = yaml.safe_load(arguments.sweep.read_text(encoding="utf-8"))
    names = arguments.cells or list(sweep["cells"])
    unknown = sorted(set(names) - set(sweep["cells"]))
    if unknown:
        parser.error(f"{arguments.sweep} has no cells {unknown}; it has {sorted(sweep['cells'])}.")
    if not arguments.table_only:
        for name in tqdm(names, desc="cells"):
            run_cell(resolve(sweep, name), arguments.output_dir / name, arguments.data_dir)
    print(table({name: arguments.output_dir / name for name in names}))


def resolve(sweep: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns a cell with what it takes over from the defaults and from the cell it is a variation of."""
    cell = sweep["cells"][name] or {}
    below = resolve(sweep, cell["base"]) if "base" in cell else sweep["defaults"]
    return merged(below, {key: value for key, value in cell.items() if key != "base"})


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Returns nested settings with those of `above` in place of those of `below`."""
    result = dict(below)
    for key, value in above.items():
        inner = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if inner else value
    return result


def run_cell(cell: dict[str, Any], folder: Path, data_dir: Path | None) -> None:
    """Collects the cell's zoo and evaluates each recipe with each seed, unless it is done."""
    settings = TrajectorySettings(**cell["collection"])
    if data_dir is not None and (data_dir / settings.dataset_name).is_dir():
        settings.dataset_name = str(data_dir / settings.dataset_name)
    wanted = {
        f"{recipe}-{seed}": (recipe, seed) for recipe in cell["recipes"] for seed in range(cell["generator_seeds"])
    }
    missing = {key: value for key, value in wanted.items() if not (folder / f"{key}.json").is_file()}
    if not missing:
        return
    images = load_images_of(settings)
    if not (folder / "checkpoints").is_dir():
        collect(images, load_target(settings, images), settings).save(folder / "checkpoints")
    checkpoints = load_checkpoints(folder / "checkpoints")
    for key, (recipe, seed) in missing.items():
        started = time.perf_counter()
        pipe = fit(checkpoints, with_settings(load_recipe(recipe), cell["recipes"][recipe] or {}, seed))
        pipe.set_progress_bar_config(disable=True)
        fitting = time.perf_counter() - started
        evaluation = evaluate(pipe, checkpoints, images, seed=seed, **cell["evaluation"])
        write_json(
            folder / f"{key}.json",
            {
                "sets": evaluation.sets,
                "verdict": evaluation.answer.verdict,
                "costs": costs(checkpoints) | {"fitting_seconds": fitting} | evaluation.costs,
                "hardware": describe_hardware(),
                "zoo": {"size": len(checkpoints.zoo), "parameter_dim": checkpoints.processor.parameter_dim},
                "collection": checkpoints.collection["settings"]
                | {"dataset_name": cell["collection"]["dataset_name"]},
            },
        )


def costs(checkpoints: Checkpoints) -> dict[str, float]:
    """Returns what collecting took."""
    return {"collecting_seconds": sum(checkpoints.collection["costs"].values())}


def with_settings(recipe: Recipe, changes: dict[str, dict[str, Any]], seed: int) -> Recipe:
    """Returns a recipe with a cell's changes and a generator seed."""
    settings = merged(dataclasses.asdict(recipe), changes)
    return Recipe(
        autoencoder=AutoencoderSettings(**settings["autoencoder"] | {"seed": seed}),
        denoiser=DenoiserSettings(**settings["denoiser"] | {"seed": seed}),
    )


def table(folders: dict[str, Path]) -> str:
    """Returns one row per cell and recipe as a markdown table, accuracies in per cent on the test images."""
    lines = [
        "| cell | zoo | original: mean, best | average | recipe | generated: mean ± std (over seeds), best | R | F "
        "| audit | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, folder in folders.items():
        results: dict[str, list[dict[str, Any]]] = {}
        for path in sorted(folder.glob("*-*.json")):
            results.setdefault(path.stem.rpartition("-")[0], []).append(json.loads(path.read_text(encoding="utf-8")))
        for recipe, runs in sorted(results.items()):
            lines.append(row(name, recipe, runs))
    return "\n".join(lines)


def row(name: str, recipe: str, runs: list[dict[str, Any]]) -> str:
    """Returns the row of one cell and recipe over its generator seeds."""
    zoo, average = (runs[0]["sets"][which]["test"]["accuracy"] for which in ("zoo", "average"))
    generated = [run["sets"]["generated"]["test"]["accuracy"] for run in runs]
    dispersion = [run["sets"]["generated"]["dispersion"] for run in runs]
    means = [100 * accuracy["mean"] for accuracy in generated]
    within = 100 * statistics.mean(accuracy["std"] for accuracy in generated)
    seeds = f" ({statistics.stdev(means):.2f} over {len(means)})" if len(means) > 1 else " (1 seed)"
    seconds = {
        key: statistics.mean(run["costs"][key] for run in runs) for key in ("fitting_seconds", "sampling_seconds")
    }
    words = sorted({run["verdict"] for run in runs}, key=[run["verdict"] for run in runs].count, reverse=True)
    cells = [
        name,
        f"{runs[0]['zoo']['size']} x {runs[0]['zoo']['parameter_dim']:,}",
        f"{100 * zoo['mean']:.2f}, {100 * zoo['max']:.2f}",
        f"{100 * average['mean']:.2f}",
        recipe,
        f"{statistics.mean(means):.2f} ± {within:.2f}{seeds}, {100 * max(a['max'] for a in generated):.2f}",
        f"{statistics.mean(d['R'] for d in dispersion):.2f}",
        f"{statistics.mean(d['F'] for d in dispersion):.2f}",
        ", ".join(words),
        f"zoo {runs[0]['costs']['collecting_seconds']:.0f}, fit {seconds['fitting_seconds']:.0f}, "
        f"sample {seconds['sampling_seconds']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
