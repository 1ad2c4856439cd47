"""A circuit breaker whose state is shared by many processes through Redis.

Each process counts its outcomes and exchanges them for the common state in one script, at most once per
`refresh` seconds; between two exchanges a decision costs no round trip. Only probes cost one each, because
together the processes may admit no more than permitted.

When Redis does not answer within `timeout`, a local `CircuitBreaker` of the same policy takes over, open if
the common state was open, until Redis is back.

Redis keys, all in one slot; they expire when nothing has been exchanged for a day:

- `<app>:{circuit_breaker:<name>}:state`   hash: state, generation, ends (server ms), results of the probes
- `<app>:{circuit_breaker:<name>}:window`  hash: `<slice>:<total|failed|slow>` to count
- `<app>:{circuit_breaker:<name>}:probes`  set: ids of the probes that are running

What Redis may lose: a reply lost on the way costs or keeps one batch of counts (it is never sent twice); a
failover may forget that the circuit is open, and the next failures open it again. Time is the server's, so
the clocks of the processes do not matter.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from redis.exceptions import RedisError

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.events import Event, Listener, emit, ignore
from patterns.keyspace import Client, Keyspace, Script
from patterns.resiliency.circuit_breaker import (
    CallRejected,
    CircuitBreaker,
    CircuitOpen,
    Permit,
    Policy,
    State,
    StateChanged,
    TimeBased,
)
from patterns.resiliency.circuit_breaker.window import FAILED, SLOW, TimeWindow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

__all__ = ["SharedCircuitBreaker", "SharedPermit", "SharingLost", "SharingRegained"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SharingLost(Event):
    """Redis did not answer: this process decides alone from now on."""

    error: str


@dataclass(frozen=True, slots=True)
class SharingRegained(Event):
    """Redis answers again: the common state decides."""


@dataclass(frozen=True, slots=True)
class SharedPermit:
    """Leave for one call: counted in `generation` of the common state, or by the local breaker."""

    generation: int
    began: float
    probe: str | None = None
    local: Permit | None = None


@dataclass(slots=True)
class _Counts:
    """Outcomes that wait for the next exchange."""

    since: float = math.inf
    numbers: list[int] = field(default_factory=lambda: [0, 0, 0])  # total, failed, slow


class SharedCircuitBreaker:
    """One breaker for one dependency of many processes.

    Use it as `async with breaker:`, `await breaker.call(fn, *args)` or `@breaker` on an `async def`.

    Args:
        name: the dependency; the same in every process.
        policy: the same in every process; its window must be `TimeBased`.
        client: from `patterns.keyspace`.
        app: first part of the keys.
        refresh: seconds for which a read of the common state is believed.
        timeout: seconds that one exchange with Redis may take.
        clock: where durations are read.
        on_event: hears StateChanged, CallRejected, SharingLost, SharingRegained, and the local breaker's
            events.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        client: Client,
        *,
        app: str,
        refresh: float = 0.1,
        timeout: float = 0.25,
        clock: Clock = SYSTEM_CLOCK,
        on_event: Listener = ignore,
    ) -> None:
        if not isinstance(policy.sliding_window, TimeBased):
            raise ValueError(f"sliding_window must be TimeBased to be shared, got {policy.sliding_window!r}")
        for label, seconds in (("refresh", refresh), ("timeout", timeout)):
            if not 0 < seconds < math.inf:
                raise ValueError(f"{label} must be > 0 seconds and finite, got {seconds!r}")
        self.name = name
        self.policy = policy
        self._client = client
        self._clock = clock
        self._now = clock.monotonic
        self._refresh = refresh
        self._timeout = timeout
        self._on_event = on_event
        keys = Keyspace(app, "circuit_breaker")
        self._keys = [keys.key(name, role) for role in ("state", "window", "probes")]
        self._policy_args = _policy_args(policy)
        self._local = CircuitBreaker(name, policy, clock=clock, on_event=on_event)
        self._alone = False
        self._state = State.CLOSED
        self._generation = -1
        self._ends = math.inf
        self._stale_at = -math.inf
        self._exchange: asyncio.Event | None = None
        self._window_seconds = policy.sliding_window.seconds
        self._counts = _Counts()

    # --8<-- [start:decide]
    async def admit(self) -> SharedPermit:
        """Let one call through, or raise CircuitOpen."""
        await self._exchange_if_stale()
        if self._alone:
            local = self._local.admit()
            return SharedPermit(self._generation, local[1], local=local)
        now = self._now()
        if self._state in (State.CLOSED, State.DISABLED):
            return SharedPermit(self._generation, now)
        if self._state is State.HALF_OPEN or (self._state is State.OPEN and now >= self._ends):
            probe = uuid.uuid4().hex
            admitted = await self._run(_PROBE, probe)
            if self._alone:
                return await self.admit()
            if admitted:
                return SharedPermit(self._generation, now, probe=None if admitted == _CLOSED else probe)
        retry_after = max(0.0, self._ends - now) if self._state is State.OPEN else None
        emit(self._on_event, CallRejected(self.name, self._state, retry_after))
        raise CircuitOpen(self.name, self._state, retry_after)

    # --8<-- [end:decide]

    async def succeeded(self, permit: SharedPermit, result: object = None) -> None:
        """Count a call that returned `result`."""
        if permit.local is not None:
            self._local.succeeded(permit.local, result)
            return
        failed = self.policy.record_result is not None and self.policy.record_result(result)
        await self._record(permit, FAILED if failed else 0)

    async def failed(self, permit: SharedPermit, error: BaseException) -> None:
        """Count a call that raised `error`: a failure, a success or neither, as the policy says."""
        if permit.local is not None:
            self._local.failed(permit.local, error)
        elif not isinstance(error, Exception) or isinstance(error, self.policy.ignore):
            if permit.probe is not None:
                await self._run(_RESULT, permit.probe, permit.generation, -1)
        else:
            await self._record(permit, FAILED if isinstance(error, self.policy.record) else 0)

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `fn(*args, **kwargs)` behind the breaker.

        Raises:
            CircuitOpen: the call was refused.
        """
        permit = await self.admit()
        try:
            result = await fn(*args, **kwargs)
        except BaseException as error:
            await self.failed(permit, error)
            raise
        await self.succeeded(permit, result)
        return result

    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        """Put every call of an `async def` behind the breaker."""
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(f"@breaker needs an async def, got {fn!r}: its state is read over the network")

        @wraps(fn)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.call(fn, *args, **kwargs)

        return guarded

    async def __aenter__(self) -> None:
        """Admit the body, or raise CircuitOpen."""
        _ENTERED.set((_ENTERED.get(), self, await self.admit()))

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        """Count the body's outcome."""
        entered = _ENTERED.get()
        if entered is None or entered[1] is not self:
            raise RuntimeError(f"circuit breaker {self.name!r} was left out of order or in another task")
        outer, _breaker, permit = entered
        _ENTERED.set(outer)
        if error is None:
            await self.succeeded(permit)
        else:
            await self.failed(permit, error)

    @property
    def alone(self) -> bool:
        """Whether this process decides without Redis now."""
        return self._alone

    async def state(self) -> State:
        """Read the common state, or the local one while alone; one round trip."""
        self._stale_at = -math.inf
        await self._exchange_if_stale()
        return self._local.state if self._alone else self._state

    async def force_open(self) -> None:
        """Refuse every call of every process until `reset` or `disable`. Raises where Redis is down."""
        await self._command(State.FORCED_OPEN)

    async def disable(self) -> None:
        """Admit every call of every process, and count nothing. Raises where Redis is down."""
        await self._command(State.DISABLED)

    async def reset(self) -> None:
        """Close, and forget every outcome. Raises where Redis is down."""
        await self._command(State.CLOSED)

    async def _record(self, permit: SharedPermit, outcome: int) -> None:
        now = self._now()
        if now - permit.began >= self.policy.slow_call_duration:
            outcome |= SLOW
        if permit.probe is not None:
            await self._run(_RESULT, permit.probe, permit.generation, outcome)
        elif permit.generation == self._generation and self._state is State.CLOSED:
            counts = self._counts
            counts.since = min(counts.since, now)
            counts.numbers[0] += 1
            counts.numbers[1] += outcome & FAILED
            counts.numbers[2] += (outcome & SLOW) // SLOW
            await self._exchange_if_stale()

    async def _exchange_if_stale(self) -> None:
        """Hand in the counts and read the state: one caller does it, the others wait for its answer.

        They must not go by what is known meanwhile: after a quiet hour that may be an hour old.
        """
        while self._now() >= self._stale_at:
            if self._exchange is not None:
                stale_at = self._stale_at
                await self._exchange.wait()
                if self._stale_at != stale_at:
                    return
                continue  # the caller that asked was cancelled
            self._exchange = asyncio.Event()
            counts, self._counts = self._counts, _Counts()
            if self._now() - counts.since >= self._window_seconds:
                counts = _Counts()  # too old to say anything about now
            try:
                await self._run(_EXCHANGE, self._generation, *counts.numbers)
            finally:
                self._exchange.set()
                self._exchange = None
            return

    async def _run(self, script: Script, *args: str | int) -> int:
        """Run one transition within the time-out; adopt the state it returns, or go on alone."""
        try:
            async with self._clock.timeout(self._timeout):
                reply = await script(self._client, keys=self._keys, args=[*self._policy_args, *args])
        except (RedisError, OSError, TimeoutError) as error:
            self._lose(type(error).__name__)
            return 0
        return self._adopt(reply)

    async def _command(self, state: State) -> None:
        async with self._clock.timeout(self._timeout):
            reply = await _COMMAND(self._client, keys=self._keys, args=[*self._policy_args, state.value])
        self._adopt(reply)

    def _lose(self, error: str) -> None:
        now = self._now()
        self._stale_at = now + max(_RETRY_SECONDS, self._refresh)
        if self._alone:
            return
        self._alone = True
        self._local.reset()
        if self._state in (State.OPEN, State.HALF_OPEN):
            self._local.trip(self._ends - now if self._state is State.OPEN else 0.0)
        elif self._state is State.FORCED_OPEN:
            self._local.force_open()
        elif self._state is State.DISABLED:
            self._local.disable()
        emit(self._on_event, SharingLost(self.name, error))

    def _adopt(self, reply: list[Any]) -> int:
        admitted, name, generation, remaining, failure_rate, slow_rate = reply
        now = self._now()
        state = State(name.decode())
        old = self._state
        self._state = state
        self._generation = int(generation)
        self._ends = math.inf if int(remaining) < 0 else now + int(remaining) / 1000
        self._stale_at = now + self._refresh
        if self._alone:
            self._alone = False
            emit(self._on_event, SharingRegained(self.name))
        if state is not old:
            rates = float(failure_rate), float(slow_rate)
            emit(self._on_event, StateChanged(self.name, old, state, *rates))
        return int(admitted)


_RETRY_SECONDS = 1.0  # how often a process that is alone looks for Redis
_CLOSED = 2  # "admitted" of a script that found the circuit closed: the call is no probe
# The permits of the `with` blocks that this task or thread is in: (the outer ones, breaker, permit).
_Entered = tuple[Any, "SharedCircuitBreaker", SharedPermit] | None
_ENTERED: ContextVar[_Entered] = ContextVar("entered", default=None)


def _policy_args(policy: Policy) -> list[str | int | float]:
    assert isinstance(policy.sliding_window, TimeBased)  # noqa: S101 - checked by the constructor
    slice_ms = max(1, round(policy.sliding_window.seconds * 1000 / TimeWindow.SLICES))
    longest = policy.max_wait_in_half_open
    return [
        policy.failure_rate_threshold,
        policy.slow_call_rate_threshold,
        policy.minimum_calls,
        slice_ms,
        round(policy.wait_in_open * 1000),
        policy.permitted_calls_in_half_open,
        -1 if longest == math.inf else round(longest * 1000),
    ]


# Every script begins by letting time pass, and ends by returning
# {admitted, state, generation, milliseconds until the state ends by itself or -1, failure rate, slow rate}.
_BEGIN = """
-- KEYS[1] hash state, KEYS[2] hash window, KEYS[3] set probes; ARGV[1..7] the policy
local failure_threshold, slow_threshold = tonumber(ARGV[1]), tonumber(ARGV[2])
local minimum, slice, wait = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local permitted, longest = tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local saved = redis.call('HMGET', KEYS[1], 'state', 'generation', 'ends')
local state, generation, ends = saved[1] or 'closed', tonumber(saved[2] or 0), tonumber(saved[3] or -1)
local failure_rate, slow_rate = 0, 0
local function change(new, new_ends)
  state, generation, ends = new, generation + 1, new_ends
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  redis.call('HSET', KEYS[1], 'state', state, 'generation', generation, 'ends', ends)
end
local function judge(total, failed, slow, needed)
  if total < needed then return false end
  failure_rate, slow_rate = failed / total, slow / total
  if failure_rate >= failure_threshold or slow_rate >= slow_threshold then change('open', now + wait) end
  return true
end
while ends >= 0 and now >= ends do
  if state == 'open' then
    change('half_open', longest >= 0 and now + longest or -1)
  else
    change('open', ends + wait)
  end
end
local admitted = 0
"""

_END = """
if state == 'closed' or state == 'open' or state == 'half_open' then
  for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], 86400000) end
else
  redis.call('PERSIST', KEYS[1])
end
local remaining = ends < 0 and -1 or ends - now
return {admitted, state, generation, remaining, tostring(failure_rate), tostring(slow_rate)}
"""

_EXCHANGE = Script(
    "circuit_breaker.exchange",
    _BEGIN
    + """
-- ARGV[8] the generation counted in, ARGV[9..11] total, failed, slow since the last exchange
if state == 'closed' and generation == math.max(0, tonumber(ARGV[8])) then
  local newest = math.floor(now / slice)
  if tonumber(ARGV[9]) > 0 then
    redis.call('HINCRBY', KEYS[2], newest .. ':total', ARGV[9])
    redis.call('HINCRBY', KEYS[2], newest .. ':failed', ARGV[10])
    redis.call('HINCRBY', KEYS[2], newest .. ':slow', ARGV[11])
  end
  local sums = {total = 0, failed = 0, slow = 0}
  local counts = redis.call('HGETALL', KEYS[2])
  for i = 1, #counts, 2 do
    local at, what = string.match(counts[i], '^(%d+):(%a+)$')
    if tonumber(at) <= newest - 10 then
      redis.call('HDEL', KEYS[2], counts[i])
    else
      sums[what] = sums[what] + tonumber(counts[i + 1])
    end
  end
  judge(sums.total, sums.failed, sums.slow, minimum)
end
"""
    + _END,
)

_PROBE = Script(
    "circuit_breaker.probe",
    _BEGIN
    + """
-- ARGV[8] the probe's id; asking again with the same id takes no second permit
if state == 'closed' or state == 'disabled' then
  admitted = 2
elseif state == 'half_open' then
  local reported = tonumber(redis.call('HGET', KEYS[1], 'total') or 0)
  if redis.call('SISMEMBER', KEYS[3], ARGV[8]) == 1 then
    admitted = 1
  elseif redis.call('SCARD', KEYS[3]) + reported < permitted then
    redis.call('SADD', KEYS[3], ARGV[8])
    admitted = 1
  end
end
"""
    + _END,
)

_RESULT = Script(
    "circuit_breaker.result",
    _BEGIN
    + """
-- ARGV[8] the probe's id, ARGV[9] its generation, ARGV[10] its outcome: bits 1 failed, 2 slow; -1 abandoned
local outcome = tonumber(ARGV[10])
if state == 'half_open' and generation == tonumber(ARGV[9]) and redis.call('SREM', KEYS[3], ARGV[8]) == 1
    and outcome >= 0 then
  local total = redis.call('HINCRBY', KEYS[1], 'total', 1)
  local failed = redis.call('HINCRBY', KEYS[1], 'failed', outcome % 2)
  local slow = redis.call('HINCRBY', KEYS[1], 'slow', math.floor(outcome / 2))
  if judge(total, failed, slow, permitted) and state == 'half_open' then change('closed', -1) end
end
"""
    + _END,
)

_COMMAND = Script(
    "circuit_breaker.command",
    _BEGIN
    + """
-- ARGV[8] the state to set
if state ~= ARGV[8] or state == 'closed' then change(ARGV[8], -1) end
"""
    + _END,
)
