"""Jobs out, jobs in, and how long one waits to be begun: beside four task queues and bare streams."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from benchmarks.paired import SEED, row
from benchmarks.queue_peers import COMMANDS, PEER, THIS, URL, meter, send
from patterns.embedded import Server
from patterns.keyspace import opened
from patterns.message_queue.competing_consumer import Delivery, Policy, Queue, Worker

if TYPE_CHECKING:
    from benchmarks.paired import Row

ROOT = Path(__file__).resolve().parents[2]
ARQ = ROOT / ".venv-bench-arq" / "bin"
OURS = "benchmarks.message_queue.competing_consumer"
OPTIONS: dict[str, dict[str, Any]] = {
    "ours 1": {},
    "ours prefetch": {"prefetch": 20},
    "ours 10": {"concurrency": 10},
    "ours 100": {"batch": 100},
}
ROUNDS = 3
# How many jobs each drains in one round: about as long each.
JOBS = {
    "bare 1": 1500,
    "bare 100": 10_000,
    "ours 1": 1500,
    "ours prefetch": 1500,
    "ours 10": 2000,
    "ours 100": 10_000,
    "taskiq": 1000,
    "dramatiq": 1000,
    "rq": 150,
    "arq": 250,
}
NAMES = {
    "bare 1": ("bare stream, COUNT 1", "XREADGROUP and XACK: no lease, renewal, retry or dead letter"),
    "bare 100": ("bare stream, COUNT 100", "the same, a hundred together"),
    "ours 1": ("Worker", "one at a time: a round trip for the message, one for its acknowledgement"),
    "ours prefetch": ("Worker, prefetch=20", "handled and acknowledged one at a time"),
    "ours 10": ("Worker, concurrency=10", None),
    "ours 100": ("Worker, batch=100", None),
    "taskiq": ("taskiq, RedisStreamBroker", "1 process, as by default otherwise; no results"),
    "dramatiq": ("dramatiq", "1 process, 8 threads; acknowledges in batches"),
    "rq": ("RQ, SimpleWorker", "keeps results and states of jobs"),
    "arq": ("arq", "by default: polls every 0.5 s, 10 jobs at a time, keeps results"),
}
WAITERS = {"bare 1": 150, "ours 1": 150, "taskiq": 150, "dramatiq": 150, "rq": 75, "arq": 75}
GAP = {"rq": 0.04, "arq": 0.02}


class Peer:
    """One system on a Redis of its own."""

    def __init__(self, name: str, jobs: int, url: str) -> None:
        self.name, self.jobs = name, jobs
        self.redis: Any = redis.Redis.from_url(url)
        self.env = {**os.environ, "PEER": name, "PEER_URL": url, "PEER_N": str(jobs), "PYTHONPATH": str(ROOT)}
        folder = ARQ if name == "arq" else Path(sys.executable).parent
        self.python = str(folder / "python")
        command = [part or url for part in COMMANDS.get(name, [])]
        self.module = OURS if name in OPTIONS else THIS
        self.command = [self.python, "-m", self.module, "work"]
        if command:
            self.command = [str(folder / command[0]), *command[1:]]
        self.redis.flushall()  # this benchmark has started the server
        if name.startswith("bare"):
            self.redis.xgroup_create("bare", "g", "0", mkstream=True)

    def send(self, *arguments: object) -> float:
        """Send, and return microseconds a send."""
        command = [self.python, "-m", self.module, *map(str, arguments)]
        done = subprocess.run(command, env=self.env, cwd=ROOT, check=True, capture_output=True, timeout=120)
        return float(done.stdout.split()[-1])

    def work(self) -> subprocess.Popen[bytes]:
        """Start the worker."""
        return subprocess.Popen(
            self.command,
            env=self.env,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def result(self, worker: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Wait until all jobs were begun, and end the worker."""
        deadline = time.monotonic() + 60
        while not (found := self.redis.get("result")):
            if time.monotonic() > deadline or worker.poll() is not None:
                raise RuntimeError(f"{self.name} did not do its jobs")
            time.sleep(0.02)
        end(worker)
        answer: dict[str, Any] = json.loads(found)
        return answer


def end(worker: subprocess.Popen[bytes]) -> None:
    """Kill a worker and its children."""
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def drained(name: str, url: str) -> tuple[float, float]:
    """Return microseconds a send, and a job."""
    peer = Peer(name, JOBS[name], url)
    sent = peer.send("together", JOBS[name]) if name.endswith("100") else peer.send("send", JOBS[name], 0)
    return sent, peer.result(peer.work())["each"]


def waited(name: str, url: str) -> tuple[float, float]:
    """Return the median, and the 99th percentile, of milliseconds from a send to its job."""
    peer = Peer(name, WAITERS[name], url)
    worker = peer.work()
    peer.send("send", WAITERS[name], GAP.get(name, 0.01))
    each = sorted(peer.result(worker)["waited"])
    return statistics.median(each), each[int(len(each) * 0.99)]


def measure() -> list[Row]:
    """Return microseconds a job and a send, and milliseconds until a job begins."""
    rng = random.Random(SEED)
    out: dict[str, list[float]] = {name: [] for name in JOBS}
    into: dict[str, list[float]] = {name: [] for name in JOBS}
    waits: dict[str, list[tuple[float, float]]] = {name: [] for name in WAITERS}
    with Server() as server:
        for _ in range(ROUNDS):
            for name in rng.sample(list(JOBS), len(JOBS)):
                sent, each = drained(name, server.url)
                into[name].append(sent)
                out[name].append(each)
        for _ in range(2):
            for name in rng.sample(list(WAITERS), len(WAITERS)):
                waits[name].append(waited(name, server.url))
    rows = [_row("a job", name, out, "bare 1", "µs/job") for name in JOBS]
    skip = {"ours prefetch", "ours 10"}
    rows += [_row("a send", name, into, "bare 1", "µs/send") for name in JOBS if name not in skip]
    for at, (told, unit) in enumerate(
        [("until it begins, median", "ms"), ("until it begins, p99", "ms p99")]
    ):
        half = {name: [pair[at] for pair in pairs] for name, pairs in waits.items()}
        rows += [_row(told, name, half, "bare 1", unit) for name in WAITERS]
    return rows


def _row(told: str, name: str, values: dict[str, list[float]], base: str, unit: str) -> Row:
    case, note = NAMES[name]
    if unit == "µs/send":
        case, note = ("send" if case == "Worker" else case.removesuffix(", SimpleWorker")), None
        if name.endswith("100"):
            case = "send_many" if name.startswith("ours") else "bare stream, pipelined"
        elif name == "bare 1":
            case = "bare XADD"
    elif unit.startswith("ms"):
        rate = round(1 / GAP.get(name, 0.01))
        note = f"{rate} a second"
    found = row(
        f"{told}: {case}",
        statistics.median(values[name]),
        unit,
        n=(WAITERS if unit.startswith("ms") else JOBS)[name] * len(values[name]),
        baseline_value=1.0,
        ours=name.startswith("ours"),
        baseline=name == base,
        note=note,
    )
    pairs = zip(values[name], values[base], strict=True)
    return found | {"ratio": float(f"{statistics.median(one / other for one, other in pairs):.3g}")}


def bounds(rows: list[Row]) -> list[str]:
    """Batched within 5 times the bare stream, one at a time within 1.25; no slower than the task queues."""
    by = {each["case"]: each for each in rows}
    broken = []
    batched = by["a job: Worker, batch=100"]["value"] / by["a job: bare stream, COUNT 100"]["value"]
    if batched > 5:
        broken.append(f"a batched job takes {batched:.2f} times a bare one")
    if by["a job: Worker, prefetch=20"]["ratio"] > 1.25:
        broken.append(f"a job takes {by['a job: Worker, prefetch=20']['ratio']:.2f} times a bare one")
    peers = [by[f"a job: {NAMES[name][0]}"]["value"] for name in ("taskiq", "dramatiq", "rq", "arq")]
    if by["a job: Worker, concurrency=10"]["value"] > 1.3 * min(peers):
        broken.append("a task queue is faster")
    return broken


async def main(what: str, *numbers: str) -> None:
    """Be the sender, or the worker, of this handbook's module."""
    async with opened(URL) as client:
        queue = Queue("jobs", client, Policy(visibility=60), app="bench")
        if what == "send":
            await send(int(numbers[0]), float(numbers[1]), queue.send)
            return
        if what == "together":
            began = time.monotonic()
            await queue.send_many([time.monotonic()] * int(numbers[0]))
            print((time.monotonic() - began) / int(numbers[0]) * 1e6)
            return

        async def one(delivery: Delivery) -> None:
            meter(delivery.payload)

        async def many(deliveries: list[Delivery]) -> None:
            for each in deliveries:
                meter(each.payload)

        options = OPTIONS[PEER]
        async with Worker(queue.lanes, many if "batch" in options else one, timeout=60, **options):
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
