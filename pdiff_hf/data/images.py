"""Images: a Hub id, a local folder or the embedded digits as train, validation and test tensors."""

from __future__ import annotations

import os
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional

from .inputs import fingerprint_tensors
from .named_datasets import DATASETS

SHUFFLE_BUFFER = 1000  # images of a stream that are held to be shuffled, beside the order of its files


class ImageDataError(ValueError):
    """The images cannot be used: none, no label column, one class only, or an unknown split."""


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


@dataclass(frozen=True)
class ImageSplit:
    """Images `(n, channels, image_size, image_size)` uint8 and their labels `(n,)` int64."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: torch.Tensor) -> ImageSplit:
        """Returns the images at `indices`, `(k,)` int64."""
        return ImageSplit(self.pixels[indices], self.labels[indices])

    def fingerprint(self) -> str:
        """Returns a SHA-256 of the images and labels."""
        return fingerprint_tensors([self.pixels, self.labels])


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
        dataset_name: `digits`, a name in `DATASETS`, a Hub id, or a local folder.
        image_size: Images are resized to this height and width in pixels.
        split_seed: Seed of the permutation that splits.
        validation_fraction: Share of the train images, in (0, 1).
        image_column: Column of the images; by default the first one of type Image.
        label_column: Column of the labels; by default the first one of type ClassLabel, or one called `label`.
        max_train_images: Keep this many train images at most (after the permutation).
        max_eval_images: Keep this many validation and this many test images at most, permuted by `split_seed`.

    Raises:
        ImageDataError: If there is nothing to train on, no label column, unlabeled images, or only one class; or if a
            data set that is streamed is asked for as a whole.
    """
    if dataset_name == "digits":
        train, validation, test, label_names = _load_digits(image_size, split_seed)
        train = train.take(torch.arange(len(train))[:max_train_images])
        validation, test = (split.take(torch.arange(len(split))[:max_eval_images]) for split in (validation, test))
    else:
        train, validation, test, label_names = _load_dataset(
            dataset_name,
            image_size,
            split_seed,
            validation_fraction,
            image_column,
            label_column,
            max_train_images,
            max_eval_images,
        )
    for name, split in (("train", train), ("validation", validation), ("test", test)):
        if len(split) == 0:
            raise ImageDataError(
                f"The {name} split of {dataset_name!r} is empty; each split needs at least one image."
            )
    classes = train.labels.unique()
    if len(classes) < 2:
        raise ImageDataError(
            f"All {len(train)} train images of {dataset_name!r} have label {classes.tolist()}; "
            "a classifier needs at least two classes."
        )
    scaled = train.pixels.double() / 255
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3)).clamp(min=1e-3)
    preprocessing = Preprocessing(
        image_size, tuple(round(m, 6) for m in mean.tolist()), tuple(round(s, 6) for s in std.tolist())
    )
    return ImageData(train, validation, test, label_names, preprocessing)


def _load_digits(image_size: int, split_seed: int) -> tuple[ImageSplit, ImageSplit, ImageSplit, list[str]]:
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)  # gray levels are 0 to 16
    pixels = functional.interpolate(pixels, size=(image_size, image_size), mode="bilinear")
    everything = ImageSplit(pixels.round().to(torch.uint8), torch.from_numpy(digits.target).long())
    train, validation, test = _permute(len(everything), split_seed).split([700, 300, 797])
    names = [str(digit) for digit in range(10)]
    return everything.take(train), everything.take(validation), everything.take(test), names


def _load_dataset(
    name: str,
    image_size: int,
    split_seed: int,
    validation_fraction: float,
    image_column: str | None,
    label_column: str | None,
    max_train_images: int | None,
    max_eval_images: int | None,
) -> tuple[ImageSplit, ImageSplit, ImageSplit, list[str]]:
    known = None if os.path.exists(name) else DATASETS.get(name)
    if known is not None and known.streaming and (max_train_images is None or max_eval_images is None):
        raise ImageDataError(
            f"{name!r} is read as a stream, so say how much of it is wanted: --max_train_images, and "
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
    rows = dict(loaded)
    if known is not None:
        image_column, label_column = image_column or known.image_column, label_column or known.label_column
    image_column = image_column or _find_column(rows["train"], datasets.Image, "image")
    label_column = label_column or _find_column(rows["train"], datasets.ClassLabel, "label")
    first = next(iter(rows["train"]), None)
    mode = "L" if first is not None and _is_gray(first[image_column]) else "RGB"
    if "test" not in rows and "validation" in rows:
        rows["test"] = rows.pop("validation")

    def read(split: str, start: int = 0, stop: int | None = None) -> ImageSplit:
        chosen = _choose(rows[split], start, stop, split_seed)
        most = len(chosen) if isinstance(chosen, datasets.Dataset) else (stop or 0) - start
        return _read_split(chosen, most, image_column, label_column, image_size, mode)

    streamed = isinstance(rows["train"], datasets.IterableDataset)
    count = (max_train_images or 0) if streamed else len(rows["train"])
    held_out, start = max(1, round(validation_fraction * count)), 0
    evaluation = {}
    for split in ("test", "validation"):
        if split in rows:
            evaluation[split] = read(split, 0, max_eval_images)
        else:
            evaluation[split] = read("train", start, start + min(held_out, max_eval_images or held_out))
            start += held_out
    stop = count if max_train_images is None else start + max_train_images
    train = read("train", start, stop)
    feature = rows["train"].features[label_column]
    label_names = getattr(feature, "names", None) or [str(i) for i in range(int(train.labels.max()) + 1)]
    return train, evaluation["validation"], evaluation["test"], list(label_names)


def _choose(
    rows: datasets.Dataset | datasets.IterableDataset, start: int, stop: int | None, seed: int
) -> datasets.Dataset | datasets.IterableDataset:
    """Returns the rows `start` to `stop` of a permutation by the seed, or all of them as they stand."""
    if stop is None:
        return rows
    if isinstance(rows, datasets.IterableDataset):
        return rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER).skip(start).take(stop - start)
    return rows.select(_permute(len(rows), seed)[start:stop].tolist())


def _find_column(rows: datasets.Dataset, kind: type, fallback: str) -> str:
    for column, feature in rows.features.items():
        if isinstance(feature, kind):
            return column
    if fallback in rows.features:
        return fallback
    raise ImageDataError(f"No {kind.__name__} column among {list(rows.features)}; name it with --{fallback}_column.")


def _is_gray(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "I", "I;16")


def _read_split(
    rows: datasets.Dataset | datasets.IterableDataset,
    most: int,
    image_column: str,
    label_column: str,
    image_size: int,
    mode: str,
) -> ImageSplit:
    channels = 1 if mode == "L" else 3
    pixels = np.empty((most, image_size, image_size, channels), dtype=np.uint8)
    labels: list[int] = []
    for row in rows.select_columns([image_column, label_column]):
        resized = row[image_column].convert(mode).resize((image_size, image_size), Image.Resampling.BILINEAR)
        pixels[len(labels)] = np.asarray(resized).reshape(image_size, image_size, channels)
        labels.append(row[label_column])
    if not all(isinstance(label, int) and label >= 0 for label in labels):
        wrong = next(label for label in labels if not isinstance(label, int) or label < 0)
        raise ImageDataError(f"The labels in {label_column!r} must be whole numbers from 0, but are like {wrong!r}.")
    read = torch.from_numpy(pixels[: len(labels)]).permute(0, 3, 1, 2).contiguous()
    return ImageSplit(read, torch.tensor(labels, dtype=torch.long))


def _permute(count: int, seed: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def augment(
    pixel_values: torch.Tensor, generator: torch.Generator, shift: int = 0, flip: bool = False, noise: float = 0.0
) -> torch.Tensor:
    """Augments a batch `(n, channels, height, width)`: shifts, mirrored images and Gaussian noise, each per image.

    Args:
        pixel_values: Normalized images; the shift fills with their smallest value.
        generator: CPU generator that decides everything.
        shift: Largest shift in pixels, in each direction.
        flip: Mirror each image with probability 1/2.
        noise: Standard deviation of the noise, in units of normalized pixels.
    """
    n, _, height, width = pixel_values.shape
    if shift > 0:
        padded = functional.pad(pixel_values, (shift,) * 4, value=float(pixel_values.min()))
        top = torch.randint(2 * shift + 1, (n, 1), generator=generator) + torch.arange(height)  # (n, height)
        left = torch.randint(2 * shift + 1, (n, 1), generator=generator) + torch.arange(width)  # (n, width)
        images = torch.arange(n)[:, None, None]
        pixel_values = padded.permute(0, 2, 3, 1)[images, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
        pixel_values = torch.where(mirrored.to(pixel_values.device), pixel_values.flip(-1), pixel_values)
    if noise > 0:
        drawn = torch.randn(pixel_values.shape, generator=generator)
        pixel_values = pixel_values + noise * drawn.to(pixel_values.device)
    return pixel_values
