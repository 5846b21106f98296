"""Predictive uncertainty: its figures against references, last-layer Laplace, and the script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import build
from scripts import run
from torch.func import functional_call
from torch.nn import functional
from torchmetrics.functional.classification import binary_auroc

from pdiff_hf import Checkpoints, ImageData, PDiffPipeline, load_images
from pdiff_hf.evaluation import compare_uncertainty, evaluate
from pdiff_hf.evaluation.auditing import AuditSettings
from pdiff_hf.evaluation.laplace import LastLayerLaplace, last_layer
from pdiff_hf.evaluation.predictive import require_classifier, training_seconds
from pdiff_hf.evaluation.shifts import CORRUPTIONS
from pdiff_hf.evaluation.uncertainty import detection_figures, fit_temperature
from pdiff_hf.evaluation.uncertainty_report import (
    corruption_curves,
    detection_table,
    summarize_uncertainty,
    uncertainty_table,
)
from pdiff_hf.targets.calibration import calibration_figures, ensemble_prediction

SINGLE = ("heldout_1", "average", "generated_1")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits", image_size=8)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Figures


def test_auroc_is_that_of_torchmetrics_and_fpr95_is_a_share_above_a_threshold():
    inside, outside = normal(500).double(), 1 + normal(300, seed=1).double()

    figures = detection_figures(inside, outside)

    is_outside = torch.cat([torch.zeros(500), torch.ones(300)]).long()
    expected = binary_auroc(torch.cat([inside, outside]).sigmoid(), is_outside).item()
    assert figures["auroc"] == pytest.approx(expected, abs=1e-6)
    threshold = inside.sort().values[474]  # 475 of 500 are not larger
    assert figures["fpr95"] == pytest.approx((outside <= threshold).double().mean().item(), abs=1e-12)


def test_scores_that_cannot_tell_images_apart_have_an_auroc_of_one_half():
    assert detection_figures(torch.zeros(20), torch.zeros(30)) == {"auroc": 0.5, "fpr95": 1.0}
    assert detection_figures(torch.zeros(20), torch.ones(30)) == {"auroc": 1.0, "fpr95": 0.0}


def test_temperature_scaling_undoes_logits_that_were_multiplied_by_3_and_lowers_their_ece():
    logits = 2 * normal(20_000, 4).double()
    labels = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    confident = (3 * logits).log_softmax(-1)

    temperature = fit_temperature(confident, labels)

    assert temperature == pytest.approx(3, rel=0.05)
    before = calibration_figures(confident, labels)
    after = calibration_figures((confident / temperature).log_softmax(-1), labels)
    assert before["ece"] > 0.1
    assert after["ece"] < 0.02
    assert after["nll"] < before["nll"]
    assert after["accuracy"] == before["accuracy"]


def test_members_that_agree_have_no_mutual_information_and_those_that_contradict_each_other_have_log_2():
    logits = normal(1, 6, 3)

    mean, identical = ensemble_prediction(logits.expand(5, -1, -1))
    _, opposed = ensemble_prediction(torch.tensor([[[50.0, 0.0]], [[0.0, 50.0]]]))

    torch.testing.assert_close(mean, logits[0].double().log_softmax(-1))
    torch.testing.assert_close(identical, torch.zeros(6).double(), rtol=0, atol=1e-12)
    assert opposed.item() == pytest.approx(torch.tensor(2.0).log().item())


# Last-layer Laplace


@pytest.fixture(scope="module")
def laplace(digits: ImageData) -> LastLayerLaplace:
    known = digits.inputs(digits.validation)
    return LastLayerLaplace(build("mlp"), digits.inputs(digits.train), known, digits.validation.labels)


def test_the_curvature_is_the_hessian_of_the_training_loss_in_the_last_layer(
    laplace: LastLayerLaplace, digits: ImageData
):
    network = build("mlp").double()
    images, labels = digits.inputs(digits.train).double(), digits.train.labels
    names = [name for name, _ in network.named_parameters()][-2:]  # weight (10, 8), then bias (10,)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        tensors = dict(zip(names, (weights[:, :-1], weights[:, -1]), strict=True))
        return functional.cross_entropy(functional_call(network, tensors, (images,)).logits, labels, reduction="sum")

    expected = torch.autograd.functional.hessian(loss, laplace.weights).flatten(2).flatten(0, 1)
    found = laplace.directions * laplace.eigenvalues @ laplace.directions.T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_draws_of_the_last_layer_spread_around_the_trained_weights_as_the_posterior_does(
    laplace: LastLayerLaplace, digits: ImageData
):
    drawn = torch.cat(list(laplace.iter_logits(digits.inputs(digits.test)[:300])), 1)

    assert drawn.shape == (100, 300, 10)
    variance = (1 / (laplace.eigenvalues.clamp(min=0) + laplace.prior_precision)).sum()
    spread = (laplace.samples - laplace.weights).flatten(1).square().sum(1).mean()
    assert spread.item() == pytest.approx(variance.item(), rel=0.15)


def test_networks_without_a_linear_last_layer_are_recognized():
    inputs, network = normal(4, 1, 8, 8), build("mlp")
    assert last_layer(network, inputs) is not None

    network.register_forward_hook(lambda module, args, output: type(output)(logits=output.logits.tanh()))
    assert last_layer(network, inputs) is None


# The comparison


@pytest.fixture(scope="module")
def kept() -> dict:
    """What the next fixture makes once."""
    return {}


@pytest.fixture
def report(kept: dict, tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, tmp_path_factory) -> Path:
    """The folder of what the script writes with `--uncertainty`, beside its report."""
    if "folder" not in kept:
        kept["folder"] = folder = tmp_path_factory.mktemp("uncertainty")
        tiny_pipeline.save_pretrained(folder / "pipeline")
        tiny_checkpoints.save(folder / "zoo")
        places = {"pipeline": "pipeline", "checkpoints": "zoo", "output_dir": "report"}
        flags = [part for flag, name in places.items() for part in (f"--{flag}", folder / name)]
        counts = ("--num_models", 6, "--num_baseline_models", 3, "--num_ensemble_members", 3)
        run("evaluate_pipeline", *flags, *counts, "--uncertainty", "--ood_dataset_name", "digits")
    return kept["folder"] / "report"


@pytest.fixture
def uncertainty(report: Path) -> dict:
    return json.loads((report / "metrics.json").read_text())["uncertainty"]


def test_the_script_compares_single_networks_and_ensembles(uncertainty: dict):
    predictors = uncertainty["predictors"]

    assert uncertainty["members"] == 2  # the zoo and the held-out checkpoints have two runs each
    assert list(predictors) == [
        "heldout_1",
        "laplace",
        "average",
        "zoo",
        "zoo_large",
        "heldout",
        "gaussian_codes",
        "generated_1",
        "generated",
        "generated_large",
    ]
    for name, figures in predictors.items():
        assert figures["networks"] == {"generated_large": 6}.get(name, 1 if name in (*SINGLE, "laplace") else 2)
        assert set(figures["test"]) == set(figures["unscaled"]) == {"accuracy", "nll", "brier", "ece"}
        assert {kind: len(curves["nll"]) for kind, curves in figures["corrupted"].items()} == dict.fromkeys(
            CORRUPTIONS, 5
        )
        assert (figures["mutual_information"] == 0) == (name in SINGLE)
        assert ("mutual_information" in figures["ood"]["digits"]) == (name not in SINGLE)
        assert figures["training_seconds"] is None  # this zoo does not state them
    assert predictors["generated"]["ensembles"] == 3
    assert predictors["average"]["std"]["nll"] is None


def test_test_images_themselves_are_not_told_apart(uncertainty: dict):
    for figures in uncertainty["predictors"].values():
        assert figures["ood"]["digits"]["entropy"]["auroc"] == pytest.approx(0.5)


def test_the_report_and_the_card_show_the_comparison(report: Path, uncertainty: dict):
    text = (report / "report.md").read_text()

    for part in (uncertainty_table, detection_table, summarize_uncertainty):
        assert part(uncertainty) in text
    assert "](uncertainty.png)" in text
    pipeline = report.parent / "pipeline"
    assert "](uncertainty.png)" in (pipeline / "README.md").read_text()
    assert (pipeline / "uncertainty.png").read_bytes() == (report / "uncertainty.png").read_bytes()


def test_the_summary_states_where_drawn_ensembles_lose_to_the_average(uncertainty: dict):
    def summary(low: float, high: float) -> str:
        uncertainty["nll_of_drawn_minus"]["average"] = {"value": (low + high) / 2, "low": low, "high": high}
        return summarize_uncertainty(uncertainty)

    assert "drawn networks has a higher NLL than the plain average" in summary(0.1, 0.3)
    assert "The average is the better predictor" in summary(0.1, 0.3)
    assert "drawn networks has a lower NLL than the plain average" in summary(-0.3, -0.1)
    assert "cannot be told apart from that of the plain average" in summary(-0.1, 0.1)
    assert "better predictor" not in summary(-0.3, -0.1) + summary(-0.1, 0.1)


def test_the_summary_states_when_no_tried_ensemble_of_held_out_networks_is_as_good(uncertainty: dict):
    uncertainty["deep_ensemble_equivalent"] = {"value": 64.0, "largest": 64}
    assert "at least 64.0 held-out networks have the same NLL" in summarize_uncertainty(uncertainty)

    uncertainty["deep_ensemble_equivalent"] = None
    assert "held-out" not in summarize_uncertainty(uncertainty)


def test_curves_have_a_line_for_each_predictor_and_labeled_axes(uncertainty: dict):
    figure = corruption_curves(uncertainty)

    assert len(figure.axes) == 2 * len(CORRUPTIONS)
    assert [axes.get_title() for axes in figure.axes[:4]] == list(CORRUPTIONS)
    assert figure.axes[0].get_ylabel() == "test accuracy (%)"
    names = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"one held-out", "held-out", "zoo", "average of all", "one drawn", "drawn"} < names
    assert all(len(axes.lines) == len(names) == 8 for axes in figure.axes)


def test_training_seconds_count_the_zoo_and_both_stages_of_what_is_drawn(tiny_checkpoints: Checkpoints):
    for split, rows in tiny_checkpoints.splits.items():  # 24 + 8 + 8 runs
        rows.columns["run"] = [f"{split}-{row}" for row in range(len(rows))]
    stages = {"autoencoder_seconds": 3.0, "denoiser_seconds": 5.0}

    of_runs = training_seconds(tiny_checkpoints, stages | {"runs_seconds": 80.0, "preparation_seconds": 1.0}, 0.1)
    of_trajectory = training_seconds(tiny_checkpoints, stages | {"trajectory_seconds": 7.0}, 0.1)

    assert (of_runs("heldout_1", 1), of_runs("heldout", 10), of_runs("zoo_large", 24)) == (3, 21, 49)
    assert (of_runs("average", 1), of_runs("gaussian_codes", 10)) == (49, 52)
    assert of_runs("generated", 10) == pytest.approx(58)
    assert (of_trajectory("heldout", 10), of_trajectory("average", 1)) == (7, 7)


def test_without_held_out_checkpoints_what_needs_them_is_left_out(
    tiny_pipeline: PDiffPipeline, tiny_checkpoints: Checkpoints, digits: ImageData
):
    tiny_checkpoints.splits["test"] = tiny_checkpoints.splits["test"].rows(slice(0))
    evaluation = evaluate(tiny_pipeline, tiny_checkpoints, digits, num_models=4, num_baseline_models=2)

    found = compare_uncertainty(evaluation, tiny_pipeline, tiny_checkpoints, digits)

    assert not {"heldout", "heldout_1", "laplace"} & found["predictors"].keys()
    assert found["deep_ensemble_equivalent"] is None
    assert set(found["nll_of_drawn_minus"]) == {"average", "gaussian_codes", "zoo_large"}
    assert list(found["predictors"]["generated"]["ood"]) == ["shuffled pixels", "uniform noise", "inverted"]


def test_what_cannot_be_compared_is_refused(tiny_pipeline: PDiffPipeline):
    with pytest.raises(ValueError, match="--ood_dataset_name is for the comparison that --uncertainty adds"):
        AuditSettings(pipeline="a", checkpoints="b", ood_dataset_name="digits")

    tiny_pipeline.target_model.config.problem_type = "regression"
    with pytest.raises(ValueError, match="compared for classifiers, but these networks solve a regression"):
        require_classifier(tiny_pipeline)
