"""Serves the sidecar's health on the loopback address.

- `/livez`: 200; a sidecar whose event loop is stuck does not answer at all, and is to be restarted.
- `/readyz`: 200 when the sidecar follows the log, so that the application may begin; else 503.
- `/report`: the `Report` as JSON.

Health says nothing about Redis or the application: restarting the sidecar would heal neither, and a probe
that waits for the application, which waits for the probe, never ends.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from patterns.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from patterns.container.sidecar.report import Report

__all__ = ["serve"]

HOST = "127.0.0.1"
_LONGEST_REQUEST = 4096  # bytes
_PATIENCE = 2.0  # seconds for a request to arrive and its answer to leave


# --8<-- [start:serve]
@asynccontextmanager
async def serve(report: Report, port: int) -> AsyncIterator[int]:
    """Serve `report` while the block runs; yield the port, which is a free one if `port` is 0.

    Raises:
        OSError: the port is in use.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with SYSTEM_CLOCK.timeout(_PATIENCE):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer(request, report))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, HOST, port, limit=_LONGEST_REQUEST)
    async with server:
        yield server.sockets[0].getsockname()[1]
    # --8<-- [end:serve]


def _answer(request: bytes, report: Report) -> bytes:
    path = request.split(b" ", 2)[1:2]
    if path == [b"/livez"]:
        status, body = "200 OK", "alive"
    elif path == [b"/readyz"]:
        status, body = ("200 OK", "ready") if report.ready else ("503 Service Unavailable", "not ready")
    elif path == [b"/report"]:
        status, body = "200 OK", json.dumps(asdict(report))
    else:
        status, body = "404 Not Found", "no such path"
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return (head + body).encode()
