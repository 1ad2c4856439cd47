"""Refusals that name the field, the bound and the value.

A policy that makes no sense is refused when it is built, before anything is called or written. NaN passes
most comparisons unseen, `True` is a number to Python, and a string compares with nothing: here each of them
is a ValueError, with a sentence that says what would have been right.

>>> number("deadline", 2, above=0)
2
>>> number("deadline", float("nan"), above=0)
Traceback (most recent call last):
ValueError: deadline must be a finite number > 0, got nan
>>> whole("limit", 0, at_least=1)
Traceback (most recent call last):
ValueError: limit must be a whole number >= 1, got 0
"""

from __future__ import annotations

import math

__all__ = ["exceptions", "number", "text", "whole"]


def number(
    field: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    finite: bool = True,
) -> float:
    """Return `value` if it is an int or a float within the bounds that are given.

    Args:
        field: what the user calls it.
        value: what the user gave.
        above: it must be greater.
        at_least: it must not be less.
        at_most: it must not be greater.
        below: it must be less.
        finite: it must not be infinite. NaN never passes, nor does an int that no float can hold.

    Raises:
        ValueError: it is not; the message has field, bound and value.
    """
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and _is_float(value)
        and not (finite and math.isinf(value))
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    ):
        return value
    bounds = ((">", above), (">=", at_least), ("<=", at_most), ("<", below))
    wanted = " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)
    kind = "finite number" if finite else "number"
    raise ValueError(f"{field} must be a {kind} {wanted}".rstrip() + f", got {_shown(value)}")


def whole(field: str, value: object, *, at_least: int, at_most: int | None = None) -> int:
    """Return `value` if it is an int, not a bool, within the bounds.

    Raises:
        ValueError: it is not.
    """
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= at_least
        and (at_most is None or value <= at_most)
    ):
        return value
    most = "" if at_most is None else f" and <= {at_most}"
    raise ValueError(f"{field} must be a whole number >= {at_least}{most}, got {_shown(value)}")


def exceptions(field: str, value: object) -> tuple[type[Exception], ...]:
    """Return `value` if it is a tuple of Exception classes; cancellation and exit are not among these.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, tuple) and all(
        isinstance(each, type) and issubclass(each, Exception) for each in value
    ):
        return value
    raise ValueError(f"{field} must be a tuple of Exception classes, got {_shown(value)}")


def text(field: str, value: object) -> str:
    """Return `value` if it is a str that is not empty.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, str) and value:
        return value
    raise ValueError(f"{field} must be a text that is not empty, got {_shown(value)}")


def _is_float(value: float) -> bool:
    try:
        return not math.isnan(value)
    except OverflowError:  # an int of more than 308 digits
        return False


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # its own repr fails, or it is an int of more than 4,300 digits
        return f"a {type(value).__name__} that cannot be shown"
