"""The faults of CQRS: processes that are killed, paused or cut off, and books of what came of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from redis.exceptions import RedisError

from patterns.data_management.cqrs import (
    Fact,
    FactsApplied,
    HashModel,
    HistoryLost,
    ProjectionResumed,
    ProjectionStalled,
)
from patterns.data_management.cqrs.scripts import COMMIT
from patterns.embedded import Server
from patterns.keyspace import opened
from tests.data_management.cqrs_checks import caught_up, embedded_port
from tests.data_management.cqrs_shop import ComparesOneId, Place, Shop, deliver
from tests.eventually import eventually
from tests.faults import Ledger, proxy

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from patterns.events import Event, Recorder
    from tests.faults.workers import Worker
    from tests.postgres import Home

PROGRAM = "tests.data_management.cqrs_projectors"
KILLS = 20


async def killed(
    spawn: Callable[..., Worker], place: Place, kind: str, rng: random.Random, book: Ledger
) -> None:
    """Project a log of 250 facts with projectors that are killed; books of what is in the rows."""
    url = place.database.url if place.database else "-"
    async with place.shop(partitions=1) as shop:
        for number in range(10):
            facts = [Fact("Delivered", each) for each in range(25)]
            await shop.store.append(f"item {number}", facts, expected=0, command="c")
        for fact in await shop.facts():
            book.acked(fact.position.number)
        worker = spawn(PROGRAM, kind, place.url, place.app, url, KILLS, rng.random())
        assert await worker.ended(within=50) == 0, worker.output
        deaths = worker.output.count("killed")
        assert deaths == KILLS
        book.injected(deaths)
        for row in (await shop.rows(shop.model())).values():
            for number in row["seen"]:
                book.effect(number)
        if kind in {"hash", "table"}:
            assert "killed before" in worker.output
            assert "killed after" in worker.output
            assert await shop.rows(shop.model()) == await shop.replay()


async def sequence_and_last_seen(home: Home, book: Ledger) -> None:
    """Follow a table by its serial number, while the slower of two transactions has the lower number."""
    insert, last = "INSERT INTO facts (data) VALUES ($1)", 0
    async with home.opened() as db, home.opened() as reader:
        await db.execute("CREATE TABLE facts (id BIGSERIAL PRIMARY KEY, data BIGINT)")
        for number in range(10):
            async with db.transaction() as slow:
                await slow.execute(insert, 2 * number)
                await reader.execute(insert, 2 * number + 1)
                found = await reader.fetch("SELECT id, data FROM facts WHERE id > $1 ORDER BY id", last)
                for _, data in found:
                    book.effect(data)
                last = found[-1][0]
            book.injected()
            book.acked(2 * number)
            book.acked(2 * number + 1)
        assert await reader.fetch("SELECT data FROM facts WHERE id > $1", last) == []


def psutil_status(pid: int) -> str:
    """Return what a process does."""
    return str(psutil.Process(pid).status())


async def promoted_to(client: Any, shop: Shop) -> None:
    """Wait until the replica has the log of the shop."""

    async def same() -> bool:
        key = shop.store._log(0)
        return bool(await client.xlen(key) == await shop.store.client.xlen(key))

    await eventually(same, within=10)


async def commits_without_replies(place: Place, book: Ledger, heard: Recorder) -> None:
    """Project 40 facts while the replies to four commits are lost; books of what is in the rows."""
    async with proxy(embedded_port(place), book) as line, place.shop(partitions=1) as shop:
        await shop.fill(40)
        async with place.shop(partitions=1, url=line.url) as far:
            projector = far.projector(far.model(), on_event=heard)
            await projector.take()
            with line.lose_reply(COMMIT._sha.encode(), times=4):
                running = asyncio.create_task(projector.run())
                await eventually(lambda: caught_up(projector), within=10)
            running.cancel()
            await asyncio.wait([running])
        await enter(shop, book)


async def paused_and_replaced(
    spawn: Callable[..., Worker], place: Place, kind: str, says: str, book: Ledger
) -> None:
    """Stop a projector in its first commit, let another do all its work, and let it go on."""
    async with place.shop(partitions=1) as shop:
        await shop.fill(20)
        worker = spawn(PROGRAM, kind, place.url, place.app, "-", 0, 0)
        await eventually(lambda: psutil_status(worker.pid) == "stopped", within=20)
        book.injected()
        await shop.projector(shop.model()).catch_up()
        worker.cont()
        await worker.said(says, within=10)
        await enter(shop, book)


async def enter(shop: Shop, book: Ledger) -> None:
    """Enter each fact as acknowledged, and as an effect each time it is in a row."""
    for fact in await shop.facts():
        book.acked(fact.position.number)
    for row in (await shop.rows(shop.model())).values():
        for number in row["seen"]:
            book.effect(number)


def more(kind: type[Event], heard: Recorder, than: int) -> bool:
    """Say whether more than so many events of a kind were heard."""
    return len(heard.of(kind)) > than


async def an_outage(redis: Server, app: str, book: Ledger, heard: Recorder) -> None:
    """Kill Redis twice while four clients record 160 facts and a projector follows."""
    place = Place(redis.url, None, app)
    async with place.shop(partitions=2) as shop:
        model = shop.model()
        projector = shop.projector(model, on_event=heard)
        running = asyncio.create_task(projector.run())

        async def client(name: int) -> None:
            for number in range(40):
                command = f"{name} {number}"
                while True:
                    try:
                        await shop.store.execute(f"item {name}", deliver(1), command=command)
                    except (OSError, RedisError):
                        await asyncio.sleep(0)
                    else:
                        book.acked(command)
                        break

        clients = [asyncio.create_task(client(name)) for name in range(4)]
        for _ in range(2):
            await eventually(partial(more, FactsApplied, heard, len(heard.of(FactsApplied)) + 3), within=10)
            stalls = len(heard.of(ProjectionStalled))
            redis.kill()
            book.injected()
            await eventually(partial(more, ProjectionStalled, heard, stalls), within=10)
            redis.restart()
        await asyncio.gather(*clients)
        await eventually(lambda: caught_up(projector), within=10)
        book.recovered()
        running.cancel()
        await asyncio.wait([running])
        assert await shop.rows(model) == await shop.replay()
        for fact in await shop.facts():
            book.effect(fact.command)
        assert sum(len(row["seen"]) for row in (await shop.rows(model)).values()) == 160
    assert heard.of(ProjectionResumed)


async def a_failover_that_loses_facts(here: Place, book: Ledger) -> None:
    """Cut a replica off, record 6 more facts and project them, and promote the replica."""
    with Server() as models, Server() as primary, Server(replica_of=primary) as replica:
        async with opened(models.url) as beside, opened(replica.url) as promoted:
            place = replace(here, url=primary.url)
            async with place.shop(partitions=1) as shop:
                await shop.fill(10, items=2)
                await promoted_to(promoted, shop)
                replica.command("REPLICAOF", "NO", "ONE")  # the link is cut
                await shop.fill(6, items=2, seed=2)
                model = HashModel("stock", shop.store, shop.model()._apply, client=beside)
                await shop.projector(model).catch_up()
                facts = [(fact.aggregate, fact.version, fact.command) for fact in await shop.facts()]
            primary.kill()
            book.injected()
            async with replace(place, url=replica.url).shop(partitions=1) as shop:
                await shop.fill(8, items=2, seed=3)
                model = HashModel("stock", shop.store, shop.model()._apply, client=beside)
                with pytest.raises(HistoryLost):
                    await shop.projector(model).catch_up()
                naive = replace(place, url=replica.url)
                async with naive.shop(partitions=1, make=ComparesOneId) as unaware:
                    before = HashModel("stock", unaware.store, shop.model()._apply, client=beside)
                    await unaware.projector(before).catch_up()
                    wanted = await shop.replay()
                    held = await before.rows(0)
                    wrong = sum(held[item] != wanted[item] for item in wanted)
                    assert wrong, "it is right by chance"
                book.naive(f"compare the last id: {wrong} of {len(wanted)} rows wrong, and nobody told")
                rebuilt = HashModel("stock", shop.store, shop.model()._apply, generation=2, client=beside)
                await shop.projector(rebuilt).catch_up()
                assert await rebuilt.rows(0) == await shop.replay()
                present = {(fact.aggregate, fact.version, fact.command) for fact in await shop.facts()}
            for fact in facts:
                book.acked(fact)
                if fact in present:
                    book.effect(fact)


async def recorded_and_told(
    spawn: Callable[..., Worker], here: Place, rng: random.Random, book: Ledger, naive: Ledger
) -> None:
    """Kill shops that append, and shops that write a row and then a message; books of what was told."""
    for kind, each in (("append", book), ("dual", naive)):
        app = f"{here.app}-{kind}"
        worker = spawn(PROGRAM, kind, here.url, app, "-", KILLS, rng.random())
        assert await worker.ended(within=50) == 0, worker.output
        each.injected(worker.output.count("killed"))
        async with replace(here, app=app).shop(partitions=1) as shop:
            if kind == "append":
                stored = [fact.aggregate for fact in await shop.facts()]
                model = shop.model()
                await shop.projector(model).catch_up()
                told = list(await shop.rows(model))
            else:
                redis: Any = shop.store.client
                stored = [key.decode() for key in await redis.hkeys(f"{app}:{{dual}}:rows")]
                messages = await redis.xrange(f"{app}:{{dual}}:messages")
                told = [fields[b"command"].decode() for _, fields in messages]
        acked = {line.split()[1] for line in worker.output.splitlines() if line.startswith("acked")}
        assert acked <= set(stored), "acknowledged, and not stored"
        for item in stored:
            each.acked(item)
        for item in told:
            each.effect(item)
