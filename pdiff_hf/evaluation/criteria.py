"""The five axes of the audit: what each claims, with its evidence and an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.inputs import LabeledData
from ..targets.inference import network_predictions
from ..targets.processing_parameters import ParameterProcessor
from ..targets.symmetries import Symmetries
from .baselines import Autoencoder
from .distributions import energy_distance, energy_test, nearest_neighbor_accuracy
from .intervals import Interval, bootstrap, weighted_mean, weighted_median, weighted_pair_mean, weighted_spread
from .metrics import disagreement, dispersion, hull_residuals, mean_pairwise_disagreement
from .novelty import leave_one_out, nearest_ratio, novel_and_performant, related_pairs

SIGNIFICANCE = 0.005
WIDE = 2.58  # standard errors
ROUNDS = 3
TAUS = (0.5, 1.0, 2.0)
FEW = 10


@dataclass
class Judged:
    """A set of networks and what they do on validation and test images.

    Args:
        parameters: `(n, D)`.
        predicted: For each split, classes `(n, images)`.
        accuracy: For each split, `(n,)`.
    """

    parameters: torch.Tensor
    predicted: dict[str, torch.Tensor]
    accuracy: dict[str, torch.Tensor]

    def take(self, rows: torch.Tensor) -> Judged:
        """Returns the networks at `rows`, `(k,)` int64."""
        return Judged(
            self.parameters[rows],
            {split: classes[rows] for split, classes in self.predicted.items()},
            {split: values[rows] for split, values in self.accuracy.items()},
        )


def judge(
    sets: dict[str, torch.Tensor],
    processor: ParameterProcessor,
    model: PreTrainedModel,
    images: LabeledData,
    progress: bool = False,
) -> dict[str, Judged]:
    """Evaluates named sets of vectors `(n, D)` together, so that the trunk is computed once."""
    counts = [len(vectors) for vectors in sets.values()]
    everything = torch.cat(list(sets.values()))
    predicted: dict[str, dict[str, torch.Tensor]] = {name: {} for name in sets}
    accuracy: dict[str, dict[str, torch.Tensor]] = {name: {} for name in sets}
    for split, part in (("validation", images.validation), ("test", images.test)):
        classes, _ = network_predictions(model, processor, everything, images.inputs(part), part.labels, progress)
        for name, rows in zip(sets, classes.split(counts), strict=True):
            predicted[name][split] = rows
            accuracy[name][split] = (rows == part.labels).double().mean(1)
    return {name: Judged(sets[name], predicted[name], accuracy[name]) for name in sets}


def align_to_zoo(symmetries: Symmetries, others: torch.Tensor, zoo: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `others` and the zoo in canonical form, permuted toward the zoo's refined mean."""
    if not symmetries.layers:
        return others, zoo
    canonical_zoo, canonical = symmetries.canonicalize(zoo), symmetries.canonicalize(others)
    reference = canonical_zoo[0]
    for _ in range(ROUNDS):
        canonical_zoo = symmetries.align(canonical_zoo, reference)
        reference = canonical_zoo.mean(0)
    return symmetries.align(canonical, reference), canonical_zoo


def performs(sample: Judged, zoo: Judged, zoo_units: torch.Tensor, num_classes: int) -> dict[str, Any]:
    """Mean test accuracy, and its share of what the zoo does above chance."""
    chance = 1 / num_classes
    units = torch.arange(len(sample.parameters))

    def share(weights: torch.Tensor, zoo_weights: torch.Tensor) -> float:
        ours = weighted_mean(sample.accuracy["test"], weights)
        return (ours - chance) / max(weighted_mean(zoo.accuracy["test"], zoo_weights) - chance, 1e-9)

    interval = bootstrap(share, units, zoo_units)
    return {
        "accuracy": sample.accuracy["test"].mean().item(),
        "zoo_accuracy": zoo.accuracy["test"].mean().item(),
        "share_above_chance": interval.to_dict(),
    }


def disperses(
    sample: Judged,
    aligned: torch.Tensor,
    aligned_zoo: torch.Tensor,
    reference: Judged,
    zoo_units: torch.Tensor,
    reference_units: torch.Tensor,
    processor: ParameterProcessor,
) -> dict[str, Any]:
    """R after alignment, globally and per tensor, and F on test images."""
    units = torch.arange(len(aligned))
    r = bootstrap(
        lambda w, v: weighted_spread(aligned, w) / (weighted_spread(aligned_zoo, v) or math.nan), units, zoo_units
    )
    mine = disagreement(sample.predicted["test"], sample.predicted["test"])
    real = disagreement(reference.predicted["test"], reference.predicted["test"])
    f = bootstrap(
        lambda w, v: weighted_pair_mean(mine, w) / max(weighted_pair_mean(real, v), 1e-9), units, reference_units
    )
    tensors, zoo_tensors = processor.unflatten(aligned), processor.unflatten(aligned_zoo)
    per_tensor = {
        name: dispersion(tensor.flatten(1), zoo_tensors[name].flatten(1))
        for name, tensor in tensors.items()
        if zoo_tensors[name].std(0).any()
    }
    return {"R": r.to_dict(), "F": f.to_dict(), "R_per_tensor": per_tensor}


def novel(
    sample: Judged,
    zoo: Judged,
    heldout: Judged | None,
    run: torch.Tensor,
    step: torch.Tensor,
    length: int | None,
    zoo_units: torch.Tensor,
    heldout_units: torch.Tensor,
    symmetries: Symmetries,
) -> dict[str, Any]:
    """Distance to the nearest zoo member modulo symmetries, against the zoo's own and held-out checkpoints'."""
    related = related_pairs(run, step, length)
    kept = ~related.all(1)  # members that have an unrelated one to be compared with
    if not kept.any():
        reason = (
            f"all checkpoints lie within {length} steps of each other, which is as far as their correlation reaches"
        )
        return {"assessable": False, "reason": reason}
    natural_units = zoo_units[kept].unique(return_inverse=True)[1]
    evidence: dict[str, Any] = {"assessable": True, "correlation_length": length}
    members = symmetries.canonicalize(zoo.parameters)

    def functional(judged: Judged) -> torch.Tensor:
        return disagreement(judged.predicted["validation"], zoo.predicted["validation"])

    def of_weights(judged: Judged) -> torch.Tensor:
        # Exact for one hidden layer; for more, on the members that behave most alike.
        few = functional(judged).topk(min(FEW, len(members)), largest=False).indices
        nearest = few if len(symmetries.layers) > 1 else None
        return symmetries.distances(symmetries.canonicalize(judged.parameters), members, nearest)

    measures = {"weights": of_weights, "functions": functional}
    units = torch.arange(len(sample.parameters))
    for space, distance_to_zoo in measures.items():
        distances = distance_to_zoo(sample)
        nearest = distances.min(1).values
        natural = leave_one_out(distance_to_zoo(zoo), related)
        ratios = nearest_ratio(distances, natural)
        ratio = bootstrap(
            lambda w, v, a=nearest, b=natural: weighted_median(a, w) / max(weighted_median(b, v), 1e-12),
            units,
            natural_units,
        )
        real, real_units = (
            (natural, natural_units) if heldout is None else (distance_to_zoo(heldout).min(1).values, heldout_units)
        )
        further = (nearest[:, None] > real[None, :]).double() + 0.5 * (nearest[:, None] == real[None, :]).double()
        auc = bootstrap(lambda w, v, m=further: ((w @ m @ v) / (w.sum() * v.sum())).item(), units, real_units)
        evidence[space] = {
            "r": ratio.to_dict(),
            "r_quantiles": [ratios.quantile(q).item() for q in (0.05, 0.5, 0.95)],
            "heldout_r": nearest_ratio(real[:, None], natural).median().item(),
            "auc": auc.to_dict(),
        }
        if space == "weights":
            bar = zoo.accuracy["test"].mean().item() - 0.01
            evidence["hull_residual"] = {
                "affine": hull_residuals(sample.parameters, zoo.parameters).mean().item(),
                "convex": hull_residuals(sample.parameters[:FEW], zoo.parameters, convex=True).mean().item(),
            }
            evidence["novel_and_performant"] = {
                f"{tau:g}": novel_and_performant(ratios, sample.accuracy["test"], bar, tau) for tau in TAUS
            }
    return evidence


def distinguishable(
    sample: Judged,
    null: Judged,
    heldout: Judged | None,
    coded: torch.Tensor,
    coded_null: torch.Tensor,
    autoencoder: Autoencoder,
    seed: int,
) -> dict[str, Any]:
    """Whether samples differ from a Gaussian in the codes: in where they lie, or in what they do."""
    with torch.no_grad():
        codes, null_codes = (
            autoencoder.encode(vectors.to(autoencoder.device)).latents.cpu() for vectors in (coded, coded_null)
        )
    p_value = energy_test(codes, null_codes, torch.Generator().manual_seed(seed))
    ours, theirs = sample.accuracy["test"], null.accuracy["test"]
    error = (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt().item()
    difference = (ours.mean() - theirs.mean()).item()
    evidence: dict[str, Any] = {}
    if heldout is not None and len(heldout.parameters) > 1:
        evidence["from_heldout"] = {
            "energy_distance": energy_distance(sample.parameters, heldout.parameters),
            "nearest_neighbour_accuracy": nearest_neighbor_accuracy(sample.parameters, heldout.parameters),
        }
    return evidence | {
        "energy_p_value": p_value,
        "accuracy_difference": Interval(difference, difference - WIDE * error, difference + WIDE * error).to_dict(),
        "answer": p_value < SIGNIFICANCE or abs(difference) > WIDE * error,
    }


def outside_the_curve(
    settings: list[Judged], baselines: dict[str, Judged], zoo: Judged, reference: Judged, zoo_units: torch.Tensor
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Accuracy above what the swept baselines reach at the same diversity, averaged over the generator's settings.

    Diversity is F, cut at 1: more than real checkpoints have is no merit. The settings that make up the baselines'
    curve are those that no other beats in accuracy and F on validation images; it is read off on test images.
    """
    real = {split: max(_pairs(reference.predicted[split]), 1e-9) for split in ("validation", "test")}
    rows = []
    for name, judged in baselines.items():
        row: dict[str, Any] = {"name": name}
        for split in ("validation", "test"):
            row[split] = {
                "accuracy": judged.accuracy[split].mean().item(),
                "F": _pairs(judged.predicted[split]) / real[split],
                "error": judged.accuracy[split].std().item() / len(judged.parameters) ** 0.5
                if len(judged.parameters) > 1
                else 0.0,
            }
        rows.append(row)
    for row in rows:
        mine = row["validation"]
        row["on_curve"] = not any(
            other["validation"]["accuracy"] > mine["accuracy"]
            and min(other["validation"]["F"], 1) >= min(mine["F"], 1)
            for other in rows
        )
    curve = [row["test"] for row in rows if row["on_curve"]]
    zoo_error = bootstrap(lambda v: weighted_mean(zoo.accuracy["test"], v), zoo_units)
    gaps, variances = [], []
    for judged in settings:
        diversity = min(_pairs(judged.predicted["test"]) / real["test"], 1.0)
        reached = [point for point in curve if point["F"] >= diversity] or [max(curve, key=lambda point: point["F"])]
        best = max(reached, key=lambda point: point["accuracy"])
        accuracy = judged.accuracy["test"]
        gaps.append(accuracy.mean().item() - best["accuracy"])
        variances.append(accuracy.var().item() / len(accuracy) + best["error"] ** 2)
    gap = sum(gaps) / len(gaps)
    error = (sum(variances) / len(variances) + ((zoo_error.high - zoo_error.low) / 3.92) ** 2) ** 0.5
    return rows, {"area": Interval(gap, gap - WIDE * error, gap + WIDE * error).to_dict(), "settings": len(settings)}


def _pairs(predicted: torch.Tensor) -> float:
    return mean_pairwise_disagreement(predicted) or 0.0
