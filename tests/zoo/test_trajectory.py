"""A trajectory is resumed with the settings, images and weights that it was begun with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel

from pdiff_hf import Checkpoints, TrajectorySettings, collect, load_images
from pdiff_hf.data.images import ImageData
from pdiff_hf.loops import IdentityError
from pdiff_hf.settings import RunSettings
from pdiff_hf.zoo.settings import load_target

SETTINGS = TrajectorySettings(
    image_size=8,
    model_type="pdiff_mlp",
    model_config='{"hidden_sizes": [8]}',
    subset=["head"],
    target_train_steps=6,
    train_batch_size=8,
    burn_in_steps=2,
    num_checkpoints=6,
    num_validation_checkpoints=2,
    num_test_checkpoints=2,
    num_blocks=2,
    gap=1,
)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits", image_size=8)


@pytest.fixture
def state(tmp_path: Path, digits: ImageData) -> RunSettings:
    """Saved states of all stages of a collection, every fourth step and the last."""
    begun = RunSettings(str(tmp_path / "zoo"), checkpointing_steps=4)
    collected(digits, begun)
    return dataclasses.replace(begun, resume_from_checkpoint="latest")


def collected(images: ImageData, state: RunSettings | None = None, **changes: Any) -> Checkpoints:
    settings = dataclasses.replace(SETTINGS, **changes)
    return collect(images, load_target(settings, images), settings, state)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 0.5}, r"{'learning_rate': 0\.03}, but {'learning_rate': 0\.5} was asked for"),
        ({"seed": 1}, r"{'seed': 0}, but {'seed': 1}"),
        ({"target_train_steps": 9}, r"{'target_train_steps': 6}, but {'target_train_steps': 9}"),
        ({"num_blocks": 1, "gap": 7}, r"{'num_blocks': 2, 'gap': 1}, but {'num_blocks': 1, 'gap': 7}"),
        ({"augmentation_flip": True}, r"{'augmentation_flip': False}, but {'augmentation_flip': True}"),
    ],
)
def test_other_settings_are_refused_by_name(
    digits: ImageData, state: RunSettings, changed: dict[str, Any], message: str
):
    with pytest.raises(IdentityError, match=f"zoo-state/target/checkpoint-6' belongs to a training with {message}"):
        collected(digits, state, **changed)


def test_other_images_precision_or_weights_of_the_same_names_are_refused(
    digits: ImageData, mlp: PreTrainedModel, tmp_path: Path
):
    mlp.save_pretrained(tmp_path / "mlp")
    named = {"model_name_or_path": str(tmp_path / "mlp")}
    begun = RunSettings(str(tmp_path / "zoo"))
    collected(digits, begun, **named)
    state = dataclasses.replace(begun, resume_from_checkpoint="latest")

    with pytest.raises(IdentityError, match=r"with {'train_images': '\w{64}'}, but"):
        collected(dataclasses.replace(digits, train=digits.test), state, **named)
    AcceleratorState._reset_state(True)
    with pytest.raises(IdentityError, match=r"with {'mixed_precision': 'no'}, but {'mixed_precision': 'bf16'}"):
        collected(digits, dataclasses.replace(state, mixed_precision="bf16"), **named)
    AcceleratorState._reset_state(True)
    torch.nn.init.ones_(mlp.classifier.bias)
    mlp.save_pretrained(tmp_path / "mlp")
    with pytest.raises(IdentityError, match=r"with {'weights': '\w{16}'}, but"):
        collected(digits, state, **named)


def test_fewer_steps_than_were_made_are_refused(digits: ImageData, state: RunSettings):
    with pytest.raises(ValueError, match="target/checkpoint-6' has made more steps than the 5 that were asked for"):
        collected(digits, state, target_train_steps=5)


@pytest.mark.parametrize("stage", ["target", "trajectory"])
def test_damaged_newest_state_is_named_with_an_older_one(digits: ImageData, state: RunSettings, stage: str):
    older, newest = sorted((state.folder / stage).glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    (newest / "custom_checkpoint_0.pkl").write_bytes(b"half")

    with pytest.raises(ValueError, match=f"{newest.name}' is damaged .*; pass --resume_from_checkpoint {older}"):
        collected(digits, state)

    named = dataclasses.replace(state, resume_from_checkpoint=str(older))
    assert torch.equal(collected(digits, named).zoo.parameters, collected(digits).zoo.parameters)
