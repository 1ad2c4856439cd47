"""A queue beside a dictionary: two consumers, silences, and settlements by whoever once had a message."""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from patterns import embedded
from patterns.keyspace import opened
from patterns.message_queue.competing_consumer import LeaseLost, Queue, Worker
from tests.message_queue.competing_consumer_site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterns.keyspace import Client

MOST = 3


class AgainstTheModel(RuleBasedStateMachine):
    """The model: for each message its deliveries, and the one that owns it now."""

    runner: ClassVar[asyncio.Runner]
    stack: ClassVar[AsyncExitStack]
    clients: ClassVar[list[Client]]
    names: ClassVar[Iterator[int]] = itertools.count()

    @classmethod
    def open(cls) -> None:
        """Open what all examples share: their keys are their own."""

        async def opening() -> None:
            cls.stack = AsyncExitStack()
            at = embedded.shared().unix_url
            cls.clients = [await cls.stack.enter_async_context(opened(at)) for _ in "ab"]

        cls.runner = asyncio.Runner()
        cls.runner.run(opening())

    @classmethod
    def close(cls) -> None:
        """Close it."""
        with cls.runner:
            cls.runner.run(cls.stack.aclose())

    @initialize()
    def begin(self) -> None:
        """Begin with an empty queue of its own."""
        self.at = Site(f"model-{os.getpid()}-{next(self.names)}", self.clients, Queue, Worker)
        self.queue = self.at.queue(max_deliveries=MOST)
        self.live: dict[str, int] = {}
        self.owner: dict[str, Any] = {}
        self.lapsed: set[str] = set()
        self.had: list[Any] = []
        self.dead: set[str] = set()
        self.done: set[str] = set()

    @rule()
    def send(self) -> None:
        """Send one."""
        self.live[self.runner.run(self.queue.send(len(self.live)))] = 0

    @rule(who=st.sampled_from(["a.", "b."]), most=st.integers(1, 3))
    def receive(self, who: str, most: int) -> None:
        """Receive some: those whose owners are silent, then new ones."""
        lane = self.queue.lanes[0]
        lane._cursor, lane._look_at = None, 0.0
        found = self.runner.run(lane.receive(who, most, wait=False))
        for one in found:
            assert one.id in self.live, "it is done, or dead"
            assert one.id not in self.owner or one.id in self.lapsed, "two have it"
            self.live[one.id] += 1
            assert one.deliveries == self.live[one.id]
            self.owner[one.id] = one
            self.lapsed.discard(one.id)
            self.had.append(one)
        for letter in self.runner.run(self.queue.dead()):
            if letter.id not in self.dead:
                assert self.live.pop(letter.id) == letter.deliveries == MOST
                self.dead.add(letter.id)
                self.owner.pop(letter.id, None)
        if not found:
            assert all(count for count in self.live.values()), "a new one was kept back"

    @rule()
    def fall_silent(self) -> None:
        """All owners are silent for longer than their time."""
        self.runner.run(self.at.idle(61))
        self.lapsed = set(self.owner)

    @rule(which=st.integers(0, 100), how=st.sampled_from(["acknowledge", "release", "extend", "reject"]))
    def settle(self, which: int, how: str) -> None:
        """Whoever had a message once settles it."""
        if not self.had:
            return
        one = self.had[which % len(self.had)]
        owns = self.owner.get(one.id) is one
        arguments = ["no use"] if how == "reject" else []
        try:
            self.runner.run(getattr(self.queue, how)(one, *arguments))
        except LeaseLost:
            assert not owns, "the owner was refused"
            return
        assert owns, "somebody else was not refused"
        if how == "extend":
            self.lapsed.discard(one.id)
            return
        del self.owner[one.id]
        if how == "release" and one.deliveries < MOST:
            return
        del self.live[one.id]
        (self.done if how == "acknowledge" else self.dead).add(one.id)

    def teardown(self) -> None:
        """Nothing is missing, and nothing is there twice."""
        if not hasattr(self, "queue"):
            return
        stats = self.runner.run(self.queue.stats())
        assert stats.depth + stats.pending == len(self.live)
        assert stats.dead == len(self.dead)
