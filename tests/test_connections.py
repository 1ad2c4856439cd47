"""The proof of patterns/connections: what keyspace promises of every call, on one server and on a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import BlockingConnectionPool, Connection, Redis, RedisCluster
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, RedisError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError

from patterns.cache import cache_aside, read_through
from patterns.embedded import Cluster, Server
from patterns.keyspace import Client, Options, OutcomeUnknown, Script, connect, opened
from patterns.outage import NoCache
from tests.eventually import eventually
from tests.faults import leaks, proxy
from tests.places import KINDS, Make, Place, as_it_comes, close, outcome, stub, without_retries

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator


# 1: at most once, and dead connections are found out first


async def check_survives_idle_resets(make: Make, place: Place) -> None:
    """Thirty times the connection is reset while it idles; each next call is to end well."""
    async with place.site(make) as site:
        assert await site.client.set(place.app, 0)
        for number in range(30):
            assert await site.reset() >= 1
            assert await site.client.incr(place.app) == number + 1
        assert int(await site.client.execute_command("GET", place.app)) == 30


@KINDS
@pytest.mark.invariant(1)
async def test_an_idle_connection_that_was_reset_is_replaced_unseen(place: Place) -> None:
    """Thirty of thirty calls after an idle reset end well, and the counter says 30."""
    await check_survives_idle_resets(connect, place)


@KINDS
@pytest.mark.naive(1)
async def test_redis_py_fails_on_an_idle_reset(place: Place) -> None:
    """redis-py that does not repeat fails on a reset connection; on 3.12 with an AttributeError."""
    with pytest.raises((RedisError, AttributeError)):
        await check_survives_idle_resets(without_retries, place)


@KINDS
@pytest.mark.invariant(1)
async def test_a_connection_that_the_server_closed_is_replaced_unseen(place: Place) -> None:
    """A server that closes idle connections in good order (FIN) costs no call."""
    async with opened(place.url) as client:
        for number in range(5):
            assert await client.incr(place.app) == number + 1
            for node in place.nodes:
                node.command("CLIENT", "KILL", "TYPE", "normal")


async def check_applied_once(make: Make, place: Place) -> None:
    """The reply is lost after the server has done it: 50 single calls, 10 each of three kinds of batch."""
    add = Script("add", "return redis.call('INCR', KEYS[1])")

    async def batch(transaction: bool) -> Any:
        async with site.client.pipeline(transaction=transaction) as pipe:
            pipe.incr(key)
            pipe.get(key)
            return await pipe.execute()

    async with place.site(make) as site:
        key = f"{{{place.app}}}"
        assert await site.client.set(key, 0)
        assert await add(site.client, keys=[key]) == 1
        line, expected = site.line(key), 1
        for word, times, call in (
            (b"INCR", 50, lambda: site.client.incr(key)),
            (b"MULTI", 10, lambda: batch(True)),
            (b"INCR", 10, lambda: batch(False)),
            (b"EVALSHA", 10, lambda: add(site.client, keys=[key])),
        ):
            for _ in range(times):
                with line.lose_reply(word) as toxic:
                    said = await outcome(call())
                assert toxic.hits == 1
                expected += 1
                counter = int(await site.client.execute_command("GET", key))
                assert counter == expected, f"{word!r} was applied {counter - expected + 1} times"
                assert isinstance(said, OutcomeUnknown), said


@KINDS
@pytest.mark.invariant(1, 2)
async def test_a_lost_reply_is_told_and_nothing_is_repeated(place: Place) -> None:
    """Of 80 calls of four kinds whose reply is lost, each is applied once and told."""
    await check_applied_once(connect, place)


@KINDS
@pytest.mark.naive(1)
async def test_redis_py_as_it_comes_does_it_twice(place: Place) -> None:
    """With redis-py's defaults a lost reply turns one INCR into two."""
    with pytest.raises(AssertionError, match="was applied 2 times"):
        await check_applied_once(as_it_comes, place)


@KINDS
@pytest.mark.invariant(1)
async def test_reads_are_not_repeated_either(place: Place) -> None:
    """A GET whose reply is lost is sent once, and raises."""
    async with place.site(connect) as site:
        await site.client.set(place.app, b"1")
        with site.line(place.app).lose_reply(b"GET", times=5) as toxic:
            with pytest.raises(OutcomeUnknown, match="GET may have been applied"):
                await site.client.get(place.app)
            assert toxic.hits == 1


# 2: unknown, or surely not


@KINDS
@pytest.mark.invariant(2)
async def test_a_reply_that_does_not_come_in_time_is_an_unknown_outcome(place: Place) -> None:
    """Behind a black hole a call ends within its socket timeout, and the command was applied once."""
    async with place.site(connect, socket_timeout=0.3) as site:
        await site.client.set(place.app, 0)
        with site.line(place.app).hole("down"):
            start = time.monotonic()
            with pytest.raises(OutcomeUnknown) as unknown:
                await site.client.incr(place.app)
            assert 0.29 < time.monotonic() - start < 0.6
        assert unknown.value.command == "INCRBY"
        assert await site.client.get(place.app) == b"1"


@KINDS
@pytest.mark.invariant(2)
async def test_a_reply_cut_short_gives_no_part_of_a_value(place: Place) -> None:
    """When a reply of 5000 bytes ends after 900 the call raises, and the next one has the whole value."""
    async with place.site(connect) as site:
        await site.client.set(place.app, b"v" * 5000)
        with site.line(place.app).limit(900):
            assert isinstance(await outcome(site.client.get(place.app)), OutcomeUnknown)
        assert await site.client.get(place.app) == b"v" * 5000


@KINDS
@pytest.mark.invariant(2)
async def test_a_request_that_died_on_its_way_is_an_unknown_outcome_too(place: Place) -> None:
    """The caller cannot see that a reset came before the server had read: it is told "unknown"."""
    async with place.site(connect) as site:
        await site.client.set(place.app, 0)
        with site.line(place.app).drop_request(b"INCR"):
            assert isinstance(await outcome(site.client.incr(place.app)), OutcomeUnknown)
        assert await site.client.get(place.app) == b"0"


async def check_tells_lost_from_refused(make: Make, server: Server) -> None:
    """One command whose reply is lost, one that no server got."""
    async with proxy(server.port) as line:
        client = make(line.url)
        await client.ping()
        with line.lose_reply(b"INCR"):
            lost = await outcome(client.incr("test-lost"))
        with line.down():
            refused = await outcome(client.incr("test-lost"))
        await client.aclose()
    assert isinstance(lost, RedisConnectionError)
    assert isinstance(refused, RedisConnectionError)
    assert type(lost) is not type(refused), "the two cannot be told apart"
    assert not isinstance(refused, OutcomeUnknown)


@pytest.mark.invariant(2)
async def test_refused_is_told_apart_from_lost(server: Server) -> None:
    """A refused connection is a plain ConnectionError: surely not applied."""
    await check_tells_lost_from_refused(connect, server)


@pytest.mark.naive(2)
async def test_redis_py_does_not_tell_refused_from_lost(server: Server) -> None:
    """In redis-py both are ConnectionError."""
    with pytest.raises(AssertionError, match="cannot be told apart"):
        await check_tells_lost_from_refused(without_retries, server)


@pytest.mark.invariant(2)
async def test_a_paused_server_before_and_after_the_command_was_sent(fresh_server: Server) -> None:
    """Paused in mid-command: unknown, and applied later; paused before: a plain TimeoutError."""
    async with opened(fresh_server.url, socket_timeout=0.2, connect_timeout=0.3) as client:
        await client.set("a", 0)
        fresh_server.stop()
        assert isinstance(await outcome(client.incr("a")), OutcomeUnknown)
        start = time.monotonic()
        assert type(await outcome(client.incr("b"))) is RedisTimeoutError
        assert time.monotonic() - start < 0.6
        fresh_server.cont()
        await eventually(lambda: client.get("a"), within=5)
        assert (await client.get("a"), await client.get("b")) == (b"1", None)


@pytest.mark.invariant(2)
async def test_a_request_that_cannot_be_written_in_time_is_an_unknown_outcome(fresh_server: Server) -> None:
    """A value too large for the buffers on the way to a paused server does not hold its sender."""
    async with opened(fresh_server.url, socket_timeout=0.2) as client:
        await client.ping()
        fresh_server.stop()
        start = time.monotonic()
        assert isinstance(await outcome(client.set("a", bytes(64 << 20))), OutcomeUnknown)
        assert time.monotonic() - start < 2
        fresh_server.cont()


@pytest.mark.invariant(2)
async def test_a_server_that_greets_nobody_is_given_up_after_connect_timeout() -> None:
    """`connect_timeout` bounds the handshake, also for a client that waits for replies without end."""
    async with stub(b"") as url, opened(url, socket_timeout=None, connect_timeout=0.2) as client:
        assert type(await outcome(client.ping())) is RedisTimeoutError


@pytest.mark.invariant(2)
@pytest.mark.parametrize(
    "where", ["redis://127.0.0.1:1", "unix:///nowhere/s", "redis+cluster://127.0.0.1:1,127.0.0.1:2"]
)
async def test_no_server_is_a_plain_connection_error(where: str) -> None:
    """Where nobody listens, the error is a ConnectionError of redis on every kind of address."""
    async with opened(where) as client:
        assert type(await outcome(client.incr("a"))) is RedisConnectionError


@pytest.mark.invariant(2)
async def test_a_full_server_refuses_for_sure(fresh_server: Server) -> None:
    """'max number of clients reached' is a refusal, not an unknown outcome."""
    fresh_server.command("CONFIG", "SET", "maxclients", 1)
    async with opened(fresh_server.url, max_connections=1) as one, opened(fresh_server.url) as two:
        await one.ping()
        error = await outcome(two.incr("a"))
        assert isinstance(error, RedisConnectionError)
        assert not isinstance(error, OutcomeUnknown)


@pytest.mark.invariant(2)
async def test_loading_refuses_one_command_for_sure_but_not_a_pipeline() -> None:
    """A reply of LOADING says that this command was not applied; of those behind it nothing is known."""
    ok = b"+OK\r\n+OK\r\n"
    async with stub(ok, b"-LOADING it loads\r\n") as url, opened(url) as client:
        error = await outcome(client.incr("a"))
        assert isinstance(error, RedisConnectionError)
        assert not isinstance(error, OutcomeUnknown)
    async with stub(ok, b"-LOADING it loads\r\n:1\r\n") as url, opened(url) as client:
        async with client.pipeline(transaction=False) as pipe:
            pipe.incr("a")
            pipe.incr("b")
            error = await outcome(pipe.execute())
        assert isinstance(error, OutcomeUnknown)
        assert error.command == "PIPELINE"


@pytest.mark.invariant(2, 9)
@pytest.mark.parametrize(
    "garbage", [b"$secret\r\n", b"?secret\r\n", b"secret" * 20_000, b"\r\n", b"*1\r\n:x\r\n"]
)
async def test_garbage_is_an_unknown_outcome_and_is_not_shown(garbage: bytes) -> None:
    """What is no reply at all raises OutcomeUnknown, and the message holds nothing of it."""
    async with stub(b"+OK\r\n+OK\r\n", garbage) as url, opened(url) as client:
        error = await outcome(client.incr("a"))
        assert isinstance(error, OutcomeUnknown)
        assert "secret" not in str(error)


@pytest.mark.slow
@KINDS
@pytest.mark.invariant(1, 2, 3, 4)
async def test_a_storm_of_faults_leaves_every_count_right(place: Place, rng: random.Random) -> None:
    """Among resets, lost replies and cancels, 20 tasks see only errors of redis, and every count adds up."""
    said: Counter[str] = Counter()
    done, unknown = 0, 0
    keys = [f"{{{place.app}:{number}}}" for number in range(4)]

    async def guarded_add(key: str) -> None:
        pipe: Any
        async with site.client.pipeline(transaction=True) as pipe:
            await pipe.watch(key)
            now = int(await pipe.execute_command("GET", key) or 0)
            pipe.multi()
            pipe.set(key, now + 1)
            await pipe.execute()

    async def add(key: str) -> None:
        await site.client.incr(key)

    async def worker(chance: random.Random) -> None:
        nonlocal done, unknown
        for _ in range(20):
            line = chance.choice(list(site.lines.values()))
            fault = chance.random()
            if fault < 0.1:
                await line.reset_all()
            elif fault < 0.3:
                line.lose_reply(chance.choice([b"INCR", b"EXEC"]))
            work = asyncio.create_task(chance.choice([add, add, guarded_add])(chance.choice(keys)))
            if chance.random() < 0.1:
                asyncio.get_running_loop().call_later(chance.random() / 100, work.cancel)
            result = await outcome(work)
            said[type(result).__name__] += 1
            if result is None:
                done += 1
            elif isinstance(result, OutcomeUnknown | asyncio.CancelledError):
                unknown += 1
            else:
                assert isinstance(result, RedisConnectionError | RedisTimeoutError | WatchError), repr(result)

    async with place.site(connect, max_connections=8) as site:
        await asyncio.gather(*(worker(type(rng)(rng.random())) for _ in range(20)))
        for line in site.lines.values():
            line.up()
        counts = [int(await site.client.execute_command("GET", key) or 0) for key in keys]
        assert leaks.in_use(site.client) == 0
    assert done > 100, said
    assert unknown > 10, said
    assert done <= sum(counts) <= done + unknown, said


# 3: a WATCH is never lost in silence


async def check_watch_is_not_lost(make: Make, place: Place) -> None:
    """The connection dies between WATCH and EXEC, and another writes meanwhile."""
    async with place.site(make) as site:
        key = place.app
        await site.client.set(key, b"old")
        pipe: Any
        async with site.client.pipeline(transaction=True) as pipe:
            await pipe.watch(key)
            await site.reset()
            await site.client.set(key, b"of another")
            pipe.multi()
            pipe.set(key, b"lost update")
            said = await outcome(pipe.execute())
        assert await site.client.get(key) == b"of another", "the update of another is lost"
        assert isinstance(said, WatchError)


@KINDS
@pytest.mark.invariant(3)
async def test_a_transaction_whose_connection_died_is_not_sent(place: Place) -> None:
    """It ends in WatchError, and what another has written stands."""
    await check_watch_is_not_lost(connect, place)


@KINDS
@pytest.mark.naive(3)
async def test_a_guard_that_just_connects_again_loses_the_watch(place: Place) -> None:
    """Reconnecting before each send, as a cure for dead connections, sends EXEC where nothing is watched."""
    with pytest.raises(AssertionError, match="is lost"):
        await check_watch_is_not_lost(just_connects_again, place)


class JustConnectsAgain(Connection):
    """The guard that comes to mind first."""

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if self._writer is not None and self._writer.transport.is_closing():
            await self.disconnect(nowait=True)
        await super().send_packed_command(command, check_health)


def just_connects_again(url: str, **options: Any) -> Client:
    client = without_retries(url, **options)
    return with_connections(client, JustConnectsAgain)


def with_connections(client: Client, kind: type[Connection]) -> Client:
    """Have `client` use connections of this kind."""
    if isinstance(client, RedisCluster):
        client.connection_kwargs["connection_class"] = kind
        for node in client.startup_nodes:
            node.connection_class = kind
    else:
        client.connection_pool.connection_class = kind
    return client


async def check_exec_is_not_repeated(make: Make, server: Server, app: str) -> None:
    """`transaction` repeats while it sees WatchError; here the reply to its EXEC is lost."""
    place = Place("single", server, None, app)
    async with place.site(make) as site:
        await site.client.set(app, 0)

        async def add(pipe: Any) -> None:
            now = int(await pipe.get(app))
            pipe.multi()
            pipe.set(app, now + 1)

        with site.line(app).lose_reply(b"EXEC"):
            transact: Any = site.client.transaction
            said = await outcome(transact(add, app))
        counter = int(await site.client.execute_command("GET", app))
        assert counter == 1, f"applied {counter} times"
        assert isinstance(said, OutcomeUnknown)


@pytest.mark.invariant(3)
async def test_a_lost_reply_to_exec_is_no_watch_error(server: Server, app: str) -> None:
    """A transaction that was carried out is not taken for one that a rival beat."""
    await check_exec_is_not_repeated(connect, server, app)


@pytest.mark.naive(3)
async def test_redis_py_takes_a_lost_reply_for_a_lost_race(server: Server, app: str) -> None:
    """redis-py raises WatchError, even without retries, and its `transaction` does it again."""
    with pytest.raises(AssertionError, match="applied 2 times"):
        await check_exec_is_not_repeated(without_retries, server, app)


# 4: cancellation


async def check_cancellation(make: Make, place: Place, rng: random.Random, n: int = 1000) -> None:
    """`n` calls cancelled at random over a slow line with a pool of two; then everyone is to get his own."""
    async with place.site(make, max_connections=2) as site:
        names = [f"{{{place.app}}}:{number}" for number in range(20)]
        for name in names:
            await site.client.set(name, name)
        ended: Counter[bool] = Counter()
        wrong, span = 0, 0.0
        with contextlib.ExitStack() as slow:
            for line in site.lines.values():
                slow.enter_context(line.latency(0.001))
            for _ in range(2):  # connections are made in the first
                start = time.monotonic()
                await asyncio.gather(*(site.client.execute_command("GET", name) for name in names))
                span = 1.5 * (time.monotonic() - start)
            while ended[True] < n and not wrong:
                calls = [asyncio.create_task(site.client.execute_command("GET", name)) for name in names]
                for call in calls:
                    asyncio.get_running_loop().call_later(rng.random() * span, call.cancel)
                said = [await outcome(call) for call in calls]
                cancelled = sum(isinstance(each, asyncio.CancelledError) for each in said)
                ended.update({True: cancelled, False: 20 - cancelled})
                wrong += sum(
                    isinstance(each, bytes) and each != name.encode()
                    for each, name in zip(said, names, strict=True)
                )
                span *= 0.9 if cancelled < 12 else 1.1
        replies = await asyncio.gather(*(site.client.execute_command("GET", name) for name in names * 5))
        wrong += sum(reply != name.encode() for reply, name in zip(replies, names * 5, strict=True))
        assert wrong == 0, f"{wrong} callers got another's reply"
        assert ended[False] > n / 10, ended
        assert leaks.in_use(site.client) == 0


@pytest.mark.slow
@KINDS
@pytest.mark.invariant(4)
async def test_a_thousand_cancels_mix_up_no_reply_and_lose_no_connection(
    place: Place, rng: random.Random
) -> None:
    """After 1000 random cancels every GET has its own value, and the pool of two still serves."""
    await check_cancellation(connect, place, rng)


class KeepsTheConnection(Connection):
    """Goes on with a connection after a cancelled read, as redis-py 4.5 did."""

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        return await super().read_response(*args, **kwargs, disconnect_on_error=False)


@pytest.mark.slow
@pytest.mark.naive(4)
@pytest.mark.parametrize("kind", ["cluster"])
async def test_keeping_the_connection_of_a_cancelled_call_mixes_up_replies(
    place: Place, rng: random.Random
) -> None:
    """A client that keeps it gives callers the replies of others."""

    def keeps(url: str, **options: Any) -> Client:
        options["max_connections"] = 400
        return with_connections(without_retries(url, **options), KeepsTheConnection)

    with pytest.raises(AssertionError, match="got another's reply"):
        await check_cancellation(keeps, place, rng)


async def check_hands_over(make: Make, server: Server) -> None:
    """A caller is cancelled in the moment in which the one connection is handed to it."""
    client = make(server.url)
    held = await client.connection_pool.get_connection()
    first = asyncio.create_task(client.ping())
    second = asyncio.create_task(client.ping())
    for _ in range(10):  # turns of the loop, in which both come to wait
        await asyncio.sleep(0)
    await client.connection_pool.release(held)
    first.cancel()
    said = await outcome(second)
    await client.aclose()
    await outcome(first)
    assert said is True, "a free connection lay there, and the next caller waited in vain"


@pytest.mark.invariant(4)
async def test_a_cancelled_caller_passes_the_connection_on(server: Server) -> None:
    """The next in line gets the connection that a cancelled caller had been given."""
    await check_hands_over(lambda url: connect(url, max_connections=1, wait=1.0), server)


@pytest.mark.naive(4)
async def test_the_blocking_pool_of_redis_py_lets_a_free_connection_lie(server: Server) -> None:
    """BlockingConnectionPool wakes a cancelled caller and no other, before Python 3.13."""

    def blocking(url: str) -> Redis:
        return Redis.from_pool(BlockingConnectionPool.from_url(url, max_connections=1, timeout=1, protocol=2))

    mended = sys.version_info >= (3, 13)
    with contextlib.nullcontext() if mended else pytest.raises(AssertionError, match="waited in vain"):
        await check_hands_over(blocking, server)


# 5: a bounded pool that waits


async def check_pool_waits(make: Make, place: Place) -> None:
    """Two hundred callers at once, four connections."""
    async with place.site(make, max_connections=4) as site:
        replies = await asyncio.gather(*(outcome(site.client.incr(place.app)) for _ in range(200)))
        failed = [reply for reply in replies if isinstance(reply, Exception)]
        assert not failed, f"{len(failed)} of 200 callers were turned away: {failed[0]!r}"
        assert sorted(replies) == list(range(1, 201))
        for line in site.lines.values():
            assert len(line._links) <= 4 + (place.kind == "cluster"), "one more only for the map"


@KINDS
@pytest.mark.invariant(5)
async def test_two_hundred_callers_share_four_connections(place: Place) -> None:
    """All are served, and there are never more connections than allowed."""
    await check_pool_waits(connect, place)


@KINDS
@pytest.mark.naive(5)
async def test_the_pool_of_redis_py_turns_callers_away(place: Place) -> None:
    """redis-py's default pool raises as soon as all connections are lent."""
    with pytest.raises(AssertionError, match="turned away"):
        await check_pool_waits(without_retries, place)


@KINDS
@pytest.mark.invariant(2, 5)
async def test_who_waits_too_long_is_told_and_nothing_was_sent(place: Place) -> None:
    """After `wait` seconds a caller gets MaxConnectionsError, and no one else suffers."""
    async with place.site(connect, max_connections=1, wait=0.2) as site:
        await site.client.set(place.app, 0)
        with site.line(place.app).latency(0.5):
            slow = asyncio.ensure_future(site.client.incr(place.app))
            await asyncio.sleep(0)
            start = time.monotonic()
            with pytest.raises(MaxConnectionsError, match=r"all 1 connections were busy for 0\.2 s"):
                await site.client.incr(place.app)
            assert 0.19 < time.monotonic() - start < 0.45
            assert await slow == 1
        assert await site.client.get(place.app) == b"1"


@KINDS
@pytest.mark.invariant(5)
async def test_waiting_callers_are_served_in_order(place: Place) -> None:
    """First come, first served."""
    order: list[int] = []
    async with place.site(connect, max_connections=1) as site:
        await site.client.ping()

        async def call(number: int) -> None:
            await site.client.get(place.app)
            order.append(number)

        await asyncio.gather(*(call(number) for number in range(20)))
    assert order == sorted(order)


# 6: a cluster that changes


@asynccontextmanager
async def migrating(cluster: Cluster, key: str) -> AsyncIterator[tuple[Server, Server]]:
    """The slot of `key` is on its way from one primary to another; afterwards it is back."""
    slot = key_slot(key.encode())
    source = cluster.primary_of(key)
    target = next(
        node
        for node in cluster.nodes
        if "role:master" in node.command("INFO", "replication") and node is not source
    )
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.command("CLUSTER", "MYID"))
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.command("CLUSTER", "MYID"))
    try:
        yield source, target
    finally:
        for name in target.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            await asking(target, "DEL", name)
        for node in source, target:
            node.command("CLUSTER", "SETSLOT", slot, "STABLE")


async def asking(node: Server, *command: Any) -> Any:
    """Run a command on a key whose slot the node is importing."""
    async with Redis(port=node.port, protocol=2) as client, client.pipeline(transaction=False) as pipe:
        pipe.execute_command("ASKING")
        pipe.execute_command(*command)
        return (await pipe.execute())[1]


async def check_follows_ask(make: Make, cluster: Cluster, app: str) -> None:
    """Keys of a slot that moves are written where they go, with two connections to the target."""
    client = make(cluster.url)
    try:
        await client.get(app)
        async with migrating(cluster, f"{{{app}}}") as (_, target):
            there = next(name for name in map(str, range(100)) if cluster.primary_of(name) is target)
            await asyncio.gather(client.get(there), client.get(there))
            for number in range(10):
                said = await outcome(client.set(f"{{{app}}}:{number}", number))
                assert said is True, f"ASK was not followed: {said!r}"
            assert await client.incr(f"{{{app}}}:9") == 10
            assert len(target.command("CLUSTER", "GETKEYSINSLOT", key_slot(app.encode()), 100)) == 10
    finally:
        await close(client)


@pytest.mark.invariant(6)
async def test_ask_is_followed_on_the_connection_that_asked(cluster: Cluster, app: str) -> None:
    """During a slot's migration ten of ten writes land at the target."""
    await check_follows_ask(connect, cluster, app)


@pytest.mark.naive(6)
async def test_redis_py_asks_on_one_connection_and_sends_on_another(cluster: Cluster, app: str) -> None:
    """With several free connections redis-py's ASKING and command part, and the redirects do not end."""
    with pytest.raises(AssertionError, match="ASK was not followed"):
        await check_follows_ask(as_it_comes, cluster, app)


@pytest.mark.invariant(6)
async def test_ask_is_followed_to_a_node_that_the_client_does_not_know(cluster: Cluster, app: str) -> None:
    """A slot may move to a node that joined after the client read the map."""
    async with opened(cluster.url) as client:
        await client.set(f"{{{app}}}", 1)
        async with migrating(cluster, f"{{{app}}}:a") as (_, target):
            assert isinstance(client, RedisCluster)
            forgotten = client.nodes_manager.nodes_cache.pop(f"127.0.0.1:{target.port}")
            assert await client.set(f"{{{app}}}:a", b"there")
            assert await client.get(f"{{{app}}}:a") == b"there"
            await forgotten.disconnect()


@pytest.mark.invariant(6)
async def test_try_again_is_tried_again(cluster: Cluster, app: str) -> None:
    """A command on two keys, one moved and one not yet, waits until both are together."""
    one, two = f"{{{app}}}:1", f"{{{app}}}:2"
    async with opened(cluster.url) as client:
        await client.set(one, one, px=60_000)
        async with migrating(cluster, one) as (source, target):
            await asking(target, "SET", two, two)
            source.command("CONFIG", "RESETSTAT")
            both = asyncio.ensure_future(client.mget(one, two))
            await eventually(lambda: "errorstat_TRYAGAIN" in source.command("INFO", "errorstats"), within=5)
            source.command("MIGRATE", "127.0.0.1", target.port, one, 0, 5000)
            assert await both == [one.encode(), two.encode()]


@pytest.mark.slow
@pytest.mark.invariant(1, 2, 6)
async def test_failovers_by_order_and_by_death() -> None:
    """The same client goes on by MOVED in all kinds of calls, waits out CLUSTERDOWN, and survives a death."""
    echo = Script("echo", "return {KEYS[1], ARGV[1]}")
    timeouts: Options = {"socket_timeout": 2.0, "connect_timeout": 1.0}

    async def transaction(client: Client) -> Any:
        async with client.pipeline(transaction=True) as pipe:
            pipe.incr("k1")
            pipe.get("k1")
            return await pipe.execute()

    with Cluster("--cluster-node-timeout", "500") as crowd:
        async with AsyncExitStack() as stack:
            client, strict = [
                await stack.enter_async_context(opened(crowd.url, **timeouts)) for _ in range(2)
            ]
            narrow = await stack.enter_async_context(opened(crowd.url, max_connections=1, wait=0.5))
            for number in range(30):
                await client.set(f"k{number}", number)
            for other in strict, narrow:
                assert await other.get("k1") == b"1"

            old = crowd.primary_of("k1")
            old.command("CLUSTER", "DELSLOTS", key_slot(b"k1"))
            waits = asyncio.ensure_future(client.incr("k1"))
            await eventually(lambda: "errorstat_CLUSTERDOWN" in old.command("INFO", "errorstats"), within=5)
            old.command("CLUSTER", "ADDSLOTS", key_slot(b"k1"))
            assert await waits == 2

            crowd.replica_of(old).command("CLUSTER", "FAILOVER")
            await eventually(lambda: "role:slave" in old.command("INFO", "replication"), within=5)
            assert await transaction(client) == [3, b"3"]
            async with narrow.pipeline(transaction=False) as pipe:
                for number in range(30):
                    pipe.get(f"k{number}")
                values = await pipe.execute()
            assert values == [b"%d" % (3 if number == 1 else number) for number in range(30)]
            assert await echo(client, keys=["k1"], args=[b"\xff\x00"]) == [b"k1", b"\xff\x00"]
            assert await strict.get("k1") == b"3"

            crowd.primary_of("k1").kill()
            told: Counter[type] = Counter()
            for call in lambda: client.incr("k1"), lambda: transaction(strict):
                done, start = 0, time.monotonic()
                while done < 5:
                    said = await outcome(call())
                    told[type(said)] += 1
                    done += isinstance(said, int | list)
                    assert isinstance(said, int | list | RedisError), repr(said)
                    assert time.monotonic() - start < 15, told
            value = int(await client.execute_command("GET", "k1"))
            assert 3 + 10 <= value <= 3 + 10 + told[OutcomeUnknown], told


FAILOVER_KEYS = [f"k{number}" for number in range(30)]


async def a_command(client: Any) -> Any:
    """Send one command."""
    return await client.set("k1", 1)


async def a_pipeline(client: Any) -> Any:
    """Ask all nodes, and raise the first error."""
    async with client.pipeline(transaction=False) as pipe:
        for key in FAILOVER_KEYS:
            pipe.set(key, 1)
        return await pipe.execute()


async def a_pipeline_that_keeps_errors(client: Any) -> Any:
    """Ask all nodes, and look at the errors afterwards."""
    async with client.pipeline(transaction=False) as pipe:
        for key in FAILOVER_KEYS:
            pipe.set(key, 1)
        replies = await pipe.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


async def a_pipeline_to_one_node(client: Any) -> Any:
    """Ask one node, and follow no redirection, as who asks WAIT must."""
    await client.initialize()
    node = client.get_node_from_key("k1")
    async with client.pipeline(transaction=False) as pipe:
        pipe.execute_command("SET", "k1", 1, target_nodes=node)
        pipe.execute_command("WAIT", 0, 1, target_nodes=node)
        return await pipe.execute(allow_redirections=False)


async def a_transaction(client: Any) -> Any:
    """Ask one node for all or nothing."""
    async with client.pipeline(transaction=True) as pipe:
        pipe.set("k1", 1)
        return await pipe.execute()


async def many_deletions(client: Any) -> Any:
    """Invalidate many entities of a Cache-Aside, whose exchanges end long before the socket's time-out."""
    policy = cache_aside.Policy(ttl=60, negative_ttl=60, max_loads=1, timeout=0.25, back_off=0.01)
    await cache_aside.CacheAside("a", client, policy, app="failover").invalidate(*FAILOVER_KEYS)
    return True


async def many_reads(client: Any) -> Any:
    """Read many keys of a Read-Through from Redis."""
    policy = read_through.Policy(ttl=60, negative_ttl=60, max_loads=1, timeout=0.25, back_off=0.01)
    cached = read_through.ReadThrough("a", client, policy, load=a_command, app="failover")
    await cached._store.read_all(cached._store.names(FAILOVER_KEYS))
    return True


FAILOVER_CALLS = [a_command, a_pipeline, a_pipeline_that_keeps_errors, a_pipeline_to_one_node, a_transaction]
FAILOVER_CALLS += [many_deletions, many_reads]


async def check_finds_the_new_primary(make: Make, end: str, calls: list[Any]) -> None:
    """A primary dies, or falls silent, while clients call, each in one way only and 0.25 s at most."""
    with Cluster("--cluster-node-timeout", "500") as crowd:
        async with AsyncExitStack() as stack:
            clients: dict[Any, Any] = {}

            async def one_call(call: Any) -> bool:
                try:
                    return bool(await asyncio.wait_for(call(clients[call]), 0.25))
                except (RedisError, OSError, cache_aside.InvalidationFailed, NoCache):
                    return False

            for call in calls:
                clients[call] = client = make(crowd.url)
                stack.push_async_callback(close, client)
                await eventually(partial(one_call, call), within=10)  # all that is slow at first is done
            old, over = crowd.primary_of("k1"), asyncio.Event()

            async def lives_through_it(call: Any) -> bool:
                async def until_it_is_over() -> bool:
                    return over.is_set() or (await one_call(call) and over.is_set())

                await eventually(until_it_is_over, within=20)
                try:
                    return await eventually(lambda: one_call(call), within=3)
                except AssertionError:
                    return False

            getattr(old, end)()
            lives = [asyncio.create_task(lives_through_it(call)) for call in calls]
            if end == "stop":
                stack.callback(old.cont)
            replaced = crowd.replica_of(old)
            await eventually(lambda: "role:master" in replaced.command("INFO", "replication"), within=10)
            over.set()
            lost = [
                call.__name__
                for call, found in zip(calls, await asyncio.gather(*lives), strict=True)
                if not found
            ]
            assert not lost, f"never found the new primary: {', '.join(lost)}"


@pytest.mark.slow
@pytest.mark.invariant(6)
@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_whoever_calls_finds_the_new_primary(end: str) -> None:
    """Also a client that only sends pipelines, and one whose callers give up before the socket does."""
    await check_finds_the_new_primary(connect, end, FAILOVER_CALLS)


@pytest.mark.slow
@pytest.mark.naive(6)
async def test_pipelines_of_redis_py_never_find_the_new_primary() -> None:
    """redis-py reads the map again when a command fails, and not when a pipeline does."""
    # Its pipeline leaves the tasks of the other nodes with errors that nobody reads.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    with pytest.raises(AssertionError, match="never found the new primary: a_pipeline, a_pipeline_that"):
        await check_finds_the_new_primary(
            without_retries, "kill", [a_command, a_pipeline, a_pipeline_that_keeps_errors]
        )


async def check_tells_partial_pipeline(make: Make, place: Place) -> None:
    """A pipeline to two nodes, of which one refuses connections."""
    async with place.site(make) as site:
        one = f"{{{place.app}}}"
        two = next(name for name in map(str, range(100)) if site.home(name) != site.home(one))
        await site.client.set(one, 0)
        with site.line(two).down():
            async with site.client.pipeline(transaction=False) as pipe:
                pipe.incr(one)
                pipe.get(two)
                said = await outcome(pipe.execute())
        assert await eventually(lambda: outcome(site.client.get(one)), within=5) == b"1"
        assert isinstance(said, OutcomeUnknown), "it says that nothing was applied, and half of it was"


@pytest.mark.invariant(2, 6)
@pytest.mark.parametrize("kind", ["cluster"])
async def test_a_pipeline_to_several_nodes_fails_as_a_whole_with_an_unknown_outcome(place: Place) -> None:
    """When one node refuses, the others may have carried out their part, and the error says so."""
    await check_tells_partial_pipeline(connect, place)


@pytest.mark.naive(2)
@pytest.mark.parametrize("kind", ["cluster"])
async def test_redis_py_says_refused_for_a_pipeline_that_was_half_applied(place: Place) -> None:
    """redis-py raises the ConnectionError of the one node."""
    with pytest.raises(AssertionError, match="half of it was"):
        await check_tells_partial_pipeline(without_retries, place)


@pytest.mark.invariant(6)
async def test_a_transaction_on_a_cluster_says_what_it_cannot_take(cluster: Cluster, app: str) -> None:
    """A command whose keys only the server can tell is refused in a transaction before anything is sent."""
    async with opened(cluster.url) as client, client.pipeline(transaction=True) as pipe:
        with pytest.raises(RedisError, match="ZUNIONSTORE cannot be in a transaction on a cluster"):
            pipe.zunionstore(app, [app])
        pipe.set(app, 1, px=60_000)
        assert await pipe.execute() == [True]


@pytest.mark.parametrize("kind", ["cluster"])
async def test_the_table_of_commands_is_read_once(place: Place) -> None:
    """Ten lost connections make the client read the map anew, and not the slow table of commands."""

    def reads(what: str) -> int:
        told = "".join(node.command("INFO", "commandstats") for node in place.nodes)
        return sum(map(int, re.findall(rf"cmdstat_{what}:calls=([0-9]+)", told)))

    async with place.site(connect) as site:
        await site.client.set(place.app, 0)
        tables, maps = reads("command"), reads(r"cluster\|slots")
        for _ in range(10):
            with site.line(place.app).lose_reply(b"INCR"), pytest.raises(OutcomeUnknown):
                await site.client.incr(place.app)
        assert await site.client.get(place.app) == b"10"
        assert (reads("command"), reads(r"cluster\|slots")) == (tables, maps + 10)
