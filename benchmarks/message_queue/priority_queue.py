"""A job in and out, and how long a consumer that waits goes on waiting: beside a bare sorted set."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import time
from typing import TYPE_CHECKING, Any

import dramatiq
import redis.asyncio
from dramatiq.brokers.redis import RedisBroker

from benchmarks.paired import SEED, Case, row, time_async
from patterns.embedded import Server
from patterns.keyspace import connect
from patterns.message_queue.competing_consumer import Policy as PlainPolicy
from patterns.message_queue.competing_consumer import Queue
from patterns.message_queue.priority_queue import Policy, PriorityQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.paired import Row

WAITING = 1000  # jobs that are there all the time
CALLS = {"rounds": 15, "calls": 25}
BATCH = 25
WAKES = 150


async def in_and_out(url: str) -> list[Row]:
    """Return microseconds from a push to the end of a job, one after the other."""
    client, bare = connect(url), redis.asyncio.Redis.from_url(url)
    rng, numbers = random.Random(SEED), itertools.count()
    ours = PriorityQueue("ours", client, Policy(aging=60), app="bench")
    batched = PriorityQueue("batched", client, Policy(aging=60), app="bench")
    plain = Queue("plain", client, PlainPolicy(visibility=30), app="bench")
    local: asyncio.PriorityQueue[tuple[int, int, str]] = asyncio.PriorityQueue()
    broker: Any = RedisBroker(url=url)
    broker.declare_queue("bench")
    consumer: Any = None

    def job() -> tuple[str, int]:
        return json.dumps({"job": next(numbers)}), rng.randrange(10)

    for _ in range(WAITING):
        payload, priority = job()
        for queue in (ours, batched):
            await queue.push(payload, priority=priority)
        await bare.zadd("bare", {payload: priority})
        await bare.zadd("piped", {payload: priority})
        await local.put((priority, next(numbers), payload))

    async def in_process() -> None:
        payload, priority = job()
        await local.put((priority, next(numbers), payload))
        await local.get()

    async def zset() -> None:
        payload, priority = job()
        await bare.zadd("bare", {payload: priority})
        await bare.bzpopmin("bare")

    async def piped() -> None:
        payload, priority = job()
        async with bare.pipeline(transaction=False) as pipe:
            pipe.zadd("piped", {payload: priority})
            pipe.zpopmin("piped")
            await pipe.execute()

    async def one() -> None:
        payload, priority = job()
        await ours.push(payload, priority=priority)
        (lent,) = await ours.receive("bench")
        await ours.acknowledge(lent)

    async def first_come() -> None:
        payload, _ = job()
        await plain.send(payload)
        (lent,) = await plain.lanes[0].receive("bench")
        await plain.acknowledge(lent)

    async def many() -> None:
        for _ in range(BATCH):
            payload, priority = job()
            await batched.push(payload, priority=priority)
        await batched.lanes[0].acknowledge(await batched.receive("bench", BATCH))

    async def actor() -> None:
        nonlocal consumer
        payload, _ = job()
        broker.enqueue(
            dramatiq.Message(queue_name="bench", actor_name="work", args=(payload,), kwargs={}, options={})
        )
        consumer = consumer or broker.consume("bench", prefetch=1, timeout=1000)
        while (message := next(consumer)) is None:
            pass
        consumer.ack(message)

    cases = [
        Case("asyncio.PriorityQueue", in_process, note="in one process: the floor; nothing outlives it"),
        Case(
            "ZADD, ZPOPMIN in a pipeline",
            piped,
            note="one round trip, since one process does both; at most once",
        ),
        Case(
            "ZADD, BZPOPMIN",
            zset,
            baseline=True,
            note="redis-py; at most once: no lease, no order between equals, no aging, no ids",
        ),
        Case("dramatiq, its broker alone", actor, note="first come, first served: it has no order in Redis"),
        Case("competing_consumer", first_come, note="of this handbook: leases, first come, first served"),
        Case("push, receive, acknowledge", one, ours=True, note="three round trips"),
        Case(f"the same, {BATCH} at a time", many, ours=True, note="a job; pushed one by one"),
    ]
    rows = await time_async(cases, **CALLS, cpu=False)
    await client.aclose()
    await bare.aclose()
    found = []
    for each in rows:
        share = BATCH if "at a time" in each["case"] else 1
        value = each["value"] / 1000 / share
        ratio = each["ratio"] / share
        found.append(each | {"value": float(f"{value:.4g}"), "ratio": float(f"{ratio:.3g}"), "unit": "µs"})
    return found


async def waking(url: str) -> list[Row]:
    """Return milliseconds from a push until a consumer that waits has the job."""
    clients = [connect(url, socket_timeout=30) for _ in range(2)]
    bare = redis.asyncio.Redis.from_url(url)
    pushes, takes = (PriorityQueue("wake", each, Policy(aging=60), app="bench") for each in clients)

    async def take() -> None:
        while not (found := await takes.receive("bench")):
            pass
        await takes.acknowledge(found[0])

    async def latency(waits: Callable[[], Awaitable[Any]], push: Callable[[], Awaitable[Any]]) -> float:
        waiting = asyncio.ensure_future(waits())
        blocked = 0
        while not blocked:  # on the server, and not only on its way
            blocked = int((await bare.info("clients"))["blocked_clients"])
        began = time.perf_counter()
        pushing = asyncio.ensure_future(push())
        await waiting
        seconds = time.perf_counter() - began
        await pushing
        return seconds * 1000

    other = redis.asyncio.Redis.from_url(url)
    ways: dict[str, tuple[Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]]]] = {
        "wake: BZPOPMIN": (lambda: other.bzpopmin("woken"), lambda: bare.zadd("woken", {"job": 1})),
        "wake: receive": (take, lambda: pushes.push("job", priority=1)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(WAKES):
        for name, (waits, push) in ways.items():
            times[name].append(await latency(waits, push))
    for client in (*clients, bare, other):
        await client.aclose()
    base = statistics.median(times["wake: BZPOPMIN"])
    return [
        row(
            name,
            statistics.median(each),
            "ms",
            n=WAKES,
            baseline_value=base,
            ours="receive" in name,
            baseline="BZPOPMIN" in name,
            note="p50; it is woken, and then takes" if "receive" in name else "p50; redis-py",
        )
        for name, each in times.items()
    ]


def measure() -> list[Row]:
    """Return microseconds of a job, and milliseconds until a consumer is awake."""
    with Server() as server:
        return asyncio.run(in_and_out(server.url)) + asyncio.run(waking(server.url))


def bounds(rows: list[Row]) -> list[str]:
    """One at a time within 4 times what is popped and forgotten; awake within 10 times, which is no poll."""
    by = {each["case"]: each for each in rows}
    return [
        f"{case} takes {by[case]['ratio']:.2f} times as long as the bare sorted set"
        for case, most in (("push, receive, acknowledge", 4), ("wake: receive", 10))
        if by[case]["ratio"] > most
    ]
