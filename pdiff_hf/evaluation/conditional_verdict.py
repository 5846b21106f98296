"""What follows from the figures of a conditional generator: criteria, and one word; see `docs/conditional.md`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from .evidence import COPY, STRICT_COPY
from .intervals import Interval, bootstrap, weighted_mean, without_ends
from .measures import Criterion, Measure, criterion, within
from .sets import CONDITIONAL_SETS

FEWEST = 6  # held-out conditions from which on an interval over them is trusted
IGNORED = 0.1  # share of what can be gained by the condition: less is ignoring it
FOLLOWED = 0.5  # the same: more is following it
SLOPE = 0.8  # least share of the slope of networks that were trained for what is asked
COPIES = 0.1  # largest share of near-copies
MARGIN = 0.01  # of the score, by which baselines must be beaten
SPREAD = (0.5, 2.0)  # of F and R within a condition
BEATEN = ("nearest_relabeled", "nearest_mean", "ridge", "conditional_gaussian")  # baselines that must be
MEANINGS = {
    "ignores its condition": "they do hardly better on their task than networks drawn for other tasks do",
    "retrieval": "they are training networks, or do no better than those of the nearest training task",
    "regression": "those of one condition are nearly the same network",
    "controls": "they do better on unseen tasks than retrieval and regression, and differ as trained networks do",
    "inconclusive": "neither control nor one of the other words is shown",
}


@dataclass(frozen=True)
class ConditionalFigures:
    """What was measured for m held-out conditions; every tensor of shape `(m,)` is float64."""

    scores: Mapping[str, torch.Tensor]  # mean test score of each set of `CONDITIONAL_SETS`, (m,)
    drawn: torch.Tensor  # test score of each drawn network, (m, n)
    disagreement: torch.Tensor  # of predictions, of two drawn networks
    real_disagreement: torch.Tensor  # of two networks that were trained on the task
    variance: torch.Tensor  # of drawn networks, aligned to the zoo's mean: the trace of their covariance
    real_variance: torch.Tensor
    ratios: Mapping[str, torch.Tensor]  # r of drawn networks in weights and in function, (m, n)
    real_r: Mapping[str, float]  # median of networks that were trained on the tasks
    requested: torch.Tensor  # the conditions, (m, c)
    measured: torch.Tensor | None  # what drawn networks do, as conditions, (m, c); None where it is not defined
    real_measured: torch.Tensor | None

    def over_conditions(self, *values: torch.Tensor) -> Interval:
        """Returns the mean over conditions of `(m,)`, or of two the ratio of the means, with its interval."""

        def statistic(weights: torch.Tensor) -> torch.Tensor:
            means = [weighted_mean(value, weights) for value in values]
            return means[0] if len(means) == 1 else means[0] / means[1].clamp(min=1e-12)

        return self._interval(statistic)

    def slope(self, measured: torch.Tensor, real: torch.Tensor | None = None) -> Interval:
        """Returns the slope of measured behavior `(m, c)` over what was requested, or its ratio to a real slope."""

        def statistic(weights: torch.Tensor) -> torch.Tensor:
            found = _covariance(self.requested, measured, weights)
            return found / _covariance(self.requested, self.requested if real is None else real, weights)

        return self._interval(statistic)

    def copies(self, space: str, limit: float) -> torch.Tensor:
        """Returns the share of drawn networks of each condition that are nearer to the zoo than `limit`, `(m,)`."""
        return (self.ratios[space] < limit * min(1.0, self.real_r[space])).double().mean(1)

    def _interval(self, statistic: Callable[[torch.Tensor], torch.Tensor]) -> Interval:
        found = bootstrap(statistic, torch.arange(len(self.drawn)))
        if len(self.drawn) < FEWEST:
            return without_ends(found.value, f"too few held-out conditions: {len(self.drawn)}")
        return found


def conditional_criteria(figures: ConditionalFigures) -> dict[str, Criterion]:
    """Returns the criteria by name, in the order of the report."""
    scores, mean = figures.scores, figures.over_conditions
    # 1. Follows: networks do what is asked, not what is asked for others.
    possible = scores["heldout"] - scores["shuffled"]
    share = mean(scores["generated"] - scores["shuffled"], possible)
    follows = {"share": within("share of the gain by the condition", share, 1.0, FOLLOWED)}
    if figures.measured is not None and figures.real_measured is not None:
        slope, real = figures.slope(figures.measured, figures.real_measured), figures.slope(figures.real_measured)
        name = f"slope, over that of trained networks ({real})"
        follows["slope"] = within(name, slope, 1.0, SLOPE)
    # 2. Spreads: networks of one condition differ as those trained on it do.
    spread = {
        "F": mean(figures.disagreement, figures.real_disagreement),
        "R": _root(mean(figures.variance, figures.real_variance)),
    }
    spreads = {name: within(f"{name} within a condition", value, 1.0, *SPREAD) for name, value in spread.items()}
    # 3. New: no copies of training networks. Networks that are too alike may be averages, which lie near the zoo.
    limit = STRICT_COPY if any(measure.too_low for measure in spreads.values()) else COPY
    new = {
        space: within(f"near-copies in {name}", mean(figures.copies(space, limit)), 0.0, None, COPIES)
        for space, name in (("weights", "weights"), ("functions", "function"))
    }
    return {
        "follows": criterion("they do what their condition asks for", **follows),
        "new": criterion("they are no near-copies of training networks", **new),
        "spreads": criterion("within a condition they differ as trained networks do", **spreads),
        "beyond the baselines": criterion(
            "on unseen tasks they do better than retrieval and regression",
            **{name: _beats(figures, name) for name in BEATEN},
        ),
    }


def _beats(figures: ConditionalFigures, name: str) -> Measure:
    """Returns the gain over a baseline; not beating one that trained networks do not beat either is no failure."""
    scores = figures.scores
    room = figures.over_conditions(scores["heldout"] - scores[name])
    gain = figures.over_conditions(scores["generated"] - scores[name])
    measure = within(f"gain over {CONDITIONAL_SETS[name].label}", gain, room.value, MARGIN)
    if measure.status == "failed" and room.low < MARGIN:
        return replace(measure, status="undecided")
    return measure


def decide_conditional(criteria: Mapping[str, Criterion]) -> tuple[str, str]:
    """Returns the word, by the precedence of `docs/conditional.md`, and the figures that decided."""
    follows, new, spreads = criteria["follows"], criteria["new"], criteria["spreads"]
    ignored = [measure for measure in follows.measures.values() if measure.value.high < IGNORED]
    if ignored:
        return "ignores its condition", str(replace(follows, measures={m.name: m for m in ignored}))
    if new.status == "failed":
        return "retrieval", str(new)
    if any(measure.too_low for measure in spreads.measures.values()):
        return "regression", str(spreads)
    nearest = criteria["beyond the baselines"].measures["nearest_relabeled"]
    if nearest.status == "failed" and follows.measures["share"].value.low > IGNORED:
        return "retrieval", f"{nearest.name} {nearest.value}"
    if all(found.status == "passed" for found in criteria.values()):
        return "controls", "all criteria passed"
    missing = (found for found in criteria.values() if found.status != "passed")
    return "inconclusive", "; ".join(f"{found}: {found.status}" for found in missing)


def _root(found: Interval) -> Interval:
    value, low, high = (math.sqrt(x) if x >= 0 else x for x in (found.value, found.low, found.high))
    return replace(found, value=value, low=low, high=high)


def _covariance(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the sum over columns of the covariances of `(m, c)` with weights `(..., m)`, `(...)`."""
    share = weights / weights.sum(-1, keepdim=True)
    x, y = x.double(), y.double()
    return (share @ (x * y) - (share @ x) * (share @ y)).sum(-1)
