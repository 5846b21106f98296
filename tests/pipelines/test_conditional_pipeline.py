"""Conditional pipelines: what a condition and its guidance change, what is refused, saved, loaded and shared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, ModelMixin
from safetensors.torch import load_file
from scripts import environment

from pdiff_hf import BrokenFileError, MLPParameterDenoiser, PDiffPipeline
from pdiff_hf.loops import seeded
from pdiff_hf.pipelines.describing import describe, description_table
from pdiff_hf.pipelines.remote_code import export_remote_code
from pdiff_hf.targets.conditions import ConditionError, Conditions
from pdiff_hf_cli import main

CONDITIONS = Conditions("bits", ("cat", "dog", "owl"), complement=True).to_dict() | {"trained": [[1, 0, 0], [1, 1, 0]]}
ASKED = [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def build_denoiser(seed: int) -> ModelMixin:
    with seeded(seed):
        denoiser = MLPParameterDenoiser(4, width=8, num_blocks=1, condition_dim=3)
        for parameter in denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return denoiser.eval()


@pytest.fixture
def conditional(tiny_pipeline: PDiffPipeline) -> PDiffPipeline:
    """A pipeline with conditions and a guide, shipped with both kinds of guidance."""
    components = tiny_pipeline.components | {"denoiser": build_denoiser(0), "guide": build_denoiser(1)}
    return PDiffPipeline(
        **components, default_autoguidance_scale=0.5, conditions=CONDITIONS, default_guidance_scale=1.5
    )


def draw(pipe, condition=ASKED, **kwargs) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(3, generator=generator, condition=condition, output_type="pt", **kwargs).parameters


class Combined(MLPParameterDenoiser):
    """v(c) + (g - 1) (v(c) - v()) + a (v(c) - w(c)) for the condition c as one denoiser."""

    def forward(self, sample, timestep, condition=None, return_dict=True):
        asked = torch.tensor(ASKED).float()
        output = self.denoiser(sample, timestep, asked)
        own, without, worse = output.sample, self.denoiser(sample, timestep), self.guide(sample, timestep, asked)
        output.sample = own + (self.g - 1) * (own - without.sample) + self.a * (own - worse.sample)
        return output


@pytest.mark.parametrize(("g", "a"), [(1.0, 0.0), (2.0, 0.0), (1.0, 0.5), (1.5, 1.0), (0.0, 0.0)])
def test_samples_are_guided_toward_the_condition_and_away_from_the_guide(conditional, tiny_pipeline, g, a):
    combined = Combined(4, width=8, num_blocks=1)
    combined.denoiser, combined.guide, combined.g, combined.a = conditional.denoiser, conditional.guide, g, a
    plain = PDiffPipeline(**tiny_pipeline.components | {"denoiser": combined})

    torch.testing.assert_close(
        draw(conditional, guidance_scale=g, autoguidance_scale=a), draw(plain, None), atol=1e-4, rtol=1e-4
    )


def test_networks_follow_their_own_conditions(conditional):
    together = draw(conditional)

    assert torch.allclose(draw(conditional, [1, 0, 0])[0], together[0], atol=1e-5)
    assert torch.allclose(draw(conditional, [["cat"], [0, 0, 0], ["dog"]]), together, atol=1e-5)
    assert torch.allclose(draw(conditional, torch.tensor(ASKED)), together, atol=1e-5)
    assert (draw(conditional, ["dog"])[0] - together[0]).abs().max() > 1e-3


def test_scales_are_those_of_the_pipeline_unless_given(conditional):
    shipped = draw(conditional)

    assert torch.equal(shipped, draw(conditional, guidance_scale=1.5, autoguidance_scale=0.5))
    assert not torch.allclose(shipped, draw(conditional, guidance_scale=1))
    assert not torch.allclose(shipped, draw(conditional, autoguidance_scale=0))


def test_distance_to_the_zoo_is_returned(conditional):
    for output_type in ("model", "pt", "np", "latent"):
        output = conditional(3, condition=ASKED, output_type=output_type)
        assert output.condition_distance.tolist() == [0, 1, 1]  # the complement of (1, 1, 0) is (0, 0, 1)
    assert len(conditional(1, condition=["cat"], output_type="pt", return_dict=False)) == 2


def test_batches_and_generators_keep_their_conditions(conditional):
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    whole = conditional(3, generator=generators, condition=ASKED)

    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    batches = list(conditional.iter(3, 2, generators, condition=ASKED))

    assert torch.allclose(torch.cat([batch.parameters for batch in batches]), whole.parameters, atol=1e-5)
    provenance = [one for batch in batches for one in batch.models.provenance]
    assert provenance == whole.models.provenance
    assert [one["condition"] for one in provenance] == ASKED
    assert {(one["guidance_scale"], one["autoguidance_scale"]) for one in provenance} == {(1.5, 0.5)}


def test_other_schedulers_and_precisions_draw_for_conditions(conditional):
    conditional.scheduler = DDIMScheduler.from_config(conditional.scheduler.config)
    assert (draw(conditional)[0] - draw(conditional, ["dog"])[0]).abs().max() > 1e-3

    conditional.to(torch.bfloat16)
    assert draw(conditional).dtype == torch.float32


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        (None, r"draws networks for a condition, 3 numbers \(bits\) for cat, dog, owl; .*condition=\['cat', 'dog'\]"),
        ([1, 0], "list of 3 numbers .* but 2 numbers were given"),
        (["cow"], "no 'cow' among the names"),
        ([2, 0, 0], r"but \[2.0, 0.0, 0.0\] was given"),
        ([[1, 0, 0], [0, 1, 0]], "2 conditions were given for 3 networks"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(conditional, condition, sentence):
    with pytest.raises(ConditionError, match=sentence):
        draw(conditional, condition)
    with pytest.raises(ConditionError, match=sentence):
        next(conditional.iter(3, 2, condition=condition))


def test_pipelines_without_conditions_take_none(tiny_pipeline, conditional):
    with pytest.raises(ConditionError, match="zoo without conditions; leave condition out"):
        draw(tiny_pipeline, ["cat"])
    with pytest.raises(ValueError, match=r"guidance_scale is 2\.0, but this pipeline has no conditions"):
        draw(tiny_pipeline, None, guidance_scale=2)
    with pytest.raises(ValueError, match="guidance_scale must be at most 10"):
        draw(conditional, guidance_scale=11)
    with pytest.raises(ConditionError, match="denoiser takes conditions of 3 numbers, but `conditions` describes 0"):
        PDiffPipeline(**conditional.components)
    assert draw(tiny_pipeline, None, guidance_scale=1) is not None
    assert tiny_pipeline(1).condition_distance is None
    assert not {"conditions", "default_guidance_scale"} & set(tiny_pipeline.config)


def test_a_loaded_pipeline_draws_the_same_networks(conditional, tmp_path):
    conditional.save_pretrained(tmp_path)

    loaded = PDiffPipeline.from_pretrained(tmp_path)

    assert torch.equal(draw(loaded), draw(conditional))
    assert torch.equal(draw(PDiffPipeline.from_pipe(loaded)), draw(conditional))
    assert loaded.config.conditions == conditional.config.conditions


def test_the_card_states_what_conditions_are(conditional, tiny_pipeline, tmp_path):
    conditional.save_pretrained(tmp_path / "conditional")
    tiny_pipeline.save_pretrained(tmp_path / "plain")

    card, plain = ((tmp_path / name / "README.md").read_text() for name in ("conditional", "plain"))

    assert "pipe(num_models=10, condition=['cat'], generator=" in card
    assert "for each condition, 3 numbers (bits) for\n`cat`, `dog`, `owl`: 90 parameters" in card
    assert "networks for 2 different conditions" in card
    assert "toward the\ncondition (classifier-free guidance 1.5" in card
    assert "condition" not in plain


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"conditions": {"kind": "bits", "names": ["cat"], "trained": [[1]]}}, "differ in condition_dim"),
        ({"conditions": None, "default_guidance_scale": 1.0}, "differ in condition_dim"),
        ({"conditions": CONDITIONS | {"trained": [[1, 0]]}}, "but 2 numbers were given"),
        ({"conditions": CONDITIONS | {"trained": []}}, "list those of its zoo as `trained`"),
        ({"conditions": [1, 2]}, "stated by `kind` and a list `names`"),
        ({"default_guidance_scale": "much"}, "guidance_scale must be a finite number"),
    ],
)
def test_damaged_conditions_are_named(conditional, tmp_path, changed, sentence):
    conditional.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | changed))

    with pytest.raises(BrokenFileError, match=sentence):
        PDiffPipeline.from_pretrained(tmp_path)


def test_command_line_describes_and_draws_for_a_condition(conditional, tmp_path, capsys):
    conditional.save_pretrained(tmp_path / "pipeline")
    arguments = [
        "sample",
        str(tmp_path / "pipeline"),
        "--output_dir",
        str(tmp_path / "drawn"),
        "--guidance_scale",
        "2",
    ]

    assert main(arguments) == 1
    assert "draws networks for a condition" in capsys.readouterr().err
    assert main([*arguments, "--condition", "cat", "owl", "--autoguidance_scale", "0"]) == 0

    described = describe(tmp_path / "pipeline")
    assert described["conditions"] == Conditions.from_dict(CONDITIONS).to_dict() | {"trained_count": 2}
    assert "bits for cat, dog, owl; 2 in the zoo" in description_table(described)
    assert "guidance 1.5, autoguidance 0.5" in description_table(described)
    provenance = json.loads((tmp_path / "drawn/00000/provenance.json").read_text())
    assert (provenance["condition"], provenance["guidance_scale"]) == ([1, 0, 1], 2)
    assert "autoguidance_scale" not in provenance
    assert "| 1 0 1 |" in (tmp_path / "drawn/README.md").read_text()
    expected = conditional(
        1, generator=[torch.Generator().manual_seed(0)], condition=[1, 0, 1], guidance_scale=2, autoguidance_scale=0
    )
    drawn = load_file(tmp_path / "drawn/00000/model.safetensors")
    assert torch.equal(conditional.processor.flatten(drawn), expected.parameters[0])


def test_numbers_are_read_from_the_command_line(tiny_pipeline, tmp_path, capsys):
    conditions = Conditions("numbers", ("a", "b", "c")).to_dict() | {"trained": [[0.5, 1, 2]]}
    components = tiny_pipeline.components | {"denoiser": build_denoiser(0)}
    PDiffPipeline(**components, conditions=conditions).save_pretrained(tmp_path / "pipeline")
    arguments = ["sample", str(tmp_path / "pipeline"), "--output_dir", str(tmp_path / "drawn"), "--condition", "0.5"]

    assert main([*arguments, "1e1", "-2"]) == 0
    assert json.loads((tmp_path / "drawn/00000/provenance.json").read_text())["condition"] == [0.5, 10, -2]
    assert main([*arguments, "x", "1"]) == 1
    assert "given as numbers, but could not convert string to float: 'x'" in capsys.readouterr().err


DRAW = """
import sys
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
drawn = pipe(3, generator=torch.Generator().manual_seed(0), condition=[["cat"], [0, 0, 0], ["dog"]], output_type="pt")
save_file({"drawn": drawn.parameters}, sys.argv[2])
"""


def test_code_that_is_shipped_draws_for_conditions(conditional, tmp_path: Path):
    conditional.save_pretrained(tmp_path / "pipeline")
    export_remote_code(tmp_path / "pipeline", tmp_path / "exported")

    # In a process of its own, since the code registers its classes with transformers.
    command = [sys.executable, "-c", DRAW, str(tmp_path / "exported"), str(tmp_path / "drawn.safetensors")]
    subprocess.run(command, env=environment(), check=True)

    assert torch.equal(load_file(tmp_path / "drawn.safetensors")["drawn"], draw(conditional))
