"""Adapts Valkey and Redis: INFO becomes families of samples, one target for each node of a cluster.

The nodes are those of CLUSTER NODES, where a dead one stays until it is forgotten; in the table of slots it
would be missing, and so never be `adapter_up 0`. Each node has a client of its own: one that hangs holds
nobody else up.

Needs a user with `+info +cluster|nodes`; `+client|setinfo`, which redis-py tries, keeps the ACL log quiet.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from patterns import bounds
from patterns.clock import SYSTEM_CLOCK, Clock
from patterns.container.adapter.source import Family, Kind, Malformed
from patterns.keyspace import connect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from patterns.keyspace import Client

__all__ = ["Valkey", "addresses", "families"]

_PATIENCE = 0.1  # seconds after which the next node is asked for the list of nodes as well
_CONNECT = 10.0  # seconds
_LONGEST = 3600.0  # seconds: the deadline is the adapter's


# --8<-- [start:valkey]
class Valkey:
    """One server, or all nodes of a cluster; an async context manager.

    Args:
        name: what the operator calls it.
        url: `redis[s]://` or `unix://` of a server, or `redis[s]+cluster://` with some nodes of a cluster.
        clock: where the patience with one node is waited for.
    """

    def __init__(self, name: str, url: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.name = bounds.text("name", name)
        self._clock = clock
        self._prefix, self._cluster, seeds = _parts(url)
        self._seeds = {seed: self._node(seed) for seed in seeds}
        self._nodes = dict(self._seeds)
        self._heard = False  # a list of the cluster's nodes
        self._gone: list[Node] = []  # of the cluster no more, and to be closed

    async def targets(self) -> Sequence[Node]:
        """Return the nodes: of a cluster, those that it knows now, or knew when it last answered."""
        if self._cluster and (listed := await self._listed()):
            self._heard = True
            known, places = self._seeds | self._nodes, sorted(set(listed))
            self._gone += [known[name] for name in self._nodes.keys() - self._seeds.keys() - set(places)]
            self._nodes = {name: known.get(name) or self._node(name) for name in places}
            await self._close_gone()
        return list(self._nodes.values())

    async def _listed(self) -> list[str]:
        """Ask one node after the other, and wait long for none: the first list counts."""
        asking: set[asyncio.Task[list[str]]] = set()
        known = self._nodes | self._seeds  # all may have new addresses, and the seeds be names
        try:
            # Who answered last is asked first.
            for node in sorted(known.values(), key=lambda node: not node.answered):
                asking.add(asyncio.ensure_future(node.listed(alone=len(known) == 1)))
                with suppress(TimeoutError):
                    async with self._clock.timeout(_PATIENCE):
                        if listed := await _first(asking):
                            return listed
            # Who has an older list goes by that, and has its time left to ask the nodes.
            return [] if self._heard else await _first(asking)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

        # --8<-- [end:valkey]

    def _node(self, name: str) -> Node:
        client = connect(
            self._prefix + name,
            max_connections=2,
            wait=_LONGEST,
            socket_timeout=None,
            connect_timeout=_CONNECT,
        )
        return Node(name if "/" not in name else "unix", client)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        self._gone += (self._seeds | self._nodes).values()
        self._seeds, self._nodes = {}, {}
        await self._close_gone()

    async def _close_gone(self) -> None:
        while self._gone:
            await self._gone[-1].client.aclose()
            self._gone.pop()


class Node:
    """One server, as a target.

    Args:
        name: what it is labelled with.
        client: of this server alone.
    """

    def __init__(self, name: str, client: Client) -> None:
        self.name, self.client = name, client
        self.answered = False  # the last time

    async def collect(self) -> list[Family]:
        """Ask for INFO, and translate it."""
        self.answered = False
        said = families(await self.client.info())
        self.answered = True
        return said

    async def listed(self, *, alone: bool) -> list[str]:
        """Return the addresses of the cluster's nodes; none if it does not say.

        A node that was reset knows only itself; unless it may be `alone`, that is no answer.
        """
        try:
            answer = await self.client.execute_command("CLUSTER", "NODES")
        except (RedisError, OSError):
            return []
        found = addresses(answer, self.name)
        return found if alone or len(found) > 1 else []


async def _first(asking: set[asyncio.Task[list[str]]]) -> list[str]:
    """Return the first list that is not empty; none when all have ended."""
    waiting = asking
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if listed := task.result():
                return listed
    return []


def addresses(answer: object, asked: str) -> list[str]:
    r"""Return `host:port` of every node in a reply of CLUSTER NODES; `asked` is who gave it.

    >>> addresses(b"07c3 10.0.0.7:6379@16379,host master - 0 0 1 connected\n"
    ...           b"a1b2 :6380@16380 myself,slave 07c3 0 0 1 connected\n"
    ...           b"c3d4 :0@0 slave,noaddr 07c3 0 0 1 disconnected\n", "10.0.0.8:6380")
    ['10.0.0.7:6379', '10.0.0.8:6380']
    """
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else ""
    found = []
    for line in text.splitlines():
        node = re.match(r"\S+ ([0-9A-Za-z_.:-]*):([0-9]{1,5})@\S* (\S+) ", line)
        if node and {"noaddr", "handshake"}.isdisjoint(node[3].split(",")):
            host = f"[{node[1]}]" if ":" in node[1] else node[1]
            found.append(f"{host or asked.rpartition(':')[0]}:{node[2]}")
    return found


# --8<-- [start:families]
def families(info: Mapping[str, Any]) -> list[Family]:
    """Return the families of an INFO reply, as redis-py reads it.

    Raises:
        Malformed: it is none, or a field that is known cannot be read.
    """
    uptime, now = info.get("uptime_in_seconds"), info.get("server_time_usec")
    if not isinstance(uptime, int):
        raise Malformed("not a reply to INFO")
    # Both are whole seconds of one clock, so that this is the same at every scrape of one process.
    created = float(now // 1_000_000 - uptime) if isinstance(now, int) else None
    found: dict[str, Family] = {}

    def put(known: tuple[str, Kind, str], value: object, labels: dict[str, str] | None = None) -> None:
        name, kind, about = known
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Malformed("a field of INFO that is no number")
        family = found.setdefault(name, Family(name, kind, about))
        family.add(value, labels, created=created if kind == "counter" else None)

    for field, known in _FIELDS.items():
        if field in info:
            put(known, info[field])
    put(_PRIMARY, int(info.get("role") == "master"))
    for field, value in info.items():
        if isinstance(value, dict) and (db := re.fullmatch(r"db[0-9]+", field)):
            put(_KEYS, value.get("keys"), {"db": db[0]})
            put(_EXPIRING, value.get("expires"), {"db": db[0]})
        elif isinstance(value, dict) and field.startswith("errorstat_"):
            put(_ERRORS, value.get("count"), {"error": field.removeprefix("errorstat_")})
    return list(found.values())
    # --8<-- [end:families]


_FIELDS: dict[str, tuple[str, Kind, str]] = {
    "uptime_in_seconds": ("valkey_uptime_seconds", "gauge", "Since the process started"),
    "loading": ("valkey_loading", "gauge", "1 while it reads its data from disk"),
    "connected_clients": ("valkey_connected_clients", "gauge", "Connections of clients"),
    "blocked_clients": ("valkey_blocked_clients", "gauge", "Clients in a command that blocks"),
    "connected_slaves": ("valkey_connected_replicas", "gauge", "Replicas that follow"),
    "used_memory": ("valkey_memory_used_bytes", "gauge", "Allocated"),
    "used_memory_rss": ("valkey_memory_resident_bytes", "gauge", "Resident, as the kernel sees it"),
    "maxmemory": ("valkey_memory_max_bytes", "gauge", "Limit; 0 is none"),
    "master_repl_offset": (
        "valkey_replication_offset_bytes",
        "gauge",
        "Written to the stream, or read from it",
    ),
    "total_commands_processed": ("valkey_commands_processed", "counter", "Commands carried out"),
    "total_connections_received": ("valkey_connections_received", "counter", "Connections accepted"),
    "rejected_connections": ("valkey_connections_rejected", "counter", "Connections over maxclients"),
    "total_net_input_bytes": ("valkey_net_input_bytes", "counter", "Read from the network"),
    "total_net_output_bytes": ("valkey_net_output_bytes", "counter", "Written to the network"),
    "keyspace_hits": ("valkey_keyspace_hits", "counter", "Reads that found their key"),
    "keyspace_misses": ("valkey_keyspace_misses", "counter", "Reads that did not"),
    "expired_keys": ("valkey_expired_keys", "counter", "Keys whose time was over"),
    "evicted_keys": ("valkey_evicted_keys", "counter", "Keys removed for want of memory"),
}
_PRIMARY: tuple[str, Kind, str] = ("valkey_primary", "gauge", "1 if it takes writes, 0 for a replica")
_KEYS: tuple[str, Kind, str] = ("valkey_keys", "gauge", "Keys in a database")
_EXPIRING: tuple[str, Kind, str] = ("valkey_expiring_keys", "gauge", "Keys with a time to live")
_ERRORS: tuple[str, Kind, str] = ("valkey_error_replies", "counter", "Errors, by the first word of the reply")


def _parts(url: str) -> tuple[str, bool, list[str]]:
    """Return what stands before an address, whether it is a cluster's, and the addresses that are named."""
    one = re.fullmatch(r"(rediss?://(?:[^@/?#]*@)?)([^@/?#,]+)(?:/0?)?", url)
    many = re.fullmatch(r"(rediss?)\+cluster(://(?:[^@/?#]*@)?)([^@/?#]+)/?", url)
    unix = re.fullmatch(r"(unix://(?:[^@/?#]*@)?)(/[^?#]+)(?:\?db=0)?", url)
    if many and all(re.search(r".:[0-9]+$", seed) for seed in many[3].split(",")):
        return many[1] + many[2], True, many[3].split(",")
    if found := one or unix:
        place = found[2] if unix or re.search(r":[0-9]+$", found[2]) else f"{found[2]}:6379"
        return found[1], False, [place]
    # Nothing of the URL is shown: a password may be anywhere in it.
    raise ValueError(
        "url must be redis[s]://host[:port], unix:///path or redis[s]+cluster://host:port,... "
        "with [user]:password@ after :// where it needs one"
    )
