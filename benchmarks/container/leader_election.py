"""Acquire, renew, release and fail-over, beside a lock by hand and the Lock of redis-py."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
from redis.asyncio.lock import Lock

from benchmarks.paired import SEED, Case, row, time_async
from patterns.container.leader_election import Candidate, Policy, RedisLease, Term
from patterns.embedded import Server
from patterns.keyspace import Client, connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.paired import Row

FAST = Policy(lease_duration=0.5, renew_deadline=0.35, retry_period=0.1)
KILLS = 12
LEASE_MS = 60_000

RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
EXTEND = RELEASE.replace("'DEL', KEYS[1]", "'PEXPIRE', KEYS[1], ARGV[2]")

# A leader to be killed: it renews every 100 ms, by this module, or by redis-py's Lock in a loop.
OURS = """
import asyncio, sys
from patterns.container.leader_election import Candidate, Policy, RedisLease
from patterns.keyspace import opened
async def lead(term):
    print("leads", flush=True)
    await asyncio.Event().wait()
async def main():
    async with opened(sys.argv[1]) as client:
        policy = Policy(lease_duration=0.5, renew_deadline=0.35, retry_period=0.1)
        await Candidate("dies", RedisLease(sys.argv[2], client, app="bench"), policy).run(lead)
asyncio.run(main())
"""
PEER = """
import asyncio, sys
import redis.asyncio
async def main():
    lock = redis.asyncio.Redis.from_url(sys.argv[1]).lock(sys.argv[2], timeout=0.5, sleep=0.1)
    await lock.acquire()
    print("leads", flush=True)
    while True:
        await asyncio.sleep(0.1)
        await lock.reacquire()
asyncio.run(main())
"""


def measure() -> list[Row]:
    """Return the time of each operation, of the fail-over after a kill, and the commands of each."""
    with Server() as server:
        rows = asyncio.run(operations(server))
        rows += asyncio.run(fail_over(server))
        return rows + commands(server)


async def operations(server: Server) -> list[Row]:
    """Time one uncontended acquisition with its release, one renewal, and one refused try."""
    ours = connect(server.url)
    peer = redis.asyncio.Redis.from_url(server.url, retry=None)
    sync = redis.Redis.from_url(server.url, retry=None)
    lease = RedisLease("pair", ours, app="bench")
    release, extend = peer.register_script(RELEASE), peer.register_script(EXTEND)
    sync_lock = sync.lock("bench:sync", timeout=60, blocking=False)

    async def pair() -> None:
        await lease.acquire("me", LEASE_MS)
        await lease.release("me")

    async def pair_by_hand() -> None:
        await peer.set("bench:hand", "me", nx=True, px=LEASE_MS)
        await release(keys=["bench:hand"], args=["me"])

    async def pair_by_lock() -> None:
        lock = Lock(peer, "bench:lock", timeout=60, blocking=False)
        await lock.acquire()
        await lock.release()

    async def pair_by_sync_lock() -> None:
        sync_lock.acquire()
        sync_lock.release()

    held = RedisLease("held", ours, app="bench")
    await held.acquire("me", LEASE_MS)
    await peer.set("bench:held by hand", "me", px=LEASE_MS)
    lock = Lock(peer, "bench:held lock", timeout=60, blocking=False)
    await lock.acquire()
    refused = Lock(peer, "bench:held lock", timeout=60, blocking=False)
    sync_held = sync.lock("bench:held sync", timeout=60, blocking=False)
    sync_held.acquire()

    async def extend_sync() -> None:
        sync_held.reacquire()

    groups: list[list[Case]] = [
        [
            Case("acquire and release: SET NX and a script, by hand", pair_by_hand, baseline=True),
            Case("acquire and release: this module", pair, ours=True, note="with a fencing token"),
            Case("acquire and release: redis-py Lock, asyncio", pair_by_lock, note="no fencing token"),
            Case(
                "acquire and release: redis-py Lock, sync", pair_by_sync_lock, note="no fencing token; blocks"
            ),
        ],
        [
            Case(
                "renew: a script, by hand",
                lambda: extend(keys=["bench:held by hand"], args=["me", LEASE_MS]),
                baseline=True,
            ),
            Case("renew: this module", lambda: held.renew("me", LEASE_MS), ours=True),
            Case("renew: redis-py Lock, asyncio", lock.reacquire),
            Case("renew: redis-py Lock, sync", extend_sync, note="blocks"),
            Case("one PING", peer.ping, note="a bare round trip"),
        ],
        [
            Case(
                "refused try: SET NX, by hand",
                lambda: peer.set("bench:held by hand", "you", nx=True, px=LEASE_MS),
                baseline=True,
            ),
            Case(
                "refused try: this module",
                lambda: held.acquire("you", LEASE_MS),
                ours=True,
                note="says who leads, and for how long",
            ),
            Case("refused try: redis-py Lock, asyncio", refused.acquire),
        ],
    ]
    rows = []
    for cases in groups:
        rows += [in_microseconds(each) for each in await time_async(cases, rounds=15, calls=100, cpu=False)]
    await ours.aclose()
    await peer.aclose()
    sync.close()
    return rows


def in_microseconds(measured: Row) -> Row:
    """Return the row with its nanoseconds as microseconds."""
    return {**measured, "value": measured["value"] / 1000, "unit": "µs"}


async def fail_over(server: Server) -> list[Row]:
    """Take the time to the next leader: from the kill of the last, and from the end of a dead one's lease."""
    ours, peer = connect(server.url), redis.asyncio.Redis.from_url(server.url, retry=None)

    async def follow(name: str) -> None:
        async def work(_: Term) -> None:
            return

        await Candidate("lives", RedisLease(name, ours, app="bench"), FAST).run(work)

    async def follow_by_lock(name: str) -> None:
        lock = peer.lock(name, timeout=0.5, sleep=0.1)
        await lock.acquire()
        await lock.release()

    rng = random.Random(SEED)
    after_kill: dict[str, list[float]] = {"ours": [], "peer": []}
    after_end: dict[str, list[float]] = {"ours": [], "peer": []}
    for kill in range(KILLS):
        for who, program, follower in (("ours", OURS, follow), ("peer", PEER, follow_by_lock)):
            name = f"{who} {kill}"
            after_kill[who].append(await after_a_kill(server.url, name, program, follower, rng))
            milliseconds = rng.randrange(300, 500)
            name = f"{name} ends"
            if who == "ours":
                await RedisLease(name, ours, app="bench").acquire("dead", milliseconds)
            else:
                await peer.set(name, "dead", px=milliseconds)
            ends = time.perf_counter() + milliseconds / 1000
            await follower(name)
            after_end[who].append(1000 * (time.perf_counter() - ends))
    await ours.aclose()
    await peer.aclose()
    rows = []
    for case, times in (("after SIGKILL", after_kill), ("past the end of the lease", after_end)):
        base = statistics.median(times["peer"])
        for who, name in (("peer", "redis-py Lock"), ("ours", "this module")):
            how = "renewed in a loop, tried every 100 ms; " if who == "peer" else ""
            how += "lease 500 ms; " if times is after_kill else ""
            rows.append(
                row(
                    f"{case}: {name}",
                    statistics.median(times[who]),
                    "ms",
                    n=KILLS,
                    baseline_value=base,
                    ours=who == "ours",
                    baseline=who == "peer",
                    note=f"{how}median; longest {max(times[who]):.0f} ms",
                )
            )
    return rows


async def after_a_kill(
    url: str, name: str, program: str, follower: Callable[[str], Awaitable[None]], rng: random.Random
) -> float:
    """Return the milliseconds from the kill of a leader to the next term."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, url, name), stdout=subprocess.PIPE, env={**os.environ}
    )
    try:
        assert child.stdout is not None
        await child.stdout.readline()
        following = asyncio.ensure_future(follower(name))
        await asyncio.sleep(0.2 + 0.2 * rng.random())
        assert not following.done()
    finally:
        child.kill()
        killed = time.perf_counter()
    await following
    seconds = time.perf_counter() - killed
    await child.wait()
    return 1000 * seconds


def commands(server: Server) -> list[Row]:
    """Count what is sent for each operation, as MONITOR sees it; commands inside a script are not sent."""

    def pair_by_lock(client: redis.Redis) -> None:
        lock = client.lock("bench:count", timeout=60, blocking=False)
        lock.acquire()
        lock.reacquire()
        lock.release()

    with redis.Redis.from_url(server.url) as client:
        pair_by_lock(client)  # loads its scripts
        by_lock = sent(server, lambda: pair_by_lock(client))

    def round_of_ours(client: Client, loop: asyncio.AbstractEventLoop) -> None:
        async def all_three() -> None:
            lease = RedisLease("count", client, app="bench")
            await lease.acquire("me", LEASE_MS)
            await lease.renew("me", LEASE_MS)
            await lease.release("me")

        loop.run_until_complete(all_three())

    with asyncio.Runner() as runner:
        ours = connect(server.url)
        round_of_ours(ours, runner.get_loop())
        by_us = sent(server, lambda: round_of_ours(ours, runner.get_loop()))
        runner.run(ours.aclose())
    return [
        row(
            "acquire, renew and release: redis-py Lock",
            by_lock,
            "commands",
            n=1,
            baseline_value=by_lock,
            baseline=True,
        ),
        row(
            "acquire, renew and release: this module",
            by_us,
            "commands",
            n=1,
            baseline_value=by_lock,
            ours=True,
            note="one script each",
        ),
    ]


def sent(server: Server, act: Callable[[], None]) -> int:
    """Return how many commands clients send while `act` runs."""
    seen: list[dict[str, Any]] = []
    ready = threading.Event()

    def watch() -> None:
        with redis.Redis.from_url(server.url) as client, client.monitor() as monitor:
            ready.set()
            for line in monitor.listen():
                if "the end" in line["command"]:
                    return
                seen.append(line)

    watcher = threading.Thread(target=watch)
    watcher.start()
    ready.wait()
    act()
    server.command("ECHO", "the end")
    watcher.join()
    return sum(line["client_type"] != "lua" for line in seen)


def bounds(rows: list[Row]) -> list[str]:
    """No slower than 1.3 times redis-py's Lock, one command for each operation, and fail-over in time."""
    value = {row["case"]: row["value"] for row in rows}
    ratio = {row["case"]: row["ratio"] for row in rows}  # of pairs, and so steadier than the values
    broken = []
    for operation in ("acquire and release", "renew"):
        ours, peer = ratio[f"{operation}: this module"], ratio[f"{operation}: redis-py Lock, asyncio"]
        if ours > 1.3 * peer:
            broken.append(f"{operation} takes {ours:.2f}, more than 1.3 x redis-py's {peer:.2f} of by hand")
    if value["acquire, renew and release: this module"] != 3:
        broken.append("acquire, renew and release are not one command each")
    longest = 1000 * (FAST.lease_duration + 1.2 * FAST.retry_period)
    median = value["after SIGKILL: this module"]
    if median > longest:
        broken.append(f"the next leader comes after {median:.0f} ms, later than {longest:.0f} ms")
    return broken
