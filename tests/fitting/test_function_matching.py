"""Function matching: what the loss is, of which networks and images, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import PreTrainedModel

from pdiff_hf import (
    LinearParameterAutoencoder,
    MLPConfig,
    MLPForImageClassification,
    ParameterProcessor,
    TensorData,
    TensorSplit,
    load_images,
    make_processor,
    network_logits,
)
from pdiff_hf.fitting.function_matching import COMPARED_IMAGES, FunctionMatching, comparable_pairs
from pdiff_hf.loops import seeded
from pdiff_hf.zoo.checkpoints import CheckpointSplit


@pytest.fixture
def images() -> TensorData:
    digits = load_images("digits", image_size=8)
    splits = [TensorSplit(digits.inputs(split), split.labels) for split in (digits.train, digits.validation)]
    return TensorData(splits[0], splits[1], splits[1], digits.label_names)


def in_color(images: TensorData) -> TensorData:
    split = TensorSplit(images.train.features.repeat(1, 3, 1, 1), images.train.labels)
    return TensorData(split, split, split, images.label_names)


def match(model: PreTrainedModel, processor: ParameterProcessor, images: TensorData, zoo: torch.Tensor):
    autoencoder = LinearParameterAutoencoder.from_zoo(zoo, explained_variance=1.0)
    return FunctionMatching(autoencoder, model, processor, images, {"train": zoo}, torch.tensor([[0, 1], [2, 3]]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_networks_of_the_same_function_have_no_loss(mlp, images, random_vectors):
    processor = make_processor(mlp, "full")
    zoo = random_vectors(mlp, processor, 6)
    matching = match(mlp, processor, images, zoo)
    latents = matching.autoencoder.encode(zoo).latents

    shifted = processor.unflatten(zoo.clone())
    shifted["classifier.bias"] += 3.0  # no prediction sees what is added to all logits
    moved = torch.cat([shifted[name].flatten(1) for name in processor.names], dim=1)

    for real in (zoo, moved):
        assert matching.loss(latents, real, torch.ones(6), 16, generator()) < 1e-8
    assert matching.loss(latents, zoo.flip(0), torch.ones(6), 16, generator()) > 0.1


@pytest.mark.parametrize("family", ["mlp", "convnet"])
def test_loss_is_the_divergence_of_probabilities_in_units_of_that_between_real_networks(
    family, request, images, random_vectors
):
    model = request.getfixturevalue(family)
    images = in_color(images) if family == "convnet" else images
    processor = make_processor(model, "full")
    zoo = random_vectors(model, processor, 6)
    matching, weights = match(model, processor, images, zoo), torch.tensor([1.0, 0.0, 0.5])
    latents = matching.autoencoder.encode(zoo[3:]).latents

    loss = matching.loss(latents, zoo[:3], weights, 16, generator())

    rows = torch.randint(len(images.train), (16,), generator=generator())
    features = images.train.features
    probabilities = network_logits(model, processor, zoo, features[rows]).softmax(-1)
    some = torch.linspace(0, len(features) - 1, min(len(features), COMPARED_IMAGES)).long()
    compared = network_logits(model, processor, zoo, features[some]).softmax(-1)
    unit = (kullback_leibler(compared[0], compared[1]) + kullback_leibler(compared[2], compared[3])) / 2
    divergences = torch.stack([kullback_leibler(probabilities[i], probabilities[3 + i]) for i in range(3)])
    expected = (weights * (1 + divergences / unit).log()).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)


def kullback_leibler(probabilities: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return (probabilities * (probabilities / others).log()).sum(-1).mean()


def test_values_that_are_predicted_are_compared_as_they_are(images, random_vectors):
    with seeded(0):
        model = MLPForImageClassification(
            MLPConfig(image_size=8, num_channels=1, hidden_sizes=[8], num_labels=1, problem_type="regression")
        ).eval()
    processor = make_processor(model, "full")
    zoo = random_vectors(model, processor, 6)
    matching = match(model, processor, images, zoo)
    shifted = processor.unflatten(zoo.clone())
    shifted["classifier.bias"] += matching.unit**0.5
    moved = torch.cat([shifted[name].flatten(1) for name in processor.names], dim=1)

    loss = matching.loss(matching.autoencoder.encode(zoo).latents, moved, torch.ones(6), 16, generator())

    torch.testing.assert_close(loss.item(), math.log(2), rtol=1e-3, atol=0)


def split(runs: list[str], conditions: list[list[float]] | None = None) -> CheckpointSplit:
    count = len(runs)
    return CheckpointSplit(torch.zeros(count, 2), run=runs, step=[0] * count, seed=[0] * count, condition=conditions)


def test_networks_that_are_compared_for_the_unit_are_of_different_runs():
    runs = [f"run-{i // 3}" for i in range(30)]

    pairs = comparable_pairs(split(runs))

    assert all(runs[one] != runs[other] for one, other in pairs.tolist())


def test_networks_that_are_compared_for_the_unit_were_made_for_one_condition():
    runs, conditions = [f"run-{i}" for i in range(24)], [[float(i // 4)] for i in range(24)]

    pairs = comparable_pairs(split(runs, conditions))

    assert all(conditions[one] == conditions[other] and one != other for one, other in pairs.tolist())


def test_networks_of_a_single_run_are_compared_with_one_another():
    assert all(one != other for one, other in comparable_pairs(split(["run-0"] * 5)).tolist())


@pytest.mark.parametrize("family", ["mlp", "convnet"])
def test_gradient_reaches_the_latents_alone(family, request, images, random_vectors):
    model = request.getfixturevalue(family)
    images = in_color(images) if family == "convnet" else images
    processor = make_processor(model, "full")
    zoo = random_vectors(model, processor, 4)
    matching = match(model, processor, images, zoo)
    latents = matching.autoencoder.encode(zoo).latents.requires_grad_()

    matching.loss(latents, zoo.flip(0), torch.ones(4), 8, generator()).backward()

    assert (latents.grad.abs().sum(1) > 0).all()
    for module in (model, matching.target_model, matching.autoencoder):
        assert all(parameter.grad is None for parameter in module.parameters())


def test_images_are_decided_by_the_generator_and_stated(mlp, images, random_vectors):
    processor = make_processor(mlp, "full")
    zoo = random_vectors(mlp, processor, 4)
    matching = match(mlp, processor, images, zoo)
    latents = matching.autoencoder.encode(zoo).latents

    first, again, other = (
        matching.loss(latents, zoo.flip(0), torch.ones(4), 8, generator(seed)).item() for seed in (0, 0, 1)
    )

    assert first == again != other
    assert matching.source == {"images": images.train.fingerprint(), "count": len(images.train)}
