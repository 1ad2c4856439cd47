"""What is checked of Write-Through and of its naive variants alike."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from patterns.cache.write_through import MISS, CacheMissed, InvalidationOwed, WriteThrough, Written
from patterns.clock import ManualClock
from patterns.database import OutcomeUnknown
from patterns.events import Recorder
from patterns.keyspace import opened
from tests.cache.write_through_site import (
    LEASE,
    Make,
    Refused,
    Rows,
    Steps,
    cache,
    names,
    nothing,
    outcome_of,
    source,
    time_passes,
    v,
)
from tests.eventually import eventually
from tests.faults import Ledger, Proxy, proxy

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Sequence

    from patterns.keyspace import Client
    from tests.postgres import Home


async def check_the_source_comes_first(url: str, app: str, database: Home, make: Make) -> None:
    """Puts succeed, are refused and fail; another process looks while they are under way, and afterwards."""
    async with (
        source(database, a="old") as rows,
        cache(url, app, rows, make) as here,
        cache(url, app, rows, make) as there,
        opened(url) as client,
    ):
        seen: list[Any] = []
        told = await here.put("b", v("first"))
        assert told == Written(1, cached=True)
        assert await rows.has("b") == v("first"), "it returned, and the source has it not"
        assert await there.get("b") == await here.get("b") == v("first")
        assert rows.loads == 0, "what was just put had to be loaded"

        async def fails(step: str, key: str) -> None:
            if step == "store":
                seen.append(await there.get(key))
                raise error.with_traceback(None)

        await here.get("a")
        for error, may_load in ((Refused("constraint"), 0), (OSError("disk"), 3)):
            rows.hook, loads = fails, rows.loads
            for write in (here.put("a", v("refused")), here.delete("a")):
                assert await outcome_of(write) == type(error).__name__
            rows.hook = nothing
            seen += [await each.get("a") for each in (here, there)]
            assert seen == [v("old")] * len(seen), "a reader saw what was refused"
            assert rows.loads - loads <= may_load, "a refused write emptied the cache"
            if not may_load:
                left = await client.pttl(names(app, "a")[0])
                assert left > 50_000, "it has not got its life back"
        assert await rows.version("a") == 1


async def check_writers_agree(
    url: str, app: str, database: Home, make: Make, orders: Sequence[Sequence[str]], *, deletes: bool
) -> None:
    """Writers and readers take steps in each of the `orders`; see `writers`."""
    async with writers(url, app, database, make) as agree:
        for order in orders:
            await agree(order, deletes=deletes)


@asynccontextmanager
async def writers(url: str, app: str, database: Home, make: Make) -> AsyncIterator[Any]:
    """Lend the check of one order in which `a`, `b`, `c` and a reader `r`, processes all, take their steps.

    `-` loses the value, `o` the marks, `x` drops it. Each key exists before; if `deletes`, `b` deletes it.
    """
    async with (
        source(database) as rows,
        opened(url) as client,
        cache(url, app, rows, make) as one,
        cache(url, app, rows, make) as two,
        cache(url, app, rows, make) as three,
    ):
        steps, numbers = Steps(rows), itertools.count()
        for each in (one, two, three):
            steps.part(each)

        async def agree(order: Sequence[str], *, deletes: bool) -> None:
            key = f"k{next(numbers)}"
            await one.put(key, v("old"))
            steps.clear()
            for name in sorted(set(order) & set("abcr")):
                cached = {"a": one, "b": two}.get(name, three)
                if name == "r":
                    await steps.begin(name, cached.get(key))
                elif name == "b" and deletes:
                    await steps.begin(name, cached.delete(key))
                else:
                    await steps.begin(name, cached.put(key, v(name)))
            for name in order:
                if name in "-o":
                    await client.delete(names(app, key)[2 * (name == "o")])
                elif name == "x":
                    await two.invalidate(key)
                else:
                    await steps.go_on(name)
            await steps.finish()
            done, truth, found = "".join(order), await rows.has(key), await one.peek(key)
            assert found in (truth, MISS), f"{truth} in the source, {found} in the cache, after {done}"
            assert await two.get(key) == truth, f"a reader gets another value, after {done}"
            if make is WriteThrough:
                left = await client.pttl(names(app, key)[0])
                full = 1000 * (1 if truth is None else LEASE)
                assert left > full or left == -2, f"a life is cut off for good, after {done}"

        yield agree


def deaths() -> list[str]:
    """Return every order of a writer's death and a load: `w` twice, then `t`, among four times `r`."""
    found: set[str] = set()

    def grow(done: str, writer: str, reader: str) -> None:
        if not writer and not reader:
            found.add(done)
        if writer:
            grow(done + writer[0], writer[1:], reader)
        if reader:
            grow(done + reader[0], writer, reader[1:])

    grow("", "wwt", "rrrr")
    return sorted(found)


async def check_a_dead_writer_leaves_nothing_old(url: str, app: str, database: Home, make: Make) -> None:
    """A writer dies when the source has committed, while a reader loads; then its lease passes."""
    async with (
        source(database) as rows,
        opened(url) as client,
        cache(url, app, rows, make) as writer,
        cache(url, app, rows, make) as reader,
    ):
        steps = Steps(rows)
        steps.part(writer)
        steps.part(reader)
        orders = [(order, warm) for order in deaths() for warm in (True, False)]
        for number, (order, warm) in enumerate(orders):
            key = f"k{number}"
            await rows.table.store(key, v("old"))
            if warm:
                await reader.get(key)
            steps.clear()
            await steps.begin("w", writer.put(key, v("new")))
            await steps.begin("r", reader.get(key))
            for who in (
                order if make is WriteThrough else order.replace("w", "", 1)
            ):  # the others have no mark
                if who == "t":
                    await steps.abandon("w")
                    await time_passes(client, app, key, LEASE)
                else:
                    await steps.go_on(who)
            await steps.finish("r")
            rows.hook = nothing
            where = "with an entry" if warm else "without an entry"
            got = await reader.get(key)
            assert got == v("new"), f"the value from before a write is still read: {order} {where}"


async def check_writes_do_without_redis(
    url: str, app: str, database: Home, make: Make, book: Ledger | None = None
) -> None:
    """Redis cannot be reached when it should be told; later it can."""
    heard = Recorder()
    port = int(url.rpartition(":")[2].partition("/")[0])
    async with (
        source(database, a="old", b="old") as rows,
        proxy(port, book) as p,
        cache(p.url, app, rows, make, timeout=1, back_off=0.05, on_event=heard) as here,
        cache(url, app, rows, make) as there,
    ):
        for key in "ab":
            assert await here.get(key) == v("old")

        async def cut(step: str, key: str) -> None:
            if step == "stored" and key == "b":
                p.down()

        rows.hook = cut
        began = time.monotonic()
        told = await outcome_of(here.put("b", v("new")))
        assert isinstance(told, Written), f"the source has it, and the writer was told {told}"
        assert not told.cached, "nobody told Redis, and nobody says so"
        assert 0 < told.stale_for <= LEASE, "it was marked, and may live for a lease"
        told = await here.put("a", v("new"))  # from beginning to end without Redis
        assert not told.cached
        assert told.stale_for > 60
        assert time.monotonic() - began < 5
        for key in "ab":
            assert await rows.has(key) == await here.get(key) == v("new")
        p.up()

        async def paid() -> bool:
            assert await here.get("a") == v("new"), "Redis is back, and with it the old value"
            return "CacheRegained" in heard.names()

        await eventually(paid, within=5)
        for key in "ab":
            assert await there.get(key) == v("new")
        owed = {event.entity: event.bound_seconds for event in heard.of(InvalidationOwed)}
        assert owed.keys() == {"a", "b"}
        assert owed["b"] <= LEASE < 60 < owed["a"]


async def check_a_delete_stays(url: str, app: str, database: Home, make: Make) -> None:
    """A key is deleted while an older put has not told Redis yet, and while a load is under way."""
    async with (
        source(database, a="old", b="old", c="old") as rows,
        opened(url) as client,
        cache(url, app, rows, make) as here,
        cache(url, app, rows, make) as there,
        cache(url, app, rows, make) as third,
    ):
        await here.get("a")
        await here.delete("a")
        assert await here.get("a") is None
        assert await there.get("a") is None

        steps = Steps(rows)
        steps.part(there)
        steps.part(third)
        for key, lost in (("b", False), ("c", True)):
            await steps.begin("late", there.put(key, v("older")))
            while key not in rows.stored:
                await steps.go_on("late")
            await here.delete(key)
            if lost:
                await client.delete(names(app, key)[0])
            await steps.finish()
            assert await third.get(key) is None, "a late put brought back what was deleted"

        await here.put("a", v("again"))
        await client.delete(names(app, "a")[0])
        await steps.begin("load", third.get("a"))
        for _ in range(3):
            await steps.go_on("load")
        await here.delete("a")
        await steps.finish()
        assert await here.get("a") is None, "a load brought back what was deleted"


async def check_many_have_an_outcome_each(url: str, app: str, database: Home, make: Make) -> None:
    """Of ten puts two are refused, one cannot be encoded, and one has no key."""
    async with (
        source(database, k1="old", k5="old") as rows,
        cache(url, app, rows, make) as here,
        cache(url, app, rows, make) as there,
    ):

        async def refuses(step: str, key: str) -> None:
            if step == "store" and key in {"k1", "k2"}:
                raise Refused(key)

        rows.hook = refuses
        values: dict[str, Any] = {f"k{number}": v(number) for number in range(9)}
        values["k3"] = {"v": {1, 2}}
        values[""] = v("no key")
        outcomes = await outcome_of(here.put_many(values))
        assert isinstance(outcomes, dict), f"one failed, and the others are lost: {outcomes}"
        kinds = {key: type(outcome).__name__ for key, outcome in outcomes.items()}
        bad = {"k1": "Refused", "k2": "Refused", "k3": "NotStorable", "": "ValueError"}
        rows.hook = nothing
        for key in filter(None, values):
            cached, stored = await there.peek(key), await rows.has(key)
            assert cached in (stored, MISS), f"{key} is cached, and was not stored"
        assert kinds == dict.fromkeys(values, "Written") | bad
        assert list(kinds) == list(values)
        good = [key for key in values if key not in bad]
        assert [await there.peek(key) for key in good] == [values[key] for key in good]
        assert sorted(rows.stored) == sorted(good)


async def check_an_unknown_outcome_is_not_taken_for_a_failure(
    url: str, app: str, database: Home, make: Make
) -> None:
    """The source commits, and then an error, a cancellation or nothing comes back."""
    clock = ManualClock()
    errors: list[BaseException] = [OutcomeUnknown("a"), TimeoutError(), RuntimeError("driver")]
    errors += [asyncio.CancelledError()]
    async with (
        source(database, a="old", b="old", c="old") as rows,
        cache(url, app, rows, make, clock=clock, lease=5) as here,
        cache(url, app, rows, make, lease=5) as there,
    ):

        async def lost(step: str, key: str) -> None:
            if step == "stored":
                raise error.with_traceback(None)

        for number, error in enumerate(errors):
            await there.get("a")
            rows.hook = lost
            told = await outcome_of(here.put("a", v(number)))
            assert told == ("StoreCancelled" if number == 3 else type(error).__name__)
            rows.hook = nothing
            for each in (there, here):
                assert await each.get("a") == v(number), "it was written, and readers get what was before"

        async def hangs(step: str, key: str) -> None:
            if step == "stored":
                await asyncio.get_running_loop().create_future()

        for key in "bc":
            await there.get(key)
            rows.hook = hangs
            call = asyncio.create_task(outcome_of(here.put(key, v("new"))))
            await eventually(partial(rows.stored.__contains__, key), within=5)
            if key == "b":
                await clock.advance(5)
                assert await call == "StoreTimedOut"
            else:
                call.cancel()
                await asyncio.wait([call])
                assert call.cancelled()
            rows.hook = nothing
            assert await there.get(key) == await here.get(key) == v("new")


async def check_reads(url: str, app: str, database: Home, make: Make) -> None:
    """A hundred callers miss, forty keys are missed, something is not there, and nonsense lies there."""
    heard = Recorder()
    async with (
        source(database, a="1", b="old", **{f"k{n}": str(n) for n in range(40)}) as rows,
        cache(url, app, rows, make, on_event=heard, max_loads=4) as here,
        cache(url, app, rows, make) as there,
        opened(url) as client,
    ):
        gate = asyncio.Event()

        async def held(step: str, key: str) -> None:
            if step == "loaded":
                await gate.wait()

        rows.hook = held
        calls = [asyncio.create_task(here.get("a")) for _ in range(100)]
        await eventually(lambda: rows.running and len(heard.of(CacheMissed)) in (0, 100), within=5)
        for _ in range(200):
            await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*calls) == [v(1)] * 100
        assert rows.loads == 1, f"{rows.loads} loads for 100 callers"

        gate.clear()  # a load begins, a write ends, another caller comes
        early = asyncio.create_task(here.get("b"))
        await eventually(lambda: rows.running == 1, within=5)
        await there.put("b", v("new"))
        await client.delete(names(app, "b")[0])
        heard.events.clear()
        late = asyncio.create_task(here.get("b"))
        await eventually(lambda: heard.of(CacheMissed), within=5)
        gate.set()
        assert await early in (v("old"), v("new"))
        assert await late == v("new"), "a caller that came after a write was given the old value"

        rows.hook, rows.most = nothing, 0
        await asyncio.gather(*[here.get(f"k{n}") for n in range(40)])
        assert rows.most <= 4, f"{rows.most} loads at once"
        loads = rows.loads
        for each in (here, there, here):
            assert await each.get("nobody") is None
        assert rows.loads == loads + 1, "what is not there is looked for again and again"
        assert await there.peek("nobody") is None
        assert await there.peek("never asked for") is MISS
        await _check_nonsense(client, names(app, "a"), here, rows)
        keys = [key async for key in client.scan_iter(f"{app}*", count=1000)]
        assert all([0 < await client.pttl(key) <= 66_000 for key in keys])


async def _check_nonsense(client: Client, each: list[str], here: Any, rows: Rows) -> None:
    key = each[0]
    for entry in (b"", b"null", b"1 0 +\n{", b"2 0 +\n1"):
        await client.delete(key)
        await client.hset(key, "entry", entry)
        loads = rows.loads
        assert await here.get("a") == v(1)
        assert await here.get("a") == v(1)
        assert rows.loads == loads + 1
    for name in each:
        await client.delete(*each)
        await client.rpush(name, "a list")
        assert await here.get("a") == v(1)
        assert (await here.put("a", v(1))).cached, name
        assert await here.peek("a") == v(1)


async def check_only_what_can_be_read_again_is_written(
    url: str, app: str, database: Home, make: Make
) -> None:
    """Values that cannot be encoded, are too large, or change while they are written."""
    async with (
        source(database, a="old") as rows,
        cache(url, app, rows, make, max_bytes=100) as here,
        cache(url, app, rows, make) as there,
    ):
        await here.get("a")
        for value in ({"v": {1}}, {"v": float("nan")}, {1: b"2"}, v("x" * 100), {"v": "\ud800"}, None):
            assert await outcome_of(here.put("a", value)) == "NotStorable", f"{value!r} was put"
        for key in ("", "\ud800"):
            assert await outcome_of(here.put(key, v(1))) == "ValueError"
            assert await outcome_of(here.delete(key)) == "ValueError"
        assert (rows.stored, await there.peek("a")) == ([], v("old"))

        value = v("as it was put")

        async def changes(step: str, key: str) -> None:
            value["v"] = "changed meanwhile"

        rows.hook = changes
        await here.put("a", value)
        assert await rows.has("a") == await there.get("a"), "the source and the cache have different values"


KEYS = 20
PAUSES = 10


async def mixed_faults(
    rows: Rows, p: Proxy, app: str, url: str, make: Make, book: Ledger, rng: random.Random, *, enough: int
) -> list[int]:
    """Write and read from two processes under so many faults, with pauses.

    Return how many keys had another value in Redis than in the source in each pause, when nobody wrote or
    read any more and nothing was owed.
    """
    puts = itertools.count()
    done: dict[str, int] = {}
    differed: list[int] = []

    async def hook(step: str, key: str) -> None:
        for _ in range(rng.randrange(8)):
            await asyncio.sleep(0)
        if rng.random() < 0.08:
            book.injected()
            raise OutcomeUnknown(key) if step == "stored" else rng.choice([Refused(key), RuntimeError(key)])

    options: dict[str, Any] = {"timeout": 2, "back_off": 0.01}
    async with (
        cache(p.url, app, rows, make, **options) as one,
        cache(url, app, rows, make, **options) as other,
        opened(url) as client,
    ):

        async def work() -> None:
            key, which = f"k{rng.randrange(KEYS)}", rng.choice([one, other])
            if rng.random() < 0.3:
                await outcome_of(which.get(key))
                return
            if rng.random() < 0.1:
                await outcome_of(which.delete(key))
                return
            text = str(next(puts))
            call = asyncio.create_task(which.put(key, v(text)))
            if rng.random() < 0.1:
                book.injected()
                for _ in range(rng.randrange(40)):
                    await asyncio.sleep(0)
                call.cancel()
            try:
                told = await call
            except (Refused, RuntimeError):
                book.failed(text)
            except (Exception, asyncio.CancelledError):
                book.unsure(text)
            else:
                book.acked(text)
                done[key] = max(done.get(key, 0), told.version)

        async def pause() -> None:
            rows.hook = nothing
            for each in (one, other):

                async def answers(each: Any = each) -> bool:
                    await outcome_of(each.get("k0"))
                    owed = getattr(each, "_entries", None)
                    return not (owed and owed._owed)

                await eventually(answers, within=10)
            different = await _differing(other, rows)
            differed.append(len(different))
            rows.hook = hook

        rows.hook = hook
        kinds = ["reset", "lose", "drop", "none", "none", "evict"]
        while len(differed) < PAUSES:
            kind = rng.choice(kinds)
            before = p.injected
            toxic = None
            if kind == "lose":
                toxic = p.lose_reply(b"", times=4)
            elif kind == "drop":
                toxic = p.drop_request(b"", times=4)
            elif kind == "evict":
                book.injected()
                key, role = f"k{rng.randrange(KEYS)}", rng.randrange(2)
                await client.delete(names(app, key)[role])
            await asyncio.gather(*[work() for _ in range(12)])
            if kind == "reset":
                await p.reset_all()
            if toxic:
                toxic.remove()
            if p.injected > before:
                book.injected(p.injected - before)
            if book.faults >= enough * (len(differed) + 1) / PAUSES:
                await pause()
        for key, version in done.items():
            assert await rows.version(key) >= version, "an acknowledged version is missing"
        for text in rows.texts:
            book.effect(text)
        return differed


async def _differing(cached: Any, rows: Rows) -> set[str]:
    """Return the keys of which the cache has another value than the source."""
    keys = [f"k{number}" for number in range(KEYS)]
    return {key for key in keys if await cached.peek(key) not in (MISS, await rows.has(key))}
