"""A hit, a hot key at its end, a slow refresh, and a write during one: beside what a reader would pick."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cashews
import dogpile.cache
import redis
import redis.asyncio

from benchmarks.paired import Case, row, time_async
from patterns.cache import read_through
from patterns.cache.refresh_ahead import Policy, RefreshAhead
from patterns.embedded import Server
from patterns.keyspace import connect

if TYPE_CHECKING:
    from benchmarks.paired import Row

Load = Callable[[str], Awaitable[Any]]

VALUE = {"id": 42, "name": "Ada Lovelace", "mail": "ada@example.org", "plan": "yearly", "since": "1843-09-05"}
READERS, RACES = 200, 20
WIDE = 256  # connections: 200 callers of a default pool of 100 get MaxConnectionsError
SOURCE_SECONDS = 2.0  # a load takes longer than 200 readers on a busy machine
EARLY_SECONDS = 0.3  # the time after which libraries whose clock cannot be moved find a value due
SLOW_SECONDS = 4 * EARLY_SECONDS


@dataclass
class Cache:
    """One way of caching: how to read, delete, come to a value's end, and close."""

    get: Callable[[str], Awaitable[Any]]
    delete: Callable[[str], Awaitable[Any]]
    age: Callable[[str], Awaitable[Any]]
    close: Callable[[], Awaitable[Any]]


async def wait_for_it(_: str) -> None:
    """Let the time pass after which a value is due."""
    await asyncio.sleep(EARLY_SECONDS + 0.05)


def bare(url: str, load: Load) -> Cache:
    """Get, else load and set: it expires."""
    client: Any = redis.asyncio.Redis.from_pool(
        redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=WIDE)
    )

    async def get(key: str) -> Any:
        cached = await client.get(f"bare:{key}")
        if cached is not None:
            return json.loads(cached)
        value = await load(key)
        await client.set(f"bare:{key}", json.dumps(value), ex=60)
        return value

    async def delete(key: str) -> None:
        await client.delete(f"bare:{key}")

    return Cache(get, delete, delete, client.aclose)


def by_tasks(url: str, load: Load) -> Cache:
    """Get and look at the time left; a task for each reader that finds it due."""
    client: Any = redis.asyncio.Redis.from_pool(
        redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=WIDE)
    )
    tasks: set[asyncio.Task[Any]] = set()

    async def reload(key: str) -> Any:
        value = await load(key)
        await client.set(f"tasks:{key}", json.dumps(value), ex=60)
        return value

    async def get(key: str) -> Any:
        async with client.pipeline(transaction=False) as pipe:
            cached, left = await pipe.get(f"tasks:{key}").ttl(f"tasks:{key}").execute()
        if cached is None:
            return await reload(key)
        if left < 12:
            tasks.add(task := asyncio.create_task(reload(key)))
            task.add_done_callback(tasks.discard)
        return json.loads(cached)

    async def close() -> None:
        await asyncio.gather(*tasks)
        await client.aclose()

    return Cache(
        get, lambda key: client.delete(f"tasks:{key}"), lambda key: client.expire(f"tasks:{key}", 5), close
    )


def through(url: str, load: Load) -> Cache:
    """Read through: one load, and all wait for it."""
    client = connect(url, max_connections=64)
    policy = read_through.Policy(ttl=60, negative_ttl=10, max_loads=8, timeout=5)
    cache = read_through.ReadThrough("users", client, policy, load=load, app="through")

    async def age(key: str) -> None:
        await client.pexpireat(f"through:{{read_through:users/{key}}}:value", 1)

    return Cache(cache.get, cache.invalidate, age, client.aclose)


def ours(url: str, load: Load) -> Cache:
    """The module."""
    client = connect(url, max_connections=64)
    policy = Policy(
        ttl=60,
        negative_ttl=10,
        refresh_after=0.8,
        max_loads=8,
        max_refreshes=4,
        refresh_pause=EARLY_SECONDS,
        timeout=5,
    )
    cache = RefreshAhead("users", client, policy, load=load, app="bench")

    async def age(key: str) -> None:
        await client.pexpire(f"bench:{{refresh_ahead:users/{key}}}:value", 5_000)

    async def close() -> None:
        await cache.aclose()
        await client.aclose()

    return Cache(cache.get, cache.invalidate, age, close)


def by_cashews(url: str, load: Load) -> Cache:
    """Use cashews' `early` on Redis."""
    cache = cashews.Cache()
    cache.setup(url, max_connections=WIDE)

    async def load_one(key: str) -> Any:
        return await load(key)

    cached = cache.early(ttl=60, early_ttl=EARLY_SECONDS, key="{key}")(load_one)

    async def close() -> None:
        await asyncio.sleep(0.1)  # its deletions of locks are tasks that nobody waits for
        await cache.close()

    return Cache(cached, lambda key: cache.delete_match(f"early*{key}"), wait_for_it, close)


def by_dogpile(url: str, load: Load) -> Cache:
    """Use dogpile.cache with its `async_creation_runner`, as its documentation shows it."""
    readers, creators = ThreadPoolExecutor(READERS + 1), set[threading.Thread]()
    loop = asyncio.get_running_loop()

    def runner(cache: Any, key: str, creator: Callable[[], Any], mutex: Any) -> None:
        def run() -> None:
            try:
                cache.set(key, creator())
            finally:
                mutex.release()

        creators.add(thread := threading.Thread(target=run))
        thread.start()

    region = dogpile.cache.make_region(async_creation_runner=runner).configure(
        "dogpile.cache.redis",
        expiration_time=EARLY_SECONDS,
        arguments={
            "connection_pool": redis.BlockingConnectionPool.from_url(url, max_connections=WIDE),
            "distributed_lock": True,
            "lock_timeout": 5,
            "lock_sleep": 0.02,
            "thread_local_lock": False,
        },
    )

    def create(key: str) -> Any:
        return asyncio.run_coroutine_threadsafe(_coroutine(load, key), loop).result()

    async def get(key: str) -> Any:
        return await loop.run_in_executor(readers, region.get_or_create, key, lambda: create(key))

    async def delete(key: str) -> None:
        await loop.run_in_executor(readers, region.delete, key)

    async def close() -> None:
        for thread in creators:
            await loop.run_in_executor(readers, thread.join)
        readers.shutdown()

    return Cache(get, delete, wait_for_it, close)


async def _coroutine(load: Load, key: str) -> Any:
    return await load(key)


BASELINE, OURS = "get, load, set", "this module"
PEERS: dict[str, tuple[Callable[[str, Load], Cache], str | None]] = {
    BASELINE: (bare, "redis-py alone: it expires"),
    "create_task(load, set)": (by_tasks, "redis-py alone: a task for each reader that finds it due"),
    "Read-Through": (through, "this handbook's: one load, and its readers wait"),
    OURS: (ours, None),
    "cashews early": (by_cashews, None),
    "dogpile.cache": (by_dogpile, "threads; async_creation_runner, distributed_lock with a lock_timeout"),
}
AHEAD = [name for name in PEERS if name not in {BASELINE, "Read-Through"}]


async def hits(url: str) -> list[Row]:
    """Return microseconds of a hit that is not due."""
    plain: Any = redis.asyncio.Redis.from_url(url)
    await plain.set("plain", json.dumps(VALUE))

    async def value(key: str) -> Any:  # noqa: ARG001  cashews makes its key from the name
        return VALUE

    early = cashews.Cache()
    early.setup(url)
    by_early = early.early(ttl=60, early_ttl=50, key="{key}", prefix="hit")(value)
    caches = {name: make(url, value) for name, make in (("Read-Through", through), (OURS, ours))}
    for cache in caches.values():
        await cache.get("hot")
    await by_early("hot")
    calls: dict[str, Callable[[], Any]] = {
        "redis-py's own GET, undecoded": lambda: plain.get("plain"),
        **{name: lambda cache=cache: cache.get("hot") for name, cache in caches.items()},  # type: ignore[misc]  # mypy knows no lambda with a default
        "cashews early": lambda: by_early("hot"),
    }
    cases = [
        Case(
            f"a hit: {name}",
            call,
            ours=name == OURS,
            baseline=name.startswith("redis-py"),
            note="value and time left, by a script" if name == OURS else None,
        )
        for name, call in calls.items()
    ]
    rows = await time_async(cases, rounds=21, calls=150, cpu=False)
    for cache in caches.values():
        await cache.close()
    await early.close()
    await plain.aclose()
    return [each | {"value": float(f"{each['value'] / 1000:.4g}"), "unit": "µs"} for each in rows]


async def at_the_end(url: str, name: str) -> tuple[int, int]:
    """Let 200 readers come at the end of a value's life; return loads, and readers that waited for one."""
    loads, begun, open_at_last = 0, asyncio.Event(), asyncio.Event()
    open_at_last.set()

    async def load(_: str) -> Any:
        nonlocal loads
        loads += 1
        begun.set()
        await open_at_last.wait()
        return VALUE

    cache = PEERS[name][0](url, load)
    await asyncio.gather(*[cache.get("warm") for _ in range(READERS)])  # opens the connections
    await cache.get("hot")
    await cache.age("hot")
    loads = 0
    open_at_last.clear()
    begun.clear()
    readers = [asyncio.ensure_future(cache.get("hot")) for _ in range(READERS)]
    await asyncio.wait(readers, timeout=SOURCE_SECONDS)
    await begun.wait()
    waited = sum(not reader.done() for reader in readers)
    open_at_last.set()
    await asyncio.gather(*readers)
    await cache.close()
    return loads, waited


async def slowly(url: str, name: str) -> int:
    """Read on while a refresh takes long; return how many loads had begun before it ended."""
    loads, first_ended = 0, asyncio.Event()
    slow = False

    async def load(_: str) -> Any:
        nonlocal loads
        loads += 1
        if slow:
            await asyncio.sleep(SLOW_SECONDS)
            first_ended.set()
        return VALUE

    cache = PEERS[name][0](url, load)
    await cache.get("slow")
    await cache.age("slow")
    loads, slow = 0, True
    while not first_ended.is_set():
        await cache.get("slow")
        await asyncio.sleep(0.01)
    begun = loads
    slow = False
    await asyncio.sleep(SLOW_SECONDS)
    await cache.close()
    return begun


async def stale(url: str, name: str) -> int:
    """Write and delete during each of 20 refreshes; return how many old values are read afterwards."""
    source: dict[str, str] = {}
    loading, go_on = asyncio.Event(), asyncio.Event()

    async def load(key: str) -> str:
        value = source[key]
        loading.set()
        await go_on.wait()
        return value

    cache, old = PEERS[name][0](url, load), 0
    go_on.set()
    for number in range(RACES):
        key = f"race{number}"
        source[key] = "old"
        await cache.get(key)
        await cache.age(key)
        loading.clear()
        go_on.clear()
        await cache.get(key)
        await loading.wait()
        source[key] = "new"
        await cache.delete(key)
        go_on.set()
        await asyncio.sleep(0.02)
        old += await cache.get(key) == "old"
    await cache.close()
    return old


def measure() -> list[Row]:
    """Return microseconds of a hit; readers that wait and loads at the end of a life; loads; old values."""
    with Server() as server:
        rows = asyncio.run(hits(server.url))
        ends = {name: asyncio.run(at_the_end(server.url, name)) for name in PEERS}
        slow = {name: asyncio.run(slowly(server.url, name)) for name in AHEAD}
        old = {name: asyncio.run(stale(server.url, name)) for name in AHEAD}
    waits = {name: waited for name, (_, waited) in ends.items()}
    loads = {name: begun for name, (begun, _) in ends.items()}
    rows += _counted("200 readers at its end", "waiting", waits, READERS, BASELINE)
    rows += _counted("200 readers at its end", "loads", loads, READERS, BASELINE)
    rows += _counted("a load of 1.2 s", "loads at once", slow, 1, AHEAD[0])
    return rows + _counted("write while refreshing", f"old of {RACES}", old, RACES, AHEAD[0])


def _counted(told: str, unit: str, counts: dict[str, int], n: int, baseline: str) -> list[Row]:
    notes = {name: note for name, (_, note) in PEERS.items()} if unit == "waiting" else {}
    if unit == "loads at once":
        notes = {"cashews early": f"early_ttl={EARLY_SECONDS}: its lock lives no longer"}
    return [
        row(
            f"{told}: {name}",
            value,
            unit,
            n=n,
            baseline_value=counts[baseline],
            ours=name == OURS,
            baseline=name == baseline,
            note=notes.get(name),
        )
        for name, value in counts.items()
    ]


def bounds(rows: list[Row]) -> list[str]:
    """Nobody waits, one load, nothing old, and a hit within twice redis-py's own GET."""
    mine = {each["unit"]: each for each in rows if each["ours"]}
    broken = [
        f"{mine[unit]['value']:g} {unit}, not {wanted}"
        for unit, wanted in (("waiting", 0), ("loads", 1), ("loads at once", 1), (f"old of {RACES}", 0))
        if mine[unit]["value"] != wanted
    ]
    if mine["µs"]["ratio"] > 2:
        broken.append(f"a hit takes {mine['µs']['ratio']} times redis-py's GET")
    return broken
