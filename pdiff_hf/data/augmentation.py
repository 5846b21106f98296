"""Seeded augmentation of images."""

from __future__ import annotations

import torch
from torch.nn import functional


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
