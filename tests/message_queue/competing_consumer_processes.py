"""Workers in processes of their own, forked from one that has read its imports already.

Argument: the URL of Redis. An order is `<kind> <app> <number>`, on the list `orders`; a child is forked for
it, says `<number> is <pid>`, and goes on until it is killed or this process ends:

- `worker`: counts each message by an Effect; stands still in every HOLD_EVERYth, the first time;
- `list`: the same with BLPOP;
- `poison` and `endless`: die of the message "poison"; `endless` counts errors only;
- `fenced` and `unfenced`: stand still in the first message until `<app>:go` has a line, then make the effect
  and acknowledge it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import redis

from patterns.keyspace import opened
from patterns.message_queue.competing_consumer import Delivery, Effect, Policy, Queue, Worker
from tests.message_queue import competing_consumer_naive as naive

HOLD_EVERY = 250
POLICY = Policy(visibility=0.4, poll=0.05, max_deliveries=5)
POISON = Policy(visibility=0.3, poll=0.02, max_deliveries=3)
COUNT = "redis.call('HINCRBY', KEYS[1], ARGV[1], 1)"


def say(*words: object) -> None:
    """Print a line in one piece: many processes share the file."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")


def effect(queue: Queue, delivery: Delivery) -> Effect:
    """Count a message."""
    return Effect(COUNT, [queue.lane_of(delivery).key("made")], [str(delivery.payload)])


async def worker(url: str, app: str, number: str) -> None:
    """Work for ever."""
    async with opened(url) as client:
        queue = Queue("jobs", client, POLICY, app=app)

        async def handle(delivery: Delivery) -> Effect:
            if delivery.payload % HOLD_EVERY == 0 and delivery.deliveries == 1:
                say(number, "holding", delivery.payload)
                await asyncio.Event().wait()
            return effect(queue, delivery)

        async with Worker(queue.lanes, handle, timeout=None, concurrency=4, prefetch=8):
            await asyncio.Event().wait()


async def pops(url: str, app: str, number: str) -> None:
    """Take a job off a list, and do it."""
    async with opened(url) as client:
        any_client: Any = client
        while True:
            _, job = await any_client.blpop([f"{app}:list"], timeout=0)
            if int(job) % 50 == 0:
                say(number, "holding", int(job))
                await asyncio.Event().wait()
            await any_client.hincrby(f"{app}:made", job, 1)


async def dies(url: str, app: str, number: str, *, endless: bool) -> None:
    """Die of the poison."""
    async with opened(url) as client:
        make = naive.with_lanes(naive.CountsErrorsOnly) if endless else Queue
        queue = make("endless" if endless else "jobs", client, POISON, app=app)

        async def handle(delivery: Delivery) -> Effect:
            if delivery.payload == "poison":
                say(number, "dies", delivery.deliveries)
                os._exit(1)
            return effect(queue, delivery)

        async with Worker(queue.lanes, handle, timeout=None):  # whoever is beside it would be counted too
            await asyncio.Event().wait()


async def stands(url: str, app: str, number: str, *, fenced: bool) -> None:
    """Stand still in a message."""
    async with opened(url, socket_timeout=None) as client:
        any_client: Any = client
        queue = Queue("jobs" if fenced else "unfenced", client, POLICY, app=app)
        (delivery,) = await queue.lanes[0].receive(f"stopped.{number}", 1)
        say(number, "holding", delivery.payload)
        await any_client.blpop([f"{app}:go"], timeout=0)
        if fenced:
            made = await queue.lanes[0].acknowledge_with(delivery, effect(queue, delivery))
        else:
            await any_client.hincrby(queue.lanes[0].key("made"), str(delivery.payload), 1)
            made = await any_client.xack(queue.lanes[0].keys[0], "workers", delivery.receipt.entry)
        say(number, "has acknowledged" if made else "was refused")
        await asyncio.Event().wait()


KINDS: dict[str, Any] = {
    "worker": worker,
    "list": pops,
    "poison": lambda *about: dies(*about, endless=False),
    "endless": lambda *about: dies(*about, endless=True),
    "fenced": lambda *about: stands(*about, fenced=True),
    "unfenced": lambda *about: stands(*about, fenced=False),
}


async def as_long_as(parent: int, work: Any) -> None:
    """Do the work; end when the other end of the pipe is closed, as it is when the parent has ended."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_reader(parent, lambda: os._exit(0))
    await task


def main(url: str) -> None:
    """Carry out one order after the other."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    held, mine = os.pipe()
    client: Any = redis.Redis.from_url(url, socket_timeout=None)
    say("ready")
    while True:
        _, order = client.blpop("orders")
        kind, app, number = order.decode().split()
        pid = os.fork()
        if pid == 0:
            os.close(mine)
            asyncio.run(as_long_as(held, KINDS[kind](url, app, number)))
            os._exit(1)
        say(number, "is", pid)


if __name__ == "__main__":
    main(*sys.argv[1:])
