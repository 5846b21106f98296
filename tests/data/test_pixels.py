"""Images of every mode and in every kind of column become the same uint8 tensors."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from pdiff_hf import load_images
from pdiff_hf.data.images import ImageDataError
from pdiff_hf.data.pixels import PixelsError, decode

SHADES = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17  # 0 … 255


def write(folder: Path, cells: Sequence, kind: object, split: str = "train") -> str:
    """Writes a parquet file of a column `image` and of labels 0 and 1 in turn."""
    features = datasets.Features({"image": kind, "label": datasets.Value("int64")})
    columns = {"image": list(cells), "label": [i % 2 for i in range(len(cells))]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def all_pixels(name: str, size: int = 4) -> torch.Tensor:
    """The images of all splits, each of which is in the data set more than once."""
    images = load_images(name, image_size=size)
    return torch.cat([images.train.pixels, images.validation.pixels, images.test.pixels])


def random_color(seed: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, len(mode)), dtype=np.uint8)
    return Image.frombytes(mode, (4, 4), values.tobytes())


def test_one_image_of_color_makes_all_of_color(tmp_path: Path):
    gray = [Image.fromarray(SHADES)] * 7
    colored = random_color(0)

    for place in range(8):  # of any row, and so in any of the three splits
        folder = tmp_path / str(place)
        folder.mkdir()
        pixels = all_pixels(write(folder, [*gray[:place], colored, *gray[place:]], datasets.Image()))

        assert pixels.shape == (8, 3, 4, 4)
        expected = torch.from_numpy(np.array(colored)).permute(2, 0, 1)
        assert sum(torch.equal(image, expected) for image in pixels) == 1
        assert sum(torch.equal(image, torch.from_numpy(SHADES).expand(3, -1, -1)) for image in pixels) == 7


def test_gray_images_of_all_modes_stay_gray(tmp_path: Path):
    image = Image.fromarray(SHADES)
    black_and_white = image.point(lambda value: 255 * (value > 127)).convert("1")

    pixels = all_pixels(write(tmp_path, [image, black_and_white, image.convert("LA")] * 3, datasets.Image()))

    assert pixels.shape == (9, 1, 4, 4)
    assert sorted(set(pixels.unique().tolist())) == SHADES.flatten().tolist()


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(SHADES.astype(np.uint16) * 257), "PNG"),  # I;16
        (Image.fromarray(SHADES.astype(np.uint16) * 257), "TIFF"),
        (Image.fromarray(SHADES.astype(np.int32) * 257), "TIFF"),  # I
        (Image.fromarray(SHADES.astype(np.int32)), "TIFF"),  # 8 bits in 32, as `datasets` encodes arrays of integers
        (Image.fromarray(SHADES.astype(np.float32) / 255), "TIFF"),  # F
        (Image.fromarray(SHADES.astype(np.float32)), "TIFF"),
        (Image.fromarray(SHADES.astype(np.float32) * 257), "TIFF"),
    ],
)
def test_values_of_more_than_8_bits_are_scaled(tmp_path: Path, image: Image.Image, kind: str):
    cells = [{"bytes": encoded(image, kind), "path": None}] * 5

    pixels = all_pixels(write(tmp_path, cells, datasets.Image()))

    assert torch.equal(pixels, torch.from_numpy(SHADES).expand(5, 1, 4, 4))


def test_images_of_8_and_16_bits_share_a_scale_over_all_splits(tmp_path: Path):
    dark = Image.fromarray(np.full((4, 4), 200, dtype=np.uint16))
    bright = Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16))
    write(tmp_path, [dark] * 4, datasets.Image())
    write(tmp_path, [Image.fromarray(SHADES)] * 2, datasets.Image(), "validation")

    images = load_images(write(tmp_path, [bright] * 2, datasets.Image(), "test"), image_size=4)

    assert images.train.pixels.unique().tolist() == [1]  # 200 / 65535 of 255
    assert images.test.pixels.unique().tolist() == [255]
    assert torch.equal(images.validation.pixels[0, 0], torch.from_numpy(SHADES))


@pytest.mark.parametrize(
    ("values", "scale"), [([[-1.0, 1.0]], "-1 to 1"), ([[0.0, 1e6]], "0 to 1e"), ([[float("nan"), 1.0]], "nan to nan")]
)
def test_values_on_no_known_scale_are_refused(tmp_path: Path, values: list, scale: str):
    folder = write(tmp_path, [values] * 6, datasets.List(datasets.List(datasets.Value("float32"))))

    with pytest.raises(ImageDataError, match=rf"Column 'image' of .*Pixel values go from {scale}.*1, 255 or 65535"):
        load_images(folder)


def test_transparent_parts_show_a_white_background(tmp_path: Path):
    hidden = Image.new("RGBA", (4, 4), (200, 0, 0, 0))  # the color behind the transparency does not matter
    hidden.putpixel((0, 0), (0, 100, 0, 255))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 100, 0, 200, 0, 0])
    palette.putpixel((0, 0), 0)
    gray = Image.new("LA", (4, 4), (30, 0))
    gray.putpixel((0, 0), (100, 255))
    marked = Image.new("L", (4, 4), 30)
    marked.putpixel((0, 0), 100)
    for name, image, options in (
        ("rgba", hidden, {}),
        ("palette", palette, {"transparency": 1}),
        ("la", gray, {}),
        ("gray", marked, {"transparency": 30}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)

        pixels = all_pixels(write(folder, [{"bytes": buffer.getvalue(), "path": None}] * 4, datasets.Image()))

        expected = [100] if name in ("la", "gray") else [0, 100, 0]
        assert pixels.shape == (4, len(expected), 4, 4)
        assert pixels[0, :, 0, 0].tolist() == expected
        assert pixels[:, :, 1:].unique().tolist() == [255]


@pytest.mark.parametrize("mode", ["P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes_of_color_become_those_that_pillow_makes_of_them(mode: str):
    image = random_color(1).convert(mode)

    assert np.array_equal(decode(image), np.asarray(image.convert("RGB")))


def test_half_transparent_colors_are_mixed_with_white():
    assert decode(Image.new("RGBA", (1, 1), (0, 0, 255, 51))).tolist() == [[[204, 204, 255]]]


GRAY_BYTES = encoded(Image.fromarray(SHADES))
STRUCT = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
NESTED = datasets.List(datasets.List(datasets.Value("uint8")))


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (GRAY_BYTES, datasets.Value("binary")),
        (
            {"bytes": GRAY_BYTES, "path": "1.png"},
            {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        ),
        ({"bytes": GRAY_BYTES}, {"bytes": datasets.Value("binary")}),
        (SHADES.tolist(), NESTED),
        ((SHADES / 255).tolist(), datasets.List(datasets.List(datasets.Value("float64")))),
        (SHADES, datasets.Array2D((4, 4), "uint8")),
        (SHADES[..., None], datasets.Array3D((4, 4, 1), "uint8")),
        (SHADES[None], datasets.Array3D((1, 4, 4), "int64")),
    ],
)
def test_images_are_read_from_bytes_structs_and_arrays(tmp_path: Path, cell: Any, kind: Any):
    pixels = all_pixels(write(tmp_path, [cell] * 5, kind))

    assert torch.equal(pixels, torch.from_numpy(SHADES).expand(5, 1, 4, 4))


@pytest.mark.parametrize("first", [True, False], ids=["channels first", "channels last"])
def test_arrays_of_three_channels_are_images_of_color(tmp_path: Path, first: bool):
    color = np.array(random_color(2))
    shape = (3, 4, 4) if first else (4, 4, 3)
    cell = np.moveaxis(color, 2, 0) if first else color

    pixels = all_pixels(write(tmp_path, [cell] * 5, datasets.Array3D(shape, "uint8")))

    assert torch.equal(pixels[3], torch.from_numpy(color).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (None, "is missing"),
        ({"bytes": None, "path": None}, "is missing"),
        (b"no image", "cannot be read"),
        (GRAY_BYTES[:60], "cannot be read"),
        ([1, 2, 3, 4], r"of the shape \(height, width\), .* but int64 of the shape \(4,\)"),
        ([[1, 2], [3]], "cannot be read"),
        ([[[0, 0]] * 4] * 4, r"int64 of the shape \(4, 4, 2\)"),
        ("picture.png", "is neither an encoded image"),
        (7, r"is neither .* of the shape \(\)"),
    ],
)
def test_what_is_no_image_is_refused(cell: Any, sentence: str):
    with pytest.raises(PixelsError, match=sentence):
        decode(cell)


@pytest.mark.parametrize("cell", [None, {"bytes": b"no image", "path": None}])
def test_image_that_is_missing_or_damaged_is_named_by_its_row(tmp_path: Path, cell: Any):
    fine = [Image.fromarray(SHADES)] * 4
    write(tmp_path, fine, datasets.Image())
    folder = write(tmp_path, [*fine[:2], cell, *fine], datasets.Image(), "validation")

    for limits in ({}, {"max_eval_images": 7}):  # in order, and permuted
        with pytest.raises(ImageDataError, match=r"Row 2 of the validation split of .*: the image in column 'image' "):
            load_images(folder, **limits)
