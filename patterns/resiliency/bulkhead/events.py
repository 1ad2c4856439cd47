"""What a bulkhead tells of itself, and how it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial

from patterns.events import Event

__all__ = [
    "BulkheadFull",
    "CallAdmitted",
    "CallQueued",
    "CallRejected",
    "LimitChanged",
    "PermitLost",
    "Reason",
    "SharingLost",
    "SharingRegained",
]


class Reason(Enum):
    """Why a call was refused."""

    FULL = "full"  # every permit was out, and every place to wait taken
    MAX_WAIT = "max_wait"  # no permit within max_wait
    DEADLINE = "deadline"  # the caller's own time was over first
    CLOSED = "closed"
    NO_REDIS = "no_redis"  # shared only: Redis is silent, and this process may run no more alone


@dataclass(frozen=True, slots=True)
class CallQueued(Event):
    """A call waits; `waiting` of them do, this one included."""

    waiting: int


@dataclass(frozen=True, slots=True)
class CallAdmitted(Event):
    """A call was let in after `waited_seconds`; `running` are in, this one included."""

    waited_seconds: float
    running: int


@dataclass(frozen=True, slots=True)
class CallRejected(Event):
    """A call was refused, and not started."""

    reason: Reason
    waited_seconds: float


@dataclass(frozen=True, slots=True)
class LimitChanged(Event):
    """The limit was changed at run time."""

    old: int
    new: int


@dataclass(frozen=True, slots=True)
class PermitLost(Event):
    """A call goes on although its lease was lost and could not be taken again."""


@dataclass(frozen=True, slots=True)
class SharingLost(Event):
    """Redis did not answer: this process admits by itself from now on."""

    error: str


@dataclass(frozen=True, slots=True)
class SharingRegained(Event):
    """Redis answers again."""


# --8<-- [start:error]
class BulkheadFull(Exception):
    """The call was refused and not started, so that it may be tried elsewhere or again.

    Attributes:
        name: the bulkhead's name.
        limit: calls that may run.
        waiting: calls that wait.
        waited: seconds this call had waited.
        retry_after: seconds until it is worth trying again; None, as a bulkhead cannot know.
        reason: why.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        waiting: int,
        waited: float = 0.0,
        *,
        retry_after: float | None = None,
        reason: Reason = Reason.FULL,
    ) -> None:
        super().__init__(name, limit, waiting, waited)
        self.name = name
        self.limit = limit
        self.waiting = waiting
        self.waited = waited
        self.retry_after = retry_after
        self.reason = reason

    def __str__(self) -> str:
        # Put together when it is read: refusals come in thousands, and nobody reads them all.
        return (
            f"bulkhead {self.name!r} refused the call ({self.reason.value}) after {self.waited:.3f} s: "
            f"limit {self.limit}, {self.waiting} waiting"
        )

    def __reduce__(self) -> tuple[object, ...]:
        again = partial(type(self), retry_after=self.retry_after, reason=self.reason)
        return again, (self.name, self.limit, self.waiting, self.waited)


# --8<-- [end:error]
