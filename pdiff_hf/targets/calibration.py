"""Class probabilities and how well they fit the labels: accuracy, NLL, Brier score, ECE; and prediction ensembles."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

BINS = 15  # equal bins of confidence


def ensemble_log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Turns logits `(members, images, classes)` into the log of the members' mean probability, `(images, classes)`."""
    return logits.double().log_softmax(-1).logsumexp(0) - math.log(len(logits))


def ensemble_prediction(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what members with logits `(members, images, classes)` predict together, float64.

    Returns:
        The log of their mean probability `(images, classes)`, and its entropy minus the mean of the members' own in
        nats, `(images,)`, at least 0: the mutual information, the part of the uncertainty in which they differ
        (Depeweg et al. 2018, arXiv 1710.07283).
    """
    members = logits.double().log_softmax(-1)
    mean = members.logsumexp(0) - math.log(len(members))
    return mean, (entropy(mean) - entropy(members).mean(0)).clamp(min=0)


def entropy(log_probabilities: torch.Tensor) -> torch.Tensor:
    """Returns the entropy in nats of log probabilities `(..., classes)`, `(...)`; a probability of 0 adds nothing."""
    return torch.special.entr(log_probabilities.exp()).sum(-1)


class CalibrationSums:
    """Sums over batches of images, from which the figures of k predictors are computed.

    Brier: mean squared distance to the one-hot label, in [0, 2]. ECE: mean distance between confidence and accuracy in
    `BINS` equal bins of confidence, weighted by their images, in [0, 1].
    """

    def __init__(self, count: int) -> None:
        self.images = 0
        self.sums = {name: torch.zeros(count, dtype=torch.float64) for name in ("accuracy", "nll", "brier")}
        self.gaps = torch.zeros(count, BINS, dtype=torch.float64)

    def update(self, log_probabilities: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds a batch: log probabilities `(k, images, classes)` and the labels `(images,)` int64."""
        log_probabilities, labels = log_probabilities.double().cpu(), labels.cpu()
        probabilities = log_probabilities.exp()
        confidence, predicted = probabilities.max(-1)  # (k, images)
        right = (predicted == labels).double()
        one_hot = functional.one_hot(labels, probabilities.shape[-1])
        chosen = labels.expand(len(probabilities), -1)[..., None]
        self.images += len(labels)
        self.sums["accuracy"] += right.sum(1)
        self.sums["nll"] -= log_probabilities.gather(-1, chosen).sum((1, 2))
        self.sums["brier"] += ((probabilities - one_hot) ** 2).sum((1, 2))
        bins = (confidence * BINS).long().clamp(max=BINS - 1)
        self.gaps.scatter_add_(1, bins, right - confidence)

    def figures(self) -> dict[str, torch.Tensor]:
        """Returns `accuracy`, `nll` (nats), `brier` and `ece` of each predictor, `(k,)` float64."""
        means = {name: values / self.images for name, values in self.sums.items()}
        return {**means, "ece": self.gaps.abs().sum(1) / self.images}


def calibration_figures(log_probabilities: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Returns the figures of `CalibrationSums` for one predictor, of `(images, classes)` and `(images,)` int64."""
    sums = CalibrationSums(1)
    sums.update(log_probabilities[None], labels)
    return {name: values.item() for name, values in sums.figures().items()}
