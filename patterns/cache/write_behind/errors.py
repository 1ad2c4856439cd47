"""What a writer may have to catch, besides the errors of Redis."""

from __future__ import annotations

from redis.exceptions import RedisError

__all__ = ["NotReplicated", "NotStorable", "OtherShards", "QueueFull"]


class NotStorable(ValueError):
    """The key or the value cannot be queued; nothing was written.

    Attributes:
        key: whose value.
        reason: why; without the value.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"the change of {self.key!r} cannot be queued: {self.reason}"


class QueueFull(Exception):
    """The shard has no room, and the write was not done: slow down, or write to the source.

    Attributes:
        key: what should have been written.
        capacity: of its shard.
        waited: seconds.
    """

    def __init__(self, key: str, capacity: int, waited: float) -> None:
        super().__init__(key, capacity, waited)
        self.key, self.capacity, self.waited = key, capacity, waited

    def __str__(self) -> str:
        held = f"its shard has {self.capacity} changes"
        return f"{self.key!r} was not written: {held}, and had after {self.waited:g} s"


class NotReplicated(RedisError):
    """The change is queued and will be flushed, unless a failover comes first: too few replicas have it.

    Attributes:
        key: what was written.
        version: of the change.
        wanted: replicas asked for.
        found: replicas that have it.
    """

    def __init__(self, key: str, version: int, wanted: int, found: int) -> None:
        super().__init__(key, version, wanted, found)
        self.key, self.version, self.wanted, self.found = key, version, wanted, found

    def __str__(self) -> str:
        return f"{self.found} replicas have the change of {self.key!r}, {self.wanted} were asked for"


class OtherShards(RuntimeError):
    """The policy has another number of shards than those who were there before; nothing was done.

    Attributes:
        name: of the write-behind.
        ours: shards of this policy.
        theirs: shards that are in use.
        key: where Redis keeps their number.
    """

    def __init__(self, name: str, ours: int, theirs: int, key: str) -> None:
        super().__init__(name, ours, theirs, key)
        self.name, self.ours, self.theirs, self.key = name, ours, theirs, key

    def __str__(self) -> str:
        how = f"let flushers with {self.theirs} drain it, settle what is parked, stop all, delete {self.key}"
        return f"{self.name!r} has {self.theirs} shards, the policy says {self.ours}: to change it, {how}"
