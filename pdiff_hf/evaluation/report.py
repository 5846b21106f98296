"""The report of an evaluation: `metrics.json`, a table, a few sentences and the pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..folders import write_json, write_text
from ..processing_parameters import ParameterProcessor
from .evaluator import Evaluation
from .plots import PICTURES, draw_pictures

NAMES = {
    "zoo": "zoo (training checkpoints)",
    "heldout": "held-out checkpoints",
    "heldout_branch": "held-out checkpoints, another run",
    "average": 'average of all (the paper\'s "ensemble")',
    "averages_16": "averages of 16",
    "gaussian_diagonal": "Gaussian, diagonal",
    "gaussian_full": "Gaussian, full covariance",
    "gaussian_codes": "Gaussian in the generator's codes",
    "generated": "**generated**",
}
AVERAGER, SPREADER = 0.8, 1.2  # below and above these, R or F is far from the zoo's
CLOSER = 0.02  # a difference of mean max-similarities worth a word


def write_report(
    folder: str | os.PathLike, evaluation: Evaluation, fitted: dict[str, Any], processor: ParameterProcessor
) -> dict[str, Any]:
    """Writes `metrics.json`, `report.md` and the pictures, and returns the content of `metrics.json`.

    Args:
        folder: Where to write; made if need be.
        evaluation: What was measured.
        fitted: Beginning of the `metrics.json`: how the generator was made (version, generator, data, costs,
            environment).
        processor: The layout, for the pictures.

    Raises:
        UnwritableFolderError: If the folder cannot be written.
    """
    metrics = {
        **fitted,
        "data": {**fitted["data"], **evaluation.data},
        "sets": evaluation.sets,
        "costs": {**fitted["costs"], **evaluation.costs},
    }
    write_json(Path(folder) / "metrics.json", metrics)
    pictures = "\n\n".join(f"![{title}]({file})" for file, title in PICTURES.items())
    write_text(Path(folder) / "report.md", f"{summarize(metrics)}\n\n{metrics_table(metrics)}\n\n{pictures}\n")
    draw_pictures(folder, evaluation, processor)
    return metrics


def metrics_table(metrics: dict[str, Any]) -> str:
    """Returns the test figures of every set as a markdown table, accuracies in per cent."""
    lines = [
        "| set | n | accuracy | worst | best | similarity | max-similarity | R | F |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in metrics["sets"].items():
        test, accuracy = figures["test"], figures["test"]["accuracy"]
        cells = [
            NAMES.get(name, name),
            str(test["n"]),
            f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['std']:.2f}",
            f"{100 * accuracy['min']:.2f}",
            f"{100 * accuracy['max']:.2f}",
            _number(test["iou"], 3),
            _number(test["max_similarity"], 3),
            _number(figures["dispersion"]["R"], 2),
            _number(figures["dispersion"]["F"], 2),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summarize(metrics: dict[str, Any]) -> str:
    """Says in words what the table shows, also where something simpler does as well."""
    sets = metrics["sets"]
    generated, zoo = sets["generated"], sets["zoo"]
    accuracy = {name: 100 * figures["test"]["accuracy"]["mean"] for name, figures in sets.items()}
    gain = accuracy["generated"] - accuracy["zoo"]
    against = f"{abs(gain):.2f} points {'above' if gain >= 0 else 'below'} the {zoo['test']['n']} networks of the zoo"
    sentences = [
        f"The {generated['test']['n']} generated networks classify {accuracy['generated']:.2f} % of the test images "
        f"on average, {against}; the plain average of the zoo reaches {accuracy['average']:.2f} %."
    ]
    r, f = generated["dispersion"]["R"], generated["dispersion"]["F"]
    spread = f"Their parameters spread R = {r:.2f} times as much as the zoo's"
    if f is not None:
        spread += f", and their predictions disagree F = {f:.2f} times as much as those of held-out checkpoints"
    known = [value for value in (r, f) if value is not None]
    if min(known) < AVERAGER:
        judgement = "this is an averager: it draws networks that are closer to the average than real ones are."
    elif max(known) > SPREADER:
        judgement = "it spreads more than the zoo does."
    else:
        judgement = "it keeps the zoo's diversity."
    sentences.append(f"{spread}: {judgement}")
    if "heldout" in sets:
        nearest, real = (sets[name]["test"]["max_similarity"] for name in ("generated", "heldout"))
        if nearest > real + CLOSER:
            sentences.append(
                f"They lie closer to the zoo than held-out checkpoints do: the largest overlap of wrong predictions "
                f"with a zoo network is {nearest:.2f} on average, against {real:.2f}."
            )

    null = sets["gaussian_codes"]
    error = 200 * (generated["test"]["accuracy"]["std"] ** 2 + null["test"]["accuracy"]["std"] ** 2) ** 0.5
    error /= generated["test"]["n"] ** 0.5
    null_f = null["dispersion"]["F"]
    null_text = f"{accuracy['gaussian_codes']:.2f} % with R = {null['dispersion']['R']:.2f}" + (
        f" and F = {null_f:.2f}" if null_f is not None else ""
    )
    same_spread = f is None or null_f is None or abs(null_f - f) <= 0.1
    if same_spread and abs(accuracy["gaussian_codes"] - accuracy["generated"]) <= error:
        sentences.append(
            f"A plain Gaussian in the generator's own codes does as well ({null_text}): on this zoo the denoiser adds "
            "nothing that these figures show."
        )
    else:
        sentences.append(f"A plain Gaussian in the generator's own codes gives {null_text}.")
    return " ".join(sentences)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
