"""How long a value is good, and what a write and a load may cost."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.bounds import exceptions, number, whole

__all__ = ["Policy"]

_SHORTEST = 0.001  # seconds: Redis counts milliseconds
_LONGEST = 1_000_000_000


# --8<-- [start:policy]
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long a value is good, and what a write and a load may cost; the same in all processes.

    Attributes:
        ttl: seconds for which a value is kept.
        negative_ttl: seconds for which "there is no such thing" is kept; 0 keeps it not at all.
        max_writes: most writes at once in this process.
        max_loads: most loads at once in this process.
        lease: most seconds that a write or a load may take; and that an old value is read after a write
            began whose writer died.
        refused: errors of a write after which surely nothing was written. Every other error leaves that
            open, so the entry is dropped.
        jitter: how far the time kept strays from `ttl`, as a share of it, in [0, 1).
        max_bytes: most bytes of one encoded value.
        timeout: most seconds that one exchange with Redis may take.
        back_off: most seconds for which Redis is left alone after it did not answer.
    """

    ttl: float
    negative_ttl: float
    max_writes: int
    max_loads: int
    lease: float = 5.0
    refused: tuple[type[Exception], ...] = ()
    jitter: float = 0.1
    max_bytes: int = 1_048_576
    timeout: float = 0.25
    back_off: float = 1.0
    # --8<-- [end:policy]

    def __post_init__(self) -> None:
        for name in ("ttl", "lease", "timeout", "back_off"):
            number(name, getattr(self, name), at_least=_SHORTEST, at_most=_LONGEST)
        number("negative_ttl", self.negative_ttl, at_least=0, at_most=_LONGEST)
        number("jitter", self.jitter, at_least=0, below=1)
        for name in ("max_writes", "max_loads", "max_bytes"):
            whole(name, getattr(self, name), at_least=1)
        exceptions("refused", self.refused)
