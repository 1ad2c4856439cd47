"""How a worker-manager calls an application in another container: through files, in folders that both mount.

    items/<job>     the item, read-only; WORK_ITEM_FILE names it. The application mounts this for reading.
    calls/call      the worker-manager asks: which job, which file, how long it may take
    calls/running   the launcher has taken it: the same file, renamed, so that exactly one of both has it
    calls/process   which process does it, for the launcher that comes after a killed one
    calls/result    the launcher answers: exit code, the end of stdout and stderr
    calls/alive     locked by the launcher for as long as it lives; the kernel lets go of it when it does not

A call is withdrawn by deleting it: not taken yet, it will not be; running, its processes are killed.
Each file appears by a rename, whole or not at all. One item at a time: more of them are more Pods.
Needs nothing but the standard library and `patterns.clock`, so that an image of the application can have it.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from patterns.clock import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ApplicationDown", "FileCall", "Folders", "Result"]


FIRST_LOOK = 0.001  # seconds; each pause is a fifth longer than the one before


class ApplicationDown(Exception):
    """There is no application container, and the call was not begun."""


@dataclass(frozen=True, slots=True)
class Result:
    """How the application ended.

    Attributes:
        code: its exit code, negative for a signal; None if it did not end by itself.
        reason: "exit 3", "timeout", "interrupted": for people.
        stdout: the end of what it wrote.
        stderr: likewise.
        seconds: how long it took.
    """

    code: int | None
    reason: str
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the item is done."""
        return self.code == 0


class Folders:
    """The files of one call; both ends use it.

    Args:
        calls: a folder that both may write.
        items: a folder that the worker-manager may write and the application reads.
    """

    def __init__(self, calls: Path, items: Path) -> None:
        self.items = items
        self.call, self.running, self.process, self.result, self.alive = (
            calls / name for name in ("call", "running", "process", "result", "alive")
        )

    def hold(self) -> int:
        """Take the lock that says that there is an application container.

        Raises:
            BlockingIOError: there is one already.
        """
        descriptor = os.open(self.alive, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        return descriptor

    def held(self) -> bool:
        """Whether there is an application container now."""
        try:
            descriptor = os.open(self.alive, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(descriptor)

    def put(self, path: Path, content: dict[str, Any]) -> None:
        """Let `path` appear with `content`."""
        _appear(path, json.dumps(content).encode(), 0o644)

    def get(self, path: Path) -> dict[str, Any] | None:
        """Return what `path` holds; None if it is not there."""
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        return content


class FileCall:
    """The worker-manager's end.

    Args:
        folders: what it shares with the application container.
        clock: where it waits.
        poll: seconds between two looks for the result, at most; it begins with short ones.
        slack: seconds beyond the timeout after which it does not wait for the launcher either.
    """

    def __init__(
        self, folders: Folders, *, clock: Clock = SYSTEM_CLOCK, poll: float = 0.02, slack: float = 10.0
    ) -> None:
        self._folders = folders
        self._clock = clock
        self._poll = poll
        self._slack = slack

    def ready(self) -> bool:
        """Whether there is an application container, free for a call."""
        return self._folders.held() and not self._folders.running.exists()

    def clear(self) -> None:
        """Withdraw what an earlier worker-manager of this Pod has left."""
        for path in (self._folders.call, self._folders.running, self._folders.result):
            path.unlink(missing_ok=True)
        for path in self._folders.items.iterdir():
            path.unlink()

    # --8<-- [start:run]
    async def run(self, job: str, token: str, content: bytes, limit: float) -> Result:
        """Call the application with one item and return how it ended; cancelled, it withdraws the call.

        Raises:
            ApplicationDown: there was none, and so the item was not begun.
        """
        folders = self._folders
        item = folders.items / job
        began = self._clock.monotonic()
        try:
            _appear(item, content, 0o444)
            asked = {"job": job, "token": token, "file": str(item), "timeout": limit}
            folders.put(folders.call, asked)
            pause = FIRST_LOOK
            while True:
                alive = folders.held()  # before the look: the last thing that it does is to answer
                answer = folders.get(folders.result)
                if answer is not None and answer.pop("token") == token:
                    return Result(**answer)
                seconds = self._clock.monotonic() - began
                if not alive:
                    if self._withdrawn():
                        raise ApplicationDown
                    return Result(None, "interrupted", seconds=seconds)
                if seconds > limit + self._slack:
                    return Result(None, "timeout", seconds=seconds)
                await self._clock.sleep(pause)
                pause = min(1.2 * pause, self._poll)
        finally:
            for path in (folders.call, folders.running, folders.result, item):
                path.unlink(missing_ok=True)
        # --8<-- [end:run]

    def _withdrawn(self) -> bool:
        """Take the call back; False if it was taken."""
        try:
            self._folders.call.unlink()
        except FileNotFoundError:
            return False
        return True


def answer_of(token: str, result: Result) -> dict[str, Any]:
    """Return what the launcher writes."""
    return {"token": token, **asdict(result)}


def _appear(path: Path, content: bytes, mode: int) -> None:
    fresh = path.with_name(f".{path.name}.new")
    with suppress(FileNotFoundError):
        fresh.unlink()
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    fresh.rename(path)
