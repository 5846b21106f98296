"""Families of tasks: their conditions are held out at a distance, their images and labels follow the condition."""

from __future__ import annotations

import pytest
import torch

from pdiff_hf.data.images import load_images
from pdiff_hf.targets.conditions import ConditionError
from pdiff_hf.zoo.tasks import TASKS, make_tasks

DIGITS = list("0123456789")


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", image_size=8)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_conditions_of_a_seed_are_different_and_held_out_at_a_distance(name, seed):
    tasks, counts = make_tasks(name, DIGITS), {"train": 256, "validation": 16, "test": 24}
    drawn = tasks.draw(counts, seed)
    assert {split: len(values) for split, values in drawn.items()} == counts
    everything = tasks.conditions.check(torch.cat(list(drawn.values())))
    between = tasks.conditions.pairwise_distances(everything, everything).fill_diagonal_(9)
    assert between.min() > 0  # not even a complement of another
    others = torch.cat([drawn["train"], drawn["validation"]])
    distances = torch.cdist if name == "angles" else tasks.conditions.pairwise_distances
    assert distances(drawn["test"], others).min() >= {"subsets": 2, "priors": 0.05, "angles": 1}[name]
    again = tasks.draw(counts, seed)
    assert all(torch.equal(drawn[split], again[split]) for split in drawn)
    assert not torch.equal(drawn["train"], tasks.draw(counts, seed + 1)["train"])


@pytest.mark.parametrize(("name", "test"), [("subsets", 200), ("angles", 400)])
def test_more_tasks_than_there_are_apart_are_refused(name, test):
    counts = {"train": 300, "validation": 0, "test": test}
    with pytest.raises(ConditionError, match=f"beside {test} held-out ones there are only .* ask for fewer"):
        make_tasks(name, DIGITS).draw(counts, 0)


def test_a_subset_has_its_classes_inside(digits):
    tasks = make_tasks("subsets", DIGITS)
    subset = tasks.conditions.vectors(["3", "7"], 1)[0]
    inputs = digits.inputs(digits.test)
    same, labels = tasks.examples(inputs, digits.test.labels, subset)
    assert same is inputs
    assert torch.equal(labels == 1, (digits.test.labels == 3) | (digits.test.labels == 7))
    assert labels.dtype == torch.long
    assert len(tasks.label_names) == 2


def test_a_prior_has_its_frequencies(digits):
    tasks = make_tasks("priors", DIGITS)
    prior = torch.tensor([0.5, 0.3, 0.2, 0, 0, 0, 0, 0, 0, 0])
    inputs, labels = tasks.examples(digits.inputs(digits.train), digits.train.labels, prior)
    assert (torch.bincount(labels, minlength=10) / len(labels) - prior).abs().max() < 0.05
    nearest = torch.cdist(inputs.flatten(1), digits.inputs(digits.train).flatten(1)).argmin(1)
    assert torch.equal(digits.train.labels[nearest], labels)
    again, _ = tasks.examples(digits.inputs(digits.train), digits.train.labels, prior)
    assert torch.equal(inputs, again)


def test_a_prior_over_classes_without_images_is_refused(digits):
    prior = torch.eye(10)[4]
    with pytest.raises(ConditionError, match="no images of the classes that occur in the prior"):
        make_tasks("priors", DIGITS).examples(torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 2]), prior)


def test_rotation_turns_images_counterclockwise_whatever_their_batch(digits):
    tasks, inputs = make_tasks("angles", DIGITS), digits.inputs(digits.validation)
    turned, labels = tasks.examples(inputs, digits.validation.labels, torch.tensor([90.0]))
    assert torch.allclose(turned, inputs.rot90(1, (2, 3)), atol=1e-4)
    assert torch.equal(labels, digits.validation.labels)
    slanted, _ = tasks.examples(inputs, labels, torch.tensor([30.0]))
    assert torch.equal(slanted[5:7], tasks.examples(inputs[5:7], labels[5:7], torch.tensor([30.0]))[0])
    assert slanted.min() >= inputs.min() - 1e-5
    still, _ = tasks.examples(inputs, labels, torch.tensor([0.0]))
    assert torch.allclose(still, inputs, atol=1e-5)


def test_unknown_tasks_and_too_few_classes_are_refused():
    with pytest.raises(ConditionError, match="tasks subsets, priors, angles, but 'colors' was given"):
        make_tasks("colors", DIGITS)
    with pytest.raises(ConditionError, match="at least 4 classes, but there are 'a', 'b', 'c' only"):
        make_tasks("subsets", ["a", "b", "c"])


def test_the_behavior_that_priors_ask_for_is_the_share_of_each_class_on_balanced_images(digits):
    inputs, labels = digits.inputs(digits.test), digits.test.labels
    by_input = {image.numpy().tobytes(): int(label) for image, label in zip(inputs, labels, strict=True)}

    def predict(seen):  # one network that is always right, and one that always answers 3
        return torch.stack([torch.tensor([by_input[x.numpy().tobytes()] for x in seen]), torch.full((len(seen),), 3)])

    measured = make_tasks("priors", DIGITS).behavior(predict, inputs, labels)
    assert torch.allclose(measured[0], torch.full((10,), 0.1, dtype=torch.float64))
    assert measured[1].tolist() == [float(digit == 3) for digit in range(10)]


def test_the_behavior_that_angles_ask_for_is_the_middle_of_those_at_which_a_network_is_right(digits):
    tasks, inputs, labels = make_tasks("angles", DIGITS), digits.inputs(digits.test), digits.test.labels
    known = [tasks.examples(inputs[:400], labels, torch.tensor([float(angle)]))[0] for angle in (20, 30, 40, -90)]

    def predict(seen):  # one network that is right at 20 to 40 degrees, and one that is at -90
        right = torch.tensor([any(torch.equal(seen, one) for one in known[:3]), torch.equal(seen, known[3])])
        return torch.where(right[:, None], labels[:400], -1)

    assert tasks.behavior(predict, inputs, labels).tolist() == [[30.0], [-90.0]]
