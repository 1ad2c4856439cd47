"""The invariants of an ambassador, each a check that fails a proxy which breaks it."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

from tests.container.ambassador_ground import (
    Gone,
    Lenient,
    Make,
    Origin,
    answer,
    client,
    hang,
    never,
    origins,
    raw,
    refusing_url,
    reset,
    say,
)
from tests.eventually import eventually

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

SET_BY_US = {b"host", b"via", b"x-request-timeout-ms", b"x-max-retries", b"content-length"}
IN_TARGETS = "abc/.%2fF~!$&'()*+,;=:@|\"{}<>^`\\?[]-_"
FRAMING = {b"transfer-encoding", b"connection", b"content-length"}


# --- 1. transparent ----------------------------------------------------------------------------------------


async def check_transparent(make: Make, rng: random.Random, rounds: int = 40) -> None:
    """Whatever is sent and answered arrives on the other side, but for hop-by-hop headers."""
    async with origins() as [origin], make(origin.url) as url, client() as session:
        for _ in range(rounds):
            method = rng.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "REPORT"])
            target = "/" + "".join(
                rng.choices("abc/.%2fF~!$&'()*+,;=:@|\"{}<>^`\\?[]-_", k=rng.randrange(20))
            )
            if target.find("?") == len(target) - 1:  # yarl drops a query that is empty
                target = target[:-1]
            headers = some_headers(rng)
            hop = [
                ("Connection", "keep-alive, X-Hop"),
                ("X-Hop", "1"),
                ("Keep-Alive", "9"),
                ("TE", "trailers"),
            ]
            body = rng.randbytes(rng.choice([0, 1, 10, 5_000, 200_000]))
            chunked = rng.random() < 0.5
            status = rng.choice([200, 201, 206, 302, 404, 418, 429, 500, 501])
            reason = rng.choice(["OK", "A b c", ""])
            back, back_headers = rng.randbytes(rng.choice([0, 1, 70_000])), some_headers(rng)
            origin.next.append(raw(reply_of(status, reason, [*back_headers, *hop], back, chunked=chunked)))

            async def pieces(body: bytes = body) -> Any:
                yield body

            data: Any = pieces() if chunked and body else body or None
            async with session.request(
                method,
                URL(url + target, encoded=True),
                headers=[*headers, *hop],
                data=data,
                allow_redirects=False,
            ) as got:
                received = await got.read()
            assert origin.seen, f"{method} {target} was answered {got.status} {received[:200]!r}"
            seen = origin.seen.pop()
            assert (seen.method, seen.target) == (method, target), f"{method} {target} came as {seen.target}"
            assert seen.body == body, f"{method} {len(body)} bytes, {chunked=}: {len(seen.body)} arrived"
            sent = [(name.encode(), value.encode()) for name, value in headers]
            arrived = [pair for pair in seen.headers if pair[0].lower() not in SET_BY_US | FRAMING]
            assert arrived == sent, f"sent {sent}, arrived {arrived}"
            assert (got.status, got.reason) == (status, reason), (
                f"{got.status} {got.reason} of {status} {reason}"
            )
            assert received == back
            answered = [(name.encode(), value.encode()) for name, value in back_headers]
            back_here = [pair for pair in got.raw_headers if pair[0].lower() not in FRAMING]
            assert back_here == answered, f"answered {answered}, arrived {back_here}"


def some_headers(rng: random.Random) -> list[tuple[str, str]]:
    """Return headers in any case, some twice, with bytes beyond ASCII."""
    names = ["X-Request-Id", "traceparent", "cOOkie", "Accept-Encoding", "X-A", "X-b", "Vary"]
    values = ["1", "a, b", 'W/"x"', "", "ö 漢", "a\tb", "gzip;q=0", "x" * 3000]
    headers = [(rng.choice(names), rng.choice(values)) for _ in range(rng.randrange(6))]
    return [*headers, ("content-TYPE", "text/x")] if rng.random() < 0.5 else headers


def reply_of(
    status: int, reason: str, headers: Sequence[tuple[str, str]], body: bytes, *, chunked: bool
) -> bytes:
    """Return the bytes of an answer."""
    framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in [framing, *headers])]
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    if not chunked:
        return head + body
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


async def check_header_in_two_cases(make: Make) -> None:
    """A header that comes twice, in another case, arrives twice; the second takes the case of the first."""
    async with origins() as [origin], make(origin.url) as url:
        request = "GET /shop/ HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-b: 2\r\nx-a: 3\r\nConnection: close\r\n\r\n"
        origin.then = raw(b"HTTP/1.1 200 OK\r\nVary: a\r\nvary: b\r\nContent-Length: 0\r\n\r\n")
        said = await say(url, request.encode())
        arrived = [pair for pair in origin.seen[0].headers if pair[0].lower().startswith(b"x-")]
        assert arrived[:3] == [(b"X-A", b"1"), (b"x-b", b"2"), (b"X-A", b"3")], f"arrived {arrived}"
        assert b"Vary: a\r\n" in said, said
        assert b": b\r\n" in said, said


async def check_streams(make: Make, within: float = 2.0) -> None:
    """Each piece of a body arrives before the next is sent, both ways."""
    more, seen_first = asyncio.Event(), asyncio.Event()

    async def echo(request: Any, seen: Any) -> Any:
        reply = aiohttp.web.StreamResponse()
        await reply.prepare(request)
        async for piece in request.content.iter_any():
            seen_first.set()
            await reply.write(piece)
        return reply

    async def two() -> Any:
        yield b"first"
        await more.wait()
        yield b"second"

    async with origins() as [origin], make(origin.url) as url, client() as session:
        origin.then = echo
        try:
            async with asyncio.timeout(within), session.put(url + "/", data=two()) as got:
                assert await got.content.readany() == b"first"
                assert seen_first.is_set()
                more.set()
                assert await got.read() == b"second"
        except TimeoutError:
            raise AssertionError("the first piece waited for the second") from None
        finally:
            more.set()


async def check_a_broken_answer_shows(make: Make) -> None:
    """An answer that breaks off at the origin breaks off for the application."""
    head = b"HTTP/1.1 200 OK\r\n"
    broken = [
        head + b"Content-Length: 10\r\n\r\nhalf.",
        head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhalf.\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhalf.\r\nzz\r\n",
    ]
    async with origins() as [origin], make(origin.url, attempts=1) as url, client() as session:
        for each in broken:
            origin.next.append(raw(each))
            whole = None
            try:
                async with session.get(url + "/") as got:
                    whole = await got.read() if got.status == 200 else None
            except (aiohttp.ClientPayloadError, Gone):
                pass
            assert whole is None, f"{each!r} looked whole: {whole!r}"


# --- 2. once -----------------------------------------------------------------------------------------------


async def check_sent_once(make: Make) -> None:
    """A POST reaches an origin once, whatever fails behind its first byte; a GET may be tried again."""
    async with origins() as [origin], make(origin.url, deadline=0.4, attempt_timeout=0.1) as url:
        async with client() as session:
            for failure in (reset, raw(b"HTTP/1.1 200 O"), raw(b"no HTTP\r\n\r\n"), answer(503), never):
                origin.seen.clear()
                origin.next.append(failure)
                async with session.post(url + "/pay", data=b"10") as got:
                    assert got.status in {502, 503, 504}
                assert len(origin.seen) == 1, f"{failure} was repeated"
        for failure in (reset, answer(503), never):
            async with client() as session:
                origin.seen.clear()
                origin.next.append(failure)
                async with session.get(url + "/") as got:
                    assert got.status == 200
                assert len(origin.seen) == 2


# --- 3. amplification --------------------------------------------------------------------------------------


async def check_amplification(make: Make, requests: int = 100, capacity: int = 10) -> int:
    """While everything fails, retries are the budget's few; returns the attempts."""
    async with (
        origins() as [origin],
        make(origin.url, capacity=capacity, min_per_second=0.0) as url,
        client() as session,
    ):
        origin.then = answer(503)
        for _ in range(requests):
            async with session.get(url + "/") as got:
                assert got.status in {502, 503}
        attempts = len(origin.seen)
    assert attempts <= requests + capacity, f"{attempts} attempts for {requests} requests"
    return attempts


# --- 4. deadline -------------------------------------------------------------------------------------------


async def check_deadline_shrinks(make: Make) -> None:
    """What origins are told never grows, from attempt to attempt and hop to hop, and it holds."""
    async with (
        origins() as [origin],
        make(origin.url, deadline=5.0, attempt_timeout=0.15, capacity=10) as inner,
        make(inner.removesuffix("/shop"), deadline=5.0, attempt_timeout=4.0) as outer,
        client() as session,
    ):
        for url in (inner, f"{outer}/shop"):
            origin.seen.clear()
            origin.then = never
            began = time.monotonic()
            async with session.get(url + "/", headers={"X-Request-Timeout-Ms": "400"}) as got:
                assert got.status in {502, 504}
            took = time.monotonic() - began
            told = [int(each) for seen in origin.seen for each in seen.all("X-Request-Timeout-Ms")]
            assert told
            assert max(told) <= 400, f"told {told} of 400 ms"
            assert all(later < sooner for sooner, later in itertools.pairwise(told)), told
            assert took < 1.5, f"took {took:.1f} s, with 0.4 s to go"


# --- 5. disconnect -----------------------------------------------------------------------------------------


async def check_a_client_that_hangs_up_ends_the_attempt(make: Make, within: float = 1.0) -> None:
    """The origin's handler is cancelled when the application has gone."""
    async with origins() as [origin], make(origin.url) as url, client() as session:
        origin.then = never
        asking = asyncio.create_task(session.get(url + "/").__aenter__())
        await eventually(lambda: len(origin.seen) == 1, within=5)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: origin.seen[0].over == "cancelled", within=within)
        assert len(origin.seen) == 1


# --- 6. shards ---------------------------------------------------------------------------------------------

SHARDS = [f"http://shard-{number}:80" for number in range(8)]
KEYS = [b"customer-%d" % number for number in range(4_000)]


def check_shards_agree(source: str) -> None:
    """Two processes with other seeds of `hash()` say the same of each key. `source` defines shard_of."""
    program = f"{source}\nprint([shard_of(b'customer-%d' % each, {SHARDS!r}) for each in range(100)])"
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1, "two processes disagree"


def check_few_keys_move(shard_of: Callable[[bytes, Sequence[str]], str]) -> float:
    """A ninth shard takes about a ninth of the keys, and none moves between the others; returns the share."""
    before = {key: shard_of(key, SHARDS) for key in KEYS}
    ninth = "http://shard-8:80"
    after = {key: shard_of(key, [*SHARDS, ninth]) for key in KEYS}
    moved = [key for key in KEYS if before[key] != after[key]]
    share = len(moved) / len(KEYS)
    assert 0.5 / 9 < share < 1.5 / 9, f"{share:.0%} of the keys moved"
    assert {after[key] for key in moved} == {ninth}
    least, most = (how(sum(s == each for s in before.values()) for each in SHARDS) for how in (min, max))
    assert most < 1.5 * least, f"from {least} to {most} keys at a shard"
    return share


# --- 7. bounded --------------------------------------------------------------------------------------------


async def check_bounded(make: Make, within: float = 2.0) -> None:
    """With 2 at the origin and 2 waiting, 6 of 10 are refused at once, and told when to come back."""
    release = asyncio.Event()
    async with (
        origins() as [origin],
        make(origin.url, limit=2, max_waiting=2, max_wait=10.0) as url,
        client() as session,
    ):
        origin.then = hang(release)

        async def ask() -> tuple[int, str | None]:
            async with session.post(url + "/") as got:
                return got.status, got.headers.get("Retry-After")

        asking = [asyncio.create_task(ask()) for _ in range(10)]
        try:
            await eventually(
                lambda: sum(task.done() for task in asking) == 6, within=within, what="6 of 10 are refused"
            )
            assert {task.result() for task in asking if task.done()} == {(503, "1")}
        finally:
            release.set()
            results = await asyncio.gather(*asking)
        assert sum(status == 200 for status, _ in results) == 4
        assert origin.most <= 2


# --- 8. closed ---------------------------------------------------------------------------------------------

_CHUNKED, _LENGTH = b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n"
_HIDDEN = b"0\r\n\r\nGET /shop/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def _post(headers: bytes, body: bytes, version: bytes = b"1.1", line: bytes = b"\r\n") -> bytes:
    return b"POST /shop/x HTTP/" + version + line + b"Host: a" + line + headers + line + body


_WRAP = b"Content-Length: %d\r\n" % len(_HIDDEN)
SMUGGLING = {
    "a length and chunks": _post(_WRAP + _CHUNKED, _HIDDEN),
    "chunks and a length": _post(_CHUNKED + _WRAP, _HIDDEN),
    "chunks after a tab": _post(_WRAP + b"Transfer-Encoding:\tchunked\r\n", _HIDDEN),
    "chunks after a vertical tab": _post(_WRAP + b"Transfer-Encoding: \x0bchunked\r\n", _HIDDEN),
    "a space before the colon": _post(_WRAP + b"Transfer-Encoding : chunked\r\n", _HIDDEN),
    "chunks twice": _post(_CHUNKED + _CHUNKED, _HIDDEN),
    "chunks and identity": _post(_CHUNKED + b"Transfer-Encoding: identity\r\n", _HIDDEN),
    "gzip, chunked": _post(b"Transfer-Encoding: gzip, chunked\r\n", _HIDDEN),
    "xchunked": _post(_WRAP + b"Transfer-Encoding: xchunked\r\n", _HIDDEN),
    "chunks in HTTP/1.0": _post(_CHUNKED, _HIDDEN, b"1.0"),
    "two lengths": _post(b"Content-Length: 5\r\n" + _WRAP, _HIDDEN),
    "the same length twice": _post(_LENGTH + _LENGTH, b"abc"),
    "a list of lengths": _post(b"Content-Length: 3, 3\r\n", b"abc"),
    "length +3": _post(b"Content-Length: +3\r\n", b"abc"),
    "length 1_0": _post(b"Content-Length: 1_0\r\n", b"0123456789"),
    "length -1": _post(b"Content-Length: -1\r\n", _HIDDEN),
    "length 0x3": _post(b"Content-Length: 0x3\r\n", b"abc"),
    "length of 30 digits": _post(b"Content-Length: " + b"9" * 30 + b"\r\n", b"abc"),
    "a folded line": _post(_LENGTH + b"X: a\r\n b\r\n", b"abc"),
    "a folded chunked": _post(_WRAP + b"Transfer-Encoding:\r\n chunked\r\n", _HIDDEN),
    "bare LF": _post(b"Content-Length: 3\n", b"abc", line=b"\n"),
    "bare LF in a header": _post(b"X: a\nTransfer-Encoding: chunked\r\n" + _WRAP, _HIDDEN),
    "bare CR in a header": _post(b"X: a\rTransfer-Encoding: chunked\r\n" + _WRAP, _HIDDEN),
    "NUL in a header": _post(_LENGTH + b"X: a\x00b\r\n", b"abc"),
    "a header without a colon": _post(_LENGTH + b"nonsense\r\n", b"abc"),
    "a space in a name": _post(_LENGTH + b"X Y: a\r\n", b"abc"),
    "a chunk's size in 0x": _post(_CHUNKED, b"0x3\r\nabc\r\n" + _HIDDEN),
    "a chunk longer than it says": _post(_CHUNKED, b"2\r\nabc\r\n" + _HIDDEN),
    "a chunk's size of 17 digits": _post(_CHUNKED, b"f" * 17 + b"\r\nabc\r\n" + _HIDDEN),
    "chunks with bare LF": _post(_CHUNKED, b"3\nabc\n0\n\n"),
    "LF in a chunk's extension": _post(_CHUNKED, b"3;\nabc\r\nabc\r\n" + _HIDDEN),
    "a length in the trailer": _post(_CHUNKED, b"3\r\nabc\r\n0\r\nContent-Length: 50\r\n\r\n"),
    "two hosts": b"GET /shop/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "no host": b"GET /shop/x HTTP/1.1\r\n\r\n",
    "HTTP/2.0": b"GET /shop/x HTTP/2.0\r\nHost: a\r\n\r\n",
    "a space before the first header": b"GET /shop/x HTTP/1.1\r\n Host: a\r\n\r\n",
    "a header that is not UTF-8": b"GET /shop/x HTTP/1.1\r\nHost: a\r\nX: \xe9\r\n\r\n",
    "an unknown method": b"SMUGGLE /shop/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tunnel": b"CONNECT /shop/x HTTP/1.1\r\nHost: a\r\n\r\nGET /shop/smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
}


async def check_nothing_is_smuggled(make: Make) -> int:
    """What can be read in two ways is answered 400 or 405, closed, and reaches nobody; returns how many."""
    async with Lenient().serve() as origin, make(origin.url) as url:
        for name, request in SMUGGLING.items():
            said = await say(url, request)
            assert said.split(b" ")[1:2] in ([b"400"], [b"405"]), f"{name}: {said[:60]!r}"
            answers = sum(line.startswith(b"HTTP/") for line in said.split(b"\r\n"))
            assert answers == 1, f"{name}: answered {answers} times"
            assert not origin.requests, f"{name}: the origin saw {origin.requests}"
        assert (await say(url, b"GET /shop/ok HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.")
        assert len(origin.requests) == 1
    return len(SMUGGLING)


async def check_leads_nowhere_else(make: Make) -> None:
    """Neither target, Host nor redirect makes the proxy ask somebody who is not its upstream."""
    async with origins(2) as [origin, secret], make(origin.url) as url, client() as session:
        host = secret.url.removeprefix("http://")
        for target in (
            f"http://{host}/",
            f"//{host}/",
            f"/{host}/",
            f"/@{host}/",
            f"/shop@{host}/",
            f"/..//{host}/",
            "*",
            "/",
            "/shop#@x",
            "/SHOP/",
        ):
            request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            said = await say(url, request.encode())
            assert said.split(b" ")[1:2] in ([b"400"], [b"404"]), f"{target}: {said[:60]!r}"
        for target in (f"//{host}/", f"/@{host}", f"/../{host}", f"?u=http://{host}/", f"/\\{host}/"):
            origin.then = answer(200)
            await say(
                url, f"GET /shop{target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            assert origin.seen, f"{target} did not reach the origin"
            assert origin.seen.pop().target == (target if target[0] == "/" else f"/{target}")
            assert not secret.seen
        for status in (301, 302, 303, 307, 308):
            origin.then = answer(status, headers={"Location": f"{secret.url}/latest/meta-data"})
            async with session.get(url + "/", allow_redirects=False) as got:
                assert (got.status, got.headers["Location"]) == (status, f"{secret.url}/latest/meta-data")
        assert not secret.seen, "it asked somebody else"


# --- 9. typed ----------------------------------------------------------------------------------------------


async def check_failures_are_typed(make: Make) -> None:
    """The application can tell the ambassador's answers from the upstream's, and why each was made."""

    async def said(session: Any, url: str, **options: Any) -> tuple[int, str]:
        async with session.get(url, **options) as got:
            return got.status, got.headers.get("Proxy-Status", "").partition("error=")[2]

    soon = {"X-Request-Timeout-Ms": "80"}
    async with origins() as [origin], make(origin.url, attempts=1) as url, client() as session:
        for behaviour, headers, expected in (
            (reset, {}, (502, "connection_terminated")),
            (raw(b"SSH-2.0-OpenSSH\r\n\r\n"), {}, (502, "http_protocol_error")),
            (
                raw(b"HTTP/1.1 200 OK\r\nX: \xe9\r\nContent-Length: 0\r\n\r\n"),
                {},
                (502, "http_protocol_error"),
            ),
            (never, soon, (504, "http_response_timeout")),
            (answer(502), {}, (502, "")),  # the upstream's own: it is passed on
        ):
            origin.then = behaviour
            assert await said(session, url + "/", headers=headers) == expected
        unknown = url.replace("/shop", "/shops")
        assert await said(session, unknown) == (404, "http_request_denied")
        for headers in (
            {"X-Request-Timeout-Ms": "1e3"},
            {"X-Request-Timeout-Ms": "-1"},
            {"X-Max-Retries": "many"},
        ):
            assert await said(session, url, headers=headers) == (400, "http_request_error")
    async with make(refusing_url(), attempts=1) as url, client() as session:
        assert await said(session, url) == (502, "connection_refused")
    async with make("http://no-such-host.invalid", attempts=1) as url, client() as session:
        assert await said(session, url) == (502, "dns_error")


async def check_certificates(make: Make, origin: Origin, ca_file: str) -> None:
    """A certificate of another name, or signed by a stranger, gets no request."""
    async with make(origin.url, ca_file=ca_file) as url, client() as session:
        async with session.post(url + "/secret", data=b"password") as got:
            assert got.status == 502
            assert "tls_certificate_error" in got.headers.get("Proxy-Status", "")
        assert not origin.seen
