"""A level that remembers in Redis what the primary last said, for every process and across restarts.

Redis key, one per thing that is kept:

- `<app>:{fallback:<name>/<entity>}:stale`, a string: `1 <milliseconds>`, a line feed, JSON. The number is
  when the answer was asked for, by the server's clock. It expires `ttl` after that. `0 <milliseconds>` is
  what `forget` leaves, so that an answer which was under way does not bring back what was deleted.

That number is settled before the copy is sent: the server is asked for its time, and how long ago the answer
was asked for is taken off. A copy that is held up on its way, by a paused server or a full line, is thus no
younger for it. It may count as older than it is, by the way of one reply; of two calls that began closer
together than that, either may be kept.

It is worth nothing against an outage of the same Redis: give the chain a LastGood as well, or instead, where
Redis is what fails. A failover may lose the latest copies and what `forget` left, or bring older copies back;
each keeps its own age. A step of the server's clock makes copies look older or younger by as much; set back,
it also lets an answer that was under way undo a `forget`.

Source: RFC 5861, stale-if-error.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from redis.exceptions import RedisClusterException, RedisError

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.entry import JSON, Codec, Json
from patterns.keyspace import Client, Keyspace, Script
from patterns.resiliency.fallback.answer import NoCopy, Stale
from patterns.resiliency.fallback.policy import check_seconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["JSON", "Codec", "Json", "SharedLastGood"]

T = TypeVar("T")

# --8<-- [start:scripts]
NOW = Script(
    "fallback.now",
    """
-- KEYS[1] the key whose node's clock is read; rounded down
local time = redis.call('TIME')
return string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
""",
)

KEEP = Script(
    "fallback.keep",
    """
-- KEYS[1] string stale
-- ARGV[1] kind: 1 copy, 0 forgotten; ARGV[2] when it was asked for, ms, or '' for now; ARGV[3] ttl ms
-- ARGV[4] value
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local asked = math.min(tonumber(ARGV[2]) or now, now)
local left = asked + ARGV[3] - now
if left < 1 then return 0 end
local old = redis.pcall('GET', KEYS[1])
if type(old) == 'string' then
  local kind, at = string.match(old, '^([01]) (%d+)\\n')
  at = tonumber(at)
  if at and at <= now and (at > asked or (at == asked and kind == '0')) then return 0 end
end
local head = string.format('%s %.0f\\n', ARGV[1], asked)
redis.call('SET', KEYS[1], head .. ARGV[4], 'PX', string.format('%.0f', left))
return 1
""",
)

READ = Script(
    "fallback.read",
    """
-- KEYS[1] string stale; the time is rounded up
local value = redis.call('GET', KEYS[1])
local time = redis.call('TIME')
return {value or '', string.format('%.0f', time[1] * 1000 + math.ceil(time[2] / 1000))}
""",
)
# --8<-- [end:scripts]

_HEAD = re.compile(rb"1 (\d{1,15})\n")
_FAILURES = (RedisError, RedisClusterException, TimeoutError)  # the second is no RedisError
_REMEMBERED = 10_000  # entities whose last feeding this process knows


class SharedLastGood(Generic[T]):
    """The primary's last answer for each entity, in Redis; the `fn` of a Level.

    The fallback feeds it with each answer of the primary, and with no other. Feeding costs the call that
    feeds two round trips, at most once per `refresh` for an entity in this process; it never fails a call.
    After Redis has failed, one call at a time tries it until it answers: the others have no copy, at once.

    Args:
        name: what is kept; together with the entity it names the key.
        client: from `patterns.keyspace`.
        app: the first part of the key.
        key: which copy belongs to a call: a function of its arguments, returning the entity's name, a text.
            What a caller may see must be in it (tenant, rights).
        ttl: seconds that a copy lives after it was true.
        refresh: seconds in which this process writes an entity no more than once; 0 writes each answer.
        timeout: seconds that Redis may take, to read or to write.
        back_off: seconds in which nothing is written after a write has failed.
        codec: turns values into bytes and back; from JSON a tuple comes back as a list, which
            `same_contract` finds.
        clock: where durations are read.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        *,
        app: str,
        key: Callable[..., str],
        ttl: float,
        refresh: float = 1.0,
        timeout: float = 0.25,
        back_off: float = 1.0,
        codec: Codec = JSON,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not name or "/" in name:
            raise ValueError(f"name must be text without '/', not empty, got {name!r}")
        if not callable(key):
            raise ValueError(f"key must be a function of the call's arguments, got {key!r}")
        for field, seconds, least in (
            ("ttl", ttl, 0.001),
            ("refresh", refresh, 0.0),
            ("timeout", timeout, 0.001),
            ("back_off", back_off, 0.0),
        ):
            given: object = seconds
            if given is None:
                raise ValueError(f"{field} must be seconds >= {least:g}, got None")
            check_seconds(field, seconds, least=least)
        self.name, self.client, self.ttl = name, client, ttl
        self._refresh, self._timeout, self._back_off = refresh, timeout, back_off
        self._keys, self._key, self._codec = Keyspace(app, "fallback"), key, codec
        self._clock, self._now = clock, clock.monotonic
        self._fed: OrderedDict[str, float] = OrderedDict()  # key -> when what was written last was asked
        self._failing, self._visits, self._quiet_until = False, 0, -math.inf

    async def __call__(self, *args: Any, **kwargs: Any) -> Stale[T]:
        """Return the copy and its age.

        Raises:
            NoCopy: there is none, it cannot be read, or Redis did not answer; the cause says why.
        """
        key = self._key_of(args, kwargs)
        if self._failing and self._visits:
            raise NoCopy("Redis has failed, and another call is trying it")
        began = self._now()
        try:
            async with self._visit():
                entry, now = await READ(self.client, keys=[key])
        except _FAILURES as error:
            raise NoCopy(f"Redis did not answer: {type(error).__name__}") from error
        head = _HEAD.match(entry)
        if head is None:
            raise NoCopy("no copy is kept" if entry[:2] in (b"", b"0 ") else "what is kept is no copy")
        try:
            value = self._codec.decode(entry[head.end() :])
        except Exception as error:
            raise NoCopy(f"the codec raised {type(error).__name__}") from error
        return Stale(value, max(0, int(now) - int(head[1])) / 1000 + self._now() - began)

    async def keep(self, value: T, age: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the primary's answer, unless a later one is there or this entity was written just now."""
        now, key = self._now(), self._key_of(args, kwargs)
        asked, last = now - age, self._fed.get(key)
        if age >= self.ttl or (last is not None and asked - last < self._refresh):
            return
        if now < self._quiet_until or (self._failing and self._visits):
            return
        data = self._codec.encode(value)
        self._fed[key] = asked
        self._fed.move_to_end(key)
        if len(self._fed) > _REMEMBERED:
            self._fed.popitem(last=False)
        written = False
        try:
            async with self._visit():
                now_there = int(await NOW(self.client, keys=[key]))
                await self._set(key, 1, str(asked_at(now_there, self._now() - asked)), data)
            written = True
        except _FAILURES:
            self._quiet_until = self._now() + self._back_off
            raise
        finally:
            if not written and self._fed.get(key) == asked:
                del self._fed[key]

    async def forget(self, *args: Any, **kwargs: Any) -> None:
        """Drop the copy of a call with these arguments: what was deleted must not come back in an outage.

        Raises:
            RedisError: it may still be there, for `ttl` at most; it does no harm to call this again.
        """
        key = self._key_of(args, kwargs)
        self._fed.pop(key, None)
        await self._set(key, 0, "", b"")

    async def _set(self, key: str, kind: int, asked: str, data: bytes) -> None:
        await KEEP(self.client, keys=[key], args=[kind, asked, max(1, int(self.ttl * 1000)), data])

    @asynccontextmanager
    async def _visit(self) -> AsyncIterator[None]:
        """Give Redis its time, and remember how it did."""
        self._visits += 1
        try:
            async with self._clock.timeout(self._timeout):
                yield
            self._failing = False
        except _FAILURES:
            self._failing = True
            raise
        finally:
            self._visits -= 1

    def _key_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return self._keys.key(f"{self.name}/{self._key(*args, **kwargs)}", "stale")


def asked_at(now: int, seconds: float) -> int:
    """Return when something was asked for, no later than it was: `seconds` before `now`, in milliseconds.

    Rounded down: an answer that began before a `forget` is never taken for one that began after it.
    """
    return now - math.ceil(seconds * 1000)
