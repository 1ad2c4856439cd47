"""Where Write-Through is tried: a table that can be held and broken, steps in any order, naive variants."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import RedisError

from patterns.cache.write_through import (
    MISS,
    Policy,
    Versioned,
    VersionedTable,
    WriteThrough,
    Written,
)
from patterns.entry import Json
from patterns.keyspace import Script, opened
from patterns.outage import NoCache

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from patterns.database import Database
    from patterns.keyspace import Client
    from tests.postgres import Home

T = TypeVar("T")
Make = Any  # WriteThrough or a naive variant with the same constructor
TABLE = (
    "CREATE TABLE IF NOT EXISTS thing (id TEXT PRIMARY KEY NOT NULL, version BIGINT NOT NULL, "
    "deleted BOOLEAN NOT NULL, v TEXT)"
)
LEASE = 10.0


class Refused(Exception):
    """What the source says where it surely wrote nothing."""


def policy(**changes: Any) -> Policy:
    """Return a policy whose time-outs a busy machine does not reach."""
    defaults: dict[str, Any] = {"ttl": 60, "negative_ttl": 10, "max_writes": 50, "max_loads": 50}
    defaults |= {"lease": LEASE, "timeout": 5, "refused": (Refused,)}
    return Policy(**(defaults | changes))


def v(text: object) -> dict[str, str]:
    """Return a value."""
    return {"v": str(text)}


async def nothing(step: str, key: str) -> None:
    """Let every step of the source pass."""


class Rows:
    """A table, how often it was asked, and a hook before and after each statement.

    Attributes:
        db: where it is.
        hook: is told "load", "loaded", "store" and "stored" with the key; it may wait or raise.
        loads: how many there were.
        stored: the keys of the writes that were committed.
        texts: the values of the puts among them.
        running: loads and writes under way.
        most: how many there were at one time.
    """

    def __init__(self, db: Database) -> None:
        self.db = db
        self.table = VersionedTable(db, "thing", key="id", columns=("v",))
        self.hook: Callable[[str, str], Awaitable[None]] = nothing
        self.loads = self.running = self.most = 0
        self.stored: list[str] = []
        self.texts: list[str] = []

    async def load(self, key: str) -> Versioned | None:
        """Read a row."""
        self.loads += 1
        return await self._between("load", "loaded", key, partial(self.table.load, key))

    async def store(self, key: str, value: Any) -> int:
        """Write a row."""

        async def store() -> int:
            version = await self.table.store(key, value)
            self.texts.append(value["v"])
            return version

        return await self._between("store", "stored", key, store)

    async def delete(self, key: str) -> int:
        """Delete a row."""
        return await self._between("store", "stored", key, partial(self.table.delete, key))

    async def _between(self, before: str, after: str, key: str, work: Callable[[], Awaitable[T]]) -> T:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.hook(before, key)
            result = await work()
            if after == "stored":
                self.stored.append(key)
            await self.hook(after, key)
            return result
        finally:
            self.running -= 1

    async def has(self, key: str) -> Any:
        """Return what a reader of the source sees; not counted."""
        found = await self.table.load(key)
        return found.value if found else None

    async def version(self, key: str) -> int:
        """Return the version in the source, 0 if there is none."""
        found = await self.table.load(key)
        return found.version if found else 0


class InATransaction(VersionedTable):
    """Stores by BEGIN, the statement, COMMIT."""

    def __init__(self, db: Any) -> None:
        super().__init__(db, "thing", key="id", columns=("v",))
        self.db = db

    async def store(self, key: str, value: Any) -> int:
        async with self.db.transaction() as t:
            return await VersionedTable(t, "thing", key="id", columns=("v",)).store(key, value)


@asynccontextmanager
async def source(database: Home, **rows: str) -> AsyncIterator[Rows]:
    """Lend a table with these rows."""
    async with database.opened() as db:
        if database.engine == "sqlite":
            await db.fetch("PRAGMA synchronous = OFF")  # no test cuts the power
        await db.execute(TABLE)
        lent = Rows(db)
        for key, text in rows.items():
            await lent.table.store(key, v(text))
        yield lent


@asynccontextmanager
async def cache(
    url: str, app: str, rows: Any, make: Make = WriteThrough, *, name: str = "things", **options: Any
) -> AsyncIterator[Any]:
    """Lend a cache with a client of its own, as one more process would have it."""
    given = {key: options.pop(key) for key in ("codec", "clock", "rng", "on_event") if key in options}
    opening: Any = {"max_connections": 16} | options.pop("opening", {})
    async with opened(url, **opening) as client:
        yield make(name, client, policy(**options), source=rows, app=app, **given)


def names(app: str, key: str) -> list[str]:
    """Return the keys of value, generation and writes in the cache `things`."""
    return [f"{app}:{{write_through:things/{key}}}:{role}" for role in ("value", "generation", "writes")]


async def outcome_of(call: Awaitable[Any]) -> Any:
    """Return what `call` returned, or the name of what it raised."""
    try:
        return await call
    except Exception as error:
        return type(error).__name__


async def time_passes(client: Client, app: str, key: str, seconds: float) -> None:
    """Make everything that Redis knows of a key so many seconds older, as its clock would."""
    ms = round(seconds * 1000)
    each = names(app, key)
    for name in each:
        if (left := await client.pttl(name)) >= 0:
            await client.pexpire(name, left - ms)
    for name, moments in ((each[0], ("until",)), (each[2], ("dropped", "w:"))):
        fields: Any = await client.hgetall(name) if await client.type(name) == b"hash" else {}
        for field, value in fields.items():
            if field.decode().startswith(moments):
                await client.hset(name, field.decode(), f"{float(value) - ms:.3f}")


# steps in any order

_actor: ContextVar[str] = ContextVar("who takes this step")


class Steps:
    """Lets actors go on to their next exchange, with Redis or with the source, only when they are told to."""

    def __init__(self, rows: Rows) -> None:
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._dead: set[str] = set()
        self._turn = asyncio.Event()  # somebody waits, or has ended
        self._rows = rows

    def part(self, cached: Any) -> None:
        """Hold each exchange of a cache with Redis."""
        outage: Any = cached._entries._outage if isinstance(cached, WriteThrough) else cached
        ask = outage.ask

        async def held(request: Any, *, anyway: bool = False) -> Any:
            await self._hold()
            return await ask(request, anyway=anyway)

        outage.ask = held

    async def begin(self, name: str, call: Awaitable[Any]) -> None:
        """Let a new actor go as far as its first exchange."""
        self._rows.hook = self._hook

        async def act() -> Any:
            _actor.set(name)
            return await call

        self.tasks[name] = asyncio.create_task(act())
        self.tasks[name].add_done_callback(lambda _: self._turn.set())
        await self._until_it_waits(name)

    async def go_on(self, name: str) -> bool:
        """Let an actor do the exchange it waits for; False if it has ended."""
        if self.tasks[name].done():
            return False
        self._waiting.pop(name).set_result(None)
        await self._until_it_waits(name)
        return True

    async def finish(self, *these: str) -> list[Any]:
        """Let actors, or all of them, take all the steps that they have left."""
        for name in these or list(self.tasks):
            while await self.go_on(name):
                pass
        if not these:
            self._rows.hook = nothing
        return [self.tasks[name].result() for name in these or list(self.tasks)]

    async def abandon(self, name: str) -> None:
        """Forget an actor where it stands, as if it was killed; nothing of it reaches Redis any more."""
        self.tasks[name].cancel()
        await asyncio.wait([self.tasks[name]])

    def clear(self) -> None:
        """Begin anew, with the same caches."""
        self.tasks.clear()
        self._waiting.clear()
        self._dead.clear()

    async def _hook(self, step: str, key: str) -> None:
        if step in {"load", "store"}:
            await self._hold()

    async def _hold(self) -> None:
        name = _actor.get("")
        if not name:
            return  # the test itself
        if name in self._dead:
            raise NoCache
        self._waiting[name] = asyncio.get_running_loop().create_future()
        self._turn.set()
        try:
            await self._waiting[name]
        except asyncio.CancelledError:
            self._dead.add(name)
            raise

    async def _until_it_waits(self, name: str) -> None:
        while name not in self._waiting and not self.tasks[name].done():
            self._turn.clear()
            await self._turn.wait()


# naive variants, with the constructor of WriteThrough


class Textbook:
    """UPDATE, then SET."""

    def __init__(self, name: str, client: Client, policy: Policy, *, source: Any, app: str, **_: Any) -> None:
        self.client, self.policy, self.source, self.app, self.name = client, policy, source, app, name

    async def ask(self, request: Callable[[], Awaitable[Any]], *, anyway: bool = False) -> Any:
        """Ask Redis; tests step in here."""
        return await request()

    def _value(self, key: str) -> str:
        return f"{self.app}:{{write_through:{self.name}/{key}}}:value"

    async def _set(self, key: str, value: Any, version: int) -> None:
        data, ms = json.dumps(value), round(self.policy.ttl * 1000)
        await self.ask(lambda: self.client.set(self._value(key), data, px=ms))

    async def get(self, key: str) -> Any:
        """Get, else load and set."""
        cached = await self.ask(lambda: self.client.get(self._value(key)))
        if cached is not None:
            return json.loads(cached)
        found = await self.source.load(key)
        if found is None or found.value is None:
            return None
        await self._set(key, found.value, found.version)
        return found.value

    async def peek(self, key: str) -> Any:
        """Look."""
        cached = await self.client.get(self._value(key))
        return MISS if cached is None else json.loads(cached)

    async def put(self, key: str, value: Any) -> Written:
        """Write twice."""
        version = await self.source.store(key, value)
        await self._set(key, value, version)
        return Written(version, cached=True)

    async def delete(self, key: str) -> Written:
        """Delete twice."""
        version = await self.source.delete(key)
        await self.ask(lambda: self.client.delete(self._value(key)))
        return Written(version, cached=False)

    async def put_many(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Put one after the other, until one fails."""
        return {key: await self.put(key, value) for key, value in values.items()}

    async def invalidate(self, *keys: str) -> None:
        """Delete."""
        for key in keys:
            await self.client.delete(self._value(key))


class CacheFirst(Textbook):
    """SET, then UPDATE."""

    async def put(self, key: str, value: Any) -> Written:
        await self._set(key, value, 0)
        return Written(await self.source.store(key, value), cached=True)

    async def put_many(self, values: Mapping[str, Any]) -> dict[str, Any]:
        outcomes: dict[str, Any] = {}
        for key, value in values.items():
            with suppress(Exception):
                await self._set(key, value, 0)
        for key, value in values.items():
            try:
                outcomes[key] = Written(await self.source.store(key, value), cached=True)
            except Exception as error:
                outcomes[key] = error
        return outcomes


_NEWEST = Script(
    "test.newest",
    """
-- KEYS[1] string value, KEYS[2] string version; ARGV[1] version, ARGV[2] value, ARGV[3] ms
local stored = redis.call('GET', KEYS[2])
if stored and redis.call('EXISTS', KEYS[1]) == 1 and tonumber(stored) >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
return 1
""",
)


class NewestWins(Textbook):
    """UPDATE, then SET if the version is newer; DELETE, then DEL."""

    async def _set(self, key: str, value: Any, version: int) -> None:
        each = [self._value(key), self._value(key) + "-version"]
        args: list[Any] = [version, json.dumps(value), round(self.policy.ttl * 1000)]
        await self.ask(lambda: _NEWEST(self.client, keys=each, args=args))


class SwallowsItsErrors(Textbook):
    """UPDATE, then SET in a `try` that logs."""

    async def ask(self, request: Callable[[], Awaitable[Any]], *, anyway: bool = False) -> Any:
        with suppress(RedisError):
            return await request()
        return None


class TakesErrorsForRefusals(WriteThrough):
    """An exception means that nothing was written."""

    def __init__(self, name: str, client: Client, policy: Policy, **options: Any) -> None:
        super().__init__(name, client, replace(policy, refused=(Exception,)), **options)


class StoresTheObject(WriteThrough):
    """What was encoded a moment ago is still what the object says."""

    async def put(self, key: str, value: Any) -> Written:
        entry = self._entry(key, value)
        return await self._write(key, entry, lambda: self._source.store(key, value))


class EncodesAnything(Json):
    """`json.dumps(value, default=str)`."""

    def encode(self, value: Any) -> bytes:
        return json.dumps(value, default=str).encode()


class KeepsAnything(WriteThrough):
    """See EncodesAnything."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **(options | {"codec": EncodesAnything()}))


class JoinsAnyLoad(WriteThrough):
    """Single flight that hands its result to everybody who waits, however long ago it began."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        fetch = self._loads._fetch

        async def fetched(key: str, **given: Any) -> Any:
            return replace(await fetch(key, **given), current_at=sys.maxsize)

        self._loads._fetch = fetched  # type: ignore[method-assign]  # that is the variant
