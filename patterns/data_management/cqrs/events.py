"""What the parts of CQRS tell about themselves."""

from __future__ import annotations

from dataclasses import dataclass

from patterns.events import Event

__all__ = [
    "AppendConflicted",
    "Appended",
    "FactFailed",
    "FactParked",
    "FactsApplied",
    "ModelSwitched",
    "PartitionStopped",
    "PartitionTaken",
    "ProjectionPaused",
    "ProjectionResumed",
    "ProjectionStalled",
]


@dataclass(frozen=True, slots=True)
class Appended(Event):
    """A command was recorded, or had been before."""

    aggregate: str
    version: int
    repeated: bool


@dataclass(frozen=True, slots=True)
class AppendConflicted(Event):
    """Somebody else had changed the aggregate."""

    aggregate: str
    expected: int
    actual: int


@dataclass(frozen=True, slots=True)
class PartitionTaken(Event):
    """This projector owns the partition from now on; whoever had it writes no more."""

    partition: int
    position: int


@dataclass(frozen=True, slots=True)
class FactsApplied(Event):
    """The read model has moved on to `position`."""

    partition: int
    position: int
    count: int


@dataclass(frozen=True, slots=True)
class FactFailed(Event):
    """`apply` raised; it is tried again while `attempt` is less than the policy's."""

    partition: int
    position: int
    attempt: int
    error: str


@dataclass(frozen=True, slots=True)
class FactParked(Event):
    """A fact was put aside, and the projection goes on without it."""

    partition: int
    position: int
    aggregate: str
    error: str


@dataclass(frozen=True, slots=True)
class ProjectionPaused(Event):
    """A fact cannot be applied, and its partition waits for somebody."""

    partition: int
    position: int
    error: str


@dataclass(frozen=True, slots=True)
class ProjectionStalled(Event):
    """Log or read model cannot be reached; the partition is tried again after a pause."""

    partition: int
    error: str


@dataclass(frozen=True, slots=True)
class ProjectionResumed(Event):
    """Both can be reached again."""

    partition: int


@dataclass(frozen=True, slots=True)
class PartitionStopped(Event):
    """The partition is followed no more: another projector has it, or the log has lost what was applied."""

    partition: int
    error: str


@dataclass(frozen=True, slots=True)
class ModelSwitched(Event):
    """Readers see this generation from now on."""

    generation: int
