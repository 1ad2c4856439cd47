"""Fifty callers of one process read one value when they are told to: prints what they got, and how soon.

Arguments: the URL and the stream of the orders. An order says where the cache is (`url`), the `app`, which
cache, `cache_aside` or a naive one, `textbook` (get, else load and set) or `local` (single flight in the
process alone), and the `lease` in seconds. The source is in Redis too, so that the loads of all processes are
counted: each pushes its process's id to `<app>:loads` and waits for the stream `<app>:gate`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from patterns.cache.cache_aside import CacheAside, Policy
from patterns.events import Event, ignore
from patterns.keyspace import opened

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patterns.cache.cache_aside.store import Turn

CALLERS = 50


class Textbook:
    """What most tutorials show: get, else load and set; after a write, delete."""

    def __init__(self, name: str, client: Any, policy: Policy, *, app: str, **_: Any) -> None:
        self.client, self.policy, self.prefix = client, policy, f"{app}:{name}:"

    async def get(self, entity: str, load: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Read through the cache."""
        cached = await self.client.get(self.prefix + entity)
        if cached is not None:
            return json.loads(cached)
        value = await load(*args)
        if value is not None:
            await self.client.set(self.prefix + entity, json.dumps(value), px=round(self.policy.ttl * 1000))
        return value

    async def write(self, entity: str, store: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Write, then delete; an invalidation that fails is logged at best."""
        try:
            return await store(*args)
        finally:
            await self.invalidate(entity)

    async def invalidate(self, *entities: str) -> None:
        """Delete, and hope."""
        with suppress(Exception):
            for entity in entities:
                await self.client.delete(self.prefix + entity)


class LocalFlightOnly(CacheAside):
    """Single flight in each process, none between them."""

    async def _begin(self, entity: str, token: str, bad: bytes, *, alone: bool) -> Turn | None:
        return await super()._begin(entity, token, bad, alone=True)


KINDS: dict[str, Any] = {"cache_aside": CacheAside, "textbook": Textbook, "local": LocalFlightOnly}


async def read(app: str, kind: str, url: str, lease: str) -> None:
    """Wait for the stream `<app>:go`, then read."""
    policy = Policy(ttl=60, negative_ttl=60, max_loads=CALLERS, lease=float(lease), timeout=5.0)
    waiting = 0

    def count(event: Event) -> None:
        if type(event).__name__ == "CacheMissed":
            waits()

    def waits() -> None:
        nonlocal waiting
        waiting += 1
        if waiting == CALLERS:
            print(app, "all wait", flush=True)

    async with opened(url, socket_timeout=None, max_connections=2 * CALLERS) as client:
        cache = KINDS[kind](
            "users", client, policy, app=app, on_event=count if kind != "textbook" else ignore
        )

        async def load() -> str:
            if kind == "textbook":
                waits()
            await client.rpush(f"{app}:loads", os.getpid())
            await client.xread({f"{app}:gate": "0"}, block=20_000)
            return "the value"

        async def one() -> tuple[str, float]:
            began = time.monotonic()
            return await cache.get("42", load), time.monotonic() - began

        print(app, "ready", flush=True)
        await client.xread({f"{app}:go": "0"}, block=20_000)
        got = await asyncio.gather(*[one() for _ in range(CALLERS)])
    right = sum(value == "the value" for value, _ in got)
    print(app, "right", right, f"{max(seconds for _, seconds in got):.3f}", flush=True)


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
