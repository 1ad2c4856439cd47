"""One call while it lasts: its attempts, its mark in the context, and what is told of it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID

from patterns.cancellation import cancels, overtaken
from patterns.events import emit, ignore
from patterns.resiliency.retry.events import (
    AttemptFailed,
    AttemptTimedOut,
    CallSucceeded,
    Reason,
    RetryGaveUp,
    RetryScheduled,
)
from patterns.resiliency.retry.nesting import InnerMark, Mark, around
from patterns.resiliency.retry.tries import Tries

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from patterns.resiliency.retry import Retry

__all__ = ["NO_RESULT", "Call"]

NO_RESULT = object()
"""What a block returns that set no `attempt.result`: there is nothing to ask `on_result` about."""


class Call:
    """One call that is more than plain.

    Args:
        retry: whose call it is.
        mark: the mark of its first attempt, if that was a plain one.
        key: the idempotency key; None makes one if the policy asks for it.

    Attributes:
        key: the idempotency key, None if the policy asks for none.
        tries: its attempts.
    """

    __slots__ = ("_cancels", "_mark", "_now", "_outer", "_retry", "key", "tries")

    def __init__(self, retry: Retry, mark: Mark | None = None, key: str | None = None) -> None:
        self._retry = retry
        self._now = retry.clock.monotonic
        self._outer: Mark | None = None
        policy = retry.policy
        repeated = [each.retry for each in around() if each.repeats] if mark is None else []
        if policy.idempotent == "key" and key is None:
            _check_that_keys_last(retry, repeated)
            key = str(UUID(int=retry.rng.getrandbits(128), version=4))
        self.key = key
        nested = bool(repeated) and not policy.nested
        self._mark = mark or InnerMark(retry, key, repeats=policy.attempts > 1 and not nested)
        self._cancels = cancels()
        self.tries = Tries(policy, retry.rng, self._now(), nested=nested)

    def enter(self) -> None:
        """Mark what follows as part of this call."""
        if isinstance(self._mark, InnerMark):
            self._outer = self._mark.begin()

    def leave(self) -> None:
        """End the mark, also for tasks that go on."""
        if isinstance(self._mark, InnerMark):
            self._mark.end(self._outer)

    def limit(self) -> float | None:
        """Return the seconds that the next attempt may take."""
        return self.tries.limit(self._now())

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Return the block that ends an attempt after `seconds`."""
        return self._retry.clock.timeout(seconds)

    def timed_out(self, seconds: float, cause: TimeoutError | None = None) -> AttemptTimedOut:
        """Return the error of the attempt that `timeout` has just ended, or of one that had no time left."""
        error = AttemptTimedOut(self._retry.name, self.tries.number, seconds)
        error.__cause__ = cause
        return error

    async def again(self, error: Exception) -> bool:
        """Wait for the next attempt, or return False: the error is the caller's."""
        decision = self.tries.failed(error, self._now(), cancelling=overtaken(error, 0))
        reason = await self._follow(decision, type(error).__name__)
        if reason is not None:
            self._note(error, reason)
        return reason is None

    async def unsatisfied(self, result: object) -> bool:
        """Wait for the next attempt, or return False: the result is the caller's."""
        retry = self._retry
        decision = None
        if retry.policy.on_result is not None and result is not NO_RESULT:
            decision = self.tries.returned(result, self._now(), cancelling=cancels() > self._cancels)
        if decision is not None:
            return await self._follow(decision, "result") is None
        if retry.budget is not None and not self._is_part_of_another():
            retry.budget.deposit()
        if retry.on_event is not ignore:
            took, _ = self.tries.took(self._now())
            emit(retry.on_event, CallSucceeded(retry.name, self.tries.number, took))
        return False

    # --8<-- [start:follow]
    async def _follow(self, decision: float | Reason, error: str) -> Reason | None:
        """Tell of a failure; wait and return None, or return why there is no further attempt."""
        retry, tries, listener = self._retry, self.tries, self._retry.on_event
        if listener is not ignore:
            emit(listener, AttemptFailed(retry.name, tries.number, error, tries.took(self._now())[1]))
        reason = decision if isinstance(decision, Reason) else await self._wait(decision, error)
        if reason is not None and listener is not ignore:
            took, _ = tries.took(self._now())
            emit(listener, RetryGaveUp(retry.name, reason, tries.number, error, took))
        return reason

    async def _wait(self, seconds: float, error: str) -> Reason | None:
        """Take leave for one retry and wait; leave that is not used goes back."""
        retry, tries, budget = self._retry, self.tries, self._retry.budget
        if budget is not None and not await budget.withdraw():
            return Reason.BUDGET
        used = False
        try:
            if tries.late(self._now() + seconds):  # asking for leave took its time
                return Reason.DEADLINE
            if retry.on_event is not ignore:
                emit(retry.on_event, RetryScheduled(retry.name, tries.number + 1, seconds, error))
            await retry.clock.sleep(seconds)
            now = self._now()
            if tries.late(now):  # the event loop was busy
                return Reason.DEADLINE
            tries.begin(now)
            used = True
            return None
        finally:
            if budget is not None and not used:
                budget.give_back()

    # --8<-- [end:follow]

    def _is_part_of_another(self) -> bool:
        """Whether a call around this one tells the same budget of its success."""
        budget = self._retry.budget
        return any(each is not self._mark and each.retry.budget is budget for each in around())

    def _note(self, error: Exception, reason: Reason) -> None:
        number = self.tries.number
        if number == 1 and reason is Reason.NOT_RETRIABLE:
            return
        note = f"retry {self._retry.name!r} gave up after attempt {number}: {reason.value}"
        with suppress(Exception):  # some errors are frozen, and a note must not replace the error
            if note not in getattr(error, "__notes__", ()):  # an error object may be raised many times
                error.add_note(note)


def _check_that_keys_last(retry: Retry, repeated: list[Retry]) -> None:
    """Refuse to make a key that would be another one when a call further out is repeated."""
    for outer in repeated:
        if outer.policy.idempotent:
            raise RuntimeError(
                f"retry {retry.name!r} would make a new idempotency key in each attempt of {outer.name!r} "
                "around it: give it one that lasts, `attempts(key=...)`, or let the outer one make the key "
                "and this one have idempotent=True"
            )
