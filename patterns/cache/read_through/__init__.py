"""Read through a cache that owns the loader: callers ask it for keys, and never see the source.

Where every caller brings its own load, two of them put different things under one key, a list of a hundred
things is a hundred questions, and what one of them forgot nobody else makes good. Here the way to the source
is given once, for one key and for many, and the cache answers for it.

Guaranteed, each by a test that rejects a naive variant:

1. `get` and `get_all` return what the source says, or what was loaded from it no longer ago than `ttl` times
   1 + jitter, and never a miss for what the source has, also where Redis is empty.
2. A key is loaded once at a time, whether `get`, `get_all` or both ask for it, in however many processes,
   while the load takes less than `lease`; without Redis, once at a time in each process. No more than
   `max_loads` calls of `load` and `load_all` run at once in a process.
3. A load that fails, hangs or is cancelled tells all who wait for it, ends with the `lease`, keeps nothing,
   and the next caller loads anew. None, "the source has no such thing", is no failure: it is a value, kept
   for `negative_ttl`. A caller that is cancelled takes the load from nobody else. For errors in `stale_on`
   an expired value stands in, until `stale_if_error` seconds after it expired or it is invalidated.
4. `get_all` asks `load_all` for exactly the keys that are missing, each once, at most `batch` at a time, and
   returns all keys in the order asked. Where some fail, the others are kept, and NotAllLoaded has both;
   a key that `load_all` does not return is not kept, and is not None.
5. While Redis answers: once `invalidate` has returned, no read that begins later, in any process, returns
   what was loaded before. A load under way at that moment is not kept.
6. A load that asks its own cache, for whichever key, raises ReentrantLoad at once; it would wait for itself,
   for another that waits for it, or for a place behind the bulkhead.
7. Reading does not lengthen a life: an entry ends `ttl` times a factor in [1 - jitter, 1 + jitter] after it
   was loaded, however often it is asked for. Every key expires.
8. Redis down or slow delays a call by one `timeout` at most, and not even that while it is left alone; an
   entry that cannot be read is a miss, and is loaded and written anew.
9. A key that cannot be one, or a value that cannot be encoded, decoded again or is larger than `max_bytes`,
   raises a typed error before anything is written; the other keys do not suffer. Each caller gets a value of
   its own.

Not guaranteed. Who changes the source and dies before `invalidate`, or forgets it, leaves the old value
until its life ends; so does a load that reads a replica which lags behind. A failover of Redis loses entries,
which costs loads, and may bring back one that was invalidated (replication is asynchronous), with the same
bound. `get_all` is no snapshot: its keys may have been loaded at different times. Two caches whose loads read
each other wait until a lease ends.

Redis keys: `<app>:{read_through:<name>/<key>}:value|generation|lock`; see
`patterns.cache.cache_aside.store`, whose protocol this is.

For the tasks of one event loop.

>>> import asyncio
>>> from patterns.keyspace import opened
>>> async def load(key: str) -> dict[str, str]:
...     print("load", key)
...     return {"id": key}
>>> async def load_all(keys: list[str]) -> dict[str, dict[str, str]]:
...     print("load_all", keys)
...     return {key: {"id": key} for key in keys}
>>> async def main() -> None:
...     async with opened() as redis:
...         policy = Policy(ttl=60, negative_ttl=5, max_loads=8)
...         users = ReadThrough("users", redis, policy, load=load, load_all=load_all, app="doctest")
...         print(await users.get("2"))
...         print(list(await users.get_all(["1", "2", "3", "1"])))
...         await users.invalidate("1", "2", "3")
>>> asyncio.run(main())
load 2
{'id': '2'}
load_all ['1', '3']
['1', '2', '3']

Sources: Oracle Coherence, "Read-Through Caching" (CacheStore, load and loadAll); JSR 107 (JCache),
CacheLoader; Caffeine, AsyncLoadingCache; Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013 (leases).
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from patterns.cache.cache_aside.errors import InvalidationFailed, LoadCancelled, LoadTimedOut, NotCacheable
from patterns.cache.cache_aside.events import (
    CacheHit,
    CacheMissed,
    EntryDiscarded,
    Invalidated,
    InvalidationOwed,
    Loaded,
    LoadFailed,
    StaleServed,
)
from patterns.cache.read_through.errors import NotAllLoaded, NotReturned, ReentrantLoad
from patterns.cache.read_through.events import BatchLoaded
from patterns.cache.read_through.loader import Loader
from patterns.cache.read_through.loads import Loads, Outcome
from patterns.cache.read_through.policy import Policy
from patterns.cache.read_through.store import Entries
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.entry import JSON, MISS, Codec, Json, Miss, Unreadable, decode
from patterns.events import Listener, emit, ignore
from patterns.outage import CacheLost, CacheRegained, NoCache

if TYPE_CHECKING:
    from collections.abc import Iterable

    from patterns.cache.read_through.loader import Load, LoadAll
    from patterns.keyspace import Client

__all__ = [
    "MISS",
    "BatchLoaded",
    "CacheHit",
    "CacheLost",
    "CacheMissed",
    "CacheRegained",
    "Codec",
    "EntryDiscarded",
    "Found",
    "Invalidated",
    "InvalidationFailed",
    "InvalidationOwed",
    "Json",
    "LoadCancelled",
    "LoadFailed",
    "LoadTimedOut",
    "Loaded",
    "Miss",
    "NotAllLoaded",
    "NotCacheable",
    "NotReturned",
    "Policy",
    "ReadThrough",
    "ReentrantLoad",
    "StaleServed",
]


@dataclass(frozen=True, slots=True)
class Found:
    """A value, and how long it is still fresh.

    Attributes:
        value: the value.
        left: seconds of fresh life that its entry has; 0 where it is not in Redis, was loaded just now and
            overtaken, or came from a load of another process, which does not tell.
        cached: whether it was there; else a load brought it.
    """

    value: Any
    left: float
    cached: bool = False


class ReadThrough:
    """One cache of one kind of thing, with the way to the place where it comes from.

    Args:
        name: what is cached, as "users"; first part of every key, and the source of events. A new name is a
            new cache: change it when the shape of the values changes.
        client: from `patterns.keyspace`.
        policy: how long values are kept, and what a load may cost.
        load: returns the value of a key, or None if the source has no such thing. It may go on when the
            caller that began it has left, so it must use nothing that ends with a caller.
        load_all: for `get_all`: returns a mapping that has for each key its value, None, or the exception
            that its load ended in. None here: `load` is called for each key.
        app: first part of the keys.
        codec: turns values into bytes and back.
        clock: where durations are read.
        rng: draws the jitter.
        on_event: hears CacheHit, CacheMissed, Loaded, LoadFailed, BatchLoaded, StaleServed, EntryDiscarded,
            Invalidated, InvalidationOwed, CacheLost and CacheRegained.
    """

    _pattern = "read_through"  # in the keys

    def __init__(
        self,
        name: str,
        client: Client,
        policy: Policy,
        *,
        load: Load,
        load_all: LoadAll | None = None,
        app: str,
        codec: Codec = JSON,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        self.name = name
        self.policy = policy
        self._loader = Loader(load, load_all)
        self._codec = codec
        self._on_event = on_event
        longest = max(policy.ttl, policy.negative_ttl) * (1 + policy.jitter) + policy.stale_if_error
        self._bound = longest + 2 * policy.lease  # a load under way may still be kept for so long
        self._store = Entries(
            name,
            client,
            app=app,
            lease=policy.lease,
            windowed=policy.stale_if_error > 0,
            timeout=policy.timeout,
            back_off=policy.back_off,
            longest=self._bound,
            clock=clock,
            on_event=on_event,
            pattern=self._pattern,
        )
        self._loads = Loads(
            name,
            self._store,
            self._loader,
            policy,
            codec=codec,
            clock=clock,
            rng=rng or random.Random(),
            on_event=on_event,
        )

    # --8<-- [start:get]
    async def get(self, key: str) -> Any:
        """Return the value of `key`, None if the source has no such thing.

        Raises:
            LoadTimedOut: the load took longer than the lease.
            NotCacheable: the value was loaded and cannot be kept.
            ReentrantLoad: a load asked its own cache.
            Exception: whatever the load raised.
        """
        self._loader.refuse_within(key)
        came = self._loads.tick()
        try:
            value = await self._look(key)
            if value is not MISS:
                return value
            cached, bad = True, {}
        except Unreadable as error:
            cached, bad = True, self._discarded(key, error)
        except NoCache:
            cached, bad = False, {}
        outcomes = await self._loads.all_of([key], came, bad, cached=cached, many=False)
        return self._value(outcomes[key])

    async def get_all(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the value of each key, in the order asked; a key that is asked for twice counts once.

        Raises:
            NotAllLoaded: some could not be loaded; it has the values of the others.
            ReentrantLoad: a load asked its own cache.
            ValueError: one of them can be no key; nothing was asked.
        """
        wanted = _folded(keys)
        for key in wanted[:1]:
            self._loader.refuse_within(key)
        names = self._store.names(wanted)  # or it raises
        came = self._loads.tick()
        values, bad, cached = await self._look_all(names)
        errors: dict[str, Exception] = {}
        if misses := [key for key in wanted if key not in values]:
            outcomes = await self._loads.all_of(misses, came, bad, cached=cached, many=True)
            for key, outcome in outcomes.items():
                if isinstance(outcome.error, Exception):
                    errors[key] = outcome.error
                else:
                    values[key] = self._value(outcome)
        ordered = {key: values[key] for key in wanted if key in values}
        if errors:
            raise NotAllLoaded(ordered, errors)
        return ordered

    # --8<-- [end:get]

    async def peek(self, key: str) -> Any:
        """Return the value of `key` if it is in the cache and fresh, else MISS; nothing is loaded."""
        try:
            return await self._look(key)
        except (Unreadable, NoCache):
            return MISS

    async def invalidate(self, *keys: str) -> None:
        """Delete the entries of `keys`: call it after every change of theirs in the source.

        Key by key it is atomic, together it is not.

        Raises:
            InvalidationFailed: the old values may still be read for a while.
        """
        if keys:
            try:
                await self._store.delete(keys)
            except NoCache as error:
                raise InvalidationFailed(keys, self._bound) from error.__cause__

    async def found(self, key: str) -> Found:
        """Do what `get` does, and tell how long the value is still fresh; it costs a script, not a GET."""
        self._loader.refuse_within(key)
        came = self._loads.tick()
        try:
            there = await self._store.read_left(key)
            if there is not None:
                value = decode(self._codec, there[0])
                if self._on_event is not ignore:
                    emit(self._on_event, CacheHit(self.name, key, value is None))
                return Found(value, there[1], cached=True)
            cached, bad = True, {}
        except Unreadable as error:
            cached, bad = True, self._discarded(key, error)
        except NoCache:
            cached, bad = False, {}
        outcome = (await self._loads.all_of([key], came, bad, cached=cached, many=False))[key]
        return Found(self._value(outcome), outcome.kept)

    async def refresh(self, key: str, *, ahead: float) -> bool:
        """Load `key` if its entry has at most `ahead` seconds of fresh life left and nobody loads it now.

        Until the new value is kept, readers get the old one. Returns whether it was kept: not if Redis is
        away, if the key was invalidated meanwhile, or if another process is or was at it.

        Raises:
            Exception: whatever the load raised; the old entry stays until its life ends.
        """
        self._loader.refuse_within(key)
        self._store.keys(key)  # or it raises
        outcome = await self._loads.ahead(key, ahead)
        if error := outcome.error or outcome.hidden:
            raise error
        return outcome.kept > 0

    async def _look(self, key: str) -> Any:
        """Return the fresh value or MISS; raises Unreadable and NoCache."""
        entry = await self._store.read(key)
        if entry is None:
            return MISS
        value = decode(self._codec, entry)
        if self._on_event is not ignore:
            emit(self._on_event, CacheHit(self.name, key, value is None))
        return value

    async def _look_all(self, names: dict[str, str]) -> tuple[dict[str, Any], dict[str, bytes], bool]:
        """Return the fresh values, what cannot be read, and whether Redis answered."""
        values: dict[str, Any] = {}
        bad: dict[str, bytes] = {}
        left = iter(names.items())
        try:
            while part := dict(itertools.islice(left, self.policy.batch)):
                for key, entry in (await self._store.read_all(part)).items():
                    try:
                        values[key] = decode(self._codec, entry)
                    except Unreadable as error:
                        bad |= self._discarded(key, error)
                        continue
                    if self._on_event is not ignore:
                        emit(self._on_event, CacheHit(self.name, key, values[key] is None))
        except NoCache:
            return values, bad, False
        return values, bad, True

    def _discarded(self, key: str, error: Unreadable) -> dict[str, bytes]:
        emit(self._on_event, EntryDiscarded(self.name, key, error.reason))
        return {key: error.entry}

    def _value(self, outcome: Outcome) -> Any:
        if outcome.error is not None:
            raise outcome.error
        return decode(self._codec, outcome.entry)


def _folded(keys: Iterable[str]) -> list[str]:
    """Return the keys, each once; a single text is refused, for its letters would be keys."""
    if isinstance(keys, str):
        raise TypeError(f"get_all takes several keys, got the text {keys!r}")
    return list(dict.fromkeys(keys))
