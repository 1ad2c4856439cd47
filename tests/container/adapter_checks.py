"""The conformance suite of adapters, and the checks that the Adapter's naive variants fail.

A reader who adapts a third application passes `check_conforms` with a `Case` of their own.
"""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from redis import exceptions as redis_errors

from patterns.clock import ManualClock
from patterns.container.adapter import Adapter, Family, Malformed, Policy, Sample, Source
from patterns.container.adapter.clean import clean
from tests.container.adapter_ground import (
    OPENMETRICS,
    Make,
    descriptors,
    forever,
    gauge,
    passing,
    samples,
    series,
    stub,
    told,
    up,
)
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PASSWORD = "s3cr3t-pass"


# --8<-- [start:case]
@dataclass
class Case:
    """One kind of adapter, and its application while it runs.

    Attributes:
        source: adapts the running application.
        at: makes the same adapter for an application on another port.
        state: what must be as before when it has been asked.
        targets: how many it has.
        mangled: answers, as the application frames them, that are none; `None` is silence.
    """

    source: Source
    at: Callable[[int], Source]
    state: Callable[[], Awaitable[object]]
    targets: int
    mangled: list[bytes]
    # --8<-- [end:case]


async def check_conforms(case: Case) -> None:
    """Every adapter of the interface does this, whatever application is behind it."""
    await _says_valid_families(case)
    await _changes_nothing(case)
    await _is_down_at_once_where_nobody_listens(case)
    await _reads_nothing_into_mangled_answers(case)
    await _leaves_nothing_behind_when_cancelled(case)


async def _says_valid_families(case: Case) -> None:
    targets = await case.source.targets()
    names = [target.name for target in targets]
    assert len(set(names)) == len(names) == case.targets, f"not a target for each process: {names}"
    for target in targets:
        families = await target.collect()
        assert families
        cleaned, dropped = clean(families, Policy())
        assert not dropped, f"{target.name} says what cannot be written: {dropped}"
        assert [family.name for family in cleaned] == [family.name for family in families]
        assert len({family.name.partition("_")[0] for family in families}) == 1, "more than one prefix"
        for family in families:
            assert family.help
            assert not re.search(r"_(kb|mb|ms|percent|minutes)$", family.name), "no base unit"
            for sample in family.samples:
                assert family.kind == "gauge" or sample.created, "a counter without its beginning"
    assert [target.name for target in await case.source.targets()] == names
    page = await Adapter([case.source]).scrape()
    placed = [each for each in samples(page) if not each.name.startswith("adapter_")]
    assert {each.labels.get("target") for each in placed} == set(names), "a total that no target said"
    assert page.up


async def _changes_nothing(case: Case) -> None:
    before = await case.state()
    for target in await case.source.targets():
        await target.collect()
    after = await case.state()
    assert after == before, "the application is not as it was"


async def _is_down_at_once_where_nobody_listens(case: Case) -> None:
    async with stub() as port:
        pass
    adapter = Adapter([case.at(port)])
    page = await adapter.scrape()
    assert set(up(page).values()) == {0.0}
    assert [outcome.reason.value for outcome in page.outcomes] == ["unreachable"]
    assert not series(page)


async def _reads_nothing_into_mangled_answers(case: Case) -> None:
    rng = random.Random(7)
    noise = [rng.randbytes(rng.randrange(1, 200)) for _ in range(5)]
    for answer in [b"", *case.mangled, *noise]:
        async with stub(answer, answer, answer) as port:
            source = case.at(port)
            page = await Adapter([source], policy=Policy(timeout=2.0)).scrape()
            assert set(up(page).values()) == {0.0}, f"{answer[:60]!r} was taken for an answer"
            assert not series(page)
            await close(source)


async def _leaves_nothing_behind_when_cancelled(case: Case) -> None:
    before = descriptors()
    for steps in (0, 1, 2, 5, 20):
        async with stub(None, None) as port:
            source = case.at(port)
            (target,) = await source.targets()
            asking = asyncio.ensure_future(target.collect())
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            (ended,) = await asyncio.gather(asking, return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError), ended
            await close(source)
    await eventually(lambda: descriptors() <= before, within=5)


async def close(source: Any) -> None:
    """Close a source that has something to close."""
    if hasattr(source, "aclose"):
        await source.aclose()


# What the Adapter itself promises


NOTHING: Any = None  # what a source without types may say
TEXT: Any = "3"

HOSTILE = [
    Family("", "gauge", ""),
    gauge("1 ünïcode-name\n# TYPE x counter", 1.0, **{"a b": "x", "a-b": "y"}),
    gauge("kelvin", float("nan"), zone='"\\\n\r\0'),
    gauge("kelvin", float("inf"), zone="\ud800"),
    gauge("kelvin", 10**400, zone="big"),
    gauge("kelvin", 1, source="mine", target="mine", __name__="x", le="z"),
    gauge("kelvin", 1, zone="twice"),
    gauge("kelvin", 2, zone="twice"),
    gauge("adapter_up", 7),
    Family("kelvin", "counter", "another kind").add(1),
    Family("orders_total", "counter", "").add(-1).add(float("nan"), {"a": ""}).add(3, {"a": ""}, created=-1),
    gauge("orders", 5),
    gauge("orders_created", 5),
    Family("none", "gauge", 'q"uo\\te\n# EOF').add(NOTHING).add(TEXT, {"x": "y"}).add(True),
]


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5)
)
NAMES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["a", "a_total", "a_created", "a_info", "a_bucket", "a_sum", "_", "1", "adapter_up", "a b"]
    ),
)


@st.composite
def whatever(draw: st.DrawFn) -> list[Any]:
    untyped_sample: Any = Sample
    untyped: Any = Family
    labels = st.one_of(st.dictionaries(NAMES, ANYTHING, max_size=3), ANYTHING)
    sample = st.builds(untyped_sample, ANYTHING, labels, ANYTHING)
    kind = st.sampled_from(["gauge", "counter"])
    family = st.builds(untyped, NAMES, kind, st.one_of(st.text(), ANYTHING), st.lists(sample, max_size=4))
    return draw(st.lists(family, max_size=5))


ERRORS: list[BaseException] = [
    RuntimeError(PASSWORD),
    ConnectionRefusedError(PASSWORD),
    TimeoutError(PASSWORD),
    ExceptionGroup(PASSWORD, [ValueError(PASSWORD)]),
    asyncio.CancelledError(PASSWORD),
    redis_errors.ConnectionError(PASSWORD),
    redis_errors.TimeoutError(PASSWORD),
    redis_errors.AuthenticationError(PASSWORD),
    redis_errors.NoPermissionError(PASSWORD),
    asyncio.IncompleteReadError(b"", 5),
    UnicodeDecodeError("utf-8", b"", 0, 1, PASSWORD),
    Malformed(PASSWORD),
    StopAsyncIteration(),
]


async def check_page_parses(make: Make, families: Any = HOSTILE) -> None:
    """Whatever the application says, both parsers take the page, and what can be written is on it."""
    clock = ManualClock()
    adapter = make([told([*families, gauge("good", 42)])], clock=clock)
    page = await passing(clock, adapter.scrape(5.0))
    for accept in ("", OPENMETRICS):
        try:
            found = samples(page, accept)
        except Exception as error:
            raise AssertionError(f"the page does not parse: {error!r}") from error
        keys = [(each.name, tuple(sorted(each.labels.items()))) for each in found]
        assert len(keys) == len(set(keys)), "a series twice"
        assert [each.value for each in found if each.name == "good"] == [42.0]
    await adapter.aclose()


async def check_answers_in_time(make: Make, slow: Any = forever) -> None:
    """One target does not answer: the page is there before the scraper hangs up, with all others."""
    clock = ManualClock()
    well = told([gauge("well")], name="well", targets=("well",))
    ill = told([gauge("ill", 1)], slow, [gauge("ill", 3)], name="ill", targets=("ill",))
    adapter = make([well, ill], policy=Policy(timeout=60.0), clock=clock)
    first = await passing(clock, adapter.scrape(10.0))
    assert series(first, "ill"), "a target that is well is missing"
    began = clock.monotonic()
    release = getattr(slow, "release", lambda: None)
    task = asyncio.ensure_future(adapter.scrape(10.0))
    try:
        while not task.done():
            assert clock.monotonic() - began < 10.0, "the scraper has hung up, and lost every sample"
            await clock.advance(0.25)
        page = task.result()
        assert list(series(page, "well").values()) == [1.0], "a target that is well is missing"
        assert not series(page, "ill"), "a stale sample"
        assert up(page) == {"well": 1.0, "ill": 0.0}
        release()
        page = await passing(clock, adapter.scrape(10.0))
        assert list(series(page, "ill").values()) == [3.0], "the recovery is not seen"
    finally:
        release()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        closing = asyncio.ensure_future(adapter.aclose())
        while not closing.done():
            await clock.advance(1.0)


async def check_recovery_is_seen_by_two_scrapers(make: Make) -> None:
    """Two Prometheus servers in turn: a query that hangs is not joined for ever."""
    clock = ManualClock()
    source = told(forever, [gauge("ill")])
    adapter = make([source], policy=Policy(timeout=60.0), clock=clock)
    pages: list[asyncio.Task[Any]] = []
    for _ in range(6):  # each waits 10 s, and the next comes after 5
        pages.append(asyncio.ensure_future(adapter.scrape(10.0)))
        await clock.advance(5.0)
    await clock.advance(10.0)
    found = [bool(series(task.result())) if task.done() else None for task in pages]
    for task in pages:
        task.cancel()
    await asyncio.gather(*pages, return_exceptions=True)
    assert found[0] is False
    assert found[1:] == [True] * 5, f"the hung query was joined again and again: {found}"


async def check_counters_show_a_reset(make: Make) -> None:
    """The application starts again and counts from 0: the page says 3 after 100, and since when."""

    def said(value: float, created: float) -> list[Family]:
        return [Family("orders", "counter", "Taken").add(value, created=created)]

    clock = ManualClock()
    adapter = make([told(said(100, 1e9), said(3, 2e9))], clock=clock)
    found = []
    for _ in range(2):
        page = await passing(clock, adapter.scrape(5.0))
        found.append({each.name: each.value for each in samples(page) if each.name.startswith("orders")})
    assert found[0] == {"orders_total": 100.0, "orders_created": 1e9}
    assert found[1] == {"orders_total": 3.0, "orders_created": 2e9}, f"the reset is hidden: {found[1]}"


async def check_values_are_fresh(make: Make) -> None:
    """Each scrape shows what the application says then, and nothing that it does not say any more."""
    clock = ManualClock()
    first = [gauge("queue", 1), gauge("gone", 1)]
    source = told(first, [gauge("queue", 2)], RuntimeError(), [gauge("queue", 4)])
    adapter = make([source], clock=clock)
    found = [list(series(await passing(clock, adapter.scrape(5.0))).values()) for _ in range(4)]
    assert found == [[1.0, 1.0], [2.0], [], [4.0]], f"stale samples: {found}"


async def check_failures_stay_apart(make: Make, errors: list[BaseException]) -> None:
    """Each error costs the families of its target, is counted, and shows nothing of its text."""
    clock = ManualClock()
    sources = [told(error, name=f"ill{number}") for number, error in enumerate(errors)]
    adapter = make([*sources, told([gauge("well", 7)], name="well")], clock=clock)
    try:
        page = await passing(clock, adapter.scrape(5.0))
    except Exception as error:
        raise AssertionError(f"one failure took the whole page: {error!r}") from error
    assert list(series(page).values()) == [7.0]
    assert sum(each.value for each in samples(page) if each.name == "adapter_failures_total") == len(errors)
    assert PASSWORD not in page.encode("")[0].decode(), "the text of an error is on the page"


async def check_scrapes_share_a_query(make: Make, scrapes: int = 50) -> None:
    """Fifty scrapes at once: the application is asked once, and all get the answer."""
    clock = ManualClock()

    async def slowly() -> list[Family]:
        await clock.sleep(1.0)
        return [gauge("queue", 5)]

    source = told(slowly)
    adapter = make([source], clock=clock)
    pages = await passing(clock, asyncio.gather(*[adapter.scrape(5.0) for _ in range(scrapes)]))
    assert all(list(series(page).values()) == [5.0] for page in pages)
    assert source.asked == 1, f"{scrapes} scrapes asked {source.asked} times"


async def check_cardinality_is_capped(make: Make) -> None:
    """A label from user input takes ten thousand values: the page stays small, and the neighbour whole."""
    flood = Family("waiting", "gauge", "By customer")
    for number in range(10_000):
        flood.add(1, {"customer": f"c{number}"})
    few = Family("few", "gauge", "Bystander")
    for number in range(30):
        few.add(1, {"number": str(number)})
    many = [Family(f"family{number}", "gauge", "Names from input").add(1) for number in range(2_000)]
    clock = ManualClock()
    sources = [told([flood], name="flood"), told(many, name="many"), told([few], name="few")]
    adapter = make(sources, policy=Policy(family_series=50, series=200), clock=clock)
    page = await passing(clock, adapter.scrape(5.0))
    shown = series(page)
    assert len(shown) <= 200, f"{len(shown)} series on one page"
    assert len(series(page, "waiting")) <= 50
    assert len(series(page, "few")) == 30, "the flood has washed others away"
    dropped = sum(each.value for each in samples(page) if each.name == "adapter_dropped_series")
    assert dropped == 12_030 - len(shown), "what is missing is not counted"


def garbage() -> list[Any]:
    """Return answers of the wrong type, and lists of them."""
    untyped: Any = Family
    wrong = [None, b"up 1", "up 1", 7, {"up": 1}, object(), Malformed("text")]
    return [
        *wrong,
        [None],
        [gauge("x"), b""],
        [untyped("x", "histogram", "")],
        [untyped("x", "gauge", "", [1])],
        [untyped("x", "gauge", "", None)],
        [untyped("x", [], "")],
    ]
