"""The proof of patterns/container/ambassador: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import io
import json
import random
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from patterns.container.ambassador import (
    Header,
    ProxyError,
    RequestForwarded,
    RequestRefused,
    Segment,
    ranked,
    read,
)
from patterns.container.ambassador.events import UpstreamFailed
from patterns.events import Recorder
from patterns.resiliency.circuit_breaker import CircuitBreaker
from patterns.resiliency.circuit_breaker import Policy as CircuitPolicy
from tests.container.ambassador_checks import (
    SMUGGLING,
    check_a_broken_answer_shows,
    check_a_client_that_hangs_up_ends_the_attempt,
    check_amplification,
    check_bounded,
    check_certificates,
    check_deadline_shrinks,
    check_failures_are_typed,
    check_few_keys_move,
    check_header_in_two_cases,
    check_leads_nowhere_else,
    check_nothing_is_smuggled,
    check_sent_once,
    check_shards_agree,
    check_streams,
    check_transparent,
)
from tests.container.ambassador_ground import (
    Gone,
    Lenient,
    Origin,
    answer,
    certificates,
    client,
    hang,
    never,
    origins,
    ours,
    raw,
    refusing_url,
    reset,
    say,
    tls_origin,
)
from tests.container.ambassador_naive import passes_bytes_on, with_flags
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from tests.faults.ledger import Ledger
    from tests.faults.workers import Worker
    from tests.pods import Pods


@pytest.mark.invariant(1)
async def test_transparent(rng: random.Random) -> None:
    """Method, target, headers, body, status and reason pass unchanged, whatever they are."""
    await check_transparent(ours, rng)
    await check_header_in_two_cases(ours)


@pytest.mark.naive(1)
async def test_naive_transparent(rng: random.Random) -> None:
    """A proxy with a dict of headers loses the second of two, and passes hop-by-hop ones on."""
    with pytest.raises(AssertionError):
        await check_transparent(with_flags(), rng)


@pytest.mark.invariant(1)
async def test_streams() -> None:
    """Bodies are streamed both ways at the same time."""
    await check_streams(ours)


@pytest.mark.naive(1)
async def test_naive_streams() -> None:
    """A proxy that reads the whole body first makes the first piece wait for the last."""
    with pytest.raises(AssertionError):
        await check_streams(with_flags(), within=0.5)


@pytest.mark.invariant(1)
async def test_a_broken_answer_shows() -> None:
    """An answer that broke off at the upstream breaks off for the application too."""
    await check_a_broken_answer_shows(ours)


@pytest.mark.naive(1)
async def test_naive_broken_answer() -> None:
    """A proxy that passes on what it has makes half an answer look whole."""
    with pytest.raises(AssertionError):
        await check_a_broken_answer_shows(with_flags())


@pytest.mark.invariant(2)
async def test_sent_once() -> None:
    """A POST reaches an upstream once, whatever fails after its first byte; a GET is tried again."""
    await check_sent_once(ours)


@pytest.mark.naive(2)
async def test_naive_sent_once() -> None:
    """A proxy that retries everything pays twice."""
    with pytest.raises(AssertionError):
        await check_sent_once(with_flags(tries=3))


@pytest.mark.invariant(3)
async def test_amplification() -> None:
    """When everything fails, 100 requests are at most 110 attempts with a budget of 10."""
    await check_amplification(ours)


@pytest.mark.naive(3)
async def test_naive_amplification() -> None:
    """Three tries each are three times the load."""
    with pytest.raises(AssertionError):
        await check_amplification(with_flags(tries=3))


@pytest.mark.invariant(4)
async def test_deadline_shrinks() -> None:
    """The deadline that upstreams are told shrinks with each attempt and hop, and holds."""
    await check_deadline_shrinks(ours)


@pytest.mark.naive(4)
async def test_naive_deadline() -> None:
    """A time-out of the hop's own grants the upstream more than the application has."""
    with pytest.raises(AssertionError):
        await check_deadline_shrinks(lambda *origins, **_: with_flags(tries=1)(*origins, deadline=0.5))


@pytest.mark.invariant(5)
async def test_a_client_that_hangs_up_ends_the_attempt() -> None:
    """An application that hangs up ends what was done for it."""
    await check_a_client_that_hangs_up_ends_the_attempt(ours)


@pytest.mark.naive(5)
async def test_naive_hang_up() -> None:
    """A handler that is not cancelled goes on for nobody."""
    with pytest.raises(AssertionError):
        await check_a_client_that_hangs_up_ends_the_attempt(
            lambda *origins: with_flags(cancels=False)(*origins, deadline=0.6), within=0.3
        )


@pytest.mark.invariant(6)
def test_shards() -> None:
    """Every process agrees on a key's shard, and a new shard takes only its share of the keys."""
    check_shards_agree(
        "from patterns.container.ambassador import ranked\n"
        "def shard_of(key, shards): return ranked(key, shards)[0]"
    )
    check_few_keys_move(lambda key, shards: ranked(key, shards)[0])


@pytest.mark.naive(6)
def test_naive_shards() -> None:
    """`hash()` differs from process to process, and modulo moves nearly every key."""
    with pytest.raises(AssertionError, match="disagree"):
        check_shards_agree("def shard_of(key, shards): return shards[hash(key) % len(shards)]")
    with pytest.raises(AssertionError, match="moved"):
        check_few_keys_move(modulo)


def modulo(key: bytes, shards: Sequence[str]) -> str:
    return shards[int.from_bytes(key, "big") % len(shards)]


@pytest.mark.invariant(7)
async def test_bounded() -> None:
    """Requests beyond what may run and wait are refused at once with Retry-After."""
    await check_bounded(ours)


@pytest.mark.naive(7)
async def test_naive_bounded() -> None:
    """A proxy without a bound passes every request on."""
    with pytest.raises(AssertionError):
        await check_bounded(with_flags(), within=0.5)


@pytest.mark.invariant(8)
async def test_nothing_is_smuggled() -> None:
    """Whatever two servers could read in two ways is refused, and its connection closed."""
    assert await check_nothing_is_smuggled(ours) >= 20


@pytest.mark.naive(8)
async def test_naive_smuggling() -> None:
    """A proxy that passes bytes on lets a second request through in the body of the first."""
    with pytest.raises(AssertionError):
        await check_nothing_is_smuggled(passes_bytes_on)


@pytest.mark.invariant(8)
async def test_leads_nowhere_else() -> None:
    """Nothing but the upstream's name decides whom the ambassador asks."""
    await check_leads_nowhere_else(ours)


@pytest.mark.naive(8)
async def test_naive_leads_elsewhere() -> None:
    """A proxy that follows redirects fetches what only the machine may fetch."""
    with pytest.raises(AssertionError):
        await check_leads_nowhere_else(with_flags(follows=True))


@pytest.mark.invariant(9)
async def test_failures_are_typed() -> None:
    """Each answer that the ambassador made says so, and why, in the words of RFC 9209."""
    await check_failures_are_typed(ours)


@pytest.mark.naive(9)
async def test_naive_failures() -> None:
    """A bare 502 may be anybody's."""
    with pytest.raises(AssertionError):
        await check_failures_are_typed(with_flags())


@pytest.mark.invariant(9)
async def test_certificates(tmp_path: Path) -> None:
    """A certificate of another name, or of a stranger, gets a typed 502 and no request."""
    context, signer = certificates(tmp_path, "other.example")
    async with tls_origin(context) as origin:
        await check_certificates(ours, origin, signer)
    right, own_signer = certificates(tmp_path, "localhost")
    async with tls_origin(right) as origin:
        await check_certificates(ours, origin, signer)
        async with ours(origin.url, ca_file=own_signer) as url, client() as session:
            assert await status_of(session, "GET", url) == 200


@pytest.mark.naive(9)
async def test_naive_certificates(tmp_path: Path) -> None:
    """A proxy that verifies nothing hands the password to whoever answers."""
    context, signer = certificates(tmp_path, "other.example")
    async with tls_origin(context) as origin:
        with pytest.raises(AssertionError):
            await check_certificates(with_flags(trusts=True), origin, signer)


# --- what else it does -------------------------------------------------------------------------------------


async def status_of(session: Any, method: str, url: str, **options: Any) -> int:
    async with session.request(method, url, **options) as got:
        await got.read()
        return int(got.status)


@pytest.mark.invariant(2)
async def test_what_may_be_sent_again() -> None:
    """With an Idempotency-Key, or where no connection was made, a POST is tried again; a long body is not."""
    async with origins() as [origin], client() as session:
        async with ours(origin.url, replay=1000) as url:
            for options, expected in (
                ({"headers": {"Idempotency-Key": "1"}, "data": b"a" * 1000}, (200, 2)),
                ({"headers": {"Idempotency-Key": "1"}, "data": b"a" * 1001}, (502, 1)),
                ({"headers": {"Idempotency-Key": "1"}, "data": some(b"a" * 900, b"b" * 100)}, (200, 2)),
                ({"headers": {"Idempotency-Key": "1"}, "data": some(b"a" * 900, b"b" * 101)}, (502, 1)),
                ({"headers": {"Idempotency-Key": "1", "X-Max-Retries": "0"}, "data": b"a"}, (502, 1)),
                ({"headers": {"Idempotency-Key": ""}, "data": b"a"}, (502, 1)),
            ):
                origin.seen.clear()
                origin.next.append(reset)
                status = await status_of(session, "POST", url, **options)
                assert (status, len(origin.seen)) == expected
                bodies = {seen.body for seen in origin.seen}
                assert len(bodies) == 1
        async with ours(refusing_url(), origin.url) as url:
            origin.seen.clear()
            for _ in range(4):
                assert await status_of(session, "POST", url, data=b"pay") == 200
            assert [seen.body for seen in origin.seen] == [b"pay"] * 4


async def some(*pieces: bytes) -> AsyncIterator[bytes]:
    """Return a body in pieces, of a length that nobody was told."""
    for piece in pieces:
        yield piece


async def test_the_next_ambassador_does_not_retry() -> None:
    """Two ambassadors in a row make three attempts, not nine."""
    async with origins() as [origin], ours(origin.url) as inner, client() as session:
        origin.then = answer(503)
        async with ours(inner.removesuffix("/shop")) as outer:
            assert await status_of(session, "GET", f"{outer}/shop") == 503
            assert len(origin.seen) == 3


@pytest.mark.invariant(1)
async def test_large_and_empty() -> None:
    """8 MB pass both ways; HEAD, 204, 304 and a body of nothing keep their form."""
    big = random.Random(1).randbytes(8 << 20)

    async def echo(request: web.Request, seen: Any) -> web.StreamResponse:
        reply = web.StreamResponse()
        await reply.prepare(request)
        async for piece in request.content.iter_any():
            await reply.write(piece)
        return reply

    async with origins() as [origin], ours(origin.url) as url, client() as session:
        origin.next.append(echo)
        async with session.post(url + "/", data=io.BytesIO(big)) as got:
            assert await got.read() == big
        assert origin.seen[0].all("Content-Length") == [str(len(big))]
        origin.then = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nETag: x\r\n\r\n")
        async with session.head(url + "/") as got:
            assert (got.status, got.headers["Content-Length"], await got.read()) == (200, "12345", b"")
        for status in (204, 304):
            origin.then = raw(b"HTTP/1.1 %d X\r\nETag: x\r\n\r\n" % status)
            async with session.get(url + "/") as got:
                assert (got.status, got.headers["ETag"], await got.read()) == (status, "x", b"")
        origin.then = raw(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
        async with session.get(url + "/") as got:
            assert await got.read() == b"until the end"
        for length in (b"Content-Length: 0\r\n", b""):
            origin.then = answer(200)
            await say(url, b"POST /shop/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%b\r\n" % length)
            assert origin.seen[-1].all("Content-Length") == ["0"]


async def test_a_malformed_body_never_arrives_whole() -> None:
    """A malformed body ends the request by its deadline, and the upstream never sees its end."""
    async with origins() as [origin], ours(origin.url) as url:
        reader, writer = await asyncio.open_connection(*address_of(url))
        writer.write(b"POST /shop/ HTTP/1.1\r\nHost: a\r\nX-Request-Timeout-Ms: 300\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await eventually(lambda: len(origin.seen) == 1, within=5)
        writer.write(b"zz\r\n")
        said = await reader.read(1 << 16)
        writer.close()
        assert said.split(b" ")[1] in {b"400", b"504"}
        await eventually(lambda: origin.seen[0].over == "cancelled", within=5)
        assert [seen.body for seen in origin.seen] == [b""]


def address_of(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").split("/")[0].partition(":")
    return host, int(port)


@pytest.mark.invariant(8)
async def test_answers_are_framed_anew() -> None:
    """An answer that could be read in two ways becomes one that cannot, or a 502; no upgrade passes."""
    head = b"HTTP/1.1 200 OK\r\n"
    async with origins() as [origin], ours(origin.url, attempts=1) as url:
        for framing, body in (
            (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
            (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
            (b"Content-Length: 3\r\nContent-Length: 5\r\n\r\n", b"hello"),
            (b"Content-Length: 3, 5\r\n\r\n", b"hello"),
            (b"X: a\r\n b\r\nContent-Length: 5\r\n\r\n", b"hello"),
        ):
            origin.then = raw(head + framing + body)
            said = await say(url, b"GET /shop/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            top, _, rest = said.partition(b"\r\n\r\n")
            said_lengths = [
                line for line in top.lower().split(b"\r\n") if line.startswith((b"content-le", b"transfer-e"))
            ]
            assert len(said_lengths) == 1, top
            assert b" 502 " in top[:16] or rest in {b"hello", b"5\r\nhello\r\n0\r\n\r\n"}, said
        origin.then = answer(200)
        await say(
            url,
            b"GET /shop/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
            b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        )
        assert not any(origin.seen[-1].all(name) for name in ("Upgrade", "HTTP2-Settings", "Connection"))


async def test_headers_too_large() -> None:
    """A header of 1 MB is refused, and so is one from the upstream."""
    async with origins() as [origin], ours(origin.url, attempts=1) as url, client() as session:
        said = await say(url, b"GET /shop/ HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n")
        assert said.split(b" ")[1:2] in ([b"400"], [b"431"], [])  # the reset may overtake the answer
        assert not origin.seen
        origin.then = raw(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n")
        assert await status_of(session, "GET", url) == 502


async def test_a_circuit_breaker_is_a_guard() -> None:
    """An open circuit around the attempts answers 503, typed, without asking the upstream."""
    breaker = CircuitBreaker("shop", CircuitPolicy(record=(UpstreamFailed,), minimum_calls=3))
    async with origins() as [origin], client() as session:
        origin.then = reset
        async with ours(origin.url, attempts=1, guard=breaker) as url:
            assert [await status_of(session, "GET", url) for _ in range(5)] == [502, 502, 502, 503, 503]
            assert len(origin.seen) == 3
            async with session.get(url) as got:
                assert got.headers["Proxy-Status"] == "ambassador; error=destination_unavailable"
                assert int(got.headers["Retry-After"]) <= 60


@pytest.mark.invariant(6)
async def test_a_dead_shard_has_no_stand_in() -> None:
    """A key's requests go to its shard or nowhere: while that is down, the other shards serve theirs."""
    async with origins(2) as [alive, other], client() as session:
        shards = (alive.url, refusing_url())
        async with ours(*shards, shard_by=Header("X-Customer")) as url:
            statuses = {}
            for number in range(20):
                key = f"customer-{number}"
                status = await status_of(session, "GET", url, headers={"X-Customer": key})
                statuses[key] = status
                assert status == (200 if ranked(key.encode(), shards)[0] == alive.url else 502)
            assert set(statuses.values()) == {200, 502}
            assert await status_of(session, "GET", url) == 400
        async with ours(alive.url, other.url, shard_by=Segment(2)) as url:
            for _ in range(3):
                assert await status_of(session, "GET", f"{url}/customers/ada?x=/y") == 200
            assert await status_of(session, "GET", f"{url}/customers") == 400
        assert 0 in {len([s for s in each.seen if "ada" in s.target]) for each in (alive, other)}


@pytest.mark.invariant(5, 7)
async def test_permits_come_back(rng: random.Random) -> None:
    """After 60 calls that hung up at some moment, were reset or refused, the two permits are there again."""
    async with origins() as [origin], ours(origin.url, limit=2, max_waiting=2) as url, client() as session:
        for _ in range(60):
            origin.then = rng.choice([never, reset, answer(503), answer(200, body=b"x" * 300_000)])
            asking = asyncio.create_task(status_of(session, "GET", url))
            for _ in range(rng.randrange(40)):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: origin.running == 0, within=5)
        release = asyncio.Event()
        origin.then = hang(release)
        origin.seen.clear()
        last = [asyncio.create_task(status_of(session, "GET", url)) for _ in range(2)]
        await eventually(partial(has_seen, origin, 2), within=5)
        release.set()
        assert await asyncio.gather(*last) == [200, 200]


async def test_events_and_report() -> None:
    """Each request ends in one event, and the report counts the same."""
    heard = Recorder()
    async with (
        origins() as [origin],
        ours(origin.url, on_event=heard, attempts=2) as url,
        client() as session,
    ):
        origin.next.extend([answer(503), raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")])
        with pytest.raises(aiohttp.ClientPayloadError):
            await status_of(session, "GET", url)
        await status_of(session, "POST", url, data=b"x")
        await status_of(session, "GET", url + "s")
    assert heard.names() == ["ResponseCut", "RequestForwarded", "RequestRefused"]
    assert heard.of(RequestForwarded)[0].attempts == 1
    assert heard.of(RequestRefused)[0].error is ProxyError.DENIED


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("[]", "object"),
        ("{}", "at least one name"),
        ("{", "JSON"),
        ('{"Shop": {"origins": ["http://a"]}}', "name must be"),
        ('{"shop": {}}', "origins must be a list"),
        ('{"shop": {"origins": []}}', "at least one"),
        ('{"shop": {"origins": ["http://a", "http://a"]}}', "each once"),
        ('{"shop": {"origins": ["http://u:secret@a"]}}', "origins must each"),
        ('{"shop": {"origins": ["http://a/path"]}}', "origins must each"),
        ('{"shop": {"origins": ["ftp://a"]}}', "origins must each"),
        ('{"shop": {"origins": [1]}}', "origins must each"),
        ('{"shop": {"origins": ["http://a"], "ca_file": "x"}}', "ca_file"),
        ('{"shop": {"origins": ["http://a"], "shard_by": "cookie:a"}}', "shard_by"),
        ('{"shop": {"origins": ["http://a"], "shard_by": "header:a b"}}', "header"),
        ('{"shop": {"origins": ["http://a"], "shard_by": "segment:0"}}', "number"),
        ('{"shop": {"origins": ["http://a"], "policy": {"tries": 1}}}', "tries"),
        ('{"shop": {"origins": ["http://a"], "policy": {"attempts": true}}}', "attempts"),
        ('{"shop": {"origins": ["http://a"], "policy": {"deadline": NaN}}}', "deadline"),
        ('{"shop": {"origins": ["http://a"], "policy": {"statuses": [200]}}}', "statuses"),
        ('{"shop": {"origins": ["http://a"], "host": "b"}}', "host"),
    ],
)
def test_upstreams_that_are_none(given: str, wanted: str) -> None:
    """What makes no sense as upstreams is refused, with the place, and no password is shown."""
    with pytest.raises(ValueError, match=wanted) as refused:
        read(given)
    assert "secret" not in str(refused.value)


async def is_refused(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


def has_seen(origin: Origin, count: int) -> bool:
    return len(origin.seen) == count


# --- faults ------------------------------------------------------------------------------------------------


@pytest.mark.fault("the upstream carries the request out, and resets the connection before it answers")
async def test_fault_reset(ledger: Callable[..., Ledger]) -> None:
    """Of 30 payments whose answer is lost none is made twice."""
    book = ledger(duplicated=0, lost=0)
    twin = book.without("a proxy that retries everything")
    for make, books in ((ours, book), (with_flags(tries=3), twin)):
        async with origins() as [origin], make(origin.url) as url, client() as session:
            for number in range(30):
                origin.next.append(reset)
                books.injected()
                status = await status_of(session, "POST", url, data=b"%d" % number)
                (books.acked if status == 200 else books.unsure)(number)
                origin.next.clear()
            for seen in origin.seen:
                books.effect(int(seen.body))
    book.held("each was sent once, and the application told that it is unsure (502)")


@pytest.mark.fault("one of two replicas refuses connections")
async def test_fault_refused(ledger: Callable[..., Ledger]) -> None:
    """Payments whose replica is down go to the other, each once."""
    book = ledger(duplicated=0, lost=0, unsure=0, bound="all acknowledged")
    failed = 0
    for make in (ours, with_flags()):
        async with origins() as [origin], make(refusing_url(), origin.url, capacity=50) as url:
            async with client() as session:
                for number in range(40):
                    status = await status_of(session, "POST", url, data=b"%d" % number)
                    if make is not ours:
                        failed += status != 200
                        continue
                    (book.acked if status == 200 else book.failed)(number)
                    if number % 2 == 0:
                        book.injected()
            if make is ours:
                for seen in origin.seen:
                    book.effect(int(seen.body))
    assert book.outcomes["acked"] == 40
    assert failed == 20
    book.held("nothing had left, so the next attempt went to the other replica")
    book.naive(f"without an ambassador's retry {failed} of 40 failed")


@pytest.mark.fault("the upstream dies in the middle of its answer")
async def test_fault_cut(ledger: Callable[..., Ledger]) -> None:
    """Half an answer never looks whole."""
    book = ledger(lost=0, bound="0 halves taken for whole")
    halves: dict[bool, int] = {}
    for naive in (False, True):
        make = with_flags() if naive else ours
        async with origins() as [origin], make(origin.url) as url, client() as session:
            halves[naive] = 0
            for number in range(20):
                origin.next.append(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf."))
                try:
                    async with session.get(url) as got:
                        await got.read()
                        halves[naive] += 1
                except aiohttp.ClientPayloadError:
                    book.failed(number)
                if not naive:
                    book.injected()
    assert halves == {False: 0, True: 20}
    book.held("the application's connection was cut as well: 20 of 20 seen as broken")
    book.naive(f"a proxy that passes on what it has: {halves[True]} of 20 looked whole")


@pytest.mark.fault("every origin answers 503")
async def test_fault_all_failing(ledger: Callable[..., Ledger]) -> None:
    """When everything fails, the budget ends the retries."""
    book = ledger(bound="at most 110 attempts for 100 requests")
    book.injected(100)
    attempts = await check_amplification(ours)
    for number in range(100):
        book.failed(number)
    async with origins() as [origin], with_flags(tries=3)(origin.url) as url, client() as session:
        origin.then = answer(503)
        for _ in range(100):
            await status_of(session, "GET", url)
    assert len(origin.seen) == 300
    book.held(f"{attempts} attempts for 100 requests")
    book.naive(f"three tries each: {len(origin.seen)} attempts for 100 requests")


@pytest.mark.fault("the upstream is slower than the application's deadline")
async def test_fault_slow(ledger: Callable[..., Ledger]) -> None:
    """No call outlives its deadline, nor does the work for it."""
    book = ledger(within=1.0, bound="answered and cancelled at the deadline")
    soon = {"X-Request-Timeout-Ms": "100"}
    async with origins() as [origin], ours(origin.url) as url, client() as session:
        origin.then = never
        for number in range(10):
            book.injected()
            assert await status_of(session, "GET", url, headers=soon) == 504
            await eventually(lambda: origin.running == 0, within=1)
            book.recovered()
            book.failed(number)
    async with origins() as [origin], with_flags()(origin.url, deadline=0.5) as url, client() as session:
        origin.then = never
        began = asyncio.get_running_loop().time()
        assert await status_of(session, "GET", url, headers=soon) == 502
        took = asyncio.get_running_loop().time() - began
    assert took > 0.4
    book.held("504 when the 100 ms were over, and nobody worked on")
    book.naive(f"with a time-out of its own: {took:.1f} s for a caller who had 0.1 s")


@pytest.mark.fault("39 requests that two servers could read in two ways")
async def test_fault_smuggling(ledger: Callable[..., Ledger]) -> None:
    """No second request travels in the body of a first."""
    book = ledger(bound="0 requests smuggled")
    book.injected(await check_nothing_is_smuggled(ours))
    assert book.faults == 39
    for name in SMUGGLING:
        book.failed(name)
    async with Lenient().serve() as origin, passes_bytes_on(origin.url) as url:
        await asyncio.gather(*[say(url, request) for request in SMUGGLING.values()])
        through = sum(b"/smuggled" in line for line in origin.requests)
    assert through
    book.held("each was answered 400 or 405, its connection closed, and the upstream saw none")
    book.naive(f"a proxy that passes bytes on: {through} hidden requests carried out")


@pytest.mark.fault("redirects to an address that only the machine itself may ask")
async def test_fault_redirect(ledger: Callable[..., Ledger]) -> None:
    """A redirect is the application's to follow or not."""
    book = ledger(bound="0 requests to others")
    reached = {}
    for naive in (False, True):
        make = with_flags(follows=True) if naive else ours
        async with origins(2) as [origin, metadata], make(origin.url) as url, client() as session:
            for status in (301, 302, 303, 307, 308):
                origin.next.append(answer(status, headers={"Location": metadata.url + "/latest"}))
                got = await status_of(session, "GET", url, allow_redirects=False)
                if not naive:
                    assert got == status
                    book.injected()
                    book.failed(status)
            reached[naive] = len(metadata.seen)
    assert reached == {False: 0, True: 5}
    book.held("passed back as they came")
    book.naive(f"a proxy that follows redirects: {reached[True]} of 5 fetched")


@pytest.mark.fault("the upstream's certificate is of another name")
async def test_fault_certificate(ledger: Callable[..., Ledger], tmp_path: Path) -> None:
    """Nothing is sent to a server that cannot show who it is."""
    book = ledger(bound="0 requests sent")
    context, signer = certificates(tmp_path, "other.example")
    async with tls_origin(context) as origin:
        for number in range(5):
            book.injected()
            await check_certificates(ours, origin, signer)
            book.failed(number)
        async with with_flags(trusts=True)(origin.url) as url, client() as session:
            for _ in range(5):
                await status_of(session, "POST", url, data=b"password")
        assert len(origin.seen) == 5
    book.held("502 with tls_certificate_error, 5 of 5")
    book.naive(f"a proxy that verifies nothing: {len(origin.seen)} of 5 passwords handed over")


@pytest.mark.fault("the application hangs up while the upstream works")
async def test_fault_hang_up(ledger: Callable[..., Ledger]) -> None:
    """What is done for nobody is ended."""
    book = ledger(within=2.0, bound="0 still at work")
    at_work, release = {}, asyncio.Event()
    for naive in (False, True):
        make = with_flags(cancels=False) if naive else ours
        async with origins() as [origin], make(origin.url, deadline=20.0) as url, client() as session:
            origin.then = hang(release)
            for number in range(10):
                asking = asyncio.create_task(status_of(session, "GET", url))
                await eventually(partial(has_seen, origin, number + 1), within=5)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                if not naive:
                    book.injected()
                    await eventually(lambda: origin.running == 0, within=2)
                    book.recovered()
                    book.failed(number)
            at_work[naive] = origin.running
            if naive:
                release.set()
                await eventually(lambda: origin.running == 0, within=5)
    assert at_work == {False: 0, True: 10}
    book.held("the attempt was cancelled each time")
    book.naive(f"a handler that is not cancelled: {at_work[True]} of 10 still at work")


# --- as a process and as a Pod -----------------------------------------------------------------------------


@pytest.mark.fault("the ambassador's process is killed in the middle of calls")
async def test_fault_killed(spawn: Callable[..., Worker], ledger: Callable[..., Ledger]) -> None:
    """The application sees its calls fail, and after the restart they work; no payment is made twice."""
    book = ledger(duplicated=0, lost=0, within=15.0)
    twin = book.without("an application that tries again whatever it was")
    port, admin_port = (address_of(refusing_url())[1] for _ in range(2))
    url = f"http://127.0.0.1:{port}/shop"
    release = asyncio.Event()
    async with origins() as [origin], client() as session:
        env = {
            "PORT": str(port),
            "ADMIN_PORT": str(admin_port),
            "UPSTREAMS": json.dumps({"shop": {"origins": [origin.url]}}),
        }

        async def up() -> bool:
            with suppress(Gone, aiohttp.ClientError):
                return await status_of(session, "GET", f"http://127.0.0.1:{admin_port}/readyz") == 200
            return False

        for kill in range(2):
            ambassador = spawn("patterns.container.ambassador", env=env)
            await eventually(up, within=15)
            if kill:
                book.recovered()
            origin.then = hang(release)
            before = len(origin.seen)
            paying = [
                asyncio.create_task(status_of(session, "POST", url, data=b"%d" % (kill * 5 + number)))
                for number in range(5)
            ]
            await eventually(partial(has_seen, origin, before + 5), within=5)
            ambassador.kill()
            for each in (book, twin):
                each.injected()
            for number, result in enumerate(await asyncio.gather(*paying, return_exceptions=True)):
                assert isinstance(result, Gone | aiohttp.ClientError)
                for each in (book, twin):
                    each.unsure(kill * 5 + number)
            with pytest.raises(Gone, match="ClientConnectorError"):
                await status_of(session, "GET", url)
        ambassador = spawn("patterns.container.ambassador", env=env)
        await eventually(up, within=15)
        book.recovered()
        release.set()
        for seen in origin.seen:
            for each in (book, twin):
                each.effect(int(seen.body))
        for number in range(10):  # the naive application
            if await status_of(session, "POST", url, data=b"%d" % number) == 200:
                twin.acked(number)
                twin.effect(number)
        twin.recovered()
        release.clear()
        before = len(origin.seen)
        last = asyncio.create_task(status_of(session, "GET", url))
        await eventually(partial(has_seen, origin, before + 1), within=5)
        ambassador.terminate()  # in good order: what is in flight is finished
        await eventually(partial(is_refused, *address_of(url)), within=5)
        release.set()
        assert await last == 200
        await ambassador.ended(within=10)
        assert ambassador.code == 0
    book.held(
        "10 calls in flight broke, the next were refused until it was back; each reached the upstream once"
    )


@pytest.mark.containers
@pytest.mark.fault("in a Pod: a shard goes away, then the ambassador's container is killed")
async def test_fault_pod(pods: Pods, ledger: Callable[..., Ledger]) -> None:
    """Seen from outside: only a dead shard's customers notice it, and a dead ambassador is back by itself."""
    book = ledger(within=15.0, bound="the other shard's customers are served")
    port, customers = pods.free_port(), [f"customer-{number}" for number in range(6)]
    async with Origin().serve() as alive, AsyncExitStack() as lives:
        doomed = await lives.enter_async_context(Origin().serve())
        origins_ = [alive.url, doomed.url]
        config = {
            "PORT": port,
            "ADMIN_PORT": pods.free_port(),
            "SHOP_URL": f"http://127.0.0.1:{port}/shop",
            "UPSTREAMS": json.dumps({"shop": {"origins": origins_, "shard_by": "header:X-Customer"}}),
            "PACE": "0.05",
            "CUSTOMERS": ",".join(customers),
        }
        theirs = {each: ranked(each.encode(), origins_)[0] == alive.url for each in customers}
        with pods.played("container/ambassador", config=config) as pod:

            async def says(dead_shard: str, other: str = "ok") -> bool:
                lines = (await asyncio.to_thread(pod.text, "application")).splitlines()[-6:]
                said = dict(line.split(" ", 2)[1:] for line in lines)
                return said == {each: other if theirs[each] else dead_shard for each in customers}

            def nobody_there() -> int:
                return pod.text("application").count("nobody there")

            await eventually(lambda: says("ok"), within=20)
            await lives.aclose()
            book.injected()
            await eventually(lambda: says("502 ambassador; error=connection_refused"), within=10)
            book.recovered()
            pid = await asyncio.to_thread(pod.kill, "ambassador")
            book.injected()
            await eventually(lambda: nobody_there() and pod.restarts("ambassador") == 1, within=15)
            await eventually(lambda: says("502 ambassador; error=connection_refused"), within=15)
            assert await asyncio.to_thread(pod.pid, "ambassador") != pid
            book.recovered()
            refused = nobody_there()
            book.failed("calls while it was away")
    assert refused
    book.held("502 with connection_refused for the dead shard's customers only; restarted by the Pod")
    book.naive(f"an application that gives up at the first refusal: {refused} calls lost meanwhile")
