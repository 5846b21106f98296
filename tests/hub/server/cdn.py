"""The second port: bytes of large files in and out, for whoever holds a signed address."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from .errors import Refusal
from .messages import Answer, Request
from .routing import SHA256, route
from .xet import find_xet_file, read_xet_file

if TYPE_CHECKING:
    from .hub import Hub


def signed_url(hub: Hub, purpose: str, sha256: str, part: int | None = None) -> str:
    """Returns the address at which an object, or a part of it, can be had ("get") or left ("upload")."""
    suffix = "" if part is None else f"/{part}"
    return f"{hub.cdn_url}/cdn/{purpose}/{sha256}{suffix}?sig={hub.objects.signature(purpose, sha256)}"


def check_signature(hub: Hub, request: Request, purpose: str, sha256: str) -> None:
    """Refuses an address that was not signed by this Hub."""
    if request.argument("sig") != hub.objects.signature(purpose, sha256):
        raise Refusal(403, "SignatureDoesNotMatch")


def refuse_token(request: Request) -> None:
    """Refuses a client that shows its token to the CDN."""
    if "Authorization" in request.headers:
        raise Refusal(400, "Only one auth mechanism allowed")


@route("GET|HEAD", rf"/cdn/get/{SHA256}")
def get_object(hub: Hub, request: Request, sha256: str) -> Answer:
    """Sends an object, also one that came in through xet."""
    refuse_token(request)
    check_signature(hub, request, "get", sha256)
    path = hub.objects.path(sha256)
    if not path.exists():
        found = find_xet_file(hub.xet_folder, sha256)
        if not (hub.xet_folder and found):
            raise Refusal(404, "NoSuchKey")
        with hub.objects.replacing(sha256) as incoming:
            read_xet_file(hub.xet_folder, found, incoming)
    headers = {"ETag": f'"{sha256[:32]}"', "Accept-Ranges": "bytes", "Content-Type": "binary/octet-stream"}
    return Answer(path, headers)


@route("PUT", rf"/cdn/upload/{SHA256}(?:/(?P<part>\d+))?")
def put_object(hub: Hub, request: Request, sha256: str, part: str | None) -> Answer:
    """Takes an object, or one part of it."""
    refuse_token(request)
    check_signature(hub, request, "upload", sha256)
    if part is None:
        hub.objects.store(sha256, request.body)
    else:
        hub.objects.store_part(sha256, int(part), request.body)
    return Answer(b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


@route("POST", rf"/api/complete_multipart/{SHA256}")
def complete_multipart(hub: Hub, request: Request, sha256: str) -> Answer:
    """Makes an object of the parts that the client lists."""
    check_signature(hub, request, "upload", sha256)
    parts = request.json()["parts"]
    for part in parts:
        if part["etag"].strip('"') != hub.objects.part_md5(sha256, part["partNumber"]):
            raise Refusal(400, f"InvalidPart: {part['partNumber']}")
    hub.objects.join_parts(sha256, [part["partNumber"] for part in parts])
    return Answer()
