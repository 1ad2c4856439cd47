"""The proof of patterns/cache/cache_aside: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import json
import math
import os
import pickle
import random
import sys
import time
import uuid
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from redis.crc import key_slot
from redis.exceptions import RedisError

from patterns import embedded
from patterns.cache.cache_aside import (
    MISS,
    CacheAside,
    CacheHit,
    CacheLost,
    CacheMissed,
    CacheRegained,
    EntryDiscarded,
    Invalidated,
    InvalidationFailed,
    InvalidationOwed,
    LoadCancelled,
    Loaded,
    LoadFailed,
    LoadTimedOut,
    NotCacheable,
    Policy,
    StaleServed,
)
from patterns.clock import ManualClock
from patterns.entry import Json
from patterns.events import Recorder, emit
from patterns.flight import Flights
from patterns.keyspace import connect, opened
from tests.cache.cache_aside_readers import CALLERS, Textbook
from tests.eventually import eventually
from tests.faults import Ledger, leaks, proxy
from tests.faults.workers import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from patterns.cache.cache_aside.store import Turn
    from patterns.embedded import Server
    from patterns.keyspace import Client

Make = Any  # CacheAside or a naive variant with the same constructor


@pytest.fixture(params=["one server", "3+3 cluster"])
def url(request: pytest.FixtureRequest) -> str:
    """Where the cache is: everything is proved on both; that a naive variant fails, on one server."""
    running = request.getfixturevalue("server" if request.param == "one server" else "cluster")
    return str(running.url)


def policy(**changes: Any) -> Policy:
    """Return a policy whose time-outs a busy machine does not reach."""
    defaults: dict[str, Any] = {"ttl": 60, "negative_ttl": 10, "max_loads": 200, "lease": 10, "timeout": 5}
    return Policy(**(defaults | changes))


class Source:
    """The database: rows, how often they were read, and a gate at which reads can be held."""

    def __init__(self, **rows: Any) -> None:
        self.rows: dict[str, Any] = rows
        self.loads = self.running = self.most = self.writes = 0
        self.turns = 0  # of the loop that a read takes
        self.open = asyncio.Event()
        self.open.set()

    async def load(self, entity: str) -> Any:
        """Read a row, then come back through the gate."""
        self.loads += 1
        self.running += 1
        self.most = max(self.most, self.running)
        value = self.rows.get(entity)
        try:
            for _ in range(self.turns):
                await asyncio.sleep(0)
            await self.open.wait()
        finally:
            self.running -= 1
        if isinstance(value, BaseException):
            raise value.with_traceback(None)
        return value

    def runs(self, loads: int) -> bool:
        """Say whether so many loads run now."""
        return self.running == loads

    async def store(self, entity: str, value: Any) -> int:
        """Write a row; return how many writes there were."""
        self.writes += 1
        self.rows[entity] = value
        return self.writes


@asynccontextmanager
async def cache(
    url: str, app: str, make: Make = CacheAside, *, name: str = "users", **options: Any
) -> AsyncIterator[Any]:
    """Lend a cache with a client of its own, as one more process would have it."""
    given = {key: options.pop(key) for key in ("codec", "clock", "rng", "on_event") if key in options}
    opening: Any = {"max_connections": 16} | options.pop("opening", {})
    async with opened(url, **opening) as client:
        yield make(name, client, policy(**options), app=app, **given)


def value_key(app: str, entity: str = "42", role: str = "value") -> str:
    """Return a key of `entity` in the cache `users`."""
    return f"{app}:{{cache_aside:users/{entity}}}:{role}"


async def outcome_of(call: Awaitable[Any]) -> Any:
    """Return what `call` returned, or the name of what it raised."""
    try:
        return await call
    except Exception as error:
        return type(error).__name__


# 1: an invalidation beats a load


async def check_no_older_value_after_a_write(url: str, app: str, make: Make) -> None:
    """A load began before a write in another process, and ends after it."""
    heard, source = Recorder(), Source(a="old", b="old")
    async with cache(url, app, make, on_event=heard) as here, cache(url, app, make) as there:
        source.open.clear()
        early = asyncio.create_task(here.get("a", source.load, "a"))
        await eventually(lambda: source.running == 1, within=5)
        await there.write("a", source.store, "a", "new")
        source.open.set()
        await early
        for each in (here, there):
            assert await each.get("a", source.load, "a") == "new", "the old value came back into the cache"

        # The same, and while the load still runs another caller comes.
        source.open.clear()
        early = asyncio.create_task(here.get("b", source.load, "b"))
        await eventually(lambda: source.running == 1, within=5)
        await there.write("b", source.store, "b", "new")
        heard.events.clear()
        late = asyncio.create_task(here.get("b", source.load, "b"))
        await eventually(lambda: heard.of(CacheMissed), within=5)
        source.open.set()
        assert await early in {"old", "new"}
        assert await late == "new", "a caller that came after the write was given the old value"


class KeepsWhateverItLoaded(CacheAside):
    """The lease is checked, the generation is not."""

    async def _keep(self, entity: str, token: str, turn: Turn, entry: bytes, *, negative: bool) -> bool:
        again = await self._store.begin(entity, token, alone=True)
        return await super()._keep(entity, token, again, entry, negative=negative)


class JoinsAnyLoad(CacheAside):
    """Single flight that hands its result to everybody who waits, however long ago it began."""

    async def _fetch(self, *args: Any, **options: Any) -> Any:
        return replace(await super()._fetch(*args, **options), current_at=sys.maxsize)


@pytest.mark.invariant(1)
async def test_no_read_after_a_write_returns_what_was_loaded_before(url: str, app: str) -> None:
    """Neither the cache nor a load that was joined gives the old value to who came after the write."""
    await check_no_older_value_after_a_write(url, app, CacheAside)


@pytest.mark.naive(1)
@pytest.mark.parametrize("variant", [Textbook, KeepsWhateverItLoaded, JoinsAnyLoad])
async def test_loads_that_were_overtaken_bring_the_old_value_back(
    server: Server, app: str, variant: Make
) -> None:
    """Into the cache where no generation is checked, to late callers where they join any load."""
    with pytest.raises(AssertionError, match="the old value"):
        await check_no_older_value_after_a_write(server.url, app, variant)


@pytest.mark.invariant(1)
@pytest.mark.fault("a write while a load of the same value is under way")
async def test_writes_that_race_with_loads_leave_nothing_old(
    server: Server, app: str, ledger: Callable[..., Ledger], rng: random.Random
) -> None:
    """Of 300 races between a load and a write, none leaves the old value in the cache."""
    book = ledger(bound="300 races")
    books = {CacheAside: book, Textbook: book.without("get, load, set; write, delete")}

    async def race(cached: Any, entity: str, book: Ledger) -> None:
        source = Source(**{entity: "old"})

        async def load() -> Any:
            value = await source.load(entity)
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            return value

        async def write() -> None:
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            await cached.write(entity, source.store, entity, "new")
            book.injected()

        await asyncio.gather(cached.get(entity, load), write())
        book.acked(entity)
        if await cached.get(entity, source.load, entity) == "new":
            book.effect(entity)

    for make, each in books.items():
        async with cache(server.url, app, make, name=make.__name__) as cached:
            for number in range(0, 300, 30):
                await asyncio.gather(*[race(cached, str(at), each) for at in range(number, number + 30)])
    book.held("a load that was overtaken is not kept: the generation has changed")


# 2: single flight


async def check_one_load(url: str, app: str, make: Make) -> None:
    """Two hundred callers of one process miss one value at the same time."""
    heard, source = Recorder(), Source(a=1)
    async with cache(url, app, make, on_event=heard) as cached:
        source.open.clear()
        calls = [asyncio.create_task(cached.get("a", source.load, "a")) for _ in range(200)]
        await eventually(lambda: 200 in (source.running, len(heard.of(CacheMissed))), within=20)
        source.open.set()
        assert await asyncio.gather(*calls) == [1] * 200
        assert source.loads == 1, f"{source.loads} loads for 200 callers"


@pytest.mark.invariant(2)
async def test_two_hundred_callers_share_one_load(url: str, app: str) -> None:
    """However many tasks miss one value, it is loaded once."""
    await check_one_load(url, app, CacheAside)


@pytest.mark.naive(2)
async def test_get_then_load_is_a_thundering_herd(server: Server, app: str) -> None:
    """Without single flight each of 200 callers loads."""
    with pytest.raises(AssertionError, match="200 loads for 200 callers"):
        await check_one_load(server.url, app, Textbook)


PROCESSES = 4


class Readers:
    """Processes of 50 callers each, which carry out one order after the other.

    Args:
        server: where the orders are.
        stack: ends the processes.
    """

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.server, self.orders = server, f"orders-{uuid.uuid4().hex}"
        program = "tests.cache.cache_aside_readers"
        self.workers = [
            stack.enter_context(Worker(program, server.url, self.orders)) for _ in range(PROCESSES)
        ]

    async def herd(
        self, url: str, app: str, kind: str, *, lease: float = 20, kill: bool = False
    ) -> tuple[int, int, list[tuple[int, float]]]:
        """Let them all miss one value; return loads before and after, and what each process got.

        With `kill`, the process that loads is killed while it does.
        """
        order = {"app": app, "kind": kind, "url": url, "lease": f"{lease:g}"}
        self.server.command("XADD", self.orders, "*", *chain.from_iterable(order.items()))
        async with opened(url) as client:
            for worker in self.workers:
                await worker.said(f"{app} ready", within=30)
            await client.xadd(f"{app}:go", {"now": 1})
            for worker in self.workers:
                await worker.said(f"{app} all wait", within=30)

            async def loading(more_than: int = 0) -> list[bytes]:
                found: Any = await client.lrange(f"{app}:loads", 0, -1)
                return list(found) if len(found) > more_than else []

            (pid, *_) = await eventually(loading, within=10)
            if kill:
                (holder,) = [worker for worker in self.workers if worker.pid == int(pid)]
                holder.kill()
                self.workers.remove(holder)
                await eventually(lambda: loading(more_than=1), within=lease + 5)
            elif kind != "cache_aside":
                enough = PROCESSES if kind == "local" else PROCESSES * CALLERS
                await eventually(lambda: loading(more_than=enough - 1), within=20)
            before = len(await loading())
            await client.xadd(f"{app}:gate", {"open": 1})
            got = []
            for worker in self.workers:
                *_, right, seconds = (await worker.said(f"{app} right", within=30)).split()
                got.append((int(right), float(seconds)))
            return before, len(await loading()), got


@pytest.fixture(scope="module")
def readers(server: Server) -> Iterator[Readers]:
    """Processes for the tests that kill none of them."""
    with ExitStack() as stack:
        yield Readers(server, stack)


async def check_one_load_for_all_processes(
    readers: Readers, url: str, app: str, kind: str, book: Ledger
) -> None:
    """Four processes of fifty callers each miss one value at the same time."""
    _, loads, got = await readers.herd(url, app, kind)
    book.injected(PROCESSES * CALLERS)
    book.acked("load")
    book.effect("load", loads)
    assert [right for right, _ in got] == [CALLERS] * PROCESSES
    assert loads == 1, f"{loads} loads for {PROCESSES} processes"


@pytest.mark.invariant(2)
@pytest.mark.fault("200 callers in 4 processes miss the same value at once")
async def test_processes_share_one_load(
    readers: Readers, server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """The source is asked once; without the pattern, once for each caller."""
    book = ledger(bound="one load")
    await check_one_load_for_all_processes(readers, server.url, app, "cache_aside", book)
    naive = Ledger("x/y", "not a row of the table")
    with pytest.raises(AssertionError, match=f"{PROCESSES * CALLERS} loads"):
        await check_one_load_for_all_processes(readers, server.url, app + "-naive", "textbook", naive)
    book.naive(f"get, load, set: {naive.duplicated + 1} loads")
    book.held("one process has the lease, one task in it loads, the others wait")


@pytest.mark.naive(2)
async def test_a_lock_in_the_process_is_not_enough(readers: Readers, server: Server, app: str) -> None:
    """Single flight in each process alone loads once per process."""
    books = Ledger("x/y", "not a row of the table")
    with pytest.raises(AssertionError, match=f"{PROCESSES} loads for {PROCESSES} processes"):
        await check_one_load_for_all_processes(readers, server.url, app, "local", books)


@pytest.mark.invariant(2)
async def test_processes_share_one_load_on_a_cluster(readers: Readers, cluster: Any, app: str) -> None:
    """The lease works the same where the keys are spread over nodes."""
    # The source's own keys lie in other slots, so the readers use single-key commands on them.
    books = Ledger("x/y", "not a row of the table")
    await check_one_load_for_all_processes(readers, cluster.url, app, "cache_aside", books)


@pytest.mark.invariant(2, 3)
@pytest.mark.fault("the process that loads is killed (SIGKILL)")
async def test_a_killed_loader_holds_the_others_up_for_its_lease_only(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Of 4 processes 3 are killed, one by one: the others load once each at most, and get the value."""
    lease = 1.5
    book = ledger(bound=f"nobody waits longer than the lease of {lease:g} s for another's load")
    with ExitStack() as stack:
        readers = Readers(server, stack)
        for number in range(3):
            before, loads, got = await readers.herd(
                server.url, f"{app}-{number}", "cache_aside", lease=lease, kill=True
            )
            book.injected()
            for process, (right, seconds) in enumerate(got):
                book.acked((number, process))
                if right == CALLERS:
                    book.effect((number, process))
                assert seconds < 2 * lease, f"a caller waited {seconds} s"
            assert 2 <= before <= loads <= 1 + len(got)
    book.held("the lease ends by itself; each process that is left loads once at most")


@pytest.mark.invariant(3, 7)
async def test_a_load_that_outlived_its_lease_is_not_kept(server: Server, app: str) -> None:
    """Not even if no write was told: so what a lost invalidation leaves is gone within the bound."""
    async with (
        cache(server.url, app) as paused,
        cache(server.url, app) as other,
        opened(server.url) as client,
    ):
        turn = await paused._store.begin("a", "paused for an hour")
        for number in range(3):
            await client.pexpireat(value_key(app, "a", "lock"), 1)
            await other.get("a", Source(a=number).load, "a")
            await client.pexpireat(value_key(app, "a"), 1)
        kept = await paused._store.fill("a", "paused for an hour", turn.generation, b'1 0 +\n"old"', 60)
        assert not kept, "a load of an hour ago was kept"
        assert await other.peek("a") is MISS


async def test_who_loads_alone_takes_a_free_lease(server: Server, app: str) -> None:
    """Only another's lease is passed over; one that is free is taken, so that the others wait."""
    async with cache(server.url, app) as cached, opened(server.url) as client:
        turn = await cached._store.begin("a", "mine", alone=True)
        assert await client.get(value_key(app, "a", "lock")) == b"mine"
        beside = await cached._store.begin("a", "another's", alone=True)
        assert await client.get(value_key(app, "a", "lock")) == b"mine"
        assert beside.generation == turn.generation, "one of the two would not be kept"


# 3: failures and cancellation


async def check_failures_hold_nobody_up(url: str, app: str, make: Make) -> None:
    """Loads are cancelled, fail, hang and cancel themselves; the next caller is served at once."""
    heard, source = Recorder(), Source(a=1, b=OSError("disk"), c=3, d=asyncio.CancelledError())
    async with (
        cache(url, app, make, on_event=heard) as here,
        cache(url, app, make) as there,
        cache(url, app, make, lease=0.2) as hasty,
    ):
        source.open.clear()
        callers = [asyncio.create_task(here.get("a", source.load, "a")) for _ in range(10)]
        await eventually(lambda: source.running and len(heard.of(CacheMissed)) == 10, within=5)
        callers[0].cancel()
        await asyncio.wait(callers[:1])
        source.open.set()
        got = await asyncio.gather(*callers[1:], return_exceptions=True)
        assert got == [1] * 9, f"one caller was cancelled, and the others got {set(map(repr, got))}"

        errors = await asyncio.gather(*[outcome_of(here.get("b", source.load, "b")) for _ in range(5)])
        assert errors == ["OSError"] * 5
        source.rows["b"] = 2
        assert await outcome_of(here.get("b", source.load, "b")) == 2, "an exception was cached"

        source.open.clear()
        assert await outcome_of(hasty.get("c", source.load, "c")) == "LoadTimedOut", "a load that hangs"
        source.open.set()
        alone = asyncio.create_task(here.get("c", source.load, "c"))
        source.open.clear()
        await eventually(lambda: source.running == 1, within=5)
        alone.cancel()
        await asyncio.wait([alone])
        assert source.running == 0, "the last caller has left, and its load still runs"
        source.open.set()
        began = time.monotonic()
        assert await there.get("c", source.load, "c") == 3
        assert time.monotonic() - began < 5, "nobody gave the lease back"

        assert await outcome_of(here.get("d", source.load, "d")) == "LoadCancelled"
        async with opened(url) as client:
            assert await client.exists(value_key(app, "d", "lock")) == 0
            assert await client.exists(value_key(app, "d")) == 0


class TheFirstCallerLoads(Flights[Any]):
    """The first caller loads, the others wait for what it will have: a future in a dictionary."""

    async def share(self, key: str, begin: Any) -> Any:
        flight: Any = self._under_way.get(key)
        if flight is not None:
            return await flight
        under_way: dict[str, Any] = self._under_way
        flight = under_way[key] = asyncio.get_running_loop().create_future()
        flight.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            flight.set_result(await begin())
        except BaseException as error:
            flight.cancel() if isinstance(error, asyncio.CancelledError) else flight.set_exception(error)
            raise
        finally:
            del self._under_way[key]
        return flight.result()


class FirstCallerLoads(CacheAside):
    """See TheFirstCallerLoads."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._flights = TheFirstCallerLoads()


class KeepsTheError(CacheAside):
    """An exception is an answer like any other."""

    async def get(self, entity: str, load: Any, /, *args: Any, **kwargs: Any) -> Any:
        errors: dict[str, Exception] = self.__dict__.setdefault("errors", {})
        if entity in errors:
            raise errors[entity]
        try:
            return await super().get(entity, load, *args, **kwargs)
        except Exception as error:
            errors[entity] = error
            raise


@pytest.mark.invariant(3)
async def test_a_load_that_fails_holds_nobody_up(url: str, app: str) -> None:
    """Cancelled, failed, hanging and self-cancelled loads free lease and callers, and leave no trace."""
    await check_failures_hold_nobody_up(url, app, CacheAside)


@pytest.mark.naive(3)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(FirstCallerLoads, "the others got"), (KeepsTheError, "an exception was cached")],
)
async def test_loads_owned_by_a_caller_die_with_it(
    server: Server, app: str, variant: Make, complaint: str
) -> None:
    """All who wait are cancelled with the first caller; and a kept error outlives its cause."""
    with pytest.raises(AssertionError, match=complaint):
        await check_failures_hold_nobody_up(server.url, app, variant)


@pytest.mark.fault("the caller that began the load is cancelled")
async def test_callers_that_are_cancelled_take_the_load_from_nobody(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """In 20 herds of 10 the first caller is cancelled, and the 9 others get the value."""
    book = ledger(bound="180 callers left")
    for make, each in {CacheAside: book, FirstCallerLoads: book.without("a future in a dictionary")}.items():
        async with cache(server.url, app, make, name=make.__name__) as cached:
            for herd_number in range(20):
                entity = str(herd_number)
                source = Source(**{entity: 1})
                source.open.clear()
                calls = [asyncio.create_task(cached.get(entity, source.load, entity)) for _ in range(10)]
                await eventually(partial(source.runs, 1), within=5)
                calls[0].cancel()
                each.injected()
                await asyncio.sleep(0)
                source.open.set()
                got = await asyncio.gather(*calls, return_exceptions=True)
                for number, value in enumerate(got[1:]):
                    each.acked((entity, number))
                    if value == 1:
                        each.effect((entity, number))
    book.held("the load belongs to no caller")


@pytest.mark.invariant(3)
@pytest.mark.fault("a caller is cancelled at every step of a call")
async def test_cancellation_at_every_step_leaks_nothing(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """After each of 60 cancellations no connection is lent out, no lease is held, and the next call works."""
    book = ledger(bound="no lease or connection left")
    async with cache(server.url, app) as here, cache(server.url, app) as there:
        for steps in range(60):
            entity, source = str(steps), Source(**{str(steps): 1})
            call = asyncio.create_task(here.get(entity, source.load, entity))
            for _ in range(steps):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            book.injected()
            assert leaks.in_use(here._store._client) == 0
            assert await there._store._client.exists(value_key(app, entity, "lock")) == 0
            book.acked(entity)
            if await there.get(entity, source.load, entity) == 1:
                book.effect(entity)
    book.held("the lease is given back, also where its reply was not awaited")


async def test_a_load_that_is_thrown_away_unfinished_says_nothing(server: Server, app: str) -> None:
    """A loop that was closed throws its coroutines away; what awaits then is an error nobody can catch."""
    source = Source(a=1)
    source.open.clear()
    async with cache(server.url, app) as cached:
        turn = await cached._store.begin("a", "token")
        load = cached._load("a", partial(source.load, "a"), "token", turn, math.inf)
        load.send(None)
        load.close()
        assert source.running == 0


# 4: negatives


async def check_none_is_cached(url: str, app: str, make: Make) -> None:
    """None, and what is false but not None, are asked for again and again."""
    source = Source(zero=0, empty="", nothing=[], no=False)
    async with cache(url, app, make, jitter=0) as cached, opened(url) as client:
        began = time.monotonic()
        for entity in ("absent", *source.rows):
            for _ in range(3):
                assert await cached.get(entity, source.load, entity) == source.rows.get(entity)
        assert source.loads == 5, f"5 values took {source.loads} loads"
        assert await cached.peek("absent") is None
        assert await cached.peek("never asked for") is MISS
        for entity, lives in {"absent": 10_000, "zero": 60_000}.items():
            left = await client.pttl(value_key(app, entity))
            assert lives - (time.monotonic() - began) * 1000 - 2 <= left <= lives
        await cached.write("absent", source.store, "absent", 1)
        assert await cached.get("absent", source.load, "absent") == 1


@pytest.mark.invariant(4)
async def test_none_is_cached_for_a_time_of_its_own(url: str, app: str) -> None:
    """A row that is not there is looked for once; 0, "", [] and False are ordinary values."""
    await check_none_is_cached(url, app, CacheAside)


@pytest.mark.naive(4)
async def test_if_value_is_not_none_never_caches_absence(server: Server, app: str) -> None:
    """Each question for what is not there goes through to the source."""
    with pytest.raises(AssertionError, match="5 values took 7 loads"):
        await check_none_is_cached(server.url, app, Textbook)


@pytest.mark.invariant(4)
async def test_a_negative_ttl_of_zero_keeps_no_none(url: str, app: str) -> None:
    """Each read that comes alone loads, and the lease is given back."""
    source = Source()
    async with cache(url, app, negative_ttl=0) as here, cache(url, app) as there:
        for cached in (here, there, here):
            assert await cached.get("a", source.load, "a") is None
    assert source.loads == 2, "the second cache keeps negatives, for the third read too"


@pytest.mark.invariant(4, 8)
async def test_none_takes_the_place_of_a_stale_value_also_where_it_is_not_kept(url: str, app: str) -> None:
    """The source said that it is gone: what it was before does not stand in for the next error."""
    options: dict[str, Any] = {"ttl": 10, "stale_if_error": 60, "stale_on": (OSError,), "negative_ttl": 0}
    source = Source(a=1)
    async with cache(url, app, **options) as cached, opened(url) as client:
        await cached.get("a", source.load, "a")
        await client.pexpire(value_key(app, "a"), 30_000)
        del source.rows["a"]
        assert await cached.get("a", source.load, "a") is None
        source.rows["a"] = OSError()
        assert await outcome_of(cached.get("a", source.load, "a")) == "OSError"


# 5: expiry


async def check_everything_expires(url: str, app: str, make: Make) -> None:
    """Two hundred values are filled at the same time, and some are invalidated, and some fail."""
    source = Source(**{str(number): number for number in range(200)}, bad=ValueError())
    async with cache(url, app, make, ttl=100, jitter=0.2, rng=random.Random(5)) as cached:
        await asyncio.gather(*[cached.get(entity, source.load, entity) for entity in list(source.rows)[:200]])
        async with opened(url) as client:
            keys = [key async for key in client.scan_iter(f"{app}*", count=1000)]
            lives = [await client.pttl(key) / 1000 for key in keys if b"generation" not in key]
            assert all(75 < seconds <= 120 for seconds in lives), "a value lives too long or too short"
            assert max(lives) - min(lives) > 30, "they all expire together"
            await cached.invalidate("1", "2")
            await outcome_of(cached.get("bad", source.load, "bad"))
            assert await leaks.immortal_keys(client, app) == []


class WithoutTtl(Textbook):
    """SET without PX: invalidation will do."""

    async def get(self, entity: str, load: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        value = await super().get(entity, load, *args)
        await self.client.persist(self.prefix + entity)
        return value


@pytest.mark.invariant(5)
async def test_every_key_expires_within_the_jitter(url: str, app: str) -> None:
    """Values filled together live for 80 to 120 of 100 s; no key of the pattern lives for ever."""
    await check_everything_expires(url, app, CacheAside)


@pytest.mark.naive(5)
@pytest.mark.parametrize(
    ("variant", "complaint"), [(Textbook, "expire together"), (WithoutTtl, "too long or too short")]
)
async def test_one_ttl_for_all_makes_them_expire_together(
    server: Server, app: str, variant: Make, complaint: str
) -> None:
    """Without jitter the source meets all misses in one moment; without a TTL a mistake stays for ever."""
    with pytest.raises(AssertionError, match=complaint):
        await check_everything_expires(server.url, app, variant)


@pytest.mark.invariant(5)
async def test_an_expired_value_is_loaded_again(url: str, app: str) -> None:
    """Once its time has come a value is gone, and the next read brings the present one."""
    source = Source(a=1)
    async with cache(url, app) as cached, opened(url) as client:
        assert await cached.get("a", source.load, "a") == 1
        source.rows["a"] = 2
        assert await cached.get("a", source.load, "a") == 1
        await client.pexpireat(value_key(app, "a"), 1)
        assert await cached.get("a", source.load, "a") == 2


# 6: Redis down, slow, or full of nonsense


async def check_without_redis_the_source_answers(url: str, app: str, make: Make, book: Ledger | None) -> None:
    """All answers of Redis are swallowed: 40 callers want 20 things, then 10 want others."""
    heard = Recorder()
    source = Source(**{str(number): number for number in range(30)})
    source.turns = 200  # long enough that loads which may overlap do, on a busy machine too
    port = int(url.rpartition(":")[2].partition("/")[0])
    options: dict[str, Any] = {"timeout": 0.3, "back_off": 30, "max_loads": 4, "on_event": heard}
    options["opening"] = {"max_connections": 40, "socket_timeout": 1}  # the textbook has no other time-out
    async with proxy(port, book) as p, cache(p.url, app, make, **options) as cached:
        p.hole("down")
        began = time.monotonic()
        wanted = [str(number % 20) for number in range(40)]
        got = await asyncio.gather(
            *[outcome_of(cached.get(entity, source.load, entity)) for entity in wanted]
        )
        took = time.monotonic() - began
        right = [number % 20 for number in range(40)]
        assert got == right, f"callers got {', '.join(sorted({str(each) for each in got}))}"
        assert took < 2.5, f"one time-out of 0.3 s, and the callers waited {took:.1f} s"
        assert source.most <= 4, f"{source.most} loads at once"
        began = time.monotonic()
        for number in range(20, 30):
            assert await cached.get(str(number), source.load, str(number)) == number
            assert time.monotonic() - began < 0.3 * 5, "the time-out was paid on every call"
        assert heard.names().count("CacheLost") == 1
        assert not any(event.kept for event in heard.of(Loaded))


class WithoutBulkhead(CacheAside):
    """Whoever misses may load."""

    def __init__(self, name: str, client: Client, policy: Policy, **options: Any) -> None:
        super().__init__(name, client, replace(policy, max_loads=1000), **options)


class AsksEachTime(CacheAside):
    """No back-off: perhaps Redis is back."""

    def __init__(self, name: str, client: Client, policy: Policy, **options: Any) -> None:
        super().__init__(name, client, replace(policy, back_off=0.001), **options)


@pytest.mark.invariant(6)
@pytest.mark.fault("Redis answers nothing (black hole)")
async def test_without_answers_from_redis_the_source_answers(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Every caller gets its value after one time-out; the source sees 4 loads at once at most."""
    book = ledger(bound="one time-out for all callers, at most 4 loads at once")
    await check_without_redis_the_source_answers(server.url, app, CacheAside, book)
    for number in range(30):
        book.acked(number)
        book.effect(number)
    book.held("every call is a load, behind a bulkhead; Redis is left alone meanwhile")
    with pytest.raises(AssertionError, match="callers got") as broken:
        await check_without_redis_the_source_answers(server.url, app, Textbook, None)
    book.naive(f"get, load, set: {str(broken.value).splitlines()[0]}")


@pytest.mark.naive(6)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (Textbook, "callers got"),
        (WithoutBulkhead, r"\d+ loads at once"),
        (AsksEachTime, "the time-out was paid on every call"),
    ],
)
async def test_a_cache_that_must_answer_takes_everything_down(
    server: Server, app: str, variant: Make, complaint: str
) -> None:
    """Callers get Redis's error, or the source gets everybody, or each call waits for the time-out."""
    with pytest.raises(AssertionError, match=complaint):
        await check_without_redis_the_source_answers(server.url, app, variant, None)


NONSENSE = [b"", b"{", b"null", b"1 0 +\n{", b"1 0 +\n\xff", b"2 0 +\n1", b"1 x +\n1", b"1 0 ?\n1"]
NONSENSE += [random.Random(seed).randbytes(3 * seed) for seed in range(1, 13)]


async def check_unreadable_is_a_miss(url: str, app: str, make: Make, book: Ledger | None = None) -> None:
    """Twenty kinds of nonsense lie where the value should."""
    heard, source = Recorder(), Source(a=1)
    async with cache(url, app, make, on_event=heard) as cached, opened(url) as client:
        (key,) = cached._store.keys("a")[:1] if isinstance(cached, CacheAside) else [f"{cached.prefix}a"]
        for number, garbage in enumerate(NONSENSE):
            await client.set(key, garbage)
            if book:
                book.injected()
                book.acked(number)
            got = await outcome_of(cached.get("a", source.load, "a"))
            assert got == 1, f"{garbage!r} in the cache, and the caller got {got!r}"
            if book:
                book.effect(number)
            assert await client.get(key) == b"1 0 +\n1"
        assert len(heard.of(EntryDiscarded)) == source.loads == 20
        await client.set(key, b"garbage")
        assert await cached.peek("a") is MISS
        source.rows["a"] = OSError()
        assert await outcome_of(cached.get("a", source.load, "a")) == "OSError"
        assert await client.exists(key) == 0, "nonsense was left in the cache"


@pytest.mark.invariant(6)
@pytest.mark.fault("nonsense where the value should be")
async def test_what_cannot_be_read_is_a_miss_and_goes(
    url: str, app: str, ledger: Callable[..., Ledger]
) -> None:
    """No bytes in the cache make a read fail, and none of them stay there."""
    book = ledger()
    await check_unreadable_is_a_miss(url, app, CacheAside, book)
    wrong = 0
    async with cache(url, app, Textbook) as naive, opened(url) as client:
        for garbage in NONSENSE:
            await client.set(f"{naive.prefix}a", garbage)
            wrong += await outcome_of(naive.get("a", Source(a=1).load, "a")) != 1
    assert wrong
    book.naive(f"get, load, set: {wrong} of {len(NONSENSE)} reads failed, or returned nonsense")
    book.held("it counts as a miss, is deleted, and the value is loaded")


@pytest.mark.naive(6)
async def test_trusting_the_bytes_hands_their_error_to_the_caller(server: Server, app: str) -> None:
    """One half-written value, and every read of it fails until it expires."""
    with pytest.raises(AssertionError, match="the caller got 'JSONDecodeError'"):
        await check_unreadable_is_a_miss(server.url, app, Textbook)


@pytest.mark.invariant(6)
async def test_redis_that_comes_back_is_used_again(fresh_server: Server, app: str) -> None:
    """Killed, it is left alone; restarted, it is found within the back-off, and told once each way."""
    heard, source = Recorder(), Source(a=1)
    async with cache(fresh_server.url, app, timeout=1, back_off=0.2, on_event=heard) as cached:
        assert await cached.get("a", source.load, "a") == 1
        fresh_server.kill()
        for _ in range(5):
            assert await cached.get("a", source.load, "a") == 1
        fresh_server.restart()

        async def hits() -> bool:
            await cached.get("a", source.load, "a")
            return bool(heard.of(CacheHit))

        await eventually(hits, within=5)
        assert [event.kept for event in heard.of(Loaded)][:2] == [True, False]
    assert [name for name in heard.names() if name in ("CacheLost", "CacheRegained")] == [
        "CacheLost",
        "CacheRegained",
    ]
    assert {type(event) for event in heard.events} >= {CacheLost, CacheRegained}


@pytest.mark.invariant(6)
@pytest.mark.fault("Redis is out of memory, and evicts nothing")
async def test_a_full_redis_still_answers_hits(
    fresh_server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """What is there is still read; what cannot be kept is loaded; Redis is not taken for dead."""
    book, heard, source = ledger(), Recorder(), Source(a=1, b=2)
    async with cache(fresh_server.url, app, on_event=heard) as cached:
        assert await cached.get("a", source.load, "a") == 1
        fresh_server.command("CONFIG", "SET", "maxmemory", "1")
        for number in range(10):
            book.injected()
            book.acked(number)
            if await cached.get("b", source.load, "b") == 2 and await cached.get("a", source.load, "a") == 1:
                book.effect(number)
        assert source.loads == 11
        assert not heard.of(CacheLost)
    book.held("a refusal is an answer: reads go on, misses load")


@pytest.mark.invariant(6)
async def test_a_slow_redis_delays_a_call_by_one_time_out(server: Server, app: str) -> None:
    """Whichever exchange the silence begins at, a load is delayed once."""
    for step in ("read", "begin", "fill"):
        async with proxy(server.port) as p, cache(p.url, app, timeout=0.4, back_off=10) as cached:
            await cached.peek("connected")
            known = getattr(cached._store, step)

            async def silent(*args: Any, p: Any = p, known: Any = known, **options: Any) -> Any:
                p.latency(30)
                return await known(*args, **options)

            setattr(cached._store, step, silent)
            began = time.monotonic()
            assert await cached.get(step, Source(**{step: 1}).load, step) == 1
            assert 0.35 < time.monotonic() - began < 0.75, step


@pytest.mark.invariant(6)
async def test_a_time_out_of_redis_is_not_taken_from_the_load(server: Server, app: str) -> None:
    """A lease that is shorter than the time-out: the load has all of it, once Redis was given up."""
    source = Source(a=1)
    source.turns = 3
    async with proxy(server.port) as p, cache(p.url, app, timeout=0.4, lease=0.3) as cached:
        await cached.peek("connected")
        known = cached._store.begin

        async def silent(*args: Any, **options: Any) -> Any:
            p.hole("down")
            return await known(*args, **options)

        cached._store.begin = silent
        assert await outcome_of(cached.get("a", source.load, "a")) == 1


@pytest.mark.invariant(6)
async def test_a_key_of_another_type_is_a_miss_and_goes(url: str, app: str) -> None:
    """Something else uses the key: it is deleted and loaded anew, like any other nonsense."""
    heard, source = Recorder(), Source(a=1)
    async with cache(url, app, on_event=heard) as cached, opened(url) as client:
        for _ in range(2):
            await client.rpush(value_key(app, "a"), "a list")
            assert await cached.get("a", source.load, "a") == 1
            assert await cached.peek("a") == 1, "it was not kept"
            await cached.invalidate("a")
        assert [event.error for event in heard.of(EntryDiscarded)] == ["not a string"] * 2


async def test_peek_says_nothing_of_what_it_cannot_read(server: Server, app: str) -> None:
    """EntryDiscarded says that it is deleted; `peek` deletes nothing."""
    heard = Recorder()
    async with cache(server.url, app, on_event=heard) as cached, opened(server.url) as client:
        await client.set(value_key(app, "a"), b"nonsense", px=60_000)
        assert await cached.peek("a") is MISS
        assert heard.events == []


# 7: writes


async def check_writes_and_their_invalidation(url: str, app: str, make: Make, book: Ledger | None) -> None:
    """Writes fail, may have been done, and are done while Redis cannot be told."""
    heard, source = Recorder(), Source(a=1)
    port = int(url.rpartition(":")[2].partition("/")[0])
    async with proxy(port, book) as p, cache(p.url, app, make, back_off=0.05, on_event=heard) as cached:

        async def failing(error: BaseException, *, done: bool = False) -> None:
            if done:
                source.rows["a"] = "written, and the reply was lost"
            raise error

        assert await cached.get("a", source.load, "a") == 1
        with pytest.raises(ValueError, match="constraint"):
            await cached.write("a", failing, ValueError("constraint"))
        await cached.get("a", source.load, "a")
        assert source.loads == 1, "a write that failed emptied the cache"

        for error in (TimeoutError(), ConnectionError(), asyncio.CancelledError()):
            source.rows["a"] = 1
            await cached.invalidate("a")
            await cached.get("a", source.load, "a")
            with pytest.raises(type(error)):
                await cached.write("a", lambda error=error: failing(error, done=True))
            assert await cached.get("a", source.load, "a") == "written, and the reply was lost"

        p.down()
        told = await outcome_of(cached.write("a", source.store, "a", 2))
        assert told == "InvalidationFailed", "the write was done, the old value stayed, and nobody was told"
        assert await cached.get("a", source.load, "a") == 2
        p.up()
        await eventually(lambda: cached.get("a", source.load, "a"), within=2)

        async def paid() -> bool:
            assert await cached.get("a", source.load, "a") == 2, "Redis is back, and with it the old value"
            return bool(heard.of(CacheRegained))

        await eventually(paid, within=5)
        (owed,) = heard.of(InvalidationOwed)
        assert owed.bound_seconds == pytest.approx(60 * 1.1 + 20)
        assert heard.of(Invalidated)


class SwallowsItsErrors(CacheAside):
    """`except RedisError: log.warning(...)`."""

    async def _invalidate(self, entities: tuple[str, ...], result: object) -> None:
        with suppress(InvalidationFailed):
            await super()._invalidate(entities, result)


class InvalidatesAlways(CacheAside):
    """`finally: await cache.delete(key)`."""

    async def write(self, entity: str, store: Any, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return await store(*args, **kwargs)
        finally:
            await self.invalidate(entity)


@pytest.mark.invariant(7)
async def test_a_write_is_followed_by_its_invalidation_or_by_an_error(server: Server, app: str) -> None:
    """Failed: nothing is touched; perhaps done: invalidated; not to be invalidated: told, and made good."""
    await check_writes_and_their_invalidation(server.url, app, CacheAside, None)


@pytest.mark.naive(7)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(SwallowsItsErrors, "nobody was told"), (InvalidatesAlways, "emptied the cache")],
)
async def test_invalidations_that_fail_in_silence_leave_the_old_value(
    server: Server, app: str, variant: Make, complaint: str
) -> None:
    """Nobody learns that readers see the old value; or every failing write empties the cache."""
    with pytest.raises(AssertionError, match=complaint):
        await check_writes_and_their_invalidation(server.url, app, variant, None)


@pytest.mark.fault("Redis cannot be reached while values are written, then it is back")
async def test_writes_during_an_outage_are_made_good(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Every one of 30 writes is reported, and none of the old values is read once Redis is back."""
    book = ledger(bound="every write reported")
    for make, each in {CacheAside: book, Textbook: book.without("delete, and log what fails")}.items():
        source = Source(**{str(number): "old" for number in range(30)})
        async with (
            proxy(server.port, each) as p,
            cache(p.url, app, make, name=make.__name__, back_off=0.05) as cached,
        ):
            for entity in source.rows:
                await cached.get(entity, source.load, entity)
            for entity in source.rows:
                p.down()
                told = await outcome_of(cached.write(entity, source.store, entity, "new"))
                assert make is Textbook or told == "InvalidationFailed"
                each.acked(entity)
            p.up()
            for entity in source.rows:
                if await cached.get(entity, source.load, entity) == "new":
                    each.effect(entity)
    book.held("InvalidationFailed to the writer; the entries are deleted before anything is read")


async def connected(cached: CacheAside) -> bool:
    """Say whether Redis is asked, and answers."""
    return bool(await cached._store.ask(cached._store._client.ping))


@pytest.mark.invariant(7)
@pytest.mark.fault("the reply to a command is lost")
async def test_a_lost_reply_leaves_the_cache_right(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Whichever reply is lost, readers get the present value, and the lease returns."""
    book = ledger(bound="no old value read")
    async with proxy(server.port, book) as p, cache(p.url, app, lease=0.4, back_off=0.01) as cached:
        for number, command in enumerate([b"\r\nGET\r\n", b"EVALSHA", b"\r\nDEL\r\n"] * 4):
            entity, source = str(number), Source(**{str(number): "old"})
            await eventually(lambda: connected(cached), within=2)
            with p.lose_reply(command) as toxic:
                assert await cached.get(entity, source.load, entity) == "old"
                with suppress(InvalidationFailed):
                    await cached.write(entity, source.store, entity, "new")
                book.acked(entity)
                if await cached.get(entity, source.load, entity) == "new":
                    book.effect(entity)
                assert toxic.hits == 1
    failed = 0
    async with proxy(server.port) as p, cache(p.url, app, Textbook) as naive:
        for number, command in enumerate([b"\r\nGET\r\n", b"\r\nSET\r\n", b"\r\nDEL\r\n"] * 4):
            await naive.client.ping()
            with p.lose_reply(command):
                failed += (
                    await outcome_of(naive.get(str(number), Source(**{str(number): 1}).load, str(number)))
                    != 1
                )
                await naive.invalidate(str(number))
    assert failed
    book.naive(f"get, load, set: {failed} of 12 reads failed")
    book.held("transitions may be repeated or half known: the generation decides")


@pytest.mark.invariant(7)
@pytest.mark.parametrize("bad", ["", "\ud800"])
async def test_a_name_that_cannot_be_a_key_harms_no_other(server: Server, app: str, bad: str) -> None:
    """It is refused before anything is written, and is not owed to Redis afterwards."""
    source = Source(a=1)
    async with cache(server.url, app) as cached:
        with pytest.raises(ValueError, match="entity must"):
            await cached.write(bad, source.store, bad, 2)
        assert source.writes == 0, "written, and never to be invalidated"
        await cached.get("a", source.load, "a")
        with pytest.raises(ValueError, match="entity must"):
            await cached.invalidate("a", bad)
        assert await cached.peek("a") == 1, "not even the good names' entries are touched"


async def test_debts_are_forgotten_when_the_old_values_have_expired(app: str) -> None:
    """However long Redis is away, no more is owed than was written in one bound."""
    clock = ManualClock()
    async with cache("redis://127.0.0.1:1/0", app, clock=clock) as cached:
        for entity in ("a", "b"):
            with pytest.raises(InvalidationFailed) as told:
                await cached.invalidate(entity)
            assert list(cached._store._owed) == [entity]
            clock.jump(told.value.bound)


@pytest.mark.invariant(7)
async def test_a_great_debt_is_paid_in_parts(server: Server, app: str) -> None:
    """What was paid before a failure stays paid, so that any debt has an end."""
    entities = [str(number) for number in range(1000)]
    heard, source = Recorder(), Source(a=1)
    async with proxy(server.port) as p, cache(p.url, app, on_event=heard, back_off=0.01) as cached:
        p.down()
        with pytest.raises(InvalidationFailed):
            await cached.invalidate(*entities)
        assert [event.entity for event in heard.of(InvalidationOwed)] == entities
        p.up()
        with p.lose_reply(b"users/999}:value"):
            await eventually(lambda: cached.get("a", source.load, "a"), within=2)
            await eventually(lambda: heard.of(Invalidated), within=5)
            paid = [event.entity for event in heard.of(Invalidated)]
            assert 500 < len(paid) < 1000
            assert paid == entities[: len(paid)]
        await eventually(lambda: connected(cached), within=5)
        paid = [event.entity for event in heard.of(Invalidated)]
        assert paid == entities


@pytest.mark.invariant(7)
@pytest.mark.parametrize("steps", range(0, 30, 2))
async def test_a_write_that_is_cancelled_anywhere_leaves_nothing_old(
    server: Server, app: str, steps: int
) -> None:
    """Whatever became of it, this process reads what the source says."""
    source = Source(a=1)
    async with cache(server.url, app) as cached:
        await cached.get("a", source.load, "a")
        call = asyncio.create_task(cached.write("a", source.store, "a", 2))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        assert await cached.get("a", source.load, "a") == source.rows["a"]
        assert leaks.in_use(cached._store._client) == 0


# 8: stale if error


async def check_stale_only_if_error(url: str, app: str, make: Make) -> None:
    """A value has expired, its stale window has not; loads fail in several ways."""
    heard, source = Recorder(), Source(a="old")
    options: dict[str, Any] = {"ttl": 10, "jitter": 0, "stale_if_error": 60, "stale_on": (ConnectionError,)}
    async with (
        cache(url, app, make, on_event=heard, **options) as cached,
        cache(url, app) as other,
        opened(url) as client,
    ):
        key = value_key(app, "a")

        async def filled_and_expired() -> None:
            source.rows["a"] = "old"
            await cached.invalidate("a")
            await cached.get("a", source.load, "a")
            assert 69_000 < await client.pttl(key) <= 70_000
            await client.pexpire(key, 30_000)

        await filled_and_expired()
        assert await cached.peek("a") is MISS
        assert await other.peek("a") is MISS, "a cache without a stale window took it for fresh"
        source.rows["a"] = "new"
        assert await cached.get("a", source.load, "a") == "new", "a stale value although the source answers"

        await filled_and_expired()
        source.rows["a"] = ConnectionError()
        assert await cached.get("a", source.load, "a") == "old"
        (served,) = heard.of(StaleServed)
        assert served.stale_seconds == pytest.approx(30, abs=2)
        source.rows["a"] = LookupError("deleted")
        got = await outcome_of(cached.get("a", source.load, "a"))
        assert got == "LookupError", "an error that is an answer was hidden"

        source.rows["a"] = ConnectionError()
        source.open.clear()
        call = asyncio.create_task(outcome_of(cached.get("a", source.load, "a")))
        await eventually(lambda: source.running == 1, within=5)
        await other.invalidate("a")
        source.open.set()
        assert await call == "ConnectionError", "it was invalidated, and served all the same"

        await filled_and_expired()
        await client.pexpireat(key, 1)
        source.rows["a"] = ConnectionError()
        assert await outcome_of(cached.get("a", source.load, "a")) == "ConnectionError"


class KeepsACopy(CacheAside):
    """Looks up the stale value before it loads, and gives it back whatever went wrong."""

    async def get(self, entity: str, load: Any, /, *args: Any, **kwargs: Any) -> Any:
        copy: Any = await self._store._client.get(self._store.keys(entity)[0])
        try:
            return await super().get(entity, load, *args, **kwargs)
        except self.on as error:
            if copy is None:
                raise
            emit(self._on_event, StaleServed(self.name, entity, 30, type(error).__name__))
            return json.loads(copy.partition(b"\n")[2])

    on: tuple[type[Exception], ...] = (ConnectionError,)


class HidesEveryError(KeepsACopy):
    """`except Exception: return stale`."""

    on = (Exception,)


@pytest.mark.invariant(8)
async def test_a_stale_value_stands_in_for_a_failed_load_only(url: str, app: str) -> None:
    """For the errors that were named, in its window, and not once it was invalidated."""
    await check_stale_only_if_error(url, app, CacheAside)


@pytest.mark.naive(8)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(KeepsACopy, "served all the same"), (HidesEveryError, "an answer was hidden")],
)
async def test_a_copy_kept_aside_outlives_its_invalidation(
    server: Server, app: str, variant: Make, complaint: str
) -> None:
    """It is served after it was invalidated; and with `except Exception` deleted things live on."""
    with pytest.raises(AssertionError, match=complaint):
        await check_stale_only_if_error(server.url, app, variant)


# 9: what cannot be kept


async def check_only_what_can_be_read_again_is_kept(url: str, app: str, make: Make) -> None:
    """Values that JSON cannot hold, that are too large, and that change in the caller's hands."""
    bad: dict[str, Any] = {"set": {1}, "nan": math.nan, "surrogate": "\ud800", "large": "x" * 200}
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    source = Source(**bad, deep=deep, pair=(1, 2))
    async with cache(url, app, make, max_bytes=100) as cached, opened(url) as client:
        for entity in (*bad, "deep"):
            error = await outcome_of(cached.get(entity, source.load, entity))
            assert error == "NotCacheable", f"{entity}: the caller got {str(error)[:40]}"
            assert [key async for key in client.scan_iter(f"{app}*[ek]")] == []
        first, second = await asyncio.gather(*[cached.get("pair", source.load, "pair") for _ in range(2)])
        first.append(3) if isinstance(first, list) else None
        third = await cached.get("pair", source.load, "pair")
        assert first == [1, 2, 3]
        assert second == third == [1, 2], f"callers share one object, or see other types: {second!r}"


class EncodesAnything(Json):
    """`json.dumps(value, default=str)`."""

    def encode(self, value: Any) -> bytes:
        return json.dumps(value, default=str).encode()


class KeepsAnything(CacheAside):
    """See EncodesAnything."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, codec=EncodesAnything(), **options)


class SharesTheObject(CacheAside):
    """Those who wait get the object that was loaded."""

    async def get(self, entity: str, load: Any, /, *args: Any, **kwargs: Any) -> Any:
        loaded: list[Any] = self.__dict__.setdefault(f"shared {entity}", [])

        async def kept() -> Any:
            loaded.append(await load(*args, **kwargs))
            return loaded[0]

        value = await super().get(entity, kept)
        return loaded[0] if loaded else value


@pytest.mark.invariant(9)
async def test_what_cannot_be_read_again_is_not_kept(url: str, app: str) -> None:
    """A typed error before anything is written; and each caller has a value of its own."""
    await check_only_what_can_be_read_again_is_kept(url, app, CacheAside)


@pytest.mark.naive(9)
@pytest.mark.parametrize(
    ("variant", "complaint"), [(KeepsAnything, "set: the caller got"), (SharesTheObject, r"\(1, 2\)")]
)
async def test_lenient_encoding_and_shared_objects_surprise_later(
    server: Server, app: str, variant: Make, complaint: str
) -> None:
    """A set comes back as text; and the first caller's tuple is the later callers' list."""
    with pytest.raises(AssertionError, match=complaint):
        await check_only_what_can_be_read_again_is_kept(server.url, app, variant)


# events, errors, keys, bad input


async def test_events_tell_the_story_of_each_read(server: Server, app: str) -> None:
    """A miss, a load, a hit, a negative hit, a failed load and an invalidation are six kinds of event."""
    heard, source = Recorder(), Source(a=1, b=OSError())
    async with cache(server.url, app, on_event=heard) as cached:
        for entity in ("a", "a", "none", "none", "b"):
            await outcome_of(cached.get(entity, source.load, entity))
        await cached.invalidate("a", "b")
        await cached.invalidate()
    assert heard.names() == [
        *("CacheMissed", "Loaded", "CacheHit"),
        *("CacheMissed", "Loaded", "CacheHit"),
        *("CacheMissed", "LoadFailed", "Invalidated", "Invalidated"),
    ]
    assert heard.of(CacheHit) == [
        CacheHit("users", "a", negative=False),
        CacheHit("users", "none", negative=True),
    ]
    assert [event.kept for event in heard.of(Loaded)] == [True, True]
    (failed,) = heard.of(LoadFailed)
    assert (failed.entity, failed.error) == ("b", "OSError")


async def test_a_write_returns_what_the_source_said_also_where_it_could_not_be_invalidated(app: str) -> None:
    """InvalidationFailed carries the result, the entities and the bound on how long the old value lives."""
    async with cache("redis://127.0.0.1:1/0", app) as cached:
        with pytest.raises(
            InvalidationFailed, match="the old value of 'a' may be read for up to 86 s"
        ) as told:
            await cached.write("a", Source().store, "a", 5)
        assert (told.value.result, told.value.entities) == (1, ("a",))
        assert told.value.bound == pytest.approx(86)
        assert isinstance(told.value.__cause__, RedisError)
        with pytest.raises(InvalidationFailed, match="'a', 'b'"):
            await cached.invalidate("a", "b")


async def test_many_entities_are_invalidated_in_one_call(url: str, app: str) -> None:
    """Also where they lie in several slots."""
    source = Source(**{str(number): 1 for number in range(20)})
    async with cache(url, app) as cached:
        for entity in source.rows:
            await cached.get(entity, source.load, entity)
        await cached.invalidate(*source.rows)
        assert [await cached.peek(entity) for entity in source.rows] == [MISS] * 20


def test_errors_cross_processes() -> None:
    """Each error survives pickling with what the caller needs, and shows no value."""
    for error in (
        NotCacheable("a", "too large", {"secret": 1}),
        LoadTimedOut("a", 1.5),
        LoadCancelled("a"),
        InvalidationFailed(("a", "b"), 70.0, "result"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        assert "secret" not in str(error)
    assert str(LoadTimedOut("a", 1.5)) == "the load of 'a' took longer than its lease of 1.5 s"


async def test_all_keys_of_an_entity_are_in_one_slot_and_of_several_in_several(url: str, app: str) -> None:
    """Whatever text an entity holds; and two caches never share a key."""
    async with cache(url, app) as users, cache(url, app, name="users-x") as others:
        entities = ["42", "a/b", "{x}", "a:b", "%7B", "é", "x" * 500]
        keys = {entity: users._store.keys(entity) for entity in entities}
        assert all(len({key_slot(key.encode()) for key in each}) == 1 for each in keys.values())
        assert len({key_slot(each[0].encode()) for each in keys.values()}) == len(entities)
        assert users._store.keys("x/1") != others._store.keys("1")
        for entity in entities:
            assert await users.get(entity, Source(**{entity: 1}).load, entity) == 1
            assert await users.peek(entity) == 1
            assert await others.peek(entity) is MISS
        for bad in ("", "\ud800"):
            with pytest.raises(ValueError, match="entity must"):
                await users.get(bad, Source().load, bad)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:b", "{a}"])
async def test_a_bad_name_is_refused(name: str) -> None:
    """A cache's name is part of its keys."""
    async with opened("redis://127.0.0.1:1/0") as client:
        with pytest.raises(ValueError, match="name must be letters"):
            CacheAside(name, client, policy(), app="x")


SECONDS = "finite number >= 0.001 and <= 1000000000"
BAD = [
    *[("ttl", value, SECONDS) for value in (0, -1, math.nan, math.inf, 1e9 + 1, "60", True)],
    *[("negative_ttl", value, "finite number >= 0 and <= 1000000000") for value in (-1, math.nan, math.inf)],
    *[("jitter", value, "finite number >= 0 and < 1") for value in (-0.1, 1, math.nan)],
    *[("max_loads", value, "max_loads must be a whole number >= 1") for value in (0, 1.5, True)],
    ("max_bytes", 0, "max_bytes must be a whole number >= 1"),
    *[(name, 0, SECONDS) for name in ("lease", "poll", "timeout", "back_off")],
    ("stale_if_error", 5, "must be given together"),
    ("stale_on", (OSError,), "must be given together"),
    ("stale_on", OSError, "tuple of Exception classes"),
    ("unsure", (BaseException,), "tuple of Exception classes"),
]


@pytest.mark.parametrize(("field", "value", "bound"), BAD)
def test_a_bad_policy_names_field_value_and_bound(field: str, value: object, bound: str) -> None:
    """No cache is built from values that could never work."""
    with pytest.raises(ValueError, match=bound) as refused:
        policy(**{field: value})
    assert field in str(refused.value)
    assert repr(value) in str(refused.value)


class NotedClock(ManualClock):
    """Keeps how long it was asked to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await super().sleep(seconds)

    def has_slept(self, times: int) -> bool:
        return len(self.slept) == times


async def test_waiting_for_another_process_goes_by_the_clock_it_was_given(server: Server, app: str) -> None:
    """Between two looks at the other's lease it sleeps `poll` seconds of its own clock."""
    clock, source = NotedClock(), Source(a=1)
    source.open.clear()
    async with cache(server.url, app) as there, cache(server.url, app, clock=clock, poll=2) as here:
        theirs = asyncio.create_task(there.get("a", source.load, "a"))
        await eventually(lambda: source.running == 1, within=5)
        ours = asyncio.create_task(here.get("a", source.load, "a"))
        await eventually(lambda: clock.slept == [2], within=5)
        source.open.set()
        assert await theirs == 1
        assert not ours.done()
        await clock.advance(2)
        assert await ours == 1
        assert source.loads == 1


@pytest.mark.invariant(3)
async def test_a_waiter_that_has_waited_for_a_lease_loads_alone(server: Server, app: str) -> None:
    """Another's lease is still held after one lease of our own clock: we load, and leave theirs alone."""
    clock, source = NotedClock(), Source(a=1)
    async with cache(server.url, app, clock=clock, lease=4, poll=3) as here, opened(server.url) as client:
        await client.set(value_key(app, "a", "lock"), "somebody else", px=60_000)
        call = asyncio.create_task(here.get("a", source.load, "a"))
        for number, seconds in enumerate((3, 1), 1):
            await eventually(partial(clock.has_slept, number), within=5)
            assert source.loads == 0
            await clock.advance(seconds)
        assert await call == 1
        assert clock.slept == [3, 1]
        assert await client.get(value_key(app, "a", "lock")) == b"somebody else"
        assert await here.peek("a") == 1


@pytest.mark.invariant(6)
async def test_nonsense_that_another_process_leaves_is_loaded_anew(server: Server, app: str) -> None:
    """It waited for another's load, and what came cannot be read: it counts as a miss again."""
    clock, heard, source = NotedClock(), Recorder(), Source(a=1)
    async with (
        cache(server.url, app, clock=clock, poll=2, on_event=heard) as here,
        opened(server.url) as client,
    ):
        await client.set(value_key(app, "a", "lock"), "somebody else", px=60_000)
        call = asyncio.create_task(here.get("a", source.load, "a"))
        await eventually(lambda: clock.slept == [2], within=5)
        await client.set(value_key(app, "a"), b"1 0 +\nnot JSON", px=60_000)
        await client.delete(value_key(app, "a", "lock"))
        await clock.advance(2)
        assert await call == 1
        assert [event.error for event in heard.of(EntryDiscarded)] == ["the codec raised JSONDecodeError"]
        assert await here.peek("a") == 1


async def test_a_codec_that_gives_no_bytes_is_refused(server: Server, app: str) -> None:
    """NotCacheable says what it gave, and carries the value."""

    class Text(Json):
        def encode(self, value: Any) -> Any:
            return json.dumps(value)

    async with cache(server.url, app, codec=Text()) as cached:
        with pytest.raises(NotCacheable, match="the codec gave str, not bytes") as told:
            await cached.get("a", Source(a=[1]).load, "a")
        assert told.value.value == [1]


# all of it against a model


class AgainstTheModel(RuleBasedStateMachine):
    """Two processes' caches over one source, beside a model that knows which values a reader may see."""

    ENTITIES = st.sampled_from(["a", "b"])
    WHICH = st.sampled_from([0, 1])

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.url = embedded.shared().unix_url
        self.source = Source()
        self.allowed: dict[str, list[Any]] = {"a": [None], "b": [None]}

    @initialize(number=st.integers(0, 1 << 60))
    def begin(self, number: int) -> None:
        """Open two caches on keys of their own."""

        async def made() -> list[CacheAside]:
            self.clients = [connect(self.url) for _ in range(2)]
            return [
                CacheAside("m", each, policy(), app=f"model-{number}-{os.getpid()}") for each in self.clients
            ]

        self.caches = self.runner.run(made())
        self.runner.run(self.caches[0].invalidate("a", "b"))

    @rule(which=WHICH, entity=ENTITIES)
    def read(self, which: int, entity: str) -> None:
        """Read: only what was true since the last invalidation may come."""
        got = self.runner.run(self.caches[which].get(entity, self.source.load, entity))
        assert got in self.allowed[entity], f"{got!r} is not among {self.allowed[entity]!r}"

    @rule(which=WHICH, entity=ENTITIES, value=st.one_of(st.none(), st.integers(), st.text(max_size=3)))
    def write(self, which: int, entity: str, value: Any) -> None:
        """Write through the pattern: from now on only this value may come."""
        self.runner.run(self.caches[which].write(entity, self.source.store, entity, value))
        self.allowed[entity] = [value]

    @rule(entity=ENTITIES, value=st.integers())
    def write_behind_its_back(self, entity: str, value: int) -> None:
        """Write without invalidating: the value before it may come as well."""
        self.source.rows[entity] = value
        self.allowed[entity].append(value)

    @rule(which=WHICH, entity=ENTITIES)
    def invalidate(self, which: int, entity: str) -> None:
        """Invalidate: only the present value may come."""
        self.runner.run(self.caches[which].invalidate(entity))
        self.allowed[entity] = [self.source.rows.get(entity)]

    @rule(which=WHICH, entity=ENTITIES)
    def race(self, which: int, entity: str) -> None:
        """Load in one process while the other writes."""

        async def both() -> None:
            self.source.turns = 3
            await asyncio.gather(
                self.caches[which].get(entity, self.source.load, entity),
                self.caches[1 - which].write(entity, self.source.store, entity, "raced"),
            )
            self.source.turns = 0

        self.runner.run(both())
        self.allowed[entity] = ["raced"]

    @rule(entity=ENTITIES, garbage=st.binary(max_size=12))
    def corrupt(self, entity: str, garbage: bytes) -> None:
        """Put nonsense where the value is; nonsense that is an entry of a number counts as a value."""
        key = self.caches[0]._store.keys(entity)[0]
        self.runner.run(self._set(key, b"\0" + garbage))

    @rule(entity=ENTITIES, role=st.sampled_from([0, 1, 2]))
    def lose(self, entity: str, role: int) -> None:
        """Lose a key, as eviction or a failover does."""
        self.runner.run(self._lose(self.caches[0]._store.keys(entity)[role]))

    async def _set(self, key: str, value: bytes) -> None:
        await self.clients[0].set(key, value, px=60_000)

    async def _lose(self, key: str) -> None:
        await self.clients[0].delete(key)

    def teardown(self) -> None:
        """Close everything."""

        async def close() -> None:
            for client in self.clients:
                await client.aclose()

        if hasattr(self, "clients"):
            self.runner.run(close())
        self.runner.close()


AgainstTheModel.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestAgainstTheModel = AgainstTheModel.TestCase
