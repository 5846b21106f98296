"""A pipeline that was saved once draws the same networks for ever; tests/golden/README.md says how it was made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from make_golden import GOLDEN, SEEDS, draw
from safetensors.torch import load_file

from pdiff_hf import PDiffPipeline


@pytest.fixture
def pipe() -> PDiffPipeline:
    return PDiffPipeline.from_pretrained(GOLDEN / "pipeline")


def test_the_golden_pipeline_draws_its_golden_samples(pipe: PDiffPipeline):
    expected = load_file(GOLDEN / "samples.safetensors")

    drawn = draw(pipe)

    assert drawn.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(drawn[name], tensor, atol=1e-5, rtol=0)


def test_the_golden_samples_differ_from_each_other():
    parameters = load_file(GOLDEN / "samples.safetensors")["parameters"]

    assert len(parameters) == len(SEEDS)
    assert torch.pdist(parameters).min() > 0.1


def test_the_golden_pipeline_is_saved_as_it_was_loaded(pipe: PDiffPipeline, tmp_path: Path):
    pipe.save_pretrained(tmp_path)

    golden = {path.relative_to(GOLDEN / "pipeline") for path in (GOLDEN / "pipeline").rglob("*") if path.is_file()}
    saved = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert saved == golden | {Path("README.md")}
    for name in golden:
        if name.suffix == ".safetensors":
            old, new = load_file(GOLDEN / "pipeline" / name), load_file(tmp_path / name)
            assert old.keys() == new.keys(), name
            assert all(torch.equal(old[key], new[key]) for key in old), name
