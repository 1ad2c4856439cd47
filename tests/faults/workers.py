"""Real processes that can be killed or paused while they are in a job.

    with worker("tests.faults.programs.queue", "blpop", server.url) as w:
        await w.said("in job", within=5)      # the kill lands in a job, and not beside it
        w.kill()

A worker is a Python module or file in a process of its own. What it prints is kept; `said` waits for a line
and goes on after it the next time. With a guard beside it, it ends when its `with` ends, however that
happens: by an exception, by SIGKILL of the test run, also while it is paused.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.eventually import eventually, eventually_now

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self


__all__ = ["Worker", "worker"]

ROOT = Path(__file__).resolve().parents[2]

# SIGUSR1 makes the worker write where each of its threads stands: the answer to "why does it hang".
_RUN = """
import faulthandler, runpy, signal, sys
faulthandler.register(signal.SIGUSR1, all_threads=True)
kind, name = sys.argv.pop(1), sys.argv[1]
del sys.argv[0]
(runpy.run_module if kind == "module" else runpy.run_path)(name, run_name="__main__")
"""
# Holds the read end of a pipe whose write end only the test run has.
_GUARD = 'trap "" HUP INT TERM; read -r _; kill -9 "$1" 2>/dev/null'


class Worker:
    """One process; see the module.

    Args:
        program: a module's dotted name, or the path of a file.
        arguments: of its command line.
        env: added to this process's environment.

    Attributes:
        pid: its process id.
    """

    def __init__(self, program: str | Path, *arguments: object, env: Mapping[str, str] | None = None) -> None:
        self._command = [
            *(sys.executable, "-u", "-c", _RUN, "file" if isinstance(program, Path) else "module"),
            *(str(program), *map(str, arguments)),
        ]
        self._env = {"PYTHONPATH": str(ROOT), **(env or {})}
        self._read = 0

    def __enter__(self) -> Self:
        self._said = tempfile.NamedTemporaryFile(prefix="worker-")
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self._env},
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            self.kill()
        # Before its pipe closes, so that it never kills a stranger who was given the same pid.
        self._guard.kill()
        self._guard.communicate()
        self._said.close()

    @property
    def output(self) -> str:
        """All that it has printed, errors too."""
        return Path(self._said.name).read_text("utf-8", "replace")

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it lives."""
        return self._process.poll()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._send(signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> None:
        """SIGTERM: ask it to end; `ended` waits for it."""
        self._send(signal.SIGTERM)

    def stop(self) -> None:
        """SIGSTOP, and wait until it stands still."""
        self._send(signal.SIGSTOP)
        process = psutil.Process(self.pid)
        eventually_now(lambda: process.status() == psutil.STATUS_STOPPED, within=5)

    def cont(self) -> None:
        """SIGCONT: let it go on."""
        self._send(signal.SIGCONT)

    async def said(self, text: str, *, within: float) -> str:
        """Wait for the next whole line that holds `text` and return it.

        Raises:
            AssertionError: it did not come in time, or the worker ended; with all that it printed.
        """

        def line() -> str | None:
            ended = self.code is not None
            lines = self.output.splitlines(keepends=True)
            for number, each in enumerate(lines[self._read :], self._read):
                if text in each and each.endswith("\n"):
                    self._read = number + 1
                    return each.rstrip("\n")
            if ended:
                raise _Ended
            return None

        try:
            return await eventually(line, within=within) or ""
        except _Ended:
            raise AssertionError(
                f"it ended with {self.code} before it said {text!r}:\n{self.output}"
            ) from None
        except AssertionError:
            raise AssertionError(
                f"it did not say {text!r} within {within:g} s:\n{await self._stuck()}"
            ) from None

    async def ended(self, *, within: float) -> int:
        """Wait until it has ended by itself and return its exit code."""
        try:
            await eventually(lambda: self.code is not None, within=within)
        except AssertionError:
            raise AssertionError(f"it did not end within {within:g} s:\n{await self._stuck()}") from None
        assert self.code is not None
        return self.code

    def _send(self, number: signal.Signals) -> None:
        if self.code is not None:
            raise ProcessLookupError(f"the worker has ended with {self.code}:\n{self.output}")
        os.kill(self.pid, number)

    async def _stuck(self) -> str:
        with suppress(AssertionError, ProcessLookupError):
            self._send(signal.SIGUSR1)
            await eventually(lambda: "most recent call first" in self.output, within=1)
        return self.output


worker = Worker


class _Ended(Exception):
    pass
