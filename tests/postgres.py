"""A PostgreSQL server of the tests' own, from the binaries that Debian installs: to fill, kill and restart.

    with Postgres(binaries) as server:
        async with opened(server.url) as db: ...
        server.kill()
        server.restart()

It listens on a socket in its own temporary folder and on loopback, writes without fsync (a killed process
loses nothing that the kernel has), and runs as another user where we are root, for it refuses to be root.
However this process ends, the server ends and its folder is removed: a guard waits for a pipe to close.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import uuid
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from patterns.database import opened
from tests.eventually import eventually_now

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager
    from typing import Self

    from patterns.database import Database

__all__ = ["Home", "Postgres", "binaries", "run_sql", "schema"]

_PATIENCE = 20.0
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "listen_addresses": "127.0.0.1",
    "max_connections": "60",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "jit": "off",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
    "restart_after_crash": "on",
    "timezone": "UTC",
}

# As the guard of patterns/embedded: it makes the folder, is told each pid, and cleans up when its input ends.
# SIGQUIT first: the postmaster then ends its children and frees its shared memory. One that was killed by
# SIGKILL has left a segment, whose number stands in its postmaster.pid.
_GUARD = """
trap "" HUP INT TERM PIPE
dir=$(mktemp -d "$1/pg-XXXXXX") || exit 1
echo "$dir"
exec >/dev/null 2>&1
while read -r server; do pid=$server; done
case $pid in [1-9]*)
  kill -s CONT "$pid"; kill -s QUIT "$pid"
  for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" || break; sleep 0.5; done
  kill -s KILL "$pid" ;;
esac
segment=$(sed -n '7s/.* //p' "$dir/data/postmaster.pid") && [ -n "$segment" ] && ipcrm -m "$segment"
rm -rf "$dir" || { sleep 1; rm -rf "$dir"; }
"""


def binaries() -> Path | None:
    """Return the folder that has initdb and postgres: of PATH, else the newest of Debian's."""
    folders = [Path(found).resolve().parent for found in (shutil.which("postgres"),) if found]
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(debian, key=lambda each: float(each.parent.name), reverse=True)
    for folder in folders:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    return None


class Postgres:
    """One server; a context manager.

    Args:
        folder: where initdb and postgres are; see `binaries`.

    Attributes:
        port: on 127.0.0.1.
        dir: its private folder, removed at the end.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._as: dict[str, Any] = _someone_else() if os.geteuid() == 0 else {}
        self._password = secrets.token_urlsafe(12)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.dir = Path()

    def __enter__(self) -> Self:
        """Make a cluster of databases and start; return when it answers."""
        self._guard = subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                _GUARD,
                "guard",
                "/tmp",
            ],  # short and open to all: a socket's path has 103 bytes
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with cast("IO[bytes]", self._guard.stdout) as answer:
                self.dir = Path(os.fsdecode(answer.readline().rstrip(b"\n")))
            secret = self.dir / "password"
            secret.write_text(self._password)
            for path in (self.dir, secret):
                if self._as:
                    os.chown(path, self._as["user"], self._as["group"])
                path.chmod(0o700)
            self._initdb(secret)
            for attempts_left in reversed(range(5)):
                with closing(socket.create_server(("127.0.0.1", 0))) as free:
                    self.port = free.getsockname()[1]
                try:
                    self._start()
                    break
                except RuntimeError:
                    if not attempts_left or "Address already in use" not in self.log:
                        raise
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the server and remove its folder."""
        self.close()

    def close(self) -> None:
        """End the server and remove its folder."""
        cast("IO[bytes]", self._guard.stdin).close()
        if self._process is not None:
            self._process.wait()  # the guard sends SIGQUIT; we are the parent
        self._guard.wait()

    @property
    def url(self) -> str:
        """By the socket, which only we and root can reach; no password is needed."""
        return f"postgresql://postgres@/postgres?host={self.dir}&port={self.port}"

    @property
    def tcp_url(self) -> str:
        """By loopback, with a password: for a proxy, or to see that none is shown."""
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """Return the URL of a proxy before it, which listens on `port`."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{port}/postgres?sslmode=disable"

    @property
    def password(self) -> str:
        """What no message may show."""
        return self._password

    @property
    def log(self) -> str:
        """What the server wrote."""
        path = self.dir / "log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    @property
    def running(self) -> bool:
        """Whether its process is there, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        assert self._process is not None, "the server is down"
        return self._process.pid

    def kill(self) -> None:
        """End every process of the server with SIGKILL, as if the machine had stopped; its files stay."""
        if self._process is None:
            return
        for pid in [self.pid, *_children(self.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self._order("-")  # from now on the pid may be another's

    def restart(self) -> None:
        """Start again, with the same port and data, and return when it answers; what is up is ended first."""
        self.kill()
        self._start()

    def stop(self) -> None:
        """Pause every process of the server with SIGSTOP."""
        for pid in [self.pid, *_children(self.pid)]:
            os.kill(pid, signal.SIGSTOP)

    def cont(self) -> None:
        """Let a paused server go on."""
        for pid in [self.pid, *_children(self.pid)]:
            os.kill(pid, signal.SIGCONT)

    def _initdb(self, secret: Path) -> None:
        done = subprocess.run(
            [
                *(str(self._folder / "initdb"), "--pgdata", str(self.dir / "data"), "--username=postgres"),
                *("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}"),
                *("--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"),
            ],
            cwd=self.dir,
            capture_output=True,
            text=True,
            check=False,
            **self._as,
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")

    def _start(self) -> None:
        settings = _SETTINGS | {"port": str(self.port), "unix_socket_directories": str(self.dir)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.dir / "log").open("ab") as log:
            # The gate becomes the server when it reads a line: by then the guard knows its pid.
            process = subprocess.Popen(
                [
                    *("/bin/sh", "-c", 'read -r _ && exec "$@" </dev/null', "gate"),
                    *(str(self._folder / "postgres"), "-D", str(self.dir / "data"), *options),
                ],
                cwd=self.dir,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as,
            )
        self._process = process
        self._order(process.pid)
        with cast("IO[bytes]", process.stdin) as gate:
            gate.write(b"go\n")
        eventually_now(self._answers, within=_PATIENCE, what="an answer of PostgreSQL")

    def _answers(self) -> bool:
        if not self.running:
            self._process = None
            self._order("-")
            raise RuntimeError(f"PostgreSQL ended before it was ready; its log:\n{self.log}")
        status = self.dir / "data" / "postmaster.pid"
        lines = status.read_text().splitlines() if status.exists() else []
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _order(self, pid: int | str) -> None:
        orders = cast("IO[bytes]", self._guard.stdin)
        orders.write(f"{pid}\n".encode())
        orders.flush()


def _someone_else() -> dict[str, Any]:
    """Return the options with which a child of root runs as an ordinary user."""
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return {}


def _children(pid: int) -> list[int]:
    import psutil  # noqa: PLC0415  only a test that kills or pauses needs it

    with suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


@dataclass(frozen=True)
class Home:
    """A database that no other test uses: empty at first, gone when the test ends.

    Attributes:
        url: what `opened` and other processes are given.
        engine: "sqlite" or "postgres".
    """

    url: str
    engine: str

    def opened(self, **options: Any) -> AbstractAsyncContextManager[Database]:
        """Open it as one more process would."""
        return opened(self.url, **options)


@contextmanager
def schema(url: str, server: Postgres | None = None) -> Iterator[Home]:
    """Lend a new schema in the database of `url`; a `server` of ours that the test killed is restarted."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    run_sql(url, f"CREATE SCHEMA {name}")
    try:
        yield Home(f"{url}{'&' if '?' in url else '?'}search_path={name}", "postgres")
    finally:
        if server is not None and not server.running:
            server.restart()
        run_sql(url, f"DROP SCHEMA {name} CASCADE")


def run_sql(url: str, *statements: str) -> None:
    """Carry out statements from where no loop runs."""

    async def work() -> None:
        async with opened(url, max_connections=1) as db:
            for statement in statements:
                await db.execute(statement)

    asyncio.run(work())
