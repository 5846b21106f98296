"""Several machines that add their runs to one dataset on the Hub."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

from pdiff_hf import Checkpoints, CheckpointsError, CheckpointSplit, append_checkpoints, load_checkpoints

from .processes import start_python
from .server import Hub

TOKEN = "hf_alice"
APPEND = """
from pdiff_hf import append_checkpoints, load_checkpoints
append_checkpoints(load_checkpoints({folder!r}), {repo_id!r})
"""


def part(checkpoints: Checkpoints, index: int) -> Checkpoints:
    """The same rows under the names of other runs, as another machine's would be."""
    splits = {
        split: CheckpointSplit(zoo.parameters, **zoo.columns | {"run": [f"machine-{index}-{run}" for run in zoo.run]})
        for split, zoo in checkpoints.splits.items()
    }
    return dataclasses.replace(checkpoints, splits=splits)


def commits(repo_id: str) -> list[str]:
    return [c.title for c in HfApi(token=TOKEN).list_repo_commits(repo_id, repo_type="dataset")]


def assert_all_arrived_once(repo_id: str, checkpoints: Checkpoints, machines: int) -> None:
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


@pytest.mark.usefixtures("hub")
def test_rows_are_added_to_those_that_are_there(tiny_checkpoints: Checkpoints, repo_id: str):
    append_checkpoints(part(tiny_checkpoints, 0), repo_id, token=TOKEN)
    append_checkpoints(part(tiny_checkpoints, 1), repo_id, token=TOKEN)

    assert_all_arrived_once(repo_id, tiny_checkpoints, machines=2)
    average = load_checkpoints(repo_id, token=TOKEN)
    drawn = average.processor.flatten(average.target_model.state_dict())
    torch.testing.assert_close(drawn, average.zoo.parameters.mean(0))


@pytest.mark.usefixtures("hub")
def test_rows_that_are_there_are_not_added_twice(tiny_checkpoints: Checkpoints, repo_id: str):
    first = append_checkpoints(tiny_checkpoints, repo_id, token=TOKEN)

    assert append_checkpoints(tiny_checkpoints, repo_id, token=TOKEN) == first
    assert len(commits(repo_id)) == 2  # the repository's own first one, and ours


@pytest.mark.usefixtures("hub")
def test_another_vector_under_the_same_name_is_refused(tiny_checkpoints: Checkpoints, repo_id: str):
    append_checkpoints(tiny_checkpoints, repo_id, token=TOKEN)
    train = CheckpointSplit(tiny_checkpoints.zoo.parameters + 1, **tiny_checkpoints.zoo.columns)
    other = dataclasses.replace(tiny_checkpoints, splits={**tiny_checkpoints.splits, "train": train})

    with pytest.raises(CheckpointsError, match="Two different checkpoints"):
        append_checkpoints(other, repo_id, token=TOKEN)
    assert len(commits(repo_id)) == 2


def test_a_lost_answer_adds_nothing_twice(tiny_checkpoints: Checkpoints, repo_id: str, hub: Hub):
    append_checkpoints(part(tiny_checkpoints, 0), repo_id, token=TOKEN)
    hub.fail("lose", method="POST", path="/commit/")

    append_checkpoints(part(tiny_checkpoints, 1), repo_id, token=TOKEN)

    assert_all_arrived_once(repo_id, tiny_checkpoints, machines=2)
    assert len(commits(repo_id)) == 3


@pytest.mark.usefixtures("hub")
def test_concurrent_additions_all_arrive_once(
    tiny_checkpoints: Checkpoints, repo_id: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pdiff_hf.hub.client.BACK_OFF", (0.0, 0.0))
    parts = [part(tiny_checkpoints, i) for i in range(3)]

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda p: append_checkpoints(p, repo_id, token=TOKEN), parts))

    assert_all_arrived_once(repo_id, tiny_checkpoints, machines=3)
    assert len(commits(repo_id)) == 4


@pytest.mark.exhaustive
def test_four_processes_add_to_one_dataset_at_once(
    tiny_checkpoints: Checkpoints, repo_id: str, hub: Hub, tmp_path: Path
):
    started = []
    for i in range(4):
        part(tiny_checkpoints, i).save(tmp_path / f"part-{i}")
        code = APPEND.format(folder=str(tmp_path / f"part-{i}"), repo_id=repo_id)
        started.append(start_python(code, hub, cache=tmp_path / f"cache-{i}"))
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors

    assert_all_arrived_once(repo_id, tiny_checkpoints, machines=4)
    assert len(commits(repo_id)) == 5
