"""When a fallback stands in, how long it may take, and how often it is tried without need.

Sources: Polly, `FallbackStrategyOptions.ShouldHandle`; Hystrix, `fallback.isolation.semaphore`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from patterns.resiliency.fallback.answer import LEVEL_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BUGS", "Policy", "Trigger", "check_count", "check_kinds", "check_seconds", "check_share"]

BUGS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    NotImplementedError,
    RecursionError,
    StopAsyncIteration,
    SyntaxError,
    TypeError,
)
"""What no outage raises: a base class such as Exception or RuntimeError in `on` does not include them."""


# --8<-- [start:trigger]
class Trigger:
    """Which errors lead to the next level.

    Args:
        kinds: exception classes; one of BUGS is included only by its own name or that of a subclass.
    """

    __slots__ = ("_broad", "_groups", "_narrow", "kinds")

    def __init__(self, kinds: tuple[type[Exception], ...]) -> None:
        self.kinds = kinds
        broad = [kind for kind in kinds if any(issubclass(bug, kind) and bug is not kind for bug in BUGS)]
        self._broad = tuple(broad)
        self._narrow = (*LEVEL_ERRORS, *(kind for kind in kinds if kind not in broad))
        self._groups = tuple(kind for kind in kinds if issubclass(kind, BaseExceptionGroup))

    def __call__(self, error: BaseException) -> bool:
        """Return whether `error` leads on; a group does if it is listed, or if all that it holds does."""
        if isinstance(error, BaseExceptionGroup):
            if isinstance(error, self._groups):
                return True
            return isinstance(error, ExceptionGroup) and all(map(self, error.exceptions))
        if isinstance(error, self._narrow):
            return True
        return isinstance(error, self._broad) and not isinstance(error, BUGS)


# --8<-- [end:trigger]


# --8<-- [start:policy]
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """When to stand in for the primary, and for how long to try.

    Attributes:
        on: exceptions of the primary that lead to the levels, by the classes that your client raises.
        on_result: says of a returned value whether it counts as a failure.
        primary_timeout: seconds after which the primary is cut off; None leaves that to the primary.
        deadline: seconds for all levels together, from the primary's failure; None sets no limit.
        exercise: share of calls that take the levels though the primary is well, in [0, 1].
    """

    on: tuple[type[Exception], ...]
    on_result: Callable[[Any], bool] | None = None
    primary_timeout: float | None = None
    deadline: float | None = None
    exercise: float = 0.0
    # --8<-- [end:policy]
    triggers: Trigger = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_kinds("on", self.on)
        if not self.on and self.on_result is None and self.primary_timeout is None:
            raise ValueError("on must name an exception, got (): nothing would ever lead to a level")
        judge: object = self.on_result
        if judge is not None and not callable(judge):
            raise ValueError(f"on_result must be a function of the result, got {judge!r}")
        check_seconds("primary_timeout", self.primary_timeout)
        check_seconds("deadline", self.deadline)
        check_share("exercise", self.exercise)
        object.__setattr__(self, "triggers", Trigger(self.on))


def check_kinds(name: str, kinds: object) -> None:
    """Raise ValueError unless `kinds` is a tuple of Exception classes."""
    if not isinstance(kinds, tuple) or not all(
        isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds
    ):
        raise ValueError(f"{name} must be a tuple of Exception classes, got {kinds!r}")


def check_seconds(name: str, seconds: object, *, least: float = 0.001) -> None:
    """Raise ValueError unless `seconds` is None or a finite number from `least` on."""
    if seconds is not None and not least <= _number(seconds) < math.inf:
        raise ValueError(f"{name} must be finite seconds >= {least:g}, or None, got {seconds!r}")


def check_share(name: str, share: object) -> None:
    """Raise ValueError unless `share` is a number in [0, 1]."""
    if not 0 <= _number(share) <= 1:
        raise ValueError(f"{name} must be a share in [0, 1], got {share!r}")


def check_count(name: str, count: object) -> None:
    """Raise ValueError unless `count` is a whole number from 1 on."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {count!r}")


def _number(value: object) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
