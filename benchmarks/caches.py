"""The five caches, and none, each in front of the same source and behind the same two methods.

The source is a table in SQLite, some milliseconds away as a database of another machine is: the ways to it
and back are drawn from one distribution, so that one request may overtake another. What it is asked is
counted.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from benchmarks.traffic import key_of
from patterns.cache import cache_aside, read_through, refresh_ahead, write_behind, write_through

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from patterns.database import Database
    from patterns.events import Event
    from patterns.keyspace import Client

__all__ = [
    "BEHIND",
    "BUFFER",
    "CACHES",
    "FIVE",
    "LATENCY",
    "NAIVE",
    "NONE",
    "TTL",
    "Contender",
    "Counts",
    "Source",
    "opened_cache",
]

P = ParamSpec("P")
T = TypeVar("T")
TABLE = """CREATE TABLE IF NOT EXISTS item (id TEXT PRIMARY KEY NOT NULL, version BIGINT NOT NULL,
    deleted BOOLEAN NOT NULL, n BIGINT)"""
LATENCY = 0.005  # seconds there and back, on the average
SPREAD = 0.6  # of the logarithm of each way
TTL = 2.0


@dataclass
class Counts:
    """What was asked of the source, and how many readers had to wait for it; each with its time."""

    reads: list[float] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)  # round trips
    missed: list[float] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        """Hear what a cache tells."""
        if isinstance(event, cache_aside.CacheMissed):
            self.missed.append(time.monotonic())


class Source:
    """The table, at a distance.

    Args:
        database: from `patterns.database`.
        rng: draws the latencies.
        counts: where questions are counted.
        latency: seconds there and back, on the average.
    """

    def __init__(
        self, database: Database, rng: random.Random, counts: Counts, latency: float = LATENCY
    ) -> None:
        self._database = database
        self._rng = rng
        self._mean = latency / 2
        self.counts = counts
        self._rows = write_through.VersionedTable(database, "item", key="id", columns=["n"])
        self._batches = write_behind.VersionedTable(database, "item", key="id", columns=["n"])

    async def fill(self, keys: int) -> None:
        """Make the table; the number of each key is 0."""
        await self._database.execute(TABLE)
        await self._database.execute("DELETE FROM item")
        for start in range(0, keys, 1000):
            ids = [key_of(rank) for rank in range(start, min(start + 1000, keys))]
            places = ", ".join(f"(${at}, 1, FALSE, 0)" for at in range(1, len(ids) + 1))
            await self._database.execute(f"INSERT INTO item VALUES {places}", *ids)

    async def load(self, key: str) -> dict[str, int] | None:
        """Return a value."""
        found = await self.load_version(key)
        return None if found is None else found.value

    async def load_version(self, key: str) -> write_through.Versioned | None:
        """Return a value with its version."""
        self.counts.reads.append(time.monotonic())
        return await self._far(self._rows.load, key)

    async def store(self, key: str, value: dict[str, int]) -> int:
        """Write a value; return its version."""
        self.counts.writes.append(time.monotonic())
        return await self._far(self._rows.store, key, value)

    async def delete(self, key: str) -> int:
        """Delete a value; return the version of that."""
        self.counts.writes.append(time.monotonic())
        return await self._far(self._rows.delete, key)

    async def store_batch(self, batch: Sequence[write_behind.Change]) -> Mapping[str, int]:
        """Write what is newer than its row."""
        self.counts.writes.append(time.monotonic())
        return await self._far(self._batches.store, batch)

    async def _far(self, ask: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        await asyncio.sleep(self._way())
        answer = await ask(*args, **kwargs)
        await asyncio.sleep(self._way())
        return answer

    def _way(self) -> float:
        # Of a lognormal variable with this mu the mean is 1.
        return self._mean * self._rng.lognormvariate(-SPREAD * SPREAD / 2, SPREAD)


class Versions:
    """The source as Write-Through wants it."""

    def __init__(self, source: Source) -> None:
        self.load, self.store, self.delete = source.load_version, source.store, source.delete


@dataclass
class Contender:
    """A cache and its source, as a trace sees them."""

    get: Callable[[str], Awaitable[Any]]
    put: Callable[[str, dict[str, int]], Awaitable[int]]

    async def read(self, key: str) -> int:
        """Return the number."""
        return int((await self.get(key))["n"])

    async def write(self, key: str, number: int) -> int:
        """Return the order of the write."""
        return await self.put(key, {"n": number})


@dataclass
class Setting:
    """What each of them is given."""

    redis: Client
    source: Source
    app: str
    ttl: float

    @property
    def reads(self) -> dict[str, Any]:
        """The part of the policies that they share; no time-out that a busy machine would reach."""
        return {"ttl": self.ttl, "negative_ttl": 1, "max_loads": 64, "timeout": 5}

    def after(self, cache: Any) -> Callable[[str, dict[str, int]], Awaitable[int]]:
        """Return a write to the source that is followed by an invalidation."""

        async def put(key: str, value: dict[str, int]) -> int:
            version = await self.source.store(key, value)
            await cache.invalidate(key)
            return version

        return put


@asynccontextmanager
async def _none(at: Setting) -> AsyncIterator[Contender]:
    async def get(key: str) -> Any:
        at.source.counts.missed.append(time.monotonic())
        return await at.source.load(key)

    yield Contender(get, at.source.store)


@asynccontextmanager
async def _naive(at: Setting) -> AsyncIterator[Contender]:
    async def get(key: str) -> Any:
        if (cached := await at.redis.get(f"{at.app}:{key}")) is not None:
            return json.loads(cached)
        at.source.counts.missed.append(time.monotonic())
        value = await at.source.load(key)
        await at.redis.set(f"{at.app}:{key}", json.dumps(value), px=round(at.ttl * 1000))
        return value

    async def put(key: str, value: dict[str, int]) -> int:
        version = await at.source.store(key, value)
        await at.redis.delete(f"{at.app}:{key}")
        return version

    yield Contender(get, put)


@asynccontextmanager
async def _cache_aside(at: Setting) -> AsyncIterator[Contender]:
    policy = cache_aside.Policy(**at.reads)
    cache = cache_aside.CacheAside("items", at.redis, policy, app=at.app, on_event=at.source.counts)
    yield Contender(
        lambda key: cache.get(key, at.source.load, key),
        lambda key, value: cache.write(key, at.source.store, key, value),
    )


def _read_through(at: Setting) -> read_through.ReadThrough:
    policy = read_through.Policy(**at.reads)
    return read_through.ReadThrough(
        "items", at.redis, policy, load=at.source.load, app=at.app, on_event=at.source.counts
    )


@asynccontextmanager
async def _reading_through(at: Setting) -> AsyncIterator[Contender]:
    cache = _read_through(at)
    yield Contender(cache.get, at.after(cache))


@asynccontextmanager
async def _write_through(at: Setting) -> AsyncIterator[Contender]:
    policy = write_through.Policy(**at.reads, max_writes=64)
    cache = write_through.WriteThrough(
        "items", at.redis, policy, source=Versions(at.source), app=at.app, on_event=at.source.counts
    )

    async def put(key: str, value: dict[str, int]) -> int:
        return (await cache.put(key, value)).version

    yield Contender(cache.get, put)


# Short times, so that a shard whose flusher was killed is another's after a second.
BEHIND = write_behind.Policy(
    capacity=100_000, delay=1, shards=1, poll=0.02, lease=1, store_timeout=0.9, drain=10
)


@asynccontextmanager
async def _write_behind(at: Setting) -> AsyncIterator[Contender]:
    behind = write_behind.WriteBehind("items", at.redis, BEHIND, app=at.app)
    through = _read_through(at)

    async def store(batch: Sequence[write_behind.Change]) -> Mapping[str, int]:
        newer = await at.source.store_batch(batch)
        await through.invalidate(*[change.key for change in batch])  # before the changes leave the queue
        return newer

    async def get(key: str) -> Any:
        return await behind.get(key, through.get, key)

    async with write_behind.Flusher("items", at.redis, BEHIND, store, app=at.app):
        yield Contender(get, behind.put)


@asynccontextmanager
async def _refresh_ahead(at: Setting) -> AsyncIterator[Contender]:
    policy = refresh_ahead.Policy(**at.reads, max_refreshes=32, refresh_after=0.8, refresh_pause=at.ttl / 20)
    async with refresh_ahead.RefreshAhead(
        "items", at.redis, policy, load=at.source.load, app=at.app, on_event=at.source.counts
    ) as cache:
        yield Contender(cache.get, at.after(cache))


@asynccontextmanager
async def _buffer(at: Setting) -> AsyncIterator[Contender]:
    """Write-Behind as it is written first: the queue is a list of this process."""
    waiting: dict[str, write_behind.Change] = {}

    async def put(key: str, value: dict[str, int]) -> int:
        version = time.time_ns()
        waiting[key] = write_behind.Change(key, value, version)
        return version

    async def flush() -> None:
        while True:
            await asyncio.sleep(BEHIND.delay)
            batch = list(waiting.values())
            if batch:
                await at.source.store_batch(batch)
            for change in batch:
                if waiting.get(change.key) is change:
                    del waiting[change.key]

    async def get(key: str) -> Any:
        return waiting[key].value if key in waiting else await at.source.load(key)

    task = asyncio.create_task(flush())
    try:
        yield Contender(get, put)
    finally:
        task.cancel()


NONE, NAIVE, BUFFER = "no cache", "GET, load, SET", "a buffer in the process"
FIVE: dict[str, Callable[[Setting], AbstractAsyncContextManager[Contender]]] = {
    "Cache-Aside": _cache_aside,
    "Read-Through": _reading_through,
    "Write-Through": _write_through,
    "Write-Behind": _write_behind,
    "Refresh-Ahead": _refresh_ahead,
}
CACHES = {NONE: _none, NAIVE: _naive, **FIVE}


def opened_cache(
    name: str, redis: Client, source: Source, *, app: str, ttl: float = TTL, told: bool = True
) -> AbstractAsyncContextManager[Contender]:
    """Lend a cache by its name.

    Args:
        name: of CACHES, or BUFFER.
        redis: from `patterns.keyspace`.
        source: where the values are.
        app: first part of its keys.
        ttl: seconds for which it keeps values.
        told: whether the cache hears of the writes; else they go past it, to the source.
    """
    at = Setting(redis, source, app, ttl)
    opened = _buffer(at) if name == BUFFER else CACHES[name](at)
    return opened if told else _past(opened, source)


@asynccontextmanager
async def _past(opened: AbstractAsyncContextManager[Contender], source: Source) -> AsyncIterator[Contender]:
    async with opened as contender:
        yield Contender(contender.get, source.store)
