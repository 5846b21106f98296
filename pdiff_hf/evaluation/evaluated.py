"""Networks with what they predict and how they score, and what is known of the zoo and of other real networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch

from ..targets.inference import iter_logits
from ..targets.statistics import OwnStatistics
from ..targets.task import Task, task_of

PROBES = 256  # validation examples whose answers functions are compared by


@dataclass(frozen=True)
class EvaluatedSet:
    """A set of networks and what they do on validation and test examples."""

    parameters: torch.Tensor  # (n, D)
    answers: (
        torch.Tensor
    )  # (n, k) float32, probabilities (or values) on up to `PROBES` validation examples, as a vector
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
        return EvaluatedSet(parameters, self.answers[rows], self.task, torch.arange(len(parameters)), *figures)

    def disagreement(self, other: EvaluatedSet, split: str) -> torch.Tensor:
        """Returns how much each two networks of the sets disagree, `(n, k)`."""
        return self.task.disagreement(self.predictions[split], other.predictions[split])

    def mean_disagreement(self, split: str) -> float | None:
        """Returns how much two networks of the set disagree on average, or None for a single network."""
        return self.task.mean_disagreement(self.predictions[split])


def evaluate_sets(
    groups: Mapping[str, Mapping[str, torch.Tensor]],
    own_statistics: OwnStatistics,
    progress: bool = False,
) -> dict[str, dict[str, EvaluatedSet]]:
    """Evaluates groups of named sets of vectors `(n, D)` together, so that the trunk is computed once.

    Networks that have BatchNorm statistics of their own are evaluated with these, whatever they come from. Model,
    layout and images are those of `own_statistics`.
    """
    model, processor, images = own_statistics.model, own_statistics.processor, own_statistics.images
    task = task_of(model.config)
    vectors = [named for group in groups.values() for named in group.values()]
    together = torch.cat(vectors)
    statistics = own_statistics(together, progress)
    predictions, wrong, scores = {}, {}, {}
    answers: list[torch.Tensor] = []
    for split, part in (("validation", images.validation), ("test", images.test)):
        found = []
        for logits in iter_logits(model, processor, together, images.inputs(part), progress, statistics):
            found.append(task.predict(logits.float()).cpu())
            seen = sum(batch.shape[1] for batch in answers)
            if split == "validation" and seen < PROBES:
                answers.append(task.answers(logits[:, : PROBES - seen].float()).cpu())
        predictions[split] = torch.cat(found, dim=1)
        wrong[split] = task.wrong(predictions[split], part.labels)
        scores[split] = task.score(predictions[split], part.labels)
    units = torch.arange(len(together))
    everything = EvaluatedSet(together, torch.cat(answers, 1).flatten(1), task, units, predictions, wrong, scores)
    rows = (slice(stop - len(v), stop) for v, stop in zip(vectors, accumulate(map(len, vectors)), strict=True))
    return {group: {name: everything.take(next(rows)) for name in sets} for group, sets in groups.items()}
