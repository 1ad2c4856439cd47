r"""What stands in Redis for one value: a line that says how long it is good for, then the codec's bytes.

`1 <stale milliseconds> <+|->`, a line feed, the payload. `-` is a cached None, which has no payload. The
number is the end of the key's life in which the value is stale (good for stale-if-error, or to be
refreshed): an entry is fresh while its PTTL is greater. So freshness goes by the server's clock alone, and
readers with another policy understand it too.

What holds: an entry that was made can be read again, for it has been; what cannot be encoded, decoded again
or is larger than `max_bytes` is refused before anything is written; bytes that are no entry are told from
values, whatever they are; and nothing that is read can run code.

>>> entry = encode(JSON, {"id": 42}, stale_ms=0, max_bytes=1000)
>>> entry
b'1 0 +\n{"id":42}'
>>> decode(JSON, entry)
{'id': 42}
"""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Any, Protocol

__all__ = [
    "JSON",
    "MISS",
    "Codec",
    "Json",
    "Miss",
    "Unreadable",
    "Unwritable",
    "decode",
    "encode",
    "stale_ms",
]


class Miss(Enum):
    """The type of MISS."""

    MISS = "miss"


MISS = Miss.MISS
"""What stands for "nothing fresh is there"; a cached None is None."""


class Codec(Protocol):
    """Turns values into bytes and back."""

    def encode(self, value: Any) -> bytes:
        """Return `value` as bytes, or raise any Exception: then it cannot be cached."""
        ...

    def decode(self, data: bytes) -> Any:
        """Return the value, or raise any Exception: then the entry counts as missing."""
        ...


class Json:
    """JSON in UTF-8: no NaN, no infinities, and no objects that JSON does not know."""

    def encode(self, value: Any) -> bytes:
        """Return `value` as JSON."""
        return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()

    def decode(self, data: bytes) -> Any:
        """Return what the JSON says."""
        return json.loads(data)


JSON = Json()


class Unreadable(Exception):
    """The bytes are no entry, or the codec does not know them.

    Attributes:
        entry: the bytes.
        reason: why; without the bytes.
    """

    def __init__(self, entry: bytes, reason: str) -> None:
        super().__init__(reason)
        self.entry, self.reason = entry, reason


class Unwritable(Exception):
    """The value cannot be an entry; the text says why, without the value."""


_HEAD = re.compile(rb"1 (\d{1,15}) ([+-])\n")


def encode(codec: Codec, value: object, *, stale_ms: int, max_bytes: int) -> bytes:
    """Return the entry of `value`, which has been read back once.

    Raises:
        Unwritable: the codec cannot encode it or read it again, or it is too large.
    """
    if value is None:
        return b"1 0 -\n"  # "there is no such thing" does not stand in for anything
    try:
        payload: Any = codec.encode(value)
        if isinstance(payload, bytes) and len(payload) <= max_bytes:
            codec.decode(payload)
    except Exception as error:
        raise Unwritable(f"the codec raised {type(error).__name__}") from error
    if not isinstance(payload, bytes):
        raise Unwritable(f"the codec gave {type(payload).__name__}, not bytes")
    if len(payload) > max_bytes:
        raise Unwritable(f"{len(payload)} bytes are more than max_bytes={max_bytes}")
    return b"1 %d +\n%b" % (stale_ms, payload)


def decode(codec: Codec, entry: bytes) -> Any:
    """Return the value of an entry; None may be one.

    Raises:
        Unreadable: it is no entry, or not one of this codec.
    """
    head = _head(entry)
    if head[2] == b"-":
        return None
    try:
        return codec.decode(entry[head.end() :])
    except Exception as error:
        raise Unreadable(entry, f"the codec raised {type(error).__name__}") from error


def stale_ms(entry: bytes) -> int:
    """Return the milliseconds at the end of an entry's life in which it is stale.

    Raises:
        Unreadable: it is no entry.
    """
    return int(_head(entry)[1])


def _head(entry: bytes) -> re.Match[bytes]:
    head = _HEAD.match(entry)
    if head is None:
        raise Unreadable(entry, "not an entry")
    return head
