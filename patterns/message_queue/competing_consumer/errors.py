"""What a sender, a receiver or a handler may have to catch or raise, besides the errors of Redis."""

from __future__ import annotations

__all__ = ["LeaseLost", "NotSendable", "OtherPartitions", "QueueFull", "Reject"]


class NotSendable(ValueError):
    """The payload cannot be sent; nothing was written.

    Attributes:
        queue: to which.
        reason: why; without the payload.
    """

    def __init__(self, queue: str, reason: str) -> None:
        super().__init__(queue, reason)
        self.queue, self.reason = queue, reason

    def __str__(self) -> str:
        return f"the payload cannot be sent to {self.queue!r}: {self.reason}"


class QueueFull(Exception):
    """The queue has no room, and nothing was written: slow down, or refuse work yourself.

    Attributes:
        queue: which.
        capacity: messages that it holds.
    """

    def __init__(self, queue: str, capacity: int) -> None:
        super().__init__(queue, capacity)
        self.queue, self.capacity = queue, capacity

    def __str__(self) -> str:
        return f"{self.queue!r} has {self.capacity} messages, and takes no more"


class LeaseLost(Exception):
    """This delivery is not the receiver's any more, and nothing was done: the message is another's, or gone.

    Attributes:
        id: of the message.
        deliveries: which delivery it was.
    """

    def __init__(self, id: str, deliveries: int) -> None:  # noqa: A002  a message's id is called so
        super().__init__(id, deliveries)
        self.id, self.deliveries = id, deliveries

    def __str__(self) -> str:
        return f"delivery {self.deliveries} of message {self.id} is not this receiver's any more"


class OtherPartitions(RuntimeError):
    """The policy has another number of partitions than those who were there before; nothing was done.

    Attributes:
        name: of the queue.
        ours: partitions of this policy.
        theirs: partitions that are in use.
        key: where Redis keeps their number.
    """

    def __init__(self, name: str, ours: int, theirs: int, key: str) -> None:
        super().__init__(name, ours, theirs, key)
        self.name, self.ours, self.theirs, self.key = name, ours, theirs, key

    def __str__(self) -> str:
        how = f"stop the senders, let workers with {self.theirs} empty it, stop them, delete {self.key}"
        return f"{self.name!r} has {self.theirs} partitions, the policy says {self.ours}: to change it, {how}"


class Reject(Exception):
    """Raised by a handler: no later try can do better, so the message goes to the dead letters now."""
