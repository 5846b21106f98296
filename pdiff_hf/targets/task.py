"""Tasks: what a network's outputs mean, what it is trained on, and how it is scored."""

from __future__ import annotations

from types import UnionType
from typing import Any, Protocol, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

OFF = 0.5  # standard deviations of the labels by which a regression is wrong


class Task(Protocol):
    """Everything that differs between kinds of targets; `classification` and `regression` are the two instances.

    Outputs are a network's `logits`, `(..., k)` float. Predictions are what one network says of each example: classes
    int64, or values float. Shapes: n and k networks, `batch` or `examples` rows.
    """

    name: str
    score_name: str

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        """Returns the loss of outputs `(batch, k)` or `(n, batch, k)` with labels `(batch,)` or `(n, batch)`."""

    def predict(self, outputs: torch.Tensor) -> torch.Tensor:
        """Returns the predictions `(...)` of outputs `(..., k)`."""

    def answers(self, outputs: torch.Tensor) -> torch.Tensor:
        """Returns what distances between functions are taken of, `(..., k)`: probabilities of classes, or values."""

    def divergence(self, outputs: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Returns how far `others` are from `outputs`, both `(n, examples, k)`, on average over examples `(n,)`.

        For classes the Kullback-Leibler divergence of their probabilities in nats, for values the squared difference.
        """

    def score(self, predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the score of each network `(n,)` float64, at most 1; `(n, examples)` predictions, `(examples,)`."""

    def error(self, scores: torch.Tensor) -> torch.Tensor:
        """Returns the size of errors that scores `(n,)` mean, which disagreement is proportional to."""

    def wrong(self, predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns which predictions `(n, examples)` are wrong, bool: what networks are compared by."""

    def disagreement(self, predictions: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Returns how much two networks differ in `(n, examples)` and `(k, examples)`, for each pair `(n, k)`."""

    def mean_disagreement(self, predictions: torch.Tensor) -> float | None:
        """Returns the mean disagreement over pairs of `(n, examples)`, or None for a single network."""

    def chance(self, num_outputs: int) -> float:
        """Returns the score of a network that knows nothing."""


class Classification:
    """Logits of classes: cross-entropy in nats, accuracy, and the share of examples on which two networks differ."""

    name, score_name = "classification", "accuracy"

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        if outputs.ndim == 2:
            return functional.cross_entropy(outputs, labels, reduction=reduction)
        # With the classes in front, as if of one image, a softmax over few of them is four times faster.
        one_image = outputs.flatten(0, 1).T[None]  # (1, classes, n * batch)
        loss = functional.cross_entropy(one_image, labels.flatten()[None], reduction=reduction)
        return loss.view(labels.shape) if reduction == "none" else loss

    def predict(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.argmax(-1)

    def answers(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.softmax(-1).nan_to_num(1 / outputs.shape[-1])  # of overflown logits

    def divergence(self, outputs: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        # Classes in front: softmax over a few numbers that lie side by side is several times slower on CPUs.
        logs, other_logs = (logits.movedim(-1, 0).contiguous().log_softmax(0) for logits in (outputs, others))
        return (logs.exp() * (logs - other_logs)).sum(0).mean(-1)

    def score(self, predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (predictions == labels).double().mean(1)

    def error(self, scores: torch.Tensor) -> torch.Tensor:
        return 1 - scores

    def wrong(self, predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return predictions != labels

    def disagreement(self, predictions: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        agreeing = torch.zeros(len(predictions), len(others))
        for label in predictions.unique():
            agreeing += (predictions == label).float() @ (others == label).float().T
        return 1 - agreeing / predictions.shape[1]

    def mean_disagreement(self, predictions: torch.Tensor) -> float | None:
        n = len(predictions)
        if n < 2:
            return None
        # Where k_c networks predict class c, sum_c k_c (k_c - 1) of the n (n - 1) ordered pairs agree.
        agreeing = torch.zeros(predictions.shape[1], dtype=torch.float64)
        for label in predictions.unique():
            count = (predictions == label).sum(0).double()  # (examples,)
            agreeing += count * (count - 1)
        return 1 - (agreeing.mean() / (n * (n - 1))).item()

    def chance(self, num_outputs: int) -> float:
        return 1 / num_outputs


class Regression:
    """One number per example: squared error, R², and the mean absolute difference in the unit of the labels."""

    name, score_name = "regression", "R²"

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        return functional.mse_loss(outputs[..., 0], labels.to(outputs.dtype), reduction=reduction)

    def predict(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs[..., 0]

    def answers(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs

    def divergence(self, outputs: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return (outputs - others).square().mean((1, 2))

    def score(self, predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns R² = 1 - squared error / variance of the labels."""
        error = ((predictions - labels).double() ** 2).mean(1)
        return 1 - error / labels.double().var(correction=0).clamp(min=1e-12)

    def error(self, scores: torch.Tensor) -> torch.Tensor:
        return (1 - scores).clamp(min=0).sqrt()

    def wrong(self, predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (predictions - labels).abs() > OFF * labels.float().std()

    def disagreement(self, predictions: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return torch.cdist(predictions.float(), others.float(), p=1) / predictions.shape[1]

    def mean_disagreement(self, predictions: torch.Tensor) -> float | None:
        n = len(predictions)
        return (self.disagreement(predictions, predictions).sum() / (n * (n - 1))).item() if n > 1 else None

    def chance(self, num_outputs: int) -> float:
        return 0.0  # of always predicting the mean


classification = Classification()
regression = Regression()


def logits_of(model: nn.Module, output: Any) -> torch.Tensor:
    """Returns the logits of a network's output; ValueError if it has none, as of a network without a head."""
    logits = getattr(output, "logits", None)
    if logits is None:
        raise _no_logits(model, type(output))
    return logits


def require_logits(model: nn.Module) -> None:
    """Raises a ValueError if the annotations of a network's `forward` name outputs, none of which has logits."""
    try:
        returned = get_type_hints(type(model).forward).get("return")
    except (NameError, TypeError):  # annotations that cannot be resolved say nothing
        return
    named = get_args(returned) if get_origin(returned) in (Union, UnionType) else (returned,)
    outputs = [cls for cls in named if isinstance(cls, type) and issubclass(cls, ModelOutput | torch.Tensor)]
    if outputs and not any("logits" in getattr(cls, "__dataclass_fields__", ()) for cls in outputs):
        raise _no_logits(model, outputs[0])


def _no_logits(model: nn.Module, output: type) -> ValueError:
    return ValueError(
        f"{type(model).__name__} returns a {output.__name__} without logits, but networks are measured by them; "
        "choose a network with a head, such as a …ForSequenceClassification."
    )


def task_of(config: PreTrainedConfig) -> Task:
    """Returns the task of a target by its configuration, as transformers does: `problem_type`, else `num_labels`."""
    problem_type = getattr(config, "problem_type", None)
    if problem_type == "regression" or (problem_type is None and getattr(config, "num_labels", None) == 1):
        return regression
    return classification
