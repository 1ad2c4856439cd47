"""How long to wait before the next attempt.

>>> policy = Policy(on=(ConnectionError,), idempotent=True, base=1, cap=10, jitter=Jitter.NONE)
>>> backoff = Backoff(policy, random.Random(7))
>>> [backoff.next() for _ in range(6)]
[1.0, 2.0, 4.0, 8.0, 10.0, 10.0]

Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015.
"""

from __future__ import annotations

import random  # noqa: TC003 - the doctest uses it

from patterns.resiliency.retry.policy import Jitter, Policy

__all__ = ["Backoff"]


class Backoff:
    """The waits of one call, in order; it never overflows.

    Args:
        policy: base, cap and jitter.
        rng: where chance comes from.
    """

    __slots__ = ("_failures", "_last", "_policy", "_rng")

    def __init__(self, policy: Policy, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self._failures = 0
        self._last = policy.base

    # --8<-- [start:backoff]
    def next(self) -> float:
        """Return seconds to wait after one more failure."""
        base, cap, jitter = self._policy.base, self._policy.cap, self._policy.jitter
        longest = min(float(cap), base * 2.0 ** min(self._failures, 1000))  # 2.0**1024 does not exist
        self._failures += 1
        if jitter is Jitter.NONE:
            return longest
        if jitter is Jitter.EQUAL:
            return self._rng.uniform(longest / 2, longest)
        if jitter is Jitter.FULL:
            return self._rng.uniform(0, longest)
        self._last = self._rng.uniform(base, min(cap, self._last * 3))
        return self._last

    # --8<-- [end:backoff]
