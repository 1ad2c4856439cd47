"""Proof of patterns/outage.py."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from patterns.clock import SYSTEM_CLOCK, ManualClock
from patterns.events import Recorder
from patterns.keyspace import opened
from patterns.outage import CacheLost, CacheRegained, NoCache, Outage
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from patterns.embedded import Server


class Redis:
    """Answers, or raises, or hangs, and counts how often it was asked."""

    def __init__(self, answer: object = b"PONG") -> None:
        self.answer, self.asked = answer, 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> object:
        self.asked += 1
        await self.gate.wait()
        if isinstance(self.answer, BaseException):
            raise self.answer.with_traceback(None)
        return self.answer


def watched(**changes: Any) -> tuple[Outage, ManualClock, Recorder]:
    """Return an outage with a time-out of 1 s and a back-off of 32 s, its clock and what it tells."""
    clock, heard = ManualClock(), Recorder()
    defaults: dict[str, Any] = {"timeout": 1, "back_off": 32, "clock": clock, "on_event": heard}
    return Outage("users", **(defaults | changes)), clock, heard


async def refused(call: Awaitable[object]) -> BaseException | None:
    """Return why there was no answer."""
    with pytest.raises(NoCache) as told:
        await call
    return told.value.__cause__


async def test_an_answer_is_handed_on_and_nothing_is_told() -> None:
    """While Redis answers it is asked each time, and None is an answer."""
    outage, _, heard = watched()
    redis = Redis()
    assert [await outage.ask(redis) for _ in range(3)] == [b"PONG"] * 3
    assert await outage.ask(Redis(None)) is None
    assert redis.asked == 3
    assert heard.events == []


@pytest.mark.parametrize("error", [RedisConnectionError("secret"), ConnectionResetError(), TimeoutError()])
async def test_after_a_failure_it_is_left_alone(error: Exception) -> None:
    """One request pays; during the pause the next ones are refused at once, and do not reach Redis."""
    outage, clock, heard = watched()
    redis = Redis(error)
    assert await refused(outage.ask(redis)) is error
    for _ in range(5):
        assert await refused(outage.ask(redis)) is None
    assert redis.asked == 1
    await clock.advance(1)
    assert await refused(outage.ask(redis)) is error
    assert redis.asked == 2
    assert heard.events == [CacheLost("users", type(error).__name__)]


async def test_silence_costs_one_time_out() -> None:
    """A request that is not answered ends after `timeout`, by the clock that was given."""
    outage, clock, _ = watched()
    redis = Redis()
    redis.gate.clear()
    call = asyncio.create_task(outage.ask(redis))
    await clock.advance(0.9)
    assert not call.done()
    await clock.advance(0.1)
    assert isinstance(await refused(call), TimeoutError)
    assert await refused(outage.ask(redis)) is None


async def test_the_pause_doubles_up_to_the_back_off() -> None:
    """It begins at a thirty-second part of `back_off`, and never grows beyond it."""
    outage, clock, _ = watched()
    redis = Redis(OSError())
    assert await refused(outage.ask(redis))
    pauses = []
    for _ in range(8):
        began = clock.monotonic()
        while await refused(outage.ask(redis)) is None:
            await clock.advance(0.5)
        pauses.append(clock.monotonic() - began)
    assert pauses == [1, 2, 4, 8, 16, 32, 32, 32]


async def test_one_caller_finds_out_for_all() -> None:
    """When the pause has ended, one of ten requests goes through; an answer lets all through again."""
    outage, clock, heard = watched()
    assert await refused(outage.ask(Redis(OSError())))
    await clock.advance(1)
    redis = Redis()
    redis.gate.clear()
    calls = [asyncio.create_task(outage.ask(redis)) for _ in range(10)]
    await asyncio.wait(calls[1:])
    assert redis.asked == 1
    redis.gate.set()
    assert await calls[0] == b"PONG"
    assert [await refused(call) for call in calls[1:]] == [None] * 9
    assert await outage.ask(redis) == b"PONG"
    assert heard.events == [CacheLost("users", "OSError"), CacheRegained("users")]


async def test_who_is_cancelled_while_it_finds_out_costs_one_back_off() -> None:
    """Nobody is locked out for ever by a caller that left."""
    outage, clock, _ = watched()
    assert await refused(outage.ask(Redis(OSError())))
    await clock.advance(1)
    redis = Redis()
    redis.gate.clear()
    call = asyncio.create_task(outage.ask(redis))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    redis.gate.set()
    assert await refused(outage.ask(redis)) is None
    await clock.advance(32)
    assert await outage.ask(redis) == b"PONG"


async def test_of_many_that_fail_together_one_counts() -> None:
    """A hundred requests under way when Redis dies make the first pause, not the hundredth."""
    outage, clock, heard = watched()
    redis = Redis(OSError())
    redis.gate.clear()
    calls = [asyncio.create_task(outage.ask(redis)) for _ in range(100)]
    await asyncio.sleep(0)
    redis.gate.set()
    for call in calls:
        assert await refused(call)
    await clock.advance(1)
    assert await outage.ask(Redis()) == b"PONG"
    assert heard.names() == ["CacheLost", "CacheRegained"]


async def test_a_refusal_is_an_answer() -> None:
    """Out of memory, or a wrong type, is NoCache for this request; Redis is not left alone for it."""
    outage, clock, heard = watched()
    error = ResponseError("OOM command not allowed")
    assert await refused(outage.ask(Redis(error))) is error
    assert await outage.ask(Redis()) == b"PONG"
    assert heard.events == []
    assert await refused(outage.ask(Redis(OSError())))
    await clock.advance(1)
    assert await refused(outage.ask(Redis(error))) is error
    assert await outage.ask(Redis()) == b"PONG"
    assert heard.names() == ["CacheLost", "CacheRegained"]


async def test_anyway_asks_during_a_pause() -> None:
    """What costs more undone than a time-out is tried each time, and its answer ends the outage."""
    outage, _, heard = watched()
    redis = Redis(OSError())
    assert await refused(outage.ask(redis))
    assert await refused(outage.ask(redis, anyway=True))
    assert redis.asked == 2
    assert await outage.ask(Redis(), anyway=True) == b"PONG"
    assert await outage.ask(Redis()) == b"PONG"
    assert heard.names() == ["CacheLost", "CacheRegained"]


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("ours"), asyncio.CancelledError()])
async def test_what_is_not_of_redis_passes_as_it_is(error: BaseException) -> None:
    """A bug, or a cancellation, is not taken for an outage."""
    outage, _, heard = watched()
    with pytest.raises(type(error)):
        await outage.ask(Redis(error))
    assert await outage.ask(Redis()) == b"PONG"
    assert heard.events == []


async def test_a_real_server_is_lost_and_found(fresh_server: Server) -> None:
    """Killed, it costs one failure; restarted, it is found within the back-off, and told once each way."""
    heard = Recorder()
    async with opened(fresh_server.url) as client:
        outage = Outage("users", timeout=2, back_off=0.2, clock=SYSTEM_CLOCK, on_event=heard)
        assert await outage.ask(client.ping)
        fresh_server.kill()
        began = time.monotonic()
        for _ in range(1000):
            await refused(outage.ask(client.ping))
        assert time.monotonic() - began < 2
        fresh_server.restart()

        async def answers() -> bool:
            try:
                return bool(await outage.ask(client.ping))
            except NoCache:
                return False

        await eventually(answers, within=5)
    assert heard.names() == ["CacheLost", "CacheRegained"]
