"""What a gather gives back, and what it raises when that is too little."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CanaryFailed", "Gathered", "LeafMissing", "NotEnough", "NotIdempotent", "Why", "Withdrawn"]

T = TypeVar("T")


class Why(Enum):
    """Why a leaf that raised nothing is missing."""

    DEADLINE = "deadline"  # the time was over
    ENOUGH = "enough"  # `enough` others had answered
    FAIL_FAST = "fail_fast"  # another leaf failed
    HOPELESS = "hopeless"  # so many failed that `min_results` could not be reached
    STUCK = "stuck"  # too many calls that were given up still run there
    CANCELLED = "cancelled"  # the leaf cancelled itself


class LeafMissing(Exception):
    """A leaf gave neither a value nor an error.

    Attributes:
        leaf: its name.
        why: what ended the wait.
        asked: whether it had been asked at all.
    """

    def __init__(self, leaf: str, why: Why, asked: bool) -> None:
        super().__init__(leaf, why, asked)
        self.leaf, self.why, self.asked = leaf, why, asked

    def __str__(self) -> str:
        return f"leaf {self.leaf!r} {'did not answer' if self.asked else 'was not asked'} ({self.why.value})"


class Withdrawn(Exception):
    """A replica raises it for the copy of a tied request that it dropped because the other one has begun."""


# --8<-- [start:gathered]
@dataclass(frozen=True, slots=True)
class Gathered(Generic[T]):
    """The answers, and what they lack. Everything is in the order of the leaves, not of arrival.

    Attributes:
        values: what each leaf that answered in time has said.
        errors: for each other leaf what it raised, or a LeafMissing.
        hedged: leaves that were asked a second time.
        abandoned: leaves at which a call did not let itself be cancelled, and still runs.
        requests: calls that were made, hedges included.
        seconds: how long it took.
    """

    values: Mapping[str, T]
    errors: Mapping[str, Exception] = field(default_factory=dict)
    hedged: tuple[str, ...] = ()
    abandoned: tuple[str, ...] = ()
    requests: int = 0
    seconds: float = 0.0

    @property
    def missing(self) -> tuple[str, ...]:
        """The leaves without a value: the keys of `errors`."""
        return tuple(self.errors)

    @property
    def complete(self) -> bool:
        """Whether every leaf has answered."""
        return not self.errors

    # --8<-- [end:gathered]


class NotEnough(Exception):
    """Fewer leaves answered than the policy asks for, or one failed under `fail_fast`.

    Attributes:
        name: of the ScatterGather.
        wanted: how many answers there had to be.
        gathered: what there was, with the causes in `errors`.
    """

    def __init__(self, name: str, wanted: int, gathered: Gathered[Any]) -> None:
        super().__init__(name, wanted, gathered)
        self.name, self.wanted, self.gathered = name, wanted, gathered

    def __str__(self) -> str:
        errors = self.gathered.errors
        shown = [f"{leaf}: {_words(error)}" for leaf, error in list(errors.items())[:5]]
        rest = [f"and {len(errors) - 5} more"] if len(errors) > 5 else []
        return (
            f"{self.name!r} got {len(self.gathered.values)} answers, wanted {self.wanted} "
            f"({'; '.join(shown + rest)})"
        )


class CanaryFailed(Exception):
    """The first leaf failed on this request, or was too slow with it, so the others were not asked.

    Attributes:
        name: of the ScatterGather.
        leaf: the one that was asked.
        error: what it raised, or a LeafMissing.
    """

    def __init__(self, name: str, leaf: str, error: Exception) -> None:
        super().__init__(name, leaf, error)
        self.name, self.leaf, self.error = name, leaf, error

    def __str__(self) -> str:
        return f"{self.name!r} asked only {self.leaf!r}, which failed: {_words(self.error)}"


class NotIdempotent(ValueError):
    """Hedging was asked for where the policy does not say that a request may be carried out twice."""


def _words(error: Exception) -> str:
    try:
        said = str(error)[:200]
    except Exception:  # its own __str__ fails
        said = ""
    return f"{type(error).__name__}: {said}".removesuffix(": ")
