"""A moment by which an answer is wanted, carried from service to service.

A time-out of each hop's own starts afresh at every hop, so that a call five services deep outlives its
caller by far. A deadline is set once, and each hop passes on what is left of it.

It travels as the milliseconds that remain, never as a time of day: the clocks of two machines differ by more
than a deadline is long. What the network takes on the way is not counted; gRPC does the same.

>>> from patterns.clock import ManualClock
>>> clock = ManualClock()
>>> deadline = Deadline(1.5, clock=clock)
>>> clock.jump(0.2)
>>> deadline.header()
'1300'
>>> Deadline.from_header("1300", at_most=1.0, clock=clock).remaining()
1.0
>>> Deadline.from_header("1_300", at_most=1.0)
Traceback (most recent call last):
ValueError: X-Request-Timeout-Ms must be 1 to 8 digits and at most 86400000, got '1_300'

Sources: gRPC, "Deadlines" and its `grpc-timeout` header; Google SRE book, "Addressing Cascading Failures".
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from patterns.bounds import number
from patterns.clock import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

__all__ = ["HEADER", "LONGEST", "Deadline"]

HEADER = "X-Request-Timeout-Ms"
LONGEST = 86_400.0  # seconds
_DIGITS = re.compile(r"[0-9]{1,8}")


class Deadline:
    """The moment that lies `seconds` from now.

    Args:
        seconds: how long from now; 0 to a day. 0 is over at once.
        clock: its monotonic time is what counts, so a step of the calendar changes nothing.

    Raises:
        ValueError: seconds is not such a number.
    """

    __slots__ = ("_at", "_clock")

    def __init__(self, seconds: float, *, clock: Clock = SYSTEM_CLOCK) -> None:
        number("seconds", seconds, at_least=0, at_most=LONGEST)
        self._clock = clock
        self._at = clock.monotonic() + seconds

    def __repr__(self) -> str:
        return f"<Deadline in {self.remaining():.3f} s>"

    def remaining(self) -> float:
        """Return the seconds that are left; 0 when it is over."""
        return max(0.0, self._at - self._clock.monotonic())

    @property
    def expired(self) -> bool:
        """Whether nothing is left."""
        return self.remaining() <= 0

    def sooner(self, seconds: float) -> Deadline:
        """Return the earlier of this deadline and `seconds` from now: the limit of one attempt.

        Raises:
            ValueError: seconds is not a number from 0 to a day.
        """
        number("seconds", seconds, at_least=0, at_most=LONGEST)
        return Deadline(min(seconds, self.remaining()), clock=self._clock)

    def within(self) -> AbstractAsyncContextManager[object]:
        """Return a context that raises TimeoutError in its body when the deadline comes."""
        return self._clock.timeout(self.remaining())

    def header(self) -> str:
        """Return what the next hop is told: whole milliseconds, rounded down, so no hop adds to them."""
        # Added, so that 1.3 s, which is a little less as a binary fraction, are not 1,299 ms.
        return str(math.floor(self.remaining() * 1000 + 1e-6))

    @classmethod
    def from_header(cls, text: str | None, *, at_most: float, clock: Clock = SYSTEM_CLOCK) -> Deadline:
        """Return the deadline that a caller has sent.

        Args:
            text: the value of the header; None when there was none.
            at_most: seconds that this hop grants: the deadline of a caller who sent none, or a longer one.
            clock: as of the class.

        Raises:
            ValueError: text is not 1 to 8 ASCII digits that make a day at most; or at_most is out of bounds.
        """
        number("at_most", at_most, at_least=0, at_most=LONGEST)
        if text is None:
            return cls(at_most, clock=clock)
        if not _DIGITS.fullmatch(text) or int(text) > LONGEST * 1000:
            shown = repr(text) if len(text) <= 40 else f"{text[:40]!r}... ({len(text)} characters)"
            raise ValueError(f"{HEADER} must be 1 to 8 digits and at most {LONGEST * 1000:.0f}, got {shown}")
        return cls(min(int(text) / 1000, at_most), clock=clock)
