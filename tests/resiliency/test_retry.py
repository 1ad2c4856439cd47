"""The proof of patterns/resiliency/retry: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import gc
import math
import pickle
import random
import threading
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from patterns.clock import ManualClock
from patterns.events import Event, Recorder
from patterns.keyspace import Keyspace, OutcomeUnknown, Script, opened
from patterns.resiliency.bulkhead import Bulkhead, BulkheadFull
from patterns.resiliency.circuit_breaker import CircuitBreaker, CircuitOpen
from patterns.resiliency.circuit_breaker import Policy as BreakerPolicy
from patterns.resiliency.retry import (
    AttemptFailed,
    AttemptTimedOut,
    Budget,
    CallSucceeded,
    Jitter,
    Reason,
    Retry,
    RetryGaveUp,
    RetryScheduled,
    current_key,
    parse_retry_after,
)
from patterns.resiliency.retry.backoff import Backoff
from patterns.resiliency.retry.nesting import MARK
from patterns.resiliency.retry.retry_after import asked_by
from patterns.resiliency.retry.shared import SharedBudget
from patterns.scripted import Scripted, fails, hangs, returns
from tests.faults.proxy import proxy
from tests.resiliency.retry_cases import ASKED, BAD_POLICIES, HEADERS, NOW, expected
from tests.resiliency.retry_checks import (
    Make,
    Overloaded,
    check_attempts_and_deadline,
    check_budget,
    check_goes_on_alone,
    check_layers_do_not_multiply,
    check_leave_comes_back,
    check_not_done_twice,
    check_processes_share_the_budget,
    check_retry_after,
    check_success_costs_no_round_trip,
    check_the_last_outcome,
    check_waits,
    check_what_is_retried,
    outcome_of,
    policy,
    shared,
)
from tests.resiliency.retry_variants import (
    AsksForEachSuccess,
    BudgetEach,
    CountsRetries,
    CrowdClock,
    DoublesForEver,
    FixedSleep,
    FreshKeys,
    IgnoresRetryAfter,
    KeepsWhatIsNotUsed,
    KeyForEachAttempt,
    Loop,
    MarksForEver,
    NeedsRedis,
    NeverLooksUp,
    NoBudget,
    QuickClock,
    RepeatsBlindly,
    RetriesAllButSome,
    RetriesEveryException,
    SkippingClock,
    SleepsWhateverIsAsked,
    StopsAfterDelay,
    WithoutJitter,
    WrapsTheError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from patterns.embedded import Server
    from tests.faults.ledger import Ledger


# 1: attempts and deadline


@pytest.mark.invariant(1)
async def test_neither_attempts_nor_deadline_are_exceeded() -> None:
    """Calls are at most `attempts`, and no wait ends after the deadline, nor does an attempt."""
    await check_attempts_and_deadline(Retry)


@pytest.mark.naive(1)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (CountsRetries, "2 calls where 1"),
        (StopsAfterDelay, "went on until"),
        (Loop, "outlives the deadline"),
    ],
)
async def test_counting_retries_or_looking_at_the_clock_too_late_exceeds_them(
    variant: Make, complaint: str
) -> None:
    """An off-by-one, tenacity's stop_after_delay, and a loop that cannot end an attempt."""
    with pytest.raises(AssertionError, match=complaint):
        await check_attempts_and_deadline(variant)


@pytest.mark.invariant(1)
async def test_a_blocked_event_loop_does_not_carry_a_retry_past_the_deadline() -> None:
    """The loop sleeps through the deadline: the attempt that was due before it is not made."""
    clock = ManualClock()
    service = Scripted(then=fails(ConnectionError("refused")))
    budget = Budget(min_per_second=0, capacity=1, clock=clock)
    call = asyncio.create_task(
        outcome_of(Retry("payments", policy(deadline=3.0), budget=budget, clock=clock).call(service))
    )
    await clock.advance(0.5)
    clock.jump(60.0)
    await clock.advance(0)
    assert isinstance(await call, ConnectionError)
    assert service.calls == 1
    assert budget.take(), "the retry that was not made is still in the budget"


@pytest.mark.invariant(1, 10)
async def test_a_budget_that_takes_its_time_does_not_carry_a_retry_past_the_deadline() -> None:
    """Asking a shared budget took 2.5 s of 3: no wait of a second begins, and the leave goes back."""
    clock = SkippingClock()

    class Slow(Budget):
        async def withdraw(self) -> bool:
            clock.jump(2.5)
            return self.take()

    budget, heard = Slow(min_per_second=0, capacity=1, clock=clock), Recorder()
    retry = Retry("payments", policy(deadline=3.0), budget=budget, clock=clock, on_event=heard)
    service = Scripted(then=fails(ConnectionError("refused")))
    assert isinstance(await outcome_of(retry.call(service)), ConnectionError)
    assert (service.calls, clock.waits, heard.of(RetryGaveUp)[0].reason) == (1, [], Reason.DEADLINE)
    assert budget.take()


@pytest.mark.invariant(1)
async def test_each_attempt_has_its_own_limit_within_the_deadline() -> None:
    """Attempts that hang are cut after 2 s; the third when the deadline has come, 0.2 s after it began."""
    clock, heard = ManualClock(), Recorder()
    bounded = policy(attempt_timeout=2.0, deadline=5.2, attempts=9, base=0.5, cap=0.5)
    service = Scripted(then=hangs())
    retry = Retry("payments", bounded, clock=clock, on_event=heard)
    call = asyncio.create_task(outcome_of(retry.call(service)))
    await clock.advance(5.2)
    error = await call
    assert isinstance(error, AttemptTimedOut)
    assert error.seconds == pytest.approx(0.2)
    assert (service.calls, service.cancelled, error.attempt) == (3, 3, 3)
    assert [event.reason for event in heard.of(RetryGaveUp)] == [Reason.DEADLINE]


@pytest.mark.invariant(1)
async def test_a_loop_that_dawdles_begins_no_attempt_after_the_deadline() -> None:
    """Code between two blocks took longer than there was: the block is not entered."""
    clock, heard = ManualClock(), Recorder()
    retry = Retry("payments", policy(deadline=3.0), clock=clock, on_event=heard)
    service = Scripted(then=returns("paid"))

    async def dawdles() -> None:
        async for attempt in retry.attempts():
            clock.jump(3.0)
            async with attempt:
                await service()

    assert isinstance(await outcome_of(dawdles()), AttemptTimedOut)
    assert (service.calls, heard.of(RetryGaveUp)[0].reason) == (0, Reason.DEADLINE)


# 2: the waits


@pytest.mark.invariant(2)
def test_waits_keep_their_bounds_and_callers_differ() -> None:
    """10,000 failures overflow nothing; chance spreads the waits between the bounds of each jitter."""
    check_waits(Backoff)


@pytest.mark.naive(2)
@pytest.mark.parametrize(
    ("variant", "complaint"), [(DoublesForEver, "overflow after 1024"), (WithoutJitter, "wait alike")]
)
def test_doubling_for_ever_overflows_and_a_fixed_seed_is_no_jitter(variant: Any, complaint: str) -> None:
    """An integer power is too large for a float after 1,024 failures; a seed of its own makes twins."""
    with pytest.raises(AssertionError, match=complaint):
        check_waits(variant)


@pytest.mark.invariant(2)
def test_full_jitter_is_uniform() -> None:
    """Of 10,000 first waits each tenth of the range gets a tenth, give or take a fifth of it."""
    rng = random.Random(7)
    waits = [Backoff(policy(jitter=Jitter.FULL, base=1.0), rng).next() for _ in range(10_000)]
    tenths = Counter(int(wait * 10) for wait in waits)
    assert all(800 <= tenths[tenth] <= 1200 for tenth in range(10)), tenths


@pytest.mark.invariant(2)
def test_decorrelated_waits_grow_at_most_threefold() -> None:
    """Each is between base and three times the one before."""
    backoff, last = Backoff(policy(jitter=Jitter.DECORRELATED, base=0.1, cap=9.0), random.Random(7)), 0.1
    for _ in range(1000):
        wait = backoff.next()
        assert 0.1 <= wait <= min(9.0, last * 3)
        last = wait


def test_a_base_of_zero_waits_not_at_all() -> None:
    """It is allowed: some calls may be repeated at once."""
    assert [Backoff(policy(base=0, jitter=jitter), random.Random(7)).next() for jitter in Jitter] == [0.0] * 4


# 3: what is retried


@pytest.mark.invariant(3)
async def test_only_what_is_listed_is_retried() -> None:
    """Neither unlisted errors nor cancellation, whatever the attempt makes of it; a wait ends at once."""
    await check_what_is_retried(Retry)


@pytest.mark.naive(3)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (RetriesEveryException, "KeyError: 3 calls"),
        (RetriesAllButSome, "CancelledError: 3 calls"),
        (NeverLooksUp, "a cancelled task goes on"),
    ],
)
async def test_retrying_everything_retries_bugs_and_cancellation(variant: Make, complaint: str) -> None:
    """`except Exception`, tenacity's retry_if_not_exception_type, and one that asks nobody."""
    with pytest.raises(AssertionError, match=complaint):
        await check_what_is_retried(variant)


@pytest.mark.invariant(3)
async def test_ignored_errors_are_not_retried_though_their_base_is_listed() -> None:
    """`ignore` wins over `on`."""
    service = Scripted(then=fails(ConnectionAbortedError()))
    with pytest.raises(ConnectionAbortedError):
        await Retry("payments", policy(ignore=(ConnectionAbortedError,)), clock=SkippingClock()).call(service)
    assert service.calls == 1


@pytest.mark.invariant(3)
@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (ExceptionGroup("", [ConnectionError(), TimeoutError()]), 3),
        (ExceptionGroup("", [ConnectionError(), ValueError()]), 1),
        (ExceptionGroup("", [ExceptionGroup("", [ConnectionError()])]), 3),
        (ExceptionGroup("", [ConnectionError(), ConnectionAbortedError()]), 1),
        (BaseExceptionGroup("", [ConnectionError(), KeyboardInterrupt()]), 1),
    ],
)
async def test_a_group_is_retried_if_all_of_it_is(error: BaseException, calls: int) -> None:
    """A TaskGroup in an attempt wraps what happened; one bug among its errors is not cured by repeating."""
    service = Scripted(then=fails(error))
    with pytest.raises(type(error)):
        await Retry("payments", policy(ignore=(ConnectionAbortedError,)), clock=SkippingClock()).call(service)
    assert service.calls == calls


async def refused() -> None:
    """Fail by itself, after a moment."""
    await asyncio.sleep(0)
    raise ConnectionRefusedError


@pytest.mark.invariant(3)
async def test_a_task_group_that_fails_is_retried_and_ends_no_later_retries() -> None:
    """Before Python 3.13 it leaves its task's count of cancellations too high: that is no cancellation."""
    retry, calls = Retry("payments", policy(), clock=SkippingClock()), Counter[str]()

    @retry
    async def grouped(kind: str) -> None:
        calls[kind] += 1
        async with asyncio.TaskGroup() as group:
            group.create_task(refused())

    async def translated() -> None:
        try:
            await grouped.__wrapped__("translated")  # type: ignore[attr-defined]  # what @wraps adds
        except ExceptionGroup:
            raise ConnectionError("one of them") from None

    async def timed() -> None:
        calls["timed"] += 1
        async with asyncio.timeout(0.001):
            await asyncio.get_running_loop().create_future()

    bad = Retry("payments", policy(on_result=lambda result: result is None), clock=SkippingClock())

    async def returned() -> None:
        calls["returned"] += 1

    assert isinstance(await outcome_of(grouped("grouped")), ExceptionGroup)
    assert isinstance(await outcome_of(retry.call(translated)), ConnectionError)
    assert isinstance(await outcome_of(retry.call(timed)), TimeoutError)
    await bad.call(returned)
    assert calls == {"grouped": 3, "translated": 3, "timed": 3, "returned": 3}


@pytest.mark.invariant(3)
async def test_a_cancelled_group_whose_tasks_make_errors_of_it_is_not_retried() -> None:
    """Every error in it is made of a cancellation: nobody failed by himself."""
    calls = 0

    async def closes() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise ConnectionError("closed") from None

    async def grouped() -> None:
        nonlocal calls
        calls += 1
        async with asyncio.TaskGroup() as group:
            group.create_task(closes())
            group.create_task(closes())

    task = asyncio.create_task(outcome_of(Retry("payments", policy(), clock=SkippingClock()).call(grouped)))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    await asyncio.gather(task, return_exceptions=True)
    assert calls == 1


@pytest.mark.invariant(3, 10)
async def test_a_cancellation_still_to_come_ends_the_wait() -> None:
    """An attempt that cancels its own task and then fails: no second one, and the leave goes back."""
    clock = ManualClock()
    budget = Budget(min_per_second=0, capacity=1, clock=clock)
    service = Scripted(then=fails(ConnectionError()))

    async def cancels_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await service()

    service_task = asyncio.create_task(
        Retry("payments", policy(), budget=budget, clock=clock).call(cancels_itself)
    )
    await asyncio.gather(service_task, return_exceptions=True)
    assert (service_task.cancelled(), service.calls, budget.take()) == (True, 1, True)


@pytest.mark.invariant(3, 7)
async def test_a_bad_result_is_retried_when_the_policy_says_so() -> None:
    """HTTP 503 as a value is repeated like an exception, and returned when nothing helped."""
    bad = policy(on_result=lambda status: status >= 500)
    clock = SkippingClock()
    service = Scripted(returns(503), returns(502), returns(200))
    assert await Retry("payments", bad, clock=clock).call(service) == 200
    assert clock.waits == [1.0, 2.0]
    assert await Retry("payments", bad, clock=clock).call(Scripted(then=returns(503))) == 503


async def test_a_result_check_that_raises_reaches_the_caller() -> None:
    """A bug in `on_result` is the caller's to see, and ends the call."""

    def broken(result: object) -> bool:
        raise ZeroDivisionError

    service = Scripted(then=returns(1))
    with pytest.raises(ZeroDivisionError):
        await Retry("payments", policy(on_result=broken), clock=SkippingClock()).call(service)
    assert service.calls == 1


# 4: the budget


@pytest.mark.invariant(4)
async def test_all_callers_together_keep_to_the_budget() -> None:
    """100 calls that all fail make 14 or 15 retries in 5 s where there would be 200."""
    await check_budget(Retry)


@pytest.mark.naive(4)
@pytest.mark.parametrize(
    ("variant", "complaint"), [(NoBudget, "200 retries of 100"), (BudgetEach, "retries of 100 calls in 5 s")]
)
async def test_attempts_alone_or_a_budget_each_multiply_the_load(variant: Make, complaint: str) -> None:
    """Without a budget each failure is three calls; with one for each client they add up."""
    with pytest.raises(AssertionError, match=complaint):
        await check_budget(variant)


@pytest.mark.invariant(4)
@pytest.mark.parametrize("inner", [{}, {"nested": True}, {"attempts": 1}])
async def test_a_success_is_told_once_to_a_budget_of_several_layers(inner: dict[str, Any]) -> None:
    """Ten successes through two retries with one budget earn one retry; with two each has its own."""
    budget, other = (Budget(ratio=0.1, min_per_second=0, capacity=10) for _ in range(2))
    for each in (budget, other):
        assert all(each.take() for _ in range(10))
    outer = Retry("edge", policy(), budget=budget)
    one, two = (Retry("client", policy(**inner), budget=each) for each in (budget, other))
    for _ in range(10):
        await outer.call(one.call, Scripted(returns(1)))
        await outer(one(Scripted(returns(1)).__call__))()
    assert [budget.take() for _ in range(3)] == [True, True, False]
    for _ in range(10):
        await outer.call(two.call, Scripted(returns(1)))
    assert [other.take(), other.take()] == [True, False]


@pytest.mark.invariant(4)
@settings(max_examples=60)
@given(
    ratio=st.sampled_from([0.0, 0.1, 0.5, 2.0]),
    rate=st.sampled_from([0.0, 0.5, 3.0]),
    capacity=st.integers(1, 5),
    steps=st.lists(st.sampled_from(["take", "take", "take", "deposit", "second", "give back"]), max_size=60),
)
def test_the_bucket_equals_a_model_in_fractions(
    ratio: float, rate: float, capacity: int, steps: list[str]
) -> None:
    """Takes, successes and time, against exact arithmetic."""
    clock = ManualClock()
    budget = Budget(ratio=ratio, min_per_second=rate, capacity=capacity, clock=clock)
    tokens, out = Fraction(capacity), 0
    for step in steps:
        if step == "take":
            granted = budget.take()
            assert granted == (tokens >= 1)
            tokens, out = tokens - granted, out + granted
        elif step == "deposit":
            budget.deposit()
            tokens += Fraction(str(ratio))
        elif step == "second":
            clock.jump(1.0)
            tokens += Fraction(str(rate))
        elif out:
            budget.give_back()
            tokens, out = tokens + 1, out - 1
        # Time counts when the bucket is asked, so a full one may be topped up in either order.
        tokens = min(tokens, Fraction(capacity))


@pytest.mark.invariant(4)
def test_threads_that_ask_together_are_granted_no_more() -> None:
    """Eight threads ask a hundred times each for twenty tokens, while another adds some."""
    budget = Budget(ratio=0.5, min_per_second=0, capacity=20)
    barrier = threading.Barrier(9)
    granted: list[bool] = []

    def ask() -> None:
        barrier.wait()
        granted.extend([budget.take() for _ in range(100)])

    def succeed() -> None:
        barrier.wait()
        for _ in range(20):
            budget.deposit()

    threads = [threading.Thread(target=ask) for _ in range(8)] + [threading.Thread(target=succeed)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 20 <= sum(granted) + sum(budget.take() for _ in range(40)) <= 30


# 5: Retry-After


@pytest.mark.invariant(5)
async def test_retry_after_is_the_least_wait_and_bounded() -> None:
    """Two hundred callers told 5 s come back later and apart; too long a pause fails at once."""
    await check_retry_after(Retry)


@pytest.mark.naive(5)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(IgnoresRetryAfter, "asked for 5 s"), (SleepsWhateverIsAsked, "in the same instant")],
)
async def test_ignoring_retry_after_hammers_and_obeying_it_blindly_herds(
    variant: Make, complaint: str
) -> None:
    """One comes back too soon; with the other all come back together."""
    with pytest.raises(AssertionError, match=complaint):
        await check_retry_after(variant)


@pytest.mark.invariant(3, 5)
async def test_an_open_circuit_and_a_full_bulkhead_are_not_hammered() -> None:
    """A refusal that is not listed ends the call; a listed one is heard: not before its `retry_after`."""
    clock = SkippingClock()
    service = Scripted(then=returns("paid"))
    breaker = CircuitBreaker("payments", BreakerPolicy(record=(ConnectionError,)), clock=clock)
    breaker.trip(5.0)
    assert isinstance(
        await outcome_of(Retry("p", policy(), clock=clock).call(breaker.call, service)), CircuitOpen
    )
    assert (clock.monotonic(), service.calls) == (0.0, 0)
    patient = Retry("p", policy(on=(CircuitOpen,)), clock=clock)
    assert await patient.call(breaker.call, service) == "paid"
    assert (clock.monotonic(), service.calls) == (6.0, 1)
    bulkhead = Bulkhead("payments", limit=1, clock=clock)
    async with bulkhead:
        full = await outcome_of(Retry("p", policy(), clock=clock).call(bulkhead.call, service))
    assert isinstance(full, BulkheadFull)
    assert service.calls == 1


@pytest.mark.invariant(5)
@pytest.mark.parametrize(
    ("value", "seconds"),
    HEADERS,
)
def test_the_header_is_seconds_or_a_date(value: Any, seconds: float | None) -> None:
    """RFC 9110: whole seconds, or one of three forms of date; anything else says nothing."""
    assert parse_retry_after(value, ManualClock(wall=NOW)) == seconds


@pytest.mark.invariant(5)
def test_with_the_servers_own_date_our_calendar_does_not_matter() -> None:
    """The pause is the difference of two of the server's dates, though our clock is an hour off."""
    clock = ManualClock(wall=NOW + timedelta(hours=1))
    until, date = "Thu, 01 Jan 2026 00:01:30 GMT", "Thu, 01 Jan 2026 00:00:00 GMT"
    assert parse_retry_after(until, clock) == 0.0
    assert parse_retry_after(until, clock, date=date) == 90.0
    assert parse_retry_after(until, clock, date="nonsense") == 0.0


@pytest.mark.invariant(5)
@pytest.mark.parametrize(
    ("outcome", "seconds"),
    ASKED,
)
def test_a_retry_after_that_is_no_number_says_nothing(outcome: object, seconds: float | None) -> None:
    """Strings, NaN, bools and properties that raise are passed over; a group asks for its longest."""
    assert asked_by(outcome) == seconds


@pytest.mark.invariant(5)
async def test_a_result_may_ask_for_a_pause_too() -> None:
    """A response object with `retry_after` is heard like an exception."""
    clock = SkippingClock()
    busy, fine = Overloaded(4), Overloaded(None)
    retry = Retry("payments", policy(on_result=lambda answer: answer is busy), clock=clock)
    assert await retry.call(Scripted(returns(busy), returns(fine))) is fine
    assert clock.waits == [5.0]


# 6: what must not be done twice


@pytest.mark.invariant(6)
async def test_what_may_have_been_done_is_not_done_again_without_a_key() -> None:
    """One charge after a reset, three attempts after a refusal, one key for each call."""
    await check_not_done_twice(Retry)


@pytest.mark.naive(6)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(RepeatsBlindly, "charged 3 times"), (KeyForEachAttempt, "different keys")],
)
async def test_blind_retries_and_keys_of_each_attempt_charge_twice(variant: Make, complaint: str) -> None:
    """Repeating after a reset, or with a new key, is a second charge."""
    with pytest.raises(AssertionError, match=complaint):
        await check_not_done_twice(variant)


@pytest.mark.invariant(6)
async def test_a_group_of_refusals_proves_nothing() -> None:
    """One request of two was refused, the other had left: a group does not tell of it."""
    sent = 0

    async def charge() -> None:
        nonlocal sent
        sent += 1
        await asyncio.get_running_loop().create_future()

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(charge())
            group.create_task(refused())

    retry = Retry("payments", policy(idempotent=False), clock=SkippingClock())
    assert isinstance(await outcome_of(retry.call(both)), ExceptionGroup)
    assert sent == 1


@pytest.mark.invariant(6, 8)
@pytest.mark.parametrize("outer", [True, "key"])
async def test_no_key_is_made_where_a_retry_further_out_would_make_another(outer: Any) -> None:
    """The outer one would repeat the charge with a new key: it is refused before anything is sent."""
    inner = Retry("payments", policy(idempotent="key", base=0))
    around = Retry("checkout", policy(idempotent=outer, base=0))
    service = Scripted(then=fails(ConnectionResetError()))
    with pytest.raises(
        RuntimeError, match=r"'payments' would make a new .* key in each attempt of 'checkout'"
    ):
        await around.call(inner.call, service)
    assert service.calls == 0
    keys = []

    async def with_a_key_that_lasts() -> None:
        async for attempt in inner.attempts(key="order-17"):
            async with attempt:
                keys.append(current_key())
                await service()

    await outcome_of(around.call(with_a_key_that_lasts))
    assert keys == ["order-17"] * 3
    for harmless in (policy(idempotent=False, base=0), policy(attempts=1)):
        before = service.calls
        await outcome_of(Retry("checkout", harmless).call(inner.call, service))
        assert service.calls > before


@pytest.mark.invariant(6)
async def test_a_bad_result_of_a_call_that_is_not_idempotent_is_not_repeated() -> None:
    """It was answered, so it was sent."""
    service = Scripted(then=returns(503))
    retry = Retry("payments", policy(idempotent=False, on_result=lambda status: status == 503))
    assert await retry.call(service) == 503
    assert service.calls == 1


@pytest.mark.invariant(6)
async def test_the_key_reaches_tasks_of_an_attempt_and_may_be_given() -> None:
    """Tasks begun in an attempt see its key; an order's own number outlives a restart."""
    keys: list[Any] = []

    async def note() -> None:
        keys.append(current_key())

    async def charge() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(note())
            group.create_task(Retry("inner", policy()).call(note))

    retry = Retry("payments", policy(idempotent="key"), rng=random.Random(7))
    await retry.call(charge)
    async for attempt in retry.attempts(key="order-17"):
        async with attempt:
            keys += [attempt.idempotency_key, current_key()]
    assert keys[0] == keys[1]
    assert UUID(keys[0]).version == 4
    assert keys[2:] == ["order-17", "order-17"]
    with pytest.raises(ValueError, match="key must be None unless"):
        Retry("payments", policy()).attempts(key="order-17")
    with pytest.raises(ValueError, match="key must be a text"):
        retry.attempts(key="")


# 7: the caller's outcome


@pytest.mark.invariant(7)
async def test_the_caller_gets_the_last_error_itself() -> None:
    """The same object with a note; time-outs of the attempt, the driver and the caller are three things."""
    await check_the_last_outcome(Retry)


@pytest.mark.naive(7)
async def test_a_wrapper_hides_the_error_from_the_callers_except() -> None:
    """RetryError, which tenacity raises unless told otherwise, is what the caller has to unwrap."""
    with pytest.raises(AssertionError, match="the caller got RetryError"):
        await check_the_last_outcome(WrapsTheError)


@pytest.mark.invariant(7)
async def test_one_error_object_raised_many_times_gets_one_note() -> None:
    """A client that raises a constant does not make it grow; an unlisted error gets none."""
    error, other = ConnectionError("constant"), KeyError("no such order")
    retry = Retry("payments", policy(), clock=SkippingClock())
    for _ in range(20):
        await outcome_of(retry.call(Scripted(then=fails(error))))
        await outcome_of(retry.call(Scripted(then=fails(other))))
    assert len(error.__notes__) == 1
    assert not hasattr(other, "__notes__")


@dataclass(frozen=True)
class Frozen(ConnectionError):
    """An error that lets nothing be added to it."""

    code: int


@pytest.mark.invariant(7)
async def test_an_error_that_takes_no_note_is_raised_without_one() -> None:
    """A frozen error reaches the caller as it is."""
    error = Frozen(503)
    retry = Retry("payments", policy(), clock=SkippingClock())
    assert await outcome_of(retry.call(Scripted(then=fails(error)))) is error


@pytest.mark.invariant(3, 7)
async def test_an_attempt_that_makes_another_error_of_its_timeout_is_retried() -> None:
    """Our own time-out cancels the attempt, and not the task: the next attempt is made."""
    clock, calls = ManualClock(), 0

    async def translates() -> str:
        nonlocal calls
        calls += 1
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise ConnectionError("closed") from None
        return "never"

    call = asyncio.create_task(
        outcome_of(Retry("p", policy(attempt_timeout=1.0), clock=clock).call(translates))
    )
    await clock.advance(10.0)
    assert isinstance(await call, ConnectionError)
    assert calls == 3


@pytest.mark.invariant(2, 6)
def test_forked_processes_share_no_chance() -> None:
    """Jitter and keys come from the system, whose state no fork copies."""
    assert isinstance(Retry("payments", policy()).rng, random.SystemRandom)


@pytest.mark.invariant(7)
async def test_a_failed_call_leaves_no_cycle_for_the_collector() -> None:
    """Frames, errors and time-outs are freed as soon as the caller lets go."""
    retry = Retry("payments", policy(attempt_timeout=1e-9, base=0))
    plain = Retry("payments", policy(base=0))

    async def refuses() -> None:
        raise ConnectionError

    async def work() -> None:
        await outcome_of(retry.call(Scripted(then=hangs())))
        await outcome_of(plain.call(refuses))
        await outcome_of(plain(refuses)())

    await work()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await work()
        gc.collect()
        left = [each for each in gc.garbage if isinstance(each, BaseException)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not [each for each in left if isinstance(each, ConnectionError | AttemptTimedOut)]


def test_attempt_timed_out_says_which_attempt_and_crosses_processes() -> None:
    """The message names retry, attempt and seconds, and the error survives pickling."""
    error = pickle.loads(pickle.dumps(AttemptTimedOut("payments", 2, 1.5)))
    assert str(error) == "attempt 2 of 'payments' took longer than 1.5 s"
    assert (error.name, error.attempt, error.seconds) == ("payments", 2, 1.5)


# 8: layers


@pytest.mark.invariant(8)
async def test_layers_of_retries_do_not_multiply() -> None:
    """3 calls, not 27; and what outlives the outer call is not inside it any more."""
    await check_layers_do_not_multiply(Retry)


@pytest.mark.naive(8)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(Loop, "27 calls by three layers"), (MarksForEver, "outlived the call made 1 attempt")],
)
async def test_layers_without_a_guard_multiply_and_a_guard_without_an_end_disables(
    variant: Make, complaint: str
) -> None:
    """Loops within loops; and a mark that tasks carry away with them."""
    with pytest.raises(AssertionError, match=complaint):
        await check_layers_do_not_multiply(variant)


@pytest.mark.invariant(8)
@pytest.mark.parametrize("outer", ["plain", "listening", "loop"])
async def test_whichever_handle_is_outside_the_inner_one_tries_once(outer: str) -> None:
    """Call, call with a listener, and loop mark their attempts alike; the mark is gone afterwards."""
    service, heard = Scripted(then=fails(ConnectionError())), Recorder()
    inner = Retry("inner", policy(base=0), on_event=heard)
    around = Retry("outer", policy(base=0), on_event=Recorder() if outer == "listening" else _ignored)
    if outer == "plain":
        around = Retry("outer", policy(base=0))
    if outer == "loop":

        async def loop() -> None:
            async for attempt in around.attempts():
                async with attempt:
                    await inner.call(service)

        assert isinstance(await outcome_of(loop()), ConnectionError)
    else:
        assert isinstance(await outcome_of(around.call(inner.call, service)), ConnectionError)
    assert service.calls == 3
    assert {event.reason for event in heard.of(RetryGaveUp)} == {Reason.NESTED}
    mark = MARK.get()
    assert mark is None or mark.over


def _ignored(event: Event) -> None:
    """Listen, and do nothing."""


@pytest.mark.invariant(8)
async def test_a_policy_may_retry_inside_others_and_one_attempt_is_no_layer() -> None:
    """`nested=True` multiplies on purpose; a retry of one attempt leaves the inner one its own."""
    for outer, inner, calls in (
        (policy(base=0), policy(base=0, nested=True), 9),
        (policy(base=0, attempts=1), policy(base=0), 3),
        (policy(base=0, attempts=1, idempotent="key"), policy(base=0), 3),
    ):
        service = Scripted(then=fails(ConnectionError()))
        await outcome_of(Retry("outer", outer).call(Retry("inner", inner).call, service))
        assert service.calls == calls


@pytest.mark.invariant(8)
async def test_tasks_that_begin_each_other_keep_no_chain_of_marks() -> None:
    """A hundred tasks, each begun in an attempt of the one before: the last mark leads to no dead one."""
    retry = Retry("payments", policy(idempotent="key", nested=True))
    tasks: list[asyncio.Task[None]] = []

    async def begin_the_next() -> None:
        if len(tasks) < 100:
            tasks.append(asyncio.create_task(keyed(str(len(tasks)))))
            await asyncio.sleep(0)  # the next one begins inside this attempt
        else:
            mark, length = MARK.get(), 0
            while mark is not None:
                mark, length = mark.outer, length + 1
            lengths.append(length)

    async def keyed(key: str) -> None:
        async for attempt in retry.attempts(key=key):
            async with attempt:
                await begin_the_next()

    lengths: list[int] = []
    await keyed("first")
    for number in range(100):
        await tasks[number]
    assert lengths[0] <= 3


# 10: what is granted and not made, and listeners


@pytest.mark.invariant(10)
async def test_leave_for_a_retry_that_was_not_made_goes_back() -> None:
    """Callers who hang up while they wait cost the others nothing, and no listener breaks a call."""
    await check_leave_comes_back(Budget)


@pytest.mark.naive(10)
async def test_a_budget_without_a_way_back_is_emptied_by_cancellation() -> None:
    """Five callers who hang up, and nobody may retry any more."""
    with pytest.raises(AssertionError, match="no budget is left"):
        await check_leave_comes_back(KeepsWhatIsNotUsed)


# handles and events


async def test_events_tell_what_happened_to_each_call() -> None:
    """Each failure, each wait, and the end: why, after how many attempts, and how long it took."""
    clock, heard = SkippingClock(), Recorder()
    retry = Retry("payments", policy(), clock=clock, on_event=heard)
    service = Scripted(fails(ConnectionError()), fails(TimeoutError()), returns(1))
    assert await retry.call(service) == 1
    await outcome_of(retry.call(Scripted(fails(KeyError()))))
    assert heard.events == [
        AttemptFailed("payments", 1, "ConnectionError", 0.0),
        RetryScheduled("payments", 2, 1.0, "ConnectionError"),
        AttemptFailed("payments", 2, "TimeoutError", 0.0),
        RetryScheduled("payments", 3, 2.0, "TimeoutError"),
        CallSucceeded("payments", 3, 3.0),
        AttemptFailed("payments", 1, "KeyError", 0.0),
        RetryGaveUp("payments", Reason.NOT_RETRIABLE, 1, "KeyError", 0.0),
    ]


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({}, ConnectionError(), Reason.ATTEMPTS),
        ({}, KeyError(), Reason.NOT_RETRIABLE),
        ({"idempotent": False}, ConnectionError(), Reason.NOT_IDEMPOTENT),
        ({"deadline": 0.5}, ConnectionError(), Reason.DEADLINE),
        ({}, Overloaded(1e6), Reason.RETRY_AFTER),
    ],
)
async def test_giving_up_names_its_reason(changes: dict[str, Any], error: Exception, reason: Reason) -> None:
    """One reason for each way to end, in the event and in the note."""
    heard = Recorder()
    retry = Retry("payments", policy(**changes), clock=SkippingClock(), on_event=heard)
    assert await outcome_of(retry.call(Scripted(then=fails(error)))) is error
    assert [event.reason for event in heard.of(RetryGaveUp)] == [reason]
    if reason is not Reason.NOT_RETRIABLE:
        assert reason.value in error.__notes__[0]


async def test_giving_up_for_want_of_budget_or_for_cancellation_is_told() -> None:
    """The other two reasons."""
    heard = Recorder()
    budget = Budget(min_per_second=0, capacity=1)
    assert budget.take()
    retry = Retry("payments", policy(), budget=budget, clock=SkippingClock(), on_event=heard)
    await outcome_of(retry.call(Scripted(then=fails(ConnectionError()))))

    async def closes_when_cancelled() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            raise ConnectionError("closed")

    task = asyncio.create_task(retry.call(closes_when_cancelled))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [event.reason for event in heard.of(RetryGaveUp)] == [Reason.BUDGET, Reason.CANCELLED]


async def test_call_decorator_and_loop_do_the_same() -> None:
    """Three handles, with and without a listener: the same calls, waits and results."""
    for heard in (None, Recorder()):
        for handle in ("call", "decorator", "loop"):
            clock = SkippingClock()
            budget = Budget(ratio=1, min_per_second=0, capacity=9, clock=clock)
            for _ in range(9):
                budget.take()
            service = Scripted(
                returns(0), fails(ConnectionError()), returns(1), then=fails(ConnectionError())
            )
            options: dict[str, Any] = {"on_event": heard} if heard else {}
            retry = Retry("payments", policy(), budget=budget, clock=clock, **options)

            @retry
            async def charge(amount: int, *, to: str, service: Scripted = service) -> Any:
                """Charge a card."""
                assert (amount, to) == (3, "shop")
                return await service()

            async def once(handle: str = handle, retry: Retry = retry, charge: Any = charge) -> Any:
                if handle == "call":
                    return await retry.call(charge.__wrapped__, 3, to="shop")
                if handle == "decorator":
                    return await charge(3, to="shop")
                async for attempt in retry.attempts():
                    async with attempt:
                        return await charge.__wrapped__(3, to="shop")
                raise AssertionError("unreachable")

            assert (charge.__name__, charge.__doc__) == ("charge", "Charge a card.")
            assert [await once(), await once()] == [0, 1]
            assert isinstance(await outcome_of(once()), ConnectionError)
            assert (service.calls, clock.waits) == (5, [1.0, 1.0]), (handle, heard)


async def test_a_decorated_call_raises_at_once_what_is_not_listed() -> None:
    """The quick path of the decorator ends as that of `call` does, with a budget and without."""
    for budget in (None, Budget()):
        service = Scripted(returns(1), then=fails(KeyError("no such order")))

        @Retry("payments", policy(), budget=budget)
        async def charge(service: Scripted = service) -> Any:
            return await service()

        assert await charge() == 1
        with pytest.raises(KeyError):
            await charge()
        assert service.calls == 2


async def test_the_loop_judges_what_was_put_into_result() -> None:
    """Without a result there is nothing to ask `on_result` about."""
    clock = SkippingClock()
    retry = Retry("payments", policy(on_result=lambda status: status >= 500), clock=clock)
    service = Scripted(returns(503), returns(200), returns(503))
    numbers = []
    async for attempt in retry.attempts():
        async with attempt:
            attempt.result = await service()
        numbers.append((attempt.number, attempt.result, attempt.again))
    assert numbers == [(1, 503, True), (2, 200, False)]
    async for attempt in retry.attempts():
        async with attempt:
            await service()
    assert service.calls == 3


async def test_a_loop_that_could_not_end_is_an_error() -> None:
    """An attempt that is not entered, and attempts that are used twice, say what to do."""
    retry = Retry("payments", policy())
    with pytest.raises(RuntimeError, match="each attempt must be entered"):
        async for _ in retry.attempts():
            pass
    attempts = retry.attempts()
    async for attempt in attempts:
        async with attempt:
            pass
    with pytest.raises(RuntimeError, match="used up"):
        async for _ in attempts:
            pass
    with pytest.raises(RuntimeError, match="for `async for`"):
        await anext(retry.attempts())


async def test_leaving_the_loop_early_leaves_no_mark() -> None:
    """Return and break end the call; what is called next is inside nothing."""
    retry = Retry("payments", policy(base=0, deadline=60.0))
    async for attempt in retry.attempts():
        async with attempt:
            break
    service = Scripted(then=fails(ConnectionError()))
    await outcome_of(retry.call(service))
    assert service.calls == 3


async def test_the_loop_tells_its_own_timeout_from_others() -> None:
    """A block that hangs is cut off and tried again; after the last one the caller gets AttemptTimedOut."""
    clock = ManualClock()
    retry = Retry("payments", policy(attempt_timeout=1.0, attempts=2), clock=clock)
    service = Scripted(then=hangs())

    async def loop() -> None:
        async for attempt in retry.attempts():
            async with attempt:
                await service()

    task = asyncio.create_task(outcome_of(loop()))
    await clock.advance(3.0)
    error = await task
    assert isinstance(error, AttemptTimedOut)
    assert (error.attempt, service.calls, clock.sleepers) == (2, 2, 0)


@pytest.mark.parametrize("kind", ["plain", "generator", "async generator"])
def test_the_decorator_refuses_what_it_cannot_repeat(kind: str) -> None:
    """A plain def would block the loop; half of a generator's items cannot be taken back."""

    def plain() -> None:
        pass

    def generator() -> Any:
        yield 1

    async def async_generator() -> Any:
        yield 1

    fn: Any = {"plain": plain, "generator": generator, "async generator": async_generator}[kind]
    with pytest.raises(TypeError, match=r"needs an async def.*retry\.call"):
        Retry("payments", policy())(fn)


@pytest.mark.parametrize(("field", "value", "bound"), BAD_POLICIES)
def test_a_bad_policy_names_field_value_and_bound(field: str, value: object, bound: str) -> None:
    """No retry is built from values that could never work."""
    with pytest.raises(ValueError, match=bound) as refused:
        policy(**{field: value})
    assert field in str(refused.value)


def test_an_attempt_timeout_that_could_do_nothing_is_refused() -> None:
    """One as long as the deadline, and one whose error is not retried."""
    with pytest.raises(ValueError, match=r"attempt_timeout must be < deadline 2, got 2"):
        policy(attempt_timeout=2, deadline=2)
    for changes in ({"on": (ConnectionError,)}, {"ignore": (TimeoutError,)}):
        with pytest.raises(ValueError, match="unless `on` lists TimeoutError"):
            policy(attempt_timeout=2, **changes)


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"ratio": -0.1}, "ratio must be a finite number >= 0"),
        ({"ratio": math.nan}, "ratio"),
        ({"min_per_second": math.inf}, "min_per_second"),
        ({"capacity": 0.5}, "capacity must be a finite number >= 1"),
        ({"capacity": True}, "capacity"),
    ],
)
def test_a_bad_budget_names_field_value_and_bound(changes: dict[str, Any], bound: str) -> None:
    """A bucket that holds no token would never grant one."""
    with pytest.raises(ValueError, match=bound):
        Budget(**changes)


# all of it against a model


@settings(max_examples=200)
@given(
    attempts=st.integers(1, 5),
    deadline=st.none() | st.sampled_from([0.5, 3.0, 7.0, 20.0]),
    idempotent=st.sampled_from([True, False, "key"]),
    outcomes=st.lists(
        st.sampled_from(["ok", "reset", "refused", "bug", "5 s", "100 s", "bad"]), min_size=6, max_size=6
    ),
    capacity=st.none() | st.integers(1, 3),
    handle=st.sampled_from(["call", "loop", "listener"]),
)
def test_every_call_equals_a_model(
    attempts: int,
    deadline: float | None,
    idempotent: Any,
    outcomes: list[str],
    capacity: int | None,
    handle: str,
) -> None:
    """Policies and outcomes at random: the same calls, the same waits, the same end."""
    errors = {
        "reset": ConnectionResetError(),
        "refused": ConnectionRefusedError(),
        "bug": KeyError(),
        "5 s": Overloaded(5),
        "100 s": Overloaded(100),
    }
    chosen = policy(
        attempts=attempts, deadline=deadline, idempotent=idempotent, on_result=lambda result: result == "bad"
    )
    clock = SkippingClock()
    budget = None if capacity is None else Budget(ratio=0, min_per_second=0, capacity=capacity, clock=clock)
    number, waits, outcome = expected(outcomes, attempts, deadline, idempotent, capacity)
    steps = [fails(errors[each]) if each in errors else returns(each) for each in outcomes]
    service = Scripted(*steps)
    options: dict[str, Any] = {"on_event": Recorder()} if handle == "listener" else {}
    retry = Retry("payments", chosen, budget=budget, clock=clock, **options)

    async def run() -> Any:
        if handle != "loop":
            return await retry.call(service)
        async for attempt in retry.attempts():
            async with attempt:
                attempt.result = await service()
        return attempt.result

    result = asyncio.run(outcome_of(run()))
    assert (service.calls, clock.waits) == (number, waits)
    assert result == errors.get(outcome, outcome)


# 9: shared through Redis


@pytest.mark.invariant(9)
async def test_two_processes_share_one_budget(server: Server, app: str, spawn: Any) -> None:
    """Eighty callers in two processes: ten retries in all."""
    await check_processes_share_the_budget(server, app, spawn, "shared")


@pytest.mark.naive(9)
async def test_a_budget_in_each_process_multiplies_the_retries(server: Server, app: str, spawn: Any) -> None:
    """With local budgets each process makes its own ten."""
    with pytest.raises(AssertionError, match="20 retries of two processes"):
        await check_processes_share_the_budget(server, app, spawn, "alone")


@pytest.mark.invariant(9)
async def test_a_success_costs_no_round_trip(fresh_server: Server, app: str) -> None:
    """What successes have earned is handed in with the next question."""
    await check_success_costs_no_round_trip(fresh_server, app, SharedBudget)


@pytest.mark.naive(9)
async def test_a_budget_that_hands_in_each_success_asks_as_often(fresh_server: Server, app: str) -> None:
    """A hundred successes, a hundred commands."""
    with pytest.raises(AssertionError, match="100 successes sent 100 commands"):
        await check_success_costs_no_round_trip(fresh_server, app, AsksForEachSuccess)


@pytest.mark.invariant(4, 9)
@pytest.mark.parametrize("where", ["server", "cluster"])
async def test_the_shared_bucket_is_earned_and_emptied_by_all(
    request: pytest.FixtureRequest, where: str, app: str
) -> None:
    """What one process spends the other lacks, and what one earns the other may spend; also on a cluster."""
    url = request.getfixturevalue(where).url
    async with opened(url) as one, opened(url) as two:
        here, there = shared(one, app), shared(two, app)
        assert [await here.withdraw() for _ in range(10)] == [True] * 10
        assert not await there.withdraw()
        for _ in range(10):
            here.deposit()
        assert await here.withdraw()
        for _ in range(1000):
            here.deposit()
        here.give_back()
        assert [await here.withdraw() for _ in range(3)] == [True, True, False], (
            "one purse, and what came back"
        )
        key = Keyspace(app, "retry").key("payments", "budget")
        assert 0 < await one.pttl(key) <= 86_400_000


@pytest.mark.invariant(9)
@pytest.mark.parametrize("step", [-7200, 7200])
async def test_a_step_of_the_servers_clock_grants_no_more_than_a_full_bucket(
    server: Server, app: str, step: int
) -> None:
    """A bucket of the future earns nothing and is not frozen; one of the past is full and no more."""
    async with opened(server.url) as client:
        budget = shared(client, app, min_per_second=1)
        assert await budget.withdraw()
        key = Keyspace(app, "retry").key("payments", "budget")
        now = int((await client.time())[0]) * 1000
        await client.hset(key, mapping={"tokens": "0", "at": str(now - step * 1000)})
        granted = [await budget.withdraw() for _ in range(15)]
        assert sum(granted) == (0 if step < 0 else 10)
        assert abs(int((await client.hget(key, "at")) or 0) - now) < 60_000


@pytest.mark.invariant(9)
async def test_time_fills_the_shared_bucket_by_the_servers_clock(server: Server, app: str) -> None:
    """Three seconds at two a second are six retries; then the key lasts until it would be full."""
    async with opened(server.url) as client:
        budget = shared(client, app, min_per_second=2)
        key = Keyspace(app, "retry").key("payments", "budget")
        seconds, micros = await client.time()
        at = int(seconds) * 1000 + int(micros) // 1000 - 3000
        await client.hset(key, mapping={"tokens": "0", "at": str(at)})
        assert [await budget.withdraw() for _ in range(7)] == [True] * 6 + [False]
        assert 0 < await client.pttl(key) <= 5001


@pytest.mark.invariant(9, 10)
async def test_what_could_not_be_handed_in_is_handed_in_later(fresh_server: Server, app: str) -> None:
    """Redis refuses the connection: the leave that came back, and what was earned, are not lost with it."""
    clock = ManualClock()
    async with opened(fresh_server.url, connect_timeout=1) as client:
        budget = shared(client, app, clock=clock)
        assert [await budget.withdraw() for _ in range(10)] == [True] * 10
        await client.save()
        for _ in range(3):
            budget.give_back()
        for _ in range(10):
            budget.deposit()
        fresh_server.kill()
        assert await budget.withdraw()
        assert budget.alone
        fresh_server.restart()
        clock.jump(1.1)
        assert [await budget.withdraw() for _ in range(5)] == [True] * 4 + [False]


@pytest.mark.invariant(9)
async def test_what_a_process_may_do_without_redis_can_be_set(app: str) -> None:
    """Twenty processes alone are twenty budgets: each may be given a share."""
    async with opened("redis://127.0.0.1:1/0", connect_timeout=1) as client:
        share = Budget(min_per_second=0, capacity=1)
        budget = shared(client, app, local=share)
        assert [await budget.withdraw() for _ in range(3)] == [True, False, False]


def test_a_shared_budget_refuses_what_is_none() -> None:
    """The bounds of the local one, and a time-out."""
    client: Any = None
    for field, value in (("capacity", 0), ("ratio", -1), ("timeout", 0), ("timeout", math.nan)):
        bad: dict[str, Any] = {field: value}
        with pytest.raises(ValueError, match=field):
            shared(client, "app", **bad)


# faults


@pytest.mark.invariant(2, 4)
@pytest.mark.fault("a dependency is down for 10 s under 1,000 callers")
async def test_a_storm_is_spread_and_bounded(ledger: Callable[..., Ledger], rng: random.Random) -> None:
    """Callers who failed in one instant come back apart, and together within the budget."""
    asyncio.get_running_loop().set_debug(False)  # a stack for each of many thousand waits takes all the time
    books = ledger(
        bound="at most 2x the mean in any 100 ms, load at most 1 + (capacity + rate x time) / calls"
    )
    quick = {"attempts": 12, "base": 1.0, "cap": 4.0}

    async def storm(make: Make, jitter: Jitter, budget: Budget | None, clock: ManualClock) -> list[float]:
        times: list[float] = []

        async def down() -> str:
            times.append(clock.monotonic())
            if clock.monotonic() < 10.0:
                raise ConnectionError("down")
            return "ok"

        callers = [
            asyncio.create_task(
                outcome_of(
                    make("p", policy(**quick, jitter=jitter), budget=budget, clock=clock, rng=rng).call(down)
                )
            )
            for _ in range(1000)
        ]
        for _ in range(60):
            await clock.advance(0.5)
        for number, outcome in enumerate(await asyncio.gather(*callers)):
            if make is Retry and budget is None:
                books.acked(number) if outcome == "ok" else books.failed(number)
                if outcome == "ok":
                    books.effect(number)
        return times

    def busiest(times: list[float]) -> int:
        return max(Counter(int(at * 10) for at in times if at > 0).values())

    fixed = await storm(FixedSleep, Jitter.NONE, None, CrowdClock())
    spread = await storm(Retry, Jitter.FULL, None, CrowdClock())
    books.injected(1000)
    first = [at for at in spread if 0 < at < 1.0]
    bins = Counter(int(at * 10) for at in first)
    assert max(bins.values()) <= 2 * len(first) / 10, bins
    clock = CrowdClock()
    kept = await storm(Retry, Jitter.FULL, Budget(min_per_second=10, capacity=100, clock=clock), clock)
    assert len(kept) - 1000 <= 100 + 10 * 30
    books.held(
        f"jitter: busiest 100 ms {busiest(spread)} calls; with a budget {len(kept) / 1000:.2f} calls for each"
    )
    books.naive(f"fixed sleep: busiest 100 ms {busiest(fixed)} calls; {len(fixed) / 1000:.2f} for each")


INCR_ONCE = Script(
    "test.incr_once",
    "if redis.call('SET', KEYS[2], '', 'NX', 'PX', 60000) then return redis.call('INCR', KEYS[1]) end\n"
    "return redis.call('GET', KEYS[1])",
)


@pytest.mark.invariant(6)
@pytest.mark.fault("reply lost after an INCR was carried out")
async def test_a_lost_reply_doubles_nothing(server: Server, app: str, ledger: Callable[..., Ledger]) -> None:
    """Fifty increments whose reply is lost are left unsure; a blind retry makes two of each."""
    books = ledger(bound="each carried out once or not at all")
    naive = books.without("blind retry")
    careful = policy(
        on=(RedisConnectionError,),
        idempotent=False,
        ignore=(OutcomeUnknown,),
        never_sent=(RedisConnectionError,),
        base=0,
    )
    blind = policy(on=(RedisConnectionError,), base=0)
    for book, chosen in ((books, careful), (naive, blind)):
        async with proxy(server.port, book) as link, opened(link.url) as client, opened(server.url) as look:
            retry = Retry("redis", chosen)
            for number in range(50):
                key = f"{app}:{chosen.idempotent}:{number}"
                with link.lose_reply(b"INCR", times=1):
                    outcome = await outcome_of(retry.call(client.incr, key))
                book.unsure(number) if isinstance(outcome, OutcomeUnknown) else book.acked(number)
                book.effect(number, int(await look.get(key) or 0))
    books.held(f"{books.outcomes['unsure']} reported as unknown, none repeated")


@pytest.mark.invariant(6)
@pytest.mark.fault("reply lost after an increment with an idempotency key")
async def test_with_a_key_a_lost_reply_costs_a_retry_and_no_double(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Fifty increments whose reply is lost are repeated with their key, acknowledged, and done once."""
    books = ledger(unsure=0, bound="all acknowledged, each done once")
    naive = books.without("a new key for each attempt")
    keyed = policy(on=(RedisConnectionError,), idempotent="key", base=0)
    for book, make in ((books, Retry), (naive, FreshKeys)):
        async with proxy(server.port, book) as link, opened(link.url) as client, opened(server.url) as look:
            retry = make("redis", keyed)
            await INCR_ONCE(client, keys=[f"{{{app}}}:warm", f"{{{app}}}:warm:seen"])

            async def increment(number: int, tag: str = make.__name__, client: Any = client) -> Any:
                key = f"{{{app}:{tag}:{number}}}"
                return await INCR_ONCE(client, keys=[f"{key}:count", f"{key}:{current_key()}"])

            for number in range(50):
                with link.lose_reply(b"EVALSHA", times=1):
                    await retry.call(increment, number)
                book.acked(number)
                key = f"{{{app}:{make.__name__}:{number}}}:count"
                book.effect(number, int(await look.get(key) or 0))
    books.held("every one acknowledged, each done once")


@pytest.mark.invariant(3, 10)
@pytest.mark.fault("callers cancelled at a random moment")
async def test_cancelled_callers_make_no_further_call(
    ledger: Callable[..., Ledger], rng: random.Random
) -> None:
    """A thousand callers are cancelled while they call or wait: none calls again, the budget is full."""
    asyncio.get_running_loop().set_debug(False)  # a stack for each of many thousand waits takes all the time
    books = ledger(bound="0 calls after the cancellation, every token back")
    naive = books.without("a retry that takes cancellation for an error")
    for book, make in ((books, Retry), (naive, RetriesAllButSome)):
        clock = CrowdClock()
        budget = Budget(ratio=0, min_per_second=0, capacity=1000, clock=clock)
        made = 0
        services = [Scripted(then=fails(ConnectionError()).after(1.0), clock=clock) for _ in range(1000)]
        retry = make("p", policy(attempts=4, jitter=Jitter.FULL), budget=budget, clock=clock, rng=rng)
        callers = [asyncio.create_task(outcome_of(retry.call(each))) for each in services]
        order = rng.sample(range(1000), 1000)
        for step in range(20):
            await clock.advance(0.1)
            for number in order[step * 50 : step * 50 + 50]:
                if callers[number].done():
                    continue
                before = services[number].calls
                callers[number].cancel()
                book.injected()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                book.acked(number)  # the caller was told that it is cancelled
                book.effect(number)
                made += before - 1
        await clock.advance(10)
        for number in range(1000):
            while not callers[number].done():
                callers[number].cancel()
                await asyncio.sleep(0)
            if not callers[number].cancelled():
                book.effect(number)  # it went on
        await asyncio.gather(*callers, return_exceptions=True)
        assert clock.sleepers == 0
        if make is Retry:
            left = sum(budget.take() for _ in range(1001))
            assert left == 1000 - made, (left, made)
    books.held("each ended at once; the budget holds what was not used")


@pytest.mark.invariant(5)
@pytest.mark.fault("an overloaded dependency says 429 with Retry-After: 5 to 1,000 callers")
async def test_retry_after_gives_an_overloaded_dependency_its_pause(
    ledger: Callable[..., Ledger], rng: random.Random
) -> None:
    """It is left alone for its five seconds, and then they do not come in one instant."""
    asyncio.get_running_loop().set_debug(False)  # a stack for each of many thousand waits takes all the time
    books = ledger(bound="0 calls in the pause, at most 2x the mean in any 100 ms after it")
    early = {}
    for make in (Retry, IgnoresRetryAfter):
        clock = CrowdClock()
        times: list[float] = []

        async def overloaded(clock: ManualClock = clock, times: list[float] = times) -> str:
            times.append(clock.monotonic())
            if clock.monotonic() < 5.0:
                raise Overloaded(5.0 - clock.monotonic())
            return "ok"

        spread = policy(jitter=Jitter.FULL, attempts=9)
        callers = [
            asyncio.create_task(outcome_of(make("p", spread, clock=clock, rng=rng).call(overloaded)))
            for _ in range(1000)
        ]
        for _ in range(60):
            await clock.advance(0.5)
        outcomes = await asyncio.gather(*callers)
        early[make] = sum(0 < at < 5.0 for at in times)
        if make is Retry:
            books.injected(1000)
            for number, outcome in enumerate(outcomes):
                (books.acked if outcome == "ok" else books.failed)(number)
                books.effect(number)
            bins = Counter(int(at * 10) for at in times if at >= 5.0)
            assert max(bins.values()) <= 2 * 1000 / 10, bins
    assert early[Retry] == 0
    assert early[IgnoresRetryAfter] > 0
    books.held("0 calls in the pause, all served after it")
    books.naive(f"own backoff only: {early[IgnoresRetryAfter]} calls in the pause")


@pytest.mark.invariant(1)
@pytest.mark.fault("every attempt hangs under a deadline of 5 s")
async def test_the_deadline_bounds_the_sum_of_all_attempts(ledger: Callable[..., Ledger]) -> None:
    """A hundred callers are told at 5 s at the latest; without a cut they hang on."""
    books = ledger(bound="every caller has an answer after 5 s")
    naive = books.without("a deadline that is looked at between attempts")
    for book, make in ((books, Retry), (naive, StopsAfterDelay)):
        clock = QuickClock()
        bounded = policy(deadline=5.0, attempt_timeout=2.0, attempts=9, base=0.1, jitter=Jitter.FULL)
        callers = [
            asyncio.create_task(outcome_of(make("p", bounded, clock=clock).call(Scripted(then=hangs()))))
            for _ in range(100)
        ]
        book.injected(100)
        await clock.advance(5.0)
        for number, caller in enumerate(callers):
            book.acked(number)  # an answer is owed
            if caller.done():
                book.effect(number)
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    books.held("all were told in time, by AttemptTimedOut")


@pytest.mark.invariant(8)
@pytest.mark.fault("three layers of three attempts over a dependency that is down")
async def test_layers_make_one_layers_load(ledger: Callable[..., Ledger]) -> None:
    """A hundred requests through three layers of retries make three calls each."""
    books = ledger(bound="3 calls for each request")
    calls = {}
    for make in (Retry, Loop):
        service = Scripted(then=fails(ConnectionError("down")))
        layers: list[Any] = [make(f"layer {each}", policy(), clock=SkippingClock()) for each in range(3)]
        for number in range(100):
            error = await outcome_of(layers[0].call(layers[1].call, layers[2].call, service))
            assert isinstance(error, ConnectionError)
            if make is Retry:
                books.injected()
                books.failed(number)
        calls[make] = service.calls / 100
    assert calls[Retry] == 3
    books.held(f"{calls[Retry]:.0f} calls for each request")
    books.naive(f"no guard: {calls[Loop]:.0f} calls for each request")


@pytest.mark.invariant(9)
@pytest.mark.naive(9)
@pytest.mark.fault("Redis killed while the budget is shared")
async def test_without_redis_each_process_has_a_budget_of_its_own(
    fresh_server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Ten retries more, then none; without a local bucket no call is retried at all."""
    books = ledger(within=5.0, bound="10 retries from the local budget, no more")
    naive = books.without("no local budget")
    await check_goes_on_alone(fresh_server, app, SharedBudget, books)
    with pytest.raises(AssertionError, match="10 of 10 calls were not retried"):
        await check_goes_on_alone(fresh_server, f"{app}-naive", NeedsRedis, naive)
    books.held("retried within the local budget, then shared again")


@pytest.mark.invariant(4, 9)
@pytest.mark.fault("reply of the shared budget lost after the token was taken")
async def test_a_lost_reply_grants_no_retry_twice(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Twenty questions whose reply is lost cost a token each at most; the local bucket answers them."""
    books = ledger(bound="one token gone for each question, at most")
    naive = books.without("redis-py's default retries")
    async with opened(server.url) as look:
        await shared(look, f"{app}-warm").withdraw()  # the server knows the script
        for book in (books, naive):
            key = Keyspace(f"{app}-{book is books}", "retry").key("payments", "budget")
            async with (
                proxy(server.port, book) as link,
                opened(link.url) as careful,
                Redis(port=link.port, protocol=2) as default,
            ):
                clock = ManualClock()
                client: Any = careful if book is books else default
                budget = shared(client, f"{app}-{book is books}", clock=clock, capacity=50)
                for number in range(20):
                    clock.jump(1.1)  # it asks Redis again
                    before = float(await look.hget(key, "tokens") or 50)
                    with link.lose_reply(b"EVALSHA", times=1):
                        assert await budget.withdraw()
                    book.unsure(number)
                    book.effect(number, round(before - float(await look.hget(key, "tokens") or 50)))
    books.held("one token gone for each, and the local bucket answered")
