"""Takes changes from the queues to the source, in batches, shard by shard."""

from __future__ import annotations

import asyncio
import random
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from redis.exceptions import RedisError

from patterns.cache.write_behind.change import Change
from patterns.cache.write_behind.events import (
    BatchFlushed,
    ChangeFailed,
    ChangeParked,
    ChangeRefused,
    Drained,
    RedisLost,
    RedisRegained,
    ShardTaken,
    SourceFailed,
)
from patterns.cache.write_behind.shard import Shard, Taken, shards_of
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.entry import JSON, Codec
from patterns.events import Event, Listener, emit, ignore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from patterns.cache.write_behind.policy import Policy
    from patterns.keyspace import Client

__all__ = ["Flusher", "Store"]


class Store(Protocol):
    """Writes a batch to the source."""

    async def __call__(self, batch: Sequence[Change], /) -> Mapping[str, int]:
        """Write each change whose version is higher than that of its row, all of them or none.

        A batch has each key once, and may come again. Returns, for each key whose row has a higher version
        than the change, that version; for the others nothing.
        """
        ...


@dataclass(eq=False)
class _Lane:
    """What a flusher remembers of one shard between two calls of the store."""

    shard: Shard
    size: int  # of the next batch: halved while the source is away, as it may be the batch that is too much
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    leased_until: float = 0.0
    lag: float = 0.0
    outages: int = 0  # of the source, in a row
    rests_until: float = 0.0
    held: dict[int, float] = field(default_factory=dict)  # by version: not to be tried before

    def ready(self, taken: Sequence[Taken], now: float) -> list[Taken]:
        """Return what may be stored together now: each key once, none before an earlier one of its key."""
        self.held = {version: until for version, until in self.held.items() if until > now}
        keys: set[str] = set()
        ready: list[Taken] = []
        for each in taken:
            if each.key not in keys and each.version not in self.held and len(ready) < self.size:
                ready.append(each)
            keys.add(each.key)
        return ready


class _Away(Exception):
    """The source could not be reached."""


class Flusher:
    """Brings what was queued to the source; in the writer's process, or in another, or in several.

        async with Flusher("articles", redis, policy, table.store, app="shop") as flusher:
            await stop.wait()
        print("not in the source yet:", flusher.left)

    Args:
        name: the same as the writers'.
        client: from `patterns.keyspace`.
        policy: the same as the writers'.
        store: writes a batch to the source; see `Store`.
        app: first part of the keys.
        codec: the same as the writers'.
        clock: where durations are read.
        rng: spreads pauses.
        on_event: hears BatchFlushed, SourceFailed, ChangeFailed, ChangeParked, ChangeRefused, ShardTaken,
            Drained, RedisLost and RedisRegained.

    Attributes:
        left: after it has closed, the keys that still wait in Redis; None if Redis did not say.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        policy: Policy,
        store: Store,
        *,
        app: str,
        codec: Codec = JSON,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        self.name = name
        self.policy = policy
        self.left: tuple[str, ...] | None = None
        self._store = store
        self._clock = clock
        self._rng = rng or random.Random()
        self._on_event = on_event
        shards = shards_of(name, client, policy, app=app, codec=codec)
        self._lanes = [_Lane(shard, policy.batch) for shard in shards]
        self._tasks: list[asyncio.Task[None]] = []
        self._redis_failures = 0

    async def __aenter__(self) -> Self:
        if self._tasks:
            raise RuntimeError("this Flusher is running already")
        self._tasks = [asyncio.create_task(self._serve(lane)) for lane in self._lanes]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --8<-- [start:close]
    async def close(self) -> tuple[str, ...] | None:
        """Store what still waits, for `drain` seconds at most; return the keys that are left in Redis.

        They are not lost: the next flusher goes on with them. None: Redis did not say.
        """
        try:
            with suppress(TimeoutError):
                async with self._clock.timeout(self.policy.drain):
                    await self._stop_serving()
                    await self._drain()
        finally:
            for task in self._tasks:
                task.cancel()
            results = await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tasks = []
            await self._release()
        try:
            waiting = [await lane.shard.waiting() for lane in self._lanes]
            self.left = tuple(key for keys in waiting for key in keys)
        except (RedisError, OSError):
            self.left = None
        self._tell(Drained(self.name, None if self.left is None else len(self.left)))
        for result in results:
            if isinstance(result, Exception):  # a defect: what the store and Redis raise is dealt with
                raise result
        return self.left

    # --8<-- [end:close]

    async def flush(self) -> int:
        """Store what waits now, due or not; return how many changes were dealt with.

        For tests, scripts, and a change that somebody waits for. What fails, or is another flusher's, stays.

        Raises:
            RedisError: the queues cannot be reached.
        """
        total = 0
        try:
            for lane in self._lanes:
                async with lane.turn:
                    lane.rests_until, lane.held = 0.0, {}
                    left = (await lane.shard.stats()).waiting  # not what is written meanwhile
                    while left > 0 and (done := (await self._pass(lane, hurry=True))[0]):
                        total += done
                        left -= done
        finally:
            if not self._tasks:
                await self._release()
        return total

    # --8<-- [start:serve]
    async def _serve(self, lane: _Lane) -> None:
        while True:
            async with lane.turn:
                wait = await self._pass_or_wait(lane, hurry=False)
            await self._clock.sleep(wait)

    async def _pass(self, lane: _Lane, *, hurry: bool) -> tuple[int, float]:
        """Take what is due and store it; return how many were dealt with, and seconds until the next look."""
        policy, now = self.policy, self._clock.monotonic()
        resting = lane.rests_until > now
        most = 0 if resting else lane.size + min(len(lane.held), policy.batch)
        turn = await lane.shard.take(lane.holder, delay=0 if hurry else policy.delay, most=most)
        self._answered()
        if not turn.ours:
            return 0, min(turn.wait or 0, max(policy.poll, policy.lease / 10))
        lane.leased_until, lane.lag = now + policy.lease, turn.lag
        if turn.new:
            self._tell(ShardTaken(self.name, lane.shard.number))
        soon = min(policy.poll, policy.lease / 3)
        if resting:
            return 0, min(lane.rests_until - now, policy.lease / 3)
        ready = lane.ready(turn.taken, now)
        try:
            stored = await self._flush(lane, ready)
        except _Away:
            return 0, min(lane.rests_until - self._clock.monotonic(), policy.lease / 3)
        if ready:
            return stored, 0.0
        if turn.taken:  # all of them held back
            return 0, min(*lane.held.values(), now + soon) - now
        return 0, soon if turn.wait is None else min(turn.wait, soon)

    # --8<-- [end:serve]

    # --8<-- [start:flush]
    async def _flush(self, lane: _Lane, taken: Sequence[Taken]) -> int:
        """Store changes together; where the source refuses, in halves: only the culprit is counted."""
        if not taken:
            return 0
        began = self._clock.monotonic()
        patience = min(self.policy.store_timeout, lane.leased_until - began)
        if patience <= 0:
            return 0  # another flusher may be at it
        batch = [each.change for each in taken if isinstance(each.change, Change)]
        if len(batch) < len(taken) and len(taken) > 1:
            return await self._halves(lane, taken)
        if not batch:
            return await self._failed(lane, taken[0], str(taken[0].change), most=1)
        try:
            async with self._clock.timeout(patience):
                newer = dict(await self._store(batch) or {})
        except asyncio.CancelledError as error:
            if _being_cancelled():
                raise
            raise self._away(lane, taken, error) from error  # the store cancelled itself
        except Exception as error:
            if _is(error, self.policy.outages):
                raise self._away(lane, taken, error) from error
            if len(taken) > 1:
                return await self._halves(lane, taken)
            return await self._failed(lane, taken[0], type(error).__name__)
        lane.outages, lane.size = 0, min(self.policy.batch, lane.size * 2)
        versions = [(each, newer.get(each.key, 0)) for each in taken]
        parked = await lane.shard.settle(versions)
        if self._on_event is not ignore:
            self._flushed(lane, versions, parked, self._clock.monotonic() - began)
        return len(taken)

    # --8<-- [end:flush]

    async def _halves(self, lane: _Lane, taken: Sequence[Taken]) -> int:
        half = len(taken) // 2
        return await self._flush(lane, taken[:half]) + await self._flush(lane, taken[half:])

    def _away(self, lane: _Lane, taken: Sequence[Taken], error: BaseException) -> _Away:
        """Leave the source alone for a while; nothing is counted against the changes."""
        lane.outages += 1
        lane.size = max(1, len(taken) // 2)
        pause = self._pause(lane.outages)
        lane.rests_until = self._clock.monotonic() + pause
        if len(taken) == 1:  # it may be this one after all: let another go first the next time
            lane.held[taken[0].version] = lane.rests_until + pause
        failed = SourceFailed(self.name, lane.shard.number, len(taken), type(error).__name__, pause)
        self._tell(failed)
        return _Away()

    async def _failed(self, lane: _Lane, one: Taken, why: str, *, most: int | None = None) -> int:
        """Count a failure; return 1 where the change is parked, for then it is dealt with."""
        attempts, parked = await lane.shard.fail(
            lane.holder, one.version, most or self.policy.max_attempts, why
        )
        lane.held[one.version] = self._clock.monotonic() + self._pause(attempts)
        if attempts:
            kind = ChangeParked if parked else ChangeFailed
            self._tell(kind(self.name, one.key, one.version, attempts, why))
        return int(parked)

    def _pause(self, failures: int) -> float:
        longest = self.policy.max_retry_delay
        pause = self.policy.retry_delay * 2.0 ** min(max(0, failures - 1), 60)
        return min(longest, pause) * self._rng.uniform(0.5, 1)

    def _flushed(
        self, lane: _Lane, versions: Sequence[tuple[Taken, int]], parked: set[int], seconds: float
    ) -> None:
        self._tell(BatchFlushed(self.name, lane.shard.number, len(versions), seconds, lane.lag))
        for each, newer in versions:
            if newer:
                event = ChangeRefused(self.name, each.key, each.version, newer, each.version in parked)
                self._tell(event)

    async def _pass_or_wait(self, lane: _Lane, *, hurry: bool) -> float:
        try:
            return (await self._pass(lane, hurry=hurry))[1]
        except (RedisError, OSError) as error:
            self._redis_failures += 1
            if self._redis_failures == 1:
                self._tell(RedisLost(self.name, type(error).__name__))
            return min(self._pause(self._redis_failures), self.policy.lease / 10)

    def _answered(self) -> None:
        if self._redis_failures:
            self._redis_failures = 0
            self._tell(RedisRegained(self.name))

    async def _stop_serving(self) -> None:
        for lane, task in zip(self._lanes, self._tasks, strict=False):
            async with lane.turn:  # the call of the store that is under way may end
                task.cancel()

    async def _drain(self) -> None:
        await asyncio.gather(*[self._drained(lane) for lane in self._lanes])

    async def _drained(self, lane: _Lane) -> None:
        while True:
            async with lane.turn:
                wait = await self._pass_or_wait(lane, hurry=True)
                with suppress(RedisError, OSError):
                    if not (await lane.shard.stats()).waiting:
                        return
            await self._clock.sleep(wait)

    async def _release(self) -> None:
        for lane in self._lanes:
            with suppress(RedisError, OSError):
                await lane.shard.release(lane.holder)

    def _tell(self, event: Event) -> None:
        emit(self._on_event, event)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is(error: BaseException, kinds: tuple[type[Exception], ...]) -> bool:
    """Say whether an error is of one of the kinds; a group is, if all of its errors are."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is(each, kinds) for each in error.exceptions)
    return isinstance(error, kinds)
