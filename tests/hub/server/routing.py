"""Which function answers which request."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote

from .errors import Refusal
from .messages import Answer

REPO_TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
REPO_ID = r"(?P<repo_id>[^/]+/[^/]+)"
PLURAL = r"(?P<plural>models|datasets|spaces)"
API = rf"/api/{PLURAL}/{REPO_ID}"  # of one repository
WEB = rf"/(?:(?P<plural>datasets|spaces)/)?{REPO_ID}"
REVISION = r"(?P<revision>[^/]+)"  # one component: clients quote the slashes of a revision
SHA256 = r"(?P<sha256>[0-9a-f]{64})"

Respond = Callable[..., Answer]


class Route(NamedTuple):
    """A function, and the requests that it answers."""

    methods: re.Pattern[str]
    path: re.Pattern[str]
    respond: Respond


ROUTES: list[Route] = []


def route(methods: str, path: str) -> Callable[[Respond], Respond]:
    """Registers a function of a hub, a request and the named groups of `path`, a regular expression."""

    def register(respond: Respond) -> Respond:
        ROUTES.append(Route(re.compile(methods), re.compile(path + r"\Z"), respond))
        return respond

    return register


def find_route(method: str, path: str) -> tuple[Respond, dict[str, Any]]:
    """Returns the function for a request and its arguments; a `plural` in the path becomes a `repo_type`."""
    for methods, pattern, respond in ROUTES:
        match = pattern.match(path)
        if match and methods.fullmatch(method):
            arguments = {name: value and unquote(value) for name, value in match.groupdict().items()}
            if "plural" in arguments:
                arguments["repo_type"] = REPO_TYPES[arguments.pop("plural") or "models"]
            return respond, arguments
    raise Refusal(404, "Sorry, we can't find the page you are looking for.")
