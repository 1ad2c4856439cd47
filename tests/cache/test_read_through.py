"""The proof of patterns/cache/read_through: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import pickle
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
from redis.crc import key_slot

from patterns.cache.read_through import (
    MISS,
    BatchLoaded,
    CacheHit,
    Found,
    InvalidationFailed,
    LoadFailed,
    LoadTimedOut,
    NotAllLoaded,
    NotReturned,
    ReadThrough,
    ReentrantLoad,
    StaleServed,
)
from patterns.events import Recorder
from patterns.keyspace import opened
from tests.cache import read_through_faults as faults
from tests.cache import read_through_source as naive
from tests.cache.read_through_checks import (
    CALLERS,
    PROCESSES,
    Make,
    Readers,
    cache,
    check_a_load_that_asks_its_own_cache_is_refused,
    check_failures_hold_nobody_up,
    check_get_all_asks_for_the_misses,
    check_no_older_value_after_an_invalidation,
    check_one_load,
    check_one_load_for_all_processes,
    check_only_what_can_be_read_again_is_kept,
    check_reading_prolongs_nothing,
    check_the_cache_answers_for_the_source,
    check_without_redis_the_source_answers,
    missed,
    outcome_of,
    policy,
    value_key,
)
from tests.cache.read_through_model import AgainstTheModel
from tests.cache.read_through_source import source
from tests.eventually import eventually
from tests.faults import Ledger, proxy

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from patterns.embedded import Server
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


# 1: what the source says


@EVERYWHERE
@pytest.mark.invariant(1)
@pytest.mark.fault("Redis forgets what it had")
async def test_readers_never_see_a_miss_for_what_the_source_has(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """Whatever Redis has or has forgotten, `get` and `get_all` return what the source says."""
    book = ledger()
    await check_the_cache_answers_for_the_source(url, app, database, ReadThrough, book)
    book.held("what is not there is loaded: a lost entry costs a load")
    async with source(database, a=1, b=2, c=3) as rows, cache(url, app, rows, naive.LooksOnlyInRedis) as only:
        got = await only.get_all(list("abc"))
    assert None in got.values()
    book.naive(f"an MGET in place of get_all: None for {list(got.values()).count(None)} of 3 that are there")


@ONCE
@pytest.mark.naive(1)
async def test_an_mget_that_is_not_read_through_hides_what_the_source_has(
    url: str, app: str, database: Home
) -> None:
    """A `get_all` that only looks returns None for what was not loaded yet."""
    with pytest.raises(AssertionError, match="a miss for what the source has"):
        await check_the_cache_answers_for_the_source(url, app, database, naive.LooksOnlyInRedis)


# 2: single flight


@EVERYWHERE
@pytest.mark.invariant(2)
async def test_get_and_get_all_share_one_load(url: str, app: str, database: Home) -> None:
    """However many callers miss a key, and by whichever method, it is loaded once; the rest is bounded."""
    await check_one_load(url, app, database, ReadThrough)


@ONCE
@pytest.mark.naive(2)
@pytest.mark.parametrize(
    ("variant", "complaint"), [(naive.Textbook, r"\d+ loads of 3 keys"), (naive.WithoutBulkhead, "at once")]
)
async def test_a_load_for_each_miss_is_a_thundering_herd(
    url: str, app: str, database: Home, variant: Make, complaint: str
) -> None:
    """Without single flight each caller loads; without a bulkhead a cold start is met by all at once."""
    with pytest.raises(AssertionError, match=complaint):
        await check_one_load(url, app, database, variant)


@pytest.fixture(scope="module")
def readers(server: Server) -> Iterator[Readers]:
    """Processes for the tests that kill none of them."""
    with ExitStack() as stack:
        yield Readers(server, stack)


@pytest.mark.invariant(2)
@pytest.mark.fault("200 callers in 2 processes miss the same key at once, half of them by get_all")
async def test_processes_share_one_load(
    readers: Readers, server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """The key is loaded once for both processes, and all callers get it."""
    book = ledger(bound="1 load")
    await check_one_load_for_all_processes(readers, server.url, app, "read_through", book)
    book.held("one load: a lease in Redis, one flight in each process")
    with pytest.raises(AssertionError, match="200 loads for 2 processes"):
        await check_one_load_for_all_processes(
            readers, server.url, f"{app}-naive", "textbook", book.without("get, load, set")
        )


@pytest.mark.invariant(2)
async def test_processes_share_one_load_on_a_cluster(
    readers: Readers, cluster: Any, app: str, ledger: Callable[..., Ledger]
) -> None:
    """It is the same where the keys of a `get_all` are on several nodes."""
    _, loads, got = await readers.herd(cluster.url, app, "read_through")
    assert (loads, [right for right, _ in got]) == (1, [CALLERS] * PROCESSES)


@pytest.mark.naive(2)
async def test_single_flight_in_the_process_is_one_load_for_each(
    readers: Readers, server: Server, app: str
) -> None:
    """Without the lease each process loads once."""
    with pytest.raises(AssertionError, match="2 loads for 2 processes"):
        await check_one_load_for_all_processes(readers, server.url, app, "local")


@pytest.mark.invariant(3)
@pytest.mark.fault("the process that loads is killed (SIGKILL)")
async def test_a_killed_loader_is_replaced_within_its_lease(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """The other process's callers get the value after one lease, by one further load."""
    lease = 0.5
    book = ledger(duplicated=1, bound=f"a lease of {lease} s")
    with ExitStack() as stack:
        _, loads, got = await Readers(server, stack).herd(
            server.url, app, "read_through", lease=lease, kill=True
        )
    book.injected()
    book.acked("load")
    book.effect("load", loads)
    assert loads == 2
    ((right, seconds),) = got
    assert right == CALLERS
    assert seconds < lease + 2
    book.held("its lease ends by itself, and one caller of another process loads")


# 3: failures, cancellation, None


@EVERYWHERE
@pytest.mark.invariant(3)
async def test_a_load_that_fails_holds_nobody_up(url: str, app: str, database: Home) -> None:
    """Cancelled, failed and hanging loads free lease and callers, and leave no trace; None is a value."""
    await check_failures_hold_nobody_up(url, app, database, ReadThrough)


@ONCE
@pytest.mark.naive(3)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (naive.FirstCallerLoads, "the others got"),
        (naive.KeepsTheError, "an exception was cached"),
    ],
)
async def test_loads_owned_by_a_caller_die_with_it(
    url: str, app: str, database: Home, variant: Make, complaint: str
) -> None:
    """All who wait fail with the first caller; and a kept error outlives its cause."""
    with pytest.raises(AssertionError, match=complaint):
        await check_failures_hold_nobody_up(url, app, database, variant)


@pytest.mark.invariant(3)
@pytest.mark.fault("the load raises, while 10 callers wait for it")
@ONCE
async def test_errors_are_told_and_not_kept(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """Each of ten callers gets the error, and the next one the value."""
    book = ledger(bound="no error kept")
    async with source(database, **{str(n): n for n in range(50)}) as rows:
        for make, each in {
            ReadThrough: book,
            naive.KeepsTheError: book.without("the error kept like a value"),
        }.items():
            async with cache(url, app, rows, make, name=make.__name__) as cached:
                for n in range(50 if make is ReadThrough else 10):
                    rows.errors = {str(n): OSError()}
                    got = await asyncio.gather(*[outcome_of(cached.get(str(n))) for _ in range(10)])
                    assert got == ["OSError"] * 10
                    each.injected()
                    each.acked(n)
                    rows.errors = {}
                    if await outcome_of(cached.get(str(n))) == n:
                        each.effect(n)
    book.held("all who wait hear it; the next caller loads anew")


@pytest.mark.invariant(3)
@pytest.mark.fault("the load hangs")
@ONCE
async def test_a_load_that_hangs_ends_with_its_lease(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """Ten callers of 20 hanging loads get LoadTimedOut when the lease ends, and the next ones the value."""
    await faults.hang(url, app, database, ledger)


@pytest.mark.invariant(3)
@pytest.mark.fault("a caller of get_all is cancelled at every step")
@ONCE
async def test_cancellation_at_every_step_leaks_nothing(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """After each of 60 cancellations no connection is lent out, no lease is held, and the next call works."""
    await faults.cancel_at_every_step(url, app, database, ledger)


@ONCE
@pytest.mark.invariant(3)
async def test_a_key_that_nobody_waits_for_is_not_loaded_on(url: str, app: str, database: Home) -> None:
    """The caller that wanted two keys has left, the one that wanted one of them is served and goes."""
    heard = Recorder()
    async with source(database, a=1, b=2) as rows:
        rows.open.clear()
        async with cache(url, app, rows, on_event=heard) as cached, opened(url) as client:
            await client.set(value_key(app, "b", "lock"), "another process", px=60_000)
            both = asyncio.create_task(cached.get_all(["a", "b"]))
            await eventually(lambda: rows.running == 1, within=5)
            one = asyncio.create_task(cached.get("a"))
            await eventually(lambda: missed(heard, "a") == 2, within=5)
            both.cancel()
            await asyncio.wait([both])
            rows.open.set()
            assert await one == 1
            await eventually(lambda: not cached._loads._flights._tasks, within=5)
            assert rows.loaded == ["a"]


# 4: get_all


@EVERYWHERE
@pytest.mark.invariant(4)
async def test_get_all_loads_exactly_the_misses_and_keeps_the_good(
    url: str, app: str, database: Home
) -> None:
    """In batches, each once; complete, in order; the errors of some keys are those keys' alone."""
    await check_get_all_asks_for_the_misses(url, app, database, ReadThrough)


@ONCE
@pytest.mark.naive(4)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (naive.AsksForAll, "asked for 26 keys, 24 were missing"),
        (naive.KeepsNoneForTheOmitted, "24 values, 23 are good"),
        (naive.AllOrNothing, r"1\d values, 23 are good"),
        (naive.OneExchange, "the others are lost"),
    ],
)
async def test_bulk_loads_that_make_it_easy_make_it_wrong(
    url: str, app: str, database: Home, variant: Make, complaint: str
) -> None:
    """All are loaded where one is missing, None is kept for what never came, one error loses the others."""
    with pytest.raises(AssertionError, match=complaint):
        await check_get_all_asks_for_the_misses(url, app, database, variant)


@pytest.mark.fault("load_all fails for single keys, or says nothing of them")
@ONCE
async def test_keys_that_fail_take_no_others_along(
    url: str, app: str, database: Home, rng: random.Random, ledger: Callable[..., Ledger]
) -> None:
    """In 40 lists of 20 keys, 3 of each fail: the other 680 come, and are kept."""
    book = ledger(bound="680 good keys kept")
    async with source(database, **{str(n): n for n in range(20)}) as rows:
        books = {ReadThrough: book, naive.OneExchange: book.without("MGET, one question, MSET")}
        for make, each in books.items():
            async with cache(url, app, rows, make, name=make.__name__) as cached:
                for number in range(40 if make is ReadThrough else 10):
                    await cached.invalidate(*map(str, range(20)))
                    first, second, third = map(str, rng.sample(range(20), 3))
                    rows.errors, rows.silent = {first: OSError(), second: ValueError()}, {third}
                    each.injected(3)
                    with suppress(Exception):
                        await cached.get_all(map(str, range(20)))
                    for key in {*map(str, range(20))} - {first, second, third}:
                        each.acked((number, key))
                        if await cached.peek(key) == int(key):
                            each.effect((number, key))
                    assert make is not ReadThrough or await cached.peek(third) is MISS
    book.held("NotAllLoaded has values and errors; a key that was not returned is not kept as None")


@EVERYWHERE
async def test_without_load_all_each_miss_is_a_load(url: str, app: str, database: Home) -> None:
    """`get_all` makes do with `load`, at most `max_loads` at once."""
    async with (
        source(database, **{str(n): n for n in range(20)}) as rows,
        cache(url, app, rows, load_all=None, max_loads=3) as cached,
    ):
        rows.open.clear()
        call = asyncio.create_task(cached.get_all(map(str, range(20))))
        await eventually(lambda: rows.running == 3, within=5)
        rows.open.set()
        assert await call == {str(n): n for n in range(20)}
        assert sorted(map(len, rows.calls)) == [1] * 20
        assert rows.most == 3


@ONCE
async def test_lists_that_overlap_ask_for_nothing_twice(url: str, app: str, database: Home) -> None:
    """Each key lands by itself: who wants only a part of what is under way gets it with that part."""
    async with source(database, **{str(n): n for n in range(6)}) as rows:
        rows.open.clear()
        async with cache(url, app, rows) as cached:
            lists = [["0", "1", "2"], ["2", "3"], ["3", "4", "0"], ["5"]]
            calls = [asyncio.create_task(cached.get_all(keys)) for keys in lists]
            await eventually(lambda: len(rows.loaded) == 6 and rows.runs(rows.loads), within=5)
            rows.open.set()
            assert await asyncio.gather(*calls) == [{key: int(key) for key in keys} for keys in lists]
            assert sorted(rows.loaded) == ["0", "1", "2", "3", "4", "5"]


@ONCE
async def test_what_load_all_may_not_return_is_told(url: str, app: str, database: Home) -> None:
    """A list in place of a mapping is a TypeError for all keys; keys nobody asked for are left alone."""

    async def wrong(_: list[str]) -> Any:
        return [1, 2]

    async def more(keys: list[str]) -> Any:
        return dict.fromkeys([*keys, "c"], 1)

    async with source(database) as rows, cache(url, app, rows.load, load_all=wrong) as cached:
        with pytest.raises(NotAllLoaded, match="2 of 2 keys could not be loaded: 'a', 'b'") as told:
            await cached.get_all(["a", "b"])
        (error,) = told.value.exceptions
        assert str(error) == "load_all must return a mapping of keys to values, got list"
        with pytest.raises(TypeError, match="takes several keys, got the text 'ab'"):
            await cached.get_all("ab")
    async with cache(url, app, more, load_all=more) as cached:
        assert await cached.get_all(["a", "b"]) == {"a": 1, "b": 1}
        assert await cached.peek("c") is MISS


# 5: an invalidation beats a load


@EVERYWHERE
@pytest.mark.invariant(5)
async def test_an_invalidation_beats_a_load_that_is_under_way(url: str, app: str, database: Home) -> None:
    """Neither the cache nor a load that was joined gives the old value to who came after the write."""
    await check_no_older_value_after_an_invalidation(url, app, database, ReadThrough)


@ONCE
@pytest.mark.naive(5)
@pytest.mark.parametrize("variant", [naive.OneExchange, naive.KeepsWhateverItLoaded, naive.JoinsAnyLoad])
async def test_loads_that_were_overtaken_bring_the_old_value_back(
    url: str, app: str, database: Home, variant: Make
) -> None:
    """Into the cache where no generation is checked, to late callers where they join any load."""
    with pytest.raises(AssertionError, match="the old value"):
        await check_no_older_value_after_an_invalidation(url, app, database, variant)


@ONCE
@pytest.mark.invariant(5)
@pytest.mark.fault("a write while a load of the same key is under way")
async def test_writes_that_race_with_loads_leave_nothing_old(
    url: str, app: str, database: Home, rng: random.Random, ledger: Callable[..., Ledger]
) -> None:
    """Of 300 races between a load and a write, none leaves the old value in the cache."""
    await faults.race_writes_with_loads(url, app, database, rng, ledger)


# 6: a load within a load


@EVERYWHERE
@pytest.mark.invariant(6)
async def test_a_load_that_asks_its_own_cache_is_refused(url: str, app: str, database: Home) -> None:
    """At once, for whichever key and by whichever way, and nothing stays taken."""
    await check_a_load_that_asks_its_own_cache_is_refused(url, app, ReadThrough)


@ONCE
@pytest.mark.naive(6)
async def test_without_marks_a_load_waits_for_itself(url: str, app: str, database: Home) -> None:
    """Nothing would end it but the lease."""
    with pytest.raises(AssertionError, match="same: it waits for itself"):
        await check_a_load_that_asks_its_own_cache_is_refused(url, app, naive.WithoutMarks)


@ONCE
async def test_what_a_load_leaves_behind_is_no_part_of_it(url: str, app: str, database: Home) -> None:
    """A task that a load started may ask the cache when the load has ended; another cache may always."""
    left: list[asyncio.Task[Any]] = []
    go_on = asyncio.Event()

    async def later() -> Any:
        await go_on.wait()
        return await cached.get("a")

    async def load(key: str) -> Any:
        left.append(asyncio.create_task(later()))
        return [key, await other.get(key)]

    async def plain(key: str) -> Any:
        return key

    async with cache(url, app, load) as cached, cache(url, app, plain, name="others") as other:
        assert await cached.get("a") == ["a", "a"]
        go_on.set()
        assert await left[0] == ["a", "a"]


# 7: the end of a life


@EVERYWHERE
@pytest.mark.invariant(7)
async def test_reading_does_not_make_an_entry_live_longer(url: str, app: str, database: Home) -> None:
    """It ends within the jitter of its ttl however often it is read; then it is loaded anew."""
    await check_reading_prolongs_nothing(url, app, database, ReadThrough)


@ONCE
@pytest.mark.naive(7)
async def test_sliding_expiry_keeps_what_is_popular_for_ever(url: str, app: str, database: Home) -> None:
    """A value that is read often enough is never loaded again."""
    with pytest.raises(AssertionError, match="reading made it live longer"):
        await check_reading_prolongs_nothing(url, app, database, naive.Sliding)


# 8: Redis down, slow, or full of nonsense


@ONCE
@pytest.mark.invariant(8)
@pytest.mark.fault("Redis answers nothing (black hole)")
async def test_without_answers_from_redis_the_source_answers(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """Every caller gets its values after one time-out; the source sees 4 loads at once at most."""
    book = ledger(bound="one time-out for all callers, at most 4 loads at once")
    await check_without_redis_the_source_answers(url, app, database, ReadThrough, book)
    for number in range(40):
        book.acked(number)
        book.effect(number)
    book.held("each key is loaded once, behind a bulkhead; Redis is left alone meanwhile")
    with pytest.raises(AssertionError, match="callers got") as broken:
        await check_without_redis_the_source_answers(url, f"{app}-naive", database, naive.Textbook)
    book.naive(f"get, load, set: {str(broken.value).splitlines()[0]}")


@ONCE
@pytest.mark.naive(8)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (naive.Textbook, "callers got TimeoutError"),
        (naive.WithoutBulkhead, r"\d+ loads at once"),
        (naive.AsksEachTime, "the time-out was paid on every call"),
    ],
)
async def test_a_cache_that_must_answer_takes_everything_down(
    url: str, app: str, database: Home, variant: Make, complaint: str
) -> None:
    """Callers get Redis's error, or the source gets everybody, or each call waits for the time-out."""
    with pytest.raises(AssertionError, match=complaint):
        await check_without_redis_the_source_answers(url, app, database, variant)


@EVERYWHERE
@pytest.mark.invariant(8)
@pytest.mark.fault("nonsense, or another type, where values should be")
async def test_what_cannot_be_read_is_a_miss_and_goes(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """No bytes in the cache make a read of a list fail, and none of them stay there."""
    await faults.read_nonsense(url, app, database, ledger)


@pytest.mark.invariant(8)
async def test_every_way_to_ask_is_answered_while_redis_is_left_alone(app: str) -> None:
    """Nobody answers, and then nobody asks any more: each method does without."""
    async with cache("redis://127.0.0.1:1", app, faults.one, back_off=60) as cached:
        for _ in range(2):
            assert await cached.get("a") == 1
            assert await cached.found("a") == Found(1, 0.0)
            assert await cached.get_all(["a"]) == {"a": 1}
            assert await cached.get_all(["a", "b"]) == {"a": 1, "b": 1}
            assert await cached.peek("a") is MISS
            assert not await cached.refresh("a", ahead=1)


@EVERYWHERE
@pytest.mark.invariant(8)
@pytest.mark.parametrize("stale", [{}, {"stale_if_error": 5, "stale_on": (OSError,)}])
async def test_another_type_is_replaced_also_where_nothing_else_is_there(
    url: str, app: str, database: Home, stale: dict[str, Any]
) -> None:
    """A list where each value should be is no refusal of Redis: one load, and from then on hits."""
    async with source(database, a=1, b=2) as rows, cache(url, app, rows, **stale) as cached:
        for keys in (["a"], ["a", "b"]):
            for key in keys:
                await cached.invalidate(key)
                await cached._store._client.execute_command("RPUSH", value_key(app, key), "a list")
            rows.calls.clear()
            for _ in range(3):
                assert await cached.get_all(keys) == {key: "ab".index(key) + 1 for key in keys}
            assert rows.calls == [keys], "it was not replaced"


@ONCE
@pytest.mark.invariant(3, 8)
@pytest.mark.parametrize("ask", ["get", "get_all", "refresh"])
async def test_a_lease_that_nobody_heard_of_holds_nobody_up(
    url: str, app: str, database: Home, ask: str
) -> None:
    """The reply that gives a lease is lost: it is given back, and another process need not wait it out."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    async with (
        source(database, a=1, b=2) as rows,
        proxy(port) as p,
        cache(p.url, app, rows, lease=60) as here,
        cache(url, app, rows, lease=60) as there,
    ):
        await there.get_all(["c", "d"])  # the server knows the scripts
        with p.lose_reply(b"EVALSHA") as toxic:
            if ask == "refresh":
                assert not await here.refresh("a", ahead=1)
            elif ask == "get":
                assert await here.get("a") == 1
            else:
                assert await here.get_all(["a", "b"]) == {"a": 1, "b": 2}
            assert toxic.hits == 1
        async with asyncio.timeout(10):
            assert await there.get_all(["a", "b"]) == {"a": 1, "b": 2}


@pytest.mark.invariant(8)
@pytest.mark.fault("Redis is killed, and comes back empty")
async def test_redis_that_comes_back_is_filled_again(
    fresh_server: Server, app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """Lost entries are loaded again; nobody gets anything else than what the source says meanwhile."""
    await faults.kill_redis(fresh_server, app, tmp_path, ledger)


@pytest.mark.invariant(8)
@pytest.mark.fault("a primary of a cluster is killed while lists are read")
async def test_a_dead_primary_costs_loads_and_nothing_else(
    app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """Every list is right before, during and after the failover; then all of it is cached again."""
    await faults.kill_a_primary(app, tmp_path, ledger)


@ONCE
@pytest.mark.invariant(8)
@pytest.mark.fault("the reply to a command is lost")
async def test_a_lost_reply_leaves_the_cache_right(
    url: str, app: str, database: Home, ledger: Callable[..., Ledger]
) -> None:
    """Whichever reply is lost, of a command or of a pipeline, readers get the present values."""
    await faults.lose_replies(url, app, database, ledger)


@ONCE
@pytest.mark.invariant(8)
async def test_scripts_that_the_server_forgot_are_taught_again(url: str, app: str, database: Home) -> None:
    """SCRIPT FLUSH between two lists: a pipeline that met NOSCRIPT is sent once more, whole."""
    async with (
        source(database, a=1, b=2) as rows,
        cache(url, app, rows) as cached,
        opened(url) as client,
    ):
        for _ in range(3):
            await client.script_flush()
            assert await cached.get_all(["a", "b"]) == {"a": 1, "b": 2}
            assert [await cached.peek(key) for key in "ab"] == [1, 2]
            await cached.invalidate("a", "b")
        assert rows.loads == 3


# stale if error


@EVERYWHERE
async def test_expired_values_stand_in_for_loads_that_failed(url: str, app: str, database: Home) -> None:
    """In a list too, for the errors that were named, in their window, and never once invalidated."""
    heard = Recorder()
    options: dict[str, Any] = {"ttl": 10, "jitter": 0, "stale_if_error": 60, "stale_on": (ConnectionError,)}
    async with (
        source(database, a=1, b=2, c=3) as rows,
        cache(url, app, rows, on_event=heard, **options) as cached,
        opened(url) as client,
    ):
        assert await cached.get_all(list("abc")) == {"a": 1, "b": 2, "c": 3}
        assert 9 < (await cached.found("a")).left <= 10
        for key in "abc":
            await client.pexpire(value_key(app, key), 30_000)
        assert [await cached.peek(key) for key in "abc"] == [MISS] * 3
        rows.errors = {"a": ConnectionError(), "b": LookupError()}
        with pytest.raises(NotAllLoaded) as told:
            await cached.get_all(list("abc"))
        assert told.value.values == {"a": 1, "c": 3}
        assert list(told.value.errors) == ["b"]
        (served,) = heard.of(StaleServed)
        assert served.stale_seconds == pytest.approx(30, abs=2)
        assert await cached.get("a") == 1
        assert await outcome_of(cached.refresh("a", ahead=1)) == "ConnectionError"
        await cached.invalidate("a")
        assert await outcome_of(cached.get("a")) == "ConnectionError"


# 9: what cannot be kept, what can be no key


@EVERYWHERE
@pytest.mark.invariant(9)
async def test_what_cannot_be_read_again_is_not_kept(url: str, app: str, database: Home) -> None:
    """A typed error for the bad ones alone, before anything is written; bad keys are refused at once."""
    await check_only_what_can_be_read_again_is_kept(url, app, database, ReadThrough)


@ONCE
@pytest.mark.naive(9)
async def test_lenient_encoding_surprises_later(url: str, app: str, database: Home) -> None:
    """A set comes back as text."""
    with pytest.raises(AssertionError, match=r"kept: \['nan', 'set', 'surrogate'\]"):
        await check_only_what_can_be_read_again_is_kept(url, app, database, naive.KeepsAnything)


# keys, events, errors, the hooks of Refresh-Ahead


@EVERYWHERE
async def test_keys_hold_any_text_and_each_has_a_slot_of_its_own(url: str, app: str, database: Home) -> None:
    """All keys of one thing are in one slot; a list of strange ones is read on a cluster as on one server."""
    wanted = ["42", "a/b", "{x}", "a:b", "%7B", "é", "x" * 500, "*", " "]

    async def load(key: str) -> Any:
        return key

    async with source(database), cache(url, app, load) as cached, cache(url, app, load, name="u2") as other:
        slots = {key: {key_slot(name.encode()) for name in cached._store.keys(key)} for key in wanted}
        assert all(len(each) == 1 for each in slots.values())
        assert len(set.union(*slots.values())) == len(wanted)
        assert await cached.get_all(wanted) == {key: key for key in wanted}
        assert [await cached.peek(key) for key in wanted] == wanted
        assert {await other.peek(key) for key in wanted} == {MISS}


@ONCE
async def test_events_tell_the_story_of_a_list(url: str, app: str, database: Home) -> None:
    """Each key has its hit or its miss, and its load; a batch is told once."""
    heard = Recorder()
    async with source(database, a=1, b=2) as rows, cache(url, app, rows, on_event=heard) as cached:
        await cached.get("a")
        rows.errors = {"c": OSError()}
        with pytest.raises(NotAllLoaded):
            await cached.get_all(["a", "b", "c"])
        await cached.invalidate("a", "b")
    assert heard.names() == [
        *("CacheMissed", "Loaded"),
        *("CacheHit", "CacheMissed", "CacheMissed", "BatchLoaded", "LoadFailed", "Loaded"),
        *("Invalidated", "Invalidated"),
    ]
    assert heard.of(CacheHit) == [CacheHit("users", "a", negative=False)]
    (batch,) = heard.of(BatchLoaded)
    assert (batch.asked, batch.returned) == (2, 1)
    (failed,) = heard.of(LoadFailed)
    assert (failed.entity, failed.error) == ("c", "OSError")


def test_errors_cross_processes_and_show_no_value() -> None:
    """Each error survives pickling with what the caller needs; a group can be taken apart by kind."""
    group = NotAllLoaded({"a": {"secret": 1}}, {"b": OSError("disk"), "c": LoadTimedOut("c", 5.0)})
    for error in (group, NotReturned("a"), ReentrantLoad("b", ("a", "c", "d", "e"))):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), type(again)) == (str(error), type(error))
        assert "secret" not in f"{error} {error!r} {error.args}"
    again = pickle.loads(pickle.dumps(group))
    assert again.values == group.values
    assert str(again.errors["c"]) == "the load of 'c' took longer than its lease of 5 s"
    assert str(group) == "2 of 3 keys could not be loaded: 'b', 'c' (2 sub-exceptions)"
    assert str(ReentrantLoad("b", ("a", "c", "d", "e"))) == (
        "the load of 'a', 'c', 'd' and 1 more asked its own cache for 'b'"
    )
    matched, rest = group.split(LoadTimedOut)
    assert matched is not None
    assert [str(each) for each in matched.exceptions] == [str(group.errors["c"])]
    assert rest is not None
    assert rest.exceptions == (group.errors["b"],)


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [("batch", 0, "whole number >= 1"), ("batch", 1.5, "whole number"), ("ttl", 0, "finite number >= 0.001")],
)
def test_a_bad_policy_names_field_value_and_bound(field: str, value: object, bound: str) -> None:
    """No cache is built from values that could never work."""
    with pytest.raises(ValueError, match=f"{field} must be a {bound}"):
        policy(**{field: value})


async def test_a_failed_invalidation_is_told_and_made_good(server: Server, app: str) -> None:
    """The caller hears for how long others may read the old value; this process reads nothing before."""
    rows = {"a": "old", "b": 1}

    async def load(key: str) -> Any:
        return rows[key]

    async with proxy(server.port) as p, cache(p.url, app, load, back_off=0.01, timeout=1) as cached:
        assert await cached.get_all(["a", "b"]) == {"a": "old", "b": 1}
        rows["a"] = "new"
        p.down()
        with pytest.raises(InvalidationFailed, match="may be read for up to 86 s"):
            await cached.invalidate("a")
        assert await cached.get_all(["a", "b"]) == {"a": "new", "b": 1}
        p.up()
        assert await eventually(lambda: cached.peek("b"), within=5) in {1, MISS}
        assert await cached.get_all(["b", "a"]) == {"b": 1, "a": "new"}


@EVERYWHERE
async def test_a_refresh_loads_ahead_of_the_end_and_only_then(url: str, app: str, database: Home) -> None:
    """Within the window one process loads anew while readers get the old value; the next finds it fresh."""
    async with (
        source(database, a=1) as rows,
        opened(url) as client,
        cache(url, app, rows) as here,
        cache(url, app, rows) as there,
    ):
        first = await here.found("a")
        assert (first.value, 50 < first.left <= 66) == (1, True)
        assert 50 < (await here.found("a")).left <= first.left + 0.001
        assert not await here.refresh("a", ahead=5)
        await client.pexpire(value_key(app, "a"), 4_000)
        await rows.put(a=2)
        rows.open.clear()
        refreshing = asyncio.create_task(here.refresh("a", ahead=5))
        await eventually(lambda: rows.running == 1, within=5)
        assert not await there.refresh("a", ahead=5), "two processes refresh at once"
        assert [await here.get("a"), await there.get("a")] == [1, 1], "a reader waited"
        rows.open.set()
        assert await refreshing
        assert not await there.refresh("a", ahead=5)
        assert [await here.get("a"), await there.get("a")] == [2, 2]
        assert rows.loads == 2


@ONCE
async def test_a_refresh_loses_to_an_invalidation_and_leaves_nothing_when_it_fails(
    url: str, app: str, database: Home
) -> None:
    """What it loaded is not kept; on an error the old entry stays; cancelled, it gives the lease back."""
    async with (
        source(database, a=1) as rows,
        opened(url) as client,
        cache(url, app, rows) as cached,
    ):
        await cached.get("a")
        rows.errors = {"a": OSError()}
        with pytest.raises(OSError):
            await cached.refresh("a", ahead=100)
        assert await cached.peek("a") == 1
        rows.errors = {}
        for end in ("invalidate", "cancel"):
            rows.open.clear()
            refreshing = asyncio.create_task(cached.refresh("a", ahead=100))
            await eventually(lambda: rows.running == 1, within=5)
            if end == "invalidate":
                await cached.invalidate("a")
                missing = asyncio.create_task(cached.get("a"))
                rows.open.set()
                assert not await refreshing
                assert await missing == 1
            else:
                refreshing.cancel()
                await asyncio.wait([refreshing])
                assert rows.running == 0
                assert await client.exists(value_key(app, "a", "lock")) == 0
                assert await cached.peek("a") == 1


@ONCE
async def test_a_miss_that_joins_a_refresh_elsewhere_loads_for_itself(
    url: str, app: str, database: Home
) -> None:
    """A refresh that found another process at work waits for nobody; a reader that missed does."""
    heard = Recorder()
    async with (
        source(database, a=1) as rows,
        opened(url) as client,
        cache(url, app, rows, poll=0.005, on_event=heard) as cached,
    ):
        await client.set(value_key(app, "a", "lock"), "another process", px=60_000)
        refreshing = asyncio.create_task(cached.refresh("a", ahead=1))
        reader = asyncio.create_task(cached.get("a"))
        await eventually(lambda: missed(heard, "a"), within=5)
        assert not await refreshing
        await client.delete(value_key(app, "a", "lock"))
        assert await reader == 1


# all of it against a model

TestAgainstTheModel = AgainstTheModel.TestCase
