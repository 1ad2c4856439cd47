"""What the fault tests of the competing consumer need: senders that repeat, workers that count, and harm."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, ResponseError

from patterns.clock import SYSTEM_CLOCK
from patterns.keyspace import OutcomeUnknown, connect
from patterns.message_queue.competing_consumer import Delivery, Effect, Policy, Queue, Worker
from tests.eventually import eventually
from tests.faults import proxy
from tests.message_queue.competing_consumer_site import COUNT

if TYPE_CHECKING:
    from patterns.embedded import Cluster, Server
    from patterns.keyspace import Client
    from tests.cache.write_behind_faults import Nursery
    from tests.faults import Ledger
    from tests.message_queue.competing_consumer_site import Site

POLICY = Policy(visibility=0.5, poll=0.05, retry_delay=0.01, max_deliveries=1000)


async def gone(client: Any, key: str) -> bool:
    """Say whether a key is not there."""
    return not await client.exists(key)


async def empty(queue: Queue) -> bool:
    """Say whether all is done."""
    with suppress(RedisError):
        stats = await queue.stats()
        return stats.depth == stats.pending == 0
    return False


async def killed_in_turn(nursery: Nursery, kind: str, kills: int, book: Ledger) -> None:
    """Kill each worker that says that it holds a message, and start another one, so often."""
    alive = [await nursery.start(kind) for _ in range(2)]
    heard: set[int] = set()
    for _ in range(kills):
        dying = await eventually(lambda: [n for n in alive if _holds(nursery, n)], within=20)
        nursery.kill(dying[0])
        book.injected()
        heard.add(dying[0])
        alive.remove(dying[0])
        alive.append(await nursery.start(kind))


def _holds(nursery: Nursery, number: int) -> bool:
    return bool(nursery._lines(f"{number} holding"))


async def send_surely(queue: Queue, payload: int, book: Ledger, *, dedupe: bool = True) -> int:
    """Send until it is acknowledged; return how often it was sent again after an unknown outcome."""
    again = 0
    while True:
        try:
            await queue.send(payload, dedupe_id=str(payload) if dedupe else None)
        except OutcomeUnknown:
            again += 1
            book.unsure(payload)
        except (RedisError, OSError):
            await SYSTEM_CLOCK.sleep(0.02)
        else:
            book.acked(payload)
            return again


class Counting:
    """A worker that counts each message by an Effect."""

    def __init__(self, queue: Queue, **options: Any) -> None:
        self.queue, self.handled = queue, 0
        self.worker = Worker(queue.lanes, self.handle, timeout=None, **options)

    async def handle(self, delivery: Delivery) -> Effect:
        self.handled += 1
        await SYSTEM_CLOCK.sleep(0.002)
        key = self.queue.lane_of(delivery).key("made")
        return Effect(COUNT, [key], [str(delivery.payload)])

    async def more(self, many: int, *, within: float) -> None:
        enough = self.handled + many
        await eventually(lambda: self.handled >= enough, within=within)


async def entered(client: Any, key: str, book: Ledger) -> None:
    """Enter the effects that were made."""
    for payload, times in (await client.hgetall(key)).items():
        book.effect(int(payload), int(times))


async def under_resets(server: Server, app: str, book: Ledger, without: Ledger, *, resets: int) -> None:
    """Reset all connections again and again, of ours and of a worker that never looks back."""
    async with proxy(server.port, may_idle=True) as line, proxy(server.port, may_idle=True) as other:
        client, plain = connect(line.url), connect(other.url, socket_timeout=0.5)
        direct: Any = connect(server.url)
        stream, made = f"{app}:plain", f"{app}:plain-made"
        try:
            queue = Queue("jobs", client, POLICY, app=app)
            counting, numbers, stop = Counting(queue, concurrency=2), itertools.count(), False

            async def sender() -> None:
                while not stop:
                    await send_surely(queue, next(numbers), book)
                    await SYSTEM_CLOCK.sleep(0.003)  # or most of the time goes by until all is done

            await direct.xgroup_create(stream, "g", "0", mkstream=True)
            for number in range(100):
                await direct.xadd(stream, {"n": number})
                without.acked(number)
            far_away = other.latency(0.02)  # so that a reset finds it waiting for an answer
            async with counting.worker:
                tasks = [
                    asyncio.create_task(sender()),
                    asyncio.create_task(_never_looks_back(plain, stream, made)),
                ]
                await counting.more(5, within=5)
                for _ in range(resets):
                    await SYSTEM_CLOCK.sleep(0.2)
                    book.injected(max(1, await line.reset_all()))
                    without.injected(max(1, await other.reset_all()))
                    await counting.more(3, within=5)
                    book.recovered()
                stop = True
                far_away.remove()
                await asyncio.gather(*tasks)
                await eventually(lambda: empty(queue), within=10)
            without.recovered()
            await entered(direct, queue.lanes[0].key("made"), book)
            await entered(direct, made, without)
        finally:
            for each in (client, plain, direct):
                await each.aclose()


async def _never_looks_back(client: Any, stream: str, made: str) -> None:
    found: Any = True
    while found:
        with suppress(RedisError, OSError):
            found = await client.xreadgroup("g", "c", {stream: ">"}, count=1)
            for _, entries in found or ():
                for entry, fields in entries:
                    await client.hincrby(made, fields[b"n"], 1)
                    await client.xack(stream, "g", entry)


async def killed_under_load(own: Server, app: str, book: Ledger, without: Ledger, *, kills: int) -> None:
    """Kill and restart Redis while messages are sent and handled."""
    client: Any = connect(own.url)
    try:
        queue = Queue("jobs", client, POLICY, app=app)
        counting, numbers, stop = Counting(queue, concurrency=2), itertools.count(), False

        async def sender() -> None:
            while not stop:
                await send_surely(queue, next(numbers), book)
                await SYSTEM_CLOCK.sleep(0.003)  # or most of the time goes by until all is done

        async with counting.worker:
            senders = [asyncio.create_task(sender()) for _ in range(2)]
            for _ in range(kills):
                await counting.more(50, within=10)
                await client.rpush(f"{app}:list", 1)
                held = int((await client.blpop([f"{app}:list"], timeout=1))[1])
                number = without.faults
                without.acked(number)
                assert held == 1
                own.kill()
                book.injected()
                without.injected()
                with suppress(RedisError):  # it cannot do its job, and nobody else has it
                    await client.hincrby(f"{app}:made", number, 1)
                own.restart()
                await counting.more(10, within=15)
                book.recovered()
            stop = True
            await asyncio.gather(*senders)
            await eventually(lambda: empty(queue), within=15)
        without.recovered()
        await entered(client, queue.lanes[0].key("made"), book)
        await entered(client, f"{app}:made", without)
    finally:
        await client.aclose()


async def forgotten(own: Server, app: str, book: Ledger | None, *, naive: bool = False) -> int:
    """Restart a Redis that keeps nothing, with 100 messages in it; return how many of the next 50 arrive."""
    client: Any = connect(own.url)
    try:
        queue = Queue("jobs", client, POLICY, app=app)
        counting = Counting(queue, concurrency=2)
        async with counting.worker:
            await queue.send(-1)
            await eventually(lambda: empty(queue), within=5)
        await queue.send_many(range(100))
        own.kill()
        if book is not None:
            for number in range(100):
                book.acked(number)
            book.injected()
        own.restart()
        await eventually(lambda: _answers(client), within=10)
        await queue.send_many(range(100, 150))
        if naive:
            with suppress(ResponseError):
                await client.xgroup_create(queue.lanes[0].keys[0], "workers", "$")
        async with counting.worker:
            if book is not None:
                await eventually(lambda: empty(queue), within=10)
                book.recovered()
            else:
                await queue.send(-2)
                await eventually(lambda: _made(client, queue, b"-2"), within=10)
        made = await client.hgetall(queue.lanes[0].key("made"))
        if book is not None:
            for number in range(100, 150):
                book.acked(number)
            await entered(client, queue.lanes[0].key("made"), book)
        return len([1 for number in made if 100 <= int(number) < 150])
    finally:
        await client.aclose()


async def _answers(client: Any) -> bool:
    with suppress(RedisError):
        return bool(await client.ping())
    return False


async def _made(client: Any, queue: Queue, what: bytes) -> bool:
    return bool(await client.hexists(queue.lanes[0].key("made"), what))


async def paused(at: Site, nursery: Nursery, queue: Queue, kind: str, book: Ledger) -> None:
    """Pause a worker with a message in its hands until another has done it; then let it go on."""
    client: Any = at.clients[0]
    for number in range(2):
        await queue.send(number)
        book.acked(number)
        late = await nursery.start(kind)
        await nursery.says(late, "holding", 1)
        os.kill(nursery.pids[late], signal.SIGSTOP)
        book.injected()
        other = await eventually(lambda: queue.lanes[0].receive("other", 1), within=5)
        key, payload = queue.lanes[0].key("made"), str(other[0].payload)
        if kind == "fenced":
            assert await queue.lanes[0].acknowledge_with(other[0], Effect(COUNT, [key], [payload]))
        else:
            await client.hincrby(key, payload, 1)
        book.recovered()
        os.kill(nursery.pids[late], signal.SIGCONT)
        await client.rpush(f"{at.app}:go", 1)
        await nursery.says(late, "was refused" if kind == "fenced" else "has acknowledged", 1)
        nursery.kill(late)
        if kind == "unfenced":
            with suppress(Exception):
                await queue.acknowledge(other[0])
    await entered(client, queue.lanes[0].key("made"), book)


async def poisoned(
    at: Site, nursery: Nursery, queue: Queue, kind: str, book: Ledger | None, *, most: int
) -> int:
    """Give workers a poison among 40 good messages; return how many died of it, `most` at most."""
    payloads: list[Any] = list(range(40))
    payloads.insert(10, "poison")
    await queue.send_many(payloads)
    deaths = 0
    worker = await nursery.start(kind)
    while deaths < most:

        async def dies_or_is_done(worker: int = worker) -> str:
            if nursery._lines(f"{worker} dies"):
                return "dies"
            return "done" if await empty(queue) else ""

        if await eventually(dies_or_is_done, within=10) == "done":
            break
        deaths += 1
        if book is not None:
            book.injected()
        worker = await nursery.start(kind)
    if book is not None:
        book.recovered()
        for number in range(40):
            book.acked(number)
        await entered(at.clients[0], queue.lanes[0].key("made"), book)
    nursery.kill(worker)
    return deaths


async def replies_lost(server: Server, app: str, book: Ledger, without: Ledger) -> None:
    """Lose the reply to each of 20 sends, and send again."""
    async with proxy(server.port, may_idle=True) as line:
        client: Any = connect(line.url)
        direct: Any = connect(server.url)
        try:
            queue = Queue("jobs", client, POLICY, app=app)
            await queue.send(-1)
            for number in range(20):
                with line.lose_reply(b"EVAL"):
                    assert await send_surely(queue, number, book) == 1
                book.injected()
                with line.lose_reply(b"XADD"), suppress(RedisError):
                    await client.xadd(f"{app}:plain", {"n": number})
                await client.xadd(f"{app}:plain", {"n": number})
                without.injected()
                without.acked(number)
            for delivery in await queue.lanes[0].receive("a", 1000, wait=False):
                if delivery.payload >= 0:
                    book.effect(delivery.payload)
            for _, fields in await direct.xrange(f"{app}:plain"):
                without.effect(int(fields[b"n"]))
        finally:
            await client.aclose()
            await direct.aclose()


async def primary_killed(own: Cluster, app: str, book: Ledger) -> int:
    """Kill the primary that has a queue, under load; return how many of ten popped jobs are lost."""
    client: Client = connect(own.url)
    try:
        queue = Queue("jobs", client, POLICY, app=app)
        tag = queue.lanes[0].keys[0].partition("{")[2].partition("}")[0]
        jobs, made = f"{app}:{{{tag}}}:list", f"{app}:{{{tag}}}:list-made"
        counting, numbers, stop = Counting(queue, concurrency=2), itertools.count(), False
        any_client: Any = client

        async def sender() -> None:
            while not stop:
                await send_surely(queue, next(numbers), book)
                await SYSTEM_CLOCK.sleep(0.003)  # or most of the time goes by until all is done

        await any_client.rpush(jobs, *range(10))
        popped = await any_client.lpop(jobs, 10)
        async with counting.worker:
            tasks = [asyncio.create_task(sender()) for _ in range(2)]
            await counting.more(100, within=20)
            own.primary_of(queue.lanes[0].keys[0]).kill()
            book.injected()
            for job in popped:
                with suppress(RedisError, OSError):  # it cannot do its job, and nobody else has it
                    await any_client.hincrby(made, job, 1)
            await counting.more(20, within=20)
            book.recovered()
            stop = True
            await asyncio.gather(*tasks)
            await eventually(lambda: empty(queue), within=20)
        await entered(client, queue.lanes[0].key("made"), book)
        done, back = await any_client.hlen(made), await any_client.llen(jobs)
        return 10 - int(done) - int(back)
    finally:
        await client.aclose()
