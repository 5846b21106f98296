"""Symmetries of a network: which changes of its parameters do not change its function, and distances modulo them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from transformers import PreTrainedModel

from ..data.inputs import Inputs
from .processing_parameters import ParameterProcessor
from .task import classification, task_of
from .unit_search import UnitSearch, same
from .units import HiddenUnits, Rescaling, permute_units, scale_units, unit_features

BALANCING_ROUNDS = 100  # at most
BALANCED = 1e-7  # distance of all factors from 1 that ends them
ALIGNMENT_ROUNDS = 10
ALIGNED = 2**22  # numbers of vectors that are aligned at once


class Symmetries:
    """The permutations, rescalings and logit shifts under which a network's predictions stay the same.

    Found by trying, see `UnitSearch`: a permutation of the units of one layer counts, with whatever must be permuted
    along (normalizations, layers that read them, layers that residual connections tie to it), if it changes no logit
    on example images; rescalings likewise. Only units whose incoming and outgoing tensors are all generated are
    tried. No architecture is treated specially. Logits are shifted in classification alone: of a regression they are
    the predictions.

    Args:
        model: The target network in evaluation mode.
        processor: Its layout.
        parameters: One vector `(D,)` of a trained network.
        inputs: A few examples. BatchNorms whose statistics are each network's own are tried with theirs; running
            statistics that all networks share bind the units of a layer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ParameterProcessor,
        parameters: torch.Tensor,
        inputs: Inputs,
    ) -> None:
        self.processor = processor
        search = UnitSearch(model, processor, parameters, inputs)
        self.layers: list[HiddenUnits] = list(search.units())
        self.shift = self._find_shift(model, parameters, search)

    def transform(self, parameters: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Returns other parameters `(n, D)` of the same functions: random permutations, rescalings and shifts."""
        changed = []
        for vector in parameters:
            tensors = self.processor.unflatten(vector[None])
            for layer in self.layers:
                self._permute(tensors, layer, torch.randperm(layer.count, generator=generator))
                for rescaling in layer.rescalings:
                    count = 1 if rescaling.together else layer.count
                    factor = torch.exp(0.5 * torch.randn(count, generator=generator))
                    self._rescale(tensors, rescaling, factor[None])
            changed.append(self._join(tensors))
        return torch.cat(changed)

    def canonicalize(self, parameters: torch.Tensor) -> torch.Tensor:
        """Removes rescalings and shifts from `(n, D)`: what enters a unit and what leaves it get the same norm.

        Weights before a normalization, which may have any scale, get a root mean square of 1. A shift of all logits is
        removed by taking the mean over classes out of the last layer.
        """
        tensors = {name: tensor.clone() for name, tensor in self.processor.unflatten(parameters.double()).items()}
        # 1. Shift: the mean over classes is removed from the last layer.
        for name in self.shift:
            tensors[name] -= tensors[name].mean(1, keepdim=True)
        # 2. Scale: a layer's balance depends on that of its neighbors, so that several layers take several rounds.
        rescalings = [(layer, rescaling) for layer in self.layers for rescaling in layer.rescalings]
        for _ in range(BALANCING_ROUNDS):
            furthest = 0.0
            for layer, rescaling in rescalings:
                factor = _balancing(tensors, layer, rescaling)
                self._rescale(tensors, rescaling, factor)
                furthest = max(furthest, (factor - 1).abs().max().item())
            if furthest <= BALANCED:
                break
        return self._join(tensors).to(parameters.dtype)

    def align(self, parameters: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Permutes canonical vectors `(n, D)` toward one canonical reference `(D,)`; exact for one hidden layer.

        Deeper networks: coordinate descent over the layers, a Hungarian assignment each (Git Re-Basin,
        arXiv 2209.04836, section 3.2).
        """
        parts = parameters.split(max(1, ALIGNED // len(reference)))
        return torch.cat([self._align_pairs(part, reference.expand(len(part), -1)) for part in parts])

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
        if len(self.layers) == 1 and not self.layers[0].reads_itself:
            return self._one_layer_distances(parameters, others, columns, plain)
        rows, size = torch.arange(len(parameters)).repeat_interleave(columns.shape[1]), parameters.shape[1]
        pairs = (flat.split(max(1, ALIGNED // size)) for flat in (rows, columns.flatten()))
        for i, j in zip(*pairs, strict=True):
            found = (self._align_pairs(parameters[i], others[j]) - others[j]).norm(dim=1)
            plain[i, j] = torch.minimum(plain[i, j], found.to(plain.dtype))
        return plain

    def _one_layer_distances(
        self, parameters: torch.Tensor, others: torch.Tensor, columns: torch.Tensor, plain: torch.Tensor
    ) -> torch.Tensor:
        layer = self.layers[0]
        # 1. What belongs to units is compared unit by unit, everything else as it stands.
        ours, theirs = self._units(parameters, layer), self._units(others, layer)  # (n, units, features)
        moving = {*layer.incoming, *layer.outgoing}
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

    def _align_pairs(self, vectors: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Permutes each of n vectors toward its own reference, both `(n, D)`."""
        one_round = len(self.layers) == 1 and not self.layers[0].reads_itself
        for _ in range(1 if one_round else ALIGNMENT_ROUNDS):
            before = vectors
            for layer in self.layers:
                # The permutation that maximizes the inner product with the reference minimizes the distance to it.
                gains = self._units(references, layer).double() @ self._units(vectors, layer).double().mT
                orders = np.stack([linear_sum_assignment(gain, maximize=True)[1] for gain in gains.numpy()])
                tensors = self.processor.unflatten(vectors)
                self._permute(tensors, layer, torch.from_numpy(orders))
                permuted = self._join(tensors)
                # A tensor that moves along both axes makes the problem quadratic: then it may not have come closer.
                if layer.reads_itself:
                    closer = (permuted - references).norm(dim=1) < (vectors - references).norm(dim=1)
                    permuted = torch.where(closer[:, None], permuted, vectors)
                vectors = permuted
            if torch.equal(before, vectors):
                break
        return vectors

    def _units(self, parameters: torch.Tensor, layer: HiddenUnits) -> torch.Tensor:
        """Returns everything that belongs to each unit, `(n, units, features)`."""
        tensors = self.processor.unflatten(parameters)
        return torch.cat(unit_features(tensors, layer.incoming, layer.outgoing, layer.count), dim=2)

    @staticmethod
    def _permute(tensors: dict[str, torch.Tensor], layer: HiddenUnits, order: torch.Tensor) -> None:
        """Replaces the tensors `(n, *shape)` that a layer's units belong to by permuted ones."""
        for axis, names in ((1, layer.incoming), (2, layer.outgoing)):
            tensors.update({name: permute_units(tensors[name], axis, order) for name in names})

    @staticmethod
    def _rescale(tensors: dict[str, torch.Tensor], rescaling: Rescaling, factor: torch.Tensor) -> None:
        """Replaces tensors `(n, *shape)` by those with units multiplied by factors `(n, units)`."""
        for axis, names, by in ((1, rescaling.incoming, factor), (2, rescaling.outgoing, 1 / factor)):
            tensors.update({name: scale_units(tensors[name], axis, by) for name in names})

    def _join(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the vectors `(n, D)` of tensors `(n, *shape)`."""
        return torch.cat([tensors[name].flatten(1) for name in self.processor.names], dim=1)

    def _find_shift(self, model: PreTrainedModel, vector: torch.Tensor, search: UnitSearch) -> tuple[str, ...]:
        """Returns the names of the last layer's tensors, if adding the same to every class only shifts the logits."""
        if task_of(model.config) is not classification:
            return ()
        last = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        if not last or last[-1][1].out_features != search.expected.shape[1]:
            return ()
        names = tuple(n for n in (f"{last[-1][0]}.weight", f"{last[-1][0]}.bias") if n in self.processor.names)
        if not names:
            return ()
        tensors = self.processor.unflatten(vector[None])
        for name in names:
            tensors[name] = tensors[name] - tensors[name].mean(1, keepdim=True)
        _, shifted = search.run(self._join(tensors)[0])
        return names if same(shifted.softmax(-1), search.expected.softmax(-1)) else ()


def _balancing(tensors: dict[str, torch.Tensor], layer: HiddenUnits, rescaling: Rescaling) -> torch.Tensor:
    """Returns factors `(n, units)` that bring tensors `(n, *shape)` closer to canonical form; 1 of a dead unit."""
    into, out = unit_features(tensors, rescaling.incoming, rescaling.outgoing, layer.count)
    if rescaling.together:
        into = into.flatten(1)[:, None]  # (n, 1, features of all units)
    size = into.norm(dim=2)  # (n, units)
    if rescaling.outgoing:
        ratio = out.norm(dim=2) / size.clamp(min=1e-12)
        # Where units read each other, each gets half of what would balance it if the others stayed as they are.
        ratio = ratio ** (0.25 if {*rescaling.incoming} & {*rescaling.outgoing} else 0.5)
    else:
        ratio = into.shape[2] ** 0.5 / size.clamp(min=1e-12)
    return torch.where((size > 0) & (ratio > 0), ratio, 1.0)
