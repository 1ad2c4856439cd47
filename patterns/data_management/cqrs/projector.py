"""Follows the log, partition by partition, and moves a read model on."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.data_management.cqrs.events import (
    FactFailed,
    FactParked,
    FactsApplied,
    PartitionStopped,
    PartitionTaken,
    ProjectionPaused,
    ProjectionResumed,
    ProjectionStalled,
)
from patterns.data_management.cqrs.facts import Checkpoint, HistoryLost, Position, Recorded
from patterns.data_management.cqrs.model import Dropped, Model, Moved, TakenOver, Unapplied, told
from patterns.data_management.cqrs.policy import OnPoison, Policy
from patterns.events import Listener, emit, ignore

if TYPE_CHECKING:
    from collections.abc import Iterable

    from patterns.data_management.cqrs.store import EventStore

__all__ = ["Projector"]


@dataclass(slots=True)
class _Held:
    """What a projector knows of a partition that it owns."""

    at: Checkpoint
    parked: set[str] = field(default_factory=set)  # aggregates
    failures: int = 0  # of the fact after `at`, in a row
    paused: bool = False


class Projector:
    """Applies the facts of a store to one read model, each once, in the order of their partition.

    Args:
        store: whose log it follows.
        model: what it moves on; the source of events is its name.
        policy: how it goes on.
        partitions: which partitions it follows; None means all. Who takes a partition has it from then on.
        clock: where it waits.
        on_event: hears PartitionTaken, FactsApplied, FactFailed, FactParked, ProjectionPaused,
            ProjectionStalled, ProjectionResumed and PartitionStopped.
    """

    def __init__(
        self,
        store: EventStore,
        model: Model,
        policy: Policy,
        *,
        partitions: Iterable[int] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        on_event: Listener = ignore,
    ) -> None:
        self._store = store
        self._model = model
        self.policy = policy
        self.partitions = sorted(set(range(store.partitions) if partitions is None else partitions))
        if not self.partitions or not set(self.partitions) <= set(range(store.partitions)):
            raise ValueError(f"partitions must be of 0 to {store.partitions - 1}, got {self.partitions!r}")
        self._clock = clock
        self._on_event = on_event
        self._owner = uuid.uuid4().hex
        self._held: dict[int, _Held] = {}

    async def take(self) -> None:
        """Become the owner of all its partitions, also of those that another has taken meanwhile."""
        self._held.clear()
        for partition in self.partitions:
            await self._take(partition)

    async def catch_up(self) -> int:
        """Apply what is in the log, and return how many facts; takes the partitions if it never had them.

        A partition that is paused is left as it is: ask `lag`.

        Raises:
            TakenOver: another projector has one of the partitions.
            Dropped: the generation was deleted.
            HistoryLost: the log has lost what the model holds.
            ConnectionError: log or model cannot be reached.
        """
        done = 0
        for partition in self.partitions:
            while (step := await self._step(partition)) is not None:
                done += step
        return done

    async def run(self) -> None:
        """Follow the log until cancelled, or until no partition is left to follow.

        Outages are waited out. A partition that another projector takes, whose model was dropped, or whose
        log has lost what the model holds, is followed no more; the others are.

        Raises:
            HistoryLost: no partition is left, and for one of them that was why.
            ExceptionGroup: something else went wrong, which waiting does not mend.
        """
        async with asyncio.TaskGroup() as tasks:
            ends = [tasks.create_task(self._follow(partition)) for partition in self.partitions]
        for end in ends:
            if isinstance(error := end.result(), HistoryLost):
                raise error

    async def lag(self) -> dict[int, int]:
        """Return by how many facts the model is behind, by partition."""
        behind = {}
        for partition in self.partitions:
            checkpoint = await self._model.checkpoint(partition)
            end, _ = await self._store.end(partition)
            behind[partition] = end.number - checkpoint.number
        return behind

    async def _follow(self, partition: int) -> Exception:
        stalled = False
        while True:
            pause = self.policy.poll
            try:
                done = await self._step(partition)
            except (TakenOver, Dropped, HistoryLost) as error:
                emit(self._on_event, PartitionStopped(self._model.name, partition, type(error).__name__))
                return error
            except (RedisError, OSError) as error:
                if not stalled:
                    emit(self._on_event, ProjectionStalled(self._model.name, partition, type(error).__name__))
                stalled, done, pause = True, None, self.policy.back_off
            else:
                if stalled:
                    emit(self._on_event, ProjectionResumed(self._model.name, partition))
                stalled = False
            if done is None:
                await self._clock.sleep(pause)

    async def _take(self, partition: int) -> _Held:
        at = await self._model.take(partition, self._owner)
        parked = {each.aggregate for each in (await self._model.parked(partition)).values()}
        emit(self._on_event, PartitionTaken(self._model.name, partition, at.number))
        held = self._held[partition] = _Held(at, parked)
        return held

    # --8<-- [start:step]
    async def _step(self, partition: int) -> int | None:
        """Deal with the next facts of a partition; return how many, None if there is nothing to do."""
        held = self._held.get(partition) or await self._take(partition)
        if held.paused:
            return None
        at = Position(partition, held.at.number)
        facts = await self._store.read(at, chain=held.at.chain, count=self.policy.batch)
        if not facts:
            return None
        free = list(takewhile(lambda fact: fact.aggregate not in held.parked, facts))
        try:
            if free:
                return await self._apply(partition, held, free)
            return await self._park(partition, held, facts[0], "an earlier fact of it is parked")
        except Moved:  # the reply to a commit was lost, and it was done
            held.at = await self._model.checkpoint(partition)
            return 0

    async def _apply(self, partition: int, held: _Held, facts: list[Recorded]) -> int:
        done = 0
        while facts:
            try:
                after = await self._model.apply(partition, self._owner, held.at, facts)
            except Unapplied as error:
                bad = error.fact.position.number
                done += await self._apply(
                    partition, held, [each for each in facts if each.position.number < bad]
                )
                if held.at.number + 1 == bad:
                    done += await self._failed(partition, held, error)
                return done
            count, held.at, held.failures = after.number - held.at.number, after, 0
            emit(self._on_event, FactsApplied(self._model.name, partition, after.number, count))
            done, facts = done + count, [each for each in facts if each.position.number > after.number]
        return done

    # --8<-- [end:step]

    async def _failed(self, partition: int, held: _Held, error: Unapplied) -> int:
        name, number, why = self._model.name, error.fact.position.number, told(error.__cause__)
        held.failures += 1
        emit(self._on_event, FactFailed(name, partition, number, held.failures, why))
        if held.failures < self.policy.attempts:
            await self._clock.sleep(self.policy.retry_pause)
            return 0
        if self.policy.on_poison is OnPoison.PAUSE:
            held.paused = True
            emit(self._on_event, ProjectionPaused(name, partition, number, why))
            return 0
        return await self._park(partition, held, error.fact, why)

    async def _park(self, partition: int, held: _Held, fact: Recorded, why: str) -> int:
        held.at = await self._model.park(partition, self._owner, held.at, fact, why)
        held.failures = 0
        held.parked.add(fact.aggregate)
        emit(self._on_event, FactParked(self._model.name, partition, held.at.number, fact.aggregate, why))
        return 1
