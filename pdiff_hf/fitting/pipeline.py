"""From a zoo to a pipeline: both stages, the components put together, and how it was made."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ModelMixin

from ..data.inputs import LabeledData
from ..hub.cards import describe_hardware, published_name
from ..loops import Stopwatch, fingerprint
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..settings import RunSettings
from ..targets.building import build_network
from ..targets.statistics import OwnStatistics
from ..zoo.checkpoints import Checkpoints
from .autoencoder import encode_zoo, fit_autoencoder
from .denoiser import fit_denoiser
from .function_matching import FunctionMatching, comparable_pairs
from .guidance import choose_autoguidance
from .settings import AUTO, DenoiserSettings, Recipe, load_recipe
from .units import canonical_splits, choose_recipe


def fit(checkpoints: Checkpoints, recipe: str | Recipe = "fast", images: LabeledData | None = None) -> PDiffPipeline:
    """Fits a generator to a zoo.

    Args:
        checkpoints: The zoo, as `load_checkpoints` or `CheckpointRecorder.checkpoints` return it. Its train split is
            learned from; its validation split, if the recipe asks for it, chooses when to stop and how to guide.
        recipe: `fast`, `units`, `paper`, the path of a YAML file, a `Recipe`, or `auto`: `units` for whole networks of
            many runs, `fast` otherwise.
        images: What the networks were trained on, if the recipe matches functions: the train split is used for that,
            without its labels, and the validation split to choose the strength of autoguidance.

    Raises:
        RecipeError: If the recipe is missing, or holds a key or value that no setting takes.
        ValueError: If the zoo cannot be fitted.
        NonFiniteParametersError: If a training diverged.
    """
    watch = Stopwatch()
    if recipe == AUTO:
        recipe, _ = choose_recipe(checkpoints)
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    autoencoder = fit_autoencoder(checkpoints, recipe.autoencoder, images=images)
    first_stage = {"settings": asdict(recipe.autoencoder), "seconds": watch.seconds}
    return fit_pipeline(checkpoints, autoencoder, first_stage, recipe.denoiser, images=images)


def fit_pipeline(
    checkpoints: Checkpoints,
    autoencoder: ModelMixin,
    first_stage: dict[str, Any],
    settings: DenoiserSettings,
    run: RunSettings | None = None,
    images: LabeledData | None = None,
) -> PDiffPipeline:
    """Trains the denoiser on the zoo's latents and puts the pipeline together.

    The pipeline's target holds the zoo's average in the generated positions; if the zoo's networks have BatchNorm
    statistics of their own, and there are images, it has its own too. `first_stage` holds the settings and the seconds
    of the autoencoder, as its `training.json`, and the fingerprint of its zoo if known.

    Raises:
        ValueError: If the autoencoder was fitted to another zoo; and what `fit_denoiser` raises.
    """
    watch = Stopwatch()
    parameters, target, processor = checkpoints.zoo.parameters, checkpoints.target_model, checkpoints.processor
    zoo, made_for = fingerprint([parameters]) if run else None, autoencoder.config.parameter_dim
    if made_for != parameters.shape[1] or (zoo and first_stage.get("zoo", zoo) != zoo):
        raise ValueError(
            f"The autoencoder was fitted to another zoo, of {made_for} parameters a checkpoint; this one has "
            f"{len(parameters)} checkpoints of {parameters.shape[1]} parameters; fit an autoencoder to it first."
        )
    data = {"zoo": zoo, "autoencoder": fingerprint(autoencoder.state_dict().values())} if zoo else None
    wanted = ["train", "validation"] if settings.select_snapshot or settings.guide_at else ["train"]
    splits, symmetries = canonical_splits(checkpoints, wanted, autoencoder, images)
    latents = {name: encode_zoo(autoencoder, vectors) for name, vectors in splits.items()}  # (n, latent_dim)
    matching = None
    if settings.function_weight and images is not None:
        pairs = comparable_pairs(checkpoints.zoo)
        matching = FunctionMatching(autoencoder, target, processor, images, splits, pairs)
    if data is not None and matching is not None:
        data["images"] = matching.source["images"]
    fitted = fit_denoiser(
        latents["train"],
        settings,
        run,
        watch,
        data,
        autoencoder=autoencoder,
        validation=latents.get("validation"),
        matching=matching,
    )
    mean = parameters.mean(0)
    own = {} if images is None else OwnStatistics(target, processor, images)(mean[None])
    statistics = {name: values[0] for name, values in own.items()}
    average = build_network(target, processor, mean, share_trunk=False, statistics=statistics)
    pipe = PDiffPipeline(
        autoencoder=autoencoder,
        denoiser=fitted.denoiser,
        scheduler=fitted.scheduler,
        processor=processor,
        target_model=average,
        guide=fitted.guide,
        default_num_inference_steps=settings.num_inference_steps,
        default_autoguidance_scale=settings.autoguidance_scale if fitted.guide is not None else 0.0,
        image_processor_config=checkpoints.preprocessing or None,
    )
    notes = fitted.notes | ({"function_matching": matching.source} if matching else {})
    if fitted.guide is not None and symmetries is not None and images is not None and "validation" in splits:
        chosen, notes["autoguidance"] = choose_autoguidance(pipe, symmetries, splits, images, settings.seed)
        pipe.register_to_config(default_autoguidance_scale=chosen)
    second_stage = {"settings": asdict(settings), "seconds": watch.seconds}
    pipe.metrics = describe_fit(checkpoints, autoencoder=first_stage, denoiser=second_stage)
    pipe.metrics["generator"] |= notes
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
