"""The proof of patterns/keyspace: names, scripts and addresses; test_connections proves what a call does."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis.asyncio import Redis, RedisCluster
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from patterns import embedded
from patterns.embedded import Cluster, Sentinel, Server
from patterns.keyspace import Client, Keyspace, OutcomeUnknown, Script, connect, opened
from tests.eventually import eventually
from tests.faults import proxy
from tests.places import KINDS, Place, outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
        kinds = {"redis": "Tcp", "rediss": "Tls", "unix": "Unix"}
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
        assert {node.connection_class.__name__ for node in client.startup_nodes} == {"Tls"}
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
