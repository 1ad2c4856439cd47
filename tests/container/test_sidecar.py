"""The proof of patterns/container/sidecar: each invariant, and a naive variant that breaks it."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import psutil
import pytest
import yaml
from hypothesis import settings
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from patterns.clock import SYSTEM_CLOCK, ManualClock
from patterns.container.sidecar import (
    BatchShipped,
    GapFound,
    Line,
    LinesDropped,
    Policy,
    Position,
    Report,
    ShippingFailed,
    Sidecar,
    Tail,
    application,
    health,
    life,
    pod,
)
from patterns.container.sidecar import __main__ as process
from patterns.container.sidecar.buffer import Buffer
from patterns.container.sidecar.pod import (
    ApplicationEnded,
    ApplicationStarted,
    Pod,
    SidecarEnded,
    SidecarStarted,
)
from patterns.events import Recorder
from patterns.keyspace import Client, Keyspace, opened
from patterns.probe import ask
from tests.container import sidecar_programs as programs
from tests.container import told_early
from tests.container.sidecar_ground import (
    PROGRAMS,
    Log,
    all_shipped,
    child_of,
    compare,
    end,
    free_port,
    in_stream,
    inode_of,
    is_closed,
    is_open,
    numbers_in_stream,
    open_inodes,
    open_modes,
    running,
    state_of,
    supervised,
)
from tests.container.sidecar_tail import TailMachine
from tests.eventually import eventually
from tests.faults.leaks import immortal_keys
from tests.faults.proxy import proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from patterns.embedded import Cluster, Server
    from tests.faults.ledger import Ledger
    from tests.faults.workers import Worker
    from tests.pods import Pod as Played
    from tests.pods import Pods

Make = Any  # Sidecar, or a naive variant with the same constructor

HERE = Path(life.__file__).parent
LAUNCH = [sys.executable, str(HERE / "life.py"), "launch"]
APPLICATION = [sys.executable, str(HERE / "application.py")]
QUICK: dict[str, Any] = {"poll": 0.01, "retry": 0.01, "retry_cap": 0.05, "timeout": 0.5}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """The log of an application that is this test."""
    found = Log(tmp_path / "app.log")
    yield found
    found.open.close()


# 1: start


async def check_application_waits_for_sidecar(
    application: list[str],
    program: list[str],
    folder: Path,
    url: str,
    capfd: pytest.CaptureFixture[str],
    patience: float = 20,
) -> None:
    """The sidecar is slow to start: the application's first line comes after it, and not without it."""
    gate, log = folder / "gate", folder / "app.log"
    env = {
        "LOG_FILE": str(log),
        "ALIVE_FILE": str(folder / "alive"),
        "HEALTH_PORT": str(free_port()),
        "PATIENCE": str(patience),
        "ORDERS": "3",
        "SOURCE": "orders",
        "APP": folder.name,
        "REDIS_URL": url,
        "PYTHONPATH": str(Path.cwd()),
    }
    sidecar = [sys.executable, "-m", PROGRAMS, *program, *([str(gate)] if program == ["gated"] else [])]
    pod = asyncio.create_task(Pod("test", application, sidecar, env=env, grace=10).run())
    # It waits, or it has written its first line already.
    await eventually(lambda: (folder / "alive").exists() or (log.exists() and log.stat().st_size), within=20)
    opened_at = time.time()
    gate.touch()
    assert await pod == 0
    lines = log.read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["begin,", "order", "order", "order", "end,"]
    assert float(lines[0].split()[0]) > opened_at, "the application began before the sidecar was ready"
    assert "no sidecar after" not in capfd.readouterr().err, "the two waited for each other"


@pytest.mark.invariant(1)
async def test_application_begins_when_the_sidecar_is_ready(
    tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    """A sidecar that takes its time delays the first order, and is not waited for in vain."""
    await check_application_waits_for_sidecar([*LAUNCH, *APPLICATION], ["gated"], tmp_path, server.url, capfd)
    async with opened(server.url) as client:
        assert len(await in_stream(client, tmp_path.name)) == 5


@pytest.mark.naive(1)
@pytest.mark.parametrize(
    ("application", "program", "complaint"),
    [
        (APPLICATION, ["gated"], "began before the sidecar was ready"),
        ([*LAUNCH, *APPLICATION], ["waits_for_application"], "waited for each other"),
    ],
    ids=["does not wait", "health asks the application"],
)
async def test_not_waiting_and_waiting_for_each_other_are_both_wrong(
    application: list[str],
    program: list[str],
    complaint: str,
    tmp_path: Path,
    server: Server,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Without a wait the first lines come too early; readiness that asks the application is a deadlock."""
    with pytest.raises(AssertionError, match=complaint):
        await check_application_waits_for_sidecar(application, program, tmp_path, server.url, capfd, 1)


@pytest.mark.invariant(1)
async def test_a_sidecar_that_never_gets_ready_is_waited_for_only_so_long() -> None:
    """The wait is over after `patience` seconds, and says so."""
    clock = ManualClock()
    waiting = asyncio.create_task(life.wait_for_sidecar(free_port(), 10.0, clock))

    async def moved() -> bool:
        await clock.advance(0.5)
        return waiting.done()

    await eventually(moved, within=20)
    assert await waiting is False
    assert clock.monotonic() < 20


@pytest.mark.invariant(1)
async def test_a_stranger_on_the_port_holds_nobody_up() -> None:
    """Something else answers there, and not in text: that is no sidecar, and no reason not to begin."""

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(stranger, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert await life.wait_for_sidecar(port, 0.2) is False


@pytest.mark.invariant(1)
async def test_ready_does_not_wait_for_redis_or_the_application(tmp_path: Path, app: str) -> None:
    """There is no Redis, no log and no application, and the sidecar is ready."""
    async with (
        opened(f"redis://127.0.0.1:{free_port()}") as client,
        running(
            Sidecar("orders", tmp_path / "app.log", client, app=app, policy=Policy(**QUICK, grace=0.1))
        ) as it,
        health.serve(it.report, 0) as port,
    ):
        assert await eventually(lambda: asyncio.to_thread(ask, "/readyz", port), within=5) == "ready"
        await eventually(lambda: (it.report.failing or "").startswith("ConnectionError"), within=5)
    assert not it.report.ready


# 2: crash


async def check_restart_loses_and_doubles_nothing(make: Make, log: Log, client: Client, app: str) -> None:
    """Six shippers one after the other, each gone in the middle of its work, while lines are written."""
    policy = Policy(**QUICK, batch_lines=7)
    rng = random.Random(7)
    for _ in range(6):
        log.write(20)
        shipper = make("orders", log.path, client, app=app, policy=policy)
        task = asyncio.create_task(shipper.run())
        with suppress(AssertionError):
            await all_shipped(client, app, len(log.lines) - rng.randrange(20), within=0.15)
        task.cancel()  # nothing is said or saved: what counts is in Redis
        await asyncio.gather(task, return_exceptions=True)
    async with running(make("orders", log.path, client, app=app, policy=policy)):
        log.write(5)
    compare(await in_stream(client, app), log.lines)


@pytest.mark.invariant(2)
async def test_a_restart_goes_on_where_the_stream_ends(log: Log, server: Server, app: str) -> None:
    """Six sidecars one after the other ship each line once, and a seventh reads three rotated files."""
    async with opened(server.url) as client:
        await check_restart_loses_and_doubles_nothing(Sidecar, log, client, app)
        for _ in range(3):
            log.write(30)
            log.rotate()
        log.write(5)
        async with running(Sidecar("orders", log.path, client, app=app, policy=Policy(**QUICK))):
            pass
        compare(await in_stream(client, app), log.lines)
        assert await numbers_in_stream(client, app) == list(range(1, len(log.lines) + 1))
        assert await immortal_keys(client, app) == []


@pytest.mark.naive(2)
@pytest.mark.parametrize(
    ("variant", "complaint"),
    [(programs.Naive, r"[1-9]\d* doubled"), (programs.StartsAtTheEnd, r"[1-9]\d* lines lost")],
)
async def test_a_position_in_memory_loses_or_doubles(
    variant: Make, complaint: str, log: Log, server: Server, app: str
) -> None:
    """From the beginning each restart doubles, from the end it loses."""
    async with opened(server.url) as client:
        with pytest.raises(AssertionError, match=complaint):
            await check_restart_loses_and_doubles_nothing(variant, log, client, app)


@pytest.mark.invariant(2)
async def test_two_sidecars_of_one_source_do_not_double(log: Log, server: Server, app: str) -> None:
    """An old sidecar that was thought dead ships beside the new one: each line is there once."""
    log.write(200)
    async with opened(server.url) as client:
        policy = Policy(**QUICK, batch_lines=3)
        both = [Sidecar("orders", log.path, client, app=app, policy=policy) for _ in range(2)]
        async with running(both[0]), running(both[1]):
            log.write(200)
        compare(await in_stream(client, app), log.lines)


@pytest.mark.invariant(2)
async def test_the_same_on_a_cluster(log: Log, cluster: Cluster, app: str) -> None:
    """Stream and position are in one slot, so that one script moves both."""
    async with opened(cluster.url) as client:
        log.write(50)
        async with running(Sidecar("orders", log.path, client, app=app, policy=Policy(**QUICK))):
            log.write(50)
        compare(await in_stream(client, app), log.lines)


@pytest.mark.invariant(2)
async def test_the_sidecar_is_restarted_with_a_growing_pause_up_to_a_cap() -> None:
    """A sidecar that fails again and again is started ever less often, and the application never notices."""
    heard = Recorder()
    pod = Pod(
        "test",
        ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 0.05; done"],
        ["/bin/sh", "-c", "exit 3"],
        env={},
        back_off=0.01,
        back_off_cap=0.04,
        on_event=heard,
    )
    task = asyncio.create_task(pod.run())
    await eventually(lambda: len(heard.of(SidecarEnded)) >= 5, within=20)
    pod.stop()
    pod.stop()
    await task
    ends = heard.of(SidecarEnded)[:5]
    assert [end.restart_after_seconds for end in ends] == [0.01, 0.02, 0.04, 0.04, 0.04]
    assert {end.code for end in ends} == {3}
    assert len(heard.of(ApplicationStarted)) == 1


@pytest.mark.invariant(2)
async def test_a_sidecar_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    """Its program is away for a while (or there is no memory): the Pod goes on, and starts it later."""
    heard, program = Recorder(), tmp_path / "sidecar"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    pod = Pod(
        "test",
        ["/bin/sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.02; done"],
        [str(program)],
        env={},
        back_off=0.01,
        back_off_cap=0.02,
        on_event=heard,
    )
    task = asyncio.create_task(pod.run())
    await eventually(lambda: heard.of(SidecarEnded), within=10)
    away = program.rename(tmp_path / "away")
    await eventually(lambda: [end.code for end in heard.of(SidecarEnded)].count(127) >= 2, within=10)
    away.rename(program)
    before = len(heard.of(SidecarStarted))
    await eventually(lambda: len(heard.of(SidecarStarted)) > before, within=10)
    pod.stop()
    assert await task == 7


@pytest.mark.invariant(4)
@pytest.mark.parametrize("times", [0, 1, 2], ids=["no such program", "cancelled", "cancelled twice"])
async def test_no_process_is_left_when_the_pod_does_not_end_as_it_should(times: int) -> None:
    """An application that does not exist, and a Pod that is cancelled: neither process stays behind."""
    heard = Recorder()
    deaf = ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.02; done"]
    application = deaf if times else ["/nowhere/at/all"]
    task = asyncio.create_task(Pod("test", application, deaf, env={}, grace=0.3, on_event=heard).run())
    await eventually(lambda: heard.of(SidecarStarted), within=10)
    if times:
        await eventually(lambda: heard.of(ApplicationStarted), within=10)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError if times else FileNotFoundError):
        await task
    pids = [each.pid for each in heard.of(SidecarStarted)] + [
        each.pid for each in heard.of(ApplicationStarted)
    ]
    assert len(pids) == 1 + bool(times)
    await eventually(lambda: not any(map(psutil.pid_exists, pids)), within=10)


# 3: stop


async def check_last_line_is_shipped(
    monkeypatch: pytest.MonkeyPatch, log: Log, url: str, app: str, *, knows_the_application: bool
) -> None:
    """Told to end twice while the application is alive: its last words are in the stream, in time."""
    alive = log.path.with_name("alive")
    port = environment(monkeypatch, log.path, alive if knows_the_application else Path("/nowhere"), url, app)
    lock = life.hold(alive)
    heard: list[str] = []
    monkeypatch.setattr(process._log, "info", lambda text, *_: heard.append(text))
    async with opened(url) as client:
        log.write(10)
        ending = asyncio.create_task(process.main())
        try:
            await ready(port)
            await all_shipped(client, app, 10)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            await eventually(lambda: ending.done() or any("waiting" in text for text in heard), within=10)
            log.write(2)
            log.lines.append(b"Segmentation fau")  # a buffer's end, not a line's
            log.open.write(log.lines[-1])
            began = time.monotonic()
        finally:
            os.close(lock)
        assert await ending == 0
        assert time.monotonic() - began < 5, "it took the whole grace"
        compare(await in_stream(client, app), log.lines)


def environment(
    monkeypatch: pytest.MonkeyPatch, log: Path, alive: Path, url: str, app: str, **more: str
) -> int:
    """Set what the sidecar's process reads; return its health port."""
    port = free_port()
    values = {"LOG_FILE": str(log), "ALIVE_FILE": str(alive), "REDIS_URL": url, "APP": app}
    for name, value in {**values, "SOURCE": "orders", "HEALTH_PORT": str(port), "GRACE": "5", **more}.items():
        monkeypatch.setenv(name, value)
    return port


@pytest.mark.invariant(3)
async def test_the_sidecar_outlives_the_application_and_ships_its_last_line(
    monkeypatch: pytest.MonkeyPatch, log: Log, server: Server, app: str
) -> None:
    """Two SIGTERMs, three more lines, the application's end: all thirteen lines are there."""
    await check_last_line_is_shipped(monkeypatch, log, server.url, app, knows_the_application=True)


@pytest.mark.naive(3)
async def test_ending_at_the_signal_loses_the_last_lines(
    monkeypatch: pytest.MonkeyPatch, log: Log, server: Server, app: str
) -> None:
    """A sidecar that is told together with the application, and ends at once, misses three lines."""
    with pytest.raises(AssertionError, match="3 lines lost"):
        await check_last_line_is_shipped(monkeypatch, log, server.url, app, knows_the_application=False)


async def check_told_while_it_starts(
    how: str, spawn: Callable[..., Worker], log: Log, url: str, app: str
) -> None:
    """SIGTERM comes before there is a handler: it ends all the same, and has shipped what there was."""
    log.write(20)
    env = {"LOG_FILE": str(log.path), "ALIVE_FILE": str(log.path.with_name("alive")), "SOURCE": "orders"}
    env |= {"REDIS_URL": url, "APP": app, "HEALTH_PORT": str(free_port()), "GRACE": "5"}
    told = spawn(Path(told_early.__file__), how, env=env)
    assert await told.ended(within=20) == 0, f"it ended with {told.code}"
    async with opened(url) as client:
        compare(await in_stream(client, app), log.lines)


@pytest.mark.invariant(3)
async def test_a_sidecar_that_is_told_while_it_starts_has_heard(
    spawn: Callable[..., Worker], log: Log, server: Server, app: str
) -> None:
    """The first process of a container begins with its signals kept back, and gets them when it is ready."""
    await check_told_while_it_starts("start", spawn, log, server.url, app)


@pytest.mark.naive(3)
async def test_a_first_process_that_only_imports_does_not_hear(
    spawn: Callable[..., Worker], log: Log, server: Server, app: str
) -> None:
    """Until the handler is there a SIGTERM is lost on it: here it dies, as process 1 it would go on."""
    with pytest.raises(AssertionError, match="it ended with -15"):
        await check_told_while_it_starts("module", spawn, log, server.url, app)


@pytest.mark.invariant(3)
async def test_a_long_outage_leaves_tries_for_the_grace(tmp_path: Path, rng: random.Random) -> None:
    """After minutes without Redis the pause is long; told to stop, it tries again at once and often."""
    clock, heard = ManualClock(), Recorder()

    class Down:
        async def hmget(self, *_: object) -> list[Any]:
            raise RedisConnectionError("down")

    sidecar = Sidecar(
        "orders", tmp_path / "app.log", cast("Client", Down()), app="a", clock=clock, rng=rng, on_event=heard
    )
    task = asyncio.create_task(sidecar.run())
    await clock.advance(60)
    assert heard.of(ShippingFailed)[-1].retry_after_seconds >= 2.5
    before = len(heard.events)
    sidecar.stop(2.0)
    await clock.advance(2.1)
    assert await task is False
    assert len(heard.events) - before >= 4


@pytest.mark.invariant(3)
async def test_the_grace_bounds_an_application_that_does_not_end() -> None:
    """Four of ten seconds of grace are kept for the last lines, and the rest is spent on waiting."""
    told, clock = asyncio.Event(), ManualClock(start=0.0)
    told.set()
    with tempfile.TemporaryDirectory() as folder:
        lock = life.hold(alive := Path(folder, "alive"))
        policy = Policy(grace=10, timeout=4)
        waiting = asyncio.create_task(process.time_to_stop(told, alive, policy, job=False, clock=clock))
        await clock.advance(5.9)
        assert not waiting.done()
        await clock.advance(0.2)
        assert await waiting == pytest.approx(4, abs=0.06)  # and at most one look more
        os.close(lock)


@pytest.mark.invariant(3)
async def test_the_grace_bounds_a_redis_that_does_not_answer(log: Log, app: str) -> None:
    """With Redis down the sidecar gives up after the grace and says that lines are left in the files."""
    log.write(3)
    async with opened(f"redis://127.0.0.1:{free_port()}") as client:
        sidecar = Sidecar("orders", log.path, client, app=app, policy=Policy(**QUICK))
        task = asyncio.create_task(sidecar.run())
        await eventually(lambda: sidecar.report.failing, within=5)
        began = time.monotonic()
        sidecar.stop(0.2)
        sidecar.stop(100)  # the first word counts
        assert await task is False
        assert 0.15 < time.monotonic() - began < 3


@pytest.mark.invariant(3)
async def test_pod_stops_the_application_first_and_the_sidecar_last() -> None:
    """The sidecar's SIGTERM comes after the application's end, and both fit into one grace."""
    heard = Recorder()
    pod = Pod(
        "test",
        ["/bin/sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.02; done"],
        ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.02; done"],
        env={},
        grace=0.6,
        on_event=heard,
    )
    task = asyncio.create_task(pod.run())
    await eventually(lambda: heard.of(ApplicationStarted), within=10)
    process_of = psutil.Process(heard.of(ApplicationStarted)[0].pid)
    await eventually(process_of.children, within=10)  # the trap is set
    began = time.monotonic()
    pod.stop()
    assert await task == 7
    assert time.monotonic() - began < 5
    assert [type(event) for event in heard.events] == [
        SidecarStarted,
        ApplicationStarted,
        ApplicationEnded,
        SidecarEnded,
    ]
    assert heard.of(SidecarEnded)[0].code == -signal.SIGKILL  # it did not want to end
    assert heard.of(SidecarEnded)[0].restart_after_seconds is None


@pytest.mark.invariant(3)
async def test_run_again_ships_what_has_come_since(log: Log, server: Server, app: str) -> None:
    """A sidecar that was stopped and is run again reads to the end, and no less than the first time."""
    async with opened(server.url) as client:
        sidecar = Sidecar("orders", log.path, client, app=app, policy=Policy(buffer_lines=7, batch_lines=7))
        sidecar.stop()
        for _ in range(3):
            log.write(100)
            assert await sidecar.run() is True
            compare(await in_stream(client, app), log.lines)


# 4: end


async def check_job_ends(
    monkeypatch: pytest.MonkeyPatch,
    spawn: Callable[..., Worker],
    folder: Path,
    url: str,
    app: str,
    within: float = 3,
    **env: str,
) -> None:
    """Two applications, one that ends and one that is killed: the sidecar ends by itself both times."""
    for killed in (False, True):
        path, alive = folder / f"{killed}.log", folder / f"{killed}.alive"
        name = f"{app}-{killed}"
        port = environment(monkeypatch, path, alive, url, name, **env)
        async with opened(url) as client:
            orders = {"ORDERS": "0" if killed else "3", "PYTHONPATH": str(Path.cwd())}
            job = spawn(HERE / "life.py", "launch", *APPLICATION, env=orders)
            ending = asyncio.create_task(process.main())
            try:
                await ready(port)
                await all_shipped(client, name, 4)
                if killed:
                    job.kill()
                await job_ended(ending, within)
            finally:
                ending.cancel()
                await asyncio.gather(ending, return_exceptions=True)
            compare(await in_stream(client, name), path.read_bytes().splitlines())


async def ready(port: int) -> None:
    await eventually(lambda: asyncio.to_thread(ask, "/readyz", port), within=10)


async def job_ended(ending: asyncio.Task[int], within: float) -> None:
    await eventually(ending.done, within=within, what="the end of the sidecar after its job")
    assert ending.result() == 0


@pytest.mark.invariant(4)
async def test_the_end_of_a_job_is_the_end_of_its_sidecar(
    monkeypatch: pytest.MonkeyPatch,
    spawn: Callable[..., Worker],
    tmp_path: Path,
    server: Server,
    app: str,
) -> None:
    """Nobody tells it: the kernel lets go of the lock, and the last line has been shipped."""
    await check_job_ends(monkeypatch, spawn, tmp_path, server.url, app, JOB="1")


@pytest.mark.naive(4)
async def test_a_sidecar_that_does_not_look_keeps_the_job_alive(
    monkeypatch: pytest.MonkeyPatch,
    spawn: Callable[..., Worker],
    tmp_path: Path,
    server: Server,
    app: str,
) -> None:
    """Kubernetes #25908: the work is done and the Job never completes."""
    with pytest.raises(AssertionError, match="the end of the sidecar after its job"):
        await check_job_ends(monkeypatch, spawn, tmp_path, server.url, app, within=1)  # it never does


@pytest.mark.invariant(4)
def test_lock_says_alive_until_the_last_holder_is_gone(tmp_path: Path) -> None:
    """Never begun is not ended; held is not ended; ended needs no goodbye."""
    alive = tmp_path / "alive"
    assert (life.has_begun(alive), life.has_ended(alive)) == (False, False)
    first, second = life.hold(alive), life.hold(alive)
    assert (life.has_begun(alive), life.has_ended(alive)) == (True, False)
    os.close(first)
    assert not life.has_ended(alive)
    os.close(second)
    assert life.has_ended(alive)


# 5: bound


async def check_memory_is_bounded(make: Make, log: Log, server: Server, app: str) -> None:
    """Redis stands still: few lines wait in memory, the others in the files, and none is lost."""
    log.backups = 50
    async with opened(server.url) as client:
        policy = Policy(**QUICK, buffer_lines=100, batch_lines=30)
        async with running(make("orders", log.path, client, app=app, policy=policy)) as it:
            log.write(10)
            await all_shipped(client, app, 10)
            server.stop()
            for _ in range(10):
                log.write(100)
                log.rotate()
            await eventually(lambda: it.report.waiting >= 100, within=10)
            log.write(100)
            waiting = [it.report.waiting async for _ in turns(200)]
            server.cont()
            assert max(waiting) <= 100, f"{max(waiting)} lines in memory, 100 allowed"
        assert it.report.dropped == 0
        compare(await in_stream(client, app), log.lines)


async def turns(count: int) -> AsyncIterator[None]:
    """Let the other tasks run `count` times, with the clock that they wait for."""
    for _ in range(count):
        await SYSTEM_CLOCK.sleep(0.001)
        yield


@pytest.mark.invariant(5)
async def test_memory_is_bounded_and_the_files_hold_the_rest(
    log: Log, fresh_server: Server, app: str
) -> None:
    """Of 1 100 lines written while Redis stands still 100 are in memory, and all arrive."""
    await check_memory_is_bounded(Sidecar, log, fresh_server, app)


@pytest.mark.naive(5)
async def test_an_unbounded_buffer_holds_the_whole_outage(log: Log, fresh_server: Server, app: str) -> None:
    """Without a bound every line of the outage is in memory."""
    with pytest.raises(AssertionError, match="lines in memory, 100 allowed"):
        await check_memory_is_bounded(programs.ReadsAllIntoMemory, log, fresh_server, app)


async def check_memory_limit_is_kept(
    spawn: Callable[..., Worker], folder: Path, server: Server, app: str, **env: str
) -> None:
    """Lines as long as they may be, 96 MB of them, and Redis stands still: the process stays in its limit."""
    log, lines, port = folder / "app.log", 6000, free_port()
    log.write_bytes(b"first\n")
    env |= {"LOG_FILE": str(log), "ALIVE_FILE": str(folder / "alive"), "SOURCE": "orders", "APP": app}
    env |= {"REDIS_URL": server.url, "HEALTH_PORT": str(port)}
    child = psutil.Process(spawn("patterns.container.sidecar", env=env).pid)
    async with opened(server.url) as client:
        await all_shipped(client, app, 1)
    server.stop()
    with log.open("ab") as file:
        file.writelines(b"%16383d\n" % number for number in range(lines))
    held = int(env.get("BUFFER_LINES", Policy().buffer_lines))

    async def full() -> bool:
        report = await asyncio.to_thread(ask, "/report", port)
        return report is not None and json.loads(report)["waiting"] >= min(held, lines)

    await eventually(full, within=20)
    most, taken = 128 << 20, child.memory_info().rss  # as in both manifests
    assert taken < most, f"{taken >> 20} MiB taken, {most >> 20} allowed"


@pytest.mark.slow
@pytest.mark.invariant(5)
async def test_the_defaults_fit_into_the_memory_limit_of_the_pod(
    spawn: Callable[..., Worker], tmp_path: Path, fresh_server: Server, app: str
) -> None:
    """A full buffer of the longest lines, and the batch that is on its way, are less than the limit."""
    await check_memory_limit_is_kept(spawn, tmp_path, fresh_server, app)


@pytest.mark.slow
@pytest.mark.naive(5)
async def test_a_buffer_of_many_lines_exceeds_the_memory_limit(
    spawn: Callable[..., Worker], tmp_path: Path, fresh_server: Server, app: str
) -> None:
    """A count alone is no bound of memory: ten thousand long lines end in the kernel's kill."""
    with pytest.raises(AssertionError, match="MiB taken, 128 allowed"):
        await check_memory_limit_is_kept(spawn, tmp_path, fresh_server, app, BUFFER_LINES="10000")


@pytest.mark.invariant(5)
def test_buffer_drops_the_oldest_that_are_not_under_way() -> None:
    """What may be in the stream already is never dropped, so that the count is exact."""
    buffer = Buffer(5)
    lines = [Line(b"%d" % number, Position(number)) for number in range(1, 11)]
    assert buffer.put(lines[:4]) == 0
    assert buffer.take(2) == lines[:2]
    assert (len(buffer), buffer.room) == (4, 1)
    assert buffer.put(lines[4:8]) == 3
    assert buffer.take(2) == lines[:2]
    buffer.done()
    assert buffer.take(9) == lines[5:8]
    buffer.done()
    assert len(buffer) == 0
    assert buffer.take(1) == []


@pytest.mark.invariant(5)
async def test_a_backlog_is_read_no_faster_than_it_is_shipped(log: Log, server: Server, app: str) -> None:
    """A sidecar that comes late to 2 001 lines drops none of them, though its buffer is small."""
    log.write(2001)
    async with opened(server.url) as client:
        policy = Policy(**QUICK, buffer_lines=100, batch_lines=100)
        async with running(Sidecar("orders", log.path, client, app=app, policy=policy)) as it:
            await all_shipped(client, app, len(log.lines))
        assert it.report == Report(shipped=len(log.lines))
        compare(await in_stream(client, app), log.lines)


# 6: apart


async def check_log_is_left_alone(make: Make, log: Log, server: Server, app: str) -> None:
    """Every descriptor of the log is for reading, and no byte, mode or name of it changes."""
    log.write(50)
    log.rotate()
    log.write(50)
    log.open.close()
    before = state_of(log.path.parent)
    async with opened(server.url) as client:
        async with running(make("orders", log.path, client, app=app, policy=Policy(**QUICK))):
            await all_shipped(client, app, 100)
            modes = open_modes(log.path.parent)
        assert modes
        assert modes <= {os.O_RDONLY}, "the log is open for writing"
        assert state_of(log.path.parent) == before, "the log was changed"


@pytest.mark.invariant(6)
async def test_the_log_is_opened_for_reading_only(log: Log, server: Server, app: str) -> None:
    """Contents, times, modes and names of the files are as they were."""
    await check_log_is_left_alone(Sidecar, log, server, app)


@pytest.mark.naive(6)
async def test_a_sidecar_that_cuts_the_log_is_found(log: Log, server: Server, app: str) -> None:
    """A helper that writes to the application's files is no longer beside it."""
    with pytest.raises(AssertionError, match="open for writing"):
        await check_log_is_left_alone(programs.CutsWhatItShipped, log, server, app)


# 7: loopback


async def check_listens_on_loopback_only(serve: Any) -> None:
    """Every address that this process listens on is a loopback address."""
    before = listening()
    async with serve(Report(ready=True), 0) as port:
        new = listening() - before
        assert {address[1] for address in new} == {port}
        assert all(address[0] in {"127.0.0.1", "::1"} for address in new), f"it listens on {new}"
        assert await asyncio.to_thread(ask, "/readyz", port) == "ready"


def listening() -> set[tuple[str, int]]:
    found = psutil.Process().net_connections(kind="tcp")
    return {(each.laddr.ip, each.laddr.port) for each in found if each.status == psutil.CONN_LISTEN}


@asynccontextmanager
async def serves_everyone(report: Report, port: int) -> AsyncIterator[int]:
    """Health on every address of the Pod, as most examples have it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(health, "HOST", "0.0.0.0")
        async with health.serve(report, port) as taken:
            yield taken


@pytest.mark.invariant(7)
async def test_health_is_served_on_loopback_only() -> None:
    """Nobody outside the Pod can ask."""
    await check_listens_on_loopback_only(health.serve)


@pytest.mark.naive(7)
async def test_health_on_every_address_is_found() -> None:
    """0.0.0.0 shows the report to the whole network."""
    with pytest.raises(AssertionError, match="it listens on"):
        await check_listens_on_loopback_only(serves_everyone)


async def test_health_tells_alive_ready_and_the_report() -> None:
    """Each path answers what its probe wants to know; anything else is a 404 or no answer at all."""
    report = Report()
    async with health.serve(report, 0) as port:

        async def told(path: str) -> str | None:
            return await asyncio.to_thread(ask, path, port)

        assert await told("/livez") == "alive"
        assert await told("/readyz") is None
        report.ready, report.shipped = True, 7
        assert await told("/readyz") == "ready"
        assert json.loads(await told("/report") or "")["shipped"] == 7
        assert await told("/etc/passwd") is None

        def raw(request: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
                link.sendall(request)
                link.shutdown(socket.SHUT_WR)
                with suppress(ConnectionResetError):
                    return link.recv(100)
                return b""

        assert (
            await asyncio.to_thread(raw, b"nonsense\r\n\r\n")
            == b"HTTP/1.1 404 Not Found\r\nContent-Length: 12\r\nConnection: close\r\n\r\nno such path"
        )
        assert await asyncio.to_thread(raw, b"GET /livez") == b""
        assert await asyncio.to_thread(raw, b"GET /" + b"x" * 10_000) == b""
    assert await asyncio.to_thread(ask, "/livez", port) is None


# tail


TestTail = pytest.mark.invariant(2)(TailMachine.TestCase)
TestTail.settings = settings(max_examples=120, stateful_step_count=30)


@pytest.mark.invariant(2)
@pytest.mark.parametrize("moment", ["first look", "looking for the next", "after a restart"])
def test_a_rotation_between_looking_and_opening_loses_nothing(log: Log, moment: str) -> None:
    """The names mean other files by the time one is opened: it is looked up again."""

    class Meddled(Tail):
        armed = False

        def _files(self) -> list[Any]:
            files = super()._files()
            if self.armed:
                self.armed = False
                log.rotate()
                log.write(3)
            return files

    log.write(3)
    log.rotate()
    log.write(3)
    tail = Meddled(log.path)
    if moment == "looking for the next":
        seen = tail.read(3)
    elif moment == "after a restart":
        seen = tail.read(2)
        tail.close()
        tail = Meddled(log.path, seen[-1].after)
    else:
        seen = []
    tail.armed = True
    while len(seen) < len(log.lines) and (lines := tail.read(9) + tail.read(9)):
        seen += lines
    tail.close()
    assert [line.text for line in seen] == log.lines
    assert tail.gaps == 0


@pytest.mark.invariant(2)
def test_what_is_written_while_the_reader_looks_at_the_next_file_is_read_first(log: Log) -> None:
    """The writer finishes the old file between the reader's last read of it and its look at the new one."""

    class Late(Tail):
        def _written_after(self, following: BinaryIO) -> bool:
            if log.open is old:
                log.write(2)
                log.open = new
                log.write(1)
                old.close()
            return super()._written_after(following)

    log.write(1)
    old = log.open
    log.rename()
    new = log.path.open("ab", buffering=0)
    tail = Late(log.path)
    seen = tail.read(10)
    tail.close()
    assert [line.text for line in seen] == log.lines
    assert len(log.lines) == 4


@pytest.mark.invariant(2)
def test_a_file_that_vanishes_between_listing_and_opening_is_looked_up_again(log: Log) -> None:
    """A name that is gone by the time it is opened is no error."""

    class Vanishing(Tail):
        def _files(self) -> list[Any]:
            files = super()._files()
            if not gone:
                gone.append(log.path.rename(log.path.with_name("app.log.1")))
            return files

    gone: list[Path] = []
    log.write(2)
    tail = Vanishing(log.path)
    assert tail.read(10) == []
    assert [line.text for line in tail.read(10)] == log.lines
    tail.close()


@pytest.mark.invariant(2)
def test_a_deleted_log_does_not_bring_the_old_files_again(log: Log) -> None:
    """Somebody removes the newest file: its successor is read, and the older ones are not read again."""
    log.write(3)
    log.rotate()
    log.write(3)
    for age, name in ((60, "app.log.1"), (30, "app.log")):
        os.utime(log.path.with_name(name), (time.time() - age,) * 2)
    tail = Tail(log.path)
    seen = tail.read(100)
    log.path.unlink()
    assert tail.endangered
    log.write(1)  # the writer has not noticed
    seen += tail.read(100)
    log.open.close()
    log.open = log.path.open("ab", buffering=0)
    log.write(3)
    seen += tail.read(100)
    tail.close()
    assert [line.text for line in seen] == log.lines
    assert tail.gaps == 1  # it could not know


@pytest.mark.invariant(3)
def test_the_last_line_may_lack_its_end(log: Log) -> None:
    """What is there of it is a line, and who writes on begins another; a file with no whole line waits."""
    log.open.write(b"begin")
    tail = Tail(log.path)
    assert tail.read(10) + tail.last() == []
    log.open.write(b"\nthe rea")
    first, last = tail.read(10) + tail.last()
    assert (first.text, last.text) == (b"begin", b"the rea")
    assert tail.read(10) + tail.last() == []
    log.open.write(b"begin again\n")
    tail.close()
    for reader in (tail, Tail(log.path, last.after)):
        assert [line.text for line in reader.read(10)] == [b"begin again"]
        reader.close()
    assert tail.gaps == 0


@pytest.mark.invariant(1)
def test_a_folder_that_is_not_there_yet_is_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    """The application may make the folder, too."""
    path = tmp_path / "logs" / "app.log"
    tail = Tail(path)
    assert tail.read(10) == []
    path.parent.mkdir()
    path.write_bytes(b"first\n")
    assert [line.text for line in tail.read(10)] == [b"first"]
    tail.close()


@pytest.mark.invariant(5)
def test_at_most_two_deleted_files_are_held_open(log: Log) -> None:
    """A sidecar that stands still holds the file it reads and the next: so much more must the volume have."""
    tail, files = Tail(log.path), []
    log.write(2)
    assert len(tail.read(1)) == 1
    for _ in range(9):
        files.append(inode_of(log.path))
        log.rotate()
        log.write(1)
        tail.read(0)  # it looks about, and reads nothing
    named = {inode_of(path) for path in log.path.parent.iterdir()}
    assert open_inodes() & (set(files) - named) == set(files[:2])
    tail.close()


@pytest.mark.invariant(5)
def test_an_endless_line_costs_only_what_is_kept_of_it(log: Log) -> None:
    """A line of 10 MB counts once, is cut, and the one after it is whole; a restart agrees."""
    log.open.write(b"x" * 10_000_000)
    tail = Tail(log.path, longest=100)
    assert tail.read(10) == []
    log.open.write(b"\nnext\n")
    long, following = tail.read(10)
    tail.close()
    assert (long.text, following.text) == (b"x" * 100, b"next")
    assert (long.after.seq, following.after.seq) == (1, 2)
    again = Tail(log.path, long.after, longest=100)
    assert again.read(10) == [following]
    again.close()


async def test_what_happens_is_heard(tmp_path: Path, fresh_server: Server, app: str) -> None:
    """Shipping, failing and a gap are events; a report has their sums."""
    heard = Recorder()
    log = Log(tmp_path / "app.log", backups=1)
    log.write(10)
    policy = Policy(**QUICK)
    async with opened(fresh_server.url) as client:
        async with running(Sidecar("orders", log.path, client, app=app, policy=policy)):
            pass
        for _ in range(3):
            log.rotate()
            log.write(10)
        it = Sidecar("orders", log.path, client, app=app, policy=policy, on_event=heard)
        async with running(it):
            await all_shipped(client, app, 30)
            fresh_server.kill()
            log.write(1)
            await eventually(lambda: heard.of(ShippingFailed), within=5)
            fresh_server.restart()
    assert sum(event.lines for event in heard.of(BatchShipped)) == it.report.shipped == 21
    assert heard.of(GapFound) == [GapFound("orders")]
    assert it.report.gaps == 1
    log.open.close()


async def test_a_redis_that_refuses_is_quoted_and_asked_again(log: Log, server: Server, app: str) -> None:
    """The key is taken by something else: the report says so in the server's words, and nothing is lost."""
    key = Keyspace(app, "sidecar").key("orders", "log")
    log.write(5)
    async with opened(server.url) as client:
        await client.set(key, b"taken", px=60_000)
        async with running(Sidecar("orders", log.path, client, app=app, policy=Policy(**QUICK))) as it:
            await eventually(lambda: "WRONGTYPE" in (it.report.failing or ""), within=5)
            await client.delete(key)
        assert it.report.failing is None
        compare(await in_stream(client, app), log.lines)


def test_application_logs_its_orders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sample knows a file and nothing else; told to stop, it says goodbye."""
    handlers = list(logging.getLogger("orders").handlers)
    for name, value in {"LOG_FILE": str(tmp_path / "app.log"), "ORDERS": "2", "PACE": "0"}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    try:
        application.main()
        monkeypatch.setenv("ORDERS", "0")
        monkeypatch.setattr(threading, "Event", AlreadySet)
        application.main()
    finally:
        signal.signal(signal.SIGTERM, before)
        for handler in set(logging.getLogger("orders").handlers) - set(handlers):
            logging.getLogger("orders").removeHandler(handler)
            handler.close()
    lines = (tmp_path / "app.log").read_text().splitlines()
    assert [line.split()[1] for line in lines[:5]] == ["begin,", "order", "order", "end,", "begin,"]
    assert "end," in lines[-1]


class AlreadySet(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        return True


def test_launch_becomes_the_application(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It holds the lock, gives up on a sidecar that is not there, and hands its process over."""
    became: list[Any] = []
    monkeypatch.setattr(os, "execvp", lambda *command: became.append(command))
    monkeypatch.setenv("ALIVE_FILE", str(tmp_path / "alive"))
    monkeypatch.setenv("HEALTH_PORT", str(free_port()))
    monkeypatch.setenv("PATIENCE", "0.1")
    before = signal.getsignal(signal.SIGTERM)
    held: list[int] = []
    monkeypatch.setattr(life, "hold", lambda alive, hold=life.hold: held.append(hold(alive)))
    try:
        life.launch(["python3", "orders.py"])
        with pytest.raises(SystemExit, match="143"):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert became == [("python3", ["python3", "orders.py"])]
    assert not life.has_ended(tmp_path / "alive")
    assert os.get_inheritable(held[0])
    os.close(held[0])
    assert "no sidecar after 0.1 s" in capsys.readouterr().err


@pytest.mark.slow
async def test_the_sample_pod_runs(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """The sample Pod, told to stop, has shipped all that its application logged."""
    for name, value in {"REDIS_URL": server.url, "HEALTH_PORT": str(free_port()), "PACE": "0.01"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    running_pod = asyncio.create_task(pod.main())
    stream = Keyspace("pod", "sidecar").key("sample", "log")
    async with opened(server.url) as client:
        await eventually(lambda: client.xlen(stream), within=30)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running_pod == 0
        entries: Any = await client.xrange(stream)
    assert b"begin" in entries[0][1][b"line"]
    assert b"end" in entries[-1][1][b"line"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"buffer_lines": 0}, "buffer_lines must be a whole number >= 1"),
        ({"batch_lines": True}, "batch_lines must be a whole number"),
        ({"longest_line": 1.5}, "longest_line must be a whole number"),
        ({"poll": 0}, "poll must be seconds > 0"),
        ({"keep": math.inf}, "keep must be seconds > 0 and < 1e9"),
        ({"grace": math.nan}, "grace must be seconds > 0"),
        ({"batch_lines": 11, "buffer_lines": 10}, "batch_lines must be <= buffer_lines 10"),
        ({"retry": 2, "retry_cap": 1}, "retry_cap must be >= retry"),
    ],
)
def test_policy_names_what_is_wrong(changes: dict[str, Any], complaint: str) -> None:
    """A bad value is refused with its name and its bound."""
    with pytest.raises(ValueError, match=complaint):
        Policy(**changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"grace": 0}, "grace must be seconds > 0 and < 1e9, got 0"),
        ({"grace": "3"}, "grace must be seconds > 0 and < 1e9, got '3'"),
        ({"back_off": math.nan}, "back_off must be seconds > 0"),
        ({"back_off_cap": True}, "back_off_cap must be seconds > 0"),
        ({"back_off": 2, "back_off_cap": 1}, "back_off_cap must be >= back_off 2, got 1"),
    ],
)
def test_pod_names_what_is_wrong(changes: dict[str, Any], complaint: str) -> None:
    """A bad time is refused when the Pod is made, with its name and its bound."""
    with pytest.raises(ValueError, match=complaint):
        Pod("test", [], [], env={}, **changes)


@pytest.mark.parametrize("name", ["GRACE", "BUFFER_LINES", "HEALTH_PORT"])
async def test_the_process_names_the_variable_that_is_no_number(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One sentence, not a traceback."""
    environment(monkeypatch, tmp_path / "app.log", tmp_path / "alive", "redis://127.0.0.1:1", "a")
    monkeypatch.setenv(name, "many")
    with pytest.raises(SystemExit, match=f"sidecar: {name} must be a number, got 'many'"):
        await process.main()


# faults


@pytest.mark.slow
@pytest.mark.invariant(2)
@pytest.mark.fault("sidecar killed (SIGKILL) while the application writes")
async def test_twenty_kills_lose_and_double_nothing(
    log: Log, server: Server, app: str, spawn: Callable[..., Worker], ledger: Callable[..., Ledger]
) -> None:
    """Twenty times the sidecar is killed in the middle of shipping; each line is in the stream once."""
    books = ledger(bound="each line once, in order")
    naive = books.without("position in memory")
    for book, kind in ((books, "ours"), (naive, "memory")):
        name = f"{app}-{kind}"
        own = Log(log.path.with_name(f"{kind}.log"), backups=100)
        async with (
            opened(server.url) as client,
            supervised(spawn, kind, own.path, server.url, name) as worker,
        ):
            for number in range(20):
                child = await child_of(worker)
                own.write(200)
                before = len(own.lines) - 200
                await all_shipped(client, name, before + 20)
                book.injected()
                child.kill()
                if kind == "ours" and number % 4 == 3:
                    own.rotate()
            child = await child_of(worker)
            with suppress(AssertionError):
                await all_shipped(client, name, len(own.lines))
            await end(child)
            found = await in_stream(client, name)
        own.open.close()
        enter(book, own.lines, found)
        if kind == "ours":
            compare(found, own.lines)
    books.held("a new sidecar goes on at the position in Redis; the script takes each line once")


def enter(book: Ledger, written: list[bytes], found: list[bytes]) -> None:
    """Enter lines that were written, and what came of them."""
    for line in written:
        book.acked(line)
    for line in found:
        book.effect(line)


@pytest.mark.slow
@pytest.mark.fault("application killed (SIGKILL) while it logs")
async def test_a_killed_application_loses_no_line_that_it_logged(
    tmp_path: Path, server: Server, app: str, spawn: Callable[..., Worker], ledger: Callable[..., Ledger]
) -> None:
    """Five times the application is killed; every line that its logging call returned for is shipped."""
    books = ledger(bound="every line that was logged")
    naive = books.without("shipped by a thread of the application")
    path = tmp_path / "app.log"
    async with opened(server.url) as client:
        async with running(Sidecar("orders", path, client, app=app, policy=Policy(**QUICK))):
            for _ in range(5):
                before = await client.xlen(Keyspace(app, "sidecar").key("orders", "log"))
                worker = spawn(HERE / "application.py", env={"LOG_FILE": str(path), "PACE": "0.001"})
                await all_shipped(client, app, before + 50, within=20)
                worker.kill()
                books.injected()
        lines = path.read_bytes().splitlines()
        enter(books, lines, await in_stream(client, app))
        for number in range(2):
            name = f"{app}-{number}"
            worker = spawn(PROGRAMS, "ships_itself", env={"REDIS_URL": server.url, "APP": name})
            await all_shipped(client, name, 50, within=20)
            worker.kill()
            naive.injected()
            said = [line.encode() for line in worker.output.splitlines() if line.startswith("order")]
            found = await in_stream(client, name)
            enter(
                naive, [b"%d %s" % (number, line) for line in said], [b"%d %s" % (number, x) for x in found]
            )
    books.held("what is in the file is shipped, whoever is alive")


@pytest.mark.fault("Redis killed for a while, with append-only file")
async def test_an_outage_of_redis_loses_and_doubles_nothing(
    log: Log, ledger: Callable[..., Ledger], app: str
) -> None:
    """Three times Redis is killed and comes back: what was written meanwhile is shipped, once."""
    from patterns.embedded import Server  # noqa: PLC0415  here, it needs options

    books = ledger(within=5.0, bound="each line once")
    naive = books.without("sent by the application, errors ignored")
    with Server("--appendonly", "yes", "--appendfsync", "always") as server:
        async with opened(server.url, connect_timeout=0.5) as client:
            async with running(Sidecar("orders", log.path, client, app=app, policy=Policy(**QUICK))) as it:
                for round_ in range(3):
                    log.write(50)
                    await all_shipped(client, app, len(log.lines) - 25)
                    server.kill()
                    books.injected()
                    naive.injected()
                    log.write(100)
                    for number in range(3):
                        line = (round_, number)
                        naive.acked(line)  # the handler swallows the error, as logging does
                        with suppress(Exception):
                            await client.xadd(f"{app}:{{naive}}", {"line": str(line)})
                            naive.effect(line)
                    await eventually(lambda: it.report.failing, within=5)
                    server.restart()
                    await all_shipped(client, app, len(log.lines))
                    books.recovered()
                    naive.recovered()
            enter(books, log.lines, await in_stream(client, app))
    books.held("the files are the buffer; the position came back with the stream")


@pytest.mark.fault("Redis reachable and silent (black hole) while the application logs")
async def test_a_silent_redis_is_not_felt_by_the_application(
    log: Log, server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Replies vanish for a while: no log call waits, and each line is in the stream once."""
    books = ledger(within=5.0, bound="each line once, no log call waits 0.3 s")
    async with opened(server.url) as direct, proxy(server.port, books) as link:
        longest = {}
        async with (
            opened(link.url, connect_timeout=0.5) as client,
            running(Sidecar("orders", log.path, client, app=app, policy=Policy(**QUICK))) as it,
        ):
            log.write(20)
            await all_shipped(direct, app, 20)
            hole = link.hole("down")
            for who in ("file", "application"):
                began = time.monotonic()
                if who == "file":
                    log.write(200)
                else:
                    with suppress(Exception):
                        async with opened(link.url, socket_timeout=1.0) as own:
                            await own.xadd(f"{app}:{{naive}}", {"line": "order"})
                longest[who] = time.monotonic() - began
            await eventually(lambda: it.report.failing, within=5)
            hole.remove()
            await all_shipped(direct, app, 220)
            books.recovered()
        enter(books, log.lines, await in_stream(direct, app))
    assert longest["file"] < 0.3
    assert longest["application"] > 0.9
    books.held("the application wrote 200 lines to its file meanwhile")
    books.naive(
        f"XADD in the request: each order waits for its time-out, here {longest['application']:.1f} s"
    )


@pytest.mark.invariant(2)
@pytest.mark.fault("reply of a shipping script lost after Redis had carried it out")
async def test_a_lost_reply_doubles_nothing(
    log: Log, server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """Thirty batches are sent again, and the script passes over what it has."""
    books = ledger(bound="each line once")
    naive = books.without("plain XADD, redis-py's default retries")

    async def ship(book: Ledger, make: Make) -> None:
        own = Log(log.path.with_name(make.__name__))
        name = f"{app}-{make.__name__}"
        async with (
            proxy(server.port, book) as link,
            opened(link.url) as careful,
            Redis(port=link.port) as default,
            opened(server.url) as direct,
        ):
            client = careful if book is books else default
            async with running(make("orders", own.path, client, app=name, policy=Policy(**QUICK))):
                for _ in range(30 if book is books else 8):  # its library waits before it does it again
                    link.lose_reply(Keyspace(name, "sidecar").key("orders", "log").encode(), times=1)
                    own.write(5)
                    await all_shipped(direct, name, len(own.lines))
            enter(book, own.lines, await in_stream(direct, name))
        own.open.close()

    await asyncio.gather(ship(books, Sidecar), ship(naive, programs.Naive))
    books.held("the script takes each `seq` once")


@pytest.mark.slow
@pytest.mark.fault("sidecar paused (SIGSTOP) while the log rotates three times")
async def test_a_paused_sidecar_finds_the_rotated_files(
    log: Log, server: Server, app: str, spawn: Callable[..., Worker], ledger: Callable[..., Ledger]
) -> None:
    """Five pauses with three rotations each: all lines are shipped, since the files still hold them."""
    books = ledger(within=10.0, bound="each line that the files hold, once")
    naive = books.without("tail -f (follows the descriptor)")
    for book, kind in ((books, "ours"), (naive, "descriptor")):
        name = f"{app}-{kind}"
        own = Log(log.path.with_name(f"{kind}.log"), backups=4)
        async with (
            opened(server.url) as client,
            supervised(spawn, kind, own.path, server.url, name) as worker,
        ):
            child = await child_of(worker)
            for _ in range(5):
                own.write(20)
                with suppress(AssertionError):
                    await all_shipped(client, name, len(own.lines), within=5 if kind == "ours" else 0.1)
                child.suspend()
                book.injected()
                for _ in range(3):
                    own.write(20)
                    own.rotate()
                child.resume()
                with suppress(AssertionError):
                    await all_shipped(client, name, len(own.lines), within=5 if kind == "ours" else 0.1)
                book.recovered()
            await end(child)
            enter(book, own.lines, await in_stream(client, name))
        own.open.close()
    books.held("the position names the file, whatever its name is now")


@pytest.mark.invariant(5)
@pytest.mark.fault("log rotated away faster than a standing Redis takes it")
async def test_every_dropped_line_is_counted(
    tmp_path: Path, fresh_server: Server, app: str, ledger: Callable[..., Ledger]
) -> None:
    """The buffer is full and the file being read is deleted: the oldest lines go, and are counted to one."""
    books = ledger(bound="every line that is missing is counted, at most 100 lines in memory")
    heard, most = Recorder(), {}
    policy = Policy(**QUICK, buffer_lines=100, batch_lines=30)
    for make in (programs.ReadsAllIntoMemory, Sidecar):
        log = Log(tmp_path / f"{make.__name__}.log", backups=1)
        name = f"{app}-{make.__name__}"
        async with opened(fresh_server.url) as client:
            it = make("orders", log.path, client, app=name, policy=policy, on_event=heard)
            async with running(it):
                log.write(10)
                await all_shipped(client, name, 10)
                fresh_server.stop()
                log.write(200)
                await eventually(waits(it, 100), within=10)
                log.rotate()
                await eventually(is_open(log.path), within=10)
                for _ in range(6):
                    deleted = inode_of(log.path.with_name(f"{log.path.name}.1"))
                    log.write(50)
                    log.rotate()
                    log.write(1)
                    # The next rotation comes when the sidecar has taken notice of this one.
                    await eventually(is_closed(deleted), within=10)
                    await eventually(is_open(log.path), within=10)
                most[make] = it.report.waiting
                fresh_server.cont()
            found = await in_stream(client, name)
            numbers = await numbers_in_stream(client, name)
        log.open.close()
        assert it.report.gaps == 0
        missing = [line for line in log.lines if line not in set(found)]
        dropped = sum(event.lines for event in heard.of(LinesDropped))
        assert len(missing) == it.report.dropped == dropped == numbers[-1] - len(numbers)
        if make is Sidecar:
            books.injected(6)
            for line in missing:
                books.failed(line)
            enter(books, [line for line in log.lines if line not in missing], found)
            assert found[-100:] == log.lines[-100:]
            assert most[make] <= 100
            books.held(f"{len(missing)} lines dropped, {dropped} counted, and as many missing in `seq`")
    books.naive(f"no bound: {most[programs.ReadsAllIntoMemory]} lines in memory, and more with each second")


def waits(it: Sidecar, count: int) -> Callable[[], bool]:
    """Return a condition: so many lines wait in memory."""
    return lambda: it.report.waiting >= count


@pytest.mark.slow
@pytest.mark.invariant(5)
@pytest.mark.fault("sidecar paused (SIGSTOP) while the application writes 20 000 lines")
async def test_the_application_does_not_wait_for_a_paused_sidecar(
    tmp_path: Path, server: Server, app: str, spawn: Callable[..., Worker], ledger: Callable[..., Ledger]
) -> None:
    """Into a file each line takes its usual time; into a pipe the application stands when it is full."""
    books = ledger(bound="99 % of the log calls under 5 ms")
    count, report = 20_000, tmp_path / "took.json"
    log = tmp_path / "app.log"
    async with opened(server.url) as client, supervised(spawn, "ours", log, server.url, app) as worker:
        child = await child_of(worker)
        child.suspend()
        books.injected()
        application = spawn(PROGRAMS, "orders", log, count, report)
        assert await application.ended(within=30) == 0
        took = sorted(times_in(report))
        child.resume()
        held_back = len(log.read_bytes().splitlines())
        key = Keyspace(app, "sidecar").key("orders", "log")
        await eventually(lambda: client.xlen(key), within=10)
        await end(child)
    for number in range(len(took)):
        books.acked(number)
        books.effect(number)
    p99 = took[int(len(took) * 0.99)]
    assert held_back > 0
    assert len(took) == count
    assert p99 < 0.005, f"p99 {p99 * 1000:.1f} ms"
    books.held(f"99 % of {count} log calls took under {max(1, math.ceil(p99 * 1000))} ms")
    books.naive(await piped_to_one_that_does_not_read(count, report))


async def piped_to_one_that_does_not_read(count: int, report: Path) -> str:
    """Run the same application with its log going into a pipe that nobody reads for a while."""
    read, write = os.pipe()
    command = [sys.executable, "-u", "-m", PROGRAMS, "orders", "-", str(count), str(report)]
    application = await asyncio.create_subprocess_exec(*command, stdout=write)
    try:
        child = psutil.Process(application.pid)
        full = select.poll()
        full.register(write, select.POLLOUT)
        await eventually(lambda: not full.poll(0), within=20, what="the pipe is full")
        await eventually(lambda: child.status() == psutil.STATUS_SLEEPING, within=20)
        assert application.returncode is None
        written = os.read(read, 1 << 20).count(b"\n")
    finally:
        application.kill()
        await application.wait()
        os.close(read)
        os.close(write)
    return f"piped into it: the application stood still after {written} lines"


def times_in(report: Path) -> list[float]:
    took: list[float] = json.loads(report.read_text())
    return took


# containers


@pytest.mark.containers
@pytest.mark.slow
@pytest.mark.invariant(1, 2, 3, 6)
async def test_the_pod_keeps_what_the_processes_promise(pods: Pods, server: Server) -> None:
    """Ready before the first order; three crashes of the sidecar; each line once, and the last one, too."""
    config = {"REDIS_URL": server.url, "HEALTH_PORT": (port := pods.free_port())}
    async with opened(server.url) as client:
        await forget(client)
        with pods.played("container/sidecar", config=config) as played:
            await all_shipped(client, "shop", 20, within=60)
            assert ask("/readyz", port) == "ready"
            ready_at = next(at for at, text in played.logs("sidecar") if "ready on port" in text)
            first = (await in_stream(client, "shop"))[0]
            assert first.endswith(b"begin, pid 1")
            assert ready_at < float(first.split()[0])

            for crashes in (1, 2):
                before = played.kill("sidecar")
                await eventually(restarted(played, before), within=30)
                assert played.restarts("sidecar") == crashes
                shipped = len(await in_stream(client, "shop"))
                await all_shipped(client, "shop", shipped + 20, within=30)
            assert played.restarts("application") == 0
            assert_sealed(played)

            before = played.kill("sidecar")
            await eventually(restarted(played, before), within=30)
            started = played.pid("sidecar")
            await eventually(lambda: hears(started, signal.SIGTERM), within=30)
            played.stop()  # it imports
            codes = {each: played.exit_code(each) for each in ("application", "sidecar")}
            assert codes == {"application": 0, "sidecar": 0}
            words = [line.split(maxsplit=1)[1] for line in await in_stream(client, "shop")]
            orders = [b"order %d" % number for number in range(1, len(words) - 1)]
            assert words == [b"begin, pid 1", *orders, b"end, pid 1"]
            assert await numbers_in_stream(client, "shop") == list(range(1, len(words) + 1))


async def forget(client: Client) -> None:
    """Delete what an earlier Pod of this name has shipped."""
    keys = Keyspace("shop", "sidecar")
    await client.delete(keys.key("orders", "log"))
    await client.delete(keys.key("orders", "position"))


def restarted(played: Played, pid: int) -> Callable[[], bool]:
    """Return a condition: the sidecar's container has another process."""
    return lambda: played.pid("sidecar") not in {0, pid}


def hears(pid: int, number: signal.Signals) -> bool:
    """Whether a signal would reach this process now: it has a handler for it, or keeps it back."""
    lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    masks = {line[0]: int(line[1], 16) for line in lines if line[0] in {"SigBlk:", "SigCgt:"}}
    return any(mask >> (number - 1) & 1 for mask in masks.values())


def assert_sealed(played: Played) -> None:
    """As the kernel sees them: no root, no capability, no file to write but the log, and that for one."""
    for container in ("sidecar", "application"):
        pid = played.pid(container)
        lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        status = {line[0]: line[1] for line in lines if len(line) > 1}
        assert int(status["Uid:"]) not in {0, os.getuid()}
        assert int(status["CapEff:"], 16) == 0
        assert status["NoNewPrivs:"] == "1"
        mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        modes = {mount[4]: mount[5].split(",")[0] for mount in mounts}
        assert modes["/"] == "ro"
        assert modes["/log"] == ("ro" if container == "sidecar" else "rw")


@pytest.mark.containers
@pytest.mark.slow
@pytest.mark.invariant(4)
async def test_the_pod_of_a_job_ends_by_itself(pods: Pods, server: Server) -> None:
    """Twenty orders, and both containers have ended with 0 without being told."""

    def once(documents: list[dict[str, Any]]) -> None:
        documents[0]["spec"]["restartPolicy"] = "Never"

    port = pods.free_port()
    config = {"REDIS_URL": server.url, "HEALTH_PORT": port, "ORDERS": 20, "JOB": 1}
    async with opened(server.url) as client:
        await forget(client)
        with pods.played("container/sidecar", config=config, change=once) as played:
            await eventually(
                lambda: [played.exit_code(each) for each in ("sidecar", "application")] == [0, 0], within=60
            )
            words = [line.split(maxsplit=1)[1] for line in await in_stream(client, "shop")]
            assert words == [b"begin, pid 1", *[b"order %d" % n for n in range(1, 21)], b"end, pid 1"]


@pytest.mark.invariant(1, 3, 6)
@pytest.mark.parametrize("name", ["pod.yaml", "pod-native.yaml"])
def test_manifests_say_what_the_page_says(name: str) -> None:
    """The sidecar is first, mounts the log for reading, and has time for its grace."""
    spec = yaml.safe_load((HERE / name).read_text())["spec"]
    native = name == "pod-native.yaml"
    containers: list[dict[str, Any]] = [*spec.get("initContainers", []), *spec["containers"]]
    sidecar, application = containers
    assert sidecar["volumeMounts"][0]["readOnly"] is True
    grace = next(int(pair["value"]) for pair in sidecar["env"] if pair["name"] == "GRACE")
    assert grace < spec["terminationGracePeriodSeconds"]
    assert sidecar["resources"]["limits"]["memory"] == "128Mi"
    assert (sidecar.get("restartPolicy") == "Always") is native
    assert ("startupProbe" in sidecar) is native
    assert ("launch" in application.get("command", [])) is not native
    for probe in ("startupProbe", "livenessProbe"):
        if probe in sidecar:
            module, variable, path = sidecar[probe]["exec"]["command"][-3:]
            assert (module, variable) == ("patterns.probe", "HEALTH_PORT")
            assert path in {"/livez", "/readyz"}
