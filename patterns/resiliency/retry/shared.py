"""A retry budget that many processes share through Redis.

Each process hands in what its successes have earned when it asks for a retry; asking is one script. A call
that succeeds at once costs no round trip.

When Redis does not answer within `timeout`, each process goes on with a bucket of its own, and looks for
Redis again a second later.

Redis key: `<app>:{retry:<name>}:budget`, hash: tokens, at (server ms). It expires when the bucket would be
full by time alone, and after a day at most; a bucket that is not there is full.

What is looser than in one process: a process brings at most one retry's worth of successes at a time, or
twenty of them would come to an outage with twenty full purses.
Without Redis that is twenty whole budgets for twenty processes: `local` sets what each may do then.
A failover may forget the bucket, which fills it: `capacity` more retries at most. A reply lost on the way,
or a caller that hangs up while asking, costs one token and what was handed in with the question. A server's
clock set back earns nothing; set forward it fills the bucket.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from redis.exceptions import RedisError

from patterns.bounds import number
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.events import Event, Listener, emit, ignore
from patterns.keyspace import Client, Keyspace, OutcomeUnknown, Script
from patterns.resiliency.retry.budget import Budget, check_budget

__all__ = ["SharedBudget", "SharingLost", "SharingRegained"]

_WITHDRAW = Script(
    "retry.withdraw",
    """
-- KEYS[1] hash tokens, at; ARGV[1] capacity, ARGV[2] tokens per second, ARGV[3] tokens handed in
local capacity, rate = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local saved = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(saved[1] or capacity), tonumber(saved[2] or now)
tokens = math.min(capacity, tokens + math.max(0, now - at) * rate / 1000 + tonumber(ARGV[3]))
local granted = 0
if tokens >= 1 - 1e-9 then
  tokens, granted = tokens - 1, 1
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.17g', tokens), 'at', now)
local full, day = (capacity - tokens) / rate * 1000, 86400000
redis.call('PEXPIRE', KEYS[1], full < day and math.ceil(full) + 1 or day)
return granted
""",
)
_ALONE_SECONDS = 1.0  # how long a process that lost Redis goes on without asking


@dataclass(frozen=True, slots=True)
class SharingLost(Event):
    """Redis did not answer: this process has a budget of its own from now on."""

    error: str


@dataclass(frozen=True, slots=True)
class SharingRegained(Event):
    """Redis answers again: the common budget counts."""


class SharedBudget:
    """One budget for one dependency of many processes; it belongs to one event loop.

    Args:
        name: the dependency; the same in every process.
        client: from `patterns.keyspace`.
        app: first part of the key.
        ratio: retries earned by each success.
        min_per_second: retries earned by each second, by all processes together.
        capacity: retries that can be saved up, by all processes together.
        timeout: seconds that asking may take.
        local: the budget of this process while Redis does not answer; None makes one of the same size.
        clock: where durations are read.
        on_event: hears SharingLost and SharingRegained.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        *,
        app: str,
        ratio: float = 0.1,
        min_per_second: float = 1.0,
        capacity: float = 10.0,
        timeout: float = 0.25,
        local: Budget | None = None,
        clock: Clock = SYSTEM_CLOCK,
        on_event: Listener = ignore,
    ) -> None:
        check_budget(ratio, min_per_second, capacity)
        self.name = name
        self._client = client
        self._key = Keyspace(app, "retry").key(name, "budget")
        self._ratio = ratio
        self._bounds = (capacity, min_per_second)
        self._timeout = number("timeout", timeout, above=0)
        self._clock = clock
        self._on_event = on_event
        self._local = local or Budget(
            ratio=ratio, min_per_second=min_per_second, capacity=capacity, clock=clock
        )
        self._alone_until = -math.inf
        self._alone = False
        self._earned = 0.0  # by successes since the last question
        self._returned = 0

    @property
    def alone(self) -> bool:
        """Whether this process goes on without Redis now."""
        return self._alone

    def deposit(self) -> None:
        """Note a call that succeeded."""
        if self._earned < 1:
            self._earned = min(1.0, self._earned + self._ratio)
        self._local.deposit()

    async def withdraw(self) -> bool:
        """Take leave for one retry, if there is one; one round trip."""
        if self._clock.monotonic() < self._alone_until:
            return self._local.take()
        earned, returned, self._earned, self._returned = self._earned, self._returned, 0.0, 0
        question = [*self._bounds, earned + returned]
        try:
            async with self._clock.timeout(self._timeout):
                granted = await _WITHDRAW(self._client, keys=[self._key], args=question)
        except (RedisError, OSError, TimeoutError) as error:
            if isinstance(error, RedisError) and not isinstance(error, OutcomeUnknown):  # surely not done
                self._earned, self._returned = min(1.0, self._earned + earned), self._returned + returned
            self._lose(type(error).__name__)
            return self._local.take()
        if self._alone:
            self._alone, self._alone_until = False, -math.inf
            emit(self._on_event, SharingRegained(self.name))
        return bool(granted)

    def give_back(self) -> None:
        """Return the leave of a retry that was not made."""
        if self._alone:
            self._local.give_back()
        else:
            self._returned += 1

    def _lose(self, error: str) -> None:
        self._alone_until = self._clock.monotonic() + _ALONE_SECONDS
        if not self._alone:
            self._alone = True
            emit(self._on_event, SharingLost(self.name, error))
