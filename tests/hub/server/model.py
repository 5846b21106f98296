"""What a Hub keeps: users, and repositories of commits, trees and blobs with git's own ids."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone

from .errors import Refusal

# fmt: off
LFS_EXTENSIONS = (
    "7z", "arrow", "avro", "bin", "bz2", "ckpt", "ftz", "gz", "h5", "joblib", "mlmodel", "model", "msgpack", "npy",
    "npz", "onnx", "ot", "parquet", "pb", "pickle", "pkl", "pt", "pth", "rar", "safetensors", "tar", "tflite", "tgz",
    "wasm", "xz", "zip", "zst",
)
# fmt: on
GITATTRIBUTES = "".join(f"*.{extension} filter=lfs diff=lfs merge=lfs -text\n" for extension in LFS_EXTENSIONS)


def now() -> str:
    """Returns the time as the Hub writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_oid(kind: str, data: bytes) -> str:
    """Returns the id that git gives to a blob, a tree or a commit."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


@dataclass(frozen=True)
class User:
    """The owner of a token: writes to its own namespace and its organizations' unless its role is "read"."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"

    def owns(self, namespace: str) -> bool:
        """Says whether repositories of this namespace belong to the user."""
        return namespace == self.name or namespace in self.orgs


USERS = {
    "hf_alice": User("alice", orgs=("acme",)),
    "hf_bob": User("bob"),
    "hf_read": User("alice", role="read"),
}  # by token


@dataclass(frozen=True)
class Blob:
    """One version of a file: its content, or the pointer to a large one, which is stored apart by its SHA-256."""

    oid: str  # git's id; of the pointer where there is one
    size: int
    data: bytes = b""
    sha256: str | None = None  # of a large file
    pointer_size: int = 0

    @classmethod
    def regular(cls, data: bytes) -> Blob:
        """Makes a blob that git itself keeps."""
        return cls(git_oid("blob", data), len(data), data)

    @classmethod
    def large(cls, sha256: str, size: int) -> Blob:
        """Makes a blob that git keeps as an LFS pointer."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return cls(git_oid("blob", pointer), size, sha256=sha256, pointer_size=len(pointer))

    @property
    def etag(self) -> str:
        """The id under which clients cache the file."""
        return self.sha256 or self.oid


Tree = dict[str, Blob]  # every file of a commit by its path


def folder_oids(tree: Tree) -> dict[str, str]:
    """Returns git's tree id of each folder by path; the root's path is ''."""
    children: dict[str, dict[str, tuple[str, str]]] = {"": {}}
    for path, blob in tree.items():
        *folders, name = path.split("/")
        for depth in range(len(folders)):
            children.setdefault("/".join(folders[: depth + 1]), {})
        children["/".join(folders)][name] = ("100644", blob.oid)
    oids = {}
    for folder in sorted(children, key=lambda path: path.count("/") + bool(path), reverse=True):  # deepest first
        # git sorts a folder as if its name ended in a slash
        entries = sorted(children[folder].items(), key=lambda item: item[0] + "/" * (item[1][0] == "40000"))
        content = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for name, (mode, oid) in entries)
        oids[folder] = git_oid("tree", content)
        if folder:
            parent, _, name = folder.rpartition("/")
            children[parent][name] = ("40000", oids[folder])
    return oids


@dataclass(frozen=True)
class Commit:
    """One state of a repository and where it came from."""

    oid: str
    parent: str | None
    tree: Tree
    title: str
    message: str
    date: str
    author: str


@dataclass
class Repo:
    """A model, dataset or space: commits, and the branches, tags and pull requests that point at them."""

    type: str
    id: str
    visibility: str = "public"
    gated: str | bool = False
    granted: set[str] = field(default_factory=set)  # names of the users let through the gate
    disabled: bool = False
    created: str = field(default_factory=now)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        """The user or organization that the repository belongs to."""
        return self.id.split("/")[0]

    @property
    def private(self) -> bool:
        """Whether only its owners know that the repository exists."""
        return self.visibility == "private"

    @property
    def page(self) -> str:
        """The path of the repository's web page."""
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"

    def at(self, revision: str | None = None) -> Commit:
        """Returns the commit that a branch, tag, pull request or commit id names; the main branch by default."""
        revision = revision or "main"
        for references in (self.branches, self.tags, self.pull_requests):
            if revision in references:
                return self.commits[references[revision]]
        if revision in self.commits:
            return self.commits[revision]
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str | None = None) -> Iterator[Commit]:
        """Yields a revision and what came before it, the newest first."""
        commit: Commit | None = self.at(revision)
        while commit:
            yield commit
            commit = self.commits.get(commit.parent or "")

    def add_commit(
        self,
        references: dict[str, str],
        name: str,
        tree: Tree,
        *,
        title: str,
        message: str = "",
        author: str,
        parent: str | None = None,
    ) -> Commit:
        """Adds a commit and lets one of `branches` or `pull_requests` point at it."""
        header = f"tree {folder_oids(tree)['']}\n" + (f"parent {parent}\n" if parent else "")
        header += f"author {author} <{author}@example.org> {time.time_ns()} +0000\n"
        oid = git_oid("commit", f"{header}\n{title}\n{message}".encode())
        self.commits[oid] = Commit(oid, parent, tree, title, message, now(), author)
        references[name] = oid
        return self.commits[oid]
