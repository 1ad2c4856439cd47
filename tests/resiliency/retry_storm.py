"""Forty callers of one process ask for a retry at a given word: prints how many were granted one.

Arguments: app, and `shared` or `alone` (the naive variant: every process has a budget of its own).
"""

from __future__ import annotations

import asyncio
import sys

from patterns.keyspace import opened
from patterns.resiliency.retry import Budget
from patterns.resiliency.retry.shared import SharedBudget


async def main(app: str, kind: str) -> None:
    """Wait for the stream `<app>:go`, then ask."""
    async with opened(socket_timeout=None) as client:
        shared = SharedBudget("payments", client, app=app, min_per_second=0, capacity=10, timeout=5.0)
        budget = shared if kind == "shared" else Budget(min_per_second=0, capacity=10)
        print("ready", flush=True)
        await client.xread({f"{app}:go": "0"}, block=20_000)
        granted = await asyncio.gather(*[budget.withdraw() for _ in range(40)])
    print("granted", sum(granted), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
