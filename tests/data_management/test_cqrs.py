"""The proof of patterns/data_management/cqrs: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import math
import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import settings
from redis.crc import key_slot

from patterns.clock import ManualClock
from patterns.data_management.cqrs import (
    AppendConflicted,
    Appended,
    Dropped,
    EventStore,
    Fact,
    FactFailed,
    FactParked,
    FactsApplied,
    HashModel,
    HistoryLost,
    ModelSwitched,
    NotCaughtUp,
    NotLive,
    OnPoison,
    PartitionStopped,
    PartitionTaken,
    Position,
    ProjectionPaused,
    ProjectionResumed,
    ProjectionStalled,
    Projector,
    Reaction,
    Recorded,
    TableModel,
    TakenOver,
    VersionConflict,
    View,
    wait_for,
)
from patterns.data_management.cqrs.scripts import COMMIT
from patterns.embedded import Server
from patterns.entry import Unreadable
from patterns.events import Recorder
from patterns.keyspace import OutcomeUnknown, opened
from tests.data_management.cqrs_checks import (
    GivesUp,
    LenientStore,
    broken_for,
    caught_up,
    check_a_rebuild_sends_nothing,
    check_all_facts_or_none,
    check_bad_input_is_refused,
    check_commands_are_recorded_once,
    check_delivery_again_changes_nothing,
    check_lost_history_is_found_out,
    check_nothing_is_passed_over,
    check_order_of_each_aggregate,
    check_poison_is_put_aside,
    check_readers_see_their_own_writes,
    check_readers_see_whole_models,
    check_rows_are_a_replay,
    check_the_rule_holds,
    check_who_was_replaced_writes_no_more,
    embedded_port,
    outcome_of,
    rushed,
)
from tests.data_management.cqrs_faults import (
    a_failover_that_loses_facts,
    an_outage,
    commits_without_replies,
    killed,
    paused_and_replaced,
    recorded_and_told,
    sequence_and_last_seen,
)
from tests.data_management.cqrs_model import AgainstTheModel
from tests.data_management.cqrs_shop import (
    AppliesWhateverComes,
    AsksForNoOwner,
    AsksNobodyHowMany,
    CheckpointThenRows,
    ComparesOneId,
    Crash,
    GoesOnAtTheLastSeen,
    HalfAtATime,
    LeavesTraces,
    NewIdEachTime,
    OneTaskForEachFact,
    ParksOneFactOnly,
    Place,
    ReadsThenAppends,
    RowsThenCheckpoint,
    SoldOut,
    TriesForEver,
    WaitsForNothing,
    deliver,
    policy,
    rebuild_beside,
    rebuild_in_place,
    sell,
    switch_first,
)
from tests.eventually import eventually
from tests.faults import Ledger, leaks, proxy
from tests.postgres import Home, schema

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.faults.workers import Worker


@pytest.fixture
def here(server: Server, app: str) -> Place:
    """Log and read model on one server: naive variants are tried here."""
    return Place(server.url, None, app)


@pytest.fixture(params=["one server", "3+3 cluster"])
def redis(request: pytest.FixtureRequest, server: Server, app: str) -> Place:
    """Log and read model in Redis."""
    running = server if request.param == "one server" else request.getfixturevalue("cluster")
    return Place(running.url, None, app)


@pytest.fixture(params=["one server", "3+3 cluster", "sqlite", "postgres"])
def place(request: pytest.FixtureRequest, server: Server, app: str, tmp_path: Path) -> Iterator[Place]:
    """Wherever a read model may be; beside the log in Redis, or in SQL."""
    if request.param == "sqlite":
        yield Place(server.url, Home(f"sqlite://{quote(str(tmp_path / 'model.db'))}", "sqlite"), app)
    elif request.param == "postgres":
        given = os.environ.get("DATABASE_URL", "")
        own = None if given.startswith("postgresql://") else request.getfixturevalue("postgres")
        with schema(own.url if own else given, own) as home:
            yield Place(server.url, home, app)
    else:
        running = server if request.param == "one server" else request.getfixturevalue("cluster")
        yield Place(running.url, None, app)


# 1: one of many appends at a version


@pytest.mark.invariant(1)
async def test_of_appends_at_one_version_one_is_recorded(redis: Place) -> None:
    """However many decide upon the same version, one is right, and its facts stand together."""
    await check_all_facts_or_none(redis, EventStore)


@pytest.mark.naive(1)
@pytest.mark.parametrize("variant", [HalfAtATime, ReadsThenAppends])
async def test_appends_in_several_steps_mix(here: Place, variant: Any) -> None:
    """Fact by fact, or with the version looked up before, commands overtake each other."""
    with pytest.raises(AssertionError, match="facts of"):
        await check_all_facts_or_none(here, variant)


@pytest.mark.invariant(1)
@pytest.mark.parametrize("redis", ["3+3 cluster"], indirect=True)
async def test_the_rule_holds(redis: Place) -> None:
    """A rule that is decided upon the history is never broken, for each decision is bound to its version."""
    await check_the_rule_holds(redis, EventStore, Ledger("x/y", "not a row of the table"))


@pytest.mark.invariant(1)
@pytest.mark.naive(1)
@pytest.mark.fault("30 customers want the last 10 pieces at once")
async def test_a_version_that_is_looked_up_before_protects_nothing(
    here: Place, ledger: Callable[..., Ledger]
) -> None:
    """Between the look and the append there is time for everybody."""
    book = ledger(bound="10 pieces sold")
    await check_the_rule_holds(here, EventStore, book)
    naive = Ledger("x/y", "not a row of the table")
    with pytest.raises(AssertionError, match="pieces that were not there") as broken:
        await check_the_rule_holds(replace(here, app=f"{here.app}-naive"), ReadsThenAppends, naive)
    book.naive(f"look up the version, then append: {str(broken.value).splitlines()[0]}")
    book.held("a decision is recorded at the version it was made upon, or not at all")


# 2: repeated commands


@pytest.mark.invariant(2)
@pytest.mark.naive(2)
@pytest.mark.fault("the reply to an append is lost")
async def test_a_command_is_recorded_once(here: Place, ledger: Callable[..., Ledger]) -> None:
    """Repeated under its id it finds itself, in the same call or in a later one."""
    book = ledger(bound="the same receipt each time")
    await check_commands_are_recorded_once(here, EventStore, book)
    with pytest.raises(AssertionError, match="the receipt is another"):
        await check_commands_are_recorded_once(replace(here, app=f"{here.app}-naive"), NewIdEachTime, None)
    async with replace(here, app=f"{here.app}-naive").shop() as shop:
        facts = len(await shop.store.history("tea"))
    book.naive(f"repeat the call: {facts} facts of the first command")
    book.held("a command that is repeated finds itself at the version where it wanted to be")


@pytest.mark.naive(2)
async def test_without_its_id_a_command_meets_itself(here: Place) -> None:
    """It is refused because it has been recorded."""
    with pytest.raises(AssertionError, match="the caller got"):
        await check_commands_are_recorded_once(here, GivesUp, None)


@pytest.mark.invariant(2)
async def test_an_append_is_recognised_behind_later_ones(redis: Place) -> None:
    """Also after others have appended; with facts that were decided anew, the recorded ones stand."""
    async with redis.shop() as shop:
        first = await shop.store.append("tea", [Fact("A"), Fact("B")], expected=0, command="c")
        await shop.store.append("tea", [Fact("C")], expected=2, command="d")
        again = await shop.store.append("tea", [Fact("X")], expected=0, command="c")
        assert again == replace(first, repeated=True)
        for expected in (1, 2, 3):  # whoever has read it again, and did not see its own command there
            again = await shop.store.append("tea", [Fact("X")], expected=expected, command="c")
            assert again == replace(first, repeated=True), "recorded twice"
        for expected in (1, 2, 4):
            with pytest.raises(VersionConflict):
                await shop.store.append("tea", [Fact("X")], expected=expected, command="e")
        assert [fact.kind for fact in await shop.store.history("tea")] == ["A", "B", "C"]
        assert [fact.kind for fact in await shop.store.history("tea", after=2)] == ["C"]


# 3, 5: the rows are a replay, nothing is skipped


@pytest.mark.invariant(3, 5)
async def test_the_rows_are_a_replay_whatever_crashes(place: Place, rng: random.Random) -> None:
    """Rows and checkpoint are written as one, so that no crash leaves one without the other."""
    await check_rows_are_a_replay(place, rng)


@pytest.mark.naive(3)
@pytest.mark.parametrize("variant", [RowsThenCheckpoint, CheckpointThenRows])
async def test_a_checkpoint_apart_from_the_rows_is_wrong_either_way(
    here: Place, rng: random.Random, variant: Any
) -> None:
    """Written after the rows it counts twice, written before it skips."""
    with pytest.raises(AssertionError, match="no replay"):
        await check_rows_are_a_replay(here.naive(variant), rng)


@pytest.mark.invariant(3)
@pytest.mark.fault("the projector is killed (SIGKILL) around its commit; rows in Redis")
async def test_a_killed_projector_loses_and_doubles_nothing(
    here: Place, spawn: Callable[..., Worker], rng: random.Random, ledger: Callable[..., Ledger]
) -> None:
    """Twenty kills, before the commit or between it and its reply: the rows are those of a replay."""
    book = ledger(bound="rows equal to a replay of 250 facts")
    await killed(spawn, here, "hash", rng, book)
    naive = book.without("rows, then checkpoint")
    await killed(spawn, replace(here, app=f"{here.app}-apart"), "apart", rng, naive)
    book.held("rows and checkpoint are one script")


@pytest.mark.invariant(3)
@pytest.mark.fault("the projector is killed (SIGKILL) around its commit; rows in SQL")
async def test_a_killed_projector_of_tables_loses_and_doubles_nothing(
    here: Place,
    spawn: Callable[..., Worker],
    rng: random.Random,
    tmp_path: Path,
    ledger: Callable[..., Ledger],
) -> None:
    """The same in SQL, where it is killed in the open transaction, or after the COMMIT."""
    book = ledger(bound="rows equal to a replay of 250 facts")
    place = replace(here, database=Home(f"sqlite://{quote(str(tmp_path / 'model.db'))}", "sqlite"))
    await killed(spawn, place, "table", rng, book)
    naive = book.without("checkpoint, then rows")
    await killed(spawn, replace(here, app=f"{here.app}-ahead"), "ahead", rng, naive)
    book.held("rows and checkpoint are one transaction")


@pytest.mark.invariant(3)
@pytest.mark.fault("the shop is killed (SIGKILL) while it records and tells")
async def test_what_is_recorded_is_told(
    here: Place, spawn: Callable[..., Worker], rng: random.Random, ledger: Callable[..., Ledger]
) -> None:
    """There is one write, so nothing can come between; of two writes, a kill leaves the first alone."""
    book = ledger()
    naive = book.without("write the row, then the message")
    await recorded_and_told(spawn, here, rng, book, naive)
    book.held("recording is telling: the log is both")


# 4: again and again


@pytest.mark.invariant(4)
@pytest.mark.parametrize("place", ["3+3 cluster", "sqlite", "postgres"], indirect=True)
async def test_delivery_again_changes_nothing(place: Place, rng: random.Random) -> None:
    """A batch is applied only to the checkpoint it was made for."""
    await check_delivery_again_changes_nothing(place, rng, Ledger("x/y", "not a row of the table"))


@pytest.mark.invariant(4)
@pytest.mark.naive(4)
@pytest.mark.fault("facts are delivered again: one, or all from some point on")
async def test_at_least_once_counts_twice(
    here: Place, rng: random.Random, ledger: Callable[..., Ledger]
) -> None:
    """Where no checkpoint is compared, what is delivered twice counts twice."""
    book = ledger()
    await check_delivery_again_changes_nothing(here, rng, book)
    twice = replace(here, app=f"{here.app}-naive").naive(AppliesWhateverComes)
    with pytest.raises(AssertionError, match="more than once"):
        await check_delivery_again_changes_nothing(twice, rng, book.without("apply whatever comes"))
    book.held("a batch goes with the checkpoint that it was made for")


@pytest.mark.invariant(4)
async def test_a_rebuild_runs_no_reaction_again(redis: Place) -> None:
    """Reactions have a checkpoint of their own, which no rebuild touches."""
    await check_a_rebuild_sends_nothing(redis, in_apply=False)


@pytest.mark.naive(4)
async def test_mails_sent_from_apply_are_sent_again(here: Place) -> None:
    """A rebuild calls `apply` for all that ever happened."""
    with pytest.raises(AssertionError, match="24 mails for 12 facts"):
        await check_a_rebuild_sends_nothing(here, in_apply=True)


@pytest.mark.invariant(4)
async def test_a_reaction_that_crashed_comes_again_under_its_id(redis: Place) -> None:
    """Between the call and its checkpoint a crash repeats the call, and the id lets it be ignored."""
    sent: list[str] = []

    async def send(fact: Recorded) -> None:
        sent.append(fact.id)
        if len(sent) == 2:
            raise Crash

    async with redis.shop(partitions=1) as shop:
        await shop.fill(3)
        reaction = Reaction("mail", shop.store, send, from_now=False)
        with pytest.raises(Crash):
            await shop.projector(reaction).catch_up()
        await shop.projector(reaction).catch_up()
    assert sent == ["shop/0:1", "shop/0:2", "shop/0:2", "shop/0:3"]


@pytest.mark.invariant(4, 9)
async def test_a_reaction_asks_whether_it_is_its_turn_before_it_calls(here: Place) -> None:
    """A lost reply repeats no call, and who was replaced calls no more."""
    sent: list[str] = []

    async def send(fact: Recorded) -> None:
        sent.append(fact.id)

    async with proxy(embedded_port(here), None) as line, here.shop(partitions=1) as shop:
        receipts = await shop.fill(6)
        async with here.shop(partitions=1, url=line.url) as far:
            old = far.projector(Reaction("mail", far.store, send, from_now=False))
            await old.take()
            for _ in range(4):
                with line.lose_reply(COMMIT._sha.encode(), times=1), suppress(OutcomeUnknown):
                    await old.catch_up()
            new = shop.projector(Reaction("mail", shop.store, send, from_now=False))
            await new.take()
            with pytest.raises(TakenOver):
                await old.catch_up()
            await new.catch_up()
    assert sent == [f"shop/{each.position}" for each in receipts]


@pytest.mark.invariant(4, 5)
@pytest.mark.fault("the reply to a commit of rows and checkpoint is lost")
async def test_a_commit_whose_reply_is_lost_counts_once(here: Place, ledger: Callable[..., Ledger]) -> None:
    """The projector does not know, looks where the checkpoint is, and goes on from there."""
    book, heard = ledger(), Recorder()
    await commits_without_replies(here, book, heard)
    assert len(heard.of(ProjectionStalled)) == len(heard.of(ProjectionResumed)) >= 1
    naive = replace(here, app=f"{here.app}-naive", variant=AppliesWhateverComes)
    await commits_without_replies(naive, book.without("apply the batch again"), heard)
    book.held("a commit names the checkpoint it starts from, and is refused anywhere else")


# 5: nothing is passed over


@pytest.mark.invariant(5)
async def test_the_checkpoint_passes_nothing(place: Place) -> None:
    """What cannot be applied now is tried again, and nothing behind it counts as done."""
    await check_nothing_is_passed_over(place)


@pytest.mark.naive(5)
async def test_a_checkpoint_at_the_last_seen_skips(here: Place) -> None:
    """Log and go on: the fact is never seen again."""
    with pytest.raises(AssertionError, match=r"has passed \[5\]"):
        await check_nothing_is_passed_over(here.naive(GoesOnAtTheLastSeen))


@pytest.fixture
def home(request: pytest.FixtureRequest) -> Iterator[Home]:
    """A PostgreSQL database of the test's own."""
    given = os.environ.get("DATABASE_URL", "")
    own = None if given.startswith("postgresql://") else request.getfixturevalue("postgres")
    with schema(own.url if own else given, own) as lent:
        yield lent


@pytest.mark.naive(5)
@pytest.mark.fault("of two writers, the one that took its number first commits last")
async def test_numbers_that_are_taken_before_the_commit_are_skipped(
    here: Place, home: Home, ledger: Callable[..., Ledger]
) -> None:
    """A SQL sequence gives 1, then 2; 2 commits first, the reader goes on behind it, 1 is never read."""
    book = ledger(bound="every fact is read once, in order")
    async with here.shop(partitions=1) as shop:
        seen: list[int] = []
        reader = shop.projector(HashModel("stock", shop.store, lambda rows, fact: seen.append(fact.data)))
        for number in range(10):
            await asyncio.gather(
                shop.store.execute(f"slow {number}", deliver(2 * number)),
                shop.store.execute(f"fast {number}", deliver(2 * number + 1)),
                reader.catch_up(),
            )
            await reader.catch_up()
            book.injected()
            book.acked(2 * number)
            book.acked(2 * number + 1)
        for each in seen:
            book.effect(each)
    book.held("a position is given and seen in the same script")
    await sequence_and_last_seen(home, book.without("a SQL sequence, and WHERE id > last seen"))


# 6: order


@pytest.mark.invariant(6)
async def test_facts_of_an_aggregate_keep_their_order(place: Place) -> None:
    """An aggregate is in one partition, a partition has one projector, and that goes by position."""
    await check_order_of_each_aggregate(place)


@pytest.mark.naive(6)
async def test_a_task_for_each_fact_mixes_them(here: Place) -> None:
    """Handled in parallel, the facts of an aggregate overtake each other."""
    with pytest.raises(AssertionError, match="applied in the order"):
        await check_order_of_each_aggregate(here.naive(OneTaskForEachFact))


# 7: read your writes


@pytest.mark.invariant(7)
async def test_readers_see_their_own_writes(redis: Place) -> None:
    """With a position the answer knows of it, or there is none in time."""
    await check_readers_see_their_own_writes(redis, View)


@pytest.mark.naive(7)
async def test_a_query_without_a_position_answers_from_before(here: Place) -> None:
    """The command was acknowledged, and the next page does not show it."""
    with pytest.raises(AssertionError, match="from before the command"):
        await check_readers_see_their_own_writes(here, WaitsForNothing)


@pytest.mark.invariant(7)
async def test_tables_can_be_waited_for(place: Place) -> None:
    """Any model can be waited for by its checkpoint, also in SQL."""
    async with place.shop() as shop:
        model = shop.model()
        (*_, last) = await shop.fill(5)
        with pytest.raises(NotCaughtUp) as late:
            await wait_for(model, last.position, within=0.02, poll=0.005)
        assert (late.value.position, late.value.reached) == (last.position, 0)
        waiting = asyncio.create_task(wait_for(model, last.position, within=5, poll=0.005))
        await shop.projector(model).catch_up()
        await waiting


async def test_waiting_goes_by_the_clock_that_is_given(here: Place) -> None:
    """A reader gives up at the deadline, and looks again only each `poll` seconds."""
    clock = ManualClock()
    async with here.shop(partitions=1) as shop:
        view = View("stock", shop.store, poll=1, clock=clock)
        (*_, last) = await shop.fill(3)
        await shop.store.client.set(view._live_key, 1)
        call = asyncio.create_task(outcome_of(view.get("item 0", at=last.position, within=2.5)))
        for _ in range(3):
            await eventually(lambda: clock.sleepers == 1, within=5)
            assert not call.done()
            await clock.advance(1)
        assert isinstance(await call, NotCaughtUp)


@pytest.mark.invariant(7)
async def test_rows_of_no_aggregate_are_read_in_each_partition(redis: Place) -> None:
    """A total over all items is one row in each partition, read with a position as any other."""

    def total(rows: dict[str, Any], fact: Recorded) -> None:
        rows["all"] = rows.get("all", 0) + 1

    async with redis.shop() as shop:
        receipts = await shop.fill(12, items=9)
        model = HashModel("total", shop.store, total, keys=lambda fact: ["all"])
        view = View("total", shop.store)
        with pytest.raises(NotLive):
            await view.get_each("all")
        await shop.projector(model).catch_up()
        await view.switch(1)
        assert sum(await view.get_each("all", at=receipts[-1].position)) == 12


# 8: poison


@pytest.mark.invariant(8)
@pytest.mark.parametrize("place", ["3+3 cluster", "sqlite", "postgres"], indirect=True)
async def test_poison_is_parked_with_what_follows_it(place: Place) -> None:
    """After `attempts` the fact is put aside, and later ones of its aggregate; nobody else waits."""
    await check_poison_is_put_aside(place, None)


@pytest.mark.naive(8)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [
        (LeavesTraces, "a trace of it"),
        (ParksOneFactOnly, "what follows it was applied"),
    ],
)
async def test_poison_spoils_what_does_not_put_it_aside(here: Place, variant: Any, complaint: str) -> None:
    """Swallowed it leaves half a change, put aside alone it leaves a gap."""
    with pytest.raises(AssertionError, match=complaint):
        await check_poison_is_put_aside(here.naive(variant), None)


@pytest.mark.invariant(8)
@pytest.mark.naive(8)
@pytest.mark.fault("a fact that cannot be applied")
async def test_a_poison_fact_holds_nobody_up(here: Place, ledger: Callable[..., Ledger]) -> None:
    """Nothing is lost by it: what is not in the rows is parked by name."""
    book = ledger()
    await check_poison_is_put_aside(here, book)
    naive = book.without("try again for ever")
    with pytest.raises(AssertionError, match="holds up"):
        await check_poison_is_put_aside(replace(here, app=f"{here.app}-naive").naive(TriesForEver), naive)
    book.held("it is parked, and with it what follows of its aggregate")


@pytest.mark.invariant(8)
async def test_a_partition_that_pauses_waits_for_a_better_apply(place: Place) -> None:
    """The lag shows it, other partitions go on, and a projector with a mended `apply` goes on from there."""
    heard = Recorder()
    async with place.shop(partitions=3) as shop:
        await shop.fill(30, items=6)
        partition = shop.store.partition_of("item 0")

        def fail(fact: Recorded) -> None:
            if fact.position == Position(partition, 3):
                raise KeyError("a field that nobody expected")

        model = shop.model(fail)
        projector = shop.projector(model, on_event=heard)
        for _ in range(2):
            await projector.catch_up()
        (paused,) = heard.of(ProjectionPaused)
        assert (paused.partition, paused.position) == (partition, 3)
        assert [each.attempt for each in heard.of(FactFailed)] == [1, 2, 3]
        end, _ = await shop.store.end(partition)
        behind = await projector.lag()
        assert behind.pop(partition) == end.number - 2
        assert set(behind.values()) == {0}
        assert (await model.checkpoint(partition)).number == 2
        mended = shop.model()
        await shop.projector(mended).catch_up()
        assert await shop.rows(mended) == await shop.replay()


@pytest.mark.invariant(8)
async def test_what_an_apply_may_do_wrong_is_poison(here: Place) -> None:
    """Rows it does not own, rows that JSON cannot hold or that are too large, and keys that are no keys."""

    def strange(rows: dict[str, Any], fact: Recorded) -> None:
        rows["another's"] = 1

    def cannot(rows: dict[str, Any], fact: Recorded) -> None:
        rows[fact.aggregate] = math.nan

    def large(rows: dict[str, Any], fact: Recorded) -> None:
        rows[fact.aggregate] = "x" * 200

    class Unspeakable(Exception):
        def __repr__(self) -> str:
            raise RuntimeError

    def unspeakable(rows: dict[str, Any], fact: Recorded) -> None:
        raise Unspeakable

    keys: list[Any] = [
        lambda fact: fact.aggregate,
        lambda fact: [""],
        lambda fact: 1,
        lambda fact: ["\ud800"],
        lambda fact: [b"x"],
    ]
    async with here.shop(partitions=1) as shop:
        await shop.fill(1)
        for number, (apply, named) in enumerate(
            [
                *[(each, None) for each in (strange, cannot, large, unspeakable)],
                *[(strange, each) for each in keys],
            ],
            1,
        ):
            options = {"keys": named} if named else {}
            model = HashModel("m", shop.store, apply, generation=number, max_bytes=100, **options)
            heard = Recorder()
            await shop.projector(model, on_event=heard).catch_up()
            assert heard.of(ProjectionPaused), number
            assert await model.rows(0) == {}

        async def by_itself(fact: Recorded) -> None:
            raise asyncio.CancelledError

        heard = Recorder()
        await shop.projector(Reaction("r", shop.store, by_itself, from_now=False), on_event=heard).catch_up()
        assert "CancelledError" in heard.of(ProjectionPaused)[0].error


@pytest.mark.invariant(8)
async def test_a_statement_whose_error_was_swallowed_is_poison(place: Place) -> None:
    """The transaction is lost, and the fact that did it is found among its batch."""
    if place.database is None:
        return
    async with place.shop(partitions=1) as shop:
        assert shop.database is not None
        await shop.fill(10)

        async def apply(transaction: Any, fact: Recorded) -> None:
            if fact.position.number == 4:
                with suppress(Exception):
                    await transaction.execute("INSERT INTO nowhere VALUES (1)")
                return
            await transaction.execute("INSERT INTO seen VALUES ($1, $2)", "x", fact.position.number)

        model, heard = TableModel("stock", shop.database, apply), Recorder()
        await shop.projector(model, on_event=heard).catch_up()
        assert heard.of(ProjectionPaused)[0].position == 4
        found = await shop.database.fetch("SELECT number FROM seen ORDER BY number")
        assert [number for (number,) in found] == [1, 2, 3]

        async def cancels_itself(transaction: Any, fact: Recorded) -> None:
            raise asyncio.CancelledError

        await shop.projector(TableModel("stock", shop.database, cancels_itself), on_event=heard).catch_up()
        assert "CancelledError" in heard.of(ProjectionPaused)[1].error

        async def reads_a_file(transaction: Any, fact: Recorded) -> None:
            raise FileNotFoundError

        model = TableModel("stock", shop.database, reads_a_file)
        await shop.projector(model, on_poison=OnPoison.CONTINUE, on_event=heard).catch_up()
        assert "FileNotFoundError" in (await model.parked(0))[4].error, "it is no outage of the database"


# 9: takeover


@pytest.mark.invariant(9)
async def test_who_was_replaced_writes_no_more(place: Place) -> None:
    """The owner is compared in the transaction that writes."""
    await check_who_was_replaced_writes_no_more(place)


@pytest.mark.naive(9)
async def test_without_an_owner_the_replaced_one_writes(here: Place) -> None:
    """It does not know that it was replaced, and nobody tells it."""
    with pytest.raises(AssertionError, match="and wrote"):
        await check_who_was_replaced_writes_no_more(here.naive(AsksForNoOwner))


@pytest.mark.invariant(9)
@pytest.mark.fault("the projector is paused (SIGSTOP) before its commit, and another takes over")
async def test_a_paused_projector_is_refused_when_it_goes_on(
    here: Place, spawn: Callable[..., Worker], ledger: Callable[..., Ledger]
) -> None:
    """It wakes up with a batch in its hands, and may not write it."""
    book = ledger()
    await paused_and_replaced(spawn, here, "paused", "was refused", book)
    naive = replace(here, app=f"{here.app}-naive")
    await paused_and_replaced(spawn, naive, "unguarded", "has written", book.without("write what is in hand"))
    book.held("the owner is compared in the script that writes")


@pytest.mark.invariant(9)
async def test_partitions_can_be_shared_anew_while_they_are_followed(redis: Place) -> None:
    """Who loses a partition goes on with the others, and ends when none is left."""
    heard = Recorder()
    async with redis.shop(partitions=2) as shop:
        await shop.fill(6)
        model = shop.model()
        one, two = shop.projector(model, on_event=heard), shop.projector(model, partitions=[1])
        running = asyncio.create_task(one.run())
        await eventually(lambda: caught_up(one), within=10)
        await two.take()
        await shop.fill(30, items=9, seed=4)
        await eventually(lambda: heard.of(PartitionStopped), within=5)
        assert heard.of(PartitionStopped) == [PartitionStopped("stock", 1, "TakenOver")]
        await two.catch_up()
        await eventually(lambda: caught_up(one), within=10)
        with pytest.raises(TakenOver):
            await one._apply(1, one._held[1], (await shop.store.read(Position(1, 0)))[:1])
        await shop.projector(model, partitions=[0]).take()
        await shop.fill(30, items=9, seed=5)
        await asyncio.wait_for(running, 5)
        await one.take()
        await one.catch_up()
        assert await shop.rows(model) == await shop.replay()


@pytest.mark.invariant(9)
async def test_a_model_that_was_emptied_stops_its_projector(redis: Place) -> None:
    """Nobody owns the partition any more; the next projector takes it, and fills it from the beginning."""
    heard = Recorder()
    async with redis.shop(partitions=1) as shop:
        await shop.fill(5)
        model = shop.model()
        old = shop.projector(model, on_event=heard)
        await old.catch_up()
        for key in model.keys(0):
            await shop.store.client.delete(key)
        await shop.fill(3)
        await old.run()
        assert heard.of(PartitionStopped) == [PartitionStopped("stock", 0, "TakenOver")]
        await shop.projector(model).catch_up()
        assert await shop.rows(model) == await shop.replay()


# 10: rebuild


@pytest.mark.invariant(10)
@pytest.mark.parametrize("redis", ["3+3 cluster"], indirect=True)
async def test_readers_see_the_old_model_or_the_new_one(redis: Place) -> None:
    """A generation is filled beside the live one, and one key is switched."""
    await check_readers_see_whole_models(redis, rebuild_beside, None)


@pytest.mark.naive(10)
async def test_a_model_that_is_shown_too_early_is_half_there(here: Place) -> None:
    """Readers see some rows, and others not."""
    with pytest.raises(AssertionError, match="readers saw a model that was being built"):
        await check_readers_see_whole_models(here, switch_first, None)


@pytest.mark.invariant(10)
@pytest.mark.naive(10)
@pytest.mark.fault("the model is rebuilt while readers look")
async def test_a_rebuild_is_not_seen(here: Place, ledger: Callable[..., Ledger]) -> None:
    """After each fact of the rebuild a reader looks at all rows."""
    book = ledger(bound="each reader sees all rows")
    await check_readers_see_whole_models(here, rebuild_beside, book)
    naive = book.without("empty it and fill it again")
    with pytest.raises(AssertionError, match="being built"):
        await check_readers_see_whole_models(replace(here, app=f"{here.app}-naive"), rebuild_in_place, naive)
    book.held("a new generation is built beside the live one; one key is switched")


@pytest.mark.invariant(7, 10)
async def test_a_switch_waits_for_its_model_and_a_drop_for_its_readers(redis: Place) -> None:
    """Not before it has caught up, and never what readers see; a reader in between looks again."""
    heard = Recorder()
    async with redis.shop() as shop:
        (*_, last) = await shop.fill(9)
        view = View("stock", shop.store, on_event=heard)
        with pytest.raises(NotLive):
            await view.live()
        with pytest.raises(NotCaughtUp):
            await view.switch(1)
        await view.switch(1, max_lag=9)
        with pytest.raises(ValueError, match="generation 1 is live"):
            await view.drop(1)
        assert await view.get("item 0") is None
        for generation in (1, 2):
            model = HashModel("stock", shop.store, shop.model()._apply, generation=generation)
            await shop.projector(model).catch_up()
        # A reader believes that the first is live; it is switched and dropped, and the reader looks again.
        slow = [View("stock", shop.store, refresh=1000) for _ in range(3)]
        for each in slow:
            assert (await each.get("item 0"))["seen"]
        await view.switch(2)
        assert heard.of(ModelSwitched) == [ModelSwitched("stock", 1), ModelSwitched("stock", 2)]
        assert (await slow[0].get("item 0", at=last.position))["seen"], "the old model is whole"
        await view.drop(1)
        assert (await slow[0].get("item 0"))["seen"]
        assert (await slow[1].get("item 0", at=last.position))["seen"]
        elsewhere = Position(1 - min(1, last.position.partition), 0)
        assert (await slow[2].get("item 0", at=elsewhere))["seen"]
        with pytest.raises(Dropped):  # somebody starts the old program again
            await shop.projector(shop.model()).catch_up()
        late = shop.projector(shop.model(), on_event=heard)
        await late.run()
        assert [each.error for each in heard.of(PartitionStopped)] == 3 * ["Dropped"]
        assert (await slow[2].get("item 0"))["seen"]
        for within in (math.nan, -1):
            with pytest.raises(ValueError, match="within"):
                await view.get("item 0", at=last.position, within=within)
            with pytest.raises(ValueError, match="within"):
                await view.wait_for(last.position, within=within)
        third = HashModel("stock", shop.store, shop.model()._apply, generation=3)
        behind = shop.projector(third)
        await behind.take()
        await view.drop(3)
        with pytest.raises(TakenOver):
            await behind.catch_up()


# 11: history that is lost


@pytest.mark.invariant(11)
async def test_lost_history_is_found_out(redis: Place) -> None:
    """A checkpoint knows the hash of all that it holds, so that a log of the same length is no excuse."""
    await check_lost_history_is_found_out(redis, EventStore)


@pytest.mark.naive(11)
async def test_a_comparison_of_ids_finds_it_out_too_late(here: Place) -> None:
    """Once the log has grown to the old length again, the last id looks right."""
    with pytest.raises(AssertionError, match="6 new facts, and nobody noticed"):
        await check_lost_history_is_found_out(here, ComparesOneId)


@pytest.mark.invariant(11)
@pytest.mark.fault("a replica that has not got the last facts is promoted")
async def test_a_failover_that_loses_facts_is_found_out(here: Place, ledger: Callable[..., Ledger]) -> None:
    """The facts are gone, as the page says; the model that had seen them is not believed any more."""
    book = ledger(lost=6, bound="HistoryLost at the next look; rebuilt rows equal a replay")
    await a_failover_that_loses_facts(here, book)
    book.held("the checkpoint holds a hash of all facts up to it; the model is rebuilt")


@pytest.mark.invariant(11)
async def test_a_history_with_a_hole_is_refused(redis: Place) -> None:
    """Nothing is decided upon a history that is not whole, or that cannot be read."""
    async with redis.shop(partitions=1) as shop:
        await shop.fill(5, items=1)
        await shop.store.client.xdel(shop.store._log(0), "3-0")
        with pytest.raises(HistoryLost):
            await shop.store.history("item 0")
        with pytest.raises(HistoryLost):
            await shop.store.execute("item 0", deliver(1))


# 12: bad input


@pytest.mark.invariant(12)
async def test_bad_input_is_refused_before_anything_is_written(redis: Place) -> None:
    """A typed error that says which fact, and shows nothing of it."""
    await check_bad_input_is_refused(redis, EventStore)


@pytest.mark.naive(12)
@pytest.mark.parametrize(
    ("variant", "complaint"), [(LenientStore, "recorded"), (AsksNobodyHowMany, "two histories")]
)
async def test_lenient_stores_are_sorry_later(here: Place, variant: Any, complaint: str) -> None:
    """A set becomes a text for ever; another number of partitions splits an aggregate."""
    with pytest.raises(AssertionError, match=complaint):
        await check_bad_input_is_refused(here, variant)


@pytest.mark.invariant(12)
async def test_names_may_be_any_text(redis: Place) -> None:
    """Braces, colons, quotes, newlines, NUL and all of Unicode; each aggregate has its own history."""
    names = ["a", "A", "a b", "a.20b", "{x}", "a:b", "%", "\n", "\0", "é", "日本", "a/b", '"', "x" * 5000]
    async with redis.shop() as shop:
        for number, name in enumerate(names):
            await shop.store.append(name, [Fact("Ünïcode\0", number)], expected=0, command=f"{name}\n")
        for number, name in enumerate(names):
            (fact,) = await shop.store.history(name)
            assert (fact.aggregate, fact.data, fact.command) == (name, number, f"{name}\n")
        model, view = shop.model(), View("stock", shop.store)
        await shop.projector(model).catch_up()
        await view.switch(1)
        assert [(await view.get(name))["amount"] for name in names] == list(range(len(names)))


@pytest.mark.invariant(12)
async def test_arguments_that_make_no_sense_are_refused(here: Place) -> None:
    """With a sentence that names the field; and nothing has been written."""
    async with opened(here.url) as client:
        for partitions in (0, True, 5000):
            with pytest.raises(ValueError, match="partitions"):
                EventStore("shop", client, app=here.app, partitions=partitions)
        with pytest.raises(ValueError, match="max_bytes"):
            EventStore("shop", client, app=here.app, partitions=1, max_bytes=0)
        with pytest.raises(ValueError, match="name must be"):
            EventStore("a/b", client, app=here.app, partitions=1)
        store = EventStore("shop", client, app=here.app, partitions=2)
        one = [Fact("A")]
        calls: list[tuple[Any, str]] = [
            (store.append("", one, expected=0, command="c"), "aggregate"),
            (store.append("\ud800", one, expected=0, command="c"), "aggregate"),
            (store.append("a", one, expected=-1, command="c"), "expected"),
            (store.append("a", one, expected=0, command=""), "command"),
            (store.append("a", [], expected=0, command="c"), "facts"),
            (store.append("a", one * 1001, expected=0, command="c"), "facts"),
            (store.append("a", [Fact("")], expected=0, command="c"), "kind"),
            (store.execute("a", deliver(1), attempts=0), "attempts"),
            (store.execute("a", deliver(1), command=""), "command"),
            (store.history("a", after=-1), "after"),
            (store.read(Position(0, 0), count=0), "count"),
            (wait_for(View("m", store), Position(0, 0), within=1, poll=0), "poll"),
        ]
        for call, field in calls:
            with pytest.raises(ValueError, match=field):
                await call
        assert [key async for key in client.scan_iter(f"{here.app}*log")] == []
        model = HashModel("m", store, lambda rows, fact: None)
        for share in ([], [2], [-1]):
            with pytest.raises(ValueError, match="partitions must be of 0 to 1"):
                Projector(store, model, policy(), partitions=share)
        for name in ("", "a/b", "é"):
            with pytest.raises(ValueError, match="name must be"):
                View(name, store)
        with pytest.raises(ValueError, match="poll"):
            View("m", store, poll=0)
        with pytest.raises(ValueError, match="generation"):
            HashModel("m", store, lambda rows, fact: None, generation=0)
        with pytest.raises(ValueError, match="name"):
            TableModel("", None, None)  # type: ignore[arg-type]  # it is refused before


@pytest.mark.invariant(12)
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"on_poison": "pause"}, "on_poison"),
        ({"attempts": 0}, "attempts"),
        ({"batch": 0}, "batch"),
        ({"batch": True}, "batch"),
        ({"poll": 0}, "poll"),
        ({"retry_pause": -1}, "retry_pause"),
        ({"back_off": math.inf}, "back_off"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(changes: dict[str, Any], field: str) -> None:
    """When it is made, with the field's name."""
    with pytest.raises(ValueError, match=field):
        policy(**changes)


@pytest.mark.parametrize(
    "text", ["", "1", "1:", "a:1", "1:2:3", "-1:2", "1:٣", "1:" + "9" * 16, " 1:2", "1:2\n"]
)
def test_positions_from_outside_are_read_with_care(text: str) -> None:
    """A client hands them back, so they may be anything."""
    with pytest.raises(ValueError, match="two numbers"):
        Position.parse(text)
    assert Position.parse(str(Position(3, 105))) == Position(3, 105)
    with pytest.raises(ValueError, match="two numbers"):
        Position.parse(5)  # type: ignore[arg-type]  # as JSON has it
    with pytest.raises(ValueError, match="number"):
        Position(0, -1)


async def test_facts_that_another_codec_wrote_are_poison_and_not_the_end(redis: Place) -> None:
    """A projector parks what it cannot decode; a decision is not made without it."""
    async with redis.shop(partitions=1) as shop:
        await shop.store.append("tea", [Fact("A", 1)], expected=0, command="a")
        await shop.store.append("tea", [Fact("B", 2)], expected=1, command="b")
        await shop.store.append("coffee", [Fact("C", 3)], expected=0, command="c")
        real, log = shop.store.codec.decode, shop.store._log(0)
        assert log.endswith(":log")
        shop.store.codec.decode = lambda data: real(data) if data != b"2" else 1 / 0  # type: ignore[method-assign]  # a codec that has changed
        try:
            with pytest.raises(Unreadable, match="ZeroDivisionError"):
                await shop.store.history("tea")
            model = shop.model()
            await shop.projector(model, on_poison=OnPoison.CONTINUE).catch_up()
            assert list(await model.parked(0)) == [2]
            assert set(await shop.rows(model)) == {"tea", "coffee"}
        finally:
            shop.store.codec.decode = real  # type: ignore[method-assign]  # as it was


# an outage, cancellation, keys, events


@pytest.mark.invariant(3, 5)
@pytest.mark.fault("Redis is killed (SIGKILL) and comes back, while commands and projectors run")
async def test_an_outage_is_waited_out(durable: Server, app: str, ledger: Callable[..., Ledger]) -> None:
    """Commands are repeated under their id; the projector waits, and goes on where it was."""
    book, heard = ledger(within=10), Recorder()
    await an_outage(durable, app, book, heard)
    book.held("commands are repeated under their id; the projector waits and goes on from its checkpoint")


@pytest.fixture
def durable(server: Server) -> Iterator[Server]:
    """A second server, which loses nothing when it is killed."""
    with Server("--appendonly", "yes", "--appendfsync", "always") as running:
        yield running


async def test_a_database_that_goes_away_is_waited_out(here: Place, home: Home, postgres: Any) -> None:
    """PostgreSQL is killed in the middle; the projector waits, and the rows are a replay."""
    heard = Recorder()
    place = replace(here, database=home)
    async with place.shop(partitions=1) as shop:
        await shop.fill(20)

        def kill_once(fact: Recorded) -> None:
            if fact.position.number == 10 and postgres.running and not heard.of(ProjectionStalled):
                postgres.kill()

        model = shop.model(kill_once)
        running = asyncio.create_task(shop.projector(model, on_event=heard).run())
        await eventually(lambda: heard.of(ProjectionStalled), within=10)
        postgres.restart()
        await eventually(lambda: heard.of(ProjectionResumed), within=10)
        wanted = await shop.replay()

        async def same() -> bool:
            return await shop.rows(model) == wanted

        await eventually(same, within=10)
        running.cancel()
        await asyncio.wait([running])


def two_at_once(history: list[Recorded]) -> list[Fact]:
    """Decide on two facts."""
    return [Fact("Delivered", 1), Fact("Delivered", 1)]


async def test_a_cancelled_call_leaves_nothing_half_done(redis: Place) -> None:
    """Cancelled at any step, a command is recorded whole or not at all, and rows go with their checkpoint."""
    async with redis.shop(partitions=1) as shop:
        model, cancelled = shop.model(), 0
        for steps in range(0, 40, 2):
            projector = shop.projector(model)
            for call in (
                shop.store.execute(f"item {steps}", two_at_once, command=f"c {steps}"),
                projector.catch_up(),
            ):
                task = asyncio.ensure_future(call)
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                cancelled += task.cancelled()
        assert leaks.in_use(shop.store.client) == 0
        assert cancelled > 5
        for steps in range(0, 40, 2):
            receipt = await shop.store.execute(f"item {steps}", two_at_once, command=f"c {steps}")
            assert receipt.version == 2
        await shop.projector(model).catch_up()
        assert await shop.rows(model) == await shop.replay()
        assert len(await shop.facts()) == 40


async def test_the_keys_of_a_transition_are_in_one_slot(here: Place) -> None:
    """Log and index of a partition are together, rows and checkpoint are, and the two are apart."""
    async with here.shop(partitions=4) as shop:
        slots = []
        for partition in range(4):
            model = HashModel("stock", shop.store, lambda rows, fact: None)
            keys = model.keys(partition)
            assert len({key_slot(key.encode()) for key in keys}) == 1
            slots += [key_slot(keys[0].encode()), key_slot(shop.store._log(partition).encode())]
        assert len(set(slots)) == 8
        for name in ("tea", "{}", "a b"):
            partition, keys = shop.store._keys(name)
            assert len({key_slot(key.encode()) for key in keys}) == 1
        assert shop.store._keys("a b")[1][1].endswith("}:of.a.20b")


async def test_events_tell_what_happened(here: Place) -> None:
    """Appended, conflicted, taken, applied, failed, parked: one event each, with its figures."""
    heard = Recorder()
    async with here.shop(partitions=1, on_event=heard) as shop:
        await shop.store.execute("tea", deliver(2), command="a")
        await shop.store.append("tea", [Fact("Sold", -1)], expected=1, command="b")
        await shop.store.append("tea", [Fact("Sold", -1)], expected=1, command="b")
        with pytest.raises(VersionConflict):
            await shop.store.append("tea", [Fact("Sold", -1)], expected=1, command="c")
        assert heard.events == [
            Appended("shop", "tea", 1, repeated=False),
            Appended("shop", "tea", 2, repeated=False),
            Appended("shop", "tea", 2, repeated=True),
            AppendConflicted("shop", "tea", 1, 2),
        ]
        heard.events.clear()
        model = shop.model(broken_for(2))
        await shop.projector(model, on_poison=OnPoison.CONTINUE, attempts=2, on_event=heard).catch_up()
        error = "KeyError('a field that nobody expected')"
        assert heard.events == [
            PartitionTaken("stock", 0, 0),
            FactsApplied("stock", 0, 1, 1),
            FactFailed("stock", 0, 2, 1, error),
            FactFailed("stock", 0, 2, 2, error),
            FactParked("stock", 0, 2, "tea", error),
        ]


async def test_a_command_may_decide_to_do_nothing(here: Place) -> None:
    """Then its receipt is the position of what is there already, and a query may wait for it."""
    async with here.shop() as shop:
        none = await shop.store.execute("tea", lambda history: [])
        assert (none.position.number, none.version, none.repeated) == (0, 0, False)
        some = await shop.store.execute("tea", deliver(1))
        assert await shop.store.execute("tea", lambda history: []) == some
        with pytest.raises(SoldOut):
            await shop.store.execute("tea", sell(2))
        with pytest.raises(VersionConflict):
            await shop.store.execute("tea", rushed(shop), attempts=2)


# all of it against a model


AgainstTheModel.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
TestAgainstTheModel = AgainstTheModel.TestCase
