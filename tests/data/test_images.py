"""Images: three disjoint splits from every source, preprocessing that transformers shares, seeded augmentation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scripts import run
from sklearn.datasets import load_digits
from transformers import AutoImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from pdiff_hf import load_images
from pdiff_hf.data.augmentation import augment
from pdiff_hf.data.images import ImageDataError, ImageSplit
from pdiff_hf.data.inputs import BatchError, require_labels
from pdiff_hf.data.preprocessing import Preprocessing


def write_split(folder: Path, split: str, labels: Sequence, kind: object = None) -> None:
    """Writes a parquet file of random images; those of different splits differ."""
    rng = np.random.default_rng(len(labels))
    images = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in labels]
    kind = kind or datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"picture": datasets.Image(), "label": kind})
    rows = datasets.Dataset.from_dict({"picture": images, "label": list(labels)}, features=features)
    rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def pictures(*splits: ImageSplit) -> list[bytes]:
    return sorted(image.numpy().tobytes() for split in splits for image in split.pixels)


@pytest.mark.parametrize("split_seed", [0, 1])
def test_digits_are_partitioned_into_700_300_and_797(split_seed):
    digits = load_digits()

    images = load_images("digits", image_size=8, split_seed=split_seed)

    splits = (images.train, images.validation, images.test)
    everything = (torch.from_numpy(digits.images)[:, None] * 255 / 16).round().to(torch.uint8)
    assert [len(split) for split in splits] == [700, 300, 797]
    assert pictures(*splits) == pictures(ImageSplit(everything, torch.from_numpy(digits.target)))
    assert images.label_names == [str(digit) for digit in range(10)]
    pixel_values = images.preprocessing(images.train.pixels)
    assert pixel_values.shape == (700, 1, 8, 8)
    assert abs(float(pixel_values.mean())) < 1e-3
    assert abs(float(pixel_values.std()) - 1) < 1e-3


def test_images_are_split_by_the_seed_alone():
    first, again, other = (load_images("digits", image_size=6, split_seed=seed) for seed in (3, 3, 4))
    few = load_images("digits", image_size=6, split_seed=3, max_train_images=20, max_eval_images=9)

    for split, count in {"train": 20, "validation": 9, "test": 9}.items():
        assert torch.equal(getattr(first, split).pixels, getattr(again, split).pixels)
        assert pictures(getattr(first, split)) != pictures(getattr(other, split))
        assert torch.equal(getattr(few, split).labels, getattr(first, split).labels[:count])


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"train": 20}, [16, 2, 2]),
        ({"train": 20, "test": 4}, [18, 2, 4]),
        ({"train": 20, "validation": 4}, [18, 2, 4]),  # serves as test
        ({"train": 20, "validation": 6, "test": 4}, [20, 6, 4]),
    ],
)
def test_what_a_folder_lacks_is_cut_off_from_its_train_split(tmp_path, there, expected):
    for split, count in there.items():
        write_split(tmp_path, split, [0, 1] * (count // 2))

    images = load_images(str(tmp_path), image_size=6)

    splits = (images.train, images.validation, images.test)
    assert [len(split) for split in splits] == expected
    assert len(set(pictures(*splits))) == sum(there.values())
    assert images.label_names == ["cat", "dog"]
    assert images.train.labels.dtype == torch.int64


def test_image_folder_is_read(tmp_path):
    for i, animal in enumerate(["cat", "dog"] * 4):
        (tmp_path / "train" / animal).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 7), (20 * i, 0, 0)).save(tmp_path / "train" / animal / f"{i}.png")

    images = load_images(str(tmp_path), image_size=4)

    assert [len(split) for split in (images.train, images.validation, images.test)] == [6, 1, 1]
    assert images.label_names == ["cat", "dog"]


def test_labels_that_are_text_are_numbered_in_sorted_order(tmp_path):
    write_split(tmp_path, "train", ["dog", "cat", "eel", "cat"] * 3, kind=datasets.Value("string"))
    write_split(tmp_path, "validation", ["eel", "dog"], kind=datasets.Value("string"))
    write_split(tmp_path, "test", ["cat", "eel"], kind=datasets.Value("string"))

    images = load_images(str(tmp_path), image_size=4)

    assert images.label_names == ["cat", "dog", "eel"]
    assert sorted(images.train.labels.tolist()) == [0] * 6 + [1] * 3 + [2] * 3
    assert images.validation.labels.tolist() == [2, 1]  # in the order of the file
    assert images.test.labels.tolist() == [0, 2]


def test_text_that_is_numbers_is_sorted_as_numbers(tmp_path):
    write_split(tmp_path, "train", [str(number) for number in range(12)] * 3, kind=datasets.Value("string"))

    assert load_images(str(tmp_path), image_size=4).label_names == [str(number) for number in range(12)]


def test_text_that_the_train_split_lacks_is_refused(tmp_path):
    write_split(tmp_path, "train", ["cat", "dog"] * 5, kind=datasets.Value("string"))
    write_split(tmp_path, "test", ["cat", "eel"], kind=datasets.Value("string"))

    with pytest.raises(ImageDataError, match=r"'eel' is none of the 2 classes of the train split \('cat', 'dog'\)"):
        load_images(str(tmp_path), image_size=4)


def test_one_parquet_file_is_read_as_a_train_split(tmp_path):
    write_split(tmp_path, "train", ["cat", "dog"] * 10, kind=datasets.Value("string"))
    (file,) = tmp_path.glob("**/*.parquet")

    images = load_images(str(file), image_size=4)

    assert [len(split) for split in (images.train, images.validation, images.test)] == [16, 2, 2]
    assert images.label_names == ["cat", "dog"]


def test_a_file_that_holds_no_images_is_named(tmp_path):
    (tmp_path / "images.txt").write_text("cat\n")

    with pytest.raises(ImageDataError, match=r"images\.txt': it is a file that cannot be read.* a parquet file"):
        load_images(str(tmp_path / "images.txt"))


@pytest.mark.parametrize(
    ("split", "labels", "kind", "message"),
    [
        ("train", [1] * 10, None, r"All 8 train images .* have label \[1\]; at least two classes"),
        ("train", [0.5] * 10, datasets.Value("float32"), r"have label \[0\.5\]; .*two values"),
        ("train", [0.5, float("nan")] * 5, datasets.Value("float32"), "'label' does not hold labels: .* like"),
        ("train", ["cat", None] * 4, datasets.Value("string"), r"None is none of the 1 classes .* \('cat'\)"),
        (
            "train",
            [0, None] * 4,
            datasets.Value("int64"),
            "In the train split of .* not hold labels: .*like None",
        ),
        ("train", [0, -1] * 4, datasets.Value("int8"), "whole numbers from 0, .* like -1"),  # -1: unlabeled
        ("test", [0, 1], None, r"has the splits \['test'\], but a 'train' split is needed"),
        (None, [], None, "is a folder without readable data files"),
    ],
)
def test_images_that_cannot_be_learned_from_are_refused(tmp_path, split, labels, kind, message):
    if split is not None:
        write_split(tmp_path, split, labels, kind=kind)

    with pytest.raises(ImageDataError, match=message):
        load_images(str(tmp_path))


def test_missing_folders_and_columns_are_named(tmp_path):
    with pytest.raises(ImageDataError, match=r"No images were found under .*nowhere': it is not a folder here"):
        load_images(str(tmp_path / "nowhere"))
    rows = datasets.Dataset.from_dict({"image": [Image.new("L", (4, 4))], "kind": ["cat"]})
    rows.to_parquet(tmp_path / "train-00000-of-00001.parquet")

    with pytest.raises(ImageDataError, match=r"No ClassLabel column among \['image', 'kind'\].*--label_column"):
        load_images(str(tmp_path))


def test_columns_that_do_not_exist_are_refused_with_those_that_do(tmp_path):
    for split in ("train", "test"):
        write_split(tmp_path, split, [0, 1] * 4)
    folder = str(tmp_path)

    with pytest.raises(ImageDataError, match=r"no column 'img' in 'digits', .*\['image', 'label'\].*--image_column"):
        load_images("digits", image_column="img")
    with pytest.raises(ImageDataError, match=r"no column 'class' in 'digits', .*--label_column"):
        load_images("digits", label_column="class")
    with pytest.raises(ImageDataError, match=r"no column 'img' in the train split of .*\['label', 'picture'\]"):
        load_images(folder, image_column="img")
    with pytest.raises(ImageDataError, match=r"no column 'class' in the train split of .*\['label', 'picture'\]"):
        load_images(folder, label_column="class")
    with pytest.raises(ImageDataError, match=r"Row 0 of the test split .* column 'label' is neither an encoded image"):
        load_images(folder, image_column="label")
    with pytest.raises(ImageDataError, match=r"test split of .* 'picture' does not hold labels: .{,200}$"):
        load_images(folder, label_column="picture")
    assert len(load_images("digits", image_column="image", label_column="label").train) == 700
    assert len(load_images(folder, image_column="picture", label_column="label").train) == 7


@pytest.mark.parametrize("script", ["collect_trajectory", "collect_runs"])
def test_scripts_refuse_wrong_columns_before_they_train(script, tmp_path):
    for flag in ("--image_column", "--label_column"):
        with pytest.raises(ImageDataError, match=f"There is no column 'wrong' in 'digits', .*{flag}"):
            run(script, "--dataset_name", "digits", flag, "wrong", "--output_dir", tmp_path / "zoo")

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["validation", "test"])
def test_class_that_the_train_split_lacks_is_refused(tmp_path, split):
    kind = datasets.Value("int64")
    for name in ("train", "validation", "test"):
        write_split(tmp_path, name, [0, 1, 2] if name == split else [0, 1] * 4, kind=kind)

    with pytest.raises(
        ImageDataError, match=f"The {split} split has the label 2, but there are only 2 classes, 0 to 1"
    ):
        load_images(str(tmp_path))


def test_named_class_may_be_missing_from_the_train_split(tmp_path):
    kind = datasets.ClassLabel(names=["cat", "dog", "horse"])
    write_split(tmp_path, "train", [0, 1] * 4, kind=kind)
    write_split(tmp_path, "test", [0, 1, 2], kind=kind)

    images = load_images(str(tmp_path))

    assert images.label_names == ["cat", "dog", "horse"]


def test_splits_with_classes_and_values_are_refused():
    classes, values = torch.zeros(3, dtype=torch.int64), torch.zeros(3)

    with pytest.raises(BatchError, match=r"labels of \['test'\] are floating-point numbers, but those of \['train'\]"):
        require_labels({"train": classes, "test": values}, 1)


def test_damaged_file_is_reported_with_its_cause_in_one_line(tmp_path):
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1 no table PAR1")

    with pytest.raises(ImageDataError, match=r"could not load it \(.*[Pp]arquet.*\)\. Pass") as refused:
        load_images(str(tmp_path))

    assert "\n" not in str(refused.value)


@pytest.fixture(params=[1, 3], ids=["gray", "color"])
def preprocessing_and_images(request: pytest.FixtureRequest) -> tuple[Preprocessing, torch.Tensor, list[Image.Image]]:
    """A preprocessing, and images as a tensor and as transformers takes them."""
    mean, std = (0.1, 0.2, 0.3)[: request.param], (0.4, 0.5, 0.6)[: request.param]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (3, request.param, 6, 6), generator=generator, dtype=torch.uint8)
    images = [Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()) for image in pixels]
    return Preprocessing(6, mean, std), pixels, images


def test_preprocessing_is_what_transformers_computes_and_the_auto_class_loads(preprocessing_and_images, tmp_path):
    preprocessing, pixels, images = preprocessing_and_images
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing.to_dict()))

    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing
    for theirs in (ViTImageProcessorPil(**preprocessing.to_dict()), AutoImageProcessor.from_pretrained(tmp_path)):
        expected = theirs(images, return_tensors="pt")["pixel_values"]
        assert torch.allclose(preprocessing(pixels), expected, atol=1e-5)


def test_preprocessing_that_is_incomplete_is_refused():
    preprocessing = Preprocessing(6, (0.2,), (0.5,))
    stored = preprocessing.to_dict()

    with pytest.raises(ValueError, match="normalizes images, but its configuration has no image_std"):
        Preprocessing.from_dict({name: value for name, value in stored.items() if name != "image_std"})
    assert Preprocessing.from_dict({**stored, "resample": None}) == preprocessing


batches = st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(2, 6), st.integers(2, 6))


@given(
    shape=batches,
    seed=st.integers(0, 2**31),
    shift=st.integers(0, 3),
    flip=st.booleans(),
    noise=st.sampled_from([0.0, 0.5]),
)
def test_augmentation_depends_on_the_generator_alone(shape, seed, shift, flip, noise):
    pixel_values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = pixel_values.clone()

    first, again = (augment(pixel_values, torch.Generator().manual_seed(seed), shift, flip, noise) for _ in range(2))

    assert first.shape == shape
    assert torch.equal(first, pixel_values) or shift or flip or noise
    assert torch.equal(first, again)
    assert torch.equal(pixel_values, before)


def test_images_are_shifted_whole_by_at_most_the_limit():
    center = torch.full((200, 2, 9, 9), -0.5)
    center[:, :, 4, 4] = 1.0  # one bright pixel in each channel

    shifted = augment(center, torch.Generator().manual_seed(0), shift=2)

    positions = (shifted[:, 0] > 0).nonzero()[:, 1:]  # (200, 2)
    assert torch.equal(shifted[:, 0], shifted[:, 1])
    assert set(shifted.unique().tolist()) == {-0.5, 1.0}  # filled with the darkest value
    assert len(positions) == 200
    assert len(positions.unique(dim=0)) == 25  # every shift of -2 … 2 in both directions
    assert positions.min() == 2
    assert positions.max() == 6


def test_flip_mirrors_about_half_of_the_images():
    pixel_values = torch.arange(4.0).expand(400, 1, 2, 4)

    flipped = augment(pixel_values, torch.Generator().manual_seed(0), flip=True)

    mirrored = (flipped == pixel_values.flip(-1)).all((1, 2, 3))
    assert bool((mirrored | (flipped == pixel_values).all((1, 2, 3))).all())
    assert 150 < int(mirrored.sum()) < 250


def test_noise_has_the_standard_deviation_asked_for():
    noise = augment(torch.zeros(100, 1, 10, 10), torch.Generator().manual_seed(0), noise=0.3)

    assert abs(float(noise.std()) - 0.3) < 0.01
