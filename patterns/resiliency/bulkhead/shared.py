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
- A failover may lose leases that Redis had acknowledged, and a jump of the server's clock ends them all: up
  to twice `limit` calls then run, until those that ran at the time have ended. A clock set back lengthens no
  lease beyond its own length.
- Each process asks with its own `limit`. Where two differ, the one with the lower limit is refused first.
- A permit whose call was cut short while it talked to Redis is given back in the background; if that meets
  an answer on its way, the permit ends with its lease at the latest.

For tasks of one event loop.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import random
import uuid
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from redis.exceptions import RedisError

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.events import Listener, emit, ignore
from patterns.keyspace import Client, Keyspace
from patterns.resiliency.bulkhead import Bulkhead, check_count, check_seconds
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
from patterns.resiliency.bulkhead.scripts import COUNT, GIVE_BACK, HOLD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from patterns.keyspace import Script

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
        check_count("limit", limit, 1)
        check_count("without_redis", without_redis, 0)
        check_count("max_waiting", max_waiting, 0)
        check_seconds("max_wait", max_wait)
        for label, seconds in (("lease", lease), ("poll", poll), ("timeout", timeout)):
            check_seconds(label, seconds, finite=True)
        if not lease > 3 * timeout:
            raise ValueError(
                f"lease must be > 3 timeouts ({3 * timeout:g} s), got {lease!r}: "
                "every third of it, it is renewed"
            )
        self.name = name
        self._client = client
        self._key = Keyspace(app, "bulkhead").key(name, "leases")
        self._limit = limit
        self._without_redis = without_redis
        self._lease = lease
        self._max_waiting = max_waiting
        self._max_wait = max_wait
        self._poll = poll
        self._timeout = timeout
        self._clock = clock
        self._now = clock.monotonic
        self._rng = rng or random.Random()
        self._on_event = on_event
        # The line of this process: its first asks Redis, so its limit is 1.
        self._line = Bulkhead(
            name, limit=1, max_waiting=max(0, max_waiting - 1), max_wait=math.inf, clock=clock
        )
        self._lease_ms = math.ceil(lease * 1000)
        # So many callers talk to Redis at once: a herd in front of the connections is not a silent Redis.
        self._talk = Bulkhead(name, limit=_TALKERS, max_waiting=1_000_000, max_wait=math.inf, clock=clock)
        self._held: dict[str, float] = {}  # holder -> until when it surely is in the store
        self._uncounted: dict[str, None] = {}  # holders that run without a lease
        self._owed: dict[str, float] = {}  # holder to give back -> when it has surely ended by itself
        self._alone = False
        self._ask_at = self._renew_at = -math.inf
        self._keeper: asyncio.Task[None] | None = None
        self._stirred = asyncio.Event()  # the keeper has something to do
        self._freed = asyncio.Event()  # a permit of this process came back

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
        if self._line.running or not await self._ask_for_one():
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
                    self._freed.clear()
                    if await self._ask_for_one():
                        return
                    pause = min(last - self._now(), self._poll * self._rng.uniform(0.5, 1.5))
                    with suppress(TimeoutError):
                        async with self._clock.timeout(pause):
                            await self._freed.wait()
            finally:
                self._line.release()
        self._refuse(Reason.DEADLINE if last == deadline else Reason.MAX_WAIT, began)

    async def _ask_for_one(self) -> bool:
        """Ask Redis for a permit, or ourselves where Redis is silent; say whether there is one."""
        holder = f"{self._lease_ms}:{uuid.uuid4().hex}"
        try:
            async with self._talk:
                sent = self._now()
                if self._alone and sent < self._ask_at:
                    return self._hold_alone(holder)
                self._ask_at = sent + _RETRY_SECONDS  # while alone, one caller finds out if Redis is back
                (granted,) = await self._exchange(holder)
        except _SILENCE as error:
            self._owe(holder)
            self._lose(type(error).__name__)
            return self._hold_alone(f"{self._lease_ms}:{uuid.uuid4().hex}")
        except BaseException as error:
            self._owe(holder)
            self._stirred.set()
            if isinstance(error, asyncio.CancelledError):
                await self._give_back()
            raise
        if granted:
            self._hold(holder, sent + self._lease)
        return bool(granted)

    # --8<-- [end:acquire]

    def _hold(self, holder: str, until: float) -> None:
        self._held[holder] = until
        self._watch()

    def _hold_alone(self, holder: str) -> bool:
        if self.running >= self._without_redis:
            return False
        self._uncounted[holder] = None
        self._watch()
        return True

    async def release(self) -> None:
        """Give a permit back; Redis need not answer.

        Raises:
            RuntimeError: none is out.
        """
        # One that is not counted goes first, so that the store keeps counting the others.
        if self._uncounted:
            self._uncounted.popitem()
        elif self._held:
            self._owe(self._held.popitem()[0])
        else:
            raise RuntimeError(f"bulkhead {self.name!r}: released more often than acquired")
        try:
            await self._give_back()
        finally:
            self._freed.set()
            if self._owed or not self.running:
                self._stirred.set()  # the keeper gives back what was cut short, and ends with the last permit

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
        check_count("limit", limit, 1)
        old, self._limit = self._limit, limit
        self._freed.set()
        if old != limit:
            emit(self._on_event, LimitChanged(self.name, old, limit))

    async def in_use(self) -> int:
        """Count the permits that are out in all processes; one round trip, raises where Redis is down."""
        async with self._clock.timeout(self._timeout):
            return int(await COUNT(self._client, keys=[self._key]))

    @property
    def limit(self) -> int:
        """Calls that may run at once, as this process asks for."""
        return self._limit

    @property
    def running(self) -> int:
        """Permits that this process has out."""
        return len(self._held) + len(self._uncounted)

    @property
    def waiting(self) -> int:
        """Calls of this process that wait."""
        return self._line.running + self._line.waiting

    @property
    def alone(self) -> bool:
        """Whether this process admits without Redis now."""
        return self._alone

    # --8<-- [start:keep]
    async def _keep(self) -> None:
        """Renew what is held, and give back what is owed, until nothing is held."""
        self._renew_at = self._now() + self._lease / 3
        while self.running:
            now = self._now()
            if now >= self._renew_at or (self._owed and not self._alone):
                await self._renew(now)
            else:
                self._stirred.clear()
                with suppress(TimeoutError):
                    async with self._clock.timeout(self._renew_at - now):
                        await self._stirred.wait()
            if not self.running:
                await self._give_back()

    async def _renew(self, sent: float) -> None:
        holders = [*self._held, *self._uncounted]
        answers: list[int] = []
        try:
            answers = await self._exchange(*holders)
            self._renew_at = sent + self._lease / 3
        except _SILENCE as error:
            self._lose(type(error).__name__)
            self._renew_at = self._now() + self._lease / 10
        for holder, kept in zip(holders, answers, strict=False):
            if holder in self._held or holder in self._uncounted:
                if kept:
                    self._uncounted.pop(holder, None)
                    self._held[holder] = sent + self._lease
                elif holder in self._held:
                    self._held[holder] = -math.inf
            elif kept:  # it was given back while we asked, and may have been taken again after that
                self._owe(holder)
        now = self._now()
        for holder in [holder for holder, until in self._held.items() if until <= now]:
            del self._held[holder]
            self._uncounted[holder] = None
            emit(self._on_event, PermitLost(self.name))

    # --8<-- [end:keep]

    def _watch(self) -> None:
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep(), name=f"keeper of bulkhead {self.name}")

    def _owe(self, holder: str) -> None:
        now = self._now()
        self._owed = {holder: ends for holder, ends in self._owed.items() if ends > now}
        self._owed[holder] = now + 2 * self._lease

    async def _give_back(self) -> None:
        """Give back what is owed; if Redis is silent, it goes with a later exchange or ends by itself."""
        async with self._talk:
            owed = list(self._owed)  # of all who came meanwhile
            if not owed or self._alone:
                return
            try:
                await self._run(GIVE_BACK, *owed)
            except _SILENCE as error:
                self._lose(type(error).__name__)
            else:
                self._paid(owed)

    async def _exchange(self, *holders: str) -> list[int]:
        """Give back what is owed, and take or renew `holders`; 1 for each that has a permit, else 0."""
        owed = list(self._owed)
        answers: list[int] = await self._run(HOLD, self._limit, self._lease_ms, len(owed), *owed, *holders)
        self._paid(owed)
        if self._alone:
            self._alone = False
            self._freed.set()
            emit(self._on_event, SharingRegained(self.name))
        return answers

    def _paid(self, owed: list[str]) -> None:
        for holder in owed:
            self._owed.pop(holder, None)

    async def _run(self, script: Script, *args: str | int) -> Any:
        """Run a script within the time-out; once more where its reply was lost, for that does no harm."""
        async with self._clock.timeout(self._timeout):
            try:
                return await script(self._client, keys=[self._key], args=args)
            except (RedisError, OSError):
                return await script(self._client, keys=[self._key], args=args)

    def _lose(self, error: str) -> None:
        self._ask_at = self._now() + _RETRY_SECONDS
        if not self._alone:
            self._alone = True
            emit(self._on_event, SharingLost(self.name, error))

    def _refuse(self, reason: Reason, began: float) -> NoReturn:
        if self._alone and reason is not Reason.DEADLINE:
            reason = Reason.NO_REDIS
        waited = self._now() - began
        emit(self._on_event, CallRejected(self.name, reason, waited))
        raise BulkheadFull(self.name, self._limit, self.waiting, waited, reason=reason)


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


_TALKERS = 8
_RETRY_SECONDS = 1.0  # how often a process that is alone looks for Redis

_SILENCE = (RedisError, OSError, TimeoutError)
