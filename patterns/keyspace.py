"""The one place where a Redis client is made and where keys get their names.

A client library that repeats commands by itself turns one INCR into two, one that answers "error" for a
command which was applied turns a lock into a leak, and one text in a key can reach into another's data.
Here a call ends in exactly one of three ways, which the caller can tell apart.

What holds:

1. A command is sent at most once. Nothing that may have been applied is ever repeated, reads included:
   whoever knows what may be repeated repeats it, in one layer. A connection that died while idle is found
   out before anything is sent on it, and replaced.
2. A call whose bytes may have left and whose reply did not come raises OutcomeUnknown. Any other
   ConnectionError or TimeoutError of redis means: surely not applied (refused, pool exhausted, not
   connected). No other type of error comes from a dead connection.
3. A transaction that WATCHes ends in WatchError when its connection is lost before EXEC was sent, and in
   OutcomeUnknown when it is lost after.
4. A cancelled call drops its connection: no other caller gets its reply, no place in the pool is lost.
5. At most `max_connections` commands are under way; a further one waits, first come first served, at most
   `wait` seconds, then raises MaxConnectionsError (a ConnectionError).
6. On a cluster, MOVED, ASK and TRYAGAIN are followed; what a node refused, or what never left, is sent
   again a few times with a fresh map (CLUSTERDOWN, connection refused).
7. Two different (entity, role) have two different keys, whatever text they hold, and all roles of one
   entity are in one slot. Names are printable ASCII: `<app>:{<pattern>:<entity>}:<role>`.
8. A Script does the same on one server and on a cluster: it names its keys, all in one slot, or is refused
   before anything is sent; a server that forgot it is taught again.
9. No error message and no repr shows a password or the arguments of a command whose outcome is unknown.

What does not: a failover may lose what was acknowledged (replication is asynchronous), and a call during
one may fail. On a cluster a command that names no key, or keys of several slots that the client splits
(DEL, MGET), is several commands, and its error is about one of them; subscriptions and transactions that
WATCH hold a connection beside `max_connections` (on one server, one of them); subscribe after a first
command, which reads the map; and open a pipeline by `async with client.pipeline(transaction=True)`, for
its default is another on each kind of client.

Settings. Clients speak RESP2: the same shapes of replies from every server, no push frames between them.
Idle TCP connections are probed by the kernel (30 s, then 3 probes of 5 s); no PING goes before commands.
A blocking command (BLPOP, XREAD BLOCK) needs a client of its own whose `socket_timeout` is longer than its
block, or None.

>>> Keyspace("shop", "cache_aside").key("user:42", "value")
'shop:{cache_aside:user%3A42}:value'
>>> import asyncio
>>> async def main() -> None:
...     async with opened() as client:
...         await client.set("greeting", b"hello")
...         print(await client.get("greeting"))
>>> asyncio.run(main())
b'hello'

Sources: Redis documentation, "Cluster specification", "Scripting with Lua", "Transactions"; redis-py issues
977, 2665, 3554 (repeated commands, replies of others) and 4287 (dead connections); RFC 3986 (escapes).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict
from urllib.parse import quote, unquote

from redis import exceptions as errors
from redis.asyncio import Redis, RedisCluster, sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

from patterns.connections import (
    Cluster,
    OutcomeUnknown,
    Pool,
    SentinelPool,
    SentinelTcp,
    SentinelTls,
    Tcp,
    Tls,
    Turns,
    Unix,
    Unsent,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from typing import Unpack

__all__ = ["Client", "Keyspace", "Options", "OutcomeUnknown", "Script", "connect", "opened"]

Client: TypeAlias = Redis | RedisCluster


class Options(TypedDict, total=False):
    """The keywords of `connect`."""

    max_connections: int
    wait: float
    socket_timeout: float | None
    connect_timeout: float


def connect(
    url: str | None = None,
    *,
    max_connections: int = 32,
    wait: float = 5.0,
    socket_timeout: float | None = 5.0,
    connect_timeout: float = 5.0,
) -> Client:
    """Return a client, bytes in and bytes out, that connects at its first command and is closed by `aclose`.

    Args:
        url: `redis[s]://host:port/db`, `unix:///path?db=n`, `redis[s]+cluster://host:port,host:port` or
            `redis[s]+sentinel://host:port,host:port/service/db`, with `user:password@` where there is one,
            percent-encoded; SSL_CERT_FILE names a private CA. None reads REDIS_URL and, if that is
            not set, starts this process's embedded server.
        max_connections: most commands under way at one time.
        wait: seconds a call waits for its turn.
        socket_timeout: seconds to send, and seconds to wait for each reply; None waits as long as the
            connection stands.
        connect_timeout: seconds until a connection is made and greeted.

    Raises:
        ValueError: an argument is out of bounds, or the URL has none of the forms.
    """
    if type(max_connections) is not int or max_connections < 1:
        raise ValueError(f"max_connections must be an integer >= 1, got {max_connections!r}")
    for name, seconds in {"wait": wait, "connect_timeout": connect_timeout}.items():
        if not 0 < seconds < math.inf:
            raise ValueError(f"{name} must be seconds > 0, got {seconds!r}")
    if socket_timeout is not None and not 0 < socket_timeout < math.inf:
        raise ValueError(f"socket_timeout must be seconds > 0 or None, got {socket_timeout!r}")
    name = "url"
    if url is None:
        name, url = "REDIS_URL", os.environ.get("REDIS_URL")
    if url is None:
        from patterns import embedded  # noqa: PLC0415  a service that has REDIS_URL never needs it

        url = embedded.shared().unix_url
    kind, place = _parsed(name, url)
    turns = Turns(max_connections, wait)
    tcp, managed = (Tls, SentinelTls) if place["tls"] else (Tcp, SentinelTcp)
    options: dict[str, Any] = {
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": connect_timeout,
        "protocol": 2,
        "retry": Unsent(NoBackoff(), 0),
    }
    login = {"username": place["user"] or None, "password": place["password"], "db": place["db"]}
    if kind == "cluster":
        return Cluster(turns, tcp, place["addresses"], ssl=bool(place["tls"]), **options, **login)
    if kind == "unix":
        return Redis.from_pool(Pool(turns, connection_class=Unix, path=place["path"], **options, **login))
    servers = [{"connection_class": tcp, "host": host, "port": port} for host, port in place["addresses"]]
    if kind == "single":
        return Redis.from_pool(Pool(turns, **servers[0], **options, **login))
    watch: Any = sentinel.Sentinel  # untyped in redis-py
    watchers = watch([])
    watchers.sentinels = [
        Redis.from_pool(Pool(Turns(max_connections, wait), **server, **options)) for server in servers
    ]
    service = {"service_name": place["service"], "sentinel_manager": watchers, "connection_class": managed}
    return Redis.from_pool(SentinelPool(turns, **service, **options, **login))


@asynccontextmanager
async def opened(url: str | None = None, **options: Unpack[Options]) -> AsyncIterator[Client]:
    """Lend a client and close it; the arguments are those of `connect`."""
    client = connect(url, **options)
    try:
        yield client
    finally:
        await client.aclose()


_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in "%{}:")


@dataclass(frozen=True, slots=True)
class Keyspace:
    """The keys of one pattern in one application.

    Args:
        app: whose data it is.
        pattern: which pattern keeps it.
    """

    app: str
    pattern: str

    def __post_init__(self) -> None:
        _check_name("app", self.app)
        _check_name("pattern", self.pattern)

    def key(self, entity: str, role: str) -> str:
        """Return the key of `role` for `entity`; `entity` is any text but the empty one.

        Raises:
            ValueError: `entity` is empty or has a lone surrogate, or `role` is no name.
        """
        _check_name("role", role)
        if not entity:
            raise ValueError("entity must not be empty: an empty tag is no tag")
        try:
            return f"{self.app}:{{{self.pattern}:{quote(entity.encode(), _PLAIN)}}}:{role}"
        except UnicodeEncodeError:
            raise ValueError("entity must be text that UTF-8 can hold, got a lone surrogate") from None

    def entity(self, key: str | bytes) -> str:
        """Return the entity of one of this keyspace's keys: the inverse of `key`, for whoever watches.

        Raises:
            ValueError: the key is of another keyspace.
        """
        text = key.decode("ascii", "replace") if isinstance(key, bytes) else key
        before = f"{self.app}:{{{self.pattern}:"
        entity, brace, role = text.removeprefix(before).partition("}:")
        if not text.startswith(before) or not brace or self.key(unquote(entity), role) != text:
            raise ValueError(f"the key must begin with {before!r}, and be one that `key` made")
        return unquote(entity)


class Script:
    """A Lua script, sent whole only to a server that does not know it.

    Args:
        name: what to call it in errors.
        source: the text; every key in KEYS, values in ARGV.
    """

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source
        self._sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    async def __call__(
        self, client: Client, *, keys: Sequence[str | bytes], args: Sequence[str | bytes | int | float] = ()
    ) -> Any:
        """Run it, and return the reply as the server gave it.

        Raises:
            ValueError: there is no key, or the keys are in several slots; nothing was sent.
        """
        slots = {key_slot(key.encode() if isinstance(key, str) else key) for key in keys}
        if len(slots) != 1:
            raise ValueError(
                f"script {self.name!r} must name keys of one slot, got {len(keys)} keys in {len(slots)} slots"
            )
        try:
            try:
                return await client.evalsha(self._sha, len(keys), *keys, *args)
            except errors.NoScriptError:
                return await client.eval(self.source, len(keys), *keys, *args)
        except RedisError as error:
            error.add_note(f"in the script {self.name!r}")
            raise


_LOGIN = r"(?:(?P<user>[^:@/?#]*):(?P<password>[^@/?#]*)@)?"
_HOST = r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])"
_HOSTS = rf"(?P<hosts>{_HOST}:[0-9]+(?:,{_HOST}:[0-9]+)*)"
_FORMS = {
    "single": rf"redis(?P<tls>s?)://{_LOGIN}(?P<hosts>{_HOST}(?::[0-9]+)?)(?:/(?P<db>[0-9]*))?",
    "unix": rf"unix://{_LOGIN}(?P<path>/[^?#]+)(?:\?db=(?P<db>[0-9]+))?",
    "cluster": rf"redis(?P<tls>s?)\+cluster://{_LOGIN}{_HOSTS}/?",
    "sentinel": rf"redis(?P<tls>s?)\+sentinel://{_LOGIN}{_HOSTS}/(?P<service>[^/?#]+)(?:/(?P<db>[0-9]*))?",
}


def _parsed(name: str, url: str) -> tuple[str, dict[str, Any]]:
    for kind, form in _FORMS.items():
        if found := re.fullmatch(form, url):
            place: dict[str, Any] = dict.fromkeys(("user", "password", "tls", "hosts", "path", "service"), "")
            place |= {part: unquote(text) for part, text in found.groupdict("").items()}
            place["db"] = int(place.get("db") or 0)
            pairs = re.findall(r"(\[.*?\]|[^:,]+)(?::([0-9]+))?", place["hosts"])
            place["addresses"] = [(host.strip("[]"), int(port or 6379)) for host, port in pairs]
            if all(0 < port < 65536 for _, port in place["addresses"]):
                return kind, place
    # Nothing of the URL is shown: in one that was not understood, a password may be anywhere.
    raise ValueError(
        f"{name} must be redis[s]://host[:port][/db], unix:///path[?db=n], redis[s]+cluster://host:port,... "
        "or redis[s]+sentinel://host:port,.../service[/db]; [user]:password@ may stand after ://, "
        "percent-encoded; ports are from 1 to 65535"
    )


def _check_name(field: str, value: str) -> None:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{field} must be letters, digits, '_', '.' and '-', at least one, got {value!r}")
