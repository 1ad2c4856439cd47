"""A message in a worker's hands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from patterns.message_queue.competing_consumer.delivery import Delivery
    from patterns.message_queue.competing_consumer.source import Source

__all__ = ["End", "Hand"]


class End(Enum):
    """Why a worker lets go of a message that is not done."""

    LOST = "lost"
    STOPPED = "stopped"


@dataclass(eq=False)
class Hand:
    """One delivery, from its receipt until it is settled.

    Attributes:
        source: where it is from.
        delivery: the message.
        sure_until: on the worker's clock; until then it is nobody else's.
        task: calls the handler with it.
        running: whether the handler is at it.
        ended: why the handler must end, or must not begin.
        unsure: whether the queue was told something about it and did not answer.
    """

    source: Source
    delivery: Delivery
    sure_until: float
    task: asyncio.Task[None] | None = None
    running: bool = False
    ended: End | None = None
    unsure: bool = False
