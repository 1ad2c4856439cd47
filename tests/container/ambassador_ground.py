"""What stands around an ambassador in its tests: origins that misbehave on demand, certificates, a client."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from patterns.container.ambassador import Ambassador, Policy, Upstream
from patterns.serving import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

Behaviour = Callable[["web.Request", "Seen"], Awaitable[web.StreamResponse]]
# A proxy in front of the origins of one upstream named "shop"; yields its URL.
Make = Callable[..., "AbstractAsyncContextManager[str]"]


@dataclass
class Seen:
    """A request as an origin saw it."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    over: str = ""  # "answered", or "cancelled"

    def all(self, name: str) -> list[str]:
        return [value.decode() for key, value in self.headers if key.decode().lower() == name.lower()]


class Origin:
    """A server that does what it is told: `next` for the coming requests, `then` for all after them."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.next: deque[Behaviour] = deque()
        self.then: Behaviour = answer_ok
        self.url = ""
        self.running = self.most = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.method, request.raw_path, list(request.raw_headers))
        self.seen.append(seen)
        behaviour = self.next.popleft() if self.next else self.then
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            reply = await behaviour(request, seen)
            seen.over = "answered"
            return reply
        except asyncio.CancelledError:
            seen.over = "cancelled"
            raise
        finally:
            self.running -= 1

    @asynccontextmanager
    async def serve(self, **options: Any) -> AsyncIterator[Origin]:
        @web.middleware
        async def everything(request: web.Request, handler: Any) -> web.StreamResponse:
            return await self.handle(request)

        app = web.Application(middlewares=[everything])
        async with serving(
            app, cancel_on_disconnect=True, auto_decompress=False, grace=0.1, **options
        ) as server:
            self.url = server.url
            yield self


async def answer_ok(request: web.Request, seen: Seen) -> web.StreamResponse:
    """Read the body and answer 200."""
    seen.body = await request.read()
    return web.Response(text="ok")


def answer(status: int, **options: Any) -> Behaviour:
    async def behaviour(request: web.Request, seen: Seen) -> web.StreamResponse:
        seen.body = await request.read()
        return web.Response(status=status, **options)

    return behaviour


async def reset(request: web.Request, seen: Seen) -> web.StreamResponse:
    """Carry the request out, and reset the connection before the first byte of the answer."""
    seen.body = await request.read()
    assert request.transport is not None
    sock: socket.socket = request.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
    raise ConnectionResetError("told to")


def raw(data: bytes) -> Behaviour:
    """Answer with these very bytes, and close."""

    async def behaviour(request: web.Request, seen: Seen) -> web.StreamResponse:
        seen.body = await request.read()
        transport = request.transport
        assert transport is not None
        transport.write(data)
        transport.close()
        raise ConnectionResetError("told to")

    return behaviour


def hang(release: asyncio.Event) -> Behaviour:
    """Answer when `release` is set."""

    async def behaviour(request: web.Request, seen: Seen) -> web.StreamResponse:
        seen.body = await request.read()
        await release.wait()
        return web.Response(text="late")

    return behaviour


async def never(request: web.Request, seen: Seen) -> web.StreamResponse:
    """Answer never."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


@asynccontextmanager
async def ours(*origins: str, **options: Any) -> AsyncIterator[str]:
    """Put an ambassador in front of `origins`; options are those of Upstream and Policy."""
    known = {name: options.pop(name) for name in ("shard_by", "ca_file", "guard") if name in options}
    on_event = options.pop("on_event", None)
    rest = {"on_event": on_event} if on_event else {}
    defaults = {"base": 0.001, "cap": 0.002}
    upstream = Upstream(name="shop", origins=origins, policy=Policy(**{**defaults, **options}), **known)
    async with Ambassador([upstream], **rest).serving(grace=0.2) as server:
        yield f"{server.url}/shop"


@asynccontextmanager
async def origins(count: int = 1) -> AsyncIterator[list[Origin]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Origin().serve()) for _ in range(count)]


@asynccontextmanager
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that adds no headers, repeats nothing and unpacks nothing."""

    async def once(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
        try:
            response: aiohttp.ClientResponse = await handler(request)
            return response
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            raise Gone(repr(error)) from error

    async with aiohttp.ClientSession(
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        timeout=aiohttp.ClientTimeout(total=20),
        middlewares=(once,),
    ) as session:
        yield session


class Gone(Exception):
    """The connection broke before there was an answer."""


def refusing_url() -> str:
    """Return the URL of a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


async def say(url: str, data: bytes, within: float = 3.0) -> bytes:
    """Send raw bytes to `url`'s port, and return all that comes until the other side closes."""
    _, _, address = url.partition("//")
    host, _, port = address.split("/")[0].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    with suppress(ConnectionError):
        writer.write(data)
        async with asyncio.timeout(within):
            while piece := await reader.read(1 << 16):
                answer += piece
    writer.close()
    return answer


class Lenient:
    """An origin of the bad old days: bare LF will do, and chunks win over a length."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Lenient]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(ConnectionError, asyncio.IncompleteReadError, ValueError):
            while first := await reader.readline():
                if not first.strip():
                    continue
                self.requests.append(first.strip())
                headers = {}
                while line := (await reader.readline()).strip():
                    name, _, value = line.partition(b":")
                    headers[name.strip().lower()] = value.strip().lower()
                if b"chunked" in headers.get(b"transfer-encoding", b""):
                    while size := int((await reader.readline()).split(b";")[0].strip(), 16):
                        await reader.readexactly(size)
                        await reader.readline()
                    await reader.readline()
                else:
                    await reader.readexactly(int(headers.get(b"content-length", b"0")))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()


def certificates(folder: Path, name: str) -> tuple[ssl.SSLContext, str]:
    """Return a server's context whose certificate is of `name`, and the file of who signed it."""
    now = datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test of the ambassador")])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / f"{name}.pem", folder / f"{name}.key"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(public, private)
    return context, str(public)


@asynccontextmanager
async def tls_origin(context: ssl.SSLContext) -> AsyncIterator[Origin]:
    """Serve an origin over TLS on `localhost`."""
    origin = Origin()

    @web.middleware
    async def everything(request: web.Request, handler: Any) -> web.StreamResponse:
        return await origin.handle(request)

    loop = asyncio.get_running_loop()
    report = loop.get_exception_handler()
    # A client that does not like the certificate resets the handshake, and the server's loop would report it.
    loop.set_exception_handler(
        lambda loop, context: None if "transport creation" in context["message"] else report(loop, context)  # type: ignore[misc]  # the strict loop has one
    )
    runner = web.AppRunner(web.Application(middlewares=[everything]), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    origin.url = f"https://localhost:{runner.addresses[0][1]}"
    try:
        yield origin
    finally:
        await runner.cleanup()
        loop.set_exception_handler(report)
