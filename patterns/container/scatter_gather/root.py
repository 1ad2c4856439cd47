"""The root as a server: asks the leaves, and gives one answer that says what it lacks.

    GET /search?q=red&k=3     {"hits": [[2.0, "a"], ...], "complete": false,
                               "missing": {"west": "LeafMissing"}, "hedged": [], "requests": 3}
    GET /livez                the process answers

503 when fewer leaves answered than there must be, or the canary failed; 502 when a leaf held hits back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.container.scatter_gather import (
    CanaryFailed,
    Hedge,
    Leaf,
    NotEnough,
    Page,
    Policy,
    ScatterGather,
    TruncatedShard,
    top_k,
)
from patterns.container.scatter_gather.leaf import MOST_HITS, number_in, words_in
from patterns.container.scatter_gather.replica import HttpReplica, Query, send_once
from patterns.deadline import HEADER, Deadline
from patterns.events import Listener, ignore

try:
    import aiohttp
    from aiohttp import web
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"patterns.container.scatter_gather needs {error.name}: pip install executable-patterns[container]"
    ) from error

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Mapping, Sequence

__all__ = ["root_application"]


def root_application(
    leaves: Mapping[str, Sequence[str]],
    policy: Policy,
    *,
    hedge: Hedge | None = None,
    most_bytes: int = 1_000_000,
    clock: Clock = SYSTEM_CLOCK,
    rng: random.Random | None = None,
    on_event: Listener = ignore,
) -> web.Application:
    """Return the root's application.

    Args:
        leaves: URLs of its replicas for each leaf.
        policy: how long, how many, and what is enough.
        hedge: when a leaf is asked a second time; None never.
        most_bytes: of one leaf's answer.
        clock: where durations are read and waited for.
        rng: as of ScatterGather.
        on_event: as of ScatterGather.
    """
    scatter: list[ScatterGather[Query, Page]] = []

    async def ask_over_http(_: web.Application) -> AsyncIterator[None]:
        # Neither a limit nor a time-out of the client's own: both are the gather's.
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            middlewares=(send_once,),
        ) as session:
            parts = [
                Leaf(name, *(HttpReplica(session, url, most_bytes=most_bytes) for url in urls))
                for name, urls in leaves.items()
            ]
            scatter.append(
                ScatterGather("search", parts, policy, hedge=hedge, clock=clock, rng=rng, on_event=on_event)
            )
            yield

    # --8<-- [start:search]
    async def on_search(request: web.Request) -> web.Response:
        query = Query(words_in(request), number_in(request, "k", at_most=MOST_HITS))
        try:
            deadline = Deadline.from_header(request.headers.get(HEADER), at_most=policy.deadline, clock=clock)
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        try:
            answer = await scatter[0].gather(query, deadline=deadline)
            best = top_k(answer.values, query.k)
        except (NotEnough, CanaryFailed) as error:
            raise web.HTTPServiceUnavailable(text=str(error), headers={"Retry-After": "1"}) from None
        except TruncatedShard as error:
            raise web.HTTPBadGateway(text=str(error)) from None
        return web.json_response(
            {
                "hits": [[hit.score, hit.id] for hit in best],
                "complete": answer.complete,
                "missing": {leaf: type(error).__name__ for leaf, error in answer.errors.items()},
                "hedged": answer.hedged,
                "requests": answer.requests,
            }
        )

    # --8<-- [end:search]

    app = web.Application(client_max_size=1024)
    app.cleanup_ctx.append(ask_over_http)
    app.router.add_get("/search", on_search)
    app.router.add_get("/livez", _alive)
    return app


async def _alive(_: web.Request) -> web.Response:
    return web.Response(text="ok")
