"""What most people write first, in the shape of the real parts, so that the same checks can judge it."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING, Any

from patterns.container.work_queue import Ended, Manager, Result, Round, State, WorkerManager, scaling
from patterns.container.work_queue import state as real
from patterns.keyspace import Script

if TYPE_CHECKING:
    from pathlib import Path

    from patterns.container.work_queue import Job, Policy, Status


class InMemoryManager(Manager):
    """It knows what is done because it has seen it; the next one has not."""

    def __init__(self, state: State, source: Any, policy: Policy, **options: Any) -> None:
        super().__init__(state, source, policy, **options)
        self.known: set[str] = set()

    async def round(self) -> Round:
        await self._state.settle(self._policy)
        names, cursor = [], None
        while True:
            page = await self._source.page(cursor)
            names += [name for name in page.items if name not in self.known]
            if (cursor := page.next) is None:
                break
        state: Any = self._state
        for name in names:
            await state.forget(name)
            await self._state.offer([name], 1000)
            self.known.add(name)
        return Round(len(names), len(names), 0, 0)


class Forgetful(State):
    """Keeps what waits and runs, as a queue does; what has ended is the manager's business."""

    async def forget(self, item: str) -> None:
        """Make way for a job of the item."""
        job = real.job_id(self.queue, item)
        await self._client.zrem(self._keys[6], job)


class ListsAndCompares(State):
    """Asks what is known, compares, and pushes the rest: two steps, and a list that takes anything."""

    async def offer(self, items: Any, backlog: int) -> list[str]:
        jobs = {item: real.job_id(self.queue, item) for item in items}
        names, ended = self._keys[3], self._keys[6]
        known = {item for item in items if await self._client.hexists(names, jobs[item])}
        known |= {item for item in items if await self._client.zscore(ended, jobs[item])}
        await asyncio.sleep(0)  # the other manager compares, too
        fresh = [item for item in items if item not in known]
        for item in fresh:
            await self._client.hset(names, jobs[item], item)
            await self._client.rpush(f"{self._keys[1]}-list", jobs[item])
        return fresh


class LooksThenTakes(State):
    """Counts what runs, and then takes a job."""

    async def claim(self, token: str) -> Job | None:
        rules: Any = await self._client.hget(self._keys[0], "parallelism")
        if not rules or (await self.status()).running >= int(rules):
            return None
        script = Script("naive.claim", real._CLAIM.source.replace(">= tonumber(rule[1])", ">= 1e9"))
        return await self._claimed(script, token)

    async def _claimed(self, script: Script, token: str) -> Job | None:
        reply = await self._run(script, token)
        if not reply:
            return None
        job, item, attempt, lease, timeout = reply
        return real.Job(
            job.decode(), item.decode(), int(attempt), token, int(lease) / 1e3, int(timeout) / 1e3
        )


class AnybodyReports(State):
    """Takes each report as it comes: the last one stands."""

    async def failed(self, job: Job, report: dict[str, Any], **options: Any) -> Ended:
        await self._client.zadd(self._keys[6], {job.id: 1})
        await self._client.hset(self._keys[7], job.id, "{}")
        await self._client.zrem(self._keys[2], job.id)
        return Ended.FAILED


class AgainAtOnce(State):
    """Tries again at once, for ever."""

    async def failed(self, job: Job, report: dict[str, Any], **options: Any) -> Ended:
        await self.release(job)
        return Ended.AGAIN


class DeafWorker(WorkerManager):
    """Takes a job and does it; what a heartbeat is told is of no interest."""

    async def _beat(self, job: Job, asked: float) -> None:
        while True:
            await self._clock.sleep(job.lease / 3)
            await self._state.renew(job)


class DoneFirst(WorkerManager):
    """Says that the item is done, so that nobody else takes it, and then does it."""

    async def _attempt(self, job: Job) -> Result | None:
        await self._state.done(job)
        return await super()._attempt(job)


class GivesUp(WorkerManager):
    """An item that cannot be had has failed."""

    async def _attempt(self, job: Job) -> Result | None:
        try:
            content = await self._source.get(job.item)
        except Exception as error:
            return Result(None, repr(error))
        return await self._application.run(job.id, job.token, content, job.timeout)


class KnowsFolders(Manager):
    """Saves the container in between, and lists the folder itself."""

    async def round(self) -> Round:
        await self._state.settle(self._policy)
        names = os.listdir(os.environ["FOLDER"])
        await self._state.offer(names, 1000)
        return Round(len(names), 0, 0, 0)


def path_of(queue: str, item: str) -> str:
    """Name the file after the item, and what cannot be in a name is replaced."""
    return item.replace("/", "_")


class RunsDirectly:
    """Runs the program with a timeout, as subprocess does it, and keeps all that it writes."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.folder, self.command = folder, command

    def ready(self) -> bool:
        return True

    async def run(self, job: str, token: str, content: bytes, limit: float) -> Result:
        path = self.folder / job
        path.write_bytes(content)
        environment = {**os.environ, "WORK_ITEM_FILE": str(path)}

        def run() -> Result:
            with (self.folder / "out").open("w+b") as out:
                try:
                    done = subprocess.run(
                        self.command, env=environment, stdout=out, timeout=limit, check=False
                    )
                except subprocess.TimeoutExpired:
                    return Result(None, "timeout")
                out.seek(0)
                return Result(done.returncode, f"exit {done.returncode}", out.read().decode())

        return await asyncio.to_thread(run)


class ByBacklog(scaling.Scaler):
    """As many workers as it takes to clear what waits, now; none when nothing does."""

    def workers(self, status: Status, now: float) -> int:
        return min(max(status.ready // 2, 0), self._scaling.most)
