"""How a value becomes bytes that another process can read.

Source: RFC 8259, JSON.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

__all__ = ["JSON", "Codec", "Json"]


class Codec(Protocol):
    """Turns values into bytes and back."""

    def encode(self, value: Any) -> bytes:
        """Return `value` as bytes, or raise any Exception: then it is not kept."""
        ...

    def decode(self, data: bytes) -> Any:
        """Return the value, or raise any Exception: then there is no copy."""
        ...


class Json:
    """JSON in UTF-8, without NaN. A tuple comes back as a list: `same_contract` finds that."""

    def encode(self, value: Any) -> bytes:
        """Return `value` as JSON."""
        return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()

    def decode(self, data: bytes) -> Any:
        """Return what the JSON says."""
        return json.loads(data)


JSON = Json()
