"""A pipeline saved by an earlier version draws and saves the same networks; see tests/golden/README.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from make_golden import GOLDEN, PIPELINES, SEEDS, draw
from safetensors.torch import load_file

from pdiff_hf import PDiffPipeline

ORIGIN = ("_diffusers_version", "transformers_version", "_name_or_path")  # who wrote the file, from where
ROUNDING = 2e-6  # another CPU rounds the last bits differently


ADDED: dict[str, dict[str, object]] = {  # to files since the pipelines were saved
    "model_index.json": {"guide": [None, None], "default_autoguidance_scale": 0.0},
    "processor/processor_config.json": {"statistics": []},
}


@pytest.fixture(params=PIPELINES)
def name(request: pytest.FixtureRequest) -> str:
    """One golden pipeline after the other."""
    return request.param


@pytest.fixture
def pipe(name: str) -> PDiffPipeline:
    return PDiffPipeline.from_pretrained(GOLDEN / name)


def difference(drawn: dict[str, torch.Tensor], name: str) -> float:
    """The largest difference from the golden samples."""
    expected = load_file(GOLDEN / PIPELINES[name])
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


def test_the_golden_pipeline_draws_its_golden_samples(pipe: PDiffPipeline, name: str):
    drawn = draw(pipe)

    assert difference(drawn, name) <= ROUNDING
    assert torch.pdist(drawn["parameters"]).min() > 0.1  # one network per seed
    assert len(drawn["parameters"]) == len(SEEDS)


@pytest.mark.parametrize(
    ("name", "component"),
    [
        *(("pipeline", component) for component in ("autoencoder", "denoiser", "target_model")),
        *(
            (name, component)
            for name in ("units", "conditional")
            for component in ("autoencoder", "denoiser", "guide")
        ),
    ],
)
def test_another_weight_draws_other_samples(pipe: PDiffPipeline, name: str, component: str):
    model = getattr(pipe, component)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1.001)

    assert difference(draw(pipe), name) > 10 * ROUNDING


def test_the_golden_pipeline_is_saved_as_it_was_loaded(pipe: PDiffPipeline, name: str, tmp_path: Path):
    pipe.save_pretrained(tmp_path)

    expected = contents(GOLDEN / name) | {"README.md": None}
    for file, added in ADDED.items():
        expected[file] = added | expected[file]
    assert contents(tmp_path) == expected
    before, again = draw(pipe), draw(PDiffPipeline.from_pretrained(tmp_path))
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())
