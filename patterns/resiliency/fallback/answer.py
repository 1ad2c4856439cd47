"""What a caller gets from a fallback, what it may have to catch, and what the fallback tells of itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from patterns.events import Event

__all__ = [
    "LEVEL_ERRORS",
    "PRIMARY",
    "AllLevelsFailed",
    "Answer",
    "CopyNotKept",
    "Exercised",
    "FallbackExhausted",
    "FallbackUsed",
    "LevelFailed",
    "LevelFull",
    "LevelTimedOut",
    "NoCopy",
    "ResultRefused",
    "Stale",
    "TooOld",
]

T = TypeVar("T")

PRIMARY = "primary"
"""The `source` of an answer that is no substitute."""


class Answer(NamedTuple, Generic[T]):
    """A value, and where it comes from.

    Attributes:
        value: what the primary, or the level that stood in for it, returned.
        source: "primary", or the name of the level.
        degraded: True for a substitute.
        age: seconds since a stale value was true; None for what is not a copy.
        errors: what failed before: the primary's error first, then each level's; in an exercise the levels'
            alone.
    """

    value: T
    source: str
    degraded: bool
    age: float | None = None
    errors: tuple[Exception, ...] = ()


@dataclass(frozen=True, slots=True)
class Stale(Generic[T]):
    """What a level returns that has only a copy.

    Attributes:
        value: the copy.
        age: seconds since it was true, at least.
    """

    value: T
    age: float

    def __post_init__(self) -> None:
        if not 0 <= self.age < math.inf:
            raise ValueError(f"age must be finite seconds >= 0, got {self.age!r}")


# Errors


class LevelFull(Exception):
    """A level has as many calls as it may.

    Attributes:
        level: its name.
        limit: how many.
    """

    def __init__(self, level: str, limit: int) -> None:
        super().__init__(level, limit)
        self.level, self.limit = level, limit

    def __str__(self) -> str:
        return f"{self.level!r} already runs {self.limit} calls, its limit"


class LevelTimedOut(TimeoutError):
    """A level, or the primary, did not answer in its time, or there was none left to begin in.

    Attributes:
        level: its name.
        seconds: what it had; 0 if it was not begun.
    """

    def __init__(self, level: str, seconds: float) -> None:
        super().__init__(level, seconds)
        self.level, self.seconds = level, seconds

    def __str__(self) -> str:
        if not self.seconds:
            return f"{self.level!r} was not begun: no time was left"
        return f"{self.level!r} did not answer within {self.seconds:g} s"


class TooOld(Exception):
    """A level has a value that may not be served.

    Attributes:
        level: its name.
        age: seconds; None if the level did not say.
        max_age: seconds that were allowed.
    """

    def __init__(self, level: str, age: float | None, max_age: float) -> None:
        super().__init__(level, age, max_age)
        self.level, self.age, self.max_age = level, age, max_age

    def __str__(self) -> str:
        age = "of unknown age: return Stale(value, age)" if self.age is None else f"{self.age:g} s old"
        return f"the value of {self.level!r} is {age}; at most {self.max_age:g} s are allowed"


class NoCopy(Exception):
    """A level that keeps copies has none; a level of your own may raise it, too.

    Attributes:
        reason: why; without the value.
    """

    def __init__(self, reason: str = "no copy is kept") -> None:
        super().__init__(reason)
        self.reason = reason


class ResultRefused(Exception):
    """The primary returned what `on_result` counts as a failure.

    Attributes:
        result: what it returned.
    """

    def __init__(self, result: object) -> None:
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        return f"the primary returned a {type(self.result).__name__} that counts as a failure"


# They come of the levels themselves, not of what a caller wanted: the next level always may run.
LEVEL_ERRORS = (LevelFull, LevelTimedOut, TooOld, NoCopy, ResultRefused)


class AllLevelsFailed(ExceptionGroup[Exception]):
    """Neither the primary nor any level answered.

    `exceptions` begins with the primary's own error, which is also `__cause__`; those of the levels that were
    tried follow in order. `except* ConnectionError` picks out of it.
    """

    @property
    def primary(self) -> Exception:
        """The primary's own error."""
        return self.exceptions[0]


# Events


@dataclass(frozen=True, slots=True)
class FallbackUsed(Event):
    """A level stood in for the primary, which failed with `reason`."""

    level: str
    reason: str
    age_seconds: float | None


@dataclass(frozen=True, slots=True)
class LevelFailed(Event):
    """A level was tried and did not answer; in an exercise nobody noticed."""

    level: str
    error: str
    exercise: bool


@dataclass(frozen=True, slots=True)
class FallbackExhausted(Event):
    """Nothing answered: the caller got AllLevelsFailed."""

    reason: str
    levels_tried: int


@dataclass(frozen=True, slots=True)
class Exercised(Event):
    """A call took the fallback path though nothing had failed.

    `level` is where it began; `passed` is False where that level did not answer.
    """

    level: str
    passed: bool
    age_seconds: float | None


@dataclass(frozen=True, slots=True)
class CopyNotKept(Event):
    """The primary answered, and its answer could not be kept for later."""

    level: str
    error: str
