"""What networks are fed with: one tensor or a mapping of tensors, and labeled data in three splits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    import datasets

# One tensor is a network's first positional argument (`pixel_values`); a mapping, such as what a tokenizer returns, is
# passed by name (`input_ids`, `attention_mask`, …). The first axis of each tensor counts the examples.
Inputs = torch.Tensor | Mapping[str, torch.Tensor]


class BatchError(ValueError):
    """Inputs or labels are not tensors of one row per example, labels are no numbers, or a split is missing."""


def count_inputs(inputs: Inputs) -> int:
    """Returns the number of examples; `BatchError` unless all are tensors of one length."""
    tensors = dict(inputs) if isinstance(inputs, Mapping) else {"the tensor": inputs}
    shapes = {name: tuple(t.shape) if isinstance(t, torch.Tensor) else () for name, t in tensors.items()}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or lengths == {()}:
        shown = {name: shape or type(tensors[name]).__name__ for name, shape in shapes.items()}
        raise BatchError(
            "Inputs are one tensor or a mapping of tensors, each with one row per example, but the ones given are "
            f"{shown}; pad token sequences to one length (padding='max_length', return_tensors='pt')."
        )
    return lengths.pop()[0]


def take_inputs(inputs: Inputs, rows: slice | torch.Tensor) -> Inputs:
    """Returns some of the examples: a slice of them, or those at `(k,)` int64."""
    if isinstance(inputs, Mapping):
        return {name: tensor[rows] for name, tensor in inputs.items()}
    return inputs[rows]


def move_inputs(inputs: Inputs, like: torch.Tensor) -> Inputs:
    """Returns the inputs on the device of `like`, and those that are floating point in its dtype."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)

    if isinstance(inputs, Mapping):
        return {name: move(tensor) for name, tensor in inputs.items()}
    return move(inputs)


def call_with(inputs: Inputs) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Returns the positional and the named arguments with which a network is called."""
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})


def forward(model: nn.Module, inputs: Inputs) -> Any:
    """Returns the network's output."""
    args, kwargs = call_with(inputs)
    return model(*args, **kwargs)


def text_classes(rows: datasets.Dataset, column: str) -> list[str] | None:
    """Returns the distinct labels of a column of text, sorted: the classes, in order; None of any other column."""
    if getattr(rows.features[column], "dtype", None) not in ("string", "large_string") or not hasattr(rows, "unique"):
        return None
    names = set(rows.unique(column)) - {None}
    return sorted(names, key=lambda name: (int(name), name) if all(map(str.isdecimal, names)) else (0, name))


def label_tensor(labels: Sequence[Any], names: Sequence[str] | None = None) -> torch.Tensor:
    """Returns labels as a tensor `(n,)`: classes, which are whole numbers from 0, int64; finite values float32.

    Labels that are text are the places of their class among `names`, if these are given.

    Raises:
        BatchError: If a label is neither, or none of `names`.
    """
    if names is not None:
        places = {name: place for place, name in enumerate(names)}
        if unknown := [label for label in labels if label not in places]:
            shown = ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
            raise BatchError(
                f"{repr(unknown[0])[:50]} is none of the {len(names)} classes of the train split ({shown}); remove "
                "these rows, or move some to the train split."
            )
        labels = [places[label] for label in labels]
    if labels and all(isinstance(label, float) and math.isfinite(label) for label in labels):
        return torch.tensor(labels, dtype=torch.float32)
    wrong = [label for label in labels if not isinstance(label, int) or label < 0]
    if wrong:
        is_name = isinstance(wrong[0], str)
        advice = "Dataset.class_encode_column numbers them" if is_name else "remove these rows, or name another column"
        raise BatchError(
            "Labels must be whole numbers from 0, or all floating-point numbers, but are like "
            f"{repr(wrong[0])[:50]}; {advice}."
        )
    return torch.tensor(labels, dtype=torch.long)


def name_labels(labels: torch.Tensor, feature: Any, names: Sequence[str] | None = None) -> list[str]:
    """Returns `names`, else those that the column's feature has, else numbers; `value` where labels are values."""
    if labels.is_floating_point():
        return ["value"]
    return list(names or getattr(feature, "names", None) or [str(i) for i in range(int(labels.max()) + 1)])


def require_labels(splits: Mapping[str, torch.Tensor], count: int) -> None:
    """Raises `BatchError` unless the labels of all splits are values, or classes below `count`."""
    values = {name for name, labels in splits.items() if labels.is_floating_point()}
    if values and len(values) < len(splits):
        raise BatchError(
            f"The labels of {sorted(values)} are floating-point numbers, but those of {sorted({*splits} - values)} "
            "are classes; all splits must be labeled alike."
        )
    for name, labels in splits.items():
        if not values and len(labels) and int(labels.max()) >= count:
            raise BatchError(
                f"The {name} split has the label {int(labels.max())}, but there are only {count} classes, 0 to "
                f"{count - 1}, as in the train split; move examples of that class to the train split, or remove them."
            )


class LabeledSplit(Protocol):
    """Examples and their labels `(n,)`: classes int64, or values float32."""

    @property
    def labels(self) -> torch.Tensor: ...

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Returns a SHA-256 of what is in it."""


class LabeledData(Protocol):
    """What an evaluation asks for: `ImageData`, `TensorData`, or anything else with these members.

    `train` fits, `validation` chooses, `test` is reported once.
    """

    @property
    def train(self) -> LabeledSplit: ...

    @property
    def validation(self) -> LabeledSplit: ...

    @property
    def test(self) -> LabeledSplit: ...

    @property
    def label_names(self) -> list[str]: ...

    def inputs(self, split: Any) -> Inputs:
        """Returns what the network is fed with for the examples of a split."""


@dataclass(frozen=True, repr=False)
class TensorSplit:
    """Examples as the network takes them, such as tokenized texts of one length, and a label for each `(n,)`."""

    features: Inputs
    labels: torch.Tensor

    def __post_init__(self) -> None:
        if count_inputs(self.features) != len(self.labels):
            raise BatchError(f"There are {count_inputs(self.features)} examples, but {len(self.labels)} labels.")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        tensors = self.features if isinstance(self.features, Mapping) else {"": self.features}
        shapes = [
            f"{name} {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}".lstrip() for name, t in tensors.items()
        ]
        return f"{len(self)} examples {', '.join(shapes)}, labels {str(self.labels.dtype).removeprefix('torch.')}"

    def fingerprint(self) -> str:
        """Returns a SHA-256 of the examples and labels."""
        tensors = dict(self.features) if isinstance(self.features, Mapping) else {"": self.features}
        digest = hashlib.sha256()
        for tensor in [*(tensors[name] for name in sorted(tensors)), self.labels]:
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class TensorData:
    """Three disjoint splits of examples as the network takes them; see `LabeledData`."""

    train: TensorSplit
    validation: TensorSplit
    test: TensorSplit
    label_names: list[str]

    def inputs(self, split: TensorSplit) -> Inputs:
        """Returns the examples of a split."""
        return split.features

    @classmethod
    def from_dataset(
        cls,
        dataset: Mapping[str, datasets.Dataset],
        columns: Sequence[str] = ("input_ids", "attention_mask"),
        label_column: str = "label",
    ) -> TensorData:
        """Takes the columns of a tokenized `datasets.DatasetDict` with the splits train, validation and test.

        Args:
            columns: What the network takes, by the names of its arguments; all rows are of one length.
            label_column: Classes, which are whole numbers from 0 or text, or floating-point values.

        Raises:
            BatchError: If a split or column is missing, rows are of different lengths, or labels are no numbers or
                classes that the train split does not know.
        """
        splits, names = {}, None
        for name in ("train", "validation", "test"):
            if name not in dataset:
                raise BatchError(
                    f"The data set has the splits {sorted(dataset)}, but {name!r} is needed too; "
                    "Dataset.train_test_split makes one of another."
                )
            missing = {*columns, label_column} - set(dataset[name].column_names)
            if missing:
                raise BatchError(
                    f"The {name} split has the columns {dataset[name].column_names}, but lacks {sorted(missing)}."
                )
            rows = dataset[name].with_format(None)
            try:
                features = {column: torch.tensor(list(rows[column])) for column in columns}
            except ValueError as error:
                raise BatchError(
                    f"The rows of {list(columns)} in the {name} split are not of one length ({error}); "
                    "pad them (padding='max_length')."
                ) from error
            names = text_classes(rows, label_column) if name == "train" else names
            splits[name] = TensorSplit(features, label_tensor(list(rows[label_column]), names))
        label_names = name_labels(splits["train"].labels, dataset["train"].features[label_column], names)
        require_labels({name: split.labels for name, split in splits.items()}, len(label_names))
        return cls(**splits, label_names=label_names)
