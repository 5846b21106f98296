"""How far samples are guided away from the guide: chosen on validation checkpoints and images, never on test ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..data.inputs import Inputs, LabeledData, take_inputs
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..targets.inference import network_logits, network_predictions
from ..targets.symmetries import Symmetries
from ..targets.task import task_of

SCALES = (0.0, 0.25, 0.5, 1.0)  # that are tried
NUM_DRAWN = 100  # networks drawn with each
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

    Of those at which samples are as far from the zoo in weights as validation checkpoints are, the ones whose score on
    validation images is the best, up to one standard error, remain; of these it is the one at which samples come
    closest to being as far from the zoo in function, too.

    Args:
        pipe: A pipeline with a guide.
        symmetries: Of the network.
        networks: Canonical vectors of the splits `train` and `validation`, `(n, D)`.
        images: Whose validation split is used.
        seed: Decides the samples.
    """
    task, inputs = task_of(pipe.target_model.config), images.inputs(images.validation)
    labels, tried, compare = images.validation.labels, [], _Comparison(pipe, symmetries, networks, inputs)
    for scale in SCALES:
        generator = torch.Generator().manual_seed(seed)
        parameters = pipe(NUM_DRAWN, generator=generator, autoguidance_scale=scale, output_type="pt")[0]
        predicted, _ = network_predictions(pipe.target_model, pipe.processor, parameters, inputs, labels)
        scores = task.score(predicted, labels)
        measured = {"score": scores.mean().item(), "score_error": (scores.std() / len(scores) ** 0.5).item()}
        tried.append({"scale": scale, **measured, **compare(parameters)})
    return best_tried(tried)["scale"], tried


def best_tried(tried: Sequence[Tried]) -> Tried:
    """Returns what is chosen of settings with `score`, `score_error`, `z` and `z_function`; only `score` is needed."""
    faithful = [found for found in tried if abs(found.get("z", 0.0)) <= LARGEST_Z]
    faithful = faithful or [min(tried, key=lambda found: abs(found["z"]))]
    best = max(faithful, key=lambda found: found["score"])
    as_good = [found for found in faithful if found["score"] >= best["score"] - best.get("score_error", 0.0)]
    return min(as_good, key=lambda found: (abs(found.get("z_function", 0.0)), -found["score"]))


class _Comparison:
    """Z_U of distances to the zoo, in weights modulo symmetries and in function, against validation checkpoints."""

    def __init__(
        self, pipe: PDiffPipeline, symmetries: Symmetries, networks: dict[str, torch.Tensor], inputs: Inputs
    ) -> None:
        self.pipe, self.symmetries = pipe, symmetries
        self.inputs = take_inputs(inputs, slice(COMPARED_IMAGES))
        zoo, real = networks["train"], networks["validation"]
        _, self.mean = symmetries.align_to_mean(zoo[:REFERENCE_ROWS], rounds=2)
        self.zoo, self.functions = symmetries.align(zoo, self.mean), self._functions(zoo[:COMPARED_ROWS])
        self.real, self.real_functions = self._distances(real), self._function_distances(real)

    def __call__(self, parameters: torch.Tensor) -> Tried:
        """Returns both statistics of vectors `(n, D)`."""
        distances = self._distances(self.symmetries.canonicalize(parameters))
        functions = self._function_distances(parameters)
        return {
            "z": rank_statistic(distances, self.real),
            "z_function": rank_statistic(functions, self.real_functions),
        }

    def _distances(self, vectors: torch.Tensor) -> torch.Tensor:
        """Distances `(n,)` of canonical vectors to the nearest member of the zoo, modulo symmetries."""
        aligned = self.symmetries.align(vectors, self.mean)
        nearest = torch.cdist(aligned, self.zoo).topk(min(NEAREST, len(self.zoo)), largest=False).indices
        return self.symmetries.distances(aligned, self.zoo, nearest).gather(1, nearest).min(1).values

    def _function_distances(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.cdist(self._functions(vectors), self.functions).min(1).values

    def _functions(self, vectors: torch.Tensor) -> torch.Tensor:
        """What the networks answer, `(n, images * outputs)`."""
        logits = network_logits(self.pipe.target_model, self.pipe.processor, vectors, self.inputs)
        return task_of(self.pipe.target_model.config).answers(logits).flatten(1)


def rank_statistic(ours: torch.Tensor, others: torch.Tensor) -> float:
    """Returns Z_U, the standardized Mann-Whitney statistic of `(n,)` against `(m,)`: positive if ours are larger.

    Of distances to the zoo: about 0 for as far as real checkpoints are (arXiv 2004.05675).
    """
    n, m = len(ours), len(others)
    larger = (ours[:, None] > others).double() + 0.5 * (ours[:, None] == others).double()  # (n, m)
    return ((larger.mean() - 0.5) * (12 * n * m / (n + m + 1)) ** 0.5).item()
