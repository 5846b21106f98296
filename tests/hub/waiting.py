"""Waiting that no test waits for: back-off is written down instead, and a hang ends in an error."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

CLIENTS = ("huggingface_hub.", "pdiff_hf.hub.")


def skip_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Lets the Hub's clients, ours included, go on at once where they would wait; returns the list of their waits."""
    waits: list[float] = []
    _set_everywhere(monkeypatch, "time", SimpleNamespace(**vars(time) | {"sleep": waits.append}))
    return waits


def give_up_after(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Lets the Hub's clients, ours included, wait no longer than that for an answer."""
    for name in ("ANSWER_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        _set_everywhere(monkeypatch, name, seconds)


def _set_everywhere(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    modules = [module for path, module in list(sys.modules.items()) if path.startswith(CLIENTS)]
    holders = [module for module in modules if name in vars(module)]
    assert holders, name
    for module in holders:
        monkeypatch.setattr(module, name, value)


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Fails a test whose block hangs, with an exception that no client takes for a timeout; for the main thread."""

    def give_up(*_: Any) -> None:
        pytest.fail(f"This hangs: it has taken more than {seconds} seconds.")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Waits until something is true; raises TimeoutError if it does not become so."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"What was waited for has not come in {seconds} seconds.")
        time.sleep(0.001)
