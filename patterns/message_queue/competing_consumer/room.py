"""How many messages a worker may have in its hands."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Room"]


class Room:
    """Places, first come first served.

    Args:
        size: how many there are.
    """

    def __init__(self, size: int) -> None:
        self.free = size
        self._closed = False
        self._waiting: deque[asyncio.Future[bool]] = deque()

    async def take(self) -> bool:
        """Take one place, or wait for it; False: the room is closed."""
        if self._closed:
            return False
        if self.free and not self._waiting:
            self.free -= 1
            return True
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.give(int(turn.result()))  # it was handed over in the same instant
            elif turn in self._waiting:
                self._waiting.remove(turn)
                self.give(0)  # to the next, who could not pass it
            raise

    def take_more(self) -> int:
        """Take all places that are free and nobody waits for; return how many."""
        many = 0 if self._waiting else self.free
        self.free -= many
        return many

    def give(self, many: int) -> None:
        """Give places back."""
        self.free += many
        while self.free and self._waiting and not self._waiting[0].cancelled():
            self._waiting.popleft().set_result(True)
            self.free -= 1

    def close(self) -> None:
        """Give no more places to anybody."""
        self._closed = True
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(False)

    def open(self) -> None:
        """Give places again."""
        self._closed = False
