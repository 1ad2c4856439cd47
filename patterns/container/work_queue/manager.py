"""The manager: compares what the source lists with what the state knows, again and again."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from patterns.bounds import number
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.container.work_queue.events import (
    HeartbeatLost,
    ItemGivenUp,
    ItemRejected,
    JobCreated,
    RoundFailed,
)
from patterns.container.work_queue.source import Source, SourceFailed, name_problem
from patterns.events import Event, Listener, emit, ignore

if TYPE_CHECKING:
    from patterns.container.work_queue.policy import Policy
    from patterns.container.work_queue.state import State

__all__ = ["Manager", "Round"]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did.

    Attributes:
        listed: names that the source listed, each counted once.
        created: jobs made.
        again: items taken back from workers that fell silent.
        rejected: entries that were no names.
    """

    listed: int
    created: int
    again: int
    rejected: int


class Manager:
    """Keeps the state in step with the source. It can be killed at any point, and there may be several.

    Args:
        state: of the queue.
        source: what there is to do.
        policy: the same in every manager of the queue.
        request: seconds that one exchange with Redis may take.
        clock: where it waits.
        on_event: hears JobCreated, HeartbeatLost, ItemGivenUp, ItemRejected and RoundFailed.
    """

    def __init__(
        self,
        state: State,
        source: Source,
        policy: Policy,
        *,
        request: float = 5.0,
        clock: Clock = SYSTEM_CLOCK,
        on_event: Listener = ignore,
    ) -> None:
        number("request", request, above=0, at_most=1e8)
        self._state = state
        self._source = source
        self._policy = policy
        self._request = request
        self._clock = clock
        self._on_event = on_event
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let `run` return after the round that it is in. Safe to call again."""
        self._stopping.set()

    async def run(self) -> None:
        """Make a round every `policy.period` seconds until `stop`; one that fails is followed by the next."""
        while not self._stopping.is_set():
            try:
                await self.round()
            except (RedisError, OSError, TimeoutError, SourceFailed) as error:
                text = f"{type(error).__name__}: {error}".removesuffix(": ")[:300]
                self._say(RoundFailed(self._state.queue, text, self._policy.period))
            with suppress(TimeoutError):
                async with self._clock.timeout(self._policy.period):
                    await self._stopping.wait()

    # --8<-- [start:round]
    async def round(self) -> Round:
        """Compare once. What fails, fails before anything depends on it; the next round begins anew.

        Raises:
            SourceFailed: the list, or a page of it, could not be had; the pages before it count.
        """
        async with self._clock.timeout(self._request):
            settled = await self._state.settle(self._policy)
        for item in settled.again:
            self._say(HeartbeatLost(self._state.queue, item))
        for item in settled.failed:
            self._say(ItemGivenUp(self._state.queue, item))
        names: set[str] = set()
        created = rejected = 0
        cursor, cursors = None, set[str | None]()
        while cursor not in cursors:
            cursors.add(cursor)
            page = await self._source.page(cursor)
            fresh, refused = self._names(page.items, names)
            created += await self._offer(fresh)
            rejected += refused
            cursor = page.next
            if cursor is None:
                break
        else:
            raise SourceFailed("the list: a cursor came twice, its pages do not end")
        async with self._clock.timeout(self._request):
            await self._state.listed(self._policy.keep)
        return Round(len(names), created, len(settled.again), rejected)

    async def _offer(self, names: list[str]) -> int:
        created = 0
        for start in range(0, len(names), _BATCH):
            async with self._clock.timeout(self._request):
                offered = await self._state.offer(names[start : start + _BATCH], self._policy.backlog)
            created += len(offered)
            for item in offered:
                self._say(JobCreated(self._state.queue, item))
        return created

    # --8<-- [end:round]

    def _names(self, entries: list[Any], names: set[str]) -> tuple[list[str], int]:
        """Add to `names` those that are new in this round; return them, and how many entries are none."""
        fresh, refused = [], 0
        for entry in entries:
            if problem := name_problem(entry):
                refused += 1
                self._say(ItemRejected(self._state.queue, problem))
            elif entry not in names:
                names.add(entry)
                fresh.append(entry)
        return fresh, refused

    def _say(self, event: Event) -> None:
        emit(self._on_event, event)


_BATCH = 500  # names in one script: it keeps Redis for a millisecond
