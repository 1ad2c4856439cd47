"""How late is late: a percentile of what was seen.

A number that somebody once measured is wrong after the next release. What is observed here are the first
requests only; one that was cut off counts with the time it had had by then, for to leave it out would make
the slow ones disappear, and the percentile shrink until everything is hedged.

>>> late = Observed(0.9, initial=0.1, window=100)
>>> for n in range(100):
...     late.record(0.010 + n / 1000)
>>> round(late.delay, 3)
0.096
>>> for n in range(100):
...     late.record(0.020)
>>> late.delay
0.02

Source: Dean and Barroso, "The Tail at Scale": hedge after the 95th percentile of the expected latency.
"""

from __future__ import annotations

from collections import deque

from patterns.bounds import number, whole

__all__ = ["Observed"]


class Observed:
    """A percentile of the last latencies, computed again after every sixteenth part of the window.

    Args:
        percentile: above 0, below 1.
        initial: seconds to use until a quarter of the window was seen.
        window: latencies to keep.
        at_least: the shortest delay, in seconds.
    """

    def __init__(
        self, percentile: float = 0.95, *, initial: float, window: int = 512, at_least: float = 0.001
    ) -> None:
        self._percentile = number("percentile", percentile, above=0, below=1)
        self._least = number("at_least", at_least, at_least=0)
        self.delay = max(number("initial", initial, above=0), self._least)
        self._seen: deque[float] = deque(maxlen=whole("window", window, at_least=16))
        self._every = window // 16
        self._warm = window // 4
        self._until = self._every

    def record(self, seconds: float) -> None:
        """Note how long a request took, or had taken when it was cut off."""
        self._seen.append(seconds)
        self._until -= 1
        if not self._until:
            self._until = self._every
            if len(self._seen) >= self._warm:
                order = sorted(self._seen)
                self.delay = max(order[int(self._percentile * len(order))], self._least)
