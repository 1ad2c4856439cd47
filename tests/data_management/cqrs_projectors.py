"""Projectors that end at the worst moment, by SIGKILL, again and again, until the log is done.

Arguments: kind, REDIS_URL, app, URL of the database or "-", kills, seed. Each life is a process of its own
(a fork of one that has all imports), and the last is not killed. Kinds:

- hash, table: killed before the commit, or after it was sent and before its reply is read;
- apart, ahead: the naive ones, killed between rows and checkpoint, whichever they write first;
- append, dual: a shop that sells; `append` appends (and is killed before or after), `dual` changes a row and
  then appends a message, and is killed between the two;
- paused: stops itself (SIGSTOP) before its first commit, and says what came of it when it goes on;
  unguarded: the same, where neither owner nor checkpoint is compared.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from dataclasses import replace
from typing import Any

from patterns.data_management.cqrs import HashModel, TakenOver
from patterns.database import opened as opened_database
from tests.data_management.cqrs_shop import (
    CheckpointThenRows,
    Place,
    RowsThenCheckpoint,
    WritesWhateverItHolds,
    deliver,
)

BATCH = 5


class Database:
    """Opens the database of a URL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def opened(self) -> Any:
        """Open it."""
        return opened_database(self.url)


def die(note: str) -> None:
    """End here, as by `kill -9`."""
    print(note, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


async def project(kind: str, place: Place, rng: random.Random, kill: bool) -> None:
    """Follow the log, and die in one of the first batches."""
    naive: Any = {"apart": RowsThenCheckpoint, "ahead": CheckpointThenRows}.get(kind)
    left = rng.randrange(1, 3)

    def fatal() -> bool:
        nonlocal left
        left -= 1
        return kill and left == 0

    if naive is not None:
        naive.between = staticmethod(lambda: die("killed between") if fatal() else None)
        place = replace(place, variant=naive)
    async with place.shop(partitions=1) as shop:
        model = shop.model()
        if naive is None:
            known = model.apply

            async def apply(*args: Any) -> Any:
                if fatal():
                    if rng.random() < 0.5:
                        # The rows are made; the commit has not been sent, or its transaction is open.
                        where = "_carry_out" if kind == "table" else "commit"
                        inner = getattr(model, where)

                        async def first(*inner_args: Any, **options: Any) -> Any:
                            if kind == "table":
                                await inner(*inner_args, **options)
                            die("killed before the commit")

                        setattr(model, where, first)
                    await known(*args)
                    die("killed after the commit")
                return await known(*args)

            model.apply = apply
        await shop.projector(model, batch=BATCH).catch_up()
    print("done", flush=True)


async def sell(kind: str, place: Place, rng: random.Random, kill: bool) -> None:
    """Take 5 deliveries for the item of this life, and die at one of them."""
    fatal = rng.randrange(5) if kill else -1
    async with place.shop(partitions=1) as shop:
        redis: Any = shop.store.client
        for number in range(5):
            command, name = f"{os.getpid()}-{number}", f"{place.app}:{{dual}}"
            if kind == "append":
                if number == fatal and rng.random() < 0.5:
                    die("killed before")
                await shop.store.execute(command, deliver(1), command=command)
                if number == fatal:
                    die("killed after")
            else:
                await redis.hset(f"{name}:rows", command, 1)
                if number == fatal:
                    die("killed between")
                await redis.xadd(f"{name}:messages", {"command": command})
            print("acked", command, flush=True)
    print("done", flush=True)


async def paused(place: Place) -> None:
    """Stop before the first commit."""
    async with place.shop(partitions=1) as shop:
        model, stopped = shop.model(), False
        known = model.commit

        async def commit(*args: Any, **options: Any) -> Any:
            nonlocal stopped
            if not stopped:
                stopped = True
                os.kill(os.getpid(), signal.SIGSTOP)
            return await known(*args, **options)

        model.commit = commit
        try:
            await shop.projector(model).catch_up()
            print("has written", flush=True)
        except TakenOver:
            print("was refused", flush=True)


def main(kind: str, url: str, app: str, database: str, kills: str, seed: str) -> None:
    """Live and die."""
    place = Place(url, None if database == "-" else Database(database), app, HashModel)
    if kind in {"paused", "unguarded"}:
        variant = WritesWhateverItHolds if kind == "unguarded" else HashModel
        asyncio.run(paused(replace(place, variant=variant)))
        return
    work = sell if kind in {"append", "dual"} else project
    for life in range(int(kills) + 1):
        if (child := os.fork()) == 0:
            asyncio.run(work(kind, place, random.Random(f"{seed} {life}"), life < int(kills)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise SystemExit(os.WEXITSTATUS(status))
    print("all lives have ended", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
