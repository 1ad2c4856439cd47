"""What the fault tests of write-behind need: processes to kill, servers to lose, and a log of the source."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from patterns.cache.write_behind import NotReplicated
from patterns.clock import SYSTEM_CLOCK
from patterns.embedded import Server
from patterns.keyspace import OutcomeUnknown
from tests.cache.write_behind_site import n, site
from tests.eventually import eventually
from tests.faults import proxy
from tests.places import Place
from tests.postgres import Home

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from pathlib import Path

    from patterns.embedded import Cluster
    from tests.cache.write_behind_site import Site
    from tests.faults import Ledger, Proxy
    from tests.faults.workers import Worker


async def logged(at: Site) -> Callable[[], Awaitable[list[tuple[str, int]]]]:
    """Let SQLite note every row that is written; return what asks for keys and versions, in order."""
    db = at.source.table._database
    await db.execute("CREATE TABLE log (id TEXT, version BIGINT)")
    for what in ("INSERT", "UPDATE"):
        await db.execute(
            f"CREATE TRIGGER on_{what} AFTER {what} ON item "
            "BEGIN INSERT INTO log VALUES (new.id, new.version); END"
        )

    async def written() -> list[tuple[str, int]]:
        return list(await db.fetch("SELECT id, version FROM log ORDER BY rowid"))

    return written


class Nursery:
    """Starts processes by order, and kills them."""

    def __init__(self, at: Site, worker: Worker) -> None:
        self.at, self.worker = at, worker
        self.numbers = itertools.count()
        self.pids: dict[int, int] = {}

    async def start(self, kind: str) -> int:
        """Start a process, and return its number."""
        number, client = next(self.numbers), self.at.clients[0]
        pushed: Any = client.rpush("orders", f"{kind} {self.at.app} {number}")
        await pushed
        self.pids[number] = int((await self._line(f"{number} is (\\d+)"))[1])
        return number

    async def says(self, number: int, word: str, times: int) -> None:
        """Wait until a process has said a word so often."""
        await eventually(lambda: len(self._lines(f"{number} {word}")) >= times, within=20)

    async def one_that_says(self, word: str, numbers: Iterable[int]) -> int:
        """Wait until one of them says a word from now on, and return which."""
        before = {number: len(self._lines(f"{number} {word}")) for number in numbers}

        def one() -> list[int]:
            return [
                number for number, times in before.items() if len(self._lines(f"{number} {word}")) > times
            ]

        return (await eventually(one, within=20))[0]

    def kill(self, number: int) -> None:
        """SIGKILL."""
        os.kill(self.pids.pop(number), signal.SIGKILL)

    def acked(self) -> list[tuple[str, int]]:
        """Return every key and version that was acknowledged."""
        return [(line[1], int(line[2])) for line in self._lines(r"\d+ acked (\S+) (\d+)")]

    def _lines(self, form: str) -> list[re.Match[str]]:
        return list(re.finditer(rf"^{form}\b.*\n", self.worker.output, re.MULTILINE))

    async def _line(self, form: str) -> re.Match[str]:
        return (await eventually(lambda: self._lines(form), within=20))[0]


async def put_all(writer: Any, numbers: Iterable[int], book: Ledger) -> int:
    """Write keys, and note what their writer is told; return how many Redis has answered for."""
    answered = 0
    for number in numbers:
        try:
            await writer.put(f"{writer.name} {number}", n(number))
            book.acked(f"{writer.name} {number}")
            answered += 1
        except NotReplicated:
            book.unsure(f"{writer.name} {number}")
            answered += 1
        except OutcomeUnknown:
            book.unsure(f"{writer.name} {number}")
        except RedisError:
            book.failed(f"{writer.name} {number}")
    return answered


class Load:
    """Writers that write new keys until they are stopped."""

    def __init__(self, at: Site, writer: Any, book: Ledger) -> None:
        self.answered = 0
        self._numbers = itertools.count()
        self._stop = False
        self._writer, self._book = writer, book
        self._tasks = [at.begin(self._write()) for _ in range(4)]

    async def _write(self) -> None:
        while not self._stop:
            answered = await put_all(self._writer, [next(self._numbers)], self._book)
            self.answered += answered  # not in one line with the await
            await SYSTEM_CLOCK.sleep(0 if answered else 0.1)  # who is refused comes back later

    async def answers(self, more: int, *, within: float) -> None:
        """Wait until so many more writes were answered."""
        enough = self.answered + more
        await eventually(lambda: self.answered >= enough, within=within)

    async def stop(self) -> None:
        """Let the writers end."""
        self._stop = True
        await asyncio.gather(*self._tasks)


async def killed_while_writing(
    own: Server, app: str, folder: Path, book: Ledger, *, kills: int, flusher: bool = True
) -> None:
    """Kill and restart Redis under load, with a flusher at work, or with one that has flushed once."""
    async with site(Place("single", own, None, app), Home(f"sqlite://{folder}/db", "sqlite")) as at:
        load = Load(at, at.writer(capacity=1_000_000), book)
        await load.answers(100, within=10)
        await at.flusher().flush()
        before = await at.source.rows()
        running = at.flusher(1)
        if flusher:
            await running.__aenter__()
        for _ in range(kills):
            await load.answers(100, within=10)
            own.kill()
            book.injected()
            own.restart()
            await load.answers(20, within=15)
            book.recovered()
        await load.stop()
        if flusher:
            await running.close()
            assert running.left == ()
        else:
            await at.flusher().flush()
        rows = await at.source.rows()
        assert before.items() <= rows.items(), "what had been flushed is not as it was"
        for key in rows:
            book.effect(key)


@asynccontextmanager
async def a_replica_behind_a_proxy() -> AsyncIterator[tuple[Server, Server, Proxy]]:
    """A primary, a replica that is in sync, and the line between them."""
    primary = Server()
    await asyncio.to_thread(primary.__enter__)
    try:
        async with proxy(primary.port) as line:
            replica = Server(replica_of=("127.0.0.1", line.port))
            await asyncio.to_thread(replica.__enter__)
            try:
                yield primary, replica, line
            finally:
                await asyncio.to_thread(replica.close)
    finally:
        await asyncio.to_thread(primary.close)


async def primary_killed(own: Cluster, app: str, home: Home, book: Ledger, replicas: int) -> None:
    """Kill the primary of a shard while four writers write to it; flush what is left."""
    async with site(Place("cluster", own.nodes[0], own, app), home) as at:
        intact = [node for node in own.nodes[:3] if node.running]
        name = next(
            name
            for name in (f"items-{number}" for number in itertools.count())
            if own.primary_of(at.key("changes", name=name)) is intact[0]
        )
        options: dict[str, Any] = {"shards": 1, "name": name}
        writer = at.writer(wait_replicas=replicas, wait_seconds=0.5, capacity=1_000_000, **options)
        load = Load(at, writer, book)
        await load.answers(300, within=20)
        intact[0].kill()
        book.injected()
        await load.answers(8, within=20)
        book.recovered()
        await load.stop()
        flusher = at.flusher(**options)

        async def flushed() -> bool:
            with suppress(RedisError):
                await flusher.flush()
                return bool((await writer.stats()).waiting == 0)
            return False

        await eventually(flushed, within=20)
        for key in await at.source.rows():
            book.effect(key)
