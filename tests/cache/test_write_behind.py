"""The proof of patterns/cache/write_behind: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections import deque
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import pytest
from hypothesis import settings
from redis.crc import key_slot
from redis.exceptions import NoPermissionError, OutOfMemoryError

from patterns import database as databases
from patterns.cache.write_behind import (
    MISS,
    BatchFlushed,
    Change,
    ChangeFailed,
    ChangeParked,
    ChangeQueued,
    ChangeRefused,
    Drained,
    Flusher,
    NotReplicated,
    OtherShards,
    Policy,
    QueueFull,
    RedisLost,
    RedisRegained,
    ShardTaken,
    SourceFailed,
    Unreadable,
    VersionedTable,
    WriteBehind,
    shard,
    table,
)
from patterns.cache.write_behind.shards import Shards
from patterns.clock import ManualClock
from patterns.embedded import Cluster, Server
from patterns.events import Recorder
from patterns.keyspace import OutcomeUnknown, connect, opened
from tests.cache import write_behind_faults as faults
from tests.cache import write_behind_site as naive
from tests.cache.write_behind_checks import (
    ODD_KEYS,
    check_a_forgetful_redis,
    check_all_in_order,
    check_bad_input,
    check_bounded,
    check_close,
    check_never_back,
    check_one_number,
    check_one_of_many,
    check_poison,
    check_reads_see_writes,
    check_takeover,
    check_the_delay,
    check_the_writer_is_not_needed,
)
from tests.cache.write_behind_model import AgainstTheModel
from tests.cache.write_behind_processes import POLICY
from tests.cache.write_behind_site import Kit, n, policy, site
from tests.eventually import eventually
from tests.faults import leaks, proxy
from tests.places import Place
from tests.postgres import Home

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults import Ledger
    from tests.faults.workers import Worker

# Everything is proved on both kinds of Redis and both engines; that a naive variant fails, on one of each.
EVERYWHERE = pytest.mark.parametrize(
    ("kind", "database"),
    [("single", "sqlite"), ("cluster", "sqlite"), ("single", "postgres")],
    indirect=["database"],
)
HERE = pytest.mark.parametrize(("kind", "database"), [("single", "sqlite")], indirect=["database"])


def variants(*cases: tuple[Kit, str]) -> pytest.MarkDecorator:
    """Return naive variants, and what the check says of each."""
    ids = [
        next(
            part.__name__
            for part in (kit.writer, kit.flusher, kit.table)
            if part.__module__ == naive.__name__
        )
        for kit, _ in cases
    ]
    return pytest.mark.parametrize(("kit", "complaint"), cases, ids=ids)


# 1: what is acknowledged reaches the source


@pytest.mark.invariant(1)
@EVERYWHERE
async def test_an_acknowledged_write_needs_nobody_but_redis(place: Place, database: Home) -> None:
    """Neither its writer nor the flusher that took it: the next flusher brings it to the source."""
    async with site(place, database) as at:
        await check_the_writer_is_not_needed(at)


@pytest.mark.naive(1)
@HERE
@variants(
    (Kit(writer=naive.InTheProcess), "not in Redis"),
    (Kit(writer=naive.AnswersFirst), "not in Redis"),
    (Kit(flusher=naive.PopsFirst), "acknowledged writes are lost"),
)
async def test_a_buffer_that_one_process_has_dies_with_it(
    place: Place, database: Home, kit: Kit, complaint: str
) -> None:
    """In the writer before it is queued, in the flusher where it was popped."""
    async with site(place, database, kit) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_the_writer_is_not_needed(at)
        await naive.AnswersFirst.let_write()


# 2: the source never goes back


LATE = pytest.mark.parametrize("late", ["batch", "deletion", "retry"])


@pytest.mark.invariant(2)
@EVERYWHERE
@LATE
async def test_an_older_value_never_comes_after_a_newer_one(place: Place, database: Home, late: str) -> None:
    """Not in a late batch, not after a deletion, not when it is tried again."""
    async with site(place, database) as at:
        await check_never_back(at, late)


@pytest.mark.naive(2)
@HERE
@pytest.mark.parametrize(
    ("kit", "late"),
    [
        (Kit(table=naive.Unversioned), "batch"),
        (Kit(table=naive.DeletesTheRow), "deletion"),
        (Kit(flusher=naive.PutsBack), "retry"),
    ],
)
async def test_without_versions_the_last_to_arrive_wins(
    place: Place, database: Home, kit: Kit, late: str
) -> None:
    """An unversioned row is overwritten, a deleted one comes back, and what is put back at the end wins."""
    async with site(place, database, kit) as at:
        with pytest.raises(AssertionError, match="the source is back at 1"):
            await check_never_back(at, late)


@pytest.mark.invariant(2)
@EVERYWHERE
async def test_versions_rise_also_where_redis_has_forgotten_the_last(place: Place, database: Home) -> None:
    """They begin at the server's time, and so above what the source has."""
    async with site(place, database) as at:
        await check_a_forgetful_redis(at)


@pytest.mark.naive(2)
@HERE
async def test_versions_that_begin_at_one_are_refused_by_the_source(
    place: Place, database: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write after a restart without a file is older than what the source has."""
    monkeypatch.setattr(shard, "PUT", naive.counted_from_one())
    async with site(place, database) as at:
        with pytest.raises(AssertionError, match="taken for an old one"):
            await check_a_forgetful_redis(at)


@pytest.mark.invariant(2)
@EVERYWHERE
async def test_what_may_be_older_than_the_source_is_parked_and_not_stored(
    place: Place, database: Home
) -> None:
    """After a failover the source may know a version that Redis does not: people decide, writing goes on."""
    heard = Recorder()
    async with site(place, database) as at:
        writer = at.writer()
        ahead = await writer.put("a", n(1)) + 3_600_000_000
        await at.flusher().flush()
        await at.source.table._database.execute("UPDATE item SET version = $1, n = 7", ahead)
        await writer.put("a", n(2))
        await at.flusher(on_event=heard).flush()
        assert await at.source.value("a") == 7
        assert await writer.get("a", at.source.load, "a") == n(7), "readers see what the source has"
        (parked,) = await writer.parked()
        assert (parked.key, parked.value, parked.why) == ("a", n(2), f"the source has version {ahead}")
        assert [(event.newer, event.parked) for event in heard.of(ChangeRefused)] == [(ahead, True)]
        assert await writer.put("a", n(3)) > ahead, "the next one is newer than all"
        await at.flusher().flush()
        assert await at.source.value("a") == 3
        assert await writer.redrive(parked) == 1
        await at.flusher().flush()
        assert await at.source.value("a") == 3, "who redrives it learns that it is too late"
        assert (await writer.stats(), await writer.parked()) == (await writer.stats(), [])


# 3: coalescing, order, batches


@pytest.mark.invariant(3)
@EVERYWHERE
async def test_of_many_writes_of_a_key_the_last_is_stored(place: Place, database: Home) -> None:
    """550 writes of 253 keys are 253 rows in three calls of the store."""
    async with site(place, database) as at:
        await check_one_of_many(at)


@pytest.mark.invariant(3)
@EVERYWHERE
async def test_without_coalescing_all_are_stored_in_order(place: Place, database: Home) -> None:
    """Each once, also while the source fails every other time; no call has a key twice."""
    async with site(place, database) as at:
        await check_all_in_order(at)


@pytest.mark.naive(3)
@HERE
async def test_a_plain_list_writes_each_row_a_hundred_times(place: Place, database: Home) -> None:
    """Without coalescing 550 writes are 550 rows; with it, a history is lost; without a bound, one batch."""

    def listed(*args: Any, **options: Any) -> Any:
        name, client, given, *rest = args
        changed = {**{field: getattr(given, field) for field in Policy.__slots__}, "coalesce": False}
        kind: Any = Flusher if rest else WriteBehind
        return kind(name, client, Policy(**changed), *rest, **options)

    async with site(place, database, Kit(writer=listed, flusher=listed)) as at:
        with pytest.raises(AssertionError, match="550 rows written for 253 keys"):
            await check_one_of_many(at)

    def coalescing(*args: Any, **options: Any) -> Any:
        name, client, given, *rest = args
        changed = {**{field: getattr(given, field) for field in Policy.__slots__}, "coalesce": True}
        return WriteBehind(name, client, Policy(**changed), *rest, **options)

    async with site(place, database, Kit(writer=coalescing), app=f"{place.app}-2") as at:
        with pytest.raises(AssertionError, match="of ten writes in order came"):
            await check_all_in_order(at)
    async with site(place, database, Kit(flusher=naive.AllAtOnce), app=f"{place.app}-3") as at:
        with pytest.raises(AssertionError, match="a batch of 253"):
            await check_one_of_many(at)


@pytest.mark.invariant(3)
@EVERYWHERE
async def test_a_change_waits_for_its_delay_and_no_longer(place: Place, database: Home) -> None:
    """Later writes of a key do not put it off, and a queue that fills is not waited for."""
    async with site(place, database) as at:
        await check_the_delay(at)


@pytest.mark.naive(3)
@HERE
async def test_a_flusher_that_takes_what_is_there_coalesces_nothing(
    place: Place, database: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a delay each write is a row of its own as long as the flusher keeps up."""
    monkeypatch.setattr(shard, "TAKE", naive.without_delay())
    async with site(place, database) as at:
        with pytest.raises(AssertionError, match="before its delay"):
            await check_the_delay(at)


# 4: read your writes


@pytest.mark.invariant(4)
@EVERYWHERE
async def test_readers_see_every_acknowledged_write(place: Place, database: Home) -> None:
    """In another process too: queued, in a flusher's hands, stored, deleted or parked."""
    async with site(place, database) as at:
        await check_reads_see_writes(at)


@pytest.mark.invariant(4)
@EVERYWHERE
async def test_readers_see_the_last_of_several_writes_that_wait(place: Place, database: Home) -> None:
    """Without coalescing the first of two is stored, and readers still see the second."""
    async with site(place, database) as at:
        writer, flusher = (make(shards=1, coalesce=False) for make in (at.writer, at.flusher))
        for number in range(3):
            await writer.put("a", n(number))
        for stored in range(3):
            await flusher._pass(flusher._lanes[0], hurry=True)
            assert await at.source.value("a") == stored
            assert await at.writer(1, shards=1).get("a", at.source.load, "a") == n(2)


@pytest.mark.naive(4)
@HERE
@variants(
    (Kit(writer=naive.ReadsTheSource), "the reader sees what was before"),
    (Kit(flusher=naive.PopsFirst), "neither here nor there"),
)
async def test_readers_of_the_source_alone_see_the_past(
    place: Place, database: Home, kit: Kit, complaint: str
) -> None:
    """Who asks only the database misses what is queued; who pops before storing hides it for a while."""
    async with site(place, database, kit) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_reads_see_writes(at)


@pytest.mark.invariant(4)
@EVERYWHERE
async def test_who_counts_the_shards_otherwise_is_told(place: Place, database: Home) -> None:
    """A reader would look into the wrong queue, a flusher leave half of them behind: both get OtherShards."""
    async with site(place, database) as at:
        await check_one_number(at)


@pytest.mark.naive(4)
@HERE
@pytest.mark.parametrize("who", ["the reader looks into another shard", "and the flusher says"])
async def test_a_number_that_nobody_compares_hides_what_waits(
    place: Place, database: Home, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Readers miss it, and a flusher says that nothing is left."""

    async def trust(self: Shards, *, claim: bool) -> None: ...

    asked = Shards.agree

    async def readers_only(self: Shards, *, claim: bool) -> None:
        if not claim:
            await asked(self, claim=claim)

    async with site(place, database) as at:
        await at.clients[0].set(at.key("shards"), 4)
        monkeypatch.setattr(Shards, "agree", trust if "reader" in who else readers_only)
        with pytest.raises(AssertionError, match=who):
            await check_one_number(at)


@pytest.mark.invariant(7)
@HERE
async def test_a_flusher_that_starts_while_redis_is_away_compares_the_number_later(
    place: Place, database: Home
) -> None:
    """It starts all the same; when Redis is there it is told, and stores nothing."""
    async with proxy(place.server.port) as line, site(place, database) as at:
        await at.writer(shards=4).put("a", n(1))
        at.clients = [at.clients[0], connect(line.url)]
        try:
            line.down()
            flusher = at.flusher(1, shards=7, drain=0.2)
            await flusher.__aenter__()
            line.up()
            await eventually(lambda: any(task.done() for task in flusher._tasks), within=5)
            with pytest.raises(OtherShards, match="'items' has 4 shards, the policy says 7: to change it"):
                await flusher.close()
            assert at.source.tried == 0
        finally:
            await at.clients[1].aclose()


# 5: the queue is bounded


@pytest.mark.invariant(5)
@EVERYWHERE
async def test_a_full_queue_refuses_or_lets_wait_and_drops_nothing(place: Place, database: Home) -> None:
    """The eleventh of ten is told so, a change of a queued key is not, and a patient writer gets its turn."""
    async with site(place, database) as at:
        await check_bounded(at)


@pytest.mark.naive(5)
@HERE
@variants(
    (Kit(writer=naive.Unbounded), "12 changes wait where 10 may"),
    (Kit(writer=naive.DropsTheOldest), "a change was dropped"),
)
async def test_a_queue_without_a_bound_grows_and_a_ring_forgets(
    place: Place, database: Home, kit: Kit, complaint: str
) -> None:
    """One ends with the memory of Redis, the other loses what it acknowledged."""
    async with site(place, database, kit) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_bounded(at)


@pytest.mark.invariant(5)
@EVERYWHERE
async def test_the_patience_of_a_writer_ends(place: Place, database: Home) -> None:
    """After `max_wait` it gets QueueFull, and its change is not written; parked changes take room too."""
    options: dict[str, Any] = {"shards": 1, "capacity": 1, "max_wait": 0.03, "max_attempts": 1}
    async with site(place, database) as at:
        writer = at.writer(**options)
        await writer.put("a", n(1))
        at.source.error = lambda _: ValueError()
        await at.flusher(**options).flush()
        assert (await writer.stats()).parked == 1
        with pytest.raises(QueueFull) as full:
            await writer.put("b", n(2))
        assert full.value.waited >= 0.03
        assert (full.value.key, full.value.capacity) == ("b", 1)
        assert await writer.peek("b") is MISS


@pytest.mark.invariant(5)
@EVERYWHERE
async def test_lag_is_the_age_of_the_oldest_change_that_waits(place: Place, database: Home) -> None:
    """From its write until the source has it; a later write of the key does not make it younger."""
    heard = Recorder()
    async with site(place, database) as at:
        writer = at.writer(shards=1)
        assert (await writer.stats()).lag_seconds == 0
        await writer.put("a", n(1))
        await at.age(100)
        await writer.put("b", n(1))
        await writer.put("a", n(2))
        assert 100 <= (await writer.stats()).lag_seconds < 130
        stuck = at.source.behind_a_gate()
        flusher = at.flusher(shards=1, source=stuck, on_event=heard)
        flushing = at.begin(flusher.flush())
        await eventually(lambda: stuck.running, within=5)
        assert (await writer.stats()).lag_seconds >= 100, "in a flusher's hands is not in the source"
        third = await writer.put("a", n(3))
        await writer.put("a", n(4))
        stuck.error = lambda batch: ConnectionError() if batch[0].value == n(4) else None
        stuck.open.set()
        await flushing
        lag = (await writer.stats()).lag_seconds
        assert 0 < lag < 30, "what was written while the older one was stored is as old as that"
        since: Any = await at.clients[0].zrange(at.key("queue"), 0, 0, withscores=True)
        assert since[0][1] <= third, "the last write of a key hides how long the one before has waited"
        assert heard.of(BatchFlushed)[0].lag_seconds >= 100
        stuck.error = lambda _: None
        await flusher.flush()
        assert (await writer.stats()).lag_seconds == 0


# 6: what the source refuses


@pytest.mark.invariant(6)
@EVERYWHERE
async def test_a_refused_change_is_parked_and_an_outage_parks_nothing(place: Place, database: Home) -> None:
    """The other 19 are stored, the bad one is seen and redriven, a hundred failed tries cost nothing."""
    async with site(place, database) as at:
        await check_poison(at)


@pytest.mark.naive(6)
@HERE
@variants(
    (Kit(flusher=naive.WholeBatches), "19 good changes held up"),
    (Kit(flusher=naive.TriesForEver), "nobody sees"),
    (Kit(flusher=naive.OutagesCount), "an outage was taken for bad changes"),
)
async def test_one_bad_change_stops_all_or_one_outage_parks_all(
    place: Place, database: Home, kit: Kit, complaint: str
) -> None:
    """Where a batch fails as a whole, where it is tried for ever, and where every error counts."""
    async with site(place, database, kit) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_poison(at)


@pytest.mark.invariant(6)
@EVERYWHERE
async def test_a_constraint_of_the_source_parks_the_one_that_breaks_it(place: Place, database: Home) -> None:
    """A batch is refused by the database itself; halves find the culprit, in a logarithm of calls."""
    heard = Recorder()
    async with site(place, database) as at:
        await at.source.table._database.execute("CREATE UNIQUE INDEX one_each ON item (n)")
        writer = at.writer(shards=1)
        for number in range(64):
            await writer.put(f"key {number}", n(min(number, 62)))
        flusher = at.flusher(shards=1, max_attempts=2, on_event=heard)
        await flusher.flush()
        assert at.source.tried <= 16
        await flusher.flush()
        (parked,) = await writer.parked()
        assert (parked.key, parked.why, len(await at.source.rows())) == ("key 63", "UniqueViolation", 63)
        assert [event.attempts for event in heard.of(ChangeFailed)] == [1]
        assert [event.attempts for event in heard.of(ChangeParked)] == [2]
        assert await writer.discard(parked) == 1
        assert await writer.discard(parked) == 0
        assert await writer.peek("key 63") is MISS


@pytest.mark.invariant(6)
@HERE
async def test_a_change_that_always_takes_too_long_holds_nobody_up(place: Place, database: Home) -> None:
    """It is not counted, since nobody knows whose fault it is, and the others are stored meanwhile."""
    async with site(place, database) as at:
        writer = at.writer(shards=1)
        for key in ("slow", "a", "b"):
            await writer.put(key, n(1))
        at.source.error = lambda batch: TimeoutError() if batch[0].key == "slow" else None
        async with at.flusher(shards=1, drain=0.01):
            await eventually(lambda: len(at.source.stored) == 2, within=10)
        assert [each.key for each in await writer.parked()] == []
        assert (await writer.stats()).waiting == 1


@pytest.mark.invariant(6)
@EVERYWHERE
async def test_a_flush_goes_past_what_is_refused(place: Place, database: Home) -> None:
    """Bad changes at the head of the queue, a batch of them and more: one flush stores the one behind."""
    async with site(place, database) as at:
        at.source.error = lambda batch: ValueError() if any(each.key != "good" for each in batch) else None
        writer, flusher = at.writer(shards=1), at.flusher(shards=1, batch=2)
        for number in range(5):
            await writer.put(f"bad {number}", n(number))
        await writer.put("good", n(1))
        assert await flusher.flush() == 1
        assert await at.source.value("good") == 1
        assert at.source.tried <= 10, "each is tried once"


@pytest.mark.invariant(6)
@EVERYWHERE
async def test_what_waits_for_its_next_try_holds_nobody_up(place: Place, database: Home) -> None:
    """Twenty changes that are not to be tried for an hour, ten batches of them, and a good one behind."""
    options: dict[str, Any] = {"shards": 1, "batch": 2, "retry_delay": 3600, "max_retry_delay": 3600}
    async with site(place, database) as at:
        at.source.error = lambda batch: ValueError() if any(each.key != "good" for each in batch) else None
        writer = at.writer(shards=1)
        for number in range(20):
            await writer.put(f"bad {number}", n(number))
        async with at.flusher(**options, drain=0.001):
            await eventually(lambda: at.source.tried >= 20, within=10)
            await writer.put("good", n(1))
            await eventually(lambda: at.source.stored, within=10)
        assert (await writer.stats()).waiting == 20


@pytest.mark.invariant(6)
@EVERYWHERE
async def test_what_was_refused_is_tried_again_alone(place: Place, database: Home) -> None:
    """So the good ones that have come since are stored in one call, and need not be taken apart."""
    async with site(place, database) as at:
        at.source.error = lambda batch: ValueError() if any(each.key == "bad" for each in batch) else None
        writer, flusher = at.writer(shards=1), at.flusher(shards=1)
        for key in ("bad", "a", "b", "c"):
            await writer.put(key, n(1))
        await flusher.flush()
        tried = at.source.tried
        for key in ("d", "e", "f", "g"):
            await writer.put(key, n(1))
        assert await flusher.flush() == 4
        assert at.source.tried == tried + 2
        assert [change.key for change in at.source.calls[-1]] == ["d", "e", "f", "g"]


@pytest.mark.invariant(3)
@EVERYWHERE
async def test_a_batch_has_no_more_bytes_than_redis_can_read_at_once(
    place: Place, database: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops when it has read enough; the next batch goes on, also where one change is larger."""
    monkeypatch.setattr(shard, "_MOST_BYTES", 50)
    async with site(place, database) as at:
        writer = at.writer(shards=1)
        for number in range(6):
            await writer.put(f"key {number} {'x' * 80 * (number == 3)}", n(number))
        await at.flusher(shards=1).flush()
        assert [len(call) for call in at.source.calls] == [3, 1, 2]


# 7: closing


@pytest.mark.invariant(7)
@EVERYWHERE
async def test_closing_stores_what_it_can_and_says_what_is_left(place: Place, database: Home) -> None:
    """Due or not, within `drain` seconds; what a stuck source did not take is the next flusher's."""
    async with site(place, database) as at:
        await check_close(at)


@pytest.mark.naive(7)
@HERE
async def test_a_flusher_that_just_stops_leaves_changes_behind(place: Place, database: Home) -> None:
    """Nothing is lost in Redis, but nobody knows, and nobody comes."""
    async with site(place, database, Kit(flusher=naive.JustStops)) as at:
        with pytest.raises(AssertionError, match="30 changes were left"):
            await check_close(at)


@pytest.mark.invariant(7)
@EVERYWHERE
async def test_closing_does_not_wait_for_writers_to_stop(place: Place, database: Home) -> None:
    """What was there when it began is stored; what is written meanwhile is the next flusher's."""
    async with site(place, database) as at:
        writer = at.writer(shards=1, delay=3600)
        await writer.put("key 0", n(0))
        calls = itertools.count(1)

        async def store(batch: Any) -> Any:
            await writer.put(f"key {next(calls)}", n(1))
            return await at.source.store(batch)

        flusher = at.flusher(shards=1, delay=3600, drain=2)
        flusher._store = store
        async with flusher:
            pass
        assert len(at.source.calls) == 1
        assert flusher.left == ("key 1",)


@pytest.mark.invariant(7)
@HERE
async def test_a_defect_while_closing_leaves_no_task_behind(
    place: Place, database: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised when all shards have been dealt with."""
    async with site(place, database) as at:
        writer, flusher = at.writer(), at.flusher(drain=5)
        for number in range(20):
            await writer.put(f"key {number}", n(number))
        flush, failed = flusher._flush, asyncio.Event()

        async def broken(lane: Any, taken: Any) -> None:
            if lane is flusher._lanes[0]:
                failed.set()
                raise KeyError("a defect")
            await failed.wait()
            await flush(lane, taken)

        monkeypatch.setattr(flusher, "_flush", broken)
        with pytest.raises(KeyError):
            await flusher.close()
        stored = len(at.source.stored)
        assert 0 < stored == 20 - (await writer.stats()).waiting


# 8: one flusher at a time, and the next


@pytest.mark.invariant(8)
@EVERYWHERE
async def test_a_shard_is_one_flushers_until_it_falls_silent(place: Place, database: Home) -> None:
    """The second waits; when the lease ends it stores all; when it closes, the third need not wait."""
    async with site(place, database) as at:
        await check_takeover(at)


@pytest.mark.naive(8)
@HERE
@variants(
    (Kit(flusher=naive.NoLease), "store the same changes"),
    (Kit(flusher=naive.LeaseForEver), "nobody will ever follow"),
)
async def test_without_a_lease_all_flush_and_with_one_for_ever_nobody_does(
    place: Place, database: Home, kit: Kit, complaint: str
) -> None:
    """Double work in the one case, an orphaned shard in the other."""
    async with site(place, database, kit) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_takeover(at)


# 9: what cannot be queued


@pytest.mark.invariant(9)
@EVERYWHERE
async def test_what_cannot_be_queued_is_refused_before_anything_is_written(
    place: Place, database: Home
) -> None:
    """Eight values and five keys: typed errors, no key in Redis; and any text may be a key."""
    async with site(place, database) as at:
        await check_bad_input(at)
        writer = at.writer()
        for number, key in enumerate(ODD_KEYS):
            await writer.put(key, n(number))
            assert await at.writer(1).peek(key) == n(number)
        await at.flusher(max_attempts=1).flush()
        rows = await at.source.rows()
        assert [rows.get(key, (0, None))[1] for key in ODD_KEYS] == [*range(10), None]
        (parked,) = await writer.parked()
        assert parked.key == "\0", "a text that no database takes is Redis' to keep, and not to lose"


@pytest.mark.naive(9)
@HERE
async def test_text_of_anything_is_accepted_and_lost(place: Place, database: Home) -> None:
    """What repr makes of a value is no value any more."""
    async with site(place, database, Kit(writer=naive.WritesThenLooks)) as at:
        with pytest.raises(AssertionError, match="object was accepted"):
            await check_bad_input(at)


# What else a user meets


@EVERYWHERE
async def test_all_keys_of_a_shard_are_in_one_slot_and_shards_are_spread(
    place: Place, database: Home
) -> None:
    """What changes together lies together; what need not, does not."""
    async with site(place, database) as at:
        shards = at.writer()._shards
        slots = [{key_slot(key.encode()) for key in each.keys} for each in shards]
        assert [len(each) for each in slots] == [1] * 4
        assert len(set.union(*slots)) == 4
        writer = at.writer()
        for number in range(100):
            await writer.put(f"key {number}", n(number))
        stats = [await each.stats() for each in shards]
        assert all(10 < each.waiting < 45 for each in stats)
        await at.flusher().flush()
        left = await leaks.immortal_keys(at.clients[0], at.app, declared={"version", "shards"})
        assert left == [], "an empty queue leaves nothing but its last version"


@EVERYWHERE
async def test_too_few_replicas_is_an_answer_of_its_own(place: Place, database: Home) -> None:
    """A lone server has none; in the cluster one replica has the change before it is acknowledged."""
    async with site(place, database) as at:
        writer = at.writer(wait_replicas=1, wait_seconds=5 if place.kind == "cluster" else 0.01)
        if place.kind == "cluster":
            await writer.put("a", n(1))
        else:
            with pytest.raises(NotReplicated, match="0 replicas have the change of 'a', 1 were asked") as few:
                await writer.put("a", n(1))
            assert few.value.version > 1_000_000_000_000_000
            assert pickle.loads(pickle.dumps(few.value)).key == "a"
        await at.flusher().flush()
        assert await at.source.value("a") == 1, "it is queued all the same"
        full = at.writer(wait_replicas=2, wait_seconds=0.01, capacity=1, shards=1, name="full")
        with pytest.raises(NotReplicated):
            await full.put("a", n(1))
        with pytest.raises(QueueFull):
            await full.put("b", n(1))


@HERE
async def test_a_question_about_replicas_that_fails_is_no_failed_write(place: Place, database: Home) -> None:
    """Where WAIT is forbidden the change is queued all the same, and its writer is told, with the cause."""
    with Server() as own:
        own.command("ACL", "SETUSER", "default", "-wait")
        async with site(Place("single", own, None, place.app), database) as at:
            with pytest.raises(NotReplicated) as told:
                await at.writer(wait_replicas=1).put("a", n(1))
            assert isinstance(told.value.__cause__, NoPermissionError)
            assert await at.writer().peek("a") == n(1)


@pytest.mark.parametrize(("kind", "database"), [("single", "postgres")], indirect=["database"])
async def test_two_batches_that_meet_at_the_source_do_not_lock_each_other_out(
    place: Place, database: Home
) -> None:
    """A late one and a new one write the same rows of PostgreSQL in opposite orders, ten times."""
    async with site(place, database) as at:
        for version in range(1, 20, 2):
            old = [Change(str(number), n(0), version) for number in range(1000)]
            new = [Change(str(number), n(1), version + 1) for number in reversed(range(1000))]
            await asyncio.gather(at.source.table.store(old), at.source.table.store(new))
        assert set((await at.source.rows()).values()) == {(20, 1)}


@HERE
async def test_flushers_go_on_when_redis_is_back(place: Place, database: Home) -> None:
    """It is looked for again and again, told once each, and nothing is stored twice or lost."""
    heard = Recorder()
    async with proxy(place.server.port) as line, site(place, database) as at:
        at.clients = [at.clients[0], connect(line.url)]
        try:
            async with at.flusher(1, on_event=heard, lease=1, store_timeout=0.5, drain=0.2) as flusher:
                await eventually(lambda: len(heard.of(ShardTaken)) == 4, within=5)
                with line.down():
                    await at.writer().put("a", n(1))
                    await eventually(lambda: heard.of(RedisLost), within=5)
                await eventually(lambda: heard.of(RedisRegained), within=5)
                await eventually(lambda: at.source.stored, within=5)
                line.down()
            assert flusher.left is None, "who cannot ask cannot say"
            assert heard.of(Drained)[0].left is None
            line.up()
        finally:
            await at.clients[1].aclose()
        assert await at.source.value("a") == 1


@HERE
async def test_what_cannot_be_read_is_parked_and_holds_nobody_up(place: Place, database: Home) -> None:
    """Garbage, a record of another codec, and an entry of the queue without a record."""
    async with site(place, database) as at:
        writer, client = at.writer(shards=1), at.clients[0]
        good = await writer.put("good", n(1))
        for back, record in enumerate(
            [b"", b"x", b"9:abc", b"1:a1 0 +\n{", b"1:\xff1 0 +\n1", b"99999999999:"], 1
        ):
            await client.hset(at.key("changes"), str(good - back), record)
            await client.zadd(at.key("queue"), {str(good - back): good - back})
        await client.zadd(at.key("queue"), {str(good - 100): good - 100})
        await client.hset(at.key("latest"), "a", str(good - 4))
        with pytest.raises(Unreadable):
            await writer.peek("a")
        await at.flusher(shards=1).flush()
        assert await at.source.value("good") == 1
        parked = await writer.parked()
        assert sorted(each.key for each in parked) == ["", "", "", "", "", "a"]
        assert all(each.why.startswith("it cannot be read") and each.value is None for each in parked)
        assert await writer.discard(*parked) == 6
        assert (await writer.stats()).waiting == 0


@HERE
async def test_errors_of_every_shape_are_understood(place: Place, database: Home) -> None:
    """Groups of outages, stores that cancel themselves, return nothing, or nonsense."""
    heard = Recorder()
    async with site(place, database) as at:
        flusher = at.flusher(shards=1, max_attempts=1, on_event=heard)
        await at.writer(shards=1).put("a", n(1))
        outages: list[BaseException] = [
            ExceptionGroup("two", [ConnectionError(), TimeoutError()]),
            asyncio.CancelledError(),
            databases.Unreachable("gone"),
            databases.OutcomeUnknown("who knows"),
        ]
        for number, error in enumerate(outages, 1):
            at.source.error = lambda _, error=error: error  # type: ignore[misc]  # one a turn
            await flusher.flush()
            assert len(heard.of(SourceFailed)) == number
        assert heard.of(ChangeParked) == []
        at.source.error = lambda _: ExceptionGroup("two", [ConnectionError(), ValueError()])
        await flusher.flush()
        assert [event.error for event in heard.of(ChangeParked)] == ["ExceptionGroup"]

        async def says_nothing(_: Any) -> Any:
            return None

        at.source.error = lambda _: None
        writer = at.writer(shards=1)
        flusher._store = says_nothing
        await writer.put("b", n(1))
        await flusher.flush()
        assert (await writer.stats()).parked == 1
        nonsense: list[Any] = [7, {"b": "9"}, {"b": None}, {"b": -1}, {"b": 1 << 53}, {"b": 10**400}]
        for parked, said in enumerate(nonsense, 2):
            flusher._store = AsyncMock(return_value=said)
            version = await writer.put(f"b {parked}", n(1))
            await flusher.flush()
            assert (await writer.stats()).parked == parked
            assert await writer.put("c", n(1)) < version + 3_600_000_000, (
                "versions go on from where they were"
            )
            flusher._store = at.source.store
            await flusher.flush()


@HERE
async def test_a_running_flusher_refuses_to_run_twice(place: Place, database: Home) -> None:
    """And one that was closed may run again."""
    async with site(place, database) as at:
        flusher = at.flusher()
        async with flusher:
            with pytest.raises(RuntimeError, match="running already"):
                await flusher.__aenter__()
        async with flusher:
            await at.writer().put("a", n(1))
            await eventually(lambda: at.source.stored, within=5)


@HERE
async def test_a_defect_in_the_flusher_is_not_silent(
    place: Place, database: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that died of what nobody foresaw raises it at close."""
    async with site(place, database) as at:
        flusher = at.flusher(shards=1)
        monkeypatch.setattr(flusher, "_flush", None)
        with pytest.raises(TypeError):
            async with flusher:
                await eventually(flusher._tasks[0].done, within=5)


@HERE
async def test_events_tell_the_life_of_a_change(place: Place, database: Home) -> None:
    """Queued, replaced, the shard taken, the batch flushed, the flusher drained."""
    heard = Recorder()
    async with site(place, database) as at:
        writer = at.writer(shards=1, on_event=heard)
        first, second = await writer.put("a", n(1)), await writer.put("a", n(2))
        async with at.flusher(shards=1, on_event=heard):
            pass
    queued = [(event.version, event.replaced) for event in heard.of(ChangeQueued)]
    assert queued == [(first, False), (second, True)]
    assert first < second
    assert [event.changes for event in heard.of(BatchFlushed)] == [1]
    assert heard.names()[-1] == "Drained"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"capacity": 0}, "capacity must be a whole number >= 1, got 0"),
        ({"delay": -1}, "delay must be a finite number >= 0"),
        ({"max_wait": float("inf")}, "max_wait must be a finite number"),
        ({"shards": True}, "shards must be a whole number"),
        ({"batch": 1001}, "batch must be a whole number >= 1 and <= 1000"),
        ({"coalesce": 1}, "coalesce must be True or False, got 1"),
        ({"outages": (KeyboardInterrupt,)}, "outages must be a tuple of Exception classes"),
        ({"store_timeout": 30}, "store_timeout must be a finite number < 30"),
        ({"max_retry_delay": 0.0001}, "max_retry_delay must be a finite number >= 0.001"),
        ({"wait_replicas": -1}, "wait_replicas must be a whole number >= 0"),
    ],
)
def test_a_policy_names_what_it_refuses(changes: dict[str, Any], complaint: str) -> None:
    """Field, bound and value."""
    with pytest.raises(ValueError, match=complaint):
        policy(**changes)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "é"])
async def test_a_name_that_could_reach_into_another_queue_is_refused(name: str) -> None:
    """A name has no slash, so no two write-behinds share a key."""
    nowhere: Any = None
    with pytest.raises(ValueError, match="name must be letters"):
        WriteBehind(name, nowhere, policy(), app="a")


@pytest.mark.parametrize("name", ["", "item; DROP", "item x", "1"])
async def test_a_table_has_plain_names(name: str) -> None:
    """They are put into statements as they are."""
    nowhere: Any = None
    with pytest.raises(ValueError, match=r"table"):
        VersionedTable(nowhere, name, key="id", columns=("n",))
    with pytest.raises(ValueError, match="columns must be at least one"):
        VersionedTable(nowhere, "item", key="id", columns=())
    for key, columns in (("id", ("Version",)), ("id", ("n", "N")), ("deleted", ("n",)), ("id", ("id",))):
        with pytest.raises(ValueError, match="must be different"):
            VersionedTable(nowhere, "item", key=key, columns=columns)


@EVERYWHERE
async def test_a_table_takes_large_batches_in_parts(place: Place, database: Home) -> None:
    """More values than one statement may have; and what is newer is told for each part."""
    async with site(place, database) as at:
        old = [Change(str(number), n(number), 5) for number in range(50)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(table, "_MOST_VALUES", 41)
            assert await at.source.table.store(old) == {}
            late = [Change(str(number), n(0), 4 if number % 2 else 6) for number in range(50)]
            newer = await at.source.table.store(late)
        assert newer == {str(number): 5 for number in range(1, 50, 2)}
        with pytest.raises(ValueError, match="a dictionary of n"):
            await at.source.table.store([Change("a", {"m": 1}, 7)])


# Faults


@pytest.mark.invariant(1, 8)
@pytest.mark.fault("flushers and writers are killed (SIGKILL) under load, 20 times")
async def test_twenty_kills_lose_no_acknowledged_write(
    server: Server, app: str, tmp_path: Path, ledger: Callable[..., Ledger], spawn: Callable[..., Worker]
) -> None:
    """Ten flushers die with a batch in their hands, ten writers while they write: the source has it all."""
    book = ledger(within=15, bound="every row at its newest acknowledged version")
    without = book.without("a buffer in the writer")
    home = Home(f"sqlite://{tmp_path}/source.db", "sqlite")
    async with site(Place("single", server, None, app), home) as at:
        log = await faults.logged(at)
        nursery = faults.Nursery(at, spawn("tests.cache.write_behind_processes", server.url, home.url))
        alive = {kind: [await nursery.start(kind) for _ in range(2)] for kind in ("flusher", "writer")}
        for kind, word in [("writer", "acked"), ("flusher", "storing")] * 10:
            dying = await nursery.one_that_says(word, alive[kind])
            nursery.kill(dying)
            book.injected()
            alive[kind].remove(dying)
            alive[kind].append(await nursery.start(kind))
        for number in alive["writer"]:
            nursery.kill(number)
        items = WriteBehind("items", at.clients[0], POLICY, app=app)
        await eventually(lambda: nothing_waits(items), within=20)
        book.recovered()
        rows, acked = await at.source.rows(), nursery.acked()
        assert len(acked) > 200
        for key, version in acked:
            book.acked((key, version))
            if rows.get(key, (0, 0))[0] >= version:
                book.effect((key, version))
        assert await items.parked() == []
        written = await log()
        assert len(written) == len(set(written)), "a version was written twice"

        for _ in range(5):
            number = await nursery.start("buffer")
            await nursery.says(number, "acked", 60)
            nursery.kill(number)
            without.injected()
        without.recovered()
        rows = await at.source.rows()
        for key, _ in nursery.acked()[len(acked) :]:
            without.acked(key)
            if key in rows:
                without.effect(key)
    book.held("Redis has it before the writer is told; another flusher takes the shard when the lease ends")


async def nothing_waits(items: WriteBehind) -> bool:
    """Say whether all is in the source."""
    return (await items.stats()).waiting == 0


@pytest.mark.invariant(1)
@pytest.mark.fault("Redis is killed (SIGKILL) and restarted; appendonly, appendfsync always")
async def test_a_restart_with_a_file_loses_nothing(
    app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """Three kills while four writers write: all that was acknowledged is flushed afterwards."""
    book = ledger(within=15)
    with Server("--appendonly", "yes", "--appendfsync", "always") as own:
        await faults.killed_while_writing(own, app, tmp_path, book, kills=3)
    book.held("what waited was in the file; writers and the flusher go on by themselves")


@pytest.mark.fault("Redis is killed (SIGKILL) and restarted; no file")
async def test_a_restart_without_a_file_loses_what_waited(
    app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """The acknowledged writes that were not flushed are gone for good, and the next ones are taken."""
    book = ledger(lost=1000, within=15, bound="what had been flushed stays")
    with Server() as own:
        await faults.killed_while_writing(own, app, tmp_path, book, kills=1, flusher=False)
    assert book.lost > 0, "the test does not show what it is about"
    book.held("what had been flushed; what waited was nowhere else")


@pytest.mark.fault("a failover to a replica that had heard nothing (black hole); wait_replicas=1")
async def test_wait_tells_what_a_failover_may_lose(
    app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """Fifty writes that no replica had are unsure for their writers; without WAIT they are acknowledged."""
    book = ledger(unsure=50, bound="what a replica has is acknowledged, nothing else")
    without = book.without("wait_replicas=0")
    home = Home(f"sqlite://{tmp_path}/source.db", "sqlite")
    async with faults.a_replica_behind_a_proxy() as (primary, replica, line):
        patient: dict[str, Any] = {"wait_replicas": 1, "wait_seconds": 5}
        for name, books, options in (("sure", book, patient), ("fast", without, {})):
            async with site(Place("single", primary, None, app), home) as at:
                await faults.put_all(at.writer(name=name, **options), range(50), books)
        with line.hole("down"):
            await asyncio.to_thread(primary.command, "SET", "something", "for the hole")
            hasty: dict[str, Any] = {"wait_replicas": 1, "wait_seconds": 0.01}
            for name, books, options in (("sure", book, hasty), ("fast", without, {})):
                async with site(Place("single", primary, None, app), home) as at:
                    writer = at.writer(name=name, **options)
                    await asyncio.gather(*[faults.put_all(writer, [each], books) for each in range(50, 100)])
            primary.kill()
        replica.command("REPLICAOF", "NO", "ONE")
        for name, books in (("sure", book), ("fast", without)):
            books.injected()
            async with site(Place("single", replica, None, app), home) as at:
                await at.flusher(name=name).flush()
                for key in await at.source.rows():
                    books.effect(key)
    book.held("WAIT: the writer is told that too few replicas have it")


WITH_WAIT = "a primary of the 3+3 cluster is killed (SIGKILL) under load; wait_replicas=1"
WITHOUT_WAIT = "a primary of the 3+3 cluster is killed (SIGKILL) under load; wait_replicas=0"


@pytest.mark.fault("a primary of the 3+3 cluster is killed (SIGKILL) under load; wait_replicas=0")
@pytest.mark.fault("a primary of the 3+3 cluster is killed (SIGKILL) under load; wait_replicas=1")
async def test_a_cluster_goes_on_without_a_primary(
    app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """With WAIT nothing acknowledged is lost; without it the loss is counted, whatever it is."""
    books = {
        1: ledger(WITH_WAIT, within=20),
        0: ledger(WITHOUT_WAIT, lost=1000, within=20, bound="what is lost is counted"),
    }
    home = Home(f"sqlite://{tmp_path}/source.db", "sqlite")
    with Cluster("--cluster-node-timeout", "1000") as own:
        for replicas, book in books.items():
            await faults.primary_killed(own, app, home, book, replicas)
    books[1].held("the promoted replica had all that was acknowledged")
    books[0].held(f"on one machine replicas lag by little: {books[0].lost} lost this time; see the row above")


@pytest.mark.invariant(5)
@pytest.mark.fault("the queue is full: the source takes nothing, and eight writers go on")
async def test_a_full_queue_loses_nothing(
    server: Server, app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """Of 400 writes 50 find room; the others are refused, and their writers know it."""
    book = ledger(bound="at most 50 changes wait")
    without = book.without("deque(maxlen=50)")
    options: dict[str, Any] = {"shards": 1, "capacity": 50}
    async with site(Place("single", server, None, app), Home(f"sqlite://{tmp_path}/db", "sqlite")) as at:
        writer, ring = at.writer(**options), deque[str](maxlen=50)

        async def write(which: int) -> None:
            for number in range(50):
                key = f"{which} {number}"
                ring.append(key)
                without.acked(key)
                try:
                    await writer.put(key, n(number))
                    book.acked(key)
                except QueueFull:
                    book.failed(key)
                    book.injected()
                    without.injected()

        await asyncio.gather(*[write(which) for which in range(8)])
        assert (await writer.stats()).waiting == 50
        await at.flusher(**options).flush()
        for key in await at.source.rows():
            book.effect(key)
    for key in ring:
        without.effect(key)
    assert book.outcomes == {"acked": 50, "unsure": 0, "failed": 350}
    book.held("50 changes wait, 350 writers got QueueFull at once")


@pytest.mark.invariant(6)
@pytest.mark.fault("the source is down for 5 s (virtual time)")
async def test_five_seconds_without_the_source_lose_and_park_nothing(
    server: Server, app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """It is tried again with pauses that double, nothing is counted, and then all is stored."""
    book = ledger(bound="at most 20 tries, nothing parked")
    tries = await down_for_five_seconds(server, f"{app}-a", tmp_path / "a", book, Kit())
    assert tries <= 20
    book.held(f"{tries} tries, with pauses that double up to 1 s; then all is stored")
    without = book.without("three tries, then given up")
    await down_for_five_seconds(server, f"{app}-b", tmp_path / "b", without, Kit(flusher=naive.GivesUp))


async def down_for_five_seconds(server: Server, app: str, path: Path, book: Ledger, kit: Kit) -> int:
    """Write a change every 50 ms, the first 5 s in vain; return how often the source was asked in vain."""
    clock, tries = ManualClock(), 0

    def down(_: Any) -> BaseException | None:
        nonlocal tries
        if clock.monotonic() >= 5:
            return None
        tries += 1
        book.injected()
        return ConnectionError("down")

    options: dict[str, Any] = {"shards": 1, "retry_delay": 0.1, "max_retry_delay": 1}
    async with site(Place("single", server, None, app), Home(f"sqlite://{path}", "sqlite"), kit) as at:
        at.source.error = down
        writer = at.writer(**options)
        async with at.flusher(clock=clock, **options):
            for number in range(100):
                await writer.put(f"key {number}", n(number))
                book.acked(f"key {number}")
                await clock.advance(0.05)

            async def nothing_left() -> bool:
                await clock.advance(0.05)
                return await nothing_waits(writer)

            await eventually(nothing_left, within=10)
        for key in await at.source.rows():
            book.effect(key)
        if kit.flusher is Flusher:
            assert await writer.parked() == []
    return tries


@pytest.mark.invariant(2, 8)
@pytest.mark.fault("a flusher is paused for longer than its lease, with a batch in its hands")
async def test_a_late_batch_changes_nothing(
    server: Server, app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """Twenty pauses: another flusher stores what is newer, and the late batch is refused row by row."""
    book = ledger(bound="no row goes back")
    for books, kind in (
        (book, VersionedTable),
        (book.without("an upsert without versions"), naive.Unversioned),
    ):
        place, kit = Place("single", server, None, f"{app}-{kind.__name__}"), Kit(table=kind)
        async with site(place, Home(f"sqlite://{tmp_path}/{kind.__name__}", "sqlite"), kit) as at:
            writer, heard = at.writer(), Recorder()
            for pause in range(20):
                key, stuck = f"key {pause}", at.source.behind_a_gate()
                await writer.put(key, n(1))
                late = at.begin(at.flusher(source=stuck, on_event=heard).flush())
                await eventually(lambda stuck=stuck: stuck.running, within=5)  # type: ignore[misc]  # this one
                await at.let_leases_end()
                await writer.put(key, n(2))
                books.acked(key)
                await at.flusher(1).flush()
                stuck.open.set()
                await late
                books.injected()
                if await at.source.value(key) == 2:
                    books.effect(key)
    book.held("the row's version is newer than the batch's")


@pytest.mark.invariant(2)
@pytest.mark.fault("the reply to a batch is lost after its commit")
async def test_a_batch_that_is_repeated_is_written_once(
    server: Server, app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """Twenty batches are stored a second time, and no row is written twice."""
    book = ledger(bound="each version is written once")
    for books, kind in (
        (book, VersionedTable),
        (book.without("an upsert without versions"), naive.Unversioned),
    ):
        place, kit = Place("single", server, None, f"{app}-{kind.__name__}"), Kit(table=kind)
        async with site(place, Home(f"sqlite://{tmp_path}/{kind.__name__}", "sqlite"), kit) as at:
            log, writer = await faults.logged(at), at.writer()
            for number in range(20):
                version = await writer.put("a", n(number))
                books.acked(("a", version))
                at.source.after = databases.OutcomeUnknown("the reply was lost")
                books.injected()
                await at.flusher().flush()
                await at.flusher().flush()
            for each in await log():
                books.effect(each)
    book.held("a version that the row has already changes nothing")


@pytest.mark.invariant(2)
@pytest.mark.fault("the reply of Redis to a put is lost")
async def test_a_lost_reply_is_an_unsure_write(
    server: Server, app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """The writer gets OutcomeUnknown; the change was queued once, and reaches the source once."""
    book = ledger(unsure=20)
    async with (
        proxy(server.port, book) as line,
        site(Place("single", server, None, app), Home(f"sqlite://{tmp_path}/db", "sqlite")) as at,
        opened(line.url) as client,
    ):
        log = await faults.logged(at)
        writer = WriteBehind("items", client, policy(), app=app)
        await writer.put("first", n(0))  # the server knows the script
        for number in range(20):
            with line.lose_reply(b"EVALSHA"), pytest.raises(OutcomeUnknown):
                await writer.put(f"key {number}", n(number))
            book.unsure(f"key {number}")
        await at.flusher().flush()
        for key, _ in await log():
            book.effect(key)
    book.held("nothing is sent twice; the writer knows that it does not know")


@pytest.mark.invariant(1, 5)
@pytest.mark.fault("the memory of Redis is full (maxmemory, noeviction)")
async def test_a_full_redis_refuses_writes_and_can_be_emptied(
    fresh_server: Server, app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """Fifty writes are refused, nothing of them is queued, and the flusher still stores what was."""
    book = ledger(bound="the queue empties")
    home = Home(f"sqlite://{tmp_path}/db", "sqlite")
    async with site(Place("single", fresh_server, None, app), home) as at:
        writer = at.writer()
        await faults.put_all(writer, range(50), book)
        fresh_server.command("CONFIG", "SET", "maxmemory", "1")
        book.injected()
        for number in range(50, 100):
            with pytest.raises(OutOfMemoryError):
                await writer.put(f"items {number}", n(number))
            book.failed(f"items {number}")
        with pytest.raises(OutOfMemoryError):  # not half a replacement, either
            await writer.put("items 7", n(70))
        assert await writer.peek("items 7") == n(7)
        async with at.flusher() as flusher:
            pass
        assert flusher.left == ()
        for key in await at.source.rows():
            book.effect(key)
        fresh_server.command("CONFIG", "SET", "maxmemory", "0")
        await writer.put("a", n(1))
    book.held("writers get OutOfMemoryError, flushers may go on")


@pytest.mark.invariant(4)
@pytest.mark.fault("a primary has lost its replicas; min-replicas-to-write 1")
async def test_a_primary_without_replicas_takes_no_writes_and_answers_readers(
    fresh_server: Server, app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """Fifty writes are refused, readers see what waits, and it is flushed when a replica is back."""
    book = ledger(bound="readers are answered")
    home = Home(f"sqlite://{tmp_path}/db", "sqlite")
    async with site(Place("single", fresh_server, None, app), home) as at:
        writer = at.writer()
        await faults.put_all(writer, range(50), book)
        fresh_server.command("CONFIG", "SET", "min-replicas-to-write", "1")
        book.injected()
        await faults.put_all(writer, range(50, 100), book)
        reader = at.writer(1)
        assert [await reader.peek(f"items {number}") for number in range(100)] == [
            *[n(number) for number in range(50)],
            *[MISS] * 50,
        ]
        assert ((await reader.stats()).waiting, await reader.parked()) == (50, [])
        fresh_server.command("CONFIG", "SET", "min-replicas-to-write", "0")
        await at.flusher().flush()
        for key in await at.source.rows():
            book.effect(key)
        assert book.outcomes == {"acked": 50, "unsure": 0, "failed": 50}
    book.held("writes are refused, and not queued where one machine has them")


@pytest.mark.invariant(6)
@pytest.mark.fault("the source refuses 5 of 100 changes")
async def test_bad_changes_are_parked_and_good_ones_stored(
    server: Server, app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """Ninety-five are stored, five are seen in the list of the parked."""
    book = ledger(bound="stored, or seen as parked")
    for books, flusher in ((book, Flusher), (book.without("the batch is tried again"), naive.WholeBatches)):
        place, kit = Place("single", server, None, f"{app}-{flusher.__name__}"), Kit(flusher=flusher)
        async with site(place, Home(f"sqlite://{tmp_path}/{flusher.__name__}", "sqlite"), kit) as at:
            at.source.error = lambda batch: (
                ValueError() if any(each.value["n"] % 20 == 7 for each in batch) else None
            )
            writer = at.writer(shards=1)
            for number in range(100):
                await writer.put(f"key {number}", n(number))
                books.acked(f"key {number}")
            for _ in range(6):
                await at.flusher(shards=1).flush()
            bad = [each for each in await writer.parked() if each.value["n"] % 20 == 7]
            books.injected(5)
            for key in [*await at.source.rows(), *[each.key for each in bad]]:
                books.effect(key)
    book.held("halves of the batch find the five; they are parked after 5 tries, the others are stored")


@pytest.mark.invariant(1)
@pytest.mark.fault("a writer is cancelled at every step of a put")
async def test_cancellation_at_every_step_leaks_nothing(
    server: Server, app: str, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """After each of 40 cancellations no connection is lent out; the change is queued whole or not at all."""
    book = ledger(bound="no connection left")
    async with site(Place("single", server, None, app), Home(f"sqlite://{tmp_path}/db", "sqlite")) as at:
        log, writer = await faults.logged(at), at.writer()
        for steps in range(40):
            call = asyncio.create_task(writer.put(f"key {steps}", n(steps)))
            for _ in range(steps):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            book.injected()
            (book.unsure if call.cancelled() else book.acked)(f"key {steps}")
            assert leaks.in_use(at.clients[0]) == 0
        await at.flusher().flush()
        for key, _ in await log():
            book.effect(key)
    book.held("one script is one step: whoever is cancelled does not know, Redis does")


@HERE
async def test_a_flusher_that_is_cancelled_at_every_step_loses_nothing(place: Place, database: Home) -> None:
    """Whatever it was doing, the next one stores what is left, and no connection is lent out."""
    async with site(place, database) as at:
        writer = at.writer(shards=1)
        for steps in range(0, 120, 3):
            await writer.put("a", n(steps))
            call = asyncio.create_task(at.flusher(shards=1).flush())
            for _ in range(steps):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            assert leaks.in_use(at.clients[0]) == 0
            await at.let_leases_end(1)
            await at.flusher(shards=1).flush()
            assert await at.source.value("a") == steps
            assert (await writer.stats()).waiting == 0


# Against a model


class TestAgainstTheModel(AgainstTheModel.TestCase):  # type: ignore[misc, valid-type]  # Hypothesis makes it
    """Whatever is written, read, flushed, lost and late, readers and source agree with a dictionary."""

    settings = settings(max_examples=40, stateful_step_count=20)

    @classmethod
    def setUpClass(cls) -> None:
        AgainstTheModel.open()

    @classmethod
    def tearDownClass(cls) -> None:
        AgainstTheModel.close()
