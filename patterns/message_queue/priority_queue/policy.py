"""What a step of priority is worth, and how long and how often a job may be worked on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from patterns.bounds import number, whole

__all__ = ["Policy"]

_SHORTEST = 0.001  # seconds: a consumer that waits counts milliseconds
_LONGEST = 1_000_000_000  # seconds: a rank stays below 2^53 microseconds


# --8<-- [start:policy]
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How jobs are ordered and lent; the same in all producers and consumers of one name.

    Attributes:
        aging: seconds of waiting that a step of priority is worth; `math.inf` lets no wait make up for it.
        levels: how many priorities there are: 0, the most urgent, to `levels` - 1.
        lease: seconds after which a job that nobody renewed is another's.
        max_deliveries: deliveries after which a job that was not acknowledged is dead.
        dedupe_window: seconds for which a producer's id is known.
        retry_delay: seconds after the first failure; doubles with each.
        max_retry_delay: the longest such pause.
        poll: longest wait for a job in one `receive`, and at most a third of the lease.
        max_bytes: most bytes of one encoded payload.
    """

    aging: float
    levels: int = 10
    lease: float = 30.0
    max_deliveries: int = 5
    dedupe_window: float = 3600.0
    retry_delay: float = 1.0
    max_retry_delay: float = 300.0
    poll: float = 1.0
    max_bytes: int = 1_048_576
    # --8<-- [end:policy]

    def __post_init__(self) -> None:
        number("aging", self.aging, at_least=_SHORTEST, finite=False)
        whole("levels", self.levels, at_least=1, at_most=_LONGEST)
        for name in ("lease", "dedupe_window", "poll"):
            number(name, getattr(self, name), at_least=_SHORTEST, at_most=_LONGEST)
        for name in ("retry_delay", "max_retry_delay"):
            number(name, getattr(self, name), at_least=0, at_most=_LONGEST)
        for name in ("max_deliveries", "max_bytes"):
            whole(name, getattr(self, name), at_least=1)
        if self.aging < math.inf and self.bound > _LONGEST:
            raise ValueError(
                f"aging * (levels - 1) must be seconds <= {_LONGEST}, got {self.aging} * {self.levels - 1}"
            )

    @property
    def bound(self) -> float:
        """Seconds after which nothing that comes is served before a job, of whatever priority."""
        return self.aging * (self.levels - 1) if self.levels > 1 else 0.0

    @property
    def step(self) -> int:
        """Microseconds that a step of priority is worth; 0 where the order is strict."""
        return 0 if math.isinf(self.aging) else round(self.aging * 1e6)
