"""Loads from a Hub that fails or lies: what comes back is what was pushed, or an error says why it is not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi, constants, get_session

from pdiff_hf import (
    CorruptFileError,
    HubAccessError,
    HubError,
    HubNotFoundError,
    HubUnreachableError,
    PDiffPipeline,
)

from .cases import ALWAYS, HTML, Case, assert_clear, client_state, fault, status
from .server import Hub
from .server.model import Repo
from .shared import Shared

TOKEN = "hf_alice"
INFO = {"method": "GET", "path": "/revision/main"}
TREE = {"method": "GET", "path": "/tree/"}
HEAD = {"method": "HEAD", "path": "/resolve/.*safetensors"}
GET = {"method": "GET", "path": "^/cdn/get/"}
GET_JSON = {"method": "GET", "path": "/resolve-cache/.*processor_config.json"}
NO_ETAG = {"ETag": None, "X-Linked-Etag": None}
NO_COMMIT = {"X-Repo-Commit": None}
WRONG_SIZE = {"X-Linked-Size": "999999"}
WRONG_CHECKSUM = {"X-Linked-Etag": f'"{"0" * 64}"'}
CASES = [
    # It passes.
    Case("body cut off", fault("cut", GET, after=100)),
    Case("body cut off six times", fault("cut", GET, 6, after=100)),
    Case("body reset on the way", fault("reset_after", GET_JSON, after=100)),
    Case("body stalls", fault("stall", GET, seconds=100)),
    Case("large file damaged on the way", fault("corrupt", GET)),
    Case("small file damaged on the way", fault("corrupt", GET_JSON)),
    Case("connection reset", fault("reset", HEAD)),
    Case("connection closed without an answer", fault("close", INFO)),
    Case("answer lost", fault("lose", TREE)),
    Case("headers stall", fault("stall", HEAD, seconds=100)),
    Case("description stalls", fault("stall", INFO, seconds=100)),
    Case("listing stalls", fault("stall", TREE, seconds=100)),
    Case("server error", status(GET, 500)),
    Case("proxy error", status(GET_JSON, 502, body=HTML)),
    Case("unavailable twice", status(TREE, 503, 2)),
    Case("rate limit", status(INFO, 429, headers={"Retry-After": "3"})),
    Case("web page in place of JSON", status(INFO, 200, body=HTML)),
    Case("listing in pages, one with a server error", status({"path": "cursor="}, 500), hub={"page_size": 3}),
    Case("wrong size", fault("headers", HEAD, headers=WRONG_SIZE)),
    Case("wrong checksum", fault("headers", HEAD, headers=WRONG_CHECKSUM)),
    Case("no ETag", fault("headers", HEAD, headers=NO_ETAG)),
    Case("no commit", fault("headers", HEAD, headers=NO_COMMIT)),
    # It does not.
    Case("body always cut off", fault("cut", GET, ALWAYS, after=100), HubUnreachableError),
    Case("body always reset on the way", fault("reset_after", GET_JSON, ALWAYS, after=100), HubUnreachableError),
    Case("large file always damaged on the way", fault("corrupt", GET, ALWAYS), CorruptFileError),
    Case("small file always damaged on the way", fault("corrupt", GET_JSON, ALWAYS), CorruptFileError),
    Case("connection always reset", fault("reset", HEAD, ALWAYS), HubUnreachableError),
    Case("connection always closed", fault("close", TREE, ALWAYS), HubUnreachableError),
    Case("always a server error", status(GET, 500, ALWAYS), HubUnreachableError),
    Case("always unavailable", status(INFO, 503, ALWAYS), HubUnreachableError),
    Case("always a web page in place of JSON", status(TREE, 200, ALWAYS, body=HTML), HubUnreachableError),
    Case("always the wrong size", fault("headers", HEAD, ALWAYS, headers=WRONG_SIZE), CorruptFileError),
    Case("always the wrong checksum", fault("headers", HEAD, ALWAYS, headers=WRONG_CHECKSUM), CorruptFileError),
    Case("never an ETag", fault("headers", HEAD, ALWAYS, headers=NO_ETAG), HubUnreachableError),
    Case("never a commit", fault("headers", HEAD, ALWAYS, headers=NO_COMMIT), HubUnreachableError),
    # It is an answer.
    Case("address expired", status(GET, 403, ALWAYS), HubAccessError),
    Case("range refused", status(GET, 416, ALWAYS), HubError),
    Case("unauthorized", status(HEAD, 401, ALWAYS), HubNotFoundError),
    Case("forbidden", status(HEAD, 403, ALWAYS), HubAccessError),
    Case("missing without a reason", status(HEAD, 404, ALWAYS), HubNotFoundError),
    Case("file missing", status(HEAD, 404, ALWAYS, headers={"X-Error-Code": "EntryNotFound"}), HubNotFoundError),
]

pytestmark = pytest.mark.usefixtures("waits")


@pytest.mark.parametrize(
    "shared", ["pipeline", pytest.param("checkpoints", marks=pytest.mark.exhaustive)], indirect=True
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_load_survives_or_says_why_and_is_completed_by_another(
    hub: Hub, shared: Shared, empty_cache: Path, case: Case, monkeypatch: pytest.MonkeyPatch
):
    before = client_state()
    with monkeypatch.context() as context:
        case.arrange(hub, context)
        if case.error is None:
            shared.assert_same(shared.pull(empty_cache))
        else:
            with pytest.raises(HubError) as raised:
                shared.pull(empty_cache)
            assert_clear(raised.value, shared.repo.id)
            assert type(raised.value) is case.error, repr(raised.value)

    case.assert_struck(hub)
    assert client_state() == before
    hub.faults.clear()
    shared.assert_same(shared.pull(empty_cache))


def test_without_the_hub_what_is_cached_is_loaded_and_what_is_not_is_explained(
    hub: Hub, shared: Shared, empty_cache: Path, tmp_path: Path, lose_the_hub: Callable[[], None]
):
    shared.pull(empty_cache)
    lose_the_hub()

    shared.assert_same(shared.pull(empty_cache))
    with pytest.raises(HubUnreachableError) as raised:
        shared.pull(tmp_path / "another cache")

    assert_clear(raised.value, shared.repo.id)
    assert not [record for record in hub.log if record.status == 200]


# What belongs to the user


def test_timeouts_that_the_user_has_set_are_kept(pipeline: Shared, empty_cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(get_session(), "timeout", 7.0)

    pipeline.pull(empty_cache)

    assert get_session().timeout == httpx2.Timeout(7.0)


def test_downloads_in_threads_leave_the_client_as_it_was(pipeline: Shared, empty_cache: Path):
    before = client_state()

    with ThreadPoolExecutor(4) as threads:
        caches = [empty_cache / name for name in ("one", "two", "one", "two")]
        folders = list(threads.map(lambda cache: PDiffPipeline.download(pipeline.repo.id, cache_dir=cache), caches))

    assert client_state() == before
    for folder in set(folders):
        pipeline.assert_same(pipeline.load(folder))


# Who may load


def change(**values: Any) -> Any:
    """A function that changes a repository."""

    def apply(repo: Repo) -> None:
        for name, value in values.items():
            setattr(repo, name, value)

    return apply


PRIVATE, GATED, OPEN = change(visibility="private"), change(gated="manual"), change()


@pytest.mark.parametrize(
    ("change", "how", "error", "says"),
    [
        pytest.param(PRIVATE, {}, HubNotFoundError, "this token can see", id="private, nobody"),
        pytest.param(PRIVATE, {"token": "hf_bob"}, HubNotFoundError, "this token can see", id="private, stranger"),
        pytest.param(GATED, {}, HubAccessError, "is gated: ask for access", id="gated, nobody"),
        pytest.param(GATED, {"token": "hf_bob"}, HubAccessError, "is gated: ask for access", id="gated, stranger"),
        pytest.param(change(disabled=True), {"token": TOKEN}, HubAccessError, "disabled", id="disabled"),
        pytest.param(OPEN, {"token": "hf_mistyped"}, HubAccessError, "does not know the token", id="unknown token"),
        pytest.param(OPEN, {"revision": "v9"}, HubNotFoundError, "no such revision", id="unknown revision"),
    ],
)
def test_a_load_without_the_right_to_says_so(
    shared: Shared, empty_cache: Path, change: Any, how: dict, error: type, says: str
):
    change(shared.repo)

    with pytest.raises(HubError, match=says) as raised:
        shared.pull(empty_cache, **how)

    assert_clear(raised.value, shared.repo.id)
    assert type(raised.value) is error, repr(raised.value)
    assert not list(empty_cache.rglob("*.safetensors"))


def test_who_may_load_does_and_the_storage_sees_no_token(
    hub: Hub, shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    HfApi(token=TOKEN).update_repo_settings(shared.repo.id, gated="manual", repo_type=shared.repo.type)
    shared.repo.granted.add("bob")
    shared.assert_same(shared.pull(tmp_path / "granted", token="hf_bob"))
    PRIVATE(shared.repo)
    shared.assert_same(shared.pull(tmp_path / "owner", token=TOKEN))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    loaded = shared.pull(tmp_path / "stored", token=True)

    shared.assert_same(loaded)
    assert TOKEN not in repr(vars(loaded))
    storage = [record for record in hub.log if record.origin == "cdn"]
    assert storage
    assert not [record for record in storage if "authorization" in map(str.lower, record.request_headers)]


@pytest.mark.parametrize(
    ("name", "token"),
    [(name, None) for name in ("nowhere", "./no/where", "/no/where", "~/nowhere", "a/b/c", "no where/x")]
    + [("alice/nowhere", False), ("alice/nowhere", TOKEN)],
)
def test_a_name_that_is_neither_folder_nor_repository_is_refused(
    hub: Hub, shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, token: str | bool | None
):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(HubNotFoundError) as raised:
        shared.load(name, token=token)

    assert_clear(raised.value, name)
    assert hub.url == constants.ENDPOINT
