"""What stands around the sidecar in its tests: a log and its writer, the stream, files, processes."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil

from patterns.keyspace import Keyspace
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.faults.workers import Worker

PROGRAMS = "tests.container.sidecar_programs"


class Log:
    """An application's log, and what was ever written to it.

    Args:
        path: the file.
        backups: rotated files that are kept.
    """

    def __init__(self, path: Path, backups: int = 3) -> None:
        self.path = path
        self.backups = backups
        self.lines: list[bytes] = []
        self.open = path.open("ab", buffering=0)

    def write(self, count: int = 1) -> None:
        """Write whole lines, each different from all others."""
        for _ in range(count):
            self.lines.append(b"line %d" % (len(self.lines) + 1))
            self.open.write(self.lines[-1] + b"\n")

    def rotate(self) -> None:
        """Rename the files and begin a new one, as RotatingFileHandler does."""
        self.open.close()
        self.rename()
        self.open = self.path.open("ab", buffering=0)

    def rename(self) -> None:
        """Rename the files, and go on in the one that is open: the first half of a logrotate."""
        for number in range(self.backups - 1, 0, -1):
            source = self.path.with_name(f"{self.path.name}.{number}")
            if source.exists():
                source.replace(self.path.with_name(f"{self.path.name}.{number + 1}"))
        self.path.replace(self.path.with_name(f"{self.path.name}.1"))


@asynccontextmanager
async def running(sidecar: Any) -> AsyncIterator[Any]:
    """Run a sidecar beside the block, and stop it after."""
    task = asyncio.create_task(sidecar.run())
    try:
        yield sidecar
        sidecar.stop()
        await asyncio.shield(task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def in_stream(client: Any, app: str, source: str = "orders") -> list[bytes]:
    """Return the lines in the stream, in order."""
    entries: Any = await client.xrange(Keyspace(app, "sidecar").key(source, "log"))
    return [fields[b"line"] for _, fields in entries]


async def numbers_in_stream(client: Any, app: str, source: str = "orders") -> list[int]:
    """Return the `seq` of each entry, in order."""
    entries: Any = await client.xrange(Keyspace(app, "sidecar").key(source, "log"))
    return [int(fields[b"seq"]) for _, fields in entries]


def compare(found: list[bytes], written: list[bytes]) -> None:
    """Every line that was written is there once, in order."""
    lost, doubled = len(set(written) - set(found)), len(found) - len(set(found))
    assert (lost, doubled) == (0, 0), f"{lost} lines lost, {doubled} doubled"
    assert found == written, "out of order"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def all_shipped(client: Any, app: str, count: int, within: float = 10) -> None:
    """Wait until the stream has `count` entries."""
    key = Keyspace(app, "sidecar").key("orders", "log")

    async def length() -> bool:
        return int(await client.xlen(key)) >= count

    await eventually(length, within=within, what=f"{count} lines in the stream")


def state_of(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    return {
        path.name: (path.stat().st_mode, path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.iterdir()
    }


def inode_of(path: Path) -> int:
    return path.stat().st_ino


def is_closed(inode: int) -> Callable[[], bool]:
    """Return a condition: this process reads that file no longer."""
    return lambda: inode not in open_inodes()


def open_inodes() -> set[int]:
    """Return the inodes of the files that this process has open for reading."""
    found = set()
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):
            if fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                found.add(os.fstat(int(name)).st_ino)
    return found


def open_modes(folder: Path) -> set[int]:
    """Return how this process has opened the files of `folder`."""
    inodes = {path.stat().st_ino for path in folder.iterdir()}
    modes = set()
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):
            if os.fstat(int(name)).st_ino in inodes:
                modes.add(fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_ACCMODE)
    return modes


def is_open(path: Path) -> Callable[[], bool]:
    """Return a condition: this process has the file open for reading."""
    return lambda: inode_of(path) in open_inodes()


@asynccontextmanager
async def supervised(
    spawn: Callable[..., Worker], kind: str, log: Path, url: str, app: str
) -> AsyncIterator[Worker]:
    """Run a shipper in a process that is started again when it is killed."""
    env = {"LOG_FILE": str(log), "REDIS_URL": url, "APP": app}
    worker = spawn(PROGRAMS, "kept", kind, env=env)
    try:
        yield worker
    finally:
        with suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(worker.pid)
            children = supervisor.children()
            supervisor.kill()
            for child in children:
                child.kill()


async def child_of(worker: Worker) -> psutil.Process:
    """Return the shipper's process, the latest."""
    return psutil.Process(int((await worker.said("pid ", within=20)).split()[1]))


async def end(child: psutil.Process) -> None:
    """SIGTERM, and wait for the end; SIGKILL if it does not come."""
    child.terminate()
    try:
        await eventually(lambda: not alive(child), within=5)
    except AssertionError:
        child.kill()


def alive(child: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return child.status() != psutil.STATUS_ZOMBIE
    return False
