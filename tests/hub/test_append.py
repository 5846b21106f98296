"""Several machines that add their runs to one dataset on the Hub."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pdiff_hf import Checkpoints, CheckpointsError, CheckpointSplit, append_checkpoints, load_checkpoints

from .server import Hub

TOKEN = "hf_alice"


def part(checkpoints: Checkpoints, index: int) -> Checkpoints:
    """The same rows under the names of other runs, as another machine's would be."""
    splits = {
        split: CheckpointSplit(zoo.parameters, **zoo.columns | {"run": [f"machine-{index}-{run}" for run in zoo.run]})
        for split, zoo in checkpoints.splits.items()
    }
    return dataclasses.replace(checkpoints, splits=splits)


def assert_all_arrived_once(hub: Hub, repo_id: str, checkpoints: Checkpoints, machines: int) -> None:
    loaded = load_checkpoints(repo_id, token=TOKEN)
    for split, zoo in checkpoints.splits.items():
        rows = loaded.splits[split]
        expected = sorted(
            (f"machine-{i}-{run}", step) for i in range(machines) for run, step in zip(zoo.run, zoo.step, strict=True)
        )
        assert sorted(zip(rows.run, rows.step, strict=True)) == expected
    first = loaded.zoo.take([run.startswith("machine-0-") for run in loaded.zoo.run])
    order = sorted(range(len(checkpoints.zoo)), key=lambda row: (checkpoints.zoo.run[row], checkpoints.zoo.step[row]))
    assert torch.equal(first.parameters, checkpoints.zoo.parameters[order])
    average = loaded.processor.flatten(loaded.target_model.state_dict())
    torch.testing.assert_close(average, loaded.zoo.parameters.mean(0))
    assert len(hub.titles(repo_id, "dataset")) == 1 + machines  # the repository's own first one, and ours


@pytest.mark.parametrize("lost", [False, True], ids=["", "answer lost"])
@pytest.mark.usefixtures("waits")
def test_rows_are_added_once_to_those_that_are_there(
    hub: Hub, tiny_checkpoints: Checkpoints, repo_id: str, lost: bool
):
    append_checkpoints(part(tiny_checkpoints, 0), repo_id, token=TOKEN)
    if lost:
        hub.fail("lose", method="POST", path="/commit/")
    added = append_checkpoints(part(tiny_checkpoints, 1), repo_id, token=TOKEN)

    assert append_checkpoints(part(tiny_checkpoints, 1), repo_id, token=TOKEN) == added
    assert_all_arrived_once(hub, repo_id, tiny_checkpoints, machines=2)


def test_another_vector_under_the_same_name_is_refused(hub: Hub, tiny_checkpoints: Checkpoints, repo_id: str):
    append_checkpoints(tiny_checkpoints, repo_id, token=TOKEN)
    train = CheckpointSplit(tiny_checkpoints.zoo.parameters + 1, **tiny_checkpoints.zoo.columns)
    other = dataclasses.replace(tiny_checkpoints, splits={**tiny_checkpoints.splits, "train": train})

    with pytest.raises(CheckpointsError, match="Two different checkpoints"):
        append_checkpoints(other, repo_id, token=TOKEN)
    assert len(hub.titles(repo_id, "dataset")) == 2


@pytest.mark.usefixtures("waits")
def test_concurrent_additions_all_arrive_once(hub: Hub, tiny_checkpoints: Checkpoints, repo_id: str):
    with ThreadPoolExecutor(3) as pool:
        parts = [part(tiny_checkpoints, i) for i in range(3)]
        list(pool.map(lambda machine: append_checkpoints(machine, repo_id, token=TOKEN), parts))

    assert_all_arrived_once(hub, repo_id, tiny_checkpoints, machines=3)
