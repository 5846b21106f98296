"""Exact relabelings: exchanged outputs are found by trying, and the complement is the same function."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pdiff_hf import ConvNetConfig, ConvNetForImageClassification, MLPConfig, MLPForImageClassification
from pdiff_hf.loops import seeded
from pdiff_hf.targets.conditions import ConditionError, Conditions
from pdiff_hf.targets.inference import network_logits
from pdiff_hf.targets.relabeling import complements, exchanged_outputs
from pdiff_hf.targets.subsets import make_processor

BITS = Conditions("bits", ("a", "b", "c", "d"), complement=True)


def build_mlp(hidden: list[int], num_labels: int = 2) -> nn.Module:
    config = MLPConfig(image_size=4, num_channels=1, hidden_sizes=hidden, num_labels=num_labels)
    return MLPForImageClassification(config).eval()


@given(
    hidden=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    subset=st.sampled_from(["full", "head"]),
)
def test_networks_of_complements_have_exchanged_logits(hidden, seed, subset):
    with seeded(seed):
        model, images = build_mlp(hidden), torch.randn(9, 1, 4, 4)
        processor = make_processor(model, subset)
        vectors = torch.randn(3, processor.parameter_dim)
        bits = torch.randint(2, (3, 4)).float()

    order = exchanged_outputs(model, processor, vectors[0], images)
    relabeled, complement = complements(vectors, bits, BITS, order)

    before, after = (network_logits(model, processor, v, images) for v in (vectors, relabeled))
    torch.testing.assert_close(after, before.flip(-1))
    assert torch.equal(complement, 1 - bits)
    again, same_bits = complements(relabeled, complement, BITS, order)
    assert torch.equal(again, vectors)
    assert torch.equal(same_bits, bits)


def test_the_outputs_of_a_canonical_convolutional_network_are_found():
    with seeded(0):
        config = ConvNetConfig(num_channels=1, hidden_sizes=[2, 2], num_labels=2, normalization="layer")
        model, images = ConvNetForImageClassification(config).eval(), torch.randn(9, 1, 8, 8)
    processor = make_processor(model, "full")
    vector = processor.flatten(model.state_dict())
    head = processor.unflatten(vector)["classifier.weight"]
    head -= head.mean(0)  # as in canonical form, in which one logit is the other with its sign changed

    order = exchanged_outputs(model, processor, vector, images)

    moved = {name for name, t in processor.unflatten(order != torch.arange(len(order))).items() if t.any()}
    assert moved == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(("subset", "num_labels"), [(["layers.*"], 2), (["classifier.weight"], 2), ("full", 3)])
def test_outputs_that_the_vector_cannot_exchange_are_refused(subset, num_labels):
    with seeded(0):
        model, images = build_mlp([2], num_labels), torch.randn(9, 1, 4, 4)
        nn.init.normal_(model.classifier.bias)
    processor = make_processor(model, subset)
    with pytest.raises(ConditionError, match=r"two outputs .* generate the whole output layer, or state complement=F"):
        exchanged_outputs(model, processor, processor.flatten(model.state_dict()), images)


def test_complements_that_are_other_tasks_are_refused():
    plain = Conditions("bits", BITS.names)
    with pytest.raises(ConditionError, match="are other tasks here"):
        complements(torch.zeros(1, 4), torch.zeros(1, 4), plain, torch.arange(4))
