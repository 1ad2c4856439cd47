"""Proof of patterns/scripted.py."""

from __future__ import annotations

import asyncio
import math

import pytest

from patterns.clock import ManualClock
from patterns.scripted import Scripted, ScriptExhausted, Step, fails, hangs, returns


async def test_answers_follow_the_script_in_order() -> None:
    """Each call takes the next step, whatever it is called with."""
    service = Scripted(returns(1), fails(KeyError("two")), returns(3))
    assert await service("any", argument=True) == 1
    with pytest.raises(KeyError, match="two"):
        await service()
    assert await service() == 3
    assert service.calls == 3


async def test_then_answers_every_later_call() -> None:
    """When the script has run out, `then` is the answer for ever."""
    service = Scripted(returns("first"), then=returns("later"))
    assert [await service() for _ in range(4)] == ["first", "later", "later", "later"]


async def test_call_beyond_the_script_fails_the_test_that_made_it() -> None:
    """A call that the test did not foresee is an assertion error that says which call it was."""
    service = Scripted(returns(None))
    await service()
    with pytest.raises(ScriptExhausted, match="call 2"):
        await service()
    assert issubclass(ScriptExhausted, AssertionError)


async def test_follow_replaces_what_is_left() -> None:
    """The service can be healed or broken while it runs; its counters go on."""
    service = Scripted(then=fails(ConnectionError()))
    with pytest.raises(ConnectionError):
        await service()
    service.follow(returns("better"), then=returns("well"))
    assert [await service(), await service()] == ["better", "well"]
    assert service.calls == 3


async def test_follow_without_then_forgets_the_old_last_word() -> None:
    """A new script does not fall back to the `then` of the old one."""
    service = Scripted(then=returns("old"))
    service.follow(returns("new"))
    assert await service() == "new"
    with pytest.raises(ScriptExhausted):
        await service()


async def test_answer_after_a_time_waits_on_the_clock_that_was_given() -> None:
    """A slow answer takes exactly its time on a manual clock and none of the real one."""
    clock = ManualClock()
    service = Scripted(returns("slow").after(30), clock=clock)
    task = asyncio.create_task(service())
    await clock.advance(29)
    assert not task.done()
    await clock.advance(1)
    assert await task == "slow"


async def test_error_after_a_time_is_raised_at_its_end() -> None:
    """A slow failure is slow first and a failure then."""
    clock = ManualClock()
    task = asyncio.create_task(Scripted(fails(OSError("late")).after(5), clock=clock)())
    await clock.advance(4)
    assert not task.done()
    await clock.advance(1)
    with pytest.raises(OSError, match="late"):
        await task


def test_after_leaves_the_step_it_was_called_on_unchanged() -> None:
    """A step can be shared between scripts: `after` returns another one."""
    quick = returns(1)
    assert quick.after(2) == Step(result=1, seconds=2)
    assert quick == Step(result=1)


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_negative_or_undefined_time_is_refused(bad: float) -> None:
    """A time that cannot pass is refused where the script is written."""
    with pytest.raises(ValueError, match="seconds must be"):
        returns(1).after(bad)


async def test_hanging_call_ends_only_by_cancellation() -> None:
    """A call that never answers outlives any time, and is counted when it is cancelled."""
    clock = ManualClock()
    service = Scripted(hangs(), clock=clock)
    task = asyncio.create_task(service())
    await clock.advance(1e6)
    assert not task.done()
    assert service.in_flight == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (service.in_flight, service.cancelled) == (0, 1)


async def test_concurrent_calls_are_counted_as_they_run() -> None:
    """`in_flight` is what runs now, `most_in_flight` the most that ever ran at one time."""
    clock = ManualClock()
    service = Scripted(then=returns(None).after(1), clock=clock)
    tasks = [asyncio.create_task(service()) for _ in range(3)]
    await clock.advance(0)
    assert service.in_flight == 3
    await clock.advance(1)
    await asyncio.gather(*tasks)
    again = asyncio.create_task(service())
    await clock.advance(1)
    await again
    assert (service.calls, service.in_flight, service.most_in_flight, service.cancelled) == (4, 0, 3, 0)


async def test_in_flight_returns_to_zero_after_a_failure() -> None:
    """A failed call has ended, as a successful one has."""
    service = Scripted(fails(ValueError()))
    with pytest.raises(ValueError):
        await service()
    assert service.in_flight == 0


async def test_every_answer_gives_other_tasks_a_turn() -> None:
    """Even an instant answer yields once, as a real remote call does."""
    ran: list[str] = []

    async def other() -> None:
        ran.append("other")

    task = asyncio.create_task(other())
    await Scripted(returns(None))()
    assert ran == ["other"]
    await task


async def test_error_raised_a_thousand_times_keeps_a_short_traceback() -> None:
    """One error object can be the answer for ever: its traceback does not grow with each call."""
    error = ConnectionError("down")
    service = Scripted(then=fails(error))
    for _ in range(1000):
        with pytest.raises(ConnectionError):
            await service()
    length, frame = 0, error.__traceback__
    while frame is not None:
        length, frame = length + 1, frame.tb_next
    assert length < 10
