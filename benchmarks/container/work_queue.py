"""What an item costs on its way from source to exit code, beside a bare process and beside RQ."""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import redis
import rq
from rq.timeouts import UnixSignalDeathPenalty

from benchmarks.paired import SEED, row
from patterns.container.work_queue import (
    FileCall,
    Folders,
    HttpSource,
    Manager,
    Policy,
    Result,
    State,
    WorkerManager,
    folder_source,
)
from patterns.container.work_queue.launcher import Launcher
from patterns.embedded import Server
from patterns.keyspace import opened
from patterns.serving import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from benchmarks.paired import Row

ROUNDS, ITEMS = 9, 50
PROGRAM = "/bin/true"


class InProcess:
    """An application that is a function: what is left is the queue."""

    def ready(self) -> bool:
        return True

    async def run(self, _job: str, _token: str, _content: bytes, _limit: float, /) -> Result:
        return Result(0, "exit 0")


def nothing() -> None:
    """What RQ's workers do for an item."""


class Ours:
    """Source over HTTP, manager, worker-manager; the application is a container's process, or a function."""

    def __init__(self, url: str, folder: Path, *, in_process: bool) -> None:
        self._url, self._folder, self._in_process = url, folder, in_process

    async def __call__(self) -> float:
        """Do ITEMS items from their list to their end; seconds."""
        letters, calls, items = (self._folder / name for name in ("letters", "calls", "items"))
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(opened(self._url))
            served = await stack.enter_async_context(serving(folder_source(letters)))
            session = await stack.enter_async_context(aiohttp.ClientSession())
            state, source = State(uuid.uuid4().hex, client, app="bench"), HttpSource(served.url, session)
            manager = Manager(state, source, Policy(parallelism=1))
            folders = Folders(calls, items)
            launcher = Launcher(folders, [PROGRAM], echo=False)
            running = asyncio.create_task(launcher.run())
            application = InProcess() if self._in_process else FileCall(folders)
            worker = WorkerManager("w", state, source, application)
            while not FileCall(folders).ready():  # noqa: ASYNC110  a few milliseconds, once
                await asyncio.sleep(0.001)
            began = time.perf_counter()
            await manager.round()
            while await worker.step():
                pass
            took = time.perf_counter() - began
            assert (await state.status()).done == ITEMS
            launcher.stop()
            await running
        return took


async def bare() -> float:
    """Start and await the program for each item; seconds."""
    began = time.perf_counter()
    for _ in range(ITEMS):
        process = await asyncio.create_subprocess_exec(PROGRAM)
        assert await process.wait() == 0
    return time.perf_counter() - began


class Rq:
    """RQ: a function that does nothing, in a process forked for each job, or in the worker's own."""

    def __init__(self, url: str, kind: type[rq.Worker], items: int) -> None:
        self._client, self._kind, self._items = redis.Redis.from_url(url), kind, items

    def __call__(self) -> float:
        """Enqueue and do; seconds for ITEMS items."""
        queue = rq.Queue(uuid.uuid4().hex, connection=self._client)
        worker = self._kind([queue], connection=self._client)
        worker.death_penalty_class = UnixSignalDeathPenalty
        began = time.perf_counter()
        for _ in range(self._items):
            queue.enqueue(nothing, result_ttl=0)
        worker.work(burst=True, logging_level="ERROR")
        took = time.perf_counter() - began
        assert not len(queue)
        return took * ITEMS / self._items


def measure() -> list[Row]:
    """Return milliseconds for each item, from its list or its enqueuing to its end; one worker."""
    with Server() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in ("letters", "calls", "items"):
            (folder / each).mkdir()
        for number in range(ITEMS):
            (folder / "letters" / f"letter {number}").write_text("hello\n")
        cases: dict[str, Callable[[], float | Coroutine[object, object, float]]] = {
            "a bare process for each item": bare,
            "this module, /bin/true in the application container": Ours(server.url, folder, in_process=False),
            "this module, a function for an application": Ours(server.url, folder, in_process=True),
            "RQ, a function in a forked process": Rq(server.url, rq.Worker, ITEMS // 2),
            "RQ SimpleWorker, a function": Rq(server.url, rq.SimpleWorker, ITEMS),
        }
        samples: dict[str, list[float]] = {case: [] for case in cases}
        rng = random.Random(SEED)
        for number in range(ROUNDS + 1):
            for case in rng.sample(list(cases), len(cases)):
                found = cases[case]()
                took = found if isinstance(found, float) else asyncio.run(found)
                if number:
                    samples[case].append(took / ITEMS * 1000)
    base = samples["a bare process for each item"]
    notes = {
        "a bare process for each item": "no queue: what is lost is lost",
        "this module, a function for an application": "list, job, claim, item over HTTP, report",
        "RQ, a function in a forked process": "no source and no file; the job is a Python function",
        "RQ SimpleWorker, a function": "no isolation, no time-out by force",
    }
    rows = []
    for case, times in samples.items():
        line = row(
            case,
            statistics.quantiles(times, n=4)[0],
            "ms",
            n=ROUNDS * ITEMS,
            baseline_value=1.0,
            ours="this module" in case,
            baseline="bare" in case,
            note=notes.get(case),
        )
        ratio = statistics.median(time / other for time, other in zip(times, base, strict=True))
        rows.append(line | {"ratio": float(f"{ratio:.3g}")})
    return rows


def bounds(rows: list[Row]) -> list[str]:
    """With a process for each item at most 1.3 x RQ's fork; as a queue alone at most 1.3 x SimpleWorker."""
    value = {row["case"]: row["value"] for row in rows}
    pairs = [
        ("this module, /bin/true in the application container", "RQ, a function in a forked process"),
        ("this module, a function for an application", "RQ SimpleWorker, a function"),
    ]
    return [
        f"{ours}: {value[ours]} ms > 1.3 x {peer}: {value[peer]} ms"
        for ours, peer in pairs
        if value[ours] > 1.3 * value[peer]
    ]
