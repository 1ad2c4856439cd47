"""One queue of changes in Redis: what waits, what is parked, and who flushes it.

Keys of a shard, all in one slot; `scripts` says what is in them:

    <app>:{write_behind:<name>/<shard>}:changes|latest|queue|version|attempts|parked|lease

The first has `shards` too: see `shards`. None expires but the lease: what is queued is nowhere else.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.asyncio import RedisCluster
from redis.exceptions import AskError

from patterns.cache.write_behind.change import Change, Parked, Records, Stats
from patterns.cache.write_behind.errors import NotReplicated
from patterns.cache.write_behind.scripts import (
    FAIL,
    LIST,
    PEEK,
    PUT,
    RELEASE,
    RESOLVE,
    SETTLE,
    STATS,
    TAKE,
)
from patterns.entry import MISS, Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from patterns.cache.write_behind.policy import Policy
    from patterns.keyspace import Client, Keyspace, Script

__all__ = ["Shard", "Taken", "Turn"]

_MOST_BYTES = 16 << 20  # of changes in one reply: Redis does nothing else meanwhile


@dataclass(frozen=True, slots=True)
class Taken:
    """A change that is to be stored.

    Attributes:
        key: what is written; empty where not even that can be read.
        version: of the change.
        attempts: failures so far.
        change: the change, or why it cannot be read.
    """

    key: str
    version: int
    attempts: int
    change: Change | str


@dataclass(frozen=True, slots=True)
class Turn:
    """What a flusher was given.

    Attributes:
        ours: whether the shard is this flusher's; otherwise `wait` seconds of another's lease are left.
        new: whether nobody had it before.
        wait: seconds until a change is due; None if none waits.
        lag: seconds for which the oldest has waited.
        taken: the changes that are due, the oldest first; at least one, if there is one.
        held: versions that were to be left, and wait.
    """

    ours: bool
    new: bool = False
    wait: float | None = None
    lag: float = 0.0
    taken: tuple[Taken, ...] = ()
    held: tuple[int, ...] = ()


class Shard:
    """One queue.

    Args:
        number: which of the `policy.shards`.
        name: of the write-behind.
        client: from `patterns.keyspace`.
        space: where its keys are.
        policy: how much it holds.
        records: how changes are written.
    """

    def __init__(
        self, number: int, name: str, client: Client, *, space: Keyspace, policy: Policy, records: Records
    ) -> None:
        self.number = number
        self._client = client
        self._policy = policy
        self._records = records
        roles = ("changes", "latest", "queue", "version", "attempts", "parked", "lease")
        self.keys = [space.key(f"{name}/{number}", role) for role in roles]

    # --8<-- [start:put]
    async def put(self, key: str, packed: tuple[bytes, bytes]) -> tuple[int, bool] | None:
        """Queue a change; return its version and whether it replaced one, or None where there is no room.

        Raises:
            NotReplicated: it is queued, and too few replicas have it.
        """
        policy, (name, record) = self._policy, packed
        args: list[bytes | int] = [name, record, policy.capacity, int(policy.coalesce)]
        found: Any = policy.wait_replicas
        if policy.wait_replicas:
            (version, replaced), found = await self._put_and_wait(args)
        else:
            version, replaced = await self._run(PUT, args)
        if not version:
            return None
        if isinstance(found, Exception):  # it is queued, whatever became of the question
            raise NotReplicated(key, int(version), policy.wait_replicas, 0) from found
        if found < policy.wait_replicas:
            raise NotReplicated(key, int(version), policy.wait_replicas, found)
        return int(version), bool(replaced)

    # --8<-- [end:put]

    async def _put_and_wait(self, args: Sequence[bytes | int]) -> tuple[Any, Any]:
        # WAIT speaks of the writes of its own connection, so both go out on one.
        options: dict[str, Any] = {}
        follow: dict[str, Any] = {}
        if isinstance(self._client, RedisCluster):
            await self._client.initialize()
            options["target_nodes"] = self._client.get_node_from_key(self.keys[0])
            follow["allow_redirections"] = False
        milliseconds = max(1, round(self._policy.wait_seconds * 1000))
        async with self._client.pipeline(transaction=False) as both:
            both.execute_command("EVAL", PUT.source, len(self.keys), *self.keys, *args, **options)
            both.execute_command("WAIT", self._policy.wait_replicas, milliseconds, **options)
            written, found = await both.execute(raise_on_error=False, **follow)
        if isinstance(written, AskError):  # or MOVED: nothing was written, and the wrong node was asked
            return await self._run(PUT, args), 0
        if isinstance(written, Exception):
            raise written
        return written, found

    async def peek(self, key: str) -> Any:
        """Return the newest value of `key` that is not in the source yet, DELETED, or MISS if there is none.

        Raises:
            Unreadable: the codec does not know it.
        """
        record = await self._run(PEEK, [key.encode()])
        return MISS if record is None else self._records.unpack(record)[1]

    async def take(self, holder: str, *, delay: float, most: int, held: Sequence[int] = ()) -> Turn:
        """Take or renew the lease, and return what is due; `held` stays where it is."""
        policy = self._policy
        args: list[str | int] = [
            holder,
            round(policy.lease * 1000),
            round(delay * 1_000_000),
            most,
            (policy.capacity + 1) // 2,
            _MOST_BYTES,
            *held,
        ]
        ours, *rest = await self._run(TAKE, args)
        if not ours:
            return Turn(ours=False, wait=max(1, rest[0]) / 1000)
        new, due, age, taken, left = rest
        rows = zip(*[iter(taken)] * 3, strict=True)
        return Turn(
            ours=True,
            new=bool(new),
            wait=None if due < 0 else due / 1000,
            lag=age / 1e6,
            taken=tuple(
                self._taken(int(version), record, int(failures)) for version, record, failures in rows
            ),
            held=tuple(map(int, left)),
        )

    def _taken(self, version: int, record: bytes, attempts: int) -> Taken:
        key = self._records.key_of(record)
        try:
            value = self._records.unpack(record)[1]
        except Unreadable as error:
            return Taken(key, version, attempts, f"it cannot be read: {error.reason}")
        return Taken(key, version, attempts, Change(key, value, version))

    async def settle(self, stored: Iterable[tuple[Taken, int]]) -> set[int]:
        """Take changes off the queue: each with the newer version that the source has, or 0.

        Returns the versions that were parked, since Redis knew of nothing newer.
        """
        args: list[bytes | int] = []
        for each, newer in stored:
            args += [each.key.encode(), each.version, newer]
        return {int(version) for version in await self._run(SETTLE, args)}

    async def fail(self, holder: str, version: int, most: int, why: str) -> tuple[int, bool]:
        """Count a failure of a change; return how many it has had, and whether it is parked now."""
        attempts, parked = await self._run(FAIL, [holder, version, most, why])
        return attempts, bool(parked)

    async def release(self, holder: str) -> None:
        """Give the lease back if it is `holder`'s."""
        await self._run(RELEASE, [holder])

    async def stats(self) -> Stats:
        """Say how much waits, and for how long."""
        waiting, parked, age = await self._run(STATS, [])
        return Stats(waiting, parked, age / 1e6)

    async def waiting(self) -> list[str]:
        """Return the keys that wait, the oldest first."""
        rows = await self._list("queue", self._policy.capacity)
        return list(dict.fromkeys(self._records.key_of(record) for _, record, _, _ in rows))

    async def parked(self, most: int) -> list[Parked]:
        """Return what is parked, the oldest first."""
        found = []
        for version, record, attempts, why in await self._list("parked", most):
            key, value = self._records.key_of(record), None
            with suppress(Unreadable):  # it may be parked for that
                value = self._records.unpack(record)[1]
            found.append(Parked(key, value, int(version), int(attempts), why.decode(), self.number))
        return found

    async def resolve(self, how: str, changes: Iterable[Parked]) -> int:
        """Redrive or discard what is parked; return how many were."""
        args: list[str | bytes | int] = [how]
        for each in changes:
            args += [each.key.encode(), each.version]
        return int(await self._run(RESOLVE, args)) if len(args) > 1 else 0

    async def _list(self, which: str, most: int) -> list[tuple[bytes, bytes, bytes, bytes]]:
        found = await self._run(LIST, [which, most])
        return list(zip(*[iter(found)] * 4, strict=True))

    async def _run(self, script: Script, args: Sequence[str | bytes | int]) -> Any:
        return await script(self._client, keys=self.keys, args=args)
