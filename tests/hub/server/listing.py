"""Which files a revision has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .errors import Refusal
from .messages import Answer, Request
from .model import Blob, Commit, folder_oids
from .routing import API, REVISION, route

if TYPE_CHECKING:
    from .hub import Hub

EXPANDED_PAGE_SIZE = 50


@route("GET", rf"{API}/tree/{REVISION}(?:/(?P<path>.*))?")
def list_tree(hub: Hub, request: Request, repo_type: str, repo_id: str, revision: str, path: str | None) -> Answer:
    """Lists folders and files under a path, page by page."""
    commit = hub.open_repo(request.user, repo_type, repo_id, content=True).at(revision)
    folder = (path or "").strip("/")
    folders, recursive, expand = folder_oids(commit.tree), request.flag("recursive"), request.flag("expand")
    if folder not in folders:
        raise Refusal(404, f'{folder} does not exist on "{revision}"', "EntryNotFound", {"X-Repo-Commit": commit.oid})
    prefix = folder + "/" if folder else ""

    def listed(path: str) -> bool:
        return path.startswith(prefix) and path != folder and (recursive or "/" not in path[len(prefix) :])

    rows = [folder_row(path, oid) for path, oid in sorted(folders.items()) if path and listed(path)]
    rows += [file_row(path, blob) for path, blob in sorted(commit.tree.items()) if listed(path)]
    if expand:
        rows = [row | last_commit(commit) for row in rows]

    start, size = int(request.argument("cursor") or 0), hub.page_size
    if expand:
        size = min(size, EXPANDED_PAGE_SIZE)
    headers = {}
    if start + size < len(rows):
        query = f"recursive={recursive}&expand={expand}&cursor={start + size}"
        headers["Link"] = f'<{hub.url}{request.path}?{query}>; rel="next"'
    return Answer(rows[start : start + size], headers)


@route("POST", rf"{API}/paths-info/{REVISION}")
def list_paths(hub: Hub, request: Request, repo_type: str, repo_id: str, revision: str) -> Answer:
    """Describes the paths that are asked about, and leaves out those that do not exist."""
    commit = hub.open_repo(request.user, repo_type, repo_id, content=True).at(revision)
    is_json = "json" in request.headers.get("Content-Type", "")
    body = request.json() if is_json else parse_qs(request.body.decode())  # Python's client sends a form
    expand = body.get("expand")
    if isinstance(expand, list):
        expand = expand[0]
    folders, rows = folder_oids(commit.tree), []
    for path in body.get("paths") or []:
        if path in commit.tree:
            row = file_row(path, commit.tree[path])
            rows.append(row | last_commit(commit) if str(expand).lower() == "true" else row)
        elif path in folders:
            rows.append(folder_row(path, folders[path]))
    return Answer(rows)


def folder_row(path: str, oid: str) -> dict[str, Any]:
    """Describes a folder."""
    return {"type": "directory", "oid": oid, "size": 0, "path": path}


def file_row(path: str, blob: Blob) -> dict[str, Any]:
    """Describes a file."""
    row: dict[str, Any] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
    if blob.sha256:
        row["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
    return row


def last_commit(commit: Commit) -> dict[str, Any]:
    """Returns what `expand` adds to a row."""
    return {"lastCommit": {"id": commit.oid, "title": commit.title, "date": commit.date}}
