"""How images become what a network is fed with, in the terms of transformers' image processors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

IMAGE_SIZE = 32  # height and width in pixels, if neither a setting nor a trained network asks for another


@dataclass(frozen=True)
class Preprocessing:
    """How images become `pixel_values`: square resize, scale to [0, 1], then (x - mean) / std per channel.

    It travels with every drawn network as a transformers image-processor configuration.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = int(Image.Resampling.BILINEAR)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turns `(n, channels, image_size, image_size)` uint8 into float32 `pixel_values` of the same shape."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of a `preprocessor_config.json`."""
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": self.image_size, "width": self.image_size},
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    @classmethod
    def from_dict(cls, config: dict[str, Any], image_size: int | None = None) -> Preprocessing:
        """Reads what `to_dict` of this class or of an image processor of transformers wrote.

        A processor that resizes the shorter edge and crops the center becomes a square resize to what it crops to.

        Args:
            config: Content of a `preprocessor_config.json`.
            image_size: Height and width instead of the configured ones.

        Raises:
            ValueError: If there is no `image_size`, and the configuration has none that is square; or no mean
                or standard deviation, although it normalizes.
        """
        size = config.get("size")
        if config.get("do_center_crop"):
            size = config.get("crop_size") or size
        sizes = [size] if isinstance(size, int) else list((size or {}).values())
        if image_size is None and (len(set(sizes)) != 1 or not isinstance(sizes[0], int)):
            raise ValueError(
                f"The image processor has the size {size!r}, but images are resized to a square; state its height "
                "with --image_size."
            )
        # Where a processor does not scale to [0, 1], mean and std are those of other units.
        unit = 255 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 255.0
        mean, std = [0.0], [1.0]
        if config.get("do_normalize", True):
            mean, std = _per_channel(config, "image_mean"), _per_channel(config, "image_std")
        resample = config.get("resample")
        return cls(
            sizes[0] if image_size is None else image_size,
            tuple(value / unit for value in mean),
            tuple(value / unit for value in std),
            int(Image.Resampling.BILINEAR if resample is None else resample),
        )


def _per_channel(config: dict[str, Any], name: str) -> list[float]:
    value = config.get(name)
    if value is None:
        raise ValueError(f"The image processor normalizes images, but its configuration has no {name}; add it.")
    return [value] if isinstance(value, float) else list(value)
