r"""Give an application an ability it was not written for, in a process of its own beside it.

The application writes its log to a file and knows nothing of Redis. The sidecar follows the file and ships
each line to a Redis Stream. They share a folder, the loopback network and their life cycle, as two
containers of one Pod do; each can be built, changed, limited and restarted alone.

Guaranteed, each by a test that rejects a naive variant:

1. Start: the application begins its work only after the sidecar is ready, and the sidecar's readiness does
   not wait for the application; a sidecar that does not become ready holds it up for a bounded time only.
2. Crash: when the sidecar is killed the application goes on; it is restarted with a growing pause, up to a
   cap; of the lines that the files still hold none is lost, and none is in the stream twice.
3. Stop: told to end, be it while it starts, the sidecar outlives the application, ships its last line, whole
   or not, and ends within `grace`; a second SIGTERM changes nothing.
4. End: when the application ends by itself, however it ends, the sidecar of a job ends too.
5. Bound: at most `buffer_lines` lines, and 64 KiB read ahead, are in memory, and the application never
   waits. The log's files are the rest of the buffer; a line is dropped only when the rotation is about to
   overtake the sidecar, is counted, and shows as a gap in `seq`.
6. Apart: the sidecar opens the log for reading only, and changes nothing of it.
7. Health is served on the loopback address only.

Not guaranteed: lines that were rotated away unseen, because no sidecar was running or two rotations came
within one `poll` (`gaps` counts the occasions, nobody can count the lines); anything about a log that is
cut in place (`copytruncate`); and what Redis loses in a failover: after that, lines may be missing, or be
shipped again under the `seq` they had.

Redis keys, both in one slot, both kept for `keep` seconds after the last line:

- `<app>:{sidecar:<source>}:log`       stream: `seq`, `line`; about `stream_length` entries
- `<app>:{sidecar:<source>}:position`  hash: `seq`, `file`, `offset` after the last line in the stream

Assumes one log and one writer for each `source`, and that no two files begin with the same line (a time in
it is enough). Two sidecars of one source, an old one and its successor, double no line as long as neither has
a gap: the script takes each `seq` once.

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     log = Path(folder, "app.log")
...     _ = log.write_bytes(b"first\nsecond\nthi")
...     tail = Tail(log)
...     [line.text for line in tail.read(10)]
...     tail.close()
[b'first', b'second']

Sources: Burns and Oppenheimer, "Design patterns for container-based distributed systems" (HotCloud 2016);
Kubernetes, "Sidecar Containers" (KEP-753); Fluent Bit, tail input (position by inode and offset).
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.container.sidecar.buffer import Buffer
from patterns.container.sidecar.policy import Policy
from patterns.container.sidecar.report import BatchShipped, GapFound, LinesDropped, Report, ShippingFailed
from patterns.container.sidecar.stream import Stream
from patterns.container.sidecar.tail import Line, Position, Tail
from patterns.events import Listener, emit, ignore

if TYPE_CHECKING:
    from pathlib import Path

    from patterns.keyspace import Client

__all__ = [
    "BatchShipped",
    "GapFound",
    "Line",
    "LinesDropped",
    "Policy",
    "Position",
    "Report",
    "ShippingFailed",
    "Sidecar",
    "Tail",
]


class Sidecar:
    """Ships one log until it is told to stop.

    Args:
        source: names the application's instance; a Pod's name, for instance.
        log: the file that the application writes.
        client: from `patterns.keyspace`.
        app: first part of the keys.
        policy: sizes and times.
        clock: where durations are read and waited for.
        rng: spreads the pauses after failures.
        on_event: hears BatchShipped, ShippingFailed, LinesDropped and GapFound.

    Attributes:
        report: for the health endpoint; always up to date.
    """

    def __init__(
        self,
        source: str,
        log: Path,
        client: Client,
        *,
        app: str,
        policy: Policy | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        self.source = source
        self.policy = policy or Policy()
        self.report = Report()
        self._log = log
        self._stream = Stream(client, app, source, length=self.policy.stream_length, keep=self.policy.keep)
        self._clock = clock
        self._rng = rng or random.Random()
        self._on_event = on_event
        self._buffer = Buffer(self.policy.buffer_lines)
        self._grace = self.policy.grace
        self._stopping = asyncio.Event()
        self._news = asyncio.Event()  # something to ship, or nothing more to come
        self._room = asyncio.Event()  # the buffer has some
        self._all_read = False

    def stop(self, grace: float | None = None) -> None:
        """Ask `run` to ship what was written and return, within `grace` seconds. Safe to call again."""
        if grace is not None and not self._stopping.is_set():
            self._grace = grace
        self._stopping.set()

    async def run(self) -> bool:
        """Follow the log until `stop`; return whether all that was written then is shipped, or was dropped.

        What is not there is not lost: the next sidecar of this source finds it in the files.
        """
        self.report.ready, self._all_read = True, False
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(self._work())
                await self._stopping.wait()
                with suppress(TimeoutError):
                    async with self._clock.timeout(self._grace):
                        await asyncio.wait({work})
                work.cancel()
        finally:
            self.report.ready = False
        return not work.cancelled()

    async def _work(self) -> None:
        tail = Tail(self._log, await self._position(), longest=self.policy.longest_line)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(tail))
                group.create_task(self._ship())
        finally:
            tail.close()

    async def _position(self) -> Position | None:
        """Ask Redis where to go on, until it answers."""
        pause = self.policy.retry
        while True:
            try:
                async with self._clock.timeout(self.policy.timeout):
                    return await self._stream.position()
            except (RedisError, OSError, TimeoutError) as error:
                pause = await self._pause_after(error, pause)

    # --8<-- [start:loops]
    async def _follow(self, tail: Tail) -> None:
        """Read what was written; when the buffer is full, leave it in the files while they last."""
        while True:
            stopping = self._stopping.is_set()
            most = self.policy.batch_lines
            if not tail.endangered:
                most = min(most, self._buffer.room)
            lines = tail.read(most)
            self._keep(lines, tail.gaps)
            if lines:
                await self._clock.sleep(0)
            elif stopping and most:
                self._keep(tail.last(), tail.gaps)
                self._all_read = True
                self._news.set()
                return
            else:
                self._room.clear()
                await self._wait(self._stopping if most else self._room, self.policy.poll)

    async def _ship(self) -> None:
        """Send what was read, oldest first; what fails is sent again, and taken once."""
        pause = self.policy.retry
        while batch := await self._next_batch():
            began = self._clock.monotonic()
            try:
                async with self._clock.timeout(self.policy.timeout):
                    await self._stream.append(batch)
            except (RedisError, OSError, TimeoutError) as error:
                pause = await self._pause_after(error, pause)
                continue
            self._buffer.done()
            self._room.set()
            pause = self.policy.retry
            self.report.shipped += len(batch)
            self.report.waiting = len(self._buffer)
            self.report.failing = None
            took = self._clock.monotonic() - began
            emit(self._on_event, BatchShipped(self.source, len(batch), took))

    # --8<-- [end:loops]

    async def _next_batch(self) -> list[Line]:
        """Wait for lines; none when there will be none."""
        while not (batch := self._buffer.take(self.policy.batch_lines)) and not self._all_read:
            self._news.clear()
            await self._news.wait()
        return batch

    def _keep(self, lines: list[Line], gaps: int) -> None:
        dropped = self._buffer.put(lines)
        self.report.waiting = len(self._buffer)
        if dropped:
            self.report.dropped += dropped
            emit(self._on_event, LinesDropped(self.source, dropped))
        if gaps > self.report.gaps:
            self.report.gaps = gaps
            emit(self._on_event, GapFound(self.source))
        if lines:
            self._news.set()

    async def _pause_after(self, error: Exception, pause: float) -> float:
        """Wait between half of `pause` and all of it, or until `stop` is called; return the next pause.

        Told to stop, begin with short pauses again: there is only the grace left.
        """
        self.report.failing = f"{type(error).__name__}: {error}".removesuffix(": ")[:200]
        seconds = pause * (0.5 + self._rng.random() / 2)
        emit(self._on_event, ShippingFailed(self.source, self.report.failing, seconds))
        if self._stopping.is_set():
            await self._clock.sleep(seconds)
        else:
            await self._wait(self._stopping, seconds)
            if self._stopping.is_set():
                return self.policy.retry
        return min(2 * pause, self.policy.retry_cap)

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        with suppress(TimeoutError):
            async with self._clock.timeout(seconds):
                await event.wait()
