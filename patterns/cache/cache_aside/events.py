"""What a cache tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.events import Event

__all__ = [
    "CacheHit",
    "CacheMissed",
    "EntryDiscarded",
    "Invalidated",
    "InvalidationOwed",
    "LoadFailed",
    "Loaded",
    "StaleServed",
]


@dataclass(frozen=True, slots=True)
class CacheHit(Event):
    """A read was answered from Redis."""

    entity: str
    negative: bool


@dataclass(frozen=True, slots=True)
class CacheMissed(Event):
    """A read found nothing fresh, or no Redis, and went on to a load: its own or another's."""

    entity: str


@dataclass(frozen=True, slots=True)
class Loaded(Event):
    """A load returned; `kept` is False where it was overtaken by an invalidation, or Redis is away."""

    entity: str
    duration_seconds: float
    kept: bool


@dataclass(frozen=True, slots=True)
class LoadFailed(Event):
    """A load raised, or was cancelled because nobody waited for it any more."""

    entity: str
    duration_seconds: float
    error: str


@dataclass(frozen=True, slots=True)
class StaleServed(Event):
    """A load failed, and its callers got a value that had expired `stale_seconds` ago."""

    entity: str
    stale_seconds: float
    error: str


@dataclass(frozen=True, slots=True)
class EntryDiscarded(Event):
    """What was in the cache could not be read; it is deleted and loaded anew."""

    entity: str
    error: str


@dataclass(frozen=True, slots=True)
class Invalidated(Event):
    """The entry is deleted, and loads of it that were under way will not be kept."""

    entity: str


@dataclass(frozen=True, slots=True)
class InvalidationOwed(Event):
    """The invalidation failed, and is tried again before this process asks the cache anything else.

    Until then others may read an old value, for `bound_seconds` at most.
    """

    entity: str
    bound_seconds: float
    error: str
