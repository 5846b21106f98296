"""The figures of probabilities are those of torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from torchmetrics.functional import mean_squared_error
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error
from torchmetrics.functional.text import perplexity

from pdiff_hf.targets.calibration import (
    CalibrationSums,
    calibration_figures,
    ensemble_log_probabilities,
    entropy,
)

CLASSES = 4


@pytest.fixture
def logits() -> torch.Tensor:
    """Logits of 5 networks on 3,000 images."""
    return 2 * torch.randn(5, 3000, CLASSES, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(CLASSES, (3000,), generator=torch.Generator().manual_seed(1))


def test_an_ensemble_averages_probabilities(logits: torch.Tensor):
    torch.testing.assert_close(ensemble_log_probabilities(logits).exp().float(), logits.softmax(-1).mean(0))


def test_calibration_figures_are_those_of_torchmetrics(logits: torch.Tensor, labels: torch.Tensor):
    log_probabilities = ensemble_log_probabilities(logits)

    figures = calibration_figures(log_probabilities, labels)

    probabilities, one_hot = log_probabilities.exp(), functional.one_hot(labels, CLASSES).double()
    expected = {
        "accuracy": multiclass_accuracy(probabilities, labels, CLASSES, average="micro"),
        "nll": perplexity(log_probabilities[None], labels[None]).log(),
        "brier": CLASSES * mean_squared_error(probabilities, one_hot),  # which is a mean over classes, too
        "ece": multiclass_calibration_error(probabilities, labels, CLASSES, n_bins=15, norm="l1"),
    }
    assert figures == pytest.approx({name: value.item() for name, value in expected.items()}, abs=1e-6)


def test_sums_over_batches_are_the_figures_of_all_images_at_once(logits: torch.Tensor, labels: torch.Tensor):
    log_probabilities, sums = logits.double().log_softmax(-1), CalibrationSums(5)

    for start in range(0, 3000, 700):
        sums.update(log_probabilities[:, start : start + 700], labels[start : start + 700])

    for i in range(5):
        own = {name: values[i].item() for name, values in sums.figures().items()}
        assert own == pytest.approx(calibration_figures(log_probabilities[i], labels), abs=1e-12)


def test_entropy_is_log_of_the_classes_at_most_and_0_of_certainty():
    certain = torch.tensor([0.0, -math.inf, -math.inf])

    assert entropy(torch.full((3,), -math.log(3))).item() == pytest.approx(math.log(3))
    assert entropy(certain).item() == 0
