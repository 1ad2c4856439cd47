"""Where the clients of `keyspace` are tried: one server or a cluster, behind breakable lines."""

from __future__ import annotations

import asyncio
import contextlib
import re
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tests.eventually import eventually
from tests.faults import proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from patterns.embedded import Server
    from patterns.keyspace import Client
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
