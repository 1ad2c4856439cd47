"""Whether a task is being cancelled, though what it did ended with another error.

A guard that answers for a failed call must not answer a caller who was cancelled: drivers and careless code
catch the cancellation and raise something else. The task's own count of cancellations does not settle it,
since before Python 3.13 a TaskGroup that failed leaves it too high for as long as the task lives.

>>> before = cancels()
>>> overtaken(ConnectionError("reset"), before)
False

Source: CPython, issue 116720 (TaskGroup and `cancelling()`).
"""

from __future__ import annotations

from asyncio import CancelledError, current_task

__all__ = ["cancels", "made_of_cancellation", "overtaken"]


def cancels() -> int:
    """Return how often this task has been told to end, as far as asyncio knows; 0 outside a task.

    Above 0 it says nothing by itself: see the module.
    """
    try:
        task = current_task()
    except RuntimeError:  # no event loop
        return 0
    return 0 if task is None else task.cancelling()


def made_of_cancellation(error: BaseException | None) -> bool:
    """Whether somebody caught a cancellation and raised this in its place."""
    while error is not None and not isinstance(error, CancelledError):
        if isinstance(error, BaseExceptionGroup):
            return all(map(made_of_cancellation, error.exceptions))  # who fails by himself cancels the others
        if isinstance(error, TimeoutError) and isinstance(error.__cause__, CancelledError):
            return False  # the cancellation was the time-out's own
        error = error.__context__
    return error is not None


def overtaken(error: BaseException, before: int) -> bool:
    """Whether `error` is what became of a cancellation since `cancels()` was `before`."""
    return cancels() > before and made_of_cancellation(error)
