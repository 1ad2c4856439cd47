"""Runs an application and its sidecar as two processes of this machine, in the order of a Pod.

What the kubelet does for a native sidecar (KEP-753), so that it can be tried without a cluster: the sidecar
starts first, is restarted whenever it ends, with a pause that doubles up to a cap, and is stopped last; the
application's end is the Pod's end.

    python -m patterns.container.sidecar.pod        # the sample application; Ctrl-C stops it
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.events import Event, Listener, LogListener, emit, ignore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ApplicationEnded", "ApplicationStarted", "Pod", "SidecarEnded", "SidecarStarted"]


@dataclass(frozen=True, slots=True)
class SidecarStarted(Event):
    """The sidecar runs under this process id."""

    pid: int


@dataclass(frozen=True, slots=True)
class SidecarEnded(Event):
    """The sidecar ended with this code, negative for a signal, 127 if it could not be started.

    None seconds: it will not be started again.
    """

    code: int
    restart_after_seconds: float | None


@dataclass(frozen=True, slots=True)
class ApplicationStarted(Event):
    """The application runs under this process id."""

    pid: int


@dataclass(frozen=True, slots=True)
class ApplicationEnded(Event):
    """The application ended with this code, negative for a signal."""

    code: int


class Pod:
    """Two processes with one life.

    Args:
        name: the Pod's name in events.
        application: its command line.
        sidecar: its command line.
        env: added to the environment of both.
        grace: seconds from `stop` to SIGKILL, for both together.
        back_off: seconds before the sidecar's first restart; doubled each time.
        back_off_cap: longest such pause; a sidecar that has run for longer starts from `back_off` again.
        clock: where durations are read and waited for.
        on_event: hears of every start and end.
    """

    def __init__(
        self,
        name: str,
        application: Sequence[str],
        sidecar: Sequence[str],
        *,
        env: Mapping[str, str],
        grace: float = 30.0,
        back_off: float = 0.1,
        back_off_cap: float = 10.0,
        clock: Clock = SYSTEM_CLOCK,
        on_event: Listener = ignore,
    ) -> None:
        times: dict[str, Any] = {"grace": grace, "back_off": back_off, "back_off_cap": back_off_cap}
        for label, seconds in times.items():
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
                raise ValueError(f"{label} must be seconds > 0 and < 1e9, got {seconds!r}")
        if back_off_cap < back_off:
            raise ValueError(f"back_off_cap must be >= back_off {back_off!r}, got {back_off_cap!r}")
        self.name = name
        self._commands = application, sidecar
        self._sidecar: asyncio.subprocess.Process | None = None
        self._env = {**os.environ, **env}
        self._grace, self._back_off, self._back_off_cap = grace, back_off, back_off_cap
        self._clock = clock
        self._on_event = on_event
        self._stopping = asyncio.Event()
        self._kill_at = float("inf")

    def stop(self) -> None:
        """Ask `run` to end the application, and then the sidecar. Safe to call again."""
        if not self._stopping.is_set():
            self._kill_at = self._clock.monotonic() + self._grace
        self._stopping.set()

    # --8<-- [start:run]
    async def run(self) -> int:
        """Run both; return the application's exit code."""
        await self._start_sidecar()
        keeper = asyncio.create_task(self._keep())
        try:
            return await self._run_application()
        finally:
            keeper.cancel()
            await self._end_sidecar()

    async def _run_application(self) -> int:
        application = await self._start(self._commands[0])
        emit(self._on_event, ApplicationStarted(self.name, application.pid))
        ended = asyncio.create_task(application.wait())
        told = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
            code = await self._end(application)
        emit(self._on_event, ApplicationEnded(self.name, code))
        return code

    async def _keep(self) -> None:
        """Start the sidecar again whenever it ends, or could not be started."""
        pause = self._back_off
        while True:
            began = self._clock.monotonic()
            code = await self._sidecar.wait() if self._sidecar else _NOT_STARTED
            self._sidecar = None
            if self._clock.monotonic() - began > self._back_off_cap:
                pause = self._back_off
            emit(self._on_event, SidecarEnded(self.name, code, pause))
            await self._clock.sleep(pause)
            pause = min(2 * pause, self._back_off_cap)
            with suppress(OSError):  # no such program, or no memory for it now
                await self._start_sidecar()

    # --8<-- [end:run]

    async def _start_sidecar(self) -> None:
        self._sidecar = await self._start(self._commands[1])
        emit(self._on_event, SidecarStarted(self.name, self._sidecar.pid))

    async def _end_sidecar(self) -> None:
        if self._sidecar:
            code = await self._end(self._sidecar)
            emit(self._on_event, SidecarEnded(self.name, code, None))

    async def _start(self, command: Sequence[str]) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *command, env=self._env, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        """SIGTERM, and SIGKILL when the grace is over; return the exit code."""
        if process.returncode is None:
            self.stop()  # from now on the grace runs
            with suppress(ProcessLookupError):
                process.terminate()
        try:
            with suppress(TimeoutError):
                async with self._clock.timeout(self._kill_at - self._clock.monotonic()):
                    return await process.wait()
        finally:  # it has ended, or the grace has, or nobody waits any longer
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
        return await process.wait()


_NOT_STARTED = 127  # what a shell says of a program that it cannot run


async def main() -> int:
    """Run the sample application and its sidecar until Ctrl-C."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        env = {
            "SOURCE": "sample",
            "APP": "pod",
            "PACE": "0.5",
            "LOG_FILE": f"{folder}/app.log",
            "ALIVE_FILE": f"{folder}/alive",
        }
        application = [sys.executable, f"{here}/life.py", "launch", sys.executable, f"{here}/application.py"]
        sidecar = [sys.executable, "-m", "patterns.container.sidecar"]
        pod = Pod("sample", application, sidecar, env=env, on_event=LogListener())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, pod.stop)
        return await pod.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="pod: %(message)s")
    sys.exit(asyncio.run(main()))
