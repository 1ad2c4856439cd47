"""One system of a queue benchmark as a program: what sends jobs to it, and the jobs that its worker runs.

`python -m benchmarks.queue_peers send N gap` sends; the worker is started as the system's documentation says
(`COMMANDS`). PEER names the system, PEER_URL the Redis, PEER_N how many jobs there are. A job notes when it
was begun; the last one writes to the key `result`: microseconds a job between the first and the last, and
the milliseconds from each send to its job. Nothing here imports more than its own system needs: arq lives in
another environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

import redis
import redis.asyncio

PEER = os.environ.get("PEER", "")
URL = os.environ.get("PEER_URL", "")
N = int(os.environ.get("PEER_N", "0"))
THIS = "benchmarks.queue_peers"
COMMANDS = {
    "taskiq": ["taskiq", "worker", f"{THIS}:broker", "--workers", "1"],
    "dramatiq": ["dramatiq", f"{THIS}:broker", "--processes", "1"],
    "rq": ["rq", "worker", "--worker-class", "rq.SimpleWorker", "--url", URL, "--quiet"],
    "arq": ["arq", f"{THIS}.ArqWorker"],
}
WARM_UP = -1.0


class Meter:
    """Counts the jobs of one worker process."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.waited: list[float] = []

    def __call__(self, sent: float) -> None:
        """A job begins."""
        now = time.monotonic()
        if sent == WARM_UP:
            redis.Redis.from_url(URL).set("warm", 1)
            return
        self.begun.append(now)
        self.waited.append((now - sent) * 1000)
        if len(self.begun) == N:
            each = (self.begun[-1] - self.begun[0]) / (N - 1) * 1e6
            redis.Redis.from_url(URL).set("result", json.dumps({"each": each, "waited": self.waited}))


meter = Meter()


def job(sent: float) -> None:
    """Run one: what RQ and dramatiq call."""
    meter(sent)


async def arq_job(_: Any, sent: float) -> None:
    """Run one: arq's first argument is its context."""
    meter(sent)


class ArqWorker:
    """What `arq` reads."""

    functions: Any = ()
    redis_settings: Any = None


if PEER == "arq":
    import arq
    from arq.connections import RedisSettings

    ArqWorker.functions = [arq.func(arq_job, name="job")]
    ArqWorker.redis_settings = RedisSettings.from_dsn(URL)


async def async_job(sent: float) -> None:
    """Run one."""
    meter(sent)


broker: Any = None
if PEER == "taskiq":
    from taskiq_redis import RedisStreamBroker

    broker = RedisStreamBroker(url=URL, consumer_id="0")
    taskiq_job = broker.task(task_name="job")(async_job)

if PEER == "dramatiq":
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    broker = RedisBroker(url=URL)
    dramatiq.set_broker(broker)
    dramatiq_job: Any = dramatiq.actor(job)


async def bare(count: int) -> None:
    """Read, do and acknowledge so many entries at a time."""
    client: Any = redis.asyncio.Redis.from_url(URL)
    while True:
        for _, entries in await client.xreadgroup("g", "c", {"bare": ">"}, count=count, block=1000) or ():
            for _, fields in entries:
                meter(json.loads(fields[b"payload"]))
            await client.xack("bare", "g", *[entry for entry, _ in entries])


async def send(many: int, gap: float, begin: Any = None) -> None:
    """Send so many jobs by `begin`, one after the other, and print microseconds a send."""
    begin = begin or await _sender()
    if gap:
        await begin(WARM_UP)
        while not redis.Redis.from_url(URL).exists("warm"):
            time.sleep(0.01)  # noqa: ASYNC251  there is nothing else to do meanwhile
    began = time.monotonic()
    for number in range(many):
        if gap:
            await asyncio.sleep(max(0.0, began + number * gap - time.monotonic()))
        await begin(time.monotonic())
    print((time.monotonic() - began) / many * 1e6)


async def send_together(many: int) -> None:
    """Append so many jobs to the bare stream, hundreds in a pipeline, and print microseconds a send."""
    client: Any = redis.asyncio.Redis.from_url(URL)
    began = time.monotonic()
    for _ in range(0, many, 500):
        pipe = client.pipeline(transaction=False)
        for _ in range(500):
            pipe.xadd("bare", {"payload": json.dumps(time.monotonic())})
        await pipe.execute()
    print((time.monotonic() - began) / many * 1e6)
    await client.aclose()


async def _sender() -> Any:
    if PEER.startswith("bare"):
        client: Any = redis.asyncio.Redis.from_url(URL)
        return lambda sent: client.xadd("bare", {"payload": json.dumps(sent)})
    if PEER == "taskiq":
        await broker.startup()
        return taskiq_job.kiq
    if PEER == "arq":
        pool = await arq.create_pool(ArqWorker.redis_settings)
        return lambda sent: pool.enqueue_job("job", sent)
    if PEER == "rq":
        from rq import Queue as Rq  # noqa: PLC0415  not in arq's environment

        queue = Rq(connection=redis.Redis.from_url(URL))

        async def enqueue(sent: float) -> None:
            queue.enqueue(f"{THIS}.job", sent)

        return enqueue

    async def dramatiq_send(sent: float) -> None:
        dramatiq_job.send(sent)

    return dramatiq_send


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "send":
        asyncio.run(send(int(arguments[0]), float(arguments[1])))
    elif what == "together":
        asyncio.run(send_together(int(arguments[0])))
    else:
        asyncio.run(bare(int(PEER.split()[1])))
