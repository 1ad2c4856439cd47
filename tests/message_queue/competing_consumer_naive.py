"""What most people write first, as variants of the real thing that differ in one point."""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from patterns.message_queue.competing_consumer import Lane, Queue, Worker
from patterns.message_queue.competing_consumer.room import Room

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from patterns.message_queue.competing_consumer import Delivery, Effect

GROUP = "workers"


def with_lanes(kind: type[Lane]) -> type[Queue]:
    """Return a queue whose lanes are of another kind."""

    class Variant(Queue):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            for lane in self.lanes:
                lane.__class__ = kind

    Variant.__name__ = kind.__name__
    return Variant


class PopsFirst(Lane):
    """Removes the message, then works: BLPOP, in other words."""

    async def _take(self, consumer: str, most: int) -> list[Delivery]:
        found = await super()._take(consumer, most)
        await super().acknowledge(found)
        return found

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        return []


class GroupFromNow(Lane):
    """Makes the consumer group at `$`, as examples do."""

    async def _take(self, consumer: str, most: int) -> list[Delivery]:
        with suppress(ResponseError):
            await self._client.xgroup_create(self.keys[0], GROUP, "$", mkstream=True)
        return await super()._take(consumer, most)


class TakesWhatIsPending(Lane):
    """Claims whatever is pending: a min-idle-time of nothing."""

    async def _take(self, consumer: str, most: int) -> list[Delivery]:
        policy = self._policy
        self._policy = replace(policy, visibility=0.001, max_retry_delay=0.0)
        await self._clock.sleep(0.002)
        try:
            return await super()._take(consumer, most)
        finally:
            self._policy = policy


class NeverLooksBack(Lane):
    """Reads new messages only."""

    async def _take(self, consumer: str, most: int) -> list[Delivery]:
        self._cursor, self._look_at = None, float("inf")
        return await super()._take(consumer, most)


class AnybodyAcknowledges(Lane):
    """XACK and XDEL, whoever says so."""

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        for each in deliveries:
            await self._client.xack(self.keys[0], GROUP, each.receipt.entry)
            await self._client.xdel(self.keys[0], each.receipt.entry)
        return []


class CountsErrorsOnly(Lane):
    """Counts the handler's exceptions, not the workers that died of it."""

    async def _take(self, consumer: str, most: int) -> list[Delivery]:
        policy = self._policy
        self._policy = replace(policy, max_deliveries=1_000_000)
        try:
            return await super()._take(consumer, most)
        finally:
            self._policy = policy


class LocalDedupe(Queue):
    """Remembers in the process what it has sent."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sent: dict[str, str] = {}

    async def send(self, payload: Any, *, key: str | None = None, dedupe_id: str | None = None) -> str:
        if dedupe_id in self.sent:
            return self.sent[dedupe_id]
        message = await super().send(payload, key=key)
        if dedupe_id:
            self.sent[dedupe_id] = message
        return message


class EffectThenAcknowledgement(Lane):
    """Two steps: the effect, then the acknowledgement."""

    async def acknowledge_with(self, delivery: Delivery, effect: Effect) -> bool:
        made: Any = self._client.eval(effect.source, len(effect.keys), *effect.keys, *effect.args)
        await made
        return not await self.acknowledge([delivery])


class AcknowledgesOnly(Lane):
    """XACK, and no XDEL."""

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        for each in deliveries:
            await self._client.xack(self.keys[0], GROUP, each.receipt.entry)
        return []


class Trims(Queue):
    """Keeps the stream short by MAXLEN."""

    async def send(self, payload: Any, *, key: str | None = None, dedupe_id: str | None = None) -> str:
        capacity = self.policy.capacity
        self.policy = replace(self.policy, capacity=1_000_000)
        for lane in self.lanes:
            lane._policy = self.policy
        message = await super().send(payload, key=key, dedupe_id=dedupe_id)
        await self._client.xtrim(self.lanes[0].keys[0], maxlen=capacity, approximate=False)
        self.policy = replace(self.policy, capacity=capacity)
        return message


class DropsConsumers(Lane):
    """Deletes a consumer when it leaves, with all that it has."""

    async def leave(self, consumer: str) -> None:
        await self._client.xgroup_delconsumer(self.keys[0], GROUP, consumer)


class NeverRenews(Worker):
    """Trusts that the handler is quick."""

    async def _keep(self, source: Any) -> None:
        await asyncio.Event().wait()


class TakesAHundred(Worker):
    """Prefetches, since that is faster."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._room = Room(100)


class JustStops(Worker):
    """Ends its tasks, and that is that."""

    async def close(self) -> int:
        self._closing = True
        tasks = [*self._serving, *self._handling]
        for hand in self._hands:
            hand.delivery = replace(hand.delivery, deliveries=-1)  # so nothing is told to the queue
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._serving = []
        return 0


class SleepsAndLooks(Lane):
    """Polls."""

    async def _wait_for_one(self, consumer: str) -> list[Delivery]:
        await self._clock.sleep(self._policy.poll)
        return []


class AnyPartition(Queue):
    """Spreads all messages evenly."""

    def _lane_for(self, name: str | None) -> Lane:
        return super()._lane_for(uuid.uuid4().hex)


class TextOfAnything(Queue):
    """Sends the text of what is no JSON."""

    def _packed(self, payload: Any) -> bytes:
        return json.dumps(payload, default=str).encode(errors="surrogatepass")

    async def send_many(self, payloads: Iterable[Any], *, key: str | None = None) -> list[str]:
        return [await self.send(each, key=key) for each in payloads]
