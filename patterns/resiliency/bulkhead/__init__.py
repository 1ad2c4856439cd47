"""Give each dependency its own, limited share of the calls, so that one that stalls cannot take them all.

A dependency that hangs holds every connection, task and thread that was spent on it. Where all dependencies
draw on one pool, the slow one soon has all of it, and calls to the healthy ones wait or fail. A bulkhead
limits how many calls run at once and how many wait for their turn; the next one is refused at once.

Guaranteed, each by a test that rejects a naive variant:

1. At no instant do more than `limit` calls run or more than `max_waiting` wait. One more is refused at once,
   one that has waited for `max_wait` is refused then, and what is refused was not started.
2. After any mix of results, errors and cancellations (waiting, at the hand-over, running) every permit is
   there again: running and waiting return to 0, and `limit` calls fit in.
3. Who waits is served first come first served. A waiter that gives up never holds the line, no wake-up is
   lost, and no newcomer gets in before those who wait.
4. While one dependency stalls, calls through the bulkhead of another see no difference.
5. `resize` up takes effect at once; down, running calls finish, and none is admitted until fewer than the
   new limit run.
6. Time in the queue counts against the caller's deadline: a call whose deadline has passed is not started,
   also where the event loop was blocked meanwhile.
7. Synchronous work runs in threads of its own (`executor.ThreadBulkhead`), not in the event loop's. A thread
   cannot be stopped: its permit comes back when it has ended, not when its caller has given up.
8. Shared through Redis (`shared.SharedBulkhead`): no more than `limit` leases are in the store at any time;
   the permit of a holder that was killed returns within its lease, whatever the server's clock does; a reply
   that was lost or a caller that was cancelled costs no permit.
9. Shared, without Redis: each process runs as many calls as `without_redis` says, and 0 is "none". Permits
   are taken up again when Redis is back, and a call that lost its own is told of.

Not guaranteed: that a call ends (put a time-out inside), or that a limit in this process protects the
dependency from other processes (share it, or divide the limit among them). A bulkhead is not re-entrant: a
call inside a call takes a second permit, and may wait for its own caller. A permit that was handed to a task
of another thread's event loop is out from then on, however long that loop takes to turn.

Redis keys: none here; see `patterns.resiliency.bulkhead.shared`.

Safe for tasks of several event loops and for threads; while nobody waits and nobody listens, a call takes
no lock (`permits.Permits` says why).

>>> import asyncio
>>> bulkhead = Bulkhead("search", limit=2)
>>> async def search(seconds: float) -> str:
...     async with bulkhead:
...         await asyncio.sleep(seconds)
...         return "found"
>>> async def main() -> list[object]:
...     return await asyncio.gather(*[search(0.01) for _ in range(3)], return_exceptions=True)
>>> [type(result).__name__ for result in asyncio.run(main())]
['str', 'str', 'BulkheadFull']

Sources: Nygard, "Release It!" (the name); resilience4j 2 (semaphore and thread pool); Polly 8 (permits and
queue); CPython issue 90155 (what a semaphore gets wrong when a waiter is cancelled).
"""

from __future__ import annotations

import inspect
import math
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from patterns.bounds import number, whole
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.events import Listener, emit, ignore
from patterns.resiliency.bulkhead.events import (
    BulkheadFull,
    CallAdmitted,
    CallQueued,
    CallRejected,
    LimitChanged,
    Reason,
)
from patterns.resiliency.bulkhead.permits import Permits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

    from patterns.resiliency.bulkhead.permits import Waiter

__all__ = [
    "Bulkhead",
    "BulkheadFull",
    "CallAdmitted",
    "CallQueued",
    "CallRejected",
    "LimitChanged",
    "Reason",
    "Until",
]

P = ParamSpec("P")
T = TypeVar("T")


class Bulkhead(Permits):
    """The share of one dependency.

    Use it as `async with bulkhead:`, `await bulkhead.call(fn, *args)` or `@bulkhead` on an `async def`. A
    plain `with bulkhead:` in synchronous code takes from the same permits and never waits.

    Args:
        name: names the dependency in errors and events.
        limit: calls that may run at once.
        max_waiting: calls that may wait for a permit; 0 refuses at once.
        max_wait: seconds that one of them waits at most.
        clock: where durations are read and waited.
        on_event: hears CallQueued, CallAdmitted, CallRejected and LimitChanged.
    """

    def __init__(
        self,
        name: str,
        *,
        limit: int,
        max_waiting: int = 0,
        max_wait: float = 1.0,
        clock: Clock = SYSTEM_CLOCK,
        on_event: Listener = ignore,
    ) -> None:
        super().__init__(
            whole("limit", limit, at_least=1, at_most=MOST),
            whole("max_waiting", max_waiting, at_least=0, at_most=MOST),
        )
        self._max_wait = number("max_wait", max_wait, at_least=SHORTEST, finite=False)
        self.name = name
        self._clock = clock
        self._now = clock.monotonic
        self._on_event = on_event
        self._heard = on_event is not ignore

    # --8<-- [start:acquire]
    async def acquire(self, deadline: float = math.inf) -> None:
        """Take a permit, waiting for it if there is room to wait; `release` gives it back.

        Args:
            deadline: when the call must have begun, in seconds of the clock's `monotonic()`.

        Raises:
            BulkheadFull: the call was refused.
        """
        if deadline != math.inf and not self._now() < deadline:
            self._refuse(Reason.DEADLINE)
        entered = self._enter()
        if entered is True:
            self._admitted(0.0)
        elif entered:
            await self._turn_of(entered, deadline)
        else:
            self._refuse(Reason.FULL)

    async def _turn_of(self, waiter: Waiter, deadline: float) -> None:
        began = self._now()
        last = min(began + self._max_wait, deadline)
        try:
            if self._heard:
                emit(self._on_event, CallQueued(self.name, self.waiting))
            if last == math.inf:
                await waiter.future
            else:
                async with self._clock.timeout(last - began):
                    await waiter.future
        except BaseException as error:
            self._withdraw(waiter)
            if not isinstance(error, TimeoutError):
                raise
        else:
            if waiter.refused:
                self._refuse(Reason.CLOSED, self._now() - began)
            if self._now() < last:  # the loop may have been blocked since the permit was handed over
                self._admitted(self._now() - began)
                return
            self._give_back()
        self._refuse(Reason.DEADLINE if last == deadline else Reason.MAX_WAIT, self._now() - began)

    # --8<-- [end:acquire]

    def acquire_nowait(self) -> None:
        """Take a permit, or raise BulkheadFull at once; from any thread."""
        if not self._take():
            self._refuse(Reason.FULL)
        self._admitted(0.0)

    def release(self) -> None:
        """Give a permit back; from any task or thread.

        Raises:
            RuntimeError: none is out.
        """
        if not self.running:
            raise RuntimeError(f"bulkhead {self.name!r}: released more often than acquired")
        self._give_back()

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `fn(*args, **kwargs)` with a permit.

        Raises:
            BulkheadFull: the call was refused.
        """
        if not self._take():
            await self.acquire()
        elif self._heard:
            self._admitted(0.0)
        try:
            return await fn(*args, **kwargs)
        finally:
            self._give_back()

    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        """Give every call of an `async def` a permit."""
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(
                f"@bulkhead needs an async def, got {fn!r}; in a plain def use `with bulkhead:`, for work "
                "that blocks a ThreadBulkhead, for an object that is awaited when called `bulkhead.call`"
            )
        take, put, heard = self._free.pop, self._free.append, self._heard

        @wraps(fn)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            # As in `call`; written out, because two method calls would cost as much as all the rest.
            try:
                taken = self._quiet and take()
            except IndexError:
                taken = False
            if not taken:
                await self.acquire()
            elif heard:
                self._admitted(0.0)
            try:
                return await fn(*args, **kwargs)
            finally:
                put(True)
                if not self._quiet:
                    self._settle()

        return guarded

    def until(self, deadline: float) -> Until:
        """Return these handles for a caller whose call must have begun by `deadline`.

        Args:
            deadline: seconds of the clock's `monotonic()`.
        """
        return Until(self, deadline)

    def __enter__(self) -> None:
        """Take a permit without waiting, or raise BulkheadFull."""
        self.acquire_nowait()

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self._give_back()

    async def __aenter__(self) -> None:
        """Take a permit, or raise BulkheadFull."""
        if not self._take():
            await self.acquire()
        elif self._heard:
            self._admitted(0.0)

    async def __aexit__(self, *_: object) -> None:
        """Give it back."""
        self._give_back()

    def resize(self, limit: int) -> None:
        """Change the limit now: up lets the first of those who wait in, down stops nobody who runs.

        Raises:
            RuntimeError: it is closed.
        """
        whole("limit", limit, at_least=1, at_most=MOST)
        old = self._change(limit)
        if not old:
            raise RuntimeError(f"bulkhead {self.name!r} is closed")
        if old != limit:
            emit(self._on_event, LimitChanged(self.name, old, limit))

    def close(self) -> None:
        """Refuse every call from now on, those who wait too; running ones finish."""
        self._change(0)
        self._dismiss()

    def _admitted(self, waited: float) -> None:
        if self._heard:
            try:
                emit(self._on_event, CallAdmitted(self.name, waited, self.running))
            except BaseException:  # the listener was interrupted: nobody would give the permit back
                self._give_back()
                raise

    def _refuse(self, reason: Reason, waited: float = 0.0) -> NoReturn:
        if not self._limit:
            reason = Reason.CLOSED
        if self._heard:
            emit(self._on_event, CallRejected(self.name, reason, waited))
        raise BulkheadFull(self.name, self._limit, self.waiting, waited, reason=reason)


class Until:
    """A bulkhead as a caller with a deadline sees it: `async with` and `call`."""

    def __init__(self, bulkhead: Bulkhead, deadline: float) -> None:
        self._bulkhead = bulkhead
        self._deadline = deadline

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `fn(*args, **kwargs)` with a permit, if it can begin in time.

        Raises:
            BulkheadFull: the call was refused.
        """
        async with self:
            return await fn(*args, **kwargs)

    async def __aenter__(self) -> None:
        """Take a permit in time, or raise BulkheadFull."""
        await self._bulkhead.acquire(self._deadline)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        await self._bulkhead.__aexit__(kind, error, trace)


MOST = 1_000_000  # calls: each permit is an item of a list
SHORTEST = 0.001  # seconds
