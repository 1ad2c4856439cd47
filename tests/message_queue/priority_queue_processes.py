"""Consumers in processes of their own, forked from one that has read its imports already.

Arguments: the URL of Redis, and a list there. An order in it is `<kind> <app> <number>`; a child is forked
for it, says `<number> is <pid>`, and goes on until it is killed or this process ends:

- `worker`: takes jobs, 25 at a time, and does each one's effect with its acknowledgement;
- `victim`: takes 25 jobs, says `<number> holds`, and does nothing more;
- `popper` and `pop-victim`: the same with ZPOPMIN;
- `sleeper`: takes one job, says `<number> holds`; told `go` in the list `go-<number>`, does the effect and
  the acknowledgement, and says `<number> was <what it was told>`;
- `unfenced`: the same, but for its effect it asks nobody.

The effect of a job is its payload at the end of the list `<app>:{priority_queue:jobs}:done`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import redis

from patterns.keyspace import Keyspace, opened
from patterns.message_queue.priority_queue import Delivery, Effect, LeaseLost, Policy, PriorityQueue

POLICY = Policy(aging=10, lease=0.4, poll=0.1, max_deliveries=100)
BATCH = 25


def say(*words: object) -> None:
    """Print a line in one piece: many processes share the file."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")


def jobs_of(client: Any, app: str) -> PriorityQueue:
    """Return the queue."""
    return PriorityQueue("jobs", client, POLICY, app=app)


def done(app: str) -> str:
    """Return the key of what has been done."""
    return Keyspace(app, "priority_queue").key("jobs", "done")


def effect(app: str, one: Delivery) -> Effect:
    """Return what a job does."""
    return Effect("redis.call('RPUSH', KEYS[1], ARGV[1])", [done(app)], [one.payload])


async def worker(client: Any, app: str, number: str) -> None:
    """Work for ever."""
    jobs = jobs_of(client, app)
    while True:
        for one in await jobs.receive(number, BATCH):
            await jobs.acknowledge(one, effect(app, one))


async def victim(client: Any, app: str, number: str) -> None:
    """Hold jobs."""
    jobs = jobs_of(client, app)
    while not await jobs.receive(number, BATCH):
        pass
    say(number, "holds")
    await asyncio.Event().wait()


async def popper(client: Any, app: str, number: str) -> None:
    """Work for ever, with ZPOPMIN."""
    while True:
        for member, _ in await client.zpopmin(f"{app}-naive", BATCH):
            await client.rpush(f"{app}-naive-done", member)


async def pop_victim(client: Any, app: str, number: str) -> None:
    """Hold jobs that are nowhere else."""
    while not await client.zpopmin(f"{app}-naive", BATCH):
        pass
    say(number, "holds")
    await asyncio.Event().wait()


async def sleeper(client: Any, app: str, number: str) -> None:
    """Hold a job, and do it when it is too late."""
    jobs = jobs_of(client, app)
    while not (found := await jobs.receive(number)):
        pass
    say(number, "holds")
    await client.blpop([f"go-{number}"], timeout=20)
    try:
        await jobs.acknowledge(found[0], effect(app, found[0]))
        say(number, "was", "the owner")
    except LeaseLost:
        say(number, "was", "refused")


async def unfenced(client: Any, app: str, number: str) -> None:
    """Hold a job, and do it when it is too late, whoever has it by then."""
    jobs = jobs_of(client, app)
    while not (found := await jobs.receive(number)):
        pass
    say(number, "holds")
    await client.blpop([f"go-{number}"], timeout=20)
    await client.rpush(done(app), found[0].payload)
    say(number, "was", "not asked")


KINDS = {
    "worker": worker,
    "victim": victim,
    "popper": popper,
    "pop-victim": pop_victim,
    "sleeper": sleeper,
    "unfenced": unfenced,
}


async def work(parent: int, kind: str, url: str, app: str, number: str) -> None:
    """Do it until the other end of the pipe is closed, as it is when the parent has ended."""
    asyncio.get_running_loop().add_reader(parent, lambda: os._exit(0))
    async with opened(url, socket_timeout=30) as client:
        await KINDS[kind](client, app, number)
        await asyncio.Event().wait()


def main(url: str, orders: str) -> None:
    """Carry out one order after the other."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    held, mine = os.pipe()
    client: Any = redis.Redis.from_url(url, socket_timeout=None)
    say("ready")
    while True:
        _, order = client.blpop(orders)
        kind, app, number = order.decode().split()
        pid = os.fork()
        if pid == 0:
            os.close(mine)
            asyncio.run(work(held, kind, url, app, number))
            os._exit(1)
        say(number, "is", pid)


if __name__ == "__main__":
    main(*sys.argv[1:])
