"""Parameter subsets: presets and patterns for the generated tensors of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .processing_parameters import LayoutError, ParameterProcessor


def make_processor(model: nn.Module, subset: str | Sequence[str]) -> ParameterProcessor:
    """Builds the layout of presets, or of fnmatch patterns on `state_dict()` names.

    Presets depend only on the order of the model's modules, not on its architecture: `last_norms` is the last two
    normalization layers (the paper's main setting: 2,048 numbers for ResNet-18, 5,120 for ResNet-50, 768 for ViT-Tiny,
    3,072 for ConvNeXt-Tiny), `head` the last linear layer, `full` everything, and `adapter` the tensors of an
    `AdaptedModel` that PEFT trains.

    Raises:
        LayoutError: If the model lacks the layers of a preset, or a pattern matches none of its parameters.
    """
    modules = list(model.named_modules())
    patterns: list[str] = []
    for name in [subset] if isinstance(subset, str) else subset:
        if name == "full":
            patterns.append("*")
        elif name == "last_norms":
            norms = [n for n, m in modules if "Norm" in type(m).__name__ and list(m.parameters(recurse=False))]
            patterns += _last(model, norms, 2, "normalization layers")
        elif name == "head":
            linear = [n for n, m in modules if isinstance(m, nn.Linear)]
            patterns += _last(model, linear, 1, "linear layer")
        elif name == "adapter":
            tensors: Any = getattr(model, "adapter_tensors", None)
            if tensors is None:
                raise LayoutError(
                    f"{type(model).__name__} has no adapter; pass the result of peft.get_peft_model to a "
                    "CheckpointRecorder, or AdaptedModel.wrap of it to make_processor."
                )
            patterns += tensors()
        else:
            patterns.append(name)
    return ParameterProcessor.from_model(model, patterns)


def _last(model: nn.Module, names: list[str], count: int, what: str) -> list[str]:
    if len(names) < count:
        raise LayoutError(
            f"{type(model).__name__} has {len(names)} of the {count} {what} that this preset generates; "
            "select the tensors by patterns instead."
        )
    return [f"{name}.*" for name in names[-count:]]
