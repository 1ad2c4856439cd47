"""One request and its answer: the attempts at the upstream, and what becomes of each."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from patterns.container.ambassador.body import Body
from patterns.container.ambassador.events import (
    Broken,
    NotConnected,
    ProxyError,
    Refused,
    UpstreamFailed,
)
from patterns.container.ambassador.message import RETRIES, once, to_upstream, unreadable
from patterns.container.ambassador.upstream import Upstream, key_of, ranked
from patterns.deadline import HEADER, Deadline
from patterns.resiliency.bulkhead import Bulkhead, BulkheadFull
from patterns.resiliency.bulkhead import Reason as Full
from patterns.resiliency.retry import AttemptTimedOut, Budget, Retry, parse_retry_after
from patterns.resiliency.retry import Policy as RetryPolicy
from patterns.resiliency.retry.retry_after import asked_by

try:
    import aiohttp
    from yarl import URL
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"patterns.container.ambassador needs {error.name}: pip install executable-patterns[container]"
    ) from error

if TYPE_CHECKING:
    import random
    import ssl

    from aiohttp import web

    from patterns.clock import Clock

__all__ = ["Answer", "Door", "Exchange"]

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110, 9.2.2


class Door:
    """The way to one upstream: what all its requests share.

    Args:
        upstream: whom it leads to.
        session: from `open_session`.
        clock: where durations are read and waited for.
        rng: where jitter comes from.
    """

    def __init__(
        self, upstream: Upstream, session: aiohttp.ClientSession, clock: Clock, rng: random.Random
    ) -> None:
        policy = upstream.policy
        self.upstream = upstream
        self.session = session
        self.clock = clock
        self.rng = rng
        self.budget = Budget(
            ratio=policy.ratio, min_per_second=policy.min_per_second, capacity=policy.capacity, clock=clock
        )
        self.bulkheads = {
            origin: Bulkhead(
                f"{upstream.name} {origin}",
                limit=policy.limit,
                max_waiting=policy.max_waiting,
                max_wait=policy.max_wait,
                clock=clock,
            )
            for origin in upstream.origins
        }
        self._turn = itertools.count()
        self.trust: ssl.SSLContext | bool = True
        if any(origin.startswith("https:") for origin in upstream.origins):
            self.trust = upstream.trust()

    def order(self, target: str, headers: tuple[tuple[bytes, bytes], ...]) -> list[str]:
        """Return the origins that attempts go to, in turn: of shards the one that has the key."""
        origins = self.upstream.origins
        if self.upstream.shard_by is not None:
            return ranked(key_of(self.upstream.shard_by, target, headers), origins)[:1]
        first = next(self._turn) % len(origins)
        return [*origins[first:], *origins[:first]]


class Answer:
    """The beginning of an answer, and the permit that its request holds."""

    def __init__(self, response: aiohttp.ClientResponse, clock: Clock) -> None:
        self.response = response
        self.retry_after = parse_retry_after(
            response.headers.get("Retry-After"), clock, date=response.headers.get("Date")
        )


class Exchange:
    """The attempts for one request.

    Args:
        door: to its upstream.
        request: from the application; checked.
        target: at the upstream.

    Attributes:
        attempts: begun so far.
        deadline: by which the last byte must have gone out.

    Raises:
        Refused: it says something about deadline, retries or shard that cannot be understood.
    """

    def __init__(self, door: Door, request: web.BaseRequest, target: str) -> None:
        self._door = door
        self._request = request
        self._target = target
        self._raw = request.raw_headers
        policy = door.upstream.policy
        try:
            self.deadline = Deadline.from_header(
                once(self._raw, HEADER), at_most=policy.deadline, clock=door.clock
            )
        except ValueError as error:
            raise Refused(ProxyError.REQUEST, 400, str(error)) from None
        self._most = min(policy.attempts, 1 + _retries(once(self._raw, RETRIES), policy.attempts))
        self._order = door.order(target, self._raw)
        self._body = Body(request.content, policy.replay) if _has_body(request) else None
        self._answer: Answer | None = None
        self._held: Bulkhead | None = None
        self.attempts = 0

    async def answer(self) -> Answer:
        """Return the beginning of the answer to pass on; `close` afterwards, whatever comes of it.

        Raises:
            Refused: there is none.
        """
        retry = Retry(
            self._door.upstream.name,
            self._policy(),
            budget=self._door.budget,
            clock=self._door.clock,
            rng=self._door.rng,
        )
        try:
            return await retry.call(self._attempt)
        except Refused:
            raise
        except BulkheadFull as full:
            if full.reason is Full.DEADLINE:
                raise self._too_late() from full
            detail = f"{full.name} has {full.limit} requests, and {full.waiting} wait"
            raise Refused(ProxyError.LIMIT, 503, detail, retry_after=1.0) from full
        except UpstreamFailed as failed:
            late = failed.error is ProxyError.CONNECTION_TIMEOUT
            raise Refused(failed.error, 504 if late else 502, str(failed)) from failed
        except TimeoutError as error:
            raise self._too_late() from error

    # --8<-- [start:policy]
    def _policy(self) -> RetryPolicy:
        """Return what may be repeated of this request."""
        policy, left = self._door.upstream.policy, self.deadline.remaining()
        if left <= 0:
            raise self._too_late()
        keyed = any(name.lower() == b"idempotency-key" and value for name, value in self._raw)
        length = self._request.content_length or 0
        repeatable = (self._request.method in IDEMPOTENT or keyed) and length <= policy.replay
        timed = repeatable and self._most > 1 and policy.attempt_timeout < left
        return RetryPolicy(
            on=(NotConnected, Broken, AttemptTimedOut),
            never_sent=(NotConnected,),
            idempotent=repeatable,
            on_result=self._worth_another,
            attempts=self._most,
            base=policy.base,
            cap=policy.cap,
            deadline=left,
            attempt_timeout=policy.attempt_timeout if timed else None,
        )

    # --8<-- [end:policy]

    def _worth_another(self, answer: Answer) -> bool:
        statuses = self._door.upstream.policy.statuses
        return answer.response.status in statuses and (self._body is None or self._body.replayable)

    # --8<-- [start:attempt]
    async def _attempt(self) -> Answer:
        self.close()  # the attempt before: its answer is not the one
        if self._body is not None and not self._body.replayable:
            raise UpstreamFailed(ProxyError.TIMEOUT, "no answer in time, and the body cannot be sent again")
        origin = self._order[self.attempts % len(self._order)]
        bulkhead = self._door.bulkheads[origin]
        await bulkhead.acquire(self._door.clock.monotonic() + self.deadline.remaining())
        self._held = bulkhead
        left = self.deadline.header()
        if left == "0":
            raise self._too_late()
        begun = self.attempts
        try:
            guard = self._door.upstream.guard
            send = self._send(origin, left) if guard is None else guard.call(self._send, origin, left)
            self._answer = Answer(await send, self._door.clock)
        except BaseException as error:
            self.close()
            if self.attempts == begun and isinstance(error, Exception):  # the guard let nothing through
                detail = f"the guard of {self._door.upstream.name} refused"
                raise Refused(ProxyError.UNAVAILABLE, 503, detail, retry_after=asked_by(error)) from error
            raise
        return self._answer

    # --8<-- [end:attempt]

    async def _send(self, origin: str, left: str) -> aiohttp.ClientResponse:
        policy, body = self._door.upstream.policy, self._body
        self.attempts += 1
        try:
            response = await self._door.session.request(
                self._request.method,
                URL(origin + self._target, encoded=True),
                headers=to_upstream(self._raw, deadline=left),
                data=None if body is None else body.pieces(),
                allow_redirects=False,  # where to is for the application to see, and to refuse
                ssl=self._door.trust,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=policy.connect_timeout),
            )
        except UpstreamFailed as failed:
            if body is not None and body.failed is not None:
                raise Refused(ProxyError.REQUEST, 400, "the body of the request broke off") from failed
            if isinstance(failed, Broken) and body is not None and not body.replayable:
                raise UpstreamFailed(failed.error, f"{failed}; the body cannot be sent again") from failed
            raise
        reason = (response.reason or "").encode(errors="surrogateescape")
        if response.status < 200 or unreadable([(b"reason", reason), *response.raw_headers]):
            response.close()
            raise UpstreamFailed(ProxyError.PROTOCOL, "the answer could not be passed on unchanged")
        return response

    def close(self) -> None:
        """Let go of the answer and the permit; what was not read to its end is cut off."""
        answer, self._answer = self._answer, None
        held, self._held = self._held, None
        if answer is not None:
            answer.response.close()
        if held is not None:
            held.release()

    def _too_late(self) -> Refused:
        return Refused(ProxyError.TIMEOUT, 504, f"no answer in time, in {self.attempts} attempts")


def _has_body(request: web.BaseRequest) -> bool:
    return bool(request.content_length) or "Transfer-Encoding" in request.headers


def _retries(given: str | None, most: int) -> int:
    if given is None:
        return most
    if not (given.isascii() and given.isdigit() and len(given) <= 4):
        raise Refused(ProxyError.REQUEST, 400, f"{RETRIES} must be a number of at most 4 digits")
    return int(given)


# --8<-- [start:sent_once]
async def sent_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Send a request once, as a middleware of aiohttp's client.

    aiohttp itself repeats an idempotent request whose connection broke, which no budget would know of. It
    does so for errors of its own; ours pass.

    Raises:
        NotConnected: nothing was sent.
        Broken: it may have been carried out.
        UpstreamFailed: nothing was sent, and trying again would not help.
    """
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
        untrusted = isinstance(error, aiohttp.ClientConnectorCertificateError)
        kind = ProxyError.CERTIFICATE if untrusted else ProxyError.TLS
        raise UpstreamFailed(kind, f"{request.url.host}: {type(error).__name__}") from error
    except aiohttp.ClientConnectorDNSError as error:
        raise NotConnected(ProxyError.DNS, f"{request.url.host} has no address") from error
    except aiohttp.ConnectionTimeoutError as error:
        raise NotConnected(ProxyError.CONNECTION_TIMEOUT, "no connection in time") from error
    except aiohttp.ClientConnectorError as error:
        raise NotConnected(ProxyError.CONNECTION_REFUSED, "no connection") from error
    except (aiohttp.ClientResponseError, aiohttp.InvalidURL, ValueError) as error:
        raise Broken(ProxyError.PROTOCOL, type(error).__name__) from error
    except (aiohttp.ClientError, OSError) as error:
        raise Broken(ProxyError.TERMINATED, "the connection broke before the answer began") from error
    # --8<-- [end:sent_once]


def open_session(idle: float) -> aiohttp.ClientSession:
    """Return a session that adds nothing and takes nothing away; close it in the loop that opened it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=idle),  # the bulkheads are the limit
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        middlewares=(sent_once,),
        trust_env=False,
    )
