"""From a drawing or an image to what drawn networks predict of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image, ImageOps

from pdiff_hf import DrawnNetworks, EnsemblePrediction, PDiffPipeline, PDiffPipelineOutput
from pdiff_hf.data.pixels import PixelBuffer, PixelsError, decode, to_tensors
from pdiff_hf.data.preprocessing import Preprocessing
from pdiff_hf.hub.safety import broken_files, printable

MOST_NETWORKS = 50
LARGEST_SIZE = 1024  # of the images that networks take
LUMA = (0.299, 0.587, 0.114)  # red, green and blue in the gray of ITU-R 601, as Pillow has it
Inverting = Literal["automatic", "never", "always"]


@dataclass(frozen=True)
class Prediction:
    """What n networks predict of one image.

    Args:
        pixels: The image as the networks get it, before it is normalized: `(channels, size, size)` uint8.
        inverted: Whether that is its negative.
        probabilities: Of each network and class, `(n, classes)` float32.
        ensemble: The mean of these, and its uncertainty.
        classes: Names of the classes.
    """

    pixels: torch.Tensor
    inverted: bool
    probabilities: torch.Tensor
    ensemble: EnsemblePrediction
    classes: list[str]

    @property
    def answers(self) -> list[int]:
        """The class that each network finds most probable."""
        return self.probabilities.argmax(1).tolist()

    @property
    def agreement(self) -> int:
        """How many networks give the most frequent answer."""
        return max(map(self.answers.count, self.answers))


def draw_networks(
    pipe: PDiffPipeline,
    num_models: int,
    seed: int,
    condition: list[Any] | None = None,
    temperature: float = 1.0,
    guidance_scale: float | None = None,
    autoguidance_scale: float | None = None,
) -> DrawnNetworks:
    """Draws networks with the seeds `seed`, `seed + 1`, …: more of them leave the first ones as they are.

    Args:
        pipe: The generator.
        num_models: From 1 to `MOST_NETWORKS`.
        seed: A whole number of at least 0.
        condition: Names or numbers; not read by a generator without conditions.
        temperature: See `PDiffPipeline.__call__`.
        guidance_scale: Not read by a generator without conditions.
        autoguidance_scale: Not read by a generator without a guide.

    Raises:
        ValueError: If an argument does not fit, in a sentence that names it.
    """
    if not 1 <= num_models <= MOST_NETWORKS:
        raise ValueError(f"Between 1 and {MOST_NETWORKS} networks can be drawn here, but {num_models} were asked for.")
    if seed is None or not 0 <= seed < 2**53:
        raise ValueError(f"The seed must be a whole number from 0 to 2^53, but is {seed!r:.50}.")
    if pipe.conditions is not None and pipe.conditions.meaning.kind == "bits" and not condition:
        condition = [0.0] * pipe.conditions.meaning.dim  # none of the names, which a list of names cannot state
    out = pipe(
        int(num_models),
        generator=[torch.Generator().manual_seed(int(seed) + i) for i in range(int(num_models))],
        condition=None if pipe.conditions is None else condition,
        temperature=temperature,
        guidance_scale=None if pipe.conditions is None else guidance_scale,
        autoguidance_scale=None if pipe.guide is None else autoguidance_scale,
    )
    return cast(DrawnNetworks, cast(PDiffPipelineOutput, out).models)


def crop_drawing(drawing: Image.Image) -> Image.Image | None:
    """Returns the square around a dark drawing on white or transparent ground, gray; None if nothing is drawn."""
    array = decode(drawing)
    gray = Image.fromarray(array.squeeze(2) if array.shape[2] == 1 else array).convert("L")
    box = ImageOps.invert(gray).getbbox()
    if box is None:
        return None
    ink = gray.crop(box)
    side = max(ink.size)
    square = Image.new("L", (side, side), "white")
    square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return square


def as_pixels(image: Image.Image, preprocessing: Preprocessing, channels: int) -> torch.Tensor:
    """Returns an image of any size and mode as `(1, channels, image_size, image_size)` uint8.

    It is resized as the training images were. Color becomes gray for networks of one channel, and gray is repeated for
    networks of three. Transparent parts are white.

    Raises:
        PixelsError: If the image cannot be read, or networks take none of one or three channels, or larger ones.
    """
    if channels not in (1, 3):
        raise PixelsError(f"These networks take images of {channels} channels; this page shows them 1 (gray) or 3.")
    if not 1 <= preprocessing.image_size <= LARGEST_SIZE:
        raise PixelsError(f"Networks of this page take up to {LARGEST_SIZE} pixels, not {preprocessing.image_size}.")
    buffer = PixelBuffer(1, preprocessing.image_size, preprocessing.resample)
    buffer.append(decode(image))
    pixels = to_tensors([buffer])[0]  # (1, 1 or 3, image_size, image_size)
    if channels < pixels.shape[1]:
        pixels = torch.einsum("nchw,c->nhw", pixels.float(), torch.tensor(LUMA))[:, None].round().byte()
    return pixels.expand(-1, channels, -1, -1)


def should_invert(pixels: torch.Tensor, preprocessing: Preprocessing) -> bool:
    """Tells whether a gray image must be inverted to look like the training images; color is never inverted.

    Training images count as light on dark if their mean, which the preprocessing states, is at most one half. An
    image counts as dark on light if the median of its border is more than one half.

    Args:
        pixels: `(1, channels, size, size)` uint8.
        preprocessing: That of the networks.
    """
    if pixels.shape[1] != 1:
        return False
    border = torch.cat([pixels[..., 0, :], pixels[..., -1, :], pixels[..., 0], pixels[..., -1]], dim=-1)
    is_light = border.float().median().item() > 127.5
    return is_light != (float(np.mean(preprocessing.mean)) > 0.5)


def predict(networks: DrawnNetworks, image: Image.Image, inverting: Inverting = "automatic") -> Prediction:
    """Returns what all drawn networks predict of one image, after their own preprocessing.

    Raises:
        PixelsError: If the image cannot be read, or the networks are not fed images, or other ones than they state.
        BrokenFileError: If their preprocessing is damaged.
        ValueError: If the networks predict values (regression).
        StatisticsError: If each network needs BatchNorm statistics of its own.
    """
    if not networks.preprocessing:
        raise PixelsError("These networks are not fed images, or their preprocessing is not known; draw others.")
    with broken_files("The preprocessing of these networks"):
        preprocessing = Preprocessing.from_dict(networks.preprocessing)
    config = networks.target_model.config
    pixels = as_pixels(image, preprocessing, getattr(config, "num_channels", len(preprocessing.mean)))
    inverted = inverting == "always" or (inverting == "automatic" and should_invert(pixels, preprocessing))
    pixels = 255 - pixels if inverted else pixels
    inputs = preprocessing(pixels)  # (1, channels, size, size) float32
    try:
        ensemble = networks.ensemble(inputs)
        probabilities = networks.logits(inputs)[:, 0].softmax(-1)  # (n, classes)
    except RuntimeError as error:  # of torch, whose shapes do not fit
        raise PixelsError(
            f"These networks do not take what their preprocessing makes of an image ({error})."
        ) from error
    classes = [printable(config.id2label.get(i, i)) for i in range(probabilities.shape[1])]
    return Prediction(pixels[0], inverted, probabilities, ensemble, classes)
