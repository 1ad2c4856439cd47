"""What the tests of retry hold against the real one and against naive variants, each in one function."""

from __future__ import annotations

import asyncio
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from patterns.clock import ManualClock
from patterns.events import Event, Recorder
from patterns.keyspace import opened
from patterns.resiliency.retry import AttemptTimedOut, Budget, Jitter, Policy, Retry, current_key
from patterns.resiliency.retry.shared import SharedBudget, SharingLost, SharingRegained
from patterns.scripted import Scripted, fails, hangs, returns
from tests.resiliency.retry_variants import QuickClock, SkippingClock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from patterns.embedded import Server
    from tests.faults.ledger import Ledger


Make = Any  # Retry or a naive variant with the same constructor


def policy(**changes: Any) -> Policy:
    """Return a policy without chance: 3 attempts, waits of 1, 2, 4, 8, 8 ... seconds."""
    defaults: dict[str, Any] = {
        "on": (ConnectionError, TimeoutError),
        "idempotent": True,
        "base": 1.0,
        "cap": 8.0,
        "jitter": Jitter.NONE,
    }
    return Policy(**(defaults | changes))


async def outcome_of(call: Coroutine[Any, Any, Any]) -> Any:
    """Return what came of `call`: its result, or its error."""
    try:
        return await call
    except Exception as error:
        return error


class Overloaded(ConnectionError):
    """A refusal that says when to come back."""

    def __init__(self, retry_after: Any) -> None:
        super().__init__("429")
        self.retry_after = retry_after


async def check_attempts_and_deadline(make: Make) -> None:
    """Neither the number of calls nor the time, waits included, goes beyond the policy."""
    for attempts in (1, 2, 3, 7):
        service, clock = Scripted(then=fails(ConnectionError("refused"))), SkippingClock()
        with pytest.raises(ConnectionError):
            await make("payments", policy(attempts=attempts), clock=clock).call(service)
        assert service.calls == attempts, f"{service.calls} calls where {attempts} are allowed"
    for deadline in (0.5, 1.0, 2.9, 3.0, 6.9, 100.0):
        service, clock = Scripted(then=fails(ConnectionError("refused"))), SkippingClock()
        bounded = policy(attempts=50, base=1.0, cap=64.0, deadline=deadline)
        with pytest.raises(ConnectionError):
            await make("payments", bounded, clock=clock).call(service)
        assert clock.monotonic() <= deadline, f"went on until {clock.monotonic()} s, deadline {deadline} s"
    manual = ManualClock()
    call = asyncio.create_task(
        outcome_of(make("payments", policy(deadline=3.0), clock=manual).call(Scripted(then=hangs())))
    )
    await manual.advance(3.0)
    try:
        assert call.done(), "an attempt that hangs outlives the deadline"
        assert isinstance(call.result(), TimeoutError)
    finally:
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


def check_waits(make: Callable[[Policy, random.Random], Any]) -> None:
    """Every wait is within its bounds, for ten thousand failures, and two callers differ."""
    for jitter in Jitter:
        chosen = policy(jitter=jitter, base=0.1, cap=20.0)
        one, other = make(chosen, random.Random(1)), make(chosen, random.Random(2))
        waits = []
        for number in range(10_000):
            try:
                waits.append(one.next())
            except OverflowError:
                raise AssertionError(f"overflow after {number} failures") from None
            bound = min(20.0, 0.1 * 2.0 ** min(number, 100))
            least = {"none": bound, "equal": bound / 2, "full": 0.0, "decorrelated": 0.1}[jitter.value]
            most = 20.0 if jitter is Jitter.DECORRELATED else bound
            assert least <= waits[-1] <= most, f"{jitter}: wait {number} is {waits[-1]}"
        if jitter is not Jitter.NONE:
            others = [other.next() for _ in range(10)]
            assert waits[:10] != others, "two callers wait alike"
            assert len(set(waits[50:])) > 1000, "two callers wait alike"


async def check_what_is_retried(make: Make) -> None:
    """Listed errors are; others, cancellation and exit are not; a cancelled task makes no more attempts."""
    for error, calls in (
        (ConnectionResetError(), 3),
        (TimeoutError(), 3),
        (KeyError("no such order"), 1),
        (asyncio.CancelledError(), 1),
        (KeyboardInterrupt(), 1),
        (SystemExit(), 1),
        (GeneratorExit(), 1),
    ):
        service = Scripted(then=fails(error))
        with pytest.raises(type(error)):
            await make("payments", policy(), clock=SkippingClock()).call(service)
        assert service.calls == calls, f"{type(error).__name__}: {service.calls} calls, not {calls}"
    calls = 0

    async def turns_cancellation_into_an_error() -> None:
        nonlocal calls
        calls += 1
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise ConnectionError("closed") from None

    clock = SkippingClock()
    task = asyncio.create_task(
        outcome_of(make("payments", policy(), clock=clock).call(turns_cancellation_into_an_error))
    )
    try:
        await asyncio.sleep(0)
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert calls == 1, "a cancelled task goes on retrying"
    finally:
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
    manual = ManualClock()
    service = Scripted(then=fails(ConnectionError()))
    waiting = asyncio.create_task(make("payments", policy(), clock=manual).call(service))
    await manual.advance(0)
    assert manual.sleepers == 1
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (waiting.cancelled(), manual.sleepers, service.calls) == (True, 0, 1)


async def check_budget(make: Make) -> None:
    """Two clients of one dependency that is down: together no more retries than the bucket and time give."""
    clock = SkippingClock()
    budget = Budget(ratio=0.1, min_per_second=1, capacity=10, clock=clock)
    quick = policy(base=0)
    clients = [make(f"client {number}", quick, budget=budget, clock=clock) for number in range(2)]
    service = Scripted(then=fails(ConnectionError()))
    for _ in range(50):
        clock.jump(0.1)
        for client in clients:
            await outcome_of(client.call(service))
    retries = service.calls - 100
    assert retries <= 10 + 5, f"{retries} retries of 100 calls in 5 s"
    assert retries >= 14
    service.follow(then=returns("paid"))
    for _ in range(20):
        await clients[0].call(service)
    before = service.calls
    service.follow(then=fails(ConnectionError()))
    await outcome_of(clients[1].call(service))
    await outcome_of(clients[1].call(service))
    assert service.calls - before == 2 + 2, "20 successes earn 2 retries"


async def check_retry_after(make: Make) -> None:
    """What the dependency asks is the least wait, spread, and bounded by the policy."""
    spread = policy(jitter=Jitter.FULL, attempts=2)
    back = []
    for number in range(200):
        clock = SkippingClock()
        service = Scripted(fails(Overloaded(5)), returns("paid"))
        await make("payments", spread, clock=clock, rng=random.Random(number)).call(service)
        back.append(clock.monotonic())
    assert min(back) >= 5, f"came back after {min(back):.2f} s, asked for 5 s"
    assert len({round(at, 3) for at in back}) > 100, "all come back in the same instant"
    for asked, bounds in ((61, {}), (math.inf, {}), (5, {"deadline": 5.5})):
        clock, service = SkippingClock(), Scripted(then=fails(Overloaded(asked)))
        with pytest.raises(Overloaded):
            await make("payments", policy(**bounds), clock=clock).call(service)
        assert (clock.monotonic(), service.calls) == (0.0, 1), f"waited {clock.monotonic()} s for {asked} s"


async def check_not_done_twice(make: Make) -> None:
    """A reset says nothing about the charge, a refusal does; with a key the other side can tell."""
    for error, calls in ((ConnectionResetError(), 1), (TimeoutError(), 1), (ConnectionRefusedError(), 3)):
        service = Scripted(then=fails(error))
        with pytest.raises(type(error)):
            await make("payments", policy(idempotent=False), clock=SkippingClock()).call(service)
        assert service.calls == calls, f"{type(error).__name__}: charged {service.calls} times"
    charges: list[str | None] = []

    async def charge() -> None:
        charges.append(current_key())
        raise ConnectionResetError

    for _ in range(2):
        await outcome_of(make("payments", policy(idempotent="key"), clock=SkippingClock()).call(charge))
    first, second = charges[:3], charges[3:]
    assert None not in charges
    assert len(set(first)) == len(set(second)) == 1, "attempts of one call have different keys"
    assert first[0] != second[0]
    assert current_key() is None


async def check_the_last_outcome(make: Make) -> None:
    """The caller catches the dependency's own error object, and can tell who ran out of time."""
    errors = [ConnectionError("first"), ConnectionResetError("second"), ConnectionError("third")]
    with pytest.raises(Exception) as raised:
        await make("payments", policy(), clock=SkippingClock()).call(Scripted(*map(fails, errors)))
    assert raised.value is errors[2], f"the caller got {type(raised.value).__name__}"
    assert raised.value.__notes__ == ["retry 'payments' gave up after attempt 3: attempts"]
    assert raised.value.__context__ is None
    own = TimeoutError("the driver's")
    clock = ManualClock()
    limited = policy(attempt_timeout=2.0, attempts=1)
    with pytest.raises(TimeoutError) as raised:
        await make("payments", limited, clock=clock).call(Scripted(fails(own)))
    assert raised.value is own

    call = asyncio.create_task(outcome_of(make("payments", limited, clock=clock).call(Scripted(hangs()))))
    await clock.advance(2.0)
    assert isinstance(await call, AttemptTimedOut)

    async def impatient() -> None:
        async with clock.timeout(1.0):
            await make("payments", policy(attempt_timeout=2.0), clock=clock).call(service)

    service = Scripted(then=hangs())
    call = asyncio.create_task(outcome_of(impatient()))
    await clock.advance(1.0)
    assert type(await call) is TimeoutError
    assert service.calls == 1


async def check_layers_do_not_multiply(make: Make) -> None:
    """Three layers of three attempts make three calls; a task that outlives them has its own again."""
    service, clock = Scripted(then=fails(ConnectionError())), SkippingClock()
    layers = [make(f"layer {number}", policy(), clock=clock) for number in range(3)]

    async def middle() -> Any:
        return await layers[1].call(layers[2].call, service)

    with pytest.raises(ConnectionError):
        await layers[0].call(middle)
    assert service.calls == 3, f"{service.calls} calls by three layers of three"
    orphan: list[asyncio.Task[Any]] = []
    go = asyncio.Event()
    later = Scripted(then=fails(ConnectionError()))

    async def outlives() -> Any:
        await go.wait()
        return await outcome_of(layers[1].call(later))

    async def begins_a_task() -> None:
        orphan.append(asyncio.create_task(outlives()))

    await layers[0].call(begins_a_task)
    go.set()
    await orphan[0]
    assert later.calls == 3, f"a task that outlived the call made {later.calls} attempt"


async def check_leave_comes_back(make: Callable[..., Budget]) -> None:
    """A hundred callers are cancelled while they wait: the bucket is as full as before."""
    clock = ManualClock()
    budget = make(ratio=0, min_per_second=0, capacity=5, clock=clock)

    def broken_listener(event: Event) -> None:
        raise RuntimeError("the metrics server is down")

    retry = Retry("payments", policy(), budget=budget, clock=clock, on_event=broken_listener)
    for _ in range(20):
        calls = [
            asyncio.create_task(outcome_of(retry.call(Scripted(then=fails(ConnectionError())))))
            for _ in range(5)
        ]
        await clock.advance(0.5)
        for call in calls:
            call.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in outcomes), "no budget is left"
    assert [budget.take() for _ in range(6)] == [True] * 5 + [False]


def shared(client: Any, app: str, kind: type[SharedBudget] = SharedBudget, **changes: Any) -> SharedBudget:
    """Return the budget of one process of `app`: ten retries, and none from time."""
    options: dict[str, Any] = {"ratio": 0.1, "min_per_second": 0, "capacity": 10, "timeout": 5.0}
    return kind("payments", client, app=app, **(options | changes))


async def check_processes_share_the_budget(server: Server, app: str, spawn: Any, kind: str) -> None:
    """Two processes with 40 callers each ask at once for the ten retries that there are."""
    program = Path(__file__).with_name("retry_storm.py")
    workers = [spawn(program, app, kind, env={"REDIS_URL": server.url}) for _ in range(2)]
    for worker in workers:
        await worker.said("ready", within=20)
    async with opened(server.url) as client:
        await client.xadd(f"{app}:go", {"go": "1"})
    said = [await worker.said("granted", within=20) for worker in workers]
    granted = sum(int(line.split()[1]) for line in said)
    assert granted == 10, f"{granted} retries of two processes, where there are 10"


async def commands(client: Any) -> int:
    """Return how many scripts and pings the server has run."""
    stats = await client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval", "ping"))


async def check_success_costs_no_round_trip(server: Server, app: str, kind: type[SharedBudget]) -> None:
    """A hundred calls that succeed at once send Redis nothing."""
    async with opened(server.url) as client:
        budget = shared(client, app, kind)
        await budget.withdraw()
        before = await commands(client)
        retry = Retry("payments", policy(), budget=budget)
        for _ in range(100):
            await retry.call(Scripted(returns(1)))
        await asyncio.gather(*getattr(budget, "sent", []))
        sent = await commands(client) - before
    assert sent == 0, f"100 successes sent {sent} commands"


async def check_goes_on_alone(server: Server, app: str, kind: type[SharedBudget], books: Ledger) -> None:
    """Redis dies in an outage: calls are still retried, within a budget, and come back to the common one."""
    heard, clock = Recorder(), QuickClock()
    async with opened(server.url, connect_timeout=1) as client:
        budget = shared(client, app, kind, clock=clock, on_event=heard, timeout=0.5)
        assert [await budget.withdraw() for _ in range(10)] == [True] * 10
        server.kill()
        books.injected()
        retry = Retry("payments", policy(base=0), budget=budget)
        for number in range(12):
            service = Scripted(fails(ConnectionError()), returns("paid"))
            books.acked(number)  # a retry is owed while the local budget lasts
            if await outcome_of(retry.call(service)) == "paid" or number >= 10:
                books.effect(number)
        assert books.lost == 0, f"{books.lost} of 10 calls were not retried for want of Redis"
        assert budget.alone
        assert not await budget.withdraw(), "the local budget is one too"
        budget.give_back()
        assert await budget.withdraw(), "what comes back while alone goes into the local budget"
        server.restart()
        clock.jump(1.1)
        assert await budget.withdraw()
        books.recovered()
        assert not budget.alone
        assert [type(event) for event in heard.events] == [SharingLost, SharingRegained]
