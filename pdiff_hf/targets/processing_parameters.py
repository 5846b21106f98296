"""The layout of a parameter subset: how a state dict becomes one vector of D numbers, and back."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
import transformers
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import PushToHubMixin
from torch import nn


class LayoutError(ValueError):
    """Names, shapes, dtypes or lengths do not match the layout."""


class NonFiniteParametersError(ValueError):
    """A parameter vector contains NaN or infinity."""


class StatisticsError(ValueError):
    """The BatchNorm statistics of networks that have their own are missing, or cannot be estimated."""


class ParameterProcessor(ConfigMixin, PushToHubMixin):
    """The layout of a target network's parameter subset; as a pipeline component it is a single JSON file.

    A vector is float32 and concatenates the tensors in the order of the target's `state_dict()`, each flattened in
    row-major order; D is the sum of their sizes.

    Args:
        names: Names of the generated tensors, as in `state_dict()`.
        shapes: The shape of each.
        dtypes: The dtype of each in the target, for example `"float32"`.
        transformers_version: The version with which the names were resolved.
        statistics: Names of the BatchNorms whose running statistics are each network's own. They are no part of a
            vector: `estimate_statistics` finds them on training examples. All others are those of the trunk.

    Raises:
        LayoutError: If the first three lists differ in length, are empty, or a name occurs twice.
    """

    config_name = "processor_config.json"

    @register_to_config
    def __init__(
        self,
        names: Sequence[str],
        shapes: Sequence[Sequence[int]],
        dtypes: Sequence[str],
        transformers_version: str | None = None,
        statistics: Sequence[str] = (),
    ) -> None:
        if not names or not len(names) == len(shapes) == len(dtypes) or len(set(names)) != len(names):
            raise LayoutError(
                f"A layout needs at least one distinct name, with a shape and a dtype for each, but there are "
                f"{len(names)} names ({len(set(names))} distinct), {len(shapes)} shapes and {len(dtypes)} dtypes."
            )
        sizes = [size for shape in shapes for size in shape]
        if not all(isinstance(size, int) and 0 <= size < 2**40 for size in sizes) or max(map(len, shapes)) > 64:
            raise LayoutError(
                f"The shapes of a layout must be at most 64 non-negative integers, but are {list(shapes)[:4]!s:.200}."
            )
        if not all(isinstance(name, str) for name in statistics):
            raise LayoutError(f"The statistics of a layout must be names, but are {list(statistics)[:4]!s:.200}.")
        self.names, self.statistics = list(names), list(statistics)
        self.shapes = [tuple(shape) for shape in shapes]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.parameter_dim = sum(self.sizes)

    @classmethod
    def from_model(cls, model: nn.Module, patterns: str | Sequence[str]) -> ParameterProcessor:
        """Resolves fnmatch patterns on `model.state_dict()` names into a layout; for presets see `make_processor`.

        Only floating-point parameters can match: buffers, such as running statistics, are never part of a vector.

        Raises:
            LayoutError: If a pattern matches none, or there are no patterns.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                raise LayoutError(
                    f"The pattern {pattern!r} matches none of the {len(parameters)} parameters of "
                    f"{type(model).__name__}, whose names are {_some(parameters)}."
                )
        names = [n for n in model.state_dict() if n in parameters and any(fnmatchcase(n, p) for p in patterns)]
        if not names:
            raise LayoutError(f"No patterns were given for {type(model).__name__}; use '*' for every parameter.")
        return cls(
            names=names,
            shapes=[list(parameters[name].shape) for name in names],
            dtypes=[str(parameters[name].dtype).removeprefix("torch.") for name in names],
            transformers_version=transformers.__version__,
        )

    def flatten(self, state_dict: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the subset of a state dict as one vector `(D,)` float32, on the tensors' device.

        Raises:
            LayoutError: If a name is missing, or a shape or dtype differs from the layout.
            NonFiniteParametersError: If a value is NaN or infinite.
        """
        for name, shape, dtype in zip(self.names, self.shapes, self.config.dtypes, strict=True):
            if name not in state_dict:
                has = f"it has {_some(state_dict)}"
                raise LayoutError(f"The state dict lacks {name!r} of the layout; {has}. {self._versions()}")
            tensor, expected = state_dict[name], f"{shape} torch.{dtype}"
            found = f"{tuple(tensor.shape)} {tensor.dtype}"
            if found != expected:
                raise LayoutError(f"{name!r} is {found} in the state dict, but {expected} in the layout.")
        vector = torch.cat([state_dict[name].detach().reshape(-1).to(torch.float32) for name in self.names])
        self.check(vector)
        return vector

    def unflatten(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the tensors of one vector `(D,)`, or of many `(n, D)` with n in front of each shape, as views.

        Raises:
            LayoutError: If the last dimension is not D.
        """
        if vector.ndim == 0 or vector.shape[-1] != self.parameter_dim:
            raise LayoutError(
                f"A parameter vector of this layout has {self.parameter_dim} numbers, but the given one has shape "
                f"{tuple(vector.shape)}."
            )
        pieces = zip(self.names, self.shapes, vector.split(self.sizes, dim=-1), strict=True)
        return {name: piece.reshape((*vector.shape[:-1], *shape)) for name, shape, piece in pieces}

    def load_into(self, model: nn.Module, vector: torch.Tensor) -> None:
        """Copies one vector `(D,)` into the model's tensors, in place and in their dtype.

        Raises what `check` and `check_model` raise.
        """
        self.check(vector)
        if vector.ndim != 1:
            raise LayoutError(f"Expected one vector (D,), but the given one has shape {tuple(vector.shape)}.")
        self.check_model(model)
        with torch.no_grad():
            for name, tensor in self.unflatten(vector).items():
                model.get_parameter(name).copy_(tensor)

    def check_model(self, model: nn.Module) -> None:
        """Raises `LayoutError` if a tensor or BatchNorm of the layout is absent, or a tensor has another shape."""
        parameters = dict(model.named_parameters())
        for name, shape in zip(self.names, self.shapes, strict=True):
            there, expected = f"in this {type(model).__name__}", f"but {shape} in the layout."
            if name not in parameters:
                raise LayoutError(f"{name!r} is absent {there}, {expected} {self._versions()}")
            if parameters[name].shape != shape:
                raise LayoutError(f"{name!r} is {tuple(parameters[name].shape)} {there}, {expected}")
        buffers = dict(model.named_buffers())
        for name in self.statistics:
            if f"{name}.running_mean" not in buffers:
                raise LayoutError(
                    f"{name!r} is no BatchNorm with running statistics in this {type(model).__name__}, but in the "
                    f"layout. {self._versions()}"
                )

    @property
    def own_buffers(self) -> list[str]:
        """Names of all buffers of the BatchNorms whose statistics are each network's own."""
        kinds = ("running_mean", "running_var", "num_batches_tracked")
        return [f"{norm}.{kind}" for norm in self.statistics for kind in kinds]

    def check_statistics(self, statistics: Mapping[str, torch.Tensor] | None, count: int) -> None:
        """Checks what `estimate_statistics` returned for some networks.

        Raises:
            StatisticsError: If networks of this layout have statistics of their own, but these are missing, or are not
                those of `count` networks.
        """
        expected = {f"{name}.{kind}" for name in self.statistics for kind in ("running_mean", "running_var")}
        if expected and not statistics:
            raise StatisticsError(
                f"Each of these networks has its own running statistics in {len(self.statistics)} BatchNorms (such as "
                f"{self.statistics[0]!r}), which are no part of its vector, and does not work with those of another "
                "network: estimate them on training images first, with out.update_bn(images) for drawn networks, or "
                "pass statistics=estimate_statistics(model, processor, parameters, images)."
            )
        given = statistics or {}
        lengths = {len(tensor) for tensor in given.values()}
        if given.keys() != expected or lengths - {count}:
            raise StatisticsError(
                f"Statistics of {sorted(lengths)} networks for {sorted(given)} were given, but those of {count} "
                f"networks for {sorted(expected)} are needed; estimate them for these networks."
            )

    def _versions(self) -> str:
        stored, installed = self.config.transformers_version, transformers.__version__
        if stored == installed:
            return f"Names were resolved with the installed transformers {stored}, so this is a different network."
        return (
            f"Names were resolved with transformers {stored}, but {installed} is installed and may have renamed "
            f"them: install transformers=={stored}."
        )

    def check(self, parameters: torch.Tensor) -> None:
        """Checks vectors `(D,)` or `(n, D)`.

        Raises:
            LayoutError: If the last dimension is not D.
            NonFiniteParametersError: If a value is NaN or infinite.
        """
        tensors = self.unflatten(parameters)
        if not all_finite(parameters):
            name, bad = next((n, ~torch.isfinite(t)) for n, t in tensors.items() if not all_finite(t))
            count = f"{int(bad.sum())} of the {bad.numel()} values of {name!r}"
            raise NonFiniteParametersError(f"{count} are NaN or infinite; parameters must be finite.")

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: object) -> None:
        """Writes `processor_config.json` to a folder."""
        self.save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, subfolder: str | None = None, **kwargs: object
    ) -> ParameterProcessor:
        """Reads `processor_config.json` from a folder or a Hub repository."""
        return cls.from_config(cls.load_config(pretrained_model_name_or_path, subfolder=subfolder, **kwargs))


def all_finite(tensor: torch.Tensor) -> bool:
    """Returns whether no value is NaN or infinite; unlike `isfinite`, its largest and smallest take no memory."""
    return tensor.numel() == 0 or all(bound.isfinite() for bound in tensor.aminmax())


def _some(names: Mapping[str, object]) -> str:
    shown = [repr(name) for name in list(names)[:4]]
    return ", ".join(shown) + (", …" if len(names) > 4 else "")
