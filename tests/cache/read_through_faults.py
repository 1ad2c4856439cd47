"""The longer fault tests of Read-Through: what is broken, how often, and what is booked."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from patterns.cache.read_through import (
    CacheHit,
    EntryDiscarded,
    InvalidationFailed,
    ReadThrough,
)
from patterns.clock import ManualClock
from patterns.embedded import Cluster
from patterns.events import Recorder
from patterns.keyspace import opened
from tests.cache import read_through_source as naive
from tests.cache.read_through_checks import cache, outcome_of, value_key
from tests.cache.read_through_source import source
from tests.eventually import eventually
from tests.faults import Ledger, leaks, proxy
from tests.postgres import Home

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from patterns.embedded import Server


async def one(_: str) -> int:
    """Load 1."""
    return 1


NONSENSE = [b"", b"{", b"null", b"1 0 +\n{", b"1 0 +\n\xff", b"2 0 +\n1", b"1 x +\n1", b"1 0 ?\n1", None]
NONSENSE += [random.Random(seed).randbytes(3 * seed) for seed in range(1, 12)]


async def hang(url: str, app: str, database: Home, ledger: Callable[..., Ledger]) -> None:
    """Ten callers of 20 hanging loads get LoadTimedOut when the lease ends, and the next ones the value."""
    book, clock = ledger(bound="one lease"), ManualClock()
    async with (
        source(database, **{str(n): n for n in range(20)}) as rows,
        cache(url, app, rows, clock=clock, lease=5) as cached,
    ):
        rows.open.clear()
        waiting = [asyncio.create_task(outcome_of(cached.get(str(n % 20)))) for n in range(180)]
        waiting += [asyncio.create_task(outcome_of(cached.get_all([str(n)]))) for n in range(20)]
        await eventually(partial(rows.runs, 20), within=10)
        book.injected(20)
        await clock.advance(4.9)
        assert not any(call.done() for call in waiting)
        await clock.advance(0.1)
        got = await asyncio.gather(*waiting)
        assert got == ["LoadTimedOut"] * 180 + ["NotAllLoaded"] * 20
        rows.open.set()
        for n in range(20):
            book.acked(n)
            if await cached.get(str(n)) == n:
                book.effect(n)
        async with cache(url, app, rows, naive.Textbook) as textbook:
            rows.open.clear()
            hanging = [asyncio.create_task(textbook.get(str(n % 20))) for n in range(200)]
            await eventually(partial(rows.runs, 200), within=10)
            still = sum(not call.done() for call in hanging)
            rows.open.set()
            await asyncio.gather(*hanging)
    book.held("LoadTimedOut to all who wait; lease and place behind the bulkhead are free")
    assert still == 200
    book.naive(
        f"get, load, set: {still} of 200 callers wait, each for a load of its own, and nothing ends it"
    )


async def cancel_at_every_step(url: str, app: str, database: Home, ledger: Callable[..., Ledger]) -> None:
    """After each of 60 cancellations no connection is lent out, no lease is held, and the next call works."""
    book = ledger(bound="no lease or connection left")
    async with (
        source(database, **{str(n): n for n in range(120)}) as rows,
        cache(url, app, rows) as here,
        cache(url, app, rows, load_all=None) as there,
    ):
        for steps in range(60):
            keys = [str(steps), str(steps + 60)]
            cached = there if steps % 3 == 2 else here
            call = asyncio.create_task(cached.get_all(keys))
            for _ in range(steps):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            book.injected()
            assert leaks.in_use(cached._store._client) == 0
            assert not cached._loads._flights._under_way
            locks = [value_key(app, key, "lock") for key in keys]
            assert await there._store._client.exists(*locks) == 0
            book.acked(steps)
            if await there.get_all(keys) == {keys[0]: steps, keys[1]: steps + 60}:
                book.effect(steps)
    book.held("leases are given back, also where the reply was not awaited")


async def race_writes_with_loads(
    url: str, app: str, database: Home, rng: random.Random, ledger: Callable[..., Ledger]
) -> None:
    """Of 300 races between a load and a write, none leaves the old value in the cache."""
    book = ledger(bound="300 races")
    books = {ReadThrough: book, naive.Textbook: book.without("get, load, set; delete after the write")}
    steps: dict[str, tuple[asyncio.Event, ...]] = {}
    async with source(database) as rows:

        async def load(key: str) -> Any:
            value = await rows.load(key)
            step = steps[key]
            step[0].set()
            await step[rng.randrange(3)].wait()  # goes on at once, after the write, after the invalidation
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            return value

        for make, each in books.items():
            async with cache(url, app, load, make, name=make.__name__) as cached:

                async def race(key: str, cached: Any = cached, book: Ledger = each) -> None:
                    read, stored, told = steps[key] = asyncio.Event(), asyncio.Event(), asyncio.Event()
                    early = asyncio.create_task(cached.get(key))
                    await read.wait()
                    await rows.put(**{key: "new"})
                    stored.set()
                    await cached.invalidate(key)
                    told.set()
                    book.injected()
                    await early
                    book.acked(key)
                    if await cached.get(key) == "new":
                        book.effect(key)

                for first in range(0, 300 if make is ReadThrough else 60, 30):
                    keys = [str(number) for number in range(first, first + 30)]
                    await rows.put(**dict.fromkeys(keys, "old"))
                    await asyncio.gather(*[race(key) for key in keys])
    book.held("a load that was overtaken is not kept: the generation has changed")


async def read_nonsense(url: str, app: str, database: Home, ledger: Callable[..., Ledger]) -> None:
    """No bytes in the cache make a read of a list fail, and none of them stay there."""
    book, heard = ledger(), Recorder()
    async with (
        source(database, **{str(n): n for n in range(20)}) as rows,
        cache(url, app, rows, on_event=heard) as cached,
        opened(url) as client,
    ):
        for ask in ("get_all", "get", "found"):
            for number, garbage in enumerate(NONSENSE):
                name = value_key(app, str(number))
                await client.delete(name)
                if garbage is None:
                    await client.execute_command("RPUSH", name, "a list")
                else:
                    await client.set(name, garbage)
                book.injected()
            if ask == "get_all":
                got = await cached.get_all(map(str, range(20)))
            elif ask == "get":
                got = {str(n): await cached.get(str(n)) for n in range(20)}
            else:
                got = {str(n): (await cached.found(str(n))).value for n in range(20)}
            for number in range(20):
                book.acked((ask, number))
                if got[str(number)] == number and await cached.peek(str(number)) == number:
                    book.effect((ask, number))
        assert len(heard.of(EntryDiscarded)) == 58  # MGET takes a list, and `found` no bytes, for nothing
    book.held("it counts as a miss, and is loaded and written anew")
    wrong = 0
    async with cache(url, app, one, naive.Textbook) as textbook, opened(url) as client:
        for garbage in filter(None, NONSENSE):
            await client.set(f"{textbook.prefix}a", garbage)
            wrong += isinstance(await outcome_of(textbook.get("a")), str)
    assert wrong
    book.naive(f"get, load, set: {wrong} of {len(list(filter(None, NONSENSE)))} reads raised")


async def kill_redis(fresh_server: Server, app: str, tmp_path: Path, ledger: Callable[..., Ledger]) -> None:
    """Lost entries are loaded again; nobody gets anything else than what the source says meanwhile."""
    book, heard = ledger(bound="every answer right"), Recorder()
    home = Home(f"sqlite://{tmp_path / 'source.db'}", "sqlite")
    async with source(home, **{str(n): n for n in range(30)}) as rows:
        truth = {str(n): n for n in range(30)}
        async with (
            cache(fresh_server.url, app, rows, timeout=1, back_off=0.05, on_event=heard) as cached,
            cache(fresh_server.url, app, rows, naive.Textbook) as textbook,
        ):
            failed = 0
            for number in range(3):
                fresh_server.kill()
                book.injected()
                failed += isinstance(await outcome_of(textbook.get_all(truth)), str)
                book.acked((number, "without"))
                if await cached.get_all(truth) == truth:
                    book.effect((number, "without"))
                fresh_server.restart()

                async def hits() -> bool:
                    heard.events.clear()
                    assert await cached.get_all(truth) == truth
                    return len(heard.of(CacheHit)) == 30

                book.acked((number, "again"))
                if await eventually(hits, within=5):
                    book.effect((number, "again"))
    book.held("callers are answered by the source, then by the cache again")
    assert failed == 3
    book.naive(f"get, load, set: {failed} of 3 lists failed while Redis was away")


async def kill_a_primary(app: str, tmp_path: Path, ledger: Callable[..., Ledger]) -> None:
    """Every list is right before, during and after the failover; then all of it is cached again."""
    book, heard = ledger(bound="every answer right, cached again within 15 s", within=15), Recorder()
    home = Home(f"sqlite://{tmp_path / 'source.db'}", "sqlite")
    truth = {str(n): n for n in range(30)}
    with Cluster(primaries=3, replicas=3) as nodes:
        async with (
            source(home, **truth) as rows,
            cache(nodes.url, app, rows, timeout=1, back_off=0.1, on_event=heard) as cached,
            cache(nodes.url, app, rows, naive.Textbook) as textbook,
        ):
            assert await cached.get_all(truth) == truth
            nodes.primary_of(value_key(app, "7")).kill()
            book.injected()
            reads = await asyncio.gather(*[outcome_of(textbook.get(key)) for key in truth])
            failed = sum(isinstance(each, str) for each in reads)
            number = 0

            async def hits() -> bool:
                nonlocal number
                number += 1
                heard.events.clear()
                book.acked(number)
                if await cached.get_all(truth) == truth:
                    book.effect(number)
                return number > 5 and len(heard.of(CacheHit)) == 30

            await eventually(hits, within=15)
            book.recovered()
    book.held("what cannot be read is loaded; the replica takes over, and is filled")
    assert failed
    book.naive(f"get, load, set: {failed} of 30 reads raised at once after the kill")


async def lose_replies(url: str, app: str, database: Home, ledger: Callable[..., Ledger]) -> None:
    """Whichever reply is lost, of a command or of a pipeline, readers get the present values."""
    book = ledger(bound="no old value read")
    port = int(url.rpartition(":")[2].partition("/")[0])
    async with (
        source(database, **{str(n): "old" for n in range(36)}) as rows,
        proxy(port, book) as p,
        cache(p.url, app, rows, lease=0.4, back_off=0.01) as cached,
    ):
        for number, command in enumerate([b"\r\nMGET\r\n", b"EVALSHA", b"\r\nDEL\r\n"] * 6):
            keys = [str(number), str(number + 18)]
            await eventually(lambda: cached._store.ask(cached._store._client.ping), within=2)
            with p.lose_reply(command) as toxic:
                assert await cached.get_all(keys) == dict.fromkeys(keys, "old")
                await rows.put(**dict.fromkeys(keys, "new"))
                with suppress(InvalidationFailed):
                    await cached.invalidate(*keys)
                book.acked(number)
                if await cached.get_all(keys) == dict.fromkeys(keys, "new"):
                    book.effect(number)
                assert toxic.hits == 1
    failed = 0
    async with source(database), proxy(port) as p, cache(p.url, app, one, naive.Textbook) as textbook:
        for command in [b"\r\nGET\r\n", b"\r\nSET\r\n"] * 6:
            await textbook.client.ping()
            await textbook.invalidate("a")
            with p.lose_reply(command):
                failed += isinstance(await outcome_of(textbook.get("a")), str)
    assert failed
    book.held("transitions may be repeated or half known: the generation decides")
    book.naive(f"get, load, set: {failed} of 12 reads raised")
