"""Repositories: made, described, changed, moved and deleted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .accounts import need_user, need_write
from .cards import card_of
from .errors import Refusal
from .messages import Answer, Request
from .model import GITATTRIBUTES, Blob, Commit, Repo
from .routing import API, PLURAL, REVISION, route

if TYPE_CHECKING:
    from .hub import Hub


@route("POST", r"/api/repos/create")
def create_repo(hub: Hub, request: Request) -> Answer:
    """Makes a repository with one commit, as huggingface.co does."""
    user, body = need_user(request.user), request.json()
    namespace, name, repo_type = body.get("organization") or user.name, body.get("name") or "", repo_type_in(body)
    need_write(user, namespace)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,96}", name):
        raise Refusal(400, f"Invalid repo name: {name}")
    repo = Repo(repo_type, f"{namespace}/{name}", visibility_in(body, "public"))
    url = f"{hub.url}/{repo.page}"
    with hub.lock:
        if (repo.type, repo.id) in hub.repos:
            # Clients that do not mind read the `url` of this answer.
            raise Refusal(409, f"You already created this {repo.type} repo: {repo.id}", url=url)
        hub.repos[repo.type, repo.id] = repo
        tree = {".gitattributes": Blob.regular(GITATTRIBUTES.encode())}
        repo.add_commit(repo.branches, "main", tree, title="initial commit", author=namespace)
    return Answer({"url": url, "name": repo.id, "id": repo.id, "private": repo.private})


@route("DELETE", r"/api/repos/delete")
def delete_repo(hub: Hub, request: Request) -> Answer:
    """Deletes a repository."""
    body = request.json()
    namespace = body.get("organization") or (request.user and request.user.name)
    repo = hub.open_repo(request.user, repo_type_in(body), f"{namespace}/{body['name']}", write=True)
    with hub.lock:
        hub.repos.pop((repo.type, repo.id))
    return Answer()


@route("POST", r"/api/repos/move")
def move_repo(hub: Hub, request: Request) -> Answer:
    """Gives a repository another name."""
    body = request.json()
    repo = hub.open_repo(request.user, repo_type_in(body), body["fromRepo"], write=True)
    need_write(request.user, body["toRepo"].split("/")[0])
    with hub.lock:
        hub.repos[repo.type, body["toRepo"]] = hub.repos.pop((repo.type, repo.id))
        repo.id = body["toRepo"]
    return Answer()


@route("GET", rf"/api/{PLURAL}")
def list_repos(hub: Hub, request: Request, repo_type: str) -> Answer:
    """Lists the repositories of a type that the user may see, of one author or with a word in their name."""
    author, word = request.argument("author"), request.argument("search")
    found = [
        repo
        for _, repo in sorted(hub.repos.items())
        if repo.type == repo_type
        and (not author or repo.namespace == author)
        and (not word or word in repo.id)
        and (not repo.private or (request.user and request.user.owns(repo.namespace)))
    ]
    return Answer([describe(repo, repo.at(), request) for repo in found])


@route("GET", rf"{API}(?:/revision/{REVISION})?")
def repo_info(hub: Hub, request: Request, repo_type: str, repo_id: str, revision: str | None) -> Answer:
    """Describes a repository at one of its revisions."""
    repo = hub.open_repo(request.user, repo_type, repo_id)
    return Answer(describe(repo, repo.at(revision), request))


@route("PUT", rf"{API}/settings")
def change_settings(hub: Hub, request: Request, repo_type: str, repo_id: str) -> Answer:
    """Changes who may see a repository, and who may read its files."""
    repo, body = hub.open_repo(request.user, repo_type, repo_id, write=True), request.json()
    repo.gated = body.get("gated", repo.gated)
    repo.visibility = visibility_in(body, repo.visibility)
    return Answer({"private": repo.private, "gated": repo.gated})


@route("GET", rf"{API}/auth-check(?P<write>/write)?")
def check_access(hub: Hub, request: Request, repo_type: str, repo_id: str, write: str | None) -> Answer:
    """Says whether the user may read, or write, a repository's files."""
    hub.open_repo(request.user, repo_type, repo_id, write=bool(write), content=True)
    return Answer()


def repo_type_in(body: dict[str, Any]) -> str:
    """Returns the type of repository that a request names; models are not named."""
    return body.get("type") or "model"


def visibility_in(body: dict[str, Any], default: str) -> str:
    """Returns the visibility that a request asks for, in the clients' present or former wording."""
    return body.get("visibility") or ("private" if body.get("private") else default)


def describe(repo: Repo, commit: Commit, request: Request) -> dict[str, Any]:
    """Describes a repository; `?blobs` adds sizes and ids of its files, `?expand` picks single entries."""
    card = card_of(commit.tree)
    tags = [tag for tag in card.get("tags") or [] if isinstance(tag, str)]
    if "license" in card:
        tags.append(f"license:{card['license']}")
    with_blobs = bool(request.argument("blobs"))
    description = {
        "_id": repo.id,
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": repo.created,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": repo.disabled,
        "tags": tags,
        "downloads": 0,
        "likes": 0,
        "cardData": card or None,
        "siblings": [describe_sibling(path, blob, with_blobs) for path, blob in sorted(commit.tree.items())],
        "usedStorage": sum(blob.size for blob in commit.tree.values()),
    }
    if repo.type == "model":
        description["modelId"] = repo.id
        description["library_name"] = card.get("library_name")
        description["pipeline_tag"] = card.get("pipeline_tag")
    if "expand" in request.query:
        wanted = {"_id", "id", *request.query["expand"]}
        return {name: value for name, value in description.items() if name in wanted}
    return description


def describe_sibling(path: str, blob: Blob, with_blob: bool) -> dict[str, Any]:
    """Describes one file of a repository's description."""
    row: dict[str, Any] = {"rfilename": path}
    if with_blob:
        row |= {"blobId": blob.oid, "size": blob.size}
        if blob.sha256:
            row["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
    return row
