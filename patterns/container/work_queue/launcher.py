"""The first process of the application's container: `python3 -m patterns.container.work_queue.launcher ...`.

It runs the command that follows once for each call that a worker-manager leaves in the folder they share; see
`call`. The command knows nothing of this. It finds in its environment

    WORK_ITEM_FILE   the item, to be read
    WORK_ITEM_ID     the same for each attempt at this item: name what you write after it

and says by its exit code whether the item is done. It has a session of its own, and when it ends, or is too
slow, or the call is withdrawn, all its processes are killed.

Environment: CALLS, ITEMS (the folders), OUTPUT_LIMIT (bytes kept of stdout and of stderr).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.container.work_queue.call import FIRST_LOOK, Folders, Result, answer_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Launcher"]


class Launcher:
    """The application container's end of the call.

    Args:
        folders: what it shares with the worker-manager.
        command: the application and its arguments.
        clock: where it waits.
        poll: seconds between two looks for a call, at most, or for its withdrawal.
        output_limit: bytes kept of stdout, and of stderr.
        echo: whether what the application writes is passed on to the container's log.
    """

    def __init__(
        self,
        folders: Folders,
        command: list[str],
        *,
        clock: Clock = SYSTEM_CLOCK,
        poll: float = 0.02,
        output_limit: int = 16_384,
        echo: bool = True,
    ) -> None:
        self._folders = folders
        self._command = command
        self._clock = clock
        self._poll = poll
        self._limit = output_limit
        self._echo = echo
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Take no further call; `run` returns when the running one has ended."""
        self._stopping.set()

    async def run(self) -> None:
        """Answer calls until `stop`."""
        lock = self._folders.hold()
        try:
            self._bury()
            pause = FIRST_LOOK
            while not self._stopping.is_set():
                if self._taken():
                    await self._answer()
                    pause = FIRST_LOOK
                else:
                    with suppress(TimeoutError):
                        async with self._clock.timeout(pause):
                            await self._stopping.wait()
                    pause = min(1.2 * pause, self._poll)
        finally:
            os.close(lock)

    def _taken(self) -> bool:
        """Take the call, if there is one."""
        try:
            self._folders.call.rename(self._folders.running)
        except FileNotFoundError:
            return False
        return True

    def _bury(self) -> None:
        """Kill what a launcher before this one has left running, and say that it was interrupted."""
        folders = self._folders
        process = folders.get(folders.process)
        if process and process["started"] and _started(process["pid"]) == process["started"]:
            _kill(process["pid"])
        if left := folders.get(folders.running):
            folders.put(folders.result, answer_of(left["token"], Result(None, "interrupted")))
        for path in (folders.process, folders.running):
            path.unlink(missing_ok=True)

    # --8<-- [start:answer]
    async def _answer(self) -> None:
        """Run the command for the call that was taken, and leave the result unless it is withdrawn."""
        folders = self._folders
        call = folders.get(folders.running)
        if call is None:
            return  # withdrawn
        began = self._clock.monotonic()
        environment = {**os.environ, "WORK_ITEM_FILE": call["file"], "WORK_ITEM_ID": call["job"]}
        async with self._output(1) as stdout, self._output(2) as stderr:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    env=environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=stdout.pipe,
                    stderr=stderr.pipe,
                    start_new_session=True,
                )
            except OSError as error:
                result = Result(None, f"not started: {error}")
            else:
                try:
                    started = {"pid": process.pid, "started": _started(process.pid)}
                    folders.put(folders.process, started)
                    reason = await self._watch(process, began + call["timeout"])
                finally:
                    _kill(process.pid)  # what it has started, too
                code: int | None = await process.wait()
                await stdout.end(self._clock)
                await stderr.end(self._clock)
                _reap(process.pid)
                seconds = self._clock.monotonic() - began
                reason, code = (reason, None) if reason else (f"exit {code}", code)
                result = Result(code, reason, stdout.text, stderr.text, seconds)
        if folders.running.exists():  # not withdrawn
            folders.put(folders.result, answer_of(call["token"], result))
        for path in (folders.process, folders.running):
            path.unlink(missing_ok=True)

    async def _watch(self, process: asyncio.subprocess.Process, deadline: float) -> str | None:
        """Return why the process must end, or None when it has ended."""
        ended = asyncio.ensure_future(process.wait())
        try:
            while not ended.done():
                if self._clock.monotonic() > deadline:
                    return "timeout"
                if not self._folders.running.exists():
                    return "withdrawn"
                with suppress(TimeoutError):
                    async with self._clock.timeout(self._poll):
                        await asyncio.wait({ended})
        finally:
            ended.cancel()
        return None
        # --8<-- [end:answer]

    @asynccontextmanager
    async def _output(self, log: int) -> AsyncIterator[_Output]:
        """Lend a pipe for the application to write to."""
        read, write = os.pipe()
        output = _Output(write, self._limit, log if self._echo else None)
        try:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: output, os.fdopen(read, "rb", buffering=0)
            )
            try:
                yield output
            finally:
                transport.close()
        finally:
            output.close()


class _Output(asyncio.Protocol):
    """Passes on what comes to the container's log, and keeps the last `limit` bytes."""

    def __init__(self, pipe: int, limit: int, log: int | None) -> None:
        self.pipe = pipe  # the process's end
        self._limit = limit
        self._log = log
        self._kept = b""
        self._ended = asyncio.Event()

    @property
    def text(self) -> str:
        return self._kept.decode("utf-8", "replace")

    def data_received(self, data: bytes) -> None:
        self._kept = (self._kept + data)[-self._limit :]
        if self._log is not None:
            with suppress(OSError):
                os.write(self._log, data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        self._ended.set()

    async def end(self, clock: Clock) -> None:
        """Wait for the last of it, but not for a process that has left the group and holds the pipe."""
        self.close()
        with suppress(TimeoutError):
            async with clock.timeout(1.0):
                await self._ended.wait()

    def close(self) -> None:
        """Close this process's copy of the other end."""
        if self.pipe >= 0:
            os.close(self.pipe)
        self.pipe = -1


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _reap(group: int) -> None:
    """Bury its orphans, which are this process's if it is the container's first."""
    with suppress(ChildProcessError):
        while os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG):
            pass


def _started(pid: int) -> str | None:
    """Return when a process began, in the kernel's words: a pid alone may be another's by now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


async def main(command: list[str]) -> None:
    """Run until SIGTERM, and then to the end of the running item."""
    launcher = Launcher(
        Folders(Path(os.environ["CALLS"]), Path(os.environ["ITEMS"])),
        command,
        output_limit=int(os.environ.get("OUTPUT_LIMIT", "16384")),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, launcher.stop)
    await launcher.run()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python3 -m patterns.container.work_queue.launcher COMMAND [ARGUMENT ...]")
    asyncio.run(main(sys.argv[1:]))
