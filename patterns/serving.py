"""An aiohttp application that listens, and ends in good order.

Opening a port is three lines; ending is where servers go wrong. A server that is told to end takes no new
connection, closes those that are idle, and gives what is in flight its `grace`. Then it cancels the handlers
and waits for them, so that nothing of it is left.

`serving` is for a test, a notebook or a second port; `serve` is the main program of a container.

>>> async def hello(request: web.Request) -> web.Response:
...     return web.Response(text="hello")
>>> async def main() -> str:
...     app = web.Application()
...     app.router.add_get("/", hello)
...     async with serving(app) as server, ClientSession() as session:
...         async with session.get(server.url) as answer:
...             return await answer.text()
>>> from aiohttp import ClientSession
>>> asyncio.run(main())
'hello'

Sources: aiohttp, "Graceful shutdown" and "Web handler cancellation"; Kubernetes, "Termination of Pods".
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
from collections.abc import Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from patterns.bounds import number
from patterns.clock import SYSTEM_CLOCK

try:
    from aiohttp import web
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"patterns.serving needs {error.name}: pip install executable-patterns[container]"
    ) from error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aiohttp.typedefs import Handler

__all__ = ["ErrorListener", "Server", "StillRunning", "serve", "serving", "told_to_end"]

ErrorListener = Callable[[str, BaseException], None]

_log = logging.getLogger("patterns.serving")
_AFTER_CANCEL = 1.0  # second that a cancelled handler has for its clean-up
_MOST_ERRORS = 20  # that one ExceptionGroup holds


class StillRunning(RuntimeError):
    """A handler was cancelled when the grace was over, and has not ended."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server listens.

    Attributes:
        url: "http://host:port" without a slash at the end; "http://localhost" for a socket of a path.
        host: the address that it is bound to; "" for a socket of a path.
        port: the port that it is bound to; 0 for a socket of a path.
    """

    url: str
    host: str
    port: int


@asynccontextmanager
async def serving(
    app: web.Application,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    path: str | None = None,
    grace: float = 5.0,
    cancel_on_disconnect: bool = False,
    on_error: ErrorListener | None = None,
    **options: Any,
) -> AsyncIterator[Server]:
    """Serve `app` while the block runs.

    Args:
        app: an application that has not been served before: aiohttp binds it to one event loop.
        host: the address to listen on, one; a name is looked up while the loop waits.
        port: 0 takes a free one.
        path: of a Unix socket, instead of host and port; one that a dead process left is taken over.
        grace: seconds that what is in flight has to finish when the block ends. A handler that waits for
            the body of its request is told at half time that no more will come.
        cancel_on_disconnect: whether a client that hangs up cancels its handler.
        on_error: told "GET /path" and what its handler raised; the client gets a 500. The default collects.
        options: further ones of aiohttp's AppRunner, as `max_field_size` or `keepalive_timeout`.

    Raises:
        ExceptionGroup: as the block ends, what handlers raised, if nobody listened to it.
        OSError: the address is taken, or is not of this machine.
        StillRunning: as the block ends, a handler ignored its cancellation.
        ValueError: grace is no number of seconds.
    """
    number("grace", grace, at_least=0)
    raised: list[Exception] = []
    in_flight: set[asyncio.Task[Any]] = set()

    def collect(where: str, error: BaseException) -> None:
        if isinstance(error, Exception) and len(raised) < _MOST_ERRORS:
            error.add_note(f"raised by the handler of {where}")
            raised.append(error)

    app.middlewares.insert(0, _watch(in_flight, on_error or collect))
    # aiohttp waits twice: for the handlers, and once more when it has broken off what they read.
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=cancel_on_disconnect,
        shutdown_timeout=max(grace / 2, 0.001),  # it takes 0 for "for ever"
        **options,
    )
    listening = _listen(host, port, path)
    try:
        await runner.setup()
        await web.SockSite(runner, listening).start()
        yield _found(listening, path)
    finally:
        stuck = await _end(runner, listening, in_flight)
        _forget(path)
    if stuck:
        raise StillRunning(f"{stuck} connections have handlers that ignore their cancellation")
    if raised:
        raise ExceptionGroup("handlers raised", raised)


async def serve(
    app: web.Application,
    *,
    port: int,
    host: str = "127.0.0.1",
    path: str | None = None,
    grace: float = 10.0,
    cancel_on_disconnect: bool = False,
    on_error: ErrorListener | None = None,
    on_ready: Callable[[Server], None] | None = None,
    **options: Any,
) -> None:
    """Serve `app` until SIGTERM or SIGINT; a second signal changes nothing.

    Args:
        app: as of `serving`.
        port: the port to listen on; 0 takes a free one, which `on_ready` is told.
        host: the address to listen on; loopback, if nobody outside the Pod is to call.
        path: of a Unix socket, instead of host and port.
        grace: seconds for what is in flight; less than the Pod's terminationGracePeriodSeconds.
        cancel_on_disconnect: as of `serving`.
        on_error: told what a handler raised; the default leaves it to aiohttp's log.
        on_ready: told where it listens, once it does.
        options: as of `serving`.

    Raises:
        OSError: the address is taken, or is not of this machine.
        StillRunning: a handler ignored its cancellation.
        ValueError: grace is no number of seconds.
    """
    with told_to_end() as told:
        async with serving(
            app,
            host=host,
            port=port,
            path=path,
            grace=grace,
            cancel_on_disconnect=cancel_on_disconnect,
            on_error=on_error or (lambda where, error: _log.error("%s raised %r", where, error)),
            **options,
        ) as server:
            if on_ready is not None:
                on_ready(server)
            await told.wait()


@contextmanager
def told_to_end() -> Iterator[asyncio.Event]:
    """Give an event that SIGTERM and SIGINT set, instead of ending the process, while the block runs.

    Blocks may overlap: the signal reaches each of them, and the last to end gives it back.
    Only a loop in the main thread of its process can hear signals.
    """
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    waiting = _waiting.setdefault(loop, set())
    if not waiting:
        for number_ in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number_, _tell_all, waiting)
    waiting.add(told)
    try:
        yield told
    finally:
        waiting.discard(told)
        if not waiting:
            for number_ in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number_)


def _tell_all(waiting: set[asyncio.Event]) -> None:
    for each in waiting:
        each.set()


_waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, set[asyncio.Event]] = WeakKeyDictionary()


def _watch(in_flight: set[asyncio.Task[Any]], tell: ErrorListener) -> Any:
    """Return a middleware that knows whose handlers run, and hears what they raise."""

    @web.middleware
    async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
        task = asyncio.current_task()
        if task is not None and task not in in_flight:  # one task serves a connection, request by request
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
        try:
            return _answer(await handler(request))
        except web.HTTPException:  # how a handler answers, not an error
            raise
        except Exception as error:
            if not (isinstance(error, ConnectionError) and _has_left(request)):
                _tell(tell, f"{request.method} {request.path}", error)
            raise

    return watch


def _answer(returned: object) -> web.StreamResponse:
    if isinstance(returned, web.StreamResponse):
        return returned
    raise TypeError(f"the handler returned {type(returned).__name__}, no response")


def _has_left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _tell(listener: ErrorListener, where: str, error: Exception) -> None:
    try:
        listener(where, error)
    except Exception:
        _log.exception("listener failed on %r of %s", error, where)


def _listen(host: str, port: int, path: str | None) -> socket.socket:
    if path is None:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):  # of one who was killed
            os.unlink(path)
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(path)
    except BaseException:
        listening.close()
        raise
    return listening


def _found(listening: socket.socket, path: str | None) -> Server:
    if path is not None:
        return Server("http://localhost", "", 0)
    host, port = listening.getsockname()[:2]
    return Server(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", host, port)


def _forget(path: str | None) -> None:
    if path is not None:
        with suppress(FileNotFoundError):  # Python takes it away itself from 3.13 on
            os.unlink(path)


async def _end(runner: web.AppRunner, listening: socket.socket, in_flight: set[asyncio.Task[Any]]) -> int:
    """End in good order, or at once if cancelled meanwhile; return how many tasks would not end."""
    ending = asyncio.ensure_future(_clean_up(runner, listening))
    hurried: asyncio.CancelledError | None = None
    while not ending.done():
        try:
            await asyncio.wait([ending])
        except asyncio.CancelledError as error:
            hurried = error
            for task in in_flight:
                task.cancel()
    # aiohttp cancels what has outlasted the grace, and does not look back.
    with suppress(TimeoutError):
        async with SYSTEM_CLOCK.timeout(_AFTER_CANCEL):
            while in_flight:
                await asyncio.wait(in_flight)
    if in_flight:
        _log.error("%d connections have handlers that ignore their cancellation", len(in_flight))
    if hurried is not None:
        raise hurried
    ending.result()
    return len(in_flight)


async def _clean_up(runner: web.AppRunner, listening: socket.socket) -> None:
    # asyncio drops a connection that it has accepted and not yet greeted when the listener is closed, so that
    # its client is reset: accept no more, greet those, and close then.
    asyncio.get_running_loop().remove_reader(listening.fileno())
    for _ in range(3):
        await SYSTEM_CLOCK.sleep(0)
    try:
        await runner.cleanup()
    finally:
        listening.close()
