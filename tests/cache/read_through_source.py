"""What the tests of Read-Through read: a database that counts how it is asked; and naive caches."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from patterns.cache.read_through import Policy, ReadThrough
from patterns.cache.read_through.flights import Flights
from patterns.entry import MISS, Json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from patterns.cache.cache_aside.store import Turn
    from patterns.cache.read_through.flights import Flight
    from patterns.database import Database
    from tests.postgres import Home

TABLE = "CREATE TABLE IF NOT EXISTS thing (id TEXT PRIMARY KEY NOT NULL, body TEXT NOT NULL)"
PUT = "ON CONFLICT (id) DO UPDATE SET body = excluded.body"


class Source:
    """Rows in a database, how they were asked for, and a gate at which answers can be held.

    Attributes:
        calls: the keys of each call of `load` and `load_all`.
        running: how many of them have read, and wait at the gate.
        most: how many there were at one time.
        writes: how many there were.
        errors: what the load of a key ends in.
        silent: keys of which `load_all` says nothing.
        open: the gate.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self.calls: list[list[str]] = []
        self.writes = self.running = self.most = self._under_way = 0
        self.errors: dict[str, BaseException] = {}
        self.silent: set[str] = set()
        self.open = asyncio.Event()
        self.open.set()

    @property
    def loads(self) -> int:
        """How many calls there were."""
        return len(self.calls)

    @property
    def loaded(self) -> list[str]:
        """The keys of all calls, in order."""
        return [key for call in self.calls for key in call]

    def runs(self, calls: int) -> bool:
        """Say whether so many calls wait at the gate."""
        return self.running == calls

    async def put(self, **rows: Any) -> None:
        """Write rows."""
        self.writes += len(rows)
        values = ", ".join(f"(${number}, ${number + 1})" for number in range(1, 2 * len(rows), 2))
        if rows:
            flat = [text for key, value in rows.items() for text in (key, json.dumps(value))]
            await self._db.execute(f"INSERT INTO thing VALUES {values} {PUT}", *flat)

    async def delete(self, key: str) -> None:
        """Delete a row."""
        self.writes += 1
        await self._db.execute("DELETE FROM thing WHERE id = $1", key)

    async def load(self, key: str) -> Any:
        """Read one row, then come back through the gate."""
        found = await self._ask([key])
        if key in self.errors:
            raise self.errors[key].with_traceback(None)
        return found.get(key)

    async def load_all(self, keys: list[str]) -> dict[str, Any]:
        """Read rows with one statement, then come back through the gate."""
        found = await self._ask(keys)
        answer = {key: self.errors.get(key, found.get(key)) for key in keys if key not in self.silent}
        return dict(reversed(answer.items()))  # a source has no duty to keep the order

    async def _ask(self, keys: list[str]) -> dict[str, Any]:
        self.calls.append(list(keys))
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        try:
            return await self._answer(keys)
        finally:
            self._under_way -= 1

    async def _answer(self, keys: list[str]) -> dict[str, Any]:
        marks = ", ".join(f"${number}" for number in range(1, len(keys) + 1))
        rows = await self._db.fetch(f"SELECT id, body FROM thing WHERE id IN ({marks})", *keys)
        self.running += 1
        try:
            await self.open.wait()
        finally:
            self.running -= 1
        return {key: json.loads(body) for key, body in rows}


@asynccontextmanager
async def source(database: Home, **rows: Any) -> AsyncIterator[Source]:
    """Lend a table with these rows."""
    async with database.opened() as db:
        if database.engine == "sqlite":
            await db.fetch("PRAGMA synchronous = OFF")  # no test cuts the power
        await db.execute(TABLE)
        await db.execute("DELETE FROM thing")
        lent = Source(db)
        await lent.put(**rows)
        lent.writes = 0
        yield lent


# Naive variants, with the constructor of ReadThrough


class Textbook:
    """What most tutorials show: get, else load and set, one key after the other."""

    def __init__(
        self, name: str, client: Any, policy: Policy, *, app: str, load: Any, load_all: Any = None, **_: Any
    ) -> None:
        self.client, self.policy, self.prefix = client, policy, f"{app}:{name}:"
        self.load, self.load_all = load, load_all

    async def get(self, key: str) -> Any:
        """Read through."""
        cached = await self.client.get(self.prefix + key)
        if cached is not None:
            return json.loads(cached)
        value = await self.load(key)
        if value is not None:
            await self.client.set(self.prefix + key, json.dumps(value), px=round(self.policy.ttl * 1000))
        return value

    async def get_all(self, keys: Iterable[str]) -> dict[str, Any]:
        """Read through."""
        return {key: await self.get(key) for key in keys}

    async def peek(self, key: str) -> Any:
        """Look."""
        cached = await self.client.get(self.prefix + key)
        return MISS if cached is None else json.loads(cached)

    async def invalidate(self, *keys: str) -> None:
        """Delete, and hope."""
        with suppress(Exception):
            for key in keys:
                await self.client.delete(self.prefix + key)


class OneExchange(Textbook):
    """MGET, one question for all that was not there, MSET: what the source omitted is None from now on."""

    async def get_all(self, keys: Iterable[str]) -> dict[str, Any]:
        keys = list(keys)
        names = [self.prefix + key for key in keys]
        cached = await self.client.mget(names)
        values = {key: json.loads(each) for key, each in zip(keys, cached, strict=True) if each is not None}
        if misses := [key for key in keys if key not in values]:
            loaded = await self.load_all(misses)
            for error in loaded.values():
                if isinstance(error, Exception):
                    raise error
            loaded = {key: loaded.get(key) for key in misses}
            await self.client.mset({self.prefix + key: json.dumps(value) for key, value in loaded.items()})
            values |= loaded
        return {key: values[key] for key in keys}


class LooksOnlyInRedis(ReadThrough):
    """`get_all` is an MGET: what is not there is None."""

    async def get_all(self, keys: Iterable[str]) -> dict[str, Any]:
        found = {key: await self.peek(key) for key in keys}
        return {key: None if value is MISS else value for key, value in found.items()}


class AsksForAll(ReadThrough):
    """One of them is missing: load them all."""

    async def get_all(self, keys: Iterable[str]) -> dict[str, Any]:
        keys = list(keys)
        if any([await self.peek(key) is MISS for key in keys]):
            await self.invalidate(*keys)
        return await super().get_all(keys)


class KeepsNoneForTheOmitted(ReadThrough):
    """`loaded.get(key)`: what the source did not return is None."""

    def __init__(self, *args: Any, load_all: Any, **options: Any) -> None:
        async def complete(keys: list[str]) -> dict[str, Any]:
            loaded: dict[str, Any] = await load_all(keys)
            return dict.fromkeys(keys) | loaded

        super().__init__(*args, load_all=complete, **options)


class AllOrNothing(ReadThrough):
    """One error ends it for all."""

    def __init__(self, *args: Any, load_all: Any, **options: Any) -> None:
        async def raising(keys: list[str]) -> dict[str, Any]:
            loaded: dict[str, Any] = await load_all(keys)
            for value in loaded.values():
                if isinstance(value, Exception):
                    raise value
            return loaded

        super().__init__(*args, load_all=raising, **options)


class KeepsWhateverItLoaded(ReadThrough):
    """The lease is checked, the generation is not."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        fill_all, begin_all = self._store.fill_all, self._store.begin_all

        async def fill(token: str, what: Mapping[str, tuple[bytes, bytes, float]]) -> set[str]:
            turns = await begin_all(list(what), token, without={}, alone=True, ahead=1e6)
            now = {key: (turn.generation, *what[key][1:]) for key, turn in turns.items() if turn}
            return await fill_all(token, now)

        self._store.fill_all = fill  # type: ignore[method-assign]  # that is the variant


class JoinsAnyLoad(ReadThrough):
    """Single flight that hands its result to everybody who waits, however long ago it began."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        land = self._loads._flights.land

        def landing(flight: Flight[Any], key: str, outcome: Any) -> None:
            land(flight, key, replace(outcome, current_at=1 << 60))

        self._loads._flights.land = landing  # type: ignore[method-assign]  # that is the variant


class WithoutBulkhead(ReadThrough):
    """Whoever misses may load."""

    def __init__(self, name: str, client: Any, policy: Policy, **options: Any) -> None:
        super().__init__(name, client, replace(policy, max_loads=1000), **options)


class AsksEachTime(ReadThrough):
    """No back-off: perhaps Redis is back."""

    def __init__(self, name: str, client: Any, policy: Policy, **options: Any) -> None:
        super().__init__(name, client, replace(policy, back_off=0.001), **options)


class LocalFlightOnly(ReadThrough):
    """Single flight in each process, none between them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        begin_all = self._store.begin_all

        async def begin(*args: Any, **given: Any) -> dict[str, Turn | None]:
            return await begin_all(*args, **(given | {"alone": True}))

        self._store.begin_all = begin  # type: ignore[method-assign]  # that is the variant


class KeepsTheError(ReadThrough):
    """An exception is an answer like any other."""

    async def get(self, key: str) -> Any:
        errors: dict[str, Exception] = self.__dict__.setdefault("errors", {})
        if key in errors:
            raise errors[key]
        try:
            return await super().get(key)
        except Exception as error:
            errors[key] = error
            raise


class _FirstCallerLoads(Flights[Any]):
    """The first caller's own task loads; the others wait for what it will have."""

    def _leave(self, flights: Iterable[Flight[Any]]) -> list[asyncio.Task[None]]:
        flights = list(flights)
        for flight in flights:
            if (task := asyncio.current_task()) and task.cancelling():
                flight.task.cancel()
        return super()._leave(flights)


class FirstCallerLoads(ReadThrough):
    """A load ends with the caller that began it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._loads._flights = _FirstCallerLoads(self._loads._flights._lost)


class WithoutMarks(ReadThrough):
    """Nobody notes what is being loaded."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._loader.refuse_within = lambda key: None  # type: ignore[method-assign]  # as above


class Sliding(ReadThrough):
    """A hit makes the entry live on."""

    async def get(self, key: str) -> Any:
        value = await super().get(key)
        await self._store._client.pexpire(self._store.keys(key)[0], round(self.policy.ttl * 1000))
        return value


class EncodesAnything(Json):
    """`json.dumps(value, default=str)`."""

    def encode(self, value: Any) -> bytes:
        return json.dumps(value, default=str).encode()


class KeepsAnything(ReadThrough):
    """See EncodesAnything."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, codec=EncodesAnything(), **options)
