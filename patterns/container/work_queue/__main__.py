"""The containers' processes: `python -m patterns.container.work_queue {folder,redis,manager,worker}`.

    folder    a source: the files below FOLDER, on PORT
    redis     a source: the hash `items_key(APP, QUEUE)` of REDIS_URL, on PORT
    manager   keeps the state of QUEUE in step with SOURCE_URL; health and metrics on PORT
    worker    takes items and has the application of CALLS and ITEMS do them

Environment, where it is needed: APP, QUEUE, REDIS_URL, SOURCE_URL, PORT, HOST, FOLDER, CALLS, ITEMS, NAME,
GRACE, and for the manager each field of `Policy` and `Scaling` in capitals (PARALLELISM must be there).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp

from patterns.clock import SYSTEM_CLOCK
from patterns.container.work_queue.call import FileCall, Folders
from patterns.container.work_queue.manager import Manager
from patterns.container.work_queue.metrics import metrics_app
from patterns.container.work_queue.policy import Policy
from patterns.container.work_queue.scaling import Scaler, Scaling
from patterns.container.work_queue.source import HttpSource
from patterns.container.work_queue.sources import folder_source, items_key, redis_source
from patterns.container.work_queue.state import State
from patterns.container.work_queue.worker import WorkerManager
from patterns.events import LogListener
from patterns.keyspace import opened
from patterns.serving import serve, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from patterns.serving import Server

__all__ = ["main"]

P = TypeVar("P", Policy, Scaling)


async def folder() -> None:
    """Serve a folder of files."""
    await serve(folder_source(Path(_given("FOLDER"))), port=_port(), host=_host(), on_ready=_ready)


async def redis() -> None:
    """Serve a hash in Redis."""
    async with opened() as client:
        key = items_key(_given("APP"), _given("QUEUE"))
        await serve(redis_source(client, key), port=_port(), host=_host(), on_ready=_ready)


async def manager() -> None:
    """Compare, again and again, until SIGTERM."""
    policy, scaler = _from_environment(Policy), Scaler(_from_environment(Scaling))
    async with opened(max_connections=4) as client, _source() as source:
        state = State(_given("QUEUE"), client, app=_given("APP"))
        it = Manager(state, source, policy, on_event=_listener)
        _on_signal(it.stop)
        async with serving(metrics_app(state, scaler), port=_port(), host=_host()) as server:
            _ready(server)
            await it.run()


async def worker() -> None:
    """Work until SIGTERM, and then to the end of the running item."""
    call = FileCall(Folders(Path(_given("CALLS")), Path(_given("ITEMS"))))
    call.clear()
    async with opened(max_connections=4) as client, _source() as source:
        state = State(_given("QUEUE"), client, app=_given("APP"))
        grace = float(os.environ.get("GRACE", "20"))
        name = os.environ.get("NAME") or os.uname().nodename
        it = WorkerManager(name, state, source, call, grace=grace, on_event=_listener)
        _on_signal(it.stop)
        _log.info("ready, pid %d", os.getpid())
        await it.run()


@asynccontextmanager
async def _source() -> AsyncIterator[HttpSource]:
    # No limit of aiohttp's own: HttpSource counts on a Clock.
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()) as session:
        yield HttpSource(_given("SOURCE_URL"), session, clock=SYSTEM_CLOCK)


def _port() -> int:
    return int(_given("PORT"))


def _host() -> str:
    return os.environ.get("HOST", "127.0.0.1")


def _given(name: str) -> str:
    if not (value := os.environ.get(name)):
        sys.exit(f"work queue: the environment variable {name} must be set")
    return value


def _from_environment(kind: type[P]) -> P:
    """Return a policy whose fields are read from the environment; `most` is MOST, or else PARALLELISM."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        text = os.environ.get(field.name.upper())
        if text is None and field.default is MISSING:
            text = _given("PARALLELISM")
        if text is not None:
            try:
                values[field.name] = (int if "int" in str(field.type) else float)(text)
            except ValueError:
                sys.exit(f"work queue: {field.name.upper()} must be a number, got {text!r}")
    return kind(**values)


def _on_signal(stop: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)


def _ready(server: Server) -> None:
    _log.info("ready, pid %d, %s", os.getpid(), server.url)


_log = logging.getLogger("work_queue")
_listener = LogListener(_log)
_PARTS = {"folder": folder, "redis": redis, "manager": manager, "worker": worker}


def main(part: str) -> None:
    """Run one of the processes until it is told to end."""
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "INFO"), format=f"{part}: %(message)s")
    asyncio.run(_PARTS[part]())


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in _PARTS:
        sys.exit(f"usage: python -m patterns.container.work_queue {{{','.join(_PARTS)}}}")
    main(sys.argv[1])
