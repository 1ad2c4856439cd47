"""The reading half: a hit, or one load for all who miss in this process."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from patterns.cache.cache_aside.errors import LoadCancelled, LoadTimedOut, NotCacheable
from patterns.cache.cache_aside.events import CacheHit, CacheMissed, EntryDiscarded, Loaded, LoadFailed
from patterns.cache.write_through.source import Versioned, version_of
from patterns.entry import JSON, MISS, Codec, Unreadable, Unwritable, decode, encode
from patterns.events import Listener, emit, ignore
from patterns.flight import FlightCancelled, Flights
from patterns.outage import NoCache

if TYPE_CHECKING:
    import random

    from patterns.cache.write_through.entries import Entries, Turn
    from patterns.cache.write_through.policy import Policy
    from patterns.cache.write_through.source import Source
    from patterns.clock import Clock

__all__ = ["NOTHING", "Loads", "kept_for"]

NOTHING = encode(JSON, None, stale_ms=0, max_bytes=0)
"""The entry of what is not there."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a load.

    Attributes:
        entry: the entry.
        current_at: a tick at which it surely was the newest; callers that came after it must look again.
    """

    entry: bytes
    current_at: int


class Loads:
    """Reads the entries of one cache, and loads what is not there.

    Args:
        name: of the cache, for events.
        entries: what is in Redis.
        source: where it comes from.
        policy: how long values are kept, and what a load may cost.
        codec: turns values into bytes and back.
        clock: where durations are read.
        rng: draws the jitter.
        on_event: hears CacheHit, CacheMissed, Loaded, LoadFailed and EntryDiscarded.
    """

    def __init__(
        self,
        name: str,
        entries: Entries,
        source: Source,
        policy: Policy,
        *,
        codec: Codec,
        clock: Clock,
        rng: random.Random,
        on_event: Listener,
    ) -> None:
        self._name, self._entries, self._source, self._policy = name, entries, source, policy
        self._codec, self._clock, self._rng, self._on_event = codec, clock, rng, on_event
        self._ticks = itertools.count(1)
        self._flights: Flights[_Outcome] = Flights()
        self._permits = asyncio.Semaphore(policy.max_loads)

    async def get(self, key: str) -> Any:
        """Return the value of `key`, None if there is no such thing."""
        came, cached, bad = next(self._ticks), True, b""
        try:
            value = await self.look(key)
            if value is not MISS:
                return value
        except Unreadable as error:
            bad = self._discarded(key, error)
        except NoCache:
            cached = False
        emit(self._on_event, CacheMissed(self._name, key))
        begin = partial(self._fetch, key, cached=cached, bad=bad)
        while True:
            try:
                outcome = await self._flights.share(key, begin)
            except FlightCancelled:
                raise LoadCancelled(key) from None
            if outcome.current_at > came:  # else it may be older than a write that ended before we came
                return decode(self._codec, outcome.entry)

    async def look(self, key: str) -> Any:
        """Return the value in Redis or MISS; raises Unreadable and NoCache."""
        entry = await self._entries.read(key)
        if entry is None:
            return MISS
        value = decode(self._codec, entry)
        if self._on_event is not ignore:
            emit(self._on_event, CacheHit(self._name, key, value is None))
        return value

    # --8<-- [start:load]
    async def _fetch(self, key: str, *, cached: bool, bad: bytes) -> _Outcome:
        """Look once more, and load."""
        while True:
            tick = next(self._ticks)
            turn = await self._begin(key, bad) if cached else None
            if turn is None or turn.entry is None:
                return await self._load(key, turn.generation if turn else b"")
            try:
                decode(self._codec, turn.entry)
                return _Outcome(turn.entry, tick)
            except Unreadable as error:
                bad = self._discarded(key, error)

    async def _load(self, key: str, generation: bytes) -> _Outcome:
        """Load within the lease; keep it if no write began or ended meanwhile."""
        began, lease = self._clock.monotonic(), self._policy.lease
        try:
            async with self._clock.timeout(lease), self._permits:
                current_at = next(self._ticks)
                found = await self._source.load(key)
            version, entry = self._entry(key, found)
            tick, kept = next(self._ticks), False
            if generation:
                kept = await self._fill(key, generation, version, entry)
        except (Exception, asyncio.CancelledError) as error:
            duration = self._clock.monotonic() - began
            late = isinstance(error, TimeoutError) and duration >= lease
            failure = LoadTimedOut(key, lease) if late else error
            emit(self._on_event, LoadFailed(self._name, key, duration, type(failure).__name__))
            if late:
                raise failure from error
            raise
        emit(self._on_event, Loaded(self._name, key, self._clock.monotonic() - began, kept))
        return _Outcome(entry, tick if kept else current_at)

    # --8<-- [end:load]

    async def _begin(self, key: str, bad: bytes) -> Turn | None:
        try:
            return await self._entries.begin(key, without=bad)
        except NoCache:
            return None

    async def _fill(self, key: str, generation: bytes, version: int, entry: bytes) -> bool:
        ttl = kept_for(entry, self._policy, self._rng)
        try:
            return await self._entries.fill(key, generation, version, entry if ttl else b"", ttl)
        except NoCache:
            return False

    def _entry(self, key: str, found: object) -> tuple[int, bytes]:
        if not isinstance(found, Versioned | None):
            raise TypeError(f"load must return Versioned or None, got {type(found).__name__}")
        value = found.value if found else None
        try:
            entry = encode(self._codec, value, stale_ms=0, max_bytes=self._policy.max_bytes)
        except Unwritable as error:
            raise NotCacheable(key, str(error), value) from error.__cause__
        return version_of(found.version) if found else 0, entry

    def _discarded(self, key: str, error: Unreadable) -> bytes:
        emit(self._on_event, EntryDiscarded(self._name, key, error.reason))
        return error.entry


def kept_for(entry: bytes, policy: Policy, rng: random.Random) -> float:
    """Return for how many seconds an entry is kept; 0 is not at all."""
    ttl = policy.negative_ttl if entry == NOTHING else policy.ttl
    return ttl * (1 + policy.jitter * rng.uniform(-1, 1))
