"""The criteria of the audit: what each claims, with its evidence and an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..targets.processing_parameters import ParameterProcessor
from ..targets.symmetries import Symmetries
from .distributions import energy_distance, energy_test, nearest_neighbor_accuracy
from .evaluated import EvaluatedSet, Zoo
from .intervals import Interval, bootstrap, weighted_mean, weighted_median, weighted_pair_mean, weighted_spread
from .metrics import dispersion, hull_residuals, max_similarity
from .novelty import copying_auc, leave_one_out, neighbors_in_time

SIGNIFICANCE = 0.005
WIDE = 2.58  # standard errors
SPLITS = ("validation", "test")
TAUS = (0.5, 1.0, 2.0)
FEW = 10  # members whose distance is computed exactly, and samples whose convex hull residual is


@dataclass(frozen=True)
class Performs:
    """Mean test score of samples and zoo, and the samples' share of what the zoo reaches above chance."""

    accuracy: float
    zoo_accuracy: float
    share_above_chance: Interval


@dataclass(frozen=True)
class Disperses:
    """R after alignment, of all parameters and of each tensor, and F on test examples."""

    R: Interval
    F: Interval
    R_per_tensor: dict[str, float]


@dataclass(frozen=True)
class Distances:
    """Distance to the nearest zoo member in one space: r (median, quantiles, that of held-out checkpoints) and AUC."""

    r: Interval
    r_quantiles: list[float]
    heldout_r: float
    auc: Interval


@dataclass(frozen=True)
class Novel:
    """Distances of parameters modulo symmetries and of functions; see `novel`."""

    assessable: bool = field(default=True, init=False)
    correlation_length: int | None
    weights: Distances
    hull_residual: dict[str, float]
    novel_and_performant: dict[str, float]
    functions: Distances


@dataclass(frozen=True)
class NotAssessable:
    """Why novelty cannot be assessed."""

    assessable: bool = field(default=False, init=False)
    reason: str


@dataclass(frozen=True)
class Distinguishable:
    """Whether samples differ from a Gaussian in the generator's codes: the `answer`."""

    energy_p_value: float
    accuracy_difference: Interval
    answer: bool
    from_heldout: dict[str, float] | None


@dataclass(frozen=True)
class Point:
    """Mean score, diversity F, standard error of the score, and mean largest similarity with a zoo member."""

    accuracy: float
    F: float
    error: float
    max_similarity: float


@dataclass(frozen=True)
class BaselineFigures:
    """A baseline at one setting, and whether it belongs to the curve."""

    name: str
    validation: Point
    test: Point
    on_curve: bool


@dataclass(frozen=True)
class OutsideTheCurve:
    """Mean gain over the curve, and the number of the generator's settings that it is averaged over."""

    area: Interval
    settings: int


@dataclass(frozen=True)
class Criteria:
    """The evidence of all five criteria."""

    performs: Performs
    disperses: Disperses
    novel: Novel | NotAssessable
    distinguishable: Distinguishable
    outside_the_curve: OutsideTheCurve


def performs(sample: EvaluatedSet, zoo: Zoo, chance: float) -> Performs:
    """Mean test score, and its share of what the zoo does above `chance`."""
    ours, theirs = sample.scores["test"], zoo.networks.scores["test"]

    def share(weights: torch.Tensor, zoo_weights: torch.Tensor) -> float:
        return (weighted_mean(ours, weights) - chance) / max(weighted_mean(theirs, zoo_weights) - chance, 1e-9)

    return Performs(ours.mean().item(), theirs.mean().item(), bootstrap(share, sample.units, zoo.networks.units))


def disperses(sample: EvaluatedSet, aligned: torch.Tensor, zoo: Zoo, processor: ParameterProcessor) -> Disperses:
    """R of the aligned samples `(n, D)` against the aligned zoo, and F against real networks."""
    units, zoo_units, real = sample.units, zoo.networks.units, zoo.real
    # 1. R: the root of the ratio of the traces of the covariances.
    r = bootstrap(
        lambda w, v: weighted_spread(aligned, w) / (weighted_spread(zoo.aligned, v) or math.nan), units, zoo_units
    )
    # 2. F: the ratio of the mean disagreements of predictions.
    ours, theirs = sample.disagreement(sample, "test"), real.disagreement(real, "test")
    f = bootstrap(
        lambda w, v: weighted_pair_mean(ours, w) / max(weighted_pair_mean(theirs, v), 1e-9), units, real.units
    )
    # 3. R of each tensor that differs between members.
    zoo_tensors = processor.unflatten(zoo.aligned)
    per_tensor = {
        name: dispersion(tensor.flatten(1), zoo_tensors[name].flatten(1))
        for name, tensor in processor.unflatten(aligned).items()
        if zoo_tensors[name].std(0).any()
    }
    return Disperses(r, f, per_tensor)


def novel(sample: EvaluatedSet, zoo: Zoo, symmetries: Symmetries) -> Novel | NotAssessable:
    """Distance to the nearest zoo member modulo symmetries, against the zoo's own and held-out checkpoints'."""
    # 1. Near-copies in time must not be each other's nearest: without other members there is nothing to compare.
    related = neighbors_in_time(zoo.run, zoo.step, zoo.length)
    if related.all():
        reach = f"all checkpoints lie within {zoo.length} steps of each other"
        return NotAssessable(f"{reach}, which is as far as their correlation reaches")
    members = symmetries.canonicalize(zoo.networks.parameters)

    # 2. Two distances: of functions, the disagreement on validation examples; of parameters, modulo the symmetries:
    # exact for one hidden layer, for more on the members that behave most alike.
    def of_functions(networks: EvaluatedSet) -> torch.Tensor:
        return networks.disagreement(zoo.networks, "validation")

    def of_weights(networks: EvaluatedSet) -> torch.Tensor:
        few = of_functions(networks).topk(min(FEW, len(members)), largest=False).indices
        nearest = few if len(symmetries.layers) > 1 else None
        return symmetries.distances(symmetries.canonicalize(networks.parameters), members, nearest)

    weights, ratios = _distances(of_weights, sample, zoo, related)
    functions, _ = _distances(of_functions, sample, zoo, related)
    # 3. Samples that are as good as the zoo and no copies (N&P), and what of them the zoo's hulls do not reach.
    scores, parameters = sample.scores["test"], zoo.networks.parameters
    good = scores >= zoo.networks.scores["test"].mean().item() - 0.01
    return Novel(
        correlation_length=zoo.length,
        weights=weights,
        hull_residual={
            "affine": hull_residuals(sample.parameters, parameters).mean().item(),
            "convex": hull_residuals(sample.parameters[:FEW], parameters, convex=True).mean().item(),
        },
        novel_and_performant={f"{tau:g}": (good & (ratios >= tau)).double().mean().item() for tau in TAUS},
        functions=functions,
    )


def _distances(
    distance_to_zoo: Callable[[EvaluatedSet], torch.Tensor], sample: EvaluatedSet, zoo: Zoo, related: torch.Tensor
) -> tuple[Distances, torch.Tensor]:
    """Returns the evidence of one space, and r of each sample `(n,)`."""
    # 1. The natural distance: of zoo members to the nearest unrelated one.
    natural = leave_one_out(distance_to_zoo(zoo.networks), related)
    natural_units = zoo.networks.units[~related.all(1)].unique(return_inverse=True)[1]
    # 2. Samples against it: r, of which 0 is a copy.
    median = natural.median().clamp(min=1e-12)
    nearest = distance_to_zoo(sample).min(1).values
    ratios = nearest / median
    r = bootstrap(
        lambda w, v: weighted_median(nearest, w) / max(weighted_median(natural, v), 1e-12), sample.units, natural_units
    )
    # 3. Samples against held-out checkpoints; without these, against the zoo's members.
    real, real_units = natural, natural_units
    if zoo.heldout is not None:
        real, real_units = distance_to_zoo(zoo.heldout).min(1).values, zoo.heldout.units
    auc = bootstrap(lambda w, v: copying_auc(nearest, real, w, v), sample.units, real_units)
    quantiles = [ratios.quantile(q).item() for q in (0.05, 0.5, 0.95)]
    return Distances(r, quantiles, (real / median).median().item(), auc), ratios


def distinguishable(
    sample: EvaluatedSet, null: EvaluatedSet, codes: list[torch.Tensor], heldout: EvaluatedSet | None, seed: int
) -> Distinguishable:
    """Whether samples differ from a Gaussian in the codes, by both codes `(n, latent_dim)` or by their scores."""
    # 1. Where they lie: a permutation test of the codes with the energy distance.
    p_value = energy_test(codes[0], codes[1], torch.Generator().manual_seed(seed))
    # 2. What they do: the difference of the mean scores, in standard errors.
    ours, theirs = sample.scores["test"], null.scores["test"]
    error = (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt().item()
    difference = (ours.mean() - theirs.mean()).item()
    # 3. For information, how samples differ from held-out checkpoints.
    from_heldout = None
    if heldout is not None and len(heldout) > 1:
        from_heldout = {
            "energy_distance": energy_distance(sample.parameters, heldout.parameters),
            "nearest_neighbour_accuracy": nearest_neighbor_accuracy(sample.parameters, heldout.parameters),
        }
    answer = p_value < SIGNIFICANCE or abs(difference) > WIDE * error
    return Distinguishable(p_value, _within(difference, error), answer, from_heldout)


def beyond_curve(
    settings: list[EvaluatedSet], baselines: dict[str, EvaluatedSet], zoo: Zoo
) -> tuple[list[BaselineFigures], OutsideTheCurve]:
    """Score above what the swept baselines reach at the same diversity, averaged over the generator's settings.

    Diversity is F, cut at 1: more than real checkpoints have is no merit.
    """
    # 1. The curve: settings of baselines that no other beats in score and F on validation examples.
    real = {split: max(zoo.real.mean_disagreement(split) or 0.0, 1e-9) for split in SPLITS}
    points = {
        name: {split: _point(rows, zoo, split, real[split]) for split in SPLITS} for name, rows in baselines.items()
    }
    chosen = [point["validation"] for point in points.values()]

    def beaten(mine: Point) -> bool:
        return any(other.accuracy > mine.accuracy and min(other.F, 1) >= min(mine.F, 1) for other in chosen)

    rows = [BaselineFigures(name, **p, on_curve=not beaten(p["validation"])) for name, p in points.items()]
    # 2. It is read off on test examples: the best score at the generator's diversity or more.
    curve = [row.test for row in rows if row.on_curve]
    gaps, variances = [], []
    for networks in settings:
        diversity = min((networks.mean_disagreement("test") or 0.0) / real["test"], 1.0)
        reached = [point for point in curve if diversity <= point.F] or [max(curve, key=lambda point: point.F)]
        best = max(reached, key=lambda point: point.accuracy)
        score = networks.scores["test"]
        gaps.append(score.mean().item() - best.accuracy)
        variances.append(score.var().item() / len(score) + best.error**2)
    # 3. Errors of both sides, and that of the zoo, which they have in common.
    zoo_error = bootstrap(lambda v: weighted_mean(zoo.networks.scores["test"], v), zoo.networks.units)
    gap = sum(gaps) / len(gaps)
    error = (sum(variances) / len(variances) + ((zoo_error.high - zoo_error.low) / 3.92) ** 2) ** 0.5
    return rows, OutsideTheCurve(_within(gap, error), len(settings))


def _within(value: float, error: float) -> Interval:
    return Interval(value, value - WIDE * error, value + WIDE * error)


def _point(networks: EvaluatedSet, zoo: Zoo, split: str, real: float) -> Point:
    scores = networks.scores[split]
    return Point(
        accuracy=scores.mean().item(),
        F=(networks.mean_disagreement(split) or 0.0) / real,
        error=scores.std().item() / len(networks) ** 0.5 if len(networks) > 1 else 0.0,
        max_similarity=max_similarity(networks.wrong[split], zoo.networks.wrong[split]).mean().item(),
    )
