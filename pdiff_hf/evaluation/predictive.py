"""Predictive uncertainty of drawn networks beside that of real ones: what `--uncertainty` measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from ..data.images import ImageData
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..targets.calibration import CalibrationSums, entropy
from ..targets.statistics import OwnStatistics
from ..targets.task import classification, task_of
from ..zoo.checkpoints import Checkpoints
from .evaluator import Evaluation, own_heldout
from .intervals import bootstrap, weighted_mean
from .predictors import Predictions, Predictors, choose_members, choose_networks, fit_laplace, real_ensembles
from .sets import PREDICTORS
from .shifts import CORRUPTIONS, SEVERITIES, corrupt, make_outliers
from .uncertainty import deep_ensemble_equivalent, detection_figures, fit_temperature

# Of which predictor the NLL is compared with whose: at equal members, and at the generator's training cost.
COMPARED = {
    "average": "generated",
    "heldout": "generated",
    "gaussian_codes": "generated",
    "zoo_large": "generated_large",
}

Temperatures = Mapping[str, list[float]]  # of each ensemble, by predictor


@torch.no_grad()
def compare_uncertainty(
    evaluation: Evaluation,
    pipe: PDiffPipeline,
    checkpoints: Checkpoints,
    images: ImageData,
    num_members: int = 10,
    outliers: Mapping[str, torch.Tensor] | None = None,
    costs: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares the predictive uncertainty of drawn networks with that of real ones and of other approximations.

    Each ensemble has one temperature, chosen by the NLL of validation images; figures are those of test images, their
    corruptions and out-of-distribution images. Where there are networks enough, they are means over several disjoint
    ensembles. The networks are those that `evaluate` has drawn.

    Args:
        evaluation: Of the same pipeline, checkpoints and images.
        num_members: Networks of an ensemble; fewer if a set is smaller.
        outliers: Out-of-distribution images `(n, channels, height, width)` uint8 by name; by default those of
            `make_outliers`.
        costs: Seconds that zoo and generator took, as in `metrics.json`.
        seed: Random seed for choosing networks of the sets.

    Returns:
        The key `uncertainty` of `metrics.json`; see docs/uncertainty.md.

    Raises:
        ValueError: If the networks are not classifiers.
    """
    require_classifier(pipe)
    started = time.perf_counter()
    # 1. Which networks make up each predictor.
    own_statistics = OwnStatistics(pipe.target_model, pipe.processor, images)
    sets = choose_networks(evaluation, checkpoints, seed)
    size = min([num_members, *(len(vectors) for name, vectors in sets.items() if name != "average")])
    members = choose_members(sets, size)
    laplace = fit_laplace(sets["heldout"], own_statistics, images, seed) if "heldout" in sets else []
    # 2. How they do on test images and on others.
    predict = Predictors(members, own_statistics, laplace)
    temperatures = _temperatures(predict, images)
    test = predict(images.inputs(images.test))
    measured = {name: _figures(own, temperatures[name], images.test.labels) for name, own in test.items()}
    _add_outliers(measured, predict, test, temperatures, images, outliers)
    _add_corruptions(measured, predict, temperatures, images)
    # 3. How that compares with networks that were trained, and at what cost.
    drawing = evaluation.costs["sampling_seconds"] / len(evaluation.networks["generated"])
    seconds = training_seconds(checkpoints, costs or {}, drawing)
    for name, figures in measured.items():
        figures["networks"] = len(members[name][0]) if name in members else 1
        figures["training_seconds"] = seconds(name, figures["networks"])
    if laplace:
        measured["laplace"]["prior_precisions"] = [posterior.prior_precision for posterior in laplace]
    losses = {name: _losses(own, temperatures[name], images.test.labels) for name, own in test.items()}
    differences = {name: losses[drawn] - losses[name] for name, drawn in COMPARED.items() if name in losses}
    return {
        "members": size,
        "predictors": {
            name: {"title": PREDICTORS[name].title} | measured[name] for name in PREDICTORS if name in test
        },
        "nll_of_drawn_minus": {name: _mean_with_interval(values) for name, values in differences.items()},
        "deep_ensemble_equivalent": _equivalent(losses["generated"], sets.get("heldout"), own_statistics, images),
        "heldout_runs": len(set(own_heldout(checkpoints)[0].run)),
        "seconds": time.perf_counter() - started,
    }


def require_classifier(pipe: PDiffPipeline) -> None:
    """Raises a ValueError unless the pipeline's networks are classifiers."""
    task = task_of(pipe.target_model.config)
    if task is not classification:
        raise ValueError(
            f"Predictive uncertainty is compared for classifiers, but these networks solve a {task.name}; leave out "
            "--uncertainty."
        )


def _temperatures(predict: Predictors, images: ImageData) -> dict[str, list[float]]:
    return {
        name: [
            fit_temperature(log_probabilities, images.validation.labels) for log_probabilities in own.log_probabilities
        ]
        for name, own in predict(images.inputs(images.validation)).items()
    }


def _calibration(log_probabilities: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns accuracy, NLL, Brier score and ECE of each ensemble `(ensembles,)`."""
    sums = CalibrationSums(len(log_probabilities))
    sums.update(log_probabilities, labels)
    return sums.figures()


def _figures(predictions: Predictions, temperatures: list[float], labels: torch.Tensor) -> dict[str, Any]:
    """Returns figures on test images, before temperature scaling (`unscaled`) and after."""
    scaled = _calibration(predictions.scaled(temperatures), labels)
    unscaled = _calibration(predictions.log_probabilities, labels)
    return {
        "ensembles": len(temperatures),
        "temperature": sum(temperatures) / len(temperatures),
        "test": {name: values.mean().item() for name, values in scaled.items()},
        "std": {name: values.std().item() if len(values) > 1 else None for name, values in scaled.items()},
        "unscaled": {name: values.mean().item() for name, values in unscaled.items()},
        "mutual_information": predictions.mutual_information.mean().item(),
        "ood": {},
        "corrupted": {},
    }


def _add_outliers(
    measured: dict[str, dict[str, Any]],
    predict: Predictors,
    test: Mapping[str, Predictions],
    temperatures: Temperatures,
    images: ImageData,
    outliers: Mapping[str, torch.Tensor] | None,
) -> None:
    """Adds how well entropy and mutual information tell out-of-distribution images from test images."""
    for kind, pixels in (make_outliers(images.test.pixels) if outliers is None else outliers).items():
        for name, outside in predict(images.preprocessing(pixels)).items():
            inside = test[name]
            entropies = [entropy(own.scaled(temperatures[name])) for own in (inside, outside)]
            found = {"entropy": _detection(*entropies)}
            if measured[name]["mutual_information"] > 0:  # of several networks
                found["mutual_information"] = _detection(inside.mutual_information, outside.mutual_information)
            measured[name]["ood"][kind] = found


def _detection(inside: torch.Tensor, outside: torch.Tensor) -> dict[str, float]:
    """Returns `detection_figures`, averaged over ensembles; scores are `(ensembles, images)`."""
    found = [detection_figures(*scores) for scores in zip(inside, outside, strict=True)]
    return {name: sum(figures[name] for figures in found) / len(found) for name in found[0]}


def _add_corruptions(
    measured: dict[str, dict[str, Any]], predict: Predictors, temperatures: Temperatures, images: ImageData
) -> None:
    """Adds figures on corrupted test images, for each kind a list over severities; temperatures stay."""
    for kind in CORRUPTIONS:
        for severity in SEVERITIES:
            pixels = corrupt(images.test.pixels, kind, severity)
            for name, own in predict(images.preprocessing(pixels)).items():
                curves = measured[name]["corrupted"].setdefault(kind, {})
                for figure, values in _calibration(own.scaled(temperatures[name]), images.test.labels).items():
                    curves.setdefault(figure, []).append(values.mean().item())


def _losses(predictions: Predictions, temperatures: list[float], labels: torch.Tensor) -> torch.Tensor:
    """Returns the NLL of each image, the mean over ensembles, `(images,)`."""
    scaled = predictions.scaled(temperatures)
    return -scaled.gather(-1, labels.expand(len(scaled), -1)[..., None])[..., 0].mean(0)


def _mean_with_interval(values: torch.Tensor) -> dict[str, Any]:
    """Returns the mean of values of images `(images,)` with its 95 % interval, from resampling images."""
    return asdict(bootstrap(lambda weights: weighted_mean(values, weights), torch.arange(len(values))))


def _equivalent(
    losses: torch.Tensor, heldout: torch.Tensor | None, own_statistics: OwnStatistics, images: ImageData
) -> dict[str, float] | None:
    """Returns how many held-out networks make an ensemble of the same NLL as drawn ones, and the most tried."""
    if heldout is None:
        return None
    real = Predictors(real_ensembles(heldout), own_statistics)
    temperatures, labels = _temperatures(real, images), images.test.labels
    curve = {
        size: {"nll": _losses(own, temperatures[size], labels).mean().item()}
        for size, own in real(images.inputs(images.test)).items()
    }
    value = deep_ensemble_equivalent({"drawn": {"nll": losses.mean().item()}}, curve)["drawn"]
    return {"value": value, "largest": max(map(int, curve))}


def training_seconds(
    checkpoints: Checkpoints, costs: Mapping[str, float], drawing: float
) -> Callable[[str, int], float | None]:
    """Returns the function from a predictor and its number of networks to the seconds that it takes to have them.

    Of independent runs each network takes its share; networks of a trajectory take the whole of it. What is averaged
    or drawn takes the zoo; what is drawn from codes also the autoencoder; samples also the denoiser and `drawing`
    seconds each. None if the zoo does not state what it took.
    """
    runs = [set(split.run) for split in checkpoints.splits.values()]
    before = sum(costs.get(f"{name}_seconds", 0.0) for name in ("target", "preparation"))

    def training(networks: int) -> float:
        if "trajectory_seconds" in costs:
            return before + costs["trajectory_seconds"]
        return before + networks * costs["runs_seconds"] / len(set().union(*runs))

    def seconds(name: str, networks: int) -> float | None:
        if not {"runs_seconds", "trajectory_seconds"} & costs.keys():
            return None
        kind = name.partition("_")[0]
        if kind in ("zoo", "heldout", "laplace"):
            return training(networks)
        whole = training(len(set(checkpoints.zoo.run)))
        if kind in ("gaussian", "generated"):
            whole += costs.get("autoencoder_seconds", 0.0)
        if kind == "generated":
            whole += costs.get("denoiser_seconds", 0.0) + networks * drawing
        return whole

    return seconds
