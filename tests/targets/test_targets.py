"""Drawn networks share a trunk and nothing else; the two small targets are ordinary transformers models."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import build
from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedModel

from pdiff_hf import (
    ConvNetConfig,
    ConvNetForImageClassification,
    LayoutError,
    MLPConfig,
    MLPForImageClassification,
    NonFiniteParametersError,
    build_network,
    make_processor,
)
from pdiff_hf.loops import seeded


@pytest.fixture
def two_networks(target_and_processor, random_vectors) -> tuple:
    """A target, its layout, and two networks drawn from it."""
    model, processor = target_and_processor
    first, second = random_vectors(model, processor, 2)
    return model, processor, build_network(model, processor, first), build_network(model, processor, second)


def snapshot(*models: PreTrainedModel) -> list[dict[str, torch.Tensor]]:
    return [copy.deepcopy(model.state_dict()) for model in models]


def assert_unchanged(before: list[dict[str, torch.Tensor]], *models: PreTrainedModel) -> None:
    for state_dict, model in zip(before, models, strict=True):
        assert list(state_dict) == list(model.state_dict())
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == state_dict[name].dtype
            assert torch.equal(tensor, state_dict[name]), name


def test_drawn_network_has_its_vector_and_shares_the_trunk(two_networks, random_vectors):
    model, processor, first, second = two_networks
    expected = copy.deepcopy(model)
    processor.load_into(expected, random_vectors(model, processor, 2)[0])

    assert type(first) is type(model)
    assert_unchanged(snapshot(expected), first)
    assert {name for name, p in first.named_parameters() if p.requires_grad} == set(processor.names)
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, parameter in first.named_parameters():
        shared, other = model.get_parameter(name), second.get_parameter(name)
        assert (parameter.data_ptr() == shared.data_ptr() == other.data_ptr()) == (name not in processor.names)
        assert parameter is not shared
        assert parameter is not other
    for name, buffer in first.named_buffers():
        assert len({b.data_ptr() for b in (buffer, model.get_buffer(name), second.get_buffer(name))}) == 3


def move(network: PreTrainedModel, images: torch.Tensor) -> None:
    network.to("meta")


def cast(network: PreTrainedModel, images: torch.Tensor) -> None:
    network.to(torch.bfloat16)(images.bfloat16())


def train_mode(network: PreTrainedModel, images: torch.Tensor) -> None:
    network.train()(images)  # BatchNorm updates its running statistics


def optimizer_step(network: PreTrainedModel, images: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    network(images).logits.square().sum().backward()
    optimizer.step()


def unfreeze(network: PreTrainedModel, images: torch.Tensor) -> None:
    network.requires_grad_(True)


@pytest.mark.parametrize("act", [move, cast, train_mode, optimizer_step, unfreeze])
@pytest.mark.parametrize(("family", "subset"), [("resnet", "last_norms"), ("convnet", "head"), ("vit", "full")])
def test_using_one_drawn_network_changes_no_other(family, subset, random_vectors, random_images, act):
    model = build(family)
    processor = make_processor(model, subset)
    one, other = (build_network(model, processor, vector) for vector in random_vectors(model, processor, 2))
    before, requires_grad = snapshot(model, other), [p.requires_grad for p in other.parameters()]
    start = snapshot(one)[0]

    act(one, random_images(model, 4))

    assert_unchanged(before, model, other)
    assert not any(module.training for network in (model, other) for module in network.modules())
    assert all(p.grad is None for network in (model, other) for p in network.parameters())
    assert [p.requires_grad for p in other.parameters()] == requires_grad
    if act is optimizer_step:
        assert not torch.equal(one.get_parameter(processor.names[0]), start[processor.names[0]])


def test_drawn_network_is_in_eval_mode_and_has_a_vector_and_statistics_of_its_own(convnet, random_images):
    processor = make_processor(convnet, "head")
    vector = torch.zeros(processor.parameter_dim)
    network = build_network(convnet.train(), processor, vector)
    assert not network.training
    assert convnet.training

    vector.fill_(1.0)
    network.train()(random_images(convnet, 4))

    assert not network.classifier.weight.any()
    assert any(not torch.equal(buffer, convnet.get_buffer(name)) for name, buffer in network.named_buffers())


@pytest.mark.parametrize(("family", "subset"), [("resnet", "last_norms"), ("vit", "full")])
def test_independent_network_shares_no_memory_and_trains(family, subset, random_images):
    model = build(family)
    processor = make_processor(model, subset)
    before = snapshot(model)

    network = build_network(model, processor, processor.flatten(model.state_dict()), share_trunk=False)
    assert_unchanged(before, network)
    assert all(parameter.requires_grad for parameter in network.parameters())
    train_mode(network, random_images(model, 4))
    optimizer_step(network, random_images(model, 4))

    assert not torch.equal(next(network.parameters()), next(model.parameters()))  # the trunk of last_norms
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in network.parameters()}
    assert_unchanged(before, model)


@pytest.mark.parametrize("family", ["resnet", "vit", "mlp"])
def test_half_precision_target_draws_half_precision_networks(family, random_images):
    model = build(family).to(torch.bfloat16)
    processor = make_processor(model, "head")

    network = build_network(model, processor, torch.zeros(processor.parameter_dim))

    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    assert network(random_images(model, 2).to(torch.bfloat16)).logits.dtype == torch.bfloat16


def test_vector_or_target_of_another_layout_is_refused(mlp, convnet):
    processor = make_processor(mlp, "head")

    with pytest.raises(LayoutError, match="has 90 numbers"):
        build_network(mlp, processor, torch.zeros(89))
    with pytest.raises(NonFiniteParametersError, match=r"classifier\.weight"):
        build_network(mlp, processor, torch.full((90,), torch.nan))
    with pytest.raises(LayoutError, match=r"'classifier\.weight' is \(4, 8\) in this ConvNet.* \(10, 8\)"):
        build_network(convnet, processor, torch.zeros(90))


class TiedMLP(MLPForImageClassification):
    """A network two of whose layers have the same weight."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        self.layers[2].weight = self.layers[1].weight


def test_tied_tensors_of_a_drawn_network_stay_tied(random_images):
    with seeded(0):
        model = TiedMLP(MLPConfig(hidden_sizes=[8, 8, 8], num_labels=3)).eval()
    processor = make_processor(model, "layers.1.*")
    vector = torch.linspace(-1, 1, processor.parameter_dim)

    network = build_network(model, processor, vector)
    processor.load_into(model, vector)

    assert network.layers[2].weight is network.layers[1].weight
    assert torch.equal(network(random_images(model, 2)).logits, model(random_images(model, 2)).logits)


@pytest.mark.parametrize("family", ["mlp", "convnet"])
def test_small_target_is_an_ordinary_transformers_model(family, random_images, tmp_path):
    model = build(family)
    images, labels = random_images(model, 3), torch.tensor([0, 1, 2])
    train_mode(model, images)  # moves the running statistics away from where a new network has them
    model.eval().save_pretrained(tmp_path)

    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    output = loaded(pixel_values=images, labels=labels)
    loss, logits = model(images, labels=labels, return_dict=False)

    assert type(loaded) is type(model)
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert_unchanged(snapshot(model), loaded)
    assert logits.shape == (3, model.config.num_labels)
    assert torch.equal(output.logits, logits)
    assert torch.equal(output.loss, loss)
    assert torch.allclose(loss, nn.functional.cross_entropy(logits, labels))


def test_a_normalization_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="'batch' or 'layer', but is 'none'"):
        ConvNetForImageClassification(ConvNetConfig(normalization="none"))
