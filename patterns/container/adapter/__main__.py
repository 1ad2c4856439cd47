"""The adapter's process: `python -m patterns.container.adapter`.

Environment: PORT; WAREHOUSE (host:port) and VALKEY_URL, of which at least one; and where the defaults do not
fit: HOST, TIMEOUT and OFFSET (seconds), SERIES.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING

from patterns.container.adapter import Adapter, Policy
from patterns.container.adapter.endpoint import application
from patterns.container.adapter.valkey import Valkey
from patterns.container.adapter.warehouse import Warehouse
from patterns.events import LogListener
from patterns.serving import serve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patterns.container.adapter import Source
    from patterns.serving import Server

__all__ = ["main", "policy_in", "sources_in"]


def sources_in(env: Mapping[str, str]) -> list[Source]:
    """Return the applications that the environment names.

    Raises:
        ValueError: there is none, or an address is none.
    """
    found: list[Source] = []
    if env.get("WAREHOUSE"):
        host, _, port = env["WAREHOUSE"].rpartition(":")
        if not port.isdecimal():
            raise ValueError("WAREHOUSE must be host:port")
        found.append(Warehouse("warehouse", host.strip("[]"), int(port)))
    if env.get("VALKEY_URL"):
        found.append(Valkey("valkey", env["VALKEY_URL"]))
    if not found:
        raise ValueError("WAREHOUSE or VALKEY_URL must be set")
    return found


def policy_in(env: Mapping[str, str]) -> Policy:
    """Return the policy that the environment asks for.

    Raises:
        ValueError: a number is none, or out of bounds.
    """
    default = Policy()
    return Policy(
        timeout=float(env.get("TIMEOUT", default.timeout)),
        offset=float(env.get("OFFSET", default.offset)),
        series=int(env.get("SERIES", default.series)),
    )


async def main() -> None:
    """Serve until told to stop."""
    sources = sources_in(os.environ)
    adapter = Adapter(sources, policy=policy_in(os.environ), on_event=LogListener(_log, logging.WARNING))
    try:
        await serve(
            application(adapter),
            port=int(os.environ["PORT"]),
            host=os.environ.get("HOST", "127.0.0.1"),
            on_ready=_say,
        )
    finally:
        for source in sources:
            if isinstance(source, Valkey):
                await source.aclose()


def _say(server: Server) -> None:
    _log.info("ready on port %d, pid %d", server.port, os.getpid())


_log = logging.getLogger("adapter")

if __name__ == "__main__":
    if not os.environ.get("PORT", "").isdecimal():
        sys.exit("adapter: the environment variable PORT must be set")
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "INFO"), format="adapter: %(message)s")
    try:
        asyncio.run(main())
    except ValueError as error:
        sys.exit(f"adapter: {error}")
