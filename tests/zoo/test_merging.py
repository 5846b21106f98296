"""Merging checkpoints datasets: shards back into the whole, and every reason not to."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from pdiff_hf import Checkpoints, CheckpointSplit, LayoutError, make_processor
from pdiff_hf.zoo.merging import merge_checkpoints, read_shard
from pdiff_hf.zoo.parquet import CheckpointsError
from pdiff_hf.zoo.settings import collection_of


def part(whole: Checkpoints, rows: range, shard: str | None = None) -> Checkpoints:
    """Every split's rows of these numbers, as a dataset of its own."""
    splits = {
        name: zoo.rows([i for i in rows if i < len(zoo)]) if len(zoo) else zoo for name, zoo in whole.splits.items()
    }
    collection = copy.deepcopy(whole.collection)
    if shard is not None:
        collection["runs"] = {"num_runs": 2, "run_shard": shard}
    return Checkpoints(splits, whole.processor, copy.deepcopy(whole.target_model), whole.preprocessing, collection)


def shards(whole: Checkpoints, count: int) -> list[Checkpoints]:
    return [part(whole, range(i, 24, count), f"{i + 1}/{count}") for i in range(count)]


def assert_sentence(error: BaseException) -> None:
    assert str(error).endswith(".")
    assert "\n" not in str(error)


def assert_same_rows(ours: CheckpointSplit, theirs: CheckpointSplit) -> None:
    assert torch.equal(ours.parameters, theirs.parameters)
    assert ours.columns == theirs.columns


def test_parts_in_any_order_give_the_whole_sorted_by_run_and_step(tiny_checkpoints: Checkpoints):
    first, second, third = shards(tiny_checkpoints, 3)
    for one in (first, second, third):  # targets that hold the averages of their own parts have one trunk
        one.processor.load_into(one.target_model, one.zoo.parameters.mean(0))

    merged = merge_checkpoints([third, first, second])

    for name, zoo in tiny_checkpoints.splits.items():
        assert_same_rows(
            merged.splits[name], zoo.rows(sorted(range(len(zoo)), key=lambda i: (zoo.run[i], zoo.step[i])))
        )
    assert merged.collection["costs"] == {"target_seconds": 3.0}  # of three parts
    assert merged.collection["settings"]["dataset_name"] == "digits"
    assert merged.collection["runs"]["run_shard"] is None
    assert merged.preprocessing == tiny_checkpoints.preprocessing
    average = merged.processor.flatten(merged.target_model.state_dict())
    assert torch.equal(average, merged.zoo.parameters.mean(0))


def test_shards_that_do_not_make_one_whole_are_refused(tiny_checkpoints: Checkpoints):
    quarters, no_shard = shards(tiny_checkpoints, 4), part(tiny_checkpoints, range(1, 24, 2))
    no_shard.collection["runs"] = {"num_runs": 2, "run_shard": None}

    for parts, message in (
        ([quarters[0], quarters[2], quarters[2]], r"2/4, 4/4 missing and 3/4 doubled"),
        ([quarters[0], shards(tiny_checkpoints, 3)[1]], "not parts of one division"),
        ([quarters[0], no_shard], "not parts of one division"),
    ):
        with pytest.raises(CheckpointsError, match=message) as raised:
            merge_checkpoints(parts)
        assert_sentence(raised.value)


def test_a_row_that_occurs_twice_is_refused_or_taken_once(tiny_checkpoints: Checkpoints):
    overlapping = [part(tiny_checkpoints, range(16)), part(tiny_checkpoints, range(10, 24))]

    with pytest.raises(CheckpointsError, match=r"run 'run-0' occurs twice.*dataset 2") as raised:
        merge_checkpoints(overlapping)
    merged = merge_checkpoints(overlapping, skip_equal=True)
    first, second = shards(tiny_checkpoints, 2)

    assert len(merge_checkpoints([first, second, first], skip_equal=True).zoo) == 24
    assert_sentence(raised.value)
    assert {name: len(zoo) for name, zoo in merged.splits.items()} == {"train": 24, "validation": 8, "test": 8}
    appended_twice = merge_checkpoints([merged, overlapping[1]], skip_equal=True)
    assert_same_rows(appended_twice.zoo, merged.zoo)


@pytest.mark.parametrize("difference", ["vector", "split"])
def test_two_checkpoints_of_one_name_are_always_refused(tiny_checkpoints: Checkpoints, difference: str):
    other = part(tiny_checkpoints, range(1))
    if difference == "vector":
        other.zoo.parameters = other.zoo.parameters + 1e-3
    else:
        other.splits = {"train": other.splits["test"], "validation": other.splits["validation"], "test": other.zoo}

    with pytest.raises(
        CheckpointsError, match=r"Two different checkpoints are called step \d+ of run 'run-0'"
    ) as raised:
        merge_checkpoints([tiny_checkpoints, other], skip_equal=True)

    assert_sentence(raised.value)


def test_other_layouts_settings_preprocessing_and_trunks_are_refused(tiny_checkpoints: Checkpoints):
    first, second = part(tiny_checkpoints, range(12)), part(tiny_checkpoints, range(12, 24))
    weights = make_processor(second.target_model, "classifier.weight")
    lesser = {name: CheckpointSplit(zoo.parameters[:, :80], **zoo.columns) for name, zoo in second.splits.items()}
    settings = second.collection["settings"]
    moved = copy.deepcopy(second.target_model)
    with torch.no_grad():
        moved.get_parameter("layers.0.bias")[0] += 1
    refused = {
        r"layout of dataset 2 .* classifier.bias None instead of \(1, \(10,\), 'float32'\)": {
            "splits": lesser,
            "processor": weights,
        },
        r"preprocessing of dataset 2 .* image_std \[0.5\] instead of \[0.37\]": {
            "preprocessing": second.preprocessing | {"image_std": [0.5]}
        },
        r"collection of dataset 2 .* settings.seed 7 instead of 0": {
            "collection": {"settings": settings | {"seed": 7}}
        },
        r"trunk of dataset 2 .* 'layers.0.bias'": {"target_model": moved},
    }

    for message, change in refused.items():
        with pytest.raises((CheckpointsError, LayoutError), match=message) as raised:
            merge_checkpoints([first, dataclasses.replace(second, **change)])
        assert_sentence(raised.value)
    with pytest.raises(CheckpointsError, match="at least one"):
        merge_checkpoints([])


def test_runs_join_those_of_the_first_format_whose_settings_named_a_trajectory_too(tiny_checkpoints: Checkpoints):
    old, new = shards(tiny_checkpoints, 2)
    new.collection["settings"] = dataclasses.asdict(collection_of(old))

    settings = merge_checkpoints([old, new]).collection["settings"]

    assert settings == new.collection["settings"]
    assert "num_checkpoints" in old.collection["settings"]
    assert "num_checkpoints" not in settings


@pytest.mark.parametrize("given", ["0/4", "5/4", "2", "a/b", "2/4/8", ""])
def test_a_shard_is_written_i_of_n(given: str):
    assert read_shard("2/4") == (2, 4)

    with pytest.raises(ValueError, match="for example 2/4") as raised:
        read_shard(given)

    assert_sentence(raised.value)
