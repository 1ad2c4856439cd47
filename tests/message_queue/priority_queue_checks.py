"""What a priority queue must do; each check fails on one of the naive variants."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from patterns.clock import ManualClock
from patterns.keyspace import OutcomeUnknown
from patterns.message_queue.competing_consumer.raw import RAW
from patterns.message_queue.priority_queue import LeaseLost, NotSendable
from tests.eventually import eventually
from tests.places import outcome

if TYPE_CHECKING:
    import random

    from tests.faults import Proxy
    from tests.message_queue.priority_queue_site import Site

BAD_PRIORITIES: list[Any] = [math.nan, math.inf, -math.inf, "9", True, None, 1.0, 1.5, -1, 10, 10**400, b"1"]
BAD_DELAYS: list[Any] = [math.nan, math.inf, -1, "1", True, None, 10**10]
BAD_PAYLOADS: list[Any] = [object(), math.nan, b"\xff", {1, 2}, "\ud800", "x" * 1001]
ODD_PAYLOADS: list[Any] = ["", "\0", None, 0, False, [], {"a": "\n"}, "é\U0001f600", 2**70]


async def check_order(at: Site, rng: random.Random, aging: float) -> None:
    """1: what is lent is the ready job of the smallest rank, whoever pushes and receives meanwhile."""
    queues = [at.queue(which, aging=aging) for which in (0, 1)]
    waiting: dict[str, tuple[int, int]] = {}
    for turn in range(6):
        pushed = [(rng.choice(queues), rng.randrange(10), rng.choice([0, 0, 60])) for _ in range(10)]
        jobs = [queue.push(each, priority=each, delay=delay) for queue, each, delay in pushed]
        for job, (_, priority, delay) in zip(await asyncio.gather(*jobs), pushed, strict=True):
            waiting[job] = priority, int(job) + delay * 1_000_000
        await at.come_true("delayed")
        for queue in queues:
            (one,) = await queue.receive("one", wait=False)
            ranks = {
                job: (priority if math.isinf(aging) else since + priority * aging * 1e6, since, job)
                for job, (priority, since) in waiting.items()
            }
            # A delayed one becomes ready `delay` after the script read the time, which is not quite its id.
            near = {job for job, rank in ranks.items() if rank[0] <= ranks[one.id][0] - 50_000}
            assert not near, f"turn {turn}: {one.payload} was lent before {[waiting[job][0] for job in near]}"
            del waiting[one.id]
            await queue.acknowledge(one)
    left = await at.served(queues[0])
    assert sorted(left) == sorted(priority for priority, _ in waiting.values())
    if math.isinf(aging):
        assert left == sorted(left), "not in the order of priorities"


async def check_urgent_first(at: Site) -> None:
    """1: what comes while others are waited for goes first, and so does what has just become ready."""
    queue = at.queue()
    for number in range(5):
        await queue.push(f"export {number}", priority=9)
    (first,) = await queue.receive("one", wait=False)
    await queue.push("alarm", priority=0)
    (second,) = await queue.receive("one", wait=False)
    assert second.payload == "alarm", "an alarm waits behind exports"
    await queue.push("call back", priority=0, delay=60)
    await at.come_true("delayed")
    (third,) = await queue.receive("one", wait=False)
    assert third.payload == "call back", "what has become ready is looked at last"
    assert first.payload == "export 0"


async def check_fifo(at: Site) -> None:
    """2: first come, first served in each priority, whatever the clock and the count."""
    queue = at.queue(1, aging=math.inf)
    for priority in (9, 0):
        for number in range(15):
            await queue.push([priority, number], priority=priority)
    served = await at.served(queue)
    assert served == [[priority, number] for priority in (0, 9) for number in range(15)], "out of order"


async def check_no_starvation(at: Site) -> None:
    """3: of a flood, only what comes within priority * aging goes first."""
    queue = at.queue(aging=10)
    await queue.push("low", priority=9)  # worth 90 seconds
    served: list[str] = []
    for second in range(10, 300, 10):
        await at.age(10)
        for _ in range(2):  # two for each that is served
            await queue.push(f"high {second}", priority=0)
        served += await at.served(queue, 1)
    assert "low" in served, f"{len(served)} of a flood were served, and the one before them was not"
    before = served[: served.index("low")]
    assert before == [f"high {second}" for second in range(10, 90, 10) for _ in range(2)]


async def check_lease(at: Site) -> None:
    """4: a job that is lent is another's after its lease, at its place, and not the old owner's."""
    ours, theirs = at.queue(), at.queue(1)
    for name, priority in (("first", 5), ("second", 5), ("third", 5)):
        await ours.push(name, priority=priority)
    (lent,) = await ours.receive("one", wait=False)
    assert lent.payload == "first"
    await ours.push("urgent", priority=0)
    await at.come_true("leases")
    served = []
    while found := await theirs.receive("two", wait=False):
        (one,) = found
        served.append(one.payload)
        if one.payload == "first":
            assert one.deliveries == 2, "the delivery was not counted"
            for what in (ours.acknowledge, ours.extend, ours.release):
                told = await outcome(what(lent))
                assert isinstance(told, LeaseLost), "who had fallen silent could still act on the job"
                assert (told.id, told.deliveries) == (lent.id, 1)
        await theirs.acknowledge(one)
    assert "first" in served, "the job is gone with the consumer that had it"
    assert served == ["urgent", "first", "second", "third"], "it lost its place"


async def check_dead(at: Site) -> None:
    """4: after so many deliveries a job is dead, once, and can be redriven."""
    queue = at.queue(max_deliveries=3)
    poison = await queue.push("poison", priority=0)
    for delivery in (1, 2, 3):
        found = await queue.receive("one", wait=False)
        assert [one.deliveries for one in found] == [delivery]
        if delivery == 2:
            await queue.release(found[0], why="no such\nfile")
        else:
            await at.come_true("leases")
    await queue.push("good", priority=9)
    assert await at.served(queue, 5) == ["good"], "a poisonous job is delivered for ever"
    (dead,) = await queue.dead()
    assert (dead.id, dead.payload, dead.deliveries) == (poison, "poison", 3)
    assert dead.history == ("1 fell silent", "2 no such file", "3 fell silent")
    assert (dead.why, dead.receipt.priority) == ("fell silent", 0)
    assert await queue.redrive(poison, poison) == 1
    (again,) = await queue.receive("one", wait=False)
    assert (again.id, again.deliveries) == (poison, 1)
    await queue.reject(again, "never")
    assert await queue.discard(poison) == 1
    assert await queue.discard(poison) == 0


async def check_cancel(at: Site, *, between: bool) -> None:
    """5: it waited and is gone, or is a consumer's and stays; `between`: it is lent at the worst time."""
    ours, theirs = at.queue(), at.queue(1)
    first = await ours.push("first", priority=5)
    second = await ours.push("second", priority=5)
    delayed = await ours.push("delayed", priority=5, delay=60)
    if between:
        lent: list[Any] = []

        async def lend() -> None:
            lent.extend(await theirs.receive("two", wait=False))

        ours.between = lend
        waited = await ours.cancel(first)
        if not lent:
            await lend()
        assert waited == (lent[0].id != first), "it was cancelled, and a consumer works on it"
        return
    assert await ours.cancel(first)
    assert not await ours.cancel(first)
    assert await ours.cancel(delayed)
    (lent_,) = await theirs.receive("two", wait=False)
    assert lent_.id == second
    assert not await ours.cancel(second), "it was too late to cancel"
    await theirs.acknowledge(lent_)
    assert not await ours.cancel(second)
    assert not await ours.cancel("no such job")
    stats = await ours.stats()
    assert (stats.ready, stats.delayed, stats.leased) == (0, 0, 0)


async def check_change(at: Site) -> None:
    """5: a job that waits stands where it would have if it had been pushed so."""
    queue = at.queue(aging=10)
    jobs = {}
    for name, priority in (("a", 5), ("b", 5), ("c", 5), ("d", 0)):
        await at.age(1)
        jobs[name] = await queue.push(name, priority=priority)
    later = await queue.push("e", priority=9, delay=60)
    assert await queue.change_priority(jobs["c"], 0)  # earlier than d, and now as urgent
    assert await queue.change_priority(jobs["a"], 9)
    assert await queue.change_priority(later, 0)
    (lent,) = await queue.receive("one", wait=False)
    assert lent.payload == "c", "it was put at the end of its new priority"
    assert lent.receipt.priority == 0
    assert not await queue.change_priority(jobs["c"], 9)
    await queue.release(lent)
    await at.come_true("delayed")
    # e is ready 60 s after c and d, and as urgent; b has 50 s, a 90 s behind its own time.
    assert await at.served(queue) == ["c", "d", "b", "e", "a"]
    assert not await queue.change_priority(jobs["c"], 9)


async def check_delay(at: Site) -> None:
    """6: not before its time by the server's clock, whatever those of the clients say."""
    now = datetime.now(UTC)
    fast = at.queue(0, clock=ManualClock(wall=now + timedelta(hours=1)))
    slow = at.queue(1, clock=ManualClock(wall=now - timedelta(hours=1)))
    await slow.push("later", priority=0, delay=60)
    for queue in (fast, slow):
        assert await queue.receive("one", wait=False) == [], "it is lent before its time"
    await fast.push("much later", priority=0, delay=1800)
    assert await slow.receive("one", wait=False) == []
    await at.come_true("delayed")
    for queue in (slow, fast):
        found = await queue.receive("one", wait=False)
        assert found, "it is not lent, though it is time"


async def check_wakes(at: Site, how: str, within: float = 5) -> None:
    """7: a job that comes between the look and the wait, or becomes ready in it, ends the wait."""
    ours, theirs = at.queue(poll=20), at.queue(1, poll=20, lease=3600 if how != "silence" else 0.3)
    client = at.clients[0]
    if how == "silence":
        await theirs.push("job", priority=0)
        assert await theirs.receive("two", wait=False)

    async def come() -> None:
        if how in {"push", "delayed"}:
            await theirs.push("job", priority=0, delay=0.2 if how == "delayed" else 0)

    client.before_the_wait = come
    if how == "later":  # it waits already
        client.before_the_wait = None
        waiting = at.begin(ours.receive("one"))
        await eventually(lambda: client.waiting, within=5)
        await theirs.push("job", priority=0)
    else:
        waiting = at.begin(ours.receive("one"))
    try:
        await eventually(waiting.done, within=within)
    except AssertionError:
        raise AssertionError(f"a job was there ({how}), and the consumer sleeps") from None
    assert [one.payload for one in waiting.result()] == ["job"]


async def check_idle(at: Site) -> None:
    """7: who waits for nothing asks for nothing."""
    queue = at.queue(poll=0.2)
    asked = at.clients[0].asked
    assert await queue.receive("one") == []
    assert at.clients[0].asked - asked <= 3, f"{at.clients[0].asked - asked} looks while nothing came"


async def check_all_wake(at: Site, within: float = 5) -> None:
    """7: three jobs in a row, three consumers that wait: none sleeps while a job is ready."""
    queues = [at.queue(which % 2, poll=20) for which in range(3)]
    jobs = [await queues[0].push(number, priority=number) for number in range(3)]
    for one in await queues[0].receive("one", 3, wait=False):
        await queues[0].reject(one, "for now")
    waiting = [at.begin(queue.receive(str(number))) for number, queue in enumerate(queues)]
    await eventually(lambda: sum(client.waiting for client in at.clients) == 3, within=5)
    assert await queues[0].redrive(*jobs) == 3
    try:
        await eventually(lambda: all(task.done() for task in waiting), within=within)
    except AssertionError:
        raise AssertionError("a consumer sleeps, though a job is ready") from None


async def check_steady(at: Site) -> None:
    """8: as time goes by, jobs become older and keep their order."""
    queue = at.queue(aging=10)
    for number in range(12):
        await at.age(3)
        await queue.push(number, priority=(5, 9, 7)[number % 3])
    orders = []
    for _ in range(6):
        found = await queue.receive("one", 100, wait=False)
        orders.append([one.payload for one in found])
        for one in found:
            await queue.release(one, started=False)
        await at.age(25)
        await queue.push("new", priority=9)
        await at.age(25)
        orders[-1] = [each for each in orders[-1] if each != "new"]
    assert len(orders[0]) == 12
    assert all(order == orders[0] for order in orders), f"waiting has changed the order: {orders}"


async def check_once(at: Site, line: Proxy) -> None:
    """9: pushed twice under one id it is there once, also if the first reply was lost."""
    ours, theirs = at.queue(), at.queue(1)
    await theirs.push("warm up", priority=9)  # the server knows the script
    with line.lose_reply(b"EVALSHA"), pytest.raises(OutcomeUnknown):
        await theirs.push("charge", priority=0, dedupe_id="order 7")
    again = await theirs.push("charge", priority=0, dedupe_id="order 7")
    others = await ours.push("charge", priority=0, dedupe_id="order 7")
    await ours.push("charge", priority=0, dedupe_id="order 8")
    served = await at.served(ours)
    assert served == ["charge", "charge", "warm up"], f"two orders, charged {served.count('charge')} times"
    assert others == again
    assert await ours.push("charge", priority=0, dedupe_id="order 7") == again
    assert await at.served(ours) == [], "it was done, and is done again"


async def check_bad_input(at: Site) -> None:
    """10: refused before anything is written; and what can be sent arrives as it was."""
    queue = at.queue(max_bytes=1000)
    bad: list[tuple[Any, dict[str, Any]]] = [
        *[("x", {"priority": each}) for each in BAD_PRIORITIES],
        *[("x", {"priority": 1, "delay": each}) for each in BAD_DELAYS],
        *[("x", {"priority": 1, "dedupe_id": each}) for each in ("", 7, "\ud800")],
        *[(each, {"priority": 1}) for each in BAD_PAYLOADS],
    ]
    for payload, options in bad:
        told = await outcome(queue.push(payload, **options))
        assert isinstance(told, NotSendable), f"accepted: {str(payload)[:20]!r} {str(options)[:60]}"
        assert "xxxx" not in str(told), "the payload is shown"
    keys = [key for role in ("ready", "delayed", "jobs", "payloads", "last") for key in [at.key(role)]]
    assert [await at.clients[0].exists(key) for key in keys] == [0] * 5, "something was written"
    for payload in ODD_PAYLOADS:
        await queue.push(payload, priority=0)
    assert await at.served(queue) == ODD_PAYLOADS
    raw = at.queue(codec=RAW, max_bytes=5_000_000)
    for data in (b"", b"\0\xff", b"\xff" * 5_000_000):
        await raw.push(data, priority=0)
    assert await at.served(raw) == [b"", b"\0\xff", b"\xff" * 5_000_000]


async def check_unreadable(at: Site) -> None:
    """10: what a consumer cannot read is dead, and the others go on."""
    raw, queue = at.queue(codec=RAW), at.queue()
    await raw.push(b"\xff{", priority=0)
    await queue.push("good", priority=9)
    assert await at.served(queue, 3) == ["good"]
    (dead,) = await queue.dead()
    assert (dead.payload, dead.why) == (b"\xff{", "the codec raised UnicodeDecodeError")
