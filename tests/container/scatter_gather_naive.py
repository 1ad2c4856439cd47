"""The gathers that most people write first, with the interface of the real one."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from patterns.container.scatter_gather import (
    Ask,
    Gathered,
    Hedge,
    Hit,
    Leaf,
    LeafMissing,
    Page,
    Policy,
    ScatterGather,
    Why,
)
from patterns.container.scatter_gather.line import Line
from patterns.deadline import Deadline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Naive:
    """Takes what ScatterGather takes."""

    def __init__(
        self,
        name: str,
        leaves: list[Leaf[Any, Any]],
        policy: Policy,
        *,
        hedge: Hedge | None = None,
        clock: Any,
        **_: Any,
    ) -> None:
        self.leaves, self.policy, self.hedge, self.clock = leaves, policy, hedge, clock

    def calls(self, request: Any) -> dict[str, Any]:
        deadline = Deadline(self.policy.deadline, clock=self.clock)
        return {leaf.name: leaf.replicas[0](Ask(request, deadline, leaf.name)) for leaf in self.leaves}


class InTurn(Naive):
    """Starts all, then waits for each with the whole time-out: the sum of the time-outs at worst."""

    async def gather(self, request: Any) -> Gathered[Any]:
        tasks = {name: asyncio.ensure_future(call) for name, call in self.calls(request).items()}
        values: dict[str, Any] = {}
        errors: dict[str, Exception] = {}
        for name, task in tasks.items():
            try:
                async with self.clock.timeout(self.policy.deadline):
                    values[name] = await task
            except Exception as error:
                errors[name] = error
        return Gathered(values, errors)


class TimeoutAround(Naive):
    """A time-out around a TaskGroup: waits for whom it has cancelled, and throws the answers away."""

    async def gather(self, request: Any) -> Gathered[Any]:
        async with self.clock.timeout(self.policy.deadline), asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(call) for name, call in self.calls(request).items()}
        return Gathered({name: task.result() for name, task in tasks.items()})


class WithoutTheErrors(Naive):
    """Keeps what is no exception, and nobody learns that something is missing."""

    async def gather(self, request: Any) -> Gathered[Any]:
        tasks = {name: asyncio.ensure_future(call) for name, call in self.calls(request).items()}
        try:
            async with self.clock.timeout(self.policy.deadline):
                await asyncio.wait(tasks.values())
        except TimeoutError:
            for task in tasks.values():
                task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        good = {
            name: task.result()
            for name, task in tasks.items()
            if not task.cancelled() and task.exception() is None
        }
        return Gathered(good)


class ByArrival(Naive):
    """Appends what `as_completed` gives."""

    async def gather(self, request: Any) -> Gathered[Any]:
        async def named(name: str, call: Any) -> tuple[str, Any]:
            return name, await call

        values = {}
        for next_one in asyncio.as_completed([named(*each) for each in self.calls(request).items()]):
            name, value = await next_one
            values[name] = value
        return Gathered(values)


class PlainGather(Naive):
    """asyncio.gather: the first exception is raised, and the others run on."""

    async def gather(self, request: Any) -> Gathered[Any]:
        calls = self.calls(request)
        return Gathered(dict(zip(calls, await asyncio.gather(*calls.values()), strict=True)))


class InATaskGroup(Naive):
    """asyncio.TaskGroup: the first exception cancels the others."""

    async def gather(self, request: Any) -> Gathered[Any]:
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(call) for name, call in self.calls(request).items()}
        return Gathered({name: task.result() for name, task in tasks.items()})


class SwallowsCancellation(Naive):
    """Its own cancellation looks to it like that of a leaf, and it answers."""

    async def gather(self, request: Any) -> Gathered[Any]:
        tasks = {name: asyncio.ensure_future(call) for name, call in self.calls(request).items()}
        values: dict[str, Any] = {}
        errors: dict[str, Exception] = {}
        for name, task in tasks.items():
            try:
                values[name] = await task
            except (Exception, asyncio.CancelledError):
                errors[name] = LeafMissing(name, Why.CANCELLED, True)
        return Gathered(values, errors)


class HedgesAlways(Naive):
    """Asks again whoever is late: without a budget, and at the same replica. A timer for each leaf."""

    async def gather(self, request: Any, **_: Any) -> Gathered[Any]:
        assert self.hedge is not None
        delay = self.hedge.delay

        async def hedged(leaf: Leaf[Any, Any]) -> Any:
            ask = Ask(request, Deadline(self.policy.deadline, clock=self.clock), leaf.name)
            tasks = [asyncio.ensure_future(leaf.replicas[0](ask))]
            try:
                async with self.clock.timeout(delay):
                    await asyncio.wait(tasks)
            except TimeoutError:
                tasks.append(asyncio.ensure_future(leaf.replicas[0](ask)))
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                return done.pop().result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        answers: list[Any] = await asyncio.gather(
            *[hedged(leaf) for leaf in self.leaves], return_exceptions=True
        )
        return Gathered({leaf.name: value for leaf, value in zip(self.leaves, answers, strict=True)})


class CountsBoth(ScatterGather[Any, Any]):
    """Adds up whatever arrives, the second answer of a leaf too."""

    async def gather(self, request: Any, **_: Any) -> Gathered[Any]:
        tasks = {
            f"{leaf.name} {number}": asyncio.ensure_future(
                replica(Ask(request, Deadline(self.policy.deadline, clock=self.clock), leaf.name, number))
            )
            for leaf in self.leaves
            for number, replica in enumerate(leaf.replicas)
        }
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        return Gathered({name: task.result() for name, task in tasks.items() if not task.exception()})


class AsksAll(ScatterGather[Any, Any]):
    """No canary: a request that kills its reader reaches all of them."""

    def __init__(self, name: str, leaves: Any, policy: Policy, **options: Any) -> None:
        fields = {field: getattr(policy, field) for field in policy.__dataclass_fields__}
        super().__init__(name, leaves, Policy(**{**fields, "canary": None}), **options)


class HedgesWrites(ScatterGather[Any, Any]):
    """Takes any request for one that may be carried out twice."""

    def __init__(self, name: str, leaves: Any, policy: Policy, **options: Any) -> None:
        fields = {field: getattr(policy, field) for field in policy.__dataclass_fields__}
        super().__init__(name, leaves, Policy(**{**fields, "idempotent": True}), **options)


class NoTies(Line):
    """Hears the order to drop, and does the work all the same."""

    def drop(self, tie: str) -> bool:
        return False


class DropsWhatRuns(Line):
    """Stops the request of a tie wherever it finds it."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.at_work: dict[str, Any] = {}

    @asynccontextmanager
    async def turn(self, tie: str | None = None) -> AsyncIterator[None]:
        async with super().turn(tie):
            if tie is not None:
                self.at_work[tie] = asyncio.current_task()
            yield

    def drop(self, tie: str) -> bool:
        if tie in self.at_work:
            self.at_work[tie].cancel()
        return super().drop(tie)


def first_of_all(pages: dict[str, Page], k: int) -> list[Hit]:
    """Merge by score alone: of equal ones the first to arrive, and whatever the shards held back is gone."""
    hits = [hit for page in pages.values() for hit in page.hits]
    return sorted(hits, key=lambda hit: -hit.score)[:k]
