"""A bulkhead beside its model, a list and a number; and what lets tasks run without moving time."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from patterns.resiliency.bulkhead import Bulkhead


async def turns() -> None:
    """Let every ready task run, without moving time."""
    for _ in range(20):
        await asyncio.sleep(0)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class LineAgainstAModel(RuleBasedStateMachine):
    """Any sequence of calls, ends, cancellations and resizes: the same as a list and a number would do."""

    calls: Bundle[int] = Bundle("calls")

    @initialize(limit=st.integers(1, 3), room=st.integers(0, 3))
    def build(self, limit: int, room: int) -> None:
        """Make both."""
        self.runner = asyncio.Runner(debug=True)
        self.room, self.limit = room, limit
        self.bulkhead = Bulkhead("search", limit=limit, max_waiting=room, max_wait=math.inf)
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.running: list[int] = []
        self.line: list[int] = []

    def settle(self) -> None:
        """Let the tasks run, and the model grant what is free."""
        self.runner.run(turns())
        while self.line and len(self.running) < self.limit:
            self.running.append(self.line.pop(0))

    @rule(target=calls)
    def come(self) -> int:
        """A call comes: it runs, waits, or is refused."""
        number = len(self.tasks)

        async def begin() -> None:
            self.tasks[number] = asyncio.create_task(self.bulkhead.acquire())

        if len(self.running) < self.limit and not self.line:
            self.running.append(number)
        elif len(self.line) < self.room:
            self.line.append(number)
        self.runner.run(begin())
        self.settle()
        return number

    @rule(call=consumes(calls), late=st.booleans())
    def leave(self, call: int, late: bool) -> None:
        """A call ends; or gives up, perhaps in the step in which it would have been let in."""
        if call in self.running:
            self.running.remove(call)
            heir = self.line[0] if late and self.line and len(self.running) < self.limit else None

            async def hand_over() -> None:
                self.bulkhead.release()
                if heir is not None:
                    self.tasks[heir].cancel()

            self.runner.run(hand_over())
            if heir is not None:
                self.line.remove(heir)
        elif call in self.line:
            self.line.remove(call)
            self.runner.run(end(self.tasks[call]))
        self.settle()

    @rule(limit=st.integers(1, 4))
    def resize(self, limit: int) -> None:
        """The limit changes."""
        self.limit = limit

        async def change() -> None:
            self.bulkhead.resize(limit)

        self.runner.run(change())
        self.settle()

    @invariant()
    def agree(self) -> None:
        """Both have the same calls in."""
        if hasattr(self, "bulkhead"):
            assert (self.bulkhead.running, self.bulkhead.waiting) == (len(self.running), len(self.line))
            assert self.bulkhead.limit == self.limit
            for call, task in self.tasks.items():
                inside = task.done() and not task.cancelled() and task.exception() is None
                assert inside or call not in self.running, f"{call} should be in"

    def teardown(self) -> None:
        """End the loop."""
        if hasattr(self, "runner"):
            self.runner.close()
