"""Stand beside an application and make its calls to other services for it.

An application that calls three services needs time-outs, retries that do no harm, a budget for them, shards,
certificates, and a list of whom it may call at all; in each language anew. An ambassador does that in a
process of its own: the application asks `http://127.0.0.1:PORT/<upstream>/path`, in plain HTTP, and the
ambassador asks the service.

Guaranteed, each by a test that rejects a naive variant:

1. Transparent: method, target, headers but hop-by-hop ones, body, status and reason pass unchanged, for any
   bytes; bodies are streamed both ways, and one that breaks off never looks complete on the other side.
2. Once: a request that is not idempotent and has no Idempotency-Key reaches an upstream at most once, unless
   no connection was made. Of others, what is longer than `replay` bytes is not sent again either.
3. Amplification: when everything fails, attempts are at most requests + `capacity` + `min_per_second` a
   second. The next ambassador on the way is told not to retry.
4. Deadline: what the upstream is told (`X-Request-Timeout-Ms`) shrinks with time, hops and attempts; no
   attempt begins with nothing left, and answer and body end by then.
5. A client that hangs up ends the attempt at the upstream.
6. Shards: a key has the same shard in every process; a new shard of n takes about 1/n of the keys, and none
   moves between the others. A request never goes to another shard than its key's.
7. Bounded: at most `limit` requests at an origin and `max_waiting` that wait; one more is answered 503 with
   Retry-After at once.
8. Closed: nothing in a request but the name at the beginning of its path says where it goes; redirects are
   passed back, not followed. What two servers could read in two ways is answered 400 and not forwarded.
9. Typed: an answer that the ambassador made itself has `Proxy-Status` with a token of RFC 9209.

Not guaranteed: that a request was not carried out when the application gets 502 or 504. Trailers, interim
answers (1xx), upgrades (WebSocket), chunk boundaries and a `?` with nothing behind it are not passed on. A
header that comes again in another case takes the first one's. Header bytes that are not UTF-8 are refused,
and `Expect: 100-continue` is answered here. Whoever is in the Pod can use the ambassador: it listens on
loopback and knows no passwords. While it is dead, the application's calls are refused.

Redis keys: none.

>>> import asyncio
>>> from aiohttp import ClientSession, web
>>> from patterns.serving import serving
>>> async def books(request: web.Request) -> web.Response:
...     return web.Response(text=f"{request.path}, {request.headers['X-Request-Timeout-Ms']} ms left")
>>> async def main() -> str:
...     app = web.Application()
...     app.router.add_get("/books", books)
...     async with serving(app) as service:
...         shop = Upstream(name="shop", origins=(service.url,), policy=Policy(deadline=2.0))
...         async with Ambassador([shop]).serving() as ambassador, ClientSession() as session:
...             headers = {"X-Request-Timeout-Ms": "500"}
...             async with session.get(f"{ambassador.url}/shop/books", headers=headers) as answer:
...                 return await answer.text()
>>> asyncio.run(main())[:8]
'/books, '

Sources: Burns and Oppenheimer, "Design patterns for container-based distributed systems" (HotCloud 2016);
Azure Architecture Center, "Ambassador pattern"; RFC 9110, 9112, 9209; Envoy and linkerd (retry budgets).
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.container.ambassador.events import (
    ProxyError,
    Refused,
    RequestForwarded,
    RequestRefused,
    ResponseCut,
)
from patterns.container.ambassador.exchange import Door, Exchange, open_session
from patterns.container.ambassador.message import RETRIES, Headers, answered, asked, check
from patterns.container.ambassador.policy import Policy
from patterns.container.ambassador.upstream import Header, Segment, Upstream, ranked, read
from patterns.events import Listener, emit, ignore
from patterns.serving import Server, serve, serving

try:
    import aiohttp
    from aiohttp import web
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"patterns.container.ambassador needs {error.name}: pip install executable-patterns[container]"
    ) from error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from aiohttp.typedefs import Handler

__all__ = [
    "RETRIES",
    "Ambassador",
    "Header",
    "Policy",
    "ProxyError",
    "RequestForwarded",
    "RequestRefused",
    "ResponseCut",
    "Segment",
    "Upstream",
    "ranked",
    "read",
]


class Ambassador:
    """Forwards requests to the upstreams it knows.

    Args:
        upstreams: whom the application may call; nobody else is.
        clock: where durations are read and waited for.
        rng: where jitter comes from; in production leave it alone.
        on_event: hears RequestForwarded, RequestRefused and ResponseCut.

    Attributes:
        report: how many requests ended how, and `in_flight`.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        self._upstreams = {upstream.name: upstream for upstream in upstreams}
        if not upstreams or len(self._upstreams) != len(upstreams):
            raise ValueError("upstreams must be at least one, each with a name of its own")
        self._clock = clock
        self._rng = rng or random.SystemRandom()  # forked processes must not wait alike
        self._on_event = on_event
        self._doors: dict[str, Door] = {}
        self.report: Counter[str] = Counter()

    def serving(
        self, *, host: str = "127.0.0.1", port: int = 0, grace: float = 5.0
    ) -> AbstractAsyncContextManager[Server]:
        """Serve while the block runs; see `patterns.serving`."""
        return serving(self._app(), host=host, port=port, grace=grace, **_OPTIONS)

    async def serve(
        self,
        *,
        port: int,
        host: str = "127.0.0.1",
        grace: float = 10.0,
        on_ready: Callable[[Server], None] | None = None,
    ) -> None:
        """Serve until SIGTERM or SIGINT; what is in flight has `grace` seconds."""
        await serve(self._app(), host=host, port=port, grace=grace, on_ready=on_ready, **_OPTIONS)

    def _app(self) -> web.Application:
        @web.middleware
        async def forward(request: web.Request, handler: Handler) -> web.StreamResponse:  # noqa: ARG001  aiohttp gives it by name
            return await self._forward(request)

        app = web.Application(middlewares=[forward])
        app.cleanup_ctx.append(self._open)
        app.on_response_prepare.append(_as_it_came)
        return app

    async def _open(self, _: web.Application) -> AsyncIterator[None]:
        idle = min(upstream.policy.idle for upstream in self._upstreams.values())
        async with open_session(idle) as session:
            self._doors = {
                name: Door(upstream, session, self._clock, self._rng)
                for name, upstream in self._upstreams.items()
            }
            yield

    # --8<-- [start:forward]
    async def _forward(self, request: web.Request) -> web.StreamResponse:
        began, exchange, name = self._clock.monotonic(), None, "ambassador"
        self.report["in_flight"] += 1
        try:
            check(request)
            door, target = self._door(*asked(request))
            name = door.upstream.name
            exchange = Exchange(door, request, target)
            answer = await exchange.answer()
            reply = await self._relay(name, request, exchange, answer.response)
        except Refused as refused:
            attempts = exchange.attempts if exchange else 0
            self.report[refused.error.value] += 1
            emit(self._on_event, RequestRefused(name, refused.error, refused.status, attempts))
            return _own(refused)
        finally:
            self.report["in_flight"] -= 1
            if exchange is not None:
                exchange.close()
                self.report["attempts"] += exchange.attempts
        self.report["forwarded"] += 1
        took = self._clock.monotonic() - began
        emit(self._on_event, RequestForwarded(name, reply.status, exchange.attempts, took))
        return reply

    # --8<-- [end:forward]

    def _door(self, name: str, target: str) -> tuple[Door, str]:
        if name not in self._doors:
            raise Refused(ProxyError.DENIED, 404, "there is no such upstream")
        return self._doors[name], target

    # --8<-- [start:relay]
    async def _relay(
        self, name: str, request: web.Request, exchange: Exchange, response: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        """Pass the answer on, piece by piece."""
        reply = _Reply(status=response.status, reason=response.reason, headers=answered(response.raw_headers))
        try:
            async with exchange.deadline.within():
                await reply.prepare(request)
                async for piece in response.content.iter_any():
                    await reply.write(piece)
        except (aiohttp.ClientError, TimeoutError) as error:
            if isinstance(error, aiohttp.ClientConnectionResetError):  # it is the application that has gone
                raise
            late = isinstance(error, TimeoutError)
            if not reply.prepared:
                raise Refused(ProxyError.TIMEOUT, 504, "the answer came too late") from error
            cut = ProxyError.TIMEOUT if late else ProxyError.INCOMPLETE
            self.report[cut.value] += 1
            emit(self._on_event, ResponseCut(name, cut))
            _cut(request, reply)
            raise ConnectionResetError("the answer broke off") from error
        await reply.write_eof()
        return reply

    # --8<-- [end:relay]


class _Reply(web.StreamResponse):
    """An answer of an upstream."""

    def __init__(self, *, headers: Headers, **rest: Any) -> None:
        super().__init__(headers=headers, **rest)
        self.given = frozenset(name.lower() for name, _ in headers)


async def _as_it_came(_: web.Request, reply: web.StreamResponse) -> None:
    """Take away what aiohttp adds to every answer."""
    if isinstance(reply, _Reply):
        for name in ("Content-Type", "Date", "Server"):
            if name.lower() not in reply.given:
                reply.headers.popall(name, None)


def _own(refused: Refused) -> web.Response:
    headers = {"Proxy-Status": f"ambassador; error={refused.error.value}"}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(refused.retry_after))
    text = json.dumps({"title": refused.error.value, "status": refused.status, "detail": str(refused)})
    answer = web.Response(
        status=refused.status, text=text, content_type="application/problem+json", headers=headers
    )
    if refused.status in {400, 405}:
        answer.force_close()  # who knows where the next request begins
    return answer


def _cut(request: web.Request, reply: web.StreamResponse) -> None:
    """End the application's connection so that it notices."""
    if request.transport is None:
        return
    if reply.content_length is None and not reply.headers.get("Transfer-Encoding"):
        request.transport.abort()  # only the connection's end says where this body ends
    else:
        request.transport.close()


_OPTIONS: dict[str, Any] = {"cancel_on_disconnect": True, "auto_decompress": False}
