"""How long the dependency asks callers to stay away.

>>> parse_retry_after("120")
120.0
>>> parse_retry_after("Fri, 31 Dec 1999 23:59:59 GMT")
0.0
>>> parse_retry_after("soon") is None
True

Source: RFC 9110, sections 5.6.7 (dates) and 10.2.3 (Retry-After).
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from patterns.clock import SYSTEM_CLOCK, Clock

__all__ = ["asked_by", "parse_retry_after"]


def parse_retry_after(
    value: str | bytes | None, clock: Clock = SYSTEM_CLOCK, *, date: str | bytes | None = None
) -> float | None:
    """Return the seconds that a Retry-After header asks for, at least 0; None if it says nothing.

    Args:
        value: the header: whole seconds or an HTTP date.
        clock: where the calendar time is read, if the header is a date.
        date: the Date header of the same response: with it our own calendar may be wrong.
    """
    text = _text(value)
    if text.isdigit():
        return float(text)  # infinite, if it has hundreds of digits
    until = _moment(text)
    if until is None:
        return None
    return max(0.0, (until - (_moment(_text(date)) or clock.wall())).total_seconds())


def asked_by(outcome: object) -> float | None:
    """Return the seconds in the attribute `retry_after` of an error or a result, None if there are none.

    Of a group of exceptions it is the longest.
    """
    if isinstance(outcome, BaseExceptionGroup):
        each = [asked_by(error) for error in outcome.exceptions]
        return max((seconds for seconds in each if seconds is not None), default=None)
    try:
        seconds = getattr(outcome, "retry_after", None)
    except Exception:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    return None if isinstance(seconds, float) and math.isnan(seconds) else max(0.0, seconds)


def _text(value: str | bytes | None) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value or ""
    text = text.strip()
    return text if text.isascii() else ""


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
        # A date without a zone is in UTC, as all HTTP dates are.
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
