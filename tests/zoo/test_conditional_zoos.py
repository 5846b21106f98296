"""Zoos with conditions: column and meaning go together, whole conditions are held out, and cards state how far."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from pdiff_hf import (
    CheckpointRecorder,
    Checkpoints,
    CheckpointsError,
    ConditionError,
    Conditions,
    TensorData,
    TensorSplit,
    append_checkpoints,
    load_checkpoints,
    merge_checkpoints,
)
from pdiff_hf.evaluation.evaluator import evaluate

PETS = Conditions("bits", ("cat", "dog", "fox", "owl"), complement=True)
MEMBERS = {"train": [["cat"], ["dog"]], "validation": [["fox"]], "test": [["cat", "dog"]]}
TRAIN = "data/train-00000-of-00001.parquet"


def with_conditions(checkpoints: Checkpoints, conditions: Conditions, given: dict[str, list]) -> Checkpoints:
    """Returns the zoo with the given conditions, in turn, in each split."""
    for split, rows in checkpoints.splits.items():
        values = conditions.vectors(given[split], len(given[split])).tolist()
        rows.columns["condition"] = [values[i % len(values)] for i in range(len(rows))]
    checkpoints.collection["conditions"] = conditions.to_dict()
    return checkpoints


@pytest.fixture
def pets(tiny_checkpoints: Checkpoints) -> Checkpoints:
    return with_conditions(tiny_checkpoints, PETS, MEMBERS)


def test_conditions_survive_saving_and_streaming(pets, tmp_path):
    pets.save(tmp_path)
    loaded = load_checkpoints(tmp_path)
    streamed = list(datasets.load_dataset(str(tmp_path), split="train", streaming=True))

    assert loaded.conditions == PETS
    assert {split: rows.condition for split, rows in loaded.splits.items()} == {
        split: rows.condition for split, rows in pets.splits.items()
    }
    assert [row["condition"] for row in streamed] == pets.zoo.condition
    written = pq.read_schema(tmp_path / TRAIN).field("condition").type
    assert written == pa.list_(pa.float32(), 4)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda zoo: zoo.collection.pop("conditions"),
            "a column 'condition', but what its numbers mean is not stated",
        ),
        (lambda zoo: zoo.splits["test"].columns.pop("condition"), "but no row of its test split has one"),
        (lambda zoo: zoo.zoo.condition.__setitem__(3, None), "but not every row of its train split has one"),
        (lambda zoo: zoo.zoo.condition.__setitem__(3, [0, 1]), "train split has a wrong condition"),
        (lambda zoo: zoo.zoo.condition.__setitem__(3, [0, 1, 0, 0.5]), r"\[0.0, 1.0, 0.0, 0.5\] was given in row 3"),
        (lambda zoo: zoo.zoo.condition.__setitem__(3, [0, 1, 0, float("nan")]), "nan.* was given in row 3"),
        (lambda zoo: zoo.collection["conditions"].pop("names"), "mean is damaged in its collection"),
    ],
)
def test_column_and_meaning_that_do_not_fit_are_refused(pets, tmp_path, damage, sentence):
    damage(pets)
    with pytest.raises(CheckpointsError, match=sentence):
        pets.save(tmp_path / "zoo")


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (
            pa.array([[1.0, 0.0]] * 24, pa.list_(pa.float32(), 2)),
            r"'condition' of type .*\[2\], but .*\[4\] is needed",
        ),
        (pa.array([[1.0, 0.0, 0.0, 0.0]] * 23 + [None], pa.list_(pa.float32(), 4)), "empty fields"),
        (pa.array([[1.0, 0.0, 0.0, None]] * 24, pa.list_(pa.float32(), 4)), "wrong condition"),
        (pa.array(["cat"] * 24), "'condition' of type string"),
        (None, "'condition' of type none"),
    ],
)
def test_damaged_columns_of_conditions_are_refused(pets, tmp_path, column, sentence):
    pets.save(tmp_path)
    table = pq.read_table(tmp_path / TRAIN).drop(["condition"])
    pq.write_table(table if column is None else table.append_column("condition", column), tmp_path / TRAIN)

    with pytest.raises(CheckpointsError, match=sentence):
        load_checkpoints(tmp_path)


def test_files_with_conditions_of_no_stated_meaning_are_refused(pets, tmp_path):
    pets.save(tmp_path)
    collection = json.loads((tmp_path / "collection.json").read_text())
    del collection["conditions"]
    (tmp_path / "collection.json").write_text(json.dumps(collection))

    with pytest.raises(CheckpointsError, match="what its numbers mean is not stated"):
        load_checkpoints(tmp_path)


@pytest.mark.parametrize("leaking", ["train", "validation"])
@pytest.mark.parametrize(
    ("leak", "sentence"),
    [
        (["cat", "dog"], r"split has \{cat, dog\} and the test split \{cat, dog\}"),
        (["fox", "owl"], r"split has \{fox, owl\}, whose complement is the same task .* test split \{cat, dog\}"),
    ],
)
def test_a_held_out_condition_or_its_complement_in_another_split_is_refused(pets, tmp_path, leaking, leak, sentence):
    pets.splits[leaking].condition[2] = PETS.vectors(leak, 1)[0].tolist()

    with pytest.raises(CheckpointsError, match=f"the {leaking} {sentence}"):
        pets.save(tmp_path / "zoo")


def test_an_evaluation_refuses_a_zoo_that_leaks(tiny_pipeline, tiny_checkpoints, random_images):
    images = random_images(tiny_checkpoints.target_model, 4)
    split = TensorSplit(images, torch.arange(4))
    leaking = with_conditions(tiny_checkpoints, PETS, {**MEMBERS, "test": [["cat"]]})

    with pytest.raises(CheckpointsError, match=r"train split has \{cat\} and the test split \{cat\}"):
        evaluate(tiny_pipeline, leaking, TensorData(split, split, split, list("0123456789")))


def test_a_complement_that_is_another_task_may_be_held_out(tiny_checkpoints, tmp_path):
    plain = dataclasses.replace(PETS, complement=False)
    given = {**MEMBERS, "test": [["dog", "fox", "owl"]]}

    with_conditions(tiny_checkpoints, plain, given).save(tmp_path)

    assert load_checkpoints(tmp_path).conditions == plain


def test_parts_with_conditions_merge_and_append_if_these_mean_the_same(pets, hub, repo_id):
    halves = [dataclasses.replace(pets, splits={"train": pets.zoo.rows(range(i, 24, 2))}) for i in (0, 1)]

    merged = merge_checkpoints(halves)
    append_checkpoints(halves[0], repo_id, token="hf_alice")
    append_checkpoints(halves[1], repo_id, token="hf_alice")

    assert merged.conditions == PETS
    assert load_checkpoints(repo_id, token="hf_alice").zoo.condition == merged.zoo.condition
    other = dataclasses.replace(PETS, complement=False).to_dict()
    halves[1] = dataclasses.replace(halves[1], collection={**pets.collection, "conditions": other})
    with pytest.raises(CheckpointsError, match=r"conditions\.complement False instead of True"):
        merge_checkpoints(halves)


@pytest.mark.parametrize(
    ("conditions", "given", "words"),
    [
        (
            PETS,
            MEMBERS,
            ["4 numbers: `cat`, `dog`", "two outputs exchanged", "| train | 2 |  |", "| test | 1 | 1, 1 |"],
        ),
        (
            Conditions("numbers", ("angle",)),
            {"train": [[10], [30]], "validation": [[15]], "test": [[20], [50]]},
            ["1 number: `angle`", "standard deviations", "| validation | 1 | 0.5, 0.5 |", "| test | 2 | 1, 1.5 |"],
        ),
    ],
)
def test_a_card_states_the_conditions_and_how_far_they_are_held_out(
    tiny_checkpoints, tmp_path, conditions, given, words
):
    with_conditions(tiny_checkpoints, conditions, given).save(tmp_path)

    card = (tmp_path / "README.md").read_text()
    assert [word for word in words if word not in card] == []


def test_a_recorder_keeps_the_condition_of_each_run(mlp, tmp_path, random_images: Callable):
    recorder = CheckpointRecorder(mlp, "head", conditions=PETS)
    recorder.freeze_trunk()
    for run, (split, member) in enumerate([("train", ["cat"]), ("train", [0, 1, 0, 0]), ("test", ["cat", "dog"])]):
        nn.init.normal_(mlp.classifier.weight)
        recorder.record(9, split, run=f"run-{run}", condition=member)
    restored = CheckpointRecorder(mlp, "head", conditions=PETS)
    restored.load_state_dict(recorder.state_dict())
    restored.checkpoints().save(tmp_path)

    loaded = load_checkpoints(tmp_path)
    assert loaded.conditions == PETS
    assert loaded.zoo.condition == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert torch.tensor(loaded.splits["test"].condition).tolist() == [[1, 1, 0, 0]]


def test_a_recorder_asks_for_a_condition_and_for_what_it_means(mlp):
    recorder = CheckpointRecorder(mlp, "head", conditions=PETS)
    with pytest.raises(CheckpointsError, match="pass that of the run"):
        recorder.record(0)
    with pytest.raises(ConditionError, match="no 'cow' among the names"):
        recorder.record(0, condition=["cow"])
    with pytest.raises(CheckpointsError, match="but not what it means"):
        CheckpointRecorder(mlp, "head").record(0, condition=[1])
