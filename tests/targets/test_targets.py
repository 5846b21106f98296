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


def test_drawn_network_holds_its_vector_and_the_targets_rest(target_and_processor, random_vectors):
    model, processor = target_and_processor
    vector = random_vectors(model, processor, 1)[0]
    expected = copy.deepcopy(model)
    processor.load_into(expected, vector)

    network = build_network(model.train(), processor, vector)

    assert type(network) is type(model)
    assert not network.training
    assert_unchanged(snapshot(expected), network)


def test_networks_share_the_trunks_memory_but_no_parameter_object(two_networks):
    model, processor, first, second = two_networks
    shared = dict(model.named_parameters())
    others = dict(second.named_parameters())

    for name, parameter in first.named_parameters():
        same_memory = parameter.data_ptr() == shared[name].data_ptr() == others[name].data_ptr()
        assert same_memory == (name not in processor.names)
        assert parameter is not shared[name]
        assert parameter is not others[name]


def test_only_generated_tensors_require_grad(two_networks):
    _, processor, first, _ = two_networks

    assert {name for name, p in first.named_parameters() if p.requires_grad} == set(processor.names)


def test_drawing_keeps_the_targets_requires_grad(target_and_processor):
    model, processor = target_and_processor
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    build_network(model, processor, torch.zeros(processor.parameter_dim))

    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


def test_buffers_are_copied(two_networks):
    model, _, first, second = two_networks

    for name, buffer in first.named_buffers():
        pointers = {buffer.data_ptr(), model.get_buffer(name).data_ptr(), second.get_buffer(name).data_ptr()}
        assert len(pointers) == 3


def test_casting_one_network_changes_no_other(two_networks):
    model, _, first, second = two_networks
    before = snapshot(model, second)

    first.to(torch.bfloat16)

    assert {parameter.dtype for parameter in first.parameters()} == {torch.bfloat16}
    assert_unchanged(before, model, second)


def test_training_mode_of_one_network_moves_no_other_running_statistics(two_networks, random_images):
    model, _, first, second = two_networks
    before = snapshot(model, second)

    first.train()(random_images(model, 4))

    assert not model.training
    assert not second.training
    assert_unchanged(before, model, second)


@pytest.mark.parametrize("family", ["resnet", "convnet"])
def test_running_statistics_of_a_drawn_network_do_move(family, random_images):
    model = build(family)
    processor = make_processor(model, "head")
    network = build_network(model, processor, torch.zeros(processor.parameter_dim))

    network.train()(random_images(model, 4))

    assert any(not torch.equal(buffer, model.get_buffer(name)) for name, buffer in network.named_buffers())


def test_training_one_network_changes_no_other(two_networks, random_images):
    model, processor, first, second = two_networks
    before = snapshot(model, second)
    start = processor.flatten(first.state_dict())

    optimizer = torch.optim.AdamW(first.parameters(), lr=0.1, weight_decay=0.1)
    first(random_images(model, 4)).logits.square().sum().backward()
    optimizer.step()

    assert not torch.equal(processor.flatten(first.state_dict()), start)
    assert_unchanged(before, model, second)


def test_training_the_vector_afterward_changes_no_network(mlp):
    processor = make_processor(mlp, "head")
    vector = torch.zeros(processor.parameter_dim)
    network = build_network(mlp, processor, vector)

    vector.fill_(1.0)

    assert not network.classifier.weight.any()


def test_independent_network_shares_no_memory_and_trains(target_and_processor, random_images):
    model, processor = target_and_processor
    before = snapshot(model)

    network = build_network(model, processor, processor.flatten(model.state_dict()), share_trunk=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()(random_images(model, 4)).logits.square().sum().backward()
    optimizer.step()

    pointers = {parameter.data_ptr() for parameter in model.parameters()}
    assert all(p.requires_grad and p.data_ptr() not in pointers for p in network.parameters())
    trunk = [name for name, _ in model.named_parameters() if name not in processor.names]
    trained = trunk or processor.names
    assert any(not torch.equal(network.get_parameter(name), model.get_parameter(name)) for name in trained)
    assert_unchanged(before, model)


def test_half_precision_target_draws_half_precision_networks(target_and_processor, random_images):
    model, _ = target_and_processor
    model.to(torch.bfloat16)
    names = target_and_processor[1].names
    processor = make_processor(model, names)

    network = build_network(model, processor, torch.zeros(processor.parameter_dim))

    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    assert network(random_images(model, 2).to(torch.bfloat16)).logits.dtype == torch.bfloat16


def test_vector_that_does_not_fit_is_refused(mlp):
    processor = make_processor(mlp, "head")

    with pytest.raises(LayoutError, match="has 90 numbers"):
        build_network(mlp, processor, torch.zeros(89))
    with pytest.raises(NonFiniteParametersError, match=r"classifier\.weight"):
        build_network(mlp, processor, torch.full((90,), torch.nan))


def test_target_of_another_layout_is_refused(mlp, convnet):
    processor = make_processor(mlp, "head")

    with pytest.raises(LayoutError, match=r"'classifier\.weight' is \(4, 8\) in this ConvNet.* \(10, 8\)"):
        build_network(convnet, processor, torch.zeros(90))
    with pytest.raises(LayoutError, match=r"'layers\.0\.weight' is absent in this ConvNet"):
        build_network(convnet, make_processor(mlp, "layers.0.*"), torch.zeros(520))


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
def test_small_target_survives_saving_through_the_auto_class(family, random_images, tmp_path):
    model = build(family)
    images = random_images(model, 4)
    model.train()(images)  # moves the running statistics away from where a new network has them
    model.eval()

    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)

    assert type(loaded) is type(model)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_unchanged(snapshot(model), loaded)
    assert torch.equal(loaded(images).logits, model(images).logits)


@pytest.mark.parametrize("family", ["mlp", "convnet"])
def test_small_target_returns_the_cross_entropy_of_labels(family, random_images):
    model = build(family)
    images, labels = random_images(model, 3), torch.tensor([0, 1, 2])

    output = model(pixel_values=images, labels=labels)
    loss, logits = model(images, labels=labels, return_dict=False)

    assert output.logits.shape == (3, model.config.num_labels)
    assert torch.equal(logits, output.logits)
    assert torch.equal(loss, output.loss)
    assert torch.allclose(loss, nn.functional.cross_entropy(logits, labels))


def test_a_normalization_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="'batch' or 'layer', but is 'none'"):
        ConvNetForImageClassification(ConvNetConfig(normalization="none"))
