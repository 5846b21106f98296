"""Saved networks read back: of which class, complete in themselves, and in no more memory than their files."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from ..hub.safety import BrokenFileError, UnsafeFileError, broken_files, read_json

# Of a configuration's numbers these are counted up to when a network is built (layers, blocks, labels); all others
# are sizes, which cost nothing before memory is taken for them, or no sizes at all (token ids, frequencies).
COUNTS = re.compile(r"(num|n)_.*|.*(depths?|layers?|blocks?)")
LEAST_COUNT = 10_000  # allowed whatever the size of the weights
UNSAVED_NUMBERS = 10_000_000  # of the buffers that a network makes anew instead of saving them

LOADING = threading.RLock()  # transformers replaces functions and the default dtype of the process while it loads


class UnknownTargetError(ValueError):
    """The class of a saved target network is not to be found."""


def load_network(
    folder: str | os.PathLike,
    network_class: Any = None,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """Loads a transformers network from the safetensors files of its folder, all of it, in eval mode.

    Args:
        folder: What `PreTrainedModel.save_pretrained` wrote.
        network_class: Its class; by default the one that its `config.json` names, see `find_model_class`.
        variant: Variant of the weights, such as `"ema"`.
        dtype: Precision; as saved by default.

    Raises:
        BrokenFileError: If files are missing, damaged or do not fit one another.
        UnsafeFileError: If it is not complete in itself: code would be run, or something else fetched.
        UnknownTargetError: If there is no such class; hand such a network over as `target_model=…`.
    """
    where, files = f"The network in {str(folder)!r}", sorted(Path(folder).glob("*.safetensors"))
    config = read_json(Path(folder) / "config.json")
    elsewhere = [key for part in _mappings(config) for key, value in part.items() if _leads_elsewhere(key, value)]
    if elsewhere or (Path(folder) / "adapter_config.json").exists():
        raise UnsafeFileError(
            f"{where} is not complete in itself: {', '.join(elsewhere) or 'adapter_config.json'} would have code run "
            "or something else fetched. Only plain networks are read."
        )
    require_counts(config, files, where)
    if network_class is None:
        names = config.get("architectures")
        name = names[0] if isinstance(names, list) and names else "network without a name"
        network_class = find_model_class(str(name), config.get("model_type"))

    class Checked(network_class):
        """Built on the meta device by transformers, which takes memory only afterward."""

        __module__ = network_class.__module__

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            require_memory(self, files, where)

    with broken_files(where), LOADING:
        model, loading = Checked.from_pretrained(
            folder, use_safetensors=True, variant=variant, dtype=dtype, output_loading_info=True
        )
    if loading["missing_keys"]:
        raise BrokenFileError(f"{where} lacks the weights {sorted(loading['missing_keys'])[:3]}.")
    model.__class__ = network_class
    return model.eval()


def require_counts(config: dict[str, Any], files: Sequence[Path], where: str) -> None:
    """Raises `BrokenFileError` if a network has no weights, or would be built of more parts than they have bytes."""
    if not files:
        raise BrokenFileError(f"{where} has no safetensors weights.")
    limit = max(LEAST_COUNT, sum(file.stat().st_size for file in files))
    for key, value in ((key, value) for part in _mappings(config) for key, value in part.items()):
        for count in value if isinstance(value, list) else [value]:
            if COUNTS.fullmatch(key) and isinstance(count, int | float) and count > limit:
                raise BrokenFileError(
                    f"{where}: its configuration has {key} = {count}, but its weights have at most {limit} bytes; the "
                    "file is damaged, or belongs to other weights."
                )


def require_memory(model: nn.Module, files: Sequence[Path], where: str) -> None:
    """Raises `BrokenFileError` if a model on the meta device has more numbers than its weights have bytes."""
    numbers = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    size = sum(file.stat().st_size for file in files)
    if numbers > size + UNSAVED_NUMBERS:
        raise BrokenFileError(
            f"{where}: its configuration asks for {numbers} numbers, which its weights of {size} bytes cannot hold."
        )


def _leads_elsewhere(key: str, value: Any) -> bool:
    kernel = key in ("attn_implementation", "_attn_implementation") and "/" in str(value)
    return kernel or (key in ("auto_map", "quantization_config") and value is not None)


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Yields a configuration and those inside of it."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _mappings(inner)


def find_model_class(name: str, model_type: str | None) -> type[PreTrainedModel]:
    """Returns the class of that name and model type: transformers' own, or one that is defined in this process.

    Nothing is imported at a repository's word.

    Raises:
        UnknownTargetError: If there is none.
    """
    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    for model_class in reversed(list(_subclasses(PreTrainedModel))):  # the latest definition wins, as in a notebook
        if model_class.__name__ == name and model_class.config_class.model_type == model_type:
            return model_class
    raise UnknownTargetError(
        f"The target is a {name} of the type {model_type!r}, which is neither in transformers "
        f"{transformers.__version__} nor defined in this process; import the module that defines it, or build the "
        "network and pass it as target_model=…"
    )


def _subclasses(model_class: type[PreTrainedModel]) -> Iterator[type[PreTrainedModel]]:
    for subclass in model_class.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


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
