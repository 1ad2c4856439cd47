"""A scrape beside a bare INFO, a page beside prometheus_client alone, and how often the server is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import redis
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

from benchmarks.paired import Case, row, time_async, time_sync
from patterns.container.adapter import Adapter, Family, Outcome, Policy
from patterns.container.adapter.page import page_of
from patterns.container.adapter.valkey import Valkey, families
from patterns.embedded import Server
from patterns.keyspace import opened

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.paired import Row

SIZES = (100, 1_000, 5_000)
SCRAPES = 50


class Plain:
    """A custom collector as prometheus_client's documentation has it: whatever INFO says, as it comes."""

    def __init__(self, ask: Any) -> None:
        self._ask = ask

    def collect(self) -> Iterable[Any]:
        for family in families(self._ask()):
            yield as_told(family)


def as_told(family: Family) -> GaugeMetricFamily | CounterMetricFamily:
    """Hand a family to prometheus_client without a look at it."""
    names = list(family.samples[0].labels)
    if family.kind == "gauge":
        gauge = GaugeMetricFamily(family.name, family.help, labels=names)
        for sample in family.samples:
            gauge.add_metric(list(sample.labels.values()), sample.value)
        return gauge
    counter = CounterMetricFamily(family.name, family.help, labels=names)
    for sample in family.samples:
        counter.add_metric(list(sample.labels.values()), sample.value, created=sample.created)
    return counter


async def per_scrape(server: Server) -> list[Row]:
    """Return the wall time of one scrape of one Valkey server, in µs."""
    async with opened(server.url) as client, Valkey("valkey", server.url) as source:
        adapter = Adapter([source])
        synchronous = redis.Redis(port=server.port, protocol=2)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Plain(synchronous.info))

        async def bare() -> None:
            await client.info()

        async def ours() -> None:
            (await adapter.scrape(5.0)).encode()

        async def plain() -> None:
            generate_latest(registry)

        rows = await time_async(
            [
                Case("a scrape: bare INFO, parsed", bare, baseline=True, note="no page"),
                Case("a scrape: this module", ours, ours=True),
                Case(
                    "a scrape: prometheus_client, custom collector",
                    plain,
                    note="synchronous, no deadline, nothing cleaned or capped",
                ),
            ],
            rounds=15,
            calls=60,
            cpu=False,
        )
        synchronous.close()
    return [each | {"value": float(f"{each['value'] / 1000:.4g}"), "unit": "µs"} for each in rows]


def per_series() -> list[Row]:
    """Return the CPU time of one series on a page, in ns, by the size of the page."""
    counted = Adapter([])
    cases: list[Case] = []
    sizes: dict[str, int] = {}
    for size in SIZES:
        said = [Family(f"family{number}", "gauge", "Bench") for number in range(size // 50)]
        for number in range(size):
            said[number % len(said)].add(number, {"customer": f"customer-{number}", "zone": "N"})
        plain = CollectorRegistry(auto_describe=False)
        plain.register(Fixed(said))
        ours, theirs = f"a series of {size:,}: this module", f"a series of {size:,}: prometheus_client"
        cases += [
            Case(ours, partial(whole_page, said, counted), ours=True),
            Case(
                theirs,
                partial(generate_latest, plain),
                baseline=size == SIZES[-1],
                note="nothing cleaned, checked or capped; no place",
            ),
        ]
        sizes |= {ours: size, theirs: size}
    rows = time_sync(cases, rounds=9, calls=3)
    base = next(each["value"] / sizes[each["case"]] for each in rows if each["baseline"])
    return [
        row(
            each["case"],
            each["value"] / sizes[each["case"]],
            "ns a series",
            n=each["n"] * sizes[each["case"]],
            baseline_value=base,
            ours=each["ours"],
            baseline=each["baseline"],
            note=each["note"],
        )
        for each in rows
    ]


class Fixed:
    """Families made anew at each collection, as a custom collector makes them."""

    def __init__(self, said: list[Family]) -> None:
        self._said = said

    def collect(self) -> Iterable[Any]:
        return map(as_told, self._said)


def whole_page(said: list[Family], counted: Adapter) -> bytes:
    """Clean, cap and write a page."""
    outcome = Outcome("bench", "127.0.0.1:1", families=said, seconds=0.01)
    page = page_of([outcome], Policy(), counted, Counter())
    assert not page.dropped
    return page.encode()[0]


async def queries(server: Server) -> list[Row]:
    """Return how many INFO the server answers for fifty scrapes at the same time."""

    async def asked(scrapes: Any) -> int:
        before = calls(server)
        await scrapes
        return calls(server) - before - 1  # this count is one, too

    async with Valkey("valkey", server.url) as source, opened(server.url) as client:
        adapter = Adapter([source])
        await adapter.scrape(5.0)
        shared = await asked(asyncio.gather(*[adapter.scrape(5.0) for _ in range(SCRAPES)]))
        each = await asked(asyncio.gather(*[client.info() for _ in range(SCRAPES)]))
    name = f"{SCRAPES} scrapes at once"
    return [
        row(f"{name}: this module", shared, "queries", n=SCRAPES, baseline_value=each, ours=True),
        row(
            f"{name}: one query for each",
            each,
            "queries",
            n=SCRAPES,
            baseline_value=each,
            baseline=True,
            note="bare INFO by the same client",
        ),
    ]


def calls(server: Server) -> int:
    """Return how often INFO was called."""
    stats = server.command("INFO", "commandstats")
    line = next((line for line in stats.splitlines() if line.startswith("cmdstat_info:")), "calls=0,")
    return int(line.partition("calls=")[2].partition(",")[0])


def measure() -> list[Row]:
    """Return the three tables."""
    with Server() as server:
        rows = asyncio.run(per_scrape(server))
        rows += per_series()
        rows += asyncio.run(queries(server))
    return rows


def bounds(rows: list[Row]) -> list[str]:
    """One query for all; a page at most 3 times as dear as plain prometheus_client, which checks nothing."""
    value = {row["case"]: row["value"] for row in rows}
    broken = []
    if (asked := value[f"{SCRAPES} scrapes at once: this module"]) != 1:
        broken.append(f"{SCRAPES} scrapes at once asked {asked:.0f} times, not once")
    for size in SIZES:
        ours, plain = (value[f"a series of {size:,}: {who}"] for who in ("this module", "prometheus_client"))
        if ours > 3 * plain:
            broken.append(f"a series of {size:,} takes {ours} ns > 3 x prometheus_client's {plain} ns")
    ours, plain = (
        value[f"a scrape: {who}"] for who in ("this module", "prometheus_client, custom collector")
    )
    return broken if ours <= 3 * plain else [*broken, f"a scrape takes {ours} µs > 3 x plain {plain} µs"]
