"""One image as an array, however a data set holds it, and the images of a split as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

GRAY = ("1", "L", "LA", "La")
UNSCALED = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # gray values of more than 8 bits
WHITES = (1, 255, 65535)  # what white is where more than 8 bits hold a value


class PixelsError(ValueError):
    """A cell does not hold an image, or its values are on no known scale."""


def decode(cell: Any) -> np.ndarray:
    """Returns an image `(height, width, channels)`, with 1 channel if it is gray and 3 if it is of color.

    Values are uint8; where the image has more bits they are float32, and the images of a data set together show what
    white is (`PixelBuffer`). Transparent parts show a white background.

    Args:
        cell: An image of PIL, the bytes of an image file, `bytes` and `path` as `datasets` stores an image, or values
            `(height, width)`, `(height, width, channels)` or `(channels, height, width)`.

    Raises:
        PixelsError: If it is none of these, empty, or damaged. The sentence goes on after "the image".
    """
    if cell is None or (isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path") is None):
        raise PixelsError("is missing")
    if isinstance(cell, bytes):
        cell = {"bytes": cell}
    try:
        if isinstance(cell, dict):
            cell = datasets.Image().decode_example({"bytes": cell.get("bytes"), "path": cell.get("path")})
        return _of_image(cell) if isinstance(cell, Image.Image) else _of_values(np.asarray(cell))
    except PixelsError:
        raise
    except Exception as error:  # of whichever library decodes the damaged file
        raise PixelsError(f"cannot be read ({error})") from error


def _of_image(image: Image.Image) -> np.ndarray:
    if image.mode in UNSCALED:
        return np.asarray(image).astype(np.float32)[..., None]
    is_gray = image.mode in GRAY
    if image.has_transparency_data:  # an alpha channel, or a color that is marked as transparent
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.atleast_3d(np.asarray(image.convert("L" if is_gray else "RGB")))


def _of_values(values: np.ndarray) -> np.ndarray:
    shape = values.shape
    if values.ndim == 2:
        values = values[..., None]
    elif values.ndim == 3 and shape[2] not in (1, 3):
        values = np.moveaxis(values, 0, 2)
    if values.ndim != 3 or values.shape[2] not in (1, 3) or 0 in shape or values.dtype.kind not in "buif":
        raise PixelsError(
            f"is neither an encoded image nor numbers of the shape (height, width), with 1 or 3 channels before or "
            f"after them, but {values.dtype} of the shape {shape}"
        )
    return values if values.dtype == np.uint8 else values.astype(np.float32)


class PixelBuffer:
    """The images of a split, `(count, image_size, image_size, channels)` uint8: gray until the first one of color."""

    def __init__(self, count: int, image_size: int, resample: int) -> None:
        self.size, self.resample = (image_size, image_size), resample
        self.pixels = np.empty((count, *self.size, 1), dtype=np.uint8)
        self.unscaled: dict[int, np.ndarray] = {}  # of more than 8 bits, by their place
        self.lowest = self.highest = 0.0
        self.length = 0

    def append(self, image: np.ndarray) -> None:
        """Adds what `decode` returns."""
        if image.shape[2] > self.pixels.shape[3]:
            gray, self.pixels = self.pixels, np.empty((*self.pixels.shape[:3], 3), dtype=np.uint8)
            self.pixels[: self.length] = gray[: self.length]
        # Pillow has no images of more than 8 bits with several channels.
        parts = [image] if image.dtype == np.uint8 and image.shape[2] == 3 else np.moveaxis(image, 2, 0)
        resized = np.dstack([np.asarray(Image.fromarray(part).resize(self.size, self.resample)) for part in parts])
        if image.dtype == np.uint8:
            self.pixels[self.length] = resized
        else:
            self.unscaled[self.length] = resized
            self.lowest = float(np.minimum(self.lowest, image.min()))  # NaN stays NaN, unlike in Python's min
            self.highest = float(np.maximum(self.highest, image.max()))
        self.length += 1

    def to_tensor(self, channels: int, white: int) -> torch.Tensor:
        """Returns the images `(length, channels, image_size, image_size)` uint8, those of more bits scaled."""
        for place, values in self.unscaled.items():
            self.pixels[place] = np.rint(values * (255 / white)).clip(0, 255)
        pixels = torch.from_numpy(self.pixels[: self.length]).permute(0, 3, 1, 2)
        return pixels.expand(-1, channels, -1, -1).contiguous()


def to_tensors(buffers: Sequence[PixelBuffer]) -> list[torch.Tensor]:
    """Returns the images of each split; all are of color if one of them is.

    White is the least of 1, 255 and 65535 that no value of more than 8 bits exceeds in any split.

    Raises:
        PixelsError: If values are negative, not finite, or larger.
    """
    lowest = float(np.min([buffer.lowest for buffer in buffers]))
    highest = float(np.max([buffer.highest for buffer in buffers]))
    whites = [white for white in WHITES if 0 <= lowest <= highest <= white]
    if not whites:
        raise PixelsError(
            f"Pixel values go from {lowest:g} to {highest:g}, but those of more than 8 bits must go from 0 to at most "
            f"{', '.join(map(str, WHITES[:-1]))} or {WHITES[-1]}; scale them."
        )
    channels = max(buffer.pixels.shape[3] for buffer in buffers)
    return [buffer.to_tensor(channels, whites[0]) for buffer in buffers]
