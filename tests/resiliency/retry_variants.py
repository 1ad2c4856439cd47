"""Retries that people write first, and some that libraries ship: each breaks an invariant of the real one."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError

from patterns.clock import SYSTEM_CLOCK, Clock, ManualClock
from patterns.events import Listener, ignore
from patterns.resiliency.retry import Budget, Jitter, Policy, Retry
from patterns.resiliency.retry.backoff import Backoff
from patterns.resiliency.retry.nesting import MARK
from patterns.resiliency.retry.shared import SharedBudget

if TYPE_CHECKING:
    from collections.abc import Callable


class SkippingClock(ManualClock):
    """Virtual time that moves as soon as somebody sleeps; keeps the waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.jump(max(0.0, seconds))
        await asyncio.sleep(0)


class QuickClock(ManualClock):
    """Virtual time for crowds: what it wakes needs few steps until it waits again."""

    _STEPS = 6


class CrowdClock(ManualClock):
    """The same without time-outs: one step to wake, and the next call and the next wait are in it."""

    _STEPS = 2


class Loop:
    """A loop with the constructor of Retry; the variants below each get one thing wrong."""

    def __init__(
        self,
        name: str,
        policy: Policy,
        *,
        budget: Any = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        self.name, self.policy, self.budget, self.clock, self.on_event = name, policy, budget, clock, on_event
        self.rng = rng or random.Random(7)

    async def call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        began, number = self.clock.monotonic(), 1
        while True:
            try:
                return await self.attempt(fn, *args, **kwargs)
            except BaseException as error:
                if number >= self.policy.attempts or not self.retriable(error):
                    raise
                wait = self.wait(number, error)
                if self.late(self.clock.monotonic() - began, wait):
                    raise
                await self.clock.sleep(wait)
            number += 1

    async def attempt(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await fn(*args, **kwargs)

    def retriable(self, error: BaseException) -> bool:
        return isinstance(error, self.policy.on)

    def wait(self, number: int, error: BaseException) -> float:
        return self.rng.uniform(0, min(self.policy.cap, self.policy.base * 2 ** (number - 1)))

    def late(self, elapsed: float, wait: float) -> bool:
        return self.policy.deadline is not None and elapsed + wait > self.policy.deadline


class CountsRetries(Loop):
    """`retries=3` meant as attempts: one call too many."""

    async def call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for _ in range(self.policy.attempts):
            try:
                return await fn(*args, **kwargs)
            except self.policy.on as error:
                await self.clock.sleep(self.wait(1, error))
        return await fn(*args, **kwargs)


class StopsAfterDelay(Loop):
    """Asks whether the time is over, and not whether it will be (tenacity's stop_after_delay)."""

    def late(self, elapsed: float, wait: float) -> bool:
        return self.policy.deadline is not None and elapsed >= self.policy.deadline


class FixedSleep(Loop):
    """The same pause for everybody."""

    def wait(self, number: int, error: BaseException) -> float:
        return self.policy.base


class RetriesEveryException(Loop):
    """`except Exception`."""

    def retriable(self, error: BaseException) -> bool:
        return isinstance(error, Exception)


class RetriesAllButSome(Loop):
    """tenacity's retry_if_not_exception_type: what is not named is retried, cancellation too."""

    def retriable(self, error: BaseException) -> bool:
        return not isinstance(error, LookupError | KeyboardInterrupt | SystemExit)


class NeverLooksUp(Loop):
    """Judges the error that it gets, and does not ask whether the task is to end."""


class SleepsWhateverIsAsked(Loop):
    """Believes any Retry-After, and wakes everybody at once."""

    def wait(self, number: int, error: BaseException) -> float:
        return getattr(error, "retry_after", None) or super().wait(number, error)


class IgnoresRetryAfter(Loop):
    """Knows its own backoff only."""


class NewKeyEachAttempt(Retry):
    """The key is made where the request is made."""

    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        loop = Loop(self.name, self.policy, clock=self.clock)

        async def once() -> Any:
            policy = Policy(on=(ConnectionError,), idempotent="key", attempts=1)
            return await Retry(self.name, policy, clock=self.clock).call(fn, *args, **kwargs)

        return await loop.call(once)


class RetryError(Exception):
    """What tenacity raises in place of the error, unless told to reraise."""


class WrapsTheError(Loop):
    """The caller's `except ConnectionError` does not see it any more."""

    async def call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().call(fn, *args, **kwargs)
        except Exception as error:
            raise RetryError from error


class MarksForEver(Retry):
    """A guard against nesting that forgets to end: tasks that outlive the call never retry again."""

    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().call(fn, *args, **kwargs)
        finally:
            mark = MARK.get()
            if mark is not None:
                mark.over = False


class BudgetEach(Retry):
    """A budget, but a new one for each client object."""

    def __init__(self, name: str, policy: Policy, *, budget: Any, clock: Clock, **options: Any) -> None:
        own = Budget(ratio=0, min_per_second=1, capacity=10, clock=clock)
        super().__init__(name, policy, budget=own, clock=clock, **options)


class NoBudget(Retry):
    """Attempts alone limit a call, and nothing limits all of them."""

    def __init__(self, name: str, policy: Policy, *, budget: Any, **options: Any) -> None:
        super().__init__(name, policy, **options)


class KeepsWhatIsNotUsed(Budget):
    """Leave for a retry is gone when it has been given."""

    def give_back(self) -> None:
        pass


class AsksForEachSuccess(SharedBudget):
    """Hands in each success by itself."""

    def deposit(self) -> None:
        super().deposit()
        self.sent = getattr(self, "sent", [])
        self.sent.append(asyncio.ensure_future(self._client.ping()))


class NeedsRedis(SharedBudget):
    """No local bucket: without Redis there is no retry."""

    async def withdraw(self) -> bool:
        return await super().withdraw() and not self.alone


class DoublesForEver:
    """`base * 2 ** n`."""

    def __init__(self, policy: Policy, rng: random.Random) -> None:
        self.policy, self.rng, self.failures = policy, rng, -1

    def next(self) -> float:
        self.failures += 1
        longest = min(self.policy.cap, self.policy.base * 2**self.failures)
        least = {Jitter.NONE: longest, Jitter.EQUAL: longest / 2}.get(self.policy.jitter, 0.0)
        return self.rng.uniform(least, longest)


class WithoutJitter(Backoff):
    """Exponential, and the same for everybody."""

    def __init__(self, policy: Policy, rng: random.Random) -> None:
        super().__init__(policy, random.Random(7))


class RepeatsBlindly(Retry):
    """An error is an error."""

    def __init__(self, name: str, policy: Policy, **options: Any) -> None:
        super().__init__(name, Policy(**(values(policy) | {"idempotent": True})), **options)


def values(policy: Policy) -> dict[str, Any]:
    return {name: getattr(policy, name) for name in Policy.__dataclass_fields__}


class KeyForEachAttempt(NewKeyEachAttempt):
    """As the base, but leaves calls without keys to the real one."""

    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self.policy.idempotent == "key":
            return await super().call(fn, *args, **kwargs)
        return await Retry(self.name, self.policy, clock=self.clock).call(fn, *args, **kwargs)


class FreshKeys(Retry):
    """Each attempt is a call of its own, with a key of its own."""

    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        once = Retry(self.name, Policy(on=(RedisConnectionError,), idempotent="key", attempts=1))

        async def attempt() -> Any:
            return await once.call(fn, *args, **kwargs)

        return await Loop(self.name, self.policy, clock=SkippingClock()).call(attempt)
