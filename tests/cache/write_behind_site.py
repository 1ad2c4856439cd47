"""Where write-behind is tried: queues in Redis, a database that can be held up, and naive variants."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from redis.asyncio import RedisCluster

from patterns.cache.write_behind import (
    DELETED,
    Change,
    Flusher,
    Policy,
    VersionedTable,
    WriteBehind,
)
from patterns.cache.write_behind.lane import Lane
from patterns.cache.write_behind.scripts import PUT, TAKE
from patterns.keyspace import Script, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence

    from patterns.cache.write_behind.shard import Taken, Turn
    from patterns.database import Database
    from patterns.keyspace import Client
    from tests.places import Place
    from tests.postgres import Home

TABLE = """CREATE TABLE item (id TEXT PRIMARY KEY NOT NULL, version BIGINT NOT NULL, deleted BOOLEAN NOT NULL,
    n BIGINT)"""
ROLES = ("changes", "latest", "queue", "version", "attempts", "parked", "lease")
Make = Any


def n(number: int | None) -> dict[str, int | None]:
    """Return a value."""
    return {"n": number}


def policy(**changes: Any) -> Policy:
    """Return a policy that waits for nothing, whose leases a busy machine does not outlive."""
    defaults: dict[str, Any] = {"capacity": 1000, "delay": 0, "retry_delay": 0.001, "max_retry_delay": 0.002}
    defaults |= {"poll": 0.01, "lease": 30, "store_timeout": 20, "drain": 20}
    return Policy(**(defaults | changes))


@dataclass
class Kit:
    """What is tried: the real things, or a naive variant of one of them."""

    writer: Make = WriteBehind
    flusher: Make = Flusher
    table: Make = VersionedTable


class Source:
    """The database: what was stored, in which calls, and a gate and an error that the next calls meet."""

    def __init__(self, db: Database, table: Make) -> None:
        self.table = table(db, "item", key="id", columns=("n",))
        self.calls: list[list[Change]] = []  # that came back without an error
        self.tried = self.running = self.loads = 0
        self.error: Callable[[Sequence[Change]], BaseException | None] = lambda _: None
        self.after: BaseException | None = None  # raised when it has been done
        self.open = asyncio.Event()
        self.open.set()

    async def store(self, batch: Sequence[Change]) -> Any:
        """Store a batch, after the gate."""
        self.tried += 1
        self.running += 1
        try:
            await self.open.wait()
        finally:
            self.running -= 1
        if error := self.error(batch):
            raise error
        newer = await self.table.store(batch)
        if self.after is not None:
            error, self.after = self.after, None
            raise error
        self.calls.append(list(batch))
        return newer

    async def load(self, key: str) -> Any:
        """Read a row."""
        self.loads += 1
        return await self.table.load(key)

    async def value(self, key: str) -> Any:
        """Return the number of a row, None if there is no such row."""
        found = await self.table.load(key)
        return found and found["n"]

    async def rows(self) -> dict[str, tuple[int, int | None]]:
        """Return version and number of every row that is not deleted."""
        found = await self.table._database.fetch("SELECT id, version, n FROM item WHERE NOT deleted")
        return {key: (version, number) for key, version, number in found}

    @property
    def stored(self) -> list[Change]:
        """All changes that were stored, in order."""
        return [change for call in self.calls for change in call]

    def behind_a_gate(self) -> Source:
        """Return the same table as another process sees it, with a gate of its own, closed."""
        other = Source(self.table._database, type(self.table))
        other.open.clear()
        return other


class Site:
    """Two processes' clients, one source, and what a kit makes of them."""

    def __init__(self, app: str, kit: Kit, clients: Sequence[Client], db: Database) -> None:
        self.app, self.kit, self.clients = app, kit, clients
        self.source = Source(db, kit.table)
        self.tasks: list[asyncio.Task[Any]] = []

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start something that is cancelled at the latest when the test ends."""
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    def writer(self, which: int = 0, *, name: str = "items", **options: Any) -> Any:
        """Return a writer as one of two processes has it."""
        given = {key: options.pop(key) for key in ("on_event", "clock", "codec") if key in options}
        return self.kit.writer(name, self.clients[which], policy(**options), app=self.app, **given)

    def flusher(
        self, which: int = 0, *, name: str = "items", source: Source | None = None, **options: Any
    ) -> Any:
        """Return a flusher as one of two processes has it."""
        given = {key: options.pop(key) for key in ("on_event", "clock", "codec") if key in options}
        store = (source or self.source).store
        return self.kit.flusher(name, self.clients[which], policy(**options), store, app=self.app, **given)

    def key(self, role: str, shard: int = 0, name: str = "items") -> str:
        """Return the name of a key."""
        return f"{self.app}:{{write_behind:{name}/{shard}}}:{role}"

    async def let_leases_end(self, shards: int = 4) -> None:
        """Do what time does when nobody renews."""
        for shard in range(shards):
            await self.clients[0].pexpireat(self.key("lease", shard), 1)

    async def age(self, seconds: float, shard: int = 0) -> None:
        """Let what waits in a shard have waited so much longer."""
        client: Any = self.clients[0]
        for version, since in await client.zrange(self.key("queue", shard), 0, -1, withscores=True):
            await client.zadd(self.key("queue", shard), {version: since - seconds * 1e6})


_COMMANDS: dict[str, Any] = {}  # what a cluster says of its commands: the same each time, and long to read


@asynccontextmanager
async def site(place: Place, home: Home, kit: Kit | None = None, app: str = "") -> AsyncIterator[Site]:
    """Open a site; its table is made if it is not there."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(opened(place.url)) for _ in range(2)]
        for client in clients:
            if isinstance(client, RedisCluster):
                client.commands_parser.commands = dict(_COMMANDS)
                await client.initialize()
                _COMMANDS.update(client.commands_parser.commands)
        db = await stack.enter_async_context(home.opened())
        await db.execute(TABLE.replace("TABLE", "TABLE IF NOT EXISTS", 1))
        await db.execute("DELETE FROM item")
        at = Site(app or place.app, kit or Kit(), clients, db)
        try:
            yield at
        finally:
            for task in at.tasks:
                task.cancel()
            await asyncio.gather(*at.tasks, return_exceptions=True)


async def outcome_of(call: Awaitable[Any]) -> Any:
    """Return what `call` returned, or the name of what it raised."""
    try:
        return await call
    except Exception as error:
        return type(error).__name__


# Naive writers


class InTheProcess(WriteBehind):
    """The buffer is a dictionary; a task of the same process empties it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.buffer: dict[str, Any] = {}

    async def put(self, key: str, value: Any) -> int:
        """Remember."""
        self.buffer[key] = value
        return 0


class AnswersFirst(WriteBehind):
    """Why wait for Redis? A task writes as soon as it gets its turn, and here it gets it late."""

    late: ClassVar[list[tuple[asyncio.Event, asyncio.Task[Any]]]] = []

    async def put(self, key: str, value: Any) -> int:
        """Answer, then write."""
        turn = asyncio.Event()
        self.late.append((turn, asyncio.create_task(self._put_late(turn, key, value))))
        return 0

    async def _put_late(self, turn: asyncio.Event, key: str, value: Any) -> None:
        await turn.wait()
        await super().put(key, value)

    @classmethod
    async def let_write(cls) -> None:
        """Give all tasks their turn."""
        late, cls.late[:] = cls.late.copy(), []
        for turn, _ in late:
            turn.set()
        await asyncio.gather(*[task for _, task in late])


class ReadsTheSource(WriteBehind):
    """The database is the truth."""

    async def get(self, key: str, load: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Load."""
        return await load(*args, **kwargs)


class Unbounded(WriteBehind):
    """There will be room."""

    def __init__(self, name: str, client: Client, policy: Policy, **options: Any) -> None:
        super().__init__(name, client, replace(policy, capacity=1 << 40), **options)


class DropsTheOldest(InTheProcess):
    """A ring buffer: deque(maxlen=...)."""

    async def put(self, key: str, value: Any) -> int:
        """Remember the newest ones, and queue those."""
        ring: deque[str] = self.__dict__.setdefault("ring", deque(maxlen=self.policy.capacity))
        ring.append(key)
        if len(ring) == self.policy.capacity and key not in self.buffer:
            for old in set(self.buffer) - set(ring):
                del self.buffer[old]
        return await super().put(key, value)

    async def stats(self) -> Any:
        """Count."""
        return type("Stats", (), {"waiting": len(self.buffer)})


class WritesThenLooks(WriteBehind):
    """Whether it can be read again will be seen by who reads it."""

    async def put(self, key: str, value: Any) -> int:
        """Write as text whatever it is."""
        return await super().put(key, repr(value)[:100])


# Naive flushers


class PopsFirst(Flusher):
    """BLPOP: what was taken is off the queue."""

    async def _flush(self, lane: Any, taken: Sequence[Taken]) -> None:
        await lane.shard.settle([(each, 0) for each in taken])
        await super()._flush(lane, taken)


class PutsBack(Flusher):
    """What failed is put again, at the end."""

    async def _flush(self, lane: Any, taken: Sequence[Taken]) -> None:
        if not taken:
            return
        await lane.shard.settle([(each, 0) for each in taken])
        changes: list[Any] = [each.change for each in taken]
        try:
            await self._store(changes)
        except Exception:
            for change in changes:
                await lane.shard.put(change.key, lane.shard._records.pack(change.key, change.value))


class AllAtOnce(Flusher):
    """The more, the better."""

    def __init__(self, name: str, client: Client, policy: Policy, *args: Any, **options: Any) -> None:
        super().__init__(name, client, replace(policy, batch=1000), *args, **options)


class Together(Lane):
    """What was refused is stored with the others the next time."""

    def ready(self, turn: Turn) -> list[Taken]:
        """Return all."""
        self.held = {}
        return list(turn.taken)


class WholeBatches(Flusher):
    """If a batch fails, all of it has failed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._lanes = [Together(lane.shard, lane.size) for lane in self._lanes]

    async def _halves(self, lane: Any, taken: Sequence[Taken]) -> None:
        for each in taken:
            await self._failed(lane, each, "error")


class OutagesCount(Flusher):
    """An error is an error."""

    def __init__(self, name: str, client: Client, policy: Policy, *args: Any, **options: Any) -> None:
        super().__init__(name, client, replace(policy, outages=()), *args, **options)


class GivesUp(Flusher):
    """Three times, then it is logged."""

    def __init__(self, name: str, client: Client, policy: Policy, *args: Any, **options: Any) -> None:
        super().__init__(name, client, replace(policy, outages=(), max_attempts=3), *args, **options)


class TriesForEver(Flusher):
    """It will work some day."""

    def __init__(self, name: str, client: Client, policy: Policy, *args: Any, **options: Any) -> None:
        super().__init__(name, client, replace(policy, max_attempts=1 << 40), *args, **options)


class JustStops(Flusher):
    """Cancel the tasks."""

    async def close(self) -> tuple[str, ...]:
        """Say that all is well."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.left = ()
        return self.left


class NoLease(Flusher):
    """Whoever comes, flushes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for lane in self._lanes:
            lane.holder = "anybody"


class LeaseForEver(Flusher):
    """SETNX without an expiry."""

    async def _flush(self, lane: Any, taken: Sequence[Taken]) -> None:
        await lane.shard._client.persist(lane.shard.keys[6])
        await super()._flush(lane, taken)


# Naive tables


class Unversioned(VersionedTable):
    """INSERT ... ON CONFLICT DO UPDATE, and no WHERE."""

    async def store(self, batch: Sequence[Change]) -> dict[str, int]:
        """Write row by row."""
        async with self._database.transaction() as sql:
            for change in batch:
                await sql.execute(
                    "INSERT INTO item VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO UPDATE SET "
                    "version = excluded.version, deleted = excluded.deleted, n = excluded.n",
                    *self._row(change),
                )
        return {}


class DeletesTheRow(VersionedTable):
    """What is deleted leaves nothing behind."""

    async def store(self, batch: Sequence[Change]) -> dict[str, int]:
        """Delete, or write by version."""
        gone = [change for change in batch if change.value is DELETED]
        for change in gone:
            await self._database.execute(
                "DELETE FROM item WHERE id = $1 AND version < $2", change.key, change.version
            )
        return await super().store([change for change in batch if change.value is not DELETED])


def counted_from_one() -> Script:
    """Return PUT with versions 1, 2, 3, ..."""
    return Script(PUT.name, PUT.source.replace("time[1] * 1000000 + time[2]", "0"))


def without_delay() -> Script:
    """Return TAKE for which everything is due."""
    return Script(TAKE.name, TAKE.source.replace("tonumber(ARGV[3])", "0"))
