"""Whether this code runs inside an attempt that somebody else will repeat.

A mark is left in the context of each call, where tasks begun inside an attempt find it too. It is over when
the call is: a task that outlives the call is then nobody's inner layer.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterns.resiliency.retry import Retry

__all__ = ["MARK", "InnerMark", "Mark", "around", "current_key"]


class Mark:
    """One call that may be repeated.

    Attributes:
        over: whether it has ended and was inside no other: what the quick path of a call asks.
        retry: whose call it is.
    """

    __slots__ = ("over", "retry")
    over: bool
    retry: Retry
    outer: Mark | None = None
    key: str | None = None
    repeats: bool = True

    @property
    def ended(self) -> bool:
        """Whether the call is over."""
        return self.over


class InnerMark(Mark):
    """One that has a key, or may be inside another.

    Args:
        retry: whose call it is.
        key: the idempotency key, if it has one.
        repeats: False if there will be one attempt only.
    """

    __slots__ = ("_ended", "key", "outer", "repeats")

    def __init__(self, retry: Retry, key: str | None, *, repeats: bool) -> None:
        self.over = False
        self.retry = retry
        self.key = key
        self.repeats = repeats
        self._ended = True

    @property
    def ended(self) -> bool:
        """Whether no attempt of the call is under way."""
        return self._ended

    def begin(self) -> Mark | None:
        """Mark this context, and return what it was marked with before."""
        before = MARK.get()
        self.outer = _live(before)
        self._ended = False
        MARK.set(self)
        return before

    def end(self, before: Mark | None) -> None:
        """Mark this context as before, and let what is left of this call see past it."""
        MARK.set(before)
        self._ended = True
        self.outer = _live(self.outer)  # or chains of tasks that begin each other would grow for ever


MARK: ContextVar[Mark | None] = ContextVar("retry", default=None)


def around() -> Iterator[Mark]:
    """Yield the calls inside whose attempts this code runs, the innermost first."""
    mark = _live(MARK.get())
    while mark is not None:
        yield mark
        mark = _live(mark.outer)


def current_key() -> str | None:
    """Return the idempotency key of the call inside which this code runs, None if it has none.

    It is the same in all attempts of a call, and in the tasks that they begin.
    """
    return next((mark.key for mark in around() if mark.key is not None), None)


def _live(mark: Mark | None) -> Mark | None:
    while mark is not None and mark.ended:
        mark = mark.outer
    return mark
