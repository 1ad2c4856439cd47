"""What the sidecar's tests run: naive shippers, and processes that are killed, paused or starved.

python -m tests.container.sidecar_programs kept KIND     a sidecar (or naive shipper) under a supervisor
... gated FILE                                           the sidecar, not before FILE exists
... waits_for_application                                a sidecar whose readiness depends on the application
... orders TARGET COUNT REPORT                           an application; how long each order took, as JSON
... ships_itself                                         an application with a shipping thread of its own
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import logging.handlers
import os
import queue
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import redis

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.container.sidecar import Policy, Report, Sidecar
from patterns.container.sidecar import __main__ as process
from patterns.container.sidecar.buffer import Buffer
from patterns.container.sidecar.health import serve
from patterns.keyspace import Keyspace, opened
from tests.eventually import eventually_now

if TYPE_CHECKING:
    import random

    from patterns.events import Listener


class Naive:
    """A shipper as one writes it in an afternoon: XADD what is new, remember where you are in memory."""

    from_the_end = False
    follows_the_name = True

    def __init__(
        self,
        source: str,
        log: Path,
        client: Any,
        *,
        app: str,
        policy: Policy | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener | None = None,
    ) -> None:
        self.report = Report()
        self._policy = policy or Policy()
        self._log, self._client, self._clock = log, client, clock
        self._stream = Keyspace(app, "sidecar").key(source, "log")
        self._stopping = False

    def stop(self, grace: float | None = None) -> None:
        self._stopping = True

    async def run(self) -> bool:
        self.report.ready = True
        first, rest = True, b""
        with ExitStack() as stack:
            file: BinaryIO | None = None
            while True:
                stopping = self._stopping
                if file is None and self._log.exists():
                    file = stack.enter_context(self._log.open("rb"))
                    if self.from_the_end and first:
                        file.seek(0, os.SEEK_END)
                    first = False
                *lines, rest = (rest + (file.read() if file else b"")).split(b"\n")
                if lines:
                    await self._send(lines)
                elif stopping:
                    return True
                elif file and self.follows_the_name and not _same_file(file, self._log):
                    file = None
                else:
                    await self._clock.sleep(self._policy.poll)

    async def _send(self, lines: list[bytes]) -> None:
        while True:
            try:
                pipeline = self._client.pipeline(transaction=False)
                for line in lines:
                    pipeline.xadd(self._stream, {"line": line})
                await pipeline.execute()
                return
            except (redis.RedisError, OSError):
                await self._clock.sleep(self._policy.retry)


class StartsAtTheEnd(Naive):
    """`tail -F`: what was written while it was away is gone."""

    from_the_end = True


class FollowsTheDescriptor(Naive):
    """`tail -f`: goes on reading the file that was renamed."""

    follows_the_name = False


class ReadsAllIntoMemory(Sidecar):
    """No bound: what Redis does not take stays in the process until the kernel kills it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._buffer = Buffer(sys.maxsize)


class CutsWhatItShipped(Sidecar):
    """Keeps the disk free by cutting the log after each batch; what is written meanwhile is cut, too."""

    async def _ship(self) -> None:
        with self._log.open("r+b") as file:
            await super()._ship()
            file.truncate(0)


KINDS: dict[str, Any] = {
    "ours": Sidecar,
    "memory": Naive,
    "end": StartsAtTheEnd,
    "descriptor": FollowsTheDescriptor,
}


def _same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return True


def kept(kind: str) -> None:
    """Run a shipper in a child process, and start it again whenever it is killed; say each pid.

    A forked child has its modules already, so that twenty kills take seconds.
    """
    ends_with_us, held = os.pipe()  # the child reads its end when this process has ended, however that came
    while True:
        child = os.fork()
        if not child:
            os.close(held)
            os._exit(asyncio.run(_ship(kind, ends_with_us)))
        print("pid", child, flush=True)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))


async def _ship(kind: str, ends_with_us: int) -> int:
    told = asyncio.Event()
    asyncio.get_running_loop().add_reader(ends_with_us, os._exit, 1)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    policy = Policy(poll=0.01, retry=0.02, retry_cap=0.1, batch_lines=50)
    async with opened(max_connections=2) as client:
        log = Path(os.environ["LOG_FILE"])
        shipper = KINDS[kind]("orders", log, client, app=os.environ["APP"], policy=policy)
        running = asyncio.create_task(shipper.run())
        await told.wait()
        shipper.stop()
        await running
    return 0


def gated(gate: str) -> None:
    """Be a sidecar that starts slowly: not before the file `gate` is there."""
    eventually_now(Path(gate).exists, within=30)
    sys.exit(asyncio.run(process.main()))


async def waits_for_application() -> None:
    """Be ready when the application has written its first line: each waits for the other."""
    report, log = Report(), Path(os.environ["LOG_FILE"])
    async with serve(report, int(os.environ["HEALTH_PORT"])):
        while not report.ready:
            await SYSTEM_CLOCK.sleep(0.01)
            report.ready = _has_content(log)


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def orders(target: str, count: int, report: str) -> None:
    """Write `count` lines to a log file, or to `-`: standard output, a pipe to the sidecar."""
    log = logging.getLogger("orders")
    log.setLevel(logging.INFO)
    to_pipe = target == "-"
    log.addHandler(
        logging.StreamHandler(sys.stdout)
        if to_pipe
        else logging.handlers.RotatingFileHandler(target, maxBytes=200_000, backupCount=3)
    )
    took = []
    for number in range(count):
        began = time.perf_counter()
        log.info("order %d %s", number, "x" * 80)
        took.append(time.perf_counter() - began)
        if number % 1000 == 999:
            Path(report + ".part").write_text(json.dumps(took))
            os.replace(report + ".part", report)


def ships_itself() -> None:
    """Log through a thread that sends to Redis every 0.2 s, as a shipping library in the application does."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    pause = threading.Event()  # never set

    def ship() -> None:
        client = redis.Redis.from_url(os.environ["REDIS_URL"])
        stream = Keyspace(os.environ["APP"], "sidecar").key("orders", "log")
        while not pause.wait(0.2):
            pipeline = client.pipeline(transaction=False)
            while not lines.empty():
                pipeline.xadd(stream, {"line": lines.get()})
            pipeline.execute()

    threading.Thread(target=ship, daemon=True).start()
    for number in itertools.count(1):
        lines.put(f"order {number}")
        print(f"order {number}", flush=True)
        pause.wait(0.001)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name == "kept":
        kept(*arguments)
    elif name == "gated":
        gated(*arguments)
    elif name == "waits_for_application":
        asyncio.run(waits_for_application())
    elif name == "orders":
        orders(arguments[0], int(arguments[1]), arguments[2])
    elif name == "ships_itself":
        ships_itself()
    else:
        sys.exit(f"there is no program {name!r}")
