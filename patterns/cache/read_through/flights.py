"""Single flight for several keys: one task may be on its way for many, and each key is waited for by itself.

`patterns.flight` is this for one key. Here a caller of `get("7")` joins the flight that a `get_all` has begun
for a hundred keys, and is served as soon as 7 has landed. As there, nobody owns the task: a caller that is
cancelled leaves the others waiting for it, the last one to leave takes it along, and a key that has landed is
joined by nobody.

For the tasks of one event loop.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

__all__ = ["Flight", "Flights"]

T = TypeVar("T")


class Flight(Generic[T]):
    """A task under way for some keys.

    Attributes:
        landing: what each key waits for.
        task: the task.
        waiting: how many callers wait.
    """

    __slots__ = ("landing", "task", "waiting")

    def __init__(self, keys: Iterable[str]) -> None:
        loop = asyncio.get_running_loop()
        self.landing: dict[str, asyncio.Future[T]] = {key: loop.create_future() for key in keys}
        self.task: asyncio.Task[None]
        self.waiting = 0


class Flights(Generic[T]):
    """The tasks under way.

    Args:
        lost: makes what callers get for a key of which the task said nothing; it has the task's error, or
            None where it was cancelled.
    """

    def __init__(self, lost: Callable[[str, BaseException | None], T]) -> None:
        self._lost = lost
        self._under_way: dict[str, Flight[T]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself would not keep them

    # --8<-- [start:share]
    async def share(
        self, keys: Sequence[str], begin: Callable[[Flight[T]], Coroutine[Any, Any, None]]
    ) -> dict[str, T]:
        """Return what came for each key; `begin` a flight for those for which none is under way.

        `begin` returns the coroutine of the task, which calls `land` for every key of its flight.
        """
        if new := [key for key in keys if key not in self._under_way]:
            self._take_off(Flight(new), begin)
        joined = {key: self._under_way[key] for key in keys}
        landings = {key: flight.landing[key] for key, flight in joined.items()}
        flights = set(joined.values())
        for flight in flights:
            flight.waiting += 1
        abandoned: list[asyncio.Task[None]] = []
        try:
            await asyncio.wait(landings.values())
        except asyncio.CancelledError:
            abandoned = self._leave(flights)
            flights.clear()
            if abandoned:
                await asyncio.wait(abandoned)  # until they have cleaned up
            raise
        finally:
            self._leave(flights)
        return {key: landing.result() for key, landing in landings.items()}

    # --8<-- [end:share]

    def land(self, flight: Flight[T], key: str, outcome: T) -> None:
        """Give `outcome` to those who wait for `key`; who comes later begins anew."""
        if self._under_way.get(key) is flight:
            del self._under_way[key]
        if not flight.landing[key].done():
            flight.landing[key].set_result(outcome)

    def _take_off(self, flight: Flight[T], begin: Callable[[Flight[T]], Coroutine[Any, Any, None]]) -> None:
        for key in flight.landing:
            self._under_way[key] = flight
        flight.task = asyncio.ensure_future(begin(flight))
        self._tasks.add(flight.task)
        flight.task.add_done_callback(partial(self._ended, flight))

    def _leave(self, flights: Iterable[Flight[T]]) -> list[asyncio.Task[None]]:
        """Leave; cancel and return the tasks for which nobody waits any more."""
        abandoned = []
        for flight in flights:
            flight.waiting -= 1
            if not flight.waiting and not all(landing.done() for landing in flight.landing.values()):
                for key in flight.landing:
                    if self._under_way.get(key) is flight:
                        del self._under_way[key]
                flight.task.cancel()
                abandoned.append(flight.task)
        return abandoned

    def _ended(self, flight: Flight[T], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        for key, landing in flight.landing.items():
            if not landing.done():
                self.land(flight, key, self._lost(key, error))
