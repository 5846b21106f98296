"""A pipeline saved by an earlier version draws and saves the same networks; see tests/golden/README.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from make_golden import GOLDEN, SEEDS, draw
from safetensors.torch import load_file

from pdiff_hf import PDiffPipeline

ORIGIN = ("_diffusers_version", "transformers_version", "_name_or_path")  # who wrote the file, from where
ROUNDING = 2e-6  # another CPU rounds the last bits differently


@pytest.fixture
def pipe() -> PDiffPipeline:
    return PDiffPipeline.from_pretrained(GOLDEN / "pipeline")


def difference(drawn: dict[str, torch.Tensor]) -> float:
    """The largest difference from the golden samples."""
    expected = load_file(GOLDEN / "samples.safetensors")
    assert {name: t.shape for name, t in drawn.items()} == {name: t.shape for name, t in expected.items()}
    return max((drawn[name] - tensor).abs().max().item() for name, tensor in expected.items())


def contents(folder: Path) -> dict[str, object]:
    """JSON values and tensors of the files of a pipeline, without their origin."""
    read: dict[str, object] = {}
    for path in folder.rglob("*.*"):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
            read[name] = {key: value for key, value in values.items() if key not in ORIGIN}
        elif path.suffix == ".safetensors":
            read[name] = {key: (t.dtype, t.tolist()) for key, t in load_file(path).items()}
        else:
            read[name] = None
    return read


def test_the_golden_pipeline_draws_its_golden_samples(pipe: PDiffPipeline):
    drawn = draw(pipe)

    assert difference(drawn) <= ROUNDING
    assert torch.pdist(drawn["parameters"]).min() > 0.1  # one network per seed
    assert len(drawn["parameters"]) == len(SEEDS)


@pytest.mark.parametrize("component", ["autoencoder", "denoiser", "target_model"])
def test_another_weight_draws_other_samples(pipe: PDiffPipeline, component: str):
    model = getattr(pipe, component)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.mul_(1.001)

    assert difference(draw(pipe)) > 10 * ROUNDING


def test_the_golden_pipeline_is_saved_as_it_was_loaded(pipe: PDiffPipeline, tmp_path: Path):
    pipe.save_pretrained(tmp_path)

    assert contents(tmp_path) == contents(GOLDEN / "pipeline") | {"README.md": None}
    before, again = draw(pipe), draw(PDiffPipeline.from_pretrained(tmp_path))
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())
