"""What a projection keeps in Redis: owner, checkpoint, rows and parked facts of a partition, in one slot.

Keys:

- `<app>:{cqrs:<store>/<partition>/<name>/<generation>}:state`   hash: owner, position, chain
- `<app>:{cqrs:<store>/<partition>/<name>/<generation>}:rows`    hash: the rows by their key
- `<app>:{cqrs:<store>/<partition>/<name>/<generation>}:parked`  hash: facts put aside, by position
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from patterns.bounds import whole
from patterns.data_management.cqrs.facts import BEGINNING, Checkpoint
from patterns.data_management.cqrs.model import Dropped, Moved, Parked, TakenOver
from patterns.data_management.cqrs.scripts import COMMIT, DROP, TAKE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patterns.data_management.cqrs.facts import Recorded
    from patterns.data_management.cqrs.store import EventStore
    from patterns.keyspace import Client

__all__ = ["State"]


class State:
    """One generation of a projection.

    Args:
        name: of the projection.
        store: whose facts it is made of.
        generation: which.
        client: where it is kept; None means beside the log.
    """

    def __init__(self, name: str, store: EventStore, *, generation: int, client: Client | None) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"name must be letters, digits, '_', '.' and '-', at least one, got {name!r}")
        self.name = name
        self.store = store
        self.generation = whole("generation", generation, at_least=1)
        self.client = client or store.client

    def keys(self, partition: int) -> list[str]:
        """Return the keys of state, rows and parked facts."""
        entity = f"{self.store.name}/{partition}/{self.name}/{self.generation}"
        return [self.store.space.key(entity, role) for role in ("state", "rows", "parked")]

    async def take(self, partition: int, owner: str, begin: Checkpoint = BEGINNING) -> Checkpoint:
        """Make `owner` the only one who may write the partition; return how far it has come.

        Args:
            partition: which.
            owner: a name that no other has; asking again with it is harmless.
            begin: where it begins if it is new.

        Raises:
            Dropped: the generation was deleted.
        """
        args: list[str | int] = [owner, begin.number, begin.chain]
        found = await TAKE(self.client, keys=self.keys(partition)[:1], args=args)
        if found == 0:
            raise Dropped(self.name, self.generation)
        return Checkpoint(int(found[0]), found[1].decode())

    async def checkpoint(self, partition: int) -> Checkpoint:
        """Return how far the partition has come."""
        state = self.keys(partition)[0]
        found: Any = await self.client.hmget(state, ["position", "chain"])
        return Checkpoint(int(found[0] or 0), (found[1] or b"").decode())

    async def parked(self, partition: int) -> dict[int, Parked]:
        """Return the facts that were put aside, by the number of their position."""
        found: Any = await self.client.hgetall(self.keys(partition)[2])
        return {int(at): Parked(*json.loads(found[at])) for at in sorted(found, key=int)}

    async def rows(self, partition: int) -> dict[str, Any]:
        """Return all rows of a partition, by key."""
        found: Any = await self.client.hgetall(self.keys(partition)[1])
        return {key.decode(): self.store.codec.decode(row) for key, row in found.items()}

    # --8<-- [start:commit]
    async def commit(
        self,
        partition: int,
        owner: str,
        before: Checkpoint,
        after: Checkpoint,
        *,
        rows: Mapping[str, bytes | None],
        parked: str = "",
    ) -> Checkpoint:
        """Write rows (None deletes one) and move the checkpoint from `before` to `after`, as one.

        Raises:
            TakenOver: the owner is another; nothing was written.
            Moved: the checkpoint is not `before`; nothing was written.
        """
        stay = [part for key, row in rows.items() if row is not None for part in (key, row)]
        gone = [key for key, row in rows.items() if row is None]
        args = [owner, before.number, after.number, after.chain, parked, len(stay) // 2, *stay, *gone]
        done = await COMMIT(self.client, keys=self.keys(partition), args=args)
        if done == -1:
            raise TakenOver(self.name, partition)
        if done == 0:
            raise Moved
        return after

    # --8<-- [end:commit]

    async def park(
        self, partition: int, owner: str, before: Checkpoint, fact: Recorded, error: str
    ) -> Checkpoint:
        """Put the fact that follows `before` aside, and move on."""
        parked = json.dumps([fact.aggregate, error])
        return await self.commit(partition, owner, before, fact.checkpoint, rows={}, parked=parked)

    async def drop(self) -> None:
        """Delete it; a projector that still follows it gets TakenOver, one that begins gets Dropped."""
        for partition in range(self.store.partitions):
            await DROP(self.client, keys=self.keys(partition))
