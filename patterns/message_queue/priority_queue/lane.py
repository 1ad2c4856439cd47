"""The consumers' side: jobs are lent in order, and taken back from whoever falls silent."""

from __future__ import annotations

import hashlib
import math
import uuid
from typing import TYPE_CHECKING, Any

from patterns.bounds import whole
from patterns.events import Event, Listener, emit, ignore
from patterns.message_queue.competing_consumer.delivery import Delivery, Returned
from patterns.message_queue.competing_consumer.events import MessageDead
from patterns.message_queue.priority_queue.events import JobDelivered
from patterns.message_queue.priority_queue.job import Receipt
from patterns.message_queue.priority_queue.scripts import (
    ACKNOWLEDGE,
    EXTEND,
    RELEASE,
    TAKE,
    acknowledge_with,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterns.clock import Clock
    from patterns.entry import Codec
    from patterns.keyspace import Client, Keyspace, Script
    from patterns.message_queue.competing_consumer.effect import Effect
    from patterns.message_queue.priority_queue.policy import Policy

__all__ = ["Lane"]

_ROLES = ("ready", "delayed", "leases", "dead", "jobs", "payloads", "history", "last", "step", "wake")
_MOST_BYTES = 16 << 20  # of payloads in one reply: Redis does nothing else meanwhile
_MOVED = 1000  # jobs that become ready in one script: the same


class Lane:
    """All that a `Worker` of competing_consumer needs of a queue.

    Args:
        name: of the queue.
        client: from `patterns.keyspace`.
        policy: how long jobs are lent.
        space: where its keys are.
        codec: turns bytes into payloads.
        clock: where durations are read.
        on_event: hears JobDelivered and MessageDead.

    Attributes:
        keys: of the queue, in the order of the scripts.
        lease: seconds.
        max_deliveries: after so many a job is dead.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        policy: Policy,
        *,
        space: Keyspace,
        codec: Codec,
        clock: Clock,
        on_event: Listener = ignore,
    ) -> None:
        self.name = name
        self.policy = policy
        self.lease = policy.lease
        self.max_deliveries = policy.max_deliveries
        self._client = client
        self._space = space
        self._codec = codec
        self._clock = clock
        self._on_event = on_event
        self._owed: list[str] = []  # owners that nobody knows of: their receipt was lost
        self.keys = [self.key(role) for role in _ROLES]

    def key(self, role: str) -> str:
        """Return the name of a key in this queue's slot, for an Effect."""
        return self._space.key(self.name, role)

    def once(self, dedupe_id: str) -> str:
        """Return the key that remembers what was pushed under a producer's id."""
        return self.key(f"once-{hashlib.sha256(dedupe_id.encode()).hexdigest()}")

    # --8<-- [start:receive]
    async def receive(self, consumer: str, most: int = 1, *, wait: bool = True) -> list[Delivery]:
        """Lend up to `most` jobs, the first in line; none after `policy.poll` seconds without any.

        It waits no longer than a third of the lease, so that most of it is left.

        Raises:
            RedisError: the queue cannot be reached. What was lent is given back at the next call.
        """
        whole("most", most, at_least=1)
        ends = self._clock.monotonic() + min(self.policy.poll, self.lease / 3)
        while True:
            found, next_look, seen = await self._take(consumer, most)
            left = ends - self._clock.monotonic()
            if found or (next_look and (left <= 0 or not wait)):
                return found
            if next_look:
                # What has come since the look has a later id than `seen`: it is there at once. A block of 0
                # would never end.
                block = max(1, math.ceil(min(left, next_look) * 1000))
                await self._client.xread({self.keys[-1]: seen}, block=block)

    async def _take(self, consumer: str, most: int) -> tuple[list[Delivery], float, bytes]:
        """Look once; return jobs, seconds until the next look (0: at once), and what wake has by now."""
        policy, owner, owed = self.policy, f"{consumer} {uuid.uuid4().hex}", self._owed
        self._owed = []
        args: list[str | int] = [owner, _micros(policy.lease), most, policy.max_deliveries, _MOST_BYTES]
        try:
            taken, lost, wait, seen, time = await self._run(TAKE, [*args, _MOVED, *owed])
            owed = []
            found = await self._unpacked(owner, taken, int(time))
        except BaseException:
            self._owed += [*owed, owner]  # also if it was cancelled: the script may have run
            raise
        for id_, deliveries, what in zip(*[iter(lost)] * 3, strict=True):
            if what == 2:
                self._tell(MessageDead(self.name, id_.decode(), int(deliveries), "delivered too often"))
        if taken and not found:
            wait = 0  # nobody could read them: there may be more
        return found, math.inf if wait < 0 else wait / 1000, seen

    # --8<-- [end:receive]

    async def _unpacked(self, owner: str, taken: Sequence[Any], now: int) -> list[Delivery]:
        found = []
        for id_, priority, since, deliveries, payload in zip(*[iter(taken)] * 5, strict=True):
            receipt = Receipt(owner, int(priority), int(since))
            delivery = Delivery(id_.decode(), None, int(deliveries), receipt)
            try:
                value = self._codec.decode(payload)
            except Exception as error:  # a codec raises what it likes
                await self.reject(delivery, f"the codec raised {type(error).__name__}")
                continue
            found.append(Delivery(delivery.id, value, delivery.deliveries, receipt))
            if self._on_event is not ignore:
                waited = max(0, now - receipt.since) / 1e6
                event = JobDelivered(self.name, delivery.id, receipt.priority, delivery.deliveries, waited)
                self._tell(event)
        return found

    # --8<-- [start:owner]
    async def renew(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Begin the leases again; return the deliveries that are another's by now."""
        return await self._owned(EXTEND, deliveries, _micros(self.policy.lease))

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Remove the jobs, for they are done; return the deliveries that are another's by now."""
        return await self._owned(ACKNOWLEDGE, deliveries)

    async def acknowledge_with(self, delivery: Delivery, effect: Effect) -> bool:
        """Do an effect in Redis and remove the job, in one step; False: it is another's, nothing was done."""
        script, keys = acknowledge_with(effect.source), [*self.keys, *effect.keys]
        done = await self._run(script, [delivery.id, delivery.receipt.owner, *effect.args], keys)
        return bool(done)

    async def release(self, returned: Sequence[Returned]) -> list[Delivery]:
        """Give jobs back, each to its old place; return the deliveries that are another's by now."""
        return await self._release(returned, self.max_deliveries)

    async def reject(self, delivery: Delivery, why: str) -> bool:
        """Let a job be dead; False: it is another's by now."""
        return not await self._release([Returned(delivery, why=why)], 0)

    # --8<-- [end:owner]

    def retry_delay(self, delivery: Delivery) -> float:
        """Return the seconds until a job that failed is tried again."""
        doubled = self.policy.retry_delay * 2.0 ** min(max(0, delivery.deliveries - 1), 60)
        return min(self.policy.max_retry_delay, doubled)

    async def join(self, consumer: str) -> None:
        """Begin: there is nothing to be refused for."""

    async def leave(self, consumer: str) -> None:
        """Give back what was lent to a consumer that never heard of it."""
        if self._owed:
            await self._take(consumer, 0)

    async def _owned(self, script: Script, deliveries: Sequence[Delivery], *first: int) -> list[Delivery]:
        if not deliveries:
            return []
        args: list[str | int] = [*first]
        for each in deliveries:
            args += [each.id, each.receipt.owner]
        lost = {id_.decode() for id_ in await self._run(script, args)}
        return [each for each in deliveries if each.id in lost]

    async def _release(self, returned: Sequence[Returned], most: int) -> list[Delivery]:
        if not returned:
            return []
        args: list[str | int] = [most]
        for each in returned:
            delay = max(0, _micros(each.delay))
            why = " ".join(each.why.split())[:200] or ("released" if each.started else "")
            args += [each.delivery.id, each.delivery.receipt.owner, delay, why, int(each.started)]
        done = await self._run(RELEASE, args)
        for each, what in zip(returned, done, strict=True):
            if what == 2:
                why = "delivered too often" if most else each.why
                self._tell(MessageDead(self.name, each.delivery.id, each.delivery.deliveries, why))
        return [each.delivery for each, what in zip(returned, done, strict=True) if not what]

    async def _run(
        self, script: Script, args: Sequence[str | bytes | int | float], keys: Sequence[str | bytes] = ()
    ) -> Any:
        return await script(self._client, keys=keys or self.keys, args=args)

    def _tell(self, event: Event) -> None:
        emit(self._on_event, event)


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
