"""Proof of patterns/bounds.py."""

from __future__ import annotations

import asyncio
import math
from decimal import Decimal
from typing import Any

import pytest

from patterns.bounds import exceptions, number, text, whole

NO_NUMBERS = [True, False, None, "2", b"2", math.nan, Decimal(2), 2j, [2]]


@pytest.mark.parametrize("bad", [*NO_NUMBERS, math.inf, -math.inf])
def test_what_is_no_number_is_refused(bad: Any) -> None:
    """Bools, texts, NaN and infinity are no finite numbers, and the message shows what was given."""
    with pytest.raises(ValueError) as caught:
        number("deadline", bad)
    assert str(caught.value) == f"deadline must be a finite number, got {bad!r}"


@pytest.mark.parametrize("bad", [*NO_NUMBERS, 2.0, 2.5, math.inf])
def test_what_is_not_whole_is_refused(bad: Any) -> None:
    """A float is no count, even if it has no fraction."""
    with pytest.raises(ValueError) as caught:
        whole("limit", bad, at_least=1)
    assert str(caught.value) == f"limit must be a whole number >= 1, got {bad!r}"


def test_bounds_are_as_they_say() -> None:
    """`above` and `below` exclude their bounds, the others include theirs, and the message names all."""
    assert number("x", 0.1, above=0) == 0.1
    assert [number("x", value, at_least=0, at_most=1) for value in (0, 1)] == [0, 1]
    with pytest.raises(ValueError, match=r"^x must be a finite number > 0, got 0$"):
        number("x", 0, above=0)
    for bad in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"^x must be a finite number >= 0 and <= 1, got {bad}$"):
            number("x", bad, at_least=0, at_most=1)
    assert number("x", 0.9, below=1) == 0.9
    with pytest.raises(ValueError, match=r"^x must be a finite number >= 0 and < 1, got 1$"):
        number("x", 1, at_least=0, below=1)
    assert [whole("n", value, at_least=1, at_most=2) for value in (1, 2)] == [1, 2]
    for bad in (0, 3):
        with pytest.raises(ValueError, match=rf"^n must be a whole number >= 1 and <= 2, got {bad}$"):
            whole("n", bad, at_least=1, at_most=2)


def test_infinity_passes_only_where_it_may() -> None:
    """With finite=False infinity is a number like others, NaN still is none."""
    assert number("ttl", math.inf, above=0, finite=False) == math.inf
    with pytest.raises(ValueError, match=r"^ttl must be a number > 0, got -inf$"):
        number("ttl", -math.inf, above=0, finite=False)
    with pytest.raises(ValueError, match=r"^ttl must be a number > 0, got nan$"):
        number("ttl", math.nan, above=0, finite=False)


def test_only_exceptions_are_exceptions() -> None:
    """Cancellation, exit, instances, and what is not in a tuple are refused."""
    assert exceptions("on", (ValueError, OSError)) == (ValueError, OSError)
    assert exceptions("on", ()) == ()
    bad: Any
    for bad in (
        ValueError,
        [ValueError],
        (ValueError(),),
        (asyncio.CancelledError,),
        (KeyboardInterrupt,),
        None,
    ):
        with pytest.raises(ValueError, match=r"^on must be a tuple of Exception classes, got "):
            exceptions("on", bad)


def test_only_texts_are_texts() -> None:
    """An empty text, bytes and None name nothing."""
    assert text("name", "payments") == "payments"
    bad: Any
    for bad in ("", b"payments", None, 3):
        with pytest.raises(ValueError, match=r"^name must be a text that is not empty, got "):
            text("name", bad)


class Mute:
    """An object whose repr fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@pytest.mark.parametrize("finite", [True, False])
def test_an_int_that_no_float_can_hold_is_refused(finite: bool) -> None:
    """Whole seconds that would overflow in the event loop are a ValueError here."""
    with pytest.raises(ValueError, match=r"^x must be a .*number > 0, got 1000"):
        number("x", 10**400, above=0, finite=finite)


def test_what_cannot_be_shown_is_refused_all_the_same() -> None:
    """A value whose repr fails does not replace the sentence by an error of its own."""
    for value in (Mute(), -(10**5000)):
        for check in (
            lambda value: number("x", value, above=0),
            lambda value: whole("x", value, at_least=1),
            lambda value: exceptions("x", value),
            lambda value: text("x", value),
        ):
            with pytest.raises(ValueError, match=r"^x must be .*, got a \w+ that cannot be shown$"):
                check(value)
