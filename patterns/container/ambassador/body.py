"""The body of a request, which can be sent again as long as it is short."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Body", "Source"]


class Source(Protocol):
    """Where the bytes come from: aiohttp's StreamReader."""

    async def readany(self) -> bytes:
        """Return what is there, at least one byte; none at the end."""
        ...


# --8<-- [start:body]
class Body:
    """Sends pieces on as they come, and keeps them for another attempt up to `limit` bytes.

    Args:
        source: where they come from.
        limit: bytes kept; with more than that, what was kept is let go.

    Attributes:
        failed: what `source` raised: then it is the sender who broke off, not the upstream.
    """

    def __init__(self, source: Source, limit: int) -> None:
        self._source = source
        self._limit = limit
        self._kept: bytearray | None = bytearray()
        self._reading = asyncio.Lock()  # an attempt that was given up may not have let go yet
        self.failed: Exception | None = None

    @property
    def replayable(self) -> bool:
        """Whether another attempt could send all of it."""
        return self._kept is not None and self.failed is None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Return the body from its beginning, piece by piece, for one attempt."""
        sent = 0
        while piece := await self._after(sent):
            sent += len(piece)
            yield piece

    async def _after(self, sent: int) -> bytes:
        async with self._reading:
            if self._kept is not None and sent < len(self._kept):
                return bytes(self._kept[sent:])
            try:
                piece = await self._source.readany()
            except Exception as error:
                self.failed = error
                raise
            if self._kept is not None and len(self._kept) + len(piece) <= self._limit:
                self._kept += piece
            elif piece:
                self._kept = None
            return piece

    # --8<-- [end:body]
