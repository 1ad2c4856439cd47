"""The decision after each attempt: another one, when, or why not. No I/O, and time is handed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterns.resiliency.retry.backoff import Backoff
from patterns.resiliency.retry.events import AttemptTimedOut, Reason
from patterns.resiliency.retry.retry_after import asked_by

if TYPE_CHECKING:
    import random

    from patterns.resiliency.retry.policy import Policy

__all__ = ["Tries"]


class Tries:
    """The attempts of one call.

    Args:
        policy: what is repeated.
        rng: where jitter comes from.
        began: monotonic seconds when the call began.
        nested: whether a retry further out repeats it.

    Attributes:
        number: of the attempt under way, from 1.
    """

    __slots__ = ("_attempt_began", "_backoff", "_began", "_nested", "_policy", "_rng", "number")

    def __init__(self, policy: Policy, rng: random.Random, began: float, *, nested: bool) -> None:
        self._policy = policy
        self._rng = rng
        self._began = self._attempt_began = began
        self._nested = nested
        self._backoff: Backoff | None = None
        self.number = 1

    # --8<-- [start:decide]
    def failed(self, error: Exception, now: float, *, cancelling: bool = False) -> float | Reason:
        """Return seconds to wait before the next attempt, or why there is none."""
        policy = self._policy
        if isinstance(error, AttemptTimedOut) and self.late(now):
            return Reason.DEADLINE
        if not _all_in(error, policy.on) or _any_in(error, policy.ignore):
            return Reason.NOT_RETRIABLE
        if not policy.idempotent and not isinstance(error, policy.never_sent):
            return Reason.NOT_IDEMPOTENT  # a group neither: it is silent about those who were not refused
        return self._next(error, now, cancelling=cancelling)

    def returned(self, result: object, now: float, *, cancelling: bool = False) -> float | Reason | None:
        """Return None for a result to be content with; for another one the same as `failed`."""
        policy = self._policy
        if policy.on_result is None or not policy.on_result(result):
            return None
        if not policy.idempotent:
            return Reason.NOT_IDEMPOTENT
        return self._next(result, now, cancelling=cancelling)

    def _next(self, outcome: object, now: float, *, cancelling: bool) -> float | Reason:
        policy = self._policy
        if cancelling:
            return Reason.CANCELLED
        if self._nested:
            return Reason.NESTED
        if self.number >= policy.attempts:
            return Reason.ATTEMPTS
        self._backoff = self._backoff or Backoff(policy, self._rng)
        wait = self._backoff.next()
        asked = asked_by(outcome)
        if asked is not None:
            if asked > policy.max_retry_after:
                return Reason.RETRY_AFTER
            wait += asked  # on top: all who were told the same would come back in the same instant
        return Reason.DEADLINE if self.late(now + wait) else wait

    def late(self, now: float) -> bool:
        """Whether no attempt may begin at `now`."""
        deadline = self._policy.deadline
        return deadline is not None and now - self._began >= deadline

    # --8<-- [end:decide]

    def begin(self, now: float) -> None:
        """The next attempt begins."""
        self.number += 1
        self._attempt_began = now

    def limit(self, now: float) -> float | None:
        """Return the seconds that an attempt may take that begins at `now`, None without a limit."""
        policy = self._policy
        if policy.deadline is None:
            return policy.attempt_timeout
        left = policy.deadline - (now - self._began)
        return left if policy.attempt_timeout is None else min(left, policy.attempt_timeout)

    def took(self, now: float) -> tuple[float, float]:
        """Return the seconds since the call and since this attempt began."""
        return now - self._began, now - self._attempt_began


def _all_in(error: Exception, kinds: tuple[type[Exception], ...]) -> bool:
    """Whether this is such an error, or a group of nothing else."""
    if isinstance(error, ExceptionGroup):
        return error.split(kinds)[1] is None
    return isinstance(error, kinds)


def _any_in(error: Exception, kinds: tuple[type[Exception], ...]) -> bool:
    """Whether this is such an error, or a group that holds one."""
    if isinstance(error, ExceptionGroup):
        return error.subgroup(kinds) is not None
    return isinstance(error, kinds)
