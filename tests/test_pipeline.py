"""Proof of patterns/pipeline.py."""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
from typing import Any

import pytest

from patterns.clock import SYSTEM_CLOCK, ManualClock
from patterns.pipeline import Pipeline, TimedOut, Timeout, in_order
from patterns.scripted import Scripted, fails, hangs, returns


class Traced:
    """A guard that notes when it is entered and left."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    async def call(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.notes.append(f"into {self.name}")
        try:
            return await fn(*args, **kwargs)
        finally:
            self.notes.append(f"out of {self.name}")


async def add(left: int, *, right: int) -> int:
    return left + right


async def test_the_first_guard_is_outermost() -> None:
    """Guards are entered in the declared order and left in the opposite one, by call and by decorator."""
    notes: list[str] = []
    pipeline = Pipeline(Traced("a", notes), Traced("b", notes))
    assert await pipeline.call(add, 1, right=2) == 3
    assert notes == ["into a", "into b", "out of b", "out of a"]
    notes.clear()
    assert await pipeline(add)(1, right=2) == 3
    assert notes == ["into a", "into b", "out of b", "out of a"]
    assert pipeline(add).__name__ == "add"
    assert str(pipeline) == "Traced > Traced"


async def test_each_guard_gets_the_arguments_of_the_call() -> None:
    """A guard sees the arguments themselves, so that a fallback can hand them to its levels."""
    seen: list[object] = []

    class Looking(Traced):
        async def call(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            seen.append((args, kwargs))
            return await fn(*args, **kwargs)

    await Pipeline(Looking("a", []), Looking("b", [])).call(add, 1, right=2)
    assert seen == [((1,), {"right": 2})] * 2


async def test_one_pipeline_serves_many_calls_at_once() -> None:
    """Calls under way at the same time do not mix their functions or arguments."""
    clock = ManualClock()
    pipeline = Pipeline(Timeout(5.0, clock=clock), Timeout(4.0, clock=clock))

    async def later(number: int) -> int:
        await clock.sleep(1 + number % 3)
        return number

    calls = [asyncio.ensure_future(pipeline.call(later, number)) for number in range(50)]
    await clock.advance(10)
    assert await asyncio.gather(*calls) == list(range(50))


def test_what_is_no_pipeline_is_refused() -> None:
    """Nothing, a guard twice, a class, and what has no `call` are errors that name the place."""
    guard = Timeout(1.0)
    with pytest.raises(ValueError, match="at least one"):
        Pipeline()
    with pytest.raises(ValueError, match=r"guards\[1\] must not be in the pipeline already.*Timeout\(1.0\)"):
        Pipeline(guard, guard)
    with pytest.raises(ValueError, match=r"guards\[0\] must have a method `call`, got 3"):
        Pipeline(3)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ValueError, match=r"guards\[1\] must have a method `call`, got <class"):
        Pipeline(guard, Timeout)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(TypeError, match=r"use\s+`pipeline.call`"):
        Pipeline(guard)(Scripted())
    Pipeline(guard, Timeout(1.0))


def test_what_cannot_be_decorated_is_told_what_to_do() -> None:
    """A plain def and a generator are refused, with the way that works."""

    async def stream() -> Any:
        yield 1

    wrong: Any
    for wrong in (len, stream):
        with pytest.raises(TypeError, match=r"asyncio\.to_thread.*collect the items of a generator"):
            Pipeline(Timeout(1.0))(wrong)


async def test_a_pipeline_in_a_pipeline_stands_for_its_guards() -> None:
    """Order and calls are those of the guards in a row, and a guard that is in both is found."""
    notes: list[str] = []
    a, b, c = (Traced(name, notes) for name in "abc")
    pipeline = Pipeline(a, Pipeline(b), c)
    assert pipeline.guards == (a, b, c)
    assert str(pipeline) == "Traced > Traced > Traced"
    assert await pipeline.call(add, 1, right=2) == 3
    assert notes == ["into a", "into b", "into c", "out of c", "out of b", "out of a"]
    with pytest.raises(ValueError, match=r"guards\[2\] must not be in the pipeline already"):
        Pipeline(a, Pipeline(b, a))


def test_in_order_leaves_out_what_is_not_given() -> None:
    """The order is the same however the guards are named, and none is made up."""
    notes: list[str] = []
    inner, outer = Timeout(1.0), Timeout(9.0)
    a, b, c, d = (Traced(name, notes) for name in "abcd")
    assert in_order(
        timeout=inner, bulkhead=d, breaker=c, retry=b, total_timeout=outer, fallback=a
    ).guards == (
        a,
        outer,
        b,
        c,
        d,
        inner,
    )
    assert in_order(timeout=inner, retry=b).guards == (b, inner)
    with pytest.raises(ValueError, match="at least one"):
        in_order()


@pytest.mark.parametrize("total", [1.0, 2.0])
def test_a_total_no_longer_than_an_attempt_is_refused(total: float) -> None:
    """It would end every attempt from outside of the breaker, which then sees no time-out."""
    with pytest.raises(
        ValueError, match=rf"total_timeout must be longer than timeout, 2\.0 s, got {total} s"
    ):
        in_order(total_timeout=Timeout(total), timeout=Timeout(2.0))
    in_order(total_timeout=Timeout(2.1), timeout=Timeout(2.0))


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, True, "2", None])
def test_a_timeout_must_be_a_time(bad: Any) -> None:
    """A limit that is none is refused when it is made."""
    with pytest.raises(ValueError, match="seconds must be a finite number > 0, got"):
        Timeout(bad)


async def test_a_timeout_ends_the_call_at_its_limit() -> None:
    """The call is cancelled at the limit, not before, and the error says the limit."""
    clock = ManualClock()
    service = Scripted(hangs())
    call = asyncio.ensure_future(Timeout(2.0, clock=clock).call(service))
    await clock.advance(1.9)
    assert service.in_flight == 1
    await clock.advance(0.1)
    with pytest.raises(TimedOut, match=r"timed out after 2\.0 s") as caught:
        await call
    assert caught.value.seconds == 2.0
    assert service.cancelled == 1
    assert clock.sleepers == 0


async def test_a_timeout_changes_nothing_of_what_is_in_time() -> None:
    """Results and errors go through, a TimeoutError of the dependency too."""
    clock = ManualClock()
    own = TimeoutError("theirs")
    limit = Timeout(2.0, clock=clock)
    assert await limit.call(Scripted(returns("yes"))) == "yes"
    with pytest.raises(TimeoutError, match="theirs") as caught:
        await limit.call(Scripted(fails(own)))
    assert caught.value is own
    assert clock.sleepers == 0


async def test_a_caller_who_hangs_up_is_not_a_timeout() -> None:
    """Cancellation from outside stays a cancellation."""
    clock = ManualClock()
    call = asyncio.ensure_future(Timeout(2.0, clock=clock).call(Scripted(hangs())))
    await clock.advance(1.0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert clock.sleepers == 0


async def test_nested_timeouts_say_which_was_up() -> None:
    """Of two time-outs the one whose time was up is named, also when the outer is the shorter."""
    clock = ManualClock()
    for outer, inner in ((1.0, 3.0), (3.0, 1.0)):
        pipeline = Pipeline(Timeout(outer, clock=clock), Timeout(inner, clock=clock))
        call = asyncio.ensure_future(pipeline.call(Scripted(hangs())))
        await clock.advance(1.0)
        with pytest.raises(TimedOut, match=r"1\.0 s"):
            await call


async def test_equal_limits_end_the_call_once() -> None:
    """Two limits that are up in the same instant are one TimedOut, and no cancellation is left over."""
    for clock, limit in ((ManualClock(), 1.0), (SYSTEM_CLOCK, 0.01)):
        pipeline = Pipeline(Timeout(limit, clock=clock), Timeout(limit, clock=clock))
        call = asyncio.ensure_future(pipeline.call(Scripted(hangs())))
        if isinstance(clock, ManualClock):
            await clock.advance(limit)
        with pytest.raises(TimedOut):
            await call
        assert call.cancelling() == 0


class Odd(TimeoutError, asyncio.CancelledError):
    """A time-out that is a cancellation by its bases."""


@pytest.mark.parametrize("kind", [TimeoutError, Odd, TimedOut])
async def test_a_time_out_of_the_call_is_never_taken_for_ours(kind: type[TimeoutError]) -> None:
    """Whatever the class of the call's own TimeoutError, the caller gets that object."""
    own = TimedOut(7.0) if kind is TimedOut else kind("theirs")
    for clock in (ManualClock(), SYSTEM_CLOCK):
        with pytest.raises(TimeoutError) as caught:
            await Timeout(5.0, clock=clock).call(Scripted(fails(own)))
        assert caught.value is own


@pytest.mark.parametrize(
    "own", [None, ConnectionError("c"), TimeoutError("t"), ExceptionGroup("g", [OSError()])]
)
async def test_who_swallows_the_cancellation_has_the_last_word(own: Exception | None) -> None:
    """What a call returns or raises after its time was up is passed on, and leaves no cancellation behind."""
    for clock in (ManualClock(), SYSTEM_CLOCK):

        async def stubborn() -> str:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                if own is not None:
                    raise own from None
            return "late"

        call = asyncio.ensure_future(Timeout(0.01, clock=clock).call(stubborn))
        if isinstance(clock, ManualClock):
            await clock.advance(0.01)
        ended = (await asyncio.gather(call, return_exceptions=True))[0]
        assert ended is own if own else ended == "late"
        assert call.cancelling() == 0


async def test_tasks_of_the_call_end_with_it() -> None:
    """A TaskGroup inside is cancelled as one, and the error is still TimedOut."""
    clock = ManualClock()
    service = Scripted(then=hangs())

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(service())
            group.create_task(service())

    call = asyncio.ensure_future(Timeout(1.0, clock=clock).call(both))
    await clock.advance(1.0)
    with pytest.raises(TimedOut):
        await call
    assert (service.cancelled, service.in_flight) == (2, 0)


def test_timed_out_survives_copying_and_pickling() -> None:
    """In another process the error has the same limit and the same message."""
    error = TimedOut(2.0)
    for same in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (str(same), same.seconds) == ("timed out after 2.0 s", 2.0)
