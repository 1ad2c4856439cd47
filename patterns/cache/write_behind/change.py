"""A change on its way to the source, and how it is written in Redis."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from patterns.bounds import text
from patterns.cache.write_behind.errors import NotStorable
from patterns.entry import Codec, Unwritable, decode, encode

__all__ = ["DELETED", "Change", "Deleted", "Parked", "Records", "Stats"]


class Deleted(Enum):
    """The type of DELETED."""

    DELETED = "deleted"


DELETED = Deleted.DELETED
"""What stands for "this key is to go"; None is a value."""


@dataclass(frozen=True, slots=True)
class Change:
    """One write on its way to the source.

    Attributes:
        key: what is written.
        value: what it becomes, or DELETED.
        version: rises with each write of a key; also the time of the write, in microseconds since 1970.
    """

    key: str
    value: Any
    version: int


@dataclass(frozen=True, slots=True)
class Parked:
    """A change that is not tried again by itself.

    Attributes:
        key: what should have been written.
        value: what it should have become, DELETED, or None where it cannot be read.
        version: of the change.
        attempts: how often the source refused it.
        why: the last error, without the value.
        shard: where it is.
    """

    key: str
    value: Any
    version: int
    attempts: int
    why: str
    shard: int


@dataclass(frozen=True, slots=True)
class Stats:
    """What waits.

    Attributes:
        waiting: changes that are not in the source yet.
        parked: changes that are not tried any more by themselves.
        lag_seconds: for how long the oldest has waited; parked ones do not count.
    """

    waiting: int
    parked: int
    lag_seconds: float


class Records:
    """Changes as bytes: the length of the key, a colon, the key, the entry; a deletion has no entry."""

    def __init__(self, codec: Codec, max_bytes: int) -> None:
        self._codec = codec
        self._max_bytes = max_bytes

    def pack(self, key: str, value: object) -> tuple[bytes, bytes]:
        """Return the key and the record.

        Raises:
            ValueError: the key is no text, empty, or has a lone surrogate.
            NotStorable: the codec does not take the value, or one of the two is too large.
        """
        text("key", key)
        try:
            name = key.encode()
        except UnicodeEncodeError:
            raise ValueError("key must be text that UTF-8 can hold, got a lone surrogate") from None
        if len(name) > self._max_bytes:
            raise NotStorable(key, f"{len(name)} bytes of key are more than max_bytes={self._max_bytes}")
        entry = b""
        if value is not DELETED:
            try:
                entry = encode(self._codec, value, stale_ms=0, max_bytes=self._max_bytes)
            except Unwritable as error:
                raise NotStorable(key, str(error)) from error.__cause__
        return name, b"%d:%b%b" % (len(name), name, entry)

    def unpack(self, record: bytes) -> tuple[str, Any]:
        """Return the key and the value.

        Raises:
            Unreadable: it is no record, or the codec does not know it.
        """
        key = self.key_of(record)
        length, _, rest = record.partition(b":")
        entry = rest[int(length) :] if key else b"?"
        return key, decode(self._codec, entry) if entry else DELETED

    def key_of(self, record: bytes) -> str:
        """Return the key, empty if the bytes are no record."""
        head = re.match(rb"(\d{1,9}):", record)
        if head is None or len(record) < head.end() + int(head[1]):
            return ""
        try:
            return record[head.end() : head.end() + int(head[1])].decode()
        except UnicodeDecodeError:
            return ""
