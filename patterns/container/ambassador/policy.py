"""Sizes and times of the calls to one upstream."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.bounds import number, whole
from patterns.deadline import LONGEST

__all__ = ["Policy"]


# --8<-- [start:policy]
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How long, how often, how many at once.

    Attributes:
        deadline: seconds from request to the last byte of the answer; an application may ask for less.
        attempts: attempts at most, the first one included.
        attempt_timeout: seconds until the answer begins, of an attempt that may be repeated.
        connect_timeout: seconds until there is a connection.
        base: seconds of the first wait, before jitter.
        cap: seconds of the longest wait, before jitter.
        statuses: answers that are worth another attempt.
        replay: bytes of a request's body that are kept for another attempt; a longer one is sent once.
        ratio: retries earned by each success.
        min_per_second: retries earned by each second.
        capacity: retries that can be saved up.
        limit: requests that one origin has at once.
        max_waiting: requests that may wait for their turn at it.
        max_wait: seconds that one of them waits at most.
        idle: seconds that an unused connection is kept; less than the upstream keeps it.
    """

    deadline: float = 15.0
    attempts: int = 3
    attempt_timeout: float = 5.0
    connect_timeout: float = 1.0
    base: float = 0.025
    cap: float = 0.25
    statuses: tuple[int, ...] = (502, 503, 504)
    replay: int = 65_536
    ratio: float = 0.2
    min_per_second: float = 1.0
    capacity: float = 10.0
    limit: int = 100
    max_waiting: int = 100
    max_wait: float = 1.0
    idle: float = 4.0
    # --8<-- [end:policy]

    def __post_init__(self) -> None:
        number("deadline", self.deadline, above=0, at_most=LONGEST)
        whole("attempts", self.attempts, at_least=1, at_most=10)
        number("attempt_timeout", self.attempt_timeout, above=0, at_most=LONGEST)
        number("connect_timeout", self.connect_timeout, above=0, at_most=LONGEST)
        number("base", self.base, at_least=0)
        number("cap", self.cap, above=0, at_least=self.base)
        object.__setattr__(self, "statuses", tuple(self.statuses))
        for status in self.statuses:
            whole("statuses", status, at_least=500, at_most=599)
        whole("replay", self.replay, at_least=0, at_most=1 << 30)
        number("ratio", self.ratio, at_least=0)
        number("min_per_second", self.min_per_second, at_least=0)
        number("capacity", self.capacity, at_least=1)
        whole("limit", self.limit, at_least=1, at_most=1_000_000)
        whole("max_waiting", self.max_waiting, at_least=0, at_most=1_000_000)
        number("max_wait", self.max_wait, at_least=0.001)
        number("idle", self.idle, above=0)
