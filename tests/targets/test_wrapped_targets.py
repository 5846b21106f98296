"""Compiled and wrapped networks, and networks in the manner of torchvision, go from recorder to loaded pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import build
from torch import distributed, nn
from torch.optim.swa_utils import AveragedModel
from transformers import BertConfig, BertModel, PreTrainedModel, Trainer, TrainingArguments, ViTModel

from pdiff_hf import (
    CheckpointCallback,
    CheckpointRecorder,
    CheckpointsError,
    LayoutError,
    ModuleTarget,
    PDiffPipeline,
    Recipe,
    TrajectorySettings,
    collect,
    collect_runs,
    fit,
    load_checkpoints,
    load_images,
)
from pdiff_hf.loops import seeded
from pdiff_hf.zoo.settings import MultiRunSettings


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone, as `DistributedDataParallel` asks for."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class BasicBlock(nn.Module):
    """torchvision's residual block."""

    def __init__(self, width: int, norm_layer: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), norm_layer(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), norm_layer(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(hidden)) + x)


class ResNet(nn.Module):
    """In the manner of torchvision: blocks and norms are classes among the arguments, the output is a tensor."""

    def __init__(
        self,
        block: type[BasicBlock],
        layers: list[int],
        num_classes: int = 1000,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        norm_layer = norm_layer or nn.BatchNorm2d
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), norm_layer(8)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1, self.layer2 = (nn.Sequential(*(block(8, norm_layer) for _ in range(count))) for count in layers)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


def resnet() -> tuple[ResNet, dict]:
    arguments = {"block": BasicBlock, "layers": [1, 1], "num_classes": 4}
    with seeded(0):
        return ResNet(**arguments).eval(), arguments


def in_data_parallel(network: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(network)


def images(network: nn.Module) -> torch.Tensor:
    shape = (6, 1, 8, 8) if network.config.model_type == "pdiff_mlp" else (6, 3, 32, 32)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def assert_goes_the_whole_way(network: nn.Module, target: PreTrainedModel, subset: str, recipe: Recipe, work: Path):
    """Records a network, whose target is found inside of it, fits, draws, saves and reloads."""
    recorder = CheckpointRecorder(network, subset)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=3e-2)
    inputs = images(target)
    for step in range(20):
        optimizer.zero_grad()
        output = network(inputs)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        nn.functional.cross_entropy(logits, torch.arange(6) % 4).backward()
        optimizer.step()
        recorder.record(step)
    recorder.checkpoints().save(work / "zoo")
    pipe = fit(load_checkpoints(work / "zoo"), recipe)
    pipe.save_pretrained(work / "pipeline")
    out = PDiffPipeline.from_pretrained(work / "pipeline")(2, generator=torch.Generator().manual_seed(0))
    out.save_pretrained(work / "drawn")

    assert recorder.model is target
    assert torch.equal(recorder.checkpoints().zoo.parameters[-1], recorder.processor.flatten(target.state_dict()))
    logits = out.logits(inputs)
    assert torch.equal(logits, pipe(2, generator=torch.Generator().manual_seed(0)).logits(inputs))
    for i in range(2):
        saved = type(target).from_pretrained(work / "drawn" / f"{i:05d}").eval()
        assert torch.allclose(saved(inputs).logits, logits[i], atol=1e-5)


@pytest.mark.parametrize("subset", ["head", "last_norms"])
def test_network_in_the_manner_of_torchvision_goes_the_whole_way(subset: str, tiny_recipe: Recipe, tmp_path: Path):
    target = ModuleTarget.wrap(*resnet(), num_labels=4)
    CheckpointRecorder(target, subset).freeze_trunk()

    assert_goes_the_whole_way(target, target, subset, tiny_recipe, tmp_path)


@pytest.mark.parametrize("wrap", [nn.DataParallel, in_data_parallel, AveragedModel])
@pytest.mark.usefixtures("process_group")
def test_wrapped_network_goes_the_whole_way(wrap: Callable, mlp: PreTrainedModel, tiny_recipe: Recipe, tmp_path: Path):
    CheckpointRecorder(mlp, "head").freeze_trunk()
    network = wrap(mlp)

    assert_goes_the_whole_way(network, network.module, "head", tiny_recipe, tmp_path)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, in_data_parallel])
@pytest.mark.usefixtures("process_group")
def test_wrapped_plain_module_is_looked_through(wrap: Callable):
    module, arguments = resnet()

    target = ModuleTarget.wrap(wrap(module), arguments, num_labels=4)

    assert target.module is module


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (torch.compile, "OptimizedModule"),
        (nn.DataParallel, "DataParallel"),
        (in_data_parallel, "DistributedDataParallel"),
    ],
)
@pytest.mark.usefixtures("process_group")
def test_module_that_is_compiled_or_wrapped_inside_of_a_network_is_refused(
    wrap: Callable, name: str, mlp: PreTrainedModel
):
    mlp.classifier = wrap(mlp.classifier)
    module, arguments = resnet()
    module.layer1[0] = wrap(module.layer1[0])

    with pytest.raises(LayoutError, match=rf"'classifier' in .*MLP\w+ is a {name}, .*model\.classifier\.compile\(\)"):
        CheckpointRecorder(mlp, "head")
    with pytest.raises(LayoutError, match=rf"'classifier' in this MLP\w+ is a {name}"):
        CheckpointRecorder(nn.DataParallel(mlp), "head")
    with pytest.raises(LayoutError, match=rf"'layer1\.0' in this ResNet is a {name}"):
        ModuleTarget.wrap(module, arguments)


@pytest.mark.usefixtures("process_group")
def test_trunk_is_frozen_before_gradients_of_it_are_awaited(mlp: PreTrainedModel):
    recorder = CheckpointRecorder(in_data_parallel(mlp), "head")

    with pytest.raises(CheckpointsError, match="must be frozen before DistributedDataParallel wraps the network"):
        recorder.freeze_trunk()

    assert all(parameter.requires_grad for parameter in mlp.parameters())


def test_module_that_is_compiled_in_place_keeps_its_names(mlp: PreTrainedModel):
    mlp.classifier.compile()

    assert CheckpointRecorder(mlp, "head").processor.names == ["classifier.weight", "classifier.bias"]


# Networks without logits


def headless() -> PreTrainedModel:
    return BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).eval()


def test_network_without_logits_is_refused_by_the_recorder_and_the_callback(tmp_path: Path):
    sentence = r"BertModel returns a BaseModelOutput\w* without logits.* choose a network with a head"
    with pytest.raises(ValueError, match=sentence):
        CheckpointRecorder(headless(), "pooler.*")

    arguments = TrainingArguments(str(tmp_path), max_steps=800, report_to="none", use_cpu=True)
    rows = [{"input_ids": torch.ones(3, dtype=torch.long), "labels": 0}] * 8
    with pytest.raises(ValueError, match=sentence):
        Trainer(headless(), arguments, train_dataset=rows, callbacks=[CheckpointCallback("pooler.*")]).train()


@pytest.mark.parametrize("settings", [TrajectorySettings, MultiRunSettings])
def test_network_without_logits_is_refused_by_the_collections(settings: type):
    network = ViTModel(build("vit").config)
    collecting = collect if settings is TrajectorySettings else collect_runs

    with pytest.raises(ValueError, match=r"ViTModel returns a BaseModelOutput\w* without logits"):
        collecting(load_images("digits", image_size=16), network, settings(subset=["*layernorm.*"]))
