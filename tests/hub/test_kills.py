"""Processes that are killed while they push or pull: nothing is half there, and another run completes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pdiff_hf import PDiffPipeline, share

from .cases import files_in
from .processes import Nursery
from .server import Hub
from .waiting import no_longer_than, wait_for

TOKEN = "hf_alice"
TITLE = "Upload pipeline"
PUSH = "share({folder!r}, {repo_id!r})"
PULL = "PDiffPipeline.from_pretrained({repo_id!r}, cache_dir={cache!r})"


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """A hang is an error."""
    with no_longer_than(600):
        yield


def assert_pushed(hub: Hub, repo_id: str, folder: Path) -> None:
    """Asserts that a repository has the folder's files, from one commit."""
    assert hub.titles(repo_id) == [TITLE, "initial commit"]
    pushed, rewritten = hub.files(repo_id), {"README.md", "metrics.json"}
    assert pushed.keys() == files_in(folder).keys() | {".gitattributes"}
    assert {n: data for n, data in files_in(folder).items() if n not in rewritten}.items() <= pushed.items()


def assert_pulled(repo_id: str, cache: Path, folder: Path) -> None:
    """Asserts that a pipeline from the Hub draws the same networks as the one in the folder."""
    drawn = [
        pipe(2, generator=torch.Generator().manual_seed(0), output_type="pt").parameters
        for pipe in (PDiffPipeline.from_pretrained(repo_id, cache_dir=cache), PDiffPipeline.from_pretrained(folder))
    ]
    assert torch.equal(*drawn)


def settle(hub: Hub) -> None:
    """Waits until the Hub has done what it was asked by a process that is dead now."""
    wait_for(lambda: all(record.status for record in list(hub.log)))


@pytest.mark.parametrize(
    ("moment", "made"), [("^/cdn/upload/", False), ("/commit/main", True)], ids=["file", "commit"]
)
def test_a_push_that_is_killed_is_completed_by_another(
    hub: Hub, repo_id: str, saved_pipeline: Path, nursery: Nursery, moment: str, made: bool
):
    hub.fail("stall", method="PUT|POST", path=moment, seconds=0.5)
    child = nursery.start(PUSH.format(folder=str(saved_pipeline), repo_id=repo_id))
    wait_for(lambda: any(record.request_body for record in hub.requests("PUT|POST", moment)))

    assert nursery.kill(child) == -9

    settle(hub)
    assert hub.titles(repo_id) == [TITLE] * made + ["initial commit"]
    share(saved_pipeline, repo_id, token=TOKEN)
    assert_pushed(hub, repo_id, saved_pipeline)


@pytest.mark.parametrize("moment", ["^/cdn/get/", "/resolve-cache/.*/denoiser/"], ids=["weights", "small file"])
def test_a_pull_that_is_killed_is_completed_by_another(
    hub: Hub, repo_id: str, saved_pipeline: Path, nursery: Nursery, empty_cache: Path, moment: str
):
    share(saved_pipeline, repo_id, token=TOKEN)
    held = hub.fail("stall", method="GET", path=moment, seconds=0.5)
    child = nursery.start(PULL.format(repo_id=repo_id, cache=str(empty_cache)))
    wait_for(lambda: not held.times)

    assert nursery.kill(child) == -9

    settle(hub)
    assert_pulled(repo_id, empty_cache, saved_pipeline)
