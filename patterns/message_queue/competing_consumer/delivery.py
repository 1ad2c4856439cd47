"""A message in a receiver's hand, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Dead", "Delivery", "Returned", "Stats"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that one receiver has, for as long as it renews its lease.

    Two are equal if they are the same delivery of the same message; payloads are not compared.

    Attributes:
        id: the message's own: the same at each delivery and after a redrive. What an inbox remembers.
        payload: what was sent.
        deliveries: how often it has been handed out, this time included.
        receipt: what the queue needs to know this very delivery again; of no use to others.
        key: what was sent with it to choose the partition.
        dedupe_id: what was sent with it to be sent once.
    """

    id: str
    payload: Any = field(compare=False)  # of a codec's own kind: arrays refuse to be compared
    deliveries: int
    receipt: Any
    key: str | None = None
    dedupe_id: str | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """A delivery that is given back.

    Attributes:
        delivery: which.
        delay: seconds until it may be another's.
        why: what went wrong, for people; kept with the message.
        started: whether it counts as a delivery.
    """

    delivery: Delivery
    delay: float = 0.0
    why: str = ""
    started: bool = True


@dataclass(frozen=True, slots=True)
class Dead:
    """A message that is not delivered any more by itself.

    Attributes:
        id: the message's own.
        payload: what was sent; the bytes, where they cannot be read.
        deliveries: how often it was handed out.
        why: the reason it was given up.
        history: what became of each delivery that failed, the oldest first: its number, then what was said.
        receipt: where it is.
    """

    id: str
    payload: Any
    deliveries: int
    why: str
    history: tuple[str, ...]
    receipt: Any


@dataclass(frozen=True, slots=True)
class Stats:
    """What is in a queue.

    Attributes:
        depth: messages that nobody has.
        pending: messages that a receiver has, or had and did not acknowledge; those that wait for their next
            try too.
        dead: dead letters.
        oldest_seconds: since the oldest message that is not done was sent.
    """

    depth: int
    pending: int
    dead: int
    oldest_seconds: float
