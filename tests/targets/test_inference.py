"""Many networks at once give what each of them gives alone."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from pdiff_hf import (
    LayoutError,
    MLPForImageClassification,
    NonFiniteParametersError,
    ParameterProcessor,
    build_network,
    make_processor,
    network_logits,
    network_predictions,
)
from pdiff_hf.loops import seeded
from pdiff_hf.targets import inference
from pdiff_hf.targets.inference import PlainArithmetic


class BranchingMLP(MLPForImageClassification):
    """A network that branches on the value of a generated tensor, which `vmap` cannot trace."""

    def compute_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        logits = super().compute_logits(pixel_values)
        return logits if self.classifier.bias.sum().item() > 0 else -logits


@torch.no_grad()
def plain_logits(
    model: PreTrainedModel, processor: ParameterProcessor, parameters: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    return torch.stack([build_network(model, processor, vector)(images).logits for vector in parameters])


@pytest.fixture(params=[2**25, 1], ids=["all pairs at once", "one pair at a time"])
def budget(request, monkeypatch) -> int:
    monkeypatch.setattr(inference, "ACTIVATION_BUDGET", request.param)
    monkeypatch.setattr(inference, "ONE_IMAGE_BUDGET", request.param)
    return request.param


def test_logits_are_those_of_plain_forward_passes(target_and_processor, random_vectors, random_images, budget, caplog):
    model, processor = target_and_processor
    before = copy.deepcopy(model.state_dict())
    parameters, images = random_vectors(model, processor, 3), random_images(model, 4)

    with caplog.at_level(logging.WARNING, logger="pdiff_hf.targets.inference"):
        logits = network_logits(model, processor, parameters, images)
    single = network_logits(model, processor, parameters[:1], images[:1])

    expected = plain_logits(model, processor, parameters, images)
    assert logits.shape == (3, 4, model.config.num_labels)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert torch.allclose(single, expected[:1, :1], atol=1e-5)
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))
    assert not torch.allclose(expected[0], expected[1], atol=1e-4)  # else nothing would have been compared
    assert caplog.text == ""
    assert not model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_small_budget_makes_small_batches(mlp, random_vectors, random_images, monkeypatch):
    processor = make_processor(mlp, "head")
    parameters, images = random_vectors(mlp, processor, 5), random_images(mlp, 50)

    (whole,) = inference.iter_logits(mlp, processor, parameters, images)
    monkeypatch.setattr(inference, "ACTIVATION_BUDGET", 2**12)
    monkeypatch.setattr(inference, "ONE_IMAGE_BUDGET", 2**12)
    batches = list(inference.iter_logits(mlp, processor, parameters, images))

    assert len(batches) > 1
    assert torch.allclose(torch.cat(batches, dim=1), whole, atol=1e-5)


def test_many_images_are_cut_into_batches(tiny_resnet, random_vectors, random_images, monkeypatch):
    monkeypatch.setattr(inference, "MAX_BATCH_SIZE", 4)
    for subset in ("last_norms", "full"):  # together, and one network after the other
        processor = make_processor(tiny_resnet, subset)
        parameters, images = random_vectors(tiny_resnet, processor, 2), random_images(tiny_resnet, 10)

        batches = list(inference.iter_logits(tiny_resnet, processor, parameters, images))

        assert [batch.shape[1] for batch in batches] == [4, 4, 2]
        expected = plain_logits(tiny_resnet, processor, parameters, images)
        assert torch.allclose(torch.cat(batches, dim=1), expected, atol=1e-5)


def test_predictions_and_losses_are_those_computed_by_hand(mlp, random_vectors, random_images, budget):
    processor = make_processor(mlp, "head")
    parameters, images = random_vectors(mlp, processor, 4), random_images(mlp, 30)
    labels = torch.arange(30) % 10

    predicted, loss = network_predictions(mlp, processor, parameters, images, labels)

    for i, logits in enumerate(plain_logits(mlp, processor, parameters, images)):
        assert torch.equal(predicted[i], logits.argmax(-1))
        assert torch.allclose(loss[i], nn.functional.cross_entropy(logits, labels), atol=1e-5)


def test_half_precision_target_gives_float32_logits(mlp, random_vectors, random_images):
    mlp.to(torch.bfloat16)
    processor = make_processor(mlp, "head")
    parameters, images = random_vectors(mlp, processor, 3), random_images(mlp, 4)

    logits = network_logits(mlp, processor, parameters, images)

    expected = plain_logits(mlp, processor, parameters, images.to(torch.bfloat16)).float()
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, expected, rtol=0.05, atol=0.05)


def test_model_that_vmap_cannot_trace_is_evaluated_one_by_one(mlp, random_vectors, random_images, caplog):
    with seeded(0):
        model = BranchingMLP(mlp.config).eval()
    processor = make_processor(model, "head")
    parameters, images = random_vectors(model, processor, 6), random_images(model, 5)

    with caplog.at_level(logging.WARNING, logger="pdiff_hf.targets.inference"):
        logits = network_logits(model, processor, parameters, images)

    positive = parameters[:, -10:].sum(1) > 0
    assert bool(positive.any())
    assert not bool(positive.all())
    assert torch.allclose(logits, plain_logits(model, processor, parameters, images), atol=1e-5)
    assert "BranchingMLP cannot be evaluated by vmap" in caplog.text
    assert "each of the 6 networks is evaluated by its own forward pass" in caplog.text


def test_vectors_that_do_not_fit_and_training_mode_are_refused(mlp, random_images):
    processor, images = make_processor(mlp, "head"), random_images(mlp, 2)

    with pytest.raises(LayoutError, match="has 90 numbers"):
        network_logits(mlp, processor, torch.zeros(2, 89), images)
    with pytest.raises(ValueError, match=r"Expected vectors \(n, D\), .* \(90,\)"):
        network_logits(mlp, processor, torch.zeros(90), images)
    with pytest.raises(NonFiniteParametersError, match=r"classifier\.weight"):
        network_logits(mlp, processor, torch.full((2, 90), torch.nan), images)
    with pytest.raises(ValueError, match="MLPForImageClassification is in training mode"):
        network_logits(mlp.train(), processor, torch.zeros(2, 90), images)


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "stride", "bias"),
    [(1, 3, 1, 1, False), (1, 3, 1, 2, True), (1, 5, 2, 1, True), (2, 3, 1, 1, True)],
)
def test_convolutions_of_one_pixel_maps_are_the_same_as_products(size, kernel, padding, stride, bias):
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 4, kernel, stride=stride, padding=padding, bias=bias)
    maps = torch.randn(5, 6, size, size)

    with PlainArithmetic():
        computed = convolution(maps)

    torch.testing.assert_close(computed, convolution(maps))
