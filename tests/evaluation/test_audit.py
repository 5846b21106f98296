"""The audit against planted generators: copiers, averages and perfect generators are called what they are."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from planted import Case, multi_run_case, planted_generators, trajectory_case

from pdiff_hf import Audit, LinearParameterAutoencoder, audit, network_predictions
from pdiff_hf.evaluation import criteria as axes

AXES = ["performs", "disperses", "novel", "distinguishable", "outside_the_curve"]
WORDS = {
    "broken",
    "copier",
    "averager",
    "beyond the curve",
    "Gaussian-equivalent",
    "faithful",
    "inconclusive",
    "not assessable",
}
TRAJECTORY_PLANTED = [
    "copies",
    "copies with small noise",
    "mean with small noise",
    "mean with idle noise",
    "interpolation of two",
    "Gaussian",
    "real checkpoints",
    "random weights",
]
MULTI_RUN_PLANTED = [*TRAJECTORY_PLANTED, "permuted and rescaled copies"]
FEW = 20  # networks of each baseline


class Remembering:
    """`network_predictions` that evaluates no network twice: the audits of one case share zoo and baselines."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, bytes], torch.Tensor] = {}

    def __call__(self, model, processor, parameters, pixel_values, labels, progress=False):
        keys = [(len(labels), row.numpy().tobytes()) for row in parameters]
        new = {key: i for i, key in enumerate(keys) if key not in self.known}
        if new:
            rows = parameters[list(new.values())]
            classes, _ = network_predictions(model, processor, rows, pixel_values, labels, progress)
            self.known.update(zip(new, classes, strict=True))
        return torch.stack([self.known[key] for key in keys]), torch.zeros(len(keys))


@pytest.fixture(scope="module")
def remember() -> Iterator[Callable[[], None]]:
    """A function that forgets all predictions and remembers new ones; called once for each case."""
    with pytest.MonkeyPatch.context() as patch:
        yield lambda: patch.setattr(axes, "network_predictions", Remembering())


@pytest.fixture(scope="module")
def multi_run(remember: Callable[[], None]) -> Case:
    remember()
    return multi_run_case(seed=0)


@pytest.fixture(scope="module")
def trajectory(remember: Callable[[], None]) -> Case:
    remember()
    return trajectory_case(seed=0)


def audited(case: Case, samples: torch.Tensor | dict[str, torch.Tensor], **changes) -> Audit:
    return audit(samples, case.zoo, **{**case.arguments(), "num_baseline_models": FEW, **changes})


class Planted:
    """The planted generators of a case by name, each audited once."""

    def __init__(self, case: Case) -> None:
        self.generators = planted_generators(case, seed=0)
        self.answer = functools.cache(lambda name: audited(case, self.generators[name][0]))

    def samples(self, name: str) -> torch.Tensor:
        return self.generators[name][0]


@pytest.fixture(scope="module")
def multi_run_planted(multi_run: Case) -> Planted:
    return Planted(multi_run)


@pytest.fixture(scope="module")
def trajectory_planted(trajectory: Case) -> Planted:
    return Planted(trajectory)


# The word


@pytest.mark.parametrize("name", MULTI_RUN_PLANTED)
def test_on_a_zoo_of_many_runs_each_planted_generator_is_called_what_it_is(multi_run_planted: Planted, name: str):
    answer = multi_run_planted.answer(name)

    assert answer.verdict in multi_run_planted.generators[name][1], answer.axes


@pytest.mark.parametrize("name", TRAJECTORY_PLANTED)
def test_on_a_trajectory_each_planted_generator_is_called_what_it_is(trajectory_planted: Planted, name: str):
    answer = trajectory_planted.answer(name)

    assert answer.verdict in trajectory_planted.generators[name][1], answer.axes


def test_every_planted_generator_is_tried(multi_run_planted: Planted, trajectory_planted: Planted):
    assert sorted(multi_run_planted.generators) == sorted(MULTI_RUN_PLANTED)
    assert sorted(trajectory_planted.generators) == sorted(TRAJECTORY_PLANTED)


@pytest.mark.exhaustive
def test_over_ten_seeds_of_both_cases_nineteen_words_of_twenty_are_right(capsys: pytest.CaptureFixture[str]):
    answers: dict[tuple[str, str], Counter[str]] = {}
    expected: dict[tuple[str, str], set[str]] = {}
    for kind, make in (("many runs", multi_run_case), ("trajectory", trajectory_case)):
        for seed in range(10):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(axes, "network_predictions", Remembering())
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


# Copies


@pytest.mark.parametrize("zoo", ["multi_run_planted", "trajectory_planted"])
def test_copies_are_at_distance_zero_of_the_zoo(zoo: str, request: pytest.FixtureRequest):
    weights = request.getfixturevalue(zoo).answer("copies").axes["novel"]["weights"]

    assert weights["r"]["value"] == pytest.approx(0, abs=1e-5)
    assert weights["r_quantiles"] == pytest.approx([0, 0, 0], abs=1e-5)
    assert weights["auc"]["high"] == 0


def test_permuted_and_rescaled_copies_are_at_distance_zero_of_the_zoo(multi_run: Case, multi_run_planted: Planted):
    copies = multi_run_planted.samples("permuted and rescaled copies")
    novel = multi_run_planted.answer("permuted and rescaled copies").axes["novel"]

    assert torch.cdist(copies, multi_run.zoo).min() > 1  # not to be seen without the symmetries
    assert novel["weights"]["r"]["value"] == pytest.approx(0, abs=1e-5)
    assert novel["weights"]["r_quantiles"] == pytest.approx([0, 0, 0], abs=1e-5)
    assert novel["functions"]["r"]["value"] == 0
    assert set(novel["novel_and_performant"].values()) == {0}


def test_real_checkpoints_lie_as_far_from_the_zoo_as_heldout_ones(multi_run_planted: Planted):
    answer = multi_run_planted.answer("real checkpoints").axes

    assert answer["novel"]["weights"]["r"]["value"] == pytest.approx(1, abs=0.1)
    assert answer["novel"]["weights"]["heldout_r"] == pytest.approx(1, abs=0.1)
    assert answer["novel"]["weights"]["auc"]["low"] < 0.5 < answer["novel"]["weights"]["auc"]["high"]
    assert answer["disperses"]["R"]["value"] == pytest.approx(1, abs=0.05)
    assert answer["disperses"]["F"]["value"] == pytest.approx(1, abs=0.05)
    assert answer["performs"]["share_above_chance"]["value"] == pytest.approx(1, abs=0.01)


# Without some of the inputs


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("copies", {"not assessable"}),
        ("real checkpoints", {"not assessable"}),
        ("mean with small noise", {"averager"}),
        ("random weights", {"broken"}),
    ],
)
def test_without_runs_novelty_is_not_assessable(
    multi_run: Case, multi_run_planted: Planted, name: str, words: set[str]
):
    answer = audited(multi_run, multi_run_planted.samples(name), runs=None, steps=None)

    assert answer.verdict in words
    assert answer.axes["novel"]["assessable"] is False


def test_of_one_run_without_steps_novelty_is_not_assessable(trajectory: Case, trajectory_planted: Planted):
    answer = audited(trajectory, trajectory_planted.samples("copies"), steps=None)

    assert answer.verdict == "not assessable"
    assert "not known" in answer.axes["novel"]["reason"]


def test_without_heldout_checkpoints_the_zoos_own_distances_stand_in(multi_run: Case, multi_run_planted: Planted):
    none = {"heldout": None, "heldout_runs": None, "heldout_steps": None}

    copier = audited(multi_run, multi_run_planted.samples("permuted and rescaled copies"), **none)
    real = audited(multi_run, multi_run_planted.samples("real checkpoints"), **none)

    assert "heldout" not in copier.judged
    assert "from_heldout" not in copier.axes["distinguishable"]
    assert copier.axes["novel"]["weights"]["heldout_r"] == pytest.approx(1)
    assert copier.verdict == "copier"
    assert real.verdict in {"faithful", "Gaussian-equivalent"}


def test_a_linear_autoencoder_may_be_the_generators_own(multi_run: Case, multi_run_planted: Planted):
    autoencoder = LinearParameterAutoencoder.from_zoo(multi_run.zoo, latent_dim=20)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        samples = autoencoder.decode(torch.randn(100, 20, generator=generator)).sample

    answer = audited(multi_run, samples, autoencoder=autoencoder)
    copier = audited(multi_run, multi_run_planted.samples("copies"), autoencoder=autoencoder)

    assert answer.verdict in WORDS
    assert answer.axes["distinguishable"]["answer"] is False  # it is that Gaussian
    assert answer.axes["distinguishable"]["energy_p_value"] > 0.005
    assert copier.verdict == "copier"


# The evidence


def test_every_axis_has_its_evidence_in_json_types(multi_run: Case, multi_run_planted: Planted):
    answer = multi_run_planted.answer("Gaussian")

    def check(value: object) -> None:
        assert isinstance(value, dict | list | str | float | int | bool | None)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
            check(inner)
        if isinstance(value, dict) and set(value) == {"value", "low", "high"}:
            assert value["low"] <= value["high"]

    assert answer.reason
    assert list(answer.axes) == AXES
    check(answer.axes)
    check(answer.curve)
    assert set(answer.axes["disperses"]["R_per_tensor"]) == set(multi_run.processor.names)
    assert {row["name"] for row in answer.curve} == {
        name.removeprefix("baselines/") for name in answer.judged if name.startswith("baselines/")
    }
    assert any(row["on_curve"] for row in answer.curve)


def test_several_settings_are_judged_by_the_first_and_weighed_by_all(multi_run: Case, multi_run_planted: Planted):
    real, mean = multi_run_planted.samples("real checkpoints"), multi_run_planted.samples("mean with small noise")

    first_real = audited(multi_run, {"1": real, "0": mean})
    first_mean = audited(multi_run, {"0": mean, "1": real})

    assert first_real.verdict in {"faithful", "Gaussian-equivalent"}
    assert first_mean.verdict == "averager"
    assert first_real.axes["outside_the_curve"]["settings"] == 2
    assert first_real.axes["outside_the_curve"]["area"]["value"] == pytest.approx(
        first_mean.axes["outside_the_curve"]["area"]["value"]
    )
    assert torch.equal(first_real.judged["samples/0"].parameters, mean)
    assert torch.equal(first_real.judged["samples/1"].parameters, real)


def test_further_sets_are_evaluated_and_take_no_part(multi_run: Case, multi_run_planted: Planted):
    samples = multi_run_planted.samples("Gaussian")

    alone = multi_run_planted.answer("Gaussian")
    beside = audited(multi_run, samples, further={"random": multi_run_planted.samples("random weights")})

    assert beside.axes == alone.axes
    assert len(beside.judged["random"].accuracy["test"]) == 100


def test_one_seed_gives_one_answer(multi_run: Case, multi_run_planted: Planted):
    samples = multi_run_planted.samples("interpolation of two")

    first, again, other = (audited(multi_run, samples, seed=s, num_baseline_models=3) for s in (0, 0, 1))

    assert first.axes == again.axes
    assert first.curve == again.curve
    assert first.curve != other.curve


def test_the_audit_leaves_what_it_is_given_as_it_was(multi_run: Case, multi_run_planted: Planted):
    samples = multi_run_planted.samples("permuted and rescaled copies").clone()
    given = [samples, multi_run.zoo, multi_run.heldout, *multi_run.model.state_dict().values()]
    before = [tensor.clone() for tensor in given]

    answer = audited(multi_run, samples)

    assert all(torch.equal(tensor, kept) for tensor, kept in zip(given, before, strict=True))
    assert torch.equal(answer.judged["zoo"].parameters, multi_run.zoo)
    assert torch.equal(answer.judged["samples/samples"].parameters, samples)


def test_predictions_are_those_of_plain_forward_passes(multi_run: Case):
    zoo = multi_run.zoo[:3]

    judged = axes.judge({"zoo": zoo}, multi_run.processor, multi_run.model, multi_run.images)["zoo"]

    for split, part in (("validation", multi_run.images.validation), ("test", multi_run.images.test)):
        pixel_values = multi_run.images.preprocessing(part.pixels)
        for i, vector in enumerate(zoo):
            tensors = multi_run.processor.unflatten(vector)
            with torch.no_grad():
                predicted = torch.func.functional_call(multi_run.model, tensors, (pixel_values,)).logits.argmax(1)
            assert (judged.predicted[split][i] == predicted).double().mean() > 0.99
            accuracy = (predicted == part.labels).double().mean().item()
            assert judged.accuracy[split][i].item() == pytest.approx(accuracy, abs=0.01)


def test_heldout_checkpoints_that_do_not_disagree_do_not_break_the_audit(multi_run: Case, multi_run_planted: Planted):
    real = multi_run_planted.samples("real checkpoints")

    for count, rows in ((1, multi_run.heldout[:1]), (5, multi_run.heldout[:1].expand(5, -1))):
        answer = audited(multi_run, real, heldout=rows, heldout_runs=list(range(count)))

        assert answer.verdict in WORDS


def test_trajectory_shorter_than_its_correlation_is_not_assessable():
    four = axes.Judged(torch.zeros(4, 2), {}, {})
    run, step, units = torch.zeros(4, dtype=torch.long), torch.arange(4), torch.zeros(4, dtype=torch.long)

    evidence = axes.novel(four, four, None, run, step, 3, units, units, symmetries=None)

    assert evidence["assessable"] is False
    assert "within 3 steps" in evidence["reason"]
