"""What tests of the Hub share: a saved pipeline and a pushed one, clients that do not wait, an audited generator."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import scripts
from huggingface_hub import HfApi, constants

from pdiff_hf import Checkpoints, PDiffPipeline, load_checkpoints

from .cases import ALWAYS, move_to
from .processes import Nursery
from .server import Hub
from .shared import Shared, content_of_checkpoints, content_of_pipeline
from .waiting import no_longer_than, skip_waits

TOKEN = "hf_alice"


@pytest.fixture
def api() -> HfApi:
    """The client of alice."""
    return HfApi(token=TOKEN)


@pytest.fixture
def saved_pipeline(tiny_pipeline: PDiffPipeline, tmp_path: Path) -> Path:
    """The folder of a saved pipeline."""
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture
def pushed(hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline) -> str:
    """The id of a pipeline on the Hub."""
    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    hub.reset()
    return repo_id


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What the clients would have waited; a hang is an error."""
    with no_longer_than(60):
        yield skip_waits(monkeypatch)


@pytest.fixture
def pipeline(hub: Hub, pushed: str, saved_pipeline: Path) -> Shared:
    return Shared(hub.repos["model", pushed], saved_pipeline, PDiffPipeline.from_pretrained, content_of_pipeline)


@pytest.fixture
def checkpoints(hub: Hub, repo_id: str, tiny_checkpoints: Checkpoints, tmp_path: Path) -> Shared:
    tiny_checkpoints.push_to_hub(repo_id, token=TOKEN)
    tiny_checkpoints.save(tmp_path / "checkpoints")
    hub.reset()
    return Shared(hub.repos["dataset", repo_id], tmp_path / "checkpoints", load_checkpoints, content_of_checkpoints)


@pytest.fixture(params=["pipeline", "checkpoints"])
def shared(request: pytest.FixtureRequest) -> Shared:
    """A pipeline, then a checkpoints dataset."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["answers 503", "resets", "nothing listens", "HF_HUB_OFFLINE"])
def lose_the_hub(request: pytest.FixtureRequest, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after whose call no file comes from the Hub."""

    def lose() -> None:
        if request.param == "answers 503":
            hub.fail("status", status=503, times=ALWAYS)
        elif request.param == "resets":
            hub.fail("reset", times=ALWAYS)
        elif request.param == "HF_HUB_OFFLINE":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        else:
            move_to(Hub(), monkeypatch)
        hub.log.clear()

    return lose


@pytest.fixture(scope="session")
def nursery(session_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Children that push to, and pull from, the Hub of these tests, or another one."""
    nursery = Nursery(session_hub, tmp_path_factory.mktemp("home"))
    yield nursery
    nursery.close()


@dataclass
class Audited:
    """A generator from its zoo to its audit, in folders that tests only read."""

    checkpoints: Checkpoints
    unevaluated: Path
    evaluated: Path
    report: Path
    pipe: PDiffPipeline
    metrics: dict[str, Any]


@pytest.fixture
def audited(
    tiny_checkpoints: Checkpoints, tiny_pipeline: PDiffPipeline, tmp_path_factory: pytest.TempPathFactory
) -> Audited:
    """The tiny pipeline with a small audit, made once."""
    if _AUDITED:
        return _AUDITED[0]
    folder = tmp_path_factory.mktemp("audited")
    tiny_checkpoints.save(folder / "checkpoints")
    for name in ("unevaluated", "evaluated"):
        tiny_pipeline.save_pretrained(folder / name)
    given = ["--pipeline", folder / "evaluated", "--checkpoints", folder / "checkpoints"]
    few = ["--num_models", "3", "--num_baseline_models", "3"]
    scripts.run("evaluate_pipeline", *given, *few, "--output_dir", folder / "report")
    metrics = json.loads((folder / "evaluated/metrics.json").read_text(encoding="utf-8"))
    folders = (folder / name for name in ("unevaluated", "evaluated", "report"))
    _AUDITED.append(Audited(tiny_checkpoints, *folders, tiny_pipeline, metrics))
    return _AUDITED[0]


_AUDITED: list[Audited] = []
