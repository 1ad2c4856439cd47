"""How long a value is good, from when on it is refreshed, and what loads may cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from patterns.bounds import number, whole
from patterns.cache import read_through
from patterns.cache.refresh_ahead.timed import HEAD_BYTES

if TYPE_CHECKING:
    import random

__all__ = ["Policy"]

_SHORTEST = 0.001  # seconds: Redis counts milliseconds
_LONGEST = 1_000_000_000


# --8<-- [start:policy]
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long a value is good, from when on it is refreshed, and what loads may cost.

    Either `refresh_after` or `beta` must be given.

    Attributes:
        ttl: seconds after which a value is gone, whatever became of its refreshes.
        negative_ttl: the same for None, "there is no such thing"; 0 keeps none.
        max_loads: most loads at once in this process.
        max_refreshes: how many of them may be refreshes; fewer, so that a reader who waits has a place.
        refresh_after: share of `ttl` after which a read begins a refresh, in (jitter, 1).
        beta: a read begins a refresh by chance (XFetch), the sooner the slower the load was; 1 fits most.
        refresh_pause: seconds between two attempts to refresh one key, in all processes; no longer than the
            last part of a life, or one failure would be the end of it.
        jitter: how much shorter than `ttl` a life may be, as a share of it, in [0, 1).
        lease: most seconds that a load may take.
        poll: seconds between two looks of a reader that waits at a load of another process.
        max_bytes: most bytes of one encoded value.
        timeout: most seconds that one exchange with Redis may take.
        back_off: most seconds for which Redis is left alone after it did not answer.
    """

    ttl: float
    negative_ttl: float
    max_loads: int
    max_refreshes: int
    refresh_after: float | None = None
    beta: float | None = None
    refresh_pause: float = 1.0
    jitter: float = 0.1
    lease: float = 5.0
    poll: float = 0.02
    max_bytes: int = 1_048_576
    timeout: float = 0.25
    back_off: float = 1.0
    # --8<-- [end:policy]

    def __post_init__(self) -> None:
        whole("max_bytes", self.max_bytes, at_least=1)
        number("jitter", self.jitter, at_least=0, below=1)
        number("ttl", self.ttl, at_least=_SHORTEST, at_most=_LONGEST)
        number("negative_ttl", self.negative_ttl, at_least=0, at_most=_LONGEST)
        self.reading()  # or it raises
        whole("max_loads", self.max_loads, at_least=2)
        whole("max_refreshes", self.max_refreshes, at_least=1, at_most=self.max_loads - 1)
        if (self.refresh_after is None) == (self.beta is None):
            raise ValueError(
                f"either refresh_after or beta must be given, got {self.refresh_after!r} and {self.beta!r}"
            )
        if self.refresh_after is not None:
            number("refresh_after", self.refresh_after, above=self.jitter, below=1)
        if self.beta is not None:
            number("beta", self.beta, above=0, at_most=1000)
        part = 1 - (self.jitter if self.refresh_after is None else self.refresh_after)
        number("refresh_pause", self.refresh_pause, at_least=_SHORTEST, at_most=round(self.ttl * part, 6))

    # --8<-- [start:is_due]
    def is_due(self, left: float, took: float, *, negative: bool, rng: random.Random) -> bool:
        """Say whether a reader is to begin a refresh.

        Args:
            left: seconds of life that the entry has; 0 where it is not in Redis, and nothing can be done.
            took: seconds that its load took.
            negative: whether its value is None.
            rng: draws the chance of `beta`.
        """
        if left <= 0:
            return False
        if self.beta is not None:
            return left <= self.beta * took * rng.expovariate(1.0)
        life = self.negative_ttl if negative else self.ttl
        return left <= life * (1 - (self.refresh_after or 1))

    # --8<-- [end:is_due]

    def reading(self) -> read_through.Policy:
        """Return the policy of the reads: lives between `ttl` less jitter, and `ttl`."""
        half = self.jitter / 2
        return read_through.Policy(
            ttl=self.ttl * (1 - half),
            negative_ttl=self.negative_ttl * (1 - half),
            jitter=half / (1 - half),
            max_loads=self.max_loads,
            lease=self.lease,
            poll=self.poll,
            max_bytes=self.max_bytes + HEAD_BYTES,
            timeout=self.timeout,
            back_off=self.back_off,
        )
