"""The producers' side, and what people do with jobs that wait or are dead."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from patterns.bounds import number, text, whole
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.entry import JSON, Codec
from patterns.events import Listener, emit, ignore
from patterns.keyspace import Keyspace
from patterns.message_queue.competing_consumer.delivery import Dead, Delivery, Returned
from patterns.message_queue.competing_consumer.errors import LeaseLost, NotSendable
from patterns.message_queue.competing_consumer.events import MessageSent
from patterns.message_queue.priority_queue.errors import OtherAging
from patterns.message_queue.priority_queue.events import JobCancelled, PriorityChanged
from patterns.message_queue.priority_queue.job import Receipt, Stats
from patterns.message_queue.priority_queue.lane import Lane
from patterns.message_queue.priority_queue.scripts import CANCEL, CHANGE, DEAD, PUSH, RESOLVE, STATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterns.keyspace import Client, Script
    from patterns.message_queue.competing_consumer.effect import Effect
    from patterns.message_queue.priority_queue.policy import Policy

__all__ = ["PriorityQueue"]

_LONGEST = 1_000_000_000  # seconds
_MOST_BYTES = 16 << 20


class PriorityQueue:
    """One queue, for producers and consumers.

    Args:
        name: what the jobs are, as "mails"; the source of events.
        client: from `patterns.keyspace`, with a `socket_timeout` longer than `policy.poll`; a consumer that
            waits holds one of its connections.
        policy: how jobs are ordered and lent.
        app: first part of the keys.
        codec: turns payloads into bytes and back.
        clock: where durations are read.
        on_event: hears MessageSent, PriorityChanged, JobCancelled, JobDelivered and MessageDead.

    Attributes:
        lanes: what a `Worker` serves; one.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        policy: Policy,
        *,
        app: str,
        codec: Codec = JSON,
        clock: Clock = SYSTEM_CLOCK,
        on_event: Listener = ignore,
    ) -> None:
        self.name = name
        self.policy = policy
        self._client = client
        self._codec = codec
        self._on_event = on_event
        space = Keyspace(app, "priority_queue")
        lane = Lane(name, client, policy, space=space, codec=codec, clock=clock, on_event=on_event)
        self._lane = lane
        self.lanes = (lane,)

    # --8<-- [start:push]
    async def push(
        self, payload: Any, *, priority: int, delay: float = 0.0, dedupe_id: str | None = None
    ) -> str:
        """Add a job and return its id; of several pushes with one `dedupe_id`, the first is done.

        Args:
            payload: what the codec takes.
            priority: 0, the most urgent, to `policy.levels` - 1.
            delay: seconds until it is ready, by the server's clock.
            dedupe_id: names the job; known for `policy.dedupe_window` seconds. A push whose reply was lost
                is repeated with the same.

        Raises:
            NotSendable: nothing was written.
            OtherAging: nothing was written.
            OutcomeUnknown: of `patterns.keyspace`: it is there, or it is not.
            RedisError: any other: it is not.
        """
        policy = self.policy
        try:
            whole("priority", priority, at_least=0, at_most=policy.levels - 1)
            number("delay", delay, at_least=0, at_most=_LONGEST)
            keys = self._lane.keys
            if dedupe_id is not None:
                keys = [*keys, self._lane.once(text("dedupe_id", dedupe_id))]
        except ValueError as error:
            raise NotSendable(self.name, str(error)) from None
        window = max(1, round(policy.dedupe_window * 1000))
        args: list[str | bytes | int | float] = [
            priority,
            round(delay * 1e6),
            policy.step,
            self._encoded(payload),
            window,
        ]
        id_, found = await self._run(PUSH, args, keys)
        if not id_:
            theirs = int(found) / 1e6 or math.inf
            raise OtherAging(self.name, policy.aging, theirs)
        if self._on_event is not ignore:
            emit(self._on_event, MessageSent(self.name, id_.decode(), not found))
        return str(id_.decode())

    # --8<-- [end:push]

    # --8<-- [start:waiting]
    async def cancel(self, job: str) -> bool:
        """Remove a job that waits, ready or delayed; False: a consumer has or had it, or there is none.

        Its `dedupe_id` stays known, so it is not pushed again by a repetition that is on its way.
        """
        waited = bool(await self._run(CANCEL, [job]))
        emit(self._on_event, JobCancelled(self.name, job, waited))
        return waited

    async def change_priority(self, job: str, priority: int) -> bool:
        """Let a job that waits stand where it would if it had been pushed so; False: as `cancel`.

        Raises:
            ValueError: there is no such priority.
        """
        whole("priority", priority, at_least=0, at_most=self.policy.levels - 1)
        waited = bool(await self._run(CHANGE, [job, priority]))
        emit(self._on_event, PriorityChanged(self.name, job, priority, waited))
        return waited

    # --8<-- [end:waiting]

    async def receive(self, consumer: str, most: int = 1, *, wait: bool = True) -> Sequence[Delivery]:
        """Lend up to `most` jobs, the first in line; none after `policy.poll` seconds without any.

        Take no more than you work on at once: what you hold, nobody can overtake.
        """
        return await self._lane.receive(consumer, most, wait=wait)

    async def extend(self, delivery: Delivery) -> None:
        """Begin the lease again.

        Raises:
            LeaseLost: it is another's by now.
        """
        _mine(delivery, await self._lane.renew([delivery]))

    async def acknowledge(self, delivery: Delivery, effect: Effect | None = None) -> None:
        """Remove the job, for it is done, with an effect in Redis in one step.

        Raises:
            LeaseLost: it is another's by now, and nothing was done.
        """
        if effect is None:
            _mine(delivery, await self._lane.acknowledge([delivery]))
        elif not await self._lane.acknowledge_with(delivery, effect):
            raise LeaseLost(delivery.id, delivery.deliveries)

    async def release(
        self, delivery: Delivery, *, delay: float = 0.0, why: str = "", started: bool = True
    ) -> None:
        """Give the job back to its old place, after `delay` seconds; dead if it was delivered often enough.

        Raises:
            LeaseLost: it is another's by now.
        """
        number("delay", delay, at_least=0, at_most=_LONGEST)
        _mine(delivery, await self._lane.release([Returned(delivery, delay, why, started)]))

    async def reject(self, delivery: Delivery, why: str) -> None:
        """Let the job be dead, for no later try can do better.

        Raises:
            LeaseLost: it is another's by now.
        """
        if not await self._lane.reject(delivery, why):
            raise LeaseLost(delivery.id, delivery.deliveries)

    async def stats(self) -> Stats:
        """Count what is there; ready jobs that are not taken, and dead ones, are what to alert on."""
        ready, delayed, leased, dead, age = await self._run(STATS, [])
        return Stats(ready, delayed, leased, dead, age / 1e6)

    async def dead(self, most: int = 100) -> list[Dead]:
        """Return up to `most` dead jobs, the oldest first."""
        found = await self._run(DEAD, [whole("most", most, at_least=1), _MOST_BYTES])
        jobs = []
        for id_, priority, since, deliveries, lines, payload in zip(*[iter(found)] * 6, strict=True):
            try:
                value = self._codec.decode(payload)
            except Exception:  # it may be dead for that
                value = payload
            history = tuple(lines.decode("utf-8", "replace").splitlines())
            why = history[-1].partition(" ")[2] if history else ""
            receipt = Receipt("", int(priority), int(since))
            jobs.append(Dead(id_.decode(), value, int(deliveries), why, history, receipt))
        return jobs

    async def redrive(self, *jobs: str) -> int:
        """Let dead jobs be ready again, at their old places; return how many were dead."""
        return int(await self._run(RESOLVE, ["redrive", *jobs]))

    async def discard(self, *jobs: str) -> int:
        """Remove dead jobs; return how many were dead."""
        return int(await self._run(RESOLVE, ["discard", *jobs]))

    def _encoded(self, payload: Any) -> bytes:
        try:
            data: Any = self._codec.encode(payload)
            if isinstance(data, bytes) and len(data) <= self.policy.max_bytes:
                self._codec.decode(data)
        except Exception as error:  # a codec raises what it likes
            raise NotSendable(self.name, f"the codec raised {type(error).__name__}") from error
        if not isinstance(data, bytes):
            raise NotSendable(self.name, f"the codec gave {type(data).__name__}, not bytes")
        if len(data) > self.policy.max_bytes:
            raise NotSendable(self.name, f"{len(data)} bytes are more than max_bytes={self.policy.max_bytes}")
        return data

    async def _run(
        self, script: Script, args: Sequence[str | bytes | int | float], keys: Sequence[str] = ()
    ) -> Any:
        return await script(self._client, keys=keys or self._lane.keys, args=args)


def _mine(delivery: Delivery, lost: Sequence[Delivery]) -> None:
    if lost:
        raise LeaseLost(delivery.id, delivery.deliveries)
