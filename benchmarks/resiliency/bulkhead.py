"""A call with a permit, beside a counter by hand and asyncio.Semaphore; contended, in threads, and shared."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any

import redis.asyncio
from redis.asyncio.lock import Lock

from benchmarks.paired import Case, time_async
from patterns.embedded import Server
from patterns.keyspace import connect
from patterns.resiliency.bulkhead import Bulkhead, BulkheadFull
from patterns.resiliency.bulkhead.executor import ThreadBulkhead
from patterns.resiliency.bulkhead.shared import SharedBulkhead

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from benchmarks.paired import Row

LIMIT = 10
CALLERS = 100
LEASE_MS = 60_000

# A counter with an expiry, the usual script: it has no holders, so it forgets them all or none.
TAKE = """
local n = redis.call('INCR', KEYS[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if n > tonumber(ARGV[1]) then
  redis.call('DECR', KEYS[1])
  return 0
end
return 1
"""


async def dependency(word: str) -> str:
    """Answer at once."""
    return word


async def dependency_of_one_turn(word: str) -> str:
    """Answer in the next turn of the loop, so that calls overlap."""
    await asyncio.sleep(0)
    return word


def blocking_dependency(word: str) -> str:
    """Answer at once, in a thread."""
    return word


def counter_by_hand(fn: Callable[..., Awaitable[str]], limit: int = LIMIT) -> Callable[..., Awaitable[str]]:
    """Count what runs and refuse the rest: the least code that limits."""
    running = 0

    async def guarded(*args: object, **kwargs: object) -> str:
        nonlocal running
        if running >= limit:
            raise RuntimeError("full")
        running += 1
        try:
            return await fn(*args, **kwargs)
        finally:
            running -= 1

    return guarded


def by_semaphore(fn: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[str]]:
    """Limit with asyncio.Semaphore, as its documentation does."""
    semaphore = asyncio.Semaphore(LIMIT)

    async def guarded(*args: object, **kwargs: object) -> str:
        async with semaphore:
            return await fn(*args, **kwargs)

    return guarded


async def uncontended() -> list[Row]:
    """Time one call while permits are free, and one refusal."""
    ours = Bulkhead("search", limit=LIMIT)
    heard = Bulkhead("search", limit=LIMIT, on_event=lambda _: None)

    async def block() -> str:
        async with ours:
            return await dependency("x")

    async def plain() -> str:
        with ours:
            return await dependency("x")

    full = Bulkhead("full", limit=1)
    full.acquire_nowait()
    refusing = full(dependency)

    async def refused() -> None:
        with contextlib.suppress(BulkheadFull):
            await refusing("x")

    full_counter = counter_by_hand(dependency, limit=0)

    async def refused_by_hand() -> None:
        with contextlib.suppress(RuntimeError):
            await full_counter("x")

    by_hand, semaphore = counter_by_hand(dependency), by_semaphore(dependency)
    decorated, told = ours(dependency), heard(dependency)
    return await time_async(
        [
            Case("bare call", lambda: dependency("x"), note="no limit"),
            Case(
                "counter by hand",
                lambda: by_hand("x"),
                baseline=True,
                note="no queue, no threads, no change of the limit",
            ),
            Case("this module, decorator", lambda: decorated("x"), ours=True),
            Case("this module, call", lambda: ours.call(dependency, "x"), ours=True),
            Case("this module, async with", block, ours=True),
            Case("this module, with", plain, ours=True, note="never waits"),
            Case("this module, decorator, with a listener", lambda: told("x"), ours=True, note="one event"),
            Case("this module, a refusal", refused, ours=True, note="the exception included"),
            Case("counter by hand, a refusal", refused_by_hand, note="the exception included"),
            Case("asyncio.Semaphore", lambda: semaphore("x"), note="endless queue; one loop"),
        ]
    )


async def contended() -> list[Row]:
    """Time a hundred callers at once for ten permits."""
    options: dict[str, Any] = {"limit": LIMIT, "max_waiting": CALLERS}
    waits = Bulkhead("search", max_wait=math.inf, **options)(dependency_of_one_turn)
    limited = Bulkhead("search", max_wait=60.0, **options)(dependency_of_one_turn)
    semaphore = by_semaphore(dependency_of_one_turn)
    semaphore_limited = by_semaphore(dependency_of_one_turn)

    async def crowd(call: Callable[[], Awaitable[str]]) -> None:
        await asyncio.gather(*[call() for _ in range(CALLERS)])

    async def with_timeout() -> str:
        async with asyncio.timeout(60.0):
            return await semaphore_limited("x")

    return await time_async(
        [
            Case(
                "100 callers, 10 permits: asyncio.Semaphore",
                lambda: crowd(lambda: semaphore("x")),
                baseline=True,
                note="endless queue, endless wait",
            ),
            Case(
                "100 callers, 10 permits: this module",
                lambda: crowd(lambda: waits("x")),
                ours=True,
                note="max_wait=inf",
            ),
            Case(
                "100 callers, 10 permits: this module, max_wait",
                lambda: crowd(lambda: limited("x")),
                ours=True,
                note="a timer for each that waits",
            ),
            Case(
                "100 callers, 10 permits: Semaphore in asyncio.timeout",
                lambda: crowd(with_timeout),
                note="a timer for each, and for the call too",
            ),
        ],
        rounds=21,
        calls=10,
    )


async def threads() -> list[Row]:
    """Time a function in a thread."""
    semaphore = asyncio.Semaphore(LIMIT)

    async def to_thread() -> str:
        async with semaphore:
            return await asyncio.to_thread(blocking_dependency, "x")

    async with ThreadBulkhead("files", limit=LIMIT) as ours:
        return await time_async(
            [
                Case(
                    "in a thread: Semaphore and asyncio.to_thread",
                    to_thread,
                    baseline=True,
                    note="the loop's own threads; counts callers",
                ),
                Case("in a thread: this module", lambda: ours.call(blocking_dependency, "x"), ours=True),
            ],
            rounds=15,
            calls=100,
            cpu=False,
        )


async def through_redis(server: Server) -> list[Row]:
    """Time one acquisition with its release."""
    client = connect(server.url)
    peer = redis.asyncio.Redis.from_url(server.url, retry=None)
    take = peer.register_script(TAKE)
    shared = SharedBulkhead("search", client, app="bench", limit=LIMIT, without_redis=0, lease=60.0)

    async def ours() -> None:
        async with shared:
            pass

    async def counter() -> None:
        await take(keys=["bench:counter"], args=[LIMIT, LEASE_MS])
        await peer.decr("bench:counter")

    async def lock() -> None:
        held = Lock(peer, "bench:lock", timeout=60, blocking=False)
        await held.acquire()
        await held.release()

    try:
        return await time_async(
            [
                Case(
                    "shared: INCR in a script and DECR, by hand",
                    counter,
                    baseline=True,
                    note="a permit of a dead process stays out",
                ),
                Case("shared: this module", ours, ours=True, note="leases, renewed by a task"),
                Case("shared: redis-py Lock, asyncio", lock, note="one permit, not renewed"),
            ],
            rounds=15,
            calls=100,
            cpu=False,
        )
    finally:
        await client.aclose()
        await peer.aclose()


def in_microseconds(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with their nanoseconds as microseconds."""
    return [{**row, "value": row["value"] / 1000, "unit": "µs"} for row in rows]


def measure() -> list[Row]:
    """Return ns of a call with a free permit, and µs of the rest."""
    rows = asyncio.run(uncontended())
    rows += in_microseconds(asyncio.run(contended()))
    rows += in_microseconds(asyncio.run(threads()))
    with Server() as server:
        return rows + in_microseconds(asyncio.run(through_redis(server)))


def bounds(rows: list[Row]) -> list[str]:
    """At most 1.5 times the counter, which has no queue; at least 1.75 times faster than the semaphore."""
    ratio = {row["case"]: row["ratio"] for row in rows}
    ours, semaphore = ratio["this module, decorator"], ratio["asyncio.Semaphore"]
    broken = []
    if ours > 1.5:
        broken.append(f"decorator {ours} x the counter > 1.5")
    if semaphore < 1.75 * ours:
        broken.append(
            f"decorator {ours} x the counter, the semaphore {semaphore}: less than 1.75 times faster"
        )
    return broken
