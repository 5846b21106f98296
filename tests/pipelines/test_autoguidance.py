"""Autoguidance: what it changes, which strengths are taken, and a guide that is saved, loaded and shared."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, ModelMixin
from safetensors.torch import load_file
from scripts import environment

from pdiff_hf import BrokenFileError, MLPParameterDenoiser, PDiffPipeline
from pdiff_hf.loops import seeded
from pdiff_hf.pipelines.describing import describe, description_table
from pdiff_hf.pipelines.remote_code import export_remote_code


def build_guide(latent_dim: int = 4) -> ModelMixin:
    """A denoiser that predicts something else."""
    with seeded(1):
        guide = MLPParameterDenoiser(latent_dim, width=8, num_blocks=1)
        for parameter in guide.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return guide.eval()


@pytest.fixture
def guided(tiny_pipeline: PDiffPipeline) -> PDiffPipeline:
    """A pipeline with a guide and a strength that it is shipped with."""
    components = tiny_pipeline.components | {"guide": build_guide()}
    return PDiffPipeline(**components, default_autoguidance_scale=0.5)


def draw(pipe: DiffusionPipeline, **kwargs) -> torch.Tensor:
    return pipe(3, generator=torch.Generator().manual_seed(0), output_type="pt", **kwargs).parameters


class Extrapolated(MLPParameterDenoiser):
    """The prediction v + w (v - v_guide) as one denoiser."""

    def forward(self, sample, timestep, return_dict=True):
        output = self.denoiser(sample, timestep)
        output.sample = output.sample + self.scale * (output.sample - self.guide(sample, timestep).sample)
        return output


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_samples_are_extrapolated_away_from_the_guide(guided, tiny_pipeline, scale):
    both = Extrapolated(4, width=8, num_blocks=1)
    both.denoiser, both.guide, both.scale = tiny_pipeline.denoiser, guided.guide, scale
    plain = PDiffPipeline(**tiny_pipeline.components | {"denoiser": both})

    torch.testing.assert_close(draw(guided, autoguidance_scale=scale), draw(plain))


def test_default_strength_is_that_of_the_pipeline(guided, tiny_pipeline):
    assert torch.equal(draw(guided), draw(guided, autoguidance_scale=0.5))
    assert not torch.allclose(draw(guided), draw(tiny_pipeline))
    assert torch.equal(draw(guided, autoguidance_scale=0), draw(tiny_pipeline))
    batches = guided.iter(3, 3, torch.Generator().manual_seed(0), output_type="pt", autoguidance_scale=1.5)
    assert torch.equal(next(batches).parameters, draw(guided, autoguidance_scale=1.5))


def test_strength_is_stated_with_a_drawn_network(guided, tiny_pipeline):
    assert guided(1).models.provenance[0]["autoguidance_scale"] == 0.5
    assert "autoguidance_scale" not in tiny_pipeline(1).models.provenance[0]


@pytest.mark.parametrize(
    ("scale", "sentence"),
    [(-1, "a finite number of at least 0"), ("much", "but is 'much'"), (11, "at most 10, but is")],
)
def test_strength_that_is_none_is_refused(guided, scale, sentence):
    with pytest.raises(ValueError, match=f"autoguidance_scale must be .*{sentence}"):
        draw(guided, autoguidance_scale=scale)


def test_strength_without_a_guide_is_refused(tiny_pipeline):
    with pytest.raises(ValueError, match=r"autoguidance_scale is 0\.5, but this pipeline has no guide"):
        draw(tiny_pipeline, autoguidance_scale=0.5)
    with pytest.raises(ValueError, match="has no guide"):
        PDiffPipeline(**tiny_pipeline.components, default_autoguidance_scale=0.5)


def test_guide_is_saved_and_loaded(guided, tmp_path):
    guided.save_pretrained(tmp_path)

    loaded = PDiffPipeline.from_pretrained(tmp_path)

    assert torch.equal(draw(loaded), draw(guided))
    assert loaded.config.default_autoguidance_scale == 0.5
    assert torch.equal(draw(PDiffPipeline.from_pipe(loaded)), draw(guided))
    assert torch.equal(draw(copy.deepcopy(loaded)), draw(guided))
    assert "autoguidance 0.5" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "model_index.json").read_text())["guide"] == ["pdiff_hf", "MLPParameterDenoiser"]


def test_a_loaded_pipeline_without_a_guide_has_none(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)

    loaded = PDiffPipeline.from_pretrained(tmp_path)

    assert loaded.guide is None
    assert loaded.components.keys() == tiny_pipeline.components.keys()
    assert torch.equal(draw(loaded), draw(tiny_pipeline))
    assert not (tmp_path / "guide").exists()


def test_loading_may_replace_the_guide(guided, tmp_path):
    guided.save_pretrained(tmp_path)
    other = guided.denoiser

    loaded = PDiffPipeline.from_pretrained(tmp_path, guide=other)

    assert torch.allclose(draw(loaded, autoguidance_scale=2.0), draw(guided, autoguidance_scale=0), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_guide_follows_the_pipeline_to_another_dtype(guided, dtype):
    guided.to(dtype)

    assert guided.guide.dtype == dtype
    assert draw(guided).dtype == torch.float32


def test_damaged_strength_or_guide_is_named(guided, tmp_path):
    guided.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())

    (tmp_path / "model_index.json").write_text(json.dumps(index | {"default_autoguidance_scale": "much"}))
    with pytest.raises(BrokenFileError, match="autoguidance_scale must be a finite number"):
        PDiffPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"guide": [None, None]}))
    with pytest.raises(BrokenFileError, match="has no guide"):
        PDiffPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    build_guide(latent_dim=5).save_pretrained(tmp_path / "guide")
    with pytest.raises(BrokenFileError, match="differ in latent_dim"):
        PDiffPipeline.from_pretrained(tmp_path)


def test_guided_pipeline_is_described(guided, tiny_pipeline, tmp_path):
    guided.save_pretrained(tmp_path / "guided")
    tiny_pipeline.save_pretrained(tmp_path / "plain")

    described = {name: describe(tmp_path / name) for name in ("guided", "plain")}

    assert [found["autoguidance_scale"] for found in described.values()] == [0.5, 0.0]
    assert "20 steps, autoguidance 0.5" in description_table(described["guided"])
    assert "autoguidance" not in description_table(described["plain"])


DRAW = """
import sys
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(pipe.guide).__name__ == "MLPParameterDenoiser"
drawn = pipe(3, generator=torch.Generator().manual_seed(0), output_type="pt").parameters
save_file({"drawn": drawn}, sys.argv[2])
"""


def test_code_that_is_shipped_draws_with_the_guide(guided, tmp_path: Path):
    guided.save_pretrained(tmp_path / "pipeline")
    export_remote_code(tmp_path / "pipeline", tmp_path / "exported")

    # In a process of its own, since the code registers its classes with transformers.
    command = [sys.executable, "-c", DRAW, str(tmp_path / "exported"), str(tmp_path / "drawn.safetensors")]
    subprocess.run(command, env=environment(), check=True)

    assert torch.equal(load_file(tmp_path / "drawn.safetensors")["drawn"], draw(guided))
