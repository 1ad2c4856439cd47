"""Two source containers: a folder of files, and a hash in Redis. A third is any server that answers alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from patterns.keyspace import Keyspace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from patterns.keyspace import Client

__all__ = ["folder_source", "items_key", "redis_source"]


def folder_source(folder: Path) -> web.Application:
    """Serve the files below `folder`; their names are paths relative to it. Links are not followed."""
    root = folder.resolve()

    async def items(_: web.Request) -> web.Response:
        return web.json_response({"items": sorted(_files(root))})

    async def item(request: web.Request) -> web.StreamResponse:
        path = root / request.match_info["name"]
        try:
            inside = path.resolve() == path and path.is_relative_to(root) and path.is_file()
        except (OSError, ValueError):  # a name that no file can have
            inside = False
        if not inside:
            raise web.HTTPNotFound(text="no such item")
        return web.FileResponse(path)

    return _served(items, item)


def items_key(app: str, queue: str) -> str:
    """Return the hash that `redis_source` serves: the producer fills it, name -> bytes."""
    return Keyspace(app, "work_queue_source").key(queue, "items")


def redis_source(client: Client, key: str) -> web.Application:
    """Serve the fields of a hash in Redis, in pages as HSCAN gives them: a name may come twice."""

    async def items(request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        if not (after.isascii() and after.isdecimal() and len(after) <= 20):
            raise web.HTTPBadRequest(text="after must be a cursor")
        reply: Any = await client.hscan(key, int(after), count=1000)
        cursor, found = reply
        page: dict[str, object] = {"items": [name.decode(errors="replace") for name in found]}
        return web.json_response(page | ({"next": str(cursor)} if int(cursor) else {}))

    async def item(request: web.Request) -> web.Response:
        body = await client.hget(key, request.match_info["name"])
        if body is None:
            raise web.HTTPNotFound(text="no such item")
        return web.Response(body=body)

    return _served(items, item)


def _served(
    items: Callable[[web.Request], Awaitable[web.StreamResponse]],
    item: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> web.Application:
    async def alive(_: web.Request) -> web.Response:
        return web.Response(text="alive")

    app = web.Application()
    app.router.add_get("/livez", alive)
    app.router.add_get("/api/v1/items", items)
    app.router.add_get("/api/v1/items/{name:[\\s\\S]+}", item)
    return app


def _files(root: Path) -> Iterator[str]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                text = str(path.relative_to(root))
                if text.isprintable() or text.encode(errors="ignore").decode() == text:
                    yield text
