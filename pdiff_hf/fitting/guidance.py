"""How far samples are guided away from the guide: chosen on validation checkpoints and images, never on test ones."""

from __future__ import annotations

import torch

from ..data.inputs import LabeledData
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..targets.inference import network_predictions
from ..targets.statistics import OwnStatistics
from ..targets.symmetries import Symmetries
from ..targets.task import task_of

SCALES = (0.0, 0.25, 0.5, 1.0)  # that are tried
NUM_DRAWN = 100  # networks drawn with each
LARGEST_Z = 2.0  # of the distance to the zoo: as far as validation checkpoints, up to chance
REFERENCE_ROWS = 500  # of the zoo, whose aligned mean all vectors are aligned to
NEAREST = 10  # zoo members, by the distance after this alignment, to which distances are exact


def choose_autoguidance(
    pipe: PDiffPipeline,
    symmetries: Symmetries,
    networks: dict[str, torch.Tensor],
    images: LabeledData,
    seed: int,
) -> tuple[float, list[dict[str, float]]]:
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
    _, mean = symmetries.align_to_mean(networks["train"][:REFERENCE_ROWS], rounds=2)
    zoo = symmetries.align(networks["train"], mean)
    real = _nearest(symmetries, networks["validation"], zoo, mean)
    task, inputs = task_of(pipe.target_model.config), images.inputs(images.validation)
    labels, tried = images.validation.labels, []
    own_statistics = OwnStatistics(pipe.target_model, pipe.processor, images)
    for scale in SCALES:
        generator = torch.Generator().manual_seed(seed)
        parameters = pipe(NUM_DRAWN, generator=generator, autoguidance_scale=scale, output_type="pt")[0]
        predicted, _ = network_predictions(
            pipe.target_model, pipe.processor, parameters, inputs, labels, statistics=own_statistics(parameters)
        )
        distances = _nearest(symmetries, symmetries.canonicalize(parameters), zoo, mean)
        score = task.score(predicted, labels).mean().item()
        tried.append({"scale": scale, "score": score, "z": rank_statistic(distances, real)})
    faithful = [found for found in tried if abs(found["z"]) <= LARGEST_Z]
    chosen = max(faithful, key=lambda found: found["score"]) if faithful else min(tried, key=lambda f: abs(f["z"]))
    return chosen["scale"], tried


def rank_statistic(ours: torch.Tensor, others: torch.Tensor) -> float:
    """Returns Z_U, the standardized Mann-Whitney statistic of `(n,)` against `(m,)`: positive if ours are larger.

    Of distances to the zoo: about 0 for as far as real checkpoints are (arXiv 2004.05675).
    """
    n, m = len(ours), len(others)
    larger = (ours[:, None] > others).double() + 0.5 * (ours[:, None] == others).double()  # (n, m)
    return ((larger.mean() - 0.5) * (12 * n * m / (n + m + 1)) ** 0.5).item()


def _nearest(symmetries: Symmetries, vectors: torch.Tensor, zoo: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Returns the distances `(n,)` of canonical vectors to the nearest member of an aligned zoo, modulo symmetries."""
    aligned = symmetries.align(vectors, mean)
    nearest = torch.cdist(aligned, zoo).topk(min(NEAREST, len(zoo)), largest=False).indices  # (n, NEAREST)
    return symmetries.distances(aligned, zoo, nearest).gather(1, nearest).min(1).values
