"""The proof of patterns/resiliency/bulkhead: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import math
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from patterns.clock import ManualClock
from patterns.embedded import Server
from patterns.events import Event, Recorder
from patterns.keyspace import Keyspace, opened
from patterns.resiliency.bulkhead import (
    Bulkhead,
    BulkheadFull,
    CallAdmitted,
    CallQueued,
    CallRejected,
    LimitChanged,
    Reason,
)
from patterns.resiliency.bulkhead.executor import ThreadBulkhead
from patterns.resiliency.bulkhead.shared import PermitLost, SharedBulkhead, SharingLost
from patterns.scripted import Scripted, fails, hangs, returns
from tests.eventually import eventually
from tests.faults.leaks import in_use
from tests.faults.proxy import proxy
from tests.resiliency.bulkhead_checks import (
    Make,
    apart,
    cancel_callers_of_threads,
    check_a_stall_stays_apart,
    check_deadlines_in_the_queue,
    check_first_come_first_served,
    check_limits_hold,
    check_permits_come_back,
    check_resize,
    check_threads_are_counted,
    meet_a_thousand,
    one_pool,
    outcome_of,
    running_now,
)
from tests.resiliency.bulkhead_model import LineAgainstAModel, end, turns
from tests.resiliency.bulkhead_naive import (
    AcquiresOutsideTry,
    CountsInRedis,
    ForgetsTheHandOver,
    InTheLoopsThreads,
    OnlyASemaphore,
    OnlyNewcomersSeeIt,
    StartsAnew,
    TimeoutAround,
    WakesAndHopes,
)
from tests.resiliency.bulkhead_shared_checks import (
    NeedsRedis,
    check_a_failover_and_then_the_limit,
    check_a_killed_holder_returns_its_permits,
    check_goes_on_without_redis,
    check_random_cancellations_when_shared,
    leases,
    shared,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.ledger import Ledger


# 1: limits


@pytest.mark.invariant(1)
async def test_a_herd_runs_waits_or_is_refused_at_once() -> None:
    """No more run than the limit, no more wait than may, and what is refused was not started."""
    await check_limits_hold(Bulkhead)


@pytest.mark.naive(1)
async def test_a_semaphore_lets_everybody_wait() -> None:
    """Forty-seven of fifty callers stand in its queue."""
    with pytest.raises(AssertionError, match="3 run and 47 wait"):
        await check_limits_hold(OnlyASemaphore)


@pytest.mark.invariant(1)
async def test_a_refusal_says_what_the_caller_needs() -> None:
    """The error names bulkhead, limit, queue, time waited and reason, and survives pickling."""
    clock = ManualClock()
    bulkhead = Bulkhead("search", limit=1, max_waiting=1, max_wait=0.5, clock=clock)
    async with bulkhead:
        waiting = asyncio.create_task(bulkhead.acquire())
        await turns()
        with pytest.raises(BulkheadFull, match=r"'search' refused the call \(full\)") as full:
            await bulkhead.acquire()
        assert (full.value.name, full.value.limit, full.value.waiting) == ("search", 1, 1)
        assert (full.value.waited, full.value.retry_after) == (0.0, None)
        await clock.advance(0.5)
        with pytest.raises(BulkheadFull) as late:
            await waiting
        assert (late.value.waited, late.value.reason) == (0.5, Reason.MAX_WAIT)
        assert late.value.__context__ is None
        again = pickle.loads(pickle.dumps(late.value))
        assert vars(again) == vars(late.value)


@pytest.mark.invariant(1)
async def test_an_endless_max_wait_waits() -> None:
    """With max_wait=inf only room in the line is needed."""
    clock = ManualClock()
    bulkhead = Bulkhead("search", limit=1, max_waiting=1, max_wait=math.inf, clock=clock)
    await bulkhead.acquire()
    waiting = asyncio.create_task(bulkhead.acquire())
    await clock.advance(1e6)
    assert running_now(bulkhead) == (1, 1)
    bulkhead.release()
    await waiting
    bulkhead.release()
    assert running_now(bulkhead) == (0, 0)


# 2: permits are conserved


@pytest.mark.invariant(2)
@pytest.mark.fault("calls cancelled while waiting, at the hand-over, running")
async def test_permits_survive_a_thousand_random_cancellations(
    rng: random.Random, ledger: Callable[..., Ledger]
) -> None:
    """Waiting, at the hand-over and running, mixed with errors: all four permits are there in the end."""
    books = ledger(bound="running and waiting back to 0, all permits usable")
    cut = await check_permits_come_back(Bulkhead, rng, 1000)
    assert min(cut.values()) > 200
    books.injected(sum(cut.values()))
    for permit in range(4):
        books.acked(permit)
        books.effect(permit)
    with pytest.raises(AssertionError) as stuck:
        await check_permits_come_back(ForgetsTheHandOver, rng, 1000)
    books.held("; ".join(f"{n} {kind}" for kind, n in cut.items()) + ": every permit came back")
    books.naive(f"no care at the hand-over: {str(stuck.value).splitlines()[0]}")
    gc.collect()


@pytest.mark.naive(2)
@pytest.mark.parametrize("variant", [ForgetsTheHandOver, AcquiresOutsideTry])
async def test_two_usual_bulkheads_lose_permits_to_cancellation(variant: Make, rng: random.Random) -> None:
    """A hand-over to the cancelled, or a release that is not in a finally, ends with no permit left."""
    with pytest.raises(AssertionError, match=r"nobody gets in any more|permits are gone"):
        await check_permits_come_back(variant, rng, 1000)
    gc.collect()


@pytest.mark.invariant(2)
@pytest.mark.parametrize("ending", [returns("ok"), fails(KeyError("no")), hangs()])
async def test_every_handle_gives_its_permit_back(ending: Any) -> None:
    """`call`, decorator, `async with`, `until` and a plain `with`: after a result, an error, a cancel."""
    bulkhead = Bulkhead("search", limit=1)
    service = Scripted(then=ending)

    @bulkhead
    async def decorated(word: str) -> str:
        """Say it."""
        await service()
        return word

    async def block() -> None:
        async with bulkhead:
            await service()

    async def plain() -> None:
        with bulkhead:
            await service()

    async def in_time() -> None:
        await bulkhead.until(math.inf).call(service)

    assert decorated.__doc__ == "Say it."
    for call in (lambda: bulkhead.call(service), lambda: decorated("hello"), block, plain, in_time):
        task = asyncio.create_task(outcome_of(call()))
        await turns()
        if not task.done():
            assert bulkhead.running == 1
            with pytest.raises(BulkheadFull):
                await decorated("no")
            task.cancel()
        assert await task == ("ok" if ending.result else "KeyError" if ending.error else "CancelledError")
        assert running_now(bulkhead) == (0, 0)


@pytest.mark.invariant(2)
def test_a_release_too_many_is_refused() -> None:
    """A permit that was never taken cannot be given back."""
    with pytest.raises(RuntimeError, match="released more often than acquired"):
        Bulkhead("search", limit=1).release()


@pytest.mark.invariant(2)
async def test_listeners_cannot_cost_a_permit() -> None:
    """What a listener raises is logged; a listener that is interrupted gives the permit back."""

    def interrupted(event: Event) -> None:
        if isinstance(event, CallAdmitted):
            raise KeyboardInterrupt

    bulkhead = Bulkhead("search", limit=1, max_waiting=1, on_event=interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            bulkhead.acquire_nowait()
    assert running_now(bulkhead) == (0, 0)


@pytest.mark.invariant(1, 2)
def test_threads_and_tasks_share_the_permits() -> None:
    """Eight threads with a plain `with` and three loops with waiting tasks: never above the limit."""
    bulkhead = Bulkhead("search", limit=3, max_waiting=100, max_wait=math.inf)
    inside, most, refused = [0], [0], [0]
    lock = threading.Lock()

    def enter(step: int) -> None:
        with lock:
            inside[0] += step
            most[0] = max(most[0], inside[0])

    def synchronous() -> None:
        for _ in range(400):
            try:
                with bulkhead:
                    enter(1)
                    enter(-1)
            except BulkheadFull:
                refused[0] += 1

    def asynchronous() -> None:
        async def once() -> None:
            async with bulkhead:
                enter(1)
                await asyncio.sleep(0)
                enter(-1)

        async def main() -> None:
            for _ in range(20):
                tasks = [asyncio.ensure_future(once()) for _ in range(10)]
                await asyncio.sleep(0)
                tasks[-1].cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(main())

    with ThreadPoolExecutor(11) as pool:
        for future in [pool.submit(synchronous) for _ in range(8)] + [
            pool.submit(asynchronous) for _ in range(3)
        ]:
            future.result(timeout=30)
    assert 1 <= most[0] <= 3
    assert running_now(bulkhead) == (0, 0)
    assert len(bulkhead._free) == 3


@pytest.mark.invariant(2, 3)
def test_a_loop_that_was_closed_does_not_keep_its_place_in_the_line() -> None:
    """Five hundred tasks of a loop that is gone stand in the line; the permit goes to the next living one."""
    bulkhead = Bulkhead("search", limit=1, max_waiting=501, max_wait=math.inf)
    bulkhead.acquire_nowait()
    gone = asyncio.new_event_loop()
    dead = [gone.create_task(bulkhead.acquire()) for _ in range(500)]
    gone.run_until_complete(asyncio.sleep(0))
    for task in dead:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # closed without its tasks: the point
    gone.close()

    async def living() -> None:
        task = asyncio.create_task(bulkhead.acquire())
        await asyncio.sleep(0)
        bulkhead.release()
        await task

    asyncio.run(living())
    assert running_now(bulkhead) == (1, 0)


@pytest.mark.invariant(2)
async def test_a_finalizer_in_the_middle_of_a_call_neither_blocks_nor_loses() -> None:
    """Coroutines that are thrown away while this very thread has the lock: the permit is there afterwards."""
    bulkhead = Bulkhead("search", limit=1, max_waiting=3, max_wait=math.inf)
    inside, waiting = bulkhead.call(Scripted(hangs())), bulkhead.acquire()
    inside.send(None)
    waiting.send(None)
    assert running_now(bulkhead) == (1, 1)
    next_one = asyncio.create_task(bulkhead.acquire())
    await turns()
    with bulkhead._lock:  # as when the garbage collector runs within acquire()
        waiting.close()
        inside.close()
    newcomer = asyncio.create_task(bulkhead.acquire())  # it finds the permit, and leaves it to the first
    await next_one
    assert running_now(bulkhead) == (1, 1)
    bulkhead.release()
    await newcomer
    bulkhead.release()
    assert running_now(bulkhead) == (0, 0)


@pytest.mark.invariant(3)
async def test_a_permit_that_comes_back_while_somebody_counts_is_handed_over() -> None:
    """Another thread, or a finalizer, gives a permit back while `running` is read: the waiter has it."""
    bulkhead = Bulkhead("search", limit=1, max_waiting=1, max_wait=math.inf)
    await bulkhead.acquire()
    waiting = asyncio.create_task(bulkhead.acquire())
    await turns()

    class ComesBackMeanwhile(list[bool]):
        came = False

        def __len__(self) -> int:
            if not self.came:
                self.came = True
                bulkhead._give_back()
            return super().__len__()

    bulkhead._free = ComesBackMeanwhile(bulkhead._free)
    assert bulkhead.running == 0  # at this moment
    await turns()
    assert waiting.done(), "the one who waits was forgotten"
    assert running_now(bulkhead) == (1, 0)


# 3: first come, first served


@pytest.mark.invariant(3)
async def test_the_line_is_served_in_order() -> None:
    """Who gives up does not hold the line, and a newcomer stands behind it."""
    await check_first_come_first_served(Bulkhead)


@pytest.mark.naive(3)
async def test_waking_a_waiter_is_not_giving_it_the_permit() -> None:
    """With the semaphore of old, the cancelled waiter takes the wake-up along."""
    with pytest.raises(AssertionError, match="served"):
        await check_first_come_first_served(WakesAndHopes)


LineAgainstAModel.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestLineAgainstAModel = LineAgainstAModel.TestCase


# 4: isolation


@pytest.mark.invariant(4)
@pytest.mark.naive(4)
@pytest.mark.fault("one of two dependencies hangs")
async def test_a_hanging_dependency_takes_only_its_own_share(ledger: Callable[..., Ledger]) -> None:
    """The other answers 200 of 200 calls as quickly as ever; from one pool for both it answers a few."""
    books = ledger(bound="p99 of the other dependency unchanged")
    figures = await check_a_stall_stays_apart(apart)
    books.injected(200)
    for number in range(200):
        books.acked(number)
        books.effect(number)
    with pytest.raises(AssertionError, match=r" of 200 found, p99 2\.0") as slow:
        await check_a_stall_stays_apart(one_pool)
    books.held(f"the other one: {figures['found']} of 200 answered, p99 {figures['p99']:.2f} s")
    books.naive(f"one pool: {str(slow.value).splitlines()[0]}")


# 5: resize


@pytest.mark.invariant(5)
async def test_a_resize_wakes_or_waits_but_stops_nobody() -> None:
    """Two of four waiters get in at once; lowered again, the next gets in when one of two has left."""
    await check_resize(Bulkhead)


@pytest.mark.naive(5)
@pytest.mark.parametrize(
    ("variant", "complaint"), [(OnlyNewcomersSeeIt, "still wait"), (StartsAnew, "still wait")]
)
async def test_a_new_number_is_not_a_resize(variant: Make, complaint: str) -> None:
    """Setting the limit wakes nobody."""
    with pytest.raises(AssertionError, match=complaint):
        await check_resize(variant)


@pytest.mark.invariant(5)
def test_resizing_back_and_forth_keeps_the_count() -> None:
    """Down below what runs and up again, a thousand times: permits are neither made nor lost."""
    bulkhead, rng = Bulkhead("search", limit=5), random.Random(5)
    out = 0
    for _ in range(1000):
        if out and rng.random() < 0.5:
            bulkhead.release()
            out -= 1
        else:
            with contextlib.suppress(BulkheadFull):
                bulkhead.acquire_nowait()
                out += 1
        bulkhead.resize(rng.randint(1, 9))
        assert bulkhead.running == out
    while out:
        bulkhead.release()
        out -= 1
    assert len(bulkhead._free) == bulkhead.limit


@pytest.mark.invariant(1, 5)
async def test_a_closed_bulkhead_refuses_those_who_wait_too() -> None:
    """Running calls finish; waiting and new ones hear that it is closed; it cannot be resized."""
    bulkhead = Bulkhead("search", limit=1, max_waiting=2)
    await bulkhead.acquire()
    waiting = asyncio.create_task(outcome_of(bulkhead.call(Scripted())))
    await turns()
    bulkhead.close()
    assert await waiting == "closed"
    assert await outcome_of(bulkhead.call(Scripted())) == "closed"
    assert running_now(bulkhead) == (1, 0)
    cancelled = Bulkhead("search", limit=1, max_waiting=1)
    await cancelled.acquire()
    waiting = asyncio.create_task(outcome_of(cancelled.acquire()))
    await turns()
    cancelled.close()
    await end(waiting)  # in the step in which it was refused: it had no permit to give back
    assert running_now(cancelled) == (1, 0)
    bulkhead.release()
    assert await outcome_of(bulkhead.call(Scripted())) == "closed"
    assert (bulkhead.running, bulkhead.limit) == (0, 0)
    with pytest.raises(RuntimeError, match="is closed"):
        bulkhead.resize(1)


# 6: deadlines


@pytest.mark.invariant(6)
async def test_a_call_whose_deadline_has_passed_is_not_started() -> None:
    """The clock is asked when the call would begin; the permit goes to the next one, who is in time."""
    await check_deadlines_in_the_queue(Bulkhead)


@pytest.mark.naive(6)
async def test_a_timeout_around_the_call_is_late_when_the_loop_is() -> None:
    """With asyncio.timeout around it, the call starts first and is cancelled then."""
    with pytest.raises(AssertionError, match="started after its deadline"):
        await check_deadlines_in_the_queue(TimeoutAround)


@pytest.mark.invariant(1, 6)
async def test_the_sooner_of_max_wait_and_deadline_ends_the_wait() -> None:
    """The reason tells which; a max_wait that a blocked loop overran refuses as well."""
    clock = ManualClock()
    bulkhead = Bulkhead("search", limit=1, max_waiting=3, max_wait=2.0, clock=clock)
    await bulkhead.acquire()
    tasks = [
        asyncio.create_task(outcome_of(bulkhead.until(deadline).call(Scripted()))) for deadline in (1.0, 9.0)
    ]
    await clock.advance(1)
    await clock.advance(1)
    assert [await task for task in tasks] == ["deadline", "max_wait"]
    overrun = asyncio.create_task(outcome_of(bulkhead.call(Scripted())))
    await turns()
    bulkhead.release()
    clock.jump(2)
    assert await overrun == "max_wait"
    assert running_now(bulkhead) == (0, 0)


# 7: threads


@pytest.mark.invariant(7)
@pytest.mark.usefixtures("no_leaks")
async def test_a_thread_keeps_its_permit_until_it_has_ended() -> None:
    """Cancelled callers free nothing; the two threads are the bulkhead's own."""
    await check_threads_are_counted(ThreadBulkhead)
    assert not [each for each in threading.enumerate() if each.name.startswith("bulkhead")]


@pytest.mark.naive(7)
async def test_a_semaphore_around_to_thread_counts_callers_not_threads() -> None:
    """Each cancelled caller leaves a thread behind that nobody counts."""
    with pytest.raises(AssertionError, match="threads were busy, the limit is 2"):
        await check_threads_are_counted(InTheLoopsThreads)


@pytest.mark.invariant(7)
async def test_thread_calls_give_results_errors_and_context() -> None:
    """As if called directly: value, exception, context; also StopIteration, which no future can hold."""
    user = contextvars.ContextVar[str]("user")
    async with ThreadBulkhead("files", limit=1, max_waiting=9) as threads:

        @threads
        def whoami(*, shout: bool) -> str:
            return user.get().upper() if shout else user.get()

        user.set("ann")
        assert await whoami(shout=True) == "ANN"
        assert await threads.call(lambda: threading.current_thread().name) == "bulkhead files_0"
        with pytest.raises(ZeroDivisionError):
            await threads.call(lambda: 1 / 0)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await threads.call(next, iter(()))
        with pytest.raises(TypeError, match="plain def"):
            threads(Scripted().__call__)
        assert (threads.limit, *running_now(threads)) == (1, 0, 0)
    assert await outcome_of(threads.call(print)) == "closed"


@pytest.mark.invariant(7)
async def test_close_refuses_who_waits_and_waits_for_who_runs() -> None:
    """A function that runs is waited for; cancelling the close leaves it to end by itself."""
    gate = threading.Event()
    threads = ThreadBulkhead("files", limit=1, max_waiting=1, max_wait=math.inf)
    running = asyncio.create_task(outcome_of(threads.call(gate.wait, 30)))
    waiting = asyncio.create_task(outcome_of(threads.call(gate.wait, 30)))
    await eventually(lambda: running_now(threads) == (1, 1), within=5)
    closing = asyncio.create_task(threads.close())
    assert await waiting == "closed"
    assert not closing.done()
    gate.set()
    await closing
    assert await running in {"ok", "CancelledError"}
    assert running_now(threads) == (0, 0)


@pytest.mark.invariant(7)
async def test_a_call_that_was_handed_a_permit_in_the_step_of_the_close_is_refused() -> None:
    """The threads are gone when it goes on: it hears that the bulkhead is closed, as everybody does."""
    threads = ThreadBulkhead("files", limit=1, max_waiting=1, max_wait=math.inf)
    threads._permits.acquire_nowait()
    waiting = asyncio.create_task(outcome_of(threads.call(print)))
    await turns()
    threads._permits.release()  # to the one who waits, and before it goes on ...
    await threads.close()
    assert await waiting == "closed"
    assert running_now(threads) == (0, 0)


# 8: shared through Redis


@pytest.mark.invariant(8)
@pytest.mark.naive(8)
@pytest.mark.fault("holder of all permits killed (SIGKILL)")
async def test_the_permits_of_a_killed_holder_return_within_its_lease(
    server: Server, app: str, spawn: Any, ledger: Callable[..., Ledger]
) -> None:
    """Three holders are killed in turn and leave nothing behind; an INCR/DECR counter stays where it was."""
    books = ledger(within=0.8, bound="all permits back within the lease (0.5 s)")
    naive = books.without("INCR and DECR")
    naive._within = None
    program = Path(__file__).with_name("bulkhead_holder.py")
    async with opened(server.url) as client:
        lease = shared(client, app, lease=0.5, timeout=0.125)
        counter = CountsInRedis("search", client, app=app, limit=3)
        first, *others = (
            (n, spawn(program, app, n, 3, 0.5, 3, env={"REDIS_URL": server.url})) for n in range(3)
        )
        await check_a_killed_holder_returns_its_permits(client, app, lease, [first], books)
        with pytest.raises(AssertionError, match="3 of 3 permits are still out after the lease"):
            await check_a_killed_holder_returns_its_permits(client, app, counter, [first], naive)
        await check_a_killed_holder_returns_its_permits(client, app, lease, others, books)
    books.held("permits returned with the lease")


@pytest.mark.invariant(8)
@pytest.mark.parametrize("where", ["server", "cluster"])
async def test_processes_together_hold_no_more_than_the_limit(
    request: pytest.FixtureRequest, where: str, app: str
) -> None:
    """Two processes with 60 callers each: 3 run at once, and all who wait are served; also on a cluster."""
    url = request.getfixturevalue(where).url
    inside, most, stored = [0], [0], [0]
    async with opened(url) as one, opened(url) as two, opened(url) as watch:
        pair = [
            shared(client, app, max_waiting=60, max_wait=30.0, rng=random.Random(7)) for client in (one, two)
        ]

        async def work() -> None:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            stored[0] = max(stored[0], await watch.zcard(leases(app)))
            inside[0] -= 1

        outcomes = await asyncio.gather(
            *[outcome_of(bulkhead.call(work)) for _ in range(60) for bulkhead in pair]
        )
        assert outcomes == ["ok"] * 120
        assert most[0] == stored[0] == 3
        assert [running_now(bulkhead) for bulkhead in pair] == [(0, 0)] * 2
        assert await pair[0].in_use() == 0
        assert await watch.exists(leases(app)) == 0


@pytest.mark.invariant(8)
async def test_a_lease_is_renewed_for_as_long_as_it_is_held(server: Server, app: str) -> None:
    """A call that takes three leases keeps its permit; afterwards no task and no key is left."""
    heard = Recorder()
    async with opened(server.url) as client:
        bulkhead = shared(client, app, limit=1, lease=0.3, timeout=0.09, on_event=heard)
        other = shared(client, app, limit=1)
        loop = asyncio.get_running_loop()
        async with bulkhead:
            began = loop.time()

            async def still_held() -> bool:
                assert await other.in_use() == 1
                return loop.time() - began > 0.9

            while not await still_held():
                with pytest.raises(BulkheadFull):
                    await other.acquire()
            ttl = await client.pttl(leases(app))
            assert 0 < ttl <= 300
        assert await other.in_use() == 0
        assert not heard.of(PermitLost)
        await eventually(lambda: len(asyncio.all_tasks()) == 1, within=1)


@pytest.mark.invariant(8)
async def test_a_permit_that_is_given_back_wakes_the_first_of_this_process(server: Server, app: str) -> None:
    """Within a process the line is first come first served and does not wait for the poll."""
    async with opened(server.url) as client:
        bulkhead = shared(client, app, limit=1, poll=60.0, max_waiting=3, max_wait=60.0)
        order: list[int] = []

        async def call(number: int) -> None:
            async with bulkhead:
                order.append(number)

        await bulkhead.acquire()
        tasks = []
        for number in range(3):
            tasks.append(asyncio.create_task(call(number)))
            await eventually(lambda: bulkhead.waiting == len(tasks), within=5)
        assert await outcome_of(bulkhead.call(Scripted())) == "full"
        await bulkhead.release()
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2]


@pytest.mark.invariant(8)
async def test_a_waiting_call_is_refused_in_time(server: Server, app: str) -> None:
    """After max_wait or at its deadline; and a permit that comes too late is given back."""
    async with opened(server.url) as client:
        full = shared(client, app, limit=1, max_waiting=2, max_wait=0.03)
        loop = asyncio.get_running_loop()
        await full.acquire()
        both = await asyncio.gather(*[outcome_of(full.call(Scripted())) for _ in range(2)])
        assert both == ["max_wait", "max_wait"]
        assert await outcome_of(full.until(loop.time() + 0.02).call(Scripted())) == "deadline"
        assert await outcome_of(full.until(loop.time()).call(Scripted())) == "deadline"
        await full.release()

        class Late(ManualClock):
            """Each answer of Redis takes a second."""

            def monotonic(self) -> float:
                self.jump(1.0)
                return super().monotonic()

        late = shared(client, app, clock=Late())
        assert await outcome_of(late.until(1.5).call(Scripted())) == "deadline"
        assert await full.in_use() == 0
        assert running_now(full) == running_now(late) == (0, 0)


@pytest.mark.invariant(1, 8)
async def test_a_permit_that_is_granted_after_max_wait_is_given_back(server: Server, app: str) -> None:
    """The answer takes longer than the call may wait."""
    clock = ManualClock()
    async with proxy(server.port) as link, opened(link.url) as client, opened(server.url) as direct:
        other = shared(direct, app, limit=1)
        here = shared(client, app, limit=1, max_waiting=1, max_wait=2.0, poll=1.0, clock=clock)
        await other.acquire()
        waiting = asyncio.create_task(outcome_of(here.call(Scripted())))
        await eventually(lambda: here.waiting == 1 and in_use(client) == 0, within=5)
        await other.release()
        with link.latency(0.05) as slow:
            await clock.advance(1.5)
            await eventually(lambda: slow.hits > 0, within=5)
            clock.jump(0.5)
        assert await waiting == "max_wait"
        assert await other.in_use() == 0


@pytest.mark.invariant(8)
async def test_a_forgotten_lease_is_taken_again_or_told_of(server: Server, app: str) -> None:
    """Redis loses every lease: holders take theirs again while there is room, and the rest is told."""
    heard = Recorder()
    clock = ManualClock()
    async with opened(server.url) as client:
        bulkhead = shared(client, app, limit=2, clock=clock, on_event=heard)
        other = shared(client, app, limit=2)
        await bulkhead.acquire()
        await bulkhead.acquire()
        await client.delete(leases(app))
        await other.acquire()
        await clock.advance(20.1)
        await eventually(lambda: len(heard.of(PermitLost)) == 1, within=5)
        assert await other.in_use() == 2
        await bulkhead.release()  # the one that is not counted goes first
        assert await other.in_use() == 2
        await other.release()
        await bulkhead.acquire()
        assert await other.in_use() == 2
        await bulkhead.release()
        await bulkhead.release()
        assert await other.in_use() == 0


@pytest.mark.invariant(8)
async def test_a_release_that_overtakes_a_renewal_is_not_undone(server: Server, app: str) -> None:
    """A renewal is on its way while its permit is given back on another connection: none is left over."""
    clock = ManualClock()
    async with (
        proxy(server.port, may_idle=True) as link,
        opened(link.url) as client,
        opened(server.url) as direct,
    ):
        bulkhead = shared(client, app, clock=clock)
        await bulkhead.acquire()
        await bulkhead.acquire()
        with link.latency(0.05, "up"):
            await clock.advance(20.1)
            await eventually(lambda: link.injected > 0, within=5)
            bulkhead._leases._client = direct
            await bulkhead.release()
            assert await bulkhead.in_use() == 1
            await eventually(lambda: bulkhead._leases._renew_at > 40, within=5)

        async def one_is_left() -> bool:
            return await bulkhead.in_use() == 1

        await eventually(one_is_left, within=5)
        await bulkhead.release()
        assert await bulkhead.in_use() == 0


@pytest.mark.invariant(3, 8)
async def test_a_newcomer_stands_behind_those_who_wait_in_its_process(server: Server, app: str) -> None:
    """Another process has given its permit back, which the one who waits has not noticed yet."""
    async with opened(server.url) as one, opened(server.url) as two:
        other = shared(one, app, limit=1)
        here = shared(two, app, limit=1, poll=60.0, max_waiting=1, max_wait=60.0)
        await other.acquire()
        waiting = asyncio.create_task(here.acquire())
        await eventually(lambda: here.waiting == 1 and in_use(two) == 0, within=5)
        await other.release()
        assert await outcome_of(here.call(Scripted())) == "full"
        await end(waiting)


@pytest.mark.invariant(2, 8)
@pytest.mark.parametrize("phase", ["on its way", "asking", "giving back"])
async def test_a_permit_whose_caller_hung_up_is_free_for_other_processes(
    server: Server, app: str, phase: str
) -> None:
    """Before Redis hears of its request, before it hears of its permit, or as it gives it back."""
    async with proxy(server.port) as link, opened(link.url) as client, opened(server.url) as direct:
        here, other = shared(client, app, limit=1), shared(direct, app, limit=1)
        await here.call(Scripted(returns("warm")))
        before = (await direct.info("commandstats"))["cmdstat_zadd"]["calls"] - 1
        if phase == "giving back":
            await here.acquire()
            slow = link.hole("up")
            cut = asyncio.create_task(here.release())
            await eventually(lambda: slow.hits > 0, within=5)  # the request is lost
        else:
            slow = link.latency(0.1, "down" if phase == "asking" else "up")
            cut = asyncio.create_task(here.acquire())
            await eventually(lambda: slow.hits > 0, within=5)  # the answer, or the request, is held back
            assert await other.in_use() == (phase == "asking")
        cut.cancel()
        slow.remove()
        await asyncio.gather(cut, return_exceptions=True)
        assert running_now(here) == (0, 0)

        async def both_were_granted() -> bool:
            granted = (await direct.info("commandstats"))["cmdstat_zadd"]["calls"]
            return bool(granted - before == 2)

        await eventually(both_were_granted, within=5)

        async def is_free() -> bool:
            return await other.in_use() == 0

        await eventually(is_free, within=5)


@pytest.mark.invariant(2, 8)
@pytest.mark.parametrize("again", [True, False])
async def test_a_caller_that_will_not_even_wait_for_the_answer_costs_no_permit(
    server: Server, app: str, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """It is cancelled twice, or in the step in which its permit is granted; nothing is left in the end."""
    async with (
        proxy(server.port, may_idle=True) as link,
        opened(link.url) as client,
        opened(server.url) as direct,
    ):
        here, other = shared(client, app, limit=1), shared(direct, app, limit=1)
        await here.call(Scripted(returns("warm")))
        cut = asyncio.create_task(here.acquire())
        if again:
            with link.latency(0.05) as slow:
                await eventually(lambda: slow.hits > 0, within=5)
            cut.cancel()
            await asyncio.sleep(0)
            cut.cancel()
        else:
            exchange = here._leases._exchange

            async def exchange_and_hang_up(*holders: str) -> list[int]:
                answers = await exchange(*holders)
                asyncio.get_running_loop().call_soon(cut.cancel)  # before it reads what comes now
                return answers

            monkeypatch.setattr(here._leases, "_exchange", exchange_and_hang_up)
        assert await outcome_of(cut) == "CancelledError"
        assert running_now(here) == (0, 0)

        async def is_free() -> bool:
            return await other.in_use() == 0 and not here._leases._asking

        await eventually(is_free, within=5)


@pytest.mark.invariant(2, 8)
async def test_a_request_that_arrives_after_its_give_back_is_undone_by_the_second(
    server: Server, app: str
) -> None:
    """Redis seemed silent: what the late request took is out until it is given back again."""
    async with proxy(server.port) as link, opened(link.url) as client, opened(server.url) as direct:
        here, other = shared(client, app, timeout=0.1, without_redis=1), shared(direct, app)
        await here.call(Scripted(returns("warm")))
        slow = link.latency(0.4, "up")
        await here.call(Scripted(returns("alone")))
        assert here.alone
        slow.remove()
        here._leases._ask_at = -math.inf
        await here.acquire()  # and the first give-back
        assert not here.alone

        async def it_has_arrived() -> bool:
            return await other.in_use() == 2

        await eventually(it_has_arrived, within=5)
        await here.release()  # and the second
        assert await other.in_use() == 0


@pytest.mark.invariant(8)
async def test_a_herd_is_not_taken_for_a_silent_redis(server: Server, app: str) -> None:
    """Four hundred callers before eight slow connections: each waits for its turn, and no one for Redis."""
    heard = Recorder()
    async with proxy(server.port) as link, opened(link.url, max_connections=8) as client:
        # All of them take longer than the time-out, one exchange far less, also on a busy machine.
        bulkhead = shared(client, app, limit=50, timeout=2.0, on_event=heard)
        gate = asyncio.Event()
        await bulkhead.call(Scripted(returns("warm")))
        link.latency(0.05)
        tasks = [asyncio.create_task(outcome_of(bulkhead.call(gate.wait))) for _ in range(400)]
        await eventually(lambda: sum(task.done() for task in tasks) >= 350, within=20)
        gate.set()
        outcomes = [await task for task in tasks]
        assert (outcomes.count("ok"), outcomes.count("full")) == (50, 350)
        assert not heard.of(SharingLost)
        assert await bulkhead.in_use() == 0


@pytest.mark.invariant(5, 8)
async def test_each_process_asks_with_its_own_limit(server: Server, app: str) -> None:
    """Where limits differ the lower is refused first; a raised one lets a waiting call in."""
    heard = Recorder()
    async with opened(server.url) as one, opened(server.url) as two:
        low = shared(one, app, limit=1, poll=60.0, max_waiting=1, max_wait=60.0, on_event=heard)
        high = shared(two, app, limit=2)
        await high.acquire()
        waiting = asyncio.create_task(low.acquire())
        await eventually(lambda: low.waiting == 1, within=5)
        await high.acquire()
        await high.release()
        low.resize(2)
        await waiting
        assert heard.of(LimitChanged) == [LimitChanged("search", 1, 2)]
        assert low.limit == 2
        await low.release()
        await high.release()
        with pytest.raises(RuntimeError, match="more often"):
            await low.release()
        with pytest.raises(TypeError, match="over the network"):
            low(lambda: None)  # type: ignore[arg-type, return-value]  # the point

        @low
        async def guarded(word: str) -> str:
            return word

        assert await guarded("hello") == "hello"


# faults


@pytest.mark.invariant(1)
@pytest.mark.fault("1,000 callers at once")
async def test_a_thousand_callers_are_sorted_at_once(ledger: Callable[..., Ledger]) -> None:
    """Ten run, twenty wait and 970 are refused before any time has passed; a semaphore keeps 990 waiting."""
    books = ledger(bound="limit 10, 20 waiting, max_wait 1 s")
    longest, outcomes, service = await meet_a_thousand(Bulkhead)
    books.injected(1000)
    for number, outcome in enumerate(outcomes):
        (books.acked if outcome == "ok" else books.failed)(number)
    assert service.calls == 30
    assert service.most_in_flight == 10
    for number in range(service.calls):
        books.effect(number)
    naive, _, _ = await meet_a_thousand(OnlyASemaphore)
    books.held(f"970 refused at once, 30 served within {longest:.1f} s")
    books.naive(f"asyncio.Semaphore: the last one is served after {naive:.0f} s")


@pytest.mark.invariant(6)
@pytest.mark.fault("event loop blocked past the deadline of those who wait")
async def test_a_blocked_loop_starts_nothing_too_late(ledger: Callable[..., Ledger]) -> None:
    """A hundred times the loop stands still between the hand-over and the start: no call begins too late."""
    books = ledger(bound="no call begins after its deadline")
    naive = books.without("asyncio.timeout around the call")
    for book, make in ((books, Bulkhead), (naive, TimeoutAround)):
        for number in range(100):
            clock = ManualClock()
            bulkhead: Any = make("search", limit=1, max_waiting=1, max_wait=60.0, clock=clock)
            service = Scripted(then=hangs())
            await bulkhead.acquire()
            waiting = asyncio.create_task(outcome_of(bulkhead.until(1.0).call(service)))
            await turns()
            bulkhead.release()
            clock.jump(2.0)
            book.injected()
            await turns()
            book.failed(number)  # its time was over: it must not be done
            book.effect(number, service.calls) if service.calls else None
            await end(waiting)
            assert running_now(bulkhead) == (0, 0)
    books.held("none of 100 was started")


@pytest.mark.invariant(2, 7)
@pytest.mark.fault("callers of threads cancelled")
async def test_cancelled_callers_of_threads_cost_no_permit(
    rng: random.Random, ledger: Callable[..., Ledger]
) -> None:
    """A thousand callers give up, waiting or running: no more threads are busy than may be, and all end."""
    books = ledger(bound="at most 4 busy threads, every permit back")
    most = await cancel_callers_of_threads(ThreadBulkhead, rng, 1000)
    books.injected(1000)
    naive = await cancel_callers_of_threads(InTheLoopsThreads, rng, 40)
    for permit in range(4):
        books.acked(permit)
        books.effect(permit)
    assert most <= 4 < naive
    books.held(f"never more than {most} busy threads")
    books.naive(f"semaphore around to_thread: {naive} busy threads, limit 4")


@pytest.mark.invariant(2, 8)
@pytest.mark.fault("callers cancelled while they talk to Redis")
async def test_cancelled_callers_leave_no_lease_behind(
    server: Server, app: str, rng: random.Random, ledger: Callable[..., Ledger]
) -> None:
    """A thousand calls are cut short while asking, waiting, running, giving back: three permits are there."""
    books = ledger(bound="no lease, task or connection left")
    async with opened(server.url, max_connections=8) as client:
        bulkhead = shared(client, app, limit=3, max_waiting=6, max_wait=60.0, rng=rng)
        cut = await check_random_cancellations_when_shared(client, bulkhead, rng)
        with pytest.raises(BulkheadFull):  # once all three are held
            async with bulkhead, bulkhead, bulkhead:
                await shared(client, app).acquire()
        assert await bulkhead.in_use() == 0
        assert min(cut.values()) > 50, cut
        counter = CountsInRedis("search", client, app=app, limit=3)
        with pytest.raises(AssertionError, match="permits are out") as gone:
            await check_random_cancellations_when_shared(client, counter, rng)
    books.injected(sum(cut.values()))
    for permit in range(3):
        books.acked(permit)
        books.effect(permit)
    said = ", ".join(f"{n} {kind}" for kind, n in cut.items())
    books.held(f"{said}: all 3 permits free at once, no lease had to end first")
    books.naive(f"INCR and DECR: {str(gone.value).splitlines()[0]}")


@pytest.mark.invariant(8)
@pytest.mark.fault("reply of an acquire lost after Redis had granted it")
async def test_a_lost_reply_costs_no_permit(server: Server, app: str, ledger: Callable[..., Ledger]) -> None:
    """Thirty grants whose reply is lost are recognised when asked again; a counter counts them twice."""
    books = ledger(bound="no permit taken twice")
    async with proxy(server.port, books) as link, opened(link.url) as client:
        bulkhead = shared(client, app, limit=1)
        await bulkhead.call(Scripted(returns("warm")))
        for number in range(30):
            link.lose_reply(b"search", times=1)
            books.acked(number)
            await bulkhead.call(Scripted(returns("ok")))
            books.effect(number)
        link.up()
        assert await bulkhead.in_use() == 0
    async with (
        proxy(server.port) as link,
        Redis(port=link.port, retry=Retry(NoBackoff(), 10)) as default,  # as by default, but it never waits
    ):
        counter = CountsInRedis("search", default, app=f"{app}-naive", limit=100)
        for _ in range(30):
            link.lose_reply(b"INCRBY", times=1)
            await counter.acquire()
            link.up()
            await counter.release()
        leaked = await counter.in_use()
    assert leaked > 0
    books.held("each was recognised by its holder's id")
    books.naive(f"INCR with redis-py's default retries: {leaked} permits gone after 30 calls")


@pytest.mark.invariant(9)
@pytest.mark.naive(9)
@pytest.mark.fault("Redis killed while permits are held")
async def test_without_redis_each_process_has_its_own_small_share(
    fresh_server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """With without_redis=2 two calls run, with 0 none; a bulkhead that needs Redis fails with its errors."""
    books = ledger(bound="without_redis calls of each process, no more and no fewer")
    naive = books.without("no local share")
    await check_goes_on_without_redis(fresh_server, app, SharedBulkhead, books)
    with pytest.raises(AssertionError, match="of 2 calls failed for want of Redis"):
        await check_goes_on_without_redis(fresh_server, f"{app}-naive", NeedsRedis, naive)
    books.held("2 of 5 callers ran, 3 were refused; leases were taken up again when Redis was back")


@pytest.mark.invariant(9)
@pytest.mark.fault("Redis paused (SIGSTOP) under callers")
async def test_a_paused_redis_costs_a_call_one_timeout(
    fresh_server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """The first callers wait for the time-out; the next go on alone at once; nothing is owed afterwards."""
    books = ledger(within=0.6, bound="a call waits 0.2 s for Redis, once")
    async with opened(fresh_server.url) as client:
        bulkhead = shared(client, app, without_redis=9, timeout=0.2)
        await bulkhead.call(Scripted(returns("warm")))
        fresh_server.stop()
        books.injected()
        counter = CountsInRedis("search", client, app=app, limit=9)
        naive = [asyncio.create_task(outcome_of(counter.acquire())) for _ in range(5)]
        began = asyncio.get_running_loop().time()
        outcomes = await asyncio.gather(*[outcome_of(bulkhead.call(Scripted(returns(1)))) for _ in range(5)])
        books.recovered()
        waited = asyncio.get_running_loop().time() - began
        assert outcomes == ["ok"] * 5
        for _ in range(20):
            assert await outcome_of(bulkhead.call(Scripted(returns(1)))) == "ok"
        for number in range(25):
            books.acked(number)
            books.effect(number)
        answered = sum(task.done() for task in naive)
        assert answered == 0
        await end(*naive)
        fresh_server.cont()
        bulkhead._leases._ask_at = -math.inf
        await bulkhead.call(Scripted(returns(1)))

        async def nothing_owed() -> bool:
            return await bulkhead.in_use() == 0

        await eventually(nothing_owed, within=5)
    books.held(f"25 of 25 calls ran; the first five waited {waited:.1f} s")
    books.naive(f"INCR and DECR: {answered} of 5 callers had an answer by then")


@pytest.mark.invariant(8)
@pytest.mark.fault("server clock set back two hours after a holder died")
async def test_a_clock_set_back_holds_no_dead_lease(app: str, ledger: Callable[..., Ledger]) -> None:
    """The permit is free after its lease, and not after two hours and its lease."""
    books = ledger(within=0.9, bound="permit back within the lease (0.5 s)")
    with Server(movable_clock=True) as server:
        async with opened(server.url) as client:
            other = shared(client, app, limit=1, lease=0.5, timeout=0.15, max_waiting=1, max_wait=5.0)
            plain = Keyspace(app, "bulkhead").key("naive", "lease")
            seconds, micros = await client.time()
            ends = seconds * 1000 + micros // 1000 + 500
            await client.zadd(leases(app), {"500:dead": ends})
            server.set_clock(-7200)
            books.injected()
            books.acked("the permit")
            async with other:
                books.recovered()
                books.effect("the permit")
            seconds, micros = await client.time()
            remaining = (ends - seconds * 1000 - micros // 1000) / 1000
            assert await client.exists(plain) == 0
    books.held("free when the lease was over")
    books.naive(f"scores believed as they are: out for another {remaining / 3600:.1f} h")


@pytest.mark.invariant(8)
@pytest.mark.fault("server clock jumps two hours ahead while permits are held")
async def test_a_clock_that_jumps_ahead_ends_every_lease(app: str, ledger: Callable[..., Ledger]) -> None:
    """As many calls again get in beside those that run, who are told; when these have ended all is well."""
    books = ledger(bound="at most twice the limit, until those that ran have ended; never more in the store")
    clock, heard = ManualClock(), Recorder()
    with Server(movable_clock=True) as server:
        async with opened(server.url) as one, opened(server.url) as two:
            here, there = shared(one, app, clock=clock, on_event=heard), shared(two, app)
            counter = CountsInRedis("search", two, app=app, limit=3, expires=60_000)
            ran, naive = await check_a_failover_and_then_the_limit(
                here,
                there,
                counter,
                disaster=lambda: server.set_clock(7200),
                notice=lambda: clock.advance(20.1),
                books=books,
            )
    assert (ran, len(heard.of(PermitLost))) == (6, 3)
    assert naive > 3
    books.held(f"{ran} calls ran with a limit of 3, the 3 that lost theirs were told; then 3 again")
    books.naive(f"INCR and DECR on a key that expires: from then on {naive} fit in, the limit is 3")


@pytest.mark.invariant(8)
@pytest.mark.fault("failover to a replica that has not heard of the leases")
async def test_a_failover_lets_in_as_many_again_until_those_that_ran_have_ended(
    fresh_server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """The primary dies with three acknowledged leases; the replica grants three more, and never a seventh."""
    books = ledger(bound="at most twice the limit, until those that ran have ended; never more in the store")
    clock, heard = ManualClock(), Recorder()
    with Server(replica_of=fresh_server) as replica:
        replica.command("REPLICAOF", "127.0.0.1", 1)  # it has lost touch with its primary
        async with (
            proxy(fresh_server.port, may_idle=True) as link,
            opened(link.url) as one,
            opened(link.url) as two,
        ):

            async def fail_over() -> None:
                fresh_server.kill()
                replica.command("REPLICAOF", "NO", "ONE")
                link.target = replica.port
                await link.reset_all()

            here, there = shared(one, app, clock=clock, on_event=heard), shared(two, app)
            ran, naive = await check_a_failover_and_then_the_limit(
                here,
                there,
                CountsInRedis("search", two, app=app, limit=3),
                disaster=fail_over,
                notice=lambda: clock.advance(20.1),
                books=books,
            )
    assert (ran, len(heard.of(PermitLost))) == (6, 3)
    assert naive > 3
    books.held(f"{ran} calls ran with a limit of 3, the 3 that lost theirs were told; then 3 again")
    books.naive(f"INCR and DECR: from then on {naive} fit in, the limit is 3")


@pytest.mark.invariant(8)
@pytest.mark.fault("holder paused (SIGSTOP) for longer than its lease")
async def test_a_paused_holder_hears_that_it_lost_its_permit(
    server: Server, app: str, spawn: Any, ledger: Callable[..., Ledger]
) -> None:
    """Its permit goes to another; when it wakes it is told, and the store still holds one lease."""
    books = ledger(within=2.0, bound="never above the limit in the store; the holder is told")
    program = Path(__file__).with_name("bulkhead_holder.py")
    async with opened(server.url) as client:
        other = shared(client, app, limit=1, max_waiting=1, max_wait=10.0)
        counter = CountsInRedis("search", client, app=app, limit=1)
        holder = spawn(program, app, 0, 1, 0.4, 1, env={"REDIS_URL": server.url})
        await client.set(f"{app}:go:0", 1, px=60_000)
        await holder.said("holding", within=20)
        holder.stop()
        books.injected()
        async with other:
            books.acked("the permit")
            books.effect("the permit")
            books.recovered()
            still_out = await counter.in_use()
            holder.cont()
            await holder.said("lost", within=10)
            assert await other.in_use() == 1

        async def taken_again() -> bool:
            return await other.in_use() == 1

        await eventually(taken_again, within=5)
        holder.kill()
    assert still_out == 1
    books.held("another process got the permit, the paused one was told")
    books.naive(f"INCR and DECR: {still_out} of 1 permit was out when the lease had ended")


# what is told, and what is refused


async def test_events_tell_each_step() -> None:
    """Queued, admitted after how long, rejected why, limit changed: in this order."""
    clock, heard = ManualClock(), Recorder()
    bulkhead = Bulkhead("search", limit=1, max_waiting=1, max_wait=2.0, clock=clock, on_event=heard)
    await bulkhead.acquire()
    waiting = asyncio.create_task(bulkhead.acquire())
    await clock.advance(0.5)
    with pytest.raises(BulkheadFull), bulkhead:
        pass
    bulkhead.release()
    await waiting
    bulkhead.resize(2)
    bulkhead.resize(2)
    assert heard.events == [
        CallAdmitted("search", 0.0, 1),
        CallQueued("search", 1),
        CallRejected("search", Reason.FULL, 0.0),
        CallAdmitted("search", 0.5, 1),
        LimitChanged("search", 1, 2),
    ]


@pytest.mark.parametrize(
    ("kind", "options", "complaint"),
    [
        (Bulkhead, {"limit": 0}, "limit must be a whole number >= 1 and <= 1000000, got 0"),
        (Bulkhead, {"limit": -1}, "limit must be"),
        (Bulkhead, {"limit": 2.0}, "limit must be"),
        (Bulkhead, {"limit": True}, "limit must be"),
        (Bulkhead, {"limit": 10**7}, "limit must be"),
        (Bulkhead, {"limit": 1, "max_waiting": -1}, "max_waiting must be a whole number >= 0"),
        (Bulkhead, {"limit": 1, "max_waiting": math.inf}, "max_waiting must be"),
        (Bulkhead, {"limit": 1, "max_wait": 0}, "max_wait must be a number >= 0.001, got 0"),
        (Bulkhead, {"limit": 1, "max_wait": math.nan}, "max_wait must be"),
        (Bulkhead, {"limit": 1, "max_wait": "1"}, "max_wait must be"),
        (ThreadBulkhead, {"limit": "2"}, "limit must be"),
        (SharedBulkhead, {"limit": 0}, "limit must be"),
        (SharedBulkhead, {"without_redis": -1}, "without_redis must be a whole number >= 0"),
        (SharedBulkhead, {"lease": math.inf}, "lease must be a finite number > 0.75 and <= 86400.0, got inf"),
        (SharedBulkhead, {"lease": 0.5}, "lease must be"),
        (SharedBulkhead, {"lease": 1e9}, "lease must be"),
        (SharedBulkhead, {"poll": 0}, "poll must be"),
        (SharedBulkhead, {"timeout": math.nan}, "timeout must be"),
        (SharedBulkhead, {"max_waiting": None}, "max_waiting must be"),
        (SharedBulkhead, {"app": "a b"}, "app must be"),
    ],
)
def test_bad_values_are_refused_when_it_is_made(kind: Any, options: dict[str, Any], complaint: str) -> None:
    """The message names field, bound and value."""
    if kind is SharedBulkhead:
        options = {"client": Redis(), "app": "app", "limit": 1, "without_redis": 0} | options
    with pytest.raises(ValueError, match=complaint):
        kind("search", **options)


def test_a_plain_def_is_refused_with_the_alternatives() -> None:
    """A decorator on what cannot be awaited names what to use instead; a bad resize changes nothing."""
    bulkhead = Bulkhead("search", limit=1)
    with pytest.raises(TypeError, match="use `with bulkhead:`"):
        bulkhead(lambda: None)  # type: ignore[arg-type, return-value]  # the point
    with pytest.raises(ValueError, match="limit must be"):
        bulkhead.resize(0)
    assert bulkhead.limit == 1
