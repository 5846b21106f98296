"""A small conditional zoo of real networks, which the tests of conditional evaluation share."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pdiff_hf import Checkpoints, ImageData, MultiRunSettings, collect_runs, load_images
from pdiff_hf.zoo.settings import load_target
from pdiff_hf.zoo.tasks import Subsets, Tasks


@pytest.fixture(scope="session")
def small_digits() -> ImageData:
    return load_images("digits", image_size=8)


@pytest.fixture(scope="session")
def collected_subsets(small_digits: ImageData) -> Checkpoints:
    """40 subsets of digits to learn from, 6 of validation and 8 held out, with 6 networks of 8 units for each."""
    settings = MultiRunSettings(
        dataset_name="digits",
        image_size=8,
        model_type="pdiff_mlp",
        model_config='{"hidden_sizes": [8]}',
        subset=["full"],
        target_train_steps=150,
        target_learning_rate=0.02,
        adam_weight_decay=0.3,
        tasks="subsets",
        num_tasks=40,
        num_validation_tasks=6,
        num_test_tasks=8,
        runs_per_task=6,
    )
    return collect_runs(small_digits, load_target(settings, small_digits), settings)


@pytest.fixture
def subsets_zoo(collected_subsets: Checkpoints) -> Checkpoints:
    """A zoo whose splits and collection a test may change."""
    splits = {name: split.rows(slice(None)) for name, split in collected_subsets.splits.items()}
    collection = json.loads(json.dumps(collected_subsets.collection))
    return dataclasses.replace(collected_subsets, splits=splits, collection=collection)


@pytest.fixture
def subsets(small_digits: ImageData) -> Tasks:
    return Subsets(small_digits.label_names)
