"""How far samples are guided: chosen on validation checkpoints and images, never on test ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from ..data.inputs import LabeledData, take_inputs
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..targets.inference import network_logits, network_predictions
from ..targets.statistics import OwnStatistics
from ..targets.symmetries import Symmetries
from ..targets.task import task_of
from ..zoo.tasks import Tasks, statistics_for_task

SCALES = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)  # of autoguidance that are tried
# With conditions: those of classifier-free guidance and of autoguidance.
CONDITIONAL_SCALES = ((1.0, 0.0), (1.0, 0.25), (1.0, 0.5), (1.0, 0.75), (1.0, 1.0), (1.5, 0.0), (2.0, 0.0))
NUM_DRAWN = 100  # networks drawn with each
NUM_CONDITIONS, DRAWN_EACH = 24, 8  # with conditions: validation conditions at most, networks drawn for each
LARGEST_Z = 2.0  # of the distance to the zoo: as far as validation checkpoints, up to chance
REFERENCE_ROWS = 500  # of the zoo, whose aligned mean all vectors are aligned to
NEAREST = 10  # zoo members, by the distance after this alignment, to which distances are exact
COMPARED_ROWS, COMPARED_IMAGES = 2000, 500  # of the zoo and of the validation images, for distances of functions

Tried = dict[str, float]


def choose_autoguidance(
    pipe: PDiffPipeline,
    symmetries: Symmetries,
    networks: dict[str, torch.Tensor],
    images: LabeledData,
    seed: int,
) -> tuple[float, list[Tried]]:
    """Returns the strength of autoguidance to be shipped, and what was measured of all that were tried.

    Of those at which samples are as far from the zoo as validation checkpoints are, in weights and, if there are such,
    in function, the ones whose score on validation images is the best, up to one standard error, remain; of these it
    is the one whose samples come closest to that distance in function.

    Args:
        pipe: A pipeline with a guide.
        symmetries: Of the network.
        networks: Canonical vectors of the splits `train` and `validation`, `(n, D)`.
        images: Whose validation split is used.
        seed: Decides the samples.
    """
    task, inputs = task_of(pipe.target_model.config), images.inputs(images.validation)
    own_statistics = OwnStatistics(pipe.target_model, pipe.processor, images)
    labels, tried, compare = images.validation.labels, [], _Comparison(pipe, symmetries, networks, own_statistics)
    for scale in SCALES:
        generator = torch.Generator().manual_seed(seed)
        parameters = pipe(NUM_DRAWN, generator=generator, autoguidance_scale=scale, output_type="pt")[0]
        predicted, _ = network_predictions(
            pipe.target_model, pipe.processor, parameters, inputs, labels, statistics=own_statistics(parameters)
        )
        tried.append({"scale": scale, **_mean(task.score(predicted, labels)), **compare(parameters)})
    return best_tried(tried)["scale"], tried


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
    compare, tried = None if symmetries is None else _Comparison(pipe, symmetries, networks), []
    model, processor = pipe.target_model, pipe.processor
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
            statistics = statistics_for_task(model, processor, drawn, images, tasks, condition)
            predicted, _ = network_predictions(model, processor, drawn, own, labels, statistics=statistics)
            scores.append(task.score(predicted, labels).mean().item())
        measured = {} if compare is None else compare(parameters)
        tried.append({**scales, **_mean(torch.tensor(scores)), **measured})
    best = best_tried(tried)
    return {name: best[name] for name in ("guidance_scale", "autoguidance_scale")}, tried


def _mean(scores: torch.Tensor) -> Tried:
    """The mean of scores `(n,)` and its standard error."""
    return {"score": scores.mean().item(), "score_error": (scores.std() / len(scores) ** 0.5).item()}


def best_tried(tried: Sequence[Tried]) -> Tried:
    """Returns what is chosen of settings with `score`, `score_error`, `z` and `z_function`; only `score` is needed."""
    near = [found for found in tried if abs(found.get("z", 0.0)) <= LARGEST_Z]
    faithful = [found for found in near if abs(found.get("z_function", 0.0)) <= LARGEST_Z]
    faithful = faithful or near or [min(tried, key=lambda found: abs(found["z"]))]
    best = max(faithful, key=lambda found: found["score"])
    as_good = [found for found in faithful if found["score"] >= best["score"] - best.get("score_error", 0.0)]
    return min(as_good, key=lambda found: (abs(found.get("z_function", 0.0)), -found["score"]))


class _Comparison:
    """Z_U of distances to the zoo, in weights modulo symmetries and in function, against validation checkpoints."""

    def __init__(
        self,
        pipe: PDiffPipeline,
        symmetries: Symmetries,
        networks: dict[str, torch.Tensor],
        own_statistics: OwnStatistics | None = None,
    ) -> None:
        self.pipe, self.symmetries, self.own_statistics = pipe, symmetries, own_statistics
        zoo, real = networks["train"], networks["validation"]
        _, self.mean = symmetries.align_to_mean(zoo[:REFERENCE_ROWS], rounds=2)
        self.zoo = symmetries.align(zoo, self.mean)
        self.real = self._distances(real)
        if own_statistics is not None:
            images = own_statistics.images
            self.inputs = take_inputs(images.inputs(images.validation), slice(COMPARED_IMAGES))
            self.functions = self._functions(zoo[:COMPARED_ROWS])
            self.real_functions = self._function_distances(real)

    def __call__(self, parameters: torch.Tensor) -> Tried:
        """Returns the statistics of vectors `(n, D)`, that of functions if there are images to compare them on."""
        measured = {"z": rank_statistic(self._distances(self.symmetries.canonicalize(parameters)), self.real)}
        if self.own_statistics is not None:
            measured["z_function"] = rank_statistic(self._function_distances(parameters), self.real_functions)
        return measured

    def _distances(self, vectors: torch.Tensor) -> torch.Tensor:
        """Distances `(n,)` of canonical vectors to the nearest member of the zoo, modulo symmetries."""
        aligned = self.symmetries.align(vectors, self.mean)
        nearest = torch.cdist(aligned, self.zoo).topk(min(NEAREST, len(self.zoo)), largest=False).indices
        return self.symmetries.distances(aligned, self.zoo, nearest).gather(1, nearest).min(1).values

    def _function_distances(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.cdist(self._functions(vectors), self.functions).min(1).values

    def _functions(self, vectors: torch.Tensor) -> torch.Tensor:
        """What the networks answer, `(n, images * outputs)`."""
        assert self.own_statistics is not None
        model, processor = self.pipe.target_model, self.pipe.processor
        logits = network_logits(model, processor, vectors, self.inputs, statistics=self.own_statistics(vectors))
        return task_of(self.pipe.target_model.config).answers(logits).flatten(1)


def rank_statistic(ours: torch.Tensor, others: torch.Tensor) -> float:
    """Returns Z_U, the standardized Mann-Whitney statistic of `(n,)` against `(m,)`: positive if ours are larger.

    Of distances to the zoo: about 0 for as far as real checkpoints are (arXiv 2004.05675).
    """
    n, m = len(ours), len(others)
    larger = (ours[:, None] > others).double() + 0.5 * (ours[:, None] == others).double()  # (n, m)
    return ((larger.mean() - 0.5) * (12 * n * m / (n + m + 1)) ** 0.5).item()
