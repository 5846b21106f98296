"""Images that classifiers were not trained on: corrupted ones, and ones of no class that they know."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage

from ..data.images import ImageData, load_images

SEED = 0
FEW_IMAGES = 1000  # of the train split of another data set, whose test split alone is used


def _noise(values: np.ndarray, std: float) -> np.ndarray:
    return values + 255 * std * np.random.default_rng(SEED).standard_normal(values.shape, np.float32)


def _blur(values: np.ndarray, share: float) -> np.ndarray:
    sigma = share * values.shape[-1]
    return ndimage.gaussian_filter(values, (0, 0, sigma, sigma), mode="nearest")


def _contrast(values: np.ndarray, factor: float) -> np.ndarray:
    mean = values.mean((1, 2, 3), keepdims=True)
    return mean + factor * (values - mean)


def _rotation(values: np.ndarray, degrees: float) -> np.ndarray:
    return ndimage.rotate(values, degrees, axes=(3, 2), reshape=False, order=1, mode="nearest")


# By kind: a function of gray levels `(n, channels, height, width)` float32, and its argument at severities 1 to 5.
# Noise is that of ImageNet-C, contrast that of CIFAR-10-C (arXiv 1903.12261); blur is in shares of the image's width.
CORRUPTIONS: dict[str, tuple[Callable[[np.ndarray, float], np.ndarray], tuple[float, ...]]] = {
    "noise": (_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "blur": (_blur, (0.04, 0.06, 0.08, 0.10, 0.13)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "rotation": (_rotation, (10, 20, 30, 45, 60)),
}
SEVERITIES = range(1, 6)


def corrupt(pixels: torch.Tensor, kind: str, severity: int) -> torch.Tensor:
    """Returns images `(n, channels, height, width)` uint8 corrupted in a way of `CORRUPTIONS`, severity 1 to 5."""
    change, strengths = CORRUPTIONS[kind]
    changed = change(pixels.numpy().astype(np.float32), strengths[severity - 1])
    return torch.from_numpy(changed.round().clip(0, 255).astype(np.uint8))


def make_outliers(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns images of no class, by name, made from images `(n, channels, height, width)` uint8."""
    generator = torch.Generator().manual_seed(SEED)
    places = torch.rand(len(pixels), 1, pixels[0, 0].numel(), generator=generator).argsort(-1)
    shuffled = pixels.flatten(2).gather(2, places.expand(-1, pixels.shape[1], -1)).view_as(pixels)
    noise = torch.randint(256, pixels.shape, dtype=torch.uint8, generator=generator)
    return {"shuffled pixels": shuffled, "uniform noise": noise, "inverted": 255 - pixels}


def load_outliers(dataset_name: str, images: ImageData) -> dict[str, torch.Tensor]:
    """Returns test images of another data set, by its name: as many as `images` has at most, and of their shape.

    Gray images become of color, or the reverse, where `images` are.

    Raises:
        ImageDataError: If the data set cannot be read.
    """
    count = len(images.test)
    other = load_images(
        dataset_name, images.preprocessing.image_size, max_train_images=FEW_IMAGES, max_eval_images=count
    )
    pixels = other.test.pixels
    if other.num_channels > images.num_channels:
        pixels = pixels.float().mean(1, keepdim=True).round().to(torch.uint8)
    return {dataset_name: pixels.expand(-1, images.num_channels, -1, -1)}
