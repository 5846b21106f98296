"""Where a file is, and the bytes of the small ones."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from .cdn import signed_url
from .errors import Refusal
from .messages import Answer, Request
from .model import Blob, Repo
from .routing import PLURAL, REPO_ID, REVISION, WEB, route
from .xet import find_xet_file

if TYPE_CHECKING:
    from .hub import Hub


@route("GET|HEAD", rf"{WEB}/resolve/{REVISION}/(?P<path>.+)")
def resolve(hub: Hub, request: Request, repo_type: str, repo_id: str, revision: str, path: str) -> Answer:
    """Sends the client on: to the CDN's port for a large file, to a path of its commit for a small one."""
    repo, blob, headers = find_file(hub, request, repo_type, repo_id, revision, path)
    if blob.sha256:
        return send_to_cdn(hub, repo, blob, headers)
    location = f"/api/resolve-cache/{repo_type}s/{repo_id}/{headers['X-Repo-Commit']}/{quote(path)}"
    return Answer(b"", headers | {"Location": location}, 307)


@route("GET|HEAD", rf"/api/resolve-cache/{PLURAL}/{REPO_ID}/{REVISION}/(?P<path>.+)")
def resolve_cache(hub: Hub, request: Request, repo_type: str, repo_id: str, revision: str, path: str) -> Answer:
    """Sends a small file."""
    repo, blob, headers = find_file(hub, request, repo_type, repo_id, revision, path)
    if blob.sha256:
        return send_to_cdn(hub, repo, blob, headers)
    return Answer(blob.data, headers | {"Content-Type": "application/octet-stream"})


def find_file(
    hub: Hub, request: Request, repo_type: str, repo_id: str, revision: str, path: str
) -> tuple[Repo, Blob, dict[str, str]]:
    """Returns a file with the headers that describe it."""
    repo = hub.open_repo(request.user, repo_type, repo_id, content=True)
    commit = repo.at(revision)
    if path not in commit.tree:
        raise Refusal(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.oid})
    blob = commit.tree[path]
    headers = {
        "X-Repo-Commit": commit.oid,
        "Accept-Ranges": "bytes",
        "ETag": f'"{blob.etag}"',
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1])}",
    }
    return repo, blob, headers


def send_to_cdn(hub: Hub, repo: Repo, blob: Blob, headers: dict[str, str]) -> Answer:
    """Redirects to another origin; what the client wants to know stands on the redirect itself."""
    assert blob.sha256
    if found := find_xet_file(hub.xet_folder, blob.sha256):
        token_url = f"{hub.url}/api/{repo.type}s/{repo.id}/xet-read-token/{headers['X-Repo-Commit']}"
        headers |= {"X-Xet-Hash": found.hash, "Link": f'<{token_url}>; rel="xet-auth"'}
    headers |= {
        "X-Linked-Size": str(blob.size),
        "X-Linked-Etag": f'"{blob.sha256}"',
        "Location": signed_url(hub, "get", blob.sha256),
    }
    return Answer(b"", headers, 302)
