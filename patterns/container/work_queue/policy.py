"""What holds for a whole queue: the manager writes it into the state, and every worker keeps to it."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.bounds import number, whole

__all__ = ["Policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How many items at a time, how often, how long. All managers of a queue have one policy.

    Attributes:
        parallelism: items that may be worked on at one time, by all workers together.
        backlog: jobs that wait in Redis at one time; what is beyond stays in the source until there is room.
        attempts: times that an item is tried before it counts as failed for good.
        backoff: seconds from the first failure to the next attempt; doubled each time, up to `backoff_cap`.
        backoff_cap: longest such pause in seconds.
        lease: seconds after a worker's last heartbeat until its item is given to another.
        timeout: seconds that the application may take for one item.
        period: seconds between two rounds of the manager.
        keep: seconds that the state remembers an item which the source lists no more.
    """

    parallelism: int
    backlog: int = 1_000
    attempts: int = 5
    backoff: float = 1.0
    backoff_cap: float = 300.0
    lease: float = 15.0
    timeout: float = 300.0
    period: float = 1.0
    keep: float = 604_800.0

    def __post_init__(self) -> None:
        for name in ("parallelism", "backlog", "attempts"):
            whole(name, getattr(self, name), at_least=1, at_most=1_000_000)
        for name in ("backoff", "backoff_cap", "lease", "timeout", "period", "keep"):
            number(name, getattr(self, name), at_least=0.001, at_most=1e8)
        if self.backoff_cap < self.backoff:
            raise ValueError(f"backoff_cap must be >= backoff {self.backoff!r}, got {self.backoff_cap!r}")
        if self.keep < 2 * self.period:
            raise ValueError(f"keep must be >= 2 * period {self.period!r}, got {self.keep!r}")
