"""The outcomes a circuit breaker remembers: the last N calls, or the calls of the last N seconds.

Adding an outcome and reading the rates take constant time in both.

Source: resilience4j, "Count-based sliding window" and "Time-based sliding window".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

__all__ = ["FAILED", "SLOW", "CountBased", "CountWindow", "TimeBased", "TimeWindow", "Window"]

FAILED = 1
SLOW = 2


class Window(Protocol):
    """Outcomes are 0, FAILED, SLOW or FAILED | SLOW.

    Attributes:
        bad: remembered failures plus remembered slow calls; while it is 0 no rate can reach a threshold.
        settled: adding a quick success would change nothing.
    """

    bad: int
    settled: bool

    def add(self, outcome: int, now: float) -> None:
        """Remember `outcome`, seen at `now` (monotonic seconds)."""
        ...

    def rates(self, now: float) -> tuple[int, float, float]:
        """Return how many outcomes are remembered, and the failed and slow shares of them."""
        ...


@dataclass(frozen=True, slots=True)
class CountBased:
    """Remember the last `size` calls."""

    size: int

    def __post_init__(self) -> None:
        size: object = self.size
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"size must be a whole number of calls >= 1, got {size!r}")

    def new_window(self) -> CountWindow:
        """Return an empty window."""
        return CountWindow(self.size)


@dataclass(frozen=True, slots=True)
class TimeBased:
    """Remember the calls of the last `seconds`.

    The window is kept in ten slices, so a call counts for at least nine tenths of `seconds`, and never
    longer than `seconds`.
    """

    seconds: float

    def __post_init__(self) -> None:
        seconds: object = self.seconds
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not number or not 0.01 <= self.seconds < math.inf:
            raise ValueError(f"seconds must be a finite number >= 0.01, got {seconds!r}")

    def new_window(self) -> TimeWindow:
        """Return an empty window."""
        return TimeWindow(self.seconds)


class CountWindow:
    """A ring of the last `size` outcomes."""

    __slots__ = ("_failed", "_next", "_ring", "_size", "_slow", "_total", "bad", "settled")

    def __init__(self, size: int) -> None:
        self._ring = bytearray(size)
        self._size = size
        self._next = self._total = self._failed = self._slow = self.bad = 0
        self.settled = False

    def add(self, outcome: int, now: float) -> None:  # noqa: ARG002 - the Window protocol
        """Remember `outcome` in place of the oldest."""
        at = self._next
        self._next = at + 1 if at + 1 < self._size else 0
        if self._total < self._size:
            self._total += 1
        old = self._ring[at]
        if old != outcome:
            self._ring[at] = outcome
            self._failed += (outcome & FAILED) - (old & FAILED)
            self._slow += ((outcome & SLOW) - (old & SLOW)) // SLOW
            self.bad = self._failed + self._slow
        self.settled = self.bad == 0 and self._total == self._size

    def rates(self, now: float) -> tuple[int, float, float]:  # noqa: ARG002 - the Window protocol
        """Return the number of outcomes, and the failed and slow shares."""
        total = self._total
        return (total, self._failed / total, self._slow / total) if total else (0, 0.0, 0.0)


class TimeWindow:
    """Ten slices of time, each with its counts; a slice is dropped as soon as its oldest call is too old."""

    __slots__ = ("_counts", "_failed", "_newest", "_slice", "_slow", "_total", "_turns", "bad")

    SLICES = 10
    settled = False  # each call moves it on

    def __init__(self, seconds: float) -> None:
        self._slice = seconds / self.SLICES
        self._counts = [[0, 0, 0] for _ in range(self.SLICES)]
        self._newest = -(1 << 62)  # the number of the newest slice
        self._turns = -math.inf  # when the next slice begins
        self._total = self._failed = self._slow = self.bad = 0

    def add(self, outcome: int, now: float) -> None:
        """Remember `outcome` in the slice of `now`."""
        if now >= self._turns:
            self._forget(now)
        counts = self._counts[self._newest % self.SLICES]
        counts[0] += 1
        self._total += 1
        if outcome:
            failed, slow = outcome & FAILED, (outcome & SLOW) // SLOW
            counts[1] += failed
            counts[2] += slow
            self._failed += failed
            self._slow += slow
            self.bad = self._failed + self._slow

    def rates(self, now: float) -> tuple[int, float, float]:
        """Return the number of outcomes, and the failed and slow shares."""
        if now >= self._turns:
            self._forget(now)
        total = self._total
        return (total, self._failed / total, self._slow / total) if total else (0, 0.0, 0.0)

    def _forget(self, now: float) -> None:
        """Begin the slice of `now`, and drop those that are too old."""
        newest = int(now // self._slice)
        for number in range(max(self._newest + 1, newest - self.SLICES + 1), newest + 1):
            counts = self._counts[number % self.SLICES]
            self._total -= counts[0]
            self._failed -= counts[1]
            self._slow -= counts[2]
            counts[:] = 0, 0, 0
        self.bad = self._failed + self._slow
        self._newest = newest
        self._turns = (newest + 1) * self._slice
