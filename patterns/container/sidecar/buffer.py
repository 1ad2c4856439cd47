"""Holds the lines that wait to be shipped: never more than it was made for."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patterns.container.sidecar.tail import Line

__all__ = ["Buffer"]


# --8<-- [start:buffer]
class Buffer:
    """Lines between the file and Redis, those that are under way included.

    Args:
        most: lines it holds at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[Line] = deque()
        self._under_way: list[Line] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._under_way)

    @property
    def room(self) -> int:
        """How many lines it takes without dropping any."""
        return self._most - len(self)

    def put(self, lines: list[Line]) -> int:
        """Take `lines`, dropping the oldest that are not under way; return how many were dropped."""
        self._waiting.extend(lines)
        dropped = max(0, -self.room)
        for _ in range(dropped):
            self._waiting.popleft()
        return dropped

    def take(self, most: int) -> list[Line]:
        """Return the oldest lines, `most` at most; the same ones again until `done`."""
        if not self._under_way:
            self._under_way = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        return self._under_way

    def done(self) -> None:
        """Forget the lines that were taken: they are in the stream."""
        self._under_way = []
        # --8<-- [end:buffer]
