"""From a zoo to a pipeline: both stages, the components put together, and how it was made."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ModelMixin

from ..hub.cards import describe_hardware, published_name
from ..loops import Stopwatch, fingerprint
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..settings import RunSettings
from ..targets.building import build_network
from ..zoo.checkpoints import Checkpoints
from .autoencoder import encode_zoo, fit_autoencoder
from .denoiser import fit_denoiser
from .settings import DenoiserSettings, Recipe, load_recipe


def fit(checkpoints: Checkpoints, recipe: str | Recipe = "fast") -> PDiffPipeline:
    """Fits a generator to a zoo.

    Args:
        checkpoints: The zoo, as `load_checkpoints` or `CheckpointRecorder.checkpoints` return it. Only its train split
            is read.
        recipe: `fast`, `paper`, the path of a YAML file, or a `Recipe`.

    Raises:
        RecipeError: If the recipe is missing, or holds a key or value that no setting takes.
        ValueError: If the zoo cannot be fitted.
        NonFiniteParametersError: If a training diverged.
    """
    recipe, watch = recipe if isinstance(recipe, Recipe) else load_recipe(recipe), Stopwatch()
    autoencoder = fit_autoencoder(checkpoints, recipe.autoencoder)
    first_stage = {"settings": asdict(recipe.autoencoder), "seconds": watch.seconds}
    return fit_pipeline(checkpoints, autoencoder, first_stage, recipe.denoiser)


def fit_pipeline(
    checkpoints: Checkpoints,
    autoencoder: ModelMixin,
    first_stage: dict[str, Any],
    settings: DenoiserSettings,
    run: RunSettings | None = None,
) -> PDiffPipeline:
    """Trains the denoiser on the zoo's latents and puts the pipeline together.

    The pipeline's target holds the zoo's average in the generated positions. `first_stage` holds the settings and the
    seconds of the autoencoder, as its `training.json`, and the fingerprint of its zoo if known.

    Raises:
        ValueError: If the autoencoder was fitted to another zoo; and what `fit_denoiser` raises.
    """
    watch = Stopwatch()
    parameters = checkpoints.zoo.parameters
    zoo, made_for = fingerprint([parameters]) if run else None, autoencoder.config.parameter_dim
    if made_for != parameters.shape[1] or (zoo and first_stage.get("zoo", zoo) != zoo):
        raise ValueError(
            f"The autoencoder was fitted to another zoo, of {made_for} parameters a checkpoint; this one has "
            f"{len(parameters)} checkpoints of {parameters.shape[1]} parameters; fit an autoencoder to it first."
        )
    data = {"zoo": zoo, "autoencoder": fingerprint(autoencoder.state_dict().values())} if zoo else None
    latents = encode_zoo(autoencoder, parameters)  # (n, latent_dim)
    denoiser, scheduler = fit_denoiser(latents, settings, run, watch, data)
    second_stage = {"settings": asdict(settings), "seconds": watch.seconds}
    average = build_network(checkpoints.target_model, checkpoints.processor, parameters.mean(0), share_trunk=False)
    pipe = PDiffPipeline(
        autoencoder=autoencoder,
        denoiser=denoiser,
        scheduler=scheduler,
        processor=checkpoints.processor,
        target_model=average,
        default_num_inference_steps=settings.num_inference_steps,
        image_processor_config=checkpoints.preprocessing or None,
    )
    pipe.metrics = describe_fit(checkpoints, autoencoder=first_stage, denoiser=second_stage)
    return pipe


def describe_fit(checkpoints: Checkpoints, **stages: dict[str, Any]) -> dict[str, Any]:
    """Returns the beginning of a `metrics.json`: how the generator was made, on which zoo, at what cost.

    `stages` are the `settings` and `seconds` of `autoencoder` and `denoiser`, if known.
    """
    collected = checkpoints.collection.get("settings", {})
    seconds = {f"{role}_seconds": stage["seconds"] for role, stage in stages.items()}
    return {
        "version": 1,
        "generator": {role: stage["settings"] for role, stage in stages.items()},
        "data": {
            "dataset_name": published_name(collected["dataset_name"]) if collected else None,
            "checkpoints": checkpoints.collection.get("repo_id"),
            "zoo_count": len(checkpoints.zoo),
            "collection": collected,
        },
        "costs": checkpoints.collection.get("costs", {}) | seconds,
        "environment": {"hardware": describe_hardware()}
        | {module.__name__: module.__version__ for module in (torch, diffusers, transformers)},
    }
