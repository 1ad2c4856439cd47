"""Acknowledge a write once it is in Redis, and bring it to the database later: in batches, each key once.

A database that commits each of ten thousand small writes a second does little else. A buffer in front of it
answers at once and writes one row where a hundred changes were. But a buffer in the process dies with it, a
batch that is repeated puts an old value over a new one, and a buffer without a bound ends with the memory.

Guaranteed, each by a test that rejects a naive variant:

1. A write is acknowledged when it is in Redis, and on `wait_replicas` replicas if that is asked for; nothing
   but Redis is needed from then on. Killing writers and flushers loses no acknowledged write.
2. What a key is in the source never goes back: a batch that is late, repeated or overtaken changes no row
   that has a newer version, and a deletion is not undone.
3. Of the writes of a key within `delay`, one reaches the source: the last. With `coalesce=False` all do, in
   order, each once. A call of the store has at most `batch` changes, and each key once.
4. Once `put` or `delete` has returned, `get` in any process returns that value or a later one: before the
   flush, during it and after it, also while the change is parked. Who counts the shards otherwise than those
   before, and so would look into another queue, or leave some behind, gets OtherShards.
5. A shard holds at most `capacity` changes. A write that finds no room waits `max_wait`, then raises
   QueueFull; one that replaces a waiting one needs none. Nothing is dropped. `lag_seconds` is the age of the
   oldest change that waits.
6. A change that the source has refused `max_attempts` times is parked, where it can be seen, redriven or
   discarded; the others go on. An outage of the source, however long, parks nothing.
7. A flusher that closes stores what waits by then, for at most `drain` seconds, and says which keys are left;
   they stay in Redis, and the next flusher goes on with them.
8. One flusher has a shard at a time, while its lease holds; the shard of one that was killed or paused is
   another's after `lease`, and what the old one stores later changes nothing that is newer.
9. What cannot be encoded, decoded again, or is larger than `max_bytes` raises NotStorable before anything is
   written. What cannot be read is parked.

Not guaranteed. Redis replicates asynchronously: a failover loses the last acknowledged writes, and they exist
nowhere else, so they are lost for good. `wait_replicas` makes that unlikely, not impossible; where no replica
is left each put takes `wait_seconds` and ends in NotReplicated. A restart loses what was not on disk: all of
it without an append-only file, up to a second with `appendfsync everysec`. An older change can come back in
either case; where the source has a newer version it is parked, not stored. Changes of different keys reach
the source in any order, and are not one transaction. A write whose reply was lost (OutcomeUnknown) or that
too few replicas have (NotReplicated) may reach the source. What the source would refuse is found out after
the acknowledgement: check before you put. A change that kills the process of each flusher is not counted as
refused.

The store must keep versions (2, 8): see `patterns.cache.write_behind.table`. Redis keys: see
`patterns.cache.write_behind.shard`; none expires, so Redis (7, or Valkey) must not evict (`noeviction`). All
writers and flushers of one name have one policy. The number of shards is compared once in each process: one
that runs on while Redis forgets everything may meet one that counts otherwise.

For the tasks of one event loop.

>>> import asyncio
>>> from patterns import database, keyspace
>>> TABLE = '''CREATE TABLE article (id TEXT PRIMARY KEY NOT NULL, version BIGINT NOT NULL,
...     deleted BOOLEAN NOT NULL, title TEXT, price BIGINT)'''
>>> async def main() -> None:
...     async with keyspace.opened() as redis, database.opened() as db:
...         await db.execute(TABLE)
...         table = VersionedTable(db, "article", key="id", columns=("title", "price"))
...         policy = Policy(capacity=10_000, delay=1)
...         articles = WriteBehind("articles", redis, policy, app="doctest")
...         for price in (10, 11, 12):
...             await articles.put("42", {"title": "lamp", "price": price})
...         print("in the source:", await table.load("42"))
...         print("for readers:  ", await articles.get("42", table.load, "42"))
...         async with Flusher("articles", redis, policy, table.store, app="doctest") as flusher:
...             pass  # as a process of its own it would wait for SIGTERM here; then it stores what is left
...         print("in the source:", await table.load("42"), flusher.left)
>>> asyncio.run(main())
in the source: None
for readers:   {'title': 'lamp', 'price': 12}
in the source: {'title': 'lamp', 'price': 12} ()

Sources: Oracle Coherence, "Caching Data Sources" (write-behind, requeueing); Ehcache, "Write-behind"
(batching, coalescing, bounded queue); Kleppmann, "How to do distributed locking" (fencing).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from patterns.cache.write_behind.change import DELETED, Change, Deleted, Parked, Stats
from patterns.cache.write_behind.errors import NotReplicated, NotStorable, OtherShards, QueueFull
from patterns.cache.write_behind.events import (
    BatchFlushed,
    ChangeFailed,
    ChangeParked,
    ChangeQueued,
    ChangeRefused,
    Drained,
    RedisLost,
    RedisRegained,
    ShardTaken,
    SourceFailed,
    WriteRejected,
)
from patterns.cache.write_behind.flusher import Flusher, Store
from patterns.cache.write_behind.policy import Policy
from patterns.cache.write_behind.shards import Shards
from patterns.cache.write_behind.table import VersionedTable
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.entry import JSON, MISS, Codec, Json, Miss, Unreadable
from patterns.events import Listener, emit, ignore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patterns.keyspace import Client

__all__ = [
    "DELETED",
    "MISS",
    "BatchFlushed",
    "Change",
    "ChangeFailed",
    "ChangeParked",
    "ChangeQueued",
    "ChangeRefused",
    "Codec",
    "Deleted",
    "Drained",
    "Flusher",
    "Json",
    "Miss",
    "NotReplicated",
    "NotStorable",
    "OtherShards",
    "Parked",
    "Policy",
    "QueueFull",
    "RedisLost",
    "RedisRegained",
    "ShardTaken",
    "SourceFailed",
    "Stats",
    "Store",
    "Unreadable",
    "VersionedTable",
    "WriteBehind",
    "WriteRejected",
]

P = ParamSpec("P")
T = TypeVar("T")


class WriteBehind:
    """The writers' and readers' side of the queues of one kind of thing.

    Args:
        name: what is written, as "articles"; first part of every entity's key, and the source of events.
        client: from `patterns.keyspace`.
        policy: how much may wait, and for how long.
        app: first part of the keys.
        codec: turns values into bytes and back.
        clock: where durations are read.
        rng: spreads the looks of writers that wait.
        on_event: hears ChangeQueued and WriteRejected.
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
        self._clock = clock
        self._rng = rng or random.Random()
        self._on_event = on_event
        self._shards = Shards(name, client, policy, app=app, codec=codec)

    # --8<-- [start:put]
    async def put(self, key: str, value: Any) -> int:
        """Acknowledge that `key` becomes `value`; return the version of the change.

        Raises:
            NotStorable: nothing was written; nor where `key` is empty or no UTF-8, a ValueError.
            QueueFull: nothing was written.
            NotReplicated: it is queued, and a failover may forget it.
            OtherShards: nothing was written.
            OutcomeUnknown: of `patterns.keyspace`: it is queued, or it is not.
            RedisError: any other: it is not queued.
        """
        packed = self._shards.records.pack(key, value)
        await self._shards.agree(claim=True)
        shard = self._shards.of(packed[0])
        began = self._clock.monotonic()
        while True:
            queued = await shard.put(key, packed)
            if queued is not None:
                version, replaced = queued
                if self._on_event is not ignore:
                    emit(self._on_event, ChangeQueued(self.name, key, version, replaced))
                return version
            waited = self._clock.monotonic() - began
            if waited >= self.policy.max_wait:
                emit(self._on_event, WriteRejected(self.name, key, waited))
                raise QueueFull(key, self.policy.capacity, waited)
            pause = self.policy.poll * self._rng.uniform(0.5, 1)
            await self._clock.sleep(min(pause, self.policy.max_wait - waited))

    async def delete(self, key: str) -> int:
        """Acknowledge that `key` goes; as `put`, and what it returns and raises too."""
        return await self.put(key, DELETED)

    # --8<-- [end:put]

    # --8<-- [start:get]
    async def get(
        self, key: str, load: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Any:
        """Return what was last written to `key`: from the queue, or else from `await load(*args, **kwargs)`.

        None where it was deleted. A change leaves the queue when the source has it, so whoever looks in this
        order misses none; `load` must not read a replica that lags behind.

        Raises:
            Unreadable: what is queued is not of this codec.
            OtherShards: the policy has another number of them.
            Exception: whatever the load raised.
        """
        value = await self.peek(key)
        if value is MISS:
            return await load(*args, **kwargs)
        return None if value is DELETED else value

    # --8<-- [end:get]

    async def peek(self, key: str) -> Any:
        """Return the newest value of `key` that is not in the source yet, DELETED, or MISS if there is none.

        Raises:
            Unreadable: what is queued is not of this codec.
            OtherShards: the policy has another number of them.
        """
        name, _ = self._shards.records.pack(key, DELETED)
        await self._shards.agree(claim=False)
        return await self._shards.of(name).peek(key)

    async def stats(self) -> Stats:
        """Say how much waits in all shards, and for how long: a metric to alert on."""
        await self._shards.agree(claim=False)
        each = [await shard.stats() for shard in self._shards]
        return Stats(
            sum(one.waiting for one in each),
            sum(one.parked for one in each),
            max(one.lag_seconds for one in each),
        )

    async def parked(self, most: int = 100) -> list[Parked]:
        """Return up to `most` parked changes, the oldest first."""
        await self._shards.agree(claim=False)
        found = [change for shard in self._shards for change in await shard.parked(most)]
        return sorted(found, key=lambda change: change.version)[:most]

    async def redrive(self, *changes: Parked) -> int:
        """Try parked changes again; return how many were parked. A newer version in the source stays."""
        return await self._resolve("redrive", changes)

    async def discard(self, *changes: Parked) -> int:
        """Give parked changes up for good; return how many were parked."""
        return await self._resolve("discard", changes)

    async def _resolve(self, how: str, changes: tuple[Parked, ...]) -> int:
        await self._shards.agree(claim=False)
        done = 0
        for shard in self._shards:
            done += await shard.resolve(how, [each for each in changes if each.shard == shard.number])
        return done
