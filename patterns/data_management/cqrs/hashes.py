"""A read model in Redis: rows by key, changed by a function, beside the checkpoint in the same slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patterns.bounds import text, whole
from patterns.data_management.cqrs.model import Unapplied
from patterns.data_management.cqrs.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from patterns.data_management.cqrs.facts import Checkpoint, Recorded
    from patterns.data_management.cqrs.store import EventStore
    from patterns.keyspace import Client

    Rows = dict[str, bytes | None]

__all__ = ["HashModel", "its_aggregate"]


def its_aggregate(fact: Recorded) -> Sequence[str]:
    """Return the key of the one row that most models change: the name of the fact's aggregate."""
    return (fact.aggregate,)


class HashModel(State):
    """One generation of a read model in Redis, as its projector sees it.

    Args:
        name: of the model, as "balances".
        store: whose facts it is made of.
        apply: changes the rows for one fact: `apply(rows, fact)`. `rows` holds, by key, each row that `keys`
            names and that exists. No side effects: it is called again for the same fact, and for all of them
            when the model is rebuilt.
        keys: the keys of the rows that `apply` may read or change.
        generation: 1 at first, and one more for each rebuild.
        client: where the rows are; None means beside the log.
        max_bytes: most bytes of one encoded row.
    """

    def __init__(
        self,
        name: str,
        store: EventStore,
        apply: Callable[[dict[str, Any], Recorded], None],
        *,
        keys: Callable[[Recorded], Sequence[str]] = its_aggregate,
        generation: int = 1,
        client: Client | None = None,
        max_bytes: int = 1_048_576,
    ) -> None:
        super().__init__(name, store, generation=generation, client=client)
        self._apply = apply
        self._keys_of = keys
        self._max_bytes = whole("max_bytes", max_bytes, at_least=1)

    # --8<-- [start:apply]
    async def apply(
        self, partition: int, owner: str, before: Checkpoint, facts: Sequence[Recorded]
    ) -> Checkpoint:
        """Read rows, let `apply` change them, and write what has changed together with the checkpoint."""
        named = [self._named(fact) for fact in facts]
        was = await self._load(partition, sorted({key for keys in named for key in keys}))
        now = dict(was)
        for fact, keys in zip(facts, named, strict=True):
            now |= self._changed(fact, {key: now[key] for key in keys})
        rows = {key: row for key, row in now.items() if row != was[key]}
        return await self.commit(partition, owner, before, facts[-1].checkpoint, rows=rows)

    # --8<-- [end:apply]

    def _named(self, fact: Recorded) -> list[str]:
        try:
            keys = [text("key", key) for key in _several(self._keys_of(fact))]
            "".join(keys).encode()
        except Exception as error:
            raise Unapplied(fact) from error
        return keys

    async def _load(self, partition: int, keys: list[str]) -> Rows:
        if not keys:
            return {}
        found: Any = await self.client.hmget(self.keys(partition)[1], keys)
        return dict(zip(keys, found, strict=True))

    def _changed(self, fact: Recorded, rows: Rows) -> Rows:
        """Return rows as `fact` leaves them; decoded anew, so that a failure leaves no trace in them."""
        codec = self.store.codec
        try:
            fact.check()
            decoded = {key: codec.decode(row) for key, row in rows.items() if row is not None}
            self._apply(decoded, fact)
            changed: Rows = dict.fromkeys(rows)
            return changed | {key: self._encoded(row) for key, row in _only(rows, decoded).items()}
        except Exception as error:
            raise Unapplied(fact) from error

    def _encoded(self, row: object) -> bytes:
        encoded: bytes = self.store.codec.encode(row)
        self.store.codec.decode(encoded)
        if len(encoded) > self._max_bytes:
            raise ValueError(f"a row of {len(encoded)} bytes is over max_bytes={self._max_bytes}")
        return encoded


def _several(keys: Sequence[str]) -> Sequence[str]:
    if isinstance(keys, str):
        raise TypeError("`keys` must return a sequence of keys, and returned one")
    return keys


def _only(named: Rows, rows: dict[str, Any]) -> dict[str, Any]:
    if strangers := rows.keys() - named.keys():
        raise KeyError(f"rows that `keys` does not name: {sorted(strangers)}")
    return rows
