"""The entries in Redis: one script per transition, and what is owed to it when it did not answer.

Keys of one entity, all in one slot (a cache of another pattern puts its own name for `cache_aside`):

- `<app>:{cache_aside:<name>/<entity>}:value`       string: the entry (see `entry`); PX ttl + stale_if_error
- `<app>:{cache_aside:<name>/<entity>}:generation`  string: random, new with each lease; PX twice the lease
- `<app>:{cache_aside:<name>/<entity>}:lock`        string: who loads now; PX lease

A load begins by noting the generation, and its result is kept only if the generation is still the same. An
invalidation deletes all three keys in one command. So it does not matter which of them expires, is evicted
or was never there: what cannot be compared is not kept. Nor is a load that a paused process ends an hour
later: no generation lives longer than twice the lease.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from patterns.cache.cache_aside.events import Invalidated, InvalidationOwed
from patterns.cache.cache_aside.scripts import BEGIN, FILL, READ, RELEASE
from patterns.entry import Unreadable, stale_ms
from patterns.events import Listener, emit
from patterns.keyspace import Client, Keyspace
from patterns.outage import NoCache, Outage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from patterns.clock import Clock

__all__ = ["Store", "Turn", "new_token"]

T = TypeVar("T")

_PART = 250  # entities deleted at once: few enough for one exchange


@dataclass(frozen=True, slots=True)
class Turn:
    """What `begin` found: a fresh entry, or a load to do, or somebody else who is at it.

    Attributes:
        entry: the fresh entry; None if there is none.
        generation: what `fill` must still find; empty while somebody else loads.
        wait: seconds until the other's lease ends.
    """

    entry: bytes | None = None
    generation: bytes = b""
    wait: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Debt:
    """An invalidation that failed; what should have been invalidated has `gone` by itself then."""

    gone: float


class Store:
    """The entries of one cache.

    Args:
        name: of the cache, for events and keys.
        client: from `patterns.keyspace`.
        app: first part of the keys.
        lease: seconds that one load may take.
        windowed: whether entries written here have a stale window, so that reads ask for the PTTL too.
        timeout: seconds that one exchange with Redis may take.
        back_off: longest time in seconds for which Redis is left alone after it did not answer.
        longest: seconds after which an entry that was not invalidated has surely gone.
        clock: where durations are read.
        on_event: hears CacheLost, CacheRegained, Invalidated and InvalidationOwed.
        pattern: whose entries they are; second part of the keys.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        *,
        app: str,
        lease: float,
        windowed: bool,
        timeout: float,
        back_off: float,
        longest: float,
        clock: Clock,
        on_event: Listener,
        pattern: str = "cache_aside",
    ) -> None:
        self._name = name
        self._client = client
        self._space = Keyspace(app, pattern)
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"name must be letters, digits, '_', '.' and '-', at least one, got {name!r}")
        self._prefix = f"{name}/"  # a name has no slash, so no two caches share a key
        self._lease_ms = max(1, round(lease * 1000))
        self._windowed = windowed
        self._longest = longest
        self._clock = clock
        self._on_event = on_event
        self._outage = Outage(name, timeout=timeout, back_off=back_off, clock=clock, on_event=on_event)
        self._owed: dict[str, _Debt] = {}  # by entity, the oldest first

    def keys(self, entity: str) -> list[str]:
        """Return the keys of value, generation and lock.

        Raises:
            ValueError: no key can be made of `entity`.
        """
        return [self._key(entity, role) for role in ("value", "generation", "lock")]

    def _key(self, entity: str, role: str) -> str:
        if not entity:
            raise ValueError("entity must not be empty")
        return self._space.key(self._prefix + entity, role)

    # --8<-- [start:read]
    async def read(self, entity: str) -> bytes | None:
        """Return the fresh entry of `entity`, or None; one round trip.

        Raises:
            Unreadable: what is there is no entry.
        """
        key = self._key(entity, "value")
        try:
            if not self._windowed:
                got = await self.ask(lambda: self._client.get(key))
                entry = cast("bytes | None", got)  # clients of `keyspace` speak bytes
                if entry is None or stale_ms(entry) == 0:
                    return entry  # its whole life is fresh, and Redis ends it
            entry, left = await self.ask(lambda: READ(self._client, keys=[key]))
        except NoCache as error:
            if str(error.__cause__).startswith("WRONGTYPE"):
                raise Unreadable(b"", "not a string") from None
            raise
        return entry if entry and left > stale_ms(entry) else None

    # --8<-- [end:read]

    async def begin(
        self, entity: str, token: str, *, without: bytes = b"", alone: bool = False, ahead: float = 0.0
    ) -> Turn:
        """Ask for a fresh entry, or for the lease of a load; asking again with the same token is harmless.

        Args:
            entity: whose entry.
            token: of the load.
            without: an entry that could not be read, to be deleted if it is still there.
            alone: load beside whoever has the lease.
            ahead: seconds of fresh life that an entry must have left; one with less stays, and is loaded.
        """
        args = self._begin_args(token, without=without, alone=alone, ahead=ahead)
        return self._turn(await self.ask(lambda: BEGIN(self._client, keys=self.keys(entity), args=args)))

    def _begin_args(self, token: str, *, without: bytes, alone: bool, ahead: float) -> list[str | int]:
        bad = hashlib.sha1(without, usedforsecurity=False).hexdigest()
        return [token, self._lease_ms, 2 * self._lease_ms, bad, int(alone), round(ahead * 1000)]

    def _turn(self, reply: tuple[bytes, bytes, int]) -> Turn:
        entry, generation, wait = reply
        return Turn(entry or None, generation, max(1, wait) / 1000)

    async def fill(self, entity: str, token: str, generation: bytes, entry: bytes, ttl: float) -> bool:
        """Give the lease back, and keep `entry` for `ttl` seconds unless it was invalidated since `begin`.

        An empty entry leaves nothing there. Returns whether the generation was still the same.
        """
        args = self._fill_args(token, generation, entry, ttl)
        return bool(await self.ask(lambda: FILL(self._client, keys=self.keys(entity), args=args)))

    def _fill_args(self, token: str, generation: bytes, entry: bytes, ttl: float) -> list[str | bytes | int]:
        return [token, generation, entry, max(1, round(ttl * 1000))]

    async def release(self, entity: str, token: str) -> tuple[bytes, float]:
        """Give the lease back after a load that failed; return the entry still there and its seconds left."""
        entry, left = await self.ask(lambda: RELEASE(self._client, keys=self.keys(entity), args=[token]))
        return entry, left / 1000

    async def delete(self, entities: Collection[str]) -> None:
        """Delete the entries of `entities`, and outdate every load of theirs that is under way.

        What could not be deleted is owed: it is tried again before Redis is asked anything else.

        Raises:
            NoCache: Redis did not say that it is done.
            ValueError: no key can be made of one of them; none was touched.
        """
        for entity in entities:
            self.keys(entity)
        left = list(dict.fromkeys(entities))
        try:
            while left:
                # Also while Redis is left alone: an entry that stays costs more than a time-out.
                await self._outage.ask(lambda: self._delete(left[:_PART]), anyway=True)
                del left[:_PART]
        except BaseException as error:
            self._owe(left, type(error.__cause__ or error).__name__)
            raise

    def _owe(self, entities: list[str], error: str) -> None:
        self._forget_expired()
        debt = _Debt(self._clock.monotonic() + self._longest)
        for entity in entities:
            self._owed.pop(entity, None)  # to the end: the oldest come first
            self._owed[entity] = debt
            emit(self._on_event, InvalidationOwed(self._name, entity, self._longest, error))

    def _forget_expired(self) -> None:
        now = self._clock.monotonic()
        for entity in list(itertools.takewhile(lambda each: self._owed[each].gone <= now, self._owed)):
            del self._owed[entity]

    async def _delete(self, entities: Collection[str]) -> None:
        owed = {entity: self._owed.get(entity) for entity in entities}
        if len(entities) == 1:
            (entity,) = entities
            await self._client.delete(*self.keys(entity))
        else:
            async with self._client.pipeline(transaction=False) as pipe:
                for entity in entities:
                    pipe.delete(*self.keys(entity))
                await pipe.execute()
        for entity, debt in owed.items():
            if self._owed.get(entity) is debt:  # or another invalidation has failed since
                self._owed.pop(entity, None)
            emit(self._on_event, Invalidated(self._name, entity))

    # --8<-- [start:ask]
    async def ask(self, request: Callable[[], Awaitable[T]]) -> T:
        """Return the answer of Redis to `request`, once nothing is owed.

        Raises:
            NoCache: it took longer than `timeout`, failed, or Redis is left alone for now.
        """
        return await self._outage.ask((lambda: self._settled(request)) if self._owed else request)

    async def _settled(self, request: Callable[[], Awaitable[T]]) -> T:
        self._forget_expired()
        while part := list(itertools.islice(self._owed, _PART)):
            await self._delete(part)
        return await request()

    # --8<-- [end:ask]


def new_token() -> str:
    """Return a token that no other load has."""
    return uuid.uuid4().hex
