"""Symmetries of a network: which changes of its parameters do not change its function, and distances modulo them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from ..data.inputs import Inputs, call_with
from .processing_parameters import ParameterProcessor
from .task import classification, logits_of, task_of

TOLERANCE = 1e-3  # relative change of the logits that still counts as none
BALANCING_ROUNDS = 20
ALIGNMENT_ROUNDS = 10


@dataclass(frozen=True)
class HiddenUnits:
    """The units of one hidden layer: rows that feed them, columns that read them."""

    incoming: tuple[str, ...]  # tensors whose first axis counts the units: weight and bias of the layer before
    outgoing: str  # the weight whose second axis counts them; each unit is read by `block` columns
    count: int  # number of units
    block: int  # columns per unit in `outgoing`: more than one where feature maps are flattened
    rescalable: bool = False  # whether a unit may be multiplied by a positive number and its readers divided by it


class Symmetries:
    """The permutations, rescalings and logit shifts under which a network's predictions stay the same.

    Found by trying: layers that follow each other in the order of the model's modules are candidates, and one counts
    if permuting (or rescaling) its units changes no logit on example images. Only units whose incoming and outgoing
    tensors are all generated are tried. No architecture is treated specially. Logits are shifted in classification
    alone: of a regression they are the predictions.

    It takes the target network in eval mode, its layout, one vector `(D,)` of a trained network and a few examples.
    """

    def __init__(
        self, model: PreTrainedModel, processor: ParameterProcessor, parameters: torch.Tensor, inputs: Inputs
    ) -> None:
        self.processor = processor
        self._logits = lambda vector: _logits(model, processor, vector, inputs)
        reference = self._logits(parameters)
        self.layers: list[HiddenUnits] = []
        for candidate in _candidates(model, processor):
            # A random permutation of the units must leave all logits as they are.
            generator = torch.Generator().manual_seed(0)
            order = torch.randperm(candidate.count, generator=generator)
            permuted = self._apply(parameters, candidate, order, torch.ones(candidate.count))
            if not _same(self._logits(permuted), reference):
                continue
            # So must random positive factors, if the units may be rescaled as well.
            scale = 0.5 + torch.rand(candidate.count, generator=generator)
            scaled = self._apply(parameters, candidate, torch.arange(candidate.count), scale)
            self.layers.append(replace(candidate, rescalable=_same(self._logits(scaled), reference)))
        self.shift = self._find_shift(model, parameters, reference)

    def transform(self, parameters: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Returns other parameters `(n, D)` of the same functions: random permutations, rescalings and shifts."""
        changed = []
        for vector in parameters:
            for layer in self.layers:
                order = torch.randperm(layer.count, generator=generator)
                scale = torch.ones(layer.count)
                if layer.rescalable:
                    scale = torch.exp(0.5 * torch.randn(layer.count, generator=generator))
                vector = self._apply(vector, layer, order, scale)
            changed.append(vector)
        return torch.stack(changed)

    def canonicalize(self, parameters: torch.Tensor) -> torch.Tensor:
        """Removes rescalings and shifts from `(n, D)`: what enters a unit and what leaves it get the same norm.

        A shift of all logits is removed by taking the mean over classes out of the last layer.
        """
        tensors = {name: tensor.clone() for name, tensor in self.processor.unflatten(parameters.double()).items()}
        # 1. Shift: the mean over classes is removed from the last layer.
        for name in self.shift:
            tensors[name] -= tensors[name].mean(1, keepdim=True)
        # 2. Scale: a layer's balance depends on that of its neighbors, so that several layers take several rounds.
        for _ in range(BALANCING_ROUNDS if len(self.layers) > 1 else 1):
            for layer in self.layers:
                if layer.rescalable:
                    into, out = self._features(tensors, layer)
                    into_norm, out_norm = into.norm(dim=2), out.norm(dim=2)  # (n, units)
                    alive = (into_norm > 0) & (out_norm > 0)
                    scale = torch.where(alive, (out_norm / into_norm.clamp(min=1e-12)).sqrt(), 1.0)
                    for incoming in layer.incoming:
                        tensors[incoming] *= _widen(scale, tensors[incoming])
                    columns = scale.repeat_interleave(layer.block, dim=1)[:, None]  # (n, 1, units * block)
                    tensors[layer.outgoing] /= _widen(columns, tensors[layer.outgoing])
        return self._join(tensors, len(parameters)).to(parameters.dtype)

    def align(self, parameters: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Permutes canonical vectors `(n, D)` toward one canonical reference `(D,)`; exact for one hidden layer.

        Deeper networks: coordinate descent over the layers, a Hungarian assignment each (Git Re-Basin,
        arXiv 2209.04836, section 3.2).
        """
        return torch.stack([self._align_one(vector, reference) for vector in parameters])

    def align_to_mean(
        self, canonical: torch.Tensor, rounds: int, restart: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Aligns canonical vectors `(n, D)` to their own mean, which starts as the first of them.

        In each round all vectors are aligned to the mean of the last round. `restart` aligns the vectors as given,
        instead of going on from the last round's permutations; this makes a difference for deeper networks only, where
        `align` finds a local optimum. Returns the vectors of the last round `(n, D)` and their mean `(D,)`.
        """
        aligned, mean = canonical, canonical[0]
        for _ in range(rounds):
            aligned = self.align(canonical if restart else aligned, mean)
            mean = aligned.mean(0)
        return aligned, mean

    def distances(
        self, parameters: torch.Tensor, others: torch.Tensor, nearest: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns distances modulo the symmetries, `(n, k)`, of canonical vectors `(n, D)` and `(k, D)`.

        With `nearest`, `(n, m)` int64, these columns alone are computed exactly; the others keep the plain distance,
        an upper bound.
        """
        plain = torch.cdist(parameters, others, compute_mode="donot_use_mm_for_euclid_dist")
        if not self.layers:
            return plain
        columns = torch.arange(len(others)).expand(len(parameters), -1) if nearest is None else nearest
        if len(self.layers) == 1:
            return self._one_layer_distances(parameters, others, columns, plain)
        for i, vector in enumerate(parameters):
            for j in columns[i].tolist():
                plain[i, j] = min(plain[i, j], (self._align_one(vector, others[j]) - others[j]).norm())
        return plain

    def _one_layer_distances(
        self, parameters: torch.Tensor, others: torch.Tensor, columns: torch.Tensor, plain: torch.Tensor
    ) -> torch.Tensor:
        layer = self.layers[0]
        # 1. What belongs to units is compared unit by unit, everything else as it stands.
        ours, theirs = self._units(parameters, layer), self._units(others, layer)  # (n, units, features)
        moving = set(layer.incoming) | {layer.outgoing}
        rest = [name for name in self.processor.names if name not in moving]
        fixed_ours, fixed_theirs = (
            torch.cat([self.processor.unflatten(x)[name].reshape(len(x), -1) for name in rest] or [x[:, :0]], dim=1)
            for x in (parameters, others)
        )
        fixed = torch.cdist(fixed_ours.double(), fixed_theirs.double()) ** 2
        # 2. Of each pair, the assignment of units with the least sum of squared distances (Hungarian algorithm).
        for i in range(len(parameters)):
            wanted = columns[i]
            cost = torch.cdist(ours[i].double().expand(len(wanted), -1, -1), theirs[wanted].double()) ** 2
            for j, matrix in zip(wanted.tolist(), cost.numpy(), strict=True):
                rows, assigned = linear_sum_assignment(matrix)
                plain[i, j] = (matrix[rows, assigned].sum() + fixed[i, j].item()) ** 0.5
        return plain

    def _align_one(self, vector: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        for _ in range(ALIGNMENT_ROUNDS if len(self.layers) > 1 else 1):
            before = vector
            for layer in self.layers:
                # The permutation that maximizes the inner product with the reference minimizes the distance to it.
                gain = self._units(reference[None], layer)[0].double() @ self._units(vector[None], layer)[0].double().T
                _, order = linear_sum_assignment(gain.numpy(), maximize=True)
                vector = self._apply(vector, layer, torch.from_numpy(order), torch.ones(layer.count))
            if torch.equal(before, vector):
                break
        return vector

    def _units(self, parameters: torch.Tensor, layer: HiddenUnits) -> torch.Tensor:
        """Returns everything that belongs to each unit, `(n, units, features)`."""
        return torch.cat(self._features(self.processor.unflatten(parameters), layer), dim=2)

    def _features(self, tensors: dict[str, torch.Tensor], layer: HiddenUnits) -> tuple[torch.Tensor, torch.Tensor]:
        incoming = [tensors[name] for name in layer.incoming]  # (n, units, ...)
        into = torch.cat([tensor.reshape(*tensor.shape[:2], -1) for tensor in incoming], dim=2)
        out = tensors[layer.outgoing].unflatten(2, (layer.count, layer.block))  # (n, readers, units, block, ...)
        return into, out.transpose(1, 2).flatten(2)

    def _apply(
        self, vector: torch.Tensor, layer: HiddenUnits, order: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        tensors = self.processor.unflatten(vector)
        for name in layer.incoming:
            tensors[name] = tensors[name][order] * _widen(scale, tensors[name])
        weight = tensors[layer.outgoing].unflatten(1, (layer.count, layer.block))  # (readers, units, block, ...)
        tensors[layer.outgoing] = (weight[:, order] / _widen(scale[None], weight)).flatten(1, 2)
        return self._join(tensors)

    def _join(self, tensors: dict[str, torch.Tensor], *leading: int) -> torch.Tensor:
        """Returns the vectors `(*leading, D)` of tensors `(*leading, *shape)`."""
        return torch.cat([tensors[name].reshape(*leading, -1) for name in self.processor.names], dim=-1)

    def _find_shift(self, model: PreTrainedModel, vector: torch.Tensor, reference: torch.Tensor) -> tuple[str, ...]:
        """Returns the names of the last layer's tensors, if adding the same to every class only shifts the logits."""
        if task_of(model.config) is not classification:
            return ()
        last = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        if not last or last[-1][1].out_features != reference.shape[1]:
            return ()
        names = tuple(n for n in (f"{last[-1][0]}.weight", f"{last[-1][0]}.bias") if n in self.processor.names)
        if not names:
            return ()
        tensors = self.processor.unflatten(vector)
        for name in names:
            tensors[name] = tensors[name] - tensors[name].mean(0, keepdim=True)
        shifted = self._logits(self._join(tensors))
        return names if _same(shifted.softmax(-1), reference.softmax(-1)) else ()


def _candidates(model: nn.Module, processor: ParameterProcessor) -> Iterator[HiddenUnits]:
    generated = dict(zip(processor.names, processor.shapes, strict=True))
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d
    layers = [n for n, m in model.named_modules() if isinstance(m, kinds) and f"{n}.weight" in generated]
    for before, after in itertools.pairwise(layers):
        incoming = tuple(name for name in (f"{before}.weight", f"{before}.bias") if name in generated)
        count, width = generated[incoming[0]][0], generated[f"{after}.weight"][1]
        complete = len(incoming) == len(dict(model.get_submodule(before).named_parameters(recurse=False)))
        if complete and width % count == 0:
            yield HiddenUnits(incoming, f"{after}.weight", count, width // count)


def _widen(factor: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Appends dimensions of length 1 until `factor` has as many as `tensor`."""
    return factor.view(factor.shape + (1,) * (tensor.ndim - factor.ndim))


@torch.no_grad()
def _logits(model: nn.Module, processor: ParameterProcessor, vector: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    output = functional_call(model, processor.unflatten(vector), *call_with(inputs))
    return logits_of(model, output).float()


def _same(logits: torch.Tensor, reference: torch.Tensor) -> bool:
    return bool((logits - reference).abs().max() <= TOLERANCE * reference.abs().max().clamp(min=1e-6))
