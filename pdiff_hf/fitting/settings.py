"""The settings of both training stages, and the recipes that supply them."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

import yaml
from huggingface_hub.dataclasses import type_validator
from transformers import HfArgumentParser

from .._registration import COMPONENTS, component_class
from ..folders import shipped_folder
from ..pipelines.checks import SCHEDULERS
from ..pipelines.guidance import LARGEST_SCALE
from ..settings import OptimizationSettings, RunSettings, require_within, say, setting

NUM_TRAIN_TIMESTEPS = 1000
RECIPES = sorted(path.stem for path in shipped_folder("recipes").glob("*.yaml"))


AUTO = "auto"  # the recipe that suits the zoo


class RecipeError(ValueError):
    """A recipe is missing, or holds a key or value that no setting takes."""


class Config(dict):
    """Constructor arguments of a component; text is read as JSON, so that they can be a flag."""

    def __init__(self, arguments: Any = ()) -> None:
        super().__init__(json.loads(arguments) if isinstance(arguments, str) else arguments)


@dataclass
class ComponentSettings(OptimizationSettings):
    """Which class of the table of components is trained, with which constructor arguments, and how.

    Raises `RecipeError` if the table has no such type, or its class takes no such arguments.
    """

    role: ClassVar[str]
    from_data: ClassVar[frozenset[str]]  # arguments that come from the zoo or the other stage
    type: str = ""
    config: Config = field(
        default_factory=Config,
        metadata={"help": "Constructor arguments as JSON, merged over the recipe's unless --type changes."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # The arguments are those of the class, or of its `from_zoo` and what that hands on to the class.
        try:
            cls: Any = component_class(self.role, self.type)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        functions = [getattr(cls, "from_zoo", cls.__init__)]
        if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(functions[0]).parameters.values()):
            functions.append(cls.__init__)
        hints = {name: hint for function in functions for name, hint in get_type_hints(function).items()}
        known = sorted(hints.keys() - self.from_data - {"config", "return"})
        unknown = sorted(self.config.keys() - set(known))
        where = f"The config of {self.role} {self.type!r}"
        if unknown:
            raise RecipeError(f"{where} holds the unknown keys {unknown}; the known ones are {known}.")
        self.config = Config(self.config)
        for name, value in self.config.items():
            try:
                if hints[name] is float:
                    self.config[name] = float(value)  # YAML reads 1e-3 as text
                else:
                    type_validator(name, value, hints[name])
                numbers = value if isinstance(value, list) else [self.config[name]]
                if any(isinstance(number, int | float) and not 0 <= number < math.inf for number in numbers):
                    raise ValueError("No argument of a component is negative or infinite.")
            except (TypeError, ValueError) as error:
                kind = getattr(hints[name], "__name__", hints[name])
                raise RecipeError(
                    f"{where} holds {name}: {value!r}, but {name} is of type {kind} and not negative."
                ) from error


@dataclass
class AutoencoderSettings(ComponentSettings):
    """The first stage. An autoencoder that is fitted in closed form ignores what concerns its training."""

    role: ClassVar[str] = "autoencoder"
    from_data: ClassVar[frozenset[str]] = frozenset(
        {"parameters", "sizes", "parameter_dim", "order", "groups", "edges", "metrics"}
    )
    type: str = setting("linear", f"Class of the autoencoder, one of {', '.join(COMPONENTS['autoencoder'])}.")

    @property
    def uses_images(self) -> bool:
        """Whether training images are of use."""
        return self.type == "unit"


@dataclass
class DenoiserSettings(ComponentSettings):
    """The second stage, and the sampler that is shipped; raises `RecipeError` for a scheduler that cannot draw."""

    role: ClassVar[str] = "denoiser"
    from_data: ClassVar[frozenset[str]] = frozenset({"latent_dim", "token_groups", "token_edges", "condition_dim"})
    type: str = setting("mlp", f"Class of the denoiser, one of {', '.join(COMPONENTS['denoiser'])}.")
    latent_smoothing: float = setting(
        0.0, "Standard deviation of noise mixed into the standardized latents, which keep unit variance."
    )
    ema_decay: float = setting(0.99, "Decay of the averaged weights that are shipped; 0 ships the last weights.")
    prediction_type: Literal["v_prediction", "epsilon"] = setting("v_prediction", "What the denoiser predicts.")
    beta_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear", "sigmoid"] = setting(
        "squaredcos_cap_v2", "Noise schedule of diffusers."
    )
    beta_start: float = setting(1e-4, "First beta of a linear schedule.")
    beta_end: float = setting(2e-2, "Last beta of a linear schedule.")
    scheduler: str = setting("DPMSolverMultistepScheduler", "The diffusers scheduler that is shipped.")
    num_inference_steps: int = setting(20, "Steps of the shipped sampler.")

    function_weight: float = setting(
        0.0, "Weight of function matching: predicted networks must compute on training images what real ones do."
    )
    function_images: int = setting(64, "Training images of one step of function matching.")
    function_networks: int = setting(64, "Networks of a batch whose functions are matched, at most.")
    function_gate: float = setting(1.0, "Function matching counts by this power of the signal's share alpha_bar.")
    guide_at: float = setting(
        0.0, "Share of the training after which the averaged weights are kept to guide away from; 0 keeps none."
    )
    autoguidance_scale: float = setting(
        0.0, "Strength of that guidance, if validation checkpoints and images cannot choose it."
    )
    select_snapshot: bool = setting(
        False, "Ship the averaged weights of the lowest loss on validation checkpoints, and stop when it rises."
    )
    condition_dropout: float = setting(
        0.1, "With conditions: share of the examples whose condition is dropped, for classifier-free guidance."
    )
    guidance_scale: float = setting(
        1.0, "With conditions: scale of that guidance, if validation conditions and images cannot choose it."
    )
    auto_bf16: bool = setting(
        False, "Train in bfloat16 on processors and GPUs that have it, unless --mixed_precision is given."
    )

    @property
    def uses_images(self) -> bool:
        """Whether training or validation images are of use."""
        return bool(self.function_weight or self.guide_at)

    def used(self, is_conditional: bool) -> dict[str, Any]:
        """Returns the settings by name, those of conditions only for a zoo that has some."""
        unused = () if is_conditional else ("condition_dropout", "guidance_scale")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in unused}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within(self, 0, "latent_smoothing")
        require_within(self, 0, "function_weight", "function_gate")
        require_within(self, 0, "autoguidance_scale", "guidance_scale", highest=LARGEST_SCALE)
        require_within(self, 0, "condition_dropout", "ema_decay", "beta_start", "beta_end", "guide_at", highest=1)
        require_within(self, 1, "num_inference_steps", highest=NUM_TRAIN_TIMESTEPS)
        require_within(self, 1, "function_images", "function_networks")
        names = [scheduler.__name__ for scheduler in SCHEDULERS]
        if self.scheduler not in names:
            raise RecipeError(f"There is no scheduler {self.scheduler!r} to draw with; use one of {', '.join(names)}.")
        if self.function_weight and self.prediction_type != "v_prediction":
            raise RecipeError(
                "Functions are matched by v_prediction alone; set function_weight: 0 or prediction_type."
            )
        if (self.guide_at or self.select_snapshot) and not self.ema_decay:
            raise RecipeError("guide_at and select_snapshot keep averaged weights; set ema_decay above 0.")


@dataclass
class Recipe:
    """The settings of both stages."""

    autoencoder: AutoencoderSettings
    denoiser: DenoiserSettings


@dataclass
class FitScriptSettings(RunSettings):
    """What the scripts of both stages take beside the settings of their stage."""

    checkpoints: str = field(kw_only=True, metadata={"help": "The checkpoints dataset: a folder or a Hub id."})
    recipe: str = setting(
        AUTO, f"{', '.join(f'`{name}`' for name in RECIPES)}, the path of a YAML file, or `auto`; flags override it."
    )
    dataset_name: str | None = setting(
        None, "Where the images are that the recipe `units` uses, if not where a local zoo was collected."
    )


Script = TypeVar("Script", bound=FitScriptSettings)
Settings = TypeVar("Settings", bound=ComponentSettings)


def load_recipe(recipe: str | os.PathLike) -> Recipe:
    """Reads a recipe: one that is shipped, or a YAML file with the sections `autoencoder` and `denoiser`.

    A file with the key `base`, a shipped recipe, states only what is different from that one.

    Raises:
        RecipeError: If there is no such recipe, or it holds a key or value that no setting takes.
    """
    sections = _read_recipe(recipe)
    base = sections.pop("base", None)
    if base is not None and base not in RECIPES:
        raise RecipeError(f"The base of a recipe is one of {RECIPES}, but that of {str(recipe)!r} is {base!r}.")
    expected = {"autoencoder": AutoencoderSettings, "denoiser": DenoiserSettings}
    if set(sections) - set(expected) or (base is None and set(sections) != set(expected)):
        raise RecipeError(f"A recipe has the sections {list(expected)}, but {str(recipe)!r} has {sorted(sections)}.")
    stages: dict[str, Any] = {}
    for name, cls in expected.items():
        common = {} if base is None else dataclasses.asdict(getattr(load_recipe(base), name))
        stages[name] = _settings(cls, sections.get(name), f"{recipe}: {name}", common)
    return Recipe(**stages)


def _read_recipe(recipe: str | os.PathLike) -> dict[str, Any]:
    path = shipped_folder("recipes") / f"{recipe}.yaml" if recipe in RECIPES else Path(recipe)
    if not path.is_file():
        raise RecipeError(f"There is no recipe {str(recipe)!r}; pass one of {RECIPES} or the path of a YAML file.")
    try:
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{str(recipe)!r} is not a YAML file: {' '.join(str(error).split())}.") from error
    if not isinstance(sections, dict):
        raise RecipeError(f"A recipe is a mapping with two sections, but {str(recipe)!r} is {sections!r}.")
    return {str(name): values for name, values in sections.items()}


def _settings(cls: type[Settings], values: Any, where: str, common: dict[str, Any]) -> Settings:
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise RecipeError(f"{where} must be a mapping of settings to values, but is {values!r}.")
    known = sorted(f.name for f in dataclasses.fields(cls))
    unknown = sorted(map(str, set(values) - set(known)))
    if unknown:
        raise RecipeError(f"{where} holds the unknown keys {unknown}; the known ones are {known}.")
    values = common | values
    # The parser of the command line converts and checks the values, so that a file and a flag mean the same.
    arguments = []
    for name, value in values.items():
        text = json.dumps(value, default=str) if isinstance(value, dict | list) else value
        arguments += [] if value is None else [f"--{name}={text}"]
    try:
        parser = HfArgumentParser(cls, exit_on_error=False)
        return parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)[0]
    except (argparse.ArgumentError, ValueError) as error:
        raise RecipeError(f"{where}: {error}") from error


def parse_with_recipe(
    script: type[Script],
    stage: type[Settings],
    description: str,
    argv: Sequence[str] | None,
    choose: Callable[[argparse.Namespace], tuple[str, str]],
) -> tuple[Script, Settings]:
    """Parses a script's flags; the recipe that `--recipe` names supplies the defaults of its stage.

    `choose` returns, for `--recipe auto`, the recipe to be used and the reason, from the script's other flags.
    """
    given = HfArgumentParser(script, add_help=False, allow_abbrev=False)
    given.add_argument("--type")
    given.add_argument("--config", type=Config, default=Config())
    parser = HfArgumentParser((script, stage), description=description)
    if {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv):
        parser.parse_args(argv)  # prints and ends
    chosen = given.parse_known_args(argv)[0]
    recipe = chosen.recipe
    if recipe == AUTO:
        recipe, reason = choose(chosen)
        say(f"Recipe: {recipe}, because {reason}.")
    defaults: Settings = getattr(load_recipe(recipe), stage.role)
    if chosen.type not in (None, defaults.type):
        defaults = dataclasses.replace(defaults, type=chosen.type, config=Config())
    defaults = dataclasses.replace(defaults, config=Config(defaults.config | chosen.config))
    parser.set_defaults(**dataclasses.asdict(defaults))
    script_settings, stage_settings = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    return script_settings, dataclasses.replace(stage_settings, config=defaults.config)
