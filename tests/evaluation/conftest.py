"""Small zoos of real networks, which the tests of evaluations and benchmarks share."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pdiff_hf import Checkpoints, ImageData, MultiRunSettings, Recipe, collect_runs, fit, load_images
from pdiff_hf.zoo.settings import load_target
from pdiff_hf.zoo.tasks import Subsets, Tasks


@pytest.fixture(scope="session")
def small_digits() -> ImageData:
    return load_images("digits", image_size=8)


def collect_small(images: ImageData, **counts: Any) -> Checkpoints:
    """Trained networks of 8 units."""
    settings = MultiRunSettings(
        dataset_name="digits",
        image_size=8,
        model_type="pdiff_mlp",
        model_config='{"hidden_sizes": [8]}',
        subset=["full"],
        target_train_steps=150,
        target_learning_rate=0.02,
        adam_weight_decay=0.3,
        **counts,
    )
    return collect_runs(images, load_target(settings, images), settings)


@pytest.fixture(scope="session")
def small_demo(small_digits: ImageData, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `checkpoints` of 12 networks, and 4 held out, and a `pipeline` that knows next to nothing."""
    folder = tmp_path_factory.mktemp("small_demo")
    checkpoints = collect_small(small_digits, num_runs=12, num_validation_runs=0, num_test_runs=4)
    checkpoints.save(folder / "checkpoints")
    fit(checkpoints, tiny_recipe, images=small_digits).save_pretrained(folder / "pipeline")
    return folder


@pytest.fixture(scope="session")
def collected_subsets(small_digits: ImageData) -> Checkpoints:
    """40 subsets of digits to learn from, 6 of validation and 8 held out, with 6 networks for each."""
    held_out = {"num_validation_tasks": 6, "num_test_tasks": 8}
    return collect_small(small_digits, tasks="subsets", num_tasks=40, runs_per_task=6, **held_out)


@pytest.fixture
def subsets_zoo(collected_subsets: Checkpoints) -> Checkpoints:
    """A zoo whose splits and collection a test may change."""
    splits = {name: split.rows(slice(None)) for name, split in collected_subsets.splits.items()}
    collection = json.loads(json.dumps(collected_subsets.collection))
    return dataclasses.replace(collected_subsets, splits=splits, collection=collection)


@pytest.fixture
def subsets(small_digits: ImageData) -> Tasks:
    return Subsets(small_digits.label_names)
