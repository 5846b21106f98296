"""The recipe `units`: which zoos it is for, what a fit yields, interrupted and resumed, with and without images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripts import run

from pdiff_hf import (
    Checkpoints,
    CheckpointSplit,
    ImageData,
    MultiRunSettings,
    PDiffPipeline,
    Recipe,
    fit,
    load_images,
    load_recipe,
    make_processor,
)
from pdiff_hf.data.images import Preprocessing
from pdiff_hf.fitting.guidance import SCALES, best_tried, choose_autoguidance, rank_statistic
from pdiff_hf.fitting.settings import RecipeError
from pdiff_hf.fitting.units import choose_recipe, find_symmetries
from pdiff_hf.zoo.settings import shared_names

STEPS = 24


@pytest.fixture
def images() -> ImageData:
    return load_images("digits", image_size=8)


@pytest.fixture
def zoo(mlp, random_vectors) -> Checkpoints:
    """60 runs to learn from and 12 of validation, of whole networks with 8 hidden units, in no canonical form."""
    processor = make_processor(mlp, "full")
    vectors, splits = random_vectors(mlp, processor, 72), {}
    for split, rows in (("train", slice(0, 60)), ("validation", slice(60, 72))):
        numbers = list(range(72))[rows]
        splits[split] = CheckpointSplit(
            vectors[rows], run=[f"run-{i}" for i in numbers], step=[10] * len(numbers), seed=numbers
        )
    settings = MultiRunSettings(dataset_name="digits", image_size=8, model_type="pdiff_mlp", subset=["full"])
    own = dataclasses.asdict(settings)
    collection = {"settings": {name: own.pop(name) for name in shared_names()}, "runs": own, "costs": {}}
    preprocessing = Preprocessing(image_size=8, mean=(0.3,), std=(0.37,)).to_dict()
    return Checkpoints(splits, processor, mlp, preprocessing, collection)


@pytest.fixture
def recipe() -> Recipe:
    """The recipe with next to nothing to train."""
    shipped = load_recipe("units")
    tiny = {"width": 16, "num_blocks": 1, "num_heads": 2}
    denoiser = dataclasses.replace(shipped.denoiser, config=tiny, max_train_steps=STEPS, train_batch_size=8)
    return Recipe(shipped.autoencoder, denoiser)


def test_whole_networks_of_many_runs_are_fitted_unit_by_unit(zoo):
    assert choose_recipe(zoo) == ("units", "the zoo has 60 independent runs of whole networks of 8 hidden units")


def test_other_zoos_are_fitted_by_the_fast_recipe(zoo, tiny_checkpoints):
    few = dataclasses.replace(zoo, splits={"train": zoo.zoo.rows(slice(0, 9))})

    assert choose_recipe(tiny_checkpoints) == ("fast", "a part of the network is generated")
    assert choose_recipe(few) == ("fast", "the zoo has 9 independent runs, fewer than 50")


def test_a_fit_yields_a_pipeline_with_a_guide_and_states_what_it_saw(zoo, recipe, images):
    pipe = fit(zoo, recipe, images)

    generator = pipe.metrics["generator"]
    assert generator["function_matching"] == {"images": images.train.fingerprint(), "count": len(images.train)}
    assert {found["scale"] for found in generator["autoguidance"]} == set(SCALES)
    assert pipe.config.default_autoguidance_scale in SCALES
    assert generator["snapshot"]["steps"] <= STEPS
    assert pipe.denoiser.config.token_groups == pipe.autoencoder.config.token_groups
    assert not all(map(torch.equal, pipe.guide.parameters(), pipe.denoiser.parameters()))
    assert pipe(3, output_type="pt").parameters.shape == (3, zoo.processor.parameter_dim)


def test_without_images_the_plain_loss_is_left(zoo, recipe):
    pipe = fit(zoo, recipe)

    assert {"function_matching", "autoguidance"}.isdisjoint(pipe.metrics["generator"])
    assert pipe.config.default_autoguidance_scale == recipe.denoiser.autoguidance_scale


def test_functions_are_matched(zoo, recipe, images):
    with_images, without = fit(zoo, recipe, images), fit(zoo, recipe)

    assert not all(map(torch.equal, with_images.denoiser.parameters(), without.denoiser.parameters()))


def test_rescaled_and_permuted_networks_give_the_same_samples_up_to_symmetry(zoo, recipe, images):
    symmetries = find_symmetries(zoo, images)
    other = dataclasses.replace(zoo, splits=dict(zoo.splits))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    for name, split in zoo.splits.items():
        tensors = {key: t.clone() for key, t in zoo.processor.unflatten(split.parameters).items()}
        for key in ("layers.0.weight", "layers.0.bias"):
            tensors[key] = 2 * tensors[key][:, order]
        tensors["classifier.weight"] = tensors["classifier.weight"][:, :, order] / 2
        moved = torch.cat([tensors[key].flatten(1) for key in zoo.processor.names], dim=1)
        other.splits[name] = CheckpointSplit(moved, **split.columns)
    tiny = dataclasses.replace(recipe.denoiser, max_train_steps=2, function_weight=0.0, auto_bf16=False)
    recipe = Recipe(recipe.autoencoder, tiny)

    pipe, moved = fit(zoo, recipe), fit(other, recipe)

    latents = torch.randn(2, pipe.denoiser.config.latent_dim, generator=torch.Generator().manual_seed(1))
    drawn = [p(2, latents=latents, output_type="pt", autoguidance_scale=0.0).parameters for p in (pipe, moved)]
    distances = symmetries.distances(*map(symmetries.canonicalize, drawn)).diagonal()
    assert distances.max() < 1e-3 * drawn[0].norm(dim=1).min()


def test_a_transformer_without_units_is_refused(zoo, recipe, images):
    linear = Recipe(load_recipe("fast").autoencoder, recipe.denoiser)

    with pytest.raises(RecipeError, match="takes tokens of units, but LinearParameterAutoencoder makes none"):
        fit(zoo, linear, images)


def test_autoguidance_is_chosen_of_all_scales(zoo, recipe, images):
    pipe = fit(zoo, recipe, images)
    symmetries = find_symmetries(zoo, images)
    networks = {name: symmetries.canonicalize(split.parameters) for name, split in zoo.splits.items()}

    scale, tried = choose_autoguidance(pipe, symmetries, networks, images, seed=0)

    assert [found["scale"] for found in tried] == list(SCALES)
    assert scale == best_tried(tried)["scale"]


def tried(score: float, z: float, z_function: float) -> dict[str, float]:
    return {"score": score, "score_error": 0.01, "z": z, "z_function": z_function}


@pytest.mark.parametrize(
    ("all_tried", "best"),
    [
        ([tried(0.9, 0.0, 1.9), tried(0.8, 0.0, 0.0)], 0),  # the better score
        ([tried(0.9, 3.0, 0.0), tried(0.8, 1.0, 0.0)], 1),  # among those as far from the zoo as real networks
        ([tried(0.9, 0.0, 9.0), tried(0.8, 0.0, 1.0)], 1),  # in function, too
        ([tried(0.9, 0.0, 9.0), tried(0.8, 0.0, 8.0)], 0),  # or, without any, in weights
        ([tried(0.9, 5.0, 0.0), tried(0.8, -3.0, 0.0)], 1),  # or, without any, the one that comes closest
        ([tried(0.9, 0.0, 1.5), tried(0.895, 1.0, -0.5)], 1),  # equally good ones: by the distance of functions
    ],
)
def test_scale_with_the_best_score_among_those_as_far_from_the_zoo_as_real_networks_is_chosen(all_tried, best):
    assert best_tried(all_tried) is all_tried[best]


def test_rank_statistic_is_zero_for_the_same_values_and_signed_otherwise():
    values = torch.arange(20.0)

    assert rank_statistic(values, values) == 0
    assert rank_statistic(values + 100, values) == pytest.approx((0.25 * 12 * 400 / 41) ** 0.5)
    assert rank_statistic(values, values + 100) == -rank_statistic(values + 100, values)


# The scripts


@pytest.fixture
def folders(zoo: Checkpoints, tmp_path: Path) -> dict[str, Path]:
    zoo.save(tmp_path / "zoo")
    return {"--checkpoints": tmp_path / "zoo", "--autoencoder": tmp_path / "autoencoder"}


def train(folders: dict[str, Path], output_dir: Path, *flags: str | Path) -> None:
    """Runs both scripts, the first one once."""
    if not folders["--autoencoder"].exists():
        zoo = ["--checkpoints", folders["--checkpoints"]]
        run("train_autoencoder", *zoo, "--output_dir", folders["--autoencoder"])
    tiny = ["--config", '{"width": 16, "num_blocks": 1}', "--max_train_steps", str(STEPS), "--train_batch_size", "8"]
    named = [part for item in folders.items() for part in item]
    run("train_denoiser", *named, "--output_dir", output_dir, *tiny, *flags)


def test_the_scripts_choose_the_recipe_and_say_why(folders, tmp_path, capsys):
    train(folders, tmp_path / "pipeline")

    printed = capsys.readouterr().out
    assert "Recipe: units, because the zoo has 60 independent runs" in printed
    assert "Recipe: units, because the autoencoder is a UnitParameterAutoencoder." in printed
    assert "No training images" not in printed
    pipe = PDiffPipeline.from_pretrained(tmp_path / "pipeline")
    assert type(pipe.guide).__name__ == "TransformerParameterDenoiser"
    assert "training images" in (tmp_path / "pipeline" / "README.md").read_text()


def test_a_zoo_that_names_no_images_is_fitted_without_and_says_so(zoo, folders, tmp_path, capsys):
    (tmp_path / "zoo" / "collection.json").write_text(json.dumps({"format_version": 2}))

    train(folders, tmp_path / "pipeline")

    assert "No training images are at hand, so functions are not matched" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "pipeline" / "metrics.json").read_text())
    assert "function_matching" not in metrics["generator"]
    assert "the zoo's weights alone" in (tmp_path / "pipeline" / "README.md").read_text()


class Interruption(Exception):
    """Stands for a killed process."""


def test_an_interrupted_fit_resumes_bit_for_bit(folders, tmp_path, monkeypatch):
    train(folders, tmp_path / "whole")  # fits the autoencoder too
    original = torch.optim.AdamW.step
    made: list[int] = []

    def step(*args, **kwargs):
        made.append(1)
        if len(made) == 15:
            raise Interruption
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(Interruption):
        train(folders, tmp_path / "resumed", "--checkpointing_steps", "6")
    monkeypatch.undo()
    train(folders, tmp_path / "resumed", "--checkpointing_steps", "6", "--resume_from_checkpoint", "latest")

    for component in ("denoiser", "guide"):
        whole, resumed = (
            load_file(tmp_path / name / component / "diffusion_pytorch_model.safetensors")
            for name in ("whole", "resumed")
        )
        assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    losses = [
        json.loads((tmp_path / name / "metrics.json").read_text())["generator"]["losses"]
        for name in ("whole", "resumed")
    ]
    assert losses[0] == losses[1]
