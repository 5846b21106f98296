"""BatchNorm statistics of each network's own: which there are, what they are, and that none may be missing."""

from __future__ import annotations

import pytest
import torch
from conftest import build
from torch import nn
from torch.optim.swa_utils import update_bn
from transformers import PreTrainedModel

from pdiff_hf import (
    LayoutError,
    ModuleTarget,
    ParameterProcessor,
    build_network,
    make_processor,
    network_logits,
)
from pdiff_hf.loops import seeded
from pdiff_hf.targets import statistics as statistics_of_networks
from pdiff_hf.targets.processing_parameters import StatisticsError
from pdiff_hf.targets.statistics import batch_statistics, estimate_statistics, with_own_statistics


class NormedMLP(nn.Module):
    """Linear layers, so that many networks are evaluated at once; the second BatchNorm runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm, self.twice = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.second(self.norm(self.first(images.flatten(1))).relu())
        return self.head(self.twice(self.twice(hidden).relu()))


def networks(
    family: str, subset: str | list[str] = "full"
) -> tuple[PreTrainedModel, ParameterProcessor, torch.Tensor]:
    """A target, the layout of networks with statistics of their own, and three of them."""
    with seeded(0):
        model = build(family) if family == "convnet" else ModuleTarget.wrap(NormedMLP(), {}, num_labels=3).eval()
    processor = with_own_statistics(model, make_processor(model, subset), images(model, 4))
    own = processor.flatten(model.state_dict())
    return model, processor, own + 0.3 * torch.randn(3, len(own), generator=torch.Generator().manual_seed(1))


def images(model: PreTrainedModel, count: int) -> torch.Tensor:
    channels = getattr(model.config, "num_channels", 1)
    return 2 + torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", ["convnet", "mlp"])
@pytest.mark.parametrize("budget", [2**25, 1], ids=["all networks at once", "one network at a time"])
def test_statistics_are_those_that_update_bn_gives_each_network(family: str, budget: int, monkeypatch):
    monkeypatch.setattr(statistics_of_networks, "ACTIVATION_BUDGET", budget)
    model, processor, parameters = networks(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = images(model, 48)

    statistics = estimate_statistics(model, processor, parameters, inputs, batch_size=16)

    for i, vector in enumerate(parameters):
        network = build_network(model, processor, vector)
        update_bn(inputs.split(16), network)
        buffers = {name: b for name, b in network.named_buffers() if not name.endswith("num_batches_tracked")}
        assert buffers.keys() == statistics.keys()
        for name, expected in buffers.items():
            torch.testing.assert_close(statistics[name][i], expected, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["convnet", "mlp"])
def test_many_networks_with_statistics_of_their_own_give_what_each_of_them_gives(family: str):
    model, processor, parameters = networks(family)
    statistics = estimate_statistics(model, processor, parameters, images(model, 64))
    shown = images(model, 70)[64:]

    logits = network_logits(model, processor, parameters, shown, statistics=statistics)

    for i, vector in enumerate(parameters):
        own = {name: values[i] for name, values in statistics.items()}
        expected = build_network(model, processor, vector, statistics=own)(shown).logits
        torch.testing.assert_close(logits[i], expected, atol=1e-4, rtol=1e-4)
        assert (build_network(model, processor, vector)(shown).logits - expected).abs().max() > 0.1


def test_only_batchnorms_that_generated_tensors_feed_have_statistics_of_their_own():
    model, processor, _ = networks("convnet", ["norms.0.*", "classifier.*"])
    assert processor.statistics == ["norms.1"]

    head = make_processor(model, "head")
    assert with_own_statistics(model, head, images(model, 4)).statistics == []


def test_layouts_keep_the_names_of_their_statistics(tmp_path):
    _, processor, _ = networks("convnet")
    processor.save_pretrained(tmp_path)

    assert ParameterProcessor.from_pretrained(tmp_path).statistics == ["norms.0", "norms.1"]
    with pytest.raises(LayoutError, match=r"'norms\.0' is no BatchNorm"):
        processor.check_model(build("convnet").apply(lambda m: m.register_buffer("running_mean", None)))


def test_batches_of_an_uneven_number_of_examples_are_of_one_size():
    model, processor, parameters = networks("convnet")
    inputs = images(model, 33)

    statistics = estimate_statistics(model, processor, parameters, inputs, batch_size=32)  # not 32 and 1

    halves = [estimate_statistics(model, processor, parameters, half) for half in (inputs[:17], inputs[17:])]
    for name, values in statistics.items():
        torch.testing.assert_close(values, (halves[0][name] + halves[1][name]) / 2)
    few = estimate_statistics(model, processor, parameters, inputs[:3], batch_size=2)  # not 2 and 1
    for name, values in estimate_statistics(model, processor, parameters, inputs[:3]).items():
        torch.testing.assert_close(values, few[name])


def test_networks_are_not_evaluated_without_their_statistics():
    model, processor, parameters = networks("convnet")
    shown = images(model, 4)
    with pytest.raises(StatisticsError, match=r"'norms\.0'.*out\.update_bn\(images\).*statistics=estimate") as raised:
        network_logits(model, processor, parameters, shown)
    assert str(raised.value).endswith(".")

    statistics = estimate_statistics(model, processor, parameters[:2], shown)
    with pytest.raises(StatisticsError, match=r"Statistics of \[2\] networks .* those of 3 networks"):
        network_logits(model, processor, parameters, shown, statistics=statistics)
    with pytest.raises(StatisticsError, match="there are 1 examples in batches of 256"):
        estimate_statistics(model, processor, parameters, shown[:1])


def test_a_network_without_statistics_of_its_own_needs_none():
    model = build("convnet")
    processor = make_processor(model, "full")
    vectors = processor.flatten(model.state_dict())[None]

    assert estimate_statistics(model, processor, vectors, images(model, 1)) == {}
    assert network_logits(model, processor, vectors, images(model, 2), statistics={}).shape == (1, 2, 4)


def test_batch_statistics_are_those_of_training_mode_and_move_nothing():
    model = build("convnet")
    shown, before = images(model, 8), {name: tensor.clone() for name, tensor in model.state_dict().items()}

    with batch_statistics(model, ["norms.0", "norms.1"]):
        logits = model(shown).logits

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(logits, model.train()(shown).logits)
