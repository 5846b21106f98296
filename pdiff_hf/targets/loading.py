"""The class of a saved target network: one of transformers, or one defined in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel


class UnknownTargetError(ValueError):
    """The class of a saved target network is not to be found."""


def load_target_model(folder: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
    """Loads a saved target as the class that its `config.json` names: one of transformers, or one of the user's.

    A class of the user's is found if it has been defined in this process; nothing is imported at a repository's word.

    Args:
        folder: What `PreTrainedModel.save_pretrained` wrote.
        kwargs: Further arguments of `PreTrainedModel.from_pretrained`.

    Raises:
        UnknownTargetError: If there is no such class; hand such a network over as `target_model=…`.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return target_class(config).from_pretrained(folder, **kwargs)


def target_class(config: Any) -> type[PreTrainedModel]:
    """Returns the class of a saved target by the content of its `config.json`; see `load_target_model`.

    Raises:
        UnknownTargetError: If there is none.
    """
    values = config if isinstance(config, dict) else {}
    names = values.get("architectures")
    name = names[0] if isinstance(names, list) and names else "network without a name"
    return find_model_class(str(name), values.get("model_type"))


def find_model_class(name: str, model_type: str | None) -> type[PreTrainedModel]:
    """Returns the class of that name and model type: transformers' own, or one that is defined in this process.

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
