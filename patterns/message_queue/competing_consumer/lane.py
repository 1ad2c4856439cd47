"""One partition of a queue: a stream, its consumer group, and what was given up.

Keys, all in one slot; `scripts` says what is in them:

    <app>:{competing_consumer:<queue>/<partition>}:stream|history|dead|sent.<hash of a dedupe_id>

The first partition has `partitions` too. Only `sent` expires: what is queued is nowhere else.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import ResponseError

from patterns.events import emit
from patterns.message_queue.competing_consumer.delivery import Dead, Delivery, Stats
from patterns.message_queue.competing_consumer.events import GroupCreated, MessageDead
from patterns.message_queue.competing_consumer.scripts import (
    ACKNOWLEDGE,
    DEAD,
    DISCARD,
    GROUP,
    LEAVE,
    NOBODY,
    RECEIVE,
    REDRIVE,
    REJECT,
    RELEASE,
    RENEW,
    SEND,
    STATS,
    with_effect,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from patterns.clock import Clock
    from patterns.entry import Codec
    from patterns.events import Listener
    from patterns.keyspace import Client, Keyspace
    from patterns.message_queue.competing_consumer.delivery import Returned
    from patterns.message_queue.competing_consumer.effect import Effect
    from patterns.message_queue.competing_consumer.policy import Policy

__all__ = ["Lane", "Receipt"]

_END = b"0-0"
_FORGET_AFTER = 10  # visibilities, without a word, of a consumer that has nothing


class Receipt(NamedTuple):
    """Which delivery it is: with the delivery count, the fencing token.

    Attributes:
        partition: where the message is.
        entry: in its stream.
        consumer: who has it.
    """

    partition: int
    entry: bytes
    consumer: str


class Lane:
    """One partition, for those who receive from it; a `Source` of a Worker.

    Args:
        number: which of the partitions.
        queue: its name.
        client: from `patterns.keyspace`.
        space: where its keys are.
        policy: how long, and how often.
        codec: turns payloads into bytes and back.
        agree: compares the number of partitions, once.
        clock: where it reads when to look for silent owners.
        on_event: hears GroupCreated and MessageDead.
    """

    def __init__(
        self,
        number: int,
        queue: str,
        client: Client,
        *,
        space: Keyspace,
        policy: Policy,
        codec: Codec,
        agree: Callable[[], Awaitable[None]],
        clock: Clock,
        on_event: Listener,
    ) -> None:
        self.number = number
        self.name = queue
        self.lease = policy.visibility
        self._client, self._policy, self._codec = client, policy, codec
        self._agree, self._clock, self._on_event = agree, clock, on_event
        self._space = space
        self.keys = [self._key(role) for role in ("stream", "history", "dead")]
        self._cursor: bytes | None = None
        self._look_at = 0.0

    def key(self, role: str) -> str:
        """Return a key of your own in this partition's slot, for an Effect."""
        return self._key(f"effect.{role}")

    def _key(self, role: str) -> str:
        return self._space.key(f"{self.name}/{self.number}", role)

    def retry_delay(self, delivery: Delivery) -> float:
        """Return the seconds until the next try, should this delivery fail."""
        return self._policy.delay(delivery.deliveries)

    # --8<-- [start:send]
    async def send(
        self, entries: Sequence[Sequence[bytes]], dedupe_id: bytes | None = None
    ) -> tuple[list[str], bool] | None:
        """Append entries, all or none; return their ids and whether it is an old one, None for no room."""
        keys = self.keys
        if dedupe_id is not None:
            keys = [*keys, self._key(f"sent.{hashlib.sha256(dedupe_id).hexdigest()[:32]}")]
        args: list[bytes | int] = [
            self._policy.capacity,
            _ms(self._policy.dedupe_window),
            len(entries),
        ]
        for fields in entries:
            args += [len(fields), *fields]
        reply = await SEND(self._client, keys=keys, args=args)
        return reply and ([self._id(entry) for entry in reply[0]], bool(reply[1]))

    # --8<-- [end:send]

    async def join(self, consumer: str) -> None:
        """Refuse a worker that must not begin.

        Raises:
            OtherPartitions: the policy has another number of them.
            ValueError: the name is not a consumer's.
        """
        if not consumer or consumer == NOBODY:
            raise ValueError(f"consumer must be a name, and not {NOBODY!r}, got {consumer!r}")
        await self._agree()

    # --8<-- [start:receive]
    async def receive(self, consumer: str, most: int = 1, *, wait: bool = True) -> list[Delivery]:
        """Return up to `most` messages: those of silent owners first, then new ones, in order.

        Where there are none, wait for one for `poll` seconds, or a third of `visibility` if that is less.

        Raises:
            OtherPartitions: the policy has another number of them.
            RedisError: what may have been handed out is redelivered after `visibility`.
        """
        await self.join(consumer)
        while True:
            found = await self._take(consumer, most)
            if found or not wait:
                return found
            if self._cursor is None:
                return await self._wait_for_one(consumer)

    async def _take(self, consumer: str, most: int) -> list[Delivery]:
        policy, now = self._policy, self._clock.monotonic()
        if self._cursor is None and now >= self._look_at:
            self._cursor = _END
        cursor = self._cursor
        args: list[Any] = [consumer, most, _ms(policy.visibility), policy.max_deliveries, cursor or b""]
        after, made, found, given_up = await RECEIVE(self._client, keys=self.keys, args=args)
        if cursor is not None:
            self._cursor = None if after == _END else after
            self._look_at = now + policy.poll
        if made:
            emit(self._on_event, GroupCreated(self.name, self.number))
        for entry, deliveries in zip(given_up[::2], given_up[1::2], strict=True):
            emit(self._on_event, MessageDead(self.name, self._id(entry), deliveries, "delivered too often"))
        return await self._read(consumer, found)

    async def _wait_for_one(self, consumer: str) -> list[Delivery]:
        milliseconds = _ms(min(self._policy.poll, self._policy.visibility / 3))
        try:
            reply: Any = await self._client.xreadgroup(
                GROUP, consumer, {self.keys[0]: ">"}, count=1, block=milliseconds
            )
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return []  # Redis has forgotten: the next look makes a group
        new = [(entry, 1, fields) for _, entries in reply or () for entry, fields in entries]
        return await self._read(consumer, new)

    # --8<-- [end:receive]

    async def renew(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Begin the visibility time-out of these anew; return those that are another's, or gone."""
        return await self._run_for(RENEW, deliveries)

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Remove messages that are done; return those that are another's, or gone, where nothing was done."""
        return await self._run_for(ACKNOWLEDGE, deliveries)

    async def acknowledge_with(self, delivery: Delivery, effect: Effect) -> bool:
        """Make the effect and remove the message, in one step; False: it is another's, and neither was done.

        Raises:
            ValueError: the effect's keys are in another slot.
            ResponseError: the effect failed, and the message stays.
        """
        receipt: Receipt = delivery.receipt
        args: list[Any] = [receipt.consumer, receipt.entry, delivery.deliveries, *effect.args]
        script = with_effect(effect.source)
        return not await script(self._client, keys=[*self.keys, *effect.keys], args=args)

    async def release(self, returned: Sequence[Returned]) -> list[Delivery]:
        """Give messages back; return those that are another's, or gone, where nothing was done.

        One that was started, and delivered `max_deliveries` times, becomes a dead letter.
        """
        lost: list[Delivery] = []
        for consumer, some in _by_consumer(returned, lambda each: each.delivery):
            args: list[Any] = [consumer, self._policy.max_deliveries]
            for each in some:
                # Idle for so long that the rest of the time-out is the delay.
                idle = _ms(self._policy.visibility) - min(
                    round(each.delay * 1000), _ms(self._policy.visibility)
                )
                one = each.delivery
                args += [one.receipt.entry, one.deliveries, idle, int(each.started), _line(each.why)]
            gone, given_up = await RELEASE(self._client, keys=self.keys, args=args)
            deliveries = {each.delivery.receipt.entry: each.delivery for each in some}
            lost += [deliveries[entry] for entry in gone]
            for entry in given_up:
                self._dead(deliveries[entry], "delivered too often")
        return lost

    async def reject(self, delivery: Delivery, why: str) -> bool:
        """Make a message a dead letter; False: it is another's, or gone, and nothing was done."""
        receipt: Receipt = delivery.receipt
        args: list[Any] = [receipt.consumer, receipt.entry, delivery.deliveries, _line(why)]
        done = bool(await REJECT(self._client, keys=self.keys, args=args))
        if done:
            self._dead(delivery, why)
        return done

    async def leave(self, consumer: str) -> None:
        """End a consumer: give back what it has, and forget it, with those that have been silent for long."""
        args: list[Any] = [consumer, _ms(self.lease), _ms(self.lease * _FORGET_AFTER)]
        await LEAVE(self._client, keys=self.keys, args=args)

    async def stats(self) -> Stats:
        """Say how much is in this partition."""
        messages, pending, dead, age = await STATS(self._client, keys=self.keys)
        return Stats(max(0, messages - pending), pending, dead, max(0, age) / 1000)

    async def dead(self, most: int) -> list[Dead]:
        """Return dead letters, the oldest first."""
        found = []
        for at, flat in await DEAD(self._client, keys=self.keys, args=[most]):
            fields: dict[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=True))
            try:
                payload = self._codec.decode(fields[b"payload"])
            except Exception:  # it is why it is here
                payload = fields.get(b"payload", b"")
            entry = fields.get(b"of") or fields[b"entry"]
            history = fields[b"history"].decode("utf-8", "replace").splitlines()
            letter = Dead(
                self._id(entry),
                payload,
                int(fields[b"deliveries"]),
                fields[b"why"].decode("utf-8", "replace"),
                tuple(history),
                (self.number, at),
            )
            found.append(letter)
        return found

    async def resolve(self, how: str, letters: Sequence[Dead]) -> int:
        """Redrive or discard dead letters of this partition; return how many there were."""
        script = REDRIVE if how == "redrive" else DISCARD
        mine = [each.receipt[1] for each in letters if each.receipt[0] == self.number]
        done = 0
        for begin in range(0, len(mine), 1000):
            done += await script(self._client, keys=self.keys, args=mine[begin : begin + 1000])
        return done

    async def _run_for(self, script: Any, deliveries: Sequence[Delivery]) -> list[Delivery]:
        lost: list[Delivery] = []
        for consumer, some in _by_consumer(deliveries, lambda each: each):
            args: list[Any] = [consumer]
            for each in some:
                args += [each.receipt.entry, each.deliveries]
            gone = set(await script(self._client, keys=self.keys, args=args))
            lost += [each for each in some if each.receipt.entry in gone]
        return lost

    async def _read(self, consumer: str, entries: Iterable[Any]) -> list[Delivery]:
        found = []
        for entry, deliveries, raw in entries:
            fields: Mapping[bytes, bytes] = (
                raw if isinstance(raw, dict) else dict(zip(raw[::2], raw[1::2], strict=True))
            )
            receipt = Receipt(self.number, entry, consumer)
            key, dedupe = _text(fields.get(b"key")), _text(fields.get(b"dedupe"))
            message = self._id(fields.get(b"of", entry))
            try:
                payload = self._codec.decode(fields[b"payload"])
            except Exception as error:  # whatever a codec raises: no later try can read it
                why = f"cannot be read: {type(error).__name__}"
                await self.reject(Delivery(message, None, deliveries, receipt), why)
                continue
            found.append(Delivery(message, payload, deliveries, receipt, key, dedupe))
        return found

    def _dead(self, delivery: Delivery, why: str) -> None:
        emit(self._on_event, MessageDead(self.name, delivery.id, delivery.deliveries, why))

    def _id(self, entry: bytes) -> str:
        return f"{self.number}/{entry.decode()}"


def _line(why: str) -> bytes:
    """Return what the history keeps of a reason: one line, not too long."""
    return " ".join(why.split())[:200].encode(errors="replace")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")


def _by_consumer(items: Iterable[Any], delivery_of: Callable[[Any], Delivery]) -> list[tuple[str, list[Any]]]:
    found: dict[str, list[Any]] = {}
    for each in items:
        found.setdefault(delivery_of(each).receipt.consumer, []).append(each)
    return list(found.items())


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
