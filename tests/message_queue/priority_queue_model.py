"""A priority queue beside a heap with leases."""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from patterns import embedded
from patterns.keyspace import opened
from patterns.message_queue.priority_queue import LeaseLost, PriorityQueue
from tests.message_queue.priority_queue_site import SECOND, Site

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from patterns.keyspace import Client


@dataclass
class Job:
    """What the model knows of one."""

    id: str
    priority: int
    deliveries: int = 0
    where: str = "ready"  # or delayed, lent, dead


class AgainstTheModel(RuleBasedStateMachine):
    """Two processes on one queue, and a dictionary."""

    WHICH = st.sampled_from([0, 1])
    PRIORITY = st.integers(0, 9)
    ANY = st.integers(0, 30)
    DELIVERIES = 3

    runner: ClassVar[asyncio.Runner]
    stack: ClassVar[AsyncExitStack]
    clients: ClassVar[list[Client]]
    names: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Job] = {}
        self.lent: list[Any] = []  # every delivery there was

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

    @initialize(aging=st.sampled_from([10, 0.001, float("inf")]))
    def begin(self, aging: float) -> None:
        """Begin with keys of its own."""
        self.aging = aging
        self.at = Site(f"model-{os.getpid()}-{next(self.names)}", PriorityQueue, self.clients)
        options: dict[str, Any] = {"aging": aging, "max_deliveries": self.DELIVERIES}
        self.queues = [self.at.queue(which, **options) for which in (0, 1)]

    def run_(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def rank(self, job: Job) -> tuple[float, int]:
        worth = 0 if self.aging == float("inf") else round(self.aging * SECOND)
        return (job.priority if not worth else int(job.id) + job.priority * worth), int(job.id)

    def are(self, where: str) -> list[Job]:
        return sorted((job for job in self.jobs.values() if job.where == where), key=self.rank)

    @rule(which=WHICH, priority=PRIORITY, age=st.sampled_from([0, 3, 40]))
    def push(self, which: int, priority: int, age: int) -> None:
        """Add a job, some time after the last one."""
        if self.jobs:
            self.run_(self.at.age(age))
        job = self.run_(self.queues[which].push(priority, priority=priority))
        self.jobs[job] = Job(job, priority)

    @rule(which=WHICH, most=st.sampled_from([1, 1, 3]))
    def receive(self, which: int, most: int) -> None:
        """Take the first in line."""
        found = self.run_(self.queues[which].receive("one", most, wait=False))
        expected = self.are("ready")[:most]
        assert [one.id for one in found] == [job.id for job in expected]
        for one, job in zip(found, expected, strict=True):
            job.where, job.deliveries = "lent", job.deliveries + 1
            assert (one.deliveries, one.receipt.priority) == (job.deliveries, job.priority)
        self.lent += found

    def is_owner(self, one: Any) -> bool:
        latest = [other for other in self.lent if other.id == one.id][-1]
        return one is latest and one.id in self.jobs and self.jobs[one.id].where == "lent"

    def act(self, nth: int, what: str, *, which: int, **options: Any) -> Any:
        """Let the owner of some delivery act, or who was; return the job if it was the owner."""
        if not self.lent:
            return None
        one = self.lent[nth % len(self.lent)]
        owner = self.is_owner(one)
        try:
            self.run_(getattr(self.queues[which], what)(one, **options))
        except LeaseLost:
            assert not owner, f"the owner could not {what}"
            return None
        assert owner, f"who is not its owner could {what}"
        return self.jobs[one.id]

    def back(self, job: Job, where: str = "ready") -> None:
        job.where = "dead" if job.deliveries >= self.DELIVERIES else where

    @rule(which=WHICH, nth=ANY)
    def acknowledge(self, which: int, nth: int) -> None:
        """Have done a job."""
        if job := self.act(nth, "acknowledge", which=which):
            del self.jobs[job.id]

    @rule(which=WHICH, nth=ANY)
    def extend(self, which: int, nth: int) -> None:
        """Renew a lease."""
        self.act(nth, "extend", which=which)

    @rule(which=WHICH, nth=ANY, delay=st.sampled_from([0, 60]), started=st.booleans())
    def release(self, which: int, nth: int, delay: int, started: bool) -> None:
        """Give a job back."""
        if job := self.act(nth, "release", which=which, delay=delay, started=started):
            job.deliveries -= not started
            self.back(job, "delayed" if delay else "ready")

    @rule()
    def fall_silent(self) -> None:
        """Let all leases end, and one consumer notice."""
        self.run_(self.at.come_true("leases"))
        for job in self.are("lent"):
            self.back(job)
        self.receive(0, 1)

    @rule()
    def wait(self) -> None:
        """Let all delays end."""
        self.run_(self.at.come_true("delayed"))
        for job in self.are("delayed"):
            job.where = "ready"

    @rule(which=WHICH, nth=ANY, priority=PRIORITY)
    def change(self, which: int, nth: int, priority: int) -> None:
        """Change a priority."""
        if self.jobs:
            job = list(self.jobs.values())[nth % len(self.jobs)]
            waits = job.where in {"ready", "delayed"}
            assert self.run_(self.queues[which].change_priority(job.id, priority)) == waits
            job.priority = priority if waits else job.priority

    @rule(which=WHICH, nth=ANY)
    def cancel(self, which: int, nth: int) -> None:
        """Cancel a job."""
        if self.jobs:
            job = list(self.jobs.values())[nth % len(self.jobs)]
            waits = job.where in {"ready", "delayed"}
            assert self.run_(self.queues[which].cancel(job.id)) == waits
            if waits:
                del self.jobs[job.id]

    @rule(which=WHICH)
    def redrive(self, which: int) -> None:
        """Let all that are dead be ready again."""
        dead = self.are("dead")
        assert {each.id for each in self.run_(self.queues[which].dead())} == {job.id for job in dead}
        if dead:
            assert self.run_(self.queues[which].redrive(*[job.id for job in dead])) == len(dead)
        for job in dead:
            job.where, job.deliveries = "ready", 0

    def teardown(self) -> None:
        """Count what is there, and serve it."""
        if not hasattr(self, "at"):
            return
        stats = self.run_(self.queues[0].stats())
        counted = [len(self.are(where)) for where in ("ready", "delayed", "lent", "dead")]
        assert [stats.ready, stats.delayed, stats.leased, stats.dead] == counted
        self.wait()
        served = [job.priority for job in self.are("ready")]
        # A payload is the priority at the push; what is lent is asked for the present one.
        found = []
        while lent := self.run_(self.queues[0].receive("one", wait=False)):
            found.append(lent[0].receipt.priority)
            self.run_(self.queues[0].acknowledge(lent[0]))
        assert found == served
