"""The answer to a request that is not granted."""

from __future__ import annotations


class Refusal(Exception):
    """Ends a request with an error status, huggingface.co's `X-Error-*` headers and a JSON body."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None, **extra: str
    ):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.body = {"error": message, **extra}
