"""Whole networks with BatchNorm from independent runs, end to end: collected, fitted, drawn, re-estimated, audited."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification

from pdiff_hf import (
    Checkpoints,
    ImageData,
    MultiRunSettings,
    PDiffPipeline,
    Recipe,
    StatisticsError,
    collect_runs,
    fit,
    load_checkpoints,
    load_images,
    load_recipe,
)
from pdiff_hf.evaluation.evaluator import evaluate
from pdiff_hf.fitting.function_matching import FunctionMatching, comparable_pairs
from pdiff_hf.targets.building import build_network
from pdiff_hf.targets.inference import network_predictions
from pdiff_hf.targets.statistics import OwnStatistics
from pdiff_hf.zoo.settings import load_target


@pytest.fixture(scope="module")
def images() -> ImageData:
    return load_images("digits", image_size=8)


@pytest.fixture(scope="module")
def zoo(images: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    settings = MultiRunSettings(
        dataset_name="digits",
        image_size=8,
        model_type="pdiff_convnet",
        model_config='{"hidden_sizes": [4, 8]}',
        subset=["full"],
        canonicalize=True,
        target_train_steps=150,
        target_learning_rate=0.02,
        train_batch_size=32,
        num_runs=10,
        num_validation_runs=4,
        num_test_runs=4,
        runs_per_group=9,
    )
    folder = tmp_path_factory.mktemp("zoo")
    collect_runs(images, load_target(settings, images), settings).save(folder)
    return load_checkpoints(folder)


@pytest.fixture(scope="module")
def pipe(zoo: Checkpoints, images: ImageData) -> PDiffPipeline:
    shipped = load_recipe("units")
    tiny = {"width": 16, "num_blocks": 1, "num_heads": 2}
    denoiser = dataclasses.replace(shipped.denoiser, config=tiny, max_train_steps=12, train_batch_size=8)
    return fit(zoo, Recipe(shipped.autoencoder, denoiser), images)


def draw(pipe: PDiffPipeline, count: int = 3):
    return pipe(count, generator=torch.Generator().manual_seed(0))


def test_channels_are_units_and_functions_are_matched(pipe: PDiffPipeline, images: ImageData):
    assert [count for count, _ in pipe.autoencoder.config.token_groups] == [4, 8, 1]  # the last one is the rest
    assert pipe.metrics["generator"]["function_matching"]["count"] == len(images.train)


def test_functions_are_compared_by_the_statistics_of_the_images(pipe, zoo, images):
    networks = {"train": zoo.zoo.parameters}
    pairs = comparable_pairs(zoo.zoo)
    matching = FunctionMatching(pipe.autoencoder, zoo.target_model, zoo.processor, images, networks, pairs)
    shown = images.inputs(images.train)[:64]

    logits = matching.logits(zoo.zoo.parameters[:3], shown)

    for vector, ours in zip(zoo.zoo.parameters[:3], logits, strict=True):
        in_training = build_network(zoo.target_model, zoo.processor, vector).train()
        torch.testing.assert_close(ours, in_training(shown).logits.detach(), atol=1e-4, rtol=1e-4)


def test_drawn_networks_are_refused_until_their_statistics_are_estimated(pipe, images, tmp_path: Path):
    out, shown = draw(pipe), images.inputs(images.validation)[:8]
    for using in (
        lambda: out.logits(shown),
        lambda: out.models[0],
        lambda: out.models[1:][0],
        lambda: out.save_pretrained(tmp_path / "drawn"),
    ):
        with pytest.raises(StatisticsError, match=r"its own running statistics .*out\.update_bn\(images\)"):
            using()
    assert not (tmp_path / "drawn").exists()

    out.update_bn(images.inputs(images.train))

    held = out.models[0]
    out.update_bn(images.inputs(images.train))
    assert out.models[0] is not held  # which has the former statistics
    logits = out.logits(shown)
    out.save_pretrained(tmp_path / "drawn")
    for i, network in enumerate(out.models):
        torch.testing.assert_close(network(shown).logits, logits[i], atol=1e-4, rtol=1e-4)
        saved = AutoModelForImageClassification.from_pretrained(tmp_path / "drawn" / f"{i:05d}")
        torch.testing.assert_close(saved(shown).logits, logits[i], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.models[1:].logits(shown), logits[1:])


def test_a_saved_pipeline_knows_that_its_networks_have_statistics_of_their_own(pipe, images, tmp_path: Path):
    pipe.save_pretrained(tmp_path)
    loaded = PDiffPipeline.from_pretrained(tmp_path)

    out, again = draw(pipe), draw(loaded)
    for drawn in (out, again):
        drawn.update_bn(images.inputs(images.train))

    shown = images.inputs(images.validation)
    torch.testing.assert_close(again.logits(shown), out.logits(shown))
    assert "out.update_bn(training_images)" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_card_of_a_zoo_says_that_its_rows_need_statistics_of_their_own(zoo, tmp_path: Path):
    zoo.save(tmp_path)

    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "BatchNorm statistics of its own in 2 layers" in card


def test_the_average_in_the_pipeline_has_statistics_of_its_own(pipe, zoo, images):
    own = OwnStatistics(zoo.target_model, zoo.processor, images)(zoo.zoo.parameters.mean(0)[None])

    for name, expected in own.items():
        torch.testing.assert_close(pipe.target_model.get_buffer(name), expected[0], atol=1e-5, rtol=1e-4)


def test_all_sets_are_audited_with_their_own_statistics(pipe, zoo, images):
    evaluation = evaluate(pipe, zoo, images, num_models=6, num_baseline_models=6)

    measured = evaluation.networks["zoo"]
    assert measured.scores["validation"].tolist() == pytest.approx(zoo.zoo.validation_score, abs=0.01)
    assert measured.scores["test"].mean() > 0.5
    samples = pipe(6, generator=torch.Generator().manual_seed(0), output_type="pt").parameters
    statistics = OwnStatistics(pipe.target_model, pipe.processor, images)(samples)
    inputs, labels = images.inputs(images.test), images.test.labels
    predicted, _ = network_predictions(
        pipe.target_model, pipe.processor, samples, inputs, labels, statistics=statistics
    )
    assert torch.equal(evaluation.networks["generated"].predictions["test"], predicted)
    assert 0 < evaluation.costs["statistics_seconds"] < evaluation.costs["evaluation_seconds"]
