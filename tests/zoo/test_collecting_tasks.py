"""Conditional collections: each run is trained on its own task, whole tasks are held out, whoever computes what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build, run_snippets
from scripts import run
from torch import nn

from pdiff_hf import (
    Checkpoints,
    CheckpointsError,
    ConditionError,
    Conditions,
    ImageData,
    MLPConfig,
    MLPForImageClassification,
    MultiRunSettings,
    collect_runs,
    load_checkpoints,
    load_images,
    make_processor,
    merge_checkpoints,
    network_predictions,
)
from pdiff_hf.loops import IdentityError, seeded
from pdiff_hf.settings import RunSettings
from pdiff_hf.zoo.run_groups import batch_rows, initial_parameters, train_group
from pdiff_hf.zoo.settings import load_images_of_zoo, load_target, target_optimization
from pdiff_hf.zoo.tasks import TASKS, Tasks, make_tasks, tasks_of

SETTINGS = MultiRunSettings(
    image_size=8,
    model_type="pdiff_mlp",
    model_config='{"hidden_sizes": [8]}',
    subset=["full"],
    target_train_steps=40,
    target_learning_rate=0.02,
    train_batch_size=32,
    tasks="subsets",
    num_tasks=4,
    num_validation_tasks=1,
    num_test_tasks=2,
    runs_per_task=3,
    runs_per_group=5,
)
ROWS = {"train": 12, "validation": 3, "test": 6}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_images("digits", image_size=8)


def collected(images: ImageData, state: RunSettings | None = None, **changes: Any) -> Checkpoints:
    settings = dataclasses.replace(SETTINGS, **changes)
    return collect_runs(images, load_target(settings, images), settings, state)


def scores(zoo: Checkpoints, tasks: Tasks, images: ImageData, split: str, condition: list[float]) -> torch.Tensor:
    """The validation accuracy of each network of a split on one task, `(n,)`."""
    inputs, labels = images.inputs(images.validation), images.validation.labels
    inputs, labels = tasks.examples(inputs, labels, torch.tensor(condition))
    predicted, _ = network_predictions(zoo.target_model, zoo.processor, zoo.splits[split].parameters, inputs, labels)
    return (predicted == labels).float().mean(1)


@pytest.mark.parametrize("name", TASKS)
def test_each_run_has_its_own_task_and_whole_tasks_are_held_out(digits: ImageData, tmp_path: Path, name: str):
    collected(digits, tasks=name, target_train_steps=80).save(tmp_path)
    zoo = load_checkpoints(tmp_path)
    images = load_images_of_zoo(zoo)
    tasks = tasks_of(zoo, images)

    assert {split: len(rows) for split, rows in zoo.splits.items()} == ROWS
    assert zoo.conditions == tasks.conditions
    assert list(zoo.target_model.config.id2label.values()) == tasks.label_names
    drawn = tasks.draw({"train": 4, "validation": 1, "test": 2}, seed=0)
    for split, rows in zoo.splits.items():
        assert torch.equal(torch.tensor(rows.condition), drawn[split].repeat_interleave(3, dim=0))
        for place in range(0, len(rows), 3):
            on_task = scores(zoo, tasks, images, split, rows.condition[place])
            assert on_task[place : place + 3].tolist() == pytest.approx(rows.validation_score[place : place + 3])
    on_first = scores(zoo, tasks, images, "train", zoo.zoo.condition[0])
    assert on_first[:3].mean() > on_first[3:].mean() + 0.02
    assert len(torch.cat([rows.parameters for rows in zoo.splits.values()]).unique(dim=0)) == 21
    card = (tmp_path / "README.md").read_text()
    assert f"`{name}`" in card
    assert "| test | 2 | " in card


def test_runs_of_different_tasks_are_what_plain_training_makes_of_them(digits: ImageData):
    model = build("mlp")
    pixel_values, labels = digits.inputs(digits.train), digits.train.labels
    few = (pixel_values[:50].flip(-1), labels[:50])
    examples = [(pixel_values, labels), few, (pixel_values, labels.roll(1)), few]
    seeds, optimization = [5, 6, 7, 8], target_optimization(SETTINGS, 6)
    processor = make_processor(model, "full")
    start = initial_parameters(model, processor, seeds)

    grouped = train_group(model, processor, start, seeds, examples, optimization, recorded=[5])

    for place, (own, targets) in enumerate(examples):
        processor.load_into(model, start[place])
        optimizer = torch.optim.AdamW(model.parameters(), lr=optimization.learning_rate, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + torch.tensor(torch.pi * step / 6).cos().item())
        )
        batches = batch_rows([seeds[place]], [len(targets)], 32)
        for _ in range(6):
            rows = next(batches)[0]
            model(own[rows], labels=targets[rows]).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        plain = processor.flatten(model.state_dict())
        torch.testing.assert_close(grouped[place, 0], plain, atol=1e-5, rtol=1e-4)


def test_shards_and_resumed_collections_are_those_collected_at_once(digits: ImageData, tmp_path: Path):
    changes = {"tasks": "priors", "target_train_steps": 3, "canonicalize": True}
    at_once = collected(digits, **changes)

    state = RunSettings(str(tmp_path / "zoo"))
    collected(digits, state, **changes)
    resumed = dataclasses.replace(state, resume_from_checkpoint="latest")
    assert_same(collected(digits, resumed, **changes), at_once)
    assert_same(merge_checkpoints([collected(digits, run_shard=f"{i}/2", **changes) for i in (2, 1)]), at_once)
    with pytest.raises(IdentityError, match="runs_per_task"):
        collected(digits, resumed, **changes, runs_per_task=4)


def assert_same(zoo: Checkpoints, expected: Checkpoints) -> None:
    assert zoo.conditions == expected.conditions
    for split, rows in expected.splits.items():
        assert torch.equal(zoo.splits[split].parameters, rows.parameters)
        assert zoo.splits[split].columns == rows.columns


def test_the_script_collects_tasks(tmp_path: Path):
    flags = ["--dataset_name", "digits", "--image_size", "8", "--model_type", "pdiff_mlp", "--subset", "full"]
    flags += ["--tasks", "angles", "--num_tasks", "3", "--num_validation_tasks", "1", "--num_test_tasks", "1"]
    flags += ["--runs_per_task", "2", "--target_train_steps", "2", "--output_dir", str(tmp_path / "zoo")]

    run("collect_runs", *flags)

    zoo = load_checkpoints(tmp_path / "zoo")
    assert zoo.conditions == Conditions("numbers", ("angle",))
    assert {split: len(set(map(tuple, rows.condition))) for split, rows in zoo.splits.items()} == {
        "train": 3,
        "validation": 1,
        "test": 1,
    }


class Brightness(Tasks):
    """Regression of an image's mean, with noise of a strength that is the condition."""

    def __init__(self, strengths: Mapping[str, list[float]]) -> None:
        self.conditions, self.label_names = Conditions("numbers", ("strength",)), ["value"]
        self.strengths = strengths

    def draw(self, counts: Mapping[str, int], seed: int) -> dict[str, torch.Tensor]:
        return {split: torch.tensor(values)[:, None] for split, values in self.strengths.items()}

    def examples(
        self, inputs: torch.Tensor, labels: torch.Tensor, condition: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs + condition * inputs.roll(1, 0), 10 * inputs.mean((1, 2, 3))


def build_regression() -> nn.Module:
    config = MLPConfig(image_size=8, num_channels=1, hidden_sizes=[16], num_labels=1, problem_type="regression")
    with seeded(0):
        return MLPForImageClassification(config)


OWN = dataclasses.replace(SETTINGS, tasks=None, target_train_steps=100)
STRENGTHS = {"train": [0.0, 0.1, 0.2, 0.3], "validation": [0.15], "test": [0.05, 0.25]}


def test_own_tasks_are_collected_as_the_families_are(digits: ImageData, tmp_path: Path):
    collect_runs(digits, build_regression(), OWN, tasks=Brightness(STRENGTHS)).save(tmp_path)

    zoo = load_checkpoints(tmp_path)
    assert torch.tensor(zoo.splits["test"].condition).tolist() == torch.tensor([[0.05]] * 3 + [[0.25]] * 3).tolist()
    assert max(zoo.zoo.validation_score) > 0.9  # R²
    assert tasks_of(zoo, digits) is None
    assert load_images_of_zoo(zoo).label_names == digits.label_names


@pytest.mark.parametrize(
    ("strengths", "error", "sentence"),
    [
        ({"test": [0.1, 0.25]}, CheckpointsError, "train split has strength 0.1 and the test split strength 0.1"),
        ({"train": [0.1]}, ConditionError, "Brightness has drawn {'train': 1, 'validation': 1, 'test': 2}"),
        ({"train": [0.0, 0.1, 0.2, float("inf")]}, ConditionError, "finite"),
    ],
)
def test_own_tasks_that_draw_wrongly_are_refused_before_the_cost(digits: ImageData, strengths, error, sentence):
    with pytest.raises(error, match=sentence):
        collect_runs(digits, build_regression(), OWN, tasks=Brightness({**STRENGTHS, **strengths}))


@pytest.mark.parametrize(
    ("changes", "tasks", "sentence"),
    [
        ({"num_tasks": None}, None, "state it with --num_tasks"),
        ({"tasks": None}, None, "state which with --tasks"),
        ({"tasks": "colors"}, None, "There are the tasks subsets, priors, angles, but 'colors'"),
        ({}, Brightness(STRENGTHS), "The settings name the tasks 'subsets', but others were given"),
        ({"trunk_steps": 3}, None, "leave out --trunk_steps"),
        ({}, None, "2 outputs, but the target has 10"),
    ],
)
def test_settings_tasks_and_networks_that_do_not_fit_are_refused(digits: ImageData, changes, tasks, sentence):
    with pytest.raises(ConditionError, match=sentence):
        collect_runs(digits, build("mlp"), dataclasses.replace(SETTINGS, **changes), tasks=tasks)


def test_a_collection_without_tasks_does_not_mention_them(digits: ImageData):
    zoo = collected(digits, tasks=None, num_tasks=None, num_runs=2, num_validation_runs=1, num_test_runs=1)

    assert zoo.conditions is zoo.zoo.condition is tasks_of(zoo, digits) is None
    assert not [name for name in (*zoo.collection, *zoo.collection["runs"]) if "task" in name or "condition" in name]


def test_the_snippets_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    namespace = run_snippets(Path(__file__).parents[2] / "docs" / "conditional.md")

    assert load_checkpoints("contrasts").conditions == namespace["Contrasts"].conditions
    assert namespace["out"].condition_distance.shape == (4,)
    assert namespace["pipe"].conditions.meaning == namespace["Contrasts"].conditions
    assert load_checkpoints("pets").zoo.condition == [[1, 1, 0, 0], [1, 0, 0, 0]]


def test_images_of_other_classes_are_not_those_of_the_tasks(digits: ImageData):
    zoo = collected(digits, target_train_steps=1)
    assert tasks_of(zoo, digits).conditions == make_tasks("subsets", digits.label_names).conditions
    with pytest.raises(ValueError, match="conditions of the zoo are for '0', '1'"):
        tasks_of(zoo, dataclasses.replace(digits, label_names=list("abcdefghij")))
