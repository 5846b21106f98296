"""The settings of the two training stages, and the recipes that supply their defaults."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from .folders import shipped_folder
from .hub.sharing import prepare_repository, share

RECIPES = ("fast", "paper")


class RecipeError(ValueError):
    """A recipe is missing, or holds a key or value that no setting takes."""


def setting(default: Any, help: str) -> Any:
    """A dataclass field that is also a command-line flag."""
    return field(default=default, metadata={"help": help})


@dataclass
class OptimizationSettings:
    """How a network is trained, with diffusers' flag names."""

    max_train_steps: int = setting(600, "Optimizer steps.")
    train_batch_size: int = setting(256, "Examples of one step, over all processes together.")
    learning_rate: float = setting(1e-3, "Peak learning rate of AdamW.")
    lr_scheduler: str = setting("cosine", "A schedule of diffusers.optimization.get_scheduler.")
    lr_warmup_steps: int = setting(50, "Steps of linear warm-up.")
    adam_weight_decay: float = setting(0.0, "Weight decay of AdamW.")
    max_grad_norm: float = setting(1.0, "Clip the gradient's norm; 0 does not.")
    seed: int = setting(0, "Decides initial weights, batches and noise.")


@dataclass
class AutoencoderSettings(OptimizationSettings):
    """The first stage. A linear autoencoder is fitted in closed form and ignores what concerns its training."""

    autoencoder_type: Literal["linear", "conv"] = setting(
        "linear", "`linear` (principal codes) or `conv` (the paper)."
    )
    latent_dim: int | None = setting(None, "Length of a latent; linear: by default from --explained_variance.")
    explained_variance: float = setting(0.95, "Linear: keep the fewest codes with this share of the zoo's variance.")
    input_noise: float = setting(1e-3, "Conv: standard deviation of the noise on the standardized vectors.")
    latent_noise: float = setting(0.1, "Conv: standard deviation of the noise on the latents.")


@dataclass
class DenoiserSettings(OptimizationSettings):
    """The second stage, and the sampler that is shipped."""

    denoiser_type: Literal["mlp", "conv"] = setting("mlp", "`mlp` (sees the whole latent) or `conv` (the paper).")
    width: int = setting(128, "MLP: units of the hidden layers.")
    num_blocks: int = setting(2, "MLP: residual blocks.")
    latent_smoothing: float = setting(
        0.0, "Standard deviation of noise mixed into the standardized latents, which keep unit variance."
    )
    ema_decay: float = setting(0.99, "Decay of the averaged weights that are shipped; 0 ships the last weights.")
    prediction_type: Literal["v_prediction", "epsilon"] = setting("v_prediction", "What the denoiser predicts.")
    beta_schedule: str = setting("squaredcos_cap_v2", "Noise schedule of diffusers.")
    beta_start: float = setting(1e-4, "First beta of a linear schedule.")
    beta_end: float = setting(2e-2, "Last beta of a linear schedule.")
    scheduler: str = setting("DPMSolverMultistepScheduler", "The diffusers scheduler that is shipped.")
    num_inference_steps: int = setting(20, "Steps of the shipped sampler.")


@dataclass
class Recipe:
    """The settings of both stages."""

    autoencoder: AutoencoderSettings
    denoiser: DenoiserSettings


Settings = TypeVar("Settings", bound=OptimizationSettings)


def load_recipe(recipe: str | os.PathLike) -> Recipe:
    """Reads a recipe: `fast`, `paper`, or the path of a YAML file with the sections `autoencoder` and `denoiser`.

    Raises:
        RecipeError: If there is no such recipe, or it holds a key that is no setting.
    """
    if recipe in RECIPES:
        text = (shipped_folder("recipes") / f"{recipe}.yaml").read_text(encoding="utf-8")
    elif Path(recipe).is_file():
        text = Path(recipe).read_text(encoding="utf-8")
    else:
        raise RecipeError(
            f"There is no recipe {str(recipe)!r}; pass one of {list(RECIPES)} or the path of a YAML file."
        )
    try:
        sections = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{str(recipe)!r} is no YAML file: {error}") from error
    expected = {"autoencoder": AutoencoderSettings, "denoiser": DenoiserSettings}
    if not isinstance(sections, dict) or set(sections) != set(expected):
        found = sorted(sections) if isinstance(sections, dict) else type(sections).__name__
        raise RecipeError(f"A recipe has the sections {list(expected)}, but {str(recipe)!r} has {found}.")
    return Recipe(**{name: _settings(cls, sections[name], f"{recipe}: {name}") for name, cls in expected.items()})


def _settings(cls: type[Settings], values: dict[str, Any], where: str) -> Settings:
    if not isinstance(values or {}, dict):
        raise RecipeError(f"{where} must be a mapping of settings to values, but is {values!r}.")
    values = values or {}
    known = sorted(f.name for f in dataclasses.fields(cls))
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise RecipeError(f"{where} holds the unknown keys {unknown}; the known ones are {known}.")
    # The parser of the command line converts and checks the values, so that a file and a flag mean the same.
    arguments = [f"--{name}={value}" for name, value in values.items() if value is not None]
    try:
        return _RecipeParser(cls).parse_args_into_dataclasses(arguments, look_for_args_file=False)[0]
    except argparse.ArgumentError as error:
        raise RecipeError(f"{where}: {error}") from error


class _RecipeParser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)


@dataclass
class HubSettings:
    """Whether a script shares its result on the Hub."""

    push_to_hub: bool = setting(False, "Push the result to the Hub.")
    hub_model_id: str | None = setting(None, "The repository, `org/name`; by default the name of the output folder.")
    hub_token: str | None = field(
        default=None, repr=False, metadata={"help": "A token with write access; by default the stored one."}
    )
    hub_private_repo: bool = setting(False, "Make the repository private.")

    def prepare_push(self, folder: str, repo_type: str) -> None:
        """Makes the repository before the work is done, so that a wrong token is found before it costs a training.

        Raises:
            HubError: If the repository cannot be made or written to.
        """
        if self.push_to_hub:
            private = True if self.hub_private_repo else None
            self.hub_model_id = prepare_repository(
                self.hub_model_id or Path(folder).name, repo_type, private, self.hub_token
            )

    def push(self, folder: str) -> None:
        """Pushes a folder, if asked to, and says where it is.

        Raises:
            HubError: If it cannot be pushed; running the script again, or `pdiff-hf push`, completes it.
        """
        if self.push_to_hub:
            private = True if self.hub_private_repo else None
            address = share(folder, self.hub_model_id or Path(folder).name, private=private, token=self.hub_token)
            print(f"Pushed: {address}")


@dataclass
class RunSettings:
    """What every training script takes."""

    output_dir: str = field(metadata={"help": "The result is written here, whole or not at all."})
    checkpointing_steps: int = setting(500, "Save the state of training every so many steps.")
    checkpoints_total_limit: int = setting(2, "Keep at most so many saved states.")
    resume_from_checkpoint: str | None = setting(None, "`latest`, or the path of a saved state.")
    report_to: str = setting("none", "Trackers that Accelerate knows: `tensorboard`, `wandb`, …, `all` or `none`.")
    logging_steps: int = setting(10, "Log every so many steps.")
    mixed_precision: Literal["no", "fp16", "bf16"] = setting("no", "Precision of training.")

    @property
    def state_dir(self) -> Path:
        """The folder of saved states and logs: beside `output_dir`, so that it is never pushed with it."""
        return Path(f"{self.output_dir.rstrip('/')}-state")


Script = TypeVar("Script", bound=RunSettings)


def parse_with_recipe(
    script: type[Script], stage: type[Settings], section: str, description: str, argv: Sequence[str] | None
) -> tuple[Script, Settings]:
    """Parses a script's flags; the recipe that `--recipe` names supplies the defaults of its stage."""
    choose = argparse.ArgumentParser(add_help=False)
    choose.add_argument("--recipe", default="fast")
    recipe = load_recipe(choose.parse_known_args(argv)[0].recipe)
    parser = HfArgumentParser((script, stage), description=description)
    parser.set_defaults(**dataclasses.asdict(getattr(recipe, section)))
    script_settings, stage_settings = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    return script_settings, stage_settings
