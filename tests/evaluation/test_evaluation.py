"""The evaluation of a pipeline: its figures, report and card."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build
from huggingface_hub import DatasetCard, ModelCard
from PIL import Image
from transformers import PreTrainedModel

from pdiff_hf import (
    Checkpoints,
    CheckpointSplit,
    ImageData,
    NonFiniteParametersError,
    PDiffPipeline,
    Recipe,
    fit,
    load_images,
    make_processor,
    network_predictions,
)
from pdiff_hf.evaluation import Evaluation, evaluate, metrics_table, summarize, write_report
from pdiff_hf.evaluation.auditing import main
from pdiff_hf.evaluation.metrics import iou, mean_pairwise_iou
from pdiff_hf.evaluation.plots import accuracy_against_novelty, reverse_process
from pdiff_hf.evaluation.report import add_report, baselines_table, without_nan
from pdiff_hf.evaluation.sets import SETS
from pdiff_hf.evaluation.verdict import MEANINGS
from pdiff_hf.hub.cards import PICTURES
from pdiff_hf.loops import seeded
from pdiff_hf.pipelines.card import criteria_table, write_pipeline_card
from pdiff_hf.pipelines.describing import describe, description_table
from pdiff_hf.targets.symmetries import Symmetries

SHOWN = [key for key in SETS if key != "heldout_branch"]


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


Measure = Callable[..., Evaluation]


@pytest.fixture
def measure(tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, digits: ImageData) -> Measure:
    """A function that evaluates the tiny pipeline with few networks."""
    few = {"num_models": 3, "num_baseline_models": 6}
    return lambda **changes: evaluate(tiny_pipeline, tiny_checkpoints, digits, **few | changes)


def spread_over_runs(checkpoints: Checkpoints) -> None:
    """Makes each checkpoint one of a run of its own: of two runs, hardly anything can be shown."""
    for name, rows in checkpoints.splits.items():
        rows.columns["run"] = [f"{name}-{row}" for row in range(len(rows))]


@pytest.fixture(scope="module")
def kept() -> dict:
    """What the next two fixtures make once: each test's pipeline and zoo are the same."""
    return {}


@pytest.fixture
def evaluation(kept: dict, measure: Measure) -> Evaluation:
    if "evaluation" not in kept:
        kept["evaluation"] = measure(num_models=6)
    return kept["evaluation"]


@pytest.fixture
def report(kept: dict, evaluation: Evaluation, tiny_pipeline: PDiffPipeline, tmp_path_factory) -> Path:
    """The folder of a report."""
    if "report" not in kept:
        kept["report"] = tmp_path_factory.mktemp("report")
        kept["metrics"] = write_report(kept["report"], evaluation, tiny_pipeline.metrics, tiny_pipeline.processor)
    return kept["report"]


@pytest.fixture
def metrics(kept: dict, report: Path) -> dict:
    """The content of the report's `metrics.json`, to be changed at will."""
    return copy.deepcopy(kept["metrics"])


def strict(text: str) -> dict:
    """Parses JSON as the standard has it: without NaN and infinity."""
    return json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_every_set_is_measured_on_both_splits(evaluation: Evaluation):
    counts = {"zoo": 24, "heldout": 8, "average": 1}

    assert list(evaluation.sets) == SHOWN
    assert evaluation.networks.keys() == evaluation.sets.keys()
    for name, figures in evaluation.sets.items():
        for split in ("validation", "test"):
            measured = figures[split]
            assert measured["n"] == counts.get(name, 6) == len(evaluation.networks[name].parameters)
            assert set(measured["accuracy"]) == {"mean", "std", "min", "max"}
            assert 0 <= measured["accuracy"]["min"] <= measured["accuracy"]["mean"] <= measured["accuracy"]["max"] <= 1
            assert 0 <= measured["max_similarity"] <= 1
            assert (measured["iou"] is None) == (name == "average")
        assert len(evaluation.max_similarity[name]) == counts.get(name, 6)


def test_the_zoo_spreads_as_itself_and_the_average_not_at_all(evaluation: Evaluation):
    assert evaluation.sets["zoo"]["dispersion"]["R"] == pytest.approx(1.0)
    assert evaluation.sets["heldout"]["dispersion"]["F"] == pytest.approx(1.0)
    assert evaluation.sets["average"]["dispersion"] == {"R": 0.0, "F": 0.0}


def test_the_spread_of_a_set_does_not_change_under_symmetries(
    mlp: PreTrainedModel, digits: ImageData, tiny_recipe: Recipe
):
    processor, generator = make_processor(mlp, "full"), torch.Generator().manual_seed(0)
    noise = torch.randn(32, processor.parameter_dim, generator=generator)
    vectors = processor.flatten(mlp.state_dict()) + 0.05 * noise
    names = [f"run-{row}" for row in range(32)]
    symmetries = Symmetries(mlp, processor, vectors[0], digits.preprocessing(digits.validation.pixels[:32]))
    spreads = []
    for heldout in (vectors[24:], symmetries.transform(vectors[24:], generator)):
        rows = {"train": (vectors[:24], names[:24]), "validation": (vectors[:0], []), "test": (heldout, names[24:])}
        splits = {
            name: CheckpointSplit(part, run=runs, step=[1] * len(part), seed=[0] * len(part))
            for name, (part, runs) in rows.items()
        }
        zoo = Checkpoints(splits, processor, mlp, digits.preprocessing.to_dict(), {})
        found = evaluate(fit(zoo, tiny_recipe), zoo, digits, num_models=3, num_baseline_models=6)
        spreads.append(found.sets["heldout"]["dispersion"]["R"])
        assert found.sets["zoo"]["dispersion"]["R"] == pytest.approx(1.0)

    assert spreads[0] == pytest.approx(spreads[1], rel=1e-3)


def test_one_seed_measures_the_same_and_leaves_zoo_and_pipeline_as_they_were(
    measure: Measure, tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints
):
    vectors = {name: zoo.parameters.clone() for name, zoo in tiny_checkpoints.splits.items()}
    target = {name: tensor.clone() for name, tensor in tiny_pipeline.target_model.state_dict().items()}

    first, again, other = (measure(seed=s) for s in (0, 0, 1))

    assert first.sets == again.sets
    for name in ("generated", "averages_16", "gaussian_diagonal", "gaussian_full", "gaussian_codes"):
        assert not torch.equal(first.networks[name].parameters, other.networks[name].parameters), name
    for name, zoo in tiny_checkpoints.splits.items():
        assert torch.equal(zoo.parameters, vectors[name])
    for name, tensor in tiny_pipeline.target_model.state_dict().items():
        assert torch.equal(tensor, target[name])


@pytest.mark.parametrize("own", [[0, 1, 3, 4, 6], []])
def test_heldout_checkpoints_of_other_runs_are_a_set_of_their_own_beside_own_ones(
    measure: Measure, tiny_checkpoints: Checkpoints, own: list[int]
):
    test = tiny_checkpoints.splits["test"]
    test.columns["run"] = ["run-0" if row in own else "branch-1" for row in range(8)]

    networks = measure().networks

    assert torch.equal(networks["heldout"].parameters, test.parameters[own or list(range(8))])
    assert ("heldout_branch" in networks) == bool(own)
    if own:
        assert torch.equal(networks["heldout_branch"].parameters, test.parameters[[2, 5, 7]])


def test_without_heldout_checkpoints_there_is_no_functional_dispersion(
    measure: Measure, tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, tmp_path: Path
):
    spread_over_runs(tiny_checkpoints)
    tiny_checkpoints.splits["test"] = tiny_checkpoints.splits["test"].take([False] * 8)

    evaluation = measure()
    metrics = write_report(tmp_path / "report", evaluation, tiny_pipeline.metrics, tiny_pipeline.processor)
    write_pipeline_card(tmp_path, tiny_pipeline, metrics)

    assert "heldout" not in metrics["sets"]
    assert {figures["dispersion"]["F"] for figures in metrics["sets"].values()} == {None}
    assert not re.search(r"\bNone\b", (tmp_path / "README.md").read_text(encoding="utf-8"))


def test_neighbors_in_time_do_not_count_as_the_nearest_zoo_member(measure: Measure, tiny_checkpoints: Checkpoints):
    zoo = tiny_checkpoints.zoo
    zoo.parameters[1] = zoo.parameters[0]  # an exact copy
    zoo.columns |= {"run": ["run-0"] * 24, "step": [100 * row for row in range(24)]}
    far = measure().max_similarity["zoo"]
    zoo.step[1] = 20
    near = measure().max_similarity["zoo"]
    zoo.run[1] = "run-1"
    other_run = measure().max_similarity["zoo"]

    assert far[:2].tolist() == other_run[:2].tolist() == [1, 1]
    assert (near[:2] < 1).all()


@pytest.mark.parametrize(("count", "heldout"), [(2, 0), (3, 1), (12, 2)])
def test_small_zoos_are_reported_with_what_is_undefined_left_out(
    count, heldout, measure: Measure, tiny_checkpoints: Checkpoints, tiny_pipeline: PDiffPipeline, tmp_path: Path
):
    zoo, test = tiny_checkpoints.zoo, tiny_checkpoints.splits["test"]
    tiny_checkpoints.splits = {"train": zoo.rows(slice(count)), "test": test.rows(slice(heldout))}
    tiny_checkpoints.zoo.run, tiny_checkpoints.zoo.step = ["one"] * count, list(range(count))

    evaluation = measure()
    metrics = write_report(tmp_path / "report", evaluation, tiny_pipeline.metrics, tiny_pipeline.processor)
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    add_report(tmp_path / "pipeline", tiny_pipeline, tmp_path / "report", metrics)

    written = strict((tmp_path / "report" / "metrics.json").read_text())["sets"]
    assert written["zoo"]["test"]["max_similarity"] is None  # all members are neighbors in time
    assert evaluation.max_similarity["zoo"].isnan().all()
    assert (written["generated"]["dispersion"]["F"] is None) == (heldout < 2)
    described = description_table(describe(tmp_path / "pipeline")).partition("\ndispersion")[2]
    assert ("F = " in described) == (heldout == 2)


def test_one_checkpoint_or_one_sample_is_refused(measure: Measure, tiny_checkpoints: Checkpoints):
    with pytest.raises(ValueError, match="at least two samples, but there are 1"):
        measure(num_models=1)

    tiny_checkpoints.splits["train"] = tiny_checkpoints.zoo.rows(slice(1))
    with pytest.raises(ValueError, match="at least two zoo members, but there is 1"):
        measure()


def test_checkpoints_of_another_layout_are_refused(measure: Measure, tiny_checkpoints: Checkpoints):
    tiny_checkpoints.zoo.parameters = torch.randn(24, 91)

    with pytest.raises(ValueError, match="90 numbers"):
        measure()


def test_a_generator_that_collapses_to_the_mean_is_called_an_averager(measure: Measure, tiny_checkpoints: Checkpoints):
    spread_over_runs(tiny_checkpoints)

    collapsed = measure(num_models=10, temperature=0.0)  # fewer are never decided by intervals

    assert collapsed.sets["generated"]["dispersion"]["R"] == pytest.approx(0.0, abs=1e-6)
    assert collapsed.sets["generated"]["dispersion"]["F"] == 0.0
    assert collapsed.answer.verdict == "averager"


def test_the_summary_states_verdict_novelty_and_whether_a_gaussian_does_as_well(metrics: dict):
    axes = metrics["verdict"]["axes"]
    metrics["verdict"] |= {"word": "broken", "meaning": "they do not work", "reason": "share = 0.1"}
    axes["distinguishable"]["answer"] = False

    assert "**broken** (they do not work; share = 0.1)" in summarize(metrics)
    assert "A Gaussian in the generator's own codes cannot be told apart" in summarize(metrics)
    assert re.search(r"They lie r = \d\.\d\d \[.* \(held-out checkpoints: \d\.\d\d\)", summarize(metrics))

    del metrics["verdict"]["meaning"], metrics["verdict"]["criteria"]  # as in files made before
    axes["distinguishable"]["answer"] = True
    axes["novel"] = {"assessable": False, "reason": "nothing is known"}

    assert "**broken** (share = 0.1)" in summarize(metrics)
    assert "A Gaussian in the generator's own codes can be told apart" in summarize(metrics)
    assert "Novelty is not assessable: nothing is known." in summarize(metrics)
    assert criteria_table(metrics) == ""


def test_the_samples_are_those_that_the_pipeline_draws_with_the_seed(
    evaluation: Evaluation, tiny_pipeline: PDiffPipeline
):
    (drawn,) = tiny_pipeline(6, generator=torch.Generator().manual_seed(0), output_type="pt", return_dict=False)

    torch.testing.assert_close(evaluation.networks["generated"].parameters, drawn)


def test_the_similarity_matrix_has_within_and_between_sets(evaluation: Evaluation):
    wrong = {name: rows.wrong["test"] for name, rows in evaluation.networks.items()}

    similarity = evaluation.similarity
    assert similarity.shape == (len(SHOWN), len(SHOWN))
    torch.testing.assert_close(similarity, similarity.T)
    zoo, heldout = list(wrong).index("zoo"), list(wrong).index("heldout")
    assert similarity[zoo, zoo].item() == pytest.approx(mean_pairwise_iou(wrong["zoo"]))
    assert similarity[zoo, heldout].item() == pytest.approx(iou(wrong["zoo"], wrong["heldout"]).mean().item())
    assert similarity.diagonal()[list(wrong).index("average")] == 1


def test_the_reverse_process_ends_with_the_samples_of_its_seeds(
    evaluation: Evaluation, tiny_pipeline: PDiffPipeline, digits: ImageData
):
    steps, seeds = evaluation.reverse_process.shape
    assert 1 <= steps <= 20
    assert seeds == 5
    generators = [torch.Generator().manual_seed(i) for i in range(seeds)]
    (drawn,) = tiny_pipeline(seeds, generator=generators, output_type="pt", return_dict=False)
    inputs, labels = digits.inputs(digits.test), digits.test.labels
    predicted, _ = network_predictions(tiny_pipeline.target_model, tiny_pipeline.processor, drawn, inputs, labels)
    accuracy = (predicted == labels).double().mean(1)
    torch.testing.assert_close(evaluation.reverse_process[-1], accuracy, atol=2.5 / len(digits.test), rtol=0)


def test_ensembles_are_measured_of_zoo_heldout_and_generated_networks(evaluation: Evaluation):
    for name in SHOWN:
        assert ("ensembles" in evaluation.sets[name]) == (name in ("zoo", "heldout", "generated"))
    assert list(evaluation.sets["zoo"]["ensembles"]) == ["1", "2", "4", "8", "16"]
    assert list(evaluation.sets["generated"]["ensembles"]) == ["1", "2", "4"]
    equivalent = evaluation.sets["generated"]["deep_ensemble_equivalent"]
    assert list(equivalent) == ["1", "2", "4"]
    assert all(1 <= value <= 8 for value in equivalent.values())


def test_networks_are_placed_by_distance_to_the_zoo_and_score(evaluation: Evaluation):
    places = evaluation.places

    assert {"zoo", "heldout", "generated", "average", "averages@16", "gaussian_full@0.7"} <= set(places)
    assert torch.equal(places["generated"][:, 1], evaluation.networks["generated"].scores["test"].double())
    weights = evaluation.answer.evidence.novel.weights
    assert places["generated"][:, 0].quantile(0.5).item() == pytest.approx(weights.r_quantiles[1])
    assert places["heldout"][:, 0].median().item() == pytest.approx(weights.heldout_r)
    r = [places[f"shrink@{scale:g}"][:, 0].mean().item() for scale in (0.85, 0.7, 0.5)]
    assert 0 < r[0] < r[1] < r[2]  # copies are at 0


def test_a_zoo_without_distances_of_its_own_has_no_places(measure: Measure, tiny_checkpoints: Checkpoints):
    tiny_checkpoints.splits["train"] = tiny_checkpoints.zoo.rows(slice(0, 4, 2))  # of one run, and close in time
    evaluation = measure()

    assert evaluation.places == {}
    assert "not assessable" in accuracy_against_novelty(evaluation).axes[0].get_title()


# Samples that are not finite


@pytest.fixture
def _diverging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first network of each batch of latents diverges."""
    call = PDiffPipeline.__call__

    def diverge(self: PDiffPipeline, *args, **kwargs):
        drawn = call(self, *args, **kwargs)
        if not kwargs.get("return_dict", True):
            drawn[0][0] = torch.nan
        return drawn

    monkeypatch.setattr(PDiffPipeline, "__call__", diverge)


@pytest.mark.usefixtures("_diverging")
def test_samples_that_are_not_finite_are_refused(measure: Measure):
    sentence = r"1 of the 4 samples are NaN or infinite; --drop_broken \(drop_broken=True\) counts"
    with pytest.raises(NonFiniteParametersError, match=sentence):
        measure(num_models=4)


@pytest.mark.usefixtures("_diverging")
def test_dropped_samples_count_as_broken_and_the_others_are_audited(
    tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    tiny_checkpoints.save(tmp_path / "zoo")
    given = {"pipeline": "pipeline", "checkpoints": "zoo", "output_dir": "report"}
    folders = [part for flag, name in given.items() for part in (f"--{flag}", str(tmp_path / name))]

    main([*folders, "--num_models", "4", "--num_baseline_models", "3", "--drop_broken"])

    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    performs = metrics["verdict"]["axes"]["performs"]
    assert metrics["sets"]["generated"]["test"]["n"] == 3
    assert performs["total"] == 4
    assert performs["broken"] >= 1
    printed = capsys.readouterr().out
    tables = [criteria_table(metrics), metrics_table(metrics), summarize(metrics)]
    assert "\n\n".join(tables) in printed


# Figures


def test_no_terrible_network_stretches_the_figure_of_accuracy_and_novelty(evaluation: Evaluation):
    def limits(**changes: torch.Tensor):
        changed = dataclasses.replace(evaluation, places=evaluation.places | changes)
        axes = accuracy_against_novelty(changed).axes[0]
        return torch.tensor([axes.get_xlim(), axes.get_ylim()])

    terrible = torch.tensor([[1e20, -1e20]], dtype=torch.float64)
    samples = evaluation.places["generated"].repeat(10, 1)

    usual = limits(generated=samples)
    with_sample = limits(generated=torch.cat([samples, terrible]))
    with_baseline = limits(generated=samples, **{"noise@0.15": terrible})

    torch.testing.assert_close(with_sample, usual, rtol=0.05, atol=0.1)
    assert ((with_baseline[:, 1] - with_baseline[:, 0]) <= 3.2 * (usual[:, 1] - usual[:, 0])).all()


def test_figures_have_labeled_axes_and_a_complete_legend(evaluation: Evaluation):
    first = accuracy_against_novelty(evaluation)
    names = {text.get_text() for text in first.legends[0].get_texts()}
    drawn = {"held-out", "averages of k", "Gaussian, full", "Gaussian in codes", "zoo with noise", "generated: median"}
    assert drawn <= names
    assert first.axes[0].get_ylabel() == "test accuracy (%)"

    process = reverse_process(evaluation)
    names = {text.get_text() for text in process.legends[0].get_texts()}
    assert names == {"one sample", "mean of the samples", "zoo, from worst to best", "average of all", "chance"}
    assert evaluation.chance == pytest.approx(0.1)


# The report


def test_metrics_json_is_strict_and_keeps_its_keys(evaluation: Evaluation, report: Path, metrics: dict):
    written = strict((report / "metrics.json").read_text(encoding="utf-8"))

    assert written == json.loads(json.dumps(metrics))
    assert metrics["version"] == 1
    assert {"version", "generator", "data", "sets", "baselines", "verdict", "costs", "environment"} <= set(metrics)
    word = evaluation.answer.verdict
    assert metrics["verdict"] == {
        "word": word,
        "meaning": MEANINGS[word],
        "reason": evaluation.answer.reason,
        "axes": without_nan(dataclasses.asdict(evaluation.answer.evidence)),
        "criteria": {name: without_nan(dataclasses.asdict(c)) for name, c in evaluation.answer.criteria.items()},
    }
    assert set(metrics["verdict"]["axes"]) == {
        "performs",
        "disperses",
        "novel",
        "distinguishable",
        "outside_the_curve",
    }
    for criterion in metrics["verdict"]["criteria"].values():
        assert set(criterion) == {"claim", "measures", "status"}
        for measured in criterion["measures"].values():
            assert set(measured) == {"name", "value", "heldout", "least", "most", "status"}
            assert set(measured["value"]) == {"value", "low", "high", "note"}
    assert [row["name"] for row in metrics["baselines"]] == list(evaluation.answer.networks["baselines"])
    for row in metrics["baselines"]:
        assert set(row) == {"name", "validation", "test", "on_curve"}
        assert set(row["test"]) == {"accuracy", "F", "error", "max_similarity"}
    assert (metrics["data"]["task"], metrics["data"]["score_name"]) == ("classification", "accuracy")
    assert metrics["data"]["dataset_name"] == "digits"
    assert re.fullmatch("[0-9a-f]{64}", metrics["data"]["test_images_sha256"])
    for figures in metrics["sets"].values():
        further = {"ensembles", "deep_ensemble_equivalent"}
        assert set(figures) - further == {"title", "validation", "test", "dispersion"}
        assert set(figures["dispersion"]) == {"R", "F"}
        assert {"n", "accuracy", "iou", "max_similarity", "kappa_to_zoo", "disagreement"} == set(figures["test"])
    seconds = {"target_seconds", "autoencoder_seconds", "denoiser_seconds", "sampling_seconds", "evaluation_seconds"}
    assert seconds <= set(metrics["costs"])


def test_tables_have_a_row_for_each_set_and_each_baseline(metrics: dict):
    for table, count, bars in (
        (metrics_table(metrics), len(SHOWN), 10),
        (baselines_table(metrics), len(metrics["baselines"]), 6),
    ):
        header, rule, *rows = table.splitlines()
        assert " | accuracy | " in header
        assert len(rows) == count
        assert {line.count("|") for line in (header, rule, *rows)} == {bars}
        assert rule.replace("|", "").strip("-") == ""
    first, *_, last = metrics_table(metrics).splitlines()[2:]
    assert last.startswith("| **generated** | 6 |")
    accuracy = metrics["sets"]["zoo"]["test"]["accuracy"]
    assert first.split(" | ")[0] == "| zoo (training checkpoints)"
    assert first.split(" | ")[2] == f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['std']:.2f}"
    assert any(row.endswith("| yes |") for row in baselines_table(metrics).splitlines())
    del metrics["sets"]["zoo"]["title"], metrics["data"]["score_name"]  # as in files made before
    assert "| zoo | 24 |" in metrics_table(metrics)
    assert " | accuracy | " in metrics_table(metrics)


def test_the_criteria_stand_beside_heldout_networks_and_what_is_required(metrics: dict):
    axes, criteria = metrics["verdict"]["axes"], metrics["verdict"]["criteria"]
    criteria["works"] = {
        "claim": "they work",
        "status": "failed",
        "measures": {
            "share": {
                "name": "share of the score",
                "value": {"value": 0.9, "low": None, "high": 0.95},
                "heldout": 1.0,
                "least": 0.97,
                "most": None,
                "status": "failed",
            },
            "few": {
                "name": "few",
                "value": {"value": 0.9, "low": None, "high": None, "note": "no interval: too few samples: 5"},
                "heldout": 1.0,
                "least": 0.97,
                "most": None,
                "status": "undecided",
            },
            "gain": {
                "name": "gain",
                "value": {"value": 0.0123, "low": 0.01, "high": 0.02},
                "heldout": None,
                "least": 0.0,
                "most": 0.02,
                "status": "passed",
            },
        },
    }
    axes["novel"] |= {"novel_and_performant": {"1": 0.25}, "heldout_novel_and_performant": {"1": 0.5}}
    axes["novel"]["weights"] |= {"rank_statistic": -3.0, "heldout_rank_statistic": 0.4}

    rows = criteria_table(metrics).splitlines()

    assert "| **works** | *they work* | | | | **failed** |" in rows
    assert "| | share of the score | 0.90 [-, 0.95] | 1.00 | ≥ 0.97 | failed |" in rows
    assert "| | few | 0.90 (no interval: too few samples: 5) | 1.00 | ≥ 0.97 | undecided |" in rows
    assert "| | gain | 0.012 [0.010, 0.020] | - | 0.000 to 0.020 | passed |" in rows
    assert "| | N&P(1), share as good as the zoo and with r of at least 1 | 0.25 | 0.50 | - | - |" in rows
    assert "| | Z_U of distances in weights | -3.00 | 0.40 | - | - |" in rows
    counts = [1 + len(criterion["measures"]) for criterion in criteria.values()]
    assert len(rows) == 2 + sum(counts) + 4
    assert {row.count("|") for row in rows} == {7}


def test_nan_and_infinity_are_null_in_json():
    found = without_nan({"a": [math.nan, {"b": -math.inf}], "c": 1.5, "d": "nan", "e": None})

    assert found == {"a": [None, {"b": None}], "c": 1.5, "d": "nan", "e": None}


def test_the_report_holds_tables_summary_and_real_figures(report: Path, metrics: dict):
    assert {path.name for path in report.iterdir()} == {"metrics.json", "report.md", *PICTURES}
    text = (report / "report.md").read_text(encoding="utf-8")
    assert text.startswith(criteria_table(metrics) + "\n\n")  # before any prose
    for part in (metrics_table(metrics), baselines_table(metrics), summarize(metrics)):
        assert part in text
    for name in PICTURES:
        assert f"]({name})" in text
        pixels = np.asarray(Image.open(report / name, formats=["PNG"]).convert("L"))
        assert min(pixels.shape) > 200
        assert pixels.std() > 5  # not blank


# Cards


def test_the_report_is_put_into_the_card_of_the_pipeline(
    report: Path, metrics: dict, tiny_pipeline: PDiffPipeline, tmp_path: Path
):
    folder = tmp_path / "pipeline"
    tiny_pipeline.save_pretrained(folder)

    add_report(folder, tiny_pipeline, report, metrics)

    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.metrics) == ("diffusers", ["accuracy"])
    assert metrics_table(metrics) in card.text
    assert f"## What was measured\n\n{criteria_table(metrics)}\n\n{summarize(metrics)}" in card.text
    for name in PICTURES:
        assert f"]({name})" in card.text
        assert (folder / name).read_bytes() == (report / name).read_bytes()
    assert strict((folder / "metrics.json").read_text(encoding="utf-8")) == json.loads(json.dumps(metrics))
    lines = card.text.splitlines()  # in Markdown a line right below a table is one more row of it
    rows = [i for i, line in enumerate(lines) if line.startswith("| **generated**")]
    assert lines[rows[-1] + 1] == ""
    PDiffPipeline.from_pretrained(folder)


def test_the_card_of_checkpoints_names_their_splits_and_columns(tiny_checkpoints: Checkpoints, tmp_path: Path):
    tiny_checkpoints.save(tmp_path / "checkpoints")

    data = DatasetCard.load(tmp_path / "checkpoints" / "README.md").data
    (config,) = data.configs
    splits = ("train", "validation", "test")
    assert config["data_files"] == [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    columns = [feature["name"] for feature in data.dataset_info["features"]]
    assert columns == ["parameters", "run", "step", "seed", "validation_score", "validation_loss"]
