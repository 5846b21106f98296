"""Planned failures: what goes wrong, with which requests, how many times."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

KINDS = {
    "none": "do the work and answer",
    "status": "answer `status` with `headers` and `body`, and do nothing",
    "headers": "do the work and answer, but with these `headers` replaced, or removed where they are None",
    "stall": "read the request, wait `seconds`, then do the work and answer",
    "lose": "do the work, then reset the connection (RST) instead of answering",
    "close": "close the connection (FIN) without an answer, and do nothing",
    "reset": "reset the connection (RST) at once, and do nothing",
    "cut_request": "read `after` bytes of the request's body, then reset the connection (RST), and do nothing",
    "corrupt_request": "damage the middle byte of the request's body before the work is done",
    "cut": "answer, but close the connection (FIN) after `after` bytes of the body",
    "reset_after": "answer, but reset the connection (RST) after `after` bytes of the body",
    "corrupt": "answer with the middle byte of the body damaged",
    "shift": "answer a request for a range with bytes that lie one too early in the file",
}


@dataclass
class Fault:
    """One planned failure of a kind of `KINDS`.

    It strikes `times` requests whose method matches `method` in full and whose target (path and query) contains
    `path`, both regular expressions, after it has let `skip` of them through.
    """

    kind: str
    method: str = ".*"
    path: str = ".*"
    times: int = 1
    skip: int = 0
    status: int = 500
    headers: dict[str, str | None] = field(default_factory=dict)
    body: Any = b""  # bytes, or what is sent as JSON
    after: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no kind of fault; known are {', '.join(KINDS)}.")

    def matches(self, method: str, target: str) -> bool:
        """Says whether the fault is meant for such a request."""
        return re.fullmatch(self.method, method) is not None and re.search(self.path, target) is not None


NO_FAULT = Fault("none")


def take_fault(faults: Iterable[Fault], method: str, target: str) -> Fault:
    """Returns the first fault that strikes this request, `NO_FAULT` if none does, and counts it down."""
    for fault in faults:
        if fault.times and fault.matches(method, target):
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times -= 1
            return fault
    return NO_FAULT


def damaged(data: bytes, position: int) -> bytes:
    """Returns the data with all bits of one byte flipped."""
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]
