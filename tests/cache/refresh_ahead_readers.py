"""Readers of one process read a value at its end when they are told to: prints how many did not wait.

Arguments: the URL, the stream of the orders, and after which of them to begin. An order says where the cache
is (`url`), the `app`, which cache (`kind`: `refresh_ahead`, or the naive `expires`, `each_reader` or
`each_process`), the `lease` in seconds and how many `callers`. The source is in Redis too, so that the loads
of all processes are counted: from the second on each load pushes its process's id to `<app>:loads` and waits
for the stream `<app>:gate`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from patterns.cache.refresh_ahead import Policy, RefreshAhead
from patterns.keyspace import opened
from tests.cache.refresh_ahead_naive import EachProcess, EachReader, Expires
from tests.eventually import eventually

if TYPE_CHECKING:
    from patterns.keyspace import Client

KINDS: dict[str, Any] = {
    "refresh_ahead": RefreshAhead,
    "expires": Expires,
    "each_reader": EachReader,
    "each_process": EachProcess,
}
# Seconds after which a reader counts as one that waits: the load does not end before.
PATIENCE = {"expires": 0.5}


async def read(app: str, kind: str, url: str, lease: str, callers: str) -> None:
    """Fill the cache, wait for the stream `<app>:go`, read, and go on until the new value is there."""
    many = int(callers)
    policy = Policy(
        ttl=600,
        negative_ttl=60,
        refresh_after=0.5,
        max_loads=2 * many,
        max_refreshes=many,
        refresh_pause=0.2,
        lease=float(lease),
        timeout=5.0,
    )
    async with opened(url, socket_timeout=None, max_connections=2 * many) as client:
        filled = False

        async def load(key: str) -> str:
            if not filled:
                return f"the old value of {key}"
            await asked(client, app)
            return f"the new value of {key}"

        async with KINDS[kind]("users", client, policy, load=load, app=app) as cache:
            assert await cache.get("a") == "the old value of a"
            filled = True
            print(app, "ready", flush=True)
            await client.xread({f"{app}:go": "0"}, block=20_000)
            calls = [asyncio.create_task(cache.get("a")) for _ in range(many)]
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE.get(kind, 20)):
                    await asyncio.wait(calls)
            print(app, "served", sum(call.done() for call in calls), flush=True)
            await asyncio.gather(*calls)
            if kind != "refresh_ahead":  # each further read would be a further load
                await client.xread({f"{app}:gate": "0"}, block=20_000)
            await eventually(partial(new, cache), within=30)
            print(app, "new", flush=True)
            await eventually(partial(done, cache), within=30)
        print(app, "ended", flush=True)


async def new(cache: Any) -> bool:
    """Read once more."""
    return bool(await cache.get("a") == "the new value of a")


def done(cache: Any) -> bool:
    """Say whether it refreshes nothing."""
    return not (hasattr(cache, "_refresher") and cache._refresher._tasks)


async def asked(client: Client, app: str) -> None:
    """Note a load, and wait until it may go on."""
    pushed: Any = client.rpush(f"{app}:loads", os.getpid())
    await pushed
    await client.xread({f"{app}:gate": "0"}, block=20_000)


async def main(url: str, orders: str, latest: str) -> None:
    """Carry out one order after the other, from `latest` on, until killed."""
    last: str | bytes = latest
    async with opened(url, socket_timeout=None) as client:
        while True:
            found: Any = await client.xread({orders: last}, count=1, block=0)
            ((last, order),) = found[0][1]
            await read(**{key.decode(): value.decode() for key, value in order.items()})


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
