"""When a circuit breaker opens, how long it stays open, and what closes it.

Source: resilience4j, "CircuitBreaker: create and configure", for names and defaults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from patterns.resiliency.circuit_breaker.window import CountBased, TimeBased

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Policy", "verdict_on"]

_SHORTEST = 0.001


# --8<-- [start:policy]
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """When to open, how long to stay open, how to close again.

    Defaults are those of resilience4j, but for two: `record`, which there is every exception, has none; and
    silent probes are overruled after a minute rather than never.

    Attributes:
        record: exceptions that are failures of the dependency, by the classes that your client raises.
        ignore: exceptions that say nothing about it, also when `record` lists a base class of theirs.
        record_result: says of a returned value whether it is a failure.
        failure_rate_threshold: share of failures that opens it, in (0, 1].
        slow_call_rate_threshold: share of slow calls that opens it, in (0, 1].
        slow_call_duration: seconds from which a call is slow.
        sliding_window: `CountBased(size)` or `TimeBased(seconds)`.
        minimum_calls: outcomes in the window before any rate is believed.
        wait_in_open: seconds to refuse calls before probing.
        permitted_calls_in_half_open: probes whose results decide.
        max_wait_in_half_open: seconds that probes may be out at a stretch before that means "still down".
    """

    record: tuple[type[Exception], ...]
    ignore: tuple[type[Exception], ...] = ()
    record_result: Callable[[Any], bool] | None = None
    failure_rate_threshold: float = 0.5
    slow_call_rate_threshold: float = 1.0
    slow_call_duration: float = 60.0
    sliding_window: CountBased | TimeBased = CountBased(100)  # noqa: RUF009 - it is frozen
    minimum_calls: int = 100
    wait_in_open: float = 60.0
    permitted_calls_in_half_open: int = 10
    max_wait_in_half_open: float = 60.0
    # --8<-- [end:policy]

    def __post_init__(self) -> None:
        for field in ("record", "ignore"):
            kinds = getattr(self, field)
            if not isinstance(kinds, tuple) or not all(
                isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds
            ):
                raise ValueError(f"{field} must be a tuple of Exception classes, got {kinds!r}")
        for field in ("failure_rate_threshold", "slow_call_rate_threshold"):
            if not 0 < _number(self, field) <= 1:
                raise ValueError(f"{field} must be in (0, 1], got {getattr(self, field)!r}")
        for field in ("slow_call_duration", "wait_in_open", "max_wait_in_half_open"):
            if not _number(self, field) >= _SHORTEST:
                raise ValueError(f"{field} must be >= {_SHORTEST} seconds, got {getattr(self, field)!r}")
        if self.wait_in_open == math.inf:
            raise ValueError("wait_in_open must be finite, got inf: it would never probe; see force_open()")
        for field in ("minimum_calls", "permitted_calls_in_half_open"):
            count = getattr(self, field)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(f"{field} must be a whole number >= 1, got {count!r}")
        if not isinstance(self.sliding_window, CountBased | TimeBased):
            raise ValueError(f"sliding_window must be CountBased or TimeBased, got {self.sliding_window!r}")
        size = self.sliding_window.size if isinstance(self.sliding_window, CountBased) else math.inf
        if self.minimum_calls > size:
            raise ValueError(
                f"minimum_calls must be <= the window's size {size}, got {self.minimum_calls}: "
                "it could never open"
            )


def _number(policy: Policy, field: str) -> float:
    value = getattr(policy, field)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{field} must be a number, got {value!r}")
    return value


def verdict_on(error: BaseException, policy: Policy) -> bool | None:
    """Return True for a failure, False for an answer, None for what says nothing about the dependency.

    An exception group is a failure if it holds one.
    """
    failed = _is(error, policy.record)
    if failed and isinstance(error, ExceptionGroup):
        return True
    if not isinstance(error, Exception) or _is(error, policy.ignore):
        return None
    return failed


def _is(error: BaseException, kinds: tuple[type[Exception], ...]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(kinds) is not None
    return isinstance(error, kinds)
