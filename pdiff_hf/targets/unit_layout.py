"""The layout of a vector by units: which of its numbers belong to which hidden unit, or lead from one to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..data.inputs import Inputs, call_with, count_inputs, take_inputs
from .processing_parameters import ParameterProcessor
from .statistics import batch_statistics
from .symmetries import Symmetries
from .task import classification, logits_of, task_of

METRIC_EXAMPLES, METRIC_DRAWS, METRIC_NETWORKS = 64, 16, 200
LARGEST_METRIC = 4096  # numbers of a token beyond which its metric would take too much memory


@dataclass(frozen=True)
class UnitLayout:
    """How a vector `(D,)` is cut into tokens and edges; `order` lists its entries in the order of these parts.

    1. For each group of units that are permuted together: its units one after the other, of each what feeds it from
       inputs that are fixed (weights, biases, parameters of norms) and what reads it into outputs that are fixed.
    2. The rest, which belongs to no unit, as one unit more; absent if there is none.
    3. For each two groups that weights lead between: of each pair (target, source), row-major, these weights.
    """

    order: torch.Tensor  # (D,) int64
    groups: list[list[int]]  # [units, numbers of each]; the rest is the last one, with one unit
    edges: list[list[int]]  # [source group, target group, numbers of each pair of units]

    def arguments(self) -> dict[str, Any]:
        """Returns the layout as arguments of `UnitParameterAutoencoder.from_zoo`."""
        return {"order": self.order, "groups": self.groups, "edges": self.edges}

    def parts(self, parameters: torch.Tensor) -> list[torch.Tensor]:
        """Cuts vectors `(n, D)` into the tokens of each group, then the edges of each pair, `(n, count, numbers)`."""
        counts = [tuple(group) for group in self.groups]
        counts += [(self.groups[source][0] * self.groups[target][0], size) for source, target, size in self.edges]
        pieces = parameters[:, self.order].split([count * size for count, size in counts], dim=1)
        return [piece.unflatten(1, shape) for piece, shape in zip(pieces, counts, strict=True)]


def unit_layout(symmetries: Symmetries) -> UnitLayout:
    """Returns how the vectors of a network are cut by the units that were found."""
    processor, layers = symmetries.processor, symmetries.layers
    rows = {name: group for group, layer in enumerate(layers) for name in layer.incoming}
    columns = {name: group for group, layer in enumerate(layers) for name in layer.outgoing}
    # Of each group, indices (units, numbers); of a group whose weights are all edges, none.
    tokens = [[torch.empty(layer.count, 0, dtype=torch.long)] for layer in layers]
    between: dict[tuple[int, int], list[torch.Tensor]] = {}  # of each pair, indices (targets, sources, numbers)
    rest: list[torch.Tensor] = []
    for name, indices in processor.unflatten(torch.arange(processor.parameter_dim)).items():
        target, source = rows.get(name), columns.get(name)
        if target is not None and source is not None:
            split = indices.unflatten(1, (layers[source].count, -1)).unflatten(0, (layers[target].count, -1))
            pair = split.movedim(2, 1).flatten(2)  # (targets, sources, numbers)
            between.setdefault((target, source), []).append(pair)
        elif target is not None:
            tokens[target].append(indices.reshape(layers[target].count, -1))
        elif source is not None:
            tokens[source].append(indices.unflatten(1, (layers[source].count, -1)).movedim(1, 0).flatten(1))
        else:
            rest.append(indices.reshape(1, -1))
    parts = [torch.cat(token, dim=1) for token in (*tokens, rest) if token]
    pairs = {key: torch.cat(pair, dim=2) for key, pair in between.items()}
    return UnitLayout(
        order=torch.cat([part.flatten() for part in (*parts, *pairs.values())]),
        groups=[list(part.shape) for part in parts],
        edges=[[source, target, pair.shape[2]] for (target, source), pair in pairs.items()],
    )


def unit_metrics(
    model: torch.nn.Module, symmetries: Symmetries, parameters: torch.Tensor, inputs: Inputs
) -> list[torch.Tensor | None]:
    """Returns what changes of a unit's numbers do to the logits: of each part, a metric `(features, features)`.

    It is the mean of J^T J over networks, examples and the units of a group, where J are derivatives of the logits
    (centered over classes in classification): the Gauss-Newton matrix, of which each backward pass draws a sample by
    weighting all logits with random signs. Parts of more than `LARGEST_METRIC` numbers get None.

    Args:
        model: The target network in evaluation mode.
        symmetries: Its units.
        parameters: The zoo `(n, D)`, whose first `METRIC_NETWORKS` are used.
        inputs: Training examples; of each network other `METRIC_EXAMPLES` of them are used.
    """
    layout, processor, total = unit_layout(symmetries), symmetries.processor, count_inputs(inputs)
    sizes = [features for _, features in layout.groups] + [features for *_, features in layout.edges]
    sums = [torch.zeros(f, f, dtype=torch.float64) if f <= LARGEST_METRIC else None for f in sizes]
    generator = torch.Generator().manual_seed(0)
    networks = parameters[:METRIC_NETWORKS]
    for vector in networks:
        rows = torch.randperm(total, generator=generator)[:METRIC_EXAMPLES]
        logits, own = _logits_with_gradient(model, processor, vector, take_inputs(inputs, rows))
        for draw in range(METRIC_DRAWS):
            signs = torch.randint(2, logits.shape, generator=generator) * 2 - 1
            (gradient,) = torch.autograd.grad((logits * signs).sum(), own, retain_graph=draw + 1 < METRIC_DRAWS)
            for part, matrix in zip(layout.parts(gradient[None]), sums, strict=True):
                if matrix is not None:
                    rows_of_units = part[0].double()  # (count, features)
                    matrix += rows_of_units.T @ rows_of_units / (len(rows_of_units) * len(rows))
    return [None if matrix is None else matrix / (len(networks) * METRIC_DRAWS) for matrix in sums]


def _logits_with_gradient(
    model: torch.nn.Module, processor: ParameterProcessor, vector: torch.Tensor, inputs: Inputs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits `(examples, classes)`, centered over classes in classification, and the vector they depend on."""
    own = vector.detach().clone().requires_grad_()
    args, kwargs = call_with(inputs)
    with batch_statistics(model, processor.statistics):
        output = torch.func.functional_call(model, processor.unflatten(own), args, kwargs)
    logits = logits_of(model, output).float()
    if task_of(model.config) is classification:
        logits = logits - logits.mean(-1, keepdim=True)
    return logits, own
