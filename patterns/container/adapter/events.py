"""What an adapter tells the world about itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from patterns.events import Event

__all__ = ["Dropped", "Reason", "SeriesDropped", "TargetFailed"]


class Reason(Enum):
    """Why a target has no series on this page."""

    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    MALFORMED = "malformed"
    ERROR = "error"


class Dropped(Enum):
    """Why a series of a target that answered is not on the page."""

    NAME = "name"  # nothing of it is left when it is cleaned
    RESERVED = "reserved"  # the name is the adapter's own
    CONFLICT = "conflict"  # another family has the name, as another kind
    VALUE = "value"  # no number, or a counter that is negative or not finite
    LABELS = "labels"  # no text, or two labels of one name
    DUPLICATE = "duplicate"  # the same name and labels again
    FAMILY = "family_series"  # more than the policy allows
    TOTAL = "series"  # more than the policy allows
    TARGETS = "targets"  # more than the policy allows; counts targets, not series


@dataclass(frozen=True, slots=True)
class TargetFailed(Event):
    """A target gave nothing in time; `source` is the source's name.

    The error's class is told and its text is not: there may be a password in it.
    """

    target: str
    reason: Reason
    error: str
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class SeriesDropped(Event):
    """Series of this source are not on the page."""

    series: int
    reason: Dropped
