"""The card of a pipeline, and its `metrics.json` in words and as a table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import EvalResult, ModelCardData

from ..folders import write_text
from ..hub.cards import (
    IMAGE_CLASSIFICATION,
    LICENSE,
    NO_ADDRESS,
    PICTURES,
    TAGS,
    describe_bytes,
    describe_layout,
    published_name,
    render,
)


def write_pipeline_card(folder: str | os.PathLike, pipe: DiffusionPipeline, metrics: Mapping[str, Any] | None) -> None:
    """Writes the README.md of a pipeline into the folder where it was saved; `metrics` may lack an evaluation."""
    metrics = metrics or {"generator": {}, "data": {}, "costs": {}, "environment": {}}
    data, report = metrics["data"], None
    if "sets" in metrics:
        report = {"headline": headline(metrics), "summary": summarize(metrics), "table": metrics_table(metrics)}
    dataset_name, zoo = published_name(data.get("dataset_name")), data.get("checkpoints")
    card_data = ModelCardData(
        license=LICENSE,
        library_name="diffusers",
        tags=[*TAGS, "arxiv:2402.13144"],
        datasets=[zoo] if zoo else None,
        metrics=[_metric_type(metrics)] if report else None,
        model_name=NO_ADDRESS if report else None,
        eval_results=_eval_results(metrics, dataset_name) if report else None,
    )
    text = render(
        "pipeline.md",
        card_data,
        target_class=type(pipe.target_model).__name__,
        subset_description=describe_layout(pipe.processor.names),
        parameter_dim=pipe.processor.parameter_dim,
        zoo=zoo,
        zoo_count=data.get("zoo_count"),
        dataset_name=dataset_name,
        autoencoder_class=type(pipe.autoencoder).__name__,
        latent_dim=pipe.autoencoder.config.latent_dim,
        denoiser_class=type(pipe.denoiser).__name__,
        denoiser_parameters=f"{pipe.denoiser.num_parameters():,}",
        scheduler_class=type(pipe.scheduler).__name__,
        num_inference_steps=pipe.config.default_num_inference_steps,
        autoguidance_scale=pipe.config.default_autoguidance_scale,
        image_count=metrics["generator"].get("function_matching", {}).get("count"),
        recipe={
            stage: {name: value for name, value in settings.items() if value is not None}
            for stage, settings in metrics["generator"].items()
            if isinstance(settings, dict)
        },
        costs={name.removesuffix("_seconds"): f"{value:.2f}" for name, value in metrics["costs"].items()},
        hardware=metrics["environment"].get("hardware"),
        versions={name: value for name, value in metrics["environment"].items() if name != "hardware"},
        sizes=_sizes(Path(folder), pipe.processor.parameter_dim, data.get("zoo_count")),
        report=report,
        score_name=score_name(metrics),
        pictures={name: title for name, title in PICTURES.items() if (Path(folder) / name).is_file()},
    )
    write_text(Path(folder) / "README.md", text)


def headline(metrics: Mapping[str, Any]) -> str:
    """Returns one sentence on what the audit found, for the first paragraph of a card."""
    verdict, sets = metrics["verdict"], metrics["sets"]
    word = f"**{verdict['word']}**" + (f": {verdict['meaning']}" if "meaning" in verdict else "")
    score = {name: 100 * sets[name]["test"]["accuracy"]["mean"] for name in ("generated", "zoo", "average")}
    return (
        f"The audit calls it {word}. Its networks {_reach(metrics, score['generated'])} on average (the zoo: "
        f"{score['zoo']:.2f} %, the plain average of the zoo: {score['average']:.2f} %), and their predictions "
        f"disagree F = {_number(sets['generated']['dispersion']['F'], 2)} times as much as real checkpoints' do."
    )


def summarize(metrics: Mapping[str, Any]) -> str:
    """Returns in words what was found, also where something simpler does as well."""
    sets, verdict, axes = metrics["sets"], metrics["verdict"], metrics["verdict"]["axes"]
    grounds = "; ".join(verdict[key] for key in ("meaning", "reason") if key in verdict)
    score = {name: 100 * figures["test"]["accuracy"]["mean"] for name, figures in sets.items()}
    gain = score["generated"] - score["zoo"]
    against = f"{abs(gain):.2f} points {'above' if gain >= 0 else 'below'} the zoo"
    real = "held-out checkpoints'" if "heldout" in sets else "the zoo's (there are no held-out checkpoints)"
    novel, gaussian, curve = axes["novel"], axes["distinguishable"], axes["outside_the_curve"]
    if novel["assessable"]:
        weights = novel["weights"]
        novelty = (
            f"Their distance to the nearest training checkpoint is r = {_interval(weights['r'])} times the natural "
            f"one (held-out checkpoints: {weights['heldout_r']:.2f}); with probability {_interval(weights['auc'])} a "
            "sample lies further from the zoo than a held-out checkpoint does."
        )
    else:
        novelty = f"Novelty is not assessable: {novel['reason']}."
    return (
        f"The audit's answer: **{verdict['word']}** ({grounds}). "
        f"The {sets['generated']['test']['n']} generated networks {_reach(metrics, score['generated'])} on average, "
        f"{against}; the plain average of the zoo reaches {score['average']:.2f} %. "
        f"Their parameters spread R = {_interval(axes['disperses']['R'])} times as much as the zoo's, and their "
        f"predictions disagree F = {_interval(axes['disperses']['F'])} times as much as {real}. {novelty} "
        "Against a Gaussian in the generator's own codes they gain "
        f"{_interval(gaussian['accuracy_difference'], 100)} points of {score_name(metrics)}, and where they lie "
        f"differs with p = {gaussian['energy_p_value']:.3f}: the two {'can' if gaussian['answer'] else 'cannot'} be "
        "told apart. Against the curve of the swept baselines, at equal diversity, they gain "
        f"{_interval(curve['area'], 100)} points on average over {curve['settings']} settings."
    )


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Returns the test figures of every set as a Markdown table, scores in per cent."""
    header = f"| set | n | {score_name(metrics)} | worst | best | similarity | max-similarity | R | F |"
    lines = [header, "|---|---|---|---|---|---|---|---|---|"]
    for name, figures in metrics["sets"].items():
        test, accuracy = figures["test"], figures["test"]["accuracy"]
        cells = [
            figures.get("title", name),
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


def score_name(metrics: Mapping[str, Any]) -> str:
    """Returns the name of the task's score, which the key `accuracy` holds; files made before tasks have none."""
    return metrics.get("data", {}).get("score_name", "accuracy")


def _reach(metrics: Mapping[str, Any], score: float) -> str:
    if score_name(metrics) == "accuracy":
        return f"classify {score:.2f} % of the test images"
    return f"reach {score_name(metrics)} = {score:.2f} % on the test examples"


def _interval(found: dict[str, float], factor: int = 1) -> str:
    return f"{factor * found['value']:.2f} [{factor * found['low']:.2f}, {factor * found['high']:.2f}]"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _eval_results(metrics: Mapping[str, Any], dataset_name: str | None) -> list[EvalResult]:
    generated, score, metric = metrics["sets"]["generated"], score_name(metrics), _metric_type(metrics)
    accuracy, dispersion = generated["test"]["accuracy"], generated["dispersion"]
    rows = [
        (metric, f"{score}, mean of {generated['test']['n']} drawn networks", accuracy["mean"]),
        (metric, f"{score}, worst of them", accuracy["min"]),
        (metric, f"{score}, best of them", accuracy["max"]),
        ("dispersion_R", "dispersion of parameters R", dispersion["R"]),
        ("dispersion_F", "functional dispersion F", dispersion["F"]),  # None without held-out checkpoints
    ]
    shared: dict[str, Any] = {
        "task_type": IMAGE_CLASSIFICATION if metric == "accuracy" else "tabular-regression",
        "dataset_type": dataset_name or "unknown",
        "dataset_name": dataset_name or "unknown",
        "dataset_split": "test",
    }
    return [
        EvalResult(**shared, metric_type=kind, metric_name=name, metric_value=float(value))
        for kind, name, value in rows
        if value is not None
    ]


def _metric_type(metrics: Mapping[str, Any]) -> str:
    """The Hub's name of the task's score."""
    return "accuracy" if metrics["data"].get("task", "classification") == "classification" else "r_squared"


def _sizes(folder: Path, parameter_dim: int, zoo_count: int | None) -> dict[str, str | None]:
    whole = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    network = sum(path.stat().st_size for path in (folder / "target_model").glob("*.safetensors"))
    return {
        "repository": describe_bytes(whole),
        "network": describe_bytes(network),
        "ratio": f"{whole / network:.2f}" if network else None,
        "zoo": None if zoo_count is None else describe_bytes(zoo_count * network),
        "vectors": None if zoo_count is None else describe_bytes(zoo_count * 4 * parameter_dim),
    }
