"""The real clients against the Hub of these tests: what it accepts, answers, refuses and breaks on purpose."""

from __future__ import annotations

import hashlib
import http.client
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Image, load_dataset
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image as PILImage
from transformers import AutoModel, BertConfig, BertModel

from .processes import run_python
from .server import Hub

TOKEN = "hf_alice"
CARD = "---\nlicense: mit\ntags:\n- demo\n---\n# demo\n"


@pytest.fixture
def api() -> HfApi:
    """The client of alice."""
    return HfApi(token=TOKEN)


@pytest.fixture
def repo(hub: Hub, api: HfApi, repo_id: str) -> str:
    """A model repository that has nothing but its first commit."""
    api.create_repo(repo_id)
    hub.reset()
    return repo_id


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few small files, one of them random and of a kind that the Hub keeps as a large one."""
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "empty.txt").touch()
    (folder / "sub/notes.txt").write_text("hello")
    (folder / "model.safetensors").write_bytes(os.urandom(300_000))
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


def status_of(action: Callable[[], object]) -> int:
    """Does what is refused, and returns the status of the refusal."""
    with pytest.raises(HfHubHTTPError) as refusal:
        action()
    return refusal.value.response.status_code


def ask(
    url: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    timeout: float = 10,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Sends one bare HTTP request on a connection of its own; returns status, headers and body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


# Users and repositories


def test_a_token_says_who_one_is(hub: Hub, api: HfApi):
    alice = api.whoami()

    assert (alice["name"], [org["name"] for org in alice["orgs"]]) == ("alice", ["acme"])
    assert status_of(lambda: api.whoami(token="hf_unknown")) == 401


def test_a_repository_is_made_once_moved_and_deleted(hub: Hub, api: HfApi, repo_id: str):
    url = api.create_repo(repo_id, private=True)

    assert url.repo_id == repo_id
    assert api.create_repo(repo_id, exist_ok=True) == url
    assert status_of(lambda: api.create_repo(repo_id)) == 409
    assert api.model_info(repo_id).private
    assert repo_id in [model.id for model in api.list_models(author="alice")]
    assert repo_id not in [model.id for model in HfApi(token="hf_bob").list_models(author="alice")]

    api.move_repo(repo_id, f"{repo_id}-moved")
    assert not api.repo_exists(repo_id)
    api.delete_repo(f"{repo_id}-moved")
    assert not api.repo_exists(f"{repo_id}-moved")


def test_only_owners_with_a_write_token_may_write(hub: Hub, api: HfApi, repo: str):
    def push(token: str | bool) -> Callable[[], object]:
        return lambda: HfApi(token=token).upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo)

    assert [status_of(push(token)) for token in ("hf_bob", "hf_read", "hf_unknown", False)] == [403, 403, 401, 401]
    assert status_of(lambda: HfApi(token="hf_bob").create_repo("acme/theirs")) == 403
    assert api.create_repo(f"acme/{repo.split('/')[1]}").repo_id
    assert len(api.list_repo_commits(repo)) == 1


def test_private_gated_and_disabled_repositories_are_closed(hub: Hub, api: HfApi, repo: str, empty_cache: Path):
    api.upload_file(path_or_fileobj=b"secret", path_in_repo="secret.txt", repo_id=repo)

    def read(token: str | bool) -> str:
        return Path(hf_hub_download(repo, "secret.txt", token=token, cache_dir=empty_cache / str(token))).read_text()

    api.update_repo_settings(repo, private=True)
    assert read(TOKEN) == "secret"
    with pytest.raises(RepositoryNotFoundError):
        read("hf_bob")
    assert status_of(lambda: HfApi(token=False).model_info(repo)) == 401

    api.update_repo_settings(repo, private=False, gated="manual")
    for stranger in ("hf_bob", False):
        with pytest.raises(GatedRepoError):
            read(stranger)
    hub.repos["model", repo].granted.add("bob")
    assert read("hf_bob") == "secret"

    hub.repos["model", repo].disabled = True
    with pytest.raises(DisabledRepoError):
        api.model_info(repo)


# Pushing


def git_id(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def test_a_pushed_folder_is_listed_with_gits_own_ids(hub: Hub, api: HfApi, repo: str, folder: Path):
    pushed = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="first")

    files = files_in(folder)
    assert set(api.list_repo_files(repo)) == {".gitattributes", *files}
    assert [commit.title for commit in api.list_repo_commits(repo)] == ["first", "initial commit"]
    info = api.model_info(repo, files_metadata=True)
    assert (info.sha, info.card_data.license, info.tags) == (pushed.oid, "mit", ["demo", "license:mit"])
    assert {file.rfilename: file.size for file in info.siblings}["model.safetensors"] == 300_000
    weights, notes = api.get_paths_info(repo, ["model.safetensors", "sub/notes.txt", "nowhere"])
    assert weights.lfs.sha256 == hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert (notes.lfs, notes.blob_id) == (None, git_id("blob", b"hello"))
    entries = {entry.path: entry for entry in api.list_repo_tree(repo)}
    assert set(entries) == {".gitattributes", "sub", *files} - {"sub/notes.txt"}
    assert entries["sub"].tree_id == git_id("tree", b"100644 notes.txt\0" + bytes.fromhex(notes.blob_id))


def test_what_was_pushed_already_is_neither_sent_nor_committed_again(hub: Hub, api: HfApi, repo: str, folder: Path):
    first = api.upload_folder(repo_id=repo, folder_path=folder)
    hub.reset()

    again = api.upload_folder(repo_id=repo, folder_path=folder)
    api.upload_file(path_or_fileobj=folder / "model.safetensors", path_in_repo="copy.safetensors", repo_id=repo)

    assert again.oid == first.oid
    assert not hub.requests("PUT")
    assert len(api.list_repo_commits(repo)) == 3


def test_commits_build_on_one_another(hub: Hub, api: HfApi, repo: str, folder: Path):
    api.upload_folder(repo_id=repo, folder_path=folder)
    api.delete_file("empty.txt", repo)
    api.delete_folder("sub", repo)
    api.upload_file(path_or_fileobj=b"v2", path_in_repo="config.json", repo_id=repo)

    *_, first = api.list_repo_commits(repo)
    assert set(api.list_repo_files(repo)) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert api.list_repo_files(repo, revision=first.commit_id) == [".gitattributes"]
    assert status_of(lambda: api.delete_file("empty.txt", repo)) == 404
    stale = {"path_in_repo": "config.json", "repo_id": repo, "parent_commit": first.commit_id}
    assert status_of(lambda: api.upload_file(path_or_fileobj=b"v3", **stale)) == 412
    assert len(api.list_repo_commits(repo)) == 5


def test_a_large_file_is_pushed_in_parts(
    hub: Hub, api: HfApi, repo: str, folder: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hub, "multipart_from", 200_000)
    monkeypatch.setattr(hub, "chunk_size", 128_000)

    api.upload_folder(repo_id=repo, folder_path=folder)

    assert [len(record.request_body) for record in hub.requests("PUT")] == [128_000, 128_000, 44_000]
    assert len(hub.requests("POST", "complete_multipart")) == 1
    weights = hf_hub_download(repo, "model.safetensors", cache_dir=empty_cache)
    assert Path(weights).read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_push_that_is_refused_leaves_no_commit(
    hub: Hub, api: HfApi, repo: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def push() -> None:
        api.upload_folder(repo_id=repo, folder_path=folder)

    monkeypatch.setattr(hub, "quota", 1000)
    with pytest.raises(ValueError, match="quota"):
        push()
    monkeypatch.undo()
    hub.fail("corrupt_request", method="PUT")
    with pytest.raises(RuntimeError) as damaged:
        push()
    assert "422" in str(damaged.value.__cause__)
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(ValueError, match="YAML"):
        push()

    assert len(api.list_repo_commits(repo)) == 1


def test_a_pull_request_leaves_the_main_branch_alone(hub: Hub, api: HfApi, repo: str):
    stranger = HfApi(token="hf_bob")

    proposal = stranger.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo, create_pr=True)

    assert proposal.pr_revision == "refs/pr/1"
    assert not api.file_exists(repo, "x.txt")
    assert api.file_exists(repo, "x.txt", revision="refs/pr/1")
    assert [ref.name for ref in api.list_repo_refs(repo, include_pull_requests=True).pull_requests] == ["refs/pr/1"]


# Reading


def test_a_download_is_what_was_pushed_and_happens_once(
    hub: Hub, api: HfApi, repo: str, folder: Path, empty_cache: Path
):
    api.upload_folder(repo_id=repo, folder_path=folder)
    files = files_in(folder)
    sha256 = hashlib.sha256(files["model.safetensors"]).hexdigest()
    expected = {"model.safetensors": sha256, "config.json": git_id("blob", files["config.json"])}
    hub.reset()

    for name, oid in expected.items():
        path = Path(hf_hub_download(repo, name, cache_dir=empty_cache))
        assert path.read_bytes() == files[name]
        assert path.resolve().name == oid
    assert hub.bytes_sent == sum(len(files[name]) for name in expected)

    hub.reset()
    for name in expected:
        hf_hub_download(repo, name, cache_dir=empty_cache)
    assert {record.method for record in hub.log} == {"HEAD"}
    assert hub.bytes_sent == 0


def test_a_snapshot_is_what_was_pushed(
    hub: Hub, api: HfApi, repo: str, folder: Path, empty_cache: Path, tmp_path: Path
):
    api.upload_folder(repo_id=repo, folder_path=folder)

    cached = snapshot_download(repo, cache_dir=empty_cache, ignore_patterns=".gitattributes")
    copied = snapshot_download(repo, local_dir=tmp_path / "copy", ignore_patterns=".gitattributes")

    assert files_in(Path(cached)) == files_in(Path(copied)) == files_in(folder)


def test_the_token_never_reaches_the_other_origin(hub: Hub, api: HfApi, repo: str, folder: Path, empty_cache: Path):
    api.upload_folder(repo_id=repo, folder_path=folder)
    snapshot_download(repo, cache_dir=empty_cache, token=TOKEN)

    elsewhere = [record for record in hub.log if record.origin == "cdn"]
    assert {record.method for record in elsewhere} == {"PUT", "GET"}
    assert not any("Authorization" in {name.title() for name in record.request_headers} for record in elsewhere)
    assert ask(f"{hub.cdn_url}{elsewhere[0].path}?sig=forged", elsewhere[0].method)[0] == 403


def test_branches_and_tags_are_revisions(hub: Hub, api: HfApi, repo: str, empty_cache: Path):
    api.create_branch(repo, branch="dev")
    api.create_tag(repo, tag="v1")
    api.upload_file(path_or_fileobj=b"dev", path_in_repo="dev.txt", repo_id=repo, revision="dev")

    assert Path(hf_hub_download(repo, "dev.txt", revision="dev", cache_dir=empty_cache)).read_text() == "dev"
    assert not api.file_exists(repo, "dev.txt", revision="v1")
    refs = api.list_repo_refs(repo)
    assert sorted(ref.name for ref in refs.branches) == ["dev", "main"]
    assert [ref.name for ref in refs.tags] == ["v1"]
    assert status_of(lambda: api.create_branch(repo, branch="dev")) == 409
    assert status_of(lambda: api.create_tag(repo, tag="v1")) == 409
    api.delete_branch(repo, branch="dev")
    api.delete_tag(repo, tag="v1")
    assert status_of(lambda: api.delete_tag(repo, tag="v1")) == 404


def test_what_is_missing_is_named(hub: Hub, api: HfApi, repo: str, empty_cache: Path):
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(f"{repo}-missing")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(repo, ".gitattributes", revision="missing", cache_dir=empty_cache)
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(repo, "missing.txt", cache_dir=empty_cache)
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(repo, "missing"))


def test_a_long_listing_comes_in_pages(hub: Hub, api: HfApi, repo: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    api.upload_folder(repo_id=repo, folder_path=folder)
    monkeypatch.setattr(hub, "page_size", 2)

    assert set(api.list_repo_files(repo)) == {".gitattributes", *files_in(folder)}
    assert len(hub.requests("GET", r"[?&]cursor=")) == 3  # 6 files and their folder


def test_what_is_known_about_a_gigabyte_costs_little(hub: Hub, api: HfApi, repo: str):
    sha256 = hub.store_large_file("model", repo, "huge.safetensors", 2**30)

    assert api.model_info(repo, files_metadata=True).siblings[-1].lfs.sha256 == sha256
    metadata = api.get_hf_file_metadata(url=f"{hub.url}/{repo}/resolve/main/huge.safetensors")
    assert (metadata.size, metadata.etag) == (2**30, sha256)
    _, headers, body = ask(metadata.location, "HEAD")
    assert (headers["Content-Length"], body) == (str(2**30), b"")
    assert ask(metadata.location, headers={"Range": f"bytes={2**29}-{2**29 + 9}"})[::2] == (206, bytes(10))
    assert hub.bytes_sent < 10_000


# Failing on purpose


@pytest.fixture
def address(hub: Hub, api: HfApi, repo: str, folder: Path) -> str:
    """Where the large file of `folder` can be had without a token."""
    api.upload_folder(repo_id=repo, folder_path=folder)
    location = ask(f"{hub.url}/{repo}/resolve/main/model.safetensors")[1]["Location"]
    hub.reset()
    return location


@pytest.mark.parametrize(
    ("kind", "details", "error", "bytes_sent"),
    [
        ("close", {}, http.client.RemoteDisconnected, 0),
        ("reset", {}, ConnectionResetError, 0),
        ("lose", {}, ConnectionResetError, 0),
        ("stall", {"seconds": 30}, TimeoutError, 0),
        ("cut", {"after": 1000}, http.client.IncompleteRead, 1000),
        ("reset_after", {"after": 1000}, (http.client.IncompleteRead, ConnectionResetError), 1000),
    ],
)
def test_a_connection_breaks_where_it_is_told_to(
    hub: Hub, address: str, folder: Path, kind: str, details: dict, error: type[Exception], bytes_sent: int
):
    hub.fail(kind, method="GET", path="^/cdn/get/", **details)

    with pytest.raises(error):
        ask(address, timeout=0.5 if kind == "stall" else 10)
    (record,) = hub.log
    assert (record.fault, record.bytes_sent) == (kind, bytes_sent)
    assert ask(address)[2] == (folder / "model.safetensors").read_bytes()


def test_an_answer_is_changed_as_it_is_told_to(hub: Hub, address: str, folder: Path):
    data = (folder / "model.safetensors").read_bytes()

    hub.fail("status", status=503, headers={"Retry-After": "1"}, body=b"later")
    status, headers, body = ask(address)
    assert (status, headers["Retry-After"], body) == (503, "1", b"later")

    hub.fail("headers", headers={"ETag": None, "Content-Type": "text/plain"})
    status, headers, body = ask(address)
    assert (status, headers["ETag"], headers["Content-Type"], body == data) == (200, None, "text/plain", True)

    hub.fail("corrupt")
    body = ask(address)[2]
    assert [i for i, (sent, right) in enumerate(zip(body, data, strict=True)) if sent != right] == [150_000]

    hub.fail("shift")
    status, headers, body = ask(address, headers={"Range": "bytes=100-"})
    assert (status, headers["Content-Range"]) == (206, "bytes 100-299999/300000")
    assert body == data[99:-1]
    assert ask(address, headers={"Range": "bytes=-5"})[2] == data[-5:]
    assert ask(address, headers={"Range": "bytes=300000-"})[0] == 416


def test_work_whose_answer_is_lost_is_done_and_work_that_is_interrupted_is_not(hub: Hub, repo_id: str):
    def create(name: str) -> tuple:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        return ask(f"{hub.url}/api/repos/create", "POST", headers, b'{"name": "%s"}' % name.encode())

    name = repo_id.split("/")[1]
    hub.fail("lose", path="repos/create")
    with pytest.raises(ConnectionResetError):
        create(name)
    assert ("model", repo_id) in hub.repos

    hub.fail("cut_request", path="repos/create", after=3)
    with pytest.raises(ConnectionError):
        create(f"{name}-2")
    assert ("model", f"{repo_id}-2") not in hub.repos


def test_a_failure_strikes_the_requests_it_is_meant_for(hub: Hub, address: str):
    hub.fail("status", method="GET", path="/cdn/", times=2, skip=1, status=500)

    assert ask(address, "HEAD")[0] == 200
    assert [ask(address)[0] for _ in range(4)] == [200, 500, 500, 200]
    assert [record.status for record in hub.requests("GET", "^/cdn/get")] == [200, 500, 500, 200]
    assert not hub.requests("GET", "/api/")
    with pytest.raises(ValueError, match="kind of fault"):
        hub.fail("typo")


def ask_again(connection: http.client.HTTPConnection) -> None:
    connection.auto_open = 0  # no second connection in place of a closed one
    connection.request("GET", "/api/models")
    connection.getresponse()


def test_a_hub_that_has_stopped_is_gone_for_connected_clients_too():
    with Hub() as hub:
        connection = http.client.HTTPConnection(urlsplit(hub.url).netloc)
        connection.request("GET", "/api/models")
        assert connection.getresponse().read() == b"[]"

    with pytest.raises(ConnectionError):
        ask_again(connection)
    with pytest.raises(ConnectionRefusedError):
        ask(hub.url)


# The libraries on top


def test_a_diffusers_pipeline_comes_back_and_is_fetched_once(hub: Hub, repo_id: str, empty_cache: Path):
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=10)).push_to_hub(repo_id, token=TOKEN)

    pipe = DiffusionPipeline.from_pretrained(repo_id, cache_dir=empty_cache)

    assert isinstance(pipe, DDPMPipeline)
    assert_same_weights(pipe.unet, unet)
    hub.reset()
    DiffusionPipeline.from_pretrained(repo_id, cache_dir=empty_cache)
    assert hub.log
    assert not hub.requests("GET", "^/cdn/")
    component = UNet2DModel.from_pretrained(repo_id, subfolder="unet", cache_dir=empty_cache / "component")
    assert_same_weights(component, unet)


def assert_same_weights(model: torch.nn.Module, other: torch.nn.Module) -> None:
    weights, others = model.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_transformers_model_comes_back(hub: Hub, repo_id: str, empty_cache: Path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=50, **sizes))
    model.push_to_hub(repo_id, token=TOKEN, private=True)

    assert hub.repos["model", repo_id].private
    assert_same_weights(AutoModel.from_pretrained(repo_id, token=TOKEN, cache_dir=empty_cache), model)


def test_a_dataset_comes_back_split_by_split(hub: Hub, repo_id: str, empty_cache: Path):
    rows = {"x": list(range(200)), "w": [[float(i)] * 16 for i in range(200)], "label": ["a", "b"] * 100}
    first, more = Dataset.from_dict(rows), Dataset.from_dict({name: column[:2] for name, column in rows.items()})
    first.push_to_hub(repo_id, token=TOKEN)
    more.push_to_hub(repo_id, token=TOKEN, split="test")
    other = {"train": Dataset.from_dict({"z": [1]}), "val": Dataset.from_dict({"z": [2]})}
    DatasetDict(other).push_to_hub(repo_id, token=TOKEN, config_name="other")

    loaded = load_dataset(repo_id, "default", cache_dir=str(empty_cache))

    assert {split: data.to_dict() for split, data in loaded.items()} == {"train": rows, "test": more.to_dict()}
    assert load_dataset(repo_id, "other", cache_dir=str(empty_cache)).num_rows == {"train": 1, "val": 1}
    streamed = load_dataset(repo_id, "default", split="test", streaming=True)
    assert [row["x"] for row in streamed] == [0, 1]
    commits = hub.requests("POST", "/commit/")
    assert all(b'"parentCommit"' in record.request_body for record in commits)


def test_an_image_dataset_comes_back(hub: Hub, repo_id: str, empty_cache: Path, tmp_path: Path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        PILImage.fromarray(np.full((4, 4, 3), 20 * i, dtype=np.uint8)).save(path)
    data = Dataset.from_dict({"image": [str(path) for path in paths]}).cast_column("image", Image())
    data.push_to_hub(repo_id, token=TOKEN)

    loaded = load_dataset(repo_id, split="train", cache_dir=str(empty_cache))

    assert [np.asarray(image).max() for image in loaded["image"]] == [0, 20, 40]


# Clients in processes of their own


def test_a_client_with_xet_pushes_and_pulls(xet_hub: Hub, repo_id: str, folder: Path, empty_cache: Path):
    code = f"""
from huggingface_hub import HfApi, snapshot_download
api = HfApi()
api.create_repo("{repo_id}")
api.upload_folder(repo_id="{repo_id}", folder_path={str(folder)!r})
print(snapshot_download("{repo_id}", ignore_patterns=".gitattributes"))
"""
    snapshot = run_python(code, xet_hub, cache=empty_cache, xet=True).strip()

    assert files_in(Path(snapshot)) == files_in(folder)
    assert xet_hub.requests("GET", "/xet-write-token/")
    assert xet_hub.requests("GET", "/xet-read-token/")
    assert not [record for record in xet_hub.log if record.origin == "cdn"]
    without_xet = hf_hub_download(
        repo_id, "model.safetensors", endpoint=xet_hub.url, cache_dir=empty_cache / "without xet"
    )
    assert Path(without_xet).read_bytes() == (folder / "model.safetensors").read_bytes()


def test_over_https_the_anonymous_cannot_tell_private_from_missing(
    tls_hub: Hub, certificate: tuple[Path, Path], repo_id: str, empty_cache: Path
):
    code = f"""
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
alice, anonymous = HfApi(), HfApi(token=False)
alice.create_repo("{repo_id}", private=True)
for repo_id in ("{repo_id}", "{repo_id}-missing"):
    try:
        anonymous.model_info(repo_id)
    except RepositoryNotFoundError as error:
        print(error.response.status_code, anonymous.repo_exists(repo_id), alice.repo_exists(repo_id))
"""
    output = run_python(code, tls_hub, cache=empty_cache, env={"SSL_CERT_FILE": str(certificate[0])})

    assert output.splitlines() == ["401 False True", "401 False False"]


def test_a_child_process_can_do_without_the_package_and_the_network(hub: Hub, empty_cache: Path):
    code = "from huggingface_hub import constants, get_token; print(constants.HF_HUB_OFFLINE, get_token())"
    assert run_python(code, hub, cache=empty_cache, offline=True, token=None).split() == ["True", "None"]
    assert hub.log == []

    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        run_python("import pdiff_hf", hub, cache=empty_cache, block_package=True)
