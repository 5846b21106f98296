"""What the page states of a generator, its networks and their predictions, as Markdown."""

from __future__ import annotations

import math

import torch
from predictions import Prediction

from pdiff_hf import DrawnNetworks, PDiffPipeline
from pdiff_hf.hub.safety import broken_files, printable
from pdiff_hf.pipelines.card import criteria_table, report_parts


def prediction_text(prediction: Prediction) -> str:
    """Returns the ensemble's prediction and its uncertainty as Markdown."""
    count, mean = len(prediction.probabilities), prediction.ensemble.probabilities[0]
    best, whole, differing = int(mean.argmax()), prediction.ensemble.entropy, prediction.ensemble.mutual_information
    return (
        f"### The ensemble predicts “{prediction.classes[best]}” with probability {mean[best]:.2f}\n"
        f"| agreement | entropy | mutual information |\n|---|---|---|\n"
        f"| {prediction.agreement} of {count} networks | {whole.item():.2f} of at most {math.log(len(mean)):.2f} nats "
        f"| {differing.item():.2f} nats |\n\n"
        "*Entropy* is the uncertainty of the mean prediction; *mutual information* is the part of it that comes from "
        f"networks contradicting each other.{' The image was inverted.' if prediction.inverted else ''}"
    )


def networks_text(networks: DrawnNetworks, pipe: PDiffPipeline) -> str:
    """Returns what was drawn as Markdown: how many networks, of how many parameters, and for which condition."""
    count, dim = networks.parameters.shape
    text = f"**Drawn: {count} network{'s' * (count != 1)}** with {dim:,} generated parameters each."
    if pipe.conditions is None:
        return text
    meaning, condition = pipe.conditions.meaning, networks.provenance[0]["condition"]
    distance = meaning.distances(torch.tensor([condition]), pipe.conditions.trained).item()
    values = dict(zip(meaning.names, condition, strict=True))
    if meaning.kind == "bits":
        asked = ", ".join(name for name, bit in values.items() if bit) or "none of them"
        near = f"differs in {distance:.0f} of {meaning.dim} bits"
    else:
        asked = ", ".join(f"{name} = {value:.3g}" for name, value in values.items())
        near = f"is {distance:.2g} away"
    return f"{text}\n\nCondition: **{printable(asked)}**. The nearest condition of the training networks {near}."


def verdict_text(pipe: PDiffPipeline) -> str:
    """Returns the audit's word and what it rests on, from the generator's `metrics.json`.

    Raises:
        BrokenFileError: If that file is damaged.
    """
    metrics = pipe.metrics or {}
    if "sets" not in metrics:
        return "It has not been audited; `pdiff-hf audit` does it."
    with broken_files("The audit's verdict"):
        return report_parts(metrics)["headline"]


def criteria_text(pipe: PDiffPipeline) -> str:
    """Returns the audit's criteria as a Markdown table, empty without an audit; raises what `verdict_text` does."""
    metrics = pipe.metrics or {}
    if "sets" not in metrics:
        return ""
    with broken_files("The audit's table of criteria"):
        return criteria_table(metrics)


def generator_text(pipe: PDiffPipeline) -> str:
    """Returns what a generator draws as one sentence of Markdown."""
    config = pipe.target_model.config
    classes = printable(", ".join(str(config.id2label[i]) for i in sorted(config.id2label)[:10]))
    more = ", …" if config.num_labels > 10 else ""
    return (
        f"It draws `{type(pipe.target_model).__name__}` networks with {pipe.processor.parameter_dim:,} generated "
        f"parameters, which classify images as one of: {classes}{more}."
    )
