"""Checkpoint zoos: bit-exact on disk, with columns that may grow, readable by plain `datasets`, written atomically."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForImageClassification

from pdiff_hf import (
    CheckpointRecorder,
    Checkpoints,
    CheckpointSplit,
    Conditions,
    HubNotFoundError,
    NonFiniteParametersError,
    append_checkpoints,
    load_checkpoints,
    merge_checkpoints,
)
from pdiff_hf.folders import UnwritableFolderError
from pdiff_hf.zoo import parquet as checkpoint_shards
from pdiff_hf.zoo.parquet import CheckpointsError

TRAIN = "data/train-00000-of-00001.parquet"
DOCUMENTED = {
    "parameters": datasets.List(datasets.Value("float32"), length=90),
    "run": datasets.Value("string"),
    "step": datasets.Value("int32"),
    "seed": datasets.Value("int64"),
    "validation_score": datasets.Value("float32"),
    "validation_loss": datasets.Value("float32"),
    "condition": datasets.List(datasets.Value("float32"), length=2),
}


def assert_same_zoo(zoo: CheckpointSplit, expected: CheckpointSplit) -> None:
    assert zoo.parameters.dtype == torch.float32
    assert torch.equal(zoo.parameters, expected.parameters)
    assert zoo.columns.keys() == expected.columns.keys()
    for name, values in expected.columns.items():
        if "validation" in name:
            assert zoo.columns[name] == pytest.approx(values, rel=1e-7, nan_ok=True)
        else:
            assert zoo.columns[name] == values, name


@pytest.fixture
def grown(tiny_checkpoints: Checkpoints) -> Checkpoints:
    """A zoo with conditions and columns that the format does not know."""
    tiny_checkpoints.collection["conditions"] = Conditions("numbers", ("angle", "size")).to_dict()
    for place, zoo in enumerate(tiny_checkpoints.splits.values()):
        rows = range(len(zoo))
        zoo.columns["condition"] = [[row / 4, float(place)] for row in rows]
        zoo.columns["optimizer"] = ["sgd" if row % 2 else None for row in rows]
        zoo.columns["note"] = [{"epochs": row, "tags": ["a"] * row} for row in rows]
    return tiny_checkpoints


def test_dataset_survives_saving_bit_for_bit(grown, tmp_path):
    grown.zoo.validation_loss[3] = math.nan  # not measured
    grown.zoo.parameters[0, :3] = torch.tensor([1e-45, -0.0, 3.4e38])

    grown.save(tmp_path / "zoo")
    loaded = load_checkpoints(tmp_path / "zoo")

    for split, zoo in grown.splits.items():
        assert_same_zoo(loaded.splits[split], zoo)
    assert loaded.zoo.condition == grown.zoo.condition
    assert loaded.processor.names == grown.processor.names
    assert loaded.preprocessing == grown.preprocessing
    assert loaded.collection == grown.collection
    assert not loaded.target_model.training


def test_plain_datasets_reads_it_as_a_whole_and_as_a_stream(grown, tmp_path):
    grown.save(tmp_path)

    loaded = datasets.load_dataset(str(tmp_path))
    streamed = list(datasets.load_dataset(str(tmp_path), split="train", streaming=True))

    assert {split: rows.num_rows for split, rows in loaded.items()} == {"train": 24, "validation": 8, "test": 8}
    for split, zoo in grown.splits.items():
        assert {name: loaded[split].features[name] for name in DOCUMENTED} == DOCUMENTED
        assert loaded[split].features["optimizer"] == datasets.Value("string")
        assert torch.equal(torch.tensor(loaded[split]["parameters"][:]), zoo.parameters)
        for name in ("run", "step", "seed", "condition", "optimizer", "note"):
            assert loaded[split][name][:] == zoo.columns[name]
    assert torch.equal(torch.tensor([row["parameters"] for row in streamed]), grown.zoo.parameters)
    assert [row["note"] for row in streamed] == grown.zoo.columns["note"]


def test_a_column_that_only_some_rows_have_is_filled_up(grown, hub, repo_id):
    test = grown.splits["test"].parameters
    condition = grown.splits["test"].condition
    grown.splits["test"] = CheckpointSplit(test, run=["b"] * 8, step=list(range(8)), seed=[1] * 8, condition=condition)
    halves = [dataclasses.replace(grown, splits={"train": grown.zoo.rows(range(i, 24, 2))}) for i in (0, 1)]
    for name in ("validation_loss", "optimizer"):
        del halves[1].zoo.columns[name]

    merged = merge_checkpoints(halves).zoo
    append_checkpoints(halves[0], repo_id, token="hf_alice")
    append_checkpoints(halves[1], repo_id, token="hf_alice")
    grown.push_to_hub(f"{repo_id}-2", token="hf_alice")

    order = sorted(range(24), key=lambda i: (grown.zoo.run[i], grown.zoo.step[i]))
    assert merged.columns["note"] == [grown.zoo.columns["note"][i] for i in order]
    assert [math.isnan(loss) for loss in merged.validation_loss] == [i % 2 == 1 for i in order]
    assert merged.condition == [grown.zoo.condition[i] for i in order]
    assert_same_zoo(load_checkpoints(repo_id, token="hf_alice").zoo, merged)
    pushed = load_checkpoints(f"{repo_id}-2", token="hf_alice").splits
    assert_same_zoo(pushed["train"], grown.zoo)
    assert all(map(math.isnan, pushed["test"].validation_score))
    assert pushed["test"].columns["optimizer"] == [None] * 8


def test_columns_that_do_not_fit_are_refused_and_nothing_is_written(tiny_checkpoints, tmp_path):
    zoo = tiny_checkpoints.zoo
    with pytest.raises(CheckpointsError, match=r"24 vectors, but columns of other lengths: \{'note': 1\}\."):
        CheckpointSplit(zoo.parameters, **zoo.columns, note=["short"])
    for name, values in (("note", [1, "two"] * 12), ("step", [2**40] * 24)):
        changed = CheckpointSplit(zoo.parameters, **zoo.columns | {name: values})
        with pytest.raises(CheckpointsError, match=f"The values of column '{name}' must be of"):
            dataclasses.replace(tiny_checkpoints, splits={"train": changed}).save(tmp_path / "zoo")

    assert list(tmp_path.iterdir()) == []


def change_format(folder: Path, version: object) -> None:
    content = json.loads((folder / "collection.json").read_text())
    assert content.pop("format_version") == 2
    content |= {} if version is None else {"format_version": version}
    (folder / "collection.json").write_text(json.dumps(content))


def test_a_dataset_of_the_first_format_is_read(tiny_checkpoints, tmp_path):
    tiny_checkpoints.save(tmp_path)
    change_format(tmp_path, None)
    for shard in (tmp_path / "data").iterdir():
        table = pq.read_table(shard)
        names = [name.replace("validation_score", "validation_accuracy") for name in table.column_names]
        pq.write_table(table.rename_columns(names), shard)

    loaded = load_checkpoints(tmp_path)
    loaded.save(tmp_path / "again")

    for split, zoo in tiny_checkpoints.splits.items():
        assert_same_zoo(loaded.splits[split], zoo)
    assert loaded.collection == tiny_checkpoints.collection
    assert pq.read_table(tmp_path / "again" / TRAIN).column_names[4] == "validation_score"


@pytest.mark.parametrize("version", [3, 0, "new", [1]])
def test_a_dataset_of_a_format_that_is_not_known_is_refused(tiny_checkpoints, tmp_path, version):
    tiny_checkpoints.save(tmp_path)
    change_format(tmp_path, version)

    with pytest.raises(CheckpointsError, match=r"is of format version .*reads up to 2; upgrade pdiff_hf\.$"):
        load_checkpoints(tmp_path)


def test_large_zoo_is_cut_into_shards_which_are_counted_and_replaced(tiny_checkpoints, tmp_path, monkeypatch):
    with monkeypatch.context() as small:
        small.setattr(checkpoint_shards, "SHARD_BYTES", 10 * 4 * 90)  # ten rows
        small.setattr(checkpoint_shards, "ROW_GROUP_BYTES", 3 * 4 * 90)
        tiny_checkpoints.save(tmp_path)
    shards = sorted((tmp_path / "data").glob("train-*"))

    assert [path.name for path in shards] == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    assert pq.ParquetFile(shards[0]).num_row_groups == 3
    assert_same_zoo(load_checkpoints(tmp_path).zoo, tiny_checkpoints.zoo)
    assert datasets.load_dataset(str(tmp_path), split="train").num_rows == 24
    shards[1].unlink()
    with pytest.raises(CheckpointsError, match="has 2 of the 3 shards of its train split"):
        load_checkpoints(tmp_path)
    tiny_checkpoints.save(tmp_path)
    assert [path.name for path in (tmp_path / "data").glob("train-*")] == ["train-00000-of-00001.parquet"]


def test_empty_zoos_and_diverged_rows_are_refused_and_nothing_is_written(tiny_checkpoints, mlp, tmp_path):
    with pytest.raises(CheckpointsError, match="no checkpoints to save: the train split is empty"):
        CheckpointRecorder(mlp, "head").checkpoints().save(tmp_path / "zoo")
    for zoo in tiny_checkpoints.splits.values():
        before, zoo.parameters[3, 85] = zoo.parameters[3, 85].item(), math.nan
        with pytest.raises(NonFiniteParametersError, match=r"classifier\.bias"):
            tiny_checkpoints.save(tmp_path / "zoo")
        zoo.parameters[3, 85] = before

    assert list(tmp_path.iterdir()) == []


def shorter(table: pa.Table) -> pa.Table:
    return table.set_column(0, "parameters", pa.FixedSizeListArray.from_arrays(pa.array([0.0] * 24, pa.float32()), 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorter, r"'parameters' of type .*\[1\], but .*\[90\] is needed"),
        (lambda table: table.drop(["parameters"]), "'parameters' of type none"),
        (lambda table: table.drop(["seed"]), "'seed' of type none, but int64 is needed"),
        (lambda t: t.append_column("validation_accuracy", t["validation_loss"]), "two columns of one name"),
        (lambda t: t.set_column(1, "run", pa.array([None] * 24, pa.string())), "rows with empty fields"),
        (lambda t: t.append_column("x", pa.array([2**62] * 24, pa.timestamp("ms"))), "Column 'x' .* cannot be read"),
    ],
)
def test_damaged_columns_are_named(tiny_checkpoints, tmp_path, change, message):
    tiny_checkpoints.save(tmp_path)
    pq.write_table(change(pq.read_table(tmp_path / TRAIN)), tmp_path / TRAIN)

    with pytest.raises(CheckpointsError, match=message):
        load_checkpoints(tmp_path)


def test_missing_files_are_named(tiny_checkpoints, tmp_path):
    with pytest.raises(HubNotFoundError, match=r"no folder .*nowhere"):
        load_checkpoints(tmp_path / "nowhere")
    with pytest.raises(CheckpointsError, match=r"has no processor_config\.json"):
        load_checkpoints(tmp_path)
    tiny_checkpoints.save(tmp_path)
    (tmp_path / TRAIN).unlink()
    with pytest.raises(CheckpointsError, match=r"The train split of .* holds no checkpoints"):
        load_checkpoints(tmp_path)


def test_saved_target_holds_the_average_and_no_single_checkpoint(tiny_checkpoints, tmp_path):
    before = {name: tensor.clone() for name, tensor in tiny_checkpoints.target_model.state_dict().items()}

    tiny_checkpoints.save(tmp_path)
    target = AutoModelForImageClassification.from_pretrained(tmp_path / "target_model")

    vector = tiny_checkpoints.processor.flatten(target.state_dict())
    assert torch.allclose(vector, tiny_checkpoints.zoo.parameters.mean(0))
    assert torch.equal(target.layers[0].weight, before["layers.0.weight"])
    for name, tensor in tiny_checkpoints.target_model.state_dict().items():
        assert torch.equal(tensor, before[name])
    shutil.rmtree(tmp_path / "target_model")
    assert load_checkpoints(tmp_path, target_model=target).target_model is target


def test_other_files_in_the_folder_survive(tiny_checkpoints, tmp_path):
    (tmp_path / "zoo" / "notes").mkdir(parents=True)
    for name in ("README.md", "notes/a.txt"):
        (tmp_path / "zoo" / name).write_text("mine")

    tiny_checkpoints.save(tmp_path / "zoo")

    assert {(tmp_path / "zoo" / name).read_text() for name in ("README.md", "notes/a.txt")} == {"mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]


@pytest.mark.parametrize("folder", ["file", "file/zoo"])
def test_unwritable_folder_is_named(tiny_checkpoints, tmp_path, folder):
    (tmp_path / "file").write_text("a regular file")

    with pytest.raises(UnwritableFolderError, match=f"Cannot write .*{folder}'"):
        tiny_checkpoints.save(tmp_path / folder)

    assert [path.name for path in tmp_path.iterdir()] == ["file"]
