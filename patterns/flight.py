"""Single flight in one process: those who want the same thing at the same time share one task.

Nobody owns the task. A caller that is cancelled leaves the others waiting for it; only the last one to leave
takes it along, and waits until it has cleaned up. A task that has ended is joined by nobody: who comes later
begins another one.

>>> flights: Flights[int] = Flights()
>>> async def load() -> int:
...     print("loading")
...     return 42
>>> async def main() -> list[int]:
...     return await asyncio.gather(*[flights.share("answer", load) for _ in range(3)])
>>> asyncio.run(main())
loading
[42, 42, 42]

For the tasks of one event loop.

Source: Go, `golang.org/x/sync/singleflight` (where the first caller owns the work).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["FlightCancelled", "Flights"]

T = TypeVar("T")


class FlightCancelled(Exception):
    """The task cancelled itself; those who wait for it were not cancelled."""


@dataclass(slots=True, eq=False)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class Flights(Generic[T]):
    """The tasks under way, one for each key."""

    def __init__(self) -> None:
        self._under_way: dict[str, _Flight[T]] = {}

    # --8<-- [start:share]
    async def share(self, key: str, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what the task of `key` returns; begin one if there is none.

        Raises:
            FlightCancelled: the task was cancelled, and not by us.
            Exception: whatever the task raised.
        """
        flight = self._under_way.get(key)
        if flight is None or flight.task.done():
            flight = self._under_way[key] = _Flight(asyncio.ensure_future(begin()))
            flight.task.add_done_callback(partial(self._landed, key, flight))
        flight.waiting += 1
        try:
            await asyncio.wait((flight.task,))  # unlike `await task`, it is not cancelled with us
        except asyncio.CancelledError:
            if flight.waiting == 1 and not flight.task.done():
                self._forget(key, flight)
                flight.task.cancel()
                await asyncio.wait((flight.task,))
            raise
        finally:
            flight.waiting -= 1
        if flight.task.cancelled():
            raise FlightCancelled
        return flight.task.result()

    # --8<-- [end:share]

    def _landed(self, key: str, flight: _Flight[T], task: asyncio.Task[T]) -> None:
        self._forget(key, flight)
        if not task.cancelled():
            task.exception()  # those who wait read it; where nobody is left, nobody misses it

    def _forget(self, key: str, flight: _Flight[T]) -> None:
        if self._under_way.get(key) is flight:
            del self._under_way[key]
