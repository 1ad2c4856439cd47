"""Proof of patterns/database.py, on both engines."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psutil
import pytest

from patterns.database import Aborted, OutcomeUnknown, UniqueViolation, Unreachable, opened
from tests.eventually import eventually, eventually_now
from tests.faults import proxy
from tests.postgres import Home, Postgres, run_sql, schema

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from patterns.database import Database, Statements
    from tests.faults import Proxy
    from tests.faults.workers import Worker

ROOT = Path(__file__).resolve().parent.parent
TABLE = "CREATE TABLE item (id TEXT PRIMARY KEY NOT NULL, n BIGINT NOT NULL)"
PUT = "INSERT INTO item VALUES ($1, $2)"
ADD = "UPDATE item SET n = n + $2 WHERE id = $1"
GET = "SELECT n FROM item WHERE id = $1"
ALL = "SELECT id, n FROM item ORDER BY id"
UPSERT = """INSERT INTO item VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET n = excluded.n
    WHERE item.n < excluded.n RETURNING n"""
# Long enough that nobody waits for its end, and it changes rows.
ENDLESS = {
    "sqlite": """INSERT INTO item WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r)
        SELECT 'endless ' || i, i FROM r WHERE i % 1000 = 0 LIMIT 1000000000""",
    "postgres": """INSERT INTO item SELECT 'endless ' || i, i FROM
        (SELECT i, pg_sleep(0.001) FROM generate_series(1, 1000000) AS g(i)) AS slow""",
}


async def filled(db: Statements, **rows: int) -> None:
    """Make the table, with rows."""
    await db.execute(TABLE)
    for name, number in rows.items():
        await db.execute(PUT, name, number)


async def backends(db: Statements, where: str) -> int:
    """Return how many of PostgreSQL's other backends are in a state."""
    ((count,),) = await db.fetch(
        f"SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND {where}"
    )
    return int(count)


def threads() -> list[str]:
    """Return the threads that a database has made."""
    return [each.name for each in threading.enumerate() if each.name.startswith("sqlite")]


# --- statements and values


async def test_placeholders_are_numbered_on_both_engines(database: Home) -> None:
    """They may be used out of order and more than once; what looks like one in a text or comment is none."""
    sql = """SELECT CAST($2 AS TEXT), CAST($1 AS BIGINT), CAST($1 AS BIGINT) + 1, '$3 it''s', "x$4" -- $5
        FROM (SELECT 1 AS "x$4") AS s /* $6
        $7 */"""
    async with database.opened() as db:
        assert await db.fetch(sql, 7, "b") == [("b", 7, 8, "$3 it's", 1)]
        many = ", ".join(f"${number}" for number in range(12, 0, -1))
        await db.execute(TABLE)
        assert await db.fetch(f"SELECT 1 FROM item WHERE n IN ({many})", *range(12)) == []


VALUES: list[Any] = [None, True, False, 0, -1, 2**63 - 1, -(2**63), 0.0, -1.5, 1e308, math.inf]
VALUES += ["", "é\n'\"\\$1", "x" * 100_000, b"", bytes(range(256)), b"\0" * 100_000]


async def test_values_come_back_as_they_were(database: Home) -> None:
    """None, bool, int, float, str and bytes survive in a column of their type."""
    columns = {bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE PRECISION", str: "TEXT", bytes: "BYTEA"}
    async with database.opened() as db:
        names = ", ".join(f"{kind.__name__}_ {column}" for kind, column in columns.items())
        await db.execute(f"CREATE TABLE kinds ({names})")
        for value in VALUES:
            for kind in columns if value is None else (type(value),):
                name = f"{kind.__name__}_"
                async with db.transaction() as t:
                    await t.execute(f"INSERT INTO kinds ({name}) VALUES ($1)", value)
                    got = await t.fetch(f"SELECT {name} FROM kinds")
                    await t.execute("DELETE FROM kinds")
                assert got == [(value,)]
                assert kind is bool or type(got[0][0]) is type(value)


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ((math.nan, 1), "^\\$1 must be a number, got NaN$"),
        (("a\0b", 1), "^\\$1 must be a text without NUL and lone surrogates$"),
        (("\ud800", 1), "^\\$1 must be a text without NUL"),
        (("a", 2**63), "^\\$2 must be an integer of 64 bits$"),
        (("a", -(2**63) - 1), "^\\$2 must be an integer of 64 bits$"),
        ((["secret"], 1), "^\\$1 must be None, bool, int, float, str or bytes, got list$"),
        ((object(), 1), "got object$"),
        (("a",), "^1 values must have as many placeholders from \\$1 on, got \\$1, \\$2$"),
        (("a", 1, 2), "^3 values must have as many placeholders"),
        ((), "^0 values must have"),
    ],
)
async def test_what_only_one_engine_would_take_is_refused_by_both(
    database: Home, args: tuple[Any, ...], why: str
) -> None:
    """Before anything is sent, in a sentence that does not show the value; a transaction goes on."""
    async with database.opened() as db:
        await filled(db)
        async with db.transaction() as t:
            for each in (t.execute, t.fetch):
                with pytest.raises(ValueError, match=why):
                    await each(PUT, *args)
            await t.execute(PUT, "after", 1)
        with pytest.raises(ValueError, match=why):
            await db.execute(PUT, *args)
        assert await db.fetch(ALL) == [("after", 1)]


@pytest.mark.parametrize("sql", ["BEGIN", " commit;", "\nROLLBACK", "savepoint x", "START TRANSACTION"])
async def test_transactions_are_not_begun_behind_its_back(database: Home, sql: str) -> None:
    """A bare BEGIN would stay open on a connection that another task is given."""
    async with database.opened() as db:
        with pytest.raises(ValueError, match=r"async with db\.transaction"):
            await db.execute(sql)


async def test_execute_counts_the_rows_that_changed(database: Home) -> None:
    """Of INSERT, UPDATE, DELETE, with a WITH before or a RETURNING behind; of anything else it is 0."""
    async with database.opened() as db:
        counts = [
            await db.execute(sql)
            for sql in (
                TABLE,
                "INSERT INTO item VALUES ('a', 1), ('b', 2), ('c', 3)",
                "INSERT INTO item VALUES ('a', 9) ON CONFLICT DO NOTHING",
                "UPDATE item SET n = n + 1 WHERE n > 1",
                "UPDATE item SET n = 0 WHERE n > 100",
                "WITH more AS (SELECT 'd' AS id, 4 AS n) INSERT INTO item SELECT id, n FROM more",
                "DELETE FROM item WHERE n < 4 RETURNING id",
                "SELECT * FROM item",
                "CREATE TABLE copy AS SELECT * FROM item",
            )
        ]
        assert counts == [0, 3, 0, 2, 0, 1, 2, 0, 0]
        assert await db.fetch("DELETE FROM item RETURNING id") == [("c",), ("d",)]
        assert await db.fetch(ALL) == []


async def test_an_older_version_never_overwrites_a_newer_one(database: Home, rng: random.Random) -> None:
    """Upsert by version is one statement on both: a hundred writers at once, and the highest stays."""
    async with database.opened() as db:
        await filled(db)
        versions = list(range(100))
        rng.shuffle(versions)
        got = await asyncio.gather(*[db.fetch(UPSERT, "a", version) for version in versions])
        assert all(rows in ([], [(version,)]) for rows, version in zip(got, versions, strict=True))
        assert await db.fetch(ALL) == [("a", 99)]
        assert [await db.execute(UPSERT, "a", version) for version in (99, 100, 3)] == [0, 1, 0]


async def test_a_row_that_is_there_is_told_by_type(database: Home) -> None:
    """UniqueViolation names the constraint, not the value; nothing is applied, and the database goes on."""
    async with database.opened() as db:
        await filled(db, secret=1)
        for sql, args in ((PUT, ("secret", 2)), ("INSERT INTO item VALUES ('new', 1), ('secret', 1)", ())):
            with pytest.raises(UniqueViolation) as told:
                await db.execute(sql, *args)
            assert told.value.constraint == {"sqlite": "item.id", "postgres": "item_pkey"}[database.engine]
            assert "secret" not in str(told.value)
        assert await db.fetch(ALL) == [("secret", 1)]


async def test_other_errors_are_the_driver_s_own(database: Home) -> None:
    """A wrong statement, a NULL where none may be: nothing of ours is put around it."""
    async with database.opened() as db:
        await filled(db)
        for sql, args in (("SELEC 1", ()), ("SELECT * FROM nowhere", ()), (PUT, ("a", None))):
            with pytest.raises(Exception) as told:
                await db.execute(sql, *args)
            assert type(told.value).__module__.split(".")[0] in {"sqlite3", "asyncpg"}
        assert await db.fetch(ALL) == []


async def test_foreign_keys_are_kept_on_both(database: Home) -> None:
    """SQLite checks them only where it is told to."""
    async with database.opened() as db:
        await filled(db)
        await db.execute("CREATE TABLE part (of TEXT NOT NULL REFERENCES item (id))")
        with pytest.raises(Exception, match=r"(?i)foreign key"):
            await db.execute("INSERT INTO part VALUES ('nothing')")


# --- transactions


async def test_a_transaction_is_applied_whole(database: Home) -> None:
    """It sees its own writes, others see them when the block has ended."""
    async with database.opened() as db, database.opened() as other:
        await filled(db, a=1)
        async with db.transaction() as t:
            assert await t.execute(ADD, "a", 1) == 1
            await t.execute(PUT, "b", 5)
            assert await t.fetch(ALL) == [("a", 2), ("b", 5)]
            assert await other.fetch(ALL) == [("a", 1)]
        assert await other.fetch(ALL) == [("a", 2), ("b", 5)]


@pytest.mark.parametrize("error", [KeyError("ours"), asyncio.CancelledError(), SystemExit(1)])
async def test_a_block_that_raises_is_rolled_back(database: Home, error: BaseException) -> None:
    """Whatever it raises goes on as it is, and nothing is kept."""
    async with database.opened() as db:
        await filled(db, a=1)

        async def work() -> None:
            async with db.transaction() as t:
                await t.execute(ADD, "a", 1)
                raise error

        with pytest.raises(type(error)) as told:
            await work()
        assert told.value is error
        assert await db.fetch(ALL) == [("a", 1)]


async def check_a_swallowed_error_keeps_nothing(
    database: Home, transaction: Callable[[Database], Any]
) -> None:
    """A statement fails, and the block goes on as if it had not."""
    async with database.opened() as db:
        await filled(db, a=1)
        failed = False
        try:
            async with transaction(db) as t:
                await t.execute(ADD, "a", 1)
                with suppress(UniqueViolation):
                    await t.execute(PUT, "a", 5)
                with suppress(Aborted):
                    await t.execute(ADD, "a", 10)
        except Aborted as error:
            failed = isinstance(error.__cause__, UniqueViolation)
        assert failed, f"told it was committed, and there is {await db.fetch(ALL)}"
        assert await db.fetch(ALL) == [("a", 1)]


async def test_a_failed_statement_ends_its_transaction(database: Home) -> None:
    """Later statements raise Aborted, so does the end of the block, and nothing is kept: the same on both."""
    await check_a_swallowed_error_keeps_nothing(database, lambda db: db.transaction())


async def test_engines_differ_in_what_a_failed_statement_leaves(database: Home) -> None:
    """Bare, SQLite commits the rest, and PostgreSQL rolls back while it reports a COMMIT without an error."""

    class Bare:
        def __init__(self, session: Any) -> None:
            self.session = session

        async def execute(self, sql: str, *args: Any) -> Any:
            try:
                return await self.session.run(sql, args, rows=False, alone=False)
            except Exception as error:
                if type(error).__name__ != "InFailedSQLTransactionError":
                    raise
                raise Aborted from error

    @asynccontextmanager
    async def bare(db: Database) -> AsyncIterator[Bare]:
        async with db._engine.lent() as session:
            await session.begin()
            yield Bare(session)
            await session.commit()

    with pytest.raises(AssertionError, match="told it was committed, and there is") as told:
        await check_a_swallowed_error_keeps_nothing(database, bare)
    kept = {"sqlite": "('a', 12)", "postgres": "('a', 1)"}[database.engine]
    assert kept in str(told.value)


async def test_a_transaction_that_has_ended_does_nothing_more(database: Home) -> None:
    """Its statements would be somebody else's."""
    async with database.opened() as db:
        await filled(db)
        async with db.transaction() as t:
            pass
        with pytest.raises(RuntimeError, match="the transaction has ended"):
            await t.execute(PUT, "a", 1)


async def test_inside_a_transaction_the_database_is_refused(database: Home) -> None:
    """To the same task, which would wait for itself; other tasks, and this one afterwards, are served."""
    async with database.opened() as db:
        await filled(db, a=1)
        async with db.transaction() as t:
            with pytest.raises(RuntimeError, match="use the transaction"):
                await db.fetch(ALL)
            with pytest.raises(RuntimeError, match="use the transaction"):
                async with db.transaction():
                    pass
            other = asyncio.create_task(db.fetch(ALL))
            await t.execute(ADD, "a", 1)
        assert await other in ([("a", 1)], [("a", 2)])
        assert await db.fetch(ALL) == [("a", 2)]


# --- many at once


async def test_many_tasks_at_once_lose_nothing(database: Home) -> None:
    """Fifty tasks move money in transactions while others read: every sum is whole, every move is counted."""
    async with database.opened(max_connections=4) as db:
        await filled(db, a=1000, b=1000)

        async def move() -> None:
            async with db.transaction() as t:
                await t.execute(ADD, "a", -1)
                await t.execute(ADD, "b", 1)

        async def total() -> int:
            return sum(number for _, number in await db.fetch(ALL))

        *totals, _ = await asyncio.gather(
            *[total() for _ in range(25)], asyncio.gather(*[move() for _ in range(50)])
        )
        assert totals == [2000] * 25
        assert await db.fetch(ALL) == [("a", 950), ("b", 1050)]


async def test_tasks_of_one_transaction_take_turns(database: Home) -> None:
    """Statements that a block sends at the same time are carried out one after the other."""
    async with database.opened() as db:
        await filled(db, a=0)
        async with db.transaction() as t:
            await asyncio.gather(*[t.execute(ADD, "a", 1) for _ in range(20)])
        assert await db.fetch(ALL) == [("a", 20)]


async def test_processes_that_write_at_once_wait_for_each_other(database: Home) -> None:
    """Two databases opened on one place do not fail for each other's locks."""
    async with database.opened() as here, database.opened() as there:
        await filled(here, a=0)

        async def add(db: Database) -> None:
            async with db.transaction() as t:
                await t.execute(ADD, "a", 1)

        await asyncio.gather(*[add(db) for db in (here, there) for _ in range(25)])
        assert await here.fetch(ALL) == [("a", 50)]


async def test_it_uses_no_thread_but_its_own(database: Home) -> None:
    """The loop's default executor may be busy, or shut down."""
    default = ThreadPoolExecutor(1)
    default.shutdown()
    asyncio.get_running_loop().set_default_executor(default)
    async with database.opened() as db:
        await filled(db, a=1)
        assert await db.fetch(ALL) == [("a", 1)]


async def test_sqlite_has_one_thread_while_it_is_open(tmp_path: Path) -> None:
    """It does not block the loop, and is gone when the database is closed."""
    async with opened(f"sqlite://{tmp_path}/db") as db:
        await filled(db)
        assert len(threads()) == 1
        call = asyncio.create_task(db.execute(ENDLESS["sqlite"]))
        began = time.monotonic()
        for _ in range(100):
            await asyncio.sleep(0)
        assert time.monotonic() - began < 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert threads() == []


async def test_postgres_gets_no_more_connections_than_were_allowed(postgres: Postgres) -> None:
    """Twenty tasks share three, which are made when they are needed and kept."""
    async with opened(postgres.url) as other:
        name = f"limited-{time.monotonic_ns()}"
        async with opened(f"{postgres.url}&application_name={name}", max_connections=3) as db:
            ours = f"application_name = '{name}'"
            assert await backends(other, ours) == 0
            await db.fetch("SELECT 1")
            assert await backends(other, ours) == 1
            await asyncio.gather(*[db.fetch("SELECT pg_sleep(0.01)") for _ in range(20)])
            assert await backends(other, ours) == 3
        await eventually(lambda: no_backend(other, ours), within=2)


async def no_backend(db: Statements, where: str) -> bool:
    """Return whether there is none in that state."""
    return await backends(db, where) == 0


# --- cancellation


async def test_a_statement_that_waits_for_its_turn_is_never_sent(database: Home) -> None:
    """Cancelled in the queue, it leaves no trace, and the next one is served."""
    async with database.opened(max_connections=1) as db:
        await filled(db, a=1)
        async with db.transaction() as t:
            waiting = [asyncio.create_task(db.execute(ADD, "a", 1)) for _ in range(3)]
            await t.fetch(ALL)
            waiting[1].cancel()
            await t.fetch(ALL)
            assert waiting[1].cancelled()
        await asyncio.gather(waiting[0], waiting[2])
        assert await db.fetch(ALL) == [("a", 3)]


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a transaction"])
async def test_a_statement_under_way_is_stopped_and_rolled_back(database: Home, *, inside: bool) -> None:
    """It has ended when the caller is told: soon, without a trace, and its place is free."""
    async with database.opened(max_connections=1) as db, database.opened() as other:
        await filled(db, a=1)

        async def work() -> None:
            if not inside:
                await db.execute(ENDLESS[database.engine])
                return
            async with db.transaction() as t:
                await t.execute(ADD, "a", 1)
                await t.execute(ENDLESS[database.engine])

        call = asyncio.create_task(work())
        for _ in range(20):
            await other.fetch(ALL)
        began = time.monotonic()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert time.monotonic() - began < 2
        if database.engine == "postgres":
            assert await backends(other, "state <> 'idle' AND query LIKE '%endless%'") == 0
        assert await other.execute(ADD, "a", 1) == 1, "a lock is left"
        assert await db.fetch(ALL) == [("a", 2)]


async def test_waiting_for_a_lock_of_another_ends_when_cancelled(database: Home) -> None:
    """Long before the other lets go, or patience ends."""
    async with database.opened(patience=30) as db, database.opened() as other:
        await filled(other, a=1)
        async with other.transaction() as t:
            await t.execute(ADD, "a", 1)
            call = asyncio.create_task(db.execute(ADD, "a", 10))
            for _ in range(20):
                await t.fetch(ALL)
            began = time.monotonic()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert time.monotonic() - began < 2
        assert await db.fetch(ALL) == [("a", 2)]


async def test_a_lock_that_is_never_released_is_unreachable(tmp_path: Path) -> None:
    """SQLite waits `patience` seconds for another process, and nothing was applied."""
    url = f"sqlite://{tmp_path}/db"
    async with opened(url, patience=0.2) as db, opened(url) as other:
        await filled(other, a=1)
        async with other.transaction():
            began = time.monotonic()
            with pytest.raises(Unreachable, match="locked"):
                await db.execute(ADD, "a", 1)
            with pytest.raises(Unreachable, match="locked"):
                async with db.transaction():
                    pass
            assert 0.3 < time.monotonic() - began < 3
            assert await db.fetch(ALL) == [("a", 1)], "readers wait for nobody"
        assert await db.execute(ADD, "a", 1) == 1


async def test_a_thousand_cancellations_leave_nothing(database: Home, rng: random.Random) -> None:
    """At any step of statements and transactions: sums stay whole, no lock, place, task or thread is left."""
    async with database.opened(max_connections=2) as db, database.opened() as other:
        await filled(db, a=0, b=0, c=0)

        async def work() -> None:
            async with db.transaction() as t:
                await t.execute(ADD, "a", 1)
                await t.execute(ADD, "b", -1)
            await db.execute(ADD, "c", 1)

        for _ in range(200):
            calls = [asyncio.create_task(work()) for _ in range(5)]
            for call in calls:
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                asyncio.get_running_loop().call_later(rng.uniform(0, 0.01), call.cancel)
            await asyncio.wait(calls)
            assert all(call.cancelled() or call.exception() is None for call in calls)
        assert await other.execute(ADD, "c", 0) == 1, "a lock is left"
        state: dict[str, int] = dict(await other.fetch(ALL))
        assert state["a"] + state["b"] == 0
        await asyncio.gather(*[work() for _ in range(10)])
        assert await has(db, "a", state["a"] + 10)
        if database.engine == "postgres":
            assert await backends(other, "state = 'idle in transaction'") == 0
        assert len(threads()) == (2 if database.engine == "sqlite" else 0)
    assert threads() == []


async def has(db: Statements, name: str, number: int) -> bool:
    """Return whether a row has that number."""
    return await db.fetch(GET, name) == [(number,)]


async def test_a_commit_that_was_sent_is_finished(postgres: Postgres, on_postgres: Home) -> None:
    """Its caller is cancelled while the reply is on its way, is told so, and the rows are there."""
    async with (
        proxy(postgres.port) as line,
        through(postgres, on_postgres, line) as db,
        on_postgres.opened() as other,
    ):
        await filled(other, a=1)

        async def work() -> None:
            async with db.transaction() as t:
                await t.execute(ADD, "a", 1)
                line.latency(0.3)

        call = asyncio.create_task(work())
        await eventually(lambda: has(other, "a", 2), within=5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        line.up()
        assert await db.fetch(ALL) == [("a", 2)]


async def test_a_cancelled_commit_is_waited_for_as_long_as_patience_lasts(
    postgres: Postgres, on_postgres: Home
) -> None:
    """Its reply never comes: the caller goes, cancelled again or not, and the connection with it."""
    async with (
        proxy(postgres.port) as line,
        through(postgres, on_postgres, line, patience=0.3) as db,
        on_postgres.opened() as other,
    ):
        await filled(other, a=1)

        async def work() -> None:
            async with db.transaction() as t:
                await t.execute(ADD, "a", 1)
                line.hole("down")

        call = asyncio.create_task(work())
        await eventually(lambda: has(other, "a", 2), within=5)
        began = time.monotonic()
        for _ in range(3):
            call.cancel()
            await other.fetch(ALL)
        with pytest.raises(asyncio.CancelledError):
            await call
        assert 0.2 < time.monotonic() - began < 2
        line.up()
        assert await db.fetch(ALL) == [("a", 2)]


async def test_a_server_that_stands_still_holds_a_cancelled_caller_for_its_patience(
    postgres: Postgres, on_postgres: Home
) -> None:
    """The connection is given up, and the server rolls back when it notices."""
    async with on_postgres.opened(patience=0.3, max_connections=1) as db:
        await filled(db, a=1)
        stopped = asyncio.Event()

        async def work() -> None:
            async with db.transaction() as t:
                await t.execute(ADD, "a", 1)
                postgres.stop()
                stopped.set()
                await t.execute(ADD, "a", 1)

        try:
            call = asyncio.create_task(work())
            await stopped.wait()
            began = time.monotonic()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert 0.2 < time.monotonic() - began < 2
            with pytest.raises(Unreachable):  # a new connection is not greeted in time
                await db.fetch(ALL)
        finally:
            postgres.cont()
        assert await eventually(lambda: db.execute(ADD, "a", 1), within=5) == 1
        assert await db.fetch(ALL) == [("a", 2)]


# --- a server that goes away


@pytest.fixture
def on_postgres(postgres: Postgres) -> Iterator[Home]:
    """An empty database on the server that the test may break."""
    with schema(postgres.url, postgres) as home:
        yield home


def through(
    postgres: Postgres, home: Home, line: Proxy, **options: Any
) -> AbstractAsyncContextManager[Database]:
    """Open the same database through a line that can be broken."""
    search_path = home.url.rpartition("search_path=")[2]
    return opened(f"{postgres.url_at(line.port)}&search_path={search_path}", **options)


@pytest.mark.parametrize("applied", [True, False], ids=["its reply", "the COMMIT"])
async def test_a_lost_commit_is_of_unknown_outcome(
    postgres: Postgres, on_postgres: Home, *, applied: bool
) -> None:
    """Whether the COMMIT or its reply was lost, the caller gets OutcomeUnknown, and both are possible."""
    async with (
        proxy(postgres.port) as line,
        through(postgres, on_postgres, line) as db,
        on_postgres.opened() as other,
    ):
        await filled(db, a=1)
        with (line.lose_reply if applied else line.drop_request)(b"COMMIT") as toxic:
            with pytest.raises(OutcomeUnknown, match="ConnectionDoesNotExistError") as told:
                async with db.transaction() as t:
                    await t.execute(ADD, "a", 1)
            assert toxic.hits == 1
        assert isinstance(told.value, ConnectionError)
        assert await other.fetch(ALL) == [("a", 2 if applied else 1)]
        assert await db.execute(ADD, "a", 1) == 1, "the place of the lost connection is lost too"


@pytest.mark.parametrize("applied", [True, False], ids=["its reply", "the statement"])
async def test_a_lost_statement_of_its_own_is_of_unknown_outcome(
    postgres: Postgres, on_postgres: Home, *, applied: bool
) -> None:
    """It has a COMMIT inside."""
    async with (
        proxy(postgres.port) as line,
        through(postgres, on_postgres, line) as db,
        on_postgres.opened() as other,
    ):
        await filled(db, a=1)
        await db.execute(ADD, "a", 0)  # prepared
        with (line.lose_reply if applied else line.drop_request)(b"B") as toxic:
            with pytest.raises(OutcomeUnknown):
                await db.execute(ADD, "a", 1)
            assert toxic.hits == 1
        assert await other.fetch(ALL) == [("a", 2 if applied else 1)]


async def test_a_lost_statement_of_a_transaction_is_surely_not_applied(
    postgres: Postgres, on_postgres: Home
) -> None:
    """No COMMIT was sent: it is Unreachable, whatever came of the statement."""
    async with (
        proxy(postgres.port) as line,
        through(postgres, on_postgres, line) as db,
        on_postgres.opened() as other,
    ):
        await filled(db, a=1)

        async def work() -> None:
            async with db.transaction() as t:
                await t.execute(ADD, "a", 1)
                await line.reset_all()
                await t.execute(ADD, "a", 1)

        with pytest.raises(Unreachable):
            await work()
        assert await other.execute(ADD, "a", 0) == 1
        assert await other.fetch(ALL) == [("a", 1)]


async def test_a_server_that_is_killed_and_restarted_is_used_again(
    postgres: Postgres, on_postgres: Home
) -> None:
    """What was committed is there, what was not is not; meanwhile calls are Unreachable, at once."""
    async with on_postgres.opened() as db:
        await filled(db, a=1)

        async def work() -> None:
            async with db.transaction() as t:
                await t.execute(ADD, "a", 1)
                postgres.kill()
                await t.execute(ADD, "a", 1)

        with pytest.raises(Unreachable):
            await work()
        for _ in range(3):
            with pytest.raises(Unreachable, match=r"ConnectionRefusedError|FileNotFoundError"):
                await db.fetch(ALL)
        postgres.restart()
        assert await db.fetch(ALL) == [("a", 1)]
        assert await db.execute(ADD, "a", 1) == 1


async def test_connections_that_died_while_idle_are_replaced(postgres: Postgres, on_postgres: Home) -> None:
    """A restart between two calls costs none of them an error."""
    async with on_postgres.opened() as db:
        await filled(db, a=1)
        await asyncio.gather(*[db.fetch(ALL) for _ in range(5)])
        postgres.restart()
        engine: Any = db._engine
        await eventually(lambda: all(each.is_closed() for each in engine._idle), within=5)
        assert await asyncio.gather(*[db.fetch(ALL) for _ in range(5)]) == [[("a", 1)]] * 5


async def test_a_connection_that_an_administrator_ends_is_lost(on_postgres: Home) -> None:
    """The statement under way is of unknown outcome, the next one has a new connection."""
    async with on_postgres.opened() as db, on_postgres.opened() as other:
        await filled(db, a=1)
        call = asyncio.create_task(db.execute(ENDLESS["postgres"]))
        await eventually(lambda: ended_one(other), within=5)
        with pytest.raises(OutcomeUnknown):
            await call
        assert await db.fetch(ALL) == [("a", 1)]


async def ended_one(db: Statements) -> bool:
    """End the connection whose statement is endless, and return whether there was one."""
    sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'active' AND query LIKE $1"
    return await db.fetch(sql, "INSERT INTO item SELECT%") == [(True,)]


WRITER = """
import asyncio, sys
from patterns.database import opened

async def main():
    async with opened(sys.argv[1]) as db, db.transaction() as t:
        await t.execute("UPDATE item SET n = n + 1 WHERE id = 'a'")
        print("inside", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_process_killed_inside_a_transaction_leaves_nothing(
    database: Home, spawn: Callable[..., Worker], tmp_path: Path
) -> None:
    """Its writes are rolled back, and the next writer waits for no lock of the dead."""
    program = tmp_path / "writer.py"
    program.write_text(WRITER)
    async with database.opened() as db:
        await filled(db, a=1)
        worker = spawn(program, database.url)
        await worker.said("inside", within=20)
        worker.kill()
        assert await db.execute(ADD, "a", 10) == 1
        assert await db.fetch(ALL) == [("a", 11)]


# --- opening and closing


async def test_without_a_url_each_has_a_private_file_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them share nothing, and their folders are gone when they are closed."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    async with opened() as one, opened() as two:
        await filled(one, a=1)
        await filled(two, b=2)
        assert await one.fetch(ALL) == [("a", 1)]
        ((_, _, file),) = await one.fetch("PRAGMA database_list")
        folder = file.rpartition("/")[0]
        assert os.listdir(folder)
    with pytest.raises(FileNotFoundError):
        os.listdir(folder)
    assert threads() == []


async def test_the_environment_names_the_database(database: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """DATABASE_URL is read when no url is given."""
    monkeypatch.setenv("DATABASE_URL", database.url)
    async with opened() as db:
        await filled(db, a=1)
    async with database.opened() as db:
        assert await db.fetch(ALL) == [("a", 1)]


async def test_a_path_may_hold_anything_that_is_encoded(tmp_path: Path) -> None:
    """Spaces, question marks, hashes and percent signs in the name of a SQLite file."""
    path = tmp_path / "a b?c#d%e é.db"
    async with opened(f"sqlite://{quote(str(path))}") as db:
        await filled(db)
    assert path.exists()


@pytest.mark.parametrize(
    "url",
    [
        *("", "secret", "sqlite://secret", "sqlite:secret", "sqlite:///secret?mode=ro", "file:///secret"),
        *("mysql://u:secret@h/d", "postgres://u:secret@h/d", "postgresql://u:se/cret@h/d"),
        *("postgresql://u:sec@ret@h/d", "postgresql://u:secret@h/d/e", "postgresql://u:secret@h/d#x"),
        "postgresql://u:sec ret@h/d",
    ],
)
async def test_a_url_of_no_known_form_is_refused_and_not_shown(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says which forms there are, and where the URL came from."""
    for name in ("url", "DATABASE_URL"):
        monkeypatch.setenv("DATABASE_URL", url)
        with pytest.raises(ValueError, match=f"^{name} must be sqlite:///absolute/path or ") as told:
            async with opened(url if name == "url" else None):
                pass
        assert "secret" not in str(told.value)
        assert "cret" not in str(told.value)


@pytest.mark.parametrize(
    ("options", "bound"),
    [({"max_connections": bad}, "max_connections must be a whole number >= 1") for bad in (0, 1.5, True)]
    + [({"patience": bad}, "patience must be a finite number > 0") for bad in (0, -1, math.nan, math.inf)],
)
async def test_options_out_of_bounds_are_refused(options: dict[str, Any], bound: str) -> None:
    """Before anything is opened."""
    with pytest.raises(ValueError, match=bound):
        async with opened(**options):
            pass


async def test_a_file_that_cannot_be_opened_is_unreachable(tmp_path: Path) -> None:
    """A folder that is not there is told when it is opened, and no thread is left."""
    with pytest.raises(Unreachable, match="unable to open"):
        async with opened(f"sqlite://{tmp_path}/nowhere/db"):
            pass
    assert threads() == []


async def test_postgres_may_be_down_when_it_is_opened() -> None:
    """It is looked for at the first statement, and the message shows no password."""
    async with opened("postgresql://us:secret@127.0.0.1:1/db") as db:
        for call in (db.execute, db.fetch):
            with pytest.raises(Unreachable, match=r"^PostgreSQL cannot be reached: Connection") as told:
                await call("SELECT 1")
            assert "secret" not in repr(told.value) + repr(db)
        with pytest.raises(Unreachable):
            async with db.transaction():
                pass


async def test_a_wrong_password_is_the_driver_s_own_error_and_not_shown(postgres: Postgres) -> None:
    """To wait for it to become right would be no use."""
    async with opened(postgres.tcp_url) as db:
        assert await db.fetch("SELECT 1") == [(1,)]
        assert postgres.password not in repr(db)
    async with opened(postgres.tcp_url.replace(postgres.password, "wrong-secret")) as db:
        with pytest.raises(Exception, match="authentication failed") as told:
            await db.fetch("SELECT 1")
    assert type(told.value).__name__ == "InvalidPasswordError"
    assert "secret" not in f"{told.value} {told.value.args}"


async def test_without_asyncpg_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only who names PostgreSQL needs it."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ImportError, match=r"pip install 'executable-patterns\[postgres\]'"):
        async with opened("postgresql://127.0.0.1/db"):
            pass
    monkeypatch.delenv("DATABASE_URL", raising=False)
    async with opened() as db:
        await filled(db)


async def test_closing_ends_what_other_tasks_have_under_way(database: Home) -> None:
    """A transaction of another task is rolled back; what comes later is refused."""
    entered = asyncio.Event()
    async with database.opened() as db:
        await filled(db, a=1)

        async def work() -> None:
            async with db.transaction() as t:
                await t.execute(ADD, "a", 1)
                entered.set()
                await t.execute(ENDLESS[database.engine])

        call = asyncio.create_task(work())
        await entered.wait()
        began = time.monotonic()
    assert time.monotonic() - began < 2
    with pytest.raises(Unreachable):
        await call
    for late in (db.fetch(ALL), db.execute(ADD, "a", 1)):
        with pytest.raises(RuntimeError, match="the database is closed"):
            await late
    assert threads() == []
    async with database.opened() as db:
        assert await db.fetch(ALL) == [("a", 1)]


@pytest.mark.usefixtures("no_leaks")
def test_opening_and_closing_leaves_no_descriptor(tmp_path: Path, postgres: Postgres) -> None:
    """Nor a ResourceWarning, also where a call was cancelled or the server unreachable."""

    async def use(url: str) -> None:
        async with opened(url) as db:
            await db.fetch("SELECT 1")
            call = asyncio.create_task(db.fetch("SELECT 2"))
            await asyncio.sleep(0)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call

    for url in (f"sqlite://{tmp_path}/db", postgres.url):
        for _ in range(3):
            asyncio.run(use(url))
    with pytest.raises(Unreachable):
        asyncio.run(use("postgresql://127.0.0.1:1/db"))


# --- the tests' own server

PARENT = """
import sys
from pathlib import Path
from tests.postgres import Postgres

with Postgres(Path(sys.argv[1])) as server:
    print(server.pid, server.dir, flush=True)
    sys.stdin.read()
"""


def test_the_server_ends_with_the_process_that_started_it(needs: Callable[[str], str]) -> None:
    """Also with one that is killed: no process, folder or shared memory is left."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, needs("postgres")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().decode().split()
        family = [int(pid), *(child.pid for child in psutil.Process(int(pid)).children(recursive=True))]
        assert len(family) > 3
        parent.send_signal(signal.SIGKILL)
    eventually_now(lambda: not any(map(psutil.pid_exists, family)), within=10, what="the end of the server")
    eventually_now(lambda: not Path(folder).exists(), within=10, what="the end of its folder")


def test_the_server_survives_kill_and_pause(postgres: Postgres) -> None:
    """What was committed before SIGKILL is there after a restart; a pause only delays."""
    run_sql(postgres.url, "CREATE TABLE IF NOT EXISTS kept (n BIGINT)", "INSERT INTO kept VALUES (1)")
    before = postgres.pid
    postgres.kill()
    assert not postgres.running
    postgres.restart()
    assert postgres.running
    assert postgres.pid != before
    postgres.stop()
    postgres.cont()

    async def count() -> object:
        async with opened(postgres.url) as db:
            return await db.fetch("SELECT count(*) FROM kept")

    assert asyncio.run(count()) == [(1,)]
    run_sql(postgres.url, "DROP TABLE kept")
