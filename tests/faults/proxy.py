"""A TCP proxy that breaks on purpose what passes through it.

    async with proxy(server.port, book) as p:
        client = connect(p.url)
        with p.lose_reply(b"INCR"):   # or: toxic = p.lose_reply(b"INCR") ... toxic.remove()
            ...

It speaks toxiproxy's words (down, latency, limit, slice, reset) and adds what only one who reads the requests
can do: lose the reply to one of them after it was carried out, or drop it before.
Each fault is counted when it hits traffic, and told to the ledger; a proxy that broke nothing fails the test.

"up" is what the client sends, "down" is what the server answers. A request is what a connection has sent
since it was last answered. If the server is gone, a client is accepted and then reset, not refused.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from typing import Self

    from tests.faults.ledger import Ledger

__all__ = ["Proxy", "Toxic", "proxy"]

Way = Literal["up", "down"]
Match = bytes | Callable[[bytes], bool]


@dataclass(eq=False)
class Toxic:
    """One fault in force, until `remove()` or the end of its `with` or `async with`; `hits` counts it."""

    owner: Proxy
    kind: str
    way: Way
    amount: float = 0
    match: Match = b""
    hits: int = 0

    def hit(self) -> None:
        self.hits += 1
        self.owner.count()

    def takes(self, request: bytes) -> bool:
        found = self.match in request if isinstance(self.match, bytes) else self.match(request)
        taken = found and self.amount > 0
        self.amount -= taken
        return taken

    def remove(self) -> None:
        self.owner.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    async def __aenter__(self) -> Self:
        await asyncio.sleep(0)  # what was reset is closed in the next turn of the loop
        return self

    async def __aexit__(self, *_: object) -> None:
        self.remove()


@dataclass(eq=False)
class _Link:
    """A client's connection and its twin to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    request: bytes = b""
    losing: Toxic | None = None
    torn: set[Toxic] = field(default_factory=set)
    passed: Counter[Toxic] = field(default_factory=Counter)

    def reset(self) -> None:
        _reset(self.client)
        _reset(self.server)


class Proxy:
    """Listens on a free loopback port in front of `target`; see the module.

    Args:
        target: the server's loopback port, or the path of its unix socket.
        book: a Ledger that is told of each injected fault.
        may_idle: do not fail if nothing was injected.
    """

    def __init__(self, target: int | str, book: Ledger | None = None, *, may_idle: bool = False) -> None:
        self.target, self.book, self.may_idle = target, book, may_idle
        self.injected = self.port = 0
        self._toxics: list[Toxic] = []
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def down(self) -> Toxic:
        """Reset the open connections and refuse new ones, until `up()`: one fault."""
        self._close()
        toxic = self._add("down")
        toxic.hit()
        return toxic

    def up(self) -> None:
        """Take every fault away."""
        for toxic in self._toxics.copy():
            toxic.remove()

    def latency(self, seconds: float, way: Way = "down") -> Toxic:
        """Delay each chunk: one fault a chunk."""
        return self._add("latency", way, seconds)

    def hole(self, way: Way) -> Toxic:
        """Swallow all that goes one way, ends of connections too: one fault a chunk.

        When the hole is filled, the connections that lost bytes in it are reset: TCP knows no gaps.
        """
        return self._add("hole", way)

    def limit(self, nbytes: int, way: Way = "down") -> Toxic:
        """Close each connection in good order once `nbytes` have passed: one fault a connection."""
        return self._add("limit", way, nbytes)

    def slice(self, nbytes: int, way: Way = "down") -> Toxic:
        """Send at most `nbytes` at a time: one fault a chunk that was cut."""
        return self._add("slice", way, nbytes)

    async def reset_all(self) -> int:
        """Reset every open connection now (RST) and return how many: one fault each."""
        for link in (links := self._links.copy()):
            link.reset()
            self.count()
        await asyncio.sleep(0)
        return len(links)

    def lose_reply(self, match: Match, times: int = 1) -> Toxic:
        """Let a matching request be carried out, swallow its reply, reset the client: one fault a request."""
        return self._add("lose", "up", times, match)

    def drop_request(self, match: Match, times: int = 1) -> Toxic:
        """Reset a matching request before the server has seen the end of it: one fault a request."""
        return self._add("drop", "up", times, match)

    def count(self) -> None:
        self.injected += 1
        if self.book is not None:
            self.book.injected()

    def remove(self, toxic: Toxic) -> None:
        if toxic in self._toxics:
            self._toxics.remove(toxic)
            for link in self._links:
                if toxic in link.torn:
                    link.reset()
            if self._listener is None and not any(other.kind == "down" for other in self._toxics):
                self._listen()

    async def __aenter__(self) -> Self:
        self._listen()
        return self

    async def __aexit__(self, failed: type[BaseException] | None, *_: object) -> None:
        self._close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)
        assert failed or self.injected or self.may_idle, (
            "the proxy injected nothing, so the test proves nothing"
        )

    def _add(self, kind: str, way: Way = "down", amount: float = 0, match: Match = b"") -> Toxic:
        self._toxics.append(toxic := Toxic(self, kind, way, amount, match))
        return toxic

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _close(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for link in self._links:
            link.reset()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):
            while True:
                task = asyncio.create_task(self._serve(listener.accept()[0]), name="proxy link")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        asked, client = await asyncio.open_connection(sock=connection)
        with closing(client):
            try:
                if isinstance(self.target, int):
                    answered, server = await asyncio.open_connection("127.0.0.1", self.target)
                else:
                    answered, server = await asyncio.open_unix_connection(self.target)
            except OSError:
                return _reset(client)
            with closing(server):
                self._links.add(link := _Link(client, server))
                up, down = self._pump(link, "up", asked, server), self._pump(link, "down", answered, client)
                try:
                    await asyncio.gather(up, down)
                finally:
                    self._links.discard(link)

    async def _pump(
        self, link: _Link, way: Way, source: asyncio.StreamReader, to: asyncio.StreamWriter
    ) -> None:
        end: Callable[[], None] = to.write_eof
        try:
            while chunk := await source.read(1 << 16):
                if not await self._pass(link, way, chunk, to):
                    break
        except OSError:  # one side was reset, so the other is
            end = link.reset
        if hole := next((each for each in self._toxics if each.kind == "hole" and each.way == way), None):
            link.torn.add(hole)
            return
        with suppress(OSError, TimeoutError):
            end()
            if link.losing and way == "down":
                # The server must carry out all it was sent: it reads an end of file last, a reset at once.
                link.server.write_eof()
                async with asyncio.timeout(1):
                    while await source.read(1 << 16):
                        pass

    async def _pass(self, link: _Link, way: Way, chunk: bytes, to: asyncio.StreamWriter) -> bool:
        """Send `chunk` on as the faults in force allow; False if nothing may follow it."""
        step, last = len(chunk), False
        link.request = link.request + chunk if way == "up" else b""
        if way == "down" and link.losing:
            link.losing.hit()
            _reset(link.client)
            return False
        for toxic in [each for each in self._toxics if each.way == way]:
            if toxic.kind == "drop" and toxic.takes(link.request):
                toxic.hit()
                link.reset()
                return False
            if toxic.kind == "lose" and not link.losing and toxic.takes(link.request):
                link.losing = toxic
            elif toxic.kind == "hole":
                toxic.hit()
                link.torn.add(toxic)
                return True
            elif toxic.kind == "latency":
                toxic.hit()
                await asyncio.sleep(toxic.amount)
            elif toxic.kind == "slice" and toxic.amount < len(chunk):
                toxic.hit()
                step = int(toxic.amount)
            elif toxic.kind == "limit":
                room = int(toxic.amount) - link.passed[toxic]
                link.passed[toxic] += len(chunk)
                if len(chunk) >= room:
                    toxic.hit()
                    chunk, last = chunk[:room], True
        for start in range(0, len(chunk), step):
            to.write(chunk[start : start + step])
            await to.drain()
            if step < len(chunk):
                await asyncio.sleep(0)  # twice: a reader on this loop has its turn before the next piece,
                await asyncio.sleep(0)  # or the kernel would join them again
        if last:
            link.client.close()
            link.server.close()
        return not last


proxy = Proxy


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
