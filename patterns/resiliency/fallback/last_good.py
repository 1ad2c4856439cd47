"""A level that remembers, in this process, what the primary last said.

Source: RFC 5861, stale-if-error, for the idea; the age is that of the answer, not of the entry.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.resiliency.fallback.answer import NoCopy, Stale
from patterns.resiliency.fallback.policy import check_count

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["LastGood"]

T = TypeVar("T")


class LastGood(Generic[T]):
    """The primary's last answer for each key; the `fn` of a Level.

    The fallback feeds it with each answer of the primary, and with no other. An answer is as old as the call
    that fetched it, by the monotonic clock; of two that overlapped, the one that began later is kept.
    It helps neither a process that has just begun nor a key that was never asked for.

    Args:
        key: which copy belongs to a call: a function of the call's arguments, returning something hashable.
            What a caller may see must be in it (tenant, rights).
        max_entries: copies; the one that was fed longest ago goes first.
        copy: makes a copy on the way in and out, such as `copy.deepcopy`, where callers change what they
            are given; None hands out the same object to all.
        clock: where ages are read.
    """

    def __init__(
        self,
        *,
        key: Callable[..., Hashable],
        max_entries: int,
        copy: Callable[[T], T] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not callable(key):
            raise ValueError(f"key must be a function of the call's arguments, got {key!r}")
        check_count("max_entries", max_entries)
        self._key, self._max_entries, self._copy = key, max_entries, copy
        self._now = clock.monotonic
        self._copies: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()  # (when asked for, value)

    def __len__(self) -> int:
        return len(self._copies)

    async def __call__(self, *args: Any, **kwargs: Any) -> Stale[T]:
        """Return the copy and its age.

        Raises:
            NoCopy: the primary has not answered for this key, or the copy had to make room.
        """
        found = self._copies.get(self._key(*args, **kwargs))
        if found is None or found[1] is _GONE:
            raise NoCopy
        asked, value = found
        return Stale(value if self._copy is None else self._copy(value), max(0.0, self._now() - asked))

    async def keep(self, value: T, age: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the primary's answer, unless a later call's is there."""
        asked, key = self._now() - age, self._key(*args, **kwargs)
        found = self._copies.get(key)
        if found is not None and (found[0] > asked or (found[0] == asked and found[1] is _GONE)):
            return
        self._put(key, asked, value if self._copy is None else self._copy(value))

    def forget(self, *args: Any, **kwargs: Any) -> None:
        """Drop the copy of a call with these arguments: what was deleted must not come back in an outage."""
        self._put(self._key(*args, **kwargs), self._now(), _GONE)

    def _put(self, key: Hashable, asked: float, value: Any) -> None:
        self._copies[key] = asked, value
        self._copies.move_to_end(key)
        if len(self._copies) > self._max_entries:
            self._copies.popitem(last=False)


_GONE = object()  # it is remembered that there is nothing: an answer that was under way must not undo that
