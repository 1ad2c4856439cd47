"""A circuit breaker whose state is shared by many processes through Redis.

Each process counts its outcomes and exchanges them for the common state in one script, at most once per
`refresh` seconds; between two exchanges a decision costs no round trip. Only probes cost one each, because
together the processes may admit no more than permitted.

When Redis does not answer within `timeout`, a local `CircuitBreaker` of the same policy takes over in the
state that was known last, until Redis is back.

Redis keys, all in one slot; they expire a day after the last exchange, unless forced open or disabled:

- `<app>:{circuit_breaker:<name>}:state`   hash: state, generation, ends (server ms), results of the probes
- `<app>:{circuit_breaker:<name>}:window`  hash: `<slice>:<total|failed|slow>` to count
- `<app>:{circuit_breaker:<name>}:probes`  set: ids of the probes that are out

What is looser than in one process: a process learns of its own failures at the next exchange, so the circuit
opens up to `refresh` later; a probe whose process died, or whose permit Redis could not be given back, is
overruled after `max_wait_in_half_open`, which must therefore be finite. What Redis may lose: a reply lost on
the way costs or keeps one batch of counts (it is never sent twice); a failover may forget that the circuit is
open, and the next failures open it again. Time is the server's, so the clocks of the processes do not matter;
a step of the server's clock lengthens no wait beyond the policy's.

CallSucceeded, CallFailed and CallIgnored are told only while this process is alone.
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
from patterns.keyspace import Client, Keyspace
from patterns.resiliency.circuit_breaker import (
    NO_RESULT,
    CallRejected,
    CircuitBreaker,
    CircuitOpen,
    Permit,
    Policy,
    State,
    StateChanged,
    TimeBased,
)
from patterns.resiliency.circuit_breaker.policy import verdict_on
from patterns.resiliency.circuit_breaker.scripts import COMMAND, EXCHANGE, PROBE, RESULT
from patterns.resiliency.circuit_breaker.window import FAILED, SLOW, TimeWindow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

    from patterns.keyspace import Script

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
        if policy.max_wait_in_half_open == math.inf:
            raise ValueError("max_wait_in_half_open must be finite to be shared, got inf: processes may die")
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
        self._asked = self._adopted = 0  # numbers of the latest question, and of the latest answer adopted
        self._exchange: asyncio.Task[None] | None = None
        self._counts = _Counts()
        self._owed: list[str] = []  # permits to give back, whose probes ended while nobody could say so

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
            admitted = await self._run(PROBE, probe, permit=probe)
            if self._alone:
                return await self.admit()
            now = self._now()
            if admitted:
                return SharedPermit(self._generation, now, probe=None if admitted == _CLOSED else probe)
        retry_after = max(0.0, self._ends - now) if self._state is State.OPEN else None
        emit(self._on_event, CallRejected(self.name, self._state, retry_after))
        raise CircuitOpen(self.name, self._state, retry_after)

    # --8<-- [end:decide]

    async def succeeded(self, permit: SharedPermit, result: object = NO_RESULT) -> None:
        """Count a call that returned `result`."""
        if permit.local is not None:
            self._local.succeeded(permit.local, result)
            return
        failed = False
        if self.policy.record_result is not None and result is not NO_RESULT:
            try:
                failed = self.policy.record_result(result)
            except BaseException:
                await self._report(permit, -1)
                raise
        await self._record(permit, FAILED if failed else 0)

    async def failed(self, permit: SharedPermit, error: BaseException) -> None:
        """Count a call that raised `error`: a failure, a success or neither, as the policy says."""
        if permit.local is not None:
            self._local.failed(permit.local, error)
            return
        verdict = verdict_on(error, self.policy)
        if verdict is None:
            await self._report(permit, -1)
        else:
            await self._record(permit, FAILED if verdict else 0)

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
            await self._report(permit, outcome)
        elif permit.generation == self._generation and self._state is State.CLOSED:
            counts = self._counts
            counts.since = min(counts.since, now)
            counts.numbers[0] += 1
            counts.numbers[1] += outcome & FAILED
            counts.numbers[2] += (outcome & SLOW) // SLOW
            await self._exchange_if_stale()

    async def _report(self, permit: SharedPermit, outcome: int) -> None:
        """Bring back a probe's permit with its outcome; if that is cut short, the permit alone, later."""
        if permit.probe is not None:
            await self._run(RESULT, permit.probe, permit.generation, outcome, permit=permit.probe)

    async def _exchange_if_stale(self) -> None:
        """Hand in the counts and read the state, once for all callers who find it stale.

        They wait for the answer: what is known may be an hour old. It is a task, so that a caller who hangs
        up takes nobody's counts along.
        """
        if self._now() < self._stale_at:
            return
        if self._exchange is None or self._exchange.done():
            self._exchange = asyncio.create_task(self._hand_in())
        await asyncio.shield(self._exchange)

    async def _hand_in(self) -> None:
        counts, self._counts = self._counts, _Counts()
        owed, self._owed = self._owed, []
        age = 0 if counts.since == math.inf else math.ceil((self._now() - counts.since) * 1000)
        await self._run(EXCHANGE, self._generation, *counts.numbers, age, *owed)
        if self._alone:
            self._owed += owed  # giving back twice does no harm

    async def _run(self, script: Script, *args: str | int, permit: str = "") -> int:
        """Run one transition within the time-out; adopt the state it returns, or go on alone.

        If it is cut short, `permit` may be held or not: it is owed, and given back with the next exchange.
        """
        self._asked += 1
        number = self._asked
        try:
            async with self._clock.timeout(self._timeout):
                reply = await script(self._client, keys=self._keys, args=[*self._policy_args, *args])
        except BaseException as error:
            if permit:
                self._owed.append(permit)
            if not isinstance(error, RedisError | OSError | TimeoutError):
                raise
            self._lose(type(error).__name__)
            return 0
        return self._adopt(reply, number)

    async def _command(self, state: State) -> None:
        self._asked += 1
        number = self._asked
        async with self._clock.timeout(self._timeout):
            reply = await COMMAND(self._client, keys=self._keys, args=[*self._policy_args, state.value])
        self._adopt(reply, number)

    def _lose(self, error: str) -> None:
        now = self._now()
        self._stale_at = now + max(_RETRY_SECONDS, self._refresh)
        if self._alone:
            return
        self._alone = True
        waits = self._state is State.OPEN
        half_open = self._state is State.HALF_OPEN  # as if the wait were just over
        self._local._take_over(
            State.OPEN if half_open else self._state,
            0.0 if half_open else max(0.0, self._ends - now) if waits else math.inf,
        )
        emit(self._on_event, SharingLost(self.name, error))

    def _adopt(self, reply: list[Any], number: int) -> int:
        """Believe what a script returned, unless an answer that was given later has come before it."""
        admitted, name, generation, remaining, failure_rate, slow_rate = reply
        if int(generation) < self._generation and number <= self._adopted and not self._alone:
            return int(admitted)
        now = self._now()
        state = State(name.decode())
        old = self._state
        self._adopted = self._asked
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
    slice_ms = int(policy.sliding_window.seconds * 1000 / TimeWindow.SLICES)  # never longer than asked for
    return [
        policy.failure_rate_threshold,
        policy.slow_call_rate_threshold,
        policy.minimum_calls,
        slice_ms,
        round(policy.wait_in_open * 1000),
        policy.permitted_calls_in_half_open,
        round(policy.max_wait_in_half_open * 1000),
    ]
