"""Processes of the work queue's fault tests: a nursery that forks managers or workers, which kill themselves.

    managers URL APP              one manager for each step of a round, which is killed there
    managers-in-memory URL APP    the naive one: list, do, remember
    workers URL APP N             two workers at a time; in every N-th item the worker is killed
    workers-done-first URL APP N  the naive one: it says done before it does
    worker URL APP NAME           one worker, whose items take a while; for SIGSTOP

Forked from a process that has imported everything, a new one costs next to nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from patterns.clock import SYSTEM_CLOCK
from patterns.container.work_queue import Manager, Page, Policy, Result, State, WorkerManager
from patterns.keyspace import opened
from tests.container.work_queue_ground import QUICK, Plant, Shelf, drain, effects_key
from tests.container.work_queue_naive import DoneFirst

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from patterns.keyspace import Client

NAMES = [f"item {number}" for number in range(8)]
POLICY = Policy(parallelism=3, **QUICK)


class Does:
    """An application in the worker's process: its effect is a count in Redis."""

    def __init__(self, client: Client, app: str, every: int = 0) -> None:
        self._client, self._key, self._every = client, effects_key(app), every

    def ready(self) -> bool:
        return True

    async def run(self, job: str, token: str, content: bytes, limit: float) -> Result:
        number = int(content.split()[-1])
        doomed = self._every and number % self._every == 0
        if doomed and await self._client.hsetnx(f"{self._key}-killed", content, 1):
            if number // self._every % 2:  # half of them after the effect
                await self._client.hincrby(self._key, content, 1)
            os.kill(os.getpid(), signal.SIGKILL)
        await self._client.hincrby(self._key, content, 1)
        return Result(0, "exit 0")


class Numbers:
    """A source in memory whose items need no listing by the worker."""

    async def page(self, after: str | None) -> Page:
        return Page([])

    async def get(self, item: str) -> bytes:
        return item.encode()


async def manager(url: str, app: str, step: int) -> None:
    """Make a round and be killed at a step of it; without one, bring all to an end."""
    count = 0

    async def deadly(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)
        reply = await call(*args, **options)
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return reply

    async with opened(url) as client:
        source: Any = Shelf(NAMES)
        plant = Plant(client, app, source, POLICY)
        plant.application = Does(client, app)  # type: ignore[assignment]  # it counts in Redis
        run, page = State._run, source.page
        state = plant.state()
        state._run = lambda *args: deadly(run, state, *args)  # type: ignore[method-assign]  # that is the point
        source.page = lambda after: deadly(page, after)
        await Manager(state, source, POLICY).round()
        await drain(plant.worker())


async def in_memory(url: str, app: str, step: int) -> None:
    """List, do, remember what is done; be killed after so many items."""
    async with opened(url) as client:
        does = Does(client, app)
        done: set[str] = set()
        for name in NAMES:
            if len(done) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            if name not in done:
                await does.run("", "", name.encode(), 1)
                done.add(name)


async def worker(url: str, app: str, every: int, kind: type[WorkerManager] = WorkerManager) -> None:
    """Work until SIGTERM, or until killed in an item."""
    async with opened(url) as client:
        state = State("q", client, app=app)
        it = kind("w", state, Numbers(), Does(client, app, every), poll=0.01)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, it.stop)
        await it.run()


async def slow_worker(url: str, app: str, name: str) -> None:
    """Say when an item is begun and when it is done; each takes a tenth of a second."""

    class Says(Does):
        async def run(self, job: str, token: str, content: bytes, limit: float) -> Result:
            print("begun", content.decode(), flush=True)
            await SYSTEM_CLOCK.sleep(0.1)
            result = await super().run(job, token, content, limit)
            print("done", content.decode(), flush=True)
            return result

    async with opened(url) as client:
        it = WorkerManager(name, State("q", client, app=app), Numbers(), Says(client, app), poll=0.01)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, it.stop)
        await it.run()


def forked(main: Coroutine[Any, Any, None]) -> int:
    """Run `main` in a process of its own and return its pid."""
    pid = os.fork()
    if pid:
        main.close()
        return pid
    code = 1
    try:
        asyncio.run(main)
        code = 0
    finally:
        os._exit(code)


def each_step(kind: Callable[[str, str, int], Coroutine[Any, Any, None]], url: str, app: str) -> int:
    """Start one after the other, each killed one step later, until one comes to its end."""
    for step in range(1, 100):
        _, status = os.waitpid(forked(kind(url, app, step)), 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return step - 1
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError("no round came to its end")


def two_at_a_time(url: str, app: str, every: int, kind: type[WorkerManager]) -> None:
    """Keep two workers at work until SIGTERM."""
    told: list[int] = []
    pids: set[int] = set()
    nursery = os.getpid()

    def tell(*_: object) -> None:
        if os.getpid() != nursery:  # a child that has not come to its own handler
            os._exit(0)
        told.append(1)
        for pid in pids:
            os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, tell)
    while not told:
        while len(pids) < 2:
            pids.add(forked(worker(url, app, every, kind)))
        pid, status = os.wait()
        pids.discard(pid)
        print("ended", status, flush=True)
    for pid in pids:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    mode, url, app, *more = sys.argv[1:]
    if mode == "managers":
        print("killed", each_step(manager, url, app), flush=True)
    elif mode == "managers-in-memory":
        print("killed", each_step(in_memory, url, app), flush=True)
    elif mode == "workers":
        two_at_a_time(url, app, int(more[0]), WorkerManager)
    elif mode == "workers-done-first":
        two_at_a_time(url, app, int(more[0]), DoneFirst)
    else:
        asyncio.run(slow_worker(url, app, more[0]))
