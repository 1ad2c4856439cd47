"""The campaigns: what is injected into a work queue, and what its books say afterwards."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from patterns.clock import SYSTEM_CLOCK
from patterns.container.work_queue import Manager, Policy, State
from patterns.keyspace import opened
from tests.container.work_queue_ground import Plant, Shelf, effects, key, rounds
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from patterns.embedded import Server
    from patterns.keyspace import Client
    from tests.faults.ledger import Ledger
    from tests.faults.workers import Worker
    from tests.places import Site as Lines

PROGRAM = "tests.container.work_queue_processes"
FAST: dict[str, Any] = {"backoff": 0.001, "backoff_cap": 0.002, "period": 0.1, "backlog": 10_000}


def enter(book: Ledger, names: list[str], found: Counter[str]) -> None:
    """Every listed item counts as promised; `found` is what was done."""
    for name in names:
        book.acked(name)
    for name, count in found.items():
        book.effect(name, count)


async def workers_killed(
    spawn: Callable[..., Worker], url: str, app: str, book: Ledger, *, mode: str, jobs: int, every: int
) -> None:
    """Two workers at a time; in every so-manieth item the worker is killed, half of them after its effect."""
    names = [f"item {number}" for number in range(1, jobs + 1)]
    async with opened(url) as client:
        state = State("q", client, app=app)
        manager = Manager(
            state, Shelf(names, size=5_000), Policy(parallelism=4, lease=0.4, **{**FAST, "period": 0.4})
        )
        program = spawn(PROGRAM, mode, url, app, every)
        async with rounds(manager):
            await all_done(state, jobs, within=50)
        program.terminate()
        assert await program.ended(within=10) == 0
        killed = program.output.count(f"ended {int(signal.SIGKILL)}\n")
        assert killed == jobs // every
        book.injected(killed)
        enter(book, names, await effects(client, app))


@asynccontextmanager
async def at_work(
    client: Client, app: str, names: list[str], count: int = 2, **policy: Any
) -> AsyncIterator[Plant]:
    """A manager and workers in this process, on one client."""
    plant = Plant(
        client, app, Shelf(names, size=1_000), Policy(parallelism=4, **{**FAST, "lease": 0.4, **policy})
    )
    workers = [plant.worker(f"w{number}", poll=0.01, request=0.5) for number in range(count)]
    async with asyncio.TaskGroup() as group, AsyncExitStack() as stack:
        await stack.enter_async_context(rounds(plant.manager(request=0.5)))
        for worker in workers:
            group.create_task(worker.run())
        try:
            yield plant
        finally:
            for worker in workers:
                worker.stop()


async def all_done(state: State, count: int, within: float = 20) -> None:
    """Wait until so many items are done."""

    async def done() -> bool:
        try:
            await SYSTEM_CLOCK.sleep(0.05)  # each look is a script, and there is work to be done
            return (await state.status()).done == count
        except (RedisError, OSError, TimeoutError):
            return False

    await eventually(done, within=within)


async def more_than(runs: Counter[str], count: int) -> None:
    """Wait until more items were done, by so many."""
    before = runs.total()
    await eventually(lambda: runs.total() > before + count, within=10)


class Popping:
    """The naive queue: a list that the producer fills, and BLPOP's quiet sister; an error is tried again."""

    def __init__(self, client: Client, app: str) -> None:
        self.client, self.key, self.runs = client, key(app, "list", "naive"), Counter[str]()

    async def fill(self, names: list[str]) -> None:
        await self.client.rpush(self.key, *names)

    async def run(self, ended: asyncio.Event) -> None:
        while not ended.is_set():
            try:
                item: Any = await self.client.lpop(self.key)
            except (RedisError, OSError):
                await SYSTEM_CLOCK.sleep(0.005)
                continue
            if item is None:
                return
            self.runs[item.decode()] += 1


async def connections_reset(lines: Lines, client: Client, app: str, book: Ledger, twin: Ledger) -> None:
    """Every connection is reset every 200 ms, five times, while 500 items are done."""
    names = [f"item {number}" for number in range(500)]
    async with at_work(lines.client, app, names) as plant:
        plant.application.seconds = 0.004
        for _ in range(5):
            await more_than(plant.application.runs, 0)
            if broken := await lines.reset():
                book.injected(broken)
            await SYSTEM_CLOCK.sleep(0.2)
        await all_done(State("q", client, app=app), len(names))
        book.recovered()
    enter(book, names, plant.application.runs)
    popping = Popping(lines.client, app)
    await Popping(client, app).fill(names)
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(16):  # so that some reply is always on its way
            group.create_task(popping.run(ended))
        for _ in range(5):
            await more_than(popping.runs, 50)
            if broken := await lines.reset():
                twin.injected(broken)
    twin.recovered()
    enter(twin, names, popping.runs)


async def replies_lost(lines: Lines, app: str, book: Ledger, twin: Ledger) -> None:
    """The reply to each script of manager and worker is lost in turn; nothing is done twice or left."""
    names = [f"item {number}" for number in range(40)]
    async with at_work(lines.client, app, names, count=1) as plant:
        line = lines.line(key(app, "rules"))
        for _ in range(25):
            toxic = line.lose_reply(b"EVALSHA", times=1)
            await eventually(partial(getattr, toxic, "hits"), within=5)
            toxic.remove()
            book.injected()
        await all_done(State("q", lines.client, app=app), len(names))
    enter(book, names, plant.application.runs)
    popping = Popping(lines.client, app)
    await popping.fill(names)
    ended = asyncio.Event()
    line = lines.line(popping.key)
    toxic = line.lose_reply(b"LPOP", times=25)
    await popping.run(ended)
    twin.injected(toxic.hits)
    toxic.remove()
    enter(twin, names, popping.runs)


async def server_restarted(server: Server, app: str, book: Ledger) -> None:
    """The server is killed three times while 300 items are done; it comes back with its log, or empty."""
    names = [f"item {number}" for number in range(300)]
    async with opened(server.url, connect_timeout=0.5) as client, at_work(client, app, names) as plant:
        plant.application.turns = 12
        for _ in range(3):
            await more_than(plant.application.runs, 50)
            server.kill()
            book.injected()
            await asyncio.to_thread(server.restart)
        await all_done(State("q", client, app=app), len(names))
        book.recovered()
    enter(book, names, plant.application.runs)


async def popped_and_killed(server: Server, app: str, twin: Ledger) -> None:
    """The naive list on the same server: killed once, in the middle."""
    names = [f"item {number}" for number in range(300)]
    async with opened(server.url, connect_timeout=0.5) as client:
        popping = Popping(client, app)
        await popping.fill(names)
        task = asyncio.create_task(popping.run(asyncio.Event()))
        await eventually(lambda: len(popping.runs) > 50, within=10)
        server.kill()
        twin.injected()
        await asyncio.to_thread(server.restart)
        await task
        twin.recovered()
    enter(twin, names, popping.runs)


async def worker_paused(spawn: Callable[..., Worker], url: str, app: str, book: Ledger) -> None:
    """A worker is stopped in an item for longer than its lease, five times, beside one that goes on."""
    names = [f"item {number}" for number in range(30)]
    async with opened(url) as client:
        state = State("q", client, app=app)
        manager = Manager(
            state, Shelf(names, size=100), Policy(parallelism=4, **{**FAST, "lease": 0.3, "period": 0.03})
        )
        async with rounds(manager):
            first, second = (spawn(PROGRAM, "worker", url, app, name) for name in ("a", "b"))
            for _ in range(5):
                item = (await first.said("begun", within=20)).split(" ", 1)[1]
                first.stop()
                book.injected()

                async def given_to_another(item: str = item) -> bool:
                    return f"done {item}\n" in second.output

                await eventually(given_to_another, within=10)
                first.cont()
            await all_done(state, len(names))
            for worker in (first, second):
                worker.terminate()
                await worker.ended(within=10)
        enter(book, names, await effects(client, app))
