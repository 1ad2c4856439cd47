"""The connections of the clients that `keyspace` makes: guarded, counted, and never asked twice.

`_Guard` is one connection: it knows whether a reply is owed, finds out that it is dead before it sends, and
turns whatever goes wrong into one of the errors that `keyspace` promises. `Pool` lends connections to as many
callers as there are turns; `Cluster` does the same over many nodes. Both stand where redis-py's own would
repeat commands, raise when they are full, or lose a connection with a cancelled caller.

Nobody but `keyspace` makes these; what they promise is stated there, and proved in tests/test_keyspace.py.

Sources: redis-py 8.1 (whose private names this module uses: its tests notice a change), issues 2665, 4287.
"""

from __future__ import annotations

import asyncio
import select
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn, cast

from redis import exceptions as errors
from redis._parsers import AsyncCommandsParser
from redis.asyncio import RedisCluster, cluster, connection, sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from patterns.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

__all__ = [
    "Cluster",
    "OutcomeUnknown",
    "Pool",
    "SentinelPool",
    "SentinelTcp",
    "SentinelTls",
    "Tcp",
    "Tls",
    "Turns",
    "Unix",
    "Unsent",
]


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


class Tcp(_Guard, connection.Connection):
    """A guarded TCP connection."""


class Tls(_Guard, connection.SSLConnection):
    """A guarded TLS connection."""


class Unix(_Guard, connection.UnixDomainSocketConnection):
    """A guarded connection to a unix socket."""

    async def _connect(self) -> None:
        # redis-py's own greets here too, and hides a refused password in a ConnectionError.
        self._reader, self._writer = await asyncio.open_unix_connection(self.path)


# The guard comes below these, so that it sees READONLY as the reply that it is.
class SentinelTcp(sentinel.SentinelManagedConnection, Tcp):
    """A guarded TCP connection to the primary that the Sentinels name."""


class SentinelTls(sentinel.SentinelManagedSSLConnection, Tls):
    """The same over TLS."""


class Unsent(Retry):
    """Repeats what was surely not applied; transactions on a cluster follow MOVED by way of it.

    An OutcomeUnknown is raised as it is: redis-py would make it a WatchError, which says "try again".
    """

    def get_retries(self) -> int:
        """Return that nothing is tried again."""
        return 0  # for the loops of redis-py that do not ask what was sent

    async def call_with_retry(self, do: Any, fail: Any, *_: Any, with_failure_count: bool = False) -> Any:
        """Try once more where nothing was sent, as redis-py calls it."""

        def unsent(error: Exception) -> bool:
            return not isinstance(error, OutcomeUnknown | RedisTimeoutError)

        return await super().call_with_retry(do, fail, unsent, with_failure_count)


class Turns:
    """At most `limit` at a time, first come first served."""

    def __init__(self, limit: int, wait: float) -> None:
        self.limit, self._wait = limit, wait
        self._free = asyncio.Semaphore(limit)

    async def take(self) -> None:
        """Wait for a turn, first come first served; MaxConnectionsError after `wait` seconds."""
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
        """Give the turn back."""
        self._free.release()


class Pool(connection.ConnectionPool):
    """A pool that waits, and takes back without waiting, so that no cancellation loses a place.

    redis-py's BlockingConnectionPool lets a free connection lie when the caller that it wakes is cancelled
    (a fault of asyncio.Condition before Python 3.13).
    """

    def __init__(self, turns: Turns, **options: Any) -> None:
        super().__init__(max_connections=turns.limit, **options)
        self._turns = turns

    async def get_connection(self, *_: Any, **__: Any) -> connection.AbstractConnection:
        """Lend a connection that is connected and owes nothing."""
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
        """Take it back."""
        self._in_use_connections.remove(connection)
        self._available_connections.append(connection)
        self._turns.give()


class SentinelPool(Pool, sentinel.SentinelConnectionPool):
    """A pool of connections to the primary that the Sentinels name."""

    async def aclose(self) -> None:
        """Close these, and those to the Sentinels."""
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


_OF_A_NODE = (errors.ClusterDownError, RedisConnectionError, RedisTimeoutError)
_OF_A_NODE_IN_ITS_PLACE = (errors.MaxConnectionsError, errors.BusyLoadingError, errors.AuthenticationError)


class Cluster(RedisCluster):
    """A RedisCluster of guarded connections, whose callers wait for their turn."""

    _TRIES = 4  # of what was surely not applied
    _PATIENCE = 0.05  # seconds without a reply after which a caller that leaves says something of the node

    def __init__(
        self, turns: Turns, kind: type[Tcp | Tls], addresses: list[tuple[str, int]], **options: Any
    ) -> None:
        options["retry"] = Unsent(NoBackoff(), self._TRIES)
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
        """Send one command, to the node that has its key."""
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
        nodes, node, asking, began = self.nodes_manager, target_node, False, SYSTEM_CLOCK.monotonic()
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
            except BaseException as error:
                if self.doubt_map(error, began):
                    nodes.move_node_to_end_of_cached_nodes(node.name)
                raise
        raise RedisConnectionError(
            f"{args[0]} was sent on {self.RedisClusterRequestTTL} times by the cluster"
        )

    def doubt_map(self, error: BaseException, began: float) -> bool:
        """Have the map read again before the next command, if `error` may come of an old one.

        A host that is gone refuses nothing, and callers with time-outs of their own leave long before the
        socket's ends: so one that is cancelled after it has waited for a while counts as well.
        """
        if isinstance(error, asyncio.CancelledError):
            old = SYSTEM_CLOCK.monotonic() - began > self._PATIENCE
        else:
            old = isinstance(error, _OF_A_NODE) and not isinstance(error, _OF_A_NODE_IN_ITS_PLACE)
        self._initialize = self._initialize or old
        return old

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> cluster.ClusterPipeline:  # noqa: ARG002  redis-py's signature
        """Return a pipeline; enter it by `async with`."""
        return _ClusterPipeline(self, transaction)

    async def aclose(self) -> None:
        """Close every connection to every node."""
        await super().aclose()
        # Which does nothing where the map was to be read again.
        await self.nodes_manager.aclose()
        await self.nodes_manager.aclose("startup_nodes")


class _ClusterPipeline(cluster.ClusterPipeline):
    cluster_client: Cluster
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
        client = self.cluster_client
        async with client.turn():
            began = SYSTEM_CLOCK.monotonic()
            try:
                replies = await super().execute(raise_on_error, allow_redirections)
            except BaseException as error:
                client.doubt_map(error, began)
                lost = isinstance(error, RedisConnectionError | RedisTimeoutError)
                if several and lost and not isinstance(error, OutcomeUnknown):
                    # It is about one node; others may have carried out their part.
                    raise OutcomeUnknown("PIPELINE", type(error).__name__) from error
                raise
        for reply in replies:
            if isinstance(reply, Exception):
                client.doubt_map(reply, began)
        return replies


def _raised(result: Any) -> Any:
    if isinstance(result, Exception):
        raise result
    return result
