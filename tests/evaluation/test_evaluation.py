"""Metrics against brute force, baselines against their definition, and the report of a whole evaluation."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import build
from diffusers.models.autoencoders.vae import DecoderOutput
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from transformers import PreTrainedModel

from pdiff_hf import (
    Checkpoints,
    CheckpointSplit,
    ImageData,
    LinearParameterAutoencoder,
    PDiffPipeline,
    Recipe,
    load_images,
    network_predictions,
)
from pdiff_hf.evaluation import (
    Evaluation,
    accuracy_statistics,
    average,
    averages,
    dispersion,
    evaluate,
    gaussian_codes,
    gaussian_diagonal,
    gaussian_full,
    iou,
    max_similarity,
    mean_pairwise_disagreement,
    mean_pairwise_iou,
    metrics_table,
    summarize,
    swept_baselines,
    write_report,
)
from pdiff_hf.evaluation.card import add_report
from pdiff_hf.evaluation.evaluator import TEMPERATURES
from pdiff_hf.evaluation.report import baselines_table
from pdiff_hf.fitting.pipeline import describe_fit
from pdiff_hf.folders import write_json
from pdiff_hf.hub.cards import PICTURES
from pdiff_hf.loops import seeded
from pdiff_hf.pipelines.card import MEANINGS, write_pipeline_card

SETS = [
    "zoo",
    "heldout",
    "average",
    "averages_16",
    "gaussian_diagonal",
    "gaussian_full",
    "gaussian_codes",
    "noise",
    "generated",
]


# Brute force


def brute_iou(wrong: np.ndarray, other: np.ndarray) -> float:
    a, b = set(np.flatnonzero(wrong)), set(np.flatnonzero(other))
    return len(a & b) / len(a | b) if a | b else 1.0


@st.composite
def two_masks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    n, k, images = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(1, 12))
    return draw(arrays(bool, (n, images))), draw(arrays(bool, (k, images)))


@given(two_masks())
def test_iou_is_intersection_over_union_of_every_pair(masks: tuple[np.ndarray, np.ndarray]):
    a, b = masks

    similarity = iou(torch.from_numpy(a), torch.from_numpy(b))

    expected = torch.tensor([[brute_iou(x, y) for y in b] for x in a])
    torch.testing.assert_close(similarity, expected)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8)))
def test_mean_pairwise_iou_is_the_mean_over_distinct_pairs(wrong: np.ndarray):
    similarity = mean_pairwise_iou(torch.from_numpy(wrong))

    if len(wrong) == 1:
        assert similarity is None
    else:
        pairs = [brute_iou(a, b) for a, b in itertools.combinations(wrong, 2)]
        assert similarity == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)


@given(two_masks(), st.randoms(use_true_random=False))
def test_max_similarity_is_the_largest_that_is_not_excluded(masks: tuple[np.ndarray, np.ndarray], random):
    wrong, zoo_wrong = masks
    excluded = np.array([[random.random() < 0.4 for _ in zoo_wrong] for _ in wrong])

    nearest = max_similarity(torch.from_numpy(wrong), torch.from_numpy(zoo_wrong))
    allowed = max_similarity(torch.from_numpy(wrong), torch.from_numpy(zoo_wrong), torch.from_numpy(excluded))

    for i, row in enumerate(wrong):
        similarities = [brute_iou(row, other) for other in zoo_wrong]
        assert nearest[i].item() == pytest.approx(max(similarities))
        left = [value for value, out in zip(similarities, excluded[i], strict=True) if not out]
        assert allowed[i].item() == pytest.approx(max(left, default=0.0))


@given(arrays(np.int64, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8), elements=st.integers(0, 3)))
def test_mean_pairwise_disagreement_is_the_mean_over_pairs_and_images(predicted: np.ndarray):
    disagreement = mean_pairwise_disagreement(torch.from_numpy(predicted))

    if len(predicted) == 1:
        assert disagreement is None
    else:
        pairs = [(a != b).mean() for a, b in itertools.combinations(predicted, 2)]
        assert disagreement == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)


finite = st.floats(-10, 10, width=32)


@given(
    arrays(np.float32, st.tuples(st.integers(2, 6), st.just(3)), elements=finite),
    arrays(np.float32, st.tuples(st.integers(2, 6), st.just(3)), elements=finite),
)
def test_dispersion_is_the_root_of_the_ratio_of_traces(samples: np.ndarray, zoo: np.ndarray):
    zoo[0, 0] += 100.0  # a zoo has at least two distinct vectors

    r = dispersion(torch.from_numpy(samples), torch.from_numpy(zoo))

    def trace(vectors: np.ndarray) -> float:
        return float(np.trace(np.cov(vectors.T.astype(np.float64))))

    assert r == pytest.approx(math.sqrt(trace(samples) / trace(zoo)), rel=1e-6, abs=1e-9)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8)))
def test_accuracy_statistics_are_those_of_the_share_of_right_predictions(wrong: np.ndarray):
    statistics = accuracy_statistics(torch.from_numpy(wrong))

    accuracy = 1 - wrong.mean(1)
    expected = {
        "mean": accuracy.mean(),
        "std": accuracy.std(ddof=1) if len(accuracy) > 1 else 0.0,
        "min": accuracy.min(),
        "max": accuracy.max(),
    }
    assert statistics == pytest.approx(expected, abs=1e-9)


# Limits


def test_identical_networks_are_similar_and_never_disagree():
    predicted = torch.randint(4, (1, 30), generator=torch.Generator().manual_seed(0)).expand(5, -1)
    wrong = predicted != 0

    assert mean_pairwise_iou(wrong) == pytest.approx(1.0)
    assert mean_pairwise_disagreement(predicted) == 0
    assert torch.equal(max_similarity(wrong, wrong), torch.ones(5))
    assert dispersion(torch.ones(5, 3), torch.randn(4, 3)) == 0


def test_networks_without_any_error_have_similarity_one():
    faultless = torch.zeros(3, 10, dtype=torch.bool)

    assert torch.equal(iou(faultless, faultless), torch.ones(3, 3))
    assert mean_pairwise_iou(faultless) == 1
    assert torch.equal(iou(faultless, ~faultless), torch.zeros(3, 3))


def test_a_single_network_has_no_spread():
    assert dispersion(torch.randn(1, 4), torch.randn(5, 4)) == 0
    assert mean_pairwise_iou(torch.ones(1, 4, dtype=torch.bool)) is None
    assert mean_pairwise_disagreement(torch.zeros(1, 4, dtype=torch.long)) is None


def test_the_zoo_has_dispersion_one():
    zoo = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))

    assert dispersion(zoo, zoo) == pytest.approx(1.0)
    assert dispersion(3 * zoo + 5, zoo) == pytest.approx(3.0)


# Baselines


@pytest.fixture
def zoo() -> torch.Tensor:
    """Twelve vectors of six numbers that are correlated and far from 0."""
    generator = torch.Generator().manual_seed(0)
    return 3 + torch.randn(12, 6, generator=generator) @ torch.randn(6, 6, generator=generator)


def seeded_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_codes(zoo: torch.Tensor) -> LinearParameterAutoencoder:
    return LinearParameterAutoencoder.from_zoo(zoo, explained_variance=1.0)


def baselines_of(zoo: torch.Tensor) -> dict:
    return {
        "average": average,
        "averages": partial(averages, k=3),
        "gaussian_diagonal": gaussian_diagonal,
        "gaussian_full": gaussian_full,
        "gaussian_codes": partial(gaussian_codes, autoencoder=all_codes(zoo)),
    }


def test_no_baseline_writes_to_the_zoo(zoo: torch.Tensor):
    before = zoo.clone()

    drawn = {name: baseline(zoo, 5, seeded_generator()) for name, baseline in baselines_of(zoo).items()}
    for samples in drawn.values():
        samples.zero_()  # nor is what it returns the zoo's memory

    assert torch.equal(zoo, before)


def test_a_seed_decides_what_a_baseline_draws(zoo: torch.Tensor):
    for name, baseline in baselines_of(zoo).items():
        samples = baseline(zoo, 5, seeded_generator(1))

        assert samples.shape == ((1, 6) if name == "average" else (5, 6)), name
        assert torch.equal(samples, baseline(zoo, 5, seeded_generator(1))), name
        if name != "average":
            assert not torch.equal(samples, baseline(zoo, 5, seeded_generator(2))), name


def test_the_average_is_the_mean_of_all_checkpoints(zoo: torch.Tensor):
    torch.testing.assert_close(average(zoo, 9, seeded_generator()), zoo.mean(0, keepdim=True))


@pytest.mark.parametrize("k", [1, 3, 12])
def test_averages_are_means_of_k_distinct_checkpoints(zoo: torch.Tensor, k: int):
    # Powers of two show in the sum which checkpoints were taken, and how often.
    marked = torch.cat([zoo, 2.0 ** torch.arange(12)[:, None]], dim=1)

    samples = averages(marked, 20, seeded_generator(), k=k)

    for sample in samples:
        taken = [i for i in range(12) if round(k * sample[-1].item()) >> i & 1]
        assert len(taken) == k
        torch.testing.assert_close(sample, marked[taken].mean(0))


def test_averages_of_k_spread_by_the_root_of_k_less():
    zoo = torch.randn(400, 30, generator=seeded_generator())

    samples = averages(zoo, 400, seeded_generator(1), k=16)

    assert dispersion(samples, zoo) == pytest.approx(0.25, rel=0.05)


def test_the_full_gaussian_has_the_covariance_of_the_zoo(zoo: torch.Tensor):
    samples = gaussian_full(zoo, 100_000, seeded_generator())

    expected = torch.cov(zoo.T)
    scale = expected.diagonal().mean().item()
    torch.testing.assert_close(torch.cov(samples.T), expected, atol=0.03 * scale, rtol=0)
    torch.testing.assert_close(samples.mean(0), zoo.mean(0), atol=0.03 * scale**0.5, rtol=0)


def test_the_diagonal_gaussian_has_the_variances_of_the_zoo_and_no_covariance(zoo: torch.Tensor):
    samples = gaussian_diagonal(zoo, 100_000, seeded_generator())

    expected = torch.diag(zoo.var(0))
    scale = zoo.var(0).mean().item()
    torch.testing.assert_close(torch.cov(samples.T), expected, atol=0.03 * scale, rtol=0)


@pytest.mark.parametrize("baseline", [gaussian_diagonal, gaussian_full])
def test_the_scale_of_a_gaussian_multiplies_its_deviation(zoo: torch.Tensor, baseline):
    whole = baseline(zoo, 50, seeded_generator())
    half = baseline(zoo, 50, seeded_generator(), scale=0.5)

    torch.testing.assert_close(half - zoo.mean(0), 0.5 * (whole - zoo.mean(0)), atol=1e-5, rtol=1e-5)


def test_the_gaussian_in_all_linear_codes_is_the_full_gaussian(zoo: torch.Tensor):
    autoencoder = all_codes(zoo)
    assert autoencoder.config.latent_dim == 6

    in_codes = gaussian_codes(zoo, 1000, seeded_generator(), autoencoder=autoencoder)

    full = gaussian_full(zoo, 1000, seeded_generator())
    torch.testing.assert_close(in_codes, full, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cov(in_codes.T), torch.cov(full.T), atol=1e-3, rtol=1e-3)


def test_the_gaussian_in_few_codes_spreads_as_far_as_they_explain(zoo: torch.Tensor):
    autoencoder = LinearParameterAutoencoder.from_zoo(zoo, latent_dim=2)

    samples = gaussian_codes(zoo, 20_000, seeded_generator(), autoencoder=autoencoder)

    variance = torch.linalg.eigvalsh(torch.cov(zoo.double().T)).flip(0)
    expected = (variance[:2].sum() / variance.sum()).sqrt().item()
    assert dispersion(samples, zoo) == pytest.approx(expected, rel=0.03)


# The whole evaluation


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits", image_size=8)


@pytest.fixture(scope="module")
def trained(digits: ImageData) -> dict[str, torch.Tensor]:
    """Weights of the small MLP that classify most digits."""
    network = build("mlp")
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    pixel_values = digits.preprocessing(digits.train.pixels)
    with seeded(0):
        for _ in range(150):
            optimizer.zero_grad()
            network(pixel_values, digits.train.labels).loss.backward()
            optimizer.step()
    return network.state_dict()


@pytest.fixture
def mlp(trained: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Stands in for the untrained one of the same name: a zoo that performs no better than chance is no zoo."""
    network = build("mlp")
    network.load_state_dict(trained)
    return network


measure = partial(evaluate, num_baseline_models=6)


@pytest.fixture
def evaluation(tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, digits: ImageData) -> Evaluation:
    return measure(tiny_pipeline, tiny_checkpoints, digits, num_models=6)


@pytest.fixture
def fitted(tiny_checkpoints: Checkpoints, tiny_recipe: Recipe) -> dict:
    """Beginning of a `metrics.json`, as the second script writes it."""
    stages = {"autoencoder": (tiny_recipe.autoencoder, 0.5), "denoiser": (tiny_recipe.denoiser, 2.0)}
    notes = {role: {"settings": asdict(stage), "seconds": s} for role, (stage, s) in stages.items()}
    return describe_fit(tiny_checkpoints, **notes)


def strict(text: str) -> dict:
    """Parses JSON as the standard has it: without NaN and infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_every_set_is_measured_on_both_splits(evaluation: Evaluation):
    counts = {"zoo": 24, "heldout": 8, "average": 1}

    assert set(evaluation.sets) == set(SETS)
    assert evaluation.judged.keys() == evaluation.sets.keys()
    for name, figures in evaluation.sets.items():
        for split in ("validation", "test"):
            measured = figures[split]
            assert measured["n"] == counts.get(name, 6) == len(evaluation.judged[name].parameters)
            assert set(measured["accuracy"]) == {"mean", "std", "min", "max"}
            assert 0 <= measured["accuracy"]["min"] <= measured["accuracy"]["mean"] <= measured["accuracy"]["max"] <= 1
            assert 0 <= measured["max_similarity"] <= 1
            assert (measured["iou"] is None) == (name == "average")
        assert (
            len(evaluation.judged[name].accuracy["test"])
            == len(evaluation.max_similarity[name])
            == counts.get(name, 6)
        )


def test_test_figures_are_those_of_plain_forward_passes(
    evaluation: Evaluation, tiny_pipeline: PDiffPipeline, digits: ImageData
):
    pixel_values = digits.preprocessing(digits.test.pixels)
    network = copy.deepcopy(tiny_pipeline.target_model)

    accuracy = []
    for vector in evaluation.judged["generated"].parameters:
        tiny_pipeline.processor.load_into(network, vector)
        with torch.no_grad():
            predicted = network(pixel_values).logits.argmax(1)
        accuracy.append((predicted == digits.test.labels).double().mean().item())

    assert evaluation.judged["generated"].accuracy["test"].tolist() == pytest.approx(
        accuracy, abs=2.5 / len(digits.test)
    )
    mean = evaluation.sets["generated"]["test"]["accuracy"]["mean"]
    assert mean == pytest.approx(sum(accuracy) / len(accuracy), abs=2.5 / len(digits.test))


def test_the_zoo_spreads_as_itself_and_the_average_not_at_all(evaluation: Evaluation):
    assert evaluation.sets["zoo"]["dispersion"]["R"] == pytest.approx(1.0)
    assert evaluation.sets["heldout"]["dispersion"]["F"] == pytest.approx(1.0)
    assert evaluation.sets["average"]["dispersion"] == {"R": 0.0, "F": 0.0}


def test_the_evaluation_leaves_zoo_and_pipeline_as_they_were(
    tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, digits: ImageData
):
    vectors = {name: zoo.parameters.clone() for name, zoo in tiny_checkpoints.splits.items()}
    target = {name: tensor.clone() for name, tensor in tiny_pipeline.target_model.state_dict().items()}

    measure(tiny_pipeline, tiny_checkpoints, digits, num_models=3)

    for name, zoo in tiny_checkpoints.splits.items():
        assert torch.equal(zoo.parameters, vectors[name])
    for name, tensor in tiny_pipeline.target_model.state_dict().items():
        assert torch.equal(tensor, target[name])


def test_one_seed_measures_the_same_and_another_seed_other_samples(
    tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, digits: ImageData
):
    first, again, other = (measure(tiny_pipeline, tiny_checkpoints, digits, num_models=3, seed=s) for s in (0, 0, 1))

    assert first.sets == again.sets
    assert torch.equal(first.judged["zoo"].parameters, other.judged["zoo"].parameters)
    for name in ("generated", "averages_16", "gaussian_diagonal", "gaussian_full", "gaussian_codes"):
        assert not torch.equal(first.judged[name].parameters, other.judged[name].parameters), name


def test_heldout_checkpoints_of_other_runs_are_a_set_of_their_own(
    tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, digits: ImageData
):
    test = tiny_checkpoints.splits["test"]
    test.run = ["run-0", "run-1", "branch-1"] * 2 + ["run-0", "branch-1"]

    sets = measure(tiny_pipeline, tiny_checkpoints, digits, num_models=3)

    own = torch.tensor([0, 1, 3, 4, 6])
    assert torch.equal(sets.judged["heldout"].parameters, test.parameters[own])
    assert torch.equal(sets.judged["heldout_branch"].parameters, test.parameters[[2, 5, 7]])
    assert list(sets.sets)[:3] == ["zoo", "heldout", "heldout_branch"]


def test_heldout_checkpoints_of_other_runs_alone_are_the_heldout_set(
    tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, digits: ImageData
):
    tiny_checkpoints.splits["test"].run = ["run-2"] * 8

    sets = measure(tiny_pipeline, tiny_checkpoints, digits, num_models=3).sets

    assert sets["heldout"]["test"]["n"] == 8
    assert "heldout_branch" not in sets


def test_without_heldout_checkpoints_there_is_no_functional_dispersion(
    tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, digits: ImageData, fitted: dict, tmp_path: Path
):
    empty = torch.zeros(0, tiny_pipeline.processor.parameter_dim)
    tiny_checkpoints.splits["test"] = CheckpointSplit(empty, run=[], step=[], seed=[])

    evaluation = measure(tiny_pipeline, tiny_checkpoints, digits, num_models=3)
    metrics = write_report(tmp_path / "report", evaluation, fitted, tiny_pipeline.processor)

    assert "heldout" not in metrics["sets"]
    assert {figures["dispersion"]["F"] for figures in metrics["sets"].values()} == {None}
    assert "None" not in metrics_table(metrics) + summarize(metrics)


def test_neighbors_in_time_do_not_count_as_the_nearest_zoo_member(
    tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, digits: ImageData
):
    zoo = tiny_checkpoints.zoo
    zoo.parameters[1] = zoo.parameters[0]  # an exact copy
    zoo.run, zoo.step = ["run-0"] * 24, [100 * row for row in range(24)]
    far = measure(tiny_pipeline, tiny_checkpoints, digits, num_models=2).max_similarity["zoo"]
    zoo.step[1] = 20
    near = measure(tiny_pipeline, tiny_checkpoints, digits, num_models=2).max_similarity["zoo"]
    zoo.run[1] = "run-1"
    other_run = measure(tiny_pipeline, tiny_checkpoints, digits, num_models=2).max_similarity["zoo"]

    assert far[:2].tolist() == other_run[:2].tolist() == [1, 1]
    assert near[0] < 1
    assert near[1] < 1


def test_checkpoints_of_another_layout_are_refused(
    tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, digits: ImageData
):
    tiny_checkpoints.zoo.parameters = torch.randn(24, 91)

    with pytest.raises(ValueError, match="90 numbers"):
        measure(tiny_pipeline, tiny_checkpoints, digits, num_models=2)


def metrics_of(evaluation: Evaluation) -> dict:
    """What a report says of an evaluation, as in `metrics.json`."""
    return {
        "sets": evaluation.sets,
        "baselines": evaluation.answer.curve,
        "verdict": {
            "word": evaluation.answer.verdict,
            "reason": evaluation.answer.reason,
            "axes": evaluation.answer.axes,
        },
    }


def test_a_generator_that_collapses_to_the_mean_is_called_an_averager(
    tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, digits: ImageData
):
    collapsed = measure(tiny_pipeline, tiny_checkpoints, digits, num_models=6, temperature=0.0)

    assert collapsed.sets["generated"]["dispersion"]["R"] == pytest.approx(0.0, abs=1e-6)
    assert collapsed.sets["generated"]["dispersion"]["F"] == 0.0
    assert collapsed.answer.verdict == "averager"
    assert "**averager**" in summarize(metrics_of(collapsed))


def test_a_generator_of_zoo_members_is_called_a_copier(
    tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, digits: ImageData, monkeypatch: pytest.MonkeyPatch
):
    members = tiny_checkpoints.zoo.parameters

    def decode(latents: torch.Tensor) -> DecoderOutput:
        return DecoderOutput(sample=members[: len(latents)].clone())

    monkeypatch.setattr(tiny_pipeline.autoencoder, "decode", decode)
    copier = measure(tiny_pipeline, tiny_checkpoints, digits, num_models=12)

    assert copier.answer.verdict == "copier"
    assert "**copier**" in summarize(metrics_of(copier))
    assert copier.answer.axes["novel"]["weights"]["r"]["value"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("word", MEANINGS)
def test_the_summary_states_and_explains_the_word_of_the_audit(evaluation: Evaluation, word: str):
    metrics = metrics_of(evaluation)
    metrics["verdict"]["word"] = word

    assert f"**{word}** ({MEANINGS[word]}; {evaluation.answer.reason})" in summarize(metrics)


def test_the_summary_says_whether_a_gaussian_does_as_well(evaluation: Evaluation):
    metrics = copy.deepcopy(metrics_of(evaluation))

    metrics["verdict"]["axes"]["distinguishable"]["answer"] = False
    assert "cannot be told apart" in summarize(metrics)
    metrics["verdict"]["axes"]["distinguishable"]["answer"] = True
    assert "can be told apart" in summarize(metrics)


def test_the_summary_says_when_novelty_is_not_assessable(evaluation: Evaluation):
    metrics = copy.deepcopy(metrics_of(evaluation))
    metrics["verdict"]["axes"]["novel"] = {"assessable": False, "reason": "nothing is known"}

    assert "Novelty is not assessable: nothing is known." in summarize(metrics)


def test_the_pipeline_is_audited_at_all_its_temperatures(evaluation: Evaluation):
    settings = [name for name in evaluation.answer.judged if name.startswith("samples/")]

    assert settings == [f"samples/temperature {factor:g}" for factor in TEMPERATURES]
    assert TEMPERATURES[0] == 1  # the shipped setting is the one that is judged
    assert evaluation.answer.axes["outside_the_curve"]["settings"] == len(TEMPERATURES)
    assert torch.equal(
        evaluation.judged["generated"].parameters, evaluation.answer.judged["samples/temperature 1"].parameters
    )


def test_every_swept_baseline_has_its_figures(evaluation: Evaluation, tiny_checkpoints: Checkpoints):
    zoo = tiny_checkpoints.zoo.parameters
    expected = [baseline.name for baseline in swept_baselines(zoo, [80, 10], all_codes(zoo))]

    assert [row["name"] for row in evaluation.answer.curve] == [*expected, "best_of_zoo"]
    for row in evaluation.answer.curve:
        assert {"accuracy", "F", "max_similarity"} <= set(row["test"])
        assert 0 <= row["test"]["max_similarity"] <= 1


def test_the_similarity_matrix_has_within_and_between_sets(evaluation: Evaluation, digits: ImageData):
    wrong = {name: rows.predicted["test"] != digits.test.labels for name, rows in evaluation.judged.items()}

    similarity = evaluation.similarity
    assert similarity.shape == (len(SETS), len(SETS))
    torch.testing.assert_close(similarity, similarity.T)
    zoo, heldout = list(wrong).index("zoo"), list(wrong).index("heldout")
    assert similarity[zoo, zoo].item() == pytest.approx(mean_pairwise_iou(wrong["zoo"]))
    assert similarity[zoo, heldout].item() == pytest.approx(iou(wrong["zoo"], wrong["heldout"]).mean().item())
    average_of_all = list(wrong).index("average")
    assert similarity[average_of_all, average_of_all] == 1


def test_the_reverse_process_ends_with_the_samples_of_its_seeds(
    evaluation: Evaluation, tiny_pipeline: PDiffPipeline, digits: ImageData
):
    steps, seeds = evaluation.reverse_process.shape
    assert 1 <= steps <= 20
    assert seeds == 5
    generators = [seeded_generator(i) for i in range(seeds)]
    (drawn,) = tiny_pipeline(seeds, generator=generators, output_type="pt", return_dict=False)
    predicted, _ = network_predictions(
        tiny_pipeline.target_model,
        tiny_pipeline.processor,
        drawn,
        digits.preprocessing(digits.test.pixels),
        digits.test.labels,
    )
    accuracy = (predicted == digits.test.labels).double().mean(1)
    torch.testing.assert_close(evaluation.reverse_process[-1], accuracy, atol=2.5 / len(digits.test), rtol=0)


def test_ensembles_are_measured_of_zoo_heldout_and_generated_networks(evaluation: Evaluation):
    for name in SETS:
        assert ("ensembles" in evaluation.sets[name]) == (name in ("zoo", "heldout", "generated"))
    assert list(evaluation.sets["zoo"]["ensembles"]) == ["1", "2", "4", "8", "16"]
    assert list(evaluation.sets["generated"]["ensembles"]) == ["1", "2", "4"]
    equivalent = evaluation.sets["generated"]["deep_ensemble_equivalent"]
    assert list(equivalent) == ["1", "2", "4"]
    assert all(1 <= value <= 8 for value in equivalent.values())


# The report


def test_metrics_json_is_strict_and_keeps_its_keys(
    evaluation: Evaluation, fitted: dict, tiny_pipeline: PDiffPipeline, tmp_path: Path
):
    returned = write_report(tmp_path / "report", evaluation, fitted, tiny_pipeline.processor)

    metrics = strict((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == json.loads(json.dumps(returned))
    assert metrics["version"] == 1
    assert {"version", "generator", "data", "sets", "baselines", "verdict", "costs", "environment"} <= set(metrics)
    assert metrics["verdict"]["word"] == evaluation.answer.verdict
    assert metrics["verdict"]["reason"] == evaluation.answer.reason
    assert list(metrics["verdict"]["axes"]) == [
        "performs",
        "disperses",
        "novel",
        "distinguishable",
        "outside_the_curve",
    ]
    assert {"name", "validation", "test", "on_curve"} == set(metrics["baselines"][0])
    assert metrics["data"]["dataset_name"] == "digits"
    assert re.fullmatch("[0-9a-f]{64}", metrics["data"]["test_images_sha256"])
    assert set(metrics["sets"]) == set(SETS)
    for figures in metrics["sets"].values():
        further = {"ensembles", "deep_ensemble_equivalent"}
        assert set(figures) - further == {"validation", "test", "dispersion"}
        assert set(figures["dispersion"]) == {"R", "F"}
        assert {"n", "accuracy", "iou", "max_similarity"} <= set(figures["test"])
    seconds = {"target_seconds", "autoencoder_seconds", "denoiser_seconds", "sampling_seconds", "evaluation_seconds"}
    assert seconds <= set(metrics["costs"])


def test_the_table_has_a_row_of_numbers_for_each_set(evaluation: Evaluation, fitted: dict):
    table = metrics_table({**fitted, "sets": evaluation.sets})

    header, rule, *rows = table.splitlines()
    assert len(rows) == len(SETS)
    assert {line.count("|") for line in (header, rule, *rows)} == {10}
    assert rule.replace("|", "").strip("-") == ""
    assert rows[-1].startswith("| **generated** | 6 |")
    accuracy = evaluation.sets["zoo"]["test"]["accuracy"]
    assert rows[0].split(" | ")[2] == f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['std']:.2f}"


def test_the_table_of_baselines_has_a_row_for_each_setting(evaluation: Evaluation):
    header, rule, *rows = baselines_table(metrics_of(evaluation)).splitlines()

    assert len(rows) == len(evaluation.answer.curve)
    assert {line.count("|") for line in (header, rule, *rows)} == {6}
    assert any(row.endswith("| yes |") for row in rows)


def assert_picture(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 200
    assert pixels.std() > 5  # not blank
    assert len(np.unique(pixels)) > 10


def test_the_report_holds_table_summary_and_real_pictures(
    evaluation: Evaluation, fitted: dict, tiny_pipeline: PDiffPipeline, tmp_path: Path
):
    metrics = write_report(tmp_path / "report", evaluation, fitted, tiny_pipeline.processor)

    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert files == {"metrics.json", "report.md", *PICTURES}
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert metrics_table(metrics) in text
    assert baselines_table(metrics) in text
    assert summarize(metrics) in text
    assert len(PICTURES) == 5
    for name in PICTURES:
        assert f"]({name})" in text
        assert_picture(tmp_path / "report" / name)


# Cards


def front_matter(readme: Path) -> tuple[dict, str]:
    _, head, body = readme.read_text(encoding="utf-8").split("---\n", 2)
    assert "None" not in head
    assert "null" not in head
    loaded = yaml.safe_load(head)
    assert isinstance(loaded, dict)
    return loaded, body


def test_the_report_is_put_into_the_card_of_the_pipeline(
    evaluation: Evaluation, fitted: dict, tiny_pipeline: PDiffPipeline, tmp_path: Path
):
    folder = tmp_path / "pipeline"
    tiny_pipeline.save_pretrained(folder)
    write_json(folder / "metrics.json", fitted)
    write_pipeline_card(folder, tiny_pipeline, fitted)
    metadata, body = front_matter(folder / "README.md")
    assert "metrics" not in metadata
    assert "not been evaluated" in body
    metrics = write_report(tmp_path / "report", evaluation, fitted, tiny_pipeline.processor)

    add_report(folder, tiny_pipeline, tmp_path / "report", metrics)

    metadata, body = front_matter(folder / "README.md")
    assert metadata["library_name"] == "diffusers"
    assert metadata["metrics"] == ["accuracy"]
    assert "p-diff" in metadata["tags"]
    assert metrics_table(metrics) in body
    assert summarize(metrics) in body
    assert not re.search(r"\bNone\b|\bnan\b|{{|{%", body)
    for name in PICTURES:
        assert f"]({name})" in body
        assert_picture(folder / name)
    assert strict((folder / "metrics.json").read_text(encoding="utf-8")) == json.loads(json.dumps(metrics))
    loaded = PDiffPipeline.from_pretrained(folder)
    (expected,) = tiny_pipeline(2, generator=seeded_generator(), output_type="pt", return_dict=False)
    (drawn,) = loaded(2, generator=seeded_generator(), output_type="pt", return_dict=False)
    assert torch.equal(drawn, expected)


def test_the_table_of_a_card_ends_before_the_text_that_follows(
    evaluation: Evaluation, fitted: dict, tiny_pipeline: PDiffPipeline, tmp_path: Path
):
    # In Markdown a line right below a table is one more row of it.
    metrics = {**fitted, **metrics_of(evaluation)}
    write_pipeline_card(tmp_path, tiny_pipeline, metrics)

    lines = (tmp_path / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [i for i, line in enumerate(lines) if line.startswith("|")]
    assert lines[rows[0] - 1] == ""
    assert lines[rows[-1] + 1] == ""


def test_the_card_of_checkpoints_names_their_splits_and_columns(tiny_checkpoints: Checkpoints, tmp_path: Path):
    tiny_checkpoints.collection["costs"]["trajectory_seconds"] = 2.0
    tiny_checkpoints.save(tmp_path / "checkpoints")

    metadata, body = front_matter(tmp_path / "checkpoints" / "README.md")
    (config,) = metadata["configs"]
    assert {entry["split"]: entry["path"] for entry in config["data_files"]} == {
        split: f"data/{split}-*.parquet" for split in ("train", "validation", "test")
    }
    columns = [feature["name"] for feature in metadata["dataset_info"]["features"]]
    assert columns == ["parameters", "run", "step", "seed", "validation_score", "validation_loss"]
    assert "| train | 24 | 2 |" in body
    assert not re.search(r"\bNone\b|\bnan\b|{{|{%", body)
