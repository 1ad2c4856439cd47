"""What a sidecar tells: events as they happen, and their sums."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.events import Event

__all__ = ["BatchShipped", "GapFound", "LinesDropped", "Report", "ShippingFailed"]


@dataclass(frozen=True, slots=True)
class BatchShipped(Event):
    """`lines` more lines are in the stream."""

    lines: int
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class ShippingFailed(Event):
    """Redis did not do what it was asked, which will be asked again after `retry_after_seconds`."""

    error: str
    retry_after_seconds: float


@dataclass(frozen=True, slots=True)
class LinesDropped(Event):
    """The buffer was full and the file being read was deleted by the rotation: the oldest `lines` went."""

    lines: int


@dataclass(frozen=True, slots=True)
class GapFound(Event):
    """The file of the last position was gone or cut: lines may be missing that nobody can count."""


@dataclass(slots=True)
class Report:
    """What the health endpoint tells.

    Attributes:
        ready: the sidecar follows the log, or waits for it to appear.
        shipped: lines that this process has brought into the stream, or found there.
        waiting: lines in memory.
        dropped: lines dropped because the rotation was faster than Redis.
        gaps: occasions on which lines may have been missed.
        failing: the error of the last exchange with Redis, its type and text; None when it succeeded.
    """

    ready: bool = False
    shipped: int = 0
    waiting: int = 0
    dropped: int = 0
    gaps: int = 0
    failing: str | None = None
