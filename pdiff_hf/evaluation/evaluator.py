"""Evaluating a pipeline: what `evaluate_pipeline.py` does, through the audit's one code path."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from ..data.inputs import LabeledData, take_inputs
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..targets.inference import network_logits, network_predictions
from ..zoo.checkpoints import Checkpoints, CheckpointSplit
from .audit import Audit, audit
from .criteria import Judged
from .metrics import (
    accuracy_statistics,
    chance_corrected_iou,
    dispersion,
    iou,
    max_similarity,
    mean_pairwise_disagreement,
    mean_pairwise_iou,
)
from .uncertainty import SIZES, deep_ensemble_equivalent, ensemble_figures

# Zoo members of one run within so many steps are near-copies and do not count as each other's nearest.
NEIGHBOUR_STEPS = 20
# The generator's own settings, the shipped one first: as many as a baseline's knob has.
TEMPERATURES = (1.0, 0.3, 0.5, 0.7, 0.85, 1.15)
TRACED_SEEDS, TRACED_STEPS, TRACED_IMAGES = 5, 20, 2000  # for the picture of the reverse process
SHOWN = {
    "average": "average",
    "averages_16": "averages@16",
    "gaussian_diagonal": "gaussian_diagonal@1",
    "gaussian_full": "gaussian_full@1",
    "gaussian_codes": "gaussian_codes@1",
    "noise": "noise@0.05",
}


@dataclass
class Evaluation:
    """What was measured.

    Args:
        sets: For each set its figures, as in `metrics.json`.
        judged: For each set its vectors, predictions and accuracies.
        max_similarity: For each set the largest test similarity of each network with the zoo `(n,)`.
        answer: The audit.
        similarity: Mean similarity between any two of the sets, in their order, on test images.
        reverse_process: Test accuracy along the sampler's steps, `(steps, seeds)`.
        costs: Seconds.
        data: Identity of the images.
    """

    sets: dict[str, dict[str, Any]]
    judged: dict[str, Judged]
    max_similarity: dict[str, torch.Tensor]
    answer: Audit
    similarity: torch.Tensor
    reverse_process: torch.Tensor
    costs: dict[str, float] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def evaluate(
    pipe: PDiffPipeline,
    checkpoints: Checkpoints,
    images: LabeledData,
    num_models: int = 200,
    num_baseline_models: int = 100,
    seed: int = 0,
    num_inference_steps: int | None = None,
    temperature: float = 1.0,
) -> Evaluation:
    """Audits a generator beside its zoo, held-out checkpoints and baselines, on validation and test images.

    Every sample counts; none is selected. Nothing here may be chosen by what it says of the test images.

    Args:
        pipe: The generator.
        checkpoints: Its zoo (`train`) and held-out checkpoints (`test`).
        images: The images the zoo was collected on, split in the same way; or other examples, such as `TensorData`.
        num_models: Samples of the generator.
        num_baseline_models: Samples of each baseline at each setting of its knob.
        seed: Decides all of them.
        num_inference_steps: Steps of the sampler; by default the shipped ones.
        temperature: Factor on the generator's latents.

    Raises:
        LayoutError: If the checkpoints are of another layout than the pipeline's.
    """
    zoo = checkpoints.zoo
    pipe.processor.check(zoo.parameters)
    started = time.perf_counter()
    (latents,) = pipe(
        num_models,
        num_inference_steps=num_inference_steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        return_dict=False,
    )
    samples = {
        f"temperature {factor:g}": pipe.autoencoder.decode(latents.float() * temperature * factor).sample.cpu()
        for factor in TEMPERATURES
    }
    sampling_seconds = time.perf_counter() - started

    started = time.perf_counter()
    own, other = _heldout(checkpoints)
    answer = audit(
        samples,
        zoo.parameters,
        heldout=own.parameters if len(own) else None,
        runs=zoo.run,
        steps=zoo.step,
        heldout_runs=own.run,
        heldout_steps=own.step,
        processor=pipe.processor,
        model=pipe.target_model,
        images=images,
        autoencoder=pipe.autoencoder,
        num_baseline_models=num_baseline_models,
        further={"heldout_branch": other.parameters} if len(other) else {},
        seed=seed,
        progress=True,
    )
    judged: dict[str, Judged] = {
        name: answer.judged[name] for name in ("zoo", "heldout", "heldout_branch") if name in answer.judged
    }
    for name, key in SHOWN.items():
        if f"baselines/{key}" in answer.judged:
            judged[name] = answer.judged[f"baselines/{key}"]
    judged["generated"] = answer.judged[f"samples/{next(iter(samples))}"]

    wrong = {
        split: {name: rows.predicted[split] != part.labels for name, rows in judged.items()}
        for split, part in (("validation", images.validation), ("test", images.test))
    }
    nearest = {
        split: {
            name: max_similarity(rows, masks["zoo"], _neighbors(zoo) if name == "zoo" else None)
            for name, rows in masks.items()
        }
        for split, masks in wrong.items()
    }
    for row in answer.curve:
        mistakes = answer.judged[f"baselines/{row['name']}"].predicted["test"] != images.test.labels
        row["test"]["max_similarity"] = max_similarity(mistakes, wrong["test"]["zoo"]).mean().item()
    sets: dict[str, dict[str, Any]] = {}
    for name, rows in judged.items():
        sets[name] = {
            split: {
                "n": len(masks[name]),
                "accuracy": accuracy_statistics(masks[name]),
                "iou": mean_pairwise_iou(masks[name]),
                "max_similarity": nearest[split][name].mean().item(),
                "kappa_to_zoo": chance_corrected_iou(masks[name], masks["zoo"]).mean().item(),
                "disagreement": mean_pairwise_disagreement(rows.predicted[split]),
            }
            for split, masks in wrong.items()
        }
    reference = sets["heldout"]["test"]["disagreement"] if "heldout" in sets else None
    for name, rows in judged.items():
        f = (sets[name]["test"]["disagreement"] or 0.0) / reference if reference else None
        if name in ("zoo", "heldout", "generated"):
            sets[name]["ensembles"] = _ensembles(pipe, rows.parameters, images)
        sets[name]["dispersion"] = {"R": dispersion(rows.parameters, zoo.parameters), "F": f}
    if "heldout" in sets:
        sets["generated"]["deep_ensemble_equivalent"] = deep_ensemble_equivalent(
            sets["generated"]["ensembles"], sets["heldout"]["ensembles"]
        )
    return Evaluation(
        sets=sets,
        judged=judged,
        max_similarity=nearest["test"],
        answer=answer,
        similarity=_similarity(wrong["test"]),
        reverse_process=_reverse_process(pipe, images, num_inference_steps, seed),
        costs={"sampling_seconds": sampling_seconds, "evaluation_seconds": time.perf_counter() - started},
        data={"test_images_sha256": images.test.fingerprint()},
    )


def _ensembles(pipe: PDiffPipeline, parameters: torch.Tensor, images: LabeledData) -> dict[str, dict[str, float]]:
    """Prediction ensembles of members from all over the set, calibrated on validation images."""
    members = parameters[torch.linspace(0, len(parameters) - 1, min(len(parameters), max(SIZES))).long()]
    logits = {
        split: network_logits(pipe.target_model, pipe.processor, members, images.inputs(part)).cpu()
        for split, part in (("validation", images.validation), ("test", images.test))
    }
    return ensemble_figures(logits["validation"], images.validation.labels, logits["test"], images.test.labels)


def _similarity(wrong: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean similarity between any two sets, within a set over distinct networks, `(sets, sets)` in [0, 1]."""
    matrix = torch.ones(len(wrong), len(wrong))
    for i, ours in enumerate(wrong.values()):
        for j, theirs in enumerate(wrong.values()):
            within = mean_pairwise_iou(ours) if i == j else None
            matrix[i, j] = iou(ours, theirs).mean() if within is None else within
    return matrix


def _reverse_process(
    pipe: PDiffPipeline, images: LabeledData, num_inference_steps: int | None, seed: int
) -> torch.Tensor:
    """Test accuracy of what the latents decode to after each of up to 20 steps of the sampler, `(steps, seeds)`."""
    traced: list[torch.Tensor] = []

    def keep(pipe: PDiffPipeline, step: int, timestep: object, kwargs: dict[str, torch.Tensor]) -> dict:
        traced.append(pipe.autoencoder.decode(kwargs["latents"].float()).sample.cpu())
        return kwargs

    generators = [torch.Generator().manual_seed(seed + i) for i in range(TRACED_SEEDS)]
    pipe(TRACED_SEEDS, num_inference_steps, generators, output_type="latent", callback_on_step_end=keep)
    shown = traced[:: -max(1, len(traced) // TRACED_STEPS)][::-1]  # the last step is among them
    labels = images.test.labels[:TRACED_IMAGES]
    inputs = take_inputs(images.inputs(images.test), slice(TRACED_IMAGES))
    predicted, _ = network_predictions(pipe.target_model, pipe.processor, torch.cat(shown), inputs, labels)
    return (predicted == labels).double().mean(1).view(len(shown), TRACED_SEEDS)


def _heldout(checkpoints: Checkpoints) -> tuple[CheckpointSplit, CheckpointSplit]:
    """Held-out checkpoints: of the zoo's own runs, and of other runs. If none is of its own, all count as such."""
    test, runs = checkpoints.splits["test"], set(checkpoints.zoo.run)
    own = [run in runs for run in test.run]
    if not any(own):
        own = [True] * len(test)
    return test.take(own), test.take([not chosen for chosen in own])


def _neighbors(zoo: CheckpointSplit) -> torch.Tensor:
    """`(zoo, zoo)` bool: pairs of one run that are close in time, a checkpoint and itself among them."""
    runs = {run: i for i, run in enumerate(dict.fromkeys(zoo.run))}
    run = torch.tensor([runs[name] for name in zoo.run])
    step = torch.tensor(zoo.step)
    same_run = run[:, None] == run[None, :]
    return same_run & ((step[:, None] - step[None, :]).abs() <= NEIGHBOUR_STEPS)
