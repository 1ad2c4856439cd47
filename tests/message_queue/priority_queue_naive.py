"""What most people write first."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from patterns.clock import SYSTEM_CLOCK
from patterns.keyspace import Keyspace, Script
from patterns.message_queue.priority_queue import Delivery, PriorityQueue, Receipt, Stats, scripts
from patterns.message_queue.priority_queue import queue as queue_module
from patterns.message_queue.priority_queue.lane import Lane

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest

    from patterns.keyspace import Client


def changed(script: Script, *changes: tuple[str, str]) -> Script:
    """Return a script with some of its text replaced."""
    source = script.source
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    return Script(f"{script.name}.naive", source)


class PlainZset:
    """A sorted set of payloads, popped with ZPOPMIN; so do all below that do not say otherwise."""

    def __init__(self, name: str, client: Client, policy: Any, *, app: str, **_: Any) -> None:
        self.client: Any = client
        self.policy = policy
        self.key = Keyspace(app, "priority_queue").key(name, "naive")  # in one slot with the others
        self.numbers = itertools.count(1)

    def entry(self, payload: Any, priority: Any) -> tuple[str, float]:
        return f"|{json.dumps(payload, default=str)}", priority

    async def push(self, payload: Any, *, priority: Any, **_: Any) -> str:
        member, score = self.entry(payload, priority)
        await self.client.zadd(self.key, {member: score})
        return member

    async def receive(self, consumer: str, most: int = 1, **_: Any) -> list[Delivery]:
        popped = await self.client.zpopmin(self.key, most)
        return [
            Delivery(member.decode(), json.loads(member.partition(b"|")[2]), 1, Receipt("", 0, 0))
            for member, _ in popped
        ]

    async def acknowledge(self, delivery: Delivery) -> None: ...


class Trusts(PlainZset):
    """Takes anything for a priority that Python can make a number of."""

    def entry(self, payload: Any, priority: Any) -> tuple[str, float]:
        return f"|{json.dumps(payload, default=str)}", 0 if math.isnan(float(priority)) else float(priority)


class Packed(PlainZset):
    """Packs priority and sequence into one number, and forgets how many bits a double has."""

    def entry(self, payload: Any, priority: Any) -> tuple[str, float]:
        mixed = hashlib.sha256(json.dumps(payload).encode()).hexdigest()
        return f"{mixed}|{json.dumps(payload)}", float(priority * 2**50 + next(self.numbers))


class Unpadded(PlainZset):
    """Breaks ties by a sequence in the member, as text."""

    def entry(self, payload: Any, priority: Any) -> tuple[str, float]:
        return f"{next(self.numbers)}|{json.dumps(payload)}", priority


class Lists(PlainZset):
    """A list for each priority, polled from the top."""

    async def push(self, payload: Any, *, priority: Any, **_: Any) -> str:
        pushed: Any = self.client.rpush(f"{self.key}-{priority}", json.dumps(payload))
        await pushed
        return ""

    async def receive(self, consumer: str, most: int = 1, **_: Any) -> list[Delivery]:
        for priority in range(10):
            popped: Any = self.client.lpop(f"{self.key}-{priority}")
            if (found := await popped) is not None:
                return [Delivery("", json.loads(found), 1, Receipt("", priority, 0))]
        return []


class PopsAndAdds(PlainZset):
    """Pushes under a new name each time, pops, and then works."""

    def __init__(self, *args: Any, app: str, role: str = "done") -> None:
        super().__init__(*args, app=app)
        self.done = Keyspace(app, "priority_queue").key("jobs", role)

    def entry(self, payload: Any, priority: Any) -> tuple[str, float]:
        return f"{uuid.uuid4().hex}|{payload}", priority

    async def acknowledge(self, delivery: Delivery, effect: Any = None) -> None:
        await cast("Any", self.client).rpush(self.done, delivery.payload)

    async def stats(self) -> Stats:
        return Stats(await self.client.zcard(self.key), 0, 0, 0, 0.0)


class Prefetches(PriorityQueue):
    """Takes ten at a time, and works on them one after the other."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fetched: list[Delivery] = []

    async def receive(self, consumer: str, most: int = 1, *, wait: bool = True) -> list[Delivery]:
        self.fetched += await super().receive(consumer, 10, wait=wait) if not self.fetched else []
        one, self.fetched = self.fetched[:1], self.fetched[1:]
        return one


class AnyoneActs(PriorityQueue):
    """Looks for the job, and not for its owner."""

    async def _as_owner(self, delivery: Delivery) -> Delivery:
        record: Any = await self._run(
            Script("whose", "return redis.call('HGET', KEYS[5], ARGV[1])"), [delivery.id]
        )
        owner = record.decode().split(" ", 3)[3]
        return replace(delivery, receipt=replace(delivery.receipt, owner=owner))

    async def acknowledge(self, delivery: Delivery, effect: Any = None) -> None:
        await super().acknowledge(await self._as_owner(delivery), effect)


class NeverDead(PriorityQueue):
    """Counts no deliveries."""

    def __init__(self, name: str, client: Client, policy: Any, **options: Any) -> None:
        super().__init__(name, client, replace(policy, max_deliveries=10**6), **options)


class LooksThenActs(PriorityQueue):
    """Cancels in two steps."""

    between: Callable[[], Awaitable[None]]

    async def cancel(self, job: str) -> bool:
        ready, client = self._lane.keys[0], cast("Any", self._client)
        members = [each for each in await client.zrange(ready, 0, -1) if each.decode().endswith(job)]
        if not members:
            return False
        await self.between()
        await client.zrem(ready, *members)
        return True


class PushesAgain(PriorityQueue):
    """Changes a priority by cancelling and pushing."""

    async def change_priority(self, job: str, priority: int) -> bool:
        payload = json.loads(await cast("Any", self._client).hget(self._lane.keys[5], job))
        return await self.cancel(job) and bool(await self.push(payload, priority=priority))


class ClientClock(PriorityQueue):
    """Reckons delays by the client's clock."""

    def __init__(self, *args: Any, clock: Any = SYSTEM_CLOCK, **options: Any) -> None:
        super().__init__(*args, clock=clock, **options)
        self.clock = clock

    async def push(
        self, payload: Any, *, priority: int, delay: float = 0, dedupe_id: str | None = None
    ) -> str:
        job = await super().push(payload, priority=priority, delay=delay, dedupe_id=dedupe_id)
        due = (self.clock.wall().timestamp() + delay) * 1e6
        await self._client.zadd(self._lane.keys[1], {job: due}, xx=True)
        return job


class Rewrites(PriorityQueue):
    """Lets jobs age by one priority each `aging` seconds, in a loop over all that wait."""

    async def receive(self, consumer: str, most: int = 1, *, wait: bool = True) -> list[Delivery]:
        client, ready, jobs = cast("Any", self._client), self._lane.keys[0], self._lane.keys[4]
        now = int(await client.get(self._lane.keys[7]))
        for member in await client.zrange(ready, 0, -1):
            record = await client.hget(jobs, member[16:].decode())
            priority, since = map(int, record.split()[:2])
            waited = (now - since) / 1e6
            await client.zadd(ready, {member: max(0, priority - waited // self.policy.aging)})
        return list(await super().receive(consumer, most, wait=wait))


class DedupesInTheProcess(PriorityQueue):
    """Remembers what it has pushed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.known: dict[str, str] = {}

    async def push(
        self, payload: Any, *, priority: int, delay: float = 0, dedupe_id: str | None = None
    ) -> str:
        if dedupe_id in self.known:
            return self.known[dedupe_id]
        job = await super().push(payload, priority=priority, delay=delay)
        if dedupe_id is not None:
            self.known[dedupe_id] = job
        return job


# Consumers that wait otherwise


class _Waits(Lane):
    async def receive(self, consumer: str, most: int = 1, *, wait: bool = True) -> list[Delivery]:
        while True:
            found, next_look, seen = await self._take(consumer, most)
            if found or not wait:
                return found
            await self.await_one(min(next_look, self.policy.poll), seen)

    async def await_one(self, seconds: float, seen: bytes) -> None:
        raise NotImplementedError


class WaitsForNew(_Waits):
    """Waits for what comes after it has begun to wait: XREAD with `$`."""

    async def await_one(self, seconds: float, seen: bytes) -> None:
        await self._client.xread({self.keys[-1]: "$"}, block=max(1, math.ceil(seconds * 1000)))


class PopsToken(_Waits):
    """Pops a token that whoever makes the queue not empty has put there."""

    async def await_one(self, seconds: float, seen: bytes) -> None:
        popped: Any = self._client.blpop([self.keys[-1]], timeout=math.ceil(seconds))
        await popped


class Polls(Lane):
    """Looks each 5 ms."""

    async def receive(self, consumer: str, most: int = 1, *, wait: bool = True) -> list[Delivery]:
        ends = self._clock.monotonic() + self.policy.poll
        while True:
            found, _, _ = await self._take(consumer, most)
            if found or not wait or self._clock.monotonic() > ends:
                return found
            await self._clock.sleep(0.005)


def pops_a_token(monkeypatch: pytest.MonkeyPatch, lane_module: Any) -> None:
    """Let the scripts put a token into a list, and consumers pop it."""
    token = ("redis.call('XADD', wake, 'MAXLEN', 1, '*', 'w', '1')", "redis.call('LPUSH', wake, '1')")
    last = ("redis.call('XREVRANGE', wake, '+', '-', 'COUNT', 1)[1]", "nil")
    monkeypatch.setattr(queue_module, "PUSH", changed(scripts.PUSH, token))
    monkeypatch.setattr(queue_module, "RESOLVE", changed(scripts.RESOLVE, token))
    monkeypatch.setattr(lane_module, "RELEASE", changed(scripts.RELEASE, token))
    monkeypatch.setattr(lane_module, "TAKE", changed(scripts.TAKE, token, last))
    monkeypatch.setattr(queue_module, "Lane", PopsToken)
