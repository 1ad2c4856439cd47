"""What a test may not leave behind: tasks, descriptors, processes, connections in use, keys without a TTL."""

from __future__ import annotations

import asyncio
import gc
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.eventually import eventually_now

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["immortal_keys", "in_use", "nothing_left", "stray_tasks"]


async def stray_tasks() -> list[str]:
    """Return the tasks, besides the current one, that do not end by themselves in a few turns of the loop."""
    stray: set[asyncio.Task[Any]] = set()
    for _ in range(10):
        stray = asyncio.all_tasks() - {asyncio.current_task()}
        if not stray:
            break
        await asyncio.sleep(0)
    return sorted(f"{task.get_name()}: {task.get_coro()!r}" for task in stray)


def in_use(client: Any) -> int:
    """Return how many connections of a redis-py asyncio client, single or cluster, are lent out."""
    if hasattr(client, "nodes_manager"):
        nodes = client.nodes_manager.nodes_cache.values()
        return sum(len(node._connections) - len(node._free) for node in nodes)
    return len(client.connection_pool._in_use_connections)


async def immortal_keys(client: Any, prefix: str, *, declared: Collection[str] = ()) -> list[str]:
    """Return the keys under `prefix` that never expire, but for those whose role is declared.

    Args:
        client: a redis-py asyncio client.
        prefix: the app's name of `<app>:{<pattern>:<entity>}:<role>`, or more of it; no wildcards.
        declared: roles that may live for ever.
    """
    left = []
    async for raw in client.scan_iter(match=f"{prefix}*", count=1000):
        name = raw.decode() if isinstance(raw, bytes) else raw
        if name.rpartition(":")[2] not in declared and await client.pttl(raw) == -1:
            left.append(name)
    return sorted(left)


@contextmanager
def nothing_left(*, within: float = 1.0) -> Iterator[None]:
    """Fail if the block leaves descriptors open or child processes alive; what closes late has `within` s.

    An object that was never closed (ResourceWarning) is found by the collection of garbage at the end.
    """
    gc.collect()
    files, children = _files(), _children()
    yield
    gc.collect()
    if left := _children() - children:
        eventually_now(lambda: not (_children() - children), within=within, what=f"end of processes {left}")
    if len(_files()) > len(files):
        eventually_now(
            lambda: len(_files()) <= len(files),
            within=within,
            what=f"close of {_new(files)}, open before: no",
        )


def _children() -> set[int]:
    alive = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                alive.add(child.pid)
        except psutil.NoSuchProcess:
            pass
    return alive


def _files() -> dict[int, str]:
    # /dev/fd is there on Linux and macOS; the descriptor that lists it is gone by the time it is asked.
    found = {}
    for name in os.listdir("/dev/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            continue
        try:
            found[int(name)] = str(Path(f"/proc/self/fd/{name}").readlink())
        except OSError:
            found[int(name)] = "?"
    return found


def _new(before: dict[int, str]) -> list[str]:
    return [f"{number} ({what})" for number, what in _files().items() if before.get(number) != what]
