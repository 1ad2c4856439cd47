"""What a call costs through an ambassador, beside a direct call and a proxy that does nothing else.

Upstream, proxies and client are processes of their own on loopback, on the two cores that there are: under
load they share them, so that requests a second are what is left for each when all work at once.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from benchmarks.paired import SEED, row
from patterns.container.ambassador import Ambassador, Upstream
from patterns.serving import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.paired import Row

ROUNDS, CALLS, BURST, AT_ONCE = 15, 150, 400, 16
ANSWER = b"x" * 1000
BARE, OURS, DIRECT = "bare aiohttp proxy", "ambassador", "direct"
NOTES = {
    BARE: "same server and client; no deadline, retry, bound or check; keeps header names and body only",
    OURS: "Envoy was not run",
}
MOST = 3.0  # times the latency of the bare proxy


def measure() -> list[Row]:
    """Measure latency of one call at a time, and calls a second of sixteen."""
    with ExitStack() as stack:
        upstream = stack.enter_context(_process("upstream"))
        urls = {
            DIRECT: f"{upstream}/",
            BARE: f"{stack.enter_context(_process('bare', upstream))}/shop/",
            OURS: f"{stack.enter_context(_process('ours', upstream))}/shop/",
        }
        times, rates = asyncio.run(_rounds(urls))
    rows = []
    for percent, what in ((50, "p50"), (99, "p99")):
        rows += _rows(f"one at a time, {what}", f"ms {what}", _percentiles(times, percent))
    return rows + _rows("16 at once", "calls/s", rates)


def bounds(rows: list[Row]) -> list[str]:
    """Return what the module promises and these rows do not keep."""
    return [
        f"{found['unit']} is {found['ratio']} times that of a bare proxy, at most {MOST} promised"
        for found in rows
        if found["ours"] and found["unit"].startswith("ms") and found["ratio"] > MOST
    ]


def _rows(case: str, unit: str, samples: dict[str, list[float]]) -> list[Row]:
    found = []
    for name, values in samples.items():
        ratio = statistics.median(one / base for one, base in zip(values, samples[BARE], strict=True))
        value = statistics.median(values)
        made = row(
            f"{case}: {name}",
            value,
            unit,
            n=ROUNDS * (BURST if unit == "calls/s" else CALLS),
            baseline_value=value,
            ours=name == OURS,
            baseline=name == BARE,
            note=NOTES.get(name),
        )
        found.append(made | {"ratio": float(f"{ratio:.3g}")})
    return found


def _percentiles(times: dict[str, list[list[float]]], percent: int) -> dict[str, list[float]]:
    return {
        name: [statistics.quantiles(each, n=100)[percent - 1] * 1000 for each in rounds]
        for name, rounds in times.items()
    }


async def _rounds(urls: dict[str, str]) -> tuple[dict[str, list[list[float]]], dict[str, list[float]]]:
    rng = random.Random(SEED)
    times: dict[str, list[list[float]]] = {name: [] for name in urls}
    rates: dict[str, list[float]] = {name: [] for name in urls}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AT_ONCE)) as session:
        for number in range(ROUNDS + 1):
            for name in rng.sample(list(urls), len(urls)):
                gc.collect()
                latencies = [await _ask(session, urls[name]) for _ in range(CALLS)]
                rate = await _burst(session, urls[name])
                if number:
                    times[name].append(latencies)
                    rates[name].append(rate)
    return times, rates


async def _ask(session: aiohttp.ClientSession, url: str) -> float:
    began = time.perf_counter()
    async with session.get(url) as answer:
        assert await answer.read() == ANSWER
    return time.perf_counter() - began


async def _burst(session: aiohttp.ClientSession, url: str) -> float:
    async def some() -> None:
        for _ in range(BURST // AT_ONCE):
            await _ask(session, url)

    began = time.perf_counter()
    await asyncio.gather(*[some() for _ in range(AT_ONCE)])
    return BURST / (time.perf_counter() - began)


@contextmanager
def _process(kind: str, upstream: str = "") -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.container.ambassador", kind, upstream]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."}
    ) as it:
        try:
            assert it.stdout is not None
            yield json.loads(it.stdout.readline())
        finally:
            it.terminate()


async def _serve(kind: str, upstream: str) -> None:
    def say(server: Any) -> None:
        print(json.dumps(server.url), flush=True)

    if kind == "ours":
        await Ambassador([Upstream(name="shop", origins=(upstream,))]).serve(port=0, on_ready=say)
        return
    app = web.Application()
    if kind == "upstream":

        async def answer(_: web.Request) -> web.Response:
            return web.Response(body=ANSWER)

        app.router.add_get("/", answer)
        await serve(app, port=0, on_ready=say)
        return
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def forward(request: web.Request) -> web.StreamResponse:
            url = upstream + request.path_qs.removeprefix("/shop")
            headers = {name: value for name, value in request.headers.items() if name != "Host"}
            async with session.request(request.method, url, headers=headers, allow_redirects=False) as got:
                reply = web.StreamResponse(status=got.status, headers={"Content-Type": got.content_type})
                reply.content_length = got.content_length
                await reply.prepare(request)
                async for piece in got.content.iter_any():
                    await reply.write(piece)
                return reply

        app.router.add_route("*", "/shop/{rest:.*}", forward)
        await serve(app, port=0, on_ready=say)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2]))
