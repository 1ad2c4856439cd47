"""What a cache tells of its writes; of its reads it speaks as Cache-Aside does."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.events import Event

__all__ = ["WriteFailed", "WrittenThrough"]


@dataclass(frozen=True, slots=True)
class WrittenThrough(Event):
    """The source has it; `cached` is False where Redis has not, for it is away or something was newer."""

    entity: str
    version: int
    cached: bool
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class WriteFailed(Event):
    """The source raised; `refused` is False where the write may have been done, so the entry was dropped."""

    entity: str
    refused: bool
    duration_seconds: float
    error: str
