"""Units: which slices of which tensors belong to a hidden neuron or channel, and how they are moved."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rescaling:
    """Positive factors of units that change no logit: what feeds a unit is multiplied, what reads it divided."""

    incoming: tuple[str, ...]  # tensors whose first axis is multiplied
    outgoing: tuple[str, ...]  # tensors whose second axis is divided; none where a normalization removes the factor
    together: bool = False  # one factor for all units, because the normalization is over all of them


@dataclass(frozen=True)
class HiddenUnits:
    """The units of one hidden layer, or of several layers that residual connections tie: one permutation moves all.

    Where feature maps are flattened, several consecutive rows or columns of a tensor belong to each unit.
    """

    incoming: tuple[str, ...]  # tensors whose first axis counts the units: weights, biases, parameters of norms
    outgoing: tuple[str, ...]  # weights whose second axis counts them
    count: int  # number of units
    rescalings: tuple[Rescaling, ...] = ()

    @property
    def rescalable(self) -> bool:
        """Whether units may be rescaled in any way."""
        return bool(self.rescalings)

    @property
    def reads_itself(self) -> bool:
        """Whether a weight leads from these units to themselves, as where a residual connection ties layers."""
        return bool({*self.incoming} & {*self.outgoing})


def permute_units(tensor: torch.Tensor, axis: int, order: torch.Tensor) -> torch.Tensor:
    """Returns a tensor whose units along an axis, of one or several entries each, are in another order.

    The order is `(count,)`, or `(n, count)` with one for each of n rows.
    """
    parts = tensor.unflatten(axis, (order.shape[-1], -1))
    shape = [1] * parts.ndim
    shape[axis] = -1
    if order.ndim == 2:
        shape[0] = len(order)
    return parts.gather(axis, order.view(shape).expand_as(parts)).flatten(axis, axis + 1)


def scale_units(tensor: torch.Tensor, axis: int, factor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor whose units along an axis are multiplied by factors `(count,)`, or `(n, count)` of n rows."""
    wide = factor.repeat_interleave(tensor.shape[axis] // factor.shape[-1], dim=-1)
    shape = [1] * tensor.ndim
    shape[axis] = -1
    if factor.ndim == 2:
        shape[0] = len(factor)
    return tensor * wide.view(shape)


def unit_features(
    tensors: dict[str, torch.Tensor], incoming: tuple[str, ...], outgoing: tuple[str, ...], count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what feeds and what reads each unit, `(n, count, …)` both, of tensors `(n, *shape)`."""
    first = next(iter(tensors.values()))
    nothing = first.new_zeros(len(first), count, 0)
    into = [tensors[name].reshape(len(first), count, -1) for name in incoming]
    out = [tensors[name].unflatten(2, (count, -1)).transpose(1, 2).flatten(2) for name in outgoing]
    return torch.cat([nothing, *into], dim=2), torch.cat([nothing, *out], dim=2)
