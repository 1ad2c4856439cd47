"""Whether a task is being cancelled, though its attempt ended with another error."""

from __future__ import annotations

from asyncio import CancelledError, current_task

__all__ = ["cancels", "made_of_cancellation"]


def cancels() -> int:
    """Return how often this task has been told to end, as far as asyncio knows.

    Before Python 3.13 a TaskGroup that fails leaves the number too high, for as long as the task lives
    (CPython, issue 116720): by itself it says nothing.
    """
    task = current_task()
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
