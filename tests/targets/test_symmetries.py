"""Symmetries: found ones change no prediction, and distances modulo them are those of brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from conftest import build
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from pdiff_hf import MLPConfig, MLPForImageClassification, ParameterProcessor, make_processor
from pdiff_hf.loops import seeded
from pdiff_hf.targets.symmetries import Symmetries


class GeluMLP(MLPForImageClassification):
    """An MLP whose activation is neither homogeneous nor odd."""

    def compute_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = pixel_values.flatten(1)
        for layer in self.layers:
            hidden = nn.functional.gelu(layer(hidden))
        return self.classifier(hidden)


def images_of(model: PreTrainedModel, count: int = 32) -> torch.Tensor:
    size = getattr(model.config, "image_size", 16)
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, getattr(model.config, "num_channels", 1), size, size, generator=generator)


def mlp_of(hidden: list[int], family: type[PreTrainedModel] = MLPForImageClassification) -> PreTrainedModel:
    with seeded(1):
        return family(MLPConfig(image_size=4, num_channels=1, hidden_sizes=hidden, num_labels=5)).eval()


def vectors_of(model: PreTrainedModel, processor: ParameterProcessor, count: int, seed: int = 0) -> torch.Tensor:
    """Unrelated vectors with entries of the size of the model's own, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    return 0.4 * torch.randn(count, processor.parameter_dim, generator=generator)


def found(model: PreTrainedModel, subset: str | list[str] = "full") -> tuple[Symmetries, torch.Tensor]:
    """The symmetries of a network, and eight vectors of unrelated networks."""
    processor = make_processor(model, subset)
    vectors = vectors_of(model, processor, 8)
    return Symmetries(model, processor, vectors[0], images_of(model)), vectors


def joined(symmetries: Symmetries, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Vectors `(n, D)` of tensors `(n, *shape)`."""
    return torch.cat([tensors[name].flatten(1) for name in symmetries.processor.names], dim=1)


def shifted(symmetries: Symmetries, vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same functions, with one random shift of the weights and biases of all classes."""
    tensors = dict(symmetries.processor.unflatten(vectors.clone()))
    for name in symmetries.shift:
        tensors[name] = tensors[name] + torch.randn(tensors[name][:, :1].shape, generator=generator)
    return joined(symmetries, tensors)


def rescaled(symmetries: Symmetries, vectors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same functions, with every hidden unit multiplied and its readers divided by one number."""
    tensors = {name: tensor.clone() for name, tensor in symmetries.processor.unflatten(vectors).items()}
    for layer in symmetries.layers:
        scale = torch.exp(torch.randn(len(vectors), layer.count, generator=generator))
        for name in layer.incoming:
            tensors[name] *= scale[:, :, None] if tensors[name].ndim == 3 else scale
        for name in layer.outgoing:
            tensors[name] /= scale[:, None]
    return joined(symmetries, tensors)


def permuted(symmetries: Symmetries, vector: torch.Tensor, orders: Iterable[Sequence[int]]) -> torch.Tensor:
    """The same function `(D,)`, its hidden units in another order."""
    tensors = dict(symmetries.processor.unflatten(vector[None]))
    for layer, order in zip(symmetries.layers, map(list, orders), strict=True):
        for name in layer.incoming:
            tensors[name] = tensors[name][:, order]
        for name in layer.outgoing:
            tensors[name] = tensors[name][:, :, order]
    return joined(symmetries, tensors)[0]


def every_order(symmetries: Symmetries, vector: torch.Tensor) -> torch.Tensor:
    """All permutations of a vector's hidden units, `(orders, D)` float64."""
    counts = [layer.count for layer in symmetries.layers]
    orders = itertools.product(*(itertools.permutations(range(count)) for count in counts))
    return torch.stack([permuted(symmetries, vector, order) for order in orders]).double()


def assert_same_function(model: PreTrainedModel, symmetries: Symmetries, ours: torch.Tensor, theirs: torch.Tensor):
    """Softmax predictions agree on images that were not used to find the symmetries."""
    images = images_of(model, 20)
    with torch.no_grad():
        for one, other in zip(ours, theirs, strict=True):
            unflatten = symmetries.processor.unflatten
            logits, expected = (functional_call(model, unflatten(v), (images,)).logits for v in (one, other))
            torch.testing.assert_close(logits.softmax(-1), expected.softmax(-1), atol=1e-5, rtol=0)


def natural(vectors: torch.Tensor) -> float:
    """The median distance of unrelated vectors."""
    return torch.pdist(vectors).median().item()


HIDDEN = [[6], [6, 7]]


@pytest.mark.parametrize("hidden", HIDDEN)
def test_every_hidden_layer_of_a_relu_mlp_is_found(hidden: list[int]):
    symmetries, _ = found(mlp_of(hidden))

    names = [f"layers.{i}" for i in range(len(hidden))] + ["classifier"]
    assert [layer.count for layer in symmetries.layers] == hidden
    assert all(layer.rescalable for layer in symmetries.layers)
    for layer, before, after in zip(symmetries.layers, names, names[1:], strict=False):
        assert layer.incoming == (f"{before}.weight", f"{before}.bias")
        assert layer.outgoing == (f"{after}.weight",)
    assert symmetries.shift == ("classifier.weight", "classifier.bias")


def test_units_count_only_if_all_that_enters_and_leaves_them_is_generated():
    model = mlp_of([6, 7])

    for subset, layers in (
        ("head", []),
        (["layers.0.*"], []),
        (["layers.*.weight", "classifier.*"], []),  # the biases stay where they are
        (["layers.1.*", "classifier.weight"], [7]),
        (["layers.0.*", "classifier.*"], []),  # nothing reads the first layer's units directly
    ):
        symmetries, _ = found(model, subset)
        assert [layer.count for layer in symmetries.layers] == layers, subset


def test_the_head_alone_can_be_shifted():
    symmetries, vectors = found(mlp_of([6]), "head")

    assert symmetries.layers == []
    assert symmetries.shift == ("classifier.weight", "classifier.bias")
    for tensor in symmetries.processor.unflatten(symmetries.canonicalize(vectors)).values():
        torch.testing.assert_close(tensor.mean(1), torch.zeros_like(tensor.mean(1)), atol=1e-6, rtol=0)


def test_units_behind_a_gelu_can_be_permuted_but_not_rescaled():
    model = mlp_of([6], GeluMLP)
    symmetries, vectors = found(model)

    (layer,) = symmetries.layers
    assert layer.count == 6
    assert not layer.rescalable
    changed = symmetries.transform(vectors, torch.Generator().manual_seed(0))
    assert_same_function(model, symmetries, changed, vectors)


def test_norms_in_the_midst_of_a_resnet_have_no_symmetry(tiny_resnet: PreTrainedModel, random_vectors: Callable):
    processor = make_processor(tiny_resnet, "last_norms")
    vectors = random_vectors(tiny_resnet, processor, 3)

    symmetries = Symmetries(tiny_resnet, processor, vectors[0], images_of(tiny_resnet))

    assert (symmetries.layers, symmetries.shift) == ([], ())
    assert torch.equal(symmetries.transform(vectors, torch.Generator().manual_seed(0)), vectors)
    assert torch.equal(symmetries.canonicalize(vectors), vectors)
    assert torch.equal(symmetries.align(vectors, vectors[1]), vectors)


def test_channels_of_a_convnet_are_bound_by_the_statistics_of_their_batchnorm():
    model = build("convnet")
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.2 + torch.rand(module.running_var.shape, generator=generator))

    symmetries, _ = found(model)

    assert symmetries.layers == []


# Transformations


@pytest.mark.parametrize("hidden", HIDDEN)
def test_transformed_vectors_are_other_parameters_of_the_same_function(hidden: list[int]):
    model = mlp_of(hidden)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    symmetries, vectors = found(model)
    given = vectors.clone()

    changed = symmetries.transform(vectors, torch.Generator().manual_seed(0))
    symmetries.distances(symmetries.canonicalize(vectors), vectors)

    assert torch.equal(vectors, given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (changed - vectors).norm(dim=1).min() > 0.3 * natural(vectors)
    assert_same_function(model, symmetries, changed, vectors)
    again = symmetries.transform(vectors, torch.Generator().manual_seed(0))
    other = symmetries.transform(vectors, torch.Generator().manual_seed(1))
    assert torch.equal(changed, again)
    assert not torch.equal(changed, other)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_the_canonical_form_is_the_same_function_with_balanced_units(hidden: list[int]):
    model = mlp_of(hidden)
    symmetries, vectors = found(model)

    canonical = symmetries.canonicalize(vectors)

    assert_same_function(model, symmetries, canonical, vectors)
    assert (symmetries.canonicalize(canonical) - canonical).norm(dim=1).max() <= 1e-5 * natural(vectors)
    tensors = symmetries.processor.unflatten(canonical)
    for layer in symmetries.layers:
        weight, bias = (tensors[name] for name in layer.incoming)
        into = (weight.norm(dim=2) ** 2 + bias**2).sqrt()
        torch.testing.assert_close(into, tensors[layer.outgoing[0]].norm(dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_rescaled_and_shifted_copies_have_one_canonical_form(hidden: list[int]):
    model = mlp_of(hidden)
    symmetries, vectors = found(model)
    generator = torch.Generator().manual_seed(0)
    copies = shifted(symmetries, rescaled(symmetries, vectors, generator), generator)
    assert_same_function(model, symmetries, copies, vectors)

    difference = symmetries.canonicalize(copies) - symmetries.canonicalize(vectors)

    assert difference.norm(dim=1).max() <= 1e-5 * natural(vectors)


def test_a_dead_unit_stays_finite():
    symmetries, vectors = found(mlp_of([6]))
    tensors = {name: tensor.clone() for name, tensor in symmetries.processor.unflatten(vectors).items()}
    tensors["layers.0.weight"][0, 2] = tensors["layers.0.bias"][0, 2] = 0
    tensors["classifier.weight"][1, :, 3] = 0

    canonical = symmetries.canonicalize(joined(symmetries, tensors))

    assert canonical.isfinite().all()
    assert symmetries.distances(canonical, canonical).isfinite().all()


# Distances


def test_a_transformed_copy_is_at_distance_zero():
    symmetries, vectors = found(mlp_of([32]))
    canonical = symmetries.canonicalize(vectors)
    generator = torch.Generator().manual_seed(0)
    copies = shifted(symmetries, symmetries.transform(vectors, generator), generator)

    distances = symmetries.distances(symmetries.canonicalize(copies), canonical)

    assert distances.diagonal().max() <= 1e-5 * natural(canonical)
    between = distances[~torch.eye(8, dtype=torch.bool)]
    assert between.min() > 0.1 * natural(canonical)


def test_an_untransformed_copy_is_at_distance_zero_without_hidden_layers():
    # Enough vectors for the matrix product with which distances are otherwise computed, and loses digits.
    model = mlp_of([6])
    processor = make_processor(model, "head")
    vectors = 10 + vectors_of(model, processor, 40)
    symmetries = Symmetries(model, processor, vectors[0], images_of(model))

    distances = symmetries.distances(vectors, vectors)

    assert distances.diagonal().max() <= 1e-5 * natural(vectors)


def test_distances_of_one_hidden_layer_are_those_of_brute_force():
    symmetries, vectors = found(mlp_of([4]))
    canonical = symmetries.canonicalize(vectors)

    distances = symmetries.distances(canonical, canonical)

    expected = torch.stack([torch.cdist(every_order(symmetries, v), canonical.double()).amin(0) for v in canonical])
    torch.testing.assert_close(distances.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(distances, distances.T, atol=1e-5, rtol=1e-5)


def test_distances_of_two_hidden_layers_lie_between_brute_force_and_the_plain_ones():
    symmetries, vectors = found(mlp_of([3, 4]))
    canonical = symmetries.canonicalize(vectors)
    plain = torch.cdist(canonical.double(), canonical.double())

    distances = symmetries.distances(canonical, canonical).double()

    assert (distances <= plain + 1e-5 * natural(canonical)).all()
    assert (distances < plain - 0.01).any()
    least = torch.cdist(every_order(symmetries, canonical[0]), canonical.double()).amin(0)
    assert (distances[0] >= least - 1e-5).all()


@pytest.mark.parametrize("hidden", HIDDEN)
def test_only_the_columns_asked_for_are_minimized(hidden: list[int]):
    symmetries, vectors = found(mlp_of(hidden))
    canonical = symmetries.canonicalize(vectors)
    everything = symmetries.distances(canonical, canonical)
    columns = torch.tensor([[(i + 1) % 8, (i + 3) % 8] for i in range(8)])

    some = symmetries.distances(canonical, canonical, columns)

    chosen = torch.zeros(8, 8, dtype=torch.bool).scatter(1, columns, True)
    torch.testing.assert_close(some[chosen], everything[chosen])
    torch.testing.assert_close(some[~chosen], torch.cdist(canonical, canonical)[~chosen], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_aligned_copies_are_the_reference_again(hidden: list[int]):
    symmetries, vectors = found(mlp_of(hidden))
    generator = torch.Generator().manual_seed(0)
    for reference in symmetries.canonicalize(vectors):
        orders = [torch.randperm(count, generator=generator).tolist() for count in hidden]
        copy = permuted(symmetries, reference, orders)[None]

        aligned = symmetries.align(copy, reference)

        assert not torch.equal(copy[0], reference)
        assert (aligned - reference).norm() <= 1e-5 * natural(vectors)
        assert symmetries.distances(copy, reference[None]).max() <= 1e-5 * natural(vectors)


def test_aligning_only_permutes():
    model = mlp_of([6, 7])
    symmetries, vectors = found(model)
    canonical = symmetries.canonicalize(vectors)

    aligned = symmetries.align(canonical, canonical[0])

    assert torch.equal(aligned.sort(1).values, canonical.sort(1).values)
    assert torch.equal(aligned[0], canonical[0])
    plain = (canonical - canonical[0]).norm(dim=1)
    assert ((aligned - canonical[0]).norm(dim=1) <= plain + 1e-5).all()
    assert_same_function(model, symmetries, aligned, vectors)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_copies_are_aligned_to_their_mean(hidden: list[int]):
    symmetries, vectors = found(mlp_of(hidden))
    canonical = symmetries.canonicalize(vectors)
    orders = [[torch.randperm(n, generator=torch.Generator().manual_seed(i)) for n in hidden] for i in range(4)]
    copies = torch.stack([permuted(symmetries, canonical[0], order) for order in orders])

    for restart in (False, True):
        aligned, mean = symmetries.align_to_mean(copies, rounds=2, restart=restart)

        assert torch.equal(aligned, copies[:1].expand(4, -1))
        torch.testing.assert_close(mean, copies[0])
