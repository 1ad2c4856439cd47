"""What is checked of Refresh-Ahead and of its naive variants alike; and how they are made."""

from __future__ import annotations

import asyncio
import math
import uuid
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from patterns.cache.refresh_ahead import (
    MISS,
    Policy,
    RefreshAhead,
    RefreshBegan,
    Refreshed,
    RefreshFailed,
    RefreshPutOff,
)
from patterns.clock import ManualClock
from patterns.events import Recorder
from patterns.keyspace import opened
from tests.cache.read_through_source import source
from tests.eventually import eventually
from tests.faults import leaks, proxy
from tests.faults.workers import Worker

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Awaitable
    from contextlib import ExitStack

    from patterns.embedded import Server
    from tests.faults import Ledger
    from tests.postgres import Home

Make = Any  # RefreshAhead or a naive variant with the same constructor
TTL = 60.0


def policy(kind: type[Policy] = Policy, **changes: Any) -> Policy:
    """Return a policy whose time-outs a busy machine does not reach: due in the last 30 of 60 seconds."""
    defaults: dict[str, Any] = {"ttl": TTL, "negative_ttl": 10, "max_loads": 200, "max_refreshes": 100}
    defaults |= {"lease": 10, "timeout": 5, "refresh_pause": 30}
    if "beta" not in changes:
        defaults["refresh_after"] = 0.5
    return kind(**(defaults | changes))


@asynccontextmanager
async def cache(
    url: str, app: str, here: Any, make: Make = RefreshAhead, *, name: str = "users", **options: Any
) -> AsyncIterator[Any]:
    """Lend a cache of the source `here` with a client of its own, as one more process would have it."""
    given: dict[str, Any] = {"load": getattr(here, "load", here)}
    for key in ("codec", "clock", "rng", "on_event"):
        if key in options:
            given[key] = options.pop(key)
    opening: Any = {"max_connections": 16} | options.pop("opening", {})
    async with (
        opened(url, **opening) as client,
        make(name, client, policy(**options), app=app, **given) as made,
    ):
        yield made


def key_of(app: str, key: str = "a", role: str = "value") -> str:
    """Return a key of `key` in the cache `users`."""
    return f"{app}:{{refresh_ahead:users/{key}}}:{role}"


async def age(client: Any, app: str, *keys: str, left: float = 5) -> None:
    """Bring entries into their last seconds; nothing waits for a real TTL."""
    for key in keys:
        assert await client.pexpire(key_of(app, key), round(left * 1000)), f"{key} has no entry"


async def end_the_pause(client: Any, app: str, clock: ManualClock, *keys: str) -> None:
    """Let the pause after an attempt end, here and in Redis."""
    clock.jump(30)
    for key in keys:
        await client.pexpireat(key_of(app, key, "pause"), 1)


async def outcome_of(call: Awaitable[Any]) -> Any:
    """Return what `call` returned, or the name of what it raised."""
    try:
        return await call
    except Exception as error:
        return type(error).__name__


async def idle(*caches: Any) -> None:
    """Wait until no refresh runs."""
    await eventually(lambda: not any(each._refresher._tasks for each in caches), within=10)


async def check_no_value_outlives_its_ttl(
    url: str, app: str, database: Home, make: Make, book: Ledger | None = None
) -> None:
    """A value is read through twenty failing refreshes until its end; then it must be gone."""
    clock, heard = ManualClock(), Recorder()
    async with (
        source(database, a=1) as rows,
        cache(url, app, rows, make, clock=clock, on_event=heard, ttl=100, jitter=0.2) as cached,
        opened(url) as client,
    ):
        assert await cached.get("a") == 1
        assert 79 < await client.pttl(key_of(app)) / 1000 <= 100, "it lives too long or too short"
        rows.errors = {"a": OSError("down")}
        longer = []
        for number in range(1, 21):
            left = 40 - number
            await age(client, app, "a", left=left)
            assert await cached.get("a") == 1
            await eventually(lambda n=number: len(heard.of(RefreshFailed)) == n, within=10)  # type: ignore[misc]  # mypy knows no lambda with a default
            await idle(cached)
            longer.append(await client.pttl(key_of(app)) / 1000 - left)
            await end_the_pause(client, app, clock, "a")
            if book:
                book.injected()
                book.acked(number)
                book.effect(number)
        assert max(longer) <= 0, f"20 attempts failed, and it lives {max(longer):.0f} s longer"
        assert await leaks.immortal_keys(client, app) == []
        await client.pexpireat(key_of(app), 1)
        assert await outcome_of(cached.get("a")) == "OSError", "an old value was served after its end"


async def check_no_reader_waits(
    url: str, app: str, database: Home, make: Make, book: Ledger | None = None
) -> None:
    """Two processes with 100 readers each find a value due; its load does not end before all are served."""
    async with (
        source(database, a="old") as rows,
        cache(url, app, rows, make) as here,
        cache(url, app, rows, make) as there,
        opened(url) as client,
    ):
        assert [await here.get("a"), await there.get("a")] == ["old", "old"]
        await (age(client, app, "a") if make.__name__ != "Expires" else client.delete(key_of(app)))
        await rows.put(a="new")
        rows.open.clear()
        readers = [asyncio.create_task(each.get("a")) for each in (here, there) for _ in range(100)]
        if book:
            book.injected(200)
        try:
            await eventually(lambda: rows.running, within=10)
            with suppress(TimeoutError):
                async with asyncio.timeout(5 if make is RefreshAhead else 0.5):
                    await asyncio.wait(readers)
            waited = sum(not reader.done() for reader in readers)
            if book:
                for number, reader in enumerate(readers):
                    book.acked(number)
                    if reader.done():
                        book.effect(number)
            assert waited == 0, f"{waited} of 200 readers waited for the load"
            assert [reader.result() for reader in readers] == ["old"] * 200
        finally:
            rows.open.set()
            await asyncio.gather(*readers)
        await idle(here, there)
        assert [await here.get("a"), await there.get("a")] == ["new", "new"]
        assert rows.loads == 2


async def check_one_refresh_at_a_time(url: str, app: str, database: Home, make: Make) -> None:
    """Two processes read a due value again and again while it is loaded, and after the load has failed."""
    heard = Recorder()
    clock = ManualClock()
    async with (
        source(database, a=1) as rows,
        cache(url, app, rows, make, clock=clock, on_event=heard) as here,
        cache(url, app, rows, make, clock=clock, on_event=heard) as there,
        opened(url) as client,
    ):
        await here.get("a")
        await age(client, app, "a")
        rows.open.clear()
        rows.errors = {"a": OSError()}
        try:
            for _ in range(20):
                for each in (here, there):
                    await asyncio.gather(*[each.get("a") for _ in range(5)])
                await client.ping()
            await eventually(lambda: rows.running, within=5)
            assert rows.most == 1, f"{rows.most} loads of one key at once"
        finally:
            rows.open.set()
        await eventually(lambda: not rows.running, within=5)
        for _ in range(20):
            assert [await here.get("a"), await there.get("a")] == [1, 1]
        assert rows.loads == 2, f"{rows.loads - 1} attempts in one pause"
        await idle(here, there)
        await end_the_pause(client, app, clock, "a")
        rows.errors = {}
        await asyncio.gather(here.get("a"), there.get("a"))
        await idle(here, there)
        assert rows.loads == 3
        assert await client.pttl(key_of(app)) > 50_000


async def check_an_invalidation_wins(
    url: str, app: str, database: Home, make: Make, book: Ledger | None = None
) -> None:
    """A refresh began before a write, or before a deletion, in another process, and ends after it.

    In half of the rounds a reader comes between the two, and waits for the load that is outdated.
    """
    async with (
        source(database) as rows,
        cache(url, app, rows, make) as here,
        cache(url, app, rows) as there,
        opened(url) as client,
    ):
        for number in range(10):
            for key, after in ((f"written{number}", "new"), (f"deleted{number}", None)):
                await rows.put(**{key: "old"})
                await here.get(key)
                await age(client, app, key)
                rows.open.clear()
                assert await here.get(key) == "old"
                await eventually(lambda: rows.running == 1, within=5)
                await (rows.put(**{key: after}) if after else rows.delete(key))
                await there.invalidate(key)
                late = [asyncio.create_task(here.get(key))] if number % 2 else []
                for _ in range(2 * len(late)):
                    await client.ping()  # it has looked by now
                rows.open.set()
                await idle(here)
                got = await asyncio.gather(*late)
                if book:
                    book.injected()
                    book.acked(key)
                    if set(got) <= {after} and [await here.get(key), await there.get(key)] == [after] * 2:
                        book.effect(key)
                else:
                    assert set(got) <= {after}, "a reader that came later got the old value"
                    assert await there.get(key) == after, "the refresh brought the old value back"
                    assert await here.get(key) == after


async def check_failures_cost_no_reader_anything(url: str, app: str, database: Home, make: Make) -> None:
    """A refresh fails, hangs, and cancels itself; a hundred reads around each get the old value."""
    clock, heard = ManualClock(), Recorder()
    async with (
        source(database, a=1) as rows,
        cache(url, app, rows, make, clock=clock, on_event=heard) as cached,
        opened(url) as client,
    ):
        await cached.get("a")
        ways = [OSError("disk"), asyncio.CancelledError(), ExceptionGroup("two", [OSError(), LookupError()])]
        told = ["OSError", "LoadCancelled", "ExceptionGroup"]
        for number, error in enumerate(ways, 1):
            rows.errors = {"a": error}
            await age(client, app, "a", left=20)
            before = rows.loads
            for _ in range(50):
                got = await asyncio.gather(*[outcome_of(cached.get("a")) for _ in range(2)])
                assert got == [1, 1], f"a reader got {got}"
            await eventually(lambda n=number: len(heard.of(RefreshFailed)) >= n, within=5)  # type: ignore[misc]  # as above
            await idle(cached)
            assert rows.loads - before == 1, f"{rows.loads - before} attempts in 100 reads"
            await end_the_pause(client, app, clock, "a")
        assert [event.error for event in heard.of(RefreshFailed)] == told
        rows.errors = {}
        rows.open.clear()
        await cached.get("a")
        await eventually(lambda: rows.running == 1, within=5)
        await clock.advance(10)  # the lease
        await eventually(lambda: len(heard.of(RefreshFailed)) == 4, within=5)
        assert heard.of(RefreshFailed)[-1].error == "LoadTimedOut"
        await idle(cached)
        rows.open.set()
        assert rows.running == 0
        assert await cached.get("a") == 1
        assert await client.exists(key_of(app, role="lock")) == 0


async def check_idle_keys_are_not_refreshed(url: str, app: str, database: Home, make: Make) -> None:
    """Fifty keys are read once, and hours pass; one is read in its last part, once."""
    clock = ManualClock()
    keys = [str(n) for n in range(50)]
    async with (
        source(database, **dict.fromkeys(keys, 1)) as rows,
        cache(url, app, rows, make, clock=clock) as cached,
        opened(url) as client,
    ):
        for key in keys:
            await cached.get(key)
        await clock.advance(3 * TTL)
        await eventually(lambda: not rows.running, within=5)
        assert rows.loads == 50, f"{rows.loads - 50} loads of what nobody read"
        await age(client, app, *keys)
        assert await cached.peek("7") == 1
        await cached.get("7")
        await idle(cached)
        await clock.advance(3 * TTL)
        assert rows.loads == 51


request: ContextVar[str] = ContextVar("request", default="none")


async def check_refreshes_are_bounded_and_end(
    url: str, app: str, database: Home, make: Make, book: Ledger | None = None
) -> None:
    """Fifty keys are due at once, and refreshes have 4 places; in the middle the cache is closed."""
    heard = Recorder()
    seen: set[str] = set()
    keys = [str(n) for n in range(50)]
    async with source(database, **dict.fromkeys(keys, 1), b=2) as rows, opened(url) as client:

        async def load(key: str) -> Any:
            seen.add(request.get())
            return await rows.load(key)

        rule = policy(max_refreshes=4, max_loads=5)
        # On a client that lives on: what runs on after the end does not open it again.
        async with make("users", client, rule, load=load, app=app, on_event=heard) as cached:
            for key in keys:
                await cached.get(key)
            seen.clear()
            rows.most = 0
            await age(client, app, *keys)
            rows.open.clear()
            request.set("of a reader")
            assert await asyncio.gather(*[cached.get(key) for key in keys]) == [1] * 50
            await eventually(lambda: rows.running >= 4, within=5)
            assert len(heard.of(RefreshPutOff)) == 46, (
                f"{50 - len(heard.of(RefreshPutOff))} refreshes at once"
            )
            assert seen == {"none"}, "a refresh runs in the context of a request"
            waits = asyncio.create_task(cached.get("b"))
            await eventually(lambda: rows.running == 5, within=5)
            if book:
                book.injected(50)
                for key in keys:
                    book.acked(key)
                    book.effect(key)
            assert rows.most == 5
            waits.cancel()
            await asyncio.wait([waits])
        left = rows.running
        rows.open.set()
        request.set("none")
        await eventually(lambda: not cached._refresher._tasks, within=5)
        assert left == 0, f"{left} refreshes ran on after the end"
        locks = [key_of(app, key, "lock") for key in keys]
        assert [lock for lock in locks if await client.exists(lock)] == []
        assert [await client.exists(key_of(app, key)) for key in keys] == [1] * 50, "an old value was lost"
        async with cache(url, app, rows, make) as cached:
            await cached.aclose()
            await cached.aclose()
            await age(client, app, "7")
            before = rows.loads
            assert [await cached.get("7"), await cached.get("b")] == [1, 2]
            assert rows.loads - before == 1, "a refresh began after the end"


def loads_of_lives(kind: type[Policy], took: float, rng: random.Random) -> tuple[float, float]:
    """Return loads and ends with readers waiting, per life, of 200 lives, where nobody asks anybody.

    5,000 readers come in each `ttl`; a load that begins ends `took` later, and all that have begun by then
    count. That is the worst case: the lease makes one load of them.
    """
    rule = policy(kind, beta=1, ttl=TTL, jitter=0)
    lives, step = 200, TTL / 5_000
    loads = ends = 0
    for _ in range(lives):
        left, done_at = TTL, -math.inf
        while left > done_at:
            left -= step
            if left <= 0:
                ends += 1
                loads += done_at == -math.inf
                break
            if rule.is_due(left, took, negative=False, rng=rng):
                loads += 1
                done_at = max(done_at, left - took)
    return loads / lives, ends / lives


def check_chance_spreads_the_readers(kind: type[Policy], rng: random.Random) -> list[float]:
    """Loads of a tenth of a second, of one and of two; return which share of the lives ended first."""
    early = []
    for took in (0.1, 1.0, 2.0):
        loads, ends = loads_of_lives(kind, took, rng)
        assert loads <= 4, f"{loads:.1f} loads in one life where one takes {took} s"
        assert ends <= 0.1, f"{ends:.0%} of the lives ended first where a load takes {took} s"
        early.append(ends)
    return early


async def check_only_what_can_be_read_again_is_kept(url: str, app: str, database: Home, make: Make) -> None:
    """Values that JSON cannot hold, or that are too large, are loaded first and in a refresh."""
    bad: dict[str, Any] = {"set": {1}, "nan": math.nan, "surrogate": "\ud800", "large": "x" * 99}
    values: dict[str, Any] = {}
    heard = Recorder()

    async def load(key: str) -> Any:
        return values.get(key, (1, "x" * 93))

    async with (
        source(database),
        opened(url) as client,
        cache(url, app, load) as fine,
        cache(url, app, load, make, max_bytes=99, on_event=heard) as cached,
    ):
        for key, value in bad.items():
            values[key] = value
            assert await outcome_of(cached.get(key)) == "NotCacheable", f"kept: {key}"
            names = [key_of(app, key, role) for role in ("value", "lock")]
            assert await client.exists(*names) == 0
            del values[key]
            assert await cached.get(key) == [1, "x" * 93]  # 99 bytes of JSON
            values[key] = value
            await age(client, app, key)
            assert await cached.get(key) == [1, "x" * 93]
        await idle(cached)
        assert [event.error for event in heard.of(RefreshFailed)] == ["NotCacheable"] * 4
        assert [await fine.peek(key) for key in bad] == [[1, "x" * 93]] * 4
        first, second = await asyncio.gather(cached.get("pair"), cached.get("pair"))
        first.append(3)
        assert second == await cached.get("pair")
        for wrong in ("", "\ud800"):
            for call in (cached.get(wrong), cached.invalidate("set", wrong), cached.peek(wrong)):
                assert await outcome_of(call) == "ValueError"
        assert await fine.peek("set") is not MISS


async def check_a_lost_cache_is_the_sources_business(
    url: str, app: str, database: Home, make: Make, book: Ledger | None = None
) -> None:
    """All answers of Redis are swallowed while 20 values are due, and 20 callers want them."""
    heard = Recorder()
    port = int(url.rpartition(":")[2].partition("/")[0])
    keys = [str(n) for n in range(20)]
    async with (
        source(database, **dict.fromkeys(keys, "old")) as rows,
        cache(url, app, rows) as there,
        proxy(port, book) as p,
        cache(p.url, app, rows, make, timeout=0.3, back_off=30, on_event=heard) as cached,
        opened(url) as client,
    ):
        for key in keys:
            await there.get(key)
        await age(client, app, *keys)
        await rows.put(**dict.fromkeys(keys, "new"))
        p.hole("down")
        patience = 2.5 if make is RefreshAhead else 0.8
        calls = [asyncio.create_task(outcome_of(cached.get(key))) for key in keys]
        try:
            await asyncio.wait(calls, timeout=patience)
            waiting = sum(not call.done() for call in calls)
            assert waiting == 0, f"{waiting} of {len(calls)} readers have no answer after {patience} s"
        finally:
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
        if book:
            for key in keys:
                book.acked(key)
                book.effect(key)
        assert [call.result() for call in calls] == ["new"] * 20
        assert began(heard) == 0
        assert heard.names().count("CacheLost") == 1


async def check_a_lost_reply_costs_a_pause_at_most(
    url: str, app: str, database: Home, make: Make, book: Ledger | None = None
) -> None:
    """The replies to read, claim, lease and fill are lost in turn, each for five keys that are due."""
    clock, replies = ManualClock(), 4
    port = int(url.rpartition(":")[2].partition("/")[0])
    leases = 0
    async with (
        source(database, **{str(n): "old" for n in range(5 * replies)}) as rows,
        proxy(port, book) as p,
        cache(p.url, app, rows, make, back_off=0.01, clock=clock) as cached,
        cache(url, app, rows) as there,
        opened(url) as client,
    ):
        for number in range(5 * replies):
            key, nth = str(number), number % replies
            assert await there.get(key) == "old"
            await age(client, app, key)
            await rows.put(**{key: "new"})
            seen = 0

            def chosen(request: bytes, nth: int = nth) -> bool:
                nonlocal seen
                seen += b"EVALSHA" in request
                return b"EVALSHA" in request and seen == nth + 1

            with p.lose_reply(chosen) as toxic:
                assert await cached.get(key) in {"old", "new"}
                await idle(cached)
                assert toxic.hits == 1, f"the reply number {nth} was not lost"
            leases += await client.exists(key_of(app, key, "lock"))
            clock.jump(30)
            await client.delete(key_of(app, key, "pause"))
            if book:
                book.acked(number)
                await eventually(partial(_is_new, cached, there, key), within=10)
                book.effect(number)
        assert leases == 0, f"{leases} of {5 * replies} keys are held by a lease that nobody knows of"


async def _is_new(cached: Any, there: Any, key: str) -> bool:
    got = [await cached.get(key), await there.get(key)]
    assert set(got) <= {"old", "new"}
    return got == ["new", "new"]


async def check_a_reader_that_goes_takes_nothing_along(
    url: str, app: str, database: Home, make: Make, book: Ledger | None = None
) -> None:
    """A reader of a due value is cancelled at each of its first 40 steps."""
    clock, heard = ManualClock(), Recorder()
    async with (
        source(database, a=1) as rows,
        cache(url, app, rows, make, clock=clock, on_event=heard, max_refreshes=1, max_loads=2) as cached,
        opened(url) as client,
    ):
        await cached.get("a")
        for steps in range(40):
            await age(client, app, "a")
            call = asyncio.create_task(cached.get("a"))
            for _ in range(steps):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            await idle(cached)
            assert leaks.in_use(cached._entries._client) == 0
            assert await client.exists(key_of(app, role="lock")) == 0
            await end_the_pause(client, app, clock, "a")
            before = rows.loads
            await age(client, app, "a")
            assert await cached.get("a") == 1
            await idle(cached)
            if book:
                book.injected()
                book.acked(steps)
                if rows.loads == before + 1 and await client.pttl(key_of(app)) > 50_000:
                    book.effect(steps)
            await end_the_pause(client, app, clock, "a")
    lost = began(heard) - len(heard.of(Refreshed)) - len(heard.of(RefreshFailed))
    assert lost == 0, f"{lost} refreshes in 40 cancellations ended with their reader"


async def check_a_dead_refresher_holds_nobody_up_for_ever(
    url: str, app: str, database: Home, make: Make
) -> None:
    """Look at what a process that dies in the middle of a load leaves in Redis."""
    async with (
        source(database, a=1) as rows,
        cache(url, app, rows, make) as cached,
        opened(url) as client,
    ):
        await cached.get("a")
        await age(client, app, "a")
        rows.open.clear()
        await cached.get("a")
        try:
            await eventually(lambda: rows.running, within=5)
            endless = await leaks.immortal_keys(client, app)
            assert endless == [], f"{len(endless)} key that never expires is left by who dies in a refresh"
        finally:
            rows.open.set()
        await idle(cached)


PROCESSES, CALLERS = 2, 100


@dataclass(frozen=True)
class Ended:
    """What came of a hot value's end.

    Attributes:
        waited: how many readers had nothing before the load ended.
        loads: how many loads had begun when the first was let go; of the module, how many in all.
        seconds: from the load's beginning, or its process's end, until all had the new value.
        overwritten: whether the process that stood still has changed what another had put there.
    """

    waited: int
    loads: int
    seconds: float
    overwritten: bool


class Readers:
    """Processes of 100 readers each, which carry out one order after the other.

    Args:
        server: where the orders are.
        stack: ends the processes.
    """

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.server, self.orders, self.latest = server, f"orders-{uuid.uuid4().hex}", "0"
        self.workers: list[Worker] = []
        self._stack = stack

    def _complete(self) -> None:
        """Put a new process in the place of each that was killed."""
        while len(self.workers) < PROCESSES:
            worker = Worker("tests.cache.refresh_ahead_readers", self.server.url, self.orders, self.latest)
            self.workers.append(self._stack.enter_context(worker))

    async def at_the_end(
        self, url: str, app: str, kind: str, *, lease: float = 20, fate: str = "refresh"
    ) -> Ended:
        """Let all read a value that is due (for `expires`: that has expired) while it is loaded.

        With the fate `kill` the process that loads is killed, with `pause` it stands still until the others
        have the new value.
        """
        order = {"app": app, "kind": kind, "url": url, "lease": f"{lease:g}", "callers": str(CALLERS)}
        self._complete()
        given: Any = self.server.command("XADD", self.orders, "*", *chain.from_iterable(order.items()))
        self.latest = given if isinstance(given, str) else given.decode()
        loop = asyncio.get_running_loop()
        async with opened(url) as client:

            async def loading(more_than: int = 0) -> list[bytes]:
                found: Any = await client.lrange(f"{app}:loads", 0, -1)
                return list(found) if len(found) > more_than else []

            for worker in self.workers:
                await worker.said(f"{app} ready", within=30)
            await (client.delete(key_of(app)) if kind == "expires" else age(client, app, "a", left=40))
            await client.xadd(f"{app}:go", {"now": 1})
            served = 0
            for worker in self.workers:
                *_, number = (await worker.said(f"{app} served", within=30)).split()
                served += int(number)
            (pid, *_) = await eventually(loading, within=10)
            began = loop.time()
            (holder,) = [worker for worker in self.workers if worker.pid == int(pid)]
            if fate == "kill":
                holder.kill()
                self.workers.remove(holder)
            elif fate == "pause":
                holder.stop()
            if fate != "refresh":
                await eventually(lambda: loading(more_than=1), within=lease + 10)
            expected = {"each_reader": PROCESSES * CALLERS, "each_process": PROCESSES}.get(kind, 1)
            await eventually(lambda: loading(more_than=expected - 1), within=20)
            loads = len(await loading())
            await client.xadd(f"{app}:gate", {"open": 1})
            others = [worker for worker in self.workers if worker is not holder or fate != "pause"]
            for worker in others:
                await worker.said(f"{app} new", within=30)
            seconds = loop.time() - began
            for worker in others:
                await worker.said(f"{app} ended", within=30)
            kept = await client.get(key_of(app))
            if fate == "pause":
                holder.cont()
                await holder.said(f"{app} ended", within=30)
            if kind == "refresh_ahead":
                loads = len(await loading())
            overwritten = await client.get(key_of(app)) != kept
            return Ended(PROCESSES * CALLERS - served, loads, seconds, overwritten)


async def check_processes_refresh_once_and_nobody_waits(
    readers: Readers, url: str, app: str, kind: str
) -> None:
    """Two processes of a hundred readers each read a hot value at its end."""
    ended = await readers.at_the_end(url, app, kind)
    assert ended.waited == 0, f"{ended.waited} readers waited for the load"
    assert ended.loads == 1, f"{ended.loads} loads for {PROCESSES} processes"


async def check_a_late_refresh_changes_nothing(
    readers: Readers, url: str, app: str, kind: str, book: Ledger
) -> None:
    """The process that refreshes stands still for longer than its lease; another one refreshes meanwhile."""
    ended = await readers.at_the_end(url, app, kind, lease=0.5, fate="pause")
    book.injected()
    book.acked("the newer value")
    if not ended.overwritten:
        book.effect("the newer value")
    assert (ended.waited, ended.loads) == (0, 2)
    assert not ended.overwritten, "the late refresh has overwritten a newer one"


def began(heard: Recorder) -> int:
    """Return how many refreshes have begun."""
    return len(heard.of(RefreshBegan))
