"""Call again what failed for a moment: after a pause, with a limit, and only what may be done twice.

A packet is lost, a server restarts, a request meets a full queue: the same call a moment later works. But a
retry is also load, put on a dependency when it is weakest, and a second execution of what may have been
executed. The retry decides after each attempt whether there is another, and when.

Guaranteed, each by a test that rejects a naive variant:

1. There are no more than `attempts` calls. With a deadline no wait begins that would end after it, no attempt
   begins after it, and one that is under way is cut off when it has come.
2. Wait n is between 0 and min(cap, base * 2^n) for any n (decorrelated: between base and cap), plus what the
   dependency asked for; two callers wait differently.
3. Only what is in `on` and not in `ignore`, or what `on_result` picks, is retried. Cancellation,
   KeyboardInterrupt and SystemExit never are; a cancellation ends a wait at once; an error that was made of
   a cancellation is not retried.
4. All callers of one `Budget` together retry at most `capacity` + `min_per_second` a second + `ratio` of the
   successes; a success that passes several retries counts once.
5. An error's `retry_after` is the least wait; above `max_retry_after`, or beyond the deadline, the call fails
   at once.
6. A call that is not idempotent is retried only after errors that prove that the request did not leave; a
   group of errors proves nothing. With `idempotent="key"` all attempts of a call have one key, and no two
   calls have the same; none is made where a retry further out would make another.
7. The caller gets the last outcome itself: the same exception object, with a note of how it came about, or
   the result. An attempt's time-out is an AttemptTimedOut, which is neither one of the dependency's nor one
   around the retry.
8. Inside an attempt of another retry there is one attempt (three layers of three are 3 calls, not 27). A task
   that outlives the call is not inside it any more.
9. Shared through Redis (`shared.SharedBudget`): processes together retry no more than one would; a success
   costs no round trip; without Redis each process goes on with a budget of its own.
10. A retry that was granted and not made goes back into the budget, and no listener can break a call.

Not guaranteed: that the request was not carried out when the call fails (the last attempt's reply may be
lost too), and that an attempt ends in time which does not let itself be cancelled. An attempt that swallows
a cancellation and then fails for another reason is retried. What an inner retry does not repeat, and the
outer one does not list, nobody repeats. While nothing succeeds, budgets grant `min_per_second` times the
number of processes. The key of a call dies with its process: what must survive that takes the key from the
data, with `attempts(key=...)`.

Redis keys: none here; see `patterns.resiliency.retry.shared`.

>>> import asyncio
>>> from patterns.scripted import Scripted, fails, returns
>>> policy = Policy(on=(ConnectionError,), idempotent=True, base=0.001)
>>> retry = Retry("catalogue", policy)
>>> service = Scripted(fails(ConnectionError("reset")), returns("42 books"))
>>> asyncio.run(retry.call(service)), service.calls
('42 books', 2)

Sources: AWS Builders' Library, "Timeouts, retries, and backoff with jitter"; AWS SDKs, standard retry mode;
Google, "Site Reliability Engineering", chapters 21 and 22; RFC 9110, Retry-After; stamina and Polly 8.
"""

from __future__ import annotations

import inspect
import random
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from patterns.bounds import text
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.events import Listener, ignore
from patterns.resiliency.retry.attempts import Attempt, Attempts
from patterns.resiliency.retry.budget import Budget, RetryBudget
from patterns.resiliency.retry.call import Call
from patterns.resiliency.retry.events import (
    AttemptFailed,
    AttemptTimedOut,
    CallSucceeded,
    Reason,
    RetryGaveUp,
    RetryScheduled,
)
from patterns.resiliency.retry.nesting import MARK, Mark, current_key
from patterns.resiliency.retry.policy import Jitter, Policy
from patterns.resiliency.retry.retry_after import parse_retry_after

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

__all__ = [
    "Attempt",
    "AttemptFailed",
    "AttemptTimedOut",
    "Attempts",
    "Budget",
    "CallSucceeded",
    "Jitter",
    "Policy",
    "Reason",
    "Retry",
    "RetryBudget",
    "RetryGaveUp",
    "RetryScheduled",
    "current_key",
    "parse_retry_after",
]

P = ParamSpec("P")
T = TypeVar("T")

# Bound once: looking them up takes as long as the calls.
_marked, _mark = MARK.get, MARK.set
# Chance from the system: forked processes share no state that would make them wait alike, or use a key twice.
_SYSTEM_RANDOM = random.SystemRandom()


class Retry:
    """Repeats calls of one dependency.

    Use it as `await retry.call(fn, *args)`, `@retry` on an `async def`, or
    `async for attempt in retry.attempts(): async with attempt: ...`.

    Args:
        name: names the dependency in notes and events.
        policy: what is repeated, how often, and how long between.
        budget: what all callers of the dependency may retry together; None sets no limit.
        clock: where durations are read, and waited for.
        rng: where jitter and keys come from; in production leave it alone.
        on_event: hears AttemptFailed, RetryScheduled, RetryGaveUp and CallSucceeded.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        *,
        budget: RetryBudget | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random = _SYSTEM_RANDOM,
        on_event: Listener = ignore,
    ) -> None:
        self.name = name
        self.policy = policy
        self.budget = budget
        self.clock = clock
        self.rng = rng
        self.on_event = on_event
        # Nothing to do for a call that succeeds at once but to mark it, and to tell the budget.
        self._plain = not (
            policy.deadline is not None
            or policy.attempt_timeout is not None
            or policy.idempotent == "key"
            or policy.on_result is not None
            or policy.attempts == 1
            or on_event is not ignore
        )

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `fn(*args, **kwargs)`, again where the policy says so."""
        outer = _marked()
        if not self._plain or (outer is not None and not outer.over):
            return await self._repeat(Call(self), fn, args, kwargs)
        mark = Mark()
        mark.over, mark.retry = False, self
        _mark(mark)
        try:
            try:
                result = await fn(*args, **kwargs)
            except Exception as error:
                call = Call(self, mark)
                if not await call.again(error):
                    raise
            else:
                if self.budget is not None:
                    self.budget.deposit()
                return result
            return await self._repeat(call, fn, args, kwargs)
        finally:
            mark.over = True

    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        """Repeat the calls of an `async def`."""
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(
                f"@retry needs an async def, got {fn!r}; for an object that is awaited when called use "
                "`retry.call`, run a plain def in a thread (`asyncio.to_thread`), and collect the items of a "
                "generator in an async def: half of them cannot be taken back"
            )
        call = self.call
        plain, budget = self._plain, self.budget

        @wraps(fn)
        async def retried(*args: P.args, **kwargs: P.kwargs) -> T:
            # The lines of `call`, for a coroutine within a coroutine costs as much again.
            outer = _marked()
            if not plain or (outer is not None and not outer.over):
                return await call(fn, *args, **kwargs)
            mark = Mark()
            mark.over, mark.retry = False, self
            _mark(mark)
            try:
                try:
                    result = await fn(*args, **kwargs)
                except Exception as error:
                    state = Call(self, mark)
                    if not await state.again(error):
                        raise
                else:
                    if budget is not None:
                        budget.deposit()
                    return result
                return await self._repeat(state, fn, args, kwargs)
            finally:
                mark.over = True

        return retried

    def attempts(self, *, key: str | None = None) -> Attempts:
        """Return the attempts of one call, for `async for`: each is to be entered with `async with`.

        Args:
            key: the idempotency key, for a policy with `idempotent="key"`; None makes a new one.
        """
        if key is not None and self.policy.idempotent != "key":
            raise ValueError(f"key must be None unless the policy's idempotent is 'key', got {key!r}")
        if key is not None:
            text("key", key)
        return Attempts(lambda: Call(self, key=key))

    # --8<-- [start:repeat]
    async def _repeat(self, call: Call, fn: Callable[..., Awaitable[T]], args: Any, kwargs: Any) -> T:
        while True:
            attempt = Attempt(call)
            async with attempt:  # waits where there is to be another, or lets the error pass
                attempt.result = result = await fn(*args, **kwargs)
            if not attempt.again:
                return result

    # --8<-- [end:repeat]
