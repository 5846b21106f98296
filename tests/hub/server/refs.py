"""Branches, tags and history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import Refusal
from .messages import Answer, Request
from .routing import API, REVISION, route

if TYPE_CHECKING:
    from .hub import Hub


@route("GET", rf"{API}/refs")
def list_refs(hub: Hub, request: Request, repo_type: str, repo_id: str) -> Answer:
    """Lists branches and tags, and pull requests where they are asked for."""
    repo = hub.open_repo(request.user, repo_type, repo_id)

    def rows(references: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in references.items()]

    listing = {"branches": rows(repo.branches, "refs/heads/"), "tags": rows(repo.tags, "refs/tags/"), "converts": []}
    if request.argument("include_prs"):
        listing["pullRequests"] = rows(repo.pull_requests, "")
    return Answer(listing)


@route("GET", rf"{API}/commits/{REVISION}")
def list_commits(hub: Hub, request: Request, repo_type: str, repo_id: str, revision: str) -> Answer:
    """Lists a revision's history, the newest first."""
    repo = hub.open_repo(request.user, repo_type, repo_id)
    return Answer(
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "date": commit.date,
                "authors": [{"user": commit.author, "avatar": ""}],
            }
            for commit in repo.history(revision)
        ]
    )


@route("POST", rf"{API}/branch/(?P<name>[^/]+)")
def create_branch(hub: Hub, request: Request, repo_type: str, repo_id: str, name: str) -> Answer:
    """Starts a branch at a revision."""
    repo = hub.open_repo(request.user, repo_type, repo_id, write=True)
    with hub.lock:
        if name in repo.branches:
            raise Refusal(409, f"Reference already exists: refs/heads/{name}")
        repo.branches[name] = repo.at(request.json().get("startingPoint")).oid
    return Answer()


@route("DELETE", rf"{API}/branch/(?P<name>[^/]+)")
def delete_branch(hub: Hub, request: Request, repo_type: str, repo_id: str, name: str) -> Answer:
    """Deletes a branch, though never the main one."""
    repo = hub.open_repo(request.user, repo_type, repo_id, write=True)
    with hub.lock:
        if name == "main":
            raise Refusal(403, "Cannot delete branch main")
        if repo.branches.pop(name, None) is None:
            raise Refusal(404, f"Cannot delete branch {name}", "RevisionNotFound")
    return Answer()


@route("POST", rf"{API}/tag/{REVISION}")
def create_tag(hub: Hub, request: Request, repo_type: str, repo_id: str, revision: str) -> Answer:
    """Tags a revision with the name that stands in the body."""
    repo = hub.open_repo(request.user, repo_type, repo_id, write=True)
    with hub.lock:
        tag = request.json()["tag"]
        if tag in repo.tags:
            raise Refusal(409, f"Tag reference exists already: {tag}")
        repo.tags[tag] = repo.at(revision).oid
    return Answer()


@route("DELETE", rf"{API}/tag/(?P<name>[^/]+)")
def delete_tag(hub: Hub, request: Request, repo_type: str, repo_id: str, name: str) -> Answer:
    """Deletes a tag."""
    repo = hub.open_repo(request.user, repo_type, repo_id, write=True)
    with hub.lock:
        if repo.tags.pop(name, None) is None:
            raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return Answer()
