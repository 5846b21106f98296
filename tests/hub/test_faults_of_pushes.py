"""Pushes against a Hub that fails: nothing is half-committed, and whatever went wrong, another push completes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from pdiff_hf import (
    HubAccessError,
    HubConflictError,
    HubError,
    HubNotFoundError,
    HubQuotaError,
    HubUnreachableError,
    PDiffPipeline,
    share,
)

from .cases import ALWAYS, HTML, Case, assert_clear, client_state, fault, files_in, status
from .server import Hub
from .waiting import wait_for

TOKEN = "hf_alice"
TITLE = "Upload drawn networks"
CREATE = {"method": "POST", "path": "/api/repos/create"}
AUTH = {"method": "GET", "path": "/auth-check"}
INFO = {"method": "GET", "path": r"^/api/models/[^/]+/[^/]+$"}
HEAD = {"method": "GET", "path": r"/revision/main"}
TREE = {"method": "GET", "path": "/tree/"}
YAML = {"method": "POST", "path": "/api/validate-yaml"}
PREUPLOAD = {"method": "POST", "path": "/preupload/"}
BATCH = {"method": "POST", "path": "/objects/batch"}
PUT = {"method": "PUT", "path": "^/cdn/upload/"}
SECOND_PART = {"method": "PUT", "path": r"^/cdn/upload/[0-9a-f]+/2\?"}
COMPLETE = {"method": "POST", "path": "/complete_multipart/"}
VERIFY = {"method": "POST", "path": "/objects/verify"}
COMMIT = {"method": "POST", "path": "/commit/"}

IN_PARTS = {"multipart_from": 1000, "chunk_size": 1500}
BUSY = {"body": {"error": "Cannot create repo: another conflicting operation is in progress"}}
LIMIT = {"headers": {"ratelimit": '"api";r=0;t=30', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}}
NO_ETAG = {"headers": {"ETag": None}}
CASES = [
    # Before anything is sent
    Case("creation: server error", status(CREATE, 500)),
    Case("creation: rate limit", status(CREATE, 429, headers={"Retry-After": "30"}), waits=30),
    Case("creation: done, answer lost", fault("lose", CREATE)),
    Case("creation: another one under way", status(CREATE, 409, 3, **BUSY)),
    Case("creation: proxy's web page", status(CREATE, 502, body=HTML)),
    Case("creation: no room", status(CREATE, 402, ALWAYS), HubQuotaError),
    Case("creation: always a server error", status(CREATE, 500, ALWAYS), HubUnreachableError, says="500"),
    Case("creation: always hangs", fault("stall", CREATE, ALWAYS, seconds=1.0), HubUnreachableError),
    Case("rights: unavailable", status(AUTH, 503)),
    Case("description: web page in place of JSON", status(INFO, 200, body=HTML)),
    Case("description: hangs", fault("stall", INFO, seconds=1.0)),
    Case("branch: connection closed", fault("close", HEAD)),
    Case("branch: always unavailable", status(HEAD, 503, ALWAYS), HubUnreachableError, says="503"),
    Case("listing: answer lost", fault("lose", TREE)),
    Case("card's check: proxy's web page", status(YAML, 502, body=HTML)),
    Case("card's check: always a proxy's web page", status(YAML, 502, ALWAYS, body=HTML), HubUnreachableError),
    Case("kinds of files: rate limit", status(PREUPLOAD, 429, **LIMIT), waits=30),
    Case("kinds of files: always unavailable", status(PREUPLOAD, 503, ALWAYS), HubUnreachableError, says="503"),
    Case("addresses: server error", status(BATCH, 500)),
    Case("addresses: unauthorized", status(BATCH, 401, ALWAYS), HubNotFoundError),
    Case("addresses: quota exhausted", [], HubQuotaError, hub={"quota": 1000}, says="quota"),
    # The bytes of a large file
    Case("file: server error", status(PUT, 500)),
    Case("file: reset on the way", fault("cut_request", PUT, after=1000)),
    Case("file: stored, answer lost", fault("lose", PUT)),
    Case("file: damaged on the way", fault("corrupt_request", PUT)),
    Case("file: address expired", status(PUT, 403)),
    Case("file: hangs", fault("stall", PUT, seconds=1.0)),
    Case("file: always a server error", status(PUT, 500, ALWAYS), HubUnreachableError, says="500"),
    Case("file: always reset on the way", fault("cut_request", PUT, ALWAYS, after=1000), HubUnreachableError),
    Case("file: always damaged on the way", fault("corrupt_request", PUT, ALWAYS), HubError, says="422"),
    Case("file: address always expired", status(PUT, 403, ALWAYS), HubAccessError),
    Case("part: server error", status(SECOND_PART, 500), hub=IN_PARTS),
    Case("part: reset on the way", fault("cut_request", SECOND_PART, after=500), hub=IN_PARTS),
    Case("part: no ETag", fault("headers", SECOND_PART, **NO_ETAG), hub=IN_PARTS),
    Case("part: never an ETag", fault("headers", SECOND_PART, ALWAYS, **NO_ETAG), HubError, hub=IN_PARTS, says="etag"),
    Case("parts: completed, answer lost", fault("lose", COMPLETE), hub=IN_PARTS),
    Case("verification: server error", status(VERIFY, 500)),
    # The commit
    Case("commit: server error", status(COMMIT, 500)),
    Case("commit: rate limit", status(COMMIT, 429, **LIMIT), waits=30),
    Case("commit: reset on the way", fault("cut_request", COMMIT, after=100)),
    Case("commit: made, answer lost", fault("lose", COMMIT)),
    Case("commit: made after a refusal, answer lost", status(COMMIT, 503) + fault("lose", COMMIT)),
    Case("commit: web page in place of JSON", status(COMMIT, 200, body=HTML)),
    Case("commit: conflict with nobody", status(COMMIT, 409, body={"error": "conflict"})),
    Case("commit: overtaken by nobody", status(COMMIT, 412)),
    Case("commit: hangs", fault("stall", COMMIT, seconds=1.0)),
    Case("commit: always a server error", status(COMMIT, 500, ALWAYS), HubUnreachableError, says="500"),
    Case("commit: connection always closed", fault("close", COMMIT, ALWAYS), HubUnreachableError),
    Case("commit: always a conflict", status(COMMIT, 409, ALWAYS), HubConflictError),
    Case("commit: always overtaken", status(COMMIT, 412, ALWAYS), HubConflictError),
    Case("commit: too large", status(COMMIT, 413, ALWAYS), HubQuotaError),
    Case("commit: refused", status(COMMIT, 400, ALWAYS, body={"error": "no"}), HubError, says="400"),
    # Longer than all attempts together take: each would be made in the end, but all of them name one parent.
    Case("commit: always hangs", fault("stall", COMMIT, ALWAYS, seconds=3.0), HubUnreachableError),
]

pytestmark = pytest.mark.usefixtures("waits")


@pytest.fixture
def folder(tiny_pipeline: PDiffPipeline, tmp_path: Path) -> Path:
    """One drawn network: small files, and one that the Hub keeps as a large one."""
    tiny_pipeline(1).models.save_network(0, tmp_path / "network")
    return tmp_path / "network"


def assert_pushed_once(hub: Hub, folder: Path, repo_id: str) -> None:
    assert hub.titles(repo_id) == [TITLE, "initial commit"]
    content = files_in(folder)
    content["README.md"] = content["README.md"].replace(b"path/or/id", repo_id.encode())
    assert {name: data for name, data in hub.files(repo_id).items() if name != ".gitattributes"} == content


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_push_survives_or_says_why_and_is_completed_by_another(
    hub: Hub, repo_id: str, folder: Path, case: Case, waits: list[float], monkeypatch: pytest.MonkeyPatch
):
    before = client_state()
    with monkeypatch.context() as context:
        case.arrange(hub, context)
        if case.error is None:
            address = share(folder, repo_id, token=TOKEN)
            assert address == f"{hub.url}/{repo_id}/commit/{hub.repos['model', repo_id].branches['main']}"
            assert_pushed_once(hub, folder, repo_id)
        else:
            with pytest.raises(HubError) as raised:
                share(folder, repo_id, token=TOKEN)
            assert_clear(raised.value, repo_id)
            assert type(raised.value) is case.error, repr(raised.value)
            assert case.says in str(raised.value)
            assert hub.titles(repo_id) in ([], ["initial commit"])

    case.assert_struck(hub)
    assert max(waits, default=0) >= case.waits
    assert client_state() == before
    hub.faults.clear()
    wait_for(lambda: all(record.status for record in hub.log if record.fault == "stall"))
    share(folder, repo_id, token=TOKEN)
    assert_pushed_once(hub, folder, repo_id)


@pytest.mark.parametrize(
    ("token", "exists", "error", "says"),
    [
        pytest.param("hf_nope", False, HubAccessError, "does not know the token", id="unknown"),
        pytest.param("hf_read", True, HubAccessError, "write token", id="read-only"),
        pytest.param("hf_bob", False, HubAccessError, "rights to write", id="of somebody else, new repository"),
        pytest.param("hf_bob", True, HubAccessError, "rights to write", id="of somebody else"),
        pytest.param(False, False, HubNotFoundError, "log in", id="none"),
    ],
)
def test_a_push_without_the_right_to_says_so(
    hub: Hub, repo_id: str, folder: Path, exists: bool, token: str | bool, error: type, says: str
):
    if exists:
        HfApi(token=TOKEN).create_repo(repo_id)

    with pytest.raises(HubError, match=says) as raised:
        share(folder, repo_id, token=token)

    assert_clear(raised.value, repo_id)
    assert type(raised.value) is error, repr(raised.value)
    assert hub.titles(repo_id) == (["initial commit"] if exists else [])


def test_a_card_that_is_no_yaml_is_refused_with_the_reason(hub: Hub, repo_id: str, folder: Path):
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")

    with pytest.raises(HubError, match="YAML metadata") as raised:
        share(folder, repo_id, token=TOKEN)

    assert_clear(raised.value, repo_id)
    assert hub.titles(repo_id) == ["initial commit"]
    (folder / "README.md").write_text(card)
    share(folder, repo_id, token=TOKEN)
    assert_pushed_once(hub, folder, repo_id)


@pytest.mark.parametrize(("kind", "opened"), [("lose", 1), ("close", 0)])
def test_a_lost_answer_opens_no_second_pull_request(hub: Hub, repo_id: str, folder: Path, kind: str, opened: int):
    HfApi(token=TOKEN).create_repo(repo_id)
    hub.fail(kind, **COMMIT)

    with pytest.raises(HubUnreachableError):
        share(folder, repo_id, token=TOKEN, create_pr=True)

    assert len(hub.repos["model", repo_id].pull_requests) == opened
    assert hub.titles(repo_id) == ["initial commit"]
