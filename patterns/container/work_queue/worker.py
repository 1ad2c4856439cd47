"""The worker-manager: takes one item at a time, has an application do it, and keeps its lease meanwhile."""

from __future__ import annotations

import asyncio
import random
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

from redis.exceptions import RedisError

from patterns.bounds import number
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.container.work_queue.call import ApplicationDown, Result
from patterns.container.work_queue.events import (
    ApplicationMissing,
    HeartbeatFailed,
    ItemDone,
    ItemFailed,
    ItemLost,
    ItemReturned,
    ItemStarted,
    RequestFailed,
)
from patterns.container.work_queue.source import ItemTooLarge, ItemVanished, Source, SourceFailed
from patterns.container.work_queue.state import Ended, Job, State
from patterns.events import Event, Listener, emit, ignore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Application", "WorkerManager"]

T = TypeVar("T")


class Application(Protocol):
    """Whatever does an item: `FileCall` asks a container."""

    def ready(self) -> bool:
        """Whether it can take an item now."""
        ...

    async def run(self, job: str, token: str, content: bytes, limit: float, /) -> Result:
        """Do one item within `limit` seconds; ApplicationDown if it was not begun; cancelled, stop."""
        ...


class WorkerManager:
    """Works on a queue's items, one after another, until it is told to stop.

    Args:
        name: who speaks in events.
        state: of the queue.
        source: where the items are.
        application: what is done with them.
        poll: seconds between two looks for a job while there is none.
        request: seconds that one exchange with Redis may take.
        grace: seconds from `stop` until the running item is given back.
        clock: where durations are read and waited for.
        rng: spreads pauses.
        on_event: hears ItemStarted, ItemDone, ItemFailed, ItemLost, ItemReturned, HeartbeatFailed,
            RequestFailed and ApplicationMissing.
    """

    def __init__(
        self,
        name: str,
        state: State,
        source: Source,
        application: Application,
        *,
        poll: float = 0.1,
        request: float = 2.0,
        grace: float = 20.0,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        for field, seconds in {"poll": poll, "request": request, "grace": grace}.items():
            number(field, seconds, above=0, at_most=1e8)
        self.name = name
        self._state = state
        self._source = source
        self._application = application
        self._poll = poll
        self._request = request
        self._grace = grace
        self._clock = clock
        self._rng = rng or random.Random()
        self._on_event = on_event
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Take no further item, and let `run` return within `grace`. Safe to call again."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until `stop`; an item that is not done `grace` seconds later is given back."""
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._work())
            await self._stopping.wait()
            with suppress(TimeoutError):
                async with self._clock.timeout(self._grace):
                    await asyncio.wait({work})
            work.cancel()

    async def _work(self) -> None:
        missing = False
        while not self._stopping.is_set():
            if not self._application.ready():
                if not missing:
                    self._say(ApplicationMissing(self.name))
                missing = True
                await self._wait(self._poll)
            else:
                missing = False
                if not await self.step():
                    await self._wait(self._poll * (0.5 + self._rng.random()))

    async def step(self) -> bool:
        """Take one item and end it, one way or the other; False if there was none."""
        token = f"t-{uuid.uuid4().hex}"  # asked for again, it is given the same job
        asked, job = self._clock.monotonic(), None
        pause = self._poll
        while not self._stopping.is_set():
            asked = self._clock.monotonic()
            try:
                job = await self._within(self._state.claim(token))
            except (RedisError, OSError, TimeoutError) as error:
                pause = await self._pause_after(error, pause)
            else:
                break
        if job is not None:
            await self._lease(job, asked)
        return job is not None

    # --8<-- [start:lease]
    async def _lease(self, job: Job, asked: float) -> None:
        """Attempt the item beside its heartbeat: if that ends, so does the application.

        What the application has committed is told all the same, be it late.
        """
        attempt = asyncio.create_task(self._attempt(job))
        beat = asyncio.create_task(self._beat(job, asked))
        try:
            await asyncio.wait({attempt, beat}, return_when=asyncio.FIRST_COMPLETED)
            if not attempt.done():
                attempt.cancel()
                await asyncio.wait({attempt})
                self._say(ItemLost(self.name, job.item, job.attempt))
            elif result := attempt.result():
                await self._end(job, result)
        except asyncio.CancelledError:  # the grace is over
            interrupted = attempt.cancel()
            await asyncio.wait({attempt})
            await self._leave(job, attempt, interrupted)
            raise
        finally:
            beat.cancel()
            await asyncio.wait({beat})

    async def _beat(self, job: Job, asked: float) -> None:
        """Renew the lease until it is lost, or would have run out by this process's own clock."""
        until = asked + job.lease
        pause = job.lease / 3
        while True:
            await self._clock.sleep(min(pause, until - self._clock.monotonic()))
            asked = self._clock.monotonic()
            if asked >= until:
                return
            try:
                async with self._clock.timeout(min(self._request, until - asked)):
                    if not await self._state.renew(job):
                        return
                until, pause = asked + job.lease, job.lease / 3
            except (RedisError, OSError, TimeoutError) as error:
                pause = job.lease / 10
                self._say(HeartbeatFailed(self.name, job.item, _text(error)))

    # --8<-- [end:lease]

    # --8<-- [start:attempt]
    async def _attempt(self, job: Job) -> Result | None:
        """Fetch the item and have it done; None if that is no attempt, and the job was given back."""
        try:
            content = await self._source.get(job.item)
            self._say(ItemStarted(self.name, job.item, job.attempt))
            return await self._application.run(job.id, job.token, content, job.timeout)
        except ItemVanished:
            await self._tell(lambda: self._state.drop(job))
            self._say(ItemReturned(self.name, job.item, "vanished"))
        except ItemTooLarge as error:
            report = {"reason": str(error)}
            await self._tell(lambda: self._state.failed(job, report, final=True))
            self._say(ItemFailed(self.name, job.item, job.attempt, str(error), final=True))
        except (SourceFailed, ApplicationDown, OSError) as error:  # not the item's fault: it costs no attempt
            pause = 10 * self._poll * (0.5 + self._rng.random())
            await self._tell(lambda: self._state.release(job, pause))
            self._say(ItemReturned(self.name, job.item, _text(error)))
        return None

    async def _end(self, job: Job, result: Result) -> None:
        """The application has committed, or failed: only now does the state hear of it."""
        spread = 0.5 + self._rng.random() / 2
        self._ended(job, result, await self._tell(lambda: self._report(job, result, spread)))

    def _report(self, job: Job, result: Result, spread: float) -> Awaitable[Ended]:
        if result.ok:
            return self._state.done(job, result.seconds)
        report = {"reason": result.reason, "stdout": result.stdout, "stderr": result.stderr}
        return self._state.failed(job, report, seconds=result.seconds, spread=spread)
        # --8<-- [end:attempt]

    def _ended(self, job: Job, result: Result, ended: Ended) -> None:
        if ended in {Ended.LOST, Ended.OVER}:
            self._say(ItemLost(self.name, job.item, job.attempt))
        elif result.ok:
            late = ended is Ended.LATE
            self._say(ItemDone(self.name, job.item, job.attempt, result.seconds, late))
        else:
            self._say(ItemFailed(self.name, job.item, job.attempt, result.reason, ended is Ended.FAILED))

    async def _leave(self, job: Job, attempt: asyncio.Task[Result | None], interrupted: bool) -> None:
        """At the end of the grace say once what is to be said; if nobody hears it, the lease runs out.

        What the application has done, or failed at by itself, counts; what was stopped is given back.
        """
        broken = attempt.cancelled() or attempt.exception() is not None
        result = None if broken else attempt.result()
        with suppress(RedisError, OSError, TimeoutError):
            if result is not None and (result.ok or not interrupted):
                self._ended(job, result, await self._within(self._report(job, result, 1.0)))
            elif broken or result is not None:  # else the job was given back already
                if await self._within(self._state.release(job)):
                    self._say(ItemReturned(self.name, job.item, "stopped"))
                else:
                    self._say(ItemLost(self.name, job.item, job.attempt))

    async def _tell(self, say: Callable[[], Awaitable[T]]) -> T:
        """Tell the state, again while it does not answer: told twice, it changes nothing."""
        pause = self._poll
        while True:
            try:
                return await self._within(say())
            except (RedisError, OSError, TimeoutError) as error:
                pause = await self._pause_after(error, pause)

    async def _within(self, request: Awaitable[T]) -> T:
        async with self._clock.timeout(self._request):
            return await request

    async def _pause_after(self, error: Exception, pause: float) -> float:
        seconds = pause * (0.5 + self._rng.random() / 2)
        self._say(RequestFailed(self.name, _text(error), seconds))
        await self._clock.sleep(seconds)
        return min(2 * pause, 20 * self._poll)

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with self._clock.timeout(seconds):
                await self._stopping.wait()

    def _say(self, event: Event) -> None:
        emit(self._on_event, event)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")[:200]
