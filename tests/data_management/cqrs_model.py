"""A shop beside a model of it, under commands, crashes, redelivery and rebuilds in any order."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from patterns import embedded
from patterns.data_management.cqrs import (
    Checkpoint,
    EventStore,
    HashModel,
    NotCaughtUp,
    Position,
    Recorded,
    View,
)
from patterns.keyspace import connect
from tests.data_management.cqrs_checks import (
    outcome_of,
)
from tests.data_management.cqrs_shop import (
    Crash,
    Shop,
    SoldOut,
    count,
    deliver,
    sell,
)


class AgainstTheModel(RuleBasedStateMachine):
    """Commands, crashes, redelivery and rebuilds in any order: the rule holds, and rows are a replay."""

    ITEMS = st.sampled_from(["tea", "coffee", "milk"])

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.amounts = {"tea": 0, "coffee": 0, "milk": 0}
        self.sent: list[str] = []
        self.generation, self.last = 1, Position(0, 0)
        self.runner.run(self.begin())

    async def begin(self) -> None:
        """Open a shop on keys of its own."""
        self.client = connect(embedded.shared().unix_url)
        store = EventStore("shop", self.client, app=f"model-{uuid.uuid4().hex[:12]}", partitions=2)
        self.shop, self.view = Shop(store), View("stock", store)
        self.old_way = await self.shop.store.execute("tea", deliver(0), command="first")
        await self.project(self.model())
        await self.view.switch(1)

    def model(self, hook: Any = None) -> HashModel:
        """Return the live generation."""
        model = self.shop.model(hook or (lambda fact: None))
        return HashModel("stock", self.shop.store, model._apply, generation=self.generation)

    async def project(self, model: Any, batch: int = 3) -> None:
        """Bring a model to the end of the log."""
        await self.shop.projector(model, batch=batch).catch_up()

    @rule(item=ITEMS, amount=st.integers(0, 5))
    def deliver(self, item: str, amount: int) -> None:
        """Take something in."""
        receipt = self.runner.run(self.shop.store.execute(item, deliver(amount)))
        self.amounts[item] += amount
        self.last = receipt.position

    @rule(item=ITEMS, amount=st.integers(0, 8))
    def sell(self, item: str, amount: int) -> None:
        """Sell something: refused exactly if it is not there."""
        try:
            receipt = self.runner.run(self.shop.store.execute(item, sell(amount)))
        except SoldOut:
            assert amount > self.amounts[item]
        else:
            assert amount <= self.amounts[item]
            self.amounts[item] -= amount
            self.last = receipt.position

    @rule(item=ITEMS, customers=st.integers(2, 4))
    def race(self, item: str, customers: int) -> None:
        """Several want the last piece."""

        async def all_at_once() -> list[Any]:
            calls = [outcome_of(self.shop.store.execute(item, sell(1), attempts=9)) for _ in range(customers)]
            return await asyncio.gather(*calls)

        got = self.runner.run(all_at_once())
        sold = sum(not isinstance(each, Exception) for each in got)
        assert sold == min(customers, self.amounts[item])
        self.amounts[item] -= sold

    @rule(item=ITEMS)
    def repeat(self, item: str) -> None:
        """Repeat the last command of an item under its id."""
        history = self.runner.run(self.shop.store.history(item))
        if history:
            again = self.runner.run(self.shop.store.execute(item, deliver(99), command=history[-1].command))
            assert again.repeated
            assert again.version == len(history)

    @rule(after=st.integers(1, 6), batch=st.integers(1, 4))
    def crash(self, after: int, batch: int) -> None:
        """End a projector at some fact."""
        left = after

        def hook(fact: Recorded) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Crash

        with suppress(Crash):
            self.runner.run(self.project(self.model(hook), batch))

    @rule(back=st.integers(0, 9), partition=st.sampled_from([0, 1]))
    def redeliver(self, back: int, partition: int) -> None:
        """Let a projector believe that it is further back."""

        async def from_there() -> None:
            model = self.model()
            projector = self.shop.projector(model, batch=3)
            held = await projector._take(partition)
            facts = await self.shop.store.read(Position(partition, 0), count=1000)
            if facts:
                fact = facts[max(0, held.at.number - 1 - back)]
                held.at = Checkpoint(fact.position.number, fact.chain)
            await projector.catch_up()

        self.runner.run(from_there())

    @rule()
    def rebuild(self) -> None:
        """Build the next generation and switch to it."""

        async def next_one() -> None:
            self.generation += 1
            await self.project(self.model())
            await self.view.switch(self.generation)
            await self.view.drop(self.generation - 1)

        self.runner.run(next_one())

    @rule()
    def query(self) -> None:
        """Ask with the last receipt: there is no answer, or one that knows of it."""
        facts = self.runner.run(self.shop.facts())
        (item,) = [fact.aggregate for fact in facts if fact.position == self.last] or ["tea"]
        try:
            row = self.runner.run(self.view.get(item, at=self.last))
        except NotCaughtUp:
            checkpoint = self.runner.run(self.model().checkpoint(self.last.partition))
            assert checkpoint.number < self.last.number
        else:
            assert not self.last.number or self.last.number in row["seen"]

    @invariant()
    def rows_are_a_replay_up_to_the_checkpoint(self) -> None:
        """At any time, in the middle of everything."""

        async def compare() -> None:
            model = self.model()
            for partition in (0, 1):
                at = await model.checkpoint(partition)
                rows: dict[str, Any] = {}
                for fact in await self.shop.store.read(Position(partition, 0), count=10_000):
                    if fact.position.number <= at.number:
                        count(rows, fact)
                assert await model.rows(partition) == rows

        self.runner.run(compare())

    def teardown(self) -> None:
        """Close the client."""
        self.runner.run(self.client.aclose())
        self.runner.close()
