"""What a writer may have to catch, besides the errors of its own source."""

from __future__ import annotations

__all__ = ["NotStorable", "NotVersioned", "StoreCancelled", "StoreTimedOut"]


class NotStorable(ValueError):
    """The value cannot be encoded, decoded again, or is too large; nothing was written anywhere.

    Attributes:
        key: whose value.
        reason: why; without the value.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"the value of {self.key!r} cannot be put: {self.reason}"


class NotVersioned(TypeError):
    """The source wrote, and what it returned is no version; the entry was dropped.

    Attributes:
        key: what was written.
        given: what it returned.
    """

    def __init__(self, key: str, given: object) -> None:
        super().__init__(key, given)
        self.key, self.given = key, given

    def __str__(self) -> str:
        return f"{self.key!r} is written, and its version must be a whole number, got {self.given!r}"


class StoreTimedOut(TimeoutError):
    """The source took longer than the lease and was cancelled; the write was done, or it was not.

    Attributes:
        key: what was written.
        lease: seconds that it had.
    """

    def __init__(self, key: str, lease: float) -> None:
        super().__init__(key, lease)
        self.key, self.lease = key, lease

    def __str__(self) -> str:
        return f"the write of {self.key!r} outlasted its lease of {self.lease:g} s: its outcome is open"


class StoreCancelled(Exception):
    """The source cancelled itself, and not its caller; the write was done, or it was not.

    Attributes:
        key: what was written.
    """

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"the write of {self.key!r} was cancelled from inside: its outcome is open"
