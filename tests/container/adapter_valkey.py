"""Valkey as a case of the conformance suite: what an adapter must leave as it is, and mangled replies."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from patterns.container.adapter.valkey import Valkey
from patterns.keyspace import opened
from tests.container.adapter_checks import Case

if TYPE_CHECKING:
    from patterns.embedded import Cluster, Server

__all__ = ["seed", "valkey_case"]


def seed(cluster: Cluster) -> str:
    """Return the URL of one node, from which the others must be found."""
    return f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}"


NOT_OURS = {
    "replconf",
    "ping",
    "psync",
    "cluster|myid",
    "cluster|setslot",
    "command",
}  # of cluster and fixture
READING = {"info", "cluster|nodes", "client|setinfo", "auth", "config|get"}


async def state_of(server: Server, asked: int) -> Any:
    """Return what an adapter must not change: data, settings, and the counters that one may reset.

    `asked` is how often this was called: one CONFIG GET each.
    """
    async with opened(server.url) as client:
        settings = await client.config_get("*")
        info = await client.info("all")
    calls = {name.removeprefix("cmdstat_"): info[name]["calls"] for name in info if name[:8] == "cmdstat_"}
    others = {name: count for name, count in calls.items() if name not in READING | NOT_OURS}
    return settings, info["rdb_changes_since_last_save"], others, calls["config|get"] - asked


def valkey_case(kind: str, server: Server, cluster: Cluster | None, make: Any = Valkey) -> Case:
    """Return the case of one server, or of a cluster of six."""
    asked = itertools.count(1)

    async def state() -> Any:
        number = next(asked)
        return [await state_of(node, number) for node in (cluster.nodes if cluster else [server])]

    return Case(
        source=make("valkey", seed(cluster) if cluster else server.url),
        at=lambda port: make("valkey", f"redis://127.0.0.1:{port}"),
        state=state,
        targets=6 if kind == "cluster" else 1,
        mangled=[
            b"$5\r\nhello\r\n",
            b"$-1\r\n",
            b"+OK\r\n",
            b":1\r\n",
            b"*2\r\n:1\r\n:2\r\n",
            b"$40\r\nuptime_in_seconds:5\r\n",
            b"$27\r\nuptime_in_seconds:5\r\ndb0:x\r\n",
            b"-LOADING Valkey is loading the dataset in memory\r\n",
            b"-NOPERM this user has no permissions\r\n",
        ],
    )
