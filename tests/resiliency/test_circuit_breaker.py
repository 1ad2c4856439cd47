"""The proof of patterns/resiliency/circuit_breaker: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import pickle
import random
import threading
from collections import deque
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from redis.asyncio import Redis
from redis.exceptions import RedisError

from patterns.clock import ManualClock
from patterns.events import Event, Recorder
from patterns.keyspace import Keyspace, opened
from patterns.resiliency.circuit_breaker import (
    CallFailed,
    CallIgnored,
    CallRejected,
    CallSucceeded,
    CircuitBreaker,
    CircuitOpen,
    CountBased,
    Permit,
    Policy,
    State,
    StateChanged,
    TimeBased,
)
from patterns.resiliency.circuit_breaker.shared import (
    SharedCircuitBreaker,
    SharedPermit,
    SharingLost,
    SharingRegained,
)
from patterns.scripted import Scripted, fails, hangs, returns
from tests.eventually import eventually
from tests.faults.proxy import proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from patterns.clock import Clock
    from patterns.embedded import Server
    from patterns.events import Listener
    from patterns.keyspace import Client
    from tests.faults.ledger import Ledger

Make = Any  # CircuitBreaker or a naive variant with the same constructor


def policy(**changes: Any) -> Policy:
    """Return a small policy: half of the last 4 calls opens it for 10 s, 2 probes decide within 5 s."""
    defaults: dict[str, Any] = {
        "record": (ConnectionError, TimeoutError),
        "ignore": (LookupError,),
        "sliding_window": CountBased(4),
        "minimum_calls": 4,
        "wait_in_open": 10.0,
        "permitted_calls_in_half_open": 2,
        "max_wait_in_half_open": 5.0,
        "slow_call_duration": 1.0,
    }
    return Policy(**(defaults | changes))


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    """Make the dependency fail behind `breaker`."""
    for _ in range(times):
        breaker.failed(breaker.admit(), ConnectionError("refused"))


def succeed(breaker: CircuitBreaker, times: int = 1) -> None:
    """Make the dependency answer behind `breaker`."""
    for _ in range(times):
        breaker.succeeded(breaker.admit())


def state_of(breaker: CircuitBreaker) -> State:
    """Read the state anew (a type checker would believe the last assertion)."""
    return breaker.state


def half_open(make: Make, clock: ManualClock, **changes: Any) -> CircuitBreaker:
    """Return a breaker that has been tripped and has waited out its time."""
    breaker: CircuitBreaker = make("payments", policy(**changes), clock=clock)
    fail(breaker, 4)
    clock.jump(10)
    return breaker


# 1: it opens exactly at the threshold


def check_opens_exactly_at_threshold(make: Make) -> None:
    """Opening needs both enough outcomes and a high enough rate."""
    for threshold in (0.07, 0.5, 1.0):
        for failures in (0, 6, 7, 8, 49, 50, 51, 99, 100):
            breaker = make(
                "payments",
                policy(failure_rate_threshold=threshold, sliding_window=CountBased(100), minimum_calls=100),
            )
            with contextlib.suppress(CircuitOpen):
                fail(breaker, min(failures, 99))
                succeed(breaker, 99 - min(failures, 99))
            assert state_of(breaker) is State.CLOSED, f"opened below minimum_calls with {failures} failures"
            (fail if failures == 100 else succeed)(breaker, 1)
            expected = State.OPEN if failures / 100 >= threshold else State.CLOSED
            assert state_of(breaker) is expected, f"{failures} of 100 failed, threshold {threshold}"


class OpensOnConsecutiveFailures(CircuitBreaker):
    """The usual tutorial breaker: five failures in a row open it."""

    def __init__(self, name: str, policy: Policy, **options: Any) -> None:
        super().__init__(name, policy, **options)
        self.failures = 0

    def failed(self, permit: Permit, error: BaseException) -> None:
        self.failures += 1
        if self.failures >= 5:
            self.trip()

    def succeeded(self, permit: Permit, result: object = None) -> None:
        self.failures = 0


@pytest.mark.invariant(1)
def test_opens_exactly_when_enough_outcomes_reach_the_threshold() -> None:
    """With 99 of 99 failed it is still closed; at 100 outcomes the rate alone decides."""
    check_opens_exactly_at_threshold(CircuitBreaker)


@pytest.mark.naive(1)
def test_counting_consecutive_failures_is_not_a_failure_rate() -> None:
    """A breaker that counts failures in a row opens below the minimum."""
    with pytest.raises(AssertionError, match="opened below minimum_calls"):
        check_opens_exactly_at_threshold(OpensOnConsecutiveFailures)


# 2: open means no calls


async def check_open_calls_nothing(make: Make) -> None:
    """While open, callers are refused at once and told how long; the dependency is left alone."""
    clock = ManualClock()
    service = Scripted(then=fails(ConnectionError("refused")), clock=clock)
    breaker = make("payments", policy(), clock=clock)
    guarded = breaker(service_call(service))
    for _ in range(20):
        with pytest.raises((ConnectionError, CircuitOpen)):
            await guarded()
    assert service.calls == 4, f"{service.calls} of 20 calls reached the dependency"
    clock.jump(9.5)
    with pytest.raises(CircuitOpen) as refused:
        await guarded()
    assert refused.value.retry_after == pytest.approx(0.5)
    assert service.calls == 4


def service_call(service: Scripted) -> Callable[[], Coroutine[Any, Any, Any]]:
    """Return `service` as an async def, which is what a decorator is put on."""

    async def call() -> Any:
        return await service()

    return call


class ForgetsToAwait(CircuitBreaker):
    """A synchronous breaker put on an async def: the body has not run yet when the breaker looks."""

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(fn)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with self:
                return fn(*args, **kwargs)

        return guarded


@pytest.mark.invariant(2)
async def test_open_refuses_at_once_and_says_when_to_come_back() -> None:
    """Of 20 calls to a dead dependency 4 reach it, and the refusal carries the seconds left."""
    await check_open_calls_nothing(CircuitBreaker)


@pytest.mark.naive(2)
async def test_a_synchronous_breaker_on_an_async_def_never_opens() -> None:
    """All 20 calls reach the dependency when the coroutine is awaited outside the breaker."""
    with pytest.raises(AssertionError, match="20 of 20 calls reached"):
        await check_open_calls_nothing(ForgetsToAwait)


# 3: half-open admits few


async def check_half_open_admits_only_permitted(make: Make) -> None:
    """Fifty callers arrive in half-open: only the permitted probes pass, and together they decide."""
    clock = ManualClock()
    breaker = half_open(make, clock)
    service = Scripted(then=returns("pong").after(0.5), clock=clock)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(outcome_of(breaker.call(service))) for _ in range(50)]
        await clock.advance(0.5)
    assert service.calls == 2, f"{service.calls} of 50 callers became probes"
    assert [task.result() for task in tasks].count("CircuitOpen") == 48
    assert state_of(breaker) is State.CLOSED


async def outcome_of(call: Coroutine[Any, Any, Any]) -> str:
    """Return what came of `call`: "ok" or the name of the exception."""
    try:
        await call
    except Exception as error:
        return type(error).__name__
    return "ok"


class AdmitsAllInHalfOpen(CircuitBreaker):
    """What purgatory and aiobreaker do: half-open is checked by the outcome, not by the entrance."""

    def admit(self) -> Permit:
        if self.state is State.HALF_OPEN:
            return self._generation, self._now()
        return super().admit()


@pytest.mark.invariant(3)
async def test_half_open_admits_no_more_than_the_permitted_probes() -> None:
    """Of 50 callers at the moment of half-open, 2 are let through."""
    await check_half_open_admits_only_permitted(CircuitBreaker)


@pytest.mark.naive(3)
async def test_a_half_open_state_without_permits_lets_the_herd_through() -> None:
    """Without permits all 50 callers hit the dependency that has just come back."""
    with pytest.raises(AssertionError, match="50 of 50 callers became probes"):
        await check_half_open_admits_only_permitted(AdmitsAllInHalfOpen)


@pytest.mark.invariant(3)
@pytest.mark.parametrize(("failures", "expected"), [(0, State.CLOSED), (1, State.OPEN), (2, State.OPEN)])
def test_half_open_is_decided_by_the_rate_over_all_permitted_probes(failures: int, expected: State) -> None:
    """Half of two probes failing reaches a threshold of one half; nothing is decided after one."""
    breaker = half_open(CircuitBreaker, ManualClock())
    permits = [breaker.admit(), breaker.admit()]
    for at, permit in enumerate(permits):
        assert state_of(breaker) is State.HALF_OPEN
        if at < failures:
            breaker.failed(permit, TimeoutError())
        else:
            breaker.succeeded(permit)
    assert state_of(breaker) is expected


@pytest.mark.invariant(3)
def test_threads_that_meet_half_open_together_share_the_permits() -> None:
    """Sixteen threads at one barrier: two are admitted."""
    breaker = half_open(CircuitBreaker, ManualClock())
    barrier = threading.Barrier(16)
    admitted: list[Permit] = []

    def arrive() -> None:
        barrier.wait()
        with contextlib.suppress(CircuitOpen):
            admitted.append(breaker.admit())

    threads = [threading.Thread(target=arrive) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 2


# 4: no wedge


async def check_half_open_always_ends(make: Make) -> None:
    """Probes that are cancelled, ignored or silent do not keep the breaker half-open."""
    clock = ManualClock()
    breaker = half_open(make, clock)
    for _ in range(5):
        probe = asyncio.create_task(breaker.call(Scripted(hangs(), clock=clock)))
        await clock.advance(0)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        for _ in range(2):
            outcome = await outcome_of(breaker.call(Scripted(fails(KeyError("no such order")))))
            assert outcome == "KeyError", "no permit is left after cancelled and ignored probes"
        with pytest.raises(KeyboardInterrupt), breaker:
            raise KeyboardInterrupt
    assert breaker.retry_after == 0.0
    stuck = [asyncio.create_task(breaker.call(Scripted(hangs()))) for _ in range(2)]
    try:
        await clock.advance(5)
        assert state_of(breaker) is State.OPEN, "two probes that never return hold it half-open"
        await clock.advance(10)
        assert state_of(breaker) is State.HALF_OPEN
        succeed(breaker, 2)
        assert state_of(breaker) is State.CLOSED
    finally:
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)


class KeepsThePermitOfACancelledProbe(CircuitBreaker):
    """Permits come back through success and failure only (resilience4j #544)."""

    def abandoned(self, permit: Permit, error: BaseException | None = None) -> None:
        pass


class WaitsForeverInHalfOpen(CircuitBreaker):
    """No longest wait in half-open: resilience4j's default of 0."""

    def __init__(self, name: str, policy: Policy, **options: Any) -> None:
        super().__init__(name, _with(policy, max_wait_in_half_open=math.inf), **options)


def _with(policy: Policy, **changes: Any) -> Policy:
    values = {name: getattr(policy, name) for name in Policy.__dataclass_fields__}
    return Policy(**(values | changes))


@pytest.mark.invariant(4)
async def test_half_open_ends_whatever_the_probes_do() -> None:
    """Cancelled and ignored probes give their permits back; silent ones are overruled after 5 s."""
    await check_half_open_always_ends(CircuitBreaker)


@pytest.mark.naive(4)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (KeepsThePermitOfACancelledProbe, "no permit is left"),
        (WaitsForeverInHalfOpen, "hold it half-open"),
    ],
)
async def test_lost_permits_and_endless_waits_wedge_the_breaker(variant: Make, complaint: str) -> None:
    """Two known bugs of well-known breakers leave it half-open for good."""
    with pytest.raises(AssertionError, match=complaint):
        await check_half_open_always_ends(variant)


@pytest.mark.invariant(4)
def test_a_breaker_seen_late_is_where_timers_would_have_put_it() -> None:
    """A probe has been out for too long, and the open state after it is over: the next call is a probe."""
    clock = ManualClock()
    breaker = half_open(CircuitBreaker, clock)
    breaker.admit()
    clock.jump(5 + 9.9)
    assert state_of(breaker) is State.OPEN
    assert breaker.retry_after == pytest.approx(0.1)
    clock.jump(0.2)
    assert state_of(breaker) is State.HALF_OPEN


@pytest.mark.invariant(4)
def test_half_open_waits_for_as_long_as_no_probe_is_out() -> None:
    """On little traffic the probes come minutes apart, and a monitor that reads the state starts no clock."""
    clock = ManualClock()
    breaker = half_open(CircuitBreaker, clock)
    for _ in range(2):
        assert state_of(breaker) is State.HALF_OPEN
        clock.jump(3600)
        succeed(breaker)
    assert state_of(breaker) is State.CLOSED


@pytest.mark.invariant(4)
async def test_a_result_check_that_raises_gives_the_permit_back() -> None:
    """A bug in `record_result` reaches the caller and does not cost a permit."""

    def broken(result: object) -> bool:
        raise ZeroDivisionError

    clock = ManualClock()
    breaker = half_open(CircuitBreaker, clock, record_result=broken)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await breaker.call(Scripted(returns(1)))
    assert breaker.retry_after == 0.0


# 5: stragglers


def check_stragglers_change_nothing(make: Make) -> None:
    """Calls begun while closed report after the breaker has opened, probed and closed."""
    clock = ManualClock()
    breaker = make("payments", policy(), clock=clock)
    old = [breaker.admit() for _ in range(8)]
    fail(breaker, 4)
    breaker.succeeded(old[0])
    assert state_of(breaker) is State.OPEN
    clock.jump(10)
    assert state_of(breaker) is State.HALF_OPEN
    breaker.failed(old[1], ConnectionError())
    breaker.failed(old[2], ConnectionError())
    assert state_of(breaker) is State.HALF_OPEN, "calls from before the outage decided the probes"
    succeed(breaker, 2)
    for permit in old[3:]:
        breaker.failed(permit, ConnectionError())
    assert state_of(breaker) is State.CLOSED
    assert breaker.rates()[0] == 0


class CountsStragglers(CircuitBreaker):
    """No generation: whatever comes in is counted in the state of the moment."""

    def failed(self, permit: Permit, error: BaseException) -> None:
        super().failed((self._generation, permit[1]), error)


@pytest.mark.invariant(5)
def test_a_call_from_before_the_last_change_of_state_changes_nothing() -> None:
    """Late results of an earlier generation are dropped, in every state."""
    check_stragglers_change_nothing(CircuitBreaker)


@pytest.mark.naive(5)
def test_without_generations_late_failures_reopen_a_healthy_circuit() -> None:
    """Failures of calls begun before the outage count as probe results."""
    with pytest.raises(AssertionError, match="decided the probes"):
        check_stragglers_change_nothing(CountsStragglers)


@pytest.mark.invariant(5)
def test_a_result_that_comes_after_half_open_has_run_out_is_a_straggler() -> None:
    """Two successes reported after the longest wait do not close a breaker that is open again."""
    clock = ManualClock()
    breaker = half_open(CircuitBreaker, clock)
    permits = [breaker.admit(), breaker.admit()]
    clock.jump(5)
    for permit in permits:
        breaker.succeeded(permit)
    assert state_of(breaker) is State.OPEN


# 6: what counts


async def check_what_counts(make: Make) -> None:
    """Ignored exceptions and cancellation say nothing; time-outs fail; slow successes are slow."""
    clock = ManualClock()
    breaker = make("payments", policy(slow_call_rate_threshold=0.5), clock=clock)
    for _ in range(10):
        outcome = await outcome_of(breaker.call(Scripted(fails(KeyError()))))
        assert outcome == "KeyError", "ignored or cancelled calls were counted"
        task = asyncio.create_task(breaker.call(Scripted(hangs())))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert breaker.rates() == (0, 0.0, 0.0)
    succeed(breaker, 2)
    for _ in range(2):
        call = asyncio.create_task(breaker.call(Scripted(returns(1).after(1.0), clock=clock)))
        await clock.advance(1.0)
        assert await call == 1
    assert state_of(breaker) is State.OPEN, "slow successes were not counted as slow"
    breaker.reset()
    succeed(breaker, 2)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await breaker.call(Scripted(fails(TimeoutError())))
    assert state_of(breaker) is State.OPEN


class CountsEveryException(CircuitBreaker):
    """`except BaseException: failures += 1`."""

    def failed(self, permit: Permit, error: BaseException) -> None:
        super().failed(permit, ConnectionError())


class SeesNoSlowness(CircuitBreaker):
    """A success is a success, however long it took."""

    def succeeded(self, permit: Permit, result: object = None) -> None:
        super().succeeded((permit[0], self._now()), result)


@pytest.mark.invariant(6)
async def test_only_what_speaks_about_the_dependency_counts() -> None:
    """LookupError (ignored) and cancellation count neither way; time-outs and slowness do."""
    await check_what_counts(CircuitBreaker)


@pytest.mark.naive(6)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(CountsEveryException, "were counted"), (SeesNoSlowness, "not counted as slow")],
)
async def test_counting_everything_or_no_slowness_is_wrong(variant: Make, complaint: str) -> None:
    """A breaker that counts cancellations opens on impatient users; one blind to time never opens."""
    with pytest.raises(AssertionError, match=complaint):
        await check_what_counts(variant)


@pytest.mark.invariant(6)
def test_an_exception_in_neither_list_is_an_answer() -> None:
    """An unlisted ValueError counts as a success: the dependency did answer."""
    breaker = CircuitBreaker("payments", policy())
    fail(breaker, 1)
    for _ in range(3):
        with pytest.raises(ValueError, match="bad amount"), breaker:
            raise ValueError("bad amount")
    assert breaker.rates() == (4, 0.25, 0.0)


@pytest.mark.invariant(6)
async def test_a_block_has_no_result_to_judge() -> None:
    """`record_result` is not asked about a with block, which returns nothing."""
    breaker = CircuitBreaker("payments", policy(record_result=lambda status: status >= 500))
    async with breaker:
        pass
    assert breaker.rates() == (1, 0.0, 0.0)


@pytest.mark.invariant(6)
@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (ExceptionGroup("", [ConnectionError()]), (1, 1.0, 0.0)),
        (ExceptionGroup("", [KeyError(), ConnectionError()]), (1, 1.0, 0.0)),
        (ExceptionGroup("", [KeyError()]), (0, 0.0, 0.0)),
        (ExceptionGroup("", [ValueError()]), (1, 0.0, 0.0)),
        (BaseExceptionGroup("", [ConnectionError(), KeyboardInterrupt()]), (0, 0.0, 0.0)),
    ],
)
def test_a_group_of_exceptions_is_judged_by_what_it_holds(
    error: BaseException, counted: tuple[int, float, float]
) -> None:
    """A TaskGroup wraps the dependency's error, and it is a failure all the same."""
    breaker = CircuitBreaker("payments", policy())
    breaker.failed(breaker.admit(), error)
    assert breaker.rates() == counted


@pytest.mark.invariant(6)
async def test_a_bad_result_is_a_failure_when_the_policy_says_so() -> None:
    """HTTP 503 returned as a value opens the breaker as an exception would."""
    breaker = CircuitBreaker("payments", policy(record_result=lambda status: status >= 500))
    for status in (200, 200, 503, 503):
        assert await breaker.call(Scripted(returns(status))) == status
    assert state_of(breaker) is State.OPEN


# 7: the time-based window


def check_old_outcomes_are_forgotten(make: Make) -> None:
    """Failures older than the window have no say, whatever the wall clock does."""
    clock = ManualClock()
    breaker = make("payments", policy(sliding_window=TimeBased(60)), clock=clock)
    fail(breaker, 3)
    clock.step_wall(-7200)
    clock.jump(60)
    fail(breaker, 1)
    assert state_of(breaker) is State.CLOSED, "failures older than the window opened it"
    clock.jump(53.9)
    fail(breaker, 3)
    assert state_of(breaker) is State.OPEN, "a failure younger than nine tenths of the window was forgotten"
    clock.step_wall(-7200)
    clock.jump(10)
    assert state_of(breaker) is State.HALF_OPEN, "a wall clock set back holds it open"


class ReadsTheWallClock(CircuitBreaker):
    """Durations by wall clock: purgatory's time.time, aiobreaker's utcnow."""

    def __init__(self, name: str, policy: Policy, *, clock: Clock, **options: Any) -> None:
        super().__init__(name, policy, clock=clock, **options)
        self._now = lambda: clock.wall().timestamp()


class NeverForgets(CircuitBreaker):
    """Counters that are reset by a success only."""

    def __init__(self, name: str, policy: Policy, **options: Any) -> None:
        super().__init__(name, _with(policy, sliding_window=TimeBased(1e9)), **options)


@pytest.mark.invariant(7)
def test_no_outcome_older_than_the_window_counts() -> None:
    """In a window of 60 s a failure counts for 54 s at least and 60 s at most."""
    check_old_outcomes_are_forgotten(CircuitBreaker)


@pytest.mark.naive(7)
@pytest.mark.parametrize("variant", [ReadsTheWallClock, NeverForgets])
def test_wall_clocks_and_plain_counters_remember_wrongly(variant: Make) -> None:
    """Both open on, or hold on to, what is long over."""
    with pytest.raises(AssertionError, match=r"older than the window|forgotten|set back"):
        check_old_outcomes_are_forgotten(variant)


@pytest.mark.invariant(7)
def test_the_time_window_equals_a_list_of_all_outcomes() -> None:
    """Against a plain list, over 5,000 random steps: never older than the window, never lost before 9/10."""
    rng = random.Random(7)
    window = TimeBased(10).new_window()
    history: deque[tuple[float, int]] = deque()
    now = 0.0
    for _ in range(5_000):
        now += rng.choice([0, 0.01, 0.3, 1.0, 25.0]) * rng.random()
        if rng.random() < 0.7:
            outcome = rng.choice([0, 1, 2, 3])
            window.add(outcome, now)
            history.append((now, outcome))
        while history and history[0][0] <= now - 10:
            history.popleft()
        total, failed, slow = window.rates(now)
        certain = [outcome for at, outcome in history if at > now - 9]
        possible = [outcome for _, outcome in history]
        for share, bit in ((failed, 1), (slow, 2)):
            count = round(share * total)
            assert sum(o & bit > 0 for o in certain) <= count <= sum(o & bit > 0 for o in possible)
        assert len(certain) <= total <= len(possible)
        assert (window.bad > 0) == (failed > 0 or slow > 0)


# 8: the caller and the listeners


async def check_the_callers_exception_and_the_listeners(make: Make) -> None:
    """The tripping call raises its own error; one event per transition; a broken listener is harmless."""
    clock = ManualClock()
    heard = Recorder()

    def broken_listener(event: Event) -> None:
        heard(event)
        raise RuntimeError("the metrics server is down")

    breaker = make("payments", policy(), clock=clock, on_event=broken_listener)
    error = ConnectionError("refused")
    for _ in range(4):
        with pytest.raises(Exception) as raised:
            await breaker.call(Scripted(fails(error)))
        assert raised.value is error, f"the caller got {type(raised.value).__name__}"
    clock.jump(10)
    succeed(breaker, 2)
    changes = [(event.old, event.new) for event in heard.of(StateChanged)]
    assert changes == [
        (State.CLOSED, State.OPEN),
        (State.OPEN, State.HALF_OPEN),
        (State.HALF_OPEN, State.CLOSED),
    ]
    assert heard.of(StateChanged)[0].failure_rate == 1.0


class ReplacesTheError(CircuitBreaker):
    """The call that trips it gets the breaker's error in place of its own (aiobreaker)."""

    def failed(self, permit: Permit, error: BaseException) -> None:
        super().failed(permit, error)
        if self.state is State.OPEN:
            raise CircuitOpen(self.name, State.OPEN, None) from error


class TrustsItsListeners(CircuitBreaker):
    """Listeners are called bare."""

    def __init__(self, name: str, policy: Policy, *, on_event: Listener, **options: Any) -> None:
        super().__init__(name, policy, on_event=on_event, **options)
        self.listener = on_event

    def failed(self, permit: Permit, error: BaseException) -> None:
        super().failed(permit, error)
        self.listener(CallFailed(self.name, 0.0, slow=False, error=""))


@pytest.mark.invariant(8)
async def test_the_caller_gets_the_dependencys_own_exception(caplog: pytest.LogCaptureFixture) -> None:
    """Also on the call that trips the breaker, and also when the listener raises."""
    await check_the_callers_exception_and_the_listeners(CircuitBreaker)
    assert "listener failed" in caplog.text


@pytest.mark.naive(8)
@pytest.mark.parametrize("variant", [ReplacesTheError, TrustsItsListeners])
async def test_replaced_errors_and_trusted_listeners_reach_the_caller(variant: Make) -> None:
    """The caller sees CircuitOpen, or the metrics server's error, in place of its own."""
    with pytest.raises(AssertionError, match="the caller got"):
        await check_the_callers_exception_and_the_listeners(variant)


def test_events_tell_what_happened_to_each_call() -> None:
    """Success, failure, ignored and refused calls are four kinds of event."""
    clock, heard = ManualClock(), Recorder()
    breaker = CircuitBreaker("payments", policy(), clock=clock, on_event=heard)
    permit = breaker.admit()
    clock.jump(2)
    breaker.succeeded(permit)
    breaker.failed(breaker.admit(), KeyError())
    fail(breaker, 3)
    with pytest.raises(CircuitOpen):
        breaker.admit()
    assert heard.events[:3] == [
        CallSucceeded("payments", 2.0, slow=True),
        CallIgnored("payments", "KeyError"),
        CallFailed("payments", 0.0, slow=False, error="ConnectionError"),
    ]
    assert heard.events[-1] == CallRejected("payments", State.OPEN, 10.0)


def test_a_listener_may_read_the_breaker() -> None:
    """No lock is held while a listener runs."""
    states: list[State] = []
    breaker = CircuitBreaker("payments", policy(), on_event=lambda _: states.append(breaker.state))
    fail(breaker, 4)
    assert states[-1] is State.OPEN


# handles, commands, bad input


def test_forced_open_and_disabled_hold_until_reset() -> None:
    """Forced open refuses without an end; disabled admits and counts nothing; reset starts afresh."""
    clock = ManualClock()
    breaker = CircuitBreaker("payments", policy(), clock=clock)
    breaker.force_open()
    clock.jump(1e6)
    with pytest.raises(CircuitOpen) as refused:
        breaker.admit()
    assert (refused.value.state, refused.value.retry_after) == (State.FORCED_OPEN, None)
    assert not breaker.retry_after
    breaker.disable()
    fail(breaker, 100)
    assert (state_of(breaker), breaker.rates()[0], breaker.retry_after) == (State.DISABLED, 0, 0.0)
    breaker.reset()
    breaker.reset()
    assert state_of(breaker) is State.CLOSED
    breaker.trip(3)
    assert breaker.retry_after == 3
    breaker.trip()
    assert breaker.retry_after == 10


async def test_with_async_with_call_and_decorator_share_one_state() -> None:
    """Four handles, one failure each: the fourth opens it for all."""
    breaker = CircuitBreaker("payments", policy())

    @breaker
    async def charge(amount: int) -> int:
        """Charge a card."""
        raise ConnectionError

    assert (charge.__name__, charge.__doc__) == ("charge", "Charge a card.")
    with pytest.raises(ConnectionError):
        await charge(3)
    with pytest.raises(ConnectionError):
        await breaker.call(charge.__wrapped__, 3)  # type: ignore[attr-defined]  # functools.wraps adds it
    with pytest.raises(ConnectionError), breaker:
        raise ConnectionError
    with pytest.raises(ConnectionError):
        async with breaker:
            raise ConnectionError
    for refused in (charge(3), breaker.call(charge, 3)):
        with pytest.raises(CircuitOpen):
            await refused
    breaker.reset()
    async with breaker:
        pass
    assert breaker.rates() == (1, 0.0, 0.0)


async def test_nested_and_concurrent_with_blocks_keep_their_own_permits() -> None:
    """Tasks and nested blocks of two breakers each report their own duration."""
    clock, heard = ManualClock(), Recorder()
    outer = CircuitBreaker("outer", policy(), clock=clock, on_event=heard)
    inner = CircuitBreaker("inner", policy(), clock=clock, on_event=heard)

    async def work(seconds: float) -> None:
        async with outer:
            await clock.sleep(seconds)
            async with inner, inner:
                await clock.sleep(seconds)

    tasks = [asyncio.create_task(work(seconds)) for seconds in (0.1, 0.2)]
    await clock.advance(1)
    await asyncio.gather(*tasks)
    durations = sorted((e.source, round(e.duration_seconds, 6)) for e in heard.of(CallSucceeded))
    assert durations == [
        ("inner", 0.1), ("inner", 0.1), ("inner", 0.2), ("inner", 0.2), ("outer", 0.2), ("outer", 0.4),
    ]  # fmt: skip


def test_blocks_left_out_of_order_each_find_their_own_permit() -> None:
    """Two blocks of one task that are not nested are both counted."""
    one, two = CircuitBreaker("one", policy()), CircuitBreaker("two", policy())
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    two.__exit__(ConnectionError, ConnectionError(), None)
    assert (one.rates(), two.rates()) == ((1, 0.0, 0.0), (1, 1.0, 0.0))


def test_a_block_entered_in_another_task_is_an_error_that_hides_no_other() -> None:
    """Leaving a block that was never entered here says so, unless the body's own error is on its way."""
    breaker = CircuitBreaker("payments", policy())
    with pytest.raises(RuntimeError, match="'payments' was entered in another task or thread"):
        breaker.__exit__(None, None, None)
    breaker.__exit__(KeyError, KeyError(), None)


def test_the_decorator_refuses_a_plain_function() -> None:
    """It names the alternative instead of guarding nothing."""
    with pytest.raises(TypeError, match="in a plain def use `with breaker:`"):
        CircuitBreaker("payments", policy())(lambda: None)  # type: ignore[arg-type, return-value]  # the point


def test_circuit_open_says_what_the_caller_needs_and_crosses_processes() -> None:
    """The message names breaker, state and seconds, and the error survives pickling."""
    error = pickle.loads(pickle.dumps(CircuitOpen("payments", State.OPEN, 1.5)))
    assert str(error) == "circuit breaker 'payments' is open; retry after 1.500 s"
    assert (error.name, error.state, error.retry_after) == ("payments", State.OPEN, 1.5)
    assert str(CircuitOpen("payments", State.FORCED_OPEN, None)).endswith("is forced_open")


BAD = [
    ("record", ConnectionError, "tuple of Exception classes"),
    ("record", (BaseException,), "tuple of Exception classes"),
    ("ignore", ("ValueError",), "tuple of Exception classes"),
    *[("failure_rate_threshold", value, r"\(0, 1\]") for value in (0, -1, 1.01, math.nan, math.inf)],
    ("slow_call_rate_threshold", 50, r"\(0, 1\]"),
    ("failure_rate_threshold", "0.5", "a number"),
    ("failure_rate_threshold", True, "a number"),
    *[("wait_in_open", value, "wait_in_open") for value in (0, -1, math.nan, math.inf, None, 1e-9)],
    *[("slow_call_duration", value, ">= 0.001 seconds") for value in (0, math.nan)],
    ("max_wait_in_half_open", 0, ">= 0.001 seconds"),
    *[("minimum_calls", value, "whole number >= 1") for value in (0, -3, 2.0, True, "4")],
    ("minimum_calls", 5, "window's size 4"),
    ("permitted_calls_in_half_open", 0, "whole number >= 1"),
    ("sliding_window", 100, "CountBased or TimeBased"),
]


@pytest.mark.parametrize(("field", "value", "bound"), BAD)
def test_a_bad_policy_names_field_value_and_bound(field: str, value: object, bound: str) -> None:
    """No breaker is built from values that could never work."""
    with pytest.raises(ValueError, match=bound) as refused:
        policy(**{field: value})
    assert field in str(refused.value)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None])
def test_a_count_window_needs_a_whole_size(size: Any) -> None:
    """Windows are checked where they are made."""
    with pytest.raises(ValueError, match="size must be a whole number of calls >= 1"):
        CountBased(size)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, True, None])
def test_a_time_window_needs_finite_seconds(seconds: Any) -> None:
    """An endless window would never forget."""
    with pytest.raises(ValueError, match=r"seconds must be a finite number >= 0\.01"):
        TimeBased(seconds)


# all of it against a model


class AgainstTheModel(RuleBasedStateMachine):
    """A breaker beside a model that keeps plain lists, through random calls, cancellations and waits."""

    running = Bundle("running")

    @initialize(
        size=st.integers(1, 6), permitted=st.integers(1, 3), threshold=st.sampled_from([0.3, 0.5, 1.0])
    )
    def begin(self, size: int, permitted: int, threshold: float) -> None:
        """Build both."""
        self.clock = ManualClock()
        self.policy = policy(
            sliding_window=CountBased(size),
            minimum_calls=size,
            permitted_calls_in_half_open=permitted,
            failure_rate_threshold=threshold,
            slow_call_duration=math.inf,
        )
        self.breaker = CircuitBreaker("model", self.policy, clock=self.clock)
        self.state = "closed"
        self.era = 0
        self.outcomes: deque[bool] = deque(maxlen=size)
        self.out = 0
        self.ends = math.inf

    def _go(self, state: str, ends: float) -> None:
        self.state, self.ends, self.era = state, ends, self.era + 1
        self.outcomes = deque(
            maxlen=self.policy.permitted_calls_in_half_open
            if state == "half_open"
            else self.policy.minimum_calls
        )
        self.out = 0

    def _tick(self) -> None:
        while self.clock.monotonic() >= self.ends:
            if self.state == "open":
                self._go("half_open", math.inf)
            else:
                self._go("open", self.ends + 10)

    @rule(target=running)
    def start(self) -> tuple[Permit, int] | None:
        """Begin a call, if both agree that it may."""
        self._tick()
        allowed = self.state == "closed" or (
            self.state == "half_open"
            and self.out + len(self.outcomes) < self.policy.permitted_calls_in_half_open
        )
        try:
            permit = self.breaker.admit()
        except CircuitOpen:
            assert not allowed
            return None
        assert allowed
        if self.state == "half_open":
            self.out += 1
            if self.out == 1:
                self.ends = self.clock.monotonic() + 5
        return permit, self.era

    @rule(call=consumes(running), outcome=st.sampled_from(["ok", "failed", "cancelled", "ignored"]))
    def finish(self, call: tuple[Permit, int] | None, outcome: str) -> None:
        """End a call that is running."""
        if call is None:
            return
        self._tick()
        permit, era = call
        if outcome == "ok":
            self.breaker.succeeded(permit)
        else:
            errors = {"failed": TimeoutError(), "cancelled": asyncio.CancelledError(), "ignored": KeyError()}
            self.breaker.failed(permit, errors[outcome])
        if era != self.era:
            return
        if self.state == "half_open":
            self.out -= 1
            if not self.out:
                self.ends = math.inf
        if outcome in ("ok", "failed"):
            self.outcomes.append(outcome == "failed")
            if len(self.outcomes) == self.outcomes.maxlen:
                rate = sum(self.outcomes) / len(self.outcomes)
                if rate >= self.policy.failure_rate_threshold:
                    self._go("open", self.clock.monotonic() + 10)
                elif self.state == "half_open":
                    self._go("closed", math.inf)

    @rule(seconds=st.sampled_from([0.5, 4.5, 5.5, 10, 16]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.jump(seconds)

    @invariant()
    def agree(self) -> None:
        """Both are in the same state."""
        if hasattr(self, "breaker"):
            self._tick()
            assert self.breaker.state.value == self.state


AgainstTheModel.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestAgainstTheModel = AgainstTheModel.TestCase


# 9: shared through Redis


def shared_policy(**changes: Any) -> Policy:
    """Return a policy that can be shared."""
    return policy(**({"sliding_window": TimeBased(60), "wait_in_open": 0.05} | changes))


def shared(client: Client, app: str, **changes: Any) -> SharedCircuitBreaker:
    """Return a breaker as one process of `app` would have it."""
    options: dict[str, Any] = {"refresh": 0.001, "timeout": 5.0}
    for name in ("clock", "on_event", "refresh", "timeout"):
        if name in changes:
            options[name] = changes.pop(name)
    kind: type[SharedCircuitBreaker] = changes.pop("kind", SharedCircuitBreaker)
    return kind("payments", shared_policy(**changes), client, app=app, **options)


async def fail_shared(breaker: SharedCircuitBreaker, times: int = 4) -> None:
    """Make the dependency fail behind `breaker`."""
    for _ in range(times):
        await breaker.failed(await breaker.admit(), ConnectionError("refused"))


async def until(breaker: SharedCircuitBreaker, state: State) -> None:
    """Wait until the server's time has brought `state` about."""

    async def reached() -> bool:
        return await breaker.state() is state

    await eventually(reached, within=5)


async def check_processes_share_the_probes(server: Server, app: str, spawn: Any, kind: str) -> None:
    """Two processes with 25 callers each meet one half-open circuit that permits three probes."""
    async with opened(server.url) as client:
        breaker = shared(client, app, permitted_calls_in_half_open=3)
        await fail_shared(breaker)
        await until(breaker, State.HALF_OPEN)
        program = Path(__file__).with_name("circuit_breaker_probes.py")
        workers = [spawn(program, app, kind, env={"REDIS_URL": server.url}) for _ in range(2)]
        for worker in workers:
            await worker.said("ready", within=20)
        await client.xadd(f"{app}:go", {"go": "1"})
        said = [await worker.said("admitted", within=20) for worker in workers]
    admitted = sum(int(line.split()[1]) for line in said)
    assert admitted <= 3, f"{admitted} probes of 50 callers in two processes"
    assert admitted == 3


@pytest.mark.invariant(9)
async def test_two_processes_share_the_permitted_probes(server: Server, app: str, spawn: Any) -> None:
    """Fifty callers in two processes: three are admitted in all."""
    await check_processes_share_the_probes(server, app, spawn, "shared")


@pytest.mark.naive(9)
async def test_a_breaker_in_each_process_multiplies_the_probes(server: Server, app: str, spawn: Any) -> None:
    """With local breakers every process sends its own three."""
    with pytest.raises(AssertionError, match="6 probes of 50 callers"):
        await check_processes_share_the_probes(server, app, spawn, "alone")


async def evalsha_calls(client: Any) -> int:
    """Return how many scripts the server has run."""
    stats = await client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))


async def check_decisions_are_cached(server: Server, app: str, kind: type[SharedCircuitBreaker]) -> None:
    """A hundred calls within `refresh` cost no exchange; fifty callers after it share one."""
    clock = ManualClock()
    async with opened(server.url) as client:
        breaker = shared(client, app, clock=clock, refresh=1.0, kind=kind)
        await breaker.call(Scripted(returns(1)))
        before = await evalsha_calls(client)
        for _ in range(100):
            await breaker.call(Scripted(returns(1)))
        asked = await evalsha_calls(client) - before
        assert asked == 0, f"100 calls asked Redis {asked} times"
        clock.jump(1.0)
        await asyncio.gather(*[breaker.call(Scripted(returns(1))) for _ in range(50)])
        assert await evalsha_calls(client) == before + 1


class AsksEveryTime(SharedCircuitBreaker):
    """Reads the state before each call."""

    async def admit(self) -> SharedPermit:
        self._stale_at = -math.inf
        return await super().admit()


@pytest.mark.invariant(9)
async def test_a_decision_costs_no_round_trip_while_the_read_is_fresh(fresh_server: Server, app: str) -> None:
    """What was read is believed for `refresh`, by every caller of the process."""
    await check_decisions_are_cached(fresh_server, app, SharedCircuitBreaker)


@pytest.mark.naive(9)
async def test_a_breaker_that_asks_before_each_call_doubles_the_round_trips(
    fresh_server: Server, app: str
) -> None:
    """It asks once for each call."""
    with pytest.raises(AssertionError, match="100 calls asked Redis 100 times"):
        await check_decisions_are_cached(fresh_server, app, AsksEveryTime)


@pytest.mark.invariant(4, 9)
@pytest.mark.parametrize("cut", ["asking", "reporting", "reporting twice", "judging", "reply lost"])
async def test_a_shared_permit_comes_back_however_its_probe_is_cut_short(
    server: Server, app: str, cut: str
) -> None:
    """Cancelled while asking or reporting, a result check that raises, a lost reply: no permit stays out."""

    def broken(status: int) -> bool:
        raise ZeroDivisionError

    async with proxy(server.port, may_idle=True) as link, opened(link.url) as client:
        clock = ManualClock()
        changes: dict[str, Any] = {"record_result": broken} if cut == "judging" else {}
        breaker = shared(client, app, clock=clock, **changes)
        await fail_shared(breaker)
        await until(breaker, State.HALF_OPEN)
        for _ in range(1 if cut == "reporting" else 3):  # a report that is cut short may have counted
            if cut == "judging":
                with pytest.raises(ZeroDivisionError):
                    await breaker.call(Scripted(returns(1)))
                continue
            if cut == "reply lost":
                link.lose_reply(b"EVALSHA", times=1)
                permit = await breaker.admit()  # by the local breaker: it is alone now
                assert permit.local is not None
                breaker._local.abandoned(permit.local)
                clock.jump(1.1)
                await breaker.state()
                continue
            if cut == "asking":
                with link.latency(0.05):
                    asking = asyncio.create_task(breaker.admit())
                    await eventually(lambda: link.injected > 0, within=5)
                    asking.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await asking
            else:
                permit = await breaker.admit()
                with link.latency(0.05):
                    end = breaker.failed(permit, asyncio.CancelledError())
                    reporting = asyncio.create_task(end if "twice" in cut else breaker.succeeded(permit))
                    if "twice" not in cut:
                        end.close()
                    await asyncio.sleep(0)
                    reporting.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await reporting

        async def none_is_out() -> bool:
            await breaker.state()
            return await client.scard(Keyspace(app, "circuit_breaker").key("payments", "probes")) == 0

        await eventually(none_is_out, within=5)
        for _ in range(2):
            if await breaker.state() is State.HALF_OPEN:
                await breaker._record(await breaker.admit(), 0)
        assert await breaker.state() is State.CLOSED


@pytest.mark.invariant(8, 9)
async def test_answers_that_overtake_each_other_make_no_false_transitions(server: Server, app: str) -> None:
    """Thirty times fifty callers race for ten permits; each change told begins where the last one ended."""
    heard = Recorder()
    async with opened(server.url) as client:
        breaker = shared(client, app, on_event=heard, permitted_calls_in_half_open=10, wait_in_open=0.01)
        for _ in range(30):
            await fail_shared(breaker)
            await until(breaker, State.HALF_OPEN)
            await asyncio.gather(*[outcome_of(breaker.call(Scripted(returns(1)))) for _ in range(50)])
            await until(breaker, State.CLOSED)
    changes = heard.of(StateChanged)
    assert [change.old for change in changes[1:]] == [change.new for change in changes[:-1]]
    assert len(changes) == 90


@pytest.mark.invariant(5, 9)
async def test_calls_from_before_redis_forgot_change_nothing(server: Server, app: str) -> None:
    """Generations do not begin again when the keys are lost."""
    async with opened(server.url) as client:
        breaker = shared(client, app)
        old = [await breaker.admit() for _ in range(4)]
        space = Keyspace(app, "circuit_breaker")
        await client.delete(*[space.key("payments", role) for role in ("state", "window", "probes")])
        await breaker.state()
        for permit in old:
            await breaker.failed(permit, ConnectionError())
        assert await breaker.state() is State.CLOSED


@pytest.mark.invariant(7, 9)
async def test_shared_outcomes_are_dated_when_they_happened(server: Server, app: str) -> None:
    """Counts handed in 48 s late stand 48 s back in a window of a minute."""
    clock = ManualClock()
    async with opened(server.url) as client:
        breaker = shared(client, app, clock=clock, refresh=1.0)
        await breaker.failed(await breaker.admit(), ConnectionError())
        clock.jump(48)
        await breaker.state()
        seconds, _ = await client.time()
        counts: Any = await client.hgetall(Keyspace(app, "circuit_breaker").key("payments", "window"))
        (slice_of,) = {int(name.split(b":")[0]) for name in counts}
        assert int(seconds) // 6 - slice_of in (8, 9)


@pytest.mark.invariant(7, 9)
@pytest.mark.parametrize("state", ["open", "half_open"])
async def test_a_server_clock_set_back_lengthens_no_wait(server: Server, app: str, state: str) -> None:
    """A state that would end in two hours, by the old time, ends after the policy's wait."""
    async with opened(server.url) as client:
        breaker = shared(client, app, max_wait_in_half_open=0.05)
        await fail_shared(breaker)
        await until(breaker, State.HALF_OPEN)
        await breaker.admit()
        space = Keyspace(app, "circuit_breaker")
        ends = int((await client.time())[0] + 7200) * 1000
        await client.hset(space.key("payments", "state"), mapping={"state": state, "ends": str(ends)})
        await until(breaker, State.HALF_OPEN if state == "open" else State.OPEN)


@pytest.mark.invariant(9)
@pytest.mark.parametrize("where", ["server", "cluster"])
async def test_what_one_process_learns_the_other_knows(
    request: pytest.FixtureRequest, where: str, app: str
) -> None:
    """Failures here open it there, probes there close it here; the same on a cluster."""
    url = request.getfixturevalue(where).url
    heard = Recorder()
    async with opened(url) as one, opened(url) as two:
        here, there = shared(one, app), shared(two, app, on_event=heard)
        await there.state()
        await fail_shared(here, 2)
        await fail_shared(there, 2)
        await there.state()
        assert await here.state() is State.OPEN
        with pytest.raises(CircuitOpen) as refused:
            await here.call(Scripted(returns(1)))
        assert refused.value.retry_after is not None
        assert 0 <= refused.value.retry_after <= 0.05
        await until(there, State.HALF_OPEN)
        first, second = await there.admit(), await here.admit()
        with pytest.raises(CircuitOpen):
            await here.admit()
        await there.failed(first, asyncio.CancelledError())
        third = await there.admit()
        await there.succeeded(third)
        await here.succeeded(second)
        assert await there.state() is State.CLOSED
    # `there` may meet the half-open state first as a probe does or as a read does; each change is told once.
    changes = [(event.old, event.new) for event in heard.of(StateChanged)]
    assert changes == [
        (State.CLOSED, State.OPEN),
        (State.OPEN, State.HALF_OPEN),
        (State.HALF_OPEN, State.CLOSED),
    ]


@pytest.mark.invariant(4, 9)
async def test_shared_probes_that_never_report_are_overruled(server: Server, app: str) -> None:
    """The half-open state of a process that died ends by the server's clock; late results are void."""
    async with opened(server.url) as client:
        breaker = shared(client, app, max_wait_in_half_open=0.05, wait_in_open=0.3)
        await fail_shared(breaker)
        await until(breaker, State.HALF_OPEN)
        probes = [await breaker.admit(), await breaker.admit()]
        await until(breaker, State.OPEN)
        for probe in probes:
            await breaker.succeeded(probe)
        assert await breaker.state() is not State.CLOSED


@pytest.mark.invariant(5, 9)
async def test_shared_stragglers_and_old_counts_change_nothing(server: Server, app: str) -> None:
    """Calls begun before another process reset the circuit are not counted after it."""
    clock = ManualClock()
    async with opened(server.url) as client:
        breaker = shared(client, app, clock=clock, refresh=1.0, slow_call_duration=math.inf)
        old = [await breaker.admit() for _ in range(4)]
        await breaker.reset()
        for permit in old:
            await breaker.failed(permit, ConnectionError())
        clock.jump(1.0)
        assert await breaker.state() is State.CLOSED
        for _ in range(4):  # counted, but not handed in before they are too old
            await breaker.failed(await breaker.admit(), ConnectionError())
        clock.jump(60.0)
        assert await breaker.state() is State.CLOSED


@pytest.mark.invariant(6, 9)
async def test_shared_slow_calls_and_bad_results_open_it(server: Server, app: str) -> None:
    """The policy's other criteria are shared too."""
    clock = ManualClock()
    async with opened(server.url) as client:
        slow = shared(client, app, clock=clock)
        for _ in range(4):
            permit = await slow.admit()
            clock.jump(1.0)
            await slow.succeeded(permit)
        assert await slow.state() is State.OPEN
        await slow.reset()
        bad = shared(client, app, clock=clock, record_result=lambda status: status >= 500)
        for _ in range(4):
            clock.jump(1.0)
            await bad.call(Scripted(returns(503)))
        assert await bad.state() is State.OPEN


@pytest.mark.invariant(9)
async def test_shared_commands_reach_every_process(server: Server, app: str) -> None:
    """Forced open and disabled are seen by the others, and outlive the day after which idle keys expire."""
    async with opened(server.url) as one, opened(server.url) as two:
        here, there = shared(one, app), shared(two, app)
        await here.force_open()
        with pytest.raises(CircuitOpen) as refused:
            await there.admit()
        assert (refused.value.state, refused.value.retry_after) == (State.FORCED_OPEN, None)
        key = Keyspace(app, "circuit_breaker").key("payments", "state")
        assert await one.pttl(key) == -1
        await here.disable()
        await fail_shared(there, 20)
        assert await there.state() is State.DISABLED
        await here.reset()
        assert await there.state() is State.CLOSED
        assert await one.pttl(key) > 0


async def test_shared_handles_are_async_with_call_and_decorator(server: Server, app: str) -> None:
    """The handles of the local breaker, but for the plain with."""
    async with opened(server.url) as client:
        breaker = shared(client, app)

        @breaker
        async def charge() -> int:
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await charge()
        for _ in range(3):
            with pytest.raises(ConnectionError):
                async with breaker:
                    raise ConnectionError
        await breaker.state()
        with pytest.raises(CircuitOpen):
            await charge()
        await breaker.reset()
        async with breaker:
            pass
        with pytest.raises(KeyError):
            await breaker.call(Scripted(fails(KeyError())))
        with pytest.raises(RuntimeError, match="out of order"):
            await breaker.__aexit__(None, None, None)
        with pytest.raises(TypeError, match="over the network"):
            breaker(lambda: None)  # type: ignore[arg-type, return-value]  # the point


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sliding_window": CountBased(4)}, "sliding_window must be TimeBased"),
        ({"max_wait_in_half_open": math.inf}, "max_wait_in_half_open must be finite to be shared"),
        ({"refresh": 0}, "refresh must be > 0"),
        ({"timeout": math.nan}, "timeout must be > 0"),
    ],
)
def test_what_cannot_be_shared_is_refused(changes: dict[str, Any], complaint: str) -> None:
    """Bad values are named before Redis is asked."""
    with pytest.raises(ValueError, match=complaint):
        shared(Redis(), "app", **changes)


# faults


@pytest.mark.invariant(4)
@pytest.mark.fault("probes cancelled in half-open")
async def test_cancelled_probes_lose_no_permit(ledger: Callable[..., Ledger]) -> None:
    """A thousand probes are cancelled; both permits come back each time."""
    books = ledger(bound="leaves half-open by two results")
    naive = books.without("permits returned by results only")
    clock = ManualClock()
    for book, make in ((books, CircuitBreaker), (naive, KeepsThePermitOfACancelledProbe)):
        breaker = half_open(make, clock, max_wait_in_half_open=math.inf)
        for number in range(1000):
            book.acked(number)  # a permit that is owed back
            try:
                probe = asyncio.create_task(breaker.call(Scripted(hangs())))
                await asyncio.sleep(0)
                book.injected()
                probe.cancel()
                await probe
            except asyncio.CancelledError:
                pass
            except CircuitOpen:
                continue
            if breaker.retry_after == 0.0:
                book.effect(number)
    breaker = half_open(CircuitBreaker, clock)
    succeed(breaker, 2)
    assert breaker.state is State.CLOSED
    books.held("every permit came back")


@pytest.mark.invariant(3)
@pytest.mark.fault("50 callers at the moment of half-open")
async def test_the_herd_at_half_open_is_held_back(ledger: Callable[..., Ledger]) -> None:
    """Twenty herds of fifty: two probes each, and 48 refusals."""
    books = ledger(bound="2 probes per half-open")
    clock = ManualClock()
    reached = {}
    for make in (CircuitBreaker, AdmitsAllInHalfOpen):
        reached[make] = 0
        for herd in range(20):
            breaker = half_open(make, clock)
            service = Scripted(then=returns("pong").after(0.5), clock=clock)
            calls = [asyncio.create_task(outcome_of(breaker.call(service))) for _ in range(50)]
            await clock.advance(0.5)
            outcomes = await asyncio.gather(*calls)
            reached[make] = max(reached[make], service.calls)
            if make is CircuitBreaker:
                books.injected(50)
                for number, outcome in enumerate(outcomes):
                    (books.acked if outcome == "ok" else books.failed)((herd, number))
                    if outcome == "ok":
                        books.effect((herd, number))
    assert reached[CircuitBreaker] == 2
    books.held(f"{reached[CircuitBreaker]} of 50 reached the dependency")
    books.naive(f"no permits: {reached[AdmitsAllInHalfOpen]} of 50 reached it")


@pytest.mark.invariant(7)
@pytest.mark.fault("wall clock set back two hours while open")
async def test_a_wall_clock_set_back_does_not_hold_it_open(ledger: Callable[..., Ledger]) -> None:
    """It is half-open after the ten seconds of its policy; by the wall clock it stays open for two hours."""
    books = ledger(bound="probes after wait_in_open")
    naive = books.without("wall clock")
    for book, make in ((books, CircuitBreaker), (naive, ReadsTheWallClock)):
        clock = ManualClock()
        breaker: CircuitBreaker = make("payments", policy(), clock=clock)
        fail(breaker, 4)
        clock.step_wall(-7200)
        book.injected()
        clock.jump(10)
        book.acked("a probe after 10 s")
        if breaker.state is State.HALF_OPEN:
            book.effect("a probe after 10 s")
    books.held("the wait was 10 s")


async def check_goes_on_alone(
    server: Server, app: str, kind: type[SharedCircuitBreaker], books: Ledger
) -> None:
    """Redis dies while the circuit is open; the process decides alone until Redis is back."""
    heard, clock = Recorder(), ManualClock()
    async with opened(server.url, connect_timeout=1) as client:
        breaker = shared(client, app, clock=clock, on_event=heard, wait_in_open=10.0, timeout=0.5, kind=kind)
        await fail_shared(breaker)
        assert await breaker.state() is State.OPEN
        server.kill()
        books.injected()
        clock.jump(1)
        for number in range(11):
            if number == 3:
                clock.jump(10)
            service = Scripted(returns("paid") if number < 8 else fails(ConnectionError()))
            outcome = await outcome_of(breaker.call(service))
            books.acked(number)  # the caller is owed what the dependency, or the open circuit, says
            expected = "CircuitOpen" if number < 3 else "ok" if number < 8 else "ConnectionError"
            if outcome == expected:
                books.effect(number)
        assert books.lost == 0, f"{books.lost} of 11 calls failed for want of Redis"
        assert await outcome_of(breaker.call(Scripted(returns(1)))) == "CircuitOpen"
        assert breaker.alone
        server.restart()
        clock.jump(1.1)
        assert await breaker.state() is State.CLOSED  # the server lost it: no persistence
        assert not breaker.alone
        told = [
            (event.old.value, event.new.value) if isinstance(event, StateChanged) else type(event).__name__
            for event in heard.events
            if isinstance(event, StateChanged | SharingLost | SharingRegained)
        ]
        assert told == [
            ("closed", "open"),
            "SharingLost",
            ("open", "half_open"),
            ("half_open", "closed"),
            ("closed", "open"),
            "SharingRegained",
            ("open", "closed"),
        ]
        for command in (breaker.force_open, breaker.disable):
            await command()
            server.kill()
            books.injected()
            clock.jump(1.1)
            expected = "CircuitOpen" if command == breaker.force_open else "ok"
            assert await outcome_of(breaker.call(Scripted(returns(1)))) == expected
            server.restart()
            clock.jump(1.1)
            await breaker.state()


class NeedsRedis(SharedCircuitBreaker):
    """No local breaker: what cannot be read cannot be decided."""

    def _lose(self, error: str) -> None:
        raise RedisError(error)


@pytest.mark.invariant(8, 9)
@pytest.mark.naive(9)
@pytest.mark.fault("Redis killed while the circuit is shared")
async def test_without_redis_each_process_goes_on_alone(
    fresh_server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Open stays open and a new outage is found; without a local breaker every call fails."""
    books = ledger(bound="every call gets what the dependency or the circuit says")
    naive = books.without("no local breaker")
    await check_goes_on_alone(fresh_server, app, SharedCircuitBreaker, books)
    with pytest.raises(AssertionError, match="11 of 11 calls failed for want of Redis"):
        await check_goes_on_alone(fresh_server, f"{app}-naive", NeedsRedis, naive)
    books.held("open stayed open, a new outage opened it, the common state was taken up again")


@pytest.mark.invariant(9)
@pytest.mark.fault("Redis paused (SIGSTOP) under impatient callers")
async def test_a_paused_redis_costs_a_call_one_timeout(
    fresh_server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Callers that hang up while the exchange waits do not start the wait anew for the others."""
    timeout = 0.2
    books = ledger(within=timeout + 0.3, bound=f"a call waits {timeout} s for Redis, once")
    async with opened(fresh_server.url) as client:
        breaker = shared(client, app, timeout=timeout)
        await breaker.state()
        fresh_server.stop()
        books.injected()

        async def hang_up() -> None:
            async with asyncio.timeout(timeout * 0.9):
                await breaker.state()

        impatient = asyncio.create_task(hang_up())
        await asyncio.sleep(0)
        assert await outcome_of(breaker.call(Scripted(returns(1)))) == "ok"
        books.recovered()
        books.acked("a call")
        books.effect("a call")
        assert breaker.alone
        await asyncio.gather(impatient, return_exceptions=True)
        fresh_server.cont()
    books.held("one time-out, then the local breaker")


@pytest.mark.invariant(9)
@pytest.mark.fault("reply of an exchange lost after Redis had counted")
async def test_a_lost_reply_never_counts_a_batch_twice(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Thirty batches whose reply is lost are in the window once or not at all."""
    books = ledger(bound="each batch counted once or not at all")
    naive = books.without("redis-py's default retries")
    lasting: dict[str, Any] = {"minimum_calls": 1000, "sliding_window": TimeBased(3600)}
    for book in (books, naive):
        clock = ManualClock()
        async with (
            proxy(server.port, book) as link,
            opened(link.url) as careful,
            Redis(port=link.port) as default,
            opened(server.url) as direct,
        ):
            client = careful if book is books else default
            name = f"{app}-{'ours' if book is books else 'naive'}"
            window = Keyspace(name, "circuit_breaker").key("payments", "window")
            breaker = shared(client, name, clock=clock, refresh=1.0, **lasting)
            before = 0
            for number in range(30):
                clock.jump(1.1)
                await breaker.failed(await breaker.admit(), ConnectionError())  # one batch of one
                link.lose_reply(b"payments", times=1)
                clock.jump(1.1)
                await breaker.state()
                book.unsure(number)
                counts: dict[Any, Any] = await direct.hgetall(window)
                total = sum(int(value) for field, value in counts.items() if field.endswith(b":total"))
                if total > before:
                    book.effect(number, total - before)
                before = total
    books.held("no batch was sent again")
