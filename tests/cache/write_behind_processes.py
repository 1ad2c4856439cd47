"""Writers and flushers in processes of their own, forked from one that has read its imports already.

Arguments: the URL of Redis, where the orders are, and of the source. An order is `<kind> <app> <number>`; a
child is forked for it, says `<number> is <pid>`, and goes on until it is killed or this process ends:

- `writer`: puts keys in turn, and says `<number> acked <key> <version>` after each acknowledgement;
- `flusher`: says `<number> storing` before each call of the store;
- `buffer`: a writer that has its buffer in the process, and stores fifty writes at a time itself.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import redis

from patterns import database
from patterns.cache.write_behind import Change, Flusher, Policy, VersionedTable, WriteBehind
from patterns.keyspace import opened

if TYPE_CHECKING:
    from collections.abc import Sequence

KEYS = 40
POLICY = Policy(
    capacity=10_000, delay=0.02, shards=2, lease=0.5, store_timeout=0.4, poll=0.01, retry_delay=0.01, drain=30
)


def say(*words: object) -> None:
    """Print a line in one piece: many processes share the file."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")


def table(db: database.Database) -> VersionedTable:
    """Return the source's table."""
    return VersionedTable(db, "item", key="id", columns=("n",))


async def writer(url: str, source: str, app: str, number: str) -> None:
    """Put for ever."""
    async with opened(url) as client:
        items = WriteBehind("items", client, POLICY, app=app)
        for count in itertools.count():
            key = f"key-{count % KEYS}"
            version = await items.put(key, {"n": int(number) * 1_000_000 + count})
            say(number, "acked", key, version)


async def flusher(url: str, source: str, app: str, number: str) -> None:
    """Flush for ever."""
    async with opened(url) as client, database.opened(source) as db:

        async def store(batch: Sequence[Change]) -> dict[str, int]:
            say(number, "storing")
            newer = await table(db).store(batch)
            say(number, "stored")
            return newer

        async with Flusher("items", client, POLICY, store, app=app):
            await asyncio.Event().wait()


async def buffer(url: str, source: str, app: str, number: str) -> None:
    """Put into a list, and store it when it is full."""
    async with database.opened(source) as db:
        changes: dict[str, Change] = {}
        for count in itertools.count(1):
            change = Change(f"key-{number}-{count}", {"n": count}, count)
            changes[change.key] = change
            say(number, "acked", change.key, change.version)
            if len(changes) == 50:
                await table(db).store(list(changes.values()))
                changes.clear()
                say(number, "stored")


KINDS = {"writer": writer, "flusher": flusher, "buffer": buffer}


async def as_long_as(parent: int, work: Any) -> None:
    """Do the work; end when the other end of the pipe is closed, as it is when the parent has ended."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_reader(parent, lambda: os._exit(0))
    await task


def main(url: str, source: str) -> None:
    """Carry out one order after the other."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    held, mine = os.pipe()
    client: Any = redis.Redis.from_url(url, socket_timeout=None)
    say("ready")
    while True:
        _, order = client.blpop("orders")
        kind, app, number = order.decode().split()
        pid = os.fork()
        if pid == 0:
            os.close(mine)
            asyncio.run(as_long_as(held, KINDS[kind](url, source, app, number)))
            os._exit(1)
        say(number, "is", pid)


if __name__ == "__main__":
    main(*sys.argv[1:])
