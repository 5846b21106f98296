"""Images: a Hub id, a local folder or the embedded digits as train, validation and test tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional

from .image_source import ImageDataError, ImageSource, permute, require_columns
from .inputs import BatchError, TensorSplit, name_labels, require_labels
from .preprocessing import IMAGE_SIZE, Preprocessing


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


@dataclass(frozen=True, repr=False)
class ImageData:
    """Three disjoint splits: train fits, validation chooses, test is reported once."""

    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    label_names: list[str]
    preprocessing: Preprocessing
    dataset_name: str | None = None

    def __repr__(self) -> str:
        origin = f" of {self.dataset_name!r}" if self.dataset_name else ""
        counts = f"{len(self.train)} train, {len(self.validation)} validation, {len(self.test)} test"
        names = ", ".join(self.label_names[:5]) + (", …" if len(self.label_names) > 5 else "")
        shape = tuple(self.train.pixels.shape[1:])
        return f"images{origin}: {counts}, each {shape}, {len(self.label_names)} classes: {names}"

    @property
    def num_channels(self) -> int:
        """1 for gray images, 3 for color."""
        return self.train.pixels.shape[1]

    def inputs(self, split: ImageSplit) -> torch.Tensor:
        """Returns the `pixel_values` of a split."""
        return self.preprocessing(split.pixels)

    def relabeled(self, places: Sequence[int], names: Sequence[str]) -> ImageData:
        """Returns the same images with their classes renumbered: class i is number `places[i]` among `names`."""
        numbers = torch.tensor(places)
        train, validation, test = (
            ImageSplit(split.pixels, numbers[split.labels]) for split in (self.train, self.validation, self.test)
        )
        return replace(self, train=train, validation=validation, test=test, label_names=list(names))


def shorten(names: Sequence[str]) -> str:
    """Returns the first few of many names, for a sentence."""
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def load_images(
    dataset_name: str,
    image_size: int | None = None,
    split_seed: int = 0,
    validation_fraction: float = 0.1,
    image_column: str | None = None,
    label_column: str | None = None,
    max_train_images: int | None = None,
    max_eval_images: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> ImageData:
    """Loads images and splits them, the same way for the same arguments.

    - `digits`: scikit-learn's 1,797 gray 8x8 digits, permuted by `split_seed` into 700 / 300 / 797.
    - One of `DATASETS` by name (`mnist`, `cifar10`, …), unless there is a file or folder of that name.
    - Otherwise anything `datasets.load_dataset` reads: a Hub id, a folder of parquet or image files, or one parquet
      file. A `validation` split is taken as it is; where there is none, `validation_fraction` of the train images,
      permuted by `split_seed`, become it. A data set without a test split gives up its validation split, or as many
      train images again, for testing.

    All images are of color if one of those that are read is. Images of more than 8 bits are scaled to [0, 1], and
    transparent parts show a white background; see `decode` for what an image column may hold.

    Args:
        dataset_name: See above.
        image_size: Images are resized to this height and width in pixels; by default that of `preprocessing`, or 32.
        split_seed: Seed of the permutation that splits.
        validation_fraction: Share of the train images, in (0, 1).
        image_column: Column of the images; by default the first one of type Image, or one called `image`.
        label_column: Column of the labels; by default the first one of type ClassLabel, or one called `label`. Whole
            numbers are classes, and so is text, sorted; floating-point numbers are values to predict, whose one label
            name is `value`.
        max_train_images: Keep this many train images at most (after the permutation).
        max_eval_images: Keep this many validation and this many test images at most, permuted by `split_seed`.
        preprocessing: That of a trained network; by default mean and standard deviation of each channel are measured
            on the train images.

    Raises:
        ImageDataError: If there is nothing to learn from, a column is missing, an image cannot be read, a label is
            unknown to the train split, or a data set that is streamed is asked for as a whole.
    """
    size = image_size or (IMAGE_SIZE if preprocessing is None else preprocessing.image_size)
    if dataset_name == "digits":
        require_columns({"'digits'": ("image", "label")}, image_column, label_column)
        everything, label_names = _load_digits(size), [str(digit) for digit in range(10)]
        rows = permute(len(everything), split_seed).split([700, 300, 797])
        most = (max_train_images, max_eval_images, max_eval_images)
        train, validation, test = (everything.take(own[:limit]) for own, limit in zip(rows, most, strict=True))
    else:
        bounded = None not in (max_train_images, max_eval_images)
        resample = Image.Resampling.BILINEAR if preprocessing is None else preprocessing.resample
        source = ImageSource(dataset_name, image_column, label_column, bounded, size, resample, split_seed)
        parts = source.split(validation_fraction, max_train_images, max_eval_images)
        train, validation, test = (ImageSplit(*part) for part in parts)
        feature = source.rows["train"].features[source.label_column]
        label_names = name_labels(train.labels, feature, source.class_names)
    _require_learnable(dataset_name, {"train": train, "validation": validation, "test": test}, label_names)
    preprocessing = _measure(train, size) if preprocessing is None else replace(preprocessing, image_size=size)
    preprocessing = _for_channels(preprocessing, train.pixels.shape[1])
    return ImageData(train, validation, test, label_names, preprocessing, dataset_name)


def _measure(train: ImageSplit, image_size: int) -> Preprocessing:
    scaled = train.pixels.double() / 255
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3)).clamp(min=1e-3)
    statistics = [tuple(round(value, 6) for value in values.tolist()) for values in (mean, std)]
    return Preprocessing(image_size, statistics[0], statistics[1])


def _for_channels(preprocessing: Preprocessing, channels: int) -> Preprocessing:
    if len(preprocessing.mean) == 1:
        return replace(preprocessing, mean=preprocessing.mean * channels, std=preprocessing.std * channels)
    if len(preprocessing.mean) != channels:
        raise ImageDataError(
            f"The images of the data set have {channels} channels, but those that the network was trained on had "
            f"{len(preprocessing.mean)}; choose another network or data set."
        )
    return preprocessing


def _require_learnable(dataset_name: str, splits: Mapping[str, ImageSplit], label_names: Sequence[str]) -> None:
    for name, split in splits.items():
        if len(split) == 0:
            raise ImageDataError(f"The {name} split of {dataset_name!r} is empty, but needs at least one image.")
    train = splits["train"]
    distinct = train.labels.unique()
    if len(distinct) < 2:
        raise ImageDataError(
            f"All {len(train)} train images of {dataset_name!r} have label {distinct.tolist()}; "
            "at least two classes, or two values, are needed to learn from."
        )
    try:
        require_labels({name: split.labels for name, split in splits.items()}, len(label_names))
    except BatchError as error:
        raise ImageDataError(f"{dataset_name!r} cannot be learned: {error}") from error


def _load_digits(image_size: int) -> ImageSplit:
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)  # gray levels are 0 to 16
    pixels = functional.interpolate(pixels, size=(image_size, image_size), mode="bilinear")
    return ImageSplit(pixels.round().to(torch.uint8), torch.from_numpy(digits.target).long())
