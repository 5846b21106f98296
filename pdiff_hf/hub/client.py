"""Calls to the Hub that do not hang, that repeat what is safe to repeat, and that fail with one clear sentence."""

from __future__ import annotations

import errno
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2
from diffusers.utils import logging
from huggingface_hub import get_session
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

logger = logging.get_logger(__name__)

BACK_OFF = (1.0, 4.0)  # seconds to wait before the second and before each further attempt
CONNECT_TIMEOUT = 10.0  # seconds
ANSWER_TIMEOUT = 120.0  # seconds without a byte; a large commit takes the Hub a while
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
# Two failures have neither a status nor a class of their own, only a text: hf_xet raises ConnectionError for all of
# its own, and large files that the Hub does not take are listed in an answer of status 200.
XET_REFUSAL = re.compile(r"\((?:401|403|404) ")
LFS_REFUSAL = re.compile(r"OID \w+: `([^`\n]*)")

Result = TypeVar("Result")


class HubError(OSError):
    """A call to the Hub failed; the message says why and what to do."""


class HubNotFoundError(HubError):
    """There is no such repository, revision or file, or the token does not see it."""


class HubAccessError(HubError):
    """The token is unknown, may not write, or the repository is gated or disabled."""


class HubUnreachableError(HubError):
    """The Hub does not answer, or the machine is offline, and the files are not cached."""


class HubConflictError(HubError):
    """Someone else has changed the same files meanwhile."""


class HubQuotaError(HubError):
    """The Hub, or this machine's disk, has no room for the files."""


class CorruptFileError(HubError):
    """A file's content does not match its checksum, after it was fetched twice."""


# What an error means, by its class, by the status of an answer, or by a sign that `_signs` names.
MEANINGS: dict[type[HubError], dict[type[BaseException] | int | str, str]] = {
    HubAccessError: {
        "unknown token": "The Hub does not know the token sent for the {what}; `hf auth login`, or pass another one.",
        "storage refuses": "The Hub's storage does not let this token in for the {what} ({brief}).",
        GatedRepoError: "The {what} is gated: ask for access on its page, then `hf auth login` or pass your token.",
        DisabledRepoError: "The {what} has been disabled on the Hub.",
        403: "The Hub does not allow this for the {what}: {reason}.",
    },
    HubNotFoundError: {
        RevisionNotFoundError: "The {what} has no such revision ({reason}); pass a branch, tag or commit of its page.",
        RemoteEntryNotFoundError: "The {what} lacks a file that was asked for: {path}.",
        **dict.fromkeys(
            (RepositoryNotFoundError, 401, 404),
            "There is no {what} that this token can see: the name is wrong, or it is private. Check the name, and log "
            "in with `hf auth login` or pass a token that may read it.",
        ),
        HFValidationError: "The {what} has no valid name; give a folder that exists, or an id like 'org/name'.",
    },
    HubConflictError: dict.fromkeys(
        (409, 412), "Someone else has changed the {what} meanwhile; look at its history, then push again."
    ),
    HubQuotaError: {
        **dict.fromkeys((402, 413, 507), "The Hub has no room for the {what}: {reason}."),
        "files refused": "The Hub took no files for the {what}: {reason}.",
        "disk full": "The disk has no space left for the {what}; free some, or set HF_HOME to a larger one.",
    },
    HubUnreachableError: {
        "not to be asked": "The {what} is not cached on this machine, and the Hub was not to be asked.",
        OfflineModeIsEnabled: "The {what} is not cached on this machine; unset HF_HUB_OFFLINE=1 to fetch it.",
        httpx2.TransportError: "The Hub could not be reached for the {what} ({brief}). Check the connection and "
        "HF_ENDPOINT, then run it again: what has arrived is kept.",
        ConnectionError: "The Hub's storage could not be reached for the {what} ({brief}).",
        **dict.fromkeys(
            (json.JSONDecodeError, FileMetadataError),
            "The Hub's answer for the {what} was not one of a Hub ({brief}); check HF_ENDPOINT, and any proxy.",
        ),
        **dict.fromkeys(
            RETRIED_STATUS, "The Hub answered {status} for the {what}, again and again; run it again later."
        ),
    },
    CorruptFileError: {"wrong size": "A file of the {what} has not the size that the Hub names ({brief})."},
    HubError: {HfHubHTTPError: "The Hub refused the {what} with status {status}: {reason}."},
}


def persistently(
    action: Callable[[], Result],
    what: str,
    attempts: int = len(BACK_OFF) + 1,
    is_worth_repeating: Callable[[Exception], bool] | None = None,
) -> Result:
    """Calls `action`, which must be safe to repeat, until it succeeds, or fails for good, or for the last time.

    `what` names the repository, for example "model 'a/b'"; errors are repeated that are transient, or that
    `is_worth_repeating` says of.

    Raises:
        HubError: One of its subclasses, for the many exceptions of the Hub's clients.
    """
    for attempt in range(attempts):
        try:
            with deadlines():
                return action()
        except HubError:
            raise
        except Exception as error:
            if attempt == attempts - 1 or not (is_worth_repeating or is_transient)(error):
                explained = explain(error, what)
                if explained is None:
                    raise
                raise explained from error
            logger.warning(f"The Hub did not answer as expected for the {what} ({_brief(error)}); trying again.")
            time.sleep(max(BACK_OFF[min(attempt, len(BACK_OFF) - 1)], retry_after(error)))
    raise AssertionError("unreachable")


@contextmanager
def deadlines() -> Iterator[None]:
    """Gives the process's Hub client timeouts where it has none, and takes them back after the last such call.

    Without them a server that hangs holds a call for ever: the libraries ask for some answers with `timeout=None`. A
    client that the user has given timeouts keeps them.
    """
    client = get_session()
    if client.timeout != httpx2.Timeout(None):
        yield
        return
    hooks = client.event_hooks["request"]  # the client's own list
    hooks.append(_bound)
    try:
        yield
    finally:
        hooks.remove(_bound)


def _bound(request: httpx2.Request) -> None:
    """Gives a request without any timeout ours; it is a hook of the client once for each call under way."""
    if not any((request.extensions.get("timeout") or {}).values()):
        request.extensions["timeout"] = httpx2.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT).as_dict()


def is_transient(error: BaseException) -> bool:
    """Tells whether the same call may succeed a moment later. What the client itself has repeated is not repeated."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, LocalEntryNotFoundError):  # a download; the client asks only once where a branch is
        cause = error.__cause__
        sent: Any = cause.response if isinstance(cause, HfHubHTTPError) else cause
        asked_once = isinstance(cause, httpx2.HTTPError) and "/revision/" in sent.request.url.path
        return isinstance(cause, FileMetadataError) or (cause is not None and asked_once and is_transient(cause))
    if isinstance(error, RuntimeError):  # an upload: a damaged object, an expired address or a lost part
        cause = error.__cause__
        refused = isinstance(cause, HfHubHTTPError) and cause.response.status_code in (400, 403, 404, 422)
        return refused or isinstance(cause, ValueError)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in RETRIED_STATUS
    if isinstance(error, ConnectionError):
        return not XET_REFUSAL.search(str(error))
    return isinstance(error, httpx2.TransportError | json.JSONDecodeError) or _is_of_wrong_size(error)


def explain(error: BaseException, what: str) -> HubError | None:
    """Returns the `HubError` for an error or for the first of its causes that is understood, else None."""
    current: BaseException | None = error
    while current is not None:  # the truth is often only in what caused it
        for sign in _signs(current):
            for cls, sentences in MEANINGS.items():
                if sign in sentences:
                    return cls(sentences[sign].format(what=what, **_details(current)))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return HubError(f"A file of the {what} could not be sent ({_brief(error.__cause__)}).")
    return None


def _signs(error: BaseException) -> Iterator[type[BaseException] | int | str]:
    """Yields what an error is known by, from the particular to the general."""
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code == 401 and "Invalid credentials" in str(error.server_message):
            yield "unknown token"  # any other 401 hides a private repository
        yield from type(error).__mro__[: type(error).__mro__.index(HfHubHTTPError)]
        yield error.response.status_code
    elif isinstance(error, ConnectionError) and XET_REFUSAL.search(str(error)):
        yield "storage refuses"
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        yield "disk full"
    elif isinstance(error, LocalEntryNotFoundError) and error.__cause__ is None and error.__context__ is None:
        yield "not to be asked"
    elif type(error) is ValueError and LFS_REFUSAL.search(str(error)):
        yield "files refused"
    elif _is_of_wrong_size(error):
        yield "wrong size"
    yield from type(error).__mro__


def _details(error: BaseException) -> dict[str, object]:
    """Returns what the sentences of `MEANINGS` may name."""
    if isinstance(error, HfHubHTTPError):
        status, reason = error.response.status_code, _scrubbed(error.server_message or "").rstrip(".")
        return {"status": status, "reason": reason or status, "path": error.response.request.url.path}
    refused = sorted(set(LFS_REFUSAL.findall(str(error))))
    return {"brief": _brief(error), "reason": _scrubbed("; ".join(refused))}


def retry_after(error: Exception) -> float:
    """Returns the seconds that the Hub asked to wait, at most a minute."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    headers = error.response.headers
    asked = [headers.get("Retry-After", ""), *re.findall(r"\bt=(\d+)", headers.get("ratelimit", ""))]
    return min(60.0, max((float(seconds) for seconds in asked if seconds.isdigit()), default=0.0))


def _is_of_wrong_size(error: BaseException) -> bool:
    return type(error) is OSError and error.errno is None  # the client's only plain one; others have a class or number


def _brief(error: BaseException) -> str:
    text = _scrubbed(str(error))
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _scrubbed(text: str) -> str:
    return re.sub(r"\bhf_\w+", "hf_…", " ".join(text.split()))  # one line, without a token
