"""Images: a Hub id, a local folder or the embedded digits as train, validation and test tensors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional

from .inputs import BatchError, TensorSplit, label_tensor, name_labels
from .named_datasets import DATASETS

SHUFFLE_BUFFER = 1000  # images of a stream that are held to be shuffled, beside the order of its files


class ImageDataError(ValueError):
    """The images cannot be used: none, no label column, one class or value only, or an unknown split."""


@dataclass(frozen=True)
class Preprocessing:
    """How images become `pixel_values`: square resize (bilinear), scale to [0, 1], then (x - mean) / std per channel.

    It travels with every drawn network as a transformers image-processor configuration.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turns `(n, channels, image_size, image_size)` uint8 into float32 `pixel_values` of the same shape."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def to_dict(self) -> dict:
        """Returns the content of a `preprocessor_config.json`."""
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": self.image_size, "width": self.image_size},
            "resample": int(Image.Resampling.BILINEAR),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    @classmethod
    def from_dict(cls, config: dict) -> Preprocessing:
        """Reads what `to_dict` wrote."""
        return cls(config["size"]["height"], tuple(config["image_mean"]), tuple(config["image_std"]))


class ImageSplit(TensorSplit):
    """Images `(n, channels, image_size, image_size)` uint8, and labels `(n,)`: classes int64 or values float32."""

    features: torch.Tensor

    @property
    def pixels(self) -> torch.Tensor:
        """The images."""
        return self.features

    def take(self, rows: slice | torch.Tensor) -> ImageSplit:
        """Returns some of the images: a slice of them, or those at `(k,)` int64."""
        return ImageSplit(self.pixels[rows], self.labels[rows])


@dataclass(frozen=True)
class ImageData:
    """Three disjoint splits: train fits, validation chooses, test is reported once."""

    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    label_names: list[str]
    preprocessing: Preprocessing

    @property
    def num_channels(self) -> int:
        """1 for gray images, 3 for color."""
        return self.train.pixels.shape[1]

    def inputs(self, split: ImageSplit) -> torch.Tensor:
        """Returns the `pixel_values` of a split."""
        return self.preprocessing(split.pixels)


def load_images(
    dataset_name: str,
    image_size: int = 32,
    split_seed: int = 0,
    validation_fraction: float = 0.1,
    image_column: str | None = None,
    label_column: str | None = None,
    max_train_images: int | None = None,
    max_eval_images: int | None = None,
) -> ImageData:
    """Loads images and splits them, the same way for the same arguments.

    - `digits`: scikit-learn's 1,797 gray 8x8 digits, permuted by `split_seed` into 700 / 300 / 797.
    - One of `DATASETS` by name (`mnist`, `cifar10`, …), unless there is a file or folder of that name.
    - Otherwise anything `datasets.load_dataset` reads: a Hub id, or a folder of parquet or image files. A `validation`
      split is taken as it is; where there is none, `validation_fraction` of the train images, permuted by
      `split_seed`, become it. A data set without a test split gives up its validation split, or as many train images
      again, for testing.

    Normalization is per channel, measured on the train images.

    Args:
        dataset_name: See above.
        image_size: Images are resized to this height and width in pixels.
        split_seed: Seed of the permutation that splits.
        validation_fraction: Share of the train images, in (0, 1).
        image_column: Column of the images; by default the first one of type Image.
        label_column: Column of the labels; by default the first one of type ClassLabel, or one called `label`. Whole
            numbers are classes; floating-point numbers are values to predict, whose one label name is `value`.
        max_train_images: Keep this many train images at most (after the permutation).
        max_eval_images: Keep this many validation and this many test images at most, permuted by `split_seed`.

    Raises:
        ImageDataError: If there is nothing to learn from, or a data set that is streamed is asked for as a whole.
    """
    if dataset_name == "digits":
        everything, label_names = _load_digits(image_size), [str(digit) for digit in range(10)]
        rows = _permute(len(everything), split_seed).split([700, 300, 797])
        most = (max_train_images, max_eval_images, max_eval_images)
        train, validation, test = (everything.take(own[:limit]) for own, limit in zip(rows, most, strict=True))
    else:
        bounded = None not in (max_train_images, max_eval_images)
        source = _Source(dataset_name, image_column, label_column, image_size, split_seed, bounded)
        train, validation, test = source.split(validation_fraction, max_train_images, max_eval_images)
        label_names = name_labels(train.labels, source.rows["train"].features[source.label_column])
    for name, split in {"train": train, "validation": validation, "test": test}.items():
        if len(split) == 0:
            raise ImageDataError(f"The {name} split of {dataset_name!r} is empty, but needs at least one image.")
    distinct = train.labels.unique()
    if len(distinct) < 2:
        raise ImageDataError(
            f"All {len(train)} train images of {dataset_name!r} have label {distinct.tolist()}; "
            "at least two classes, or two values, are needed to learn from."
        )
    scaled = train.pixels.double() / 255
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3)).clamp(min=1e-3)
    statistics = [tuple(round(value, 6) for value in values.tolist()) for values in (mean, std)]
    return ImageData(train, validation, test, label_names, Preprocessing(image_size, *statistics))


def _load_digits(image_size: int) -> ImageSplit:
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)  # gray levels are 0 to 16
    pixels = functional.interpolate(pixels, size=(image_size, image_size), mode="bilinear")
    return ImageSplit(pixels.round().to(torch.uint8), torch.from_numpy(digits.target).long())


class _Source:
    """The splits of a data set, and how their rows become tensors."""

    def __init__(
        self, name: str, image_column: str | None, label_column: str | None, image_size: int, seed: int, bounded: bool
    ) -> None:
        self.image_size, self.seed = image_size, seed
        known = None if os.path.exists(name) else DATASETS.get(name)
        if known is not None and known.streaming and not bounded:
            raise ImageDataError(
                f"{name!r} is read as a stream, so state how much of it is wanted: --max_train_images, and "
                "--max_eval_images for the validation and the test images each."
            )
        try:
            loaded = datasets.load_dataset(name) if known is None else known.load()
        except (FileNotFoundError, ValueError, ConnectionError, HfHubHTTPError) as error:
            here = "is not a folder here" if not os.path.isdir(name) else "is a folder without readable data files"
            hub_id = "" if known is None else f", stands for {known.hub_id!r}"
            raise ImageDataError(
                f"No images were found under {name!r}: it {here}{hub_id}, and `datasets` could not load it ({error}). "
                f"Pass 'digits', {', '.join(map(repr, DATASETS))}, a folder of parquet or image files, or a Hub id."
            ) from error
        if "train" not in loaded:
            raise ImageDataError(f"{name!r} has the splits {sorted(loaded)}, but a 'train' split is needed.")
        self.rows = rows = dict(loaded)
        if known is not None:
            image_column, label_column = image_column or known.image_column, label_column or known.label_column
        self.image_column = image_column or _find_column(rows["train"], datasets.Image, "image")
        self.label_column = label_column or _find_column(rows["train"], datasets.ClassLabel, "label")
        first = next(iter(rows["train"]), None)
        self.gray = first is not None and first[self.image_column].mode in ("1", "L", "I", "I;16")
        if "test" not in rows and "validation" in rows:
            rows["test"] = rows.pop("validation")

    def split(
        self, validation_fraction: float, max_train_images: int | None, max_eval_images: int | None
    ) -> tuple[ImageSplit, ImageSplit, ImageSplit]:
        """Reads train, validation and test images; what the data set lacks is cut off from the train images."""
        streamed = isinstance(self.rows["train"], datasets.IterableDataset)
        count = (max_train_images or 0) if streamed else len(self.rows["train"])
        held_out, start = max(1, round(validation_fraction * count)), 0
        evaluation = {}
        for split in ("test", "validation"):
            if split in self.rows:
                evaluation[split] = self.read(split, 0, max_eval_images)
            else:
                stop = start + min(held_out, max_eval_images or held_out)
                evaluation[split] = self.read("train", start, stop)
                start += held_out
        train = self.read("train", start, count if max_train_images is None else start + max_train_images)
        return train, evaluation["validation"], evaluation["test"]

    def read(self, split: str, start: int, stop: int | None) -> ImageSplit:
        """Reads the rows `start` to `stop` of a permutation by the seed, or all of them as they stand."""
        rows = self.rows[split]
        if stop is not None and isinstance(rows, datasets.IterableDataset):
            rows = rows.shuffle(seed=self.seed, buffer_size=SHUFFLE_BUFFER).skip(start).take(stop - start)
        elif stop is not None:
            rows = rows.select(_permute(len(rows), self.seed)[start:stop].tolist())
        most = len(rows) if isinstance(rows, datasets.Dataset) else (stop or 0) - start
        size, channels, mode = self.image_size, 1 if self.gray else 3, "L" if self.gray else "RGB"
        pixels = np.empty((most, size, size, channels), dtype=np.uint8)
        labels: list[Any] = []
        for row in rows.select_columns([self.image_column, self.label_column]):
            resized = row[self.image_column].convert(mode).resize((size, size), Image.Resampling.BILINEAR)
            pixels[len(labels)] = np.asarray(resized).reshape(size, size, channels)
            labels.append(row[self.label_column])
        read = torch.from_numpy(pixels[: len(labels)]).permute(0, 3, 1, 2).contiguous()
        try:
            return ImageSplit(read, label_tensor(labels))
        except BatchError as error:
            raise ImageDataError(f"Column {self.label_column!r} does not hold labels: {error}") from error


def _find_column(rows: datasets.Dataset | datasets.IterableDataset, kind: type, fallback: str) -> str:
    typed = [column for column, feature in rows.features.items() if isinstance(feature, kind)]
    if typed or fallback in rows.features:
        return [*typed, fallback][0]
    raise ImageDataError(f"No {kind.__name__} column among {list(rows.features)}; name it with --{fallback}_column.")


def _permute(count: int, seed: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
