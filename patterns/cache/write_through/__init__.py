"""Write to the source through the cache: a put has returned when both have the value, or Redis has none.

Who updates a database and then a cache writes twice, and the two can disagree for as long as the entry lives:
two writers reach them in different orders, one of them dies in between, a write that was refused is cached.
Here the cache owns the way to the source. It writes there first, and lets Redis follow by version.

Guaranteed, each by a test that rejects a naive variant:

1. `put` and `delete` return when the source has committed. Where the source refuses, they raise, and readers
   get what they had before: never what was refused.
2. In whatever order the writes of a key meet in Redis, from however many processes: when all have ended,
   Redis has what the source has, or nothing. A late older version replaces nothing.
3. If a writer is cancelled, or killed, at any point of a write, no reader gets the value from before the
   write for longer than `lease` after it began. A load that overlaps with a write is not kept.
4. Without Redis the source is written all the same; the result says `cached=False`, and for how long at most
   others may read the old value. This process reads nothing from Redis before the entry is dropped.
5. Once `delete` has returned, `get` returns None in any process, also where a load or an older put was under
   way. The tombstone has a version.
6. `put_many` has an outcome for each key. One that fails takes none along, and nothing is cached that was
   not stored.
7. A write whose outcome is unknown (the reply to a COMMIT was lost, time-out, cancellation) raises, and the
   next read asks the source. Only errors in `refused` leave the entry as it was.
8. A `get` that misses is one load at a time in each process, at most `max_loads` of them; none that began
   before a write ended is given to who came after it. What cannot be read is a miss. Every key expires.
9. What cannot be encoded, decoded again, or is larger than `max_bytes` raises NotStorable before anything is
   written. The source gets the value that readers will get, whatever the caller does with it meanwhile.

Not guaranteed. Redis replicates asynchronously: a failover may bring back an older entry, or lose the mark of
a write, and so may a restart from an old file, or eviction; then the old value is read until its `ttl` ends,
or the next write. The source loses nothing. The same bound holds for a writer that dies while Redis is cut
off from it and not from readers; that was paused (or its COMMIT delayed) for longer than `lease`, and dies
before it can drop the entry; and for whoever writes to the source beside the cache and does not `invalidate`.
The source must give versions (2), see `patterns.cache.write_through.table`; where they begin anew (a restored
backup), an entry stays until its `ttl` ends or its key is written. A source that changes what it is given
(triggers, defaults, rounding) differs from the cache. `put` overwrites: of two read-modify-writes one is
lost, unless the source compares. `put_many` is no transaction.

Redis keys: `<app>:{write_through:<name>/<key>}:value|generation|writes`; see
`patterns.cache.write_through.entries`.

For the tasks of one event loop.

>>> import asyncio
>>> from patterns import database, keyspace
>>> TABLE = '''CREATE TABLE article (id TEXT PRIMARY KEY NOT NULL, version BIGINT NOT NULL,
...     deleted BOOLEAN NOT NULL, title TEXT, price BIGINT)'''
>>> async def main() -> None:
...     async with keyspace.opened() as redis, database.opened() as db:
...         await db.execute(TABLE)
...         table = VersionedTable(db, "article", key="id", columns=("title", "price"))
...         policy = Policy(ttl=60, negative_ttl=5, max_writes=8, max_loads=8)
...         articles = WriteThrough("articles", redis, policy, source=table, app="doctest")
...         print(await articles.put("42", {"title": "lamp", "price": 10}))
...         print(await articles.get("42"), (await table.load("42")).version)
...         print(await articles.delete("42"))
...         print(await articles.get("42"))
...         await articles.invalidate("42")
>>> asyncio.run(main())
Written(version=1, cached=True, stale_for=0.0)
{'title': 'lamp', 'price': 10} 1
Written(version=2, cached=True, stale_for=0.0)
None

Sources: Oracle Coherence, "Write-Through Caching"; Ehcache, "Cache writers" (write, writeAll, the exception
is the caller's); Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013 (leases, remote markers).
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from patterns.cache.cache_aside.errors import InvalidationFailed, LoadCancelled, LoadTimedOut, NotCacheable
from patterns.cache.cache_aside.events import (
    CacheHit,
    CacheMissed,
    EntryDiscarded,
    Invalidated,
    InvalidationOwed,
    Loaded,
    LoadFailed,
)
from patterns.cache.write_through.entries import Entries, new_token
from patterns.cache.write_through.errors import NotStorable, NotVersioned, StoreCancelled, StoreTimedOut
from patterns.cache.write_through.events import WriteFailed, WrittenThrough
from patterns.cache.write_through.loads import NOTHING, Loads, kept_for
from patterns.cache.write_through.policy import Policy
from patterns.cache.write_through.source import Source, Versioned, version_of
from patterns.cache.write_through.table import VersionedTable
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.entry import JSON, MISS, Codec, Json, Miss, Unreadable, Unwritable, decode, encode
from patterns.events import Listener, emit, ignore
from patterns.outage import CacheLost, CacheRegained, NoCache

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from patterns.keyspace import Client

__all__ = [
    "MISS",
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
    "NotStorable",
    "NotVersioned",
    "Policy",
    "Source",
    "StoreCancelled",
    "StoreTimedOut",
    "Versioned",
    "VersionedTable",
    "WriteFailed",
    "WriteThrough",
    "Written",
    "WrittenThrough",
]


@dataclass(frozen=True, slots=True)
class Written:
    """What came of a write that the source has.

    Attributes:
        version: what the source called it.
        cached: whether Redis has it; if not, the next reader loads.
        stale_for: seconds for which others may still read the old value at most; 0 where Redis answered.
    """

    version: int
    cached: bool
    stale_for: float = 0.0


_OPEN = (NotVersioned, StoreCancelled, StoreTimedOut)  # whatever `refused` says


@dataclass(slots=True, eq=False)
class _Write:
    """A write under way.

    Attributes:
        key: what is written.
        began: when its lease began.
        token: its mark in Redis.
        marked: when Redis had confirmed it; None if it did not.
    """

    key: str
    began: float
    token: str
    marked: float | None = None


class WriteThrough:
    """One cache of one kind of thing, and the one way to write it.

    Args:
        name: what is cached, as "articles"; first part of every key, and the source of events. A new name is
            a new cache: change it when the shape of the values changes.
        client: from `patterns.keyspace`.
        policy: how long values are kept, and what writes and loads may cost.
        source: where the things are kept: `load`, `store` and `delete`, and their versions.
        app: first part of the keys.
        codec: turns values into bytes and back.
        clock: where durations are read.
        rng: draws the jitter.
        on_event: hears WrittenThrough, WriteFailed, CacheHit, CacheMissed, Loaded, LoadFailed,
            EntryDiscarded, Invalidated, InvalidationOwed, CacheLost and CacheRegained.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        policy: Policy,
        *,
        source: Source,
        app: str,
        codec: Codec = JSON,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        self.name = name
        self.policy = policy
        self._source = source
        self._codec = codec
        self._clock = clock
        self._rng = rng or random.Random()
        self._on_event = on_event
        longest = max(policy.ttl, policy.negative_ttl) * (1 + policy.jitter)
        self._bound = longest + 2 * policy.lease  # a load under way may still be kept for so long
        self._entries = Entries(
            name,
            client,
            app=app,
            lease=policy.lease,
            timeout=policy.timeout,
            back_off=policy.back_off,
            clock=clock,
            on_event=on_event,
        )
        self._loads = Loads(
            name,
            self._entries,
            source,
            policy,
            codec=codec,
            clock=clock,
            rng=self._rng,
            on_event=on_event,
        )
        self._permits = asyncio.Semaphore(policy.max_writes)

    async def get(self, key: str) -> Any:
        """Return the value of `key`, None if there is no such thing; from Redis, or from the source.

        Raises:
            LoadTimedOut: the load took longer than the lease.
            NotCacheable: the value was loaded and cannot be kept.
            Exception: whatever the load raised.
        """
        return await self._loads.get(key)

    async def peek(self, key: str) -> Any:
        """Return the value of `key` if it is in Redis, else MISS; nothing is loaded."""
        try:
            return await self._loads.look(key)
        except (Unreadable, NoCache):
            return MISS

    # --8<-- [start:put]
    async def put(self, key: str, value: Any) -> Written:
        """Store `value` in the source, then in Redis.

        Raises:
            NotStorable: it cannot be encoded, or is None; nothing was written.
            StoreTimedOut: the source took longer than the lease; it has the value, or it has not.
            ValueError: `key` can be no key; nothing was written.
            Exception: whatever the source raised; the value was not stored only if it is in `refused`.
        """
        entry = self._entry(key, value)
        stored = decode(self._codec, entry)  # what readers will get, and nobody else can change
        return await self._write(key, entry, partial(self._source.store, key, stored))

    async def delete(self, key: str) -> Written:
        """Delete `key` in the source, then leave a tombstone in Redis.

        Raises:
            Exception: as `put`.
        """
        return await self._write(key, NOTHING, partial(self._source.delete, key))

    async def _write(self, key: str, entry: bytes, change: Callable[[], Awaitable[int]]) -> Written:
        self._entries.keys(key)  # or it raises, before anything is written
        async with self._permits:
            write = await self._mark(key)
            deadline = write.began + self.policy.lease
            try:
                async with self._clock.timeout(deadline - self._clock.monotonic()):
                    given = await change()
                version = _version(key, given)
            except (Exception, asyncio.CancelledError) as error:
                named = self._named(key, error, late=self._clock.monotonic() >= deadline)
                await self._failed(write, named)
                if named is error:
                    raise
                raise named from error
            return await self._keep(write, version, entry)

    # --8<-- [end:put]

    async def put_many(self, values: Mapping[str, Any]) -> dict[str, Written | Exception]:
        """Put each value, `max_writes` at a time; return what came of each, in order.

        It is no transaction: some may be stored and others not.
        """
        outcomes: dict[str, Written | Exception] = {}

        async def one(key: str, value: Any) -> None:
            try:
                outcomes[key] = await self.put(key, value)
            except Exception as error:
                outcomes[key] = error

        async with asyncio.TaskGroup() as puts:
            for key, value in values.items():
                puts.create_task(one(key, value))
        return {key: outcomes[key] for key in values}

    async def invalidate(self, *keys: str) -> None:
        """Drop the entries of `keys`: call it after a change that did not come through this cache.

        Raises:
            InvalidationFailed: the old values may still be read for a while.
            ValueError: one of them can be no key; nothing was dropped.
        """
        for key in keys:
            self._entries.keys(key)
        try:
            await self._entries.drop(keys, bound=self._bound)
        except NoCache as error:
            raise InvalidationFailed(keys, self._bound) from error.__cause__

    # --8<-- [start:steps]
    async def _mark(self, key: str) -> _Write:
        """Tell Redis that a write is under way; without Redis, write all the same."""
        write = _Write(key, self._clock.monotonic(), new_token())
        try:
            await self._entries.mark(key, write.token)
            write.marked = self._clock.monotonic()
        except NoCache:
            write.began = self._clock.monotonic()  # it has all its time, for nobody waits for its mark
        except asyncio.CancelledError:  # it may be there
            with suppress(NoCache):
                await self._entries.unmark(key, write.token)
            raise
        return write

    async def _keep(self, write: _Write, version: int, entry: bytes) -> Written:
        """Tell Redis what the source has by now."""
        ttl = kept_for(entry, self.policy, self._rng)
        try:
            cached = await self._entries.keep(
                write.key, write.token, version, entry if ttl else b"", ttl, bound=self._left(write)
            )
            written = Written(version, cached)
        except NoCache:
            written = Written(version, cached=False, stale_for=self._left(write))
        except asyncio.CancelledError:  # Redis may have the old value
            self._wrote(write, version, cached=False)
            with suppress(NoCache):
                await self._entries.drop([write.key], bound=self._left(write))
            raise
        self._wrote(write, version, cached=written.cached)
        return written

    def _wrote(self, write: _Write, version: int, *, cached: bool) -> None:
        took = self._clock.monotonic() - write.began
        emit(self._on_event, WrittenThrough(self.name, write.key, version, cached, took))

    async def _failed(self, write: _Write, error: BaseException) -> None:
        """Leave the entry as it was where the source refused; else drop it, and leave the mark."""
        refused = isinstance(error, self.policy.refused) and not isinstance(error, _OPEN)
        took = self._clock.monotonic() - write.began
        emit(self._on_event, WriteFailed(self.name, write.key, refused, took, type(error).__name__))
        with suppress(NoCache):  # an event tells, and the caller hears what became of the write
            if refused:
                await self._entries.unmark(write.key, write.token)
            else:
                await self._entries.drop([write.key], bound=self._left(write))

    def _left(self, write: _Write) -> float:
        """Return the seconds for which the value from before the write may still be in Redis."""
        if write.marked is None:
            return self._bound
        return max(0.0, write.marked + self.policy.lease - self._clock.monotonic())

    # --8<-- [end:steps]

    def _named(self, key: str, error: BaseException, *, late: bool) -> BaseException:
        if isinstance(error, TimeoutError) and late:
            return StoreTimedOut(key, self.policy.lease)
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and not (task and task.cancelling()):
            return StoreCancelled(key)
        return error

    def _entry(self, key: str, value: object) -> bytes:
        if value is None:
            raise NotStorable(key, "None stands for what is not there: delete it")
        try:
            return encode(self._codec, value, stale_ms=0, max_bytes=self.policy.max_bytes)
        except Unwritable as error:
            raise NotStorable(key, str(error)) from error.__cause__


def _version(key: str, given: object) -> int:
    try:
        return version_of(given)
    except TypeError:
        raise NotVersioned(key, given) from None
