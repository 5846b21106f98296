"""Many networks on the same examples: their prediction ensemble, and figures of each and of the ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from transformers import PreTrainedConfig

from ..data.class_names import are_numbers, match_names
from ..data.inputs import BatchError, Inputs, LabeledData, TensorSplit, count_inputs, take_inputs
from ..data.preprocessing import Preprocessing
from ..targets.calibration import CalibrationSums, ensemble_log_probabilities, ensemble_prediction, entropy
from ..targets.task import Task, classification, task_of

Examples = LabeledData | TensorSplit | tuple[Inputs, torch.Tensor]
EVALUATION_BATCH_SIZE = 1000


@dataclass(frozen=True)
class EnsemblePrediction:
    """What n networks predict together of each image.

    Args:
        probabilities: Mean of the networks' probabilities, `(images, classes)` float32.
        entropy: Entropy of that mean in nats, `(images,)` float32: the whole uncertainty.
        mutual_information: That entropy minus the mean of the networks' own, `(images,)` float32, at least 0: the part
            of the uncertainty in which the networks differ (Depeweg et al. 2018, arXiv 1710.07283).
    """

    probabilities: torch.Tensor
    entropy: torch.Tensor
    mutual_information: torch.Tensor

    @classmethod
    def of(cls, logits: Iterable[torch.Tensor]) -> EnsemblePrediction:
        """Averages batches of logits, each `(n, batch, classes)`."""
        columns = []
        for batch in logits:
            mean, mutual_information = ensemble_prediction(batch)  # (batch, classes), (batch,)
            columns.append((mean.exp(), entropy(mean), mutual_information))
        return cls(*(torch.cat(column).float() for column in zip(*columns, strict=True)))


@dataclass(frozen=True)
class DrawnEvaluation:
    """Accuracy, NLL (nats), Brier score and ECE (15 bins) of n networks and of their prediction ensemble.

    Args:
        networks: `accuracy`, `nll`, `brier` and `ece` of each network, `(n,)` float64.
        ensemble: The same of the mean of their probabilities.
        images: How many they were measured on.
    """

    networks: dict[str, torch.Tensor]
    ensemble: dict[str, float]
    images: int

    @classmethod
    def of(cls, logits: Iterable[torch.Tensor], labels: torch.Tensor) -> DrawnEvaluation:
        """Evaluates batches of logits, each `(n, batch, classes)`, against labels `(images,)` int64."""
        sums: list[CalibrationSums] = []
        start = 0
        for batch in logits:
            own = labels[start : start + batch.shape[1]]
            start += batch.shape[1]
            sums = sums or [CalibrationSums(len(batch)), CalibrationSums(1)]
            sums[0].update(batch.double().log_softmax(-1), own)
            sums[1].update(ensemble_log_probabilities(batch)[None], own)
        ensemble = {name: values.item() for name, values in sums[1].figures().items()}
        return cls(sums[0].figures(), ensemble, len(labels))

    def __str__(self) -> str:
        """Returns a table; accuracy and ECE in per cent."""
        networks, count = self.networks, len(self.networks["accuracy"])
        rows = {f"{name} of {count} networks": of for name, of in (("mean", torch.mean), ("std", torch.std))}
        figures = {"one network": self.ensemble}
        if count > 1:
            figures = {row: {name: of(own).item() for name, own in networks.items()} for row, of in rows.items()}
            figures["their ensemble"] = self.ensemble
        title = f"on {self.images} examples"
        width = max(map(len, [title, *figures]))
        lines = [f"{title:{width}}  accuracy %     NLL   Brier   ECE %"]
        for row, own in figures.items():
            cells = f"{100 * own['accuracy']:10.2f}  {own['nll']:6.3f}  {own['brier']:6.3f}  {100 * own['ece']:6.2f}"
            lines.append(f"{row:{width}}  {cells}")
        return "\n".join(lines)


def rank_networks(logits: Iterable[torch.Tensor], labels: torch.Tensor, task: Task) -> list[int]:
    """Returns the numbers of networks by their score on labels `(images,)`, the best one first; ties by the loss."""
    predicted, losses, start = [], [], 0
    for batch in logits:  # (n, batch, classes)
        own = labels[start : start + batch.shape[1]].to(batch.device).expand(len(batch), -1)
        start += batch.shape[1]
        predicted.append(task.predict(batch).cpu())
        losses.append(task.loss(batch.float(), own, reduction="none").double().sum(1).cpu())
    scores, loss = task.score(torch.cat(predicted, dim=1), labels.cpu()), torch.stack(losses).sum(0)
    return sorted(range(len(scores)), key=lambda i: (-scores[i].item(), loss[i].item()))


def require_classes(config: PreTrainedConfig, verb: str) -> None:
    """Raises a ValueError if networks predict values, of which `verb` is not defined."""
    if task_of(config) is not classification:
        raise ValueError(
            f"{verb} is defined for classifiers, but these networks predict a value (regression); take the mean and "
            "the spread of logits(inputs) instead, or best_on."
        )


def labeled_examples(
    data: Examples, split: str, config: PreTrainedConfig, preprocessing: Mapping[str, Any]
) -> tuple[Inputs, torch.Tensor]:
    """Returns examples and their labels `(examples,)`, numbered as the networks number their classes.

    Args:
        data: Labeled data, of which the split is taken, one split, or a pair of inputs and labels.
        split: `"validation"` or `"test"`.
        config: That of the networks.
        preprocessing: Content of their `preprocessor_config.json`. Images of bytes stay as they are; `iter_batches`
            preprocesses them.

    Raises:
        BatchError: If there is nothing of that kind, labels do not fit the examples, or are none of the classes.
    """
    if isinstance(data, tuple) and len(data) == 2:
        inputs, labels = data
    elif isinstance(data, TensorSplit):
        inputs, labels = data.features, data.labels
    elif hasattr(data, "label_names") and hasattr(data, split):
        own = getattr(data, split)
        raw = getattr(own, "features", None)
        inputs = raw if preprocessing and is_bytes(raw) else data.inputs(own)
        labels = _renumber(own.labels, data.label_names, config)
    else:
        raise BatchError(
            f"Labeled examples are needed, but a {type(data).__name__} was given; pass what load_images returns, one "
            "of its splits, or a pair (inputs, labels)."
        )
    count = count_inputs(inputs)
    if not isinstance(labels, torch.Tensor) or labels.shape != (count,) or not count:
        shape = tuple(labels.shape) if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise BatchError(f"Labels are a tensor with one number per example, but are {shape} for {count} examples.")
    if task_of(config) is classification:
        least, most = labels.min().item(), labels.max().item()
        if labels.is_floating_point() or not 0 <= least <= most < config.num_labels:
            raise BatchError(
                f"Labels are whole numbers from 0 to {config.num_labels - 1}, one for each class of the networks, but "
                f"those given are {labels.dtype} from {least} to {most}."
            )
    return inputs, labels


def is_bytes(inputs: Any) -> TypeGuard[torch.Tensor]:
    """Tells whether inputs are images as data sets store them, `(n, channels, height, width)` uint8."""
    return isinstance(inputs, torch.Tensor) and inputs.dtype == torch.uint8 and inputs.ndim == 4


def iter_batches(inputs: Inputs, batch_size: int, preprocessing: Mapping[str, Any]) -> Iterator[Inputs]:
    """Yields batches of inputs; images of bytes become `pixel_values` with the networks' own preprocessing.

    Raises:
        BatchError: If images of bytes are of another size than the networks', or their preprocessing is not known.
    """
    prepare: Callable[[Any], torch.Tensor] | None = None
    if is_bytes(inputs):
        if not preprocessing:
            raise BatchError("Images of bytes were given to networks without a preprocessing; pass pixel_values.")
        known, size = Preprocessing.from_dict(dict(preprocessing)), tuple(inputs.shape[2:])
        expected = (known.image_size, known.image_size)
        if size != expected:
            raise BatchError(
                f"The images are {size}, but these networks take {expected}; load them with image_size={expected[0]}."
            )
        prepare = known
    for start in range(0, count_inputs(inputs), batch_size):
        batch = take_inputs(inputs, slice(start, start + batch_size))
        yield batch if prepare is None else prepare(batch)


def _renumber(labels: torch.Tensor, names: list[str], config: PreTrainedConfig) -> torch.Tensor:
    """Returns the labels of classes that the networks have in another order; `BatchError` for other classes."""
    own = [str(config.id2label[i]) for i in range(config.num_labels)]
    if task_of(config) is not classification or are_numbers(names) or are_numbers(own):
        return labels
    if (places := match_names(names, own)) is None:
        raise BatchError(
            f"The classes of the data are {names!s:.100}, but those of the networks {own!s:.100}; pass images of the "
            "same classes."
        )
    return torch.tensor(places)[labels]
