"""How a cache does without Redis: one time-out, then it is left alone, and one caller looks again for all.

A cache may be down; what it stands in front of must not notice more than that. If each caller waits for a
Redis that does not answer, a dead cache is worse than none. If none ever looks again, it stays dead.

What holds:

1. A request takes `timeout` seconds at most. One that was lost, late or refused raises NoCache, and no other
   error of Redis comes through; what is not of Redis, cancellation too, passes as it is.
2. After a request without an answer Redis is left alone for a pause: requests raise NoCache at once. The
   pause doubles with each such request in a row, up to `back_off`; of many that fail together one counts.
3. When the pause has ended one request goes through, and the others are refused for another `back_off` at
   most: one caller finds out for all. One that is cancelled while it finds out costs that pause.
4. An answer ends the outage, and so does a refusal (out of memory, wrong type): who refuses is there.
5. `anyway` asks also during a pause, for what costs more undone than a time-out.
6. CacheLost and CacheRegained are told in turn, once each.

>>> import asyncio
>>> from patterns.clock import ManualClock
>>> from patterns.events import Recorder
>>> async def refused() -> bytes:
...     raise ConnectionRefusedError
>>> async def main() -> None:
...     heard = Recorder()
...     redis = Outage("users", timeout=0.25, back_off=1, clock=ManualClock(), on_event=heard)
...     for _ in range(2):
...         try:
...             await redis.ask(refused)
...         except NoCache as error:
...             print(repr(error.__cause__))
...     print(heard.names())
>>> asyncio.run(main())
ConnectionRefusedError()
None
['CacheLost']

For the tasks of one event loop; each cache has its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from redis.exceptions import RedisError, ResponseError

from patterns.events import Event, Listener, emit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patterns.clock import Clock

__all__ = ["CacheLost", "CacheRegained", "NoCache", "Outage"]

T = TypeVar("T")

_DOUBLINGS = 5


@dataclass(frozen=True, slots=True)
class CacheLost(Event):
    """Redis did not answer: this process does without it, and looks for it from time to time."""

    error: str


@dataclass(frozen=True, slots=True)
class CacheRegained(Event):
    """Redis answers again."""


class NoCache(Exception):
    """Redis was not asked, or did not answer, or refused; `__cause__` is its error, None if not asked."""


class Outage:
    """What one cache knows of whether Redis answers.

    Args:
        source: the name of the cache, for events.
        timeout: seconds that one exchange with Redis may take.
        back_off: longest time in seconds for which Redis is left alone after it did not answer.
        clock: where durations are read.
        on_event: hears CacheLost and CacheRegained.
    """

    def __init__(
        self, source: str, *, timeout: float, back_off: float, clock: Clock, on_event: Listener
    ) -> None:
        self._source = source
        self._timeout = timeout
        self._back_off = back_off
        self._clock = clock
        self._on_event = on_event
        self._failures = 0  # in a row
        self._ask_again_at = -math.inf

    # --8<-- [start:ask]
    async def ask(self, request: Callable[[], Awaitable[T]], *, anyway: bool = False) -> T:
        """Return the answer of Redis to `request`.

        Raises:
            NoCache: it took longer than `timeout`, failed, or Redis is left alone for now.
        """
        failures = self._failures
        if failures and not anyway:
            now = self._clock.monotonic()
            if now < self._ask_again_at:
                raise NoCache
            self._ask_again_at = now + self._back_off  # one caller finds out for all
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

    def _lost(self, error: Exception) -> None:
        # Short at first: a hiccup costs little, and a long outage one time-out in each `back_off`.
        pause = self._back_off / 2 ** max(0, _DOUBLINGS - self._failures)
        self._ask_again_at = self._clock.monotonic() + pause
        self._failures += 1
        if self._failures == 1:
            emit(self._on_event, CacheLost(self._source, type(error).__name__))

    # --8<-- [end:ask]

    def _answered(self) -> None:
        if self._failures:
            self._failures = 0
            emit(self._on_event, CacheRegained(self._source))
