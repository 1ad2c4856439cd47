"""Refresh-Ahead as it is often written: naive variants with the constructor of RefreshAhead."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self
from unittest import mock

from patterns.cache.read_through import ReadThrough
from patterns.cache.refresh_ahead import NotCacheable, Policy, RefreshAhead
from patterns.entry import Json

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Mapping


class Expires(ReadThrough):
    """A read-through cache: the value expires, and its readers wait."""

    _pattern = "refresh_ahead"

    def __init__(self, name: str, client: Any, policy: Policy, **options: Any) -> None:
        super().__init__(name, client, policy.reading(), **options)

    async def aclose(self) -> None:
        """Nothing to end."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to end."""


class KeepsTheOldAlive(RefreshAhead):
    """When a refresh fails, the old value gets a new life."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        refresh = self._refresher._refresh

        async def lenient(key: str, left: float) -> bool:
            try:
                return await refresh(key, left)
            except Exception:
                name = self._entries._store.keys(key)[0]
                await self._entries._client.pexpire(name, round(self.policy.ttl * 1000))
                raise

        self._refresher._refresh = lenient


class RefreshesInline(RefreshAhead):
    """The reader that finds it due refreshes it before it goes on."""

    async def get(self, key: str) -> Any:
        value = await super().get(key)
        if task := self._refresher._tasks.get(key):
            await asyncio.wait([task])
        return value


class InTheReadersTask(RefreshAhead):
    """The reader that finds it due refreshes it itself: when it is cancelled, so is the refresh."""

    async def get(self, key: str) -> Any:
        due: list[tuple[str, float]] = []
        self._refresher.begin = lambda *found: due.append(found)  # type: ignore[method-assign]  # that is the variant
        value = await super().get(key)
        for found in due:
            await self._refresher._attempt(*found)
        return value


class FlagWithoutAnEnd(RefreshAhead):
    """SET NX before a refresh, DEL after it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        client, refresh = self._entries._client, self._refresher._refresh

        async def granted(key: str) -> float:
            return 0.0 if await client.set(self._flag(key), "1", nx=True) else self.policy.refresh_pause

        async def flagged(key: str, left: float) -> bool:
            try:
                return await refresh(key, left)
            finally:
                await client.delete(self._flag(key))

        self._refresher._claim, self._refresher._refresh = granted, flagged

    def _flag(self, key: str) -> str:
        return self._entries._space.key(f"{self.name}/{key}", "flag")


class WaitsForRedis(RefreshAhead):
    """A GET without a time-out of its own."""

    def __init__(self, name: str, client: Any, policy: Policy, **options: Any) -> None:
        super().__init__(name, client, replace(policy, timeout=60), **options)


class ForgetsUnheardLeases(RefreshAhead):
    """What was asked for and not heard of counts as not given."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)

        async def nothing(keys: Collection[str], token: str) -> None:
            """Nothing was taken, they think."""

        self._entries._store.give_back = nothing  # type: ignore[method-assign]  # that is the variant


class EachReader(RefreshAhead):
    """`create_task(load and set)` in each read that finds it due."""

    def __init__(self, name: str, client: Any, policy: Policy, *, load: Any, **options: Any) -> None:
        super().__init__(name, client, policy, load=load, **options)
        self.tasks: set[asyncio.Task[None]] = set()
        self._refresher.begin = self._begin  # type: ignore[method-assign]  # that is the variant

    def _begin(self, key: str, left: float) -> None:
        self.tasks.add(asyncio.create_task(self._reload(key)))

    async def _reload(self, key: str) -> None:
        timed = await self._load(key)
        body = b"1 0 +\n" + self._entries._codec.encode(timed) if timed else b"1 0 -\n"
        name = self._entries._store.keys(key)[0]
        await self._entries._client.set(name, body, px=round(self.policy.ttl * 1000))

    async def aclose(self) -> None:
        await asyncio.gather(*self.tasks, return_exceptions=True)


class EachProcess(EachReader):
    """One refresh at a time in each process, none between them; what it loaded is set, come what may."""

    def _begin(self, key: str, left: float) -> None:
        if all(task.done() for task in self.tasks):
            super()._begin(key, left)


class TriesAtEachRead(RefreshAhead):
    """It failed, and is still due: the next read tries again."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)

        async def granted(_: str) -> float:
            self._refresher._left_alone.clear()
            return 0.0

        self._refresher._claim, self._refresher._pause = granted, 0.0


class DropsWhatItCannotRefresh(RefreshAhead):
    """A refresh begins by deleting the old value."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        refresh = self._refresher._refresh

        async def dropping(key: str, left: float) -> bool:
            await self._entries._client.delete(self._entries._store.keys(key)[0])
            return await refresh(key, left)

        self._refresher._refresh = dropping


class Timer(RefreshAhead):
    """A timer refreshes every key that was ever read."""

    def __init__(self, *args: Any, clock: Any, **options: Any) -> None:
        super().__init__(*args, clock=clock, **options)
        self._time, self._timers = clock, dict[str, asyncio.Task[None]]()

    async def get(self, key: str) -> Any:
        value = await super().get(key)
        if key not in self._timers:
            self._timers[key] = asyncio.create_task(self._again(key))
        return value

    async def _again(self, key: str) -> None:
        while True:
            await self._time.sleep(self.policy.ttl * (self.policy.refresh_after or 1))
            await self._load(key)

    async def aclose(self) -> None:
        for task in self._timers.values():
            task.cancel()
        await super().aclose()


class Unbounded(RefreshAhead):
    """Whatever is due is refreshed at once."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._refresher._most = 1_000


class KeepsTheContext(RefreshAhead):
    """`create_task` as it comes: a refresh runs in the context of the request that began it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        begin = self._refresher.begin

        def beginning(key: str, left: float) -> None:
            with mock.patch("patterns.cache.refresh_ahead.refresher.Context", return_value=None):
                begin(key, left)

        self._refresher.begin = beginning  # type: ignore[method-assign]  # that is the variant


class FireAndForget(RefreshAhead):
    """Closing it ends nothing."""

    async def aclose(self) -> None:
        """Leave them to themselves."""


class KeepsWhateverItLoaded(RefreshAhead):
    """The lease is checked, the generation is not."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        store = self._entries._store
        fill_all, begin_all = store.fill_all, store.begin_all

        async def fill(token: str, what: Mapping[str, tuple[bytes, bytes, float]]) -> set[str]:
            turns = await begin_all(list(what), token, without={}, alone=True, ahead=1e6)
            now = {key: (turn.generation, *what[key][1:]) for key, turn in turns.items() if turn}
            return await fill_all(token, now)

        store.fill_all = fill  # type: ignore[method-assign]  # that is the variant


class _EncodesAnything(Json):
    def encode(self, value: Any) -> bytes:
        return json.dumps(value, default=str).encode()


class KeepsAnything(RefreshAhead):
    """`json.dumps(value, default=str)`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, codec=_EncodesAnything(), **options)

    async def get(self, key: str) -> Any:
        try:
            return await super().get(key)
        except NotCacheable as error:
            return error.value


class Coin(Policy):
    """One reader in five thousand refreshes, whatever a load takes and however much is left."""

    def is_due(self, left: float, took: float, *, negative: bool, rng: random.Random) -> bool:
        return rng.random() < 1 / 5_000


class Certainly(Policy):
    """Every reader in the last fifth refreshes."""

    def is_due(self, left: float, took: float, *, negative: bool, rng: random.Random) -> bool:
        return left <= self.ttl / 5
