"""The checks of CQRS: each fails on what breaks an invariant, whoever made it."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from patterns.data_management.cqrs import (
    EventStore,
    Fact,
    FactFailed,
    HashModel,
    HistoryLost,
    NotCaughtUp,
    NotRecordable,
    OnPoison,
    PartitionsDiffer,
    PartitionStopped,
    Position,
    Projector,
    Reaction,
    Recorded,
    TakenOver,
    VersionConflict,
    View,
)
from patterns.data_management.cqrs.scripts import APPEND
from patterns.events import Recorder
from patterns.keyspace import OutcomeUnknown
from tests.data_management.cqrs_shop import (
    CheckpointThenRows,
    ConflictIsFailure,
    Crash,
    EncodesAnything,
    Place,
    RowsThenCheckpoint,
    Shop,
    SoldOut,
    deliver,
    look,
    sell,
)
from tests.eventually import eventually
from tests.faults import Ledger, proxy

if TYPE_CHECKING:
    import random


async def outcome_of(call: Any) -> Any:
    """Return what `call` returned or raised."""
    try:
        return await call
    except Exception as error:
        return error


async def check_the_rule_holds(place: Place, make: Any, book: Ledger) -> None:
    """Thirty customers in two processes want the last ten pieces at once."""
    async with place.shop(make=make) as one, place.shop(make=make) as two:
        await one.store.execute("tea", deliver(10))

        async def customer(number: int) -> None:
            store = (one, two)[number % 2].store
            history = await store.history("tea")
            for attempt in range(200):
                try:
                    facts = sell(1)(history)
                    await store.append("tea", facts, expected=len(history), command=f"{number} {attempt}")
                except SoldOut:
                    return
                except VersionConflict:
                    book.injected()
                    history += await store.history("tea", after=len(history))
                else:
                    book.acked(number)
                    return

        await asyncio.gather(*[customer(number) for number in range(30)])
        history = await one.store.history("tea")
        for fact in history[1:]:
            book.effect(int(fact.command.split()[0]))
        assert [fact.version for fact in history] == list(range(1, len(history) + 1))
        left = sum(fact.data for fact in history)
        assert left == 0, f"sold {-left} pieces that were not there"


async def check_all_facts_or_none(place: Place, make: Any) -> None:
    """Two commands of three facts each, at the same version, at the same time."""
    async with place.shop(make=make) as shop:
        facts = [Fact("Delivered", number) for number in (1, 2, 3)]
        calls = [shop.store.append("tea", facts, expected=0, command=each) for each in ("a", "b", "c")]
        got = await asyncio.gather(*[outcome_of(call) for call in calls])
        history = await shop.store.history("tea")
        assert len(history) == 3, f"{len(history)} facts of commands of 3 are recorded"
        assert len({fact.command for fact in history}) == 1, "facts of two commands are mixed"
        assert sorted(type(each).__name__ for each in got) == ["Receipt"] + 2 * ["VersionConflict"]
        conflict = next(each for each in got if isinstance(each, VersionConflict))
        assert (conflict.aggregate, conflict.expected, conflict.actual) == ("tea", 0, 3)


async def check_commands_are_recorded_once(place: Place, make: Any, book: Ledger | None) -> None:
    """The reply to each append is lost, once or twice; the caller repeats the command."""
    async with (
        proxy(int(place.url.rpartition(":")[2].partition("/")[0]), book) as line,
        place.shop(make=make, url=line.url) as shop,
    ):
        await shop.store.history("tea")
        sha = APPEND._sha.encode()
        for number in range(20):
            command = f"command {number}"
            with line.lose_reply(sha, times=1 + number % 2):
                receipt = await outcome_of(shop.store.execute("tea", deliver(1), command=command))
            assert not isinstance(receipt, Exception), f"recorded, and the caller got {receipt!r}"
            again = await shop.store.execute("tea", deliver(1), command=command)
            if book:
                book.acked(receipt.position)
            assert again == replace(receipt, repeated=True), "the receipt is another"
        found = [fact.data for fact in await shop.store.history("tea")]
        if book:
            for fact in await shop.store.history("tea"):
                book.effect(fact.position)
        assert len(found) == 20, f"{len(found)} facts of 20 commands"


class GivesUp(ConflictIsFailure):
    """The command is repeated as it was, without looking whether it is recorded."""

    async def execute(self, aggregate: str, decide: Any, **options: Any) -> Any:
        command, expected = options["command"], getattr(self, "version", 0)
        for _ in range(5):
            with suppress(OutcomeUnknown):
                receipt = await self.append(aggregate, decide([]), expected=expected, command=command)
                self.version = expected + 1
                return receipt
        return None


async def crashing(shop: Shop, steps: int, rng: random.Random) -> Any:
    """Let projectors crash at random places; return the model when the log is done."""
    for _ in range(steps):
        left, apart = rng.randrange(1, 12), rng.random() < 0.5

        def crash(fact: Recorded | None = None, *, apart: bool = apart) -> None:
            nonlocal left
            if apart == (fact is None):
                left -= 1 if fact else 6
                if left <= 0:
                    raise Crash

        for naive in (RowsThenCheckpoint, CheckpointThenRows):
            naive.between = staticmethod(crash)
        with suppress(Crash):
            await shop.projector(shop.model(crash)).catch_up()
    for naive in (RowsThenCheckpoint, CheckpointThenRows):
        naive.between = staticmethod(lambda: None)
    model = shop.model()
    await shop.projector(model).catch_up()
    return model


async def check_rows_are_a_replay(place: Place, rng: random.Random) -> None:
    """Projectors end in the middle of batches, while facts are recorded."""
    async with place.shop() as shop:
        model = shop.model()
        for part in range(4):
            await shop.fill(15, seed=part)
            model = await crashing(shop, 4, rng)
            assert await shop.rows(model) == await shop.replay(), "the rows are no replay of the log"
        assert set((await shop.projector(model).lag()).values()) == {0}


async def check_delivery_again_changes_nothing(place: Place, rng: random.Random, book: Ledger) -> None:
    """Facts are applied that have been applied: one by one, and whole suffixes."""
    async with place.shop(partitions=1) as shop:
        await shop.fill(40)
        model = shop.model()
        projector = shop.projector(model)
        await projector.catch_up()
        facts = await shop.facts()
        for fact in facts:
            book.acked(fact.position.number)
        for _ in range(30):
            start = rng.randrange(len(facts))
            before = facts[start - 1] if start else None
            held = projector._held[0]
            held.at = replace(
                held.at,
                number=before.position.number if before else 0,
                chain=before.chain if before else "",
            )
            await projector.catch_up()
            book.injected()
        for row in (await shop.rows(model)).values():
            for number in row["seen"]:
                book.effect(number)
        assert await shop.rows(model) == await shop.replay(), "a fact counts more than once"
        other = shop.projector(model)
        assert await other.catch_up() == 0


async def check_a_rebuild_sends_nothing(place: Place, *, in_apply: bool) -> None:
    """A mail is sent for each fact; then the model is rebuilt, and a new reaction begins from now."""
    sent: list[str] = []

    async def send(fact: Recorded) -> None:
        sent.append(fact.id)

    async with place.shop() as shop:
        await shop.fill(12)

        def apply(rows: dict[str, Any], fact: Recorded) -> None:
            rows[fact.aggregate] = fact.version
            if in_apply:
                sent.append(fact.id)

        if not in_apply:
            await shop.projector(Reaction("mail", shop.store, send, from_now=False)).catch_up()
        for generation in (1, 2):
            await shop.projector(
                HashModel("stock", shop.store, apply, generation=generation), batch=1
            ).catch_up()
        assert len(sent) == 12, f"{len(sent)} mails for 12 facts"
        assert len(set(sent)) == 12

        new = Reaction("new", shop.store, send, from_now=True)
        await shop.projector(new).catch_up()
        await shop.fill(3, seed=9)
        await shop.projector(new).catch_up()
        assert len(sent) == 15, "a reaction that is new begins with what comes"


def embedded_port(place: Place) -> int:
    """Return the port of the one server."""
    return int(place.url.rpartition(":")[2].partition("/")[0])


async def caught_up(projector: Projector) -> bool:
    """Say whether nothing is left to apply."""
    with suppress(ConnectionError):
        return not any((await projector.lag()).values())
    return False


async def check_nothing_is_passed_over(place: Place) -> None:
    """One fact cannot be applied at first: a lock, a time-out, a row that comes later."""
    async with place.shop(partitions=1) as shop:
        await shop.fill(20)
        failures = iter([True, True, False])

        def busy(fact: Recorded) -> None:
            if fact.position.number == 5 and next(failures, False):
                raise RuntimeError("busy")

        model = shop.model(busy)
        await shop.projector(model).catch_up()
        rows, wanted = await shop.rows(model), await shop.replay()
        seen = {number for row in rows.values() for number in row["seen"]}
        missing = {number for row in wanted.values() for number in row["seen"]} - seen
        assert not missing, f"the checkpoint has passed {sorted(missing)}"
        assert rows == wanted


async def check_order_of_each_aggregate(place: Place) -> None:
    """Three projectors share five partitions while facts are recorded; then one of them goes away."""
    applied: dict[str, list[int]] = {}

    def note(fact: Recorded) -> None:
        applied.setdefault(fact.aggregate, []).append(fact.version)

    async with place.shop(partitions=5) as shop, place.shop(partitions=5) as other:
        models = [shop.model(note), other.model(note), shop.model(note)]
        shares = [(0, 3), (1,), (2, 4)]
        await shop.fill(40, items=9, seed=3)
        running = [
            asyncio.create_task(shop.projector(model, partitions=share).run())
            for model, share in zip(models, shares, strict=True)
        ]
        await asyncio.gather(shop.fill(40, items=9), other.fill(40, items=9, seed=2))
        all_of_them = shop.projector(models[0])
        await eventually(lambda: caught_up(all_of_them), within=10)
        for each in running:
            each.cancel()
        await asyncio.wait(running)
        for versions in applied.values():
            first = list(dict.fromkeys(versions))  # a batch that was refused is applied again
            assert first == sorted(first), f"applied in the order {versions}"
        assert await shop.rows(models[0]) == await shop.replay()


async def check_readers_see_their_own_writes(place: Place, make: Any) -> None:
    """A projector is held up; readers ask with the receipt of their command."""
    async with place.shop() as shop:
        view = make("stock", shop.store, poll=0.005)
        model = shop.model()
        projector = shop.projector(model)
        await projector.catch_up()
        await view.switch(1)
        for number in range(5):
            receipts = await shop.fill(6, seed=number)
            last = max(receipts, key=lambda each: (each.position.partition, each.position.number))
            item = next(fact.aggregate for fact in await shop.facts() if fact.position == last.position)
            got = await outcome_of(view.get(item, at=last.position))
            assert isinstance(got, NotCaughtUp), f"an answer from before the command: {got!r}"
            got = await outcome_of(view.wait_for(last.position, within=0.02))
            assert isinstance(got, NotCaughtUp), f"an answer from before the command: {got!r}"
            waiting = [
                asyncio.create_task(view.get(item, at=last.position, within=5)),
                asyncio.create_task(view.wait_for(last.position, within=5)),
            ]
            elsewhere = asyncio.create_task(view.get("item 0", at=last.position, within=5))
            await projector.catch_up()
            row, _ = await asyncio.gather(*waiting)
            assert last.position.number in row["seen"], "the answer does not know of the command"
            assert (await elsewhere or {}).keys() <= {"amount", "version", "seen"}


def broken_for(*numbers: int) -> Any:
    """Return a hook that cannot deal with some facts."""

    def fail(fact: Recorded) -> None:
        if fact.position.number in numbers:
            raise KeyError("a field that nobody expected")

    return fail


async def check_poison_is_put_aside(place: Place, book: Ledger | None) -> None:
    """Some facts cannot be applied, for now and for ever."""
    heard = Recorder()
    async with place.shop(partitions=1) as shop:
        await shop.fill(30, items=5)
        facts = await shop.facts()
        bad = facts[6]
        follows = [fact for fact in facts[7:] if fact.aggregate == bad.aggregate]
        model = shop.model(broken_for(bad.position.number))
        attempts = getattr(model, "attempts", 3)
        projector = shop.projector(model, on_poison=OnPoison.CONTINUE, attempts=attempts, on_event=heard)
        running = asyncio.create_task(projector.run())

        def told() -> int:
            return sum(isinstance(each, FactFailed) for each in heard.events)

        async def settled() -> bool:
            return told() > 50 or await caught_up(projector)

        await eventually(settled, within=10)
        running.cancel()
        await asyncio.wait([running])
        lag = (await projector.lag())[0]
        if book:
            book.injected()
            for fact in facts:
                book.acked(fact.position.number)
            for row in (await shop.rows(model)).values():
                for number in row["seen"]:
                    book.effect(number)
            for number in await model.parked(0):
                book.effect(number)
        assert lag == 0, f"one fact holds up {lag - 1} others"
        wanted = await shop.replay()
        wanted[bad.aggregate] = (await shop.rows(model)).get(bad.aggregate)
        assert await shop.rows(model) == {k: v for k, v in wanted.items() if v}, "others were touched"
        seen = (wanted[bad.aggregate] or {"seen": []})["seen"]
        assert bad.position.number not in seen, "a trace of it is in the rows"
        assert all(fact.position.number not in seen for fact in follows), "what follows it was applied"
        parked = await model.parked(0)
        assert list(parked) == [bad.position.number, *[fact.position.number for fact in follows]]
        assert "a field that nobody expected" in parked[bad.position.number].error
        assert told() == projector.policy.attempts

        # A new projector knows what is parked.
        await shop.store.execute(bad.aggregate, deliver(1))
        await shop.projector(shop.model(), on_poison=OnPoison.CONTINUE).catch_up()
        assert len(await model.parked(0)) == len(parked) + 1


async def check_who_was_replaced_writes_no_more(place: Place) -> None:
    """A projector with an old `apply` is held between its rows and its commit; another takes over."""
    async with place.shop(partitions=1) as shop, place.shop(partitions=1) as there:
        await shop.fill(5)

        def old(fact: Recorded) -> None:
            return None

        model = shop.model(old)
        reached, go_on = asyncio.Event(), asyncio.Event()
        where = "_move" if shop.database is not None else "commit"
        known = getattr(model, where)

        async def held(*args: Any, **options: Any) -> Any:
            reached.set()
            await go_on.wait()
            return await known(*args, **options)

        setattr(model, where, held)
        early = asyncio.create_task(outcome_of(shop.projector(model).catch_up()))
        if place.database is not None and place.database.engine == "sqlite":
            await reached.wait()  # its transaction is open, and holds the file
            go_on.set()
            await early
            go_on.clear()
            await shop.fill(5, seed=2)
            early = asyncio.create_task(take_then(there, shop, model, go_on))
        else:
            await reached.wait()
            newer = there.projector(there.model())
            await newer.take()
            go_on.set()
        got = await early
        assert isinstance(got, TakenOver), f"it was replaced, and wrote: {got!r}"
        assert got.partition == 0
        model_there = there.model()
        await there.projector(model_there).catch_up()
        assert await there.rows(model_there) == await there.replay()


async def take_then(there: Shop, shop: Shop, model: Any, go_on: asyncio.Event) -> Any:
    """Take the partition before the other has begun its transaction."""
    old = shop.projector(model)
    await old.take()
    await there.projector(there.model()).take()
    go_on.set()
    return await outcome_of(old.catch_up())


async def check_readers_see_whole_models(place: Place, rebuild: Any, book: Ledger | None) -> None:
    """A model is rebuilt in another shape while readers look and facts are recorded."""

    def old(rows: dict[str, Any], fact: Recorded) -> None:
        rows[fact.aggregate] = rows.get(fact.aggregate, 0) + fact.data

    def new(rows: dict[str, Any], fact: Recorded) -> None:
        row = rows.setdefault(fact.aggregate, {"amount": 0, "changes": 0})
        row["amount"] += fact.data
        row["changes"] += 1

    async with place.shop() as shop, place.shop() as there:
        await shop.fill(25)
        items = sorted({fact.aggregate for fact in await shop.facts()})
        before = shop.projector(HashModel("stock", shop.store, old))
        await before.catch_up()
        await View("stock", shop.store).switch(1)
        view = View("stock", there.store, refresh=0)
        wanted = await look(view, items)
        assert wanted is not None
        torn: list[Any] = []

        async def reader() -> None:
            seen = await look(view, items)
            if book:
                book.injected()
                book.acked(book.faults)
            whole = seen is not None and all(
                seen[item] in (wanted[item], {"amount": wanted[item], "changes": CHANGES[item]})
                for item in items
            )
            if not whole:
                torn.append(seen)
            elif book:
                book.effect(book.faults)

        replayed = await shop.replay()
        CHANGES = {item: len(replayed[item]["seen"]) for item in items}  # noqa: N806  a constant of the check
        await rebuild(shop, new, reader)
        assert not torn, f"{len(torn)} readers saw a model that was being built: {torn[0]}"
        assert await look(view, items) == {
            item: {"amount": wanted[item], "changes": CHANGES[item]} for item in items
        }


async def check_lost_history_is_found_out(place: Place, make: Any) -> None:
    """The log goes back to an earlier state, and then grows: not as far, as far, and further."""
    for grown in (0, 3, 6, 9):
        here = replace(place, app=f"{place.app}-{grown}")
        async with here.shop(partitions=1, make=make) as shop:
            redis: Any = shop.store.client
            await shop.fill(10, items=1)
            keys = shop.store._keys("item 0")[1]
            saved = [await redis.dump(key) for key in keys]
            await shop.fill(6, items=1, seed=2)
            model = shop.model()
            heard = Recorder()
            projector = shop.projector(model, on_event=heard)
            await projector.catch_up()
            for key, value in zip(keys, saved, strict=True):
                await redis.restore(key, 0, value, replace=True)
            await shop.fill(grown, items=1, seed=3)
            got = await outcome_of(projector.catch_up())
            assert isinstance(got, HistoryLost), f"{grown} new facts, and nobody noticed: {got!r}"
            assert got.position == Position(0, 16)
            with pytest.raises(HistoryLost):
                await projector.run()
            assert heard.of(PartitionStopped) == [PartitionStopped("stock", 0, "HistoryLost")]
            rebuilt = HashModel("stock", shop.store, shop.model()._apply, generation=2)
            await shop.projector(rebuilt).catch_up()
            assert await rebuilt.rows(0) == await shop.replay()


async def check_bad_input_is_refused(place: Place, make: Any, **options: Any) -> None:
    """What cannot be read again is offered, and a second number of partitions."""
    bad: list[Any] = [{1}, math.nan, "\ud800", "x" * 200, b"bytes", object()]
    async with place.shop(make=make, max_bytes=100, **options) as shop:
        for data in bad:
            facts = [Fact("Fine", 1), Fact("Bad", data)]
            got = await outcome_of(shop.store.append("tea", facts, expected=0, command="c"))
            assert isinstance(got, NotRecordable), f"{str(data)[:10]}: recorded, {got!r}"
            assert str(data) not in str(got)
            assert got.kind == "Bad"
        for facts, command in (([Fact("Fine", 1)] * 1000, "c" * 1100), ([Fact("K" * 2_000_000)], "c")):
            got = await outcome_of(shop.store.append("tea", facts, expected=0, command=command))
            assert isinstance(got, NotRecordable), f"one command of more than 1 MB: recorded, {got!r}"
            assert len(str(got)) < 200
        assert await shop.facts() == [], "half of it was recorded"
        await shop.fill(5)
        async with place.shop(make=make, partitions=5) as other:
            got = await outcome_of(other.store.execute("item 0", deliver(1)))
            assert isinstance(got, PartitionsDiffer), "an aggregate has two histories"
            assert (got.ours, got.theirs) == (5, 3)


class LenientStore(EventStore):
    """Encodes whatever comes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, codec=EncodesAnything(), **options)


def rushed(shop: Shop) -> Any:
    """Return a decision during which somebody else is always quicker."""

    def decide(history: list[Recorded]) -> list[Fact]:
        history_is_old = embedded_append(shop, len(history))
        assert history_is_old
        return [Fact("Delivered", 1)]

    return decide


def embedded_append(shop: Shop, version: int) -> bool:
    """Record a fact from another thread's connection, while the loop decides."""
    import redis  # noqa: PLC0415  one test needs it

    client: Any = shop.store.client
    port = client.connection_pool.connection_kwargs["port"]
    with redis.Redis(port=port, protocol=2) as other:
        _, keys = shop.store._keys("tea")
        script = other.register_script(APPEND.source)
        outcome: Any = script(keys=keys, args=["tea", version, f"rush {version}", "Delivered", b"1"])
        return bool(outcome[0] == 1)
