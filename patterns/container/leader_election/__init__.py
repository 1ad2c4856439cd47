"""Let one of several identical processes do the work, and another one take over when it is gone.

Three replicas run so that one may die; the nightly job must not run three times. The candidates compete for
a lease in a store that all of them reach. Whoever holds it leads, and renews it; when the leader falls silent
the lease runs out, and another candidate takes it.

Guaranteed, each by a test that rejects a naive variant:

1. A term is valid no longer than its lease, counted on the holder's monotonic clock from before the request
   was sent, less a margin for drift; also after a pause, with a blocked loop, or without Redis.
2. The store has at most one holder. While it loses nothing and no clock's rate is further off than
   `clock_drift`, no two terms are valid at one time.
3. Fencing tokens rise with each acquisition; `FencedDatabase` refuses a token below the highest it has seen,
   and that one from any other holder, in the transaction of the write. A candidate that is given `floor`
   leads with a higher token than the resource has seen, also where Redis has forgotten the last one.
4. Renewal and release touch no lease but the holder's own; a late renewal neither revives nor extends one.
5. A leader that dies is followed within lease_duration + 1.2 * retry_period, one that resigns within
   1.2 * retry_period (and the time of one request).
6. The work is started once per term. It is cancelled, and has ended, before the lease is given up;
   `on_stopped` is called exactly once; an exception of the work gives the lease up and reaches the caller.
7. A candidate whose reply to an acquisition was lost recognises its own lease; one that stops campaigning
   leaves none behind, and one that hears no reply keeps the lease from the others no longer than it lasts.
8. N candidates send at most N / retry_period requests a second, spread by jitter, and one each when a lease
   runs out.
9. No request outlasts the retry period; without a renewal the work is cancelled at renew_deadline, while the
   lease still holds.

Not guaranteed: that only one process acts. A process may be paused between looking and acting, and work that
does not end when it is cancelled goes on: the resource has to check the token (3). Redis replicates
asynchronously and its leases follow the wall clock, so after a failover, or a jump of the server's clock, two
terms can be valid at once, even with one token. The lease saves work; it does not make the work correct.
Where that depends on it, use etcd, ZooKeeper or a database.

Redis keys: see `patterns.container.leader_election.lease`.

Assumptions: Redis keeps its keys (`noeviction`); all candidates of an election have one policy.

>>> async def scheduler(term: Term) -> str:  # a service's work is a loop; this one resigns at once
...     return f"led with token {term.token}"
>>> async def main() -> str:
...     async with opened() as redis:
...         lease = RedisLease("scheduler", redis, app="docs")
...         return await Candidate("worker-1", lease, Policy()).run(scheduler)
>>> from patterns.keyspace import opened
>>> asyncio.run(main())
'led with token 1'

Sources: Burns, "Designing Distributed Systems", chapter 9; client-go, `tools/leaderelection`; Kleppmann, "How
to do distributed locking"; Redis, "Distributed locks".
"""

from __future__ import annotations

import asyncio
import random
import uuid
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import RedisError

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.container.leader_election.fence import FencedDatabase, StaleToken
from patterns.container.leader_election.lease import (
    Granted,
    LeaseStore,
    NotReplicated,
    RedisLease,
    Refused,
)
from patterns.container.leader_election.term import JITTER_FACTOR, LeadershipLost, Policy, Term
from patterns.events import Event, Listener, emit, ignore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = [
    "Candidate",
    "FencedDatabase",
    "Granted",
    "LeaderObserved",
    "LeadershipLost",
    "LeaseRenewed",
    "LeaseStore",
    "NotReplicated",
    "Policy",
    "Reason",
    "RedisLease",
    "Refused",
    "Request",
    "RequestFailed",
    "StaleToken",
    "StartedLeading",
    "StoppedLeading",
    "Term",
]

T = TypeVar("T")


class Reason(Enum):
    """Why a term ended."""

    ENDED = "ended"  # the work returned
    FAILED = "failed"  # the work raised
    LOST = "lost"  # the lease could not be renewed, or was another's
    CANCELLED = "cancelled"  # run() was cancelled: shutdown


class Request(Enum):
    """What a candidate asks of the store."""

    ACQUIRE = "acquire"
    RENEW = "renew"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class LeaderObserved(Event):
    """A candidate that follows was told of a holder it did not know of."""

    holder: str


@dataclass(frozen=True, slots=True)
class StartedLeading(Event):
    """The lease was acquired, and the work begins."""

    token: int
    campaign_seconds: float


@dataclass(frozen=True, slots=True)
class LeaseRenewed(Event):
    """The lease was renewed in so many seconds."""

    token: int
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class RequestFailed(Event):
    """The store did not answer in time, or with an error; whether it did what was asked is not known."""

    request: Request
    error: str


@dataclass(frozen=True, slots=True)
class StoppedLeading(Event):
    """The work has ended; `overran_seconds` says for how long it went on after its term was over."""

    token: int
    reason: Reason
    led_seconds: float
    overran_seconds: float


class Candidate:
    """One process that would lead.

    Args:
        label: what people call this process; it need not be unique, for each term's holder is.
        lease: where the election keeps its lease.
        policy: the same in every candidate.
        floor: asks the protected resource for the highest token it has seen; see `FencedDatabase.floor`.
            What it raises ends the run; TimeoutError, OSError and RedisError count as no answer.
        clock: where durations are read.
        rng: where jitter comes from.
        on_event: hears LeaderObserved, StartedLeading, LeaseRenewed, RequestFailed and StoppedLeading.

    Attributes:
        term: the term this candidate leads in, else None.
        leader: the holder it has last heard of, itself included; None before the first answer.
    """

    def __init__(
        self,
        label: str,
        lease: LeaseStore,
        policy: Policy,
        *,
        floor: Callable[[], Awaitable[int]] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        on_event: Listener = ignore,
    ) -> None:
        if not label:
            raise ValueError("label must not be empty")
        if not lease.wait_seconds < policy.retry_period:
            raise ValueError(
                f"retry_period must be > the lease's wait_seconds {lease.wait_seconds:g}, "
                f"got {policy.retry_period!r}"
            )
        self.label = label
        self.policy = policy
        self.term: Term | None = None
        self.leader: str | None = None
        self._lease = lease
        self._floor = floor
        self._clock = clock
        self._now = clock.monotonic
        self._rng = rng or random.Random()
        self._on_event = on_event
        self._running = False

    @property
    def is_leader(self) -> bool:
        """Whether this candidate surely holds the lease now."""
        return self.term is not None and self.term.valid

    # --8<-- [start:run]
    async def run(
        self,
        work: Callable[[Term], Awaitable[T]],
        *,
        on_stopped: Callable[[Term], None] | None = None,
    ) -> T:
        """Campaign, do `work` while leading, and campaign again whenever leadership is lost.

        Returns what the work returns and raises what it raises, but for LeadershipLost and StaleToken, which
        are a loss. Work that returns resigns, and another candidate begins its own: a service's work is a
        loop. Cancelling this call resigns too; the lease is kept until the work, then cancelled, has ended.

        Args:
            work: started once per term, in a task of its own. After a loss it is cancelled, and what it then
                returns is dropped.
            on_stopped: called once at the end of each term, when nothing of the work runs any more; what it
                raises ends the run.

        Raises:
            RuntimeError: this candidate is running already.
        """
        if self._running:
            raise RuntimeError(f"candidate {self.label!r} is running already")
        self._running = True
        try:
            while True:
                term = await self._campaign()
                working = asyncio.create_task(_started(work, term))
                try:
                    reason = await self._lead(term, working)
                    error = None if working.cancelled() else working.exception()
                    if error is not None and not isinstance(error, _TERM_OVER):
                        raise error
                    if reason is Reason.CANCELLED:
                        raise asyncio.CancelledError
                    if reason is not Reason.LOST:
                        return working.result()
                finally:
                    if on_stopped is not None:
                        on_stopped(term)
                await self._clock.sleep(self._pause())
        finally:
            self._running = False

    async def _lead(self, term: Term, working: asyncio.Task[T]) -> Reason:
        """Renew beside the work until either is over; then end the work, and only then give the lease up."""
        began = self._now()
        renewing = asyncio.create_task(self._renew_until_lost(term))
        try:
            await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
            reason = _how_it_ended(working) if working.done() else Reason.LOST
        except asyncio.CancelledError:
            reason = Reason.CANCELLED
        cancelled = await _end(working)
        overran = max(0.0, -term.remaining)
        cancelled |= await _end(renewing)
        try:
            mine = not term.over
            term.end()
            if mine:
                await self._release(term.holder)
        except asyncio.CancelledError:
            cancelled = True
        finally:
            self.term = None
            reason = Reason.CANCELLED if cancelled else reason
            led = self._now() - began
            emit(self._on_event, StoppedLeading(self.label, term.token, reason, led, overran))
        if not renewing.cancelled():
            renewing.result()
        return reason

    # --8<-- [end:run]

    # --8<-- [start:renew]
    async def _renew_until_lost(self, term: Term) -> None:
        """Renew once per retry period; return when the lease is another's, or patience has run out."""
        period = self.policy.retry_period
        due = self._now() + term.patience - self.policy.renew_deadline + period  # a period after it was sent
        while True:
            await self._clock.sleep(min(due - self._now(), term.patience))
            if term.patience <= 0:
                return
            sent = self._now()
            due = sent + period
            try:
                async with self._clock.timeout(min(period, term.patience)):
                    mine = await self._lease.renew(term.holder, self.policy.lease_ms)
            except _NO_ANSWER as error:
                self._failed(Request.RENEW, error)
                continue
            if not mine:
                term.end()
                return
            term.renewed(sent)
            emit(self._on_event, LeaseRenewed(self.label, term.token, self._now() - sent))

    # --8<-- [end:renew]

    # --8<-- [start:campaign]
    async def _campaign(self) -> Term:
        """Try once per retry period, and when the lease runs out, until elected."""
        began = self._now()
        asked: float | None = None  # when the first of the tries left that have had no answer
        holder = ""
        try:
            while True:
                if asked is None or self._now() - asked >= self.policy.renew_deadline:
                    holder, asked = f"{self.label}/{uuid.uuid4().hex}", self._now()
                answer = await self._try(holder, asked)
                if isinstance(answer, Term):
                    self.term, self.leader = answer, holder
                    emit(self._on_event, StartedLeading(self.label, answer.token, self._now() - began))
                    return answer
                if answer is not None:
                    asked = None
                    if answer.holder != self.leader:
                        self.leader = answer.holder
                        emit(self._on_event, LeaderObserved(self.label, answer.holder))
                await self._clock.sleep(self._pause(answer))
        except BaseException:
            if asked is not None:
                await self._release(holder)
            raise

    async def _try(self, holder: str, asked: float) -> Term | Refused | None:
        """Ask for the lease once; None: not known, and the same holder asks again."""
        try:
            async with self._clock.timeout(self.policy.retry_period):
                answer = await self._lease.acquire(holder, self.policy.lease_ms, 0)
                if isinstance(answer, Granted) and self._floor is not None:
                    floor = await self._floor()
                    if answer.token <= floor:
                        # The store has forgotten tokens that the resource has seen.
                        answer = await self._lease.acquire(holder, self.policy.lease_ms, floor)
        except _NO_ANSWER as error:
            self._failed(Request.ACQUIRE, error)
            return None
        if isinstance(answer, Refused):
            return answer
        # The lease may be from the first of these tries, and lasts from then.
        term = Term(self._lease.name, holder, answer.token, policy=self.policy, clock=self._clock, sent=asked)
        return term if term.patience > 0 else None

    # --8<-- [end:campaign]

    def _pause(self, answer: Refused | None = None) -> float:
        """Seconds until the next try: a jittered retry period, or sooner if the lease runs out before."""
        period = self.policy.retry_period
        pause = period * self._rng.uniform(1, JITTER_FACTOR)
        if answer is None or answer.remaining is None:
            return pause
        return min(pause, answer.remaining + _TICK + _SPREAD * period * self._rng.random())

    async def _release(self, holder: str) -> None:
        try:
            async with self._clock.timeout(self.policy.retry_period):
                await self._lease.release(holder)
        except _NO_ANSWER as error:
            self._failed(Request.RELEASE, error)

    def _failed(self, request: Request, error: Exception) -> None:
        emit(self._on_event, RequestFailed(self.label, request, type(error).__name__))


_NO_ANSWER = (RedisError, OSError, TimeoutError)
_TERM_OVER = (LeadershipLost, StaleToken)
_TICK = 0.001  # the store counts whole milliseconds
_SPREAD = 0.05  # share of a retry period over which followers come when a lease runs out


async def _started(work: Callable[[Term], Awaitable[T]], term: Term) -> T:
    return await work(term)


def _how_it_ended(working: asyncio.Task[Any]) -> Reason:
    if working.cancelled():
        return Reason.FAILED
    error = working.exception()
    if error is None:
        return Reason.ENDED
    return Reason.LOST if isinstance(error, _TERM_OVER) else Reason.FAILED


async def _end(task: asyncio.Task[Any]) -> bool:
    """Cancel a task and wait for its end; pass on what cancels the waiting, and say whether that came."""
    cancelled = False
    task.cancel()
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
            task.cancel()
    return cancelled
