"""What is repeated, how often, and how long between.

Sources: AWS Builders' Library, "Timeouts, retries, and backoff with jitter"; the AWS SDKs' standard mode (3
attempts, 20 s at most between two); Polly 8 and resilience4j (names).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from patterns.bounds import exceptions, number, whole
from patterns.resiliency.retry.events import AttemptTimedOut

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Jitter", "Policy"]


class Jitter(Enum):
    """How chance spreads the waits; `d` is min(cap, base * 2^n) after failure n, counted from 0."""

    FULL = "full"
    """Anything from 0 to d: spreads most."""
    EQUAL = "equal"
    """Anything from d/2 to d: never at once."""
    DECORRELATED = "decorrelated"
    """Anything from base to three times the wait before, at most cap."""
    NONE = "none"
    """Exactly d: callers who failed together come back together."""


# --8<-- [start:policy]
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is repeated, how often, and how long between.

    Attributes:
        on: errors worth another attempt, by the classes that your client raises.
        idempotent: True if doing it twice is doing it once; False if not, so that only errors in
            `never_sent` are retried; "key" if the callee sends the idempotency key of the call along.
        ignore: errors never retried, also when `on` lists a base class of theirs.
        never_sent: errors that prove that the request did not leave.
        on_result: says of a returned value whether it is worth another attempt.
        attempts: calls at most, the first one included.
        base: seconds of the first wait, before jitter.
        cap: seconds of the longest wait, before jitter.
        jitter: how chance spreads the waits.
        deadline: seconds for the whole call, its waits included.
        attempt_timeout: seconds for one attempt.
        max_retry_after: longest pause, in seconds, that the dependency may ask for.
        nested: retry also inside another retry's attempt; their attempts multiply.
    """

    on: tuple[type[Exception], ...]
    idempotent: bool | Literal["key"]
    ignore: tuple[type[Exception], ...] = ()
    never_sent: tuple[type[Exception], ...] = (ConnectionRefusedError,)
    on_result: Callable[[Any], bool] | None = None
    attempts: int = 3
    base: float = 0.1
    cap: float = 20.0
    jitter: Jitter = Jitter.FULL
    deadline: float | None = None
    attempt_timeout: float | None = None
    max_retry_after: float = 60.0
    nested: bool = False
    # --8<-- [end:policy]

    def __post_init__(self) -> None:
        for field in ("on", "ignore", "never_sent"):
            exceptions(field, getattr(self, field))
        if not isinstance(self.idempotent, bool) and self.idempotent != "key":
            raise ValueError(f"idempotent must be True, False or 'key', got {self.idempotent!r}")
        if not isinstance(self.nested, bool):
            raise ValueError(f"nested must be True or False, got {self.nested!r}")
        if not isinstance(self.jitter, Jitter):
            raise ValueError(f"jitter must be a Jitter, got {self.jitter!r}")
        if self.on_result is not None and not callable(self.on_result):
            raise ValueError(f"on_result must be callable or None, got {self.on_result!r}")
        whole("attempts", self.attempts, at_least=1)
        number("base", self.base, at_least=0)
        number("cap", self.cap, above=0, at_least=self.base)
        number("max_retry_after", self.max_retry_after, at_least=0)
        if self.deadline is not None:
            number("deadline", self.deadline, above=0)
        if self.attempt_timeout is not None:
            self._check_attempt_timeout(self.attempt_timeout)

    def _check_attempt_timeout(self, seconds: float) -> None:
        number("attempt_timeout", seconds, above=0)
        if self.deadline is not None and seconds >= self.deadline:
            raise ValueError(
                f"attempt_timeout must be < deadline {self.deadline}, got {seconds}: it would never act"
            )
        if not issubclass(AttemptTimedOut, self.on) or issubclass(AttemptTimedOut, self.ignore):
            raise ValueError(
                f"attempt_timeout must be None unless `on` lists TimeoutError, got {seconds}: "
                "an attempt that took too long would not be retried"
            )
