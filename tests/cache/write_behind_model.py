"""Write-behind beside a dictionary: writers, flushers, and one that is late."""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from patterns import database as databases
from patterns import embedded
from patterns.keyspace import opened
from tests.cache import write_behind_site as naive
from tests.cache.write_behind_site import Kit, Site, n
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterns.keyspace import Client
    from tests.cache.write_behind_site import Source


class AgainstTheModel(RuleBasedStateMachine):
    """Two writers, two flushers and a late one, beside a dictionary."""

    KEYS = st.sampled_from(["a", "b", "c"])
    WHICH = st.sampled_from([0, 1])

    runner: ClassVar[asyncio.Runner]
    stack: ClassVar[AsyncExitStack]
    clients: ClassVar[list[Client]]
    db: ClassVar[databases.Database]
    names: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, int | None] = {}
        self.stuck: Source | None = None
        self.late: asyncio.Task[Any] | None = None

    @classmethod
    def open(cls) -> None:
        """Open what all examples share: their keys are their own, and the table is emptied."""

        async def opening() -> None:
            cls.stack = AsyncExitStack()
            at = embedded.shared().unix_url
            cls.clients = [await cls.stack.enter_async_context(opened(at)) for _ in "ab"]
            cls.db = await cls.stack.enter_async_context(databases.opened())
            await cls.db.execute(naive.TABLE)

        cls.runner = asyncio.Runner()
        cls.runner.run(opening())

    @classmethod
    def close(cls) -> None:
        """Close it."""
        with cls.runner:
            cls.runner.run(cls.stack.aclose())

    @initialize(coalesce=st.booleans())
    def begin(self, coalesce: bool) -> None:
        """Begin with keys of its own and an empty table."""
        self.at = Site(f"model-{os.getpid()}-{next(self.names)}", Kit(), self.clients, self.db)
        self.runner.run(self.db.execute("DELETE FROM item"))
        self.options: dict[str, Any] = {"shards": 1, "coalesce": coalesce, "max_attempts": 1}
        self.writers = [self.at.writer(which, **self.options) for which in (0, 1)]
        self.flushers = [self.at.flusher(which, **self.options) for which in (0, 1)]

    @rule(which=WHICH, key=KEYS, number=st.integers(0, 99))
    def put(self, which: int, key: str, number: int) -> None:
        """Write."""
        self.runner.run(self.writers[which].put(key, n(number)))
        self.model[key] = number

    @rule(which=WHICH, key=KEYS)
    def delete(self, which: int, key: str) -> None:
        """Delete."""
        self.runner.run(self.writers[which].delete(key))
        self.model[key] = None

    @rule(which=WHICH, key=KEYS)
    def get(self, which: int, key: str) -> None:
        """Read what was written last, wherever it is."""
        got = self.runner.run(self.writers[which].get(key, self.at.source.load, key))
        assert (got and got["n"]) == self.model.get(key)

    @rule(which=WHICH, fails=st.sampled_from([None, ConnectionError(), databases.OutcomeUnknown("")]))
    def flush(self, which: int, fails: BaseException | None) -> None:
        """Flush, or fail before or after the commit."""
        if isinstance(fails, databases.OutcomeUnknown):
            self.at.source.after = fails
        elif fails:
            self.at.source.error = lambda _: fails
        self.runner.run(self.flushers[which].flush())
        self.at.source.error, self.at.source.after = lambda _: None, None

    @rule(key=KEYS, number=st.integers(0, 99))
    def pause(self, key: str, number: int) -> None:
        """Write, let a flusher take the batch and stand still, and its lease end."""
        self.put(0, key, number)

        async def paused() -> None:
            self.stuck = self.at.source.behind_a_gate()
            flusher = self.at.flusher(source=self.stuck, **self.options)
            self.late = asyncio.create_task(flusher.flush())
            stuck, late = self.stuck, self.late
            await eventually(lambda: stuck.running or late.done(), within=5)
            await self.at.let_leases_end(1)

        if self.late is None:
            self.runner.run(paused())

    @rule()
    def go_on(self) -> None:
        """Let it go on."""

        async def going() -> None:
            if self.stuck and self.late:
                self.stuck.open.set()
                await self.late

        self.runner.run(going())
        self.stuck = self.late = None

    @rule(key=KEYS, number=st.integers(0, 99), newer=st.one_of(st.none(), st.integers(0, 99)))
    def overtake(self, key: str, number: int, newer: int | None) -> None:
        """Pause it, flush something newer meanwhile, and let it go on."""
        self.go_on()
        self.pause(key, number)
        if newer is None:
            self.delete(1, key)
        else:
            self.put(1, key, newer)
        self.flush(1, None)
        self.go_on()

    def teardown(self) -> None:
        """Flush all: the source is the model."""

        async def closing() -> None:
            await self.at.let_leases_end(1)
            await self.flushers[0].flush()
            found = {key: number for key, (_, number) in (await self.at.source.rows()).items()}
            assert found == {key: number for key, number in self.model.items() if number is not None}
            stats = await self.writers[0].stats()
            assert (stats.waiting, stats.parked) == (0, 0)

        if hasattr(self, "at"):
            self.go_on()
            self.runner.run(closing())
