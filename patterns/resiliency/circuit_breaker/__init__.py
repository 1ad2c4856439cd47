"""Stop calling a dependency that fails, and find out carefully when it works again.

A dependency that is down or slow costs each caller a connection, a task and the whole of its timeout. The
breaker watches the outcomes of calls; when too many fail it opens and refuses calls at once, and after a
pause it lets a few probes through to decide whether to close.

Guaranteed, each by a test that rejects a naive variant:

1. It opens exactly when the window holds at least `minimum_calls` outcomes and the rate of failures or of
   slow calls has reached its threshold.
2. While it is open no call reaches the dependency; each is refused at once with `retry_after`.
3. Half-open, no more than `permitted_calls_in_half_open` probes run or have reported; when that many have
   reported, they decide.
4. It always leaves half-open: a probe that is cancelled or ignored gives its permit back, and probes that
   do not report within `max_wait_in_half_open` are overruled.
5. A call that began before the last change of state changes neither state nor counts.
6. Ignored exceptions and cancellation count neither way; recorded exceptions are failures; a slow success
   is slow.
7. In a time-based window no outcome older than the window counts. Within a process no step of the wall
   clock matters; shared, a step of the server's clock lengthens no wait beyond that of the policy.
8. The caller gets the dependency's own exception; listeners hear each transition once and cannot break
   a call.
9. Shared through Redis (`shared.SharedCircuitBreaker`): processes together admit no more probes than
   permitted; a state read costs at most one round trip and is believed for `refresh`; without Redis each
   process goes on alone.

Not guaranteed: that nothing is called while the breaker is deciding (calls already running are not
stopped), and that a time-out placed *around* the breaker is seen as a failure (it arrives as a cancellation:
put the time-out inside). An exception that is in neither `record` nor `ignore` counts as a success: the
dependency answered. A `with` block has no result for `record_result`, and belongs to one task or thread: do
not `yield` from it, nor enter it in one task and leave it in another.

Redis keys: none here; see `patterns.resiliency.circuit_breaker.shared`.

Safe for tasks of one event loop and for threads; no lock is held during a call.

>>> policy = Policy(record=(ConnectionError,), sliding_window=CountBased(4), minimum_calls=4)
>>> breaker = CircuitBreaker("payments", policy)
>>> for _ in range(4):
...     try:
...         with breaker:
...             raise ConnectionError("refused")
...     except ConnectionError:
...         pass
>>> breaker.state
<State.OPEN: 'open'>

Sources: Nygard, "Release It!"; resilience4j 2 (names, windows, defaults); gobreaker (generations); Polly 8.
"""

from __future__ import annotations

import inspect
import math
from contextvars import ContextVar
from functools import wraps
from threading import Lock
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.events import Listener, emit, ignore
from patterns.resiliency.circuit_breaker.policy import Policy, verdict_on
from patterns.resiliency.circuit_breaker.state import (
    CallFailed,
    CallIgnored,
    CallRejected,
    CallSucceeded,
    CircuitOpen,
    State,
    StateChanged,
)
from patterns.resiliency.circuit_breaker.window import (
    FAILED,
    SLOW,
    CountBased,
    CountWindow,
    TimeBased,
    Window,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

__all__ = [
    "NO_RESULT",
    "CallFailed",
    "CallIgnored",
    "CallRejected",
    "CallSucceeded",
    "CircuitBreaker",
    "CircuitOpen",
    "CountBased",
    "Permit",
    "Policy",
    "State",
    "StateChanged",
    "TimeBased",
]

P = ParamSpec("P")
T = TypeVar("T")

Permit = tuple[int, float]
"""What `admit` hands out: the generation of the state, and when the call began (monotonic seconds)."""

NO_RESULT = object()
"""What a `with` block returns: there is nothing to ask `record_result` about."""


class CircuitBreaker:
    """One breaker for one dependency.

    Use it as `async with breaker:`, `with breaker:`, `await breaker.call(fn, *args)` or `@breaker` on an
    `async def`. Make one per dependency and share it among all callers of that dependency.

    Args:
        name: names the dependency in errors and events.
        policy: when to open and close.
        clock: where durations are read.
        on_event: hears StateChanged, CallSucceeded, CallFailed, CallIgnored and CallRejected.
    """

    def __init__(
        self, name: str, policy: Policy, *, clock: Clock = SYSTEM_CLOCK, on_event: Listener = ignore
    ) -> None:
        self.name = name
        self.policy = policy
        self._now = clock.monotonic
        self._on_event = on_event
        self._slow_from = policy.slow_call_duration
        self._failed_result = policy.record_result
        self._plain = policy.record_result is None and on_event is ignore  # nobody looks at a success
        self._lock = Lock()  # guards the fields below, never a call or a listener
        self._state = State.CLOSED
        self._generation = 0  # of the state: each change of state begins a new one
        self._closed: int | None = 0  # the generation while closed, so that one read decides the usual case
        self._quiet: int | None = None  # the same while one more quick success would change nothing
        self._window: Window = policy.sliding_window.new_window()
        self._until = math.inf  # when time alone ends this state
        self._permits = 0  # probes that may still be admitted in this half-open
        self._out = 0  # probes that have not reported

    # --8<-- [start:decide]
    def admit(self) -> Permit:
        """Let one call through, or raise CircuitOpen.

        Each permit must come back through exactly one of `succeeded`, `failed` and `abandoned`.
        """
        now = self._now()
        generation = self._closed
        if generation is not None:
            return generation, now
        with self._lock:
            changes = self._pass_time(now)
            state = self._state
            admitted = state in _PASSING or (state is State.HALF_OPEN and self._permits > 0)
            if admitted and state is State.HALF_OPEN:
                self._permits -= 1
                self._out += 1
                if self._out == 1:
                    self._until = now + self.policy.max_wait_in_half_open
            permit = self._generation, now
            retry_after = self._until - now if state is State.OPEN else None
        self._tell(changes)
        if admitted:
            return permit
        emit(self._on_event, CallRejected(self.name, state, retry_after))
        raise CircuitOpen(self.name, state, retry_after)

    def succeeded(self, permit: Permit, result: object = NO_RESULT) -> None:
        """Count a call that returned `result`."""
        failed = False
        if self._failed_result is not None and result is not NO_RESULT:
            try:
                failed = self._failed_result(result)
            except BaseException as error:
                self.abandoned(permit, error)
                raise
        self._record(permit, "result" if failed else None, failed=failed)

    def failed(self, permit: Permit, error: BaseException) -> None:
        """Count a call that raised `error`: a failure, a success or neither, as the policy says."""
        verdict = verdict_on(error, self.policy)
        if verdict is None:
            self.abandoned(permit, error)
        else:
            self._record(permit, type(error).__name__, failed=verdict)

    def abandoned(self, permit: Permit, error: BaseException | None = None) -> None:
        """Take a permit back from a call that says nothing about the dependency."""
        with self._lock:
            if permit[0] == self._generation and self._state is State.HALF_OPEN:
                self._permits += 1
                self._returned()
        emit(self._on_event, CallIgnored(self.name, None if error is None else type(error).__name__))

    # --8<-- [end:decide]

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Await `fn(*args, **kwargs)` behind the breaker.

        Raises:
            CircuitOpen: the call was refused.
        """
        permit = self.admit()
        try:
            result = await fn(*args, **kwargs)
        except BaseException as error:
            self.failed(permit, error)
            raise
        if permit[0] != self._quiet or self._now() - permit[1] >= self._slow_from:
            self.succeeded(permit, result)
        return result

    def __call__(self, fn: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        """Put every call of an `async def` behind the breaker."""
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(
                f"@breaker needs an async def, got {fn!r}; in a plain def use `with breaker:`, for an object "
                "that is awaited when called use `breaker.call`, and guard each step of a generator by itself"
            )
        now, slow_from = self._now, self._slow_from

        @wraps(fn)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            generation = self._closed
            permit = self.admit() if generation is None else (generation, now())
            try:
                result = await fn(*args, **kwargs)
            except BaseException as error:
                self.failed(permit, error)
                raise
            # One read of `_quiet` is where an uneventful success takes effect, so it needs no lock.
            if permit[0] != self._quiet or now() - permit[1] >= slow_from:
                self.succeeded(permit, result)
            return result

        return guarded

    def __enter__(self) -> None:
        """Admit the body, or raise CircuitOpen."""
        _ENTERED.set((_ENTERED.get(), self, self.admit()))

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        """Count the body's outcome."""
        entered = _ENTERED.get()
        inner = []
        while entered is not None and entered[1] is not self:  # blocks of others that are left out of order
            inner.append(entered)
            entered = entered[0]
        if entered is None:
            if error is None:
                raise RuntimeError(f"circuit breaker {self.name!r} was entered in another task or thread")
            return  # the body's own error matters more
        outer, _breaker, permit = entered
        for _outer, breaker, others in reversed(inner):
            outer = outer, breaker, others
        _ENTERED.set(outer)
        if error is not None:
            self.failed(permit, error)
        elif permit[0] != self._quiet or self._now() - permit[1] >= self._slow_from:
            self.succeeded(permit)

    async def __aenter__(self) -> None:
        """Admit the body, or raise CircuitOpen."""
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Count the body's outcome."""
        self.__exit__(kind, error, trace)

    @property
    def state(self) -> State:
        """The state a call would meet now."""
        with self._lock:
            changes = self._pass_time(self._now())
            state = self._state
        self._tell(changes)
        return state

    @property
    def retry_after(self) -> float | None:
        """Seconds until a call may be admitted: 0 when one may now, None when not known."""
        with self._lock:
            now = self._now()
            changes = self._pass_time(now)
            state, until = self._state, self._until
            at_once = state in _PASSING or (state is State.HALF_OPEN and self._permits > 0)
        self._tell(changes)
        if at_once:
            return 0.0
        return until - now if state is State.OPEN else None

    def rates(self) -> tuple[int, float, float]:
        """Return the outcomes in the window, and the failure and slow-call rates in [0, 1]."""
        with self._lock:
            return self._window.rates(self._now())

    def trip(self, seconds: float | None = None) -> None:
        """Open now, for `seconds` or else `wait_in_open`, whatever the rates are."""
        self._set(State.OPEN, self.policy.wait_in_open if seconds is None else max(0.0, seconds))

    def force_open(self) -> None:
        """Refuse every call until `reset`, `disable` or `trip`."""
        self._set(State.FORCED_OPEN)

    def disable(self) -> None:
        """Admit every call and count nothing until `reset`, `force_open` or `trip`."""
        self._set(State.DISABLED)

    def reset(self) -> None:
        """Close, and forget every outcome."""
        self._set(State.CLOSED)

    def _set(self, state: State, seconds: float = math.inf) -> None:
        with self._lock:
            now = self._now()
            change = self._change(state, now + seconds, now)
        if change.old is not state:
            emit(self._on_event, change)

    def _record(self, permit: Permit, error: str | None, *, failed: bool) -> None:
        generation, began = permit
        now = self._now()
        duration = now - began
        slow = duration >= self._slow_from
        outcome = failed * FAILED | slow * SLOW
        changes: list[StateChanged] | None = None
        with self._lock:
            counted = generation == self._closed
            if counted:
                window = self._window
                window.add(outcome, now)
                if window.bad:
                    changes = self._judge(now)
                if self._plain:
                    self._quiet = self._closed if window.settled else None
            elif self._closed is None:
                changes, counted = self._record_probe(generation, outcome, now)
        if self._on_event is ignore:
            return
        if not counted:
            emit(self._on_event, CallIgnored(self.name, error))
        elif failed:
            emit(self._on_event, CallFailed(self.name, duration, slow, error or "result"))
        else:
            emit(self._on_event, CallSucceeded(self.name, duration, slow, error))
        self._tell(changes or [])

    # --8<-- [start:judge]
    def _record_probe(self, generation: int, outcome: int, now: float) -> tuple[list[StateChanged], bool]:
        """Count a result while not closed, if it is a probe's of this half-open. Needs the lock."""
        changes = self._pass_time(now)
        counted = generation == self._generation and self._state is State.HALF_OPEN
        if counted:
            self._returned()
            self._window.add(outcome, now)
            changes += self._judge(now)
        return changes, counted

    def _returned(self) -> None:
        """A probe is back; while none is out, half-open may last. Needs the lock."""
        self._out -= 1
        if not self._out:
            self._until = math.inf

    def _judge(self, now: float) -> list[StateChanged]:
        """Decide on the rates, once there are enough outcomes to believe them. Needs the lock."""
        policy = self.policy
        total, failure_rate, slow_rate = self._window.rates(now)
        half_open = self._state is State.HALF_OPEN
        if total < (policy.permitted_calls_in_half_open if half_open else policy.minimum_calls):
            return []
        if failure_rate >= policy.failure_rate_threshold or slow_rate >= policy.slow_call_rate_threshold:
            return [self._change(State.OPEN, now + policy.wait_in_open, now)]
        return [self._change(State.CLOSED, math.inf, now)] if half_open else []

    def _pass_time(self, now: float) -> list[StateChanged]:
        """Make the changes that time alone has brought about by `now`. Needs the lock."""
        changes = []
        while now >= self._until:
            if self._state is State.OPEN:
                changes.append(self._change(State.HALF_OPEN, math.inf, now))
            else:  # probes are out, and have been for too long
                changes.append(self._change(State.OPEN, self._until + self.policy.wait_in_open, now))
        return changes

    def _change(self, new: State, until: float, now: float) -> StateChanged:
        """Begin a new generation; permits of the old one count no more. Needs the lock."""
        _, failure_rate, slow_rate = self._window.rates(now)
        change = StateChanged(self.name, self._state, new, failure_rate, slow_rate)
        half_open = new is State.HALF_OPEN
        probes = self.policy.permitted_calls_in_half_open
        self._state = new
        self._until = until
        self._generation += 1
        self._closed = self._generation if new is State.CLOSED else None
        self._quiet = None
        self._permits = probes if half_open else 0
        self._out = 0
        self._window = CountWindow(probes) if half_open else self.policy.sliding_window.new_window()
        return change

    # --8<-- [end:judge]

    def _take_over(self, state: State, seconds: float) -> None:
        """Begin where another breaker of the same dependency is; it has told of that already."""
        with self._lock:
            now = self._now()
            self._change(state, now + seconds, now)

    def _tell(self, changes: list[StateChanged]) -> None:
        for change in changes:
            emit(self._on_event, change)


_PASSING = frozenset({State.CLOSED, State.DISABLED})
# The permits of the `with` blocks that this task or thread is in: (the outer ones, breaker, permit).
_Entered = tuple[Any, "CircuitBreaker", Permit] | None
_ENTERED: ContextVar[_Entered] = ContextVar("entered", default=None)
