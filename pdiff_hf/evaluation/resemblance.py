"""Whether samples are more than a Gaussian of the zoo, and better than the swept baselines at their diversity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from scipy.stats import mannwhitneyu

from .distributions import energy_distance, energy_test, nearest_neighbor_accuracy
from .evaluated import EvaluatedSet
from .intervals import Interval, between_mean, bootstrap, weighted_mean, weighted_pair_mean, without_ends
from .metrics import max_similarity
from .novelty import pairwise_distances
from .reference import Networks, Reference

SIGNIFICANCE = 0.005
WIDE = 2.58  # standard errors
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Distinguishable:
    """Whether samples differ from a Gaussian in the generator's codes (the `answer`), and are nearer to real networks.

    `gain_in_codes` is how much further the samples lie from the Gaussian than from held-out checkpoints, by the
    energy distance in the leading codes of the zoo, relative to that between the two; `gain_in_distance` is the same
    of the mean logarithm of the distance to the nearest zoo member in these codes, `gain_in_score` of the mean score.
    All are those of the Gaussian, of all that baselines draw, for which the best of them is least.
    """

    energy_p_value: float
    nearest_neighbor_p_value: float
    distance_p_value: float
    accuracy_difference: Interval
    answer: bool
    closest_gaussian: str
    gain_in_codes: Interval
    gain_in_distance: Interval
    gain_in_score: Interval
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
    """Gain over the curve, of the generator's first setting."""

    area: Interval
    settings: int


def distinguishable(
    sample: Networks,
    null: Networks,
    gaussians: dict[str, Networks],
    reference: Reference,
    encode: Callable[[torch.Tensor], torch.Tensor],
    seed: int,
) -> Distinguishable:
    """Compares samples with a Gaussian in the codes, and with all Gaussians of the zoo, by codes and by scores.

    `encode` maps aligned vectors `(n, D)` to a few leading codes `(n, k)`.
    """
    generator = torch.Generator().manual_seed(seed)
    real, codes, null_codes = reference.real, encode(sample.aligned), encode(null.aligned)
    # 1. Where they lie: two permutation tests of the codes.
    p_value = energy_test(codes, null_codes, generator)
    neighbors = nearest_neighbor_accuracy(codes, null_codes)
    count = 2 * min(len(codes), len(null_codes))
    neighbors_p = 0.5 * math.erfc((neighbors - 0.5) * (count / 2) ** 0.5 * 2 / 2**0.5 / 2**0.5)
    # 2. What they do: the difference of the mean scores, in standard errors.
    ours, theirs = sample.evaluated.scores["test"], null.evaluated.scores["test"]
    error = (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt().item()
    difference = (ours.mean() - theirs.mean()).item()
    # 3. How far from the zoo they lie in the codes, where a Gaussian leaves the manifold: a rank test.
    zoo = encode(reference.zoo.aligned)
    to_zoo = (pairwise_distances(x, zoo).min(1).values.numpy() for x in (codes, null_codes))
    distance_p = float(mannwhitneyu(*to_zoo).pvalue)
    answer = min(p_value, neighbors_p, distance_p) < SIGNIFICANCE or abs(difference) > WIDE * error
    # 4. Are they nearer to real networks than to any Gaussian? The least convincing answer counts.
    gains = {name: _gains(sample, networks, real, zoo, encode) for name, networks in gaussians.items()}
    closest = min(gains, key=lambda name: max(gain.low for gain in gains[name]))
    # 5. For information, how samples differ from held-out checkpoints.
    from_heldout = None
    if reference.heldout is not None and len(reference.heldout) > 1:
        from_heldout = {
            "energy_distance": energy_distance(sample.evaluated.parameters, reference.heldout.evaluated.parameters),
            "nearest_neighbour_accuracy": nearest_neighbor_accuracy(sample.aligned, reference.heldout.aligned),
        }
    in_codes, in_distance, in_score = gains[closest]
    return Distinguishable(
        p_value,
        neighbors_p,
        distance_p,
        _within(difference, error),
        answer,
        closest,
        in_codes,
        in_distance,
        in_score,
        from_heldout,
    )


def _gains(
    sample: Networks,
    gaussian: Networks,
    real: Networks,
    zoo: torch.Tensor,
    encode: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[Interval, ...]:
    """Returns how much nearer the samples are to real networks than to a Gaussian: in codes, distance and score.

    `zoo` `(N, k)` are the codes of the zoo.
    """
    groups = (sample, gaussian, real)
    codes = [encode(networks.aligned).double() for networks in groups]
    units = [networks.units for networks in groups]
    # 1. Energy distances to both; what is within the samples cancels.
    to_gaussian, to_real = (pairwise_distances(codes[0], other) for other in codes[1:])
    gaussian_within, real_within = (pairwise_distances(x, x) for x in codes[1:])
    between = pairwise_distances(codes[1], codes[2]).mean().item()

    def in_codes(w: torch.Tensor, g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        far = 2 * between_mean(to_gaussian, w, g) - weighted_pair_mean(gaussian_within, g)
        near = 2 * between_mean(to_real, w, v) - weighted_pair_mean(real_within, v, real.units)
        return (far - near) / between

    # 2. Differences of means: of the distance to the zoo, where a Gaussian leaves the manifold, and of the score.
    distances = [pairwise_distances(x, zoo).min(1).values.clamp(min=1e-12).log() for x in codes]
    scores = [networks.evaluated.scores["test"] for networks in groups]

    def in_means(values: list[torch.Tensor], *weights: torch.Tensor) -> torch.Tensor:
        ours, theirs, truth = (weighted_mean(v, w) for v, w in zip(values, weights, strict=True))
        return (ours - theirs).abs() - (ours - truth).abs()

    gains = (in_codes, partial(in_means, distances), partial(in_means, scores))
    return tuple(bootstrap(gain, *units) for gain in gains)


def baseline_figures(baselines: dict[str, EvaluatedSet], reference: Reference) -> list[BaselineFigures]:
    """Returns the figures of every baseline, and which of them are on the curve: no other beats them.

    A baseline beats another in score and diversity on validation examples. Diversity is F, cut at 1: more than real
    checkpoints have is no merit.
    """
    zoo = reference.zoo.evaluated
    real = {split: reference.real.evaluated.mean_disagreement(split) for split in SPLITS}
    points = {
        name: {split: _point(rows, zoo, split, real[split]) for split in SPLITS} for name, rows in baselines.items()
    }
    chosen = [point["validation"] for point in points.values()]

    def beaten(mine: Point) -> bool:
        return any(other.accuracy > mine.accuracy and min(other.F, 1) >= min(mine.F, 1) for other in chosen)

    return [BaselineFigures(name, **p, on_curve=not beaten(p["validation"])) for name, p in points.items()]


def beyond_curve(sample: EvaluatedSet, figures: list[BaselineFigures], reference: Reference) -> OutsideTheCurve:
    """Score above the curve: above what the swept baselines reach on test examples, at the same diversity or more."""
    curve = [row.test for row in figures if row.on_curve]
    # 1. The best baseline at the generator's diversity.
    ours = _point(sample, reference.zoo.evaluated, "test", reference.real.evaluated.mean_disagreement("test"))
    reached = [point for point in curve if min(ours.F, 1.0) <= point.F] or [max(curve, key=lambda point: point.F)]
    best = max(reached, key=lambda point: point.accuracy)
    # 2. Errors of both sides, and that of the zoo, which they have in common.
    zoo = reference.zoo
    zoo_error = bootstrap(lambda v: weighted_mean(zoo.evaluated.scores["test"], v), zoo.units)
    error = (ours.error**2 + best.error**2 + ((zoo_error.high - zoo_error.low) / 3.92) ** 2) ** 0.5
    return OutsideTheCurve(_within(ours.accuracy - best.accuracy, error), settings=1)


def _within(value: float, error: float) -> Interval:
    if math.isnan(error):
        return without_ends(value, "too few networks")
    return Interval(value, value - WIDE * error, value + WIDE * error)


def _point(networks: EvaluatedSet, zoo: EvaluatedSet, split: str, real: float | None) -> Point:
    scores = networks.scores[split]
    return Point(
        accuracy=scores.mean().item(),
        F=(networks.mean_disagreement(split) or 0.0) / max(real or 0.0, 1e-9),
        error=scores.std().item() / len(networks) ** 0.5 if len(networks) > 1 else 0.0,
        max_similarity=max_similarity(networks.wrong[split], zoo.wrong[split]).mean().item(),
    )
