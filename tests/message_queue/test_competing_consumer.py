"""The proof of competing_consumer: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import pytest
from hypothesis import settings
from redis.crc import key_slot

from patterns.clock import ManualClock
from patterns.embedded import Cluster, Server
from patterns.events import Recorder
from patterns.keyspace import opened
from patterns.message_queue.competing_consumer import (
    Delivery,
    Effect,
    LeaseEnded,
    MessageDead,
    MessageFailed,
    MessageHandled,
    OtherPartitions,
    Policy,
    Queue,
    Reject,
    Worker,
)
from patterns.message_queue.competing_consumer.room import Room
from patterns.message_queue.competing_consumer.together import Together
from tests.cache.write_behind_faults import Nursery
from tests.eventually import eventually
from tests.faults import leaks
from tests.message_queue import competing_consumer_faults as faults
from tests.message_queue import competing_consumer_naive as naive
from tests.message_queue.competing_consumer_checks import (
    check_a_silent_owner_is_followed,
    check_a_worker_keeps_its_message,
    check_a_worker_takes_what_it_can,
    check_an_effect_is_made_once,
    check_bad_payloads,
    check_deliveries_are_counted,
    check_handlers_that_do_not_end,
    check_keys_keep_their_order,
    check_nothing_is_lost,
    check_nothing_piles_up,
    check_only_the_owner,
    check_sent_once,
    check_who_has_something_is_not_forgotten,
    check_who_waits_is_woken,
)
from tests.message_queue.competing_consumer_model import AgainstTheModel
from tests.message_queue.competing_consumer_naive import with_lanes
from tests.message_queue.competing_consumer_processes import POISON, POLICY
from tests.message_queue.competing_consumer_site import one, site
from tests.places import KINDS, Place

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.faults import Ledger
    from tests.message_queue.competing_consumer_site import Site

HERE = pytest.mark.parametrize("kind", ["single"])


def variants(*cases: tuple[Any, str]) -> pytest.MarkDecorator:
    """Return variants of a queue or a worker, and what the check says of each."""
    return pytest.mark.parametrize(("variant", "complaint"), cases, ids=[each.__name__ for each, _ in cases])


@asynccontextmanager
async def with_naive(place: Place, variant: Any) -> AsyncIterator[Site]:
    """Open a site whose queue or worker is the variant, and whose checks do not wait for long."""
    queue, worker = (variant, Worker) if issubclass(variant, Queue) else (Queue, variant)
    async with site(place, queue, worker) as at:
        at.patience = 0.4
        yield at


# 1: nothing is lost


@pytest.mark.invariant(1)
@KINDS
async def test_a_message_is_delivered_until_it_is_done(place: Place) -> None:
    """Receivers that vanish, and a group that is destroyed, cost no message."""
    async with site(place) as at:
        await check_nothing_is_lost(at)


@pytest.mark.naive(1)
@HERE
@variants(
    (with_lanes(naive.PopsFirst), "lost"),
    (with_lanes(naive.GroupFromNow), "before the group was there"),
    (with_lanes(naive.NeverLooksBack), "lost"),
)
async def test_popping_first_or_listening_late_loses(place: Place, variant: Any, complaint: str) -> None:
    """What is popped dies with its worker, and what a group never saw is never seen."""
    async with with_naive(place, variant) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_nothing_is_lost(at)


# 2: one receiver's for a time


@pytest.mark.invariant(2)
@KINDS
async def test_a_worker_keeps_its_message_for_as_long_as_it_takes(place: Place) -> None:
    """For ten times the visibility time-out nobody else is given the message."""
    async with site(place) as at:
        await check_a_worker_keeps_its_message(at)


@pytest.mark.invariant(2)
@KINDS
async def test_a_silent_owner_is_followed_in_time(place: Place) -> None:
    """The message is another's after the visibility time-out, and neither sooner nor much later."""
    async with site(place) as at:
        await check_a_silent_owner_is_followed(at)


@pytest.mark.naive(2)
@HERE
@variants((naive.NeverRenews, "is renewed"))
async def test_without_renewals_a_long_message_is_anothers(
    place: Place, variant: Any, complaint: str
) -> None:
    """Whoever trusts that handlers are quick has two of them at work."""
    async with with_naive(place, variant) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_a_worker_keeps_its_message(at)


@pytest.mark.naive(2)
@HERE
@variants(
    (with_lanes(naive.TakesWhatIsPending), "two have it"), (with_lanes(naive.NeverLooksBack), "nobody ever")
)
async def test_who_claims_at_once_or_never_breaks_the_lease(
    place: Place, variant: Any, complaint: str
) -> None:
    """Two have the message, or nobody ever has it again."""
    async with with_naive(place, variant) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_a_silent_owner_is_followed(at)


# 3: only the owner


@pytest.mark.invariant(3)
@KINDS
async def test_only_the_owner_can_settle_a_message(place: Place) -> None:
    """A late acknowledgement is refused, also where the same consumer has the message again."""
    async with site(place) as at:
        await check_only_the_owner(at)


@pytest.mark.naive(3)
@HERE
@variants((with_lanes(naive.AnybodyAcknowledges), "was not refused"))
async def test_a_bare_xack_takes_the_message_from_its_owner(
    place: Place, variant: Any, complaint: str
) -> None:
    """XACK asks nobody whose message it is."""
    async with with_naive(place, variant) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_only_the_owner(at)


# 4: deliveries are counted


@pytest.mark.invariant(4)
@KINDS
async def test_what_kills_its_workers_is_a_dead_letter_in_the_end(place: Place) -> None:
    """Deliveries are counted when they are handed out, and the dead letter can be sent again."""
    async with site(place) as at:
        await check_deliveries_are_counted(at)


@pytest.mark.naive(4)
@HERE
@variants((with_lanes(naive.CountsErrorsOnly), "for ever"))
async def test_counting_errors_lets_poison_kill_for_ever(place: Place, variant: Any, complaint: str) -> None:
    """A worker that died has counted nothing."""
    async with with_naive(place, variant) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_deliveries_are_counted(at)


# 5: once


@pytest.mark.invariant(5)
@KINDS
async def test_one_dedupe_id_is_one_message(place: Place) -> None:
    """Also where two processes send it."""
    async with site(place) as at:
        await check_sent_once(at)


@pytest.mark.invariant(5)
@KINDS
async def test_an_effect_is_made_once_and_by_the_owner(place: Place) -> None:
    """Whoever was too slow makes none."""
    async with site(place) as at:
        await check_an_effect_is_made_once(at)


@pytest.mark.naive(5)
@HERE
@variants((naive.LocalDedupe, "two messages"))
async def test_what_one_process_remembers_another_sends(place: Place, variant: Any, complaint: str) -> None:
    """A set of ids in the sender is one sender's."""
    async with with_naive(place, variant) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_sent_once(at)


@pytest.mark.naive(5)
@HERE
@variants((with_lanes(naive.EffectThenAcknowledgement), "made"))
async def test_an_effect_before_its_acknowledgement_is_made_twice(
    place: Place, variant: Any, complaint: str
) -> None:
    """What is done before it is acknowledged is done again by whoever is late."""
    async with with_naive(place, variant) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_an_effect_is_made_once(at)


# 6: bounded


@pytest.mark.invariant(6)
@KINDS
async def test_nothing_piles_up_and_nothing_is_thrown_away(place: Place) -> None:
    """The stream is empty when all is done, and refuses when it is full."""
    async with site(place) as at:
        await check_nothing_piles_up(at)


@pytest.mark.invariant(6)
@KINDS
async def test_a_consumer_that_leaves_gives_back_what_it_has(place: Place) -> None:
    """XGROUP DELCONSUMER would drop it."""
    async with site(place) as at:
        await check_who_has_something_is_not_forgotten(at)


@pytest.mark.naive(6)
@HERE
@variants((with_lanes(naive.AcknowledgesOnly), "stays in"), (naive.Trims, "without a bound|is gone"))
async def test_streams_that_are_only_acknowledged_grow_and_trimmed_ones_lose(
    place: Place, variant: Any, complaint: str
) -> None:
    """XACK alone keeps everything; MAXLEN drops what is pending."""
    async with with_naive(place, variant) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_nothing_piles_up(at)


@pytest.mark.naive(6)
@HERE
@variants((with_lanes(naive.DropsConsumers), "has a message"))
async def test_a_consumer_that_is_deleted_takes_its_messages_along(
    place: Place, variant: Any, complaint: str
) -> None:
    """XGROUP DELCONSUMER drops what is pending."""
    async with with_naive(place, variant) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_who_has_something_is_not_forgotten(at)


# 7: bounded prefetch, graceful stop


@pytest.mark.invariant(7)
@KINDS
async def test_a_worker_takes_what_it_can_and_gives_back_what_it_has_not_begun(place: Place) -> None:
    """Others have the rest, and have what was prefetched before its handlers have ended."""
    async with site(place) as at:
        await check_a_worker_takes_what_it_can(at)


@pytest.mark.invariant(7)
@KINDS
async def test_handlers_that_do_not_end_are_cancelled(place: Place) -> None:
    """After `drain` their messages are another's, and counted."""
    async with site(place) as at:
        await check_handlers_that_do_not_end(at)


@pytest.mark.naive(7)
@HERE
@variants((naive.TakesAHundred, "messages are taken"))
async def test_a_greedy_worker_keeps_messages_from_idle_ones(
    place: Place, variant: Any, complaint: str
) -> None:
    """It prefetches all there is."""
    async with with_naive(place, variant) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_a_worker_takes_what_it_can(at)


@pytest.mark.naive(7)
@HERE
@variants((naive.JustStops, "has a message"))
async def test_a_worker_that_just_stops_keeps_its_messages(
    place: Place, variant: Any, complaint: str
) -> None:
    """They are nobody's until the time-out."""
    async with with_naive(place, variant) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_handlers_that_do_not_end(at)


# 8: woken at once, in order


@pytest.mark.invariant(8)
@KINDS
async def test_who_waits_is_woken_at_once(place: Place) -> None:
    """Nobody polls."""
    async with site(place) as at:
        await check_who_waits_is_woken(at)


@pytest.mark.invariant(8)
@KINDS
async def test_messages_of_one_key_are_handed_out_in_order(place: Place) -> None:
    """They are in one partition, and other keys in others."""
    async with site(place) as at:
        await check_keys_keep_their_order(at)


@pytest.mark.naive(8)
@HERE
@variants((naive.AnyPartition, "out of order"))
async def test_messages_that_are_spread_evenly_have_no_order(
    place: Place, variant: Any, complaint: str
) -> None:
    """Partitions know nothing of each other."""
    async with with_naive(place, variant) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_keys_keep_their_order(at)


@pytest.mark.naive(8)
@HERE
@variants((with_lanes(naive.SleepsAndLooks), "is woken"))
async def test_who_sleeps_and_looks_is_late(place: Place, variant: Any, complaint: str) -> None:
    """A message waits for the next look."""
    async with with_naive(place, variant) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_who_waits_is_woken(at)


# 9: bad payloads


@pytest.mark.invariant(9)
@KINDS
async def test_bad_payloads_are_refused_before_anything_is_written(place: Place) -> None:
    """NaN, 5 MB, surrogates and objects are NotSendable; no bytes at all are a payload."""
    async with site(place) as at:
        await check_bad_payloads(at)


@pytest.mark.naive(9)
@HERE
@variants((naive.TextOfAnything, "was taken"))
async def test_the_text_of_anything_is_sent(place: Place, variant: Any, complaint: str) -> None:
    """What nobody can use is found out by whoever receives it."""
    async with with_naive(place, variant) as at:
        with pytest.raises(AssertionError, match=complaint):
            await check_bad_payloads(at)


# What else must hold


@KINDS
async def test_all_keys_of_a_partition_are_in_one_slot_and_partitions_are_spread(place: Place) -> None:
    """The effect's keys and the dedupe ids, too."""
    async with site(place) as at:
        queue = at.queue(partitions=8)
        for number in range(40):
            await queue.send(number, dedupe_id=f"id {number}")
        for lane in queue.lanes:
            assert (
                len({key_slot(key.encode()) for key in [*lane.keys, lane.key("x"), lane._key("sent.1")]}) == 1
            )
        assert len({key_slot(lane.keys[0].encode()) for lane in queue.lanes}) == 8
        assert sorted(await at.served(queue)) == list(range(40))


@KINDS
async def test_a_failed_message_waits_longer_each_time_and_is_given_up(place: Place) -> None:
    """The delay doubles up to its bound; after max_deliveries the message is a dead letter at once."""
    heard = Recorder()
    async with site(place) as at:
        queue = at.queue(max_deliveries=3, retry_delay=0.002, max_retry_delay=0.003, on_event=heard)
        await queue.send("bad")

        async def handle(delivery: Delivery) -> None:
            raise LookupError(delivery.payload)

        async with Worker(queue.lanes, handle, timeout=5, on_event=heard):
            (letter,) = await eventually(queue.dead, within=5)
    assert (letter.why, letter.deliveries) == ("delivered too often", 3)
    assert letter.history == ("1 LookupError", "2 LookupError", "3 LookupError")
    delays = [event.delay_seconds for event in heard.of(MessageFailed)]
    for delay, longest in zip(delays, [0.002, 0.003, 0.003], strict=True):
        assert longest / 2 <= delay <= longest
    assert [event.id for event in heard.of(MessageDead)] == [letter.id]


@KINDS
async def test_what_comes_back_later_is_not_seen_before(place: Place) -> None:
    """A delay is kept by the server's clock, and is at most the visibility time-out."""
    async with site(place) as at:
        queue = at.queue(visibility=60)
        await queue.send("x")
        await queue.release(await one(queue, "a"), delay=1000, why="not now")
        (waiting,) = await at.pending()
        assert waiting["consumer"] == b"nobody"
        assert waiting["time_since_delivered"] < 5000
        assert await at.served(queue) == []
        await at.idle(61)
        assert (await one(queue, "b")).deliveries == 2


@KINDS
async def test_a_handler_that_rejects_or_cannot_be_given_its_message(place: Place) -> None:
    """Reject makes a dead letter now; what no codec can read never meets a handler."""
    async with site(place) as at:
        queue, met = at.queue(), []
        raw: Any = at.clients[0].xadd(at.key("stream"), {"payload": b"\xff"})
        await raw
        raw = at.clients[0].xadd(at.key("stream"), {"something": "else"})
        await raw
        await queue.send("unknown kind")

        async def handle(delivery: Delivery) -> None:
            met.append(delivery.payload)
            raise Reject("no such kind")

        async with Worker(queue.lanes, handle, timeout=5):
            letters = await eventually(lambda: _three(queue), within=5)
        assert [letter.why.split(":")[0] for letter in letters] == [
            "cannot be read",
            "cannot be read",
            "no such kind",
        ]
        assert met == ["unknown kind"]
        assert letters[0].payload == b"\xff"
        assert await queue.redrive(*letters) == 3


async def _three(queue: Any) -> Any:
    letters = await queue.dead()
    return letters if len(letters) == 3 else None


@KINDS
async def test_in_a_batch_only_the_culprit_is_counted(place: Place) -> None:
    """A batch that fails is handled one by one, so nine good messages are done at their first delivery."""
    async with site(place) as at:
        queue, sizes = at.queue(max_deliveries=2), []
        await queue.send_many(range(10))

        async def handle(deliveries: list[Delivery]) -> None:
            sizes.append(len(deliveries))
            if any(each.payload == 7 for each in deliveries):
                raise ValueError

        async with Worker(queue.lanes, handle, timeout=5, batch=10):
            (letter,) = await eventually(queue.dead, within=5)
            await eventually(lambda: _empty(queue), within=5)
        assert (letter.payload, letter.deliveries) == (7, 2)
        assert sizes == [10, *[1] * 10, 1]


async def _empty(queue: Any) -> bool:
    stats = await queue.stats()
    return bool(stats.depth == stats.pending == 0)


@HERE
async def test_a_handler_whose_lease_is_lost_is_cancelled(place: Place) -> None:
    """Somebody else has the message, so there is no point in going on; the others go on."""
    heard = Recorder()
    async with site(place) as at:
        clock, began, cancelled = ManualClock(), asyncio.Event(), []
        queue = at.queue()
        await queue.send("x")

        async def handle(delivery: Delivery) -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(delivery.payload)
                raise

        async with Worker(queue.lanes, handle, timeout=None, clock=clock, on_event=heard, drain=0) as worker:
            await began.wait()
            await at.idle(61)
            other = await one(at.queue(1), "other")
            await clock.advance(20)
            await eventually(lambda: worker.held == 0, within=3)
            assert cancelled == ["x"]
            await at.queue(1).acknowledge(other)
    assert [event.deliveries for event in heard.of(LeaseEnded)] == [1]
    assert heard.of(MessageHandled) == []


@HERE
async def test_a_handler_may_run_in_a_thread_and_renewals_go_on(place: Place) -> None:
    """What blocks belongs into a thread: there it takes three time-outs, and nobody else has the message."""
    async with site(place) as at:
        queue = at.queue(visibility=0.3, max_deliveries=1)
        await queue.send("x")
        done: list[int] = []
        released = threading.Event()

        async def handle(delivery: Delivery) -> None:
            await asyncio.to_thread(released.wait, 10)
            done.append(delivery.deliveries)

        async with Worker(queue.lanes, handle, timeout=None) as worker:
            await eventually(lambda: worker.held == 1, within=3)
            watch = asyncio.get_running_loop().time() + 0.9
            while asyncio.get_running_loop().time() < watch:
                assert await at.queue(1).lanes[0].receive("other", 1, wait=True) == []
            released.set()
            await eventually(lambda: worker.held == 0, within=3)
        assert done == [1]


@HERE
async def test_a_handler_that_blocks_the_loop_loses_its_message(place: Place) -> None:
    """Nothing renews meanwhile: another receiver has it, and the late acknowledgement is refused."""
    heard = Recorder()
    async with site(place) as at:
        queue = at.queue(visibility=0.2)
        await queue.send("x")
        names = []

        def another(url: str) -> None:
            async def receive() -> None:
                async with opened(url) as client:
                    there = Queue("jobs", client, queue.policy, app=at.app)
                    while not (found := await there.lanes[0].receive("another", 1)):
                        pass
                    names.append(found[0].deliveries)

            asyncio.run(receive())

        async def handle(delivery: Delivery) -> None:
            if delivery.deliveries == 1:
                thread = threading.Thread(target=another, args=[place.url])
                thread.start()
                thread.join(10)  # as a long computation would, it lets no other task run

        async with Worker(queue.lanes, handle, timeout=None, on_event=heard) as worker:
            await eventually(lambda: bool(names) and worker.held == 0, within=5)
    assert names == [2]
    assert heard.of(LeaseEnded), heard.events


@KINDS
async def test_an_effect_that_fails_is_the_messages_failure(place: Place) -> None:
    """The message stays, and is tried again; keys of another slot are refused."""
    async with site(place) as at:
        queue = at.queue(max_deliveries=2)
        await queue.send("wrong")

        async def handle(delivery: Delivery) -> Effect:
            lane = queue.lane_of(delivery)
            if delivery.deliveries == 1:
                return Effect("redis.call('NO SUCH', KEYS[1])", [lane.key("x")])
            return Effect("redis.call('INCR', KEYS[1])", ["elsewhere", lane.key("x")])

        async with Worker(queue.lanes, handle, timeout=5):
            (letter,) = await eventually(queue.dead, within=5)
        assert letter.history == ("1 ResponseError", "2 ValueError")


@HERE
async def test_a_reason_is_one_line_whatever_it_says(place: Place) -> None:
    """Neither a line feed nor a lone surrogate in it keeps a message from being given up."""
    async with site(place) as at:
        queue = at.queue()
        await queue.send("x")
        await queue.release(await one(queue, "a"), why="odd\n2 \ud800" + "!" * 1000)
        await queue.reject(await one(at.queue(1), "b"), "no\nuse")
        (letter,) = await queue.dead()
        assert letter.why == "no use"
        assert [line[:8] for line in letter.history] == ["1 odd 2 ", "2 no use"]
        assert len(letter.history[0]) < 210


@KINDS
async def test_many_lanes_share_one_workers_room(place: Place) -> None:
    """A worker of one handler serves four partitions, and each is heard."""
    async with site(place) as at:
        queue, got = at.queue(partitions=4), []

        async def handle(delivery: Delivery) -> None:
            got.append(delivery.payload)

        async with Worker(queue.lanes, handle, timeout=5) as worker:
            for number in range(40):
                await queue.send(number)
            await eventually(lambda: len(got) == 40, within=5)
            assert worker.held <= 4
        assert sorted(got) == list(range(40))


@HERE
async def test_another_number_of_partitions_is_refused(place: Place) -> None:
    """Who counts otherwise would look into other streams, or leave some behind."""
    async with site(place) as at:
        await at.queue(partitions=2).send("x")
        other = at.queue(1, partitions=3)
        for call in (other.send("y"), other.stats(), other.lanes[0].receive("a", 1)):
            with pytest.raises(OtherPartitions, match="has 2 partitions, the policy says 3"):
                await call
        with pytest.raises(OtherPartitions):
            async with Worker(other.lanes, AsyncMock(), timeout=1):
                pytest.fail("it began")


@HERE
async def test_a_worker_that_closes_has_no_consumer_and_can_begin_again(place: Place) -> None:
    """Its name goes when it has nothing; twice at a time it does not run."""
    async with site(place) as at:
        queue, got = at.queue(), []

        async def handle(delivery: Delivery) -> None:
            got.append(delivery.payload)

        worker = Worker(queue.lanes, handle, timeout=5, name="w.1")
        for number in range(2):
            async with worker:
                with pytest.raises(RuntimeError, match="running already"):
                    await worker.__aenter__()
                await queue.send(number)
                await eventually(lambda: len(got) == number + 1, within=5)  # noqa: B023  asked at once
            assert await at.clients[0].xinfo_consumers(at.key("stream"), "workers") == []


@HERE
async def test_events_tell_the_life_of_a_message(place: Place) -> None:
    """From the first send to the end of the worker."""
    heard = Recorder()
    async with site(place) as at:
        queue = at.queue(on_event=heard)
        await queue.send("x", dedupe_id="1")
        await queue.send("x", dedupe_id="1")

        async def handle(delivery: Delivery) -> None:
            if delivery.deliveries == 1:
                raise ValueError

        async with Worker(queue.lanes, handle, timeout=5, on_event=heard):
            await eventually(lambda: heard.of(MessageHandled), within=5)
    assert heard.names() == [
        "MessageSent",
        "MessageSent",
        "GroupCreated",
        "MessageFailed",
        "MessageHandled",
        "WorkerStopped",
    ]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"visibility": 0}, "visibility must be a finite number >= 0.001"),
        ({"visibility": float("nan")}, "visibility"),
        ({"max_deliveries": 0}, "max_deliveries must be a whole number >= 1"),
        ({"partitions": 0}, "partitions"),
        ({"capacity": True}, "capacity"),
        ({"max_bytes": 1.5}, "max_bytes"),
        ({"max_retry_delay": 31}, "max_retry_delay must be a finite number >= 0 and <= 30"),
        ({"poll": -1}, "poll"),
        ({"dedupe_window": "5"}, "dedupe_window"),
    ],
)
def test_a_policy_names_what_it_refuses(changes: dict[str, Any], complaint: str) -> None:
    """Field, bound and value."""
    with pytest.raises(ValueError, match=complaint):
        Policy(**({"visibility": 30} | changes))


@HERE
@pytest.mark.parametrize("name", ["", "a/b", "a b", "é"])
async def test_a_name_that_could_reach_into_another_queue_is_refused(place: Place, name: str) -> None:
    """Names are plain, and consumers are not called as those who have nothing."""
    async with site(place) as at:
        with pytest.raises(ValueError, match="name must be"):
            at.queue(name=name)
        with pytest.raises(ValueError, match="consumer must be"):
            await at.queue().lanes[0].receive("nobody", 1)
        for wrong in ("", "\ud800"):
            with pytest.raises(ValueError, match=r"key must|dedupe_id must|dedupe must"):
                await at.queue().send(1, dedupe_id=wrong)


@pytest.mark.parametrize("late", [False, True])
async def test_a_place_is_not_lost_with_who_waits_for_it(late: bool) -> None:
    """Whoever is cancelled, before or just after the place is his, leaves it to the next in line."""
    room = Room(1)
    assert await room.take()
    first, second = asyncio.create_task(room.take()), asyncio.create_task(room.take())
    await asyncio.sleep(0)
    if late:
        room.give(1)
        first.cancel()
    else:
        first.cancel()
        room.give(1)
    assert await asyncio.wait_for(second, 3)
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    assert room.take_more() == 0
    room.give(1)
    assert room.take_more() == 1


class Incomparable:
    """A payload as arrays are: comparing it is an error."""

    __hash__ = None  # type: ignore[assignment]  # nor can it be hashed

    def __eq__(self, other: object) -> bool:
        raise TypeError("ambiguous")


async def test_payloads_are_never_compared() -> None:
    """A payload that refuses to be compared is acknowledged, and told as lost, like any other."""
    kept, lost = (Delivery(name, Incomparable(), 1, name) for name in ("kept", "lost"))
    again = Delivery("lost", Incomparable(), 1, "lost")
    together = Together(AsyncMock(acknowledge=AsyncMock(return_value=[again])))
    assert list(await together.acknowledge([kept, lost])) == [lost]


async def test_acknowledgements_go_together_and_whoever_is_cancelled_takes_none_along() -> None:
    """What comes while a call is under way goes in the next one, also for a caller who was cancelled."""
    told: list[list[str]] = []
    go = asyncio.Event()
    a, b, c = (Delivery(name, None, 1, None) for name in "abc")

    async def acknowledge(deliveries: list[Delivery]) -> list[Delivery]:
        told.append([each.id for each in deliveries])
        await go.wait()
        return [each for each in deliveries if each is c]

    together = Together(AsyncMock(acknowledge=acknowledge))
    tasks = [asyncio.create_task(together.acknowledge([a]))]
    await eventually(lambda: told, within=3)
    tasks += [asyncio.create_task(together.acknowledge([each])) for each in (b, c)]
    await asyncio.sleep(0)
    for each in tasks[:2]:
        each.cancel()
    await asyncio.gather(*tasks[:2], return_exceptions=True)
    go.set()
    assert await asyncio.wait_for(tasks[2], 3) == [c]
    assert told == [["a"], ["b", "c"]]


@HERE
async def test_a_receiver_that_is_cancelled_at_every_step_loses_nothing(place: Place) -> None:
    """What it was handed and never saw is another's after its time."""
    async with site(place) as at:
        queue = at.queue()
        await queue.send_many(range(12))
        for steps in range(12):
            task = asyncio.create_task(queue.lanes[0].receive(f"c.{steps}", 1, wait=False))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert leaks.in_use(at.clients[0]) == 0

        async def all_there() -> bool:
            await at.idle(61)
            return bool((await queue.stats()).depth + len(await at.pending()) == 12)

        await eventually(all_there, within=3)
        assert sorted(await at.served(at.queue(1))) == list(range(12))


@HERE
async def test_a_worker_that_is_cancelled_while_it_closes_leaves_no_task(place: Place) -> None:
    """Its handlers are cancelled too, and their messages are another's."""
    async with site(place) as at:
        queue, began = at.queue(), asyncio.Event()
        await queue.send("x")

        async def handle(delivery: Delivery) -> None:
            began.set()
            await asyncio.Event().wait()

        async def run() -> None:
            async with Worker(queue.lanes, handle, timeout=None, drain=100):
                await began.wait()

        task = asyncio.create_task(run())
        await began.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await one(at.queue(1), "other")).payload == "x"


class TestAgainstTheModel(AgainstTheModel.TestCase):  # type: ignore[misc, valid-type]  # Hypothesis makes it
    """Any order of sends, receipts, silences, and settlements by anybody ends as in a dictionary."""

    settings = settings(max_examples=25, stateful_step_count=15)

    @classmethod
    def setUpClass(cls) -> None:
        AgainstTheModel.open()

    @classmethod
    def tearDownClass(cls) -> None:
        AgainstTheModel.close()


# Faults


def as_site(at: Any) -> Any:
    """Lend the site to write-behind's nursery, which wants its app and its first client."""
    return at


@pytest.mark.invariant(1, 2, 5)
@pytest.mark.fault("20 workers are killed (SIGKILL) in a message, over 5,000 messages")
async def test_twenty_kills_lose_nothing_and_do_nothing_twice(
    server: Server, app: str, ledger: Callable[..., Ledger], spawn: Callable[..., Any]
) -> None:
    """Each stands in a message when it dies; another worker does it, and each effect is made once."""
    book = ledger(within=20)
    without = book.without("BLPOP, then work")
    async with site(Place("single", server, None, app)) as at:
        queue = Queue("jobs", at.clients[0], POLICY, app=app)
        nursery = Nursery(as_site(at), spawn("tests.message_queue.competing_consumer_processes", server.url))
        await queue.send_many(range(5000))
        for number in range(5000):
            book.acked(number)
        await faults.killed_in_turn(nursery, "worker", 20, book)
        await eventually(lambda: _empty(queue), within=20)
        book.recovered()
        for payload, times in (await at.clients[0].hgetall(queue.lanes[0].key("made"))).items():
            book.effect(int(payload), int(times))
        assert await queue.dead() == []
        assert await at.clients[0].xlen(at.key("stream")) == 0

        pushed: Any = at.clients[0].rpush(f"{app}:list", *range(1000))
        await pushed
        for number in range(1000):
            without.acked(number)
        await faults.killed_in_turn(nursery, "list", 20, without)
        await eventually(lambda: faults.gone(at.clients[0], f"{app}:list"), within=20)
        without.recovered()

        async def all_but_the_lost() -> bool:
            return int(await at.clients[0].hlen(f"{app}:made")) == 980

        await eventually(all_but_the_lost, within=5)
        for payload, times in (await at.clients[0].hgetall(f"{app}:made")).items():
            without.effect(int(payload), int(times))
    book.held(
        "what a dead worker had is another's when its time is over; effect and acknowledgement are one step"
    )


@pytest.mark.invariant(1, 5)
@pytest.mark.fault("every connection is reset (RST), every 200 ms, 10 times")
async def test_resets_leave_no_worker_deaf(server: Server, app: str, ledger: Callable[..., Ledger]) -> None:
    """Senders repeat under a dedupe_id, workers go on within 5 s, and each effect is made once."""
    book = ledger(within=5)
    without = book.without("XREADGROUP, work, XACK, and no look back")
    await faults.under_resets(server, app, book, without, resets=10)
    book.held("a read or an acknowledgement whose answer is lost is asked again, or its message comes again")


@pytest.mark.invariant(1)
@pytest.mark.fault(
    "Redis is killed (SIGKILL) and restarted under load, 3 times; appendonly, appendfsync always"
)
async def test_a_restart_with_a_file_loses_nothing(app: str, ledger: Callable[..., Ledger]) -> None:
    """Senders and workers go on by themselves, and each effect is made once."""
    book = ledger(within=15)
    without = book.without("BLPOP, then work")
    with Server("--appendonly", "yes", "--appendfsync", "always") as own:
        await faults.killed_under_load(own, app, book, without, kills=3)
    book.held("what was sent, had and done was in the file")


@pytest.mark.fault("Redis is killed (SIGKILL) and restarted; no file")
async def test_a_restart_without_a_file_loses_what_waited(app: str, ledger: Callable[..., Ledger]) -> None:
    """What waited is gone, what comes next is delivered: the missing group is made from the first message."""
    book = ledger(lost=100, within=15, bound="all that is sent afterwards is delivered")
    with Server() as own:
        after = await faults.forgotten(own, app, book)
    assert book.lost == 100, "the test does not show what it is about"
    assert after == 50
    with Server() as own:
        late = await faults.forgotten(own, app, None, naive=True)
    assert late < 50
    book.naive(
        f"a group made at `$`: of the 50 messages sent after the restart {50 - late} were never delivered"
    )
    book.held("the workers and the queue; what waited was nowhere else")


@pytest.mark.invariant(3, 5)
@pytest.mark.fault("a worker is paused (SIGSTOP) beyond its time-out, and then acknowledges")
async def test_a_late_worker_is_refused(
    server: Server, app: str, ledger: Callable[..., Ledger], spawn: Callable[..., Any]
) -> None:
    """Another worker has done the message meanwhile; the late one's effect is not made."""
    book = ledger(within=10)
    without = book.without("effect, then XACK")
    async with site(Place("single", server, None, app)) as at:
        nursery = Nursery(as_site(at), spawn("tests.message_queue.competing_consumer_processes", server.url))
        for kind, books in (("fenced", book), ("unfenced", without)):
            name = "jobs" if kind == "fenced" else "unfenced"
            queue = Queue(name, at.clients[0], POLICY, app=app)
            await faults.paused(at, nursery, queue, kind, books)
    book.held("the owner is compared in the script that makes the effect")


@pytest.mark.invariant(4)
@pytest.mark.fault("a message kills each worker that it is given to")
async def test_poison_is_a_dead_letter_after_three_workers(
    server: Server, app: str, ledger: Callable[..., Ledger], spawn: Callable[..., Any]
) -> None:
    """The 40 other messages are done, and the poison is kept with its history."""
    book = ledger(within=10)
    async with site(Place("single", server, None, app)) as at:
        nursery = Nursery(as_site(at), spawn("tests.message_queue.competing_consumer_processes", server.url))
        queue = Queue("jobs", at.clients[0], POISON, app=app)
        deaths = await faults.poisoned(at, nursery, queue, "poison", book, most=10)
        (letter,) = await queue.dead()
        assert (letter.payload, letter.deliveries, deaths) == ("poison", 3, 3)
        endless = with_lanes(naive.CountsErrorsOnly)("endless", at.clients[0], POISON, app=app)
        killed = await faults.poisoned(at, nursery, endless, "endless", None, most=5)
        assert await endless.dead() == []
    book.naive(f"a worker that counts errors: {killed} workers dead, and the message is still delivered")
    book.held("deliveries are counted when they are handed out")


@pytest.mark.invariant(5)
@pytest.mark.fault("the reply of Redis to a send is lost")
async def test_a_lost_reply_is_sent_again_and_is_one_message(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """OutcomeUnknown and a dedupe_id: 20 messages are sent again, and are there once."""
    book = ledger()
    without = book.without("XADD, and again")
    await faults.replies_lost(server, app, book, without)
    book.held("the dedupe_id is looked up, and the message appended, in one script")


@pytest.mark.fault("a primary of the 3+3 cluster is killed (SIGKILL) under load")
async def test_a_cluster_goes_on_without_a_primary(app: str, ledger: Callable[..., Ledger]) -> None:
    """What the failover takes back is counted; senders and workers go on by themselves."""
    book = ledger(lost=1000, within=20, bound="what is lost is counted")
    with Cluster("--cluster-node-timeout", "1000") as own:
        popped = await faults.primary_killed(own, app, book)
    book.naive(f"LPOP, then work: {popped} of the 10 jobs that a worker had popped are lost")
    book.held(f"on one machine replicas lag by little: {book.lost} lost this time; no effect was made twice")
