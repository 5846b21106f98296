"""The audit of conditional generators: planted ones get their words, and what cannot be audited is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from planted_conditional import RIGHT, audit_planted, settings_of

from pdiff_hf import Checkpoints, ConditionalAuditor, ConditionError, ImageData, audit_conditional, collect_runs
from pdiff_hf.evaluation.conditional_verdict import BEATEN, ConditionalFigures, conditional_criteria
from pdiff_hf.evaluation.sets import CONDITIONAL_SETS
from pdiff_hf.zoo.settings import load_target
from pdiff_hf.zoo.tasks import Subsets, Tasks

STEPS = 200  # of the hypernetwork


@pytest.fixture(scope="module")
def auditor(collected_subsets: Checkpoints, small_digits: ImageData) -> ConditionalAuditor:
    subsets = Subsets(small_digits.label_names)
    return ConditionalAuditor(collected_subsets, small_digits, subsets, hypernetwork_steps=STEPS)


@pytest.fixture
def figures() -> ConditionalFigures:
    """Those of a generator that is as good as networks trained on the tasks, for 8 conditions of 2 numbers."""
    scores = dict.fromkeys(CONDITIONAL_SETS, 0.8) | {"generated": 0.95, "heldout": 0.96, "shuffled": 0.5}
    one = torch.ones(8, dtype=torch.float64)
    return ConditionalFigures(
        scores={name: score * one for name, score in scores.items()},
        drawn=0.95 * torch.ones(8, 5, dtype=torch.float64),
        disagreement=0.05 * one,
        real_disagreement=0.05 * one,
        variance=one,
        real_variance=one,
        ratios={space: torch.ones(8, 5, dtype=torch.float64) for space in ("weights", "functions")},
        real_r={"weights": 1.0, "functions": 5.0},
        requested=torch.rand(8, 2, generator=torch.Generator().manual_seed(0)).double(),
        measured=None,
        real_measured=None,
    )


@pytest.mark.exhaustive
def test_planted_generators_get_their_words(small_digits: ImageData):
    settings = settings_of(0, num_tasks=48, num_test_tasks=12, runs_per_task=8)
    zoo = collect_runs(small_digits, load_target(settings, small_digits), settings)

    found = audit_planted(zoo, small_digits, seed=0, steps=STEPS)

    assert {name: answer["word"] for name, answer in found.items()} == RIGHT


def test_every_set_is_scored_on_the_test_images_of_each_task(
    auditor: ConditionalAuditor, collected_subsets: Checkpoints, small_digits: ImageData
):
    heldout = torch.stack(auditor.heldout)  # (m, k, D)
    answer = auditor.audit(heldout)

    scores = answer.figures.scores
    assert scores.keys() == CONDITIONAL_SETS.keys() - {"parent"}
    assert all(len(found) == 8 for found in scores.values())
    assert torch.equal(scores["generated"], scores["heldout"])
    network = collected_subsets.target_model
    network.load_state_dict(collected_subsets.processor.unflatten(heldout[2, 0]), strict=False)
    members = auditor.conditions[2][small_digits.test.labels]
    logits = network(small_digits.inputs(small_digits.test)).logits
    single = auditor.audit(heldout[:, :1])
    assert single.figures.scores["generated"][2].item() == pytest.approx(
        (logits.argmax(-1) == members).double().mean().item()
    )
    share = max(members.mean().item(), 1 - members.mean().item())
    assert scores["majority"][2].item() == pytest.approx(share)
    assert min(answer.distances) >= 2


def test_networks_of_the_same_tasks_spread_as_much_and_lie_as_far(auditor: ConditionalAuditor):
    answer = auditor.audit(torch.stack(auditor.heldout))

    spreads = answer.criteria["spreads"].measures
    assert spreads["F"].value.value == pytest.approx(1)
    assert spreads["R"].value.value == pytest.approx(1)
    assert answer.figures.ratios["weights"].median().item() == pytest.approx(answer.figures.real_r["weights"])


def test_a_single_network_for_a_condition_has_no_spread(auditor: ConditionalAuditor):
    answer = auditor.audit(torch.stack(auditor.heldout)[:, :1])

    assert answer.verdict == "regression"


def test_a_parent_of_all_classes_is_one_more_baseline(
    collected_subsets: Checkpoints, small_digits: ImageData, subsets: Tasks, mlp
):
    known = {"parent": mlp, "hypernetwork_steps": 1, "num_baseline_models": 2}
    samples = torch.stack(ConditionalAuditor(collected_subsets, small_digits, subsets, **known).heldout)
    answer = audit_conditional(samples, collected_subsets, small_digits, subsets, **known)

    assert 0.2 < answer.scores["parent"].value < 0.8  # it is untrained


def test_samples_for_other_conditions_are_refused(auditor: ConditionalAuditor):
    with pytest.raises(ValueError, match="for 3 conditions were given, but 8 are held out"):
        auditor.audit(torch.stack(auditor.heldout)[:3])


def test_a_zoo_without_two_networks_for_each_heldout_condition_is_refused(
    subsets_zoo: Checkpoints, small_digits: ImageData, subsets: Tasks
):
    subsets_zoo.splits["test"] = subsets_zoo.splits["test"].rows(slice(0, 48, 6))
    with pytest.raises(ConditionError, match=r"two or more for each, but the test split has 8 in all"):
        ConditionalAuditor(subsets_zoo, small_digits, subsets)
    unconditional = dataclasses.replace(subsets_zoo, collection={})
    with pytest.raises(ConditionError, match="`audit` is for generators without"):
        ConditionalAuditor(unconditional, small_digits, subsets)


def test_a_baseline_that_trained_networks_do_not_beat_either_decides_nothing(figures: ConditionalFigures):
    better = {name: found + 0.155 if name in BEATEN else found for name, found in figures.scores.items()}
    criteria = conditional_criteria(dataclasses.replace(figures, scores=better))

    assert criteria["beyond the baselines"].status == "undecided"
    assert conditional_criteria(figures)["beyond the baselines"].status == "passed"


def test_with_few_heldout_conditions_nothing_is_shown(figures: ConditionalFigures):
    scores = {name: found[:5] for name, found in figures.scores.items()}
    few = {name: getattr(figures, name)[:5] for name in ("drawn", "disagreement", "real_disagreement")}
    few |= {name: getattr(figures, name)[:5] for name in ("variance", "real_variance", "requested")}
    few["ratios"] = {space: found[:5] for space, found in figures.ratios.items()}
    criteria = conditional_criteria(dataclasses.replace(figures, scores=scores, **few))

    assert {criterion.status for criterion in criteria.values()} == {"undecided"}


def test_slopes_compare_what_is_done_with_what_was_asked(figures: ConditionalFigures):
    asked = figures.requested
    half = dataclasses.replace(figures, measured=0.5 * asked + 3, real_measured=asked)
    flat = dataclasses.replace(figures, measured=torch.zeros_like(asked), real_measured=asked)

    assert half.slope(half.measured).value == pytest.approx(0.5)
    assert half.slope(half.measured, 0.5 * asked).value == pytest.approx(1)
    assert conditional_criteria(half)["follows"].status == "failed"
    assert conditional_criteria(flat)["follows"].measures["slope"].value.high < 0.1
