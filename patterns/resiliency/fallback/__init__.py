"""Answer from elsewhere when a call fails, and say that you did.

A page that shows an old price is often better than no page; a price that is shown as new and is old is
worse than an error. Most fallbacks are an `except Exception` that hides bugs, returns None, and sends all
traffic to the one database that the failed cache was there to shield. Here a fallback is a chain of levels,
each with its own limit and time, and every answer says where it comes from and how old it is.

Guaranteed, each by a test that rejects a naive variant:

1. While the primary answers, no level is called, but for exercises, and the answer is not degraded.
2. Only the errors that `on` lists, results that `on_result` refuses, and `primary_timeout` lead to a level.
   Cancellation and other BaseExceptions never do, whichever level raises them; nor do programming errors
   (BUGS), unless their own class is listed. A caller who was cancelled gets no substitute, also if what it
   awaited made another error of the cancellation.
3. A substitute is marked: `degraded`, with its source, its age if it is a copy, and the errors before it.
   Copies are fed with answers of the primary only.
4. If nothing answers, the caller gets AllLevelsFailed: the primary's own error first, which is also its
   cause, then that of each level that was tried. The levels together take no longer than `deadline`, and
   none begins when nothing is left of it.
5. A level runs no more than `limit` calls at once, whatever fails; the next caller goes on to the next level
   at once. A permit comes back however its call ends.
6. A value that is older than `max_age`, or that has no age where one is asked for, is not served.
7. `same_contract` finds a level that returns another type or schema than the primary, and a level that does
   not answer at all.
8. With `exercise` that share of all calls takes the levels though nothing has failed, each time beginning at
   a level drawn by lot, and an event tells of each. An exercise that fails costs its caller time, not the
   answer: the primary is asked after all.
9. Shared through Redis (`shared.SharedLastGood`): another process finds the copy, which is never older than
   it says; an answer does not replace one that was asked for later, nor undo a `forget`, however long it was
   on its way. Without Redis the primary's answers go out all the same.

Not guaranteed: that `deadline` ends code that does not let itself be cancelled; that a level is independent
of what failed (that is yours to choose); that an answer is right. Not for writes: a write that "fell back" is
in one of two places. A substitute cannot be given to a block, so there is no `async with`. Of calls that
began within one round trip to Redis of each other, either answer may be the copy.

Redis keys: none here; see `patterns.resiliency.fallback.shared`.

For the tasks of one event loop.

>>> import asyncio
>>> async def live(article: str) -> int:
...     raise ConnectionError("refused")
>>> async def list_price(article: str) -> int:
...     return 12
>>> prices = Fallback("prices", Policy(on=(ConnectionError,)), Level("list price", list_price))
>>> answer = asyncio.run(prices.call(live, "cup"))
>>> answer.value, answer.source, answer.degraded, answer.errors
(12, 'list price', True, (ConnectionError('refused'),))

Sources: Hystrix, "How it works: fallback" (own limit, 10 by default; the original error); Polly 8, fallback;
Gabrielson, "Avoiding fallback in distributed systems", Amazon Builders' Library (why not, and exercising it).
"""

from __future__ import annotations

import inspect
import random
from functools import wraps
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from patterns.cancellation import cancels, overtaken
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.events import Listener, emit, ignore
from patterns.resiliency.fallback.answer import (
    PRIMARY,
    AllLevelsFailed,
    Answer,
    CopyNotKept,
    Exercised,
    FallbackExhausted,
    FallbackUsed,
    LevelFailed,
    LevelFull,
    LevelTimedOut,
    NoCopy,
    ResultRefused,
    Stale,
    TooOld,
)
from patterns.resiliency.fallback.contract import ContractBroken, same_contract
from patterns.resiliency.fallback.last_good import LastGood
from patterns.resiliency.fallback.level import Level, Memory
from patterns.resiliency.fallback.policy import BUGS, Policy, check_share

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

__all__ = [
    "BUGS",
    "PRIMARY",
    "AllLevelsFailed",
    "Answer",
    "ContractBroken",
    "CopyNotKept",
    "Exercised",
    "Fallback",
    "FallbackExhausted",
    "FallbackUsed",
    "LastGood",
    "Level",
    "LevelFailed",
    "LevelFull",
    "LevelTimedOut",
    "Memory",
    "NoCopy",
    "Policy",
    "ResultRefused",
    "Stale",
    "TooOld",
    "same_contract",
]

P = ParamSpec("P")
T = TypeVar("T")

_fresh = tuple.__new__  # half the time of Answer(...), on the way that every call takes


class Fallback(Generic[T]):
    """A chain of substitutes for one call.

    Use it as `await fallback.call(primary, *args)`, or as `@fallback` on an `async def`, which then returns
    an Answer. Put it outermost: around the retry, the breaker, the bulkhead and the time-out of the primary.
    Chains are not nested: an Answer that a primary or a level returns is a value like any other, so give the
    chain one more level instead.

    Args:
        name: names the chain in errors and events.
        policy: when to stand in, and for how long.
        levels: the substitutes, best first; at least one.
        clock: where durations are read.
        rng: draws the exercises; None takes one of its own.
        on_event: hears FallbackUsed, LevelFailed, FallbackExhausted, Exercised and CopyNotKept.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        *levels: Level[T],
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        given: tuple[object, ...] = levels
        if stray := [level for level in given if not isinstance(level, Level)]:
            raise ValueError(f"levels must be Level objects, got {stray!r}")
        names = [level.name for level in levels]
        if not levels or len(set(names)) != len(names):
            raise ValueError(f"levels must be at least one, with names that differ, got {names!r}")
        self.name, self.policy, self.levels = name, policy, levels
        self._clock, self._now, self._on_event = clock, clock.monotonic, on_event
        self._rng = random.Random() if rng is None else rng
        self._exercise = policy.exercise
        self._memories = [(level.name, level.memory) for level in levels if level.memory is not None]
        # What every call looks at; the usual primary has none of it.
        self._plain = policy.primary_timeout is None and policy.on_result is None and not self._memories

    @property
    def exercise(self) -> float:
        """The share of calls that take the levels without need; set it while a game day lasts."""
        return self._exercise

    @exercise.setter
    def exercise(self, share: float) -> None:
        check_share("exercise", share)
        self._exercise = share

    # --8<-- [start:call]
    async def call(
        self, primary: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Answer[T]:
        """Await `primary(*args, **kwargs)`; if it fails, ask the levels in order.

        Raises:
            AllLevelsFailed: nothing answered.
            Exception: what the primary raised, if it is not one of those that lead to a level.
        """
        before = cancels()
        if self._exercise and self._rng.random() < self._exercise:
            answer = await self._exercised(args, kwargs, before)
            if answer is not None:
                return answer
        try:
            if self._plain:
                return _fresh(Answer, (await primary(*args, **kwargs), PRIMARY, False, None, ()))
            return await self._primary(primary, args, kwargs)
        except Exception as failure:
            if overtaken(failure, before) or not self.policy.triggers(failure):
                raise
            error = failure
        try:
            return await self._fall_back(error, args, kwargs, before)
        finally:
            del error  # it holds this frame: the frame must not hold it

    # --8<-- [end:call]

    async def _fall_back(
        self, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any], before: int
    ) -> Answer[T]:
        errors = [error]
        try:
            answer = await self._descend(self.levels, errors, args, kwargs, before)
            if answer is None:
                emit(self._on_event, FallbackExhausted(self.name, type(error).__name__, len(errors) - 1))
                raise AllLevelsFailed(
                    f"{self.name}: neither the primary nor a level answered", errors
                ) from error
            emit(self._on_event, FallbackUsed(self.name, answer.source, type(error).__name__, answer.age))
            return answer
        finally:
            del errors  # an error holds this frame: it must not hold the error

    # --8<-- [start:descend]
    async def _descend(
        self,
        levels: Iterable[Level[T]],
        errors: list[Exception],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        before: int,
        *,
        exercise: bool = False,
    ) -> Answer[T] | None:
        """Return the answer of the first level that gives one; `errors` grows with each that does not."""
        deadline = self.policy.deadline
        until = None if deadline is None else self._now() + deadline
        try:
            for level in levels:
                if errors and not (level.triggers or self.policy.triggers)(errors[-1]):
                    continue
                try:
                    value, age = await self._ask(level, until, args, kwargs)
                except Exception as error:
                    emit(self._on_event, LevelFailed(self.name, level.name, type(error).__name__, exercise))
                    if overtaken(error, before):
                        raise
                    errors.append(error)
                else:
                    return Answer(value, level.name, degraded=True, age=age, errors=tuple(errors))
            return None
        finally:
            del errors

    async def _ask(
        self, level: Level[T], until: float | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[T, float | None]:
        """Return the value of one level and its age."""
        seconds = level.timeout
        if until is not None:
            left = until - self._now()
            if left <= 0:
                raise LevelTimedOut(level.name, 0.0)
            seconds = left if seconds is None else min(seconds, left)
        level.admit()
        try:
            result = await self._within(level.name, seconds, level.fn, args, kwargs)
        finally:
            level.leave()
        return level.accept(result)

    # --8<-- [end:descend]

    async def ask(self, level: str, /, *args: Any, **kwargs: Any) -> Answer[T]:
        """Ask one level alone, with its limit and time: for a test, or to see how it is.

        Raises:
            ValueError: there is no such level.
            Exception: what the level raised, or LevelFull, LevelTimedOut or TooOld.
        """
        for each in self.levels:
            if each.name == level:
                deadline = self.policy.deadline
                until = None if deadline is None else self._now() + deadline
                value, age = await self._ask(each, until, args, kwargs)
                return Answer(value, level, degraded=True, age=age)
        raise ValueError(f"level must be one of {[each.name for each in self.levels]}, got {level!r}")

    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, T]]
    ) -> Callable[P, Coroutine[Any, Any, Answer[T]]]:
        """Give an `async def` the levels; it then returns an Answer. On a method they get `self`, too."""
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(
                f"@fallback needs an async def, got {fn!r}; for an object that is awaited when called use "
                "`fallback.call`, and run synchronous code in an executor"
            )
        call = self.call

        @wraps(fn)
        async def answered(*args: P.args, **kwargs: P.kwargs) -> Answer[T]:
            return await call(fn, *args, **kwargs)

        return answered

    # --8<-- [start:exercise]
    async def _exercised(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], before: int
    ) -> Answer[T] | None:
        """Take the fallback path without need; None if it leads nowhere, and the primary is to be asked."""
        levels = self.levels[self._rng.randrange(len(self.levels)) :]
        answer = await self._descend(levels, [], args, kwargs, before, exercise=True)
        passed = answer is not None and answer.source == levels[0].name
        emit(self._on_event, Exercised(self.name, levels[0].name, passed, answer.age if answer else None))
        return answer

    # --8<-- [end:exercise]

    async def _primary(
        self, primary: Callable[..., Awaitable[T]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Answer[T]:
        """Await the primary within its time, judge its result, and let the memories see it."""
        policy, began = self.policy, self._now()
        value = await self._within(PRIMARY, policy.primary_timeout, primary, args, kwargs)
        if policy.on_result is not None and policy.on_result(value):
            raise ResultRefused(value)
        for name, memory in self._memories:
            try:
                await memory.keep(value, self._now() - began, args, kwargs)
            except Exception as error:
                emit(self._on_event, CopyNotKept(self.name, name, type(error).__name__))
        return Answer(value, PRIMARY, degraded=False)

    async def _within(
        self,
        name: str,
        seconds: float | None,
        fn: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Await `fn` for `seconds`; what it raises itself, a TimeoutError too, stays what it is.

        Once it is cut off, it does not matter which error it makes of that.
        """
        if seconds is None:
            return await fn(*args, **kwargs)
        before, own = cancels(), False
        try:
            async with self._clock.timeout(seconds):
                try:
                    return await fn(*args, **kwargs)
                except Exception:
                    own = cancels() == before
                    raise
        except Exception as error:
            if own or cancels() > before:
                raise
            raise LevelTimedOut(name, seconds) from error
