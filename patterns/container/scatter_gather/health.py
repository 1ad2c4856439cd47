"""Which replicas are not asked first for a while.

A dead replica that goes on being asked first spends the hedges of everybody: each second request that makes
up for it takes a token, and with few leaves the answers earn less than that. So one that failed, or was late
three times in a row, rests. It is asked first again when the rest is over, or when all others rest too.

>>> health = Health(rest=10)
>>> health.failed(("east", 0), now=100.0)
>>> health.rests(("east", 0), now=109.0), health.rests(("east", 0), now=111.0)
(True, False)

Source: Envoy, "Outlier detection" (passive health checks by consecutive errors).
"""

from __future__ import annotations

import math

from patterns.bounds import number

__all__ = ["Health", "Place"]

Place = tuple[str, int]
_LATE = 3  # times in a row


class Health:
    """What the latest requests say of each replica; places are a leaf's name and a number.

    Args:
        rest: seconds.
    """

    def __init__(self, rest: float) -> None:
        self._rest = number("rest", rest, at_least=0)
        self._late: dict[Place, int] = {}
        self._until: dict[Place, float] = {}

    @property
    def doubts(self) -> bool:
        """Whether there is a replica that was late, or rests."""
        return bool(self._late or self._until)

    def rests(self, place: Place, now: float) -> bool:
        """Whether it should not be asked first."""
        return now < self._until.get(place, -math.inf)

    def failed(self, place: Place, now: float) -> None:
        """It raised an error."""
        self._until[place] = now + self._rest

    def late(self, place: Place, now: float) -> None:
        """It has not answered in time."""
        self._late[place] = self._late.get(place, 0) + 1
        if self._late[place] >= _LATE:
            self._until[place] = now + self._rest

    def well(self, place: Place) -> None:
        """It answered in time."""
        self._late.pop(place, None)
        self._until.pop(place, None)
