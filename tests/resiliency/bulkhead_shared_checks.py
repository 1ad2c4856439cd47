"""What a bulkhead that is shared through Redis must do, as checks that a naive variant fails."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import RedisError

from patterns.clock import ManualClock
from patterns.events import Recorder
from patterns.keyspace import Keyspace, opened
from patterns.resiliency.bulkhead import BulkheadFull
from patterns.resiliency.bulkhead.leases import Leases
from patterns.resiliency.bulkhead.shared import PermitLost, SharedBulkhead, SharingLost, SharingRegained
from patterns.scripted import Scripted, returns
from tests.eventually import eventually
from tests.faults.leaks import in_use
from tests.resiliency.bulkhead_checks import outcome_of, running_now
from tests.resiliency.bulkhead_model import end

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from patterns.embedded import Server
    from patterns.keyspace import Client
    from tests.faults.ledger import Ledger
    from tests.faults.workers import Worker
    from tests.resiliency.bulkhead_naive import CountsInRedis


def shared(client: Client, app: str, **changes: Any) -> SharedBulkhead:
    """Return a bulkhead as one process of `app` would have it."""
    options: dict[str, Any] = {"limit": 3, "without_redis": 0, "timeout": 5.0, "lease": 60.0, "poll": 0.01}
    kind: type[SharedBulkhead] = changes.pop("kind", SharedBulkhead)
    return kind("search", client, app=app, **(options | changes))


def leases(app: str) -> str:
    """Return the key of the leases."""
    return Keyspace(app, "bulkhead").key("search", "leases")


async def check_a_killed_holder_returns_its_permits(
    client: Client,
    app: str,
    here: Any,
    holders: list[tuple[int, Worker]],
    books: Ledger,
) -> None:
    """A process that has all permits is killed; within its lease they can be taken again."""
    for number, holder in holders:
        if holder.code is None:
            await client.set(f"{app}:go:{number}", 1, px=60_000)
            await holder.said("holding", within=20)
            with pytest.raises(BulkheadFull):
                await here.acquire()
            holder.kill()
        books.injected()
        for permit in range(3):
            books.acked((number, permit))  # owed back

        async def all_are_back() -> bool:
            return int(await here.in_use()) == 0

        with contextlib.suppress(AssertionError):
            await eventually(all_are_back, within=0.8)
            books.recovered()
        left = await here.in_use()
        for permit in range(3 - left):
            books.effect((number, permit))
        assert left == 0, f"{left} of 3 permits are still out after the lease"


async def check_random_cancellations_when_shared(
    client: Client, bulkhead: Any, rng: random.Random
) -> dict[str, int]:
    """Cancel 1,000 calls while they ask or wait, run, and give back: all three permits are there."""
    cut = dict.fromkeys(("asking or waiting", "running", "giving back"), 0)
    tasks: dict[asyncio.Task[str], list[str]] = {}
    loop = asyncio.get_running_loop()
    got_in = loop.time()

    async def call(doing: list[str]) -> str:
        async def work() -> None:
            nonlocal got_in
            got_in = loop.time()
            doing.append("running")
            for _ in range(rng.randint(0, 10)):
                await asyncio.sleep(0)
            doing.append("giving back")

        return await outcome_of(bulkhead.call(work))

    while sum(cut.values()) < 1000 and loop.time() - got_in < 1:
        while len(tasks) < 9:
            doing = ["asking or waiting"]
            tasks[asyncio.create_task(call(doing))] = doing
        for _ in range(rng.randint(1, 10)):
            await asyncio.sleep(0)
        kind, victims = rng.choice([*cut]), []
        for _ in range(50):
            victims = [task for task, doing in tasks.items() if doing[-1] == kind and not task.done()]
            if victims:
                break
            await asyncio.sleep(0)
        if victims:
            victim = rng.choice(victims)
            victim.cancel()
            tasks[victim].append("cut")
            cut[kind] += 1
            if rng.random() < 0.2:  # and it is not left in peace as it gives back
                await asyncio.sleep(0)
                victim.cancel()
        for task in [task for task in tasks if task.done()]:
            del tasks[task]
    await end(*tasks)

    async def all_are_back() -> bool:
        return await bulkhead.in_use() == 0 and in_use(client) == 0

    with contextlib.suppress(AssertionError):
        await eventually(all_are_back, within=0.5)
    gone, done = await bulkhead.in_use(), sum(cut.values())
    assert gone == 0, f"{gone} permits are out, the limit is 3, and nobody has one after {done} cancellations"
    assert done == 1000, f"nobody gets in any more after {done} cancellations"
    assert in_use(client) == 0
    if isinstance(bulkhead, SharedBulkhead):
        assert running_now(bulkhead) == (0, 0)
    await eventually(lambda: len(asyncio.all_tasks()) == 1, within=1)
    return cut


async def check_a_failover_and_then_the_limit(
    here: SharedBulkhead,
    there: SharedBulkhead,
    counter: CountsInRedis,
    *,
    disaster: Callable[[], Awaitable[None] | None],
    notice: Callable[[], Awaitable[None]],
    books: Ledger,
) -> tuple[int, int]:
    """Three permits are out when Redis forgets them all; return how many calls ran at most then.

    And how many of the counter's permits fit in, after the same and when all calls have ended.
    """
    for _ in range(3):
        await here.acquire()
        await counter.acquire()
    if (waited := disaster()) is not None:
        await waited
    books.injected()
    for _ in range(3):
        await there.acquire()
        await counter.acquire()
    assert await outcome_of(there.call(Scripted())) == "full"
    ran = here.running + there.running
    await notice()
    await eventually(lambda: len(here._leases._uncounted) == 3, within=5)
    assert await there.in_use() == 3
    for _ in range(3):
        await here.release()
        assert await outcome_of(there.call(Scripted())) == "full"
        await counter.release()
    assert await there.in_use() == 3
    for _ in range(3):
        await there.release()
        await counter.release()
    for permit in range(3):
        await there.acquire()
        books.acked(permit)
        books.effect(permit)
    assert await outcome_of(there.call(Scripted())) == "full"
    for _ in range(3):
        await there.release()
    assert await there.in_use() == 0
    fit = 0
    with contextlib.suppress(BulkheadFull):
        while fit < 100:
            await counter.acquire()
            fit += 1
    return ran, fit


async def check_goes_on_without_redis(
    server: Server, app: str, kind: type[SharedBulkhead], books: Ledger
) -> None:
    """Redis dies while a permit is out; the process admits by itself, and takes its leases up again."""
    clock, heard = ManualClock(), Recorder()
    async with opened(server.url, connect_timeout=1) as client:
        bulkhead = shared(client, app, without_redis=2, clock=clock, on_event=heard, lease=30.0, kind=kind)
        closed = shared(client, app, without_redis=0, clock=clock, kind=kind)
        await bulkhead.acquire()
        server.kill()
        books.injected()
        gate = asyncio.Event()
        tasks = [asyncio.create_task(outcome_of(bulkhead.call(gate.wait))) for _ in range(5)]
        for number in (0, 1):
            books.acked(number)
        try:
            await eventually(lambda: sum(task.done() for task in tasks) >= 4, within=5)
            if bulkhead.running == 2:
                books.effect(0)
            gate.set()
            outcomes = sorted([await task for task in tasks])
            if outcomes == ["no_redis"] * 4 + ["ok"]:
                books.effect(1)
            assert not books.lost, f"{books.lost} of 2 calls failed for want of Redis: {outcomes}"
            assert await outcome_of(closed.call(Scripted())) == "no_redis"
            assert bulkhead.alone
            await bulkhead.acquire()  # the second, and it will last
            await clock.advance(10.1)  # a renewal finds nobody; 30 s after the last, the lease is over
            await clock.advance(30)
            assert len(heard.of(PermitLost)) == 1
        except AssertionError:
            assert bulkhead._leases._keeper is not None
            await end(bulkhead._leases._keeper)
            raise
        finally:
            gate.set()
            await end(*tasks)
            server.restart()
        await clock.advance(3.1)

        async def taken_up() -> bool:
            return await bulkhead.in_use() == 2

        await eventually(taken_up, within=5)
        assert not bulkhead.alone
        assert [len(heard.of(SharingLost)), len(heard.of(SharingRegained))] == [1, 1]
        clock.jump(1.1)
        assert await outcome_of(closed.call(Scripted(returns("ok")))) == "ok"
        await bulkhead.release()
        await bulkhead.release()
        assert await bulkhead.in_use() == 0


class NeedsRedis(SharedBulkhead):
    """What cannot be asked is an error."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._leases.__class__ = _Raising


class _Raising(Leases):
    def _lose(self, error: str) -> None:
        raise RedisError(error)
