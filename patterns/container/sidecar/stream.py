"""The Redis side: one stream for each source, and the position up to which its log is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patterns.container.sidecar.tail import Position
from patterns.keyspace import Client, Keyspace, Script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterns.container.sidecar.tail import Line

__all__ = ["Stream"]


class Stream:
    """Where one source's lines go.

    Args:
        client: from `patterns.keyspace`.
        app: first part of the keys.
        source: whose lines they are.
        length: entries that the stream keeps, about.
        keep: seconds that both keys live after the last line.
    """

    def __init__(self, client: Client, app: str, source: str, *, length: int, keep: float) -> None:
        keys = Keyspace(app, "sidecar")
        self._client = client
        self._keys = [keys.key(source, "log"), keys.key(source, "position")]
        self._length = length
        self._keep = max(1, round(keep * 1000))

    async def position(self) -> Position | None:
        """Return where the last line in the stream ends in the file; None if there is none."""
        saved: list[Any] = await self._client.hmget(self._keys[1], ["seq", "file", "offset"])
        seq, file, offset = saved
        return None if seq is None else Position(int(seq), file.decode(), int(offset))

    async def append(self, lines: Sequence[Line]) -> None:
        """Put `lines` into the stream, in order, each once: what is there already is passed over."""
        last = lines[-1].after
        args: list[str | bytes | int] = [self._length, self._keep, last.file, last.offset]
        for line in lines:
            args += (line.after.seq, line.text)
        await _APPEND(self._client, keys=self._keys, args=args)


# --8<-- [start:append]
_APPEND = Script(
    "sidecar.append",
    """
-- KEYS[1] stream log, KEYS[2] hash position
-- ARGV[1] length of the stream, [2] ms to keep it, [3] file and [4] offset after the last line;
-- then seq and text of each line, in order
local shipped = tonumber(redis.call('HGET', KEYS[2], 'seq') or 0)
for i = 5, #ARGV, 2 do
  if tonumber(ARGV[i]) > shipped then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'seq', ARGV[i], 'line', ARGV[i + 1])
  end
end
local last = ARGV[#ARGV - 1]
if tonumber(last) > shipped then
  redis.call('HSET', KEYS[2], 'seq', last, 'file', ARGV[3], 'offset', ARGV[4])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
""",
)
# --8<-- [end:append]
