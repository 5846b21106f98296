"""The sets of networks that a report compares: how each is called in tables and drawn in figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ShownSet:
    """One row of a report's table, in the palette of Okabe and Ito; markers differ too."""

    title: str  # in tables
    label: str  # in figures
    color: str
    marker: str
    baseline: str | None = None  # the one it shows; a line of this color joins all settings of its family in figures
    family: str | None = None  # how all of them are called there, if not by the label


SETS = {  # by their keys in metrics.json; the zoo is where shrinking toward the average ends
    "zoo": ShownSet("zoo (training checkpoints)", "zoo", "#999999", "o", "shrink@1", "zoo shrunk to average"),
    "heldout": ShownSet("held-out checkpoints", "held-out", "#000000", "x"),
    "heldout_branch": ShownSet("held-out checkpoints, another run", "held-out, another run", "#000000", "+"),
    "average": ShownSet('average of all (the paper\'s "ensemble")', "average of all", "#F0E442", "*", "average"),
    "averages_16": ShownSet("averages of 16", "averages of 16", "#E69F00", "^", "averages@16", "averages of k"),
    "gaussian_diagonal": ShownSet("Gaussian, diagonal", "Gaussian, diagonal", "#56B4E9", "s", "gaussian_diagonal@1"),
    "gaussian_full": ShownSet("Gaussian, full covariance", "Gaussian, full", "#0072B2", "D", "gaussian_full@1"),
    "gaussian_codes": ShownSet(
        "Gaussian in the generator's codes", "Gaussian in codes", "#009E73", "v", "gaussian_codes@1"
    ),
    "noise": ShownSet("zoo with noise of 5 % of each tensor's spread", "zoo with noise", "#CC79A7", "<", "noise@0.05"),
    "generated": ShownSet("**generated**", "generated", "#D55E00", "P"),
}

CONDITIONAL_SETS = {  # what is compared on tasks that nobody trained
    "generated": SETS["generated"],
    "heldout": ShownSet("networks trained on the task", "trained on the task", "#000000", "x"),
    "shuffled": ShownSet("generated for other held-out conditions", "other conditions", "#999999", "o"),
    "majority": ShownSet("always the most frequent class", "most frequent class", "#999999", "|"),
    "average": ShownSet("average of the zoo", "average of the zoo", "#F0E442", "*"),
    "nearest": ShownSet("networks of the nearest condition", "nearest", "#E69F00", "^"),
    "nearest_relabeled": ShownSet(
        "networks of the nearest condition, relabeled ones too", "nearest, relabeled", "#E69F00", "v"
    ),
    "nearest_mean": ShownSet("average of the networks of the nearest k", "average of nearest", "#CC79A7", "<"),
    "ridge": ShownSet("ridge regression", "ridge", "#56B4E9", "s"),
    "conditional_gaussian": ShownSet("conditional Gaussian", "conditional Gaussian", "#0072B2", "D"),
    "hypernetwork": ShownSet("regression hypernetwork", "hypernetwork", "#009E73", "p"),
    "parent": ShownSet("a network of all classes, pooled", "pooled network", "#999999", "h"),
}

PREDICTORS = {  # whose predictive uncertainty is compared; networks of one color are of one set
    "heldout_1": ShownSet("one held-out network", "one held-out", "#000000", "x"),
    "laplace": ShownSet("one held-out network, last-layer Laplace", "last-layer Laplace", "#CC79A7", "d"),
    "average": SETS["average"],
    "zoo": ShownSet("ensemble of zoo networks", "zoo", "#999999", "o"),
    "zoo_large": ShownSet("large ensemble of zoo networks", "zoo, large", "#999999", "s"),
    "heldout": ShownSet("ensemble of held-out networks", "held-out", "#000000", "+"),
    "gaussian_codes": ShownSet(
        "ensemble from a Gaussian in the generator's codes (SWAG in this basis)", "Gaussian in codes", "#009E73", "v"
    ),
    "generated_1": ShownSet("**one drawn network**", "one drawn", "#D55E00", "x"),
    "generated": ShownSet("**ensemble of drawn networks**", "drawn", "#D55E00", "P"),
    "generated_large": ShownSet("**large ensemble of drawn networks**", "drawn, large", "#D55E00", "s"),
}


def family_of(baseline: str) -> str:
    """Returns the name of a baseline without its setting."""
    return baseline.partition("@")[0]
