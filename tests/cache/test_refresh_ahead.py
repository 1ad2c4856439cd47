"""The proof of patterns/cache/refresh_ahead: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import math
import random
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from redis.crc import key_slot

from patterns.cache.refresh_ahead import (
    MISS,
    InvalidationFailed,
    NotCacheable,
    Policy,
    RefreshAhead,
    RefreshBegan,
    Refreshed,
    RefreshFailed,
    RefreshPutOff,
)
from patterns.cache.refresh_ahead.timed import HEAD_BYTES, Timed, TimedCodec
from patterns.clock import ManualClock
from patterns.entry import JSON, Unreadable, decode
from patterns.events import Recorder
from patterns.keyspace import opened
from tests.cache import refresh_ahead_naive as naive
from tests.cache.read_through_source import source
from tests.cache.refresh_ahead_checks import (
    CALLERS,
    PROCESSES,
    Make,
    Readers,
    age,
    began,
    cache,
    check_a_dead_refresher_holds_nobody_up_for_ever,
    check_a_late_refresh_changes_nothing,
    check_a_lost_cache_is_the_sources_business,
    check_a_lost_reply_costs_a_pause_at_most,
    check_a_reader_that_goes_takes_nothing_along,
    check_an_invalidation_wins,
    check_chance_spreads_the_readers,
    check_failures_cost_no_reader_anything,
    check_idle_keys_are_not_refreshed,
    check_no_reader_waits,
    check_no_value_outlives_its_ttl,
    check_one_refresh_at_a_time,
    check_only_what_can_be_read_again_is_kept,
    check_processes_refresh_once_and_nobody_waits,
    check_refreshes_are_bounded_and_end,
    end_the_pause,
    idle,
    key_of,
    loads_of_lives,
    policy,
)
from tests.eventually import eventually
from tests.faults import Ledger, leaks, proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from patterns.embedded import Server
    from tests.faults.workers import Worker
    from tests.postgres import Home


# Each check runs on one server over SQLite and on a cluster over PostgreSQL; naive variants on the first.
EVERYWHERE = pytest.mark.parametrize(
    ("url", "database"), [("one server", "sqlite"), ("3+3 cluster", "postgres")], indirect=True
)
ONCE = pytest.mark.parametrize(("url", "database"), [("one server", "sqlite")], indirect=True)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """Where the cache is."""
    running = request.getfixturevalue("server" if request.param == "one server" else "cluster")
    return str(running.url)


def first_line(told: pytest.ExceptionInfo[AssertionError]) -> str:
    """Return what a check complained of."""
    return str(told.value).partition("\n")[0]


# 1: never later than ttl


@EVERYWHERE
@pytest.mark.invariant(1)
@pytest.mark.fault("every refresh fails, twenty times until the value ends")
async def test_a_value_ends_with_its_ttl_though_every_refresh_fails(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """Reads get the old value until its end, and the source's error after it."""
    book = ledger(bound="one attempt in each pause; no value later than `ttl`")
    await check_no_value_outlives_its_ttl(url, app, database, RefreshAhead, book)
    book.held("readers get the old value, then the error: reads and failures prolong nothing")
    if database.engine == "sqlite":
        with pytest.raises(AssertionError, match="20 attempts failed") as told:
            await check_no_value_outlives_its_ttl(url, f"{app}-naive", database, naive.KeepsTheOldAlive)
        book.naive(f"a failing refresh that prolongs the old value: {first_line(told)}")


@ONCE
@pytest.mark.naive(1)
async def test_a_failing_refresh_that_prolongs_the_old_value_serves_it_for_ever(
    url: str, app: str, database: Home
) -> None:
    """A new life for what could not be refreshed has no end."""
    with pytest.raises(AssertionError, match="20 attempts failed, and it lives 80 s longer"):
        await check_no_value_outlives_its_ttl(url, app, database, naive.KeepsTheOldAlive)


# 2: no reader waits


@EVERYWHERE
@pytest.mark.invariant(2)
@pytest.mark.fault("a hot value comes to its end, and its load is slower than all its readers")
async def test_no_reader_waits_for_a_refresh(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """The load ends only after 200 reads have returned the old value; the next ones get the new."""
    book = ledger(bound="no reader waits")
    await check_no_reader_waits(url, app, database, RefreshAhead, book)
    book.held("200 readers have the old value before the load ends")
    if database.engine == "sqlite":
        with pytest.raises(AssertionError, match="100 of 200 readers waited for the load") as told:
            await check_no_reader_waits(url, f"{app}-naive", database, naive.RefreshesInline)
        book.naive(f"a refresh in the reader's own time: {first_line(told)}")


@ONCE
@pytest.mark.naive(2)
@pytest.mark.parametrize("variant", [naive.RefreshesInline, naive.Expires])
async def test_a_refresh_in_the_readers_own_time_makes_it_wait(
    url: str, app: str, database: Home, variant: Make
) -> None:
    """Whoever finds it due waits for the load; where nothing is refreshed ahead, all do."""
    with pytest.raises(AssertionError, match="of 200 readers waited for the load"):
        await check_no_reader_waits(url, app, database, variant)


@EVERYWHERE
@pytest.mark.invariant(2)
async def test_a_read_is_one_exchange_also_when_it_is_due(url: str, app: str, database: Home) -> None:
    """Of what a read sends nothing waits for the claim, the lease or the load of the refresh it begins."""
    async with (
        source(database, a=1) as rows,
        cache(url, app, rows) as cached,
        opened(url) as client,
    ):
        await cached.get("a")
        await age(client, app, "a")
        asked: list[str] = []
        ask, hold = cached._entries._store.ask, asyncio.Event()

        async def noted(request: Any) -> Any:
            task = asyncio.current_task()
            assert task is not None
            asked.append(task.get_name())
            if task.get_name() == "refresh a":
                await hold.wait()
            return await ask(request)

        cached._entries._store.ask = noted
        for _ in range(20):
            assert await cached.get("a") == 1
        assert asked.count("refresh a") == 1
        assert len(asked) == 20 + 1
        hold.set()
        await idle(cached)
        assert rows.loads == 2


# 3: one refresh at a time, one attempt in each pause


@EVERYWHERE
@pytest.mark.invariant(3)
async def test_a_key_is_refreshed_once_at_a_time_and_once_in_each_pause(
    url: str, app: str, database: Home
) -> None:
    """Two processes read on while it loads, and after it has failed; the next attempt is after the pause."""
    await check_one_refresh_at_a_time(url, app, database, RefreshAhead)


@ONCE
@pytest.mark.naive(3)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (naive.EachReader, r"\d+ loads of one key at once"),
        (naive.EachProcess, "2 loads of one key at once"),
        (naive.TriesAtEachRead, r"\d+ attempts in one pause"),
    ],
)
async def test_refreshes_that_ask_nobody_are_a_stampede_of_their_own(
    url: str, app: str, database: Home, variant: Make, complaint: str
) -> None:
    """A task for each reader loads as often as they read; one for each process, as often as there are."""
    with pytest.raises(AssertionError, match=complaint):
        await check_one_refresh_at_a_time(url, app, database, variant)


@pytest.fixture(scope="module")
def readers(server: Server) -> Iterator[Readers]:
    """Processes for all tests here."""
    with ExitStack() as stack:
        yield Readers(server, stack)


@pytest.mark.invariant(3)
@pytest.mark.fault("200 readers in 2 processes read a hot value at its end")
async def test_processes_refresh_once_and_nobody_waits(
    readers: Readers, server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """All have the old value before the one load ends."""
    book = ledger(bound="1 load, no reader waits")
    await check_processes_refresh_once_and_nobody_waits(readers, server.url, app, "refresh_ahead")
    book.injected(PROCESSES * CALLERS)
    book.acked("load")
    book.effect("load")
    book.held("1 load in the background; all readers are served before it ends")
    with pytest.raises(AssertionError, match="200 readers waited for the load") as told:
        await check_processes_refresh_once_and_nobody_waits(readers, server.url, f"{app}-naive", "expires")
    book.naive(f"a value that expires: {first_line(told)}")


@pytest.mark.invariant(3)
async def test_processes_refresh_once_on_a_cluster(readers: Readers, cluster: Any, app: str) -> None:
    """It is the same where the keys are on one node of three."""
    await check_processes_refresh_once_and_nobody_waits(readers, cluster.url, app, "refresh_ahead")


@pytest.mark.naive(3)
@pytest.mark.parametrize(
    ("kind", "loads"), [("each_reader", PROCESSES * CALLERS), ("each_process", PROCESSES)]
)
async def test_tasks_that_ask_no_other_process_load_more_than_once(
    readers: Readers, server: Server, app: str, kind: str, loads: int
) -> None:
    """Nobody waits, and the source is met by a load for each reader, or for each process."""
    with pytest.raises(AssertionError, match=f"{loads} loads for 2 processes"):
        await check_processes_refresh_once_and_nobody_waits(readers, server.url, app, kind)


@pytest.mark.invariant(3)
@pytest.mark.fault("the process that refreshes stands still (SIGSTOP) for longer than its lease")
async def test_a_late_refresh_loses_to_a_newer_one(
    readers: Readers, server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Another process refreshes meanwhile; what the paused one ends later changes nothing."""
    book = ledger(bound="a lease of 0.5 s")
    await check_a_late_refresh_changes_nothing(readers, server.url, app, "refresh_ahead", book)
    book.held("when it goes on its lease is over and the generation another one: nothing is kept")
    with pytest.raises(AssertionError, match="the late refresh has overwritten a newer one") as told:
        await check_a_late_refresh_changes_nothing(
            readers, server.url, f"{app}-naive", "each_process", Ledger("cache/refresh_ahead", "the same")
        )
    book.naive(f"a task in each process that loads and sets: {first_line(told)}")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.invariant(3)
@pytest.mark.fault("the process that refreshes is killed (SIGKILL)")
async def test_a_killed_refresher_is_replaced_within_its_lease(
    readers: Readers, server: Server, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """Readers of the other process go on with the old value, and one of them refreshes after the lease."""
    lease = 0.5
    await check_a_dead_refresher_holds_nobody_up_for_ever(server.url, f"{app}-dead", database, RefreshAhead)
    book = ledger(duplicated=1, bound=f"a lease of {lease} s and a pause of 0.2 s")
    ended = await readers.at_the_end(server.url, app, "refresh_ahead", lease=lease, fate="kill")
    book.injected()
    book.acked("load")
    book.effect("load", ended.loads)
    assert (ended.waited, ended.loads) == (0, 2)
    assert ended.seconds < lease + 3
    book.held("nobody waits; when lease and pause have ended a reader of another process refreshes")
    with pytest.raises(AssertionError, match="1 key that never expires") as told:
        await check_a_dead_refresher_holds_nobody_up_for_ever(
            server.url, f"{app}-naive", database, naive.FlagWithoutAnEnd
        )
    book.naive(f"a flag without an expiry: {first_line(told)}")


# 4: an invalidation wins


@EVERYWHERE
@pytest.mark.invariant(4)
@pytest.mark.fault("a write or a deletion while the value is being refreshed")
async def test_no_refresh_brings_back_what_was_invalidated(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """Neither an old value nor a deleted one is read by anybody after the invalidation has returned."""
    book = ledger(bound="no old value read")
    await check_an_invalidation_wins(url, app, database, RefreshAhead, book)
    book.held("the generation is gone: what was loaded before is not kept")
    if database.engine == "sqlite":
        twin = Ledger("cache/refresh_ahead", "the same")
        await check_an_invalidation_wins(url, f"{app}-naive", database, naive.KeepsWhateverItLoaded, twin)
        assert twin.lost == 20
        book.naive(f"a lease without a generation: the old value read after {twin.lost} of {twin.faults}")


@ONCE
@pytest.mark.naive(4)
@pytest.mark.parametrize("variant", [naive.KeepsWhateverItLoaded, naive.EachProcess])
async def test_a_refresh_that_is_set_unasked_brings_the_old_value_back(
    url: str, app: str, database: Home, variant: Make
) -> None:
    """The load began before the write and is set after its invalidation, for a whole life."""
    with pytest.raises(AssertionError, match="the refresh brought the old value back"):
        await check_an_invalidation_wins(url, app, database, variant)


# 5: a refresh that fails


@EVERYWHERE
@pytest.mark.invariant(5)
async def test_a_failing_refresh_costs_no_reader_anything(url: str, app: str, database: Home) -> None:
    """Errors, groups of errors, cancellation from inside and a hanging load are told, and not repeated."""
    await check_failures_cost_no_reader_anything(url, app, database, RefreshAhead)


@ONCE
@pytest.mark.naive(5)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(naive.DropsWhatItCannotRefresh, "a reader got"), (naive.TriesAtEachRead, r"\d+ attempts in 100 reads")],
)
async def test_a_refresh_without_the_old_value_or_a_pause_hurts(
    url: str, app: str, database: Home, variant: Make, complaint: str
) -> None:
    """Deleted first, its readers get the error; without a pause, each read is one more failing load."""
    with pytest.raises(AssertionError, match=complaint):
        await check_failures_cost_no_reader_anything(url, app, database, variant)


# 6: idle keys


@EVERYWHERE
@pytest.mark.invariant(6)
async def test_what_nobody_reads_is_not_loaded(url: str, app: str, database: Home) -> None:
    """Hours after their only read fifty keys have been loaded once; a look does not refresh."""
    await check_idle_keys_are_not_refreshed(url, app, database, RefreshAhead)


@ONCE
@pytest.mark.naive(6)
async def test_a_timer_loads_what_nobody_reads(url: str, app: str, database: Home) -> None:
    """Every key ever seen costs a load in each life, for ever."""
    with pytest.raises(AssertionError, match=r"\d+ loads of what nobody read"):
        await check_idle_keys_are_not_refreshed(url, app, database, naive.Timer)


# 7: bounded, and ended


@EVERYWHERE
@pytest.mark.invariant(7)
@pytest.mark.fault("fifty keys are due at the same moment, and the cache is closed while they load")
async def test_refreshes_are_bounded_and_leave_nothing(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """Four run, a reader that misses has a place, and the end leaves no task, lease or lost value."""
    book = ledger(bound="4 refreshes at once, no lease left")
    await check_refreshes_are_bounded_and_end(url, app, database, RefreshAhead, book)
    book.held("4 at a time, the others at a later read; closing cancels them and gives the leases back")
    if database.engine == "sqlite":
        with pytest.raises(AssertionError, match="50 refreshes at once") as told:
            await check_refreshes_are_bounded_and_end(url, f"{app}-naive", database, naive.Unbounded)
        book.naive(f"a task for each: {first_line(told)}, and those who miss wait behind them")


@ONCE
@pytest.mark.naive(7)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (naive.Unbounded, "50 refreshes at once"),
        (naive.FireAndForget, "4 refreshes ran on after the end"),
        (naive.KeepsTheContext, "in the context of a request"),
    ],
)
async def test_tasks_that_nobody_counts_take_all_places_and_outlive_their_cache(
    url: str, app: str, database: Home, variant: Make, complaint: str
) -> None:
    """All that is due runs at once, or in a request's context, or on when its cache is closed."""
    with pytest.raises(AssertionError, match=complaint):
        await check_refreshes_are_bounded_and_end(url, app, database, variant)


@pytest.mark.invariant(7)
@pytest.mark.fault("the event loop ends in the middle of a refresh, and nobody has closed the cache")
async def test_the_end_of_the_loop_leaves_nothing(
    server: Server, app: str, spawn: Callable[..., Worker], ledger: Callable[..., Ledger], tmp_path: Path
) -> None:
    """No word on stderr of a task destroyed or an exception never read; the lease is given back."""
    book = ledger(bound="no warning, no lease left, exit code 0")
    program = tmp_path / "ends.py"
    program.write_text(_ENDS, "utf-8")
    env = {"PYTHONWARNINGS": "error", "PYTHONASYNCIODEBUG": "1"}
    process = spawn(program, server.url, app, "kept", env=env)
    unkept = spawn(program, server.url, f"{app}-naive", "unkept", env=env)
    code = await process.ended(within=20)
    book.injected()
    book.acked("end")
    assert code == 0, process.output
    assert process.output == "old, 1 load under way\n"
    async with opened(server.url) as client:
        assert await client.exists(key_of(app, role="lock")) == 0
        assert await client.exists(key_of(app)) == 1
    book.effect("end")
    book.held("the task is referenced, cancelled by the loop, and gives its lease back")
    await unkept.ended(within=20)
    assert "old, 0 loads under way" in unkept.output, unkept.output
    (told,) = [line for line in unkept.output.splitlines() if "destroyed" in line]
    book.naive(f'`create_task` without a reference: gone before the loop ended, "{told}"')


_ENDS = """
import asyncio, gc, sys
from patterns.cache.refresh_ahead import Policy, RefreshAhead
from patterns.keyspace import connect

async def main(url, app, kind):
    loading, running = asyncio.Event(), 0
    async def load(key):
        nonlocal running
        if first:
            return first.pop()
        running += 1
        loading.set()
        try:
            await asyncio.Event().wait()
        finally:
            running -= 1
    first = ["old"]
    redis = connect(url)
    policy = Policy(ttl=60, negative_ttl=5, refresh_after=0.5, max_loads=2, max_refreshes=1, timeout=5)
    cache = RefreshAhead("users", redis, policy, load=load, app=app)
    if kind == "unkept":
        def begin(key, left):
            asyncio.create_task(cache._load(key))
        cache._refresher.begin = begin
    await cache.get("a")
    await redis.pexpire(f"{app}:{{refresh_ahead:users/a}}:value", 20_000)
    value = await cache.get("a")
    await loading.wait()
    gc.collect()
    print(f"{value}, {running} load{'s' * (running != 1)} under way")
    global kept
    kept = redis

kept = None
with asyncio.Runner() as runner:
    runner.run(main(*sys.argv[1:]))
    if left := asyncio.all_tasks(runner.get_loop()):
        for task in left:
            task.cancel()
        runner.run(asyncio.wait(left))
    runner.run(kept.aclose())
"""


# 8: by chance


@pytest.mark.invariant(8)
def test_chance_spreads_the_readers_and_knows_slow_loads(rng: random.Random) -> None:
    """Without asking each other, 5,000 readers make a few loads of each life, and few lives end first."""
    early = check_chance_spreads_the_readers(Policy, rng)
    early = [loads_of_lives(Policy, 0.02, rng)[1], *early]
    assert early == sorted(early, reverse=True), "slow loads begin earlier"


@pytest.mark.naive(8)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(naive.Coin, r"\d+% of the lives ended first"), (naive.Certainly, r"\d+\.\d loads in one life")],
)
def test_a_coin_or_a_window_for_all_does_not(
    rng: random.Random, variant: type[Policy], complaint: str
) -> None:
    """A fixed chance lets lives end; a window in which all agree makes a stampede of them."""
    with pytest.raises(AssertionError, match=complaint):
        check_chance_spreads_the_readers(variant, rng)


class Drawn(random.Random):
    """Draws what it is told to."""

    next = 0.0

    def expovariate(self, lambd: float = 1.0) -> float:
        assert lambd == 1.0
        return self.next


@ONCE
@pytest.mark.invariant(6)
async def test_whoever_has_waited_for_a_load_does_not_begin_the_next(
    url: str, app: str, database: Home
) -> None:
    """A load may take longer than its value lives: what is read once is loaded once all the same."""
    clock, rng = ManualClock(), Drawn()
    rng.next = 100.0
    async with source(database, a=1) as rows:

        async def slow(key: str) -> Any:
            value = await rows.load(key)
            clock.jump(2)
            return value

        async with cache(url, app, slow, clock=clock, rng=rng, beta=1) as cached:
            await asyncio.gather(*[cached.get("a") for _ in range(5)])
            await idle(cached)
            assert rows.loads == 1
            await cached.get("a")
            await idle(cached)
            assert rows.loads == 2


@EVERYWHERE
@pytest.mark.invariant(8)
async def test_the_time_of_a_load_is_kept_with_its_value(url: str, app: str, database: Home) -> None:
    """A process that has loaded nothing knows how long a load takes, and decides by it."""
    clock, rng = ManualClock(), Drawn()
    async with (
        source(database, a=1) as rows,
        opened(url) as client,
    ):

        async def slow(key: str) -> Any:
            value = await rows.load(key)
            clock.jump(2)
            return value

        async with (
            cache(url, app, slow, clock=clock, beta=1) as here,
            cache(url, app, rows, rng=rng, beta=1) as there,
        ):
            await here.get("a")
            for left, drawn, refreshed in ((20, 9.5, 0), (8, 3.9, 0), (8, 4.1, 1)):
                await age(client, app, "a", left=left)
                rng.next = drawn
                assert await there.get("a") == 1
                await idle(there)
                assert rows.loads == 1 + refreshed, f"{left} s left, {drawn} drawn"
            await age(client, app, "a", left=8)
            rng.next = 4.1  # loads are fast now
            assert await there.get("a") == 1
            await idle(there)
            assert rows.loads == 2
            await rows.delete("a")
            await here.invalidate("a")
            assert await here.get("a") is None  # here a load takes 2 s, and None has no place for that
            await age(client, app, "a", left=4)
            await client.delete(key_of(app, role="pause"))
            here._rng = rng
            rng.next = 2.1
            assert await here.get("a") is None
            await idle(here)
            assert rows.loads == 4


# 9: misses, bad input, no Redis


@EVERYWHERE
@pytest.mark.invariant(9)
async def test_what_cannot_be_read_again_is_not_kept(url: str, app: str, database: Home) -> None:
    """A typed error before anything is written; in a refresh the old value stays."""
    await check_only_what_can_be_read_again_is_kept(url, app, database, RefreshAhead)


@ONCE
@pytest.mark.naive(9)
async def test_lenient_encoding_surprises_later(url: str, app: str, database: Home) -> None:
    """A set is kept, and comes back as text."""
    with pytest.raises(AssertionError, match="kept: set"):
        await check_only_what_can_be_read_again_is_kept(url, app, database, naive.KeepsAnything)


@ONCE
@pytest.mark.invariant(9)
async def test_an_uncacheable_value_is_told_as_it_was_loaded(url: str, app: str, database: Home) -> None:
    """The error has the value that was loaded, unwrapped; listeners that raise hurt nobody."""

    def listener(_: object) -> None:
        raise RuntimeError("a listener")

    async def load(_: str) -> Any:
        return {1}

    async with source(database, a=1) as rows, cache(url, app, load, on_event=listener) as cached:
        with pytest.raises(NotCacheable) as told:
            await cached.get("a")
        assert told.value.value == {1}
        assert told.value.reason == "the codec raised TypeError"
        with pytest.raises(NotCacheable) as of_another:
            async with cache(url, app, cached.get, name="outer") as outer:
                await outer.get("a")
        assert of_another.value.value == {1}
        async with cache(url, app, rows, on_event=listener) as heard, opened(url) as client:
            await heard.get("a")
            await age(client, app, "a")
            assert await heard.get("a") == 1
            await idle(heard)
            assert rows.loads == 2


@ONCE
@pytest.mark.invariant(9)
@pytest.mark.fault("Redis swallows every answer while values are due")
async def test_without_redis_the_source_answers(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """One time-out for all, no refresh, and every answer is the source's."""
    book = ledger(bound="one time-out of 0.3 s, no refresh")
    await check_a_lost_cache_is_the_sources_business(url, app, database, RefreshAhead, book)
    book.held("the source answers; nothing is refreshed that could not be kept")
    with pytest.raises(AssertionError, match="20 of 20 readers have no answer") as told:
        await check_a_lost_cache_is_the_sources_business(url, f"{app}-naive", database, naive.WaitsForRedis)
    book.naive(f"a GET without a time-out: {first_line(told)}")


@ONCE
@pytest.mark.invariant(9)
@pytest.mark.fault("the reply to a command of a refresh is lost")
async def test_a_lost_reply_costs_a_pause_at_most(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """Whichever reply is lost, of read, claim, lease or fill: readers get the old value, then the new."""
    book = ledger(bound="no wrong value read, no lease left")
    await check_a_lost_reply_costs_a_pause_at_most(url, app, database, RefreshAhead, book)
    book.held("whoever may hold a lease unheard gives it back; the next attempt is one pause later")
    with pytest.raises(AssertionError, match="5 of 20 keys are held by a lease") as told:
        await check_a_lost_reply_costs_a_pause_at_most(
            url, f"{app}-naive", database, naive.ForgetsUnheardLeases
        )
    book.naive(f"a lost reply is taken for a no: {first_line(told)}")


@ONCE
@pytest.mark.invariant(7)
@pytest.mark.fault("a reader is cancelled at every step")
async def test_cancellation_of_readers_at_every_step_leaks_nothing(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """A reader that goes takes no refresh along; no connection is lent out, no lease or place is lost."""
    book = ledger(bound="no lease, place or connection left")
    await check_a_reader_that_goes_takes_nothing_along(url, app, database, RefreshAhead, book)
    book.held("a refresh is nobody's: it goes on, and the next one has its place")
    with pytest.raises(AssertionError, match=r"\d+ refreshes in 40 cancellations ended") as told:
        await check_a_reader_that_goes_takes_nothing_along(
            url, f"{app}-naive", database, naive.InTheReadersTask
        )
    book.naive(f"a refresh in the reader's own task: {first_line(told)}")


@ONCE
@pytest.mark.invariant(7)
async def test_closing_at_every_step_leaks_nothing(url: str, app: str, database: Home) -> None:
    """Wherever a refresh is when its cache is closed: no lease stays, and no connection is lent out."""
    async with source(database, a=1) as rows, opened(url) as client, cache(url, app, rows) as there:
        await there.get("a")
        for steps in range(40):
            async with cache(url, app, rows) as cached:
                await age(client, app, "a")
                await client.delete(key_of(app, role="pause"))
                assert await cached.get("a") == 1
                for _ in range(steps):
                    await asyncio.sleep(0)
                await cached.aclose()
                assert cached._refresher._tasks == {}
                assert leaks.in_use(cached._entries._client) == 0
            assert await client.exists(key_of(app, role="lock")) == 0
            assert await there.peek("a") == 1


# keys, events, misses, what else the face promises


@EVERYWHERE
async def test_keys_hold_any_text_and_each_has_a_slot_of_its_own(url: str, app: str, database: Home) -> None:
    """All four keys of one thing are in one slot, and none of them lives for ever."""
    wanted = ["42", "a/b", "{x}", "a:b", "%7B", "é", "x" * 500, "*", " "]

    async def load(key: str) -> Any:
        return key

    async with source(database), cache(url, app, load) as cached, opened(url) as client:
        for key in wanted:
            assert await cached.get(key) == key
            names = cached._entries._store.keys(key)
            await client.pexpire(names[0], 5_000)
            assert await cached.get(key) == key
            await idle(cached)
            pause = cached._entries._space.key(f"users/{key}", "pause")
            assert await client.exists(pause) == 1
            assert len({key_slot(name.encode()) for name in [*names, pause]}) == 1
        assert len({cached._entries._store.keys(key)[0] for key in wanted}) == len(wanted)
        assert await leaks.immortal_keys(client, app) == []


@EVERYWHERE
async def test_a_missing_thing_is_refreshed_as_a_value_is(url: str, app: str, database: Home) -> None:
    """None is due in the last part of `negative_ttl`, and becomes a value without anybody's waiting."""
    async with source(database) as rows, cache(url, app, rows) as cached, opened(url) as client:
        assert await cached.get("a") is None
        assert 8_000 < await client.pttl(key_of(app)) <= 10_000
        assert await cached.peek("a") is None
        assert await cached.peek("b") is MISS
        await rows.put(a=1)
        await age(client, app, "a", left=6)
        assert await cached.get("a") is None
        await idle(cached)
        assert rows.loads == 1, "6 of 10 seconds are left, and it is due for the last 5"
        await age(client, app, "a", left=4)
        assert await cached.get("a") is None
        await idle(cached)
        assert await cached.get("a") == 1
        assert rows.loads == 2


@EVERYWHERE
async def test_a_reader_that_misses_joins_the_refresh_under_way(url: str, app: str, database: Home) -> None:
    """A value that ends while it is refreshed is loaded once for all; closing does not take it from them."""
    async with (
        source(database, a="old") as rows,
        cache(url, app, rows) as cached,
        opened(url) as client,
    ):
        await cached.get("a")
        await age(client, app, "a")
        await rows.put(a="new")
        rows.open.clear()
        assert await cached.get("a") == "old"
        await eventually(lambda: rows.running == 1, within=5)
        await client.pexpireat(key_of(app), 1)
        late = [asyncio.create_task(cached.get("a")) for _ in range(10)]
        for _ in range(20):
            await client.ping()
        assert not any(call.done() for call in late)
        await cached.aclose()
        rows.open.set()
        assert await asyncio.gather(*late) == ["new"] * 10
        assert rows.loads == 2


@ONCE
async def test_events_tell_the_story_of_a_refresh(url: str, app: str, database: Home) -> None:
    """Begun with so much left, then kept, failed, or not kept."""
    heard, clock = Recorder(), ManualClock()
    async with (
        source(database, a=1) as rows,
        cache(url, app, rows, on_event=heard, clock=clock) as cached,
        opened(url) as client,
    ):
        await cached.get("a")
        for error in (None, OSError()):
            await age(client, app, "a")
            rows.errors = {"a": error} if error else {}
            await cached.get("a")
            await idle(cached)
            await end_the_pause(client, app, clock, "a")
        await age(client, app, "a")
        await client.set(key_of(app, role="lock"), "another process", px=60_000)
        await cached.get("a")
        await idle(cached)
    assert heard.names() == [
        *("CacheMissed", "Loaded"),
        *("CacheHit", "RefreshBegan", "Loaded", "Refreshed"),
        *("CacheHit", "RefreshBegan", "LoadFailed", "RefreshFailed"),
        *("CacheHit", "RefreshBegan", "Refreshed"),
    ]
    assert [event.kept for event in heard.of(Refreshed)] == [True, False]
    assert 4 < heard.of(RefreshBegan)[0].left_seconds <= 5
    assert heard.of(RefreshFailed)[0].error == "OSError"
    assert began(heard) == 3
    assert heard.of(RefreshPutOff) == []


@ONCE
async def test_a_load_that_asks_its_own_cache_is_refused_in_a_refresh_too(
    url: str, app: str, database: Home
) -> None:
    """It fails with ReentrantLoad; what the load of another cache has begun here is no part of that load."""
    heard = Recorder()
    own: list[Any] = []

    async def outer_load(key: str) -> Any:
        return await own[0].get(key)

    async def inner_load(key: str) -> Any:
        return await own[-1].get(key) if len(own) > 1 else key

    async with (
        source(database),
        opened(url) as client,
        cache(url, app, inner_load, on_event=heard) as inner,
        cache(url, app, outer_load, name="outer") as outer,
    ):
        own.append(inner)
        await inner.get("a")
        await age(client, app, "a")
        own.append(inner)
        assert await outer.get("a") == "a"  # its load reads `inner`, which begins a refresh
        await idle(inner)
        assert [event.error for event in heard.of(RefreshFailed)] == ["ReentrantLoad"]
        await client.delete(key_of(app, role="pause"))
        own[-1] = outer
        inner._refresher._left_alone.clear()
        await inner.get("a")  # its load reads `outer`, from a refresh that is in no load
        await idle(inner)
        assert len(heard.of(Refreshed)) == 1


async def test_a_failed_invalidation_is_told_and_made_good(server: Server, app: str) -> None:
    """The caller hears for how long others may read the old value; this process reads nothing before."""
    rows = {"a": "old"}

    async def load(key: str) -> Any:
        return rows[key]

    async with proxy(server.port) as p, cache(p.url, app, load, back_off=0.01, timeout=1) as cached:
        assert await cached.get("a") == "old"
        rows["a"] = "new"
        p.down()
        with pytest.raises(InvalidationFailed, match="may be read for up to 80 s"):
            await cached.invalidate("a")
        assert await cached.get("a") == "new"
        p.up()
        assert await eventually(lambda: cached.peek("a"), within=5) in {"new", MISS}
        assert await cached.get("a") == "new"


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"ttl": 0}, "ttl must be a finite number >= 0.001"),
        ({"ttl": math.nan}, "ttl must be a finite number"),
        ({"negative_ttl": -1}, "negative_ttl must be a finite number >= 0"),
        ({"max_loads": 1}, "max_loads must be a whole number >= 2"),
        ({"max_loads": 8, "max_refreshes": 8}, "max_refreshes must be a whole number >= 1 and <= 7"),
        ({"max_refreshes": 0}, "max_refreshes must be a whole number >= 1"),
        ({"refresh_after": 0.1}, "refresh_after must be a finite number > 0.1 and < 1"),
        ({"refresh_after": 1}, "refresh_after must be a finite number > 0.1 and < 1"),
        ({"refresh_after": None}, "either refresh_after or beta must be given, got None and None"),
        ({"refresh_after": 0.5, "beta": 1}, "either refresh_after or beta must be given, got 0.5 and 1"),
        ({"beta": 0}, "beta must be a finite number > 0"),
        ({"refresh_pause": 0}, "refresh_pause must be a finite number >= 0.001 and <= 30.0, got 0"),
        ({"refresh_pause": 30.1}, "refresh_pause must be a finite number >= 0.001 and <= 30.0, got 30.1"),
        ({"ttl": 10, "refresh_after": 0.9, "refresh_pause": 1.1}, "refresh_pause must be a finite number"),
        ({"beta": 1, "refresh_pause": 54.1}, "refresh_pause must be a finite number >= 0.001 and <= 54.0"),
        ({"lease": "5"}, "lease must be a finite number"),
        ({"jitter": 1}, "jitter must be a finite number >= 0 and < 1"),
        ({"max_bytes": 0}, "max_bytes must be a whole number >= 1, got 0"),
    ],
)
def test_a_bad_policy_names_field_value_and_bound(changes: dict[str, Any], bound: str) -> None:
    """No cache is built from values that could never work."""
    with pytest.raises(ValueError, match=re.escape(bound)):
        policy(**changes)


@pytest.mark.parametrize("jitter", [0, 0.1, 0.9])
def test_no_life_is_longer_than_ttl(jitter: float) -> None:
    """The jitter shortens a life, by a share of `ttl` at most."""
    reading = policy(ttl=60, jitter=jitter, refresh_after=0.95, refresh_pause=1).reading()
    assert reading.ttl * (1 + reading.jitter) == pytest.approx(60)
    assert round(reading.ttl * (1 + reading.jitter) * 1000) <= 60_000
    assert reading.ttl * (1 - reading.jitter) == pytest.approx(60 * (1 - jitter))


@pytest.mark.parametrize("took", [0.0, 0.25, 12_345.678901, 1e9])
def test_the_head_of_a_payload_has_always_the_same_length(took: float) -> None:
    """What a load took is kept in microseconds, up to some hours; the payload follows as it is."""
    data = TimedCodec(JSON).encode(Timed(["x\n"], took))
    assert data[HEAD_BYTES:] == b'["x\\n"]'
    assert TimedCodec(JSON).decode(data) == Timed(["x\n"], min(took, 9_999.999999))


@pytest.mark.parametrize("payload", [b"", b"1", b"0000000001", b"x" * 20, b"00000000xx\n1", b"0000000001\n{"])
def test_what_has_no_head_is_no_entry(payload: bytes) -> None:
    """An entry of another cache, or garbage, is told from a value."""
    with pytest.raises(Unreadable):
        decode(TimedCodec(JSON), b"1 0 +\n" + payload)


@ONCE
async def test_garbage_in_redis_is_a_miss(url: str, app: str, database: Home) -> None:
    """What cannot be read is loaded and written anew."""
    async with source(database, a=1) as rows, cache(url, app, rows) as cached, opened(url) as client:
        for garbage in (b"", b"not an entry", b"1 0 +\n7", b'1 0 +\n"a value without its head"'):
            await client.set(key_of(app), garbage, px=60_000)
            assert await cached.get("a") == 1
            assert await cached.peek("a") == 1
        await client.delete(key_of(app))
        await client.execute_command("RPUSH", key_of(app), "a list")
        assert await cached.get("a") == 1
        assert rows.loads == 5
