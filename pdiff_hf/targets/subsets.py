"""Parameter subsets: presets and patterns for the generated tensors of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from .processing_parameters import LayoutError, ParameterProcessor


def subset_patterns(model: nn.Module, subset: str | Sequence[str]) -> list[str]:
    """Returns the `state_dict()` patterns of a subset: presets are expanded, patterns are returned unchanged.

    Presets depend only on the order of the model's modules, not on its architecture: `last_norms` is the last two
    normalization layers (the paper's main setting: 2,048 numbers for ResNet-18, 5,120 for ResNet-50, 768 for ViT-Tiny,
    3,072 for ConvNeXt-Tiny), `head` the last linear layer, `full` everything, and `adapter` the tensors of an
    `AdaptedModel` that PEFT trains.

    Raises:
        LayoutError: If the model lacks the layers of a preset.
    """
    patterns: list[str] = []
    for name in [subset] if isinstance(subset, str) else subset:
        if name == "full":
            patterns.append("*")
        elif name == "last_norms":
            patterns += [f"{m}.*" for m in _last_modules(model, _is_normalization, 2, "normalization layers")]
        elif name == "adapter":
            tensors: Any = getattr(model, "adapter_tensors", None)
            if tensors is None:
                raise LayoutError(
                    f"{type(model).__name__} has no adapter; pass the result of peft.get_peft_model to a "
                    "CheckpointRecorder, or AdaptedModel.wrap of it to make_processor."
                )
            patterns += tensors()
        elif name == "head":
            patterns += [f"{m}.*" for m in _last_modules(model, _is_linear, 1, "linear layer")]
        else:
            patterns.append(name)
    return patterns


def make_processor(model: nn.Module, subset: str | Sequence[str]) -> ParameterProcessor:
    """Builds the layout of a preset, see `subset_patterns`, or of fnmatch patterns on `state_dict()` names."""
    return ParameterProcessor.from_model(model, subset_patterns(model, subset))


def _is_normalization(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and any(True for _ in module.parameters(recurse=False))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _last_modules(model: nn.Module, wanted: Callable[[nn.Module], bool], count: int, what: str) -> list[str]:
    names = [name for name, module in model.named_modules() if wanted(module)]
    if len(names) < count:
        raise LayoutError(
            f"{type(model).__name__} has {len(names)} of the {count} {what} that this preset generates; "
            "select the tensors by patterns instead."
        )
    return names[-count:]
