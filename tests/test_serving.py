"""Proof of patterns/serving.py."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from patterns.serving import Server, StillRunning, serve, serving, told_to_end
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.faults.workers import Worker


class Desk:
    """An application whose handlers wait until they are let go."""

    def __init__(self) -> None:
        self.begun = self.finished = self.cancelled = 0
        self.gate = asyncio.Event()
        self.deaf = asyncio.Event()
        self.deaf.set()

    async def slow(self, request: web.Request) -> web.Response:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            while not self.deaf.is_set():
                try:
                    await self.deaf.wait()
                except asyncio.CancelledError:
                    self.cancelled += 1
            raise
        self.finished += 1
        return web.Response(text="done")

    async def quick(self, request: web.Request) -> web.Response:
        return web.Response(text="quick")

    async def echo(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def wrong(self, request: web.Request) -> web.Response:
        if request.query_string == "none":
            return None  # type: ignore[return-value]  # the bug that is tested
        if request.query_string == "404":
            raise web.HTTPNotFound
        if request.query_string == "late":
            raise TimeoutError("the database")
        raise KeyError("the handler's bug")

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/slow", self.slow)
        app.router.add_get("/quick", self.quick)
        app.router.add_get("/wrong", self.wrong)
        app.router.add_post("/echo", self.echo)
        return app


@asynccontextmanager
async def asking(server: Server) -> AsyncIterator[Callable[[str], Any]]:
    async with aiohttp.ClientSession(server.url) as session:

        async def ask(path: str) -> tuple[int, str]:
            async with session.get(path) as answer:
                return answer.status, await answer.text()

        yield ask


async def test_url_is_where_it_listens() -> None:
    """Port 0 becomes a free port of loopback, and two servers do not meet."""
    async with serving(Desk().app()) as one, serving(Desk().app()) as other, asking(one) as ask:
        assert one.url == f"http://127.0.0.1:{one.port}"
        assert (one.host, one.port != other.port) == ("127.0.0.1", True)
        assert await ask("/quick") == (200, "quick")


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
async def test_url_of_an_ipv6_address_has_brackets() -> None:
    """An address with colons is written so that a client can read it."""
    async with serving(Desk().app(), host="::1") as server, asking(server) as ask:
        assert server.url == f"http://[::1]:{server.port}"
        assert await ask("/quick") == (200, "quick")


async def test_unix_socket_is_gone_afterwards(tmp_path: Path) -> None:
    """With a path it listens on a Unix socket, which it takes away again."""
    path = tmp_path / "socket"
    async with serving(Desk().app(), path=str(path)) as server:
        connector = aiohttp.UnixConnector(str(path))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"{server.url}/quick") as answer,
        ):
            assert await answer.text() == "quick"
    assert not path.exists()


async def test_what_is_in_flight_finishes() -> None:
    """A server that ends refuses new connections and answers what it has begun."""
    desk = Desk()
    async with asyncio.TaskGroup() as group, serving(desk.app(), grace=30) as server:
        group.create_task(answered(server, "/slow", "done"))
        await eventually(lambda: desk.begun, within=5)
        group.create_task(let_go_when_closed(server, desk))
    assert (desk.finished, desk.cancelled) == (1, 0)


async def answered(server: Server, path: str, text: str) -> None:
    async with asking(server) as ask:
        assert await ask(path) == (200, text)


async def let_go_when_closed(server: Server, desk: Desk) -> None:
    def refused() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((server.host, server.port)) != 0

    await eventually(refused, within=5)
    desk.gate.set()


async def test_idle_connections_are_closed_at_once() -> None:
    """A client that keeps its connection does not keep the server: the grace of a minute is not used."""
    async with asyncio.timeout(10):
        async with serving(Desk().app(), grace=60) as server:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"quick")
        assert await reader.read() == b""
        writer.close()


async def test_connections_that_come_as_it_ends_are_no_accident() -> None:
    """Twenty clients that connect in the last moment are let go of; the loop has nothing to report."""
    clients = []
    async with serving(Desk().app()) as server:
        for _ in range(20):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex((server.host, server.port))
            clients.append(client)
    for client in clients:
        client.close()


@pytest.mark.parametrize("grace", [0, 0.1])
async def test_what_outlasts_the_grace_is_cancelled(grace: float) -> None:
    """A handler that goes on is cancelled once the grace is over, and has ended when the block has."""
    desk = Desk()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        async with serving(desk.app(), grace=grace) as server:
            asked = group.create_task(hung_up_on(server, "/slow"))
            await eventually(lambda: desk.begun, within=5)
        assert (desk.finished, desk.cancelled) == (0, 1)
        await asked


async def hung_up_on(server: Server, path: str) -> None:
    async with asking(server) as ask:
        with pytest.raises(aiohttp.ClientError):
            await ask(path)


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    """A handler that waits for the rest of its request ends within the grace."""
    async with asyncio.timeout(10):
        async with serving(Desk().app(), grace=0.2, on_error=lambda *_: None) as server:
            half = socket.create_connection((server.host, server.port))
            half.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
            await asyncio.sleep(0)
        half.close()


async def test_a_handler_that_ignores_its_cancellation_is_told_of() -> None:
    """The end comes all the same, a second after the grace, and says that something still runs."""
    desk = Desk()
    desk.deaf.clear()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        async with left_running(), serving(desk.app(), grace=0) as server:
            group.create_task(hung_up_on(server, "/slow"))
            await eventually(lambda: desk.begun, within=5)
        desk.deaf.set()


@asynccontextmanager
async def left_running() -> AsyncIterator[None]:
    with pytest.raises(StillRunning, match="1 connections"):
        yield


async def test_cancelled_while_it_ends_it_ends_at_once() -> None:
    """A caller who has no patience for the grace cancels the handlers, and nothing is left."""
    desk = Desk()

    async def run() -> None:
        async with serving(desk.app(), grace=60) as server:
            listening.set_result(server)
            await over.wait()

    listening: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        running = asyncio.ensure_future(run())
        server = await listening
        group.create_task(hung_up_on(server, "/slow"))
        await eventually(lambda: desk.begun, within=5)
        over.set()
        for _ in range(5):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert desk.cancelled == 1


@pytest.mark.parametrize(
    ("query", "status", "error"), [("none", 500, TypeError), ("late", 504, TimeoutError), ("", 500, KeyError)]
)
async def test_error_of_a_handler_is_not_silent(query: str, status: int, error: type[Exception]) -> None:
    """What a handler raises comes out of the block that served it, with the request that it failed."""
    with pytest.raises(ExceptionGroup) as caught:
        async with serving(Desk().app()) as server, asking(server) as ask:
            assert (await ask(f"/wrong?{query}"))[0] == status
    (only,) = caught.value.exceptions
    assert isinstance(only, error)
    assert only.__notes__ == ["raised by the handler of GET /wrong"]


async def test_answer_that_is_raised_is_no_error() -> None:
    """A handler may raise its 404, and a client may ask for what is not there."""
    async with serving(Desk().app()) as server, asking(server) as ask:
        assert (await ask("/wrong?404"))[0] == 404
        assert (await ask("/nowhere"))[0] == 404


async def test_listener_hears_every_error() -> None:
    """With a listener the block does not raise, and one that raises itself breaks nothing."""
    heard: list[tuple[str, str]] = []

    def listen(where: str, error: BaseException) -> None:
        heard.append((where, repr(error)))
        raise RuntimeError("the listener's bug")

    async with serving(Desk().app(), on_error=listen) as server, asking(server) as ask:
        for _ in range(2):
            assert (await ask("/wrong"))[0] == 500
    assert heard == [("GET /wrong", 'KeyError("the handler\'s bug")')] * 2


async def test_error_of_the_block_comes_before_those_of_handlers() -> None:
    """What the block itself raises is not replaced."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  the whole block is what raises
        async with serving(Desk().app()) as server, asking(server) as ask:
            await ask("/wrong")
            raise ZeroDivisionError


@pytest.mark.parametrize("cancels", [True, False])
async def test_client_that_hangs_up_cancels_its_handler_if_asked_to(cancels: bool) -> None:
    """The handler of a client who has left goes on, unless the server was told otherwise."""
    desk = Desk()
    async with serving(desk.app(), cancel_on_disconnect=cancels) as server:
        asked = asyncio.ensure_future(answered(server, "/slow", "never read"))
        await eventually(lambda: desk.begun, within=5)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        if cancels:
            await eventually(lambda: desk.cancelled, within=5)
        else:
            desk.gate.set()
            await eventually(lambda: desk.finished, within=5)
    assert (desk.cancelled, desk.finished) == ((1, 0) if cancels else (0, 1))


async def test_client_that_leaves_a_stream_is_no_error() -> None:
    """Writing to a client who has left fails, which is the client's doing and not the handler's."""
    begun = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        begun.set()
        while True:
            await answer.write(b"x" * 65_536)

    app = web.Application()
    app.router.add_get("/", stream)
    async with serving(app) as server:
        client = socket.create_connection((server.host, server.port))
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await begun.wait()
        client.close()


@pytest.mark.usefixtures("no_leaks")
def test_nothing_is_left_open() -> None:
    """Descriptors and processes are as many as before, however the block ends."""

    async def main(fail: bool) -> None:
        async with serving(Desk().app()) as server, asking(server) as ask:
            await ask("/quick")
            if fail:
                raise ZeroDivisionError

    asyncio.run(main(fail=False))
    with pytest.raises(ZeroDivisionError):
        asyncio.run(main(fail=True))


@pytest.mark.usefixtures("no_leaks")
def test_a_start_that_fails_leaves_nothing_open() -> None:
    """A port that is taken stops the application from starting; one that does not start frees its port."""
    steps: list[str] = []

    async def opened(_: web.Application) -> AsyncIterator[None]:
        steps.append("opened")
        yield
        steps.append("closed")

    async def failing(_: web.Application) -> AsyncIterator[None]:
        raise ZeroDivisionError
        yield

    async def main() -> None:
        app, broken = web.Application(), web.Application()
        app.cleanup_ctx.append(opened)
        broken.cleanup_ctx.extend([opened, failing])
        async with serving(Desk().app()) as server:
            with pytest.raises(OSError, match=r"(?i)address already in use"):
                await serving(app, port=server.port).__aenter__()
        assert steps == []
        with pytest.raises(ZeroDivisionError):
            await serving(broken, port=server.port).__aenter__()
        async with serving(Desk().app(), port=server.port):
            pass

    asyncio.run(main())
    assert steps == ["opened", "closed"]


@pytest.mark.parametrize("grace", [-1, float("nan"), float("inf"), "5", True])
async def test_grace_is_a_number_of_seconds(grace: Any) -> None:
    """Anything else is refused before a port is opened."""
    with pytest.raises(ValueError, match="grace must be a finite number >= 0"):
        async with serving(Desk().app(), grace=grace):
            pass


# Signals


async def test_signal_reaches_everybody_who_waits() -> None:
    """Two that wait in one process are both told, and the process gets its own handlers back."""
    before = signal.getsignal(signal.SIGTERM)
    with told_to_end() as outer:
        with told_to_end() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            await inner.wait()
        await outer.wait()
        os.kill(os.getpid(), signal.SIGINT)  # twice is safe
    assert signal.getsignal(signal.SIGTERM) is before


async def test_serve_ends_when_told() -> None:
    """SIGINT ends it like SIGTERM, after what is in flight."""
    desk = Desk()
    ready: list[Server] = []
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(serve(desk.app(), port=0, on_ready=ready.append))
        await eventually(lambda: ready, within=5)
        group.create_task(answered(ready[0], "/slow", "done"))
        await eventually(lambda: desk.begun, within=5)
        os.kill(os.getpid(), signal.SIGINT)
        await let_go_when_closed(ready[0], desk)
    assert desk.finished == 1


PROGRAM = """
import asyncio
from aiohttp import web
from patterns.serving import serve

async def slow(request):
    print("begun", flush=True)
    await gate.wait()
    return web.Response(text="done")

async def open_gate(app):
    print("ending", flush=True)
    asyncio.get_running_loop().call_later(0.2, gate.set)

gate = asyncio.Event()
app = web.Application()
app.router.add_get("/slow", slow)
app.on_shutdown.append(open_gate)
asyncio.run(serve(app, port=0, on_ready=lambda server: print("ready", server.url, flush=True)))
"""


async def test_process_told_twice_ends_once_and_well(spawn: Callable[..., Worker], tmp_path: Path) -> None:
    """SIGTERM twice while a request is in flight: it is answered, and the exit code is 0."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = spawn(program)
    url = (await process.said("ready", within=20)).split()[1]
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:

        async def ask() -> str:
            async with session.get(f"{url}/slow") as answer:
                return await answer.text()

        asked = group.create_task(ask())
        await process.said("begun", within=10)
        os.kill(process.pid, signal.SIGTERM)
        await process.said("ending", within=10)
        os.kill(process.pid, signal.SIGTERM)
        assert await asked == "done"
    assert await process.ended(within=10) == 0


async def test_socket_of_a_dead_process_is_taken_over_and_a_file_is_not(tmp_path: Path) -> None:
    """A path that a killed server left does not stop the next one; somebody's file does."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(Desk().app(), path=str(path)):
        assert path.is_socket()
    path.write_text("a file")
    with pytest.raises(OSError, match="in use"):
        async with serving(Desk().app(), path=str(path)):
            pass
    assert path.read_text() == "a file"
