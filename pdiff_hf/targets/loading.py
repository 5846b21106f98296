"""Saved networks read back: of which class, complete in themselves, and in no more memory than their files."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import PreTrainedModel

from ..hub.safety import BrokenFileError, UnsafeFileError, broken_files, own_files, read_json

READ_FILES = ("config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index*")
# Of a configuration's numbers these are counted up to when a network is built (layers, blocks, labels); all others
# are sizes, which cost nothing before memory is taken for them, or no sizes at all (token ids, frequencies).
COUNTS = re.compile(r"(num|n)_.*|.*(depths?|layers?|blocks?)")
LEAST_COUNT = 10_000  # allowed whatever the size of the weights
# Code, kernels, and what timm would load into a network that it builds.
ELSEWHERE = ("auto_map", "quantization_config", "use_pretrained_backbone", "checkpoint_path", "pretrained_cfg")
UNSAVED_NUMBERS = 10_000_000  # of the buffers that a network makes anew instead of saving them
MODULES_PER_TENSOR = 20  # activations, dropout, containers and adapters have no tensors of their own
LEAST_MODULES = 1_000  # allowed however few tensors there are

LOADING = threading.RLock()  # transformers replaces functions and the default dtype of the process while it loads


class UnknownTargetError(ValueError):
    """The class of a saved target network is not to be found."""


def load_network(
    folder: str | os.PathLike, network_class: Any = None, variant: str | None = None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Loads a transformers network from the safetensors files of its folder, all of it, in eval mode.

    Its class is by default the one that its `config.json` names, its dtype the one that was saved.

    Raises:
        BrokenFileError: If files are missing, damaged or do not fit one another.
        UnsafeFileError: If it is not complete in itself: code would be run, or something else read or fetched.
        UnknownTargetError: If there is no such class; hand such a network over as `target_model=…`.
    """
    folder, where = Path(folder), f"The network in {str(folder)!r}"
    names = [name for name in own_files(folder, READ_FILES) if "/" not in name]
    files = [folder / name for name in names if name.endswith(".safetensors")]
    config, *others = [read_json(folder / name) for name in dict.fromkeys(("config.json", *names)) if ".json" in name]
    with broken_files(where):
        shards = {shard for index in others for shard in index.get("weight_map", {}).values()}
        elsewhere = [key for part in _mappings(config) for key in part if _leads_elsewhere(part, key)]
    elsewhere += [str(shard) for shard in shards if shard not in names or not shard.endswith(".safetensors")]
    if elsewhere or "adapter_config.json" in names:
        raise UnsafeFileError(
            f"{where} is not complete in itself: {', '.join(elsewhere[:5]) or 'adapter_config.json'} would have code "
            "run or something else read or fetched. Only plain networks are read."
        )
    if network_class is None:
        listed = config.get("architectures")
        name = listed[0] if isinstance(listed, list) and listed else "network without a name"
        network_class = find_model_class(str(name), config.get("model_type"))

    class Checked(network_class):
        """Built on the meta device by transformers, which takes memory only afterward."""

        __module__ = network_class.__module__

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            require_memory(self)

    with broken_files(where), LOADING, bounded(config, files, where) as require_memory:
        model, loading = Checked.from_pretrained(
            folder, use_safetensors=True, variant=variant, dtype=dtype, output_loading_info=True
        )
    if loading["missing_keys"]:
        raise BrokenFileError(f"{where} lacks the weights {sorted(loading['missing_keys'])[:3]}.")
    model.__class__ = network_class
    return model.eval()


@contextmanager
def bounded(config: dict[str, Any], files: Sequence[Path], where: str) -> Iterator[Callable[[nn.Module], None]]:
    """Bounds what is built inside of it, on the meta device, by the safetensors files that are to fill it.

    Yields a function that raises `BrokenFileError` if a model has more numbers than the files have bytes.

    Raises:
        BrokenFileError: If there are no files, or the network is built of more parts than they have tensors.
    """
    if not files:
        raise BrokenFileError(f"{where} has no safetensors weights.")
    size, thread, count = sum(file.stat().st_size for file in files), threading.get_ident(), 0
    limit, tensors = max(LEAST_COUNT, size), 0
    for key, value in ((key, value) for part in _mappings(config) for key, value in part.items()):
        for number in value if isinstance(value, list) else [value]:
            if COUNTS.fullmatch(key) and isinstance(number, int | float) and number > limit:
                raise BrokenFileError(
                    f"{where}: its configuration has {key} = {number}, but its weights have at most {limit} bytes; "
                    "the file is damaged, or belongs to other weights."
                )
    for file in files:
        with safe_open(file, "pt") as opened:
            tensors += len(opened.keys())

    def count_modules(*_: Any) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > LEAST_MODULES + MODULES_PER_TENSOR * tensors:
            raise BrokenFileError(
                f"{where}: its configuration asks for more modules than the {tensors} tensors of its weights can "
                "belong to; the file is damaged, or belongs to other weights."
            )

    def require_memory(model: nn.Module) -> None:
        numbers = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
        if numbers > size + UNSAVED_NUMBERS:
            raise BrokenFileError(
                f"{where}: its configuration asks for {numbers} numbers, which its weights of {size} bytes cannot "
                "hold."
            )

    hook = register_module_module_registration_hook(count_modules)
    try:
        yield require_memory
    finally:
        hook.remove()


def _leads_elsewhere(part: dict[str, Any], key: str) -> bool:
    """Tells whether a value in a configuration has code run, or something outside of its folder read or fetched."""
    value = part[key]
    if key == "backbone":  # without a configuration of its own it is the name of a repository
        return bool(value) and part.get("model_type") != "timm_backbone" and not part.get("backbone_config")
    return (
        (key in ELSEWHERE and value not in (None, False))
        or ((key.endswith("attn_implementation") or key.endswith("experts_implementation")) and "/" in str(value))
        or (isinstance(value, str) and re.match(r"(hf[-_]hub|local-dir):", value) is not None)
    )


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Yields a configuration and those inside of it."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _mappings(inner)


def find_model_class(name: str, model_type: str | None) -> type[PreTrainedModel]:
    """Returns the class of that name and model type: transformers' own, or one that is defined in this process.

    Nothing is imported at a repository's word. Raises `UnknownTargetError` if there is none.
    """
    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    for model_class in reversed(list(subclasses(PreTrainedModel))):  # the latest definition wins, as in a notebook
        if model_class.__name__ == name and model_class.config_class.model_type == model_type:
            return model_class
    raise UnknownTargetError(
        f"The target is a {name} of the type {model_type!r}, which is neither in transformers "
        f"{transformers.__version__} nor defined in this process; import the module that defines it, or build the "
        "network and pass it as target_model=…"
    )


def subclasses(base: Any) -> Iterator[Any]:
    """Yields the classes that are derived from one, in the order of their definition."""
    for subclass in base.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


class AnyTransformersModel(type):
    """Makes `issubclass(…, AnyTargetModel)` true for every transformers model."""

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, PreTrainedModel)


class AnyTargetModel(PreTrainedModel, metaclass=AnyTransformersModel):
    """Stands in `model_index.json` for the class of a target that is in neither transformers nor this package.

    diffusers would write the module in which the user defined the class; the pipeline could then be loaded only where
    that module has been imported, and not at all from the Hub.
    """

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike, variant: str | None = None, dtype: torch.dtype | None = None, **_: Any
    ) -> PreTrainedModel:
        """Loads the target as its own class; see `load_network`."""
        return load_network(folder, variant=variant, dtype=dtype)
