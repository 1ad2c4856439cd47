"""Proof of patterns/simulated.py."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from typing import Any

import pytest

from patterns.clock import ManualClock
from patterns.pipeline import Pipeline, Timeout
from patterns.resiliency import bulkhead, circuit_breaker, retry
from patterns.scripted import Scripted, hangs
from patterns.simulated import QuickClock, Service, Trouble, Visit, recovery, users
from tests.eventually import eventually


async def at_once(service: Service, clock: ManualClock, count: int) -> list[float]:
    ended: list[float] = []

    async def one() -> None:
        await service()
        ended.append(clock.monotonic())

    tasks = [asyncio.ensure_future(one()) for _ in range(count)]
    await clock.advance(100)
    await asyncio.gather(*tasks)
    return ended


async def test_workers_serve_in_the_order_of_arrival() -> None:
    """Five requests to two workers end two by two, the last alone."""
    clock = ManualClock()
    ended = await at_once(Service(workers=2, seconds=0.5, clock=clock), clock, 5)
    assert ended == [0.5, 0.5, 1.0, 1.0, 1.5]


async def test_a_caller_who_leaves_frees_no_worker() -> None:
    """The work of a cancelled caller is done all the same, and the next one waits for it."""
    clock = ManualClock()
    service = Service(workers=1, seconds=2.0, clock=clock)
    left = asyncio.ensure_future(service())
    await clock.advance(0.5)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    assert service.backlog == 1.5
    assert await at_once(service, clock, 1) == [4.0]


async def test_trouble_hits_what_starts_in_it() -> None:
    """A request that starts before `begin` is served as ever, the one that starts at `begin` is not."""
    clock = ManualClock()
    trouble = Trouble(begin=1.0, end=2.0, seconds=3.0, error=ConnectionError("down"))
    service = Service(workers=1, seconds=1.0, clock=clock, troubles=(trouble,))
    first, second = asyncio.ensure_future(service()), asyncio.ensure_future(service())
    await clock.advance(1.0)
    assert await first == "fresh"
    await clock.advance(2.5)
    assert not second.done()
    await clock.advance(0.5)
    with pytest.raises(ConnectionError, match="down"):
        await second
    assert await at_once(service, clock, 1) == [5.0]


async def test_users_do_not_wait_for_each_other() -> None:
    """While one call hangs, the others come and go; who hangs leaves when the patience is over."""
    clock = ManualClock()
    calls = 0

    async def call() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.get_running_loop().create_future()
        if calls == 2:
            raise KeyError("no")
        return "yes"

    visits = await users(call, per_second=1, seconds=4, clock=clock, patience=5)
    assert [visit.began for visit in visits] == [0, 1, 2, 3]
    assert [type(visit.error) for visit in visits] == [TimeoutError, KeyError, type(None), type(None)]
    assert visits[0].seconds == 9
    assert [visit.result for visit in visits] == [None, None, "yes", "yes"]


async def test_the_same_seed_makes_the_same_users() -> None:
    """Arrivals drawn from a seed are irregular, and the same each time."""

    async def come(seed: int) -> list[float]:
        clock = ManualClock()
        service = Service(workers=9, seconds=0.1, clock=clock)
        visits = await users(service, per_second=5, seconds=20, clock=clock, rng=random.Random(seed))
        return [visit.began for visit in visits]

    first = await come(1)
    assert first == await come(1) != await come(2)
    assert 60 < len(first) < 140
    assert len({round(b - a, 6) for a, b in itertools.pairwise(first)}) > 50


def seen(*served: str, since: float = 0.0) -> float:
    """Four visits a second, `y` served and `n` not."""
    visits = [
        Visit(second + quarter / 4, 0.0, error=None if letter == "y" else ValueError())
        for second, letters in enumerate(served)
        for quarter, letter in enumerate(letters)
    ]
    return recovery(visits, since, good=lambda visit: visit.error is None, share=0.75)


def test_recovery_is_the_end_of_the_last_bad_second() -> None:
    """A good second between two bad ones is no recovery."""
    assert seen("nnnn", "yyyy", "nnyy", "nyyy", "yyyy") == 3
    assert seen("yyyy", "yyyn") == 0
    assert seen("nnnn", "yyyy", since=1.0) == 0
    assert seen("yyyy", "nnnn") == math.inf
    assert seen() == math.inf


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
async def test_bad_numbers_are_refused_by_name(bad: float) -> None:
    """No duration, rate or count that makes no sense gets as far as the first request."""
    clock = ManualClock()
    with pytest.raises(ValueError, match="seconds must be a finite number > 0"):
        Service(workers=1, seconds=bad, clock=clock)
    with pytest.raises(ValueError, match=r"workers must be a whole number >= 1"):
        Service(workers=bad, seconds=1.0, clock=clock)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ValueError, match="seconds must be a finite number > 0"):
        Trouble(begin=0, end=1, seconds=bad)
    with pytest.raises(ValueError, match=r"begin must be a finite number|end must be a number > 0"):
        Trouble(begin=bad if bad > 0 else 0, end=bad)
    service = Service(workers=1, seconds=1.0, clock=clock)
    with pytest.raises(ValueError, match="per_second must be a finite number > 0"):
        await users(service, per_second=bad, seconds=1, clock=clock)
    with pytest.raises(ValueError, match="seconds must be a finite number > 0"):
        await users(service, per_second=1, seconds=bad, clock=clock)
    assert service.arrivals == []


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, "2"])
async def test_bad_patience_sends_nobody(bad: float) -> None:
    """Patience that is no time is refused before the first user comes."""
    clock = ManualClock()
    service = Service(workers=1, seconds=1.0, clock=clock)
    with pytest.raises(ValueError, match="patience must be a finite number >= 0"):
        await users(service, per_second=1, seconds=1, clock=clock, patience=bad)
    assert service.arrivals == []


def test_a_trouble_that_would_do_nothing_is_refused() -> None:
    """Without a duration and an error nothing is wrong, and what is no error cannot be raised."""
    with pytest.raises(ValueError, match="seconds or error must be given"):
        Trouble(begin=0, end=1)
    bad: Any
    for bad in (ConnectionError, "reset", asyncio.CancelledError()):
        with pytest.raises(ValueError, match="error must be an Exception, not a class"):
            Trouble(begin=0, end=1, error=bad)


@pytest.mark.parametrize("share", [0, -1, 1.1, math.nan])
def test_a_share_to_recover_to_is_a_share(share: float) -> None:
    """A share that everybody or nobody reaches would make each answer the same."""
    with pytest.raises(ValueError, match="share must be a finite number > 0 and <= 1"):
        recovery([Visit(0.0, 0.0)], 0.0, good=lambda _: True, share=share)
    with pytest.raises(ValueError, match="since must be a finite number"):
        recovery([Visit(0.0, 0.0)], math.nan, good=lambda _: True)


async def test_of_several_troubles_the_first_that_hits_counts() -> None:
    """Two troubles at the same time are tried in the order they were given."""
    clock = ManualClock()
    slow, down = Trouble(begin=0, end=9, seconds=3.0), Trouble(begin=0, end=9, error=ConnectionError("down"))
    assert await at_once(Service(workers=1, seconds=1.0, clock=clock, troubles=(slow, down)), clock, 1) == [
        3.0
    ]


async def test_users_who_are_interrupted_leave_nobody_behind() -> None:
    """Who stops the simulation ends every call in it, and no more users come."""
    clock = ManualClock()
    service = Scripted(then=hangs())
    before = len(asyncio.all_tasks())
    crowd = asyncio.create_task(users(service, per_second=1, seconds=60, clock=clock))
    await eventually(lambda: service.in_flight >= 5, within=5)
    crowd.cancel()
    with pytest.raises(asyncio.CancelledError):
        await crowd
    await eventually(lambda: len(asyncio.all_tasks()) == before, within=5)
    assert service.in_flight == 0


async def test_the_quick_clock_changes_no_figure() -> None:
    """Behind every guard, in an overload, each user's wait and outcome are those of a ManualClock."""

    async def evening(clock: ManualClock) -> list[tuple[float, float, object, str]]:
        trouble = Trouble(begin=2, end=5, seconds=1.0)
        service = Service(workers=4, seconds=0.1, clock=clock, troubles=(trouble,), rng=random.Random(1))
        failed = (TimeoutError,)
        pipeline = Pipeline(
            Timeout(2.0, clock=clock),
            retry.Retry(
                "orders",
                retry.Policy(on=failed, idempotent=True, base=0.5),
                budget=retry.Budget(clock=clock),
                clock=clock,
                rng=random.Random(1),
            ),
            circuit_breaker.CircuitBreaker(
                "orders",
                circuit_breaker.Policy(
                    record=failed,
                    ignore=(bulkhead.BulkheadFull,),
                    sliding_window=circuit_breaker.CountBased(20),
                    minimum_calls=10,
                    wait_in_open=1.0,
                ),
                clock=clock,
            ),
            bulkhead.Bulkhead("orders", limit=6, max_waiting=8, max_wait=0.5, clock=clock),
            Timeout(0.5, clock=clock),
        )
        visits = await users(
            lambda: pipeline.call(service), per_second=25, seconds=10, clock=clock, rng=random.Random(1)
        )
        return [(visit.began, visit.seconds, visit.result, type(visit.error).__name__) for visit in visits]

    quick = await evening(QuickClock())
    assert quick == await evening(ManualClock())
    assert len({name for *_, name in quick}) >= 4
