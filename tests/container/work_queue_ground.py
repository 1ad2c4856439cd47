"""What the checks of the work queue stand on: sources that are scripted, applications that count, queues."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from patterns.clock import SYSTEM_CLOCK
from patterns.container.work_queue import (
    FileCall,
    Folders,
    HttpSource,
    ItemVanished,
    Manager,
    Page,
    Policy,
    Result,
    State,
    WorkerManager,
)
from patterns.container.work_queue.launcher import Launcher
from patterns.keyspace import Keyspace
from patterns.serving import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from patterns.keyspace import Client

QUICK: dict[str, Any] = {"backoff": 0.001, "backoff_cap": 0.002, "lease": 30.0, "period": 0.02}


def key(app: str, role: str, queue: str = "q") -> str:
    """Return the key of a role of a queue's state."""
    return Keyspace(app, "work_queue").key(queue, role)


@dataclass
class Shelf:
    """A source in memory; an item's content is its name."""

    items: list[Any]
    size: int = 3  # of a page
    asked: Counter[str] = field(default_factory=Counter)

    async def page(self, after: str | None) -> Page:
        start = int(after or 0)
        await asyncio.sleep(0)
        end = start + self.size
        return Page(self.items[start:end], str(end) if end < len(self.items) else None)

    async def get(self, item: str) -> bytes:
        await asyncio.sleep(0)
        self.asked[item] += 1
        if item not in self.items:
            raise ItemVanished(item)
        return item.encode()


@dataclass
class Counting:
    """An application in memory: it counts what it did, and how many did it at one time."""

    runs: Counter[str] = field(default_factory=Counter)
    now: int = 0
    most: int = 0
    code: Callable[[str], int] = lambda _: 0
    turns: int = 3
    seconds: float = 0.0

    def ready(self) -> bool:
        return True

    async def run(self, job: str, token: str, content: bytes, limit: float) -> Result:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            for _ in range(self.turns):
                await asyncio.sleep(0)
            if self.seconds:
                await SYSTEM_CLOCK.sleep(self.seconds)
        finally:
            self.now -= 1
        self.runs[content.decode()] += 1
        code = self.code(content.decode())
        return Result(code, f"exit {code}", stderr=f"code {code}")


async def drain(worker: WorkerManager) -> None:
    """Do all that is due."""
    while await worker.step():
        pass


async def until_ended(manager: Manager, workers: Sequence[WorkerManager], state: State, count: int) -> None:
    """Make rounds, and have them worked on, until so many items have ended."""
    for _ in range(200):
        await manager.round()
        await asyncio.gather(*(drain(worker) for worker in workers))
        status = await state.status()
        if status.done + status.failed >= count:
            return
    raise AssertionError(f"not ended: {await state.status()}")


@dataclass
class Site:
    """A scripted source container: what it answers to a list is the next of `lists`, the last for ever."""

    lists: list[Callable[[web.Request], web.StreamResponse | Any]]
    items: dict[str, Any]
    asked: Counter[str] = field(default_factory=Counter)

    def app(self) -> web.Application:
        async def items(request: web.Request) -> web.StreamResponse:
            answer = self.lists[0] if len(self.lists) == 1 else self.lists.pop(0)
            self.asked["list"] += 1
            found = answer(request)
            return await found if asyncio.iscoroutine(found) else found

        async def item(request: web.Request) -> web.StreamResponse:
            name = request.match_info["name"]
            self.asked[name] += 1
            found = self.items.get(name)
            if callable(found):
                found = found(request)
            if asyncio.iscoroutine(found):
                found = await found
            if found is None:
                raise web.HTTPNotFound
            return found if isinstance(found, web.StreamResponse) else web.Response(body=found)

        app = web.Application()
        app.router.add_get("/api/v1/items", items)
        app.router.add_get("/api/v1/items/{name}", item)
        return app


@asynccontextmanager
async def asked_over_http(app: web.Application, **options: Any) -> AsyncIterator[HttpSource]:
    """Serve a source and lend the client's end."""
    async with serving(app, grace=0.1) as server, aiohttp.ClientSession() as session:
        yield HttpSource(server.url, session, **options)


def listed(names: list[Any], **more: Any) -> Callable[[web.Request], web.Response]:
    """Answer with this list."""
    return lambda _: web.json_response({"items": names, **more})


def body(text: str, status: int = 200) -> Callable[[web.Request], web.Response]:
    """Answer with this text."""
    return lambda _: web.Response(text=text, status=status)


@asynccontextmanager
async def container(folder: Path, *command: str, **options: Any) -> AsyncIterator[FileCall]:
    """Run a launcher with an application, and lend the worker-manager's end of the call."""
    for name in ("calls", "items"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folders = Folders(folder / "calls", folder / "items")
    launcher = Launcher(folders, list(command), poll=0.005, **options)
    task = asyncio.create_task(launcher.run())
    try:
        yield FileCall(folders, poll=0.005)
    finally:
        launcher.stop()
        await task


def python(text: str) -> tuple[str, ...]:
    """Return the command of an application in a few lines, whose start is quick."""
    return (sys.executable, "-I", "-S", "-c", text)


@dataclass
class Plant:
    """One queue with everything around it; a naive variant puts other parts in."""

    client: Client
    app: str
    source: Any
    policy: Policy
    application: Counting = field(default_factory=Counting)
    state_of: Any = State
    manager_of: Any = Manager
    worker_of: Any = WorkerManager

    def state(self) -> State:
        found: State = self.state_of("q", self.client, app=self.app)
        return found

    def manager(self, **options: Any) -> Manager:
        found: Manager = self.manager_of(self.state(), self.source, self.policy, **options)
        return found

    def worker(self, name: str = "w", **options: Any) -> WorkerManager:
        options = {"poll": 0.005, **options}
        found: WorkerManager = self.worker_of(name, self.state(), self.source, self.application, **options)
        return found


async def effects(client: Client, app: str) -> Counter[str]:
    """Return what the processes of a test have done, item by item."""
    reply: Any = await client.hgetall(effects_key(app))
    return Counter({name.decode(): int(count) for name, count in reply.items()})


def effects_key(app: str) -> str:
    return key(app, "effects", "effects")


@asynccontextmanager
async def rounds(manager: Manager) -> AsyncIterator[None]:
    """Let a manager make its rounds while the block runs."""
    task = asyncio.create_task(manager.run())
    try:
        yield
    finally:
        manager.stop()
        await task
