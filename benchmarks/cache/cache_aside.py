"""A hit, a stampede, and a write during a load: beside the bare client and the caches a reader would pick."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiocache
import cachetools
import cashews
import dogpile.cache
import redis
import redis.asyncio

from benchmarks.paired import Case, row, time_async
from patterns.cache.cache_aside import CacheAside, Policy
from patterns.embedded import Server
from patterns.keyspace import connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.paired import Row

    Load = Callable[[], Awaitable[Any]]

VALUE = {"id": 42, "name": "Ada Lovelace", "mail": "ada@example.org", "plan": "yearly", "since": "1843-09-05"}
CALLERS, PROCESSES, RACES = 200, 4, 20
WIDE = 256  # connections: 200 callers of a default pool of 100 get MaxConnectionsError
SOURCE_SECONDS = 0.25
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Cache:
    """One way of caching: how to read, delete and close."""

    get: Callable[[str, Load], Awaitable[Any]]
    delete: Callable[[str], Awaitable[Any]]
    close: Callable[[], Awaitable[Any]]
    hit: Callable[[], Any] | None = None  # a hit of "hot" without the way through `get`


def bare(url: str) -> Cache:
    """Get, else load and set."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=WIDE)
    client: Any = redis.asyncio.Redis.from_pool(pool)
    default: Any = redis.asyncio.Redis.from_url(url)

    async def get(key: str, load: Load) -> Any:
        cached = await client.get(f"bare:{key}")
        if cached is not None:
            return json.loads(cached)
        value = await load()
        await client.set(f"bare:{key}", json.dumps(value), ex=60)
        return value

    async def close() -> None:
        await client.aclose()
        await default.aclose()

    return Cache(get, lambda key: client.delete(f"bare:{key}"), close, lambda: default.get("bare:hot"))


def ours(url: str) -> Cache:
    """The module."""
    client = connect(url, max_connections=64)
    policy = Policy(ttl=60, negative_ttl=10, max_loads=8, timeout=5)
    cache = CacheAside("users", client, policy, app="bench")
    return Cache(cache.get, cache.invalidate, client.aclose)


def by_cashews(url: str, *, lock: bool) -> Cache:
    """Use cashews' decorator on Redis."""
    cache = cashews.Cache()
    cache.setup(url, max_connections=WIDE)
    loads: dict[str, Load] = {}

    async def load_one(key: str) -> Any:
        return await loads[key]()

    cached = cache(ttl=60, key="{key}", prefix=f"cashews{lock}", lock=lock)(load_one)

    async def get(key: str, load: Load) -> Any:
        loads.setdefault(key, load)
        return await cached(key)

    async def delete(key: str) -> None:
        await cache.delete_match(f"cashews{lock}*{key}")

    return Cache(get, delete, cache.close, lambda: cached("hot"))


def by_aiocache(url: str) -> Cache:
    """Use aiocache's stampede decorator on Redis."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    loads: dict[str, Load] = {}
    decorator = aiocache.cached_stampede(
        lease=5,
        ttl=60,
        cache=aiocache.RedisCache,
        port=port,
        pool_max_size=WIDE,
        namespace="aiocache",
        serializer=aiocache.serializers.JsonSerializer(),
        key_builder=lambda _, key: key,
    )

    async def load_one(key: str) -> Any:
        return await loads[key]()

    cached = decorator(load_one)

    async def get(key: str, load: Load) -> Any:
        loads.setdefault(key, load)
        return await cached(key)

    return Cache(get, decorator.cache.delete, decorator.cache.close, lambda: cached("hot"))


def in_threads(
    get: Callable[[str, Callable[[], Any]], Any], delete: Callable[[str], Any], hit: Callable[[], Any]
) -> Cache:
    """Give a synchronous cache a thread for each caller; its loads run on the event loop."""
    threads = ThreadPoolExecutor(CALLERS + 1)

    async def get_async(key: str, load: Load) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            threads, get, key, lambda: asyncio.run_coroutine_threadsafe(_coroutine(load), loop).result()
        )

    async def delete_async(key: str) -> None:
        delete(key)

    async def close() -> None:
        threads.shutdown()

    async def hit_async() -> Any:
        return hit()

    return Cache(get_async, delete_async, close, hit_async)


async def _coroutine(load: Load) -> Any:
    return await load()


def by_dogpile(url: str) -> Cache:
    """Use dogpile.cache on Redis, with its lock in Redis."""
    region = dogpile.cache.make_region().configure(
        "dogpile.cache.redis",
        expiration_time=60,
        arguments={
            "connection_pool": redis.BlockingConnectionPool.from_url(url, max_connections=WIDE),
            "distributed_lock": True,
            "lock_timeout": 5,
            "lock_sleep": 0.02,
            "thread_local_lock": False,
        },
    )
    return in_threads(
        lambda key, load: region.get_or_create(f"dogpile:{key}", load),
        lambda key: region.delete(f"dogpile:{key}"),
        lambda: region.get("dogpile:hot"),
    )


def by_cachetools(_: str) -> Cache:
    """Use cachetools in the process, with a condition."""
    store: Any = cachetools.TTLCache(1000, 60)
    loads: dict[str, Callable[[], Any]] = {}

    def load_one(key: str) -> Any:
        return loads[key]()

    cached = cachetools.cached(store, key=lambda key: key, condition=threading.Condition())(load_one)

    def get(key: str, load: Callable[[], Any]) -> Any:
        loads.setdefault(key, load)
        return cached(key)

    return in_threads(get, lambda key: store.pop(key, None), lambda: cached("hot"))


PEERS: dict[str, tuple[Callable[[str], Cache], str | None]] = {
    "redis-py alone": (bare, "get, load, set: nothing but expiry"),
    "this module": (ours, None),
    "cashews": (lambda url: by_cashews(url, lock=False), "as it comes: one load in each process"),
    "cashews, lock=True": (lambda url: by_cashews(url, lock=True), "a lock in Redis"),
    "aiocache": (
        by_aiocache,
        "cached_stampede waits only for a lock that this process has registered; None is never kept",
    ),
    "dogpile.cache": (by_dogpile, "threads; distributed_lock with a lock_timeout, which is off by default"),
    "cachetools": (by_cachetools, "condition=; threads of one process, nobody else's invalidation is seen"),
}
BASELINE = "redis-py alone"


async def hits(url: str) -> list[Row]:
    """Return microseconds of a hit."""
    caches = {name: make(url) for name, (make, _) in PEERS.items()}

    async def value() -> Any:
        return VALUE

    for cache in caches.values():
        await cache.get("hot", value)

    def hit_of(cache: Cache) -> Callable[[], Any]:
        return cache.hit or (lambda: cache.get("hot", value))

    names = {
        BASELINE: "redis-py's own GET, undecoded",
        "dogpile.cache": "dogpile.cache (synchronous)",
        "cachetools": "cachetools (in the process)",
    }
    notes = {BASELINE: "the limit: one round trip", "cachetools": "no round trip, one process"}
    cases = [
        Case(
            f"a hit: {names.get(name, name)}",
            hit_of(cache),
            ours=name == "this module",
            baseline=name == BASELINE,
            note=notes.get(name),
        )
        for name, cache in caches.items()
        if name != "cashews, lock=True"
    ]
    rows = await time_async(cases, rounds=21, calls=150, cpu=False)
    for cache in caches.values():
        await cache.close()
    return [each | {"value": float(f"{each['value'] / 1000:.4g}"), "unit": "µs"} for each in rows]


async def herd(cache: Cache, key: str, callers: int, load: Load) -> int:
    """Let callers miss one key together; return how many failed."""
    got = await asyncio.gather(*[cache.get(key, load) for _ in range(callers)], return_exceptions=True)
    return sum(isinstance(each, BaseException) for each in got)


async def one_process(url: str, name: str) -> tuple[int, int]:
    """Return loads and failed callers of 200 in one process."""
    cache, loads = PEERS[name][0](url), 0

    async def load() -> Any:
        nonlocal loads
        loads += 1
        await asyncio.sleep(SOURCE_SECONDS)
        return VALUE

    failed = await herd(cache, "cold", CALLERS, load)
    await cache.close()
    return loads, failed


async def one_of_many(url: str, name: str) -> None:
    """Be one of the processes: wait for the word, let 50 callers miss, count loads in Redis."""
    cache = PEERS[name][0](url)
    client: Any = redis.asyncio.Redis.from_url(url, protocol=2)

    async def load() -> Any:
        await client.incr("bench:loads")
        await asyncio.sleep(SOURCE_SECONDS)
        return VALUE

    await herd(cache, "warm", CALLERS // PROCESSES, load)  # opens the connections
    await client.incr("bench:ready")
    await client.xread({"bench:go": "0"}, block=30_000)
    await client.incrby("bench:failed", await herd(cache, "cold", CALLERS // PROCESSES, load))
    await cache.close()
    await client.aclose()


def many_processes(name: str) -> tuple[int, int]:
    """Return loads and failed callers of 4 processes with 50 callers each."""
    with Server() as server:
        command = [sys.executable, "-m", "benchmarks.cache.cache_aside", name, server.url]
        processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(PROCESSES)]
        while int(server.command("GET", "bench:ready") or 0) < PROCESSES:
            time.sleep(0.01)
        server.command("DEL", "bench:loads")
        server.command("XADD", "bench:go", "*", "now", "1")
        if any(process.wait() for process in processes):
            raise RuntimeError(f"a process of {name!r} failed")
        return int(server.command("GET", "bench:loads")), int(server.command("GET", "bench:failed"))


async def stale(url: str, name: str) -> int:
    """Return how many of 20 keys hold the old value after a write during their load."""
    cache = PEERS[name][0](url)
    old = [await race(cache, f"race{number}") for number in range(RACES)]
    await cache.close()
    return sum(old)


async def race(cache: Cache, key: str) -> bool:
    """Write and delete while a load is under way; say whether the old value is in the cache afterwards."""
    source, loading, go_on = {key: "old"}, asyncio.Event(), asyncio.Event()

    async def load() -> str:
        value = source[key]
        loading.set()
        await go_on.wait()
        return value

    reader = asyncio.create_task(_coroutine(lambda: cache.get(key, load)))
    await loading.wait()
    source[key] = "new"
    await cache.delete(key)
    go_on.set()
    await reader
    return bool(await cache.get(key, load) == "old")


def measure() -> list[Row]:
    """Return microseconds of a hit, loads of a stampede, and old values after races."""
    with Server() as server:
        rows = asyncio.run(hits(server.url))
        loads = {name: asyncio.run(one_process(server.url, name)) for name in PEERS}
        old = {name: (asyncio.run(stale(server.url, name)), 0) for name in PEERS}
    rows += _counted("200 callers", "loads", loads, CALLERS)
    rows += _counted("4 processes", "loads by 4", {name: many_processes(name) for name in PEERS}, CALLERS)
    return rows + _counted("write while loading", f"old of {RACES}", old, RACES)


def _counted(told: str, unit: str, counts: dict[str, tuple[int, int]], n: int) -> list[Row]:
    """Return one row for each cache from its count and its failed callers."""
    return [
        row(
            f"{told}: {name}",
            value,
            unit,
            n=n,
            baseline_value=counts[BASELINE][0],
            ours=name == "this module",
            baseline=name == BASELINE,
            note=f"{failed} callers got an error"
            if failed
            else PEERS[name][1]
            if unit == "loads by 4"
            else None,
        )
        for name, (value, failed) in counts.items()
    ]


def bounds(rows: list[Row]) -> list[str]:
    """One load for all, nothing old, and a hit within 1.3 times redis-py's own GET."""
    mine = {each["unit"]: each for each in rows if each["ours"]}
    broken = [
        f"{mine[unit]['value']:g} {unit}, not 1"
        for unit in ("loads", "loads by 4")
        if mine[unit]["value"] != 1
    ]
    if mine[f"old of {RACES}"]["value"]:
        broken.append("a load brought an old value back")
    if mine["µs"]["ratio"] > 1.3:
        broken.append(f"a hit takes {mine['µs']['ratio']} times redis-py's GET")
    return broken


if __name__ == "__main__":
    asyncio.run(one_of_many(sys.argv[2], sys.argv[1]))
