"""A trained classifier as the target: its classes, its preprocessing and its head are those it was trained with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scripts import run
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from pdiff_hf import CollectionSettings, MLPConfig, MLPForImageClassification, load_checkpoints, load_images
from pdiff_hf.data.images import ImageDataError
from pdiff_hf.data.preprocessing import Preprocessing
from pdiff_hf.loops import seeded
from pdiff_hf.zoo.settings import collection_of, load_images_of, load_images_of_zoo, load_target

SIZE = 6
NAMES = ["Deep_Blue", "green", "red"]  # of the data set
OWN = {0: "red", 1: "deep blue", 2: "green"}  # of the network
OWN_PREPROCESSING = Preprocessing(SIZE, (0.2, 0.3, 0.4), (0.5, 0.4, 0.3))
HUES = {"red": 0, "green": 1, "blue": 2}  # channels


def hue_of(name: str) -> int:
    return next(channel for hue, channel in HUES.items() if hue in name.lower())


def write_colors(folder: Path, names: Sequence[str] = NAMES, kind: Any = None, split: str = "train") -> list:
    """Writes noisy images whose brightest channel is their class; returns them with the names of their classes."""
    rng = np.random.default_rng(len(split))
    labels = [i % len(names) for i in range(150)]
    pixels = [rng.integers(0, 160, (SIZE + 2, SIZE + 2, 3), dtype=np.uint8) for _ in labels]
    for image, label in zip(pixels, labels, strict=True):
        image[..., hue_of(names[label])] += 25
    images = [Image.fromarray(image) for image in pixels]
    features = datasets.Features({"image": datasets.Image(), "label": kind or datasets.ClassLabel(names=list(names))})
    folder.mkdir(exist_ok=True)
    rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return [(image, names[label]) for image, label in zip(images, labels, strict=True)]


def train(names: dict[int, str], seed: int = 0) -> PreTrainedModel:
    """A network that finds the brightest channel of most images, and needs its own preprocessing for that."""
    config = MLPConfig(image_size=SIZE, num_channels=3, hidden_sizes=[6], id2label=names)
    with seeded(seed):
        model = MLPForImageClassification(config)
    for parameter in model.parameters():
        parameter.data.zero_()
    pixels = SIZE * SIZE
    for channel in range(3):
        std, mean = OWN_PREPROCESSING.std[channel], OWN_PREPROCESSING.mean[channel]
        model.layers[0].weight.data[channel, channel * pixels : (channel + 1) * pixels] = std / pixels
        model.layers[0].bias.data[channel] = mean
    for output, name in names.items():
        model.classifier.weight.data[output, hue_of(name)] = 100.0
    return model.eval()


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of a trained network, with its preprocessing."""
    train(OWN).save_pretrained(tmp_path / "trained")
    write_preprocessing(tmp_path / "trained", OWN_PREPROCESSING.to_dict())
    return tmp_path / "trained"


def write_preprocessing(folder: Path, values: dict[str, Any]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


@torch.no_grad()
def own_accuracy(folder: Path, images: list) -> float:
    """What transformers alone makes of the network, by the names of its classes."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    pixel_values = processor([image for image, _ in images], return_tensors="pt")["pixel_values"]
    predicted = [model.config.id2label[i] for i in model(pixel_values).logits.argmax(-1).tolist()]
    right = [hue_of(one) == hue_of(other) for one, (_, other) in zip(predicted, images, strict=True)]
    return sum(right) / len(right)


AS_IT_IS = {
    "collect_trajectory": [
        *("--target_train_steps", "0", "--learning_rate", "0", "--burn_in_steps", "0", "--num_branches", "0"),
        *("--num_checkpoints", "2", "--num_validation_checkpoints", "0", "--num_test_checkpoints", "2"),
        *("--num_blocks", "1", "--gap", "0", "--subset", "head"),
    ],
    "collect_runs": [
        *("--target_train_steps", "1", "--target_learning_rate", "0", "--shared_initialization", "--num_runs", "2"),
        *("--num_validation_runs", "0", "--num_test_runs", "2", "--subset", "full"),
    ],
}


@pytest.mark.parametrize("script", AS_IT_IS)
def test_zoo_of_a_trained_network_is_as_accurate_as_the_network(script: str, trained: Path, tmp_path: Path):
    write_colors(tmp_path / "colors")
    validation = write_colors(tmp_path / "colors", split="validation")
    write_colors(tmp_path / "colors", split="test")
    arguments = ["--model_name_or_path", trained, "--dataset_name", tmp_path / "colors", "--output_dir"]

    run(script, *arguments, tmp_path / "zoo", *AS_IT_IS[script])

    zoo = load_checkpoints(tmp_path / "zoo")
    accuracy = own_accuracy(trained, validation)
    assert accuracy > 0.8
    assert zoo.zoo.validation_score == pytest.approx([accuracy] * 2)
    assert Preprocessing.from_dict(zoo.preprocessing) == OWN_PREPROCESSING
    assert zoo.target_model.config.id2label == OWN
    assert collection_of(zoo).image_size == SIZE
    assert f"at {SIZE} pixels" in (tmp_path / "zoo" / "README.md").read_text(encoding="utf-8")
    images = load_images_of_zoo(zoo)  # what the audit reads
    with torch.no_grad():
        predicted = zoo.target_model(images.inputs(images.validation)).logits.argmax(-1)
    assert (predicted == images.validation.labels).double().mean() == pytest.approx(accuracy)


def settings_of(folder: Path, trained: Path, **changes: Any) -> CollectionSettings:
    return dataclasses.replace(
        CollectionSettings(dataset_name=str(folder), model_name_or_path=str(trained), seed=5), **changes
    )


def test_trained_network_is_loaded_unchanged(trained: Path, tmp_path: Path):
    write_colors(tmp_path / "colors")
    settings = settings_of(tmp_path / "colors", trained)

    images = load_images_of(settings)
    model = load_target(settings, images)

    assert images.label_names == ["red", "deep blue", "green"]
    for name, tensor in train(OWN).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_images_in_another_order_are_refused(trained: Path, tmp_path: Path):
    write_colors(tmp_path / "colors")
    images = load_images(str(tmp_path / "colors"), image_size=SIZE)

    with pytest.raises(ValueError, match=r"another order \('Deep_Blue', .*load the images with load_images_of"):
        load_target(settings_of(tmp_path / "colors", trained), images)


def test_some_of_the_classes_are_found_among_the_outputs(trained: Path, tmp_path: Path):
    write_colors(tmp_path / "colors", ["green", "red"])
    settings = settings_of(tmp_path / "colors", trained)

    images = load_images_of(settings)

    assert images.label_names == list(OWN.values())
    assert sorted(images.train.labels.unique().tolist()) == [0, 2]
    assert load_target(settings, images).config.id2label == OWN


def test_other_classes_are_refused_unless_a_new_head_is_asked_for(trained: Path, tmp_path: Path):
    write_colors(tmp_path / "colors", ["red", "green", "light blue"])
    settings = settings_of(tmp_path / "colors", trained)
    images = load_images_of(settings)

    with pytest.raises(ImageDataError, match=r"classes 'light blue', which are not among .*'deep blue'.*--new_head"):
        load_target(settings, images)
    changed = dataclasses.replace(settings, new_head=True)
    model, again = (load_target(changed, load_images_of(changed)) for _ in range(2))

    before = train(OWN).state_dict()
    different = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert different == ["classifier.weight"]  # its bias is zero at the start too
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    assert model.config.id2label == {0: "red", 1: "green", 2: "light blue"}


def test_another_number_of_classes_gets_a_new_head_of_the_seed(trained: Path, tmp_path: Path):
    write_colors(tmp_path / "colors", ["red", "light green", "dark green", "blue"])
    settings = settings_of(tmp_path / "colors", trained)
    images = load_images_of(settings)

    model, again = load_target(settings, images), load_target(settings, images)

    assert model.config.id2label == {0: "red", 1: "light green", 2: "dark green", 3: "blue"}
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    assert torch.equal(model.layers[0].weight, train(OWN).layers[0].weight)


@pytest.mark.parametrize(
    ("own", "kind", "expected"),
    [
        ({0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, None, NAMES),
        (OWN, datasets.Value("int64"), list(OWN.values())),
    ],
)
def test_classes_without_names_are_the_outputs_in_their_order(own: dict, kind: Any, expected: list, tmp_path: Path):
    write_colors(tmp_path / "colors", kind=kind)
    model = train(OWN)
    model.config.id2label = own
    model.save_pretrained(tmp_path / "trained")
    settings = settings_of(tmp_path / "colors", tmp_path / "trained")

    images = load_images_of(settings)
    loaded = load_target(settings, images)

    assert list(loaded.config.id2label.values()) == expected
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    assert images.train.pixels.shape[1:] == (3, SIZE, SIZE)  # of the configuration; nothing else states it
    assert abs(float(images.inputs(images.train).mean())) < 1e-3  # measured


def test_values_need_a_new_head(trained: Path, tmp_path: Path):
    write_colors(tmp_path / "colors", kind=datasets.Value("float32"))
    settings = settings_of(tmp_path / "colors", trained)

    with pytest.raises(ValueError, match=r"floating-point numbers, but .*classifies 3 classes; .*--new_head"):
        load_target(settings, load_images_of(settings))
    changed = dataclasses.replace(settings, new_head=True)
    model = load_target(changed, load_images_of(changed))
    model.save_pretrained(tmp_path / "values")

    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    # and a network that predicts a value, whose labels are classes, becomes a classifier
    write_colors(tmp_path / "colors")
    back = dataclasses.replace(settings, model_name_or_path=str(tmp_path / "values"))
    assert load_target(back, load_images_of(back)).config.problem_type == "single_label_classification"


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"size": {"shortest_edge": 9}, "image_processor_type": "ConvNextImageProcessor"}, (9, 0.5, 0.5)),
        (
            {"size": 12, "do_center_crop": True, "crop_size": 10, "image_processor_type": "DeiTImageProcessor"},
            (10, 0.5, 0.5),
        ),
        (
            {"size": 7, "image_mean": 0.25, "image_std": 0.75, "image_processor_type": "ViTImageProcessor"},
            (7, 0.25, 0.75),
        ),
        ({"size": 7, "do_normalize": False, "image_processor_type": "ViTImageProcessor"}, (7, 0.0, 1.0)),
        ({"size": 7, "do_rescale": False, "image_processor_type": "ViTImageProcessor"}, (7, 0.5 / 255, 0.5 / 255)),
        ({"size": 7, "rescale_factor": 2 / 255, "image_processor_type": "ViTImageProcessor"}, (7, 0.25, 0.25)),
    ],
)
def test_preprocessing_of_other_processors_is_taken(trained: Path, tmp_path: Path, stored: dict, expected: tuple):
    write_colors(tmp_path / "colors")
    write_preprocessing(trained, stored)

    preprocessing = load_images_of(settings_of(tmp_path / "colors", trained)).preprocessing

    size, mean, std = expected
    assert preprocessing.image_size == size
    assert preprocessing.mean == pytest.approx([mean] * 3)
    assert preprocessing.std == pytest.approx([std] * 3)
    pixels = torch.arange(256, dtype=torch.uint8)[: size * size].view(1, 1, size, size).expand(1, 3, size, size)
    theirs = AutoImageProcessor.from_pretrained(trained, do_resize=False, do_center_crop=False)
    assert torch.allclose(preprocessing(pixels), theirs(pixels, return_tensors="pt")["pixel_values"], atol=1e-5)


def test_size_is_the_one_that_is_asked_for(trained: Path, tmp_path: Path):
    write_colors(tmp_path / "colors")

    images = load_images_of(settings_of(tmp_path / "colors", trained, image_size=9))

    assert images.preprocessing == dataclasses.replace(OWN_PREPROCESSING, image_size=9)
    assert images.train.pixels.shape[2:] == (9, 9)


def test_preprocessing_that_does_not_fit_is_refused(trained: Path, tmp_path: Path):
    write_colors(tmp_path / "colors")
    settings = settings_of(tmp_path / "colors", trained)
    with pytest.raises(ImageDataError, match=r"data set have 1 channels, but those that the network .* had 3"):
        load_images_of(dataclasses.replace(settings, dataset_name="digits"))

    write_preprocessing(trained, {"size": {"height": 4, "width": 8}, "image_processor_type": "ViTImageProcessor"})
    with pytest.raises(ValueError, match=r"'height': 4, 'width': 8.*square; state its height with --image_size"):
        load_images_of(settings)
    (trained / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config.json of .* is not one of an image processor"):
        load_images_of(settings)


def test_images_of_other_classes_than_those_of_a_zoo_are_refused(trained: Path, tmp_path: Path):
    write_colors(tmp_path / "colors")
    arguments = ["--model_name_or_path", trained, "--dataset_name", tmp_path / "colors"]
    run("collect_trajectory", *arguments, *AS_IT_IS["collect_trajectory"], "--output_dir", tmp_path / "zoo")
    zoo = load_checkpoints(tmp_path / "zoo")
    write_colors(tmp_path / "elsewhere", ["green", "red", "deep blue"])
    write_colors(tmp_path / "other", ["green", "red", "light blue"])

    assert load_images_of_zoo(zoo, str(tmp_path / "elsewhere")).label_names == list(OWN.values())
    with pytest.raises(ImageDataError, match=r"classes 'light blue', which are not among .*--dataset_name"):
        load_images_of_zoo(zoo, str(tmp_path / "other"))
