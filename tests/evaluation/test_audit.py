"""The audit against planted generators: copiers, averages and perfect generators get the right verdict."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter

import pytest
import torch
from planted import Case, multi_run_case, planted_generators, trajectory_case

from pdiff_hf import Audit, LinearParameterAutoencoder, audit
from pdiff_hf.evaluation.criteria import NotAssessable, novel
from pdiff_hf.evaluation.evaluated import EvaluatedSet, Zoo, evaluate_sets
from pdiff_hf.evaluation.verdict import MEANINGS, decide
from pdiff_hf.targets.task import classification

TRAJECTORY_PLANTED = ["copies", "copies with small noise", "mean with small noise", "mean with idle noise"]
TRAJECTORY_PLANTED += ["interpolation of two", "Gaussian", "real checkpoints", "random weights"]
MULTI_RUN_PLANTED = [*TRAJECTORY_PLANTED, "permuted and rescaled copies"]
FEW = 10  # networks of each baseline
SAMPLES = 60


def audited(case: Case, samples: torch.Tensor | dict[str, torch.Tensor], **changes) -> Audit:
    return audit(samples, case.zoo, **{**case.arguments(), "num_baseline_models": FEW, **changes})


class Planted:
    """A case with its planted generators by name, each audited once."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.generators = planted_generators(case, seed=0)
        self.answer = functools.cache(lambda name: audited(case, self.samples(name)))

    def samples(self, name: str) -> torch.Tensor:
        return self.generators[name][0][:SAMPLES]


@pytest.fixture(scope="module")
def multi_run() -> Planted:
    return Planted(multi_run_case(seed=0, runs=120, steps=200))


@pytest.fixture(scope="module")
def trajectory() -> Planted:
    return Planted(trajectory_case(seed=0, checkpoints=180, width=8))


# The verdict


@pytest.mark.parametrize(
    ("zoo", "name"),
    [("multi_run", name) for name in MULTI_RUN_PLANTED] + [("trajectory", name) for name in TRAJECTORY_PLANTED],
)
def test_each_planted_generator_gets_the_right_verdict(zoo: str, name: str, request: pytest.FixtureRequest):
    planted: Planted = request.getfixturevalue(zoo)

    answer = planted.answer(name)

    assert answer.verdict in planted.generators[name][1], answer.criteria
    assert set(planted.generators) == set(MULTI_RUN_PLANTED if zoo == "multi_run" else TRAJECTORY_PLANTED)


@pytest.mark.exhaustive
def test_over_ten_seeds_of_both_cases_nineteen_verdicts_of_twenty_are_right(capsys: pytest.CaptureFixture[str]):
    answers: dict[tuple[str, str], Counter[str]] = {}
    expected: dict[tuple[str, str], set[str]] = {}
    for kind, make in (("many runs", multi_run_case), ("trajectory", trajectory_case)):
        for seed in range(10):
            case = make(seed)
            for name, (samples, right) in planted_generators(case, seed).items():
                verdict = audited(case, samples, num_baseline_models=50, seed=seed).verdict
                answers.setdefault((kind, name), Counter())[verdict] += 1
                expected[kind, name] = right

    with capsys.disabled():
        print("\n| zoo | planted | right | answers |\n|---|---|---|---|")
        for key, counts in answers.items():
            found = ", ".join(f"{word} {count}" for word, count in counts.most_common())
            print(f"| {' | '.join(key)} | {' or '.join(sorted(expected[key]))} | {found} |")
    hits = sum(count for key, counts in answers.items() for word, count in counts.items() if word in expected[key])
    assert hits >= 0.95 * sum(counts.total() for counts in answers.values())


def test_the_verdict_follows_the_order_of_precedence(multi_run: Planted):
    found = multi_run.answer("real checkpoints").criteria

    def with_interval(criterion: str, name: str, low: float, high: float):
        evidence = getattr(found, criterion)
        interval = dataclasses.replace(getattr(evidence, name), low=low, high=high)
        return dataclasses.replace(found, **{criterion: dataclasses.replace(evidence, **{name: interval})})

    assert decide(with_interval("performs", "share_above_chance", 0.1, 0.4))[0] == "broken"
    assert decide(with_interval("performs", "share_above_chance", 0.4, 0.6))[0] == "inconclusive"
    assert decide(with_interval("disperses", "R", 0.5, 0.7))[0] == "averager"
    straddling = with_interval("disperses", "F", 0.7, 0.9)
    assert decide(straddling) == ("inconclusive", f"F = {straddling.disperses.F} straddles 0.8")
    assert decide(with_interval("outside_the_curve", "area", 0.01, 0.02))[0] == "beyond the curve"
    unknown = dataclasses.replace(found, novel=NotAssessable("nobody knows"))
    assert decide(unknown) == ("not assessable", "nobody knows")


# Copies


@pytest.mark.parametrize(
    ("zoo", "name"),
    [("multi_run", "copies"), ("trajectory", "copies"), ("multi_run", "permuted and rescaled copies")],
)
def test_copies_are_at_distance_zero_of_the_zoo(zoo: str, name: str, request: pytest.FixtureRequest):
    planted: Planted = request.getfixturevalue(zoo)
    novel = planted.answer(name).criteria.novel

    unlike = torch.cdist(planted.samples(name), planted.case.zoo).min() > 1
    assert unlike == (zoo == "multi_run")  # where symmetries hide the copies: aligned, or permuted and rescaled
    assert novel.weights.r.value == pytest.approx(0, abs=1e-5)
    assert novel.weights.r_quantiles == pytest.approx([0, 0, 0], abs=1e-5)
    assert novel.weights.auc.high == pytest.approx(0, abs=1e-5)
    assert novel.functions.r.value == 0
    assert set(novel.novel_and_performant.values()) == {0}


def test_real_checkpoints_lie_as_far_from_the_zoo_as_heldout_ones(multi_run: Planted):
    found = multi_run.answer("real checkpoints").criteria

    assert found.novel.weights.r.value == pytest.approx(1, abs=0.1)
    assert found.novel.weights.heldout_r == pytest.approx(1, abs=0.1)
    assert found.novel.weights.auc.low < 0.5 < found.novel.weights.auc.high
    assert found.disperses.R.value == pytest.approx(1, abs=0.05)
    assert found.disperses.F.value == pytest.approx(1, abs=0.1)
    assert found.performs.share_above_chance.value == pytest.approx(1, abs=0.01)


# Without some of the inputs


@pytest.mark.parametrize(
    ("zoo", "name", "unknown", "word"),
    [
        ("multi_run", "real checkpoints", ["runs", "steps"], "not assessable"),
        ("multi_run", "mean with small noise", ["runs", "steps"], "averager"),
        ("multi_run", "random weights", ["runs", "steps"], "broken"),
        ("trajectory", "copies", ["steps"], "not assessable"),
    ],
)
def test_without_runs_and_steps_novelty_is_not_assessable(
    zoo: str, name: str, unknown: list[str], word: str, request: pytest.FixtureRequest
):
    planted: Planted = request.getfixturevalue(zoo)

    answer = audited(planted.case, planted.samples(name), **dict.fromkeys(unknown))

    assert answer.verdict == word
    assert answer.criteria.novel == NotAssessable("runs and steps of the zoo are not known")


def test_without_heldout_checkpoints_the_zoos_own_distances_stand_in(multi_run: Planted):
    none = {"heldout": None, "heldout_runs": None, "heldout_steps": None}

    copier = audited(multi_run.case, multi_run.samples("permuted and rescaled copies"), **none)
    real = audited(multi_run.case, multi_run.samples("real checkpoints"), **none)

    assert "heldout" not in copier.networks["real"]
    assert copier.criteria.distinguishable.from_heldout is None
    assert copier.criteria.novel.weights.heldout_r == pytest.approx(1)
    assert copier.verdict == "copier"
    assert real.verdict in {"faithful", "Gaussian-equivalent"}


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (1, 5)])
def test_heldout_checkpoints_that_do_not_disagree_do_not_break_the_audit(multi_run: Planted, rows: int, count: int):
    heldout = multi_run.case.heldout[:rows].expand(count, -1)

    real = multi_run.samples("real checkpoints")
    answer = audited(multi_run.case, real, heldout=heldout, heldout_runs=list(range(count)))

    assert answer.verdict in MEANINGS


def test_a_linear_autoencoder_may_be_the_generators_own(multi_run: Planted):
    autoencoder = LinearParameterAutoencoder.from_zoo(multi_run.case.zoo, latent_dim=20)
    with torch.no_grad():
        samples = autoencoder.decode(torch.randn(100, 20, generator=torch.Generator().manual_seed(0))).sample

    answer = audited(multi_run.case, samples, autoencoder=autoencoder)

    assert not answer.criteria.distinguishable.answer  # it is that Gaussian
    assert answer.criteria.distinguishable.energy_p_value > 0.005


def test_fewer_than_two_samples_are_refused(multi_run: Planted):
    with pytest.raises(ValueError, match="at least two samples and two zoo members, but there are 1 and 60"):
        audited(multi_run.case, multi_run.case.unseen[:1])


def test_trajectory_shorter_than_its_correlation_is_not_assessable():
    four = EvaluatedSet(torch.zeros(4, 2), classification, torch.zeros(4, dtype=torch.long), {}, {}, {})
    zoo = Zoo(four, four.parameters, torch.zeros(4, dtype=torch.long), torch.arange(4), length=3, heldout=None)

    evidence = novel(four, zoo, symmetries=None)

    assert evidence == NotAssessable(
        "all checkpoints lie within 3 steps of each other, which is as far as their correlation reaches"
    )


# The evidence


def test_every_criterion_has_its_evidence_in_json_types(multi_run: Planted):
    answer = multi_run.answer("Gaussian")
    evidence = dataclasses.asdict(answer.criteria)

    assert answer.reason
    assert list(evidence) == ["performs", "disperses", "novel", "distinguishable", "outside_the_curve"]
    assert json.loads(json.dumps(evidence, allow_nan=False)) == evidence
    intervals = evidence["performs"]["share_above_chance"], *(evidence["disperses"][name] for name in ("R", "F"))
    assert all(interval["low"] <= interval["high"] for interval in intervals)
    assert set(evidence["disperses"]["R_per_tensor"]) == set(multi_run.case.processor.names)
    assert [row.name for row in answer.curve] == list(answer.networks["baselines"])
    assert any(row.name.startswith("raw/") for row in answer.curve)  # of the zoo that is not aligned
    assert any(row.on_curve for row in answer.curve)


def test_the_first_of_several_settings_gets_the_verdict_and_all_are_weighed(multi_run: Planted):
    real, mean = multi_run.samples("real checkpoints"), multi_run.samples("mean with small noise")

    first_real = audited(multi_run.case, {"1": real, "0": mean})
    first_mean = audited(multi_run.case, {"0": mean, "1": real})

    assert first_real.verdict in {"faithful", "Gaussian-equivalent"}
    assert first_mean.verdict == "averager"
    curves = [answer.criteria.outside_the_curve for answer in (first_real, first_mean)]
    assert curves[0].settings == 2
    assert curves[0].area.value == pytest.approx(curves[1].area.value)
    assert torch.equal(first_real.networks["samples"]["0"].parameters, mean)
    assert torch.equal(first_real.networks["samples"]["1"].parameters, real)


def test_one_seed_gives_one_answer_and_further_sets_take_no_part_in_it(multi_run: Planted):
    samples = multi_run.samples("Gaussian")
    given = [samples, multi_run.case.zoo, multi_run.case.heldout, *multi_run.case.model.state_dict().values()]
    before = [tensor.clone() for tensor in given]

    first = multi_run.answer("Gaussian")
    again = audited(multi_run.case, samples, further={"random": multi_run.samples("random weights")})
    other = audited(multi_run.case, samples, seed=1)

    assert first.criteria == again.criteria
    assert first.curve == again.curve
    assert first.curve != other.curve
    assert len(again.networks["further"]["random"].scores["test"]) == SAMPLES
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(given, before, strict=True))
    assert torch.equal(again.networks["real"]["zoo"].parameters, multi_run.case.zoo)


def test_predictions_are_those_of_plain_forward_passes(multi_run: Planted):
    case = multi_run.case
    zoo = case.zoo[:3]

    groups = {"real": {"first": zoo[:1], "rest": zoo[1:]}}
    evaluated = evaluate_sets(groups, case.model, case.processor, case.images)["real"]["rest"]

    for split, part in (("validation", case.images.validation), ("test", case.images.test)):
        for i, vector in enumerate(zoo[1:]):
            tensors = case.processor.unflatten(vector)
            with torch.no_grad():
                logits = torch.func.functional_call(case.model, tensors, (case.images.inputs(part),)).logits
            assert (evaluated.predictions[split][i] == logits.argmax(1)).double().mean() > 0.99
            accuracy = (logits.argmax(1) == part.labels).double().mean().item()
            assert evaluated.scores[split][i].item() == pytest.approx(accuracy, abs=0.01)
            assert torch.equal(evaluated.wrong[split][i], evaluated.predictions[split][i] != part.labels)
