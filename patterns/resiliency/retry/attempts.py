"""The attempts of one call, as a loop over blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patterns.resiliency.retry.call import NO_RESULT, Call

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self

    from patterns.resiliency.retry.events import AttemptTimedOut

__all__ = ["Attempt", "Attempts"]


class Attempts:
    """The attempts of one call, for one `async for`."""

    def __init__(self, begin: Callable[[], Call]) -> None:
        self._begin = begin
        self._call: Call | None = None
        self._latest: Attempt | None = None

    def __aiter__(self) -> Attempts:
        """Begin the call."""
        if self._call is not None:
            raise RuntimeError("these attempts are used up: ask for `retry.attempts()` in each loop")
        self._call = self._begin()
        return self

    async def __anext__(self) -> Attempt:
        """Return the next attempt; the wait before it was in leaving the one before."""
        if self._call is None:
            raise RuntimeError("attempts are for `async for`")
        if self._latest is not None:
            if self._latest.again is None:
                raise RuntimeError("each attempt must be entered: `async with attempt:`")
            if not self._latest.again:
                raise StopAsyncIteration
        self._latest = Attempt(self._call)
        return self._latest


class Attempt:
    """One attempt: put the call into `async with attempt:`.

    Leaving it waits for the next attempt, or lets the error pass. With `on_result` in the policy set
    `attempt.result` in the block, and return it after the loop.

    Attributes:
        number: from 1.
        idempotency_key: the call's, the same in each of its attempts; None if the policy asks for none.
        result: what the attempt has brought, for `on_result`.
        again: whether another one follows; None until this one has ended.
    """

    result: Any

    def __init__(self, call: Call) -> None:
        self._call = call
        self._seconds: float | None = None
        self._timeout: AbstractAsyncContextManager[object] | None = None
        self.number = call.tries.number
        self.idempotency_key = call.key
        self.again: bool | None = None

    async def __aenter__(self) -> Self:
        """Begin the attempt."""
        self._seconds = self._call.limit()
        if self._seconds is not None:
            if self._seconds <= 0:  # the loop dawdled
                self.again = False
                late = self._call.timed_out(0.0)
                await self._call.again(late)
                raise late
            self._timeout = self._call.timeout(self._seconds)
            await self._timeout.__aenter__()
        self._call.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """End it; an error that is to be retried goes no further."""
        self._call.leave()
        self.again = False
        timed_out = None if self._timeout is None else await self._end_timeout(kind, error, trace)
        try:
            failure = timed_out or error
            if failure is None:
                self.again = await self._call.unsatisfied(getattr(self, "result", NO_RESULT))
            elif isinstance(failure, Exception):
                self.again = await self._call.again(failure)
            if timed_out is not None and not self.again:
                raise timed_out
            return failure is not None and self.again
        finally:
            timed_out = failure = None  # no cycle from a traceback to itself

    async def _end_timeout(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> AttemptTimedOut | None:
        """Return the error of an attempt that we cut off; one of the dependency's own is another."""
        if self._timeout is None or self._seconds is None:
            return None
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as own:
            if own is not error:
                return self._call.timed_out(self._seconds, own)
        return None
