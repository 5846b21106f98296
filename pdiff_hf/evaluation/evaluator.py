"""One code path for everything that is judged: the zoo, held-out checkpoints, baselines and the generator."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..checkpoints import Checkpoints, CheckpointZoo
from ..images import ImageData, ImageSplit
from ..inference import network_predictions
from ..pipeline_pdiff import PDiffPipeline
from .baselines import average, averages, gaussian_codes, gaussian_diagonal, gaussian_full
from .metrics import (
    accuracy_statistics,
    dispersion,
    max_similarity,
    mean_pairwise_disagreement,
    mean_pairwise_iou,
)

# Zoo members of one run within so many steps are near-copies and do not count as each other's nearest.
NEIGHBOUR_STEPS = 20


@dataclass
class Evaluation:
    """What was measured.

    Args:
        sets: For each set its figures, as in `metrics.json`.
        parameters: For each set its vectors `(n, D)`.
        accuracy: For each set the test accuracies `(n,)`.
        max_similarity: For each set the largest test similarity of each network with the zoo `(n,)`.
        costs: Seconds.
        data: Identity of the images.
    """

    sets: dict[str, dict[str, Any]]
    parameters: dict[str, torch.Tensor]
    accuracy: dict[str, torch.Tensor]
    max_similarity: dict[str, torch.Tensor]
    costs: dict[str, float] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)


def evaluate(
    pipe: PDiffPipeline,
    checkpoints: Checkpoints,
    images: ImageData,
    num_models: int = 200,
    seed: int = 0,
    num_inference_steps: int | None = None,
    temperature: float = 1.0,
) -> Evaluation:
    """Measures a generator beside its zoo, held-out checkpoints and baselines, on validation and test images.

    Every sample counts; none is selected. Nothing here may be chosen by what it says of the test images.

    Args:
        pipe: The generator.
        checkpoints: Its zoo (`train`) and held-out checkpoints (`test`).
        images: The images the zoo was collected on, split in the same way.
        num_models: Samples of the generator and of each baseline.
        seed: Decides all of them.
        num_inference_steps: Steps of the sampler; by default the shipped ones.
        temperature: Factor on the generator's latents.

    Raises:
        LayoutError: If the checkpoints are of another layout than the pipeline's.
    """
    zoo = checkpoints.zoo
    pipe.processor.check(zoo.parameters)
    started = time.perf_counter()
    (generated,) = pipe(
        num_models,
        num_inference_steps=num_inference_steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
        temperature=temperature,
        return_dict=False,
    )
    sampling_seconds = time.perf_counter() - started

    parameters = {"zoo": zoo.parameters, **_heldout(checkpoints)}
    baselines: dict[str, Callable[..., torch.Tensor]] = {
        "average": average,
        "averages_16": partial(averages, k=16),
        "gaussian_diagonal": gaussian_diagonal,
        "gaussian_full": gaussian_full,
        "gaussian_codes": partial(gaussian_codes, autoencoder=pipe.autoencoder),
    }
    if len(zoo) <= 16:  # an average of all of them is the average
        del baselines["averages_16"]
    for i, (name, baseline) in enumerate(baselines.items()):
        parameters[name] = baseline(zoo.parameters, num_models, torch.Generator().manual_seed(seed * 1000 + i))
    parameters["generated"] = generated.cpu()

    started = time.perf_counter()
    sets: dict[str, dict[str, Any]] = {name: {} for name in parameters}
    accuracy, similarity = {}, {}
    for split_name, split in (("validation", images.validation), ("test", images.test)):
        predicted = _predict(pipe, parameters, images, split)
        zoo_wrong = predicted["zoo"] != split.labels
        for name in parameters:
            wrong = predicted[name] != split.labels
            nearest = max_similarity(wrong, zoo_wrong, _neighbours(zoo) if name == "zoo" else None)
            sets[name][split_name] = {
                "n": len(wrong),
                "accuracy": accuracy_statistics(wrong),
                "iou": mean_pairwise_iou(wrong),
                "max_similarity": nearest.mean().item(),
                "disagreement": mean_pairwise_disagreement(predicted[name]),
            }
            accuracy[name], similarity[name] = 1 - wrong.double().mean(1), nearest  # the test split is the last
    for name, vectors in parameters.items():
        sets[name]["dispersion"] = {
            "R": dispersion(vectors, zoo.parameters),
            "F": _functional_dispersion(sets, name),
        }
    return Evaluation(
        sets=sets,
        parameters=parameters,
        accuracy=accuracy,
        max_similarity=similarity,
        costs={"sampling_seconds": sampling_seconds, "evaluation_seconds": time.perf_counter() - started},
        data={"test_images_sha256": _fingerprint(images.test)},
    )


def _heldout(checkpoints: Checkpoints) -> dict[str, torch.Tensor]:
    """Held-out checkpoints: of the zoo's own runs, and of other runs if there are both."""
    test = checkpoints.splits["test"]
    runs = set(checkpoints.zoo.run)
    own = torch.tensor([run in runs for run in test.run], dtype=torch.bool)
    if not len(test):
        return {}
    if own.all() or not own.any():
        return {"heldout": test.parameters}
    return {"heldout": test.parameters[own], "heldout_branch": test.parameters[~own]}


def _predict(
    pipe: PDiffPipeline, parameters: dict[str, torch.Tensor], images: ImageData, split: ImageSplit
) -> dict[str, torch.Tensor]:
    """Predictions of every set, all networks together, so that the trunk is computed once."""
    predicted, _ = network_predictions(
        pipe.target_model,
        pipe.processor,
        torch.cat(list(parameters.values())),
        images.preprocessing(split.pixels),
        split.labels,
        progress=True,
    )
    counts = [len(vectors) for vectors in parameters.values()]
    return dict(zip(parameters, predicted.split(counts), strict=True))


def _neighbours(zoo: CheckpointZoo) -> torch.Tensor:
    """`(zoo, zoo)` bool: pairs of one run that are close in time, a checkpoint and itself among them."""
    runs = {run: i for i, run in enumerate(dict.fromkeys(zoo.run))}
    run = torch.tensor([runs[name] for name in zoo.run])
    step = torch.tensor(zoo.step)
    same_run = run[:, None] == run[None, :]
    return same_run & ((step[:, None] - step[None, :]).abs() <= NEIGHBOUR_STEPS)


def _functional_dispersion(sets: dict[str, dict[str, Any]], name: str) -> float | None:
    """F: disagreement within a set over that of held-out checkpoints, on test images."""
    reference = sets["heldout"]["test"]["disagreement"] if "heldout" in sets else None
    if not reference:
        return None
    return (sets[name]["test"]["disagreement"] or 0.0) / reference


def _fingerprint(split: ImageSplit) -> str:
    digest = hashlib.sha256(split.pixels.numpy().tobytes())
    digest.update(split.labels.numpy().tobytes())
    return digest.hexdigest()
