"""What a ScatterGather tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.events import Event

__all__ = ["CallAbandoned", "CallEnded", "GatherEnded", "HedgeRefused", "HedgeSent", "LeafFailed"]


@dataclass(frozen=True, slots=True)
class HedgeSent(Event):
    """A leaf was asked a second time, because it was late or (`failed`) had failed."""

    leaf: str
    failed: bool
    waited_seconds: float


@dataclass(frozen=True, slots=True)
class HedgeRefused(Event):
    """A leaf was late or had failed, and the budget was empty."""

    leaf: str


@dataclass(frozen=True, slots=True)
class LeafFailed(Event):
    """A leaf is missing because all that it was asked ended in errors; `error` is the first one's class."""

    leaf: str
    error: str


@dataclass(frozen=True, slots=True)
class CallAbandoned(Event):
    """A call was cancelled and still runs; `running` such calls of this ScatterGather do."""

    leaf: str
    running: int


@dataclass(frozen=True, slots=True)
class CallEnded(Event):
    """A call that had been abandoned has ended; its answer is dropped."""

    leaf: str
    running: int


@dataclass(frozen=True, slots=True)
class GatherEnded(Event):
    """A gather gave its answer, or raised NotEnough or CanaryFailed."""

    answered: int
    missing: int
    requests: int
    enough: bool
    duration_seconds: float
