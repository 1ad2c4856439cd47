"""What the fault tests of the priority queue do: processes killed in jobs, lines and servers that break."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import RedisError

from patterns.clock import SYSTEM_CLOCK
from patterns.keyspace import OutcomeUnknown, opened
from patterns.message_queue.priority_queue import LeaseLost, Policy, PriorityQueue
from tests.eventually import eventually
from tests.faults import Ledger, proxy
from tests.message_queue.priority_queue_naive import PopsAndAdds
from tests.message_queue.priority_queue_processes import done, effect

if TYPE_CHECKING:
    from collections.abc import Iterable

    from patterns.embedded import Cluster, Server
    from patterns.keyspace import Client
    from tests.faults.workers import Worker

POLICY = Policy(aging=10, lease=0.4, poll=0.1, max_deliveries=1000)


class Nursery:
    """Starts processes by order, and ends them."""

    def __init__(self, client: Client, worker: Worker, orders: str) -> None:
        self.client, self.worker, self.orders = client, worker, orders
        self.numbers = itertools.count()
        self.pids: dict[int, int] = {}

    async def start(self, kind: str, app: str) -> int:
        """Start a process, and return its number."""
        number = next(self.numbers)
        pushed: Any = self.client.rpush(self.orders, f"{kind} {app} {number}")
        await pushed
        self.pids[number] = int((await self.line(f"{number} is (\\d+)"))[1])
        return number

    async def line(self, form: str) -> re.Match[str]:
        """Wait for a line."""
        pattern = re.compile(rf"^{form}\b.*\n", re.MULTILINE)
        found: Any = eventually(lambda: pattern.search(self.worker.output), within=20)
        return cast("re.Match[str]", await found)

    def send(self, number: int, what: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pids[number], what)

    async def kill_one_that_holds(self, kind: str, app: str, book: Ledger) -> None:
        """Start a process, and kill it when it has jobs in its hands."""
        number = await self.start(kind, app)
        await self.line(f"{number} holds")
        self.send(number, signal.SIGKILL)
        book.injected()


async def push_all(queue: Any, numbers: Iterable[int], book: Ledger, *, once: bool = True) -> None:
    """Push jobs, again and again until one is told that they are there."""
    for number in numbers:
        while True:
            try:
                await queue.push(number, priority=number % 10, dedupe_id=f"job {number}" if once else None)
            except OutcomeUnknown:
                book.unsure(number)
            except RedisError:
                await SYSTEM_CLOCK.sleep(0.01)
            else:
                book.acked(number)
                break


class Consumer:
    """Works until it is stopped, whatever happens to its connections."""

    def __init__(self, queue: Any, app: str) -> None:
        self.queue, self.app = queue, app
        self.stopped = False
        self.errors = self.late = self.served = 0
        self.task = asyncio.create_task(self.work())

    async def work(self) -> None:
        while not self.stopped:
            try:
                for one in await self.queue.receive("one", 5):
                    await self.settle(one)
            except (RedisError, OSError):
                self.errors += 1
                await SYSTEM_CLOCK.sleep(0.01)

    async def settle(self, one: Any) -> None:
        """Do the job with its acknowledgement; where it is not known whether it was, ask again."""
        for _ in range(20):
            try:
                await self.queue.acknowledge(one, effect(self.app, one))
            except LeaseLost:
                self.late += 1  # it was done, or it is another's
                return
            except (RedisError, OSError):
                self.errors += 1
                await SYSTEM_CLOCK.sleep(0.01)
            else:
                self.served += 1
                return

    async def stop(self) -> None:
        self.stopped = True
        await self.task


async def effects(client: Client, app: str, book: Ledger, key: str | None = None) -> None:
    """Enter what was done."""
    found: Any = client.lrange(key or done(app), 0, -1)
    for each in await found:
        book.effect(int(each))


async def empty(queue: PriorityQueue) -> bool:
    """Whether all is done."""
    try:
        stats = await queue.stats()
    except RedisError:
        return False
    return stats.ready + stats.delayed + stats.leased == 0


async def after_a_restart(url: str, app: str, book: Ledger, own: Any, *, kills: int, consume: bool) -> None:
    """Kill and restart Redis while jobs are pushed, and are done or are not."""
    async with opened(url) as client, opened(url) as other:
        jobs = PriorityQueue("jobs", client, POLICY, app=app)
        consumer = Consumer(PriorityQueue("jobs", other, POLICY, app=app), app) if consume else None
        pushed = itertools.count()
        for _ in range(kills):
            pushing = asyncio.create_task(push_all(jobs, itertools.islice(pushed, 200), book))
            if not consume:
                await pushing
            else:
                enough = book.outcomes["acked"] + 50
                await eventually(lambda enough=enough: book.outcomes["acked"] > enough, within=10)  # type: ignore[misc]  # this one
            own.kill()
            book.injected()
            own.restart()
            await pushing
            book.recovered()
        if consumer is None:
            consumer = Consumer(PriorityQueue("jobs", other, POLICY, app=app), app)
            await push_all(jobs, itertools.islice(pushed, 20), book)
        await eventually(lambda: empty(jobs), within=20)
        await consumer.stop()
        await effects(client, app, book)


async def killed_in_jobs(nursery: Nursery, app: str, book: Ledger) -> None:
    """Push 5,000 jobs, kill 20 consumers that have 25 each, and let two others do the work."""
    jobs = PriorityQueue("jobs", nursery.client, POLICY, app=app)
    shares = [push_all(jobs, range(at, 5000, 8), book, once=False) for at in range(8)]
    await asyncio.gather(*shares)
    for _ in range(20):
        await nursery.kill_one_that_holds("victim", app, book)
    for _ in range(2):
        await nursery.start("worker", app)
    await eventually(lambda: empty(jobs), within=20)
    book.recovered()
    await effects(nursery.client, app, book)


async def killed_with_what_they_popped(nursery: Nursery, app: str, book: Ledger) -> None:
    """Do the same to consumers that pop."""
    client: Any = nursery.client
    for number in range(5000):
        book.acked(number)
    await client.zadd(f"{app}-naive", {str(number): number % 10 for number in range(5000)})
    for _ in range(20):
        await nursery.kill_one_that_holds("pop-victim", app, book)
    await nursery.start("popper", app)

    async def popped() -> bool:
        return bool(await client.llen(f"{app}-naive-done") == 4500)

    await eventually(popped, within=20)
    book.recovered()
    await effects(client, app, book, f"{app}-naive-done")


async def paused_in_jobs(nursery: Nursery, app: str, book: Ledger, kind: str, said: str) -> None:
    """Pause five consumers with a job each, let another do the jobs, and let the five go on."""
    client: Any = nursery.client
    jobs = PriorityQueue("jobs", client, POLICY, app=app)
    await push_all(jobs, range(5), book)
    numbers = [await nursery.start(kind, app) for _ in range(5)]
    for number in numbers:
        await nursery.line(f"{number} holds")
        nursery.send(number, signal.SIGSTOP)
        book.injected()
    consumer = Consumer(jobs, app)
    await eventually(lambda: empty(jobs), within=10)
    await consumer.stop()
    for number in numbers:
        nursery.send(number, signal.SIGCONT)
        await client.rpush(f"go-{number}", "go")
        await nursery.line(f"{number} was {said}")
    await effects(client, app, book)


async def under_resets(server: Server, app: str, book: Ledger, make: Any, pushed: bytes) -> None:
    """Push and consume while connections are reset every 200 ms, once just after a push was carried out."""
    async with proxy(server.port, book) as line, opened(line.url) as client, opened(line.url) as other:
        jobs, worker = make("jobs", client, POLICY, app=app), make("jobs", other, POLICY, app=app)
        consumer = Consumer(worker, app)
        numbers = itertools.count()
        pushing = asyncio.create_task(push_all(jobs, numbers, book))
        for _ in range(8):
            await SYSTEM_CLOCK.sleep(0.2)
            await line.reset_all()
        with line.lose_reply(lambda request: pushed in request) as lost:
            await eventually(lambda: lost.hits, within=10)
        served = consumer.served
        await eventually(lambda: consumer.served > served, within=5)
        book.recovered()
        pushing.cancel()
        await asyncio.gather(pushing, return_exceptions=True)
        book.unsure(next(numbers) - 1)  # the one that was cut off
        await eventually(lambda: empty(worker), within=20)
        await consumer.stop()
        await effects(client, app, book)


async def primary_killed(own: Cluster, app: str, book: Ledger) -> Ledger:
    """Kill the primary of a queue while jobs are pushed and done; return the books of one beside it."""
    beside = Ledger(book.pattern, book.fault)
    async with opened(own.url) as client, opened(own.url) as other:
        jobs = PriorityQueue("jobs", client, POLICY, app=app)
        naive = PopsAndAdds("jobs", other, POLICY, app=app, role="naive-done")
        consumers = [Consumer(PriorityQueue("jobs", other, POLICY, app=app), app), Consumer(naive, app)]
        pushing = [
            asyncio.create_task(push_all(queue, range(400), books))
            for queue, books in ((jobs, book), (naive, beside))
        ]
        await eventually(lambda: book.outcomes["acked"] > 150, within=10)
        own.primary_of(jobs.lanes[0].keys[0]).kill()
        book.injected()
        served = consumers[0].served
        await eventually(lambda: consumers[0].served > served + 20, within=20)
        book.recovered()
        await asyncio.gather(*pushing)
        for queue in (jobs, naive):
            await eventually(lambda queue=queue: empty(queue), within=20)  # type: ignore[misc]  # this one
        for consumer in consumers:
            await consumer.stop()
        await effects(client, app, book)
        await effects(client, app, beside, naive.done)
    return beside
