"""What a retry must make of policies, headers and errors: tables, and a model of one call."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from tests.resiliency.retry_checks import Overloaded

NOW = datetime(2026, 1, 1, tzinfo=UTC)

HEADERS: list[tuple[Any, float | None]] = [
    ("0", 0.0),
    (" 120 ", 120.0),
    (b"7", 7.0),
    ("9" * 400, math.inf),
    (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
    ("Thu, 01 Jan 2026 00:01:30 GMT", 90.0),
    ("Thursday, 01-Jan-26 00:01:30 GMT", 90.0),
    ("Thu Jan  1 00:01:30 2026", 90.0),
    ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
    *[(text, None) for text in ("", "soon", "-1", "1.5", "٣", "Thu, 99 Jan 2026 00:00:00 GMT", None)],
    ("Thu, 01 Jan 99999 00:00:00 GMT", None),
]


class Moody(ConnectionError):
    """An error whose attribute cannot be read."""

    @property
    def retry_after(self) -> float:
        raise RuntimeError("no header")


ASKED: list[tuple[Any, float | None]] = [
    *[(Overloaded(value), None) for value in (None, math.nan, "5", True, [5])],
    (Overloaded(-3), 0.0),
    (Overloaded(2), 2.0),
    (Overloaded(10**400), 10**400),
    (Moody(), None),
    (ConnectionError(), None),
    (ExceptionGroup("", [Overloaded(2), Overloaded(9), Overloaded(None)]), 9.0),
]

BAD_POLICIES: list[tuple[str, Any, str]] = [
    ("on", ConnectionError, "tuple of Exception classes"),
    ("on", (BaseException,), "tuple of Exception classes"),
    ("on", (asyncio.CancelledError,), "tuple of Exception classes"),
    ("ignore", ("ValueError",), "tuple of Exception classes"),
    ("never_sent", [OSError], "tuple of Exception classes"),
    *[("idempotent", value, "True, False or 'key'") for value in (None, 1.5, "yes")],
    ("nested", 1, "True or False"),
    ("jitter", "full", "a Jitter"),
    ("on_result", 503, "callable or None"),
    *[("attempts", value, "whole number >= 1") for value in (0, -1, 2.0, True, "3", math.inf, None)],
    *[
        ("base", value, "base must be a finite number >= 0")
        for value in (-0.1, math.nan, math.inf, "1", True)
    ],
    *[("cap", value, "cap must be a finite number > 0") for value in (0, -1, math.nan, math.inf, None)],
    ("cap", 0.5, ">= 1.0"),
    *[("deadline", value, "finite number > 0") for value in (0, -1, math.nan, math.inf, True, "1")],
    *[("attempt_timeout", value, "finite number > 0") for value in (0, -1, math.nan, math.inf)],
    *[("max_retry_after", value, "finite number >= 0") for value in (-1, math.nan, math.inf, None)],
]


def expected(
    outcomes: list[str], attempts: int, deadline: float | None, idempotent: Any, capacity: int | None
) -> tuple[int, list[float], str]:
    """Return how many calls there will be, the waits between them, and the last outcome."""
    waits: list[float] = []
    for number, outcome in enumerate(outcomes, 1):
        asked = {"5 s": 5.0, "100 s": 100.0}.get(outcome, 0.0)
        wait = min(8.0, 2.0 ** (number - 1)) + asked
        if outcome in ("ok", "bug") or (idempotent is False and outcome != "refused"):
            break
        if number == attempts or asked > 60 or (capacity is not None and len(waits) == capacity):
            break
        if deadline is not None and sum(waits) + wait >= deadline:
            break
        waits.append(wait)
    return number, waits, outcome
