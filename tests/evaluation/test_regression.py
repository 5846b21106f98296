"""A regression goes end to end through fitting, evaluation, report and card."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from pdiff_hf import (
    Checkpoints,
    CheckpointSplit,
    MLPConfig,
    MLPForImageClassification,
    Recipe,
    TensorData,
    fit,
    make_processor,
    network_logits,
)
from pdiff_hf.data.inputs import TensorSplit
from pdiff_hf.evaluation import evaluate, metrics_table, summarize, write_report
from pdiff_hf.evaluation.report import add_report, baselines_table
from pdiff_hf.loops import seeded
from pdiff_hf.targets.symmetries import Symmetries
from pdiff_hf.targets.task import regression

CONFIG = MLPConfig(image_size=2, num_channels=1, hidden_sizes=[4], num_labels=1, problem_type="regression")


@pytest.fixture(scope="module")
def data() -> TensorData:
    """Four numbers, labeled with a noisy nonlinear function of them."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> TensorSplit:
        x = torch.randn(count, 1, 2, 2, generator=generator)
        labels = x.flatten(1).relu() @ torch.tensor([2.0, 1.0, -1.0, 0.5]) + 3
        return TensorSplit(x, labels + 0.1 * torch.randn(count, generator=generator))

    return TensorData(split(200), split(100), split(100), label_names=[])


def trained(seed: int, data: TensorData) -> dict[str, torch.Tensor]:
    with seeded(seed):
        model = MLPForImageClassification(CONFIG)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        regression.loss(model(data.train.features).logits, data.train.labels).backward()
        optimizer.step()
    return model.state_dict()


@pytest.fixture(scope="module")
def vectors(data: TensorData) -> torch.Tensor:
    processor = make_processor(MLPForImageClassification(CONFIG), "full")
    return torch.stack([processor.flatten(trained(seed, data)) for seed in range(40)])


@pytest.fixture
def runs(tiny_checkpoints: Checkpoints, vectors: torch.Tensor) -> Checkpoints:
    """Independent runs, 24 of them the zoo and 8 held out."""
    model = MLPForImageClassification(CONFIG).eval()
    splits, start = {}, 0
    for name, split in tiny_checkpoints.splits.items():
        stop = start + len(split)
        columns = split.columns | {"run": [f"run-{i}" for i in range(start, stop)]}
        splits[name] = CheckpointSplit(vectors[start:stop], **columns)
        start = stop
    return dataclasses.replace(
        tiny_checkpoints, splits=splits, processor=make_processor(model, "full"), target_model=model
    )


def test_a_regression_is_fitted_evaluated_and_reported(
    runs: Checkpoints, data: TensorData, tiny_recipe: Recipe, tmp_path: Path
):
    pipe = fit(runs, tiny_recipe)

    evaluation = evaluate(pipe, runs, data, num_models=6, num_baseline_models=4)
    metrics = write_report(tmp_path / "report", evaluation, pipe.metrics, pipe.processor)
    pipe.save_pretrained(tmp_path / "pipeline")
    add_report(tmp_path / "pipeline", pipe, tmp_path / "report", metrics)

    assert (metrics["data"]["task"], metrics["data"]["score_name"]) == ("regression", "R²")
    values = network_logits(pipe.target_model, pipe.processor, runs.zoo.parameters, data.test.features)[..., 0]
    labels = data.test.labels
    expected = 1 - ((values - labels) ** 2).mean(1) / labels.var(correction=0)
    torch.testing.assert_close(evaluation.networks["zoo"].scores["test"].float(), expected, atol=1e-4, rtol=0)
    assert metrics["sets"]["zoo"]["test"]["accuracy"]["mean"] > 0.8
    assert not any("ensembles" in figures for figures in metrics["sets"].values())
    for table in (metrics_table(metrics), baselines_table(metrics)):
        assert " | R² | " in table.splitlines()[0]
    card = (tmp_path / "pipeline" / "README.md").read_text(encoding="utf-8")
    assert metrics_table(metrics) in card
    assert "networks reach R² = " in summarize(metrics)
    assert "accuracy" not in re.sub(r"accuracy_\w+\.png", "", card)


def test_the_outputs_of_a_regression_are_not_shifted(vectors: torch.Tensor, data: TensorData):
    model = MLPForImageClassification(CONFIG).eval()
    processor = make_processor(model, "full")

    symmetries = Symmetries(model, processor, vectors[0], data.test.features[:32])
    canonical = symmetries.canonicalize(vectors[:3])

    assert symmetries.shift == ()
    values = [network_logits(model, processor, v, data.test.features) for v in (vectors[:3], canonical)]
    torch.testing.assert_close(*values, atol=1e-4, rtol=1e-4)
