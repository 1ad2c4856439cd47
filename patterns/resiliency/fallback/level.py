"""One substitute for the primary, with its own limit and its own time.

Source: Hystrix, `fallback.isolation.semaphore.maxConcurrentRequests`, for the limit and its default.
"""

from __future__ import annotations

from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Protocol,
    TypedDict,
    TypeVar,
    cast,
    overload,
    runtime_checkable,
)

from patterns.resiliency.fallback.answer import PRIMARY, LevelFull, Stale, TooOld
from patterns.resiliency.fallback.policy import Trigger, check_count, check_kinds, check_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Unpack

__all__ = ["Level", "Memory"]

T = TypeVar("T")


@runtime_checkable
class Memory(Protocol):
    """The `fn` of a level that wants to see each answer of the primary, and nothing else."""

    async def keep(self, value: Any, age: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep `value`, which the primary gave for these arguments, for a call that began `age` seconds ago.

        What it raises is told as CopyNotKept and goes no further.
        """
        ...


class Options(TypedDict, total=False):
    """The keywords of Level."""

    limit: int
    timeout: float | None
    on: tuple[type[Exception], ...] | None
    max_age: float | None


class Level(Generic[T]):
    """A way to answer without the primary.

    Args:
        name: the `source` of its answers; not "primary".
        fn: awaited with the arguments of the primary. It returns a value, or Stale(value, age).
        limit: calls at once, counted over every Fallback that has this Level.
        timeout: seconds for one call; None leaves it what is left of the policy's `deadline`.
        on: errors of what was tried before that let this level run; None takes the policy's.
        max_age: seconds; an older value, or one without an age, is refused. None serves any age.
    """

    # Two forms, so that a type checker sees what is inside a Stale; it then finds a level of another type.
    @overload
    def __init__(
        self, name: str, fn: Callable[..., Awaitable[Stale[T]]], **options: Unpack[Options]
    ) -> None: ...
    @overload
    def __init__(
        self, name: str, fn: Callable[..., Awaitable[T | Stale[T]]], **options: Unpack[Options]
    ) -> None: ...
    def __init__(
        self,
        name: str,
        fn: Callable[..., Awaitable[T | Stale[T]]],
        *,
        limit: int = 10,
        timeout: float | None = None,
        on: tuple[type[Exception], ...] | None = None,
        max_age: float | None = None,
    ) -> None:
        given: object = name
        if not isinstance(given, str) or given in ("", PRIMARY):
            raise ValueError(f"name must be text, not empty and not {PRIMARY!r}, got {name!r}")
        if not callable(fn):
            raise ValueError(f"fn must be an async def, or an object that is awaited when called, got {fn!r}")
        check_count("limit", limit)
        check_seconds("timeout", timeout)
        check_seconds("max_age", max_age, least=0.0)
        if on is not None:
            check_kinds("on", on)
        self.name, self.fn, self.limit, self.timeout, self.max_age = name, fn, limit, timeout, max_age
        self.triggers = None if on is None else Trigger(on)
        any_fn: object = fn
        self.memory = any_fn if isinstance(any_fn, Memory) else None
        self.running = 0

    def __repr__(self) -> str:
        return f"Level({self.name!r}, limit={self.limit}, running={self.running})"

    # --8<-- [start:level]
    def admit(self) -> None:
        """Take a permit, or raise LevelFull; `leave` gives it back."""
        if self.running >= self.limit:
            raise LevelFull(self.name, self.limit)
        self.running += 1

    def leave(self) -> None:
        """Give a permit back."""
        self.running -= 1

    def accept(self, result: T | Stale[T]) -> tuple[T, float | None]:
        """Return the value and its age, or raise TooOld."""
        if isinstance(result, Stale):
            value, age = cast("T", result.value), result.age
        else:
            value, age = result, None
        if self.max_age is not None and (age is None or age > self.max_age):
            raise TooOld(self.name, age, self.max_age)
        return value, age

    # --8<-- [end:level]
