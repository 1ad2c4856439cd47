"""A remote service that does what a script says.

Each call takes the next step: give a result, raise an error, take some time, never answer.
When the script has run out, the last word is `then`.
It counts what a real service would feel: calls, and how many ran at once.

>>> service = Scripted(fails(ConnectionError("refused")), returns("pong"))
>>> async def main() -> None:
...     try:
...         await service()
...     except ConnectionError as error:
...         print("error:", error)
...     print(await service())
>>> asyncio.run(main())
error: refused
pong
>>> service.calls
2
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from patterns.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from patterns.clock import Clock

__all__ = ["ScriptExhausted", "Scripted", "Step", "fails", "hangs", "returns"]


@dataclass(frozen=True, slots=True)
class Step:
    """One answer of the service: see `returns`, `fails` and `hangs`."""

    result: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    forever: bool = False

    def after(self, seconds: float) -> Step:
        """Return the same answer, given only after `seconds`."""
        if not seconds >= 0:
            raise ValueError(f"seconds must be >= 0, got {seconds!r}")
        return replace(self, seconds=seconds)


def returns(result: Any) -> Step:
    """Answer with `result`."""
    return Step(result=result)


def fails(error: BaseException) -> Step:
    """Raise `error`."""
    return Step(error=error)


def hangs() -> Step:
    """Never answer; only cancellation ends the call."""
    return Step(forever=True)


class ScriptExhausted(AssertionError):
    """The service was called more often than its script foresaw, and no `then` was given."""


class Scripted:
    """An async callable that follows a script.

    Args:
        steps: answers of the first calls, in order.
        then: answer of every later call; without it a further call raises ScriptExhausted.
        clock: what `after` waits on.

    Attributes:
        calls: calls begun so far.
        in_flight: calls running now.
        most_in_flight: most calls that ran at one time.
        cancelled: calls that were cancelled while they ran.
    """

    def __init__(self, *steps: Step, then: Step | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._steps = deque(steps)
        self._then = then
        self._clock = clock
        self.calls = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.cancelled = 0

    async def __call__(self, *_: object, **__: object) -> Any:
        """Do what the next step says; the arguments are ignored."""
        self.calls += 1
        step = self._steps.popleft() if self._steps else self._then
        if step is None:
            raise ScriptExhausted(f"call {self.calls} has no step, and `then` was not given")
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if step.forever:
                await asyncio.get_running_loop().create_future()
            await self._clock.sleep(step.seconds)
            if step.error is not None:
                # Without this each call would lengthen the traceback of the one error object.
                raise step.error.with_traceback(None)
            return step.result
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1

    def follow(self, *steps: Step, then: Step | None = None) -> None:
        """Replace what is left of the script: the dependency has just changed its behaviour."""
        self._steps = deque(steps)
        self._then = then
