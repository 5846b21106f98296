"""How a pipeline's files are found, fetched and checked, and its components built from them, each once."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.utils import logging
from safetensors.torch import load_file
from transformers import PreTrainedModel

from .._registration import COMPONENTS as OWN_CLASSES
from .._registration import component_classes
from ..folders import finish_replacing
from ..hub.files import RepositoryFiles
from ..hub.safety import BrokenFileError, UnsafeFileError, broken_files, own_files, read_json
from ..targets.loading import LOADING, AnyTargetModel, bounded, load_network
from .checks import LARGEST_SETTING, check_scheduler, load_scheduler
from .guidance import KnownConditions, as_autoguidance_scale, as_guidance_scale

logger = logging.get_logger(__name__)

COMPONENTS = ("autoencoder", "denoiser", "scheduler", "processor", "target_model", "guide")
MODELS = ("autoencoder", "denoiser", "guide")  # of this package, with latents of one length
OPTIONAL = ("guide",)  # a pipeline may lack them, or name none
ROOT_FILES = ("model_index.json", "preprocessor_config.json", "metrics.json")
READ_FILES = (*ROOT_FILES, *(f"{role}/*" for role in COMPONENTS))
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FETCHING = ("revision", "token", "cache_dir", "local_files_only", "force_download")  # arguments of from_pretrained


@dataclass(frozen=True)
class Source:
    """Where a pipeline was loaded from: a folder, and the repository if it is a snapshot of one."""

    folder: Path
    repository: RepositoryFiles | None = None


def load_arguments(name: str, known: Collection[str], kwargs: dict[str, Any]) -> tuple[Source, dict[str, Any]]:
    """Returns where a pipeline is, and the arguments of its constructor, whose names are `known`.

    Takes the arguments of `PDiffPipeline.from_pretrained`.
    """
    if kwargs.pop("use_safetensors", True) is False:
        raise UnsafeFileError("use_safetensors=False asks for pickled weights, which are never read.")
    variant, dtype = kwargs.pop("variant", None), kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
    fetching = {key: kwargs.pop(key) for key in FETCHING if key in kwargs}
    given = {role: kwargs[role] for role in COMPONENTS if kwargs.get(role) is not None}
    if unknown := sorted(kwargs.keys() - set(known)):
        logger.warning(f"from_pretrained ignores {unknown}, which the pipeline does not take.")
    # The stored scheduler is read even if one is given, which must belong to the stored denoiser as it does.
    unread = [role for role in given if role != "scheduler" or "denoiser" in given]
    source = locate(name, fetching, variant, unread)
    stored = read_index(source.folder) | kwargs
    settings = {key: value for key, value in stored.items() if key in known and key not in COMPONENTS}
    loaded = load_components(source.folder, unread, variant, dtype)
    if "scheduler" in given and "scheduler" in loaded:
        check_scheduler(given["scheduler"], loaded["scheduler"])
    return source, loaded | given | settings


def locate(name: str, fetching: Mapping[str, Any], variant: str | None = None, given: Collection[str] = ()) -> Source:
    """Finds a pipeline's folder, or fetches nothing but the configurations and weights of its components.

    Raises:
        HubError, BrokenFileError, UnsafeFileError: If it cannot be fetched, or should not be; see `component_files`.
    """
    if Path(name).is_dir():
        finish_replacing(name)
        return Source(Path(name))
    repository = RepositoryFiles(name, **{key: value for key, value in fetching.items() if value is not None})
    folder = repository.download(ROOT_FILES[:1])
    names = repository.names(folder)
    wanted = [name for name in ROOT_FILES if name in names]
    wanted += [name for own in component_files(folder, names, variant, given).values() for name in own]
    return Source(replace(repository, revision=folder.name).download(wanted), repository)


def component_files(
    folder: Path, names: Iterable[str] | None = None, variant: str | None = None, given: Collection[str] = ()
) -> dict[str, list[str]]:
    """Returns the names, among those of all files, that each component but the given ones is built from.

    Raises:
        BrokenFileError, UnsafeFileError: If `model_index.json` is damaged, a component has pickled weights only, or a
            file in the folder should not be read, see `own_files`.
    """
    names = own_files(folder, READ_FILES) if names is None else list(names)
    index, wanted = read_index(folder), {}
    for role in (role for role in stored_components(index) if role not in given):
        own = [name for name in names if name.startswith(f"{role}/") and name.count("/") == 1]
        weights = [name for name in own if name.endswith((".safetensors", ".safetensors.index.json"))]
        varied = [name for name in weights if variant is not None and is_of_variant(name, variant)]
        plain = [name for name in weights if is_of_variant(name, None)]
        if not weights and any(name.endswith(PICKLES) for name in own):
            raise UnsafeFileError(
                f"The component {role!r} has its weights only as a pickle ({own}), which is never read; ask its "
                "author for safetensors."
            )
        wanted[role] = [name for name in own if name.endswith(".json") and name not in weights] + (varied or plain)
    return wanted


def is_of_variant(name: str, variant: str | None) -> bool:
    """Tells by the name of a safetensors file, or of the index of several, whether it is of a variant, or of none."""
    if variant:
        return f".{variant}" in name
    return name.partition(".")[2] in ("safetensors", "safetensors.index.json")


def stored_components(index: Mapping[str, Any]) -> list[str]:
    """Returns which components a `model_index.json` names, in the order in which they are built."""
    return [role for role in COMPONENTS if role not in OPTIONAL or index.get(role, [None])[0] is not None]


def read_index(folder: Path) -> dict[str, Any]:
    """Reads `model_index.json`.

    Raises:
        BrokenFileError: If it is not that of a `PDiffPipeline`, or a setting in it is damaged.
    """
    index, where = read_json(folder / "model_index.json"), f"model_index.json in {str(folder)!r}"
    if index.get("_class_name") != "PDiffPipeline":
        raise BrokenFileError(f"{str(folder)!r} holds no PDiffPipeline: {where} names {index.get('_class_name')!r}.")
    steps, images = index.get("default_num_inference_steps", 1), index.get("image_processor_config")
    if type(steps) is not int or not 1 <= steps <= LARGEST_SETTING or not isinstance(images, dict | None):
        raise BrokenFileError(
            f"{where} must name 1 to {LARGEST_SETTING} steps and a mapping, but its default_num_inference_steps is "
            f"{steps!r:.50} and its image_processor_config {images!r:.50}."
        )
    with broken_files(where):
        as_autoguidance_scale(index.get("default_autoguidance_scale", 0.0), index.get("guide", [None])[0])
        known = KnownConditions.from_dict(index["conditions"]) if index.get("conditions") is not None else None
        as_guidance_scale(index.get("default_guidance_scale", 1.0), known)
    return index


def load_components(
    folder: Path, given: Collection[str] = (), variant: str | None = None, dtype: Any = None
) -> dict[str, Any]:
    """Builds the components of a pipeline, each with a class that is allowed for it, and checks that they fit.

    No memory is taken beyond what the weights can fill, and no weight is left at random.

    Raises:
        BrokenFileError: If a file is missing or damaged, or does not fit another one.
        UnsafeFileError: If a class is none that this package reads, or weights are pickled.
    """
    index, files, loaded = read_index(folder), component_files(folder, None, variant, given), {}
    if variant is not None and not any(f".{variant}" in name for own in files.values() for name in own):
        raise BrokenFileError(f"{str(folder)!r} has no weights of the variant {variant!r}; leave variant out.")
    for role in (role for role in stored_components(index) if role not in given):
        cls, where = _allowed_class(role, index.get(role), folder), f"The {role} in {str(folder)!r}"
        precision = dtype.get(role, dtype.get("default")) if isinstance(dtype, dict) else dtype
        weights = [folder / name for name in files[role] if name.endswith(".safetensors")]
        if role in ("scheduler", "processor"):
            config = read_json(folder / role / f"{role}_config.json")
            with broken_files(where):
                loaded[role] = load_scheduler(cls, config) if role == "scheduler" else cls.from_config(config)
        elif cls is AnyTargetModel or issubclass(cls, PreTrainedModel):
            varied = variant if any(f".{variant}" in file.name for file in weights) else None
            loaded[role] = load_network(folder / role, None if cls is AnyTargetModel else cls, varied, precision)
        else:
            loaded[role] = _load_model(cls, read_json(folder / role / "config.json"), weights, where)
            if precision is not None:
                loaded[role].to(precision)
    _require_fit(loaded, folder, len((index.get("conditions") or {}).get("names", ())))
    return loaded


def _allowed_class(role: str, entry: Any, folder: Path) -> Any:
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
        raise BrokenFileError(f"model_index.json in {str(folder)!r} names no class for {role!r}, but {entry!r}.")
    library, name = entry
    if role in OWN_CLASSES:
        own = {cls.__name__: cls for cls in component_classes(role).values()}
        if library == "pdiff_hf" and name in own:
            return own[name]
        base, expected = None, f"one of {list(own)} of pdiff_hf"
    if role == "scheduler":
        base, expected = SchedulerMixin if library == "diffusers" else None, "a scheduler of diffusers"
    elif role == "target_model":
        base, expected = PreTrainedModel, f"{expected} or transformers, or of a module of yours that you import first"
    found = getattr(sys.modules.get(library), name, None)  # nothing is imported at a repository's word
    if base is not None and isinstance(found, type) and issubclass(found, base):
        return found
    raise UnsafeFileError(f"model_index.json says that {role} is {library}.{name}, but it must be {expected}.")


def _load_model(cls: Any, config: dict[str, Any], files: list[Path], where: str) -> ModelMixin:
    """Builds a model of this package on the meta device, and puts exactly the tensors of its files into it."""
    with broken_files(where), LOADING:
        with torch.device("meta"), bounded(config, files, where) as require_memory:
            model = cls.from_config(config)
            require_memory(model)
        dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
        model.load_state_dict({name: tensor.to(dtypes.get(name)) for name, tensor in weights.items()}, assign=True)
    return model.eval()


def _require_fit(loaded: Mapping[str, Any], folder: Path, condition_dim: int) -> None:
    """Raises `BrokenFileError` or `LayoutError` if components do not belong to one another, or to the conditions."""
    configs = {role: component.config for role, component in loaded.items() if role in MODELS}
    dims = {"latent_dim": {role: config["latent_dim"] for role, config in configs.items()}}
    dims["parameter_dim"] = {role: config["parameter_dim"] for role, config in configs.items() if role == MODELS[0]}
    taken = {role: config.get("condition_dim", 0) for role, config in configs.items() if role != MODELS[0]}
    dims["condition_dim"] = taken | {"conditions": condition_dim}
    if "processor" in loaded:
        dims["parameter_dim"]["processor"] = loaded["processor"].parameter_dim
    for key, values in dims.items():
        if len(set(values.values())) > 1:
            raise BrokenFileError(f"The components in {str(folder)!r} differ in {key}: {values}.")
    if "processor" in loaded and "target_model" in loaded:
        loaded["processor"].check_model(loaded["target_model"])
