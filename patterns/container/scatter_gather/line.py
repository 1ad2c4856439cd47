"""A leaf's queue, from which a tied request can be dropped while it waits.

What is under way is never dropped. An order to drop that comes before its request is remembered, for a while.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from patterns.bounds import whole
from patterns.container.scatter_gather.answer import Withdrawn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Line", "TieTaken"]


class TieTaken(ValueError):
    """A request of this tie is here already."""


class Line:
    """First come, first served.

    Args:
        workers: requests that run at once.
        remember: orders to drop whose request has not come.

    Attributes:
        dropped: requests that were dropped.
    """

    def __init__(self, workers: int, *, remember: int = 1000) -> None:
        self._free = whole("workers", workers, at_least=1)
        self._remember = whole("remember", remember, at_least=1)
        self._waiting: dict[object, asyncio.Future[None]] = {}
        self._begun: set[object] = set()
        self._orders: dict[str, None] = {}
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Requests that wait for a worker."""
        return len(self._waiting)

    # --8<-- [start:line]
    @asynccontextmanager
    async def turn(self, tie: str | None = None) -> AsyncIterator[None]:
        """Wait for a worker, and have it for the block.

        Raises:
            Withdrawn: the other request of this tie has begun, so that this one need not.
            TieTaken: a request of this tie is here already.
        """
        key: object = tie or object()
        if key in self._waiting or key in self._begun:
            raise TieTaken(f"a request of the tie {tie!r} is here already")
        if tie in self._orders:
            del self._orders[tie]
            self.dropped += 1
            raise Withdrawn
        if self._free:
            self._free -= 1
            self._begun.add(key)
        else:
            await self._wait(key)
        try:
            yield
        finally:
            self._leave(key)

    def drop(self, tie: str) -> bool:
        """Drop the request of this tie unless it has begun; return whether it will not run."""
        if tie in self._begun:
            return False
        if waiter := self._waiting.pop(tie, None):
            self.dropped += 1
            waiter.set_exception(Withdrawn())
        else:  # it is still on its way, or over
            self._orders[tie] = None
            if len(self._orders) > self._remember:
                del self._orders[next(iter(self._orders))]
        return True

    # --8<-- [end:line]

    async def _wait(self, key: object) -> None:
        waiter = self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            await waiter
        except BaseException:
            self._waiting.pop(key, None)
            if key in self._begun:  # cancelled as the worker was handed over
                self._leave(key)
            raise

    def _leave(self, key: object) -> None:
        self._begun.discard(key)
        for next_, waiter in list(self._waiting.items()):
            del self._waiting[next_]
            if not waiter.done():
                self._begun.add(next_)
                waiter.set_result(None)
                return
        self._free += 1
