"""The lease in Redis: one hash that expires, and the counter its fencing tokens come from.

Redis keys, both in one slot:

- `<app>:{leader_election:<name>}:lease`  hash: holder, token; expires with the lease
- `<app>:{leader_election:<name>}:fence`  string: the last token given out; never expires

Any other store will do that keeps `LeaseStore`, such as a Kubernetes Lease or an etcd key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from redis.asyncio import RedisCluster
from redis.exceptions import MovedError, RedisError

from patterns.keyspace import Client, Keyspace, Script

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Granted", "LeaseStore", "NotReplicated", "RedisLease", "Refused"]


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease is yours, with this fencing token."""

    token: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The lease is another's, for so many more seconds if it is not renewed; None where it has no end."""

    holder: str
    remaining: float | None


class LeaseStore(Protocol):
    """Where one election keeps its lease. Every method is atomic, and fails with OSError or RedisError.

    Attributes:
        name: the election.
        wait_seconds: how long a request may take by design; less than the retry period.
    """

    name: str
    wait_seconds: float

    async def acquire(self, holder: str, milliseconds: int, floor: int) -> Granted | Refused:
        """Take a free lease, with a token above `floor` and all before; asked again, only say that."""
        ...

    async def renew(self, holder: str, milliseconds: int) -> bool:
        """Let the lease last `milliseconds` from now if it is `holder`'s; say whether it is."""
        ...

    async def release(self, holder: str) -> bool:
        """Free the lease if it is `holder`'s; say whether it was."""
        ...


class NotReplicated(RedisError):
    """Too few replicas have the lease: a failover might forget it.

    Attributes:
        wanted: replicas asked for.
        found: replicas that have it.
    """

    def __init__(self, wanted: int, found: int) -> None:
        super().__init__(f"{found} replicas have the lease, {wanted} were asked for")
        self.wanted = wanted
        self.found = found

    def __reduce__(self) -> tuple[type[NotReplicated], tuple[int, int]]:
        return type(self), (self.wanted, self.found)


class RedisLease:
    """The lease of one election, in Redis.

    Args:
        name: the election; the same in every candidate.
        client: from `patterns.keyspace`.
        app: first part of the keys.
        wait_replicas: replicas that must have the lease before it counts as acquired or renewed (WAIT).
        wait_seconds: how long to wait for them; less than the retry period.
    """

    def __init__(
        self, name: str, client: Client, *, app: str, wait_replicas: int = 0, wait_seconds: float = 0.2
    ) -> None:
        replicas: object = wait_replicas
        if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
            raise ValueError(f"wait_replicas must be a whole number >= 0, got {replicas!r}")
        if not 0.001 <= wait_seconds <= 3600:
            raise ValueError(f"wait_seconds must be 0.001 to 3600, got {wait_seconds!r}")
        self.name = name
        self._client = client
        keys = Keyspace(app, "leader_election")
        self._keys = [keys.key(name, role) for role in ("lease", "fence")]
        self._wait_replicas = wait_replicas
        self.wait_seconds = wait_seconds if wait_replicas else 0.0

    async def acquire(self, holder: str, milliseconds: int, floor: int = 0) -> Granted | Refused:
        """Take the lease if it is free, or say that it is `holder`'s already; one round trip.

        Raises:
            NotReplicated: too few replicas have it; it has been given back.
            ValueError: a floor so high that the script could not count on from it.
        """
        if not floor <= _HIGHEST_FLOOR:
            raise ValueError(f"floor must be <= {_HIGHEST_FLOOR}, got {floor!r}")
        try:
            reply = await self._run(_ACQUIRE, self._keys, holder, milliseconds, floor)
        except NotReplicated:
            await self.release(holder)
            raise
        if reply[0]:
            return Granted(int(reply[1]))
        remaining = int(reply[2])
        return Refused(reply[1].decode(), remaining / 1000 if remaining >= 0 else None)

    async def renew(self, holder: str, milliseconds: int) -> bool:
        """Hold the lease longer if it is `holder`'s; one round trip."""
        return bool(await self._run(_RENEW, self._keys[:1], holder, milliseconds))

    async def release(self, holder: str) -> bool:
        """Free the lease if it is `holder`'s; one round trip."""
        return bool(await _RELEASE(self._client, keys=self._keys[:1], args=[holder]))

    async def _run(self, script: Script, keys: Sequence[str], *args: str | int) -> Any:
        if not self._wait_replicas:
            return await script(self._client, keys=keys, args=args)
        # WAIT speaks of the writes of its own connection, so both go out on one.
        options: dict[str, Any] = {}
        if isinstance(self._client, RedisCluster):
            await self._client.initialize()
            options["target_nodes"] = self._client.get_node_from_key(keys[0])
        async with self._client.pipeline(transaction=False) as both:
            both.execute_command("EVAL", script.source, len(keys), *keys, *args, **options)
            both.execute_command("WAIT", self._wait_replicas, round(self.wait_seconds * 1000), **options)
            try:
                reply, found = await self._executed(both)
            except MovedError:
                # The slot has moved, and WAIT was asked of the wrong node: learn the way for the next try.
                await script(self._client, keys=keys, args=args)
                raise NotReplicated(self._wait_replicas, 0) from None
        refused = not (reply[0] if isinstance(reply, list) else reply)
        if not refused and found < self._wait_replicas:
            raise NotReplicated(self._wait_replicas, found)
        return reply

    async def _executed(self, pipeline: Any) -> list[Any]:
        follow = {"allow_redirections": False} if isinstance(self._client, RedisCluster) else {}
        replies: list[Any] = await pipeline.execute(**follow)
        return replies


_HIGHEST_FLOOR = 2**52  # Lua counts in doubles, exact up to 2**53

# --8<-- [start:scripts]
_ACQUIRE = Script(
    "leader_election.acquire",
    """
-- KEYS[1] hash lease, KEYS[2] string fence; ARGV[1] holder, ARGV[2] milliseconds, ARGV[3] floor
local lease = redis.call('HMGET', KEYS[1], 'holder', 'token')
if lease[1] and lease[1] ~= ARGV[1] then
  return {0, lease[1], redis.call('PTTL', KEYS[1])}
end
local token, floor = tonumber(lease[2] or 0), tonumber(ARGV[3])
if not lease[1] or token <= floor then
  token = math.max(tonumber(redis.call('GET', KEYS[2]) or 0), floor) + 1
  redis.call('SET', KEYS[2], string.format('%.0f', token))
end
-- Written again also where it is the same: WAIT counts who has the writes of its own connection.
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'token', string.format('%.0f', token))
-- Asked again, it is held no longer: who hears no reply must not keep it for ever.
if not lease[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return {1, token}
""",
)

_RENEW = Script(
    "leader_election.renew",
    """
-- KEYS[1] hash lease; ARGV[1] holder, ARGV[2] milliseconds
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
""",
)

_RELEASE = Script(
    "leader_election.release",
    """
-- KEYS[1] hash lease; ARGV[1] holder
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
""",
)
# --8<-- [end:scripts]
