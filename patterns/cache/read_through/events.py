"""What a read-through cache tells of itself, besides the events of Cache-Aside."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.events import Event

__all__ = ["BatchLoaded"]


@dataclass(frozen=True, slots=True)
class BatchLoaded(Event):
    """`load_all` returned: it was asked for so many keys, and gave values (None too) for so many of them."""

    asked: int
    returned: int
    duration_seconds: float
