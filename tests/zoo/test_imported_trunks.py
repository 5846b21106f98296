"""What imported networks share: the trunk, statistics of BatchNorm, and the order of hidden units."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import build
from published_files import save_all, small
from safetensors.torch import save_file
from transformers import PreTrainedModel

from pdiff_hf import (
    CheckpointRecorder,
    Checkpoints,
    CheckpointsError,
    TensorData,
    TensorSplit,
    build_network,
)


@pytest.fixture
def networks() -> list[PreTrainedModel]:
    return [small(seed) for seed in range(12)]


def test_other_trunk_is_named_with_its_file_and_tensor(tmp_path, networks):
    save_all(networks, tmp_path / "zoo")

    with pytest.raises(
        CheckpointsError,
        match=r"net_01.safetensors' and .*net_00.safetensors' differ in 'layers.0.weight', .*--subset full",
    ):
        Checkpoints.from_files([tmp_path / "zoo"], small(), "head", skip_broken=True)


def test_networks_of_one_trunk_are_saved_with_it(tmp_path, networks):
    for network in networks:
        network.layers.load_state_dict(networks[0].layers.state_dict())
    save_all(networks, tmp_path / "zoo")
    model = small(77)
    before = copy.deepcopy(model.state_dict())

    imported = Checkpoints.from_files([tmp_path / "zoo"], model, ["classifier.*"])

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    drawn = build_network(imported.target_model, imported.processor, imported.zoo.parameters[0])
    index = int(imported.zoo.run[0].removeprefix("net_"))
    x = torch.randn(5, 1, 4, 4)
    assert torch.equal(drawn(x).logits, networks[index](x).logits)


@pytest.fixture
def small_images() -> TensorData:
    splits = (TensorSplit(torch.randn(n, 3, 16, 16), torch.arange(n) % 4) for n in (24, 12, 4))
    return TensorData(*splits, label_names=list("abcd"))


def batchnorm_networks(tmp_path: Path, own_statistics: bool) -> tuple[PreTrainedModel, Path]:
    """Ten networks with a BatchNorm behind generated tensors, in a folder."""
    model = build("resnet")
    for i in range(10):
        network = copy.deepcopy(model)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        for name, buffer in network.named_buffers():
            if own_statistics and name.endswith("running_mean"):
                torch.nn.init.normal_(buffer)
            if name.endswith("num_batches_tracked"):
                buffer.fill_(i)
        save_file(network.state_dict(), tmp_path / f"net_{i}.safetensors")
    return model, tmp_path


def test_statistics_that_differ_are_each_networks_own_if_there_are_images(tmp_path, small_images):
    model, folder = batchnorm_networks(tmp_path, own_statistics=True)

    imported = Checkpoints.from_files([folder], model, images=small_images)

    assert (
        imported.processor.statistics
        == CheckpointRecorder(
            model, "full", example_inputs=small_images.inputs(small_images.train)
        ).processor.statistics
    )
    assert all(len(rows.validation_score) == len(rows) for rows in imported.splits.values())


def test_statistics_that_differ_are_refused_without_images(tmp_path):
    model, folder = batchnorm_networks(tmp_path, own_statistics=True)

    with pytest.raises(CheckpointsError, match=r"running_mean'.*pass --dataset_name \(images=…\)"):
        Checkpoints.from_files([folder], model)


def test_equal_statistics_stay_those_of_the_trunk(tmp_path, small_images):
    model, folder = batchnorm_networks(tmp_path, own_statistics=False)

    imported = Checkpoints.from_files([folder], model, images=small_images)

    assert imported.processor.statistics == []


def test_canonical_form_undoes_permutations_of_units(tmp_path):
    network, images = (
        small(),
        TensorData(
            *(TensorSplit(torch.rand(n, 1, 4, 4), torch.arange(n) % 4) for n in (24, 12, 4)), label_names=list("abcd")
        ),
    )
    for i in range(10):
        order, copied = torch.randperm(8), copy.deepcopy(network)
        copied.layers[0].weight.data, copied.layers[0].bias.data = (p[order] for p in network.layers[0].parameters())
        copied.classifier.weight.data = network.classifier.weight[:, order]
        save_file({n: t.contiguous() for n, t in copied.state_dict().items()}, tmp_path / f"net_{i}.safetensors")

    plain = Checkpoints.from_files([tmp_path], small(), images=images)
    canonical = Checkpoints.from_files([tmp_path], small(), images=images, canonicalize=True)

    def spread(zoo: Checkpoints) -> float:
        everything = torch.cat([rows.parameters for rows in zoo.splits.values()])
        return (everything - everything[0]).abs().max().item()

    assert spread(plain) > 0.01
    assert spread(canonical) < 1e-5
    assert canonical.zoo.validation_score == plain.zoo.validation_score


def test_canonical_form_without_images_is_refused(tmp_path, networks):
    save_all(networks, tmp_path / "zoo")

    with pytest.raises(CheckpointsError, match=r"pass images=… \(--dataset_name\)"):
        Checkpoints.from_files([tmp_path / "zoo"], small(), canonicalize=True)
