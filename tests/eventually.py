"""Wait for something to become true: poll with a deadline, and say what was waited for.

No test sleeps for a fixed time. `await eventually(lambda: breaker.state is State.OPEN, within=1)` returns
as soon as the condition holds, returns the value that it gave, and fails with its source if it never does.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["eventually", "eventually_now"]

T = TypeVar("T")
_POLL = 0.005


@overload
async def eventually(
    condition: Callable[[], Awaitable[T]], *, within: float, what: str | None = None
) -> T: ...
@overload
async def eventually(condition: Callable[[], T], *, within: float, what: str | None = None) -> T: ...
async def eventually(condition: Callable[[], Any], *, within: float, what: str | None = None) -> Any:
    """Return the first true value of `condition()`, asked again and again; it may be a coroutine function.

    Args:
        condition: a false value, or an AssertionError, means "not yet".
        within: seconds; the deadline bounds a condition that hangs, too.
        what: words for the failure message; the default is the source of `condition`.

    Raises:
        AssertionError: it did not hold in time.
    """
    last: object = "it never answered"
    try:
        async with asyncio.timeout(within) as deadline:
            while not deadline.expired():  # a condition may swallow the cancellation, which comes once
                try:
                    value = condition()
                    result = await value if inspect.isawaitable(value) else value
                    if result:
                        return result
                    last = result
                except AssertionError as error:
                    last = error
                await asyncio.sleep(_POLL)
            raise TimeoutError
    except TimeoutError:
        raise AssertionError(_failure(condition, within, what, last)) from None


def eventually_now(condition: Callable[[], T], *, within: float, what: str | None = None) -> T:
    """Do what `eventually` does in code that is not asynchronous; a condition that hangs is not cut short."""
    deadline = time.monotonic() + within
    last: object
    while True:
        try:
            result = condition()
            if result:
                return result
            last = result
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(_failure(condition, within, what, last))
        time.sleep(_POLL)


def _failure(condition: Callable[[], object], within: float, what: str | None, last: object) -> str:
    if what is None:
        try:
            what = " ".join(inspect.getsource(condition).split())
        except (OSError, TypeError):
            what = repr(condition)
    return f"not within {within:g} s: {what}\nlast answer: {last!r}"
