"""What holds of write-behind, tried on the real thing and on naive variants."""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING, Any

from patterns.cache.write_behind import DELETED, MISS, OtherShards, ShardTaken, WriteBehind, WriteRejected
from patterns.events import Recorder
from tests.cache.write_behind_site import ROLES, n, outcome_of
from tests.eventually import eventually

if TYPE_CHECKING:
    from tests.cache.write_behind_site import Site


async def check_the_writer_is_not_needed(at: Site) -> None:
    """A writer puts twenty things and is gone; a flusher takes some and is gone; another one comes."""
    keys = [f"key {number}" for number in range(20)]
    writer = at.writer()
    for number, key in enumerate(keys):
        await writer.put(key, n(number))
        assert await WriteBehind.peek(at.writer(1), key) == n(number), "acknowledged, and not in Redis"
    del writer

    stuck = at.source.behind_a_gate()
    dying = at.begin(at.flusher(source=stuck).flush())
    await eventually(lambda: stuck.running, within=5)
    dying.cancel()  # as if killed: what it took is not in the source
    await asyncio.wait([dying])
    await at.let_leases_end()

    await at.flusher(1).flush()
    got = [await at.source.value(key) for key in keys]
    assert got == list(range(20)), f"{got.count(None)} acknowledged writes are lost"


async def check_never_back(at: Site, late: str) -> None:
    """A flusher is held up with an old value in its hands; meanwhile a newer one comes."""
    writer, stuck = at.writer(), at.source.behind_a_gate()
    await writer.put("a", n(1))
    paused = at.begin(at.flusher(source=stuck).flush())
    await eventually(lambda: stuck.running, within=5)
    await (writer.delete("a") if late == "deletion" else writer.put("a", n(2)))
    expected = None if late == "deletion" else 2
    if late == "retry":  # the old one fails, after the new one has come
        stuck.error = lambda _: ConnectionError()
        stuck.open.set()
        await paused
        await at.flusher().flush()
        await at.flusher().flush()
    else:
        await at.let_leases_end()
        await at.flusher(1).flush()
        assert await at.source.value("a") == expected
        stuck.open.set()
        await paused
    got = await at.source.value("a")
    assert got == expected, f"the source is back at {got}"
    await at.flusher(1).flush()
    assert await at.source.value("a") == expected
    assert (await writer.stats()).waiting == 0
    await writer.put("a", n(3))
    await at.flusher(1).flush()
    assert await at.source.value("a") == 3


async def check_a_forgetful_redis(at: Site) -> None:
    """The queues are empty all of a sudden, and writing goes on."""
    writer = at.writer()
    for number in range(3):
        await writer.put("a", n(number))
        await at.flusher().flush()
    for shard_number in range(4):
        await at.clients[0].delete(*[at.key(role, shard_number) for role in ROLES])
    await writer.put("a", n(3))
    await at.flusher().flush()
    assert await at.source.value("a") == 3, "a write after the loss is taken for an old one"


async def check_one_of_many(at: Site) -> None:
    """A thousand writes to a few keys, and 250 to others, are flushed."""
    writer = at.writer(shards=1)
    for number in range(300):
        await writer.put(f"hot {number % 3}", n(number))
    for number in range(250):
        await writer.put(f"cold {number}", n(number))
    await at.flusher(shards=1).flush()
    stored = [change.key for change in at.source.stored]
    assert len(stored) == len(set(stored)) == 253, f"{len(stored)} rows written for 253 keys"
    assert [await at.source.value(f"hot {number}") for number in range(3)] == [297, 298, 299]
    sizes = [len(call) for call in at.source.calls]
    assert max(sizes) <= 100, f"a batch of {max(sizes)}"
    assert len(sizes) == 3


async def check_all_in_order(at: Site) -> None:
    """The same, where each write counts."""
    writer = at.writer(coalesce=False)
    for number in range(30):
        await writer.put(f"key {number % 3}", n(number))
    fails = iter([True, False] * 100)
    at.source.error = lambda _: ConnectionError() if next(fails) else None
    for _ in range(40):
        await at.flusher(coalesce=False).flush()
    for which in range(3):
        got = [change.value["n"] for change in at.source.stored if change.key == f"key {which}"]
        assert got == list(range(which, 30, 3)), f"of ten writes in order came {got}"
    assert all(len({change.key for change in call}) == len(call) for call in at.source.calls)


async def check_the_delay(at: Site) -> None:
    """Changes wait for later ones of their key, but not for ever, and not in a shard that is half full."""
    options: dict[str, Any] = {"shards": 1, "delay": 3600, "capacity": 20}
    writer, flusher = at.writer(**options), at.flusher(**options)
    (lane,) = flusher._lanes
    for number in range(9):
        await writer.put(f"key {number}", n(number))
        await flusher._pass(lane, hurry=False)
    assert at.source.stored == [], "written before its delay was over"
    await at.age(1800)
    await writer.put("key 0", n(100))  # takes the place of the older one, and its age
    await at.age(1801)
    await flusher._pass(lane, hurry=False)
    assert len(at.source.stored) == 9, "a key that is written all the time is never flushed"
    for number in range(10):
        await writer.put(f"key {number}", n(number))
    await flusher._pass(lane, hurry=False)
    assert len(at.source.stored) == 19, "half full, and it waits"


async def check_reads_see_writes(at: Site) -> None:
    """One process writes, another reads, before, during and after the flush, and where the source refuses."""
    writer, reader = at.writer(), at.writer(1)

    async def read(key: str = "a") -> Any:
        return await reader.get(key, at.source.load, key)

    await writer.put("a", n(1))
    assert await read() == n(1), "the reader sees what was before"
    stuck = at.source.behind_a_gate()
    flushing = at.begin(at.flusher(source=stuck).flush())
    await eventually(lambda: stuck.running, within=5)
    assert await read() == n(1), "the reader sees what was before: the change is neither here nor there"
    await writer.put("a", n(2))
    stuck.open.set()
    await flushing
    assert await read() == n(2)
    await at.flusher().flush()
    loads = at.source.loads
    assert await read() == n(2)
    assert at.source.loads == loads + 1, "a change that is in the source stays in the queue"

    await writer.delete("a")
    assert await reader.peek("a") is DELETED
    assert await read() is None, "the reader sees what was deleted"
    await at.flusher().flush()
    assert await reader.peek("a") is MISS
    assert await read() is None
    await writer.put("none", None)
    assert await reader.peek("none") is None

    at.source.error = lambda _: ValueError("no")
    await writer.put("a", n(3))
    for _ in range(6):
        await at.flusher().flush()
    assert {change.key for change in await writer.parked()} == {"a", "none"}
    assert await read() == n(3), "the reader sees what was before: the change is parked"


async def check_bounded(at: Site) -> None:
    """Twelve keys are written where ten changes have room; then a writer waits for room."""
    heard = Recorder()
    options: dict[str, Any] = {"shards": 1, "capacity": 10}
    writer = at.writer(on_event=heard, **options)
    outcomes = [await outcome_of(writer.put(f"key {number}", n(number))) for number in range(12)]
    waiting = (await writer.stats()).waiting
    assert waiting == 10, f"{waiting} changes wait where 10 may"
    assert outcomes[10:] == ["QueueFull", "QueueFull"], (
        "a change was dropped, and its writer told that all is well"
    )
    assert [event.key for event in heard.of(WriteRejected)] == ["key 10", "key 11"]
    await writer.put("key 3", n(33))  # needs no room

    patient = at.writer(1, max_wait=30, **options)
    waits = at.begin(patient.put("key 10", n(10)))
    await asyncio.wait([waits], timeout=0.05)
    assert not waits.done()
    flusher = at.flusher(**options)
    await flusher.flush()
    await waits
    await flusher.flush()
    got = [await at.source.value(f"key {number}") for number in range(12)]
    assert got == [0, 1, 2, 33, 4, 5, 6, 7, 8, 9, 10, None]


async def check_poison(at: Site) -> None:
    """One of twenty changes is refused; then the source is away for a hundred tries."""
    writer, flusher = at.writer(shards=1), at.flusher(shards=1)
    at.source.error = lambda batch: ValueError() if any(each.key == "bad" for each in batch) else None
    for number in range(20):
        await writer.put("bad" if number == 7 else f"key {number}", n(number))
    for _ in range(5):
        await flusher.flush()
    stored = {change.key for change in at.source.stored}
    assert len(stored) == 19, f"{19 - len(stored)} good changes held up by a bad one"
    parked = await writer.parked()
    assert [each.key for each in parked] == ["bad"], "nobody sees what is refused for ever"
    assert (parked[0].value, parked[0].attempts, parked[0].why) == (n(7), 5, "ValueError")
    tried = at.source.tried
    await flusher.flush()
    assert at.source.tried == tried, "a parked change is tried again"

    at.source.error = lambda _: ConnectionError("away")
    for number in range(20):
        await writer.put(f"later {number}", n(number))
    for _ in range(100):
        await flusher.flush()
    assert len(await writer.parked()) == 1, "an outage was taken for bad changes"
    at.source.error = lambda _: None
    await flusher.flush()
    await flusher.flush()
    assert [await at.source.value(f"later {number}") for number in range(20)] == list(range(20))
    assert await writer.redrive(*parked) == 1
    await flusher.flush()
    assert await at.source.value("bad") == 7
    assert await writer.stats() == await at.writer(1, shards=1).stats()
    assert (await writer.stats()).parked == 0


async def check_close(at: Site) -> None:
    """Thirty changes wait for their delay when the flusher closes; then the source is stuck."""
    writer = at.writer(delay=3600)
    for number in range(30):
        await writer.put(f"key {number}", n(number))
    async with at.flusher(delay=3600) as flusher:
        pass
    assert flusher.left == ()
    rows = len(await at.source.rows())
    assert rows == 30, f"{30 - rows} changes were left, and nobody told"

    await writer.put("a", n(1))
    stuck = at.source.behind_a_gate()
    async with at.flusher(source=stuck, drain=0.1) as flusher:
        await eventually(lambda: stuck.running, within=5)
    assert flusher.left == ("a",), "it does not say what is left"
    async with at.flusher(1) as flusher:
        pass
    assert (flusher.left, await at.source.value("a")) == ((), 1)


async def check_takeover(at: Site) -> None:
    """Two flushers meet; one dies with the shards in its hands."""
    heard = Recorder()
    writer = at.writer()
    for number in range(40):
        await writer.put(f"key {number}", n(number))
    stuck = at.source.behind_a_gate()
    first = at.flusher(source=stuck, lease=30)
    dying = [at.begin(first._pass(lane, hurry=False)) for lane in first._lanes]
    await eventually(lambda: stuck.running == 4, within=5)
    second = at.flusher(1, on_event=heard)
    assert await second.flush() == 0, "two flushers store the same changes"
    assert heard.of(ShardTaken) == []
    lives = [await at.clients[0].pttl(at.key("lease", number)) for number in range(4)]
    assert all(0 < life <= 30_000 for life in lives), "nobody will ever follow the first"
    for task in dying:
        task.cancel()
    await asyncio.wait(dying)
    await at.let_leases_end()
    assert await second.flush() == 40
    assert len(heard.of(ShardTaken)) == 4
    third = at.flusher()
    async with third:
        await writer.put("a", n(1))
        await eventually(lambda: len(at.source.stored) == 41, within=10, what="a lease was given back")


class OneWay:
    """A codec that cannot read what it wrote."""

    def encode(self, value: object) -> bytes:
        """Write anything."""
        return pickle.dumps(value) if isinstance(value, dict) else b"?"

    def decode(self, data: bytes) -> Any:
        """Read nothing."""
        raise ValueError(data)


BAD = [object(), {1, 2}, b"bytes", float("nan"), float("inf"), {"n": "\ud800"}, "x" * 2000, [10**5000]]


BAD_KEYS = ["", "\ud800", "k" * 2000, None, 7]


ODD_KEYS = [
    "{}",
    "a:b",
    "%",
    "\n",
    "é",
    "\U0001f600",
    " ",
    "a" * 1000,
    "{write_behind:items/0}:queue",
    "0:",
    "\0",
]


async def check_bad_input(at: Site) -> None:
    """Values and keys of every unfit kind are put."""
    writer = at.writer(max_bytes=1000)
    for value in BAD:
        got = await outcome_of(writer.put("a", value))
        assert got == "NotStorable", f"{type(value).__name__} was accepted: {got!r}"
    for key in BAD_KEYS:
        got = await outcome_of(writer.put(key, n(1)))
        assert got in {"NotStorable", "ValueError"}, f"key {key!r:.20} was accepted: {got!r}"
    assert await outcome_of(at.writer(codec=OneWay()).put("a", n(1))) == "NotStorable"
    left = [at.key(role, number) for role in ROLES for number in range(4)]
    assert sum([await at.clients[0].exists(key) for key in left]) == 0, "something was written"


async def check_one_number(at: Site) -> None:
    """Four shards are in use; a reader, a writer and a flusher come that count otherwise."""
    writer = at.writer(shards=4)
    for number in range(20):
        await writer.put(f"key {number}", n(number))
    reader = at.writer(1, shards=7)
    for number in range(20):
        got = await outcome_of(reader.peek(f"key {number}"))
        assert got in ("OtherShards", n(number)), "the reader looks into another shard"
    try:
        async with at.flusher(1, shards=2) as flusher:
            pass
    except OtherShards:
        pass
    else:
        waiting = (await writer.stats()).waiting
        assert len(flusher.left) == waiting, f"{waiting} changes wait, and the flusher says {flusher.left}"
    assert await outcome_of(at.writer(1, shards=7).put("key 1", n(0))) == "OtherShards"
    for ask in (at.writer(shards=7).stats(), at.writer(shards=7).parked(), at.flusher(shards=7).flush()):
        assert await outcome_of(ask) == "OtherShards"
    await at.flusher(1, shards=4).flush()
    assert len(await at.source.rows()) == 20
    await at.clients[0].delete(at.key("shards"))
    await at.writer(shards=7).put("key 1", n(21))
