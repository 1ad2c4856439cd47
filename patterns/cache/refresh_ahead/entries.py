"""The entries in Redis: those of Read-Through, and who may try to refresh one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patterns.cache.read_through import ReadThrough
from patterns.keyspace import Keyspace, Script
from patterns.outage import NoCache

if TYPE_CHECKING:
    from patterns.keyspace import Client

__all__ = ["Entries"]

# --8<-- [start:claim]
CLAIM = Script(
    "refresh_ahead.claim",
    """
-- KEYS[1] string pause; ARGV[1] ms; returns 0, or the ms after which somebody may try
if redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then return 0 end
return math.max(1, redis.call('PTTL', KEYS[1]))
""",
)
# --8<-- [end:claim]


class Entries(ReadThrough):
    """The entries of one cache; further arguments are those of ReadThrough.

    Args:
        pause: seconds between two attempts to refresh one key.
    """

    _pattern = "refresh_ahead"

    def __init__(
        self, name: str, client: Client, *arguments: Any, app: str, pause: float, **more: Any
    ) -> None:
        super().__init__(name, client, *arguments, app=app, **more)
        self._client = client
        self._space = Keyspace(app, self._pattern)
        self._pause = pause

    async def claim(self, key: str) -> float:
        """Take the right to try a refresh of `key`; return 0, or the seconds after which somebody may."""
        name = self._space.key(f"{self.name}/{key}", "pause")
        ms = max(1, round(self._pause * 1000))
        try:
            return float(await self._store.ask(lambda: CLAIM(self._client, keys=[name], args=[ms]))) / 1000
        except NoCache:  # it may be ours, and then nobody tries for one pause
            return self._pause

    async def ahead(self, key: str, left: float) -> bool:
        """Load `key` if it has at most `left` seconds left; return whether it was kept."""
        return await self.refresh(key, ahead=left)
