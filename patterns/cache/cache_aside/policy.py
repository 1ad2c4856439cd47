"""How long a cached value is good, and what a load may cost."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.bounds import exceptions, number, whole

__all__ = ["Policy", "ReadPolicy"]

_SHORTEST = 0.001  # seconds: Redis counts milliseconds
_LONGEST = 1_000_000_000


# --8<-- [start:policy]
@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPolicy:
    """How long a value is good, and what a load may cost, whoever writes.

    Attributes:
        ttl: seconds for which a value is kept.
        negative_ttl: seconds for which None, "there is no such thing", is kept; 0 keeps none.
        max_loads: most loads at once in this process.
        jitter: how far the time kept strays from `ttl`, as a share of it, in [0, 1).
        lease: most seconds that a load may take, and that others wait for it.
        poll: seconds between two looks at a load of another process.
        stale_if_error: seconds after it expired for which a value may stand in for a load that failed.
        stale_on: the errors of a load for which it may.
        max_bytes: most bytes of one encoded value.
        timeout: most seconds that one exchange with Redis may take.
        back_off: most seconds for which Redis is left alone after it did not answer.
    """

    ttl: float
    negative_ttl: float
    max_loads: int
    jitter: float = 0.1
    lease: float = 5.0
    poll: float = 0.02
    stale_if_error: float = 0.0
    stale_on: tuple[type[Exception], ...] = ()
    max_bytes: int = 1_048_576
    timeout: float = 0.25
    back_off: float = 1.0

    def __post_init__(self) -> None:
        for name in ("ttl", "lease", "poll", "timeout", "back_off"):
            number(name, getattr(self, name), at_least=_SHORTEST, at_most=_LONGEST)
        for name in ("negative_ttl", "stale_if_error"):
            number(name, getattr(self, name), at_least=0, at_most=_LONGEST)
        number("jitter", self.jitter, at_least=0, below=1)
        for name in ("max_loads", "max_bytes"):
            whole(name, getattr(self, name), at_least=1)
        exceptions("stale_on", self.stale_on)
        if bool(self.stale_on) != (self.stale_if_error > 0):
            raise ValueError(
                "stale_if_error and stale_on must be given together, "
                f"got {self.stale_if_error!r} and {self.stale_on!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(ReadPolicy):
    """How long a value is good, what a load may cost, and when a write may have been done.

    Attributes:
        unsure: errors of a write after which it may have been done all the same.
    """

    unsure: tuple[type[Exception], ...] = (TimeoutError, ConnectionError)

    def __post_init__(self) -> None:
        ReadPolicy.__post_init__(self)  # `super()` does not know a class that slots have made anew
        exceptions("unsure", self.unsure)


# --8<-- [end:policy]
