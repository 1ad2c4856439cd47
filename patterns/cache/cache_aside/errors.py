"""What a caller of a cache may have to catch, besides the errors of its own loads and writes."""

from __future__ import annotations

from typing import Any

__all__ = ["InvalidationFailed", "LoadCancelled", "LoadTimedOut", "NotCacheable"]


class LoadTimedOut(TimeoutError):
    """A load took longer than the lease, and was cancelled.

    Attributes:
        entity: what was loaded.
        lease: seconds that it had.
    """

    def __init__(self, entity: str, lease: float) -> None:
        super().__init__(entity, lease)
        self.entity, self.lease = entity, lease

    def __str__(self) -> str:
        return f"the load of {self.entity!r} took longer than its lease of {self.lease:g} s"


class LoadCancelled(Exception):
    """The load cancelled itself; its callers were not cancelled.

    Attributes:
        entity: what was loaded.
    """

    def __init__(self, entity: str) -> None:
        super().__init__(entity)
        self.entity = entity

    def __str__(self) -> str:
        return f"the load of {self.entity!r} was cancelled from inside"


class NotCacheable(ValueError):
    """The value was loaded and cannot be kept; nothing was written.

    Attributes:
        entity: whose value.
        reason: why; without the value.
        value: what was loaded.
    """

    def __init__(self, entity: str, reason: str, value: Any) -> None:
        super().__init__(entity, reason)
        self.entity, self.reason, self.value = entity, reason, value

    def __str__(self) -> str:
        return f"the value of {self.entity!r} cannot be cached: {self.reason}"

    def __reduce__(self) -> tuple[type[NotCacheable], tuple[str, str, Any]]:
        return type(self), (self.entity, self.reason, self.value)


class InvalidationFailed(Exception):
    """What was to be invalidated may still be in the cache; a write that went before it was done.

    Attributes:
        entities: what others may still read.
        bound: seconds after which it has expired at the latest.
        result: what the write returned.
    """

    def __init__(self, entities: tuple[str, ...], bound: float, result: Any = None) -> None:
        super().__init__(entities, bound, result)
        self.entities, self.bound, self.result = entities, bound, result

    def __str__(self) -> str:
        names = ", ".join(map(repr, self.entities))
        return f"the old value of {names} may be read for up to {self.bound:g} s: it could not be invalidated"
