"""A service with a limited number of workers, and the users who call it.

`Scripted` answers as it is told; a `Service` answers as its load allows. It has workers, each request
takes one of them for a time, and the others wait in line. Like a real one it does not see that a caller has
hung up: it works through requests that nobody waits for any more. That is what makes retry storms, and what
lets them outlive their cause.
`users` sends it calls as strangers do, who do not wait for each other.

>>> from patterns.clock import ManualClock
>>> clock = ManualClock()
>>> shop = Service(workers=1, seconds=0.25, clock=clock)
>>> async def main() -> list[Visit]:
...     return await users(shop, per_second=2, seconds=2, clock=clock)
>>> [visit.seconds for visit in asyncio.run(main())]
[0.25, 0.25, 0.25, 0.25]

Sources: M. Brooker, "What is backoff for?" (an open loop of callers, a server with a queue); Bronson et al.,
"Metastable failures in distributed systems", HotOS 2021.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from patterns.bounds import number, whole
from patterns.clock import ManualClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["QuickClock", "Service", "Trouble", "Visit", "recovery", "users"]


class QuickClock(ManualClock):
    """A ManualClock for calls that never leave the process, in half the processor time.

    A task that has been woken takes at most a few steps before it waits on the clock again: three behind all
    the guards of a pipeline. One that takes more than eight would see time move on too early.
    """

    _STEPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A time in which a service does badly; requests that start in it are hit.

    At least one of `seconds` and `error` is given. Each field that makes no sense is a ValueError.

    Attributes:
        begin: seconds on the service's clock.
        end: when it is over, in the same seconds.
        seconds: how long a request then takes; None for as long as ever.
        error: an instance of what a request then ends with, None for an answer.
        share: share of the requests that are hit, in (0, 1], as when one of four replicas is broken.
    """

    begin: float
    end: float
    seconds: float | None = None
    error: Exception | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        number("end", self.end, above=number("begin", self.begin), finite=False)
        if self.seconds is not None:
            number("seconds", self.seconds, above=0)
        if not (self.error is None or isinstance(self.error, Exception)):
            raise ValueError(f"error must be an Exception, not a class of them, or None, got {self.error!r}")
        if self.seconds is None and self.error is None:
            raise ValueError("seconds or error must be given, got neither: nothing would be wrong")
        number("share", self.share, above=0, at_most=1)


class Service:
    """An async callable with `workers` workers and one line in front of them, first come first served.

    Args:
        workers: requests it can work on at once.
        seconds: what one request takes a worker.
        clock: where time comes from.
        troubles: when it does badly; where several hit, the first one counts.
        rng: draws which requests are hit, where it is a share of them; None: another draw each time.

    Attributes:
        arrivals: when each request came, in seconds on the clock.
    """

    def __init__(
        self,
        *,
        workers: int,
        seconds: float,
        clock: ManualClock,
        troubles: tuple[Trouble, ...] = (),
        rng: random.Random | None = None,
    ) -> None:
        whole("workers", workers, at_least=1)
        self.arrivals: list[float] = []
        self._seconds = number("seconds", seconds, above=0)
        self._clock = clock
        self._troubles = tuple(troubles)
        self._rng = rng or random.Random()
        self._free_at = [-math.inf] * workers  # a heap

    # --8<-- [start:service]
    async def __call__(self, *_: object, **__: object) -> str:
        """Wait in line, be served, and return "fresh"; the arguments are ignored."""
        now = self._clock.monotonic()
        self.arrivals.append(now)
        begin = max(now, heapq.heappop(self._free_at))
        trouble = next((each for each in self._troubles if self._hits(each, begin)), None)
        slow = trouble and trouble.seconds
        end = begin + (slow or self._seconds)
        heapq.heappush(self._free_at, end)  # the worker is taken, whether or not the caller stays
        await self._clock.sleep(end - now)
        if trouble and trouble.error:
            raise trouble.error.with_traceback(None)
        return "fresh"

    # --8<-- [end:service]

    def _hits(self, trouble: Trouble, begin: float) -> bool:
        in_time = trouble.begin <= begin < trouble.end
        return in_time and (trouble.share == 1 or self._rng.random() < trouble.share)

    @property
    def backlog(self) -> float:
        """Seconds until a request that came now would be started."""
        return max(0.0, self._free_at[0] - self._clock.monotonic())


@dataclass(frozen=True, slots=True)
class Visit:
    """What became of one user's call.

    Attributes:
        began: when it began, in seconds on the clock.
        seconds: how long the user waited.
        result: what the call returned, None if it raised.
        error: what it raised.
    """

    began: float
    seconds: float
    result: Any = None
    error: Exception | None = None


async def users(
    call: Callable[[], Awaitable[Any]],
    *,
    per_second: float,
    seconds: float,
    clock: ManualClock,
    rng: random.Random | None = None,
    patience: float = 600.0,
) -> list[Visit]:
    """Let users come for `seconds`, moving the clock; return what each got, in the order they came.

    Args:
        call: what each of them does.
        per_second: how many come, on average.
        seconds: how long they come for.
        clock: moved by this function alone, until the last of them has left.
        rng: draws the time between two of them (exponential); None: all the same.
        patience: seconds after the last has come, rounded up; who then still waits leaves, with a
            TimeoutError.

    Raises:
        ValueError: a number that makes none.
    """
    number("per_second", per_second, above=0)
    number("seconds", seconds, above=0)
    number("patience", patience, at_least=0)

    async def visit(began: float) -> Visit:
        result: Any = None
        error: Exception | None = None
        try:
            result = await call()
        except asyncio.CancelledError:
            error = TimeoutError(f"the user left after {clock.monotonic() - began:.1f} s")
        except Exception as raised:  # whatever it is, it is the finding
            error = raised
        return Visit(began, clock.monotonic() - began, result, error)

    visits: list[asyncio.Task[Visit]] = []

    end = clock.monotonic() + seconds

    async def come() -> None:
        while clock.monotonic() < end:
            visits.append(asyncio.create_task(visit(clock.monotonic())))
            await clock.sleep(rng.expovariate(per_second) if rng else 1 / per_second)

    arrivals = asyncio.create_task(come())
    try:
        await clock.advance(seconds)
        arrivals.cancel()
        for _ in range(math.ceil(patience)):
            if all(each.done() for each in visits):
                break
            await clock.advance(1.0)
    finally:  # also when this is cancelled: nobody is left behind
        arrivals.cancel()
        for each in visits:
            each.cancel()
    return list(await asyncio.gather(*visits))


def recovery(
    visits: list[Visit], since: float, *, good: Callable[[Visit], bool], share: float = 0.95
) -> float:
    """Return how many seconds after `since` all was well again and stayed so; infinite if never.

    Args:
        visits: all of them.
        since: when the cause was gone, in seconds on the clock.
        good: says of a visit whether its user was served.
        share: all is well in a second in which this share of those who came were served, in (0, 1].

    Raises:
        ValueError: `since` or `share` is no such number.
    """
    number("since", since)
    number("share", share, above=0, at_most=1)
    seconds: dict[int, list[bool]] = {}
    for visit in visits:
        if visit.began >= since:
            seconds.setdefault(int(visit.began - since), []).append(good(visit))
    last_bad = max((at for at, served in seconds.items() if sum(served) < share * len(served)), default=-1)
    return last_bad + 1.0 if last_bad < max(seconds, default=-1) else math.inf
