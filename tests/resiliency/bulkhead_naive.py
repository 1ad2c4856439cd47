"""The bulkheads that most people write first, with the interface of the real one."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from patterns.resiliency.bulkhead import Bulkhead, BulkheadFull

if TYPE_CHECKING:
    from patterns.keyspace import Client


class OnlyASemaphore:
    """`asyncio.Semaphore` as it comes: whoever does not fit in waits, however many and however long."""

    def __init__(self, name: str, *, limit: int, **_: Any) -> None:
        self.limit = limit
        self._semaphore = asyncio.Semaphore(limit)
        self.running = self.waiting = 0

    async def call(self, fn: Any, *args: Any) -> Any:
        self.waiting += 1
        try:
            await self._semaphore.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            return await fn(*args)
        finally:
            self.running -= 1
            self._semaphore.release()


class ForgetsTheHandOver(Bulkhead):
    """What was granted to a waiter that is cancelled in the same moment is gone (Failsafe #393)."""

    def _withdraw(self, waiter: Any) -> None:
        self._line.pop(waiter, None)
        self._settle()


class AcquiresOutsideTry:
    """The permit is given back after the call, and not in a `finally`."""

    def __init__(self, name: str, **options: Any) -> None:
        self._inner = Bulkhead(name, **options)

    async def call(self, fn: Any, *args: Any) -> Any:
        await self._inner.acquire()
        result = await fn(*args)
        self._inner.release()
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class WakesAndHopes:
    """asyncio's semaphore before Python 3.10.8: a release wakes a waiter, who looks again when it runs."""

    def __init__(self, name: str, *, limit: int, **_: Any) -> None:
        self._value = limit
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def call(self, fn: Any, *args: Any) -> Any:
        while self._value <= 0:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        self._value -= 1
        try:
            return await fn(*args)
        finally:
            self._value += 1
            while self._waiters:
                if not (waiter := self._waiters.popleft()).done():
                    waiter.set_result(None)
                    break


class StartsAnew(Bulkhead):
    """A resize makes new permits, and forgets those that are out."""

    def resize(self, limit: int) -> None:
        self._limit = limit
        self._free[:] = [True] * limit


class OnlyNewcomersSeeIt(Bulkhead):
    """A resize is seen by those who come later; nobody who waits is let in."""

    def resize(self, limit: int) -> None:
        self._free.extend([True] * (limit - self._limit))
        self._limit = limit


class TimeoutAround(Bulkhead):
    """The deadline is a time-out around the whole call, which a blocked loop notices too late."""

    def until(self, deadline: float) -> Any:
        return _Around(self, deadline)


class _Around:
    def __init__(self, bulkhead: Any, deadline: float) -> None:
        self.bulkhead, self.deadline = bulkhead, deadline

    async def call(self, fn: Any, *args: Any) -> Any:
        async with self.bulkhead._clock.timeout(self.deadline - self.bulkhead._clock.monotonic()):
            return await self.bulkhead.call(fn, *args)


class InTheLoopsThreads:
    """A semaphore around `asyncio.to_thread`: the permit is back when the caller has gone."""

    def __init__(self, name: str, *, limit: int, **_: Any) -> None:
        self._inner = Bulkhead(name, limit=limit)

    async def call(self, fn: Any, *args: Any) -> Any:
        async with self._inner:
            return await asyncio.to_thread(fn, *args)

    async def close(self) -> None:
        await asyncio.get_running_loop().shutdown_default_executor()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class CountsInRedis:
    """INCR before, DECR after: what dies in between is counted for ever, or until the key expires."""

    def __init__(
        self, name: str, client: Client, *, app: str, limit: int, expires: int | None = None, **_: Any
    ) -> None:
        self.limit, self._client, self._expires = limit, client, expires
        self._key = f"{app}:{{bulkhead:{name}}}:counter"

    async def acquire(self) -> None:
        if await self._client.incr(self._key) > self.limit:
            await self._client.decr(self._key)
            raise BulkheadFull("counter", self.limit, 0)
        if self._expires:
            await self._client.pexpire(self._key, self._expires)

    async def release(self) -> None:
        await self._client.decr(self._key)

    async def call(self, fn: Any, *args: Any) -> Any:
        await self.acquire()
        try:
            return await fn(*args)
        finally:
            await self.release()

    async def in_use(self) -> int:
        return int(await self._client.get(self._key) or 0)
