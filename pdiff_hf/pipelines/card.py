"""The card of a pipeline, and its `metrics.json` in words and as a table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import EvalResult, ModelCardData

from ..folders import write_text
from ..hub.cards import (
    ALL_PICTURES,
    IMAGE_CLASSIFICATION,
    LICENSE,
    NO_ADDRESS,
    TAGS,
    describe_bytes,
    describe_layout,
    published_name,
    render,
)
from .conditional_card import conditional_report
from .guidance import KnownConditions
from .numbers import interval, number, score_name


def write_pipeline_card(
    folder: str | os.PathLike,
    pipe: DiffusionPipeline,
    metrics: Mapping[str, Any] | None,
    beside: str | os.PathLike | None = None,
) -> None:
    """Writes the README.md of a pipeline into the folder where it was saved; `metrics` may lack an evaluation.

    `beside` is a folder whose other files will lie there, too.
    """
    metrics = metrics or {"generator": {}, "data": {}, "costs": {}, "environment": {}}
    data, report = metrics["data"], None
    if "sets" in metrics:
        report = report_parts(metrics)
    dataset_name, zoo = published_name(data.get("dataset_name")), data.get("checkpoints")
    card_data = ModelCardData(
        license=data.get("license", LICENSE),
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
        statistics=bool(pipe.processor.statistics),
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
        guidance_scale=pipe.config.get("default_guidance_scale", 1.0),
        conditions=None if pipe.conditions is None else _describe_conditions(pipe.conditions),
        image_count=metrics["generator"].get("function_matching", {}).get("count"),
        recipe={
            stage: {name: value for name, value in settings.items() if value is not None and value is not False}
            for stage, settings in metrics["generator"].items()
            if isinstance(settings, dict)
        },
        costs={name.removesuffix("_seconds"): f"{value:.2f}" for name, value in metrics["costs"].items()},
        hardware=metrics["environment"].get("hardware"),
        versions={name: value for name, value in metrics["environment"].items() if name != "hardware"},
        sizes=_sizes([Path(beside or folder), Path(folder)], pipe.processor.parameter_dim, data.get("zoo_count")),
        report=report,
        score_name=score_name(metrics),
        pictures={name: title for name, title in ALL_PICTURES.items() if (Path(folder) / name).is_file()},
    )
    write_text(Path(folder) / "README.md", text)


def _describe_conditions(known: KnownConditions) -> dict[str, Any]:
    """Returns what a card states of conditions, with the first of the zoo as an example."""
    meaning, first = known.meaning, known.trained[0].tolist()
    example = (
        [name for name, bit in zip(meaning.names, first, strict=True) if bit] if meaning.kind == "bits" else first
    )
    distance = {
        "bits": "the number of bits that differ",
        "simplex": "the total variation",
        "numbers": "the largest difference, in standard deviations of the zoo's conditions",
    }
    return {
        **meaning.to_dict(),
        "dim": meaning.dim,
        "names": describe_layout(meaning.names),
        "count": len(known.trained),
        "example": str([round(one, 4) if isinstance(one, float) else one for one in example]),
        "distance": distance[meaning.kind],
    }


def report_parts(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Returns what an evaluation found: `headline`, `criteria`, `summary`, `table`; a `legend` if it needs one."""
    parts = {"criteria": criteria_table(metrics)}
    if "tasks" in metrics:  # of a conditional generator
        return parts | conditional_report(metrics)
    own = {"headline": headline(metrics), "summary": summarize(metrics), "table": metrics_table(metrics)}
    return parts | own | {"legend": ""}


def headline(metrics: Mapping[str, Any]) -> str:
    """Returns one sentence on what the audit found, for the first paragraph of a card."""
    verdict, sets = metrics["verdict"], metrics["sets"]
    word = f"**{verdict['word']}**" + (f": {verdict['meaning']}" if "meaning" in verdict else "")
    score = {name: sets[name]["test"]["accuracy"]["mean"] for name in ("generated", "zoo", "average")}
    return (
        f"The audit calls it {word}. Its networks {_reach(metrics, score['generated'])} on average (the zoo: "
        f"{number(score['zoo'], 2, 100)} %, the plain average of the zoo: {number(score['average'], 2, 100)} %), and "
        f"their predictions disagree F = {number(sets['generated']['dispersion']['F'])} times as much as real "
        "checkpoints' do."
    )


def summarize(metrics: Mapping[str, Any]) -> str:
    """Returns in words what was found, also where something simpler does as well."""
    sets, verdict, axes = metrics["sets"], metrics["verdict"], metrics["verdict"]["axes"]
    grounds = "; ".join(verdict[key] for key in ("meaning", "reason") if key in verdict)
    score = {name: figures["test"]["accuracy"]["mean"] for name, figures in sets.items()}
    novel, gaussian = axes["novel"], axes["distinguishable"]
    novelty = f"Novelty is not assessable: {novel.get('reason')}."
    if novel["assessable"]:
        weights = novel["weights"]
        novelty = (
            f"They lie r = {interval(weights['r'])} times the natural distance from the zoo (held-out checkpoints: "
            f"{number(weights['heldout_r'])})."
        )
    dispersion = sets["generated"]["dispersion"].items()  # F is not known without held-out checkpoints
    spread = " and ".join(f"{name} = {number(value)}" for name, value in dispersion if value is not None)
    told = "can" if gaussian["answer"] else "cannot"
    return (
        f"The verdict: **{verdict['word']}** ({grounds}). The {sets['generated']['test']['n']} generated networks "
        f"{_reach(metrics, score['generated'])} on average; the zoo reaches {number(score['zoo'], 2, 100)} %, the "
        f"plain average of the zoo {number(score['average'], 2, 100)} %. Relative to real checkpoints their diversity "
        f"is {spread}. {novelty} A Gaussian in the generator's own codes {told} be told apart from them. Over the "
        f"best baseline of the same diversity they gain {interval(axes['outside_the_curve']['area'], 100)} points."
    )


def criteria_table(metrics: Mapping[str, Any]) -> str:
    """Returns what each criterion requires and what was measured as a Markdown table; empty without criteria."""
    verdict = metrics["verdict"]
    if "criteria" not in verdict:  # in files made before there were any
        return ""
    lines = [
        f"| **{verdict['word']}** | measured | samples [95 % interval] | held-out | required | result |",
        "|---|---|---|---|---|---|",
    ]
    for name, criterion in verdict["criteria"].items():
        lines.append(f"| **{name}** | *{criterion['claim']}* | | | | **{criterion['status']}** |")
        lines += [_measure_row(measure) for measure in criterion["measures"].values()]
    novel = verdict.get("axes", {}).get("novel", {"assessable": False})
    if novel["assessable"]:  # beside the criteria: what decides nothing, but is often asked for
        informing = {
            "N&P(1), share as good as the zoo and with r of at least 1": [
                novel[key]["1"] for key in ("novel_and_performant", "heldout_novel_and_performant")
            ]
        }
        for space, where in (("weights", "in weights"), ("functions", "in function")):
            found = novel[space]
            informing[f"Z_U of distances {where}"] = [found["rank_statistic"], found["heldout_rank_statistic"]]
        lines.append("| for information | | | | | |")
        lines += [
            f"| | {name} | {number(ours)} | {number(real)} | - | - |" for name, (ours, real) in informing.items()
        ]
    return "\n".join(lines)


def _measure_row(measure: Mapping[str, Any]) -> str:
    """A row of the table of criteria; with three digits where all numbers are small."""
    value, least, most = measure["value"], measure["least"], measure["most"]
    numbers = (value["value"], value["low"], value["high"], measure["heldout"], least, most)
    known = [x for x in numbers if x is not None]
    digits = 2 if max(map(abs, known), default=0.0) >= 0.1 else 3
    required = f"{number(least, digits)} to {number(most, digits)}"
    if least is None or most is None:
        required = f"≤ {number(most, digits)}" if least is None else f"≥ {number(least, digits)}"
    cells = [interval(value, digits=digits), number(measure["heldout"], digits), required, measure["status"]]
    return f"| | {measure['name']} | {' | '.join(cells)} |"


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Returns the test figures of every set as a Markdown table, scores in per cent."""
    header = f"| set | n | {score_name(metrics)} | worst | best | similarity | max-similarity | R | F |"
    lines = [header, "|---|---|---|---|---|---|---|---|---|"]
    for name, figures in metrics["sets"].items():
        test, accuracy = figures["test"], figures["test"]["accuracy"]
        cells = [
            figures.get("title", name),
            str(test["n"]),
            f"{number(accuracy['mean'], 2, 100)} ± {number(accuracy['std'], 2, 100)}",
            number(accuracy["min"], 2, 100),
            number(accuracy["max"], 2, 100),
            number(test["iou"], 3),
            number(test["max_similarity"], 3),
            number(figures["dispersion"]["R"], 2),
            number(figures["dispersion"]["F"], 2),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _reach(metrics: Mapping[str, Any], score: float | None) -> str:
    if score_name(metrics) == "accuracy":
        return f"classify {number(score, 2, 100)} % of the test images"
    return f"reach {score_name(metrics)} = {number(score, 2, 100)} % on the test examples"


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


def _sizes(folders: Sequence[Path], parameter_dim: int, zoo_count: int | None) -> dict[str, str | None]:
    files = {path.relative_to(folder): path for folder in folders for path in folder.rglob("*") if path.is_file()}
    shown = {name: path for name, path in files.items() if not str(name).startswith((".", "README.md"))}
    sizes = {name: path.stat().st_size for name, path in shown.items()}
    whole = sum(sizes.values())
    weights = [name for name in sizes if name.parent.name == "target_model" and name.suffix == ".safetensors"]
    network = sum(sizes[name] for name in weights)
    return {
        "repository": describe_bytes(whole),
        "network": describe_bytes(network),
        "ratio": f"{whole / network:.2f}" if network else None,
        "zoo": None if zoo_count is None else describe_bytes(zoo_count * network),
        "vectors": None if zoo_count is None else describe_bytes(zoo_count * 4 * parameter_dim),
    }
