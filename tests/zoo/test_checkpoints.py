"""Checkpoint zoos: bit-exact on disk, readable by plain `datasets`, whole or not at all."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForImageClassification

from pdiff_hf import (
    CheckpointRecorder,
    Checkpoints,
    CheckpointSplit,
    HubNotFoundError,
    NonFiniteParametersError,
    load_checkpoints,
)
from pdiff_hf.folders import UnwritableFolderError
from pdiff_hf.zoo import parquet as checkpoint_shards
from pdiff_hf.zoo.checkpoints import CheckpointsError, checkpoint_features, interleaved_splits


def assert_same_zoo(zoo: CheckpointSplit, expected: CheckpointSplit) -> None:
    assert zoo.parameters.dtype == torch.float32
    assert torch.equal(zoo.parameters, expected.parameters)
    assert (zoo.run, zoo.step, zoo.seed) == (expected.run, expected.step, expected.seed)
    for name in ("validation_accuracy", "validation_loss"):
        figures, wanted = (torch.tensor(getattr(split, name)) for split in (zoo, expected))
        assert torch.equal(figures.nan_to_num(-1), wanted.nan_to_num(-1))


def test_dataset_survives_saving_bit_for_bit(tiny_checkpoints, tmp_path):
    tiny_checkpoints.zoo.validation_loss[3] = math.nan  # not measured
    tiny_checkpoints.zoo.parameters[0, :3] = torch.tensor([1e-45, -0.0, 3.4e38])

    tiny_checkpoints.save(tmp_path / "zoo")
    loaded = load_checkpoints(tmp_path / "zoo")

    for split, zoo in tiny_checkpoints.splits.items():
        assert_same_zoo(loaded.splits[split], zoo)
    assert loaded.processor.names == tiny_checkpoints.processor.names
    assert loaded.preprocessing == tiny_checkpoints.preprocessing
    assert loaded.collection == tiny_checkpoints.collection
    assert not loaded.target_model.training


def test_plain_datasets_reads_it(tiny_checkpoints, tmp_path):
    tiny_checkpoints.save(tmp_path)

    loaded = datasets.load_dataset(str(tmp_path))

    assert {split: rows.num_rows for split, rows in loaded.items()} == {"train": 24, "validation": 8, "test": 8}
    for split, zoo in tiny_checkpoints.splits.items():
        assert loaded[split].features == checkpoint_features(90)
        assert torch.equal(torch.tensor(loaded[split]["parameters"][:]), zoo.parameters)
        assert loaded[split]["run"][:] == zoo.run
        assert loaded[split]["step"][:] == zoo.step


def test_plain_datasets_streams_it(tiny_checkpoints, tmp_path):
    tiny_checkpoints.save(tmp_path)

    rows = list(datasets.load_dataset(str(tmp_path), split="train", streaming=True))

    assert torch.equal(torch.tensor([row["parameters"] for row in rows]), tiny_checkpoints.zoo.parameters)


def test_columns_are_as_documented():
    features = checkpoint_features(7)

    assert features["parameters"] == datasets.List(datasets.Value("float32"), length=7)
    assert {name: feature.dtype for name, feature in features.items() if name != "parameters"} == {
        "run": "string",
        "step": "int32",
        "seed": "int64",
        "validation_accuracy": "float32",
        "validation_loss": "float32",
    }


def save_in_shards(checkpoints: Checkpoints, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(checkpoint_shards, "SHARD_BYTES", 10 * 4 * 90)  # ten rows
    monkeypatch.setattr(checkpoint_shards, "ROW_GROUP_BYTES", 3 * 4 * 90)
    checkpoints.save(folder)
    return sorted(path.name for path in (folder / "data").glob("train-*"))


def test_large_zoo_is_cut_into_shards(tiny_checkpoints, tmp_path, monkeypatch):
    shards = save_in_shards(tiny_checkpoints, tmp_path, monkeypatch)

    assert shards == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    assert pq.ParquetFile(tmp_path / "data" / shards[0]).num_row_groups == 3
    assert_same_zoo(load_checkpoints(tmp_path).zoo, tiny_checkpoints.zoo)
    assert datasets.load_dataset(str(tmp_path), split="train").num_rows == 24


def test_missing_shard_is_counted(tiny_checkpoints, tmp_path, monkeypatch):
    shards = save_in_shards(tiny_checkpoints, tmp_path, monkeypatch)
    (tmp_path / "data" / shards[1]).unlink()

    with pytest.raises(CheckpointsError, match="has 2 of the 3 shards of its train split"):
        load_checkpoints(tmp_path)


def test_saving_again_leaves_no_old_shard(tiny_checkpoints, tmp_path, monkeypatch):
    save_in_shards(tiny_checkpoints, tmp_path, monkeypatch)
    monkeypatch.undo()

    tiny_checkpoints.save(tmp_path)

    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        f"{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")
    ]
    assert_same_zoo(load_checkpoints(tmp_path).zoo, tiny_checkpoints.zoo)


def test_empty_splits_come_back_empty(tiny_checkpoints, tmp_path):
    only_train = dataclasses.replace(tiny_checkpoints, splits={"train": tiny_checkpoints.zoo})

    only_train.save(tmp_path)
    loaded = load_checkpoints(tmp_path)

    assert [len(loaded.splits[split]) for split in ("train", "validation", "test")] == [24, 0, 0]
    assert loaded.splits["test"].parameters.shape == (0, 90)


def test_empty_zoo_is_refused_and_writes_nothing(mlp, tmp_path):
    with pytest.raises(CheckpointsError, match="no checkpoints to save: the train split is empty"):
        CheckpointRecorder(mlp, "head").checkpoints().save(tmp_path / "zoo")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_diverged_row_is_refused_and_writes_nothing(tiny_checkpoints, tmp_path, split):
    tiny_checkpoints.splits[split].parameters[3, 85] = math.nan

    with pytest.raises(NonFiniteParametersError, match=r"classifier\.bias"):
        tiny_checkpoints.save(tmp_path / "zoo")

    assert list(tmp_path.iterdir()) == []


def test_vectors_of_another_length_are_named(tiny_checkpoints, mlp, tmp_path):
    tiny_checkpoints.save(tmp_path / "head")
    recorder = CheckpointRecorder(mlp, "full")
    recorder.record(0)
    recorder.checkpoints().save(tmp_path / "full")
    shard = "data/train-00000-of-00001.parquet"
    shutil.copy(tmp_path / "full" / shard, tmp_path / "head" / shard)

    with pytest.raises(
        CheckpointsError, match=r"train-00000-of-00001\.parquet .*\[610\], but the layout asks for .*\[90\]"
    ):
        load_checkpoints(tmp_path / "head")


def test_missing_column_is_named(tiny_checkpoints, tmp_path):
    tiny_checkpoints.save(tmp_path)
    shard = tmp_path / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(shard).drop(["parameters"]), shard)

    with pytest.raises(CheckpointsError, match=r"has the columns .* with vectors of type none"):
        load_checkpoints(tmp_path)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(HubNotFoundError, match=r"no folder .*nowhere"):
        load_checkpoints(tmp_path / "nowhere")


def test_folder_that_is_no_dataset_is_named(tmp_path):
    with pytest.raises(CheckpointsError, match=r"has no processor_config\.json"):
        load_checkpoints(tmp_path)


def test_dataset_without_train_rows_is_refused(tiny_checkpoints, tmp_path):
    tiny_checkpoints.save(tmp_path)
    (tmp_path / "data" / "train-00000-of-00001.parquet").unlink()

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


def test_own_target_can_be_given(tiny_checkpoints, tmp_path):
    tiny_checkpoints.save(tmp_path)
    shutil.rmtree(tmp_path / "target_model")

    loaded = load_checkpoints(tmp_path, target_model=tiny_checkpoints.target_model)

    assert loaded.target_model is tiny_checkpoints.target_model


def test_other_files_in_the_folder_survive(tiny_checkpoints, tmp_path):
    tiny_checkpoints.save(tmp_path / "zoo")
    (tmp_path / "zoo" / "README.md").write_text("mine")
    (tmp_path / "zoo" / "notes").mkdir()
    (tmp_path / "zoo" / "notes" / "a.txt").write_text("mine too")

    tiny_checkpoints.save(tmp_path / "zoo")

    assert (tmp_path / "zoo" / "README.md").read_text() == "mine"
    assert (tmp_path / "zoo" / "notes" / "a.txt").read_text() == "mine too"
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]


@pytest.mark.parametrize("folder", ["file", "file/zoo"])
def test_unwritable_folder_is_named(tiny_checkpoints, tmp_path, folder):
    (tmp_path / "file").write_text("a regular file")

    with pytest.raises(UnwritableFolderError, match=f"Cannot write .*{folder}'"):
        tiny_checkpoints.save(tmp_path / folder)

    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@given(
    num_blocks=st.integers(1, 5),
    per_block=st.tuples(st.integers(1, 6), st.integers(0, 4), st.integers(0, 4)),
    gap=st.integers(0, 5),
)
def test_blocks_of_different_splits_are_a_gap_apart(num_blocks, per_block, gap):
    counts = [num_blocks * count for count in per_block]

    steps = interleaved_splits(*counts, num_blocks=num_blocks, gap=gap)

    assert [steps.count(split) for split in ("train", "validation", "test")] == counts
    recorded = [(i, split) for i, split in enumerate(steps) if split is not None]
    assert recorded[0][0] == 0
    assert recorded[-1][0] == len(steps) - 1
    for (i, split), (j, following) in itertools.pairwise(recorded):
        assert j - i == 1 or j - i == 1 + gap
        assert split == following or j - i == 1 + gap


@given(num_blocks=st.integers(2, 5), per_block=st.tuples(*[st.integers(1, 4)] * 3), gap=st.integers(0, 5))
def test_no_split_is_merely_later(num_blocks, per_block, gap):
    steps = interleaved_splits(*[num_blocks * count for count in per_block], num_blocks=num_blocks, gap=gap)

    first = {split: steps.index(split) for split in ("train", "validation", "test")}
    last = {split: len(steps) - 1 - steps[::-1].index(split) for split in ("train", "validation", "test")}
    assert max(first.values()) < min(last.values())


def test_counts_that_cannot_be_divided_are_named():
    with pytest.raises(ValueError, match=r"\{'validation': 5\} cannot be divided into 2 equal blocks"):
        interleaved_splits(4, 5, 6, num_blocks=2, gap=1)


def test_recorder_composes_with_a_plain_training_loop(mlp, random_images, tmp_path):
    images, labels = random_images(mlp, 16), torch.arange(16) % 10
    optimizer = torch.optim.SGD(mlp.parameters(), lr=0.1)
    seen = []

    recorder = CheckpointRecorder(mlp, "head")
    for step in range(4):
        nn.functional.cross_entropy(mlp(images).logits, labels).backward()
        optimizer.step()
        recorder.record(step, split="test" if step == 3 else "train", run="mine", seed=7)
        seen.append(torch.cat([mlp.classifier.weight.flatten(), mlp.classifier.bias]).detach().clone())
    recorder.checkpoints().save(tmp_path)
    loaded = load_checkpoints(tmp_path)

    assert torch.equal(loaded.zoo.parameters, torch.stack(seen[:3]))
    assert torch.equal(loaded.splits["test"].parameters, torch.stack(seen[3:]))
    assert (loaded.zoo.run, loaded.zoo.step, loaded.zoo.seed) == (["mine"] * 3, [0, 1, 2], [7] * 3)
    assert all(math.isnan(figure) for figure in loaded.zoo.validation_accuracy + loaded.zoo.validation_loss)


def test_recorder_refuses_a_diverged_training(mlp):
    recorder = CheckpointRecorder(mlp, "head")
    with torch.no_grad():
        mlp.classifier.bias[0] = math.inf

    with pytest.raises(NonFiniteParametersError, match=r"classifier\.bias"):
        recorder.record(0)

    assert recorder.rows["train"] == []


def test_recorder_names_a_split_it_does_not_know(mlp):
    with pytest.raises(ValueError, match=r"heldout.*train"):
        CheckpointRecorder(mlp, "head").record(0, split="heldout")


def test_recorder_goes_on_from_its_state(mlp, tmp_path):
    interrupted = CheckpointRecorder(mlp, "head")
    interrupted.record(0, run="a", seed=1)
    interrupted.record(1, split="validation")
    torch.save(interrupted.state_dict(), tmp_path / "state.pt")

    resumed = CheckpointRecorder(mlp, "head")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    resumed.record(2)
    interrupted.record(2)

    for split, zoo in interrupted.checkpoints().splits.items():
        assert_same_zoo(resumed.checkpoints().splits[split], zoo)
    assert len(resumed.checkpoints().zoo) == 2
