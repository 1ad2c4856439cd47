"""A guarded call that succeeds, beside the bare call and beside the breakers a reader would pick."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import aiobreaker
import circuitbreaker
import purgatory
import pybreaker

from benchmarks.paired import Case, time_async, time_sync
from patterns.resiliency.circuit_breaker import CircuitBreaker, Policy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.paired import Row


async def dependency() -> int:
    """Answer at once."""
    return 1


def sync_dependency() -> int:
    """Answer at once."""
    return 1


def hand_written(fn: Callable[[], Awaitable[int]]) -> Callable[[], Awaitable[int]]:
    """Guard with the least code that opens: a counter of consecutive failures, no window, no probes."""
    failures, opened_at = 0, 0.0

    async def guarded() -> int:
        nonlocal failures, opened_at
        if failures >= 5 and time.monotonic() - opened_at < 60:
            raise RuntimeError("open")
        try:
            result = await fn()
        except ConnectionError:
            failures += 1
            opened_at = time.monotonic()
            raise
        failures = 0
        return result

    return guarded


def hand_written_timed(fn: Callable[..., Awaitable[int]]) -> Callable[..., Awaitable[int]]:
    """Guard as above any arguments, and see slow calls: two readings of the clock."""
    failures, opened_at, now = 0, 0.0, time.monotonic

    async def guarded(*args: object, **kwargs: object) -> int:
        nonlocal failures, opened_at
        began = now()
        if failures >= 5 and began - opened_at < 60:
            raise RuntimeError("open")
        try:
            result = await fn(*args, **kwargs)
        except ConnectionError:
            failures += 1
            opened_at = now()
            raise
        failures = 0 if now() - began < 60 else failures + 1
        return result

    return guarded


def hand_written_sync(fn: Callable[[], int]) -> Callable[[], int]:
    """Guard a plain function with the counter."""
    failures, opened_at = 0, 0.0

    def guarded() -> int:
        nonlocal failures, opened_at
        if failures >= 5 and time.monotonic() - opened_at < 60:
            raise RuntimeError("open")
        try:
            result = fn()
        except ConnectionError:
            failures += 1
            opened_at = time.monotonic()
            raise
        failures = 0
        return result

    return guarded


def measure() -> list[Row]:
    """Return ns per call, sync and async."""
    policy = Policy(record=(ConnectionError,))
    ours = CircuitBreaker("payments", policy)
    decorated = ours(dependency)

    async def block() -> None:
        async with ours:
            await dependency()

    peer_aiobreaker = aiobreaker.CircuitBreaker(fail_max=5, timeout_duration=timedelta(seconds=60))
    peer_circuitbreaker: Any = circuitbreaker.CircuitBreaker(
        failure_threshold=5, recovery_timeout=60, expected_exception=ConnectionError
    )
    peer_pybreaker: Any = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=60)
    factory: Any = purgatory.AsyncCircuitBreakerFactory(default_threshold=5, default_ttl=60)
    by_purgatory = factory("payments")(dependency)
    by_aiobreaker = peer_aiobreaker(dependency)
    by_circuitbreaker = peer_circuitbreaker(dependency)

    cases = [
        Case("bare call", dependency, note="no protection"),
        Case(
            "hand-written counter",
            hand_written(dependency),
            baseline=True,
            note="no arguments, no clock, no window, no limit on probes",
        ),
        Case(
            "hand-written counter with arguments and clock",
            hand_written_timed(dependency),
            note="what seeing slow calls costs by itself; no window, no limit on probes",
        ),
        Case("this module, decorator", decorated, ours=True),
        Case("this module, call", lambda: ours.call(dependency), ours=True),
        Case("this module, async with", block, ours=True),
        Case("circuitbreaker", by_circuitbreaker, note="consecutive failures; half-open admits all"),
        Case("purgatory", by_purgatory, note="consecutive failures; half-open admits all"),
        Case("aiobreaker", by_aiobreaker, note="consecutive failures; half-open admits all"),
    ]
    rows = asyncio.run(time_async(cases))

    def plain() -> int:
        with ours:
            return sync_dependency()

    sync_rows = time_sync(
        [
            Case("sync: bare call", sync_dependency, note="no protection"),
            Case(
                "sync: hand-written counter",
                hand_written_sync(sync_dependency),
                baseline=True,
                note="baseline of the sync rows",
            ),
            Case("sync: circuitbreaker, decorator", peer_circuitbreaker(sync_dependency)),
            Case(
                "sync: pybreaker, decorator",
                peer_pybreaker(sync_dependency),
                note="consecutive failures; around an `async def` it would never open",
            ),
            Case("sync: this module, with", plain, ours=True),
        ]
    )
    return rows + sync_rows


def bounds(rows: list[Row]) -> list[str]:
    """At most 1.3 times the fastest peer, though no peer keeps the same guarantees."""
    ratio = {row["case"]: row["ratio"] for row in rows}
    fastest = min(ratio[peer] for peer in ("circuitbreaker", "purgatory", "aiobreaker"))
    ours = ratio["this module, decorator"]
    return [] if ours <= 1.3 * fastest else [f"decorator {ours} x hand > 1.3 x fastest peer {fastest}"]
