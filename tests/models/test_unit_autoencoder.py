"""The unit autoencoder: permuted units are permuted tokens, and nothing is lost at full length."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import build
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from pdiff_hf import (
    ConvNetConfig,
    ConvNetForImageClassification,
    MLPConfig,
    MLPForImageClassification,
    UnitParameterAutoencoder,
    make_processor,
)
from pdiff_hf.loops import seeded
from pdiff_hf.targets.symmetries import Symmetries
from pdiff_hf.targets.unit_layout import unit_layout, unit_metrics

COUNT = 60  # networks of a zoo


def mlp(hidden: list[int]) -> PreTrainedModel:
    config = MLPConfig(image_size=4, num_channels=1, hidden_sizes=hidden, num_labels=3)
    return MLPForImageClassification(config)


def convnet() -> PreTrainedModel:
    config = ConvNetConfig(num_channels=1, hidden_sizes=[4, 6], num_labels=3, normalization="layer")
    return ConvNetForImageClassification(config)


NETWORKS: dict[str, Callable[[], PreTrainedModel]] = {
    "one hidden layer": lambda: mlp([6]),
    "two hidden layers": lambda: mlp([6, 5]),
    "no hidden layer": lambda: mlp([]),
    "convnet": convnet,
    "resnet": lambda: build("resnet"),
}


class Case:
    """A network, its symmetries, a canonical zoo and a few images."""

    def __init__(self, name: str) -> None:
        with seeded(0):
            self.model = NETWORKS[name]().eval()
        self.processor = make_processor(self.model, "full")
        size, channels = (16, 3) if name == "resnet" else (4, 1)
        self.images = torch.randn(16, channels, size, size, generator=torch.Generator().manual_seed(0))
        own = self.processor.flatten(self.model.state_dict())
        noise = torch.randn(COUNT, len(own), generator=torch.Generator().manual_seed(1))
        self.symmetries = Symmetries(self.model, self.processor, own, self.images)
        self.zoo = self.symmetries.canonicalize(own + 0.3 * noise)
        self.layout = unit_layout(self.symmetries)

    def fit(self, **options: Any) -> UnitParameterAutoencoder:
        return UnitParameterAutoencoder.from_zoo(self.zoo, self.processor.sizes, **self.layout.arguments(), **options)

    def metrics(self) -> list[torch.Tensor | None]:
        return unit_metrics(self.model, self.symmetries, self.zoo, self.images)


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def tokens_and_edges(autoencoder: UnitParameterAutoencoder, latents: torch.Tensor) -> list[torch.Tensor]:
    """A latent by its documented layout: `(n, count, codes)` of groups, `(n, targets, sources, codes)` of edges."""
    config = autoencoder.config
    shapes = [tuple(group) for group in config.token_groups]
    for source, target, codes in config.token_edges:
        shapes.append((config.token_groups[target][0], config.token_groups[source][0], codes))
    pieces = latents.split([math.prod(shape) for shape in shapes], dim=1)
    return [piece.unflatten(1, shape) for piece, shape in zip(pieces, shapes, strict=True)]


@pytest.mark.parametrize("functional", [False, True], ids=["plain", "functional"])
@torch.no_grad()
def test_all_codes_lose_nothing(case: Case, functional: bool):
    with torch.enable_grad():
        metrics = case.metrics() if functional else None
    autoencoder = case.fit(explained_variance=1.0, metrics=metrics)

    decoded = autoencoder(case.zoo).sample

    torch.testing.assert_close(decoded, case.zoo, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("functional", [False, True], ids=["plain", "functional"])
def test_latents_are_standardized_over_the_units_of_a_group(case: Case, functional: bool):
    autoencoder = case.fit(metrics=case.metrics() if functional else None)

    latents = autoencoder.encode(case.zoo).latents

    assert latents.shape == (COUNT, autoencoder.config.latent_dim)
    assert latents.dtype == torch.float32
    for part in tokens_and_edges(autoencoder, latents):
        codes = part.flatten(0, -2)  # (everything pooled, codes)
        torch.testing.assert_close(codes.mean(0), torch.zeros(codes.shape[1]), atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.cov(codes.T).view(-1), torch.eye(codes.shape[1]).view(-1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("case", ["two hidden layers", "convnet", "resnet"], indirect=True)
@torch.no_grad()
def test_permuted_units_are_permuted_tokens_and_edges(case: Case):
    autoencoder = case.fit()
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(layer.count, generator=generator) for layer in case.symmetries.layers]
    tensors = case.processor.unflatten(case.zoo)
    for layer, order in zip(case.symmetries.layers, orders, strict=True):
        case.symmetries._permute(tensors, layer, order)
    permuted = case.symmetries._join(tensors)

    before, after = (
        tokens_and_edges(autoencoder, autoencoder.encode(vectors).latents) for vectors in (case.zoo, permuted)
    )

    groups = autoencoder.config.token_groups
    orders += [torch.arange(1)] * (len(groups) - len(orders))  # the rest
    for part, order, moved in zip(before, orders, after, strict=False):
        torch.testing.assert_close(part[:, order], moved, atol=1e-5, rtol=1e-5)
    for i, (source, target, _) in enumerate(autoencoder.config.token_edges):
        expected = before[len(groups) + i][:, orders[target]][:, :, orders[source]]
        torch.testing.assert_close(expected, after[len(groups) + i], atol=1e-5, rtol=1e-5)


def test_tokens_of_a_perceptron_hold_what_feeds_its_units_and_fixed_outputs():
    layout = Case("two hidden layers").layout

    # 16 pixels and a bias; a bias and three classes; three biases of the classes.
    assert layout.groups == [[6, 17], [5, 4], [1, 3]]
    assert layout.edges == [[0, 1, 1]]


def test_kernels_between_channels_are_edges():
    layout = Case("convnet").layout

    # A kernel and two numbers of the norm; the norm's and three classes; three biases.
    assert layout.groups == [[4, 11], [6, 5], [1, 3]]
    assert layout.edges == [[0, 1, 9]]


def test_blocks_of_a_resnet_are_edges_from_tied_groups():
    layout = Case("resnet").layout

    assert [count for count, _ in layout.groups] == [8, 8, 16, 16, 1]
    # Into the first block, back into the stream; into the second block and along its shortcut; and out of it.
    assert sorted(map(tuple, layout.edges)) == [(0, 1, 9), (0, 2, 9), (0, 3, 1), (1, 0, 9), (2, 3, 9)]


@torch.no_grad()
def test_a_vector_without_units_is_one_token(case: Case):
    autoencoder = UnitParameterAutoencoder.from_zoo(case.zoo, explained_variance=1.0)

    assert autoencoder.config.token_groups == [[1, autoencoder.config.latent_dim]]
    torch.testing.assert_close(autoencoder(case.zoo).sample, case.zoo, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_everything_is_saved(case: Case, tmp_path):
    autoencoder = case.fit()
    latents = autoencoder.encode(case.zoo).latents

    autoencoder.save_pretrained(tmp_path)
    loaded = UnitParameterAutoencoder.from_pretrained(tmp_path, dtype=torch.bfloat16)

    assert loaded.config.token_groups == autoencoder.config.token_groups
    assert torch.equal(loaded.encode(case.zoo).latents, latents)
    assert torch.equal(loaded.decode(latents).sample, autoencoder.decode(latents).sample)
    assert torch.equal(loaded.latent_weights, autoencoder.latent_weights)


def test_the_derivative_of_decoding_reaches_every_code(case: Case):
    autoencoder = case.fit()
    latents = torch.zeros(2, autoencoder.config.latent_dim, requires_grad=True)

    decoded = autoencoder.decode(latents).sample
    direction = torch.randn(decoded.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((decoded * direction).sum(), latents)

    assert (gradient != 0).all()


def test_codes_in_the_functional_metric_keep_the_function_with_fewer_codes():
    """Half of the inputs vary between networks most, but are nearly 0 on all images."""
    case = Case("one hidden layer")
    case.images[:, :, :2] *= 0.01
    tensors = case.processor.unflatten(case.zoo)
    tensors["layers.0.weight"][:, :, :8] *= 10
    case.zoo = case.symmetries._join(tensors)

    plain = case.fit(explained_variance=0.95)
    functional = case.fit(explained_variance=0.95, metrics=case.metrics())

    def error(autoencoder: UnitParameterAutoencoder) -> float:
        squared = []
        for vectors in (case.zoo, autoencoder(case.zoo).sample):
            networks = [case.processor.unflatten(v) for v in vectors]
            logits = [torch.func.functional_call(case.model, n, (case.images,)).logits for n in networks]
            squared.append(torch.stack(logits))
        return float((squared[0] - squared[1]).square().mean() / squared[0].var())

    with torch.no_grad():
        assert functional.config.token_groups[0][1] <= plain.config.token_groups[0][1]
        assert error(functional) < 0.1 * error(plain)


def test_weights_are_standard_deviations_relative_to_their_mean():
    autoencoder = Case("two hidden layers").fit()
    shape = (autoencoder.config.latent_dim, autoencoder.config.latent_dim)
    decoded = autoencoder.decode(torch.eye(*shape)).sample - autoencoder.decode(torch.zeros(1, shape[0])).sample

    std = decoded.norm(dim=1)  # the directions are orthonormal

    torch.testing.assert_close(autoencoder.latent_weights, std / std.mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("constant", ["tokens", "edges", "rest"])
@torch.no_grad()
def test_parts_that_never_vary_have_one_code_that_is_always_zero(constant: str):
    case = Case("two hidden layers")
    part = {"tokens": 0, "rest": 2, "edges": 3}[constant]
    lengths = [count * size for count, size in [*case.layout.groups, [30, 1]]]
    case.zoo[:, case.layout.order.split(lengths)[part]] = 0.5

    autoencoder = case.fit()

    latents = autoencoder.encode(case.zoo + 1).latents
    codes = tokens_and_edges(autoencoder, latents)[part]
    assert codes.shape[-1] == 1
    assert (codes == 0).all()
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    assert (autoencoder.decode(noise).sample[:, case.layout.order.split(lengths)[part]] == 0.5).all()


def test_equal_checkpoints_are_refused():
    with pytest.raises(ValueError, match="All 4 parameter vectors are equal"):
        UnitParameterAutoencoder.from_zoo(torch.ones(4, 5))


def test_parts_that_are_not_the_whole_vector_are_refused():
    zoo = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))

    with pytest.raises(ValueError, match="Groups and edges describe 4 numbers, and their order 5, but the vectors"):
        UnitParameterAutoencoder.from_zoo(zoo, groups=[[2, 2]])
    with pytest.raises(ValueError, match="have 4 numbers and 2 codes in all, but parameter_dim is 5"):
        UnitParameterAutoencoder(parameter_dim=5, latent_dim=2, token_groups=[[2, 1]], token_features=[2])


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], torch.Tensor]:
    """Any groups and edges, and any order of the numbers in a vector."""
    groups = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=4))
    index = st.integers(0, len(groups) - 1)
    pairs = draw(st.lists(st.tuples(index, index), unique=True, max_size=3))
    edges = [[source, target, draw(st.integers(1, 4))] for source, target in pairs]
    length = sum(a * b for a, b in groups) + sum(groups[s][0] * groups[t][0] * size for s, t, size in edges)
    return [list(group) for group in groups], edges, torch.tensor(draw(st.permutations(range(length)))).long()


@given(layouts(), st.booleans())
@torch.no_grad()
def test_any_layout_is_inverted_exactly(layout: tuple[list[list[int]], list[list[int]], torch.Tensor], metric: bool):
    groups, edges, order = layout
    if not len(order):
        return
    generator = torch.Generator().manual_seed(len(order))
    zoo = torch.randn(40, len(order), generator=generator)
    sizes = [size for _, size in groups] + [size for *_, size in edges]
    factors = [torch.randn(size, size + 2, generator=generator) for size in sizes]
    metrics = [factor @ factor.T for factor in factors] if metric else None

    autoencoder = UnitParameterAutoencoder.from_zoo(
        zoo, order=order, groups=groups, edges=edges, metrics=metrics, explained_variance=1.0
    )

    unseen = torch.randn(3, len(order), generator=generator)
    for vectors in (zoo, unseen):
        torch.testing.assert_close(autoencoder(vectors).sample, vectors, atol=1e-4, rtol=1e-4)
    assert autoencoder.config.latent_dim >= len(order)
