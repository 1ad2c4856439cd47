"""The proof of patterns/container/work_queue: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import psutil
import pytest
import yaml
from aiohttp import ClientSession, web
from hypothesis import given
from hypothesis import strategies as st

from patterns.clock import ManualClock
from patterns.container.work_queue import (
    ApplicationDown,
    ApplicationMissing,
    Ended,
    Folders,
    HeartbeatLost,
    HttpSource,
    ItemGivenUp,
    ItemRejected,
    ItemReturned,
    ItemTooLarge,
    ItemVanished,
    Job,
    Manager,
    Policy,
    Result,
    RoundFailed,
    Scaler,
    Scaling,
    SourceFailed,
    State,
    Status,
    WorkerManager,
    folder_source,
    items_key,
    job_id,
    launcher,
    redis_source,
)
from patterns.container.work_queue.local import Container, Local
from patterns.container.work_queue.metrics import metrics_app
from patterns.embedded import Cluster, Server
from patterns.events import Recorder
from patterns.keyspace import connect, opened
from patterns.serving import serving
from tests.container import work_queue_faults as faults
from tests.container import work_queue_naive as naive
from tests.container.work_queue_checks import (
    LOUD,
    NAMES,
    PICTURE,
    WORDS,
    Slow,
    Told,
    check_a_lost_lease_stops_the_application,
    check_a_timeout_kills_all,
    check_a_zombie_changes_nothing,
    check_any_crash_is_made_good,
    check_exchange,
    check_failures_end,
    check_many_managers_create_one_job,
    check_names_become_files,
    check_output_is_bounded,
    check_parallelism_holds,
    check_scaling,
    check_source_faults_stop_no_other,
    hanging,
    in_memory_queue_killed,
    list_on_a_lone_primary,
    reaped,
    simulated,
    troubled,
)
from tests.container.work_queue_ground import (
    QUICK,
    Plant,
    Shelf,
    Site,
    asked_over_http,
    body,
    container,
    drain,
    effects,
    key,
    listed,
    python,
    until_ended,
)
from tests.eventually import eventually
from tests.faults.leaks import immortal_keys, in_use
from tests.places import KINDS, Place

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.faults.ledger import Ledger
    from tests.faults.workers import Worker
    from tests.pods import Pods

PROGRAM = "tests.container.work_queue_processes"
HERE = Path(launcher.__file__).parent
# What sources have been seen to call their items.


# 1: reconciliation


@KINDS
@pytest.mark.invariant(1)
async def test_a_manager_may_die_at_any_step(place: Place) -> None:
    """Wherever a manager dies, the next one brings each item to an end, and none is run twice."""
    async with opened(place.url) as client:
        names = [f"item {number}" for number in range(8)]
        await check_any_crash_is_made_good(
            Plant(client, place.app, Shelf(names), Policy(parallelism=3, **QUICK))
        )
        assert not await immortal_keys(client, f"{place.app}:")


@pytest.mark.naive(1)
async def test_a_manager_that_remembers_runs_items_again(server: Server, app: str) -> None:
    """What is done is known in memory only, so that the next manager has everything done again."""
    async with opened(server.url) as client:
        plant = Plant(
            client, app, Shelf([f"item {number}" for number in range(8)]), Policy(parallelism=3, **QUICK)
        )
        plant.manager_of, plant.state_of = naive.InMemoryManager, naive.Forgetful
        with pytest.raises(AssertionError):
            await check_any_crash_is_made_good(plant)


@pytest.mark.slow
@pytest.mark.invariant(1)
@pytest.mark.fault("managers killed (SIGKILL) at each step of a round, one after the other")
async def test_killed_managers_lose_and_repeat_nothing(
    server: Server, app: str, spawn: Callable[..., Worker], ledger: Callable[..., Ledger]
) -> None:
    """Real processes: each step of the round kills one, and afterwards every item was done once."""
    books = ledger(bound="every step of the round")
    twin = books.without("a manager with its list in memory")
    for book, mode in ((books, "managers"), (twin, "managers-in-memory")):
        name = f"{app}-{mode}"
        async with opened(server.url) as client:
            program = spawn(PROGRAM, mode, server.url, name)
            killed = int((await program.said("killed", within=30)).split()[1])
            assert await program.ended(within=10) == 0
            book.injected(killed)
            found = await effects(client, name)
            for number in range(8):
                book.acked(f"item {number}")
            for item, count in found.items():
                book.effect(item, count)
    books.held("the next round compares the list with the state anew")


# 2: identity


@KINDS
@pytest.mark.invariant(2)
async def test_any_number_of_managers_creates_one_job(place: Place) -> None:
    """Each item gets one job from all managers together, and what is done is not listed into life again."""
    async with opened(place.url) as client:
        await check_many_managers_create_one_job(
            Plant(client, place.app, Shelf([f"item {n}" for n in range(20)]), Policy(parallelism=3, **QUICK))
        )


@pytest.mark.naive(2)
async def test_to_list_and_compare_is_a_race(server: Server, app: str) -> None:
    """Two managers both find that an item has no job yet."""
    async with opened(server.url) as client:
        plant = Plant(
            client, app, Shelf(["a", "b"]), Policy(parallelism=3, **QUICK), state_of=naive.ListsAndCompares
        )
        with pytest.raises(AssertionError, match="jobs for 2 items"):
            await check_many_managers_create_one_job(plant)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)


@pytest.mark.invariant(2)
@given(st.lists(TEXT, max_size=20))
def test_any_name_is_a_job_of_its_own(names: list[str]) -> None:
    """Whatever an item is called, its job is 32 safe characters, and no other name's."""
    check_names_become_files(job_id, names + NAMES)


@pytest.mark.invariant(2)
@given(TEXT, TEXT, TEXT)
def test_queue_and_item_do_not_run_into_one_another(queue: str, item: str, more: str) -> None:
    """A longer queue name and a shorter item are not the same job."""
    assert job_id(queue + more, item) != job_id(queue, more + item)


@pytest.mark.naive(2)
def test_a_name_is_no_path() -> None:
    """With the slashes replaced, two names are one file, and one of them is the folder above."""
    with pytest.raises(AssertionError):
        check_names_become_files(naive.path_of, NAMES)
    with pytest.raises(AssertionError, match="two names"):
        check_names_become_files(naive.path_of, ["a/b", "a_b"])


@pytest.mark.invariant(2, 6)
async def test_any_name_goes_through_http(server: Server, app: str) -> None:
    """A name arrives at the source as it was listed, though it be "..", and brings its own bytes."""
    async with opened(server.url) as client:
        where = items_key(app, "q")
        await client.hset(where, mapping={name: f"content of {name}" for name in NAMES})
        async with asked_over_http(redis_source(client, where)) as source:
            page = await source.page(None)
            assert sorted(page.items) == sorted(NAMES)
            for name in NAMES:
                assert await source.get(name) == f"content of {name}".encode()
            with pytest.raises(ItemVanished):
                await source.get("no such item")


async def test_a_folder_gives_nothing_from_outside(tmp_path: Path) -> None:
    """The folder source serves what is in it, and no link, no folder, nothing above."""
    shelf = tmp_path / "shelf"
    (shelf / "sub").mkdir(parents=True)
    (shelf / "sub" / "a b").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    (shelf / "link").symlink_to(tmp_path / "secret")
    async with asked_over_http(folder_source(shelf)) as source:
        assert (await source.page(None)).items == ["sub/a b"]
        assert await source.get("sub/a b") == b"inside"
        for name in (
            "../secret",
            "link",
            "sub",
            "..",
            "sub/../../secret",
            str(tmp_path / "secret"),
            "nul\0",
            "x" * 999,
        ):
            with pytest.raises(ItemVanished):
                await source.get(name)


# 3: parallelism


@KINDS
@pytest.mark.invariant(3)
async def test_all_workers_together_keep_to_the_limit(place: Place) -> None:
    """However many workers ask at one time, `parallelism` items run, and no fewer."""
    async with opened(place.url) as client:
        plant = Plant(
            client, place.app, Shelf([f"item {n}" for n in range(30)]), Policy(parallelism=3, **QUICK)
        )
        plant.application.turns = 40
        await check_parallelism_holds(plant)


@pytest.mark.naive(3)
async def test_to_count_and_then_take_is_a_race(server: Server, app: str) -> None:
    """Six workers all find that fewer than three items run."""
    async with opened(server.url) as client:
        plant = Plant(client, app, Shelf([f"item {n}" for n in range(30)]), Policy(parallelism=3, **QUICK))
        plant.state_of, plant.application.turns = naive.LooksThenTakes, 40
        with pytest.raises(AssertionError, match="at one time"):
            await check_parallelism_holds(plant)


@pytest.mark.invariant(3)
async def test_the_backlog_has_a_bound_and_the_source_holds_the_rest(server: Server, app: str) -> None:
    """At most `backlog` jobs wait in Redis; what is beyond gets one when there is room."""
    async with opened(server.url) as client:
        plant = Plant(
            client, app, Shelf([f"item {n}" for n in range(30)]), Policy(parallelism=3, backlog=7, **QUICK)
        )
        found = await plant.manager().round()
        assert (found.listed, found.created) == (30, 7)
        await until_ended(plant.manager(), [plant.worker()], plant.state(), 30)
        assert sum(plant.application.runs.values()) == 30


# 4: the application's contract


@pytest.mark.invariant(4)
async def test_an_application_sees_one_file_read_only(tmp_path: Path) -> None:
    """One file with the item's bytes and no right to write, which is gone afterwards."""
    text = """
import os, stat, sys
path = os.environ["WORK_ITEM_FILE"]
mode, folder = oct(stat.S_IMODE(os.stat(path).st_mode)), os.path.dirname(path)
print(mode, os.listdir(folder) == [os.environ["WORK_ITEM_ID"]])
sys.stdout.flush()
os.write(1, open(path, "rb").read())
"""
    async with container(tmp_path, *python(text)) as call:
        await eventually(call.ready, within=5)
        for number, content in enumerate([b"", b"nul \0 and \xff", b"x" * 100_000]):
            result = await call.run(job_id("q", str(number)), f"t{number}", content, 10)
            assert result.ok, result
            assert result.stdout.startswith("0o444 True") or len(content) > 16_384
            assert result.stdout.endswith(content[-1000:].decode(errors="replace"))
            assert not list((tmp_path / "items").iterdir())


@pytest.mark.invariant(4)
@pytest.mark.fault("the application hangs, and so does a process that it has started")
async def test_a_timeout_kills_the_whole_group(tmp_path: Path, ledger: Callable[..., Ledger]) -> None:
    """After its time is over, neither the application nor what it has started is there."""
    books = ledger(bound="no process is left")
    async with container(tmp_path, *hanging(tmp_path)) as call:
        await eventually(call.ready, within=5)
        books.injected()
        books.failed("job")
        await check_a_timeout_kills_all(call, tmp_path)
    with pytest.raises(AssertionError, match="are gone"):
        await check_a_timeout_kills_all(naive.RunsDirectly(tmp_path, *hanging(tmp_path)), tmp_path)
    books.held("the launcher kills the process group")
    books.naive("subprocess.run(timeout=): 1 of 2 processes was left running")


@pytest.mark.invariant(4)
async def test_what_an_application_says_is_kept_within_a_bound(tmp_path: Path, capfd: Any) -> None:
    """The last 16 KiB are kept, and it is never held up by what it wrote before."""
    async with container(tmp_path, *LOUD) as call:
        await eventually(call.ready, within=5)
        await check_output_is_bounded(call)
    assert len(capfd.readouterr().out) > 2_000_000  # all of it went on to the container's log


@pytest.mark.naive(4)
async def test_all_that_an_application_says_is_too_much(tmp_path: Path) -> None:
    """Kept whole, a chatty application fills the memory, and the state."""
    with pytest.raises(AssertionError):
        await check_output_is_bounded(naive.RunsDirectly(tmp_path, *LOUD))


SLOW = {**QUICK, "attempts": 3, "backoff": 100.0, "backoff_cap": 1000.0}


@KINDS
@pytest.mark.invariant(4)
async def test_a_failure_is_tried_again_and_then_given_up(place: Place) -> None:
    """Three attempts with a doubled pause between them, and the report of the last is kept."""
    async with opened(place.url) as client:
        plant = Plant(client, place.app, Shelf(["bad", "good"]), Policy(parallelism=2, **SLOW))
        await check_failures_end(plant)
        found = await plant.manager().round()
        assert found.created == 0
        assert await plant.state().retry("bad")
        assert not await plant.state().retry("good")
        assert (await plant.manager().round()).created == 1


@pytest.mark.naive(4)
async def test_to_try_again_at_once_is_to_try_for_ever(server: Server, app: str) -> None:
    """Without a count and a pause one bad item keeps a worker busy for good."""
    async with opened(server.url) as client:
        plant = Plant(
            client, app, Shelf(["bad", "good"]), Policy(parallelism=2, **SLOW), state_of=naive.AgainAtOnce
        )
        busy = asyncio.create_task(check_failures_end(plant))
        await eventually(lambda: plant.application.runs["bad"] > 20 or busy.done(), within=10)
        assert not busy.done()
        busy.cancel()
        await asyncio.wait({busy})


async def test_a_command_that_cannot_be_started_is_a_failed_attempt(tmp_path: Path) -> None:
    """The reason says so, and the launcher goes on."""
    async with container(tmp_path, "/no/such/program") as call:
        await eventually(call.ready, within=5)
        for token in ("t1", "t2"):
            result = await call.run("job", token, b"", 10)
            assert result.code is None
            assert "No such file" in result.reason


async def test_a_process_that_left_the_group_holds_nobody_up(tmp_path: Path) -> None:
    """It keeps the pipe open in a session of its own, and the result comes all the same."""
    command = ("/bin/sh", "-c", f"setsid sleep 60 & echo $! > {tmp_path}/pid; echo said")
    async with container(tmp_path, *command) as call:
        await eventually(call.ready, within=5)
        result = await call.run("job", "t", b"", 30)
        assert result.ok
        assert result.stdout == "said\n"
    left = psutil.Process(int((tmp_path / "pid").read_text()))
    for child in [*left.children(), left]:
        child.kill()


# 5: leases


@KINDS
@pytest.mark.invariant(5)
async def test_a_zombie_neither_takes_nor_turns_an_item(place: Place) -> None:
    """The item of a silent worker is given out once, and its late reports change nothing."""
    async with opened(place.url) as client:
        await check_a_zombie_changes_nothing(
            Plant(client, place.app, Shelf(["item"]), Policy(parallelism=3, **QUICK))
        )


@pytest.mark.naive(5)
async def test_a_report_without_its_lease_turns_done_into_failed(server: Server, app: str) -> None:
    """Whoever reports last decides."""
    async with opened(server.url) as client:
        plant = Plant(
            client, app, Shelf(["item"]), Policy(parallelism=3, **QUICK), state_of=naive.AnybodyReports
        )
        with pytest.raises(AssertionError):
            await check_a_zombie_changes_nothing(plant)


@KINDS
@pytest.mark.invariant(5)
async def test_a_late_completion_counts_once(place: Place) -> None:
    """Done by one that had lost its lease is done: its successor is told to stop, and finds it ended."""
    async with opened(place.url) as client:
        plant = Plant(client, place.app, Shelf(["item"]), Policy(parallelism=3, **QUICK))
        state = plant.state()
        await plant.manager().round()
        first = await state.claim("t-first")
        await reaped(client, place.app, [plant.manager()])
        second = await state.claim("t-second")
        assert first is not None
        assert second is not None
        assert await state.done(first) is Ended.LATE
        assert not await state.renew(second)
        assert await state.failed(second, {}) is Ended.OVER
        assert await state.done(second) is Ended.OVER
        assert (await state.status()).done == 1
        assert (await plant.manager().round()).created == 0


@pytest.mark.invariant(5)
async def test_an_item_whose_workers_all_fall_silent_is_given_up(server: Server, app: str) -> None:
    """A lost lease is an attempt: after the last one the item has failed, and the event says so."""
    heard = Recorder()
    async with opened(server.url) as client:
        plant = Plant(client, app, Shelf(["poison"]), Policy(parallelism=1, attempts=2, **QUICK))
        manager = plant.manager(on_event=heard)
        await manager.round()
        for number in range(2):
            assert await plant.state().claim(f"t-{number}")
            await reaped(client, app, [manager])
        assert await plant.state().claim("t-9") is None
        (failure,) = await plant.state().failures()
        assert (failure.item, failure.report["reason"]) == ("poison", "no heartbeat")
        assert heard.of(HeartbeatLost) == [HeartbeatLost("q", "poison")]
        assert heard.of(ItemGivenUp) == [ItemGivenUp("q", "poison")]


LOST = [
    ([False], 3),
    ([True, True, False], 9),
    ([OSError("silence")] * 50, 9),
    ([True, *[OSError()] * 50], 12),
]


@pytest.mark.invariant(5)
@pytest.mark.parametrize(("renewals", "stopped_at"), LOST)
async def test_a_worker_without_its_lease_stops(renewals: list[Any], stopped_at: float) -> None:
    """Told that it is another's, or told nothing until it would have run out, it stops its application."""
    await check_a_lost_lease_stops_the_application(WorkerManager, list(renewals), stopped_at)


@pytest.mark.naive(5)
async def test_a_worker_that_does_not_listen_goes_on() -> None:
    """It runs beside its successor to the end."""
    with pytest.raises(AssertionError):
        await check_a_lost_lease_stops_the_application(naive.DeafWorker, [False], 3)


@pytest.mark.invariant(5)
async def test_an_item_longer_than_its_lease_is_kept_by_heartbeats() -> None:
    """A lease of 9 s, an item of 100 s, and a heartbeat that failed twice: done at its first attempt."""
    clock, heard = ManualClock(), Recorder()
    state, application = Told(), Slow(clock, 100)
    state.renewals = [True, OSError(), OSError(), True]
    worker = WorkerManager("w", state, Shelf(["item"]), application, clock=clock, on_event=heard)  # type: ignore[arg-type]  # Told is enough of a State
    step = asyncio.create_task(worker.step())
    await clock.advance(101)
    assert await step
    assert state.reports == ["done"]
    assert heard.names() == ["ItemStarted", "HeartbeatFailed", "HeartbeatFailed", "ItemDone"]


@pytest.mark.invariant(5)
@pytest.mark.parametrize(("seconds", "report"), [(5, "done"), (50, "release")])
async def test_a_worker_that_is_told_to_end_finishes_or_gives_back(seconds: float, report: str) -> None:
    """Within the grace the item is finished; after it the application is stopped, and no attempt counted."""
    clock = ManualClock()
    state, application = Told(), Slow(clock, seconds)
    worker = WorkerManager("w", state, Shelf(["item"]), application, clock=clock, grace=10, poll=0.1)  # type: ignore[arg-type]  # Told is enough of a State
    running = asyncio.create_task(worker.run())
    await clock.advance(1)
    worker.stop()
    worker.stop()
    await clock.advance(11)
    await running
    assert state.reports == [report]


@KINDS
@pytest.mark.invariant(5)
async def test_a_job_given_back_costs_no_attempt(place: Place) -> None:
    """Released after the claim, it is at its first attempt again, and nobody holds it."""
    async with opened(place.url) as client:
        plant = Plant(client, place.app, Shelf(["item"]), Policy(parallelism=1, **QUICK))
        await plant.manager().round()
        for number in range(3):
            job = await plant.state().claim(f"t-{number}")
            assert job is not None
            assert job.attempt == 1
            assert await plant.state().release(job)
            assert not await plant.state().release(job)


class Failing:
    """An application that fails at once."""

    def ready(self) -> bool:
        return True

    async def run(self, job: str, token: str, content: bytes, limit: float) -> Result:
        return Result(3, "exit code 3", seconds=1.0)


class HearsLate(Told):
    """A state to which the first report of a failure does not get through."""

    async def failed(self, job: Job, report: dict[str, Any], **options: Any) -> Ended:  # type: ignore[override]  # a Told says less
        self.reports.append("failed" if self.reports else "unheard")
        if self.reports == ["unheard"]:
            raise OSError
        return Ended.AGAIN


@pytest.mark.invariant(4)
async def test_an_attempt_that_failed_is_counted_though_the_grace_ends_before_its_report() -> None:
    """What failed before the end is told as failed once more at the end, and not given back unharmed."""
    clock, heard = ManualClock(), Recorder()
    state = HearsLate()
    options: dict[str, Any] = {"clock": clock, "grace": 1, "poll": 100.0, "on_event": heard}
    worker = WorkerManager("w", state, Shelf(["item"]), Failing(), **options)  # type: ignore[arg-type]  # Told is enough of a State
    running = asyncio.create_task(worker.run())
    await clock.advance(1)
    worker.stop()
    await clock.advance(2)
    await running
    assert state.reports == ["unheard", "failed"]
    assert heard.names() == ["ItemStarted", "RequestFailed", "ItemFailed"]


@pytest.mark.invariant(5)
async def test_a_job_that_could_not_be_given_back_is_not_called_returned() -> None:
    """At the end of the grace the job is another's: the worker says that it is lost."""
    clock, heard = ManualClock(), Recorder()
    state = Told()
    state.releases = False
    options: dict[str, Any] = {"clock": clock, "grace": 1, "poll": 0.1, "on_event": heard}
    worker = WorkerManager("w", state, Shelf(["item"]), Slow(clock, 50), **options)  # type: ignore[arg-type]  # Told is enough of a State
    running = asyncio.create_task(worker.run())
    await clock.advance(1)
    worker.stop()
    await clock.advance(2)
    await running
    assert state.reports == ["release"]
    assert heard.names() == ["ItemStarted", "ItemLost"]


@KINDS
async def test_every_key_runs_out_though_no_manager_comes_again(place: Place) -> None:
    """Keys that workers make after the last round have a time to live, too."""
    async with opened(place.url) as client:
        plant = Plant(client, place.app, Shelf(["one", "two", "three"]), Policy(parallelism=3, **QUICK))
        await plant.manager().round()
        state = plant.state()
        assert not await immortal_keys(client, f"{place.app}:")
        jobs = [job for number in range(3) if (job := await state.claim(f"t-{number}"))]
        assert not await immortal_keys(client, f"{place.app}:")
        one, two, three = jobs
        assert await state.done(one) is Ended.DONE
        assert await state.failed(two, {}, final=True) is Ended.FAILED
        assert await state.release(three)
        assert not await immortal_keys(client, f"{place.app}:")
        await state.retry(two.item)
        await state.listed(60)
        assert not await immortal_keys(client, f"{place.app}:")


# the application's container dies


async def test_a_call_that_nobody_has_taken_is_withdrawn(tmp_path: Path) -> None:
    """The application container is gone before it began: the item was not attempted."""
    async with container(tmp_path, "/bin/true") as call:
        await eventually(call.ready, within=5)
    assert not call.ready()
    with pytest.raises(ApplicationDown):
        await call.run("job", "t", b"", 10)
    assert {path.name for path in (tmp_path / "calls").iterdir()} == {"alive"}


async def test_a_cancelled_call_ends_the_application(tmp_path: Path) -> None:
    """Withdrawn while it runs, it is killed, and the next call is answered."""
    async with container(tmp_path, "/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60") as call:
        await eventually(call.ready, within=5)
        running = asyncio.create_task(call.run("job", "t", b"", 60))
        await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), within=5)
        running.cancel()
        await asyncio.wait({running})
        pid = int((tmp_path / "pid").read_text())
        await eventually(lambda: not psutil.pid_exists(pid), within=2)


async def test_a_new_worker_manager_withdraws_what_the_old_one_left(tmp_path: Path) -> None:
    """A call and an item of one that was killed are taken away, and what runs for it is ended."""
    async with container(tmp_path, "/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60") as call:
        folders = Folders(tmp_path / "calls", tmp_path / "items")
        (tmp_path / "items" / "old").write_bytes(b"")
        folders.put(folders.call, {"job": "old", "token": "t", "file": "/x", "timeout": 60})
        await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), within=5)
        call.clear()
        pid = int((tmp_path / "pid").read_text())
        await eventually(lambda: not psutil.pid_exists(pid), within=2)
        assert not list((tmp_path / "items").iterdir())


async def test_only_one_launcher_answers(tmp_path: Path) -> None:
    """A second one in the same folder is refused by the lock."""
    async with container(tmp_path, "/bin/true") as call:
        await eventually(call.ready, within=5)
        with pytest.raises(BlockingIOError):
            Folders(tmp_path / "calls", tmp_path / "items").hold()


async def test_a_worker_without_an_application_takes_nothing() -> None:
    """It says so once, and claims no item until there is one."""
    clock, heard = ManualClock(), Recorder()
    state, application = Told(), Slow(clock, 1)
    up = [False]
    application.ready = lambda: up[0]  # type: ignore[method-assign]  # it comes later
    worker = WorkerManager("w", state, Shelf(["item"]), application, clock=clock, on_event=heard)  # type: ignore[arg-type]  # Told is enough of a State
    running = asyncio.create_task(worker.run())
    await clock.advance(5)
    assert heard.events == [ApplicationMissing("w")]
    up[0] = True
    await clock.advance(2)
    assert state.reports == ["done"]
    worker.stop()
    await clock.advance(1)
    await running


# 6: sources


@pytest.mark.invariant(6)
@pytest.mark.naive(6)
@pytest.mark.fault("source: 500, hangs, no JSON, pages that do not end, names twice or no names, items gone")
async def test_a_troubled_source_stops_no_good_item(
    server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Eleven bad answers and seven bad entries later each good item has been done once, at one attempt."""
    books = ledger(bound="each good item at its first attempt")
    async with opened(server.url) as client:
        site = troubled()
        plant = Plant(client, app, None, Policy(parallelism=2, **QUICK))
        bad = len(site.lists) - 1
        good = ["a", "b", "c", "d", "moody"]
        heard = await check_source_faults_stop_no_other(plant, site, good)
        books.injected(bad)
        for name in good:
            books.acked(name)
            books.effect(name, plant.application.runs[name])
        assert len(heard.of(RoundFailed)) >= 8
        assert {event.reason for event in heard.of(ItemRejected)} >= {
            "int instead of text",
            "not text that UTF-8 can hold",
        }
        returned = {event.item for event in heard.of(ItemReturned)}
        assert {"gone", "moody"} <= returned <= {"gone", *good}  # on a busy machine any answer may be late
        assert [failure.item for failure in await plant.state().failures()] == ["big"]
        status = await plant.state().status()
        assert (status.done, status.running) == (5, 0)
        twice = Policy(parallelism=2, attempts=2, **QUICK)
        second = Plant(client, f"{app}-naive", None, twice, worker_of=naive.GivesUp)
        with pytest.raises(AssertionError):
            await check_source_faults_stop_no_other(second, troubled(), good, within=2)
        failures = [failure.item for failure in await second.state().failures()]
        assert "moody" in failures
        books.held("a round that fails is followed by the next; an item that cannot be had is given back")
        books.naive(f"a failed GET counted as a failed attempt: gave up on {' and '.join(failures)}")


async def test_pages_that_change_between_two_requests_are_made_good_by_the_next_round(
    server: Server, app: str
) -> None:
    """An item that slipped from one page to another was not seen, or twice: it is done once all the same."""
    async with opened(server.url) as client:
        site = Site(
            [
                listed(["a", "b"], next="2"),
                listed(["b", "d"]),  # "a" was taken away, and "c" slipped to the first page
                listed(["b", "c"], next="2"),
                listed(["d"]),
            ],
            {name: name.encode() for name in "abcd"},
        )
        plant = Plant(client, app, None, Policy(parallelism=2, **QUICK))
        async with asked_over_http(site.app()) as source:
            plant.source = source
            for created in (3, 1):
                assert (await plant.manager().round()).created == created
                await drain(plant.worker())
        assert plant.application.runs == {"a": 1, "b": 1, "c": 1, "d": 1}


async def test_a_source_that_cannot_be_reached_says_so() -> None:
    """Refused, redirected, answered too long: each is SourceFailed or ItemTooLarge, with what was asked."""
    async with ClientSession() as session:
        with pytest.raises(SourceFailed, match="Connect"):
            await HttpSource("http://127.0.0.1:9", session).page(None)
    site = Site([body("", 302)], {"big": b"x" * 2000, "away": lambda _: web.HTTPFound("http://127.0.0.1:9/")})
    async with asked_over_http(site.app(), largest_item=1000) as source:
        with pytest.raises(SourceFailed, match="302"):
            await source.page(None)
        with pytest.raises(ItemTooLarge, match="1000"):
            await source.get("big")


@pytest.mark.invariant(1)
async def test_the_state_forgets_what_is_not_listed_any_more(server: Server, app: str) -> None:
    """Done items that the source has dropped leave the state after `keep`; listed ones stay for ever."""
    async with opened(server.url) as client:
        source = Shelf(["stays", "goes"])
        plant = Plant(client, app, source, Policy(parallelism=2, **QUICK))
        await until_ended(plant.manager(), [plant.worker()], plant.state(), 2)
        source.items = ["stays"]
        old = {job_id("q", name): 1 for name in ("stays", "goes")}
        await client.zadd(key(app, "ended"), old)  # long ago
        await client.hset(key(app, "counts"), "listed", 1)  # and nobody has listed since
        await plant.manager().round()
        assert await client.zcard(key(app, "ended")) == 2  # one item may have slipped a page
        await plant.manager().round()
        assert await client.zrange(key(app, "ended"), 0, -1) == [job_id("q", "stays").encode()]


# 7: exchange


@pytest.mark.invariant(7)
@pytest.mark.parametrize("kind", ["folder", "redis"])
@pytest.mark.parametrize("command", [WORDS, PICTURE], ids=["words", "picture"])
async def test_sources_and_applications_are_exchanged(
    kind: str,
    command: tuple[str, ...],
    server: Server,
    app: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two sources and two applications, unmodified, under the same manager and worker."""
    await check_exchange(Manager, kind, command, server.url, app, tmp_path, monkeypatch)


@pytest.mark.naive(7)
async def test_a_manager_that_knows_its_source_knows_no_other(
    server: Server, app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lists the folder itself, and finds nothing when the items are elsewhere."""
    monkeypatch.setenv("FOLDER", str(tmp_path))
    with pytest.raises(AssertionError):
        await check_exchange(naive.KnowsFolders, "redis", WORDS, server.url, app, tmp_path, monkeypatch)


# 8: scaling


@pytest.mark.invariant(8)
def test_the_scaling_rule_comes_to_rest(rng: random.Random) -> None:
    """Under a steady load the number of workers settles above arrival rate times service time."""
    check_scaling(Scaler, rng)


@pytest.mark.naive(8)
def test_scaling_by_backlog_swings(rng: random.Random) -> None:
    """Workers who follow the backlog come when it is gone, and go when it is back."""
    with pytest.raises(AssertionError, match="changes in 5 minutes"):
        check_scaling(naive.ByBacklog, rng)


@pytest.mark.invariant(8)
def test_the_backlog_is_bounded_if_and_only_if_workers_exceed_the_load(rng: random.Random) -> None:
    """4 items a second of 1.5 s each: 7 workers hold the queue, 5 do not."""
    held = simulated(lambda *_: 7, [4.0] * 10, 1.5, rng, start=7)[1]
    lost = simulated(lambda *_: 5, [4.0] * 10, 1.5, rng, start=5)[1]
    assert max(held) < 10
    assert lost[-1] > 300


@pytest.mark.invariant(8)
def test_the_scaling_rule_follows_the_load_up_at_once_and_down_slowly(rng: random.Random) -> None:
    """Tripled, the load has its workers within two minutes; gone, they leave after `settle`."""
    scaler = Scaler(Scaling(most=50, settle=120, memory=60, drain=60))
    counts, waiting = simulated(scaler.workers, [2.0] * 8 + [6.0] * 8 + [0.0] * 8, 1.5, rng)
    assert 3 < counts[470] <= 6
    assert counts[480 + 120] >= 9
    assert waiting[950] < 20
    assert counts[480 * 2 + 60] >= 9
    assert counts[-1] == 1


def test_the_scaling_rule_starts_from_nothing_and_outlives_an_amnesia() -> None:
    """With no rates known one worker is wanted where something waits; counts that go back are passed over."""
    scaler = Scaler(Scaling(most=5, least=0))
    empty = Status(0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)
    assert scaler.workers(empty, 0) == 0
    assert scaler.workers(Status(9, 0, 0, 0, 0, 9, 0, 0.0, 0.0), 1) == 1
    assert scaler.workers(Status(9, 0, 1, 0, 0, 900, 50, 500.0, 0.0), 2) == 5
    assert scaler.workers(Status(9, 0, 1, 0, 0, 1, 0, 0.0, 0.0), 3) == 5


async def test_the_manager_exposes_what_an_autoscaler_asks_for(server: Server, app: str) -> None:
    """Backlog, states and wanted workers in Prometheus text; 503 while Redis is silent."""
    async with opened(server.url) as client:
        plant = Plant(client, app, Shelf(["a", "b"]), Policy(parallelism=2, **QUICK))
        await plant.manager().round()
        async with (
            serving(metrics_app(plant.state(), Scaler(Scaling(most=5))), grace=0.1) as served,
            ClientSession() as session,
        ):
            async with session.get(f"{served.url}/metrics") as answer:
                text = await answer.text()
            assert 'work_queue_items{queue="q",state="ready"} 2.0' in text
            assert 'work_queue_workers_wanted{queue="q"} 1.0' in text
            async with session.get(f"{served.url}/status") as answer:
                assert (await answer.json())["ready"] == 2
            async with session.get(f"{served.url}/livez") as answer:
                assert await answer.text() == "alive"
    async with opened("redis://127.0.0.1:9") as nobody:
        state = State("q", nobody, app=app)
        async with (
            serving(metrics_app(state, Scaler(Scaling(most=5))), grace=0.1) as served,
            ClientSession() as session,
            session.get(f"{served.url}/metrics") as answer,
        ):
            assert answer.status == 503


# what is done to all of it together


@pytest.mark.slow
@pytest.mark.invariant(1, 5)
@pytest.mark.fault("20 workers killed (SIGKILL) in their items, before or after the effect, over 5,000 items")
async def test_killed_workers_lose_no_item(
    server: Server, app: str, spawn: Callable[..., Worker], ledger: Callable[..., Ledger]
) -> None:
    """Real processes: each item is done, and at most as many twice as workers were killed."""
    books = ledger(duplicated=20, bound="one item in hand for each worker")
    naive_books = books.without("done is said before it is done")
    await faults.workers_killed(spawn, server.url, app, books, mode="workers", jobs=5_000, every=250)
    await faults.workers_killed(
        spawn, server.url, f"{app}-naive", naive_books, mode="workers-done-first", jobs=100, every=5
    )
    books.held("the lease runs out, and the item is tried again")


@pytest.mark.slow
@pytest.mark.invariant(5)
@pytest.mark.fault("a worker stopped (SIGSTOP) in its item for longer than its lease, five times")
async def test_a_paused_worker_does_an_item_twice_and_no_more(
    server: Server, app: str, spawn: Callable[..., Worker], ledger: Callable[..., Ledger]
) -> None:
    """Its successor has done the item; when it goes on it finds that out, and says nothing that counts."""
    books = ledger(duplicated=5, bound="one run too many for each pause")
    await faults.worker_paused(spawn, server.url, app, books)
    books.held("the item is given to another; what the paused one reports is over")
    async with opened(server.url) as client:
        plant = Plant(
            client,
            f"{app}-naive",
            Shelf(["item"]),
            Policy(parallelism=3, **QUICK),
            state_of=naive.AnybodyReports,
        )
        with pytest.raises(AssertionError):
            await check_a_zombie_changes_nothing(plant)
        failed = len(await client.hkeys(key(f"{app}-naive", "failed")))
        books.naive(f"reports taken from anybody: {failed} of 1 items turned from done to failed")


@KINDS
@pytest.mark.slow
@pytest.mark.fault("every connection to Redis reset (RST) every 200 ms")
async def test_resets_cost_nothing(place: Place, ledger: Callable[..., Ledger]) -> None:
    """The workers go on by themselves, and each item is done once."""
    books = ledger(duplicated=0, within=20, bound="all done")
    async with place.site(connect) as lines, opened(place.url) as client:
        await faults.connections_reset(
            lines, client, place.app, books, books.without("LPOP, and again on an error")
        )
        assert not in_use(lines.client)
    books.held("a claim asks again with its token; a report may come twice")


@KINDS
@pytest.mark.slow
@pytest.mark.fault("replies of Redis lost, whatever was asked, and the connection reset")
async def test_a_lost_reply_changes_nothing(place: Place, ledger: Callable[..., Ledger]) -> None:
    """Each script may be sent again: no item is left behind, and none is done twice."""
    books = ledger(bound="all done, each once")
    async with place.site(connect) as lines:
        await faults.replies_lost(lines, place.app, books, books.without("LPOP, and again on an error"))
    books.held("every transition is one script that may run twice")


@pytest.mark.slow
@pytest.mark.fault("server killed (SIGKILL) and restarted with its log (appendfsync always)")
async def test_a_server_that_comes_back_knows_all(app: str, ledger: Callable[..., Ledger]) -> None:
    """Nothing is lost, and done again is only what was in hand: a lost reply may let a lease run out."""
    books = ledger(duplicated=6, within=20, bound="at most the items in hand twice")
    with Server("--appendonly", "yes", "--appendfsync", "always") as server:
        await faults.server_restarted(server, app, books)
    with Server() as server:
        await faults.popped_and_killed(server, f"{app}-naive", books.without("a list in Redis, no log"))
    books.held("workers and manager go on where it was")


@pytest.mark.slow
@pytest.mark.fault("server killed (SIGKILL) and restarted without its memory (no AOF)")
async def test_a_server_that_has_forgotten_all_costs_work_and_no_item(
    app: str, ledger: Callable[..., Ledger]
) -> None:
    """The source still lists every item: what was done is done again, and nothing is left out."""
    books = ledger(duplicated=900, within=20, bound="what was done before each of the three kills")
    with Server("--save", "") as server:
        await faults.server_restarted(server, app, books)
        await faults.popped_and_killed(server, f"{app}-naive", books.without("a list in Redis"))
    books.held("the source is the truth: no item is lost, what was done is done again")


@pytest.mark.slow
@pytest.mark.fault("the primary of the queue's slot killed (SIGKILL) in a 3+3 cluster")
async def test_a_failover_costs_work_and_no_item(app: str, ledger: Callable[..., Ledger]) -> None:
    """What the new primary has not heard of is compared with the source again; every item is done."""
    books = ledger(duplicated=300, within=30, bound="no item left out")
    names = [f"item {number}" for number in range(300)]
    with Cluster("--cluster-node-timeout", "500") as own:
        async with opened(own.url) as client, faults.at_work(client, app, names) as plant:
            plant.application.turns = 12
            await eventually(lambda: len(plant.application.runs) > 100, within=10)
            own.primary_of(key(app, "rules")).kill()
            books.injected()
            await faults.all_done(plant.state(), len(names), within=30)
            books.recovered()
        faults.enter(books, names, plant.application.runs)
    books.held("the manager compares with the source again")
    books.naive(await asyncio.to_thread(list_on_a_lone_primary))


# processes and Pods


@pytest.mark.slow
@pytest.mark.invariant(1, 5, 7)
@pytest.mark.fault("local processes: manager, worker-manager and application container killed in turn")
async def test_every_container_may_be_killed(
    server: Server, tmp_path: Path, ledger: Callable[..., Ledger]
) -> None:
    """Each is started again, as by a kubelet, and every item ends done."""
    books = ledger(duplicated=9, bound="all done")
    shelf, out = tmp_path / "shelf", tmp_path / "out"
    shelf.mkdir()
    out.mkdir()
    names = [f"letter {number}" for number in range(24)]
    for name in names:
        (shelf / name).write_text(name)
    ran = tmp_path / "ran"
    command = (
        "/bin/sh",
        "-c",
        f'printf "%s\\n" "$(cat "$WORK_ITEM_FILE")" >> {ran}; sleep 0.05;'
        f'cp "$WORK_ITEM_FILE" {out}/$WORK_ITEM_ID',
    )
    settings = {
        "FOLDER": shelf,
        "PARALLELISM": 4,
        "LEASE": 1,
        "PERIOD": 0.1,
        "BACKOFF": 0.05,
        "ATTEMPTS": 9,
        "APP": tmp_path.name,
    }
    async with opened(server.url) as client:
        state = State("items", client, app=tmp_path.name)
        async with Local(tmp_path / "pods", command, server.url, settings=settings) as local:
            for name in ("application-1", "worker-2", "manager"):
                each = local.containers[name]
                before = (await state.status()).done
                await eventually(partial(getattr, each, "pid"), within=20)

                async def goes_on(before: int = before) -> bool:
                    return (await state.status()).done > before

                await eventually(goes_on, within=20)
                pid = local.kill(name)
                books.injected()

                def restarted(each: Container = each, pid: int = pid) -> bool:
                    return each.pid not in {0, pid}

                await eventually(restarted, within=10)
                assert each.codes == [-9]
            await faults.all_done(state, len(names))
        assert all(code in {0, -9, -15} for each in local.containers.values() for code in each.codes), (
            local.containers
        )
        runs = Counter(ran.read_text().split("\n")[:-1])
        faults.enter(books, names, runs)
        assert {path.name for path in out.iterdir()} == {job_id("items", name) for name in names}
    books.held("leases run out, calls are answered as interrupted, the next round compares")
    books.naive(in_memory_queue_killed(names))


@pytest.mark.containers
@pytest.mark.slow
@pytest.mark.invariant(1, 4, 5)
async def test_the_pods_keep_what_the_processes_promise(pods: Pods, server: Server, app: str) -> None:
    """Two Pods from the manifest; the application and the manager are killed, and every item is done."""
    config = {
        "REDIS_URL": server.url,
        "APP": app,
        "SOURCE_PORT": (source := pods.free_port()),
        "SOURCE_URL": f"http://127.0.0.1:{source}",
        "MANAGER_PORT": (port := pods.free_port()),
        "LEASE": 1,
        "PERIOD": 0.2,
        "BACKOFF": 0.1,
    }
    async with opened(server.url) as client:
        where = items_key(app, "letters")
        await client.hset(where, mapping={"hello": b"hello world\n", "../up": b"a b c"})
        state = State("letters", client, app=app)
        slow = [
            "/bin/sh",
            "-c",
            'grep -q slow "$WORK_ITEM_FILE" && [ ! -e /calls/once ] && '
            "touch /calls/once && echo begun && sleep 60; "
            'echo x 2>/dev/null > "$WORK_ITEM_FILE"; exec python3 /app/count_words.py',
        ]

        def change(documents: list[dict[str, Any]]) -> None:
            documents[1]["spec"]["containers"][1]["args"] = slow

        with pods.played("container/work_queue", config=config, change=change) as pod:
            await faults.all_done(state, 2, within=40)
            assert '{"lines": 1, "words": 2, "bytes": 12}' in pod.text("application")
            manager = pod.kill("manager")
            await client.hset(where, "slow", b"slow and steady")

            async def running() -> bool:
                return (await state.status()).running == 1

            await eventually(running, within=30)
            assert pod.pid("manager") not in {0, manager}
            await eventually(lambda: "begun" in pod.text("application"), within=20)
            application = pod.kill("application")
            await faults.all_done(state, 3, within=30)
            assert pod.pid("application") not in {0, application}
            assert (pod.restarts("manager"), pod.restarts("application"), pod.restarts("worker")) == (1, 1, 0)
            assert '{"lines": 0, "words": 3, "bytes": 15}' in pod.text("application")
            assert "reason='interrupted'" in pod.text("worker")
            async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                assert 'work_queue_items{queue="letters",state="done"} 3.0' in await answer.text()


def test_the_deployment_is_what_kubernetes_takes() -> None:
    """Service, Deployment and autoscaler are valid, and the worker is the one of pod.yaml."""
    documents = list(yaml.safe_load_all((HERE / "deployment.yaml").read_text()))
    for document in documents:
        kubernetes_validate.validate(document, "1.33", strict=True)
    pod = list(yaml.safe_load_all((HERE / "pod.yaml").read_text()))[1]["spec"]
    deployed = documents[1]["spec"]["template"]["spec"]
    for one, other in zip(pod["containers"], deployed["containers"], strict=True):
        for field in ("name", "image", "args", "volumeMounts", "resources", "securityContext"):
            assert one[field] == other[field]
    mounts = {mount["mountPath"]: mount for mount in pod["containers"][1]["volumeMounts"]}
    assert mounts["/items"]["readOnly"] is True
