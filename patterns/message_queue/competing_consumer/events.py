"""What senders, receivers and workers tell of themselves."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.events import Event

__all__ = [
    "GroupCreated",
    "LeaseEnded",
    "MessageDead",
    "MessageFailed",
    "MessageHandled",
    "MessageReleased",
    "MessageSent",
    "QueueLost",
    "QueueRegained",
    "WorkerStopped",
]


@dataclass(frozen=True, slots=True)
class MessageSent(Event):
    """A message is in Redis; `duplicate` where its dedupe_id had been sent within the window."""

    id: str
    duplicate: bool


@dataclass(frozen=True, slots=True)
class MessageHandled(Event):
    """A handler has returned, and the message is acknowledged."""

    id: str
    deliveries: int
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class MessageFailed(Event):
    """A handler has raised; the message is tried again after `delay_seconds`, or is a dead letter."""

    id: str
    deliveries: int
    error: str
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class MessageDead(Event):
    """A message is delivered no more by itself: see `dead` and `redrive`."""

    id: str
    deliveries: int
    why: str


@dataclass(frozen=True, slots=True)
class MessageReleased(Event):
    """A message was given back by a worker that ends; `started` where its handler had begun."""

    id: str
    deliveries: int
    started: bool


@dataclass(frozen=True, slots=True)
class LeaseEnded(Event):
    """A delivery was no longer this worker's before it was done: somebody else has the message."""

    id: str
    deliveries: int


@dataclass(frozen=True, slots=True)
class GroupCreated(Event):
    """A partition had no consumer group: it is new, or Redis has forgotten."""

    partition: int


@dataclass(frozen=True, slots=True)
class WorkerStopped(Event):
    """A worker has closed, and gave back so many messages."""

    released: int


@dataclass(frozen=True, slots=True)
class QueueLost(Event):
    """The worker cannot reach its queue, and looks again."""

    error: str


@dataclass(frozen=True, slots=True)
class QueueRegained(Event):
    """It can."""
