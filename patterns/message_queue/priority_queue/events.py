"""What a priority queue tells of itself, besides the events of competing_consumer."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.events import Event

__all__ = ["JobCancelled", "JobDelivered", "PriorityChanged"]


@dataclass(frozen=True, slots=True)
class JobDelivered(Event):
    """A consumer has a job that had been ready for `wait_seconds`, by the server's clock."""

    id: str
    priority: int
    deliveries: int
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class PriorityChanged(Event):
    """A job has another priority; `waited` is False where it was too late."""

    id: str
    priority: int
    waited: bool


@dataclass(frozen=True, slots=True)
class JobCancelled(Event):
    """A job is gone; `waited` is False where it was too late, and it is not."""

    id: str
    waited: bool
