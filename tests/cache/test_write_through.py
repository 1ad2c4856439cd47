"""The proof of patterns/cache/write_through: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import itertools
import math
import pickle
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from patterns import database as databases
from patterns.cache.write_through import (
    MISS,
    CacheMissed,
    InvalidationFailed,
    Loaded,
    LoadFailed,
    NotStorable,
    NotVersioned,
    StoreCancelled,
    StoreTimedOut,
    Versioned,
    VersionedTable,
    WriteFailed,
    WriteThrough,
    Written,
    WrittenThrough,
)
from patterns.cache.write_through import entries as write_through_entries
from patterns.clock import ManualClock
from patterns.events import Recorder
from patterns.keyspace import opened
from patterns.outage import NoCache
from tests.cache import write_through_site as naive
from tests.cache.write_through_checks import (
    KEYS,
    PAUSES,
    check_a_dead_writer_leaves_nothing_old,
    check_a_delete_stays,
    check_an_unknown_outcome_is_not_taken_for_a_failure,
    check_many_have_an_outcome_each,
    check_only_what_can_be_read_again_is_written,
    check_reads,
    check_the_source_comes_first,
    check_writers_agree,
    check_writes_do_without_redis,
    deaths,
    mixed_faults,
    writers,
)
from tests.cache.write_through_site import (
    LEASE,
    InATransaction,
    Make,
    Refused,
    Rows,
    cache,
    names,
    nothing,
    outcome_of,
    policy,
    source,
    time_passes,
    v,
)
from tests.eventually import eventually
from tests.faults import Ledger, leaks, proxy
from tests.postgres import Home, schema

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from patterns.embedded import Server
    from tests.faults.workers import Worker
    from tests.postgres import Postgres

# Each check runs on one server over SQLite and on a cluster over PostgreSQL; naive variants on the first.
EVERYWHERE = pytest.mark.parametrize(
    ("url", "database"), [("one server", "sqlite"), ("3+3 cluster", "postgres")], indirect=True
)
ONCE = pytest.mark.parametrize(("url", "database"), [("one server", "sqlite")], indirect=True)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A private SQLite database, for tests that run once."""
    return Home(f"sqlite://{quote(str(tmp_path / 'source.db'))}", "sqlite")


@pytest.fixture
def own(postgres: Postgres) -> Iterator[Home]:
    """A schema on the PostgreSQL that may be broken."""
    with schema(postgres.url, postgres) as lent:
        yield lent


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """Where the cache is."""
    running = request.getfixturevalue("server" if request.param == "one server" else "cluster")
    return str(running.url)


# 1: the source first


@EVERYWHERE
@pytest.mark.invariant(1)
async def test_what_the_source_refused_is_never_read(url: str, app: str, database: Home) -> None:
    """A put that returned is in the source; one that was refused changes nothing, for nobody, ever."""
    await check_the_source_comes_first(url, app, database, WriteThrough)


@ONCE
@pytest.mark.naive(1)
async def test_the_cache_first_shows_what_was_never_committed(url: str, app: str, database: Home) -> None:
    """SET, then UPDATE: readers get a value that the source then refuses."""
    with pytest.raises(AssertionError, match="a reader saw what was refused"):
        await check_the_source_comes_first(url, app, database, naive.CacheFirst)


# 2: all orders


def orders(**steps: int) -> list[str]:
    """Return every order in which actors can take so many steps each."""
    letters = "".join(name * number for name, number in steps.items())
    return sorted({"".join(each) for each in itertools.permutations(letters)})


@EVERYWHERE
@pytest.mark.invariant(2)
@pytest.mark.parametrize("deletes", [False, True])
async def test_two_writers_agree_in_all_orders(url: str, app: str, database: Home, deletes: bool) -> None:
    """Mark, store and keep of two writers in all 20 orders: Redis ends with what the source ends with."""
    every = orders(a=3, b=3)
    assert len(every) == 20
    await check_writers_agree(url, app, database, WriteThrough, every, deletes=deletes)


@ONCE
@pytest.mark.naive(2)
@pytest.mark.parametrize("variant", [naive.Textbook, naive.CacheFirst])
async def test_writing_twice_ends_with_two_values(url: str, app: str, database: Home, variant: Make) -> None:
    """Two writers reach the source in one order and the cache in the other."""
    with pytest.raises(AssertionError, match=r"in the source, .* in the cache"):
        await check_writers_agree(url, app, database, variant, orders(a=2, b=2), deletes=False)


@ONCE
@pytest.mark.invariant(2)
def test_writers_readers_and_losses_agree_in_drawn_orders(url: str, app: str, database: Home) -> None:
    """Three writers, one of them a deletion, a load, lost values and marks, and drops, in drawn orders."""
    with asyncio.Runner() as runner:
        lent = writers(url, app, database, WriteThrough)
        agree_on = runner.run(lent.__aenter__())

        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(st.sampled_from("aaabbbcccrrrr-ox"), min_size=6, max_size=18), st.booleans())
        def agree(order: Sequence[str], deletes: bool) -> None:
            runner.run(agree_on(order, deletes=deletes))

        try:
            agree()
        finally:
            runner.run(lent.__aexit__(None, None, None))


@pytest.mark.invariant(2)
async def test_a_write_whose_mark_was_lost_is_not_kept(server: Server, app: str) -> None:
    """There is nothing to compare it with: what was newer may have been lost as well."""
    async with cache(server.url, app, None) as cached, opened(server.url) as client:
        entries = cached._entries
        await entries.mark("a", "lost")
        await client.delete(names(app, "a")[2])
        assert not await entries.keep("a", "lost", 2, b"1 0 +\n2", 60, bound=1)
        assert await cached.peek("a") is MISS
        await entries.mark("a", "older")
        assert await entries.keep("a", "older", 1, b"1 0 +\n1", 60, bound=1)
        assert not await entries.keep("a", "never marked", 2, b"1 0 +\n2", 60, bound=1)
        assert await cached.peek("a") is MISS, "what is surely older was left"


@pytest.mark.invariant(2)
@pytest.mark.parametrize("versions", [(9, 10), (2**53, 2**53 + 1), (2**63 - 2, 2**63 - 1), (0, 1)])
async def test_versions_are_compared_as_whole_numbers(
    server: Server, app: str, versions: tuple[int, int]
) -> None:
    """Also where they have more digits than the numbers of Lua."""
    older, newer = versions
    async with cache(server.url, app, None) as cached:
        entries = cached._entries
        for token in ("one", "two"):
            await entries.mark("a", token)
        assert await entries.keep("a", "two", newer, b'1 0 +\n"newer"', 60, bound=1)
        assert not await entries.keep("a", "one", older, b'1 0 +\n"older"', 60, bound=1)
        assert await cached.peek("a") == "newer"
        for token in ("one", "two"):
            await entries.mark("b", token)
        for token, version in (("one", older), ("two", newer)):
            assert await entries.keep("b", token, version, b'1 0 +\n"newer"', 60, bound=1)


@EVERYWHERE
@pytest.mark.invariant(2, 5)
async def test_versions_that_begin_anew_hide_no_write(url: str, app: str, database: Home) -> None:
    """After a row was removed, or restored from a backup, the next write replaces the entry all the same."""
    async with (
        source(database) as rows,
        cache(url, app, rows) as here,
        cache(url, app, rows) as there,
    ):
        for deletes, after in ((False, Written(1, cached=True)), (True, Written(0, cached=True))):
            for number in range(3):
                await there.put("a", v(number))
            assert await there.get("a") == v(2)
            await rows.db.execute("DELETE FROM thing")
            told = await (here.delete("a") if deletes else here.put("a", v("again")))
            assert told == after
            assert await there.get("a") == await rows.has("a")


@pytest.mark.invariant(2)
@pytest.mark.fault("two writers put the same key at the same time")
async def test_races_of_writers_leave_no_difference(
    server: Server, app: str, ledger: Callable[..., Ledger], rng: random.Random, home: Home
) -> None:
    """Of 200 races of two writers, none leaves one value in the source and another in the cache."""
    book = ledger(bound="200 races")
    books = {WriteThrough: book, naive.Textbook: book.without("UPDATE, then SET")}
    for make, each in books.items():
        async with (
            source(home) as rows,
            cache(server.url, app, rows, make, name=make.__name__) as one,
            cache(server.url, app, rows, make, name=make.__name__) as other,
        ):

            async def slow(step: str, key: str) -> None:
                for _ in range(rng.randrange(200 if step == "stored" else 20)):
                    await asyncio.sleep(0)

            async def race(key: str, one: Any = one, other: Any = other, each: Ledger = each) -> None:
                await asyncio.gather(one.put(key, v("one")), other.put(key, v("other")))
                each.injected()

            rows.hook = slow
            for start in range(0, 200, 20):
                await asyncio.gather(*[race(str(number)) for number in range(start, start + 20)])
            rows.hook = nothing
            for number in range(200):
                each.acked(number)
                if await one.get(str(number)) == await rows.has(str(number)):
                    each.effect(number)
    book.held("the newer version stays, whichever comes later")


# 3: a writer that dies


@EVERYWHERE
@pytest.mark.invariant(3)
async def test_a_dead_writer_leaves_nothing_old_behind(url: str, app: str, database: Home) -> None:
    """Where its mark, its commit and its death meet a load in all 35 orders, warm and cold."""
    assert len(deaths()) == 35
    await check_a_dead_writer_leaves_nothing_old(url, app, database, WriteThrough)


@ONCE
@pytest.mark.naive(3)
@pytest.mark.parametrize("variant", [naive.Textbook, naive.NewestWins])
async def test_without_a_mark_the_old_value_outlives_its_writer(
    url: str, app: str, database: Home, variant: Make
) -> None:
    """A version compares two writes; it says nothing of the one that never came."""
    with pytest.raises(AssertionError, match="from before a write is still read"):
        await check_a_dead_writer_leaves_nothing_old(url, app, database, variant)


@ONCE
@pytest.mark.invariant(3)
async def test_a_dead_writer_makes_others_unsure_until_they_began_after_its_lease(
    url: str, app: str, database: Home
) -> None:
    """What overlapped with it may be older than what it wrote, so it is not kept; what came later is."""
    async with (
        source(database, a="old") as rows,
        cache(url, app, rows) as here,
        opened(url) as client,
    ):
        await here.get("a")
        await here._entries.mark("a", "died")
        await time_passes(client, app, "a", LEASE / 2)
        gate = asyncio.Event()

        async def held(step: str, key: str) -> None:
            if step == "stored":
                await gate.wait()

        rows.hook = held
        overlapping = asyncio.create_task(here.put("a", v("overlapping")))
        await eventually(lambda: rows.stored, within=5)
        await rows.table.store("a", v("what the dead one wrote, and nobody told"))
        await time_passes(client, app, "a", LEASE / 2 + 0.1)
        gate.set()
        assert (await overlapping).cached is False
        assert await here.get("a") == v("what the dead one wrote, and nobody told")
        assert (await here.put("a", v("later"))).cached
        assert await here.peek("a") == v("later")
        await here._entries.mark("a", "slow")
        await time_passes(client, app, "a", LEASE + 0.1)
        assert await client.hexists(names(app, "a")[2], "w:slow")
        assert not await here._entries.keep("a", "slow", 99, b"1 0 +\n1", 60, bound=1), "after its lease"


@EVERYWHERE
@pytest.mark.invariant(3)
@pytest.mark.fault("a writer is cancelled at every step of a put")
async def test_cancellation_at_every_step_leaves_nothing_old(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """After each of 100 cancellations no connection is lent out, and readers get what the source has."""
    book = ledger(bound="no connection, permit or old value left")
    books: dict[Make, Ledger] = {WriteThrough: book}
    if database.engine == "sqlite":  # the naive variant once
        books[naive.Textbook] = book.without("UPDATE, then SET")
    for make, each in books.items():
        async with (
            source(database) as rows,
            cache(url, f"{app}-{make.__name__}", rows, make, max_writes=1) as here,
            cache(url, f"{app}-{make.__name__}", rows, make) as there,
        ):
            for steps in range(100):
                key = str(steps)
                await rows.table.store(key, v("old"))
                await there.get(key)
                call = asyncio.create_task(here.put(key, v("new")))
                for _ in range(steps):
                    await asyncio.sleep(0)
                call.cancel()
                with suppress(asyncio.CancelledError):
                    await call
                each.injected()
                if make is WriteThrough:
                    assert leaks.in_use(here._entries._client) == 0
                    assert here._permits._value == 1
                truth = await rows.has(key)
                each.acked(key)
                if await there.get(key) == await here.get(key) == truth:
                    each.effect(key)
    book.held("the mark is taken back, or the entry dropped, before the cancellation goes on")


@ONCE
@pytest.mark.invariant(3)
async def test_a_mark_whose_writer_was_cancelled_is_taken_back(url: str, app: str, database: Home) -> None:
    """Redis had it, and the reply was not awaited: the value gets its life back at once."""
    async with source(database, a="old") as rows, cache(url, app, rows) as cached, opened(url) as client:
        await cached.get("a")
        mark, marked = cached._entries.mark, asyncio.Event()

        async def hangs(key: str, token: str) -> None:
            await mark(key, token)
            marked.set()
            await asyncio.get_running_loop().create_future()

        cached._entries.mark = hangs
        call = asyncio.create_task(cached.put("a", v("new")))
        await marked.wait()
        assert await client.pttl(names(app, "a")[0]) <= 1000 * LEASE
        call.cancel()
        await asyncio.wait([call])
        assert rows.stored == []
        assert await client.pttl(names(app, "a")[0]) > 50_000
        assert await cached.peek("a") == v("old")


POINTS = ("begin", "mark", "store", "stored", "end")


@pytest.mark.invariant(3)
@pytest.mark.fault("the writer's process is killed (SIGKILL), at each point of a put")
async def test_a_killed_writer_leaves_nothing_old_for_longer_than_its_lease(
    server: Server, app: str, ledger: Callable[..., Ledger], spawn: Callable[..., Worker], home: Home
) -> None:
    """Killed before, between and after its three steps: a lease later readers get what the source has."""
    lease = 0.5
    book = ledger(within=lease + 3, bound=f"a lease of {lease} s")
    naive_old = 0
    kinds = [("write_through", point) for point in POINTS] + [("textbook", "stored")]
    async with source(home) as rows:
        workers = []
        for kind, point in kinds:
            key = f"{kind}-{point}"
            await rows.table.store(key, v("old"))
            arguments = (server.url, home.url, f"{app}-{kind}", key, "new", lease, kind, point)
            workers.append((kind, key, spawn("tests.cache.write_through_writer", *arguments)))
        async with (
            cache(server.url, f"{app}-write_through", rows, lease=lease) as ours,
            cache(server.url, f"{app}-textbook", rows, naive.Textbook) as textbook,
        ):
            for kind, key, _ in workers:
                cached = ours if kind == "write_through" else textbook
                await cached.get(key)
            for kind, key, worker in workers:
                await worker.said("stands at", within=30)
                worker.kill()
                if kind == "textbook":
                    continue
                book.injected()
                truth = await rows.has(key)
                book.acked(key)
                await eventually(partial(_reads, ours, key, truth), within=lease + 3)
                book.recovered()
                for _ in range(5):
                    assert await ours.get(key) == truth
                book.effect(key)
            naive_old = await textbook.get("textbook-stored") == v("old")
            assert await rows.has("textbook-stored") == v("new")
    assert naive_old
    book.held("the mark ends the old value with the writer's lease")
    book.naive("UPDATE, then SET: killed between the two, the old value is read until its ttl of 60 s ends")


async def _reads(cached: Any, key: str, truth: Any) -> bool:
    return bool(await cached.get(key) == truth)


# 4: without Redis


@EVERYWHERE
@pytest.mark.invariant(4)
async def test_a_cluster_that_is_away_is_no_failed_write(url: str, app: str, database: Home) -> None:
    """Nobody answers at that address: the source is written and read, and the result says for how long."""
    where = "redis+cluster://127.0.0.1:1" if "cluster" in url else "redis://127.0.0.1:1"
    async with source(database) as rows, cache(where, app, rows) as cached:
        told = await cached.put("a", v(1))
        assert (told.version, told.cached) == (1, False)
        assert told.stale_for == pytest.approx(60 * 1.1 + 2 * LEASE)
        assert await cached.get("a") == v(1)
        assert (await cached.delete("a")).version == 2
        assert await cached.get("a") is None
        with pytest.raises(InvalidationFailed, match="'a'"):
            await cached.invalidate("a")


@ONCE
@pytest.mark.invariant(4)
async def test_a_mark_that_failed_slowly_takes_no_time_from_the_source(
    url: str, app: str, database: Home
) -> None:
    """Nobody waits for its lease, so the source has a whole one of its own."""
    clock = ManualClock()
    async with source(database) as rows, cache(url, app, rows, clock=clock) as cached:

        async def away(*_: Any) -> None:
            await clock.advance(LEASE)
            raise NoCache

        cached._entries.mark = away
        assert await cached.put("a", v(1)) == Written(1, cached=False)
        assert await rows.has("a") == await cached.get("a") == v(1)


@ONCE
@pytest.mark.invariant(4)
@pytest.mark.fault("Redis is cut off after the source has committed, and before")
async def test_writes_do_without_redis(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """They succeed and say so; when Redis is back nobody gets the old value from it."""
    book = ledger(bound="the old value for a lease at most where the mark was set")
    await check_writes_do_without_redis(url, app, database, WriteThrough, book)
    for key in "ab":
        book.acked(key)
        book.effect(key)
    book.held("the put succeeds, says cached=False, and the entry is dropped before this process reads again")
    with pytest.raises(AssertionError, match="the writer was told") as broken:
        await check_writes_do_without_redis(url, f"{app}-naive", database, naive.Textbook)
    book.naive(f"UPDATE, then SET: {str(broken.value).splitlines()[0]}")


@ONCE
@pytest.mark.naive(4)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(naive.Textbook, "the writer was told"), (naive.SwallowsItsErrors, "nobody says so")],
)
async def test_a_second_write_that_fails_has_no_right_answer(
    url: str, app: str, database: Home, variant: Make, complaint: str
) -> None:
    """Raising calls a done write failed; swallowing leaves the old value, and tells nobody."""
    with pytest.raises(AssertionError, match=complaint):
        await check_writes_do_without_redis(url, app, database, variant)


@pytest.mark.invariant(4)
async def test_what_is_owed_is_paid_in_parts_and_forgotten_when_it_has_gone(server: Server, app: str) -> None:
    """Six hundred drops are owed: the next exchange pays them all; what expired by itself is not paid."""
    heard, clock, rows = Recorder(), ManualClock(), Rows(db=None)  # type: ignore[arg-type]  # nobody asks it
    async with proxy(server.port) as p, opened(p.url) as client, opened(server.url) as direct:
        cached = WriteThrough(
            "things", client, policy(timeout=30), source=rows, app=app, clock=clock, on_event=heard
        )
        keys = [str(number) for number in range(600)]
        p.down()
        with pytest.raises(InvalidationFailed):
            await cached.invalidate(*keys, *keys)
        p.up()
        for key in ("0", "599"):
            await direct.hset(names(app, key)[0], mapping={"entry": b"1 0 +\n1", "version": 1})
        await clock.advance(2)
        assert await cached.peek("0") is MISS
        assert not await direct.exists(names(app, "0")[0], names(app, "599")[0])
        assert heard.names().count("Invalidated") == heard.names().count("InvalidationOwed") == 600
        assert not cached._entries._owed
        p.down()
        with pytest.raises(InvalidationFailed):
            await cached.invalidate("0")
        p.up()
        await clock.advance(100)
        assert await cached.peek("1") is MISS
        assert not cached._entries._owed
        assert heard.names().count("Invalidated") == 600


@pytest.mark.invariant(4)
async def test_of_two_debts_of_a_key_the_longer_one_stays(
    server: Server, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails again shortens nothing; and one while a drop is out costs another drop."""
    clock, drops = ManualClock(), []
    async with (
        proxy(server.port) as p,
        opened(server.url) as direct,
        cache(p.url, app, None, clock=clock, timeout=30) as cached,
    ):
        entries = cached._entries
        p.down()
        for bound in (100, 1):
            with pytest.raises(NoCache):
                await entries.drop(["a"], bound=bound)
        p.up()
        await direct.hset(names(app, "a")[0], mapping={"entry": b"1 0 +\n1", "version": 1})
        await clock.advance(50)
        paid = vars(write_through_entries)["DROP"]

        async def drop(client: Any, **given: Any) -> Any:
            drops.append(await paid(client, **given))
            if len(drops) == 1:
                entries._owe(["a"], 100, OSError())

        monkeypatch.setattr(write_through_entries, "DROP", drop)
        assert await cached.peek("a") is MISS, "the longer debt was forgotten"
        assert len(drops) == 2, "the second debt was taken for the first"
        assert not entries._owed


@pytest.mark.invariant(4)
@pytest.mark.fault("Redis is killed (SIGKILL) among writes, and restarted without its data")
async def test_a_redis_that_is_killed_loses_nothing(
    fresh_server: Server, app: str, ledger: Callable[..., Ledger], home: Home
) -> None:
    """Every put succeeds, before, during and after the outage, and the cache agrees with the source again."""
    book, heard = ledger(within=5), Recorder()

    async def writes(cached: Any, killed: Callable[[], None]) -> list[Any]:
        told = []
        for number in range(60):
            if number == 20:
                fresh_server.kill()
                killed()
            if number == 40:
                fresh_server.restart()
            told.append(await outcome_of(cached.put(str(number % 10), v(number))))
        return told

    async with source(home) as rows, cache(fresh_server.url, f"{app}-naive", rows, naive.Textbook) as cached:
        raised = [each for each in await writes(cached, lambda: None) if not isinstance(each, Written)]
        assert len(rows.stored) == 60
        assert raised
        book.naive(f"UPDATE, then SET: {len(raised)} of 60 writes raised, and the source has all of them")
    async with (
        source(home) as rows,
        cache(fresh_server.url, app, rows, timeout=1, back_off=0.1, on_event=heard) as cached,
    ):
        told = await writes(cached, book.injected)
        assert all(isinstance(each, Written) for each in told)
        for key in range(10):
            book.acked(key)

        async def regained() -> bool:
            await cached.get("0")
            return "CacheRegained" in heard.names()

        await eventually(regained, within=5)
        book.recovered()
        for key in range(10):
            assert await rows.has(str(key)) == v(50 + key)
            if await cached.get(str(key)) == v(50 + key):
                book.effect(key)
    book.held("the source has every write; what Redis forgot is loaded")


# 5: delete


@EVERYWHERE
@pytest.mark.invariant(5)
async def test_what_was_deleted_stays_deleted(url: str, app: str, database: Home) -> None:
    """No late put and no load brings it back, also where the tombstone was evicted."""
    await check_a_delete_stays(url, app, database, WriteThrough)


@ONCE
@pytest.mark.naive(5)
@pytest.mark.parametrize("variant", [naive.Textbook, naive.NewestWins])
async def test_a_delete_without_a_tombstone_is_undone(
    url: str, app: str, database: Home, variant: Make
) -> None:
    """DELETE, then DEL: there is no version with which a late put could be compared."""
    with pytest.raises(AssertionError, match="a late put brought back what was deleted"):
        await check_a_delete_stays(url, app, database, variant)


@ONCE
@pytest.mark.invariant(5)
async def test_a_delete_is_kept_for_a_time_of_its_own(url: str, app: str, database: Home) -> None:
    """The tombstone lives for `negative_ttl`; with 0 there is none, and the old value has gone as well."""
    async with (
        source(database, a="old", b="old") as rows,
        opened(url) as client,
        cache(url, app, rows, jitter=0) as keeps,
        cache(url, app, rows, negative_ttl=0) as keeps_none,
    ):
        for key in "ab":
            await keeps.get(key)
        assert await keeps.delete("a") == Written(2, cached=True)
        assert 8_000 < await client.pttl(names(app, "a")[0]) <= 10_000
        assert await keeps_none.delete("b") == Written(2, cached=False)
        assert await keeps.peek("b") is MISS
        assert await keeps_none.get("b") is None
        assert await keeps.peek("b") is MISS
        assert (await keeps.delete("never there")).version == 0
        assert await keeps.peek("never there") is None
        assert (await keeps.put("never there", v(1))).cached


# 6: many


@EVERYWHERE
@pytest.mark.invariant(6)
async def test_each_of_many_has_its_own_outcome(url: str, app: str, database: Home) -> None:
    """Refused, not encodable, no key: each is told for itself, and the others are stored and cached."""
    await check_many_have_an_outcome_each(url, app, database, WriteThrough)


@ONCE
@pytest.mark.naive(6)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (naive.Textbook, "the others are lost: Refused"),
        (naive.CacheFirst, "is cached, and was not stored"),
    ],
)
async def test_many_at_once_are_all_or_some(
    url: str, app: str, database: Home, variant: Make, complaint: str
) -> None:
    """The first error takes the rest along; or all are cached, whatever becomes of them."""
    with pytest.raises(AssertionError, match=complaint):
        await check_many_have_an_outcome_each(url, app, database, variant)


@ONCE
@pytest.mark.invariant(6)
async def test_many_are_put_a_few_at_a_time_and_cancelled_together(
    url: str, app: str, database: Home
) -> None:
    """No more than `max_writes` at once; and when the caller leaves, no put goes on."""
    async with source(database) as rows, cache(url, app, rows, max_writes=3) as cached:
        values = {str(number): v(number) for number in range(30)}
        told = await cached.put_many(values)
        assert all(isinstance(each, Written) for each in told.values())
        assert rows.most == 3
        assert await cached.put_many({}) == {}

        async def hangs(step: str, key: str) -> None:
            await asyncio.get_running_loop().create_future()

        rows.hook = hangs
        call = asyncio.create_task(cached.put_many(values))
        await eventually(lambda: rows.running == 3, within=5)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        assert rows.running == 0
        assert cached._permits._value == 3


# 7: unknown outcomes


@EVERYWHERE
@pytest.mark.invariant(7)
async def test_after_an_unknown_outcome_the_source_is_asked(url: str, app: str, database: Home) -> None:
    """Lost replies, time-outs, cancellations and strange errors: readers get what was written."""
    await check_an_unknown_outcome_is_not_taken_for_a_failure(url, app, database, WriteThrough)


@ONCE
@pytest.mark.naive(7)
@pytest.mark.parametrize("variant", [naive.Textbook, naive.TakesErrorsForRefusals])
async def test_an_error_is_not_a_refusal(url: str, app: str, database: Home, variant: Make) -> None:
    """Who takes an exception for "nothing was written" leaves the old value where it is."""
    with pytest.raises(AssertionError, match="readers get what was before"):
        await check_an_unknown_outcome_is_not_taken_for_a_failure(url, app, database, variant)


@pytest.mark.invariant(7)
@pytest.mark.fault("the reply to the COMMIT of the source is lost (PostgreSQL)")
async def test_a_commit_whose_reply_is_lost_is_read_from_the_source(
    server: Server, app: str, postgres: Postgres, own: Home, ledger: Callable[..., Ledger]
) -> None:
    """The writer is told that nobody knows; readers get what the source has by now."""
    book = ledger(unsure=10, bound="the next read asks the source")
    old = 0
    async with (
        source(own, **{f"k{n}": "old" for n in range(20)}) as rows,
        proxy(postgres.port, book) as p,
        databases.opened(f"{postgres.url_at(p.port)}{own.url.removeprefix(postgres.url)}") as db,
    ):
        lossy = Rows(db)
        lossy.table = InATransaction(db)
        for make, first in ((WriteThrough, 0), (naive.Textbook, 10)):
            p.book = book if make is WriteThrough else None
            async with (
                cache(server.url, f"{app}-{first}", lossy, make) as here,
                cache(server.url, f"{app}-{first}", rows, make) as there,
            ):
                for number in range(first, first + 10):
                    key = f"k{number}"
                    await there.get(key)
                    with p.lose_reply(b"COMMIT"):
                        told = await outcome_of(here.put(key, v("new")))
                    assert told == "OutcomeUnknown"
                    assert await rows.has(key) == v("new")
                    got = await there.get(key)
                    if make is naive.Textbook:
                        old += got == v("old")
                        continue
                    book.unsure(key)
                    assert got == v("new")
                    book.effect(key)
    assert old == 10
    book.naive(f"UPDATE, then SET: {old} of 10 values are read as they were before, until their ttl ends")
    book.held("the entry is dropped, and the mark stays: nothing is kept until the lease has passed")


# 8: reads


@EVERYWHERE
@pytest.mark.invariant(8)
async def test_reads_load_once_and_never_what_is_older(url: str, app: str, database: Home) -> None:
    """One load for a hundred callers, none for those who came later, few at once; nonsense is a miss."""
    await check_reads(url, app, database, WriteThrough)


@ONCE
@pytest.mark.naive(8)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(naive.Textbook, r"\d+ loads for 100 callers"), (naive.JoinsAnyLoad, "was given the old value")],
)
async def test_reads_without_flights_or_ticks_are_too_many_or_too_old(
    url: str, app: str, database: Home, variant: Make, complaint: str
) -> None:
    """Each caller loads; or a caller gets what a load had read before the write that it knows of."""
    with pytest.raises(AssertionError, match=complaint):
        await check_reads(url, app, database, variant)


@ONCE
@pytest.mark.invariant(8)
async def test_loads_fail_hang_and_are_cancelled_for_those_who_wait(
    url: str, app: str, database: Home
) -> None:
    """They are told, nothing is kept, and the next caller loads."""
    clock, heard = ManualClock(), Recorder()
    async with source(database, a="1") as rows, cache(url, app, rows, clock=clock, on_event=heard) as cached:
        for error, told in (
            (OSError("disk"), "OSError"),
            (asyncio.CancelledError(), "LoadCancelled"),
            (TimeoutError("its own"), "TimeoutError"),
        ):

            async def fails(step: str, key: str, error: BaseException = error) -> None:
                raise error.with_traceback(None)

            rows.hook = fails
            assert await outcome_of(cached.get("a")) == told

        async def hangs(step: str, key: str) -> None:
            await asyncio.get_running_loop().create_future()

        rows.hook = hangs
        missed = len(heard.of(CacheMissed)) + 3
        calls = [asyncio.create_task(outcome_of(cached.get("a"))) for _ in range(3)]
        await eventually(lambda: rows.running and len(heard.of(CacheMissed)) == missed, within=5)
        calls[0].cancel()
        await clock.advance(LEASE)
        assert await asyncio.gather(*calls[1:]) == ["LoadTimedOut"] * 2
        rows.hook = nothing
        assert await cached.get("a") == v(1)
        failed = [event.error for event in heard.of(LoadFailed)]
        assert failed == ["OSError", "CancelledError", "TimeoutError", "LoadTimedOut"]


@ONCE
@pytest.mark.invariant(8)
async def test_a_load_of_what_cannot_be_cached_says_so(url: str, app: str, database: Home) -> None:
    """NotCacheable, with the value; and a source that answers without a version is told."""
    async with source(database, a="x" * 200) as rows, cache(url, app, rows, max_bytes=100) as cached:
        assert await outcome_of(cached.get("a")) == "NotCacheable"

        async def bare(key: str) -> Any:
            return v(1)

        rows.load = bare  # type: ignore[method-assign]  # a source that does not keep to the protocol
        with pytest.raises(TypeError, match="Versioned or None, got dict"):
            await cached.get("b")

        async def odd(key: str) -> Any:
            return Versioned(v(1), -1)

        rows.load = odd  # type: ignore[method-assign]  # as above
        with pytest.raises(TypeError, match="63 bits, got -1"):
            await cached.get("b")


@ONCE
@pytest.mark.invariant(2, 3)
async def test_a_load_that_a_write_overlapped_is_not_kept(url: str, app: str, database: Home) -> None:
    """Whether the write began before the load or during it; and readers that wait get a current value."""
    async with (
        source(database, a="old") as rows,
        cache(url, app, rows) as here,
        cache(url, app, rows) as there,
        opened(url) as client,
    ):
        await there._entries.mark("a", "under way")
        assert await here.get("a") == v("old")
        assert await here.peek("a") is MISS
        await there._entries.unmark("a", "under way")
        assert await here.get("a") == v("old")
        assert await here.peek("a") == v("old")
        await client.delete(names(app, "a")[0])
        turn = await here._entries.begin("a")
        assert await there._entries.fill("a", turn.generation, 2, b"1 0 +\n2", 60)
        assert not await here._entries.fill("a", turn.generation, 1, b"1 0 +\n1", 60), (
            "an older load was kept"
        )
        await client.delete(names(app, "a")[0])
        turn = await here._entries.begin("a")
        await there._entries.mark("a", "begins")
        assert not await here._entries.fill("a", turn.generation, 1, b"1 0 +\n1", 60)
        await there._entries.unmark("a", "begins")
        turn = await here._entries.begin("a")
        await there.invalidate("a")
        assert not await here._entries.fill("a", turn.generation, 1, b"1 0 +\n1", 60)
        await there._entries.mark("a", "begins")
        await there.invalidate("a")
        assert not await there._entries.keep("a", "begins", 9, b"1 0 +\n1", 60, bound=1)
        assert await here.peek("a") is MISS, "what was marked before a drop was kept"


# 9: bad input


@EVERYWHERE
@pytest.mark.invariant(9)
async def test_what_cannot_be_read_again_is_not_written(url: str, app: str, database: Home) -> None:
    """A typed error before anything is written; and source and cache get the same value."""
    await check_only_what_can_be_read_again_is_written(url, app, database, WriteThrough)


@ONCE
@pytest.mark.naive(9)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(naive.KeepsAnything, "was put"), (naive.StoresTheObject, "have different values")],
)
async def test_lenient_encoding_and_shared_objects_differ_later(
    url: str, app: str, database: Home, variant: Make, complaint: str
) -> None:
    """A set comes back as text; and an object that changes is stored as two values."""
    with pytest.raises(AssertionError, match=complaint):
        await check_only_what_can_be_read_again_is_written(url, app, database, variant)


@ONCE
@pytest.mark.invariant(7)
async def test_a_source_without_versions_is_told_and_nothing_is_kept(
    url: str, app: str, database: Home
) -> None:
    """It wrote, and returned no version: the entry is dropped, whatever `refused` says."""
    async with (
        source(database, a="old") as rows,
        cache(url, app, rows, refused=(Exception,)) as cached,
    ):
        await cached.get("a")
        for given_back in (None, True, "2", 1.5, -1, 2**63):

            async def store(key: str, value: Any, given_back: Any = given_back) -> Any:
                await rows.table.store(key, value)
                return given_back

            rows.store = store  # type: ignore[method-assign]  # a source that does not keep to the protocol
            with pytest.raises(NotVersioned, match="is written, and its version"):
                await cached.put("a", v(given_back))
            assert await cached.get("a") == v(given_back)


# events, errors, keys, policy


@ONCE
async def test_events_tell_the_story_of_each_write(url: str, app: str, database: Home) -> None:
    """Written, refused, and failed with an open outcome are told apart; reads speak as in Cache-Aside."""
    heard = Recorder()
    async with source(database) as rows, cache(url, app, rows, on_event=heard) as cached:
        await cached.put("a", v(1))
        await cached.get("a")
        await cached.delete("a")
        await cached.get("a")

        errors: list[Exception] = [OSError(), Refused()]

        async def fails(step: str, key: str) -> None:
            if step == "store":
                raise errors.pop()

        rows.hook = fails
        for _ in range(2):
            await outcome_of(cached.put("a", v(2)))
        await cached.get("a")
    assert heard.names() == [
        *("WrittenThrough", "CacheHit", "WrittenThrough", "CacheHit"),
        *("WriteFailed", "WriteFailed", "Invalidated", "CacheMissed", "Loaded"),
    ]
    assert [(event.version, event.cached) for event in heard.of(WrittenThrough)] == [(1, True), (2, True)]
    told = [(event.refused, event.error) for event in heard.of(WriteFailed)]
    assert told == [(True, "Refused"), (False, "OSError")]
    assert not heard.of(Loaded)[0].kept


@ONCE
async def test_a_write_that_was_cancelled_after_its_commit_is_told(
    url: str, app: str, database: Home
) -> None:
    """The source has it, though its caller never heard: that is WrittenThrough, and the entry is dropped."""
    heard = Recorder()
    async with source(database) as rows, cache(url, app, rows, on_event=heard) as cached:
        keeps = asyncio.Event()

        async def hangs(*_: Any, **__: Any) -> bool:
            keeps.set()
            return bool(await asyncio.get_running_loop().create_future())

        cached._entries.keep = hangs
        call = asyncio.create_task(cached.put("a", v(1)))
        await keeps.wait()
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        assert rows.stored == ["a"]
    assert [(event.version, event.cached) for event in heard.of(WrittenThrough)] == [(1, False)]
    assert heard.names() == ["WrittenThrough", "Invalidated"]


def test_errors_cross_processes() -> None:
    """Each error survives pickling with what the caller needs."""
    for error in (
        NotStorable("a", "too large"),
        StoreTimedOut("a", 1.5),
        StoreCancelled("a"),
        NotVersioned("a", "two"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), vars(again)) == (str(error), vars(error))
    assert (
        str(StoreTimedOut("a", 1.5)) == "the write of 'a' outlasted its lease of 1.5 s: its outcome is open"
    )


async def test_all_keys_of_a_key_are_in_one_slot_and_of_several_in_several() -> None:
    """Whatever text a key holds; and two caches never share one."""
    async with (
        cache("redis://127.0.0.1:1", "x", None) as things,
        cache("redis://127.0.0.1:1", "x", None, name="things-x") as others,
    ):
        texts = ["42", "a/b", "{x}", "a:b", "%7B", "é", "x" * 500]
        keys = {text: things._entries.keys(text) for text in texts}
        assert all(len({key_slot(key.encode()) for key in each}) == 1 for each in keys.values())
        assert len({key_slot(each[0].encode()) for each in keys.values()}) == len(texts)
        assert things._entries.keys("x/1") != others._entries.keys("1")
    async with opened("redis://127.0.0.1:1") as client:
        unasked: Any = None
        for name in ("", "a b", "a/b", "{a}"):
            with pytest.raises(ValueError, match="name must be letters"):
                WriteThrough(name, client, policy(), source=unasked, app="x")


SECONDS = "finite number >= 0.001 and <= 1000000000"
BAD = [
    *[("ttl", value, SECONDS) for value in (0, -1, math.nan, math.inf, "60", True)],
    *[(name, 0, SECONDS) for name in ("lease", "timeout", "back_off")],
    ("negative_ttl", -1, "finite number >= 0 and <= 1000000000"),
    *[("jitter", value, "finite number >= 0 and < 1") for value in (-0.1, 1)],
    *[(name, value, "whole number >= 1") for name in ("max_writes", "max_loads") for value in (0, 1.5, True)],
    ("max_bytes", 0, "whole number >= 1"),
    ("refused", OSError, "tuple of Exception classes"),
    ("refused", (BaseException,), "tuple of Exception classes"),
]


@pytest.mark.parametrize(("field", "value", "bound"), BAD)
def test_a_bad_policy_names_field_value_and_bound(field: str, value: object, bound: str) -> None:
    """No cache is built from values that could never work."""
    with pytest.raises(ValueError, match=bound) as refused:
        policy(**{field: value})
    assert field in str(refused.value)
    assert repr(value) in str(refused.value)


@pytest.mark.parametrize(
    ("table", "key", "columns"),
    [("a b", "id", ["v"]), ("t", "id;", ["v"]), ("t", "id", ["v--"]), ("t", "id", [])]
    + [("t", "id", columns) for columns in (["id"], ["version"], ["Deleted"], ["v", "V"])],
)
def test_a_table_takes_plain_names_only(table: str, key: str, columns: list[str]) -> None:
    """They become part of statements."""
    with pytest.raises(ValueError, match=r"plain names|at least one|must be different"):
        VersionedTable(None, table, key=key, columns=columns)  # type: ignore[arg-type]  # nobody asks it


async def test_a_table_gives_versions_that_never_go_back(database: Home) -> None:
    """Over a deletion, too; what was never there has none; other columns are refused."""
    async with source(database) as rows:
        table = rows.table
        assert await table.load("a") is None
        assert await table.delete("a") == 0
        assert await table.load("a") is None
        assert [await table.store("a", v(n)) for n in range(2)] == [1, 2]
        assert await table.delete("a") == 3
        assert await table.load("a") == Versioned(None, 3)
        assert await table.store("a", v("again")) == 4
        assert await table.load("a") == Versioned(v("again"), 4)
        assert await asyncio.gather(*[table.store("b", v(n)) for n in range(9)]) != []
        assert await rows.version("b") == 9
        for bad in ({}, {"v": "1", "w": "2"}, "text"):
            with pytest.raises(ValueError, match="a value must be a dictionary of v"):
                await table.store("a", bad)


# everything at once


FAULTS = 500


@pytest.mark.invariant(2, 3, 4, 7)
@pytest.mark.fault("500 faults of all kinds, in Redis, on the way to it, in the source and of the callers")
async def test_mixed_faults_leave_no_difference(
    server: Server, app: str, ledger: Callable[..., Ledger], rng: random.Random, home: Home
) -> None:
    """Lost replies, resets, refusals, unknown outcomes, cancellations, evictions: no key differs."""
    looks = f"of {KEYS} keys, looked at {PAUSES} times when all was quiet"
    book = ledger(bound=f"no difference {looks}")
    for make in (WriteThrough, naive.Textbook):
        mine = book if make is WriteThrough else Ledger("x/y", "not a row of the table")
        async with source(home) as rows, proxy(server.port, may_idle=True) as p:
            differed = await mixed_faults(
                rows, p, f"{app}-{make.__name__}", server.url, make, mine, rng, enough=FAULTS
            )
        assert mine.faults >= FAULTS
        assert len(differed) == PAUSES
        if make is WriteThrough:
            assert sum(differed) == 0, f"keys that differed: {differed}"
        else:
            assert sum(differed)
            book.naive(f"UPDATE, then SET: {sum(differed)} differences {looks} ({mine.faults} injected)")
    book.held("no difference: what cannot be compared is not kept, and what is owed is dropped")
