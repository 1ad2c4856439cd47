"""What a gather costs beside asyncio's own, and what a hedge does to the tail: a model, and processes.

The model runs the real module on an event loop whose time is virtual: the tail is an assumption, hedges are
independent, and add no load.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
import statistics
import subprocess
import sys
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import aiohttp

from benchmarks.paired import SEED, Case, row, time_async
from patterns.clock import SystemClock
from patterns.container.scatter_gather import Ask, Hedge, Leaf, Observed, Page, Policy, ScatterGather
from patterns.container.scatter_gather.leaf import leaf_application
from patterns.container.scatter_gather.merge import Hit
from patterns.container.scatter_gather.replica import HttpReplica, Query, send_once
from patterns.deadline import Deadline
from patterns.resiliency.retry.budget import Budget
from patterns.serving import serving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from benchmarks.paired import Row

LEAVES = 50
REQUESTS = 4000  # of the model
MEDIAN, SIGMA = 0.010, math.log(1.5) / 1.645  # lognormal: median 10 ms, 95th percentile 15 ms
TAIL, LONG = 0.001, (0.2, 0.5)
HTTP_LEAVES, HTTP_REQUESTS, SLOW = 10, 100, 0.3


# --- the processor's time ----------------------------------------------------------------------------------


async def work(_: object = None) -> int:
    """Answer after 3 ms."""
    await asyncio.sleep(0.003)
    return 1


async def cpu() -> list[Row]:
    """Time one gather of fifty leaves."""
    policy = Policy(deadline=1, min_results=LEAVES, limit=LEAVES, idempotent=True)
    leaves: list[Leaf[str, int]] = [Leaf(f"{n:02}", work, work) for n in range(LEAVES)]
    plain: ScatterGather[str, int] = ScatterGather("x", leaves, policy)
    hedged: ScatterGather[str, int] = ScatterGather("x", leaves, policy, hedge=Hedge(0.1))
    observed: ScatterGather[str, int] = ScatterGather(
        "x", leaves, policy, hedge=Hedge(Observed(initial=0.1, at_least=0.1))
    )

    async def gather() -> None:
        await asyncio.gather(*[work() for _ in range(LEAVES)])

    async def task_group() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(LEAVES):
                group.create_task(work())

    async def timeout_around() -> None:
        async with asyncio.timeout(1):
            await asyncio.gather(*[work() for _ in range(LEAVES)])

    async def wait_for_each() -> None:
        await asyncio.gather(*[asyncio.wait_for(work(), 1) for _ in range(LEAVES)])

    async def hedge_each() -> None:
        async def one() -> int:
            first = asyncio.ensure_future(work())
            done, _ = await asyncio.wait({first}, timeout=0.1)
            if not done:
                await asyncio.wait(
                    {first, asyncio.ensure_future(work())}, return_when=asyncio.FIRST_COMPLETED
                )
            return first.result()

        await asyncio.gather(*[one() for _ in range(LEAVES)])

    return await time_async(
        [
            Case(
                "asyncio.gather",
                gather,
                baseline=True,
                note="no deadline, no partial answer; leaks siblings on an error",
            ),
            Case("asyncio.TaskGroup", task_group, note="no deadline, all or nothing"),
            Case("asyncio.gather in asyncio.timeout", timeout_around, note="all or nothing"),
            Case("asyncio.wait_for around each leaf", wait_for_each, note="a timer for each leaf"),
            Case("a hedge timer for each leaf, by hand", hedge_each, note="no budget, no drain"),
            Case("this module", lambda: plain.gather("x"), ours=True),
            Case("this module, hedge at a fixed delay", lambda: hedged.gather("x"), ours=True),
            Case("this module, hedge at the observed p95", lambda: observed.gather("x"), ours=True),
        ],
        rounds=31,
        calls=20,
    )


# --- the model ---------------------------------------------------------------------------------------------


class _Skip(selectors.DefaultSelector):
    """Does not wait, but adds what it would have waited to the loop's time."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return super().select(0)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skip = _Skip()
        super().__init__(self._skip)

    def time(self) -> float:
        return self._skip.now


class _LoopClock(SystemClock):
    @staticmethod
    def monotonic() -> float:
        return asyncio.get_running_loop().time()


def model(kind: str) -> tuple[float, float]:
    """Return the p99 in ms, and the share of further requests, of one way to gather."""
    rng, clock = random.Random(SEED), _LoopClock()
    calls = 0

    async def leaf(_: object = None) -> int:
        nonlocal calls
        calls += 1
        slow = rng.random() < TAIL
        await asyncio.sleep(rng.uniform(*LONG) if slow else MEDIAN * math.exp(SIGMA * rng.gauss(0, 1)))
        return 1

    async def run() -> list[float]:
        leaves: list[Leaf[str, int]] = [Leaf(f"{n:02}", leaf, leaf) for n in range(LEAVES)]
        enough = LEAVES - 3 if kind == "enough" else None
        policy = Policy(deadline=5, min_results=1, limit=2 * LEAVES, enough=enough, idempotent=True)
        hedge = None
        if kind in {"fixed", "observed"}:
            delay = 2 * MEDIAN if kind == "fixed" else Observed(0.95, initial=2 * MEDIAN)
            budget = Budget(
                ratio=0.02 if kind == "fixed" else 0.06, min_per_second=0, capacity=10, clock=clock
            )
            hedge = Hedge(delay, budget=budget)
        search: ScatterGather[str, int] = ScatterGather(
            "x", leaves, policy, hedge=hedge, clock=clock, rng=random.Random(SEED)
        )
        took = []
        for _ in range(REQUESTS):
            began = clock.monotonic()
            if kind == "gather":
                await asyncio.gather(*[leaf() for _ in range(LEAVES)])
            else:
                await search.gather("x")
            took.append(clock.monotonic() - began)
        return took

    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        took = runner.run(run())
    return statistics.quantiles(took, n=100)[98] * 1000, calls / (REQUESTS * LEAVES) - 1


def in_the_model() -> list[Row]:
    """Return p99 of fifty leaves with a tail, gathered in four ways."""
    kinds = {
        "gather": "model: asyncio.gather",
        "fixed": "model: hedge at 2 x median",
        "observed": "model: hedge at the p95",
        "enough": "model: the first 47",
    }
    found = {kind: model(kind) for kind in kinds}
    return [
        row(
            name,
            found[kind][0],
            "ms (model)",
            n=REQUESTS,
            baseline_value=found["gather"][0],
            ours=kind != "gather",
            baseline=kind == "gather",
            note=f"{found[kind][1]:.1%} more requests" if kind in {"fixed", "observed"} else None,
        )
        for kind, name in kinds.items()
    ]


# --- processes ---------------------------------------------------------------------------------------------


async def serve_leaves(slow: float) -> None:
    """Serve ten leaves, of which the first takes `slow` seconds, until standard input ends."""

    def search(seconds: float) -> Callable[[str, int], Awaitable[Page]]:
        async def found(query: str, _k: int) -> Page:
            await asyncio.sleep(seconds)
            return Page((Hit(1.0, query),))

        return found

    async with AsyncExitStack() as stack:
        urls = []
        for number in range(HTTP_LEAVES):
            app = leaf_application(search(0.002 if number else max(slow, 0.002)))
            urls.append((await stack.enter_async_context(serving(app, cancel_on_disconnect=True))).url)
        print(*urls, flush=True)
        await asyncio.to_thread(sys.stdin.read)


@contextmanager
def leaves_process(slow: float) -> Iterator[list[str]]:
    """Start a process with ten leaves, and return their addresses."""
    command = [sys.executable, "-m", "benchmarks.container.scatter_gather", str(slow)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()
        assert process.stdin is not None
        process.stdin.close()


async def with_processes(first: list[str], second: list[str]) -> list[Row]:
    """Return p99 of ten leaves over HTTP, one replica of one of which takes 300 ms."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), middlewares=(send_once,)
    ) as session:
        pairs = [
            (HttpReplica(session, one), HttpReplica(session, other))
            for one, other in zip(first, second, strict=True)
        ]

        async def gather() -> None:
            asks = [Ask(Query("red", 3), Deadline(5), str(n)) for n in range(HTTP_LEAVES)]
            await asyncio.gather(*[pair[0](ask) for pair, ask in zip(pairs, asks, strict=True)])

        def ours(rest: float) -> Callable[[], Awaitable[object]]:
            leaves = [Leaf(str(n), *pair) for n, pair in enumerate(pairs)]
            policy = Policy(deadline=5, min_results=HTTP_LEAVES, limit=2 * HTTP_LEAVES, idempotent=True)
            hedge = Hedge(0.06, rest=rest, budget=Budget(ratio=0.2, min_per_second=0, capacity=10))
            search: ScatterGather[Query, Page] = ScatterGather(
                "x", leaves, policy, hedge=hedge, rng=random.Random(SEED)
            )
            return lambda: search.gather(Query("red", 3))

        cases: dict[str, tuple[Callable[[], Awaitable[object]], str]] = {
            "HTTP: asyncio.gather": (gather, "10 leaves; asks the slow replica each time"),
            "HTTP: hedge at 60 ms": (ours(0.0), "asks it first half of the time"),
            "HTTP: hedge, and rest": (ours(10.0), "asks it first until it rests"),
        }
        loop = asyncio.get_running_loop()
        took: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(HTTP_REQUESTS + 5):
            for name, (call, _) in cases.items():
                began = loop.time()
                await call()
                if number >= 5:
                    took[name].append((loop.time() - began) * 1000)
        found = {name: statistics.quantiles(each, n=100)[98] for name, each in took.items()}
        base = next(iter(found.values()))
        return [
            row(
                name,
                value,
                "ms",
                n=HTTP_REQUESTS,
                baseline_value=base,
                ours="gather" not in name,
                baseline="gather" in name,
                note=f"{cases[name][1]}; median {statistics.median(took[name]):.0f} ms",
            )
            for name, value in found.items()
        ]


def measure() -> list[Row]:
    """Return µs of CPU, and ms of the 99th percentile in the model and with processes."""
    rows = [{**each, "value": each["value"] / 1000, "unit": "µs"} for each in asyncio.run(cpu())]
    rows += in_the_model()
    with ExitStack() as stack:
        first, second = (stack.enter_context(leaves_process(slow)) for slow in (SLOW, 0.0))
        return rows + asyncio.run(with_processes(first, second))


def bounds(rows: list[Row]) -> list[str]:
    """At most 1.5 times gather's CPU; in the model a tenth of its p99 for at most 2 % more requests."""
    ratio = {each["case"]: each["ratio"] for each in rows}
    broken = [
        f"{each['case']}: {each['ratio']} x gather > 1.5"
        for each in rows
        if each["ours"] and each["unit"] == "µs" and each["ratio"] > 1.5
    ]
    hedged = "model: hedge at 2 x median"
    if ratio[hedged] > 0.1:
        broken.append(f"{hedged}: {ratio[hedged]} x gather's p99 > 0.1")
    more = next(float(each["note"].partition("%")[0]) for each in rows if each["case"] == hedged)
    if more > 2:
        broken.append(f"{hedged}: {more} % more requests > 2 %")
    return broken


if __name__ == "__main__":
    asyncio.run(serve_leaves(float(sys.argv[1])))
