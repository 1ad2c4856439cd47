"""Ask all parts at once, and answer in time with what has come, saying what is missing.

A search over many shards, or a page made of many services, is as slow as the slowest of them: with a hundred
leaves of which each is slow once in a hundred times, two of three requests meet a slow one. The root asks
all, waits no longer than a deadline, asks a late leaf once more at another replica, and says what it lacks.

Guaranteed, each by a test that rejects a naive variant:

1. `gather` has returned by its deadline, or the caller's if that is sooner, whatever the leaves do, as far as
   the event loop runs; also one that does not let itself be cancelled. Each leaf is told what is left.
2. An answer says what it lacks: each leaf is in `values` or, with the cause, in `errors`, and `complete` is
   true only with all values. Fewer than `min_results` is NotEnough, which has them too.
3. Each leaf counts once, whether its first request or its hedge was first; answers come in the order of the
   leaves, not of arrival; `top_k` is the same for every order, and refuses what shards cut too short.
4. What lost is cancelled, and has ended before `gather` returns, be it by a result, an error or its caller's
   cancellation. What does not end within `drain` is in `abandoned`, at most `max_abandoned` calls of a
   replica, and its answer is dropped.
5. A leaf is asked a second time at most, at another replica, when it is late or has failed. All gathers
   together make no more second requests than the budget has: its `capacity`, and `ratio` of the answers that
   were not late. When all are slow, hedging ends. A replica that is dead or always late is soon asked first
   no more, and so costs the others few hedges.
6. No more than `limit` requests of a gather run at once, and a leaf that fails disturbs no other (unless
   `fail_fast` is set).
7. With a canary, a request that fails at the first leaf, or is too slow there, does not reach the others.
8. Hedging needs a policy that says that requests are idempotent; without, it is refused.
9. Of two tied requests the one that begins first has the other dropped before it begins; both are dropped
   never.

Not guaranteed: one moment for all leaves (the answers are no snapshot), that a request which was cancelled
has not been carried out, and that a deadline holds while the event loop is blocked. Two tied requests that
begin in the same moment both run. A slow leaf without a second replica stays slow.

Redis keys: none.

>>> import asyncio
>>> async def east(ask): return ["a", "b"]
>>> async def west(ask): raise ConnectionError("refused")
>>> policy = Policy(deadline=0.5, min_results=1, limit=10)
>>> search = ScatterGather("search", [Leaf("east", east), Leaf("west", west)], policy)
>>> answer = asyncio.run(search.gather("query"))
>>> answer.values, answer.missing, answer.complete
({'east': ['a', 'b']}, ('west',), False)

Sources: Dean and Barroso, "The Tail at Scale" (CACM 2013); Burns, "Designing Distributed Systems", chapter
"Scatter/Gather"; gRPC A6 (hedging and its throttle); Polly 8 (hedging); Elasticsearch (`_shards.failed`).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Generic, TypeVar

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.container.scatter_gather.answer import (
    CanaryFailed,
    Gathered,
    LeafMissing,
    NotEnough,
    NotIdempotent,
    Why,
    Withdrawn,
)
from patterns.container.scatter_gather.delay import Observed
from patterns.container.scatter_gather.events import (
    CallAbandoned,
    CallEnded,
    GatherEnded,
    HedgeRefused,
    HedgeSent,
    LeafFailed,
)
from patterns.container.scatter_gather.gathering import Gathering
from patterns.container.scatter_gather.merge import Hit, Page, TruncatedShard, top_k
from patterns.container.scatter_gather.policy import Ask, Hedge, Leaf, Policy, Tie
from patterns.events import Listener, emit, ignore

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from patterns.deadline import Deadline

__all__ = [
    "Ask",
    "CallAbandoned",
    "CallEnded",
    "CanaryFailed",
    "GatherEnded",
    "Gathered",
    "Hedge",
    "HedgeRefused",
    "HedgeSent",
    "Hit",
    "Leaf",
    "LeafFailed",
    "LeafMissing",
    "NotEnough",
    "NotIdempotent",
    "Observed",
    "Page",
    "Policy",
    "ScatterGather",
    "Tie",
    "TruncatedShard",
    "Why",
    "Withdrawn",
    "top_k",
]

R = TypeVar("R")
T = TypeVar("T")


class ScatterGather(Generic[R, T]):
    """The root: `await scatter.gather(request)` asks every leaf.

    Args:
        name: names it in errors and events.
        leaves: the parts; names differ.
        policy: how long, how many, and what is enough.
        hedge: when a leaf is asked a second time; None never.
        clock: where durations are read and waited for.
        rng: picks replicas, and who is hedged when the budget is short.
        on_event: hears HedgeSent, HedgeRefused, LeafFailed, CallAbandoned, CallEnded and GatherEnded.

    Raises:
        NotIdempotent: there is a hedge, and the policy does not say that requests may be carried out twice.
        ValueError: leaves, or policy and leaves, make no sense together.
    """

    def __init__(
        self,
        name: str,
        leaves: Iterable[Leaf[R, T]],
        policy: Policy,
        *,
        hedge: Hedge | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        self.name = name
        self.leaves = tuple(leaves)
        names = [leaf.name for leaf in self.leaves]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"leaves must be one or more, with names of their own, got {names}")
        for field, value in (("min_results", policy.min_results), ("enough", policy.enough)):
            if value is not None and value > len(names):
                raise ValueError(f"{field} must be <= {len(names)}, the number of leaves, got {value}")
        if hedge is not None:
            if not policy.idempotent:
                raise NotIdempotent(
                    "a hedge needs Policy(idempotent=True): a late request may have been carried out, and "
                    "is then carried out twice"
                )
            if all(len(leaf.replicas) == 1 for leaf in self.leaves):
                raise ValueError("a hedge needs a leaf with a second replica: the same one is as slow again")
        self.policy = policy
        self.hedge = hedge
        self.clock = clock
        self.rng = rng or random.Random()
        self.on_event = on_event
        self.stuck: dict[tuple[str, int], int] = {}  # leaf, replica: calls that were abandoned there
        self._abandoned: dict[asyncio.Task[object], tuple[str, int]] = {}

    async def gather(
        self, request: R, *, deadline: Deadline | None = None, hedge: bool = True
    ) -> Gathered[T]:
        """Ask every leaf, and return what has come in time.

        Args:
            request: what each replica finds as `ask.request`.
            deadline: the caller's; what is sooner holds.
            hedge: False for a request that must not be carried out twice.

        Raises:
            NotEnough: fewer answers than `min_results`, or one failed under `fail_fast`.
            CanaryFailed: the first leaf failed; no other was asked.
        """
        seconds = self.policy.deadline
        if deadline is not None:
            seconds = min(seconds, deadline.remaining())
        return await Gathering(self, request, seconds, self.hedge if hedge else None).run()

    @property
    def abandoned(self) -> int:
        """Calls that were given up and still run."""
        return len(self._abandoned)

    def abandon(self, task: asyncio.Task[object], leaf: str, replica: int) -> None:
        """Keep a call in view that does not end: used by a gather that cannot wait for it."""
        self._abandoned[task] = leaf, replica
        self.stuck[leaf, replica] = self.stuck.get((leaf, replica), 0) + 1
        emit(self.on_event, CallAbandoned(self.name, leaf, self.abandoned))

    def forget(self, task: asyncio.Task[object]) -> None:
        """Note that a call has ended which may have been abandoned."""
        if (place := self._abandoned.pop(task, None)) is None:
            return
        self.stuck[place] -= 1
        if not self.stuck[place]:
            del self.stuck[place]
        emit(self.on_event, CallEnded(self.name, place[0], self.abandoned))
