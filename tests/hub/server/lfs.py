"""Git LFS: where the client is to leave a large file, and whether it arrived unharmed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from .cdn import signed_url
from .errors import Refusal
from .messages import Answer, Request
from .routing import WEB, route

if TYPE_CHECKING:
    from .hub import Hub


@route("POST", rf"{WEB}\.git/info/lfs/objects/batch")
def batch(hub: Hub, request: Request, repo_type: str, repo_id: str) -> Answer:
    """Tells the client what to do with each object; nothing where the repository has it already."""
    repo, body = hub.open_repo(request.user, repo_type, repo_id, write=True), request.json()
    verify = {"href": f"{hub.url}/{repo.page}.git/info/lfs/objects/verify"}
    used, transfer, rows = hub.objects.size, "basic", []
    for entry in body["objects"]:
        sha256, size = entry["oid"], entry["size"]
        row: dict[str, Any] = {"oid": sha256, "size": size}
        if hub.quota is not None and used + size > hub.quota:
            row["error"] = {"code": 507, "message": "Storage quota exceeded"}
        elif hub.objects.is_linked(repo, sha256) and hub.objects.path(sha256).exists():
            pass
        elif size > hub.multipart_from and "multipart" in body.get("transfers", []):
            transfer = "multipart"
            row["actions"] = {"upload": multipart_upload(hub, sha256, size), "verify": verify}
        else:
            row["actions"] = {"upload": {"href": signed_url(hub, "upload", sha256)}, "verify": verify}
        rows.append(row)
    headers = {"Content-Type": "application/vnd.git-lfs+json"}
    return Answer({"transfer": transfer, "objects": rows}, headers)


def multipart_upload(hub: Hub, sha256: str, size: int) -> dict[str, Any]:
    """Returns the addresses of each part and of their completion."""
    count = -(-size // hub.chunk_size)
    parts = {f"{number:05d}": signed_url(hub, "upload", sha256, number) for number in range(1, count + 1)}
    href = f"{hub.url}/api/complete_multipart/{sha256}?sig={hub.objects.signature('upload', sha256)}"
    return {"href": href, "header": {"chunk_size": str(hub.chunk_size), **parts}}


@route("POST", rf"{WEB}\.git/info/lfs/objects/verify")
def verify(hub: Hub, request: Request, repo_type: str, repo_id: str) -> Answer:
    """Accepts an object into a repository, or throws it away when it is not what was announced."""
    repo, body = hub.open_repo(request.user, repo_type, repo_id, write=True), request.json()
    path = hub.objects.path(body["oid"])
    if not path.exists():
        raise Refusal(404, "Object does not exist")
    data = path.read_bytes()
    if len(data) != body["size"] or hashlib.sha256(data).hexdigest() != body["oid"]:
        path.unlink()
        raise Refusal(422, f"LFS object {body['oid']} has the wrong size or hash")
    hub.objects.link(repo, body["oid"])
    return Answer()
