"""Loads from a Hub that fails, lies or attacks: what comes back is what was pushed, or an error says why it is not."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from huggingface_hub import HfApi, _tree_cache, constants, get_session
from huggingface_hub.utils import _http

from pdiff_hf import (
    BrokenFileError,
    Checkpoints,
    CheckpointSplit,
    CorruptFileError,
    HubAccessError,
    HubError,
    HubNotFoundError,
    HubQuotaError,
    HubUnreachableError,
    PDiffPipeline,
    UnsafeFileError,
    load_checkpoints,
)
from pdiff_hf.hub import client as hub_client
from pdiff_hf.hub.files import RepositoryFiles
from pdiff_hf.targets.loading import UnknownTargetError

from .cases import ALWAYS, HTML, Case, assert_clear, fault, status
from .server import Hub
from .server.faults import damaged
from .server.model import Blob, Repo
from .waiting import no_longer_than, skip_waits

TOKEN = "hf_alice"
INFO = {"method": "GET", "path": "/revision/main"}
TREE = {"method": "GET", "path": "/tree/"}
HEAD = {"method": "HEAD", "path": "/resolve/.*safetensors"}
HEAD_JSON = {"method": "HEAD", "path": "/resolve/.*json"}
GET = {"method": "GET", "path": "^/cdn/get/"}
GET_JSON = {"method": "GET", "path": "/resolve-cache/.*processor_config.json"}
NO_ETAG = {"ETag": None, "X-Linked-Etag": None}
NO_ENTRY = {"X-Error-Code": "EntryNotFound"}
SHA_OF_NOTHING = {"X-Linked-Etag": f'"{"0" * 64}"'}
CASES = [
    # The bytes
    *(
        Case(f"{name} {what}", planned)
        for name, where in (("weights", GET), ("small file", GET_JSON))
        for what, planned in (
            ("cut off", fault("cut", where, after=100)),
            ("cut off at once", fault("cut", where, after=0)),
            ("cut off six times", fault("cut", where, 6, after=100)),
            ("reset on the way", fault("reset_after", where, after=100)),
            ("reset at once", fault("reset", where)),
            ("closed without an answer", fault("close", where)),
            ("answered 500", status(where, 500)),
            ("answered 502", status(where, 502)),
            ("answered 503 twice", status(where, 503, 2)),
            ("rate limited", status(where, 429, headers={"Retry-After": "3"})),
            ("damaged", fault("corrupt", where)),
            ("stalled", fault("stall", where, seconds=1.5)),
        )
    ),
    *(
        Case(f"{name} {what}", planned, error)
        for name, where in (("weights", GET), ("small file", GET_JSON))
        for what, planned, error in (
            ("answered 500 for ever", status(where, 500, ALWAYS), HubUnreachableError),
            ("reset for ever", fault("reset_after", where, ALWAYS, after=100), HubUnreachableError),
            ("cut off for ever", fault("cut", where, ALWAYS, after=100), HubUnreachableError),
            ("answered 403", status(where, 403, ALWAYS), HubAccessError),
            ("answered 416", status(where, 416, ALWAYS), HubError),
            ("damaged for ever", fault("corrupt", where, ALWAYS), CorruptFileError),
        )
    ),
    # What is said about them
    Case("size wrong", fault("headers", HEAD, headers={"X-Linked-Size": "999999"})),
    Case("size wrong for ever", fault("headers", HEAD, ALWAYS, headers={"X-Linked-Size": "999999"}), CorruptFileError),
    Case("checksum wrong", fault("headers", HEAD, headers=SHA_OF_NOTHING)),
    Case("checksum wrong for ever", fault("headers", HEAD, ALWAYS, headers=SHA_OF_NOTHING), CorruptFileError),
    Case("ETag missing", fault("headers", HEAD, headers=NO_ETAG)),
    Case("ETag missing for ever", fault("headers", HEAD, ALWAYS, headers=NO_ETAG), HubUnreachableError),
    Case("commit missing", fault("headers", HEAD, headers={"X-Repo-Commit": None})),
    Case(
        "commit missing for ever", fault("headers", HEAD, ALWAYS, headers={"X-Repo-Commit": None}), HubUnreachableError
    ),
    *(
        Case(f"{name} {what}", planned)
        for name, where in (("head", HEAD), ("small file's head", HEAD_JSON), ("listing", TREE), ("description", INFO))
        for what, planned in (
            ("answered 500", status(where, 500)),
            ("answered 503", status(where, 503)),
            ("rate limited", status(where, 429, headers={"Retry-After": "2"})),
            ("reset", fault("reset", where)),
            ("closed", fault("close", where)),
            ("lost", fault("lose", where)),
        )
    ),
    *(
        Case(f"{name} {what}", planned, HubUnreachableError)
        for name, where in (("head", HEAD), ("listing", TREE), ("description", INFO))
        for what, planned in (
            ("answered 503 for ever", status(where, 503, ALWAYS)),
            ("reset for ever", fault("reset", where, ALWAYS)),
            ("closed for ever", fault("close", where, ALWAYS)),
        )
    ),
    Case("head stalls", fault("stall", HEAD, seconds=1.5)),
    Case("listing stalls", fault("stall", TREE, seconds=1.5)),
    Case("description stalls", fault("stall", INFO, seconds=1.5)),
    Case("head answered 401", status(HEAD, 401, ALWAYS), HubNotFoundError),
    Case("head answered 403", status(HEAD, 403, ALWAYS), HubAccessError),
    Case("head answered 404 without a code", status(HEAD, 404, ALWAYS), HubNotFoundError),
    Case("head says that there is no such file", status(HEAD, 404, ALWAYS, headers=NO_ENTRY), HubNotFoundError),
    Case("second page of the listing answered 500", status({"path": "cursor="}, 500), hub={"page_size": 3}),
    Case("listing in pages", [], hub={"page_size": 3}),
    Case("description is a web page", status(INFO, 200, body=HTML)),
    Case("description is a web page for ever", status(INFO, 200, ALWAYS, body=HTML), HubUnreachableError),
    Case("listing is a web page", status(TREE, 200, body=HTML)),
    Case("listing is a web page for ever", status(TREE, 200, ALWAYS, body=HTML), HubUnreachableError),
]


@dataclasses.dataclass
class Shared:
    """Something on the Hub, and the folder that it was pushed from.

    Args:
        repo: Where it is.
        folder: Where it was.
        load: Loads it from a folder or, with a cache, from the Hub; takes further arguments of the loader.
        content: Everything that it says, for comparison.
    """

    repo: Repo
    folder: Path
    load: Callable[..., Any]
    content: Callable[[Any], dict[str, Any]]

    def pull(self, cache: Path, **how: Any) -> Any:
        return self.load(self.repo.id, cache_dir=cache, **how)

    def assert_same(self, loaded: Any) -> None:
        found, expected = self.content(loaded), self.content(self.load(self.folder))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            same = torch.equal(value, found[name]) if isinstance(value, torch.Tensor) else value == found[name]
            assert same, name

    def cached(self, cache: Path) -> Path:
        """Where the repository is in a cache."""
        return cache / f"{self.repo.type}s--{self.repo.id.replace('/', '--')}"

    def blobs(self, cache: Path) -> dict[str, Path]:
        """The cached files by their names in the repository."""
        (snapshot,) = self.cached(cache).glob("snapshots/*")
        return {p.relative_to(snapshot).as_posix(): p.resolve() for p in sorted(snapshot.rglob("*")) if p.is_file()}


def content_of_pipeline(pipe: PDiffPipeline) -> dict[str, Any]:
    content = {"processor": dict(pipe.processor.config), "scheduler": dict(pipe.scheduler.config)}
    for part in ("autoencoder", "denoiser", "target_model"):
        content |= {f"{part}.{name}": tensor for name, tensor in getattr(pipe, part).state_dict().items()}
    for config in (content["processor"], content["scheduler"]):
        config.pop("_name_or_path", None)
    return content


def content_of_checkpoints(checkpoints: Checkpoints) -> dict[str, Any]:
    content = {f"target_model.{n}": tensor for n, tensor in checkpoints.target_model.state_dict().items()}
    for split, zoo in checkpoints.splits.items():
        content |= {f"{split}.{field.name}": getattr(zoo, field.name) for field in dataclasses.fields(CheckpointSplit)}
    collection = {name: value for name, value in checkpoints.collection.items() if name != "repo_id"}
    return content | {"collection": collection, "preprocessing": checkpoints.preprocessing}


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What the clients would have waited."""
    with no_longer_than(120):
        yield skip_waits(monkeypatch)


@pytest.fixture
def pipeline(hub: Hub, repo_id: str, tiny_pipeline: PDiffPipeline, tmp_path: Path) -> Shared:
    tiny_pipeline.push_to_hub(repo_id, token=TOKEN)
    tiny_pipeline.save_pretrained(tmp_path / "pipeline")
    hub.reset()
    return Shared(
        hub.repos["model", repo_id], tmp_path / "pipeline", PDiffPipeline.from_pretrained, content_of_pipeline
    )


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


def files_under(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def in_turn() -> list:
    """Every case with one of the two kinds in turn; with the other one too where time does not matter."""
    return [
        pytest.param(kind, case, id=f"{kind}: {case}", marks=[pytest.mark.exhaustive] * ((i + j) % 2))
        for i, case in enumerate(CASES)
        for j, kind in enumerate(("pipeline", "checkpoints"))
    ]


@pytest.mark.parametrize(("shared", "case"), in_turn(), indirect=["shared"])
def test_a_load_survives_or_says_why_and_is_completed_by_another(
    hub: Hub, shared: Shared, empty_cache: Path, case: Case, monkeypatch: pytest.MonkeyPatch
):
    for kind, details in case.faults:
        hub.fail(kind, **details)
        if kind == "stall":
            monkeypatch.setattr(hub_client, "ANSWER_TIMEOUT", 0.5)
            monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
            monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    client = (_http._GLOBAL_CLIENT_FACTORY, get_session().timeout)

    with monkeypatch.context() as limits:
        for name, value in case.hub.items():
            limits.setattr(hub, name, value)
        if case.error is None:
            shared.assert_same(shared.pull(empty_cache))
        else:
            with pytest.raises(HubError) as raised:
                shared.pull(empty_cache)
            assert_clear(raised.value, shared.repo.id)
            assert type(raised.value) is case.error, repr(raised.value)
            assert case.says in str(raised.value)

    assert {record.fault for record in hub.log} - {"none"} == {kind for kind, _ in case.faults}
    assert (_http._GLOBAL_CLIENT_FACTORY, get_session().timeout) == client
    hub.faults.clear()
    shared.assert_same(shared.pull(empty_cache))


@pytest.mark.parametrize("planned", [status(INFO, 503, ALWAYS), fault("reset", {}, ALWAYS), status({}, 500, ALWAYS)])
def test_what_is_cached_is_loaded_while_the_hub_is_down(
    hub: Hub, shared: Shared, empty_cache: Path, planned: list[tuple[str, dict]]
):
    shared.pull(empty_cache)
    for kind, details in planned:
        hub.fail(kind, **details)

    shared.assert_same(shared.pull(empty_cache))


@pytest.fixture(params=["nothing listens", "HF_HUB_OFFLINE"])
def lose_the_hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that takes the network away from this machine, or tells it to use none."""

    def lose() -> None:
        if request.param == "HF_HUB_OFFLINE":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
            return
        with Hub() as gone:
            template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, gone.url)
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            monkeypatch.setattr(constants, "ENDPOINT", gone.url)

    return lose


def test_without_the_hub_what_is_cached_is_loaded_and_what_is_not_is_explained(
    shared: Shared, empty_cache: Path, tmp_path: Path, lose_the_hub: Callable[[], None]
):
    shared.pull(empty_cache)
    lose_the_hub()

    shared.assert_same(shared.pull(empty_cache))
    with pytest.raises(HubUnreachableError) as raised:
        shared.pull(tmp_path / "another cache")

    assert_clear(raised.value, shared.repo.id)


# What belongs to the user


def test_timeouts_that_the_user_has_set_are_kept(shared: Shared, empty_cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(get_session(), "timeout", 7.0)

    shared.pull(empty_cache)

    assert get_session().timeout == httpx2.Timeout(7.0)


def test_downloads_in_threads_leave_the_client_as_it_was(shared: Shared, empty_cache: Path):
    before = get_session().timeout
    name, repo_type = shared.repo.id, shared.repo.type

    def download(cache: str) -> Path:
        return RepositoryFiles(name, repo_type=repo_type, cache_dir=empty_cache / cache).download(["*"])

    with ThreadPoolExecutor(4) as threads:
        folders = list(threads.map(download, ["one", "two", "one", "two"]))

    assert get_session().timeout == before
    for folder in folders:
        shared.assert_same(shared.load(folder))


# Who may not


def private(repo: Repo) -> None:
    repo.visibility = "private"


def gated(repo: Repo) -> None:
    repo.gated = "manual"


def disabled(repo: Repo) -> None:
    repo.disabled = True


def nothing(repo: Repo) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "how", "error", "says"),
    [
        (private, {}, HubNotFoundError, "private"),
        (private, {"token": "hf_bob"}, HubNotFoundError, "private"),
        (gated, {}, HubAccessError, "gated"),
        (gated, {"token": "hf_bob"}, HubAccessError, "gated"),
        (disabled, {"token": TOKEN}, HubAccessError, "disabled"),
        (nothing, {"token": "hf_nope"}, HubAccessError, "token"),
        (nothing, {"revision": "nowhere"}, HubNotFoundError, "revision"),
        (nothing, {"revision": "0" * 40}, HubNotFoundError, "revision"),
    ],
    ids=["private", "private to bob", "gated", "gated for bob", "disabled", "bad token", "no branch", "no commit"],
)
def test_a_load_without_the_right_to_says_so(
    hub: Hub, shared: Shared, empty_cache: Path, change: Callable[[Repo], None], how: dict, error: type, says: str
):
    change(shared.repo)

    with pytest.raises(HubError) as raised:
        shared.pull(empty_cache, **how)

    assert_clear(raised.value, shared.repo.id)
    assert type(raised.value) is error, repr(raised.value)
    assert says in str(raised.value)
    assert not list(empty_cache.rglob("*.safetensors"))


@pytest.mark.parametrize("token", [TOKEN, False])
@pytest.mark.parametrize("load", [PDiffPipeline.from_pretrained, load_checkpoints])
def test_a_repository_that_is_not_there_is_named(hub: Hub, empty_cache: Path, load: Callable, token: str | bool):
    with pytest.raises(HubNotFoundError) as raised:
        load("alice/nowhere", token=token, cache_dir=empty_cache)

    assert_clear(raised.value, "alice/nowhere")


# Damage


def flip(path: Path, position: int) -> None:
    path.write_bytes(damaged(path.read_bytes(), position))


def test_each_of_a_hundred_flipped_bytes_in_the_cache_is_found_and_mended(
    hub: Hub, pipeline: Shared, checkpoints: Shared, empty_cache: Path
):
    chance = random.Random(0)
    for shared in (pipeline, checkpoints):
        shared.pull(empty_cache)
    targets = [(shared, name) for shared in (pipeline, checkpoints) for name in shared.blobs(empty_cache)]
    assert len(targets) >= 17
    found = 0

    for turn in range(100):
        shared, name = targets[turn % len(targets)]
        path = shared.blobs(empty_cache)[name]
        content = path.read_bytes()
        flip(path, chance.randrange(len(content)))
        hub.log.clear()

        loaded = shared.pull(empty_cache)

        assert shared.blobs(empty_cache)[name].read_bytes() == content, name
        assert len(hub.requests("GET", "^/cdn/get|resolve-cache")) == 1, name
        shared.assert_same(loaded)
        found += 1
    assert found == 100


def test_each_byte_that_is_flipped_on_the_way_is_found_and_mended(
    hub: Hub, pipeline: Shared, checkpoints: Shared, empty_cache: Path
):
    for shared in (pipeline, checkpoints):
        for name, blob in shared.repo.at().tree.items():
            if name in (".gitattributes", "README.md", "metrics.json"):
                continue
            where = f"^/cdn/get/{blob.sha256}" if blob.sha256 else f"resolve-cache/.*{name}$"
            planned = hub.fail("corrupt", method="GET", path=where)
            cache = empty_cache / name.replace("/", "-")

            loaded = shared.pull(cache)

            assert planned.times == 0, name
            shared.assert_same(loaded)


@pytest.mark.parametrize("how", ["cut short", "lengthened", "of another file", "removed"])
def test_other_damage_of_all_cached_files_is_mended_too(shared: Shared, empty_cache: Path, how: str):
    shared.pull(empty_cache)
    blobs = shared.blobs(empty_cache)
    contents = {name: path.read_bytes() for name, path in blobs.items()}
    for name, another in zip(blobs, [*list(blobs)[1:], next(iter(blobs))], strict=True):
        content = contents[name]
        changed = {"cut short": content[:-1], "lengthened": content + b"\n", "of another file": contents[another]}
        if how == "removed":
            blobs[name].unlink()
        else:
            blobs[name].write_bytes(changed[how])

    shared.assert_same(shared.pull(empty_cache))

    assert {name: path.read_bytes() for name, path in blobs.items()} == contents


def test_a_resumed_download_that_is_shifted_by_a_byte_is_found_and_mended(hub: Hub, repo_id: str, empty_cache: Path):
    HfApi(token=TOKEN).create_repo(repo_id)
    content = random.Random(0).randbytes(25_000_000)
    sha256 = hashlib.sha256(content).hexdigest()
    hub.objects.store(sha256, content)
    hub.repos["model", repo_id].at().tree["large.safetensors"] = Blob.large(sha256, len(content))
    hub.fail("cut", **GET, after=15_000_000)
    hub.fail("shift", **GET)

    folder = RepositoryFiles(repo_id, cache_dir=empty_cache).download(["*.safetensors"])

    assert (folder / "large.safetensors").read_bytes() == content
    assert [(record.fault, record.status) for record in hub.requests("GET", "^/cdn/get")] == [
        ("cut", 200),
        ("shift", 206),
        ("none", 200),
    ]


def test_a_file_whose_name_in_the_cache_is_no_checksum_is_compared_with_the_listing(
    hub: Hub, shared: Shared, empty_cache: Path
):
    where = {"method": "HEAD", "path": "/resolve/.*target_model/model.safetensors"}
    hub.fail("headers", **where, times=ALWAYS, headers={"X-Linked-Etag": '"abc"'})
    shared.pull(empty_cache)
    path = shared.blobs(empty_cache)["target_model/model.safetensors"]
    assert path.name == "abc"
    flip(path, 1000)

    shared.assert_same(shared.pull(empty_cache))


def test_damage_in_the_cache_without_the_hub_is_named(
    shared: Shared, empty_cache: Path, lose_the_hub: Callable[[], None]
):
    shared.pull(empty_cache)
    blobs = shared.blobs(empty_cache)
    name = next(name for name in blobs if name.endswith(".safetensors"))
    flip(blobs[name], 1000)
    lose_the_hub()

    with pytest.raises(CorruptFileError, match="damaged in the cache") as raised:
        shared.pull(empty_cache)

    assert_clear(raised.value, shared.repo.id, name)


def test_damage_in_the_cache_is_named_where_the_hub_is_not_to_be_asked(hub: Hub, pipeline: Shared, empty_cache: Path):
    pipeline.pull(empty_cache)
    name = "denoiser/diffusion_pytorch_model.safetensors"
    flip(pipeline.blobs(empty_cache)[name], 1000)
    hub.log.clear()

    with pytest.raises(CorruptFileError, match="damaged in the cache") as raised:
        pipeline.pull(empty_cache, local_files_only=True)

    assert_clear(raised.value, pipeline.repo.id, name)
    assert not hub.log


def test_damage_on_the_hub_itself_is_named(hub: Hub, shared: Shared, empty_cache: Path):
    name = next(name for name in shared.repo.at().tree if name.endswith(".safetensors"))
    flip(hub.objects.path(shared.repo.at().tree[name].sha256), 1000)

    with pytest.raises(CorruptFileError) as raised:
        shared.pull(empty_cache)

    assert_clear(raised.value, shared.repo.id, name)


def test_a_damaged_listing_in_the_cache_does_no_harm(hub: Hub, shared: Shared, empty_cache: Path):
    shared.pull(empty_cache)
    (listing,) = shared.cached(empty_cache).glob("trees/*.json")
    content = listing.read_bytes()
    sha256 = next(blob.sha256 for blob in shared.repo.at().tree.values() if blob.sha256).encode()
    for changed in (content[:100], b"", content.replace(sha256, b"0" * 64)):
        listing.write_bytes(changed)
        _tree_cache._IN_MEMORY_TREE_CACHE.clear()

        shared.assert_same(shared.pull(empty_cache))


def test_a_flipped_byte_in_the_cached_listing_is_survived_or_named(hub: Hub, shared: Shared, empty_cache: Path):
    shared.pull(empty_cache)
    (listing,) = shared.cached(empty_cache).glob("trees/*.json")
    content, chance = listing.read_bytes(), random.Random(0)
    for _ in range(20):
        listing.write_bytes(content)
        flip(listing, chance.randrange(len(content)))
        _tree_cache._IN_MEMORY_TREE_CACHE.clear()

        try:
            loaded = shared.pull(empty_cache)
        except (HubError, BrokenFileError, UnsafeFileError):
            continue
        else:
            shared.assert_same(loaded)


def test_a_disk_that_is_full_is_named_and_the_load_completed_when_it_is_not(shared: Shared, tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        filler = disk / "filler"
        filler.write_bytes(b"x" * 100_000)

        with pytest.raises(HubQuotaError) as raised:
            shared.pull(disk / "cache")
        assert_clear(raised.value, shared.repo.id)
        assert not [path for path in disk.rglob("*.incomplete") if path.stat().st_size]

        filler.unlink()
        shared.assert_same(shared.pull(disk / "cache"))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# Attacks


HOSTILE_NAMES = [
    "../../evil.json",
    "../evil.safetensors",
    "/etc/evil-of-pdiff-hf.json",
    "autoencoder/../../evil.json",
    "data/../../../../evil.parquet",
    "data/..\\..\\evil.parquet",
    "target_model/../../evil.json",
    "target_model/../../../evil.safetensors",
    "../../../evil.png",
    "LICENSE/../../../evil",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_leads_out_of_its_repository_is_never_written(hub: Hub, shared: Shared, tmp_path: Path, name: str):
    shared.repo.at().tree[name] = Blob.regular(b'{"evil": true}')
    cache = tmp_path / "outer/inner/cache"
    before = files_under(tmp_path)

    try:
        loaded = shared.pull(cache)
    except UnsafeFileError:
        pass
    else:
        shared.assert_same(loaded)
        if isinstance(loaded, PDiffPipeline):
            with contextlib.suppress(UnsafeFileError):
                loaded.save_pretrained(tmp_path / "outer/inner/saved")

    written = files_under(tmp_path) - before
    assert not [path for path in written if "evil" in path.name and cache / "blobs" not in path.parents]
    assert not [path for path in written if not path.is_relative_to(tmp_path / "outer/inner")]
    assert not list(Path("/etc").glob("evil*"))
    outside = [link for link in cache.rglob("*") if link.is_symlink() and not link.resolve().is_relative_to(cache)]
    assert not outside


def rewrite(repo: Repo, name: str, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file where it is, in the repository."""
    tree = repo.at().tree
    tree[name] = Blob.regular(json.dumps(change(json.loads(tree[name].data))).encode())


EVIL = b"""
import pathlib, diffusers, transformers, torch
pathlib.Path(%r).touch()
class Evil(torch.nn.Module):
    config_class = transformers.PretrainedConfig
    @classmethod
    def from_pretrained(cls, *args, **kwargs): return cls()
    from_config = from_pretrained
class EvilConfig(transformers.PretrainedConfig):
    model_type = "evil"
"""


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A file that comes into being when code of the repository is run."""
    return tmp_path / "code-was-run"


@pytest.mark.parametrize(
    ("component", "entry"),
    [
        ("scheduler", ["os", "system"]),
        ("target_model", ["os", "system"]),
        ("target_model", ["subprocess", "Popen"]),
        ("target_model", ["pathlib", "Path"]),
        ("target_model", ["torch.nn", "Linear"]),
        ("target_model", ["antigravity", "fly"]),
        ("target_model", ["transformers", "pipeline"]),
        ("target_model", ["transformers", "AutoModel"]),
        ("target_model", ["transformers.models.bert.modeling_bert", "BertModel.from_pretrained"]),
        ("target_model", ["evil", "Evil"]),
        ("autoencoder", ["evil", "Evil"]),
        ("autoencoder", ["pdiff_hf", "share"]),
        ("denoiser", ["diffusers", "UNet2DModel"]),
        ("scheduler", ["diffusers", "DiffusionPipeline"]),
        ("scheduler", ["diffusers", "SchedulerMixin"]),
        ("scheduler", ["diffusers.schedulers", "DDIMScheduler"]),
        ("processor", ["evil", "Evil"]),
        ("processor", ["transformers", "AutoProcessor"]),
        ("_class_name", ["evil", "Evil"]),
        ("_class_name", "DiffusionPipeline"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, list) else str(value) if isinstance(value, str) else "",
)
def test_a_class_that_the_package_does_not_read_is_refused_and_its_code_not_run(
    pipeline: Shared, empty_cache: Path, trap: Path, component: str, entry: Any
):
    rewrite(pipeline.repo, "model_index.json", lambda index: index | {component: entry})
    code = Blob.regular(EVIL % str(trap))
    for name in ("evil.py", "autoencoder/evil.py", "target_model/evil.py", "processor/evil.py", "pipeline.py"):
        pipeline.repo.at().tree[name] = code

    for trust in ({}, {"trust_remote_code": True}):
        with pytest.raises((UnsafeFileError, BrokenFileError)) as raised:
            pipeline.pull(empty_cache, **trust)
        assert len(str(raised.value).splitlines()) == 1

    assert not trap.exists()
    assert not list(empty_cache.rglob("*.py"))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "change",
    [
        {"auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForImageClassification": "evil.Evil"}},
        {
            "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForImageClassification": "evil.Evil"},
            "model_type": "evil",
        },
        {"_attn_implementation": "alice/evil", "attn_implementation": "alice/evil"},
        {"quantization_config": {"quant_method": "evil", "load_in_4bit": True}},
        {"text_config": {"_attn_implementation": "alice/evil", "quantization_config": {"quant_method": "evil"}}},
        {"architectures": ["AutoModelForImageClassification"], "auto_map": {"AutoConfig": "evil.EvilConfig"}},
        {"architectures": ["pipeline"]},
        {"architectures": ["PreTrainedModel"]},
        {"architectures": ["Evil"]},
    ],
    ids=[
        "auto_map",
        "auto_map of an unknown type",
        "attention kernel",
        "quantization",
        "inside",
        "auto class",
        "function",
        "abstract class",
        "unknown class",
    ],
)
def test_a_targets_configuration_runs_no_code(
    hub: Hub, shared: Shared, empty_cache: Path, trap: Path, change: dict, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    rewrite(shared.repo, "target_model/config.json", lambda config: config | change)
    for name in ("evil.py", "target_model/evil.py"):
        shared.repo.at().tree[name] = Blob.regular(EVIL % str(trap))
        (shared.folder / name).write_bytes(EVIL % str(trap))
    config = json.loads((shared.folder / "target_model/config.json").read_text())
    (shared.folder / "target_model/config.json").write_text(json.dumps(config | change))

    for place, how in ((shared.repo.id, {"cache_dir": empty_cache}), (shared.folder, {})):
        with contextlib.suppress(BrokenFileError, UnsafeFileError, UnknownTargetError):
            shared.load(place, **how)

    assert not trap.exists()
    assert not hub.requests(None, "alice/evil")


def test_an_adapter_beside_a_target_is_not_followed(hub: Hub, shared: Shared, empty_cache: Path):
    adapter = {"base_model_name_or_path": "alice/evil", "peft_type": "LORA", "revision": None}
    shared.repo.at().tree["target_model/adapter_config.json"] = Blob.regular(json.dumps(adapter).encode())
    (shared.folder / "target_model/adapter_config.json").write_text(json.dumps(adapter))

    for place, how in ((shared.repo.id, {"cache_dir": empty_cache}), (shared.folder, {})):
        with contextlib.suppress(BrokenFileError, UnsafeFileError):
            loaded = shared.load(place, **how)
            assert not getattr(loaded.target_model, "_hf_peft_config_loaded", False)

    assert not hub.requests(None, "alice/evil")


BERT = {"model_type": "bert", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
ADAPTERS = {
    "tokenizer": {
        "peft_type": "PROMPT_TUNING",
        "task_type": "SEQ_CLS",
        "num_virtual_tokens": 2,
        "token_dim": 32,
        "num_layers": 1,
        "num_attention_heads": 2,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "evil",
        "tokenizer_name_or_path": "alice/evil",
        "tokenizer_kwargs": {"trust_remote_code": True},
    },
    "module": {
        "peft_type": "LORA",
        "target_modules": ["query"],
        "megatron_config": {"a": 1},
        "megatron_core": "antigravity",
    },
    "base": {"peft_type": "LORA", "target_modules": ["query"], "base_model_name_or_path": "alice/evil"},
}


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=list(ADAPTERS))
def test_an_adapter_inside_a_target_fetches_nothing(hub: Hub, shared: Shared, empty_cache: Path, adapter: dict):
    pytest.importorskip("peft")
    config = {"architectures": ["AdaptedModel"], "model_type": "pdiff_adapted", "adapter_config": adapter}
    config |= {"base_class": "BertForSequenceClassification", "base_config": BERT | {"num_attention_heads": 2}}
    rewrite(shared.repo, "target_model/config.json", lambda _: config)
    if shared.repo.type == "model":
        rewrite(shared.repo, "model_index.json", lambda index: index | {"target_model": ["pdiff_hf", "AdaptedModel"]})

    with pytest.raises((BrokenFileError, UnsafeFileError)):
        shared.pull(empty_cache)

    assert not hub.requests(None, "alice/evil")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_pickled_weights_are_never_read(hub: Hub, shared: Shared, empty_cache: Path, trap: Path, suffix: str):
    pickled = pickle.dumps(Bomb(trap))
    tree = shared.repo.at().tree
    for name in [name for name in tree if name.endswith(".safetensors") and name.startswith("target_model/")]:
        del tree[name]
        tree[f"target_model/pytorch_model.{suffix}"] = Blob.regular(pickled)
        (shared.folder / name).unlink()
        (shared.folder / f"target_model/pytorch_model.{suffix}").write_bytes(pickled)

    for place, how in ((shared.repo.id, {"cache_dir": empty_cache}), (shared.folder, {})):
        with pytest.raises((UnsafeFileError, BrokenFileError), match=r"pickle|safetensors") as raised:
            shared.load(place, **how)
        assert len(str(raised.value).splitlines()) == 1

    assert not trap.exists()
    assert not list(empty_cache.rglob(f"*.{suffix}"))


class Bomb:
    """An object that, unpickled, leaves a file behind."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trap,)
