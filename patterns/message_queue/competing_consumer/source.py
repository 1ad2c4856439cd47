"""What a Worker needs of a queue, whichever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterns.message_queue.competing_consumer.delivery import Delivery, Returned
    from patterns.message_queue.competing_consumer.effect import Effect

__all__ = ["Source"]


# --8<-- [start:source]
class Source(Protocol):
    """A queue, or one partition of it, that hands out messages for a time.

    Attributes:
        name: of the queue.
        lease: seconds for which a delivery is one receiver's, from its receipt or its last renewal.
    """

    name: str
    lease: float

    async def join(self, consumer: str) -> None:
        """Refuse a worker that must not begin; an error of Redis is no reason."""
        ...

    async def receive(self, consumer: str, most: int, *, wait: bool) -> Sequence[Delivery]:
        """Return up to `most` messages; `wait` may take up to a third of the lease, and give one."""
        ...

    async def renew(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Begin their leases anew; return those that are not the receiver's any more."""
        ...

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Remove them; return those that are not the receiver's any more, which stay."""
        ...

    async def acknowledge_with(self, delivery: Delivery, effect: Effect) -> bool:
        """Make the effect and remove the message, or neither (False) where it is not the receiver's."""
        ...

    async def release(self, returned: Sequence[Returned]) -> Sequence[Delivery]:
        """Give them back, or up; return those that are not the receiver's any more."""
        ...

    async def reject(self, delivery: Delivery, why: str) -> bool:
        """Give it up; False where it is not the receiver's any more."""
        ...

    def retry_delay(self, delivery: Delivery) -> float:
        """Return the seconds until the next try, should this delivery fail."""
        ...

    async def leave(self, consumer: str) -> None:
        """Forget a consumer that ends."""
        ...


# --8<-- [end:source]
