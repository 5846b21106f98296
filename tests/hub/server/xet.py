"""Xet: the client stores large files by itself, here in a folder that hf_xet takes for its server (`local://`)."""

from __future__ import annotations

import hashlib
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import Refusal
from .messages import Answer, Request
from .routing import API, REVISION, route

if TYPE_CHECKING:
    from .hub import Hub

TOKEN = "xet"
TOKEN_SECONDS = 3600
ENTRY = 48  # bytes of each entry in a shard, and of the header before them
BOOKEND = b"\xff" * 32
HAS_VERIFICATION, HAS_SHA256 = 1 << 31, 1 << 30


class XetFile(NamedTuple):
    """A file in xet's storage."""

    hash: str
    size: int


@route("GET", rf"{API}/xet-(?P<purpose>read|write)-token/{REVISION}")
def xet_token(hub: Hub, request: Request, repo_type: str, repo_id: str, purpose: str, revision: str) -> Answer:
    """Tells the client where xet's storage is."""
    hub.open_repo(request.user, repo_type, repo_id, write=purpose == "write", content=True)
    if hub.xet_folder is None:
        raise Refusal(404, "Xet is not enabled")
    url, expiry = storage_url(hub.xet_folder), int(time.time()) + TOKEN_SECONDS
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": TOKEN, "X-Xet-Token-Expiration": str(expiry)}
    return Answer({"casUrl": url, "exp": expiry, "accessToken": TOKEN}, headers)


def storage_url(folder: Path) -> str:
    """Returns the address of a folder in hf_xet's own scheme for its tests."""
    return f"local://{folder}"


def find_xet_file(folder: Path | None, sha256: str) -> XetFile | None:
    """Looks a file up in the shards that clients have left in xet's folder."""
    if folder is None:
        return None
    for path in folder.rglob("*.mdb"):
        for file_sha256, file in files_of_shard(path.read_bytes()):
            if sha256 in file_sha256:
                return file
    return None


def files_of_shard(shard: bytes) -> list[tuple[set[str], XetFile]]:
    """Returns the files that a shard describes, each with its SHA-256 in both byte orders that are in use.

    A file takes one entry of its hash, its flags and its number of segments; one for each segment, which ends in
    the segment's size; another one for each segment if it has verification entries; and one of the SHA-256.
    """
    files, offset = [], ENTRY
    while offset + ENTRY <= len(shard) and shard[offset : offset + 32] != BOOKEND:
        file_hash = xet_hex(shard[offset : offset + 32])
        flags, segments = struct.unpack_from("<II", shard, offset + 32)
        size = sum(struct.unpack_from("<I", shard, offset + ENTRY * (i + 1) + 36)[0] for i in range(segments))
        offset += ENTRY * (1 + segments * (2 if flags & HAS_VERIFICATION else 1))
        if flags & HAS_SHA256:
            digest = shard[offset : offset + 32]
            files.append(({digest.hex(), xet_hex(digest)}, XetFile(file_hash, size)))
            offset += ENTRY
    return files


def xet_hex(digest: bytes) -> str:
    """Writes a digest as xet does: four little-endian numbers in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def read_xet_file(folder: Path, file: XetFile, destination: Path) -> None:
    """Copies a file out of xet's folder, for a client that does not use xet."""
    from hf_xet import XetFileInfo, XetSession

    with XetSession().new_file_download_group(**storage_access(folder)) as group:
        group.start_download_file(XetFileInfo(*file), str(destination))


def xet_works(folder: Path) -> bool:
    """Says whether the installed hf_xet can store in a folder, which it does not promise; tries it on this one."""
    try:
        from hf_xet import COMPUTE_SHA256, XetSession

        data = b"hello" * 1000
        with XetSession().new_upload_commit(**storage_access(folder)) as commit:
            commit.start_upload_bytes(data, COMPUTE_SHA256)
        found = find_xet_file(folder, hashlib.sha256(data).hexdigest())
        return found is not None and found.size == len(data)
    except Exception:  # whatever another version raises instead
        return False


def storage_access(folder: Path) -> dict[str, Any]:
    """Returns how hf_xet gets at a folder."""
    expiry = int(time.time()) + TOKEN_SECONDS
    return {"endpoint": storage_url(folder), "token": TOKEN, "token_expiry_unix_secs": expiry}
