"""The shop that the tests of CQRS keep: an aggregate with a rule, its read models, and the naive variants."""

from __future__ import annotations

import asyncio
import random
import uuid
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from patterns.data_management.cqrs import (
    EventStore,
    Fact,
    HashModel,
    NotLive,
    OnPoison,
    Policy,
    Position,
    Projector,
    Receipt,
    Recorded,
    TableModel,
    Unapplied,
    VersionConflict,
    View,
)
from patterns.keyspace import OutcomeUnknown, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from patterns.data_management.cqrs.state import State
    from patterns.database import Database, Transaction

    Hook = Callable[[Recorded], Any]

TABLES = (
    "CREATE TABLE IF NOT EXISTS stock (item TEXT PRIMARY KEY NOT NULL, amount BIGINT, version BIGINT)",
    "CREATE TABLE IF NOT EXISTS seen (item TEXT NOT NULL, number BIGINT NOT NULL)",
)
STOCK = """INSERT INTO stock VALUES ($1, $2, $3) ON CONFLICT (item)
    DO UPDATE SET amount = stock.amount + excluded.amount, version = excluded.version"""


class SoldOut(Exception):
    """The rule: nothing is sold that is not there."""


def deliver(amount: int) -> Callable[[list[Recorded]], list[Fact]]:
    """Return the decision to take `amount` in."""
    return lambda history: [Fact("Delivered", amount)]


def sell(amount: int) -> Callable[[list[Recorded]], list[Fact]]:
    """Return the decision to sell `amount`, if it is there."""

    def decide(history: list[Recorded]) -> list[Fact]:
        if sum(fact.data for fact in history) < amount:
            raise SoldOut
        return [Fact("Sold", -amount)]

    return decide


def count(rows: dict[str, Any], fact: Recorded) -> None:
    """Change the row of an item; it remembers which facts it has seen."""
    row = rows.setdefault(fact.aggregate, {"amount": 0, "version": 0, "seen": []})
    row["amount"] += fact.data
    row["version"] = fact.version
    row["seen"].append(fact.position.number)


async def insert(transaction: Transaction, fact: Recorded) -> None:
    """Change the rows of an item in SQL."""
    await transaction.execute(STOCK, fact.aggregate, fact.data, fact.version)
    await transaction.execute("INSERT INTO seen VALUES ($1, $2)", fact.aggregate, fact.position.number)


def nothing(fact: Recorded) -> None:
    """Do nothing: the hook that is called after each change."""


def policy(**changes: Any) -> Policy:
    """Return a policy that does not make tests wait."""
    defaults: dict[str, Any] = {
        "on_poison": OnPoison.PAUSE,
        "attempts": 3,
        "retry_pause": 0,
        "batch": 7,
        "poll": 0.005,
        "back_off": 0.05,
    }
    return Policy(**(defaults | changes))


@dataclass
class Shop:
    """A store and the kind of read model that is tried on it.

    Attributes:
        store: of facts.
        database: where the read model is; None means in Redis.
        variant: HashModel, or a naive variant.
    """

    store: EventStore
    database: Database | None = None
    variant: Any = HashModel
    commands: int = field(default=0)

    def model(self, hook: Hook = nothing, *, name: str = "stock") -> Any:
        """Return the read model; `hook` is called after each change, in the place of a bug."""
        if self.database is None:

            def apply(rows: dict[str, Any], fact: Recorded) -> None:
                count(rows, fact)
                hook(fact)

            return self.variant(name, self.store, apply)

        async def apply_sql(transaction: Transaction, fact: Recorded) -> None:
            await insert(transaction, fact)
            hook(fact)

        return TableModel(name, self.database, apply_sql)

    def projector(self, model: Any, **options: Any) -> Projector:
        """Return a projector with a policy that does not make tests wait."""
        changes = {key: options.pop(key) for key in ("on_poison", "attempts", "batch") if key in options}
        return Projector(self.store, model, policy(**changes), **options)

    async def fill(self, facts: int, *, items: int = 4, seed: int = 1) -> list[Receipt]:
        """Let things be delivered and sold, at random; look up what is there once, and after a conflict."""
        rng, receipts = random.Random(seed), []
        known: dict[str, list[int]] = {}
        for _ in range(facts):
            item, amount = f"item {rng.randrange(items)}", rng.randrange(1, 5)
            sold, command = rng.random() < 0.4, uuid.uuid4().hex
            while True:
                if item not in known:
                    known[item] = [fact.data for fact in await self.store.history(item)]
                change = -amount if sold and sum(known[item]) >= amount else amount
                fact = Fact("Sold" if change < 0 else "Delivered", change)
                with suppress(VersionConflict):
                    expected = len(known[item])
                    receipts.append(await self.store.append(item, [fact], expected=expected, command=command))
                    known[item].append(change)
                    break
                del known[item]
        return receipts

    async def facts(self) -> list[Recorded]:
        """Return all that is recorded."""
        found: list[Recorded] = []
        for partition in range(self.store.partitions):
            found += await self.store.read(Position(partition, 0), count=100_000)
        return found

    async def replay(self) -> dict[str, Any]:
        """Return the rows as a replay from the beginning gives them."""
        rows: dict[str, Any] = {}
        for fact in await self.facts():
            count(rows, fact)
        return rows

    async def rows(self, model: Any) -> dict[str, Any]:
        """Return the rows of the read model."""
        if self.database is not None:
            found = await self.database.fetch("SELECT item, amount, version FROM stock")
            rows = {item: {"amount": amount, "version": at, "seen": []} for item, amount, at in found}
            for item, number in await self.database.fetch("SELECT item, number FROM seen ORDER BY number"):
                rows[item]["seen"].append(number)
            return rows
        return {
            key: row for each in range(self.store.partitions) for key, row in (await model.rows(each)).items()
        }


@dataclass
class Place:
    """Where log and read model are.

    Attributes:
        url: of Redis.
        database: opens the database of the read model; None means in Redis.
        app: first part of the keys.
    """

    url: str
    database: Any
    app: str
    variant: Any = HashModel

    @asynccontextmanager
    async def shop(
        self, *, partitions: int = 3, make: Any = EventStore, **options: Any
    ) -> AsyncIterator[Shop]:
        """Lend a shop, as one more process would have it."""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(opened(options.pop("url", self.url), max_connections=16))
            store = make("shop", client, app=self.app, partitions=partitions, **options)
            database = None
            if self.database is not None:
                database = await stack.enter_async_context(self.database.opened())
                for table in TABLES:
                    await database.execute(table)
                await TableModel("stock", database, insert).prepare()
            yield Shop(store, database, self.variant)

    def naive(self, variant: Any) -> Place:
        """Return the place with another kind of read model."""
        return replace(self, variant=variant)


# The variants that most people write first


class ReadsThenAppends(EventStore):
    """The version is looked up, compared, and then appended without it."""

    async def append(self, aggregate: str, facts: Sequence[Fact], *, expected: int, command: str) -> Receipt:
        while True:
            version = len(await self.history(aggregate))
            with suppress(Exception):
                return await super().append(aggregate, facts, expected=version, command=command)


class HalfAtATime(EventStore):
    """One append for each fact of a command."""

    async def append(self, aggregate: str, facts: Sequence[Fact], *, expected: int, command: str) -> Receipt:
        receipt = None
        for number, fact in enumerate(facts):
            receipt = await super().append(
                aggregate, [fact], expected=expected + number, command=f"{command} {number}"
            )
        assert receipt is not None
        return receipt


class NewIdEachTime(EventStore):
    """A lost reply is a failed command, and a failed command is tried again."""

    async def execute(self, aggregate: str, decide: Any, **options: Any) -> Receipt:
        options.pop("command", None)
        while True:
            with suppress(OutcomeUnknown):
                return await super().execute(aggregate, decide, attempts=1)


class ConflictIsFailure(EventStore):
    """The command is not recognised when it meets itself."""

    async def append(self, aggregate: str, facts: Sequence[Fact], *, expected: int, command: str) -> Receipt:
        self.tried = getattr(self, "tried", 0) + 1
        return await super().append(aggregate, facts, expected=expected, command=f"{command} {self.tried}")


class Crash(BaseException):
    """The process ends here."""


class RowsThenCheckpoint(HashModel):
    """Two round trips: rows, then checkpoint; `between` is where a process may end."""

    between: Callable[[], None] = staticmethod(lambda: None)

    async def commit(self, partition: int, owner: str, before: Any, after: Any, **options: Any) -> Any:
        rows: Any = options.pop("rows")
        if rows:
            await self.client.hset(self.keys(partition)[1], mapping=rows)
            type(self).between()
        return await super().commit(partition, owner, before, after, rows={}, **options)


class CheckpointThenRows(HashModel):
    """The other way round."""

    between: Callable[[], None] = staticmethod(lambda: None)

    async def commit(self, partition: int, owner: str, before: Any, after: Any, **options: Any) -> Any:
        rows: Any = options.pop("rows")
        after = await super().commit(partition, owner, before, after, rows={}, **options)
        if rows:
            type(self).between()
            await self.client.hset(self.keys(partition)[1], mapping=rows)
        return after


class AppliesWhateverComes(HashModel):
    """At least once: no checkpoint is compared."""

    async def commit(self, partition: int, owner: str, before: Any, after: Any, **options: Any) -> Any:
        return await super().commit(partition, owner, await self.checkpoint(partition), after, **options)


class GoesOnAtTheLastSeen(HashModel):
    """What fails is logged, and the checkpoint is that of the last fact of the batch."""

    async def apply(self, partition: int, owner: str, before: Any, facts: Sequence[Recorded]) -> Any:
        done: Any = before
        for fact in facts:
            try:
                done = await super().apply(partition, owner, done, [fact])
            except Unapplied:
                done = await self.commit(partition, owner, done, fact.checkpoint, rows={})
        return done


class OneTaskForEachFact(HashModel):
    """Facts of a batch in parallel: they end in any order."""

    async def apply(self, partition: int, owner: str, before: Any, facts: Sequence[Recorded]) -> Any:
        mixed = sorted(facts[:-1], key=lambda fact: fact.position.number % 2)
        return await super().apply(partition, owner, before, [*mixed, facts[-1]])


class LeavesTraces(HashModel):
    """The rows are handed out as they are, and kept as `apply` left them, also where it raised."""

    def _changed(self, fact: Recorded, rows: Any) -> Any:
        decoded = {key: self.store.codec.decode(row) for key, row in rows.items() if row is not None}
        with suppress(Exception):
            self._apply(decoded, fact)
        return {key: self.store.codec.encode(row) for key, row in decoded.items()}


class TriesForEver(HashModel):
    """What fails is tried again, until somebody comes."""

    attempts = 1_000_000


class ParksOneFactOnly(HashModel):
    """What follows a parked fact is applied as if it had been."""

    async def parked(self, partition: int) -> Any:
        return {}

    async def apply(self, partition: int, owner: str, before: Any, facts: Sequence[Recorded]) -> Any:
        return await super().apply(partition, owner, before, facts[:1])

    async def park(self, partition: int, owner: str, before: Any, fact: Recorded, error: str) -> Any:
        if error.startswith("an earlier"):
            return await self.apply(partition, owner, before, [fact])
        return await super().park(partition, owner, before, fact, error)


class AsksForNoOwner(HashModel):
    """The rows are written by whoever comes last."""

    async def commit(self, partition: int, owner: str, before: Any, after: Any, **options: Any) -> Any:
        state: Any = await self.client.hmget(self.keys(partition)[0], ["owner"])
        return await super().commit(partition, state[0].decode(), before, after, **options)


class WritesWhateverItHolds(AsksForNoOwner):
    """Neither the owner nor the checkpoint is compared."""

    async def commit(self, partition: int, owner: str, before: Any, after: Any, **options: Any) -> Any:
        return await super().commit(partition, owner, await self.checkpoint(partition), after, **options)


class ComparesOneId(EventStore):
    """Lost is what is behind the end of the log."""

    async def read(self, after: Position, *, chain: str = "", count: int = 100) -> list[Recorded]:
        end, _ = await self.end(after.partition)
        if end.number < after.number:
            return await super().read(after, chain=chain, count=count)  # which raises
        entries: Any = await self.client.xrange(
            self._log(after.partition), f"({after.number}-0" if after.number else "-", "+", count=count
        )
        return [self._recorded(after.partition, entry) for entry in entries]


class AsksNobodyHowMany(EventStore):
    """Each process has its own idea of the number of partitions."""

    async def _agree(self) -> None:
        return


class EncodesAnything:
    """`json.dumps(data, default=str)`, NaN too."""

    def encode(self, value: Any) -> bytes:
        import json  # noqa: PLC0415  only this variant needs it

        return json.dumps(value, default=str).encode()

    def decode(self, data: bytes) -> Any:
        import json  # noqa: PLC0415  only this variant needs it

        return json.loads(data)


class WaitsForNothing(View):
    """A query answers from what is there."""

    async def get(self, key: str, *, at: Position | None = None, within: float = 0.0) -> Any:
        return await super().get(key)

    async def wait_for(self, position: Position, *, within: float) -> None:
        await asyncio.sleep(0)


async def rebuild_in_place(shop: Shop, apply: Any, between: Callable[[], Any]) -> None:
    """Empty the model, and fill it again."""
    model = HashModel("stock", shop.store, apply)
    for partition in range(shop.store.partitions):
        await shop.store.client.delete(*model.keys(partition))
    await _slowly(shop, model, between)


async def rebuild_beside(shop: Shop, apply: Any, between: Callable[[], Any]) -> None:
    """Fill a new generation, switch, and delete the old one."""
    model, view = HashModel("stock", shop.store, apply, generation=2), View("stock", shop.store)
    await _slowly(shop, model, between)
    await view.switch(2)
    await between()
    await view.drop(1)


async def switch_first(shop: Shop, apply: Any, between: Callable[[], Any]) -> None:
    """Let readers see the new generation while it is filled."""
    model = HashModel("stock", shop.store, apply, generation=2)
    await shop.store.client.set(View("stock", shop.store)._live_key, 2)
    await _slowly(shop, model, between)


async def _slowly(shop: Shop, model: State, between: Callable[[], Any]) -> None:
    projector = shop.projector(model, batch=1)
    while True:
        steps = [await projector._step(each) for each in projector.partitions]
        await between()
        if steps == [None] * len(steps):
            return


async def look(view: View, items: list[str]) -> dict[str, Any] | None:
    """Return what a reader sees of the items, None before there is a model."""
    try:
        return {item: await view.get(item) for item in items}
    except NotLive:
        return None
