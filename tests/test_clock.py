"""Proof of patterns/clock.py."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns.clock import SYSTEM_CLOCK, Clock, ManualClock, SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

seconds = st.floats(min_value=0.001, max_value=1e6)


both = pytest.mark.parametrize("make", [SystemClock, ManualClock], ids=["system", "manual"])


# The system clock


def test_system_clock_reads_the_monotonic_clock_of_the_machine() -> None:
    """A duration is read from the machine's monotonic clock."""
    before = time.monotonic()
    assert before <= SYSTEM_CLOCK.monotonic() <= time.monotonic()


def test_system_clock_wall_is_aware_and_utc() -> None:
    """Calendar time is never naive."""
    wall = SYSTEM_CLOCK.wall()
    assert wall.tzinfo is UTC
    assert abs(wall - datetime.now(UTC)) < timedelta(seconds=5)


async def test_system_clock_sleeps_at_least_as_long_as_asked() -> None:
    """A sleep of 20 ms does not end early, as seen on the same clock."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    await SYSTEM_CLOCK.sleep(0.02)
    assert loop.time() - start >= 0.02 - time.get_clock_info("monotonic").resolution


async def test_system_clock_ends_a_body_that_takes_too_long() -> None:
    """The body is cancelled and the caller sees TimeoutError, not CancelledError."""
    seen: list[type[BaseException]] = []
    with pytest.raises(TimeoutError):
        await _within(SYSTEM_CLOCK, 0.01, seen)
    assert seen == [asyncio.CancelledError]


# What both clocks do alike


@both
async def test_sleep_of_zero_or_less_lets_other_tasks_run(make: Callable[[], Clock]) -> None:
    """Zero, a negative number and NaN yield once, and do not wait."""
    clock = make()
    for nothing in (0.0, -1.0, math.nan):
        ran: list[str] = []
        other = asyncio.create_task(_note(ran, "other"))
        await clock.sleep(nothing)
        assert ran == ["other"], nothing
        await other


@both
async def test_timeout_of_none_sets_no_limit(make: Callable[[], Clock]) -> None:
    """None means that the body may take as long as it likes."""
    clock = make()
    async with clock.timeout(None):
        await (clock.advance(1e6) if isinstance(clock, ManualClock) else clock.sleep(0.001))


@both
@pytest.mark.parametrize("limit", [0.0, -1.0])
async def test_timeout_of_zero_ends_the_body_at_its_first_wait(
    make: Callable[[], Clock], limit: float
) -> None:
    """A deadline that has already passed lets the body run only to its first await."""
    clock = make()
    steps: list[str] = []

    async def body() -> None:
        async with clock.timeout(limit):
            steps.append("begun")
            await asyncio.sleep(0)
            steps.append("waited")

    with pytest.raises(TimeoutError):
        await body()
    assert steps == ["begun"]


@both
async def test_timeout_of_zero_spares_a_body_that_never_waits(make: Callable[[], Clock]) -> None:
    """Work that is already done is not thrown away."""
    clock = make()
    async with clock.timeout(0):
        done = True
    assert done


@both
async def test_body_that_ends_in_time_leaves_no_task_and_no_alarm(make: Callable[[], Clock]) -> None:
    """After the block no task runs and nothing will go off."""
    clock = make()
    tasks = asyncio.all_tasks()
    async with clock.timeout(3600):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks
    if isinstance(clock, ManualClock):
        assert clock.sleepers == 0
        await clock.advance(7200)


@both
async def test_timeout_lets_the_bodys_own_error_through(make: Callable[[], Clock]) -> None:
    """An error of the body is not turned into anything else, and no alarm stays behind."""
    clock = make()
    with pytest.raises(KeyError):
        async with clock.timeout(3600):
            raise KeyError("mine")
    if isinstance(clock, ManualClock):
        assert clock.sleepers == 0


@both
async def test_inner_timeout_leaves_the_outer_one_standing(make: Callable[[], Clock]) -> None:
    """Of two nested limits the shorter one ends its own block only."""
    clock = make()
    reached = False
    async with clock.timeout(3600):
        with pytest.raises(TimeoutError):
            async with clock.timeout(0):
                await asyncio.sleep(0)
        reached = True
    assert reached


@both
async def test_outer_timeout_passes_through_an_inner_one_as_cancellation(make: Callable[[], Clock]) -> None:
    """The inner block sees CancelledError; only the outer block turns it into TimeoutError."""
    clock = make()
    inner: list[type[BaseException]] = []

    async def outer() -> None:
        async with clock.timeout(0):
            await _within(clock, 3600, inner)

    with pytest.raises(TimeoutError):
        await outer()
    assert inner == [asyncio.CancelledError]


@both
async def test_cancellation_from_outside_is_not_a_timeout(make: Callable[[], Clock]) -> None:
    """A cancelled task ends cancelled, however long its limit was."""
    clock = make()
    task = asyncio.create_task(_within(clock, 3600))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@both
async def test_cancellation_wins_over_a_timeout_of_the_same_moment(make: Callable[[], Clock]) -> None:
    """When both come before the task can run, the cancellation is the one that is kept."""
    clock = make()
    task = asyncio.create_task(_within(clock, 0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@both
async def test_body_that_swallows_the_cancellation_ends_without_error(make: Callable[[], Clock]) -> None:
    """A body that finishes its work after the limit keeps its result, as with asyncio.timeout."""
    clock = make()
    async with clock.timeout(0):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        finished = True
    assert finished
    await asyncio.sleep(0)  # no cancellation is left over for the code after the block


# The clock that is moved by hand


async def test_manual_clock_stands_still_until_moved() -> None:
    """Real time does not move it."""
    clock = ManualClock(start=5)
    await SystemClock().sleep(0.002)
    assert clock.monotonic() == 5
    assert clock.wall() == datetime(2026, 1, 1, tzinfo=UTC)


def test_wall_must_be_aware() -> None:
    """A naive datetime is refused at once, by name."""
    with pytest.raises(ValueError, match="aware"):
        ManualClock(wall=datetime(2026, 1, 1))  # noqa: DTZ001 - the naive datetime is what is refused


def test_wall_is_told_in_utc() -> None:
    """A start in another time zone is the same moment, told in UTC."""
    there = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    wall = ManualClock(wall=there).wall()
    assert wall == there
    assert wall.tzinfo is UTC


async def test_wall_moves_with_the_clock() -> None:
    """Both ways to move time move the calendar by the same amount."""
    clock = ManualClock()
    await clock.advance(60)
    clock.jump(30)
    assert clock.wall() == datetime(2026, 1, 1, 0, 1, 30, tzinfo=UTC)


async def test_step_of_the_wall_wakes_nobody_and_changes_no_duration() -> None:
    """A step of calendar time, either way, is invisible to durations."""
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(10))
    await asyncio.sleep(0)
    for step in (3600, -7200):
        clock.step_wall(step)
        await clock.advance(0)
        assert clock.monotonic() == 0
        assert not task.done()
    assert clock.wall() == datetime(2025, 12, 31, 23, tzinfo=UTC)
    await clock.advance(10)
    assert task.done()


@given(st.lists(seconds, max_size=50))
def test_wall_and_monotonic_never_drift_apart(steps: list[float]) -> None:
    """After any number of small moves the two clocks agree to the microsecond."""
    clock = ManualClock()
    for step in steps:
        clock.jump(step)
    assert clock.wall() - datetime(2026, 1, 1, tzinfo=UTC) == timedelta(seconds=clock.monotonic())


@pytest.mark.parametrize("bad", [-1.0, -0.001, math.nan, math.inf, -math.inf])
async def test_time_does_not_go_backwards_or_past_every_bound(bad: float) -> None:
    """A negative, endless or undefined move is refused and moves nothing."""
    clock = ManualClock()
    with pytest.raises(ValueError, match="seconds must be"):
        clock.jump(bad)
    with pytest.raises(ValueError, match="seconds must be"):
        await clock.advance(bad)
    assert clock.monotonic() == 0


async def test_sleeper_wakes_at_its_due_time_and_not_before() -> None:
    """An hour of sleep ends when an hour has been advanced, to the last bit."""
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(3600))
    await clock.advance(3599)
    assert not task.done()
    await clock.advance(1)
    assert task.done()


@given(st.lists(seconds, min_size=1, max_size=20))
def test_advance_runs_each_sleeper_at_its_own_time_in_order(naps: list[float]) -> None:
    """One long advance looks to each sleeper as if time had flowed: each reads its own due time, in order."""
    woken: list[tuple[float, int]] = []

    async def nap(clock: ManualClock, length: float, number: int) -> None:
        await clock.sleep(length)
        woken.append((clock.monotonic(), number))

    async def main() -> None:
        clock = ManualClock()
        tasks = [asyncio.create_task(nap(clock, length, n)) for n, length in enumerate(naps)]
        await clock.advance(max(naps))
        assert all(task.done() for task in tasks)
        assert clock.sleepers == 0

    asyncio.run(main())
    assert woken == sorted((length, n) for n, length in enumerate(naps))


@given(st.lists(seconds, min_size=1, max_size=10), st.integers(min_value=1, max_value=5))
def test_moving_in_parts_is_the_same_as_moving_at_once(naps: list[float], parts: int) -> None:
    """The order in which tasks wake does not depend on how the test cuts its advances."""

    async def order(cuts: int) -> list[int]:
        clock, woken = ManualClock(), list[int]()

        async def nap(length: float, number: int) -> None:
            await clock.sleep(length)
            woken.append(number)

        tasks = [asyncio.create_task(nap(length, n)) for n, length in enumerate(naps)]
        for _ in range(cuts):
            await clock.advance(max(naps) / cuts)
        await clock.advance(1)
        await asyncio.gather(*tasks)
        return woken

    assert asyncio.run(order(1)) == asyncio.run(order(parts))


async def test_advance_follows_a_task_that_sleeps_again_and_again() -> None:
    """A loop that sleeps a second runs once for each second of one advance."""
    clock = ManualClock()
    beats: list[float] = []

    async def beat() -> None:
        while True:
            await clock.sleep(1)
            beats.append(clock.monotonic())

    task = asyncio.create_task(beat())
    await clock.advance(5)
    task.cancel()
    assert beats == [1, 2, 3, 4, 5]


async def test_advance_reaches_a_sleep_that_begins_after_it_was_called() -> None:
    """A task that was created but has not run yet sleeps from the time before the advance."""
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(2))
    await clock.advance(2)
    assert task.done()


async def test_jump_wakes_everyone_late_and_at_once() -> None:
    """After a jump each sleeper that is due reads the time after the jump: what a paused process sees."""
    clock = ManualClock()
    read: list[float] = []

    async def nap(length: float) -> None:
        await clock.sleep(length)
        read.append(clock.monotonic())

    tasks = [asyncio.create_task(nap(length)) for length in (1, 2, 30)]
    await asyncio.sleep(0)
    clock.jump(10)
    assert read == []
    await asyncio.gather(*tasks[:2])
    assert read == [10, 10]
    assert clock.sleepers == 1
    await clock.advance(20)
    assert read == [10, 10, 30]


async def test_cancelled_sleeper_is_forgotten() -> None:
    """A cancelled sleep does not count, and its time passes without a trace."""
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(1))
    await asyncio.sleep(0)
    assert clock.sleepers == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.sleepers == 0
    await clock.advance(2)


async def test_sleeper_cancelled_in_the_moment_it_is_due_stays_cancelled() -> None:
    """Waking a sleep whose task has just been cancelled neither fails nor revives it."""
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(1))
    await asyncio.sleep(0)
    task.cancel()
    clock.jump(1)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_manual_timeout_goes_off_at_its_time_and_not_before() -> None:
    """The limit is measured on the clock that was given, to the last bit."""
    clock = ManualClock()
    task = asyncio.create_task(_within(clock, 10))
    await clock.advance(9.999)
    assert not task.done()
    await clock.advance(0.001)
    with pytest.raises(TimeoutError):
        await task
    assert clock.monotonic() == pytest.approx(10)


async def test_body_that_would_end_exactly_at_its_limit_is_ended_by_it() -> None:
    """A limit goes off before a sleep of equal length that began inside it, as on a real loop."""
    clock = ManualClock()
    task = asyncio.create_task(_sleep_within(clock, limit=5, nap=5))
    await clock.advance(5)
    with pytest.raises(TimeoutError):
        await task


async def test_cancellation_and_manual_timeout_in_one_moment_end_in_cancellation() -> None:
    """A task that is cancelled while its alarm rings is cancelled: shutdown is never taken for slowness."""
    clock = ManualClock()
    task = asyncio.create_task(_within(clock, 10))
    await asyncio.sleep(0)
    clock.jump(10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_body_that_ends_while_the_alarm_rings_is_left_alone() -> None:
    """An alarm that rings in the body's last step harms nothing after the block."""
    clock = ManualClock()
    async with clock.timeout(10):
        clock.jump(10)
    await clock.advance(10)


async def test_nested_manual_timeouts_go_off_in_order_of_length() -> None:
    """Three limits of different lengths each end their own block at their own time."""
    clock = ManualClock()
    ended: list[tuple[str, float]] = []

    async def series() -> None:
        for name, length in (("short", 1.0), ("middle", 2.0), ("long", 3.0)):
            try:
                async with clock.timeout(length):
                    await asyncio.get_running_loop().create_future()
            except TimeoutError:
                ended.append((name, clock.monotonic()))

    async def nested() -> None:
        try:
            async with clock.timeout(100):
                await series()
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            ended.append(("outer", clock.monotonic()))

    task = asyncio.create_task(nested())
    await clock.advance(100)
    await task
    assert ended == [("short", 1), ("middle", 3), ("long", 6), ("outer", 100)]


async def test_sleepers_counts_timeouts_too() -> None:
    """What waits on the clock can be seen from outside, so that a test knows when to move it."""
    clock = ManualClock()
    task = asyncio.create_task(_sleep_within(clock, limit=10, nap=20))
    await asyncio.sleep(0)
    assert clock.sleepers == 2
    await clock.advance(10)
    with pytest.raises(TimeoutError):
        await task
    assert clock.sleepers == 0


async def test_ten_thousand_limits_that_were_met_cost_the_next_advance_nothing() -> None:
    """Limits that never went off are dropped, not stepped through one by one."""
    clock = ManualClock()
    for _ in range(10_000):
        async with clock.timeout(3600):
            pass
    settled = 0
    settle = clock._settle

    async def counted() -> None:
        nonlocal settled
        settled += 1
        await settle()

    clock._settle = counted  # type: ignore[method-assign]  # counts the turns an advance takes
    await clock.advance(7200)
    assert settled == 2


async def _note(notes: list[str], text: str) -> None:
    notes.append(text)


async def _within(clock: Clock, limit: float, seen: list[type[BaseException]] | None = None) -> None:
    """Wait for ever within `limit`, and note what ends the wait."""
    async with clock.timeout(limit):
        try:
            await asyncio.get_running_loop().create_future()
        except BaseException as error:
            if seen is not None:
                seen.append(type(error))
            raise


async def _sleep_within(clock: Clock, limit: float, nap: float) -> None:
    async with clock.timeout(limit):
        await clock.sleep(nap)
