"""The proof of patterns/container/scatter_gather: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import random
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from patterns.clock import ManualClock
from patterns.container.scatter_gather import (
    Ask,
    CallAbandoned,
    CallEnded,
    CanaryFailed,
    Gathered,
    GatherEnded,
    Hedge,
    HedgeRefused,
    HedgeSent,
    Hit,
    Leaf,
    LeafFailed,
    LeafMissing,
    NotEnough,
    NotIdempotent,
    Observed,
    Page,
    Policy,
    ScatterGather,
    TruncatedShard,
    Why,
    Withdrawn,
    top_k,
)
from patterns.container.scatter_gather.leaf import LINE, TIED_REPLICA, TIED_REQUEST, leaf_application
from patterns.container.scatter_gather.line import Line, TieTaken
from patterns.container.scatter_gather.replica import HttpReplica, Query
from patterns.deadline import HEADER, Deadline
from patterns.events import Event, Recorder
from patterns.resiliency.retry.budget import Budget
from patterns.scripted import Scripted, Step, fails, hangs, returns
from patterns.serving import serving
from tests.container.scatter_gather_checks import (
    Deaf,
    check_a_canary_goes_first,
    check_a_hedge_goes_elsewhere,
    check_each_leaf_counts_once,
    check_hedges_stop_at_the_budget,
    check_late_answers_are_dropped,
    check_limit_and_isolation,
    check_nothing_runs_on,
    check_one_dead_replica_costs_few_hedges,
    check_one_of_two_tied_requests_runs,
    check_order_of_arrival_makes_no_difference,
    check_returns_by_the_deadline,
    check_says_what_is_missing,
    check_the_best_are_found,
    check_writes_are_not_hedged,
    leaf,
    on,
)
from tests.container.scatter_gather_naive import (
    AsksAll,
    ByArrival,
    CountsBoth,
    DropsWhatRuns,
    HedgesAlways,
    HedgesWrites,
    InATaskGroup,
    InTurn,
    NoTies,
    PlainGather,
    SwallowsCancellation,
    TimeoutAround,
    WithoutTheErrors,
    first_of_all,
)
from tests.container.scatter_gather_servers import (
    MEGABYTES,
    PROGRAM,
    REFUSED,
    Rogue,
    Root,
    bytes_that_a_trusting_client_reads,
    leaf_process,
    plain_gather,
    port_of,
    rooted,
    url_of,
)
from tests.eventually import eventually
from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.ledger import Ledger
    from tests.faults.workers import Worker
    from tests.pods import Pods


# 1: the deadline


@pytest.mark.invariant(1)
@pytest.mark.naive(1)
@pytest.mark.fault("four of six leaves hang, a fifth ignores its cancellation")
async def test_a_gather_returns_by_its_deadline_whatever_leaves_do(ledger: Callable[..., Ledger]) -> None:
    """With leaves that hang, and one that cannot be cancelled, the answer is there after 0.5 s."""
    books = ledger(bound="returned by the deadline")
    await check_returns_by_the_deadline(ScatterGather)
    books.injected(5)
    books.acked("quick")
    books.effect("quick")
    with pytest.raises(AssertionError, match=r"returned after \d") as slow:
        await check_returns_by_the_deadline(InTurn)
    books.held("answered at the deadline, five missing by name, one of them abandoned")
    books.naive(f"waits for each in turn: {str(slow.value).splitlines()[0]}")


@pytest.mark.naive(1)
async def test_a_timeout_around_everything_waits_for_the_deaf() -> None:
    """It returns when what it has cancelled has ended, which may be never."""
    with pytest.raises(AssertionError, match="returned after 4 s"):
        await check_returns_by_the_deadline(TimeoutAround)


@pytest.mark.invariant(1)
async def test_the_callers_deadline_holds_if_it_is_sooner() -> None:
    """The earlier of two deadlines is kept; with no more left than the drain, nobody is asked."""
    clock = ManualClock()
    slow, (replica,) = leaf("a", hangs(), clock=clock)
    policy = Policy(deadline=5, min_results=0, limit=9, drain=0.05)
    search = ScatterGather("x", [slow], policy, clock=clock)
    answer, took = await on(clock, search.gather("?", deadline=Deadline(0.3, clock=clock)))
    assert took == pytest.approx(0.25)  # what was cancelled ends at once, and needs no drain
    assert str(answer.errors["a"]) == "leaf 'a' did not answer (deadline)"
    answer, took = await on(clock, search.gather("?", deadline=Deadline(0.05, clock=clock)))
    assert (took, replica.calls) == (0, 1)
    assert str(answer.errors["a"]) == "leaf 'a' was not asked (deadline)"


# 2: completeness


@pytest.mark.invariant(2)
@pytest.mark.naive(2)
@pytest.mark.fault("of three leaves one raises and one is late")
async def test_an_answer_says_what_it_lacks(ledger: Callable[..., Ledger]) -> None:
    """What is missing is named with its cause, `complete` is false, and too little is an error."""
    books = ledger(bound="no partial answer looks complete")
    await check_says_what_is_missing(ScatterGather)
    books.injected(2)
    books.acked("answer")
    books.effect("answer")
    with pytest.raises(AssertionError, match="looks complete") as silent:
        await check_says_what_is_missing(WithoutTheErrors)
    books.held("one value, two causes by name, complete is false; below min_results an error")
    books.naive(f"keeps what is no exception: {str(silent.value).splitlines()[0]}")


@pytest.mark.invariant(2)
async def test_enough_is_enough() -> None:
    """With `enough` answers the rest is not waited for, and is missing for that reason."""
    clock = ManualClock()
    leaves = [leaf(str(n), returns(n).after(n / 10), clock=clock)[0] for n in range(5)]
    policy = Policy(deadline=1, min_results=2, limit=9, enough=3)
    answer, took = await on(clock, ScatterGather("x", leaves, policy, clock=clock).gather("?"))
    assert (took, list(answer.values), answer.missing) == (0.2, ["0", "1", "2"], ("3", "4"))
    assert {error.why for error in answer.errors.values()} == {Why.ENOUGH}


@pytest.mark.invariant(2)
async def test_what_cannot_be_reached_is_not_waited_for() -> None:
    """When so many failed that `min_results` is out of reach, NotEnough comes at once."""
    clock = ManualClock()
    leaves = [
        *(leaf(str(n), fails(OSError(n)), clock=clock)[0] for n in range(7)),
        leaf("slow", hangs(), clock=clock)[0],
    ]
    search = ScatterGather("x", leaves, Policy(deadline=1, min_results=2, limit=9), clock=clock)
    error, took = await on(clock, search.gather("?"))
    assert took == 0
    assert isinstance(error, NotEnough)
    assert isinstance(error.gathered.errors["slow"], LeafMissing)
    assert "and 3 more" in str(error)
    for each in (error, CanaryFailed("x", "a", OSError(1)), LeafMissing("a", Why.STUCK, False)):
        assert str(pickle.loads(pickle.dumps(each))) == str(each)


@pytest.mark.invariant(2)
async def test_an_answer_of_nothing_may_be_asked_for() -> None:
    """With min_results=0 even no answer at all is one, and it says so; an error without words is named."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    clock = ManualClock()
    silent = leaf("a", fails(Mute()), clock=clock)[0]
    search = ScatterGather("x", [silent], Policy(deadline=1, min_results=0, limit=1), clock=clock)
    answer, _ = await on(clock, search.gather("?"))
    assert (answer.values, answer.missing, answer.complete) == ({}, ("a",), False)
    search = ScatterGather("x", [silent], Policy(deadline=1, min_results=1, limit=1), clock=clock)
    error, _ = await on(clock, search.gather("?"))
    assert str(error) == "'x' got 0 answers, wanted 1 (a: Mute)"


# 3: once each, in any order


@pytest.mark.invariant(3)
async def test_each_leaf_counts_once() -> None:
    """The second answer of a leaf is no second value."""
    await check_each_leaf_counts_once(ScatterGather)


@pytest.mark.naive(3)
async def test_adding_up_what_arrives_counts_a_leaf_twice() -> None:
    """Who sums over requests instead of leaves is wrong whenever a hedge was sent."""
    with pytest.raises(AssertionError, match="adds up to 4"):
        await check_each_leaf_counts_once(CountsBoth)


@pytest.mark.invariant(3)
async def test_the_order_of_arrival_makes_no_difference() -> None:
    """Six orders of arrival, one answer."""
    await check_order_of_arrival_makes_no_difference(ScatterGather)


@pytest.mark.naive(3)
async def test_as_completed_gives_another_answer_each_time() -> None:
    """Six orders of arrival, six answers."""
    with pytest.raises(AssertionError, match="6 answers to one question"):
        await check_order_of_arrival_makes_no_difference(ByArrival)


@pytest.mark.invariant(3)
def test_the_best_of_all_shards_are_found_or_refused(rng: random.Random) -> None:
    """In 300 random cases the merge is right, or says that a shard was cut short, never of a whole one."""
    assert 10 < check_the_best_are_found(top_k, rng) < 200


@pytest.mark.naive(3)
def test_sorting_what_came_is_wrong_about_ties_and_cut_shards(rng: random.Random) -> None:
    """By score alone, ties come out by arrival and what a shard held back is missing without a word."""
    with pytest.raises(AssertionError, match="not the best"):
        check_the_best_are_found(first_of_all, rng)


@pytest.mark.invariant(3)
def test_a_document_on_two_shards_is_one_hit() -> None:
    """While it moves it is found twice, and listed once, at its better score."""
    pages = {"a": Page((Hit(2.0, "x"), Hit(1.0, "y"))), "b": Page((Hit(3.0, "x"),))}
    assert top_k(pages, 3) == [Hit(3.0, "x"), Hit(1.0, "y")]
    with pytest.raises(ValueError, match="k must be"):
        top_k(pages, 0)
    with pytest.raises(TruncatedShard) as cut:
        top_k({"a": Page((), more=True)}, 1)
    assert str(pickle.loads(pickle.dumps(cut.value))) == str(cut.value)


# 4: losers


@pytest.mark.invariant(4)
async def test_nothing_runs_on_after_a_gather() -> None:
    """After an answer, an error and a cancellation, every leaf has ended when `gather` returns."""
    await check_nothing_runs_on(ScatterGather)


@pytest.mark.naive(4)
async def test_gather_leaves_siblings_at_work() -> None:
    """asyncio.gather raises the first exception and lets the others run."""
    with pytest.raises(AssertionError, match="leaves still at work"):
        await check_nothing_runs_on(PlainGather)


@pytest.mark.naive(4)
@pytest.mark.fault("the caller is cancelled while six leaves are at work")
async def test_who_catches_every_cancellation_cannot_be_cancelled(ledger: Callable[..., Ledger]) -> None:
    """Taking one's own cancellation for a leaf's, one answers a caller who is gone, and waits on."""
    books = ledger(bound="nothing at work when gather has returned")
    await check_nothing_runs_on(ScatterGather)
    books.injected(6)
    books.acked("cancelled")
    books.effect("cancelled")
    with pytest.raises(AssertionError, match=r"still at work|was cancelled, and") as deaf:
        await check_nothing_runs_on(SwallowsCancellation)
    books.held("CancelledError reached the caller, no leaf still at work")
    books.naive(f"catches every CancelledError: {str(deaf.value).splitlines()[0]}")


@pytest.mark.invariant(4)
@pytest.mark.fault("a leaf that ignores its cancellation, asked again and again")
async def test_late_answers_are_dropped_and_the_deaf_not_asked_for_ever(
    ledger: Callable[..., Ledger],
) -> None:
    """Of a leaf that cannot be stopped `max_abandoned` calls run on, and it is asked again when they end."""
    books = ledger(bound="at most max_abandoned calls run on")
    await check_late_answers_are_dropped(ScatterGather)
    books.injected(4)
    books.acked("answers")
    books.effect("answers")
    books.held("two calls ran on, no third was made; asked again after they had ended")
    clock, deaf = ManualClock(), Deaf()
    for _ in range(4):
        naive = WithoutTheErrors(
            "x", [Leaf("deaf", deaf)], Policy(deadline=0.5, min_results=0, limit=9), clock=clock
        )
        task = asyncio.ensure_future(naive.gather("?"))
        await clock.advance(1)
        task.cancel()
    books.naive(
        f"a time-out and gather: {deaf.running} calls run on after 4 requests, and their callers wait"
    )
    assert deaf.running == 4
    deaf.release.set()
    await clock.advance(0.1)
    gc.collect()


@pytest.mark.invariant(4)
async def test_a_thousand_random_cancellations_leave_nothing_at_work(rng: random.Random) -> None:
    """Cancelled once or twice at any moment, with hedges out: no leaf is at work, no call is in view."""
    for _ in range(1000):
        clock = ManualClock()
        clock._STEPS = 12
        made = [
            leaf(
                str(n),
                *(rng.choice((hangs(), returns(n).after(rng.random()), fails(OSError()))) for _ in "12"),
                clock=clock,
            )
            for n in range(3)
        ]
        policy = Policy(deadline=1, min_results=1, limit=rng.randint(1, 6), idempotent=True)
        search = ScatterGather(
            "x", [each for each, _ in made], policy, hedge=Hedge(0.1, on=(OSError,)), clock=clock, rng=rng
        )
        task = asyncio.ensure_future(search.gather("?"))
        await clock.advance(rng.choice((0, rng.random())))
        for _ in range(rng.randint(1, 2)):
            task.cancel()
            await asyncio.sleep(0)
        await clock.advance(0)
        await asyncio.gather(task, return_exceptions=True)
        assert sum(replica.in_flight for _, replicas in made for replica in replicas) == 0
        assert search.abandoned == 0
        assert search.stuck == {}
        assert not clock.sleepers


@pytest.mark.invariant(4)
async def test_an_exit_of_a_leaf_is_not_an_answer() -> None:
    """SystemExit in a leaf ends the gather, and its siblings are drained all the same."""
    slow = Scripted(then=hangs())

    async def leaves(_: Ask[Any]) -> None:
        raise SystemExit(3)

    search = ScatterGather(
        "x", [Leaf("a", leaves), Leaf("b", slow)], Policy(deadline=1, min_results=0, limit=9)
    )

    def run() -> None:
        with asyncio.Runner() as runner:
            runner.run(search.gather("?"))

    with pytest.raises(SystemExit):
        await asyncio.to_thread(run)
    assert slow.in_flight == 0


@pytest.mark.invariant(4)
async def test_a_gather_that_is_thrown_away_cancels_its_calls() -> None:
    """A coroutine that is closed cannot wait; its leaves are cancelled, and in view until they have ended."""
    slow = Scripted(then=hangs())
    search: ScatterGather[Any, Any] = ScatterGather(
        "x", [Leaf("a", slow)], Policy(deadline=1, min_results=0, limit=9)
    )
    coroutine = search.gather("?")
    coroutine.send(None)
    await asyncio.sleep(0)
    assert slow.in_flight == 1
    coroutine.close()
    assert search.abandoned == 1
    for _ in range(3):
        await asyncio.sleep(0)
    assert (slow.in_flight, search.abandoned) == (0, 0)


# 5: hedges


@pytest.mark.invariant(5)
@pytest.mark.naive(5)
@pytest.mark.fault("every leaf is slow")
async def test_hedges_end_when_all_are_slow(ledger: Callable[..., Ledger]) -> None:
    """In an outage the bucket is emptied once, and a thousand late answers earn nothing."""
    books = ledger(bound="requests <= leaves asked + the bucket")
    ours = await check_hedges_stop_at_the_budget(ScatterGather)
    books.injected(ours["plain"])
    books.acked("gathers")
    books.effect("gathers")
    with pytest.raises(AssertionError, match="times the load") as double:
        await check_hedges_stop_at_the_budget(HedgesAlways)
    books.held(
        f"{ours['calls']} requests where {ours['plain']} leaves were asked: the bucket held ten hedges"
    )
    books.naive(f"no budget: {str(double.value).splitlines()[0]}")


@pytest.mark.invariant(5)
async def test_a_hedge_goes_to_another_replica() -> None:
    """Whichever replica is picked first, the one that hangs is asked once, and its leaf answers in time."""
    await check_a_hedge_goes_elsewhere(ScatterGather)


@pytest.mark.naive(5)
async def test_a_hedge_at_the_same_replica_is_as_slow_again() -> None:
    """Who asks the same one again has doubled the load on it, and waits as long."""
    with pytest.raises(AssertionError, match=r"asked the one that hangs again|no answer"):
        await check_a_hedge_goes_elsewhere(HedgesAlways)


@pytest.mark.invariant(5)
@pytest.mark.naive(5)
@pytest.mark.parametrize("step", [fails(ConnectionError("refused")), hangs()])
async def test_a_dead_replica_does_not_spend_everybodys_hedges(step: Step) -> None:
    """It is soon asked first no more; asked for ever it empties the bucket, and then answers lack it."""
    assert await check_one_dead_replica_costs_few_hedges(Hedge, step) < 10
    with pytest.raises(AssertionError, match=r"1\d\d of 200 answers complete"):
        await check_one_dead_replica_costs_few_hedges(partial(Hedge, rest=0), step)


@pytest.mark.invariant(5)
async def test_answers_in_time_earn_hedges() -> None:
    """A hundred early answers at ratio 0.05 earn five; late ones earn nothing, but for tied requests."""
    for seconds, tied, earned in ((0.0, False, 5), (0.2, False, 0), (0.2, True, 5)):
        clock = ManualClock()
        budget = Budget(ratio=0.05, min_per_second=0, capacity=10, clock=clock)
        while budget.take():
            pass
        made = leaf("a", returns(1).after(seconds), returns(1).after(seconds), clock=clock)
        policy = Policy(deadline=1, min_results=1, limit=9, idempotent=True)
        search = ScatterGather(
            "x", [made[0]], policy, hedge=Hedge(0.1, budget=budget, tied=tied), clock=clock
        )
        for _ in range(100):
            await on(clock, search.gather("?"), step=0.1)
        left = 0
        while budget.take():
            left += 1
        sent = sum(replica.calls for replica in made[1]) - 100
        assert left + sent == earned


@pytest.mark.invariant(5)
async def test_a_failed_leaf_is_asked_elsewhere_at_once() -> None:
    """An error in `on` is mended by the other replica without waiting; any other is the leaf's answer."""
    clock, heard = ManualClock(), Recorder()
    made = leaf("a", fails(ConnectionError("reset")), returns("here").after(0.01), clock=clock)[0]
    policy = Policy(deadline=1, min_results=1, limit=9, idempotent=True)
    for seed in range(4):
        search = ScatterGather(
            "x",
            [made],
            policy,
            hedge=Hedge(0.5, on=(ConnectionError,)),
            clock=clock,
            rng=random.Random(seed),
            on_event=heard,
        )
        answer, took = await on(clock, search.gather("?"))
        assert answer.values == {"a": "here"}
        assert took == 0.01
    assert 0 < len(heard.of(HedgeSent)) < 4
    assert all(event.failed for event in heard.of(HedgeSent))
    broken, (one, other) = leaf("a", fails(ValueError("bad")), fails(ValueError("bad")), clock=clock)
    search = ScatterGather("x", [broken], policy, hedge=Hedge(0.5, on=(ConnectionError,)), clock=clock)
    error, _ = await on(clock, search.gather("?"))
    assert one.calls + other.calls == 1
    assert isinstance(error.__cause__, ValueError)


@pytest.mark.invariant(5)
async def test_a_leaf_is_lost_when_both_its_requests_are() -> None:
    """The first request's error is the cause; while the second is out the leaf is not lost."""
    clock, first = ManualClock(), []

    def replica(number: int) -> Any:
        async def call(ask: Ask[Any]) -> None:
            first.append(number)
            await clock.sleep(0.3 if len(first) == 1 else 0.1)
            raise OSError(f"{'second' if ask.hedge else 'first'}")

        return call

    policy = Policy(deadline=1, min_results=0, limit=9, idempotent=True)
    search = ScatterGather("x", [Leaf("a", replica(0), replica(1))], policy, hedge=Hedge(0.1), clock=clock)
    answer, took = await on(clock, search.gather("?"))
    assert (took, len(first), answer.hedged) == (0.3, 2, ("a",))
    assert str(answer.errors["a"]) == "second"  # the one that was known first


@pytest.mark.invariant(5)
async def test_late_leaves_share_a_short_budget_by_lot(rng: random.Random) -> None:
    """With one token for ten late leaves, no leaf gets it every time."""
    got = set()
    for _ in range(40):
        clock, heard = ManualClock(), Recorder()
        leaves = [leaf(str(n), hangs(), hangs(), clock=clock)[0] for n in range(10)]
        hedge = Hedge(0.1, budget=Budget(ratio=0, min_per_second=0, capacity=1, clock=clock))
        policy = Policy(deadline=0.3, min_results=0, limit=99, idempotent=True)
        search = ScatterGather("x", leaves, policy, hedge=hedge, clock=clock, rng=rng, on_event=heard)
        answer, _ = await on(clock, search.gather("?"), step=0.1)
        got |= set(answer.hedged)
        assert len(heard.of(HedgeSent)) == 1
        assert len(heard.of(HedgeRefused)) == 9
    assert len(got) > 5


@pytest.mark.invariant(5)
async def test_the_delay_follows_what_is_observed() -> None:
    """Slow requests that were cut off count with the time they had, so hedging breeds no hedging."""
    clock = ManualClock()
    clock._STEPS = 20
    observed = Observed(0.9, initial=0.5, window=64)
    quick = [leaf(str(n), returns(n).after(0.02), returns(n).after(0.02), clock=clock)[0] for n in range(4)]
    one_slow = [*quick, leaf("slow", returns(9).after(0.3), returns(9).after(0.3), clock=clock)[0]]
    policy = Policy(deadline=1, min_results=1, limit=20, idempotent=True)
    search = ScatterGather("x", quick, policy, hedge=Hedge(observed), clock=clock)
    for _ in range(20):
        await on(clock, search.gather("?"))
    assert observed.delay == pytest.approx(0.02)
    search = ScatterGather("x", one_slow, policy, hedge=Hedge(observed), clock=clock)
    for _ in range(30):
        await on(clock, search.gather("?"))
    assert observed.delay > 0.29  # every fifth is that slow: it is what is usual here
    cut = Policy(deadline=0.15, min_results=1, limit=20, idempotent=True)
    search = ScatterGather("x", one_slow, cut, hedge=Hedge(observed), clock=clock)
    for _ in range(30):
        answer, _ = await on(clock, search.gather("?"))
        assert answer.missing == ("slow",)
    assert observed.delay == pytest.approx(0.13)


# 6: limit and isolation


@pytest.mark.invariant(6)
async def test_the_limit_holds_and_a_failure_stays_alone() -> None:
    """Three at a time, and two of twelve that fail disturb nobody."""
    await check_limit_and_isolation(ScatterGather)


@pytest.mark.naive(6)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(InATaskGroup, "everybody's"), (WithoutTheErrors, "12 requests at once")],
)
async def test_a_task_group_is_all_or_nothing(variant: Any, complaint: str) -> None:
    """A TaskGroup cancels the others for one failure; a bare gather knows no limit."""
    with pytest.raises(AssertionError, match=complaint):
        await check_limit_and_isolation(variant)


@pytest.mark.invariant(6)
async def test_hedges_wait_for_room() -> None:
    """At the limit, leaves not asked yet come first, and a late one is hedged when there is room."""
    clock = ManualClock()
    inside = most = 0
    order: list[str] = []

    def replica(seconds: float) -> Any:
        async def call(ask: Ask[Any]) -> str:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            order.append(ask.leaf + ("'" if ask.hedge else ""))
            try:
                await clock.sleep(0.01 if ask.hedge else seconds)
                return ask.leaf
            finally:
                inside -= 1

        return call

    leaves = [Leaf(name, replica(s), replica(s)) for name, s in (("a", 0.9), ("b", 0.2), ("c", 0.2))]
    policy = Policy(deadline=1, min_results=3, limit=2, idempotent=True)
    search = ScatterGather("x", leaves, policy, hedge=Hedge(0.1), clock=clock)
    answer, _ = await on(clock, search.gather("?"))
    assert answer.complete
    assert most == 2
    assert order[:3] == ["a", "b", "c"]
    assert "a'" in order[3:]


@pytest.mark.invariant(6)
async def test_fail_fast_is_asked_for() -> None:
    """With it the first failure ends the gather, also the last leaf's."""
    clock = ManualClock()
    for others in (hangs(), returns(1)):
        leaves = [
            leaf("a", fails(KeyError("no")).after(0.1), clock=clock)[0],
            leaf("b", others, clock=clock)[0],
        ]
        policy = Policy(deadline=1, min_results=1, limit=9, fail_fast=True)
        error, took = await on(clock, ScatterGather("x", leaves, policy, clock=clock).gather("?"))
        assert isinstance(error, NotEnough)
        assert isinstance(error.__cause__, KeyError)
        assert took == 0.1


@pytest.mark.invariant(6)
async def test_whatever_a_leaf_does_is_its_own() -> None:
    """A plain function, a wrong signature, a future, one that cancels itself: each is one leaf's affair."""

    async def cancels_itself(_: Ask[Any]) -> None:
        raise asyncio.CancelledError

    def future(_: Ask[Any]) -> asyncio.Future[int]:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        done.set_result(7)
        return done

    leaves: list[Leaf[Any, Any]] = [
        Leaf("plain", lambda _: 5),  # type: ignore[arg-type, return-value]  # the mistake under test
        Leaf("signature", lambda: future),  # type: ignore[arg-type, misc]  # the mistake under test
        Leaf("future", future),
        Leaf("cancels", cancels_itself),
    ]
    answer = await ScatterGather("x", leaves, Policy(deadline=1, min_results=1, limit=9)).gather("?")
    assert answer.values == {"future": 7}
    assert {name: type(error) for name, error in answer.errors.items()} == {
        "plain": TypeError,
        "signature": TypeError,
        "cancels": LeafMissing,
    }


# 7: the canary


@pytest.mark.invariant(7)
@pytest.mark.naive(7)
@pytest.mark.fault("a request that crashes, or hangs, whoever reads it")
async def test_a_poisonous_request_reaches_one_leaf(ledger: Callable[..., Ledger]) -> None:
    """The first leaf fails or hangs on it; no other is asked, not even its second replica."""
    books = ledger(bound="one leaf of five is reached")
    await check_a_canary_goes_first(ScatterGather)
    books.injected(2)
    books.acked("refused")
    books.effect("refused")
    with pytest.raises(AssertionError, match="of 5 leaves") as all_of_them:
        await check_a_canary_goes_first(AsksAll)
    books.held("the canary alone was asked, once, and the request refused")
    books.naive(f"no canary: {str(all_of_them.value).splitlines()[0]}")


@pytest.mark.invariant(7)
async def test_after_the_canary_the_others_are_asked() -> None:
    """It counts as its leaf's answer, with one leaf too; and the deadline is for all of it."""
    clock = ManualClock()
    for n, policy in (
        (1, Policy(deadline=1, min_results=1, limit=9, canary=0.5)),
        (3, Policy(deadline=1, min_results=1, limit=9, canary=0.5)),
        (3, Policy(deadline=1, min_results=1, limit=1, canary=0.5, enough=1)),
    ):
        made = [leaf(str(each), returns(each).after(0.2), clock=clock) for each in range(n)]
        search = ScatterGather("x", [each for each, _ in made], policy, clock=clock)
        answer, took = await on(clock, search.gather("?"))
        assert len(answer.values) == (policy.enough or n)
        assert took == (0.2 if n == 1 or policy.enough else 0.4)
        assert answer.requests == len(answer.values)


# 8: only what may be done twice


@pytest.mark.invariant(8)
async def test_a_write_is_not_hedged() -> None:
    """Without a policy that says `idempotent` a hedge is refused, and `hedge=False` sends one request."""
    await check_writes_are_not_hedged(ScatterGather)


@pytest.mark.naive(8)
async def test_a_hedged_write_is_carried_out_twice() -> None:
    """A slow order of one coffee becomes two."""
    with pytest.raises(AssertionError, match="carried out 2 times"):
        await check_writes_are_not_hedged(HedgesWrites)


# 9: tied requests


@pytest.mark.invariant(9)
async def test_of_two_tied_requests_one_runs(rng: random.Random) -> None:
    """Whatever the network does, one runs; both do only where both had begun before either heard."""
    assert 0 < await check_one_of_two_tied_requests_runs(Line, rng) < 100


@pytest.mark.naive(9)
@pytest.mark.parametrize(
    ("variant", "complaint"), [(NoTies, "although it had heard"), (DropsWhatRuns, "both were dropped")]
)
async def test_ties_that_are_ignored_or_cut_what_runs(
    variant: type[Line], complaint: str, rng: random.Random
) -> None:
    """Without ties the work is done twice; a leaf that drops what has begun may leave nobody to do it."""
    with pytest.raises(AssertionError, match=complaint):
        await check_one_of_two_tied_requests_runs(variant, rng)


@pytest.mark.invariant(9)
async def test_a_line_is_first_come_first_served_and_loses_no_worker() -> None:
    """Cancelled at the hand-over, dropped, told twice: the worker is there for the next in line."""
    line = Line(1, remember=2)
    order: list[str] = []

    async def work(tie: str | None, hold: asyncio.Event) -> None:
        async with line.turn(tie):
            order.append(tie or "-")
            await hold.wait()

    async def turns() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    hold, go = asyncio.Event(), asyncio.Event()
    go.set()
    first = asyncio.create_task(work("a", hold))
    await turns()
    second, third, fourth = (asyncio.create_task(work(tie, go)) for tie in ("b", "c", None))
    await turns()
    with pytest.raises(TieTaken):
        async with line.turn("b"):
            pass
    assert line.drop("c")
    assert not line.drop("a")
    hold.set()
    await asyncio.sleep(0)
    second.cancel()  # it has just been handed the worker, and has not run
    outcomes = await asyncio.gather(first, second, third, fourth, return_exceptions=True)
    assert [type(each).__name__ for each in outcomes][2:] == ["Withdrawn", "NoneType"]
    assert line.waiting == 0
    for tie in ("x", "y", "z"):
        assert line.drop(tie)  # three orders for requests that have not come; two are remembered
    await work("x", go)
    with pytest.raises(Withdrawn):
        await work("z", go)
    assert order == ["a", "-", "x"]
    hold.clear()
    first, second = asyncio.create_task(work("p", hold)), asyncio.create_task(work("q", hold))
    await turns()
    assert line.drop("q")
    second.cancel()  # in the same moment
    hold.set()
    _, outcome = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError)
    gc.collect()  # an error that nobody read would be reported now
    assert line.dropped == 3


@pytest.mark.invariant(9)
async def test_a_withdrawn_copy_is_no_failure() -> None:
    """One copy is dropped and the other answers; if that one fails, the leaf may be asked once more."""
    clock = ManualClock()
    policy = Policy(deadline=1, min_results=1, limit=9, idempotent=True)
    seen: list[Ask[Any]] = []

    def replica(outcome: Any) -> Any:
        script = Scripted(*outcome, clock=clock)

        async def call(ask: Ask[Any]) -> Any:
            seen.append(ask)
            return await script()

        return call

    hedge = Hedge(0.01, tied=True, on=(ConnectionError,))
    one = replica([returns("here").after(0.1)])
    search = ScatterGather(
        "x",
        [Leaf("a", one, replica([fails(Withdrawn())]))],
        policy,
        hedge=hedge,
        clock=clock,
        rng=random.Random(1),
    )
    answer, _ = await on(clock, search.gather("?"))
    assert answer.complete
    first, second = seen
    assert first.tie is not None
    assert second.tie is not None
    assert (first.tie.id, first.tie.peer, second.tie.peer) == (second.tie.id, 1, 0)
    dies = replica([fails(ConnectionError("killed")).after(0.1), returns("no")])
    drops = replica([fails(Withdrawn()), returns("after all")])
    search = ScatterGather(
        "x", [Leaf("a", dies, drops)], policy, hedge=hedge, clock=clock, rng=random.Random(1)
    )
    answer, _ = await on(clock, search.gather("?"))
    assert answer.values == {"a": "after all"}
    assert answer.requests == 3


# over HTTP


@pytest.mark.invariant(2, 6)
@pytest.mark.fault("a leaf answers garbage, half an answer, or 100 MB")
async def test_an_answer_that_is_none_is_its_leafs_failure(ledger: Callable[..., Ledger]) -> None:
    """Sixteen bad answers: each names its leaf, costs the other nothing, and little memory."""
    books = ledger(bound="the other leaf's hits in every answer")
    rogue, good = Rogue(), Rogue()
    policy = Policy(deadline=10, min_results=1, limit=9)
    async with (
        serving(rogue.application(), on_error=lambda *_: None) as bad,
        serving(good.application()) as other,
        rooted({"bad": [bad.url], "good": [other.url]}, policy, most_bytes=100_000) as root,
    ):
        for rogue.says, error in REFUSED.items():
            status, answer = await root.search("red")
            books.injected()
            books.acked(rogue.says)
            assert (status, answer["complete"]) == (200, False), rogue.says
            assert answer["missing"] == {"bad": error}, rogue.says
            assert answer["hits"] == [[1.0, "rogue"]]
            books.effect(rogue.says)
        assert rogue.sent < MEGABYTES / 2
        rogue.says = "holds back"
        status, text = await root.search("red")
        assert (status, "shard 'bad' has more" in text) == (502, True)
        rogue.says = "100 MB"
        read = await bytes_that_a_trusting_client_reads(bad.url)
    books.held("one leaf missing by name, its answer cut off at 100 kB; the other's hits there each time")
    books.naive(f"reads what it is sent: {read / 1e6:.0f} MB in memory for one answer")


@pytest.mark.invariant(1)
async def test_root_and_leaf_keep_the_callers_deadline_and_refuse_nonsense() -> None:
    """A request whose time is over is not begun, and a malformed one is answered 400."""
    begun = 0

    async def search(_query: str, _k: int) -> Page:
        nonlocal begun
        begun += 1
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async with (
        serving(leaf_application(search, replicas=["http://127.0.0.1:1"]), cancel_on_disconnect=True) as slow,
        rooted({"a": [slow.url]}, Policy(deadline=5, min_results=1, limit=9)) as root,
    ):
        status, text = await root.search("red", headers={HEADER: "60"})
        assert (status, begun) == (503, 1)
        assert "leaf 'a' did not answer (deadline)" in text
        direct = Root(slow.url, root.session)
        assert (await direct.search("red", headers={HEADER: "0"}))[0] == 504
        assert (await direct.search("red", headers={HEADER: "30"}))[0] == 504
        assert begun == 2
        tie = {TIED_REQUEST: "0" * 32, TIED_REPLICA: "0"}
        for nonsense in (
            {HEADER: "1_000"},
            tie | {TIED_REQUEST: "x"},
            tie | {TIED_REPLICA: "7"},
            tie | {TIED_REPLICA: "٣"},
        ):
            assert (await direct.search("red", headers=nonsense))[0] == 400
        for target in (root, direct):
            for words, k in (("", 3), ("x" * 201, 3), ("red", 0), ("red", 1001)):
                assert (await target.search(words, k))[0] == 400
        assert (await root.search("red", headers={HEADER: "soon"}))[0] == 400
        async with root.session.delete(f"{slow.url}/ties/../../etc") as answer:
            assert answer.status == 404
        async with root.session.delete(f"{slow.url}/ties/zz") as answer:
            assert answer.status == 400
        for url in (root.url, slow.url):
            async with root.session.get(f"{url}/livez") as answer:
                assert answer.status == 200
        assert begun == 2


@pytest.mark.invariant(9)
async def test_tied_requests_over_http_run_once() -> None:
    """The replica that gets to it first has the other one's copy dropped from its queue."""
    gates = [asyncio.Event(), asyncio.Event()]
    ran: list[tuple[int, str]] = []

    def replica(number: int) -> Any:
        async def search(query: str, _k: int) -> Page:
            ran.append((number, query))
            await gates[number].wait()
            return Page((Hit(1.0, query),))

        return search

    urls: list[str] = []
    apps = [leaf_application(replica(number), replicas=urls, workers=1) for number in (0, 1)]
    async with (
        serving(apps[0], cancel_on_disconnect=True) as one,
        serving(apps[1], cancel_on_disconnect=True) as other,
        aiohttp.ClientSession() as session,
    ):
        urls += [one.url, other.url]
        policy = Policy(deadline=20, min_results=1, limit=9, idempotent=True)
        made = Leaf("a", *(HttpReplica(session, url) for url in urls))
        search = ScatterGather("x", [made], policy, hedge=Hedge(0.0, tied=True))
        busy = [asyncio.create_task(Root(url, session).search("busy")) for url in urls]
        await eventually(lambda: len(ran) == 2, within=5)
        asked = asyncio.create_task(search.gather(Query("tied", 1)))
        await eventually(lambda: all(app[LINE].waiting == 1 for app in apps), within=5)
        gates[1].set()
        answer = await asked
        assert answer.values == {"a": Page((Hit(1.0, "tied"),))}
        assert answer.requests == 2
        await eventually(lambda: apps[0][LINE].waiting == 0, within=5)
        gates[0].set()
        await asyncio.gather(*busy)
        assert [each for each in ran if each[1] == "tied"] == [(1, "tied")]


@pytest.mark.fault("a leaf's process is paused (SIGSTOP)")
@pytest.mark.fault("a leaf's connections are reset in mid-request")
@pytest.mark.fault("a replica's process is killed (SIGKILL)")
@pytest.mark.fault("a leaf's only process is killed (SIGKILL)")
async def test_real_processes_that_stop_die_and_come_back(
    spawn: Callable[..., Worker], ledger: Callable[..., Ledger]
) -> None:
    """A root and three leaf processes: answers at the deadline, what is missing by name, complete again."""
    east_a, east_b, west = (leaf_process(spawn, shard) for shard in (0, 0, 1))
    urls = [await url_of(each) for each in (east_a, east_b, west)]
    async with Proxy(port_of(urls[2])) as proxy, aiohttp.ClientSession() as session:
        leaves = {"east": urls[:2], "west": [f"http://127.0.0.1:{proxy.port}"]}
        env = {
            "LEAVES": " ".join(f"{name}={'|'.join(each)}" for name, each in leaves.items()),
            "DEADLINE": "0.5",
            "HEDGE_AFTER": "0.2",
        }
        main = spawn(PROGRAM, "root", env=env)
        root = Root(await url_of(main), session)

        async def ask(book: Ledger, complete: bool, times: int = 1) -> None:
            for _ in range(times):
                began = asyncio.get_running_loop().time()
                status, answer = await root.search("red", 2)
                took = asyncio.get_running_loop().time() - began
                assert (status, answer["complete"]) == (200, complete), answer
                assert set(answer["missing"]) == (set() if complete else {"west"})
                assert answer["hits"] == (
                    [[3.0, "carmine"], [2.0, "apple"]] if complete else [[2.0, "apple"], [1.0, "brick"]]
                )
                assert took < 5
                book.acked(took)
                book.effect(took)

        async def whole_again(book: Ledger) -> None:
            async def complete() -> bool:
                status, answer = await root.search("red")
                assert status == 200, answer
                return bool(answer["complete"])

            await eventually(complete, within=10)
            book.recovered()

        book = ledger("a leaf's process is paused (SIGSTOP)", within=10, bound="every answer in time")
        await ask(book, complete=True)
        west.stop()
        book.injected()
        await ask(book, complete=False, times=3)
        book.naive(f"asyncio.gather: {await plain_gather(leaves, 0.5)}")
        west.cont()
        await whole_again(book)
        book.held("3 of 3 answers at the deadline, `west` missing by name; complete again after SIGCONT")

        book = ledger(
            "a leaf's connections are reset in mid-request", within=10, bound="every answer in time"
        )
        proxy.drop_request(b"GET /search")
        await ask(book, complete=False)  # one was enough, so nothing was sent again behind the budget's back
        proxy.drop_request(b"GET /search", times=2)  # aiohttp's own session sends it again
        book.naive(f"asyncio.gather: {await plain_gather(leaves, 0.5)}")
        book.injected(proxy.injected)
        await whole_again(book)
        book.held("one answer with `west` missing by name, the next one complete")

        book = ledger("a replica's process is killed (SIGKILL)", within=10, bound="every answer complete")
        east_a.kill()
        book.injected()
        await ask(book, complete=True, times=10)
        book.recovered()
        book.naive(f"asyncio.gather over first replicas: {await plain_gather(leaves, 0.5)}")
        book.held("10 of 10 answers complete: the other replica was asked at once, within the budget")

        book = ledger("a leaf's only process is killed (SIGKILL)", within=10, bound="every answer in time")
        west.kill()
        book.injected()
        await ask(book, complete=False, times=3)
        book.naive(f"asyncio.gather: {await plain_gather({'west': leaves['west']}, 0.5)}")
        leaf_process(spawn, 1, port=port_of(urls[2]))
        await whole_again(book)
        await ask(book, complete=True)
        book.held("3 of 3 answers with `west` missing by name; complete again when it was back")
        main.terminate()
        assert await main.ended(within=10) == 0
        east_b.terminate()
        assert await east_b.ended(within=10) == 0


@pytest.mark.containers
@pytest.mark.fault("a leaf's container is paused, then two are killed (SIGKILL)")
async def test_a_pod_answers_without_a_leaf_and_is_whole_again(
    pods: Pods, ledger: Callable[..., Ledger]
) -> None:
    """Root and leaves as containers: without `west` a partial answer that says so, and then a whole one."""
    ports = {name: pods.free_port() for name in ("ROOT_PORT", "EAST_A_PORT", "EAST_B_PORT", "WEST_PORT")}
    a, b, w = (f"http://127.0.0.1:{ports[name]}" for name in ("EAST_A_PORT", "EAST_B_PORT", "WEST_PORT"))
    config = {**ports, "LEAVES": f"east={a}|{b} west={w}", "EAST": f"{a}|{b}", "DEADLINE": "0.5"}
    book = ledger(within=30, bound="no answer is lost, none partial looks complete")
    with pods.played("container/scatter_gather", config=config) as pod:
        async with aiohttp.ClientSession() as session:
            root = Root(f"http://127.0.0.1:{ports['ROOT_PORT']}", session)

            async def whole() -> Any:
                with contextlib.suppress(aiohttp.ClientError):
                    status, answer = await root.search("red", 4)
                    return status == 200 and answer["complete"] and answer

            answer = await eventually(whole, within=30)
            assert [id_ for _, id_ in answer["hits"]] == ["carmine", "apple", "brick", "ember"]
            pod.kill("west", signal.SIGSTOP)
            book.injected()
            status, partial_answer = await root.search("red", 4)
            assert (status, partial_answer["complete"]) == (200, False)
            assert list(partial_answer["missing"]) == ["west"]
            book.acked("partial")
            book.effect("partial")
            book.naive(f"asyncio.gather: {await plain_gather({'east': [a], 'west': [w]}, 0.5)}")
            pod.kill("west")
            pod.kill("east-a")
            book.injected(2)
            await eventually(whole, within=30)
            book.recovered()
            await eventually(lambda: pod.restarts("west") == pod.restarts("east-a") == 1, within=20)
            assert pod.restarts("root") == 0
    book.held("an answer at the deadline, `west` missing by name; complete again after the restart")


# what holds together


class Ground:
    """Replicas that do this and that, and what they see of the load."""

    def __init__(self, clock: ManualClock, rng: random.Random) -> None:
        self.clock, self.rng = clock, rng
        self.inside = self.most = self.calls = 0
        self.deaf: list[Deaf] = []

    def replica(self) -> Any:
        outcome, seconds = self.rng.choice("vvvvfhd"), self.rng.choice((0, 0.05, 0.1, 0.3, 0.5, 2))

        async def call(ask: Ask[Any]) -> Any:
            self.inside += 1
            self.calls += 1
            self.most = max(self.most, self.inside)
            try:
                if outcome == "d":
                    self.deaf.append(Deaf())
                    return await self.deaf[-1](ask)
                await self.clock.sleep(99 if outcome == "h" else seconds)
                if outcome == "f":
                    raise ConnectionError(ask.leaf)
                return ask.leaf
            finally:
                self.inside -= 1

        return call


async def test_random_leaves_and_policies_keep_all_the_books(rng: random.Random) -> None:
    """Over 250 random gathers: in time, once each, within limit and budget, and nothing at work after."""
    for _ in range(250):
        clock = ManualClock()
        clock._STEPS = 25
        ground, n = Ground(clock, rng), rng.randint(1, 6)
        leaves = [Leaf(str(each), *(ground.replica() for _ in range(rng.randint(1, 3)))) for each in range(n)]
        least = rng.randint(0, n)
        policy = Policy(
            deadline=0.6,
            min_results=least,
            limit=rng.randint(1, 8),
            enough=rng.choice((None, rng.randint(max(1, least), n))),
            canary=rng.choice((None, None, 0.2)),
            fail_fast=rng.random() < 0.2,
            idempotent=True,
        )
        hedge = None
        if any(len(each.replicas) > 1 for each in leaves) and rng.random() < 0.8:
            budget = Budget(ratio=0, min_per_second=0, capacity=rng.randint(1, 4), clock=clock)
            hedge = Hedge(rng.choice((0.0, 0.1)), budget=budget, on=rng.choice(((), (ConnectionError,))))
        heard = Recorder()
        search = ScatterGather("x", leaves, policy, hedge=hedge, clock=clock, rng=rng, on_event=heard)
        answer, took = await on(clock, search.gather("?"), step=0.05)
        assert took <= 0.6
        assert ground.most <= policy.limit
        gathered = answer.gathered if isinstance(answer, NotEnough) else answer
        if isinstance(gathered, CanaryFailed):
            assert ground.calls <= 1
        else:
            assert isinstance(gathered, Gathered)
            assert [*gathered.values, *gathered.missing] != []
            assert sorted([*gathered.values, *gathered.missing]) == [each.name for each in leaves]
            assert all(name == value for name, value in gathered.values.items())
            assert gathered.requests >= ground.calls  # one that is cancelled before it begins is no call
            assert gathered.complete == (not gathered.errors)
            assert (len(gathered.values) < least) <= isinstance(answer, NotEnough)
        assert len(heard.of(HedgeSent)) <= (int(hedge.budget._capacity) if hedge else 0)
        assert len(heard.of(GatherEnded)) == 1
        await clock.advance(0)
        assert ground.inside == len([each for each in ground.deaf if each.running]) == search.abandoned
        for each in ground.deaf:
            each.release.set()
        await clock.advance(0.1)
        assert ground.inside == search.abandoned == 0
        assert len(heard.of(CallAbandoned)) == len(heard.of(CallEnded))
        assert len(heard.of(LeafFailed)) <= n


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"deadline": 0}, "deadline must be"),
        ({"deadline": float("nan")}, "deadline must be"),
        ({"min_results": -1}, "min_results must be"),
        ({"min_results": True}, "min_results must be"),
        ({"limit": 0}, "limit must be"),
        ({"enough": 1, "min_results": 2}, "enough must be a whole number >= 2"),
        ({"drain": 1.0}, "drain must be a finite number > 0 and < 1"),
        ({"canary": 2.0}, "canary must be"),
        ({"max_abandoned": 0}, "max_abandoned must be"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any], complaint: str) -> None:
    """Each field names itself, its bound and the value."""
    with pytest.raises(ValueError, match=complaint):
        Policy(**{"deadline": 1.0, "min_results": 1, "limit": 1, **wrong})


def test_leaves_that_make_no_sense_are_refused() -> None:
    """No leaf, two of one name, no replica, more wanted than there are, a hedge with nowhere to go."""
    policy = Policy(deadline=1, min_results=1, limit=1, idempotent=True)
    one: Leaf[Any, Any] = Leaf("a", Scripted())
    with pytest.raises(ValueError, match="leaves must be one or more"):
        ScatterGather("x", [], policy)
    with pytest.raises(ValueError, match="names of their own"):
        ScatterGather("x", [one, one], policy)
    with pytest.raises(ValueError, match="one or more callables"):
        Leaf("a")
    with pytest.raises(ValueError, match="min_results must be <= 1"):
        ScatterGather("x", [one], Policy(deadline=1, min_results=2, limit=1))
    with pytest.raises(ValueError, match="second replica"):
        ScatterGather("x", [one], policy, hedge=Hedge(0.1))
    with pytest.raises(NotIdempotent, match="carried out twice"):
        ScatterGather("x", [one], Policy(deadline=1, min_results=1, limit=1), hedge=Hedge(0.1))
    for build in (
        lambda: Hedge(-1),
        lambda: Hedge(0.1, on=OSError),  # type: ignore[arg-type]  # the mistake under test
        lambda: Observed(1.0, initial=1),
        lambda: Observed(initial=0),
    ):
        with pytest.raises(ValueError, match="must be"):
            build()


async def test_a_listener_that_raises_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What a listener raises is logged, and the answer is what it would have been."""

    def broken(event: Event) -> None:
        raise ZeroDivisionError

    clock = ManualClock()
    leaves = [leaf("a", fails(OSError()), clock=clock)[0], leaf("b", returns(1), clock=clock)[0]]
    search = ScatterGather(
        "x", leaves, Policy(deadline=1, min_results=1, limit=9), clock=clock, on_event=broken
    )
    answer, _ = await on(clock, search.gather("?"))
    assert answer.values == {"b": 1}
    assert "ZeroDivisionError" in caplog.text
