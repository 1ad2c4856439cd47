"""A bulkhead whose permits are shared by many processes through Redis.

A counter that is raised and lowered never forgets a process that died in between. So a permit is a lease: a
member of a sorted set whose score says when it ends. Holders renew theirs every third of `lease`; a holder
that is killed stops renewing, and its permit is free again when the lease has ended.

Redis key, one for each bulkhead; it expires with its last lease:

- `<app>:{bulkhead:<name>}:leases`  zset: `<lease in ms>:<holder>`, the score is when it ends (server ms)

What is looser than in one process:

- Who waits asks again every `poll` seconds (the first in the line of each process does), so who comes first
  is kept within a process, not between processes.
- The store never holds more than `limit` leases, but more calls than that may run: a holder that was stopped
  or cut off for longer than its lease goes on when it wakes. It then takes a permit again if one is free;
  otherwise PermitLost is told, and it runs uncounted until it ends.
- A failover may lose leases that Redis had acknowledged, and a jump of the server's clock ends them all:
  each of these lets up to `limit` further calls in, beside those that ran at the time, until these have
  ended. A clock set back lengthens no lease beyond its own length.
- Each process asks with its own `limit`. Where two differ, the one with the lower limit is refused first.
- A caller that is cancelled while it asks for a permit waits until the answer is in and its permit given
  back. Where no answer came, and the request arrives after two give-backs, its permit ends with its lease.

For tasks of one event loop.
"""

from __future__ import annotations

import inspect
import math
import random
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from patterns.bounds import number, whole
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.events import Listener, emit, ignore
from patterns.keyspace import Client, Keyspace
from patterns.resiliency.bulkhead import MOST, SHORTEST, Bulkhead
from patterns.resiliency.bulkhead.events import (
    BulkheadFull,
    CallAdmitted,
    CallQueued,
    CallRejected,
    LimitChanged,
    PermitLost,
    Reason,
    SharingLost,
    SharingRegained,
)
from patterns.resiliency.bulkhead.leases import Leases

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

__all__ = ["PermitLost", "SharedBulkhead", "SharedUntil", "SharingLost", "SharingRegained"]

P = ParamSpec("P")
T = TypeVar("T")


class SharedBulkhead:
    """The share of one dependency, of all processes together.

    Use it as `async with bulkhead:`, `await bulkhead.call(fn, *args)` or `@bulkhead` on an `async def`.
    A permit belongs to the process, not to a task: it may be given back by another.

    Args:
        name: the dependency; the same in every process.
        client: from `patterns.keyspace`.
        app: first part of the key.
        limit: calls that may run at once, in all processes.
        without_redis: calls that this process may run while Redis does not answer; 0 refuses them all.
        lease: seconds after which the permit of a dead process is free; renewed every third of it.
        max_waiting: calls of this process that may wait for a permit; 0 refuses at once.
        max_wait: seconds that one of them waits at most.
        poll: seconds after which the first of them asks again, give or take half.
        timeout: seconds that one exchange with Redis may take.
        clock: where durations are read and waited.
        rng: where the jitter of `poll` comes from.
        on_event: hears CallQueued, CallAdmitted, CallRejected, LimitChanged, PermitLost, SharingLost and
            SharingRegained.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        *,
        app: str,
        limit: int,
        without_redis: int,
        lease: float = 10.0,
        max_waiting: int = 0,
        max_wait: float = 1.0,
        poll: float = 0.05,
        timeout: float = 0.25,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        whole("limit", limit, at_least=1, at_most=MOST)
        whole("without_redis", without_redis, at_least=0, at_most=MOST)
        whole("max_waiting", max_waiting, at_least=0, at_most=MOST)
        number("max_wait", max_wait, at_least=SHORTEST, finite=False)
        number("poll", poll, at_least=SHORTEST)
        number("timeout", timeout, at_least=SHORTEST)
        number("lease", lease, above=3 * timeout, at_most=_LONGEST_LEASE)  # renewed every third of it
        self.name = name
        self._max_waiting = max_waiting
        self._max_wait = max_wait
        self._poll = poll
        self._clock = clock
        self._now = clock.monotonic
        self._rng = rng or random.Random()
        self._on_event = on_event
        # The line of this process: its first asks Redis, so its limit is 1.
        self._line = Bulkhead(
            name, limit=1, max_waiting=max(0, max_waiting - 1), max_wait=math.inf, clock=clock
        )
        self._leases = Leases(
            name,
            client,
            Keyspace(app, "bulkhead").key(name, "leases"),
            limit=limit,
            without_redis=without_redis,
            lease=lease,
            timeout=timeout,
            clock=clock,
            on_event=on_event,
        )

    # --8<-- [start:acquire]
    async def acquire(self, deadline: float = math.inf) -> None:
        """Take a permit, waiting for it if there is room to wait; `release` gives it back.

        Args:
            deadline: when the call must have begun, in seconds of the clock's `monotonic()`.

        Raises:
            BulkheadFull: the call was refused.
        """
        began = self._now()
        if not began < deadline:
            self._refuse(Reason.DEADLINE, began)
        # A newcomer does not pass those who wait in this process.
        if self._line.running or not await self._leases.take():
            if self.waiting >= self._max_waiting:
                self._refuse(Reason.FULL, began)
            await self._wait_for_one(began, min(began + self._max_wait, deadline), deadline)
        if not self._now() < deadline:
            await self.release()
            self._refuse(Reason.DEADLINE, began)
        try:
            emit(self._on_event, CallAdmitted(self.name, self._now() - began, self.running))
        except BaseException:  # the listener was interrupted: nobody would give the permit back
            await self.release()
            raise

    async def _wait_for_one(self, began: float, last: float, deadline: float) -> None:
        emit(self._on_event, CallQueued(self.name, self.waiting + 1))
        with suppress(BulkheadFull):  # its turn in this process did not come in time
            await self._line.acquire(last)
            try:
                while self._now() < last:
                    self._leases.freed.clear()
                    if await self._leases.take():
                        if self._now() < last:
                            return
                        await self._leases.put()
                        break
                    pause = min(last - self._now(), self._poll * self._rng.uniform(0.5, 1.5))
                    with suppress(TimeoutError):
                        async with self._clock.timeout(pause):
                            await self._leases.freed.wait()
            finally:
                self._line.release()
        self._refuse(Reason.DEADLINE if last == deadline else Reason.MAX_WAIT, began)

    # --8<-- [end:acquire]

    async def release(self) -> None:
        """Give a permit back; Redis need not answer.

        Raises:
            RuntimeError: none is out.
        """
        if not self.running:
            raise RuntimeError(f"bulkhead {self.name!r}: released more often than acquired")
        await self._leases.put()

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `fn(*args, **kwargs)` with a permit.

        Raises:
            BulkheadFull: the call was refused.
        """
        async with self:
            return await fn(*args, **kwargs)

    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        """Give every call of an `async def` a permit."""
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(
                f"@bulkhead needs an async def, got {fn!r}: its permits are asked for over the network"
            )

        @wraps(fn)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            async with self:
                return await fn(*args, **kwargs)

        return guarded

    def until(self, deadline: float) -> SharedUntil:
        """Return these handles for a caller whose call must have begun by `deadline`.

        Args:
            deadline: seconds of the clock's `monotonic()`.
        """
        return SharedUntil(self, deadline)

    async def __aenter__(self) -> None:
        """Take a permit, or raise BulkheadFull."""
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        """Give it back."""
        await self.release()

    def resize(self, limit: int) -> None:
        """Change the limit that this process asks with; other processes keep theirs."""
        whole("limit", limit, at_least=1, at_most=MOST)
        old, self._leases.limit = self._leases.limit, limit
        self._leases.freed.set()
        if old != limit:
            emit(self._on_event, LimitChanged(self.name, old, limit))

    async def in_use(self) -> int:
        """Count the permits that are out in all processes; one round trip, raises where Redis is down."""
        return await self._leases.count()

    @property
    def limit(self) -> int:
        """Calls that may run at once, as this process asks for."""
        return self._leases.limit

    @property
    def running(self) -> int:
        """Permits that this process has out."""
        return self._leases.out

    @property
    def waiting(self) -> int:
        """Calls of this process that wait."""
        return self._line.running + self._line.waiting

    @property
    def alone(self) -> bool:
        """Whether this process admits without Redis now."""
        return self._leases.alone

    def _refuse(self, reason: Reason, began: float) -> NoReturn:
        if self._leases.alone and reason is not Reason.DEADLINE:
            reason = Reason.NO_REDIS
        waited = self._now() - began
        emit(self._on_event, CallRejected(self.name, reason, waited))
        raise BulkheadFull(self.name, self.limit, self.waiting, waited, reason=reason)


class SharedUntil:
    """A shared bulkhead as a caller with a deadline sees it: `async with` and `call`."""

    def __init__(self, bulkhead: SharedBulkhead, deadline: float) -> None:
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

    async def __aexit__(self, *_: object) -> None:
        """Give it back."""
        await self._bulkhead.release()


_LONGEST_LEASE = 86_400.0
