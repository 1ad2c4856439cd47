"""The proof of patterns/container/adapter: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import signal
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patterns.clock import ManualClock
from patterns.container.adapter import (
    Adapter,
    Dropped,
    Family,
    Malformed,
    Policy,
    Reason,
    Sample,
    SeriesDropped,
    TargetFailed,
)
from patterns.container.adapter.__main__ import policy_in, sources_in
from patterns.container.adapter.application import Floor
from patterns.container.adapter.endpoint import TIMEOUT_HEADER, application, seconds_in
from patterns.container.adapter.valkey import Valkey, addresses, families
from patterns.container.adapter.warehouse import Warehouse, parsed
from patterns.embedded import CommandFailed
from patterns.events import LogListener, Recorder
from patterns.serving import serving
from tests.container import adapter_checks as checks
from tests.container import adapter_naive as naive
from tests.container.adapter_checks import (
    ANYTHING,
    ERRORS,
    check_answers_in_time,
    check_cardinality_is_capped,
    check_conforms,
    check_counters_show_a_reset,
    check_failures_stay_apart,
    check_page_parses,
    check_recovery_is_seen_by_two_scrapers,
    check_scrapes_share_a_query,
    check_values_are_fresh,
    whatever,
)
from tests.container.adapter_ground import (
    OPENMETRICS,
    Make,
    Program,
    Told,
    forever,
    gauge,
    passing,
    running,
    samples,
    series,
    stub,
    told,
    up,
)
from tests.container.adapter_scraper import answers, enter, page_at, ports, scraped
from tests.container.adapter_valkey import seed, valkey_case
from tests.faults.proxy import proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from patterns.embedded import Cluster, Server
    from tests.faults.ledger import Ledger
    from tests.faults.workers import Worker
    from tests.pods import Pods

PASSWORD = checks.PASSWORD


@pytest.fixture(scope="module")
def warehouse() -> Iterator[Program]:
    """The application in a process of its own; leave it running."""
    with running(ORDERS="8") as program:
        yield program


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Three primaries and three replicas, to pause; leave them running."""
    from patterns.embedded import Cluster  # noqa: PLC0415  most tests need none

    with Cluster("--cluster-node-timeout", "15000", primaries=3, replicas=3) as cluster:
        yield cluster


# 1: valid


@pytest.mark.invariant(1)
async def test_the_page_parses_whatever_is_said() -> None:
    """Bad names, bad labels, NaN, duplicates, clashes and huge numbers: both parsers take the page."""
    await check_page_parses(Adapter)


@pytest.mark.naive(1)
async def test_what_is_written_as_told_does_not_parse() -> None:
    """Without cleaning, one bad name or one series twice loses the whole page."""
    with pytest.raises(AssertionError, match="a series twice"):
        await check_page_parses(naive.WritesAsTold, [gauge("kelvin", 1), gauge("kelvin", 2)])


@pytest.mark.invariant(1)
@settings(max_examples=100)
@given(answers=st.lists(whatever(), min_size=1, max_size=3))
def test_any_answer_becomes_a_page_that_parses(answers: list[list[Any]]) -> None:
    """Families of arbitrary names, labels, values and descriptions, of up to three targets."""

    async def main() -> None:
        sources = [told(answer, name=f"s{number}") for number, answer in enumerate(answers)]
        page = await Adapter(sources).scrape()
        assert page.up
        for accept in ("", OPENMETRICS, "text/plain;version=1.0.0;escaping=allow-utf-8"):
            found = samples(page, accept)
            keys = [(each.name, tuple(sorted(each.labels.items()))) for each in found]
            assert len(keys) == len(set(keys))
        said = sum(len(family.samples) for answer in answers for family in answer)
        shown = len([key for key in series(page) if not key.partition("{")[0].endswith("_created")])
        assert shown <= said <= shown + sum(page.dropped.values()) + said_twice(page)

    asyncio.run(main())


def said_twice(page: Any) -> int:
    """Return how many gauges are named as the beginning of a counter would be."""
    return len([key for key in series(page) if key.partition("{")[0].endswith("_created")])


@pytest.mark.invariant(1)
@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "text/plain; version=0.0.4"),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text;version=abc", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;version=9.9", "text/plain; version=0.0.4"),
        ("text/plain;version=1.0.0;q=0.5, */*", "text/plain; version=1.0.0"),
        ("\x00;=;,,", "text/plain; version=0.0.4"),
    ],
)
async def test_the_scraper_chooses_the_format(accept: str, form: str) -> None:
    """The format is one that both sides know, whatever the scraper asks for."""
    page = await Adapter([told([gauge("x")])]).scrape()
    assert page.encode(accept)[1].startswith(form)
    assert series(page) == {"x{'source': 'told', 'target': 'one'}": 1.0}


@pytest.mark.invariant(1)
async def test_what_is_left_out_is_counted_by_reason() -> None:
    """Each way of being left out has a name, on the page and in an event."""
    heard = Recorder()
    page = await Adapter([told([*checks.HOSTILE])], on_event=heard).scrape()
    counted = {each.labels["reason"] for each in samples(page) if each.name == "adapter_dropped_series"}
    assert counted == {"reserved", "conflict", "value", "labels", "duplicate"}
    assert {event.reason.value for event in heard.of(SeriesDropped)} == counted
    assert page.value("kelvin", exported_source="mine", exported_target="mine", le="z") == 1.0


# 2: in time


@pytest.mark.invariant(2)
async def test_the_page_is_there_before_the_scraper_hangs_up() -> None:
    """A target that hangs is down on this page, and asked anew for the next."""
    await check_answers_in_time(Adapter)


class Deaf:
    """A client that takes a cancellation for a hiccup, until it is released."""

    def __init__(self) -> None:
        self._released = asyncio.Event()
        self.release = self._released.set

    async def __call__(self) -> list[Family]:
        while not self._released.is_set():
            with suppress(asyncio.CancelledError):
                await self._released.wait()
        return [gauge("ill", 2)]


@pytest.mark.invariant(2)
async def test_a_target_that_ignores_cancellation_holds_no_page_up() -> None:
    """It is left to end by itself; the page does not wait for that."""
    await check_answers_in_time(Adapter, slow=Deaf())


@pytest.mark.naive(2)
@pytest.mark.parametrize(("make", "slow"), [(naive.WritesAsTold, forever), (naive.WaitsForTheEnd, Deaf())])
async def test_waiting_for_everybody_loses_every_sample(make: Make, slow: Any) -> None:
    """Slower than the scrape time-out: the exporter believes it answered, and Prometheus has nothing."""
    with pytest.raises(AssertionError, match="hung up"):
        await check_answers_in_time(make, slow=slow)


@pytest.mark.naive(2)
async def test_keeping_the_last_value_is_not_an_answer() -> None:
    """An application that is down looks as it did when it was well."""

    async def refused() -> list[Family]:
        raise ConnectionRefusedError

    naive.LAST.clear()
    with pytest.raises(AssertionError, match="stale"):
        await check_answers_in_time(naive.KeepsLast, slow=refused)


@pytest.mark.invariant(2)
async def test_a_recovery_is_seen_by_two_scrapers_in_turn() -> None:
    """A query that hangs is given up by those who began it, though another scrape has joined it."""
    await check_recovery_is_seen_by_two_scrapers(Adapter)


@pytest.mark.naive(2)
async def test_joining_a_hung_query_for_ever_hides_the_recovery() -> None:
    """Single flight without a deadline: there is always one who waits for it."""
    with pytest.raises(AssertionError, match="joined again and again"):
        await check_recovery_is_seen_by_two_scrapers(naive.JoinsForEver)


@pytest.mark.invariant(2)
@pytest.mark.parametrize(
    ("within", "budget"), [(None, 9.5), (10.0, 9.5), (3.0, 2.5), (0.6, 0.3), (0.001, 0.0005), (60.0, 9.5)]
)
def test_the_offset_is_kept_for_writing_and_sending(within: float | None, budget: float) -> None:
    """The applications have what the scraper waits, less the offset, but at least half of it."""
    assert Policy().budget(within) == pytest.approx(budget)


@pytest.mark.invariant(2)
@pytest.mark.parametrize(
    "header", ["", " 5", "+5", "-1", "0", "0.0", "1e3", "NaN", "inf", "٣", "1_0", "9" * 400]
)
async def test_a_timeout_that_is_none_is_refused(header: str) -> None:
    """A malformed header is answered with 400 that names it; nobody is asked."""
    with pytest.raises(ValueError, match=f"{TIMEOUT_HEADER} must be a decimal"):
        seconds_in(header)
    with pytest.raises(ValueError, match="within must be a finite number > 0"):
        Policy().budget(float("nan"))


@pytest.mark.invariant(2)
async def test_no_source_and_no_target_are_pages_too() -> None:
    """With nobody to ask the page is the adapter's own word."""
    assert next(each.name for each in samples(await Adapter([]).scrape())) == "adapter_scrapes_total"
    page = await Adapter([told(targets=())]).scrape()
    assert page.up
    assert not up(page)


@pytest.mark.invariant(2, 4)
async def test_a_source_that_cannot_name_its_targets_is_down() -> None:
    """`targets` raises or hangs: the source is down as a whole, in time."""

    class Lost:
        name = "lost"

        def __init__(self, answer: Any) -> None:
            self._answer = answer

        async def targets(self) -> Any:
            return await self._answer() if callable(self._answer) else self._answer

        collect = targets

    clock = ManualClock()
    for answer, reason in [(forever, "timeout"), (None, "malformed"), ([b""], "malformed")]:
        page = await passing(clock, Adapter([Lost(answer)], clock=clock).scrape(3.0))
        assert up(page) == {"": 0.0}
        assert page.value("adapter_failures_total", source="lost", reason=reason) == 1.0


# 3: fresh


@pytest.mark.invariant(3)
async def test_a_restart_shows_as_a_reset() -> None:
    """A counter that begins again is shown as it is, with the time of its beginning."""
    await check_counters_show_a_reset(Adapter)


@pytest.mark.invariant(3)
async def test_nothing_is_kept_between_scrapes() -> None:
    """What an application no longer says is not on the next page."""
    await check_values_are_fresh(Adapter)


@pytest.mark.naive(3)
async def test_totals_of_its_own_hide_the_reset() -> None:
    """An exporter that keeps counters monotone shows neither the fall nor the new beginning."""
    with pytest.raises(AssertionError, match="the reset is hidden"):
        await check_counters_show_a_reset(naive.NeverGoesBack)


@pytest.mark.naive(3)
async def test_values_in_a_global_grow_stale() -> None:
    """When the application is silent, the page goes on as if it were not."""
    naive.LAST.clear()
    with pytest.raises(AssertionError, match="stale samples"):
        await check_values_are_fresh(naive.KeepsLast)


# 4: apart


@pytest.mark.invariant(4, 9)
async def test_a_failure_costs_its_own_families_only() -> None:
    """Thirteen kinds of errors at once: each is counted, and the target that is well is on the page."""
    await check_failures_stay_apart(Adapter, ERRORS)


@pytest.mark.naive(4)
async def test_one_exception_takes_the_page() -> None:
    """Where nobody catches it, the failure of one target is the end of all."""
    with pytest.raises(AssertionError, match="one failure took the whole page"):
        await check_failures_stay_apart(naive.WritesAsTold, ERRORS[:1])


@pytest.mark.invariant(4)
async def test_errors_have_few_names() -> None:
    """Whatever is raised, the reason is one of four."""
    heard = Recorder()
    sources = [told(error, name=f"ill{number}") for number, error in enumerate(ERRORS)]
    page = await Adapter(sources, on_event=heard).scrape()
    reasons = {event.error: event.reason for event in heard.of(TargetFailed)}
    assert reasons == {
        "RuntimeError": Reason.ERROR,
        "ConnectionRefusedError": Reason.UNREACHABLE,
        "TimeoutError": Reason.TIMEOUT,
        "ExceptionGroup": Reason.ERROR,
        "FlightCancelled": Reason.ERROR,
        "ConnectionError": Reason.UNREACHABLE,
        "AuthenticationError": Reason.ERROR,
        "NoPermissionError": Reason.ERROR,
        "IncompleteReadError": Reason.UNREACHABLE,
        "UnicodeDecodeError": Reason.MALFORMED,
        "Malformed": Reason.MALFORMED,
        "StopAsyncIteration": Reason.ERROR,
    }
    assert not page.up


@pytest.mark.invariant(4)
async def test_a_listener_that_raises_costs_nothing() -> None:
    """Events are told, and what the listener does with them is its own affair."""

    def raises(_: object) -> None:
        raise RuntimeError

    logging.getLogger("patterns.events").disabled = True
    try:
        page = await Adapter([told(ValueError()), told([gauge("x")], name="b")], on_event=raises).scrape()
    finally:
        logging.getLogger("patterns.events").disabled = False
    assert list(series(page).values()) == [1.0]


# 5: one query


@pytest.mark.invariant(5)
async def test_scrapes_at_once_share_a_query() -> None:
    """Fifty scrapes at the same time ask the application once."""
    await check_scrapes_share_a_query(Adapter)


@pytest.mark.naive(5)
async def test_each_scrape_asks_again() -> None:
    """Without single flight every Prometheus, and every curious person, is one more query."""
    with pytest.raises(AssertionError, match="50 scrapes asked 50 times"):
        await check_scrapes_share_a_query(naive.WritesAsTold)


@pytest.mark.invariant(5)
async def test_a_target_that_is_stuck_is_not_asked_again() -> None:
    """A query that does not even end when cancelled stays the only one, through any number of scrapes."""
    clock, released = ManualClock(), asyncio.Event()

    async def stuck() -> list[Family]:
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()
        return [gauge("x")]

    source = told(stuck, stuck, [gauge("x", 2)])
    adapter = Adapter([source], clock=clock)
    for _ in range(5):
        page = await passing(clock, adapter.scrape(2.0))
        assert up(page) == {"one": 0.0}
    assert source.asked == 1
    released.set()
    await adapter.aclose()
    page = await passing(clock, adapter.scrape(2.0))
    assert up(page) == {"one": 1.0}
    assert source.asked == 2


@pytest.mark.invariant(5)
async def test_a_cancelled_scrape_leaves_the_others_their_answer() -> None:
    """One of two scrapers hangs up: the other gets the answer of the same query."""
    clock = ManualClock()

    async def slowly() -> list[Family]:
        await clock.sleep(1.0)
        return [gauge("x")]

    source = told(slowly)
    adapter = Adapter([source], clock=clock)
    both = [asyncio.ensure_future(adapter.scrape(5.0)) for _ in range(2)]
    await clock.advance(0.5)
    both[0].cancel()
    page = await passing(clock, both[1])
    await asyncio.gather(both[0], return_exceptions=True)
    assert up(page) == {"one": 1.0}
    assert (source.asked, clock.sleepers) == (1, 0)


# 6: bounded


@pytest.mark.invariant(6)
async def test_a_flood_of_labels_stays_small_and_washes_nobody_away() -> None:
    """Ten thousand values of a label, two thousand families: 200 series, and a neighbour's all 30."""
    await check_cardinality_is_capped(Adapter)


@pytest.mark.naive(6)
async def test_without_a_cap_the_page_is_as_large_as_the_input() -> None:
    """Whoever may choose a label's value may choose the size of the monitoring."""
    with pytest.raises(AssertionError, match="12030 series on one page"):
        await check_cardinality_is_capped(naive.WritesAsTold)


@pytest.mark.invariant(6)
async def test_targets_are_capped_and_named_once() -> None:
    """A source with too many targets, or the same twice: the rest is not asked, and counted."""
    source = told([gauge("x")], targets=[*"aab", *"cdefg"])
    page = await Adapter([source], policy=Policy(targets=3)).scrape()
    assert up(page) == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert page.dropped["told", Dropped.TARGETS] == 5
    assert source.asked == 3


@pytest.mark.invariant(6)
async def test_an_answer_without_end_is_refused() -> None:
    """A report of more than a megabyte is no report: the rest of it is not read."""
    async with stub(b"Warehouse 2.1\n" + b"Waiting in zone N: 1\n" * 60_000 + b".\n") as port:
        page = await Adapter([Warehouse("w", "127.0.0.1", port)]).scrape()
    assert page.value("adapter_failures_total", reason="malformed") == 1.0


# 7: reading


@pytest.mark.invariant(7)
async def test_a_user_who_may_read_only_is_enough(fresh_server: Server) -> None:
    """An ACL user with INFO and CLUSTER NODES alone: every family is there; only SETINFO was refused."""
    fresh_server.command("SET", "key", "value")
    with suppress(CommandFailed):
        fresh_server.command("NONSENSE")  # so that there is an error to count
    fresh_server.command(
        *("ACL", "SETUSER", "monitor", "on", f">{PASSWORD}", "resetkeys", "resetchannels", "-@all"),
        *("+info", "+cluster|nodes"),
    )
    url = fresh_server.url.replace("redis://", f"redis://monitor:{PASSWORD}@")
    async with Valkey("all", fresh_server.url) as powerful, Valkey("monitor", url) as humble:
        page = await Adapter([powerful, humble]).scrape()
    names = {
        source: {each.name for each in samples(page) if each.labels.get("source") == source}
        for source in ("all", "monitor")
    }
    assert names["all"] == names["monitor"]
    assert page.value("valkey_keys", source="monitor", db="db0") == 1.0
    refused = {row[row.index("object") + 1] for row in fresh_server.command("ACL", "LOG")}
    assert refused <= {"client|setinfo"}
    assert PASSWORD not in page.encode()[0].decode()


# 8: uniform


@pytest.mark.invariant(7, 8)
@pytest.mark.parametrize("kind", ["single", "cluster"])
async def test_valkey_conforms(kind: str, server: Server, request: pytest.FixtureRequest) -> None:
    """INFO of one server, and of every node of a cluster, is adapted as the suite wants it."""
    case = valkey_case(kind, server, request.getfixturevalue("nodes") if kind == "cluster" else None)
    await check_conforms(case)
    await checks.close(case.source)


@pytest.mark.invariant(7, 8)
async def test_the_warehouse_conforms(warehouse: Program) -> None:
    """The report for people is adapted as the suite wants it."""

    async def state() -> Any:
        (report,) = await warehouse.say("status")
        return [line for line in report.splitlines() if not line.startswith(("Memory", "Oldest"))]

    mangled = [
        b"WHAT?\n.\n",
        b"Warehouse 2.1\nOrders picked: many\n.\n",
        b"Warehouse 2.1\nOrders picked: -1\n.\n",
        b"Warehouse 2.1\nOrders picked: 1,20\n.\n",
        b"Warehouse 2.1\nOldest waiting: 1h\n.\n",
        b"Warehouse 2.1\nStarted: yesterday\nOrders picked: 1\n.\n",
        b"Warehouse 2.1\nStarted: 31.02.2026 00:00:00 GMT\nOrders picked: 1\n.\n",
        b"Warehouse 2.1\nOrders picked: 1,204",  # cut before its end
    ]
    await check_conforms(
        checks.Case(
            source=Warehouse("warehouse", "127.0.0.1", warehouse.port),
            at=lambda port: Warehouse("warehouse", "127.0.0.1", port),
            state=state,
            targets=1,
            mangled=mangled,
        )
    )


@pytest.mark.naive(8)
async def test_a_sum_over_nodes_does_not_conform(server: Server, nodes: Cluster) -> None:
    """One line for six nodes is a total that none of them said, and falls by a sixth when one is silent."""
    case = valkey_case("cluster", server, nodes, naive.SumsNodes)
    with pytest.raises(AssertionError, match="not a target for each process"):
        await check_conforms(case)
    await checks.close(case.source)


@pytest.mark.naive(7)
async def test_reading_that_resets_does_not_conform(fresh_server: Server) -> None:
    """CONFIG RESETSTAT after each scrape takes everybody else's counters away."""
    case = valkey_case("single", fresh_server, None, naive.ReadsAndResets)
    with pytest.raises(AssertionError, match="not as it was"):
        await check_conforms(case)
    await checks.close(case.source)


@pytest.mark.invariant(1, 4)
@settings(max_examples=100)
@given(
    st.one_of(
        st.binary(max_size=200), st.text().map(lambda text: f"Warehouse {text}".encode("utf-8", "replace"))
    )
)
def test_any_report_is_read_or_refused(report: bytes) -> None:
    """Whatever bytes come, the translation returns families or raises Malformed."""
    with suppress(Malformed):
        parsed(report)


INFO_FIELDS = st.sampled_from(
    ["uptime_in_seconds", "server_time_usec", "db0", "errorstat_x", "used_memory", "role", "keyspace_hits"]
)


@pytest.mark.invariant(1, 4)
@settings(max_examples=100)
@given(st.dictionaries(INFO_FIELDS, st.one_of(ANYTHING, st.dictionaries(st.text(max_size=7), ANYTHING))))
def test_any_info_is_read_or_refused(info: dict[str, Any]) -> None:
    """Whatever INFO says, the translation returns families or raises Malformed."""
    with suppress(Malformed):
        families(info)


async def test_every_program_speaks_the_same_report() -> None:
    """What the warehouse says of itself is what its adapter reads: thousands, durations, kilobytes, zones."""
    floor = Floor()
    for number in range(1_234):
        floor.answer("order Süd: links")
        if number % 2:
            floor.answer("pick Süd: links")
    assert floor.answer("pick nothing") == "WHAT?"
    found = {family.name: family.samples for family in parsed(floor.report().encode())}
    assert found["warehouse_orders_picked"][0].value == 617
    assert found["warehouse_orders_refused"][0].value == 1
    assert found["warehouse_orders_waiting"] == [Sample(617, {"zone": "Süd: links"})]
    assert found["warehouse_memory_bytes"][0].value % 1024 == 0
    assert found["warehouse_orders_picked"][0].created == int(floor.started.timestamp())


@pytest.mark.invariant(8)
async def test_an_address_of_a_node_is_found_in_any_form() -> None:
    """IPv6, a host name beside it, an empty own address; what has no address yet is no target."""
    text = (
        b"a ::1:7000@17000 master - 0 0 1 connected 0-5\n"
        b"b 10.0.0.1:7001@17001,host,tls-port=0 slave,fail a 0 0 1 disconnected\n"
        b"c :7002@17002 myself,master - 0 0 1 connected\n"
        b"d :0@0 master,noaddr - 0 0 1 disconnected\n"
        b"e 10.0.0.2:7003@17003 handshake - 0 0 0 connected\nnonsense\n"
    )
    assert addresses(text, "10.0.0.9:7002") == ["[::1]:7000", "10.0.0.1:7001", "10.0.0.9:7002"]
    assert addresses(None, "x") == []


@pytest.mark.invariant(8)
async def test_the_nodes_are_those_that_the_cluster_knows(nodes: Cluster) -> None:
    """One dead seed and one live are enough; a node that knows only itself does not hide the others."""
    async with stub() as nobody:
        pass
    lonely = b"$58\r\na 127.0.0.1:1@2 myself,master - 0 0 1 connected 0-16383 \r\n\r\n"
    assert len(lonely.split(b"\r\n", 1)[1][:-2]) == 58
    async with stub(*[lonely] * 9) as reset:
        seeds = ",".join(f"127.0.0.1:{port}" for port in (nobody, reset, nodes.nodes[0].port))
        async with Valkey("valkey", f"redis+cluster://{seeds}") as source:
            for _ in range(2):
                names = [target.name for target in await source.targets()]
                assert names == sorted(f"127.0.0.1:{node.port}" for node in nodes.nodes)


@pytest.mark.invariant(2, 8)
async def test_a_seed_that_is_slow_at_first_is_waited_for(nodes: Cluster) -> None:
    """Before there is any list of nodes there is nobody else to ask: the seed has until the deadline."""
    async with (
        proxy(nodes.nodes[0].port) as link,
        Valkey("v", f"redis+cluster://127.0.0.1:{link.port}") as it,
    ):
        link.latency(0.15)  # longer than the patience with one node
        assert len(await it.targets()) == 6


@pytest.mark.invariant(8)
async def test_addresses_that_all_changed_are_found_again(nodes: Cluster) -> None:
    """What was listed last is all gone: the seeds of the URL are asked again."""
    async with stub() as nobody:
        pass
    async with Valkey("valkey", seed(nodes)) as source:
        await source.targets()
        source._nodes = {f"127.0.0.1:{nobody}": source._node(f"127.0.0.1:{nobody}")}
        assert len(await source.targets()) == 6
        assert not source._gone


# 9: discreet


@pytest.mark.invariant(9)
@pytest.mark.parametrize(
    "url",
    [
        f"http://:{PASSWORD}@host",
        f"redis://:{PASSWORD}@host/5",
        f"rediss:/{PASSWORD}",
        f"redis+cluster://:{PASSWORD}@127.0.0.1",
    ],
)
def test_a_url_that_is_none_is_not_shown(url: str) -> None:
    """In a URL that was not understood a password may be anywhere."""
    with pytest.raises(ValueError, match="must be") as refused:
        Valkey("valkey", url)
    assert PASSWORD not in str(refused.value)


@pytest.mark.invariant(9)
@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{PASSWORD}@127.0.0.1:1",
        f"redis+cluster://:{PASSWORD}@127.0.0.1:1,127.0.0.1:2",
        f"unix://:{PASSWORD}@/nowhere.sock",
    ],
)
async def test_a_password_is_on_no_page_and_in_no_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The server is away: the password of its URL is nowhere to be read."""
    caplog.set_level(logging.DEBUG)
    async with Valkey("valkey", url) as source:
        page = await Adapter([source], on_event=LogListener(level=logging.WARNING)).scrape(2.0)
        text = f"{page.encode()[0].decode()} {page!r} {source!r} {source.__dict__['_nodes']!r}"
    assert PASSWORD not in text
    assert "target_failed" in caplog.text
    assert PASSWORD not in caplog.text


@pytest.mark.naive(9)
async def test_an_error_in_a_label_tells_the_password() -> None:
    """The text of an error is the application's, and one label's value for each of them."""
    with pytest.raises(AssertionError, match="the text of an error is on the page"):
        await check_failures_stay_apart(naive.TellsTheError, ERRORS[:3])


@pytest.mark.invariant(1)
async def test_who_answers_first_does_not_decide_what_is_shown() -> None:
    """Two sources want one name as two kinds: the first in the list keeps it, also when it is slower."""
    clock = ManualClock()

    async def later() -> list[Family]:
        await clock.sleep(0.5)
        return [gauge("x", 1)]

    class Slow(Told):
        async def targets(self) -> Any:
            await clock.sleep(0.5)
            return await super().targets()

    counter = [Family("x", "counter", "").add(2)]
    sources = [Slow("slow", ["one"], [later]), told(counter, name="quick")]
    page = await passing(clock, Adapter(sources, clock=clock).scrape(5.0))
    assert series(page) == {"x{'source': 'slow', 'target': 'one'}": 1.0}
    assert page.dropped == {("quick", Dropped.CONFLICT): 1}


# the endpoint


async def test_the_endpoint_answers_as_prometheus_asks(warehouse: Program) -> None:
    """Both formats, gzip, a malformed time-out, health of the applications and of the adapter."""
    source = Warehouse("warehouse", "127.0.0.1", warehouse.port)
    async with serving(application(Adapter([source]))) as server, aiohttp.ClientSession(server.url) as client:
        async with client.get("/metrics", headers={TIMEOUT_HEADER: "5", "Accept": OPENMETRICS}) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
            assert 'warehouse_orders_waiting{source="warehouse"' in await answer.text()
        async with client.get("/metrics", headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert (await answer.text()).startswith("# HELP ")
        async with client.get("/metrics", headers={TIMEOUT_HEADER: "soon"}) as answer:
            assert answer.status == 400
            assert TIMEOUT_HEADER in await answer.text()
        async with client.get("/healthz") as answer:
            place = f"127.0.0.1:{warehouse.port}"
            assert (answer.status, await answer.json()) == (
                200,
                {"up": True, "sources": {"warehouse": {place: True}}},
            )
        async with client.get("/livez") as answer:
            assert (answer.status, await answer.text()) == (200, "alive")
    async with stub() as nobody:
        pass
    source = Warehouse("warehouse", "127.0.0.1", nobody)
    async with serving(application(Adapter([source]))) as server, aiohttp.ClientSession(server.url) as client:
        async with client.get("/healthz") as answer:
            assert answer.status == 503
        async with client.get("/livez") as answer:
            assert answer.status == 200


def test_the_process_says_what_it_wants() -> None:
    """Addresses and numbers from the environment, and a sentence where they are none."""
    found = sources_in({"WAREHOUSE": "[::1]:80", "VALKEY_URL": "redis://127.0.0.1:1"})
    assert [source.name for source in found] == ["warehouse", "valkey"]
    for env in ({}, {"WAREHOUSE": "here"}, {"WAREHOUSE": "h:0"}, {"VALKEY_URL": "http://x"}):
        with pytest.raises(ValueError, match="must be"):
            sources_in(env)
    assert policy_in({"TIMEOUT": "3", "SERIES": "7"}) == Policy(timeout=3.0, series=7)


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"timeout": float("nan")},
        {"offset": -1},
        {"series": 0},
        {"targets": True},
        {"longest_label": 1.5},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    """The message names field and bound."""
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        Policy(**wrong)


def test_sources_must_differ_in_name() -> None:
    """Two sources of one name would share their series."""
    with pytest.raises(ValueError, match="must differ, got 'told' twice"):
        Adapter([told(), told()])


# faults


@pytest.mark.slow
@pytest.mark.invariant(2, 8)
@pytest.mark.fault("a node of a 3+3 cluster paused (SIGSTOP) during a scrape")
async def test_a_paused_node_costs_its_own_series_only(nodes: Cluster, ledger: Callable[..., Ledger]) -> None:
    """Each of the six nodes is paused once: five are on the page in time, the sixth is down, then back."""
    books = ledger(within=2.0, bound="the page before the scrape time-out of 0.6 s")
    without = books.without("an exporter that waits for every node")
    longest = 0.0
    for book, make in ((books, Adapter), (without, naive.WritesAsTold)):
        async with Valkey("valkey", seed(nodes)) as source:
            await Adapter([source]).scrape()  # connected, and all nodes known
            for number, node in enumerate(nodes.nodes if make is Adapter else nodes.nodes[:3]):
                name = f"127.0.0.1:{node.port}"
                node.stop()
                book.injected()
                began = time.monotonic()
                page = await scraped(make, [source], 0.6)
                longest = max(longest, time.monotonic() - began) if make is Adapter else longest
                node.cont()
                others = [f"127.0.0.1:{each.port}" for each in nodes.nodes if each is not node]
                enter(book, number, page, others, [name])
                if make is Adapter:
                    assert up(page) == {name: 0.0, **dict.fromkeys(others, 1.0)}
                back = await scraped(Adapter, [source], 5.0)
                assert set(up(back).values()) == {1.0}
                book.recovered()
    books.held(
        f"five of six nodes on each page, the sixth `adapter_up 0`; the slowest page took {longest:.2f} s"
    )


@pytest.mark.invariant(2, 3)
@pytest.mark.fault("application killed (SIGKILL) between two scrapes, and started again")
async def test_a_killed_application_is_down_at_once_and_back_at_once(
    server: Server, ledger: Callable[..., Ledger]
) -> None:
    """Five kills: the next page says so, with all of the neighbour; the one after has it back."""
    books = ledger(within=5.0, bound="no stale sample")
    stale = 0
    naive.LAST.clear()
    with running(ORDERS="3") as program:
        place, beside = f"127.0.0.1:{program.port}", server.url[8:-2]
        async with Valkey("valkey", server.url) as valkey:
            sources: list[Any] = [Warehouse("warehouse", "127.0.0.1", program.port), valkey]
            adapter, remembering = Adapter(sources), naive.KeepsLast(sources)
            for number in range(5):
                assert series(await remembering.scrape(), "warehouse")
                program.kill()
                books.injected()
                page = await adapter.scrape(5.0)
                enter(books, number, page, [beside], [place])
                assert up(page) == {place: 0.0, beside: 1.0}
                assert page.value("adapter_failures_total", source="warehouse", reason="unreachable")
                stale += bool(series(await remembering.scrape(), "warehouse"))
                before = datetime.now(UTC).timestamp()
                program.start()
                page = await adapter.scrape(5.0)
                books.recovered()
                assert page.value("warehouse_orders_waiting", zone="N") == 1.0
                assert (page.value("warehouse_orders_picked_created") or 0.0) >= int(before)
    books.held("down on the next page without a sample, back on the one after, with its new beginning")
    books.naive(f"values in a module's global: {stale} of 5 pages showed a dead application's last figures")
    assert stale == 5


@pytest.mark.invariant(1, 4)
@pytest.mark.fault(
    "an application that answers nonsense: wrong bytes, cut reports, hostile names and numbers"
)
async def test_nonsense_costs_its_own_target_only(server: Server, ledger: Callable[..., Ledger]) -> None:
    """Forty answers: each page parses, and Valkey's series are on every one."""
    books = ledger(bound="every page parses in both formats")
    without = books.without("what was said, written as it came")
    rng = random.Random(11)
    answers: list[Any] = [rng.randbytes(60) for _ in range(10)]
    answers += [b"Warehouse 2.1\nOrders picked: 1" + b"2" * cut for cut in range(10)]
    answers += [[each] for each in checks.HOSTILE] + checks.garbage()
    beside = server.url[8:-2]
    for book, make in ((books, Adapter), (without, naive.WritesAsTold)):
        async with Valkey("valkey", server.url) as valkey:
            for number, answer in enumerate(answers):
                async with stub(answer if isinstance(answer, bytes) else b"") as port:
                    ill = Warehouse("w", "127.0.0.1", port) if isinstance(answer, bytes) else told(answer)
                    page = await scraped(make, [ill, valkey], 5.0)
                book.injected()
                book.acked(number)
                if page and any(each.labels.get("target") == beside for each in samples(page, OPENMETRICS)):
                    book.effect(number)
    books.held(f"{len(answers)} pages that parse, each with all of Valkey's series")


@pytest.mark.invariant(4)
@pytest.mark.fault("the connection to an application reset, cut in its answer, or silent")
async def test_a_broken_line_is_a_target_that_is_down(
    warehouse: Program, server: Server, ledger: Callable[..., Ledger]
) -> None:
    """Resets, cut replies and black holes before both applications: down on that page, back on the next."""
    books = ledger(within=5.0, bound="the page before the scrape time-out of 0.6 s")
    without = books.without("an exporter that fails with its first source")
    for book, make in ((books, Adapter), (without, naive.WritesAsTold)):
        number = itertools.count()
        for behind in (warehouse.port, server.port):
            async with proxy(behind, book) as link, Valkey("direct", server.url) as direct:
                broken: Any = (
                    Valkey("ill", f"redis://127.0.0.1:{link.port}")
                    if behind == server.port
                    else Warehouse("ill", "127.0.0.1", link.port)
                )
                asked = b"status" if behind == warehouse.port else b"INFO"
                for fault in ("reset", "cut", "silent"):
                    if fault == "reset":
                        rule = link.lose_reply(asked)
                    else:
                        rule = link.limit(20) if fault == "cut" else link.hole("down")
                    page = await scraped(make, [broken, direct], 0.6)
                    rule.remove()
                    enter(book, next(number), page, [server.url[8:-2]], [f"127.0.0.1:{link.port}"])
                    await link.reset_all()
                    assert set(up(await scraped(Adapter, [broken, direct], 5.0)).values()) == {1.0}
                    book.recovered()
                await checks.close(broken)
    books.held("that target down with its reason, the other whole")


@pytest.mark.invariant(6)
@pytest.mark.fault("a customer who makes ten thousand zones, one label value each")
async def test_ten_thousand_label_values_from_outside(
    warehouse: Program, ledger: Callable[..., Ledger]
) -> None:
    """Orders for ten thousand zones: the page keeps its cap, and says how much is missing."""
    with running() as program:
        await program.say("order first", *(f"order zone{number}" for number in range(10_000)))
        sources = [
            Warehouse("flooded", "127.0.0.1", program.port),
            Warehouse("other", "127.0.0.1", warehouse.port),
        ]
        books = ledger(bound="at most 200 series of a family")
        page = await scraped(Adapter, sources, 10.0)
        unbounded = await scraped(naive.WritesAsTold, sources, 10.0)
    books.injected(10_000)
    shown = [each for each in samples(page) if each.name == "warehouse_orders_waiting"]
    flooded = [each.labels["zone"] for each in shown if each.labels["source"] == "flooded"]
    assert flooded == ["first", *(f"zone{number}" for number in range(199))]
    dropped = sum(page.dropped.values())
    assert dropped == 10_001 - 200
    for zone in "NSEW":
        books.acked(zone)
        if any(
            each.labels == {"source": "other", "zone": zone, "target": each.labels["target"]}
            for each in shown
        ):
            books.effect(zone)
    books.held(f"{len(flooded)} series shown, {dropped} counted as dropped, the neighbour whole")
    books.naive(
        f"no cap: {len(series(unbounded, 'warehouse_orders_waiting'))} series, and as many at each scrape"
    )


# the process and the Pod


async def test_the_process_serves_both_and_ends_when_told(
    server: Server, warehouse: Program, spawn: Callable[..., Worker]
) -> None:
    """`python -m patterns.container.adapter` shows both applications, and ends with 0 on SIGTERM."""
    port, _ = ports()
    env = {"PORT": str(port), "WAREHOUSE": f"127.0.0.1:{warehouse.port}", "VALKEY_URL": server.url}
    process = spawn("patterns.container.adapter", env=env)
    found = await answers(port, adapter_up__warehouse=1.0, adapter_up__valkey=1.0)
    assert found["valkey_primary valkey"] == 1.0
    assert found["warehouse_orders_waiting warehouse"] == 8.0
    os.kill(process.pid, signal.SIGTERM)
    assert await process.ended(within=20) == 0
    assert PASSWORD not in process.output


async def test_the_process_refuses_what_it_cannot_use(spawn: Callable[..., Worker]) -> None:
    """A URL that is none ends it with a sentence, without the URL."""
    process = spawn("patterns.container.adapter", env={"PORT": "1", "VALKEY_URL": f"http://:{PASSWORD}@x"})
    assert await process.ended(within=20) == 1
    assert process.output.startswith("adapter: url must be redis")
    assert PASSWORD not in process.output


@pytest.mark.containers
@pytest.mark.slow
@pytest.mark.invariant(2, 3)
async def test_the_pod_shows_a_killed_application_as_down(pods: Pods, server: Server) -> None:
    """From outside: scraped, the application killed: down in time without a sample, and back by itself."""
    port, warehouse_port = ports()
    config = {
        "PORT": port,
        "WAREHOUSE_PORT": warehouse_port,
        "WAREHOUSE": f"127.0.0.1:{warehouse_port}",
        "VALKEY_URL": server.url,
    }
    with pods.played("container/adapter", config=config) as pod:
        found = await answers(port, adapter_up__warehouse=1.0, adapter_up__valkey=1.0)
        assert found["warehouse_orders_waiting warehouse"] == 12.0
        pod.kill("application", signal.SIGSTOP)
        took, found = await page_at(port, 1.0)
        assert took < 1.0
        assert found["adapter_up warehouse"] == 0.0
        assert not [name for name in found if name.startswith("warehouse_")]
        assert found["adapter_up valkey"] == 1.0
        before = pod.kill("application")
        took, found = await page_at(port, 1.0)
        assert took < 1.0
        assert found["adapter_up valkey"] == 1.0
        assert found["adapter_failures_total warehouse"] >= 1.0
        await answers(port, adapter_up__warehouse=1.0)
        assert pod.pid("application") not in {0, before}
        assert pod.restarts("application") == 1
        assert pod.restarts("adapter") == 0
