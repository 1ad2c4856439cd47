"""How long a loaded value is good, and what loads may cost."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.bounds import whole
from patterns.cache.cache_aside.policy import ReadPolicy

__all__ = ["Policy"]


# --8<-- [start:policy]
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(ReadPolicy):
    """How long a value is good, and what a load may cost: see ReadPolicy for the rest.

    Attributes:
        batch: most keys in one call of `load_all`, and in one exchange with Redis.
    """

    batch: int = 100
    # --8<-- [end:policy]

    def __post_init__(self) -> None:
        ReadPolicy.__post_init__(self)  # `super()` does not know a class that slots have made anew
        whole("batch", self.batch, at_least=1, at_most=10_000)
