"""How many workers a queue needs: what arrives, times what it takes, over how busy a worker should be."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from patterns.bounds import number, whole

if TYPE_CHECKING:
    from patterns.container.work_queue.state import Status

__all__ = ["Scaler", "Scaling"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How to size the workers.

    Attributes:
        most: workers at most.
        least: workers at least.
        utilisation: share of its time that a worker should be busy; what is left takes up the bursts.
        drain: seconds in which a backlog should be gone.
        settle: seconds for which fewer workers must have been enough before one is taken away.
        memory: seconds over which rates are averaged.
    """

    most: int
    least: int = 1
    utilisation: float = 0.8
    drain: float = 60.0
    settle: float = 120.0
    memory: float = 60.0

    def __post_init__(self) -> None:
        for name in ("most", "least"):
            whole(name, getattr(self, name), at_least=0, at_most=100_000)
        if not self.least <= self.most:
            raise ValueError(f"most must be >= least {self.least!r}, got {self.most!r}")
        number("utilisation", self.utilisation, above=0, below=1)
        for name in ("drain", "settle", "memory"):
            number(name, getattr(self, name), above=0, at_most=1e8)


class Scaler:
    """Turns what the state counts into a number of workers.

    It remembers rates and nothing else: a new one knows as much after `memory` seconds.

    Args:
        scaling: the rule.
    """

    def __init__(self, scaling: Scaling) -> None:
        self._scaling = scaling
        self._last: tuple[float, Status] | None = None
        self._arrivals: float | None = None  # items a second
        self._service: float | None = None  # seconds an item
        self._wanted: deque[tuple[float, int]] = deque()

    # --8<-- [start:rule]
    def workers(self, status: Status, now: float) -> int:
        """Return how many workers there should be; ask again every few seconds.

        Args:
            status: of the queue, at `now`.
            now: monotonic seconds.
        """
        rule = self._scaling
        self._learn(status, now)
        arrivals = (self._arrivals or 0.0) + status.ready / rule.drain
        needed = math.ceil(arrivals * (self._service or 0.0) / rule.utilisation - 1e-9)
        needed = max(needed, 1 if status.ready or status.running else 0)
        self._wanted.append((now, needed))
        while self._wanted[0][0] < now - rule.settle:
            self._wanted.popleft()
        # Up at once; down to what was enough all the while.
        return min(max(*(count for _, count in self._wanted), rule.least), rule.most)

    # --8<-- [end:rule]

    def _learn(self, status: Status, now: float) -> None:
        last, self._last = self._last, (now, status)
        if last is None or now <= last[0] or status.created < last[1].created:
            return  # the first, or Redis has forgotten its counts
        seconds = now - last[0]
        keep = math.exp(-seconds / self._scaling.memory)
        arrivals = (status.created - last[1].created) / seconds
        self._arrivals = arrivals if self._arrivals is None else keep * self._arrivals + (1 - keep) * arrivals
        finished = status.finished - last[1].finished
        if finished > 0:
            service = (status.busy_seconds - last[1].busy_seconds) / finished
            self._service = service if self._service is None else keep * self._service + (1 - keep) * service
