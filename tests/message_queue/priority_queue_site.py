"""Where a priority queue is tried: two processes' clients, and hands on the queue's clock."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from patterns.keyspace import Keyspace, connect
from patterns.message_queue.priority_queue import Policy, PriorityQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence

    from patterns.keyspace import Client
    from tests.places import Place

ROLES = ("ready", "delayed", "leases", "dead", "jobs", "payloads", "history", "last", "step", "wake")
SECOND = 1_000_000
GIVEN = ("on_event", "clock", "codec")


def policy(**changes: Any) -> Policy:
    """Return a policy whose leases a busy machine does not outlive."""
    return Policy(**({"aging": 10, "lease": 60, "poll": 20, "retry_delay": 0.001} | changes))


class Between:
    """A client that lets something happen before a consumer begins to wait, and counts what it asks."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.asked = 0
        self.waiting = 0
        self.before_the_wait: Callable[[], Awaitable[object]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def evalsha(self, *args: Any) -> Any:
        self.asked += 1
        return self.client.evalsha(*args)

    async def xread(self, *args: Any, **options: Any) -> Any:
        return await self._waits(self.client.xread, *args, **options)

    async def blpop(self, *args: Any, **options: Any) -> Any:
        return await self._waits(self.client.blpop, *args, **options)

    async def _waits(self, command: Any, *args: Any, **options: Any) -> Any:
        if self.before_the_wait is not None:
            happens, self.before_the_wait = self.before_the_wait, None
            await happens()
        self.waiting += 1
        try:
            return await command(*args, **options)
        finally:
            self.waiting -= 1


class Site:
    """Queues as two processes have them."""

    def __init__(self, app: str, make: Any, clients: Sequence[Client]) -> None:
        self.app, self.make = app, make
        self.clients = [Between(client) for client in clients]
        self.tasks: list[asyncio.Task[Any]] = []

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start something that is cancelled at the latest when the test ends."""
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    def queue(self, which: int = 0, *, name: str = "jobs", **options: Any) -> Any:
        """Return a queue as one of two processes has it."""
        given = {key: options.pop(key) for key in GIVEN if key in options}
        client: Any = self.clients[which]
        return self.make(name, client, policy(**options), app=self.app, **given)

    def key(self, role: str, name: str = "jobs") -> str:
        """Return a key of a queue."""
        return Keyspace(self.app, "priority_queue").key(name, role)

    async def age(self, seconds: float, name: str = "jobs") -> None:
        """Let whatever is pushed from now on come so much later."""
        await self.clients[0].incrby(self.key("last", name), round(seconds * SECOND))

    async def come_true(self, role: str, name: str = "jobs") -> None:
        """Let all delays, or all leases, have ended."""
        for member in await self.clients[0].zrange(self.key(role, name), 0, -1):
            await self.clients[0].zadd(self.key(role, name), {member: 1}, xx=True)

    async def ranks(self, name: str = "jobs") -> list[tuple[bytes, float]]:
        """Return what is ready, in order, with the ranks."""
        return list(await self.clients[0].zrange(self.key("ready", name), 0, -1, withscores=True))

    async def served(self, queue: Any, most: int = 1000) -> list[Any]:
        """Receive and acknowledge one job after the other, and return what they were."""
        payloads: list[Any] = []
        while len(payloads) < most and (found := await queue.receive("server", wait=False)):
            payloads.append(found[0].payload)
            await queue.acknowledge(found[0])
        return payloads


@asynccontextmanager
async def site(
    place: Place, make: Any = PriorityQueue, *, second: Client | None = None
) -> AsyncIterator[Site]:
    """Open two clients, or one beside the one that is given."""
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(2 if second is None else 1):
            clients.append(connect(place.url, socket_timeout=30))
            stack.push_async_callback(clients[-1].aclose)
        clients += [] if second is None else [second]
        at = Site(place.app, make, clients)
        try:
            yield at
        finally:
            for task in at.tasks:
                task.cancel()
            await asyncio.gather(*at.tasks, return_exceptions=True)
