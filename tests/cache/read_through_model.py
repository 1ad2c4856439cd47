"""Two processes' caches over one database, beside a model that knows which values a reader may see."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from patterns import database, embedded
from patterns.cache.read_through import NotAllLoaded, Policy, ReadThrough
from patterns.keyspace import opened
from tests.cache.read_through_source import TABLE, Source

if TYPE_CHECKING:
    from patterns.keyspace import Client

KEYS = ["a", "b", "c"]


class AgainstTheModel(RuleBasedStateMachine):
    """What is read is what the source says, or said since the last invalidation."""

    KEY = st.sampled_from(KEYS)
    LIST = st.lists(st.sampled_from(KEYS), min_size=1, max_size=5)
    WHICH = st.sampled_from([0, 1])

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.truth: dict[str, Any] = dict.fromkeys(KEYS)
        self.allowed: dict[str, list[Any]] = {key: [None] for key in KEYS}

    @initialize(number=st.integers(0, 1 << 60))
    def begin(self, number: int) -> None:
        """Open two caches on keys of their own."""

        async def made() -> None:
            folder = self.stack.enter_context(TemporaryDirectory())
            db = await self.stack.enter_async_context(database.opened(f"sqlite://{folder}/source.db"))
            await db.fetch("PRAGMA synchronous = OFF")
            await db.execute(TABLE)
            self.source = Source(db)
            policy = Policy(ttl=60, negative_ttl=10, max_loads=2, batch=2, timeout=5)
            app = f"model-{number}-{os.getpid()}"
            self.clients: list[Client] = []
            self.caches: list[ReadThrough] = []
            for _ in range(2):
                client = await self.stack.enter_async_context(opened(embedded.shared().unix_url))
                cached = ReadThrough(
                    "m", client, policy, load=self.source.load, load_all=self.source.load_all, app=app
                )
                self.clients.append(client)
                self.caches.append(cached)
            await self.caches[0].invalidate(*KEYS)

        self.runner.run(made())

    def seen(self, key: str, value: Any) -> None:
        """Check a value that a reader saw."""
        assert value in self.allowed[key], f"{key}: {value!r} is not among {self.allowed[key]!r}"

    @rule(which=WHICH, key=KEY)
    def read(self, which: int, key: str) -> None:
        """Read one."""
        self.seen(key, self.runner.run(self.caches[which].get(key)))

    @rule(which=WHICH, keys=LIST)
    def read_list(self, which: int, keys: list[str]) -> None:
        """Read some: all of them come, in the order asked."""
        got = self.runner.run(self.caches[which].get_all(keys))
        assert list(got) == list(dict.fromkeys(keys))
        for key, value in got.items():
            self.seen(key, value)

    @rule(which=WHICH, keys=LIST, bad=KEY)
    def read_list_in_part(self, which: int, keys: list[str], bad: str) -> None:
        """Read some while one of them cannot be loaded: either it was cached, or it alone is missing."""
        self.source.errors = {bad: OSError()}
        failed: set[str] = set()
        try:
            got = self.runner.run(self.caches[which].get_all(keys))
        except NotAllLoaded as some:
            got, failed = some.values, set(some.errors)
        self.source.errors = {}
        assert failed <= {bad}
        assert set(keys) - set(got) <= {bad}
        for key, value in got.items():
            self.seen(key, value)

    @rule(which=WHICH, key=KEY, value=st.one_of(st.integers(), st.text(max_size=3), st.just(0)))
    def change(self, which: int, key: str, value: Any) -> None:
        """Write and invalidate: from now on only this value may come."""
        self.runner.run(self.source.put(**{key: value}))
        self.runner.run(self.caches[which].invalidate(key))
        self.allowed[key], self.truth[key] = [value], value

    @rule(key=KEY, value=st.integers())
    def change_in_silence(self, key: str, value: int) -> None:
        """Write without invalidating: the value before it may come as well."""
        self.runner.run(self.source.put(**{key: value}))
        self.allowed[key].append(value)
        self.truth[key] = value

    @rule(which=WHICH, key=KEY)
    def delete(self, which: int, key: str) -> None:
        """Delete and invalidate: only None may come."""
        self.runner.run(self.source.delete(key))
        self.runner.run(self.caches[which].invalidate(key))
        self.allowed[key], self.truth[key] = [None], None

    @rule(which=WHICH, keys=LIST, key=KEY)
    def race(self, which: int, keys: list[str], key: str) -> None:
        """Load a list in one process while the other writes one of them."""

        async def change() -> None:
            await self.source.put(**{key: "raced"})
            await self.caches[1 - which].invalidate(key)

        async def both() -> None:
            await asyncio.gather(self.caches[which].get_all(keys), change())

        self.runner.run(both())
        self.allowed[key], self.truth[key] = ["raced"], "raced"

    @rule(which=WHICH, key=KEY)
    def refresh(self, which: int, key: str) -> None:
        """Load ahead of the end: what is kept is what the source says now."""
        if self.runner.run(self.caches[which].refresh(key, ahead=1000)):
            self.allowed[key] = [self.truth[key]]

    @rule(key=KEY, garbage=st.binary(max_size=12))
    def corrupt(self, key: str, garbage: bytes) -> None:
        """Put nonsense where the value is."""
        name = self.caches[0]._store.keys(key)[0]
        self.runner.run(self._do("SET", name, b"\0" + garbage, "PX", 60_000))

    @rule(key=KEY, role=st.sampled_from([0, 1, 2]))
    def lose(self, key: str, role: int) -> None:
        """Lose a key, as eviction or a failover does."""
        self.runner.run(self._do("DEL", self.caches[0]._store.keys(key)[role]))

    async def _do(self, *command: Any) -> None:
        await self.clients[0].execute_command(*command)

    def teardown(self) -> None:
        """Close everything."""
        self.runner.run(self.stack.aclose())
        self.runner.close()


AgainstTheModel.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
