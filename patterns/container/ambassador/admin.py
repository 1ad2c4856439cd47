"""What the ambassador says of itself, on a port that the application does not use.

- `/livez`: 200; a process whose event loop is stuck does not answer at all.
- `/readyz`: 200 while it takes requests. Whether upstreams are well is no part of it: a restart would not
  heal them.
- `/report`: how many requests ended how, as JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["admin"]


def admin(report: Mapping[str, int], ready: Callable[[], bool]) -> web.Application:
    """Return the application to serve.

    Args:
        report: the ambassador's, always up to date.
        ready: whether it takes requests now.
    """

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="alive")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ready") if ready() else web.Response(text="not ready", status=503)

    async def show(_: web.Request) -> web.Response:
        return web.json_response(dict(report))

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/report", show)
    return app
