"""The audit of conditional generators: what networks do that are drawn for tasks which nobody trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from ..data.images import ImageData
from ..data.inputs import LabeledData, TensorData, TensorSplit, forward
from ..fitting.conditional_zoo import pool_images
from ..pipelines.pipeline_pdiff import PDiffPipeline
from ..targets.conditions import ConditionError, Conditions
from ..targets.inference import network_logits, network_predictions
from ..targets.statistics import OwnStatistics
from ..targets.symmetries import Symmetries
from ..targets.task import logits_of, task_of
from ..zoo.checkpoints import Checkpoints
from ..zoo.tasks import MeasuredTasks, Tasks, statistics_for_task
from .audit import PROBE_IMAGES, align_to_zoo
from .conditional_baselines import HYPERNETWORK_STEPS, ConditionalBaselines, pooled_score
from .conditional_verdict import ConditionalFigures, conditional_criteria, decide_conditional
from .evaluated import PROBES, evaluate_sets
from .intervals import Interval
from .measures import Criterion
from .reference import SPACES, Networks, Reference
from .sets import CONDITIONAL_SETS

SHUFFLED = 8  # networks drawn for each other condition, that are tried on a task
BASELINE_MODELS = 20  # networks of each baseline for a condition, unless it has a single one


@dataclass(frozen=True)
class ConditionalAudit:
    """The answer and its evidence."""

    verdict: str  # one of the keys of `conditional_verdict.MEANINGS`
    reason: str  # the figures that decided
    criteria: dict[str, Criterion]
    scores: dict[str, Interval]  # test score of each set, mean over held-out conditions
    figures: ConditionalFigures  # everything by condition
    names: list[str]  # of the held-out conditions, in words
    distances: list[float]  # from each to the nearest condition of the zoo
    chosen: dict[str, Any]  # settings of the baselines


class ConditionalAuditor:
    """A conditional zoo with held-out conditions and baselines, which any number of generators are audited against.

    Args:
        checkpoints: The zoo. Its train split is learned from, its validation split chooses settings of baselines, its
            test split has the held-out conditions, with two networks or more for each.
        images: Those that the zoo was collected on; test images are reported.
        tasks: What makes images and labels of a condition.
        parent: A network of all classes, whose probabilities are added up; for conditions that are bits of classes.
        num_baseline_models: Networks drawn from each baseline for a condition.
        seed: Random seed for the baselines.
        hypernetwork_steps: Steps of training the hypernetwork.

    Raises:
        CheckpointsError: If the zoo's conditions are damaged, or two splits share one.
        ConditionError: If the zoo has no conditions, no validation ones, or a held-out one has a single network.

    Attributes:
        conditions: The held-out conditions `(m, c)`, for which networks are asked for.
        heldout: The networks that were trained on each, m tensors `(k, D)`.
        baselines: The `ConditionalBaselines`.
    """

    @torch.no_grad()
    def __init__(
        self,
        checkpoints: Checkpoints,
        images: LabeledData,
        tasks: Tasks,
        *,
        parent: PreTrainedModel | None = None,
        num_baseline_models: int = BASELINE_MODELS,
        seed: int = 0,
        hypernetwork_steps: int = HYPERNETWORK_STEPS,
    ) -> None:
        self.meaning, heldout = require_conditional(checkpoints), checkpoints.splits["test"]
        self.model, self.processor, self.tasks = checkpoints.target_model, checkpoints.processor, tasks
        self.images, self.test = images, images.test
        self._inputs = cast(ImageData, images).inputs(cast(ImageData, images).test)
        # 1. Alignment: what differs by a symmetry of the network alone is the same network.
        probe = cast(ImageData, images).inputs(cast(ImageData, images).validation)[:PROBE_IMAGES]
        symmetries = Symmetries(self.model, self.processor, checkpoints.zoo.parameters[0], probe)
        _, self.align = align_to_zoo(symmetries, checkpoints.zoo.parameters)
        # 2. Baselines and held-out networks, evaluated on their own tasks.
        self.baselines = baselines = ConditionalBaselines(
            checkpoints, images, tasks, self.align, seed, hypernetwork_steps
        )
        conditions = torch.tensor(heldout.condition)
        self.conditions = conditions.unique(dim=0)
        members = [(conditions == condition).all(1) for condition in self.conditions]
        self.heldout = [heldout.parameters[rows] for rows in members]
        self.distances = self.meaning.distances(self.conditions, baselines.zoo.condition).tolist()
        self._scores: dict[str, list[float]] = {}
        self._disagreement, generator = [], torch.Generator().manual_seed(seed)
        for row, condition in enumerate(self.conditions):
            sets = {"heldout": self.heldout[row], **baselines(condition, num_baseline_models, generator)}
            found = self._evaluate(row, sets)
            for name, (scores, _) in found.items():
                self._scores.setdefault(name, []).append(scores.mean().item())
            self._disagreement.append(found["heldout"][1])
        self._add_constant_answers(parent)
        # 3. Distances to the zoo, with relabeled networks, modulo symmetries and in function.
        self._probes = _probes(images, tasks, self.conditions)
        zoo, count = baselines.relabeled.parameters, len(baselines.relabeled.parameters) // len(checkpoints.zoo)
        self._evaluate_sets = partial(
            evaluate_sets, own_statistics=OwnStatistics(self.model, self.processor, self._probes)
        )
        evaluated = self._evaluate_sets({"real": {"zoo": zoo, "heldout": torch.cat(self.heldout)}})["real"]
        runs = [heldout.run[i] for rows in members for i in rows.nonzero()[:, 0].tolist()]
        known = (checkpoints.zoo.run * count, checkpoints.zoo.step * count, runs, None)
        self.reference = Reference(evaluated["zoo"], evaluated["heldout"], symmetries, zoo, self.align, *known)

    @torch.no_grad()
    def audit(self, samples: Sequence[torch.Tensor] | torch.Tensor) -> ConditionalAudit:
        """Audits a generator.

        Args:
            samples: Unselected networks for each of `conditions`, `(m, n, D)`.

        Raises:
            ValueError: If they are not for as many conditions.
            LayoutError, NonFiniteParametersError: If vectors do not fit the layout or are not finite.
        """
        if len(samples) != len(self.conditions):
            raise ValueError(
                f"Networks for {len(samples)} conditions were given, but {len(self.conditions)} are held out; draw "
                "some for each of `conditions`, in that order."
            )
        drawn = torch.stack(list(samples))  # (m, n, D)
        self.processor.check(drawn.flatten(0, 1))
        # 1. On the task that they were drawn for, and some of them on the others.
        own, shuffled, disagreement = [], [], []
        for row in range(len(drawn)):
            others = torch.cat([drawn[:row, :SHUFFLED], drawn[row + 1 :, :SHUFFLED]]).flatten(0, 1)
            found = self._evaluate(row, {"generated": drawn[row], "shuffled": others})
            own.append(found["generated"][0])
            disagreement.append(found["generated"][1])
            shuffled.append(found["shuffled"][0].mean().item())
        own_scores = torch.stack(own)  # (m, n)
        scores = {"generated": own_scores.mean(1).tolist(), "shuffled": shuffled, **self._scores}
        # 2. How far they are from the zoo, and among themselves.
        flat = drawn.flatten(0, 1)
        evaluated = self._evaluate_sets({"": {"": flat}})[""][""]
        networks = Networks(evaluated, self.align(flat))
        figures = ConditionalFigures(
            scores={name: torch.tensor(scores[name]).double() for name in CONDITIONAL_SETS if name in scores},
            drawn=own_scores,
            disagreement=torch.tensor(disagreement).double(),
            real_disagreement=torch.tensor(self._disagreement).double(),
            variance=_variances(networks.aligned.split(drawn.shape[1])),
            real_variance=_variances([self.align(vectors) for vectors in self.heldout]),
            ratios={space: self.reference.ratios(networks, space).view(drawn.shape[:2]) for space in SPACES},
            real_r={
                space: cast(torch.Tensor, self.reference.heldout_ratios(space)).median().item() for space in SPACES
            },
            requested=self.conditions.double(),
            measured=self._behavior(list(drawn)),
            real_measured=self._behavior(self.heldout),
        )
        # 3. What follows.
        criteria = conditional_criteria(figures)
        means = {name: figures.over_conditions(found) for name, found in figures.scores.items()}
        names = [self.meaning.describe(condition) for condition in self.conditions]
        answer = decide_conditional(criteria)
        return ConditionalAudit(*answer, criteria, means, figures, names, self.distances, self.baselines.chosen)

    def draw(self, pipe: PDiffPipeline, count: int, seed: int, **how: Any) -> torch.Tensor:
        """Returns networks of a pipeline for each of `conditions`, `(m, count, D)`; `how` goes to its call."""
        asked: dict[str, Any] = {"condition": self.conditions.repeat_interleave(count, 0), "output_type": "pt", **how}
        drawn = pipe(len(asked["condition"]), generator=torch.Generator().manual_seed(seed), **asked)[0]
        return drawn.cpu().view(len(self.conditions), count, -1)

    def _evaluate(self, row: int, sets: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, float]]:
        """Returns test scores `(k,)` of each set on the task of a held-out condition, and its mean disagreement."""
        task = task_of(self.model.config)
        together, known = torch.cat(list(sets.values())), (self.model, self.processor)
        inputs, labels = self.tasks.examples(self._inputs, self.test.labels, self.conditions[row])
        statistics = statistics_for_task(*known, together, self.images, self.tasks, self.conditions[row])
        predicted, _ = network_predictions(*known, together, inputs, labels, statistics=statistics)
        parts = predicted.split([len(vectors) for vectors in sets.values()])
        return {
            name: (task.score(part, labels), task.mean_disagreement(part) or 0.0)
            for name, part in zip(sets, parts, strict=True)
        }

    def _add_constant_answers(self, parent: PreTrainedModel | None) -> None:
        """Adds the scores of networks that are not of the zoo's kind: the most frequent class, and a parent."""
        for condition in self.conditions:
            inputs, labels = self.tasks.examples(self._inputs, self.test.labels, condition)
            if not labels.is_floating_point():
                self._scores.setdefault("majority", []).append(labels.bincount().max().item() / len(labels))
            if parent is not None:
                logits = logits_of(parent, forward(parent, inputs))
                self._scores.setdefault("parent", []).append(pooled_score(logits, condition, labels))

    def _behavior(self, networks: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Returns what the networks of each condition do on average, as a condition `(m, c)`, if that is defined."""
        if not isinstance(self.tasks, MeasuredTasks):
            return None
        task, vectors = task_of(self.model.config), torch.cat(list(networks))
        statistics = OwnStatistics(self.model, self.processor, self.images)(vectors)

        def predict(inputs: torch.Tensor) -> torch.Tensor:
            return task.predict(network_logits(self.model, self.processor, vectors, inputs, statistics=statistics))

        measured = self.tasks.behavior(predict, self._inputs, self.test.labels)
        return torch.stack([part.mean(0) for part in measured.split([len(one) for one in networks])])


def audit_conditional(
    samples: PDiffPipeline | Sequence[torch.Tensor] | torch.Tensor,
    checkpoints: Checkpoints,
    images: LabeledData,
    tasks: Tasks,
    *,
    num_models: int = BASELINE_MODELS,
    **known: Any,
) -> ConditionalAudit:
    """Audits a conditional generator on the held-out conditions of its zoo.

    Takes the arguments of `ConditionalAuditor`, which serves several generators, and `num_models`, how many networks a
    pipeline draws for each condition.
    """
    auditor = ConditionalAuditor(checkpoints, images, tasks, **known)
    if isinstance(samples, PDiffPipeline):
        samples = auditor.draw(samples, num_models, known.get("seed", 0))
    return auditor.audit(samples)


def require_conditional(checkpoints: Checkpoints) -> Conditions:
    """Returns what conditions mean; `ConditionError` if there are none, or a held-out one has a single network."""
    if checkpoints.conditions is None:
        raise ConditionError("The zoo has no conditions; `audit` is for generators without.")
    heldout = checkpoints.splits.get("test")
    conditions = torch.tensor(heldout.condition if heldout is not None and len(heldout) else [])
    if not len(conditions) or int(conditions.unique(dim=0, return_counts=True)[1].min()) < 2:
        raise ConditionError(
            "Conditional generators are compared with networks trained for held-out conditions, two or more for each, "
            f"but the test split has {len(conditions)} in all; collect some with --num_test_tasks, --runs_per_task."
        )
    return checkpoints.conditions


def _probes(images: LabeledData, tasks: Tasks, conditions: torch.Tensor) -> TensorData:
    """Returns up to `PROBES` validation images of the held-out tasks, on which functions are compared."""
    validation = replace(cast(ImageData, images), train=cast(ImageData, images).validation)
    pooled = pool_images(validation, tasks, conditions)
    inputs = cast(torch.Tensor, pooled.inputs(pooled.train))
    rows = torch.linspace(0, len(inputs) - 1, min(len(inputs), PROBES)).long()
    part = TensorSplit(inputs[rows], torch.zeros(len(rows), dtype=torch.long))
    return TensorData(part, part, part, images.label_names)


def _variances(networks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the trace of the covariance of each set of vectors `(n, D)`, 0 of a single one, `(m,)` float64."""
    return torch.stack([x.double().var(0, correction=min(1, len(x) - 1)).sum() for x in networks])
