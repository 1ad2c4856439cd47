"""What is being loaded: single flight in and across processes, the bulkhead, and what is kept of it.

The protocol is that of `patterns.cache.cache_aside`, for many keys at once: a flight asks for the leases of
its keys, loads those that it got, keeps of them what nothing has overtaken, and looks again at those that
other processes load.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from patterns.cache.cache_aside.errors import LoadCancelled, LoadTimedOut, NotCacheable
from patterns.cache.cache_aside.events import CacheMissed, EntryDiscarded, Loaded, LoadFailed, StaleServed
from patterns.cache.cache_aside.store import Turn, new_token
from patterns.cache.read_through.events import BatchLoaded
from patterns.cache.read_through.flights import Flight, Flights
from patterns.entry import Codec, Unreadable, Unwritable, decode, encode
from patterns.events import Listener, emit, ignore
from patterns.keyspace import OutcomeUnknown
from patterns.outage import NoCache

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from patterns.cache.read_through.loader import Loader
    from patterns.cache.read_through.policy import Policy
    from patterns.cache.read_through.store import Entries
    from patterns.clock import Clock

__all__ = ["Loads", "Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a key: an entry, or an error.

    Attributes:
        entry: the entry.
        error: why there is none.
        current_at: a tick at which it surely was the newest; callers that came after it must look again.
        kept: seconds for which it was kept just now.
        hidden: the error of the load for which an expired entry stands in.
    """

    entry: bytes = b""
    error: BaseException | None = None
    current_at: int = sys.maxsize
    kept: float = 0.0
    hidden: BaseException | None = None


PASSED = Outcome(current_at=0)  # somebody else loads it, and who only refreshes does not wait


class Loads:
    """The loads of one cache.

    Args:
        name: of the cache, for events.
        store: its entries.
        loader: the way to the source.
        policy: of the cache.
        codec: turns values into bytes and back.
        clock: where durations are read.
        rng: draws the jitter.
        on_event: hears CacheMissed, Loaded, LoadFailed, BatchLoaded, StaleServed and EntryDiscarded.
    """

    def __init__(
        self,
        name: str,
        store: Entries,
        loader: Loader,
        policy: Policy,
        *,
        codec: Codec,
        clock: Clock,
        rng: random.Random,
        on_event: Listener,
    ) -> None:
        self._name = name
        self._store = store
        self._loader = loader
        self._policy = policy
        self._codec = codec
        self._clock = clock
        self._rng = rng
        self._on_event = on_event
        self._stale_ms = round(policy.stale_if_error * 1000)
        self._ticks = itertools.count(1)
        self._flights: Flights[Outcome] = Flights(_lost)
        self._permits = asyncio.Semaphore(policy.max_loads)

    def tick(self) -> int:
        """Return a number greater than any before: who came when."""
        return next(self._ticks)

    # --8<-- [start:missed]
    async def all_of(
        self, keys: list[str], came: int, bad: dict[str, bytes], *, cached: bool, many: bool
    ) -> dict[str, Outcome]:
        """Return what came of each key, by a load that is under way or by a new one."""
        for key in keys:
            emit(self._on_event, CacheMissed(self._name, key))
        begin = partial(self._fly, bad=bad, cached=cached, many=many)
        size = self._loader.at_once(self._policy.batch, many=many)
        parts = iter([keys[at : at + size] for at in range(0, len(keys), size)])
        outcomes: dict[str, Outcome] = {}

        async def work() -> None:
            for part in parts:  # whoever is free takes the next: a lease begins when its load can
                left = part
                while left:
                    landed = await self._flights.share(left, begin)
                    # Else it may be older than a write that had ended before we came.
                    outcomes.update((key, got) for key, got in landed.items() if got.current_at > came)
                    left = [key for key in left if key not in outcomes]

        if len(keys) <= size:
            await work()
            return outcomes
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(self._policy.max_loads, -(-len(keys) // size))):
                workers.create_task(work())
        return outcomes

    async def _fly(
        self,
        flight: Flight[Outcome],
        *,
        bad: dict[str, bytes],
        cached: bool,
        many: bool,
        ahead: float | None = None,
    ) -> None:
        """Load what nobody loads, and wait for what other processes load; alone, once they had their time."""
        token, patience = new_token(), self._clock.monotonic() + self._policy.lease
        left = list(flight.landing)
        async with asyncio.TaskGroup() as loads:
            while left:
                now, tick = self._clock.monotonic(), next(self._ticks)
                alone = now >= patience
                turns, unsure = await self._begin(left, token, bad, alone=alone, ahead=ahead, cached=cached)
                if unsure:
                    giving_back = loads.create_task(self._give_back(left, token))
                    if ahead is not None:  # who refreshes is in no hurry, and has ended when this has
                        await giving_back
                mine: dict[str, Turn | None] = {}
                left, wait = [], min(self._policy.poll, patience - now)
                for key, turn in turns.items():
                    if turn is None or turn.generation:
                        mine[key] = turn
                    elif turn.entry is None:
                        left.append(key)
                        wait = min(wait, turn.wait)
                    elif self._is_readable(key, turn.entry, bad):
                        self._flights.land(flight, key, Outcome(turn.entry, current_at=tick))
                    else:
                        left.append(key)
                        wait = 0.0
                if ahead is not None:
                    for key in [*left, *(key for key, turn in mine.items() if turn is None)]:
                        self._flights.land(flight, key, PASSED)
                        mine.pop(key, None)
                    left = []
                # The lease began when it was asked for; without Redis the load has all of it.
                began = now if any(mine.values()) else self._clock.monotonic()
                if mine:
                    deadline = began + self._policy.lease
                    loads.create_task(self._load(flight, mine, token, deadline, many=many))
                if left:
                    await self._clock.sleep(wait)

    # --8<-- [end:missed]

    async def ahead(self, key: str, seconds: float) -> Outcome:
        """Load `key` if its entry has at most `seconds` of fresh life left and nobody loads it."""
        begin = partial(self._fly, bad={}, cached=True, many=False, ahead=seconds)
        return (await self._flights.share([key], begin))[key]

    async def _begin(
        self,
        keys: list[str],
        token: str,
        bad: dict[str, bytes],
        *,
        alone: bool,
        ahead: float | None,
        cached: bool,
    ) -> tuple[dict[str, Turn | None], bool]:
        """Return what each key's turn is, None without Redis; and whether leases may be ours all the same."""
        if not cached:
            return dict.fromkeys(keys), False
        try:
            turns = await self._store.begin_all(keys, token, without=bad, alone=alone, ahead=ahead or 0.0)
        except NoCache as error:
            return dict.fromkeys(keys), isinstance(error.__cause__, OutcomeUnknown | TimeoutError)
        except asyncio.CancelledError:  # the leases may be ours by now
            await self._released(keys, token)
            raise
        return turns, None in turns.values()

    async def _give_back(self, keys: list[str], token: str) -> None:
        with suppress(NoCache):  # then they end by themselves
            await self._store.give_back(keys, token)

    def _is_readable(self, key: str, entry: bytes, bad: dict[str, bytes]) -> bool:
        try:
            decode(self._codec, entry)
        except Unreadable as error:
            emit(self._on_event, EntryDiscarded(self._name, key, error.reason))
            bad[key] = error.entry
            return False
        return True

    # --8<-- [start:load]
    async def _load(
        self,
        flight: Flight[Outcome],
        turns: dict[str, Turn | None],
        token: str,
        deadline: float,
        *,
        many: bool,
    ) -> None:
        """Load within the lease, and keep what came if nothing has overtaken it."""
        keys, began, current_at, tick = list(turns), self._clock.monotonic(), 0, 0
        entries: dict[str, bytes] = {}
        errors: dict[str, BaseException] = {}
        kept: dict[str, float] = {}
        try:
            async with self._clock.timeout(deadline - began), self._permits:
                current_at = next(self._ticks)
                values, failures = await self._loader(keys, many=many)
            self._tell_batch(keys, values, began, many=many)
            errors |= failures
            for key, value in values.items():
                try:
                    entries[key] = self._entry(key, value)
                except NotCacheable as refusal:
                    errors[key] = refusal
            tick = next(self._ticks)
            kept = await self._keep(token, turns, entries)
        except (Exception, asyncio.CancelledError) as failure:
            late = isinstance(failure, TimeoutError) and self._clock.monotonic() >= deadline
            errors = {key: self._named(key, failure, late=late) for key in keys}
        duration = self._clock.monotonic() - began
        for key, error in errors.items():
            emit(self._on_event, LoadFailed(self._name, key, duration, type(error).__name__))
        outcomes = {key: Outcome(error=error) for key, error in errors.items()}
        if owed := [key for key in errors if turns[key]]:
            outcomes |= await self._give_up(owed, token, errors)
        for key in keys:
            if key not in errors:
                emit(self._on_event, Loaded(self._name, key, duration, key in kept))
                at = tick if key in kept else current_at
                outcomes[key] = Outcome(entries[key], current_at=at, kept=kept.get(key, 0.0))
            self._flights.land(flight, key, outcomes[key])

    # --8<-- [end:load]

    def _named(self, key: str, error: BaseException, *, late: bool) -> BaseException:
        if not late and not isinstance(error, asyncio.CancelledError):
            return error
        named = LoadTimedOut(key, self._policy.lease) if late else LoadCancelled(key)
        named.__cause__ = error if late else None
        return named

    def _tell_batch(self, keys: list[str], values: Mapping[str, Any], began: float, *, many: bool) -> None:
        if many and self._on_event is not ignore:
            duration = self._clock.monotonic() - began
            emit(self._on_event, BatchLoaded(self._name, len(keys), len(values), duration))

    async def _keep(
        self, token: str, turns: Mapping[str, Turn | None], entries: Mapping[str, bytes]
    ) -> dict[str, float]:
        """Fill in what was loaded; return for how many seconds each that was kept is fresh."""
        policy = self._policy
        what: dict[str, tuple[bytes, bytes, float]] = {}
        fresh: dict[str, float] = {}
        for key, entry in entries.items():
            if turn := turns[key]:
                negative = entry.endswith(b" -\n")
                ttl = policy.negative_ttl if negative else policy.ttl
                fresh[key] = ttl * (1 + policy.jitter * self._rng.uniform(-1, 1))
                lives = fresh[key] if negative else fresh[key] + policy.stale_if_error
                what[key] = (turn.generation, entry if ttl else b"", lives)
        try:
            filled = await self._store.fill_all(token, what) if what else set()
        except NoCache:
            return {}
        return {key: fresh[key] for key in filled}

    async def _give_up(
        self, keys: list[str], token: str, errors: Mapping[str, BaseException]
    ) -> dict[str, Outcome]:
        """Give the leases back; return what may stand in for the loads that failed."""
        tick, stand_ins = next(self._ticks), {}
        for key, (entry, left) in (await self._released(keys, token)).items():
            error = errors[key]
            if not isinstance(error, self._policy.stale_on) or isinstance(error, NotCacheable) or not entry:
                continue
            try:
                decode(self._codec, entry)
            except Unreadable:
                continue
            stale = max(0.0, self._policy.stale_if_error - left)
            emit(self._on_event, StaleServed(self._name, key, stale, type(error).__name__))
            stand_ins[key] = Outcome(entry, current_at=tick, hidden=error)
        return stand_ins

    async def _released(self, keys: list[str], token: str) -> dict[str, tuple[bytes, float]]:
        try:
            return await self._store.release_all(keys, token)
        except NoCache:
            return {}

    def _entry(self, key: str, value: object) -> bytes:
        try:
            return encode(self._codec, value, stale_ms=self._stale_ms, max_bytes=self._policy.max_bytes)
        except Unwritable as error:
            raise NotCacheable(key, str(error), value) from error.__cause__


def _lost(key: str, error: BaseException | None) -> Outcome:
    return Outcome(error=error or LoadCancelled(key))
