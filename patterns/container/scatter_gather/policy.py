"""The numbers of a gather, what its leaves are, and what they are asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from patterns.bounds import exceptions, number, text, whole
from patterns.container.scatter_gather.delay import Observed
from patterns.container.scatter_gather.health import Health
from patterns.resiliency.retry.budget import Budget

if TYPE_CHECKING:
    from patterns.deadline import Deadline

__all__ = ["Ask", "Hedge", "Leaf", "Policy", "Replica", "Tie"]

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Policy:
    """How long, how many, and what is enough.

    Attributes:
        deadline: seconds after which `gather` has returned.
        min_results: answers without which it raises NotEnough.
        limit: requests of one gather that run at once.
        enough: answers with which it does not wait for the rest; None waits for all until the deadline.
        drain: seconds at the end of the deadline that are kept for what was cancelled to end in.
        canary: seconds that the first leaf has to answer alone before the others are asked; None asks all.
        fail_fast: give up at the first leaf that failed.
        idempotent: a request may be carried out twice.
        max_abandoned: calls of one replica that may run on after they were given up; then it is not asked.
    """

    deadline: float
    min_results: int
    limit: int
    enough: int | None = None
    drain: float = 0.02
    canary: float | None = None
    fail_fast: bool = False
    idempotent: bool = False
    max_abandoned: int = 4

    def __post_init__(self) -> None:
        """Refuse a policy that makes no sense."""
        number("deadline", self.deadline, above=0, at_most=86_400)
        whole("min_results", self.min_results, at_least=0)
        whole("limit", self.limit, at_least=1)
        if self.enough is not None:
            whole("enough", self.enough, at_least=max(1, self.min_results))
        number("drain", self.drain, above=0, below=self.deadline)
        if self.canary is not None:
            number("canary", self.canary, above=0, at_most=self.deadline)
        whole("max_abandoned", self.max_abandoned, at_least=1)


class Hedge:
    """When a leaf is asked a second time, at another replica, and how often that may happen.

    Make one for each ScatterGather: all its gathers share the budget and what is known of replicas.

    Args:
        delay: seconds after which a leaf is late; a number, or what `Observed` measures.
        budget: each second request takes a token, each answer within `delay` earns `ratio` of one.
        on: errors after which another replica is asked at once.
        tied: the two requests know each other, and the one that begins first has the other dropped. Each
            answer earns, not only the early ones.
        rest: seconds for which a replica that failed, or was late three times in a row, is not asked first.
    """

    def __init__(
        self,
        delay: float | Observed,
        *,
        budget: Budget | None = None,
        on: tuple[type[Exception], ...] = (),
        tied: bool = False,
        rest: float = 10.0,
    ) -> None:
        self.observed = delay if isinstance(delay, Observed) else None
        self._delay = 0.0 if isinstance(delay, Observed) else number("delay", delay, at_least=0)
        # Nothing by time: in an outage nobody answers in time, and then no hedge may be sent.
        self.budget = budget if budget is not None else Budget(ratio=0.05, min_per_second=0, capacity=10)
        self.on = exceptions("on", on)
        self.tied = tied
        self.health = Health(rest)

    @property
    def delay(self) -> float:
        """Seconds after which a leaf is late, as of now."""
        return self._delay if self.observed is None else self.observed.delay


@dataclass(frozen=True, slots=True)
class Tie:
    """What connects the two requests of one leaf.

    Attributes:
        id: the same for both, and for no others.
        peer: number of the other one's replica.
    """

    id: str
    peer: int


class Ask(NamedTuple, Generic[R]):
    """What a replica is asked.

    Attributes:
        request: what `gather` was given.
        deadline: when an answer is of no use any more.
        leaf: the leaf's name.
        replica: number of the replica among the leaf's.
        hedge: whether it is the second request.
        tie: the other request, if they are tied.
    """

    request: R
    deadline: Deadline
    leaf: str
    replica: int = 0
    hedge: bool = False
    tie: Tie | None = None


Replica = Callable[[Ask[R]], Awaitable[T]]


class Leaf(Generic[R, T]):
    """One part of the work, and the replicas that can do it.

    Args:
        name: names it in answers, errors and events.
        replicas: `await replica(ask)` gives the leaf's value; any of them must give the same.
    """

    def __init__(self, name: str, *replicas: Replica[R, T]) -> None:
        self.name = text("name", name)
        if not replicas or not all(map(callable, replicas)):
            raise ValueError(f"replicas of leaf {name!r} must be one or more callables, got {replicas!r}")
        self.replicas = replicas
