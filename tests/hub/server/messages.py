"""What goes over the wire: a request, its answer, and the record that is kept of both."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .errors import Refusal
from .model import User


@dataclass
class Request:
    """One HTTP request; `user` is the owner of its token, None without one."""

    method: str
    target: str
    headers: Message
    body: bytes = b""
    user: User | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.target)
        self.path = parts.path
        self.query = parse_qs(parts.query, keep_blank_values=True)

    def argument(self, name: str) -> str | None:
        """Returns the first value of a query argument."""
        return self.query.get(name, [None])[0]

    def flag(self, name: str) -> bool:
        """Says whether a query argument is a spelling of true."""
        return self.argument(name) in ("true", "True", "1")

    def json(self) -> Any:
        """Returns the body as JSON."""
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise Refusal(400, "Malformed JSON") from error


@dataclass
class Answer:
    """One HTTP answer; a file's bytes are read as they are sent, and anything but bytes and files becomes JSON."""

    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200

    def __post_init__(self) -> None:
        if not isinstance(self.body, bytes | Path):
            self.body = json.dumps(self.body).encode()
            self.headers = {"Content-Type": "application/json; charset=utf-8", **self.headers}

    @property
    def size(self) -> int:
        """The length of the whole body in bytes."""
        return self.body.stat().st_size if isinstance(self.body, Path) else len(self.body)


@dataclass
class Record:
    """What a Hub remembers of one request; the answer's part is missing while there is none."""

    method: str
    target: str
    origin: str  # "api", or "cdn" for the port that large files come from
    time: float  # of arrival, in seconds since 1970
    request_headers: dict[str, str]
    fault: str  # the kind of the fault that struck, "none" without one
    request_body: bytes = b""
    status: int | None = None
    response_headers: dict[str, str] = field(default_factory=dict)
    response_body: bytes | Path = b""  # as planned: whole, even for a HEAD or a part
    bytes_sent: int = 0  # of the body, really written to the connection

    @property
    def path(self) -> str:
        """The target without its query."""
        return urlsplit(self.target).path
