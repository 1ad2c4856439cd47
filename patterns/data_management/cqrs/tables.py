"""A read model in SQL: the statements of `apply` and the checkpoint are one transaction.

Tables, made by `prepare`, one row per model and partition, and one per parked fact:

- `cqrs_checkpoint (model, part, owner, number, chain)`
- `cqrs_parked (model, part, number, aggregate, error)`
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from patterns.bounds import text
from patterns.data_management.cqrs.facts import Checkpoint
from patterns.data_management.cqrs.model import Moved, Parked, TakenOver, Unapplied, cancelled
from patterns.database import Aborted, Database, OutcomeUnknown, Transaction, UniqueViolation, Unreachable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from patterns.data_management.cqrs.facts import Recorded

__all__ = ["TableModel"]

_TABLES = (
    """CREATE TABLE IF NOT EXISTS cqrs_checkpoint (
        model TEXT NOT NULL, part BIGINT NOT NULL, owner TEXT NOT NULL, number BIGINT NOT NULL,
        chain TEXT NOT NULL, PRIMARY KEY (model, part))""",
    """CREATE TABLE IF NOT EXISTS cqrs_parked (
        model TEXT NOT NULL, part BIGINT NOT NULL, number BIGINT NOT NULL, aggregate TEXT NOT NULL,
        error TEXT NOT NULL, PRIMARY KEY (model, part, number))""",
)
_TAKE = """INSERT INTO cqrs_checkpoint VALUES ($1, $2, $3, 0, '')
    ON CONFLICT (model, part) DO UPDATE SET owner = excluded.owner RETURNING number, chain"""
_MOVE = """UPDATE cqrs_checkpoint SET number = $1, chain = $2
    WHERE model = $3 AND part = $4 AND owner = $5 AND number = $6"""
_OWNER = "SELECT owner FROM cqrs_checkpoint WHERE model = $1 AND part = $2"
_AT = "SELECT number, chain FROM cqrs_checkpoint WHERE model = $1 AND part = $2"
_PARK = "INSERT INTO cqrs_parked VALUES ($1, $2, $3, $4, $5)"
_PARKED = "SELECT number, aggregate, error FROM cqrs_parked WHERE model = $1 AND part = $2 ORDER BY number"


class TableModel:
    """A read model in tables of your own, as its projector sees it.

    Args:
        name: of the model, unique in the database; another name is another model, which begins at the
            beginning of the log.
        database: from `patterns.database`.
        apply: carries out the statements for one fact: `await apply(transaction, fact)`. Nothing but
            statements: it is called again for the same fact.
    """

    def __init__(
        self, name: str, database: Database, apply: Callable[[Transaction, Recorded], Awaitable[Any]]
    ) -> None:
        self.name = text("name", name)
        self._database = database
        self._apply = apply

    async def prepare(self) -> None:
        """Make the two tables if they are not there."""
        for table in _TABLES:
            with suppress(UniqueViolation):  # PostgreSQL: another process makes it at the same moment
                await self._database.execute(table)

    async def take(self, partition: int, owner: str) -> Checkpoint:
        """Make `owner` the only one who may write the partition, and return how far it has come."""
        ((number, chain),) = await self._database.fetch(_TAKE, self.name, partition, owner)
        return Checkpoint(number, chain)

    async def checkpoint(self, partition: int) -> Checkpoint:
        """Return how far the partition has come."""
        found = await self._database.fetch(_AT, self.name, partition)
        return Checkpoint(*found[0]) if found else Checkpoint()

    async def parked(self, partition: int) -> dict[int, Parked]:
        """Return the facts that were put aside, by the number of their position."""
        found = await self._database.fetch(_PARKED, self.name, partition)
        return {number: Parked(aggregate, error) for number, aggregate, error in found}

    # --8<-- [start:apply]
    async def apply(
        self, partition: int, owner: str, before: Checkpoint, facts: Sequence[Recorded]
    ) -> Checkpoint:
        """Move the checkpoint and carry out the statements of all facts, in one transaction."""
        try:
            async with self._database.transaction() as transaction:
                after = await self._move(transaction, partition, owner, before, facts[-1].checkpoint)
                for fact in facts:
                    await self._carry_out(transaction, fact)
        except Aborted as error:  # `apply` has caught what a statement raised: which fact's was it?
            if len(facts) > 1:
                return await self.apply(partition, owner, before, facts[:1])
            raise Unapplied(facts[0]) from error
        return after

    async def _move(
        self, transaction: Transaction, partition: int, owner: str, before: Checkpoint, after: Checkpoint
    ) -> Checkpoint:
        where = (self.name, partition)
        if not await transaction.execute(_MOVE, after.number, after.chain, *where, owner, before.number):
            found = await transaction.fetch(_OWNER, *where)
            raise Moved if found == [(owner,)] else TakenOver(self.name, partition)
        return after

    # --8<-- [end:apply]

    async def _carry_out(self, transaction: Transaction, fact: Recorded) -> None:
        try:
            fact.check()
            await self._apply(transaction, fact)
        except (Unreachable, OutcomeUnknown, Aborted):  # which is no fault of the fact
            raise
        except Exception as error:
            raise Unapplied(fact) from error
        except asyncio.CancelledError as error:
            if cancelled():
                raise
            raise Unapplied(fact) from error  # it was the function's own

    async def park(
        self, partition: int, owner: str, before: Checkpoint, fact: Recorded, error: str
    ) -> Checkpoint:
        """Put the fact that follows `before` aside, and move on."""
        async with self._database.transaction() as transaction:
            after = await self._move(transaction, partition, owner, before, fact.checkpoint)
            number, aggregate = fact.position.number, fact.aggregate.replace("\0", "?")
            await transaction.execute(_PARK, self.name, partition, number, aggregate, error)
        return after
