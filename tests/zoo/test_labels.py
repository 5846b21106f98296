"""Labels that no output stands for are refused before anything is trained."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import PreTrainedModel

from pdiff_hf import MultiRunSettings, TrajectorySettings, collect, collect_runs, load_images


@pytest.mark.parametrize(
    ("collecting", "settings"),
    [(collect, TrajectorySettings(subset=["head"])), (collect_runs, MultiRunSettings(subset=["full"], num_runs=2))],
)
def test_class_that_only_validation_images_have_is_refused(collecting, settings, mlp: PreTrainedModel):
    digits = load_images("digits", image_size=8)
    images = dataclasses.replace(
        digits, validation=dataclasses.replace(digits.validation, labels=digits.validation.labels + 1)
    )
    before = mlp.classifier.weight.clone()

    with pytest.raises(ValueError, match="The validation split has the label 10, but there are only 10 classes"):
        collecting(images, mlp, settings)
    assert torch.equal(mlp.classifier.weight, before)
