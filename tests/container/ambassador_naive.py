"""Proxies that most people write first; each is naive in what it is told to be."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager, closing, suppress
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from yarl import URL

from patterns.serving import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.container.ambassador_ground import Make


@asynccontextmanager
async def naive(
    *origins: str,
    tries: int = 1,
    cancels: bool = True,
    follows: bool = False,
    trusts: bool = False,
    by_hash: bool = False,
    whole: bool = True,
    **policy: Any,
) -> AsyncIterator[str]:
    """Forward with httpx-tutorial lines: the whole body, a dict of headers, any error again, a 502 for all.

    Args:
        origins: whom it asks, in turn.
        tries: how often it asks, whatever the method.
        cancels: whether a client that hangs up cancels the handler.
        follows: whether it follows redirects.
        trusts: whether it takes any certificate.
        by_hash: whether the shard of X-Customer is `hash()` of it.
        whole: whether an answer that broke off is passed on as what there is of it.
        policy: of which it knows only the deadline, and begins it anew for each attempt.
    """
    turn = itertools.count()
    deadline = policy.get("deadline", 15.0)

    async def forward(request: web.Request) -> web.Response:
        body = await request.read()
        headers = dict(request.headers)
        headers.pop("Host")
        headers["X-Request-Timeout-Ms"] = str(int(deadline * 1000))
        for number in range(tries):
            which = hash(headers.get("X-Customer")) if by_hash else next(turn)
            url = origins[which % len(origins)] + request.raw_path.removeprefix("/shop")
            try:
                async with session.request(
                    request.method,
                    URL(url, encoded=True),
                    headers=headers,
                    data=body,
                    allow_redirects=follows,
                    ssl=not trusts,
                    timeout=aiohttp.ClientTimeout(total=deadline),
                ) as answer:
                    received = bytearray()
                    try:
                        async for piece in answer.content.iter_any():
                            received += piece
                    except aiohttp.ClientPayloadError:
                        if not whole:
                            raise
                    if answer.status >= 500 and number + 1 < tries:
                        continue
                    kept = {name: value for name, value in answer.headers.items() if name in {"Content-Type"}}
                    return web.Response(status=answer.status, body=bytes(received), headers=kept)
            except (aiohttp.ClientError, TimeoutError):
                continue
        return web.Response(status=502)

    @web.middleware
    async def everything(request: web.Request, handler: Any) -> web.StreamResponse:
        return await forward(request)

    async with aiohttp.ClientSession() as session:
        app = web.Application(middlewares=[everything], client_max_size=1 << 30)
        async with serving(app, cancel_on_disconnect=cancels, grace=0.1) as server:
            yield f"{server.url}/shop"


def with_flags(**flags: Any) -> Make:
    """Return a maker of `naive` proxies that have these flags."""
    return lambda *origins, **options: naive(*origins, **flags, **options)


@asynccontextmanager
async def passes_bytes_on(origin: str, **policy: Any) -> AsyncIterator[str]:
    """A proxy that looks for the length of a request, and passes on the bytes, however they look."""
    host, _, port = origin.removeprefix("http://").partition(":")
    tasks = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError, ValueError):
            request = await reader.read(1 << 16)  # one request, it thinks
            back, forth = await asyncio.open_connection(host, int(port))
            with closing(forth):
                forth.write(request)
                async with asyncio.timeout(0.3):
                    while piece := await back.read(1 << 16):
                        writer.write(piece)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/shop"
    finally:
        server.close()
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*[task for task in tasks if task], return_exceptions=True)
