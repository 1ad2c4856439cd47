"""The fault harness itself: each fault does what its name says, is counted exactly, and none is skipped."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.eventually import eventually, eventually_now
from tests.faults import Broken, Ledger, leaks, proxy, worker
from tests.faults.rows import Declared, declared
from tools import results

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from patterns.embedded import Server
    from tests.faults import Worker

ROOT = Path(__file__).resolve().parent.parent


def once(port: int, **options: Any) -> Any:  # redis-py types each reply as plain or awaitable
    """Return a client that repeats nothing."""
    return redis.Redis(port=port, protocol=2, retry=Retry(NoBackoff(), 0), **options)


@asynccontextmanager
async def raw(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect without a client library in between."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


# --- the proxy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["port", "socket"])
async def test_a_proxy_without_faults_changes_no_byte(by: str, server: Server, app: str) -> None:
    """Three megabytes of every byte come back unchanged, over a port and over a unix socket."""
    value = bytes(range(256)) * 12_000
    target = server.port if by == "port" else server.socket
    async with proxy(target, may_idle=True) as p, once(p.port) as client:
        await client.set(app, value, px=60_000)
        assert await client.get(app) == value
        assert p.injected == 0


@pytest.mark.usefixtures("no_leaks")
async def test_a_proxy_leaves_nothing_behind(server: Server) -> None:
    """A proxy that ends with connections open closes them, its tasks and its descriptors."""
    async with proxy(server.port, may_idle=True) as p, raw(p.port) as (reader, writer):
        writer.write(b"PING\r\n")
        assert await reader.readline() == b"+PONG\r\n"
        assert len(asyncio.all_tasks()) > 1
    assert await leaks.stray_tasks() == []


async def test_a_proxy_that_broke_nothing_fails_the_test(server: Server) -> None:
    """A fault that was armed and never met its request is not passed over in silence."""

    async def armed_only() -> None:
        async with proxy(server.port) as p, once(p.port) as client:
            p.lose_reply(b"NOT SENT")
            await client.ping()

    with pytest.raises(AssertionError, match="injected nothing"):
        await armed_only()


async def test_a_failure_inside_a_proxy_is_the_failure_told(server: Server) -> None:
    """An idle proxy does not hide the error of the test itself."""
    with pytest.raises(ZeroDivisionError):
        async with proxy(server.port):
            raise ZeroDivisionError


async def test_reset_all_resets_the_idle_and_the_waiting(server: Server, app: str) -> None:
    """Each open connection gets a RST, whether it is idle or waits for a reply; each counts once."""
    async with proxy(server.port) as p, raw(p.port) as (idle, _), once(p.port) as client:
        waiting = asyncio.create_task(client.blpop([app], timeout=0))
        await eventually(lambda: _blocked(server), within=5)
        assert await p.reset_all() == p.injected == 2
        with pytest.raises(ConnectionResetError):
            await idle.read()
        with pytest.raises(RedisConnectionError):
            await waiting
        await eventually(lambda: not _blocked(server), within=5)
        assert await client.ping()


def _blocked(server: Server) -> int:
    info = server.command("INFO", "clients")
    text = info if isinstance(info, str) else str(info)
    return int(text.partition("blocked_clients:")[2].split()[0].strip(",'"))


async def test_a_lost_reply_was_carried_out(server: Server, app: str) -> None:
    """The caller gets an error and the server has done it: once for each of `times`, then no more."""
    async with proxy(server.port) as p, once(p.port) as client, once(server.port) as direct:
        toxic = p.lose_reply(b"INCR", times=2)
        for count in (1, 2):
            assert await client.get("other") is None  # does not match, is not touched
            with pytest.raises(RedisConnectionError):
                await client.incr(app)
            assert (p.injected, toxic.hits) == (count, count)
            assert int(await direct.get(app) or 0) == count
        assert await client.incr(app) == 3
        assert p.injected == 2
        await direct.delete(app)


async def test_a_lost_reply_of_a_long_request_was_carried_out(server: Server, app: str) -> None:
    """A request of many chunks, matched as one by a function, is executed as a whole."""
    value = b"the start" + b"x" * 500_000 + b"the end"

    def both_ends(request: bytes) -> bool:
        return b"the start" in request and b"the end" in request

    async with proxy(server.port) as p, once(p.port) as client, once(server.port) as direct:
        with p.lose_reply(both_ends), pytest.raises(RedisConnectionError):
            await client.set(app, value, px=60_000)
        assert await direct.get(app) == value
        assert p.injected == 1


@pytest.mark.parametrize("transaction", [True, False])
async def test_a_lost_reply_of_a_pipeline_was_carried_out(
    transaction: bool, server: Server, app: str
) -> None:
    """All commands of a pipeline are executed before its connection ends, however many they are."""
    async with proxy(server.port) as p, once(p.port) as client, once(server.port) as direct:
        async with client.pipeline(transaction=transaction) as pipe:
            for _ in range(5000):
                pipe.incr(app)
            with p.lose_reply(b"INCR"), pytest.raises(RedisConnectionError):
                await pipe.execute()
        await eventually(lambda: _is(direct, app, b"5000"), within=5)
        assert p.injected == 1
        await direct.delete(app)


async def _is(client: Any, key: str, value: bytes) -> bool:
    return bool(await client.get(key) == value)


async def test_a_dropped_request_was_not_carried_out(server: Server, app: str) -> None:
    """The caller gets an error and the server has done nothing, though most of the request had passed."""
    async with proxy(server.port) as p, once(p.port) as client, once(server.port) as direct:
        for value in (b"the end", b"x" * 500_000 + b"the end"):
            with p.drop_request(b"the end"), pytest.raises(RedisConnectionError):
                await client.set(app, value)
            assert await direct.get(app) is None
        assert p.injected == 2
        assert await client.set(app, b"the end", px=1000)


async def test_a_limit_cuts_in_the_middle_of_a_value(server: Server, app: str) -> None:
    """Exactly the bytes allowed arrive, then the end of the stream; no client takes a part for the whole."""
    async with proxy(server.port) as p, once(p.port) as client, once(server.port) as direct:
        await direct.set(app, b"x" * 5000, px=60_000)
        with p.limit(900):
            async with raw(p.port) as (reader, writer):
                writer.write(f"GET {app}\r\n".encode())
                assert await reader.read() == b"$5000\r\n" + b"x" * 893
            with pytest.raises(RedisConnectionError):
                await client.get(app)
        assert p.injected == 2
        assert await client.get(app) == b"x" * 5000


async def test_a_limit_upwards_cuts_the_request(server: Server, app: str) -> None:
    """A request cut by the limit is not carried out."""
    async with proxy(server.port) as p, once(p.port) as client, once(server.port) as direct:
        with p.limit(900, "up"), pytest.raises(RedisConnectionError):
            await client.set(app, b"x" * 5000)
        assert p.injected == 1
        assert await direct.get(app) is None


async def test_slices_of_one_byte_are_put_together_again(server: Server, app: str) -> None:
    """The reader gets a byte at a time, and the client the right value all the same."""
    async with proxy(server.port) as p, once(p.port) as client:
        await client.set(app, b"x" * 999, px=60_000)
        with p.slice(1), p.slice(1, "up"):
            pieces: list[bytes] = []

            class Pieces(asyncio.Protocol):
                def data_received(self, data: bytes) -> None:
                    pieces.append(data)

            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_connection(Pieces, "127.0.0.1", p.port)
            transport.write(b"PING\r\n")
            await eventually(lambda: len(pieces) == 7, within=5)
            assert b"".join(pieces) == b"+PONG\r\n"
            transport.close()
            assert p.injected == 2
            assert await client.get(app) == b"x" * 999
        assert p.injected == 4


@pytest.mark.parametrize(("way", "done"), [("down", b"1"), ("up", None)])
async def test_a_hole_ends_at_the_timeout(way: Any, done: bytes | None, server: Server, app: str) -> None:
    """A call into a hole ends at its socket timeout; only a hole on the way back leaves it carried out."""
    async with proxy(server.port) as p, once(p.port, socket_timeout=0.3) as client:
        await client.ping()
        with p.hole(way):
            start = time.monotonic()
            with pytest.raises(RedisTimeoutError):
                await client.incr(app)
            assert 0.29 < time.monotonic() - start < 1.5
            assert p.injected == 1
        async with once(server.port) as direct:
            assert await direct.get(app) == done
            await direct.delete(app)
        assert await client.ping()


async def test_a_hole_swallows_the_end_of_a_connection_too(server: Server, app: str) -> None:
    """The server does not learn that a client behind a hole is gone, until the hole is filled."""
    async with proxy(server.port) as p, once(server.port) as direct:
        async with raw(p.port) as (reader, writer):
            writer.write(f"CLIENT SETNAME {app}\r\n".encode())
            assert await reader.readline() == b"+OK\r\n"
            hole = p.hole("up")
            writer.write(b"PING\r\n")
            await eventually(lambda: hole.hits, within=5)
        await asyncio.sleep(0)
        assert app.encode() in await direct.execute_command("CLIENT", "LIST", NEVER_DECODE=True)
        hole.remove()
        await eventually(lambda: _gone(direct, app), within=5)


async def _gone(direct: Any, name: str) -> bool:
    return name.encode() not in await direct.execute_command("CLIENT", "LIST", NEVER_DECODE=True)


async def test_a_connection_that_lost_bytes_is_reset_when_the_hole_is_filled(server: Server) -> None:
    """No reply can follow a gap: the torn connection is reset, one that lost nothing goes on."""
    async with proxy(server.port) as p, raw(p.port) as (torn, asks), raw(p.port) as (whole, also_asks):
        hole = p.hole("down")
        asks.write(b"PING\r\n")
        await eventually(lambda: hole.hits == 1, within=5)
        hole.remove()
        with pytest.raises(ConnectionResetError):
            await torn.read()
        also_asks.write(b"PING\r\n")
        assert await whole.readline() == b"+PONG\r\n"


async def test_latency_delays_and_counts_each_reply(server: Server) -> None:
    """Three calls take three delays, and are three faults."""
    async with proxy(server.port) as p, once(p.port) as client:
        await client.ping()
        with p.latency(0.05):
            start = time.monotonic()
            for _ in range(3):
                await client.ping()
            assert time.monotonic() - start >= 0.15
        await client.ping()
        assert p.injected == 3


async def test_down_refuses_and_up_serves_on_the_same_port(server: Server) -> None:
    """While down, open connections are reset and new ones refused by the kernel; then all is as before."""
    async with proxy(server.port) as p, raw(p.port) as (reader, _), once(p.port) as client:
        await client.ping()
        port = p.port
        async with p.down():
            with pytest.raises(ConnectionResetError):
                await reader.read()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
        assert p.injected == 1
        assert p.port == port
        async with once(p.port) as again:
            assert await again.ping()
        p.down()
        p.up()
        assert p.injected == 2
        async with once(p.port) as again:
            assert await again.ping()


async def test_a_proxy_outlives_its_server(fresh_server: Server) -> None:
    """A server that was killed is an error to the client; started again, it is reached by the same proxy."""
    async with proxy(fresh_server.port, may_idle=True) as p, once(p.port) as client:
        await client.ping()
        fresh_server.kill()
        for _ in range(2):
            with pytest.raises(RedisConnectionError):
                await _no_attribute_error(client)
        fresh_server.restart()
        assert await client.ping()


async def _no_attribute_error(client: Any) -> None:
    try:
        await client.ping()
    except (AttributeError, TypeError) as error:
        # redis-py 8.1 on Python 3.12 and later, where the connection died while idle (its issue 4287).
        raise RedisConnectionError from error


async def test_the_books_are_told_of_each_fault(server: Server, app: str) -> None:
    """A proxy with a ledger enters each fault in it at the moment it hits."""
    book = Ledger("harness", "reply lost")
    async with proxy(server.port, book) as p, once(p.port) as client:
        await client.ping()
        assert (book.faults, p.injected) == (0, 0)
        with p.lose_reply(b"SET"), pytest.raises(RedisConnectionError):
            await client.set(app, 1, px=1000)
        assert (book.faults, p.injected) == (1, 1)


# --- the ledger --------------------------------------------------------------------------------------------


def books(**limits: Any) -> Ledger:
    book = Ledger("cache/cache_aside", "server killed", **limits)
    book.held("the origin answers")
    book.injected(2)
    return book


def test_the_books_count_what_was_lost_doubled_and_unsure() -> None:
    """Lost is acknowledged without effect; each effect beyond the first is a duplicate; unsure is apart."""
    book = books()
    for work in "abcd":
        book.acked(work)
    book.unsure("e")
    book.unsure("f")
    book.failed("g")
    for work in "bccdddef":
        book.effect(work)
    book.effect("f", 2)
    assert (book.lost, book.duplicated, book.contradicted) == (1, 5, 0)
    assert book.outcomes == {"acked": 4, "unsure": 2, "failed": 1}


def test_the_last_word_about_a_piece_of_work_counts() -> None:
    """Work that was unsure and then acknowledged is acknowledged; unsure and then refused stays unsure."""
    book = books()
    for said in (book.unsure, book.failed, book.acked):
        said("a")
    for said in (book.failed, book.unsure, book.failed):
        said("b")
    assert book.outcomes == {"acked": 1, "unsure": 1, "failed": 0}


def test_the_line_has_its_form(capsys: pytest.CaptureFixture[str]) -> None:
    """Closing prints PATTERN fault: N injected, L lost, D duplicated, U unsure, T s."""
    book = books()
    book.acked(1)
    book.effect(1)
    book.unsure(2)
    book.close()
    said = capsys.readouterr().out
    line = r"cache/cache_aside server killed: 2 injected, 0 lost, 0 duplicated, 1 unsure, \d+\.\d s\n"
    assert re.fullmatch(line, said)


def test_the_row_is_one_that_results_accepts(tmp_path: Path) -> None:
    """The row of closed books is one of the results file: its bound in words, its naive variant counted."""
    book = books(duplicated=2, within=5, bound="reads go on")
    naive = book.without("no lock")
    naive.injected(3)
    naive.acked(1)
    book.acked(1)
    book.effect(1)
    book.recovered()
    book.close()
    path = results.write("faults", book.pattern, [book.row()], seed=1, folder=tmp_path)
    document = results.read("faults", book.pattern, folder=tmp_path)
    assert path.exists()
    assert document is not None
    assert 0 <= document["rows"][0].pop("seconds") < 60
    assert document["rows"] == [
        {
            "fault": "server killed",
            "injected": 2,
            "lost": 0,
            "duplicated": 0,
            "unsure": 0,
            "held": "the origin answers",
            "bound": "0 lost, at most 2 duplicated, back within 5 s, reads go on",
            "naive": "no lock: 1 lost (3 injected)",
        }
    ]


def _nothing_injected() -> Ledger:
    book = Ledger("a/b", "reset")
    book.acked(1)
    book.effect(1)
    return book


def _lost() -> Ledger:
    book = books()
    book.acked(1)
    return book


def _doubled() -> Ledger:
    book = books(duplicated=1)
    book.acked(1)
    book.effect(1, 3)
    return book


def _unsure() -> Ledger:
    book = books(unsure=0)
    book.unsure(1)
    return book


def _contradicted() -> Ledger:
    book = books()
    book.failed(1)
    book.effect(1)
    return book


def _never_back() -> Ledger:
    book = books(within=1)
    book.acked(1)
    book.effect(1)
    return book


def _back_too_late() -> Ledger:
    book = _never_back()
    book._recoveries.append(2.0)
    return book


def _held_by_nothing() -> Ledger:
    book = _never_back()
    book._within = None
    book.held("")
    return book


def _naive_that_holds() -> Ledger:
    book = _never_back()
    book._within = None
    naive = book.without("the naive one")
    naive.injected()
    naive.acked(1)
    naive.effect(1)
    return book


def _naive_that_met_no_fault() -> Ledger:
    book = _never_back()
    book._within = None
    book.without("the naive one").acked(1)
    return book


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (_nothing_injected, "nothing was injected"),
        (books, "no work was entered"),
        (_lost, "1 lost, at most 0"),
        (_doubled, "2 duplicated, at most 1"),
        (_unsure, "1 unsure, at most 0"),
        (_contradicted, "1 failed for sure and yet done"),
        (_never_back, "recovered.. was never called"),
        (_back_too_late, "s to recover, at most 1 s"),
        (_held_by_nothing, "held.. was not told"),
        (_naive_that_holds, "the naive one held as well"),
        (_naive_that_met_no_fault, "nothing was injected into the naive one"),
    ],
)
def test_books_that_do_not_hold_cannot_be_closed(made: Callable[[], Ledger], why: str) -> None:
    """Each way in which a test can prove nothing, or find damage, ends in Broken and says which."""
    with pytest.raises(Broken, match=why):
        made().close()


# --- the run: markers, fragments, results ------------------------------------------------------------------

TINY = {
    "pytest.ini": "[pytest]\nfilterwarnings = error\nmarkers =\n    fault(name, pattern): declares a fault\n",
    "tests/cache/test_one.py": """
import asyncio
import pytest

@pytest.mark.fault("first")
@pytest.mark.parametrize("n", [1, 2])
def test_first(ledger, n):
    book = ledger()
    book.injected(n)
    book.acked(n)
    book.effect(n)
    book.held("it held")

@pytest.mark.fault("second")
async def test_second(ledger):
    book = ledger(bound="awaited")
    book.injected()
    await asyncio.sleep(0)
    book.unsure(1)
    book.held("it held, too")
""",
    "tests/cache/test_two.py": """
import pytest

@pytest.mark.fault("a fault of two")
def test_it(ledger):
    book = ledger()
    book.injected()
    book.acked(1)
    book.effect(1)
    book.held("it held")
""",
    "tests/test_faults_shared.py": """
import pytest

@pytest.mark.fault("third", pattern="cache/one")
@pytest.mark.fault("fourth", pattern="cache/two")
def test_both(ledger):
    for fault in ("third", "fourth"):
        book = ledger(fault)
        book.injected()
        book.acked(1)
        book.effect(1)
        book.held("it held everywhere")
""",
}

BAD = """
import asyncio
import pytest

@pytest.mark.fault("no injection")
def test_no_injection(ledger):
    book = ledger()
    book.acked(1)
    book.effect(1)
    book.held("nothing")

@pytest.mark.fault("no books")
def test_no_books(): ...

@pytest.mark.fault("loses")
async def test_loses(ledger):
    book = ledger()
    book.injected()
    book.acked(1)
    book.held("nothing")

async def test_false():
    await asyncio.sleep(0)
    assert False

async def test_task_left():
    test_task_left.task = asyncio.create_task(asyncio.sleep(60))

async def test_unread():
    async def fail():
        raise OSError("nobody reads this")
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task

def test_open_file(no_leaks):
    test_open_file.file = open("/dev/null")
"""


def tiny(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def run(folder: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "RESULTS_", "REQUIRE"))
    }
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"),
            *(
                "--import-mode=importlib",
                "--rootdir",
                str(folder),
                "-c",
                str(folder / "pytest.ini"),
                "-rA",
                *options,
            ),
        ],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_a_test_that_proves_nothing_fails(tmp_path: Path) -> None:
    """No injection, no books, damage, a false assertion, a task, an unread error, a file: each fails."""
    tiny(tmp_path, {"pytest.ini": TINY["pytest.ini"], "tests/cache/test_bad.py": BAD})
    done = run(tmp_path, RESULTS_DIR=str(tmp_path / "out"))
    for name in ("no_injection", "no_books", "loses", "false", "task_left", "unread"):
        assert f"FAILED tests/cache/test_bad.py::test_{name}" in done.stdout, done.stdout
    assert "ERROR tests/cache/test_bad.py::test_open_file" in done.stdout
    for why in (
        "nothing was injected",
        "keeps no books",
        "1 lost, at most 0",
        "left tasks",
        "nobody reads this",
    ):
        assert why in done.stdout
    assert not list((tmp_path / "out").rglob("*.json"))


def test_a_service_that_is_required_and_missing_fails(
    needs: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing service skips the test; its name in REQUIRE turns the skip into a failure."""
    monkeypatch.setenv("REQUIRE", "other")
    with pytest.raises(pytest.skip.Exception, match="no-such-service is not on this machine"):
        needs("no-such-service")
    monkeypatch.setenv("REQUIRE", "other,no-such-service")
    with pytest.raises(pytest.fail.Exception, match="and REQUIRE names it"):
        needs("no-such-service")
    assert needs("sh").endswith("/sh")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("-p", "xdist.plugin", "-n", "2", "--dist", "loadfile")])
def test_rows_of_all_processes_are_joined_in_the_order_declared(
    workers: tuple[str, ...], tmp_path: Path
) -> None:
    """One file a pattern, its rows in the order of the markers, parameters added up; the seed is told."""
    tiny(tmp_path, TINY)
    done = run(tmp_path, *workers, RESULTS_DIR=str(tmp_path / "out"), FAULT_SEED="41")
    assert done.returncode == 0, done.stdout
    assert "FAULT_SEED=41" in done.stdout
    assert "cache/one second: 1 injected, 0 lost, 0 duplicated, 1 unsure, " in done.stdout
    one = results.read("faults", "cache/one", folder=tmp_path / "out")
    two = results.read("faults", "cache/two", folder=tmp_path / "out")
    assert one is not None
    assert two is not None
    assert [(row["fault"], row["injected"]) for row in one["rows"]] == [
        ("first", 3),
        ("second", 1),
        ("third", 1),
    ]
    assert [row["fault"] for row in two["rows"]] == ["a fault of two", "fourth"]
    assert one["seed"] == 41
    assert one["rows"][1]["bound"] == "0 lost, 0 duplicated, awaited"


@pytest.mark.slow
def test_a_run_of_some_faults_leaves_the_results_as_they_were(tmp_path: Path) -> None:
    """A pattern of which a fault was left out or failed keeps its file of before, and the run says why."""
    tiny(tmp_path, TINY)
    out = tmp_path / "out"
    one_of_two = ("--deselect", "tests/cache/test_one.py::test_first[2]")
    done = run(tmp_path, "-k", "not second", *one_of_two, RESULTS_DIR=str(out))
    assert done.returncode == 0, done.stdout
    assert "results/faults/cache/one.json is as it was, for want of: first; second" in done.stdout
    assert [path.name for path in out.rglob("*.json")] == ["two.json"]
    done = run(tmp_path, "tests/cache/test_one.py", RESULTS_DIR=str(out))
    assert "results/faults/cache/one.json is as it was, for want of: third" in done.stdout
    assert [path.name for path in out.rglob("*.json")] == ["two.json"]


@pytest.mark.slow
def test_without_results_dir_nothing_is_written(tmp_path: Path) -> None:
    """A plain test run checks the form of the rows and leaves the committed results alone."""
    tiny(tmp_path, TINY)
    before = sorted(ROOT.glob("results/faults/**/*.json"))
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "cache/two fourth: 1 injected" in done.stdout
    assert sorted(ROOT.glob("results/faults/**/*.json")) == before
    assert not list(tmp_path.rglob("*.json"))


def test_declared_faults_are_found_without_running(tmp_path: Path) -> None:
    """Markers on tests and on parameters are found in their order; one whose name is computed is refused."""
    path = tmp_path / "test_x.py"
    path.write_text(
        "import pytest\n"
        '@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.fault("b")),\n'
        '    pytest.param(2, marks=pytest.mark.fault("a"))])\n'
        "def test_n(n): ...\n"
        '@pytest.mark.fault("c", pattern="other/one")\n'
        "def test_c(): ...\n"
    )
    assert declared(path, "a/x") == [Declared("a/x", "b"), Declared("a/x", "a"), Declared("other/one", "c")]
    for text in ("@pytest.mark.fault(NAME)\ndef test_x(): ...", "@pytest.mark.fault()\ndef test_x(): ..."):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"test_x\.py:1"):
            declared(path, "a/x")


# --- workers -----------------------------------------------------------------------------------------------

TALKER = "tests.faults.programs.talker"


async def test_said_goes_on_after_the_line_it_found(spawn: Callable[..., Worker]) -> None:
    """`said` returns whole lines one after another, so that the second job is not taken for the first."""
    talker = spawn(TALKER, "job 1", "other", "job 2", "wait")
    assert [await talker.said("job", within=10) for _ in range(2)] == ["job 1", "job 2"]
    assert talker.code is None


async def test_a_worker_that_ends_instead_of_speaking_is_told_at_once(spawn: Callable[..., Worker]) -> None:
    """Waiting for a line of a worker that has ended fails at once, with what it printed."""
    talker = spawn(TALKER, "hello", "raise")
    with pytest.raises(AssertionError, match=r"(?s)ended with 1 before.*hello.*RuntimeError: as told"):
        await talker.said("job", within=30)


async def test_a_worker_that_hangs_says_where(spawn: Callable[..., Worker]) -> None:
    """Waiting in vain fails with the line of the program at which the worker stands."""
    talker = spawn(TALKER, "hello", "wait")
    await talker.said("hello", within=10)
    with pytest.raises(AssertionError, match=r"(?s)did not say 'job' within 0.05 s.*talker.py"):
        await talker.said("job", within=0.05)


async def test_a_worker_is_run_by_its_file_and_given_its_environment(
    spawn: Callable[..., Worker], tmp_path: Path
) -> None:
    """A worker can be a file; its arguments, environment and exit code are its own."""
    path = tmp_path / "program.py"
    path.write_text("import os, sys\nprint(sys.argv[1:], os.environ['COLOUR'])\nsys.exit(7)\n")
    program = spawn(path, "a", 1, env={"COLOUR": "red"})
    assert await program.said("red", within=10) == "['a', '1'] red"
    assert await program.ended(within=10) == 7
    with pytest.raises(ProcessLookupError, match="ended with 7"):
        program.kill()


async def test_a_stopped_worker_stands_still_and_goes_on(spawn: Callable[..., Worker]) -> None:
    """After stop() nothing moves, after cont() it does, and kill() ends also what stands still."""
    talker = spawn(TALKER, "hello", "wait")
    await talker.said("hello", within=10)
    talker.stop()
    talker.terminate()
    assert psutil.Process(talker.pid).status() == psutil.STATUS_STOPPED
    talker.cont()
    assert await talker.ended(within=10) == -15
    other = spawn(TALKER, "wait")
    other.stop()
    other.kill()
    assert other.code == -9


async def test_workers_end_with_the_run_however_it_ends() -> None:
    """A paused worker is gone soon after SIGKILL of the process that started it."""
    with worker(TALKER, "nest") as outer:
        pid = int((await outer.said("nested", within=10)).split()[1])
        assert psutil.pid_exists(pid)
        outer.kill()
        await eventually(lambda: _dead(pid), within=5)


def _dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# --- leaks and waiting -------------------------------------------------------------------------------------


def test_an_open_socket_and_a_living_process_are_found() -> None:
    """A descriptor or a process that outlives the block fails it; one that was there before does not."""
    with socket.socket() as before:
        with leaks.nothing_left():
            before.setblocking(False)
        with pytest.raises(AssertionError, match="close of"), leaks.nothing_left(within=0.05):
            left = socket.socket()
        left.close()
        with worker(TALKER, "wait") as other:
            with pytest.raises(AssertionError, match="end of processes"), leaks.nothing_left(within=0.05):
                inner = worker(TALKER, "wait").__enter__()
            inner.__exit__()
            assert other.code is None


async def test_a_connection_not_given_back_is_found(server: Server) -> None:
    """`in_use` counts the connections that are lent out."""
    async with once(server.port) as client:
        await client.ping()
        assert leaks.in_use(client) == 0
        lent = await client.connection_pool.get_connection()
        assert leaks.in_use(client) == 1
        await client.connection_pool.release(lent)
        assert leaks.in_use(client) == 0


async def test_keys_that_never_expire_are_found(server: Server, app: str) -> None:
    """A key without a TTL is named, unless its role is declared to live for ever."""
    async with once(server.port) as client:
        await client.set(f"{app}:{{p:1}}:value", 1, px=60_000)
        await client.set(f"{app}:{{p:1}}:fence", 1)
        await client.set(f"{app}:{{p:1}}:log", 1)
        assert await leaks.immortal_keys(client, app, declared={"fence"}) == [f"{app}:{{p:1}}:log"]
        await client.delete(f"{app}:{{p:1}}:fence", f"{app}:{{p:1}}:log")


async def test_eventually_returns_the_first_true_answer() -> None:
    """The condition may be plain or a coroutine, and an AssertionError in it means: not yet."""
    answers = iter([0, None, "", 7])
    assert await eventually(lambda: next(answers), within=5) == 7
    tries = iter([False, False, True])

    async def settled() -> str:
        assert next(tries)
        return "settled"

    assert await eventually(settled, within=5) == "settled"


async def test_eventually_says_what_it_waited_for() -> None:
    """Its failure shows the condition and its last answer, also if the condition hangs."""
    with pytest.raises(AssertionError, match=r"(?s)not within 0.02 s: .*1 > 2.*last answer: False"):
        await eventually(lambda: 1 > 2, within=0.02)
    with pytest.raises(AssertionError, match=r"not within 0\.02 s: the sea to dry up"):
        await eventually(asyncio.Event().wait, within=0.02, what="the sea to dry up")
    with pytest.raises(AssertionError, match="last answer: ''"):
        eventually_now(lambda: "", within=0.01)


async def test_eventually_ends_though_its_condition_swallows_the_cancellation() -> None:
    """A deadline cancels once; a client that takes that for one more error does not make the wait endless."""

    async def deaf() -> bool:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return False

    with pytest.raises(AssertionError, match=r"not within 0\.02 s"):
        await eventually(deaf, within=0.02)
