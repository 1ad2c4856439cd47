"""Proof of patterns/deadline.py."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns.clock import ManualClock
from patterns.deadline import HEADER, LONGEST, Deadline

durations = st.floats(min_value=0, max_value=LONGEST)


def test_it_shrinks_to_nothing_and_no_further() -> None:
    """What remains is what was given, less what has passed, and never less than 0."""
    clock = ManualClock()
    deadline = Deadline(2, clock=clock)
    assert (deadline.remaining(), deadline.expired) == (2, False)
    clock.jump(1.5)
    assert (deadline.remaining(), deadline.header()) == (0.5, "500")
    clock.jump(1.5)
    assert (deadline.remaining(), deadline.header(), deadline.expired) == (0, "0", True)


def test_a_step_of_the_calendar_changes_nothing() -> None:
    """An hour's correction by NTP neither ends nor extends a deadline."""
    clock = ManualClock()
    deadline = Deadline(2, clock=clock)
    clock.step_wall(3600)
    clock.step_wall(-7200)
    assert deadline.remaining() == 2


@given(durations, st.lists(st.floats(min_value=0, max_value=10), max_size=8))
def test_no_chain_of_hops_outlives_its_first_deadline(first: float, delays: list[float]) -> None:
    """However many services pass it on, the last one ends no later than the first caller's deadline."""
    clock = ManualClock()
    deadline = origin = Deadline(first, clock=clock)
    for delay in delays:
        deadline = Deadline.from_header(deadline.header(), at_most=LONGEST, clock=clock)
        assert deadline.remaining() <= origin.remaining() + 1e-6
        clock.jump(delay)


async def test_within_ends_the_body() -> None:
    """The body is cancelled at the deadline, by the deadline's own clock."""
    clock = ManualClock()
    deadline = Deadline(5, clock=clock)
    clock.jump(3)

    async def call() -> None:
        async with deadline.within():
            await clock.sleep(60)

    task = asyncio.ensure_future(call())
    await clock.advance(1.9)
    assert not task.done()
    await clock.advance(0.2)
    with pytest.raises(TimeoutError):
        await task


async def test_within_a_deadline_that_is_over_nothing_waits() -> None:
    """An expired deadline ends its body at the first wait."""
    with pytest.raises(TimeoutError):
        async with Deadline(0).within():
            await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize(("seconds", "left"), [(1, 1), (2, 2), (3, 2), (0, 0)])
def test_sooner_never_extends(seconds: float, left: float) -> None:
    """The limit of one attempt is cut to what the whole call has left."""
    deadline = Deadline(2, clock=ManualClock())
    assert deadline.sooner(seconds).remaining() == left
    assert deadline.remaining() == 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, 30), ("0", 0), ("250", 0.25), ("007", 0.007), ("30000", 30), ("86400000", 30)],
)
def test_header_is_cut_to_what_the_hop_grants(text: str | None, seconds: float) -> None:
    """No header, or one that asks for too long, is the hop's own limit."""
    assert Deadline.from_header(text, at_most=30, clock=ManualClock()).remaining() == seconds


MALFORMED = [
    "", " ", " 5", "5 ", "+5", "-5", "-0", "1_000", "1.5", "1e3", "0x10", "5m", "5\n", "\n5", "5\x00",
    "٥", "５", "²", "nan", "NaN", "inf", "5,5", "5, 5", "true",
    "86400001", "99999999", "100000000", "9" * 400, "9" * 100_000,
]  # fmt: skip


def check_malformed_are_refused(read: Any) -> None:
    """Each of MALFORMED is a ValueError that names the header, the value and the bound."""
    for text in MALFORMED:
        with pytest.raises(ValueError, match=HEADER) as caught:
            read(text)
        said = str(caught.value)
        assert "86400000" in said
        assert repr(text[:40]) in said
        assert len(said) < 200


def test_malformed_header_is_refused() -> None:
    """Blanks, signs, underscores, other scripts' digits, fractions, lists and long numbers are refused."""
    check_malformed_are_refused(lambda text: Deadline.from_header(text, at_most=30))


def test_naive_reading_of_the_header_is_caught() -> None:
    """`int()` takes blanks, signs, underscores and Arabic digits: the check above fails it."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_malformed_are_refused(lambda text: Deadline(int(text) / 1000))


@given(st.text())
def test_any_text_is_a_deadline_or_a_value_error(text: str) -> None:
    """Whatever a client sends, the result is within what is granted, or a ValueError."""
    try:
        deadline = Deadline.from_header(text, at_most=5, clock=ManualClock())
    except ValueError:
        return
    assert 0 <= deadline.remaining() <= 5
    assert text.isascii()
    assert text.isdecimal()


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, LONGEST + 1, "5", None, True, 10**400])
def test_seconds_out_of_bounds_are_refused(seconds: Any) -> None:
    """A deadline, an attempt's limit and a hop's grant are each a number from 0 to a day."""
    with pytest.raises(ValueError, match="seconds must be a finite number >= 0 and <= 86400"):
        Deadline(seconds)
    with pytest.raises(ValueError, match="seconds must be"):
        Deadline(1).sooner(seconds)
    for text in (None, "5"):
        with pytest.raises(ValueError, match="at_most must be"):
            Deadline.from_header(text, at_most=seconds)


def test_repr_says_what_is_left() -> None:
    """A log line shows the seconds, not an address."""
    assert repr(Deadline(1.25, clock=ManualClock())) == "<Deadline in 1.250 s>"
