"""How long a message is one receiver's, how often it is tried, and how many there may be."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.bounds import number, whole

__all__ = ["Policy"]

_SHORTEST = 0.001  # seconds: Redis counts milliseconds
_LONGEST = 1_000_000_000


# --8<-- [start:policy]
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How messages wait, are handed out and are given up; the same in all processes of one queue.

    Attributes:
        visibility: seconds for which a delivery is one receiver's, from its receipt or its last renewal.
        max_deliveries: after so many the message is a dead letter.
        retry_delay: seconds until a message that has failed once is tried again; doubles with each failure.
        max_retry_delay: the longest such delay; at most `visibility`, None for just that.
        partitions: streams over which messages are spread; as long as there are any, the same number.
        capacity: most messages that one partition holds, dead letters not counted.
        max_bytes: most bytes of one encoded payload.
        dedupe_window: seconds for which a `dedupe_id` is remembered.
        poll: seconds for which a receiver waits for a message; also between two looks for silent owners.
    """

    visibility: float
    max_deliveries: int = 5
    retry_delay: float = 1.0
    max_retry_delay: float | None = None
    partitions: int = 1
    capacity: int = 1_000_000
    max_bytes: int = 1_048_576
    dedupe_window: float = 300.0
    poll: float = 1.0
    # --8<-- [end:policy]

    def __post_init__(self) -> None:
        for name in ("max_deliveries", "capacity", "max_bytes"):
            whole(name, getattr(self, name), at_least=1)
        whole("partitions", self.partitions, at_least=1, at_most=16_384)
        for name in ("visibility", "dedupe_window", "poll"):
            number(name, getattr(self, name), at_least=_SHORTEST, at_most=_LONGEST)
        if self.max_retry_delay is None:
            object.__setattr__(self, "max_retry_delay", self.visibility)
        number("max_retry_delay", self.max_retry_delay, at_least=0, at_most=self.visibility)
        number("retry_delay", self.retry_delay, at_least=0, at_most=_LONGEST)

    def delay(self, deliveries: int) -> float:
        """Return the seconds until the next try of a message that has been delivered so often."""
        longest = self.max_retry_delay or 0.0
        return min(longest, self.retry_delay * 2.0 ** min(max(0, deliveries - 1), 60))
