"""One candidate as a process: it leads or follows, says so, and writes a heartbeat while it leads.

    python -m patterns.container.leader_election nightly-report --label a --database beats.db

The store is $REDIS_URL. What is not on the command line comes from LABEL, DATABASE, APP, LEASE, DEADLINE,
RETRY and EVERY. SIGTERM and SIGINT resign: the work is ended, the lease is released, exit code 0.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from patterns.clock import SYSTEM_CLOCK
from patterns.container.leader_election import Candidate, FencedDatabase, Policy, RedisLease, Term
from patterns.keyspace import opened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterns.events import Event

_SCHEMA = "CREATE TABLE IF NOT EXISTS beats (token INTEGER NOT NULL, label TEXT NOT NULL)"


async def main(arguments: Sequence[str] | None = None) -> None:
    """Run one candidate until it is told to end."""
    options = _options(arguments)
    policy = Policy(lease_duration=options.lease, renew_deadline=options.deadline, retry_period=options.retry)
    database = FencedDatabase(options.database, _SCHEMA)

    async def beat(term: Term) -> None:
        while True:
            with database.transaction(term.token, term.holder) as sql:
                sql.execute("INSERT INTO beats VALUES (?, ?)", (term.token, options.label))
            await SYSTEM_CLOCK.sleep(options.every)

    async with opened() as client:
        lease = RedisLease(options.election, client, app=options.app, wait_replicas=options.wait_replicas)
        candidate = Candidate(options.label, lease, policy, floor=database.floor, on_event=_say)
        running = asyncio.ensure_future(candidate.run(beat))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        try:
            with suppress(asyncio.CancelledError):
                await running
        finally:
            database.close()


def _say(event: Event) -> None:
    # To sys.stdout at once: who watches may kill this process in the next moment.
    sys.stdout.write(f"{event}\n")
    sys.stdout.flush()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m patterns.container.leader_election")
    parser.add_argument("election", help="the same for all candidates of one election")
    parser.add_argument("--label", **_told("LABEL"), help="who this is, in events and in the database")
    parser.add_argument("--database", **_told("DATABASE"), help="the SQLite file that the leader writes to")
    parser.add_argument("--app", **_told("APP", "demo"), help="first part of the keys in Redis")
    parser.add_argument("--lease", type=float, **_told("LEASE", "15.0"), help="lease_duration in seconds")
    parser.add_argument(
        "--deadline", type=float, **_told("DEADLINE", "10.0"), help="renew_deadline in seconds"
    )
    parser.add_argument("--retry", type=float, **_told("RETRY", "2.0"), help="retry_period in seconds")
    parser.add_argument("--every", type=float, **_told("EVERY", "1.0"), help="seconds between two heartbeats")
    parser.add_argument("--wait-replicas", type=int, default=0, help="replicas that must have the lease")
    return parser.parse_args(arguments)


def _told(variable: str, otherwise: str | None = None) -> dict[str, Any]:
    value = os.environ.get(variable, otherwise)
    return {"required": True} if value is None else {"default": value}


if __name__ == "__main__":
    asyncio.run(main())
