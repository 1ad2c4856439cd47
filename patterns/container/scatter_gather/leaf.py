"""A leaf as a server: one replica of one shard.

    GET /search?q=red&k=3     {"hits": [[2.0, "a"], ...], "more": true}
    DELETE /ties/<id>         drop the request of this tie, unless it has begun
    GET /livez                the process answers

A request says how long its answer is of use, and one whose time is over is not begun (504). A tied request
carries its id and the number of the replica that has the other copy. Addresses come from the leaf's own
configuration, never from a request, which could otherwise make the leaf call anything.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.container.scatter_gather.answer import Withdrawn
from patterns.container.scatter_gather.line import Line, TieTaken
from patterns.deadline import HEADER, Deadline

try:
    import aiohttp
    from aiohttp import web
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"patterns.container.scatter_gather needs {error.name}: pip install executable-patterns[container]"
    ) from error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from patterns.container.scatter_gather.merge import Page

__all__ = ["LINE", "TIED_REPLICA", "TIED_REQUEST", "leaf_application", "number_in", "words_in"]

TIED_REQUEST = "X-Tied-Request"
TIED_REPLICA = "X-Tied-Replica"
LINE: web.AppKey[Line] = web.AppKey("line", Line)
MOST_HITS = 1000

_ID = re.compile(r"[0-9a-f]{32}")


def leaf_application(
    search: Callable[[str, int], Awaitable[Page]],
    *,
    replicas: Sequence[str] = (),
    workers: int = 4,
    at_most: float = 10.0,
    clock: Clock = SYSTEM_CLOCK,
) -> web.Application:
    """Return a leaf's application.

    Args:
        search: finds the best hits of a query, given how many.
        replicas: URLs of all replicas of this leaf by their numbers, for tied requests.
        workers: searches that run at once; others wait in line.
        at_most: seconds for a request that names no deadline, or a longer one.
        clock: where durations are read and waited for.
    """
    line = Line(workers)
    orders: set[asyncio.Task[None]] = set()
    sessions: list[aiohttp.ClientSession] = []

    async def session_of_the_app(_: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            sessions.append(session)
            yield
            for order in orders:
                order.cancel()
            await asyncio.gather(*orders, return_exceptions=True)

    async def have_dropped(tie: str, replica: str) -> None:
        with suppress(aiohttp.ClientError, TimeoutError):  # then both run, as without a tie
            async with clock.timeout(at_most), sessions[0].delete(f"{replica}/ties/{tie}"):
                pass

    async def on_search(request: web.Request) -> web.Response:
        query, k = words_in(request), number_in(request, "k", at_most=MOST_HITS)
        tie, other = _tie_in(request, replicas)
        try:
            deadline = Deadline.from_header(request.headers.get(HEADER), at_most=at_most, clock=clock)
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        # --8<-- [start:search]
        try:
            async with deadline.within(), line.turn(tie):
                _check(deadline)
                if tie is not None:  # begun: the other copy need not
                    orders.add(order := asyncio.create_task(have_dropped(tie, other)))
                    order.add_done_callback(orders.discard)
                page = await search(query, k)
        except TimeoutError:
            raise web.HTTPGatewayTimeout(text="the time of the request is over") from None
        except Withdrawn:
            raise web.HTTPConflict(text="the other one of the tied requests has begun") from None
        except TieTaken as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        # --8<-- [end:search]
        hits = [[hit.score, hit.id] for hit in page.hits]
        return web.json_response({"hits": hits, "more": page.more})

    async def on_drop(request: web.Request) -> web.Response:
        tie = request.match_info["tie"]
        if not _ID.fullmatch(tie):
            raise web.HTTPBadRequest(text="a tie is 32 hexadecimal digits")
        return web.json_response({"dropped": line.drop(tie)})

    app = web.Application(client_max_size=1024)
    app[LINE] = line
    app.cleanup_ctx.append(session_of_the_app)
    app.router.add_get("/search", on_search)
    app.router.add_delete("/ties/{tie}", on_drop)
    app.router.add_get("/livez", _alive)
    return app


def _check(deadline: Deadline) -> None:
    if deadline.expired:
        raise TimeoutError


async def _alive(_: web.Request) -> web.Response:
    return web.Response(text="ok")


def words_in(request: web.Request) -> str:
    """Return the query of a request, or answer 400."""
    query = request.query.get("q", "")
    if not 0 < len(query) <= 200:
        raise web.HTTPBadRequest(text="q must be 1 to 200 characters")
    return query


def number_in(request: web.Request, name: str, *, default: int = 10, at_most: int) -> int:
    """Return a number of the query string, or answer 400."""
    text = request.query.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= at_most:
        raise web.HTTPBadRequest(text=f"{name} must be a number from 1 to {at_most}")
    return int(text)


def _tie_in(request: web.Request, replicas: Sequence[str]) -> tuple[str | None, str]:
    tie = request.headers.get(TIED_REQUEST)
    if tie is None:
        return None, ""
    number = request.headers.get(TIED_REPLICA, "")
    known = re.fullmatch(r"[0-9]{1,3}", number) and int(number) < len(replicas)
    if not _ID.fullmatch(tie) or not known:
        raise web.HTTPBadRequest(
            text=f"{TIED_REQUEST} and {TIED_REPLICA} name no tie and replica of this leaf"
        )
    return tie, replicas[int(number)]
