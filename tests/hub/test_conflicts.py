"""Pushes while somebody else commits: no change of anybody is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from pdiff_hf import HubConflictError, PDiffPipeline, share

from .cases import assert_clear
from .server import Hub

TOKEN = "hf_alice"


@pytest.fixture
def change_and_push(
    hub: Hub, pushed: str, tiny_pipeline: PDiffPipeline, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], object]], None]:
    """Pushes a changed scheduler; something else is done when its commit has arrived, before it is looked at."""

    def push(act: Callable[[], object]) -> None:
        planned, take_fault = [act], hub.take_fault

        def act_once(method: str, target: str) -> object:
            if method == "POST" and "/commit/" in target and planned:
                planned.pop()()
            return take_fault(method, target)

        monkeypatch.setattr(hub, "take_fault", act_once)
        tiny_pipeline.scheduler.register_to_config(solver_order=1)
        tiny_pipeline.push_to_hub(pushed, token=TOKEN)

    return push


@pytest.mark.parametrize("deleted", [False, True], ids=["changed", "deleted"])
@pytest.mark.parametrize("theirs", ["scheduler/scheduler_config.json", "preprocessor_config.json", "README.md"])
def test_what_someone_does_meanwhile_to_a_file_of_ours_stays_done(
    hub: Hub, api: HfApi, pushed: str, change_and_push: Callable, theirs: str, deleted: bool
):
    where = {"path_in_repo": theirs, "repo_id": pushed, "commit_message": "Theirs"}
    card = None if deleted else b"---\nlicense: mit\n---\nTheirs\n"

    with pytest.raises(HubConflictError, match="Someone else has changed") as raised:
        change_and_push(lambda: api.upload_file(path_or_fileobj=card, **where) if card else api.delete_file(**where))

    assert_clear(raised.value, pushed)
    assert hub.titles(pushed) == ["Theirs", "Upload pipeline", "initial commit"]
    assert hub.files(pushed).get(theirs) == card


def test_changes_to_other_files_meanwhile_and_ours_both_survive(
    hub: Hub, api: HfApi, pushed: str, change_and_push: Callable
):
    upload = {"path_or_fileobj": b"MIT", "path_in_repo": "LICENSE", "repo_id": pushed, "commit_message": "Theirs"}

    change_and_push(lambda: api.upload_file(**upload))

    assert hub.titles(pushed) == ["Upload pipeline", "Theirs", "Upload pipeline", "initial commit"]
    assert hub.files(pushed)["LICENSE"] == b"MIT"
    assert json.loads(hub.files(pushed)["scheduler/scheduler_config.json"])["solver_order"] == 1


def test_a_push_on_top_of_a_commit_fails_where_the_branch_has_moved(
    hub: Hub, api: HfApi, pushed: str, saved_pipeline: Path
):
    seen = api.model_info(pushed).sha
    api.upload_file(path_or_fileobj=b"MIT", path_in_repo="LICENSE", repo_id=pushed)
    (saved_pipeline / "embedding.png").write_bytes(b"a figure")

    with pytest.raises(HubConflictError):
        share(saved_pipeline, pushed, parent_commit=seen, token=TOKEN)
    share(saved_pipeline, pushed, parent_commit=api.model_info(pushed).sha, token=TOKEN)

    assert {"LICENSE", "embedding.png"} <= hub.files(pushed).keys()
