"""What a pattern tells the world about itself.

A pattern hands frozen dataclasses, named in the past tense, to one `on_event` callable.
The listeners here record them for a test, write them to a log, or count them with OpenTelemetry;
`fan_out` joins several.
A listener that raises is logged and ignored: observing a call must not break it.

>>> @dataclass(frozen=True, slots=True)
... class Opened(Event):
...     failure_rate: float
>>> seen = Recorder()
>>> emit(seen, Opened("payments", failure_rate=0.5))
>>> seen.of(Opened)
[Opened(source='payments', failure_rate=0.5)]

Sources: resilience4j, `EventPublisher`; OpenTelemetry semantic conventions (lower snake case, the unit
beside the name).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from opentelemetry.metrics import Counter, Histogram, Meter

__all__ = [
    "Event",
    "Listener",
    "LogListener",
    "MetricsListener",
    "Recorder",
    "emit",
    "fan_out",
    "ignore",
]

_log = logging.getLogger("patterns.events")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened.

    Attributes:
        source: the name that the user gave to the breaker, cache, candidate, ... that speaks.
    """

    source: str


Listener = Callable[[Event], None]
E = TypeVar("E", bound=Event)


def ignore(event: Event) -> None:
    """Listen to nothing: the default of every pattern."""


def emit(listener: Listener, event: Event) -> None:
    """Hand `event` to `listener`; what the listener raises is logged and goes no further."""
    if listener is ignore:
        return
    try:
        listener(event)
    except Exception:
        _log.exception("listener failed on %r", event)


def fan_out(*listeners: Listener) -> Listener:
    """Return one listener that hands each event to all of `listeners`, whatever the others do."""

    def to_all(event: Event) -> None:
        for listener in listeners:
            emit(listener, event)

    return to_all


class Recorder:
    """Keeps every event, in order, for a test or a notebook."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Keep `event`."""
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """Return the kept events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def names(self) -> list[str]:
        """Return the class names of the kept events, in order."""
        return [type(event).__name__ for event in self.events]


class LogListener:
    """Writes each event as one log line, its fields also in `extra`.

    Args:
        logger: where to write; the default is the logger `patterns`.
        level: a `logging` level.
    """

    def __init__(self, logger: logging.Logger | None = None, level: int = logging.INFO) -> None:
        self._logger = logger or logging.getLogger("patterns")
        self._level = level

    def __call__(self, event: Event) -> None:
        """Write `event`."""
        if self._logger.isEnabledFor(self._level):
            values = _fields(event)
            text = " ".join(f"{name}={value!r}" for name, value in values.items())
            extra = {f"event_{name}": value for name, value in values.items()}
            self._logger.log(
                self._level,
                "%s %s",
                snake_case(type(event)),
                text,
                extra={"event": snake_case(type(event)), **extra},
            )


class MetricsListener:
    """Counts events with OpenTelemetry, and records their durations.

    Each kind of event becomes the counter `patterns.<kind>`; each field whose name ends in `_seconds`
    becomes the histogram `patterns.<kind>.<field>` in seconds. The only attributes are `source` and
    fields that are enums or bools, so that the number of time series stays bounded.

    Args:
        meter: an OpenTelemetry meter; `pip install executable-patterns[otel]`.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def __call__(self, event: Event) -> None:
        """Count `event`."""
        name = f"patterns.{snake_case(type(event))}"
        values = _fields(event)
        attributes: dict[str, str | bool] = {"source": event.source}
        for field, value in values.items():
            if isinstance(value, bool):
                attributes[field] = value
            elif isinstance(value, Enum):
                attributes[field] = str(value.value)
        counter = self._counters.get(name)
        if counter is None:
            counter = self._counters[name] = self._meter.create_counter(name, unit="{event}")
        counter.add(1, attributes)
        for field, value in values.items():
            if field.endswith("_seconds") and isinstance(value, int | float):
                self._histogram(f"{name}.{field.removesuffix('_seconds')}").record(value, attributes)

    def _histogram(self, name: str) -> Histogram:
        histogram = self._histograms.get(name)
        if histogram is None:
            histogram = self._histograms[name] = self._meter.create_histogram(name, unit="s")
        return histogram


def snake_case(kind: type[Event]) -> str:
    """Return the name under which a kind of event is logged and counted."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind.__name__).lower()


def _fields(event: Event) -> dict[str, object]:
    return {field.name: getattr(event, field.name) for field in fields(event)}
