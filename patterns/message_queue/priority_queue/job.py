"""What is known of a job: whose it is, where it stands, how many there are."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Receipt", "Stats"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the queue needs to know a delivery again, and a handler may read.

    Attributes:
        owner: of the lease; another one at each delivery.
        priority: 0 is the most urgent.
        since: microseconds since the epoch, by the server's clock, when the job was ready first.
    """

    owner: str
    priority: int
    since: int


@dataclass(frozen=True, slots=True)
class Stats:
    """What is in a queue.

    Attributes:
        ready: jobs that a consumer could have now.
        delayed: jobs that are not ready yet, or wait for their next try.
        leased: jobs that a consumer has, or had and did not acknowledge.
        dead: jobs that are not delivered any more by themselves.
        first_seconds: for how long the first in line has been ready.
    """

    ready: int
    delayed: int
    leased: int
    dead: int
    first_seconds: float
