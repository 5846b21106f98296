"""Loading saved target networks: classes of transformers, or classes defined in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel


class UnknownTargetError(ValueError):
    """The class of a saved target network was not found."""


def load_target_model(folder: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
    """Loads a saved target as the class named in its `config.json`: one of transformers, or one of the user's.

    A user's class is found if it has been defined in this process; nothing that a repository names is imported.

    Args:
        folder: Written by `PreTrainedModel.save_pretrained`.
        kwargs: Further arguments of `PreTrainedModel.from_pretrained`.

    Raises:
        UnknownTargetError: If there is no such class; then pass the network as `target_model=…`.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return target_class(config).from_pretrained(folder, **kwargs)


def target_class(config: Any) -> type[PreTrainedModel]:
    """Returns the class of a saved target, given the content of its `config.json`; see `load_target_model`.

    Raises:
        UnknownTargetError: If it was not found.
    """
    values = config if isinstance(config, dict) else {}
    names = values.get("architectures")
    name = names[0] if isinstance(names, list) and names else "network without a name"
    return find_model_class(str(name), values.get("model_type"))


def find_model_class(name: str, model_type: str | None) -> type[PreTrainedModel]:
    """Returns the class with this name and model type: one of transformers, or one defined in this process.

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
    def from_pretrained(cls, folder: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
        """Loads the target as its own class; see `load_target_model`."""
        return load_target_model(folder, **kwargs)
