"""The Hub of these tests is no more lenient than huggingface.co."""

from __future__ import annotations

import hashlib
import http.client
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .server import Hub
from .server.model import git_oid

TOKEN = "hf_alice"
WEIGHTS = os.urandom(300_000)


@pytest.fixture
def repo(hub: Hub, api: HfApi, repo_id: str, tmp_path: Path) -> str:
    """A model repository with a card, a small file in a folder, and a large file."""
    (tmp_path / "folder/sub").mkdir(parents=True)
    files = {"README.md": b"---\nlicense: mit\n---\n", "sub/notes.txt": b"hello", "model.safetensors": WEIGHTS}
    for name, content in files.items():
        (tmp_path / "folder" / name).write_bytes(content)
    api.create_repo(repo_id)
    api.upload_folder(repo_id=repo_id, folder_path=tmp_path / "folder", commit_message="first")
    return repo_id


def upload(repo: str, token: str | bool = TOKEN, name: str = "x.txt", content: bytes = b"x", **how: object) -> None:
    HfApi(token=token).upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo, **how)


def status_of(action: Callable[[], object]) -> int:
    """Does what is refused, and returns the status of the refusal."""
    with pytest.raises(HfHubHTTPError) as refusal:
        action()
    return refusal.value.response.status_code


def ask(url: str, method: str = "GET") -> tuple[int, bytes]:
    """Sends one bare HTTP request on a connection of its own; returns status and body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request(method, f"{parts.path}?{parts.query}")
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_only_owners_with_a_write_token_may_write(hub: Hub, api: HfApi, repo: str):
    tokens = ("hf_bob", "hf_read", "hf_unknown", False)
    assert [status_of(lambda token=token: upload(repo, token)) for token in tokens] == [403, 403, 401, 401]
    assert status_of(lambda: HfApi(token="hf_bob").create_repo("acme/theirs")) == 403
    assert status_of(lambda: api.create_repo(repo)) == 409
    assert hub.titles(repo) == ["first", "initial commit"]
    upload(repo, "hf_bob", create_pr=True)
    assert hub.titles(repo) == ["first", "initial commit"]
    assert api.file_exists(repo, "x.txt", revision="refs/pr/1")


def test_what_is_closed_or_missing_is_so_for_each_reader(hub: Hub, api: HfApi, repo: str, empty_cache: Path):
    def read(name: str, token: str | bool, revision: str | None = None) -> str:
        return hf_hub_download(repo, name, token=token, revision=revision, cache_dir=empty_cache / str(token))

    with pytest.raises(RevisionNotFoundError):
        read("README.md", TOKEN, "v9")
    with pytest.raises(RemoteEntryNotFoundError):
        read("missing.txt", TOKEN)
    api.update_repo_settings(repo, gated="manual")
    assert [status_of(lambda token=token: read("README.md", token)) for token in ("hf_bob", False)] == [403, 401]
    api.update_repo_settings(repo, private=True, gated=False)
    with pytest.raises(RepositoryNotFoundError):
        read("README.md", "hf_bob")
    assert status_of(lambda: HfApi(token=False).model_info(repo)) == 401
    hub.repos["model", repo].disabled = True
    assert status_of(lambda: api.model_info(repo)) == 403


def test_files_are_listed_in_pages_with_gits_own_ids(hub: Hub, api: HfApi, repo: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "page_size", 2)
    entries = {entry.path: entry for entry in api.list_repo_tree(repo, recursive=True)}

    assert set(entries) == {".gitattributes", "README.md", "model.safetensors", "sub", "sub/notes.txt"}
    assert len(hub.requests("GET", r"[?&]cursor=")) == 2
    assert entries["model.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    notes = entries["sub/notes.txt"]
    assert (notes.lfs, notes.blob_id) == (None, git_oid("blob", b"hello"))
    assert entries["sub"].tree_id == git_oid("tree", b"100644 notes.txt\0" + bytes.fromhex(notes.blob_id))


def test_a_commit_that_does_not_fit_is_refused(hub: Hub, api: HfApi, repo: str, monkeypatch: pytest.MonkeyPatch):
    *_, first = api.list_repo_commits(repo)
    assert status_of(lambda: upload(repo, parent_commit=first.commit_id)) == 412
    assert status_of(lambda: api.delete_file("missing.txt", repo)) == 404
    with pytest.raises(ValueError, match="YAML"):
        upload(repo, name="README.md", content=b"---\nlicense: [mit\n---\n")
    hub.fail("corrupt_request", method="PUT")
    with pytest.raises(RuntimeError) as damaged:
        upload(repo, name="other.safetensors", content=b"other")
    assert "422" in str(damaged.value.__cause__)
    monkeypatch.setattr(hub, "quota", 1000)
    with pytest.raises(ValueError, match="quota"):
        upload(repo, name="third.safetensors", content=b"third" * 1000)
    assert hub.titles(repo) == ["first", "initial commit"]


def test_the_storage_takes_signed_addresses_and_no_token(hub: Hub, repo: str, empty_cache: Path):
    snapshot_download(repo, cache_dir=empty_cache, token=TOKEN)

    storage = [record for record in hub.log if record.origin == "cdn"]
    assert {record.method for record in storage} == {"PUT", "GET"}
    assert not any("authorization" in map(str.lower, record.request_headers) for record in storage)
    assert ask(f"{hub.cdn_url}{storage[0].path}?sig=forged", storage[0].method)[0] == 403


def test_before_its_start_and_after_its_end_a_hub_refuses_connections():
    hub = Hub()
    with pytest.raises(ConnectionRefusedError):
        ask(hub.url)
    with hub:
        assert ask(f"{hub.url}/api/models")[1] == b"[]"
    with pytest.raises(ConnectionRefusedError):
        ask(hub.url)
