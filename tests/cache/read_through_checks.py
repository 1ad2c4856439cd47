"""What is checked of Read-Through and of its naive variants alike; and how they are made."""

from __future__ import annotations

import asyncio
import math
import random
import time
import uuid
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

from patterns.cache.read_through import (
    MISS,
    BatchLoaded,
    CacheMissed,
    Loaded,
    NotAllLoaded,
    NotReturned,
    Policy,
    ReadThrough,
    ReentrantLoad,
)
from patterns.clock import ManualClock
from patterns.events import Recorder
from patterns.keyspace import opened
from tests.cache.read_through_source import source
from tests.eventually import eventually
from tests.faults import Ledger, leaks, proxy
from tests.faults.workers import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import ExitStack

    from patterns.embedded import Server
    from patterns.keyspace import Client
    from tests.postgres import Home

Make = Any  # ReadThrough or a naive variant with the same constructor


def policy(**changes: Any) -> Policy:
    """Return a policy whose time-outs a busy machine does not reach."""
    defaults: dict[str, Any] = {"ttl": 60, "negative_ttl": 10, "max_loads": 200, "lease": 10, "timeout": 5}
    return Policy(**(defaults | changes))


@asynccontextmanager
async def cache(
    url: str, app: str, here: Any, make: Make = ReadThrough, *, name: str = "users", **options: Any
) -> AsyncIterator[Any]:
    """Lend a cache of the source `here` with a client of its own, as one more process would have it."""
    given: dict[str, Any] = {"load": getattr(here, "load", here), "load_all": getattr(here, "load_all", None)}
    for key in ("codec", "clock", "rng", "on_event", "load", "load_all"):
        if key in options:
            given[key] = options.pop(key)
    opening: Any = {"max_connections": 16} | options.pop("opening", {})
    async with opened(url, **opening) as client:
        yield make(name, client, policy(**options), app=app, **given)


def value_key(app: str, key: str = "42", role: str = "value") -> str:
    """Return a key of `key` in the cache `users`."""
    return f"{app}:{{read_through:users/{key}}}:{role}"


async def outcome_of(call: Awaitable[Any]) -> Any:
    """Return what `call` returned, or the name of what it raised."""
    try:
        return await call
    except Exception as error:
        return type(error).__name__


async def check_the_cache_answers_for_the_source(
    url: str, app: str, database: Home, make: Make, book: Ledger | None = None
) -> None:
    """Two readers ask for keys that are there and not there, and meanwhile Redis forgets everything."""
    async with source(database, a=1, b=[2], c={"d": 3}) as rows:
        truth = {"a": 1, "none": None, "b": [2], "c": {"d": 3}}
        async with cache(url, app, rows, make) as here, cache(url, app, rows, make) as there:
            for round_number in range(3):
                for each in (here, there):
                    assert await each.get_all(truth) == truth, "a miss for what the source has"
                    assert {key: await each.get(key) for key in truth} == truth
                if book:
                    book.injected()
                    book.acked(round_number)
                    book.effect(round_number)
                async with opened(url) as client:
                    for key in truth:
                        await client.delete(value_key(app, key))
                await rows.put(b=[round_number])
                truth["b"] = [round_number]


async def check_one_load(url: str, app: str, database: Home, make: Make) -> None:
    """A hundred callers get one key while a hundred others get it among three; then 40 keys at once."""
    heard = Recorder()
    async with source(database, a=1, b=2, c=3, **{str(n): n for n in range(40)}) as rows:
        async with cache(url, app, rows, make, on_event=heard) as cached:
            rows.open.clear()
            calls = [asyncio.create_task(cached.get("a")) for _ in range(100)]
            lists = [asyncio.create_task(cached.get_all(["a", "b", "c"])) for _ in range(100)]
            await eventually(lambda: 200 in (rows.running, len(calls) and missed(heard, "a")), within=20)
            rows.open.set()
            assert await asyncio.gather(*calls) == [1] * 100
            assert await asyncio.gather(*lists) == [{"a": 1, "b": 2, "c": 3}] * 100
            assert sorted(rows.loaded) == ["a", "b", "c"], f"{len(rows.loaded)} loads of 3 keys"
        rows.most = 0
        async with cache(url, app, rows.load, make, max_loads=4) as cached:
            await asyncio.gather(
                *[cached.get(str(n)) for n in range(20)], cached.get_all(map(str, range(40)))
            )
            assert rows.most <= 4, f"{rows.most} loads at once"
            assert len(rows.loaded) == 43


def missed(heard: Recorder, key: str) -> int:
    """Return how many callers have missed a key."""
    return sum(event.entity == key for event in heard.of(CacheMissed))


PROCESSES, CALLERS = 2, 100


class Readers:
    """Processes of 100 callers each, which carry out one order after the other.

    Args:
        server: where the orders are.
        stack: ends the processes.
    """

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.server, self.orders = server, f"orders-{uuid.uuid4().hex}"
        program = "tests.cache.read_through_readers"
        self.workers = [
            stack.enter_context(Worker(program, server.url, self.orders)) for _ in range(PROCESSES)
        ]

    async def herd(
        self, url: str, app: str, kind: str, *, lease: float = 20, kill: bool = False
    ) -> tuple[int, int, list[tuple[int, float]]]:
        """Let them all miss one value; return loads before and after, and what each process got.

        With `kill`, the process that loads is killed while it does.
        """
        order = {"app": app, "kind": kind, "url": url, "lease": f"{lease:g}", "callers": str(CALLERS)}
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
            elif kind != "read_through":
                enough = PROCESSES if kind == "local" else PROCESSES * CALLERS
                await eventually(lambda: loading(more_than=enough - 1), within=20)
            before = len(await loading())
            await client.xadd(f"{app}:gate", {"open": 1})
            got = []
            for worker in self.workers:
                *_, right, seconds = (await worker.said(f"{app} right", within=30)).split()
                got.append((int(right), float(seconds)))
            return before, len(await loading()), got


async def check_one_load_for_all_processes(
    readers: Readers, url: str, app: str, kind: str, book: Ledger | None = None
) -> None:
    """Two processes of a hundred callers each miss one value at the same time."""
    _, loads, got = await readers.herd(url, app, kind)
    if book:
        book.injected(PROCESSES * CALLERS)
        book.acked("load")
        book.effect("load", loads)
    assert [right for right, _ in got] == [CALLERS] * PROCESSES
    assert loads == 1, f"{loads} loads for {PROCESSES} processes"


async def check_failures_hold_nobody_up(url: str, app: str, database: Home, make: Make) -> None:
    """Loads are cancelled, fail, cancel themselves, hang, and find nothing; the next caller is served."""
    heard, clock = Recorder(), ManualClock()
    async with source(database, a=1, c=3, d=4) as rows:
        async with cache(url, app, rows, make, on_event=heard) as here, cache(url, app, rows, make) as there:
            rows.open.clear()
            callers: list[Any] = [asyncio.create_task(here.get("a")) for _ in range(5)]
            callers += [asyncio.create_task(here.get_all(["a"])) for _ in range(5)]
            await eventually(lambda: rows.running and missed(heard, "a") == 10, within=5)
            callers[0].cancel()
            await asyncio.wait(callers[:1])
            rows.open.set()
            got = await asyncio.gather(*callers[1:], return_exceptions=True)
            assert got == [1] * 4 + [{"a": 1}] * 5, f"one was cancelled, the others got {set(map(repr, got))}"

            rows.errors["b"] = OSError("disk")
            errors = await asyncio.gather(*[outcome_of(here.get("b")) for _ in range(5)])
            assert errors == ["OSError"] * 5
            rows.errors.clear()
            await rows.put(b=2)
            assert await outcome_of(here.get("b")) == 2, "an exception was cached"

            rows.errors["c"] = asyncio.CancelledError()
            assert await outcome_of(here.get("c")) == "LoadCancelled"
            rows.errors.clear()
            rows.open.clear()
            alone = asyncio.create_task(here.get_all(["c", "d"]))
            await eventually(lambda: rows.running == 1, within=5)
            alone.cancel()
            await asyncio.wait([alone])
            assert rows.running == 0, "the last caller has left, and its load still runs"
            rows.open.set()
            began = time.monotonic()
            assert await there.get_all(["c", "d"]) == {"c": 3, "d": 4}
            assert time.monotonic() - began < 5, "nobody gave the leases back"

            before = rows.loads
            for _ in range(3):
                assert await here.get("nobody") is None
                assert await here.get_all(["nobody"]) == {"nobody": None}
            assert rows.loads - before == 1, f"what is not there was looked for {rows.loads - before} times"
            assert await here.peek("nobody") is None
            assert await here.peek("never asked for") is MISS
        async with cache(url, app, rows, make, clock=clock, lease=5) as hasty:
            rows.open.clear()
            hangs = asyncio.create_task(outcome_of(hasty.get("e")))
            await eventually(lambda: rows.running == 1, within=5)
            await clock.advance(5)
            assert await hangs == "LoadTimedOut", "a load that hangs"
            rows.open.set()
            async with opened(url) as client:
                assert await client.exists(value_key(app, "e", "lock"), value_key(app, "e")) == 0


async def check_get_all_asks_for_the_misses(url: str, app: str, database: Home, make: Make) -> None:
    """Of 26 keys some are there, some fail, some are not returned, one does not exist, some come twice."""
    heard = Recorder()
    async with (
        source(database, **{str(n): n for n in range(25)}) as rows,
        cache(url, app, rows, make, batch=10, on_event=heard, jitter=0) as cached,
    ):
        for key in ("3", "11"):
            await cached.get(key)
        rows.calls.clear()
        wanted = [*map(str, range(24, -1, -1)), "3", "none", "7", "none"]
        folded = list(dict.fromkeys(wanted))
        misses = [key for key in folded if key not in {"3", "11"}]
        rows.errors = {"5": OSError("5"), "6": LookupError("6")}
        rows.silent = {"7"}
        with pytest.raises(Exception) as told:
            await cached.get_all(wanted)
        good = {key: None if key == "none" else int(key) for key in folded if key not in {"5", "6", "7"}}
        assert isinstance(told.value, NotAllLoaded), f"one failed, and the others are lost: {told.value!r}"
        values = told.value.values
        assert values == good, f"{len(values)} values, {len(good)} are good"
        assert list(values) == list(good), "another order than was asked"
        kinds = {"5": OSError, "6": LookupError, "7": NotReturned}
        assert {key: type(error) for key, error in told.value.errors.items()} == kinds
        asked = sorted(rows.loaded)
        assert asked == sorted(misses), f"asked for {len(asked)} keys, {len(misses)} were missing"
        assert sorted(map(len, rows.calls)) == [4, 10, 10]
        assert [await cached.peek(key) for key in ("5", "6", "7")] == [MISS] * 3, "kept what never came"
        assert {key: await cached.peek(key) for key in good} == good

        rows.calls.clear()
        rows.errors, rows.silent = {}, set()
        assert await cached.get_all(wanted) == good | {"5": 5, "6": 6, "7": 7}
        assert rows.loaded == ["7", "6", "5"]
        assert await cached.get_all([]) == {}
    assert sorted((event.asked, event.returned) for event in heard.of(BatchLoaded)[:3]) == [
        *((4, 4), (10, 7), (10, 10)),
    ]


async def check_no_older_value_after_an_invalidation(url: str, app: str, database: Home, make: Make) -> None:
    """A load of a list began before a write in another process, and ends after it."""
    heard = Recorder()
    async with (
        source(database, a="old", b="old", c=1) as rows,
        cache(url, app, rows, make, on_event=heard) as here,
        cache(url, app, rows) as there,
    ):
        rows.open.clear()
        early = asyncio.create_task(here.get_all(["a", "c"]))
        await eventually(lambda: rows.running == 1, within=5)
        await rows.put(a="new")
        await there.invalidate("a")
        rows.open.set()
        await early
        for each in (here, there):
            assert await each.get("a") == "new", "the old value came back into the cache"
            assert await each.get_all(["c", "a"]) == {"c": 1, "a": "new"}
        assert rows.loaded.count("c") == 1, "what was not written was loaded again"

        # The same, and while the load still runs another caller comes.
        rows.open.clear()
        early = asyncio.create_task(here.get("b"))
        await eventually(lambda: rows.running == 1, within=5)
        await rows.put(b="new")
        await there.invalidate("b")
        heard.events.clear()
        late = asyncio.create_task(here.get_all(["b", "c"]))
        await eventually(lambda: heard.of(CacheMissed), within=5)
        rows.open.set()
        assert await early in {"old", "new"}
        assert await late == {"b": "new", "c": 1}, "a caller that came after it was given the old value"


async def check_a_load_that_asks_its_own_cache_is_refused(url: str, app: str, make: Make) -> None:
    """Loads ask for their own key, for another one, in a list, in a task; all of it in one process."""
    ways: dict[str, Callable[[str], Awaitable[Any]]] = {}

    async def load(key: str) -> Any:
        return await ways[key](key) if key in ways else key

    async def load_all(keys: list[str]) -> Any:
        return {key: await load(key) for key in keys}

    clock = ManualClock()
    async with (
        cache(url, app, load, make, load_all=load_all, clock=clock, max_loads=1, lease=1) as cached,
        opened(url) as client,
    ):
        ways |= {
            "same": cached.get,
            "other": lambda _: cached.get("plain"),
            "list": lambda key: cached.get_all(["plain", key]),
            "found": cached.found,
            "task": lambda key: asyncio.create_task(cached.get(key)),
            "cycle": lambda _: cached.get("cycle back"),
            "cycle back": lambda _: cached.get("cycle"),
        }
        for way in ways:
            call = asyncio.create_task(outcome_of(cached.get(way)))
            await eventually(partial(ended_or_waits, call, clock, client), within=5)
            waits = not call.done()
            call.cancel()
            await asyncio.wait([call])
            await clock.advance(1)  # a load that waits for itself is not left by its last caller
            assert not waits, f"{way}: it waits for itself"
            assert call.result() == "ReentrantLoad"
        with pytest.raises(NotAllLoaded) as told:
            await cached.get_all(["same", "plain"])
        (error,) = told.value.exceptions
        assert isinstance(error, ReentrantLoad)
        assert await cached.get("plain") == "plain", "the place behind the bulkhead is gone"


async def ended_or_waits(call: asyncio.Task[Any], clock: ManualClock, client: Client) -> bool:
    """Say whether a call has ended, or waits although all that Redis had to say has been heard."""
    for _ in range(50):  # round trips of another client: whatever was on its way has come back since
        await client.get("nothing")
        if call.done():
            return True
    return clock.sleepers > 0


async def check_reading_prolongs_nothing(url: str, app: str, database: Home, make: Make) -> None:
    """Two hundred values are loaded at once, and one of them is read again and again until it ends."""
    async with source(database, **{str(n): n for n in range(200)}) as rows:
        rng = random.Random(5)
        async with cache(url, app, rows, make, ttl=100, jitter=0.2, rng=rng) as cached, opened(url) as client:
            await cached.get_all(map(str, range(200)))
            keys = [key async for key in client.scan_iter(f"{app}*value", count=1000)]
            lives = [await client.pttl(key) / 1000 for key in keys]
            assert len(lives) == 200
            assert all(75 < seconds <= 120 for seconds in lives), "a value lives too long or too short"
            assert max(lives) - min(lives) > 30, "they all expire together"
            assert await leaks.immortal_keys(client, app) == []
            await client.pexpire(value_key(app, "7"), 9_000)
            for _ in range(3):
                await cached.get("7")
                await cached.get_all(["7", "8"])
                await cached.peek("7")
                await cached.found("7")
            assert await client.pttl(value_key(app, "7")) <= 9_000, "reading made it live longer"
            await rows.put(**{"7": "new"})
            await client.pexpireat(value_key(app, "7"), 1)
            assert await cached.get_all(["7"]) == {"7": "new"}
            assert (await cached.found("8")).left <= 120


async def check_without_redis_the_source_answers(
    url: str, app: str, database: Home, make: Make, book: Ledger | None = None
) -> None:
    """All answers of Redis are swallowed: 20 callers want one key each, 20 want lists; then others come."""
    heard = Recorder()
    port = int(url.rpartition(":")[2].partition("/")[0])
    options: dict[str, Any] = {"timeout": 0.3, "back_off": 30, "max_loads": 4, "on_event": heard}
    options["opening"] = {"max_connections": 40, "socket_timeout": 1}  # the textbook has no other time-out
    async with (
        source(database, **{str(n): n for n in range(40)}) as rows,
        proxy(port, book) as p,
        cache(p.url, app, rows, make, **options) as cached,
    ):
        p.hole("down")
        began = time.monotonic()
        lists = [[str(n), str(n + 10)] for n in range(10)]
        rows.open.clear()
        calls = [asyncio.create_task(outcome_of(cached.get(str(n)))) for n in range(20)]
        calls += [asyncio.create_task(outcome_of(cached.get_all(keys))) for keys in lists]

        def all_wait() -> bool:
            return len(heard.of(CacheMissed)) == 40 and rows.running >= 4

        await eventually(lambda: all_wait() or all(call.done() for call in calls), within=10)
        rows.open.set()
        got = await asyncio.gather(*calls)
        took = time.monotonic() - began
        right = [*range(20), *({key: int(key) for key in keys} for keys in lists)]
        assert got == right, f"callers got {', '.join(sorted({str(each)[:20] for each in got}))}"
        assert sorted(rows.loaded) == sorted(map(str, range(20))), "one key was loaded twice at a time"
        assert took < 2.5, f"one time-out of 0.3 s, and the callers waited {took:.1f} s"
        assert rows.most <= 4, f"{rows.most} loads at once"
        began = time.monotonic()
        for number in range(20, 40, 2):
            keys = [str(number), str(number + 1)]
            assert await cached.get_all(keys) == {key: int(key) for key in keys}
            assert time.monotonic() - began < 0.3 * 4, "the time-out was paid on every call"
        assert heard.names().count("CacheLost") == 1
        assert not any(event.kept for event in heard.of(Loaded))


async def check_only_what_can_be_read_again_is_kept(url: str, app: str, database: Home, make: Make) -> None:
    """A list holds values that JSON cannot hold, that are too large, and one that is good."""
    bad: dict[str, Any] = {"set": {1}, "nan": math.nan, "surrogate": "\ud800", "large": "x" * 200}

    async def load_all(keys: list[str]) -> Any:
        return {key: bad.get(key, (1, 2)) for key in keys}

    async def load(key: str) -> Any:
        return (await load_all([key]))[key]

    async with source(database) as rows, opened(url) as client:
        async with cache(url, app, load, make, load_all=load_all, max_bytes=100) as cached:
            with pytest.raises(NotAllLoaded) as told:
                await cached.get_all([*bad, "good"])
            kinds = {key: type(error).__name__ for key, error in told.value.errors.items()}
            assert kinds == dict.fromkeys(bad, "NotCacheable"), f"kept: {sorted(set(bad) - set(kinds))}"
            assert told.value.values == {"good": [1, 2]}
            names = [value_key(app, key, role) for key in bad for role in ("value", "lock")]
            assert [name for name in names if await client.exists(name)] == []
            assert await outcome_of(cached.get("set")) == "NotCacheable"
            first, second = await asyncio.gather(cached.get("pair"), cached.get("pair"))
            first.append(3)
            assert second == await cached.get("pair") == [1, 2]
        before = rows.loads
        async with cache(url, app, rows) as cached:
            for wrong in ("", "\ud800"):
                for call in (
                    *(cached.get(wrong), cached.get_all(["a", wrong]), cached.found(wrong)),
                    *(cached.refresh(wrong, ahead=1), cached.invalidate("good", wrong)),
                ):
                    with pytest.raises(ValueError, match="entity must"):
                        await call
            assert rows.loads == before, "something was asked"
            assert await cached.peek("good") == [1, 2]
