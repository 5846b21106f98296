"""The audit against planted generators: nothing but real networks is praised, and each fault gets its word."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import pytest
import torch
from planted import planted_generators
from planted_zoos import Case, multi_run_case, trajectory_case

from pdiff_hf import Auditor, LinearParameterAutoencoder, NonFiniteParametersError
from pdiff_hf.evaluation.criteria import Evidence, criteria_of
from pdiff_hf.evaluation.evaluated import evaluate_sets
from pdiff_hf.evaluation.evidence import NotAssessable
from pdiff_hf.evaluation.intervals import Interval, bootstrap, share_interval, weighted_pair_mean
from pdiff_hf.evaluation.measures import rare, within
from pdiff_hf.evaluation.novelty import pairwise_distances
from pdiff_hf.evaluation.report import without_nan
from pdiff_hf.evaluation.verdict import MEANINGS, decide
from pdiff_hf.pipelines.numbers import interval as in_metrics
from pdiff_hf.targets.processing_parameters import LayoutError
from pdiff_hf.targets.statistics import OwnStatistics

FEW = 30  # networks of each baseline
SAMPLES = 60
TRAJECTORY_PLANTED = ["real checkpoints", "copies", "copies with idle noise", "mean with small noise", "Gaussian"]
TRAJECTORY_PLANTED += ["five real runs repeated", "ten real runs repeated with noise", "random weights"]
TRAJECTORY_PLANTED += ["real checkpoints shifted idly"]
MULTI_RUN_PLANTED = [*TRAJECTORY_PLANTED, "copies with small noise", "permuted and rescaled copies"]
MULTI_RUN_PLANTED += ["a fifth random, else real", "better real checkpoints", "unit crossover", "averages of 4"]
MULTI_RUN_PLANTED += ["averages tuned to R = F = 1", "Gaussian, 3 times the spread", "half copies, half real"]


class Planted:
    """A case with its planted generators by name, each audited once."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.generators = planted_generators(case, seed=0, count=SAMPLES)
        self.auditor = self.auditor_with()
        self.answer = functools.cache(lambda name: self.auditor.audit(self.samples(name)))

    def auditor_with(self, **changes) -> Auditor:
        return Auditor(self.case.zoo, **{**self.case.arguments(), "num_baseline_models": FEW, **changes})

    def samples(self, name: str) -> torch.Tensor:
        return self.generators[name][0]


@pytest.fixture(scope="module")
def multi_run() -> Planted:
    return Planted(multi_run_case(seed=0, runs=320, steps=200))


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


def changed(evidence: Evidence, part: str, **figures) -> Evidence:
    return dataclasses.replace(evidence, **{part: dataclasses.replace(getattr(evidence, part), **figures)})


def test_the_verdict_follows_the_order_of_precedence(multi_run: Planted):
    real = multi_run.answer("real checkpoints").evidence

    def word(evidence: Evidence) -> str:
        return decide(evidence, criteria_of(evidence))[0]

    low = Interval(0.6, 0.5, 0.7)
    alike = changed(real, "disperses", R=low)
    copies = dataclasses.replace(real.novel, weights=dataclasses.replace(real.novel.weights, copies=SAMPLES))
    assert word(real) == "faithful"
    assert word(changed(real, "performs", share_above_chance=Interval(0.3, 0.1, 0.4))) == "broken"
    assert word(changed(alike, "performs", broken=20)) == "partly broken"
    assert word(dataclasses.replace(alike, novel=copies)) == "averager"  # no copies by the strict limit
    assert word(dataclasses.replace(real, novel=copies)) == "copier"
    assert word(changed(alike, "performs", share_above_chance=low)) == "averager"
    assert word(changed(real, "performs", share_above_chance=low)) == "worse than real"
    assert word(changed(real, "disperses", F_at_equal_errors=Interval(1.5, 1.4, 1.6))) == "off the zoo"
    assert word(changed(real, "distinguishable", answer=False)) == "Gaussian-equivalent"
    assert word(changed(real, "performs", share_above_chance=Interval(1.05, 1.03, 1.07))) == "better than real"
    straddling = changed(real, "disperses", R=Interval(0.8, 0.7, 0.9))
    assert decide(straddling, criteria_of(straddling)) == ("inconclusive", "R 0.80 [0.70, 0.90]: undecided")
    unknown = dataclasses.replace(real, novel=NotAssessable("nothing is known"))
    assert decide(unknown, criteria_of(unknown)) == ("not assessable", "nothing is known")


@pytest.mark.parametrize("count", [2, 5, 20])
def test_few_real_samples_are_not_praised_and_few_copies_are_still_copies(multi_run: Planted, count: int):
    real = multi_run.auditor.audit(multi_run.samples("real checkpoints")[:count])
    copies = multi_run.auditor.audit(multi_run.samples("copies")[:count])

    assert real.verdict == "inconclusive"
    assert (f"(no interval: too few samples: {count})" in real.reason) == (count < 10)
    assert copies.verdict in ({"copier", "copier in part"} if count < 20 else {"copier"})


def test_one_sample_out_of_all_bounds_does_not_move_the_verdict(multi_run: Planted):
    samples = multi_run.samples("real checkpoints").clone()
    samples[7] = 1e20

    answer = multi_run.auditor.audit(samples)

    assert answer.verdict == "faithful"
    assert answer.evidence.performs.broken == 1


def test_samples_that_are_not_finite_are_refused_or_counted_as_broken(multi_run: Planted):
    samples = multi_run.samples("real checkpoints").clone()
    samples[:12, 5] = math.nan

    with pytest.raises(NonFiniteParametersError):
        multi_run.auditor.audit(samples)
    answer = multi_run.auditor.audit(samples, drop_broken=True)

    assert answer.verdict == "partly broken"
    assert (answer.evidence.performs.broken, answer.evidence.performs.total) == (12, SAMPLES)
    with pytest.raises(LayoutError):
        multi_run.auditor.audit(samples[:, :-1])


# Measures


def test_a_measure_passes_or_fails_only_with_its_whole_interval():
    def status(low: float, high: float) -> str:
        return within("R", Interval((low + high) / 2, low, high), least=0.8, most=1.25).status

    assert status(0.85, 1.2) == "passed"
    assert status(0.5, 0.75) == status(1.3, 1.4) == "failed"
    assert status(0.7, 0.9) == status(1.2, 1.3) == status(0.5, 2) == status(math.nan, math.nan) == "undecided"


def test_shares_of_rare_samples_need_numbers_to_pass_and_to_fail():
    assert rare("copies", 0, 20, 0.0).status == "undecided"
    assert rare("copies", 0, 50, 0.0).status == rare("copies", 1, 50, 0.0).status == "passed"
    assert rare("copies", 5, 50, 0.0).status == rare("copies", 2, 2, 0.0).status == "failed"
    assert rare("copies", 10, 100, 0.1).status == "passed"  # as many as real networks have
    assert share_interval(0, 50).high == pytest.approx(1 - 0.025 ** (1 / 50))


def test_an_interval_that_cannot_be_had_says_why_in_words():
    squares = pairwise_distances(*2 * (torch.randn(20, 3, generator=torch.Generator().manual_seed(0)),))
    halves = torch.arange(20) // 10

    found = bootstrap(lambda w: weighted_pair_mean(squares, w, halves), halves)
    nothing = bootstrap(lambda w: weighted_pair_mean(squares, w, 0 * halves), 0 * halves)

    assert str(found) == f"{found.value:.2f} (no interval: too few independent runs, blocks or samples: 2)"
    assert str(nothing) == "- (no interval: too few independent runs, blocks or samples: 1)"
    assert within("R", found, None, 0.1, 10.0).status == "undecided"
    as_json = without_nan(dataclasses.asdict(found))
    assert in_metrics(as_json) == str(found)
    assert in_metrics({"value": 1.0, "low": 0.5, "high": 2.0}) == "1.00 [0.50, 2.00]"  # as older files have it
    assert in_metrics({"value": 1.0, "low": None, "high": None}) == "1.00 (no interval)"


@pytest.mark.parametrize("count", [50, 100])
def test_intervals_of_spreads_cover_the_truth(count: int):
    """R of equal distributions is 1: of many dimensions, where a bootstrap that pairs a row with itself is biased."""
    covered = []
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        scale = torch.linspace(0.2, 2, 300)
        sets = [torch.randn(n, 300, generator=generator) * scale for n in (count, 150)]
        squares, zoo_squares = (pairwise_distances(x, x) ** 2 for x in sets)

        def ratio(w: torch.Tensor, v: torch.Tensor, ours=squares, theirs=zoo_squares) -> torch.Tensor:
            return (weighted_pair_mean(ours, w) / weighted_pair_mean(theirs, v)).sqrt()

        interval = bootstrap(ratio, torch.arange(count), torch.arange(150))
        covered.append(interval.low <= 1 <= interval.high)

    assert sum(covered) >= 90


# Copies


@pytest.mark.parametrize(
    ("zoo", "name"),
    [("multi_run", "copies"), ("trajectory", "copies"), ("multi_run", "permuted and rescaled copies")],
)
def test_copies_are_at_distance_zero_of_the_zoo(zoo: str, name: str, request: pytest.FixtureRequest):
    planted: Planted = request.getfixturevalue(zoo)
    novel = planted.answer(name).evidence.novel

    unlike = torch.cdist(planted.samples(name), planted.case.zoo).min() > 1
    assert unlike == (zoo == "multi_run")  # where symmetries hide the copies: aligned, or permuted and rescaled
    assert novel.weights.r.value == pytest.approx(0, abs=1e-5)
    assert novel.weights.r_quantiles == pytest.approx([0, 0, 0], abs=1e-5)
    assert novel.weights.auc.high == pytest.approx(0, abs=1e-5)
    assert novel.functions.r.value == pytest.approx(0, abs=1e-3)
    assert set(novel.novel_and_performant.values()) == {0}


def test_copies_that_moved_where_nothing_changes_are_found_by_their_function(multi_run: Planted):
    found = multi_run.answer("copies with idle noise").evidence.novel

    assert found.weights.r.low > 1
    assert found.functions.copies == SAMPLES


def test_real_checkpoints_lie_as_far_from_the_zoo_as_heldout_ones(multi_run: Planted):
    found = multi_run.answer("real checkpoints").evidence

    for space in (found.novel.weights, found.novel.functions):
        assert space.r.value == pytest.approx(1, abs=0.2)
        assert space.heldout_r == pytest.approx(1, abs=0.2)
        assert abs(space.rank_statistic) < 3
        assert abs(space.heldout_rank_statistic) < 3
    assert found.disperses.R.value == pytest.approx(1, abs=0.05)
    assert found.disperses.R_leading.value == pytest.approx(1, abs=0.15)
    assert found.disperses.F_at_equal_errors.value == pytest.approx(1, abs=0.15)
    assert found.performs.share_above_chance.value == pytest.approx(1, abs=0.02)


def test_duplicates_in_the_zoo_hide_no_copies(multi_run: Planted):
    symmetries = multi_run.auditor.reference.symmetries
    members = multi_run.case.zoo[:60]
    hidden = symmetries.transform(members, torch.Generator().manual_seed(0))
    zoo = torch.cat([members, members, hidden])
    known = {**multi_run.case.arguments(), "runs": list(range(180)), "num_baseline_models": FEW}

    auditor = Auditor(zoo, **known)

    assert auditor.audit(zoo[:SAMPLES]).verdict == "copier"
    assert auditor.audit(multi_run.samples("real checkpoints")).verdict == "faithful"
    assert len(auditor.reference.zoo.units.unique()) == 60


def test_real_networks_are_not_below_a_range_that_few_distinct_members_leave_uncertain():
    case = multi_run_case(seed=3, duplicates=0.6)

    auditor = Auditor(case.zoo, **{**case.arguments(), "num_baseline_models": 2})

    below = auditor.audit(case.unseen).criteria["works"].measures["below"]
    assert below.status == "passed", below.value


def test_heldout_checkpoints_that_the_zoo_holds_do_not_count(multi_run: Planted):
    case = multi_run.case
    heldout = torch.cat([case.heldout, case.zoo[:30]])

    auditor = multi_run.auditor_with(heldout=heldout, heldout_runs=list(range(1000, 1000 + len(heldout))))

    assert len(auditor.reference.heldout) == len(case.heldout)
    assert auditor.audit(multi_run.samples("copies")).verdict == "copier"


def test_runs_of_heldout_checkpoints_are_found_by_their_distance():
    case = multi_run_case(seed=1, runs=60, steps=150, kept=3)

    auditor = Auditor(case.zoo, **{**case.arguments(), "heldout_runs": None, "num_baseline_models": 2})

    assert auditor.reference.heldout.units.tolist() == [i for i in range(7) for _ in range(3)]


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

    answer = planted.auditor_with(**dict.fromkeys(unknown)).audit(planted.samples(name))

    assert answer.verdict == word
    assert answer.evidence.novel == NotAssessable("runs and steps of the zoo are not known")


def test_without_heldout_checkpoints_the_zoos_own_distances_stand_in(multi_run: Planted):
    bare = multi_run.auditor_with(heldout=None, heldout_runs=None, heldout_steps=None)

    copier = bare.audit(multi_run.samples("permuted and rescaled copies"))
    real = bare.audit(multi_run.samples("real checkpoints"))

    assert "heldout" not in copier.networks["real"]
    assert copier.evidence.distinguishable.from_heldout is None
    assert copier.evidence.novel.weights.heldout_r == pytest.approx(1, abs=0.1)
    assert copier.verdict == "copier"
    assert real.verdict == "faithful"


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (1, 5)])
def test_heldout_checkpoints_that_do_not_disagree_do_not_break_the_audit(multi_run: Planted, rows: int, count: int):
    heldout = multi_run.case.heldout[:rows].expand(count, -1)

    real = multi_run.samples("real checkpoints")
    answer = multi_run.auditor_with(heldout=heldout, heldout_runs=list(range(count))).audit(real)

    assert answer.verdict in MEANINGS


def test_a_linear_autoencoder_may_be_the_generators_own(multi_run: Planted):
    autoencoder = LinearParameterAutoencoder.from_zoo(multi_run.case.zoo, latent_dim=20)
    with torch.no_grad():
        samples = autoencoder.decode(torch.randn(100, 20, generator=torch.Generator().manual_seed(0))).sample

    answer = multi_run.auditor_with(autoencoder=autoencoder).audit(samples)

    assert not answer.evidence.distinguishable.answer  # it is that Gaussian
    assert answer.evidence.distinguishable.energy_p_value > 0.005


def test_fewer_than_two_samples_are_refused(multi_run: Planted):
    with pytest.raises(ValueError, match="at least two samples, but there are 1"):
        multi_run.auditor.audit(multi_run.case.unseen[:1])
    with pytest.raises(ValueError, match="at least two zoo members, but there is 1"):
        Auditor(multi_run.case.zoo[:1], **multi_run.case.arguments())


class Drift:
    """Checkpoints that drift along a line and never settle: however many, few of them are independent."""

    def __init__(self, case: Case) -> None:
        self.start, self.way = case.zoo[0], case.zoo[-1] - case.zoo[0]
        self.noise = 0.02 * self.way.norm() / len(self.way) ** 0.5
        steps = list(range(0, 1000, 10))
        known = {"runs": ["trajectory"] * 100, "steps": steps, "num_baseline_models": 10}
        heldout = {"heldout": self.at(50, 1), "heldout_runs": ["trajectory"] * 50, "heldout_steps": steps[::2]}
        self.auditor = Auditor(self.at(100, 0), **{**case.arguments(), **known, **heldout})

    def at(self, count: int, seed: int) -> torch.Tensor:
        """Returns checkpoints `(count, D)` from all over the way."""
        return self.start + torch.linspace(0, 1, count)[:, None] * self.way + self.jitter(count, seed)

    def jitter(self, count: int, seed: int) -> torch.Tensor:
        return self.noise * torch.randn(count, len(self.way), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def drift(trajectory: Planted) -> Drift:
    return Drift(trajectory.case)


def test_trajectory_of_few_independent_blocks_decides_no_praise_and_says_why(drift: Drift):
    answer = drift.auditor.audit(drift.at(50, 2))

    assert answer.verdict == "inconclusive"
    assert answer.reason.startswith("too few independent blocks: 2, at least 5 are needed; collect a longer")
    assert answer.criteria["spreads"].measures["R"].status == "undecided"
    assert "too few independent blocks: 2" in str(answer.criteria["spreads"])
    assert "nan" not in " ".join(map(str, answer.criteria.values()))


def test_faults_are_found_on_few_independent_blocks_too(drift: Drift):
    real = drift.at(50, 2)

    assert drift.auditor.audit(drift.at(100, 0)[:60]).verdict == "copier"
    assert drift.auditor.audit(real.mean(0) + drift.jitter(50, 3)).verdict == "averager"
    assert drift.auditor.audit(real[::10].repeat(10, 1)).verdict == "repeats itself"


def test_more_checkpoints_of_one_trajectory_than_are_held_out_are_not_repeated(drift: Drift):
    """They lie denser than those that are held out, as any set of as many does."""
    found = drift.auditor.audit(drift.at(150, 2)).evidence.novel

    assert (found.weights.repeated, found.functions.repeated) == (0, 0)


def test_trajectory_shorter_than_its_correlation_is_not_assessable(trajectory: Planted):
    case = trajectory.case
    few = slice(4)

    known = {**case.arguments(), "runs": case.runs[few], "steps": case.steps[few], "num_baseline_models": 2}
    answer = Auditor(case.zoo[few], **known).audit(trajectory.samples("real checkpoints"))

    assert answer.evidence.novel.reason.startswith("all checkpoints lie within ")
    assert answer.criteria["new"].status == "not assessable"


# The evidence


def test_every_criterion_has_its_evidence_in_json_types(multi_run: Planted):
    answer = multi_run.answer("Gaussian")
    evidence = dataclasses.asdict(answer.evidence)

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

    first_real = multi_run.auditor.audit({"1": real, "0": mean})
    first_mean = multi_run.auditor.audit({"0": mean, "1": real})

    assert first_real.verdict == "faithful"
    assert first_mean.verdict == "averager"
    curves = [answer.evidence.outside_the_curve for answer in (first_real, first_mean)]
    assert curves[0].settings == curves[1].settings == 1
    assert curves[0].area.value > curves[1].area.value
    assert torch.equal(first_real.networks["samples"]["0"].parameters, mean)
    assert torch.equal(first_real.networks["samples"]["1"].parameters, real)


def test_one_seed_gives_one_answer_and_further_sets_take_no_part_in_it(multi_run: Planted):
    samples = multi_run.samples("Gaussian")
    given = [samples, multi_run.case.zoo, multi_run.case.heldout, *multi_run.case.model.state_dict().values()]
    before = [tensor.clone() for tensor in given]

    first = multi_run.answer("Gaussian")
    again = multi_run.auditor_with().audit(samples, further={"random": multi_run.samples("random weights")})
    other = multi_run.auditor_with(seed=1).audit(samples)

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
    evaluated = evaluate_sets(groups, OwnStatistics(case.model, case.processor, case.images))["real"]["rest"]

    for split, part in (("validation", case.images.validation), ("test", case.images.test)):
        for i, vector in enumerate(zoo[1:]):
            tensors = case.processor.unflatten(vector)
            with torch.no_grad():
                logits = torch.func.functional_call(case.model, tensors, (case.images.inputs(part),)).logits
            assert (evaluated.predictions[split][i] == logits.argmax(1)).double().mean() > 0.99
            accuracy = (logits.argmax(1) == part.labels).double().mean().item()
            assert evaluated.scores[split][i].item() == pytest.approx(accuracy, abs=0.01)
            assert torch.equal(evaluated.wrong[split][i], evaluated.predictions[split][i] != part.labels)
