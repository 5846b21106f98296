"""Damaged files, in the cache, on the way and on the Hub: found by their checksums, fetched once more, or named."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import _tree_cache, constants

from pdiff_hf import CorruptFileError, HubQuotaError, HubUnreachableError, PDiffPipeline

from .cases import ALWAYS, assert_clear
from .server import Hub
from .shared import Shared, flip

pytestmark = pytest.mark.usefixtures("waits")
WEIGHTS = "target_model/model.safetensors"


@pytest.mark.parametrize("damage", ["flipped", "cut short", "lengthened", "of another file", "removed"])
def test_damage_of_all_cached_files_is_found_and_repaired(hub: Hub, shared: Shared, empty_cache: Path, damage: str):
    shared.pull(empty_cache)
    blobs = shared.blobs(empty_cache)
    contents, chance = {name: path.read_bytes() for name, path in blobs.items()}, random.Random(0)
    for name, another in zip(blobs, [*list(blobs)[1:], next(iter(blobs))], strict=True):
        content = contents[name]
        if damage == "removed":
            blobs[name].unlink()
        elif damage == "flipped":
            flip(blobs[name], chance.randrange(len(content)))
        else:
            changed = {"cut short": content[:-1], "lengthened": content + b"\n", "of another file": contents[another]}
            blobs[name].write_bytes(changed[damage])
    hub.log.clear()

    shared.assert_same(shared.pull(empty_cache))

    assert {name: path.read_bytes() for name, path in blobs.items()} == contents
    assert len(hub.requests("GET", "^/cdn/get|resolve-cache")) == len(blobs)


def test_a_resumed_download_that_is_shifted_by_a_byte_is_found_and_repaired(
    hub: Hub, pipeline: Shared, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    where = f"^/cdn/get/{pipeline.repo.at().tree[WEIGHTS].sha256}"
    hub.fail("cut", method="GET", path=where, after=1000)
    hub.fail("shift", method="GET", path=where)

    pipeline.assert_same(pipeline.pull(empty_cache))

    found = [(record.fault, record.status) for record in hub.requests("GET", where)]
    assert found == [("cut", 200), ("shift", 206), ("none", 200)]


def test_a_file_whose_name_in_the_cache_is_no_checksum_is_compared_with_the_listing(
    hub: Hub, shared: Shared, empty_cache: Path
):
    hub.fail("headers", method="HEAD", path=f"/resolve/.*{WEIGHTS}", times=ALWAYS, headers={"X-Linked-Etag": '"abc"'})
    shared.pull(empty_cache)
    path = shared.blobs(empty_cache)[WEIGHTS]
    assert path.name == "abc"
    flip(path, 1000)

    shared.assert_same(shared.pull(empty_cache))


def test_damage_in_the_cache_without_the_hub_is_named(
    shared: Shared, empty_cache: Path, lose_the_hub: Callable[[], None]
):
    shared.pull(empty_cache)
    flip(shared.blobs(empty_cache)[WEIGHTS], 1000)
    lose_the_hub()

    with pytest.raises(CorruptFileError, match="damaged in the cache") as raised:
        shared.pull(empty_cache)

    assert_clear(raised.value, shared.repo.id, WEIGHTS)


def test_with_local_files_only_nobody_is_asked(hub: Hub, pipeline: Shared, empty_cache: Path):
    def load() -> PDiffPipeline:
        return pipeline.pull(empty_cache, local_files_only=True)

    with pytest.raises(HubUnreachableError, match=f"'{pipeline.repo.id}' is not cached") as missing:
        load()
    assert_clear(missing.value)
    assert not hub.log

    pipeline.pull(empty_cache)
    hub.log.clear()
    pipeline.assert_same(load())
    flip(pipeline.blobs(empty_cache)[WEIGHTS], 1000)
    with pytest.raises(CorruptFileError, match="damaged in the cache") as damaged:
        load()
    assert_clear(damaged.value, pipeline.repo.id, WEIGHTS)
    assert not hub.log


def test_damage_on_the_hub_itself_is_named(hub: Hub, shared: Shared, empty_cache: Path):
    flip(hub.objects.path(shared.repo.at().tree[WEIGHTS].sha256), 1000)

    with pytest.raises(CorruptFileError) as raised:
        shared.pull(empty_cache)

    assert_clear(raised.value, shared.repo.id, WEIGHTS)


LISTINGS: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:100],
    "empty": lambda content: b"",
    "not text": lambda content: content.replace(b"config", b"\xffonfig", 1),
    "other checksums": lambda content: re.sub(rb"[0-9a-f]{40,64}", lambda m: m[0][::-1], content),
    "other sizes": lambda content: re.sub(rb'"size": ', rb'"size": 1', content),
}


@pytest.mark.parametrize("damage", LISTINGS)
def test_a_damaged_listing_in_the_cache_does_no_harm(shared: Shared, empty_cache: Path, damage: str):
    shared.pull(empty_cache)
    (listing,) = shared.cached(empty_cache).glob("trees/*.json")
    content = listing.read_bytes()
    listing.write_bytes(LISTINGS[damage](content))
    assert listing.read_bytes() != content
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()

    shared.assert_same(shared.pull(empty_cache))


def test_a_disk_that_is_full_is_named_and_the_load_completed_when_it_is_not(pipeline: Shared, tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        filler = disk / "filler"
        filler.write_bytes(b"x" * 100_000)

        with pytest.raises(HubQuotaError) as raised:
            pipeline.pull(disk / "cache")
        assert_clear(raised.value, pipeline.repo.id)
        assert not [path for path in disk.rglob("*.incomplete") if path.stat().st_size]

        filler.unlink()
        pipeline.assert_same(pipeline.pull(disk / "cache"))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
