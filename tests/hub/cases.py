"""Cases of a Hub that fails, how the call must end, and what its error must say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pdiff_hf import HubError

ALWAYS = 999
HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"

Where = dict[str, Any]
Faults = list[tuple[str, dict[str, Any]]]


@dataclass
class Case:
    """What goes wrong in a call, and how it must end.

    Args:
        name: What goes wrong.
        faults: What the Hub is told to do; see `Hub.fail`.
        error: The error; None if the call succeeds nevertheless.
        hub: Attributes of the Hub for this call.
        says: What the error's sentence must hold.
    """

    name: str
    faults: Faults
    error: type[HubError] | None = None
    hub: dict[str, Any] = field(default_factory=dict)
    says: str = ""

    def __str__(self) -> str:
        return self.name


def status(where: Where, code: int, times: int = 1, **details: Any) -> Faults:
    """Plans an answer of that status; see `Hub.fail`."""
    return [("status", where | {"status": code, "times": times} | details)]


def fault(kind: str, where: Where, times: int = 1, **details: Any) -> Faults:
    """Plans another failure; see `Hub.fail`."""
    return [(kind, where | {"times": times} | details)]


def assert_clear(error: BaseException, *names: str) -> None:
    """Asserts that a message is one line that holds the names and betrays no token."""
    message = str(error)
    assert isinstance(error, HubError), repr(error)
    assert all(name in message for name in names), message
    assert "\n" not in message
    assert "hf_alice" not in message
    assert message == message.strip()
    assert message.endswith("."), message
