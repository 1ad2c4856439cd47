"""The sidecar's process: `python -m patterns.container.sidecar`.

Environment: SOURCE, APP, LOG_FILE, ALIVE_FILE, REDIS_URL, and where the defaults do not fit: HEALTH_PORT,
GRACE (seconds from SIGTERM to the end), BUFFER_LINES, and JOB=1 for an application that ends by itself and is
not restarted in the same Pod.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TypeVar

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.container.sidecar import BatchShipped, Policy, Sidecar
from patterns.container.sidecar.health import serve
from patterns.container.sidecar.life import PORT, has_begun, has_ended
from patterns.events import Event, LogListener
from patterns.keyspace import opened

__all__ = ["main", "time_to_stop"]


# --8<-- [start:main]
async def main() -> int:
    """Ship until there is nothing more to come, or until the grace is over."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))  # what start.py kept back
    policy, port = Policy(), _number("HEALTH_PORT", PORT)
    policy = Policy(
        grace=_number("GRACE", policy.grace), buffer_lines=_number("BUFFER_LINES", policy.buffer_lines)
    )
    async with opened(max_connections=2) as client:
        sidecar = Sidecar(
            os.environ["SOURCE"],
            Path(os.environ["LOG_FILE"]),
            client,
            app=os.environ["APP"],
            policy=policy,
            on_event=_say,
        )
        async with serve(sidecar.report, port), asyncio.TaskGroup() as group:
            running = group.create_task(sidecar.run())
            _log.info("ready on port %d, pid %d", port, os.getpid())
            alive, job = Path(os.environ["ALIVE_FILE"]), os.environ.get("JOB") == "1"
            sidecar.stop(await time_to_stop(told, alive, policy, job=job))
    complete = running.result()
    _log.info("shipped %d lines%s", sidecar.report.shipped, "" if complete else ", and not all of them")
    return 0 if complete else 1
    # --8<-- [end:main]


# --8<-- [start:time_to_stop]
async def time_to_stop(
    told: asyncio.Event, alive: Path, policy: Policy, *, job: bool, clock: Clock = SYSTEM_CLOCK
) -> float:
    """Return when the application will write no more; with the seconds of grace that are left for shipping.

    Told to end, the application may still have something to say: wait for it, and keep some of the grace to
    ship that. Of a job, the application's end alone is enough.
    """
    told_at = None
    kept = min(policy.timeout, policy.grace / 2)
    while True:
        now = clock.monotonic()
        ended = has_ended(alive)
        if told.is_set():
            if told_at is None and has_begun(alive) and not ended:
                _log.info("told to end, waiting for the application")
            told_at = now if told_at is None else told_at
            left = policy.grace - (now - told_at)
            if ended or not has_begun(alive) or left <= kept:
                return max(left, 0.0)
        elif job and ended:
            return policy.grace
        await clock.sleep(_LOOK)
    # --8<-- [end:time_to_stop]


def _number(name: str, default: _Number) -> _Number:
    given = os.environ.get(name, default)
    try:
        return type(default)(given)
    except ValueError:
        sys.exit(f"sidecar: {name} must be a number, got {given!r}")


def _say(event: Event) -> None:
    if not isinstance(event, BatchShipped):
        LogListener(_log, logging.WARNING)(event)


_Number = TypeVar("_Number", int, float)
_LOOK = 0.05  # seconds between two looks at the application
_log = logging.getLogger("sidecar")

if __name__ == "__main__":
    if missing := [name for name in ("SOURCE", "APP", "LOG_FILE", "ALIVE_FILE") if not os.environ.get(name)]:
        sys.exit(f"sidecar: these environment variables must be set: {', '.join(missing)}")
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "INFO"), format="sidecar: %(message)s")
    sys.exit(asyncio.run(main()))
