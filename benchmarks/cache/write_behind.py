"""One write, and a thousand: beside a statement of its own in SQLite, and beside a bare list in Redis."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from typing import TYPE_CHECKING, Any

import redis.asyncio

from benchmarks.paired import SEED, Case, row, time_async
from patterns import database
from patterns.cache.write_behind import Flusher, Policy, VersionedTable, WriteBehind
from patterns.embedded import Server
from patterns.keyspace import connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.paired import Row
    from patterns.cache.write_behind import Change

TABLE = """CREATE TABLE player (id TEXT PRIMARY KEY NOT NULL, version BIGINT NOT NULL,
    deleted BOOLEAN NOT NULL, x BIGINT)"""
UPSERT = """INSERT INTO player VALUES ($1, 0, FALSE, $2)
    ON CONFLICT (id) DO UPDATE SET x = excluded.x WHERE player.version <= excluded.version"""
PLAYERS, WRITES = 200, 2000
CALLS = {"rounds": 15, "calls": 40}


async def one_write(url: str, replicated: str, on_disk: str, folder: str) -> list[Row]:
    """Return microseconds of one write."""
    policy: dict[str, Any] = {"capacity": 1_000_000, "delay": 0, "shards": 1}
    clients = [connect(each) for each in (url, replicated, on_disk)]
    plain = WriteBehind("plain", clients[0], Policy(**policy), app="bench")
    waits = WriteBehind("waits", clients[1], Policy(**policy, wait_replicas=1, wait_seconds=5), app="bench")
    synced = WriteBehind("synced", clients[2], Policy(**policy), app="bench")
    bare: Any = redis.asyncio.Redis.from_url(url)
    numbers = iter(range(10**9))
    async with database.opened(f"sqlite://{folder}/db") as db:
        await db.execute(TABLE)

        def direct() -> Any:
            number = next(numbers)
            return db.execute(UPSERT, f"player {number % PLAYERS}", number)

        def put(to: WriteBehind) -> Any:
            number = next(numbers)
            return to.put(f"player {number % PLAYERS}", {"x": number})

        async def push() -> Any:
            number = next(numbers)
            await bare.lpush("bare", json.dumps({"id": f"player {number % PLAYERS}", "x": number}))

        cases = [
            Case(
                "one write: SQLite",
                direct,
                baseline=True,
                note="an upsert of its own, on disk (synchronous=FULL); another machine is further away",
            ),
            Case("one write: put", lambda: put(plain), ours=True, note="in the memory of Redis"),
            Case("one write: put, WAIT", lambda: put(waits), ours=True, note="and of a replica"),
            Case("one write: put, on disk", lambda: put(synced), ours=True, note="appendfsync always"),
            Case("one write: LPUSH", push, note="redis-py; a list: no coalescing, bound, versions or reads"),
        ]
        rows = await time_async(cases, **CALLS, cpu=False)
    await bare.aclose()
    for client in clients:
        await client.aclose()
    return [each | {"value": float(f"{each['value'] / 1000:.4g}"), "unit": "µs"} for each in rows]


async def at_the_source(url: str) -> list[Row]:
    """Return statements and rows that 2000 writes of 200 players cost the source, flushed every 500."""
    rng = random.Random(SEED)
    players = rng.choices(range(PLAYERS), [1 / rank for rank in range(1, PLAYERS + 1)], k=WRITES)
    client = connect(url)
    counted = {}
    for name, coalesce in (("coalescing", True), ("every write", False)):
        policy = Policy(capacity=1_000_000, delay=0, shards=1, coalesce=coalesce)
        async with database.opened() as db:
            await db.execute(TABLE)
            table, calls, changes = VersionedTable(db, "player", key="id", columns=("x",)), 0, 0

            async def store(batch: Sequence[Change], table: VersionedTable = table) -> dict[str, int]:
                nonlocal calls, changes
                calls += 1
                changes += len(batch)
                return await table.store(batch)

            items = WriteBehind(f"source-{coalesce}", client, policy, app="bench")
            flusher = Flusher(items.name, client, policy, store, app="bench")
            for number, player in enumerate(players, 1):
                await items.put(f"player {player}", {"x": number})
                if number % 500 == 0:
                    await flusher.flush()
            counted[name] = (calls, changes)
    await client.aclose()
    rows = []
    for at, (told, unit) in enumerate([("round trips", "trips"), ("rows", "rows")]):
        rows.append(
            row(f"{told}: a write each", WRITES, unit, n=WRITES, baseline_value=WRITES, baseline=True)
        )
        for name, counts in counted.items():
            note = "coalesce=False: a batch has each key once" if name == "every write" else None
            rows.append(
                row(
                    f"{told}: {name}",
                    counts[at],
                    unit,
                    n=WRITES,
                    baseline_value=WRITES,
                    ours=True,
                    note=note,
                )
            )
    return rows


def measure() -> list[Row]:
    """Return microseconds of a write, and what many writes cost the source."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Server() as server,
        Server() as primary,
        Server(replica_of=primary),
        Server("--appendonly", "yes", "--appendfsync", "always") as on_disk,
    ):
        rows = asyncio.run(one_write(server.url, primary.url, on_disk.url, folder))
        return rows + asyncio.run(at_the_source(server.url))


def bounds(rows: list[Row]) -> list[str]:
    """A put within 2 times a bare LPUSH, and a twentieth of the round trips."""
    by = {each["case"]: each for each in rows}
    broken = []
    ratio = by["one write: put"]["value"] / by["one write: LPUSH"]["value"]
    if ratio > 2:
        broken.append(f"a put takes {ratio:.2f} times an LPUSH")
    if by["round trips: coalescing"]["ratio"] > 0.05:
        broken.append(f"{by['round trips: coalescing']['value']:g} round trips for {WRITES} writes")
    return broken
