"""A change in Redis that is made in one step with the acknowledgement, or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Effect"]


@dataclass(frozen=True, slots=True)
class Effect:
    """What a message is to do in Redis, once: a piece of Lua that runs only for the owner of the delivery.

    Its keys must be in the message's slot: name them by `Lane.key`. What it returns is thrown away. If it
    raises, the message is not acknowledged; what it had changed by then stays, so it should check first.

    Attributes:
        source: the Lua text, which sees `keys` as KEYS and `args` as ARGV.
        keys: every key that it touches.
        args: values.
    """

    source: str
    keys: Sequence[str | bytes] = field(default=())
    args: Sequence[str | bytes | int | float] = field(default=())
