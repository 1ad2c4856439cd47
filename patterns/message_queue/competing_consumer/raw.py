"""Payloads that are bytes already."""

from __future__ import annotations

from typing import Any

__all__ = ["RAW", "Raw"]


class Raw:
    """Bytes as they are, none of them special; no bytes at all are a payload too."""

    def encode(self, value: Any) -> bytes:
        """Return `value`, which must be bytes."""
        if not isinstance(value, bytes):
            raise TypeError(f"want bytes, got {type(value).__name__}")
        return value

    def decode(self, data: bytes) -> bytes:
        """Return `data`."""
        return data


RAW = Raw()
