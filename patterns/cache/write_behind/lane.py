"""What a flusher remembers of one shard between two calls of the store."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patterns.cache.write_behind.shard import Shard, Taken, Turn

__all__ = ["Away", "Held", "Lane", "being_cancelled", "is_outage", "versions_of"]

_HIGHEST = 1 << 53  # a version above it is no whole number in Redis


class Away(Exception):
    """The source could not be reached."""


class Held(NamedTuple):
    """A change that is not to be tried before a time.

    Attributes:
        until: on the flusher's clock.
        key: whose later changes wait for it.
    """

    until: float
    key: str


@dataclass(eq=False)
class Lane:
    """One shard, as one flusher sees it.

    Attributes:
        shard: the queue.
        size: of the next batch: halved while the source is away, as it may be the batch that is too much.
        holder: what the lease says if it is this flusher's.
        turn: one at a time takes and stores.
        leased_until: on the flusher's clock.
        lag: seconds that the oldest change had waited.
        done: changes that were stored, or parked.
        outages: of the source, in a row.
        rests_until: nothing is stored before.
        held: by version, what was refused and waits for its next try.
        once: what is held stays held, however late it is.
    """

    shard: Shard
    size: int
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    leased_until: float = 0.0
    lag: float = 0.0
    done: int = 0
    outages: int = 0
    rests_until: float = 0.0
    held: dict[int, Held] = field(default_factory=dict)
    once: bool = False

    def held_back(self, now: float) -> list[int]:
        """Return the versions that are not to be tried yet."""
        self.held = {version: held for version, held in self.held.items() if self.once or held.until > now}
        return list(self.held)

    def ready(self, turn: Turn) -> list[Taken]:
        """Return what may be stored together now: each key once, none before an earlier one of its key.

        What was refused before is tried alone, so that the others need not be taken apart again.
        """
        self.held = {version: self.held[version] for version in turn.held}
        keys = {held.key for held in self.held.values()}
        ready: list[Taken] = []
        for each in turn.taken:
            alone = ready and (each.attempts or ready[0].attempts)
            if each.key not in keys and len(ready) < self.size and not alone:
                ready.append(each)
            keys.add(each.key)
        return ready


def versions_of(reply: Mapping[str, int] | None) -> dict[str, int]:
    """Return the newer versions that a store has met.

    Raises:
        TypeError: the reply is no mapping of keys to whole numbers.
        ValueError: a number is none that Redis can count on from.
    """
    found: dict[str, int] = dict(reply or {})
    each: object
    for each in found.values():
        if not isinstance(each, int):
            raise TypeError("a store returns versions by key")
        if not 0 <= each < _HIGHEST:
            raise ValueError("a version must be from 0 to 2**53")
    return found


def being_cancelled() -> bool:
    """Say whether somebody cancels this task, and not what it calls itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_outage(error: BaseException, kinds: tuple[type[Exception], ...]) -> bool:
    """Say whether an error is of one of the kinds; a group is, if all of its errors are."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_outage(each, kinds) for each in error.exceptions)
    return isinstance(error, kinds)
