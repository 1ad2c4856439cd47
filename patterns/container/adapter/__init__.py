r"""Give unlike applications one interface for monitoring, without changing any of them.

A Valkey cluster answers INFO, an old warehouse program a report for people. The adapter stands beside them
and speaks Prometheus for both: at each scrape it asks every target, cleans what they say, writes one page.

Guaranteed, each by a test that rejects a naive variant:

1. Valid: the page parses, in both formats of Prometheus, whatever the applications answer. A series that
   cannot be written is left out and counted.
2. In time: the page is there before the scraper hangs up, with all that came until then. A target that is
   down, slow or stuck is `adapter_up 0`, and is asked anew by the next scrape.
3. Fresh: a value was read for this scrape, or by a query that was under way when the scrape began. None is
   kept for later. A counter is what its application says, with the time at which it was 0.
4. Apart: a target that fails costs its own families and no other's, and is counted by reason.
5. One query: scrapes at the same time ask each target once; one that does not end is not asked again.
6. Bounded: at most `family_series` series of a family of one target and `series` of all are shown, shared
   fairly between targets; what is dropped is counted.
7. Reading: nothing of the application is changed; of Valkey, a user who may INFO and CLUSTER NODES will do.
8. Uniform: each adapter passes one suite. Each node of a cluster is a target of its own, also a dead one, and
   nothing is added up over nodes.
9. Discreet: no password and no text of an error is on the page, in an event or in a log.

Not guaranteed: that the page arrives (Prometheus' own `up` tells that: alert on both); one instant for the
whole page, for the targets are read at the same time but not at one moment; a source that blocks the event
loop; restarts of the application between two scrapes where it does not say when it started.

>>> class Fridge:
...     name = "fridge"
...     async def targets(self):
...         return [self]
...     async def collect(self):
...         return [Family("fridge_temperature_celsius", "gauge", "Inside").add(4.5)]
>>> async def main() -> None:
...     page = await Adapter([Fridge()]).scrape()
...     print(page.value("adapter_up", source="fridge"), page.value("fridge_temperature_celsius"))
>>> asyncio.run(main())
1.0 4.5

Sources: Burns and Oppenheimer, "Design patterns for container-based distributed systems" (HotCloud 2016);
Prometheus, "Writing exporters" and "Exposition formats"; prometheus/prometheus issue 2508 (the time-out as a
header); blackbox_exporter (the offset).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import AuthenticationError, AuthorizationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from patterns import bounds
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.container.adapter.events import Dropped, Reason, SeriesDropped, TargetFailed
from patterns.container.adapter.page import Outcome, Page, page_of
from patterns.container.adapter.policy import Policy
from patterns.container.adapter.source import Family, Malformed, Sample, Source, Target
from patterns.events import Listener, emit, ignore
from patterns.flight import Flights

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

__all__ = [
    "Adapter",
    "Dropped",
    "Family",
    "Malformed",
    "Outcome",
    "Page",
    "Policy",
    "Reason",
    "Sample",
    "SeriesDropped",
    "Source",
    "Target",
    "TargetFailed",
]

T = TypeVar("T")


class _Late(Exception):
    """The query that we joined was given up by those who began it."""


class Adapter:
    """Asks its sources at each scrape, and writes one page of what they say.

    Args:
        sources: one for each application; their names differ.
        policy: times and sizes.
        clock: where durations are read and waited for.
        on_event: hears TargetFailed and SeriesDropped.

    Attributes:
        created: when this adapter began to count, in seconds since the epoch.
        scrapes: answered until now.
        failures: of targets, by source and reason.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        *,
        policy: Policy | None = None,
        clock: Clock = SYSTEM_CLOCK,
        on_event: Listener = ignore,
    ) -> None:
        self.sources = tuple(sources)
        self.policy = policy or Policy()
        names = [bounds.text("name of a source", source.name) for source in self.sources]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"the names of sources must differ, got {twice[0]!r} twice")
        self.created = clock.wall().timestamp()
        self.scrapes = 0
        self.failures: Counter[tuple[str, Reason]] = Counter()
        self._clock = clock
        self._on_event = on_event
        self._flights: Flights[Any] = Flights()
        self._busy: dict[str, asyncio.Task[Any] | None] = {}  # targets that are being asked
        self._left: set[asyncio.Task[None]] = set()  # visits that did not end in time, and are ending

    # --8<-- [start:scrape]
    async def scrape(self, within: float | None = None) -> Page:
        """Ask every target, and return in time what was found.

        Args:
            within: seconds after which the scraper hangs up, if it said so.

        Raises:
            ValueError: `within` is no number of seconds > 0.
        """
        ends = self._clock.monotonic() + self.policy.budget(within)
        visit = _Visit(ends, self._clock.monotonic())
        asking = [asyncio.ensure_future(self._ask(source, visit)) for source in self.sources]
        try:
            with suppress(TimeoutError):
                async with self._clock.timeout(ends - self._clock.monotonic()):
                    if asking:
                        await asyncio.wait(asking)
        finally:
            self._leave([task for task in asking if not task.done()])
        visit.over = self._clock.monotonic()
        return self._page(visit)

    async def _ask(self, source: Source, visit: _Visit) -> None:
        """Ask for the targets of a source, and then all of them at once."""
        whole = visit.expect(source.name, "")
        targets = await self._answer(source.name, _targets_of(source), whole, visit)
        if targets is None:
            return
        visit.outcomes.remove(whole)
        named: dict[str, Target] = {}
        for target in targets:
            named.setdefault(target.name, target)
        asked = list(named.items())[: self.policy.targets]
        if len(asked) < len(targets):
            visit.dropped[source.name, Dropped.TARGETS] += len(targets) - len(asked)
        async with asyncio.TaskGroup() as group:
            for name, target in asked:
                outcome = visit.expect(source.name, name)
                key = f"{source.name}\0{name}"
                group.create_task(self._collect(key, target, outcome, visit))

    async def _collect(self, key: str, target: Target, outcome: Outcome, visit: _Visit) -> None:
        families = await self._answer(key, _families_of(target), outcome, visit)
        if visit.over is None:  # else the page is written, and this is nobody's news
            outcome.families = families

    async def _answer(
        self, key: str, ask: Callable[[], Coroutine[Any, Any, T]], outcome: Outcome, visit: _Visit
    ) -> T | None:
        """Return what `ask` says, or None: why not is in `outcome`."""
        began = self._clock.monotonic()
        try:
            return await self._shared(key, ask, visit.ends)
        except Exception as error:
            if visit.over is None:
                outcome.reason, outcome.error = _reason(error), type(error).__name__
            return None
        finally:
            if visit.over is None:
                outcome.seconds = self._clock.monotonic() - began

    # --8<-- [end:scrape]

    # --8<-- [start:shared]
    async def _shared(self, key: str, ask: Callable[[], Coroutine[Any, Any, T]], ends: float) -> T:
        """Join the query of `key` that is under way, or begin one that ends when we do."""
        while True:
            try:
                shared: T = await self._flights.share(key, lambda: self._query(key, ask, ends))
                return shared
            except _Late:
                # It began before us. Whoever goes on waiting for a hung query never sees a recovery.
                if self._clock.monotonic() >= ends:
                    raise TimeoutError from None

    async def _query(self, key: str, ask: Callable[[], Coroutine[Any, Any, T]], ends: float) -> T:
        try:
            async with self._clock.timeout(ends - self._clock.monotonic()):
                while stuck := self._busy.get(key):  # cancelled, and does not end
                    await asyncio.wait({stuck})
                self._busy[key] = asyncio.current_task()
                try:
                    return await ask()
                finally:
                    del self._busy[key]
        except TimeoutError:
            if self._clock.monotonic() >= ends:
                raise _Late from None
            raise

    # --8<-- [end:shared]

    def _leave(self, late: list[asyncio.Task[None]]) -> None:
        """Tell them to end, and do not wait: who ignores that must not hold the page up."""
        for task in late:
            task.cancel()
            self._left.add(task)
            task.add_done_callback(self._left.discard)

    def _page(self, visit: _Visit) -> Page:
        self.scrapes += 1
        # Not as they answered: whose family keeps a name that two want must not change with the weather.
        place = {source.name: number for number, source in enumerate(self.sources)}
        visit.outcomes.sort(key=lambda outcome: place[outcome.source])
        for outcome in visit.outcomes:
            if outcome.seconds is None:
                outcome.seconds = visit.seconds
            if not outcome.up:
                self.failures[outcome.source, outcome.reason] += 1
                source, target, why, error = outcome.source, outcome.target, outcome.reason, outcome.error
                emit(self._on_event, TargetFailed(source, target, why, error, outcome.seconds))
        page = page_of(visit.outcomes, self.policy, self, visit.dropped)
        for (source, reason), count in page.dropped.items():
            emit(self._on_event, SeriesDropped(source, count, reason))
        return page

    async def aclose(self) -> None:
        """End what was left behind; what does not end within `policy.timeout` is left to the loop."""
        if self._left:
            with suppress(TimeoutError):
                async with self._clock.timeout(self.policy.timeout):
                    await asyncio.wait(self._left)


class _Visit:
    """What one scrape has found so far."""

    def __init__(self, ends: float, began: float) -> None:
        self.ends, self.began = ends, began
        self.over: float | None = None  # when the page was begun: after that nothing is written here
        self.outcomes: list[Outcome] = []
        self.dropped: Counter[tuple[str, Dropped]] = Counter()

    @property
    def seconds(self) -> float:
        return (self.over or self.ends) - self.began

    def expect(self, source: str, target: str) -> Outcome:
        self.outcomes.append(outcome := Outcome(source, target))
        return outcome


def _targets_of(source: Source) -> Callable[[], Coroutine[Any, Any, list[Target]]]:
    async def ask() -> list[Target]:
        targets = _listed(await source.targets())
        if not all(isinstance(target, Target) and _is_name(target.name) for target in targets):
            raise Malformed("what a source returns as a target must have a name and `collect`")
        return targets

    return ask


def _families_of(target: Target) -> Callable[[], Coroutine[Any, Any, list[Family]]]:
    async def ask() -> list[Family]:
        families = _listed(await target.collect())
        for family in families:
            if not isinstance(family, Family) or family.kind not in {"gauge", "counter"}:
                raise Malformed("collect must return a list of Family, each a gauge or a counter")
            if not all(isinstance(sample, Sample) for sample in family.samples):
                raise Malformed("the samples of a family must be Sample")
        return families

    return ask


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name)


def _listed(answer: object) -> list[Any]:
    if not isinstance(answer, Iterable) or isinstance(answer, str | bytes | Mapping):
        raise Malformed("a list is wanted")
    return list(answer)


# The clients of Redis have classes of their own, and a refused password is a ConnectionError among them.
_REFUSED = (AuthenticationError, AuthorizationError)
_CLASSES: Sequence[tuple[Reason, tuple[type[Exception], ...]]] = (
    (Reason.ERROR, _REFUSED),
    (Reason.TIMEOUT, (TimeoutError, RedisTimeoutError)),
    (Reason.UNREACHABLE, (OSError, EOFError, RedisConnectionError)),
    (Reason.MALFORMED, (Malformed, UnicodeError)),
)


def _reason(error: Exception) -> Reason:
    return next((reason for reason, classes in _CLASSES if isinstance(error, classes)), Reason.ERROR)
