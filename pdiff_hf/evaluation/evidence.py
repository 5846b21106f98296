"""What the audit measures of a set of samples: the quantities that the criteria are decided by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from scipy.stats import binom

from ..fitting.guidance import rank_statistic
from ..targets.processing_parameters import ParameterProcessor
from .intervals import (
    LEVEL,
    Interval,
    bootstrap,
    weighted_mean,
    weighted_median,
    weighted_pair_mean,
    weighted_quantile,
    weighted_spread,
)
from .metrics import dispersion, hull_residuals
from .novelty import copying_auc, pairwise_distances
from .reference import MANY, Networks, Reference, Space

TAUS = (0.5, 1.0, 2.0)
COPY = 0.5  # of the natural distance between zoo members: nearer is a copy
STRICT_COPY = 0.2  # the same where the samples spread too little: an average may lie nearer than COPY
OUTLYING = 5.0  # natural distances from the zoo
TRIMMED = 0.05  # largest share of outliers that is left out of means and spreads
BROKEN = 0.5  # of what the zoo does above chance
PAIRS = 500  # zoo members whose pairs are measured
FEW = 10  # samples whose convex hull residual is computed


@dataclass(frozen=True)
class Performs:
    """Mean test score of samples and zoo, the samples' share of what the zoo reaches above chance, and exceptions."""

    accuracy: float
    zoo_accuracy: float
    share_above_chance: Interval
    heldout_share: float
    median_share: float
    broken: int  # samples that do less than half of what the zoo does above chance, with those that were dropped
    below: int  # samples that score less than real networks do
    heldout_below: float  # share
    total: int


@dataclass(frozen=True)
class Disperses:
    """R after alignment (of all parameters, in the zoo's leading directions, of each tensor), and F on test examples.

    `F_at_equal_errors` is F with both disagreements divided by the mean error of their set.
    """

    R: Interval
    F: Interval
    R_per_tensor: dict[str, float]
    R_leading: Interval
    F_at_equal_errors: Interval
    heldout_R: float


@dataclass(frozen=True)
class Distances:
    """Distance to the nearest zoo member in one space: r (median, quantiles, that of held-out checkpoints) and AUC.

    `rank_statistic` is the AUC in standard errors of the rank test (Z_U), `heldout_rank_statistic` that of held-out
    checkpoints against the zoo's own leave-one-out. `apart` is the median distance of a sample to the nearest other
    sample over that of a held-out checkpoint to the nearest other one, in sets of the same size.
    """

    r: Interval
    r_quantiles: list[float]
    heldout_r: float
    auc: Interval
    rank_statistic: float
    heldout_rank_statistic: float
    copies: int  # samples nearer than half the natural distance
    strict_copies: int  # nearer than a fifth of it
    heldout_copies: float  # share
    apart: Interval
    repeated: int  # samples as near to another, or to as many others, as held-out checkpoints never are
    total: int


@dataclass(frozen=True)
class Novel:
    """Distances of parameters modulo symmetries and of functions."""

    assessable: bool = field(default=True, init=False)
    correlation_length: int | None
    blocks: int | None  # of a trajectory: independent ones, in the zoo or held out, whichever are fewer
    weights: Distances
    hull_residual: dict[str, float]
    novel_and_performant: dict[str, float]
    heldout_novel_and_performant: dict[str, float]
    functions: Distances


@dataclass(frozen=True)
class NotAssessable:
    """Why novelty cannot be assessed."""

    assessable: bool = field(default=False, init=False)
    reason: str


def performs(sample: Networks, reference: Reference, chance: float, kept: torch.Tensor, dropped: int) -> Performs:
    """Mean test score, its share of what the zoo does above `chance`, and how many samples are far below.

    `kept` `(n,)` bool are the samples that means are taken over; `dropped` more are not finite.
    """
    ours, theirs = sample.evaluated.scores["test"], reference.zoo.evaluated.scores["test"]
    real = reference.real
    level = max(theirs.mean().item() - chance, 1e-9)
    shares = (ours - chance) / level

    def share(weights: torch.Tensor, zoo_weights: torch.Tensor) -> torch.Tensor:
        return (weighted_mean(ours[kept], weights) - chance) / (weighted_mean(theirs, zoo_weights) - chance).clamp(
            1e-9
        )

    # Real networks hardly ever score below: 1.5 times as far under the median as their worst hundredth may be.
    scores, units = theirs, reference.zoo.units
    if real is reference.heldout:
        scores = torch.cat([theirs, real.evaluated.scores["test"]])
        units = torch.cat([units, units.max() + 1 + real.units])
    median = scores.median().item()
    worst = bootstrap(lambda w: weighted_quantile(scores, w, 0.01), units)
    least = median - 1.5 * (median - (worst.value if math.isnan(worst.low) else worst.low))
    return Performs(
        accuracy=ours.mean().item(),
        zoo_accuracy=theirs.mean().item(),
        share_above_chance=bootstrap(share, sample.units[kept].unique(return_inverse=True)[1], reference.zoo.units),
        heldout_share=(real.evaluated.scores["test"].mean().item() - chance) / level,
        median_share=shares.median().item(),
        broken=int((shares < BROKEN).sum()) + dropped,
        below=int((ours < least - 1e-9).sum()) + dropped,
        heldout_below=(real.evaluated.scores["test"] < least - 1e-9).double().mean().item(),
        total=len(ours) + dropped,
    )


def outliers(sample: Networks, reference: Reference, chance: float, ratios: torch.Tensor) -> torch.Tensor:
    """Returns which samples `(n,)` are broken or far off the zoo, if they are no more than `TRIMMED` of all."""
    level = reference.zoo.evaluated.scores["test"].mean() - chance
    found = (sample.evaluated.scores["test"] - chance < BROKEN * level) | (ratios > OUTLYING)
    return found if found.double().mean() <= TRIMMED else torch.zeros_like(found)


def disperses(
    sample: Networks, reference: Reference, leading: torch.Tensor, processor: ParameterProcessor
) -> Disperses:
    """R of the aligned samples against the aligned zoo, and F against real networks.

    `leading` `(D, k)` are the principal directions that hold half of the zoo's variance.
    """
    count = min(PAIRS, len(reference.zoo))
    zoo = reference.zoo.take(torch.linspace(0, len(reference.zoo) - 1, count).round().long())
    real = reference.real
    # 1. R: the root of the ratio of the mean squared distances of pairs, which is that of the traces of covariances.
    r = _root_of_ratio(sample.aligned, zoo.aligned, sample.units, zoo.units)
    compared = real
    if reference.heldout is not real:  # the members that the directions were not fitted to
        compared = reference.zoo.take(torch.arange(1, len(reference.zoo), 2))
    r_leading = _root_of_ratio(sample.aligned @ leading, compared.aligned @ leading, sample.units, compared.units)
    # 2. F: the ratio of the mean disagreements of predictions, as they are and relative to the errors.
    ours, theirs = (x.evaluated.disagreement(x.evaluated, "test") for x in (sample, real))
    errors, real_errors = (x.evaluated.task.error(x.evaluated.scores["test"]) for x in (sample, real))

    def f(w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        real_mean = weighted_pair_mean(theirs, v, real.units).clamp(min=1e-9)
        return weighted_pair_mean(ours, w, sample.units) / real_mean

    def equal_errors(w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return f(w, v) * weighted_mean(real_errors, v) / weighted_mean(errors, w).clamp(min=1e-9)

    # 3. R of each tensor that differs between members.
    zoo_tensors = processor.unflatten(reference.zoo.aligned)
    per_tensor = {
        name: dispersion(tensor.flatten(1), zoo_tensors[name].flatten(1))
        for name, tensor in processor.unflatten(sample.aligned).items()
        if zoo_tensors[name].std(0).any()
    }
    spread, zoo_spread = (
        weighted_spread(x.aligned, torch.ones(len(x), dtype=torch.float64)).item() for x in (real, zoo)
    )
    return Disperses(
        R=r,
        F=bootstrap(f, sample.units, real.units),
        R_per_tensor=per_tensor,
        R_leading=r_leading,
        F_at_equal_errors=bootstrap(equal_errors, sample.units, real.units),
        heldout_R=spread / zoo_spread,
    )


def _root_of_ratio(
    ours: torch.Tensor, theirs: torch.Tensor, units: torch.Tensor, real_units: torch.Tensor
) -> Interval:
    squares, real_squares = (pairwise_distances(x, x) ** 2 for x in (ours, theirs))

    def ratio(w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        spread = weighted_pair_mean(real_squares, v, real_units)
        return (weighted_pair_mean(squares, w, units) / spread).sqrt()

    return bootstrap(ratio, units, real_units)


def novel(sample: Networks, reference: Reference, ratios: torch.Tensor, seed: int) -> Novel | NotAssessable:
    """Distance to the nearest zoo member modulo symmetries and in function, against that of held-out checkpoints.

    `ratios` `(n,)` are r of the samples in weights.
    """
    if not reference.known:
        return NotAssessable("runs and steps of the zoo are not known")
    if reference.related.all():
        within = f"all checkpoints lie within {reference.length} steps of each other"
        return NotAssessable(f"{within}, which is as far as their correlation reaches")
    if (reference.heldout is None or len(reference.heldout) < 2) and not len(reference.leave_one_out("weights")[1]):
        return NotAssessable("without held-out checkpoints, the zoo needs at least three runs")
    weights, real_ratios = _distances(sample, reference, "weights", ratios, seed)
    functions, _ = _distances(sample, reference, "functions", reference.ratios(sample, "functions"), seed)
    # Networks as good as the zoo and no copies (N&P), and what of the samples the zoo's hulls do not reach.
    zoo, least = reference.zoo, reference.zoo.evaluated.scores["test"].mean().item() - 0.01
    real = reference.real
    real_scores = real.evaluated.scores["test"]
    if reference.heldout is not real:
        real_ratios = torch.full((len(real),), math.nan)
    members = zoo.evaluated.parameters
    thinned = members[torch.linspace(0, len(members) - 1, min(len(members), MANY)).round().long()]
    parameters = sample.evaluated.parameters
    return Novel(
        correlation_length=reference.length,
        blocks=reference.blocks,
        weights=weights,
        hull_residual={
            "affine": hull_residuals(parameters, members).mean().item(),
            "convex": hull_residuals(parameters[:FEW], thinned, convex=True).mean().item(),
        },
        novel_and_performant=_novel_and_performant(sample.evaluated.scores["test"] >= least, ratios),
        heldout_novel_and_performant=_novel_and_performant(real_scores >= least, real_ratios),
        functions=functions,
    )


def _novel_and_performant(good: torch.Tensor, ratios: torch.Tensor) -> dict[str, float]:
    return {f"{tau:g}": (good & (ratios >= tau)).double().mean().item() for tau in TAUS}


def _distances(
    sample: Networks, reference: Reference, space: Space, ratios: torch.Tensor, seed: int
) -> tuple[Distances, torch.Tensor]:
    """Returns the evidence of one space, with r of each sample `(n,)`, and r of each real network."""
    # 1. r of held-out checkpoints; without these, of zoo members by leave-one-out.
    own = reference.leave_one_out(space)[1]
    heldout = reference.heldout_ratios(space)
    real, units = (own, torch.arange(len(own))) if heldout is None else (heldout, reference.real.units)
    auc = bootstrap(lambda w, v: copying_auc(ratios, real, w, v), sample.units, units)
    # 2. Distances within sets of the same size.
    count = min(len(sample), len(reference.real))
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (x.take(torch.randperm(len(x), generator=generator)[:count]) for x in (sample, reference.real))
    within, real_within = (reference.distances_within(x, space).min(1).values for x in (ours, theirs))
    apart = bootstrap(
        lambda w, v: weighted_median(within, w) / weighted_median(real_within, v).clamp(min=1e-12),
        ours.units,
        theirs.units,
    )
    # 3. Repeated samples: much nearer to another than real ones are, or to more others than these in such a set.
    near = COPY * reference.natural_distance(space)
    among, among_real = (reference.distances_within(x, space) for x in (sample, reference.real))
    least = COPY * real_within[real_within.isfinite()].quantile(0.05)
    share = (among_real < near).sum(1).max().item() / max(len(among_real) - 1, 1)
    most = binom.ppf((1 + LEVEL) / 2, len(among) - 1, share)
    repeated = (among.min(1).values < least) | ((among < near).sum(1) > most)
    quantiles = [ratios.quantile(q).item() for q in (0.05, 0.5, 0.95)]
    # 4. Copies: nearer than half of what is natural, or of what held-out checkpoints are, if these are nearer.
    scale = min(1.0, real.median().item())
    return (
        Distances(
            r=bootstrap(lambda w: weighted_median(ratios, w), sample.units),
            r_quantiles=quantiles,
            heldout_r=real.median().item(),
            auc=auc,
            rank_statistic=rank_statistic(ratios, real),
            heldout_rank_statistic=rank_statistic(real, own),
            copies=int((ratios < COPY * scale).sum()),
            strict_copies=int((ratios < STRICT_COPY * scale).sum()),
            heldout_copies=(real < COPY * scale).double().mean().item(),
            apart=apart,
            repeated=int(repeated.sum()),
            total=len(ratios),
        ),
        real,
    )
