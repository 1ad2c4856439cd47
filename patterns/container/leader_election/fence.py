"""A resource that defends itself: it lets a leader write only while no later leader has written.

This is the half of the pattern that no lease can give. A process can be paused between looking at its lease
and writing, for longer than the lease; only who is written to can notice. Every write therefore carries the
fencing token of the writer's term, and is compared with the highest seen *in the transaction of the write*.

Here the resource is a table in SQLite; the one statement does the same in PostgreSQL.

>>> database = FencedDatabase(":memory:", "CREATE TABLE report (day TEXT)")
>>> with database.transaction(34, "the new leader") as sql:
...     _ = sql.execute("INSERT INTO report VALUES ('monday')")
>>> try:
...     with database.transaction(33, "the old leader") as sql:
...         _ = sql.execute("INSERT INTO report VALUES ('monday')")
... except StaleToken as refused:
...     print(refused)
token 33 of 'the old leader' is stale: 'the new leader' has written with 34
>>> database.close()

Source: Kleppmann, "How to do distributed locking"; Burrows, "The Chubby lock service" (sequencers).
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["FencedDatabase", "StaleToken"]


class StaleToken(Exception):
    """The write was refused, and nothing of it happened: a later leader has written, or one with this token.

    Attributes:
        token: the writer's token.
        holder: the writer.
        highest: the highest token seen.
        by: who wrote with it.
    """

    def __init__(self, token: int, holder: str, highest: int, by: str) -> None:
        super().__init__(f"token {token} of {holder!r} is stale: {by!r} has written with {highest}")
        self.token = token
        self.holder = holder
        self.highest = highest
        self.by = by

    def __reduce__(self) -> tuple[type[StaleToken], tuple[int, str, int, str]]:
        return type(self), (self.token, self.holder, self.highest, self.by)


class FencedDatabase:
    """A SQLite database whose transactions need a fencing token.

    Its methods block for as long as the disk does, and a transaction until another connection's has ended.
    One object is for one thread, as a connection of sqlite3 is, and for one transaction at a time.

    Args:
        path: of the file.
        schema: statements that make the application's tables where they are missing.
        wait: seconds to wait for another transaction, then sqlite3.OperationalError.
    """

    def __init__(self, path: str | Path, schema: str = "", *, wait: float = 5.0) -> None:
        self._sql = sqlite3.connect(path, timeout=wait, isolation_level=None)
        self._sql.executescript(f"{_SCHEMA};{schema}")

    # --8<-- [start:fence]
    @contextmanager
    def transaction(self, token: int, holder: str) -> Iterator[sqlite3.Connection]:
        """Lend the connection for one transaction, committed at the end of the block.

        Raises:
            StaleToken: a higher token has written, or this one from another holder; the block is not entered.
        """
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            if not self._sql.execute(_LET_IN, (token, holder)).rowcount:
                raise StaleToken(token, holder, *self._highest())
            yield self._sql
            self._sql.execute("COMMIT")
        finally:
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")

    # --8<-- [end:fence]

    async def floor(self) -> int:
        """Return the highest token seen, 0 before the first: what a candidate's next token must exceed."""
        return self._highest()[0]

    def close(self) -> None:
        """Close the file."""
        self._sql.close()

    def _highest(self) -> tuple[int, str]:
        token, holder = self._sql.execute("SELECT token, holder FROM fence").fetchone() or (0, "")
        return int(token), str(holder)


_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS fence (one INTEGER PRIMARY KEY, token INTEGER NOT NULL, holder TEXT NOT NULL)"
)

# --8<-- [start:statement]
_LET_IN = """
INSERT INTO fence (one, token, holder) VALUES (1, ?, ?)
ON CONFLICT (one) DO UPDATE SET token = excluded.token, holder = excluded.holder
WHERE excluded.token > fence.token
   OR (excluded.token = fence.token AND excluded.holder = fence.holder)
"""
# --8<-- [end:statement]
