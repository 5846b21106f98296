"""Predictors of classes made of networks: single ones, prediction ensembles and last-layer Laplace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from ..data.images import ImageData
from ..data.inputs import Inputs
from ..targets.building import build_network
from ..targets.calibration import ensemble_prediction
from ..targets.inference import iter_logits
from ..targets.statistics import OwnStatistics
from ..zoo.checkpoints import Checkpoints, CheckpointSplit
from .evaluator import Evaluation, own_heldout
from .laplace import LastLayerLaplace, last_layer

ENSEMBLES = 5  # disjoint ensembles of each kind whose figures are averaged, if there are networks enough
MOST = 200  # networks of the large ensembles
MOST_COMPARED = 64  # held-out networks whose ensembles of growing size drawn ones are compared with

# The vectors `(k, D)` of each ensemble, by predictor.
Members = Mapping[str, list[torch.Tensor]]


@dataclass(frozen=True)
class Predictions:
    """What the ensembles of one predictor answer to the same images."""

    log_probabilities: torch.Tensor  # (ensembles, images, classes) float64, log of the mean over members
    mutual_information: torch.Tensor  # (ensembles, images) float64, nats

    @classmethod
    def of(cls, batches: Iterable[list[tuple[torch.Tensor, torch.Tensor]]]) -> Predictions:
        """Joins batches: for each a list of what `ensemble_prediction` returns of the ensembles."""
        columns = [[torch.stack(part) for part in zip(*batch, strict=True)] for batch in batches]
        return cls(*(torch.cat(parts, 1) for parts in zip(*columns, strict=True)))

    def scaled(self, temperatures: list[float]) -> torch.Tensor:
        """Returns the log probabilities, each ensemble's at its temperature."""
        divisor = torch.tensor(temperatures, dtype=torch.float64)[:, None, None]
        return (self.log_probabilities / divisor).log_softmax(-1)


class Predictors:
    """Ensembles of networks that are evaluated together, and networks with a last-layer Laplace approximation.

    Args:
        members: The ensembles by predictor; a network may be in several.
        laplace: Those of the predictor `laplace`, if there are any.
    """

    def __init__(
        self, members: Members, own_statistics: OwnStatistics, laplace: list[LastLayerLaplace] | None = None
    ) -> None:
        ensembles = [vectors for own in members.values() for vectors in own]
        self.vectors, places = torch.cat(ensembles).unique(dim=0, return_inverse=True)
        rows = iter(places.split([len(vectors) for vectors in ensembles]))
        self.rows = {name: [next(rows) for _ in own] for name, own in members.items()}
        self.own_statistics, self.laplace = own_statistics, laplace or []
        self.statistics = own_statistics(self.vectors)

    def __call__(self, inputs: Inputs) -> dict[str, Predictions]:
        """Returns what each predictor answers."""
        model, processor = self.own_statistics.model, self.own_statistics.processor
        batches: dict[str, list[list[tuple[torch.Tensor, torch.Tensor]]]] = {name: [] for name in self.rows}
        for batch in iter_logits(model, processor, self.vectors, inputs, statistics=self.statistics):
            logits = batch.float().cpu()  # (networks, batch, classes)
            for name, ensembles in self.rows.items():
                batches[name].append([ensemble_prediction(logits[rows]) for rows in ensembles])
        if self.laplace:
            drawn = zip(*(posterior.iter_logits(inputs) for posterior in self.laplace), strict=True)
            batches["laplace"] = [[ensemble_prediction(logits) for logits in batch] for batch in drawn]
        return {name: Predictions.of(own) for name, own in batches.items()}


def choose_networks(evaluation: Evaluation, checkpoints: Checkpoints, seed: int) -> dict[str, torch.Tensor]:
    """Returns networks `(n, D)` of each set in random order: of runs with several checkpoints, the last ones.

    The Gaussian is the one in the generator's codes. Held-out networks are left out if there are fewer than two.
    """
    networks, heldout = evaluation.networks, own_heldout(checkpoints)[0]
    generator = torch.Generator().manual_seed(seed)
    sets = {
        "average": networks["average"].parameters,
        "zoo": networks["zoo"].parameters[_independent(checkpoints.zoo, generator)],
        "gaussian_codes": evaluation.answer.networks["null"]["null"].parameters,
        "generated": networks["generated"].parameters,
    }
    if len(heldout) > 1:
        sets["heldout"] = networks["heldout"].parameters[_independent(heldout, generator)]
    return sets


def _independent(split: CheckpointSplit, generator: torch.Generator) -> torch.Tensor:
    """Returns the rows of the last checkpoint of each run, or all rows of a single run, shuffled."""
    last = {run: row for row, run in enumerate(split.run)}
    rows = torch.tensor(list(last.values()) if len(last) > 1 else range(len(split)))
    return rows[torch.randperm(len(rows), generator=generator)]


def choose_members(sets: Mapping[str, torch.Tensor], size: int) -> dict[str, list[torch.Tensor]]:
    """Returns the ensembles of each predictor, of `size` members where the number is not its own."""
    members = {"average": [sets["average"]]}
    for name, vectors in sets.items():
        if name != "average":
            members[name] = list(vectors[: min(ENSEMBLES, len(vectors) // size) * size].split(size))
    for name in ("zoo", "generated"):
        members[f"{name}_large"] = [sets[name][:MOST]]
    for name in ("heldout", "generated"):
        if name in sets:
            members[f"{name}_1"] = list(sets[name][:size].split(1))
    return members


def real_ensembles(heldout: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Returns all disjoint ensembles of 1, 2, 4, … of up to `MOST_COMPARED` held-out networks, by their size."""
    heldout = heldout[:MOST_COMPARED]
    sizes = [2**i for i in range(len(heldout).bit_length())]
    return {str(size): list(heldout[: len(heldout) // size * size].split(size)) for size in sizes}


def fit_laplace(
    networks: torch.Tensor, own_statistics: OwnStatistics, images: ImageData, seed: int
) -> list[LastLayerLaplace]:
    """Returns the approximation around each of the first `ENSEMBLES` networks `(n, D)`.

    None if the logits are not the output of a linear layer, or of one that is too large; see `last_layer`.
    """
    networks = networks[:ENSEMBLES]
    statistics, found = own_statistics(networks), []
    train, validation = (images.inputs(split) for split in (images.train, images.validation))
    for i, vector in enumerate(networks):
        own = {name: values[i] for name, values in statistics.items()}
        network = build_network(own_statistics.model, own_statistics.processor, vector, statistics=own)
        if last_layer(network, train) is None:
            return []
        found.append(LastLayerLaplace(network, train, validation, images.validation.labels, seed + i))
    return found
