"""Networks with what they predict and how they score, and what is known of the zoo and of other real networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.inputs import LabeledData
from ..targets.inference import network_predictions
from ..targets.processing_parameters import ParameterProcessor
from ..targets.task import Task, task_of


@dataclass(frozen=True)
class EvaluatedSet:
    """A set of networks and what they do on validation and test examples."""

    parameters: torch.Tensor  # (n, D)
    task: Task  # what the predictions are
    units: torch.Tensor  # (n,) int64, number of the independent unit of each network, which intervals resample
    predictions: dict[str, torch.Tensor]  # of each split (n, examples)
    wrong: dict[str, torch.Tensor]  # which of them are wrong, bool
    scores: dict[str, torch.Tensor]  # of each split (n,) float64

    def __len__(self) -> int:
        return len(self.parameters)

    def take(self, rows: torch.Tensor | slice) -> EvaluatedSet:
        """Returns the networks at `rows`, a slice or `(k,)` int64, each a unit of its own."""
        figures = ({split: t[rows] for split, t in f.items()} for f in (self.predictions, self.wrong, self.scores))
        parameters = self.parameters[rows]
        return EvaluatedSet(parameters, self.task, torch.arange(len(parameters)), *figures)

    def disagreement(self, other: EvaluatedSet, split: str) -> torch.Tensor:
        """Returns how much each two networks of the sets disagree, `(n, k)`."""
        return self.task.disagreement(self.predictions[split], other.predictions[split])

    def mean_disagreement(self, split: str) -> float | None:
        """Returns how much two networks of the set disagree on average, or None for a single network."""
        return self.task.mean_disagreement(self.predictions[split])


@dataclass(frozen=True)
class Zoo:
    """The zoo with what is known of its rows, and the held-out checkpoints."""

    networks: EvaluatedSet
    aligned: torch.Tensor  # (N, D), their parameters modulo the symmetries of the network
    run: torch.Tensor  # (N,) int64, number of each member's run
    step: torch.Tensor  # (N,) int64
    length: int | None  # correlation length of a single trajectory, in steps
    heldout: EvaluatedSet | None  # if there are any

    @property
    def real(self) -> EvaluatedSet:
        """Real networks that samples are compared with: two held-out checkpoints or more, else the zoo's members."""
        return self.heldout if self.heldout is not None and len(self.heldout) > 1 else self.networks


def evaluate_sets(
    groups: Mapping[str, Mapping[str, torch.Tensor]],
    model: PreTrainedModel,
    processor: ParameterProcessor,
    images: LabeledData,
    progress: bool = False,
) -> dict[str, dict[str, EvaluatedSet]]:
    """Evaluates groups of named sets of vectors `(n, D)` together, so that the trunk is computed once."""
    task = task_of(model.config)
    vectors = [named for group in groups.values() for named in group.values()]
    together = torch.cat(vectors)
    predictions, wrong, scores = {}, {}, {}
    for split, part in (("validation", images.validation), ("test", images.test)):
        inputs = images.inputs(part)
        predictions[split], _ = network_predictions(model, processor, together, inputs, part.labels, progress)
        wrong[split] = task.wrong(predictions[split], part.labels)
        scores[split] = task.score(predictions[split], part.labels)
    everything = EvaluatedSet(together, task, torch.arange(len(together)), predictions, wrong, scores)
    rows = (slice(stop - len(v), stop) for v, stop in zip(vectors, accumulate(map(len, vectors)), strict=True))
    return {group: {name: everything.take(next(rows)) for name in sets} for group, sets in groups.items()}


def place_in_time(
    runs: Sequence[Any] | None, steps: Sequence[int] | None, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns run number and step of each of `count` rows, `(count,)` int64; unknown, they are 0 and the row."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(runs or []))}
    run = torch.zeros(count, dtype=torch.long) if runs is None else torch.tensor([numbers[name] for name in runs])
    return run, torch.arange(count) if steps is None else torch.as_tensor(steps)
