"""What each invariant of the competing consumer demands; a naive variant fails it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from patterns.clock import ManualClock
from patterns.message_queue.competing_consumer import RAW, Effect, LeaseLost, NotSendable, QueueFull
from tests.eventually import eventually
from tests.message_queue.competing_consumer_site import COUNT, SLOW, one
from tests.places import outcome

if TYPE_CHECKING:
    from tests.message_queue.competing_consumer_site import Site


async def check_nothing_is_lost(at: Site) -> None:
    """1: not what was sent before anybody listened, not what a receiver had that is gone."""
    sender, queue = at.queue(), at.queue(1)
    await sender.send_many(range(10))
    gone = await queue.lanes[0].receive("gone", 4, wait=False)
    assert [each.payload for each in gone] == [0, 1, 2, 3], "what was sent before the group was there"
    await at.idle(61)
    seen = set(await at.served(at.queue(1)))
    assert seen == set(range(10)), f"lost: {set(range(10)) - seen}"

    await sender.send_many(range(10, 14))
    await at.clients[0].xgroup_destroy(at.key("stream"), "workers")
    seen = set(await at.served(queue))
    assert seen == set(range(10, 14)), f"lost with the group: {set(range(10, 14)) - seen}"


async def check_a_worker_keeps_its_message(at: Site) -> None:
    """2: for ten times the time-out, as long as it renews."""
    clock, busy, end = ManualClock(), asyncio.Event(), asyncio.Event()
    queue, other = at.queue(), at.queue(1)
    await queue.send("long")

    async def handle(delivery: Any) -> None:
        busy.set()
        await end.wait()

    async with at.worker(queue.lanes, handle, timeout=None, clock=clock) as worker:
        await asyncio.wait_for(busy.wait(), 5)
        try:
            for _ in range(30):
                await at.idle(20)
                await clock.advance(20)

                async def renewed() -> bool:
                    return all(each["time_since_delivered"] < 15_000 for each in await at.pending())

                await eventually(renewed, within=at.patience, what="the message is renewed")
                assert await other.lanes[0].receive("other", 1, wait=False) == [], "two have it"
        finally:
            end.set()
        await eventually(lambda: worker.held == 0, within=3)
    assert (await queue.stats()).pending == 0


async def check_a_silent_owner_is_followed(at: Site) -> None:
    """2: not before its time has passed, and within the time and one poll."""
    options: dict[str, Any] = {"visibility": 0.3, "poll": 0.05}
    queue, other = at.queue(**options), at.queue(1, **options)
    await queue.send("x")
    began = time.monotonic()
    await one(queue, "silent")
    received = time.monotonic()
    found: list[Any] = []
    while not found and time.monotonic() < received + 0.35 + at.patience:
        found = await other.lanes[0].receive("next", 1, wait=True)
    assert found, "nobody ever has it again"
    # From before the receipt the server's clock cannot have run for longer than ours.
    assert time.monotonic() - began >= 0.29, "two have it"
    assert time.monotonic() - received < 0.35 + at.patience, "it takes too long"
    assert found[0].deliveries == 2


async def check_only_the_owner(at: Site) -> None:
    """3: whoever was too slow changes nothing, and hears it."""
    queue, other = at.queue(), at.queue(1)
    for which, next_owner in enumerate(["b", "a"]):  # also where the same consumer has it again
        await queue.send(which)
        late = await one(queue, "a")
        await at.idle(61)
        now = await one(other, next_owner)
        assert (late.id, late.deliveries, now.deliveries) == (now.id, 1, 2)
        for act in (queue.acknowledge, queue.extend, queue.release):
            error = await outcome(act(late))
            assert isinstance(error, LeaseLost), f"{act.__name__} of another's message was not refused"
            assert error.id == late.id
        assert (await queue.stats()).pending == 1, "the message was taken away from its owner"
        await other.acknowledge(now)
        assert (await queue.stats()).pending == 0


async def check_deliveries_are_counted(at: Site) -> None:
    """4: also those of receivers that died, and the third is the last."""
    queue = at.queue(max_deliveries=3)
    await queue.send({"n": 1})
    for count in (1, 2, 3):
        assert (await one(queue, f"victim-{count}")).deliveries == count
        await at.idle(61)
    queue = at.queue(1, max_deliveries=3)
    assert await queue.lanes[0].receive("next", 1, wait=False) == [], "it is delivered for ever"
    (letter,) = await queue.dead()
    assert (letter.payload, letter.deliveries) == ({"n": 1}, 3)
    assert letter.history == ("1 fell silent", "2 fell silent", "3 fell silent")
    assert await at.clients[0].xlen(at.key("stream")) == 0
    assert await at.clients[0].exists(at.key("history")) == 0

    assert await queue.redrive(letter) == 1
    assert await queue.redrive(letter) == 0
    again = await one(queue, "next")
    assert (again.id, again.payload, again.deliveries) == (letter.id, {"n": 1}, 1)
    await queue.reject(again, "nobody can")
    (letter,) = await queue.dead()
    assert (letter.id, letter.why, letter.history) == (again.id, "nobody can", ("1 nobody can",))
    assert await queue.discard(letter) == 1
    assert await queue.dead() == []


async def check_sent_once(at: Site) -> None:
    """5: by two processes, too."""
    ids = [await at.queue(which).send("pay", dedupe_id="order 17") for which in (0, 1, 0)]
    assert len(set(ids)) == 1, "one order is two messages"
    assert await at.served(at.queue()) == ["pay"]
    await at.queue().send("pay", dedupe_id="order 18")
    assert await at.served(at.queue()) == ["pay"]


async def check_an_effect_is_made_once(at: Site) -> None:
    """5: whoever is too slow makes none, and nobody makes a second one."""
    queue = at.queue()
    await queue.send("pay")
    late = await one(queue, "a")
    await at.idle(61)
    now = await one(queue, "b")
    effect = Effect(COUNT, [queue.lanes[0].key("paid")], [now.id])
    assert await queue.lanes[0].acknowledge_with(now, effect)
    for delivery in (late, now):
        assert not await queue.lanes[0].acknowledge_with(delivery, effect)
    made = await at.clients[0].hgetall(queue.lanes[0].key("paid"))
    assert made == {now.id.encode(): b"1"}, f"made: {made}"


async def check_nothing_piles_up(at: Site) -> None:
    """6: and nothing is thrown away for that."""
    queue = at.queue(capacity=5)
    first = await queue.send(0)
    held = await one(queue, "a")
    for number in range(1, 5):
        await queue.send(number)
    full = await outcome(queue.send(5))
    assert isinstance(full, QueueFull), "the stream grows without a bound"
    assert full.capacity == 5
    await at.idle(61)
    await queue.lanes[0].leave("somebody else")
    queue = at.queue(1, capacity=5)
    again = await one(queue, "b")
    assert (again.id, again.payload, held.id) == (first, 0, first), "what was pending is gone"
    await queue.acknowledge(again)
    assert await at.served(queue) == [1, 2, 3, 4]
    assert await at.clients[0].xlen(at.key("stream")) == 0, "what is done stays in the stream"
    assert await at.pending() == []
    for consumer in ("a", "b", "server"):
        await queue.lanes[0].leave(consumer)
    assert await at.clients[0].xinfo_consumers(at.key("stream"), "workers") == [], "consumers pile up"


async def check_who_has_something_is_not_forgotten(at: Site) -> None:
    """6: a consumer that leaves with something in its list gives it back."""
    queue = at.queue()
    await queue.send("x")
    await one(queue, "a")
    await queue.lanes[0].leave("a")
    found = await one(at.queue(1), "b", at.patience)
    assert found.payload == "x"


async def check_a_worker_takes_what_it_can(at: Site) -> None:
    """7: and gives back what it has not begun, before its handlers end."""
    queue, other = at.queue(), at.queue(1)
    await queue.send_many(range(20))
    begun: list[int] = []
    end = asyncio.Event()

    async def handle(delivery: Any) -> None:
        begun.append(delivery.payload)
        await end.wait()

    worker = at.worker(queue.lanes, handle, timeout=None, concurrency=2, prefetch=3, drain=5)
    async with worker:
        try:
            await eventually(lambda: len(begun) == 2, within=3)
            stats = await queue.stats()
            assert (stats.depth, stats.pending) == (15, 5), f"{stats.pending} messages are taken"
            assert worker.held == 5
            closing = at.begin(worker.close())
            back = await eventually(lambda: other.lanes[0].receive("other", 3, wait=False), within=3)
            assert [each.deliveries for each in back] == [1, 1, 1], "what was not begun was counted"
            assert sorted(each.payload for each in back) == [2, 3, 4], "what was taken is not given back"
        finally:
            end.set()
        assert await closing == 3
    assert begun == [0, 1]
    assert (await queue.stats()).pending == 3, "what was being handled was not ended"


async def check_handlers_that_do_not_end(at: Site) -> None:
    """7: they are cancelled after `drain`, and their messages are another's at once."""
    queue, begun = at.queue(), asyncio.Event()
    await queue.send("x")

    async def handle(delivery: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with at.worker(queue.lanes, handle, timeout=None, drain=0.01):
        await asyncio.wait_for(begun.wait(), 5)
    found = await one(at.queue(1), "other", at.patience)
    assert found.deliveries == 2


async def check_who_waits_is_woken(at: Site) -> None:
    """8: at once, long before the next poll."""
    queue = at.queue(**SLOW)
    waiting = at.begin(queue.lanes[0].receive("a", 1, wait=True))

    async def in_line() -> bool:
        found = await at.clients[1].exists(at.key("stream"))
        return bool(found)

    await eventually(in_line, within=3)
    await at.queue(1).send("x")
    await eventually(waiting.done, within=at.patience, what="it is woken")
    assert [each.payload for each in waiting.result()] == ["x"]


async def check_keys_keep_their_order(at: Site) -> None:
    """8: one key is in one partition, and several keys are in several."""
    queue = at.queue(partitions=4)
    for number in range(6):
        for key in "abcdefgh":
            await queue.send([key, number], key=key)
    used = set()
    for lane in queue.lanes:
        by: dict[str, list[int]] = {}
        for each in await lane.receive("a", 100, wait=False):
            by.setdefault(each.payload[0], []).append(each.payload[1])
            used.add(lane.number)
        assert all(numbers == list(range(6)) for numbers in by.values()), f"out of order: {by}"
    assert len(used) > 1


BAD: dict[str, Any] = {
    "an object": object(),
    "NaN": float("nan"),
    "a lone surrogate": "\ud800",
    "5 MB": "x" * 5_000_000,
    "bytes in JSON": b"\xff",
}


def _deep() -> list[Any]:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


async def check_bad_payloads(at: Site) -> None:
    """9: each is a NotSendable, nothing of it is written, and the others go on."""
    queue = at.queue()
    deep = _deep()
    for name, payload in [*BAD.items(), ("too deep", deep)]:
        for send, argument in ((queue.send, payload), (queue.send_many, [1, payload])):
            error = await outcome(send(argument))
            assert isinstance(error, NotSendable), f"{name} was taken: {type(error).__name__}"
            assert error.queue == "jobs"
            assert len(str(error)) < 200
    assert await at.clients[0].exists(at.key("stream")) == 0
    await queue.send({"ok": None})
    assert await at.served(queue) == [{"ok": None}]
    raw = at.queue(codec=RAW, name="raw")
    odd = [b"", b"\0", b"\xff\xfe", b"\r\n" * 3]
    for payload in odd:
        await raw.send(payload)
    assert await at.served(raw) == odd
