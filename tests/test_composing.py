"""The guards together, around one call to a real server, as `docs/composing.md` puts them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from patterns.keyspace import connect
from patterns.pipeline import Pipeline, Timeout, in_order
from patterns.resiliency import bulkhead, circuit_breaker, fallback, retry
from patterns.resiliency.bulkhead.shared import SharedBulkhead
from patterns.resiliency.retry.shared import SharedBudget
from tests.eventually import eventually
from tests.faults import leaks
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator

    from patterns.embedded import Server
    from patterns.keyspace import Client

CANCELLATIONS = 1_000
AT_ONCE = 50
LIMIT = 8
FAILED = (TimeoutError, ConnectionError)


class Stack:
    """Every guard there is, two of them shared through Redis, around a GET."""

    def __init__(self, client: Client, app: str, inner: Any = None) -> None:
        self.client = client
        self.bulkhead = inner or bulkhead.Bulkhead("orders", limit=LIMIT, max_waiting=30, max_wait=5.0)
        self.shared = SharedBulkhead(
            "orders",
            client,
            app=app,
            limit=LIMIT,
            without_redis=LIMIT,
            max_waiting=30,
            max_wait=5.0,
            poll=0.001,
        )
        self.breaker = circuit_breaker.CircuitBreaker(
            "orders", circuit_breaker.Policy(record=FAILED, ignore=(bulkhead.BulkheadFull,))
        )
        refused = (circuit_breaker.CircuitOpen, bulkhead.BulkheadFull)
        self.pipeline = Pipeline(
            *in_order(
                fallback=fallback.Fallback(
                    "orders",
                    fallback.Policy(on=(*FAILED, *refused)),
                    fallback.Level("old", self.old, limit=AT_ONCE),
                ),
                total_timeout=Timeout(10.0),
                retry=retry.Retry(
                    "orders",
                    retry.Policy(on=FAILED, idempotent=True, base=0.001),
                    budget=SharedBudget("orders", client, app=app),
                ),
                breaker=self.breaker,
                bulkhead=self.shared,
            ).guards,
            self.bulkhead,
            Timeout(5.0),
        )
        self.calls = 0

    async def old(self, key: str) -> bytes:
        return b"old " + key.encode()

    async def get(self, key: str) -> Any:
        self.calls += 1
        if self.calls % 5 == 0:
            raise ConnectionError("one in five fails")
        found: Any = await self.client.get(key)
        return found


@asynccontextmanager
async def stack_on(server: Server, app: str, inner: Any = None) -> AsyncIterator[tuple[Stack, Client]]:
    """A stack whose server answers late, so that calls are under way when they are cancelled."""
    assert server.port is not None
    async with Proxy(server.port) as proxy:
        direct = connect(server.url)
        client = connect(proxy.url, max_connections=LIMIT, wait=5.0)
        with proxy.latency(0.0005):
            stack = Stack(client, app, inner)
            try:
                yield stack, direct
            finally:
                await client.aclose()
                await direct.aclose()


async def cancel_at_random(stack: Stack, rng: random.Random, app: str, wanted: int) -> tuple[int, int]:
    """Make calls and cancel them at any of their awaits; return how many were cancelled, and how many not."""
    cancelled = answered = 0
    while cancelled < wanted:
        keys = [f"{app}:{number}" for number in range(AT_ONCE)]
        tasks = [asyncio.ensure_future(stack.pipeline.call(stack.get, key)) for key in keys]
        left = list(tasks)
        rng.shuffle(left)
        spared = left[: AT_ONCE // 5]
        for task in left[AT_ONCE // 5 :]:
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for key, task, result in zip(keys, tasks, ended, strict=True):
            if isinstance(result, asyncio.CancelledError):
                assert task not in spared
                cancelled += 1
                continue
            assert not isinstance(result, BaseException), result
            assert result.value == (b"old " if result.degraded else b"") + key.encode()
            answered += 1
    return cancelled, answered


async def check_all_is_given_back(
    stack: Stack, direct: Client, rng: random.Random, app: str, wanted: int = CANCELLATIONS
) -> None:
    for number in range(AT_ONCE):
        await direct.set(f"{app}:{number}", f"{app}:{number}", px=60_000)
    cancelled, answered = await cancel_at_random(stack, rng, app, wanted)
    assert cancelled >= wanted
    assert answered > wanted // 10

    async def nothing_in_the_store() -> bool:
        return await stack.shared.in_use() == 0

    await eventually(lambda: stack.shared.running == 0, within=5)
    assert (stack.bulkhead.running, stack.bulkhead.waiting) == (0, 0)
    assert (stack.shared.running, stack.shared.waiting) == (0, 0)
    # Long before a lease of 10 s ends: a cancelled caller gives back what it was granted.
    await eventually(nothing_in_the_store, within=1)
    assert leaks.in_use(stack.client) == 0
    # Nothing is lost that only looks free: the whole limit can run at once.
    gate, running = asyncio.Event(), 0

    async def hold() -> None:
        nonlocal running
        running += 1
        await gate.wait()

    bare = Pipeline(stack.shared, stack.bulkhead)
    holders = [asyncio.ensure_future(bare.call(hold)) for _ in range(LIMIT)]
    try:
        await eventually(lambda: running == LIMIT, within=5)
    finally:
        gate.set()
        await asyncio.gather(*holders, return_exceptions=True)
    await eventually(lambda: not leaks.in_use(stack.client), within=5)


async def test_a_thousand_random_cancellations_leave_everything_as_it_was(
    server: Server, app: str, rng: random.Random
) -> None:
    """Permits, connections and tasks are back at their start, and no call got the value of another."""
    async with stack_on(server, app) as (stack, direct):
        await check_all_is_given_back(stack, direct, rng, app)


class Leaky:
    """A bulkhead as it is often written: the permit goes back after the call, if the call comes back."""

    def __init__(self) -> None:
        self._permits = asyncio.Semaphore(LIMIT)
        self.running = self.waiting = 0

    async def call(self, fn: Any, /, *args: Any) -> Any:
        try:
            async with asyncio.timeout(0.05):
                await self._permits.acquire()
        except TimeoutError:
            raise bulkhead.BulkheadFull("orders", LIMIT, 0) from None
        self.running += 1
        result = await fn(*args)
        self.running -= 1
        self._permits.release()
        return result


async def test_the_same_cancellations_find_a_permit_that_leaks(
    server: Server, app: str, rng: random.Random
) -> None:
    """The check above rejects a bulkhead that gives permits back only after success."""
    async with stack_on(server, app, Leaky()) as (stack, direct):
        with pytest.raises(AssertionError):
            await check_all_is_given_back(stack, direct, rng, app, wanted=100)
