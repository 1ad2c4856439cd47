"""What a projector needs of a read model: to own a partition, and to move rows and checkpoint as one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from patterns.bounds import number
from patterns.clock import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterns.data_management.cqrs.facts import Checkpoint, Position, Recorded

__all__ = [
    "Dropped",
    "Followed",
    "Model",
    "Moved",
    "NotCaughtUp",
    "Parked",
    "TakenOver",
    "Unapplied",
    "cancelled",
    "told",
    "wait_for",
]

_MOST_OF_AN_ERROR = 1000  # characters


@dataclass(frozen=True, slots=True)
class Parked:
    """A fact that was put aside.

    Attributes:
        aggregate: whose fact; later ones of it are put aside too.
        error: why.
    """

    aggregate: str
    error: str


class Unapplied(Exception):
    """A fact could not be applied; nothing of its batch was. `__cause__` is why.

    Attributes:
        fact: which.
    """

    def __init__(self, fact: Recorded) -> None:
        super().__init__(f"{fact.kind} at {fact.position} could not be applied")
        self.fact = fact


class TakenOver(Exception):
    """Another projector has taken the partition, or its state is gone: this one writes no more.

    Attributes:
        partition: which.
    """

    def __init__(self, name: str, partition: int) -> None:
        super().__init__(f"{name}: partition {partition} belongs to another projector, or to nobody")
        self.partition = partition


class Dropped(Exception):
    """The generation was deleted, and readers may still look at it: give the next one a number of its own.

    Attributes:
        generation: which.
    """

    def __init__(self, name: str, generation: int) -> None:
        super().__init__(f"{name}: generation {generation} was dropped")
        self.generation = generation


class Moved(Exception):
    """The checkpoint is another than the one that the batch was made for; nothing was applied."""


class NotCaughtUp(TimeoutError):
    """The read model is not there yet.

    Attributes:
        position: where it should be.
        reached: number that it has reached.
    """

    def __init__(self, position: Position, reached: int) -> None:
        super().__init__(f"the read model has not reached {position}, it is at {reached}")
        self.position, self.reached = position, reached


class Followed(Protocol):
    """Anything that has a checkpoint."""

    async def checkpoint(self, partition: int) -> Checkpoint:
        """Return how far the partition has come."""
        ...


class Model(Followed, Protocol):
    """A read model. Each call that writes does so in one transaction, together with the checkpoint."""

    name: str

    async def take(self, partition: int, owner: str) -> Checkpoint:
        """Make `owner` the only one who may write the partition, and return how far it has come."""
        ...

    async def parked(self, partition: int) -> dict[int, Parked]:
        """Return the facts that were put aside, by the number of their position."""
        ...

    async def apply(
        self, partition: int, owner: str, before: Checkpoint, facts: Sequence[Recorded]
    ) -> Checkpoint:
        """Apply the first of the facts that follow `before`, one at least, and return how far it came.

        What is applied is applied together with the checkpoint, or not at all.

        Raises:
            Unapplied: one of them cannot be applied; none was.
            TakenOver: the owner is another.
            Moved: the checkpoint is not `before`.
        """
        ...

    async def park(
        self, partition: int, owner: str, before: Checkpoint, fact: Recorded, error: str
    ) -> Checkpoint:
        """Put the fact that follows `before` aside, and move on; raises as `apply` does."""
        ...


# --8<-- [start:wait]
async def wait_for(
    model: Followed,
    position: Position,
    *,
    within: float,
    poll: float = 0.02,
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Return once a model has come to `position`: what is read from it then knows of that fact.

    Args:
        model: the model, or its view.
        position: as an append returned it.
        within: seconds to wait.
        poll: seconds between two looks.
        clock: where it waits.

    Raises:
        NotCaughtUp: it has not come there in time; a TimeoutError.
    """
    number("poll", poll, above=0)
    deadline = clock.monotonic() + number("within", within, at_least=0, finite=False)
    while (at := await model.checkpoint(position.partition)).number < position.number:
        if (left := deadline - clock.monotonic()) <= 0:
            raise NotCaughtUp(position, at.number)
        await clock.sleep(min(poll, left))


# --8<-- [end:wait]


def cancelled() -> bool:
    """Whether somebody wants the running task to end: else a CancelledError came from what it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def told(error: BaseException | None) -> str:
    """Return what an error says of itself, short, and whatever its `repr` does."""
    try:
        text = repr(error)
    except Exception:
        text = type(error).__name__
    return text[:_MOST_OF_AN_ERROR].encode("utf-8", "replace").decode().replace("\0", "?")
