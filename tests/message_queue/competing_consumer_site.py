"""Where a queue is tried: two processes' clients, and hands on the server's idle times."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from patterns.keyspace import Keyspace, connect
from patterns.message_queue.competing_consumer import Policy, Queue, Worker
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from patterns.keyspace import Client
    from tests.places import Place

GIVEN = ("on_event", "clock", "codec", "rng")
SLOW: dict[str, Any] = {"visibility": 60.0, "poll": 20.0, "retry_delay": 0.001}
QUICK: dict[str, Any] = {"visibility": 60.0, "poll": 0.02, "retry_delay": 0.001}
COUNT = "redis.call('HINCRBY', KEYS[1], ARGV[1], 1)"


class Site:
    """Queues and workers as two processes have them."""

    def __init__(self, app: str, clients: Sequence[Client], queue: Any, worker: Any) -> None:
        self.app, self.clients = app, list(clients)
        self.make, self.worker = queue, worker
        self.patience = 3.0  # seconds until something is held to be missing
        self.tasks: list[asyncio.Task[Any]] = []

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start something that is cancelled at the latest when the test ends."""
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    def queue(self, which: int = 0, *, name: str = "jobs", **options: Any) -> Any:
        """Return a queue as one of two processes has it."""
        given = {key: options.pop(key) for key in GIVEN if key in options}
        return self.make(name, self.clients[which], Policy(**(QUICK | options)), app=self.app, **given)

    def key(self, role: str, name: str = "jobs", partition: int = 0) -> str:
        """Return a key of a queue."""
        return Keyspace(self.app, "competing_consumer").key(f"{name}/{partition}", role)

    async def pending(self, name: str = "jobs") -> list[dict[str, Any]]:
        """Return what is delivered and not acknowledged."""
        try:
            return list(
                await self.clients[1].xpending_range(self.key("stream", name), "workers", "-", "+", 1000)
            )
        except ResponseError:  # nobody has received anything
            return []

    async def idle(self, seconds: float, name: str = "jobs") -> None:
        """Let all owners have been silent for so long."""
        for each in await self.pending(name):
            await self.clients[1].xclaim(
                self.key("stream", name),
                "workers",
                each["consumer"],
                0,
                [each["message_id"]],
                idle=round(seconds * 1000),
                justid=True,
            )

    async def served(self, queue: Any) -> list[Any]:
        """Receive and acknowledge one message after the other, and return what they were."""
        payloads: list[Any] = []
        for lane in queue.lanes:
            lane._look_at = min(lane._look_at, 0.0)  # as if the poll had passed
            while found := await lane.receive("server", 1, wait=False):
                payloads.append(found[0].payload)
                await queue.acknowledge(found[0])
        return payloads


async def one(queue: Any, consumer: str, within: float = 3.0) -> Any:
    """Return the one message that a consumer is given."""
    found = await eventually(
        lambda: queue.lanes[0].receive(consumer, 1, wait=False),
        within=within,
        what=f"{consumer} has a message",
    )
    return found[0]


@asynccontextmanager
async def site(place: Place, queue: Any = Queue, worker: Any = Worker) -> AsyncIterator[Site]:
    """Open two clients."""
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(2):
            clients.append(connect(place.url, socket_timeout=30))
            stack.push_async_callback(clients[-1].aclose)
        at = Site(place.app, clients, queue, worker)
        try:
            yield at
        finally:
            for task in at.tasks:
                task.cancel()
            await asyncio.gather(*at.tasks, return_exceptions=True)
