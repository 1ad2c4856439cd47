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
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
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

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[None]:
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

    @asynccontextmanager
    async def timeout(self, seconds: float | None) -> AsyncIterator[None]:
        """Raise TimeoutError in the body once `seconds` of real time have passed."""
        async with asyncio.timeout(seconds):
            yield


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
        self._now = start
        self._wall = wall
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        """Return the seconds this clock has been moved to."""
        return self._now

    def wall(self) -> datetime:
        """Return the calendar time, which moves with `advance`, `jump` and `step_wall`."""
        return self._wall

    def step_wall(self, seconds: float) -> None:
        """Move calendar time alone, as an administrator or NTP does; durations must not notice."""
        self._wall += timedelta(seconds=seconds)

    def jump(self, seconds: float) -> None:
        """Move time without running any task: a blocked event loop, or a process that was paused.

        Sleepers that have become due wake the next time the loop runs.
        """
        self._move_to(self._now + self._checked(seconds))

    async def advance(self, seconds: float) -> None:
        """Move time forward, running each sleeper at its own due time and then the tasks it wakes."""
        target = self._now + self._checked(seconds)
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            self._move_to(max(self._now, self._sleepers[0][0]))
            await self._settle()
        self._move_to(target)
        await self._settle()

    async def sleep(self, seconds: float) -> None:
        """Wait until this clock has been moved by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        due = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), due))
        await due

    @asynccontextmanager
    async def timeout(self, seconds: float | None) -> AsyncIterator[None]:
        """Raise TimeoutError in the body once this clock has been moved by `seconds`."""
        if seconds is None:
            yield
            return
        async with asyncio.timeout(None) as limit:

            async def expire() -> None:
                await self.sleep(seconds)
                limit.reschedule(asyncio.get_running_loop().time())

            alarm = asyncio.create_task(expire())
            try:
                yield
            finally:
                alarm.cancel()

    @property
    def sleepers(self) -> int:
        """How many tasks wait on this clock now."""
        return sum(not due.done() for _, _, due in self._sleepers)

    @staticmethod
    def _checked(seconds: float) -> float:
        if not seconds >= 0:
            raise ValueError(f"seconds must be >= 0, got {seconds!r}: time does not go backwards")
        return seconds

    def _move_to(self, when: float) -> None:
        self._wall += timedelta(seconds=when - self._now)
        self._now = when
        while self._sleepers and self._sleepers[0][0] <= when:
            _, _, due = heapq.heappop(self._sleepers)
            if not due.done():
                due.set_result(None)

    async def _settle(self) -> None:
        for _ in range(self._STEPS):
            await asyncio.sleep(0)
