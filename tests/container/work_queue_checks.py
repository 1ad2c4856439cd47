"""The checks of the work queue: each fails on a naive variant, and holds for the real parts."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import psutil
from aiohttp import web
from redis.asyncio import RedisCluster

from patterns.clock import SYSTEM_CLOCK, ManualClock
from patterns.container.work_queue import (
    Ended,
    ItemDone,
    ItemFailed,
    Job,
    Manager,
    Policy,
    Result,
    Scaling,
    Status,
    count_words,
    fingerprint,
    folder_source,
    items_key,
    job_id,
    redis_source,
)
from patterns.embedded import Server
from patterns.events import Recorder
from patterns.keyspace import Client, opened
from tests.container.work_queue_ground import (
    QUICK,
    Plant,
    Shelf,
    Site,
    asked_over_http,
    body,
    container,
    drain,
    key,
    listed,
    python,
    rounds,
    until_ended,
)
from tests.eventually import eventually, eventually_now

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    import pytest


WORDS = (sys.executable, "-I", "-S", count_words.__file__)


PICTURE = (sys.executable, "-I", "-S", fingerprint.__file__)


NAMES = [
    "plain",
    "..",
    ".",
    "../../etc/passwd",
    "a/b",
    "a_b",
    "a%2Fb",
    "a b",
    "a?b#c",
    "ü",
    "\u202egnp.exe",
    "line\nbreak",
    "nul\0byte",
    "CON",
    "-rf",
    "{curly}",
    "long" * 75,
    "\N{PILE OF POO}" * 64,
]


class Crash(BaseException):
    """The manager is killed here."""


def crashing(plant: Plant, step: int) -> Manager:
    """Return a manager that dies before its request number `step`, or, in odd ones, after it."""
    manager = plant.manager()
    count = 0

    def wrapped(call: Any) -> Any:
        async def request(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                raise Crash
            count += 1
            reply = await call(*args)
            if count == step:
                raise Crash
            return reply

        return request

    state, source = manager._state, manager._source
    manager._state = _Wrapped(state, wrapped)  # type: ignore[assignment]  # it stands in
    manager._source = _Wrapped(source, wrapped)
    return manager


class _Wrapped:
    def __init__(self, what: Any, wrap: Callable[[Any], Any]) -> None:
        self._what, self._wrap = what, wrap

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._what, name)
        return self._wrap(found) if asyncio.iscoroutinefunction(found) else found


async def check_any_crash_is_made_good(plant: Plant) -> None:
    """A manager dies at each step of its round in turn, and workers go on: each item ends, run once."""
    crashes = 0
    for step in range(1, 100):
        try:
            await crashing(plant, step).round()
        except Crash:
            crashes += 1
        else:
            break
        if step % 3 == 0:
            await plant.worker().step()
    assert crashes >= 10
    await until_ended(plant.manager(), [plant.worker()], plant.state(), len(plant.source.items))
    assert plant.application.runs == Counter(plant.source.items)


async def check_many_managers_create_one_job(plant: Plant) -> None:
    """Four managers compare at one time, before and after the work: one job, one run for each item."""
    managers = [plant.manager() for _ in range(4)]
    made = sum(found.created for found in await asyncio.gather(*(manager.round() for manager in managers)))
    assert made == len(plant.source.items), f"{made} jobs for {len(plant.source.items)} items"
    await drain(plant.worker())
    again = await asyncio.gather(*(manager.round() for manager in managers))
    assert [found.created for found in again] == [0] * 4
    await drain(plant.worker())
    assert plant.application.runs == Counter(plant.source.items)


def check_names_become_files(file_of: Callable[[str, str], str], names: list[str]) -> None:
    """Each name gives a file name of its own, in the folder and nowhere else, the same each time."""
    files = [file_of("q", name) for name in names]
    for file in files:
        assert "/" not in file
        assert "\0" not in file
        assert file not in {"", ".", ".."}
        assert len(os.fsencode(file)) <= 200
    assert len(set(files)) == len(set(names)), "two names, one file"
    assert files == [file_of("q", name) for name in names]


async def check_parallelism_holds(plant: Plant) -> None:
    """Two managers, six workers, thirty items: at no time are more than three being done."""
    workers = [plant.worker(f"w{number}") for number in range(6)]
    await until_ended(plant.manager(), workers, plant.state(), 30)
    assert plant.application.most <= 3, f"{plant.application.most} at one time"
    assert plant.application.most == 3


async def check_a_timeout_kills_all(call: Any, folder: Path) -> None:
    """The application starts another process and hangs; when its time is over both are gone."""
    result = await call.run("job", "t", b"", 0.2)
    assert (result.code, result.reason) == (None, "timeout")
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    assert len(pids) == 2

    def alive() -> list[int]:
        found = []
        for pid in pids:
            try:
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    found.append(pid)
            except psutil.NoSuchProcess:
                pass
        return found

    try:
        await eventually(lambda: not alive(), within=0.5, what="the application's processes are gone")
    finally:
        for pid in alive():
            os.kill(pid, 9)


def hanging(folder: Path) -> tuple[str, ...]:
    """Return an application that starts a process, writes down both pids, and hangs with it."""
    return ("/bin/sh", "-c", f"sleep 60 & echo $$ $! > {folder}/pids; wait")


async def check_output_is_bounded(call: Any) -> None:
    """Of 2 MB that the application writes, the end is kept."""
    result = await call.run("job", "t", b"", 20)
    assert result.code == 3
    assert len(result.stdout) <= 16_384
    assert result.stdout.endswith("the end\n")


LOUD = python("import sys\nfor _ in range(2000): sys.stdout.write('x' * 1000)\nprint('the end')\nsys.exit(3)")


async def check_failures_end(plant: Plant) -> None:
    """An item that always fails is tried three times, after growing pauses, and is then given up."""
    state, worker = plant.state(), plant.worker()
    plant.application.code = lambda item: 3 if item == "bad" else 0
    pauses = []
    for _ in range(6):
        await plant.manager().round()
        await drain(worker)
        times: Any = await plant.client.zrange(key(plant.app, "waiting"), 0, -1, withscores=True)
        if not times:
            break
        now: Any = await plant.client.time(**on_one_node(plant.client, key(plant.app, "waiting")))
        pauses.append(times[0][1] / 1000 - (now[0] + now[1] / 1e6))
        await plant.client.zadd(key(plant.app, "waiting"), {times[0][0]: 1})  # its pause is over
    assert plant.application.runs == {"bad": 3, "good": 1}, plant.application.runs
    assert 49 < pauses[0] <= 100 < pauses[1] <= 200
    (failure,) = await state.failures()
    assert failure.item == "bad"
    assert failure.report == {"attempts": 3, "reason": "exit 3", "stdout": "", "stderr": "code 3"}


def on_one_node(client: Client, name: str) -> dict[str, Any]:
    """Ask the node that has this key for its time."""
    return {"target_nodes": client.get_node_from_key(name)} if isinstance(client, RedisCluster) else {}


async def reaped(client: Client, app: str, managers: list[Manager]) -> list[int]:
    """Let every lease run out, and all managers look at one time; return what each took back."""
    leased: Any = await client.zrange(key(app, "leases"), 0, -1)
    for job in leased:
        await client.zadd(key(app, "leases"), {job: 1})
    return [found.again for found in await asyncio.gather(*(manager.round() for manager in managers))]


async def check_a_zombie_changes_nothing(plant: Plant) -> None:
    """One worker falls silent, another does the item; what the first says later changes nothing."""
    state = plant.state()
    managers = [plant.manager() for _ in range(3)]
    await managers[0].round()
    first = await state.claim("t-first")
    assert first is not None
    assert sum(await reaped(plant.client, plant.app, managers)) == 1, "given out more than once"
    second = await state.claim("t-second")
    assert second is not None
    assert (second.item, second.attempt) == (first.item, 2)
    assert await state.claim("t-third") is None
    assert not await state.renew(first)
    assert await state.renew(second)
    assert await state.failed(first, {"reason": "late"}) is Ended.LOST
    assert not await state.release(first)
    assert not await state.drop(first)
    assert await state.done(second) is Ended.DONE
    assert await state.failed(first, {"reason": "late"}) is Ended.OVER
    assert await state.done(first) is Ended.OVER
    status = await state.status()
    assert (status.done, status.failed, status.running) == (1, 0, 0)


class Told:
    """A state that answers what it is told to, for a worker on virtual time."""

    def __init__(self) -> None:
        self.releases = True
        self.renewals: list[bool | Exception] = []
        self.reports: list[str] = []
        self.jobs = [Job("j", "item", 1, "", 9.0, 60.0)]

    async def claim(self, token: str) -> Job | None:
        return self.jobs.pop() if self.jobs else None

    async def renew(self, job: Job) -> bool:
        answer = self.renewals.pop(0) if self.renewals else True
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def done(self, job: Job, seconds: float = 0) -> Ended:
        self.reports.append("done")
        return Ended.DONE

    async def release(self, job: Job, pause: float = 0) -> bool:
        self.reports.append("release")
        return self.releases

    failed = drop = release


class Slow:
    """An application that takes its time, on virtual time."""

    def __init__(self, clock: ManualClock, seconds: float) -> None:
        self.clock, self.seconds, self.ended = clock, seconds, ""

    def ready(self) -> bool:
        return True

    async def run(self, job: str, token: str, content: bytes, limit: float) -> Result:
        try:
            await self.clock.sleep(self.seconds)
        except asyncio.CancelledError:
            self.ended = f"stopped at {self.clock.monotonic():g}"
            raise
        self.ended = f"ended at {self.clock.monotonic():g}"
        return Result(0, "exit 0")


async def check_a_lost_lease_stops_the_application(make: Any, renewals: list[Any], stopped_at: float) -> None:
    """The lease cannot be renewed: the application is stopped, at the latest when it would have run out."""
    clock = ManualClock()
    state, application = Told(), Slow(clock, 100)
    state.renewals = renewals
    worker = make("w", state, Shelf(["item"]), application, clock=clock)
    step = asyncio.create_task(worker.step())
    await clock.advance(101)
    await step
    assert application.ended == f"stopped at {stopped_at:g}"
    assert state.reports == []


async def check_source_faults_stop_no_other(
    plant: Plant, site: Site, good: list[str], within: float = 8
) -> Recorder:
    """Whatever the source does to some, the good items are done at their first attempt, once each."""
    heard = Recorder()
    async with asked_over_http(site.app(), timeout=0.3, largest_item=1000) as source:
        plant.source = source
        worker = plant.worker(on_event=heard)
        async with rounds(plant.manager(on_event=heard)):
            working = asyncio.create_task(worker.run())

            async def all_good() -> bool:
                return all(plant.application.runs[name] for name in good)

            try:
                await eventually(all_good, within=within, what=f"the good items: {plant.application.runs}")
            finally:
                worker.stop()
                await working
    assert all(plant.application.runs[name] == 1 for name in good), plant.application.runs
    assert {event.attempt for event in heard.of(ItemDone)} <= {1}
    failed = {event.item for event in heard.of(ItemFailed) if "more than" not in event.reason}
    assert not failed, f"{failed} failed for the source's fault"
    return heard


def troubled() -> Site:
    """A source that fails in each way that sources fail, and lists good items between."""
    once = {"count": 0}

    async def late(_: web.Request) -> web.Response:
        await SYSTEM_CLOCK.sleep(0.6)
        return web.Response()

    def at_second(request: web.Request) -> web.Response:
        once["count"] += 1
        return web.Response(status=500) if once["count"] < 3 else web.Response(body=b"moody")

    names = ["a", "b", "b", "gone", "big", "moody", 7, None, "", "x" * 2000, ["c"], "\ud800", "c"]
    return Site(
        [
            body("", 500),
            late,
            body("not JSON"),
            body("[" * 100_000),
            body('{"items": {"a": 1}}'),
            body('{"items": ["a"], "next": 7}'),
            body('{"items": NaN}'),
            listed(["a"], next="1"),  # and the next page fails
            body("", 503),
            listed(["d"], next="same"),  # a cursor that comes again
            listed(["d"], next="same"),
            listed(names),
        ],
        {"a": b"a", "b": b"b", "c": b"c", "d": b"d", "big": b"x" * 5000, "moody": at_second},
    )


async def check_exchange(
    manager_of: Any,
    kind: str,
    command: tuple[str, ...],
    url: str,
    app: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The items of the source come out of the application."""
    items = {"one": b"a b c\n", "two": b"d\n"}
    shelf, out = folder / "shelf", folder / "out"
    shelf.mkdir()
    out.mkdir()
    monkeypatch.setenv("OUTPUT", str(out))
    async with opened(url) as client:
        if kind == "folder":
            monkeypatch.setenv("FOLDER", str(shelf))
            for name, content in items.items():
                (shelf / name).write_bytes(content)
            served = folder_source(shelf)
        else:
            await client.hset(items_key(app, "q"), mapping=items)  # type: ignore[arg-type]  # bytes are values, too
            served = redis_source(client, items_key(app, "q"))
        async with asked_over_http(served) as source, container(folder, *command) as call:
            plant = Plant(client, app, source, Policy(parallelism=2, **QUICK), manager_of=manager_of)
            plant.application = call  # type: ignore[assignment]  # a real one
            await eventually(call.ready, within=5)
            await plant.manager().round()
            await drain(plant.worker())
        found = {path.name: path.read_text() for path in out.iterdir()}
        assert set(found) == {job_id("q", name) for name in items}
        if command is WORDS:
            assert json.loads(found[job_id("q", "one")]) == {"lines": 1, "words": 3, "bytes": 6}
        else:
            assert len(set(found.values())) == 2


def simulated(
    scaler: Any, rates: list[float], service: float, rng: random.Random, start: int = 1
) -> tuple[list[int], list[int]]:
    """Run a queue for a minute at each rate, with workers that take 15 s to start; return both by second."""
    queue: list[float] = []
    busy: list[float] = []
    workers, coming = start, list[tuple[int, int]]()
    created = finished = 0
    total = 0.0
    counts, waiting = [], []
    for now in range(60 * len(rates)):
        rate = rates[now // 60]
        arrivals = int(rate) + (rng.random() < rate % 1)
        created += arrivals
        queue += [now] * arrivals
        for _ in range(10):  # tenths of a second
            busy = [left - 0.1 for left in busy]
            ended = [left for left in busy if left <= 1e-9]
            finished += len(ended)
            total += service * len(ended)
            busy = [left for left in busy if left > 1e-9]
            while queue and len(busy) < workers:
                queue.pop(0)
                busy.append(service)
        if now % 5 == 0:
            status = Status(len(queue), 0, len(busy), 0, 0, created, finished, total, 0.0)
            wanted = scaler(status, float(now))
            if wanted < workers:
                workers, coming = wanted, []
            elif wanted > workers + len(coming):
                coming += [(now + 15, 1)] * (wanted - workers - len(coming))
        workers += sum(count for at, count in coming if at <= now)
        coming = [(at, count) for at, count in coming if at > now]
        counts.append(workers)
        waiting.append(len(queue))
    return counts, waiting


def check_scaling(make: Callable[[Scaling], Any], rng: random.Random) -> None:
    """4 items a second of 1.5 s each: it comes to some number over 6, stays there, and clears the queue."""
    scaler = make(Scaling(most=50, settle=120, memory=60, drain=60))
    counts, waiting = simulated(scaler.workers, [4.0] * 15, 1.5, rng)
    steady = counts[600:]
    changes = sum(a != b for a, b in itertools.pairwise(steady))
    assert changes <= 2, (
        f"{changes} changes in 5 minutes of the same load, between {min(steady)} and {max(steady)}"
    )
    assert 6 < min(steady) <= max(steady) <= 12
    assert max(waiting[600:]) < 20


def list_on_a_lone_primary() -> str:
    """The naive: a list on a primary whose replica was cut off a while ago; killed, the replica has less."""
    with Server() as primary, Server(replica_of=primary) as replica:
        primary.command("RPUSH", "list", *range(100))
        eventually_now(lambda: replica.command("LLEN", "list") == 100, within=5)
        replica.command("REPLICAOF", "NO", "ONE")  # it hears of nothing more
        primary.command("RPUSH", "list", *range(200))
        primary.kill()
        lost = 300 - int(replica.command("LLEN", "list"))
    return f"a list in Redis, whose replica was cut off before: {lost} of 300 lost"


def in_memory_queue_killed(names: list[str]) -> str:
    """The naive: a process pool with its queue in memory, killed in the middle; it has no second life."""
    program = "import sys\nfor name in sys.argv[1:]:\n    print(name, flush=True)\n    sys.stdin.readline()\n"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*python(program)[:-1], program, *names], stdin=pipe, stdout=pipe, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        done = 0
        for _ in range(10):
            process.stdout.readline()
            process.stdin.write("\n")
            process.stdin.flush()
            done += 1
        process.kill()
    return f"a queue in the memory of one process: {len(names) - done} of {len(names)} lost with it"
