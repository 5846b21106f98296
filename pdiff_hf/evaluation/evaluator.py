"""Evaluating a pipeline: what `evaluate_pipeline.py` does, through the audit's one code path."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..data.inputs import LabeledData, take_inputs
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..targets.conditions import ConditionError
from ..targets.inference import network_logits, network_predictions
from ..targets.processing_parameters import NonFiniteParametersError
from ..targets.statistics import OwnStatistics
from ..targets.task import classification, task_of
from ..zoo.checkpoints import Checkpoints, CheckpointSplit
from ..zoo.condition_splits import require_held_out
from .audit import Audit, Auditor
from .evaluated import EvaluatedSet
from .evidence import NotAssessable
from .metrics import chance_corrected_iou, dispersion, iou, max_similarity, mean_pairwise_iou, score_statistics
from .novelty import neighbors_in_time
from .reference import Networks, Reference, place_in_time
from .sets import SETS, family_of
from .uncertainty import SIZES, deep_ensemble_equivalent, ensemble_figures

# Zoo members of one run within this many steps are near-copies and do not count as each other's nearest.
NEIGHBOR_STEPS = 20
TRACED_SEEDS, TRACED_STEPS, TRACED_IMAGES = 5, 20, 2000  # for the figure of the reverse process
PLACED = 25  # networks of a baseline at one setting, for the figure of accuracy and novelty
ENSEMBLES = {"zoo", "heldout", "generated"}  # sets that prediction ensembles are made of


@dataclass(frozen=True)
class Evaluation:
    """What was measured; sets are known by the keys of `SETS`."""

    sets: dict[str, dict[str, Any]]  # the figures of each set, as in metrics.json
    networks: dict[str, EvaluatedSet]  # their vectors are aligned to the zoo's mean
    max_similarity: dict[str, torch.Tensor]  # of each set (n,), largest test similarity with the zoo, or NaN
    answer: Audit
    places: dict[str, torch.Tensor]  # r and test score (k, 2), by set or baseline; empty if r is not assessable
    similarity: torch.Tensor  # (sets, sets), mean similarity between any two sets on test images
    reverse_process: torch.Tensor  # (steps, seeds), test score along the sampler's steps, NaN where not finite
    chance: float  # test score of a network that knows nothing
    costs: dict[str, float]  # seconds
    data: dict[str, str]  # identity of the images, and the task


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
    drop_broken: bool = False,
) -> Evaluation:
    """Audits a generator beside its zoo, held-out checkpoints and baselines, on validation and test images.

    Every sample counts; none is selected. No setting may be chosen by the figures on test images.

    Args:
        checkpoints: The generator's zoo (`train`) and held-out checkpoints (`test`).
        images: The images the zoo was collected on, split in the same way; or other examples, such as `TensorData`.
        num_models, num_baseline_models: Samples of the generator, and of each baseline at each setting.
        num_inference_steps: Steps of the sampler; by default the shipped ones.
        temperature: Factor on the generator's latents.
        drop_broken: Leave out samples that are not finite, and count them as broken.

    Raises:
        ConditionError: If the generator takes conditions; see `audit_conditional`.
        CheckpointsError: If two splits of the checkpoints have a condition in common.
        LayoutError: If the checkpoints are of another layout than the pipeline's.
        NonFiniteParametersError: If a sample is not finite, without `drop_broken`.
    """
    # 1. Draw the samples.
    _require_unconditional(pipe)
    require_held_out(checkpoints.splits, checkpoints.conditions)
    zoo = checkpoints.zoo
    pipe.processor.check(zoo.parameters)
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    (latents,) = pipe(num_models, num_inference_steps, generator, output_type="latent", return_dict=False)
    samples = pipe.autoencoder.decode(latents.float() * temperature).sample.cpu()
    sampling_seconds = time.perf_counter() - started
    broken = int((~samples.isfinite()).any(1).sum())
    if broken and not drop_broken:
        raise NonFiniteParametersError(
            f"{broken} of the {num_models} samples are NaN or infinite; "
            "--drop_broken (drop_broken=True) counts them as broken and audits the others."
        )
    # 2. Audit them; held-out checkpoints of other runs are only measured.
    started = time.perf_counter()
    own, other = own_heldout(checkpoints)
    auditor = Auditor(
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
        seed=seed,
        progress=True,
    )
    answer = auditor.audit(samples, {"heldout_branch": other.parameters} if len(other) else None, drop_broken)
    # 3. Of all that the audit evaluated, the sets that a report shows, with their figures.
    networks = _shown(answer, auditor.reference)
    sets, nearest = _figures(networks, zoo)
    task = networks["zoo"].task
    if task is classification:  # ensembles average probabilities
        for key in ENSEMBLES & networks.keys():
            sets[key]["ensembles"] = _ensembles(networks[key].parameters, auditor.own_statistics)
        if "heldout" in networks:
            ours, real = sets["generated"]["ensembles"], sets["heldout"]["ensembles"]
            sets["generated"]["deep_ensemble_equivalent"] = deep_ensemble_equivalent(ours, real)
    return Evaluation(
        sets=sets,
        networks=networks,
        max_similarity=nearest,
        answer=answer,
        places=_places(auditor.reference, networks, answer),
        similarity=_similarity([rows.wrong["test"] for rows in networks.values()]),
        reverse_process=_reverse_process(pipe, auditor.own_statistics, num_inference_steps, seed),
        chance=auditor.chance,
        costs={"sampling_seconds": sampling_seconds, "evaluation_seconds": time.perf_counter() - started}
        | auditor.own_statistics.costs,  # a part of the evaluation
        data={"test_images_sha256": images.test.fingerprint(), "task": task.name, "score_name": task.score_name},
    )


def own_heldout(checkpoints: Checkpoints) -> tuple[CheckpointSplit, CheckpointSplit]:
    """Returns the held-out checkpoints of the zoo's own runs, and the others; if none is, all count as such."""
    heldout, runs = checkpoints.splits["test"], set(checkpoints.zoo.run)
    is_own = [run in runs for run in heldout.run]
    own = heldout.take(is_own) if any(is_own) else heldout
    return own, heldout.take([any(is_own) and not chosen for chosen in is_own])


def _require_unconditional(pipe: PDiffPipeline) -> None:
    if pipe.conditions is not None:
        raise ConditionError(
            "This generator takes conditions, and is evaluated on held-out ones: by pdiff_hf.audit_conditional, or "
            "by training/evaluate_pipeline.py."
        )


def _shown(answer: Audit, reference: Reference) -> dict[str, EvaluatedSet]:
    """Returns the sets of a report by key, in the order of their table, all aligned to the zoo's mean."""
    baselines = answer.networks["baselines"]
    available = {key: baselines[row.baseline] for key, row in SETS.items() if row.baseline in baselines}
    available |= answer.networks["real"] | answer.networks["further"]
    available["generated"] = answer.networks["samples"]["samples"]
    shown = {key: available[key] for key in SETS if key in available}
    return {key: replace(rows, parameters=reference.align(rows.parameters)) for key, rows in shown.items()}


def _figures(
    networks: dict[str, EvaluatedSet], zoo: CheckpointSplit
) -> tuple[dict[str, dict[str, Any]], dict[str, torch.Tensor]]:
    """Returns the figures of each set, as in `metrics.json`, and its largest test similarities with the zoo `(n,)`."""
    near = neighbors_in_time(*place_in_time(zoo.run, zoo.step, len(zoo)), NEIGHBOR_STEPS)
    members = networks["zoo"]
    reference = networks["heldout"].mean_disagreement("test") if "heldout" in networks else None
    sets: dict[str, dict[str, Any]] = {}
    nearest = {}
    for key, rows in networks.items():
        sets[key] = {"title": SETS[key].title}
        for split, wrong in rows.wrong.items():
            scores = 1 - wrong.double().mean(1) if rows.task is classification else rows.scores[split]
            nearest[key] = max_similarity(wrong, members.wrong[split], near if key == "zoo" else None)
            sets[key][split] = {
                "n": len(rows),
                "accuracy": score_statistics(scores),  # the score of any task
                "iou": mean_pairwise_iou(wrong),
                "max_similarity": None if nearest[key].isnan().all() else nearest[key].nanmean().item(),
                "kappa_to_zoo": chance_corrected_iou(wrong, members.wrong[split]).mean().item(),
                "disagreement": rows.mean_disagreement(split),
            }
        f = (sets[key]["test"]["disagreement"] or 0.0) / reference if reference else None
        sets[key]["dispersion"] = {"R": dispersion(rows.parameters, members.parameters), "F": f}
    return sets, nearest  # of the last split, test


def _places(reference: Reference, networks: dict[str, EvaluatedSet], answer: Audit) -> dict[str, torch.Tensor]:
    """r and test score of networks `(k, 2)`: real ones, samples, and `PLACED` of each baseline at each setting.

    Of the zoo it is the median r of members that are left out in turn, and the mean score.
    """
    if isinstance(answer.evidence.novel, NotAssessable):
        return {}
    # 1. Which networks: of baselines those that the report shows, at all settings.
    families = {family_of(row.baseline) for row in SETS.values() if row.baseline}
    baselines = answer.networks["baselines"]
    swept = {name: rows for name, rows in baselines.items() if family_of(name) in families}
    placed = {name: rows.take(slice(PLACED)) for name, rows in swept.items()}
    placed |= {key: rows for key, rows in networks.items() if key in ("heldout_branch", "generated")}
    # 2. Their distances to the zoo; held-out checkpoints keep apart from their own runs, zoo members from themselves.
    known = {name: Networks(rows, reference.align(rows.parameters)) for name, rows in placed.items()}
    if reference.heldout is not None:
        known["heldout"] = reference.heldout
    own = reference.leave_one_out("weights")[1]  # none if there are two runs: without one, the other has no neighbor
    middle = [own.median().item() if len(own) else 1.0, networks["zoo"].scores["test"].mean().item()]
    return {"zoo": torch.tensor([middle], dtype=torch.float64)} | {
        name: torch.stack([reference.ratios(rows, "weights").double(), rows.evaluated.scores["test"].double()], 1)
        for name, rows in known.items()
    }


def _ensembles(parameters: torch.Tensor, own_statistics: OwnStatistics) -> dict[str, dict[str, float]]:
    """Prediction ensembles of members from all over the set, calibrated on validation images."""
    members = parameters[torch.linspace(0, len(parameters) - 1, min(len(parameters), max(SIZES))).long()]
    model, processor, images = own_statistics.model, own_statistics.processor, own_statistics.images
    statistics = own_statistics(members)
    validation, test = (
        network_logits(model, processor, members, images.inputs(part), statistics=statistics).cpu()
        for part in (images.validation, images.test)
    )
    return ensemble_figures(validation, images.validation.labels, test, images.test.labels)


def _similarity(wrong: list[torch.Tensor]) -> torch.Tensor:
    """Mean similarity between any two sets, within a set over distinct networks, `(sets, sets)` in [0, 1]."""
    matrix = torch.tensor([[iou(ours, theirs).mean() for theirs in wrong] for ours in wrong])
    for i, ours in enumerate(wrong):
        within = mean_pairwise_iou(ours)
        matrix[i, i] = 1.0 if within is None else within
    return matrix


def _reverse_process(
    pipe: PDiffPipeline, own_statistics: OwnStatistics, num_inference_steps: int | None, seed: int
) -> torch.Tensor:
    """Test score of what the latents decode to after each of up to 20 steps of the sampler, `(steps, seeds)`."""
    traced: list[torch.Tensor] = []

    def keep(pipe: PDiffPipeline, step: int, timestep: object, kwargs: dict[str, torch.Tensor]) -> dict:
        traced.append(pipe.autoencoder.decode(kwargs["latents"].float()).sample.cpu())
        return kwargs

    generators = [torch.Generator().manual_seed(seed + i) for i in range(TRACED_SEEDS)]
    pipe(TRACED_SEEDS, num_inference_steps, generators, output_type="latent", callback_on_step_end=keep)
    shown = traced[:: -max(1, len(traced) // TRACED_STEPS)][::-1]  # the last step is among them
    images = own_statistics.images
    labels = images.test.labels[:TRACED_IMAGES]
    inputs = take_inputs(images.inputs(images.test), slice(TRACED_IMAGES))
    vectors = torch.cat(shown)
    finite = vectors.isfinite().all(1)
    statistics = own_statistics(vectors[finite])
    predictions, _ = network_predictions(
        pipe.target_model, pipe.processor, vectors[finite], inputs, labels, statistics=statistics
    )
    scores = torch.full((len(vectors),), torch.nan, dtype=torch.float64)
    scores[finite] = task_of(pipe.target_model.config).score(predictions, labels).double()
    return scores.view(len(shown), TRACED_SEEDS)
