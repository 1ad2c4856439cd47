"""A level that remembers in Redis what the primary last said, for every process and across restarts.

Redis key, one per thing that is kept:

- `<app>:{fallback:<name>/<entity>}:stale`, a string: `1 <milliseconds>`, a line feed, JSON. The number is
  when the answer was asked for, by the server's clock. It expires `ttl` after that. `0 <milliseconds>` is
  what `forget` leaves, so that an answer which was under way does not bring back what was deleted.

It is worth nothing against an outage of the same Redis: give the chain a LastGood as well, or instead, where
Redis is what fails. A failover may lose the latest copies or bring older ones back; each keeps its own age.
A step of the server's clock makes copies look older or younger by as much.

Source: RFC 5861, stale-if-error.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from redis.exceptions import RedisError

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.keyspace import Client, Keyspace, Script
from patterns.resiliency.fallback.answer import NoCopy, Stale
from patterns.resiliency.fallback.policy import check_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["JSON", "Codec", "Json", "SharedLastGood"]

T = TypeVar("T")


class Codec(Protocol):
    """Turns values into bytes and back."""

    def encode(self, value: Any) -> bytes:
        """Return `value` as bytes, or raise any Exception: then it is not kept."""
        ...

    def decode(self, data: bytes) -> Any:
        """Return the value, or raise any Exception: then there is no copy."""
        ...


class Json:
    """JSON in UTF-8, without NaN. A tuple comes back as a list: `same_contract` finds that."""

    def encode(self, value: Any) -> bytes:
        """Return `value` as JSON."""
        return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()

    def decode(self, data: bytes) -> Any:
        """Return what the JSON says."""
        return json.loads(data)


JSON = Json()

# --8<-- [start:scripts]
KEEP = Script(
    "fallback.keep",
    """
-- KEYS[1] string stale
-- ARGV[1] kind: 1 copy, 0 forgotten; ARGV[2] age ms, ARGV[3] ttl ms, ARGV[4] value
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local asked = now - ARGV[2]
local old = redis.pcall('GET', KEYS[1])
if type(old) == 'string' then
  local kind, at = string.match(old, '^([01]) (%d+)\\n')
  at = tonumber(at)
  if at and at <= now and (at > asked or (at == asked and kind == '0')) then return 0 end
end
redis.call('SET', KEYS[1], string.format('%s %.0f\\n', ARGV[1], asked) .. ARGV[4], 'PX', ARGV[3])
return 1
""",
)

READ = Script(
    "fallback.read",
    """
-- KEYS[1] string stale
local value = redis.call('GET', KEYS[1])
local time = redis.call('TIME')
return {value or '', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))}
""",
)
# --8<-- [end:scripts]

_HEAD = re.compile(rb"1 (\d{1,15})\n")
_REMEMBERED = 10_000  # entities whose last feeding this process knows


class SharedLastGood(Generic[T]):
    """The primary's last answer for each entity, in Redis; the `fn` of a Level.

    The fallback feeds it with each answer of the primary, and with no other. Feeding costs the call that
    feeds a round trip, at most once per `refresh` for an entity in this process; it never fails a call.

    Args:
        name: what is kept; together with the entity it names the key.
        client: from `patterns.keyspace`.
        app: the first part of the key.
        key: which copy belongs to a call: a function of its arguments, returning the entity's name, a text.
            What a caller may see must be in it (tenant, rights).
        ttl: seconds that a copy lives after it was true.
        refresh: seconds in which this process writes an entity no more than once; 0 writes each answer.
        timeout: seconds that Redis may take.
        back_off: seconds in which nothing is written after Redis has failed.
        codec: turns values into bytes and back.
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
        self._fed: OrderedDict[str, float] = (
            OrderedDict()
        )  # key -> when the last answer that was written was asked
        self._quiet_until = -math.inf

    async def __call__(self, *args: Any, **kwargs: Any) -> Stale[T]:
        """Return the copy and its age.

        Raises:
            NoCopy: there is none, it cannot be read, or Redis did not answer; the cause says why.
        """
        key = self._key_of(args, kwargs)
        began = self._now()
        try:
            async with self._clock.timeout(self._timeout):
                entry, now = await READ(self.client, keys=[key])
        except (RedisError, TimeoutError) as error:
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
        if now < self._quiet_until or age >= self.ttl or (last is not None and asked - last < self._refresh):
            return
        data = self._codec.encode(value)
        self._fed[key] = asked
        self._fed.move_to_end(key)
        if len(self._fed) > _REMEMBERED:
            self._fed.popitem(last=False)
        written = False
        try:
            async with self._clock.timeout(self._timeout):
                await self._set(key, 1, age, data)
            written = True
        except (RedisError, TimeoutError):
            self._quiet_until = self._now() + self._back_off
            raise
        finally:
            if not written and self._fed.get(key) == asked:
                del self._fed[key]

    async def forget(self, *args: Any, **kwargs: Any) -> None:
        """Drop the copy of a call with these arguments: what was deleted must not come back in an outage.

        Raises:
            RedisError: it may still be there, for `ttl` at most.
        """
        key = self._key_of(args, kwargs)
        self._fed.pop(key, None)
        await self._set(key, 0, 0.0, b"")

    async def _set(self, key: str, kind: int, age: float, data: bytes) -> None:
        # Rounded up: an answer that began before a `forget` is never taken for one that began after it.
        ages = [math.ceil(age * 1000), max(1, round((self.ttl - age) * 1000))]
        await KEEP(self.client, keys=[key], args=[kind, *ages, data])

    def _key_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return self._keys.key(f"{self.name}/{self._key(*args, **kwargs)}", "stale")
