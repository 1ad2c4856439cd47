"""A table that gives its rows versions: a source for those who have none yet.

The version is counted up by the statement that writes the row, under the row's lock, so its order is the
order of the commits. A deleted key keeps its row, without values, or its versions would begin anew.

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
from patterns.cache.write_through.source import Versioned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterns.database import Statements

__all__ = ["VersionedTable"]


class VersionedTable:
    """A Source whose values are dictionaries of columns.

    Args:
        database: from `patterns.database`.
        table: its name.
        key: the column of the key; `version` and `deleted` are named so.
        columns: the columns of a value; they may be NULL, as in the row of what was deleted.
    """

    def __init__(self, database: Statements, table: str, *, key: str, columns: Sequence[str]) -> None:
        for name in (text("table", table), text("key", key), *columns):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"tables and columns must be plain names, got {name!r}")
        if not columns:
            raise ValueError("columns must be at least one, got none")
        taken = [name.lower() for name in (key, "version", "deleted", *columns)]
        if len(set(taken)) < len(taken):
            raise ValueError(f"key and columns must be different, and not version or deleted, got {taken}")
        self._database, self._columns = database, tuple(columns)
        names = ", ".join(columns)
        places = ", ".join(f"${number}" for number in range(3, 3 + len(columns)))
        values = ", ".join(f"{name} = excluded.{name}" for name in columns)
        nothing = ", ".join(f"{name} = NULL" for name in columns)
        # --8<-- [start:sql]
        self._load = f"SELECT version, deleted, {names} FROM {table} WHERE {key} = $1"  # noqa: S608  plain names
        self._store = (
            f"INSERT INTO {table} ({key}, version, deleted, {names}) VALUES ($1, 1, $2, {places}) "  # noqa: S608  as above
            f"ON CONFLICT ({key}) DO UPDATE "
            f"SET version = {table}.version + 1, deleted = excluded.deleted, {values} RETURNING version"
        )
        self._delete = (
            f"UPDATE {table} SET version = version + 1, deleted = $2, {nothing} "  # noqa: S608  as above
            f"WHERE {key} = $1 RETURNING version"
        )
        # --8<-- [end:sql]

    async def load(self, key: str) -> Versioned | None:
        """Return the row of `key`."""
        found = await self._database.fetch(self._load, key)
        if not found:
            return None
        version, deleted, *values = found[0]
        return Versioned(None if deleted else dict(zip(self._columns, values, strict=True)), version)

    async def store(self, key: str, value: Any) -> int:
        """Write the row of `key`.

        Raises:
            ValueError: the value has other columns; nothing was written.
        """
        if not isinstance(value, dict) or set(value) != set(self._columns):
            raise ValueError(f"a value must be a dictionary of {', '.join(self._columns)}")
        row = [value[name] for name in self._columns]
        ((version,),) = await self._database.fetch(self._store, key, False, *row)
        return int(version)

    async def delete(self, key: str) -> int:
        """Empty the row of `key`, if there is one."""
        found = await self._database.fetch(self._delete, key, True)
        return int(found[0][0]) if found else 0
