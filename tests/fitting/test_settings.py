"""Recipes and flags mean the same, and a mistake in either is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import yaml

from pdiff_hf import load_recipe
from pdiff_hf.folders import shipped_folder
from pdiff_hf.settings import (
    RECIPES,
    AutoencoderSettings,
    DenoiserSettings,
    RecipeError,
    RunSettings,
    parse_with_recipe,
)

WriteRecipe = Callable[[str], Path]


@pytest.fixture
def write_recipe(tmp_path: Path) -> WriteRecipe:
    """A function that writes a YAML file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def parse(*flags: str) -> tuple[RunSettings, DenoiserSettings]:
    @dataclasses.dataclass
    class Script(RunSettings):
        recipe: str = "fast"

    return parse_with_recipe(Script, DenoiserSettings, "denoiser", "A script.", ["--output_dir", "out", *flags])


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipe_says_what_is_loaded(name):
    written = yaml.safe_load((shipped_folder("recipes") / f"{name}.yaml").read_text())

    recipe = load_recipe(name)

    for section, values in written.items():
        loaded = dataclasses.asdict(getattr(recipe, section))
        assert {key: loaded[key] for key in values} == values
    assert hasattr(diffusers, recipe.denoiser.scheduler)


def test_the_two_recipes_are_the_two_methods():
    fast, paper = load_recipe("fast"), load_recipe("paper")

    assert (fast.autoencoder.autoencoder_type, fast.denoiser.denoiser_type) == ("linear", "mlp")
    assert (paper.autoencoder.autoencoder_type, paper.denoiser.denoiser_type) == ("conv", "conv")
    assert paper.autoencoder.latent_dim == 128
    assert fast.denoiser.num_inference_steps <= 20
    assert paper.denoiser.num_inference_steps == 1000


def test_own_recipe_changes_what_it_names(write_recipe):
    path = write_recipe("autoencoder: {latent_dim: 7}\ndenoiser: {learning_rate: 1e-2, scheduler: DDIMScheduler}")

    recipe = load_recipe(path)

    assert recipe.autoencoder == AutoencoderSettings(latent_dim=7)
    assert recipe.denoiser == DenoiserSettings(learning_rate=0.01, scheduler="DDIMScheduler")


def test_null_is_no_value(write_recipe):
    recipe = load_recipe(write_recipe("autoencoder: {latent_dim: null}\ndenoiser: {width: 8}"))

    assert recipe.autoencoder.latent_dim is None


def test_empty_section_takes_the_defaults(write_recipe):
    recipe = load_recipe(write_recipe("autoencoder:\ndenoiser: {width: 8}"))

    assert recipe.autoencoder == AutoencoderSettings()


def test_unknown_recipe_is_named():
    with pytest.raises(RecipeError, match=r"no recipe 'quick'; pass one of \['fast', 'paper'\]"):
        load_recipe("quick")


def test_unknown_key_is_named(write_recipe):
    path = write_recipe("autoencoder: {}\ndenoiser: {widht: 8}")

    with pytest.raises(RecipeError, match=r"mine\.yaml: denoiser holds the unknown keys \['widht'\].*'width'"):
        load_recipe(path)


@pytest.mark.parametrize(
    "value", ["width: wide", "width: 1.5", "learning_rate: fast", "denoiser_type: cubic", "width: [1, 2]"]
)
def test_wrong_value_is_named(write_recipe, value):
    path = write_recipe(f"autoencoder: {{}}\ndenoiser: {{{value}}}")

    with pytest.raises(RecipeError, match=f"mine.yaml: denoiser: .*--{value.partition(':')[0]}"):
        load_recipe(path)


@pytest.mark.parametrize(
    "text",
    ["denoiser: {}", "autoencoder: {}\ndenoiser: {}\nsampler: {}", "fast", ""],
    ids=["missing section", "unknown section", "no mapping", "empty"],
)
def test_wrong_sections_are_named(write_recipe, text):
    with pytest.raises(RecipeError, match=r"has the sections \['autoencoder', 'denoiser'\], but .*mine\.yaml"):
        load_recipe(write_recipe(text))


@pytest.mark.parametrize("section", ["linear", "3", "[latent_dim, 8]"])
def test_section_that_is_no_mapping_is_refused(write_recipe, section):
    with pytest.raises(RecipeError, match=r"mine\.yaml: autoencoder"):
        load_recipe(write_recipe(f"autoencoder: {section}\ndenoiser: {{}}"))


def test_file_that_is_no_yaml_is_refused(write_recipe):
    with pytest.raises(RecipeError, match=r"mine\.yaml"):
        load_recipe(write_recipe("autoencoder: {latent_dim: 8"))


def test_flags_override_the_recipe():
    run, settings = parse("--recipe", "paper", "--learning_rate", "0.5", "--checkpointing_steps=7")

    paper = load_recipe("paper").denoiser
    assert settings == dataclasses.replace(paper, learning_rate=0.5)
    assert (run.output_dir, run.checkpointing_steps) == ("out", 7)


def test_default_recipe_is_the_fast_one():
    _, settings = parse()

    assert settings == load_recipe("fast").denoiser


def test_script_takes_a_recipe_file(write_recipe):
    path = write_recipe("autoencoder: {}\ndenoiser: {width: 8, num_blocks: 1}")

    _, settings = parse(f"--recipe={path}", "--num_blocks", "3")

    assert settings == DenoiserSettings(width=8, num_blocks=3)


def test_unknown_flag_is_named():
    with pytest.raises(ValueError, match=r"--widht"):
        parse("--widht", "8")


def test_wrong_flag_value_is_named(capsys):
    with pytest.raises(SystemExit):
        parse("--width", "wide")

    assert "--width: invalid int value: 'wide'" in capsys.readouterr().err
