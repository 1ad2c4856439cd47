"""The way to the source, given once: it knows what is being loaded, so that no load waits for itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from patterns.cache.read_through.errors import NotReturned, ReentrantLoad

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Load", "LoadAll", "Loader"]

Load: TypeAlias = Callable[[str], Awaitable[Any]]
LoadAll: TypeAlias = Callable[[list[str]], Awaitable[Mapping[str, Any]]]


@dataclass(slots=True, eq=False)
class _Call:
    """A call of a loader, as long as it runs: a task that it leaves behind is no part of it afterwards."""

    loader: Loader
    keys: tuple[str, ...]
    runs: bool = True


_within: ContextVar[tuple[_Call, ...]] = ContextVar("the loads that this task is part of", default=())


class Loader:
    """Calls `load` or `load_all`.

    Args:
        load: returns the value of a key, or None if the source has no such thing.
        load_all: returns a mapping of keys to values, None, or exceptions; without it `load` is called for
            each key.
    """

    def __init__(self, load: Load, load_all: LoadAll | None) -> None:
        self._load, self._load_all = load, load_all

    # --8<-- [start:loader]
    def at_once(self, batch: int, *, many: bool) -> int:
        """Return how many keys one call can load."""
        return batch if many and self._load_all else 1

    def refuse_within(self, key: str) -> None:
        """Raise ReentrantLoad if this is a part of a load of ours: see it in the task's context."""
        for call in _within.get():
            if call.loader is self and call.runs:
                raise ReentrantLoad(key, call.keys)

    async def __call__(self, keys: list[str], *, many: bool) -> tuple[dict[str, Any], dict[str, Exception]]:
        """Return the values, and the errors of single keys; raise what is an error of all."""
        with self._noted(keys):
            if not many or self._load_all is None:
                (key,) = keys
                return {key: await self._load(key)}, {}
            found: object = await self._load_all(list(keys))
        if not isinstance(found, Mapping):
            raise TypeError(f"load_all must return a mapping of keys to values, got {type(found).__name__}")
        values: dict[str, Any] = {}
        errors: dict[str, Exception] = {}
        for key in keys:
            value = found[key] if key in found else NotReturned(key)
            (errors if isinstance(value, Exception) else values)[key] = value
        return values, errors

    # --8<-- [end:loader]

    @contextmanager
    def _noted(self, keys: list[str]) -> Iterator[None]:
        call = _Call(self, tuple(keys))
        token = _within.set((*_within.get(), call))
        try:
            yield
        finally:
            call.runs = False
            _within.reset(token)
