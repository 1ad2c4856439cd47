"""What a producer may have to catch, besides the errors of competing_consumer and of Redis."""

from __future__ import annotations

__all__ = ["OtherAging"]


class OtherAging(RuntimeError):
    """The jobs that are there are ranked by another `aging` than this policy's; nothing was done.

    Attributes:
        name: of the queue.
        ours: seconds a step, of this policy.
        theirs: seconds a step, of the queue.
    """

    def __init__(self, name: str, ours: float, theirs: float) -> None:
        super().__init__(name, ours, theirs)
        self.name, self.ours, self.theirs = name, ours, theirs

    def __str__(self) -> str:
        how = "let consumers empty it; the first push into an empty queue sets the aging"
        return f"{self.name!r} has aging={self.theirs:g}, the policy says {self.ours:g}: to change it, {how}"
