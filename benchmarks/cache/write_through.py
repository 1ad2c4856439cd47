"""A put and a hit; two writers, and one that dies: beside UPDATE, then SET, by hand and with other caches."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiocache
import cachetools
import cashews
import redis.asyncio

from benchmarks.paired import Case, row, time_async
from patterns import database
from patterns.cache.write_through import Policy, VersionedTable, WriteThrough
from patterns.embedded import Server
from patterns.keyspace import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from benchmarks.paired import Row

VALUE = {"name": "Ada Lovelace", "mail": "ada@example.org", "plan": "yearly", "since": "1843-09-05"}
TTL, LEASE, RACES = 60, 5, 20
TABLE = """CREATE TABLE reader (id TEXT PRIMARY KEY NOT NULL, version BIGINT NOT NULL,
    deleted BOOLEAN NOT NULL, name TEXT, mail TEXT, plan TEXT, since TEXT)"""


class Table(VersionedTable):
    """The rows; a write of a plan that has a gate comes back when that is open."""

    def __init__(self, db: database.Database) -> None:
        super().__init__(db, "reader", key="id", columns=list(VALUE))
        self.gates: dict[str, asyncio.Event] = {}
        self.committed: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def store(self, key: str, value: Any) -> int:
        """Write a row."""
        version = await super().store(key, value)
        self.committed[f"{key} {value['plan']}"].set()
        if gate := self.gates.get(value["plan"]):
            await gate.wait()
        return version


@dataclass
class Cache:
    """One way of writing both.

    Attributes:
        put: writes source and cache.
        get: reads the cache.
        close: ends it.
        left: seconds that an entry still lives; None where the cache does not say.
    """

    put: Callable[[str, Any], Awaitable[Any]]
    get: Callable[[str], Awaitable[Any]]
    close: Callable[[], Awaitable[Any]]
    left: Callable[[str], Awaitable[float]] | None = None


def _after(
    table: Table, write: Callable[[str, Any], Awaitable[Any]]
) -> Callable[[str, Any], Awaitable[None]]:
    """Return the put that most people write: the source, then the cache."""

    async def put(key: str, value: Any) -> None:
        await table.store(key, value)
        await write(key, value)

    return put


def by_hand(url: str, table: Table) -> Cache:
    """UPDATE, then SET."""
    client: Any = redis.asyncio.Redis.from_url(url)

    async def get(key: str) -> Any:
        return json.loads(await client.get(f"hand:{key}"))

    async def left(key: str) -> float:
        return float(await client.pttl(f"hand:{key}")) / 1000

    put = _after(table, lambda key, value: client.set(f"hand:{key}", json.dumps(value), ex=TTL))
    return Cache(put, get, client.aclose, left)


def ours(url: str, table: Table) -> Cache:
    """The module."""
    client = connect(url)
    policy = Policy(ttl=TTL, negative_ttl=10, max_writes=32, max_loads=8, lease=LEASE, jitter=0, timeout=5)
    cache = WriteThrough("readers", client, policy, source=table, app="bench")

    async def left(key: str) -> float:
        return float(await client.pttl(f"bench:{{write_through:readers/{key}}}:value")) / 1000

    return Cache(cache.put, cache.get, client.aclose, left)


def by_cashews(url: str, table: Table) -> Cache:
    """UPDATE, then cashews' set."""
    cache = cashews.Cache()
    cache.setup(url)

    async def left(key: str) -> float:
        return float(await cache.get_expire(f"cashews:{key}"))

    put = _after(table, lambda key, value: cache.set(f"cashews:{key}", value, expire=TTL))
    return Cache(put, lambda key: cache.get(f"cashews:{key}"), cache.close, left)


def by_aiocache(url: str, table: Table) -> Cache:
    """UPDATE, then aiocache's set."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    cache = aiocache.RedisCache(
        port=port, namespace="aiocache", serializer=aiocache.serializers.JsonSerializer()
    )

    async def left(key: str) -> float:
        return float(await cache.raw("pttl", cache.build_key(key, "aiocache"))) / 1000

    return Cache(
        _after(table, lambda key, value: cache.set(key, value, ttl=TTL)), cache.get, cache.close, left
    )


def by_cachetools(_: str, table: Table) -> Cache:
    """UPDATE, then an assignment."""
    store: Any = cachetools.TTLCache(1000, TTL)

    async def write(key: str, value: Any) -> None:
        store[key] = value

    async def get(key: str) -> Any:
        return store[key]

    async def close() -> None:
        pass

    return Cache(_after(table, write), get, close)


PEERS: dict[str, tuple[Callable[[str, Table], Cache], str | None]] = {
    "redis-py alone": (by_hand, "UPDATE, then SET"),
    "this module": (ours, None),
    "cashews": (by_cashews, "UPDATE, then set()"),
    "aiocache": (by_aiocache, "UPDATE, then set()"),
    "cachetools": (by_cachetools, "UPDATE, then an assignment: one process, no round trip"),
}
BASELINE = "redis-py alone"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Table, dict[str, Cache]]]:
    """Lend a table, and each cache over it."""
    async with database.opened() as db:
        await db.execute(TABLE)
        table = Table(db)
        caches = {name: make(url, table) for name, (make, _) in PEERS.items()}
        yield table, caches
        for cache in caches.values():
            await cache.close()


async def timings(url: str) -> list[Row]:
    """Return microseconds of a put and of a hit."""
    rows: list[Row] = []
    async with opened(url) as (table, caches):
        for cache in caches.values():
            await cache.put("hot", VALUE)
        alone = Case("a put: the UPDATE alone", lambda: table.store("hot", VALUE), note="no cache")
        puts = [
            Case(
                f"a put: {name}",
                lambda cache=cache: cache.put("hot", VALUE),  # type: ignore[misc]  # mypy has no type for it
                ours=name == "this module",
                baseline=name == BASELINE,
                note=PEERS[name][1] or "marks before and keeps after: two scripts",
            )
            for name, cache in caches.items()
        ]
        rows += await time_async([alone, *puts], rounds=21, calls=60, cpu=False)
        hits = [
            Case(
                f"a hit: {name}",
                lambda cache=cache: cache.get("hot"),  # type: ignore[misc]  # as above
                ours=name == "this module",
                baseline=name == BASELINE,
                note="GET and json.loads" if name == BASELINE else None,
            )
            for name, cache in caches.items()
        ]
        found = await time_async(hits, rounds=21, calls=150, cpu=False)
    return [_micro(each, "µs a put") for each in rows] + [_micro(each, "µs a hit") for each in found]


def _micro(each: Row, unit: str) -> Row:
    return each | {"value": float(f"{each['value'] / 1000:.4g}"), "unit": unit}


async def crossed(url: str) -> dict[str, int]:
    """Return of how many of 20 keys source and cache differ, when two writers reached them crosswise."""
    async with opened(url) as (table, caches):
        differ = dict.fromkeys(caches, 0)
        for name, cache in caches.items():
            for number in range(RACES):
                key, table.gates = f"{name} {number}", {"first": asyncio.Event()}
                first = asyncio.ensure_future(cache.put(key, VALUE | {"plan": "first"}))
                await table.committed[f"{key} first"].wait()
                await cache.put(key, VALUE | {"plan": "second"})
                table.gates["first"].set()
                await first
                differ[name] += await cache.get(key) != getattr(await table.load(key), "value", None)
        return differ


async def dies(url: str) -> dict[str, float]:
    """Return for how many seconds the old value is read when a writer ends between source and cache."""
    async with opened(url) as (table, caches):
        seconds: dict[str, float] = {}
        for name, cache in caches.items():
            if cache.left is None:
                continue
            await cache.put(name, VALUE)
            table.gates = {"never told": asyncio.Event()}
            writer = asyncio.ensure_future(cache.put(name, VALUE | {"plan": "never told"}))
            await table.committed[f"{name} never told"].wait()
            if await cache.get(name) != VALUE:
                raise RuntimeError(f"{name} does not have the old value")
            seconds[name] = round(await cache.left(name))
            writer.cancel()
            await asyncio.wait([writer])
        return seconds


def measure() -> list[Row]:
    """Return microseconds of a put and of a hit, differences after races, and old values after a death."""
    with Server() as server:
        rows = asyncio.run(timings(server.url))
        differ, old = asyncio.run(crossed(server.url)), asyncio.run(dies(server.url))
    rows += [
        _row("two writers, crosswise", name, differ, unit=f"differ of {RACES}", n=RACES) for name in differ
    ]
    return rows + [_row("a writer dies", name, old, unit="s of the old value", n=1) for name in old]


def _row(case: str, name: str, values: Mapping[str, float], *, unit: str, n: int) -> Row:
    return row(
        f"{case}: {name}",
        values[name],
        unit,
        n=n,
        baseline_value=values[BASELINE],
        ours=name == "this module",
        baseline=name == BASELINE,
        note=f"ttl {TTL} s, lease {LEASE} s" if n == 1 else None,
    )


def bounds(rows: list[Row]) -> list[str]:
    """No difference, no old value beyond the lease, a hit within 1.3 times GET, a put within 3 times."""
    mine = {each["unit"]: each for each in rows if each["ours"]}
    broken = []
    if mine[f"differ of {RACES}"]["value"]:
        broken.append("source and cache differ")
    if mine["s of the old value"]["value"] > LEASE:
        broken.append("an old value outlives the lease")
    for unit, most in {"µs a hit": 1.3, "µs a put": 3}.items():
        if mine[unit]["ratio"] > most:
            broken.append(f"{unit} takes {mine[unit]['ratio']} times as long as by hand")
    return broken
