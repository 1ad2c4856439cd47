"""A table that takes changes by version: the half of the pattern that no queue can give.

A flusher may be paused between taking a batch and storing it, and a batch whose reply was lost is stored
again. Only the source can notice that something newer has come meanwhile. So each row carries its version,
and one statement writes a row only where the stored version is lower. A deleted key keeps its row, without
values, or a late older write would bring it back.

The table is the application's own, and is made like this, on SQLite and on PostgreSQL:

    CREATE TABLE article (
        id TEXT PRIMARY KEY NOT NULL, version BIGINT NOT NULL, deleted BOOLEAN NOT NULL,
        title TEXT, price BIGINT
    )
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from patterns.bounds import text
from patterns.cache.write_behind.change import DELETED, Change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterns.database import Database, Value

__all__ = ["VersionedTable"]

_MOST_VALUES = 30_000  # in one statement: SQLite and PostgreSQL both stop below 2**15


class VersionedTable:
    """Stores changes whose values are dictionaries of columns.

    Args:
        database: from `patterns.database`.
        table: its name.
        key: the column of the key; `version` and `deleted` are named so.
        columns: the columns of a value; they may be NULL, as in the row of what was deleted.
    """

    def __init__(self, database: Database, table: str, *, key: str, columns: Sequence[str]) -> None:
        for name in (text("table", table), text("key", key), *columns):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"tables and columns must be plain names, got {name!r}")
        if not columns:
            raise ValueError("columns must be at least one, got none")
        names = [name.lower() for name in (key, "version", "deleted", *columns)]
        if len(set(names)) < len(names):
            raise ValueError(f"key and columns must be different, and not version or deleted, got {names}")
        self._database = database
        self._table, self._key, self._columns = table, key, tuple(columns)
        self._all = (key, "version", "deleted", *columns)

    # --8<-- [start:store]
    async def store(self, batch: Sequence[Change]) -> dict[str, int]:
        """Write what is newer than its row; return the versions of the rows that are newer themselves."""
        newer: dict[str, int] = {}
        # In one order: two flushers that lock the same rows in different orders wait for each other.
        rows = [self._row(change) for change in sorted(batch, key=lambda change: change.key)]
        width = len(self._all)
        part = _MOST_VALUES // width
        for start in range(0, len(rows), part):
            some = rows[start : start + part]
            places = ", ".join(
                f"({', '.join(f'${at * width + column + 1}' for column in range(width))})"
                for at in range(len(some))
            )
            updates = ", ".join(f"{name} = excluded.{name}" for name in self._all[1:])
            written = await self._database.fetch(
                f"INSERT INTO {self._table} ({', '.join(self._all)}) VALUES {places} "  # noqa: S608  plain names
                f"ON CONFLICT ({self._key}) DO UPDATE SET {updates} "
                f"WHERE {self._table}.version < excluded.version RETURNING {self._key}",
                *[value for row in some for value in row],
            )
            if len(written) < len(some):
                done = {key for (key,) in written}
                newer |= await self._newer([row for row in some if row[0] not in done])
        return newer

    # --8<-- [end:store]

    async def _newer(self, rows: Sequence[tuple[Value, ...]]) -> dict[str, int]:
        places = ", ".join(f"${at}" for at in range(1, len(rows) + 1))
        found = await self._database.fetch(
            f"SELECT {self._key}, version FROM {self._table} WHERE {self._key} IN ({places})",  # noqa: S608  plain names
            *[row[0] for row in rows],
        )
        ours = {row[0]: row[1] for row in rows}
        return {key: version for key, version in found if version > ours[key]}

    async def load(self, key: str) -> dict[str, Any] | None:
        """Return the value of `key` in the source, None if there is none."""
        found = await self._database.fetch(
            f"SELECT {', '.join(self._columns)} FROM {self._table} WHERE {self._key} = $1 AND NOT deleted",  # noqa: S608  plain names
            key,
        )
        return dict(zip(self._columns, found[0], strict=True)) if found else None

    def _row(self, change: Change) -> tuple[Value, ...]:
        if change.value is DELETED:
            return (change.key, change.version, True, *[None] * len(self._columns))
        value: object = change.value
        if not isinstance(value, dict) or set(value) != set(self._columns):
            raise ValueError(f"a value must be a dictionary of {', '.join(self._columns)}")
        return (change.key, change.version, False, *[value[name] for name in self._columns])
