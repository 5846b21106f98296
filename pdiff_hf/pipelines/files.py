"""The files of a pipeline repository: which ones are read, and whether they fit one another, before they are."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from transformers import PreTrainedModel

from ..hub.safety import (
    BrokenFileError,
    UnsafeFileError,
    build,
    check_sizes,
    check_weights,
    load_network,
    network_config,
    read_json,
    tensor_shapes,
)
from ..models.conv_autoencoder import ParameterAutoencoder
from ..models.conv_denoiser import ParameterDenoiser
from ..models.linear_autoencoder import LinearParameterAutoencoder
from ..models.mlp_denoiser import MLPParameterDenoiser
from ..targets.loading import AnyTargetModel, target_class
from ..targets.processing_parameters import ParameterProcessor

AUTOENCODERS = (ParameterAutoencoder, LinearParameterAutoencoder)
DENOISERS = (ParameterDenoiser, MLPParameterDenoiser)
COMPONENTS = ("autoencoder", "denoiser", "scheduler", "processor", "target_model")
ROOT_FILES = ("model_index.json", "preprocessor_config.json")
# What a pipeline's folder holds beside the pipeline, and keeps wherever it goes.
ATTACHMENTS = ("README.md", "metrics.json", "*.png", "LICENSE*")


def wanted_files(folder: Path, names: Iterable[str], variant: str | None, given: Collection[str]) -> list[str]:
    """Returns the files that loading a pipeline takes: nothing but the configurations and weights of its components.

    Args:
        folder: Where `model_index.json` is.
        names: All files of the repository.
        variant: Take weights of this variant where there are some.
        given: Components that the caller supplies.

    Raises:
        BrokenFileError, UnsafeFileError: If `model_index.json` is damaged, or a component has pickled weights only.
    """
    names = list(names)
    index = read_index(folder)
    wanted = [name for name in names if name in ROOT_FILES]
    for component in COMPONENTS:
        if component in given or component not in index:
            continue
        own = [name for name in names if name.startswith(f"{component}/") and name.count("/") == 1]
        weights = [name for name in own if name.endswith((".safetensors", ".safetensors.index.json"))]
        varied = [name for name in weights if variant is not None and f".{variant}" in name]
        plain = [name for name in weights if name.rpartition("/")[2].partition(".")[2] in _PLAIN_ENDINGS]
        if not weights and any(name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")) for name in own):
            raise UnsafeFileError(
                f"The component {component!r} has its weights only as a pickle ({own}), which is never read; ask its "
                "author for safetensors."
            )
        configs = [name for name in own if name.endswith(".json") and name not in weights]
        wanted += configs + (varied or plain)
    return wanted


_PLAIN_ENDINGS = ("safetensors", "safetensors.index.json")


def read_index(folder: Path) -> dict[str, Any]:
    """Reads `model_index.json`.

    Raises:
        BrokenFileError: If it is not that of a `PDiffPipeline`.
    """
    index = read_json(folder / "model_index.json")
    if not isinstance(index, dict) or index.get("_class_name") != "PDiffPipeline":
        found = index.get("_class_name") if isinstance(index, dict) else type(index).__name__
        raise BrokenFileError(f"{str(folder)!r} holds no PDiffPipeline: its model_index.json says {found!r}.")
    return index


def check_pipeline_folder(folder: Path, given: Collection[str] = (), variant: str | None = None) -> None:
    """Checks that the files of a pipeline are whole, safe and fit one another, without reading a weight.

    Each component is built on the meta device, where it takes no memory, and compared with the header of its file.

    Args:
        folder: The pipeline's folder.
        given: Components that the caller supplies; they are not checked.
        variant: The variant of the weights.

    Raises:
        BrokenFileError: If a file is missing or damaged, or does not fit another one.
        UnsafeFileError: If a class is none that this package reads.
    """
    index = read_index(folder)
    _check_settings(index, folder)
    built: dict[str, Any] = {}
    for name in COMPONENTS:
        if name in given:
            continue
        entry = index.get(name)
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
            raise BrokenFileError(f"model_index.json in {str(folder)!r} names no class for {name!r}, but {entry!r}.")
        cls = _component_class(name, *entry)
        where = f"{name} in {str(folder)!r}"
        if name in ("scheduler", "processor"):
            config = read_json(folder / name / f"{name}_config.json")
            check_sizes(config if name == "scheduler" else {}, {}, where)
            built[name] = build(cls, config, where)
            if name == "scheduler":
                build(cls, config, where, from_config=lambda: _take_two_steps(built["scheduler"]))
        else:
            built[name] = _check_model(cls, folder / name, wanted_weights(folder / name, variant), where)
    _check_together(built, folder)


def _check_settings(index: dict[str, Any], folder: Path) -> None:
    steps, images = index.get("default_num_inference_steps", 1), index.get("image_processor_config")
    check_sizes(steps, {}, f"model_index.json in {str(folder)!r}")
    if type(steps) is not int or steps < 1 or not (images is None or isinstance(images, dict)):
        raise BrokenFileError(
            f"model_index.json in {str(folder)!r} must name a number of steps and a mapping, but its "
            f"default_num_inference_steps is {steps!r:.50} and its image_processor_config {images!r:.50}."
        )


def wanted_weights(folder: Path, variant: str | None) -> list[Path]:
    """Returns the weight files of one component, of the variant if it has some."""
    files = sorted(folder.glob("*.safetensors"))
    varied = [file for file in files if variant is not None and f".{variant}" in file.name]
    return varied or [file for file in files if file.name.partition(".")[2] == "safetensors"]


def _component_class(name: str, library: str, class_name: str) -> type:
    allowed: dict[str, Sequence[type]] = {
        "autoencoder": AUTOENCODERS,
        "denoiser": DENOISERS,
        "processor": (ParameterProcessor,),
    }
    if name in allowed:
        classes = {cls.__name__: cls for cls in allowed[name]}
        if library == "pdiff_hf" and class_name in classes:
            return classes[class_name]
        expected = f"one of {list(classes)} of pdiff_hf"
    elif name == "scheduler":
        found = getattr(diffusers, class_name, None) if library == "diffusers" else None
        if isinstance(found, type) and issubclass(found, SchedulerMixin):
            return found
        expected = "a scheduler of diffusers"
    else:
        # Only what is imported already: a repository's name for a module must not import it.
        known = library in ("transformers", "pdiff_hf") or library in sys.modules
        found = getattr(importlib.import_module(library), class_name, None) if known else None
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
        expected = (
            "a network of transformers or pdiff_hf; import the module of your own one first, or pass target_model="
        )
    raise UnsafeFileError(f"model_index.json says that {name} is {library}.{class_name}, but it must be {expected}.")


def _take_two_steps(scheduler: Any) -> None:
    """Raises in any way there is if a sampler does not sample."""
    scheduler.set_timesteps(2)
    own = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": torch.Generator().manual_seed(0)} if own else {}
    sample = torch.ones(1, 1) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scheduler.scale_model_input(sample, t)
        sample = scheduler.step(torch.zeros(1, 1), t, sample, **extra).prev_sample
    if not sample.isfinite().all():
        raise ValueError("it samples what is not finite")


def _check_model(cls: Any, folder: Path, weights: list[Path], where: str) -> Any:
    network = issubclass(cls, PreTrainedModel) or cls is AnyTargetModel
    config = network_config(folder) if network else read_json(folder / "config.json")
    cls = target_class(config) if cls is AnyTargetModel else cls
    shapes = tensor_shapes(weights)
    if not shapes:
        raise BrokenFileError(f"{where} has no safetensors weights.")
    check_sizes(config, shapes, where)
    with torch.device("meta"):
        if network:
            model = build(cls, config, where, from_config=lambda: cls(cls.config_class.from_dict(config)))
        else:
            model = build(cls, config, where)
    missing = check_weights(model, shapes, where)
    if missing and network:
        load_network(folder, cls)  # names in a file may be older than the class; transformers knows those
    elif missing:
        raise BrokenFileError(f"{where} lacks the weights {missing[:3]}, which its configuration asks for.")
    return model


def _check_together(built: dict[str, Any], folder: Path) -> None:
    autoencoder, denoiser, processor = built.get("autoencoder"), built.get("denoiser"), built.get("processor")
    dims = [
        ("autoencoder", "denoiser", "latent_dim", autoencoder, denoiser),
        ("autoencoder", "processor", "parameter_dim", autoencoder, processor),
    ]
    for first, second, key, a, b in dims:
        if a is not None and b is not None:
            one, other = a.config[key], b.parameter_dim if key == "parameter_dim" else b.config[key]
            if one != other:
                raise BrokenFileError(
                    f"The {first} in {str(folder)!r} has a {key} of {one}, but the {second} one of {other}."
                )
    if processor is not None and "target_model" in built:
        processor.check_model(built["target_model"])
