"""Predictive uncertainty: calibrated prediction ensembles, and how well a score detects unfamiliar images."""

from __future__ import annotations

import itertools
import math

import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score, roc_curve
from torch.nn import functional

from ..targets.calibration import calibration_figures, ensemble_log_probabilities

SIZES = (1, 2, 4, 8, 16)
KEPT = 0.95  # share of test images that pass where false positives are counted


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


def detection_figures(inside: torch.Tensor, outside: torch.Tensor) -> dict[str, float]:
    """Returns how well larger scores tell other images `(m,)` from test images `(n,)`: `auroc` and `fpr95` in [0, 1].

    AUROC: probability that another image has the larger score. FPR95: share of the other images that pass for test
    images, at the lowest threshold at which 95 % of the test images do (arXiv 1706.02690).
    """
    scores = -torch.cat([inside, outside]).cpu().numpy()
    is_inside = [1] * len(inside) + [0] * len(outside)
    false_positives, kept, _ = roc_curve(is_inside, scores, drop_intermediate=False)
    return {"auroc": float(roc_auc_score(is_inside, scores)), "fpr95": float(false_positives[kept >= KEPT][0])}
