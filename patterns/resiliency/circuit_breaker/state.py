"""The states of a circuit breaker, what it tells of them, and how it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from patterns.events import Event

__all__ = [
    "CallFailed",
    "CallIgnored",
    "CallRejected",
    "CallSucceeded",
    "CircuitOpen",
    "State",
    "StateChanged",
]


class State(Enum):
    """What the breaker does with the next call."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class StateChanged(Event):
    """The breaker moved from one state to another; the rates are those that made it move, in [0, 1].

    Each change is told once. Where several threads use one breaker, two of them may tell their changes in
    either order.
    """

    old: State
    new: State
    failure_rate: float
    slow_call_rate: float


@dataclass(frozen=True, slots=True)
class CallSucceeded(Event):
    """A call was counted as a success; `error` names the unlisted exception that it raised, if it did."""

    duration_seconds: float
    slow: bool
    error: str | None = None


@dataclass(frozen=True, slots=True)
class CallFailed(Event):
    """A call was counted as a failure; `error` names the exception's class, or says "result"."""

    duration_seconds: float
    slow: bool
    error: str


@dataclass(frozen=True, slots=True)
class CallIgnored(Event):
    """A call ended and was not counted: ignored, cancelled, or begun in an earlier state."""

    error: str | None


@dataclass(frozen=True, slots=True)
class CallRejected(Event):
    """A call was refused."""

    state: State
    retry_after_seconds: float | None


class CircuitOpen(Exception):
    """The call was refused; the dependency was not called.

    Attributes:
        name: the breaker's name.
        state: the state that refused.
        retry_after: seconds until a call may be admitted; None when not known (probes are under way, or the
            breaker is forced open).
    """

    def __init__(self, name: str, state: State, retry_after: float | None) -> None:
        wait = "" if retry_after is None else f"; retry after {retry_after:.3f} s"
        super().__init__(f"circuit breaker {name!r} is {state.value}{wait}")
        self.name = name
        self.state = state
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[CircuitOpen], tuple[str, State, float | None]]:
        return type(self), (self.name, self.state, self.retry_after)
