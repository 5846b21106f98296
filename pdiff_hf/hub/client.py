"""Calls to the Hub that do not hang, that repeat what is safe to repeat, and that fail with one clear sentence."""

from __future__ import annotations

import errno
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

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

BACK_OFF = (1.0, 4.0)  # seconds to wait before the second and third attempt
CONNECT_TIMEOUT = 10.0  # seconds
ANSWER_TIMEOUT = 120.0  # seconds without a byte; a large commit takes the Hub a while
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
XET_REFUSAL = re.compile(r"\((?:401|403|404) ")

Result = TypeVar("Result")


class HubError(OSError):
    """A call to the Hub failed; the message says why and how to mend it."""


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
    """A file's content is not what its checksum says, after it was fetched twice."""


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turns the many exceptions of the Hub's clients into a `HubError` about `what`, for example "pipeline 'a/b'"."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        _raise_explained(error, what)


def persistently(action: Callable[[], Result], what: str) -> Result:
    """Calls `action`, which must be safe to repeat, up to three times; see `hub_errors` for what it raises."""
    for wait in (*BACK_OFF, None):
        try:
            with deadlines():
                return action()
        except Exception as error:
            if wait is None or not is_transient(error):
                _raise_explained(error, what)
            logger.warning(f"The Hub did not answer as expected for {what} ({_brief(error)}); trying again.")
            time.sleep(max(wait, retry_after(error)))
    raise AssertionError("unreachable")


@contextmanager
def deadlines() -> Iterator[None]:
    """Gives the process's Hub client timeouts where it has none, and takes them back after the last such call.

    Without them a server that hangs holds a push for ever. A client that the user has given timeouts keeps them.
    """
    client = get_session()
    with _deadlines_lock:
        if client.timeout == httpx2.Timeout(None):
            client.timeout = httpx2.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT)
            _deadlines_users[client] = 0
        if client in _deadlines_users:
            _deadlines_users[client] += 1
    try:
        yield
    finally:
        with _deadlines_lock:
            if client in _deadlines_users:
                _deadlines_users[client] -= 1
                if not _deadlines_users[client]:
                    del _deadlines_users[client]
                    client.timeout = httpx2.Timeout(None)


_deadlines_lock = threading.Lock()
_deadlines_users: dict[httpx2.Client, int] = {}  # calls under way with timeouts that were lent to a client


def is_transient(error: BaseException) -> bool:
    """Tells whether the same call may succeed a moment later. What the client itself has repeated is not repeated."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, LocalEntryNotFoundError):  # a download; the client asks only once where a branch is
        cause = error.__cause__
        asked_once = isinstance(cause, HfHubHTTPError) and "/revision/" in cause.response.request.url.path
        return isinstance(cause, FileMetadataError) or (cause is not None and asked_once and is_transient(cause))
    if isinstance(error, RuntimeError):  # an upload: a damaged object, an expired address or a lost part
        return isinstance(error.__cause__, ValueError) or _status(error.__cause__) in (400, 403, 404, 422)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in RETRIED_STATUS
    if isinstance(error, httpx2.TransportError | json.JSONDecodeError):
        return True
    if isinstance(error, ConnectionError):  # hf_xet's only error; its text holds the status
        return not XET_REFUSAL.search(str(error))
    return _is_of_wrong_size(error)


def _raise_explained(error: Exception, what: str) -> NoReturn:
    for cause in _chain(error):
        explained = _explain(cause, what)
        if explained is not None:
            raise explained from error
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        raise HubError(f"A file of the {what} could not be sent ({_brief(error.__cause__)}).") from error
    raise error


def _explain(error: BaseException, what: str) -> HubError | None:
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, what)
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnreachableError(
            f"The {what} is not cached on this machine, and HF_HUB_OFFLINE=1 forbids to look on the Hub; unset it, or "
            "load it once while online."
        )
    if isinstance(error, httpx2.TransportError):
        return HubUnreachableError(
            f"The Hub could not be reached for the {what} ({_brief(error)}). Check the connection and HF_ENDPOINT, "
            "then run it again: what has arrived is kept."
        )
    if isinstance(error, json.JSONDecodeError):
        return HubUnreachableError(
            f"The Hub's answer for the {what} was not JSON; a proxy may stand between. Run it again, or check "
            "HF_ENDPOINT and the proxy."
        )
    if isinstance(error, ConnectionError) and XET_REFUSAL.search(str(error)):
        return HubAccessError(f"The Hub's storage does not let this token in for the {what} ({_brief(error)}).")
    if isinstance(error, ConnectionError):
        return HubUnreachableError(f"The Hub's storage could not be reached for the {what} ({_brief(error)}).")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return HubQuotaError(
            f"There is no space left on this machine's disk for the {what}; free some, or set HF_HOME to a larger one."
        )
    if isinstance(error, FileMetadataError):
        return HubUnreachableError(
            f"The Hub's answer for the {what} was not whole; a proxy may stand between ({_brief(error)})."
        )
    if _is_of_wrong_size(error):
        return CorruptFileError(f"A file of the {what} has not the size that the Hub names ({_brief(error)}).")
    if isinstance(error, HFValidationError):
        return HubNotFoundError(f"The {what} has no valid name; give a folder that exists, or an id like 'org/name'.")
    if isinstance(error, ValueError) and "LFS batch API" in str(error):
        reasons = sorted(set(re.findall(r"OID \w+: `([^`\n]*)", _scrubbed(str(error)))))
        return HubQuotaError(f"The Hub took no files for the {what}: {'; '.join(reasons) or _brief(error)}.")
    if isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error):
        return HubError(f"The Hub refused the card of the {what}: {_brief(error)} Mend the header of its README.md.")
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is None and error.__context__ is None:
        return HubUnreachableError(f"The {what} is not cached on this machine, and the Hub was not to be asked.")
    return None


def _explain_answer(error: HfHubHTTPError, what: str) -> HubError:
    status, said = error.response.status_code, _scrubbed(error.server_message or "")
    if isinstance(error, GatedRepoError):
        return HubAccessError(
            f"The {what} is gated: ask for access on its page on the Hub, then log in with `hf auth login`, or pass "
            "the token of an account that was let in."
        )
    if isinstance(error, DisabledRepoError):
        return HubAccessError(f"The {what} has been disabled on the Hub.")
    if isinstance(error, RevisionNotFoundError):
        return HubNotFoundError(
            f"The {what} has no such revision ({said}); pass a branch, tag or commit that its page lists."
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return HubNotFoundError(f"The {what} lacks a file that was asked for: {error.response.request.url.path}.")
    if status == 401 and "Invalid credentials" in said:
        return HubAccessError(
            f"The Hub does not know the token that was sent for the {what}; it may be mistyped or revoked. Log in "
            "with `hf auth login`, or pass another one."
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return HubNotFoundError(
            f"There is no {what} that this token can see: the name is wrong, or it is private. Check the name, and "
            "log in with `hf auth login` or pass a token that may read it."
        )
    if status == 403:
        return HubAccessError(f"The Hub does not allow this for the {what}: {said.rstrip('.') or 'forbidden'}.")
    if status in (402, 413, 507):
        return HubQuotaError(f"The Hub has no room for the {what}: {said or status}.")
    if status in (409, 412):
        return HubConflictError(
            f"Someone else has changed the {what} meanwhile; look at its history, then push again."
        )
    if status in RETRIED_STATUS:
        return HubUnreachableError(
            f"The Hub answered {status} for the {what}, again and again; nothing is lost: run it again later."
        )
    return HubError(f"The Hub refused the {what} with status {status}: {said or 'no reason given'}.")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and what caused it: the truth is often only there."""
    current: BaseException | None = error
    for _ in range(8):
        if current is None:
            return
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def retry_after(error: Exception) -> float:
    """Returns the seconds that the Hub asked to wait, at most a minute."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    headers = error.response.headers
    asked = [headers.get("Retry-After", ""), *re.findall(r"\bt=(\d+)", headers.get("ratelimit", ""))]
    return min(60.0, max((float(seconds) for seconds in asked if seconds.isdigit()), default=0.0))


def _is_of_wrong_size(error: BaseException) -> bool:
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def _status(error: BaseException | None) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _brief(error: BaseException) -> str:
    text = " ".join(_scrubbed(str(error)).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _scrubbed(text: str) -> str:
    return re.sub(r"\bhf_\w+", "hf_…", text)
