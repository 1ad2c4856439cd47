"""What manager and worker tell of themselves."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.events import Event

__all__ = [
    "ApplicationMissing",
    "HeartbeatFailed",
    "HeartbeatLost",
    "ItemDone",
    "ItemFailed",
    "ItemGivenUp",
    "ItemLost",
    "ItemRejected",
    "ItemReturned",
    "ItemStarted",
    "JobCreated",
    "RequestFailed",
    "RoundFailed",
]


@dataclass(frozen=True, slots=True)
class JobCreated(Event):
    """Manager: the source lists an item that had no job."""

    item: str


@dataclass(frozen=True, slots=True)
class HeartbeatLost(Event):
    """Manager: the lease of an item ran out, and it waits for another worker."""

    item: str


@dataclass(frozen=True, slots=True)
class ItemGivenUp(Event):
    """Manager: the lease of an item ran out in its last attempt; it has failed for good."""

    item: str


@dataclass(frozen=True, slots=True)
class ItemRejected(Event):
    """Manager: the source listed something that is no name."""

    reason: str


@dataclass(frozen=True, slots=True)
class RoundFailed(Event):
    """Manager: a round was not made to its end; the next one begins anew in `retry_after_seconds`."""

    error: str
    retry_after_seconds: float


@dataclass(frozen=True, slots=True)
class ItemStarted(Event):
    """Worker: the application is called with an item."""

    item: str
    attempt: int


@dataclass(frozen=True, slots=True)
class ItemDone(Event):
    """Worker: the application ended with 0 and the state knows it; `late` if the lease was lost by then."""

    item: str
    attempt: int
    duration_seconds: float
    late: bool


@dataclass(frozen=True, slots=True)
class ItemFailed(Event):
    """Worker: the attempt failed; `final` if there will be no other."""

    item: str
    attempt: int
    reason: str
    final: bool


@dataclass(frozen=True, slots=True)
class ItemLost(Event):
    """Worker: the lease is over or another's, or the item has ended; the application was stopped."""

    item: str
    attempt: int


@dataclass(frozen=True, slots=True)
class ItemReturned(Event):
    """Worker: given back without an attempt being counted, because the source or the application was away."""

    item: str
    reason: str


@dataclass(frozen=True, slots=True)
class HeartbeatFailed(Event):
    """Worker: Redis did not take a heartbeat; the next one is soon."""

    item: str
    error: str


@dataclass(frozen=True, slots=True)
class RequestFailed(Event):
    """Worker: Redis did not do what it was asked, which is asked again in `retry_after_seconds`."""

    error: str
    retry_after_seconds: float


@dataclass(frozen=True, slots=True)
class ApplicationMissing(Event):
    """Worker: no application container holds its lock; nothing is claimed until one does."""
