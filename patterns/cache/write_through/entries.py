"""The entries in Redis: one script per transition, and what is owed to it when it did not answer.

Keys of one key, all in one slot:

- `<app>:{write_through:<name>/<key>}:value`       hash: `version`, `entry` (see `patterns.entry`), `until`
- `<app>:{write_through:<name>/<key>}:generation`  string: random, made by a load; PX twice the lease
- `<app>:{write_through:<name>/<key>}:writes`      hash: `w:<token>` and its deadline for each write under
  way, `floor` (the greatest version among those that ended), `dropped` (when); PX twice the lease

A write marks its key before it goes to the source, and keeps its value afterwards only if its mark is still
there and nothing else says that something newer may have come. A load notes the generation, which every mark,
write and drop deletes, and is kept only if it is still the same. So it does not matter which of the keys
expires, is evicted or was never there: what cannot be compared is not kept.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from patterns.bounds import text
from patterns.cache.cache_aside.events import Invalidated, InvalidationOwed
from patterns.cache.write_through.scripts import BEGIN, DROP, FILL, KEEP, MARK, UNMARK
from patterns.entry import Unreadable
from patterns.events import Listener, emit
from patterns.keyspace import Client, Keyspace
from patterns.outage import NoCache, Outage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from patterns.clock import Clock

__all__ = ["Entries", "Turn", "new_token"]

T = TypeVar("T")
_Args: TypeAlias = "list[str | bytes | int | float]"

_PART = 250  # keys dropped at once: few enough for one exchange


@dataclass(frozen=True, slots=True)
class Turn:
    """What `begin` found: an entry, or a load to do.

    Attributes:
        entry: the entry; None if there is none.
        generation: what `fill` must still find; empty where a write is under way, and nothing will be kept.
    """

    entry: bytes | None = None
    generation: bytes = b""


@dataclass(frozen=True, slots=True, eq=False)
class _Debt:
    """A drop that failed; what should have been dropped has `gone` by itself then."""

    gone: float


class Entries:
    """The entries of one cache.

    Args:
        name: of the cache, for events and keys.
        client: from `patterns.keyspace`.
        app: first part of the keys.
        lease: seconds that one write or load may take.
        timeout: seconds that one exchange with Redis may take.
        back_off: longest time in seconds for which Redis is left alone after it did not answer.
        clock: where durations are read.
        on_event: hears CacheLost, CacheRegained, Invalidated and InvalidationOwed.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        *,
        app: str,
        lease: float,
        timeout: float,
        back_off: float,
        clock: Clock,
        on_event: Listener,
    ) -> None:
        self._name = name
        self._client = client
        self._space = Keyspace(app, "write_through")
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"name must be letters, digits, '_', '.' and '-', at least one, got {name!r}")
        self._prefix = f"{name}/"  # a name has no slash, so no two caches share a key
        self._lease_ms = max(1, round(lease * 1000))
        self._clock = clock
        self._on_event = on_event
        self._outage = Outage(name, timeout=timeout, back_off=back_off, clock=clock, on_event=on_event)
        self._owed: dict[str, _Debt] = {}

    def keys(self, key: str) -> list[str]:
        """Return the keys of value, generation and writes.

        Raises:
            ValueError: `key` can be no key.
        """
        return [
            self._space.key(self._prefix + text("key", key), role)
            for role in ("value", "generation", "writes")
        ]

    # --- what readers do

    async def read(self, key: str) -> bytes | None:
        """Return the entry of `key`, or None; one HGET.

        Raises:
            Unreadable: what is there is no entry.
        """
        name = self.keys(key)[0]
        try:
            return cast("bytes | None", await self.ask(lambda: self._client.hget(name, "entry")))
        except NoCache as error:
            if str(error.__cause__).startswith("WRONGTYPE"):
                raise Unreadable(b"", "not a hash") from None
            raise

    async def begin(self, key: str, *, without: bytes = b"") -> Turn:
        """Ask for an entry, or note the generation of a load; `without` one that could not be read."""
        bad = hashlib.sha1(without, usedforsecurity=False).hexdigest()
        args: _Args = [new_token(), 2 * self._lease_ms, bad]
        entry, generation = await self.ask(lambda: BEGIN(self._client, keys=self.keys(key), args=args))
        return Turn(entry or None, generation)

    async def fill(self, key: str, generation: bytes, version: int, entry: bytes, ttl: float) -> bool:
        """Keep what was loaded for `ttl` seconds, unless a write or a drop came between; say whether."""
        args: _Args = [generation, version, entry, _ms(ttl)]
        return bool(await self.ask(lambda: FILL(self._client, keys=self.keys(key), args=args)))

    # --- what writers do

    # --8<-- [start:entries]
    async def mark(self, key: str, token: str) -> None:
        """Let the value that is there live for no more than the lease, and loads under way not be kept."""
        args: _Args = [token, self._lease_ms]
        await self.ask(lambda: MARK(self._client, keys=self.keys(key), args=args))

    async def unmark(self, key: str, token: str) -> None:
        """Give the value its life back: the write was refused."""
        await self.ask(lambda: UNMARK(self._client, keys=self.keys(key), args=[token]))

    async def keep(
        self, key: str, token: str, version: int, entry: bytes, ttl: float, *, bound: float
    ) -> bool:
        """Keep what was written for `ttl` seconds, or whatever is newer; say whether it is this.

        Also while Redis is left alone, for an old value that stays costs more than a time-out. If it fails,
        a drop is owed; `bound` is in how many seconds the old value ends by itself.
        """
        args: _Args = [token, self._lease_ms, version, entry, _ms(ttl)]
        try:
            asked = self._outage.ask(lambda: KEEP(self._client, keys=self.keys(key), args=args), anyway=True)
            return bool(await asked)
        except BaseException as error:
            self._owe([key], bound, error)
            raise

    async def drop(self, keys: Sequence[str], *, bound: float) -> None:
        """Delete the entries; nothing that was loaded, or marked, before this moment will be kept.

        What could not be dropped is owed: it is tried again before Redis is asked anything else.

        Raises:
            NoCache: Redis did not say that it is done.
        """
        left = list(dict.fromkeys(keys))
        try:
            while left:
                await self._outage.ask(lambda: self._drop(left[:_PART]), anyway=True)
                del left[:_PART]
        except BaseException as error:
            self._owe(left, bound, error)
            raise

    # --8<-- [end:entries]

    async def ask(self, request: Callable[[], Awaitable[T]]) -> T:
        """Return the answer of Redis to `request`, once nothing is owed.

        Raises:
            NoCache: it took longer than `timeout`, failed, or Redis is left alone for now.
        """
        return await self._outage.ask((lambda: self._settled(request)) if self._owed else request)

    async def _settled(self, request: Callable[[], Awaitable[T]]) -> T:
        now = self._clock.monotonic()
        for key in [key for key, debt in self._owed.items() if debt.gone <= now]:
            del self._owed[key]
        while part := list(itertools.islice(self._owed, _PART)):
            await self._drop(part)
        return await request()

    async def _drop(self, keys: list[str]) -> None:
        owed = {key: self._owed.get(key) for key in keys}
        if len(keys) == 1:
            await DROP(self._client, keys=self.keys(keys[0]))
        else:
            async with self._client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.eval(DROP.source, 3, *self.keys(key))
                await pipe.execute()
        for key, debt in owed.items():
            if debt and self._owed.get(key) is debt:  # or another has failed since
                del self._owed[key]
            emit(self._on_event, Invalidated(self._name, key))

    def _owe(self, keys: list[str], bound: float, error: BaseException) -> None:
        for key in keys:
            gone = self._clock.monotonic() + bound
            if earlier := self._owed.get(key):
                gone = max(gone, earlier.gone)
            self._owed[key] = _Debt(gone)
            what = type(error.__cause__ or error).__name__
            emit(self._on_event, InvalidationOwed(self._name, key, bound, what))


def new_token() -> str:
    """Return a token that no other write or load has."""
    return uuid.uuid4().hex


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
