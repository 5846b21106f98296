"""The splits of a data set on the Hub or in a folder, read into tensors."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import datasets
import torch
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HfHubHTTPError

from .inputs import BatchError, label_tensor, text_classes
from .named_datasets import DATASETS
from .pixels import PixelBuffer, PixelsError, decode, to_tensors

SHUFFLE_BUFFER = 1000  # images of a stream that are held to be shuffled, beside the order of its files


class ImageDataError(ValueError):
    """The images cannot be used: none, a damaged one, no such column or split, or no labels to learn from."""


class ImageSource:
    """The splits of a data set, and how their rows become tensors."""

    def __init__(
        self,
        name: str,
        image_column: str | None,
        label_column: str | None,
        bounded: bool,
        image_size: int,
        resample: int,
        seed: int,
    ) -> None:
        self.name, self.image_size, self.resample, self.seed = name, image_size, resample, seed
        known = None if os.path.exists(name) else DATASETS.get(name)
        if known is not None and known.streaming and not bounded:
            raise ImageDataError(
                f"{name!r} is read as a stream, so state how much of it is wanted: --max_train_images, and "
                "--max_eval_images for the validation and the test images each."
            )
        try:
            loaded = _load(name) if known is None else known.load()
        except (OSError, ValueError, DatasetsError, HfHubHTTPError) as error:
            here = "is not a folder here"
            if os.path.exists(name):
                kind = "folder without readable data files" if os.path.isdir(name) else "file that cannot be read"
                here = f"is a {kind}"
            hub_id = "" if known is None else f", stands for {known.hub_id!r}"
            # `datasets` reports a damaged file as the cause of its own error, in several lines.
            reason = " ".join(str(error.__cause__ or error).split())
            raise ImageDataError(
                f"No images were found under {name!r}: it {here}{hub_id}, and `datasets` could not load it "
                f"({reason}). Pass 'digits', {', '.join(map(repr, DATASETS))}, a folder of parquet or image files, "
                "a parquet file, or a Hub id."
            ) from error
        if "train" not in loaded:
            raise ImageDataError(f"{name!r} has the splits {sorted(loaded)}, but a 'train' split is needed.")
        self.rows = rows = dict(loaded)
        self.stored = {split: split for split in ("train", "validation", "test") if split in rows}
        if "test" not in rows and "validation" in rows:
            self.stored["test"] = self.stored.pop("validation")
        if known is not None:
            image_column, label_column = image_column or known.image_column, label_column or known.label_column
        self.image_column = image_column or _find_column(rows["train"], datasets.Image, "image")
        self.label_column = label_column or _find_column(rows["train"], datasets.ClassLabel, "label")
        columns = {f"the {split} split of {name!r}": list(rows[split].features) for split in self.stored.values()}
        require_columns(columns, self.image_column, self.label_column)
        self.class_names = text_classes(rows["train"], self.label_column)  # of labels that are text

    def split(
        self, validation_fraction: float, max_train_images: int | None, max_eval_images: int | None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Reads images and labels of train, validation and test; what is lacking is cut off from the train images."""
        streamed = isinstance(self.rows["train"], datasets.IterableDataset)
        count = (max_train_images or 0) if streamed else len(self.rows["train"])
        held_out, start = max(1, round(validation_fraction * count)), 0
        read: dict[str, tuple[PixelBuffer, torch.Tensor]] = {}
        for split in ("test", "validation"):
            if split in self.stored:
                read[split] = self.read(self.stored[split], 0, max_eval_images)
            else:
                stop = start + min(held_out, max_eval_images or held_out)
                read[split] = self.read("train", start, stop)
                start += held_out
        read["train"] = self.read("train", start, count if max_train_images is None else start + max_train_images)
        order = ("train", "validation", "test")
        try:
            pixels = to_tensors([read[split][0] for split in order])
        except PixelsError as error:
            raise ImageDataError(f"Column {self.image_column!r} of {self.name!r}: {error}") from error
        return [(own, read[split][1]) for split, own in zip(order, pixels, strict=True)]

    def read(self, split: str, start: int, stop: int | None) -> tuple[PixelBuffer, torch.Tensor]:
        """Reads the rows `start` to `stop` of a permutation by the seed, or all of them as they stand."""
        rows, numbers = self.rows[split], None
        if stop is not None and isinstance(rows, datasets.IterableDataset):
            rows = rows.shuffle(seed=self.seed, buffer_size=SHUFFLE_BUFFER).skip(start).take(stop - start)
        elif stop is not None:
            numbers = permute(len(rows), self.seed)[start:stop].tolist()
            rows = rows.select(numbers)
        most = len(rows) if isinstance(rows, datasets.Dataset) else (stop or 0) - start
        if isinstance(rows.features[self.image_column], datasets.Image):  # decoded below, where its row is known
            rows = rows.cast_column(self.image_column, datasets.Image(decode=False))
        images = PixelBuffer(most, self.image_size, self.resample)
        labels: list[Any] = []
        for row in rows.select_columns([self.image_column, self.label_column]):
            try:
                images.append(decode(row[self.image_column]))
            except PixelsError as error:
                number = len(labels) if numbers is None else numbers[len(labels)]
                raise ImageDataError(
                    f"Row {number} of the {split} split of {self.name!r}: the image in column {self.image_column!r} "
                    f"{error}; remove the row, or name another column with --image_column."
                ) from error
            labels.append(row[self.label_column])
        try:
            return images, label_tensor(labels, self.class_names)
        except BatchError as error:
            raise ImageDataError(
                f"In the {split} split of {self.name!r}, column {self.label_column!r} does not hold labels: {error}"
            ) from error


def _load(name: str) -> datasets.DatasetDict:
    if os.path.isfile(name) and name.endswith(".parquet"):
        return datasets.load_dataset("parquet", data_files=name)
    return datasets.load_dataset(name)


def require_columns(
    columns: Mapping[str, Collection[str]], image_column: str | None, label_column: str | None
) -> None:
    """Raises an ImageDataError if the columns asked for are not in all splits."""
    for name, existing in columns.items():
        for flag, column in (("image", image_column), ("label", label_column)):
            if column is not None and column not in existing:
                raise ImageDataError(
                    f"There is no column {column!r} in {name}, which has the columns {sorted(existing)}; name one "
                    f"of them with --{flag}_column."
                )


def _find_column(rows: datasets.Dataset | datasets.IterableDataset, kind: type, fallback: str) -> str:
    typed = [column for column, feature in rows.features.items() if isinstance(feature, kind)]
    if typed or fallback in rows.features:
        return [*typed, fallback][0]
    raise ImageDataError(f"No {kind.__name__} column among {list(rows.features)}; name it with --{fallback}_column.")


def permute(count: int, seed: int) -> torch.Tensor:
    """Returns the numbers below `count` in an order that the seed decides, `(count,)` int64."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
