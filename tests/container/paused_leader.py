"""A leader that is paused at the worst moment: after it has looked at its lease, before it writes.

Arguments: fenced|unfenced, REDIS_URL, app, path of the database. It stops itself with SIGSTOP, so that the
pause always lands there; when it is continued it writes at once, and says what came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys

from patterns.container.leader_election import (
    Candidate,
    FencedDatabase,
    Policy,
    RedisLease,
    StaleToken,
    Term,
)
from patterns.keyspace import opened

FAST = Policy(lease_duration=0.3, renew_deadline=0.2, retry_period=0.05)


async def main(kind: str, url: str, app: str, path: str) -> None:
    database = FencedDatabase(path)

    async def work(term: Term) -> None:
        term.check()
        print("sure of its lease", term.token)
        os.kill(os.getpid(), signal.SIGSTOP)
        if kind == "fenced":
            with database.transaction(term.token, term.holder) as sql:
                sql.execute("UPDATE register SET value = 'old leader'")
        else:
            with contextlib.closing(sqlite3.connect(path)) as sql, sql:
                sql.execute("UPDATE register SET value = 'old leader'")

    async def write(term: Term) -> None:
        try:
            await work(term)
            print("has written")
        except StaleToken:
            print("was refused")
        await asyncio.Event().wait()

    async with opened(url) as client:
        await Candidate("old leader", RedisLease("report", client, app=app), FAST).run(write)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
