"""A process that takes permits of a shared bulkhead and of a counter, and holds them until it is killed.

Arguments: app, its number, limit, seconds of the lease, how many to take. It begins when the key
`<app>:go:<number>` is there, says "holding" when it has them, and "lost" when it hears so.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from patterns.keyspace import opened
from patterns.resiliency.bulkhead.events import PermitLost
from patterns.resiliency.bulkhead.shared import SharedBulkhead
from tests.eventually import eventually
from tests.resiliency.bulkhead_naive import CountsInRedis

if TYPE_CHECKING:
    from patterns.events import Event


def listen(event: Event) -> None:
    if isinstance(event, PermitLost):
        print("lost", flush=True)


async def main(app: str, number: str, limit: int, lease: float, take: int) -> None:
    async with opened() as client:
        shared = SharedBulkhead(
            "search",
            client,
            app=app,
            limit=limit,
            without_redis=0,
            lease=lease,
            timeout=lease / 4,
            on_event=listen,
        )
        counter = CountsInRedis("search", client, app=app, limit=limit * 10)

        async def may_go() -> bool:
            return bool(await client.exists(f"{app}:go:{number}"))

        await eventually(may_go, within=60)
        for _ in range(take):
            await shared.acquire()
            await counter.acquire()
        print("holding", flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])))
