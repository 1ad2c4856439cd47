"""A value and how long its load took: what XFetch must know of an entry, kept in front of its payload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patterns.clock import Clock
    from patterns.entry import Codec

__all__ = ["HEAD_BYTES", "Timed", "TimedCodec", "TimedLoad"]

HEAD_BYTES = 11  # microseconds in ten digits, and a line feed
_MOST = 9_999_999_999


@dataclass(frozen=True, slots=True)
class Timed:
    """What a load returned, and the seconds it took."""

    value: Any
    took: float


class TimedCodec:
    """Writes the microseconds that a load took in front of what `codec` makes of its value."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def encode(self, timed: Timed) -> bytes:
        """Return head and payload."""
        payload: Any = self._codec.encode(timed.value)
        if not isinstance(payload, bytes):
            raise TypeError(f"the codec gave {type(payload).__name__}, not bytes")
        return b"%010d\n%b" % (min(round(timed.took * 1e6), _MOST), payload)

    def decode(self, data: bytes) -> Timed:
        """Return what `encode` was given."""
        if data[HEAD_BYTES - 1 : HEAD_BYTES] != b"\n":
            raise ValueError("no head")
        return Timed(self._codec.decode(data[HEAD_BYTES:]), int(data[: HEAD_BYTES - 1]) / 1e6)


class TimedLoad:
    """Calls a load and takes its time.

    Attributes:
        latest: seconds that the latest load took which returned; stands in where an entry has no place for
            its own (None has no payload).
    """

    def __init__(self, load: Callable[[str], Awaitable[Any]], clock: Clock) -> None:
        self._load, self._clock = load, clock
        self.latest = 0.0

    async def __call__(self, key: str) -> Timed | None:
        """Return the value and its time, or None."""
        began = self._clock.monotonic()
        value = await self._load(key)
        self.latest = self._clock.monotonic() - began
        return None if value is None else Timed(value, self.latest)
