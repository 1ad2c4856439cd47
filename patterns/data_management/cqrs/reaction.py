"""What is done because of a fact: mails, calls, commands to others. Never part of a read model."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from patterns.data_management.cqrs.facts import BEGINNING, Checkpoint
from patterns.data_management.cqrs.model import Unapplied, cancelled
from patterns.data_management.cqrs.state import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from patterns.data_management.cqrs.facts import Recorded
    from patterns.data_management.cqrs.store import EventStore
    from patterns.keyspace import Client

__all__ = ["Reaction"]


# --8<-- [start:reaction]
class Reaction(State):
    """Calls a function for each fact, with a checkpoint of its own; a rebuild of read models is none of it.

    A fact may reach the function again after a crash between the call and its checkpoint: at least once, and
    `fact.id` is the same each time. The function gives it to whoever can ignore it the second time.

    Args:
        name: of the reaction, as "welcome-mail".
        store: whose facts.
        react: called with each fact; what it raises counts as a failed attempt.
        from_now: whether a reaction that is new begins at the end of the log, not at its beginning.
        client: where the checkpoint is; None means beside the log.
    """

    def __init__(
        self,
        name: str,
        store: EventStore,
        react: Callable[[Recorded], Awaitable[Any]],
        *,
        from_now: bool,
        client: Client | None = None,
    ) -> None:
        super().__init__(name, store, generation=1, client=client)
        self._react = react
        self._from_now = from_now

    async def take(self, partition: int, owner: str, begin: Checkpoint = BEGINNING) -> Checkpoint:
        """Make `owner` the only one who reacts in the partition from now on."""
        if self._from_now:
            end, chain = await self.store.end(partition)
            begin = Checkpoint(end.number, chain)
        return await super().take(partition, owner, begin)

    async def apply(
        self, partition: int, owner: str, before: Checkpoint, facts: Sequence[Recorded]
    ) -> Checkpoint:
        """React to the first of the facts, if it is still to be done and ours; then pass it."""
        fact = facts[0]
        await self.commit(partition, owner, before, before, rows={})
        try:
            fact.check()
            await self._react(fact)
        except Exception as error:
            raise Unapplied(fact) from error
        except asyncio.CancelledError as error:
            if cancelled():
                raise
            raise Unapplied(fact) from error  # it was the function's own
        return await self.commit(partition, owner, before, fact.checkpoint, rows={})


# --8<-- [end:reaction]
