"""A seeded trace of reads and writes, played in real time, and how old what its readers got was.

The loop is open: an operation begins when it is due, however long the earlier ones take, as users come
who know nothing of each other. What it waited is counted from when it was due, so that a stall is paid for
by everybody who came in it; only the first 1.5 ms, by which a timer may be late, are not counted.

Each write has a number of its own, which is all that a value holds, and gets an order from whoever keeps
the values. A read is stale if it returned a value older than the newest one whose write had been
acknowledged before the read began, in whichever process.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
import random
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Cache", "Done", "Op", "percentile", "play", "staleness", "trace"]

_TIMER = 0.0015  # seconds by which the loop may wake up late


class Op(NamedTuple):
    """One operation: when it is due, in seconds from the start, and on what."""

    due: float
    rank: int  # of the key: 0 is the one that is used most
    writes: bool


class Done(NamedTuple):
    """What became of it."""

    rank: int
    began: float  # on the monotonic clock, which all processes of a machine share
    ended: float
    waited: float  # since it was due, or a little later
    number: int  # what was read or written
    order: int | None  # of a write: greater than that of every earlier write of the key


class Cache(Protocol):
    """What is in front of the source, and the source."""

    async def read(self, key: str) -> int:
        """Return the number."""
        ...

    async def write(self, key: str, number: int) -> int:
        """Return the order of the write."""
        ...


def trace(
    *, seed: object, keys: int, skew: float, writes: float, per_second: float, seconds: float
) -> list[Op]:
    """Return the operations of one process, in order: Poisson arrivals, keys by Zipf's law."""
    rng = random.Random(str(seed))
    weights = list(itertools.accumulate(1 / rank**skew for rank in range(1, keys + 1)))
    ops, due = [], rng.expovariate(per_second)
    while due < seconds:
        (rank,) = rng.choices(range(keys), cum_weights=weights)
        ops.append(Op(due, rank, rng.random() < writes))
        due += rng.expovariate(per_second)
    return ops


async def play(ops: Sequence[Op], cache: Cache, *, start: float, first: int = 1) -> list[Done]:
    """Do each operation when it is due; return what became of them, in that order.

    Args:
        ops: from `trace`.
        cache: what is asked.
        start: second 0 of the trace, on the monotonic clock.
        first: number of the first write; each has one that no other process gives.
    """

    async def one(op: Op, number: int) -> Done:
        began, order = time.monotonic(), None
        if op.writes:
            order = await cache.write(key_of(op.rank), number)
        else:
            number = await cache.read(key_of(op.rank))
        ended = time.monotonic()
        due = start + op.due
        return Done(op.rank, began, ended, ended - max(due, min(began, due + _TIMER)), number, order)

    async with asyncio.TaskGroup() as group:
        tasks = []
        for at, op in enumerate(ops):
            if (early := start + op.due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            tasks.append(group.create_task(one(op, first + at)))
    return [task.result() for task in tasks]


def key_of(rank: int) -> str:
    """Return the key of a rank."""
    return f"item {rank}"


def staleness(done: Iterable[Done]) -> list[tuple[Done, float]]:
    """Return each read with how many seconds ago its value had been replaced; 0 if it had not been.

    What the source held before the first write has the number 0.
    """
    writes: dict[int, list[tuple[float, int]]] = {}
    orders: dict[tuple[int, int], int] = {}
    reads = []
    for each in done:
        if each.order is None:
            reads.append(each)
        else:
            writes.setdefault(each.rank, []).append((each.ended, each.order))
            orders[each.rank, each.number] = each.order
    found = []
    newest = {rank: _records(acknowledged) for rank, acknowledged in writes.items()}
    for read in reads:
        ended, order = newest.get(read.rank, ([], []))
        mine = orders[read.rank, read.number] if read.number else -1
        at = bisect.bisect_right(order, mine)  # the first that replaced it
        old = read.began - ended[at] if at < len(ended) else 0.0
        found.append((read, max(0.0, old)))
    return found


def _records(acknowledged: list[tuple[float, int]]) -> tuple[list[float], list[int]]:
    """Return those writes that were newer than all that had been acknowledged before, by time."""
    times: list[float] = []
    orders: list[int] = []
    for ended, order in sorted(acknowledged):
        if not orders or order > orders[-1]:
            times.append(ended)
            orders.append(order)
    return times, orders


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest value that at least so many per cent do not exceed."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]
