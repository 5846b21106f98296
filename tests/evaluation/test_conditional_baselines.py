"""Baselines of conditional zoos: each does what its name states, and settings are chosen on validation conditions."""

from __future__ import annotations

import pytest
import torch

from pdiff_hf import Checkpoints, CheckpointSplit, ConditionError, Conditions, ImageData, network_predictions
from pdiff_hf.evaluation.audit import align_to_zoo
from pdiff_hf.evaluation.conditional_baselines import ConditionalBaselines, TaskNetworks, fit_ridge, pooled_score
from pdiff_hf.fitting.units import find_symmetries
from pdiff_hf.zoo.tasks import Subsets, Tasks

LETTERS = Conditions("bits", ("a", "b", "c", "d", "e"), complement=True)
STEPS = 150


@pytest.fixture(scope="module")
def baselines(collected_subsets: Checkpoints, small_digits: ImageData) -> ConditionalBaselines:
    _, align = align_to_zoo(find_symmetries(collected_subsets), collected_subsets.zoo.parameters)
    tasks = Subsets(small_digits.label_names)
    return ConditionalBaselines(collected_subsets, small_digits, tasks, align, hypernetwork_steps=STEPS)


def test_nearest_networks_are_those_of_all_conditions_that_are_as_near():
    bits = torch.tensor([[1.0, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    zoo = TaskNetworks(torch.arange(4.0)[:, None], bits)
    asked = torch.tensor([1.0, 0, 0, 0, 0])

    assert zoo.of_nearest(LETTERS, asked).flatten().tolist() == [0, 1]
    assert zoo.of_nearest(LETTERS, asked, 3).flatten().tolist() == [0, 1, 2]


def test_a_complement_is_near_only_once_it_is_relabeled():
    bits = torch.tensor([[1.0, 1, 0, 0, 0], [0, 1, 1, 1, 1]])  # the second is the complement of what is asked for
    asked = torch.tensor([1.0, 0, 0, 0, 0])
    zoo = TaskNetworks(torch.arange(2.0)[:, None], bits)
    relabeled = TaskNetworks(torch.arange(4.0)[:, None], torch.cat([bits, 1 - bits]))

    assert zoo.of_nearest(LETTERS, asked).flatten().tolist() == [0]
    assert relabeled.of_nearest(LETTERS, asked).flatten().tolist() == [3]


def test_a_ridge_without_penalty_finds_a_linear_map_and_with_much_of_it_the_mean():
    generator = torch.Generator().manual_seed(0)
    condition, weights = torch.rand(50, 3, generator=generator), torch.randn(3, 7, generator=generator)
    zoo, asked = TaskNetworks(condition @ weights + 2, condition), torch.rand(4, 3, generator=generator)

    assert torch.allclose(fit_ridge(zoo, 1e-9)(asked), asked @ weights + 2, atol=1e-3)
    assert torch.allclose(fit_ridge(zoo, 1e9)(asked), zoo.parameters.mean(0).expand(4, -1), atol=1e-3)


def test_baselines_for_unseen_tasks_are_as_good_as_what_they_know(
    baselines: ConditionalBaselines, collected_subsets: Checkpoints, small_digits: ImageData, subsets: Tasks
):
    heldout, generator = collected_subsets.splits["test"], torch.Generator().manual_seed(0)
    inputs, scores = small_digits.inputs(small_digits.test), {}
    layout = collected_subsets.target_model, collected_subsets.processor
    for condition in torch.tensor(heldout.condition).unique(dim=0):
        own, labels = subsets.examples(inputs, small_digits.test.labels, condition)
        for name, networks in baselines(condition, 6, generator).items():
            predicted, _ = network_predictions(*layout, networks, own, labels)
            scores.setdefault(name, []).append((predicted == labels).double().mean().item())

    mean = {name: sum(found) / len(found) for name, found in scores.items()}
    assert min(mean["hypernetwork"], mean["ridge"]) > mean["nearest_relabeled"] + 0.05
    assert mean["nearest_mean"] > mean["nearest_relabeled"] >= mean["nearest"] - 0.01
    assert mean["ridge"] > mean["conditional_gaussian"] > mean["average"] + 0.1


def test_one_network_or_as_many_as_asked_for_are_drawn(baselines: ConditionalBaselines):
    drawn = baselines(baselines.zoo.condition[0], 5, torch.Generator().manual_seed(0))

    counts = {name: len(networks) for name, networks in drawn.items()}
    assert {name for name, count in counts.items() if count == 5} == {
        "nearest",
        "nearest_relabeled",
        "conditional_gaussian",
    }
    assert {counts[name] for name in ("average", "nearest_mean", "ridge", "hypernetwork")} == {1}
    own = baselines.zoo.parameters[:6]
    assert all((network == own).all(1).any() for network in drawn["nearest"])


def test_without_validation_conditions_settings_cannot_be_chosen(
    subsets_zoo: Checkpoints, small_digits: ImageData, subsets: Tasks
):
    subsets_zoo.splits["validation"] = CheckpointSplit(torch.empty(0, 1), run=[], step=[], seed=[])
    with pytest.raises(ConditionError, match="this zoo has none; collect it with --num_validation_tasks"):
        ConditionalBaselines(subsets_zoo, small_digits, subsets, lambda vectors: vectors)


def test_a_network_of_all_classes_pools_what_it_knows_of_a_subset():
    logits = torch.tensor([[0.3, 0.3, 0.4], [0.1, 0.1, 0.8], [0.2, 0.1, 0.7]]).log()
    subset, labels = torch.tensor([1.0, 1, 0]), torch.tensor([1, 0, 1])

    assert pooled_score(logits, subset, labels) == pytest.approx(2 / 3)
