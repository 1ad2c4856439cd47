"""The proof of patterns/keyspace: each invariant, on one server and on a cluster, and naive variants."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.asyncio import BlockingConnectionPool, Connection, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, MaxConnectionsError, RedisError, ResponseError, WatchError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from patterns import embedded
from patterns.embedded import Cluster, Sentinel, Server
from patterns.keyspace import Client, Keyspace, Options, OutcomeUnknown, Script, connect, opened
from tests.eventually import eventually
from tests.faults import leaks, proxy

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.faults import Proxy

Make = Any  # connect, or a naive variant with the same arguments
KINDS = pytest.mark.parametrize("kind", ["single", "cluster"])


@dataclass
class Site:
    """A client, and the breakable line to each server behind it."""

    client: Client
    lines: dict[int, Proxy]
    home: Callable[[str], int]

    def line(self, key: str) -> Proxy:
        """Return the line to the server that has `key`."""
        return self.lines[self.home(key)]

    async def reset(self) -> int:
        """Reset every connection (RST) and return how many."""
        return sum([await line.reset_all() for line in self.lines.values()])


@dataclass
class Place:
    """Where a check is done: one server or a cluster, and a name that no other test uses."""

    kind: str
    server: Server
    cluster: Any  # a Cluster, unless the kind is "single"
    app: str

    @property
    def nodes(self) -> list[Server]:
        """Return the server, or all nodes of the cluster."""
        return [self.server] if self.kind == "single" else self.cluster.nodes

    @property
    def url(self) -> str:
        """Return the address, with no proxy before it."""
        url: str = self.server.url if self.kind == "single" else self.cluster.url
        return url

    @asynccontextmanager
    async def site(self, make: Make, **options: Any) -> AsyncIterator[Site]:
        """Open a client by `make`, with a proxy before each server."""
        async with AsyncExitStack() as stack:
            lines = {
                node.port: await stack.enter_async_context(proxy(node.port, may_idle=True))
                for node in self.nodes
            }
            hosts = ",".join(f"127.0.0.1:{line.port}" for line in lines.values())
            client = make(f"redis{'+cluster' * (self.kind == 'cluster')}://{hosts}", **options)
            stack.push_async_callback(close, client)
            if isinstance(client, RedisCluster):
                client.nodes_manager.address_remap = lambda at: (at[0], lines[at[1]].port)
                await client.initialize()
                yield Site(client, lines, lambda key: self.cluster.primary_of(key).port)
            else:
                yield Site(client, lines, lambda _: self.server.port)


@pytest.fixture
def place(kind: str, server: Server, app: str, request: pytest.FixtureRequest) -> Place:
    return Place(kind, server, request.getfixturevalue("cluster") if kind == "cluster" else None, app)


def as_it_comes(url: str, **options: Any) -> Client:
    """Return a client of redis-py with its defaults."""
    host, port = re.findall(r"//([^:/]+):([0-9]+)", url)[0]
    kind: Any = RedisCluster if "+cluster" in url else Redis
    client: Client = kind(host=host, port=int(port), protocol=2, **options)
    return client


def without_retries(url: str, **options: Any) -> Client:
    """Return a client of redis-py that does not repeat."""
    return as_it_comes(url, retry=Retry(NoBackoff(), 0), **options)


async def close(client: Client) -> None:
    """Close a client, and what redis-py's cluster leaves open."""
    await client.aclose()
    if type(client) is RedisCluster:
        await client.nodes_manager.aclose()
        await client.nodes_manager.aclose("startup_nodes")


async def outcome(call: Awaitable[Any]) -> Any:
    """Return what `call` gave or raised."""
    try:
        return await call
    except (Exception, asyncio.CancelledError) as error:
        return error


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


@asynccontextmanager
async def stub(*replies: bytes) -> AsyncIterator[str]:
    """A server that gives these bytes, one after each time it is written to."""

    async def serve(asked: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            for reply in replies:
                if await asked.read(1 << 16):
                    answer.write(reply)
            await asked.read()
        answer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await eventually(lambda: len(asyncio.all_tasks()) == 1, within=2)


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


# 7: keys


TEXT = st.text(min_size=1, max_size=12) | st.text(alphabet="ab%{}:7 B\n\x7fé", min_size=1, max_size=6)
ROLE = st.sampled_from(["value", "lock", "gen.1", "a-b", "_"])
Name = tuple[str, str]


def check_no_collision(key: Callable[[str, str], str], one: Name, two: Name) -> None:
    """Different (entity, role) have different keys, in one slot if and only if by the entity alone."""
    assert (key(*one) == key(*two)) == (one == two), f"{one} and {two} collide"
    for entity, role in one, two:
        assert tag(key(entity, role)) == tag(key(entity, "other")), f"{entity!r} is scattered over slots"
    if one[0] != two[0]:
        assert tag(key(*one)) != tag(key(*two)), f"{one[0]!r} and {two[0]!r} share a tag"


def tag(key: str) -> bytes:
    """Return what a cluster hashes, found as its specification says."""
    raw = key.encode()
    start = raw.find(b"{")
    end = raw.find(b"}", start + 1)
    return raw[start + 1 : end] if start >= 0 and end > start + 1 else raw


@pytest.mark.invariant(7)
@given(st.tuples(TEXT, ROLE), st.tuples(TEXT, ROLE))
@example(("a}:b", "value"), ("a", "value"))
@example(("a%7D", "value"), ("a}", "value"))
def test_no_text_in_an_entity_makes_two_keys_collide(one: Name, two: Name) -> None:
    """Whatever the entities hold, keys collide only for the same entity and role, and roles share a slot."""
    keys = Keyspace("shop", "cache_aside")
    check_no_collision(keys.key, one, two)
    for entity, role in one, two:
        key = keys.key(entity, role)
        assert keys.entity(key) == keys.entity(key.encode()) == entity
        assert re.fullmatch(r"shop:\{cache_aside:[ -~]+\}:[A-Za-z0-9_.-]+", key)
        assert key_slot(key.encode()) == key_slot(keys.key(entity, "other").encode())


@pytest.mark.naive(7)
@pytest.mark.parametrize(
    ("form", "what"),
    [
        ("shop:{{cache_aside:{}}}:{}", "collide|share a tag|scattered"),
        ("shop:cache_aside:{}:{}", "collide|share a tag|scattered"),
        ("{{{}}}:{}", "collide|share a tag|scattered"),
    ],
)
def test_unescaped_keys_collide(form: str, what: str) -> None:
    """Names put into a key as they are collide, share tags or scatter: hypothesis finds it."""

    @given(st.tuples(TEXT, ROLE), st.tuples(TEXT, ROLE))
    @example(("a}:b", "value"), ("a}:c", "value"))
    def found(one: Name, two: Name) -> None:
        check_no_collision(form.format, one, two)

    with pytest.raises(AssertionError, match=what):
        found()


@pytest.mark.invariant(7)
def test_the_form_of_a_key_is_the_documented_one() -> None:
    """`%`, braces, colons, control characters and non-ASCII are percent-encoded as UTF-8, the rest stands."""
    key = Keyspace("shop", "cache_aside").key("a b/%{}:\n\x7fé~", "value")
    assert key == "shop:{cache_aside:a b/%25%7B%7D%3A%0A%7F%C3%A9~}:value"


@pytest.mark.invariant(7)
@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: Keyspace("", "p"), "app"),
        (lambda: Keyspace("a:b", "p"), "app"),
        (lambda: Keyspace("shop", "p{"), "pattern"),
        (lambda: Keyspace("shop", "p\n"), "pattern"),
        (lambda: Keyspace("shop", "p").key("e", "a:b"), "role"),
        (lambda: Keyspace("shop", "p").key("e", "é"), "role"),
        (lambda: Keyspace("shop", "p").key("", "value"), "entity must not be empty"),
        (lambda: Keyspace("shop", "p").key("\ud800", "value"), "lone surrogate"),
        (lambda: Keyspace("shop", "p").entity("shop:{q:e}:value"), "'shop:{p:'"),
        (lambda: Keyspace("shop", "p").entity(b"shop:{p:e}:"), "role"),
        (lambda: Keyspace("shop", "p").entity("shop:{p:%65}:value"), "one that `key` made"),
    ],
)
def test_what_is_no_name_is_refused_by_field(call: Callable[[], object], field: str) -> None:
    """A bad app, pattern, role, entity or foreign key is a ValueError that says which."""
    with pytest.raises(ValueError, match=field):
        call()


# 8: scripts


BINARY = bytes(range(256))


@KINDS
@pytest.mark.invariant(8)
async def test_a_script_does_the_same_everywhere(place: Place) -> None:
    """Keys and arguments arrive as they are, the reply comes as bytes, and SCRIPT FLUSH costs nothing."""
    swap = Script(
        "swap", "local old = redis.call('GET', KEYS[1]); redis.call('SET', KEYS[1], ARGV[1]); return old"
    )
    key = Keyspace(place.app, "swap").key("e", "value")
    async with place.site(connect) as site:
        assert await swap(site.client, keys=[key], args=[BINARY]) is None
        for node in place.nodes:
            with contextlib.suppress(embedded.CommandFailed):  # a replica does not flush
                node.command("SCRIPT", "FLUSH")
        assert await swap(site.client, keys=[key.encode()], args=["é"]) == BINARY
        assert await swap(site.client, keys=[key], args=[1.5]) == "é".encode()
        assert await swap(site.client, keys=[key], args=[7]) == b"1.5"


@pytest.mark.invariant(8)
@pytest.mark.parametrize(("keys", "what"), [([], "0 keys"), (["{a}", "{b}"], "2 keys in 2 slots")])
async def test_a_script_without_keys_or_across_slots_is_refused_before_it_is_sent(
    keys: list[str], what: str
) -> None:
    """On one server too, so that what works there works on a cluster."""
    async with opened("redis://127.0.0.1:1") as client:
        with pytest.raises(ValueError, match=f"script 'two' must name keys of one slot, got {what}"):
            await Script("two", "return 1")(client, keys=keys)


@pytest.mark.naive(8)
async def test_a_key_that_is_not_named_works_on_one_server_only(
    server: Server, cluster: Cluster, app: str
) -> None:
    """A script that makes up a key from its arguments fails on a cluster."""
    sloppy = Script("sloppy", "return redis.call('INCR', ARGV[1])")
    names = [f"{app}:{number}" for number in range(8)]
    async with opened(server.url) as client:
        assert [await sloppy(client, keys=[app], args=[name]) for name in names] == [1] * 8
    async with opened(cluster.url) as client:
        said = [await outcome(sloppy(client, keys=[app], args=[name])) for name in names]
    assert any(isinstance(each, ResponseError) for each in said)


@pytest.mark.invariant(8)
async def test_an_error_says_which_script(server: Server, app: str) -> None:
    """A server's error and an unknown outcome both name the script."""
    async with proxy(server.port) as line, opened(line.url) as client:
        with pytest.raises(ResponseError) as refused:
            await Script("broken", "return redis.error_reply('NO')")(client, keys=[app])
        with line.lose_reply(b"EVALSHA"), pytest.raises(OutcomeUnknown) as lost:
            await Script("fine", "return 1")(client, keys=[app])
    assert refused.value.__notes__ == ["in the script 'broken'"]
    assert lost.value.__notes__ == ["in the script 'fine'"]


# 9: nothing secret is shown, and the grammar of addresses


@pytest.mark.invariant(9)
@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://",
        "localhost:6379",
        "http://h",
        "redis://h:p",
        "redis://h:0",
        "redis://h:65536",
        "redis://h/x",
        "redis://h/0/1",
        "redis://h?db=1",
        "redis://h/0?socket_timeout=1",
        "redis://user@h",
        "redis://a@b:s3cret@h",
        "redis://h1:1,h2:2",
        "redis://:s3cret@/0",
        "redis:// h",
        "redis://h\n",
        "redis://[::1",
        "REDIS://h",
        "unix://",
        "unix://s",
        "unix:///s?db=x",
        "unix:///s#f",
        "unixs:///s",
        "redis+cluster://h",
        "redis+cluster://h:1,",
        "redis+cluster://h:1/0",
        "redis+cluster://h:1,h:99999",
        "unix+cluster://h:1",
        "redis+sentinel://h:1",
        "redis+sentinel://h:1/",
        "redis+sentinel://h:1/main/x",
        "redis+sentinel://h/main/0",
        "redis+sentinels://h:1/main",
        "redis://u:s3cret@h:port",
        "redis+cluster://u:s3cret@h",
        "redis://u:s3cret/@h",
        "valkey://u:s3cret@h",
        "redis://h/٣",
    ],
)
def test_every_other_address_is_refused_and_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not in the grammar is a ValueError that lists the forms and shows no part of it."""
    for name, argument in ("url", url), ("REDIS_URL", None):
        monkeypatch.setenv("REDIS_URL", url)
        with pytest.raises(ValueError, match=rf"^{name} must be redis.*unix.*cluster.*sentinel") as refused:
            connect(argument)
        assert "s3cret" not in str(refused.value)
        assert refused.value.__cause__ is None


PASSWORD = "s3cret:/@ü%"


@pytest.mark.invariant(9)
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", {"host": "h", "port": 6379, "db": 0}),
        ("redis://h/", {"host": "h", "port": 6379, "db": 0}),
        ("redis://127.0.0.1:7000/15", {"host": "127.0.0.1", "port": 7000, "db": 15}),
        ("rediss://[::1]/3", {"host": "::1", "port": 6379, "db": 3}),
        ("redis://[fe80::1]:7000", {"host": "fe80::1", "port": 7000}),
        (f"redis://:{quote(PASSWORD, '')}@h", {"username": None, "password": PASSWORD}),
        (f"redis://me:{quote(PASSWORD, '')}@h", {"username": "me", "password": PASSWORD}),
        ("redis://me:a:b@h", {"username": "me", "password": "a:b"}),
        ("unix:///run/my%20redis.sock", {"path": "/run/my redis.sock", "db": 0}),
        (f"unix://me:{quote(PASSWORD, '')}@/run/s?db=2", {"path": "/run/s", "db": 2, "password": PASSWORD}),
    ],
)
async def test_addresses_of_one_server(url: str, expected: dict[str, Any]) -> None:
    """All parts of an address are read as the grammar says, and no repr shows a password."""
    async with opened(url) as client:
        assert isinstance(client, Redis)
        have = client.connection_pool.connection_kwargs
        assert {name: have[name] for name in expected} == expected
        kinds = {"redis": "_Tcp", "rediss": "_Tls", "unix": "_Unix"}
        assert client.connection_pool.connection_class.__name__ == kinds[url.partition(":")[0]]
        assert_hidden(client)


def assert_hidden(client: Client) -> None:
    """No repr of a client, its pool, its nodes or their connections shows the password."""
    things: list[Any] = [client]
    if isinstance(client, RedisCluster):
        things += [client.nodes_manager, *client.startup_nodes, client.startup_nodes[0].acquire_connection()]
    else:
        pool: Any = client.connection_pool
        things += [pool, pool.make_connection()]
        things += getattr(getattr(pool, "sentinel_manager", None), "sentinels", [])
    for thing in things:
        assert "s3cret" not in f"{thing!r}{thing}"


@pytest.mark.invariant(9)
async def test_addresses_of_many_servers() -> None:
    """Nodes and Sentinels are listed with their ports; user and password are those of the servers."""
    login = f"me:{quote(PASSWORD, '')}@"
    async with opened(f"rediss+cluster://{login}h:1,[::1]:2/") as client:
        assert isinstance(client, RedisCluster)
        assert [(node.host, node.port) for node in client.startup_nodes] == [("h", 1), ("::1", 2)]
        assert client.connection_kwargs["password"] == PASSWORD
        assert {node.connection_class.__name__ for node in client.startup_nodes} == {"_Tls"}
        assert_hidden(client)
    async with opened(f"redis+sentinel://{login}h:1,g:2/my%20main/4") as client:
        assert isinstance(client, Redis)
        pool: Any = client.connection_pool
        have = pool.connection_kwargs
        assert (pool.service_name, have["db"], have["password"]) == ("my main", 4, PASSWORD)
        asked = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
        assert [(each["host"], each["port"]) for each in asked] == [("h", 1), ("g", 2)]
        assert not any("password" in each for each in asked)
        assert_hidden(client)
    async with opened("redis+sentinel://h:1/main") as client:
        assert isinstance(client, Redis)
        assert client.connection_pool.connection_kwargs["db"] == 0


@KINDS
@pytest.mark.invariant(9)
async def test_an_unknown_outcome_never_shows_arguments(place: Place) -> None:
    """Neither for a command nor for pipelines, whose errors redis-py decorates with arguments."""
    async with place.site(connect) as site:

        async def call(transaction: bool | None) -> None:
            if transaction is None:
                await site.client.set(place.app, b"s3cret")
                return
            async with site.client.pipeline(transaction=transaction) as pipe:
                pipe.set(place.app, b"s3cret")
                pipe.get(place.app)
                await pipe.execute()

        for transaction, name in (None, "SET"), (True, "MULTI"), (False, "PIPELINE"):
            with site.line(place.app).lose_reply(b"s3cret"), pytest.raises(OutcomeUnknown) as lost:
                await call(transaction)
            assert lost.value.command == name
            assert "s3cret" not in f"{lost.value}{lost.value!r}{lost.value.__cause__}"


@pytest.mark.invariant(2, 9)
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_users_and_databases(fresh_server: Server, kind: str) -> None:
    """User, password and database are used over TCP and a unix socket; a wrong password is told as such."""
    fresh_server.command("ACL", "SETUSER", "me", "on", f">{PASSWORD}", "~*", "+@all")
    for password, right in (PASSWORD, True), ("s3cret-but-wrong", False):
        login = f"me:{quote(password, '')}@"
        url = f"unix://{login}{fresh_server.socket}?db=3"
        if kind == "tcp":
            url = f"redis://{login}127.0.0.1:{fresh_server.port}/3"
        async with opened(url) as client:
            said = await outcome(client.incr("a"))
            if right:
                assert (said, await client.execute_command("ACL", "WHOAMI")) == (1, b"me")
                assert "db3:keys=1" in fresh_server.command("INFO", "keyspace")
            else:
                assert type(said) is AuthenticationError
                assert "s3cret" not in str(said)


# what is not an invariant, and is promised all the same


@pytest.mark.parametrize(
    ("argument", "what"),
    [
        ({"max_connections": 0}, "max_connections must be an integer >= 1, got 0"),
        ({"max_connections": True}, "max_connections must be an integer >= 1, got True"),
        ({"max_connections": 1.0}, "max_connections must be an integer >= 1, got 1.0"),
        ({"wait": 0}, "wait must be seconds > 0, got 0"),
        ({"wait": float("nan")}, "wait must be seconds > 0, got nan"),
        ({"connect_timeout": float("inf")}, "connect_timeout must be seconds > 0, got inf"),
        ({"socket_timeout": -1}, "socket_timeout must be seconds > 0 or None, got -1"),
    ],
)
def test_bad_arguments_are_named(argument: dict[str, Any], what: str) -> None:
    """A bad argument is a ValueError with field, bound and value."""
    with pytest.raises(ValueError, match=re.escape(what)):
        connect("redis://h", **argument)


async def test_without_an_address_there_is_an_embedded_server(
    monkeypatch: pytest.MonkeyPatch, app: str
) -> None:
    """REDIS_URL unset starts one server for the process; set, it is used."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    async with opened() as one, opened() as two:
        await one.set(app, b"shared", px=60_000)
        assert await two.get(app) == b"shared"
    assert embedded.shared().command("GET", app) == "shared"
    monkeypatch.setenv("REDIS_URL", embedded.shared().url)
    async with opened() as client:
        assert await client.get(app) == b"shared"


@KINDS
@pytest.mark.usefixtures("no_leaks")
async def test_a_lent_client_is_closed(place: Place) -> None:
    """When `opened` ends, by an error too, no connection is left, even if the map was to be read again."""
    async with place.site(connect) as site:
        with contextlib.suppress(ZeroDivisionError):
            async with opened(place.url) as client:
                await client.set(place.app, 1)
                raise ZeroDivisionError
        await site.client.set(place.app, 1)
        with site.line(place.app).lose_reply(b"INCR"), pytest.raises(OutcomeUnknown):
            await site.client.incr(place.app)


async def test_a_unix_socket_serves_as_well(server: Server, app: str) -> None:
    """The same client over a unix socket: bytes in, bytes out, dead connections replaced."""
    async with opened(server.unix_url) as client:
        for number in range(5):
            assert await client.incr(app) == number + 1
            server.command("CLIENT", "KILL", "TYPE", "normal")
        assert await client.get(app) == b"5"


async def test_blocking_commands_need_a_longer_socket_timeout(server: Server, app: str) -> None:
    """A block longer than `socket_timeout` ends in OutcomeUnknown; a client without one waits as told."""
    async with (
        opened(server.url, socket_timeout=0.1) as short,
        opened(server.url, socket_timeout=None) as patient,
    ):
        assert isinstance(await outcome(short.blpop([f"{app}:never"], timeout=1)), OutcomeUnknown)
        waiting = asyncio.ensure_future(patient.blpop([app], timeout=10))
        await eventually(lambda: "blocked_clients:1" in server.command("INFO", "clients"), within=5)
        await short.rpush(app, b"job")
        assert tuple(await waiting or ()) == (app.encode(), b"job")


@KINDS
async def test_subscriptions_come_back_after_a_reset(place: Place) -> None:
    """A subscriber whose connection is reset gets a plain ConnectionError, and goes on when it asks again."""
    async with place.site(connect) as site:
        await site.client.ping()
        async with site.client.pubsub() as listener:
            await listener.subscribe(place.app)
            await eventually(lambda: listener.get_message(timeout=0.1), within=5)
            await site.reset()
            said = await outcome(listener.get_message(timeout=1.0))
            assert said is None or type(said) is RedisConnectionError or said["type"] == "subscribe", repr(
                said
            )

            async def heard() -> bool:
                await site.client.execute_command("PUBLISH", place.app, b"news")
                message = await outcome(listener.get_message(ignore_subscribe_messages=True, timeout=0.1))
                return isinstance(message, dict) and message["data"] == b"news"

            await eventually(heard, within=5)


@pytest.mark.slow
@pytest.mark.usefixtures("no_leaks")
@pytest.mark.invariant(2)
async def test_a_sentinel_address_follows_the_primary() -> None:
    """A client by Sentinel goes over to the new primary, and says what it knows on the way."""
    with Server() as primary, Server(replica_of=primary) as replica, Sentinel(primary) as watch:
        async with opened(watch.url, socket_timeout=1.0, connect_timeout=1.0, max_connections=4) as client:
            assert await client.incr("a") == 1
            assert await client.wait(1, 1000) == 1
            for node in watch.nodes:
                node.command("CLIENT", "KILL", "TYPE", "normal")
            primary.command("CLIENT", "KILL", "TYPE", "normal")
            assert await client.incr("a") == 2, (
                "neither a dead line to the primary nor to the Sentinel is seen"
            )
            assert await client.wait(1, 1000) == 1
            primary.kill()
            unknown = 0

            async def added() -> bool:
                nonlocal unknown
                said = await outcome(client.incr("a"))
                unknown += isinstance(said, OutcomeUnknown)
                assert isinstance(said, int | RedisConnectionError | RedisTimeoutError), repr(said)
                return isinstance(said, int)

            await eventually(added, within=15)
            assert replica.command("ROLE")[0] == "master"
            assert 3 <= int(replica.command("GET", "a")) <= 3 + unknown


@pytest.mark.invariant(2)
async def test_a_primary_that_was_demoted_refuses_for_sure() -> None:
    """READONLY from a primary that became a replica is a plain ConnectionError: it was not applied."""
    with Server() as primary, Server(replica_of=primary) as replica, Sentinel(primary) as watch:
        async with opened(watch.url) as client:
            await client.set("a", 0)
            primary.command("REPLICAOF", "127.0.0.1", replica.port)
            said = await outcome(client.incr("a"))
            assert type(said) is RedisConnectionError, repr(said)


KEY = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgcE0CSwLoP0GwMVe5
JBoK7CTj1m9pYuloUQlk6NQb0J6hRANCAAS5Bl7bAGMIFxKamkgTKWXJDX51M18Y
Qs4ITL1YrG7UhpeZT7Yox5ZB1rpX9QNAqw93XZcgOSuwvQykjsOiiz1c
-----END PRIVATE KEY-----
"""  # for 127.0.0.1 in this test only
CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBdzCCAR2gAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABLkGXtsAYwgXEpqa
SBMpZckNfnUzXxhCzghMvVisbtSGl5lPtijHlkHWulf1A0CrD3ddlyA5K7C9DKSO
w6KLPVyjXjBcMA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0PAQH/BAQDAgKEMBoGA1Ud
EQQTMBGHBH8AAAGCCWxvY2FsaG9zdDAdBgNVHQ4EFgQUZ0bxgxihv/uU8+XS8B+q
xvlNiIswCgYIKoZIzj0EAwIDSAAwRQIhAMJxKKEEW4hnvoyQI6fcveNYBVnYOTaK
FbnbIqKqgBppAiBI3Q0RSlMA+HIa3645dEfY+zfKv632gOEU5nbqIKPPVw==
-----END CERTIFICATE-----
"""


async def test_rediss_trusts_whom_it_is_told_to(
    server: Server, app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown certificate is refused before anything is sent, and SSL_CERT_FILE names a private CA."""
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "certificate").write_text(CERTIFICATE)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")

    async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(1 << 16):
                to.write(chunk)
        to.close()

    async def serve(asked: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        answered, ask = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(pump(asked, ask), pump(answered, answer))

    endpoint = await asyncio.start_server(serve, "127.0.0.1", ssl=context)
    url = f"rediss://127.0.0.1:{endpoint.sockets[0].getsockname()[1]}/0"
    loop = asyncio.get_running_loop()
    strict = loop.get_exception_handler()
    loop.set_exception_handler(lambda *_: None)  # the endpoint reports the handshake that failed
    async with opened(url) as client:
        said = await outcome(client.incr(app))
        assert type(said) is RedisConnectionError
        assert "certificate" in str(said).lower()
    await eventually(lambda: len(asyncio.all_tasks()) == 1, within=5)
    loop.set_exception_handler(strict)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
    async with opened(url) as client:
        assert isinstance(client, Redis)
        for number in range(3):
            assert await client.incr(app) == number + 1
            server.command("CLIENT", "KILL", "TYPE", "normal")
            idle: Any = client.connection_pool._available_connections[0]
            await eventually(idle._dead, within=5)
    endpoint.close()
    await eventually(lambda: len(asyncio.all_tasks()) == 1, within=5)
