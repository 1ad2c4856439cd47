"""A queue as those see it who send to it and look after it."""

from __future__ import annotations

import random
import re
import zlib
from typing import TYPE_CHECKING, Any

from patterns.bounds import text
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.entry import JSON, Codec
from patterns.events import Listener, emit, ignore
from patterns.keyspace import Client, Keyspace
from patterns.message_queue.competing_consumer.delivery import Dead, Delivery, Returned, Stats
from patterns.message_queue.competing_consumer.errors import (
    LeaseLost,
    NotSendable,
    OtherPartitions,
    QueueFull,
)
from patterns.message_queue.competing_consumer.events import MessageSent
from patterns.message_queue.competing_consumer.lane import Lane, Receipt
from patterns.message_queue.competing_consumer.scripts import AGREE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from patterns.message_queue.competing_consumer.policy import Policy

__all__ = ["Queue"]

_CHUNK_BYTES = 1 << 20  # of payloads in one script: Redis does nothing else meanwhile
_CHUNK = 500


class Queue:
    """Where messages are sent, and what there is to see of them.

    Args:
        name: of the queue: letters, digits, `_`, `.` and `-`; the source of events.
        client: from `patterns.keyspace`; a receiver that waits holds one of its connections.
        policy: the same in all processes of this queue.
        app: first part of the keys.
        codec: turns payloads into bytes and back; `Raw` takes bytes as they are.
        clock: where durations are read.
        rng: spreads messages that have neither key nor dedupe_id.
        on_event: hears MessageSent, GroupCreated and MessageDead.

    Attributes:
        lanes: the partitions, to receive from.
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
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"name must be letters, digits, '_', '.' and '-', at least one, got {name!r}")
        self.name, self.policy = name, policy
        self._client, self._codec, self._on_event = client, codec, on_event
        self._rng = rng or random.Random()
        self._agreed = False
        space = Keyspace(app, "competing_consumer")
        self._partitions_key = space.key(f"{name}/0", "partitions")
        options: dict[str, Any] = {"space": space, "policy": policy, "codec": codec, "agree": self._agree}
        options |= {"clock": clock, "on_event": on_event}
        self.lanes = tuple(Lane(number, name, client, **options) for number in range(policy.partitions))

    # --8<-- [start:send]
    async def send(self, payload: Any, *, key: str | None = None, dedupe_id: str | None = None) -> str:
        """Queue one message and return its id; an id that was given out before, if `dedupe_id` was sent.

        Messages of one `key` are in one partition, in order. A `dedupe_id` is compared within a partition:
        send it with the same `key` each time.

        Raises:
            NotSendable: nothing was written; nor where `key` or `dedupe_id` is no text, a ValueError.
            QueueFull: nothing was written.
            OtherPartitions: nothing was written.
            OutcomeUnknown: of `patterns.keyspace`: it is queued, or not; with a `dedupe_id`, send again.
            RedisError: any other: it is not queued.
        """
        named = {"key": key, "dedupe": dedupe_id}
        fields = [b"payload", self._packed(payload)]
        for name, value in named.items():
            if value is not None:
                fields += [name.encode(), _utf8(name, value)]
        await self._agree()
        lane = self._lane_for(key if key is not None else dedupe_id)
        sent = await lane.send([fields], None if dedupe_id is None else _utf8("dedupe_id", dedupe_id))
        if sent is None:
            raise QueueFull(self.name, self.policy.capacity)
        (message,), duplicate = sent
        if self._on_event is not ignore:
            emit(self._on_event, MessageSent(self.name, message, duplicate))
        return message

    # --8<-- [end:send]

    async def send_many(self, payloads: Iterable[Any], *, key: str | None = None) -> list[str]:
        """Queue messages, hundreds in a step, and return their ids; as `send`, but for `dedupe_id`.

        All payloads are looked at before the first is written. An error of Redis, or QueueFull, may come
        when some are queued and the others are not.
        """
        fields = [] if key is None else [b"key", _utf8("key", key)]
        packed = [[b"payload", self._packed(payload), *fields] for payload in payloads]
        await self._agree()
        ids: list[str] = []
        while packed:
            many = size = 0
            while many < min(_CHUNK, len(packed)) and (size := size + len(packed[many][1])) <= _CHUNK_BYTES:
                many += 1
            chunk, packed = packed[: max(1, many)], packed[max(1, many) :]
            sent = await self._lane_for(key).send(chunk)
            if sent is None:
                raise QueueFull(self.name, self.policy.capacity)
            ids += sent[0]
            for each in sent[0] if self._on_event is not ignore else ():
                emit(self._on_event, MessageSent(self.name, each, duplicate=False))
        return ids

    # --8<-- [start:settle]
    async def acknowledge(self, delivery: Delivery) -> None:
        """Remove a message that is done.

        Raises:
            LeaseLost: it is another's, or gone; so too below.
        """
        _check(delivery, lost=await self.lane_of(delivery).acknowledge([delivery]))

    async def extend(self, delivery: Delivery) -> None:
        """Begin the visibility time-out of a message anew."""
        _check(delivery, lost=await self.lane_of(delivery).renew([delivery]))

    async def release(self, delivery: Delivery, *, delay: float = 0.0, why: str = "") -> None:
        """Give a message back, to be tried again after `delay` seconds, `visibility` at most."""
        returned = Returned(delivery, delay, why)
        _check(delivery, lost=await self.lane_of(delivery).release([returned]))

    async def reject(self, delivery: Delivery, why: str) -> None:
        """Give a message up: it becomes a dead letter."""
        _check(delivery, lost=not await self.lane_of(delivery).reject(delivery, why))

    # --8<-- [end:settle]

    async def stats(self) -> Stats:
        """Say how much is in all partitions: metrics to alert on."""
        await self._agree()
        each = [await lane.stats() for lane in self.lanes]
        return Stats(
            sum(one.depth for one in each),
            sum(one.pending for one in each),
            sum(one.dead for one in each),
            max(one.oldest_seconds for one in each),
        )

    async def dead(self, most: int = 100) -> list[Dead]:
        """Return up to `most` dead letters."""
        await self._agree()
        return [letter for lane in self.lanes for letter in await lane.dead(most)][:most]

    async def redrive(self, *letters: Dead) -> int:
        """Queue dead letters again, as if never delivered; return how many there were."""
        return sum([await lane.resolve("redrive", letters) for lane in self.lanes])

    async def discard(self, *letters: Dead) -> int:
        """Give dead letters up for good; return how many there were."""
        return sum([await lane.resolve("discard", letters) for lane in self.lanes])

    def lane_of(self, delivery: Delivery) -> Lane:
        """Return the partition of a message: where the keys of its Effect must be."""
        receipt: Receipt = delivery.receipt
        return self.lanes[receipt.partition]

    def _lane_for(self, name: str | None) -> Lane:
        if name is None:
            return self.lanes[self._rng.randrange(len(self.lanes))]
        return self.lanes[zlib.crc32(name.encode()) % len(self.lanes)]

    def _packed(self, payload: Any) -> bytes:
        try:
            packed: Any = self._codec.encode(payload)
            if isinstance(packed, bytes) and len(packed) <= self.policy.max_bytes:
                self._codec.decode(packed)
        except Exception as error:  # whatever a codec raises
            raise NotSendable(self.name, f"the codec raised {type(error).__name__}") from error
        if not isinstance(packed, bytes):
            raise NotSendable(self.name, f"the codec gave {type(packed).__name__}, not bytes")
        if len(packed) > self.policy.max_bytes:
            most = self.policy.max_bytes
            raise NotSendable(self.name, f"{len(packed)} bytes are more than max_bytes={most}")
        return packed

    async def _agree(self) -> None:
        if self._agreed:
            return
        found = int(await AGREE(self._client, keys=[self._partitions_key], args=[len(self.lanes)]))
        if found != len(self.lanes):
            raise OtherPartitions(self.name, len(self.lanes), found, self._partitions_key)
        self._agreed = True


def _check(delivery: Delivery, *, lost: object) -> None:
    if lost:
        raise LeaseLost(delivery.id, delivery.deliveries)


def _utf8(field: str, value: str) -> bytes:
    try:
        return text(field, value).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{field} must be text that UTF-8 can hold, got a lone surrogate") from None
