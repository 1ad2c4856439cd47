"""What the cache asks of the place where things are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Source", "Versioned", "version_of"]

_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Versioned:
    """A value and the version that the source gave it.

    Attributes:
        value: None where the thing was deleted.
        version: a whole number of at most 63 bits.
    """

    value: Any
    version: int


# --8<-- [start:source]
class Source(Protocol):
    """Where things are kept.

    It gives each change of a key a version, in the transaction of the change: of two changes, the one that
    was committed later has the greater version. It never goes back, not over a deletion either.
    """

    async def load(self, key: str) -> Versioned | None:
        """Return what is committed; None if there never was such a thing, or nobody knows any more."""
        ...

    async def store(self, key: str, value: Any) -> int:
        """Commit `value` as it is, and return its version; or raise, as where it was changed meanwhile."""
        ...

    async def delete(self, key: str) -> int:
        """Commit that there is no such thing, and return that version; 0 if there was nothing."""
        ...


# --8<-- [end:source]


def version_of(given: object) -> int:
    """Return the version that a source gave.

    Raises:
        TypeError: it is none.
    """
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= _LARGEST:
        return given
    raise TypeError(f"a version must be a whole number of 63 bits, got {given!r}")
