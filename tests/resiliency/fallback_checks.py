"""What patterns/resiliency/fallback must do: checks that the module passes and the naive variants fail."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from patterns.clock import ManualClock
from patterns.events import Recorder
from patterns.resiliency.fallback import (
    BUGS,
    AllLevelsFailed,
    Answer,
    ContractBroken,
    Exercised,
    Fallback,
    FallbackExhausted,
    LastGood,
    Level,
    LevelFailed,
    NoCopy,
    Policy,
)
from patterns.resiliency.fallback.shared import SharedLastGood
from patterns.scripted import Scripted, fails, hangs, returns
from tests.resiliency.fallback_variants import DOWN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patterns.keyspace import Client

Make = Any  # Fallback or a naive variant with the same constructor


def policy(**changes: Any) -> Policy:
    """Return a small policy: a refused connection and a time-out lead to the levels."""
    return Policy(**({"on": (ConnectionError, TimeoutError)} | changes))


def scripted(*steps: Any, then: Any = None, clock: ManualClock | None = None) -> Scripted:
    """Return a service; without `then` its last step is its last word."""
    return Scripted(*steps, then=then, **({"clock": clock} if clock else {}))


async def outcome_of(call: Awaitable[Any]) -> Any:
    """Return what `call` gave, or what it raised, whatever that is."""
    try:
        return await call
    except BaseException as error:
        return error


def level_of(value: Any) -> Callable[..., Awaitable[Any]]:
    """Return an async def that answers with `value`."""

    async def level(*args: Any, **kwargs: Any) -> Any:
        return value

    return level


def kept(client: Any, app: str, **changes: Any) -> SharedLastGood[Any]:
    """Return copies of prices in Redis, each answer written."""
    defaults: dict[str, Any] = {"name": "prices", "key": lambda article: article, "ttl": 3600, "refresh": 0}
    options = defaults | changes
    kind = options.pop("kind", SharedLastGood)
    memory: SharedLastGood[Any] = kind(options.pop("name"), client, app=app, **options)
    return memory


def chain(memory: Any, make: Make = Fallback, **options: Any) -> Fallback[Any]:
    """Return a fallback with that one level."""
    fallback: Fallback[Any] = make("prices", policy(), Level("copy", memory), **options)
    return fallback


async def order(query: Callable[[], Awaitable[int]], clock: ManualClock) -> bool:
    try:
        async with clock.timeout(0.5):
            await query()
    except TimeoutError:
        return False
    return True


async def check_levels_rest(make: Make) -> None:
    """A hundred good answers, and not one call of a level."""
    primary, level = scripted(then=returns(12)), scripted(then=returns(10))
    fallback = make("prices", policy(), Level("list price", level))
    for _ in range(100):
        assert await fallback.call(primary, "cup") == Answer(12, "primary", degraded=False)
    assert primary.calls == 100
    assert level.calls == 0, f"{level.calls} calls of a level while the primary was well"


class Bare(BaseException):
    """Neither an Exception nor one of Python's own."""


NEVER: list[BaseException] = [
    asyncio.CancelledError(),
    KeyboardInterrupt(),
    SystemExit(),
    GeneratorExit(),
    Bare(),
    BaseExceptionGroup("mixed", [ConnectionError(), asyncio.CancelledError()]),
    ValueError("not listed"),
    ExceptionGroup("one of them is a bug", [ConnectionError(), TypeError()]),
    *(bug() for bug in BUGS),
    KeyError("a subclass of one"),
]


async def check_only_listed_errors_lead_on(make: Make) -> None:
    """What is not listed reaches the caller as it is, from the primary and from a level."""
    for error in NEVER:
        last = scripted(then=returns(10))
        fallback = make("prices", policy(), Level("first", scripted(then=fails(error))), Level("last", last))
        got = await outcome_of(fallback.call(scripted(fails(error)), "cup"))
        assert got is error, f"the primary's {type(error).__name__} became {got!r}"
        assert last.calls == 0
        got = await outcome_of(fallback.call(scripted(fails(DOWN)), "cup"))
        assert not isinstance(got, Answer), f"a level's {type(error).__name__} was passed over"
        assert last.calls == 0
        if isinstance(error, Exception):
            assert isinstance(got, AllLevelsFailed)
            assert got.exceptions == (DOWN, error)
        else:
            assert got is error


async def check_a_cancelled_caller_gets_no_substitute(make: Make) -> None:
    """The primary makes a ConnectionError of its cancellation; so does a level."""

    async def translates() -> int:
        try:
            await scripted(hangs())()
        except asyncio.CancelledError:
            raise ConnectionError("connection lost") from None
        return 0

    last = scripted(then=returns(10))
    for primary, levels in (
        (translates, [Level("last", last)]),
        (scripted(then=fails(DOWN)), [Level("first", translates), Level("last", last)]),
        (scripted(then=fails(DOWN)), [Level("first", translates, timeout=60), Level("last", last)]),
    ):
        fallback = make("prices", policy(), *levels)
        call = asyncio.create_task(fallback.call(primary))
        for _ in range(5):
            await asyncio.sleep(0)
        call.cancel()
        got = await outcome_of(call)
        assert type(got) is ConnectionError, f"the cancelled caller got {got!r}"
        assert last.calls == 0


async def check_substitutes_are_marked_and_not_kept(make: Make) -> None:
    """A default is given out before there is a copy; the copy is the primary's, and says its age."""
    clock = ManualClock()
    last: LastGood[int] = LastGood(key=lambda article: article, max_entries=10, clock=clock)
    levels = Level("last good", last), Level("default", scripted(then=returns(0)))
    fallback = make("prices", policy(), *levels, clock=clock)
    for _ in range(2):
        answer = await fallback.call(scripted(fails(DOWN)), "cup")
        assert (answer.value, answer.source) == (0, "default"), (
            f"{answer.source} gives out a substitute again"
        )
        assert answer.degraded
        assert answer.age is None
        assert [type(error) for error in answer.errors] == [ConnectionError, NoCopy]
    call = asyncio.create_task(fallback.call(scripted(returns(12).after(0.5), clock=clock), "cup"))
    await clock.advance(0.5)
    assert await call == Answer(12, "primary", degraded=False)
    clock.jump(60)
    answer = await fallback.call(scripted(fails(DOWN)), "cup")
    assert answer == Answer(12, "last good", degraded=True, age=60.5, errors=(DOWN,))
    assert (await fallback.call(scripted(fails(DOWN)), "pot")).source == "default"


async def check_all_errors_in_order_and_in_time(make: Make) -> None:
    """Two levels hang; the caller has every error after `deadline`, the primary's first."""
    clock, heard = ManualClock(), Recorder()
    hung, never = scripted(then=hangs(), clock=clock), scripted(then=returns(1))
    fallback = make(
        "prices",
        policy(deadline=1.0),
        Level("replica", hung, timeout=0.5),
        Level("other region", hung, timeout=5.0),
        Level("never begun", never),
        clock=clock,
        on_event=heard,
    )
    call = asyncio.create_task(outcome_of(fallback.call(scripted(fails(DOWN)))))
    for _ in range(30):
        if call.done():
            break
        await clock.advance(0.125)
    took = clock.monotonic()
    call.cancel()
    got = await call
    assert isinstance(got, AllLevelsFailed), f"after {took:.1f} s the caller got {got!r}"
    assert got.primary is got.exceptions[0] is got.__cause__ is DOWN
    assert [str(error) for error in got.exceptions[1:]] == [
        "'replica' did not answer within 0.5 s",
        "'other region' did not answer within 0.5 s",
        "'never begun' was not begun: no time was left",
    ]
    assert took == 1.0, f"it took {took:.1f} s"
    assert never.calls == 0
    assert hung.cancelled == 2
    assert heard.names() == ["LevelFailed"] * 3 + ["FallbackExhausted"]
    assert heard.events[-1] == FallbackExhausted("prices", "ConnectionError", 3)


async def check_the_limit_holds(make: Make) -> None:
    """A thousand callers at once, the primary down: ten reach the database, the rest go on."""
    clock = ManualClock()
    database = scripted(then=returns(12).after(0.2), clock=clock)
    levels = Level("database", database, limit=10), Level("default", level_of(0))
    fallback = make("prices", policy(), *levels, clock=clock)
    calls = [asyncio.create_task(fallback.call(scripted(fails(DOWN)))) for _ in range(1000)]
    await clock.advance(0)
    at_once = sum(call.done() for call in calls)
    await clock.advance(0.2)
    sources = [(await call).source for call in calls]
    assert database.most_in_flight <= 10, f"{database.most_in_flight} at once in the database"
    assert sources.count("database") == 10
    assert at_once == 990, f"{at_once} were served at once"
    for _ in range(30):
        hung = [asyncio.create_task(fallback.call(scripted(fails(DOWN)))) for _ in range(10)]
        await clock.advance(0)
        for call in hung:
            call.cancel()
        await asyncio.gather(*hung, return_exceptions=True)
    call = asyncio.create_task(fallback.call(scripted(fails(DOWN))))
    await clock.advance(0.2)
    assert (await call).source == "database", "no permit is left after cancelled calls"


async def check_too_old_is_not_served(make: Make) -> None:
    """A copy is served until it is `max_age` old, and not a moment longer; nor is one without an age."""
    clock = ManualClock()
    last: LastGood[int] = LastGood(key=lambda: "k", max_entries=1, clock=clock)
    unknown = Level("says no age", scripted(then=returns(7)), max_age=60.0)
    fallback = make("prices", policy(), Level("copy", last, max_age=60.0), unknown, clock=clock)
    await fallback.call(scripted(returns(12)))
    clock.step_wall(-7200)
    clock.jump(60)
    assert (await fallback.call(scripted(fails(DOWN)))).age == 60
    clock.jump(0.25)
    got = await outcome_of(fallback.call(scripted(fails(DOWN))))
    assert isinstance(got, AllLevelsFailed), f"{got.value} was served, {got.age} s old"
    old, without = got.exceptions[1:]
    assert str(old) == "the value of 'copy' is 60.25 s old; at most 60 s are allowed"
    assert str(without).startswith("the value of 'says no age' is of unknown age: return Stale(value, age)")


class Point(NamedTuple):
    x: float
    y: Any


@dataclass(frozen=True)
class Price:
    cents: int
    currency: str
    history: tuple[int, ...] = ()


GOOD: dict[str, Any] = {"price": 12.0, "tags": ["new"], "seller": {"id": 1, "at": Point(1.0, "here")}}


BAD: list[tuple[Any, Any, str]] = [
    (12, None, "the result is NoneType, not int"),
    (12, 12.0, "the result is float, not int"),
    (True, 1, "the result is int, not bool"),
    ((1, 2), [1, 2], "the result is list, not tuple"),
    (GOOD, GOOD | {"price": "12"}, "the result['price'] is str, not float"),
    (GOOD, {"price": 1.0, "tags": []}, "the result lacks the keys ['seller']"),
    (GOOD, GOOD | {"old": 1}, "the result has the keys ['old'] besides"),
    (GOOD, GOOD | {"tags": [1]}, "the result['tags'] holds int"),
    ([{"a": 1}], [{"a": None}], "an item of the result['a'] is NoneType, not int"),
    (Point(1.0, "a"), Point(1.0, 2), "the result.y is int, not str"),
    (Price(1, "EUR"), Price(1, b"EUR"), "the result.currency is bytes, not str"),  # type: ignore[arg-type]  # that is it
    (Price(1, "EUR", (1,)), Price(1, "EUR", ("1",)), "the result.history holds str"),  # type: ignore[arg-type]  # that is it
]


async def check_the_contract_finds_what_differs(compare: Any) -> None:
    """Each level with another shape is found by name, and so is one that does not answer."""
    for wanted, other, complaint in BAD:
        levels = Level("same", level_of(wanted)), Level("other", level_of(other))
        got = await outcome_of(compare(Fallback("x", policy(), *levels), level_of(wanted), [("cup",)]))
        assert isinstance(got, ContractBroken), f"a level that gives {other!r} for {wanted!r} was not found"
        assert str(got) == f"other, case 1: {complaint}"
    broken = Fallback("x", policy(), Level("bug", scripted(then=fails(NameError("rows")))))
    got = await outcome_of(compare(broken, level_of(1), [(), ()]))
    assert got.differences[1] == "bug, case 2: raised NameError: rows"


async def check_exercises(make: Make, seed: int = 7) -> None:
    """One call in five takes the levels, each level its turn; a broken level costs nobody an answer."""
    heard = Recorder()
    levels = Level("copy", level_of(11)), Level("default", scripted(then=fails(AttributeError("renamed"))))
    fallback = make("prices", policy(exercise=0.2), *levels, rng=random.Random(seed), on_event=heard)
    answers = [await fallback.call(level_of(12)) for _ in range(2000)]
    drills = heard.of(Exercised)
    assert 320 < len(drills) < 480, f"{len(drills)} exercises in 2000 calls"
    begun = {level.name: sum(drill.level == level.name for drill in drills) for level in levels}
    assert min(begun.values()) > 140, f"exercises began at {begun}"
    assert {(drill.level, drill.passed) for drill in drills} == {("copy", True), ("default", False)}
    assert sum(answer.source == "copy" for answer in answers) == begun["copy"]
    assert sum(answer == Answer(12, "primary", degraded=False) for answer in answers) == 2000 - begun["copy"]
    assert set(heard.names()) == {"Exercised", "LevelFailed"}
    assert heard.of(LevelFailed)[0] == LevelFailed("prices", "default", "AttributeError", exercise=True)


STEPS = {
    "answers": returns("a value"),
    "down": fails(DOWN),
    "bug": fails(KeyError("rows")),
    "unlisted": fails(ValueError("no JSON")),
    "empty": fails(NoCopy()),
}


def expected(primary: str, levels: list[str]) -> str:
    """Say in five lines who answers: a level's name, "primary", "raised" or "exhausted"."""
    if primary != "down":
        return "primary" if primary == "answers" else "raised" if primary != "empty" else _first(levels)
    return _first(levels)


def _first(levels: list[str]) -> str:
    for number, kind in enumerate(levels):
        if kind == "answers":
            return f"level {number}"
        if kind in {"bug", "unlisted"}:
            return "exhausted"
    return "exhausted"


async def check_shared(kind: type[SharedLastGood[Any]], client: Client, app: str) -> None:
    """Another process finds the copy with its age; an answer that was overtaken does not replace it."""
    clock = ManualClock()
    here, there = (
        chain(kind("prices", client, app=app, key=str, ttl=3600, refresh=0, clock=clock), clock=clock)
        for _ in range(2)
    )
    late = asyncio.Event()

    async def slow(article: str) -> str:
        await late.wait()
        return "old"

    first = asyncio.create_task(here.call(slow, "cup"))
    await asyncio.sleep(0)
    clock.jump(5)
    before = asyncio.get_running_loop().time()
    assert (await there.call(level_of("new"), "cup")).value == "new"
    late.set()
    await first
    answer = await here.ask("copy", "cup")
    assert answer.value == "new", f"{answer.value!r} replaced an answer that is later"
    assert answer.age is not None
    assert 0 <= answer.age <= asyncio.get_running_loop().time() - before + 0.01


class Held:
    """A client whose script calls wait, from the `number`-th on, until `gate` is open."""

    def __init__(self, client: Client, number: int) -> None:
        self.client, self.left = client, number
        self.came, self.gate = asyncio.Event(), asyncio.Event()

    async def evalsha(self, *args: Any) -> Any:
        """Send it once the gate is open."""
        self.left -= 1
        if self.left <= 0:
            self.came.set()
            await self.gate.wait()
        return await self.client.evalsha(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


async def check_a_copy_held_up_on_its_way(
    kind: type[SharedLastGood[Any]], client: Client, app: str, number: int
) -> None:
    """A copy waits before the server while what it shows is forgotten; another waits and gets no younger."""
    loop = asyncio.get_running_loop()
    for entity, forgotten in (("ann", True), ("ben", False)):
        line: Any = Held(client, number)
        slow = chain(kind("users", line, app=app, key=str, ttl=3600, refresh=0, timeout=10))
        memory: SharedLastGood[str] = SharedLastGood("users", client, app=app, key=str, ttl=3600)
        began = loop.time()
        call = asyncio.create_task(slow.call(level_of("old"), entity))
        await line.came.wait()
        if forgotten:
            await memory.forget(entity)
        there = await client.time()
        while await client.time() < (there[0], there[1] + 20_000) and loop.time() < began + 5:
            pass  # the server's clock moves on by 20 ms, or by what is left of a second
        waited = loop.time() - began
        line.gate.set()
        await call
        got = await outcome_of(memory(entity))
        if forgotten:
            assert isinstance(got, NoCopy), f"what was forgotten came back with {got!r}"
        else:
            assert got.age >= waited, f"a copy {waited:.3f} s old says {got.age:.3f} s"
