"""A writer that stops at one point of each put and says so, to be killed there.

Arguments: the URL of Redis, of the database, the app, the key, the value, the lease, the kind of cache and
the point: `begin`, `mark`, `store`, `stored` or `end`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from patterns import database
from patterns.cache.write_through import Policy, WriteThrough
from patterns.keyspace import opened
from tests.cache.write_through_site import Rows, Textbook, v

KINDS: dict[str, Any] = {"write_through": WriteThrough, "textbook": Textbook}


async def main(
    url: str, home: str, app: str, key: str, value: str, lease: str, kind: str, point: str
) -> None:
    """Put, up to the point."""
    policy = Policy(ttl=60, negative_ttl=60, max_writes=1, max_loads=1, lease=float(lease), timeout=5)

    async def reached(step: str, _: str) -> None:
        if step == point:
            print("stands at", point, flush=True)
            await asyncio.get_running_loop().create_future()

    async with opened(url) as client, database.opened(home) as db:
        rows = Rows(db)
        await rows.has(key)  # connects
        await client.get(app)
        rows.hook = reached
        cache = KINDS[kind]("things", client, policy, source=rows, app=app)
        await reached("begin", key)
        if point == "mark":
            cache._entries.mark = lambda *_: reached("mark", key)
        print("writes", flush=True)
        await cache.put(key, v(value))
        await reached("end", key)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
