"""What a retry tells of each call, why it gives up, and the error of an attempt that took too long."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from patterns.events import Event

__all__ = ["AttemptFailed", "AttemptTimedOut", "CallSucceeded", "Reason", "RetryGaveUp", "RetryScheduled"]


class Reason(Enum):
    """Why there is no further attempt."""

    NOT_RETRIABLE = "not retriable"
    """The error is not in `on`, or is in `ignore`."""
    NOT_IDEMPOTENT = "not idempotent"
    """The request may have been carried out, and must not be carried out twice."""
    CANCELLED = "cancelled"
    """The task is being cancelled, though the attempt ended with another error."""
    NESTED = "nested"
    """A retry further out will repeat the whole."""
    ATTEMPTS = "attempts"
    """There were as many as the policy allows."""
    RETRY_AFTER = "retry after"
    """The dependency asked for a longer pause than the policy allows."""
    DEADLINE = "deadline"
    """The pause would end, or has ended, when no time is left."""
    BUDGET = "budget"
    """Too many retries already, of all callers together."""


@dataclass(frozen=True, slots=True)
class AttemptFailed(Event):
    """An attempt failed; `error` names the exception's class, or says "result"."""

    attempt: int
    error: str
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class RetryScheduled(Event):
    """There will be another attempt, number `attempt`, in `wait_seconds`."""

    attempt: int
    wait_seconds: float
    error: str


@dataclass(frozen=True, slots=True)
class RetryGaveUp(Event):
    """There is no further attempt: the caller gets the last outcome."""

    reason: Reason
    attempts: int
    error: str
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class CallSucceeded(Event):
    """A call succeeded, with its `attempts`-th attempt."""

    attempts: int
    duration_seconds: float


class AttemptTimedOut(TimeoutError):
    """This attempt took longer than `attempt_timeout`, or than what was left of the deadline.

    A time-out of the dependency's own is a plain TimeoutError; one set around the retry arrives as a
    cancellation.

    Attributes:
        name: the retry's name.
        attempt: which attempt it was, from 1.
        seconds: how long it had.
    """

    def __init__(self, name: str, attempt: int, seconds: float) -> None:
        super().__init__(f"attempt {attempt} of {name!r} took longer than {seconds:.3g} s")
        self.name = name
        self.attempt = attempt
        self.seconds = seconds

    def __reduce__(self) -> tuple[type[AttemptTimedOut], tuple[str, int, float]]:
        return type(self), (self.name, self.attempt, self.seconds)
