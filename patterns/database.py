"""The one place where a source of record is opened: SQLite, or PostgreSQL where a URL says so.

A cache is proved against a source that commits, rolls back, refuses and goes away; a dictionary does none of
it. SQLite comes with Python and needs nobody; PostgreSQL is what production has. Here both take the same
statements and fail in the same few ways, which the caller can tell apart.

What holds:

1. Placeholders are `$1`, `$2`, ...; values are None, bool, int of 64 bits, float, str and bytes. What only
   one of the engines would take (NaN, a NUL in a text, a value too many) is a ValueError on both, before
   anything is sent.
2. A statement of its own is applied whole or not at all; so is a transaction. A statement that failed ends
   its transaction: whatever the body does about it, nothing of it is kept, and Aborted says so.
3. Any number of tasks may use one Database, first come first served. PostgreSQL carries `max_connections`
   out at a time; SQLite one, in a thread of its own that no other work of the process waits for.
4. Cancelled while it waits for its turn, a statement is never sent. Cancelled later, it is stopped and rolled
   back, or was quicker and is finished; a COMMIT that was sent is finished. Either way it has ended when the
   caller is told: no transaction is open, no place is lost, no thread works on. A server that does not
   confirm it within `patience` loses the connection, and ends the transaction when it notices.
5. UniqueViolation: the row is there already. Unreachable: surely not applied. OutcomeUnknown: the connection
   was lost between a COMMIT (or a statement of its own, which has one inside) and its reply. Anything else is
   the driver's own error, and not applied.
6. Within a transaction the same task may not use the Database: on SQLite it would wait for itself.
7. After the `async with` nothing is left: connections are closed, what is under way in other tasks is rolled
   back, the thread has ended, and the private file, which is made where no URL is given, is gone.
8. No error message and no repr shows a password.

What does not: nothing is sent twice, here as in `keyspace`: who knows what may be repeated repeats it. Rely
on READ COMMITTED, which is what PostgreSQL gives; SQLite gives more. What is committed to a `sqlite:///` file
survives a power failure, the private file need not. If this process is killed, SQLite rolls back at once and
PostgreSQL when it notices; the private file stays in the temporary folder.

SQL for both: BIGINT, DOUBLE PRECISION, TEXT, BYTEA and BOOLEAN (which SQLite returns as 1 and 0), NOT NULL
beside PRIMARY KEY, CAST and not `::`, ON CONFLICT and RETURNING. A write that an older one never overwrites:

>>> import asyncio
>>> TABLE = "CREATE TABLE price (id TEXT PRIMARY KEY NOT NULL, cents BIGINT, version BIGINT NOT NULL)"
>>> PUT = '''INSERT INTO price VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE
...     SET cents = excluded.cents, version = excluded.version WHERE price.version < excluded.version'''
>>> async def main() -> None:
...     async with opened() as db:
...         await db.execute(TABLE)
...         for cents, version in [(10, 1), (12, 2), (11, 1)]:
...             print(await db.execute(PUT, "a", cents, version))
...         print(await db.fetch("SELECT cents FROM price WHERE id = $1", "a"))
>>> asyncio.run(main())
1
1
0
[(12,)]

Sources: SQLite documentation, "Write-Ahead Logging", "UPSERT", "sqlite3_interrupt"; PostgreSQL documentation,
"Transaction Isolation", "Canceling Requests in Progress".
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import sqlite3
import tempfile
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar
from urllib.parse import unquote

from patterns.bounds import number, whole
from patterns.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

__all__ = [
    "Aborted",
    "Database",
    "OutcomeUnknown",
    "Statements",
    "Transaction",
    "UniqueViolation",
    "Unreachable",
    "Value",
    "opened",
]

T = TypeVar("T")
Value: TypeAlias = bool | int | float | str | bytes | None
Row: TypeAlias = tuple[Any, ...]


class UniqueViolation(Exception):
    """A row with this key is there already.

    Attributes:
        constraint: its name in PostgreSQL, its columns in SQLite.
    """

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint

    def __str__(self) -> str:
        return f"a row with this key is there already: {self.constraint}"


class Unreachable(ConnectionError):
    """The database did not answer, or was locked by another process for too long; nothing was applied."""


class OutcomeUnknown(ConnectionError):
    """The connection was lost between a COMMIT and its reply: it was applied, or it was not."""


class Aborted(RuntimeError):
    """A statement of the transaction had failed; all of it is rolled back."""


class Statements(ABC):
    """What can be asked of a Database, and of a Transaction."""

    async def execute(self, sql: str, *args: Value) -> int:
        """Carry out one statement and return how many rows it changed.

        Raises:
            ValueError: the values do not fit the placeholders, or are none that both engines take.
        """
        _check(sql, args)
        changed: int = await self._run(sql, args, rows=False)
        return changed

    async def fetch(self, sql: str, *args: Value) -> list[Row]:
        """Carry out one statement and return its rows: of a SELECT, or of a RETURNING.

        Raises:
            ValueError: the values do not fit the placeholders, or are none that both engines take.
        """
        _check(sql, args)
        found: list[Row] = await self._run(sql, args, rows=True)
        return found

    @abstractmethod
    async def _run(self, sql: str, args: tuple[Value, ...], *, rows: bool) -> Any: ...


class Transaction(Statements):
    """Statements that are applied together or not at all; from `Database.transaction`."""

    def __init__(self, session: _Session) -> None:
        self._session = session
        self._turn = asyncio.Lock()  # for tasks that the body starts
        self._failed: BaseException | None = None
        self._over = False

    async def _run(self, sql: str, args: tuple[Value, ...], *, rows: bool) -> Any:
        async with self._turn:
            if self._over:
                raise RuntimeError("the transaction has ended")
            if self._failed is not None:
                raise Aborted(_ABORTED) from self._failed
            try:
                return await self._session.run(sql, args, rows=rows, alone=False)
            except BaseException as error:
                self._failed = error
                raise

    async def _commit(self) -> None:
        async with self._turn:
            self._over = True
        if self._failed is not None:
            raise Aborted(_ABORTED) from self._failed
        await _to_the_end(self._session.commit(), self._session.patience)

    async def _roll_back(self) -> None:
        self._over = True
        await _to_the_end(self._session.roll_back())


class Database(Statements):
    """A source of record; from `opened`."""

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._inside: set[asyncio.Task[Any] | None] = set()

    # --8<-- [start:transaction]
    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Lend a transaction, committed at the end of the block, rolled back if the block raises.

        Raises:
            Aborted: a statement failed, and the block went on as if it had not.
            OutcomeUnknown: the reply to the COMMIT was lost.
            RuntimeError: this task is in a transaction already.
        """
        self._refuse_inside()
        async with self._engine.lent() as session:
            transaction, task = Transaction(session), asyncio.current_task()
            self._inside.add(task)
            try:
                await session.begin()
                yield transaction
                await transaction._commit()
            except BaseException:
                await transaction._roll_back()
                raise
            finally:
                self._inside.discard(task)

    # --8<-- [end:transaction]

    async def _run(self, sql: str, args: tuple[Value, ...], *, rows: bool) -> Any:
        self._refuse_inside()
        async with self._engine.lent() as session:
            return await session.run(sql, args, rows=rows, alone=True)

    def _refuse_inside(self) -> None:
        if asyncio.current_task() in self._inside:
            raise RuntimeError("this task is in a transaction: use the transaction, not the database")


@asynccontextmanager
async def opened(
    url: str | None = None, *, max_connections: int = 8, patience: float = 5.0
) -> AsyncIterator[Database]:
    """Lend a database and close it.

    Args:
        url: `sqlite:///absolute/path`, or `postgresql://user:password@host:port/name`, percent-encoded, with
            `?host=/folder/of/the/socket` and other options of libpq where needed. None reads DATABASE_URL
            and, if that is not set, makes a private SQLite file in a temporary folder.
        max_connections: of PostgreSQL, at one time; each is made when it is first needed.
        patience: seconds to connect, to wait for a lock of another process (SQLite), and for the server to
            confirm that what was cancelled has ended.

    Raises:
        ValueError: an argument is out of bounds, or the URL has none of the forms.
        ImportError: asyncpg is missing.
        Unreachable: the file cannot be opened; PostgreSQL is looked for at the first statement.
    """
    whole("max_connections", max_connections, at_least=1)
    number("patience", patience, above=0)
    name = "url"
    if url is None:
        name, url = "DATABASE_URL", os.environ.get("DATABASE_URL")
    engine: _Engine
    if url is None:
        engine = _SQLite(None, patience)
    elif found := re.fullmatch(r"sqlite://(/[^?#\0]+)", url):
        engine = _SQLite(unquote(found[1]), patience)
    elif re.fullmatch(r"postgresql://(?:[^@/?#\s]*@)?[^@/?#\s]*(?:/[^/?#\s]*)?(?:\?[^#\s]*)?", url):
        engine = _Postgres(url, max_connections, patience)
    else:
        # Nothing of the URL is shown: in one that was not understood, a password may be anywhere.
        raise ValueError(
            f"{name} must be sqlite:///absolute/path or postgresql://[user[:password]@]host[:port]/name, "
            "percent-encoded"
        )
    try:
        await engine.open()
        yield Database(engine)
    finally:
        await _to_the_end(engine.close())


_ABORTED = "a statement of this transaction failed, and all of it is rolled back: begin another one"


class _Session(Protocol):
    """One connection in one task's hands."""

    patience: float | None  # seconds that a COMMIT may go on when its caller was cancelled

    async def run(self, sql: str, args: tuple[Value, ...], *, rows: bool, alone: bool) -> Any: ...
    async def begin(self) -> None: ...
    async def commit(self) -> None: ...
    async def roll_back(self) -> None: ...  # never raises


class _Engine(Protocol):
    async def open(self) -> None: ...
    async def close(self) -> None: ...
    def lent(self) -> AbstractAsyncContextManager[_Session]: ...


async def _to_the_end(work: Awaitable[T], patience: float | None = None) -> T:
    """Await `work`, and if we are cancelled meanwhile, be so when it has ended.

    Args:
        work: to be done.
        patience: seconds after which it is cancelled, too.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError:
        ended = asyncio.ensure_future(_ended(task, patience))
        while not ended.done():
            try:
                await asyncio.wait((ended,))
            except asyncio.CancelledError:  # once is enough, and the first is raised
                continue
        if not task.cancelled():
            task.exception()
        raise
    return task.result()


async def _ended(task: asyncio.Future[Any], patience: float | None) -> None:
    try:
        async with SYSTEM_CLOCK.timeout(patience):
            await asyncio.wait((task,))
    except TimeoutError:
        task.cancel()
        await asyncio.wait((task,))


# What both engines take

_TOKENS = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|\$(\d+)""", re.DOTALL)
_OURS = re.compile(r"\s*(?:BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE|PREPARE)\b", re.IGNORECASE)
_UNFIT = re.compile("[\0\ud800-\udfff]")


def _check(sql: str, args: tuple[Value, ...]) -> None:
    numbers = _placeholders(sql)
    if numbers != frozenset(range(1, len(args) + 1)):
        used = ", ".join(f"${each}" for each in sorted(numbers)) or "none"
        raise ValueError(f"{len(args)} values must have as many placeholders from $1 on, got {used}")
    for at, value in enumerate(args, 1):
        if reason := _refused(value):
            raise ValueError(f"${at} must be {reason}")


@lru_cache(maxsize=512)
def _placeholders(sql: str) -> frozenset[int]:
    if _OURS.match(sql):
        raise ValueError("transactions are begun and ended by `async with db.transaction()`")
    return frozenset(int(each) for each in _TOKENS.findall(sql) if each)


def _refused(value: object) -> str | None:
    """Return what it should have been; the value itself may be a secret."""
    if value is None or isinstance(value, bool | bytes):
        return None
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**63 else "an integer of 64 bits"
    if isinstance(value, float):
        return "a number, got NaN" if math.isnan(value) else None
    if not isinstance(value, str):
        return f"None, bool, int, float, str or bytes, got {type(value).__name__}"
    return "a text without NUL and lone surrogates" if _UNFIT.search(value) else None


# SQLite

_SLICE = 0.05  # seconds: how often a wait for another process's lock looks at whether it was cancelled
_UNIQUE = {
    sqlite3.SQLITE_CONSTRAINT_UNIQUE,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
    sqlite3.SQLITE_CONSTRAINT_ROWID,
}


class _SQLite:
    """One connection, its own only session, and the thread where it lives."""

    def __init__(self, path: str | None, patience: float) -> None:
        self.patience: float | None = None  # a COMMIT waits for the disk only
        self._path = path
        self._slices = math.ceil(patience / _SLICE)
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "sqlite")
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._connection: sqlite3.Connection
        self._abandoned = self._closed = False

    async def open(self) -> None:
        await self._do(self._connect)

    async def close(self) -> None:
        self._closed = self._abandoned = True
        try:
            await asyncio.wrap_future(self._thread.submit(self._disconnect))
        finally:
            self._thread.shutdown()

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[_Session]:
        async with self._lock:
            yield self

    async def begin(self) -> None:
        await self._do(partial(self._patiently, "BEGIN IMMEDIATE"))

    async def run(self, sql: str, args: tuple[Value, ...], *, rows: bool, alone: bool) -> Any:  # noqa: ARG002 - there is no reply to lose
        found, changed = await self._do(partial(self._patiently, sql, args))
        return found if rows else changed

    async def commit(self) -> None:
        await self._do(partial(self._patiently, "COMMIT"))

    async def roll_back(self) -> None:
        if not self._closed:
            await self._do(self._undo)

    async def _do(self, work: Callable[[], T]) -> T:
        """Let the thread do it; if we are cancelled, it is stopped and has ended before we are told."""
        if self._closed:
            raise RuntimeError("the database is closed")
        self._abandoned = False
        job = asyncio.wrap_future(self._thread.submit(work))
        try:
            await asyncio.wait((job,))
        except asyncio.CancelledError:
            self._abandoned = True
            await _to_the_end(asyncio.wait((job,)))
            job.exception()
            raise
        try:
            return job.result()
        except sqlite3.Error as error:
            told = _told_by_sqlite(error)
            if told is error:
                raise
            raise told from error

    # In the thread

    def _connect(self) -> None:
        if self._path is None:
            self._folder = tempfile.TemporaryDirectory(prefix="sqlite-")
            self._path = os.path.join(self._folder.name, "db")
        self._connection = sqlite3.connect(self._path, timeout=_SLICE, isolation_level=None)
        self._connection.set_progress_handler(lambda: self._abandoned, 1000)
        self._patiently("PRAGMA journal_mode = WAL")
        self._patiently("PRAGMA foreign_keys = ON")
        self._patiently(f"PRAGMA synchronous = {'OFF' if self._folder else 'FULL'}")

    def _disconnect(self) -> None:
        if hasattr(self, "_connection"):  # it could be opened
            self._connection.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _patiently(self, sql: str, args: tuple[Value, ...] = ()) -> tuple[list[Row], int]:
        values = {str(at): value for at, value in enumerate(args, 1)}
        before, slices_left = self._connection.total_changes, self._slices
        while True:
            slices_left -= 1
            try:
                cursor = self._connection.execute(sql, values)
                rows = cursor.fetchall()
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or self._abandoned or slices_left <= 0:
                    raise
                continue
            # The driver counts where a statement begins with INSERT, UPDATE or DELETE.
            count = cursor.rowcount
            return rows, count if count >= 0 else self._connection.total_changes - before

    def _undo(self) -> None:
        if self._connection.in_transaction:
            self._connection.rollback()


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _told_by_sqlite(error: sqlite3.Error) -> Exception:
    code = getattr(error, "sqlite_errorcode", 0)
    if code in _UNIQUE:
        return UniqueViolation(str(error).removeprefix("UNIQUE constraint failed: "))
    if _is_busy(error) or code & 0xFF in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_INTERRUPT}:
        return Unreachable(f"SQLite: {error}")
    return error


# PostgreSQL


class _Postgres:
    """A few connections, made when they are needed.

    asyncpg's own pool asks the server to reset a connection each time it comes back, which doubles the round
    trips of a statement, and it does not tell which connections may still be at work.
    """

    def __init__(self, url: str, max_connections: int, patience: float) -> None:
        try:
            import asyncpg  # noqa: PLC0415  only who uses PostgreSQL needs it
        except ImportError as error:
            raise ImportError(
                "postgresql:// needs asyncpg: pip install 'executable-patterns[postgres]'"
            ) from error
        self._driver = asyncpg
        self._url = url
        self._patience = patience
        self._turns = asyncio.Semaphore(max_connections)
        self._idle: list[Any] = []
        self._lent: set[_PostgresSession] = set()
        self._closed = False

    async def open(self) -> None:
        """Do nothing: a process may be started while its database is down."""

    async def close(self) -> None:
        self._closed = True
        for session in self._lent.copy():
            await session.end()
        while self._idle:
            connection = self._idle.pop()
            try:
                await connection.close(timeout=self._patience)
            except Exception:
                connection.terminate()

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[_Session]:
        async with self._turns:
            connection = await self._connected()
            session = _PostgresSession(self._driver, connection, self._patience)
            self._lent.add(session)
            try:
                yield session
            finally:
                self._lent.discard(session)
                if not connection.is_closed():
                    self._idle.append(connection)

    async def _connected(self) -> Any:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            connection.terminate()  # frees what it holds
        if self._closed:
            raise RuntimeError("the database is closed")
        try:
            connection = await self._driver.connect(self._url, timeout=self._patience)
        except (OSError, self._driver.PostgresError) as error:  # TimeoutError is an OSError
            state = str(getattr(error, "sqlstate", None) or "08")
            if state[:2] not in {"08", "53", "57"}:  # a wrong password, no such database
                raise
            raise Unreachable(f"PostgreSQL cannot be reached: {type(error).__name__}") from error
        if self._closed:
            connection.terminate()
            raise RuntimeError("the database is closed")
        return connection


class _PostgresSession:
    def __init__(self, driver: Any, connection: Any, patience: float) -> None:
        self._driver = driver
        self._connection = connection
        self.patience: float | None = patience
        self._open = False  # a transaction
        self._under_way: asyncio.Future[Any] | None = None
        self._ended = False

    async def end(self) -> None:
        """Stop what is under way, for the database is closed."""
        self._ended = True
        if (task := self._under_way) is not None:
            task.cancel()
            await asyncio.wait((task,))
            await self._settle()
        self._connection.terminate()

    async def begin(self) -> None:
        self._open = True
        await self._ask(lambda: self._connection.execute("BEGIN"), unknown=False)

    async def run(self, sql: str, args: tuple[Value, ...], *, rows: bool, alone: bool) -> Any:
        if rows:
            found = await self._ask(lambda: self._connection.fetch(sql, *args), unknown=alone)
            return [tuple(record) for record in found]
        status = await self._ask(lambda: self._connection.execute(sql, *args), unknown=alone)
        changed = re.fullmatch(r"(?:INSERT \d+|UPDATE|DELETE|MERGE) (\d+)", status or "")
        return int(changed[1]) if changed else 0

    async def commit(self) -> None:
        self._open = False  # whatever comes of it
        await self._ask(lambda: self._connection.execute("COMMIT"), unknown=True)

    async def roll_back(self) -> None:
        if self._open:
            await self._settle()

    async def _ask(self, request: Callable[[], Coroutine[Any, Any, T]], *, unknown: bool) -> T:
        if self._connection.is_closed():
            raise Unreachable("PostgreSQL: the connection was lost")
        task: asyncio.Future[T] = asyncio.ensure_future(request())
        self._under_way = task
        try:
            return await task
        except asyncio.CancelledError:
            if self._ended:
                what = "the database was closed meanwhile"
                raise (OutcomeUnknown(what) if unknown else Unreachable(what)) from None
            await _to_the_end(self._settle())
            raise
        except self._driver.UniqueViolationError as error:
            raise UniqueViolation(error.constraint_name) from error
        except Exception as error:
            if not self._is_lost(error):
                raise
            self._connection.terminate()
            what = f"PostgreSQL: the connection was lost: {type(error).__name__}"
            raise (OutcomeUnknown(what) if unknown else Unreachable(what)) from error
        finally:
            self._under_way = None

    def _is_lost(self, error: Exception) -> bool:
        return (
            isinstance(error, OSError | self._driver.PostgresConnectionError)
            or getattr(error, "severity_en", None) in {"FATAL", "PANIC"}
            or self._connection.is_closed()
        )

    async def _settle(self) -> None:
        """Wait until what was cancelled has ended, and roll back; who does not answer is dropped."""
        try:
            async with SYSTEM_CLOCK.timeout(self.patience):
                # The driver has asked the server to cancel, and lets nothing pass before that is done.
                await self._connection.execute("ROLLBACK" if self._open else "SELECT 1")
            self._open = False
        except (Exception, asyncio.CancelledError):
            self._connection.terminate()
