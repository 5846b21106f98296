"""Whole networks drawn unit by unit: zoos of independent runs, the recipe `units`, and the audit's answer.

    python benchmarks/whole_networks.py --cases mlp_16 --seeds 3 --output_dir runs/whole_networks
    python benchmarks/whole_networks.py --cases mlp_16 --zoo_sizes 300 1000 --variants units no_matching
    python benchmarks/whole_networks.py --cases mnist_16 --dataset mnist=path/or/id

Every case collects one zoo; every variation of the recipe is fitted to its first checkpoints with each seed, drawn
from without selection, and audited. What is finished is kept: an interrupted run goes on with what is missing, and the
table is printed from whatever is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from paper_table import with_settings
from tqdm.auto import tqdm

from pdiff_hf import Auditor, Checkpoints, MultiRunSettings, collect_runs, fit, load_checkpoints, load_recipe
from pdiff_hf.data.inputs import LabeledData
from pdiff_hf.folders import write_json
from pdiff_hf.zoo.settings import load_images_of, load_target

DIGITS: dict[str, Any] = {"image_size": 8, "target_train_steps": 500, "target_learning_rate": 0.01}
MNIST: dict[str, Any] = {"dataset_name": "mnist", "target_learning_rate": 0.01, "train_batch_size": 128}
# Of each case: how its zoo is collected, the size of the zoo, and what differs in the recipe.
CASES: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "mlp_16": (
        DIGITS | {"model_config": '{"hidden_sizes": [16]}', "adam_weight_decay": 1.0},
        4000,
        {"max_train_steps": 5000},
    ),
    "mlp_32": (
        DIGITS | {"model_config": '{"hidden_sizes": [32]}', "adam_weight_decay": 1.0},
        4000,
        {"max_train_steps": 5000},
    ),
    "mlp_16_16": (
        DIGITS | {"model_config": '{"hidden_sizes": [16, 16]}', "adam_weight_decay": 1.0},
        3000,
        {"max_train_steps": 4000},
    ),
    "mnist_16": (
        MNIST
        | {"model_config": '{"hidden_sizes": [16]}', "image_size": 14, "target_train_steps": 1055}
        | {"adam_weight_decay": 0.1},
        3000,
        {"max_train_steps": 9000, "function_weight": 10.0, "ema_decay": 0.999},
    ),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "units": {},
    "no_matching": {"function_weight": 0.0},
    "positions": {"config": {"positions": True}},
}
RECIPES = ("fast",)
HELDOUT, SAMPLES = 200, 150


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="Networks and data sets.")
    parser.add_argument(
        "--variants", nargs="+", choices=[*VARIANTS, *RECIPES], default=["units"], help="Of the recipe."
    )
    parser.add_argument("--zoo_sizes", nargs="+", type=int, help="Checkpoints to fit; by default those of the case.")
    parser.add_argument("--seeds", type=int, default=3, help="Number of generator seeds.")
    parser.add_argument("--max_train_steps", type=int, help="Steps of the denoiser, if not those of the case.")
    parser.add_argument("--dataset", action="append", default=[], help="NAME=PATH: where a data set is.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/whole_networks"), help="Folder of the results.")
    arguments = parser.parse_args()
    places = dict(place.split("=", 1) for place in arguments.dataset)
    for case in tqdm(arguments.cases, desc="cases"):
        run_case(case, arguments, places)
    print("\n".join(table(arguments.output_dir)))


def run_case(case: str, arguments: argparse.Namespace, places: dict[str, str]) -> None:
    """Fits and audits what is missing of one case."""
    collection, size, changes = CASES[case]
    folder = arguments.output_dir / case
    settings = MultiRunSettings(
        **collection,
        model_type="pdiff_mlp",
        subset=["full"],
        num_runs=size,
        num_validation_runs=HELDOUT,
        num_test_runs=HELDOUT,
        canonicalize=True,
        seed=1,
    )
    settings.dataset_name = places.get(settings.dataset_name, settings.dataset_name)
    images = load_images_of(settings)
    if not (folder / "zoo").is_dir():
        collect_runs(images, load_target(settings, images), settings).save(folder / "zoo")
    checkpoints = load_checkpoints(folder / "zoo")
    for count in arguments.zoo_sizes or [size]:
        checkpoints.splits["train"] = load_checkpoints(folder / "zoo").zoo.rows(slice(count))
        auditor = None
        for variant in arguments.variants:
            for seed in range(arguments.seeds):
                path = folder / f"{variant}-{count}-{seed}.json"
                if path.is_file():
                    continue
                auditor = auditor or make_auditor(checkpoints, images)
                write_json(path, run_generator(checkpoints, images, auditor, variant, seed, changes, arguments))


def make_auditor(checkpoints: Checkpoints, images: LabeledData) -> Auditor:
    """Returns the auditor of a zoo with its held-out runs."""
    zoo, heldout = checkpoints.zoo, checkpoints.splits["test"]
    return Auditor(
        zoo.parameters,
        heldout=heldout.parameters,
        runs=zoo.run,
        heldout_runs=heldout.run,
        processor=checkpoints.processor,
        model=checkpoints.target_model.eval(),
        images=images,
    )


def run_generator(
    checkpoints: Checkpoints,
    images: LabeledData,
    auditor: Auditor,
    variant: str,
    seed: int,
    changes: dict[str, Any],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Fits one generator and returns what the audit finds of its samples."""
    recipe = load_recipe(variant if variant in RECIPES else "units")
    if variant in VARIANTS:
        denoiser = changes | VARIANTS[variant]
        if arguments.max_train_steps:
            denoiser |= {"max_train_steps": arguments.max_train_steps}
        recipe = with_settings(recipe, {"denoiser": denoiser}, seed)
    else:
        recipe = with_settings(recipe, {}, seed)
    started = time.perf_counter()
    pipe = fit(checkpoints, recipe, images=images)
    fitting = time.perf_counter() - started
    pipe.set_progress_bar_config(disable=True)
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(1000 + seed)
    (samples,) = pipe(SAMPLES, generator=generator, output_type="pt", return_dict=False)
    sampling = time.perf_counter() - started
    answer = auditor.audit(samples)
    scores = answer.networks["samples"]["samples"].scores["test"]
    zoo, heldout = (answer.networks["real"][name].scores["test"] for name in ("zoo", "heldout"))
    evidence = answer.evidence
    novel = dataclasses.asdict(evidence.novel)
    return {
        "zoo": zoo.mean().item(),
        "heldout": heldout.mean().item(),
        "accuracy": scores.mean().item(),
        "std": scores.std().item(),
        "worst": scores.min().item(),
        "R": evidence.disperses.R.value,
        "F": evidence.disperses.F.value,
        "F_at_equal_errors": evidence.disperses.F_at_equal_errors.value,
        "r": novel["weights"]["r"]["value"],
        "z": novel["weights"]["rank_statistic"],
        "novel_and_performant": novel["novel_and_performant"]["1"],
        "heldout_novel_and_performant": novel["heldout_novel_and_performant"]["1"],
        "verdict": answer.verdict,
        "reason": answer.reason,
        "autoguidance_scale": pipe.config.get("default_autoguidance_scale"),
        "generator": (pipe.metrics or {})["generator"],
        "fitting_seconds": fitting,
        "sampling_seconds": sampling,
        "zoo_seconds": checkpoints.collection["costs"],
        "baselines": {row.name: row.test.accuracy for row in answer.curve},
    }


def table(folder: Path) -> list[str]:
    """Returns one row for each case, variant and size of the zoo, over its seeds; accuracies in per cent."""
    lines = [
        "| case | generator | zoo | held-out | average | Gaussian | drawn: mean (worst) | R | F at equal errors | r "
        "| Z_U | N&P(1) (held-out) | audit | fit s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/*-*-*.json")):
        variant, count, _ = path.stem.rsplit("-", 2)
        rows.setdefault((path.parent.name, variant, int(count)), []).append(json.loads(path.read_text()))

    def over_seeds(found: list[dict[str, Any]], key: str, digits: int, factor: float = 1.0) -> str:
        return f"{factor * statistics.fmean(row[key] for row in found):.{digits}f}"

    for (case, variant, size), found in rows.items():
        baselines = found[0]["baselines"]
        cells = [
            case,
            variant,
            f"{size}: {over_seeds(found, 'zoo', 2, 100)}",
            over_seeds(found, "heldout", 2, 100),
            f"{100 * baselines['average']:.1f}",
            f"{100 * baselines['gaussian_full@1']:.1f}",
            f"{over_seeds(found, 'accuracy', 2, 100)} ({100 * min(row['worst'] for row in found):.1f})",
            *(over_seeds(found, key, 2) for key in ("R", "F_at_equal_errors")),
            over_seeds(found, "r", 3),
            over_seeds(found, "z", 1),
            f"{over_seeds(found, 'novel_and_performant', 2)} ({over_seeds(found, 'heldout_novel_and_performant', 2)})",
            ", ".join(sorted({row["verdict"] for row in found})),
            over_seeds(found, "fitting_seconds", 0),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
