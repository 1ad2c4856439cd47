"""One gather, from the first request to the last one drained.

All decisions are made in plain methods: when a call has ended (`_ended`), and when the one timer has rung
(`_hedge_late`). The timer is the coroutine's own wait, moved to whatever is due next, because a timer for
each leaf costs more than the gather.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from patterns.container.scatter_gather.answer import (
    CanaryFailed,
    Gathered,
    LeafMissing,
    NotEnough,
    Why,
    Withdrawn,
)
from patterns.container.scatter_gather.events import GatherEnded, HedgeRefused, HedgeSent, LeafFailed
from patterns.container.scatter_gather.policy import Ask, Hedge, Leaf, Tie
from patterns.deadline import Deadline
from patterns.events import emit, ignore

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from patterns.container.scatter_gather import ScatterGather

__all__ = ["Call", "Gathering"]

R = TypeVar("R")
T = TypeVar("T")

_MOMENT = 1e-9  # seconds: a sum of two times may round to just before what was meant


class _Part:
    """What one leaf has been asked, and whether that is settled."""

    __slots__ = ("calls", "error", "last", "leaf", "settled", "tie", "tries", "withdrawn")
    last: Call  # the latest one, however it went

    def __init__(self, leaf: Leaf[Any, Any]) -> None:
        self.leaf = leaf
        self.calls: list[Call] = []  # those that run and have not been given up
        self.tries = self.withdrawn = 0
        self.settled = False
        self.error: Exception | None = None
        self.tie: Tie | None = None


class Call:
    """One request to one replica; called when its task is done."""

    __slots__ = ("began", "gathering", "hedge", "part", "replica", "task")

    def __init__(self, gathering: Gathering[Any, Any], part: _Part, replica: int, hedge: bool) -> None:
        self.gathering, self.part, self.replica, self.hedge = gathering, part, replica, hedge
        self.began = 0.0
        self.task: asyncio.Task[Any] | None = None

    def __call__(self, task: asyncio.Task[Any]) -> None:
        """Hand on that the task is done."""
        self.gathering.ended(self, task)


class Gathering(Generic[R, T]):
    """See the module.

    Args:
        owner: whose leaves, policy, clock, chance and listener it uses.
        request: what every leaf is asked.
        seconds: until it must have returned.
        hedge: None asks each leaf once.
    """

    def __init__(self, owner: ScatterGather[R, T], request: R, seconds: float, hedge: Hedge | None) -> None:
        self._owner, self._request, self._hedge = owner, request, hedge
        self._policy, self._clock, self._rng = owner.policy, owner.clock, owner.rng
        self._heard = owner.on_event is not ignore
        self._delay = hedge.delay if hedge else 0.0
        self._began = self._now = owner.clock.monotonic()
        self._until = self._began + seconds - owner.policy.drain
        self._deadline = Deadline(max(0.0, seconds - owner.policy.drain), clock=owner.clock)
        self._loop = asyncio.get_running_loop()
        self._parts = [_Part(leaf) for leaf in owner.leaves]
        self._todo = deque(self._parts)
        self._running: dict[asyncio.Task[Any], Call] = {}
        self._to_hedge: deque[tuple[float, _Part]] = deque()
        self._held: list[_Part] = []  # late, and no room for a second request
        self._values: dict[str, T] = {}
        self._errors: dict[str, Exception] = {}
        self._failed = self._requests = 0
        self._canary = owner.policy.canary is not None
        self._why: Why | None = None  # what ended it; None while it goes on
        self._fatal: BaseException | None = None
        self._closed = False
        self._alarm: asyncio.Future[None] | None = None
        self._abandoned: list[str] = []

    async def run(self) -> Gathered[T]:
        """Ask, wait, and leave nothing running that can be stopped."""
        try:
            if self._canary:
                await self._ask_one_first()
            await self._collect()
        except BaseException as error:
            self._close(cut=True)
            if isinstance(error, GeneratorExit):  # the coroutine is thrown away, and must not wait
                self._abandon()
            else:
                await self._drain()
            raise
        self._close()
        await self._drain()
        if self._fatal is not None:
            raise self._fatal
        return self._judge()

    # --8<-- [start:collect]
    async def _collect(self) -> None:
        self._fill()
        while self._why is None:
            self._now = self._clock.monotonic()
            if self._now >= self._until - _MOMENT:
                self._why = Why.DEADLINE
                return
            self._hedge_late()
            if self._why is None:
                next_late = self._to_hedge[0][0] if self._to_hedge else self._until
                await self._wait(min(next_late, self._until))

    async def _wait(self, until: float) -> None:
        """Sleep until then, or until a call's end has changed something that this loop decides."""
        self._alarm = self._loop.create_future()
        with suppress(TimeoutError):
            async with self._clock.timeout(until - self._now):
                await self._alarm

    # --8<-- [end:collect]

    async def _ask_one_first(self) -> None:
        self._until, until = min(self._until, self._began + (self._policy.canary or 0.0)), self._until
        first = self._todo.popleft()
        if self._now < self._until:
            self._ask_first(first)
        while not first.settled and self._fatal is None and self._now < self._until - _MOMENT:
            await self._wait(self._until)
            self._now = self._clock.monotonic()
        self._until = until
        if first.leaf.name in self._values:
            self._canary = False
            self._finish(self._enough())
        else:
            self._why = self._why or Why.DEADLINE

    # --- asking --------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Ask those leaves that were not asked yet, as far as there is room."""
        self._now = self._clock.monotonic()
        if self._now >= self._until:
            return
        while self._todo and len(self._running) < self._policy.limit and self._why is None:
            self._ask_first(self._todo.popleft())

    def _ask_first(self, part: _Part) -> None:
        replicas = len(part.leaf.replicas)
        replica = self._usable(part, int(self._rng.random() * replicas) if replicas > 1 else 0)
        if replica is None:
            self._lose(part, LeafMissing(part.leaf.name, Why.STUCK, asked=False))
            return
        if self._hedge is not None and replicas > 1 and not self._canary:
            if self._hedge.tied:
                part.tie = Tie(f"{self._rng.getrandbits(128):032x}", (replica + 1) % replicas)
            if not self._to_hedge:
                self._ring()
            self._to_hedge.append((self._now + self._delay, part))
        self._ask(part, replica, hedge=False)

    # --8<-- [start:hedge]
    def _hedge_late(self) -> None:
        """Ask again, elsewhere, where the answer is late: by lot, for the budget may not do for all."""
        late, self._held = self._held, []
        while self._to_hedge and self._to_hedge[0][0] <= self._now + _MOMENT:
            part = self._to_hedge.popleft()[1]
            if part.calls and part.tries == 1:
                late.append(part)
                self._note(part.last, failed=False)
        late = [part for part in late if part.calls and part.tries == 1]
        if len(late) > 1:
            self._rng.shuffle(late)
        for part in late:
            if self._todo or len(self._running) >= self._policy.limit:
                self._held.append(part)
            else:
                self._ask_again(part, part.last)

    def _ask_again(self, part: _Part, call: Call, *, failed: bool = False) -> bool:
        """Ask the replica after that of `call`, if there is one and the budget has a token."""
        replica = self._usable(part, (call.replica + 1) % len(part.leaf.replicas), but=call.replica)
        if self._hedge is None or replica is None:
            return False
        if not self._hedge.budget.take():
            self._tell(HedgeRefused(self._owner.name, part.leaf.name))
            return False
        self._ask(part, replica, hedge=True)
        self._tell(HedgeSent(self._owner.name, part.leaf.name, failed, self._now - call.began))
        return True

    # --8<-- [end:hedge]

    def _usable(self, part: _Part, first: int, but: int | None = None) -> int | None:
        """Return the first replica from there on that does not rest, or else one that is not stuck."""
        stuck, health = self._owner.stuck, self._hedge.health if self._hedge else None
        if not stuck and not (health and health.doubts):
            return None if first == but else first
        name, n = part.leaf.name, len(part.leaf.replicas)
        usable = [
            replica
            for replica in ((first + step) % n for step in range(n))
            if replica != but and stuck.get((name, replica), 0) < self._policy.max_abandoned
        ]
        fit = (each for each in usable if not (health and health.rests((name, each), self._now)))
        return next(fit, usable[0] if usable else None)

    def _ask(self, part: _Part, replica: int, *, hedge: bool) -> None:
        tie = part.tie
        if tie is not None and hedge:
            tie = None if part.withdrawn else Tie(tie.id, part.last.replica)
        call = Call(self, part, replica, hedge)
        call.began = self._now
        name = part.leaf.name
        try:
            work: Any = part.leaf.replicas[replica](
                Ask(self._request, self._deadline, name, replica, hedge, tie)
            )
        except Exception as error:  # a plain function, or a wrong signature: the leaf's failure
            work = _raising(error)
        if type(work) is not CoroutineType:
            work = _awaiting(work)
        call.task = task = self._loop.create_task(work)
        part.last = call
        part.tries += 1
        self._requests += 1
        part.calls.append(call)
        self._running[task] = call
        task.add_done_callback(call)

    # --- what has ended ------------------------------------------------------------------------------------

    # --8<-- [start:ended]
    def ended(self, call: Call, task: asyncio.Task[Any]) -> None:
        """Take an answer in: the first of each leaf, while answers are taken at all."""
        del self._running[task]
        error = None if task.cancelled() else task.exception()  # read, or asyncio would complain
        part = call.part
        if self._closed:
            self._owner.forget(task)
            if not self._running:
                self._ring()
            return
        if call in part.calls:  # it was not given up
            part.calls.remove(call)
            self._now = self._clock.monotonic()
            if task.cancelled():
                error = LeafMissing(part.leaf.name, Why.CANCELLED, asked=True)
            if error is None:
                self._win(part, call, task.result())
            elif isinstance(error, Exception):
                self._fail(part, call, error)
            else:  # KeyboardInterrupt, SystemExit: not the leaf's
                self._fatal = error
                self._finish(Why.CANCELLED)
        if self._why is None and (self._todo or self._held) and not self._canary:
            self._fill()
            if self._held:
                self._ring()

    def _win(self, part: _Part, call: Call, value: T) -> None:
        self._values[part.leaf.name] = value
        for other in part.calls:
            if other.task is not None:
                other.task.cancel()
        if self._hedge is not None:
            self._learn(self._hedge, part, call)
        part.calls.clear()
        self._settle(part)

    # --8<-- [end:ended]

    def _note(self, call: Call, *, failed: bool) -> None:
        """Note what speaks against a replica; which copy of a tied request is late says nothing."""
        if self._hedge is not None:
            health, place = self._hedge.health, (call.part.leaf.name, call.replica)
            if failed:
                health.failed(place, self._now)
            elif not self._hedge.tied:
                health.late(place, self._now)

    def _learn(self, hedge: Hedge, part: _Part, call: Call) -> None:
        first = next((each for each in (call, *part.calls) if not each.hedge), None)
        took = self._now - first.began if first is not None else 0.0
        if first is not None and hedge.observed is not None:
            hedge.observed.record(took)
        if hedge.tied or (first is call and took <= self._delay + _MOMENT):
            hedge.budget.deposit()
            if hedge.health.doubts:
                hedge.health.well((part.leaf.name, call.replica))

    def _fail(self, part: _Part, call: Call, error: Exception) -> None:
        if isinstance(error, Withdrawn):
            part.withdrawn += 1
            part.error = error if part.error is None else part.error
        elif part.error is None or isinstance(part.error, Withdrawn):
            part.error = error
        if self._hedge is not None and isinstance(error, self._hedge.on):
            self._note(call, failed=True)
        if part.calls:
            return  # the other one may still answer
        again = (
            self._hedge is not None
            and not self._canary
            and part.tries - part.withdrawn < 2
            and isinstance(error, self._hedge.on)
        )
        if not (again and self._ask_again(part, call, failed=True)):
            self._lose(part, part.error)

    def _lose(self, part: _Part, error: Exception) -> None:
        self._errors[part.leaf.name] = error
        self._failed += 1
        self._tell(LeafFailed(self._owner.name, part.leaf.name, type(error).__name__))
        self._settle(part)

    def _settle(self, part: _Part) -> None:
        part.settled = True
        if self._canary:
            self._finish(Why.FAIL_FAST) if self._failed else self._ring()
        else:
            self._finish(self._enough())

    def _enough(self) -> Why | None:
        """Say why there is no use in waiting on; None if there is."""
        policy, answered = self._policy, len(self._values)
        if policy.fail_fast and self._failed:
            return Why.FAIL_FAST
        if len(self._parts) - self._failed < policy.min_results:
            return Why.HOPELESS
        if answered + self._failed == len(self._parts):
            return Why.ENOUGH
        return Why.ENOUGH if policy.enough is not None and answered >= policy.enough else None

    def _finish(self, why: Why | None) -> None:
        if why is not None:
            self._why = self._why or why
            self._ring()

    def _ring(self) -> None:
        if self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)

    # --- the end -------------------------------------------------------------------------------------------

    def _close(self, *, cut: bool = False) -> None:
        """Take no answer any more; with `cut` it was the caller who ended it."""
        self._closed = True
        why = self._why or Why.DEADLINE
        now = self._clock.monotonic()
        for part in self._parts:
            if part.settled:
                continue
            name = part.leaf.name
            self._errors[name] = part.error or LeafMissing(name, why, asked=bool(part.tries))
            if self._hedge is not None and self._hedge.observed is not None and not cut:
                for call in part.calls:
                    if not call.hedge:
                        self._hedge.observed.record(now - call.began)

    # --8<-- [start:drain]
    async def _drain(self) -> None:
        """Cancel what still runs and wait for its end, though not for ever."""
        for task, call in self._running.items():
            if call in call.part.calls:  # the others have been told
                task.cancel()
        try:
            if self._running:
                self._alarm = self._loop.create_future()
                with suppress(TimeoutError):
                    async with self._clock.timeout(self._policy.drain):
                        await self._alarm
        finally:
            self._abandon()

    # --8<-- [end:drain]

    def _abandon(self) -> None:
        for task, call in self._running.items():
            task.cancel()
            self._abandoned.append(call.part.leaf.name)
            self._owner.abandon(task, call.part.leaf.name, call.replica)

    def _judge(self) -> Gathered[T]:
        names = [leaf.name for leaf in self._owner.leaves]
        gathered: Gathered[T] = Gathered(
            {name: self._values[name] for name in names if name in self._values},
            {name: self._errors[name] for name in names if name in self._errors},
            tuple(part.leaf.name for part in self._parts if part.tries > 1),
            tuple(dict.fromkeys(self._abandoned)),
            self._requests,
            self._clock.monotonic() - self._began,
        )
        wanted = self._policy.min_results
        enough = not self._canary and self._why is not Why.FAIL_FAST and len(gathered.values) >= wanted
        if self._heard:
            ended = GatherEnded(
                self._owner.name,
                len(gathered.values),
                len(gathered.errors),
                gathered.requests,
                enough,
                gathered.seconds,
            )
            self._tell(ended)
        if enough:
            return gathered
        raised = [error for error in gathered.errors.values() if not isinstance(error, LeafMissing)]
        cause = raised[0] if raised else None
        if self._canary:
            first = names[0]
            raise CanaryFailed(self._owner.name, first, gathered.errors[first]) from cause
        raise NotEnough(self._owner.name, wanted, gathered) from cause

    def _tell(self, event: Any) -> None:
        if self._heard:
            emit(self._owner.on_event, event)


async def _raising(error: Exception) -> Any:
    raise error


async def _awaiting(work: Awaitable[T]) -> T:
    return await work
