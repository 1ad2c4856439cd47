"""How a projector goes on, and what it does with a fact that it cannot apply."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from patterns.bounds import number, whole

__all__ = ["OnPoison", "Policy"]

_SHORTEST = 0.001
_LONGEST = 86_400


class OnPoison(Enum):
    """What becomes of a fact that cannot be applied."""

    CONTINUE = "continue"
    """It is parked, and with it what follows of the same aggregate; all others go on."""
    PAUSE = "pause"
    """Its partition waits until somebody mends `apply` and starts anew."""


# --8<-- [start:policy]
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a projector goes on.

    Attributes:
        on_poison: what becomes of a fact that cannot be applied.
        attempts: how often it is tried before.
        retry_pause: seconds between two attempts.
        batch: most facts applied together.
        poll: seconds until an empty log is looked at again.
        back_off: seconds until log or model is tried again after it could not be reached.
    """

    on_poison: OnPoison
    attempts: int = 5
    retry_pause: float = 0.2
    batch: int = 100
    poll: float = 0.05
    back_off: float = 1.0
    # --8<-- [end:policy]

    def __post_init__(self) -> None:
        if not isinstance(self.on_poison, OnPoison):
            raise ValueError(f"on_poison must be an OnPoison, got {self.on_poison!r}")
        whole("attempts", self.attempts, at_least=1)
        whole("batch", self.batch, at_least=1, at_most=10_000)
        number("retry_pause", self.retry_pause, at_least=0, at_most=_LONGEST)
        for name in ("poll", "back_off"):
            number(name, getattr(self, name), at_least=_SHORTEST, at_most=_LONGEST)
