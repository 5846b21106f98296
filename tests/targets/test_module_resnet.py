"""A ResNet as torchvision writes it, a plain module with BatchNorm and strided shortcuts, is a target like others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pdiff_hf import CheckpointRecorder, ModuleTarget, PDiffPipeline, fit
from pdiff_hf.loops import seeded


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, which is a strided one where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """A stem, stages of blocks, and a linear layer; returns logits, not an output object."""

    def __init__(self, layers: list[int], width: int = 64, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for number, count in enumerate(layers, start=1):
            blocks = [BasicBlock(channels, width * number, 1 if number == 1 else 2)]
            channels = width * number
            blocks += [BasicBlock(channels, channels, 1) for _ in range(count - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.stages = len(layers)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(self.stages):
            x = getattr(self, f"layer{number + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(
    ("subset", "first", "count"),
    [
        ("last_norms", "layer2.1.bn1.weight", 4 * 16),
        ("head", "fc.weight", 17 * 4),
        (["*.downsample.0.*"], None, 8 * 16),
    ],
    ids=["last norms", "head", "shortcut"],
)
def test_resnet_is_recorded_fitted_and_drawn(subset: Any, first: str | None, count: int, tiny_recipe, tmp_path):
    with seeded(0):
        net = ResNet([1, 2], width=8, num_classes=4)
    target = ModuleTarget.wrap(net, {"layers": [1, 2], "width": 8, "num_classes": 4}, num_labels=4)
    target(images(16))  # in training mode: running statistics other than those of initialization
    recorder = CheckpointRecorder(target.eval(), subset)
    recorder.freeze_trunk()
    optimizer = torch.optim.AdamW([p for p in target.parameters() if p.requires_grad], lr=3e-2)
    for step in range(20):
        optimizer.zero_grad()
        target(images(8), labels=torch.arange(8) % 4).loss.backward()
        optimizer.step()
        recorder.record(step)
    pipe = fit(recorder.checkpoints(), tiny_recipe)
    pipe.save_pretrained(tmp_path / "generator")
    loaded = PDiffPipeline.from_pretrained(tmp_path / "generator")
    out = loaded(3, generator=torch.Generator().manual_seed(0))

    assert out.parameters.shape == (3, count)
    assert first is None or pipe.processor.names[0] == f"module.{first}"
    for i, network in enumerate(out.models):
        assert type(network.module) is ResNet
        assert torch.allclose(network.module(images(5)), out.logits(images(5))[i], atol=1e-4)
        assert torch.equal(network.module.bn1.running_mean, net.bn1.running_mean)
        changed = [
            name for name, p in network.module.named_parameters() if not torch.equal(p, net.get_parameter(name))
        ]
        assert {f"module.{name}" for name in changed} <= set(pipe.processor.names)
        assert changed
