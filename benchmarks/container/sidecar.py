"""What a log line costs the application, and what it costs to ship it, beside other ways to ship."""

from __future__ import annotations

import asyncio
import gc
import logging
import logging.handlers
import os
import queue
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from benchmarks.paired import SEED, row
from patterns.container.sidecar import Policy, Sidecar, life
from patterns.embedded import Server
from patterns.keyspace import Keyspace, opened
from patterns.probe import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.paired import Row

ROUNDS, CALLS = 15, 1000
LINES, BATCH = 20_000, 500
TEXT = "order %d: 3 pieces of article 4711, charged to account 0815, shipped from Oslo"


class XaddHandler(logging.Handler):
    """The application sends each line itself, and waits for the answer."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._client = redis.Redis.from_url(url)

    def emit(self, record: logging.LogRecord) -> None:
        self._client.xadd("bench:{xadd}:log", {"line": self.format(record)}, maxlen=100_000, approximate=True)


class ShippingThread:
    """The application hands each line to a thread of its own, which sends what has come together."""

    def __init__(self, url: str) -> None:
        self.lines: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.handler = logging.handlers.QueueHandler(self.lines)
        self._client = redis.Redis.from_url(url)
        self._thread = threading.Thread(target=self._ship, daemon=True)
        self._thread.start()

    def _ship(self) -> None:
        while (record := self.lines.get()) is not None:
            pipeline = self._client.pipeline(transaction=False)
            pipeline.xadd(
                "bench:{thread}:log", {"line": record.getMessage()}, maxlen=100_000, approximate=True
            )
            for _ in range(min(BATCH, self.lines.qsize())):
                if (more := self.lines.get()) is None:
                    self.lines.put(None)
                    break
                pipeline.xadd(
                    "bench:{thread}:log", {"line": more.getMessage()}, maxlen=100_000, approximate=True
                )
            pipeline.execute()

    def close(self) -> None:
        self.lines.put(None)
        self._thread.join()


@contextmanager
def sidecar_beside(folder: Path, url: str) -> Iterator[None]:
    """Run the sidecar's process for `folder`/app.log."""
    lock = life.hold(folder / "alive")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    env = {"LOG_FILE": f"{folder}/app.log", "ALIVE_FILE": f"{folder}/alive", "REDIS_URL": url}
    env |= {"APP": "bench", "SOURCE": "beside", "HEALTH_PORT": str(port), "LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "patterns.container.sidecar"]
    process = subprocess.Popen(command, env={**os.environ, **env})
    try:
        while ask("/readyz", port) is None:
            if process.poll() is not None:
                raise RuntimeError("the sidecar did not start")
            time.sleep(0.05)
        yield
    finally:
        os.close(lock)
        process.terminate()
        process.wait()


def per_log_call(server: Server) -> list[Row]:
    """Return the wall time of one log call, in ns."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(sidecar_beside(folder, server.url))
        thread = ShippingThread(server.url)
        stack.callback(thread.close)
        handlers: dict[str, logging.Handler] = {
            "file, no shipping": rotating(folder / "alone.log"),
            "file, sidecar beside it": rotating(folder / "app.log"),
            "XADD in the call": XaddHandler(server.url),
            "queue and a thread of the application": thread.handler,
        }
        samples: dict[str, list[float]] = {name: [] for name in handlers}
        rng = random.Random(SEED)
        for number in range(ROUNDS + 1):
            for name in rng.sample(list(handlers), len(handlers)):
                log = logging.Logger("orders")
                log.addHandler(handlers[name])
                took = timed(log)
                if number:
                    samples[name].append(took / CALLS * 1e9)
        for handler in handlers.values():
            handler.close()
    best = {name: statistics.quantiles(values, n=4)[0] for name, values in samples.items()}
    notes = {
        "file, no shipping": "the line stays on the machine",
        "XADD in the call": "the caller waits for Redis, and for its time-out when it hangs",
        "queue and a thread of the application": "no bound; lost when the application is killed",
    }
    return [
        row(
            f"a log call: {name}",
            value,
            "ns",
            n=ROUNDS * CALLS,
            baseline_value=best["file, no shipping"],
            ours="sidecar" in name,
            baseline=name == "file, no shipping",
            note=notes.get(name),
        )
        for name, value in best.items()
    ]


def rotating(path: Path) -> logging.Handler:
    return logging.handlers.RotatingFileHandler(path, maxBytes=1_000_000, backupCount=5)


def timed(log: logging.Logger) -> float:
    gc.collect()
    gc.disable()
    began = time.perf_counter()
    for number in range(CALLS):
        log.info(TEXT, number)
    took = time.perf_counter() - began
    gc.enable()
    return took


async def per_shipped_line(server: Server) -> list[Row]:
    """Return the wall time of one line from the file into the stream, in us."""
    samples: dict[str, list[float]] = {}
    lines = [(TEXT % number).encode() for number in range(LINES)]
    rng = random.Random(SEED)
    with tempfile.NamedTemporaryFile() as file:
        file.writelines(line + b"\n" for line in lines)
        file.flush()
        log = Path(file.name)
        async with opened(server.url) as client:

            async def pipelined(key: str) -> None:
                for start in range(0, LINES, BATCH):
                    pipeline = client.pipeline(transaction=False)
                    for line in lines[start : start + BATCH]:
                        pipeline.xadd(key, {"line": line}, maxlen=100_000, approximate=True)
                    await pipeline.execute()

            async def one_by_one(key: str) -> None:
                for line in lines[: LINES // 10]:
                    await client.xadd(key, {"line": line}, maxlen=100_000, approximate=True)

            async def sidecar(key: str) -> None:
                it = Sidecar(key, log, client, app="bench", policy=Policy(batch_lines=BATCH))
                it.stop()  # at once: it ends when all that is in the file is in the stream
                assert await it.run()

            cases = {
                "this module: file to stream": (sidecar, LINES),
                "XADD from memory, pipelined": (pipelined, LINES),
                "XADD from memory, one by one": (one_by_one, LINES // 10),
            }
            for number in range(8):
                for name in rng.sample(list(cases), len(cases)):
                    ship, count = cases[name]
                    source = f"{number}-{len(name)}"
                    key = Keyspace("bench", "sidecar").key(source, "log")
                    began = time.perf_counter()
                    await ship(source if ship is sidecar else key)
                    took = time.perf_counter() - began
                    assert await client.xlen(key) == count
                    await client.delete(key)
                    if number:
                        samples.setdefault(name, []).append(took / count * 1e6)
    best = {name: statistics.quantiles(samples[name], n=4)[0] for name in cases}
    notes = {
        "this module: file to stream": "each line once, position kept",
        "XADD from memory, pipelined": "no file, no position; a lost reply doubles 500 lines",
        "XADD from memory, one by one": "a round trip for each line",
    }
    return [
        row(
            f"a shipped line: {name}",
            best[name],
            "us",
            n=7 * cases[name][1],
            baseline_value=best["XADD from memory, pipelined"],
            ours="module" in name,
            baseline="pipelined" in name,
            note=notes[name],
        )
        for name in cases
    ]


def measure() -> list[Row]:
    """Return both tables."""
    with Server() as server:
        return per_log_call(server) + asyncio.run(per_shipped_line(server))


def bounds(rows: list[Row]) -> list[str]:
    """A log call costs at most half of an XADD; shipping a line at most 1.3 times a bare pipeline."""
    value = {row["case"]: row["value"] for row in rows}
    beside, xadd = value["a log call: file, sidecar beside it"], value["a log call: XADD in the call"]
    broken = [] if beside <= xadd / 2 else [f"a log call {beside} ns > half of an XADD {xadd} ns"]
    ours, bare = (
        value[f"a shipped line: {name}"]
        for name in ("this module: file to stream", "XADD from memory, pipelined")
    )
    return (
        broken if ours <= 1.3 * bare else [*broken, f"a shipped line {ours} us > 1.3 x pipelined {bare} us"]
    )
