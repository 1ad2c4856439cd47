"""Guards around one call, in the order that you declare.

A guard is anything with `call(fn, *args, **kwargs)`: the retry, circuit breaker, bulkhead and fallback of
this handbook, a `Timeout`, or your own. The first is outermost: it sees what all the others made of the
call. Order changes what a guard means (a time-out outside a retry limits all attempts, inside it limits
each), so `Pipeline` never sorts; `in_order` names the places in the order that `docs/composing.md` measures
to be the one to begin with.

>>> import asyncio
>>> from patterns.clock import ManualClock
>>> clock = ManualClock()
>>> async def slow() -> None:
...     await clock.sleep(60)
>>> guarded = Pipeline(Timeout(2.0, clock=clock))
>>> async def main() -> None:
...     call = asyncio.ensure_future(guarded.call(slow))
...     await clock.advance(2.0)
...     print(repr(call.exception()))
>>> asyncio.run(main())
TimedOut('timed out after 2.0 s')

Sources: Polly, "Resilience pipelines" (strategies run in the order they were added, the first outermost);
resilience4j, "Aspect order"; Microsoft.Extensions.Http.Resilience, "Standard resilience handler".
"""

from __future__ import annotations

import inspect
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast

from patterns.bounds import number
from patterns.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from patterns.clock import Clock

__all__ = ["Guard", "Pipeline", "TimedOut", "Timeout", "in_order"]

P = ParamSpec("P")
T = TypeVar("T")


class Guard(Protocol):
    """What a pipeline is made of."""

    @property
    def call(self) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Await `fn(*args, **kwargs)` behind the guard: `call(fn, *args, **kwargs)`."""
        ...


class TimedOut(TimeoutError):
    """The call was ended because its time was up; a TimeoutError of the dependency's own is not this.

    Attributes:
        seconds: the limit.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"timed out after {seconds} s")
        self.seconds = seconds

    def __reduce__(self) -> tuple[type[TimedOut], tuple[float]]:
        """Pickle by the limit: the message is made of it."""
        return type(self), (self.seconds,)


class Timeout:
    """Ends a call that takes longer than `seconds`.

    The call is cancelled where it waits. Code that does not wait is not ended, nor is a thread, and what a
    remote service was asked to do it may still do. A call that swallows the cancellation ends as it likes:
    what it then returns or raises is passed on.

    Args:
        seconds: limit of one call through this guard; > 0 and finite.
        clock: where time comes from.
    """

    def __init__(self, seconds: float, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.seconds = number("seconds", seconds, above=0)
        self._clock = clock

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `fn(*args, **kwargs)` for at most `seconds`.

        Raises:
            TimedOut: it took longer. A TimeoutError of the call's own, a TimedOut too, is passed on as it is.
        """
        theirs = False
        try:
            async with self._clock.timeout(self.seconds):
                try:
                    return await fn(*args, **kwargs)
                except TimeoutError:
                    theirs = True
                    raise
        except TimeoutError as error:
            if theirs:
                raise
            raise TimedOut(self.seconds) from error

    def __repr__(self) -> str:
        return f"Timeout({self.seconds})"


class Pipeline:
    """Guards around a call, the first outermost.

    Guards keep their own state and may be shared by pipelines; the pipeline has none.

    Args:
        guards: at least one; a pipeline among them stands for its guards. The same object twice is refused,
            since it would wait for itself (a bulkhead) or count each call twice (a circuit breaker).

    Attributes:
        guards: all of them, the first outermost.

    Raises:
        ValueError: no guard, the same guard twice, or something that is none.
    """

    def __init__(self, *guards: Guard) -> None:
        if not guards:
            raise ValueError("guards must be at least one, got none")
        inlined: list[Guard] = []
        for guard in guards:
            inlined.extend(guard.guards if type(guard) is Pipeline else (guard,))
        for place, guard in enumerate(inlined):
            if isinstance(guard, type) or not callable(getattr(guard, "call", None)):
                raise ValueError(f"guards[{place}] must have a method `call`, got {guard!r}")
            if any(guard is other for other in inlined[:place]):
                raise ValueError(f"guards[{place}] must not be in the pipeline already, got {guard!r} twice")
        self.guards: tuple[Guard, ...] = tuple(inlined)
        self._inwards = tuple(reversed(inlined))

    # --8<-- [start:compose]
    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Await `fn(*args, **kwargs)` behind all guards.

        Returns:
            What the outermost guard returns: the call's own result, unless a guard (a fallback) wraps it.
        """
        guarded: Callable[..., Awaitable[Any]] = fn
        for guard in self._inwards:
            guarded = partial(guard.call, guarded)
        return await guarded(*args, **kwargs)

    # --8<-- [end:compose]

    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, Any]]:
        """Put every call of an `async def` behind all guards.

        Raises:
            TypeError: `fn` is something else.
        """
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(
                f"@pipeline needs an async def, got {fn!r}; for an object that is awaited when called use "
                "`pipeline.call`, run a plain def in a thread (`asyncio.to_thread`), and collect the items "
                "of a generator in an async def"
            )
        inner: Callable[..., Any] = fn
        for guard in self._inwards:
            inner = partial(guard.call, inner)

        @wraps(fn)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> Any:
            return await inner(*args, **kwargs)

        return guarded

    def __str__(self) -> str:
        """Return the order, outermost first: `Retry > CircuitBreaker > Timeout`."""
        return " > ".join(type(guard).__name__ for guard in self.guards)


def in_order(
    *,
    fallback: Guard | None = None,
    total_timeout: Timeout | None = None,
    retry: Guard | None = None,
    breaker: Guard | None = None,
    bulkhead: Guard | None = None,
    timeout: Timeout | None = None,
) -> Pipeline:
    """Return a pipeline in the order to begin with; leave out what you do not need.

    Args:
        fallback: outermost, so that it speaks once, when everything else has given up.
        total_timeout: limits all attempts and the waits between them; longer than `timeout`.
        retry: asks the breaker again before each attempt.
        breaker: sees each attempt, and refuses those that have no chance.
        bulkhead: holds a permit only while the dependency works, not while a retry waits.
        timeout: limits one attempt, and inside the breaker, which could not see it from outside.

    Raises:
        ValueError: as for `Pipeline`, or the total is no longer than one attempt: it would come first, as a
            cancellation that nothing inside may count.
    """
    if total_timeout is not None and timeout is not None and total_timeout.seconds <= timeout.seconds:
        raise ValueError(
            f"total_timeout must be longer than timeout, {timeout.seconds} s, got {total_timeout.seconds} s"
        )
    places = (fallback, total_timeout, retry, breaker, bulkhead, timeout)
    return Pipeline(*(cast("Guard", guard) for guard in places if guard is not None))
