"""Processes that are killed while they push or pull: nothing is half there, and another run completes it."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import SESSION_HUB

from pdiff_hf import PDiffPipeline, share

from .nursery import Nursery
from .server import Hub
from .waiting import no_longer_than, wait_for

TOKEN = "hf_alice"
TITLE = "Upload pipeline"
PUSH = "share({folder!r}, {repo_id!r})"
PULL = "PDiffPipeline.from_pretrained({repo_id!r}, cache_dir={cache!r})"


@pytest.fixture
def folder(tiny_pipeline: PDiffPipeline, tmp_path: Path) -> Path:
    """A pipeline on disk."""
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Children that push to, and pull from, the Hub of these tests."""
    nursery = Nursery(SESSION_HUB, tmp_path_factory.mktemp("home"))
    yield nursery
    nursery.close()


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """A hang is an error."""
    with no_longer_than(600):
        yield


def history(hub: Hub, repo_id: str) -> list[str]:
    repo = hub.repos.get(("model", repo_id))
    return [commit.title for commit in repo.history()] if repo else []


def pushed_files(hub: Hub, repo_id: str) -> dict[str, bytes]:
    tree = hub.repos["model", repo_id].at().tree
    return {n: hub.objects.path(b.sha256).read_bytes() if b.sha256 else b.data for n, b in tree.items()}


def assert_whole(hub: Hub, repo_id: str, folder: Path) -> None:
    """Asserts that a repository has the folder's files, from one commit."""
    assert history(hub, repo_id) == [TITLE, "initial commit"]
    pushed = pushed_files(hub, repo_id)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert pushed.keys() == files.keys() | {".gitattributes"}
    for name, path in files.items():
        assert name in ("README.md", "metrics.json") or pushed[name] == path.read_bytes(), name


def assert_same_networks(pipe: PDiffPipeline, other: PDiffPipeline) -> None:
    def draw(pipe: PDiffPipeline) -> torch.Tensor:
        return pipe(2, generator=torch.Generator().manual_seed(0), output_type="pt").parameters

    assert torch.equal(draw(pipe), draw(other))


def settle(hub: Hub) -> None:
    """Waits until the Hub has done what it was asked by who is dead now."""
    wait_for(lambda: all(record.status for record in list(hub.log)))


@pytest.mark.parametrize("moment", [r"^/cdn/upload/", r"/commit/main"], ids=["object", "commit"])
def test_a_push_that_is_killed_is_completed_by_another(
    hub: Hub, repo_id: str, folder: Path, nursery: Nursery, moment: str
):
    held = hub.fail("stall", method="PUT|POST", path=moment, seconds=0.5)
    child = nursery.start(PUSH.format(folder=str(folder), repo_id=repo_id))
    wait_for(lambda: not held.times)

    assert nursery.kill(child) == -9

    settle(hub)
    made = history(hub, repo_id)
    assert made == [TITLE, "initial commit"] if "commit" in moment else made == ["initial commit"]
    share(folder, repo_id, token=TOKEN)
    assert_whole(hub, repo_id, folder)


@pytest.mark.parametrize("moment", [r"^/cdn/get/", r"/resolve-cache/.*/denoiser/"], ids=["weights", "small file"])
def test_a_pull_that_is_killed_is_completed_by_another(
    hub: Hub, repo_id: str, folder: Path, nursery: Nursery, empty_cache: Path, moment: str
):
    share(folder, repo_id, token=TOKEN)
    held = hub.fail("stall", method="GET", path=moment, seconds=0.5)
    child = nursery.start(PULL.format(repo_id=repo_id, cache=str(empty_cache)))
    wait_for(lambda: not held.times)

    assert nursery.kill(child) == -9

    settle(hub)
    pulled = PDiffPipeline.from_pretrained(repo_id, cache_dir=empty_cache)
    assert_same_networks(pulled, PDiffPipeline.from_pretrained(folder))


@pytest.mark.exhaustive
def test_fifty_kills_at_random_moments_do_no_harm(
    hub: Hub, repo_id: str, folder: Path, nursery: Nursery, tmp_path: Path
):
    chance = random.Random(0)
    expected = PDiffPipeline.from_pretrained(folder)

    def requests_of(code: str) -> int:
        hub.reset()
        nursery.start(code)
        assert nursery.end() == 0
        return len(hub.log)

    source = f"{repo_id}-source"
    pushing = requests_of(PUSH.format(folder=str(folder), repo_id=source))
    pulling = requests_of(PULL.format(repo_id=source, cache=str(tmp_path / "first")))
    ends: Counter[str] = Counter()
    for turn in range(50):
        hub.reset()
        push = turn % 2 == 0
        name, cache = f"{repo_id}-{turn}", tmp_path / f"cache-{turn}"
        code = PUSH.format(folder=str(folder), repo_id=name) if push else PULL.format(repo_id=source, cache=str(cache))
        reached, pause = chance.randrange(pushing if push else pulling), chance.random() / 500
        child = nursery.start(code)
        wait_for(lambda reached=reached: len(hub.log) > reached)
        time.sleep(pause)

        code = nursery.kill(child)

        hub.faults.clear()
        settle(hub)
        if push:
            made = history(hub, name)
            ends[f"push, {'finished' if code == 0 else 'killed'}, {len(made)} commits"] += 1
            if TITLE in made:
                assert_whole(hub, name, folder)
            else:
                assert made in ([], ["initial commit"])
            share(folder, name, token=TOKEN)
            assert_whole(hub, name, folder)
        else:
            ends[f"pull, {'finished' if code == 0 else 'killed'}"] += 1
            assert_same_networks(PDiffPipeline.from_pretrained(source, cache_dir=cache), expected)
            shutil.rmtree(cache)
    print(dict(sorted(ends.items())))
