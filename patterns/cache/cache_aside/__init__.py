"""Read through a copy in Redis that the application fills on a miss and deletes after a write.

A cache beside a database is easily made wrong. A load that began before a write puts the old value back after
it; when a popular entry expires, every caller loads it at once; and when the cache is down, either nothing
works or everything falls upon the database.

Guaranteed, each by a test that rejects a naive variant:

1. While Redis answers: once `invalidate` or `write` has returned, no read that begins later, in any process,
   returns what was loaded before. A load under way at that moment is not kept.
2. However many callers in however many processes miss one entry, one load runs while it takes less than
   `lease`; without Redis, one at a time in each process.
3. A load that fails, hangs or is cancelled, or whose process is killed, holds nobody up longer than `lease`
   and leaves nothing in the cache, also if the process was only paused and goes on an hour later. A caller
   that is cancelled takes the load from nobody else.
4. None is kept for `negative_ttl`, and is not the same as nothing being there; 0, "" and [] are values.
5. Every key expires. A value lives for `ttl` times a random factor in [1 - jitter, 1 + jitter].
6. Redis down or slow delays a load by one `timeout` at most, and not even that while it is left alone; an
   entry that cannot be read is a miss and is deleted. No more than `max_loads` loads run at once in a
   process.
7. A write that failed leaves the cache as it was. One that succeeded, or may have, invalidates; if that
   fails, the caller gets InvalidationFailed, and this process reads nothing before it was made good.
8. An expired value is returned only where the load failed with an error in `stale_on`, until
   `stale_if_error` seconds after it expired, and never after it was invalidated.
9. What cannot be encoded, decoded again, or is larger than `max_bytes` raises NotCacheable before anything
   is written. Each caller gets a value of its own, equal to what later hits return.

Not guaranteed. A writer that dies between the write and the invalidation leaves the old value until its
`ttl` ends; so does a load that reads a replica which lags behind. A failover of Redis (replication is
asynchronous) or a restart from its disk may bring an entry back that was deleted, with the same bound. While
Redis is cut off from a writer but not from a reader, that reader sees the old value, with the same bound. It
goes by the clock of the Redis server, and by the policy, which is to be the same in all processes.

Redis keys: `<app>:{cache_aside:<name>/<entity>}:value|generation|lock`; see
`patterns.cache.cache_aside.store`.

For the tasks of one event loop.

>>> import asyncio
>>> from patterns.keyspace import opened
>>> async def load_user(number: int) -> dict[str, int]:
...     print("loading")
...     return {"id": number}
>>> async def main() -> None:
...     async with opened() as redis:
...         policy = Policy(ttl=60, negative_ttl=5, max_loads=8)
...         users = CacheAside("users", redis, policy, app="doctest")
...         for _ in range(2):
...             print(await users.get("42", load_user, 42))
...         await users.invalidate("42")
>>> asyncio.run(main())
loading
{'id': 42}
{'id': 42}

Sources: Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013 (leases); dogpile.cache (one creator);
RFC 5861 (stale-if-error); Azure Architecture Center, "Cache-Aside pattern".
"""

from __future__ import annotations

import asyncio
import itertools
import random
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from patterns.cache.cache_aside.errors import InvalidationFailed, LoadCancelled, LoadTimedOut, NotCacheable
from patterns.cache.cache_aside.events import (
    CacheHit,
    CacheMissed,
    EntryDiscarded,
    Invalidated,
    InvalidationOwed,
    Loaded,
    LoadFailed,
    StaleServed,
)
from patterns.cache.cache_aside.policy import Policy
from patterns.cache.cache_aside.store import Store, Turn, new_token
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.entry import JSON, MISS, Codec, Json, Miss, Unreadable, Unwritable, decode, encode
from patterns.events import Listener, emit, ignore
from patterns.flight import FlightCancelled, Flights
from patterns.outage import CacheLost, CacheRegained, NoCache

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patterns.keyspace import Client

__all__ = [
    "MISS",
    "CacheAside",
    "CacheHit",
    "CacheLost",
    "CacheMissed",
    "CacheRegained",
    "Codec",
    "EntryDiscarded",
    "Invalidated",
    "InvalidationFailed",
    "InvalidationOwed",
    "Json",
    "LoadCancelled",
    "LoadFailed",
    "LoadTimedOut",
    "Loaded",
    "Miss",
    "NotCacheable",
    "Policy",
    "StaleServed",
]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a load.

    Attributes:
        entry: the entry.
        current_at: a tick at which it surely was the newest; callers that came after it must look again.
    """

    entry: bytes
    current_at: int


class CacheAside:
    """One cache of one kind of thing, beside the place where it comes from.

    Args:
        name: what is cached, as "users"; first part of every entity's key, and the source of events.
            A new name is a new cache: change it when the shape of the values changes.
        client: from `patterns.keyspace`.
        policy: how long values are kept, and what a load may cost.
        app: first part of the keys.
        codec: turns values into bytes and back.
        clock: where durations are read.
        rng: draws the jitter.
        on_event: hears CacheHit, CacheMissed, Loaded, LoadFailed, StaleServed, EntryDiscarded, Invalidated,
            InvalidationOwed, CacheLost and CacheRegained.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        policy: Policy,
        *,
        app: str,
        codec: Codec = JSON,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        self.name = name
        self.policy = policy
        self._codec = codec
        self._clock = clock
        self._rng = rng or random.Random()
        self._on_event = on_event
        self._unsure: tuple[type[BaseException], ...] = (asyncio.CancelledError, *policy.unsure)
        self._stale_ms = round(policy.stale_if_error * 1000)
        longest = max(policy.ttl, policy.negative_ttl) * (1 + policy.jitter) + policy.stale_if_error
        self._bound = longest + 2 * policy.lease  # a load under way may still be kept for so long
        self._store = Store(
            name,
            client,
            app=app,
            lease=policy.lease,
            windowed=self._stale_ms > 0,
            timeout=policy.timeout,
            back_off=policy.back_off,
            longest=self._bound,
            clock=clock,
            on_event=on_event,
        )
        self._ticks = itertools.count(1)
        self._flights: Flights[_Outcome] = Flights()
        self._permits = asyncio.Semaphore(policy.max_loads)

    # --8<-- [start:get]
    async def get(
        self, entity: str, load: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return the value of `entity`: from the cache, or from `await load(*args, **kwargs)`.

        Callers that miss at the same time share one load: that of the first. It may go on when the first has
        left, so it must use nothing that ends with a caller; and it must not `get` from this cache, for it
        would wait for a second of the `max_loads` places, or for itself.

        Raises:
            LoadTimedOut: the load took longer than the lease.
            NotCacheable: the value was loaded and cannot be kept.
            Exception: whatever the load raised.
        """
        came = next(self._ticks)
        try:
            value: T | Miss = await self._look(entity)
            if value is not MISS:
                return value
            cached, bad = True, b""
        except Unreadable as error:
            emit(self._on_event, EntryDiscarded(self.name, entity, error.reason))
            cached, bad = True, error.entry
        except NoCache:
            cached, bad = False, b""
        emit(self._on_event, CacheMissed(self.name, entity))
        begin = partial(self._fetch, entity, lambda: load(*args, **kwargs), cached=cached, bad=bad)
        while True:
            try:
                outcome = await self._flights.share(entity, begin)
            except FlightCancelled:
                raise LoadCancelled(entity) from None
            if outcome.current_at > came:  # else it may be older than a write that ended before we came
                loaded: T = decode(self._codec, outcome.entry)
                return loaded

    # --8<-- [end:get]

    async def peek(self, entity: str) -> Any:
        """Return the value of `entity` if it is in the cache and fresh, else MISS; nothing is loaded."""
        try:
            return await self._look(entity)
        except (Unreadable, NoCache):
            return MISS

    # --8<-- [start:write]
    async def write(
        self, entity: str, store: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Await `store(*args, **kwargs)`, then invalidate `entity`; return what `store` returned.

        Raises:
            InvalidationFailed: it was written, and the old value may still be read for a while.
            ValueError: `entity` cannot be invalidated; nothing was written.
            Exception: whatever the write raised; if it is in `unsure`, the entity was invalidated.
        """
        self._store.keys(entity)  # or it raises, before anything is written
        try:
            result = await store(*args, **kwargs)
        except self._unsure:  # it may have been done
            with suppress(NoCache):  # an event tells, and the caller hears what became of the write
                await self._store.delete((entity,))
            raise
        await self._invalidate((entity,), result)
        return result

    async def invalidate(self, *entities: str) -> None:
        """Delete the entries of `entities`: call it after every change of theirs in the source.

        Entity by entity it is atomic, together it is not.

        Raises:
            InvalidationFailed: the old values may still be read for a while.
        """
        if entities:
            await self._invalidate(entities, None)

    # --8<-- [end:write]

    async def _invalidate(self, entities: tuple[str, ...], result: object) -> None:
        try:
            await self._store.delete(entities)
        except NoCache as error:
            raise InvalidationFailed(entities, self._bound, result) from error.__cause__

    async def _look(self, entity: str) -> Any:
        """Return the fresh value or MISS; raises Unreadable and NoCache."""
        entry = await self._store.read(entity)
        if entry is None:
            return MISS
        value = decode(self._codec, entry)
        if self._on_event is not ignore:
            emit(self._on_event, CacheHit(self.name, entity, value is None))
        return value

    # --8<-- [start:turn]
    async def _fetch(
        self, entity: str, load: Callable[[], Awaitable[object]], *, cached: bool, bad: bytes
    ) -> _Outcome:
        """Load, or wait for a load of another process; alone, once that has had its time."""
        token, patience = new_token(), self._clock.monotonic() + self.policy.lease
        while True:
            now, tick = self._clock.monotonic(), next(self._ticks)
            turn = await self._begin(entity, token, bad, alone=now >= patience) if cached else None
            if turn is None or turn.generation:
                began = now if turn else self._clock.monotonic()  # the lease begins when it was asked for
                return await self._load(entity, load, token, turn, began + self.policy.lease)
            if turn.entry is None:
                await self._clock.sleep(min(self.policy.poll, turn.wait, patience - now))
                continue
            try:
                decode(self._codec, turn.entry)
                return _Outcome(turn.entry, tick)
            except Unreadable as error:
                emit(self._on_event, EntryDiscarded(self.name, entity, error.reason))
                bad = error.entry

    # --8<-- [end:turn]

    async def _begin(self, entity: str, token: str, bad: bytes, *, alone: bool) -> Turn | None:
        try:
            return await self._store.begin(entity, token, without=bad, alone=alone)
        except NoCache:
            return None
        except asyncio.CancelledError:  # the lease may be ours by now
            with suppress(NoCache):
                await self._store.release(entity, token)
            raise

    # --8<-- [start:load]
    async def _load(
        self,
        entity: str,
        load: Callable[[], Awaitable[object]],
        token: str,
        turn: Turn | None,
        deadline: float,
    ) -> _Outcome:
        """Load within the lease, and keep the result if nothing has overtaken it."""
        began = self._clock.monotonic()
        try:
            async with self._clock.timeout(deadline - began), self._permits:
                current_at = next(self._ticks)
                value = await load()
            entry = self._entry(entity, value)
            tick, kept = next(self._ticks), False
            if turn is not None:
                kept = await self._keep(entity, token, turn, entry, negative=value is None)
        except (Exception, asyncio.CancelledError) as error:
            failure = error
            if isinstance(error, TimeoutError) and self._clock.monotonic() >= deadline:
                failure = LoadTimedOut(entity, self.policy.lease)
            duration = self._clock.monotonic() - began
            emit(self._on_event, LoadFailed(self.name, entity, duration, type(failure).__name__))
            if turn is not None and (stand_in := await self._give_up(entity, token, failure)):
                return stand_in
            if failure is error:
                raise
            raise failure from error
        emit(self._on_event, Loaded(self.name, entity, self._clock.monotonic() - began, kept))
        return _Outcome(entry, tick if kept else current_at)

    # --8<-- [end:load]

    async def _keep(self, entity: str, token: str, turn: Turn, entry: bytes, *, negative: bool) -> bool:
        policy = self.policy
        ttl = policy.negative_ttl if negative else policy.ttl
        lives = ttl * (1 + policy.jitter * self._rng.uniform(-1, 1))
        if not negative:
            lives += policy.stale_if_error
        try:
            return await self._store.fill(entity, token, turn.generation, entry if ttl else b"", lives)
        except NoCache:
            return False

    async def _give_up(self, entity: str, token: str, error: BaseException) -> _Outcome | None:
        """Give the lease back; return what may stand in for the load that failed."""
        tick = next(self._ticks)
        try:
            entry, left = await self._store.release(entity, token)
            if not isinstance(error, self.policy.stale_on) or isinstance(error, NotCacheable) or not entry:
                return None
            decode(self._codec, entry)
        except (NoCache, Unreadable):
            return None
        stale = max(0.0, self.policy.stale_if_error - left)
        emit(self._on_event, StaleServed(self.name, entity, stale, type(error).__name__))
        return _Outcome(entry, tick)

    def _entry(self, entity: str, value: object) -> bytes:
        policy = self.policy
        try:
            return encode(self._codec, value, stale_ms=self._stale_ms, max_bytes=policy.max_bytes)
        except Unwritable as error:
            raise NotCacheable(entity, str(error), value) from error.__cause__
