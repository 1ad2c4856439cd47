"""Proof of patterns/events.py."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from dataclasses import dataclass
from enum import Enum, IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint

from patterns.events import (
    Event,
    Listener,
    LogListener,
    MetricsListener,
    Recorder,
    emit,
    fan_out,
    ignore,
    snake_case,
)


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


@dataclass(frozen=True, slots=True)
class CallSucceeded(Event):
    elapsed_seconds: float
    colour: Colour = Colour.RED
    level: Level = Level.HIGH
    late: bool = False
    key: str = "user:1"
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class CallRefused(Event):
    pass


def broken(event: Event) -> None:
    raise RuntimeError("listener is broken")


# Events and emit


def test_event_cannot_be_changed() -> None:
    """What has happened stays as it was."""
    event = CallRefused("payments")
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.source = "other"  # type: ignore[misc]  # the assignment is what is refused


def test_emit_hands_over_the_event_itself() -> None:
    """The listener gets the very object, once."""
    seen, event = Recorder(), CallRefused("payments")
    emit(seen, event)
    assert len(seen.events) == 1
    assert seen.events[0] is event


def test_listener_that_raises_does_not_break_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    """The error of a listener is logged with its event and its traceback, and goes no further."""
    emit(broken, CallRefused("payments"))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "CallRefused(source='payments')" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is RuntimeError


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_listener_cannot_swallow_the_end_of_the_program(stop: type[BaseException]) -> None:
    """What ends a program or a task is not an error of the listener: it passes."""

    def stopping(event: Event) -> None:
        raise stop

    with pytest.raises(stop):
        emit(stopping, CallRefused("payments"))


def test_default_listener_does_nothing() -> None:
    """`ignore` takes any event, called by `emit` or by hand."""
    emit(ignore, CallRefused("payments"))
    ignore(CallRefused("payments"))


def test_fan_out_serves_every_listener_in_order_whatever_the_others_do() -> None:
    """A broken listener between two good ones keeps neither from its event."""
    first, last = Recorder(), Recorder()
    listener = fan_out(first, broken, last)
    listener(CallRefused("payments"))
    assert first.events == last.events == [CallRefused("payments")]


def test_fan_out_to_nobody_is_silence() -> None:
    """Joining no listeners is allowed, so that a list can be passed on unchecked."""
    fan_out()(CallRefused("payments"))


# Recorder


def test_recorder_keeps_events_in_order() -> None:
    """A test reads back what happened, in the order in which it happened."""
    seen = Recorder()
    for event in (CallSucceeded("a", 0.1), CallRefused("b"), CallSucceeded("c", 0.2)):
        emit(seen, event)
    assert seen.names() == ["CallSucceeded", "CallRefused", "CallSucceeded"]
    assert [event.source for event in seen.of(CallSucceeded)] == ["a", "c"]
    assert [event.source for event in seen.of(Event)] == ["a", "b", "c"]


# Logging


def test_log_line_names_the_event_and_every_field(caplog: pytest.LogCaptureFixture) -> None:
    """One event is one line that can be searched by the event's name and by each field."""
    with caplog.at_level(logging.INFO, logger="patterns"):
        LogListener()(CallSucceeded("payments", 0.25))
    (record,) = caplog.records
    assert record.name == "patterns"
    message = record.getMessage()
    assert message.startswith("call_succeeded source='payments' elapsed_seconds=0.25 ")
    assert "late=False" in message


def test_log_record_carries_the_fields_for_structured_logs(caplog: pytest.LogCaptureFixture) -> None:
    """A formatter that writes JSON finds each value by name, as it was."""
    with caplog.at_level(logging.INFO, logger="patterns"):
        LogListener()(CallSucceeded("payments", 0.25))
    extra = vars(caplog.records[0])
    assert extra["event"] == "call_succeeded"
    assert extra["event_source"] == "payments"
    assert extra["event_elapsed_seconds"] == 0.25
    assert extra["event_colour"] is Colour.RED


def test_log_listener_uses_the_logger_and_level_it_was_given(caplog: pytest.LogCaptureFixture) -> None:
    """An application chooses where the lines go and how loud they are."""
    logger = logging.getLogger("shop.breakers")
    with caplog.at_level(logging.DEBUG, logger="shop.breakers"):
        LogListener(logger, logging.WARNING)(CallRefused("payments"))
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("shop.breakers", logging.WARNING)
    ]


def test_log_listener_is_silent_below_the_loggers_level(caplog: pytest.LogCaptureFixture) -> None:
    """A level that is switched off costs no line."""
    with caplog.at_level(logging.ERROR, logger="patterns"):
        LogListener()(CallRefused("payments"))
    assert caplog.records == []


@given(st.text())
def test_no_text_in_a_field_can_forge_a_second_log_line(text: str) -> None:
    """A newline in a value, however it is written, stays inside its line."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.Logger("alone", logging.INFO)
    logger.addHandler(Keep())
    LogListener(logger)(CallSucceeded(text, 0.1, key=text))
    assert len(lines) == 1
    assert len(lines[0].splitlines()) == 1


# Metrics


def collected(reader: InMemoryMetricReader) -> dict[str, tuple[str | None, list[object]]]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: (metric.unit, list(metric.data.data_points))
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def measured(*events: Event) -> dict[str, tuple[str | None, list[object]]]:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    listener: Listener = MetricsListener(provider.get_meter("patterns"))
    for event in events:
        listener(event)
    try:
        return collected(reader)
    finally:
        provider.shutdown()


def test_each_kind_of_event_is_a_counter() -> None:
    """Three events of one kind and one of another are counted apart, under their names."""
    metrics = measured(*[CallRefused("payments")] * 3, CallSucceeded("payments", 0.1))
    unit, (point,) = metrics["patterns.call_refused"]
    assert unit == "{event}"
    assert isinstance(point, NumberDataPoint)
    assert point.value == 3
    assert dict(point.attributes or {}) == {"source": "payments"}
    (other,) = metrics["patterns.call_succeeded"][1]
    assert isinstance(other, NumberDataPoint)
    assert other.value == 1


def test_each_field_in_seconds_is_a_histogram_in_seconds() -> None:
    """A field that ends in `_seconds` is recorded, under its name without the unit."""
    metrics = measured(CallSucceeded("payments", 0.25), CallSucceeded("payments", 0.75))
    unit, (point,) = metrics["patterns.call_succeeded.elapsed"]
    assert unit == "s"
    assert isinstance(point, HistogramDataPoint)
    assert (point.count, point.sum, point.min, point.max) == (2, 1.0, 0.25, 0.75)


def test_only_bounded_fields_become_attributes() -> None:
    """Enums and bools tell series apart; keys, numbers and durations must not, or series would never end."""
    _, (point,) = measured(CallSucceeded("payments", 0.25))["patterns.call_succeeded"]
    assert isinstance(point, NumberDataPoint)
    assert dict(point.attributes or {}) == {
        "source": "payments",
        "colour": "red",
        "level": "3",
        "late": False,
    }


def test_sources_are_counted_apart() -> None:
    """Two breakers are two series of one counter."""
    _, points = measured(CallRefused("a"), CallRefused("b"), CallRefused("a"))["patterns.call_refused"]
    counts = {
        str((point.attributes or {})["source"]): point.value
        for point in points
        if isinstance(point, NumberDataPoint)
    }
    assert counts == {"a": 2, "b": 1}


def test_field_in_seconds_that_is_unknown_is_left_out() -> None:
    """None in a `_seconds` field is no measurement, not a zero."""

    @dataclass(frozen=True, slots=True)
    class Rejected(Event):
        retry_after_seconds: float | None

    metrics = measured(Rejected("payments", None))
    assert set(metrics) == {"patterns.rejected"}


@pytest.mark.parametrize(
    ("name", "written"),
    [("Opened", "opened"), ("CallNotPermitted", "call_not_permitted"), ("TTLExpired", "ttl_expired")],
)
def test_names_are_written_in_snake_case(name: str, written: str) -> None:
    """The class name becomes a lower-case metric name, an abbreviation counting as one word."""
    assert snake_case(type(name, (Event,), {})) == written
