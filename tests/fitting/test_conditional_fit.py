"""Fitting to conditional zoos: conditions are learned, relabeled networks join in, scales are chosen on validation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from scripts import run

from pdiff_hf import (
    Checkpoints,
    CheckpointsError,
    ImageData,
    MLPConfig,
    MLPForImageClassification,
    MultiRunSettings,
    PDiffPipeline,
    Recipe,
    collect_runs,
    fit,
    load_images,
    load_recipe,
    network_logits,
)
from pdiff_hf.fitting.autoencoder import fit_autoencoder, recipe_for
from pdiff_hf.fitting.conditional_zoo import pool_images, prepare_zoo
from pdiff_hf.fitting.denoising import ZooConditions, draw_batch
from pdiff_hf.fitting.guidance import CONDITIONAL_SCALES
from pdiff_hf.fitting.pipeline import fit_pipeline
from pdiff_hf.fitting.settings import RecipeError
from pdiff_hf.fitting.units import choose_recipe
from pdiff_hf.loops import IdentityError, seeded
from pdiff_hf.settings import RunSettings
from pdiff_hf.targets.conditions import Conditions
from pdiff_hf.zoo.settings import load_target
from pdiff_hf.zoo.tasks import TASKS, Subsets, make_tasks

STEPS = 24
DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def images() -> ImageData:
    return load_images("digits", image_size=8)


@pytest.fixture(scope="module")
def collected(images: ImageData) -> Checkpoints:
    """12 subsets of digits to learn from and 3 of validation, with 5 networks of 6 hidden units for each."""
    settings = MultiRunSettings(
        dataset_name="digits",
        image_size=8,
        model_type="pdiff_mlp",
        subset=["full"],
        target_train_steps=40,
        tasks="subsets",
        num_tasks=12,
        num_validation_tasks=3,
        num_test_tasks=0,
        runs_per_task=5,
    )
    with seeded(0):
        model = MLPForImageClassification(MLPConfig(image_size=8, num_channels=1, hidden_sizes=[6], num_labels=2))
    return collect_runs(images, model, settings)


@pytest.fixture
def zoo(collected: Checkpoints) -> Checkpoints:
    """A zoo whose splits and collection a test may change."""
    splits = {name: split.rows(slice(None)) for name, split in collected.splits.items()}
    return dataclasses.replace(collected, splits=splits, collection=json.loads(json.dumps(collected.collection)))


@pytest.fixture
def recipe() -> Recipe:
    """`units` with next to nothing to train."""
    shipped = load_recipe("units")
    tiny = {"width": 16, "num_blocks": 1, "num_heads": 2}
    return Recipe(
        shipped.autoencoder,
        dataclasses.replace(shipped.denoiser, config=tiny, max_train_steps=STEPS, train_batch_size=8),
    )


def test_the_recipe_of_conditional_zoos_is_chosen_by_itself(zoo, recipe, images, tmp_path):
    rows = zoo.zoo.rows([i % len(zoo.zoo) for i in range(60)])
    rows.columns["run"] = [f"run-{i}" for i in range(60)]

    name, reason = choose_recipe(dataclasses.replace(zoo, splits={"train": rows}))

    assert name == "conditional"
    assert reason.endswith(f"hidden units, for {len(set(map(tuple, rows.condition)))} conditions")
    fit_autoencoder(zoo, recipe.autoencoder, images=images).save_pretrained(tmp_path)
    for is_conditional, suits in ((True, "conditional"), (False, "units")):
        (tmp_path / "training.json").write_text(json.dumps({"is_conditional": is_conditional}))
        assert recipe_for(tmp_path)[0] == suits


def without_tasks(zoo: Checkpoints) -> Checkpoints:
    """The zoo as one that somebody made without the tasks of this package."""
    return dataclasses.replace(zoo, collection={"conditions": zoo.collection["conditions"]})


def test_a_fit_yields_a_pipeline_that_knows_its_conditions(zoo, recipe, images, tmp_path):
    pipe = fit(zoo, recipe, images)

    trained = torch.tensor(zoo.zoo.condition).unique(dim=0)
    assert pipe.denoiser.config.condition_dim == pipe.guide.config.condition_dim == 10
    assert torch.equal(pipe.conditions.trained, trained)
    assert pipe.conditions.meaning == Conditions("bits", tuple(DIGITS), complement=True)
    assert pipe.denoiser.condition_embedding.mean.tolist() == pipe.guide.condition_embedding.std.tolist() == [0.5] * 10
    pipe.save_pretrained(tmp_path)
    loaded = PDiffPipeline.from_pretrained(tmp_path)
    drawn = loaded(2, condition=["3", "7"], generator=torch.Generator().manual_seed(0))
    again = pipe(2, condition=["3", "7"], generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn.parameters, again.parameters)


def test_scales_are_chosen_by_score_for_validation_conditions_among_faithful_distances(zoo, recipe, images):
    pipe = fit(zoo, recipe, images)

    tried = pipe.metrics["generator"]["guidance"]
    assert [(found["guidance_scale"], found["autoguidance_scale"]) for found in tried] == list(CONDITIONAL_SCALES)
    faithful = [found for found in tried if abs(found["z"]) <= 2]
    best = max(faithful, key=lambda f: f["score"]) if faithful else min(tried, key=lambda f: abs(f["z"]))
    assert pipe.config.default_guidance_scale == best["guidance_scale"]
    assert pipe.config.default_autoguidance_scale == best["autoguidance_scale"]
    # The score of one of them, computed anew.
    conditions = torch.tensor(zoo.splits["validation"].condition).unique(dim=0).repeat_interleave(8, 0)
    asked = {"condition": conditions, "guidance_scale": 2.0, "autoguidance_scale": 0.0, "output_type": "pt"}
    drawn = pipe(len(conditions), generator=torch.Generator().manual_seed(0), **asked).parameters
    predicted = network_logits(pipe.target_model, pipe.processor, drawn, images.inputs(images.validation)).argmax(-1)
    expected = (predicted == conditions.long()[:, images.validation.labels]).double().mean().item()
    assert tried[4]["score"] == pytest.approx(expected, abs=1e-6)


def test_a_zoo_of_unknown_tasks_is_guided_as_the_recipe_says(zoo, recipe, images):
    recipe.denoiser = dataclasses.replace(recipe.denoiser, guidance_scale=1.5, autoguidance_scale=0.25)

    pipe = fit(without_tasks(zoo), recipe, images)

    assert "guidance" not in pipe.metrics["generator"]
    assert (pipe.config.default_guidance_scale, pipe.config.default_autoguidance_scale) == (1.5, 0.25)
    named = fit(without_tasks(zoo), recipe, images, tasks=Subsets(DIGITS))
    assert len(named.metrics["generator"]["guidance"]) == len(CONDITIONAL_SCALES)


@pytest.mark.parametrize("name", TASKS)
def test_each_family_of_tasks_is_fitted_and_drawn_for(name, images, tiny_recipe):
    settings = MultiRunSettings(
        image_size=8,
        model_type="pdiff_mlp",
        model_config='{"hidden_sizes": [4]}',
        subset=["full"],
        target_train_steps=2,
        tasks=name,
        num_tasks=4,
        num_validation_tasks=2,
        num_test_tasks=0,
        runs_per_task=2,
    )
    zoo = collect_runs(images, load_target(settings, images), settings)
    guided = dataclasses.replace(tiny_recipe.denoiser, guide_at=0.5)

    pipe = fit(zoo, Recipe(tiny_recipe.autoencoder, guided), images)

    assert len(pipe.metrics["generator"]["guidance"]) == len(CONDITIONAL_SCALES)
    out = pipe(3, condition=zoo.splits["validation"].condition[0])
    assert (out.condition_distance > 0).all()
    assert out.logits(images.inputs(images.validation)).shape[0] == 3


def test_networks_for_a_condition_are_like_those_of_that_condition(tiny_checkpoints, tiny_recipe):
    """Two tasks whose networks lie apart; networks are drawn for each, and for both without a condition."""
    zoo = tiny_checkpoints.zoo
    zoo.condition = [[float(i % 2)] for i in range(len(zoo))]
    offset = torch.tensor(zoo.condition) * torch.linspace(-1, 1, 90)
    zoo.parameters = zoo.parameters.mean(0) + 0.02 * (zoo.parameters - zoo.parameters.mean(0)) + offset
    checkpoints = dataclasses.replace(
        tiny_checkpoints, splits={"train": zoo}, collection={"conditions": Conditions("numbers", ("x",)).to_dict()}
    )
    longer = dataclasses.replace(
        tiny_recipe.denoiser, config={"width": 32, "num_blocks": 1}, max_train_steps=400, learning_rate=3e-3
    )

    pipe = fit(checkpoints, Recipe(tiny_recipe.autoencoder, longer))

    means = [zoo.parameters[i::2].mean(0) for i in range(2)]
    asked = torch.tensor([[0.0], [1.0]]).repeat(8, 1)
    drawn = {
        scale: pipe(16, condition=asked, guidance_scale=scale, generator=torch.Generator().manual_seed(0)).parameters
        for scale in (1.0, 0.0)
    }
    nearer = {s: torch.stack([(d - mean).norm(dim=1) for mean in means]).argmin(0) for s, d in drawn.items()}
    assert torch.equal(nearer[1.0], asked[:, 0].long())
    assert len(nearer[0.0].unique()) == 2
    assert not torch.equal(nearer[0.0], asked[:, 0].long())


def test_the_network_of_each_complement_is_learned_from_too(zoo, images):
    prepared = prepare_zoo(zoo, images, None)

    count, doubled = len(zoo.zoo), prepared.checkpoints.zoo
    values = prepared.conditions.splits["train"]
    assert len(doubled) == len(values) == 2 * count
    assert torch.equal(values[count:], 1 - values[:count])
    inputs = images.inputs(images.validation)
    logits = network_logits(zoo.target_model, zoo.processor, doubled.parameters, inputs)
    assert torch.allclose(logits[count:], logits[:count].flip(-1), atol=1e-5)
    assert len(prepared.checkpoints.splits["validation"]) == len(zoo.splits["validation"])
    assert len(zoo.zoo) == count


def test_other_conditions_are_learned_from_as_they_are(zoo, images):
    conditions = zoo.collection["conditions"] | {"complement": False}
    zoo.collection = {"conditions": conditions}

    assert len(prepare_zoo(zoo, images, None).checkpoints.zoo) == len(zoo.zoo)


def test_a_share_of_the_conditions_is_dropped(recipe):
    latents, condition = torch.randn(50, 3), torch.arange(50.0)[:, None].expand(-1, 2)
    rows = torch.arange(50).repeat(20)

    batch = draw_batch(latents, recipe.denoiser, rows, torch.Generator().manual_seed(0), condition)

    dropped = batch.condition.isnan()
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert 0.06 < dropped[:, 0].float().mean() < 0.14
    assert torch.equal(batch.condition[~dropped[:, 0]], condition[rows][~dropped[:, 0]])


def test_numbers_are_standardized_over_the_zoo():
    values = torch.tensor([[1990.0, 3.0], [2010.0, 3.0]])

    mean, std = ZooConditions(Conditions("numbers", ("year", "size")), {"train": values}).statistics()

    assert torch.equal((values - mean) / std, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))


def test_functions_are_matched_on_images_of_the_tasks(images):
    angles = torch.linspace(-90, 90, 5)[:, None]

    rotated = pool_images(images, make_tasks("angles", DIGITS), angles)
    subsets = pool_images(images, Subsets(DIGITS), torch.eye(10)[:2])

    assert subsets is images
    inputs = rotated.inputs(rotated.train)
    assert inputs.shape == (5 * len(images.train), 1, 8, 8)
    own = images.inputs(images.train)
    upright = torch.cdist(inputs.flatten(1), own.flatten(1)).min(1).values < 1e-3
    assert upright.view(5, -1).float().mean(1).tolist() == pytest.approx([0, 0, 1, 0, 0], abs=0.01)
    assert rotated.inputs(rotated.validation) is not None
    assert rotated.validation is images.validation
    assert rotated.train.fingerprint() != images.train.fingerprint()


def test_a_denoiser_without_conditions_is_refused_before_the_cost(zoo):
    paper = load_recipe("paper")

    with pytest.raises(RecipeError, match=r"zoo has conditions, but the denoiser 'conv' takes none; choose one of"):
        fit(zoo, paper)


def test_a_condition_on_both_sides_is_refused(zoo, recipe, images):
    zoo.splits["validation"].condition[0] = [1 - bit for bit in zoo.zoo.condition[0]]

    with pytest.raises(CheckpointsError, match="Whole conditions must be held out"):
        fit(zoo, recipe, images)


def test_settings_of_conditions_are_stated_for_conditional_zoos_alone(zoo, tiny_checkpoints, tiny_recipe, recipe):
    conditional, plain = fit(zoo, recipe), fit(tiny_checkpoints, tiny_recipe)

    assert conditional.metrics["generator"]["denoiser"]["condition_dropout"] == 0.1
    assert not {"condition_dropout", "guidance_scale"} & set(plain.metrics["generator"]["denoiser"])


def test_the_scripts_fit_a_conditional_zoo(zoo, tmp_path: Path, capsys):
    zoo.save(tmp_path / "zoo")
    named = ["--checkpoints", tmp_path / "zoo"]
    run("train_autoencoder", *named, "--output_dir", tmp_path / "autoencoder")
    tiny = ["--config", '{"width": 16, "num_blocks": 1, "num_heads": 2}', "--train_batch_size", "8"]
    named += ["--autoencoder", tmp_path / "autoencoder", *tiny, "--max_train_steps", str(STEPS)]
    run("train_denoiser", *named, "--output_dir", tmp_path / "pipeline")

    pipe = PDiffPipeline.from_pretrained(tmp_path / "pipeline")
    assert len(pipe.metrics["generator"]["guidance"]) == len(CONDITIONAL_SCALES)
    assert "The dispersion R of 16 drawn networks is" in capsys.readouterr().out
    assert "for each condition, 10 numbers (bits)" in (tmp_path / "pipeline/README.md").read_text()


class Interruption(Exception):
    """Stands for a killed process."""


def test_a_fit_resumes_with_the_same_conditions_alone(zoo, recipe, tmp_path: Path, monkeypatch):
    settings = RunSettings(output_dir=str(tmp_path / "pipeline"), checkpointing_steps=6)
    again = dataclasses.replace(settings, resume_from_checkpoint="latest")
    autoencoder = fit_autoencoder(zoo, recipe.autoencoder)
    stage = {"settings": {}, "seconds": 0.0}
    whole = fit_pipeline(zoo, autoencoder, stage, recipe.denoiser)
    original, made = torch.optim.AdamW.step, []

    def step(*args, **kwargs):
        made.append(1)
        if len(made) == 15:
            raise Interruption
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(Interruption):
        fit_pipeline(zoo, autoencoder, stage, recipe.denoiser, settings)
    monkeypatch.undo()

    other = dataclasses.replace(zoo, splits={"train": zoo.zoo.rows(slice(None))})
    other.zoo.condition = [other.zoo.condition[-1]] * len(other.zoo)
    with pytest.raises(IdentityError, match=r"belongs to a training with \{'conditions'"):
        fit_pipeline(other, autoencoder, stage, recipe.denoiser, again)
    resumed = fit_pipeline(zoo, autoencoder, stage, recipe.denoiser, again)
    assert all(map(torch.equal, whole.denoiser.parameters(), resumed.denoiser.parameters()))
