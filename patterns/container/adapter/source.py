"""What an application is to the adapter: a source of targets, each of which gives families of samples.

To adapt one more kind of application, write a class with a `name`, `targets` and `collect`:

>>> class Fridge:
...     name = "fridge"
...
...     async def targets(self) -> list["Fridge"]:
...         return [self]  # one process, so one target; of a cluster, one for each node
...
...     async def collect(self) -> list[Family]:
...         degrees = Family("fridge_temperature_celsius", "gauge", "Inside, at the sensor")
...         return [degrees.add(4.5, {"shelf": "top"})]
>>> import asyncio
>>> (family,) = asyncio.run(Fridge().collect())
>>> family.samples
[Sample(value=4.5, labels={'shelf': 'top'}, created=None)]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

__all__ = ["Family", "Kind", "Malformed", "Sample", "Source", "Target"]

Kind = Literal["gauge", "counter"]


class Malformed(ValueError):
    """The application answered something that is no answer; nothing of it is shown."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one series.

    Attributes:
        value: in base units (seconds, bytes), never scaled.
        labels: what tells it from the others of its family.
        created: of a counter, when it was 0: seconds since the epoch, the start of the application as a rule.
    """

    value: float
    labels: Mapping[str, str]
    created: float | None = None


@dataclass(slots=True)
class Family:
    """Samples that mean the same thing.

    Attributes:
        name: with its unit at the end, without `_total`, which a counter gets when it is written.
        kind: "gauge" goes up and down; "counter" only up, and back to 0 when the application starts again.
        help: one sentence.
        samples: the first come first, when there are too many.
    """

    name: str
    kind: Kind
    help: str
    samples: list[Sample] = field(default_factory=list)

    def add(
        self, value: float, labels: Mapping[str, str] | None = None, *, created: float | None = None
    ) -> Self:
        """Add one sample; return the family."""
        self.samples.append(Sample(value, labels or {}, created))
        return self


# --8<-- [start:interface]
@runtime_checkable
class Target(Protocol):
    """One process of an application: what can be up or down."""

    @property
    def name(self) -> str:
        """Its place among the targets of its source, as `10.0.0.7:6379`; never a secret."""
        ...

    async def collect(self) -> Sequence[Family]:
        """Ask the application now, change nothing of it, and return all that it says.

        May be cancelled at any await. Waits for no time of its own: the adapter has the deadline.

        Raises:
            Malformed: the answer cannot be read.
            Exception: anything else; it costs this target's families, and no other's.
        """
        ...


class Source(Protocol):
    """One application."""

    @property
    def name(self) -> str:
        """What the operator calls it."""
        ...

    async def targets(self) -> Sequence[Target]:
        """Return its processes, those too that do not answer."""
        ...


# --8<-- [end:interface]
