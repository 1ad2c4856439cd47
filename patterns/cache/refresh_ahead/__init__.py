"""Refresh a hot value before it expires, in the background, while its readers go on with the old one.

A value that is read all the time expires all the same, and then everybody waits for its load; a cache that
is fast on the average has its slowest moment where it is needed most. Here the first read in the last part
of a value's life begins the load of the next one, and gets the old value at once. What nobody reads expires.

Guaranteed, each by a test that rejects a naive variant:

1. No read returns a value later than `ttl` after it was kept, though every refresh fails or hangs, and
   however often it is read. Every key expires.
2. While an entry lives, no read waits for a load, for a place behind the bulkhead, or for more than one
   exchange with Redis (a second one where Redis must be taught the script).
3. A key is refreshed once at a time in however many processes, while the load takes less than `lease`,
   which ends it; and attempted once in each `refresh_pause`, whatever comes of it.
4. While Redis answers: once `invalidate` has returned, no read that begins later returns what was loaded
   before. A refresh under way at that moment is not kept: nothing that was deleted comes back.
5. A refresh that fails is told by RefreshFailed and costs no reader anything: the old value stays until its
   end. The load is not tried again before `refresh_pause` has passed.
6. What nobody reads is not loaded: there is no timer, and a value that is read once is loaded once, however
   slow its load was.
7. At most `max_refreshes` run at once in a process, and so many of the `max_loads` places at most are
   theirs; what is due beyond that is put off to a later read. They carry nothing of the reader's context,
   and end with `aclose` or with the event loop; no lease, connection or task is left behind.
8. With `beta`, a reader begins a refresh with probability exp(-left / (beta * delta)), where delta is how
   long the load of this entry took, in whichever process (of None: the latest load in this one). So among
   thousands of readers a few at most decide so in one life, without asking each other; and few lives end
   before they are refreshed.
9. A miss is Read-Through's: loaded once for all who wait. A key that cannot be one, or a value that cannot
   be kept, raises a typed error before anything is written; in a refresh the old value stays. Redis down
   delays a read by one `timeout` at most, and then the source answers.

Not guaranteed. That nobody ever waits: the first read does, as do those after an invalidation, after a life
without a read in its last part, and where loads are slower than that part is long. A value is refreshed, not
checked: who changes the source and does not invalidate leaves the old value until the next refresh. A
failover of Redis loses entries, which costs loads with readers waiting; loses the claim of an attempt, which
costs one more; and may bring back an entry that was invalidated (replication is asynchronous), for `ttl`.

Redis keys, all of one entity in one slot: `<app>:{refresh_ahead:<name>/<key>}:value|generation|lock` as in
`patterns.cache.cache_aside.store`, the payload after the microseconds that its load took; and

- `<app>:{refresh_ahead:<name>/<key>}:pause`  string: an attempt was made; PX refresh_pause

For the tasks of one event loop.

>>> import asyncio
>>> from patterns.keyspace import opened
>>> async def load(key: str) -> dict[str, str]:
...     print("load", key)
...     return {"id": key}
>>> async def main() -> None:
...     policy = Policy(ttl=60, negative_ttl=5, refresh_after=0.8, max_loads=8, max_refreshes=4)
...     async with opened() as redis, RefreshAhead("r", redis, policy, load=load, app="doctest") as rates:
...         for _ in range(3):
...             print(await rates.get("EUR"))
...         await rates.invalidate("EUR")
>>> asyncio.run(main())
load EUR
{'id': 'EUR'}
{'id': 'EUR'}
{'id': 'EUR'}

Sources: Oracle Coherence, "Refresh-Ahead Caching"; Caffeine, `refreshAfterWrite`; Vattani, Chierichetti and
Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015 (XFetch).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Self

from patterns.cache.read_through import (
    MISS,
    CacheHit,
    CacheLost,
    CacheMissed,
    CacheRegained,
    Codec,
    EntryDiscarded,
    Invalidated,
    InvalidationFailed,
    InvalidationOwed,
    Json,
    LoadCancelled,
    Loaded,
    LoadFailed,
    LoadTimedOut,
    Miss,
    NotCacheable,
    ReentrantLoad,
)
from patterns.cache.refresh_ahead.entries import Entries
from patterns.cache.refresh_ahead.events import RefreshBegan, Refreshed, RefreshFailed, RefreshPutOff
from patterns.cache.refresh_ahead.policy import Policy
from patterns.cache.refresh_ahead.refresher import Refresher
from patterns.cache.refresh_ahead.timed import Timed, TimedCodec, TimedLoad
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.entry import JSON
from patterns.events import Listener, ignore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patterns.keyspace import Client

__all__ = [
    "MISS",
    "CacheHit",
    "CacheLost",
    "CacheMissed",
    "CacheRegained",
    "Codec",
    "EntryDiscarded",
    "Invalidated",
    "InvalidationFailed",
    "InvalidationOwed",
    "Json",
    "LoadCancelled",
    "LoadFailed",
    "LoadTimedOut",
    "Loaded",
    "Miss",
    "NotCacheable",
    "Policy",
    "ReentrantLoad",
    "RefreshAhead",
    "RefreshBegan",
    "RefreshFailed",
    "RefreshPutOff",
    "Refreshed",
]


class RefreshAhead:
    """One cache of one kind of thing, which keeps what is hot from expiring.

    Use it as `async with RefreshAhead(...) as cache:`, or call `aclose` at the end.

    Args:
        name: what is cached, as "rates"; first part of every key, and the source of events. A new name is a
            new cache: change it when the shape of the values changes.
        client: from `patterns.keyspace`; close it after the cache.
        policy: how long values are kept, from when on they are refreshed, and what loads may cost.
        load: returns the value of a key, or None if the source has no such thing. It runs in the background
            too, so it must use nothing that ends with a caller.
        app: first part of the keys.
        codec: turns values into bytes and back.
        clock: where durations are read.
        rng: draws the jitter, and the chance of `beta`.
        on_event: hears RefreshBegan, Refreshed, RefreshFailed, RefreshPutOff, and what Read-Through tells.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        policy: Policy,
        *,
        load: Callable[[str], Awaitable[Any]],
        app: str,
        codec: Codec = JSON,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        self.name = name
        self.policy = policy
        self._rng = rng or random.Random()
        self._load = TimedLoad(load, clock)
        self._entries = Entries(
            name,
            client,
            policy.reading(),
            load=self._load,
            app=app,
            pause=policy.refresh_pause,
            codec=TimedCodec(codec),
            clock=clock,
            rng=self._rng,
            on_event=on_event,
        )
        self._refresher = Refresher(
            name,
            claim=self._entries.claim,
            refresh=self._entries.ahead,
            most=policy.max_refreshes,
            pause=policy.refresh_pause,
            clock=clock,
            on_event=on_event,
        )

    # --8<-- [start:get]
    async def get(self, key: str) -> Any:
        """Return the value of `key`, None if the source has no such thing; begin a refresh if it is due.

        Raises:
            LoadTimedOut: there was no value, and the load took longer than the lease.
            NotCacheable: there was none, and what was loaded cannot be kept.
            ReentrantLoad: a load asked its own cache.
            Exception: there was none, and the load raised it.
        """
        try:
            found = await self._entries.found(key)
        except NotCacheable as error:
            if not isinstance(error.value, Timed):  # the load has raised it, of a cache that it asked
                raise
            raise NotCacheable(error.entity, error.reason, error.value.value) from error
        timed: Timed = found.value or Timed(None, self._load.latest)
        negative = timed.value is None
        if found.cached and self.policy.is_due(found.left, timed.took, negative=negative, rng=self._rng):
            self._refresher.begin(key, found.left)
        return timed.value

    # --8<-- [end:get]

    async def peek(self, key: str) -> Any:
        """Return the value of `key` if it is in the cache, else MISS; nothing is loaded or refreshed."""
        found = await self._entries.peek(key)
        return found.value if isinstance(found, Timed) else found

    async def invalidate(self, *keys: str) -> None:
        """Delete the entries of `keys`: call it after every change of theirs in the source.

        Key by key it is atomic, together it is not.

        Raises:
            InvalidationFailed: the old values may still be read for a while.
        """
        await self._entries.invalidate(*keys)

    async def aclose(self) -> None:
        """Cancel the refreshes under way and begin no more; reads go on, as from a read-through cache."""
        await self._refresher.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
