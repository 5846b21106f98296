"""Whole networks drawn unit by unit: zoos of independent runs, the recipe `units`, and the audit's answer.

    python benchmarks/whole_networks.py --cases mlp_16 --seeds 0 1 2 --output_dir runs/whole_networks
    python benchmarks/whole_networks.py --cases mlp_16 --zoo_sizes 300 1000 --variants units no_matching
    python benchmarks/whole_networks.py --cases mnist_16 --dataset mnist=path/or/id
    python benchmarks/whole_networks.py --cases convnet --trunk_steps 0 100 200 300 350

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
from paper_table import merged, with_settings
from tqdm.auto import tqdm
from whole_network_cases import CASES, HELDOUT, VARIANTS

from pdiff_hf import (
    Auditor,
    Checkpoints,
    MultiRunSettings,
    PDiffPipeline,
    collect_runs,
    fit,
    fit_autoencoder,
    load_checkpoints,
    load_recipe,
)
from pdiff_hf.data.inputs import LabeledData
from pdiff_hf.fitting.pipeline import fit_pipeline
from pdiff_hf.folders import write_json
from pdiff_hf.loops import Stopwatch
from pdiff_hf.settings import RunSettings
from pdiff_hf.zoo.settings import load_images_of, load_target

RECIPES = ("fast", "paper")  # to compare with
SAMPLES = 150


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="Networks and data sets.")
    parser.add_argument(
        "--variants", nargs="+", choices=[*VARIANTS, *RECIPES], default=["units"], help="Of the recipe."
    )
    parser.add_argument("--zoo_sizes", nargs="+", type=int, help="Checkpoints to fit; by default those of the case.")
    parser.add_argument("--trunk_steps", nargs="+", type=int, default=[0], help="Steps that all runs share.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="Seeds of the generators.")
    parser.add_argument("--max_train_steps", type=int, help="Steps of the denoiser, if not those of the case.")
    parser.add_argument("--dataset", action="append", default=[], help="NAME=PATH: where a data set is.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/whole_networks"), help="Folder of the results.")
    arguments = parser.parse_args()
    places = dict(place.split("=", 1) for place in arguments.dataset)
    for case in tqdm(arguments.cases, desc="cases"):
        for trunk_steps in arguments.trunk_steps:
            run_case(case, trunk_steps, arguments, places)
    print("\n".join(table(arguments.output_dir)))


def run_case(name: str, trunk_steps: int, arguments: argparse.Namespace, places: dict[str, str]) -> None:
    """Collects a zoo, then fits and audits what is missing of its generators."""
    case = CASES[name]
    folder = arguments.output_dir / (f"{name}_trunk{trunk_steps}" if trunk_steps else name)
    settings = MultiRunSettings(**case.settings(trunk_steps))
    settings.dataset_name = places.get(settings.dataset_name, settings.dataset_name)
    images = load_images_of(settings)
    if not (folder / "zoo").is_dir():
        state = RunSettings(str(folder / "zoo"), resume_from_checkpoint="latest")
        collect_runs(images, load_target(settings, images), settings, state).save(folder / "zoo")
    checkpoints = load_checkpoints(folder / "zoo")
    zoo = checkpoints.zoo
    steps = {"max_train_steps": arguments.max_train_steps} if arguments.max_train_steps else {}
    for count in arguments.zoo_sizes or [case.size]:
        checkpoints.splits["train"] = zoo.rows(slice(count))
        auditor = None
        for variant in arguments.variants:
            for seed in arguments.seeds:
                path = folder / f"{variant}-{count}-{seed}.json"
                if not path.is_file():
                    auditor = auditor or make_auditor(checkpoints, images)
                    started = time.perf_counter()
                    pipe = fit_variant(checkpoints, images, variant, seed, case.denoiser | steps)
                    seconds = time.perf_counter() - started
                    found = evaluate_generator(pipe, auditor, seed) | reconstruct(pipe, checkpoints, images)
                    write_json(path, {"fitting_seconds": seconds, **found})


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


def fit_variant(
    checkpoints: Checkpoints,
    images: LabeledData,
    variant: str,
    seed: int,
    denoiser: dict[str, Any],
) -> PDiffPipeline:
    """Fits a recipe, or a variant of `units` with other settings of the second stage."""
    if variant in RECIPES:
        return fit(checkpoints, with_settings(load_recipe(variant), {}, seed))
    recipe = with_settings(load_recipe("units"), {"denoiser": merged(denoiser, VARIANTS[variant])}, seed)
    if variant != "plain_codes":
        return fit(checkpoints, recipe, images=images)
    watch = Stopwatch()
    autoencoder = fit_autoencoder(checkpoints, recipe.autoencoder)
    stage = {"settings": dataclasses.asdict(recipe.autoencoder), "seconds": watch.seconds}
    return fit_pipeline(checkpoints, autoencoder, stage, recipe.denoiser, images=images)


def evaluate_generator(pipe: PDiffPipeline, auditor: Auditor, seed: int) -> dict[str, Any]:
    """Draws networks, and returns what the audit finds of them."""
    pipe.set_progress_bar_config(disable=True)
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(1000 + seed)
    (samples,) = pipe(SAMPLES, generator=generator, output_type="pt", return_dict=False)
    seconds = time.perf_counter() - started
    answer = auditor.audit(samples)
    scores = answer.networks["samples"]["samples"].scores["test"]
    zoo, heldout = (answer.networks["real"][name].scores["test"] for name in ("zoo", "heldout"))
    evidence = answer.evidence
    novel = dataclasses.asdict(evidence.novel)
    return {
        "sampling_seconds": seconds,
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
        "function_auc": novel["functions"]["auc"],
        "novel_and_performant": novel["novel_and_performant"]["1"],
        "heldout_novel_and_performant": novel["heldout_novel_and_performant"]["1"],
        "verdict": answer.verdict,
        "reason": answer.reason,
        "criteria": {name: criterion.status for name, criterion in answer.criteria.items()},
        "autoguidance_scale": pipe.config.get("default_autoguidance_scale"),
        "generator": (pipe.metrics or {})["generator"],
        "costs": (pipe.metrics or {})["costs"],
        "baselines": {row.name: row.test.accuracy for row in answer.curve},
    }


def reconstruct(pipe: PDiffPipeline, checkpoints: Checkpoints, images: LabeledData) -> dict[str, float]:
    """Returns the accuracy of real networks, encoded and decoded: of the zoo, and of held-out runs."""
    vectors = {"zoo": checkpoints.zoo.parameters[:HELDOUT], "heldout": checkpoints.splits["test"].parameters}
    decoded = {split: pipe.decode(pipe.encode(each)).evaluate(images) for split, each in vectors.items()}
    return {f"reconstructed_{split}": found.networks["accuracy"].mean().item() for split, found in decoded.items()}


def table(folder: Path) -> list[str]:
    """Returns one row for each case, variant and size of the zoo, over its seeds; accuracies in per cent."""
    lines = [
        "| case | generator | zoo | held-out | encoded and decoded | average | Gaussian | drawn: mean (worst) | R "
        "| F at equal errors | r | Z_U | AUC in function | N&P(1) (held-out) | audit | fit s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
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
            " and ".join(over_seeds(found, f"reconstructed_{split}", 1, 100) for split in ("zoo", "heldout")),
            f"{100 * baselines['average']:.1f}",
            f"{100 * baselines['gaussian_full@1']:.1f}",
            f"{over_seeds(found, 'accuracy', 2, 100)} ({100 * min(row['worst'] for row in found):.1f})",
            *(over_seeds(found, key, 2) for key in ("R", "F_at_equal_errors")),
            over_seeds(found, "r", 3),
            over_seeds(found, "z", 1),
            f"{statistics.fmean(row['function_auc']['value'] for row in found):.2f}",
            f"{over_seeds(found, 'novel_and_performant', 2)} ({over_seeds(found, 'heldout_novel_and_performant', 2)})",
            ", ".join(sorted({row["verdict"] for row in found})),
            over_seeds(found, "fitting_seconds", 0),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
