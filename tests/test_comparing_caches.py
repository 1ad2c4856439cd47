"""The workload that `docs/comparing_caches.md` compares caches by, and the caches under it."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

import pytest

from benchmarks.caches import BUFFER, CACHES, FIVE, NAIVE, NONE, Counts, Source, opened_cache
from benchmarks.comparing_caches import bounds
from benchmarks.traffic import Done, Op, key_of, percentile, play, staleness, trace
from patterns.keyspace import opened
from tests.eventually import eventually

if TYPE_CHECKING:
    from typing import Any

    from patterns.embedded import Server
    from tests.postgres import Home

# The trace


def test_a_trace_is_made_anew_from_its_seed() -> None:
    """The same seed gives the same operations, in the order in which they are due; another gives others."""
    given: dict[str, Any] = {"keys": 100, "skew": 1.1, "writes": 0.2, "per_second": 1000, "seconds": 5}
    ops = trace(seed=1, **given)
    assert ops == trace(seed=1, **given) != trace(seed=2, **given)
    assert [op.due for op in ops] == sorted(op.due for op in ops)
    assert ops[-1].due < 5
    assert 4500 < len(ops) < 5500
    assert 0.17 < sum(op.writes for op in ops) / len(ops) < 0.23


def test_keys_are_drawn_by_zipfs_law() -> None:
    """The first key is drawn about 2 to the power of the skew times as often as the second."""
    ops = trace(seed=1, keys=100, skew=2.0, writes=0, per_second=10_000, seconds=2)
    counts = [sum(op.rank == rank for op in ops) for rank in range(3)]
    assert counts[0] / counts[1] == pytest.approx(4, rel=0.15)
    assert counts[0] / counts[2] == pytest.approx(9, rel=0.2)


# What is stale


def read(number: int, began: float, rank: int = 0) -> Done:
    return Done(rank, began, began + 0.1, 0.1, number, None)


def write(number: int, ended: float, order: int, rank: int = 0) -> Done:
    return Done(rank, ended - 0.1, ended, 0.1, number, order)


@pytest.mark.parametrize(
    ("done", "age"),
    [
        ([read(0, 1.0)], 0.0),  # nobody has written
        ([write(1, 2.0, 1), read(0, 1.5)], 0.0),  # not acknowledged when the read began
        ([write(1, 2.0, 1), read(0, 2.5)], 0.5),
        ([write(1, 2.0, 1), read(1, 2.5)], 0.0),
        ([write(1, 2.0, 1), write(2, 3.0, 2), read(1, 3.25)], 0.25),  # replaced a quarter ago
        ([write(1, 2.0, 1), write(2, 3.0, 2), read(0, 3.25)], 1.25),
        ([write(1, 2.0, 1), write(2, 3.0, 2), read(2, 2.5)], 0.0),  # newer than what was acknowledged
        ([write(2, 2.0, 2), write(1, 3.0, 1), read(2, 3.5)], 0.0),  # the source has them in the other order
        ([write(2, 2.0, 2), write(1, 3.0, 1), read(1, 3.5)], 1.5),
        ([write(1, 2.0, 1, rank=7), read(0, 2.5)], 0.0),  # of another key
    ],
)
def test_a_read_is_stale_if_its_value_had_been_replaced_before_it_began(done: list[Done], age: float) -> None:
    """Only an acknowledged write that the source has later makes a value old, from its acknowledgement on."""
    ((_, found),) = staleness(done)
    assert found == pytest.approx(age)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    """The 99th of a hundred values is the last but one, and that of a single value is itself."""
    assert percentile(range(100), 99) == 98
    assert percentile(range(100), 50) == 49
    assert percentile([7.0], 99) == 7.0


async def test_the_loop_is_open() -> None:
    """An operation begins while earlier ones are under way, and a wait is counted from when it was due."""
    running, most, gate = 0, 0, asyncio.Event()

    class Slow:
        async def read(self, key: str) -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await gate.wait()
            return 0

        async def write(self, key: str, number: int) -> int:
            return number

    ops = [Op(0.0, 0, writes=False) for _ in range(20)]
    start = time.monotonic() - 10  # all were due ten seconds ago
    playing = asyncio.create_task(play([*ops, Op(0.0, 1, writes=True)], Slow(), start=start))
    await eventually(lambda: running == len(ops), within=10)
    gate.set()
    done = await playing
    assert most == len(ops)
    assert all(each.waited > 9 for each in done)
    assert [each.order for each in done] == [None] * len(ops) + [21]


# The caches


@pytest.mark.parametrize("name", [*CACHES, BUFFER])
async def test_each_cache_answers_the_workload(name: str, server: Server, database: Home, app: str) -> None:
    """What is read is 0, then what was written, and the newest write has the greatest order."""
    counts = Counts()
    async with opened(server.url) as redis, database.opened() as db:
        source = Source(db, random.Random(1), counts, latency=0)
        await source.fill(3)
        async with opened_cache(name, redis, source, app=app) as cache:
            key = key_of(1)
            assert await cache.read(key) == 0
            orders = []
            for number in (1, 2, 3):
                orders.append(await cache.write(key, number))
                assert await cache.read(key) == number
            assert orders == sorted(set(orders))
            asked = len(counts.reads)
            await cache.read(key)
            if name == NONE:
                assert len(counts.reads) == asked + 1
            elif name in FIVE:
                assert len(counts.reads) == asked


@pytest.mark.parametrize("name", FIVE)
async def test_a_cache_that_nobody_tells_is_caught(
    name: str, server: Server, database: Home, app: str
) -> None:
    """A write past the cache is stale in the next read, so the measure can fail for each of the five."""
    async with opened(server.url) as redis, database.opened() as db:
        source = Source(db, random.Random(1), Counts(), latency=0)
        await source.fill(1)
        async with opened_cache(name, redis, source, app=app, told=False) as cache:
            ops = [Op(0.0, 0, writes=False)]
            done = await play(ops, cache, start=time.monotonic())
            done += await play([Op(0.0, 0, writes=True)], cache, start=time.monotonic(), first=7)
            done += await play(ops, cache, start=time.monotonic())
    (_, before), (_, after) = staleness(done)
    assert before == 0 < after


@pytest.mark.parametrize(
    ("case", "value", "sentence"),
    [
        ("stale reads, crowded: Read-Through", 0.5, "Read-Through: 0.5 % of the reads were stale"),
        ("lost with the application: Write-Behind", 1.0, "Write-Behind: writes were lost with the app"),
        ("lost with Redis: Cache-Aside", 1.0, "Cache-Aside: writes were lost with Redis"),
        ("lost with Redis: Write-Behind, append-only file", 1.0, "append-only file: writes were lost"),
        ("oldest read, nobody told: Refresh-Ahead", 9.0, "read 9 s after it had been replaced"),
        ("source writes, crowded: Write-Behind", 60.0, "Write-Behind made 60 writes of 100"),
        (f"stale reads, crowded: {NAIVE}", 0.0, "none, so this run shows nothing"),
    ],
)
def test_a_broken_promise_is_told(case: str, value: float, sentence: str) -> None:
    """Each promise of the page fails the measurement when a figure breaks it, and no other figure does."""
    figures = {f"stale reads, crowded: {NAIVE}": 1.0, f"lost with the application: {BUFFER}": 9.0}
    figures |= {"lost with Redis: Write-Behind": 9.0, "lost with Redis: Write-Behind, append-only file": 0.0}
    figures |= {f"source writes, crowded: {name}": 20.0 for name in FIVE}
    for name in FIVE:
        figures |= {f"stale reads, crowded: {name}": 0.0, f"lost with the application: {name}": 0.0}
        figures.setdefault(f"lost with Redis: {name}", 0.0)
        figures |= {f"oldest read, nobody told: {name}": 1.5}

    def told(figures: dict[str, float]) -> list[str]:
        return bounds([{"case": name, "value": figure} for name, figure in figures.items()])

    assert told(figures) == []
    (broken,) = told(figures | {case: value})
    assert sentence in broken
