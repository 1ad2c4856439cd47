"""A call with a substitute at hand, while the primary is well and while it is down, and what peers take."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import tenacity
from cashews import Cache

from benchmarks.paired import Case, time_async
from patterns.resiliency.fallback import Fallback, LastGood, Level, Policy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.paired import Row


class Service:
    """Answers at once, or refuses at once."""

    def __init__(self) -> None:
        self.up = True

    async def price(self, article: str) -> int:
        """Return a price."""
        if self.up:
            return len(article)
        raise ConnectionError("refused")


async def list_price(article: str) -> int:
    """Stand in."""
    return len(article)


def hand_written(
    fn: Callable[..., Awaitable[int]], other: Callable[..., Awaitable[int]]
) -> Callable[..., Awaitable[tuple[int, str, bool]]]:
    """Do the least that tells a substitute from the real thing: no limit, no time, no events."""

    async def answered(*args: object, **kwargs: object) -> tuple[int, str, bool]:
        try:
            return await fn(*args, **kwargs), "primary", False
        except ConnectionError:
            return await other(*args, **kwargs), "list price", True

    return answered


def cases(service: Service, suffix: str) -> list[Case]:
    """Return the same cases for either state of the primary."""
    price = service.price
    policy = Policy(on=(ConnectionError,))
    ours = Fallback("prices", policy, Level("list price", list_price))
    timed = Fallback(
        "prices", Policy(on=(ConnectionError,), deadline=1.0), Level("list price", list_price, timeout=0.5)
    )
    kept: LastGood[int] = LastGood(key=lambda article: article, max_entries=1000)
    remembering = Fallback("prices", policy, Level("last good", kept))
    by_hand = hand_written(price, list_price)

    async def substitute(state: tenacity.RetryCallState) -> int:
        return await list_price(*state.args)

    retry: Any = tenacity.retry(
        stop=tenacity.stop_after_attempt(1),
        retry=tenacity.retry_if_exception_type(ConnectionError),
        retry_error_callback=substitute,
    )
    by_tenacity = retry(price)
    cache = Cache()
    cache.setup("mem://")
    failover: Any = cache.failover(ttl="1h", exceptions=(ConnectionError,), key="price:{article}")
    by_cashews = failover(price)

    async def fill() -> None:
        service.up, up = True, service.up
        await remembering.call(price, "cup")
        await by_cashews("cup")
        service.up = up

    asyncio.run(fill())
    return [
        Case(
            f"hand-written try/except{suffix}",
            lambda: by_hand("cup"),
            baseline=True,
            note="no limit, no time",
        ),
        Case(f"this module, call{suffix}", lambda: ours.call(price, "cup"), ours=True),
        Case(
            f"this module, deadline and timeout{suffix}",
            lambda: timed.call(price, "cup"),
            ours=True,
            note="while the primary is down it costs a timer",
        ),
        Case(
            f"this module, last good value{suffix}",
            lambda: remembering.call(price, "cup"),
            ours=True,
            note="keeps each answer of the primary",
        ),
        Case(
            f"tenacity, retry_error_callback{suffix}",
            lambda: by_tenacity("cup"),
            note="one attempt; the answer does not say that it is a substitute",
        ),
        Case(
            f"cashews, failover{suffix}",
            lambda: by_cashews("cup"),
            note="keeps each answer, in memory; the answer does not say that it is a copy",
        ),
    ]


def measure() -> list[Row]:
    """Return ns per call, with the primary well and down."""
    well, down = Service(), Service()
    down.up = False
    bare = Case("bare call", lambda: well.price("cup"), note="no substitute")
    rows = asyncio.run(time_async([bare, *cases(well, "")]))
    return rows + asyncio.run(time_async(cases(down, ", primary down")))


def bounds(rows: list[Row]) -> list[str]:
    """Each is no slower than 1.3 times the peer that does the same, though neither marks its answers."""
    ratio = {row["case"]: row["ratio"] for row in rows}
    broken = []
    for suffix in ("", ", primary down"):
        for ours, peer in (
            ("this module, call", "tenacity, retry_error_callback"),
            ("this module, last good value", "cashews, failover"),
        ):
            mine, theirs = ratio[ours + suffix], ratio[peer + suffix]
            if mine > 1.3 * theirs:
                broken.append(f"{ours}{suffix} {mine} x hand > 1.3 x {peer} {theirs}")
    return broken
