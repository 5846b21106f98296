"""Zoos of networks that predict a value: from images with floating-point labels to scored checkpoints."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scripts import run
from transformers import PreTrainedModel

from pdiff_hf import (
    MultiRunSettings,
    TrajectorySettings,
    build_network,
    collect,
    collect_runs,
    load_checkpoints,
    load_images,
)
from pdiff_hf.zoo.settings import collection_of, load_images_of

FEW_CHECKPOINTS = [
    *("--subset", "head", "--burn_in_steps", "0", "--num_branches", "0", "--num_blocks", "2", "--gap", "1"),
    *("--num_checkpoints", "8", "--num_validation_checkpoints", "2", "--num_test_checkpoints", "2"),
]
FEW_RUNS = ["--subset", "full", "--num_runs", "4", "--num_validation_runs", "0", "--num_test_runs", "2"]


@pytest.fixture
def brightness(tmp_path: Path) -> Path:
    """A folder of noisy gray images, whose label is their mean brightness, from about -1 to 1."""
    rng = np.random.default_rng(0)
    shades = rng.uniform(40, 215, 200)
    pixels = [np.clip(rng.normal(shade, 30, (6, 6)), 0, 255).astype(np.uint8) for shade in shades]
    columns = {"image": [Image.fromarray(image) for image in pixels], "label": [p.mean() / 127.5 - 1 for p in pixels]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("float64")})
    rows = datasets.Dataset.from_dict(columns, features=features)
    (tmp_path / "images").mkdir()
    rows.to_parquet(tmp_path / "images" / "train-00000-of-00001.parquet")
    return tmp_path / "images"


@pytest.mark.parametrize(("script", "flags"), [("collect_trajectory", FEW_CHECKPOINTS), ("collect_runs", FEW_RUNS)])
def test_a_zoo_of_regressions_is_collected_and_scored(brightness: Path, tmp_path: Path, script: str, flags: list[str]):
    network = ["--model_type", "pdiff_mlp", "--model_config", '{"hidden_sizes": [16]}', "--image_size", "6"]
    steps = ["--target_train_steps", "400", "--train_batch_size", "32", "--target_learning_rate", "0.02"]
    run(script, "--dataset_name", brightness, *network, *steps, *flags, "--output_dir", tmp_path / "zoo")

    zoo = load_checkpoints(tmp_path / "zoo")
    images = load_images_of(collection_of(zoo))
    config = zoo.target_model.config
    assert (config.num_labels, config.problem_type, config.id2label) == (1, "regression", {0: "value"})
    assert min(zoo.zoo.validation_score) > 0.5  # R²
    assert images.train.labels.dtype == torch.float32
    pixel_values, labels = images.inputs(images.validation), images.validation.labels
    network = build_network(zoo.target_model, zoo.processor, zoo.zoo.parameters[-1])
    with torch.no_grad():
        out = network(pixel_values, labels=labels)
    squared_error = ((out.logits[:, 0] - labels) ** 2).mean().item()
    assert out.loss.item() == pytest.approx(squared_error)
    assert zoo.zoo.validation_loss[-1] == pytest.approx(squared_error, rel=1e-4)
    assert zoo.zoo.validation_score[-1] == pytest.approx(1 - squared_error / labels.var(correction=0).item(), rel=1e-4)
    assert "| validation score (R²): mean" in (tmp_path / "zoo" / "README.md").read_text(encoding="utf-8")


def test_a_classifier_is_not_trained_on_values(brightness: Path, mlp: PreTrainedModel):
    images = load_images(str(brightness), image_size=8)
    few = {"image_size": 8, "num_test_checkpoints": 0, "num_validation_checkpoints": 0}

    for collecting in (
        lambda: collect(images, mlp, TrajectorySettings(subset=["head"], **few)),
        lambda: collect_runs(images, mlp, MultiRunSettings(subset=["full"], num_runs=2)),
    ):
        with pytest.raises(ValueError, match=r"floating-point numbers, but MLPForImageClassification classifies; set"):
            collecting()
