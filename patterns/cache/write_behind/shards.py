"""The shards of one write-behind, and the number of them that all its processes agree upon.

    <app>:{write_behind:<name>/0}:shards

Whoever writes first says how many there are. With another number a key is in another queue: readers miss
what waits in the old one, and a flusher leaves whole queues behind and says that nothing is left.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

from patterns.cache.write_behind.change import Records
from patterns.cache.write_behind.errors import OtherShards
from patterns.cache.write_behind.scripts import AGREE
from patterns.cache.write_behind.shard import Shard
from patterns.keyspace import Keyspace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterns.cache.write_behind.policy import Policy
    from patterns.entry import Codec
    from patterns.keyspace import Client

__all__ = ["Shards"]


class Shards:
    """All queues of one write-behind.

    Args:
        name: of the write-behind.
        client: from `patterns.keyspace`.
        policy: how many there are, and how much each holds.
        app: first part of the keys.
        codec: turns values into bytes and back.

    Raises:
        ValueError: no keys can be made of `app` and `name`.
    """

    def __init__(self, name: str, client: Client, policy: Policy, *, app: str, codec: Codec) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"name must be letters, digits, '_', '.' and '-', at least one, got {name!r}")
        space, self.records = Keyspace(app, "write_behind"), Records(codec, policy.max_bytes)
        self._shards = [
            Shard(number, name, client, space=space, policy=policy, records=self.records)
            for number in range(policy.shards)
        ]
        self._name, self._client = name, client
        self._key = space.key(f"{name}/0", "shards")
        self._agreed = False

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._shards)

    def of(self, key: bytes) -> Shard:
        """Return the shard of a key: the same in every process."""
        return self._shards[zlib.crc32(key) % len(self._shards)]

    async def agree(self, *, claim: bool) -> None:
        """Ask once whether all count alike; `claim` says the number where nobody has.

        Raises:
            OtherShards: they do not.
        """
        if self._agreed:
            return
        found = await self._client.get(self._key)  # a reader is answered also where nothing may be written
        if found is None and claim:
            found = await AGREE(self._client, keys=[self._key], args=[len(self._shards)])
        if found is not None:
            if int(found) != len(self._shards):
                raise OtherShards(self._name, len(self._shards), int(found), self._key)
            self._agreed = True
