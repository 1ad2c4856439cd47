"""An append, a projected fact and a query: beside bare Redis commands, and one table of SQL."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import statistics
import time
from typing import TYPE_CHECKING, Any

from benchmarks.paired import Case, row, time_async
from patterns import database
from patterns.data_management.cqrs import (
    EventStore,
    Fact,
    HashModel,
    OnPoison,
    Policy,
    Projector,
    TableModel,
    View,
)
from patterns.embedded import Server
from patterns.keyspace import connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.paired import Row
    from patterns.data_management.cqrs import Recorded
    from patterns.database import Database, Transaction

DATA = {"pieces": 3, "customer": "Ada Lovelace", "till": "12", "price": 1295}
FACTS, ROUNDS, BATCH = 2000, 9, 100
TABLE = """CREATE TABLE facts (aggregate TEXT NOT NULL, version BIGINT NOT NULL, command TEXT NOT NULL,
    kind TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (aggregate, version))"""
SOLD = "INSERT INTO sold VALUES ($1, $2) ON CONFLICT (item) DO UPDATE SET pieces = sold.pieces + $2"


async def appends(redis: Any, db: Database) -> list[Row]:
    """Return microseconds of one append."""
    store = EventStore("append", redis, app="bench", partitions=1)
    numbers = itertools.count()
    await db.execute(TABLE)

    async def ours() -> None:
        await store.append(f"a{number()}", [Fact("Sold", DATA)], expected=0, command="c")

    def number() -> int:
        return next(numbers)

    async def xadd() -> None:
        await redis.xadd("{bench}:bare", {"kind": "Sold", "data": json.dumps(DATA)})

    async def watched() -> None:
        key = f"{{bench}}:w{number()}"
        async with redis.pipeline(transaction=True) as pipe:
            await pipe.watch(key)
            await pipe.llen(key)
            pipe.multi()
            pipe.xadd("{bench}:watched", {"kind": "Sold", "data": json.dumps(DATA)})
            pipe.rpush(key, 1)
            await pipe.execute()

    async def table() -> None:
        sql = "INSERT INTO facts VALUES ($1, $2, $3, $4, $5)"
        await db.execute(sql, f"a{number()}", 1, "c", "Sold", json.dumps(DATA))

    cases = [
        Case("an append: bare XADD", xadd, baseline=True, note="the limit: no version, no command, no index"),
        Case("an append: this module", ours, ours=True),
        Case("an append: WATCH, LLEN, MULTI", watched, note="a version, but a lost reply is not recognised"),
        Case(
            "an append: one table in SQLite",
            table,
            note="in this process, no fsync: a private file; PRIMARY KEY (aggregate, version)",
        ),
    ]
    rows = await time_async(cases, rounds=21, calls=100, cpu=False)
    return [each | {"value": float(f"{each['value'] / 1000:.4g}"), "unit": "µs an append"} for each in rows]


def sold(rows: dict[str, Any], fact: Recorded) -> None:
    rows[fact.aggregate] = rows.get(fact.aggregate, 0) + fact.data["pieces"]


async def sold_in_sql(transaction: Transaction, fact: Recorded) -> None:
    await transaction.execute(SOLD, fact.aggregate, fact.data["pieces"])


async def projections(redis: Any, db: Database) -> list[Row]:
    """Return microseconds for each fact of a log of 2,000."""
    store = EventStore("project", redis, app="bench", partitions=1)
    for turn in range(FACTS // 20):  # so that a batch changes the rows of all 20 items
        for item in range(20):
            await store.append(f"item {item}", [Fact("Sold", DATA)], expected=turn, command=f"c{turn}")
    await db.execute("CREATE TABLE sold (item TEXT PRIMARY KEY NOT NULL, pieces BIGINT)")
    policy, generations = Policy(on_poison=OnPoison.PAUSE, batch=BATCH), itertools.count(1)
    log = store._log(0)

    async def ours() -> None:
        model = HashModel("sold", store, sold, generation=next(generations))
        assert await Projector(store, model, policy).catch_up() == FACTS

    async def in_sql() -> None:
        model = TableModel(f"sold {next(generations)}", db, sold_in_sql)
        await model.prepare()
        assert await Projector(store, model, policy).catch_up() == FACTS

    async def bare(*, one_by_one: bool) -> None:
        last, run = b"0", next(generations)
        while entries := await redis.xrange(log, b"(" + last, count=BATCH):
            if one_by_one:
                for at, fields in entries:
                    pieces = json.loads(fields[b"data"])["pieces"]
                    await redis.hincrby(f"{{bench}}:{run}", fields[b"aggregate"], pieces)
                    await redis.set(f"{{bench}}:{run}:at", at)
            else:
                async with redis.pipeline(transaction=True) as pipe:
                    for _, fields in entries:
                        pieces = json.loads(fields[b"data"])["pieces"]
                        pipe.hincrby(f"{{bench}}:{run}", fields[b"aggregate"], pieces)
                    pipe.set(f"{{bench}}:{run}:at", entries[-1][0])
                    await pipe.execute()
            last = entries[-1][0]

    ways: dict[str, tuple[Callable[[], Awaitable[None]], str | None]] = {
        "redis-py, MULTI": (
            lambda: bare(one_by_one=False),
            "100 HINCRBY and the checkpoint, in one transaction: counters only; no owner, no comparison",
        ),
        "this module, rows in Redis": (ours, None),
        "this module, rows in SQLite": (in_sql, "one statement for each fact, by this process"),
        "redis-py, two calls a fact": (lambda: bare(one_by_one=True), "wrong after a crash between the two"),
    }
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, (way, _) in ways.items():
            gc.collect()
            began = time.perf_counter()
            await way()
            if number:
                samples[name].append((time.perf_counter() - began) / FACTS * 1e6)
    (base, *_) = samples.values()
    rows = []
    for name, (_, note) in ways.items():
        ratios = [mine / other for mine, other in zip(samples[name], base, strict=True)]
        found = row(
            f"a projected fact: {name}",
            statistics.median(samples[name]),
            "µs a fact",
            n=FACTS * ROUNDS,
            baseline_value=1,
            ours=name == "this module, rows in Redis",
            baseline=name == next(iter(ways)),
            note=note,
        )
        rows.append(found | {"ratio": float(f"{statistics.median(ratios):.3g}")})
    return rows


async def queries(redis: Any) -> list[Row]:
    """Return microseconds of a query."""
    store = EventStore("query", redis, app="bench", partitions=1)
    model, view = HashModel("sold", store, sold), View("sold", store)
    receipt = await store.append("tea", [Fact("Sold", DATA)], expected=0, command="c")
    await Projector(store, model, Policy(on_poison=OnPoison.PAUSE)).catch_up()
    await view.switch(1)
    key = model.keys(0)[1]
    cases = [
        Case("a query: bare HGET", lambda: redis.hget(key, "tea"), baseline=True, note="one round trip"),
        Case(
            "a query: get(at=position)",
            lambda: view.get("tea", at=receipt.position),
            ours=True,
            note="one round trip: row and checkpoint; once in `refresh` which generation is live",
        ),
    ]
    rows = await time_async(cases, rounds=21, calls=100, cpu=False)
    return [each | {"value": float(f"{each['value'] / 1000:.4g}"), "unit": "µs a query"} for each in rows]


async def _measured(url: str) -> list[Row]:
    redis = connect(url)
    try:
        async with database.opened() as db:
            return [*await appends(redis, db), *await projections(redis, db), *await queries(redis)]
    finally:
        await redis.aclose()


def measure() -> list[Row]:
    """Return microseconds of appends, projected facts and queries."""
    with Server() as server:
        return asyncio.run(_measured(server.url))


def bounds(rows: list[Row]) -> list[str]:
    """An append within twice a bare XADD and under WATCH; a fact within 1.5 times MULTI without a guard."""
    mine = {each["unit"]: each for each in rows if each["ours"]}
    (watched,) = [each for each in rows if "WATCH" in each["case"]]
    broken = []
    if mine["µs an append"]["ratio"] > 2:
        broken.append(f"an append takes {mine['µs an append']['ratio']} times a bare XADD")
    if mine["µs an append"]["value"] > watched["value"]:
        broken.append("an append is slower than WATCH, LLEN, MULTI")
    if mine["µs a fact"]["ratio"] > 1.5:
        broken.append(f"a fact takes {mine['µs a fact']['ratio']} times one in a bare MULTI")
    if mine["µs a query"]["ratio"] > 2.5:
        broken.append(f"a query takes {mine['µs a query']['ratio']} times a bare HGET")
    return broken
