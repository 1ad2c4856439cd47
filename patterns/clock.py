"""Time as an argument.

Every pattern reads time and waits through a `Clock`, so that a test moves an hour in a microsecond and
a wall-clock step cannot change a duration.
Durations are seconds on a monotonic clock; wall time is an aware UTC datetime, used only where the
domain speaks of calendar time.

>>> clock = ManualClock()
>>> async def nap() -> float:
...     await clock.sleep(3600)
...     return clock.monotonic()
>>> async def main() -> float:
...     task = asyncio.create_task(nap())
...     await clock.advance(3600)
...     return await task
>>> asyncio.run(main())
3600.0

Sources: Trio, "Testing time and timeouts"; Polly, `TimeProvider`; resilience4j, `Clock` in its tests.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

__all__ = ["SYSTEM_CLOCK", "Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """Where a pattern reads the time and waits."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards and mean nothing on another machine."""
        ...

    def wall(self) -> datetime:
        """Return the calendar time: aware, UTC, and free to jump."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`; zero or less only yields to other tasks."""
        ...

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        """Raise TimeoutError in the body once `seconds` have passed; None sets no limit."""
        ...


class SystemClock:
    """The clock of the machine and of the running event loop."""

    # The builtin itself, not a method around it: guards read the time twice per call.
    monotonic = staticmethod(time.monotonic)

    def wall(self) -> datetime:
        """Return the machine's calendar time in UTC."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds` of real time."""
        await asyncio.sleep(max(0.0, seconds))

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        """Raise TimeoutError in the body once `seconds` of real time have passed."""
        return asyncio.timeout(seconds)


SYSTEM_CLOCK = SystemClock()


class ManualClock:
    """A clock that stands still until it is told to move.

    Args:
        start: first reading of `monotonic()`, in seconds.
        wall: calendar time at `start`; aware.
    """

    # One `advance` lets each woken task take this many steps before time moves on. A task that waits
    # for a real socket is not ready in any number of steps: against a real server use real time.
    _STEPS = 50

    def __init__(self, start: float = 0.0, wall: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        if wall.tzinfo is None:
            raise ValueError(f"wall must be an aware datetime, got {wall!r}")
        self._start = self._now = start
        self._wall_at_start = wall.astimezone(UTC)
        self._order = itertools.count()
        self._alarms: list[_Alarm] = []

    def monotonic(self) -> float:
        """Return the seconds this clock has been moved to."""
        return self._now

    def wall(self) -> datetime:
        """Return the calendar time, which moves with `advance`, `jump` and `step_wall`."""
        return self._wall_at_start + timedelta(seconds=self._now - self._start)

    def step_wall(self, seconds: float) -> None:
        """Move calendar time alone, as an administrator or NTP does; durations must not notice."""
        self._wall_at_start += timedelta(seconds=seconds)

    def jump(self, seconds: float) -> None:
        """Move time without running any task: a blocked event loop, or a process that was paused.

        Sleepers that have become due wake the next time the loop runs.
        """
        self._move_to(self._now + _forward(seconds))

    async def advance(self, seconds: float) -> None:
        """Move time forward, running each sleeper at its own due time and then the tasks it wakes."""
        target = self._now + _forward(seconds)
        await self._settle()
        while (due := self._next_due()) <= target:
            self._move_to(due)
            await self._settle()
        self._move_to(target)
        await self._settle()

    async def sleep(self, seconds: float) -> None:
        """Wait until this clock has been moved by `seconds`."""
        if not seconds > 0:
            await asyncio.sleep(0)
            return
        due: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._alarm(seconds, lambda: None if due.done() else due.set_result(None)):
            await due

    @asynccontextmanager
    async def timeout(self, seconds: float | None) -> AsyncIterator[None]:
        """Raise TimeoutError in the body once this clock has been moved by `seconds`."""
        if seconds is None or not seconds > 0:
            async with asyncio.timeout(seconds):
                yield
            return
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:
            with self._alarm(seconds, lambda: limit.reschedule(loop.time())):
                yield

    @property
    def sleepers(self) -> int:
        """How many sleeps and timeouts wait on this clock now."""
        return sum(not alarm.off for alarm in self._alarms)

    @contextmanager
    def _alarm(self, seconds: float, ring: Callable[[], None]) -> Iterator[None]:
        alarm = _Alarm(self._now + seconds, next(self._order), ring)
        heapq.heappush(self._alarms, alarm)
        try:
            yield
        finally:
            alarm.off = True

    def _next_due(self) -> float:
        while self._alarms and self._alarms[0].off:
            heapq.heappop(self._alarms)
        return self._alarms[0].due if self._alarms else math.inf

    def _move_to(self, when: float) -> None:
        self._now = max(self._now, when)
        while self._next_due() <= self._now:
            alarm = heapq.heappop(self._alarms)
            alarm.off = True
            alarm.ring()

    async def _settle(self) -> None:
        for _ in range(self._STEPS):
            await asyncio.sleep(0)


@dataclass(order=True, slots=True)
class _Alarm:
    due: float
    order: int
    ring: Callable[[], None] = field(compare=False)
    off: bool = field(default=False, compare=False)


def _forward(seconds: float) -> float:
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds must be >= 0 and finite, got {seconds!r}: time does not go backwards")
    return seconds
