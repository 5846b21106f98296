"""The evaluation of a conditional pipeline end to end: report, figure, card, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import run

from pdiff_hf import Checkpoints, ConditionError, ImageData, PDiffPipeline, Recipe, fit, load_recipe
from pdiff_hf.evaluation import evaluate
from pdiff_hf.evaluation.auditing import AuditSettings, audit_pipeline
from pdiff_hf.evaluation.conditional_verdict import MEANINGS
from pdiff_hf.evaluation.sets import CONDITIONAL_SETS
from pdiff_hf.hub.cards import ALL_PICTURES
from pdiff_hf.pipelines.describing import describe, description_table

DRAWN = 3  # for each held-out condition


@pytest.fixture(scope="module")
def evaluated(collected_subsets: Checkpoints, small_digits: ImageData, tmp_path_factory) -> Path:
    """A folder with a zoo, a pipeline that knows next to nothing, and the report of its evaluation."""
    folder = tmp_path_factory.mktemp("evaluated")
    collected_subsets.save(folder / "zoo")
    shipped = load_recipe("fast")
    tiny: dict = {"config": {"width": 16, "num_blocks": 1}, "max_train_steps": 20, "train_batch_size": 16}
    denoiser = dataclasses.replace(shipped.denoiser, **tiny)
    pipe = fit(collected_subsets, Recipe(shipped.autoencoder, denoiser), small_digits)
    pipe.save_pretrained(folder / "pipeline")
    named = ["--pipeline", folder / "pipeline", "--checkpoints", folder / "zoo", "--output_dir", folder / "report"]
    run("evaluate_pipeline", *named, "--num_models_each", str(DRAWN), "--num_baseline_models", "2")
    return folder


@pytest.fixture
def metrics(evaluated: Path) -> dict:
    return json.loads((evaluated / "report/metrics.json").read_text(encoding="utf-8"))


def test_the_report_of_a_conditional_pipeline_has_its_figures_by_task(evaluated: Path, metrics: dict):
    assert {path.name for path in (evaluated / "report").iterdir()} == {"metrics.json", "report.md", "conditions.png"}
    assert metrics["verdict"]["word"] in MEANINGS
    assert metrics["sets"].keys() == CONDITIONAL_SETS.keys() - {"parent"}
    assert metrics["sets"]["generated"]["test"]["n"] == 8 * DRAWN
    assert len(metrics["tasks"]) == 8
    means = [task["scores"]["generated"] for task in metrics["tasks"]]
    assert metrics["sets"]["generated"]["test"]["accuracy"]["mean"] == pytest.approx(sum(means) / 8)
    assert {"denoiser_seconds", "sampling_seconds", "evaluation_seconds"} <= set(metrics["costs"])
    pixels = np.asarray(Image.open(evaluated / "report/conditions.png", formats=["PNG"]).convert("L"))
    assert min(pixels.shape) > 200
    assert pixels.std() > 5  # not blank


def test_the_card_states_word_baselines_and_distance(evaluated: Path, metrics: dict):
    card = (evaluated / "pipeline/README.md").read_text(encoding="utf-8")

    assert f"The audit calls it **{metrics['verdict']['word']}**" in card
    assert "On 8 tasks that nobody trained" in card
    least = min(task["distance"] for task in metrics["tasks"])
    assert f"at a distance of {least:.2f} to" in card
    for figures in metrics["sets"].values():
        assert f"| {figures['title']} | {100 * figures['test']['interval']['value']:.2f} [" in card
    assert "![Score on tasks that nobody trained](conditions.png)" in card
    assert "max-similarity" not in card


def test_a_pipeline_with_such_a_report_is_loaded_and_described(evaluated: Path, metrics: dict, tmp_path: Path):
    pipe = PDiffPipeline.from_pretrained(evaluated / "pipeline")
    described = describe(evaluated / "pipeline")
    pipe.save_pretrained(tmp_path)

    assert described["verdict"]["word"] == metrics["verdict"]["word"]
    assert "heldout " in description_table(described)
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert "conditions.png" in ALL_PICTURES


def test_tasks_that_are_not_known_by_name_are_refused(evaluated: Path, subsets_zoo: Checkpoints, tmp_path: Path):
    subsets_zoo.collection["runs"]["tasks"] = None
    subsets_zoo.save(tmp_path / "zoo")
    settings = AuditSettings(pipeline=str(evaluated / "pipeline"), checkpoints=str(tmp_path / "zoo"))

    with pytest.raises(ConditionError, match="does not name one of the tasks subsets, priors, angles; eval"):
        audit_pipeline(dataclasses.replace(settings, output_dir=str(tmp_path / "report")))


@pytest.mark.parametrize("name", ["drop_broken", "uncertainty"])
def test_what_is_for_generators_without_conditions_is_refused(evaluated: Path, tmp_path: Path, name: str):
    settings = AuditSettings(pipeline=str(evaluated / "pipeline"), checkpoints=str(evaluated / "zoo"), **{name: True})

    with pytest.raises(ConditionError, match=f"--{name} is for generators without conditions; leave it out"):
        audit_pipeline(dataclasses.replace(settings, output_dir=str(tmp_path / "report")))


def test_the_audit_of_generators_without_conditions_names_the_other_one(
    evaluated: Path, collected_subsets: Checkpoints, small_digits: ImageData
):
    pipe = PDiffPipeline.from_pretrained(evaluated / "pipeline")
    with pytest.raises(ConditionError, match=r"evaluated on held-out ones: by pdiff_hf\.audit_conditional"):
        evaluate(pipe, collected_subsets, small_digits)
