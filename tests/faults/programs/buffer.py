"""A write-behind buffer in memory: it says "acked N" at once and writes later.

Arguments: unbounded|bounded, port, app. The unbounded one trusts that it will live to its next flush. The
bounded one makes callers wait when it is full and, asked to end, writes what it holds.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading

import redis

ROOM = 100


def unbounded(client: redis.Redis, app: str) -> None:
    held: list[int] = []
    flush_every = threading.Event()

    def flush() -> None:
        while True:
            flush_every.wait(30)
            client.rpush(f"{app}:effects", *held)

    threading.Thread(target=flush, daemon=True).start()
    for number in range(1_000_000):
        held.append(number)
        print("acked", number)


def bounded(client: redis.Redis, app: str) -> None:
    held: queue.Queue[int | None] = queue.Queue(ROOM)
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())

    def flush() -> None:
        while (number := held.get()) is not None:
            client.rpush(f"{app}:effects", number)

    flusher = threading.Thread(target=flush)
    flusher.start()
    number = 0
    while not ending.is_set():
        held.put(number)
        print("acked", number)
        number += 1
    held.put(None)
    flusher.join()


if __name__ == "__main__":
    kind, port, app = sys.argv[1:]
    with redis.Redis(port=int(port), protocol=2) as client:
        (bounded if kind == "bounded" else unbounded)(client, app)
