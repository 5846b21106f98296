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
from ..pipelines.guidance import KnownConditions
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..settings import RunSettings
from ..targets.building import build_network
from ..targets.statistics import OwnStatistics
from ..targets.symmetries import Symmetries
from ..zoo.checkpoints import Checkpoints
from ..zoo.condition_splits import conditions_of_splits
from ..zoo.tasks import Tasks
from .autoencoder import encode_zoo, fit_autoencoder
from .conditional_zoo import PreparedZoo, prepare_zoo
from .denoiser import FittedDenoiser, fit_denoiser, require_conditions
from .function_matching import FunctionMatching, comparable_pairs
from .guidance import choose_autoguidance, choose_scales
from .settings import AUTO, DenoiserSettings, Recipe, load_recipe
from .units import canonical_splits, choose_recipe


def fit(
    checkpoints: Checkpoints,
    recipe: str | Recipe = "fast",
    images: LabeledData | None = None,
    tasks: Tasks | None = None,
) -> PDiffPipeline:
    """Fits a generator to a zoo.

    Args:
        checkpoints: The zoo, as `load_checkpoints` or `CheckpointRecorder.checkpoints` return it. Its train split is
            learned from; its validation split, if the recipe asks for it, chooses when to stop and how to guide.
        recipe: `fast`, `units`, `conditional`, `paper`, the path of a YAML file, a `Recipe`, or `auto`: `units` for
            whole networks of many runs, `conditional` if they are for several tasks, `fast` otherwise.
        images: What the networks were trained on, if the recipe matches functions: the train split is used for that,
            without its labels, and the validation split to choose the strength of guidance.
        tasks: What makes the images and labels of a conditional zoo's tasks, if the zoo does not name it.

    Raises:
        RecipeError: If the recipe is missing, or holds a key or value that no setting takes, or its denoiser takes no
            conditions, but the zoo has some.
        ValueError: If the zoo cannot be fitted.
        NonFiniteParametersError: If a training diverged.
    """
    watch = Stopwatch()
    if recipe == AUTO:
        recipe, _ = choose_recipe(checkpoints)
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if checkpoints.conditions is not None:
        require_conditions(recipe.denoiser)
    autoencoder = fit_autoencoder(checkpoints, recipe.autoencoder, images=images, tasks=tasks)
    first_stage = {"settings": asdict(recipe.autoencoder), "seconds": watch.seconds}
    return fit_pipeline(checkpoints, autoencoder, first_stage, recipe.denoiser, images=images, tasks=tasks)


def fit_pipeline(
    checkpoints: Checkpoints,
    autoencoder: ModelMixin,
    first_stage: dict[str, Any],
    settings: DenoiserSettings,
    run: RunSettings | None = None,
    images: LabeledData | None = None,
    tasks: Tasks | None = None,
) -> PDiffPipeline:
    """Trains the denoiser on the zoo's latents and puts the pipeline together.

    The pipeline's target holds the zoo's average in the generated positions; if the zoo's networks have BatchNorm
    statistics of their own, and there are images, it has its own too. `first_stage` holds the settings and the seconds
    of the autoencoder, as its `training.json`, and the fingerprint of its zoo if known.

    Raises:
        ValueError: If the autoencoder was fitted to another zoo; and what `fit_denoiser` raises.
    """
    # 1. The zoo must be that of the autoencoder; networks are taken as it takes them.
    watch = Stopwatch()
    parameters = checkpoints.zoo.parameters
    zoo, made_for = fingerprint([parameters]) if run else None, autoencoder.config.parameter_dim
    if made_for != parameters.shape[1] or (zoo and first_stage.get("zoo", zoo) != zoo):
        raise ValueError(
            f"The autoencoder was fitted to another zoo, of {made_for} parameters a checkpoint; this one has "
            f"{len(parameters)} checkpoints of {parameters.shape[1]} parameters; fit an autoencoder to it first."
        )
    data = {"zoo": zoo, "autoencoder": fingerprint(autoencoder.state_dict().values())} if zoo else None
    if checkpoints.conditions is not None:
        require_conditions(settings)
    prepared = prepare_zoo(checkpoints, images, tasks)
    is_choosing = settings.select_snapshot or settings.guide_at or prepared.tasks is not None
    wanted = ["train", "validation"] if is_choosing else ["train"]
    splits, symmetries = canonical_splits(prepared.checkpoints, wanted, autoencoder, prepared.images)
    # 2. Train on latents.
    latents = {name: encode_zoo(autoencoder, vectors) for name, vectors in splits.items()}  # (n, latent_dim)
    matching = None
    if settings.function_weight and prepared.images is not None:
        target, processor = checkpoints.target_model, checkpoints.processor
        pairs = comparable_pairs(prepared.checkpoints.zoo)
        matching = FunctionMatching(autoencoder, target, processor, prepared.images, splits, pairs)
    if data is not None:
        data |= {"images": matching.source["images"]} if matching else {}
        data |= {"conditions": prepared.conditions.fingerprint()} if prepared.conditions else {}
    fitted = fit_denoiser(
        latents["train"],
        settings,
        run,
        watch,
        data,
        autoencoder=autoencoder,
        validation=latents.get("validation"),
        matching=matching,
        conditions=prepared.conditions,
    )
    # 3. Put the pipeline together, and choose how it is guided.
    pipe = _assemble(checkpoints, autoencoder, fitted, settings, images)
    notes = fitted.notes | ({"function_matching": matching.source} if matching else {})
    if "validation" in splits:
        notes |= _choose_guidance(pipe, prepared, splits, symmetries, images, settings.seed)
    second_stage = {"settings": settings.used(checkpoints.conditions is not None), "seconds": watch.seconds}
    pipe.metrics = describe_fit(checkpoints, autoencoder=first_stage, denoiser=second_stage)
    pipe.metrics["generator"] |= notes
    return pipe


def _assemble(
    checkpoints: Checkpoints,
    autoencoder: ModelMixin,
    fitted: FittedDenoiser,
    settings: DenoiserSettings,
    images: LabeledData | None,
) -> PDiffPipeline:
    """Returns the pipeline of what was fitted, whose target holds the zoo's average."""
    target, processor, average = checkpoints.target_model, checkpoints.processor, checkpoints.zoo.parameters.mean(0)
    own = {} if images is None else OwnStatistics(target, processor, images)(average[None])
    statistics = {name: values[0] for name, values in own.items()}
    conditional: dict[str, Any] = {}
    if checkpoints.conditions is not None:
        trained = conditions_of_splits(checkpoints.splits, checkpoints.conditions)["train"].unique(dim=0)
        conditional["conditions"] = KnownConditions(checkpoints.conditions, trained).to_dict()
        conditional["default_guidance_scale"] = settings.guidance_scale
    return PDiffPipeline(
        autoencoder=autoencoder,
        denoiser=fitted.denoiser,
        scheduler=fitted.scheduler,
        processor=processor,
        target_model=build_network(target, processor, average, share_trunk=False, statistics=statistics),
        guide=fitted.guide,
        default_num_inference_steps=settings.num_inference_steps,
        default_autoguidance_scale=settings.autoguidance_scale if fitted.guide is not None else 0.0,
        image_processor_config=checkpoints.preprocessing or None,
        **conditional,
    )


def _choose_guidance(
    pipe: PDiffPipeline,
    prepared: PreparedZoo,
    splits: dict[str, torch.Tensor],
    symmetries: Symmetries | None,
    images: LabeledData | None,
    seed: int,
) -> dict[str, Any]:
    """Sets the scales of a pipeline by validation checkpoints and images, if there are any, and returns notes."""
    if images is None:
        return {}
    if prepared.conditions is None:
        if pipe.guide is None or symmetries is None:
            return {}
        chosen, tried = choose_autoguidance(pipe, symmetries, splits, images, seed)
        pipe.register_to_config(default_autoguidance_scale=chosen)
        return {"autoguidance": tried}
    if prepared.tasks is None:
        return {}
    asked = prepared.conditions.splits["validation"]
    scales, tried = choose_scales(pipe, symmetries, splits, images, seed, prepared.tasks, asked)
    pipe.register_to_config(**{f"default_{name}": scale for name, scale in scales.items()})
    return {"guidance": tried}


def describe_fit(checkpoints: Checkpoints, **stages: dict[str, Any]) -> dict[str, Any]:
    """Returns the beginning of a `metrics.json`: how the generator was made, on which zoo, at what cost.

    `stages` are the `settings` and `seconds` of `autoencoder` and `denoiser`, if known.
    """
    collected, imported = (checkpoints.collection.get(name, {}) for name in ("settings", "imported"))
    seconds = {f"{role}_seconds": stage["seconds"] for role, stage in stages.items()}
    return {
        "version": 1,
        "generator": {role: stage["settings"] for role, stage in stages.items()},
        "data": {
            "dataset_name": published_name(collected["dataset_name"]) if collected else None,
            "checkpoints": checkpoints.collection.get("repo_id"),
            "zoo_count": len(checkpoints.zoo),
            "collection": collected,
            **({"license": imported.get("license")} if imported else {}),
        },
        "costs": checkpoints.collection.get("costs", {}) | seconds,
        "environment": {"hardware": describe_hardware()}
        | {module.__name__: module.__version__ for module in (torch, diffusers, transformers)},
    }
