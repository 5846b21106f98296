"""Numbers of a `metrics.json` in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def score_name(metrics: Mapping[str, Any]) -> str:
    """Returns the name of the task's score, which the key `accuracy` holds; files made before tasks have none."""
    return metrics.get("data", {}).get("score_name", "accuracy")


def number(value: float | None, digits: int = 2, factor: int = 1) -> str:
    """Returns a number of `metrics.json`, times a factor, with so many digits after the point; a dash for null."""
    return "-" if value is None else f"{factor * value:.{digits}f}"


def interval(found: Mapping[str, Any], factor: int = 1, digits: int = 2) -> str:
    """Returns a value of `metrics.json` with its interval, times a factor, or with the reason why it has none."""
    value, low, high = (number(found[key], digits, factor) for key in ("value", "low", "high"))
    missing = found["low"] is None and found["high"] is None
    note = found.get("note") or ("no interval" if missing else "")
    return value + ("" if missing else f" [{low}, {high}]") + (f" ({note})" if note else "")
