"""What one scrape found, as a collector that prometheus_client writes in either format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from patterns.container.adapter.clean import (
    Cleaned,
    clean,
    fair_shares,
    label_value,
    without_clashes,
)
from patterns.container.adapter.events import Dropped, Reason

try:
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import CollectorRegistry
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"patterns.container.adapter needs {error.name}: pip install executable-patterns[container]"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from patterns.container.adapter.policy import Policy
    from patterns.container.adapter.source import Family

__all__ = ["Failures", "Outcome", "Page"]


@dataclass(slots=True)
class Outcome:
    """How the asking of one target ended; `target` is "" where the source could not name its targets.

    Attributes:
        families: what it said; None if it said nothing in time.
        reason: why it did not: until it has answered, that the time is over.
        error: the class of what was raised.
        seconds: from asking to the answer, or to the end of waiting; None while it is waited for.
    """

    source: str
    target: str
    families: Sequence[Family] | None = None
    reason: Reason = Reason.TIMEOUT
    error: str = "TimeoutError"
    seconds: float | None = None

    @property
    def up(self) -> bool:
        """Whether it answered."""
        return self.families is not None


class Failures(Protocol):
    """What an adapter counts over its life."""

    created: float  # seconds since the epoch
    scrapes: int
    failures: Counter[tuple[str, Reason]]


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """What one scrape found.

    Attributes:
        outcomes: of each target, the adapter's own word.
        families: what is written of the applications, and then the adapter's own.
        dropped: series that were left out, by source and reason.
    """

    outcomes: Sequence[Outcome]
    families: Sequence[Metric]
    dropped: Counter[tuple[str, Dropped]] = field(default_factory=Counter)

    @property
    def up(self) -> bool:
        """Whether every target answered."""
        return all(outcome.up for outcome in self.outcomes)

    def collect(self) -> Iterable[Metric]:
        """Return the families: the collector's side of prometheus_client."""
        return self.families

    def encode(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page and its content type, in the format that the scraper prefers."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        try:
            encoder, content_type = choose_encoder(accept)
        except TypeError:  # a version that is no version
            encoder, content_type = choose_encoder("")
        if not any(f"version={version};" in content_type for version in ("0.0.4", "1.0.0")):
            encoder, content_type = choose_encoder("")  # it would promise any version it was asked for
        return encoder(registry), content_type

    def value(self, name: str, **labels: str) -> float | None:
        """Return the one sample of this name and these labels, as `adapter_up`; None if it is not there."""
        for family in self.families:
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return None


# --8<-- [start:page]
def page_of(
    outcomes: Sequence[Outcome], policy: Policy, counted: Failures, dropped: Counter[tuple[str, Dropped]]
) -> Page:
    """Write down what was found: only what was read for this scrape, cleaned and within the caps."""
    answers: list[list[Cleaned]] = []
    dropped = Counter(dropped)
    for outcome in outcomes:
        families, why = clean(outcome.families or (), policy)
        answers.append(families)
        dropped.update({(outcome.source, reason): n for reason, n in why.items()})
    answers, clashed = without_clashes(answers)
    wanted = [sum(len(family.series) for family in families) for families in answers]
    written: dict[str, Metric] = {}
    for outcome, families, why, room in zip(
        outcomes, answers, clashed, fair_shares(wanted, policy.series), strict=True
    ):
        place = _place(outcome, policy)
        left = room
        for family in families:
            into = written.setdefault(family.name, _family(family))
            for labels, (value, created) in islice(family.series.items(), left):
                _add(into, dict(labels) | place, value, created)
            why[Dropped.TOTAL] += max(0, len(family.series) - left)
            left = max(0, left - len(family.series))
        dropped.update({(outcome.source, reason): n for reason, n in why.items() if n})
    found = [family for family in written.values() if family.samples]
    return Page(outcomes, [*found, *_own(outcomes, policy, counted, dropped)], dropped)
    # --8<-- [end:page]


def _own(
    outcomes: Sequence[Outcome], policy: Policy, counted: Failures, dropped: Counter[tuple[str, Dropped]]
) -> Iterable[Metric]:
    up = GaugeMetricFamily("adapter_up", "Whether the target answered this scrape")
    took = GaugeMetricFamily("adapter_target_duration_seconds", "How long the target took, or was waited for")
    for outcome in outcomes:
        place = _place(outcome, policy)
        up.add_sample(up.name, place, float(outcome.up))
        took.add_sample(took.name, place, outcome.seconds or 0.0)
    lost = GaugeMetricFamily("adapter_dropped_series", "Series that this page leaves out")
    for (source, why), count in sorted(dropped.items(), key=lambda each: (each[0][0], each[0][1].value)):
        _add(lost, {"source": label_value(source, policy.longest_label), "reason": why.value}, count)
    failed = CounterMetricFamily("adapter_failures", "Targets that did not answer a scrape")
    for (source, reason), count in counted.failures.items():
        labels = {"source": label_value(source, policy.longest_label), "reason": reason.value}
        _add(failed, labels, count, counted.created)
    scrapes = CounterMetricFamily("adapter_scrapes", "Scrapes that were answered")
    _add(scrapes, {}, counted.scrapes, counted.created)
    return [family for family in (up, took, lost, failed, scrapes) if family.samples]


def _place(outcome: Outcome, policy: Policy) -> dict[str, str]:
    place = {"source": outcome.source, "target": outcome.target}
    return {name: text for name, raw in place.items() if (text := label_value(raw, policy.longest_label))}


def _family(family: Cleaned) -> Metric:
    made = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    return made(family.name, family.help)


def _add(into: Metric, labels: dict[str, str], value: float, created: float | None = None) -> None:
    counter = into.type == "counter"
    into.add_sample(f"{into.name}_total" if counter else into.name, labels, value)
    if counter and created is not None:
        into.add_sample(f"{into.name}_created", labels, created)
