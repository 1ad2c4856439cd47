"""What a bulkhead must do, as checks that the real one passes and each naive variant fails."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import TYPE_CHECKING, Any

import pytest

from patterns.clock import ManualClock
from patterns.resiliency.bulkhead import Bulkhead, BulkheadFull
from patterns.resiliency.bulkhead.executor import ThreadBulkhead
from patterns.scripted import Scripted, hangs, returns
from tests.eventually import eventually
from tests.resiliency.bulkhead_model import end, turns

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

Make = Any  # Bulkhead or a naive variant with the same constructor


async def outcome_of(call: Awaitable[Any]) -> str:
    """Return what came of `call`: "ok", the reason of a refusal, or the name of the exception."""
    try:
        await call
    except BulkheadFull as full:
        return full.reason.value
    except (Exception, asyncio.CancelledError) as error:
        return type(error).__name__
    return "ok"


def running_now(bulkhead: Any) -> tuple[int, int]:
    """Read the counts anew (a type checker would believe the last assertion)."""
    return bulkhead.running, bulkhead.waiting


async def check_limits_hold(make: Make) -> None:
    """Fifty callers come at once: 3 run, 5 wait for at most a second, and 42 are refused at once."""
    clock = ManualClock()
    service = Scripted(then=hangs(), clock=clock)
    bulkhead = make("search", limit=3, max_waiting=5, max_wait=1.0, clock=clock)
    tasks = [asyncio.create_task(outcome_of(bulkhead.call(service))) for _ in range(50)]
    try:
        await turns()
        assert running_now(bulkhead) == (3, 5), f"{bulkhead.running} run and {bulkhead.waiting} wait"
        assert [task.result() for task in tasks[8:]] == ["full"] * 42
        await clock.advance(0.999)
        assert not any(task.done() for task in tasks[:8])
        await clock.advance(0.001)
        assert [task.result() for task in tasks[3:8]] == ["max_wait"] * 5
        assert running_now(bulkhead) == (3, 0)
        assert service.calls == service.most_in_flight == 3
    finally:
        await end(*tasks)


async def check_permits_come_back(make: Make, rng: random.Random, cancellations: int) -> dict[str, int]:
    """Cancel calls at random: while they wait, in the step of the hand-over, while they run."""
    limit = 4
    bulkhead = make("search", limit=limit, max_waiting=8, max_wait=math.inf)
    cut = dict.fromkeys(("waiting", "at hand-over", "running"), 0)
    gates: dict[int, asyncio.Future[None]] = {}
    tasks: dict[int, asyncio.Task[Any]] = {}

    async def work(number: int) -> None:
        gates[number] = asyncio.get_running_loop().create_future()
        await gates[number]

    number = 0
    try:
        while sum(cut.values()) < cancellations:
            while len(tasks) < limit + 8:
                number += 1
                tasks[number] = asyncio.create_task(bulkhead.call(work, number))
            await asyncio.sleep(0)
            inside = [each for each in tasks if each in gates]
            assert inside, f"nobody gets in any more after {sum(cut.values())} cancellations"
            outside = [each for each in tasks if each not in gates]
            kind = rng.choice([*cut])
            if kind == "running":
                victim = rng.choice(inside)
            elif kind == "waiting":
                victim = rng.choice(outside)
            else:  # the first in the line is granted what comes back, and is cancelled before it runs
                gate = gates[rng.choice(inside)]
                if rng.random() < 0.5:
                    gate.set_result(None)
                else:
                    gate.set_exception(ConnectionError("refused"))
                victim = outside[0]
                await asyncio.sleep(0)
            tasks[victim].cancel()
            cut[kind] += 1
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for each in [each for each, task in tasks.items() if task.done()]:
                task = tasks.pop(each)
                gates.pop(each, None)
                task.cancelled() or task.exception()
    finally:
        await end(*tasks.values())
    assert running_now(bulkhead) == (0, 0), f"{bulkhead.running} of {limit} permits are gone"
    for _ in range(limit):
        bulkhead.acquire_nowait()
    with pytest.raises(BulkheadFull):
        bulkhead.acquire_nowait()
    return cut


async def check_first_come_first_served(make: Make) -> None:
    """Five wait, the first and third give up, and a newcomer comes in the moment a permit is back."""
    bulkhead = make("search", limit=1, max_waiting=9, max_wait=math.inf)
    served: list[str] = []
    leave: dict[str, asyncio.Event] = {name: asyncio.Event() for name in ("holder", *"ABCDE", "newcomer")}

    async def work(name: str) -> None:
        served.append(name)
        await leave[name].wait()

    async def call(name: str) -> None:
        await bulkhead.call(work, name)

    tasks = {"holder": asyncio.create_task(call("holder"))}
    try:
        for name in "ABCDE":
            await turns()
            tasks[name] = asyncio.create_task(call(name))
        await turns()
        tasks["C"].cancel()
        leave["holder"].set()
        await asyncio.sleep(0)  # the holder has left; A has not run yet
        tasks["newcomer"] = asyncio.create_task(call("newcomer"))
        tasks["A"].cancel()
        for event in leave.values():
            event.set()
        await turns()
        assert served == ["holder", *"BDE", "newcomer"], f"served {served}"
    finally:
        await end(*tasks.values())


async def check_a_stall_stays_apart(shares: Callable[[ManualClock], tuple[Any, Any]]) -> dict[str, float]:
    """One dependency hangs for good; the other, with 200 calls, is as quick as ever."""
    clock = ManualClock()
    for_maps, for_search = shares(clock)
    maps, search = Scripted(then=hangs(), clock=clock), Scripted(then=returns("ok").after(0.02), clock=clock)
    waits: list[float] = []
    outcomes: list[str] = []

    async def find() -> None:
        began = clock.monotonic()
        outcomes.append(await outcome_of(for_search.call(search)))
        waits.append(clock.monotonic() - began)

    stalled, tasks = [], []
    for _ in range(200):
        stalled.append(asyncio.create_task(outcome_of(for_maps.call(maps))))
        tasks.append(asyncio.create_task(find()))
        await clock.advance(0.01)
    await clock.advance(5)
    await asyncio.gather(*tasks)
    await end(*stalled)
    p99 = sorted(waits)[int(len(waits) * 0.99)]
    found = outcomes.count("ok")
    held = found == 200 and p99 == pytest.approx(0.02)
    assert held, f"{found} of 200 found, p99 {p99:.2f} s"
    return {"found": found, "p99": p99}


def apart(clock: ManualClock) -> tuple[Any, Any]:
    """Return a share for each."""
    return Bulkhead("maps", limit=5, clock=clock), Bulkhead("search", limit=5, clock=clock)


def one_pool(clock: ManualClock) -> tuple[Any, Any]:
    """Return one pool twice as large for both, with a queue, as most clients have it."""
    pool = Bulkhead("everything", limit=10, max_waiting=1000, max_wait=2.0, clock=clock)
    return pool, pool


async def check_resize(make: Make) -> None:
    """Up lets the waiting in at once; down admits nobody until fewer than the new limit run."""
    bulkhead = make("search", limit=2, max_waiting=4, max_wait=math.inf)
    gate = asyncio.Event()
    tasks = [asyncio.create_task(bulkhead.call(gate.wait)) for _ in range(6)]
    leavers: list[Any] = []
    try:
        await turns()
        bulkhead.resize(4)
        await turns()
        assert running_now(bulkhead) == (4, 2), f"after the resize up {bulkhead.waiting} still wait"
        bulkhead.resize(2)
        assert running_now(bulkhead) == (4, 2), "running calls were forgotten"
        for expected in ((3, 2), (2, 2), (2, 1), (2, 0), (1, 0)):
            victim = next(task for task in tasks if not task.done())
            await end(victim)
            await turns()
            assert running_now(bulkhead) == expected, f"{running_now(bulkhead)} instead of {expected}"
        bulkhead.acquire_nowait()
        with pytest.raises(BulkheadFull):
            bulkhead.acquire_nowait()
        bulkhead.release()
    finally:
        await end(*tasks, *leavers)


async def check_deadlines_in_the_queue(make: Make) -> None:
    """The loop is blocked between the hand-over and the start, past the deadline of the one who waited."""
    clock = ManualClock()
    bulkhead = make("search", limit=1, max_waiting=3, max_wait=60.0, clock=clock)
    late, in_time = Scripted(then=returns("late")), Scripted(then=returns("in time"))
    await bulkhead.acquire()
    first = asyncio.create_task(outcome_of(bulkhead.until(5.0).call(late)))
    second = asyncio.create_task(outcome_of(bulkhead.until(50.0).call(in_time)))
    await clock.advance(1)
    bulkhead.release()  # to the first
    clock.jump(5)
    await turns()
    assert late.calls == 0, "a call was started after its deadline"
    assert await first == "deadline"
    assert await second == "ok"
    assert await outcome_of(bulkhead.until(6.0).call(late)) == "deadline"
    assert await outcome_of(bulkhead.until(math.nan).call(late)) == "deadline"
    assert late.calls == 0
    assert running_now(bulkhead) == (0, 0)


async def check_threads_are_counted(make: Make) -> None:
    """Two functions block; their callers are cancelled; nobody gets in until one has returned."""
    bulkhead = make("files", limit=2)
    gate, lock = threading.Event(), threading.Lock()
    busy, most, names = [0], [0], set()

    def read() -> None:
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
            names.add(threading.current_thread().name)
        gate.wait(30)
        with lock:
            busy[0] -= 1

    try:
        for _ in range(3):
            tasks = [asyncio.create_task(outcome_of(bulkhead.call(read))) for _ in range(2)]
            await eventually(lambda: busy[0] >= 2, within=5)
            await turns()
            await end(*tasks)
        assert most[0] == 2, f"{most[0]} threads were busy, the limit is 2"
        assert bulkhead.running == 2
        assert all(name.startswith("bulkhead files") for name in names), names
        gate.set()
        await eventually(lambda: bulkhead.running == 0, within=5)
        assert await outcome_of(bulkhead.call(read)) == "ok"
    finally:
        gate.set()
        await bulkhead.close()


async def cancel_callers_of_threads(make: Make, rng: random.Random, cancellations: int) -> int:
    """Cancel callers whose functions block, and let some of these return; return the most busy threads."""
    threads = make("files", limit=4, max_waiting=8, max_wait=math.inf)
    busy, most, lock = [0], [0], threading.Lock()
    gate = threading.Semaphore(0)

    def work() -> None:
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        gate.acquire(timeout=5)
        with lock:
            busy[0] -= 1

    tasks: list[asyncio.Task[Any]] = []
    cancelled = 0
    while cancelled < cancellations:
        while len(tasks) < 12:
            tasks.append(asyncio.create_task(outcome_of(threads.call(work))))
        await asyncio.sleep(0)
        for task in rng.sample(tasks, 4):
            cancelled += not task.done()
            task.cancel()
        if make is ThreadBulkhead:
            gate.release(rng.randint(1, 4))
        await turns()
        tasks = [task for task in tasks if not task.done()]
    await end(*tasks)
    gate.release(cancellations + 12)
    await eventually(lambda: running_now(threads) == (0, 0), within=10)
    await threads.close()
    return most[0]


async def meet_a_thousand(make: Make) -> tuple[float, list[str], Scripted]:
    """Let a thousand callers come at once; return when the last was answered, all outcomes, the service."""
    clock = ManualClock()
    service = Scripted(then=returns("ok").after(0.4), clock=clock)
    bulkhead: Any = make("search", limit=10, max_waiting=20, max_wait=1.0, clock=clock)
    tasks = [asyncio.create_task(outcome_of(bulkhead.call(service))) for _ in range(1000)]
    await turns()
    if make is Bulkhead:
        assert (*running_now(bulkhead), sum(task.done() for task in tasks)) == (10, 20, 970)
    while not all(task.done() for task in tasks):
        await clock.advance(0.4)
    return clock.monotonic(), [task.result() for task in tasks], service
