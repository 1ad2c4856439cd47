"""The proof of patterns/resiliency/fallback: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import pickle
import random
import weakref
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import SlotNotCoveredError

from patterns.clock import ManualClock
from patterns.events import Event, Recorder
from patterns.keyspace import Keyspace, opened
from patterns.resiliency.fallback import (
    AllLevelsFailed,
    Answer,
    ContractBroken,
    CopyNotKept,
    Exercised,
    Fallback,
    FallbackUsed,
    LastGood,
    Level,
    LevelFailed,
    LevelFull,
    LevelTimedOut,
    NoCopy,
    Policy,
    ResultRefused,
    Stale,
    TooOld,
    same_contract,
)
from patterns.resiliency.fallback.shared import KEEP, READ, SharedLastGood, asked_at
from patterns.scripted import fails, hangs, returns
from tests.eventually import eventually
from tests.faults import leaks
from tests.faults.ledger import Ledger
from tests.places import KINDS
from tests.resiliency.fallback_checks import (
    GOOD,
    NEVER,
    STEPS,
    Make,
    chain,
    check_a_cancelled_caller_gets_no_substitute,
    check_a_copy_held_up_on_its_way,
    check_all_errors_in_order_and_in_time,
    check_exercises,
    check_levels_rest,
    check_only_listed_errors_lead_on,
    check_shared,
    check_substitutes_are_marked_and_not_kept,
    check_the_contract_finds_what_differs,
    check_the_limit_holds,
    check_too_old_is_not_served,
    expected,
    kept,
    level_of,
    order,
    outcome_of,
    policy,
    scripted,
)
from tests.resiliency.fallback_variants import (
    DOWN,
    CatchesEverything,
    CatchesException,
    DatesOnArrival,
    DoesNotAskWhoWasCancelled,
    ExercisesTheFirstLevel,
    GivesEachLevelTheWholeTime,
    KeepsWhateverItGave,
    LastWriterWins,
    MustKeep,
    NeverSpares,
    PreparesTheSubstitute,
    RaisesTheLastError,
    ReturnsPermitsOnSuccess,
    ServesAnyAge,
    WithoutLimit,
    looks_at_the_outermost_type,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from patterns.embedded import Server
    from tests.places import Place


# 1: while the primary answers, no level is called


@pytest.mark.invariant(1)
async def test_no_level_is_called_while_the_primary_answers() -> None:
    """The levels are left alone, and the answer is the primary's, not degraded."""
    await check_levels_rest(Fallback)


@pytest.mark.naive(1)
async def test_a_substitute_made_beforehand_is_a_call_for_each_call() -> None:
    """What is made before it is needed doubles the load of every healthy day."""
    with pytest.raises(AssertionError, match="100 calls of a level"):
        await check_levels_rest(PreparesTheSubstitute)


@pytest.mark.invariant(1)
async def test_the_decorator_and_call_hand_the_arguments_on() -> None:
    """The primary and the levels get the same arguments, and the wrapped function keeps its name."""

    async def price(article: str, *, currency: str) -> str:
        """Say the price."""
        raise ConnectionError

    async def listed(article: str, *, currency: str) -> str:
        return f"{article} in {currency}"

    fallback = Fallback("prices", policy(), Level("list", listed))
    wrapped = fallback(price)
    assert wrapped.__name__ == "price"
    assert wrapped.__doc__ == "Say the price."
    for answer in (
        await wrapped("cup", currency="EUR"),
        await fallback.call(price, "cup", currency="EUR"),
    ):
        assert answer.value == "cup in EUR"
        assert answer.source == "list"
    with pytest.raises(TypeError, match="needs an async def"):
        fallback(print)  # type: ignore[arg-type]  # that is the point


# 2: only what is listed


@pytest.mark.invariant(2)
async def test_only_what_is_listed_leads_to_a_level() -> None:
    """Cancellation, exits, bugs and unlisted errors are never answered with a substitute."""
    await check_only_listed_errors_lead_on(Fallback)


@pytest.mark.naive(2)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(CatchesEverything, "primary's CancelledError became"), (CatchesException, "primary's ValueError")],
)
async def test_catching_everything_hides_cancellation_and_bugs(variant: Make, complaint: str) -> None:
    """A bare except answers a cancelled caller; `except Exception` answers for a bug."""
    with pytest.raises(AssertionError, match=complaint):
        await check_only_listed_errors_lead_on(variant)


@pytest.mark.invariant(2)
@pytest.mark.parametrize(
    ("on", "error", "leads"),
    [
        ((Exception,), ConnectionError(), True),
        ((Exception,), TypeError(), False),
        ((Exception,), UnboundLocalError(), False),
        ((RuntimeError,), RuntimeError(), True),
        ((RuntimeError,), NotImplementedError(), False),
        ((LookupError,), KeyError(), True),
        ((Exception, TypeError), TypeError(), True),
        ((KeyError,), IndexError(), False),
        ((ConnectionError,), ExceptionGroup("all", [ConnectionError(), BrokenPipeError()]), True),
        ((ConnectionError,), ExceptionGroup("", [ExceptionGroup("", [ConnectionResetError()])]), True),
        ((Exception,), ExceptionGroup("", [ConnectionError(), KeyError()]), False),
        ((ExceptionGroup,), ExceptionGroup("", [KeyError()]), True),
        ((ConnectionError,), AllLevelsFailed("inner", [ConnectionError(), LevelFull("db", 1)]), True),
        ((ConnectionError,), AllLevelsFailed("inner", [ConnectionError(), NameError()]), False),
        ((), NoCopy(), True),
    ],
)
async def test_a_base_class_includes_no_bugs_and_a_group_leads_on_if_all_of_it_does(
    on: tuple[type[Exception], ...], error: Exception, leads: bool
) -> None:
    """Bugs count only by their own class; a group, or a nested chain's, only if each of its errors does."""
    fallback = Fallback("prices", Policy(on=on, primary_timeout=1), Level("level", scripted(returns(1))))
    got = await outcome_of(fallback.call(scripted(fails(error))))
    assert isinstance(got, Answer) is leads
    assert leads or got is error


@pytest.mark.invariant(2)
async def test_a_refused_result_and_the_primarys_timeout_lead_on() -> None:
    """A result that `on_result` refuses, and a primary past its time, need not be listed."""
    clock = ManualClock()
    rules = policy(on=(), on_result=lambda status: status >= 500, primary_timeout=2.0)
    fallback = Fallback("status", rules, Level("cached", scripted(then=returns(200))), clock=clock)
    refused = await fallback.call(scripted(returns(503)))
    assert refused.source == "cached"
    assert isinstance(refused.errors[0], ResultRefused)
    assert refused.errors[0].result == 503
    assert (await fallback.call(scripted(returns(404)))).value == 404
    call = asyncio.create_task(fallback.call(scripted(hangs(), clock=clock)))
    await clock.advance(2.0)
    late = await call
    assert str(late.errors[0]) == "'primary' did not answer within 2 s"
    own = TimeoutError("the socket's own")
    assert await outcome_of(fallback.call(scripted(fails(own)))) is own


@pytest.mark.invariant(2)
async def test_a_cancellation_that_was_translated_is_none_the_less_one() -> None:
    """A driver that turns a cancellation into a connection error does not bring its caller a substitute."""
    await check_a_cancelled_caller_gets_no_substitute(Fallback)


@pytest.mark.naive(2)
async def test_an_error_alone_does_not_tell_who_was_cancelled() -> None:
    """Without a look at the task a cancelled caller is served, and its cancellation is lost."""
    with pytest.raises(AssertionError, match="the cancelled caller got Answer"):
        await check_a_cancelled_caller_gets_no_substitute(DoesNotAskWhoWasCancelled)


@pytest.mark.invariant(2)
async def test_a_task_group_that_failed_is_answered_for() -> None:
    """Before Python 3.13 it leaves its task's count of cancellations too high: that is no cancellation."""

    async def refused() -> None:
        raise ConnectionRefusedError

    async def grouped() -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(refused())
        except ExceptionGroup:
            raise ConnectionError("one of them") from None
        return "fresh"

    async def old() -> str:
        return "old"

    chain = Fallback("prices", Policy(on=(ConnectionError,)), Level("first", grouped), Level("old", old))
    answer = await chain.call(grouped)
    assert (answer.value, [type(error) for error in answer.errors]) == ("old", [ConnectionError] * 2)
    assert (await chain.call(grouped)).value == "old"


@pytest.mark.invariant(2, 4)
@pytest.mark.parametrize("made", [OSError("socket closed"), KeyError("transaction"), TimeoutError("own")])
async def test_what_a_driver_makes_of_being_cut_off_is_a_time_out(made: Exception) -> None:
    """A primary, or a level, that raises another error when its time is over has timed out all the same."""
    clock = ManualClock()

    async def translates() -> int:
        try:
            await clock.sleep(3600)
        except asyncio.CancelledError:
            raise made from None
        return 0

    levels = Level("first", translates, timeout=1.0), Level("last", scripted(then=returns(1)))
    fallback = Fallback("x", policy(primary_timeout=2.0), *levels, clock=clock)
    call = asyncio.create_task(fallback.call(translates))
    await clock.advance(3.0)
    answer = await call
    assert [str(error) for error in answer.errors] == [
        "'primary' did not answer within 2 s",
        "'first' did not answer within 1 s",
    ]
    assert [error.__cause__ for error in answer.errors] == [made, made]


@pytest.mark.invariant(2)
async def test_an_older_cancellation_of_the_task_does_not_switch_the_levels_off() -> None:
    """In the clean-up of a cancelled task a fallback works as ever."""

    async def cleans_up() -> Answer[int]:
        with contextlib.suppress(asyncio.CancelledError):
            await scripted(hangs())()
        return await Fallback("x", policy(), Level("copy", scripted(returns(1)))).call(scripted(fails(DOWN)))

    task = asyncio.create_task(cleans_up())
    await asyncio.sleep(0)
    task.cancel()
    assert (await task).source == "copy"


# 3: a substitute is marked, and copies are the primary's


@pytest.mark.invariant(3)
async def test_a_substitute_says_what_it_is_and_is_never_fed_to_a_copy() -> None:
    """Source, age and errors are there, and only the primary's answers are remembered."""
    await check_substitutes_are_marked_and_not_kept(Fallback)


@pytest.mark.naive(3)
async def test_keeping_whatever_was_given_out_makes_a_default_look_like_a_copy() -> None:
    """The second caller gets the default as the last good value."""
    with pytest.raises(AssertionError, match="last good gives out a substitute again"):
        await check_substitutes_are_marked_and_not_kept(KeepsWhateverItGave)


@pytest.mark.invariant(3)
async def test_of_two_answers_that_overlap_the_later_call_is_kept() -> None:
    """A slow call that began first and ends last does not bring its old value back."""
    clock = ManualClock()
    last: LastGood[str] = LastGood(key=lambda: "k", max_entries=1, clock=clock)
    fallback = Fallback("x", policy(), Level("last", last), clock=clock)
    slow = asyncio.create_task(fallback.call(scripted(returns("old").after(5), clock=clock)))
    await clock.advance(1)
    await fallback.call(scripted(returns("new"), clock=clock))
    await clock.advance(5)
    assert (await slow).value == "old"
    assert (await fallback.ask("last")) == Answer("new", "last", degraded=True, age=5.0)


@pytest.mark.invariant(3)
async def test_what_was_forgotten_does_not_come_back_with_an_answer_that_was_under_way() -> None:
    """`forget` wins over a call that began before it, and loses to one that begins after."""
    clock = ManualClock()
    last: LastGood[str] = LastGood(key=lambda user: user, max_entries=9, clock=clock)
    fallback = Fallback("x", policy(), Level("last", last), clock=clock)
    slow = asyncio.create_task(fallback.call(scripted(returns("deleted").after(1), clock=clock), "ann"))
    await clock.advance(0.5)
    last.forget("ann")
    await clock.advance(0.5)
    await slow
    with pytest.raises(NoCopy):
        await fallback.ask("last", "ann")
    last.forget("ann")
    await fallback.call(scripted(returns("at the same instant")), "ann")
    with pytest.raises(NoCopy):
        await fallback.ask("last", "ann")
    clock.jump(0.25)
    await fallback.call(scripted(returns("new")), "ann")
    assert (await fallback.ask("last", "ann")).value == "new"


@pytest.mark.invariant(3)
async def test_a_copy_is_bounded_and_need_not_be_shared() -> None:
    """The copy fed longest ago makes room; with `copy`, what a caller changes stays the caller's."""
    last: LastGood[list[int]] = LastGood(key=lambda n: n, max_entries=2, copy=copy.deepcopy)
    fallback = Fallback("x", policy(), Level("last", last))
    for n in (1, 2, 1, 3):
        (await fallback.call(scripted(returns([n])), n)).value.append(99)
    assert len(last) == 2
    answer = await fallback.ask("last", 1)
    answer.value.append(98)
    assert (await fallback.ask("last", 1)).value == [1]
    with pytest.raises(NoCopy, match="no copy is kept"):
        await fallback.ask("last", 2)


@pytest.mark.invariant(3)
async def test_a_memory_that_cannot_keep_costs_no_answer() -> None:
    """A key function that raises is told as an event, and the primary's answer goes out."""
    heard = Recorder()
    last: LastGood[int] = LastGood(key=lambda article: {}[article], max_entries=1)
    fallback = Fallback("prices", policy(), Level("last", last), on_event=heard)
    assert (await fallback.call(scripted(returns(12)), "cup")).value == 12
    assert heard.events == [CopyNotKept("prices", "last", "KeyError")]


# 4: all fail, in time


@pytest.mark.invariant(4)
async def test_when_all_fail_the_primarys_error_comes_first_and_in_time() -> None:
    """One group with every error; a level is cut off by its time or by what is left, or is not begun."""
    await check_all_errors_in_order_and_in_time(Fallback)


@pytest.mark.naive(4)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(RaisesTheLastError, "the caller got LevelTimedOut"), (GivesEachLevelTheWholeTime, "the caller got ")],
)
async def test_the_last_error_and_a_budget_for_each_level_are_not_enough(
    variant: Make, complaint: str
) -> None:
    """One hides why the levels were needed; with the other the time of the levels adds up."""
    with pytest.raises(AssertionError, match=complaint):
        await check_all_errors_in_order_and_in_time(variant)


@pytest.mark.invariant(4)
async def test_the_group_can_be_taken_apart_and_sent_to_another_process() -> None:
    """`except*` picks one kind out of it, and it survives pickling."""
    fallback = Fallback("prices", policy(), Level("copy", scripted(fails(NoCopy("none yet")))))
    got = await outcome_of(fallback.call(scripted(fails(DOWN))))
    matched, rest = got.split(ConnectionError)
    assert matched.exceptions == (DOWN,)
    assert [str(error) for error in rest.exceptions] == ["none yet"]
    again = pickle.loads(pickle.dumps(got))
    assert type(again) is AllLevelsFailed
    assert repr(again.primary) == repr(DOWN)
    for error in (LevelFull("db", 3), LevelTimedOut("db", 1.5), TooOld("db", None, 2.0), ResultRefused(503)):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.invariant(4)
async def test_a_level_chooses_the_errors_it_is_for() -> None:
    """A level with its own `on` is passed over for other errors; LevelFull and its like always lead on."""
    replica = Level("replica", scripted(then=fails(LevelFull("x", 1))), on=(TimeoutError,))
    copied = Level("copy", scripted(then=returns(1)))
    fallback = Fallback("x", policy(), replica, copied)
    refused = await fallback.call(scripted(fails(DOWN)))
    assert (refused.source, len(refused.errors)) == ("copy", 1)
    late = await fallback.call(scripted(fails(TimeoutError())))
    assert (late.source, len(late.errors)) == ("copy", 2)


@pytest.mark.invariant(4)
async def test_the_timeout_of_a_level_is_not_confused_with_its_own_time_outs() -> None:
    """A TimeoutError that a level raises stays what it is, and an answer in time is an answer."""
    own = TimeoutError("the socket's own")
    clock = ManualClock()
    first = Level("first", scripted(fails(own)), timeout=1.0)
    second = Level("second", scripted(returns(1).after(0.9), clock=clock), timeout=1.0)
    call = asyncio.create_task(
        Fallback("x", policy(), first, second, clock=clock).call(scripted(fails(DOWN)))
    )
    await clock.advance(0.9)
    assert (await call).errors == (DOWN, own)


@pytest.mark.invariant(4)
async def test_errors_do_not_outlive_their_answer() -> None:
    """Neither an answer nor a group leaves a cycle: its errors are gone with it, without the collector."""

    class Refused(ConnectionError):
        """An error that can be looked after: the built-in one takes no weak references."""

    fallback = Fallback(
        "x", policy(), Level("bad", scripted(then=fails(OSError()))), Level("copy", level_of(1))
    )
    for levels in (fallback.levels, fallback.levels[:1]):
        chain = Fallback("x", policy(on=(OSError,)), *levels)
        gc.collect()
        gc.disable()
        try:
            seen: list[weakref.ref[BaseException]] = []

            async def primary(seen: list[weakref.ref[BaseException]] = seen) -> int:
                error = Refused()
                seen.append(weakref.ref(error))
                try:
                    raise error
                finally:
                    del error

            for _ in range(3):
                got = await outcome_of(chain.call(primary))
                assert isinstance(got, Answer | AllLevelsFailed)
                del got
            assert [ref() for ref in seen] == [None] * 3
        finally:
            gc.enable()


# 5: a level's own limit


@pytest.mark.invariant(5)
async def test_a_level_runs_no_more_than_its_limit_whatever_fails() -> None:
    """Of 1,000 callers ten are in the database and 990 have their answer at once; none leaks a permit."""
    await check_the_limit_holds(Fallback)


@pytest.mark.naive(5)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(WithoutLimit, "1000 at once in the database"), (ReturnsPermitsOnSuccess, "no permit is left")],
)
async def test_no_limit_and_lost_permits_are_found(variant: Make, complaint: str) -> None:
    """Without a limit all 1,000 fall upon the database; with leaking permits nobody reaches it any more."""
    with pytest.raises(AssertionError, match=complaint):
        await check_the_limit_holds(variant)


@pytest.mark.invariant(5)
async def test_a_level_that_several_chains_share_has_one_limit() -> None:
    """Two fallbacks in front of one database count together."""
    database = Level("database", scripted(then=hangs()), limit=3)
    chains = [Fallback(name, policy(), database) for name in ("prices", "stock")]
    calls = [asyncio.create_task(chains[n % 2].call(scripted(fails(DOWN)))) for n in range(8)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    full = [call for call in calls if call.done()]
    assert len(full) == 5
    assert repr(database) == "Level('database', limit=3, running=3)"
    for call in full:
        error = call.exception()
        assert isinstance(error, AllLevelsFailed)
        assert str(error.exceptions[1]) == "'database' already runs 3 calls, its limit"
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert database.running == 0


# 6: nothing too old


@pytest.mark.invariant(6)
async def test_a_value_that_is_too_old_or_has_no_age_is_not_served() -> None:
    """The bound is kept to the quarter of a second, whatever the wall clock does."""
    await check_too_old_is_not_served(Fallback)


@pytest.mark.naive(6)
async def test_marking_a_copy_does_not_bound_its_age() -> None:
    """A chain that only marks its copies serves them for ever."""
    with pytest.raises(AssertionError, match=r"12 was served, 60.25 s old"):
        await check_too_old_is_not_served(ServesAnyAge)


@pytest.mark.invariant(6)
@pytest.mark.parametrize("age", [-1, float("nan"), float("inf")])
async def test_an_age_that_is_none_is_the_failure_of_its_level(age: float) -> None:
    """A level whose clock went wrong does not serve its value as fresh."""

    async def level() -> Stale[int]:
        return Stale(1, age)

    got = await outcome_of(Fallback("x", policy(), Level("copy", level)).call(scripted(fails(DOWN))))
    assert isinstance(got, AllLevelsFailed)
    assert str(got.exceptions[1]).startswith("age must be finite seconds >= 0")


# 7: the contract


@pytest.mark.invariant(7)
async def test_a_level_of_another_shape_is_found_before_it_is_needed() -> None:
    """None for a number, a list for a tuple, a missing key: each is named with its place."""
    await check_the_contract_finds_what_differs(same_contract)


@pytest.mark.naive(7)
async def test_isinstance_does_not_see_a_missing_key() -> None:
    """A comparison of the outermost type passes a dictionary with a text for a number."""
    with pytest.raises(AssertionError, match="was not found"):
        await check_the_contract_finds_what_differs(looks_at_the_outermost_type)


@pytest.mark.invariant(7)
async def test_levels_that_keep_the_contract_pass_and_memories_are_fed_first() -> None:
    """Equal shapes pass, empty lists are of any shape, and a copy has the primary's answer to show."""
    last: LastGood[dict[str, Any]] = LastGood(key=lambda article: article, max_entries=3)
    fallback = Fallback("x", policy(), Level("copy", last), Level("default", level_of(GOOD | {"tags": []})))
    await same_contract(fallback, level_of(GOOD), [("cup",), ("pot",)])

    def check(value: dict[str, Any]) -> None:
        if not value["tags"]:
            raise ValueError("tags must not be empty")

    with pytest.raises(ContractBroken, match="default, case 1: raised ValueError: tags must not be empty"):
        await same_contract(fallback, level_of(GOOD), [("cup",)], check=check)
    with pytest.raises(ValueError, match="cases must hold"):
        await same_contract(fallback, level_of(GOOD), [])
    with pytest.raises(ValueError, match="level must be one of"):
        await fallback.ask("nobody")


# 8: exercises


@pytest.mark.invariant(8)
async def test_an_exercise_takes_each_level_and_costs_no_answer() -> None:
    """The share is kept, every level has its turn, and the broken one is told of, not served."""
    await check_exercises(Fallback)


@pytest.mark.naive(8)
async def test_exercises_from_the_top_never_reach_the_last_level() -> None:
    """The level that would be needed on the worst day is the one that nobody tries."""
    with pytest.raises(AssertionError, match=r"exercises began at \{'copy': \d+, 'default': 0\}"):
        await check_exercises(ExercisesTheFirstLevel)


@pytest.mark.invariant(8)
async def test_a_game_day_is_switched_on_and_off() -> None:
    """With a share of 1 no call reaches the primary, with 0 every call does."""
    heard = Recorder()
    primary = scripted(then=returns(12))
    bad = Level("bad", scripted(then=fails(DOWN)))
    fallback = Fallback("x", policy(), bad, Level("copy", level_of(11)), on_event=heard, rng=random.Random(1))
    assert fallback.exercise == 0.0
    fallback.exercise = 1.0
    for _ in range(20):
        assert (await fallback.call(primary)).source == "copy"
    assert primary.calls == 0
    assert {(drill.level, drill.passed) for drill in heard.of(Exercised)} == {("copy", True), ("bad", False)}
    fallback.exercise = 0
    assert not (await fallback.call(primary)).degraded
    for share in (-0.1, 1.1, float("nan"), "1", True, None):
        with pytest.raises(ValueError, match=r"exercise must be a share in \[0, 1\]"):
            fallback.exercise = share  # type: ignore[assignment]  # that is the point


# Events, bad input, a model


@pytest.mark.invariant(3)
async def test_each_substitute_is_told_once_and_a_listener_cannot_break_it() -> None:
    """Who stood in, why, and how old the value is; what a listener raises goes no further."""
    heard = Recorder()

    def listen(event: Event) -> None:
        heard(event)
        raise RuntimeError("listener")

    async def copied() -> Stale[int]:
        return Stale(1, 30.0)

    levels = Level("full", scripted(then=fails(NoCopy()))), Level("copy", copied)
    await Fallback("prices", policy(), *levels, on_event=listen).call(scripted(fails(DOWN)))
    assert heard.events == [
        LevelFailed("prices", "full", "NoCopy", exercise=False),
        FallbackUsed("prices", "copy", "ConnectionError", 30.0),
    ]


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: Policy(on=()), "on must name an exception"),
        (lambda: Policy(on=ConnectionError), "on must be a tuple of Exception classes"),  # type: ignore[arg-type]  # that is it
        (lambda: Policy(on=(asyncio.CancelledError,)), "on must be a tuple of Exception"),  # type: ignore[arg-type]  # that is it
        (lambda: Policy(on=(OSError,), on_result=3), "on_result must be a function"),  # type: ignore[arg-type]  # that is it
        *(
            (lambda field=field, bad=bad: Policy(on=(OSError,), **{field: bad}), f"{field} must be")
            for field in ("deadline", "primary_timeout")
            for bad in (0, -1, float("nan"), float("inf"), True, "1")
        ),
        (lambda: Policy(on=(OSError,), exercise=1.5), r"exercise must be a share in \[0, 1\], got 1.5"),
        (lambda: Level("", level_of(1)), "name must be text"),
        (lambda: Level("primary", level_of(1)), "name must be text, not empty and not 'primary'"),
        (lambda: Level("x", 3), "fn must be an async def"),  # type: ignore[call-overload]  # that is it
        *(
            (lambda bad=bad: Level("x", level_of(1), limit=bad), "limit must be a whole number >= 1")
            for bad in (0, -1, 1.5, True, None)
        ),
        (lambda: Level("x", level_of(1), timeout=0), "timeout must be finite seconds"),
        (lambda: Level("x", level_of(1), max_age=-1), "max_age must be finite seconds >= 0"),
        (lambda: Level("x", level_of(1), on=(BaseException,)), "on must be a tuple of Exception"),  # type: ignore[arg-type]  # that is it
        (lambda: Fallback("x", policy()), "levels must be at least one"),
        (lambda: Fallback("x", policy(), level_of(1)), "levels must be Level objects"),  # type: ignore[arg-type]  # that is it
        (
            lambda: Fallback("x", policy(), Level("a", level_of(1)), Level("a", level_of(1))),
            "names that differ",
        ),
        (lambda: LastGood(key=3, max_entries=1), "key must be a function"),  # type: ignore[arg-type]  # that is it
        (lambda: LastGood(key=str, max_entries=0), "max_entries must be a whole number >= 1"),
        *(
            (lambda field=field, bad=bad: kept(None, "app", **{field: bad}), f"{field} must be")
            for field in ("ttl", "refresh", "timeout", "back_off")
            for bad in (-1, float("nan"), float("inf"), "1", None)
        ),
        (lambda: kept(None, "app", name="a/b"), "name must be text without '/'"),
        (lambda: kept(None, "app", key=None), "key must be a function"),
    ],
)
def test_a_bad_setting_is_refused_when_it_is_made(build: Callable[[], object], complaint: str) -> None:
    """A value out of bounds names its field, its bound and itself."""
    with pytest.raises(ValueError, match=complaint):
        build()


@given(st.sampled_from(sorted(STEPS)), st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4))
@pytest.mark.invariant(2, 4, 5)
def test_any_chain_does_what_the_model_says(primary: str, kinds: list[str]) -> None:
    """Whatever the primary and up to four levels do, the answer comes from where five lines say."""

    async def main() -> str:
        levels = [Level(f"level {n}", scripted(then=STEPS[kind])) for n, kind in enumerate(kinds)]
        fallback = Fallback("x", policy(), *levels)
        got = await outcome_of(fallback.call(scripted(STEPS[primary])))
        assert [level.running for level in levels] == [0] * len(levels)
        if isinstance(got, Answer):
            assert got.degraded is (got.source != "primary")
            return got.source
        if isinstance(got, AllLevelsFailed):
            assert got.__cause__ is got.primary
            return "exhausted"
        return "raised"

    assert asyncio.run(main()) == expected(primary, kinds)


# 9: shared through Redis


@KINDS
@pytest.mark.invariant(9)
async def test_processes_share_copies_and_the_later_answer_stays(place: Place) -> None:
    """On one server and on a cluster: the age is true, and an answer that comes late is dropped."""
    async with opened(place.url) as client:
        await check_shared(SharedLastGood, client, place.app)
        assert await leaks.immortal_keys(client, place.app) == []


@pytest.mark.naive(9)
async def test_a_plain_set_lets_a_late_answer_replace_a_newer_one(server: Server, app: str) -> None:
    """Who writes last wins, also if it asked first."""
    async with opened(server.url) as client:
        with pytest.raises(AssertionError, match="'old' replaced an answer that is later"):
            await check_shared(LastWriterWins, client, app)


@KINDS
@pytest.mark.invariant(9)
@pytest.mark.parametrize("number", [1, 2])
async def test_a_copy_that_is_held_up_on_its_way_is_no_younger_for_it(place: Place, number: int) -> None:
    """Whichever message waits before the server, what was forgotten stays so, and ages are true."""
    async with opened(place.url) as client:
        await check_a_copy_held_up_on_its_way(SharedLastGood, client, place.app, number)


@pytest.mark.naive(9)
async def test_a_copy_dated_when_it_arrives_undoes_a_forget(server: Server, app: str) -> None:
    """The time that it was on its way is left out, and with it what happened meanwhile."""
    async with opened(server.url) as client:
        with pytest.raises(AssertionError, match="what was forgotten came back"):
            await check_a_copy_held_up_on_its_way(DatesOnArrival, client, app, 2)


@pytest.mark.invariant(9)
@given(st.integers(0, 10**9), st.integers(0, 10**8), st.integers(0, 10**7))
def test_a_copy_is_never_dated_later_than_it_was_asked_for(asked: int, fetching: int, reply: int) -> None:
    """In microseconds: the server reads its clock after the answer came, and its reply comes later still."""
    now_there = (asked + fetching) // 1000
    dated = asked_at(now_there, (fetching + reply) / 1e6)
    assert dated * 1000 <= asked
    assert dated * 1000 > asked - reply - 2001


@pytest.mark.invariant(9)
async def test_of_forget_and_keep_in_one_millisecond_forget_wins(server: Server, app: str) -> None:
    """In transactions, which the server runs in far less than a millisecond, no copy of the same instant."""
    async with opened(server.url) as client:
        memory, ties = kept(client, app), 0
        for number in range(20):
            key = memory._key_of((str(number),), {})
            await memory.forget(str(number))
            async with client.pipeline(transaction=True) as pipe:
                for kind in (0, 1):
                    pipe.eval(KEEP.source, 1, key, kind, "", 60_000, b"1")
                    pipe.get(key)
                _, forgotten, written, after = await pipe.execute()
            if written:
                assert after[:2] == b"1 "
                assert int(after[2:-2]) > int(forgotten[2:-1])
            else:
                ties += 1
                assert after == forgotten
        assert ties


@pytest.mark.invariant(9)
async def test_the_age_of_a_copy_is_rounded_up(server: Server, app: str) -> None:
    """The server's time, in whole milliseconds, is never before the moment of the reading."""
    async with opened(server.url) as client:
        for _ in range(10):
            seconds, micros = await client.time()
            _, now = await READ(client, keys=[app])
            assert int(now) * 1000 >= seconds * 1_000_000 + micros


@pytest.mark.invariant(9)
async def test_of_many_answers_at_once_one_tries_a_redis_that_has_failed(app: str) -> None:
    """Fifty answers after a failure: one waits for its time-out, and is told of; 49 go out at once."""

    class Silent:
        async def evalsha(self, *args: Any) -> Any:
            await scripted(hangs())()

    clock, heard = ManualClock(), Recorder()
    memory = kept(Silent(), app, clock=clock, timeout=0.25, back_off=0)
    fallback = chain(memory, clock=clock, on_event=heard)
    for number, at_once in ((1, 0), (50, 49)):
        calls = [asyncio.create_task(fallback.call(level_of(n), str(n))) for n in range(number)]
        await clock.advance(0)
        assert sum(call.done() for call in calls) == at_once
        await clock.advance(0.25)
        assert [(await call).value for call in calls] == list(range(number))
    assert heard.events == [CopyNotKept("prices", "copy", "TimeoutError")] * 2


@pytest.mark.invariant(9)
async def test_a_cluster_that_knows_no_node_for_a_key_costs_no_answer(app: str) -> None:
    """redis-py tells of that by an error which is no RedisError: the chain goes on to its next level."""

    class Uncovered:
        async def evalsha(self, *args: Any) -> Any:
            raise SlotNotCoveredError("Slot 1 is not covered")

    heard = Recorder()
    levels = Level("copy", kept(Uncovered(), app)), Level("default", level_of(0))
    fallback = Fallback("x", policy(), *levels, on_event=heard)
    assert (await fallback.call(level_of(1), "cup")).value == 1
    assert heard.of(CopyNotKept)[0].error == "SlotNotCoveredError"
    assert (await fallback.call(scripted(fails(DOWN)), "cup")).source == "default"


@pytest.mark.invariant(9)
async def test_a_shared_copy_ages_expires_and_is_forgotten(server: Server, app: str) -> None:
    """The age counts from the question, the entry lives `ttl` after it, `forget` beats what is under way."""
    async with opened(server.url) as client:
        memory = kept(client, app, ttl=100.0)
        key = Keyspace(app, "fallback").key("prices/cup", "stale")
        await memory.keep([1], 40.0, ("cup",), {})
        assert 59_000 < await client.pttl(key) <= 60_000
        stale = await memory("cup")
        assert stale.value == [1]
        assert 40 <= stale.age < 41
        await memory.keep([0], 41.0, ("cup",), {})
        await memory.keep([2], 100.0, ("cup",), {})  # as old as it may get: not worth a write
        expired = str((await client.time())[0] * 1000 - 100_001)
        for entity in ("cup", "pot"):  # a copy that was so long on its way, over another one and over none
            await memory._set(memory._key_of((entity,), {}), 1, expired, b"[9]")
        assert (await memory("cup")).value == [1]
        assert not await client.exists(memory._key_of(("pot",), {}))
        await memory.forget("cup")
        await memory.keep([1], 0.5, ("cup",), {})
        with pytest.raises(NoCopy, match="no copy is kept"):
            await memory("cup")
        for entry, complaint in (
            (b"?", "what is kept is no copy"),
            (b"1 5\n{", "codec raised JSONDecodeError"),
        ):
            await client.set(key, entry, ex=9)
            with pytest.raises(NoCopy, match=complaint):
                await memory("cup")
        await client.delete(key)
        await client.lpush(key, b"another type")
        with pytest.raises(NoCopy, match="Redis did not answer: ResponseError"):
            await memory("cup")
        await memory.keep([3], 0.0, ("cup",), {})
        assert (await memory("cup")).value == [3]


@pytest.mark.invariant(9)
async def test_a_clock_that_was_set_back_does_not_freeze_a_copy(server: Server, app: str) -> None:
    """An entry from the future is replaced, and is never of negative age."""
    async with opened(server.url) as client:
        memory, key = kept(client, app), Keyspace(app, "fallback").key("prices/cup", "stale")
        await client.set(key, b'1 99999999999999\n"future"', ex=9)
        assert (await memory("cup")).age < 1
        await memory.keep("now", 0.0, ("cup",), {})
        assert (await memory("cup")).value == "now"
        ahead = str((await client.time())[0] * 1000 + 3_600_000)
        await memory._set(memory._key_of(("pot",), {}), 1, ahead, b'"asked for by the clock as it was"')
        assert await client.pttl(memory._key_of(("pot",), {})) <= 3_600_000


@pytest.mark.invariant(9)
async def test_an_entity_is_written_once_per_refresh(server: Server, app: str) -> None:
    """A thousand answers in one second are one write, of two calls; a cancelled or failed write is none."""
    clock = ManualClock()
    async with opened(server.url) as client:
        memory = kept(client, app, refresh=1.0, clock=clock)
        fallback = chain(memory, clock=clock)
        before = (await client.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0)
        for n in range(1000):
            await fallback.call(level_of(n), "cup")
        after = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
        assert after - before == 2  # one for the time, one to write
        write = asyncio.create_task(memory.keep("lost", 0.0, ("pot",), {}))
        await asyncio.sleep(0)
        write.cancel()
        await asyncio.gather(write, return_exceptions=True)
        await memory.keep("kept", 0.0, ("pot",), {})
        assert (await memory("pot")).value == "kept"
        clock.jump(1.0)
        await fallback.call(level_of("next"), "cup")
        assert (await memory("cup")).value == "next"
        heard = Recorder()
        awkward = chain(memory, on_event=heard)
        assert (await awkward.call(level_of(float("nan")), "nan")).source == "primary"
        assert heard.events == [CopyNotKept("prices", "copy", "ValueError")]


@pytest.mark.invariant(9)
async def test_this_process_remembers_a_bounded_number_of_writes(
    server: Server, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it knows of its own writes does not grow with the number of entities."""
    monkeypatch.setattr("patterns.resiliency.fallback.shared._REMEMBERED", 5)
    async with opened(server.url) as client:
        memory = kept(client, app, refresh=60.0)
        for n in range(20):
            await memory.keep(n, 0.0, (str(n),), {})
        assert len(memory._fed) == 5


# Faults


@pytest.mark.invariant(2)
@pytest.mark.fault("the primary is cancelled, or ends in a BaseException or a bug")
async def test_no_substitute_for_what_is_no_outage(ledger: Callable[..., Ledger]) -> None:
    """Every kind, two hundred times: the caller gets what was raised."""
    books = ledger(bound="the very error reaches the caller")
    naive = Ledger(books.pattern, books.fault)
    for book, make in ((books, Fallback), (naive, CatchesException)):
        for number, error in enumerate(NEVER * 10):
            level = scripted(then=returns(10))
            book.injected()
            got = await outcome_of(make("x", policy(), Level("copy", level)).call(scripted(fails(error))))
            book.acked(number)
            if got is error:
                book.effect(number)
    books.held("each error reached its caller; no level was called")
    assert naive.lost, "the variant held as well"
    books.naive(f"`except Exception`: {naive.lost} of {naive.faults} were answered with a substitute")


@pytest.mark.invariant(5)
@pytest.mark.fault("the cache is down, and 1,000 callers turn to the database it was shielding")
async def test_the_database_behind_a_cache_is_not_trampled(ledger: Callable[..., Ledger]) -> None:
    """Checkout, which needs the database too, goes on; without a limit it does not."""
    books = ledger(bound="10 of 1,000 in the database at once")
    most, orders_of = {}, {}
    for make in (Fallback, WithoutLimit):
        clock = ManualClock()
        load = 0
        peak = 0

        async def query(clock: ManualClock = clock) -> int:
            nonlocal load, peak
            load += 1
            peak = max(peak, load)
            try:
                await clock.sleep(
                    0.01 * max(1, -(-load // 20))
                )  # slower for each twenty that it has too many
                return 12
            finally:
                load -= 1

        levels = Level("database", query, limit=10), Level("default", level_of(0))
        fallback = make("prices", policy(), *levels, clock=clock)
        shoppers = [asyncio.create_task(fallback.call(scripted(fails(DOWN)))) for _ in range(1000)]
        if make is Fallback:
            books.injected(1000)
        await clock.advance(0)
        orders = [asyncio.create_task(order(query, clock)) for _ in range(50)]
        await clock.advance(30)
        placed = await asyncio.gather(*orders)
        if make is Fallback:
            for number, done in enumerate(placed):
                books.acked(number)
                if done:
                    books.effect(number)
        await asyncio.gather(*shoppers)
        most[make], orders_of[make] = peak, sum(placed)
    assert most[Fallback] <= 10 + 50, f"{most[Fallback]} queries at once"
    assert orders_of[WithoutLimit] < 50, "the test does not tell a level without a limit from one with it"
    books.held(
        f"{orders_of[Fallback]} of 50 orders placed; {most[Fallback]} queries at once, theirs included"
    )
    books.naive(f"no limit: {orders_of[WithoutLimit]} of 50 orders, {most[WithoutLimit]} queries at once")


@pytest.mark.invariant(5)
@pytest.mark.fault("callers cancelled while a level works for them")
async def test_a_thousand_cancelled_callers_leave_every_permit(
    ledger: Callable[..., Ledger], rng: random.Random
) -> None:
    """A thousand callers are cancelled at random steps; the level is free afterwards, and no task is left."""
    books = ledger(bound="the level is free again each time")
    naive = Ledger(books.pattern, books.fault)
    for book, make, calls in ((books, Fallback, 1000), (naive, ReturnsPermitsOnSuccess, 100)):
        level = Level("copy", scripted(then=hangs()), limit=10, timeout=3600)
        fallback = make("x", policy(deadline=3600), level)
        for number in range(calls):
            call = asyncio.create_task(fallback.call(scripted(fails(DOWN))))
            for _ in range(rng.randrange(1, 6)):
                await asyncio.sleep(0)
            book.injected()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            book.acked(number)
            if level.running == 0:
                book.effect(number)
    books.held("10 of 10 permits after 1,000 cancellations")
    assert naive.lost, "the variant held as well"
    books.naive(f"permits returned by answers only: after {naive.lost} of {naive.faults} one was missing")


@pytest.mark.invariant(4)
@pytest.mark.fault("the levels fail, too")
async def test_both_errors_are_shown(ledger: Callable[..., Ledger]) -> None:
    """The caller learns why the primary failed and why no level could help."""
    books = ledger(bound="the primary's error first, and as the cause")
    naive = Ledger(books.pattern, books.fault)
    for book, make in ((books, Fallback), (naive, RaisesTheLastError)):
        for number in range(100):
            own = ConnectionError(number)
            chained = make("x", policy(), Level("copy", scripted(fails(NoCopy()))))
            book.injected()
            got = await outcome_of(chained.call(scripted(fails(own))))
            book.acked(number)
            if isinstance(got, AllLevelsFailed) and got.primary is own is got.__cause__:
                book.effect(number)
    books.held("every error, the primary's first")
    assert naive.lost, "the variant held as well"
    books.naive(f"the last error only: {naive.lost} of {naive.faults} never saw the primary's error")


@pytest.mark.invariant(6)
@pytest.mark.fault("an outage that lasts longer than a copy may be old")
async def test_copies_end_with_their_max_age(ledger: Callable[..., Ledger]) -> None:
    """For an hour of outage, asked each minute: ten minutes of marked copies, then the error."""
    books = ledger(bound="no value older than max_age, each with its age")
    naive = Ledger(books.pattern, books.fault)
    for book, make in ((books, Fallback), (naive, ServesAnyAge)):
        clock = ManualClock()
        last: LastGood[int] = LastGood(key=lambda: 0, max_entries=1, clock=clock)
        fallback = make("prices", policy(), Level("copy", last, max_age=600.0), clock=clock)
        await fallback.call(scripted(returns(12)))
        for minute in range(1, 61):
            clock.jump(60)
            book.injected()
            got = await outcome_of(fallback.call(scripted(fails(DOWN))))
            book.acked(minute)
            marked = isinstance(got, Answer) and got.degraded and got.age == minute * 60
            if marked if minute <= 10 else isinstance(got, AllLevelsFailed):
                book.effect(minute)
    books.held("10 minutes of copies with their age, then the error")
    assert naive.lost, "the variant held as well"
    books.naive(f"no bound of age: {naive.lost} of {naive.faults} answers were too old")


@pytest.mark.invariant(9)
@pytest.mark.fault("Redis killed while answers are copied to it")
async def test_without_redis_the_primarys_answers_go_out(
    fresh_server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Fifty answers with Redis dead: all go out; it is left alone for a while, then used again."""
    books = ledger(bound="every answer of the primary goes out; 1 write tried per back_off")
    naive = Ledger(books.pattern, books.fault)
    for book, make in ((books, Fallback), (naive, MustKeep)):
        clock, heard = ManualClock(), Recorder()
        async with opened(fresh_server.url, connect_timeout=1) as client:
            memory = kept(client, f"{app}-{make.__name__}", clock=clock)
            fallback = chain(memory, make, clock=clock, on_event=heard)
            await fallback.call(level_of(0), "cup")
            fresh_server.kill()
            book.injected()
            for number in range(50):
                got = await outcome_of(fallback.call(level_of(number), "cup"))
                book.acked(number)
                if isinstance(got, Answer) and not got.degraded:
                    book.effect(number)
            lost = await outcome_of(fallback.call(scripted(fails(DOWN)), "cup"))
            assert isinstance(lost, AllLevelsFailed)
            assert isinstance(lost.exceptions[1], NoCopy)
            if make is Fallback:
                assert len(heard.of(CopyNotKept)) == 1
            fresh_server.restart()
            clock.jump(1.0)
            await fallback.call(level_of("back"), "cup")
            assert (await fallback.ask("copy", "cup")).value == "back"
    books.held("50 of 50 answers, one write tried, copies again after its return")
    assert naive.lost, "the variant held as well"
    books.naive(f"a copy that must be written: {naive.lost} of 50 answers were errors")


@pytest.mark.invariant(9)
@pytest.mark.fault("Redis paused (SIGSTOP) while answers are copied to it")
async def test_a_paused_redis_costs_one_timeout(
    fresh_server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """The first answer waits for `timeout`; the others, within `back_off`, do not wait at all."""
    timeout, naive_timeout = 0.2, 0.02
    books = ledger(within=timeout + 0.3, bound=f"{timeout} s for the first of 20 answers")
    waited = 0
    async with opened(fresh_server.url) as client:
        fallback = chain(kept(client, app, timeout=timeout, back_off=60.0))
        await fallback.call(level_of(0), "cup")
        fresh_server.stop()
        books.injected()
        for number in range(20):
            assert (await fallback.call(level_of(number), "cup")).value == number
            books.acked(number)
            books.effect(number)
        books.recovered()
        tries = NeverSpares("prices", client, app=app, key=str, ttl=9, refresh=0, timeout=naive_timeout)
        naive = chain(tries)
        for number in range(20):
            began = asyncio.get_running_loop().time()
            await naive.call(level_of(number), "cup")
            waited += asyncio.get_running_loop().time() - began >= naive_timeout
        fresh_server.cont()
    books.held("20 of 20 answers, one time-out in all")
    assert waited == 20, "the variant held as well"
    books.naive(f"Redis tried for each: {waited} of 20 answers waited for the time-out")


@pytest.mark.invariant(9)
@pytest.mark.fault("Redis and the primary away at the same time (SIGSTOP), 50 callers at once, twice")
async def test_readers_of_a_paused_redis_do_not_all_wait_for_it(
    fresh_server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """The first fifty wait once; of the next fifty one does, and the others go on at once."""
    books = ledger(bound="1 of 50 waits for Redis once it has failed")
    naive = Ledger(books.pattern, books.fault)
    async with opened(fresh_server.url, max_connections=60) as client:
        for book, kind in ((books, SharedLastGood), (naive, NeverSpares)):
            memory = kept(client, app, kind=kind, timeout=0.1)
            levels = Level("copy", memory, limit=50), Level("default", level_of(0))
            fallback = Fallback("prices", policy(), *levels)
            await kept(client, app, timeout=10).keep("well", 0.0, ("cup",), {})
            fresh_server.stop()
            book.injected()
            await asyncio.gather(*(fallback.call(scripted(fails(DOWN)), "cup") for _ in range(50)))
            answers = await asyncio.gather(*(fallback.call(scripted(fails(DOWN)), "cup") for _ in range(50)))
            assert {answer.source for answer in answers} == {"default"}
            waited = [str(answer.errors[1]) == "Redis did not answer: TimeoutError" for answer in answers]
            for number, each in enumerate(sorted(waited)):
                if number < 49:
                    book.acked(number)
                    if not each:
                        book.effect(number)
            fresh_server.cont()

            async def all_find_it(fallback: Fallback[Any] = fallback) -> bool:
                down = [fallback.call(scripted(fails(DOWN)), "cup") for _ in range(9)]
                return {answer.value for answer in await asyncio.gather(*down)} == {"well"}

            await eventually(all_find_it, within=10, what="all readers find the copy again")
    books.held("49 of 50 had the next level's answer at once; copies again after its return")
    assert naive.lost, "the variant held as well"
    books.naive(f"Redis tried by each: {naive.lost} of these 49 waited for the time-out")


@pytest.mark.invariant(9)
@pytest.mark.fault("answers reach Redis in another order than they were asked for")
async def test_late_answers_never_replace_later_ones(
    server: Server, app: str, ledger: Callable[..., Ledger], rng: random.Random
) -> None:
    """Thirty entities, ten answers each in random order: what stays is the one asked for last."""
    books = ledger(bound="the answer that was asked for last stays")
    naive = Ledger(books.pattern, books.fault)
    clock = ManualClock()
    clock.jump(100)

    async def one(kind: type[SharedLastGood[Any]], client: Any, entity: int, ages: list[int]) -> int:
        writers = [kept(client, f"{app}-{kind.__name__}", kind=kind, key=str, clock=clock) for _ in ages]
        for memory, age in zip(writers, ages, strict=True):  # each as from a process of its own
            await memory.keep(age, age * 10.0, (entity,), {})
        return int((await writers[0](entity)).value)

    async with opened(server.url) as client:
        for book, kind in ((books, SharedLastGood), (naive, LastWriterWins)):
            orders = [rng.sample(range(10), 10) for _ in range(30)]
            book.injected(300)
            stayed = await asyncio.gather(*(one(kind, client, n, ages) for n, ages in enumerate(orders)))
            for entity, age in enumerate(stayed):
                book.acked(entity)
                if age == 0:
                    book.effect(entity)
    books.held("30 of 30 copies are the latest answer")
    assert naive.lost, "the variant held as well"
    books.naive(f"a plain SET: {naive.lost} of 30 copies are an older answer")
