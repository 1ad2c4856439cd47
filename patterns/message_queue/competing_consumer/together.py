"""Acknowledgements that go out in one call: what ends while one is under way goes with the next."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterns.message_queue.competing_consumer.delivery import Delivery
    from patterns.message_queue.competing_consumer.source import Source

__all__ = ["Together"]


class Together:
    """One call at a time, and none waits for company.

    Args:
        source: what is told.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._next: list[Delivery] = []
        self._waits: asyncio.Task[Sequence[Delivery]] | None = None
        self._runs: asyncio.Task[Sequence[Delivery]] | None = None

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Acknowledge these, with others; return those of them that are not the receiver's any more."""
        self._next += deliveries
        if self._waits is None:
            self._waits = asyncio.create_task(self._tell(self._runs))
            self._waits.add_done_callback(_read)
        lost = await asyncio.shield(self._waits)
        return [one for one in deliveries if one in lost]

    async def _tell(self, before: asyncio.Task[Sequence[Delivery]] | None) -> Sequence[Delivery]:
        if before is not None and not before.done():
            await asyncio.wait([before])
        deliveries, self._next = self._next, []
        self._runs, self._waits = self._waits, None
        return await self._source.acknowledge(deliveries)


def _read(task: asyncio.Task[Sequence[Delivery]]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waits for it has it as well, unless he was cancelled
