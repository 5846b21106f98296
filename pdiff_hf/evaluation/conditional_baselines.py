"""Baselines without diffusion for tasks that nobody trained: what simpler methods make of a conditional zoo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from ..data.images import ImageData
from ..data.inputs import LabeledData
from ..fitting.conditional_zoo import prepare_zoo
from ..fitting.function_matching import FunctionMatching, comparable_pairs
from ..loops import seeded
from ..models.linear_autoencoder import LinearParameterAutoencoder
from ..targets.conditions import ConditionError, Conditions
from ..targets.inference import network_predictions
from ..targets.task import task_of
from ..zoo.checkpoints import Checkpoints
from ..zoo.condition_splits import SAME
from ..zoo.tasks import Tasks, statistics_for_task
from .baselines import gaussian_full, retrieval

NEIGHBORS = (1, 2, 4, 8, 16, 32)  # conditions whose networks are averaged
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge, times the number of networks
ZOOS = ("zoo", "relabeled")  # attributes that a ridge is fitted to
GAUSSIANS = 4  # networks that each Gaussian is chosen by, for a condition
HYPERNETWORK_STEPS, WIDTH = 2000, 256
MATCHED = 64  # networks, and images, of one of its steps
LEARNING_RATE = 1e-3  # at its peak
FIRST_SCALE = 0.1  # of the weights of its last layer: it starts at one network, whatever the condition

Predictor = Callable[[torch.Tensor], torch.Tensor]  # from conditions (m, c) to a network for each, (m, D)


@dataclass(frozen=True)
class TaskNetworks:
    """Canonical networks that are aligned to one mean, `(n, D)`, and the conditions they were made for, `(n, c)`."""

    parameters: torch.Tensor
    condition: torch.Tensor

    def of_nearest(self, meaning: Conditions, condition: torch.Tensor, count: int = 1) -> torch.Tensor:
        """Returns the networks of the `count` conditions nearest to `(c,)`, of more if others are as near as these.

        The complement of a condition is another condition here: its networks must be relabeled to be used for it.
        """
        plain = replace(meaning, complement=False)
        distances = plain.pairwise_distances(condition[None], self.condition.unique(dim=0))[0].sort().values
        limit = distances[min(count, len(distances)) - 1] + SAME
        return self.parameters[plain.pairwise_distances(condition[None], self.condition)[0] <= limit]


class ConditionalBaselines:
    """The baselines of one conditional zoo: functions from a condition to networks.

    Networks are canonical and aligned to the zoo's mean. Where the complement of a condition is the same task with
    exchanged outputs, those of all complements join the zoo. Settings are chosen by the mean score of networks for
    validation conditions on validation images of their tasks.

    Args:
        checkpoints: A conditional zoo with a validation split.
        images: Those that the zoo was collected on.
        tasks: What makes images and labels of a condition.
        align: Maps vectors `(n, D)` to their canonical forms, aligned to the zoo's mean.
        seed: Random seed for the hypernetwork.
        hypernetwork_steps: Steps of its training.

    Raises:
        ConditionError: If there are no validation conditions, or outputs should be exchanged, but cannot be.
        CheckpointsError: If two splits have a condition in common.

    Attributes:
        zoo, relabeled: The `TaskNetworks` of the zoo, without and with relabeled ones.
        chosen: The settings that were chosen, by name.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        images: LabeledData,
        tasks: Tasks,
        align: Callable[[torch.Tensor], torch.Tensor],
        seed: int = 0,
        hypernetwork_steps: int = HYPERNETWORK_STEPS,
    ) -> None:
        if not len(checkpoints.splits.get("validation", ())):
            raise ConditionError(
                "The baselines of a conditional zoo choose their settings on validation conditions, but this zoo has "
                "none; collect it with --num_validation_tasks of 1 or more."
            )
        prepared = prepare_zoo(checkpoints, images, tasks)
        both, count = prepared.checkpoints.zoo, len(checkpoints.zoo)
        self.meaning = cast(Conditions, checkpoints.conditions)
        self.relabeled = TaskNetworks(align(both.parameters), torch.tensor(both.condition))
        self.zoo = TaskNetworks(self.relabeled.parameters[:count], self.relabeled.condition[:count])
        self.chosen = self._choose(checkpoints, images, tasks, seed)
        self._ridge, _ = self._fitted(*self.chosen["ridge"])
        self._center, self._residuals = self._fitted(*self.chosen["conditional_gaussian"])
        self._hypernetwork = fit_hypernetwork(
            self.relabeled, prepared.checkpoints, cast(LabeledData, prepared.images), seed, hypernetwork_steps
        )

    @torch.no_grad()
    def __call__(self, condition: torch.Tensor, count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Returns the networks `(k, D)` of each baseline for `(c,)`: `count`, or a single one that is all it has."""
        noise = gaussian_full(self._residuals, count, generator)
        return {
            "average": self.zoo.parameters.mean(0, keepdim=True),
            "nearest": retrieval(self.zoo.of_nearest(self.meaning, condition), count, generator),
            "nearest_relabeled": retrieval(self.relabeled.of_nearest(self.meaning, condition), count, generator),
            "nearest_mean": self._mean_of_nearest(condition, self.chosen["neighbors"]),
            "ridge": self._ridge(condition[None]),
            "conditional_gaussian": self._center(condition[None]) + noise,
            "hypernetwork": self._hypernetwork(condition[None]),
        }

    def _mean_of_nearest(self, condition: torch.Tensor, count: int) -> torch.Tensor:
        return self.relabeled.of_nearest(self.meaning, condition, count).mean(0, keepdim=True)

    @torch.no_grad()
    def _choose(self, checkpoints: Checkpoints, images: LabeledData, tasks: Tasks, seed: int) -> dict[str, Any]:
        """Returns all settings that are chosen; those of the ridge and of the Gaussian are a zoo and a penalty."""
        # 1. What each option draws for the validation conditions, each (conditions, options, D).
        conditions = torch.tensor(checkpoints.splits["validation"].condition).unique(dim=0)
        averages = [torch.cat([self._mean_of_nearest(c, k) for c in conditions]) for k in NEIGHBORS]
        ridges = [(name, penalty) for name in ZOOS[: 1 + self.meaning.complement] for penalty in PENALTIES]
        predicted, drawn, generator = [], [], torch.Generator().manual_seed(seed)
        for option in ridges:
            ridge, residuals = self._fitted(*option)
            predicted.append(ridge(conditions))
            noise = gaussian_full(residuals, len(conditions) * GAUSSIANS, generator)
            drawn.append(predicted[-1][:, None] + noise.view(len(conditions), GAUSSIANS, -1))
        options = torch.cat([torch.stack(averages + predicted, dim=1), *drawn], dim=1)
        # 2. Their mean scores on the validation images of these tasks.
        model, task = checkpoints.target_model, task_of(checkpoints.target_model.config)
        inputs, scores = cast(ImageData, images).inputs(cast(ImageData, images).validation), []
        for condition, networks in zip(conditions, options, strict=True):
            own, labels = tasks.examples(inputs, images.validation.labels, condition)
            statistics = statistics_for_task(model, checkpoints.processor, networks, images, tasks, condition)
            answers, _ = network_predictions(
                model, checkpoints.processor, networks, own, labels, statistics=statistics
            )
            scores.append(task.score(answers, labels))
        means = torch.stack(scores).mean(0).split([len(averages), len(ridges), len(ridges) * GAUSSIANS])
        # 3. The best of each kind.
        return {
            "neighbors": NEIGHBORS[int(means[0].argmax())],
            "ridge": ridges[int(means[1].argmax())],
            "conditional_gaussian": ridges[int(means[2].view(len(ridges), GAUSSIANS).mean(1).argmax())],
        }

    def _fitted(self, zoo: str, penalty: float) -> tuple[Predictor, torch.Tensor]:
        """Returns a ridge, and the residuals of the zoo that it was fitted to, of mean 0, `(n, D)`."""
        networks: TaskNetworks = getattr(self, zoo)
        ridge = fit_ridge(networks, penalty)
        residuals = networks.parameters - ridge(networks.condition)
        return ridge, residuals - residuals.mean(0)


def fit_ridge(zoo: TaskNetworks, penalty: float) -> Predictor:
    """Returns the linear regression from standardized conditions to networks, its squared weights penalized."""
    standardize, mean = _standardizer(zoo.condition), zoo.parameters.mean(0)
    size, root = zoo.condition.shape[1], (penalty * len(zoo.condition)) ** 0.5
    features = torch.cat([standardize(zoo.condition), root * torch.eye(size)])
    targets = torch.cat([zoo.parameters - mean, torch.zeros(size, len(mean))])
    weights = torch.linalg.lstsq(features, targets).solution  # (c, D)
    return lambda conditions: mean + standardize(conditions) @ weights


@torch.enable_grad()
def fit_hypernetwork(
    zoo: TaskNetworks, checkpoints: Checkpoints, images: LabeledData, seed: int, steps: int
) -> Predictor:
    """Trains an MLP from a condition to one network by function matching alone, as generators are trained with.

    It answers in principal codes of the zoo, and starts as one of its networks, whatever the condition.

    Args:
        zoo: The networks, canonical and aligned.
        checkpoints: The same networks in its train split.
        images: On those of the train split functions are matched.
        seed: Random seed for initial weights and batches.
        steps: Of Adam, with a cosine schedule.
    """
    codes = LinearParameterAutoencoder.from_zoo(zoo.parameters, explained_variance=1.0)
    layout, networks = (checkpoints.target_model, checkpoints.processor), {"train": zoo.parameters}
    matching = FunctionMatching(codes, *layout, images, networks, comparable_pairs(checkpoints.zoo))
    standardize, generator = _standardizer(zoo.condition), torch.Generator().manual_seed(seed)
    with seeded(seed):
        network = nn.Sequential(
            nn.Linear(zoo.condition.shape[1], WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.SiLU(),
            last := nn.Linear(WIDTH, codes.config.latent_dim),
        )
    with torch.no_grad():
        last.weight.mul_(FIRST_SCALE)
        last.bias.copy_(codes.encode(zoo.parameters[:1]).latents[0])
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(zoo.parameters), (MATCHED,), generator=generator)
        predicted = network(standardize(zoo.condition[rows]))
        loss = matching.loss(predicted, zoo.parameters[rows], torch.ones(MATCHED), MATCHED, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return lambda conditions: codes.decode(network(standardize(conditions))).sample


def pooled_score(parent_logits: torch.Tensor, condition: torch.Tensor, labels: torch.Tensor) -> float:
    """Returns how often a network of all classes knows whether an image is in a subset.

    Args:
        parent_logits: Of all classes, `(examples, c)`.
        condition: The bits of the subset `(c,)`, whose classes' probabilities are added.
        labels: 1 inside, 0 outside, `(examples,)`.
    """
    inside = parent_logits.softmax(-1) @ condition.to(parent_logits)
    return ((inside > 0.5).long() == labels).double().mean().item()


def _standardizer(conditions: torch.Tensor) -> Predictor:
    center, scale = conditions.mean(0), conditions.std(0, correction=0).clamp(min=1e-6)
    return lambda given: (given - center) / scale
