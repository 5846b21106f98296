"""Metrics, two-sample tests, ensembles, intervals and baselines against references and slow formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.optimize import minimize
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from pdiff_hf import LinearParameterAutoencoder
from pdiff_hf.evaluation.baselines import Baseline, averages, swept_baselines
from pdiff_hf.evaluation.distributions import energy_distance, energy_test, nearest_neighbor_accuracy
from pdiff_hf.evaluation.intervals import (
    bootstrap,
    resampled_weights,
    resampling_units,
    weighted_mean,
    weighted_median,
    weighted_pair_mean,
    weighted_spread,
)
from pdiff_hf.evaluation.metrics import (
    chance_corrected_iou,
    dispersion,
    hull_residuals,
    iou,
    max_similarity,
    mean_pairwise_iou,
    score_statistics,
)
from pdiff_hf.evaluation.novelty import (
    copying_auc,
    correlation_length,
    leave_one_out,
    neighbors_in_time,
)
from pdiff_hf.evaluation.uncertainty import deep_ensemble_equivalent, ensemble_figures
from pdiff_hf.targets.task import classification, regression


def seeded_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded_generator(seed))


# Similarity, disagreement, spread


def brute_iou(wrong: np.ndarray, other: np.ndarray) -> float:
    a, b = set(np.flatnonzero(wrong)), set(np.flatnonzero(other))
    return len(a & b) / len(a | b) if a | b else 1.0


def two_of(dtype: type, elements: st.SearchStrategy | None = None) -> st.SearchStrategy:
    """Arrays `(n, images)` and `(k, images)`."""
    shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 12))
    return shapes.flatmap(lambda s: st.tuples(*(arrays(dtype, (n, s[2]), elements=elements) for n in s[:2])))


@given(two_of(bool))
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


@given(two_of(bool), st.randoms(use_true_random=False))
def test_max_similarity_is_the_largest_that_is_not_excluded(masks: tuple[np.ndarray, np.ndarray], random):
    wrong, zoo_wrong = masks
    excluded = np.array([[random.random() < 0.4 for _ in zoo_wrong] for _ in wrong])

    nearest = max_similarity(torch.from_numpy(wrong), torch.from_numpy(zoo_wrong))
    allowed = max_similarity(torch.from_numpy(wrong), torch.from_numpy(zoo_wrong), torch.from_numpy(excluded))

    for i, row in enumerate(wrong):
        similarities = [brute_iou(row, other) for other in zoo_wrong]
        assert nearest[i].item() == pytest.approx(max(similarities))
        left = [value for value, out in zip(similarities, excluded[i], strict=True) if not out]
        assert allowed[i].item() == pytest.approx(max(left, default=math.nan), nan_ok=True)


@pytest.mark.parametrize(
    ("task", "differ"), [(classification, lambda x, y: x != y), (regression, lambda x, y: abs(x - y))]
)
@given(two_of(np.int64, st.integers(0, 3)))
def test_disagreement_is_the_mean_over_examples_of_every_pair(
    task, differ, predictions: tuple[np.ndarray, np.ndarray]
):
    a, b = predictions

    measured = task.disagreement(torch.from_numpy(a), torch.from_numpy(b))
    within = task.mean_disagreement(torch.from_numpy(a))

    expected = torch.tensor([[differ(x, y).mean() for y in b] for x in a], dtype=torch.float32)
    torch.testing.assert_close(measured, expected)
    pairs = [differ(x, y).mean() for x, y in itertools.combinations(a, 2)]
    assert within == (pytest.approx(sum(pairs) / len(pairs), abs=1e-6) if pairs else None)


vectors = arrays(np.float32, st.tuples(st.integers(2, 6), st.just(3)), elements=st.floats(-10, 10, width=32))


@given(vectors, vectors)
def test_dispersion_is_the_root_of_the_ratio_of_traces(samples: np.ndarray, zoo: np.ndarray):
    zoo[0, 0] += 100.0  # a zoo has at least two distinct vectors

    r = dispersion(torch.from_numpy(samples), torch.from_numpy(zoo))

    ours, theirs = (np.trace(np.cov(vectors.T.astype(np.float64))) for vectors in (samples, zoo))
    assert r == pytest.approx(math.sqrt(ours / theirs), rel=1e-6, abs=1e-9)


def test_a_single_network_scores_without_deviation():
    assert score_statistics(torch.tensor([0.5])) == {"mean": 0.5, "std": 0.0, "min": 0.5, "max": 0.5}
    assert score_statistics(torch.tensor([1.0, 0.0]))["std"] == pytest.approx(0.5**0.5)


def test_corrected_overlap_is_one_for_equal_errors_and_zero_for_independent_ones():
    uniform = torch.rand(6, 200_000, generator=seeded_generator())
    wrong = uniform < torch.tensor([0.05, 0.1, 0.2, 0.3, 0.5, 0.8])[:, None]

    corrected = chance_corrected_iou(wrong, wrong)

    torch.testing.assert_close(corrected.diagonal(), torch.ones(6, dtype=torch.float64))
    apart = corrected[~torch.eye(6, dtype=torch.bool)]
    assert apart.abs().max() < 0.02
    assert iou(wrong, wrong)[4, 5] > 0.4  # what chance alone does


# Hulls


def test_recombinations_lie_in_the_affine_hull_and_averages_in_the_convex_one():
    zoo = 5 + normal(8, 20)
    weights = normal(6, 8, seed=1)
    affine = (weights + (1 - weights.sum(1, keepdim=True)) / 8) @ zoo
    convex = torch.softmax(normal(6, 8, seed=2), 1) @ zoo

    assert hull_residuals(affine, zoo).max() < 1e-5
    assert hull_residuals(affine, zoo, convex=True).max() > 0.01
    assert hull_residuals(convex, zoo).max() < 1e-5
    assert hull_residuals(convex, zoo, convex=True).max() < 1e-3


def test_hull_residuals_are_those_of_a_direct_solution():
    zoo, samples = normal(4, 6).double(), normal(3, 6, seed=1).double()
    mean = zoo.mean(0)

    for convex in (False, True):
        measured = hull_residuals(samples, zoo, convex=convex)
        for sample, residual in zip(samples, measured, strict=True):
            solution = minimize(
                lambda a, g=sample: float(((g - torch.from_numpy(a) @ zoo) ** 2).sum()),
                np.full(4, 0.25),
                jac=lambda a, g=sample: (-2 * zoo @ (g - torch.from_numpy(a) @ zoo)).numpy(),
                bounds=[(0, None)] * 4 if convex else None,
                constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": lambda a: np.ones(4)},
                options={"ftol": 1e-14, "maxiter": 500},
            )
            expected = math.sqrt(solution.fun) / (sample - mean).norm().item()
            assert residual.item() == pytest.approx(expected, rel=2e-3)


# Novelty


@pytest.mark.parametrize("scale", [3.0, 8.0, 20.0])
def test_the_correlation_length_is_where_nine_tenths_of_the_way_are_done(scale: float):
    step = torch.arange(0, 400)
    lag = (step[:, None] - step[None, :]).abs().double()
    similarity = 0.4 + 0.6 * torch.exp(-lag / scale)

    length = correlation_length(similarity, step)

    assert length == pytest.approx(1 + scale * math.log(10), abs=1.5)
    assert correlation_length(similarity, 5 * step) == 5 * length  # in steps, not in checkpoints
    assert correlation_length(torch.full_like(similarity, 0.5), 2 * step) == 2  # without correlation the shortest lag


def test_related_are_members_of_one_run_or_neighbors_in_time():
    run, step = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 100, 0, 100])

    of_one = neighbors_in_time(torch.zeros(4, dtype=torch.long), torch.tensor([0, 10, 20, 30]), 10)

    same_run = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).bool()
    for length, expected in ((None, same_run), (100, same_run), (50, torch.eye(4).bool())):
        assert torch.equal(neighbors_in_time(run, step, length), expected)
    assert of_one.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]


def test_leave_one_out_is_the_nearest_unrelated_member():
    distances = torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 3.0], [5.0, 3.0, 0.0]])
    related = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()

    assert leave_one_out(distances, related).tolist() == [5, 3, 3]
    assert leave_one_out(distances, torch.eye(3).bool()).tolist() == [1, 1, 3]
    assert leave_one_out(distances, related | torch.tensor([False, False, True])).tolist() == [3]


distances_with_ties = arrays(np.float64, st.integers(1, 12), elements=st.integers(0, 6).map(float))


@given(distances_with_ties, distances_with_ties)
def test_the_copying_statistic_is_mann_whitneys_and_the_area_under_the_curve(ours: np.ndarray, real: np.ndarray):
    once, real_once = torch.ones(len(ours)).double(), torch.ones(len(real)).double()
    auc = copying_auc(torch.from_numpy(ours), torch.from_numpy(real), once, real_once)

    assert auc == pytest.approx(mannwhitneyu(ours, real).statistic / (len(ours) * len(real)))
    labels = np.r_[np.ones(len(ours)), np.zeros(len(real))]
    assert auc == pytest.approx(roc_auc_score(labels, np.r_[ours, real]))
    assert copying_auc(torch.from_numpy(ours), torch.from_numpy(real), 2 * once, real_once) == pytest.approx(auc)


# Two samples


def test_the_energy_distance_is_its_double_sum():
    x, y = normal(7, 4), 1 + normal(5, 4, seed=1)

    between = sum((a - b).norm().item() for a in x for b in y) / 35
    within_x = sum((a - b).norm().item() for a in x for b in x) / 42
    within_y = sum((a - b).norm().item() for a in y for b in y) / 20

    assert energy_distance(x, y) == pytest.approx(2 * between - within_x - within_y, rel=1e-5)


def test_the_energy_test_tells_different_distributions_and_no_equal_ones():
    def p_value(seed: int, shift: float) -> float:
        samples, others = normal(40, 5, seed=seed), shift + normal(30, 5, seed=1000 + seed)
        return energy_test(samples, others, seeded_generator(seed), permutations=99)

    equal = torch.tensor([p_value(seed, 0.0) for seed in range(100)])
    assert all(p_value(seed, 1.0) == pytest.approx(0.01) for seed in range(5))
    assert energy_test(normal(40, 5), 2 * normal(40, 5, seed=1), seeded_generator()) < 0.005
    assert 0.4 < equal.mean() < 0.6
    assert (equal <= 0.1).double().mean() < 0.2
    assert (equal > 0.5).double().mean() > 0.35
    assert ((equal > 0) & (equal <= 1)).all()


def test_neighbors_are_of_either_set_if_the_distributions_are_equal():
    equal = [nearest_neighbor_accuracy(normal(60, 3, seed=s), normal(80, 3, seed=1000 + s)) for s in range(20)]

    assert sum(equal) / 20 == pytest.approx(0.5, abs=0.05)
    assert nearest_neighbor_accuracy(normal(60, 3), 50 + normal(60, 3, seed=1)) == 1
    assert nearest_neighbor_accuracy(normal(60, 3), normal(60, 3)) == 0  # each one's copy is nearest


# Ensembles


def test_the_temperature_of_an_ensemble_is_chosen_on_validation_images():
    test = 2 * normal(2, 20_000, 4)
    labels = torch.multinomial(test[0].softmax(-1), 1, generator=seeded_generator(1))[:, 0]

    figures = ensemble_figures(3 * test[:1], labels, test[:1], labels)["1"]

    assert figures["temperature"] == pytest.approx(3, rel=0.05)
    scaled = (test[0].double().log_softmax(-1) / figures["temperature"]).log_softmax(-1)
    assert figures["nll"] == pytest.approx(torch.nn.functional.nll_loss(scaled, labels).item())


def test_the_equivalent_of_a_deep_ensemble_is_interpolated_and_cut():
    def of(*nll: float) -> dict[str, dict[str, float]]:
        return {str(2**i): {"nll": value} for i, value in enumerate(nll)}

    real = of(1.0, 0.8, 0.7)

    expected = pytest.approx({"1": 1.0, "2": 1.5, "4": 3.5, "8": 4.0})
    assert deep_ensemble_equivalent(of(1.5, 0.9, 0.725, 0.1), real) == expected
    assert deep_ensemble_equivalent(real, real) == pytest.approx({"1": 1.0, "2": 2.0, "4": 4.0})
    assert deep_ensemble_equivalent(of(0.5), of(1.0)) == {"1": 1.0}


# Intervals


def test_intervals_of_correlated_rows_are_wider_if_their_runs_are_resampled():
    values = (normal(20)[:, None] + 0.1 * normal(20, 10, seed=1)).flatten()
    runs = torch.arange(20).repeat_interleave(10)

    rows, whole = (bootstrap(lambda w: weighted_mean(values, w), units) for units in (torch.arange(200), runs))

    assert whole.value == rows.value
    assert whole.high - whole.low > 2 * (rows.high - rows.low)


def test_an_interval_is_decided_by_its_seed_and_takes_several_sets():
    x, y = normal(50), 3 + normal(80, seed=1)

    def difference(w: torch.Tensor, v: torch.Tensor) -> float:
        return weighted_mean(y, v) - weighted_mean(x, w)

    units = torch.arange(50), torch.arange(80)
    interval = bootstrap(difference, *units)

    assert interval == bootstrap(difference, *units)
    assert interval != bootstrap(difference, *units, seed=1)
    half = 1.96 * (x.var() / 50 + y.var() / 80).sqrt().item()
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.25)


def test_whole_units_are_drawn():
    units = torch.tensor([0, 0, 1, 2, 2, 2])

    first, *drawn = resampled_weights(units, seeded_generator())

    assert torch.equal(first, torch.ones(6, dtype=torch.float64))
    for weights in drawn:
        assert weights[0] == weights[1]
        assert weights[3] == weights[4] == weights[5]
        assert weights[0] + weights[2] + weights[3] == 3


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(lambda weights: sum(w > 0 for w in weights) > 1))
def test_weights_count_rows_as_often_as_repeating_them(weights: list[int]):
    values, vectors = normal(6), normal(6, 3, seed=1)
    matrix = torch.cdist(vectors, vectors)
    counts = torch.tensor(weights)
    rows = torch.arange(6).repeat_interleave(counts)
    weight = counts.double()

    assert weighted_mean(values, weight) == pytest.approx(values[rows].mean().item(), abs=1e-6)
    assert weighted_median(values, weight) == pytest.approx(values[rows].median().item())
    distinct = [matrix[i, j].item() for i in rows for j in rows if i != j]
    assert weighted_pair_mean(matrix, weight) == pytest.approx(sum(distinct) / len(distinct), rel=1e-5)
    spread = vectors[rows].double().var(0).sum().sqrt().item()
    assert weighted_spread(vectors, weight) == pytest.approx(spread, rel=1e-6)


def test_resampled_are_runs_or_blocks_of_one_trajectory():
    step = torch.tensor([100, 101, 104, 105, 109, 110, 300])

    of_runs = resampling_units(torch.tensor([7, 7, 3, 3, 9, 9, 9]), step, 5)
    of_one = resampling_units(torch.zeros(7, dtype=torch.long), step, 5)

    assert of_runs.tolist() == [1, 1, 0, 0, 2, 2, 2]
    assert of_one.tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert resampling_units(torch.arange(4), torch.arange(4), None).tolist() == [0, 1, 2, 3]


# Baselines


SIZES = [6, 4, 2]


def correlated_zoo() -> torch.Tensor:
    return 3 + normal(80, 12) @ normal(12, 12, seed=1)


def all_baselines(zoo: torch.Tensor) -> dict[str, Baseline]:
    return swept_baselines(zoo, SIZES, LinearParameterAutoencoder.from_zoo(zoo, explained_variance=1.0))


def draw(name: str, zoo: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    return all_baselines(zoo)[name](zoo, n, seeded_generator(seed))


BASELINES = list(all_baselines(correlated_zoo()))


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_draws_vectors_as_its_generator_decides_and_leaves_the_zoo(name: str):
    zoo = correlated_zoo()
    before = zoo.clone()

    first, again, other = (draw(name, zoo, 9, seed) for seed in (0, 0, 1))

    assert first.shape == ((1, 12) if name == "average" else (9, 12))
    assert first.dtype == torch.float32
    assert not first.requires_grad
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name == "average")
    first.zero_()
    assert torch.equal(zoo, before)


def test_a_baseline_has_no_more_settings_than_a_generator_and_averages_fewer_than_there_are():
    families = [name.partition("@")[0] for name in BASELINES]
    assert max(families.count(family) for family in families) <= 6
    small = all_baselines(correlated_zoo()[:10])
    assert "averages@16" not in small
    assert "averages@4" in small


@pytest.mark.parametrize(
    ("name", "spread"),
    [
        ("retrieval", 1),
        ("reconstructions", 1),
        ("shrink@0.3", 0.3),
        ("interpolation@0.5", 0.5**0.5),
        ("interpolation@0.1", (0.9**2 + 0.1**2) ** 0.5),
        ("gaussian_diagonal@0.7", 0.7),
        ("gaussian_full@0.5", 0.5),
        ("gaussian_codes@0.7", 0.7),
        ("smoothed_bootstrap@0.5", (1 + 0.5**2) ** 0.5),
        ("kde_codes@1", 1),
        ("averages@4", (1 / 4 * (1 - 3 / 79)) ** 0.5),  # without replacement
    ],
)
def test_a_baseline_spreads_as_its_setting_states(name: str, spread: float):
    zoo = correlated_zoo()

    samples = draw(name, zoo, 20_000)

    assert dispersion(samples, zoo) == pytest.approx(spread, rel=0.03)
    tolerance = 0.05 * zoo.std(0).mean().item()
    torch.testing.assert_close(samples.mean(0), zoo.mean(0), atol=tolerance, rtol=0)


@pytest.mark.parametrize(("name", "tolerance"), [("retrieval", 0), ("reconstructions", 1e-3)])
def test_retrieved_and_reconstructed_vectors_are_zoo_members(name: str, tolerance: float):
    zoo = correlated_zoo()

    assert (draw(name, zoo, 50)[:, None] - zoo[None]).norm(dim=2).min(1).values.max() <= tolerance


def test_noise_is_a_share_of_each_tensors_own_spread():
    zoo = correlated_zoo() * torch.tensor([100.0] * 6 + [1.0] * 4 + [0.01] * 2)

    samples, members = draw("noise@0.05", zoo, 5000), draw("retrieval", zoo, 5000)

    for noise, tensor in zip((samples - members).split(SIZES, 1), members.split(SIZES, 1), strict=True):
        share = noise.norm(dim=1) / (tensor.std(1, correction=0) * tensor.shape[1] ** 0.5)
        assert share.pow(2).mean().sqrt().item() == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("k", [1, 3, 12])
def test_averages_are_means_of_k_distinct_checkpoints(k: int):
    zoo = normal(12, 6)
    # Powers of two show in the sum which checkpoints were taken, and how often.
    marked = torch.cat([zoo, 2.0 ** torch.arange(12)[:, None]], dim=1)

    samples = averages(marked, 20, seeded_generator(), k=k)

    for sample in samples:
        taken = [i for i in range(12) if round(k * sample[-1].item()) >> i & 1]
        assert len(taken) == k
        torch.testing.assert_close(sample, marked[taken].mean(0))


def test_gaussians_have_the_covariance_or_only_the_variances_of_the_zoo():
    zoo = correlated_zoo()
    expected = torch.cov(zoo.T)
    scale = expected.diagonal().mean().item()

    full, diagonal = draw("gaussian_full@1", zoo, 100_000), draw("gaussian_diagonal@1", zoo, 100_000)
    codes, same_noise = draw("gaussian_codes@1", zoo, 1000), draw("gaussian_full@1", zoo, 1000)

    torch.testing.assert_close(torch.cov(full.T), expected, atol=0.03 * scale, rtol=0)
    torch.testing.assert_close(torch.cov(diagonal.T), torch.diag(zoo.var(0)), atol=0.03 * scale, rtol=0)
    torch.testing.assert_close(codes, same_noise, atol=1e-3, rtol=1e-3)  # of all principal codes
