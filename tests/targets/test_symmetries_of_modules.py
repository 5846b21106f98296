"""Symmetries of networks with normalizations, flattened maps and residual connections, and what is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import build
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from pdiff_hf import ConvNetConfig, ConvNetForImageClassification, ModuleTarget, make_processor
from pdiff_hf.loops import seeded
from pdiff_hf.targets.statistics import with_own_statistics
from pdiff_hf.targets.symmetries import Symmetries

SIZE = 8  # height and width of the images


class Residual(nn.Module):
    """A stem and blocks `x + W relu(V norm(x))`, as in transformers."""

    def __init__(self, width: int = 6, blocks: int = 2, norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Linear(SIZE**2, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in range(blocks))
        self.wide = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(blocks))
        self.narrow = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(blocks))
        self.head = nn.Linear(width, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(images.flatten(1))
        for norm, wide, narrow in zip(self.norms, self.wide, self.narrow, strict=True):
            hidden = hidden + narrow(wide(norm(hidden)).relu())
        return self.head(hidden)


class SelfReading(nn.Module):
    """Blocks `x + relu(W x)`: a weight that leads from units to the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.within, self.head = nn.Linear(SIZE**2, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(images.flatten(1))
        return self.head(hidden + self.within(hidden).relu())


class Flattened(nn.Module):
    """Convolutions, one of them depthwise, whose maps are flattened."""

    def __init__(self, norm: str = "layer", groups: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, stride=2)
        self.norm = nn.GroupNorm(groups, 4) if norm == "layer" else nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.flat_norm = nn.LayerNorm(36)
        self.head = nn.Linear(36, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.depthwise(self.norm(self.first(images)).relu())
        return self.head(self.flat_norm(hidden.flatten(1)).relu())


class Ordered(nn.Module):
    """Hidden units that a fixed factor makes different, in a branch that adds next to nothing."""

    def __init__(self, width: int = 2, size: float = 1.0) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(SIZE**2, width), nn.Linear(width, 3), nn.Linear(SIZE**2, 3)
        self.register_buffer("factor", torch.arange(1.0, width + 1))
        self.size = size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        return self.head(flat) + self.size * self.second(self.factor * self.first(flat).relu())


def wrapped(module: Callable[..., nn.Module], **arguments: object) -> PreTrainedModel:
    with seeded(0):
        return ModuleTarget.wrap(module(**arguments), arguments, num_labels=3).eval()


def convnet(normalization: str = "layer") -> PreTrainedModel:
    with seeded(0):
        config = ConvNetConfig(num_channels=1, hidden_sizes=[4, 6], num_labels=3, normalization=normalization)
        return ConvNetForImageClassification(config).eval()


def images(count: int = 16) -> torch.Tensor:
    return torch.randn(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(count))


def found(
    model: PreTrainedModel, subset: str | list[str] = "full", own_statistics: bool = False
) -> tuple[Symmetries, torch.Tensor]:
    """The symmetries of a network, and six unrelated vectors around its own."""
    processor = make_processor(model, subset)
    if own_statistics:
        processor = with_own_statistics(model, processor, images())
    own = processor.flatten(model.state_dict())
    noise = torch.randn(6, len(own), generator=torch.Generator().manual_seed(1))
    vectors = own + 0.3 * noise
    return Symmetries(model, processor, vectors[0], images()), vectors


def logits(model: PreTrainedModel, symmetries: Symmetries, vectors: torch.Tensor) -> torch.Tensor:
    """Logits up to a shift, on images that were not used to find the symmetries."""
    with torch.no_grad():
        all_logits = torch.stack(
            [functional_call(model, symmetries.processor.unflatten(v), (images(20),)).logits for v in vectors]
        )
    return all_logits - all_logits.mean(-1, keepdim=True)


NETWORKS: dict[str, Callable[[], PreTrainedModel]] = {
    "convnet": convnet,
    "residual": lambda: wrapped(Residual),
    "residual without norms": lambda: wrapped(Residual, norm=False),
    "self reading": lambda: wrapped(SelfReading),
    "flattened": lambda: wrapped(Flattened),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_transformed_and_canonical_vectors_compute_the_same_function(network: str):
    model = NETWORKS[network]()
    symmetries, vectors = found(model)
    expected = logits(model, symmetries, vectors)

    changed = symmetries.transform(vectors, torch.Generator().manual_seed(0))
    canonical = symmetries.canonicalize(changed)

    assert symmetries.layers
    assert (changed - vectors).norm(dim=1).min() > 0.3 * torch.pdist(vectors).median()
    for same in (changed, canonical):
        torch.testing.assert_close(logits(model, symmetries, same), expected, atol=2e-3, rtol=1e-3)
    again = symmetries.canonicalize(canonical)
    torch.testing.assert_close(again, canonical, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("network", NETWORKS)
def test_rescaled_vectors_have_the_canonical_form_of_the_original(network: str):
    symmetries, vectors = found(NETWORKS[network]())
    generator = torch.Generator().manual_seed(0)
    tensors = symmetries.processor.unflatten(vectors)
    for layer in symmetries.layers:
        for rescaling in layer.rescalings:
            count = 1 if rescaling.together else layer.count
            symmetries._rescale(tensors, rescaling, 0.5 + torch.rand(len(vectors), count, generator=generator))
    copies = symmetries._join(tensors)

    canonical = symmetries.canonicalize(vectors)

    torch.testing.assert_close(symmetries.canonicalize(copies), canonical, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("network", ["convnet", "residual", "flattened"])
def test_permuted_copies_are_at_distance_zero(network: str):
    symmetries, vectors = found(NETWORKS[network]())
    canonical = symmetries.canonicalize(vectors)
    copies = symmetries.canonicalize(symmetries.transform(vectors, torch.Generator().manual_seed(0)))

    distances = symmetries.distances(copies, canonical)

    assert distances.diagonal().max() < 1e-3 * distances[~torch.eye(6, dtype=torch.bool)].min()


def test_units_of_a_convnet_with_layernorm_own_their_norm_parameters():
    symmetries, vectors = found(convnet())

    first, second = symmetries.layers
    assert first.incoming == ("convolutions.0.weight", "norms.0.weight", "norms.0.bias")
    assert first.outgoing == ("convolutions.1.weight",)
    assert second.incoming == ("convolutions.1.weight", "norms.1.weight", "norms.1.bias")
    assert second.outgoing == ("classifier.weight",)
    tensors = symmetries.processor.unflatten(symmetries.canonicalize(vectors))
    for i in (0, 1):
        convolution = tensors[f"convolutions.{i}.weight"].flatten(1)
        torch.testing.assert_close(convolution.square().mean(1), torch.ones(6), atol=1e-3, rtol=0)
        norm = (tensors[f"norms.{i}.weight"] ** 2 + tensors[f"norms.{i}.bias"] ** 2).sqrt()
        readers = tensors[symmetries.layers[i].outgoing[0]].transpose(1, 2).flatten(2).norm(dim=2)
        torch.testing.assert_close(norm, readers, atol=1e-3, rtol=1e-3)


def test_statistics_of_their_own_free_the_channels_of_a_convnet():
    model = convnet("batch")
    for norm in model.norms:
        norm.running_mean.copy_(torch.arange(len(norm.running_mean)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    bound, _ = found(model)
    free, vectors = found(model, own_statistics=True)

    assert bound.layers == []
    assert [layer.count for layer in free.layers] == [4, 6]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    tensors = free.processor.unflatten(free.canonicalize(vectors))
    for i in (0, 1):
        convolution = tensors[f"convolutions.{i}.weight"].flatten(2)
        torch.testing.assert_close(convolution.square().mean(2), torch.ones(6, (4, 6)[i]), atol=1e-3, rtol=0)
    model.train()
    expected = logits(model, free, vectors)
    changed = free.transform(vectors, torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(model, free, changed), expected, atol=2e-3, rtol=1e-3)


def test_layers_that_residual_connections_tie_are_permuted_together():
    symmetries, _ = found(wrapped(Residual))

    stream, *inner = symmetries.layers
    assert (stream.count, [layer.count for layer in inner]) == (6, [12, 12])
    norms = [f"module.norms.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
    rows = [f"module.{name}.{kind}" for name in ("stem", "narrow.0", "narrow.1") for kind in ("weight", "bias")]
    assert sorted(stream.incoming) == sorted(norms + rows)
    assert sorted(stream.outgoing) == ["module.head.weight", "module.wide.0.weight", "module.wide.1.weight"]


def test_channels_of_a_resnet_are_tied_through_its_shortcuts():
    model = build("resnet")
    processor = make_processor(model, "full")
    generator = torch.Generator().manual_seed(0)
    vector = processor.flatten(model.state_dict())

    symmetries = Symmetries(model, processor, vector, torch.randn(8, 3, 16, 16, generator=generator))

    stem, _, _, last = symmetries.layers
    assert [layer.count for layer in symmetries.layers] == [8, 8, 16, 16]
    assert len([name for name in stem.incoming if name.endswith("convolution.weight")]) == 2
    assert len([name for name in stem.outgoing if name.endswith("convolution.weight")]) == 3
    assert last.outgoing == ("classifier.1.weight",)
    assert len([name for name in last.incoming if "shortcut" in name]) == 3


def test_maps_that_are_flattened_move_in_blocks():
    symmetries, _ = found(wrapped(Flattened))

    (layer,) = symmetries.layers
    assert layer.count == 4
    owned = ("first", "norm", "depthwise", "flat_norm")
    assert layer.incoming == tuple(f"module.{name}.{kind}" for name in owned for kind in ("weight", "bias"))
    assert layer.outgoing == ("module.head.weight",)


@pytest.mark.parametrize(
    ("model", "subset"),
    [
        (lambda: wrapped(Flattened, groups=2), "full"),  # channels of one group of a norm cannot go to the other
        (convnet, ["convolutions.*", "classifier.*"]),  # the norms stay where they are
        (lambda: wrapped(Residual), ["*stem*", "*wide.0*", "*wide.1*", "*head*"]),  # so does what is added
        (lambda: wrapped(Ordered), "full"),
        (lambda: wrapped(Ordered, width=5, size=1e-6), "full"),
    ],
    ids=["groups", "frozen norms", "frozen residuals", "two ordered units", "negligible units"],
)
def test_units_that_are_not_alike_are_not_permuted(model: Callable[[], PreTrainedModel], subset: str | list[str]):
    symmetries, _ = found(model(), subset)

    assert symmetries.layers == []
