"""Pushes against a Hub that fails: nothing is half-committed, and whatever went wrong, another push completes it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, get_session
from huggingface_hub.utils import _http
from transformers import PreTrainedModel

from pdiff_hf import (
    Checkpoints,
    DrawnNetworks,
    HubAccessError,
    HubConflictError,
    HubError,
    HubNotFoundError,
    HubQuotaError,
    HubUnreachableError,
    PDiffPipeline,
    make_processor,
    share,
)
from pdiff_hf.hub import client as hub_client
from pdiff_hf.hub.cards import readdress
from pdiff_hf.hub.sharing import PUSH_ATTEMPTS

from .cases import ALWAYS, HTML, Case, assert_clear, fault, status
from .processes import run_python
from .server import Hub
from .waiting import no_longer_than, skip_waits, wait_for

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
RATE_LIMIT = {"headers": {"ratelimit": '"api";r=0;t=7', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}}
CASES = [
    # The bytes of a large file
    Case("object answered 500", status(PUT, 500)),
    Case("object reset on the way", fault("cut_request", PUT, after=1000)),
    Case("object stored and answer lost", fault("lose", PUT)),
    Case("object closed without an answer", fault("close", PUT)),
    Case("object answered 500 for ever", status(PUT, 500, ALWAYS), HubUnreachableError, says="500"),
    Case("object reset for ever", fault("cut_request", PUT, ALWAYS, after=1000), HubUnreachableError),
    Case("address expired", status(PUT, 403)),
    Case("address expired for ever", status(PUT, 403, ALWAYS), HubAccessError),
    Case("object damaged on the way", fault("corrupt_request", PUT)),
    Case("object damaged for ever", fault("corrupt_request", PUT, ALWAYS), HubError, says="422"),
    Case("verification answered 500", status(VERIFY, 500)),
    Case("verification lost", fault("lose", VERIFY)),
    Case("part answered 500", status(SECOND_PART, 500), hub=IN_PARTS),
    Case("part reset on the way", fault("cut_request", SECOND_PART, after=500), hub=IN_PARTS),
    Case("part without ETag", fault("headers", SECOND_PART, headers={"ETag": None}), hub=IN_PARTS),
    Case(
        "part without ETag for ever",
        fault("headers", SECOND_PART, ALWAYS, headers={"ETag": None}),
        HubError,
        hub=IN_PARTS,
        says="etag",
    ),
    Case("completion answered 500", status(COMPLETE, 500), hub=IN_PARTS),
    Case("completion lost", fault("lose", COMPLETE), hub=IN_PARTS),
    # What comes before
    Case("addresses answered 500", status(BATCH, 500)),
    Case("addresses lost", fault("lose", BATCH)),
    Case("addresses answered 500 for ever", status(BATCH, 500, ALWAYS), HubUnreachableError, says="500"),
    Case("addresses answered 401", status(BATCH, 401, ALWAYS), HubNotFoundError),
    Case("quota exhausted", [], HubQuotaError, hub={"quota": 1000}, says="quota"),
    Case("first look answered 503 twice", status(PREUPLOAD, 503, 2)),
    Case("first look rate limited", status(PREUPLOAD, 429, **RATE_LIMIT)),
    Case("first look lost", fault("lose", PREUPLOAD)),
    Case("first look answered 503 for ever", status(PREUPLOAD, 503, ALWAYS), HubUnreachableError, says="503"),
    Case("card's check answered with a web page", status(YAML, 502, body=HTML)),
    Case("card's check lost", fault("lose", YAML)),
    Case("card's check answered with a web page for ever", status(YAML, 502, ALWAYS, body=HTML), HubUnreachableError),
    # The commit
    *(Case(f"commit answered {code}", status(COMMIT, code)) for code in (500, 503, 429)),
    Case("commit overtaken by nobody: 409", status(COMMIT, 409, body={"error": "conflict"})),
    Case("commit overtaken by nobody: 412", status(COMMIT, 412)),
    Case("commit closed", fault("close", COMMIT)),
    Case("commit reset", fault("reset", COMMIT)),
    Case("commit cut off", fault("cut_request", COMMIT, after=100)),
    Case("commit made and answer lost", fault("lose", COMMIT)),
    Case("commit made after a refusal and answer lost", status(COMMIT, 503) + fault("lose", COMMIT)),
    Case("commit answered with a web page", status(COMMIT, 200, body=HTML)),
    Case("commit answered 500 for ever", status(COMMIT, 500, ALWAYS), HubUnreachableError, says="500"),
    Case("commit closed for ever", fault("close", COMMIT, ALWAYS), HubUnreachableError),
    Case("commit answered 409 for ever", status(COMMIT, 409, ALWAYS), HubConflictError),
    Case("commit answered 412 for ever", status(COMMIT, 412, ALWAYS), HubConflictError),
    Case("commit answered 413", status(COMMIT, 413, ALWAYS), HubQuotaError),
    Case("commit answered 400", status(COMMIT, 400, ALWAYS, body={"error": "no"}), HubError, says="400"),
    # The repository
    *(Case(f"creation answered {code}", status(CREATE, code)) for code in (500, 503, 429)),
    Case("creation done and answer lost", fault("lose", CREATE)),
    Case("creation closed", fault("close", CREATE)),
    Case("creation answered with a web page", status(CREATE, 502, body=HTML)),
    Case("creation meets another one", status(CREATE, 409, 3, **BUSY)),
    Case("creation answered 500 for ever", status(CREATE, 500, ALWAYS), HubUnreachableError, says="500"),
    Case("creation answered 402", status(CREATE, 402, ALWAYS), HubQuotaError),
    *(
        Case(f"{name} {what}", planned)
        for name, where in (("access", AUTH), ("description", INFO), ("branch", HEAD), ("listing", TREE))
        for what, planned in (
            ("answered 503", status(where, 503)),
            ("lost", fault("lose", where)),
            ("closed", fault("close", where)),
        )
    ),
    *(
        Case(f"{name} answered 503 for ever", status(where, 503, ALWAYS), HubUnreachableError, says="503")
        for name, where in (("access", AUTH), ("description", INFO), ("branch", HEAD), ("listing", TREE))
    ),
    Case("description answered with a web page", status(INFO, 200, body=HTML)),
    # A server that hangs
    *(
        Case(f"{name} hangs", fault("stall", where, seconds=1.5))
        for name, where in (("object", PUT), ("commit", COMMIT), ("description", INFO), ("creation", CREATE))
    ),
    *(
        Case(f"{name} hangs for ever", fault("stall", where, ALWAYS, seconds=1.5), HubUnreachableError)
        for name, where in (("object", PUT), ("description", INFO), ("creation", CREATE))
    ),
    # Longer than all attempts together take: each would be made in the end, but all of them name one parent.
    Case("commit hangs for ever", fault("stall", COMMIT, ALWAYS, seconds=5.0), HubUnreachableError),
]


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What the clients would have waited."""
    with no_longer_than(120):
        yield skip_waits(monkeypatch)


@pytest.fixture
def networks(tiny_resnet: PreTrainedModel) -> DrawnNetworks:
    """Two networks as a pipeline draws them."""
    processor = make_processor(tiny_resnet, "last_norms")
    vectors = torch.randn(2, processor.parameter_dim)
    drawing = {"generator": "alice/generator", "revision": None, "scheduler": "DDIMScheduler", "seed": 0}
    drawing |= {"num_inference_steps": 20, "temperature": 1.0, "diffusers_version": "0"}
    return DrawnNetworks(tiny_resnet, processor, vectors, {"size": 16}, [drawing | {"index": i} for i in range(2)])


@pytest.fixture
def folder(networks: DrawnNetworks, tmp_path: Path) -> Path:
    """One drawn network: small files, and one that the Hub keeps as a large one."""
    networks.save_network(0, tmp_path / "network")
    return tmp_path / "network"


def content_of(folder: Path, repo_id: str) -> dict[str, bytes]:
    """What a repository must hold after the folder was pushed to it."""
    content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return content | {"README.md": readdress(content["README.md"].decode(), repo_id).encode()}


def pushed_content(hub: Hub, repo_id: str) -> dict[str, bytes]:
    """What a repository holds, but for what it was made with."""
    tree = hub.repos["model", repo_id].at().tree
    return {
        name: hub.objects.path(blob.sha256).read_bytes() if blob.sha256 else blob.data
        for name, blob in tree.items()
        if name != ".gitattributes"
    }


def titles(hub: Hub, repo_id: str) -> list[str]:
    """The history of a repository, the newest commit first; empty without the repository."""
    repo = hub.repos.get(("model", repo_id))
    return [commit.title for commit in repo.history()] if repo else []


def assert_pushed_once(hub: Hub, folder: Path, repo_id: str) -> None:
    assert titles(hub, repo_id) == [TITLE, "initial commit"]
    assert pushed_content(hub, repo_id) == content_of(folder, repo_id)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_push_survives_or_says_why_and_is_completed_by_another(
    hub: Hub, repo_id: str, folder: Path, case: Case, monkeypatch: pytest.MonkeyPatch
):
    for kind, details in case.faults:
        hub.fail(kind, **details)
        if kind == "stall":
            monkeypatch.setattr(hub_client, "ANSWER_TIMEOUT", 0.5)
    client = (_http._GLOBAL_CLIENT_FACTORY, get_session().timeout)

    with monkeypatch.context() as limits:
        for name, value in case.hub.items():
            limits.setattr(hub, name, value)
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
            assert titles(hub, repo_id) in ([], ["initial commit"])

    assert {record.fault for record in hub.log} - {"none"} == {kind for kind, _ in case.faults}
    assert (_http._GLOBAL_CLIENT_FACTORY, get_session().timeout) == client
    hub.faults.clear()
    wait_for(lambda: all(record.status for record in hub.log if record.fault == "stall"))
    share(folder, repo_id, token=TOKEN)
    assert_pushed_once(hub, folder, repo_id)


@pytest.mark.parametrize("where", [CREATE, COMMIT], ids=["creation", "commit"])
@pytest.mark.parametrize(
    "headers", [{"Retry-After": "30"}, {"ratelimit": '"api";r=0;t=30'}], ids=lambda h: next(iter(h))
)
def test_a_push_waits_as_long_as_the_hub_asks(
    hub: Hub, repo_id: str, folder: Path, waits: list[float], where: dict, headers: dict
):
    hub.fail("status", **where, status=429, headers=headers)

    share(folder, repo_id, token=TOKEN)

    assert max(waits) >= 30
    assert_pushed_once(hub, folder, repo_id)


@pytest.mark.parametrize(
    ("token", "error", "says"),
    [
        ("hf_nope", HubAccessError, "token"),
        ("hf_read", HubAccessError, "write token"),
        ("hf_bob", HubAccessError, "rights to write"),
        (False, (HubAccessError, HubNotFoundError), "log in"),
    ],
    ids=["unknown", "read-only", "of somebody else", "none"],
)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "existing"])
def test_a_push_without_the_right_to_says_so(
    hub: Hub, repo_id: str, folder: Path, exists: bool, token: str | bool, error: type, says: str
):
    if exists:
        HfApi(token=TOKEN).create_repo(repo_id)

    with pytest.raises(HubError) as raised:
        share(folder, repo_id, token=token)

    assert_clear(raised.value, repo_id)
    assert isinstance(raised.value, error), repr(raised.value)
    assert says in str(raised.value)
    assert titles(hub, repo_id) == (["initial commit"] if exists else [])


def test_a_card_that_is_no_yaml_is_refused_with_the_reason(hub: Hub, repo_id: str, folder: Path):
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")

    with pytest.raises(HubError, match="YAML metadata") as raised:
        share(folder, repo_id, token=TOKEN)

    assert_clear(raised.value, repo_id)
    assert titles(hub, repo_id) == ["initial commit"]
    (folder / "README.md").write_text(card)
    share(folder, repo_id, token=TOKEN)
    assert_pushed_once(hub, folder, repo_id)


@pytest.mark.parametrize("kind", ["lose", "close"])
def test_a_lost_answer_opens_no_second_pull_request(hub: Hub, repo_id: str, folder: Path, kind: str):
    HfApi(token=TOKEN).create_repo(repo_id)
    hub.fail(kind, **COMMIT)

    with contextlib.suppress(HubUnreachableError):
        share(folder, repo_id, token=TOKEN, create_pr=True)

    assert len(hub.repos["model", repo_id].pull_requests) <= 1
    assert titles(hub, repo_id) == ["initial commit"]


@pytest.mark.parametrize("planned", [fault("lose", COMMIT), status(COMMIT, 500), fault("lose", PUT)], ids=str)
def test_checkpoints_and_pipelines_are_pushed_once_too(
    hub: Hub, repo_id: str, tiny_checkpoints: Checkpoints, tiny_pipeline: PDiffPipeline, planned: list
):
    for shared, repo_type in ((tiny_checkpoints, "dataset"), (tiny_pipeline, "model")):
        hub.reset()
        for kind, details in planned:
            hub.fail(kind, **details)

        shared.push_to_hub(repo_id, token=TOKEN)
        shared.push_to_hub(repo_id, token=TOKEN)

        assert len(list(hub.repos[repo_type, repo_id].history())) == 2


# With xet on, which is only read at the import: all cases in one process. The times are as many as one push asks.
WRITE_TOKEN = {"path": "/xet-write-token/"}
XET_CASES = [
    Case("nothing", []),
    Case("commit answered 500", status(COMMIT, 500)),
    Case("commit made and answer lost", fault("lose", COMMIT)),
    Case("commit closed", fault("close", COMMIT)),
    Case("commit always 500", status(COMMIT, 500, PUSH_ATTEMPTS), HubUnreachableError),
    Case("token answered 500", status(WRITE_TOKEN, 500)),
    Case("token lost", fault("lose", WRITE_TOKEN)),
    Case("token always 500", status(WRITE_TOKEN, 500, 2 * PUSH_ATTEMPTS), HubUnreachableError),
    Case("token answered 401", status(WRITE_TOKEN, 401), HubAccessError),
    Case("token answered 403", status(WRITE_TOKEN, 403), HubAccessError),
    Case("token answered 404", status(WRITE_TOKEN, 404), HubAccessError),
    # The name of a repository is no status.
    Case("token answered 500 twice in 404", status(WRITE_TOKEN, 500, 2)),
]
PUSH_TWICE = """
import json, sys
import pytest
from huggingface_hub import HfApi
from hub.waiting import skip_waits
from pdiff_hf import share

skip_waits(pytest.MonkeyPatch())
for repo_id in {repo_ids}:
    for _ in range(2):
        try:
            kind, said = None, share({folder!r}, repo_id)
        except Exception as error:
            kind, said = type(error).__name__, str(error)
        print(json.dumps([kind, said, [commit.title for commit in HfApi().list_repo_commits(repo_id)]]))
"""


def test_with_xet_a_push_survives_or_says_why_and_is_completed_by_another(
    xet_hub: Hub, folder: Path, empty_cache: Path
):
    repo_ids = [f"alice/{case.name.replace(' ', '-')}" for case in XET_CASES]
    for case, repo_id in zip(XET_CASES, repo_ids, strict=True):
        for kind, details in case.faults:
            xet_hub.fail(kind, **details | {"path": f"/{repo_id}{details['path']}"})
    # hf_xet repeats by itself, in its own time.
    retries = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms"}
    environment = retries | {"PYTHONPATH": str(Path(__file__).parents[1])}

    code = PUSH_TWICE.format(repo_ids=repo_ids, folder=str(folder))
    pushes = run_python(code, xet_hub, cache=empty_cache, xet=True, env=environment).splitlines()

    for case, repo_id, first, second in zip(XET_CASES, repo_ids, pushes[::2], pushes[1::2], strict=True):
        kind, said, history = json.loads(first)
        assert kind == (case.error and case.error.__name__), f"{case.name}: {kind} {said}"
        assert history == ([TITLE] if case.error is None else []) + ["initial commit"], case.name
        if case.error is not None:
            assert_clear(case.error(said), repo_id)
        kind, said, history = json.loads(second)
        assert (kind, history) == (None, [TITLE, "initial commit"]), f"{case.name}: {said}"
    assert len(xet_hub.requests("GET", "/xet-write-token/")) > len(XET_CASES)
