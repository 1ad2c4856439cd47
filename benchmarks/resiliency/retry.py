"""A call that succeeds at once, and one that fails once, beside the libraries a reader would pick."""

from __future__ import annotations

import asyncio
import itertools
import logging
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import backoff
import stamina
import tenacity

from benchmarks.paired import Case, time_async
from patterns.resiliency.retry import Budget, Jitter, Policy, Retry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from benchmarks.paired import Row

ATTEMPTS = 3


async def dependency() -> int:
    """Answer at once."""
    return 1


def told(event: object) -> None:
    """Listen, and do nothing."""


def failing_once() -> Callable[[], Coroutine[Any, Any, int]]:
    """Return a dependency of which every other call fails."""
    turn = itertools.cycle((True, False))

    async def call() -> int:
        if next(turn):
            raise ConnectionError("reset")
        return 1

    return call


def hand_written(fn: Callable[..., Awaitable[int]], base: float = 0.1) -> Callable[..., Awaitable[int]]:
    """Repeat with the least code that takes arguments: attempts and doubling waits, no jitter."""

    @wraps(fn)
    async def repeated(*args: object, **kwargs: object) -> int:
        for attempt in range(ATTEMPTS):
            try:
                return await fn(*args, **kwargs)
            except ConnectionError:
                if attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(base * 2**attempt)
        raise AssertionError

    return repeated


def by_backoff(fn: Any, base: float = 0.1) -> Any:
    """Return `fn` as backoff repeats it; its jitter is its default, full."""
    waits: Any = {"wait_gen": backoff.expo, "factor": base} if base else {"wait_gen": backoff.constant}
    if not base:
        waits |= {"interval": 0, "jitter": None}
    return backoff.on_exception(exception=ConnectionError, max_tries=ATTEMPTS, logger=None, **waits)(fn)


def by_stamina(fn: Any, base: float = 0.1) -> Any:
    """Return `fn` as stamina repeats it."""
    return stamina.retry(
        on=ConnectionError, attempts=ATTEMPTS, wait_initial=base, wait_jitter=base, wait_max=20.0
    )(fn)


def by_tenacity(fn: Any, base: float = 0.1) -> Any:
    """Return `fn` as tenacity repeats it, with the error itself in the end."""
    wait: Any = tenacity.wait_random_exponential(multiplier=base, max=20) if base else tenacity.wait_none()
    return tenacity.retry(
        retry=tenacity.retry_if_exception_type(ConnectionError),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=wait,
        reraise=True,
    )(fn)


def measure() -> list[Row]:
    """Return ns per call that succeeds at once, and per call that fails once and waits for nothing."""
    stamina.instrumentation.set_on_retry_hooks([])  # its default writes a log line for each retry
    logging.getLogger("backoff").disabled = True
    policy = Policy(on=(ConnectionError,), idempotent=True, attempts=ATTEMPTS)
    ours = Retry("dependency", policy)
    decorated = ours(dependency)
    budgeted = Retry("dependency", policy, budget=Budget())(dependency)
    listened = Retry("dependency", policy, on_event=told)(dependency)
    limited = Retry(
        "dependency", Policy(on=(ConnectionError,), idempotent=True, attempts=ATTEMPTS, deadline=10.0)
    )(dependency)

    async def loop() -> None:
        async for attempt in ours.attempts():
            async with attempt:
                await dependency()

    async def loop_of_stamina() -> None:
        async for attempt in stamina.retry_context(on=ConnectionError, attempts=ATTEMPTS):
            with attempt:
                await dependency()

    waits = "exponential with jitter"
    at_once = [
        Case("bare call", dependency, note="no retry"),
        Case("hand-written loop", hand_written(dependency), baseline=True, note="no jitter, no guard"),
        Case("this module, decorator", decorated, ours=True),
        Case("this module, call", partial(ours.call, dependency), ours=True),
        Case("this module, with a budget", budgeted, ours=True),
        Case("this module, with a listener", listened, ours=True, note="it is told of each call"),
        Case("this module, loop over attempts", loop, ours=True),
        Case("this module, with a deadline", limited, ours=True, note="a timer for each attempt"),
        Case("backoff", by_backoff(dependency), note=waits),
        Case("stamina", by_stamina(dependency), note=f"{waits}; 45 s in all"),
        Case("stamina, loop over attempts", loop_of_stamina, note=f"{waits}; 45 s in all"),
        Case("tenacity", by_tenacity(dependency), note=waits),
    ]
    at_second = [
        Case(
            "fails once: hand-written loop",
            hand_written(failing_once(), 0),
            baseline=True,
            note="baseline of these rows; no wait in any of them",
        ),
        Case(
            "fails once: this module",
            Retry(
                "dependency",
                Policy(on=(ConnectionError,), idempotent=True, attempts=ATTEMPTS, base=0, jitter=Jitter.NONE),
            )(failing_once()),
            ours=True,
        ),
        Case("fails once: backoff", by_backoff(failing_once(), 0)),
        Case("fails once: stamina", by_stamina(failing_once(), 0)),
        Case("fails once: tenacity", by_tenacity(failing_once(), 0)),
    ]
    return asyncio.run(time_async(at_once)) + asyncio.run(time_async(at_second, calls=200))


def bounds(rows: list[Row]) -> list[str]:
    """At most 1.5 times a hand-written loop, and so many times faster than each library."""
    ratio = {row["case"]: row["ratio"] for row in rows}
    ours = ratio["this module, decorator"]
    broken = [
        f"{handle} {found} x hand-written > 1.5 x"
        for handle in ("decorator", "call")
        if (found := ratio[f"this module, {handle}"]) > 1.5
    ]
    for peer, times in {"backoff": 3, "stamina": 19, "tenacity": 25}.items():
        if ratio[peer] < times * ours:
            broken.append(f"{peer} {ratio[peer]} x hand-written < {times} x ours {ours}")
    return broken
