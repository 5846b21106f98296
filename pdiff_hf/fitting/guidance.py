"""How far samples are guided: chosen on validation checkpoints and images, never on test ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from ..data.inputs import LabeledData
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..targets.inference import network_predictions
from ..targets.symmetries import Symmetries
from ..targets.task import task_of
from ..zoo.tasks import Tasks

SCALES = (0.0, 0.5, 1.0)  # of autoguidance that are tried
# With conditions: those of classifier-free guidance and of autoguidance.
CONDITIONAL_SCALES = ((1.0, 0.0), (1.0, 0.5), (1.0, 1.0), (1.5, 0.0), (2.0, 0.0), (1.5, 0.5))
NUM_DRAWN = 100  # networks drawn with each
NUM_CONDITIONS, DRAWN_EACH = 24, 8  # with conditions: validation conditions at most, networks drawn for each
LARGEST_Z = 2.0  # of the distance to the zoo: as far as validation checkpoints, up to chance
REFERENCE_ROWS = 500  # of the zoo, whose aligned mean all vectors are aligned to
NEAREST = 10  # zoo members, by the distance after this alignment, to which distances are exact

Tried = dict[str, float]


def choose_autoguidance(
    pipe: PDiffPipeline,
    symmetries: Symmetries,
    networks: dict[str, torch.Tensor],
    images: LabeledData,
    seed: int,
) -> tuple[float, list[Tried]]:
    """Returns the strength of autoguidance to be shipped, and what was measured of all that were tried.

    Of those at which samples are as far from the zoo as validation checkpoints are, it is the one with the best score
    on validation images; if there is none, the one that comes closest to it.

    Args:
        pipe: A pipeline with a guide.
        symmetries: Of the network.
        networks: Canonical vectors of the splits `train` and `validation`, `(n, D)`.
        images: Whose validation split is used.
        seed: Decides the samples.
    """
    task, inputs = task_of(pipe.target_model.config), images.inputs(images.validation)
    labels, tried, distance = images.validation.labels, [], _distance_to_zoo(symmetries, networks)
    for scale in SCALES:
        generator = torch.Generator().manual_seed(seed)
        parameters = pipe(NUM_DRAWN, generator=generator, autoguidance_scale=scale, output_type="pt")[0]
        predicted, _ = network_predictions(pipe.target_model, pipe.processor, parameters, inputs, labels)
        score = task.score(predicted, labels).mean().item()
        tried.append({"scale": scale, "score": score, "z": distance(parameters)})
    return _best(tried)["scale"], tried


def choose_scales(
    pipe: PDiffPipeline,
    symmetries: Symmetries | None,
    networks: dict[str, torch.Tensor],
    images: LabeledData,
    seed: int,
    tasks: Tasks,
    conditions: torch.Tensor,
) -> tuple[Tried, list[Tried]]:
    """Returns both scales of a conditional pipeline, and what was measured of all that were tried.

    They are chosen as `choose_autoguidance` does, by the mean score of networks that are drawn for validation
    conditions, on the validation images of their tasks; distances are to the zoo as a whole. Without a guide, or
    symmetries to measure distances by, what depends on them is left out.

    Args:
        pipe: A conditional pipeline.
        symmetries: Of the network, if they are known.
        networks: Canonical vectors of the splits `train` and `validation`, `(n, D)`.
        images: Whose validation split is used.
        seed: Decides the samples.
        tasks: Make the images and labels of a task.
        conditions: Those of the validation split, `(m, c)`.
    """
    task, inputs = task_of(pipe.target_model.config), cast(torch.Tensor, images.inputs(images.validation))
    conditions = conditions.unique(dim=0)
    conditions = conditions[torch.linspace(0, len(conditions) - 1, min(len(conditions), NUM_CONDITIONS)).long()]
    distance, tried = None if symmetries is None else _distance_to_zoo(symmetries, networks), []
    for guidance_scale, autoguidance_scale in CONDITIONAL_SCALES:
        if autoguidance_scale and pipe.guide is None:
            continue
        scales = {"guidance_scale": guidance_scale, "autoguidance_scale": autoguidance_scale}
        asked: dict[str, Any] = {**scales, "condition": conditions.repeat_interleave(DRAWN_EACH, 0)}
        generator = torch.Generator().manual_seed(seed)
        parameters = pipe(len(asked["condition"]), generator=generator, output_type="pt", **asked)[0]
        scores = []
        for condition, drawn in zip(conditions, parameters.split(DRAWN_EACH), strict=True):
            own, labels = tasks.examples(inputs, images.validation.labels, condition)
            predicted, _ = network_predictions(pipe.target_model, pipe.processor, drawn, own, labels)
            scores.append(task.score(predicted, labels).mean().item())
        measured = {} if distance is None else {"z": distance(parameters)}
        tried.append({**scales, "score": sum(scores) / len(scores), **measured})
    best = _best(tried)
    return {name: best[name] for name in ("guidance_scale", "autoguidance_scale")}, tried


def _best(tried: Sequence[Tried]) -> Tried:
    """Returns what has the best score among what is as far from the zoo as real networks, or comes closest to it."""
    faithful = [found for found in tried if abs(found.get("z", 0.0)) <= LARGEST_Z]
    return max(faithful, key=lambda found: found["score"]) if faithful else min(tried, key=lambda f: abs(f["z"]))


def rank_statistic(ours: torch.Tensor, others: torch.Tensor) -> float:
    """Returns Z_U, the standardized Mann-Whitney statistic of `(n,)` against `(m,)`: positive if ours are larger.

    Of distances to the zoo: about 0 for as far as real checkpoints are (arXiv 2004.05675).
    """
    n, m = len(ours), len(others)
    larger = (ours[:, None] > others).double() + 0.5 * (ours[:, None] == others).double()  # (n, m)
    return ((larger.mean() - 0.5) * (12 * n * m / (n + m + 1)) ** 0.5).item()


def _distance_to_zoo(symmetries: Symmetries, networks: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], float]:
    """Returns a function from vectors `(n, D)` to Z_U of their distances to the zoo against validation networks'."""
    _, mean = symmetries.align_to_mean(networks["train"][:REFERENCE_ROWS], rounds=2)
    zoo = symmetries.align(networks["train"], mean)
    real = _nearest(symmetries, networks["validation"], zoo, mean)
    return lambda parameters: rank_statistic(
        _nearest(symmetries, symmetries.canonicalize(parameters), zoo, mean), real
    )


def _nearest(symmetries: Symmetries, vectors: torch.Tensor, zoo: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Returns the distances `(n,)` of canonical vectors to the nearest member of an aligned zoo, modulo symmetries."""
    aligned = symmetries.align(vectors, mean)
    nearest = torch.cdist(aligned, zoo).topk(min(NEAREST, len(zoo)), largest=False).indices  # (n, NEAREST)
    return symmetries.distances(aligned, zoo, nearest).gather(1, nearest).min(1).values
