"""What the two know of each other: whether the sidecar is ready, and whether the application is alive.

Runs by itself in both containers, without Redis or anything else to be installed:

    python3 life.py launch python3 orders.py      # wait for the sidecar, then become the application

`launch` takes a shared lock on a file in the folder that both share, and passes it on to the application,
which need not know. The kernel lets go of it when the process ends, by SIGKILL too: nobody has to be told,
and nothing stale is left.

Environment: HEALTH_PORT of the sidecar, ALIVE_FILE, PATIENCE (seconds to wait for the sidecar).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
from pathlib import Path

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.probe import ask

__all__ = ["has_begun", "has_ended", "hold", "launch", "wait_for_sidecar"]

PORT = 8911


# --8<-- [start:application]
async def wait_for_sidecar(port: int, patience: float, clock: Clock = SYSTEM_CLOCK) -> bool:
    """Return whether the sidecar became ready within `patience` seconds; the application begins anyway."""
    deadline = clock.monotonic() + patience
    while clock.monotonic() < deadline:
        if await asyncio.to_thread(ask, "/readyz", port) == "ready":
            return True
        await clock.sleep(0.05)
    return False


def hold(alive: Path) -> int:
    """Take the lock that says "the application is alive"; the descriptor holds it, here and after exec."""
    descriptor = os.open(alive, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.set_inheritable(descriptor, True)
    return descriptor
    # --8<-- [end:application]


# --8<-- [start:sidecar]
def has_begun(alive: Path) -> bool:
    """Whether an application has ever lived here."""
    return alive.exists()


def has_ended(alive: Path) -> bool:
    """Whether an application has lived here and none does now."""
    try:
        descriptor = os.open(alive, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
        # --8<-- [end:sidecar]


def launch(command: list[str]) -> None:
    """Wait for the sidecar, then become the application."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # until then: exec undoes it
    hold(Path(os.environ["ALIVE_FILE"]))
    port, patience = int(os.environ.get("HEALTH_PORT", PORT)), float(os.environ.get("PATIENCE", "10"))
    if not asyncio.run(wait_for_sidecar(port, patience)):
        print(f"launch: no sidecar after {patience:g} s, going on without it", file=sys.stderr)  # noqa: T201  the container's log
    os.execvp(command[0], command)  # noqa: S606  the command is the operator's


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "launch":
        launch(sys.argv[2:])
    else:
        sys.exit("usage: life.py launch COMMAND [ARGUMENT ...]")
