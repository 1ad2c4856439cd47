"""What the Adapter's tests stand on: applications that answer as they are told, and real ones to kill."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from patterns.container.adapter import Family
from tests.eventually import eventually_now
from tests.faults.workers import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prometheus_client.samples import Sample

    from patterns.clock import ManualClock

__all__ = [
    "OPENMETRICS",
    "Program",
    "Told",
    "forever",
    "gauge",
    "passing",
    "samples",
    "series",
    "stub",
    "told",
    "up",
]

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
Answer = Any  # what `collect` returns, raises, or does


def gauge(name: str, value: float = 1.0, **labels: str) -> Family:
    return Family(name, "gauge", "Said by a test").add(value, labels)


def told(*answers: Answer, name: str = "told", targets: Sequence[str] = ("one",)) -> Told:
    """Return a source whose targets give these answers, one for each scrape; the last one from then on."""
    return Told(name, targets, answers)


class Told:
    """A source that does as it is told: families are returned, errors raised, functions awaited."""

    def __init__(self, name: str, targets: Sequence[str], answers: Sequence[Answer]) -> None:
        self.name = name
        self.asked = 0
        self._targets = [ToldTarget(target, list(answers), self) for target in targets]

    async def targets(self) -> list[ToldTarget]:
        return self._targets


class ToldTarget:
    def __init__(self, name: str, answers: list[Answer], source: Told) -> None:
        self.name, self._answers, self._source = name, answers, source

    async def collect(self) -> Any:
        self._source.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return await answer() if callable(answer) else answer


async def forever() -> Any:
    """Never answer; end when cancelled."""
    await asyncio.get_running_loop().create_future()


async def passing(clock: ManualClock, call: Any, *, by: float = 0.25, most: float = 100.0) -> Any:
    """Run `call` while virtual time passes, and return what it returns."""
    task = asyncio.ensure_future(call)
    until = clock.monotonic() + most
    while not task.done():
        assert clock.monotonic() < until, f"no end within {most:g} s"
        await clock.advance(by)
    return task.result()


def samples(page: Any, accept: str = "") -> list[Sample]:
    """Return the samples of a page, as Prometheus reads them."""
    body, content_type = page.encode(accept)
    parse: Any = openmetrics if content_type.startswith("application/openmetrics-text") else plain
    return [sample for family in parse(body.decode()) for sample in family.samples]


def series(page: Any, prefix: str = "") -> dict[str, float]:
    """Return the samples that are of an application and begin with `prefix`, by name and labels."""
    return {
        f"{each.name}{dict(sorted(each.labels.items()))}": each.value
        for each in samples(page)
        if each.name.startswith(prefix) and not each.name.startswith("adapter_")
    }


def up(page: Any) -> dict[str, float]:
    """Return `adapter_up` by target."""
    return {each.labels.get("target", ""): each.value for each in samples(page) if each.name == "adapter_up"}


@asynccontextmanager
async def stub(*replies: bytes | None) -> AsyncIterator[int]:
    """A server that gives one of these, in turn, to each connection, and hangs up; None says nothing."""
    given = iter(replies)
    open_now: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_now.add(writer)
        try:
            reply = next(given, None)
            await reader.read(1 << 16)
            if reply is None:
                await reader.read()
            else:
                writer.write(reply)
                await writer.drain()
        except OSError:
            pass
        finally:
            open_now.discard(writer)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in list(open_now):
            writer.transport.abort()
        for _ in range(5):
            await asyncio.sleep(0)


class Program:
    """The warehouse, in a process of its own, on one port through all its lives."""

    def __init__(self, **env: str) -> None:
        self.port = 0
        self._env = env
        self._worker: Worker | None = None

    def start(self) -> None:
        self._worker = Worker(
            "patterns.container.adapter.application", env={"PORT": str(self.port), **self._env}
        )
        self._worker.__enter__()
        said = eventually_now(lambda: re.search(r"open on port (\d+)", self.worker.output), within=20)
        assert said
        self.port = int(said[1])

    @property
    def worker(self) -> Worker:
        assert self._worker
        return self._worker

    def kill(self) -> None:
        self.worker.kill()
        self.worker.__exit__()
        self._worker = None

    async def say(self, *lines: str) -> list[str]:
        """Say these lines to it, as its people do; return what it answers."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.writelines(f"{line}\n".encode() for line in lines)
        answers = [(await reader.readuntil(b"\n.\n")).decode()[:-3] for _ in lines]
        writer.close()
        return answers

    def close(self) -> None:
        if self._worker:
            self.kill()


@contextmanager
def running(**env: str) -> Iterator[Program]:
    program = Program(**env)
    try:
        program.start()
        yield program
    finally:
        program.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


Make = Callable[..., Any]  # Adapter, or a naive variant with the same constructor
