"""How many retries all callers of one dependency may make together.

Attempts limit one call; when every call fails, three attempts each are three times the load. A budget is a
bucket of tokens: a retry takes one, time and successes put some back, and an empty bucket means that most
calls fail and more of them would not help.

>>> budget = Budget(ratio=0.1, min_per_second=0, capacity=2)
>>> [budget.take() for _ in range(3)]
[True, True, False]
>>> for _ in range(10):
...     budget.deposit()  # ten calls succeed
>>> [budget.take() for _ in range(2)]
[True, False]

Sources: gRPC A6, "Client retry design" (throttling by successes); Finagle, `RetryBudget` (a least rate);
AWS SDKs, standard mode (a bucket for each client); Google, "Site Reliability Engineering", chapter 21.
"""

from __future__ import annotations

from threading import Lock
from typing import Protocol

from patterns.bounds import number
from patterns.clock import SYSTEM_CLOCK, Clock

__all__ = ["Budget", "RetryBudget", "check_budget"]

_ONE = 1 - 1e-9  # ten deposits of 0.1 are a token, though not in binary


class RetryBudget(Protocol):
    """What `Retry` asks before it repeats a call."""

    def deposit(self) -> None:
        """Note a call that succeeded."""
        ...

    async def withdraw(self) -> bool:
        """Take leave for one retry, if there is one."""
        ...

    def give_back(self) -> None:
        """Return the leave of a retry that was not made."""
        ...


class Budget:
    """One budget for one dependency in this process; make one, and give it to every Retry that calls it.

    In any time it grants at most `capacity` + `min_per_second` times the seconds + `ratio` times the
    successes. Safe for tasks and threads.

    Args:
        ratio: retries earned by each success.
        min_per_second: retries earned by each second.
        capacity: retries that can be saved up; the bucket is full at first.
        clock: where durations are read.
    """

    def __init__(
        self,
        *,
        ratio: float = 0.1,
        min_per_second: float = 1.0,
        capacity: float = 10.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        check_budget(ratio, min_per_second, capacity)
        self._ratio = ratio
        self._rate = min_per_second
        self._capacity = capacity
        self._now = clock.monotonic
        self._lock = Lock()
        self._tokens = float(capacity)
        self._at = self._now()

    # --8<-- [start:budget]
    def deposit(self) -> None:
        """Note a call that succeeded."""
        if self._tokens < self._capacity:  # no lock for a bucket that is full
            self._add(self._ratio)

    def take(self) -> bool:
        """Take leave for one retry, if there is one."""
        with self._lock:
            now = self._now()
            self._tokens = min(self._capacity, self._tokens + (now - self._at) * self._rate)
            self._at = now
            granted = self._tokens >= _ONE
            if granted:
                self._tokens -= 1
        return granted

    # --8<-- [end:budget]

    async def withdraw(self) -> bool:
        """Take leave for one retry, if there is one: `take`, as a budget that asks others has it."""
        return self.take()

    def give_back(self) -> None:
        """Return the leave of a retry that was not made."""
        self._add(1)

    def _add(self, tokens: float) -> None:
        with self._lock:
            self._tokens = min(self._capacity, self._tokens + tokens)


def check_budget(ratio: float, min_per_second: float, capacity: float) -> None:
    """Refuse what is no budget.

    Raises:
        ValueError: an argument is out of bounds.
    """
    number("ratio", ratio, at_least=0)
    number("min_per_second", min_per_second, at_least=0)
    number("capacity", capacity, at_least=1)
