"""Callers of one process read one value when they are told to: prints what they got, and how soon.

Arguments: the URL and the stream of the orders. An order says where the cache is (`url`), the `app`, which
cache (`kind`: `read_through`, or the naive `textbook` or `local`), the `lease` in seconds and how many
`callers`; every second of them asks for the value by `get_all` among two others. The source is in Redis too,
so that the loads of all processes are counted: each call pushes its process's id to `<app>:loads` and waits
for the stream `<app>:gate`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from patterns.cache.read_through import Policy, ReadThrough
from patterns.keyspace import opened
from tests.cache.read_through_source import LocalFlightOnly, Textbook

if TYPE_CHECKING:
    from patterns.events import Event
    from patterns.keyspace import Client

KINDS: dict[str, Any] = {"read_through": ReadThrough, "textbook": Textbook, "local": LocalFlightOnly}
KEYS = ["41", "42", "43"]


async def read(app: str, kind: str, url: str, lease: str, callers: str) -> None:
    """Wait for the stream `<app>:go`, then read."""
    many = int(callers)
    policy = Policy(ttl=60, negative_ttl=60, max_loads=many, lease=float(lease), timeout=5.0)
    waiting = 0

    def waits() -> None:
        nonlocal waiting
        waiting += 1
        if waiting == many:
            print(app, "all wait", flush=True)

    def count(event: Event) -> None:
        if type(event).__name__ == "CacheMissed" and vars_of(event) == "42":
            waits()

    async with opened(url, socket_timeout=None, max_connections=2 * many) as client:

        async def load(key: str) -> str:
            return (await load_all([key]))[key]

        async def load_all(keys: list[str]) -> dict[str, str]:
            if "42" in keys:
                if kind == "textbook":
                    waits()
                await asked(client, app)
            return {key: f"the value of {key}" for key in keys}

        cache = KINDS[kind]("users", client, policy, load=load, load_all=load_all, app=app, on_event=count)

        async def one(number: int) -> tuple[bool, float]:
            began = time.monotonic()
            keys = KEYS if number % 2 else ["42"]
            got = await cache.get_all(keys) if number % 2 else {"42": await cache.get("42")}
            return got == {key: f"the value of {key}" for key in keys}, time.monotonic() - began

        print(app, "ready", flush=True)
        await client.xread({f"{app}:go": "0"}, block=20_000)
        got = await asyncio.gather(*[one(number) for number in range(many)])
    print(app, "right", sum(right for right, _ in got), f"{max(took for _, took in got):.3f}", flush=True)


def vars_of(event: Any) -> str:
    """Return the key of a CacheMissed."""
    return str(event.entity)


async def asked(client: Client, app: str) -> None:
    """Note a load, and wait until it may go on."""
    pushed: Any = client.rpush(f"{app}:loads", os.getpid())
    await pushed
    await client.xread({f"{app}:gate": "0"}, block=20_000)


async def main(url: str, orders: str) -> None:
    """Carry out one order after the other, until killed."""
    last = b"0"
    async with opened(url, socket_timeout=None) as client:
        while True:
            found: Any = await client.xread({orders: last}, count=1, block=0)
            ((last, order),) = found[0][1]
            await read(**{key.decode(): value.decode() for key, value in order.items()})


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
