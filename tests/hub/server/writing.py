"""Commits: which files git keeps itself, and the commit that the client then makes."""

from __future__ import annotations

import base64
import json
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from .accounts import need_user
from .errors import Refusal
from .messages import Answer, Request
from .model import Blob, Commit, Repo, Tree
from .routing import API, REVISION, route
from .xet import find_xet_file

if TYPE_CHECKING:
    from .hub import Hub


@route("POST", rf"{API}/preupload/{REVISION}")
def preupload(hub: Hub, request: Request, repo_type: str, repo_id: str, revision: str) -> Answer:
    """Tells the client which files go to git, which to LFS and which are ignored, and which ids they have now."""
    repo = hub.open_repo(request.user, repo_type, repo_id, write=not request.argument("create_pr"))
    commit, body = repo.at(revision), request.json()
    ignored = [
        line
        for line in (body.get("gitIgnore") or text_of(commit, ".gitignore")).split("\n")
        if line.strip() and not line.startswith("#")
    ]
    tracked = [line.split()[0] for line in text_of(commit, ".gitattributes").splitlines() if "filter=lfs" in line]
    rows = []
    for file in body["files"]:
        path, name = file["path"], file["path"].rsplit("/", 1)[-1]
        binary = b"\0" in base64.b64decode(file.get("sample") or "")
        large = file["size"] > hub.max_regular or binary or any(fnmatch(name, p) or fnmatch(path, p) for p in tracked)
        ignore = any(fnmatch(path, pattern.strip("/") + "*") or fnmatch(name, pattern) for pattern in ignored)
        row = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": ignore}
        if path in commit.tree:
            row["oid"] = commit.tree[path].etag
        rows.append(row)
    return Answer({"files": rows, "commitOid": commit.oid})


def text_of(commit: Commit, path: str) -> str:
    """Returns a file's text, empty without the file."""
    return commit.tree[path].data.decode() if path in commit.tree else ""


@route("POST", rf"{API}/commit/{REVISION}")
def commit(hub: Hub, request: Request, repo_type: str, repo_id: str, revision: str) -> Answer:
    """Applies operations, one JSON object a line, to a branch or as a new pull request."""
    as_pull_request = bool(request.argument("create_pr"))
    repo = hub.open_repo(request.user, repo_type, repo_id, write=not as_pull_request)
    user = need_user(request.user)
    header, operations = parse_operations(request.body)
    with hub.lock:
        references, name = repo.pull_requests if revision in repo.pull_requests else repo.branches, revision
        if name not in references:
            raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
        base = repo.commits[references[name]]
        if header.get("parentCommit") and header["parentCommit"] != base.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = apply_operations(hub, repo, base.tree, operations)
        if as_pull_request:
            references, name = repo.pull_requests, f"refs/pr/{len(repo.pull_requests) + 1}"
        made = repo.add_commit(
            references,
            name,
            tree,
            title=header.get("summary", ""),
            message=header.get("description", ""),
            author=user.name,
            parent=base.oid,
        )
    url = f"{hub.url}/{repo.page}"
    body = {"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}", "hookOutput": ""}
    if as_pull_request:
        body["pullRequestUrl"] = f"{url}/discussions/{len(repo.pull_requests)}"
    return Answer(body)


def parse_operations(body: bytes) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """Returns the header of a commit and its operations, each a kind and what it is about."""
    try:
        lines = [json.loads(line) for line in body.decode().split("\n") if line.strip()]
        operations = [(line["key"], line["value"]) for line in lines]
        header = next(value for key, value in operations if key == "header")
    except (ValueError, KeyError, StopIteration) as error:
        raise Refusal(400, f"Malformed commit payload: {error!r}") from error
    return header, operations


def apply_operations(hub: Hub, repo: Repo, tree: Tree, operations: list[tuple[str, dict[str, Any]]]) -> Tree:
    """Returns what a tree becomes."""
    tree = dict(tree)
    for key, value in operations:
        path = value.get("path", "")
        if key == "file":
            tree[path] = regular_blob(hub, value)
        elif key == "lfsFile":
            tree[path] = large_blob(hub, repo, value)
        elif key in ("deletedFile", "deletedFolder"):
            prefix = path.rstrip("/") + "/"
            gone = [old for old in tree if (old == path if key == "deletedFile" else old.startswith(prefix))]
            if not gone:
                raise Refusal(404, f'A file with this name doesn\'t exist: "{path}"', "EntryNotFound")
            for old in gone:
                del tree[old]
    return tree


def regular_blob(hub: Hub, value: dict[str, Any]) -> Blob:
    """Makes a blob of the content that stands in the commit itself."""
    base64_encoded = value.get("encoding") == "base64"
    data = base64.b64decode(value["content"]) if base64_encoded else value["content"].encode()
    if len(data) > hub.max_regular:
        problem = f"it contains files larger than 10 MiB: {value['path']}"
        raise Refusal(400, f"Your push was rejected because {problem}")
    return Blob.regular(data)


def large_blob(hub: Hub, repo: Repo, value: dict[str, Any]) -> Blob:
    """Makes a blob that points at an object which was pushed to this repository, or came in through xet."""
    sha256 = value["oid"]
    if hub.objects.is_linked(repo, sha256):
        return Blob.large(sha256, hub.objects.path(sha256).stat().st_size)
    if found := find_xet_file(hub.xet_folder, sha256):
        return Blob.large(sha256, found.size)
    problem = f"an LFS pointer pointed to a file that does not exist. Offending file: - {value['path']}"
    raise Refusal(400, f"Your push was rejected because {problem}")
