"""Plain modules and wrapped networks are targets like any other."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pdiff_hf import (
    CheckpointRecorder,
    Checkpoints,
    LayoutError,
    ModuleTarget,
    PDiffPipeline,
    UnknownTargetError,
    fit,
    load_checkpoints,
)
from pdiff_hf.loops import seeded


class Scaled(nn.Module):
    """A plain network with a scalar parameter, tied weights, a buffer that is not saved, and a class as argument."""

    def __init__(self, width: int = 8, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.inner, self.again = nn.Linear(width, width), nn.Linear(width, width)
        self.again.weight = self.inner.weight
        self.activation, self.fc = activation(), nn.Linear(width, 3)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("shift", torch.arange(float(width)), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.activation(self.inner(x + self.shift))
        return self.scale * self.fc(self.activation(self.again(hidden)))


def wrapped() -> ModuleTarget:
    with seeded(0):
        module = Scaled(6, activation=nn.GELU).eval()
    return ModuleTarget.wrap(module, {"width": 6, "activation": nn.GELU}, num_labels=3)


def record(model: nn.Module, subset: str | list[str]) -> Checkpoints:
    """Trains the subset and records each step."""
    recorder = CheckpointRecorder(model, subset)
    recorder.freeze_trunk()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    for step in range(20):
        optimizer.zero_grad()
        model(rows(8 + step), labels=torch.arange(8 + step) % 3).loss.backward()
        optimizer.step()
        recorder.record(step)
    return recorder.checkpoints()


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("subset", ["head", ["*.scale", "*.fc.*"], "full"])
def test_plain_module_works_end_to_end(subset, tiny_recipe, tmp_path):
    record(wrapped(), subset).save(tmp_path / "zoo")
    checkpoints = load_checkpoints(tmp_path / "zoo")
    pipe = fit(checkpoints, tiny_recipe)
    pipe.save_pretrained(tmp_path / "pipeline")
    loaded = PDiffPipeline.from_pretrained(tmp_path / "pipeline")
    out, expected = (p(3, generator=torch.Generator().manual_seed(0)) for p in (loaded, pipe))
    out.save_pretrained(tmp_path / "drawn")

    index = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert index["target_model"] == ["pdiff_hf", "ModuleTarget"]
    assert type(loaded.target_model.module) is Scaled
    assert torch.equal(out.logits(rows(5)), expected.logits(rows(5)))
    for i, network in enumerate(out.models):
        saved = ModuleTarget.from_pretrained(tmp_path / "drawn" / f"{i:05d}")
        assert saved.module.again.weight is saved.module.inner.weight
        assert torch.allclose(saved(rows(5)).logits, out.logits(rows(5))[i], atol=1e-5)
        assert torch.equal(saved.module(rows(5)), network.module(rows(5)))


def test_module_that_its_arguments_do_not_rebuild_is_refused():
    with pytest.raises(LayoutError, match=r"Scaled with the arguments \{\} has other tensors .*'again\.bias'"):
        ModuleTarget.wrap(Scaled(6))
    with pytest.raises(LayoutError, match=r"Scaled cannot be built with the arguments .*unexpected keyword"):
        ModuleTarget.wrap(Scaled(6), {"depth": 6})


@pytest.mark.parametrize("path", ["elsewhere.Net", "os.system", "torch.jit._script.RecursiveScriptModule"])
def test_class_of_a_saved_module_is_looked_up_and_never_imported(path, tmp_path):
    wrapped().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace(f"{Scaled.__module__}.Scaled", path))

    with pytest.raises(UnknownTargetError, match=f"class '{path}', which is not defined in this process"):
        ModuleTarget.from_pretrained(tmp_path)


def test_plain_module_is_named_with_its_adapter_by_the_recorder():
    with pytest.raises(LayoutError, match=r"this is a plain Scaled; .*ModuleTarget\.wrap"):
        CheckpointRecorder(Scaled(), "head")


@pytest.mark.parametrize(
    "wrap", [torch.compile, nn.DataParallel, AveragedModel, lambda m: torch.compile(AveragedModel(m))]
)
def test_wrapped_networks_are_looked_through(wrap, mlp, tmp_path):
    recorder = CheckpointRecorder(wrap(mlp), "head")
    recorder.record(0)
    recorder.checkpoints().save(tmp_path)

    assert recorder.processor.names == ["classifier.weight", "classifier.bias"]
    assert type(load_checkpoints(tmp_path).target_model) is type(mlp)
