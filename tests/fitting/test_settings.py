"""Recipes and flags mean the same, and a mistake in either is named before anything is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pdiff_hf import load_recipe
from pdiff_hf.fitting.settings import (
    RECIPES,
    AutoencoderSettings,
    DenoiserSettings,
    FitScriptSettings,
    RecipeError,
    parse_with_recipe,
)
from pdiff_hf.folders import shipped_folder
from pdiff_hf.settings import say


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[str], Path]:
    """A function that writes a YAML file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def parse(*flags: str, suits: str = "fast") -> tuple[FitScriptSettings, DenoiserSettings]:
    """Parses the flags of a script that takes the recipe `suits` for a zoo unless they name another."""
    arguments = ["--output_dir", "out", "--checkpoints", "zoo", *flags]
    return parse_with_recipe(
        FitScriptSettings, DenoiserSettings, "A script.", arguments, lambda given: (suits, f"of {given.checkpoints}")
    )


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipe_is_loaded_as_it_is_written(name):
    written = yaml.safe_load((shipped_folder("recipes") / f"{name}.yaml").read_text())
    written.pop("base", None)

    recipe = load_recipe(name)

    for section, values in written.items():
        loaded = dataclasses.asdict(getattr(recipe, section))
        assert {key: loaded[key] for key in values} == values


def test_own_recipe_changes_what_it_names(write_recipe):
    path = write_recipe(
        "autoencoder: {type: conv, config: {channels: [4, 8], latent_noise: 1e-2}}\n"
        "denoiser: {learning_rate: 1e-2, scheduler: DDIMScheduler, seed: null}"
    )

    recipe = load_recipe(path)

    expected = AutoencoderSettings(type="conv", config={"channels": [4, 8], "latent_noise": 0.01})
    assert recipe.autoencoder == expected  # YAML reads 1e-2 as text
    assert recipe.denoiser == DenoiserSettings(learning_rate=0.01, scheduler="DDIMScheduler")
    assert load_recipe(write_recipe("autoencoder:\ndenoiser: {}")).autoencoder == AutoencoderSettings()


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ("width: 8", r"holds the unknown keys \['width'\]; the known ones are .*'config'"),
        ("config: {widht: 8}", r"denoiser 'mlp' holds the unknown keys \['widht'\]; .*'num_blocks', .*'width'\]"),
        ("config: {latent_dim: 8}", r"unknown keys \['latent_dim'\]"),  # comes from the autoencoder
        ("type: conv, config: {width: 8}", r"denoiser 'conv' holds the unknown keys \['width'\]; .*'kernel_size'"),
        ("type: cubic", r"no denoiser of type 'cubic'; choose one of \['conv', 'mlp', 'transformer'\]"),
        ("config: {width: wide}", "width: 'wide', but width is of type int"),
        ("config: {width: 1.5}", "width: 1.5, but width is of type int"),
        ("type: conv, config: {channels: 3}", "channels: 3, but channels is of type"),
        ("config: 3", "--config"),
        ("learning_rate: fast", "--learning_rate"),
        ("config: {width: -1}", "width: -1, but width is of type int and not negative"),
        ("3: 4", r"unknown keys \['3'\]"),
        ("num_inference_steps: 9999", "--num_inference_steps must be from 1 to 1000, but is 9999"),
        ("scheduler: FancyScheduler", "no scheduler 'FancyScheduler'"),
        ("function_weight: 1, prediction_type: epsilon", "Functions are matched by v_prediction alone"),
        ("guide_at: 0.2, ema_decay: 0", "keep averaged weights; set ema_decay above 0"),
        ("autoguidance_scale: 11", "--autoguidance_scale must be from 0 to 10"),
    ],
)
def test_mistake_in_a_section_is_named(write_recipe, section, sentence):
    with pytest.raises(RecipeError, match=f"mine.yaml: denoiser.*{sentence}"):
        load_recipe(write_recipe(f"autoencoder: {{}}\ndenoiser: {{{section}}}"))


@pytest.mark.parametrize(
    ("config", "known"),
    [("linear", ["explained_variance", "latent_dim"]), ("conv", ["channels", "input_noise", "kernel_size"])],
)
def test_an_autoencoder_takes_the_arguments_of_its_class(config, known):
    with pytest.raises(RecipeError, match=f"the known ones are .*{', '.join(map(repr, known))}"):
        AutoencoderSettings(type=config, config={"parameter_dim": 3})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("denoiser: {}", r"has the sections \['autoencoder', 'denoiser'\], but .*mine\.yaml"),
        ("autoencoder: {}\ndenoiser: {}\nsampler: {}", r"has the sections .*mine\.yaml"),
        ("fast", r"a mapping .*mine\.yaml' is 'fast'"),
        ("autoencoder: {}\ndenoiser: 3", r"mine\.yaml: denoiser must be a mapping"),
        ("autoencoder: {latent_dim: 8", r"mine\.yaml' is not a YAML file"),
        ("base: mine", r"base of a recipe is one of .*'units'\], but that of .*mine\.yaml' is 'mine'"),
        ("base: units\nsampler: {}", r"has the sections .*mine\.yaml' has \['sampler'\]"),
    ],
    ids=["missing section", "unknown section", "no mapping", "section without keys", "no YAML", "base", "with base"],
)
def test_file_that_is_not_a_recipe_is_refused(write_recipe, text, sentence):
    with pytest.raises(RecipeError, match=sentence):
        load_recipe(write_recipe(text))


def test_a_recipe_with_a_base_states_only_what_is_different(write_recipe):
    recipe, base = load_recipe(write_recipe("base: units\ndenoiser: {max_train_steps: 7}")), load_recipe("units")

    assert recipe.autoencoder == base.autoencoder
    assert recipe.denoiser == dataclasses.replace(base.denoiser, max_train_steps=7)


def test_unknown_recipe_is_named():
    with pytest.raises(
        RecipeError, match=r"no recipe 'quick'; pass one of \['conditional', 'fast', 'paper', 'units'\]"
    ):
        load_recipe("quick")


def test_flags_override_the_recipe():
    run, settings = parse("--recipe", "paper", "--learning_rate", "0.5", "--checkpointing_steps=7")

    assert settings == dataclasses.replace(load_recipe("paper").denoiser, learning_rate=0.5)
    assert (run.output_dir, run.checkpointing_steps) == ("out", 7)
    assert parse()[1] == load_recipe("fast").denoiser


def test_the_recipe_that_suits_the_zoo_is_the_default_and_is_printed(capsys):
    _, settings = parse(suits="units")

    assert settings == load_recipe("units").denoiser
    assert capsys.readouterr().out == "Recipe: units, because of zoo.\n"
    assert parse("--recipe", "fast", suits="units")[1] == load_recipe("fast").denoiser
    assert capsys.readouterr().out == ""


def test_config_of_the_command_line_is_merged_over_that_of_the_recipe(write_recipe):
    path = write_recipe("autoencoder: {}\ndenoiser: {config: {width: 8, num_blocks: 1}}")

    assert parse(f"--recipe={path}", "--config", '{"num_blocks": 3}')[1].config == {"width": 8, "num_blocks": 3}
    other = parse(f"--recipe={path}", "--type", "conv", "--config", '{"kernel_size": 3}')[1]
    assert (other.type, other.config) == ("conv", {"kernel_size": 3})  # the recipe's arguments are of another class


@pytest.mark.parametrize("flags", ["--widht=8", '--config={"widht": 8}', "--type=widht"])
def test_unknown_flag_is_named(flags):
    with pytest.raises(ValueError, match="widht"):
        parse(flags)


def test_config_that_is_not_json_is_named(capsys):
    with pytest.raises(SystemExit):
        parse("--config", "wide")

    assert "--config: invalid Config value: 'wide'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag", ["seed=-1", "learning_rate=nan", "max_grad_norm=inf", "checkpointing_steps=0", "train_batch_size=0"]
)
def test_number_out_of_range_is_named(flag):
    name, value = flag.split("=")

    with pytest.raises(ValueError, match=f"^--{name} must be .*, but is {value}\\.$"):
        parse(f"--{flag}")


def test_a_line_is_said_by_the_first_process_alone(monkeypatch, capsys):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        say(f"process {rank}")

    assert capsys.readouterr().out == "process 0\n"
