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

import asyncio
import hashlib
import math
import os
import re
import select
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypedDict, cast
from urllib.parse import quote, unquote

from redis import exceptions as errors
from redis._parsers import AsyncCommandsParser
from redis.asyncio import Redis, RedisCluster, cluster, connection, sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from patterns.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from typing import Unpack

__all__ = ["Client", "Keyspace", "Options", "OutcomeUnknown", "Script", "connect", "opened"]

Client: TypeAlias = Redis | RedisCluster


class OutcomeUnknown(RedisConnectionError):
    """The command may have left, and its reply did not come: it was applied once, or not at all.

    Attributes:
        command: its name, as `INCR`, `MULTI` or `PIPELINE`; never its arguments.
    """

    def __init__(self, command: str, why: str) -> None:
        super().__init__(command, why)
        self.command = command
        self._why = why

    def __str__(self) -> str:
        # Not from `args`, into which redis-py writes the arguments of pipelined commands.
        return f"{self.command} may have been applied: no reply came ({self._why})"


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
    turns = _Turns(max_connections, wait)
    tcp, managed = (_Tls, _SentinelTls) if place["tls"] else (_Tcp, _SentinelTcp)
    options: dict[str, Any] = {
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": connect_timeout,
        "protocol": 2,
        "retry": _Unsent(NoBackoff(), 0),
    }
    login = {"username": place["user"] or None, "password": place["password"], "db": place["db"]}
    if kind == "cluster":
        return _Cluster(turns, tcp, place["addresses"], ssl=bool(place["tls"]), **options, **login)
    if kind == "unix":
        return Redis.from_pool(_Pool(turns, connection_class=_Unix, path=place["path"], **options, **login))
    servers = [{"connection_class": tcp, "host": host, "port": port} for host, port in place["addresses"]]
    if kind == "single":
        return Redis.from_pool(_Pool(turns, **servers[0], **options, **login))
    watch: Any = sentinel.Sentinel  # untyped in redis-py
    watchers = watch([])
    watchers.sentinels = [
        Redis.from_pool(_Pool(_Turns(max_connections, wait), **server, **options)) for server in servers
    ]
    service = {"service_name": place["service"], "sentinel_manager": watchers, "connection_class": managed}
    return Redis.from_pool(_SentinelPool(turns, **service, **options, **login))


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


class _Guard(connection.AbstractConnection):
    """A connection that knows whether a reply is owed, and finds out that it is dead before it sends."""

    _greeting = False  # in the handshake: nothing of a caller's is sent
    _watching = False  # a WATCH was sent on this socket, and nothing that ends it
    _owed = 0  # replies to what was sent on this socket
    _batch = 1  # commands in what was packed last
    _command = ""

    async def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        """Connect and greet, within `socket_connect_timeout` as a whole."""
        if self.is_connected:
            return
        self._greeting, self._watching, self._owed = True, False, 0
        try:
            async with SYSTEM_CLOCK.timeout(self.socket_connect_timeout):
                await super().connect_check_health(*args, **kwargs)
        except BaseException as error:
            await self.disconnect(nowait=True)
            self._fail(error)
        finally:
            self._greeting = False

    async def disconnect(self, nowait: bool = False, *args: Any, **kwargs: Any) -> None:
        """Let go of the socket at once; while one task waits for its end, another may connect again."""
        writer = self._writer
        if writer is not None and nowait:
            writer.transport.abort()  # close() would go on sending what is left of a request
        await super().disconnect(True, *args, **kwargs)
        if writer is not None and not nowait:
            try:
                async with SYSTEM_CLOCK.timeout(self.socket_connect_timeout):
                    await writer.wait_closed()
            except OSError:  # TimeoutError is one
                writer.transport.abort()

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        """Pack several commands, and remember how many replies they will have."""
        commands = list(commands)
        packed: list[bytes] = super().pack_commands(commands)
        self._batch = len(commands)
        return packed

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], *_: Any, **__: Any) -> None:
        """Send, on a new connection if this one is dead."""
        text = command.encode() if isinstance(command, str) else command
        chunks = [text] if isinstance(text, bytes) else list(text)
        batch, self._batch = self._batch, 1
        if not self._greeting:
            name = chunks[0][:64].split(b"\r\n", 3)[2].decode("ascii", "replace").upper()
            if self._dead():
                await self.disconnect(nowait=True)
                if self._watching and name != "UNWATCH":
                    self._watching = False
                    raise errors.WatchError(
                        "the connection that watched was lost before the transaction was sent"
                    )
                connect: Any = self.connect  # untyped in redis-py
                await connect()
            if name in {"WATCH", "MULTI", "EXEC", "DISCARD", "UNWATCH"}:
                self._watching = name == "WATCH"
            self._command = name if batch == 1 or name == "MULTI" else "PIPELINE"
            self._owed += batch * (name != "COMMAND")  # which redis-py asks for itself, and changes nothing
        try:
            writer = cast("asyncio.StreamWriter", self._writer)
            writer.writelines(chunks)
            if writer.transport.get_write_buffer_size():  # else the kernel has it all
                async with SYSTEM_CLOCK.timeout(self.socket_timeout):
                    await writer.drain()
        except BaseException as error:
            await self.disconnect(nowait=True)
            self._fail(error)

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read one reply."""
        try:
            reply = await super().read_response(*args, **kwargs)
        except errors.ResponseError:
            self._owed = max(0, self._owed - 1)
            raise
        except Exception as error:
            # LOADING, "max number of clients" and the like are replies too, of a server that did nothing.
            if getattr(error, "status_code", None) is not None and self._owed <= 1:
                self._owed = 0
            self._fail(error)
        self._owed = max(0, self._owed - 1)
        return reply

    def _dead(self) -> bool:
        reader, writer = self._reader, self._writer
        if reader is None or writer is None or writer.transport.is_closing() or reader.at_eof():
            return True
        # The kernel knows before the event loop has come round to reading it.
        poll = select.poll()
        poll.register(writer.get_extra_info("socket"), getattr(select, "POLLRDHUP", 0))
        return bool(poll.poll(0))

    def _fail(self, error: BaseException) -> NoReturn:
        if not isinstance(error, Exception):
            raise error
        # The texts of other errors may hold what was read.
        told = isinstance(error, RedisConnectionError | RedisTimeoutError | OSError) and str(error)
        why = f"{self._host_error()}: {told or type(error).__name__}"
        if self._owed:
            raise OutcomeUnknown(self._command, why) from error
        if isinstance(error, RedisError):
            raise error
        kind = RedisTimeoutError if isinstance(error, TimeoutError) else RedisConnectionError
        raise kind(why) from error


class _Tcp(_Guard, connection.Connection):
    pass


class _Tls(_Guard, connection.SSLConnection):
    pass


class _Unix(_Guard, connection.UnixDomainSocketConnection):
    async def _connect(self) -> None:
        # redis-py's own greets here too, and hides a refused password in a ConnectionError.
        self._reader, self._writer = await asyncio.open_unix_connection(self.path)


# The guard comes below these, so that it sees READONLY as the reply that it is.
class _SentinelTcp(sentinel.SentinelManagedConnection, _Tcp):
    pass


class _SentinelTls(sentinel.SentinelManagedSSLConnection, _Tls):
    pass


class _Unsent(Retry):
    """Repeats what was surely not applied; transactions on a cluster follow MOVED by way of it.

    An OutcomeUnknown is raised as it is: redis-py would make it a WatchError, which says "try again".
    """

    def get_retries(self) -> int:
        return 0  # for the loops of redis-py that do not ask what was sent

    async def call_with_retry(self, do: Any, fail: Any, *_: Any, with_failure_count: bool = False) -> Any:
        def unsent(error: Exception) -> bool:
            return not isinstance(error, OutcomeUnknown | RedisTimeoutError)

        return await super().call_with_retry(do, fail, unsent, with_failure_count)


class _Turns:
    """At most `limit` at a time, first come first served."""

    def __init__(self, limit: int, wait: float) -> None:
        self.limit, self._wait = limit, wait
        self._free = asyncio.Semaphore(limit)

    async def take(self) -> None:
        if not self._free.locked():
            await self._free.acquire()  # without waiting
            return
        try:
            async with SYSTEM_CLOCK.timeout(self._wait):
                await self._free.acquire()
        except TimeoutError:
            busy = f"all {self.limit} connections were busy for {self._wait:g} s; nothing was sent"
            raise errors.MaxConnectionsError(busy) from None

    def give(self) -> None:
        self._free.release()


class _Pool(connection.ConnectionPool):
    """A pool that waits, and takes back without waiting, so that no cancellation loses a place.

    redis-py's BlockingConnectionPool lets a free connection lie when the caller that it wakes is cancelled
    (a fault of asyncio.Condition before Python 3.13).
    """

    def __init__(self, turns: _Turns, **options: Any) -> None:
        super().__init__(max_connections=turns.limit, **options)
        self._turns = turns

    async def get_connection(self, *_: Any, **__: Any) -> connection.AbstractConnection:
        await self._turns.take()
        available: Any = self.get_available_connection  # untyped in redis-py
        lent: connection.AbstractConnection = available()
        try:
            await self.ensure_connection(lent)
        except BaseException:
            await self.release(lent)
            raise
        return lent

    async def release(self, connection: connection.AbstractConnection) -> None:
        self._in_use_connections.remove(connection)
        self._available_connections.append(connection)
        self._turns.give()


class _SentinelPool(_Pool, sentinel.SentinelConnectionPool):
    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


class _Map(cluster.NodesManager):
    async def initialize(self, *args: Any, **kwargs: Any) -> None:
        try:
            await super().initialize(*args, **kwargs)
        except errors.RedisClusterException as error:  # which is no RedisError
            raise RedisConnectionError(str(error)) from error


class _Commands(AsyncCommandsParser):
    async def initialize(self, node: cluster.ClusterNode | None = None) -> None:
        # Once: redis-py reads this table, which takes it some 60 ms, each time it reads the map.
        if node is None or not self.commands:
            await super().initialize(node)
        else:
            self.node = node


class _Cluster(RedisCluster):
    """A RedisCluster of guarded connections, whose callers wait for their turn."""

    _TRIES = 4  # of what was surely not applied

    def __init__(
        self, turns: _Turns, kind: type[_Tcp | _Tls], addresses: list[tuple[str, int]], **options: Any
    ) -> None:
        options["retry"] = _Unsent(NoBackoff(), self._TRIES)
        # Twice as many, for subscriptions and transactions that watch hold one without a turn.
        options["max_connections"] = 2 * turns.limit
        nodes = [cluster.ClusterNode(*address) for address in addresses]
        super().__init__(startup_nodes=nodes, reinitialize_steps=1, **options)
        self.connection_kwargs["connection_class"] = kind
        for node in self.startup_nodes:
            node.connection_class = kind
        self.nodes_manager = _Map(
            self.startup_nodes, True, self.connection_kwargs, event_dispatcher=self._event_dispatcher
        )
        self.commands_parser = _Commands()
        self._turns = turns
        self._has_turn: set[asyncio.Task[Any] | None] = set()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Take a turn; a task has one only, for a pipeline follows MOVED by single commands."""
        task = asyncio.current_task()
        if task in self._has_turn:
            yield
            return
        await self._turns.take()
        self._has_turn.add(task)
        try:
            yield
        finally:
            self._has_turn.discard(task)
            self._turns.give()

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        async with self.turn():
            for tries_left in reversed(range(self._TRIES)):
                try:
                    await self.initialize()
                    return await super().execute_command(*args, **kwargs)
                except (RedisConnectionError, errors.ClusterDownError) as error:
                    # By exact type, for those derived from it are OutcomeUnknown, a refused password, ...
                    if not tries_left or type(error) not in {RedisConnectionError, errors.ClusterDownError}:
                        raise
                await SYSTEM_CLOCK.sleep(0.1)
        return None

    async def _execute_command(self, target_node: cluster.ClusterNode, *args: Any, **kwargs: Any) -> Any:
        # In place of redis-py's, which sends ASKING on one connection and the command on another, and at
        # CLUSTERDOWN closes the connections on which others wait.
        nodes, node, asking = self.nodes_manager, target_node, False
        for _ in range(self.RedisClusterRequestTTL):
            try:
                if not asking:
                    return await node.execute_command(*args, **kwargs)
                pair = [cluster.PipelineCommand(0, "ASKING"), cluster.PipelineCommand(1, *args, **kwargs)]
                await node.execute_pipeline(pair)
                return _raised(pair[1].result)
            except errors.MovedError as moved:
                await nodes.move_slot(moved)
                node, asking = nodes.get_node_from_slot(moved.slot_id), False
            except errors.AskError as ask:
                new = cluster.ClusterNode(ask.host, ask.port, "primary", **self.connection_kwargs)
                node, asking = nodes.nodes_cache.setdefault(new.name, new), True
            except errors.TryAgainError:
                await SYSTEM_CLOCK.sleep(0.05)
            except (errors.ClusterDownError, RedisConnectionError, RedisTimeoutError) as error:
                if not isinstance(
                    error, errors.MaxConnectionsError | errors.BusyLoadingError | errors.AuthenticationError
                ):
                    nodes.move_node_to_end_of_cached_nodes(node.name)
                    self._initialize = True  # read the map again before the next command
                raise
        raise RedisConnectionError(
            f"{args[0]} was sent on {self.RedisClusterRequestTTL} times by the cluster"
        )

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> cluster.ClusterPipeline:  # noqa: ARG002  redis-py's signature
        return _ClusterPipeline(self, transaction)

    async def aclose(self) -> None:
        await super().aclose()
        # Which does nothing where the map was to be read again.
        await self.nodes_manager.aclose()
        await self.nodes_manager.aclose("startup_nodes")


class _ClusterPipeline(cluster.ClusterPipeline):
    cluster_client: _Cluster
    _event_dispatcher: Any = None  # redis-py's protocol of clients wants one, its pipelines use none

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self._execution_strategy, cluster.TransactionStrategy):
            return super().execute_command(*args, **kwargs)
        # redis-py runs this in a thread with a loop of its own, where it may read the map again and so
        # break the connections of this loop. An old map will do, for MOVED is followed.
        client, step = self.cluster_client, self._execution_strategy._execute_command(*args, **kwargs)
        map_is_old, client._initialize = client._initialize, False
        try:
            step.send(None)
        except StopIteration as queued:
            return queued.value
        finally:
            client._initialize = map_is_old
            step.close()
        raise RedisError(f"{args[0]} cannot be in a transaction on a cluster, or `async with` is missing")

    async def execute(self, raise_on_error: bool = True, allow_redirections: bool = True) -> list[Any]:
        several = len(self) > 1 and not isinstance(self._execution_strategy, cluster.TransactionStrategy)
        async with self.cluster_client.turn():
            try:
                return await super().execute(raise_on_error, allow_redirections)
            except (RedisConnectionError, RedisTimeoutError) as error:
                if several and not isinstance(error, OutcomeUnknown):
                    # It is about one node; others may have carried out their part.
                    raise OutcomeUnknown("PIPELINE", type(error).__name__) from error
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


def _raised(result: Any) -> Any:
    if isinstance(result, Exception):
        raise result
    return result
