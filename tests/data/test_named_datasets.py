"""Data sets of the field by name; folders with the columns and splits that they have on the Hub stand in for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from pdiff_hf import CollectionSettings, load_images
from pdiff_hf.data.images import ImageDataError
from pdiff_hf.data.named_datasets import DATASETS
from pdiff_hf.zoo.settings import load_images_of

# Splits and their columns as they are on the Hub.
COLUMNS = {
    "mnist": ["image", "label"],
    "cifar10": ["img", "label"],
    "cifar100": ["img", "fine_label", "coarse_label"],
    "stl10": ["image", "label"],
    "flowers102": ["image", "label"],
    "pets": ["image", "label", "image_id", "label_cat_dog"],
    "food101": ["image", "label"],
    "imagenet-1k": ["image", "label"],
}
SPLITS = {
    "flowers102": {"train": 20, "validation": 12, "test": 16},
    "food101": {"train": 40, "validation": 16},
    "imagenet-1k": {"train": 40, "validation": 16, "test": 10},
}
TWO_SPLITS = {"train": 40, "test": 16}
CLASSES = [f"class {i}" for i in range(4)]


def write_stand_in(folder: Path, name: str) -> None:
    """Writes images each of which is of one shade, which no other of the data set has."""
    folder.mkdir(exist_ok=True)
    shade = 0
    for split, count in SPLITS.get(name, TWO_SPLITS).items():
        columns: dict[str, list] = {}
        features = {}
        for column in COLUMNS[name]:
            if column in ("image", "img"):
                shape = (8, 8) if name == "mnist" else (8, 8, 3)
                columns[column] = [Image.fromarray(np.full(shape, shade + i, dtype=np.uint8)) for i in range(count)]
                features[column] = datasets.Image()
            elif column == "image_id":
                columns[column], features[column] = [str(i) for i in range(count)], datasets.Value("string")
            elif name == "imagenet-1k" and split == "test":
                columns[column], features[column] = [-1] * count, datasets.ClassLabel(names=CLASSES)
            else:
                coarse = column not in ("label", "fine_label")
                columns[column] = [0 if coarse else i % 4 for i in range(count)]
                features[column] = datasets.ClassLabel(names=["one"] if coarse else CLASSES)
        shade += count
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture(params=DATASETS)
def named(request, tmp_path, monkeypatch) -> str:
    """Each data set of the table after the other, read from a folder."""
    write_stand_in(tmp_path / "stand-in", request.param)
    entry = dataclasses.replace(DATASETS[request.param], hub_id=str(tmp_path / "stand-in"))
    monkeypatch.setitem(DATASETS, request.param, entry)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # a stream's threads read a local file
    return request.param


def shades(split) -> set[int]:
    return set(split.pixels[:, 0, 0, 0].tolist())


def limits(name: str) -> dict[str, int]:
    return {"max_train_images": 30, "max_eval_images": 8} if DATASETS[name].streaming else {}


def test_name_gives_three_disjoint_splits_and_the_test_split_that_the_literature_reports(named):
    images = load_images(named, image_size=8, **limits(named))

    parts = [images.train, images.validation, images.test]
    assert images.label_names == CLASSES
    assert images.num_channels == (1 if named == "mnist" else 3)
    assert len(set.union(*map(shades, parts))) == sum(len(part) for part in parts)
    rows = SPLITS.get(named, TWO_SPLITS)
    first = {"train": 0, "validation": rows["train"], "test": rows["train"] + rows.get("validation", 0)}
    for part in parts:
        pixels = part.pixels[:, 0, 0, 0].long()
        starts = torch.tensor([max(start for start in first.values() if start <= pixel) for pixel in pixels.tolist()])
        assert torch.equal(part.labels, (pixels - starts) % 4)
    reported = "validation" if named in ("food101", "imagenet-1k") else "test"
    of_the_split = set(range(first[reported], first[reported] + rows[reported]))
    assert shades(images.test) <= of_the_split
    assert len(images.test) == (8 if DATASETS[named].streaming else rows[reported])
    assert not shades(images.validation) & of_the_split
    assert (len(images.validation) == 12) == (named == "flowers102")  # the only one with a validation split of its own


def test_fewer_images_are_chosen_by_the_seed(named):
    some, again, other = (
        load_images(named, image_size=8, max_train_images=10, max_eval_images=6, split_seed=seed) for seed in (3, 3, 4)
    )

    assert [len(some.train), len(some.test)] == [10, 6]
    assert 1 <= len(some.validation) <= 6
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(some, split).pixels, getattr(again, split).pixels)
    assert not torch.equal(some.test.pixels, other.test.pixels)
    assert len(some.train.labels.unique()) > 1


def test_stream_is_not_read_as_a_whole(tmp_path):
    with pytest.raises(ImageDataError, match=r"'imagenet-1k' is read as a stream.*--max_train_images, and"):
        load_images("imagenet-1k", max_train_images=100)


def test_folder_of_that_name_is_meant_if_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_stand_in(tmp_path / "cifar10", "pets")

    images = load_images_of(CollectionSettings(dataset_name="cifar10", image_size=8))

    assert len(images.test) == 16


def test_data_set_that_cannot_be_reached_is_named_in_a_sentence():
    with pytest.raises(ImageDataError, match=r"'cifar10'.*stands for 'uoft-cs/cifar10'.*could not load it"):
        load_images("cifar10")
