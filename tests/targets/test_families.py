"""Each family of the paper end to end: collect, fit, draw, evaluate, save, load."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from pdiff_hf import ImageData, PDiffPipeline, TrajectorySettings, collect, fit, load_checkpoints, load_images
from pdiff_hf.data.images import ImageSplit
from pdiff_hf.evaluation import evaluate
from pdiff_hf.zoo.settings import load_target

FAMILIES = {
    "resnet50": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]},
    "vit-tiny": {"hidden_size": 15, "num_hidden_layers": 2, "intermediate_size": 32, "patch_size": 4},
    "convnext-tiny": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "patch_size": 2},
}


@pytest.fixture(scope="module")
def few_digits() -> ImageData:
    digits = load_images("digits", image_size=16)

    def some(split: ImageSplit) -> ImageSplit:
        return split.take(torch.arange(80))

    return dataclasses.replace(digits, validation=some(digits.validation), test=some(digits.test))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_family_works_end_to_end(architecture, few_digits, tiny_recipe, tmp_path):
    settings = TrajectorySettings(
        image_size=16,
        architecture=architecture,
        model_config=json.dumps(FAMILIES[architecture]),
        target_train_steps=5,
        burn_in_steps=2,
        num_checkpoints=20,
        num_validation_checkpoints=0,
        num_test_checkpoints=5,
        num_branches=0,
        gap=1,
        train_batch_size=16,
    )
    collect(few_digits, load_target(settings, few_digits), settings).save(tmp_path / "zoo")
    checkpoints = load_checkpoints(tmp_path / "zoo")
    pipe = fit(checkpoints, tiny_recipe)

    out = pipe(4, generator=torch.Generator().manual_seed(0))
    evaluation = evaluate(pipe, checkpoints, few_digits, num_models=4, num_baseline_models=2)
    pipe.save_pretrained(tmp_path / "pipeline")
    out.save_pretrained(tmp_path / "drawn")
    again = PDiffPipeline.from_pretrained(tmp_path / "pipeline")(4, generator=torch.Generator().manual_seed(0))

    assert len(checkpoints.zoo) == 20
    assert evaluation.sets["generated"]["test"]["n"] == 4
    assert torch.equal(again.parameters, out.parameters)
    pixel_values = few_digits.inputs(few_digits.test)[:8]
    logits = again.logits(pixel_values)
    network = type(pipe.target_model).from_pretrained(tmp_path / "drawn" / "00003")
    with torch.no_grad():
        assert torch.allclose(network(pixel_values).logits, logits[3], atol=1e-5)
    assert not torch.allclose(logits[0], logits[3], atol=1e-5)
