"""A replica that is asked over HTTP, and whose answer is not trusted.

What comes back may be an error page, half a document or a hundred megabytes: each is an error of this leaf,
and none costs more memory than an answer may have.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from patterns.bounds import whole
from patterns.container.scatter_gather.answer import Withdrawn
from patterns.container.scatter_gather.leaf import TIED_REPLICA, TIED_REQUEST
from patterns.container.scatter_gather.merge import Hit, Page
from patterns.deadline import HEADER

try:
    import aiohttp
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"patterns.container.scatter_gather needs {error.name}: pip install executable-patterns[container]"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patterns.container.scatter_gather.policy import Ask

__all__ = ["BadAnswer", "ConnectionLost", "HttpReplica", "Query", "Refused", "page_in", "send_once"]


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched for, and how many hits are wanted."""

    words: str
    k: int


class Refused(Exception):
    """The replica answered with another status than 200.

    Attributes:
        status: the one it answered with.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    def __str__(self) -> str:
        return f"answered {self.status}"


class BadAnswer(Exception):
    """The replica's answer is not a page of hits."""


class ConnectionLost(aiohttp.ClientConnectionError):
    """The connection broke after the request had been sent."""


async def send_once(
    request: aiohttp.ClientRequest,
    handler: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]],
) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a GET again by itself, past the budget: it does after just these errors.

    A middleware of the session.
    """
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise ConnectionLost(str(error)) from error


class HttpReplica:
    """One replica.

    Args:
        session: whose connections are used; make it with `middlewares=(send_once,)`.
        url: where the replica listens, without a path.
        most_bytes: of an answer.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, *, most_bytes: int = 1_000_000) -> None:
        self._session = session
        self._url = url.rstrip("/") + "/search"
        self._most = whole("most_bytes", most_bytes, at_least=1)

    # --8<-- [start:ask]
    async def __call__(self, ask: Ask[Query]) -> Page:
        """Ask for a page of hits; cancelling closes the connection, by which the leaf hears of it.

        Raises:
            Withdrawn: the replica dropped this copy, as the other one of the tie has begun.
            Refused: the status was not 200.
            BadAnswer: the body was too long, or no page of at most `k` hits.
            aiohttp.ClientError: there was no answer.
        """
        headers = {HEADER: ask.deadline.header(), "Accept-Encoding": "identity"}
        if ask.tie is not None:
            headers |= {TIED_REQUEST: ask.tie.id, TIED_REPLICA: str(ask.tie.peer)}
        query = {"q": ask.request.words, "k": str(ask.request.k)}
        async with self._session.get(
            self._url, params=query, headers=headers, allow_redirects=False
        ) as answer:
            if answer.status == 409 and ask.tie is not None:
                raise Withdrawn
            if answer.status != 200:
                raise Refused(answer.status)
            body = bytearray()
            async for chunk in answer.content.iter_chunked(65_536):
                body += chunk
                if len(body) > self._most:
                    answer.close()
                    raise BadAnswer(f"more than {self._most} bytes")
        return page_in(bytes(body), ask.request.k)

    # --8<-- [end:ask]


def page_in(body: bytes, k: int) -> Page:
    """Return the page that a leaf has sent.

    Raises:
        BadAnswer: it is none, or has more than `k` hits, or they are not in order.
    """
    try:
        answer = json.loads(body, parse_constant=_no_number)
        hits = tuple(Hit(_finite(score), _text(id_)) for score, id_ in answer["hits"])
        page = Page(hits, more=_flag(answer["more"]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise BadAnswer(f"no page of hits: {type(error).__name__}") from None
    if len(hits) > k or list(hits) != sorted(hits, key=lambda hit: hit.rank):
        raise BadAnswer(f"{len(hits)} hits of {k}, or not the best first")
    return page


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def _finite(score: Any) -> float:
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise TypeError
    return float(score)


def _text(id_: Any) -> str:
    if not isinstance(id_, str):
        raise TypeError
    return id_


def _flag(more: Any) -> bool:
    if not isinstance(more, bool):
        raise TypeError
    return more
