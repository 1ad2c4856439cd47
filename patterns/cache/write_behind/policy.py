"""How long a write may wait, how many may, and what becomes of those that the source will not take."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.bounds import exceptions, number, whole

__all__ = ["Policy"]

_SHORTEST = 0.001  # seconds: Redis counts milliseconds
_LONGEST = 1_000_000_000


# --8<-- [start:policy]
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How writes wait and how they are flushed; the same in all writers and flushers of one name.

    Attributes:
        capacity: most changes that one shard keeps, the parked ones too.
        delay: seconds that a change waits for later ones of its key; not in a shard that is half full.
        max_wait: seconds that a write waits where its shard is full; 0 refuses at once.
        shards: how many queues the keys are spread over; as long as there are any, the same number.
        batch: most changes in one call of the store.
        coalesce: whether a change replaces an earlier one of its key that still waits.
        max_attempts: failures of a change after which it is parked.
        outages: errors that say nothing about the change: tried again for ever, and not counted.
        retry_delay: seconds after the first failure; doubles with each in a row.
        max_retry_delay: the longest such pause.
        poll: seconds between two looks, at a queue that is empty or full.
        lease: seconds after which another flusher takes the shard of one that fell silent.
        store_timeout: most seconds that one call of the store may take; less than the lease.
        drain: most seconds that a flusher goes on after it is told to close.
        max_bytes: most bytes of one encoded value, and of a key.
        wait_replicas: replicas that must have a write before it is acknowledged (WAIT).
        wait_seconds: how long to wait for them, with the connection; less than the client's time-out.
    """

    capacity: int
    delay: float
    max_wait: float = 0.0
    shards: int = 4
    batch: int = 100
    coalesce: bool = True
    max_attempts: int = 5
    outages: tuple[type[Exception], ...] = (ConnectionError, TimeoutError)
    retry_delay: float = 0.1
    max_retry_delay: float = 10.0
    poll: float = 0.05
    lease: float = 10.0
    store_timeout: float = 5.0
    drain: float = 10.0
    max_bytes: int = 1_048_576
    wait_replicas: int = 0
    wait_seconds: float = 0.2
    # --8<-- [end:policy]

    def __post_init__(self) -> None:
        for name in ("capacity", "max_attempts", "max_bytes"):
            whole(name, getattr(self, name), at_least=1)
        whole("shards", self.shards, at_least=1, at_most=16_384)
        whole("batch", self.batch, at_least=1, at_most=1000)
        whole("wait_replicas", self.wait_replicas, at_least=0)
        for name in ("delay", "max_wait"):
            number(name, getattr(self, name), at_least=0, at_most=_LONGEST)
        for name in ("retry_delay", "poll", "lease", "store_timeout", "drain", "wait_seconds"):
            number(name, getattr(self, name), at_least=_SHORTEST, at_most=_LONGEST)
        number("max_retry_delay", self.max_retry_delay, at_least=self.retry_delay, at_most=_LONGEST)
        number("store_timeout", self.store_timeout, below=self.lease)
        exceptions("outages", self.outages)
        coalesce: object = self.coalesce
        if not isinstance(coalesce, bool):
            raise ValueError(f"coalesce must be True or False, got {coalesce!r}")
