"""The ambassador's process: `python -m patterns.container.ambassador`.

Environment: UPSTREAMS (JSON, see `upstream.read`), PORT, ADMIN_PORT, and GRACE (seconds from SIGTERM to the
end) where 10 does not fit. Both ports are on loopback.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING

from patterns.bounds import number
from patterns.container.ambassador import Ambassador, RequestForwarded, read
from patterns.container.ambassador.admin import admin
from patterns.events import Event, LogListener
from patterns.serving import serving

if TYPE_CHECKING:
    from patterns.container.ambassador.upstream import Upstream
    from patterns.serving import Server

__all__ = ["main"]

_log = logging.getLogger("ambassador")


# --8<-- [start:main]
async def main(upstreams: list[Upstream], port: int, admin_port: int, grace: float) -> None:
    """Serve until SIGTERM; what is in flight then has `grace` seconds."""
    ready = asyncio.Event()
    ambassador = Ambassador(upstreams, on_event=_say)

    def on_ready(server: Server) -> None:
        _log.info("%s, pid %d", server.url, os.getpid())
        ready.set()

    async with serving(admin(ambassador.report, ready.is_set), port=admin_port):
        try:
            await ambassador.serve(port=port, grace=grace, on_ready=on_ready)
        finally:
            ready.clear()
    # --8<-- [end:main]


def _say(event: Event) -> None:
    if not isinstance(event, RequestForwarded):
        LogListener(_log, logging.WARNING)(event)


def _environment() -> tuple[list[Upstream], int, int, float]:
    grace = float(os.environ.get("GRACE", "10"))
    ports = [int(os.environ[name]) for name in ("PORT", "ADMIN_PORT")]
    for port in ports:
        number("PORT and ADMIN_PORT", port, at_least=1, at_most=65_535)
    return read(os.environ["UPSTREAMS"]), ports[0], ports[1], number("GRACE", grace, at_least=0)


if __name__ == "__main__":
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "INFO"), format="ambassador: %(message)s")
    try:
        given = _environment()
    except KeyError as missing:
        sys.exit(f"ambassador: the environment variable {missing.args[0]} must be set")
    except ValueError as error:
        sys.exit(f"ambassador: {error}")
    asyncio.run(main(*given))
