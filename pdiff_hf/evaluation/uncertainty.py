"""Prediction ensembles: the mean of members' probabilities, calibrated on validation images."""

from __future__ import annotations

import itertools
import math

import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional

from ..targets.calibration import calibration_figures, ensemble_log_probabilities

SIZES = (1, 2, 4, 8, 16)


def fit_temperature(log_probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Returns the temperature in [.05, 20] with the least NLL of `(images, classes)` (Guo, arXiv 1706.04599)."""

    def loss(log_temperature: float) -> float:
        return functional.nll_loss((log_probabilities / math.exp(log_temperature)).log_softmax(-1), labels).item()

    return math.exp(minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded").x)


def ensemble_figures(
    validation: torch.Tensor, validation_labels: torch.Tensor, test: torch.Tensor, test_labels: torch.Tensor
) -> dict[str, dict[str, float]]:
    """Returns test figures of prediction ensembles of the first 1, 2, 4, 8 and 16 members, after temperature scaling.

    Logits are `(members, images, classes)`, labels `(images,)`; validation images choose the temperature.
    """
    figures = {}
    for size in (size for size in SIZES if size <= len(test)):
        temperature = fit_temperature(ensemble_log_probabilities(validation[:size]), validation_labels)
        scaled = (ensemble_log_probabilities(test[:size]) / temperature).log_softmax(-1)
        figures[str(size)] = {**calibration_figures(scaled, test_labels), "temperature": temperature}
    return figures


def deep_ensemble_equivalent(
    figures: dict[str, dict[str, float]], real: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Returns, for each size, how many real checkpoints make an ensemble of the same NLL (arXiv 2002.06470).

    Interpolated linearly between the sizes measured, and cut at the largest and at 1.
    """
    sizes = sorted(int(size) for size in real)
    equivalent = {}
    for size, figure in figures.items():
        value = float(sizes[-1])
        for low, high in itertools.pairwise(sizes):
            start, end = real[str(low)]["nll"], real[str(high)]["nll"]
            if figure["nll"] >= min(start, end):
                share = 0.0 if figure["nll"] >= start else (start - figure["nll"]) / (start - end)
                value = low + share * (high - low)
                break
        equivalent[size] = value
    return equivalent
