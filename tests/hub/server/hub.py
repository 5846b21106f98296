"""The Hub itself: its two ports, its state, who may see what, and what tests ask of it."""

from __future__ import annotations

import hashlib
import re
import tempfile
import threading
from pathlib import Path
from typing import Any

from .accounts import need_user, need_write
from .errors import Refusal
from .faults import Fault, take_fault
from .http import Listener
from .messages import Answer, Record, Request
from .model import USERS, Blob, Repo, User
from .objects import ObjectStore
from .routing import find_route


class Hub:
    """A Hub that listens on 127.0.0.1 from `start()` until `stop()`; its addresses are reserved before.

    Like huggingface.co it has two origins: `url` for everything, and `cdn_url` for the bytes of large files, which
    is another port here. The limits below are attributes too, and may be changed at any time.

    Args:
        users: the owner of each token.
        page_size: rows of a listing before the client has to ask for the next page.
        multipart_from: size in bytes above which a large file is uploaded in parts.
        chunk_size: size in bytes of such a part.
        max_regular: size in bytes above which a file has to be uploaded as a large one.
        quota: bytes that all large files together may take; None for no limit.
        tls: paths of a certificate and its key, for https.
        xet: whether large files may move through hf_xet, with a storage of its own on disk.
    """

    def __init__(
        self,
        *,
        users: dict[str, User] = USERS,
        page_size: int = 1000,
        multipart_from: int = 20_000_000,
        chunk_size: int = 10_000_000,
        max_regular: int = 10 * 2**20,
        quota: int | None = None,
        tls: tuple[Path, Path] | None = None,
        xet: bool = False,
    ):
        self.users = dict(users)
        self.page_size, self.multipart_from, self.chunk_size = page_size, multipart_from, chunk_size
        self.max_regular, self.quota = max_regular, quota
        self.repos: dict[tuple[str, str], Repo] = {}  # by type and id
        self.log: list[Record] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()

        self._folder = tempfile.TemporaryDirectory(prefix="hub-")
        self.objects = ObjectStore(Path(self._folder.name) / "lfs")
        self.xet_folder = Path(self._folder.name) / "xet" if xet else None
        self._listeners = [Listener(self, origin, tls) for origin in ("api", "cdn")]
        self.url, self.cdn_url = (listener.url for listener in self._listeners)

    def start(self) -> None:
        """Opens both ports."""
        for listener in self._listeners:
            listener.start()

    def stop(self) -> None:
        """Closes both ports with all connections and removes what is stored on disk."""
        for listener in self._listeners:
            listener.stop()
        self._folder.cleanup()

    def __enter__(self) -> Hub:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # What tests ask of it

    def fail(
        self, kind: str, *, method: str = ".*", path: str = ".*", times: int = 1, skip: int = 0, **details: Any
    ) -> Fault:
        """Plans a failure; see `Fault` and `KINDS` beside it."""
        fault = Fault(kind, method=method, path=path, times=times, skip=skip, **details)
        with self.lock:
            self.faults.append(fault)
        return fault

    def requests(self, method: str | None = None, path_regex: str | None = None) -> list[Record]:
        """Returns the records whose method matches in full and whose target contains `path_regex`, oldest first."""
        return [
            record
            for record in list(self.log)
            if re.fullmatch(method or ".*", record.method) and re.search(path_regex or "", record.target)
        ]

    @property
    def bytes_sent(self) -> int:
        """The bytes of all bodies that were sent since the log was emptied; xet's do not travel over HTTP."""
        return sum(record.bytes_sent for record in list(self.log))

    def titles(self, repo_id: str, repo_type: str = "model") -> list[str]:
        """Returns the titles of the main branch's commits, the newest first; none without the repository."""
        repo = self.repos.get((repo_type, repo_id))
        return [commit.title for commit in repo.history()] if repo else []

    def files(self, repo_id: str, repo_type: str = "model") -> dict[str, bytes]:
        """Returns the contents of the main branch's files, but for large ones that move through hf_xet."""
        tree = self.repos[repo_type, repo_id].at().tree
        return {name: self.objects.path(b.sha256).read_bytes() if b.sha256 else b.data for name, b in tree.items()}

    def card(self, repo_id: str, repo_type: str = "model") -> str:
        """Returns the README.md of the main branch."""
        return self.repos[repo_type, repo_id].at().tree["README.md"].data.decode()

    def reset(self) -> None:
        """Forgets all planned faults and recorded requests; repositories stay."""
        with self.lock:
            self.faults.clear()
            self.log.clear()

    def store_large_file(self, repo_type: str, repo_id: str, path: str, size: int) -> str:
        """Commits a large file of `size` zeros, which take no space, and returns its SHA-256, which is made up."""
        repo = self.repos[repo_type, repo_id]
        sha256 = hashlib.sha256(f"{repo_type} {repo_id} {path} {size}".encode()).hexdigest()
        with self.lock:
            self.objects.store_sparse(sha256, size)
            self.objects.link(repo, sha256)
            head = repo.at()
            tree = {**head.tree, path: Blob.large(sha256, size)}
            title = f"Add {path}"
            repo.add_commit(repo.branches, "main", tree, title=title, author=repo.namespace, parent=head.oid)
        return sha256

    # What requests ask of it

    def take_fault(self, method: str, target: str) -> Fault:
        """Returns the planned failure of a request that has just arrived."""
        with self.lock:
            return take_fault(self.faults, method, target)

    def answer(self, request: Request) -> Answer:
        """Does what a request asks for; whatever goes wrong is an answer too."""
        try:
            respond, arguments = find_route(request.method, request.path)
            request.user = self.user_of(request)
            return respond(self, request, **arguments)
        except Refusal as refusal:
            return Answer(refusal.body, refusal.headers, refusal.status)
        except Exception as error:  # a client must see a server that is broken, not one that is gone
            return Answer({"error": f"Internal Error: {error!r}"}, status=500)

    def user_of(self, request: Request) -> User | None:
        """Returns the owner of a request's token, None without a token; an unknown token is refused."""
        authorization = request.headers.get("Authorization", "")
        if not authorization:
            return None
        user = self.users.get(authorization.removeprefix("Bearer ").strip())
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def open_repo(
        self, user: User | None, repo_type: str, repo_id: str, *, write: bool = False, content: bool = False
    ) -> Repo:
        """Returns a repository that the user may see, and write to or read the files of where that is asked."""
        repo = self.repos.get((repo_type, repo_id))
        owner = user is not None and user.owns(repo_id.split("/")[0])
        if repo is None or (repo.private and not owner):
            need_user(user)  # to the anonymous, missing and private look the same and carry no error code
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if repo.disabled:
            raise Refusal(403, "Access to this resource is disabled.")
        if content and repo.gated and not owner:
            self._pass_gate(user, repo)
        if write:
            need_write(user, repo.namespace)
        return repo

    def _pass_gate(self, user: User | None, repo: Repo) -> None:
        restricted = f"Access to {repo.type} {repo.id} is restricted"
        if user is None:
            must = "You must have access to it and be authenticated to access it. Please log in."
            raise Refusal(401, f"{restricted}. {must}", "GatedRepo")
        if user.name not in repo.granted:
            unlisted = f"you are not in the authorized list. Visit {self.url}/{repo.id} to ask for access."
            raise Refusal(403, f"{restricted} and {unlisted}", "GatedRepo")
