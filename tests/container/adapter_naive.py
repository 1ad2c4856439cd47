"""Adapters as most people write them first: each breaks what a check of adapter_checks.py asks."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import CollectorRegistry

from patterns.container.adapter import Adapter, Family
from patterns.container.adapter.valkey import Valkey

if TYPE_CHECKING:
    from collections.abc import Iterable

    from patterns.container.adapter import Source, Target


class NaivePage:
    """Whatever was said, handed to prometheus_client as it came."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> list[Metric]:
        return self._families

    def encode(self, accept: str = "") -> tuple[bytes, str]:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        encoder, content_type = choose_encoder(accept)
        return encoder(registry), content_type


class WritesAsTold:
    """Asks one after the other, waits for each, and writes what it is told."""

    def __init__(self, sources: Iterable[Source], **_: object) -> None:
        self.sources = list(sources)

    async def scrape(self, within: float | None = None) -> NaivePage:
        up = GaugeMetricFamily("adapter_up", "Whether it answered", labels=("source", "target"))
        found = {"": up}
        for source in self.sources:
            for target in await source.targets():
                families = await self.ask(source, target)
                up.add_metric([source.name, target.name], float(families is not None))
                for family in families or ():
                    written(family, source.name, target.name, found)
        return NaivePage([*found.values(), *self.own()])

    async def ask(self, source: Source, target: Target) -> Any:
        return await target.collect()

    def own(self) -> list[Metric]:
        return []

    async def aclose(self) -> None:
        pass


def written(family: Family, source: str, target: str, found: dict[str, Any]) -> None:
    made = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    into = found.setdefault(family.name, made(family.name or "_", family.help))
    suffix = "_total" if family.kind == "counter" else ""
    for sample in family.samples:
        labels = {**sample.labels, "source": source, "target": target}
        into.add_sample(f"{into.name}{suffix}", labels, sample.value)
        if family.kind == "counter" and sample.created:
            into.add_sample(f"{into.name}_created", labels, sample.created)


LAST: dict[str, Any] = {}  # the module's global, as in many an exporter


class KeepsLast(WritesAsTold):
    """When the application does not answer, shows what it said last."""

    async def ask(self, source: Source, target: Target) -> Any:
        with suppress(Exception):
            LAST[source.name] = await target.collect()
        return LAST.get(source.name)


class NeverGoesBack(WritesAsTold):
    """Keeps counters monotone: adds what is new to a total of its own."""

    def __init__(self, sources: Iterable[Source], **options: object) -> None:
        super().__init__(sources, **options)
        self._total: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._created: dict[str, float | None] = {}

    async def ask(self, source: Source, target: Target) -> Any:
        families = []
        for family in await target.collect():
            sample = family.samples[0]
            grown = sample.value - self._seen[family.name]
            self._total[family.name] += int(grown if grown >= 0 else sample.value)
            self._seen[family.name] = int(sample.value)
            created = self._created.setdefault(family.name, sample.created)
            families.append(Family(family.name, family.kind, family.help))
            families[-1].add(self._total[family.name], created=created)
        return families


class TellsTheError(WritesAsTold):
    """Catches what a target raises, and shows the text."""

    def __init__(self, sources: Iterable[Source], **options: object) -> None:
        super().__init__(sources, **options)
        self._errors: list[str] = []

    async def ask(self, source: Source, target: Target) -> Any:
        try:
            return await target.collect()
        except Exception as error:
            self._errors.append(str(error))
            return None

    def own(self) -> list[Metric]:
        failed = CounterMetricFamily("adapter_failures", "Failures", labels=("error",))
        for text, count in Counter(self._errors).items():
            failed.add_metric([text], count)
        return [failed]


class WaitsForTheEnd(Adapter):
    """Gives up in time, and then waits politely until those that are late have ended."""

    async def scrape(self, within: float | None = None) -> Any:
        page = await super().scrape(within)
        if self._left:
            await asyncio.wait(self._left)
        return page


class JoinsForEver(Adapter):
    """Joins the query that is under way, however long it has been."""

    async def _query(self, key: str, ask: Any, ends: float) -> Any:
        return await ask()


class SumsNodes(Valkey):
    """One line for the whole cluster: what the nodes say, added up."""

    async def targets(self) -> Any:
        self._all = await super().targets()
        return [self]

    async def collect(self) -> list[Family]:
        total: dict[str, Family] = {}
        for answer in await asyncio.gather(*[node.collect() for node in self._all], return_exceptions=True):
            for family in answer if isinstance(answer, list) else ():
                into = total.setdefault(family.name, Family(family.name, family.kind, family.help).add(0))
                old = into.samples.pop()
                created = family.samples[0].created
                into.add(old.value + sum(sample.value for sample in family.samples), created=created)
        return list(total.values())


class ReadsAndResets(Valkey):
    """Shows what was new since the last scrape: CONFIG RESETSTAT after each."""

    async def targets(self) -> Any:
        return [Resetting(node) for node in await super().targets()]


class Resetting:
    def __init__(self, node: Any) -> None:
        self.name, self._node = node.name, node

    async def collect(self) -> list[Family]:
        families: list[Family] = await self._node.collect()
        await self._node.client.config_resetstat()
        return families
