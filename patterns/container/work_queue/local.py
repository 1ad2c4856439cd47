"""The containers as processes of this machine, started again when they die, as a kubelet does.

For tests, notebooks and a first try; what each of them prints is in `<folder>/<name>.log`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from patterns.clock import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

__all__ = ["Container", "Local"]

ROOT = Path(__file__).resolve().parents[3]
# Holds the read end of a pipe whose write end only this process has: when it dies, so does the group.
_GUARD = 'trap "" HUP INT TERM; read -r _; kill -9 0'


@dataclass(slots=True)
class Container:
    """One of the processes.

    Attributes:
        name: "source", "manager", "worker-1", "application-1", ...
        pid: of the process that runs now; 0 between two.
        codes: how those before it ended, negative for a signal.
    """

    name: str
    pid: int
    codes: list[int]


class Local:
    """A source, a manager, and workers with their applications.

    Args:
        folder: where they keep their files.
        application: the command that does one item.
        redis_url: where the state is.
        source: "folder" with FOLDER in `settings`, "redis", or the URL of a source that runs elsewhere.
        workers: pairs of worker-manager and application.
        managers: how many.
        settings: environment of all of them: PARALLELISM, LEASE, ...
        restart: seconds until a process that has ended is started again.
        clock: where it waits.
    """

    def __init__(
        self,
        folder: Path,
        application: Sequence[str],
        redis_url: str,
        *,
        source: str = "folder",
        workers: int = 2,
        managers: int = 1,
        settings: Mapping[str, object],
        restart: float = 0.1,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._restart = restart
        self._clock = clock
        self._stopping = asyncio.Event()
        self.url = source if "://" in source else f"http://127.0.0.1:{_free_port()}"
        common = {"REDIS_URL": redis_url, "SOURCE_URL": self.url, "APP": "local", "QUEUE": "items"}
        common |= {name: str(value) for name, value in settings.items()}
        python = [sys.executable, "-m", "patterns.container.work_queue"]
        self._commands: dict[str, tuple[list[str], dict[str, str]]] = {}
        if "://" not in source:
            port = self.url.rpartition(":")[2]
            self._commands["source"] = [*python, source], {**common, "PORT": port}
        for number in range(1, managers + 1):
            name = "manager" if managers == 1 else f"manager-{number}"
            self._commands[name] = [*python, "manager"], {**common, "PORT": str(_free_port())}
        for number in range(1, workers + 1):
            pod = {**common, "NAME": f"worker-{number}"}
            for role in ("calls", "items"):
                path = folder / f"pod-{number}" / role
                path.mkdir(parents=True, exist_ok=True)
                pod[role.upper()] = str(path)
            launcher = [sys.executable, "-P", "-m", "patterns.container.work_queue.launcher", *application]
            pod["PYTHONPATH"] = str(_image(folder / "image"))
            self._commands[f"application-{number}"] = launcher, dict(pod)
            del pod["PYTHONPATH"]
            self._commands[f"worker-{number}"] = [*python, "worker"], pod
        self.containers = {name: Container(name, 0, []) for name in self._commands}

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._guard = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _GUARD), stdin=asyncio.subprocess.PIPE, process_group=0
            )
            stack.callback(self._kill_all)
            self._tasks = [asyncio.create_task(self._keep(name)) for name in self._commands]
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        for container in self.containers.values():
            self.kill(container.name, signal.SIGTERM)
        try:
            with suppress(TimeoutError):
                async with self._clock.timeout(10):
                    await asyncio.wait(self._tasks)
        finally:
            await self._stack.aclose()
            await asyncio.wait(self._tasks)
            await self._guard.communicate()

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a container's process and return its pid."""
        pid = self.containers[name].pid
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid

    def log(self, name: str) -> str:
        """Return what a container has printed."""
        path = self._folder / f"{name}.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    async def _keep(self, name: str) -> None:
        """Run a container's process, again and again."""
        command, environment = self._commands[name]
        container = self.containers[name]
        while not self._stopping.is_set():
            with (self._folder / f"{name}.log").open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    process_group=self._guard.pid,
                )
            container.pid = process.pid
            if self._stopping.is_set():
                self.kill(name, signal.SIGTERM)
            code = await process.wait()
            container.pid = 0
            container.codes.append(code)
            with suppress(TimeoutError):
                async with self._clock.timeout(self._restart):
                    await self._stopping.wait()

    def _kill_all(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._guard.pid, signal.SIGKILL)


def _image(folder: Path) -> Path:
    """Lay out what the application's image holds of this package, and no more: it then starts in no time."""
    for name in (
        "__init__.py",
        "clock.py",
        "container/work_queue/call.py",
        "container/work_queue/launcher.py",
    ):
        path = folder / "patterns" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.symlink_to(ROOT / "patterns" / name)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
