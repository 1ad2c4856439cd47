"""A worker that takes jobs off a list (BLPOP's promise) or off a stream with a consumer group.

Arguments: list|stream, port, app, and `hold` to stand still in its first job until it is killed; without it
the worker does what there is to do and ends.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import redis

IDLE_MS = 50  # a job that was not acknowledged for so long is another worker's


def do(job: str, *, hold: bool) -> None:
    print("in job", job)
    if hold:
        signal.pause()


def off_a_list(client: Any, app: str, *, hold: bool) -> None:
    while found := client.blpop(f"{app}:jobs", timeout=0.1):
        do(found[1], hold=hold)
        client.rpush(f"{app}:effects", found[1])


def off_a_stream(client: Any, app: str, *, hold: bool) -> None:
    stream, group, me = f"{app}:jobs", "workers", f"worker-{id(object())}"
    while True:
        _, claimed, _ = client.xautoclaim(stream, group, me, min_idle_time=IDLE_MS, count=1)
        fresh = [] if claimed else client.xreadgroup(group, me, {stream: ">"}, count=1, block=20)
        jobs = claimed or (fresh[0][1] if fresh else [])
        if not jobs and client.xpending(stream, group)["pending"] == 0:
            return
        for number, fields in jobs:
            do(fields["job"], hold=hold)
            with client.pipeline(transaction=True) as both:
                both.rpush(f"{app}:effects", fields["job"])
                both.xack(stream, group, number)
                both.execute()


if __name__ == "__main__":
    kind, port, app, *rest = sys.argv[1:]
    with redis.Redis(port=int(port), decode_responses=True, protocol=2) as client:
        (off_a_list if kind == "list" else off_a_stream)(client, app, hold=rest == ["hold"])
