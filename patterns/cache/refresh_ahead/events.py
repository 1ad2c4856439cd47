"""What Refresh-Ahead tells of itself, besides the events of Read-Through."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.events import Event

__all__ = ["RefreshBegan", "RefreshFailed", "RefreshPutOff", "Refreshed"]


@dataclass(frozen=True, slots=True)
class RefreshBegan(Event):
    """A read found a value with so many seconds left, and began to load it anew; no reader waits."""

    entity: str
    left_seconds: float


@dataclass(frozen=True, slots=True)
class Refreshed(Event):
    """A refresh ended without an error.

    `kept` is False where the entry was invalidated meanwhile, another process was at it, or Redis is away;
    and for None where `negative_ttl` is 0: then the old value has been deleted.
    """

    entity: str
    duration_seconds: float
    kept: bool


@dataclass(frozen=True, slots=True)
class RefreshFailed(Event):
    """The load of a refresh raised; the old value stays until its life ends."""

    entity: str
    duration_seconds: float
    error: str


@dataclass(frozen=True, slots=True)
class RefreshPutOff(Event):
    """A value was due, and `max_refreshes` run already: a later read will try."""

    entity: str
