"""Five caches, one workload: what the source is spared, who waits, how old reads are, and what is lost.

The same trace is played for each of them by two processes of the application, which share Redis and the
source. The rounds go through all of them in shuffled order, so that a machine whose speed drifts is fair; a
wait is that of the best round, anything else is the mean of the rounds, and the oldest read that of all.
Writes are lost in runs of their own, in which every write has its key.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.caches import BEHIND, BUFFER, CACHES, FIVE, NAIVE, NONE, TTL, Counts, Source, opened_cache
from benchmarks.paired import SEED, row
from benchmarks.traffic import Done, percentile, play, staleness, trace
from patterns import database, keyspace
from patterns.cache.write_behind import Flusher, WriteBehind
from patterns.embedded import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from benchmarks.caches import Contender
    from benchmarks.paired import Row

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = 2
WARM = 2.2  # seconds before anything counts: more than the longest life of a value
USUAL: dict[str, Any] = {"keys": 2000, "skew": 1.1, "writes": 0.05, "per_second": 400, "seconds": 6.2}
# Where loads and writes of one key meet: a usual second has too few of that to be counted.
CROWDED: dict[str, Any] = {"keys": 10, "skew": 1.1, "writes": 0.3, "per_second": 400, "seconds": 6.2}
ROUNDS = 3
KILLS = 3


# One process of the application


async def work(spec: dict[str, Any]) -> None:
    """Play one share of the trace, or write until killed; the parent reads the standard output."""
    async with _at(spec) as (source, cache):
        print("ready", flush=True)
        if spec["until_killed"]:
            await asyncio.gather(*[_write_on(cache, f"{spec['app']} {lane}") for lane in range(16)])
        start = float(sys.stdin.readline())
        load = spec["load"]
        load["per_second"] /= PROCESSES
        ops = trace(seed=(SEED, spec["number"]), **load)
        done = await play(ops, cache, start=start, first=spec["number"] * 1_000_000 + 1)
    counts = source.counts
    print(json.dumps({"done": done, "counts": [counts.reads, counts.writes, counts.missed]}), flush=True)


async def _write_on(cache: Contender, lane: str) -> None:
    """Write keys of their own, and tell each that was acknowledged."""
    for number in itertools.count():
        await cache.write(f"{lane} {number}", number)
        print(f"{lane} {number}", flush=True)
        await asyncio.sleep(0.04)


@asynccontextmanager
async def _at(spec: dict[str, Any]) -> AsyncIterator[tuple[Source, Contender]]:
    async with keyspace.opened(spec["redis"]) as redis, database.opened(spec["database"]) as db:
        source = Source(db, random.Random(spec["number"]), Counts())
        async with opened_cache(spec["cache"], redis, source, app=spec["app"], told=spec["told"]) as cache:
            yield source, cache


class Process:
    """A process of the application; a context manager that ends it."""

    def __init__(self, **spec: Any) -> None:
        spec = {"number": 0, "told": True, "until_killed": False} | spec
        command = [sys.executable, "-m", "benchmarks.comparing_caches", json.dumps(spec)]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        self._process = subprocess.Popen(command, **pipes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ready(self) -> None:
        """Wait until it can begin."""
        if (line := self._out.readline()) != "ready\n":
            raise RuntimeError(f"a process of the application did not begin: {line!r}")

    def begin(self, start: float) -> None:
        """Say when second 0 is."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{start}\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Wait for what it measured."""
        out, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"a process of the application ended with {self._process.returncode}")
        found: dict[str, Any] = json.loads(out)
        return found

    def acknowledged(self, enough: int) -> Iterator[str]:
        """Kill it when it has told so many writes; yield all that it told, those of the last moment too."""
        for count, line in enumerate(self._out, 1):
            if line.endswith("\n"):  # the last may be cut off: not told
                yield line.strip()
            if count == enough:
                self._process.send_signal(signal.SIGKILL)

    @property
    def _out(self) -> Any:
        assert self._process.stdout is not None
        return self._process.stdout


# The workload


def one_round(
    name: str, redis: str, file: str, load: dict[str, Any] = USUAL, *, told: bool = True
) -> dict[str, float]:
    """Play the trace once; return each figure by its question."""
    asyncio.run(_prepare(file))
    spec = {"cache": name, "redis": redis, "database": file, "app": _new_app(), "load": load, "told": told}
    processes = [Process(**spec, number=number) for number in range(PROCESSES)]
    try:
        for each in processes:
            each.ready()
        start = time.monotonic() + 0.1
        for each in processes:
            each.begin(start)
        results = [each.result() for each in processes]
    finally:
        for each in processes:
            each.__exit__()
    counted = start + WARM
    done = [Done(*each) for result in results for each in result["done"]]
    reads = [each for each in done if each.order is None and each.began >= counted]
    writes = [each for each in done if each.order is not None and each.began >= counted]
    asked, stored, missed = (
        sum(at >= counted for result in results for at in result["counts"][which]) for which in range(3)
    )
    ages = [age for read, age in staleness(done) if read.began >= counted]
    waits = [1000 * each.waited for each in reads]
    acknowledged = [1000 * each.waited for each in writes]
    return {
        "reads": len(reads),
        "writes": len(writes),
        "hits": 100 * (1 - missed / len(reads)),
        "source reads": 100 * asked / len(reads),
        "source writes": 100 * stored / len(writes),
        "read, half": percentile(waits, 50),
        "read, slowest": percentile(waits, 99),
        "write, half": percentile(acknowledged, 50),
        "write, slowest": percentile(acknowledged, 99),
        "stale": 100 * sum(age > 0 for age in ages) / len(ages),
        "oldest": max(ages),
    }


async def _prepare(file: str) -> None:
    async with database.opened(file) as db:
        await Source(db, random.Random(), Counts()).fill(USUAL["keys"])


def _new_app() -> str:
    return f"caches-{time.monotonic_ns()}"


def rounds(
    redis: str, file: str, load: dict[str, Any], *, count: int, told: bool = True
) -> dict[str, list[dict[str, float]]]:
    """Play the trace `count` times for each of them, in shuffled order."""
    rng = random.Random(SEED)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CACHES}
    for _ in range(count):
        for name in rng.sample(list(CACHES), len(CACHES)):
            found[name].append(one_round(name, redis, file, load, told=told))
    return found


# What is lost


def application_killed(name: str, redis: str, file: str) -> tuple[int, int]:
    """Kill the process that writes, several times; return how many writes it acknowledged, and lost."""
    rng, acknowledged, lost = random.Random(SEED), 0, 0
    for _ in range(KILLS):
        asyncio.run(_prepare(file))
        app = _new_app()
        with Process(cache=name, redis=redis, database=file, app=app, until_killed=True) as process:
            process.ready()
            told = set(process.acknowledged(rng.randint(400, 800)))
        acknowledged += len(told)
        lost += len(told - asyncio.run(_stored(name, redis, file, app)))
    return acknowledged, lost


def redis_killed(name: str, options: tuple[str, ...], file: str) -> tuple[int, int]:
    """Kill Redis while a process writes, and start it again; return what was acknowledged, and lost."""
    rng, acknowledged, lost = random.Random(SEED), 0, 0
    with Server(*options) as server:
        for _ in range(KILLS):
            asyncio.run(_prepare(file))
            app = _new_app()
            with Process(cache=name, redis=server.url, database=file, app=app, until_killed=True) as process:
                process.ready()
                told = set(itertools.islice(process.acknowledged(0), rng.randint(400, 800)))
                server.kill()
            server.restart()
            acknowledged += len(told)
            lost += len(told - asyncio.run(_stored(name, server.url, file, app)))
    return acknowledged, lost


async def _stored(name: str, redis: str, file: str, app: str) -> set[str]:
    """Return the keys that the source has, once what waits in Redis has been stored by another process."""
    async with keyspace.opened(redis) as client, database.opened(file) as db:
        if name == "Write-Behind":
            source = Source(db, random.Random(), Counts())
            behind = WriteBehind("items", client, BEHIND, app=app)
            async with Flusher("items", client, BEHIND, source.store_batch, app=app), asyncio.timeout(30):
                waiting = 1
                while waiting:
                    await asyncio.sleep(0.02)
                    waiting = (await behind.stats()).waiting
        return {key for (key,) in await db.fetch("SELECT id FROM item WHERE version > 0")}


# Rows


def measure() -> list[Row]:
    """Return a row for each question and each cache; the question stands before the colon."""
    with tempfile.TemporaryDirectory() as folder, Server() as server:
        file = f"sqlite://{folder}/db"
        usual = rounds(server.url, file, USUAL, count=ROUNDS)
        crowded = rounds(server.url, file, CROWDED, count=ROUNDS)
        past = rounds(server.url, file, USUAL, count=1, told=False)
        rows = [
            *_rows("answered without the source", "%", "hits", usual, NAIVE),
            *_rows("answered without the source, crowded", "%", "hits", crowded, NAIVE),
            *_rows("source reads", "per 100", "source reads", usual, NONE),
            *_rows("source reads, crowded", "per 100", "source reads", crowded, NONE),
            *_rows("source writes", "per 100", "source writes", usual, NONE),
            *_rows("source writes, crowded", "per 100", "source writes", crowded, NONE),
            *_rows("reads, half of them", "ms", "read, half", usual, NONE),
            *_rows("reads, the slowest", "ms", "read, slowest", usual, NONE),
            *_rows("reads, half of them, crowded", "ms", "read, half", crowded, NONE),
            *_rows("reads, the slowest, crowded", "ms", "read, slowest", crowded, NONE),
            *_rows("writes, half of them", "ms", "write, half", usual, NONE),
            *_rows("writes, the slowest", "ms", "write, slowest", usual, NONE),
            *_rows("stale reads, crowded", "%", "stale", crowded, NAIVE),
            *_rows("oldest read, crowded", "s", "oldest", crowded, NAIVE),
            *_rows("stale reads, nobody told", "%", "stale", past, NAIVE),
            *_rows("oldest read, nobody told", "s", "oldest", past, NAIVE),
        ]
        killed = {name: application_killed(name, server.url, file) for name in (BUFFER, *FIVE)}
        rows += _losses("lost with the application", killed, BUFFER)
        crashed = {name: redis_killed(name, (), file) for name in FIVE}
        on_disk = ("--appendonly", "yes", "--appendfsync", "everysec")
        crashed["Write-Behind, append-only file"] = redis_killed("Write-Behind", on_disk, file)
        rows += _losses("lost with Redis", crashed, "Write-Behind")
    return rows


def _rows(
    question: str, unit: str, figure: str, found: dict[str, list[dict[str, float]]], baseline: str
) -> list[Row]:
    others = _of_rounds(figure, found[baseline])
    return [
        row(
            f"{question}: {name}",
            _of_rounds(figure, runs),
            unit,
            n=round(sum(each["writes" if "write" in figure else "reads"] for each in runs)),
            baseline_value=others,
            ours=name in FIVE,
            baseline=name == baseline,
        )
        for name, runs in found.items()
        # Without a cache nobody answers instead of the source, and nothing is old.
        if name != NONE or figure not in {"hits", "stale", "oldest"}
    ]


def _of_rounds(figure: str, runs: list[dict[str, float]]) -> float:
    values = [each[figure] for each in runs]
    if figure == "oldest":
        return max(values)
    if figure.startswith(("read,", "write,")):
        return min(values)  # other work on the machine only adds to a wait
    return statistics.fmean(values)


def _losses(question: str, found: dict[str, tuple[int, int]], baseline: str) -> list[Row]:
    return [
        row(
            f"{question}: {name}",
            lost,
            "lost",
            n=acknowledged,
            baseline_value=found[baseline][1],
            ours=name != BUFFER,
            baseline=name == baseline,
            note=f"of {acknowledged:,} acknowledged writes, in {KILLS} kills",
        )
        for name, (acknowledged, lost) in found.items()
    ]


def bounds(rows: list[Row]) -> list[str]:
    """Nothing stale and nothing lost where a page promises it; and where it does not, the naive is caught."""
    by = {each["case"]: each["value"] for each in rows}
    broken = []
    for name in FIVE:
        if stale := by[f"stale reads, crowded: {name}"]:
            broken.append(f"{name}: {stale:g} % of the reads were stale")
        if by[f"lost with the application: {name}"]:
            broken.append(f"{name}: writes were lost with the application")
        if name != "Write-Behind" and by[f"lost with Redis: {name}"]:
            broken.append(f"{name}: writes were lost with Redis")
        longest = by[f"oldest read, nobody told: {name}"]
        if longest > TTL * 1.1 + 1:
            broken.append(f"{name}: a value was read {longest:g} s after it had been replaced")
    if by["lost with Redis: Write-Behind, append-only file"]:
        broken.append("Write-Behind with an append-only file: writes were lost with Redis")
    if (writes := by["source writes, crowded: Write-Behind"]) > 50:
        broken.append(f"Write-Behind made {writes:g} writes of 100")
    caught = f"stale reads, crowded: {NAIVE}", f"lost with the application: {BUFFER}"
    nothing = [naive for naive in (*caught, "lost with Redis: Write-Behind") if not by[naive]]
    return broken + [f"{naive}: none, so this run shows nothing about the others" for naive in nothing]


if __name__ == "__main__":
    asyncio.run(work(json.loads(sys.argv[1])))
