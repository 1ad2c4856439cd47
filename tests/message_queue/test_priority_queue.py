"""The proof of patterns/message_queue/priority_queue: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import math
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from redis.crc import key_slot
from redis.exceptions import OutOfMemoryError, ResponseError

from patterns.embedded import Cluster, Server
from patterns.events import Recorder
from patterns.keyspace import OutcomeUnknown, connect, opened
from patterns.message_queue.competing_consumer import worker as workers
from patterns.message_queue.priority_queue import (
    Effect,
    JobCancelled,
    JobDelivered,
    LeaseLost,
    MessageDead,
    MessageSent,
    OtherAging,
    Policy,
    PriorityChanged,
    PriorityQueue,
    Stats,
    lane,
    queue,
    scripts,
)
from tests.eventually import eventually
from tests.faults import leaks, proxy
from tests.message_queue import priority_queue_faults as faults
from tests.message_queue import priority_queue_naive as naive
from tests.message_queue.priority_queue_checks import (
    check_all_wake,
    check_bad_input,
    check_cancel,
    check_change,
    check_dead,
    check_delay,
    check_fifo,
    check_idle,
    check_lease,
    check_no_starvation,
    check_once,
    check_order,
    check_steady,
    check_unreadable,
    check_urgent_first,
    check_wakes,
)
from tests.message_queue.priority_queue_model import AgainstTheModel
from tests.message_queue.priority_queue_processes import POLICY
from tests.message_queue.priority_queue_site import SECOND, policy, site
from tests.places import KINDS, Place

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.faults import Ledger
    from tests.faults.workers import Worker

# Everything is proved on one server and on a cluster; that a naive variant fails, on one server.
HERE = pytest.mark.parametrize("kind", ["single"])


# 1: the order


@pytest.mark.invariant(1)
@KINDS
@pytest.mark.parametrize("aging", [10, math.inf])
async def test_the_ready_job_of_the_smallest_rank_is_lent(
    place: Place, rng: random.Random, aging: float
) -> None:
    """Two producers and two consumers, sixty jobs, some delayed: none is lent before a smaller one."""
    async with site(place) as at:
        await check_order(at, rng, aging)


@pytest.mark.invariant(1)
@KINDS
async def test_what_is_urgent_overtakes_what_waits(place: Place) -> None:
    """An alarm goes before exports that came first, and so does a call that has just become due."""
    async with site(place) as at:
        await check_urgent_first(at)


@pytest.mark.invariant(1)
@KINDS
async def test_all_that_is_due_is_there_before_one_is_chosen(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most urgent of twenty due jobs is lent first, though only three are moved at once."""
    monkeypatch.setattr(lane, "_MOVED", 3)
    async with site(place) as at:
        jobs = at.queue(aging=math.inf)
        for number in range(20):
            await jobs.push(number, priority=9 if number < 19 else 0, delay=60)
        for number in range(4):
            await jobs.push(f"lent {number}", priority=1)
        assert len(await jobs.receive("one", 4, wait=False)) == 4
        await at.come_true("delayed")
        await at.come_true("leases")
        assert await at.served(jobs, 6) == [19, *(f"lent {number}" for number in range(4)), 0]


@pytest.mark.naive(1)
@HERE
async def test_prefetch_defeats_priority(place: Place) -> None:
    """What a consumer has fetched, nobody can overtake."""
    async with site(place, naive.Prefetches) as at:
        with pytest.raises(AssertionError, match="an alarm waits behind exports"):
            await check_urgent_first(at)


@pytest.mark.naive(1)
@HERE
async def test_delayed_jobs_that_are_looked_at_last_are_late(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that looks for due jobs when it has no others serves all others first."""
    due = "local due = redis.call("
    asks = ("local due = redis.call('ZCARD', ready) > 0 and {} or redis.call(",)
    monkeypatch.setattr(lane, "TAKE", naive.changed(scripts.TAKE, (due, *asks)))
    async with site(place) as at:
        with pytest.raises(AssertionError, match="looked at last"):
            await check_urgent_first(at)


# 2: first come, first served


@pytest.mark.invariant(2)
@KINDS
async def test_jobs_of_one_priority_are_served_as_they_came(place: Place) -> None:
    """Fifteen of the most and of the least urgent."""
    async with site(place) as at:
        await check_fifo(at)


@pytest.mark.naive(2)
@HERE
@pytest.mark.parametrize("make", [naive.PlainZset, naive.Unpadded, naive.Packed])
async def test_ties_go_by_the_members_text(place: Place, make: Any) -> None:
    """Ten is before two as text, and a packed number beyond 2^53 is its neighbour's."""
    async with site(place, make) as at:
        with pytest.raises(AssertionError, match="out of order"):
            await check_fifo(at)


@pytest.mark.invariant(2)
@KINDS
@pytest.mark.parametrize("last", [0, 2**31 - 3, 10**15 - 3, 10**15 + 10**14])
async def test_the_order_outlasts_any_count(place: Place, last: int) -> None:
    """Ids of a microsecond apart, from times far back and past 2^31, stay exact with any priority."""
    async with site(place) as at:
        jobs = at.queue(aging=math.inf)
        await at.clients[0].set(at.key("last"), last)
        ids = [await jobs.push(number, priority=number % 2) for number in range(10)]
        assert ids == sorted(ids)
        assert {len(each) for each in ids} == {16}
        assert await at.served(jobs) == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]


@pytest.mark.invariant(2)
@KINDS
async def test_where_numbers_end_a_push_is_refused_and_none_goes_astray(place: Place) -> None:
    """A rank is below 2^53, where a double still tells neighbours apart; nothing wraps."""
    async with site(place) as at:
        jobs = at.queue(aging=10)
        await at.clients[0].set(at.key("last"), 2**53 - 90 * SECOND - 6)
        ids = [await jobs.push(number, priority=9) for number in range(5)]
        assert [rank for _, rank in await at.ranks()] == [int(each) + 90 * SECOND for each in ids]
        with pytest.raises(ResponseError, match="the ranks are used up"):
            await jobs.push("too late", priority=9)
        await jobs.push("still", priority=0)
        assert await at.served(jobs) == ["still", 0, 1, 2, 3, 4]


@pytest.mark.invariant(2)
@KINDS
async def test_a_clock_that_was_set_back_changes_no_order(place: Place) -> None:
    """The ids go on from the last one, an hour ahead of the server's time."""
    async with site(place) as at:
        jobs = at.queue()
        await jobs.push(0, priority=3)
        await at.age(3600)  # and from then on the server's clock is an hour behind
        for number in range(1, 8):
            await jobs.push(number, priority=3)
        assert await at.served(jobs) == list(range(8))


@pytest.mark.invariant(2)
@KINDS
async def test_ids_rise_also_where_redis_has_forgotten_the_last(place: Place) -> None:
    """They begin at the server's time, so none is given out twice after a restart without a file."""
    async with site(place) as at:
        jobs = at.queue()
        before = await jobs.push(1, priority=0)
        for role in ("ready", "jobs", "payloads", "last", "step", "wake"):
            await at.clients[0].delete(at.key(role))
        assert await jobs.push(2, priority=0) > before


# 3: nobody starves


@pytest.mark.invariant(3)
@KINDS
async def test_a_flood_holds_up_a_job_for_its_bound_and_no_longer(place: Place) -> None:
    """Twice as much comes as can be served, and the least urgent job gets its turn after 90 s of flood."""
    async with site(place) as at:
        await check_no_starvation(at)


@pytest.mark.naive(3)
@HERE
async def test_lists_that_are_polled_in_order_starve_the_last(place: Place) -> None:
    """As long as there is something urgent, nobody looks further down."""
    async with site(place, naive.Lists) as at:
        with pytest.raises(
            AssertionError, match="29 of a flood were served, and the one before them was not"
        ):
            await check_no_starvation(at)


@pytest.mark.invariant(3)
@KINDS
async def test_the_bound_is_exact_to_a_microsecond(place: Place) -> None:
    """What comes within priority * aging goes first, what comes a microsecond later does not."""
    async with site(place) as at:
        jobs = at.queue(aging=10)
        since = int(await jobs.push("low", priority=4))
        await at.clients[0].set(at.key("last"), since + 40 * SECOND - 2)
        for name in ("before", "at once", "after"):  # a microsecond apart
            await jobs.push(name, priority=0)
        assert await at.served(jobs) == ["before", "low", "at once", "after"]


# 4: lent, not removed


@pytest.mark.invariant(4)
@KINDS
async def test_a_job_outlives_the_consumer_that_had_it(place: Place) -> None:
    """It is back at its old place, and who had it can do nothing to it any more."""
    async with site(place) as at:
        await check_lease(at)


@pytest.mark.invariant(4)
@KINDS
async def test_a_poisonous_job_is_dead_after_so_many_deliveries(place: Place) -> None:
    """Once, with payload and history; it can be redriven and discarded, and the others go on."""
    async with site(place) as at:
        await check_dead(at)


@pytest.mark.naive(4)
@HERE
async def test_a_popped_job_dies_with_its_consumer(place: Place) -> None:
    """ZPOPMIN and BZPOPMIN hand it out at most once."""
    async with site(place, naive.PlainZset) as at:
        with pytest.raises(AssertionError, match="gone with the consumer"):
            await check_lease(at)


@pytest.mark.naive(4)
@HERE
async def test_without_an_owner_the_late_one_removes_anothers_job(place: Place) -> None:
    """Whoever knows the id could acknowledge."""
    async with site(place, naive.AnyoneActs) as at:
        with pytest.raises(AssertionError, match="could still act"):
            await check_lease(at)


@pytest.mark.naive(4)
@HERE
async def test_a_job_that_is_queued_anew_loses_its_place(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time of waiting is gone with the consumer."""
    anew = ("else show(id, priority, since) end", "else show(id, priority, digits(now())) end")
    monkeypatch.setattr(lane, "TAKE", naive.changed(scripts.TAKE, anew))
    async with site(place) as at:
        with pytest.raises(AssertionError, match="lost its place"):
            await check_lease(at)


@pytest.mark.naive(4)
@HERE
async def test_a_job_that_nobody_counts_kills_for_ever(place: Place) -> None:
    """It comes back each time, before all others."""
    async with site(place, naive.NeverDead) as at:
        with pytest.raises(AssertionError, match="delivered for ever"):
            await check_dead(at)


@pytest.mark.invariant(4)
@KINDS
async def test_a_lease_that_is_extended_holds(place: Place) -> None:
    """Nobody else gets the job, and its owner can still acknowledge it; also late, if nobody has it."""
    async with site(place) as at:
        ours, theirs = at.queue(lease=60), at.queue(1)
        await ours.push("job", priority=0)
        (one,) = await ours.receive("one", wait=False)
        await at.come_true("leases")
        await ours.extend(one)
        assert await theirs.receive("two", wait=False) == []
        await at.come_true("leases")
        await ours.acknowledge(one)
        assert await ours.stats() == Stats(0, 0, 0, 0, 0.0)
        for what in (ours.extend, ours.acknowledge, ours.release):
            with pytest.raises(LeaseLost):
                await what(one)
        with pytest.raises(LeaseLost):
            await ours.reject(one, "late")


@pytest.mark.invariant(4)
@KINDS
async def test_what_was_not_begun_is_given_back_uncounted(place: Place) -> None:
    """And what is to be tried later is not ready before."""
    async with site(place) as at:
        jobs = at.queue(max_deliveries=2)
        await jobs.push("job", priority=0)
        for _ in range(5):
            (one,) = await jobs.receive("one", wait=False)
            assert one.deliveries == 1
            await jobs.release(one, started=False)
        (one,) = await jobs.receive("one", wait=False)
        await jobs.release(one, delay=60, why="busy")
        assert await jobs.receive("one", wait=False) == []
        assert (await jobs.stats()).delayed == 1
        await at.come_true("delayed")
        (one,) = await jobs.receive("one", wait=False)
        assert one.deliveries == 2


@pytest.mark.invariant(4)
@KINDS
async def test_an_effect_is_made_with_the_acknowledgement_or_not_at_all(place: Place) -> None:
    """Once, for the owner; where its script fails the job stays."""
    async with site(place) as at:
        ours, theirs = at.queue(), at.queue(1)
        counter = ours.lanes[0].key("counter")
        count = Effect("redis.call('INCRBY', KEYS[1], ARGV[1])", [counter], [5])
        await ours.push("job", priority=0)
        (late,) = await ours.receive("one", wait=False)
        await at.come_true("leases")
        (one,) = await theirs.receive("two", wait=False)
        with pytest.raises(LeaseLost):
            await ours.acknowledge(late, count)
        with pytest.raises(ResponseError):
            await theirs.acknowledge(one, Effect("redis.call('NONSENSE')"))
        await theirs.acknowledge(one, count)
        with pytest.raises(LeaseLost):
            await theirs.acknowledge(one, count)
        assert await at.clients[0].get(counter) == b"5"


@pytest.mark.invariant(4)
@KINDS
@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8, 12])
async def test_a_receive_that_is_cancelled_keeps_nothing(place: Place, turns: int) -> None:
    """Wherever it was cut off: the next receive gets the job, as if nobody had had it."""
    async with site(place) as at:
        jobs = at.queue()
        await jobs.push("job", priority=0)
        receiving = asyncio.create_task(jobs.receive("one"))
        for _ in range(turns):
            await asyncio.sleep(0)
        receiving.cancel()
        result: Any = (await asyncio.gather(receiving, return_exceptions=True))[0]
        if isinstance(result, asyncio.CancelledError):

            async def again() -> list[Any]:  # the script may still be on its way
                return list(await jobs.receive("two", wait=False))

            found = await eventually(again, within=5)
            assert [(one.payload, one.deliveries) for one in found] == [("job", 1)]
        assert leaks.in_use(at.clients[0].client) == 0


@pytest.mark.invariant(4)
@KINDS
async def test_a_job_whose_receipt_was_lost_is_given_back_at_once(place: Place) -> None:
    """Nobody knows that it was delivered, so it is not counted; a consumer that leaves gives it back too."""
    async with place.site(connect) as behind, site(place, second=behind.client) as at:
        line = behind.line(at.key("ready"))
        ours, theirs = at.queue(), at.queue(1)
        await ours.push("job", priority=0)
        await theirs.stats()
        for leaves in (False, True):
            with line.lose_reply(b"EVAL"), pytest.raises(OutcomeUnknown):
                await theirs.receive("two", wait=False)
            assert (await ours.stats()).leased == 1
            if leaves:
                await theirs.lanes[0].leave("two")
                assert (await ours.stats()).ready == 1
            else:
                (one,) = await theirs.receive("two", wait=False)
                assert one.deliveries == 1
                await theirs.release(one, started=False)


# 5: cancel and change


@pytest.mark.invariant(5)
@KINDS
@pytest.mark.parametrize("between", [False, True])
async def test_a_job_is_cancelled_while_it_waits_or_not_at_all(place: Place, between: bool) -> None:
    """Ready or delayed; once it is lent, whoever cancels is told that it is too late."""
    async with site(place) as at:
        await check_cancel(at, between=between)


@pytest.mark.invariant(5)
@KINDS
async def test_a_changed_job_stands_where_it_would_have(place: Place) -> None:
    """It keeps the time it has waited; a delayed one keeps its delay; a lent one is not changed."""
    async with site(place) as at:
        await check_change(at)


@pytest.mark.naive(5)
@HERE
async def test_looking_before_acting_cancels_what_is_worked_on(place: Place) -> None:
    """Between the two a consumer takes it."""
    async with site(place, naive.LooksThenActs) as at:
        with pytest.raises(AssertionError, match="a consumer works on it"):
            await check_cancel(at, between=True)


@pytest.mark.naive(5)
@HERE
async def test_a_job_that_is_pushed_again_begins_to_wait_again(place: Place) -> None:
    """It is made urgent, and stands behind all that are."""
    async with site(place, naive.PushesAgain) as at:
        with pytest.raises(AssertionError, match="at the end of its new priority"):
            await check_change(at)


# 6: delayed jobs


@pytest.mark.invariant(6)
@KINDS
async def test_a_delayed_job_goes_by_the_servers_clock(place: Place) -> None:
    """Clients that are an hour ahead or behind neither hide it nor see it early."""
    async with site(place) as at:
        await check_delay(at)


@pytest.mark.naive(6)
@HERE
async def test_a_client_whose_clock_is_behind_lets_delays_end_early(place: Place) -> None:
    """A minute's delay, reckoned by a clock that is an hour behind, was over an hour ago."""
    async with site(place, naive.ClientClock) as at:
        with pytest.raises(AssertionError, match="before its time"):
            await check_delay(at)


@pytest.mark.invariant(6)
@KINDS
async def test_a_delayed_job_takes_its_place_by_when_it_became_ready(place: Place) -> None:
    """Not by when somebody looked, nor by when it was pushed."""
    async with site(place) as at:
        jobs = at.queue()
        await jobs.push("delayed", priority=3, delay=60)
        await jobs.push("before", priority=3)
        await at.age(120)
        await jobs.push("after", priority=3)
        await at.come_true("delayed")
        assert await at.served(jobs) == ["before", "delayed", "after"]


# 7: waiting


@pytest.mark.invariant(7)
@KINDS
@pytest.mark.parametrize("how", ["push", "later", "delayed", "silence"])
async def test_a_consumer_that_waits_is_woken(place: Place, how: str) -> None:
    """By a push between its look and its wait, by one in it, by a delay or a lease that ends."""
    async with site(place) as at:
        await check_wakes(at, how)


@pytest.mark.invariant(7)
@KINDS
async def test_all_who_wait_are_woken_for_what_is_there(place: Place) -> None:
    """Three jobs that become ready in one step, three consumers."""
    async with site(place) as at:
        await check_all_wake(at)


@pytest.mark.invariant(7)
@KINDS
async def test_a_consumer_that_waits_asks_for_nothing(place: Place) -> None:
    """It sleeps on the server; in all that time it looks twice."""
    async with site(place) as at:
        await check_idle(at)


@pytest.mark.naive(7)
@HERE
async def test_who_looks_and_then_waits_for_news_sleeps_through_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job came between the two."""
    monkeypatch.setattr(queue, "Lane", naive.WaitsForNew)
    async with site(place) as at:
        with pytest.raises(AssertionError, match=r"a job was there \(push\)"):
            await check_wakes(at, "push", within=0.7)


@pytest.mark.naive(7)
@HERE
async def test_a_delayed_job_that_wakes_nobody_is_overslept(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consumer knows only the times that there were when it looked."""
    told = ("if not first or due < tonumber(first) then wake_up() end", "")
    monkeypatch.setattr(queue, "PUSH", naive.changed(scripts.PUSH, told))
    async with site(place) as at:
        with pytest.raises(AssertionError, match=r"a job was there \(delayed\)"):
            await check_wakes(at, "delayed", within=0.7)


@pytest.mark.naive(7)
@HERE
async def test_a_lease_that_nobody_watches_ends_unseen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job of one that was killed waits until somebody happens to look."""
    both = ("ipairs({delayed, leases})", "ipairs({delayed})")
    monkeypatch.setattr(lane, "TAKE", naive.changed(scripts.TAKE, both))
    async with site(place) as at:
        with pytest.raises(AssertionError, match=r"a job was there \(silence\)"):
            await check_wakes(at, "silence", within=0.7)


@pytest.mark.naive(7)
@HERE
async def test_a_token_for_one_wakes_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever pops it takes one job, and the others sleep beside two."""
    naive.pops_a_token(monkeypatch, lane)
    async with site(place) as at:
        with pytest.raises(AssertionError, match="a consumer sleeps"):
            await check_all_wake(at, within=0.7)


@pytest.mark.naive(7)
@HERE
async def test_polling_asks_all_the_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dozens of looks in less than half a second, and from each consumer."""
    monkeypatch.setattr(queue, "Lane", naive.Polls)
    async with site(place) as at:
        with pytest.raises(AssertionError, match="looks while nothing came"):
            await check_idle(at)


# 8: waiting changes no order


@pytest.mark.invariant(8)
@KINDS
async def test_jobs_grow_older_and_keep_their_order(place: Place) -> None:
    """Twelve jobs of three priorities, looked at six times in five minutes."""
    async with site(place) as at:
        await check_steady(at)


@pytest.mark.naive(8)
@HERE
async def test_rewritten_priorities_change_the_order(place: Place) -> None:
    """Steps round off what has been waited, and in the end all are as urgent as can be."""
    async with site(place, naive.Rewrites) as at:
        with pytest.raises(AssertionError, match="waiting has changed the order"):
            await check_steady(at)


# 9: pushed once


@pytest.mark.invariant(9)
@KINDS
async def test_a_push_that_is_repeated_is_done_once(place: Place) -> None:
    """By the same producer after a lost reply, by another, and after the job was done."""
    async with place.site(connect) as behind, site(place, second=behind.client) as at:
        await check_once(at, behind.line(at.key("ready")))


@pytest.mark.naive(9)
@HERE
async def test_a_producer_that_remembers_knows_nothing_of_a_lost_reply(place: Place) -> None:
    """Nor of what another producer has pushed."""
    make = naive.DedupesInTheProcess
    async with place.site(connect) as behind, site(place, make, second=behind.client) as at:
        with pytest.raises(AssertionError, match="two orders, charged 4 times"):
            await check_once(at, behind.line(at.key("ready")))


@pytest.mark.invariant(9)
@KINDS
async def test_an_id_is_known_for_its_window_and_then_forgotten(place: Place) -> None:
    """The memory of it ends by itself, so a long life leaves nothing behind."""
    async with site(place) as at:
        jobs = at.queue(dedupe_window=100)
        first = await jobs.push("job", priority=0, dedupe_id="a\0\n}é" * 100)
        once = jobs.lanes[0].once("a\0\n}é" * 100)
        assert 99_000 < await at.clients[0].pttl(once) <= 100_000
        await at.clients[0].pexpire(once, 0)
        assert await jobs.push("job", priority=0, dedupe_id="a\0\n}é" * 100) != first


# 10: what cannot be pushed


@pytest.mark.invariant(10)
@KINDS
async def test_what_cannot_be_pushed_is_refused_before_anything_is_written(place: Place) -> None:
    """NaN, infinities, texts, True, unknown types, too much; and any bytes that can be sent arrive."""
    async with site(place) as at:
        await check_bad_input(at)


@pytest.mark.invariant(10)
@KINDS
async def test_what_cannot_be_read_is_dead_and_the_others_go_on(place: Place) -> None:
    """A consumer with another codec finds it among the dead, as it came."""
    async with site(place) as at:
        await check_unreadable(at)


@pytest.mark.naive(10)
@HERE
async def test_text_and_nan_are_taken_for_priorities(place: Place) -> None:
    """float() makes a number of nearly everything."""
    async with site(place, naive.Trusts) as at:
        with pytest.raises(AssertionError, match="accepted"):
            await check_bad_input(at)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("aging", value) for value in (0, -1, math.nan, "1", True, 10**9)],
        *[("levels", value) for value in (0, 1.5, True, 10**10)],
        *[(name, value) for name in ("lease", "poll", "dedupe_window") for value in (0, math.inf, math.nan)],
        *[(name, value) for name in ("max_deliveries", "max_bytes") for value in (0, 1.5, True)],
        *[(name, value) for name in ("retry_delay", "max_retry_delay") for value in (-1, math.nan)],
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(field: str, value: Any) -> None:
    """Before anything is written, with the name of what is wrong."""
    with pytest.raises(ValueError, match=field):
        policy(**{field: value})


# What else a user meets


@KINDS
async def test_all_keys_of_a_queue_are_in_one_slot(place: Place) -> None:
    """And an empty queue leaves behind only what numbers, ranks and wakes."""
    async with site(place) as at:
        one, other = at.queue(), at.queue(name="others")
        assert len({key_slot(key.encode()) for key in [*one.lanes[0].keys, one.lanes[0].once("x")]}) == 1
        assert key_slot(one.lanes[0].keys[0].encode()) != key_slot(other.lanes[0].keys[0].encode())
        for number in range(20):
            await one.push(number, priority=number % 10, dedupe_id=str(number), delay=60 * (number % 2))
        await at.come_true("delayed")
        assert len(await at.served(one)) == 20
        left = await leaks.immortal_keys(at.clients[0].client, at.app, declared={"last", "step", "wake"})
        assert left == []


@KINDS
async def test_who_ages_otherwise_is_told(place: Place) -> None:
    """Ranks of two agings cannot be compared; when the queue is empty another one may begin."""
    async with site(place) as at:
        await at.queue(aging=10).push("job", priority=0)
        with pytest.raises(OtherAging, match="'jobs' has aging=10, the policy says inf") as told:
            await at.queue(aging=math.inf).push("job", priority=0)
        assert pickle.loads(pickle.dumps(told.value)).theirs == 10
        assert await at.served(at.queue(aging=10)) == ["job"]
        await at.queue(aging=math.inf).push("job", priority=0)
        with pytest.raises(OtherAging, match="has aging=inf, the policy says 10"):
            await at.queue(aging=10).push("job", priority=0)


@KINDS
async def test_stats_tell_what_is_where(place: Place) -> None:
    """Ready, delayed, lent, dead, and how long the first in line has waited."""
    async with site(place) as at:
        jobs = at.queue()
        assert await jobs.stats() == Stats(0, 0, 0, 0, 0.0)
        for number in range(3):
            await jobs.push(number, priority=number)
        await jobs.push("delayed", priority=0, delay=60)
        await jobs.receive("one", wait=False)
        (one,) = await jobs.receive("one", wait=False)
        await jobs.reject(one, "no")
        stats = await jobs.stats()
        assert (stats.ready, stats.delayed, stats.leased, stats.dead) == (1, 1, 1, 1)
        assert 0 < stats.first_seconds < 30


@HERE
async def test_events_tell_what_became_of_a_job(place: Place) -> None:
    """Sent, delivered after a wait, changed, cancelled, dead."""
    heard = Recorder()
    async with site(place) as at:
        jobs = at.queue(on_event=heard, max_deliveries=1)
        first = await jobs.push("a", priority=4, dedupe_id="a")
        await jobs.push("a", priority=4, dedupe_id="a")
        second = await jobs.push("b", priority=5)
        await jobs.change_priority(first, 3)
        await jobs.cancel(second)
        await jobs.cancel(second)
        (one,) = await jobs.receive("one", wait=False)
        await jobs.release(one, why="broken")
        assert [(each.id, each.duplicate) for each in heard.of(MessageSent)] == [
            (first, False),
            (first, True),
            (second, False),
        ]
        assert heard.of(PriorityChanged) == [PriorityChanged("jobs", first, 3, waited=True)]
        assert [each.waited for each in heard.of(JobCancelled)] == [True, False]
        (delivered,) = heard.of(JobDelivered)
        assert (delivered.priority, delivered.deliveries) == (3, 1)
        assert 0 < delivered.wait_seconds < 30
        assert heard.of(MessageDead) == [MessageDead("jobs", first, 1, "delivered too often")]
        await jobs.redrive(first)
        await jobs.receive("one", wait=False)
        await at.come_true("leases")
        await jobs.receive("one", wait=False)
        assert len(heard.of(MessageDead)) == 2


@KINDS
async def test_large_payloads_are_lent_one_after_the_other(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply has no more bytes than Redis can read at once, and at least one job."""
    monkeypatch.setattr(lane, "_MOST_BYTES", 100)
    monkeypatch.setattr(queue, "_MOST_BYTES", 100)
    async with site(place) as at:
        jobs = at.queue(max_deliveries=1)
        for number in range(4):
            await jobs.push(str(number) * 60, priority=0)
        sizes = []
        while found := await jobs.receive("one", 10, wait=False):
            sizes.append(len(found))
            for one in found:
                await jobs.reject(one, "large")
        assert sizes == [2, 2]
        assert len(await jobs.dead()) == 1


@HERE
async def test_a_full_redis_refuses_a_push_and_lets_consumers_work(
    place: Place, fresh_server: Server
) -> None:
    """So it can be emptied; of the refused push nothing is there."""
    async with site(Place("single", fresh_server, None, place.app)) as at:
        jobs = at.queue()
        await jobs.push("job", priority=0)
        fresh_server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(OutOfMemoryError):
            await jobs.push("job", priority=0)
        (one,) = await jobs.receive("one", wait=False)
        await jobs.extend(one)
        await jobs.release(one)
        assert await at.served(jobs) == ["job"]


@KINDS
async def test_a_worker_of_competing_consumer_serves_it_in_order(place: Place) -> None:
    """One at a time, the most urgent first; what fails is tried again, and then dead."""
    async with site(place) as at:
        jobs = at.queue(max_deliveries=2, poll=0.1)
        for number in (5, 9, 1, 3):
            await jobs.push(number, priority=number)
        done: list[int] = []

        async def handle(delivery: Any) -> Effect:
            done.append(delivery.payload)
            if delivery.payload == 9:
                raise ValueError("no nine")
            return Effect("redis.call('RPUSH', KEYS[1], ARGV[1])", [jobs.lanes[0].key("done")], [done[-1]])

        async with workers.Worker(jobs.lanes, handle, timeout=5):
            await eventually(lambda: done.count(9) == 2, within=10)

            async def is_dead() -> bool:
                return bool((await jobs.stats()).dead)

            await eventually(is_dead, within=5)
        assert done == [1, 3, 5, 9, 9]
        assert await at.clients[0].lrange(jobs.lanes[0].key("done"), 0, -1) == [b"1", b"3", b"5"]
        (dead,) = await jobs.dead()
        assert dead.history == ("1 ValueError", "2 ValueError")


def test_any_history_is_that_of_a_heap_with_leases() -> None:
    """Pushes, receives, returns, silence, changes and cancellations, beside a model in Python."""
    AgainstTheModel.open()
    try:
        run = settings(max_examples=40, stateful_step_count=25)
        machine: Any = AgainstTheModel.TestCase
        machine.settings = run
        machine().runTest()
    finally:
        AgainstTheModel.close()


def test_the_bound_of_a_policy_is_that_of_its_least_urgent_job() -> None:
    """Priority times aging; a single level waits for nobody, and a strict one without end."""
    assert policy(aging=10, levels=10).bound == 90
    assert policy(aging=10, levels=1).bound == 0
    assert policy(aging=math.inf).bound == math.inf
    assert Policy(aging=math.inf, levels=1).bound == 0


# Faults


@pytest.mark.invariant(4)
@pytest.mark.fault("consumers are killed (SIGKILL) with 25 jobs in their hands, 20 times in 5,000 jobs")
async def test_twenty_kills_lose_no_job(
    server: Server, app: str, ledger: Callable[..., Ledger], spawn: Callable[..., Worker]
) -> None:
    """Each job's effect is there once, though 500 jobs were in the hands of consumers that died."""
    book = ledger(within=15, bound="each effect once")
    program = spawn("tests.message_queue.priority_queue_processes", server.url, f"orders-{app}")
    async with opened(server.url, max_connections=8) as client:
        nursery = faults.Nursery(client, program, f"orders-{app}")
        await faults.killed_in_jobs(nursery, app, book)
        await faults.killed_with_what_they_popped(nursery, app, book.without("ZPOPMIN, then work"))
    book.held("the lease ended, and the job was back at its place; effect and acknowledgement are one step")


@pytest.mark.invariant(4)
@pytest.mark.fault("a consumer is paused (SIGSTOP) for longer than its lease, with a job in its hands")
async def test_a_consumer_that_wakes_up_late_changes_nothing(
    server: Server, app: str, ledger: Callable[..., Ledger], spawn: Callable[..., Worker]
) -> None:
    """Five pauses: another consumer does the job, and the late one is refused."""
    book = ledger(bound="each effect once")
    async with opened(server.url) as client:
        program = spawn("tests.message_queue.priority_queue_processes", server.url, f"orders-{app}")
        nursery = faults.Nursery(client, program, f"orders-{app}")
        await faults.paused_in_jobs(nursery, f"{app}-ours", book, "sleeper", "refused")
        without = book.without("an effect that asks for no owner")
        await faults.paused_in_jobs(nursery, f"{app}-naive", without, "unfenced", "not asked")
    book.held("each delivery has an owner of its own, and the acknowledgement asks for it")


@pytest.mark.invariant(4, 9)
@pytest.mark.fault("connections are reset every 200 ms, and just after a push was carried out")
async def test_resets_lose_and_double_nothing(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Producers push again under the same id, consumers look again; nobody stays deaf."""
    book = ledger(within=10, bound="each effect once")
    await faults.under_resets(server, app, book, PriorityQueue, b"once-")
    without = book.without("ZADD again after an error, ZPOPMIN, then work")
    await faults.under_resets(server, f"{app}-naive", without, naive.PopsAndAdds, b"ZADD")
    book.held("a push is known by its id, so is its job; producers and consumers go on by themselves")


@pytest.mark.invariant(9)
@pytest.mark.fault("the reply to a push is lost after it was done")
async def test_a_lost_reply_of_a_push_adds_no_second_job(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Twenty pushes are repeated, and twenty jobs are there."""
    book = ledger(bound="each job once")
    for books, once in ((book, True), (book.without("pushed again without an id"), False)):
        name = f"{app}-{once}"
        async with proxy(server.port, books) as line, opened(line.url) as client:
            jobs = PriorityQueue("jobs", client, POLICY, app=name)
            await jobs.push("warm", priority=0)
            for number in range(20):
                with line.lose_reply(b"EVALSHA"):
                    await faults.push_all(jobs, [number], books, once=once)
            while found := await jobs.receive("one", wait=False):
                await jobs.acknowledge(found[0])
                if found[0].payload != "warm":
                    books.effect(found[0].payload)
    book.held("the second push finds the id of the first, and is told the same job")


@pytest.mark.invariant(2, 4)
@pytest.mark.fault("Redis is killed (SIGKILL) and restarted; appendonly, appendfsync always")
async def test_a_restart_with_a_file_loses_no_job(app: str, ledger: Callable[..., Ledger]) -> None:
    """Three kills while jobs are pushed and done: producer and consumer go on by themselves."""
    book = ledger(within=15, bound="each effect once")
    with Server("--appendonly", "yes", "--appendfsync", "always") as own:
        await faults.after_a_restart(own.url, app, book, own, kills=3, consume=True)
    with Server() as own:
        without = book.without("the same queue without a file")
        await faults.after_a_restart(own.url, f"{app}-naive", without, own, kills=1, consume=False)
    book.held("jobs, leases and effects were in the file; producer and consumer go on by themselves")


@pytest.mark.fault("Redis is killed (SIGKILL) and restarted; no file")
async def test_a_restart_without_a_file_loses_what_waited(app: str, ledger: Callable[..., Ledger]) -> None:
    """All that waited is gone, ids go on above the old ones, and the next jobs are done."""
    book = ledger(lost=200, within=15, bound="what is pushed afterwards is done")
    with Server() as own:
        counted = [own.command("INCR", "sequence") for _ in range(200)]
        await faults.after_a_restart(own.url, app, book, own, kills=1, consume=False)
        again = [own.command("INCR", "sequence") for _ in range(20)]
    twice = len(set(counted) & set(again))
    book.naive(f"ids from INCR: the same loss, and {twice} of the next 20 ids had been given out before")
    assert book.lost == 200, "the test does not show what it is about"
    book.held("the next 20 jobs; what waited was nowhere else")


@pytest.mark.fault("a primary of the 3+3 cluster is killed (SIGKILL) under load")
async def test_a_queue_goes_on_without_its_primary(app: str, ledger: Callable[..., Ledger]) -> None:
    """What a failover has lost is counted; the rest is done, in order."""
    book = ledger(lost=500, duplicated=500, within=20, bound="what is lost is counted")
    with Cluster("--cluster-node-timeout", "1000") as own:
        other = await faults.primary_killed(own, app, book)
    book.held(f"the promoted replica went on; replication lagged by little: {book.lost} lost this time")
    book.naive(f"ZADD again after an error, ZPOPMIN, then work: {other.damage}")


@pytest.mark.invariant(3)
@pytest.mark.fault("a flood of urgent jobs: two come for each one that is served, for 300 s (queue time)")
async def test_a_flood_starves_nobody(server: Server, app: str, ledger: Callable[..., Ledger]) -> None:
    """Ten jobs of all priorities are served within their bounds, however much comes."""
    book = ledger(bound="each served within priority * aging of flood")
    left = {}
    for kind in (PriorityQueue, naive.Lists):
        waiting = {f"job {priority}" for priority in range(1, 10)}
        async with site(Place("single", server, None, f"{app}-{kind.__name__}"), kind) as at:
            jobs = at.queue(aging=10)
            for each in sorted(waiting):
                await jobs.push(each, priority=int(each[-1]))
            for _ in range(30):
                await at.age(10)
                for _ in range(2):
                    await jobs.push("urgent", priority=0)
                waiting -= set(await at.served(jobs, 1))
        left[kind] = waiting
    book.injected(60)
    for priority in range(1, 10):
        book.acked(f"job {priority}")
        if f"job {priority}" not in left[PriorityQueue]:
            book.effect(f"job {priority}")
    assert len(left[naive.Lists]) == 9
    book.naive(f"a list for each priority: {len(left[naive.Lists])} of 9 jobs still wait at the end")
    book.held("what comes later than priority * aging is served later, however urgent")
