"""Proof of patterns/flight.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from patterns.flight import FlightCancelled, Flights
from tests.eventually import eventually

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable


class Work:
    """Something that is done while the gate is shut, and how often it was begun and cleaned up."""

    def __init__(self, result: object = 1) -> None:
        self.result = result
        self.begun = self.ended = self.cancelled = 0
        self.gate = asyncio.Event()
        self.clean_up = asyncio.Event()
        self.clean_up.set()

    async def __call__(self) -> object:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await self.clean_up.wait()
            raise
        finally:
            self.ended += 1
        if isinstance(self.result, BaseException):
            raise self.result.with_traceback(None)
        return self.result


async def turns(number: int = 5) -> None:
    """Let ready tasks run."""
    for _ in range(number):
        await asyncio.sleep(0)


async def outcome_of(call: Awaitable[object]) -> object:
    """Return what `call` returned, or the name of what it raised."""
    try:
        return await call
    except (Exception, asyncio.CancelledError) as error:
        return type(error).__name__


async def test_all_who_want_the_same_share_one_task() -> None:
    """A hundred callers of one key begin it once and get its result; another key has its own."""
    flights: Flights[object] = Flights()
    work, other = Work(), Work("other")
    calls = [asyncio.create_task(flights.share("a", work)) for _ in range(100)]
    apart = asyncio.create_task(flights.share("b", other))
    await turns()
    assert (work.begun, other.begun) == (1, 1)
    work.gate.set()
    other.gate.set()
    assert await asyncio.gather(*calls) == [1] * 100
    assert await apart == "other"


async def test_an_error_goes_to_all_and_is_kept_for_nobody() -> None:
    """Those who wait get the error; who comes after begins anew."""
    flights: Flights[object] = Flights()
    work = Work(OSError())
    work.gate.set()
    calls = [asyncio.create_task(flights.share("a", work)) for _ in range(10)]
    assert [await outcome_of(call) for call in calls] == ["OSError"] * 10
    again = Work("again")
    again.gate.set()
    assert await flights.share("a", again) == "again"
    assert work.begun == 1


async def test_who_comes_when_the_task_has_just_ended_begins_another() -> None:
    """A result is handed to those who waited for it, not kept: not even until they have read it."""
    flights: Flights[object] = Flights()
    first, second = Work(1), Work(2)
    first.gate.set()
    second.gate.set()
    late: list[asyncio.Task[object]] = []

    async def ends() -> object:
        asyncio.get_running_loop().call_soon(
            lambda: late.append(asyncio.create_task(flights.share("a", second)))
        )
        return await first()

    assert await flights.share("a", ends) == 1
    await eventually(lambda: late, within=1)
    assert await late[0] == 2


async def test_a_caller_that_leaves_takes_the_task_from_nobody() -> None:
    """Also the one that began it."""
    flights: Flights[object] = Flights()
    work = Work()
    first, second = (asyncio.create_task(flights.share("a", work)) for _ in range(2))
    await turns()
    first.cancel()
    assert await outcome_of(first) == "CancelledError"
    assert work.cancelled == 0
    work.gate.set()
    assert await second == 1


async def test_the_last_to_leave_takes_the_task_along_and_waits_for_its_end() -> None:
    """Its cancellation is told when the task has cleaned up, and meanwhile a newcomer begins another."""
    flights: Flights[object] = Flights()
    work, anew = Work(), Work("anew")
    anew.gate.set()
    work.clean_up.clear()
    calls = [asyncio.create_task(flights.share("a", work)) for _ in range(3)]
    await turns()
    for call in calls:
        call.cancel()
    await turns()
    assert work.cancelled == 1
    assert [call.done() for call in calls] == [True, True, False], "the last left before the task had ended"
    assert await flights.share("a", anew) == "anew"
    work.clean_up.set()
    assert await outcome_of(calls[2]) == "CancelledError"
    assert work.ended == 1


async def test_a_task_that_cancels_itself_cancels_no_caller() -> None:
    """They get FlightCancelled, which is an Exception, and go on."""
    flights: Flights[object] = Flights()

    async def gives_up() -> object:
        raise asyncio.CancelledError

    calls = [asyncio.create_task(flights.share("a", gives_up)) for _ in range(3)]
    assert [await outcome_of(call) for call in calls] == ["FlightCancelled"] * 3
    assert issubclass(FlightCancelled, Exception)


async def test_a_flight_that_was_cancelled_before_it_began_is_over() -> None:
    """As at the end of a loop, which cancels every task: nothing is left that others would join."""
    flights: Flights[object] = Flights()
    work = Work()
    work.gate.set()
    before = asyncio.all_tasks()
    first = asyncio.create_task(flights.share("a", work))
    await asyncio.sleep(0)
    (flight,) = asyncio.all_tasks() - before - {first}
    flight.cancel()
    assert await outcome_of(first) == "FlightCancelled"
    assert await flights.share("a", work) == 1


async def test_an_error_that_nobody_waits_for_is_no_noise() -> None:
    """The last caller has left, and the task ends in an error: the loop has nothing to report."""
    flights: Flights[object] = Flights()

    async def breaks_when_cancelled() -> object:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError

    call = asyncio.create_task(flights.share("a", breaks_when_cancelled))
    await turns()
    call.cancel()
    assert await outcome_of(call) == "CancelledError"


async def test_a_thousand_cancellations_leave_nothing(rng: random.Random) -> None:
    """Whoever is cancelled whenever, those who stay get the result, and no task or key is left."""
    flights: Flights[object] = Flights()
    for _ in range(100):
        work = Work()
        calls = [asyncio.create_task(flights.share("a", work)) for _ in range(10)]
        leaving = rng.sample(calls, rng.randint(0, 10))
        for call in leaving:
            await turns(rng.randrange(3))
            call.cancel()
        await turns(rng.randrange(3))
        work.gate.set()
        got = {call: await outcome_of(call) for call in calls}
        assert all(got[call] == 1 for call in calls if call not in leaving)
        assert all(got[call] in {1, "CancelledError"} for call in leaving)
        assert work.begun == work.ended
    assert not flights._under_way


async def test_single_flight_owned_by_its_first_caller_fails_this_test() -> None:
    """A future in a dictionary, which the first caller fills, takes the others down when that one leaves."""
    under_way: dict[str, asyncio.Future[object]] = {}

    async def share(key: str, begin: Work) -> object:
        if key in under_way:
            return await under_way[key]
        future = under_way[key] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(await begin())
        except BaseException:
            future.cancel()
            raise
        finally:
            del under_way[key]
        return future.result()

    work = Work()
    first, second = (asyncio.create_task(share("a", work)) for _ in range(2))
    await turns()
    first.cancel()
    work.gate.set()
    assert await outcome_of(second) == "CancelledError"
    with pytest.raises(asyncio.CancelledError):
        await first
