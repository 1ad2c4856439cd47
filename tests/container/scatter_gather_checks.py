"""What each invariant of Scatter/Gather means, as functions that any variant can be handed to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from typing import TYPE_CHECKING, Any

from patterns.clock import ManualClock
from patterns.container.scatter_gather import (
    Ask,
    CanaryFailed,
    Hedge,
    Hit,
    Leaf,
    LeafMissing,
    NotEnough,
    NotIdempotent,
    Page,
    Policy,
    ScatterGather,
    TruncatedShard,
    Withdrawn,
)
from patterns.container.scatter_gather.merge import best_of
from patterns.resiliency.retry.budget import Budget
from patterns.scripted import Scripted, Step, fails, hangs, returns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patterns.container.scatter_gather.line import Line

    Make = Callable[..., Any]


class Deaf:
    """A leaf that goes on when it is cancelled, until `release` is set."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.running = 0
        self.left: list[float] = []

    async def __call__(self, ask: Ask[Any]) -> str:
        self.running += 1
        self.left.append(ask.deadline.remaining())
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                continue
        self.running -= 1
        return "too late"


def leaf(name: str, *steps: Step, clock: ManualClock) -> tuple[Leaf[Any, Any], list[Scripted]]:
    """Return a leaf of one replica a step, and the replicas."""
    replicas = [Scripted(then=step, clock=clock) for step in steps]
    return Leaf(name, *replicas), replicas


async def on(clock: ManualClock, work: Awaitable[Any], *, step: float = 0.01, most: float = 10) -> Any:
    """Move the clock until `work` is done, `most` seconds at most; return result or error, and the time."""
    began = clock.monotonic()

    async def timed() -> tuple[Any, float]:
        try:
            result = await work
        except (Exception, asyncio.CancelledError) as error:
            result = error
        return result, round(clock.monotonic() - began, 6)

    task = asyncio.ensure_future(timed())
    await clock.advance(0)
    while not task.done() and clock.monotonic() - began < most:
        await clock.advance(step)
    if not task.done():
        task.cancel()
        await clock.advance(0)
        return "goes on waiting", most
    return await task


# 1


async def check_returns_by_the_deadline(make: Make) -> None:
    """Four leaves hang, one is deaf to its cancellation, one answers: after 0.5 s there is an answer."""
    clock, deaf = ManualClock(), Deaf()
    leaves = [leaf(f"hangs-{n}", hangs(), clock=clock)[0] for n in range(4)]
    leaves += [Leaf("deaf", deaf), leaf("quick", returns("here").after(0.1), clock=clock)[0]]
    policy = Policy(deadline=0.5, min_results=1, limit=10)
    answer, took = await on(clock, make("x", leaves, policy, clock=clock).gather("?"), step=0.1, most=4)
    deaf.release.set()
    await clock.advance(0)
    assert took <= 0.5, f"returned after {took:g} s of a deadline of 0.5 s"
    assert answer.values == {"quick": "here"}
    assert 0 < deaf.left[0] <= 0.5


# 2


async def check_says_what_is_missing(make: Make) -> None:
    """One of three raises, one is late: both are named, with causes; and with min_results=2 it is refused."""
    clock = ManualClock()
    refused = ConnectionError("refused")
    leaves = [
        leaf("late", returns("x").after(9), clock=clock)[0],
        leaf("here", returns("y"), clock=clock)[0],
        leaf("broken", fails(refused), clock=clock)[0],
    ]
    answer, _ = await on(
        clock, make("x", leaves, Policy(deadline=1, min_results=1, limit=9), clock=clock).gather("?")
    )
    assert not answer.complete, "looks complete with one answer of three"
    assert answer.missing == ("late", "broken")
    assert answer.errors["broken"] is refused
    assert isinstance(answer.errors["late"], LeafMissing | TimeoutError)
    policy = Policy(deadline=1, min_results=2, limit=9)
    error, _ = await on(clock, make("x", leaves, policy, clock=clock).gather("?"))
    assert isinstance(error, NotEnough)
    assert "ConnectionError: refused" in str(error)
    assert error.gathered.values == {"here": "y"}
    assert error.__cause__ is refused


# 3


async def check_each_leaf_counts_once(make: Make) -> None:
    """Both requests of a leaf are answered in the same moment: there is one value of it."""
    clock = ManualClock()
    both, replicas = leaf("a", returns(1).after(0.2), returns(1).after(0.1), clock=clock)
    leaves = [both, leaf("b", returns(2), clock=clock)[0]]
    policy = Policy(deadline=1, min_results=2, limit=9, idempotent=True)
    rng = random.Random(1)  # which picks the slower replica first
    search = make("x", leaves, policy, hedge=Hedge(0.1), clock=clock, rng=rng)
    answer, _ = await on(clock, search.gather("?"), step=0.1)
    assert sum(answer.values.values()) == 3, f"adds up to {sum(answer.values.values())}"
    assert [each.calls for each in replicas] == [1, 1]
    assert sum(each.in_flight for each in replicas) == 0


async def check_order_of_arrival_makes_no_difference(make: Make) -> None:
    """Three leaves that answer in each of the six orders give one and the same answer."""
    seen = set()
    for delays in itertools.permutations((0.1, 0.2, 0.3)):
        clock = ManualClock()
        leaves = [
            leaf(name, returns(name.upper()).after(delay), clock=clock)[0]
            for name, delay in zip("abc", delays, strict=True)
        ]
        policy = Policy(deadline=1, min_results=3, limit=9)
        answer, _ = await on(clock, make("x", leaves, policy, clock=clock).gather("?"))
        seen.add(tuple(answer.values.items()))
    assert len(seen) == 1, f"{len(seen)} answers to one question"
    assert seen == {(("a", "A"), ("b", "B"), ("c", "C"))}


def check_the_best_are_found(merge: Callable[[dict[str, Page], int], list[Hit]], rng: random.Random) -> int:
    """Over random shards, page sizes and orders: the true best k or a refusal; return how many refusals."""
    refused = 0
    for _ in range(300):
        hits = [Hit(float(rng.randint(1, 6)), f"{n:02}") for n in range(rng.randint(0, 20))]
        shards: dict[str, list[Hit]] = {"east": [], "north": [], "west": []}
        for hit in hits:
            shards[rng.choice(list(shards))].append(hit)
        k, sent = rng.randint(1, 6), rng.randint(1, 6)
        truth = sorted(hits, key=lambda hit: hit.rank)[:k]
        pages = {name: best_of(shards[name], sent) for name in rng.sample(list(shards), 3)}
        try:
            found = merge(pages, k)
        except TruncatedShard:
            found, refused = truth if sent < k else [], refused + 1
        assert found == truth, f"of {k} wanted with {sent} from each, not the best: {found} {truth}"
    return refused


# 4


async def check_nothing_runs_on(make: Make) -> None:
    """After an answer, an error and its caller's cancellation, no leaf is at work when `gather` returns."""
    for policy, cancel in (
        (Policy(deadline=1, min_results=1, limit=9, enough=1), False),
        (Policy(deadline=1, min_results=1, limit=9, fail_fast=True), False),
        (Policy(deadline=1, min_results=1, limit=9), True),
    ):
        clock = ManualClock()
        first = fails(KeyError("no")) if policy.fail_fast else hangs() if cancel else returns(1)
        made = [leaf("a", first, clock=clock), *(leaf(f"{n}", hangs(), clock=clock) for n in range(5))]
        running = [replica for _, replicas in made for replica in replicas]
        left: list[int] = []

        async def gathered(
            search: Any = make("x", [each for each, _ in made], policy, clock=clock),  # noqa: B008  one a case
            running: list[Scripted] = running,
            left: list[int] = left,
        ) -> Any:
            try:
                return await search.gather("?")
            finally:
                left.append(sum(replica.in_flight for replica in running))

        task = asyncio.ensure_future(gathered())
        for _ in range(5):
            await asyncio.sleep(0)
        if cancel:
            task.cancel()
        outcome, _ = await on(clock, task, step=0.1, most=2)
        await _stop_all(task)
        assert left == [0], f"{left[0] if left else 'all'} of 6 leaves still at work"
        if cancel:
            assert isinstance(outcome, asyncio.CancelledError), f"was cancelled, and {outcome}"


async def _stop_all(mine: Any) -> None:
    """End what a naive variant leaves behind."""
    others = asyncio.all_tasks() - {asyncio.current_task(), mine}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def check_late_answers_are_dropped(make: Make) -> None:
    """What a deaf leaf says after the deadline is in no later answer, and it is not asked without end."""
    clock, deaf = ManualClock(), Deaf()
    leaves = [Leaf("deaf", deaf), leaf("quick", returns(1), clock=clock)[0]]
    policy = Policy(deadline=0.5, min_results=1, limit=9, max_abandoned=2)
    search = make("x", leaves, policy, clock=clock)
    for asked in range(4):
        answer, _ = await on(clock, search.gather(asked))
        assert answer.missing == ("deaf",)
        assert deaf.running == min(2, asked + 1) == search.abandoned
    deaf.release.set()
    await clock.advance(0.1)
    assert deaf.running == search.abandoned == 0
    answer, _ = await on(clock, search.gather("again"))
    assert answer.complete


# 5


async def check_hedges_stop_at_the_budget(make: Make, gathers: int = 100) -> dict[str, Any]:
    """Ten leaves, all slow: of a thousand second requests no more are made than the bucket held."""
    clock = ManualClock()
    clock._STEPS = 20
    made = [leaf(f"{n}", returns(n).after(0.3), returns(n).after(0.3), clock=clock) for n in range(10)]
    hedge = Hedge(0.05, budget=Budget(ratio=0.05, min_per_second=0, capacity=10, clock=clock))
    policy = Policy(deadline=1, min_results=10, limit=20, idempotent=True)
    search = make("x", [each for each, _ in made], policy, hedge=hedge, clock=clock, rng=random.Random(1))
    for _ in range(gathers):
        answer, _ = await on(clock, search.gather("?"), step=0.05)
        assert answer.complete
    calls = sum(replica.calls for _, replicas in made for replica in replicas)
    most = gathers * 10 + 10
    assert calls <= most, f"{calls} requests for {gathers * 10}: {calls / (gathers * 10):.2f} times the load"
    return {"calls": calls, "plain": gathers * 10}


async def check_a_hedge_goes_elsewhere(make: Make) -> None:
    """The replica that hangs is not asked a second time, the other one is, and its answer comes in time."""
    for seed in range(6):
        clock = ManualClock()
        slow = Scripted(then=hangs(), clock=clock)
        quick = Scripted(then=returns("here"), clock=clock)
        policy = Policy(deadline=1, min_results=1, limit=9, idempotent=True)
        search = make(
            "x", [Leaf("a", slow, quick)], policy, hedge=Hedge(0.1), clock=clock, rng=random.Random(seed)
        )
        answer, took = await on(clock, search.gather("?"))
        assert slow.calls <= 1, "asked the one that hangs again"
        assert answer.values == {"a": "here"}, f"no answer in {took} s"
        assert took <= 0.1


async def check_one_dead_replica_costs_few_hedges(hedge: Callable[..., Hedge], step: Step) -> int:
    """One of two replicas is dead, or always late: 200 answers are complete. Return its requests."""
    clock = ManualClock()
    made, replicas = leaf("a", step, returns("here"), clock=clock)
    budget = Budget(ratio=0.05, min_per_second=0, capacity=10, clock=clock)
    policy = Policy(deadline=0.5, min_results=0, limit=9, idempotent=True)
    search: ScatterGather[Any, Any] = ScatterGather(
        "x",
        [made],
        policy,
        hedge=hedge(0.1, budget=budget, on=(ConnectionError,)),
        clock=clock,
        rng=random.Random(3),
    )
    complete = 0
    for _ in range(200):
        answer, _ = await on(clock, search.gather("?"), step=0.1)
        complete += answer.complete
    assert complete == 200, f"{complete} of 200 answers complete"
    return replicas[0].calls


# 6


async def check_limit_and_isolation(make: Make) -> None:
    """Of twelve leaves at most three are at work at once; two that fail keep no other from answering."""
    clock = ManualClock()
    inside = most = 0

    def work(number: int) -> Any:
        async def replica(_: Ask[Any]) -> int:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            try:
                await clock.sleep(0.01)
                if number in {1, 7}:
                    raise ValueError(number)
                return number
            finally:
                inside -= 1

        return replica

    leaves = [Leaf(f"{n:02}", work(n)) for n in range(12)]
    policy = Policy(deadline=1, min_results=1, limit=3)
    answer, _ = await on(clock, make("x", leaves, policy, clock=clock).gather("?"))
    await _stop_all(None)
    assert not isinstance(answer, BaseException), f"one leaf's failure is everybody's: {answer!r}"
    assert most <= 3, f"{most} requests at once, the limit is 3"
    assert list(answer.values.values()) == [0, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert answer.missing == ("01", "07")


# 7


async def check_a_canary_goes_first(make: Make) -> None:
    """A request that its reader does not survive, or hangs over, reaches one leaf of five."""
    for step, seconds in ((fails(RuntimeError("crash")), 0.0), (hangs(), 0.2)):
        clock = ManualClock()
        made = [leaf(f"{n}", step, step, clock=clock) for n in range(5)]
        policy = Policy(deadline=1, min_results=1, limit=9, canary=0.2, idempotent=True)
        search = make(
            "x", [each for each, _ in made], policy, hedge=Hedge(0.05, on=(RuntimeError,)), clock=clock
        )
        error, took = await on(clock, search.gather("the poisonous one"))
        reached = sum(any(replica.calls for replica in replicas) for _, replicas in made)
        assert reached == 1, f"reached {reached} of 5 leaves"
        assert sum(replica.calls for replica in made[0][1]) == 1
        assert isinstance(error, CanaryFailed)
        assert took == seconds


# 8


async def check_writes_are_not_hedged(make: Make) -> None:
    """A slow write is carried out once; who wants to hedge it is refused."""
    clock, written = ManualClock(), []

    async def write(ask: Ask[str]) -> None:
        written.append(ask.request)
        await clock.sleep(0.3)

    policy = Policy(deadline=1, min_results=1, limit=9)
    try:
        search = make("x", [Leaf("a", write, write)], policy, hedge=Hedge(0.1), clock=clock)
    except NotIdempotent:
        search = make("x", [Leaf("a", write, write)], policy, clock=clock)
    await on(clock, search.gather("one coffee"))
    assert written == ["one coffee"], f"carried out {len(written)} times"
    reads = Policy(deadline=1, min_results=1, limit=9, idempotent=True)
    search = make("x", [Leaf("a", write, write)], reads, hedge=Hedge(0.1), clock=clock)
    await on(clock, search.gather("two teas", hedge=False))
    assert written == ["one coffee", "two teas"]


# 9


async def check_one_of_two_tied_requests_runs(make: Callable[[int], Line], rng: random.Random) -> int:
    """Two replicas, messages that take any time: each request runs; twice only if both began at once.

    Returns how many of a hundred ran twice.
    """
    twice = 0
    for number in range(100):
        clock, lines = ManualClock(), (make(1), make(1))
        clock._STEPS = 20
        pair = Pair(clock, lines, f"{number:032x}", [rng.choice((0.0, 0.01, 0.03)) for _ in range(4)])
        for side, seconds in enumerate(rng.choices((0.02, 0.04, 0.06), k=2)):
            pair.tasks += [
                asyncio.create_task(pair.busy(side, seconds)),
                asyncio.create_task(pair.copy(side)),
            ]
        await clock.advance(1)
        await asyncio.gather(*pair.tasks, return_exceptions=True)
        assert pair.ran, "both were dropped"
        if len(pair.ran) == 2:
            twice += 1
            late = [side for side in (0, 1) if pair.begun[side] > pair.heard[side]]
            assert not late, "ran although it had heard that the other one does"
        assert not any(line.waiting for line in lines)
    return twice


class Pair:
    """Two replicas with one worker each, busy at first, and the two requests of one tie."""

    def __init__(self, clock: ManualClock, lines: Any, tie: str, delays: list[float]) -> None:
        self.clock, self.lines, self.tie, self.delays = clock, lines, tie, delays
        self.tasks: list[asyncio.Task[None]] = []
        self.ran: list[int] = []
        self.begun = [0.0, 0.0]
        self.heard = [9.0, 9.0]

    async def busy(self, side: int, seconds: float) -> None:
        async with self.lines[side].turn():
            await self.clock.sleep(seconds)

    async def copy(self, side: int) -> None:
        await self.clock.sleep(self.delays[side] + 0.005 * side)
        with contextlib.suppress(Withdrawn):
            async with self.lines[side].turn(self.tie):
                self.begun[side] = self.clock.monotonic()
                self.tasks.append(asyncio.create_task(self.order(side)))
                await self.clock.sleep(0.05)
                self.ran.append(side)

    async def order(self, side: int) -> None:
        await self.clock.sleep(self.delays[2 + side])
        self.heard[1 - side] = self.clock.monotonic()
        self.lines[1 - side].drop(self.tie)
