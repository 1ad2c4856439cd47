"""A process that takes permits of a shared bulkhead, says so, and holds them until it is killed.

Arguments: app, "lease" or "counter", limit, seconds of the lease, how many to take.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from patterns.keyspace import opened
from patterns.resiliency.bulkhead.events import PermitLost
from patterns.resiliency.bulkhead.shared import SharedBulkhead
from tests.resiliency.bulkhead_naive import CountsInRedis

if TYPE_CHECKING:
    from patterns.events import Event


def listen(event: Event) -> None:
    if isinstance(event, PermitLost):
        print("lost", flush=True)


async def main(app: str, kind: str, limit: int, lease: float, take: int) -> None:
    async with opened() as client:
        options: dict[str, Any] = {"app": app, "limit": limit}
        shared: Any
        if kind == "lease":
            options |= {"lease": lease, "timeout": lease / 4, "without_redis": 0, "on_event": listen}
            shared = SharedBulkhead("search", client, **options)
        else:
            shared = CountsInRedis("search", client, **options)  # type: ignore[arg-type]  # no cluster here
        for _ in range(take):
            await shared.acquire()
        print("holding", flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])))
