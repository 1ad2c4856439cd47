"""A key and a list: hits, cold starts and races; beside bare redis-py and the caches that readers pick."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiocache
import cashews
import dogpile.cache
import redis
import redis.asyncio

from benchmarks.cache import cache_aside as single
from benchmarks.paired import SEED, Case, row, time_async
from patterns.cache.read_through import Policy, ReadThrough
from patterns.embedded import Server
from patterns.keyspace import connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.paired import Row

    Load = Callable[[], Awaitable[Any]]
    LoadAll = Callable[[list[str]], Awaitable[dict[str, Any]]]

VALUE = single.VALUE
KEYS = [f"{number:03}" for number in range(100)]
CALLERS, PROCESSES, RACES, LISTS, LENGTH = 200, 2, 20, 50, 20
SOURCE_SECONDS = 0.25
ROOT = Path(__file__).resolve().parents[2]


# One key


def ours(url: str) -> single.Cache:
    """The module, for one key."""
    loads: dict[str, Load] = {}

    async def load(key: str) -> Any:
        return await loads[key]()

    client = connect(url, max_connections=64)
    cache = ReadThrough("users", client, _policy(), load=load, app="bench")

    async def get(key: str, load: Load) -> Any:
        loads.setdefault(key, load)
        return await cache.get(key)

    return single.Cache(get, cache.invalidate, client.aclose, lambda: cache.get("hot"))


def _policy() -> Policy:
    return Policy(ttl=60, negative_ttl=10, max_loads=8, timeout=5)


PEERS = single.PEERS | {"this module": (ours, None)}
BASELINE = single.BASELINE


async def hits(url: str) -> list[Row]:
    """Return microseconds of a hit."""
    caches = {name: make(url) for name, (make, _) in PEERS.items() if name != "cashews, lock=True"}

    async def value() -> Any:
        return VALUE

    def hit_of(cache: single.Cache) -> Callable[[], Any]:
        return cache.hit or (lambda: cache.get("hot", value))

    for cache in caches.values():
        await cache.get("hot", value)
    names = {BASELINE: "redis-py's own GET, undecoded", "dogpile.cache": "dogpile.cache (synchronous)"}
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
    ]
    rows = await time_async(cases, rounds=21, calls=150, cpu=False)
    for cache in caches.values():
        await cache.close()
    return [_micro(each, "µs") for each in rows]


def _micro(each: Row, unit: str) -> Row:
    return each | {"value": float(f"{each['value'] / 1000:.4g}"), "unit": unit}


async def one_of_many(url: str, name: str) -> None:
    """Be one of the processes: wait for the word, let 100 callers miss, count loads in Redis."""
    cache = PEERS[name][0](url)
    client: Any = redis.asyncio.Redis.from_url(url, protocol=2)

    async def load() -> Any:
        await client.incr("bench:loads")
        await asyncio.sleep(SOURCE_SECONDS)
        return VALUE

    await single.herd(cache, "warm", CALLERS // PROCESSES, load)  # opens the connections
    await client.incr("bench:ready")
    await client.xread({"bench:go": "0"}, block=30_000)
    await client.incrby("bench:failed", await single.herd(cache, "cold", CALLERS // PROCESSES, load))
    await cache.close()
    await client.aclose()


def many_processes(name: str) -> tuple[int, int]:
    """Return loads and failed callers of 2 processes with 100 callers each."""
    with Server() as server:
        command = [sys.executable, "-m", "benchmarks.cache.read_through", name, server.url]
        processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(PROCESSES)]
        while int(server.command("GET", "bench:ready") or 0) < PROCESSES:
            time.sleep(0.01)
        server.command("DEL", "bench:loads")
        server.command("XADD", "bench:go", "*", "now", "1")
        if any(process.wait() for process in processes):
            raise RuntimeError(f"a process of {name!r} failed")
        return int(server.command("GET", "bench:loads")), int(server.command("GET", "bench:failed"))


# A list of keys


@dataclass
class Lists:
    """One way of caching lists: how to read, delete and close; `load_all` is that of the first call."""

    get_all: Callable[[list[str], LoadAll], Awaitable[Any]]
    delete: Callable[[str], Awaitable[Any]]
    close: Callable[[], Awaitable[Any]]
    hit: Callable[[], Any]


def bare_lists(url: str) -> Lists:
    """MGET, one question for what is missing, SET in a pipeline."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=single.WIDE)
    client: Any = redis.asyncio.Redis.from_pool(pool)

    async def get_all(keys: list[str], load_all: LoadAll) -> Any:
        cached = await client.mget([f"bare:{key}" for key in keys])
        values = {key: json.loads(each) for key, each in zip(keys, cached, strict=True) if each}
        if misses := [key for key in keys if key not in values]:
            loaded = await load_all(misses)
            async with client.pipeline(transaction=False) as pipe:
                for key, value in loaded.items():
                    pipe.set(f"bare:{key}", json.dumps(value), ex=60)
                await pipe.execute()
            values |= loaded
        return values

    names = [f"bare:{key}" for key in KEYS]
    return Lists(get_all, lambda key: client.delete(f"bare:{key}"), client.aclose, lambda: client.mget(names))


def our_lists(url: str) -> Lists:
    """The module."""
    loads: list[LoadAll] = []

    async def load(key: str) -> Any:
        return (await loads[0]([key]))[key]

    async def load_all(keys: list[str]) -> Any:
        return await loads[0](keys)

    client = connect(url, max_connections=64)
    cache = ReadThrough("lists", client, _policy(), load=load, load_all=load_all, app="bench")

    async def get_all(keys: list[str], load_all: LoadAll) -> Any:
        loads.append(load_all)
        return await cache.get_all(keys)

    return Lists(get_all, cache.invalidate, client.aclose, lambda: cache.get_all(KEYS))


def cashews_lists(url: str) -> Lists:
    """get_many, one question for what is missing, set_many: cashews has no decorator for lists."""
    cache = cashews.Cache()
    cache.setup(url, max_connections=single.WIDE)

    async def get_all(keys: list[str], load_all: LoadAll) -> Any:
        cached = await cache.get_many(*[f"cashews:{key}" for key in keys])
        values = {key: value for key, value in zip(keys, cached, strict=True) if value is not None}
        if misses := [key for key in keys if key not in values]:
            loaded = await load_all(misses)
            await cache.set_many({f"cashews:{key}": value for key, value in loaded.items()}, expire=60)
            values |= loaded
        return values

    names = [f"cashews:{key}" for key in KEYS]
    return Lists(
        get_all, lambda key: cache.delete(f"cashews:{key}"), cache.close, lambda: cache.get_many(*names)
    )


def aiocache_lists(url: str) -> Lists:
    """The decorator multi_cached."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    loads: list[LoadAll] = []
    decorator = aiocache.multi_cached(
        "keys",
        ttl=60,
        cache=aiocache.RedisCache,
        port=port,
        pool_max_size=single.WIDE,
        namespace="lists",
        serializer=aiocache.serializers.JsonSerializer(),
    )

    async def load_all(keys: list[str]) -> Any:
        return await loads[0](keys)

    cached = decorator(load_all)

    async def get_all(keys: list[str], load_all: LoadAll) -> Any:
        loads.append(load_all)
        return await cached(keys=keys)

    return Lists(get_all, decorator.cache.delete, decorator.cache.close, lambda: cached(keys=KEYS))


def dogpile_lists(url: str) -> Lists:
    """get_or_create_multi, with its locks in Redis, a thread for each caller."""
    region = dogpile.cache.make_region().configure(
        "dogpile.cache.redis",
        expiration_time=60,
        arguments={
            "connection_pool": redis.BlockingConnectionPool.from_url(url, max_connections=single.WIDE),
            "distributed_lock": True,
            "lock_timeout": 20,
            "lock_sleep": 0.02,
            "thread_local_lock": False,
        },
    )
    threads = ThreadPoolExecutor(LISTS + 1)

    async def get_all(keys: list[str], load_all: LoadAll) -> Any:
        loop = asyncio.get_running_loop()

        def create(*misses: str) -> list[Any]:
            loaded = asyncio.run_coroutine_threadsafe(_coroutine(load_all, misses), loop).result()
            return [loaded[key] for key in misses]

        values = await loop.run_in_executor(threads, region.get_or_create_multi, keys, create)
        return dict(zip(keys, values, strict=True))

    async def delete(key: str) -> None:
        region.delete(key)

    async def close() -> None:
        threads.shutdown()

    async def hit() -> Any:
        return region.get_multi(KEYS)

    return Lists(get_all, delete, close, hit)


async def _coroutine(load_all: LoadAll, keys: tuple[str, ...]) -> Any:
    return await load_all(list(keys))


LIST_PEERS: dict[str, tuple[Callable[[str], Lists], str | None]] = {
    "redis-py alone": (bare_lists, "MGET, one question, SET in a pipeline: nothing but expiry"),
    "this module": (our_lists, None),
    "cashews": (cashews_lists, "get_many and set_many, put together by hand; no lock"),
    "aiocache": (aiocache_lists, "multi_cached: no lock"),
    "dogpile.cache": (
        dogpile_lists,
        "get_or_create_multi in threads: a lock for each key, and no second look once it has it",
    ),
}


async def hundred_hits(url: str) -> list[Row]:
    """Return microseconds of a list of 100 hits."""
    lists = {name: make(url) for name, (make, _) in LIST_PEERS.items()}

    async def load_all(keys: list[str]) -> dict[str, Any]:
        return dict.fromkeys(keys, VALUE)

    for each in lists.values():
        await each.get_all(KEYS, load_all)
    names = {BASELINE: "redis-py's own MGET, undecoded", "dogpile.cache": "dogpile.cache (synchronous)"}
    hit_notes = {
        BASELINE: "the limit: one round trip",
        "cashews": "get_many, which does not load",
        "dogpile.cache": "get_multi, which does not load",
    }
    cases = [
        Case(
            f"100 hits: {names.get(name, name)}",
            each.hit,
            ours=name == "this module",
            baseline=name == BASELINE,
            note=hit_notes.get(name),
        )
        for name, each in lists.items()
    ]
    rows = await time_async(cases, rounds=21, calls=20, cpu=False)
    for each in lists.values():
        await each.close()
    return [_micro(each, "µs for 100") for each in rows]


async def cold_lists(url: str, name: str) -> int:
    """Return how many keys 50 callers load, who each want 20 of 100 cold keys at the same time."""
    lists, loaded, rng = LIST_PEERS[name][0](url), 0, random.Random(SEED)

    async def load_all(keys: list[str]) -> dict[str, Any]:
        nonlocal loaded
        loaded += len(keys)
        await asyncio.sleep(SOURCE_SECONDS)
        return dict.fromkeys(keys, VALUE)

    await asyncio.gather(*[lists.get_all(rng.sample(KEYS, LENGTH), load_all) for _ in range(LISTS)])
    await lists.close()
    return loaded


async def stale_lists(url: str, name: str) -> int:
    """Return how many of 20 keys hold the old value after a write during the load of their list."""
    lists = LIST_PEERS[name][0](url)
    keys = [f"race{number}" for number in range(RACES)]
    source, loading, go_on = dict.fromkeys(keys, "old"), asyncio.Event(), asyncio.Event()

    async def load_all(wanted: list[str]) -> dict[str, Any]:
        values = {key: source[key] for key in wanted}
        loading.set()
        await go_on.wait()
        return values

    reader = asyncio.create_task(_all_of(lists, keys, load_all))
    await loading.wait()
    for key in keys:
        source[key] = "new"
        await lists.delete(key)
    go_on.set()
    await reader
    values = await lists.get_all(keys, load_all)
    await lists.close()
    return sum(value == "old" for value in values.values())


async def _all_of(lists: Lists, keys: list[str], load_all: LoadAll) -> Any:
    return await lists.get_all(keys, load_all)


def measure() -> list[Row]:
    """Return microseconds of hits, loads of cold starts, and old values after races."""
    with Server() as server:
        rows = asyncio.run(hits(server.url)) + asyncio.run(hundred_hits(server.url))
    loads = {name: many_processes(name) for name in PEERS if name != "cachetools"}
    with Server() as server:
        old = {name: asyncio.run(stale_lists(server.url, name)) for name in LIST_PEERS}
    loaded = {}
    for name in LIST_PEERS:
        with Server() as server:
            loaded[name] = asyncio.run(cold_lists(server.url, name))
    counts = {name: value for name, (value, _) in loads.items()}
    notes = {name: note for name, (_, note) in PEERS.items()}
    notes |= {name: f"{failed} callers got an error" for name, (_, failed) in loads.items() if failed}
    rows += _counted("200 callers", f"loads by {PROCESSES}", counts, CALLERS, notes)
    told = {name: note for name, (_, note) in LIST_PEERS.items()}
    rows += _counted(f"{LISTS} lists of {LENGTH}", "keys loaded", loaded, LISTS * LENGTH, told)
    return rows + _counted("write while loading", f"old of {RACES}", old, RACES, {})


def _counted(told: str, unit: str, counts: dict[str, int], n: int, notes: dict[str, str | None]) -> list[Row]:
    return [
        row(
            f"{told}: {name}",
            value,
            unit,
            n=n,
            baseline_value=counts[BASELINE],
            ours=name == "this module",
            baseline=name == BASELINE,
            note=notes.get(name),
        )
        for name, value in counts.items()
    ]


def bounds(rows: list[Row]) -> list[str]:
    """One load for all, each key once, nothing old, and hits about as fast as the bare client's."""
    mine = {each["unit"]: each for each in rows if each["ours"]}
    wanted = {f"loads by {PROCESSES}": 1, "keys loaded": len(KEYS), f"old of {RACES}": 0}
    broken = [
        f"{mine[unit]['value']:g} {unit}, not {right}"
        for unit, right in wanted.items()
        if mine[unit]["value"] != right
    ]
    if mine["µs"]["ratio"] > 1.3:
        broken.append(f"a hit takes {mine['µs']['ratio']} times redis-py's GET")
    best = min(each["value"] for each in rows if each["unit"] == "µs for 100" and not each["baseline"])
    if (took := mine["µs for 100"]["value"]) > 1.3 * best:
        broken.append(f"100 hits take {took:g} µs, the fastest that decodes them {best:g} µs")
    return broken


if __name__ == "__main__":
    asyncio.run(one_of_many(sys.argv[2], sys.argv[1]))
