"""Takes messages off a queue and has them handled, so many at a time, for as long as they are its own."""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import DataError, RedisError, ResponseError

from patterns.bounds import number, whole
from patterns.cancellation import cancels
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.events import Event, Listener, emit, ignore
from patterns.message_queue.competing_consumer.delivery import Returned
from patterns.message_queue.competing_consumer.effect import Effect
from patterns.message_queue.competing_consumer.errors import Reject
from patterns.message_queue.competing_consumer.events import (
    LeaseEnded,
    MessageFailed,
    MessageHandled,
    MessageReleased,
    QueueLost,
    QueueRegained,
    WorkerStopped,
)
from patterns.message_queue.competing_consumer.hand import End, Hand
from patterns.message_queue.competing_consumer.room import Room
from patterns.message_queue.competing_consumer.together import Together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from typing import Self

    from patterns.message_queue.competing_consumer.delivery import Delivery
    from patterns.message_queue.competing_consumer.source import Source

__all__ = ["Worker"]

_WRONG = (ResponseError, DataError, ValueError, TypeError)  # an Effect that no later try can make
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0  # between two tries to reach the queue


class Worker:
    """One process's share of the work; several workers on one queue compete for it.

        async with Worker(queue.lanes, handle, timeout=60, concurrency=8):
            await stop.wait()

    Args:
        sources: where the messages are: the lanes of a Queue, or some of them; any `Source`s.
        handler: `async def handle(delivery)`, or `async def handle(deliveries)` with a `batch`. Returns when
            the message is done: None, or an Effect to be made with the acknowledgement. Raises Reject for a
            message that nobody can handle, anything else for one to be tried again.
        timeout: seconds that one call of the handler may take; None for any.
        concurrency: most calls of the handler at one time.
        prefetch: messages that may wait in this process beyond those that are handled.
        batch: most messages in one call of the handler. Where a batch fails, its messages are handled one by
            one, so that only the culprit is counted.
        drain: seconds that handlers may go on after the worker was told to close.
        name: of the consumer; no two live workers have the same. The default is made of the process's id.
        clock: where durations are read.
        rng: spreads retries and pauses.
        on_event: hears MessageHandled, MessageFailed, MessageReleased, LeaseEnded, WorkerStopped, QueueLost
            and QueueRegained.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        handler: Callable[[Any], Awaitable[object]],
        *,
        timeout: float | None,
        concurrency: int = 1,
        prefetch: int = 0,
        batch: int | None = None,
        drain: float = 10.0,
        name: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        self._sources = tuple(sources)
        whole("sources", len(self._sources), at_least=1)
        if timeout is not None:
            number("timeout", timeout, above=0)
        whole("concurrency", concurrency, at_least=1)
        whole("prefetch", prefetch, at_least=0)
        if batch is not None:
            whole("batch", batch, at_least=1, at_most=1000)
        number("drain", drain, at_least=0)
        self.name = name or f"{os.getpid()}.{uuid.uuid4().hex[:12]}"
        self._handler, self._timeout, self._concurrency, self._batch = handler, timeout, concurrency, batch
        self._drain = drain
        self._clock, self._rng, self._on_event = clock, rng or random.Random(), on_event
        # A lane that is empty holds one place while it waits.
        self._room = Room(max(concurrency * (batch or 1) + prefetch, len(self._sources)))
        self._prefetch, self._owed = prefetch, 0
        self._together = {source: Together(source) for source in self._sources}
        self._ready: deque[Hand] = deque()
        self._hands: set[Hand] = set()
        self._handling: set[asyncio.Task[None]] = set()
        self._serving: list[asyncio.Task[None]] = []
        self._closing = False
        self._released = 0
        self._failures = 0

    @property
    def held(self) -> int:
        """Messages that this worker has now: handled, or waiting for their turn."""
        return len(self._hands)

    async def __aenter__(self) -> Self:
        if self._serving:
            raise RuntimeError("this Worker is running already")
        self._closing, self._released = False, 0
        self._room.open()
        for source in self._sources:
            with suppress(RedisError, OSError):  # where Redis is away, it is asked later
                await source.join(self.name)
        for source in self._sources:
            self._serving += [
                asyncio.create_task(self._fetch(source)),
                asyncio.create_task(self._keep(source)),
            ]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --8<-- [start:fetch]
    async def _fetch(self, source: Source) -> None:
        """Take what there is room for, and nothing else."""
        while await self._room.take():
            places, found = 1, None
            try:
                places += self._room.take_more()
                asked = self._clock.monotonic()
                found = await self._received(source, places, wait=False)
                if found is not None and not found and not self._closing:
                    self._room.give(places - 1)  # others may have them while this lane waits
                    places, asked = 1, self._clock.monotonic()
                    found = await self._received(source, 1, wait=True)
                for delivery in found or ():
                    hand = Hand(source, delivery, asked + source.lease)
                    self._hands.add(hand)
                    self._ready.append(hand)
                places -= len(found or ())
            finally:
                self._room.give(places)
            self._begin()
            if found is None:
                await self._pause()

    def _begin(self) -> None:
        """Hand over what is ready to handlers that are free."""
        while self._ready and len(self._handling) < self._concurrency and not self._closing:
            hands: list[Hand] = []
            while self._ready and len(hands) < (self._batch or 1):
                hand = self._ready.popleft()
                if hand.ended is None:
                    hands.append(hand)
                else:
                    self._over(hand, LeaseEnded)
            if hands:
                task = asyncio.create_task(self._handled(hands))
                self._handling.add(task)
                for hand in hands:
                    hand.task = task
        self._give_room()

    # --8<-- [end:fetch]

    async def _received(self, source: Source, most: int, *, wait: bool) -> Sequence[Delivery] | None:
        """Ask for messages; None: the queue could not be reached."""
        try:
            found = await source.receive(self.name, most, wait=wait)
        except Exception as error:  # a worker that ends with its first surprise is deaf, and looks alive
            self._lost(error)
            return None
        self._regained()
        return found

    async def _handled(self, hands: Sequence[Hand]) -> None:
        task = asyncio.current_task()
        try:
            await self._handle(hands)
        finally:
            for hand in hands:
                self._over(hand)
            self._handling = {each for each in self._handling if each is not task}
            self._begin()

    # --8<-- [start:handle]
    async def _handle(self, hands: Sequence[Hand]) -> None:
        """Call the handler, and tell the queue what became of the messages."""
        began, before = self._clock.monotonic(), cancels()
        deliveries = [hand.delivery for hand in hands]
        for hand in hands:
            hand.running = True
        try:
            async with self._clock.timeout(self._timeout):
                effect = await self._handler(deliveries if self._batch else deliveries[0])
        except asyncio.CancelledError as error:
            if any(hand.ended for hand in hands):
                await self._let_go(hands)
            elif cancels() > before:  # the whole process ends: the leases run out
                raise
            else:  # the handler cancelled itself
                await self._failed(hands, error)
            return
        except Exception as error:  # whatever a handler raises
            await self._failed(hands, error)
            return
        finally:
            for hand in hands:
                hand.running = False
        await self._succeeded(hands, effect, began)

    async def _succeeded(self, hands: Sequence[Hand], effect: object, began: float) -> None:
        lost: set[Hand] = set()
        for source in {hand.source: None for hand in hands}:
            mine = [hand for hand in hands if hand.source is source]
            try:
                lost.update(await self._acknowledge(source, mine, effect))
            except _WRONG as error:  # the effect, and not Redis
                await self._failed(mine, error)
                return
        took = self._clock.monotonic() - began
        for hand in hands:
            if hand in lost:
                self._over(hand, LeaseEnded)
            else:
                self._over(hand, MessageHandled, took)

    async def _acknowledge(self, source: Source, hands: Sequence[Hand], effect: object) -> Iterable[Hand]:
        """Tell the queue that these are done; return those that are another's."""
        if isinstance(effect, Effect):
            (hand,) = hands

            async def call() -> Sequence[Delivery]:
                return [] if await source.acknowledge_with(hand.delivery, effect) else [hand.delivery]

            lost = await self._settled(hands, call, raises=True)
        else:
            one_by_one = self._concurrency == 1
            tell = source.acknowledge if one_by_one else self._together[source].acknowledge
            lost = await self._settled(hands, lambda: tell([hand.delivery for hand in hands]))
        # Who was told before, and heard no answer, has most likely done it itself.
        return [hand for hand in hands if hand.delivery in lost and not hand.unsure]

    async def _failed(self, hands: Sequence[Hand], error: BaseException) -> None:
        if len(hands) > 1:  # only the culprit is counted
            for hand in hands:
                if hand.ended is None:
                    await self._handle([hand])
                else:
                    await self._let_go([hand])
            return
        (hand,) = hands
        one, source, why, delay = hand.delivery, hand.source, type(error).__name__, 0.0
        if isinstance(error, Reject):

            async def call() -> Sequence[Delivery]:
                return [] if await source.reject(one, str(error) or why) else [one]

            lost = await self._settled(hands, call)
        else:
            delay = source.retry_delay(one) * self._rng.uniform(0.5, 1)
            lost = await self._settled(hands, lambda: source.release([Returned(one, delay, why)]))
        if lost and not hand.unsure:
            self._over(hand, LeaseEnded)
        else:
            self._over(hand, MessageFailed, why, delay)

    async def _settled(
        self,
        hands: Sequence[Hand],
        call: Callable[[], Awaitable[Sequence[Delivery]]],
        *,
        raises: bool = False,
    ) -> Sequence[Delivery]:
        """Tell the queue, again and again while the lease may hold; return what is another's."""
        while True:
            try:
                lost = await call()
            except Exception as error:  # of the queue, whatever it is
                if raises and type(error) in _WRONG:
                    raise
                for hand in hands:
                    hand.unsure = True
                self._lost(error)
                now = self._clock.monotonic()
                if all(hand.sure_until <= now or hand.ended for hand in hands):
                    return []
                await self._pause()
            else:
                self._regained()
                return lost

    # --8<-- [end:handle]

    # --8<-- [start:keep]
    async def _keep(self, source: Source) -> None:
        """Renew what is held, and let go of what may be another's."""
        pause = source.lease / 3
        while True:
            await self._clock.sleep(pause)
            pause = source.lease / 3
            hands = [hand for hand in self._hands if hand.source is source and hand.ended is None]
            if not hands:
                continue
            asked = self._clock.monotonic()
            try:
                async with self._clock.timeout(source.lease / 3):
                    lost = await source.renew([hand.delivery for hand in hands])
            except Exception as error:  # of the queue, whatever it is
                self._lost(error)
                pause = source.lease / 20
            else:
                self._regained()
                for hand in hands:
                    hand.sure_until = asked if hand.delivery in lost else asked + source.lease
            now = self._clock.monotonic()
            for hand in hands:
                if hand.sure_until <= now and hand in self._hands:
                    self._end(hand, End.LOST)

    def _end(self, hand: Hand, why: End) -> None:
        """Have a handler end; one that has ended already may still tell the queue."""
        hand.ended = hand.ended or why
        together = [each for each in self._hands if each.task is hand.task and each.running]
        if hand.task is not None and hand.running and all(each.ended for each in together):
            hand.task.cancel()

    # --8<-- [end:keep]

    # --8<-- [start:close]
    async def close(self) -> int:
        """Give back what nobody has begun, let handlers end for `drain` seconds, and give back the rest.

        Returns how many messages were given back.
        """
        if not self._serving:
            return self._released  # it is closed, or was never begun
        self._closing = True
        self._room.close()
        fetching, keeping = self._serving[::2], self._serving[1::2]
        try:
            await self._give_back_unstarted()
            with suppress(TimeoutError):
                async with self._clock.timeout(self._drain):
                    while tasks := [task for task in [*fetching, *self._handling] if not task.done()]:
                        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                        await self._give_back_unstarted()
        finally:
            for hand in [hand for hand in self._hands if hand.task is not None]:
                self._end(hand, End.STOPPED)
            for task in fetching:
                task.cancel()
            try:
                while self._handling:
                    await asyncio.wait(self._handling)
            finally:
                for task in keeping:
                    task.cancel()
                await asyncio.gather(*self._serving, return_exceptions=True)
                self._serving = []
                await self._give_back_unstarted()
                for source in self._sources:
                    with suppress(Exception):  # the queue is away: what it still counts as ours lapses
                        await source.leave(self.name)
        emit(self._on_event, WorkerStopped(self._sources[0].name, self._released))
        return self._released

    # --8<-- [end:close]

    async def _give_back_unstarted(self) -> None:
        hands = list(self._ready)
        self._ready.clear()
        await self._give_back(hands)

    async def _let_go(self, hands: Sequence[Hand]) -> None:
        await self._give_back([hand for hand in hands if hand.ended is End.STOPPED])
        for hand in hands:
            self._over(hand, LeaseEnded)

    async def _give_back(self, hands: Sequence[Hand]) -> None:
        for source in {hand.source: None for hand in hands}:
            mine = {hand.delivery.id: hand for hand in hands if hand.source is source}
            started = {hand for hand in mine.values() if hand.task is not None}
            returned = [
                Returned(
                    hand.delivery, why="its worker ended" if hand in started else "", started=hand in started
                )
                for hand in mine.values()
            ]
            with suppress(Exception):  # the queue is away: the leases run out
                lost = await source.release(returned)
                for one in lost:
                    self._over(mine.pop(one.id), LeaseEnded)
                self._released += len(mine)
                for hand in mine.values():
                    self._over(hand, MessageReleased, hand in started)
            for hand in mine.values():
                self._over(hand)

    def _over(self, hand: Hand, kind: Callable[..., Event] | None = None, *details: object) -> None:
        """The worker is through with a message, once."""
        if hand in self._hands:
            self._hands.remove(hand)
            self._owed += 1
            self._give_room()
            if kind is not None and self._on_event is not ignore:
                one = hand.delivery
                emit(self._on_event, kind(hand.source.name, one.id, one.deliveries, *details))

    def _give_room(self) -> None:
        """Let more be fetched, but not one by one while there is enough to do."""
        if self._owed and len(self._ready) <= self._prefetch // 2:
            owed, self._owed = self._owed, 0
            self._room.give(owed)

    async def _pause(self) -> None:
        """Wait before the queue is asked again: longer each time."""
        pause = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2.0 ** min(self._failures, 30))
        await self._clock.sleep(pause * self._rng.uniform(0.5, 1))

    def _lost(self, error: Exception) -> None:
        self._failures += 1
        if self._failures == 1:
            emit(self._on_event, QueueLost(self._sources[0].name, type(error).__name__))

    def _regained(self) -> None:
        if self._failures:
            self._failures = 0
            emit(self._on_event, QueueRegained(self._sources[0].name))
