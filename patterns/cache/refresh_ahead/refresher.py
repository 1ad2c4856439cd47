"""Refreshes in the background: begun by reads, one for each key, bounded, and ended with their cache."""

from __future__ import annotations

import asyncio
import itertools
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING

from patterns.cache.refresh_ahead.events import RefreshBegan, Refreshed, RefreshFailed, RefreshPutOff
from patterns.events import Listener, emit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patterns.clock import Clock

__all__ = ["Refresher"]


class Refresher:
    """The refreshes of one cache in this process.

    Args:
        name: of the cache, for events.
        claim: returns 0 if this process may try a key now, else for how many seconds nobody may.
        refresh: loads a key if it has at most so many seconds left; returns whether it was kept.
        most: most refreshes at once.
        pause: seconds for which a key is left alone after an attempt.
        clock: where durations are read.
        on_event: hears RefreshBegan, Refreshed, RefreshFailed and RefreshPutOff.
    """

    def __init__(
        self,
        name: str,
        *,
        claim: Callable[[str], Awaitable[float]],
        refresh: Callable[[str, float], Awaitable[bool]],
        most: int,
        pause: float,
        clock: Clock,
        on_event: Listener,
    ) -> None:
        self._name = name
        self._claim = claim
        self._refresh = refresh
        self._most = most
        self._pause = pause
        self._clock = clock
        self._on_event = on_event
        self._tasks: dict[str, asyncio.Task[None]] = {}  # the loop itself would not keep them
        self._left_alone: dict[str, float] = {}  # until when; the oldest first
        self._closed = False

    # --8<-- [start:begin]
    def begin(self, key: str, left: float) -> None:
        """Begin to refresh `key` if nobody here is at it, it has not just been tried, and there is a place.

        It waits for nothing: the reader that calls it goes on with the value it has.
        """
        if self._closed or key in self._tasks or self._clock.monotonic() < self._left_alone.get(key, 0.0):
            return
        if len(self._tasks) >= self._most:
            emit(self._on_event, RefreshPutOff(self._name, key))
            return
        # A context of its own: it belongs to no request, and to no load that asked.
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._attempt(key, left), name=f"refresh {key}", context=Context())
        self._tasks[key] = task
        task.add_done_callback(partial(self._ended, key))

    async def _attempt(self, key: str, left: float) -> None:
        refused_for = await self._claim(key)
        self._leave_alone(key, refused_for or self._pause)
        if refused_for:
            return
        began = self._clock.monotonic()
        emit(self._on_event, RefreshBegan(self._name, key, left))
        try:
            kept = await self._refresh(key, left)
        except Exception as error:
            duration = self._clock.monotonic() - began
            emit(self._on_event, RefreshFailed(self._name, key, duration, type(error).__name__))
        else:
            emit(self._on_event, Refreshed(self._name, key, self._clock.monotonic() - began, kept))

    # --8<-- [end:begin]

    async def aclose(self) -> None:
        """Begin no more, cancel those under way, and wait until they have given back what they held."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _leave_alone(self, key: str, seconds: float) -> None:
        now = self._clock.monotonic()
        for each in list(itertools.takewhile(lambda old: self._left_alone[old] <= now, self._left_alone)):
            del self._left_alone[each]
        self._left_alone.pop(key, None)  # to the end
        self._left_alone[key] = now + seconds

    def _ended(self, key: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
