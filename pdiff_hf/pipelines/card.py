"""The card of a pipeline, and its `metrics.json` in words and as a table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from ..hub import cards
from ..hub.files import RepositoryFiles
from ..hub.safety import read_json

NAMES = {
    "zoo": "zoo (training checkpoints)",
    "heldout": "held-out checkpoints",
    "heldout_branch": "held-out checkpoints, another run",
    "average": 'average of all (the paper\'s "ensemble")',
    "averages_16": "averages of 16",
    "gaussian_diagonal": "Gaussian, diagonal",
    "gaussian_full": "Gaussian, full covariance",
    "gaussian_codes": "Gaussian in the generator's codes",
    "noise": "zoo with noise of 5 % of each tensor's spread",
    "generated": "**generated**",
}
MEANINGS = {
    "broken": "they do less than half of what the zoo does above chance",
    "copier": "they lie much closer to training checkpoints than real, unseen checkpoints do",
    "averager": "they are more alike than real checkpoints are, as averages of checkpoints would be",
    "beyond the curve": "at the zoo's diversity they are more accurate than every baseline, the zoo included",
    "Gaussian-equivalent": "nothing measured here tells them from a Gaussian fitted in the generator's own codes",
    "faithful": "they perform, spread and lie as far from the zoo as unseen real checkpoints do",
    "inconclusive": "an interval straddles a line that decides",
    "not assessable": "the zoo's runs and steps are not known, so novelty cannot be judged",
}


def write_pipeline_card(folder: str | os.PathLike, pipe: DiffusionPipeline, metrics: Mapping[str, Any] | None) -> None:
    """Writes the README.md of a pipeline repository from its `metrics.json`, evaluated or not."""
    report = None
    if metrics is not None and "sets" in metrics:
        report = {"headline": headline(metrics), "summary": summarize(metrics), "table": metrics_table(metrics)}
    cards.write_pipeline_card(folder, pipe.components, pipe.config.default_num_inference_steps, metrics, report)


def read_metrics(
    pipeline: str | os.PathLike, revision: str | None = None, token: str | bool | None = None
) -> dict[str, Any] | None:
    """Returns the `metrics.json` of a pipeline's folder or Hub repository, or None if it has none.

    Raises:
        HubError: If the repository cannot be read.
        BrokenFileError: If the file is damaged.
    """
    folder = Path(pipeline)
    if not folder.is_dir():
        folder = RepositoryFiles(str(pipeline), revision=revision, token=token).download(["metrics.json"])
    return read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else None


def headline(metrics: Mapping[str, Any]) -> str:
    """Says in one sentence what the audit found, for the first paragraph of a card."""
    word, generated = metrics["verdict"]["word"], metrics["sets"]["generated"]
    dispersion = generated["dispersion"]
    return (
        f"The audit calls it **{word}**: {MEANINGS[word]}. Its networks classify "
        f"{100 * generated['test']['accuracy']['mean']:.2f} % of the test images on average (the zoo: "
        f"{100 * metrics['sets']['zoo']['test']['accuracy']['mean']:.2f} %, the plain average of the zoo: "
        f"{100 * metrics['sets']['average']['test']['accuracy']['mean']:.2f} %), and their predictions disagree "
        f"F = {dispersion['F']:.2f} times as much as real checkpoints' do."
    )


def summarize(metrics: Mapping[str, Any]) -> str:
    """Says in words what was found, also where something simpler does as well."""
    sets, axes = metrics["sets"], metrics["verdict"]["axes"]
    word = metrics["verdict"]["word"]
    accuracy = {name: 100 * figures["test"]["accuracy"]["mean"] for name, figures in sets.items()}
    gain = accuracy["generated"] - accuracy["zoo"]
    against = f"{abs(gain):.2f} points {'above' if gain >= 0 else 'below'} the zoo"
    real = "held-out checkpoints'" if "heldout" in sets else "the zoo's (there are no held-out checkpoints)"
    sentences = [
        f"The audit's answer: **{word}** ({MEANINGS[word]}; {metrics['verdict']['reason']}).",
        f"The {sets['generated']['test']['n']} generated networks classify {accuracy['generated']:.2f} % of the test "
        f"images on average, {against}; the plain average of the zoo reaches {accuracy['average']:.2f} %.",
        f"Their parameters spread R = {_interval(axes['disperses']['R'])} times as much as the zoo's, and their "
        f"predictions disagree F = {_interval(axes['disperses']['F'])} times as much as {real}.",
    ]
    novel = axes["novel"]
    if novel["assessable"]:
        weights = novel["weights"]
        sentences.append(
            f"Their distance to the nearest training checkpoint is r = {_interval(weights['r'])} times the natural "
            f"one (held-out checkpoints: {weights['heldout_r']:.2f}); with probability {_interval(weights['auc'])} a "
            "sample lies further from the zoo than a held-out checkpoint does."
        )
    else:
        sentences.append(f"Novelty is not assessable: {novel['reason']}.")
    gaussian = axes["distinguishable"]
    difference = {key: 100 * value for key, value in gaussian["accuracy_difference"].items()}
    sentences.append(
        f"Against a Gaussian in the generator's own codes they gain {_interval(difference)} points of accuracy, and "
        f"where they lie differs with p = {gaussian['energy_p_value']:.3f}: "
        + ("the two can be told apart." if gaussian["answer"] else "the two cannot be told apart.")
    )
    area = {key: 100 * value for key, value in axes["outside_the_curve"]["area"].items()}
    sentences.append(
        f"Against the curve of the swept baselines, at equal diversity, they gain {_interval(area)} points on average "
        f"over {axes['outside_the_curve']['settings']} settings."
    )
    return " ".join(sentences)


def metrics_table(metrics: Mapping[str, Any]) -> str:
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


def _interval(value: dict[str, float]) -> str:
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
