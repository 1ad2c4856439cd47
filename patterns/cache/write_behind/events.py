"""What writers and flushers tell of themselves."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.events import Event

__all__ = [
    "BatchFlushed",
    "ChangeFailed",
    "ChangeParked",
    "ChangeQueued",
    "ChangeRefused",
    "Drained",
    "RedisLost",
    "RedisRegained",
    "ShardTaken",
    "SourceFailed",
    "WriteRejected",
]


@dataclass(frozen=True, slots=True)
class ChangeQueued(Event):
    """A write is in Redis; `replaced` where it took the place of one that was still waiting."""

    key: str
    version: int
    replaced: bool


@dataclass(frozen=True, slots=True)
class WriteRejected(Event):
    """A shard was full for `waited_seconds`, and the writer got QueueFull."""

    key: str
    waited_seconds: float


@dataclass(frozen=True, slots=True)
class BatchFlushed(Event):
    """The source has `changes` more; the oldest of them had waited for `lag_seconds`."""

    shard: int
    changes: int
    duration_seconds: float
    lag_seconds: float


@dataclass(frozen=True, slots=True)
class SourceFailed(Event):
    """The source could not be reached, or took too long: the shard waits for `pause_seconds`."""

    shard: int
    changes: int
    error: str
    pause_seconds: float


@dataclass(frozen=True, slots=True)
class ChangeFailed(Event):
    """The source refused one change; it is tried again, alone."""

    key: str
    version: int
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class ChangeParked(Event):
    """A change will not be tried again by itself: see `parked` and `redrive`."""

    key: str
    version: int
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class ChangeRefused(Event):
    """The source had a newer version; `parked` where Redis knew of none, as after a failover."""

    key: str
    version: int
    newer: int
    parked: bool


@dataclass(frozen=True, slots=True)
class ShardTaken(Event):
    """This flusher has a shard now that nobody had."""

    shard: int


@dataclass(frozen=True, slots=True)
class Drained(Event):
    """A flusher has closed; so many keys were left in Redis, None where it did not say."""

    left: int | None


@dataclass(frozen=True, slots=True)
class RedisLost(Event):
    """The flusher cannot reach the queues, and looks again."""

    error: str


@dataclass(frozen=True, slots=True)
class RedisRegained(Event):
    """It can."""
