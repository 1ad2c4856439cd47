"""Twenty-five callers of one process meet a half-open circuit at a given word: prints how many were admitted.

Arguments: app, and `shared` or `alone` (the naive variant: every process has a breaker of its own).
"""

from __future__ import annotations

import asyncio
import sys

from patterns.keyspace import opened
from patterns.resiliency.circuit_breaker import CircuitBreaker, CircuitOpen, Policy, TimeBased
from patterns.resiliency.circuit_breaker.shared import SharedCircuitBreaker


async def main(app: str, kind: str) -> None:
    """Wait for the stream `<app>:go`, then call."""
    policy = Policy(
        record=(ConnectionError,),
        sliding_window=TimeBased(60),
        minimum_calls=4,
        wait_in_open=0.05,
        permitted_calls_in_half_open=3,
    )
    async with opened(socket_timeout=None) as client:
        shared = SharedCircuitBreaker("payments", policy, client, app=app, timeout=5.0)
        alone = CircuitBreaker("payments", policy)
        alone.trip(0.0)
        print("ready", flush=True)
        await client.xread({f"{app}:go": "0"}, block=20_000)
        admitted = 0

        async def caller() -> None:
            nonlocal admitted
            try:
                if kind == "shared":
                    await shared.admit()
                else:
                    alone.admit()
            except CircuitOpen:
                return
            admitted += 1

        await asyncio.gather(*[caller() for _ in range(25)])
    print("admitted", admitted, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
