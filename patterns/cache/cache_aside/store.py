"""The entries in Redis: one script per transition, and what to do when Redis does not answer.

Keys of one entity, all in one slot:

- `<app>:{cache_aside:<name>/<entity>}:value`       string: the entry (see `entry`); PX ttl + stale_if_error
- `<app>:{cache_aside:<name>/<entity>}:generation`  string: random; PX twice the lease, renewed by each load
- `<app>:{cache_aside:<name>/<entity>}:lock`        string: who loads now; PX lease

A load begins by noting the generation, and its result is kept only if the generation is still the same. An
invalidation deletes all three keys in one command. So it does not matter which of them expires, is evicted
or was never there: what cannot be compared is not kept.
"""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from redis.exceptions import RedisError, ResponseError

from patterns.cache.cache_aside.entry import stale_ms
from patterns.events import Event, Listener, emit
from patterns.keyspace import Client, Keyspace, Script

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from patterns.clock import Clock

__all__ = [
    "CacheLost",
    "CacheRegained",
    "Invalidated",
    "InvalidationOwed",
    "NoCache",
    "Store",
    "Turn",
    "new_token",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CacheLost(Event):
    """Redis did not answer: this process loads directly, and looks for Redis from time to time."""

    error: str


@dataclass(frozen=True, slots=True)
class CacheRegained(Event):
    """Redis answers again."""


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


class NoCache(Exception):
    """Redis was not asked, or did not answer, or refused; `__cause__` says why."""


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
    ) -> None:
        self._name = name
        self._client = client
        self._space = Keyspace(app, "cache_aside")
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"name must be letters, digits, '_', '.' and '-', at least one, got {name!r}")
        self._prefix = f"{name}/"  # a name has no slash, so no two caches share a key
        self._lease_ms = max(1, round(lease * 1000))
        self._windowed = windowed
        self._timeout = timeout
        self._back_off = back_off
        self._longest = longest
        self._clock = clock
        self._on_event = on_event
        self._failures = 0  # in a row
        self._ask_again_at = -math.inf
        self._owed: dict[str, float] = {}  # entity: when the entry that was not invalidated has gone

    def keys(self, entity: str) -> list[str]:
        """Return the keys of value, generation and lock."""
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
        if not self._windowed:
            got = await self.ask(lambda: self._client.get(key))
            entry = cast("bytes | None", got)  # clients of `keyspace` speak bytes
            if entry is None or stale_ms(entry) == 0:
                return entry  # its whole life is fresh, and Redis ends it
        entry, left = await self.ask(lambda: _READ(self._client, keys=[key]))
        return entry if entry and left > stale_ms(entry) else None

    # --8<-- [end:read]

    async def begin(self, entity: str, token: str, *, without: bytes = b"", alone: bool = False) -> Turn:
        """Ask for a fresh entry, or for the lease of a load; asking again with the same token is harmless.

        Args:
            entity: whose entry.
            token: of the load.
            without: an entry that could not be read, to be deleted if it is still there.
            alone: load without the lease, whoever has it.
        """
        bad = hashlib.sha1(without, usedforsecurity=False).hexdigest()
        args: list[str | int] = [token, self._lease_ms, 2 * self._lease_ms, bad, int(alone)]
        entry, generation, wait = await self.ask(
            lambda: _BEGIN(self._client, keys=self.keys(entity), args=args)
        )
        return Turn(entry or None, generation, max(1, wait) / 1000)

    async def fill(self, entity: str, token: str, generation: bytes, entry: bytes, ttl: float) -> bool:
        """Give the lease back, and keep `entry` for `ttl` seconds unless it was invalidated since `begin`.

        An empty entry keeps nothing. Returns whether the generation was still the same.
        """
        args: list[str | bytes | int] = [token, generation, entry, max(1, round(ttl * 1000))]
        return bool(await self.ask(lambda: _FILL(self._client, keys=self.keys(entity), args=args)))

    async def release(self, entity: str, token: str) -> tuple[bytes, float]:
        """Give the lease back after a load that failed; return the entry still there and its seconds left."""
        entry, left = await self.ask(lambda: _RELEASE(self._client, keys=self.keys(entity), args=[token]))
        return entry, left / 1000

    async def delete(self, entities: Collection[str]) -> None:
        """Delete the entries of `entities`, and outdate every load of theirs that is under way.

        What could not be deleted is owed: it is tried again before Redis is asked anything else.

        Raises:
            NoCache: Redis did not say that it is done.
        """
        try:
            # Also while Redis is left alone: an entry that stays costs more than a time-out.
            await self._ask(lambda: self._delete(entities))
        except BaseException as error:
            now = self._clock.monotonic()
            self._owed = {entity: gone for entity, gone in self._owed.items() if gone > now}
            for entity in entities:
                self._owed[entity] = now + self._longest
                name = type(error.__cause__ or error).__name__
                emit(self._on_event, InvalidationOwed(self._name, entity, self._longest, name))
            raise

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
        if self._failures:
            now = self._clock.monotonic()
            if now < self._ask_again_at:
                raise NoCache
            self._ask_again_at = now + self._back_off  # one caller finds out for all
        return await self._ask(lambda: self._settled(request)) if self._owed else await self._ask(request)

    async def _ask(self, request: Callable[[], Awaitable[T]]) -> T:
        failures = self._failures
        try:
            async with self._clock.timeout(self._timeout):
                answer = await request()
        except ResponseError as error:
            self._answered()
            raise NoCache from error
        except (RedisError, OSError, TimeoutError) as error:
            if failures == self._failures:  # of many that fail together, one is counted
                self._lost(error)
            raise NoCache from error
        if self._failures:
            self._answered()
        return answer

    async def _settled(self, request: Callable[[], Awaitable[T]]) -> T:
        await self._delete(list(self._owed))
        return await request()

    def _lost(self, error: Exception) -> None:
        # Short at first: a hiccup costs little, and a long outage one time-out in each `back_off`.
        pause = self._back_off / 2 ** max(0, _DOUBLINGS - self._failures)
        self._ask_again_at = self._clock.monotonic() + pause
        self._failures += 1
        if self._failures == 1:
            emit(self._on_event, CacheLost(self._name, type(error).__name__))

    # --8<-- [end:ask]

    def _answered(self) -> None:
        if self._failures:
            self._failures = 0
            emit(self._on_event, CacheRegained(self._name))


_DOUBLINGS = 5


def new_token() -> str:
    """Return a token that no other load has."""
    return uuid.uuid4().hex


_READ = Script(
    "cache_aside.read",
    """
-- KEYS[1] string value
local value = redis.call('GET', KEYS[1])
if not value then return {'', 0} end
return {value, redis.call('PTTL', KEYS[1])}
""",
)

# --8<-- [start:scripts]
_BEGIN = Script(
    "cache_aside.begin",
    """
-- KEYS[1] string value, KEYS[2] string generation, KEYS[3] string lock
-- ARGV[1] token, ARGV[2] lease ms, ARGV[3] generation ms, ARGV[4] sha1 of what cannot be read, ARGV[5] alone
-- returns {fresh entry, generation, ms to wait}
local value = redis.call('GET', KEYS[1])
if value then
  local stale = tonumber(string.match(value, '^1 (%d+) [+-]\\n'))
  if not stale or redis.sha1hex(value) == ARGV[4] then
    redis.call('DEL', KEYS[1])
  elseif stale == 0 or redis.call('PTTL', KEYS[1]) > stale then
    return {value, '', 0}
  end
end
local holder = redis.call('GET', KEYS[3])
if ARGV[5] ~= '1' then
  if holder and holder ~= ARGV[1] then return {'', '', redis.call('PTTL', KEYS[3])} end
  redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
end
local generation = redis.call('GET', KEYS[2]) or ARGV[1]
redis.call('SET', KEYS[2], generation, 'PX', ARGV[3])
return {'', generation, 0}
""",
)

_FILL = Script(
    "cache_aside.fill",
    """
-- KEYS[1] string value, KEYS[2] string generation, KEYS[3] string lock
-- ARGV[1] token, ARGV[2] generation, ARGV[3] entry or nothing, ARGV[4] ms to live
if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
if redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
if ARGV[3] ~= '' then redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4]) end
return 1
""",
)
# --8<-- [end:scripts]

_RELEASE = Script(
    "cache_aside.release",
    """
-- KEYS[1] string value, KEYS[2] string generation, KEYS[3] string lock; ARGV[1] token
if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
local value = redis.call('GET', KEYS[1])
if not value then return {'', 0} end
return {value, redis.call('PTTL', KEYS[1])}
""",
)
