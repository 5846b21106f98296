"""Function matching: what the loss is, of which networks and images, and what it leaves alone."""

from __future__ import annotations

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
from pdiff_hf.fitting.function_matching import FunctionMatching
from pdiff_hf.loops import seeded


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
    return FunctionMatching(autoencoder, model, processor, images, {"train": zoo})


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
def test_loss_is_the_squared_difference_of_centered_logits_relative_to_their_variance(
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
    logits = network_logits(model, processor, torch.cat([zoo[3:], zoo[:3]]), images.train.features[rows])
    ours, real = (logits - logits.mean(-1, keepdim=True)).chunk(2)
    expected = (weights * (ours - real).square().mean((1, 2))).mean() / real.var()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)


def test_values_that_are_predicted_are_not_centered(images, random_vectors):
    with seeded(0):
        model = MLPForImageClassification(
            MLPConfig(image_size=8, num_channels=1, hidden_sizes=[8], num_labels=1, problem_type="regression")
        ).eval()
    processor = make_processor(model, "full")
    zoo = random_vectors(model, processor, 6)
    matching = match(model, processor, images, zoo)

    loss = matching.loss(matching.autoencoder.encode(zoo).latents, zoo.flip(0), torch.ones(6), 16, generator())

    assert loss > 0.1


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
