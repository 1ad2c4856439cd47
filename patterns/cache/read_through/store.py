"""The entries in Redis of many keys at once: the transitions of Cache-Aside, many of them in one exchange.

Scripts and promises are those of `patterns.cache.cache_aside.store`, and so are the keys, with `read_through`
in place of `cache_aside`. On one server many values are read by one MGET. On a cluster nothing is asked
across slots: each node gets a pipeline of commands, each for one key. A transition of many keys is a script
for each, in a pipeline. A key that Redis refuses does not fail the others.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from patterns.cache.cache_aside.scripts import BEGIN, FILL, READ, RELEASE
from patterns.cache.cache_aside.store import Store, Turn
from patterns.entry import Unreadable, stale_ms
from patterns.outage import NoCache

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from patterns.keyspace import Script

    Args = Mapping[str, Sequence[str | bytes | int]]

__all__ = ["Entries"]


class Entries(Store):
    """The entries of one cache; the arguments are those of Store."""

    def names(self, keys: Collection[str]) -> dict[str, str]:
        """Return the key in Redis of each value.

        Raises:
            ValueError: one of them can be no key.
        """
        return {key: self._key(key, "value") for key in keys}

    # --8<-- [start:read_all]
    async def read_all(self, names: Mapping[str, str]) -> dict[str, bytes]:
        """Return the fresh entries among those that `names` has; one round trip, or two if some may be stale.

        What is no entry is returned as it is, and no string counts as nothing.
        """
        found: dict[str, bytes] = {}
        windowed = set(names)
        if not self._windowed:
            found = await self.ask(lambda: self._values(names))
            windowed = {key for key, entry in found.items() if _may_be_stale(entry)}
        if windowed:
            replies = await self._each(READ, dict.fromkeys(windowed, ()))
            fresh = {key: reply[0] for key, reply in replies.items() if _is_fresh(reply)}
            found = {key: entry for key, entry in found.items() if key not in windowed} | fresh
        return found

    async def _values(self, names: Mapping[str, str]) -> dict[str, bytes]:
        if isinstance(self._client, Redis):
            values: list[Any] = await self._client.mget(list(names.values()))
        else:
            values = await self._in_one_go({name: ("GET", name) for name in names.values()})
        return {key: value for key, value in zip(names, values, strict=True) if isinstance(value, bytes)}

    # --8<-- [end:read_all]

    async def read_left(self, key: str) -> tuple[bytes, float] | None:
        """Return the fresh entry of `key` and its seconds of fresh life left, or None.

        Raises:
            Unreadable: what is there is no entry.
        """
        name = self._key(key, "value")
        try:
            entry, ms = await self.ask(lambda: READ(self._client, keys=[name]))
        except NoCache as refused:
            if not _is_of_one_key(refused.__cause__):
                raise
            raise Unreadable(b"", "not a string") from None
        left = ms - stale_ms(entry) if entry else 0
        return (entry, left / 1000) if left > 0 else None

    async def begin_all(
        self, keys: Collection[str], token: str, *, without: Mapping[str, bytes], alone: bool, ahead: float
    ) -> dict[str, Turn | None]:
        """Do what `begin` does for each key; None where Redis refused."""
        args = {
            key: self._begin_args(token, without=without.get(key, b""), alone=alone, ahead=ahead)
            for key in keys
        }
        replies = await self._each(BEGIN, args)
        return {
            key: None if isinstance(reply, Exception) else self._turn(reply) for key, reply in replies.items()
        }

    async def fill_all(self, token: str, what: Mapping[str, tuple[bytes, bytes, float]]) -> set[str]:
        """Do what `fill` does with each (generation, entry, ttl); return the keys that were kept."""
        args = {key: self._fill_args(token, *each) for key, each in what.items()}
        replies = await self._each(FILL, args)
        return {key for key, reply in replies.items() if reply == 1}

    async def release_all(self, keys: Collection[str], token: str) -> dict[str, tuple[bytes, float]]:
        """Do what `release` does for each key."""
        replies = await self._each(RELEASE, dict.fromkeys(keys, (token,)))
        return {
            key: (reply[0], reply[1] / 1000)
            for key, reply in replies.items()
            if not isinstance(reply, Exception)
        }

    async def give_back(self, keys: Collection[str], token: str) -> None:
        """Release the leases that `begin_all` may have taken unheard; also while Redis is left alone."""
        args = dict.fromkeys(keys, (token,))
        await self._outage.ask(lambda: self._pipelined(RELEASE, args), anyway=True)

    # --8<-- [start:each]
    async def _each(self, script: Script, args: Args) -> dict[str, Any]:
        """Run `script` once for each key; return the replies, errors of Redis among them."""
        if len(args) > 1:
            return await self.ask(lambda: self._pipelined(script, args))
        ((key, values),) = args.items()
        try:
            return {key: await self.ask(lambda: script(self._client, keys=self.keys(key), args=values))}
        except NoCache as refused:
            if not _is_of_one_key(refused.__cause__):
                raise
            return {key: refused.__cause__}

    async def _pipelined(self, script: Script, args: Args) -> dict[str, Any]:
        replies = await self._run("EVALSHA", _sha(script), args)
        untaught = {key: args[key] for key, reply in replies.items() if isinstance(reply, NoScriptError)}
        if untaught:
            replies |= await self._run("EVAL", script.source, untaught)
        return replies

    async def _run(self, command: str, script: str, args: Args) -> dict[str, Any]:
        commands = {}
        for key, values in args.items():
            names = self.keys(key)
            commands[names[0]] = (command, script, len(names), *names, *values)
        return dict(zip(args, await self._in_one_go(commands), strict=True))

    # --8<-- [end:each]

    async def _in_one_go(self, commands: Mapping[str, tuple[Any, ...]]) -> list[Any]:
        """Return the replies to commands, each with a key of its own; unless Redis refused all of them."""
        async with self._client.pipeline(transaction=False) as pipe:
            for command in commands.values():
                pipe.execute_command(*command)
            replies: list[Any] = await pipe.execute(raise_on_error=False)
        if all(isinstance(reply, Exception) and not _is_of_one_key(reply) for reply in replies):
            raise replies[0]
        return replies


@cache
def _sha(script: Script) -> str:
    return hashlib.sha1(script.source.encode(), usedforsecurity=False).hexdigest()


def _is_of_one_key(error: BaseException | None) -> bool:
    """Say whether an error says something of one key, or of a script, and nothing of Redis."""
    return isinstance(error, NoScriptError) or str(error).startswith("WRONGTYPE")


def _may_be_stale(entry: bytes) -> bool:
    if entry.startswith(b"1 0 "):
        return False  # its whole life is fresh
    try:
        return stale_ms(entry) > 0
    except Unreadable:
        return False


def _is_fresh(reply: Any) -> bool:
    if isinstance(reply, Exception) or not reply[0]:
        return False
    entry, left = cast("tuple[bytes, int]", reply)
    try:
        return left > stale_ms(entry)
    except Unreadable:
        return True  # whoever decodes it finds out
