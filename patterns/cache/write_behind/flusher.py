"""Takes changes from the queues to the source, in batches, shard by shard."""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import suppress
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
from patterns.cache.write_behind.lane import Away, Held, Lane, being_cancelled, is_outage, versions_of
from patterns.cache.write_behind.shards import Shards
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.entry import JSON, Codec
from patterns.events import Event, Listener, emit, ignore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from patterns.cache.write_behind.policy import Policy
    from patterns.cache.write_behind.shard import Taken
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
        self._shards = Shards(name, client, policy, app=app, codec=codec)
        self._lanes = [Lane(shard, policy.batch) for shard in self._shards]
        self._tasks: list[asyncio.Task[None]] = []
        self._redis_failures = 0

    async def __aenter__(self) -> Self:
        if self._tasks:
            raise RuntimeError("this Flusher is running already")
        with suppress(RedisError, OSError):  # where Redis is away, it is asked later
            await self._shards.agree(claim=True)
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
        """Store what waits now, due or not, each once; return how many changes were stored or parked.

        For tests, scripts, and a change that somebody waits for. What fails, or is another flusher's, stays.

        Raises:
            RedisError: the queues cannot be reached.
            OtherShards: the policy has another number of them.
        """
        before = sum(lane.done for lane in self._lanes)
        try:
            for lane in self._lanes:
                async with lane.turn:
                    await self._flush_once(lane)
        finally:
            if not self._tasks:
                await self._release()
        return sum(lane.done for lane in self._lanes) - before

    async def _flush_once(self, lane: Lane) -> None:
        lane.rests_until, lane.held, lane.once = 0.0, {}, True
        try:
            left = (await lane.shard.stats()).waiting  # not what is written meanwhile
            while left > 0 and (tried := (await self._pass(lane, hurry=True))[0]):
                left -= tried
        finally:
            lane.once = False

    # --8<-- [start:serve]
    async def _serve(self, lane: Lane) -> None:
        while True:
            async with lane.turn:
                wait = await self._pass_or_wait(lane, hurry=False)
            await self._clock.sleep(wait)

    async def _pass(self, lane: Lane, *, hurry: bool) -> tuple[int, float]:
        """Take what is due and store it; return how many were tried, and seconds until the next look."""
        await self._shards.agree(claim=True)
        policy, now = self.policy, self._clock.monotonic()
        resting = lane.rests_until > now
        delay, most = 0 if hurry else policy.delay, 0 if resting else lane.size
        turn = await lane.shard.take(lane.holder, delay=delay, most=most, held=lane.held_back(now))
        self._answered()
        if not turn.ours:
            return 0, min(turn.wait or 0, max(policy.poll, policy.lease / 10))
        lane.leased_until, lane.lag = now + policy.lease, turn.lag
        if turn.new:
            self._tell(ShardTaken(self.name, lane.shard.number))
        if resting:
            return 0, min(lane.rests_until - now, policy.lease / 3)
        ready = lane.ready(turn)
        try:
            await self._flush(lane, ready)
        except Away:
            return 0, min(lane.rests_until - self._clock.monotonic(), policy.lease / 3)
        if ready:
            return len(ready), 0.0
        due = [held.until - now for held in lane.held.values()] or [turn.wait or math.inf]
        return 0, min(policy.poll, policy.lease / 3, *due)

    # --8<-- [end:serve]

    # --8<-- [start:flush]
    async def _flush(self, lane: Lane, taken: Sequence[Taken]) -> None:
        """Store changes together; where the source refuses, in halves: only the culprit is counted."""
        if not taken:
            return
        began = self._clock.monotonic()
        patience = min(self.policy.store_timeout, lane.leased_until - began)
        if patience <= 0:
            return  # another flusher may be at it
        batch = [each.change for each in taken if isinstance(each.change, Change)]
        if len(batch) < len(taken) and len(taken) > 1:
            await self._halves(lane, taken)
            return
        if not batch:
            await self._failed(lane, taken[0], str(taken[0].change), most=1)
            return
        try:
            async with self._clock.timeout(patience):
                newer = versions_of(await self._store(batch))
        except asyncio.CancelledError as error:
            if being_cancelled():
                raise
            raise self._away(lane, taken, error) from error  # the store cancelled itself
        except Exception as error:
            if is_outage(error, self.policy.outages):
                raise self._away(lane, taken, error) from error
            if len(taken) > 1:
                await self._halves(lane, taken)
            else:
                await self._failed(lane, taken[0], type(error).__name__)
            return
        lane.outages, lane.size = 0, min(self.policy.batch, lane.size * 2)
        versions = [(each, newer.get(each.key, 0)) for each in taken]
        parked = await lane.shard.settle(versions)
        lane.done += len(taken)
        if self._on_event is not ignore:
            self._flushed(lane, versions, parked, self._clock.monotonic() - began)

    # --8<-- [end:flush]

    async def _halves(self, lane: Lane, taken: Sequence[Taken]) -> None:
        half = len(taken) // 2
        await self._flush(lane, taken[:half])
        await self._flush(lane, taken[half:])

    def _away(self, lane: Lane, taken: Sequence[Taken], error: BaseException) -> Away:
        """Leave the source alone for a while; nothing is counted against the changes."""
        lane.outages += 1
        lane.size = max(1, len(taken) // 2)
        pause = self._pause(lane.outages)
        lane.rests_until = self._clock.monotonic() + pause
        if len(taken) == 1:  # it may be this one after all: let another go first the next time
            lane.held[taken[0].version] = Held(lane.rests_until + pause, taken[0].key)
        failed = SourceFailed(self.name, lane.shard.number, len(taken), type(error).__name__, pause)
        self._tell(failed)
        return Away()

    async def _failed(self, lane: Lane, one: Taken, why: str, *, most: int | None = None) -> None:
        """Count a failure of one change, and let it wait."""
        attempts, parked = await lane.shard.fail(
            lane.holder, one.version, most or self.policy.max_attempts, why
        )
        lane.held[one.version] = Held(self._clock.monotonic() + self._pause(attempts), one.key)
        lane.done += parked
        if attempts:
            kind = ChangeParked if parked else ChangeFailed
            self._tell(kind(self.name, one.key, one.version, attempts, why))

    def _pause(self, failures: int) -> float:
        longest = self.policy.max_retry_delay
        pause = self.policy.retry_delay * 2.0 ** min(max(0, failures - 1), 60)
        return min(longest, pause) * self._rng.uniform(0.5, 1)

    def _flushed(
        self, lane: Lane, versions: Sequence[tuple[Taken, int]], parked: set[int], seconds: float
    ) -> None:
        self._tell(BatchFlushed(self.name, lane.shard.number, len(versions), seconds, lane.lag))
        for each, newer in versions:
            if newer:
                event = ChangeRefused(self.name, each.key, each.version, newer, each.version in parked)
                self._tell(event)

    async def _pass_or_wait(self, lane: Lane, *, hurry: bool) -> float:
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
        drained = [self._drained(lane) for lane in self._lanes]
        for result in await asyncio.gather(*drained, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _drained(self, lane: Lane) -> None:
        end: float = math.inf  # what is written from now on is the next flusher's
        while lane.done < end:
            async with lane.turn:
                with suppress(RedisError, OSError):
                    waiting = (await lane.shard.stats()).waiting
                    end = min(end, lane.done + waiting)
                    if not waiting:
                        return
                wait = await self._pass_or_wait(lane, hurry=True)
            await self._clock.sleep(wait)

    async def _release(self) -> None:
        for lane in self._lanes:
            with suppress(RedisError, OSError):
                await lane.shard.release(lane.holder)

    def _tell(self, event: Event) -> None:
        emit(self._on_event, event)
