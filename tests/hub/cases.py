"""Cases of a Hub that fails: what goes wrong, how the call must end, and what its error must say."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, get_session
from huggingface_hub.utils import _http

from pdiff_hf import HubError

from .server import Hub
from .waiting import give_up_after

ALWAYS = 999
HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"

Where = dict[str, Any]
Faults = list[tuple[str, dict[str, Any]]]


@dataclass
class Case:
    """One cause of failure, and how the call must end.

    Args:
        cause: What goes wrong; the id of the test.
        faults: What the Hub does; see `Hub.fail`.
        error: The error; None if the call succeeds nevertheless.
        hub: Attributes of the Hub for this call.
        says: What the error's sentence must hold.
        waits: Seconds that the Hub asks to wait.
    """

    cause: str
    faults: Faults
    error: type[HubError] | None = None
    hub: dict[str, Any] = field(default_factory=dict)
    says: str = ""
    waits: float = 0

    def __str__(self) -> str:
        return self.cause

    def arrange(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        """Plans the failures, and shortens the clients' patience where the Hub does not answer."""
        for kind, details in self.faults:
            hub.fail(kind, **details)
            if kind == "stall":
                give_up_after(monkeypatch, 0.3)
        for name, value in self.hub.items():
            monkeypatch.setattr(hub, name, value)

    def assert_struck(self, hub: Hub) -> None:
        """Asserts that what was planned has happened, and that what hung was asked for again."""
        assert {record.fault for record in hub.log} - {"none"} == {kind for kind, _ in self.faults}
        for kind, details in self.faults:
            assert kind != "stall" or len(hub.requests(details["method"], details["path"])) > 1


def status(where: Where, code: int, times: int = 1, **details: Any) -> Faults:
    """Plans an answer of that status; see `Hub.fail`."""
    return [("status", where | {"status": code, "times": times} | details)]


def fault(kind: str, where: Where, times: int = 1, **details: Any) -> Faults:
    """Plans another failure; see `Hub.fail`."""
    return [(kind, where | {"times": times} | details)]


def move_to(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process's clients talk to another Hub."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)


def client_state() -> tuple[object, ...]:
    """What a call must leave as it was: how clients are made, and this process's timeouts and hooks."""
    client = get_session()
    return _http._GLOBAL_CLIENT_FACTORY, client.timeout, list(client.event_hooks["request"])


def assert_clear(error: BaseException, *names: str) -> None:
    """Asserts that a message is one sentence or two in one line, holds the names and betrays no token."""
    message = str(error)
    assert isinstance(error, HubError), repr(error)
    assert_sentence(error)
    assert all(name in message for name in names), message


def assert_sentence(error: BaseException) -> None:
    """Asserts that a message is a sentence in one line that betrays no token."""
    message = str(error)
    assert "\n" not in message
    assert "hf_" not in message
    assert message == message.strip()
    assert message.endswith("."), message
    assert len(message.split()) > 6, message


def files_in(folder: Path) -> dict[str, bytes]:
    """The contents of a folder's files by their paths."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
