"""The environment in which the Hugging Face libraries talk to a Hub of ours, read by them once, at their import."""

from __future__ import annotations

import atexit
import os
from pathlib import Path

from .server import Hub

LIBRARIES = ("HF_", "HUGGING", "TRANSFORMERS_", "DIFFUSERS_")  # how the names of their variables start


def hub_environment(
    hub: Hub, home: str | Path, *, token: str | None = None, offline: bool = False, xet: bool = False
) -> dict[str, str]:
    """Returns the present environment with the libraries' variables set for this Hub and a folder of their own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LIBRARIES)}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "NO_PROXY": "127.0.0.1",
        "TQDM_DISABLE": "1",
    }
    if token:
        environment["HF_TOKEN"] = token
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    if not xet:
        environment["HF_HUB_DISABLE_XET"] = "1"
    return environment


def reserve_session_hub(home: str | Path) -> Hub:
    """Returns the Hub that this process uses for its whole life, without a token, before any library is imported.

    It has its address, and listens when a test first asks for it.
    """
    hub = Hub()
    atexit.register(hub.stop)
    environment = hub_environment(hub, home)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    return hub
