"""Corrupted images, and images of no known class."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch

from pdiff_hf import ImageData, load_images
from pdiff_hf.data.images import ImageSplit
from pdiff_hf.evaluation.shifts import CORRUPTIONS, corrupt, load_outliers, make_outliers


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits", image_size=8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_grow_with_their_severity_and_are_the_same_each_time(kind: str, digits: ImageData):
    pixels = digits.test.pixels[:50]

    corrupted = [corrupt(pixels, kind, severity) for severity in range(1, 6)]

    distances = [(images.float() - pixels.float()).abs().mean().item() for images in corrupted]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert all((images.shape, images.dtype) == (pixels.shape, torch.uint8) for images in corrupted)
    assert torch.equal(corrupted[2], corrupt(pixels, kind, 3))


def test_made_outliers_keep_gray_levels_or_none_of_the_image(digits: ImageData):
    pixels = digits.test.pixels[:20].expand(-1, 3, -1, -1)

    made = make_outliers(pixels)

    assert torch.equal(made["inverted"].int() + pixels, torch.full(pixels.shape, 255))
    shuffled = made["shuffled pixels"]
    assert torch.equal(shuffled.flatten(1).sort().values, pixels.flatten(1).sort().values)
    assert torch.equal(shuffled[:, 0], shuffled[:, 2])  # a pixel keeps its color
    assert not torch.equal(shuffled, pixels)
    assert 120 < made["uniform noise"].float().mean() < 135


def test_outliers_of_another_data_set_take_the_channels_of_the_images(digits: ImageData, tmp_path: Path):
    colored = [{"image": torch.randint(256, (9, 7, 3)).byte().numpy(), "label": i % 2} for i in range(30)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(2)})
    datasets.Dataset.from_list(colored, features=features).to_parquet(tmp_path / "colored.parquet")
    in_color = ImageData(
        **{
            name: ImageSplit(split.pixels[:40].expand(-1, 3, -1, -1), split.labels[:40])
            for name, split in {"train": digits.train, "validation": digits.validation, "test": digits.test}.items()
        },
        label_names=digits.label_names,
        preprocessing=digits.preprocessing,
    )

    ((name, gray),) = load_outliers(str(tmp_path / "colored.parquet"), digits).items()
    (of_digits,) = load_outliers("digits", in_color).values()

    assert name.endswith("colored.parquet")
    assert gray.shape[1:] == (1, 8, 8)
    assert of_digits.shape == (40, 3, 8, 8)
