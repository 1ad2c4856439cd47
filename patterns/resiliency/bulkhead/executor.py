"""A bulkhead for synchronous work: threads of its own, as many as may run at once.

The event loop's default executor is one pool for everything: file reads, `getaddrinfo`, every
`asyncio.to_thread`. A driver that hangs there takes DNS along. Here each dependency has its own threads.

A thread cannot be stopped. When its caller is cancelled or times out, the function runs on, and its permit
is out until it has returned: `running` counts threads that are busy, not callers that still care. Give the
function a time-out of its own (a driver's `timeout=`), or the permits of a dead dependency never come back.
"""

from __future__ import annotations

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.events import Listener, ignore
from patterns.resiliency.bulkhead import Bulkhead, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future
    from typing import Self

__all__ = ["ThreadBulkhead"]

P = ParamSpec("P")
T = TypeVar("T")


class ThreadBulkhead:
    """The threads of one dependency.

    Use it as `await threads.call(fn, *args)` or `@threads` on a plain `def`, which makes an `async def` of
    it; and as `async with ThreadBulkhead(...) as threads:`, which closes it at the end. Its limit is the
    number of its threads and does not change.

    Args:
        name: names the dependency in errors and events, and the threads.
        limit: functions that may run at once; as many threads, started when first needed.
        max_waiting: calls that may wait for a thread; 0 refuses at once.
        max_wait: seconds that one of them waits at most.
        clock: where durations are read and waited.
        on_event: hears CallQueued, CallAdmitted and CallRejected.
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
        self.name = name
        self._permits = Bulkhead(
            name, limit=limit, max_waiting=max_waiting, max_wait=max_wait, clock=clock, on_event=on_event
        )
        self._pool = ThreadPoolExecutor(limit, thread_name_prefix=f"bulkhead {name}")
        self._busy: set[Future[Any]] = set()

    # --8<-- [start:call]
    async def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `fn(*args, **kwargs)` in a thread, in a copy of this task's context, and return its result.

        Raises:
            BulkheadFull: the call was refused.
        """
        await self._permits.acquire()
        try:
            if not self.limit:  # closed since the permit was handed over
                self._permits._refuse(Reason.CLOSED)
            work = self._pool.submit(copy_context().run, _result_of, fn, args, kwargs)
        except BaseException:
            self._permits.release()
            raise
        self._busy.add(work)
        work.add_done_callback(self._done)
        return await asyncio.wrap_future(work)

    def _done(self, work: Future[Any]) -> None:
        """The function has returned, or will never begin: not before is its permit free."""
        self._busy.discard(work)
        self._permits._give_back()

    # --8<-- [end:call]

    def __call__(self, fn: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
        """Run every call of a plain `def` in these threads."""
        if inspect.iscoroutinefunction(fn):
            raise TypeError(f"@threads needs a plain def, got {fn!r}: put a Bulkhead on an async def")

        @wraps(fn)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.call(fn, *args, **kwargs)

        return guarded

    async def close(self) -> None:
        """Refuse further calls and those who wait, wait for the functions that run, and end the threads."""
        self._permits.close()
        try:
            await asyncio.gather(*map(asyncio.wrap_future, list(self._busy)), return_exceptions=True)
        finally:
            self._pool.shutdown(wait=not self._busy)  # idle threads end at once

    async def __aenter__(self) -> Self:
        """Return this bulkhead; no thread is started."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

    @property
    def limit(self) -> int:
        """Functions that may run at once; 0 when closed."""
        return self._permits.limit

    @property
    def running(self) -> int:
        """Functions that run, also those whose caller has gone."""
        return self._permits.running

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return self._permits.waiting


def _result_of(fn: Callable[..., T], args: Any, kwargs: Any) -> T:
    try:
        return fn(*args, **kwargs)
    except StopIteration as error:
        # No future can hold one: before Python 3.12 the caller would wait for ever.
        raise RuntimeError(f"{fn!r} raised StopIteration") from error
